package harness

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

func TestAProcessServesUntilItIsEnded(t *testing.T) {
	NeedSignals(t)
	p := Start(t)
	c := OpenTunnel(t, p.Addr, StartEcho(t))
	Echo(t, c, "hello")
	Finish(t, c)
	if line := p.Log.WaitClient(t, "tunnel", c.LocalAddr().String()); line["up"] != 5.0 {
		t.Errorf("logged %v", line)
	}
	p.End(t)
	if p.Runs() || IsListening(p.Addr) {
		t.Error("the gateway still runs")
	}
}

func TestABackendProcessHasItsRole(t *testing.T) {
	Echo(t, Connect(t, StartBackendProcess(t, RoleEcho)), "hello")
	Expect(t, Connect(t, StartBackendProcess(t, RoleFlood)), strings.Repeat("\x00", 1<<20))
}

func TestOpenSSLOpensWhatSealMakes(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip(err)
	}
	for kdf, flags := range map[string][]string{
		"md5": {"-md", "md5"}, "sha256": {"-md", "sha256"}, "pbkdf2": {"-md", "sha256", "-pbkdf2"},
	} {
		for _, text := range []string{"10.0.0.7:4000", "a.host.of.32.bytes.test:12345678"} {
			cmd := exec.Command(openssl, append([]string{"enc", "-d", "-aes-256-cbc", "-a", "-A", "-k", Secret}, flags...)...)
			cmd.Stdin = strings.NewReader(Seal(kdf, Secret, text) + "\n")
			if out, err := cmd.Output(); err != nil || string(out) != text {
				t.Errorf("%s: openssl opens %q, %v; want %q", kdf, out, err, text)
			}
		}
	}
}

func TestALogIsSearchedWhileItGrows(t *testing.T) {
	var l Log
	write := func(text string) { l.Write([]byte(text)) }
	write("no JSON\n{\"msg\":\"a\",\"client\":\"one\"}\n{\"msg\":\"a\",")
	if found := l.Lines("a"); len(found) != 1 || found[0]["client"] != "one" {
		t.Errorf("found %v", found)
	}
	write("\"client\":\"two\"}\n{\"msg\":\"b\"}\n")
	if found := l.Lines("a"); len(found) != 2 || found[1]["client"] != "two" {
		t.Errorf("found %v", found)
	}
	if line := l.WaitLine(t, "a", 1); line["client"] != "one" {
		t.Errorf("the first is %v", line)
	}
	if line := l.WaitClient(t, "a", "two"); line["client"] != "two" {
		t.Errorf("two is %v", line)
	}
	write(strings.Repeat("many words\n", 10000))
	if tail := l.Tail(); len(tail) > 9000 || !strings.HasSuffix(tail, "many words\n") {
		t.Errorf("a tail of %d bytes: %.100q", len(tail), tail)
	}
}

func TestOpenDescriptorsAreCounted(t *testing.T) {
	if Descriptors(os.Getpid()) == 0 {
		t.Skip("this system does not tell what is open")
	}
	before := Descriptors(os.Getpid())
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if now := Descriptors(os.Getpid()); now != before+1 {
		t.Errorf("%d descriptors, want %d", now, before+1)
	}
}

// A process that is being started has the descriptors of this one for a moment.
func TestAClosedPortIsFreeWhileProcessesStart(t *testing.T) {
	name := LookPath(t, "true")
	stop := make(chan struct{})
	var starting sync.WaitGroup
	for range 4 {
		starting.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					exec.Command(name).Run()
				}
			}
		})
	}
	for range 500 {
		ln, err := net.Listen("tcp", ClosedPort(t))
		if err != nil {
			t.Error(err)
			break
		}
		ln.Close()
	}
	close(stop)
	starting.Wait()
}
