package token

import (
	"bytes"
	"encoding/base64"
	"errors"

	"github.com/go-jose/go-jose/v4/json"
)

// maxHeader bounds a header, in characters. JSON is dear by the byte, so that
// long headers of bad tokens would cost more than good tokens do. A header
// with a kid of maxKid bytes fits.
const maxHeader = 256

// header is what a token says of itself. The names are matched exactly, and a
// member that stands twice is an error, in go-jose's json alone.
type header struct {
	Alg text `json:"alg"`
	Enc text `json:"enc"`
	Kid text `json:"kid"`

	Crit present `json:"crit"`
	B64  present `json:"b64"`
	Zip  present `json:"zip"`
	JWK  present `json:"jwk"`
	JKU  present `json:"jku"`
	X5C  present `json:"x5c"`
	X5U  present `json:"x5u"`
}

// kind returns the algorithm that the header names.
func (h *header) kind() kind { return kind{h.Alg.value, h.Enc.value} }

// compact is a token in its parts, decoded.
type compact struct {
	header
	// covered is what the signature is of (RFC 7515 section 5.2), or the
	// additional authenticated data (RFC 7516 section 5.2). It aliases the
	// token.
	covered []byte

	// Of a signed token.
	claims, signature []byte

	// Of an encrypted token: the claims' ciphertext and the tag behind it.
	iv, sealed []byte
}

// inspect reads a token as far as that can be done without a key, and refuses
// what no key could make good:
//
//   - what is not a compact token of its kind: three parts for JWS (RFC 7515
//     section 3.1), five for JWE (RFC 7516 section 3.1), each of its size;
//   - any spelling but one: base64url without padding, without line breaks,
//     with zeros for the unused bits of the last character;
//   - algorithms that no key can have, "none" first of all;
//   - zip, which makes work before it is known to be worth it (RFC 8725
//     section 3.6 warns of its leaks too), and every extension that would have
//     to be understood (crit, b64);
//   - keys that the token brings along, or wants to be fetched.
func inspect(token []byte) (*compact, error) {
	// Go's decoder skips them.
	if bytes.ContainsAny(token, "\r\n") {
		return nil, ErrMalformed
	}
	parts := bytes.SplitN(token, []byte("."), 6) // the sixth is one too many
	if len(parts) != 3 && len(parts) != 5 || len(parts[0]) > maxHeader {
		return nil, ErrMalformed
	}
	// One buffer takes all that is decoded, each part behind the last.
	decoded := make([]byte, 0, len(token))
	decoded, err := strictBase64.AppendDecode(decoded, parts[0])
	if err != nil {
		return nil, ErrMalformed
	}
	t := new(compact)
	if json.Unmarshal(decoded, &t.header) != nil {
		return nil, ErrMalformed
	}
	if err := t.check(); err != nil {
		return nil, err
	}
	var sizes []int // of the other parts, in bytes
	switch t.kind() {
	case dirA256GCM:
		// No key, because it is shared already (RFC 7518 section 4.5); an IV
		// of 96 bits and a tag of 128 (section 5.3).
		sizes = []int{0, 12, some, 16}
	case hs256:
		sizes = []int{some, 32}
	case edDSA, es256:
		sizes = []int{some, 64}
	default:
		return nil, ErrAlgorithm
	}
	if len(parts) != 1+len(sizes) {
		return nil, ErrMalformed
	}
	for i, want := range sizes {
		start := len(decoded)
		decoded, err = strictBase64.AppendDecode(decoded, parts[1+i])
		got := len(decoded) - start
		if err != nil || want == some && got == 0 || want != some && got != want {
			return nil, ErrMalformed
		}
		parts[1+i] = decoded[start:]
	}
	if len(parts) == 3 {
		t.covered = token[:bytes.LastIndexByte(token, '.')]
		t.claims, t.signature = parts[1], parts[2]
	} else {
		t.covered = parts[0]
		t.iv = parts[2]
		t.sealed = parts[3][:len(parts[3])+len(parts[4])]
	}
	return t, nil
}

// some is the size of a part that must not be empty.
const some = -1

// check refuses what a header may hold but must not here.
func (h *header) check() error {
	switch {
	case bool(h.Crit || h.B64):
		return ErrExtension
	case bool(h.Zip):
		return ErrCompressed
	case bool(h.JWK || h.JKU || h.X5C || h.X5U):
		return ErrEmbeddedKey
	}
	return nil
}

// strictBase64 refuses unused bits that are not zero, so that one token has one
// spelling. It still skips '\r' and '\n', which inspect refuses itself.
var strictBase64 = base64.RawURLEncoding.Strict()

var errNoText = errors.New("want a string")

// text is a JSON string. Unlike a Go string it is not made of null.
type text struct {
	value string
	set   bool // the member is there
}

func (t *text) UnmarshalJSON(b []byte) error {
	if len(b) == 0 || b[0] != '"' {
		return errNoText
	}
	t.set = true
	return json.Unmarshal(b, &t.value)
}

// present tells that a member is there, whatever its value.
type present bool

func (p *present) UnmarshalJSON([]byte) error {
	*p = true
	return nil
}
