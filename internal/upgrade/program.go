package upgrade

import (
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
	self, _ := os.Executable()
	ours, err1 := os.Stat(self)
	named, err2 := os.Stat(program)
	if err != nil || err1 != nil || err2 != nil || !os.SameFile(ours, named) {
		program = self
	}
	return program, dir
}
