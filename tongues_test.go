package main

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"gateway/internal/layer"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// The forms in which clients ask, byte for byte.

// A tongue is one of them: what its client sends and reads.
type tongue struct {
	name     string
	via      string // in the log
	scheme   string // in front of the address, where the form needs one
	http     bool   // its backends speak HTTP
	ask      func(line string) string
	wrong    string                     // a request that gets 400
	half     string                     // the beginning of a request, if there is an answer to its missing rest
	welcome  string                     // comes instead of 200
	refusal  func(status string) string // comes instead of any other status
	say      string                     // hello, which may stand right behind the request
	hear     string                     // what the backend's hello looks like
	bye      string                     // tells that nothing more comes; empty: half-close
	farewell string                     // comes at the end
}

// tongues returns all of them. Their backends answer hello with hello.
func tongues() []tongue {
	const sized = "POST / HTTP/1.1\r\nHost: game.test\r\nConnection: close\r\nContent-Length: 5\r\n"
	same := func(status string) string { return status }
	return []tongue{
		{
			name: "line", ask: func(line string) string { return line + "\n" },
			wrong: strings.Repeat("A", 1025), half: "U2Fsd",
			welcome: "200", refusal: same, say: "hello", hear: "hello",
		}, {
			name: "binary", via: "binary", ask: inBinary,
			wrong: "\x00\x00S", half: "\x00\x20Salted__",
			welcome: "200", refusal: same, say: "hello", hear: "hello",
		}, {
			name: "prefixed", via: "prefixed", ask: prefixed,
			wrong: "\x00\x00\x00\x00", half: "\x2c\x00\x00\x00U2Fsd",
			welcome: prefixed("200"), refusal: prefixed, say: "hello", hear: "hello",
		}, {
			name: "HTTP header", via: "http", http: true,
			ask:     func(line string) string { return sized + "X-Cipher-Origin: " + line + "\r\n\r\n" },
			wrong:   sized + "\r\n",
			welcome: httpWelcome, refusal: httpRefusal, say: "hello", hear: "hello",
		}, {
			name: "HTTP query", via: "http", http: true,
			ask: func(line string) string {
				return strings.Replace(sized, "/", "/?a=1&x-cipher-origin="+url.QueryEscape(line), 1) + "\r\n"
			},
			wrong:   strings.Replace(sized, "/", "/?x-cipher-origin=", 1) + "\r\n",
			welcome: httpWelcome, refusal: httpRefusal, say: "hello", hear: "hello",
		},
		overWebSocket("WebSocket query", "", func(line string) string {
			return upgrade("/?x-cipher-origin=" + url.QueryEscape(line))
		}),
		overWebSocket("WebSocket Server-Identify", "", func(line string) string {
			return upgrade("/", "Server-Identify: "+line)
		}),
		overWebSocket("WebSocket tcp:// header", "tcp://", func(line string) string {
			return upgrade("/", "X-Cipher-Origin: "+line)
		}),
		{
			name: "WebSocket message", via: "websocket",
			ask:     func(line string) string { return upgrade("/") + masked(binaryFrame, line) },
			wrong:   upgrade("/") + masked(textFrame, strings.Repeat("A", 1025)),
			half:    upgrade("/") + masked(textFrame, "U2Fsd")[:8],
			welcome: switching + frame(binaryFrame, "200"),
			refusal: func(status string) string {
				return switching + frame(binaryFrame, status) + frame(closeFrame, "\x03\xe8")
			},
			say: masked(textFrame, "hello"), hear: frame(binaryFrame, "hello"),
			bye: masked(closeFrame, "\x03\xe8"), farewell: frame(closeFrame, "\x03\xe8"),
		},
	}
}

func overWebSocket(name, scheme string, ask func(line string) string) tongue {
	return tongue{
		name: name, via: "websocket", scheme: scheme, ask: ask,
		wrong:   upgrade("/", "X-Cipher-Origin:"),
		welcome: switching, refusal: httpRefusal,
		say: masked(binaryFrame, "hello"), hear: frame(binaryFrame, "hello"),
		bye: masked(closeFrame, "\x03\xe8"), farewell: frame(closeFrame, "\x03\xe8"),
	}
}

func prefixed(text string) string {
	return string(binary.LittleEndian.AppendUint32(nil, uint32(len(text)))) + text
}

func inBinary(line string) string {
	raw, err := base64.StdEncoding.DecodeString(line)
	if err != nil {
		panic(err)
	}
	return "\x00" + string(byte(len(raw))) + string(raw)
}

// The dates in what is compared are all this one.
const aDate = "Date: Thu, 01 Jan 1970 00:00:00 GMT"

const (
	httpWelcome = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n" + aDate + "\r\nX-Backend: game\r\nConnection: close\r\n\r\n"
	// RFC 6455 section 1.3 has this key and its answer.
	agreed = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n" +
		"Sec-Websocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nUpgrade: websocket\r\n"
	switching = agreed + aDate + "\r\n\r\n"
)

func httpRefusal(status string) string {
	var code int
	fmt.Sscan(status, &code)
	reason := status + " " + http.StatusText(code)
	return "HTTP/1.1 " + reason + "\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n" + aDate +
		fmt.Sprintf("\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s\n", len(reason)+1, reason)
}

// upgrade returns a request for a WebSocket, whose failure ends the connection.
func upgrade(path string, headers ...string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: game.test\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" +
		strings.Join(append(headers, ""), "\r\n") + "\r\n"
}

// The first byte of a WebSocket's frame (RFC 6455 section 5.2).
const (
	textFrame   = 0x81
	binaryFrame = 0x82
	closeFrame  = 0x88
	pingFrame   = 0x89
	pongFrame   = 0x8a
)

// frame returns a frame as a server sends it.
func frame(first byte, payload string) string { return frameHead(first, len(payload), 0) + payload }

// masked returns a frame as a client sends it.
func masked(first byte, payload string) string {
	mask := [4]byte{1, 20, 3, 0xf0}
	b := []byte(payload)
	for i := range b {
		b[i] ^= mask[i%4]
	}
	return frameHead(first, len(payload), 0x80) + string(mask[:]) + string(b)
}

func frameHead(first byte, size int, mask byte) string {
	switch {
	case size < 126:
		return string([]byte{first, mask | byte(size)})
	case size < 1<<16:
		return string(binary.BigEndian.AppendUint16([]byte{first, mask | 126}, uint16(size)))
	}
	return string(binary.BigEndian.AppendUint64([]byte{first, mask | 127}, uint64(size)))
}

// backends are what the tongues' addresses lead to.
type backends struct{ echo, http, refusing string }

func startBackends(t testing.TB) backends {
	return backends{startEcho(t), startHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header()["Content-Type"] = nil
		w.Header().Set("X-Backend", "game")
		w.Write(body)
	}), closedPort(t)}
}

// of returns the backend for a tongue.
func (b backends) of(v tongue) string {
	if v.http {
		return b.http
	}
	return b.echo
}

// startHTTP starts a backend that speaks HTTP.
func startHTTP(t testing.TB, handle http.HandlerFunc) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: handle}
	served := make(chan struct{})
	go func() {
		s.Serve(ln)
		close(served)
	}()
	t.Cleanup(func() {
		s.Close()
		<-served
	})
	return ln.Addr().String()
}

// text returns the request for a backend, sealed with testSecret.
func (v *tongue) text(t testing.TB, backend string) string {
	t.Helper()
	return v.ask(strings.TrimSuffix(sealed(t, v.scheme+backend), "\n"))
}

// connectWith is connect, inside TLS if there is a configuration for it.
func connectWith(t testing.TB, addr string, config *tls.Config) net.Conn {
	t.Helper()
	c := connect(t, addr)
	if config == nil {
		return c
	}
	return tlsHandshake(t, c, config)
}

// halfClose tells that nothing more comes.
func halfClose(t testing.TB, c net.Conn) {
	t.Helper()
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

// leave ends what has become a tunnel, and sees that the gateway does too.
func (v *tongue) leave(t testing.TB, c net.Conn) {
	t.Helper()
	switch {
	case v.http:
	case v.bye != "":
		send(t, c, v.bye)
	default:
		halfClose(t, c)
	}
	expectAnswer(t, c, v.farewell)
	expectEnd(t, c)
}

var anyDate = regexp.MustCompile(`Date: [A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT`)

// expectAnswer is expect, but for dates.
func expectAnswer(t testing.TB, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(c, got)
	got = anyDate.ReplaceAll(got[:n], []byte(aDate))
	if string(got) != want {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}

// expectEnd reads the end of the stream: FIN, or close_notify inside TLS.
func expectEnd(t testing.TB, c net.Conn) {
	t.Helper()
	if got, err := io.ReadAll(c); len(got) > 0 || err != nil {
		t.Fatalf("read %.200q, %v; want the end", got, err)
	}
}

// dribble sends a text a byte at a time.
func dribble(t testing.TB, c net.Conn, text string) {
	t.Helper()
	for i := range len(text) {
		send(t, c, text[i:i+1])
		if i < 10 && runtime.GOOS == "linux" { // what tells the forms apart
			delivered(t, layer.Socket(c).(*net.TCPConn))
		}
	}
}

// deliveries are how a request's bytes may come.
var deliveries = map[string]func(testing.TB, net.Conn, string){"in one segment": send, "a byte at a time": dribble}

// isStream tells what has a half-close, as TCP has.
func (v tongue) isStream() bool { return !v.http && !v.isWebSocket() }

func (v tongue) isWebSocket() bool { return v.bye != "" }

// inEachTongue runs a test for each tongue, outside of TLS and inside.
func inEachTongue(t *testing.T, trusting *tls.Config, test func(t *testing.T, v tongue, config *tls.Config)) {
	inTongues(t, trusting, func(tongue) bool { return true }, test)
}

func inTongues(t *testing.T, trusting *tls.Config, wanted func(tongue) bool, test func(t *testing.T, v tongue, config *tls.Config)) {
	for _, v := range tongues() {
		if !wanted(v) {
			continue
		}
		for suffix, config := range map[string]*tls.Config{"": nil, " inside TLS": trusting} {
			t.Run(v.name+suffix, func(t *testing.T) {
				t.Parallel()
				test(t, v, config)
			})
		}
	}
}

// wantNoErrors sees at the end of a test that a gateway has logged no error.
func wantNoErrors(t testing.TB, p *process) {
	t.Cleanup(func() {
		if strings.Contains(p.log.String(), `"level":"ERROR"`) {
			t.Error("there are errors in the log")
		}
	})
}
