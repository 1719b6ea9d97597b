package resume

import (
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
)

// errKey is a key of the peer's that gives none.
var errKey = errors.New("resume: the peer's key is none")

// NewKeyPair makes a fresh X25519 key.
func NewKeyPair() (*ecdh.PrivateKey, error) { return ecdh.X25519().GenerateKey(rand.Reader) }

// GatewayKey returns K, the key of a session, at the gateway: from its own key pair
// and the client's public key.
func GatewayKey(own *ecdh.PrivateKey, client []byte) ([32]byte, error) {
	return sessionKey(own, client, client, own.PublicKey().Bytes())
}

// ClientKey returns K at the client: from its own key pair and the gateway's key.
func ClientKey(own *ecdh.PrivateKey, gateway [32]byte) ([32]byte, error) {
	return sessionKey(own, gateway[:], own.PublicKey().Bytes(), gateway[:])
}

func sessionKey(own *ecdh.PrivateKey, peer, client, gateway []byte) (key [32]byte, err error) {
	public, err := ecdh.X25519().NewPublicKey(peer)
	if err != nil {
		return key, errKey
	}
	// The shared secret of a point of low order is all zeros, which ECDH refuses
	// (RFC 7748 section 6.1).
	shared, err := own.ECDH(public)
	if err != nil {
		return key, errKey
	}
	salt := append(append(make([]byte, 0, 64), client...), gateway...)
	k, err := hkdf.Key(sha256.New, shared, salt, "gateway resume key 1", len(key))
	copy(key[:], k)
	return key, err
}
