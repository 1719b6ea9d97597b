module gateway

go 1.26.0

require golang.org/x/sys v0.49.0

require github.com/pires/go-proxyproto v0.15.0

require github.com/coder/websocket v1.8.15

require github.com/go-jose/go-jose/v4 v4.1.8
