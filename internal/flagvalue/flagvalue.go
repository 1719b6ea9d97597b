// Package flagvalue has kinds of values for package flag. Each checks what it is
// set to: Set's errors say what would have been right, and package flag names
// the flag and the wrong value. String writes a value as Set reads it.
package flagvalue

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// value is a flag.Value made of two functions. The zero value is what package
// flag compares defaults with.
type value struct {
	text func() string
	set  func(string) error
}

func (v *value) String() string {
	if v.text == nil {
		return ""
	}
	return v.text()
}

func (v *value) Set(s string) error { return v.set(s) }

// String is any text.
func String(p *string) flag.Value {
	return &value{
		func() string { return *p },
		func(s string) error { *p = s; return nil },
	}
}

// Int is a whole number from min to max.
func Int(p *int, min, max int) flag.Value {
	return &value{
		func() string { return strconv.Itoa(*p) },
		func(s string) error {
			n, err := strconv.Atoi(s)
			if err != nil || n < min || n > max {
				return fmt.Errorf("want a whole number from %d to %d", min, max)
			}
			*p = n
			return nil
		},
	}
}

// Switch is 0 or 1; Go's other spellings of bools work too.
func Switch(p *bool) flag.Value {
	return &value{
		func() string {
			if *p {
				return "1"
			}
			return "0"
		},
		func(s string) error {
			b, err := strconv.ParseBool(s)
			if err != nil {
				return errors.New("want 0 or 1")
			}
			*p = b
			return nil
		},
	}
}

// maxDuration is a hundred years: there is no time of this century at which a
// clock of 63 bits of nanoseconds has no room for it.
const maxDuration = 100 * 365 * 24 * time.Hour

// Duration is seconds ("3", "1.5") or a Go duration ("1500ms", "1m30s"), more
// than 0.
func Duration(p *time.Duration) flag.Value { return duration(p, false, maxDuration) }

// DurationOrZero is a Duration or 0, of at most most; 0 for no such bound.
func DurationOrZero(p *time.Duration, most time.Duration) flag.Value {
	return duration(p, true, cmp.Or(most, maxDuration))
}

func duration(p *time.Duration, zeroOK bool, most time.Duration) flag.Value {
	return &value{
		func() string {
			switch {
			case *p == 0:
				return "0"
			case *p < 10*time.Minute && *p%time.Second == 0:
				return strconv.Itoa(int(p.Seconds())) + "s" // 60s, not 1m0s
			}
			return p.String()
		},
		func(s string) error {
			text := s
			if strings.Trim(s, "0123456789.") == "" {
				text += "s"
			}
			d, err := time.ParseDuration(text)
			if err == nil && d > most {
				return fmt.Errorf("want at most %v", most)
			}
			if err != nil || d < 0 || d == 0 && !zeroOK {
				if zeroOK {
					return errors.New("want seconds (3) or a duration (1500ms, 2m), or 0")
				}
				return errors.New("want seconds (3) or a duration (1500ms, 2m), more than 0")
			}
			*p = d
			return nil
		},
	}
}

// Address is an address to listen on, or nothing where that is allowed. Whether
// it can be bound shows later; this tells what is mistyped.
func Address(p *string, emptyOK bool) flag.Value {
	return &value{
		func() string { return *p },
		func(s string) error {
			if s != "" || !emptyOK {
				_, port, err := net.SplitHostPort(s)
				if err == nil {
					_, err = strconv.ParseUint(port, 10, 16)
				}
				if err != nil {
					return errors.New("want host:port or :port, with a port from 0 to 65535")
				}
			}
			*p = s
			return nil
		},
	}
}

// Server is the address of a server to ask, or nothing.
func Server(p *string) flag.Value {
	return &value{
		func() string { return *p },
		func(s string) error {
			if s != "" {
				host, port, err := net.SplitHostPort(s)
				n, nerr := strconv.ParseUint(port, 10, 16)
				if err != nil || nerr != nil || n == 0 || host == "" {
					return errors.New("want host:port, with a port from 1 to 65535")
				}
			}
			*p = s
			return nil
		},
	}
}

// OneOf is one of a few words.
func OneOf(p *string, words ...string) flag.Value {
	return &value{
		func() string { return *p },
		func(s string) error {
			if !slices.Contains(words, s) {
				return fmt.Errorf("want %s", strings.Join(words, " or "))
			}
			*p = s
			return nil
		},
	}
}

// Parsed is what a function makes of a text, and text writes.
func Parsed[T any](p *T, parse func(string) (T, error), text func(T) string) flag.Value {
	return &value{
		func() string { return text(*p) },
		func(s string) error {
			v, err := parse(s)
			if err != nil {
				return err
			}
			*p = v
			return nil
		},
	}
}

// Words splits a list at commas and spaces.
func Words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

// List is a list of words, each of which parse understands. Each time that the
// flag is given replaces the list; no word at all is the error of none.
func List[T comparable](p *[]T, parse func(string) (T, error), none string) flag.Value {
	return list(p, parse, func(s string) error {
		if len(Words(s)) == 0 {
			return errors.New(none)
		}
		*p = nil
		return nil
	})
}

// Sum is a list to which each time that the flag is given adds, and which may
// be empty. Where a text of mere separators is not to be taken for an empty
// list, that is the error of none; "" where it is.
func Sum[T comparable](p *[]T, parse func(string) (T, error), none string) flag.Value {
	return list(p, parse, func(s string) error {
		if none != "" && s != "" && len(Words(s)) == 0 {
			return errors.New(none)
		}
		return nil
	})
}

// Lines is a list of lines, to which each time that the flag is given adds.
func Lines[T interface {
	comparable
	fmt.Stringer
}](p *[]T, parse func(string) (T, error)) flag.Value {
	return &value{
		func() string {
			texts := make([]string, len(*p))
			for i, v := range *p {
				texts[i] = v.String()
			}
			return strings.Join(texts, "\n")
		},
		func(s string) error {
			for line := range strings.SplitSeq(s, "\n") {
				if strings.TrimSpace(line) == "" {
					continue
				}
				v, err := parse(line)
				if err != nil {
					return err
				}
				if !slices.Contains(*p, v) {
					*p = append(*p, v)
				}
			}
			return nil
		},
	}
}

// list is a list that before may refuse or empty. What is in it already is not
// added again.
func list[T comparable](p *[]T, parse func(string) (T, error), before func(string) error) flag.Value {
	return &value{
		func() string {
			texts := make([]string, len(*p))
			for i, v := range *p {
				texts[i] = fmt.Sprint(v)
			}
			return strings.Join(texts, ",")
		},
		func(s string) error {
			var parsed []T
			for _, word := range Words(s) {
				v, err := parse(word)
				if err != nil {
					return err
				}
				parsed = append(parsed, v)
			}
			if err := before(s); err != nil {
				return err
			}
			for _, v := range parsed {
				if !slices.Contains(*p, v) {
					*p = append(*p, v)
				}
			}
			return nil
		},
	}
}
