package main

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// upgrades shows a tunnel that lives while the gateway is replaced three times.
func upgrades(binary string) error {
	if runtime.GOOS != "linux" {
		say("upgrades need Linux")
		return nil
	}
	binary, err := filepath.Abs(binary)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "gateway-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	secret := rand.Text()

	title("1. A backend, and a gateway in front of it.")
	backend, err := startEcho()
	if err != nil {
		return err
	}
	defer backend.Close()
	port, err := freePort()
	if err != nil {
		return err
	}
	log := &lines{}
	cmd := exec.Command(binary, "-addr="+port)
	cmd.Dir, cmd.Env, cmd.Stderr = dir, []string{"GATEWAY_SECRET=" + secret}, log
	if err := cmd.Start(); err != nil {
		return err
	}
	pidFile := filepath.Join(dir, "gateway.pid")
	pid, err := nextPID(pidFile, "")
	if err != nil {
		cmd.Process.Kill()
		return fmt.Errorf("%w; the gateway says: %s", err, log.text())
	}
	defer func() { signalTo(pid, syscall.SIGTERM) }()
	say("process %s listens on %s", pid, port)

	title("2. A client with a tunnel to the backend.")
	line, err := seal(binary, secret, backend.Addr().String())
	if err != nil {
		return err
	}
	c, err := net.DialTimeout("tcp", port, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(3 * patience))
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		return err
	}
	from := bufio.NewReader(c)
	status := make([]byte, 3)
	if _, err := io.ReadFull(from, status); err != nil || string(status) != "200" {
		return fmt.Errorf("the gateway answers %q: %v", status, err)
	}
	slowest := time.Duration(0)
	echo := func(text string) error {
		start := time.Now()
		if _, err := io.WriteString(c, text+"\n"); err != nil {
			return err
		}
		got, err := from.ReadString('\n')
		if err != nil || strings.TrimSpace(got) != text {
			return fmt.Errorf("sent %q, got %q: %v", text, got, err)
		}
		slowest = max(slowest, time.Since(start))
		return nil
	}
	if err := echo("hello"); err != nil {
		return err
	}
	say("sent hello, got hello")

	for n := range 3 {
		title(fmt.Sprintf("%d. kill -USR2 $(cat gateway.pid), while the client goes on talking.", n+3))
		if err := signalTo(pid, sigUpgrade); err != nil {
			return err
		}
		old, messages, start := pid, 0, time.Now()
		slowest = 0
		for done := false; !done; {
			if err := echo(fmt.Sprintf("message %d", messages)); err != nil {
				return fmt.Errorf("the tunnel did not survive: %w; the gateway says: %s", err, log.text())
			}
			messages++
			text, err := os.ReadFile(pidFile)
			if now := strings.TrimSpace(string(text)); err == nil && now != "" && now != old && messages > 100 {
				pid, done = now, true
			} else if time.Since(start) > patience {
				return fmt.Errorf("no new process after %v; the gateway says: %s", patience, log.text())
			}
		}
		say("process %s serves in the place of %s", pid, old)
		say("%d messages went and came meanwhile; the slowest took %v", messages, slowest.Round(10*time.Microsecond))
	}
	title("6. The client leaves. The log.")
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	for start := time.Now(); !strings.Contains(log.text(), "msg=tunnel"); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > patience {
			return errors.New("the tunnel's end is not in the log")
		}
	}
	for l := range strings.Lines(log.text()) {
		say("%s", strings.TrimSpace(l))
	}
	fmt.Println("\nOne tunnel, four processes. docs/upgrading.md says who holds what at each step.")
	return nil
}

func freePort() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// nextPID waits for the pid file to name another process than that of before.
func nextPID(file, before string) (string, error) {
	for start := time.Now(); time.Since(start) < patience; time.Sleep(5 * time.Millisecond) {
		text, err := os.ReadFile(file)
		if pid := strings.TrimSpace(string(text)); err == nil && pid != before && pid != "" {
			return pid, nil
		}
	}
	return "", errors.New("no gateway.pid")
}

// lines collects what several processes write.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
