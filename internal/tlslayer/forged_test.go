package tlslayer

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"gateway/internal/layer"
)

// forger makes records of a client of TLS 1.3 that no library would send (RFC 8446
// sections 5.2, 7.2 and 7.3). The client itself sends nothing meanwhile.
type forger struct {
	secret []byte
	seq    uint64
}

// newForger is for a client whose secrets were logged, and who has sent seq records since
// its handshake.
func newForger(t testing.TB, p *pair, log *bytes.Buffer, seq uint64) *forger {
	t.Helper()
	if p.client.ConnectionState().CipherSuite != tls.TLS_AES_128_GCM_SHA256 {
		t.Skip("this machine prefers another cipher")
	}
	_, line, ok := strings.Cut(log.String(), "CLIENT_TRAFFIC_SECRET_0 ")
	fields := strings.Fields(line)
	if !ok || len(fields) < 2 {
		t.Fatalf("no secret in %q", log)
	}
	secret, err := hex.DecodeString(fields[1])
	if err != nil {
		t.Fatal(err)
	}
	return &forger{secret, seq}
}

func (f *forger) expand(label string, size int) []byte {
	label = "tls13 " + label
	info := fmt.Sprintf("%c%c%c%s%c", size>>8, size, len(label), label, 0)
	b, err := hkdf.Expand(sha256.New, f.secret, info, size)
	if err != nil {
		panic(err)
	}
	return b
}

// record returns a record of a type.
func (f *forger) record(kind byte, text string) []byte {
	block, err := aes.NewCipher(f.expand("key", 16))
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	nonce := f.expand("iv", 12)
	binary.BigEndian.PutUint64(nonce[4:], binary.BigEndian.Uint64(nonce[4:])^f.seq)
	f.seq++
	plain := append([]byte(text), kind)
	head := []byte{23, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(head[3:], uint16(len(plain)+aead.Overhead()))
	return aead.Seal(head, nonce, plain, head)
}

const (
	alertType       = 21
	handshakeType   = 22
	applicationType = 23

	keyUpdate        = "\x18\x00\x00\x01\x00"
	keyUpdateRequest = "\x18\x00\x00\x01\x01"
)

// update returns a record that says that new keys follow.
func (f *forger) update(message string) []byte {
	b := f.record(handshakeType, message)
	f.secret, f.seq = f.expand("traffic upd", 32), 0
	return b
}

func forge(t testing.TB) (*pair, *forger) {
	t.Helper()
	p, f := forgeConn(t)
	return p.lift(t, nil, new(layer.Room)), f
}

func forgeConn(t testing.TB) (*pair, *forger) {
	t.Helper()
	var log bytes.Buffer
	p := connect(t, tls.VersionTLS13, "", &log)
	return p, newForger(t, p, &log, 0)
}

func TestNewKeysAreAnsweredBeforeAnythingElse(t *testing.T) {
	p, f := forge(t)
	b := make([]byte, 9)
	for range 3 {
		sent := bytes.Join([][]byte{f.record(applicationType, "one"), f.update(keyUpdateRequest), f.record(applicationType, "two")}, nil)
		for _, one := range sent { // a byte at a time
			p.hear([]byte{one})
		}
		if p.state != layer.Open || string(p.heard) != "onetwo" || !p.Due() {
			t.Fatalf("%q, state %d, due %v", p.heard, p.state, p.Due())
		}
		p.heard = nil
		// What is said behind that is in the new keys, so the answer goes before.
		p.say([]byte("answer"))
		if p.Due() {
			t.Error("the answer is due once more")
		}
		if _, err := io.ReadFull(p.client, b[:6]); err != nil || string(b[:6]) != "answer" {
			t.Fatalf("%q, %v", b[:6], err)
		}
		p.hear(f.update(keyUpdateRequest))
		p.down.write(p.Back(nil)) // by itself
		p.hear(f.update(keyUpdate))
		if p.Due() {
			t.Error("new keys that ask for nothing are answered")
		}
		p.say([]byte("by itself"))
		if _, err := io.ReadFull(p.client, b); err != nil || string(b) != "by itself" {
			t.Fatalf("%q, %v", b, err)
		}
	}
}

func TestAHandshakeMessageMayBeCut(t *testing.T) {
	p, f := forge(t)
	p.hear(f.record(handshakeType, keyUpdateRequest[:2]))
	p.hear(nil)
	p.hear(f.update(keyUpdateRequest[2:]))
	p.hear(f.record(applicationType, "x"))
	if p.state != layer.Open || string(p.heard) != "x" || !p.Due() {
		t.Errorf("%q, state %d, due %v", p.heard, p.state, p.Due())
	}
}

// A client that goes on to ask and does not read costs no more than so much.
func TestAFloodOfNewKeysIsBounded(t *testing.T) {
	p, f := forge(t)
	n := 0
	for ; p.state == layer.Open; n++ {
		p.hear(append(f.update(keyUpdateRequest), f.record(applicationType, "x")...)) // which advances
		if n > wordsMax {
			t.Fatal("it may ask without end")
		}
	}
	if p.state != layer.Wrong || n < 100 {
		t.Errorf("state %d after %d", p.state, n)
	}
	// What advances nothing is bounded by crypto/tls.
	p, f = forge(t)
	for n = 0; p.state == layer.Open && n < 100; n++ {
		p.hear(f.update(keyUpdate))
	}
	if p.state != layer.Wrong {
		t.Errorf("state %d after %d", p.state, n)
	}
}

// Whoever waits for what a client sends would else wait for the client to read.
func TestAReadWritesNothing(t *testing.T) {
	p, f := forgeConn(t)
	p.down.take() // tickets
	b := make([]byte, 10)
	for range 3 {
		p.up.write(append(f.update(keyUpdateRequest), f.record(applicationType, "x")...))
		if n, err := p.server.Read(b); n != 1 || err != nil {
			t.Fatalf("read %q, %v", b[:n], err)
		}
		if said := p.down.take(); len(said) > 0 {
			t.Fatalf("%d bytes were written", len(said))
		}
	}
	p.server.Write([]byte("answer"))
	if _, err := io.ReadFull(p.client, b[:6]); err != nil || string(b[:6]) != "answer" {
		t.Fatalf("%q, %v", b[:6], err)
	}
	// It goes on as well in memory.
	p.up.write(append(f.update(keyUpdateRequest), f.record(applicationType, "x")...))
	p.server.Read(b)
	if p.lift(t, nil, new(layer.Room)); !p.Due() {
		t.Error("nothing is due")
	}
	p.down.write(p.Back(nil))
	p.say([]byte("behind"))
	if _, err := io.ReadFull(p.client, b[:6]); err != nil || string(b[:6]) != "behind" {
		t.Fatalf("%q, %v", b[:6], err)
	}

	// What it would have written is bounded.
	p, f = forgeConn(t)
	var err error
	n := 0
	for ; err == nil && n < waitingMax; n++ {
		p.up.write(append(f.update(keyUpdateRequest), f.record(applicationType, "x")...))
		_, err = p.server.Read(b)
	}
	if n < 100 || err != errDeaf || cap(p.server.layer.wire.out) > 2*waitingMax {
		t.Errorf("%v after %d, with room for %d bytes", err, n, cap(p.server.layer.wire.out))
	}

	// An alert is, once it has failed.
	p, f = forgeConn(t)
	p.up.write(append(f.update(keyUpdateRequest), f.record(99, "x")...))
	_, err = p.server.Read(b)
	p.down.close()
	var alert *net.OpError
	if _, got := p.client.Read(b); err == nil || !errors.As(got, &alert) || alert.Op != "remote error" {
		t.Errorf("%v, and the client read %v, no alert", err, got)
	}
}

func TestWhatAClientMayNotSayIsAnsweredByAnAlert(t *testing.T) {
	for name, say := range map[string]func(f *forger) []byte{
		"a hello":              func(f *forger) []byte { return f.record(handshakeType, "\x01\x00\x00\x04hell") },
		"a message of no type": func(f *forger) []byte { return f.record(handshakeType, "\xff\x00\x00\x00") },
		"a long message":       func(f *forger) []byte { return f.record(handshakeType, "\x18\xff\xff\xff") },
		"data within a message": func(f *forger) []byte {
			return append(f.record(handshakeType, "\x18"), f.record(applicationType, "x")...)
		},
		"a record of no type":    func(f *forger) []byte { return f.record(99, "x") },
		"nothing but padding":    func(f *forger) []byte { return f.record(0, "\x00\x00") },
		"a record once more":     func(f *forger) []byte { b := f.record(applicationType, ""); return append(b, b...) },
		"more than a record has": func(f *forger) []byte { return f.record(applicationType, strings.Repeat("x", 16<<10+1)) },
		"records that are empty": func(f *forger) []byte { return repeat(100, func() []byte { return f.record(applicationType, "") }) },
		"new keys, and the old instead": func(f *forger) []byte {
			return append(f.record(handshakeType, keyUpdate), f.record(applicationType, "x")...)
		},
	} {
		p, f := forge(t)
		p.hear(say(f))
		if p.state != layer.Wrong || len(p.heard) > 0 {
			t.Errorf("%s: %q, state %d", name, p.heard, p.state)
		}
		p.down.write(p.Back(nil))
		p.down.close()
		var alert *net.OpError
		if _, err := p.client.Read(make([]byte, 1)); !errors.As(err, &alert) || alert.Op != "remote error" {
			t.Errorf("%s: the client read %v, no alert", name, err)
		}
	}
}

func repeat(n int, make func() []byte) (all []byte) {
	for range n {
		all = append(all, make()...)
	}
	return all
}

func TestAnAlertOfTheClientIsItsError(t *testing.T) {
	for alert, want := range map[string]layer.State{
		"\x01\x00": layer.HalfClosed, // close_notify
		"\x02\x28": layer.Wrong,      // handshake_failure
		"\x01\x5a": layer.Open,       // user_canceled (section 6.1)
		"\x02":     layer.Wrong,
	} {
		p, f := forge(t)
		p.hear(append(f.record(applicationType, "last"), f.record(alertType, alert)...))
		if p.state != want || string(p.heard) != "last" {
			t.Errorf("%x: %q, state %d, want %d", alert, p.heard, p.state, want)
		}
	}
}

// A client of TLS 1.2 may ask for another handshake, and there is none (RFC 5246 section
// 7.4.1.2).
func TestThereIsNoOtherHandshake(t *testing.T) {
	var log bytes.Buffer
	p := connect(t, tls.VersionTLS12, "", &log).lift(t, nil, new(layer.Room))
	if p.client.ConnectionState().CipherSuite != tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 {
		t.Skip("this machine prefers another cipher")
	}
	fields := strings.Fields(log.String())
	if len(fields) != 3 || fields[0] != "CLIENT_RANDOM" {
		t.Fatalf("no secret in %q", &log)
	}
	clientRandom, _ := hex.DecodeString(fields[1])
	master, _ := hex.DecodeString(fields[2])
	// The keys of RFC 5246 section 6.3, and a record as in RFC 5288 section 3. The
	// client's Finished was the first.
	keys := prf(master, "key expansion", append(p.down.first[11:43:43], clientRandom...), 40)
	block, err := aes.NewCipher(keys[:16])
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	record := func(seq byte, kind byte, text string) []byte {
		explicit := []byte{0, 0, 0, 0, 0, 0, 0, seq}
		head := []byte{kind, 3, 3, 0, byte(8 + len(text) + aead.Overhead())}
		aad := append(append(bytes.Clone(explicit), head[:3]...), 0, byte(len(text)))
		nonce := append(bytes.Clone(keys[32:36]), explicit...)
		return aead.Seal(append(head, explicit...), nonce, []byte(text), aad)
	}
	p.hear(record(1, applicationType, "good"))
	if string(p.heard) != "good" || p.state != layer.Open {
		t.Fatalf("%q, state %d: the forgery is none", p.heard, p.state)
	}
	p.hear(record(2, handshakeType, "\x01\x00\x00\x04hell"))
	p.down.write(p.Back(nil))
	p.down.close()
	var alert *net.OpError
	if _, err := p.client.Read(make([]byte, 1)); p.state != layer.Wrong || !errors.As(err, &alert) {
		t.Errorf("state %d, the client read %v", p.state, err)
	}
}

// prf is that of RFC 5246 section 5.
func prf(secret []byte, label string, seed []byte, size int) (out []byte) {
	sum := func(b []byte) []byte {
		h := hmac.New(sha256.New, secret)
		h.Write(b)
		return h.Sum(nil)
	}
	seed = append([]byte(label), seed...)
	for a := sum(seed); len(out) < size; a = sum(a) {
		out = append(out, sum(append(bytes.Clone(a), seed...))...)
	}
	return out[:size]
}
