package admin

import (
	"bytes"
	"context"
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

	"gateway/internal/address"
)

// Client asks a Server, from another process. Its methods return errors of one line.
type Client struct {
	addr  string
	token string
	http  http.Client
}

// clientTimeout bounds one request and its answer.
const clientTimeout = time.Minute

// NewClient returns a client of the server at addr, HOST:PORT or unix:PATH. token is
// for changes by TCP, and may be empty.
func NewClient(addr, token string) *Client {
	c := &Client{addr: addr, token: token}
	network, at := "tcp", addr
	if path, ok := UnixPath(addr); ok {
		network, at = "unix", path
	}
	c.http.Timeout = clientTimeout
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, at)
		},
	}
	return c
}

// do sends a request and reads the answer, a JSON object, into v. A body makes it a
// change.
func (c *Client) do(ctx context.Context, path string, body, v any) error {
	method := http.MethodGet
	var text []byte
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		method, text = http.MethodPost, b
	}
	resp, err := c.send(ctx, method, path, text)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var p problem
		if json.NewDecoder(io.LimitReader(resp.Body, bodyMax)).Decode(&p) != nil || p.Error == "" {
			p.Error = resp.Status
		}
		return fmt.Errorf("the gateway at %s says: %s", c.addr, strings.ReplaceAll(p.Error, "\n", " "))
	}
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return fmt.Errorf("the answer of the gateway at %s breaks off or is none: %w", c.addr, err)
	}
	return nil
}

// send sends a request. The caller closes the response's body. A body of the request,
// JSON, makes it a change.
func (c *Client) send(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	host := c.addr
	if _, ok := UnixPath(c.addr); ok || strings.HasPrefix(host, ":") {
		host = "localhost"
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://"+host+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		r.Header.Set(Header, "1")
		if c.token != "" {
			r.Header.Set("Authorization", "Bearer "+c.token)
		}
	}
	resp, err := c.http.Do(r)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the URL, which is made up
		}
		return nil, fmt.Errorf("cannot ask the gateway at %s: %w", c.addr, err)
	}
	return resp, nil
}

// ParseFilter reads a filter from a command line: NAME=VALUE with commas between, or a
// value alone that tells by its form what it is.
//
//	client=192.0.2.0/24,backend=10.0.0.7:4000   listener=…   id=…
//	192.0.2.0/24   10.0.0.7:4000   x3k7…-1f
//
// The names are those of the parameters of /api/tunnels.
func ParseFilter(s string) (url.Values, error) {
	values := make(url.Values)
	for part := range strings.SplitSeq(s, ",") {
		name, value, ok := strings.Cut(part, "=")
		switch {
		case part == "" && s == "":
			continue
		case !ok:
			name, value = kindOf(part), part
		case name != "client" && name != "backend" && name != "listener" && name != "id":
			return nil, fmt.Errorf("%q is no filter: want client=, backend=, listener= or id=", part)
		}
		if value == "" || values.Has(name) {
			return nil, fmt.Errorf("%q is no filter: want each name once, with a value", s)
		}
		values.Set(name, value)
	}
	_, err := parseQuery(values)
	return values, err
}

// kindOf tells what a value is.
func kindOf(value string) string {
	if _, err := ParseClient(value); err == nil {
		return "client"
	}
	if _, err := address.Parse(value); err == nil || strings.Contains(value, ":") {
		return "backend"
	}
	if strings.Contains(value, "/") {
		return "client" // which is wrong, and is told so
	}
	return "id"
}

// Tunnels calls yield for each tunnel of a filter.
func (c *Client) Tunnels(ctx context.Context, filter url.Values, yield func(*Tunnel)) error {
	query := make(url.Values)
	for name := range filter {
		query.Set(name, filter.Get(name))
	}
	query.Set("limit", strconv.Itoa(10*defaultLimit))
	for {
		var page struct {
			Tunnels []Tunnel
			Next    string
		}
		if err := c.do(ctx, "/api/tunnels?"+query.Encode(), nil, &page); err != nil {
			return err
		}
		if page.Tunnels == nil {
			return c.notAGateway()
		}
		for i := range page.Tunnels {
			yield(&page.Tunnels[i])
		}
		if page.Next == "" {
			return nil
		}
		query.Set("after", page.Next)
	}
}

// CheckCut tells what is wrong with a filter of Cut.
func CheckCut(filter url.Values) error {
	if len(filter) != 1 || filter.Has("listener") {
		return errors.New("want one of id=, client= and backend=")
	}
	return nil
}

// Cut ends the tunnels of a filter, which is an id, clients or a backend, and returns
// how many those were.
func (c *Client) Cut(ctx context.Context, filter url.Values) (int, error) {
	var answer struct{ Cut *int }
	err := c.do(ctx, "/api/tunnels/cut", cutRequest{filter.Get("id"), filter.Get("client"), filter.Get("backend")}, &answer)
	switch {
	case err != nil:
		return 0, err
	case answer.Cut == nil:
		return 0, c.notAGateway()
	}
	return *answer.Cut, nil
}

// notAGateway is what is wrong with an answer that is JSON, and says nothing.
func (c *Client) notAGateway() error {
	return fmt.Errorf("what answers at %s is not a gateway's -admin", c.addr)
}

// Status tells how all is.
func (c *Client) Status(ctx context.Context) (st Status, err error) {
	if err = c.do(ctx, "/api/status", nil, &st); err == nil && st.PID == 0 {
		err = c.notAGateway()
	}
	return st, err
}
