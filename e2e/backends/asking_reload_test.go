package backends

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"gateway/internal/harness"
)

// What a gateway shows its service, and what it makes of another one after a reload.

// startSecureOperator serves an operator's answers inside TLS too.
func startSecureOperator(t *testing.T, o *operator, certFile, keyFile string) string {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: o}
	go server.Serve(ln)
	t.Cleanup(func() { server.Close() })
	return "https://" + ln.Addr().String() + "/"
}

func TestAReloadReadsTokenAndCertificatesAgain(t *testing.T) {
	harness.NeedSignals(t)
	t.Parallel()
	backend := harness.StartGreeter(t, "x")
	o := startOperator(t, leadsTo(backend, 0))
	certFile, keyFile, _ := harness.TLSFiles(t)
	url := startSecureOperator(t, o, certFile, keyFile)
	dir := t.TempDir()
	token, ca := filepath.Join(dir, "token"), filepath.Join(dir, "ca.pem")
	harness.WriteFile(t, token, "one\n")
	harness.WriteCertificate(t, ca, filepath.Join(dir, "other-key.pem"), "another authority")
	p := harness.Start(t, "-ask="+url, "-ask-token-file="+token, "-ask-ca="+ca)
	if got := fate(t, p.Addr, harness.Line("ask:room")); got != "502" {
		t.Errorf("a service with another's certificate: %q", got)
	}
	right, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	harness.WriteFile(t, ca, string(right))
	reloads := 0
	reload := func() {
		t.Helper()
		p.Signal(t, syscall.SIGHUP)
		reloads++
		p.Log.WaitLine(t, "reloaded", reloads)
	}
	reload()
	for _, word := range []string{"one", "two"} {
		harness.WriteFile(t, token, word+"\n")
		reload()
		if _, err := meet("", p.Addr, harness.Line("ask:room")); err != nil {
			t.Fatal(err)
		}
		o.mu.Lock()
		if o.bearer != "Bearer "+word {
			t.Errorf("the service is shown %q", o.bearer)
		}
		o.mu.Unlock()
	}
	// What is wrong changes nothing.
	harness.WriteFile(t, token, "\n")
	p.Signal(t, syscall.SIGHUP)
	if line := p.Log.WaitLine(t, "cannot reload, everything stays as it was", 1); !strings.Contains(fmt.Sprint(line["err"]), token) {
		t.Errorf("the log says %v", line)
	}
	if _, err := meet("", p.Addr, harness.Line("ask:room")); err != nil {
		t.Error(err)
	}
	for _, word := range []string{"one", "two"} {
		if strings.Contains(p.Log.String(), "Bearer "+word) {
			t.Error("the token is in the log")
		}
	}
}

func TestWhatIsKnownOutlivesAReload(t *testing.T) {
	harness.NeedSignals(t)
	t.Parallel()
	backend := harness.StartGreeter(t, "x")
	o := startOperator(t, leadsTo(backend, 3600))
	file := filepath.Join(t.TempDir(), "gateway.conf")
	harness.WriteFile(t, file, "ask="+o.url()+"\n")
	p := harness.Start(t, "-config="+file)
	for i, settings := range []string{"ask=" + o.url() + "\n", "ask=" + o.url() + "\nask-stale=1h\nask-tickets=1\n", "ask=http://" + o.addr + "/elsewhere\n", "retry=1\n"} {
		harness.WriteFile(t, file, settings)
		p.Signal(t, syscall.SIGHUP)
		p.Log.WaitLine(t, "reloaded", i+1)
		want, asked := "200x", []int{1, 1, 2, 2}[i]
		if i == 3 { // there is no service any more
			want = "502"
		}
		c := harness.Connect(t, p.Addr)
		harness.Send(t, c, harness.Line("ask:room"))
		harness.Expect(t, c, want)
		if o.count() != asked {
			t.Errorf("after %d reloads the service was asked %d times, want %d", i+1, o.count(), asked)
		}
	}
}

func TestTheServiceIsToldOfTLSAndOfTheBelievedAddress(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	trusting.ServerName = "play.example.com"
	o := startOperator(t, leadsTo(harness.StartEcho(t), 0))
	p := harness.Start(t, append(flags, "-ask="+o.url(), "-ask-timeout="+harness.Patience.String(), "-ask-tickets=1", "-trusted-proxies=127.0.0.1")...)
	for _, asked := range []string{harness.Line("ask:room"), "?t\n"} {
		c := harness.Connect(t, p.Addr)
		harness.Send(t, c, "PROXY TCP4 198.51.100.7 192.0.2.1 50123 443\r\n")
		inner := harness.Handshake(t, c, trusting)
		harness.Send(t, inner, asked+"hello")
		harness.Expect(t, inner, "200hello")
		if q := o.last(); q["tls"] != true || q.text("sni") != "play.example.com" || q.text("client") != "198.51.100.7:50123" || q.text("form") != "line" {
			t.Errorf("asked %v", q)
		}
	}
}

func TestAQuestionEndsWithTheHandshakesTime(t *testing.T) {
	t.Parallel()
	bothAtOnce(t, func(t *testing.T, way string) {
		silent := make(chan struct{})
		defer close(silent)
		o := startOperator(t, func(http.ResponseWriter, question) { <-silent })
		p := harness.Start(t, way, "-ask="+o.url(), "-ask-timeout="+harness.Patience.String(), "-handshake-timeout=2s", "-ask-tickets=1")
		for _, asked := range []string{harness.Line("ask:room"), "?t\n"} {
			if got := fate(t, p.Addr, asked); got != "504" {
				t.Errorf("%.5s got %q", asked, got)
			}
		}
		if line := p.Log.WaitLine(t, "refused", 2); line["reason"] != "ask_queue" {
			t.Errorf("the log says %v", line)
		}
	})
}

// A client that leaves while the service thinks is forgotten at once.
func TestAClientThatLeavesEndsItsQuestion(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("a reset is noticed on Linux")
	}
	t.Parallel()
	bothAtOnce(t, func(t *testing.T, way string) {
		left := make(chan struct{}, 1)
		o := startOperator(t, func(w http.ResponseWriter, q question) {
			time.Sleep(time.Second)
			left <- struct{}{}
		})
		p := harness.Start(t, way, "-ask="+o.url(), "-ask-timeout="+harness.Patience.String(), "-ask-tickets=1")
		c := harness.Connect(t, p.Addr)
		harness.Send(t, c, "?t\n")
		harness.Eventually(t, "the service is asked", func() bool { return o.count() == 1 })
		harness.Reset(c)
		if line := p.Log.WaitLine(t, "refused", 1); line["reason"] != "client_gone" {
			t.Errorf("the log says %v", line)
		}
		<-left
	})
}

func TestTicketsAloneNeedNoSecret(t *testing.T) {
	t.Parallel()
	o := startOperator(t, leadsTo(harness.StartGreeter(t, "x"), 0))
	p := harness.StartBare(t, nil, "-addr=127.0.0.1:0", "-legacy=0", "-ask="+o.url(), "-ask-timeout="+harness.Patience.String(), "-ask-tickets=1")
	c := harness.Connect(t, p.Addr)
	harness.Send(t, c, "?t\n")
	harness.Expect(t, c, "200x")
	if got := fate(t, p.Addr, harness.Line("127.0.0.1:1")); got != "401" {
		t.Errorf("a sealed line got %q", got)
	}
}
