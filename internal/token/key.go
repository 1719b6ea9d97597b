package token

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"math/big"

	"github.com/go-jose/go-jose/v4"
)

// kind is the algorithm of a token, and the one that a key is good for.
type kind struct{ alg, enc string }

var (
	dirA256GCM = kind{string(jose.DIRECT), string(jose.A256GCM)}
	hs256      = kind{alg: string(jose.HS256)}
	edDSA      = kind{alg: string(jose.EdDSA)}
	es256      = kind{alg: string(jose.ES256)}
)

// String returns the algorithm as documents write it.
func (k kind) String() string {
	if k.enc != "" {
		return k.alg + " with " + k.enc
	}
	return k.alg
}

// opens returns the word of key_ops for opening a token of the kind.
func (k kind) opens() string {
	if k == dirA256GCM {
		return "decrypt"
	}
	return "verify"
}

// makes returns that for making one.
func (k kind) makes() string {
	if k == dirA256GCM {
		return "encrypt"
	}
	return "sign"
}

// key opens tokens of its kind, and makes them if it is a secret and may.
type key struct {
	kind
	kid   string // "" for none
	makes bool

	secret []byte            // dirA256GCM and hs256
	aead   cipher.AEAD       // dirA256GCM
	ed     ed25519.PublicKey // edDSA
	es     *ecdsa.PublicKey  // es256
}

// newKey returns a key of go-jose's material, which is of the type and curve
// for its kind.
func newKey(of kind, kid string, material any) (*key, error) {
	k := &key{kind: of, kid: kid}
	switch material := material.(type) {
	case []byte:
		k.secret = material
	case ed25519.PublicKey:
		k.ed = material
	case *ecdsa.PublicKey:
		k.es = material
	}
	switch n := len(k.secret); {
	case of == dirA256GCM && n != 32:
		return nil, fmt.Errorf("k has %d bytes: an enc key has 32 (-keygen makes one)", n)
	case of == hs256 && n < 32: // RFC 7518 section 3.2
		return nil, fmt.Errorf("k has %d bytes: a sig key has at least 32", n)
	case of == dirA256GCM:
		block, err := aes.NewCipher(k.secret)
		if err != nil {
			return nil, err
		}
		if k.aead, err = cipher.NewGCM(block); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// open returns the claims of a token of the key's kind, if the key has made
// it. It may use up t.
func (k *key) open(t *compact) ([]byte, error) {
	good := false
	switch k.kind {
	case dirA256GCM:
		// In place: what fails to open is wiped, and nobody looks at it.
		claims, err := k.aead.Open(t.sealed[:0], t.iv, t.sealed, t.covered)
		if err != nil {
			return nil, ErrForged
		}
		return claims, nil
	case hs256:
		mac := hmac.New(sha256.New, k.secret)
		mac.Write(t.covered)
		good = hmac.Equal(mac.Sum(nil), t.signature)
	case edDSA:
		good = ed25519.Verify(k.ed, t.covered, t.signature)
	case es256:
		// R and S, 32 bytes each (RFC 7518 section 3.4).
		digest := sha256.Sum256(t.covered)
		r, s := new(big.Int).SetBytes(t.signature[:32]), new(big.Int).SetBytes(t.signature[32:])
		good = ecdsa.Verify(k.es, digest[:], r, s)
	}
	if !good {
		return nil, ErrForged
	}
	return t.claims, nil
}
