//go:build linux

package uring

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// onThread runs f on a thread of its own that ends with it: a ring belongs to its
// thread, and so does what refuse does to it.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
}

// onRings runs a test on a ring of each set of flags that this kernel takes.
func onRings(t *testing.T, slots int, test func(t *testing.T, r *Ring)) {
	all := flagSets
	defer func() { flagSets = all }()
	ran := false
	for _, flags := range all {
		t.Run(fmt.Sprintf("flags %#x", flags), func(t *testing.T) {
			flagSets = []uint32{flags}
			onThread(func() {
				r, err := New(slots)
				if err != nil {
					t.Log(err)
					return
				}
				defer r.Close()
				ran = true
				test(t, r)
			})
		})
	}
	if !ran {
		t.Skip("no io_uring here")
	}
}

// pairOf returns two ends of a stream that do not block.
func pairOf(t testing.TB) (a, b int32) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(p[0]); unix.Close(p[1]) })
	return int32(p[0]), int32(p[1])
}

func want(t testing.TB, r *Ring, slot, n int, err error) {
	t.Helper()
	if got, gotErr := r.Result(slot); got != n || !errors.Is(gotErr, err) {
		t.Errorf("slot %d: %d, %v; want %d, %v", slot, got, gotErr, n, err)
	}
}

func submit(t testing.TB, r *Ring) {
	t.Helper()
	if err := r.Submit(); err != nil {
		t.Error(err)
	}
}

func TestEachSlotGetsAndSendsItsOwn(t *testing.T) {
	const slots = 64
	onRings(t, slots, func(t *testing.T, r *Ring) {
		var from, to, back, there [slots]int32
		for i := range slots {
			from[i], to[i] = pairOf(t)
			back[i], there[i] = pairOf(t)
		}
		for round := range 300 { // the queues come round
			n := 1 + (round*37)%slots
			text := func(i int) []byte {
				return bytes.Repeat([]byte{byte(i), byte(round)}, 1+(i*131+round)%(SlotSize/2))
			}
			for i := range n {
				if _, err := unix.Write(int(from[i]), text(i)); err != nil {
					t.Fatal(err)
				}
				r.Recv(to[i], i, SlotSize)
			}
			submit(t, r)
			for i := range n {
				want(t, r, i, len(text(i)), nil)
				r.Send(back[i], i, len(text(i)))
			}
			submit(t, r)
			buf := make([]byte, 2*SlotSize)
			for i := range n {
				want(t, r, i, len(text(i)), nil)
				got, err := unix.Read(int(there[i]), buf)
				if err != nil || !bytes.Equal(buf[:got], text(i)) {
					t.Fatalf("round %d, slot %d: %d bytes, %v; want %d", round, i, got, err, len(text(i)))
				}
			}
		}
	})
}

func TestAReceiveTellsHowItWent(t *testing.T) {
	onRings(t, 8, func(t *testing.T, r *Ring) {
		none, _ := pairOf(t)
		ended, end := pairOf(t)
		unix.Shutdown(int(end), unix.SHUT_WR)
		full, more := pairOf(t)
		unix.Write(int(more), make([]byte, SlotSize+1))
		r.Recv(none, 0, SlotSize)
		r.Recv(ended, 1, SlotSize)
		r.Recv(full, 2, SlotSize)
		r.Recv(-1, 3, SlotSize)
		submit(t, r)
		want(t, r, 0, 0, unix.EAGAIN)
		want(t, r, 1, 0, nil)
		want(t, r, 2, SlotSize, nil)
		want(t, r, 3, 0, unix.EBADF)
		r.Recv(full, 2, SlotSize)
		submit(t, r)
		want(t, r, 2, 1, nil)
	})
}

func TestASendTellsHowItWentAndAShortOneHowFar(t *testing.T) {
	onRings(t, 64, func(t *testing.T, r *Ring) {
		room, reader := pairOf(t)
		gone, peer := pairOf(t)
		unix.Shutdown(int(peer), unix.SHUT_RDWR)
		narrow, narrowReader := pairOf(t)
		unix.SetsockoptInt(int(narrow), unix.SOL_SOCKET, unix.SO_SNDBUF, 1)
		r.Send(narrow, 0, len(r.memory.slots)) // from all slots, as it were
		r.Send(room, 1, 100)
		r.Send(gone, 2, 100)
		submit(t, r)
		short, err := r.Result(0)
		if err != nil || short <= 0 || short >= len(r.memory.slots) {
			t.Errorf("a short send: %d, %v", short, err)
		}
		want(t, r, 1, 100, nil)
		want(t, r, 2, 0, unix.EPIPE)
		buf := make([]byte, 1<<20)
		if n, err := unix.Read(int(reader), buf); n != 100 || err != nil {
			t.Errorf("%d bytes arrived, %v", n, err)
		}
		if n, err := unix.Read(int(narrowReader), buf); n != short || err != nil {
			t.Errorf("%d bytes arrived of a short send, %v; want %d", n, err, short)
		}
		for range 2 { // it is full after the first
			r.Send(narrow, 3, SlotSize)
			r.Send(narrow, 4, SlotSize)
			submit(t, r)
		}
		want(t, r, 4, 0, unix.EAGAIN)
	})
}

// Two entries of one submission are made in their order.
func TestEntriesAreMadeInTheirOrder(t *testing.T) {
	onRings(t, 64, func(t *testing.T, r *Ring) {
		a, b := pairOf(t)
		var text []byte
		for i := range r.Slots() {
			text = append(text, byte(i))
			r.Slot(i)[0] = byte(i)
			r.Send(a, i, 1)
		}
		submit(t, r)
		buf := make([]byte, 100)
		if n, err := unix.Read(int(b), buf); err != nil || !bytes.Equal(buf[:n], text) {
			t.Errorf("%v, %v", buf[:n], err)
		}
	})
}

// What a ring cannot do any more is left to its user, entry by entry.
func TestWhatCannotBeSubmittedIsNotMade(t *testing.T) {
	onRings(t, 8, func(t *testing.T, r *Ring) {
		a, b := pairOf(t)
		unix.Write(int(a), []byte("hello"))
		r.Recv(b, 0, SlotSize)
		r.Send(b, 1, 5)
		if err := refuse(unix.SYS_IO_URING_ENTER, unix.EPERM); err != nil {
			t.Skip("no seccomp here: ", err)
		}
		if err := r.Submit(); !errors.Is(err, unix.EPERM) {
			t.Errorf("Submit: %v", err)
		}
		want(t, r, 0, 0, ErrNotMade)
		want(t, r, 1, 0, ErrNotMade)
		buf := make([]byte, 10)
		if n, err := unix.Read(int(b), buf); n != 5 || err != nil {
			t.Errorf("what was there: %d, %v", n, err)
		}
		if n, err := unix.Read(int(a), buf); err != unix.EAGAIN {
			t.Errorf("what was not sent: %d, %v", n, err)
		}
	})
}

func TestWhereThereCanBeNoRingTheErrorSaysWhatIsMissing(t *testing.T) {
	onRings(t, 8, func(*testing.T, *Ring) {}) // skips where there is none anyway
	for _, tt := range []struct {
		call  uint32
		errno unix.Errno
		want  string
	}{
		{unix.SYS_IO_URING_SETUP, unix.ENOSYS, "io_uring_setup: function not implemented"},
		{unix.SYS_IO_URING_SETUP, unix.EPERM, "io_uring_setup: operation not permitted"},
		{unix.SYS_IO_URING_SETUP, unix.EINVAL, "io_uring_setup: invalid argument"},
		{unix.SYS_IO_URING_SETUP, unix.EMFILE, "io_uring_setup: too many open files"},
		{unix.SYS_IO_URING_ENTER, unix.EPERM, "io_uring_enter: operation not permitted"},
		{unix.SYS_MMAP, unix.ENOMEM, "mmap of an io_uring: cannot allocate memory"},
		{unix.SYS_SOCKETPAIR, unix.EPERM, "socketpair: operation not permitted"},
		{unix.SYS_IO_URING_REGISTER, unix.EPERM, ""}, // can be done without
	} {
		t.Run(fmt.Sprint(tt.call, tt.errno), func(t *testing.T) {
			onThread(func() {
				// Memory of Go's own for what is allocated while mmap fails.
				runtime.GC()
				before := held(t)
				if err := refuse(tt.call, tt.errno); err != nil {
					t.Skip("no seccomp here: ", err)
				}
				r, err := New(8)
				switch {
				case err != nil:
					if tt.want == "" || !strings.Contains(err.Error(), tt.want) || !errors.Is(err, tt.errno) {
						t.Errorf("%v; want %q", err, tt.want)
					}
				case tt.want != "":
					t.Errorf("there is a ring; want %q", tt.want)
					r.Close()
				default:
					r.Close()
				}
				if after := held(t); after != before {
					t.Errorf("left behind: %q, first %q", after, before)
				}
			})
		})
	}
}

func TestACloseLeavesNothing(t *testing.T) {
	onRings(t, 64, func(t *testing.T, r *Ring) {
		before := held(t)
		for range 100 {
			more, err := New(64)
			if err != nil {
				t.Fatal(err) // registered rings are few for each thread
			}
			if held(t) == before {
				t.Fatal("a ring that nobody sees")
			}
			more.Close()
			more.Close()
		}
		if after := held(t); after != before {
			t.Errorf("left behind: %q, first %q", after, before)
		}
		submit(t, r)
	})
}

// held tells which descriptors and mappings of rings this process has.
func held(t testing.TB) string {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	rings := 0
	for _, fd := range fds {
		if name, _ := os.Readlink("/proc/self/fd/" + fd.Name()); strings.Contains(name, "io_uring") || strings.Contains(name, "socket:") {
			rings++
		}
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Skip(err)
	}
	return fmt.Sprint(rings, " descriptors, ", bytes.Count(maps, []byte("io_uring")), " mappings")
}

// refuse has a system call fail in the calling thread from now on, as a sandbox
// does.
func refuse(call uint32, errno unix.Errno) error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the number of the system call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: call},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
}
