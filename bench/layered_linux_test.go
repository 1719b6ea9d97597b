package main

import (
	"crypto/tls"
	"errors"
	"strings"
	"testing"
)

func TestTunnelsRestInEveryLayer(t *testing.T) {
	gateway, err := buildGateway(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := testSuite(t, gatewayContender(gatewayName, gateway, nil), plainProxy)
	all := restingOver()
	if len(all) != 3 {
		t.Fatalf("there are %v", all)
	}
	for _, w := range all {
		for _, e := range s.entrants {
			if err := s.turn(0, w, e); err != nil {
				t.Fatal(err)
			}
		}
		for _, row := range []string{w.key, w.key + afterBurst} {
			got := s.table.at(row, gatewayName)
			if got == nil || got.Failure != "" || len(got.Samples) != 1 {
				t.Errorf("%s: %+v", row, got)
				continue
			}
			if one := got.Samples[0]; one.Descriptors != 2 || one.Resident < 1<<20 {
				t.Errorf("%s: %+v", row, one)
			}
			if other := s.table.at(row, ioCopyName); other != nil {
				t.Errorf("%s: who speaks no such thing takes part: %+v", row, other)
			}
		}
	}
}

func TestTheLayeredLoadCountsWhatTheBackendDoes(t *testing.T) {
	gateway, err := buildGateway(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := testSuite(t, gatewayContender(gatewayName, gateway, nil))
	e := s.entrants[0]
	in, err := s.launch(e, e.layered)
	if err != nil {
		t.Fatal(err)
	}
	for _, via := range []layer{overTLS, overWS, overWSS} {
		before, err := s.backend()
		if err != nil {
			t.Fatal(err)
		}
		l := new(layered)
		for _, op := range []string{opOpen, opBurst} {
			if reply := l.do(loadRequest{Op: op, Targets: in.targets, Lines: e.lines, Via: via, Tunnels: 3, Mode: modeEcho, Size: 64}); reply.Err != "" {
				t.Fatalf("%s, %s: %s", via, op, reply.Err)
			}
		}
		reply := l.do(loadRequest{Op: opClose})
		after, err := s.settle()
		if err != nil {
			t.Fatal(err)
		}
		const want = 3 * (64 + burstBytes)
		if reply.Sent != want || reply.Rcvd != want || after.In-before.In != want || after.Out-before.Out != want {
			t.Errorf("%s: sent %d and received %d, but the backend has %d and %d, and all should be %d",
				via, reply.Sent, reply.Rcvd, after.In-before.In, after.Out-before.Out, want)
		}
	}
}

// answeringTLS answers each connection's first bytes inside of TLS, and closes.
func answeringTLS(t *testing.T, answer string) string {
	t.Helper()
	certFile, keyFile, err := selfSigned(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp4", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	return answerOn(t, ln, answer)
}

func TestTheLayeredLoadIsHardToPlease(t *testing.T) {
	refusal := "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
	for _, test := range []struct {
		name   string
		via    layer
		target string
		want   string
	}{
		{"no TLS", overTLS, answering(t, "200"), "opening"},
		{"an error status", overTLS, answeringTLS(t, "401"), `answered "401", not 200`},
		{"the end instead of a status", overTLS, answeringTLS(t, ""), "EOF"},
		{"the end instead of an echo", overTLS, answeringTLS(t, "200"), "echoing"},
		{"another echo", overTLS, answeringTLS(t, "200"+strings.Repeat("x", 64)), "others came back"},
		{"no WebSocket", overWS, answering(t, refusal), "502"},
		{"no WebSocket inside of TLS", overWSS, answeringTLS(t, refusal), "502"},
		{"an unknown layer", "carrier pigeon", answering(t, ""), "unknown layer"},
	} {
		t.Run(test.name, func(t *testing.T) {
			reply := new(layered).do(loadRequest{Op: opOpen, Targets: []string{test.target}, Lines: []string{"line"},
				Via: test.via, Tunnels: 2, Mode: modeEcho, Size: 64})
			if !strings.Contains(reply.Err, test.want) || reply.Units != 0 {
				t.Errorf("got %+v, want the error %q", reply, test.want)
			}
		})
	}
}

func TestTheFirstFailureEndsAWorker(t *testing.T) {
	var calls [10]int
	failure := errors.New("no")
	err := atOnce(2, len(calls), func(i int) error {
		if calls[i]++; i == 4 {
			return failure
		}
		return nil
	})
	if err != failure {
		t.Errorf("got %v", err)
	}
	for i, n := range calls {
		if want := i <= 4 || i%2 == 1; want != (n == 1) {
			t.Errorf("%d was called %d times", i, n)
		}
	}
	if err := atOnce(5, 0, nil); err != nil {
		t.Error(err)
	}
}
