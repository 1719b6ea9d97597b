// Package smallfile reads the files that settings name, whatever they turn out
// to be: a mistyped name may be a disk, a pipe that nobody writes to, or a device
// that never ends.
package smallfile

import (
	"fmt"
	"io"
	"os"
	"time"
)

// patience is how long a pipe has to bring all.
const patience = 5 * time.Second

// Read returns what a file holds, at most most bytes. A pipe is read to its end,
// unless that takes longer than 5 s or nobody writes to it: then it is empty. The
// error names the file.
func Read(name string, most int) ([]byte, error) {
	// Without O_NONBLOCK the open of a pipe waits for a writer (fifo(7)).
	f, err := os.OpenFile(name, os.O_RDONLY|nonblock, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	f.SetReadDeadline(time.Now().Add(patience)) // which regular files do not have, nor need
	text, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	switch {
	case os.IsTimeout(err):
		return nil, fmt.Errorf("%s is a pipe that has not ended after %v", name, patience)
	case err != nil:
		return nil, err
	case len(text) > most:
		return nil, fmt.Errorf("%s is larger than %d KiB: is it the right file?", name, most>>10)
	}
	return text, nil
}
