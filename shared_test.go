package main

import (
	"testing"

	"gateway/internal/harness"
)

// What these tests share with those of other packages.

func selfSigned(t testing.TB, certFile, keyFile string) {
	t.Helper()
	harness.SelfSigned(t, certFile, keyFile)
}

func startGreeter(t testing.TB, greeting string) string {
	t.Helper()
	return harness.StartGreeter(t, greeting)
}
