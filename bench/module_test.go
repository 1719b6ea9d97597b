package main

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// pins returns the lines of a go.mod that name a version.
func pins(t *testing.T, file string) []string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(strings.TrimPrefix(line, "require "))
		if fields := strings.Fields(line); len(fields) >= 2 && fields[0] != "module" && fields[1] != "(" {
			list = append(list, line)
		}
	}
	return list
}

// One go.mod must not be updated without the other: the benchmark and the
// gateway are built by the same Go.
func TestTheModulePinsWhatTheGatewaysDoes(t *testing.T) {
	own, gateways := pins(t, "go.mod"), pins(t, "../go.mod")
	if len(own) < 3 {
		t.Fatalf("there are %q", own)
	}
	for _, pin := range own {
		if !slices.Contains(gateways, pin) {
			t.Errorf("%q is not in the gateway's go.mod", pin)
		}
	}
}
