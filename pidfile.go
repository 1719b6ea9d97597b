package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"gateway/internal/filelock"
	"gateway/internal/smallfile"
)

// pidFile is this process's line in a pid file.
//
// Several gateways may run in one folder (that is what -reuse=1 is for), and
// each has a line, so that
//
//	kill `cat gateway.pid`
//
// ends them all. Beside the pid file lies a lock file. Its byte 0 is held
// while the pid file is changed, and byte N by the living process N. Lines
// whose byte nobody holds are left over from a crash or a reboot, and are
// dropped whenever the file is changed: their number may by now be a stranger.
type pidFile struct {
	path string
	lock *os.File
}

// maxSize bounds the file, in bytes: some thousand gateways.
const maxSize = 64 << 10

// lockWait bounds the wait for other gateways that change the file.
const lockWait = 5 * time.Second

// createPIDFile adds this process to the pid file at path. The caller removes it with
// remove.
func createPIDFile(path string) (*pidFile, error) { return createPIDFileInsteadOf(path, 0) }

// createPIDFileInsteadOf is createPIDFile in the place of the line of another process, which
// lives on: whoever reads the file sees one of the two, and never both.
func createPIDFileInsteadOf(path string, other int) (*pidFile, error) {
	if _, err := readPIDs(path); err != nil { // before anything is made
		return nil, explain(err)
	}
	lock, err := openLock(path)
	if err != nil {
		return nil, explain(err)
	}
	p := &pidFile{path, lock}
	if err := p.add(other); err != nil {
		lock.Close()
		return nil, explain(err)
	}
	return p, nil
}

// reclaim puts this process's line back, which was created once, in the place of
// that of another process.
func (p *pidFile) reclaim(other int) error {
	if err := p.relock(); err != nil {
		return explain(err)
	}
	return explain(p.add(other))
}

// checkPIDFile sees whether this process could add itself to the pid file at path, and
// leaves nothing behind.
func checkPIDFile(path string) error {
	if _, err := readPIDs(path); err != nil {
		return explain(err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_RDWR, 0)
	if err == nil {
		lock.Close()
	} else if !errors.Is(err, os.ErrNotExist) {
		return explain(err)
	}
	tmp, err := createBeside(path)
	if err != nil {
		return explain(err)
	}
	_, err = tmp.WriteString(strconv.Itoa(os.Getpid()) + "\n") // for which a full disk has no room
	return errors.Join(err, tmp.Close(), os.Remove(tmp.Name()))
}

// explain says of an error what to do about it; nil for none.
func explain(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w (name a file in a folder that this user may write to, or none with -pidfile=)", err)
	}
	return err
}

// createBeside creates the file that is to become the pid file at path.
func createBeside(path string) (*os.File, error) {
	return os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
}

// openLock opens the lock file and locks its byte 0.
func openLock(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return nil, err
		}
		if err := lockByte(f, 0); err != nil {
			f.Close()
			return nil, err
		}
		// While we waited, the last gateway may have removed the file that we
		// opened.
		if isCurrent(f, path) {
			return f, nil
		}
		f.Close()
	}
}

// isCurrent reports whether f is still the lock file of the pid file at path.
func isCurrent(f *os.File, path string) bool {
	ours, err1 := f.Stat()
	theirs, err2 := os.Stat(path + ".lock")
	return err1 == nil && err2 == nil && os.SameFile(ours, theirs)
}

func lockByte(f *os.File, offset int64) error {
	for deadline := time.Now().Add(lockWait); ; time.Sleep(5 * time.Millisecond) {
		ok, err := filelock.TryLock(f, offset)
		if ok {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot lock %s: %w", f.Name(), err)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s has been locked by another process for %v", f.Name(), lockWait)
		}
	}
}

// add appends this process's line, and takes that of another process out. Byte 0
// is locked before and free after.
func (p *pidFile) add(insteadOf int) error {
	pid := os.Getpid()
	if ok, err := filelock.TryLock(p.lock, int64(pid)); err != nil {
		return fmt.Errorf("cannot lock %s: %w", p.lock.Name(), err)
	} else if !ok {
		return fmt.Errorf("another process with pid %d uses %s: give each container its own -pidfile", pid, p.path)
	}
	pids, err := p.living()
	if err != nil {
		return err
	}
	pids = slices.DeleteFunc(pids, func(other int) bool { return other == insteadOf })
	if err := p.write(append(pids, pid)); err != nil {
		return err
	}
	return filelock.Unlock(p.lock, 0)
}

// relock locks byte 0 again. Somebody may have deleted the lock file, and others
// made a new one.
func (p *pidFile) relock() error {
	if isCurrent(p.lock, p.path) {
		return lockByte(p.lock, 0)
	}
	p.lock.Close()
	lock, err := openLock(p.path)
	if err != nil {
		return err
	}
	p.lock = lock
	return nil
}

// namesMe tells whether this process's line is in the file.
func (p *pidFile) namesMe() bool {
	pids, err := readPIDs(p.path)
	return err == nil && slices.Contains(pids, os.Getpid())
}

// remove takes this process's line out again, where it still stands; the last
// process removes the file.
func (p *pidFile) remove() error {
	if err := p.relock(); err != nil {
		return err
	}
	defer p.lock.Close() // drops all our locks

	pids, err := p.living()
	if err != nil {
		return err
	}
	if len(pids) > 0 {
		return p.write(pids)
	}
	if err := os.Remove(p.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// Under the lock nobody can be about to use it; who waits for byte 0 finds
	// that its file is not the current one. Windows keeps it while it is open.
	os.Remove(p.lock.Name())
	return nil
}

// living returns the pids in the file of other gateways that run.
func (p *pidFile) living() ([]int, error) {
	all, err := readPIDs(p.path)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, pid := range all {
		if pid != os.Getpid() && p.isAlive(pid) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// readPIDs returns the pids in a file; none if there is no file. It refuses
// what is no pid file, lest a mistyped name destroy it.
func readPIDs(path string) ([]int, error) {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file; -pidfile= writes none", path)
	}
	text, err := smallfile.Read(path, maxSize)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // removed since
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, field := range strings.Fields(string(text)) {
		pid, err := strconv.Atoi(field)
		if err != nil || pid <= 0 {
			return nil, fmt.Errorf("%s exists and is not a pid file: remove it or name another", path)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

func (p *pidFile) isAlive(pid int) bool {
	ok, err := filelock.TryLock(p.lock, int64(pid))
	if ok {
		filelock.Unlock(p.lock, int64(pid))
	}
	return !ok && err == nil
}

// write replaces the file in one step, so that no reader sees half of it.
func (p *pidFile) write(pids []int) error {
	tmp, err := createBeside(p.path)
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // nothing, once renamed
	var text []byte
	for _, pid := range pids {
		text = append(strconv.AppendInt(text, int64(pid), 10), '\n')
	}
	_, err = tmp.Write(text)
	// A full disk may show only when the bytes get there, and the old file must
	// not be replaced by less than all of the new one.
	err = errors.Join(err, tmp.Sync(), tmp.Chmod(0o644), tmp.Close())
	if err != nil {
		return fmt.Errorf("%s stays as it is: %w", p.path, err)
	}
	return os.Rename(tmp.Name(), p.path)
}
