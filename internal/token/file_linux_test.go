package token

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"
)

// As in -token-keys <(decrypt keys.json): nothing more can be read from a pipe.
func TestAPipeIsReadOnce(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fmt.Fprint(w, allKeys)
	w.Close()
	log := new(bytes.Buffer)
	k, err := Load(fmt.Sprintf("/dev/fd/%d", r.Fd()), "", slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := k.Open([]byte(enc(good)), clock.Add(time.Duration(i)*time.Second)); err != nil {
			t.Error(err)
		}
	}
	if log.Len() > 0 {
		t.Errorf("logged: %s", log)
	}
}
