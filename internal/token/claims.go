package token

import (
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/go-jose/go-jose/v4/json"
	"github.com/go-jose/go-jose/v4/jwt"
)

const (
	// leeway is by how much an issuer's clock may differ from ours, in seconds.
	leeway = 60
	// maxYears is how far ahead a token may expire. What lies beyond was most
	// likely meant in milliseconds, as JavaScript's Date.now() counts, and would
	// be good for 50,000 years.
	maxYears = 10
)

// claims are the registered claims that are looked at (RFC 7519 section 4.1).
// The others, iat among them, say nothing about when a token is good for what.
type claims struct {
	Subject   text            `json:"sub"`
	Expiry    date            `json:"exp"`
	NotBefore date            `json:"nbf"`
	Audience  json.RawMessage `json:"aud"` // read only where one is asked for
}

// validate returns the subject of claims that are valid now, for the audience
// unless that is "".
func validate(payload []byte, audience string, now time.Time) (subject string, err error) {
	var c claims
	if json.Unmarshal(payload, &c) != nil {
		return "", ErrClaims
	}
	seconds := float64(now.Unix()) + float64(now.Nanosecond())/1e9
	switch {
	case !c.Expiry.set:
		return "", ErrNoExpiry
	case seconds >= c.Expiry.seconds+leeway: // "on or after" (section 4.1.4)
		return "", ErrExpired
	case c.Expiry.seconds > float64(now.AddDate(maxYears, 0, 0).Unix())+leeway:
		return "", ErrExpiryFar
	case c.NotBefore.set && seconds < c.NotBefore.seconds-leeway:
		return "", ErrNotYet
	case c.Subject.value == "":
		return "", ErrNoSubject
	}
	if audience != "" {
		var list jwt.Audience // a string or an array of strings
		if len(c.Audience) == 0 {
			return "", ErrAudience
		}
		if json.Unmarshal(c.Audience, &list) != nil {
			return "", ErrClaims
		}
		if !slices.Contains(list, audience) {
			return "", ErrAudience
		}
	}
	return c.Subject.value, nil
}

var errNoDate = errors.New("want a number of seconds")

// date is a NumericDate: seconds since 1970, fractions included (RFC 7519
// section 2). A float64 takes every number without wrapping around, and is
// exact to less than a microsecond for a few centuries.
type date struct {
	seconds float64
	set     bool // the claim is there
}

func (d *date) UnmarshalJSON(b []byte) error {
	// A string and null are no floats, JSON has neither NaN nor infinities,
	// and what is too large for a float64 is an error.
	f, err := strconv.ParseFloat(string(b), 64)
	if err != nil {
		return errNoDate
	}
	d.seconds, d.set = f, true
	return nil
}
