package tunnel

import (
	"errors"
	"fmt"
)

// A StatusError is a gateway's answer that is not 200: three digits. errors.Is finds
// what it means among the errors below.
type StatusError string

// What a gateway may answer.
const (
	// ErrBadRequest: the request came too slowly, was too long or cut short.
	ErrBadRequest StatusError = "400"
	// ErrUnauthorized: the address does not open; or, of a session, the request to
	// resume is not authentic.
	ErrUnauthorized StatusError = "401"
	// ErrGone: the session is over, or the bytes are not there any more.
	ErrGone StatusError = "410"
	// ErrBadGateway: the backend cannot be connected; or, of a session, the gateway
	// that has it is out of reach for this one.
	ErrBadGateway StatusError = "502"
	// ErrGatewayTimeout: connecting the backend timed out.
	ErrGatewayTimeout StatusError = "504"
)

func (e StatusError) Error() string {
	what := map[StatusError]string{
		ErrBadRequest:     "the request could not be read",
		ErrUnauthorized:   "the address or the request is not authentic",
		ErrGone:           "the session is gone",
		ErrBadGateway:     "the backend could not be connected",
		ErrGatewayTimeout: "connecting the backend timed out",
	}[e]
	if what == "" {
		what = "no status of a gateway"
	}
	return fmt.Sprintf("tunnel: the gateway answered %q: %s", string(e), what)
}

// Timeout is net.Error's.
func (e StatusError) Timeout() bool { return e == ErrGatewayTimeout }

// StatusOf returns what the gateway has answered, of an error of Dial or of a tunnel: one
// of the statuses above; 0 is no answer, or none of a gateway's.
func StatusOf(err error) int {
	for status, e := range map[int]StatusError{400: ErrBadRequest, 401: ErrUnauthorized, 410: ErrGone, 502: ErrBadGateway, 504: ErrGatewayTimeout} {
		if errors.Is(err, e) {
			return status
		}
	}
	return 0
}

// Advice is what the player can do about an error.
type Advice int

const (
	// Reconnect: a bad network. Connect again.
	Reconnect Advice = iota
	// NewLine: get a new sealed address from the login server.
	NewLine
	// NewLineOrLater: the same, or wait.
	NewLineOrLater
	// StartAnew: the session is gone. Log in again.
	StartAnew
)

func (a Advice) String() string {
	return [...]string{"reconnect", "new line", "new line or later", "start anew"}[a]
}

// AdviceOf returns what can be done about an error of Dial, or of a tunnel.
func AdviceOf(err error) Advice {
	switch {
	case errors.Is(err, ErrUnauthorized):
		return NewLine
	case errors.Is(err, ErrGone):
		return StartAnew
	case errors.Is(err, ErrBadGateway), errors.Is(err, ErrGatewayTimeout):
		return NewLineOrLater
	}
	return Reconnect
}

var (
	// ErrLost is what ends a tunnel that could not be resumed in time; it wraps what
	// went wrong last.
	ErrLost = errors.New("tunnel: the connection was lost and could not be resumed in time")

	errReconnect = errors.New("tunnel: Reconnect was called")
	errSilent    = errors.New("tunnel: the gateway is silent")
	errNotHere   = errors.New("tunnel: the gateway does not speak the protocol")
)
