package resume

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"strconv"
	"strings"
)

// Mark is what every request of a client begins with that wants a session, or one of
// its own back. No sealed line or token does.
const Mark = "~1"

// MaxResume is the most that a request to resume has, in bytes, with its newline.
const MaxResume = 512

// OpenOverhead is what stands before the sealed line in a request for a session, at
// most, in bytes.
const OpenOverhead = len("~1N ") + keyText + len(" ")

// keyText is the length of 32 bytes in base64url.
const keyText = 43

// ErrMalformed is a request that is none.
var ErrMalformed = errors.New("malformed")

// Open is a request for a session.
type Open struct {
	Key    []byte // the client's X25519 key; nil for none
	Sealed []byte // a sealed line or token, perhaps a bad one
}

// Request is a request to resume a session.
type Request struct {
	Ticket          string
	Seq, From, Recv uint64
	MAC             [32]byte
}

// Parse reads a request from its line, without newline: one of the two is not nil.
// Sealed aliases it. The error is ErrMalformed.
func Parse(line []byte) (*Open, *Request, error) {
	if rest, ok := bytes.CutPrefix(line, []byte("~1N ")); ok {
		o, ok := parseOpen(rest)
		if ok {
			return o, nil, nil
		}
		return nil, nil, ErrMalformed
	}
	if rest, ok := bytes.CutPrefix(line, []byte("~1R ")); ok && len(line) < MaxResume {
		r, ok := parseResume(string(rest))
		if ok {
			return nil, r, nil
		}
	}
	return nil, nil, ErrMalformed
}

func parseOpen(rest []byte) (*Open, bool) {
	key, sealed, _ := bytes.Cut(rest, []byte(" "))
	if len(sealed) == 0 || bytes.IndexByte(sealed, ' ') >= 0 {
		return nil, false
	}
	if string(key) == "-" {
		return &Open{Sealed: sealed}, true
	}
	b, ok := decode(string(key))
	return &Open{Key: b, Sealed: sealed}, ok && len(b) == 32
}

func parseResume(rest string) (*Request, bool) {
	words := strings.Split(rest, " ")
	if len(words) != 5 {
		return nil, false
	}
	r := &Request{Ticket: words[0]}
	ok := words[0] != "" && len(words[0]) <= MaxTicket
	for i, n := range []*uint64{&r.Seq, &r.From, &r.Recv} {
		word := words[1+i]
		var err error
		*n, err = strconv.ParseUint(word, 10, 64)
		ok = ok && err == nil && (word[0] != '0' || len(word) == 1)
	}
	mac, valid := decode(words[4])
	copy(r.MAC[:], mac)
	return r, ok && valid && len(mac) == len(r.MAC)
}

// AppendOpen appends the request for a session, with its newline. key may be nil.
func AppendOpen(b, key []byte, sealed string) []byte {
	b = append(b, "~1N "...)
	if key == nil {
		b = append(b, '-')
	} else {
		b = encoding.AppendEncode(b, key)
	}
	b = append(b, ' ')
	b = append(b, sealed...)
	return append(b, '\n')
}

// mac returns what proves that a request is from who holds the key.
func (r *Request) mac(key [32]byte) (sum [32]byte) {
	b := make([]byte, 0, MaxResume)
	b = append(b, "resume 1\n"...)
	b = append(b, r.Ticket...)
	for _, n := range []uint64{r.Seq, r.From, r.Recv} {
		b = strconv.AppendUint(append(b, '\n'), n, 10)
	}
	h := hmac.New(sha256.New, key[:])
	h.Write(b)
	h.Sum(sum[:0])
	return sum
}

// Authentic tells whether the request was made by who holds the key.
func (r *Request) Authentic(key [32]byte) bool {
	sum := r.mac(key)
	return hmac.Equal(sum[:], r.MAC[:])
}

// AppendSigned appends the request, with a MAC made by key and its newline.
func (r *Request) AppendSigned(b []byte, key [32]byte) []byte {
	r.MAC = r.mac(key)
	return r.Append(b)
}

// Append appends the request as it is, with its newline.
func (r *Request) Append(b []byte) []byte {
	b = append(b, "~1R "...)
	b = append(b, r.Ticket...)
	for _, n := range []uint64{r.Seq, r.From, r.Recv} {
		b = strconv.AppendUint(append(b, ' '), n, 10)
	}
	b = encoding.AppendEncode(append(b, ' '), r.MAC[:])
	return append(b, '\n')
}
