package web

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"gateway/internal/harness"
	"io"
	"net"
	"net/url"
	"os"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// ways are the functions of gateway.js that connect.
var ways = []string{"connect", "connectByQuery"}

// everyWay runs a test by each way, and each inside TLS.
func everyWay(t *testing.T, g *gateway, test func(t *testing.T, way, url string)) {
	for _, way := range ways {
		for name, url := range map[string]string{"ws": g.ws(), "wss": g.wss()} {
			t.Run(way+"/"+name, func(t *testing.T) { test(t, way, url) })
		}
	}
}

func TestAPageTalksThroughTheGateway(t *testing.T) {
	lab, page := startLab(t)
	line := harness.Line(harness.StartEcho(t))
	everyWay(t, lab.startGateway(t), func(t *testing.T, way, url string) {
		var got []string
		page.run(t, &got, `
			const tunnel = await gateway[args.way](args.url, args.line);
			const got = [];
			for (const data of ["hello, 世界", new Uint8Array([0, 200, 255]), new Uint8Array([9, 8, 7, 6]).subarray(1, 3).slice().buffer]) {
				tunnel.send(data);
				got.push(help.hex(await help.take(tunnel, new Blob([data]).size)));
			}
			tunnel.close();
			return got;`,
			args{"way": way, "url": url, "line": line})
		want := []string{hex.EncodeToString([]byte("hello, 世界")), "00c8ff", "0807"}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("the echo is %q, want %q", got, want)
		}
	})
}

func TestAMegabyteGoesBothWays(t *testing.T) {
	const size = 1 << 20
	down := bytes.Repeat([]byte("0123456789abcde\n"), size/16)
	hashes := make(chan string, 1)
	lab, page := startLab(t)
	line := harness.Line(harness.StartBackend(t, func(c *net.TCPConn) {
		var sending sync.WaitGroup
		sending.Go(func() { c.Write(down) }) // both ways at once
		defer sending.Wait()
		hash := sha256.New()
		io.CopyN(hash, c, size)
		hashes <- hex.EncodeToString(hash.Sum(nil))
		io.Copy(io.Discard, c)
	}))
	everyWay(t, lab.startGateway(t), func(t *testing.T, way, url string) {
		var got struct{ Sent, Received string }
		page.run(t, &got, `
			const tunnel = await gateway[args.way](args.url, args.line);
			const up = new Uint8Array(args.size);
			for (let i = 0; i < up.length; i += 65536) crypto.getRandomValues(up.subarray(i, i + 65536));
			const received = help.take(tunnel, args.size);
			tunnel.send(up.subarray(0, 1000));
			tunnel.send(up.subarray(1000));
			const hashes = { sent: await help.hash(up), received: await help.hash(await received) };
			await help.until(() => tunnel.bufferedAmount === 0);
			tunnel.close();
			return hashes;`,
			args{"way": way, "url": url, "line": line, "size": size})
		if hash := <-hashes; hash != got.Sent {
			t.Errorf("the backend got %s, the page sent %s", hash, got.Sent)
		}
		if hash := fmt.Sprintf("%x", sha256.Sum256(down)); hash != got.Received {
			t.Errorf("the page got %s, the backend sent %s", got.Received, hash)
		}
	})
}

// failure is an error of gateway.js.
type failure struct {
	Name    string
	Message string
	Status  int
}

// connectFails runs a way that must fail and returns the error.
func (p *page) connectFails(t *testing.T, way, url, line string) failure {
	t.Helper()
	var f failure
	p.run(t, &f, `return help.failure(gateway[args.way](args.url, args.line));`, args{"way": way, "url": url, "line": line})
	if f.Name != "GatewayError" {
		t.Errorf("the error is a %s: %s", f.Name, f.Message)
	}
	return f
}

func TestAPageLearnsWhyThereIsNoTunnel(t *testing.T) {
	lab, page := startLab(t)
	tests := []struct {
		name, line string
		status     int
		says       string
	}{
		{"a line too long", strings.Repeat("A", 2000), 400, "too long"},
		{"nonsense", "nonsense", 401, "get a new one"},
		{"no line", "", 401, "get a new one"},
		{"an HTTP server", harness.Line("http://" + harness.StartEcho(t)), 401, "get a new one"},
		{"nobody there", harness.Line(harness.ClosedPort(t)), 502, "cannot be connected"},
		{"no answer", harness.Line(blackhole(t)), 504, "took too long"},
	}
	for _, tt := range tests {
		if tt.name == "no answer" && runtime.GOOS != "linux" {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			g := lab.startGateway(t, "-timeout=200ms", "-log-level=debug")
			for _, url := range []string{g.ws(), g.wss()} {
				f := page.connectFails(t, "connect", url, tt.line)
				if f.Status != tt.status || !strings.Contains(f.Message, tt.says) || !strings.Contains(f.Message, fmt.Sprint(tt.status)) {
					t.Errorf("status %d, %q; want %d and %q", f.Status, f.Message, tt.status, tt.says)
				}
			}
		})
	}
}

func TestAPageThatAsksByTheQueryLearnsThatThereIsNoTunnel(t *testing.T) {
	lab, page := startLab(t)
	for line, status := range map[string]float64{"nonsense": 401, harness.Line(harness.ClosedPort(t)): 502} {
		g := lab.startGateway(t)
		f := page.connectFails(t, "connectByQuery", g.ws(), line)
		if f.Status != 0 || !strings.Contains(f.Message, "does not tell") {
			t.Errorf("status %d, %q", f.Status, f.Message)
		}
		if m := g.Log.WaitLine(t, "request", 1); m["status"] != status {
			t.Errorf("the gateway refused with %v, want %v", m["status"], status)
		}
	}
}

func TestAPageIsToldThatItAsksTheWrongServer(t *testing.T) {
	lab, page := startLab(t)
	g := lab.startGateway(t)
	silent := harness.StartBackend(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	echo := harness.StartEcho(t)
	bye := harness.StartBackend(t, func(c *net.TCPConn) { io.ReadFull(c, make([]byte, len("a line"))) })
	query := func(addr string) string {
		return "?x-cipher-origin=" + url.QueryEscape(strings.TrimSpace(harness.Line(addr)))
	}
	for name, tt := range map[string]struct{ url, says string }{
		"nobody there":     {"ws://" + harness.ClosedPort(t), "not there or refuses"},
		"no WebSockets":    {strings.Replace(lab.pages.URL, "http", "ws", 1), "not there or refuses"},
		"no answer":        {"ws://" + silent, "within 300 ms"},
		"no status":        {g.ws() + query(silent), "within 300 ms"},
		"an echo":          {g.ws() + query(echo), "no status"},
		"closes at once":   {g.ws() + query(bye), "without an answer (close code 1000)"},
		"closes, by query": {"ws://" + bye, "not there or refuses"},
	} {
		t.Run(name, func(t *testing.T) {
			var f failure
			page.run(t, &f, `return help.failure(gateway.connect(args.url, "a line", { timeout: 300 }));`, args{"url": tt.url})
			if f.Name != "GatewayError" || f.Status != 0 || !strings.Contains(f.Message, tt.says) {
				t.Errorf("%+v, want %q", f, tt.says)
			}
		})
	}
}

func TestAURLThatIsNoneIsAnErrorOfTheWebSocket(t *testing.T) {
	_, page := startLab(t)
	var f failure
	page.run(t, &f, `return help.failure(gateway.connect("ftp://127.0.0.1/", "a line"));`, nil)
	if f.Name != "SyntaxError" || !strings.Contains(f.Message, "ftp") {
		t.Errorf("%+v", f)
	}
}

func TestAPageLearnsHowATunnelEnds(t *testing.T) {
	lab, page := startLab(t)
	for _, tt := range []struct {
		name string
		end  func(*testing.T, *gateway, *net.TCPConn)
		code int
	}{
		{"the backend finishes", func(_ *testing.T, _ *gateway, c *net.TCPConn) { c.CloseWrite() }, 1000},
		{"the backend resets", func(_ *testing.T, _ *gateway, c *net.TCPConn) { c.SetLinger(0); c.Close() }, 1011},
		{"the gateway leaves", func(t *testing.T, g *gateway, _ *net.TCPConn) {
			if err := g.Cmd.Process.Signal(os.Interrupt); err != nil {
				t.Error(err)
			}
		}, 1001},
	} {
		if tt.code == 1001 && runtime.GOOS == "windows" {
			continue // it cannot be asked to
		}
		for _, way := range ways {
			t.Run(tt.name+"/"+way, func(t *testing.T) {
				g := lab.startGateway(t)
				backend := harness.StartBackend(t, func(c *net.TCPConn) {
					io.WriteString(c, "last words")
					io.ReadFull(c, make([]byte, 1)) // the page has them
					tt.end(t, g, c)
					io.Copy(io.Discard, c)
				})
				var got struct {
					Code     int
					WasClean bool
					Text     string
				}
				page.run(t, &got, `
					const tunnel = await gateway[args.way](args.url, args.line);
					const text = help.text(await help.take(tunnel, "last words".length));
					const end = help.end(tunnel);
					tunnel.send("!");
					const { code, wasClean } = await end;
					tunnel.send("too late");
					return { code, wasClean, text };`,
					args{"way": way, "url": g.ws(), "line": harness.Line(backend)})
				if got.Code != tt.code || !got.WasClean || got.Text != "last words" {
					t.Errorf("%+v, want code %d", got, tt.code)
				}
			})
		}
	}
}

func TestAPageLearnsThatItsConnectionBroke(t *testing.T) {
	lab, page := startLab(t)
	for _, way := range ways {
		t.Run(way, func(t *testing.T) {
			g := lab.startGateway(t)
			backend := harness.StartBackend(t, func(c *net.TCPConn) {
				io.ReadFull(c, make([]byte, 1))
				g.Cmd.Process.Kill()
			})
			var events []string
			page.run(t, &events, `
				const tunnel = await gateway[args.way](args.url, args.line);
				const events = [];
				const end = new Promise((resolve) => {
					tunnel.onerror = ({ message }) => events.push(message);
					tunnel.onclose = ({ code }) => { events.push(String(code)); resolve(); };
				});
				tunnel.send("!");
				await end;
				return events;`,
				args{"way": way, "url": g.ws(), "line": harness.Line(backend)})
			if got := strings.Join(events, ", "); got != "the connection broke; a browser does not tell pages why, 1006" {
				t.Error(got)
			}
		})
	}
}

func TestABackendGetsAllThatAPageSentBeforeItClosed(t *testing.T) {
	lab, page := startLab(t)
	received := make(chan string, 1)
	line := harness.Line(harness.StartBackend(t, func(c *net.TCPConn) {
		got, err := io.ReadAll(c)
		received <- fmt.Sprint(string(got), " ", err)
	}))
	everyWay(t, lab.startGateway(t), func(t *testing.T, way, url string) {
		var code int
		page.run(t, &code, `
			const tunnel = await gateway[args.way](args.url, args.line);
			const end = help.end(tunnel);
			tunnel.send("good");
			tunnel.send("bye");
			tunnel.close();
			return (await end).code;`,
			args{"way": way, "url": url, "line": line})
		if got := <-received; got != "goodbye <nil>" || code != 1000 {
			t.Errorf("the backend got %q, the page %d", got, code)
		}
	})
}

func TestWhatComesBeforeAPageListensIsKept(t *testing.T) {
	lab, page := startLab(t)
	line := harness.Line(harness.StartBackend(t, func(c *net.TCPConn) { io.WriteString(c, "welcome") }))
	everyWay(t, lab.startGateway(t), func(t *testing.T, way, url string) {
		var got struct {
			Code   int
			Text   string
			Events string
		}
		page.run(t, &got, `
			// When a second tunnel has ended, the first one has, too.
			const tunnel = await gateway[args.way](args.url, args.line);
			await help.end(await gateway[args.way](args.url, args.line));
			let text = "", events = "";
			return new Promise((resolve) => {
				tunnel.onclose = ({ code }) => { events += "close"; resolve({ code, text, events }); };
				tunnel.onmessage = (bytes) => { events += "message "; text += help.text(bytes); };
				events += "set ";
			});`,
			args{"way": way, "url": url, "line": line})
		if got.Text != "welcome" || got.Code != 1000 || got.Events != "set message close" {
			t.Errorf("%+v", got)
		}
	})
}

func TestOnlyPagesOfTheNamedOriginsOpenWebSockets(t *testing.T) {
	lab, page := startLab(t)
	line := harness.Line(harness.StartEcho(t))
	origin := strings.TrimPrefix(lab.pages.URL, "http://")
	for origins, allowed := range map[string]bool{
		"*":                       true,
		"other.example":           false,
		"other.example," + origin: true,
	} {
		for _, way := range ways {
			t.Run(origins+" "+way, func(t *testing.T) {
				g := lab.startGateway(t, "-ws-origins="+origins)
				if allowed {
					page.run(t, nil, `(await gateway[args.way](args.url, args.line)).close();`,
						args{"way": way, "url": g.ws(), "line": line})
					return
				}
				if f := page.connectFails(t, way, g.ws(), line); f.Status != 0 || !strings.Contains(f.Message, "refuses") {
					t.Errorf("status %d, %q", f.Status, f.Message)
				}
				if m := g.Log.WaitLine(t, "request", 1); m["status"] != 403.0 || m["reason"] != "origin" {
					t.Errorf("the gateway logged %v", m)
				}
			})
		}
	}
}

func TestAPageThatCameThroughTheGatewayIsOfItsOrigin(t *testing.T) {
	lab, page := startLab(t)
	g := lab.startGateway(t, "-ws-origins=other.example")
	src := "http://" + g.Addr + "/driver.html?" + url.Values{
		"page":            {"inner"},
		"x-cipher-origin": {strings.TrimSpace(harness.Line(lab.pages.URL))},
	}.Encode()
	page.run(t, nil, `await help.frame(args.src);`, args{"src": src})
	defer page.run(t, nil, `document.querySelector("iframe").remove();`, nil)

	proxied := *page
	proxied.name = "inner" // its requests for tasks come through the gateway, too
	var got struct{ Origin, Text string }
	proxied.run(t, &got, `
		const tunnel = await gateway.connect(args.url, args.line);
		tunnel.send("hello");
		const text = help.text(await help.take(tunnel, 5));
		tunnel.close();
		return { origin: location.origin, text };`,
		args{"url": g.ws(), "line": harness.Line(harness.StartEcho(t))})
	if got.Origin != "http://"+g.Addr || got.Text != "hello" {
		t.Errorf("%+v", got)
	}
}

// openChat opens index.html in a frame and connects; run's code then has the
// page's document.
const openChat = `
	const { document: doc } = await help.frame("index.html#" + args.hash);
	const { door, chat } = doc.forms;
	const lines = () => [...doc.querySelectorAll("#log li")].map((item) => item.textContent);
	const close = () => document.querySelector("iframe").remove();
	door.elements.way.value = args.way;
	door.elements.go.click();
	await help.until(() => lines().length === 1);
`

// hash is what fills in the form of index.html.
func hash(gateway, line string) string {
	return "gateway=" + gateway + "&line=" + strings.TrimSpace(line) // a + stays a +
}

func TestTheChatShowsTheEchoAndItsLatency(t *testing.T) {
	lab, page := startLab(t)
	g := lab.startGateway(t)
	echo := harness.StartEcho(t)
	line := harness.Line(echo)
	for !strings.Contains(line, "+") { // it has to survive the fragment
		line = harness.Line(echo)
	}
	for _, way := range []string{"message", "query"} {
		t.Run(way, func(t *testing.T) {
			var got struct {
				Lines   []string
				Latency string
				Bars    int
				Button  string
			}
			page.run(t, &got, openChat+`
				chat.elements.text.value = "hello, 世界 <b>";
				chat.requestSubmit();
				await help.until(() => lines().length === 2);
				chat.elements.burst.click();
				await help.until(() => lines().length === 22);
				const latency = doc.getElementById("latency").textContent;
				const bars = doc.querySelectorAll("#bars rect").length;
				door.elements.go.click();
				await help.until(() => lines().length === 23);
				const result = { lines: lines(), latency, bars, button: door.elements.go.textContent };
				close();
				return result;`,
				args{"way": way, "hash": hash(g.wss(), line)})
			const ms = `\d+\.\d ms`
			for i, want := range map[int]string{
				0: "connected" + ms, 1: "hello, 世界 <b>" + ms, 2: "1 of 20" + ms, 21: "20 of 20" + ms, 22: `closed \(1000\)`,
			} {
				if !regexp.MustCompile("^" + want + "$").MatchString(got.Lines[i]) {
					t.Errorf("line %d is %q, want %s", i, got.Lines[i], want)
				}
			}
			if want := "^round trip: median " + ms + `, \d+\.\d to ` + ms + "$"; !regexp.MustCompile(want).MatchString(got.Latency) {
				t.Errorf("the latency is %q, want %s", got.Latency, want)
			}
			if got.Bars != 21 || got.Button != "Connect" {
				t.Errorf("%d bars, and a button %q", got.Bars, got.Button)
			}
		})
	}
}

func TestTheChatShowsWhyThereIsNoTunnel(t *testing.T) {
	lab, page := startLab(t)
	g := lab.startGateway(t)
	var got struct {
		Lines            []string
		Disabled, Closed bool
	}
	page.run(t, &got, openChat+`
		const result = { lines: lines(), disabled: door.elements.go.disabled, closed: chat.elements.text.disabled };
		close();
		return result;`,
		args{"way": "message", "hash": hash(g.ws(), "nonsense")})
	if !strings.Contains(got.Lines[0], "401") || got.Disabled || !got.Closed {
		t.Errorf("%+v", got)
	}
}

func TestTheDocumentedExampleTalksThroughTheGateway(t *testing.T) {
	lab, page := startLab(t)
	g := lab.startGateway(t)
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)```js\n(.*?)```").FindSubmatch(text)
	if m == nil {
		t.Fatal("README.md has no example")
	}
	code := strings.NewReplacer(
		`import { connect } from "./gateway.js";`, `const { connect } = gateway;`,
		`"wss://play.example.com/"`, `args.url`,
		`console.log(`, `said.push(`,
	).Replace(string(m[1]))
	var said []any
	page.run(t, &said, `
		const said = [], line = args.line;`+code+`
		await help.until(() => said.length === 1);
		tunnel.close();
		await help.until(() => said.length === 2);
		return said;`,
		args{"url": g.wss(), "line": harness.Line(harness.StartEcho(t))})
	if fmt.Sprint(said) != "[hello closed 1000]" {
		t.Errorf("it said %q", said)
	}
}

func TestBothReadmesHaveTheSameCode(t *testing.T) {
	var blocks [2][]string
	for i, name := range []string{"README.md", "README.zh-CN.md"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		blocks[i] = regexp.MustCompile("(?s)```.*?```").FindAllString(string(text), -1)
	}
	if len(blocks[0]) == 0 || strings.Join(blocks[0], "\n") != strings.Join(blocks[1], "\n") {
		t.Errorf("the code is\n%s\nin English and\n%s\nin Chinese", blocks[0], blocks[1])
	}
}
