package logwriter

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// File is a log file, which whoever rotates logs may move away.
type File struct {
	*os.File
	path string
}

// Open opens a log file to append to, and creates it if there is none: readable by its
// group, and by nobody else. A named pipe that nobody reads is an error (ENXIO), and not a
// wait for a reader, as without O_NONBLOCK (fifo(7)).
func Open(path string) (*File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|nonblock, 0o640)
	if err != nil {
		return nil, err
	}
	return &File{f, path}, nil
}

// Check tells whether Open would open a file, and makes none that stays.
func Check(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|nonblock, 0)
	if errors.Is(err, os.ErrNotExist) {
		return checkFolder(path)
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// checkFolder tells whether a file that there is not could be made: whether another one
// could be, in its folder, or in that of the file to which path is a symbolic link.
func checkFolder(path string) error {
	dir := filepath.Dir(path)
	if target, err := os.Readlink(path); err == nil {
		if !filepath.IsAbs(target) {
			target = filepath.Join(dir, target)
		}
		dir = filepath.Dir(target)
	}
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return err
	case !info.IsDir():
		return &os.PathError{Op: "open", Path: path, Err: syscall.ENOTDIR}
	}
	tmp, err := os.CreateTemp(dir, ".gateway-log-*")
	if err != nil {
		return err
	}
	_, err = tmp.WriteString("\n") // for which a full disk has no room
	return errors.Join(err, tmp.Close(), os.Remove(tmp.Name()))
}

// torn tells whether a file ends within a line, as that of a process does which was
// killed, or found no room.
func (f *File) torn() bool {
	size := sizeOf(f)
	if size <= 0 {
		return false
	}
	r, err := os.Open(f.path)
	if err != nil {
		return false
	}
	defer r.Close()
	var last [1]byte
	_, err = r.ReadAt(last[:], size-1)
	return err == nil && last[0] != '\n'
}

// sizeOf returns how long a regular file is, or -1.
func sizeOf(w io.Writer) int64 {
	f, ok := w.(interface{ Stat() (os.FileInfo, error) })
	if !ok {
		return -1
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return -1
	}
	return info.Size()
}

// Again opens the file of the same name, which may be another by now.
func (f *File) Again() (*File, error) { return Open(f.path) }

// Moved tells whether another file has its name, or none.
func (f *File) Moved() bool {
	ours, err := f.Stat()
	if err != nil {
		return false
	}
	theirs, err := os.Stat(f.path)
	return os.IsNotExist(err) || err == nil && !os.SameFile(ours, theirs)
}
