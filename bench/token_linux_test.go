package main

import (
	"strings"
	"testing"
)

func TestTokensOpenAndForgedOnesAreRefused(t *testing.T) {
	gateway, err := buildGateway(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := testSuite(t, gatewayContender(gatewayName, gateway, nil), plainProxy)
	for _, w := range workloads(1) {
		if !w.kind.ofTokens() {
			continue
		}
		for _, e := range s.entrants {
			if err := s.turn(0, w, e); err != nil {
				t.Fatal(err)
			}
		}
		got := s.table.at(w.key, gatewayName)
		if got == nil || got.Failure != "" || len(got.Samples) != 1 || got.Samples[0].Cost <= 0 {
			t.Errorf("%s: %+v", w.key, got)
		}
		if other := s.table.at(w.key, ioCopyName); other != nil {
			t.Errorf("%s: who knows no tokens takes part: %+v", w.key, other)
		}
	}
}

func TestAGatewayWithoutTokensSaysSo(t *testing.T) {
	s := testSuite(t, plainProxy)
	old := *s.entrants[0]
	old.contender = &contender{name: "old", token: newMinter("/bin/false").token}
	w := workload{"token", "token", byToken, 1, 64}
	if err := s.turn(0, w, &old); err != nil {
		t.Fatal(err)
	}
	if got := s.table.at(w.key, "old"); got == nil || !strings.Contains(got.Failure, "tokens") {
		t.Errorf("got %+v", got)
	}
	if flags, err := newMinter("/bin/false").serve(t.TempDir()); len(flags) > 0 || err != nil {
		t.Errorf("%q, %v", flags, err)
	}
}

func TestARefusalIsExpectedAndNothingElse(t *testing.T) {
	for answer, want := range map[string]string{"401": "", "200": `answered "200", not "401"`, "": "closed the connection"} {
		l, err := newLoad()
		if err != nil {
			t.Fatal(err)
		}
		defer closeSocket(l.fd)
		reply := l.do(loadRequest{Op: opRefuse, Targets: []string{answering(t, answer)}, Lines: []string{"line"}, Tunnels: 2, Mode: modeEcho, Size: 64})
		if want == "" && (reply.Err != "" || reply.Units == 0 || reply.Sent != 0) || !strings.Contains(reply.Err, want) {
			t.Errorf("%q: got %+v, want the error %q", answer, reply, want)
		}
	}
}

func TestAForgedTokenDiffersInItsTagAlone(t *testing.T) {
	for token, want := range map[string]string{"eyJ..a.b.Tag": "eyJ..a.b.Aag", "eyJ.a.Ag": "eyJ.a.Bg"} {
		if got := forge(token); got != want {
			t.Errorf("forge(%s) = %s, want %s", token, got, want)
		}
	}
}
