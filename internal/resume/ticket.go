package resume

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
)

// Ticket names a session. Only gateways can read it.
type Ticket struct {
	Boot  [8]byte // the process that owns the session
	ID    [8]byte
	Owner string // ip:port where other gateways reach it; or empty
}

// Tickets seals and opens tickets. It never changes.
type Tickets struct{ keys []cipher.AEAD }

const nonceSize = 12

// NewTickets returns what seals with the first secret and opens with each.
func NewTickets(secrets [][]byte) (*Tickets, error) {
	t := new(Tickets)
	for _, s := range secrets {
		key, err := hkdf.Key(sha256.New, s, nil, "gateway resume ticket 1", 32)
		if err != nil {
			return nil, err
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			return nil, err
		}
		t.keys = append(t.keys, aead)
	}
	return t, nil
}

// Seal returns the text of a ticket.
func (t *Tickets) Seal(k Ticket) string {
	var nonce [nonceSize]byte
	rand.Read(nonce[:])
	return t.sealWith(nonce, k)
}

func (t *Tickets) sealWith(nonce [nonceSize]byte, k Ticket) string {
	plain := append(append(k.Boot[:], k.ID[:]...), k.Owner...)
	return encoding.EncodeToString(t.keys[0].Seal(nonce[:], nonce[:], plain, nil))
}

// Open reads the text of a ticket.
func (t *Tickets) Open(text string) (k Ticket, ok bool) {
	if len(text) > MaxTicket {
		return k, false
	}
	b, ok := decode(text)
	if !ok || len(b) < nonceSize {
		return k, false
	}
	for _, key := range t.keys {
		plain, err := key.Open(nil, b[:nonceSize], b[nonceSize:], nil)
		if err != nil || len(plain) < len(k.Boot)+len(k.ID) {
			continue
		}
		n := copy(k.Boot[:], plain)
		n += copy(k.ID[:], plain[n:])
		k.Owner = string(plain[n:])
		return k, true
	}
	return k, false
}
