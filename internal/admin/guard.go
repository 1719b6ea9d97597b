package admin

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
)

// Who may change something: the owner of the Unix socket, and who has the token. A
// web page may not, whoever looks at it: browsers send a header of one's own choice
// to another origin only with its leave, which is never given.

// Header is the header that a request has to have, with the value 1, to change
// anything.
const Header = "X-Gateway-Admin"

type peerKey struct{}

// peer is who is at the other end of a connection.
type peer struct {
	name string // for the log
	unix bool
}

func rememberPeer(ctx context.Context, c net.Conn) context.Context {
	if placed, ok := c.(*placed); ok {
		c = placed.Conn
	}
	p := peer{name: c.RemoteAddr().String()}
	if u, ok := c.(*net.UnixConn); ok {
		p = peer{"unix" + credentials(u), true}
	}
	return context.WithValue(ctx, peerKey{}, p)
}

// bodyMax is the most that a body holds, in bytes.
const bodyMax = 4 << 10

// change is a request that changes something: it returns what is answered, and what
// the log says of it.
type change func(r *http.Request) (result any, attrs []any, err error)

// change makes a handler of a change.
func (s *server) change(do change) http.HandlerFunc {
	csrf := http.NewCrossOriginProtection()
	return func(w http.ResponseWriter, r *http.Request) {
		who, _ := r.Context().Value(peerKey{}).(peer)
		refuse := func(status int, why string) {
			s.Log.Warn("admin request refused", "request", r.URL.Path, "by", who.name, "status", status, "reason", why)
			fail(w, status, why)
		}
		switch {
		case r.Header.Get(Header) != "1":
			refuse(http.StatusForbidden, "the header "+Header+": 1 is missing")
			return
		case csrf.Check(r) != nil:
			refuse(http.StatusForbidden, "this comes from a web page of another origin")
			return
		case who.unix:
		case s.Token == "":
			refuse(http.StatusForbidden, "changes need the Unix socket, or -admin-token-file")
			return
		case !s.hasToken(r):
			w.Header().Set("WWW-Authenticate", "Bearer")
			refuse(http.StatusUnauthorized, "the bearer token is missing or wrong")
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, bodyMax)
		result, attrs, err := do(r)
		var bad badRequest
		switch {
		case errors.As(err, &bad):
			refuse(http.StatusBadRequest, err.Error())
			return
		case errors.As(err, new(badSettings)):
			refuse(http.StatusUnprocessableEntity, err.Error())
			return
		case err != nil:
			refuse(http.StatusInternalServerError, err.Error())
			return
		}
		s.Log.Info("admin request", append([]any{"request", r.URL.Path, "by", who.name}, attrs...)...)
		answer(w, http.StatusOK, result)
	}
}

// hasToken takes the same time for every token of a length.
func (s *server) hasToken(r *http.Request) bool {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	got, want := sha256.Sum256([]byte(strings.TrimSpace(token))), sha256.Sum256([]byte(s.Token))
	return strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(got[:], want[:]) == 1
}

// badRequest is what is wrong with a request.
type badRequest string

func (b badRequest) Error() string { return string(b) }

// badSettings is why a reload has changed nothing.
type badSettings struct{ error }

// errNoBody is what is wrong with a body of which there is nothing.
var errNoBody error = badRequest("the body is empty, and a JSON object is wanted")

// decode reads a JSON object that has nothing but the fields of v.
func decode(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	switch err := d.Decode(v); {
	case err == io.EOF:
		return errNoBody
	case err != nil:
		return badRequest(fmt.Sprintf("the body is not the JSON object that is wanted: %v", err))
	}
	if _, err := d.Token(); err != io.EOF {
		return badRequest("there is more in the body than one JSON object")
	}
	return nil
}

// decodeNothing reads a body that says nothing: none, or {}. Who says more, for how long to
// drain for instance, is told that nobody listens.
func decodeNothing(r *http.Request) error {
	var nothing struct{}
	if err := decode(r, &nothing); err != nil && err != errNoBody {
		return err
	}
	return nil
}
