package limit

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Rate is a bound of events in time: a bucket of tokens, of which each event takes
// one. The zero value is none.
//
// It is kept as the generic cell rate algorithm does (ITU-T I.371): of a bucket all
// that has to be known is the time at which it will be full.
type Rate struct {
	every time.Duration // a token comes
	burst int           // tokens that the bucket holds
	text  string
}

// The ranges of a rate.
const (
	maxRate  = 1_000_000
	maxBurst = 1_000_000
)

var units = map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour}

// ParseRate reads N/s, N/m or N/h, with ",BURST" behind it or not: then the burst is
// N. Nothing and 0 are no bound.
func ParseRate(s string) (Rate, error) {
	if s == "" || s == "0" {
		return Rate{}, nil
	}
	head, tail, hasBurst := strings.Cut(s, ",")
	number, unit, _ := strings.Cut(head, "/")
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 || n > maxRate || units[unit] == 0 {
		return Rate{}, fmt.Errorf("want N/s, N/m or N/h with N from 1 to %d, and perhaps a burst: 5/s,20", maxRate)
	}
	r := Rate{every: units[unit] / time.Duration(n), burst: n, text: s}
	if hasBurst {
		if r.burst, err = strconv.Atoi(tail); err != nil || r.burst < 1 || r.burst > maxBurst {
			return Rate{}, fmt.Errorf("want a burst from 1 to %d behind the comma", maxBurst)
		}
	}
	return r, nil
}

// String returns what was parsed.
func (r Rate) String() string { return r.text }

// take takes a token out of a bucket that is full at a time, and returns when it is
// full then; false where it is empty.
func (r Rate) take(full, now time.Duration) (time.Duration, bool) {
	full = max(full, now)
	if full-now > time.Duration(r.burst-1)*r.every {
		return full, false
	}
	return full + r.every, true
}

// BanRule is when bad requests earn a ban. The zero value is never.
type BanRule struct {
	Bad    int           // so many bad requests
	Within time.Duration // in so long a time
	For    time.Duration // ban for so long
	text   string
}

// MaxBad is the most that BanRule.Bad may be.
const MaxBad = 1000

// ParseBan reads N/TIME:TIME. Nothing and 0 are no rule.
func ParseBan(s string) (BanRule, error) {
	if s == "" || s == "0" {
		return BanRule{}, nil
	}
	head, last, _ := strings.Cut(s, ":")
	number, within, _ := strings.Cut(head, "/")
	r := BanRule{text: s}
	var err error
	if r.Bad, err = strconv.Atoi(number); err != nil || r.Bad < 1 || r.Bad > MaxBad {
		return BanRule{}, fmt.Errorf("want N/TIME:TIME with N from 1 to %d, 20/1m:10m for instance", MaxBad)
	}
	if r.Within, err = parseTime(within); err == nil {
		r.For, err = parseTime(last)
	}
	if err != nil {
		return BanRule{}, fmt.Errorf("want N/TIME:TIME, 20/1m:10m for instance: %w", err)
	}
	return r, nil
}

// String returns what was parsed.
func (r BanRule) String() string { return r.text }

// maxTime bounds times of bans: what is for longer belongs into a list.
const maxTime = 365 * 24 * time.Hour

// parseTime reads seconds or a Go duration, as all times of the command line.
func parseTime(s string) (time.Duration, error) {
	if s != "" && strings.Trim(s, "0123456789.") == "" {
		s += "s"
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < time.Millisecond || d > maxTime {
		return 0, errors.New("want times in seconds (3) or as durations (1500ms, 2m), of a millisecond to a year")
	}
	return d, nil
}
