package web

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"

	"gateway/internal/address"
	frames "gateway/internal/websocket"
)

// Why the first message of a WebSocket is no sealed address.
var (
	errTooSlow = errors.New("too_slow") // HeaderTimeout passed
	errEOF     = errors.New("eof")      // the client closed the WebSocket, or vanished
)

// MessageMax bounds a message from the client, in bytes. It costs no memory,
// since messages are passed on as they come.
const MessageMax = 16 << 20

// terminate ends a WebSocket here and relays its bytes: the backend is dialed
// first, so that the client still gets an HTTP error if that fails.
func (x *exchange) terminate(w http.ResponseWriter, r *http.Request) {
	switch {
	case x.route.Has("http"):
		x.refuse(w, http.StatusUnauthorized, errNotTCP)
		return
	case !isHandshake(r):
		x.refuseHandshake(w)
		return
	}
	backend, err := x.dial(x.ctx)
	if err != nil {
		status, err := x.judge(err)
		x.refuse(w, status, err)
		return
	}
	if x.changes != nil {
		setHandshakeFields(w.Header(), x.changes.ResponseHeaders)
	}
	ws, err := x.accept(w, r)
	if err != nil {
		backend.Close()
		x.refuse(w, 0, errClientGone)
		return
	}
	gate, ctx := x.gate, x.conn.ctx
	x.rest = func() {
		defer ws.finish()
		gate.Relay(ctx, ws, backend, nil)
	}
}

// setHandshakeFields sets on a 101 what the Gate says of responses: there is no other
// answer to a WebSocket that ends here. What belongs to the handshake is left to it
// (RFC 6455 section 4.2.2): a subprotocol that the client has not offered would make it
// fail the connection.
func setHandshakeFields(h http.Header, fields map[string]*string) {
	for name, value := range fields {
		if value != nil && !strings.HasPrefix(http.CanonicalHeaderKey(name), "Sec-Websocket-") {
			h.Set(name, *value)
		}
	}
}

// awaitAddress accepts a WebSocket whose first message is the sealed address.
func (x *exchange) awaitAddress(w http.ResponseWriter, r *http.Request) {
	if !isHandshake(r) {
		x.refuseHandshake(w)
		return
	}
	ws, err := x.accept(w, r)
	if err != nil {
		x.refuse(w, 0, errClientGone)
		return
	}
	f := &first{Server: x.Server, ctx: x.conn.ctx, began: x.began, ws: ws, request: x.describe(r)}
	x.rest = f.serve
}

func (x *exchange) refuseHandshake(w http.ResponseWriter) {
	w.Header().Set("Sec-WebSocket-Version", "13") // RFC 6455 section 4.4
	x.refuse(w, http.StatusBadRequest, errHandshake)
}

// accept answers 101. All that could be refused has been.
func (x *exchange) accept(w http.ResponseWriter, r *http.Request) (*Conn, error) {
	c := &Conn{interval: x.PingInterval / 2}
	x.conn.setUpgrading(true)
	defer x.conn.setUpgrading(false)
	lib, err := websocket.Accept(&hijacker{w, x, c}, r, &websocket.AcceptOptions{
		InsecureSkipVerify: true, // see originAllowed
		Subprotocols:       firstToken(r.Header["Sec-Websocket-Protocol"]),
		CompressionMode:    websocket.CompressionDisabled,
		OnPingReceived:     c.onPing,
		OnPongReceived:     c.onPong,
	})
	if err != nil {
		if c.wire != nil {
			c.wire.Conn.Close()
		}
		return nil, err
	}
	lib.SetReadLimit(MessageMax)
	c.lib = lib
	c.startPings()
	return c, nil
}

// firstToken returns the first of the subprotocols that the client offers, if
// any. Bytes are bytes by any name, and browsers give up a WebSocket that
// chooses none of theirs. What is no token is none, and must not be returned.
func firstToken(values []string) []string {
	for _, v := range values {
		for token := range strings.SplitSeq(v, ",") {
			if token = strings.Trim(token, " \t"); isToken(token) {
				return []string{token}
			}
		}
	}
	return nil
}

// A WebSocket holds two buffers as long as it lasts. An ordinary message fits
// in, and larger ones pass by. Until a client has proven something, there is
// room for a control frame.
const (
	wsBufferSize   = 1 << 10
	wsUnprovenSize = 2 + controlMax
)

// hijacker hands the library a connection that the Conn has its hand on.
type hijacker struct {
	http.ResponseWriter
	x *exchange
	c *Conn
}

func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	// Below the exchange's own Hijack, which is for the proxy.
	// net/http has read nothing ahead (intake.go).
	nc, _, err := http.NewResponseController(h.ResponseWriter.(*response).ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	h.x.hijacked = true
	w := &wire{Conn: nc, rules: frames.New(MessageMax)}
	h.c.wire = w
	size := wsUnprovenSize
	if h.x.conn.proven {
		size = wsBufferSize
	}
	h.c.br, h.c.bw = bufio.NewReaderSize(w, size), bufio.NewWriterSize(w, size)
	h.x.conn.adopt(h.c)
	return w, bufio.NewReadWriter(h.c.br, h.c.bw), nil
}

// first is a WebSocket whose first message is the sealed address.
type first struct {
	*Server
	ctx   context.Context
	began time.Time
	ws    *Conn
	route address.Route

	request *Request // by which it came
}

// serve reads the line, and leaves the rest to another function: the stack on
// which unproven clients wait is as small as it can be.
func (f *first) serve() {
	defer f.ws.finish()
	if f.HeaderTimeout > 0 {
		f.ws.SetReadDeadline(f.began.Add(f.HeaderTimeout))
	}
	var marked []byte
	most := f.LineMax
	marker, ok := f.gate.(Marker)
	if ok {
		var mark string
		mark, most = marker.Marked(f.ctx)
		marked = []byte(mark)
	}
	line, early, err := f.ws.readLine(f.LineMax, marked, most)
	if err == nil && ok && bytes.HasPrefix(line, marked) {
		f.answerMarked(marker, line, early)
		return
	}
	f.answer(line, early, err)
}

// answerMarked is answer for what the gate knows better.
func (f *first) answerMarked(marker Marker, line, early []byte) {
	f.ws.SetReadDeadline(time.Time{})
	err := marker.ServeMarked(f.ctx, f.ws, line, early, f.request, func(route address.Route) (net.Conn, error) {
		f.route = route
		f.ws.grow()
		return f.dial()
	})
	switch err {
	case nil:
	case errClientGone:
		f.refuse(0, err)
	default:
		f.refuse(f.gate.Status(err), err)
	}
}

// answer opens, dials, answers and relays.
func (f *first) answer(line, early []byte, err error) {
	switch err {
	case nil:
	case errEOF:
		f.refuse(0, err)
		return
	default:
		f.refuse(http.StatusBadRequest, err)
		return
	}
	f.ws.SetReadDeadline(time.Time{})
	route, _, err := f.gate.Open(f.ctx, line, f.request)
	if err != nil {
		f.refuse(f.gate.Status(err), err)
		return
	}
	f.route = route
	f.ws.grow()
	if route.Has("http") {
		f.refuse(http.StatusUnauthorized, errNotTCP)
		return
	}
	backend, err := f.dial()
	switch err {
	case nil:
	case errClientGone:
		f.refuse(0, err)
		return
	default:
		f.refuse(f.gate.Status(err), err)
		return
	}
	if _, err := f.ws.Write([]byte("200")); err != nil {
		backend.Close()
		f.refuse(0, errClientGone)
		return
	}
	f.gate.Relay(f.ctx, f.ws, backend, early)
}

// dial connects the backend, for as long as the client waits for it; then the
// error is errClientGone.
func (f *first) dial() (net.Conn, error) {
	ctx, cancel := context.WithCancelCause(f.ctx)
	defer cancel(nil)
	stop := f.ws.onVanish(func() { cancel(errClientGone) })
	defer stop()
	backend, err := f.gate.Dial(ctx, f.route)
	if err != nil && context.Cause(ctx) == errClientGone {
		err = errClientGone
	}
	return backend, err
}

// refuse answers with a status as a message of its own and closes with 1000:
// the status has said what there is to say. A status of 0 only closes.
func (f *first) refuse(status int, err error) {
	if status != 0 {
		text := strconv.Itoa(status)
		if _, werr := f.ws.Write([]byte(text)); werr != nil {
			status = 0
		}
		f.ws.CloseWrite()
	}
	f.gate.Served(f.ctx, Exchange{
		Kind:     "websocket",
		Method:   http.MethodGet,
		Route:    f.route,
		Status:   status,
		Duration: time.Since(f.began),
		Err:      err,
	})
}

// readLine reads the sealed line that a WebSocket begins with: the first
// message, or what stands before its newline. It returns the line without its
// end, "\n" or "\r\n", and what has been read behind it. The rest of the
// message is read by Read. A line has at most limit bytes, or most if it begins with
// mark.
func (c *Conn) readLine(limit int, mark []byte, most int) (line, early []byte, err error) {
	limit += len("\r\n")
	buf := make([]byte, 0, min(limit, 256))
	for {
		if len(buf) == cap(buf) {
			buf = append(make([]byte, 0, min(limit, 2*cap(buf))), buf...)
		}
		n, err := c.readMessage(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if bytes.HasPrefix(buf, mark) {
			limit = max(limit, most+len("\r\n"))
		}
		if end := bytes.IndexByte(buf, '\n'); end >= 0 {
			line, early = buf[:end], buf[end+1:]
			break
		}
		if err == errMessageEnd {
			line = buf
			break
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, nil, errTooSlow
		case err != nil:
			return nil, nil, errEOF
		case len(buf) == limit:
			return nil, nil, errTooLong
		}
	}
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) > limit-len("\r\n") {
		return nil, nil, errTooLong
	}
	return line, early, nil
}

// isWebSocket tells whether a request asks for the upgrade to a WebSocket.
func isWebSocket(h http.Header) bool {
	return hasToken(h["Connection"], "upgrade") && hasToken(h["Upgrade"], "websocket")
}

// isHandshake tells whether that request is one of RFC 6455 section 4.2.1.
func isHandshake(r *http.Request) bool {
	keys := r.Header["Sec-Websocket-Key"]
	if len(keys) != 1 {
		return false
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(keys[0]))
	return err == nil && len(key) == 16 &&
		r.Method == http.MethodGet && r.ProtoAtLeast(1, 1) &&
		r.Header.Get("Sec-WebSocket-Version") == "13"
}

// originAllowed tells whether the page that asks for a WebSocket may have one.
// The library would ask the same, but only once the backend has been dialed.
func originAllowed(r *http.Request, patterns []string) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	u, err := url.Parse(origin)
	if err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host) {
		return true
	}
	for _, pattern := range patterns {
		if pattern == "*" {
			return true
		}
		if err != nil {
			continue
		}
		target := u.Host
		if strings.Contains(pattern, "://") {
			target = u.Scheme + "://" + u.Host
		}
		if ok, err := path.Match(strings.ToLower(pattern), strings.ToLower(target)); ok && err == nil {
			return true
		}
	}
	return false
}

// hasToken tells whether a header's comma-separated list has a token, which is
// given in lower case.
func hasToken(values []string, token string) bool {
	for _, v := range values {
		for t := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}

func isUnprintable(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}
