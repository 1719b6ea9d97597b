package systemd

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// listen stands for systemd, and returns what it is told, message by message.
func listen(t *testing.T) <-chan string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", name)
	told := make(chan string, 1000)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			told <- string(b[:n])
		}
	}()
	return told
}

func next(t *testing.T, told <-chan string) string {
	t.Helper()
	select {
	case message := <-told:
		return message
	case <-time.After(20 * time.Second):
		t.Fatal("nothing is told")
		return ""
	}
}

func TestNobodyIsToldWhereNobodyAsks(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	n := New(slog.New(slog.DiscardHandler))
	if n != nil {
		t.Fatal("somebody asks")
	}
	n.Ready("")
	n.Reloading()
	n.Stopping("")
	n.Status("")
	n.Extend(time.Second)
	n.Watch(nil)
	n.GiveWay(1)
	n.TakeBack("")
}

func TestTheWordsOfSystemd(t *testing.T) {
	told := listen(t)
	n := New(slog.New(slog.DiscardHandler))
	self := "MAINPID=" + strconv.Itoa(os.Getpid())
	for _, step := range []struct {
		do   func()
		want string
	}{
		{func() { n.Ready("serving") }, "READY=1\n" + self + "\nSTATUS=serving"},
		{n.Reloading, "RELOADING=1\nMONOTONIC_USEC="},
		{func() { n.Stopping("812 tunnels, draining") }, "STOPPING=1\nSTATUS=812 tunnels, draining"},
		{func() { n.Status("well") }, "STATUS=well"},
		{func() { n.Extend(15 * time.Second) }, "EXTEND_TIMEOUT_USEC=15000000"},
		{func() { n.GiveWay(7) }, "MAINPID=7"},
		{func() { n.Status("unheard"); n.TakeBack("again") }, "READY=1\n" + self + "\nSTATUS=again"},
	} {
		step.do()
		if got := next(t, told); !strings.HasPrefix(got, step.want) {
			t.Errorf("told %q, want %q", got, step.want)
		}
	}
}

func TestAStuckLoopMissesItsBeat(t *testing.T) {
	told := listen(t)
	t.Setenv("WATCHDOG_USEC", "30000")
	n := New(slog.New(slog.DiscardHandler))
	answers := make(chan bool)
	n.Watch(func(within time.Duration) bool {
		if within > 15*time.Millisecond {
			t.Errorf("a loop may take %v of a period of 30 ms", within)
		}
		return <-answers
	})
	answers <- true
	if got := next(t, told); got != "WATCHDOG=1" {
		t.Errorf("told %q", got)
	}
	answers <- false
	answers <- false
	answers <- true // the next thing that is told
	if got := next(t, told); got != "WATCHDOG=1" {
		t.Errorf("told %q", got)
	}
	select {
	case got := <-told:
		t.Errorf("told %q by a loop that is stuck", got)
	default:
	}
	n.Watch(func(time.Duration) bool { t.Error("watched twice"); return false })
	n.GiveWay(7)
	if got := next(t, told); got != "MAINPID=7" {
		t.Errorf("told %q", got)
	}
	select {
	case answers <- true: // the one that was being asked; it is not told
	case <-time.After(time.Second):
	}
}
