package resolve

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// dnsmasq starts dnsmasq on an address of 127.0.0.1, with records only, and
// waits until it answers. It ends with stop, or with the test.
func dnsmasq(t *testing.T, addr string, records ...string) (stop func()) {
	t.Helper()
	program, err := exec.LookPath("dnsmasq")
	if err != nil {
		if program, err = exec.LookPath("/usr/sbin/dnsmasq"); err != nil {
			if os.Getenv("NEED_DNSMASQ") == "1" {
				t.Fatal("NEED_DNSMASQ=1, but there is no dnsmasq")
			}
			t.Skip("there is no dnsmasq (Debian: dnsmasq-base); NEED_DNSMASQ=1 makes this a failure")
		}
	}
	host, port, _ := net.SplitHostPort(addr)
	cmd := exec.Command(program, append([]string{
		"--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=", "--log-facility=-",
		"--listen-address=" + host, "--port=" + port, "--bind-interfaces",
		"--no-resolv", "--no-hosts", "--local=/test/", "--local-ttl=1", "--max-ttl=1",
	}, records...)...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait()
	}()
	stop = func() {
		cmd.Process.Kill() // without effect if it has ended
		<-ended
	}
	t.Cleanup(stop)
	probe := New(Options{Server: addr, Timeout: time.Second})
	defer probe.Close()
	eventually(t, "an answer of dnsmasq", func() bool {
		select {
		case <-ended:
			t.Fatal("dnsmasq has ended")
		default:
		}
		_, err := probe.client.query(within(t, time.Second), "probe.test", dns.TypeA)
		return err == nil
	})
	return stop
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// freeAddr returns an address that is free by UDP and TCP, and whose port is
// not one that the kernel gives to clients, ours among them.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 20000+rand.N(10000))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		p, err := net.ListenPacket("udp", addr)
		l.Close()
		if err == nil {
			p.Close()
			return addr
		}
	}
	t.Fatal("no port is free")
	return ""
}

func TestDnsmasqIsKilledAndRestarted(t *testing.T) {
	addr := freeAddr(t)
	stop := dnsmasq(t, addr,
		"--srv-host=_game._tcp.test,one.test,4001,10,5", "--srv-host=_game._tcp.test,two.test,4002,10,1",
		"--srv-host=_game._tcp.test,spare.test,4003,20,0",
		"--host-record=one.test,127.0.0.1,::1", "--host-record=two.test,127.0.0.2", "--cname=alias.test,one.test")
	r := New(Options{Server: addr, Timeout: 2 * time.Second})
	defer r.Close()

	before, got := list(t, r, "_game._tcp.test")
	wantList(t, got, "10 5 one.test:4001", "10 1 two.test:4002", "20 0 spare.test:4003")
	want(t, "a host", lookup(t, r, "two.test"), "127.0.0.2")
	want(t, "both families", lookup(t, r, "one.test"), "127.0.0.1 ::1")
	want(t, "an alias", lookup(t, r, "alias.test"), "127.0.0.1 ::1")
	if ips, err := r.Addresses(t.Context(), "none.test"); !isNotFound(err) {
		t.Errorf("none.test: %v, %v", ips, err)
	}

	stop()
	// Until long after the time to live of a second, nothing is lost, and nobody
	// waits: nobody listens there.
	for deadline := time.Now().Add(2500 * time.Millisecond); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		during, _ := list(t, r, "_game._tcp.test")
		if &during[0] != &before[0] {
			t.Fatalf("while dnsmasq is down: %v", during)
		}
		want(t, "a host", lookup(t, r, "two.test"), "127.0.0.2")
	}
	if ips, err := r.Addresses(t.Context(), "other.test"); err == nil || isNotFound(err) {
		t.Errorf("what was not known: %v, %v", ips, err)
	}

	dnsmasq(t, addr,
		"--srv-host=_game._tcp.test,two.test,4002,10,1", "--host-record=two.test,127.0.0.3", "--host-record=other.test,127.0.0.4")
	eventually(t, "what dnsmasq says now", func() bool {
		list, err := r.Services(t.Context(), "_game._tcp.test")
		return err == nil && len(list) == 1 && lookup(t, r, "two.test") == "127.0.0.3"
	})
	eventually(t, "a name that was not known", func() bool {
		ips, err := r.Addresses(t.Context(), "other.test")
		return err == nil && join(ips) == "127.0.0.4"
	})
}
