package ask

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"gateway/internal/smallfile"
)

// wire carries questions to the service.
type wire struct {
	url    string
	token  string // for the Authorization header, or ""
	client *http.Client
}

const (
	maxFile        = 1 << 20 // bytes of a token's or a certificate's file
	idleConnection = 30 * time.Second
)

var errURL = errors.New("want http://HOST[:PORT]/PATH, https://… or unix:PATH")

// unixPath returns the path of a socket that a URL stands for.
func unixPath(s string) (path string, ok bool) {
	path, ok = strings.CutPrefix(s, "unix:")
	return strings.TrimPrefix(path, "//"), ok
}

// ParseURL checks a URL for Options. Nothing is one too.
func ParseURL(s string) (string, error) {
	if path, ok := unixPath(s); ok || s == "" {
		if ok && path == "" {
			return "", errors.New("want the path of a socket behind unix:, as in unix:/run/ask.sock")
		}
		return s, nil
	}
	u, err := url.Parse(s)
	switch {
	case err != nil, u.Hostname() == "", u.Scheme != "http" && u.Scheme != "https":
		return "", errURL
	case !isPort(u):
		return "", errors.New("want a port from 1 to 65535, or none")
	case u.User != nil:
		return "", errors.New("want a URL without user or password: a bearer token is for a file")
	case u.Fragment != "":
		return "", errors.New("want a URL without a fragment")
	}
	return u.String(), nil
}

// isPort tells whether a URL's port can be one. url.Parse takes any number, and nothing
// behind the colon.
func isPort(u *url.URL) bool {
	if u.Port() == "" {
		return !strings.HasSuffix(u.Host, ":")
	}
	n, err := strconv.ParseUint(u.Port(), 10, 16)
	return err == nil && n > 0
}

// ParseHeader checks the name of a header for a Question, and returns it in its usual
// spelling.
func ParseHeader(s string) (string, error) {
	if s == "" || strings.ContainsFunc(s, isNoToken) {
		return "", errors.New("want the name of a header")
	}
	return http.CanonicalHeaderKey(s), nil
}

func newWire(o Options) (*wire, error) {
	w := &wire{}
	transport := &http.Transport{
		Proxy:                  nil, // the environment has no say here
		DisableCompression:     true,
		MaxIdleConns:           maxAsking,
		MaxIdleConnsPerHost:    maxAsking,
		MaxConnsPerHost:        maxAsking,
		IdleConnTimeout:        idleConnection,
		MaxResponseHeaderBytes: maxAnswer,
		Protocols:              new(http.Protocols),
	}
	transport.Protocols.SetHTTP1(true)
	if _, err := ParseURL(o.URL); err != nil {
		return nil, err
	}
	if o.URL == "" {
		return nil, errURL
	}
	if path, ok := unixPath(o.URL); ok {
		w.url = "http://unix/"
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
	} else {
		w.url = o.URL
	}
	if o.CAFile != "" {
		pem, err := smallfile.Read(o.CAFile, maxFile)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate in PEM", o.CAFile)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	if o.TokenFile != "" {
		text, err := smallfile.Read(o.TokenFile, maxFile)
		if err != nil {
			return nil, err
		}
		token := strings.TrimSpace(string(text))
		if token == "" || strings.ContainsFunc(token, isNoPath) {
			return nil, fmt.Errorf("%s must hold a token: one line, without spaces", o.TokenFile)
		}
		w.token = "Bearer " + token
	}
	w.client = &http.Client{
		Transport: transport,
		// A service that answers with another's address is none of ours.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return w, nil
}

func (w *wire) close() { w.client.CloseIdleConnections() }

// post puts a question and reads the answer. Its errors wrap those of the package,
// ErrSilent if ctx has ended before there was one, and hold nothing of question or answer.
func (w *wire) post(ctx context.Context, q *Question) (*Answer, error) {
	body, err := json.Marshal(q)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBad, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDown, err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	if w.token != "" {
		req.Header.Set("Authorization", w.token)
	}
	// To ask twice does no harm: net/http may do so where a kept connection turns
	// out to be closed. An empty list is not sent.
	req.Header["X-Idempotency-Key"] = nil
	resp, err := w.client.Do(req)
	if err != nil {
		return nil, unheard(ctx, err)
	}
	defer resp.Body.Close()
	var text []byte
	// A connection that goes over to something else has no body, and ctx does not end what
	// reads it. Other bodies are read in any case, so that the connection serves on.
	if resp.StatusCode != http.StatusSwitchingProtocols {
		text, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	}
	switch code := resp.StatusCode; {
	case code == http.StatusForbidden, code == http.StatusNotFound:
		return nil, ErrDenied
	case code == http.StatusTooManyRequests:
		return nil, ErrLimited
	case code >= 500:
		return nil, fmt.Errorf("%w: it answers %d", ErrDown, code)
	case code != http.StatusOK:
		return nil, fmt.Errorf("%w: it has the status %d", ErrBad, code)
	case err != nil:
		return nil, unheard(ctx, err)
	case len(text) > maxAnswer:
		return nil, fmt.Errorf("%w: it has more than %d KiB", ErrBad, maxAnswer>>10)
	}
	return parseAnswer(text)
}

// unheard returns why there is no answer.
func unheard(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ErrSilent
	}
	return fmt.Errorf("%w: %w", ErrDown, wordless(err))
}

// wordless returns an error of net/http's that repeats nothing of what the service has
// said: a ticket could be in there.
func wordless(err error) error {
	var of *net.OpError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &of):
		return of
	case errors.As(err, &certificate):
		return certificate
	case errors.As(err, &record):
		return record
	case errors.Is(err, http.ErrSchemeMismatch):
		return http.ErrSchemeMismatch
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("it has broken off")
	}
	return errors.New("what it says is no HTTP, or its head is too long")
}
