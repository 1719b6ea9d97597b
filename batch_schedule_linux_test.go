package main

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/harness"
	"gateway/internal/layer"
	"gateway/internal/sys"
	"gateway/internal/websocket"
)

// A driven loop, and a model of the tunnels in it. Clients and backends are descriptors
// of the same process, so what one closes the next accept gets; each byte says whose it
// is. Some of the clients have a WebSocket.

// peer is one end of a tunnel in the model.
type peer struct {
	fd       int
	sent     int  // bytes that its kernel has taken
	got      int  // bytes that it has read
	finished bool // has sent FIN
	eof      bool // has read the end
	lost     bool // reads and writes fail
	closed   bool
	word     [headBytes]byte
}

// modelTunnel is a tunnel in the model: its client, and its backend once that is
// known.
type modelTunnel struct {
	id     uint32
	ends   [2]peer
	frames *harness.Frames // of its client; nil: it is plain
	first  bool            // the client has closed before it was told that the backend has finished
	abrupt bool            // one of the two has broken off: what is under way may be lost
	over   bool
}

const headBytes = 8 // of each direction: the first word, by which the backend learns the id

// pattern returns n bytes of what a side of a tunnel sends from an offset on:
// words of its tunnel, its side and their number.
func pattern(buf []byte, id uint32, side, offset, n int) []byte {
	buf = buf[:0]
	for word := offset / 8; len(buf) < offset%8+n; word++ {
		buf = binary.BigEndian.AppendUint64(buf, uint64(id)<<32|uint64(side)<<31|uint64(word))
	}
	return buf[offset%8:][:n]
}

// schedule drives a loop by chance.
type schedule struct {
	t       testing.TB
	d       *drivenLoop
	rnd     *rand.Rand
	live    []*modelTunnel
	byID    map[uint32]*modelTunnel
	unnamed []*peer // backends that have not read their id
	next    uint32
	buf     []byte // for reads
	want    []byte // for what they have to bring
	ended   int    // tunnels that came to their end in good order
	broken  int    // that did not
	moved   int
}

// BATCHES=1000000 go test -race -timeout=0 -run='TestNoByteReachesTheWrongClient.*/io_uring$' . takes
// about 12 minutes of a CPU; STRESS_SEED is that of a run which has failed.
func TestNoByteReachesTheWrongClientWhateverHappensInABatch(t *testing.T) {
	for _, way := range []string{"io_uring", "io_uring that fails", "epoll"} {
		t.Run(way, func(t *testing.T) {
			ring := way != "epoll"
			want := 1500
			if n, err := strconv.Atoi(os.Getenv("BATCHES")); err == nil {
				want = n
			}
			seed := rand.Uint64()
			if s, err := strconv.ParseUint(os.Getenv("STRESS_SEED"), 10, 64); err == nil {
				seed = s
			}
			t.Logf("STRESS_SEED=%d", seed)
			s := &schedule{t: t, d: drive(t, ring, slog.DiscardHandler), rnd: rand.New(rand.NewPCG(seed, 0)),
				byID: make(map[uint32]*modelTunnel), buf: make([]byte, 64<<10), want: make([]byte, 80<<10)}
			defer s.closeAll()
			if way == "io_uring that fails" {
				runtime.LockOSThread() // for ever: the thread ends with this
				if err := refuse(unix.SYS_IO_URING_ENTER, unix.EBUSY, 3, 5); err != nil {
					t.Skip("no seccomp here: ", err)
				}
			}
			batches, messages, rings := 0, 0, 1
			for turns := 0; (ring && batches < want || !ring && turns < want) && !t.Failed(); turns++ {
				s.act(0.5)
				s.d.poll()
				s.act(0.1) // behind the back of the events
				if n := s.d.deal(); n > 0 {
					batches++
					messages += n
				}
				if ring && s.d.batch.ring == nil {
					if err := s.d.batch.open(); err != nil {
						t.Fatal(err)
					}
					rings++
				}
				if turns > 100*want {
					t.Fatal("there are hardly any batches")
				}
			}
			s.settle()
			t.Logf("%d batches of %d messages by %d rings, %d tunnels ended in order and %d abruptly, %d bytes",
				batches, messages, rings, s.ended, s.broken, s.moved)
			if s.ended == 0 || s.broken == 0 {
				t.Error("some endings did not come up")
			}
			if rings > 1 != (way == "io_uring that fails") {
				t.Errorf("%d rings", rings)
			}
		})
	}
}

// act lets each peer do something with a probability.
func (s *schedule) act(p float64) {
	for len(s.live) < 24 {
		s.connect()
	}
	s.accept()
	for i := len(s.unnamed) - 1; i >= 0; i-- {
		s.name(i)
	}
	for i := len(s.live) - 1; i >= 0; i-- {
		tun := s.live[i]
		for side := range 2 {
			if s.rnd.Float64() < p {
				s.actOf(tun, side)
			}
		}
		if s.isOver(tun) {
			s.live[i] = s.live[len(s.live)-1]
			s.live = s.live[:len(s.live)-1]
		}
	}
}

// connect begins a tunnel, and has its client say which.
func (s *schedule) connect() {
	if s.rnd.IntN(3) == 0 {
		tun := &modelTunnel{id: s.next, frames: harness.NewFrames(s.rnd)}
		s.next++
		tun.ends[clientSide].fd, tun.ends[backendSide].fd = s.d.layeredTunnelOf(s.t, websocket.New(1<<20))
		s.live = append(s.live, tun)
		return
	}
	fd, err := sys.Socket(unix.AF_INET)
	if err != nil {
		s.t.Fatal(err)
	}
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10)
	if err := unix.Connect(fd, s.d.to); err != nil && err != unix.EINPROGRESS {
		s.t.Fatal(err)
	}
	tun := &modelTunnel{id: s.next}
	s.next++
	tun.ends[backendSide].fd = -1
	tun.ends[clientSide].fd = fd
	s.write(tun, clientSide, headBytes)
	s.live = append(s.live, tun)
	s.byID[tun.id] = tun
}

// accept takes the backends' connections. Whose they are they learn by reading.
func (s *schedule) accept() {
	for {
		fd, _, err := unix.Accept4(s.d.backends, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return
		}
		s.unnamed = append(s.unnamed, &peer{fd: fd})
	}
}

// name reads the first word of a backend's.
func (s *schedule) name(i int) {
	b := s.unnamed[i]
	n, err := sys.Recv(int32(b.fd), b.word[b.got:])
	if err == unix.EAGAIN {
		return
	}
	if n > 0 {
		b.got += n
		if b.got < headBytes {
			return
		}
		tun := s.byID[uint32(binary.BigEndian.Uint64(b.word[:])>>32)]
		if tun == nil || tun.ends[backendSide].fd >= 0 || tun.ends[backendSide].closed {
			s.t.Fatalf("a backend reads %x: nobody's first word", b.word)
		}
		if !bytes.Equal(b.word[:], pattern(s.want, tun.id, clientSide, 0, headBytes)) {
			s.t.Fatalf("a backend reads %x in tunnel %d", b.word, tun.id)
		}
		if tun.over { // its client broke off before
			unix.Close(b.fd)
			b.fd = -1
			delete(s.byID, tun.id)
		}
		tun.ends[backendSide] = *b
	} else {
		unix.Close(b.fd) // its client has broken off
	}
	s.unnamed[i] = s.unnamed[len(s.unnamed)-1]
	s.unnamed = s.unnamed[:len(s.unnamed)-1]
}

// actOf has one end of a tunnel do something.
func (s *schedule) actOf(tun *modelTunnel, side int) {
	e := &tun.ends[side]
	if e.fd < 0 {
		return
	}
	if side == clientSide && tun.frames != nil {
		s.flush(tun)
	}
	switch n := s.rnd.IntN(1000); {
	case n < 4:
		s.end(tun, side, true)
	case n < 8:
		s.end(tun, side, false)
	case n < 16 && e.sent >= headBytes:
		s.finish(tun, side)
	case n < 500 && side == backendSide && tun.frames != nil && e.eof:
		s.finish(tun, side) // its client wants no more, and waits
	case n < 30:
		s.write(tun, side, 10_000+s.rnd.IntN(30_000))
	case n < 40:
		s.write(tun, side, 2048) // just fills a slot
	case n < 600:
		s.write(tun, side, 1+s.rnd.IntN(1+s.rnd.IntN(2500)))
	case n < 650:
		s.read(tun, side, 1+s.rnd.IntN(3000))
	case n < 950 || tun.id%4 > 0: // each fourth likes to stall
		s.read(tun, side, len(s.buf))
	}
}

// finish has an end say that it has sent all.
func (s *schedule) finish(tun *modelTunnel, side int) {
	e := &tun.ends[side]
	if e.finished || e.lost {
		return
	}
	e.finished = true
	if tun.frames != nil && side == clientSide {
		tun.first = !tun.frames.Closed
		tun.frames.Close()
		s.flush(tun)
		return
	}
	unix.Shutdown(e.fd, unix.SHUT_WR)
}

// flush sends what a client's frames hold.
func (s *schedule) flush(tun *modelTunnel) {
	e := &tun.ends[clientSide]
	if len(tun.frames.Out) == 0 || e.lost || e.fd < 0 {
		return
	}
	sent, err := sys.Send(int32(e.fd), tun.frames.Out)
	if err == nil {
		tun.frames.Out = tun.frames.Out[sent:]
	} else if err != unix.EAGAIN {
		s.fails(tun, clientSide, err)
	}
}

// write sends up to n bytes.
func (s *schedule) write(tun *modelTunnel, side, n int) {
	e := &tun.ends[side]
	if e.finished || e.lost || n == 0 {
		return
	}
	if tun.frames != nil && side == clientSide {
		if s.flush(tun); len(tun.frames.Out) == 0 {
			tun.frames.Say(pattern(s.want, tun.id, side, e.sent, n))
			e.sent += n
			s.moved += n
			s.flush(tun)
		}
		return
	}
	sent, err := sys.Send(int32(e.fd), pattern(s.want, tun.id, side, e.sent, n))
	if err == nil {
		e.sent += sent
		s.moved += sent
	} else if err != unix.EAGAIN {
		s.fails(tun, side, err)
	}
}

// read receives up to n bytes, and compares them with what the other end has
// sent.
func (s *schedule) read(tun *modelTunnel, side, n int) {
	e, other := &tun.ends[side], &tun.ends[1-side]
	if e.eof || e.lost {
		return
	}
	framed := tun.frames != nil && side == clientSide
	b := s.buf[:n]
	n, err := sys.Recv(int32(e.fd), b)
	switch {
	case err == unix.EAGAIN:
		return
	case err != nil:
		s.fails(tun, side, err)
		return
	case n == 0:
		e.eof = true
		if framed && !tun.abrupt && !tun.frames.Closed {
			s.t.Errorf("tunnel %d: a WebSocket ends without a Close frame", tun.id)
		}
		if !(framed && tun.first) && !tun.abrupt && (!other.finished || e.got != other.sent) {
			s.t.Errorf("tunnel %d: side %d reads the end after %d bytes of %d (finished: %v)", tun.id, side, e.got, other.sent, other.finished)
		}
		return
	}
	if framed {
		if b, err = tun.frames.Hear(b[:n]); err != nil {
			s.t.Fatalf("tunnel %d: after %d bytes: %v", tun.id, e.got, err)
		}
		n = len(b)
		if s.flush(tun); tun.frames.Closed {
			s.finish(tun, side)
		}
	}
	if want := pattern(s.want, tun.id, 1-side, e.got, n); !bytes.Equal(b[:n], want) {
		for i := range want {
			if b[i] != want[i] {
				s.t.Fatalf("tunnel %d: side %d reads %x at %d", tun.id, side, b[i:min(n, i+32)], e.got+i)
			}
		}
	}
	if e.got += n; e.got > other.sent {
		s.t.Errorf("tunnel %d: side %d has read %d bytes of %d", tun.id, side, e.got, other.sent)
	}
}

// fails notes that an end is of no more use.
func (s *schedule) fails(tun *modelTunnel, side int, err error) {
	if !tun.abrupt {
		s.t.Errorf("tunnel %d: side %d fails by %v, and nobody has broken off", tun.id, side, err)
	}
	tun.ends[side].lost = true
}

// end breaks an end off, by a reset or by a close, which is one if there is
// something unread.
func (s *schedule) end(tun *modelTunnel, side int, reset bool) {
	e := &tun.ends[side]
	tun.abrupt = true
	if reset {
		sys.ResetOnClose(int32(e.fd))
	}
	unix.Close(e.fd)
	e.fd, e.closed, e.finished = -1, true, true
}

// isOver closes what is left of a tunnel where nothing more can come.
func (s *schedule) isOver(tun *modelTunnel) bool {
	a, b := &tun.ends[clientSide], &tun.ends[backendSide]
	if !tun.abrupt {
		if !a.eof || !b.eof || !a.finished || !b.finished {
			return false
		}
		s.ended++
	} else {
		// The other end learns of it sooner or later; half of them stay for it.
		for _, e := range []*peer{a, b} {
			if e.fd >= 0 && !e.lost && !e.eof && s.rnd.IntN(100) > 0 {
				return false
			}
		}
		s.broken++
	}
	for _, e := range []*peer{a, b} {
		if e.fd >= 0 {
			unix.Close(e.fd)
			e.fd, e.closed = -1, true
		}
	}
	if tun.over = true; b.closed {
		delete(s.byID, tun.id)
	}
	return true
}

// settle has all tunnels finish, and waits until the loop has none.
func (s *schedule) settle() {
	deadline := time.Now().Add(patience)
	for !s.t.Failed() && !(len(s.live) == 0 && len(s.unnamed) == 0 && s.d.empty()) {
		if time.Now().After(deadline) {
			for _, tun := range s.live {
				s.t.Errorf("tunnel %d does not end: %+v", tun.id, tun)
			}
			for _, tun := range s.d.slots {
				if tun.state != stateFree {
					s.t.Errorf("%+v", *tun)
				}
			}
			s.t.Fatalf("%d backends without a name, %d connections in the loop", len(s.unnamed), len(s.d.slots)-len(s.d.free))
		}
		s.accept()
		for i := len(s.unnamed) - 1; i >= 0; i-- {
			s.name(i)
		}
		for i := len(s.live) - 1; i >= 0; i-- {
			tun := s.live[i]
			for side := range 2 {
				e := &tun.ends[side]
				if e.fd < 0 {
					continue
				}
				s.finish(tun, side)
				if side == clientSide && tun.frames != nil {
					s.flush(tun)
				}
				s.read(tun, side, len(s.buf))
			}
			if s.isOver(tun) {
				s.live = append(s.live[:i], s.live[i+1:]...)
			}
		}
		s.d.poll()
		s.d.deal()
	}
}

func (s *schedule) closeAll() {
	for _, tun := range s.live {
		for _, e := range tun.ends {
			if e.fd >= 0 {
				unix.Close(e.fd)
			}
		}
	}
	for _, b := range s.unnamed {
		unix.Close(b.fd)
	}
}

// doneLayer is a layer whose client has finished with the first that it says, and from
// then on makes nothing of what is for it.
type doneLayer struct {
	layer.Transform
	state layer.State
}

func (l *doneLayer) In([]byte) ([]byte, layer.State) { return nil, l.state }
func (*doneLayer) Out([]byte) []byte                 { return nil }

func TestWhatComesInOneBatchWithTheClientsEndDoesNotCountAsSent(t *testing.T) {
	runtime.LockOSThread() // for ever: the thread ends with this
	d := drive(t, true, slog.DiscardHandler)
	for _, state := range []layer.State{layer.Wrong, layer.Failed, layer.Finished} {
		client, backend := d.layeredTunnelOf(t, &doneLayer{websocket.New(1 << 20), state})
		defer unix.Close(client)
		defer unix.Close(backend)
		for range 3 {
			d.poll()
			d.deal()
		}
		unix.Write(client, []byte("the end"))
		unix.Write(backend, []byte("on its way"))
		taken := 0
		eventually(t, "both are dealt with", func() bool { d.poll(); n := d.deal(); taken += n; return n > 0 })
		d.publish()
		if n := d.totalCopied[backendSide].Load(); n != 0 || taken != 2 {
			t.Errorf("state %d: %d bytes count, of %d events", state, n, taken)
		}
	}
}
