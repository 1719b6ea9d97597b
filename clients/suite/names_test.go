package suite

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"gateway/internal/harness"
)

// certificate returns one in DER with these names, or with a subjectAltName of these
// bytes. Its common name is always gateway.test.
func certificate(t *testing.T, names []string, raw []byte) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "gateway.test"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	if raw != nil {
		template.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: raw}}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		c = &x509.Certificate{Raw: der} // one that Go does not take
	}
	return c
}

// The C# kit looks for the name itself, since its platforms may not (RFC 9525).
func TestTheKitForCSharpKnowsWhoseACertificateIs(t *testing.T) {
	if !needKits {
		harness.Long(t)
	}
	var command []string
	for _, k := range kits {
		if k.name == "csharp" {
			command = k.build(t)
		}
	}
	var ask, want []string
	add := func(host string, c *x509.Certificate, answer string) {
		ask, want = append(ask, host+" "+base64.StdEncoding.EncodeToString(c.Raw)), append(want, answer)
	}

	// As Go's crypto/x509 does.
	hosts := []string{
		"play.example.com", "PLAY.Example.COM", "play.example.com.", "example.com", "a.play.example.com", "xplay.example.com",
		"a.example.com", "a.b.example.com", ".example.com", "com", "gateway.test", "localhost", "play", "*.example.com",
		"xn--bcher-kva.example.com", "a_b.example.com",
		"127.0.0.1", "127.0.0.2", "::1", "::2", "::ffff:127.0.0.1", "10.0.0.1.example.com",
	}
	for _, names := range [][]string{
		{"play.example.com", "127.0.0.1"}, {"*.example.com"}, {"other.example.com", "play.example.com"}, {"::1"},
		{"*.play.example.com"}, {"p*.example.com"}, {"play.*.com"}, {"*"}, {"*.com"}, {"*.*.com"}, {"play.example.com."},
		{"127.0.0.1.example.com"}, {"play.example.com\x00.evil.test"}, {"PLAY.EXAMPLE.COM"}, {"localhost"}, nil,
	} {
		c := certificate(t, names, nil)
		for _, host := range hosts {
			answer := "no"
			// Go takes an IPv4 address in either of its forms, and what is no host's name
			// as a text.
			if c.VerifyHostname(host) == nil && !strings.Contains(host, ":ffff:") && host[0] != '*' && !strings.HasSuffix(strings.Join(names, ""), ".") {
				answer = "yes"
			}
			add(host, c, answer)
		}
	}
	// Go wants names in ASCII.
	umlaut := certificate(t, []string{"xn--bcher-kva.example.com"}, nil)
	add("bücher.example.com", umlaut, "yes")
	add("bucher.example.com", umlaut, "no")
	// An address that is written as a name is none, nor is a name an address.
	add("127.0.0.1", certificate(t, nil, []byte("\x30\x0b\x82\x09127.0.0.1")), "no")
	add("play.example.com", certificate(t, nil, []byte("\x30\x12\x81\x10play.example.com")), "no") // an e-mail address

	const name = "\x82\x10play.example.com"
	whole := func(inner string) []byte { return []byte("\x30" + string([]byte{byte(len(inner))}) + inner) }
	for raw, answer := range map[string]string{
		string(whole(name)): "yes",
		string(whole("\x87\x04\x7f\x00\x00\x01" + name)): "yes",
		"\x30\x81\x12" + name:                            "yes", // a longer length than it takes
		"":                                               "no",
		"\x30":                                           "no",
		"\x30\x00":                                       "no",
		"\x31\x12" + name:                                "no", // a SET
		"\x30\x11" + name[:17]:                           "no", // cut off
		"\x30\x13" + name:                                "no", // shorter than it says
		"\x30\x11" + name:                                "no", // longer than it says
		"\x30\x84\x00\x00\x00\x12" + name:                "no", // of four bytes
		"\x30\x80" + name + "\x00\x00":                   "no", // without a length
		string(whole(name + "\x82")):                     "no",
		string(whole(name + "\x82\x7f")):                 "no",
		string(whole("\x82\x7f" + name)):                 "no",
	} {
		add("play.example.com", certificate(t, nil, []byte(raw)), answer)
	}

	got := strings.Split(run(t, strings.Join(ask, "\n")+"\n", command, "names"), "\n")
	if len(got) != len(ask) {
		t.Fatalf("%d answers to %d questions: %q", len(got), len(ask), got)
	}
	yes := 0
	for i := range ask {
		host, der, _ := strings.Cut(ask[i], " ")
		if answer := strings.TrimSpace(got[i]); answer != want[i] {
			b, _ := base64.StdEncoding.DecodeString(der)
			c, err := x509.ParseCertificate(b)
			if err != nil {
				t.Errorf("%s: %s, want %s of a certificate that Go does not take: %v", host, answer, want[i], err)
				continue
			}
			t.Errorf("%s: %s, want %s of %q and %v", host, answer, want[i], c.DNSNames, c.IPAddresses)
		}
		if want[i] == "yes" {
			yes++
		}
	}
	if yes < 15 {
		t.Errorf("%d of %d certificates are the host's", yes, len(ask))
	}
}
