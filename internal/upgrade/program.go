package upgrade

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
)

// OwnProgram returns the path by which this process was started, and its folder. A
// path that leads through a symbolic link stays one: an upgrade may be a link that
// leads elsewhere.
func OwnProgram() (program, dir string) {
	dir, _ = os.Getwd()
	program, err := exec.LookPath(os.Args[0])
	if err == nil {
		program, err = filepath.Abs(program)
	}
	self, unknown := os.Executable() // without /proc, for one
	if unknown != nil && err == nil {
		return program, dir
	}
	ours, err1 := os.Stat(self)
	named, err2 := os.Stat(program)
	if err != nil || err1 != nil || err2 != nil || !os.SameFile(ours, named) {
		program = self
	}
	return program, dir
}

var errFirstProcess = errors.New("this is process 1 of its container, which ends with it: replace the container, or run it with an init (docker run --init)")

// Replace starts a program with copies of sockets, and returns it once it serves beside
// this process. One that does not, by the end of ctx, is killed.
func Replace(ctx context.Context, p Program, sockets []Socket, log *slog.Logger) (*Successor, error) {
	if os.Getpid() == 1 {
		return nil, errFirstProcess
	}
	s, err := Start(p, sockets)
	if err != nil {
		return nil, err
	}
	log.Info("upgrading", "program", p.Path, "new_pid", s.PID())
	name, err := s.Ready(ctx)
	if err == nil {
		log.Info("the new process is ready", "new_pid", s.PID(), "is", name)
		err = s.Serve(ctx)
	}
	if err != nil {
		s.Never()
		s.Kill() // it may hang
		s.Close()
		return nil, err
	}
	return s, nil
}
