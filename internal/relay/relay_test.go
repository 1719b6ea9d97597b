package relay

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	before := runtime.NumGoroutine()
	code := m.Run()
	for deadline := time.Now().Add(patience); code == 0 && runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<16)
			os.Stderr.Write(buf[:runtime.Stack(buf, true)])
			code = 1
		}
	}
	os.Exit(code)
}

func copyAll(dst io.Writer, src io.Reader) error {
	_, err := io.Copy(dst, src)
	return err
}

// start relays between a client and a backend, whose far ends it returns.
func start(t *testing.T, o Options, early string) (client, backend *net.TCPConn, r *Relay, ended chan End) {
	t.Helper()
	if o.Pump == nil {
		o.Pump = copyAll
	}
	if o.Bounds.HalfClosed == 0 {
		o.Bounds.HalfClosed = time.Hour
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	r = New(o)
	client, here := pair(t)
	there, backend := pair(t)
	ended = make(chan End, 1)
	go func() { ended <- r.Run(here, there, []byte(early)) }()
	t.Cleanup(r.Close)
	return client, backend, r, ended
}

// pair returns the ends of a connection.
func pair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, conn := range []net.Conn{c, d} {
		conn.SetDeadline(time.Now().Add(patience))
		t.Cleanup(func() { conn.Close() })
	}
	d.SetDeadline(time.Time{}) // the relay's own
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

func read(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); string(got[:n]) != want {
		t.Fatalf("read %q, %v; want %q", got[:n], err, want)
	}
}

func end(t *testing.T, ended chan End, want End) {
	t.Helper()
	select {
	case got := <-ended:
		if got.FirstByte, got.Idle = 0, 0; got != want { // see TestAnEndTellsTimes
			t.Errorf("ended %+v, want %+v", got, want)
		}
	case <-time.After(patience):
		t.Fatal("Run does not return")
	}
}

func TestEachDirectionEndsByItselfAndBothAreCounted(t *testing.T) {
	client, backend, r, ended := start(t, Options{}, "early ")
	io.WriteString(client, "question")
	client.CloseWrite()
	if got, err := io.ReadAll(backend); string(got) != "early question" || err != nil {
		t.Errorf("the backend got %q, %v", got, err)
	}
	io.WriteString(backend, "a longer answer")
	backend.Close()
	if got, err := io.ReadAll(client); string(got) != "a longer answer" || err != nil {
		t.Errorf("the client got %q, %v", got, err)
	}
	end(t, ended, End{Up: 14, Down: 15, Ending: Ending{Client, FIN}})
	if up, down := r.Copied(); up != 14 || down != 15 {
		t.Errorf("%d bytes up and %d down in all", up, down)
	}
}

func TestAClientsResetIsAResetForTheBackend(t *testing.T) {
	client, backend, _, ended := start(t, Options{}, "")
	io.WriteString(client, "x")
	read(t, backend, "x")
	client.SetLinger(0)
	client.Close()
	if _, err := backend.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the backend's read ended with %v", err)
	}
	end(t, ended, End{Up: 1, Ending: Ending{Client, Reset}})
}

func TestABackendsResetIsTheEndOfWhatItSent(t *testing.T) {
	client, backend, _, ended := start(t, Options{}, "")
	io.WriteString(backend, "last words")
	read(t, client, "last")
	backend.SetLinger(0)
	backend.Close()
	if rest, err := io.ReadAll(client); !strings.HasPrefix(" words", string(rest)) || err != nil {
		t.Errorf("read %q, %v", rest, err)
	}
	client.Close()
	if got := <-ended; got.Ending != (Ending{Backend, Reset}) {
		t.Errorf("ended %+v", got)
	}
}

func TestWhatRestsIsCutByItsBound(t *testing.T) {
	for _, tt := range []struct {
		name   string
		bounds Bounds
		half   bool
	}{
		{"a whole tunnel", Bounds{Idle: 50 * time.Millisecond, HalfClosed: time.Hour}, false},
		{"a half-closed one", Bounds{HalfClosed: 50 * time.Millisecond}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, backend, _, ended := start(t, Options{Bounds: tt.bounds}, "")
			want := End{Up: 1, Ending: Ending{Gateway, Timeout}, Limit: Idle}
			io.WriteString(client, "x")
			read(t, backend, "x")
			if tt.half {
				client.CloseWrite()
				want.Limit = HalfClose
			}
			end(t, ended, want)
			if _, err := io.ReadAll(client); err != nil {
				t.Errorf("the client's read ended with %v", err)
			}
		})
	}
}

func TestAnEndTellsTimes(t *testing.T) {
	client, backend, _, ended := start(t, Options{Bounds: Bounds{Idle: 200 * time.Millisecond, HalfClosed: time.Hour}}, "")
	before := time.Now()
	time.Sleep(30 * time.Millisecond) // what is measured, not waited for
	io.WriteString(backend, "x")
	read(t, client, "x")
	first := time.Since(before)
	got := <-ended
	if got.FirstByte < 30*time.Millisecond || got.FirstByte > first+time.Second {
		t.Errorf("the first byte came after %v, and is said to have come after %v", first, got.FirstByte)
	}
	if got.Limit != Idle || got.Idle < 150*time.Millisecond {
		t.Errorf("it has rested for %v, and ended by %q", got.Idle, got.Limit)
	}
}

func TestABackendThatGotLessThanAllIsResetWhenTheTunnelIsCut(t *testing.T) {
	client, backend, r, ended := start(t, Options{}, "")
	for err := error(nil); err == nil; { // until nobody takes any more
		client.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		_, err = client.Write(make([]byte, 1<<16))
	}
	r.Close()
	if got := <-ended; got.Ending != (Ending{Gateway, Shutdown}) || got.Limit != Drain {
		t.Errorf("ended %+v", got)
	}
	if _, err := io.Copy(io.Discard, backend); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the backend was told %v, want a reset", err)
	}
}

func TestAClosedRelayLetsNothingIn(t *testing.T) {
	r := New(Options{Pump: copyAll, Bounds: Bounds{HalfClosed: time.Hour}, Log: slog.New(slog.DiscardHandler)})
	r.Close()
	client, here := pair(t)
	there, backend := pair(t)
	if got := r.Run(here, there, []byte("early")); got.Ending != (Ending{Gateway, Shutdown}) || got.Limit != Drain || got.Up+got.Down != 0 {
		t.Errorf("ended %+v", got)
	}
	for _, c := range []net.Conn{client, backend} {
		if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Errorf("read %d bytes", n)
		}
	}
}

func TestABugInOneTunnelEndsOnlyThatOne(t *testing.T) {
	var log strings.Builder
	_, _, _, ended := start(t, Options{
		Pump: func(io.Writer, io.Reader) error { panic("a bug") },
		Log:  slog.New(slog.NewTextHandler(&log, nil)),
	}, "")
	end(t, ended, End{Ending: Ending{Gateway, Failure}})
	if !strings.Contains(log.String(), "a bug") || !strings.Contains(log.String(), "TestABugInOneTunnel") {
		t.Errorf("logged %q", log.String())
	}
}

func TestTheFirstFailureTellsMoreThanAFIN(t *testing.T) {
	for _, tt := range []struct {
		notes []Ending
		want  Ending
	}{
		{[]Ending{{Client, FIN}, {Backend, FIN}}, Ending{Client, FIN}},
		{[]Ending{{Client, FIN}, {Backend, Reset}}, Ending{Backend, Reset}},
		{[]Ending{{Backend, Reset}, {Client, FIN}, {Gateway, Timeout}}, Ending{Backend, Reset}},
		{[]Ending{{Gateway, Shutdown}, {Client, Reset}}, Ending{Gateway, Shutdown}},
	} {
		var e Ending
		for _, n := range tt.notes {
			e.Note(n.By, n.How)
		}
		if e != tt.want {
			t.Errorf("%v: %v, want %v", tt.notes, e, tt.want)
		}
	}
}

func TestErrorsTellHowAPeerEnded(t *testing.T) {
	for err, want := range map[error]How{
		syscall.ECONNRESET:     Reset,
		syscall.EPIPE:          Reset,
		syscall.ETIMEDOUT:      Timeout,
		syscall.EHOSTUNREACH:   Timeout,
		os.ErrDeadlineExceeded: Timeout,
		syscall.EBADF:          Failure,
	} {
		if got := HowOf(&net.OpError{Op: "read", Err: err}); got != want {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
}

func TestRestIsCountedFromTheLastProgress(t *testing.T) {
	b := Bounds{Idle: 10, HalfClosed: 5}
	var r Rest
	r.Begin(0, 100)
	for i, step := range []struct {
		progress int64
		half     bool
		now      int64
		want     bool
	}{
		{0, false, 109, false},
		{1, false, 110, false}, // it moved
		{1, false, 119, false},
		{1, false, 120, true},
		{1, true, 121, false}, // another bound begins
		{1, true, 125, false},
		{1, true, 126, true},
	} {
		if got := r.TooLong(b, step.progress, step.half, step.now); got != step.want {
			t.Errorf("step %d: %v", i, got)
		}
	}
	if b.Idle = 0; r.TooLong(b, 1, false, 1000) || r.TooLong(b, 1, false, 1e18) {
		t.Error("what has no bound is bounded")
	}
}

func TestTheSweepIsFineEnoughForItsBounds(t *testing.T) {
	for _, tt := range []struct {
		b    Bounds
		want time.Duration
	}{
		{Bounds{HalfClosed: time.Minute}, time.Second},
		{Bounds{Idle: 2 * time.Second, HalfClosed: time.Minute}, 200 * time.Millisecond},
		{Bounds{Idle: time.Millisecond, HalfClosed: time.Minute}, 10 * time.Millisecond},
	} {
		if got := tt.b.SweepPeriod(); got != tt.want {
			t.Errorf("%+v: %v, want %v", tt.b, got, tt.want)
		}
	}
}

func TestATunnelRestsOnElsewhere(t *testing.T) {
	b := Bounds{Idle: time.Minute, HalfClosed: time.Minute}
	var here, there Rest
	here.TooLong(b, 5, false, 1000)
	rested := here.Rested(5, false, 1000+int64(50*time.Second))
	if rested != 50*time.Second || here.Rested(6, false, 2000) != 0 || here.Rested(5, true, 2000) != 0 {
		t.Errorf("rested for %v", rested)
	}
	there.Resume(5, false, rested, 7)
	if there.TooLong(b, 5, false, 7+int64(9*time.Second)) || !there.TooLong(b, 5, false, 7+int64(10*time.Second)) {
		t.Error("it does not rest for the minute that it may")
	}
}

func TestEndingsAreReadAsTheyAreWritten(t *testing.T) {
	for by := Client; by <= Gateway; by++ {
		for how := unended; how <= Failure; how++ {
			e := Ending{by, how}
			if got := ParseEnding(by.String(), how.String()); got != e {
				t.Errorf("%v is read as %v", e, got)
			}
		}
	}
	if got := ParseEnding("nobody", "never"); got != (Ending{Gateway, Failure}) {
		t.Errorf("nonsense is read as %v", got)
	}
}

func TestTheEndSaysForHowLongNothingHadMoved(t *testing.T) {
	client, backend, _, ended := start(t, Options{}, "")
	began := time.Now()
	io.WriteString(client, "x")
	read(t, backend, "x")
	io.WriteString(backend, "y")
	read(t, client, "y")
	const rest = 300 * time.Millisecond
	time.Sleep(rest) // what is measured
	client.CloseWrite()
	backend.Close()
	got := <-ended
	took := time.Since(began)
	// The kernel counts in ticks.
	if got.Idle < rest-20*time.Millisecond && runtime.GOOS == "linux" || got.Idle > took+20*time.Millisecond {
		t.Errorf("idle for %v", got.Idle)
	}
}

// stubborn is a connection whose reads end when they like to.
type stubborn struct {
	*net.TCPConn
	leave chan struct{}
}

func (c stubborn) Read([]byte) (int, error) {
	<-c.leave
	return 0, net.ErrClosed
}

func TestATunnelIsCutOnce(t *testing.T) {
	r := New(Options{Pump: copyAll, Bounds: Bounds{HalfClosed: time.Hour}, Log: slog.New(slog.DiscardHandler)})
	defer r.Close()
	_, here := pair(t)
	there, _ := pair(t)
	leave, ended := make(chan struct{}), make(chan End, 1)
	go func() { ended <- r.Run(stubborn{here, leave}, there, nil) }()
	cut := func() (n int) {
		r.Visit(func(any, Pulse) bool { n++; return true })
		return n
	}
	for deadline := time.Now().Add(patience); cut() == 0; {
		if time.Now().After(deadline) {
			t.Fatal("it does not begin")
		}
	}
	if n := cut(); n != 0 {
		t.Errorf("a tunnel that is being cut was cut %d times more", n)
	}
	close(leave)
	if e := <-ended; e.By != Gateway || e.How != Cut {
		t.Errorf("ended %+v", e)
	}
}
