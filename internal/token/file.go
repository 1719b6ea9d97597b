package token

import (
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"time"

	"gateway/internal/smallfile"
)

const (
	// maxFile bounds a key file in bytes: some thousand keys.
	maxFile = 1 << 20

	// settled is the age from which on a file's time of modification tells
	// versions apart. Within it, a second write may bear the same time as the
	// first: file systems count in steps of up to 2 seconds (FAT).
	settled = 2 * time.Second
)

// version is what is remembered of the file as it was last read.
type version struct {
	info  os.FileInfo // nil: look again
	read  time.Time
	sum   [sha256.Size]byte
	fault string // logged, and not yet over
}

// Load reads a JWK Set. Tokens are for the audience, unless that is "". The
// error names the file and the key at fault, says what to do, and holds no
// secret.
//
// When the file changes, Open takes up its new keys. A change that cannot be
// read is logged once and leaves the keys as they are; so the file is best
// replaced by renaming another one over it. A file that is not a regular one,
// a pipe for instance, is read only here.
func Load(file, audience string, log *slog.Logger) (*Keys, error) {
	k := &Keys{file: file, audience: audience, log: log}
	if _, err := k.read(); err != nil {
		return nil, err
	}
	return k, nil
}

// Len returns the number of keys.
func (k *Keys) Len() int { return len(k.set.Load().keys) }

// Reloads returns how many changes of the file were taken up, and how many could not
// be read.
func (k *Keys) Reloads() (ok, failed int64) { return k.reloaded.Load(), k.failed.Load() }

// refresh reads the file again if it has changed. It looks at most once in a
// second of the clock. It compares seconds for equality, so that a clock that
// is set back does not stop it.
func (k *Keys) refresh(now time.Time) {
	second := now.Unix()
	last := k.looked.Load()
	if last == second || !k.looked.CompareAndSwap(last, second) {
		return
	}
	if !k.mu.TryLock() {
		return // a slow disk: another call is still at it
	}
	defer k.mu.Unlock()
	info, err := os.Stat(k.file)
	if err == nil && (!info.Mode().IsRegular() || k.seen.is(info)) {
		return
	}
	changed, err := k.read()
	switch {
	case err != nil && err.Error() != k.seen.fault:
		k.seen.fault = err.Error()
		k.failed.Add(1)
		k.log.Error("cannot read the changed token keys, the old ones stay", "err", err)
	case changed:
		k.reloaded.Add(1)
		k.log.Info("token keys changed", "file", k.file, "keys", k.Len())
	}
}

// is tells whether the file is surely the one that was read.
func (v *version) is(info os.FileInfo) bool {
	return v.info != nil && os.SameFile(v.info, info) &&
		v.info.Size() == info.Size() && v.info.ModTime().Equal(info.ModTime()) &&
		v.read.Sub(info.ModTime()) > settled
}

// read takes the keys from the file. A text that was read before changes
// nothing, whether it was good or bad.
func (k *Keys) read() (changed bool, err error) {
	v := &k.seen
	// What is known of the file is older than its text: if it changes in
	// between, it is read once more.
	v.read = time.Now()
	if v.info, err = os.Stat(k.file); err != nil {
		return false, err
	}
	data, err := smallfile.Read(k.file, maxFile)
	if err != nil {
		v.info = nil
		return false, err
	}
	v.fault = ""
	sum := sha256.Sum256(data)
	if sum == v.sum {
		return false, nil
	}
	v.sum = sum
	set, err := parseSet(data)
	if err != nil {
		return false, fmt.Errorf("%s: %w", k.file, err)
	}
	for i, key := range set.keys {
		if !set.reachable(key) {
			k.log.Warn("no token can pick a token key: it has no kid and is not the only one for its algorithm",
				"file", k.file, "key", i+1, "algorithm", key.String())
		}
	}
	k.set.Store(set)
	return true, nil
}
