package deploy_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"gateway/internal/harness"
)

// The units under a real systemd, in namespaces of its own, where one can be started:
// that takes root, and a control group to itself.

// manager is such a systemd.
type manager struct {
	t   *testing.T
	pid int // of systemd, here
}

// beginning makes a small system of this one, of which systemd becomes process 1. It
// has no units but those of this folder and the targets that they need.
const beginning = `set -e
echo $$ >"$CGROUP/cgroup.procs"
exec unshare --mount --pid --fork --kill-child --mount-proc --cgroup --uts --net sh -c '
set -e
umount -R /sys/fs/cgroup
mount -t tmpfs tmpfs /sys/fs
mkdir /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /run
units=/run/systemd/system
mkdir -p $units/gateway.service.d /run/etc/upper /run/etc/work
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work overlay /etc
mkdir -p /etc/gateway
mount -t tmpfs -o mode=755 tmpfs /usr/local/bin
cp "$GATEWAY" /usr/local/bin/gateway
cp gateway.service gateway.socket gateway@.service $units
printf "%s\n" "$DROPIN" >$units/gateway.service.d/test.conf
for target in sysinit basic shutdown sockets network-online multi-user default; do
	printf "[Unit]\nDefaultDependencies=no\n" >$units/$target.target
done
ip link set lo up
export container=test SYSTEMD_UNIT_PATH=$units
exec "$SYSTEMD" --system --unit=default.target --log-target=null --show-status=0
'
`

// startSystemd starts a systemd with these lines added to gateway.service.
func startSystemd(t *testing.T, dropIn string) *manager {
	t.Helper()
	for _, tool := range []string{"unshare", "nsenter", "systemctl", "ip"} {
		harness.LookPath(t, tool)
	}
	systemd := ""
	for _, file := range []string{"/lib/systemd/systemd", "/usr/lib/systemd/systemd"} {
		if _, err := os.Stat(file); err == nil {
			systemd = file
		}
	}
	if systemd == "" || os.Getuid() != 0 {
		t.Skip("no systemd, or not root")
	}
	group := controlGroup(t)
	gateway := filepath.Join(t.TempDir(), "gateway")
	build := exec.Command("go", "build", "-o", gateway, "gateway")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // static, as "make" builds it
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// The credential is left out: systemd 252 cannot give one to a user here.
	dropIn = "[Service]\nStandardError=append:/run/gateway.log\nLoadCredential=\nEnvironment=GATEWAY_SECRET=" + harness.Secret + "\n" + dropIn
	cmd := exec.Command("sh", "-c", beginning)
	cmd.Env = append(os.Environ(), "CGROUP="+group, "GATEWAY="+gateway, "DROPIN="+dropIn, "SYSTEMD="+systemd)
	p := harness.Launch(t, cmd) // and killed, with its child and all of that's
	m := &manager{t: t}
	harness.Eventually(t, "systemd runs", func() bool {
		if !p.Runs() {
			t.Skipf("no systemd can be started here: %s", p.Log.String())
		}
		if m.pid == 0 {
			children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", p.PID(), p.PID()))
			m.pid, _ = strconv.Atoi(strings.TrimSpace(string(children)))
			return false
		}
		out, _ := m.command("systemctl", "is-system-running").Output()
		return strings.TrimSpace(string(out)) == "running"
	})
	return m
}

// controlGroup returns a control group of version 2, which is removed at the end.
func controlGroup(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			group := filepath.Join(f[1], fmt.Sprintf("gateway-test-%d", os.Getpid()))
			if err := os.Mkdir(group, 0o755); err != nil {
				t.Skip(err)
			}
			t.Cleanup(func() {
				harness.Eventually(t, "the control group is removed", func() bool {
					filepath.WalkDir(group, func(name string, _ os.DirEntry, _ error) error {
						syscall.Rmdir(name) // the leaves at first
						return nil
					})
					_, err := os.Stat(group)
					return os.IsNotExist(err)
				})
			})
			return group
		}
	}
	t.Skip("no control groups of version 2")
	return ""
}

// command returns a command that runs beside systemd.
func (m *manager) command(args ...string) *exec.Cmd {
	return exec.CommandContext(m.t.Context(), "nsenter", append([]string{"--target=" + strconv.Itoa(m.pid), "--all"}, args...)...)
}

func (m *manager) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := m.command(args...).CombinedOutput()
	if err != nil {
		log, _ := m.command("cat", "/run/gateway.log").Output()
		t.Fatalf("%q: %v\n%s\n%s", args, err, out, log)
	}
	return strings.TrimSpace(string(out))
}

// shows waits until a property of a unit is as it should be.
func (m *manager) shows(t *testing.T, unit, property, want string) {
	t.Helper()
	got := ""
	harness.Eventually(t, fmt.Sprintf("%s of %s is %s", property, unit, want), func() bool {
		got = m.run(t, "systemctl", "show", "--value", "--property="+property, unit)
		return got == want
	})
}

func (m *manager) mainPID(t *testing.T) string {
	t.Helper()
	return m.run(t, "systemctl", "show", "--value", "--property=MainPID", "gateway.service")
}

// logged waits for a text in the log.
func (m *manager) logged(t *testing.T, text string) {
	t.Helper()
	harness.Eventually(t, fmt.Sprintf("%q in the log", text), func() bool {
		return strings.Contains(m.run(t, "cat", "/run/gateway.log"), text)
	})
}

// ask connects, sends a line that does not open, and wants the answer to that.
func (m *manager) ask(t *testing.T) {
	t.Helper()
	if got := m.run(t, "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8000; echo hello >&3; head -c 3 <&3"); got != "401" {
		t.Errorf("answered: %q", got)
	}
}

// olderReload makes "systemctl reload" work where systemd is too old for notify-reload.
const olderReload = "ExecReload=+/bin/kill -HUP $MAINPID\n"

func TestTheUnitUnderARealSystemd(t *testing.T) {
	harness.Long(t)
	m := startSystemd(t, olderReload+"WatchdogSec=2\nRestartSec=0\n")
	m.run(t, "systemctl", "start", "gateway.service") // waits for READY
	m.shows(t, "gateway.service", "StatusText", "serving")
	m.ask(t)
	first := m.mainPID(t)

	m.run(t, "sh", "-c", "echo log-level=debug >/etc/gateway/gateway.conf")
	m.run(t, "systemctl", "reload", "gateway.service")
	m.logged(t, "msg=reloaded changed=config,log-level")

	// Another file under the same name, as "make install" leaves it.
	m.run(t, "sh", "-c", "cp /usr/local/bin/gateway /usr/local/bin/new && mv /usr/local/bin/new /usr/local/bin/gateway")
	for range 3 {
		before := m.mainPID(t)
		m.run(t, "systemctl", "kill", "--kill-whom=main", "--signal=USR2", "gateway.service")
		harness.Eventually(t, "systemd has another main process", func() bool { return m.mainPID(t) != before })
		m.ask(t)
	}
	m.shows(t, "gateway.service", "ActiveState", "active")
	m.shows(t, "gateway.service", "NRestarts", "0")
	harness.Eventually(t, "the first process is gone", func() bool { return m.command("kill", "-0", first).Run() != nil })
	m.shows(t, "gateway.service", "ActiveState", "active")

	// The watchdog has gone along.
	m.run(t, "systemctl", "kill", "--kill-whom=main", "--signal=STOP", "gateway.service")
	m.shows(t, "gateway.service", "NRestarts", "1")
	m.shows(t, "gateway.service", "ActiveState", "active") // its StatusText may be the old process's
	m.ask(t)

	m.run(t, "systemctl", "stop", "gateway.service")
	m.shows(t, "gateway.service", "Result", "success")
	m.logged(t, "msg=stopped")
}

func TestTheSocketUnderARealSystemd(t *testing.T) {
	harness.Long(t)
	m := startSystemd(t, "")
	m.run(t, "systemctl", "start", "gateway.socket")
	m.shows(t, "gateway.service", "ActiveState", "inactive")
	m.ask(t) // which starts the gateway
	m.shows(t, "gateway.service", "ActiveState", "active")
	before := m.mainPID(t)
	m.run(t, "systemctl", "kill", "--kill-whom=main", "--signal=USR2", "gateway.service")
	harness.Eventually(t, "systemd has another main process", func() bool { return m.mainPID(t) != before })
	m.ask(t)
	// Who comes while it restarts waits.
	m.run(t, "systemctl", "restart", "gateway.service")
	m.ask(t)
	m.run(t, "systemctl", "stop", "gateway.socket", "gateway.service")
}
