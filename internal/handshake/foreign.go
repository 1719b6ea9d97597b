package handshake

import "bytes"

// Foreign is a protocol that is none of ours, by how it begins.
type Foreign string

// The words are those of the log.
const (
	ProxyHeader Foreign = "proxy_header" // of the PROXY protocol, either version
	TLSHello    Foreign = "tls"          // a record of a TLS handshake (RFC 8446 section 5.1)
	HTTP2       Foreign = "http2"        // the preface of RFC 9113 section 3.4
	SSH         Foreign = "ssh"          // the identification of RFC 4253 section 4.2
)

var foreign = []struct {
	start string
	is    Foreign
}{
	{"PROXY ", ProxyHeader},
	{"\r\n\r\n\x00\r\nQUIT\n", ProxyHeader},
	{"\x16\x03\x00", TLSHello}, {"\x16\x03\x01", TLSHello}, {"\x16\x03\x02", TLSHello}, {"\x16\x03\x03", TLSHello},
	{"PRI * HTTP/2", HTTP2},
	{"SSH-", SSH},
}

// SniffForeign tells which other protocol b begins with, all that a client has sent so
// far; or empty. A sealed line begins with none of them.
func SniffForeign(b []byte) Foreign {
	for _, f := range foreign {
		if bytes.HasPrefix(b, []byte(f.start)) {
			return f.is
		}
	}
	return ""
}
