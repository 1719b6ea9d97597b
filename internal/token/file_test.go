package token

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// The sets of two moments, and a token for each.
var (
	oldSet, newSet     = set(encJWK(`,"kid":"old"`)), set(encJWK(`,"kid":"new"`))
	oldToken, newToken = jwe(`{"alg":"dir","enc":"A256GCM","kid":"old"}`, good, encSecret),
		jwe(`{"alg":"dir","enc":"A256GCM","kid":"new"}`, good, encSecret)
)

// watched are keys of a file that a test changes.
type watched struct {
	*Keys
	t    *testing.T
	file string
	log  *bytes.Buffer
	now  time.Time
}

func watch(t *testing.T, set string) *watched {
	w := &watched{t: t, file: fileOf(t, set), log: new(bytes.Buffer), now: clock}
	var err error
	w.Keys, err = Load(w.file, "", slog.New(slog.NewTextHandler(w.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// expect opens both tokens a second later.
func (w *watched) expect(old, new error) {
	w.t.Helper()
	w.now = w.now.Add(time.Second)
	w.expectNow(old, new)
}

// expectNow opens both tokens.
func (w *watched) expectNow(old, new error) {
	w.t.Helper()
	if _, err := w.Open([]byte(oldToken), w.now); err != old {
		w.t.Errorf("the old token: %v, want %v", err, old)
	}
	if _, err := w.Open([]byte(newToken), w.now); err != new {
		w.t.Errorf("the new token: %v, want %v", err, new)
	}
}

// logged counts the lines of the log that hold the text, and forgets the log.
func (w *watched) logged(text string, want int) {
	w.t.Helper()
	if n := strings.Count(w.log.String(), text); n != want {
		w.t.Errorf("%q is logged %d times, want %d: %s", text, n, want, w.log)
	}
	w.log.Reset()
}

// replace renames a new file over the watched one.
func (w *watched) replace(set string) {
	w.t.Helper()
	next := filepath.Join(filepath.Dir(w.file), "next")
	write(w.t, next, set)
	if err := os.Rename(next, w.file); err != nil {
		w.t.Fatal(err)
	}
}

// age makes the file look as if it had been written an hour ago.
func age(t *testing.T, file string) {
	t.Helper()
	then := time.Now().Add(-time.Hour)
	if err := os.Chtimes(file, then, then); err != nil {
		t.Fatal(err)
	}
}

func TestAChangedFileIsReadWithinASecond(t *testing.T) {
	for name, change := range map[string]func(w *watched){
		"renamed over":     func(w *watched) { w.replace(newSet) },
		"written in place": func(w *watched) { write(w.t, w.file, newSet) },
		"of another size": func(w *watched) {
			stamp := w.seen.info.ModTime()
			write(w.t, w.file, newSet+"\n")
			if err := os.Chtimes(w.file, stamp, stamp); err != nil {
				w.t.Fatal(err)
			}
		},
		"of another age": func(w *watched) { write(w.t, w.file, newSet); age(w.t, w.file) },
		"renamed over by an equal": func(w *watched) {
			w.replace(newSet)
			info := w.seen.info
			if err := os.Chtimes(w.file, info.ModTime(), info.ModTime()); err != nil {
				w.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := watch(t, oldSet)
			age(t, w.file)
			w.expect(nil, ErrKey)
			w.expect(nil, ErrKey)
			change(w)
			w.expectNow(nil, ErrKey)
			w.expect(ErrKey, nil)
			w.expect(ErrKey, nil)
			w.logged("token keys changed", 1)
			w.replace(oldSet)
			w.expect(nil, ErrKey)
			w.logged("token keys changed", 1)
		})
	}
}

// Two writes may come so close together that the file's time is the same. So
// what was written just now is read again; here, "just now" is yet to come.
func TestASecondWriteAtTheSameTimeIsSeen(t *testing.T) {
	w := watch(t, oldSet)
	stamp := time.Now().Add(time.Hour)
	for i, set := range []string{oldSet, newSet} { // of the same size
		write(t, w.file, set)
		if err := os.Chtimes(w.file, stamp, stamp); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			w.expect(nil, ErrKey)
		}
	}
	w.expect(ErrKey, nil)
	w.logged("token keys changed", 1)
}

func TestAFileThatLooksTheSameIsNotRead(t *testing.T) {
	w := watch(t, oldSet)
	age(t, w.file)
	w.expect(nil, ErrKey)
	stamp := w.seen.info.ModTime()
	write(t, w.file, newSet)
	if err := os.Chtimes(w.file, stamp, stamp); err != nil {
		t.Fatal(err)
	}
	w.expect(nil, ErrKey)
	w.logged("", 1) // nothing
}

func TestABadChangeLeavesTheOldKeysAndIsLoggedOnce(t *testing.T) {
	w := watch(t, oldSet)
	for range 2 {
		write(t, w.file, `{"keys":[`)
		for range 3 {
			w.expect(nil, ErrKey)
		}
		w.logged("cannot read", 1)
		write(t, w.file, `{"keys":[ `) // another one with the same fault
		for range 3 {
			w.expect(nil, ErrKey)
		}
		w.logged("cannot read", 1)
		write(t, w.file, set(encJWK(`,"kid":"new"`), edJWK(`,"d":"AA"`)))
		w.expect(nil, ErrKey)
		w.logged("remove d", 1)
		write(t, w.file, set())
		w.expect(nil, ErrKey)
		w.logged("holds no keys", 1)
	}
	write(t, w.file, newSet)
	w.expect(ErrKey, nil)
	w.logged("token keys changed", 1)
}

func TestAMissingFileLeavesTheOldKeysAndIsLoggedOnce(t *testing.T) {
	w := watch(t, oldSet)
	for range 2 {
		if err := os.Remove(w.file); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			w.expect(nil, ErrKey)
		}
		w.logged("cannot read", 1)
		write(t, w.file, oldSet)
		w.expect(nil, ErrKey)
		w.logged("cannot read", 0)
	}
	w.replace(newSet)
	w.expect(ErrKey, nil)
}

func TestADirectoryInTheFilesPlaceChangesNothing(t *testing.T) {
	w := watch(t, oldSet)
	if err := os.Remove(w.file); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(w.file, 0o700); err != nil {
		t.Fatal(err)
	}
	w.expect(nil, ErrKey)
}

// As Kubernetes mounts secrets: the file is a link into a directory that is a
// link, and the latter is exchanged.
func TestAnExchangedLinkIsFollowed(t *testing.T) {
	dir := t.TempDir()
	for name, set := range map[string]string{"old": oldSet, "new": newSet} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name, "keys.json"), set)
	}
	link := func(to, name string) {
		t.Helper()
		if err := os.Symlink(to, filepath.Join(dir, "link")); err != nil {
			t.Skip(err) // Windows lets few make links
		}
		if err := os.Rename(filepath.Join(dir, "link"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("old", "data")
	k, err := Load(filepath.Join(dir, "data", "keys.json"), "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w := &watched{Keys: k, t: t, now: clock}
	w.expect(nil, ErrKey)
	link("new", "data")
	w.expect(ErrKey, nil)
}

func TestAClockThatIsSetBackIsNoReasonNotToLook(t *testing.T) {
	w := watch(t, oldSet)
	w.expect(nil, ErrKey)
	w.replace(newSet)
	w.now = w.now.Add(-10 * time.Second)
	w.expectNow(ErrKey, nil)
}

func TestAKeyThatNoTokenCanPickIsLogged(t *testing.T) {
	w := watch(t, set(encJWK(""), encJWK(`,"kid":"a"`), sigJWK("")))
	w.logged("no token can pick", 1)
	write(t, w.file, set(edJWK(""), edJWK("")))
	w.expect(ErrKey, ErrKey)
	w.logged("no token can pick", 2)
	if w.Len() != 2 {
		t.Errorf("Len() = %d, want 2", w.Len())
	}
}

func TestKeysMayChangeWhileTokensAreOpened(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no file can be renamed over one that is being read")
	}
	w := watch(t, oldSet)
	w.Keys.log = slog.New(slog.DiscardHandler)
	const rounds = 50
	var openers sync.WaitGroup
	for range 4 {
		openers.Go(func() {
			for i := range rounds * 4 {
				now := clock.Add(time.Duration(i) * time.Second)
				_, old := w.Open([]byte(oldToken), now)
				_, new := w.Open([]byte(newToken), now)
				if old != nil && old != ErrKey || new != nil && new != ErrKey {
					t.Errorf("Open: %v, %v", old, new)
				}
			}
		})
	}
	for range rounds {
		w.replace(newSet)
		w.replace(oldSet)
	}
	w.replace(newSet)
	openers.Wait()
	w.now = clock.Add(rounds * 5 * time.Second)
	w.expectNow(ErrKey, nil)
}
