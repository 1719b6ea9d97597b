package smallfile

import (
	"crypto/sha256"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// interval is the least time between two looks at the files.
	interval = time.Second
	// settled is the age from which on a file's time of modification tells
	// versions apart. Within it, a second write may bear the same time as the
	// first: file systems count in steps of up to 2 seconds (FAT).
	settled = 2 * time.Second
)

// Watch tells when one of some files has changed, to those who ask often. It needs no
// closing: it has neither goroutine nor timer. Its methods are safe for concurrent
// use; those of a nil Watch say that nothing has.
//
// Contents are compared where times and sizes say nothing, so it makes no difference
// whether a file was rewritten, renamed or lies behind a switched symbolic link. What
// is not a regular file, a pipe for instance, is never read again.
type Watch struct {
	start  time.Time
	looked atomic.Int64 // when, in ns since start
	mu     sync.Mutex
	files  []watched
}

// watched is what is remembered of a file as it was last seen.
type watched struct {
	name string
	most int
	info os.FileInfo // nil: there was none, or it could not be read
	read time.Time
	sum  [sha256.Size]byte
}

// NewWatch returns a Watch of files of at most most bytes, as they are now.
func NewWatch(most int, names ...string) *Watch {
	w := &Watch{start: time.Now()}
	for _, name := range names {
		f := watched{name: name, most: most}
		f.changed()
		w.files = append(w.files, f)
	}
	return w
}

// Changed tells whether a file has changed since it last did so, or since NewWatch.
// It looks at most once in a second, and one caller at a time.
func (w *Watch) Changed() bool {
	if !w.begin() {
		return false
	}
	defer w.mu.Unlock()
	return w.look()
}

// Follow is Changed for callers who must not wait for a disk, nor for what they do about a
// change: both are done in a goroutine, by one at a time. changed is called there if a file
// has.
func (w *Watch) Follow(changed func()) {
	if !w.begin() {
		return
	}
	go func() {
		defer w.mu.Unlock()
		if w.look() {
			changed()
		}
	}()
}

// begin tells whether it is time to look, and locks mu if so.
func (w *Watch) begin() bool {
	if w == nil {
		return false
	}
	now := int64(time.Since(w.start))
	last := w.looked.Load()
	// The last: a slow disk, another call is still at it.
	return now-last >= int64(interval) && w.looked.CompareAndSwap(last, now) && w.mu.TryLock()
}

// look looks at the files. mu is locked.
func (w *Watch) look() bool {
	changed := false
	for i := range w.files {
		changed = w.files[i].changed() || changed
	}
	return changed
}

// changed looks at the file, and remembers what it sees.
func (f *watched) changed() bool {
	info, err := os.Stat(f.name)
	if err == nil && !info.Mode().IsRegular() {
		return false
	}
	if err == nil && f.info != nil && os.SameFile(f.info, info) && f.info.Size() == info.Size() &&
		f.info.ModTime().Equal(info.ModTime()) && f.read.Sub(info.ModTime()) > settled {
		return false
	}
	// What is known of the file is older than its text: if it changes in between, it
	// is looked at once more.
	read, sum := time.Now(), [sha256.Size]byte{}
	text, rerr := []byte(nil), err
	if err == nil {
		text, rerr = Read(f.name, f.most)
	}
	if rerr != nil {
		info, text = nil, []byte(rerr.Error())
	}
	sum = sha256.Sum256(text)
	changed := sum != f.sum
	f.info, f.read, f.sum = info, read, sum
	return changed
}
