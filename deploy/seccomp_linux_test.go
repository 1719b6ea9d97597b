package deploy_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"gateway/internal/harness"
)

// The profile for containers has all that the gateway asks the kernel for.

type seccompProfile struct {
	DefaultAction string
	ArchMap       []struct{ Architecture string }
	Syscalls      []struct {
		Names  []string
		Action string
	}
}

// numbers returns the numbers of system calls on this machine by their names.
func numbers(t *testing.T) map[string]uint32 {
	t.Helper()
	dir := harness.RunProgram(t, nil, harness.LookPath(t, "go"), "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys")
	text := readText(t, filepath.Join(dir, "unix", "zsysnum_linux_"+runtime.GOARCH+".go"))
	found := make(map[string]uint32)
	for _, m := range regexp.MustCompile(`(?m)^\tSYS_(\w+)\s+= (\d+)$`).FindAllStringSubmatch(text, -1) {
		n, _ := strconv.ParseUint(m[2], 10, 32)
		found[strings.ToLower(m[1])] = uint32(n)
	}
	return found
}

// filter is the profile as the kernel takes it. What is not allowed ends the process,
// instead of failing: the gateway can do without much of it, and a test would not see
// what is missing.
func (p *seccompProfile) filter(t *testing.T) []unix.SockFilter {
	t.Helper()
	number := numbers(t)
	program := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}} // the number of the call
	for _, rule := range p.Syscalls {
		if rule.Action != "SCMP_ACT_ALLOW" {
			t.Errorf("%v: action %s", rule.Names, rule.Action)
		}
		for _, name := range rule.Names {
			n, known := number[name]
			if !known {
				continue // another machine has it
			}
			program = append(program,
				unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: n},
				unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
		}
	}
	return append(program, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_KILL_PROCESS})
}

// under starts a command in a thread that has a filter, which the process inherits.
func under(t *testing.T, filter []unix.SockFilter, cmd *exec.Cmd) (p *harness.Process) {
	t.Helper()
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends here
		if err = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err == nil {
			err = unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
		}
		if err == nil {
			p = harness.StartCommand(t, cmd)
		}
	}()
	<-done
	if err != nil {
		t.Skip("no seccomp here: ", err)
	}
	if p == nil {
		t.FailNow() // and why is logged
	}
	return p
}

func TestTheSeccompProfileHasAllThatTheGatewayAsksFor(t *testing.T) {
	var profile seccompProfile
	if err := json.Unmarshal([]byte(readText(t, "seccomp.json")), &profile); err != nil {
		t.Fatal(err)
	}
	if profile.DefaultAction != "SCMP_ACT_ERRNO" || len(profile.ArchMap) == 0 {
		t.Errorf("default action %q, architectures %v", profile.DefaultAction, profile.ArchMap)
	}
	filter := profile.filter(t)
	storm := harness.NewStorm(t, 200, true)
	flags, trusting := harness.TLSFlags(t)
	args := append(flags, "-secret="+harness.Secret, "-addr=127.0.0.1:0", "-log-format=json",
		"-resolver="+storm.Resolver, "-kcp=127.0.0.1:0", "-pprof=127.0.0.1:0", "-reuse=1")
	// As in the image: a binary with the C library, or the race detector, asks for more.
	static := filepath.Join(t.TempDir(), "gateway")
	build := exec.Command("go", "build", "-o", static, "gateway")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	admin := harness.NewAdmin(t)
	command := func(more ...string) *exec.Cmd {
		cmd := harness.Command(t, nil, append(args, more...)...)
		cmd.Path = static
		return cmd
	}
	p := under(t, filter, command(admin.Flag))
	storm.Run(t, p.Addr, &p.Log)
	c := harness.OpenTunnel(t, p.Addr, harness.StartEcho(t))
	harness.Echo(t, c, strings.Repeat("hello ", 1<<20))
	c.Close()
	harness.ConnectWith(t, p.Addr, trusting).Close()
	if n := admin.Metrics(t).Sum("gateway_accepted_total"); n < 40 {
		t.Errorf("%v connections are counted", n)
	}
	admin.Do(t, "POST", "/api/tunnels/cut", `{"client":"127.0.0.0/8"}`)
	free := under(t, []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}},
		command())
	if got, want := p.Log.WaitLine(t, "listening", 1)["relay"], free.Log.WaitLine(t, "listening", 1)["relay"]; got != want {
		t.Errorf("relay=%v under the profile, %v without", got, want)
	}
	p.End(t)
	free.End(t)
}
