package web

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gateway/internal/harness"
)

// What has WebSockets and is no browser: Node, and mini-games by their adapters.

// elsewhere is what scripts of these tests have: gateway, and Own, the WebSocket of
// Node, which is no global there. Fake does as it is told, like one of the adapters:
// an error that nobody takes is thrown, as by npm's ws, and is all that comes.
const elsewhere = `
import * as gateway from "./gateway.mjs";
const Own = globalThis.WebSocket;
delete globalThis.WebSocket;
class Fake {
  constructor() { Fake.last = this; }
  send() {}
  close() { queueMicrotask(() => this.fail("closed before it was open")); }
  fail(message) { this.say("error", { message }); }
  say(event, details) {
    const f = this["on" + event];
    if (f) f(details);
    else if (event === "error") throw new Error("nobody took: " + details.message);
  }
  // opened resolves with the tunnel of a Fake.
  static opened() {
    const tunnel = gateway.connect("ws://fake/", "a line", { WebSocket: Fake });
    Fake.last.say("open", {});
    Fake.last.say("message", { data: new TextEncoder().encode("200") });
    return tunnel;
  }
}
const failure = (promise) => promise.then(
  () => { throw new Error("there is a tunnel"); },
  ({ name, message, status }) => ({ Name: name, Message: message, Status: status }));
const print = (value) => console.log(JSON.stringify(value));
`

// node runs a script behind elsewhere, with an address and a line as its
// arguments, and stores what it prints in result.
func node(t *testing.T, result any, script, url, line string) {
	t.Helper()
	harness.LookPath(t, "node")
	const flag = "--experimental-websocket" // needed by Node 20, taken by later ones
	if exec.Command("node", flag, "-e", "new WebSocket('ws://127.0.0.1:1').onerror = () => {}").Run() != nil {
		t.Skip("node is older than 20.10, and has no WebSocket")
	}
	dir := t.TempDir()
	text, err := os.ReadFile("gateway.js")
	if err != nil {
		t.Fatal(err)
	}
	main := filepath.Join(dir, "main.mjs")
	for name, text := range map[string]string{"gateway.mjs": string(text), "main.mjs": elsewhere + script} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "node", flag, main, url, strings.TrimSpace(line))
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	ended := time.AfterFunc(3*harness.Patience, func() { cmd.Process.Kill() })
	defer ended.Stop()
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s%s", err, stdout.String(), stderr.String())
	}
	if err := json.Unmarshal(stdout.Bytes(), result); err != nil {
		t.Fatalf("%s: %v", stdout.String(), err)
	}
}

func TestAGivenWebSocketTalksThroughTheGateway(t *testing.T) {
	g := harness.Start(t, "-drain=0")
	var got string
	node(t, &got, `
		const [url, line] = process.argv.slice(2);
		const tunnel = await gateway.connect(url, line, { WebSocket: Own });
		const decoder = new TextDecoder();
		let text = "";
		tunnel.onmessage = (bytes) => {
			text += decoder.decode(bytes, { stream: true });
			if (text === "hello, 世界") tunnel.close();
		};
		tunnel.onclose = () => print(text);
		tunnel.send("hello, 世界");`,
		"ws://"+g.Addr+"/", harness.Line(harness.StartEcho(t)))
	if got != "hello, 世界" {
		t.Errorf("the echo is %q", got)
	}
}

// Node 20 has no close event behind such an error, nor have some mini-games: who
// waits for one learns nothing but that the time is over.
func TestAFailureIsTheErrorOfTheGivenWebSocket(t *testing.T) {
	for _, way := range ways {
		var f failure
		node(t, &f, `print(await failure(gateway.`+way+`(process.argv[2], "a line", { WebSocket: Own, timeout: 1e6 })));
			process.exit();`, "ws://"+harness.ClosedPort(t)+"/", "")
		if f.Name != "GatewayError" || f.Status != 0 || !strings.Contains(f.Message, "not there or refuses: Received network error") {
			t.Errorf("%s: %+v", way, f)
		}
	}
}

func TestEveryErrorOfAWebSocketIsTaken(t *testing.T) {
	var got []failure
	node(t, &got, `
		const of = async (act) => {
			const failed = failure(gateway.connect("ws://fake/", "a line", { WebSocket: Fake, timeout: 10 }));
			act(Fake.last);
			return failed;
		};
		print([
			await of((ws) => ws.fail("ECONNREFUSED")),
			await of((ws) => ws.say("error", { errMsg: "url not in domain list" })),
			await of((ws) => { ws.say("open", {}); ws.fail("ECONNRESET"); }),
			await of(() => {}), // the time passes
			await failure(gateway.connect("ws://fake/", "a line")),
		]);`, "", "")
	for i, want := range []failure{
		{"GatewayError", "the gateway is not there or refuses: ECONNREFUSED", 0},
		{"GatewayError", "the gateway is not there or refuses: url not in domain list", 0},
		{"GatewayError", "the connection broke before the gateway answered: ECONNRESET", 0},
		{"GatewayError", "no answer from the gateway within 10 ms", 0},
		{"TypeError", "there is no WebSocket here: give one in the options, as { WebSocket }", 0},
	} {
		if i >= len(got) || got[i] != want {
			t.Errorf("%+v, want %+v as number %d", got, want, i)
		}
	}
}

func TestATunnelThatBreaksSaysWhy(t *testing.T) {
	var got [][]string
	node(t, &got, `
		const events = async (...last) => {
			const got = [];
			const tunnel = await Fake.opened();
			const listen = () => {
				tunnel.onmessage = () => got.push("message");
				tunnel.onerror = ({ message }) => got.push(message);
				tunnel.onclose = ({ code }) => got.push(String(code));
			};
			if (last.includes("soon")) listen();
			Fake.last.say("message", { data: new ArrayBuffer(3) });
			Fake.last.fail("ECONNRESET");
			Fake.last.say("close", { code: 1006 });
			listen();
			await new Promise((next) => setTimeout(next));
			return got;
		};
		print([await events("soon"), await events("late")]);`, "", "")
	want := "message, the connection broke: ECONNRESET, 1006"
	for _, events := range got {
		if strings.Join(events, ", ") != want {
			t.Errorf("%q, want %s", events, want)
		}
	}
	if len(got) != 2 {
		t.Error(got)
	}
}
