package main

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// Tokens in place of sealed lines: what opening one costs beside a sealed line,
// and what one that does not open costs. Only gateways know them.

// minter makes tokens with a gateway's own -keygen and -seal.
type minter struct {
	path string // of the gateway
	keys func() ([]byte, error)
}

func newMinter(path string) *minter {
	return &minter{path, sync.OnceValues(func() ([]byte, error) { return exec.Command(path, "-keygen").Output() })}
}

// serve writes the keys into a contender's folder and returns the flag that
// names them; none for a gateway that is too old for tokens.
func (m *minter) serve(dir string) ([]string, error) {
	keys, err := m.keys()
	if err != nil {
		return nil, nil
	}
	file, err := keyFile(dir, keys)
	return []string{"-token-keys=" + file}, err
}

// token makes a token for addr.
func (m *minter) token(addr string) (string, error) {
	keys, err := m.keys()
	if err != nil {
		return "", err
	}
	file, err := keyFile("", keys)
	if err != nil {
		return "", err
	}
	defer os.Remove(file)
	out, err := exec.Command(m.path, "-token-keys="+file, "-ttl=24h", "-seal="+addr).Output()
	return strings.TrimSpace(string(out)), err
}

func keyFile(dir string, keys []byte) (name string, err error) {
	f, err := os.CreateTemp(dir, "keys-*.json")
	if err != nil {
		return "", err
	}
	_, err = f.Write(keys)
	return f.Name(), errors.Join(err, f.Close())
}

// forge changes a token so that it costs the most that a bad one of its key can:
// only the tag is wrong, which shows behind all the work.
func forge(token string) string {
	tag := strings.LastIndexByte(token, '.') + 1
	other := "A"
	if token[tag] == 'A' {
		other = "B"
	}
	return token[:tag] + other + token[tag+1:]
}

// asks returns what clients of a workload send first, of which there is enough for a time.
func (e *entrant) asks(w workload, within time.Duration) (lines []string, err error) {
	if w.kind.ofNames() {
		return e.named.linesFor(w.kind, within)
	}
	if !w.kind.ofTokens() {
		return e.lines, nil
	}
	for _, token := range e.tokens {
		if w.kind == badToken {
			token = forge(token)
		}
		lines = append(lines, token)
	}
	if lines == nil {
		return nil, errors.New("it does not know tokens")
	}
	return lines, nil
}
