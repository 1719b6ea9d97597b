package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The addresses to listen on: HOST:PORT, or unix:PATH. A Unix socket is a file that
// stays when its process dies, and binding fails as long as it is there. So a file
// that nobody listens on is replaced; somebody else's socket is left alone.

// UnixPath returns the path of a unix:PATH, and whether addr is one.
func UnixPath(addr string) (path string, ok bool) { return strings.CutPrefix(addr, "unix:") }

// CheckAddr tells what is wrong with the form of an address that is not HOST:PORT.
func CheckAddr(addr string) error {
	path, _ := UnixPath(addr)
	switch {
	case path == "":
		return errors.New("want unix:PATH")
	case path[0] == '@' || path[0] == 0:
		return errors.New("want a path after unix: (an abstract socket has no mode, so anybody could use it)")
	case len(path) > pathMax:
		return fmt.Errorf("want a path of at most %d bytes", pathMax)
	}
	return nil
}

// pathMax is the longest path of a Unix socket, in bytes (unix(7), less on some
// systems).
const pathMax = 103

// ListenUnix listens on a Unix socket that only its owner can use.
func ListenUnix(path string) (net.Listener, error) {
	unlock, err := lockDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer unlock()
	ln, err := bind(path)
	if errors.Is(err, syscall.EADDRINUSE) {
		if err = removeStale(path); err == nil {
			ln, err = bind(path)
		}
	}
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, err
	}
	own, err := os.Lstat(path)
	if err != nil {
		ln.Close()
		return nil, err
	}
	return &unixListener{UnixListener: ln, path: path, own: own}, nil
}

func bind(path string) (*net.UnixListener, error) {
	// Between bind and chmod anybody could connect, but for this.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return makePrivate(c) }}
	ln, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	u := ln.(*net.UnixListener)
	u.SetUnlinkOnClose(false)
	return u, nil
}

// removeStale removes a socket that nobody listens on any more.
func removeStale(path string) error {
	if err := checkFree(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// checkFree tells why a path cannot be taken: something is there that is not a socket on
// which nobody listens any more.
func checkFree(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s exists and is no socket: remove it or name another", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
		return fmt.Errorf("another process listens on %s: stop it, or give each a path of its own", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s exists, and it does not show whether somebody listens there: %w", path, err)
	}
	return nil
}

// CheckUnix sees whether a Unix socket could be made at path, and makes none.
func CheckUnix(path string) error {
	if err := CheckAddr("unix:" + path); err != nil {
		return err
	}
	if err := checkFree(path); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	tmp.Close()
	return os.Remove(tmp.Name())
}

// unixListener removes its file when it is closed, unless that is somebody else's by
// now.
type unixListener struct {
	*net.UnixListener
	path string
	own  fs.FileInfo
	once sync.Once
}

// Inherited returns the listener on a Unix socket that this process has of another
// one. When it is closed, it removes the file as the other's would have.
func Inherited(ln net.Listener) net.Listener {
	u, ok := ln.(*net.UnixListener)
	if !ok {
		return ln
	}
	u.SetUnlinkOnClose(false)
	path := u.Addr().String()
	own, err := os.Lstat(path)
	if err != nil {
		return ln // nobody finds it there
	}
	return &unixListener{UnixListener: u, path: path, own: own}
}

// Leave has a listener's file stay when it is closed: another process listens on the
// same socket.
func Leave(ln net.Listener) {
	if u, ok := ln.(*unixListener); ok {
		u.once.Do(func() {})
	}
}

func (l *unixListener) Close() error {
	l.once.Do(func() {
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.own) {
			os.Remove(l.path)
		}
	})
	return l.UnixListener.Close()
}
