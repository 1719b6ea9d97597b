package listen

import (
	"fmt"
	"net"
	"testing"
	"time"
)

func TestBackoffGrowsTo1sAndStartsAgain(t *testing.T) {
	var b Backoff
	var got []string
	for range 10 {
		got = append(got, b.Next().String())
	}
	want := "[5ms 10ms 20ms 40ms 80ms 160ms 320ms 640ms 1s 1s]"
	if fmt.Sprint(got) != want {
		t.Errorf("delays %v, want %v", got, want)
	}
	b.Reset()
	if d := b.Next(); d != 5*time.Millisecond {
		t.Errorf("after a success it waits %v", d)
	}
}

func TestAQueueIsTakenAsFarAsItIsFull(t *testing.T) {
	n := 0
	DrainQueue(func() bool { n++; return n < 7 })
	if n != 7 {
		t.Errorf("%d times accepted", n)
	}
	n = 0
	DrainQueue(func() bool { n++; return true }) // a storm
	if n != 4096 {
		t.Errorf("%d times accepted in a storm", n)
	}
}

func TestASocketForTheOperatorIsItsOwn(t *testing.T) {
	ln, err := OpenPrivate("pprof", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if _, ok := ln.(*net.TCPListener); !ok {
		t.Errorf("it is %T", ln)
	}
	if _, err := OpenPrivate("pprof", ln.Addr().String()); err == nil {
		t.Error("another has it too")
	}
}
