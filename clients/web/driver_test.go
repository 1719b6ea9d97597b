package web

import (
	"encoding/json"
	"gateway/internal/harness"
	"net/http"
	"testing"
	"time"
)

// How a test runs code in a page: the page asks the test for it by HTTP, and
// reports what it returned in the same way. So the code stands beside what is
// expected of it, and the browser needs no remote control.

// driver is a page that asks for code, runs it and reports what it returns. All
// it asks for has its own query: if that holds a sealed address, the page and
// everything of it comes through the gateway.
const driver = `<!doctype html>
<meta charset="utf-8">
<title>driver</title>
<link rel="icon" href="data:,">
<body>
<script type="module">
const gateway = await import("./gateway.js" + location.search);
const help = {
  // take resolves with the next n bytes.
  take(tunnel, n) {
    return new Promise((resolve, reject) => {
      const got = new Uint8Array(n);
      let have = 0;
      tunnel.onclose = ({ code }) => reject(new Error("closed with " + code + " after " + have + " of " + n + " bytes"));
      tunnel.onmessage = (bytes) => {
        if (have + bytes.length > n) return reject(new Error("more than " + n + " bytes"));
        got.set(bytes, have);
        have += bytes.length;
        if (have === n) resolve(got);
      };
    });
  },
  // end resolves at the end with its code and the text that came until then.
  end(tunnel) {
    return new Promise((resolve) => {
      let text = "";
      tunnel.onmessage = (bytes) => text += help.text(bytes);
      tunnel.onclose = ({ code, wasClean }) => resolve({ code, wasClean, text });
    });
  },
  // failure resolves with the error of a promise.
  failure: (promise) => promise.then(
    () => { throw new Error("there is a tunnel"); },
    ({ name, message, status }) => ({ name, message, status })),
  text: (bytes) => new TextDecoder().decode(bytes),
  hex: (bytes) => [...bytes].map((b) => b.toString(16).padStart(2, "0")).join(""),
  hash: async (bytes) => help.hex(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))),
  // until resolves when a condition holds.
  async until(condition) {
    while (!condition()) await new Promise((next) => setTimeout(next, 5));
  },
  // frame resolves with another page's window inside this one.
  frame(url) {
    return new Promise((resolve) => {
      const frame = document.createElement("iframe");
      frame.onload = () => resolve(frame.contentWindow);
      frame.src = url;
      document.body.append(frame);
    });
  },
};
const AsyncFunction = (async () => {}).constructor;

async function run({ id, code, args }) {
  const report = { id };
  try {
    report.value = await new AsyncFunction("gateway", "help", "args", code)(gateway, help, args);
  } catch (error) {
    report.error = String(error);
  }
  await fetch("report" + location.search, { method: "POST", body: JSON.stringify(report) });
}
for (;;) run(await (await fetch("task" + location.search)).json());
</script>
`

// task is what the driver is asked to run, and report what became of it.
type (
	task struct {
		ID   int    `json:"id"`
		Code string `json:"code"`
		Args args   `json:"args"`
	}
	args   map[string]any
	report struct {
		ID    int             `json:"id"`
		Value json.RawMessage `json:"value"`
		Error string          `json:"error"`
	}
)

// page is a driver in the browser.
type page struct {
	lab  *lab
	name string
}

func (l *lab) tasksOf(page string) chan task {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tasks[page] == nil {
		l.tasks[page] = make(chan task)
	}
	return l.tasks[page]
}

func (l *lab) serveTask(w http.ResponseWriter, r *http.Request) {
	l.once.Do(func() { close(l.asking) })
	select {
	case t := <-l.tasksOf(r.URL.Query().Get("page")):
		json.NewEncoder(w).Encode(t)
	case <-r.Context().Done():
	}
}

func (l *lab) serveReport(w http.ResponseWriter, r *http.Request) {
	var rep report
	if err := json.NewDecoder(r.Body).Decode(&rep); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.asked[rep.ID]; c != nil {
		c <- rep
		delete(l.asked, rep.ID)
	}
}

// run runs code in the page, where args are known by that name, and stores
// what it returns in result, unless that is nil.
func (p *page) run(t *testing.T, result any, code string, a args) {
	t.Helper()
	l := p.lab
	answer := make(chan report, 1)
	l.mu.Lock()
	l.lastID++
	id := l.lastID
	l.asked[id] = answer
	l.mu.Unlock()

	timeout := time.After(harness.Patience)
	tasks := l.tasksOf(p.name)
	for {
		select {
		case tasks <- task{id, code, a}:
			tasks = nil
		case rep := <-answer:
			if rep.Error != "" {
				t.Fatal(rep.Error)
			}
			if result != nil {
				if err := json.Unmarshal(rep.Value, result); err != nil {
					t.Fatalf("%s: %v", rep.Value, err)
				}
			}
			return
		case <-l.exited:
			t.Fatalf("the browser ended: %v\n%s", l.waitErr, l.stderr.String())
		case <-timeout:
			t.Fatalf("not after %v; the browser says\n%s", harness.Patience, l.stderr.String())
		}
	}
}
