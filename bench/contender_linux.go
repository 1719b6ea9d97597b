package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// contender is one way from the clients to the backend. The table of all is
// contenders; a new one is a new entry.
type contender struct {
	name string
	what string // for the reader of the tables
	path string // of the program

	// version asks the program; its output holds the version.
	version []string

	// command returns what to run, after it has written what that needs.
	command func(s site) (*exec.Cmd, error)

	// layered is command for clients that speak TLS and WebSockets; nil: it
	// does not know them.
	layered func(s site) (*exec.Cmd, error)

	// secured is command for clients that speak TLS and do work; nil: it does not know it.
	secured func(s site) (*exec.Cmd, error)

	// through is command for WebSockets that are passed through, where that is another;
	// nil: it is not, or it knows none.
	through func(s site) (*exec.Cmd, error)

	// flooded is command with limits for each client address, for workloads with
	// floods; nil: it takes no part in them.
	flooded func(s site) (*exec.Cmd, error)

	// seal returns what a client sends first to reach addr through this
	// contender; nil: nothing.
	seal func(addr string) (string, error)

	// token is the same by a token; nil: it does not know them.
	token func(addr string) (string, error)

	// named is the same by names and tickets; nil: it does not know them.
	named *named
}

// site is where a contender does its work.
type site struct {
	path     string   // of its program
	dir      string   // its own
	listen   string   // address for the clients
	targets  []string // what they call it, in turn
	backends []string // addresses, to be used in turn
	threads  int      // CPUs that it may use
	files    int      // descriptors that it may have
}

// contenders returns all there are, and why others are missing.
func contenders(opt *options) (list []*contender, missing []string) {
	lacks := func(name, why string) { missing = append(missing, name+": "+why) }

	list = append(list,
		gatewayContender(gatewayName, opt.gateway, []string{"-io-uring=1"}),
		forwardContender(forwardName, opt.gateway, []string{"-io-uring=1"}),
		gatewayContender(epollName, opt.gateway, []string{"-io-uring=0"}))
	for _, v := range opt.variants {
		if strings.HasPrefix(v.name, forwardName+"-") {
			list = append(list, forwardContender(v.name, v.path, v.args))
		} else {
			list = append(list, gatewayContender(v.name, v.path, v.args))
		}
	}
	if path, err := find("haproxy"); err != nil {
		lacks(haproxyName, err.Error())
	} else {
		list = append(list,
			haproxyContender(haproxyName, "as packaged", path, ""),
			haproxyContender(splicedName, "fully spliced", path, spliced))
	}
	if path, err := find("nginx"); err != nil {
		lacks(nginxName, err.Error())
	} else if module, err := nginxStream(path); err != nil {
		lacks(nginxName, err.Error())
	} else {
		list = append(list, nginxContender(path, module))
	}
	return append(list,
		&contender{name: ioCopyName, what: "a plain Go proxy, two goroutines with io.Copy a tunnel", command: ioCopyCommand, secured: ioCopySecured},
		&contender{name: directName, what: "no proxy at all: the limit"}), missing
}

// find looks for a peer's program also where the daemons of Debian live, which
// is in no ordinary user's path.
func find(program string) (string, error) {
	if path, err := exec.LookPath(program); err == nil {
		return path, nil
	}
	if path, err := exec.LookPath("/usr/sbin/" + program); err == nil {
		return path, nil
	}
	return "", fmt.Errorf("%s is not installed (make bench-peers)", program)
}

// The gateway.

const secret = "only the benchmark's own secret"

// gatewayEnvironment is ours without any setting of a gateway but the secret.
func gatewayEnvironment() []string {
	env := []string{"GATEWAY_SECRET=" + secret}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "GATEWAY_") && !strings.HasPrefix(kv, "CREDENTIALS_DIRECTORY=") {
			env = append(env, kv)
		}
	}
	return env
}

func gatewayContender(name, path string, args []string) *contender {
	mint := newMinter(path)
	seal := func(addr string) (string, error) {
		cmd := exec.Command(path, "-seal="+addr)
		cmd.Env = gatewayEnvironment()
		out, err := cmd.Output()
		return strings.TrimSpace(string(out)), err
	}
	named := newNamed(path, seal)
	c := &contender{
		name: name, path: path,
		what:    strings.Join(append([]string{"this project, with its handshake"}, args...), " "),
		version: []string{"-version"},
		command: func(s site) (*exec.Cmd, error) {
			tokens, err := mint.serve(s.dir)
			if err != nil {
				return nil, err
			}
			names, err := named.serve(s)
			if err != nil {
				return nil, err
			}
			cmd := exec.Command(s.path, slices.Concat([]string{
				"-addr=" + s.listen, "-log-level=warn", "-pidfile=",
				"-resume=1", "-resume-plain=1", "-resume-hold=1s"}, tokens, names, args)...)
			cmd.Env = gatewayEnvironment()
			watchGateway(s, cmd)
			return cmd, nil
		},
		token: mint.token,
		seal:  seal,
		named: named,
	}
	c.layered = func(s site) (*exec.Cmd, error) {
		cert, key, err := selfSigned(s.dir)
		if err != nil {
			return nil, err
		}
		cmd, err := c.command(s)
		if err == nil {
			// Clients that rest do not read, and so answer no pings.
			cmd.Args = append(cmd.Args, "-tls-cert="+cert, "-tls-key="+key, "-keepalive=10m")
		}
		return cmd, err
	}
	c.secured = c.layered
	c.flooded = limited(c.layered)
	return c
}

// watchGateway has a gateway with -admin=unix: looked at as Prometheus does, once a
// second. The socket is made in its own directory, whatever its path was to be.
func watchGateway(s site, cmd *exec.Cmd) {
	const flag = "-admin=unix:"
	for i, arg := range cmd.Args {
		if strings.HasPrefix(arg, flag) {
			socket := filepath.Join(s.dir, "admin.sock")
			cmd.Args[i] = flag + socket
			go scrape(socket)
		}
	}
}

// scrape fetches the metrics of a gateway once a second, until it is gone.
func scrape(socket string) {
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	defer client.CloseIdleConnections()
	for seen := false; ; time.Sleep(time.Second) {
		resp, err := client.Get("http://gateway/metrics")
		if err != nil {
			if _, gone := os.Stat(filepath.Dir(socket)); gone != nil || seen && errors.Is(err, syscall.ECONNREFUSED) {
				return
			}
			continue
		}
		seen = true
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}

// forwardContender is the gateway as a plain port forward, whose clients do
// just what HAProxy's do. A listener has one target, so each of the addresses
// has a listener and leads to one of the backends.
func forwardContender(name, path string, args []string) *contender {
	return &contender{
		name: name, path: path,
		what: strings.Join(append([]string{"this project as a plain port forward"}, args...), " "),
		command: func(s site) (*exec.Cmd, error) {
			cmd := exec.Command(s.path, append(forwardFlags(s), args...)...)
			cmd.Env = gatewayEnvironment()
			watchGateway(s, cmd)
			return cmd, nil
		},
	}
}

func forwardFlags(s site) []string {
	flags := []string{"-log-level=warn", "-pidfile="}
	for i, addr := range s.targets {
		flags = append(flags, "-listen="+addr+"=forward:"+s.backends[i%len(s.backends)])
	}
	return flags
}

// HAProxy.

// spliced is what makes HAProxy splice everything; "option splice-auto" alone
// never does.
const spliced = `
	tune.pipesize 1048576
	tune.bufsize 65536
	maxpipes 400
`

func haproxyContender(name, what, path, global string) *contender {
	return &contender{
		name: name, path: path, what: what,
		version: []string{"-v"},
		command: func(s site) (*exec.Cmd, error) {
			return haproxyCommand(s, haproxyConfig(s, global))
		},
		through: haproxyThrough,
		secured: func(s site) (*exec.Cmd, error) { return haproxySecured(s, global) },
		flooded: func(s site) (*exec.Cmd, error) {
			return haproxyCommand(s, haproxyConfig(s, global)+haproxyLimits)
		},
	}
}

func haproxyCommand(s site, config string) (*exec.Cmd, error) {
	file := filepath.Join(s.dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return nil, err
	}
	return exec.Command(s.path, "-db", "-f", file), nil
}

// haproxyConfig is the least that HAProxy takes without a warning.
func haproxyConfig(s site, global string) string {
	var b strings.Builder
	// Two descriptors a connection, and room for pipes and listeners.
	fmt.Fprintf(&b, "global\n\tnbthread %d\n\tmaxconn %d\n", s.threads, max((s.files-1200)/2, 100))
	b.WriteString(strings.TrimPrefix(global, "\n"))
	b.WriteString("defaults\n\tmode tcp\n\ttimeout connect 5s\n\ttimeout client 1h\n\ttimeout server 1h\n")
	if global != "" {
		b.WriteString("\toption splice-request\n\toption splice-response\n")
	}
	fmt.Fprintf(&b, "listen bench\n\tbind %s\n", s.listen)
	for i, addr := range s.backends {
		fmt.Fprintf(&b, "\tserver b%d %s\n", i, addr)
	}
	return b.String()
}

// nginx.

var (
	modulesPath   = regexp.MustCompile(`--modules-path=(\S+)`)
	streamBuiltIn = regexp.MustCompile(`--with-stream( |'|$)`)
)

// nginxStream returns the path of nginx's stream module, empty if it is built
// in.
func nginxStream(nginx string) (string, error) {
	about, err := exec.Command(nginx, "-V").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("nginx -V: %w", err)
	}
	if streamBuiltIn.Match(about) {
		return "", nil
	}
	if m := modulesPath.FindSubmatch(about); m != nil {
		module := filepath.Join(string(m[1]), "ngx_stream_module.so")
		if _, err := os.Stat(module); err == nil {
			return module, nil
		}
	}
	return "", fmt.Errorf("nginx has no stream module (make bench-peers)")
}

func nginxContender(path, module string) *contender {
	return &contender{
		name: nginxName, path: path, what: "stream module",
		version: []string{"-v"},
		command: func(s site) (*exec.Cmd, error) {
			file := filepath.Join(s.dir, "nginx.conf")
			if err := os.WriteFile(file, []byte(nginxConfig(s, module)), 0o644); err != nil {
				return nil, err
			}
			return exec.Command(s.path, "-p", s.dir, "-c", file, "-e", "stderr"), nil
		},
		through: nginxThrough,
		secured: func(s site) (*exec.Cmd, error) { return nginxSecured(s, module) },
	}
}

func nginxConfig(s site, module string) string {
	var b strings.Builder
	if module != "" {
		fmt.Fprintf(&b, "load_module %s;\n", module)
	}
	if os.Geteuid() == 0 {
		b.WriteString("user root;\n") // "nobody" may not be what a namespace knows
	}
	fmt.Fprintf(&b, "daemon off;\nworker_processes %d;\nworker_rlimit_nofile %d;\n", s.threads, s.files)
	fmt.Fprintf(&b, "pid %s;\nerror_log stderr error;\n", filepath.Join(s.dir, "nginx.pid"))
	fmt.Fprintf(&b, "events {\n\tworker_connections %d;\n}\nstream {\n\tupstream bench {\n", max(s.files-100, 100))
	for _, addr := range s.backends {
		fmt.Fprintf(&b, "\t\tserver %s;\n", addr)
	}
	// Its default backlog of 511 is enough for the load.
	fmt.Fprintf(&b, "\t}\n\tserver {\n\t\tlisten %s;\n\t\tproxy_pass bench;\n"+
		"\t\tproxy_half_close on;\n\t\tproxy_timeout 1h;\n\t}\n}\n", s.listen)
	return b.String()
}

// Our own.

func ioCopyCommand(s site) (*exec.Cmd, error) {
	return roleCommand(roleIOCopy, append([]string{s.listen}, s.backends...)...), nil
}

// roleCommand is this program in another role.
func roleCommand(role string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	if role != roleIOCopy && role != roleIOCopyTLS {
		// Nothing in these has to be preempted.
		cmd.Env = append(cmd.Env, "GODEBUG=asyncpreemptoff=1")
	}
	return cmd
}

var versionNumber = regexp.MustCompile(`(?i)(?:version:? |nginx/|gateway )\s*(\S+)`)

// programVersion asks a contender for its version.
func programVersion(c *contender) string {
	if c.version == nil {
		return ""
	}
	out, _ := exec.Command(c.path, c.version...).CombinedOutput()
	if m := versionNumber.FindStringSubmatch(string(out)); m != nil {
		return strings.TrimPrefix(m[1], "nginx/")
	}
	return "unknown"
}
