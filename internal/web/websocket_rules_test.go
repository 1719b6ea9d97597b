package web

import (
	"io"
	"strings"
	"testing"
	"time"
)

// What a WebSocket is answered where its client breaks the rules, or bends them.

func TestACloseFrameIsAnsweredByTheRules(t *testing.T) {
	f := start(t, testOptions, sealed(tcpBackend(t, echo)))
	const close1007 = "\x03\xef"
	for name, tt := range map[string]struct {
		payload, answer string
		want            error
	}{
		"a reason that is no UTF-8":   {close1000 + "\xff", close1007, errProtocol},
		"cut within a character":      {close1000 + "\xc3", close1007, errProtocol},
		"a surrogate":                 {close1001 + "\xed\xa0\x80", close1007, errProtocol},
		"overlong":                    {"\x0b\xb8\xc0\x80", close1007, errProtocol},
		"a failure's":                 {close1011 + "a\xff", close1007, errProtocol},
		"the longest reason":          {close1000 + strings.Repeat("é", 61), close1000 + strings.Repeat("é", 61), nil},
		"half a code":                 {"\x03", close1002, errProtocol},
		"an invalid code and no text": {"\x00\x00\xff", close1002, errProtocol},
	} {
		_, br := f.rawWS(t, "/?x-cipher-origin=plain", frame(0x88, tt.payload))
		b, err := io.ReadAll(dropData(br))
		if got := string(b); err != nil || got != tt.answer {
			t.Errorf("%s: answered %q, %v; want %q", name, b, err, tt.answer)
		}
		if err := receive(t, f.relayed); err != tt.want {
			t.Errorf("%s: ended by %v, want %v", name, err, tt.want)
		}
	}
	for _, code := range []int{0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535} {
		_, br := f.rawWS(t, "/?x-cipher-origin=plain", frame(0x88, string([]byte{byte(code >> 8), byte(code)})))
		if b, err := io.ReadAll(dropData(br)); err != nil || string(b) != close1002 {
			t.Errorf("%d: answered %q, %v; want 1002", code, b, err)
		}
		if err := receive(t, f.relayed); err != errProtocol {
			t.Errorf("%d: ended by %v", code, err)
		}
	}
	for _, code := range []int{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999} {
		payload := string([]byte{byte(code >> 8), byte(code)})
		_, br := f.rawWS(t, "/?x-cipher-origin=plain", frame(0x88, payload))
		if b, err := io.ReadAll(dropData(br)); err != nil || string(b) != payload {
			t.Errorf("%d: answered %q, %v", code, b, err)
		}
		receive(t, f.relayed)
	}
}

// TestARuleThatIsBrokenDuringADialIsToldBehindIt: who breaks one has not left.
func TestARuleThatIsBrokenDuringADialIsToldBehindIt(t *testing.T) {
	for name, sent := range map[string]string{"at once": "\x82\x01x", "behind a good frame": frame(0x82, "y") + "\x82\x01x"} {
		f := start(t, testOptions, sealed(tcpBackend(t, echo)))
		f.hold = make(chan struct{})
		c, br := f.rawWS(t, "/", frame(0x82, "plain"))
		io.WriteString(c, sent)
		time.AfterFunc(50*time.Millisecond, func() { close(f.hold) }) // for the frame to be read by then
		b, err := io.ReadAll(br)
		if got := string(b); err != nil || !strings.HasPrefix(got, "\x82\x03200") || !strings.HasSuffix(got, "\x88\x02"+close1002) {
			t.Errorf("%s: read %q, %v", name, b, err)
		}
		if err := receive(t, f.relayed); err != errProtocol {
			t.Errorf("%s: ended by %v", name, err)
		}
	}
}

func TestASubprotocolThatIsNoTokenIsNotReturned(t *testing.T) {
	f := start(t, testOptions, sealed(tcpBackend(t, echo)))
	for offer, want := range map[string]string{
		"chat":            "chat",
		"a b":             "",
		"a b, chat":       "chat",
		"a;q=1,chat":      "chat",
		"(x)":             "",
		"\"chat\"":        "",
		"caf\xe9":         "",
		"a/b, v2.x":       "v2.x",
		", ,x!#$%&'*+-.^": "x!#$%&'*+-.^",
	} {
		resp := f.rawGet(t, handshake("/?x-cipher-origin=plain", "Sec-WebSocket-Protocol", offer))
		if got := resp.Header.Get("Sec-WebSocket-Protocol"); resp.StatusCode != 101 || got != want {
			t.Errorf("%q: %s with %q, want %q", offer, resp.Status, got, want)
		}
	}
}

// Until a WebSocket has proven something, its buffers are small.
func TestWhatComesBehindAnAddressIsWhole(t *testing.T) {
	f := start(t, testOptions, sealed(tcpBackend(t, echo)))
	big := strings.Repeat("0123456789", 500)
	for _, frames := range []string{
		frame(0x82, "plain\n"+big),
		frame(0x82, "plain") + frame(0x82, big),
		frame(0x02, "pla") + frame(0x00, "in\n") + frame(0x80, big),
		frame(0x02, "pla") + frame(0x89, "ping") + frame(0x80, "in") + frame(0x01, big[:1]) + frame(0x80, big[1:]),
	} {
		c, br := f.rawWS(t, "/", frames)
		got := ""
		for len(got) < len("200"+big) {
			head := make([]byte, 2)
			if _, err := io.ReadFull(br, head); err != nil {
				t.Fatal(err)
			}
			size := int(head[1])
			if size == 126 {
				io.ReadFull(br, head[:2])
				size = int(head[0])<<8 | int(head[1])
				head[0] = 0x82
			}
			p := make([]byte, size)
			io.ReadFull(br, p)
			if head[0] == 0x82 {
				got += string(p)
			}
		}
		if got != "200"+big {
			t.Errorf("%.20q: %d bytes, %.20q", frames, len(got), got)
		}
		c.Close()
	}
}
