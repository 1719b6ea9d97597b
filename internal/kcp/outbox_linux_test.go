package kcp

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"gateway/internal/harness"
)

// inbox is a socket that hears what an outbox sends.
type inbox struct {
	*net.UDPConn
	addr *net.UDPAddr
}

func newInbox(t *testing.T) inbox {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	enlarge(c)
	return inbox{c, c.LocalAddr().(*net.UDPAddr)}
}

// hear returns the next datagrams.
func (i inbox) hear(t *testing.T, n int) (all []string) {
	t.Helper()
	b := make([]byte, maxDatagram+1)
	i.SetReadDeadline(time.Now().Add(harness.Patience))
	for len(all) < n {
		m, err := i.Read(b)
		if err != nil {
			t.Fatalf("%v behind %d of %d datagrams", err, len(all), n)
		}
		all = append(all, string(b[:m]))
	}
	return all
}

func testOutbox(t *testing.T, network string) *outbox {
	t.Helper()
	c, err := net.ListenUDP(network, nil)
	if err != nil {
		t.Skip(err)
	}
	o := newOutbox(c)
	t.Cleanup(func() { o.close(); <-o.done })
	return o
}

// datagramOf is one of a session, of a size that often is the same.
func datagramOf(session, n int) string {
	size := []int{1000, 1000, 1000, 1000, 700, 40, 40, 1400}[n/3%8]
	return (fmt.Sprintf("%d.%d.", session, n) + strings.Repeat("x", size))[:size]
}

func TestAnOutboxSendsEverythingInOrder(t *testing.T) {
	for _, network := range []string{"udp4", "udp"} { // of which the latter is for IPv6 too
		o := testOutbox(t, network)
		var putting sync.WaitGroup
		const sessions, count = 8, 100
		inboxes := make([]inbox, sessions)
		for s := range sessions {
			inboxes[s] = newInbox(t)
			putting.Go(func() {
				for n := range count {
					o.put(inboxes[s].addr, nil, []byte(datagramOf(s, n)))
				}
			})
		}
		putting.Wait()
		for s, in := range inboxes {
			for n, got := range in.hear(t, count) {
				if want := datagramOf(s, n); got != want {
					t.Fatalf("%s: datagram %d of session %d is %.20q of %d bytes, want %.20q of %d", network, n, s, got, len(got), want, len(want))
				}
			}
		}
	}
}

func TestAnOutboxThatClosesSendsWhatWaits(t *testing.T) {
	o, in := testOutbox(t, "udp4"), newInbox(t)
	const count = 150
	for n := range count {
		o.put(in.addr, nil, []byte(datagramOf(0, n)))
	}
	o.close()
	in.hear(t, count)
	<-o.done
	if o.err != nil {
		t.Error(o.err)
	}
	o.put(in.addr, nil, []byte("late")) // is dropped, and does not wait
	o.close()
}

func TestASessionWaitsWhileAnOutboxIsFull(t *testing.T) {
	o, to := testOutbox(t, "udp4"), new(net.UDPAddr)
	hold, held := make(chan struct{}), make(chan struct{}, 1)
	var sent []string
	o.mu.Lock()
	o.send = func(batch []ipv4.Message, _ int) (int, error) {
		select {
		case held <- struct{}{}:
		default:
		}
		<-hold
		for _, m := range batch {
			for _, d := range m.Buffers {
				sent = append(sent, string(d))
			}
		}
		return len(batch), nil
	}
	o.mu.Unlock()
	o.put(to, nil, []byte("first"))
	<-held
	for range maxWaiting {
		o.put(to, nil, []byte("more"))
	}
	done := make(chan struct{})
	go func() {
		o.put(to, nil, []byte("last"))
		close(done)
	}()
	select {
	case <-done:
		t.Error("more than maxWaiting wait")
	case <-time.After(20 * time.Millisecond):
	}
	close(hold)
	<-done
	o.close()
	<-o.done
	if len(sent) != maxWaiting+2 || sent[0] != "first" || sent[maxWaiting+1] != "last" {
		t.Errorf("%d were sent", len(sent))
	}
}

func TestWhatCannotBeSentAsOneIsSentByItself(t *testing.T) {
	for _, failure := range []error{unix.EIO, unix.EINVAL, unix.EMSGSIZE, unix.EPERM, unix.ENOSYS} {
		o, in := testOutbox(t, "udp4"), newInbox(t)
		o.mu.Lock()
		send := o.send
		o.send = func(batch []ipv4.Message, flags int) (int, error) {
			for i, m := range batch {
				if len(m.Buffers) > 1 || failure == unix.ENOSYS {
					if i > 0 {
						return i, nil
					}
					return -1, failure
				}
				if n, err := send(batch[i:i+1], flags); err != nil {
					return max(i, n), err
				}
			}
			return len(batch), nil
		}
		o.mu.Unlock()
		const count = 100
		for n := range count {
			o.put(in.addr, nil, []byte(datagramOf(0, n)))
		}
		for n, got := range in.hear(t, count) {
			if got != datagramOf(0, n) {
				t.Fatalf("%v: datagram %d is %.20q", failure, n, got)
			}
		}
		o.close()
		<-o.done
		if failure == unix.EIO && o.segmented {
			t.Error("segments are sent on although the card cannot take them apart")
		}
	}
}

func TestWhatMayBeSentAsOne(t *testing.T) {
	a, b := new(net.UDPAddr), new(net.UDPAddr)
	parcels := func(to *net.UDPAddr, sizes ...int) (all []parcel) {
		for _, n := range sizes {
			all = append(all, parcel{to: to, d: make([]byte, n)})
		}
		return all
	}
	many := make([]int, 100)
	for i := range many {
		many[i] = 50
	}
	large := make([]int, 60)
	for i := range large {
		large[i] = 1400
	}
	for _, tt := range []struct {
		all  []parcel
		want int
	}{
		{parcels(a, 9), 1},
		{parcels(a, 9, 9), 2},
		{parcels(a, 9, 9, 8), 3},
		{parcels(a, 9, 8, 8), 2},
		{parcels(a, 9, 8, 9), 2},
		{parcels(a, 8, 9), 1},
		{append(parcels(a, 9), parcels(b, 9)...), 1},
		{append(parcels(a, 9, 9), parcels(b, 9)...), 2},
		{parcels(a, many...), maxSegments},
		{parcels(a, large...), maxSegmented / 1400},
	} {
		if got := alike(tt.all); got != tt.want {
			t.Errorf("%d of %d are alike, want %d", got, len(tt.all), tt.want)
		}
	}
}

// TestAFlushIsFewMessages: what one session says in a turn, the kernel is told in a few.
func TestAFlushIsFewMessages(t *testing.T) {
	o := testOutbox(t, "udp4")
	if !o.segmented {
		t.Skip("no UDP_SEGMENT")
	}
	to := new(net.UDPAddr)
	var all []parcel
	for n := range 130 {
		all = append(all, parcel{to: to, d: make([]byte, max(1350-n/129, 1))})
	}
	batch, counts := o.gather(all)
	if len(batch) != 3 || counts[0] != 48 || counts[1] != 48 || counts[2] != 34 || len(batch[0].OOB) == 0 {
		t.Errorf("%d messages of %v", len(batch), counts)
	}
}
