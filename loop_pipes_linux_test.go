package main

import (
	"io"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Pipes, and what passes through them.

// bulk sends size bytes through a tunnel and back, and returns how many of
// them the gateway spliced and how many it copied.
func bulk(t testing.TB, g *testGateway, backend string, size int) (spliced, copied int64) {
	t.Helper()
	s0, c0 := g.loops.moved()
	c := openTunnel(t, g.addr, backend)
	text := string(noise(1, size))
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(c, text)
		c.CloseWrite()
		sent <- err
	}()
	expectAll(t, c, text)
	if err := <-sent; err != nil {
		t.Error(err)
	}
	eventually(t, "all is counted", func() bool {
		spliced, copied = g.loops.moved()
		spliced, copied = spliced-s0, copied-c0
		return spliced+copied >= int64(2*size)
	})
	if spliced+copied != int64(2*size) {
		t.Errorf("%d bytes spliced and %d copied of %d", spliced, copied, 2*size)
	}
	return spliced, copied
}

func TestTheCountersTellSplicedFromCopied(t *testing.T) {
	t.Parallel()
	const size = 8 << 20
	for _, splice := range []bool{true, false} {
		g := startLoops(t, 1, func(cfg *Config) { cfg.Splice = splice })
		backend := startEcho(t)
		spliced, copied := bulk(t, g, backend, size)
		if splice && spliced < size || !splice && spliced != 0 {
			t.Errorf("with -splice=%v %d bytes were spliced, %d copied", splice, spliced, copied)
		}
		if spliced, _ := bulk(t, g, backend, 1000); spliced != 0 {
			t.Errorf("%d bytes of a message were spliced", spliced)
		}
	}
}

func TestWithoutAPipeTunnelsCopy(t *testing.T) {
	t.Parallel()
	g := startLoops(t, 1, nil)
	backend := startEcho(t)
	inLoop(t, g.loops.all[0], func() { g.loops.pipes.Max = 0 })
	if spliced, _ := bulk(t, g, backend, 4<<20); spliced != 0 {
		t.Errorf("%d bytes were spliced", spliced)
	}
	inLoop(t, g.loops.all[0], func() { g.loops.pipes.Max = maxPipes })
	if spliced, _ := bulk(t, g, backend, 4<<20); spliced == 0 {
		t.Error("with pipes to be had again, nothing was spliced")
	}
	wantAtRest(t, g)
}

func TestWhereSpliceIsRefusedTunnelsCopy(t *testing.T) {
	t.Parallel()
	for _, errno := range []unix.Errno{unix.EPERM, unix.ENOSYS, unix.EINVAL} {
		g := startLoops(t, 1, nil)
		var err error
		inLoop(t, g.loops.all[0], func() { err = refuse(unix.SYS_SPLICE, errno) }) // for this thread, which ends with its loop
		if err != nil {
			t.Skip("no seccomp here: ", err)
		}
		if spliced, _ := bulk(t, g, startEcho(t), 4<<20); spliced != 0 {
			t.Errorf("%d bytes were spliced", spliced)
		}
		wantAtRest(t, g)
	}
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
