package main

import (
	"bytes"
	"regexp"
	"testing"
)

func TestUpgradesAreMeasured(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds the gateway")
	}
	var out, progress bytes.Buffer
	if code := run([]string{"-namespace=false", "-only=" + gatewayName, "-upgrades=2"}, &out, &progress); code != 0 {
		t.Fatalf("code %d\n%s\n%s", code, &out, &progress)
	}
	row := regexp.MustCompile(`(?m)^\| gateway \| SIGUSR2 \| 2 of 2 \| [\d.]+, [\d.]+ ms \| [\d.]+, [\d.]+ ms \| 0 \| [1-9]\d* \| 0 \|$`)
	if !row.Match(out.Bytes()) {
		t.Errorf("no row of two upgrades that nobody noticed:\n%s", &out)
	}
	if code := run([]string{"-upgrades=-1"}, &out, &progress); code != exitUsage {
		t.Errorf("-upgrades=-1: code %d", code)
	}
}
