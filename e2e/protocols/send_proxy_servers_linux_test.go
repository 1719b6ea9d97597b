package protocols

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gateway/internal/harness"
)

// Real servers read the PROXY header: nginx and HAProxy as distributions ship
// them. make test-peers installs them.

// needPeers in the environment says that the peers must be there. It is read
// before TestMain clears the environment.
var needPeers = os.Getenv("NEED_PEERS") == "1"

// nginx answers with what the header said, and so does HAProxy. Only HAProxy
// tells of the unique id: Debian's nginx is too old for it.
const (
	nginxConf = `
daemon off;
master_process off;
pid nginx.pid;
error_log stderr;
events { worker_connections 64; }
http {
	access_log off;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
	server {
		listen LISTEN proxy_protocol;
		return 200 "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port ";
	}
}
`
	haproxyConf = `
defaults
	mode http
	timeout connect 10s
	timeout client 10s
	timeout server 10s
frontend f
	bind LISTEN accept-proxy
	http-request return status 200 content-type text/plain lf-string "%[src] %[src_port] %[dst] %[dst_port] %[fc_pp_unique_id]"
`
)

// startPeer runs a server with a configuration until the test ends, and
// returns its address.
func startPeer(t *testing.T, binary, conf string, args ...string) string {
	t.Helper()
	path := harness.FindServer(t, binary, needPeers, "test-peers")
	addr := harness.ClosedPort(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "conf")
	harness.WriteFile(t, file, strings.ReplaceAll(conf, "LISTEN", addr))
	for i := range args {
		args[i] = strings.NewReplacer("DIR", dir, "CONF", file).Replace(args[i])
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = dir
	p := harness.Launch(t, cmd)
	harness.Eventually(t, binary+" listens", func() bool {
		if !p.Runs() {
			t.Fatalf("%s ended", binary)
		}
		return harness.IsListening(addr)
	})
	return addr
}

// httpGet returns the body of the answer on a connection that carries one
// request, in the plainest HTTP.
func httpGet(t *testing.T, c *net.TCPConn) string {
	t.Helper()
	harness.Send(t, c, "GET / HTTP/1.0\r\n\r\n")
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Error(err)
	}
	head, body, ok := strings.Cut(string(answer), "\r\n\r\n")
	if !ok || !strings.Contains(head, " 200 ") {
		t.Errorf("the peer answered %q", answer)
	}
	return body
}

func TestRealServersReadTheHeader(t *testing.T) {
	t.Parallel()
	for _, peer := range []struct {
		name, conf string
		args       []string
		tellsID    bool
	}{
		{"nginx", nginxConf, []string{"-p", "DIR", "-c", "CONF", "-e", "stderr"}, false},
		{"haproxy", haproxyConf, []string{"-db", "-f", "CONF"}, true},
	} {
		t.Run(peer.name, func(t *testing.T) {
			backend := startPeer(t, peer.name, peer.conf, peer.args...)
			for _, version := range []string{"v1", "v2"} {
				for _, loops := range []string{"-loops=0", "-loops=-1"} {
					t.Run(version+" "+loops, func(t *testing.T) {
						p := harness.Start(t, "-send-proxy="+version, loops, "-listen=localhost:0=forward:"+backend,
							"-listen=[::1]:0=sealed", "-listen=127.0.0.1:0=forward:"+harness.ByName(backend))
						bodies := make(map[string]string) // by client
						heads := make(map[string]string)  // what they have to begin with
						for _, l := range p.Listeners(t, 4) {
							var c *net.TCPConn
							if l["forward"] != nil {
								c = harness.Connect(t, l["addr"].(string))
							} else {
								c = harness.OpenTunnel(t, l["addr"].(string), backend)
							}
							client, local := harness.AddrPort(c.LocalAddr()), harness.AddrPort(c.RemoteAddr())
							bodies[client.String()] = httpGet(t, c)
							heads[client.String()] = fmt.Sprintf("%s %d %s %d ", client.Addr(), client.Port(), local.Addr(), local.Port())
							c.Close()
						}
						p.Log.WaitLine(t, "tunnel", len(bodies))
						for _, line := range p.Log.Lines("tunnel") {
							client, id := line["client"].(string), ""
							if peer.tellsID && version == "v2" {
								id = line["id"].(string)
							}
							if want := heads[client] + id; bodies[client] != want {
								t.Errorf("the peer was told %q, want %q", bodies[client], want)
							}
						}
					})
				}
			}
		})
	}
}
