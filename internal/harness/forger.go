package harness

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"strings"
	"testing"
)

// Forger is a client of TLS 1.3 that makes records that no library would send (RFC 8446
// sections 5.2, 7.2 and 7.3). What it gets, Conn reads, which sends nothing.
type Forger struct {
	Conn   *tls.Conn
	secret []byte
	aead   cipher.AEAD
	nonce  []byte
	seq    uint64
}

// The types of records, and messages that say that new keys follow.
const (
	AlertRecord       = 21
	HandshakeRecord   = 22
	ApplicationRecord = 23

	KeyUpdate        = "\x18\x00\x00\x01\x00"
	KeyUpdateRequest = "\x18\x00\x00\x01\x01"
)

// Forge has a client begin to speak TLS whose records are forged from then on.
func Forge(t testing.TB, c net.Conn, config *tls.Config) *Forger {
	t.Helper()
	var log bytes.Buffer
	config = config.Clone()
	config.MinVersion, config.KeyLogWriter = tls.VersionTLS13, &log
	f := &Forger{Conn: Handshake(t, c, config)}
	if f.Conn.ConnectionState().CipherSuite != tls.TLS_AES_128_GCM_SHA256 {
		t.Skip("this machine prefers another cipher")
	}
	_, line, ok := strings.Cut(log.String(), "CLIENT_TRAFFIC_SECRET_0 ")
	fields := strings.Fields(line)
	if !ok || len(fields) < 2 {
		t.Fatalf("no secret in %q", &log)
	}
	secret, err := hex.DecodeString(fields[1])
	if err != nil {
		t.Fatal(err)
	}
	f.turn(secret)
	return f
}

// turn begins to use a secret.
func (f *Forger) turn(secret []byte) {
	f.secret, f.seq = secret, 0
	block, err := aes.NewCipher(f.expand("key", 16))
	if err != nil {
		panic(err)
	}
	if f.aead, err = cipher.NewGCM(block); err != nil {
		panic(err)
	}
	f.nonce = f.expand("iv", 12)
}

func (f *Forger) expand(label string, size int) []byte {
	label = "tls13 " + label
	b, err := hkdf.Expand(sha256.New, f.secret, fmt.Sprintf("%c%c%c%s%c", size>>8, size, len(label), label, 0), size)
	if err != nil {
		panic(err)
	}
	return b
}

// Record returns a record of a type.
func (f *Forger) Record(kind byte, text string) []byte {
	nonce := bytes.Clone(f.nonce)
	binary.BigEndian.PutUint64(nonce[4:], binary.BigEndian.Uint64(nonce[4:])^f.seq)
	f.seq++
	head := []byte{ApplicationRecord, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(head[3:], uint16(len(text)+1+f.aead.Overhead()))
	return f.aead.Seal(head, nonce, append([]byte(text), kind), head)
}

// Update returns a record that says that new keys follow, which then do.
func (f *Forger) Update(message string) []byte {
	b := f.Record(HandshakeRecord, message)
	f.turn(f.expand("traffic upd", sha256.Size))
	return b
}
