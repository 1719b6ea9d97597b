package websocket

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"gateway/internal/layer"
)

// frame returns a client's frame; its first byte as it is.
func frame(first byte, payload string) []byte {
	b := []byte{first}
	switch n := len(payload); {
	case n <= 125:
		b = append(b, mask|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, mask|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, mask|127), uint64(n))
	}
	key := []byte{0x37, 0xfa, 0x21, 0x3d}
	b = append(b, key...)
	for i := range len(payload) {
		b = append(b, payload[i]^key[i%4])
	}
	return b
}

func frames(list ...[]byte) []byte { return bytes.Join(list, nil) }

func closing(code uint16, reason string) string {
	return string(binary.BigEndian.AppendUint16(nil, code)) + reason
}

// heard is what comes of bytes that are read in pieces.
type heard struct {
	out, back string
	state     layer.State
}

// hear gives s what a client sends in pieces of the sizes that size returns.
func hear(s *Stream, sent []byte, size func(left int) int) (h heard) {
	for len(sent) > 0 && h.state == layer.Open {
		n := size(len(sent))
		piece := append([]byte(nil), sent[:n]...) // which it works in
		sent = sent[n:]
		var out []byte
		out, h.state = s.In(piece)
		h.out += string(out)
		h.back += string(s.Back(nil))
	}
	return h
}

const testMost = 1 << 20

// The cases are those of Autobahn's fuzzing client, by their sections, as far as they
// are about frames: what a message of text holds is the backend's to judge, and
// nothing is compressed.
func TestFramesAreTakenByTheRules(t *testing.T) {
	const fin, text, binary, cont = 0x80, opText, opBinary, opContinuation
	const ping, pong, cl = fin | opPing, fin | opPong, fin | opClose
	long := strings.Repeat("*", 65536)
	wrong := "\x88\x02\x03\xea"
	type test struct {
		name string
		sent []byte
		want heard
	}
	tests := []test{
		{"1.1.1 an empty text", frame(fin|text, ""), heard{}},
		{"1.2.1 an empty binary message", frame(fin|binary, ""), heard{}},
		{"1.1.6 of 65535 bytes", frame(fin|text, long[1:]), heard{out: long[1:]}},
		{"1.2.7 of 65536 bytes", frame(fin|binary, long), heard{out: long}},
		{"2.1 an empty ping", frame(ping, ""), heard{back: "\x8a\x00"}},
		{"2.2 a ping", frame(ping, "Hello"), heard{back: "\x8a\x05Hello"}},
		{"2.3 a ping of no text", frame(ping, "\x00\xff\xfe"), heard{back: "\x8a\x03\x00\xff\xfe"}},
		{"2.4 a ping of 125 bytes", frame(ping, long[:125]), heard{back: "\x8a\x7d" + long[:125]}},
		{"2.5 a ping of 126 bytes", frame(ping, long[:126]), heard{back: wrong, state: layer.Wrong}},
		{"2.7 a pong nobody asked for", frame(pong, "x"), heard{}},
		{"2.9 a pong and a ping", frames(frame(pong, "x"), frame(ping, "y")), heard{back: "\x8a\x01y"}},
		{"4.1.1 a reserved opcode", frame(fin|3, ""), heard{back: wrong, state: layer.Wrong}},
		{"4.1.3 one behind a message", frames(frame(fin|text, "a"), frame(fin|5, ""), frame(ping, "")), heard{out: "a", back: wrong, state: layer.Wrong}},
		{"4.2.1 a reserved control opcode", frame(fin|11, ""), heard{back: wrong, state: layer.Wrong}},
		{"4.2.5 another", frame(fin|15, "x"), heard{back: wrong, state: layer.Wrong}},
		{"5.1 a ping in two fragments", frames(frame(opPing, "a"), frame(fin|cont, "b")), heard{back: wrong, state: layer.Wrong}},
		{"5.3 a message in two fragments", frames(frame(text, "a"), frame(fin|cont, "b")), heard{out: "ab"}},
		{"5.6 a ping between two fragments", frames(frame(text, "a"), frame(ping, "p"), frame(fin|cont, "b")), heard{out: "ab", back: "\x8a\x01p"}},
		{"5.9 a continuation of nothing", frame(fin|cont, "a"), heard{back: wrong, state: layer.Wrong}},
		{"5.12 the same without an end", frame(cont, "a"), heard{back: wrong, state: layer.Wrong}},
		{"5.15 a continuation too many", frames(frame(text, "a"), frame(fin|cont, "b"), frame(cont, "c")), heard{out: "ab", back: wrong, state: layer.Wrong}},
		{"5.18 a text within a message", frames(frame(text, "a"), frame(fin|text, "b")), heard{out: "a", back: wrong, state: layer.Wrong}},
		{"5.19 pings and fragments", frames(frame(text, "a"), frame(cont, "b"), frame(ping, "1"), frame(cont, ""), frame(fin|cont, "c"), frame(fin|text, "d")), heard{out: "abcd", back: "\x8a\x011"}},
		{"3.1 a reserved bit", frame(fin|text|0x40, "a"), heard{back: wrong, state: layer.Wrong}},
		{"3.5 two, of a ping", frame(ping|0x30, "a"), heard{back: wrong, state: layer.Wrong}},
		{"7.1.1 a message and a close", frames(frame(fin|text, "a"), frame(cl, closing(1000, ""))), heard{"a", "\x88\x02\x03\xe8", layer.Finished}},
		{"7.1.3 a ping behind a close", frames(frame(cl, closing(1000, "")), frame(ping, "")), heard{back: "\x88\x02\x03\xe8", state: layer.Finished}},
		{"7.1.5 a close between fragments", frames(frame(text, "a"), frame(cl, closing(1000, "")), frame(fin|cont, "b")), heard{"a", "\x88\x02\x03\xe8", layer.Finished}},
		{"7.3.1 a close without a code", frame(cl, ""), heard{back: "\x88\x00", state: layer.Finished}},
		{"7.3.2 a close of one byte", frame(cl, "x"), heard{back: wrong, state: layer.Wrong}},
		{"7.3.4 a close with a reason", frame(cl, closing(1000, "why")), heard{back: "\x88\x05\x03\xe8why", state: layer.Finished}},
		{"7.3.5 of 123 bytes", frame(cl, closing(1000, long[:123])), heard{back: "\x88\x7d\x03\xe8" + long[:123], state: layer.Finished}},
		{"7.3.6 of 124 bytes", frame(cl, closing(1000, long[:124])), heard{back: wrong, state: layer.Wrong}},
		{"7.5.1 a reason that is no UTF-8", frame(cl, closing(1000, "\xce\xba\xed\xa0\x80")), heard{back: "\x88\x02\x03\xef", state: layer.Wrong}},
		{"a frame that is not masked", []byte{fin | text, 1, 'a'}, heard{back: wrong, state: layer.Wrong}},
		{"a length of 2^63", append([]byte{fin | binary, mask | 127, 0x80, 0, 0, 0, 0, 0, 0, 0}, 1, 2, 3, 4), heard{back: wrong, state: layer.Wrong}},
		{"a message that is too large", append([]byte{fin | binary, mask | 127, 0, 0, 0, 0, 0, 0x10, 0, 1}, 1, 2, 3, 4), heard{back: "\x88\x02\x03\xf1", state: layer.Wrong}},
		{"the same in fragments", frames(frame(binary, "1"), append([]byte{cont, mask | 127, 0, 0, 0, 0, 0, 0x10, 0, 0}, 1, 2, 3, 4)), heard{"1", "\x88\x02\x03\xf1", layer.Wrong}},
		{"a close with an error", frame(cl, closing(1011, "")), heard{back: "\x88\x02\x03\xf3", state: layer.Failed}},
	}
	for _, code := range []uint16{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999} { // 7.7
		state := layer.Failed
		if code == 1000 || code == 1001 || code >= 3000 {
			state = layer.Finished
		}
		tests = append(tests, test{fmt.Sprint("7.7 close code ", code), frame(cl, closing(code, "")), heard{back: "\x88\x02" + closing(code, ""), state: state}})
	}
	for _, code := range []uint16{0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535} { // 7.9, 7.13
		tests = append(tests, test{fmt.Sprint("7.9 close code ", code), frame(cl, closing(code, "")), heard{back: wrong, state: layer.Wrong}})
	}
	whole := func(n int) int { return n }
	chop := func(n int) int { return 1 }
	for _, tt := range tests {
		if got := hear(New(testMost), tt.sent, whole); got != tt.want {
			t.Errorf("%s: %.80q, want %.80q", tt.name, got, tt.want)
		}
		if got := hear(New(testMost), tt.sent, chop); got != tt.want { // 1.1.8 and its kin
			t.Errorf("%s, octet by octet: %.80q, want %.80q", tt.name, got, tt.want)
		}
	}
}

func TestWhereReadsEndAndProcessesChangeMakesNoDifference(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	for range 2000 {
		var sent []byte
		for inside := false; len(sent) < 4000; {
			payload := strings.Repeat(string(rune('a'+r.IntN(26))), r.IntN(1<<r.IntN(11)))
			switch r.IntN(8) {
			case 0:
				sent = append(sent, frame(final|opPing, payload[:min(len(payload), 125)])...)
			case 1:
				sent = append(sent, frame(final|opPong, payload[:min(len(payload), 125)])...)
			default:
				first := byte(opBinary)
				if inside {
					first = opContinuation
				}
				if inside = r.IntN(3) == 0; !inside {
					first |= final
				}
				sent = append(sent, frame(first, payload)...)
			}
		}
		switch r.IntN(4) {
		case 0:
			sent = append(sent, frame(final|opClose, closing(1000, "bye"))...)
		case 1:
			sent[r.IntN(len(sent))] ^= 1 << r.IntN(8)
		}
		want := hear(New(testMost), sent, func(n int) int { return n })
		s := New(testMost)
		got := hear(s, sent, func(n int) int {
			state := s.Append(nil)
			moved, err := Restore(state, testMost)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if !bytes.Equal(moved.Append(nil), state) {
				t.Fatalf("seed %d: the state is another one", seed)
			}
			*s = *moved
			return 1 + r.IntN(min(n, 1<<r.IntN(12)))
		})
		// Of several pings in a read the last is answered.
		if got.out != want.out || got.state != want.state || !strings.HasSuffix(got.back, want.back) {
			t.Fatalf("seed %d: %.100q, want %.100q", seed, got, want)
		}
	}
}

func TestWhatABackendSendsIsABinaryMessage(t *testing.T) {
	for n, head := range map[int]string{1: "\x82\x01", 125: "\x82\x7d", 126: "\x82\x7e\x00\x7e", 65535: "\x82\x7e\xff\xff"} {
		b := append(make([]byte, layer.Headroom), strings.Repeat("x", n)...)
		if got, want := string(New(1).Out(b)), head+strings.Repeat("x", n); got != want {
			t.Errorf("%d bytes: %.20q, want %.20q", n, got, want)
		}
	}
}

func TestTheEndsOfAStream(t *testing.T) {
	for name, tt := range map[string]struct {
		do   func(s *Stream)
		want string
		cut  layer.State
	}{
		"nothing":             {func(s *Stream) {}, "", layer.Failed},
		"the backend's FIN":   {func(s *Stream) { s.Finish(false) }, "\x88\x02\x03\xe8", layer.Finished},
		"the backend's reset": {func(s *Stream) { s.Finish(true) }, "\x88\x02\x03\xf3", layer.Finished},
		"the gateway's":       {func(s *Stream) { s.Leave() }, "\x88\x02\x03\xe9", layer.Finished},
		"two":                 {func(s *Stream) { s.Finish(false); s.Leave() }, "\x88\x02\x03\xe8", layer.Finished},
		"a ping before": {func(s *Stream) {
			s.In(frame(final|opPing, "a"))
			s.Finish(false)
			s.In(frame(final|opPing, "b")) // is not answered any more
		}, "\x8a\x01a\x88\x02\x03\xe8", layer.Finished},
	} {
		s := New(testMost)
		tt.do(s)
		if s.Due() != (tt.want != "") || s.Finished() != (tt.cut == layer.Finished) {
			t.Errorf("%s: due %v, finished %v", name, s.Due(), s.Finished())
		}
		if got := string(s.Back(nil)); got != tt.want || s.Cut(false) != tt.cut || s.Due() {
			t.Errorf("%s: %q, %v", name, got, s.Cut(false))
		}
	}
}

func TestASilentClientIsPingedAndGivenUp(t *testing.T) {
	s := New(testMost)
	look := func(waits, writes bool, alive bool, back string) {
		t.Helper()
		if got := s.Look(waits, writes); got != alive {
			t.Errorf("alive: %v", got)
		}
		if got := string(s.Back(nil)); got != back {
			t.Errorf("said %q, want %q", got, back)
		}
	}
	look(true, false, true, "\x89\x00")
	look(true, false, true, "")
	s.In(frame(final|opPong, ""))
	look(true, false, true, "") // heard
	look(true, false, true, "\x89\x00")
	look(false, false, true, "") // nobody reads its pong
	look(true, true, true, "")   // TCP finds out
	look(true, false, true, "\x89\x00")
	look(true, false, true, "")
	look(true, false, false, "")
}

func FuzzIn(f *testing.F) {
	f.Add(frames(frame(opText, "a"), frame(final|opPing, "b"), frame(final, "c")), uint8(3))
	f.Add(frame(final|opClose, closing(1000, "x")), uint8(1))
	f.Add(frame(final|opBinary, strings.Repeat("x", 70000)), uint8(200))
	f.Fuzz(func(t *testing.T, sent []byte, size uint8) {
		want := model(sent, testMost)
		s := New(testMost)
		got := hear(s, sent, func(n int) int { return min(n, int(size)+1) })
		if got.out != want.out || got.state != want.state || !strings.HasSuffix(got.back, want.back) {
			t.Errorf("%q, want %q", got, want)
		}
		moved, err := Restore(s.Append(nil), testMost)
		if got.state == layer.Open && (err != nil || !reflect.DeepEqual(moved.Append(nil), s.Append(nil))) {
			t.Errorf("the state does not move: %v", err)
		}
	})
}

// checked gives s what a client sends in pieces, and returns what may be passed on of it, and
// the code that the client is told.
func checked(s *Stream, sent []byte, size func(left int) int) (good []byte, code uint16) {
	for len(sent) > 0 && code == 0 {
		piece := sent[:size(len(sent))]
		was := string(piece)
		n := 0
		n, code = s.Check(piece)
		if string(piece) != was {
			panic("Check has changed what it was given")
		}
		good, sent = append(good, piece[:n]...), sent[len(piece):]
	}
	return good, code
}

// FuzzCheck: it finds wrong what In finds wrong, and what it passes on is all that is right.
func FuzzCheck(f *testing.F) {
	f.Add(frames(frame(opText, "a"), frame(final|opPing, "b"), frame(final, "c"), frame(opContinuation, "d")), uint8(3))
	f.Add(frame(final|opClose, closing(1000, "x\xff")), uint8(1))
	f.Add(frames(frame(final|opClose, closing(1000, "x")), frame(7, "")), uint8(4))
	f.Add(append([]byte{final | opBinary, mask | 127, 0x80, 0, 0, 0, 0, 0, 0, 0}, 1, 2, 3, 4), uint8(9))
	f.Add(frame(final|opPing, strings.Repeat("x", 126)), uint8(200))
	f.Fuzz(func(t *testing.T, sent []byte, size uint8) {
		want := model(sent, testMost)
		good, code := checked(New(testMost), sent, func(n int) int { return min(n, int(size)+1) })
		if (code != 0) != (want.state == layer.Wrong) || code != 0 && !strings.HasSuffix(want.back, "\x88\x02"+closing(code, "")) {
			t.Fatalf("the code is %d, want %q", code, want)
		}
		if !bytes.HasPrefix(sent, good) || code == 0 && len(good) != len(sent) {
			t.Fatalf("%d bytes of %d are good", len(good), len(sent))
		}
		if got := model(good, testMost); got.state == layer.Wrong && code != 0 && len(good) < len(sent) && int(size) > len(sent) || got.out != want.out {
			t.Errorf("what is good is %q, want %q", got, want)
		}
	})
}

// FuzzRestore must find no state that In could not live with.
func FuzzRestore(f *testing.F) {
	s := New(testMost)
	s.In(frame(opText, "abc")[:8])
	f.Add(s.Append(nil), []byte("more"))
	f.Fuzz(func(t *testing.T, state, sent []byte) {
		if s, err := Restore(state, testMost); err == nil {
			s.In(sent)
			s.Back(nil)
		}
	})
}

// model is In in the words of RFC 6455, for all that a client sends at once. Where a
// frame is not whole, what there is of its payload counts, but for a control frame's.
func model(sent []byte, most uint64) (h heard) {
	inside, message := false, uint64(0)
	for {
		if len(sent) < 2 {
			return h
		}
		fail := func(code uint16) heard {
			h.back += "\x88\x02" + closing(code, "")
			h.state = layer.Wrong
			return h
		}
		fin, op, masked, n := sent[0]&0x80 != 0, sent[0]&0x0f, sent[1]&0x80 != 0, uint64(sent[1]&0x7f)
		control := op >= 8
		if sent[0]&0x70 != 0 || !masked || op > 10 || op > 2 && op < 8 || control && (!fin || n > 125) ||
			!control && (op == 0) != inside {
			return fail(1002)
		}
		rest := sent[2:]
		for _, extended := range []struct{ n, size uint64 }{{126, 2}, {127, 8}} {
			if sent[1]&0x7f != byte(extended.n) {
				continue
			}
			if uint64(len(rest)) < extended.size {
				return h
			}
			n = 0
			for _, c := range rest[:extended.size] {
				n = n<<8 | uint64(c)
			}
			rest = rest[extended.size:]
		}
		if len(rest) < 4 {
			return h
		}
		key := rest[:4]
		rest = rest[4:]
		if n>>63 != 0 {
			return fail(1002)
		}
		if !control {
			if op != 0 {
				message = 0
			}
			if message += n; message > most {
				return fail(1009)
			}
		}
		whole := uint64(len(rest)) >= n
		if !whole {
			n = uint64(len(rest))
		}
		payload := make([]byte, n)
		for i := range payload {
			payload[i] = rest[i] ^ key[i%4]
		}
		if control && !whole {
			return h
		}
		switch op {
		case 8:
			code := uint16(1005)
			if len(payload) > 1 {
				code = binary.BigEndian.Uint16(payload)
			}
			switch {
			case len(payload) == 1, len(payload) > 1 && !mayClose(code):
				return fail(1002)
			case len(payload) > 2 && strings.ToValidUTF8(string(payload[2:]), "") != string(payload[2:]):
				return fail(1007)
			}
			h.back += string([]byte{0x88, byte(len(payload))}) + string(payload)
			h.state = layer.Failed
			if code == 1000 || code == 1001 || code == 1005 || code >= 3000 {
				h.state = layer.Finished
			}
			return h
		case 9:
			h.back = string([]byte{0x8a, byte(len(payload))}) + string(payload)
		case 10:
		default:
			h.out += string(payload)
			inside = !fin
		}
		sent = rest[n:]
	}
}
