// Package smallfile reads the files that settings name, whatever they turn out
// to be: a mistyped name may be a disk, a pipe that nobody writes to, or a device
// that never ends.
package smallfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
	"unicode"
	"unicode/utf16"
)

// patience is how long a pipe has to bring all.
const patience = 5 * time.Second

// Read returns what a file holds, at most most bytes. A pipe is read to its end,
// unless that takes longer than 5 s or nobody writes to it: then it is empty. UTF-16
// is an error. The error names the file.
func Read(name string, most int) ([]byte, error) {
	// Without O_NONBLOCK the open of a pipe waits for a writer (fifo(7)).
	f, err := os.OpenFile(name, os.O_RDONLY|nonblock, 0)
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("%w (the user that runs the gateway must be allowed to read it, and to search its folders)", err)
	}
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
	case isUTF16(text):
		return nil, fmt.Errorf("%s is UTF-16: save it as UTF-8", name)
	}
	return text, nil
}

// isUTF16 tells whether a text begins with the byte order mark that editors on
// Windows write, and is not something else that begins alike.
func isUTF16(text []byte) bool {
	order := binary.ByteOrder(binary.LittleEndian)
	switch {
	case bytes.HasPrefix(text, []byte{0xff, 0xfe}):
	case bytes.HasPrefix(text, []byte{0xfe, 0xff}):
		order = binary.BigEndian
	default:
		return false
	}
	return bytes.IndexByte(text, 0) >= 0 || reads(text[2:], order)
}

// reads tells whether UTF-16 without a zero byte, as Chinese is, makes sense.
func reads(text []byte, order binary.ByteOrder) bool {
	if len(text) == 0 || len(text)%2 != 0 {
		return false
	}
	units := make([]uint16, 0, len(text)/2)
	for ; len(text) > 0; text = text[2:] {
		units = append(units, order.Uint16(text))
	}
	for _, r := range utf16.Decode(units) {
		if r == unicode.ReplacementChar || !unicode.IsGraphic(r) {
			return false
		}
	}
	return true
}
