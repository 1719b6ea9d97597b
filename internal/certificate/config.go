package certificate

import "crypto/tls"

// Config returns a server's configuration with r's certificate: TLS 1.2 or
// 1.3, and for the rest the defaults of crypto/tls, which follow the times.
//
// The only application protocol is HTTP/1.1. A client that names others only
// is refused with the alert no_application_protocol (RFC 7301 section 3.2); a
// client that names none, as programs with a protocol of their own, is let in.
func Config(r *Reloader) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12, // whatever GODEBUG says
		NextProtos:     []string{"http/1.1"},
		GetCertificate: r.GetCertificate,
	}
}
