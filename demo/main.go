// Command demo shows the gateway at work on this machine: it starts the
// gateway binary named by its argument with a fresh secret, and an echo server
// as the backend; seals the backend's address; and talks to it through the
// gateway as a player's client would. It prints the conversation. With "upgrade" as the
// second argument it shows a tunnel that lives while the gateway is replaced three times.
package main

import (
	"bufio"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// patience bounds each step; all of them together take milliseconds.
const patience = 10 * time.Second

func run(args []string) error {
	if len(args) == 2 && args[1] == "upgrade" {
		return upgrades(args[0])
	}
	if len(args) != 1 {
		return errors.New("usage: demo PATH-OF-THE-GATEWAY-BINARY [upgrade]")
	}
	binary, secret := args[0], rand.Text()

	title("1. A backend. It stands for a game server that must not face the internet.")
	backend, err := startEcho()
	if err != nil {
		return err
	}
	defer backend.Close()
	say("an echo server listens on %s", backend.Addr())

	title("2. The gateway. It knows one secret, and no backend.")
	gateway, err := startGateway(binary, secret)
	if err != nil {
		return err
	}
	defer gateway.stop()
	say("GATEWAY_SECRET=%s gateway -addr=127.0.0.1:0", secret)
	say("it listens on %s", gateway.addr)

	title("3. The operator seals the backend's address for a client.")
	line, err := seal(binary, secret, backend.Addr().String())
	if err != nil {
		return err
	}
	say("GATEWAY_SECRET=%s gateway -seal=%s", secret, backend.Addr())
	say("%s", line)

	title("4. A client connects to the gateway and sends that line, then talks.")
	if err := talk(gateway.addr, line); err != nil {
		return err
	}

	title("5. Somebody who does not know the secret gets nowhere.")
	if err := guess(gateway.addr, backend.Addr().String()); err != nil {
		return err
	}

	title("6. The gateway's log tells what happened, and never a secret.")
	if err := gateway.stop(); err != nil {
		return err
	}
	for _, l := range gateway.log {
		say("%s", l)
	}
	fmt.Println("\nThat is all there is to it: any gateway with the secret serves any backend.")
	return nil
}

func title(text string) { fmt.Printf("\n%s\n", text) }

func say(format string, args ...any) { fmt.Printf("   "+format+"\n", args...) }

func startEcho() (net.Listener, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return ln, nil
}

// environment is this process's, with the secret as the only setting.
func environment(secret string) []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "GATEWAY_") || strings.HasPrefix(kv, "CREDENTIALS_DIRECTORY=")
	})
	return append(env, "GATEWAY_SECRET="+secret)
}

// gatewayProcess is the running gateway.
type gatewayProcess struct {
	cmd     *exec.Cmd
	addr    string
	log     []string      // complete once stop has returned
	logDone chan struct{} // closed when the log has ended
	stopped bool
}

func startGateway(binary, secret string) (*gatewayProcess, error) {
	cmd := exec.Command(binary, "-addr=127.0.0.1:0", "-pidfile=", "-log-format=json")
	cmd.Env = environment(secret)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	g := &gatewayProcess{cmd: cmd, logDone: make(chan struct{})}
	addr := make(chan string, 1)
	go func() {
		defer close(g.logDone)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			g.log = append(g.log, lines.Text())
			var entry struct{ Msg, Addr string }
			if json.Unmarshal(lines.Bytes(), &entry) == nil && entry.Msg == "listening" {
				addr <- entry.Addr
			}
		}
	}()
	select {
	case g.addr = <-addr:
		return g, nil
	case <-g.logDone:
		cmd.Wait()
		return nil, fmt.Errorf("the gateway did not start: %s", strings.Join(g.log, "; "))
	case <-time.After(patience):
		cmd.Process.Kill()
		return nil, errors.New("the gateway does not say where it listens")
	}
}

// stop ends the gateway as `kill PID` does and waits for it.
func (g *gatewayProcess) stop() error {
	if g.stopped {
		return nil
	}
	g.stopped = true
	// Windows has no signals to send; there the process is killed.
	if g.cmd.Process.Signal(os.Interrupt) != nil {
		g.cmd.Process.Kill()
	}
	timer := time.AfterFunc(patience, func() { g.cmd.Process.Kill() })
	defer timer.Stop()
	<-g.logDone
	return g.cmd.Wait()
}

func seal(binary, secret, addr string) (string, error) {
	cmd := exec.Command(binary, "-seal="+addr)
	cmd.Env = environment(secret)
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}

func talk(gateway, line string) error {
	c, err := net.Dial("tcp", gateway)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if err := exchange(c, line+"\n", "200"); err != nil {
		return err
	}
	say("(200: connected; from here on the bytes are the game's own)")
	for _, message := range []string{"hello, game server", "a fine gateway you have"} {
		if err := exchange(c, message, message); err != nil {
			return err
		}
	}
	return nil
}

func guess(gateway, addr string) error {
	c, err := net.Dial("tcp", gateway)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	return exchange(c, addr+"\n", "401")
}

// exchange sends a text and expects an answer, and prints both.
func exchange(c net.Conn, text, want string) error {
	say("client  -> %q", text)
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("no answer from the gateway: %w", err)
	}
	say("gateway -> %q", got)
	if string(got) != want {
		return fmt.Errorf("want %q", want)
	}
	return nil
}
