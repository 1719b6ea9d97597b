package protocols

import (
	"path/filepath"
	"strings"
	"testing"

	"gateway/internal/harness"
)

// A beginning that nothing can follow to make a request is answered as early as
// that is known: whoever waits for an answer need not wait for a time-out.
func TestWhatCanBecomeNoRequestIsAnsweredAtOnce(t *testing.T) {
	t.Parallel()
	set, _, _ := harness.Run(t, nil, "-keygen")
	keys := filepath.Join(t.TempDir(), "keys")
	harness.WriteFile(t, keys, set)
	const prefixed = "\x03\x00\x00\x00"
	harness.BothWays(t, func(t *testing.T, way string) {
		patient := []string{way, "-handshake-timeout=1h", "-handshake-max=200"}
		plain := harness.Start(t, patient...)
		tokens := harness.Start(t, append(patient, "-token-keys="+keys, "-legacy=0")...)
		proxied := harness.Start(t, append(patient, "-trusted-proxies=127.0.0.0/8")...)
		const signature = "\r\n\r\n\x00\r\nQUIT\n"
		for _, tt := range []struct {
			name, begins, answer string
			gateway              *harness.Process
		}{
			{"no length of either kind", "\x00\x00", "400", plain},
			{"no length, and more", "\x00\x00\x00", "400", plain},
			{"a length beyond the limit", "\xc9\x00\x00\x00", prefixed + "400", plain},
			{"a length far beyond the limit", "\xff\xff\x00\x00", prefixed + "400", plain},
			{"binary beyond the limit", "\x00\xc9S", "400", plain},
			{"binary that is no sealed line", "\x00\x20X", "401", plain},
			{"binary that begins as one", "\x00\x20SaltedX", "401", plain},
			{"text of no sealed line", "\x2c\x00\x00\x00X", prefixed + "401", plain},
			{"text that begins as one", "\x2c\x00\x00\x00U2FsdGVkX2", prefixed + "401", plain},
			{"a token where none opens", "\x00\x80eyJ", "401", plain},
			{"a sealed line where none opens", "\x2c\x00\x00\x00U", prefixed + "401", tokens},
			{"binary of one where none opens", "\x00\x20S", "401", tokens},
			{"binary of no token", "\x00\x80eyX", "401", tokens},
			{"a line without its newline", strings.Repeat("A", 202), "400", plain},
			{"no PROXY header", "G", "400", proxied},
			{"no PROXY signature", signature[:11] + "X", "400", proxied},
			{"another version of PROXY", signature + "\x31", "400", proxied},
			{"another family of PROXY", signature + "\x21\x41", "400", proxied},
			{"a PROXY header too long", signature + "\x21\x11\xff\xff", "400", proxied},
			{"no length behind a PROXY header", "PROXY UNKNOWN\r\n\x00\x00", "400", proxied},
		} {
			t.Run(tt.name, func(t *testing.T) {
				c := harness.Connect(t, tt.gateway.Addr)
				harness.Send(t, c, tt.begins)
				harness.ExpectAll(t, c, tt.answer)
			})
		}
	})
}
