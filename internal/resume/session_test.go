package resume

import (
	"bytes"
	"testing"
	"time"
)

// pair returns both ends of a session that has begun.
func pair(t *testing.T) (client, gateway *Session) {
	t.Helper()
	key := [32]byte{1}
	client, gateway = NewClient(), NewSession(MinWindow, key)
	h := Hello{Window: MinWindow, Ticket: "ticket"}
	if err := client.Input(h.Append(nil)); err != nil {
		t.Fatal(err)
	}
	client.SetKey(key)
	return client, gateway
}

// send has one end send all that it has to the other.
func send(t *testing.T, from, to *Session, now time.Duration) (n int) {
	t.Helper()
	b := from.Output(nil, 1<<20, now)
	if err := to.Input(b); err != nil {
		t.Fatal(err)
	}
	return len(b)
}

func TestAcknowledgementsWaitForCompany(t *testing.T) {
	client, gateway := pair(t)
	pass := func(n int, now time.Duration) {
		client.Send(make([]byte, n))
		send(t, client, gateway, now)
		gateway.Take(make([]byte, n))
		gateway.Pass(false, now)
	}
	pass(1000, 0)
	if gateway.Pending(ackDelay - 1) {
		t.Error("1000 bytes are acknowledged before a second is over")
	}
	if at, ok := gateway.Due(); !ok || at != ackDelay {
		t.Errorf("due at %v, %v", at, ok)
	}
	gateway.Send([]byte("x"))
	if n := send(t, gateway, client, 0); n != 3 {
		t.Errorf("%d bytes for one of data", n)
	}
	pass(4000, 0)
	if gateway.Pending(0) {
		t.Error("5000 bytes are acknowledged alone")
	}
	gateway.Send([]byte("x"))
	if n := send(t, gateway, client, 0); n != 10 {
		t.Errorf("%d bytes for one of data behind an ACK", n)
	}
	if client.Unacked() != 0 || client.Memory() > 2*keptRing {
		t.Errorf("%d unacknowledged, %d held", client.Unacked(), client.Memory())
	}
	pass(1, 2*time.Second)
	if gateway.Pending(3*time.Second - 1); !gateway.Pending(3 * time.Second) {
		t.Error("nothing is acknowledged after a second")
	}
	send(t, gateway, client, 3*time.Second)
	pass(ackAlone, 3*time.Second)
	if !gateway.Pending(3 * time.Second) {
		t.Error("32 KiB are not acknowledged at once")
	}
	if _, ok := client.Due(); ok {
		t.Error("who has received nothing has something to acknowledge")
	}
}

func TestCloseComesBehindWhatWasReadOfTheBackend(t *testing.T) {
	client, gateway := pair(t)
	gateway.Send([]byte("last words"))
	gateway.Close(BackendReset)
	send(t, gateway, client, 0)
	if why, ok := client.Closed(); !ok || why != BackendReset || client.Buffered() != 10 {
		t.Errorf("%v, %v, %d bytes", why, ok, client.Buffered())
	}
	if !gateway.Over() || gateway.Pending(0) {
		t.Error("the session is not over")
	}
	gateway.Detach()
	client.Detach()
	_, r, err := Parse(bytes.TrimSuffix(client.Reattach("ticket"), []byte("\n")))
	if err != nil {
		t.Fatal(err)
	}
	if err := gateway.Resume(r); err != ErrOffsets {
		t.Errorf("what is over is resumed: %v", err)
	}
}

func TestARefusedResumeChangesNothingAndUsesUpNoNumber(t *testing.T) {
	client, gateway := pair(t)
	client.Send([]byte("abc"))
	send(t, client, gateway, 0)
	gateway.Send([]byte("defg"))
	send(t, gateway, client, 0)
	client.Take(make([]byte, 4))
	client.Pass(false, 0)
	send(t, client, gateway, ackDelay) // 4 are acknowledged
	for _, tt := range []struct {
		seq, from, recv uint64
		want            error
	}{
		{0, 0, 4, ErrUsed}, {1, 4, 4, ErrOffsets}, {1, 3, 3, ErrOffsets}, {1, 3, 5, ErrOffsets},
		{9, 1 << 63, 4, ErrOffsets}, {9, 0, 1<<64 - 1, ErrOffsets}, {1, 3, 4, nil}, {1, 3, 4, ErrUsed}, {2, 0, 4, nil}, {1, 0, 4, ErrUsed},
	} {
		r := &Request{Ticket: "t", Seq: tt.seq, From: tt.from, Recv: tt.recv}
		before := outline(gateway)
		if err := gateway.Resume(r); err != ErrForged || outline(gateway) != before {
			t.Errorf("%+v without a MAC: %v", tt, err)
		}
		r.MAC = r.mac(gateway.key)
		if err := gateway.Resume(r); err != tt.want || err != nil && outline(gateway) != before {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}

func TestMoreThanTheWindowIsAViolation(t *testing.T) {
	_, gateway := pair(t)
	frame := append([]byte{0xff, 0xff}, make([]byte, 65535)...)
	if err := gateway.Input(frame); err != nil {
		t.Fatal(err)
	}
	if err := gateway.Input([]byte{0, 1, 'x'}); err != nil {
		t.Fatal(err)
	}
	if err := gateway.Input([]byte{0, 0, typeFIN}); err != nil {
		t.Errorf("FIN has no room: %v", err)
	}
	_, gateway = pair(t)
	if err := gateway.Input(append(frame, 0, 2, 'x', 'y')); err != ErrViolation {
		t.Errorf("65537 bytes: %v", err)
	}
}

func TestAnEndAtRestKeepsNothing(t *testing.T) {
	client, gateway := pair(t)
	client.Send(make([]byte, MinWindow))
	send(t, client, gateway, 0)
	gateway.Take(make([]byte, MinWindow))
	gateway.Pass(false, 0)
	send(t, gateway, client, 0)
	client.Trim()
	gateway.Trim()
	if client.out.buf != nil || gateway.Memory() != 0 {
		t.Errorf("%d and %d bytes are held", client.Memory(), gateway.Memory())
	}
}

func FuzzInput(f *testing.F) {
	f.Add([]byte{0, 1, 'x', 0, 0, 1, 0, 0, 0, 0, 0, 0, 2}, uint8(1))
	f.Add([]byte{0, 0, 0x80, 0, 3, 1, 2, 3, 0, 0, 4}, uint8(3))
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		whole, pieces := NewSession(MinWindow, [32]byte{}), NewSession(MinWindow, [32]byte{})
		err := whole.Input(b)
		var err2 error
		for rest := b; len(rest) > 0 && err2 == nil; {
			n := min(len(rest), int(cut)+1)
			err2 = pieces.Input(rest[:n])
			rest = rest[n:]
		}
		if err != err2 || whole.Received() != pieces.Received() || whole.Buffered() != pieces.Buffered() || whole.pong != pieces.pong {
			t.Fatalf("%v and %v, %s\n%s", err, err2, outline(whole), outline(pieces))
		}
		if whole.Memory() > 4*MinWindow {
			t.Fatalf("%d bytes held", whole.Memory())
		}
	})
}

func FuzzHello(f *testing.F) {
	h := Hello{Window: MinWindow, Ticket: "abc"}
	f.Add(h.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := NewClient()
		err := c.Input(b)
		h, ok := c.Hello()
		if ok && err == nil && (h.Window < MinWindow || h.Ticket == "" || len(h.Ticket) > MaxTicket) {
			t.Fatalf("%+v", h)
		}
		if c.Room() > 0 && !ok {
			t.Fatal("room without HELLO")
		}
	})
}

func FuzzParse(f *testing.F) {
	r := Request{Ticket: "abc", Seq: 1, From: 2, Recv: 3}
	f.Add(bytes.TrimSuffix(r.AppendSigned(nil, [32]byte{1}), []byte("\n")))
	f.Add(bytes.TrimSuffix(AppendOpen(nil, make([]byte, 32), goldenLine), []byte("\n")))
	f.Add(bytes.TrimSuffix(AppendOpen(nil, nil, goldenLine), []byte("\n")))
	f.Fuzz(func(t *testing.T, line []byte) {
		o, r, err := Parse(line)
		var again []byte
		switch {
		case err != nil:
			return
		case o != nil:
			again = AppendOpen(nil, o.Key, string(o.Sealed))
		default:
			again = r.Append(nil)
		}
		// There is one way to write each.
		if string(again) != string(line)+"\n" {
			t.Fatalf("%q is written %q", line, again)
		}
	})
}

// Whatever another process says of a session, it is refused or does no harm.
func FuzzRestore(f *testing.F) {
	s := NewSession(MinWindow, [32]byte{1})
	f.Add(s.Append(nil))
	s.Send([]byte("hello"))
	s.Output(nil, 100, 0)
	s.Input([]byte{0, 3, 'a', 'b', 'c', 0, 9, 'd'})
	s.Finish()
	f.Add(s.Append(nil))
	s.Detach()
	f.Add(s.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := RestoreSession(b)
		if err != nil {
			return
		}
		if again, err := RestoreSession(s.Append(nil)); err != nil || outline(again) != outline(s) {
			t.Fatalf("%s comes back as %s, %v", outline(s), outline(again), err)
		}
		s.Input([]byte{0, 1, 'x', 0, 0, typeACK, 0, 0, 0, 1})
		if n := s.Room(); n > 0 {
			s.Send(make([]byte, n))
		}
		s.Output(nil, 1<<20, 0)
		s.Detach()
		s.Release()
	})
}

func FuzzTicket(f *testing.F) {
	tickets, err := NewTickets([][]byte{[]byte("secret")})
	if err != nil {
		f.Fatal(err)
	}
	good := tickets.sealWith([nonceSize]byte{1}, Ticket{Owner: "10.0.0.1:7000"})
	f.Add(good)
	f.Fuzz(func(t *testing.T, text string) {
		if k, ok := tickets.Open(text); ok && text != good {
			t.Fatalf("%q opens as %+v", text, k)
		}
	})
}
