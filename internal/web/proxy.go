package web

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxIdleBackends bounds the connections to backends that wait for another
	// request, of all addresses, and of one.
	maxIdleBackends   = 1024
	maxIdlePerBackend = 64

	// maxResponseHead bounds the headers of a response, in bytes.
	maxResponseHead = 256 << 10
)

// newProxy returns the proxy for all requests. Where one goes is in its
// context (exchange).
func newProxy(errorLog *log.Logger, o *Options) *httputil.ReverseProxy {
	transport := &http.Transport{
		Proxy: nil, // the environment has no say here
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			backend, err := exchangeOf(ctx).dial(ctx)
			if err != nil {
				return nil, err
			}
			return newBackendConn(backend), nil
		},
		DisableCompression:  true, // nothing is added, nothing altered
		DisableKeepAlives:   !o.ShareBackends || o.BackendIdleTimeout < 0,
		MaxIdleConns:        maxIdleBackends,
		MaxIdleConnsPerHost: maxIdlePerBackend,
		IdleConnTimeout:     cmp.Or(o.BackendIdleTimeout, defaultBackendIdle),
		// A body is sent as it comes: a client that waits for 100 sends none
		// before the backend has asked for it.
		ExpectContinueTimeout:  0,
		MaxResponseHeaderBytes: maxResponseHead,
		Protocols:              new(http.Protocols),
	}
	transport.Protocols.SetHTTP1(true)
	unshared := transport.Clone()
	unshared.DisableKeepAlives = true
	return &httputil.ReverseProxy{
		Rewrite:       rewrite,
		Transport:     &transports{shared: transport, unshared: unshared},
		FlushInterval: -1, // at once
		ErrorLog:      errorLog,
		BufferPool:    bufferPool{},
		ModifyResponse: func(resp *http.Response) error {
			x := exchangeOf(resp.Request.Context())
			x.changeResponse(resp)
			if resp.StatusCode != http.StatusSwitchingProtocols {
				return nil
			}
			return x.switchOver(resp)
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			x := exchangeOf(r.Context())
			if err == errSwitched {
				return
			}
			status, err := x.judge(err)
			x.refuse(w, status, err)
		},
	}
}

// unshared numbers the requests that share no connection.
var unshared atomic.Int64

// upstream returns the name under which a transport knows connections to the
// backend.
func (x *exchange) upstream() string {
	if addr, ok := x.route.Single(); ok {
		return addr.HostPort()
	}
	return "unshared-" + strconv.FormatInt(unshared.Add(1), 10)
}

// rewrite makes the backend's request of the client's. The hop-by-hop headers
// are gone already, and so are those that the client has named in Connection:
// what is set here cannot be taken away.
func rewrite(pr *httputil.ProxyRequest) {
	in, out := pr.In, pr.Out
	query, _ := cutParam(in.URL.RawQuery, originParam)
	// Nothing but path and query are the client's to say: it may have sent an
	// absolute URL.
	x := exchangeOf(in.Context())
	host := x.upstream()
	if _, ok := x.route.Single(); !ok && out.Host == "" { // HTTP/1.0
		out.Host = x.conn.LocalAddr().String() // which host is not decided yet
	}
	out.URL = &url.URL{
		Scheme:     "http",
		Host:       host,
		Path:       in.URL.Path,
		RawPath:    escapeRest(in.URL.RawPath),
		RawQuery:   query,
		ForceQuery: in.URL.ForceQuery,
	}
	stripSealed(out.Header)
	stripOwn(out.Header)
	if b, ok := in.Body.(*body); ok {
		b.trailer = trailersOf(in)
		out.Trailer = b.trailer // filled in when the body has been read
	}

	out.Header["X-Forwarded-For"] = in.Header["X-Forwarded-For"]
	pr.SetXForwarded() // the client's real address comes last

	if x.expects && in.ContentLength != 0 {
		out.Header.Set("Expect", "100-continue") // see head.addField
	}
	// Of what a client offers to go over to (RFC 9110 section 7.8), nothing but
	// WebSocket is passed on: within HTTP/2 it could send what headers it likes.
	// HTTP/1.0 has no such offers.
	out.Header.Del("Connection")
	out.Header.Del("Upgrade")
	out.Header.Del("HTTP2-Settings")
	if x.kind == "upgrade" && !x.isOld {
		out.Header.Set("Connection", "Upgrade")
		out.Header.Set("Upgrade", "websocket")
	}
	x.change(out)
}

// trailersOf returns the names of a request's trailers without those that must
// not reach the backend as headers either: some take one for the other.
func trailersOf(in *http.Request) http.Header {
	names := make(http.Header)
	for name := range in.Trailer {
		if !isOwn(name) && name != "X-Forwarded-For" && !hopByHop[name] {
			names[name] = nil
		}
	}
	return names
}

// judge returns the status for an error of the proxy, and the error for the
// account, without anything that the client or the backend has sent.
func (x *exchange) judge(err error) (status int, reason error) {
	var (
		dialErr dialError
		opErr   *net.OpError
	)
	failedDial := errors.As(err, &dialErr)
	switch {
	case context.Cause(x.ctx) == errIdle:
		return http.StatusGatewayTimeout, errIdle
	case context.Cause(x.ctx) == errBody:
		return http.StatusBadRequest, errBody
	case context.Cause(x.ctx) == errNoResponse:
		return http.StatusBadGateway, errNoResponse
	case x.ctx.Err() != nil:
		return 0, errClientGone
	case failedDial:
		return x.gate.Status(dialErr.error), dialErr.error
	case x.bodyFailed.Load():
		return http.StatusBadRequest, errBody
	case errors.As(err, &opErr):
		return http.StatusBadGateway, fmt.Errorf("%w: %w", errNoResponse, opErr)
	}
	return http.StatusBadGateway, errNoResponse
}

const bufferSize = 32 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// bufferPool lends the proxy its buffers.
type bufferPool struct{}

func (bufferPool) Get() []byte  { return buffers.Get().(*[bufferSize]byte)[:] }
func (bufferPool) Put(b []byte) { buffers.Put((*[bufferSize]byte)(b)) }

// errSwitched tells the proxy that an upgrade is none of its business any more.
var errSwitched = errors.New("the gate relays it")

// switchOver gives an upgraded connection to a gate that takes it: then the error is
// errSwitched. nil leaves it to the proxy.
func (x *exchange) switchOver(resp *http.Response) error {
	taker, ok := x.gate.(Taker)
	if !ok || x.method != http.MethodGet || !taker.Takes(x.conn.ctx) { // RFC 6455 section 4.1
		return nil
	}
	b := x.via.Load()
	down := b.part(resp.Body)
	nc, _, err := http.NewResponseController(x.w.ResponseWriter).Hijack()
	if err != nil {
		b.Conn.Close()
		return err
	}
	x.hijacked, x.status = true, http.StatusSwitchingProtocols
	// In one write, with what the backend said at once.
	var head bytes.Buffer
	bare := *resp
	bare.Body = nil
	bare.Write(&head) // to memory, which takes everything
	head.Write(down)
	if _, err := nc.Write(head.Bytes()); err != nil {
		b.Conn.Close()
		x.err = errClientGone
		return errSwitched
	}
	x.down.Store(int64(len(down)))
	x.rest = func() { taker.Take(x.conn.ctx, b.Conn, x.conn.in.buf, x.soFar()) }
	return errSwitched
}

// upgraded is the client's side of a connection that its backend has upgraded.
// The proxy copies in both directions, passes on the end of each, and closes
// both when both have ended or one has failed.
type upgraded struct {
	net.Conn
	x *exchange
}

func (u *upgraded) Read(p []byte) (int, error) {
	n, err := u.Conn.Read(p)
	u.x.up.Add(int64(n))
	if err == io.EOF {
		u.x.watch(u.x.halfCloseBound())
	}
	return n, err
}

func (u *upgraded) Write(p []byte) (int, error) {
	n, err := u.Conn.Write(p)
	u.x.down.Add(int64(n))
	return n, err
}

// CloseWrite is called at the end of what the backend sends.
func (u *upgraded) CloseWrite() error {
	u.x.watch(u.x.halfCloseBound())
	return u.Conn.(interface{ CloseWrite() error }).CloseWrite()
}

// WriteTo and ReadFrom are what io.Copy uses of the client's side.
func (u *upgraded) WriteTo(w io.Writer) (int64, error)  { return copyLean(w, readerOnly{u}) }
func (u *upgraded) ReadFrom(r io.Reader) (int64, error) { return copyLean(writerOnly{u}, r) }

type (
	readerOnly struct{ io.Reader }
	writerOnly struct{ io.Writer }
)

// halfCloseBound bounds an upgraded connection of which one side has finished.
func (o *Options) halfCloseBound() time.Duration {
	if o.HalfCloseTimeout == 0 {
		return o.IdleTimeout
	}
	return o.HalfCloseTimeout
}

// copyLean is io.Copy for a connection that rests most of the time: while it
// waits it holds a small buffer, and it borrows a large one for as long as
// there is much to copy.
func copyLean(w io.Writer, r io.Reader) (copied int64, err error) {
	small := make([]byte, 512)
	for {
		n, err := copyOnce(w, r, small)
		copied += int64(n)
		if n == len(small) && err == nil {
			large := buffers.Get().(*[bufferSize]byte)
			for n >= len(small) && err == nil {
				n, err = copyOnce(w, r, large[:])
				copied += int64(n)
			}
			buffers.Put(large)
		}
		if err == io.EOF {
			return copied, nil
		}
		if err != nil {
			return copied, err
		}
	}
}

// copyOnce copies what one read yields. Its error is io.EOF at the end.
func copyOnce(w io.Writer, r io.Reader, buf []byte) (int, error) {
	n, readErr := r.Read(buf)
	if n > 0 {
		if m, err := w.Write(buf[:n]); err != nil {
			return m, err
		}
	}
	return n, readErr
}
