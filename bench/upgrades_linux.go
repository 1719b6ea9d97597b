package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// -upgrades: what clients notice when a contender is replaced by a new process, again
// and again. It is a table of its own, for the three that can do that without a
// service manager: the gateway by SIGUSR2, HAProxy by a reload of its master, nginx by
// its upgrade of the binary.

// replaceable is a contender that can be replaced.
type replaceable struct {
	name  string
	how   string
	line  func(backend string) (string, error) // what a client sends first; nil: nothing
	start func(s site) (*exec.Cmd, error)
	// replace has another process take the place of this one, and returns when it has.
	replace func(dir string) error
	// end ends what has left the process group.
	end func(dir string)
}

// errOneAtATime is why there is no other upgrade.
var errOneAtATime = errors.New("the process before has tunnels")

const (
	upgradeTunnels = 64
	upgradePause   = 5 * time.Millisecond   // between two messages of a tunnel
	upgradeEvery   = 500 * time.Millisecond // and what counts as during one
)

// upgradeReport is a row of the table.
type upgradeReport struct {
	quiet, during    histogram
	longest          time.Duration // of those during
	broken           int64         // tunnels
	upgrades         int           // that there were
	connects, failed int64
}

func replaceables(opt *options) (list []replaceable, missing []string) {
	gateway := gatewayContender(gatewayName, opt.gateway, nil)
	list = append(list, replaceable{
		name: gatewayName, how: "SIGUSR2",
		line: gateway.seal,
		start: func(s site) (*exec.Cmd, error) {
			cmd := exec.Command(opt.gateway, "-addr="+s.listen, "-log-level=warn")
			cmd.Env = gatewayEnvironment()
			return cmd, nil
		},
		replace: func(dir string) error { return signalAndWait(filepath.Join(dir, "gateway.pid"), syscall.SIGUSR2) },
	})
	if path, err := find("haproxy"); err != nil {
		missing = append(missing, haproxyName+": "+err.Error())
	} else {
		list = append(list, replaceable{
			name: haproxyName, how: "reload of the master",
			start: func(s site) (*exec.Cmd, error) {
				// Without the first of the two nothing tells when a reload is over.
				config := haproxyConfig(s, "\n\tstats socket "+filepath.Join(s.dir, "stats")+" expose-fd listeners\n\thard-stop-after 1h\n")
				config = strings.ReplaceAll(config, "\toption splice-request\n\toption splice-response\n", "")
				file := filepath.Join(s.dir, "haproxy.cfg")
				if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
					return nil, err
				}
				return exec.Command(path, "-W", "-db", "-f", file, "-p", filepath.Join(s.dir, "master.pid")), nil
			},
			replace: func(dir string) error {
				before := childrenOf(pidIn(filepath.Join(dir, "master.pid")))
				if err := syscall.Kill(pidIn(filepath.Join(dir, "master.pid")), syscall.SIGUSR2); err != nil {
					return err
				}
				return waitFor("a new worker", func() bool {
					now := childrenOf(pidIn(filepath.Join(dir, "master.pid")))
					return len(now) > 0 && (len(before) == 0 || now[len(now)-1] != before[len(before)-1])
				})
			},
		})
	}
	path, err := find("nginx")
	module := ""
	if err == nil {
		module, err = nginxStream(path)
	}
	if err != nil {
		return list, append(missing, nginxName+": "+err.Error())
	}
	return append(list, replaceable{
		name: nginxName, how: "USR2 and QUIT",
		start: func(s site) (*exec.Cmd, error) {
			// In the foreground it ignores SIGUSR2.
			config := strings.Replace(nginxConfig(s, module), "daemon off;", "daemon on;", 1)
			config = strings.Replace(config, "error_log stderr", "error_log "+filepath.Join(s.dir, "error.log"), 1)
			file := filepath.Join(s.dir, "nginx.conf")
			if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
				return nil, err
			}
			return exec.Command(path, "-p", s.dir, "-c", file), nil
		},
		replace: func(dir string) error {
			file := filepath.Join(dir, "nginx.pid")
			old := pidIn(file)
			if pidIn(filepath.Join(dir, "nginx.pid.oldbin")) > 1 {
				return errOneAtATime // the old master waits for its workers, and they for tunnels
			}
			if err := signalAndWait(file, syscall.SIGUSR2); err != nil {
				return err
			}
			if err := waitFor("workers of the new binary", func() bool { return len(childrenOf(pidIn(file))) > 0 }); err != nil {
				return err
			}
			return syscall.Kill(old, syscall.SIGQUIT)
		},
		end: func(dir string) {
			for _, name := range []string{"nginx.pid", "nginx.pid.oldbin"} {
				if pid := pidIn(filepath.Join(dir, name)); pid > 1 {
					workers := childrenOf(pid)
					syscall.Kill(pid, syscall.SIGKILL) // first: it would replace them
					for _, worker := range workers {
						syscall.Kill(worker, syscall.SIGKILL)
					}
				}
			}
		},
	}), missing
}

// pidIn returns the process id in a file, 0 if there is none.
func pidIn(file string) int {
	text, _ := os.ReadFile(file)
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return pid
}

// childrenOf returns a process's children, the newest last.
func childrenOf(pid int) (list []int) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for field := range strings.FieldsSeq(string(text)) {
		if n, err := strconv.Atoi(field); err == nil {
			list = append(list, n)
		}
	}
	return list
}

func waitFor(what string, cond func() bool) error {
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %v", what, patience)
		}
	}
	return nil
}

// signalAndWait signals the process that a file names until the file names another.
func signalAndWait(file string, sig syscall.Signal) error {
	old := pidIn(file)
	if old < 2 {
		return fmt.Errorf("%s names no process", file)
	}
	if err := syscall.Kill(old, sig); err != nil {
		return err
	}
	return waitFor("another process in "+file, func() bool { now := pidIn(file); return now > 1 && now != old })
}

// measureUpgrades prints the table.
func measureUpgrades(opt *options, f *fleet, threads, files int, out io.Writer) error {
	defer f.sink()
	list, missing := replaceables(opt)
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer backend.Close()
	go echoAll(backend)
	fmt.Fprintf(out, "\n## %d upgrades, one every %v, under %d tunnels that talk and %d clients that connect\n\n", opt.upgrades, upgradeEvery, upgradeTunnels, 4)
	fmt.Fprintln(out, "| | how | upgrades | 64 B echo at other times: p99, max | during | tunnels broken | connects | of them failed |")
	fmt.Fprintln(out, "|---|---|---|---|---|---|---|---|")
	for _, r := range list {
		if !opt.wants(r.name) {
			continue
		}
		got, err := r.measure(opt, f, threads, files, backend.Addr().String())
		if err != nil {
			fmt.Fprintf(out, "| %s | %s | failed: %v | | | | | |\n", r.name, r.how, err)
			continue
		}
		ms := func(ns int64) string { return fmt.Sprintf("%.2f", float64(ns)/1e6) }
		fmt.Fprintf(out, "| %s | %s | %d of %d | %s, %s ms | %s, %s ms | %d | %d | %d |\n", r.name, r.how, got.upgrades, opt.upgrades,
			ms(got.quiet.percentile(99)), ms(got.quiet.percentile(100)), ms(got.during.percentile(99)), ms(got.longest.Nanoseconds()),
			got.broken, got.connects, got.failed)
	}
	for _, why := range missing {
		fmt.Fprintf(out, "\n%s\n", why)
	}
	return nil
}

func echoAll(ln net.Listener) {
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
}

func (r *replaceable) measure(opt *options, f *fleet, threads, files int, backend string) (*upgradeReport, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(f.dir, r.name+"-")
	if err != nil {
		return nil, err
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	cmd, err := r.start(site{dir: dir, listen: addr, targets: []string{addr}, backends: []string{backend}, threads: threads, files: files})
	if err != nil {
		return nil, err
	}
	cmd.Dir = dir
	process, err := f.start(cmd, r.name)
	if err != nil {
		return nil, err
	}
	defer process.kill()
	if r.end != nil {
		defer r.end(dir)
	}
	line := ""
	if r.line != nil {
		if line, err = r.line(backend); err != nil {
			return nil, err
		}
		line += "\n"
	}
	if err := waitFor("listening", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	}); err != nil {
		return nil, err
	}

	got := new(upgradeReport)
	var mu sync.Mutex
	var upgrading atomic.Bool
	stop := make(chan struct{})
	var all sync.WaitGroup
	stopped := func() bool {
		select {
		case <-stop:
			return true
		default:
			return false
		}
	}
	for range upgradeTunnels {
		c, err := openTunnel(addr, line)
		if err != nil {
			return nil, err
		}
		all.Go(func() {
			defer c.Close()
			message := make([]byte, 64)
			for !stopped() {
				// What begins before an upgrade and ends in it counts.
				during, began := upgrading.Load(), time.Now()
				err := roundTrip(c, message)
				took := time.Since(began)
				during = during || upgrading.Load()
				mu.Lock()
				if err != nil {
					got.broken++
					mu.Unlock()
					return
				}
				if during {
					got.during.add(took.Nanoseconds())
					got.longest = max(got.longest, took)
				} else {
					got.quiet.add(took.Nanoseconds())
				}
				mu.Unlock()
				time.Sleep(upgradePause)
			}
		})
	}
	for range 4 {
		all.Go(func() {
			for !stopped() {
				c, err := openTunnel(addr, line)
				if err == nil {
					err = roundTrip(c, make([]byte, 64))
					c.(*net.TCPConn).SetLinger(0) // no port is left in TIME_WAIT
					c.Close()
				}
				atomic.AddInt64(&got.connects, 1)
				if err != nil {
					atomic.AddInt64(&got.failed, 1)
				}
				time.Sleep(upgradePause)
			}
		})
	}
	time.Sleep(2 * time.Second)
	var failed error
	for range opt.upgrades {
		upgrading.Store(true)
		switch err := r.replace(dir); err {
		case nil:
			got.upgrades++
		case errOneAtATime:
		default:
			failed = errors.Join(failed, err)
		}
		time.Sleep(upgradeEvery)
		upgrading.Store(false)
		time.Sleep(upgradeEvery)
	}
	close(stop)
	all.Wait()
	return got, failed
}

// openTunnel connects, and waits for 200 if there is a line to send.
func openTunnel(addr, line string) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil || line == "" {
		return c, err
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	status := make([]byte, len(statusOK))
	if _, err = io.WriteString(c, line); err == nil {
		_, err = io.ReadFull(c, status)
	}
	if err == nil && string(status) != statusOK {
		err = fmt.Errorf("answered %q", status)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func roundTrip(c net.Conn, message []byte) error {
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(message); err != nil {
		return err
	}
	_, err := io.ReadFull(c, message)
	return err
}
