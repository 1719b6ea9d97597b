// Package secretfile reads files that hold secrets. No error of it holds one.
package secretfile

import (
	"bytes"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"gateway/internal/smallfile"
)

// MaxSize bounds such a file, in bytes.
const MaxSize = 1 << 20

// maxLines bounds the secrets in one.
const maxLines = 100

// Lines reads a file of secrets, one a line and at least one. Blank lines and those
// that begin with # are skipped.
func Lines(name string) ([][]byte, error) {
	text, err := smallfile.Read(name, MaxSize)
	if err != nil {
		return nil, err
	}
	if bytes.IndexByte(text, 0) >= 0 { // UTF-16 without its mark is full of them
		return nil, fmt.Errorf("%s holds a zero byte: save it as UTF-8", name)
	}
	if isMac(string(text)) {
		return nil, fmt.Errorf("%s has lines that end in CR alone, and would be one secret: save it with LF or CRLF", name)
	}
	var secrets [][]byte
	for line := range strings.Lines(strings.TrimPrefix(string(text), "\ufeff")) {
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		secrets = append(secrets, []byte(line))
	}
	switch {
	case len(secrets) == 0:
		return nil, fmt.Errorf("%s holds no secret: want one a line", name)
	case len(secrets) > maxLines:
		return nil, fmt.Errorf("%s holds %d secrets, want at most %d: a line that does not open costs an attempt for each", name, len(secrets), maxLines)
	}
	return secrets, nil
}

// isMac tells whether a text has the lines of old Macs. Random bytes that hold a CR are
// no text.
func isMac(s string) bool {
	return strings.Contains(strings.TrimSuffix(s, "\r"), "\r") && !strings.ContainsRune(s, '\n') && utf8.ValidString(s) &&
		!strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) && r != '\r' && r != '\t' })
}

// Word reads a file that holds a token in one word, of at least so many ASCII
// characters.
func Word(name string, least int) (string, error) {
	text, err := smallfile.Read(name, MaxSize)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(text))
	if len(token) < least || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("%s holds no token: want at least %d ASCII characters in one word (openssl rand -hex 24 makes a good one)", name, least)
	}
	return token, nil
}
