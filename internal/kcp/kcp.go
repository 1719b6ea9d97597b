// Package kcp carries streams of bytes over KCP, a reliable protocol on UDP,
// and stands guard where kcp-go trusts everybody. Its peers need nothing of
// it: kcp-go's own client and server, with the same settings, talk to it.
//
// # The end of a session
//
// KCP has no handshake and no FIN. What takes their place:
//
//   - A session begins with the first datagram of a source: one that holds
//     KCP's segment 0. Nothing else from an unknown source costs anything.
//   - [Conn.Close] waits until the peer has acknowledged every byte that was
//     written, or nothing for [Linger], and then forgets the session. It tells
//     the peer nothing: the peer has all the bytes and then hears no more. It
//     learns of the end from its own protocol, or by its own idle timeout.
//   - A session ends by itself after Options.IdleTimeout without a byte either
//     way: none read from it, and none of those written acknowledged. A peer
//     that is gone therefore ends its session even while we write to it. That
//     is the only way to learn of a peer's end, but for a backend whose host
//     says that nobody has its port (ICMP), which ends the session at once.
//   - What comes for a session that has ended is dropped without an answer.
//   - There is no half-close, and so no CloseWrite.
//
// # Addresses
//
// A session belongs to its client's address and port. A phone that goes from
// Wi-Fi to 4G has another, and its datagrams are those of an unknown source in
// the middle of a conversation: dropped. It must connect anew, and the old
// session ends by its idle timeout. One address has one session; another may
// take its place, of the same conversation too, once nothing has come for the
// old one in 5 s (a client that was restarted on a fixed port; sooner, and a
// forged datagram could cut off a player).
//
// A client's address is proven once it echoes what only its owner can have
// seen (cookie.go); any other acknowledgement counts for nothing. Until then it
// is sent no more than three times the bytes that came from it (the rule of
// RFC 9000 section 8.1), bare acknowledgements included, and no more than 8
// bytes of the stream.
//
// What an unproven client may take, and for how long:
//
//   - An opening for which there is no place: nothing. It waits in a queue of
//     1,024 for its challenge, of fewer bytes than it has sent itself.
//   - A challenge that was answered: an entry of 8,192, for 10 s.
//   - A session: one of 512, about 30 KB and 16 packets. The oldest has to go
//     for the newest once it has had three seconds. Its user's deadlines bound it,
//     and the idle timeout.
//   - A session that was sent data: the same, for 10 s.
//   - A session that closes: the same, for 2 s.
//   - One that has ended, proven or not: an entry of 8,192, for 10 s.
//
// # Costs
//
// A session is one goroutine of kcp-go, (*UDPSession).postProcess, about
// 25 KB, and a call every 10 to 40 ms (Options.Mode) even when it rests. It
// may hold ReceiveWindow packets that nobody has read, and SendWindow plus a
// few that nobody has acknowledged, of 1,500 bytes each whatever the MTU; with
// error correction, also four groups of DataShards + ParityShards. A session
// that nobody reads announces a window of zero. Before its address is proven a
// session may hold 16 packets.
//
// A listener has a goroutine that reads, one that accepts, one that challenges, and on Linux
// one that sends for all sessions (outbox), with 1,024 datagrams at most that wait.
//
// kcp-go starts one goroutine (*TimedSched).sched per CPU and one
// (*TimedSched).prepend when the program starts, and they never end.
package kcp

import (
	"crypto/pbkdf2"
	"crypto/sha1"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	kcpgo "github.com/xtaci/kcp-go/v5"
)

// Linger bounds how long [Conn.Close] waits for the next acknowledgement; the
// idle timeout does too, if it is shorter.
const Linger = 5 * time.Second

// The ranges of Options.
const (
	MinWindow, MaxWindow = 16, 32768 // packets
	MinMTU, MaxMTU       = 256, 1500 // bytes
	MaxShards            = 128       // of data, and of parity
)

// Options are a session's settings, in kcptun's words. Both ends must have the
// same Crypt, Key, DataShards and ParityShards; the others may differ.
type Options struct {
	// Mode is normal, fast, fast2 or fast3: the earlier a lost packet is sent
	// again, the more bandwidth and CPU it takes. None of them slows down for
	// congestion.
	Mode string

	// SendWindow and ReceiveWindow bound a session's packets in flight and
	// unread, from MinWindow to MaxWindow.
	SendWindow, ReceiveWindow int

	// MTU is the most bytes of a datagram, without the headers of IP and UDP,
	// from MinMTU to MaxMTU.
	MTU int

	// DataShards and ParityShards are the packets of a Reed-Solomon group and
	// those added to it; 0 and 0: no error correction.
	DataShards, ParityShards int

	// Crypt is none or aes: AES-256 with a key derived from Key as kcptun does.
	// It hides the bytes and keeps strangers out; it does not authenticate
	// them (its checksum is CRC-32). A listener with none understands both of
	// kcptun's clear forms, "null" (kcp-go without a BlockCrypt) and "none".
	Crypt, Key string

	// IdleTimeout ends a session without a byte either way; it must be
	// positive, as nothing else tells that a peer is gone.
	IdleTimeout time.Duration

	// MaxSessions bounds a listener's sessions; 0: 10,000.
	MaxSessions int

	// Log gets a warning, at most every ten seconds, while there is no room
	// for more; nil is slog.Default().
	Log *slog.Logger
}

// modes are the values of nodelay, interval (ms), resend and nc that kcptun
// gives to each mode.
var modes = map[string][4]int{
	"normal": {0, 40, 2, 1},
	"fast":   {0, 30, 2, 1},
	"fast2":  {1, 20, 2, 1},
	"fast3":  {1, 10, 2, 1},
}

// validate returns an error of one line that names the flag at fault.
func (o *Options) validate() error {
	for _, n := range []struct {
		flag            string
		value, min, max int
	}{
		{"-kcp-sndwnd", o.SendWindow, MinWindow, MaxWindow},
		{"-kcp-rcvwnd", o.ReceiveWindow, MinWindow, MaxWindow},
		{"-kcp-mtu", o.MTU, MinMTU, MaxMTU},
		{"-kcp-datashard", o.DataShards, 0, MaxShards},
		{"-kcp-parityshard", o.ParityShards, 0, MaxShards},
	} {
		if n.value < n.min || n.value > n.max {
			return fmt.Errorf("%s: want a number from %d to %d", n.flag, n.min, n.max)
		}
	}
	switch _, known := modes[o.Mode]; {
	case !known:
		return errors.New("-kcp-mode: want normal, fast, fast2 or fast3")
	case (o.DataShards == 0) != (o.ParityShards == 0):
		return errors.New("-kcp-parityshard: error correction needs both -kcp-datashard and -kcp-parityshard")
	case o.DataShards > 0 && strconv.IntSize < 64:
		// kcp-go compares a recovered segment's length as an int.
		return errors.New("-kcp-datashard: error correction needs a 64-bit build")
	case o.Crypt != "none" && o.Crypt != "aes":
		return errors.New("-kcp-crypt: want none or aes")
	case o.Crypt == "aes" && o.Key == "":
		return errors.New("-kcp-key: -kcp-crypt aes needs a key")
	case o.Crypt == "none" && o.Key != "":
		return errors.New("-kcp-key: a key needs -kcp-crypt aes")
	case o.IdleTimeout <= 0:
		return errors.New("-kcp-idle-timeout: want a positive duration, as KCP has no other end")
	case o.MaxSessions < 0:
		return errors.New("kcp: a negative number of sessions")
	}
	return nil
}

// A Transport listens and dials with one set of options. Its methods are safe
// for concurrent use.
type Transport struct {
	Options
	key []byte // AES-256, nil: clear
}

// New returns a transport, or an error of one line that names the flag at
// fault (-kcp-mtu …). With a key it takes about a millisecond.
func New(o Options) (*Transport, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.MaxSessions == 0 {
		o.MaxSessions = 10_000
	}
	t := &Transport{Options: o}
	if o.Crypt == "aes" {
		// kcptun's derivation, with its salt.
		key, err := pbkdf2.Key(sha1.New, o.Key, []byte("kcp-go"), 4096, 32)
		if err != nil {
			return nil, fmt.Errorf("-kcp-key: %w", err)
		}
		t.key = key
	}
	return t, nil
}

func (t *Transport) layout() layout { return layout{t.DataShards, t.ParityShards} }

// tune applies the options to a session. overhead is what the frame around its
// packets takes.
func (t *Transport) tune(s *kcpgo.UDPSession, overhead int) {
	if t.DataShards > 0 {
		overhead += fecHeader
	}
	s.SetMtu(t.MTU - overhead)
	s.SetStreamMode(true) //lint:ignore SA1019 small writes must share packets while the window is full
}

// pace sets how eagerly a session works and how much it may hold, for a peer
// that is proven or not. A window of one makes the second write wait for the
// first one's acknowledgement, which is the proof.
func (t *Transport) pace(s *kcpgo.UDPSession, proven bool) {
	m := modes[t.Mode]
	if proven {
		s.SetNoDelay(m[0], m[1], m[2], m[3])
		s.SetWindowSize(t.SendWindow, t.ReceiveWindow)
	} else {
		s.SetNoDelay(m[0], unprovenInterval, m[2], m[3])
		s.SetWindowSize(1, min(unprovenWindow, t.ReceiveWindow))
	}
}
