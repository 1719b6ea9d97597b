package token

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
)

// keySet is a JWK Set. It does not change.
type keySet struct {
	keys  []*key // in the order of the file
	named map[string]*key
	alone map[kind]*key // the only key of its kind; nil where there are more
}

// pick returns the key that a token is to be opened with.
func (s *keySet) pick(h *header) (*key, error) {
	k := s.alone[h.kind()]
	if h.Kid.set {
		k = s.named[h.Kid.value]
	}
	if k == nil {
		return nil, ErrKey
	}
	if k.kind != h.kind() {
		return nil, ErrAlgorithm
	}
	return k, nil
}

// reachable tells whether a token can be made so that it picks the key: a key
// without kid has to be the only one of its kind.
func (s *keySet) reachable(k *key) bool { return k.kid != "" || s.alone[k.kind] == k }

// sealer returns the first key that can make tokens, or nil.
func (s *keySet) sealer() *key {
	for _, k := range s.keys {
		if k.makes && s.reachable(k) {
			return k
		}
	}
	return nil
}

// maxKid bounds a kid in bytes, so that the headers that it stands in fit into
// maxHeader.
const maxKid = 100

// parseSet reads a JWK Set (RFC 7517 section 5). A key that is not understood
// is an error, although the standard would have it ignored: its tokens would
// all be refused, and nobody would know why. So is a key that may not open
// tokens. Members that are not understood are ignored.
//
// Errors say which key is at fault and what to do, and never hold any of it.
func parseSet(data []byte) (*keySet, error) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	var file struct {
		Keys []json.RawMessage `json:"keys"`
		Kty  present           `json:"kty"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, notJSON(data, err)
	}
	if file.Kty {
		return nil, errors.New(`holds a single key: write {"keys":[...]} around it`)
	}
	if len(file.Keys) == 0 {
		return nil, errors.New(`holds no keys: want a JWK Set, {"keys":[...]}, as -keygen prints one`)
	}
	s := &keySet{named: make(map[string]*key), alone: make(map[kind]*key)}
	for i, raw := range file.Keys {
		k, err := parseKey(raw)
		if err == nil && k.kid != "" && s.named[k.kid] != nil {
			err = errors.New("another key has the same kid: change one")
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", nameKey(raw, i, len(file.Keys)), err)
		}
		s.keys = append(s.keys, k)
		if k.kid != "" {
			s.named[k.kid] = k
		}
		if _, more := s.alone[k.kind]; more {
			s.alone[k.kind] = nil
		} else {
			s.alone[k.kind] = k
		}
	}
	return s, nil
}

// notJSON replaces go-jose's error, which may quote what it has found.
func notJSON(data []byte, err error) error {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		before := data[:min(int(syntax.Offset), len(data))]
		return fmt.Errorf("line %d is not JSON: want a JWK Set, as -keygen prints one", 1+bytes.Count(before, []byte("\n")))
	}
	return errors.New(`is no JWK Set: want {"keys":[...]}, as -keygen prints one, without a member twice`)
}

// nameKey says which key is meant, by its place and its kid.
func nameKey(raw []byte, i, n int) string {
	var id struct {
		Kid text `json:"kid"`
	}
	name := fmt.Sprintf("key %d of %d", i+1, n)
	if json.Unmarshal(raw, &id) == nil && id.Kid.set && len(id.Kid.value) <= maxKid {
		name += fmt.Sprintf(" (kid %q)", id.Kid.value)
	}
	return name
}

// jwk is what of a key's JSON decides what it is good for. The material is
// left to go-jose.
type jwk struct {
	Kty text    `json:"kty"`
	Crv text    `json:"crv"`
	Use text    `json:"use"`
	Alg text    `json:"alg"`
	Kid text    `json:"kid"`
	Ops ops     `json:"key_ops"`
	D   present `json:"d"`
}

// parseKey reads a JWK.
func parseKey(raw []byte) (*key, error) {
	var j jwk
	if json.Unmarshal(raw, &j) != nil {
		return nil, errors.New("want a JSON object with no member twice, strings for kty, crv, use, alg and kid, and a list of different strings for key_ops")
	}
	of, err := j.classify()
	if err != nil {
		return nil, err
	}
	if j.Alg.set && j.Alg.value != of.alg && !(of == dirA256GCM && j.Alg.value == of.enc) {
		return nil, fmt.Errorf("alg is not %s, the only one that such a key is good for: change or remove it", of)
	}
	if j.Kid.set && (j.Kid.value == "" || len(j.Kid.value) > maxKid) {
		return nil, fmt.Errorf("kid must have 1 to %d bytes: change it, or remove it if no other key is for %s", maxKid, of)
	}
	if !j.Ops.permit(of.opens()) {
		return nil, fmt.Errorf("key_ops must hold %q, which is what the key is for here: add it, or remove key_ops", of.opens())
	}
	var material jose.JSONWebKey
	if material.UnmarshalJSON(raw) != nil {
		return nil, errors.New("the key is damaged: want k (oct), x (OKP), or x and y (EC) as base64url without padding, x and y on the curve")
	}
	k, err := newKey(of, j.Kid.value, material.Key)
	if err == nil {
		k.makes = k.secret != nil && j.Ops.permit(of.makes())
	}
	return k, err
}

// ops is the member key_ops: what a key may be used for, beside its use (RFC 7517
// section 4.3).
type ops struct {
	list []string
	set  bool // the member is there
}

var errNoOps = errors.New("want a list of different strings")

func (o *ops) UnmarshalJSON(b []byte) error {
	var list []text // which, unlike strings, are not made of null
	if len(b) == 0 || b[0] != '[' || json.Unmarshal(b, &list) != nil {
		return errNoOps
	}
	o.set = true
	for _, op := range list {
		if !op.set || slices.Contains(o.list, op.value) {
			return errNoOps
		}
		o.list = append(o.list, op.value)
	}
	return nil
}

func (o *ops) permit(op string) bool { return !o.set || slices.Contains(o.list, op) }

// classify tells what a key is good for by its type and use.
func (j *jwk) classify() (kind, error) {
	switch {
	case !j.Kty.set:
		return kind{}, errors.New("kty is missing: want oct, OKP or EC")
	case j.Use.set && j.Use.value != "enc" && j.Use.value != "sig":
		return kind{}, errors.New("use must be enc or sig")
	}
	switch j.Kty.value {
	case "oct":
		switch j.Use.value {
		case "enc":
			return dirA256GCM, nil
		case "sig":
			return hs256, nil
		}
		return kind{}, errors.New("use is missing: say enc for encrypted tokens, sig for signed ones")
	case "OKP":
		return edDSA, j.checkPublic("Ed25519")
	case "EC":
		return es256, j.checkPublic("P-256")
	}
	return kind{}, errors.New("kty must be oct, OKP (Ed25519) or EC (P-256)")
}

// checkPublic refuses what is no public key for signatures on the curve.
func (j *jwk) checkPublic(crv string) error {
	switch {
	case j.Crv.value != crv:
		return fmt.Errorf("crv of an %s key must be %s", j.Kty.value, crv)
	case j.Use.value == "enc":
		return fmt.Errorf("use of an %s key must be sig: it verifies signatures", j.Kty.value)
	case bool(j.D):
		return errors.New("it is a private key: remove d, so that what verifies tokens cannot make them")
	}
	return nil
}

// Generate returns a fresh JWK Set with one key for encrypted tokens, as JSON
// that ends in a newline. It is a secret.
func Generate() ([]byte, error) {
	secret := make([]byte, 32)
	rand.Read(secret) // never fails
	// A256GCM rather than dir: libraries that compare a key's alg with the
	// token's compare it with enc where alg is dir.
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{
		Key: secret, KeyID: rand.Text()[:8], Use: "enc", Algorithm: string(jose.A256GCM),
	}}}
	data, err := json.MarshalIndent(set, "", "  ")
	return append(data, '\n'), err
}
