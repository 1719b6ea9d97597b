package harness

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
)

// Form is one of the forms in which clients ask, byte for byte: what such a client
// sends and reads.
type Form struct {
	Name     string
	Via      string // in the log
	Scheme   string // in front of the address, where the form needs one
	HTTP     bool   // its backends speak HTTP
	Ask      func(line string) string
	Wrong    string                     // a request that gets 400
	Half     string                     // the beginning of a request, if there is an answer to its missing rest
	Welcome  string                     // comes instead of 200
	Refusal  func(status string) string // comes instead of any other status
	Say      string                     // hello, which may stand right behind the request
	Hear     string                     // what the backend's hello looks like
	Bye      string                     // tells that nothing more comes; empty: half-close
	Farewell string                     // comes at the end
}

// Forms returns all forms. Their backends answer hello with hello.
func Forms() []Form {
	const sized = "POST / HTTP/1.1\r\nHost: game.test\r\nConnection: close\r\nContent-Length: 5\r\n"
	same := func(status string) string { return status }
	return []Form{
		{
			Name: "line", Ask: func(line string) string { return line + "\n" },
			Wrong: strings.Repeat("A", 1025), Half: "U2Fsd",
			Welcome: "200", Refusal: same, Say: "hello", Hear: "hello",
		}, {
			Name: "binary", Via: "binary", Ask: InBinary,
			Wrong: "\x00\x00S", Half: "\x00\x20Salted__",
			Welcome: "200", Refusal: same, Say: "hello", Hear: "hello",
		}, {
			Name: "prefixed", Via: "prefixed", Ask: Prefixed,
			Wrong: "\xff\xff\x00\x00", Half: "\x2c\x00\x00\x00U2Fsd",
			Welcome: Prefixed("200"), Refusal: Prefixed, Say: "hello", Hear: "hello",
		}, {
			Name: "HTTP header", Via: "http", HTTP: true,
			Ask:     func(line string) string { return sized + "X-Cipher-Origin: " + line + "\r\n\r\n" },
			Wrong:   sized + "\r\n",
			Welcome: httpWelcome, Refusal: httpRefusal, Say: "hello", Hear: "hello",
		}, {
			Name: "HTTP query", Via: "http", HTTP: true,
			Ask: func(line string) string {
				return strings.Replace(sized, "/", "/?a=1&x-cipher-origin="+url.QueryEscape(line), 1) + "\r\n"
			},
			Wrong:   strings.Replace(sized, "/", "/?x-cipher-origin=", 1) + "\r\n",
			Welcome: httpWelcome, Refusal: httpRefusal, Say: "hello", Hear: "hello",
		},
		overWebSocket("WebSocket query", "", func(line string) string {
			return Upgrade("/?x-cipher-origin=" + url.QueryEscape(line))
		}),
		overWebSocket("WebSocket Server-Identify", "", func(line string) string {
			return Upgrade("/", "Server-Identify: "+line)
		}),
		overWebSocket("WebSocket tcp:// header", "tcp://", func(line string) string {
			return Upgrade("/", "X-Cipher-Origin: "+line)
		}),
		{
			Name: "WebSocket message", Via: "websocket",
			Ask:     func(line string) string { return Upgrade("/") + Masked(BinaryFrame, line) },
			Wrong:   Upgrade("/") + Masked(TextFrame, strings.Repeat("A", 1025)),
			Half:    Upgrade("/") + Masked(TextFrame, "U2Fsd")[:8],
			Welcome: switching + Frame(BinaryFrame, "200"),
			Refusal: func(status string) string {
				return switching + Frame(BinaryFrame, status) + Frame(CloseFrame, "\x03\xe8")
			},
			Say: Masked(TextFrame, "hello"), Hear: Frame(BinaryFrame, "hello"),
			Bye: Masked(CloseFrame, "\x03\xe8"), Farewell: Frame(CloseFrame, "\x03\xe8"),
		},
	}
}

func overWebSocket(name, scheme string, ask func(line string) string) Form {
	return Form{
		Name: name, Via: "websocket", Scheme: scheme, Ask: ask,
		Wrong:   Upgrade("/", "X-Cipher-Origin:"),
		Welcome: switching, Refusal: httpRefusal,
		Say: Masked(BinaryFrame, "hello"), Hear: Frame(BinaryFrame, "hello"),
		Bye: Masked(CloseFrame, "\x03\xe8"), Farewell: Frame(CloseFrame, "\x03\xe8"),
	}
}

// Prefixed puts the length of a text in front of it, in four bytes.
func Prefixed(text string) string {
	return string(binary.LittleEndian.AppendUint32(nil, uint32(len(text)))) + text
}

// InBinary returns the request for a sealed line in the binary form.
func InBinary(line string) string {
	raw, err := base64.StdEncoding.DecodeString(line)
	if err != nil {
		panic(err)
	}
	return "\x00" + string(byte(len(raw))) + string(raw)
}

// ADate stands for all dates in what is compared.
const ADate = "Date: Thu, 01 Jan 1970 00:00:00 GMT"

const (
	httpWelcome = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n" + ADate + "\r\nX-Backend: game\r\nConnection: close\r\n\r\n"
	// Agreed begins the answer to Upgrade: RFC 6455 section 1.3 has its key.
	Agreed = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n" +
		"Sec-Websocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nUpgrade: websocket\r\n"
	switching = Agreed + ADate + "\r\n\r\n"
)

func httpRefusal(status string) string {
	var code int
	fmt.Sscan(status, &code)
	reason := status + " " + http.StatusText(code)
	return "HTTP/1.1 " + reason + "\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n" + ADate +
		fmt.Sprintf("\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s\n", len(reason)+1, reason)
}

// Upgrade returns a request for a WebSocket, whose failure ends the connection.
func Upgrade(path string, headers ...string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: game.test\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" +
		strings.Join(append(headers, ""), "\r\n") + "\r\n"
}

// The first byte of a WebSocket's frame (RFC 6455 section 5.2).
const (
	TextFrame   = 0x81
	BinaryFrame = 0x82
	CloseFrame  = 0x88
	PingFrame   = 0x89
	PongFrame   = 0x8a
)

// Frame returns a frame as a server sends it.
func Frame(first byte, payload string) string { return FrameHead(first, len(payload), 0) + payload }

// Masked returns a frame as a client sends it.
func Masked(first byte, payload string) string {
	mask := [4]byte{1, 20, 3, 0xf0}
	b := []byte(payload)
	for i := range b {
		b[i] ^= mask[i%4]
	}
	return FrameHead(first, len(payload), 0x80) + string(mask[:]) + string(b)
}

// FrameHead returns what stands in front of a payload of a size; mask is 0x80 if
// the four bytes of a mask follow.
func FrameHead(first byte, size int, mask byte) string {
	switch {
	case size < 126:
		return string([]byte{first, mask | byte(size)})
	case size < 1<<16:
		return string(binary.BigEndian.AppendUint16([]byte{first, mask | 126}, uint16(size)))
	}
	return string(binary.BigEndian.AppendUint64([]byte{first, mask | 127}, uint64(size)))
}

// Text returns the request for a backend, sealed with Secret.
func (v Form) Text(backend string) string { return v.Ask(Sealed(v.Scheme + backend)) }

// HalfClose tells that nothing more comes.
func HalfClose(t testing.TB, c net.Conn) {
	t.Helper()
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

// ExpectHello reads what comes to a client whose backend answers hello with hello. A
// tunnel has no messages: what is sent at once may come to a WebSocket in several.
func (v Form) ExpectHello(t testing.TB, c net.Conn) {
	t.Helper()
	if !v.IsWebSocket() {
		ExpectAnswer(t, c, v.Welcome+v.Hear)
		return
	}
	ExpectAnswer(t, c, v.Welcome)
	for said := ""; said != "hello"; {
		head := make([]byte, 2)
		if _, err := io.ReadFull(c, head); err != nil {
			t.Fatalf("%v after %q; want hello", err, said)
		}
		rest := "hello"[len(said):]
		if n := int(head[1]); head[0] != BinaryFrame || n == 0 || n > len(rest) {
			t.Fatalf("a frame begins with %x after %q; want a binary one with %q or a part of it", head, said, rest)
		}
		part := rest[:head[1]]
		Expect(t, c, part)
		said += part
	}
}

// Leave ends what has become a tunnel, and sees that the gateway does too.
func (v Form) Leave(t testing.TB, c net.Conn) {
	t.Helper()
	switch {
	case v.HTTP:
	case v.Bye != "":
		Send(t, c, v.Bye)
	default:
		HalfClose(t, c)
	}
	ExpectAnswer(t, c, v.Farewell)
	ExpectEnd(t, c)
}

// AnyDate matches what ADate stands for.
var AnyDate = regexp.MustCompile(`Date: [A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT`)

// ExpectAnswer is Expect, but for dates.
func ExpectAnswer(t testing.TB, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(c, got)
	got = AnyDate.ReplaceAll(got[:n], []byte(ADate))
	if string(got) != want {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}

// ExpectEnd reads the end of the stream: FIN, or close_notify inside TLS.
func ExpectEnd(t testing.TB, c net.Conn) {
	t.Helper()
	if got, err := io.ReadAll(c); len(got) > 0 || err != nil {
		t.Fatalf("read %.200q, %v; want the end", got, err)
	}
}

// IsStream tells what has a half-close, as TCP has.
func (v Form) IsStream() bool { return !v.HTTP && !v.IsWebSocket() }

// IsWebSocket tells what ends at the gateway as a WebSocket.
func (v Form) IsWebSocket() bool { return v.Bye != "" }
