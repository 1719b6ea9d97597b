package main

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
)

// The padding oracle: whoever has captured a line may try what it says.

// An oracle tells whether a forged line failed in another way than a line with
// bad padding does.
type oracle func(line string) bool

// intermediate asks an oracle for what AES makes of a block of ciphertext
// before CBC mixes in the block in front of it (Vaudenay 2002). salt is that of
// the captured line, so that the gateway uses the same key.
func (ask oracle) intermediate(salt, block []byte) (d []byte, ok bool) {
	d = make([]byte, 16)
	for pos := 15; pos >= 0; pos-- {
		forged := make([]byte, 16) // stands in front of the block
		for i := pos + 1; i < 16; i++ {
			forged[i] = d[i] ^ byte(16-pos)
		}
		found := false
		for guess := 0; guess < 256 && !found; guess++ {
			forged[pos] = byte(guess)
			found = ask(toLine(salt, forged, block))
			if found && pos == 15 { // not by luck a longer padding?
				forged[14] ^= 1
				found = ask(toLine(salt, forged, block))
				forged[14] ^= 1
			}
		}
		if !found {
			return nil, false
		}
		d[pos] = forged[pos] ^ byte(16-pos)
	}
	return d, true
}

// recoverText attacks a captured line and returns as much of its plaintext as
// can be had, padding included: all but the first 16 bytes, whose IV stays
// unknown.
func (ask oracle) recoverText(line string) string {
	raw, err := base64.StdEncoding.DecodeString(line)
	if err != nil {
		panic(err)
	}
	var plain []byte
	for at := 32; at < len(raw); at += 16 {
		if d, ok := ask.intermediate(raw[8:16], raw[at:at+16]); ok {
			plain = append(plain, xor(d, raw[at-16:at])...)
		}
	}
	return string(plain)
}

// forge makes a line that opens to 16 bytes of garbage and then the text, of at
// most 15 bytes, from what an attack learned about a block.
func forge(salt, block, intermediate []byte, text string) string {
	return toLine(salt, xor(intermediate, pad(text)), block)
}

func xor(a, b []byte) []byte {
	out := make([]byte, len(a))
	for i := range out {
		out[i] = a[i] ^ b[i]
	}
	return out
}

// capturedLines are what an attacker has seen, with addresses of three blocks
// and fixed salts, so that each run is the same.
func capturedLines() (addr string, byKDF map[kdf]string) {
	addr = "lobby-17.game.internal.example:40123"
	return addr, map[kdf]string{
		kdfMD5:    referenceEncrypt(kdfMD5, testSecret, []byte("captured"), pad(addr)),
		kdfSHA256: referenceEncrypt(kdfSHA256, testSecret, []byte("snatched"), pad(addr)),
	}
}

// The attack has to work where it can, or its failure proves nothing.
func TestAPaddingOracleGivesACapturedAddressAway(t *testing.T) {
	addr, captured := capturedLines()
	for kdf, line := range captured {
		queries := 0
		// Like the original: 401 for bad padding, and 502 when it could not
		// dial what came out.
		ask := oracle(func(line string) bool {
			queries++
			raw, _ := base64.StdEncoding.DecodeString(line)
			_, ok := referenceUnpad(referenceDecrypt(referenceKey(kdf, testSecret, raw[8:16]), raw[16:]))
			return ok
		})
		if got, want := ask.recoverText(line), string(pad(addr))[16:]; got != want {
			t.Errorf("%s: recovered %q, want %q", kdf, got, want)
		}
		raw, _ := base64.StdEncoding.DecodeString(line)
		d, ok := ask.intermediate(raw[8:16], raw[32:48])
		if !ok {
			t.Fatalf("%s: no intermediate", kdf)
		}
		forged, _ := base64.StdEncoding.DecodeString(forge(raw[8:16], raw[32:48], d, ".evil.test:80"))
		text, ok := referenceUnpad(referenceDecrypt(referenceKey(kdf, testSecret, raw[8:16]), forged[16:]))
		if !ok || len(text) != 16+13 || text[16:] != ".evil.test:80" {
			t.Errorf("%s: forged %q", kdf, text)
		}
		t.Logf("%s: %d queries", kdf, queries)
	}
}

func TestThePaddingOracleAttackLearnsNothingFromAGateway(t *testing.T) {
	t.Parallel()
	var dialed atomic.Int64
	backend := startBackend(t, func(*net.TCPConn) { dialed.Add(1) })
	g := startGateway(t, func(g *Gateway) {
		g.dialer.resolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
			t.Error("a name was looked up")
			return nil, errors.New("no lookups here")
		}}
	})
	queries := 0
	ask := oracle(func(line string) bool {
		queries++
		c := connect(t, g.addr)
		defer c.Close()
		send(t, c, line+"\n")
		answer, err := io.ReadAll(c)
		if string(answer) != "401" || err != nil {
			t.Errorf("%s was answered %q, %v", line, answer, err)
			return true
		}
		return false
	})

	_, captured := capturedLines()
	for kdf, line := range captured {
		if got := ask.recoverText(line); got != "" {
			t.Errorf("%s: recovered %q", kdf, got)
		}
		// Suppose the attacker knew a block all the same: what can be forged
		// begins with garbage and does not open either.
		raw, _ := base64.StdEncoding.DecodeString(line)
		key := referenceKey(kdf, testSecret, raw[8:16])
		d := xor(referenceDecrypt(key, raw[16:])[16:32], raw[16:32])
		for _, text := range []string{":80", "a:80", ".evil.test:80", backend[strings.Index(backend, "."):]} {
			ask(forge(raw[8:16], raw[32:48], d, text))
		}
	}

	// Among the queries were some with good padding, and only the log knows.
	g.log.waitLine(t, "refused", queries)
	reasons := map[any]int{}
	for _, line := range g.log.lines("refused") {
		reasons[line["reason"]]++
		if line["backend"] != nil || line["status"] != "401" {
			t.Errorf("refused: %v", line)
		}
	}
	if reasons["bad_padding"] == 0 || reasons["bad_address"] < 10 || len(reasons) != 2 {
		t.Errorf("%d queries met %v: this attack attacked nothing", queries, reasons)
	}
	if n := dialed.Load(); n != 0 {
		t.Errorf("the backend was dialed %d times", n)
	}
	expectAll(t, openTunnel(t, g.addr, backend), "") // it could have been
	eventually(t, "the backend has a client", func() bool { return dialed.Load() == 1 })
}
