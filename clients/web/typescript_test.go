package web

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"gateway/internal/harness"
)

// The kit in clients/typescript, by the browser's own WebSocket.

// buildKit puts the kit where pages find it, below /kit/.
func (l *lab) buildKit(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(l.file("kit")); err == nil {
		return
	}
	if _, err := exec.LookPath("tsc"); err != nil && mustHaveBrowser {
		t.Fatal(err)
	}
	harness.LookPath(t, "tsc")
	script, err := filepath.Abs("../typescript/build.sh")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sh", script, l.file("kit")).CombinedOutput(); err != nil {
		os.RemoveAll(l.file("kit"))
		t.Fatalf("%v\n%s", err, out)
	}
}

// inKit is code in front of that of a test: the kit, and what tests do with a tunnel of
// its.
const inKit = `
	const kit = await import("/kit/esm/index.js");
	const dialer = new kit.Dialer({ gateways: args.gateways, plain: args.plain, timeout: args.timeout, newLine: args.fresh && (() => args.fresh) });
	// take resolves with the next n bytes, rest with all there is until the end.
	const take = (tunnel, n) => new Promise((resolve, reject) => {
		let got = new Uint8Array(0);
		tunnel.onclose = (error) => reject(error || new Error("the end, after " + got.length + " of " + n + " bytes"));
		tunnel.onmessage = (bytes) => {
			const all = new Uint8Array(got.length + bytes.length);
			all.set(got);
			all.set(bytes, got.length);
			got = all;
			if (got.length >= n) resolve(got);
		};
	});
	const rest = (tunnel) => new Promise((resolve) => {
		let text = "";
		tunnel.onmessage = (bytes) => { text += help.text(bytes); };
		tunnel.onclose = (error) => resolve({ text, error: error && String(error) });
	});
`

// eachForm runs a test with a plain tunnel and with a resumable one, each also inside
// TLS.
func eachForm(t *testing.T, g *gateway, test func(t *testing.T, a args, resumable bool)) {
	for _, url := range []string{g.ws(), g.wss()} {
		for _, plain := range []bool{true, false} {
			scheme, _, _ := strings.Cut(url, ":")
			t.Run(fmt.Sprintf("%s plain=%v", scheme, plain), func(t *testing.T) {
				test(t, args{"gateways": url, "plain": plain}, !plain)
			})
		}
	}
}

func TestTheTypeScriptKitTalksInABrowser(t *testing.T) {
	lab, page := startLab(t)
	lab.buildKit(t)
	line := harness.Line(harness.StartEcho(t))
	eachForm(t, lab.startGateway(t, "-resume=1"), func(t *testing.T, a args, resumable bool) {
		a["line"] = line
		var got struct {
			Echoes    []string
			Resumable bool
		}
		page.run(t, &got, inKit+`
			const tunnel = await dialer.dial(args.line);
			const echoes = [];
			for (const data of ["hello, 世界", new Uint8Array([0, 200, 255]), new Uint8Array(100000).fill(7)]) {
				const size = new Blob([data]).size, echo = take(tunnel, size);
				tunnel.send(data);
				const bytes = await echo;
				echoes.push(size < 100 ? help.hex(bytes) : bytes.length + " " + bytes.every((b) => b === 7));
			}
			tunnel.close();
			return { echoes, resumable: tunnel.resumable };`, a)
		want := []string{hex.EncodeToString([]byte("hello, 世界")), "00c8ff", "100000 true"}
		if strings.Join(got.Echoes, ", ") != strings.Join(want, ", ") || got.Resumable != resumable {
			t.Errorf("%+v, want %q", got, want)
		}
	})
}

func TestTheTypeScriptKitTellsTheStatusesInABrowser(t *testing.T) {
	lab, page := startLab(t)
	lab.buildKit(t)
	g := lab.startGateway(t, "-resume=1", "-timeout=200ms")
	silent := harness.StartBackend(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	for want, a := range map[string]args{
		"BadRequest 400 reconnect":             {"gateways": g.ws(), "line": strings.Repeat("A", 2000)},
		"Unauthorized 401 new line":            {"gateways": g.ws(), "line": "nonsense"},
		"BadGateway 502 new line or later":     {"gateways": g.wss(), "line": harness.Line(harness.ClosedPort(t))},
		"GatewayTimeout 504 new line or later": {"gateways": g.ws(), "line": harness.Line(blackhole(t))},
		"NoAnswer 0 reconnect":                 {"gateways": "ws://" + harness.ClosedPort(t), "line": "a line"},
		"NoAnswer 0 reconnect, in time":        {"gateways": "ws://" + silent, "line": "a line", "timeout": 300},
	} {
		if strings.Contains(want, " 504 ") && runtime.GOOS != "linux" {
			continue // no black hole there
		}
		for _, plain := range []bool{true, false} {
			a["plain"] = plain
			var got string
			page.run(t, &got, inKit+`
				return dialer.dial(args.line).then(() => "a tunnel", (e) =>
					[e.constructor.name, e.status, e.advice].join(" ") + (e instanceof kit.GatewayError ? "" : " of another kind"));`, a)
			if got != strings.TrimSuffix(want, ", in time") {
				t.Errorf("plain=%v: %s, want %s", plain, got, want)
			}
		}
	}
}

func TestTheTypeScriptKitTriesGatewaysAndANewLineInABrowser(t *testing.T) {
	lab, page := startLab(t)
	lab.buildKit(t)
	g := lab.startGateway(t, "-resume=1")
	var got string
	page.run(t, &got, inKit+`
		const tunnel = await dialer.dial("stale");
		const echo = take(tunnel, 5);
		tunnel.send("hello");
		const text = help.text(await echo);
		tunnel.close();
		return text;`,
		args{"gateways": []string{"ws://" + harness.ClosedPort(t), g.ws()}, "fresh": harness.Line(harness.StartEcho(t))})
	if got != "hello" {
		t.Errorf("the echo is %q", got)
	}
}

func TestTheTypeScriptKitEndsTunnelsInABrowser(t *testing.T) {
	lab, page := startLab(t)
	lab.buildKit(t)
	received := make(chan string, 1)
	line := harness.Line(harness.StartBackend(t, func(c *net.TCPConn) {
		all, err := io.ReadAll(c)
		fmt.Fprintf(c, "%d bytes", len(all)) // nobody may be there to read it
		received <- fmt.Sprint(string(all), " ", err)
	}))
	eachForm(t, lab.startGateway(t, "-resume=1"), func(t *testing.T, a args, resumable bool) {
		a["line"] = line
		page.run(t, nil, inKit+`
			const tunnel = await dialer.dial(args.line);
			tunnel.send("good");
			tunnel.send("bye");
			tunnel.close();`, a)
		if got := <-received; got != "goodbye <nil>" {
			t.Errorf("of close the backend makes %q", got)
		}
		var end struct{ Text, Error string }
		page.run(t, &end, inKit+`
			const tunnel = await dialer.dial(args.line);
			const end = rest(tunnel);
			tunnel.send("goodbye");
			try {
				tunnel.closeWrite();
			} catch (e) {
				tunnel.close();
				return { error: String(e) };
			}
			return end;`, a)
		want := "7 bytes"
		if !resumable { // a WebSocket has no half-close
			want = "Error: a WebSocket has no half-close: use close"
		}
		if end.Text+end.Error != want {
			t.Errorf("of closeWrite the page makes %+v, want %q", end, want)
		}
		if got := <-received; got != "goodbye <nil>" {
			t.Errorf("of closeWrite the backend makes %q", got)
		}
	})
}

// cutter leads to a gateway, and cuts each of the first cuts connections when the
// client has got so many bytes by it.
func cutter(t *testing.T, gateway string, cuts, after int64) (addr string, conns func() int64) {
	var n atomic.Int64
	addr = harness.StartBackend(t, func(c *net.TCPConn) {
		whole := n.Add(1) > cuts
		g, err := net.Dial("tcp", gateway)
		if err != nil {
			t.Error(err)
			return
		}
		var up sync.WaitGroup
		up.Go(func() {
			io.Copy(g, struct{ io.Reader }{c})
			g.(*net.TCPConn).CloseWrite()
		})
		if whole {
			io.Copy(c, g)
			c.CloseWrite()
		} else {
			io.CopyN(c, g, after)
			harness.Reset(c)
		}
		g.Close()
		up.Wait()
	})
	return addr, n.Load
}

func TestTheTypeScriptKitResumesInABrowser(t *testing.T) {
	lab, page := startLab(t)
	lab.buildKit(t)
	const size, cuts = 300000, 10
	g := lab.startGateway(t, "-resume=1")
	for _, scheme := range []string{"ws", "wss"} {
		t.Run(scheme, func(t *testing.T) {
			addr, conns := cutter(t, g.Addr, cuts, 20000)
			var got struct {
				Sent, Received string
				Resumes        int64
			}
			page.run(t, &got, inKit+`
				const tunnel = await dialer.dial(args.line);
				const up = new Uint8Array(args.size);
				for (let i = 0; i < up.length; i += 65536) crypto.getRandomValues(up.subarray(i, i + 65536));
				const echo = take(tunnel, args.size);
				for (let i = 0; i < up.length; i += 10000) tunnel.send(up.subarray(i, i + 10000));
				tunnel.reconnect(); // as when the system tells of another network
				const received = await echo;
				const result = { sent: await help.hash(up), received: await help.hash(received), resumes: tunnel.resumes };
				tunnel.close();
				return result;`,
				args{"gateways": scheme + "://" + addr, "line": harness.Line(harness.StartEcho(t)), "size": size})
			if got.Sent != got.Received || got.Sent == fmt.Sprintf("%x", sha256.Sum256(nil)) {
				t.Errorf("%+v", got)
			}
			// A reset can take the status along: then there was nothing to resume by.
			if got.Resumes < cuts/2 || conns() <= cuts {
				t.Errorf("resumed %d times by %d connections", got.Resumes, conns())
			}
		})
	}
}

func TestTheTypeScriptKitTellsThatASessionIsGoneInABrowser(t *testing.T) {
	lab, page := startLab(t)
	lab.buildKit(t)
	g := lab.startGateway(t, "-resume=1")
	page.run(t, nil, inKit+`
		const tunnel = await dialer.dial(args.line);
		const echo = take(tunnel, 5);
		tunnel.send("hello");
		await echo;
		window.gone = new Promise((resolve) => { tunnel.onclose = resolve; });
		window.kit = kit;`,
		args{"gateways": g.ws(), "line": harness.Line(harness.StartEcho(t))})
	g.Kill()
	lab.startGateway(t, "-resume=1", "-addr="+g.Addr) // knows nothing of it
	var got string
	page.run(t, &got, `
		const e = await window.gone;
		return [e.constructor.name, e.status, e.advice, e instanceof window.kit.Gone].join(" ");`, nil)
	if got != "Gone 410 start anew true" {
		t.Errorf("it is told %s", got)
	}
}
