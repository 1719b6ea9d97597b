package main

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/md5"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"gateway/internal/address"
	"gateway/internal/handshake"
	"gateway/internal/token"
)

// opener opens what clients bring in place of their backend's address. The rules of a
// gateway have one, and so has -open.
type opener struct {
	keys    *keyring    // of sealed lines; nil: none is opened
	tokens  *token.Keys // of tokens; nil: none is opened
	tickets bool        // of the operator's service are taken
}

// judge refuses by its beginning what is neither a sealed line nor a token, so
// that its client need not be waited for. Only where a length leads it, the
// beginning is known as such; a line is what its newline says.
func (o *opener) judge(form handshake.Form, beginning []byte) error {
	line := "U2FsdGVkX1" // saltMagic in base64
	if form == handshake.Binary {
		line = saltMagic
	}
	switch {
	case o.tokens != nil && agree(beginning, token.Start):
		return nil
	case o.tickets && agree(beginning, ticketMark):
		return nil
	case o.keys == nil:
		return errNotToken
	case agree(beginning, line):
		return nil
	}
	return errBadFormat
}

// agree tells whether b begins with s, as far as it goes.
func agree(b []byte, s string) bool {
	n := min(len(b), len(s))
	return string(b[:n]) == s[:n]
}

// open returns the route in a sealed line, a token or a ticket, which a request of the
// given form held. The error is a *refusal.
func (o *opener) open(ctx context.Context, form handshake.Form, sealed []byte) (address.Route, error) {
	switch {
	case o.tokens != nil && token.Looks(sealed):
		return openToken(o.tokens, sealed)
	case o.tickets && bytes.HasPrefix(sealed, []byte(ticketMark)):
		return openTicket(sealed[len(ticketMark):])
	case o.keys == nil:
		return address.Route{}, errNotToken
	case form == handshake.Binary:
		return o.keys.openRaw(ctx, sealed)
	}
	return o.keys.open(ctx, sealed)
}

// ticketMark begins a ticket, of which only the operator's service knows what it is
// worth, in place of a sealed line. Neither that nor a token begins so.
const ticketMark = "?"

// openTicket returns the route of a ticket: text that JSON can hold as it is.
func openTicket(ticket []byte) (address.Route, error) {
	if len(ticket) == 0 || !utf8.Valid(ticket) || bytes.ContainsFunc(ticket, unicode.IsControl) {
		return address.Route{}, errBadFormat
	}
	return address.ByTicket(string(ticket)), nil
}

func openToken(keys *token.Keys, text []byte) (address.Route, error) {
	subject, err := keys.Open(text, time.Now())
	if err != nil {
		return address.Route{}, &refusal{status: handshake.Unauthorized, reason: err.Error(), cause: err}
	}
	route, err := address.ParseRoute(subject)
	if err != nil {
		return address.Route{}, errBadAddress
	}
	return route, nil
}

// slowKDF tells whether opening a line may take milliseconds or wait its turn.
func (o *opener) slowKDF() bool { return o.keys != nil && slices.Contains(o.keys.kdfs, kdfPBKDF2) }

// A sealed line is what `openssl enc -aes-256-cbc -a -A -salt -k SECRET` makes
// of an address:
//
//	base64( "Salted__" salt[8] AES-256-CBC( PKCS#7( host:port ) ) )
//
// Key and IV come from the secret and the salt. OpenSSL before 1.1.0 (and
// CryptoJS) derived them with MD5, later versions derive them with SHA-256, and
// nothing in the line says which. So every secret is tried with every
// derivation, and the strict grammar of an address tells the right one.
//
// CBC has no authentication of its own. Whoever can tell "bad padding" from
// "bad address" can decrypt a captured line byte by byte and forge new ones
// (Vaudenay 2002). That is why open has one outcome for every failure, does
// the same work for each, and why nobody but the log learns the reason.
const (
	saltMagic = "Salted__"
	saltSize  = 8
	keySize   = 32 // AES-256
	headSize  = len(saltMagic) + saltSize

	pbkdf2Rounds = 10000 // openssl enc -pbkdf2's default
)

// Why a line did not open. It is for the log only.
var (
	errBadBase64  = unauthorized("bad_base64")  // not canonical base64
	errBadFormat  = unauthorized("bad_format")  // no salt, or not whole AES blocks
	errBadPadding = unauthorized("bad_padding") // no secret and derivation fits
	errBadAddress = unauthorized("bad_address") // something was decrypted, but no address
	errKDFBusy    = unauthorized("kdf_busy")    // the client's time ran out while it waited for -kdf=pbkdf2
	errNotToken   = unauthorized("not_token")   // a sealed line, and -legacy=0
)

// keyIV is what a derivation makes: the AES key, then the IV.
type keyIV [keySize + aes.BlockSize]byte

// kdf is a key derivation under the name it has in the -kdf flag.
type kdf string

const (
	kdfMD5    kdf = "md5"
	kdfSHA256 kdf = "sha256"
	kdfPBKDF2 kdf = "pbkdf2"
)

// derive makes the key and IV for a secret and a salt. MD5 and SHA-256 cost
// well under a microsecond; PBKDF2 costs milliseconds.
func (k kdf) derive(secret, salt []byte) keyIV {
	var out keyIV
	switch k {
	case kdfMD5:
		bytesToKey(out[:], secret, salt, func(dst, msg []byte) []byte {
			h := md5.Sum(msg)
			return append(dst, h[:]...)
		})
	case kdfSHA256:
		bytesToKey(out[:], secret, salt, func(dst, msg []byte) []byte {
			h := sha256.Sum256(msg)
			return append(dst, h[:]...)
		})
	case kdfPBKDF2:
		dk, err := pbkdf2.Key(sha256.New, string(secret), salt, pbkdf2Rounds, len(out))
		if err != nil {
			panic(err) // only for lengths that FIPS mode forbids; ours are constant
		}
		copy(out[:], dk)
	default:
		panic("unknown kdf " + string(k)) // the configuration lets none through
	}
	return out
}

// bytesToKey is OpenSSL's EVP_BytesToKey with one round:
//
//	D1 = hash(secret salt), Di = hash(Di-1 secret salt), out = D1 D2 …
func bytesToKey(out, secret, salt []byte, hash func(dst, msg []byte) []byte) {
	d := make([]byte, 0, sha256.Size)
	msg := make([]byte, 0, 128)
	for n := 0; n < len(out); n += copy(out[n:], d) {
		msg = append(append(append(msg[:0], d...), secret...), salt...)
		d = hash(d[:0], msg)
	}
}

// keyring seals and opens addresses. It is safe for concurrent use.
type keyring struct {
	secrets [][]byte // all of them open, the first seals
	kdfs    []kdf    // tried in this order, the first seals
	slow    slowKeys // guards PBKDF2
	recent  recentLines
}

// newKeyring returns a keyring for at least one secret and one derivation.
func newKeyring(secrets [][]byte, kdfs []kdf) *keyring {
	return &keyring{
		secrets: secrets,
		kdfs:    kdfs,
		recent:  recentLines{opened: make(map[string]address.Route)},
		slow: slowKeys{
			// Half of the processors, so that a flood of bad lines leaves the
			// other half to the tunnels.
			sem:    make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
			worked: make(map[slowKey]keyIV),
		},
	}
}

// seal returns the sealed line for an address or a route, without a newline,
// made with a fresh salt.
func (k *keyring) seal(to fmt.Stringer) string {
	plain := []byte(to.String())
	pad := aes.BlockSize - len(plain)%aes.BlockSize
	plain = append(plain, bytes.Repeat([]byte{byte(pad)}, pad)...)

	raw := make([]byte, headSize+len(plain))
	copy(raw, saltMagic)
	salt := raw[len(saltMagic):headSize]
	rand.Read(salt) // never fails (crypto/rand.Read)

	ki := k.kdfs[0].derive(k.secrets[0], salt)
	cipher.NewCBCEncrypter(newAES(&ki), ki[keySize:]).CryptBlocks(raw[headSize:], plain)
	return base64.StdEncoding.EncodeToString(raw)
}

// strictBase64 refuses unused bits that are not zero, so that one sealed line
// has one spelling. It still skips '\r' and '\n', which open refuses itself.
var strictBase64 = base64.StdEncoding.Strict()

// open returns the route that a sealed line holds. The line comes without
// its newline. ctx bounds only the wait for a turn at PBKDF2. Every error is
// a *refusal.
func (k *keyring) open(ctx context.Context, line []byte) (address.Route, error) {
	if route, ok := k.recent.get(line); ok {
		return route, nil
	}
	if bytes.ContainsAny(line, "\r\n") {
		return address.Route{}, errBadBase64
	}
	decoded := scratches.Get().(*[]byte)
	defer scratches.Put(decoded)
	raw := scratch(decoded, strictBase64.DecodedLen(len(line)))
	n, err := strictBase64.Decode(raw, line)
	if err != nil {
		return address.Route{}, errBadBase64
	}
	return k.decrypt(ctx, raw[:n], line)
}

// openRaw is open for what the base64 of a sealed line stands for.
func (k *keyring) openRaw(ctx context.Context, raw []byte) (address.Route, error) {
	if route, ok := k.recent.get(raw); ok {
		return route, nil
	}
	return k.decrypt(ctx, raw, raw)
}

// decrypt opens the raw bytes of a sealed line, and remembers them by the name
// under which they came.
func (k *keyring) decrypt(ctx context.Context, raw, name []byte) (address.Route, error) {
	if len(raw) < headSize+aes.BlockSize || len(raw)%aes.BlockSize != 0 ||
		!bytes.HasPrefix(raw, []byte(saltMagic)) {
		return address.Route{}, errBadFormat
	}
	salt, sealed := raw[len(saltMagic):headSize], raw[headSize:]
	decrypted := scratches.Get().(*[]byte)
	defer scratches.Put(decrypted)
	plain := scratch(decrypted, len(sealed))

	reason := errBadPadding
	for _, kdf := range k.kdfs {
		first := 0
		if kdf == kdfPBKDF2 {
			first = k.slow.start(len(k.secrets), salt)
		}
		for n := range k.secrets {
			i := (first + n) % len(k.secrets)
			ki, err := k.key(ctx, kdf, i, salt)
			if err != nil {
				return address.Route{}, err
			}
			decryptCBC(&ki, plain, sealed)
			n, padded := unpad(plain)
			// The grammar is asked whether or not the padding was right, so
			// that a wrong padding is not the quicker failure.
			route, err := address.ParseRoute(string(plain[:n]))
			switch {
			case padded && err == nil:
				if kdf == kdfPBKDF2 {
					k.slow.remember(i, salt, ki)
				}
				k.recent.put(name, route)
				return route, nil
			case padded:
				reason = errBadAddress
			}
		}
	}
	return address.Route{}, reason
}

// key derives the key for one attempt at a line.
func (k *keyring) key(ctx context.Context, kdf kdf, secret int, salt []byte) (keyIV, error) {
	if kdf != kdfPBKDF2 {
		return kdf.derive(k.secrets[secret], salt), nil
	}
	return k.slow.key(ctx, k.secrets[secret], secret, salt)
}

func newAES(ki *keyIV) cipher.Block {
	block, err := aes.NewCipher(ki[:keySize])
	if err != nil {
		panic(err) // only for a wrong key size
	}
	return block
}

// decryptCBC is cipher.NewCBCDecrypter without its allocation, which is half
// of what opening a line would leave to the collector. dst and src have the
// same length, whole blocks, and do not overlap.
func decryptCBC(ki *keyIV, dst, src []byte) {
	block := newAES(ki)
	prev := ki[keySize:]
	for i := 0; i < len(src); i += aes.BlockSize {
		block.Decrypt(dst[i:], src[i:])
		subtle.XORBytes(dst[i:i+aes.BlockSize], dst[i:i+aes.BlockSize], prev)
		prev = src[i : i+aes.BlockSize]
	}
}

// scratches are buffers for one line: what was decoded, or what was decrypted,
// which never leaves decrypt.
var scratches = sync.Pool{New: func() any { return new([]byte) }}

// scratch returns size bytes of a buffer, grown where it is too small.
func scratch(buf *[]byte, size int) []byte {
	if len(*buf) < size {
		*buf = make([]byte, size)
	}
	return (*buf)[:size]
}

// unpad checks PKCS#7 padding in constant time (RFC 5652 section 6.3). It
// returns the length of the text before the padding, or all of it and false.
func unpad(plain []byte) (n int, ok bool) {
	tail := plain[len(plain)-aes.BlockSize:]
	pad := int(tail[aes.BlockSize-1])
	good := subtle.ConstantTimeLessOrEq(1, pad) & subtle.ConstantTimeLessOrEq(pad, aes.BlockSize)
	for i, b := range tail {
		inPad := subtle.ConstantTimeLessOrEq(aes.BlockSize-i, pad)
		good &= subtle.ConstantTimeSelect(inPad, subtle.ConstantTimeByteEq(b, byte(pad)), 1)
	}
	return len(plain) - subtle.ConstantTimeSelect(good, pad, 0), good == 1
}

// slowKeys keeps PBKDF2 from becoming a way to buy milliseconds of CPU with a
// cheap line: few derivations run at once, and keys that once opened an
// address are kept, so that a line in use costs its derivation only once.
type slowKeys struct {
	sem chan struct{} // holds a token for each derivation that runs

	mu     sync.Mutex
	worked map[slowKey]keyIV
}

// slowKey names a derived key without keeping the secret in it.
type slowKey struct {
	secret int
	salt   [saltSize]byte
}

// maxSlowKeys bounds the cache: about 100 KiB.
const maxSlowKeys = 1024

func (s *slowKeys) key(ctx context.Context, secret []byte, index int, salt []byte) (keyIV, error) {
	s.mu.Lock()
	ki, ok := s.worked[slowKey{index, [saltSize]byte(salt)}]
	s.mu.Unlock()
	if ok {
		return ki, nil
	}
	select {
	case s.sem <- struct{}{}:
		defer func() { <-s.sem }()
		return kdfPBKDF2.derive(secret, salt), nil
	case <-ctx.Done():
		return keyIV{}, errKDFBusy
	}
}

// start returns the secret to begin with: the one whose key is kept, so that a
// line in use costs no derivation of the secrets before it either.
func (s *slowKeys) start(secrets int, salt []byte) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range secrets {
		if _, ok := s.worked[slowKey{i, [saltSize]byte(salt)}]; ok {
			return i
		}
	}
	return 0
}

// remember keeps a key that opened an address. A full cache gives up an
// arbitrary entry: which one matters little, and no order has to be kept.
func (s *slowKeys) remember(index int, salt []byte, ki keyIV) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := slowKey{index, [saltSize]byte(salt)}
	if _, ok := s.worked[key]; !ok && len(s.worked) >= maxSlowKeys {
		for k := range s.worked {
			delete(s.worked, k)
			break
		}
	}
	s.worked[key] = ki
}

// recentLines remembers lines that opened. All players of a server may hold
// the same line, and after a network failure all of them come back at once.
// Only good lines get in, so nobody without the secret can push one out.
type recentLines struct {
	mu     sync.Mutex
	opened map[string]address.Route
}

// Both bounds together keep it under 64 KiB.
const (
	maxRecentLines  = 256
	maxRecentLength = 128 // bytes; enough for the longest IPv6 literal
)

func (r *recentLines) get(line []byte) (address.Route, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	route, ok := r.opened[string(line)]
	return route, ok
}

func (r *recentLines) put(line []byte, route address.Route) {
	if len(line) > maxRecentLength {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.opened) >= maxRecentLines {
		for l := range r.opened { // an arbitrary one
			delete(r.opened, l)
			break
		}
	}
	r.opened[string(line)] = route
}

// parseKDFs reads a list of key derivations, each at most once.
func parseKDFs(s string) ([]kdf, error) {
	var list []kdf
	for name := range strings.SplitSeq(s, ",") {
		k := kdf(name)
		if k != kdfMD5 && k != kdfSHA256 && k != kdfPBKDF2 || slices.Contains(list, k) {
			return nil, errors.New("want md5, sha256 and pbkdf2, each at most once, separated by commas")
		}
		list = append(list, k)
	}
	return list, nil
}

func joinKDFs(list []kdf) string {
	names := make([]string, len(list))
	for i, k := range list {
		names[i] = string(k)
	}
	return strings.Join(names, ",")
}
