package tlslayer

import (
	"crypto/tls"
	"io"
	"testing"

	"gateway/internal/layer"
)

// script is a layer that says what is done to it, and does what it is told.
type script struct {
	log   string
	state layer.State // of In
	cut   layer.State
	words string // that are due
	alive bool
}

func (s *script) In(b []byte) ([]byte, layer.State) {
	s.log += " in:" + string(b)
	return b[:len(b)/2], s.state
}
func (s *script) Out(b []byte) []byte    { return append([]byte("<"), b[layer.Headroom:]...) }
func (s *script) Back(b []byte) []byte   { b = append(b, s.words...); s.words = ""; return b }
func (s *script) Due() bool              { return s.words != "" }
func (s *script) Finish(failed bool)     { s.words = "finished"; s.log += " finish" }
func (s *script) Finished() bool         { return s.cut == layer.Finished }
func (s *script) HalfCloses() bool       { return false }
func (s *script) Leave()                 { s.words = "left" }
func (s *script) Cut(bool) layer.State   { return s.cut }
func (s *script) Look(_, _ bool) bool    { s.words = "ping"; return s.alive }
func (s *script) Append(b []byte) []byte { panic("its state is of no use") }
func (s *script) Name() string           { return "script" }
func (s *script) String() string         { log := s.log; s.log = ""; return log }
func read(t testing.TB, c *tls.Conn) string {
	t.Helper()
	b := make([]byte, 100)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestALayerInsideTLSGetsAndSaysBytes(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		s := &script{}
		p := connect(t, version, "early", nil).lift(t, s, new(layer.Room))
		p.deliver(atOnce)
		if p.Name() != "" || string(p.heard) != "ea" || s.String() != " in:early" {
			t.Errorf("%q came, after%s", p.heard, s)
		}
		p.say([]byte("x"))
		if got := read(t, p.client); got != "<x" {
			t.Errorf("the client got %q", got)
		}
		if s.words = "pong"; !p.Due() {
			t.Error("nothing is due")
		}
		p.down.write(p.Back(nil))
		if got := read(t, p.client); got != "pong" || p.Due() {
			t.Errorf("the client got %q", got)
		}
		if s.alive = true; !p.Look(true, false) || !p.Due() {
			t.Error("nobody looks after the client")
		}
		p.down.write(p.Back(nil))
		read(t, p.client)
		// A record that is not whole is nothing yet.
		p.client.Write([]byte("half"))
		sent := p.up.take()
		p.hear(sent[:10])
		if log := s.String(); log != "" {
			t.Errorf("half a record is%s", log)
		}
		p.hear(sent[10:])
		if log := s.String(); log != " in:half" {
			t.Errorf("a record is%s", log)
		}
		// The last words are followed by close_notify.
		p.Leave()
		p.down.write(p.Back(nil))
		if got, err := io.ReadAll(p.client); string(got) != "left" || err != nil || p.Due() {
			t.Errorf("the client got %q, %v", got, err)
		}
	})
}

// The end of TLS without a word of the layer inside is a cut to that.
func TestTheLayerInsideSaysWhatAnEndIs(t *testing.T) {
	for _, tt := range []struct {
		name    string
		garbage string
		s       script
		want    layer.State
	}{
		{"it says so", "", script{state: layer.Finished, cut: layer.Failed}, layer.Finished},
		{"close_notify alone", "", script{cut: layer.Failed}, layer.Failed},
		{"close_notify behind its own end", "", script{cut: layer.Finished}, layer.Finished},
		{"no record", "no record\r\n", script{cut: layer.Failed}, layer.Failed},
	} {
		p := connect(t, tls.VersionTLS13, "", nil).lift(t, &tt.s, new(layer.Room))
		p.client.Write([]byte("last"))
		if tt.garbage == "" {
			p.client.CloseWrite()
		}
		p.up.write([]byte(tt.garbage))
		p.deliver(atOnce)
		if p.state != tt.want || string(p.heard) != "la" || p.Cut(true) != tt.s.cut || p.Finished() != (tt.s.cut == layer.Finished) || p.HalfCloses() {
			t.Errorf("%s: %q, state %d, want %d", tt.name, p.heard, p.state, tt.want)
		}
	}
}
