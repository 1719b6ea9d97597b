package resume

import (
	"bytes"
	"crypto/ecdh"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"strconv"
	"strings"
	"testing"
)

// The test vectors in clients/testdata/resume.json are for clients in every language.
// They are made here, from values that never change, and checked here by reading them
// as a client would.

var update = flag.Bool("update", false, "write clients/testdata/resume.json anew")

const vectorFile = "../../clients/testdata/resume.json"

type vectors struct {
	Comment   []string        `json:"comment"`
	Keys      []keyVector     `json:"keys"`
	BadKeys   []string        `json:"bad_public_keys"`
	Tickets   []ticketVector  `json:"tickets"`
	Opens     []openVector    `json:"opens"`
	Resumes   []resumeVector  `json:"resumes"`
	BadLines  []string        `json:"bad_lines"`
	Frames    []frameVector   `json:"frames"`
	BadFrames []badFrame      `json:"bad_frames"`
	ACKs      []ackVector     `json:"acks"`
	Sessions  []sessionVector `json:"sessions"`
}

type keyVector struct {
	ClientPrivate  string `json:"client_private"`
	ClientPublic   string `json:"client_public"`
	GatewayPrivate string `json:"gateway_private"`
	GatewayPublic  string `json:"gateway_public"`
	Key            string `json:"key"`
}

type ticketVector struct {
	Secret string `json:"secret"`
	Nonce  string `json:"nonce"`
	Boot   string `json:"boot"`
	ID     string `json:"id"`
	Owner  string `json:"owner"`
	Ticket string `json:"ticket"`
}

type openVector struct {
	Public string `json:"public"` // empty: "-"
	Sealed string `json:"sealed"`
	Line   string `json:"line"`
}

type resumeVector struct {
	Key    string `json:"key"`
	Ticket string `json:"ticket"`
	Seq    string `json:"seq"`
	From   string `json:"from"`
	Recv   string `json:"recv"`
	MAC    string `json:"mac"`
	Line   string `json:"line"`
}

type frameVector struct {
	Hex    string      `json:"hex"`
	Frames []oneVector `json:"frames"`
}

type oneVector struct {
	Type   string `json:"type"`
	Data   string `json:"data,omitempty"`
	Low    uint32 `json:"low,omitempty"`
	Reason int    `json:"reason,omitempty"`
	Window int    `json:"window,omitempty"`
	Ticket string `json:"ticket,omitempty"`
	Secret string `json:"secret,omitempty"`
}

type badFrame struct {
	Hex string `json:"hex"`
	Why string `json:"why"`
}

type ackVector struct {
	Acked  string `json:"acked"`
	Sent   string `json:"sent"`
	Low    uint32 `json:"low"`
	Passed string `json:"passed"` // empty: a violation
}

type sessionVector struct {
	Name   string        `json:"name"`
	Key    string        `json:"key"`
	Steps  []sessionStep `json:"steps"`
	Line   string        `json:"line"` // the request that resumes
	Again  string        `json:"again"`
	FIN    bool          `json:"fin"` // follows again
	Reads  string        `json:"reads"`
	Window int           `json:"window"`
}

type sessionStep struct {
	Receive string `json:"receive,omitempty"`
	Write   string `json:"write,omitempty"`
	Finish  bool   `json:"finish,omitempty"`
	Resume  bool   `json:"resume,omitempty"`
}

// counting is n bytes that count up.
func counting(from, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(from + i)
	}
	return b
}

const goldenLine = "U2FsdGVkX19KIJ9OQJKT/yHGMrS+5SsBAAjetomptQ0="

func makeVectors(t *testing.T) vectors {
	v := vectors{Comment: []string{
		"Test vectors for clients of resumable tunnels; docs/roaming.md describes the protocol.",
		"Made and checked by internal/resume (go test ./internal/resume -update). Keys, nonces and bytes are",
		"hexadecimal where they are not said to be text; public keys, tickets and MACs are base64url without",
		"padding; numbers that may not fit into 53 bits are strings of digits.",
		"keys: K of a session. bad_public_keys: give an all-zero shared secret.",
		"tickets: for gateways; to a client a ticket is text. opens, resumes: requests, with their newline.",
		"bad_lines: what is no request, without newline. frames: what a stream of bytes means; cut it into reads",
		"anywhere. bad_frames: a violation. acks: what the low bits of an ACK mean, where passed is empty a",
		"violation. sessions: a client opens a session (HELLO is the first that it receives), does the steps and",
		"loses its connection; line is its request to resume, again is the data that follows, as a stream, then",
		"FIN where fin is true; reads is all that its application has read.",
	}}
	for i := range 3 {
		c, err := ecdh.X25519().NewPrivateKey(counting(1+i, 32))
		g, err2 := ecdh.X25519().NewPrivateKey(counting(101+i, 32))
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		k, err := GatewayKey(g, c.PublicKey().Bytes())
		if err != nil {
			t.Fatal(err)
		}
		v.Keys = append(v.Keys, keyVector{
			hex.EncodeToString(c.Bytes()), encoding.EncodeToString(c.PublicKey().Bytes()),
			hex.EncodeToString(g.Bytes()), encoding.EncodeToString(g.PublicKey().Bytes()), hex.EncodeToString(k[:])})
	}
	for _, low := range []string{ // RFC 7748 section 6.1 and cr.yp.to/ecdh.html
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
		"5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	} {
		b, _ := hex.DecodeString(low)
		v.BadKeys = append(v.BadKeys, encoding.EncodeToString(b))
	}
	for _, owner := range []string{"", "10.0.0.7:7000", "[2001:db8::7]:65535"} {
		tickets, err := NewTickets([][]byte{[]byte("p0S8rX680*48")})
		if err != nil {
			t.Fatal(err)
		}
		k := Ticket{[8]byte(counting(1, 8)), [8]byte(counting(11, 8)), owner}
		nonce := [nonceSize]byte(counting(21, nonceSize))
		v.Tickets = append(v.Tickets, ticketVector{"p0S8rX680*48", hex.EncodeToString(nonce[:]),
			hex.EncodeToString(k.Boot[:]), hex.EncodeToString(k.ID[:]), owner, tickets.sealWith(nonce, k)})
	}
	for _, public := range []string{v.Keys[0].ClientPublic, ""} {
		key, _ := decode(public)
		if public == "" {
			key = nil
		}
		v.Opens = append(v.Opens, openVector{public, goldenLine, string(AppendOpen(nil, key, goldenLine))})
	}
	key := [32]byte(counting(1, 32))
	for _, n := range [][3]uint64{{1, 0, 0}, {2, 1, 4_294_967_296}, {18446744073709551615, 18446744073709551615, 9007199254740993}} {
		r := Request{Ticket: v.Tickets[1].Ticket, Seq: n[0], From: n[1], Recv: n[2]}
		line := string(r.AppendSigned(nil, key))
		mac := r.mac(key)
		v.Resumes = append(v.Resumes, resumeVector{hex.EncodeToString(key[:]), r.Ticket,
			strconv.FormatUint(n[0], 10), strconv.FormatUint(n[1], 10), strconv.FormatUint(n[2], 10), encoding.EncodeToString(mac[:]), line})
	}
	pub, good := v.Keys[0].ClientPublic, strings.TrimSuffix(v.Resumes[0].Line, "\n")
	mac := v.Resumes[0].MAC
	v.BadLines = []string{
		"", "~", "~1", "~1N", "~1R", "~1N ", "~1X a b", "~2N " + pub + " " + goldenLine, " ~1N " + pub + " " + goldenLine,
		"~1n " + pub + " " + goldenLine, "~1N " + pub, "~1N " + pub + " ", "~1N  " + pub + " " + goldenLine,
		"~1N " + pub + "  " + goldenLine, "~1N " + pub + " " + goldenLine + " ", "~1N " + pub + " " + goldenLine + " x",
		"~1N " + pub + "= " + goldenLine, "~1N " + pub[:42] + " " + goldenLine, "~1N " + pub + "A " + goldenLine,
		"~1N " + pub[:42] + "B " + goldenLine, "~1N " + pub[:42] + "+ " + goldenLine, "~1N -- " + goldenLine, "~1N  " + goldenLine,
		"~1N\t" + pub + " " + goldenLine,
		"~1R - 1 0 0 " + mac[:42], strings.Replace(good, " 1 0 0 ", " 01 0 0 ", 1), strings.Replace(good, " 1 0 0 ", " +1 0 0 ", 1),
		strings.Replace(good, " 1 0 0 ", " 1 -0 0 ", 1), strings.Replace(good, " 1 0 0 ", " 1 0 ", 1),
		strings.Replace(good, " 1 0 0 ", " 1 0 0 0 ", 1), strings.Replace(good, " 1 0 0 ", "  1 0 0 ", 1),
		strings.Replace(good, " 1 0 0 ", " 1 0  ", 1), strings.Replace(good, " 1 0 0 ", " 18446744073709551616 0 0 ", 1),
		strings.Replace(good, " 1 0 0 ", " 1_0 0 0 ", 1), strings.Replace(good, " 1 0 0 ", " 0x1 0 0 ", 1),
		good + " ", good + "A", good[:len(good)-1], good[:len(good)-1] + "_", good + "=", good + "\r",
		"~1R " + strings.Repeat("A", 500) + " 1 0 0 " + mac,
	}
	one := func(hexes string, frames ...oneVector) {
		v.Frames = append(v.Frames, frameVector{strings.ReplaceAll(hexes, " ", ""), frames})
	}
	one("0001 61", oneVector{Type: "data", Data: "61"})
	one("0003 616263 0002 6465", oneVector{Type: "data", Data: "616263"}, oneVector{Type: "data", Data: "6465"})
	one("0000 01 00000000", oneVector{Type: "ACK"})
	one("0000 01 00010203 0001 61", oneVector{Type: "ACK", Low: 0x010203}, oneVector{Type: "data", Data: "61"})
	one("0000 01 ffffffff", oneVector{Type: "ACK", Low: 0xffffffff})
	one("0000 02", oneVector{Type: "FIN"})
	for r := range 5 {
		one("0000 03 0"+strconv.Itoa(r), oneVector{Type: "CLOSE", Reason: r})
	}
	one("0000 03 c8", oneVector{Type: "CLOSE", Reason: 200})
	one("0000 04 0000 05", oneVector{Type: "PING"}, oneVector{Type: "PONG"})
	one("0000 80 0000 0000 ff 0003 000001 0000 04", oneVector{Type: "PING"})
	one("0000 c8 0005 0000030000 0001 62", oneVector{Type: "data", Data: "62"})
	h := Hello{Window: 256 << 10, Ticket: v.Tickets[0].Ticket, Secret: key}
	one(hex.EncodeToString(h.Append(nil)), oneVector{Type: "HELLO", Window: h.Window, Ticket: h.Ticket, Secret: hex.EncodeToString(key[:])})
	large := bytes.Repeat([]byte{7}, 16385)
	one("4001"+hex.EncodeToString(large), oneVector{Type: "data", Data: hex.EncodeToString(large)})

	for _, bad := range [][2]string{
		{"0000 00", "there is no type 0"}, {"0000 07", "nor 7"}, {"0000 7f", "nor 127"},
		{"0000 02 0001 61", "data behind FIN"}, {"0000 02 0000 02", "two FINs"},
		{"0000 01 00000001", "an ACK of what was never sent"}, {"0000 01 ffffffff", "the same"},
		{"0000 06 0024 00010000" + strings.Repeat("00", 32), "a second HELLO"},
	} {
		v.BadFrames = append(v.BadFrames, badFrame{strings.ReplaceAll(bad[0], " ", ""), bad[1]})
	}
	v.ACKs = []ackVector{
		{"0", "0", 0, "0"}, {"0", "10", 10, "10"}, {"0", "10", 11, ""}, {"5", "10", 4, ""},
		{"4294967290", "4294967300", 4, "4294967300"}, {"4294967290", "4294967300", 5, ""},
		{"4294967290", "4294967300", 4294967290, "4294967290"}, {"4294967290", "4294967300", 4294967289, ""},
		{"1000000000000", "1000000100000", 3567687328, "1000000100000"},
	}

	session := func(name, line, again string, fin bool, reads string, steps ...sessionStep) {
		hello := sessionStep{Receive: hex.EncodeToString(h.Append(nil))}
		v.Sessions = append(v.Sessions, sessionVector{name, hex.EncodeToString(key[:]), append([]sessionStep{hello}, steps...),
			line, again, fin, reads, h.Window})
	}
	line := func(seq, from, recv uint64) string {
		return string((&Request{Ticket: h.Ticket, Seq: seq, From: from, Recv: recv}).AppendSigned(nil, key))
	}
	session("nothing was said", line(1, 0, 0), "", false, "")
	session("nothing was acknowledged", line(1, 0, 2), "616263", false, "7879",
		sessionStep{Write: "616263"}, sessionStep{Receive: "00027879"})
	session("some was", line(1, 2, 0), "63", false, "", sessionStep{Write: "616263"}, sessionStep{Receive: "00000100000002"})
	session("a frame was cut", line(1, 0, 1), "", false, "78", sessionStep{Receive: "000278"})
	session("both have finished, and one does not know", line(1, 3, 3), "", true, "7879",
		sessionStep{Write: "616263"}, sessionStep{Finish: true}, sessionStep{Receive: "0002787900000200000100000003"})
	session("again and again", line(2, 1, 4), "626364", false, "78797a7b",
		sessionStep{Write: "616263"}, sessionStep{Receive: "00027879"}, sessionStep{Resume: true},
		sessionStep{Receive: "0000010000000100027a7b"}, sessionStep{Write: "64"})
	session("an ACK ahead of what comes again", line(2, 2, 0), "63", false, "",
		sessionStep{Write: "616263"}, sessionStep{Resume: true}, sessionStep{Receive: "00000100000002"})
	return v
}

func TestTheVectorsAreThoseThatClientsTest(t *testing.T) {
	v := makeVectors(t)
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", " ")
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(vectorFile, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, b.Bytes()) {
		t.Errorf("%s is not what is made here: go test ./internal/resume -update", vectorFile)
	}
}

func readVectors(t *testing.T) (v vectors) {
	text, err := os.ReadFile(vectorFile)
	if err == nil {
		err = json.Unmarshal(text, &v)
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func unhex(t *testing.T, s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func number(t *testing.T, s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestKeysAreTheSameAtBothEnds(t *testing.T) {
	v := readVectors(t)
	for _, k := range v.Keys {
		c, err := ecdh.X25519().NewPrivateKey(unhex(t, k.ClientPrivate))
		if err != nil {
			t.Fatal(err)
		}
		gateway, _ := decode(k.GatewayPublic)
		key, err := ClientKey(c, [32]byte(gateway))
		if err != nil || hex.EncodeToString(key[:]) != k.Key {
			t.Errorf("the client has %x, %v; want %s", key, err, k.Key)
		}
		for _, bad := range v.BadKeys {
			b, ok := decode(bad)
			if !ok || len(b) != 32 {
				t.Fatal(bad)
			}
			if key, err := ClientKey(c, [32]byte(b)); err == nil {
				t.Errorf("a key of low order gives %x", key)
			}
			if key, err := GatewayKey(c, b); err == nil {
				t.Errorf("a key of low order gives %x", key)
			}
		}
	}
}

func TestTicketsOpenWithTheirSecretOnly(t *testing.T) {
	for _, k := range readVectors(t).Tickets {
		tickets, err := NewTickets([][]byte{[]byte("another"), []byte(k.Secret)})
		if err != nil {
			t.Fatal(err)
		}
		want := Ticket{[8]byte(unhex(t, k.Boot)), [8]byte(unhex(t, k.ID)), k.Owner}
		if got, ok := tickets.Open(k.Ticket); !ok || got != want {
			t.Errorf("%s opens as %+v, %v", k.Ticket, got, ok)
		}
		if got, ok := tickets.Open(tickets.Seal(want)); !ok || got != want {
			t.Errorf("a ticket of ours opens as %+v, %v", got, ok)
		}
		for i := range k.Ticket {
			for _, c := range []string{"A", "B", "\n", "", "=", "+"} {
				if bad := k.Ticket[:i] + c + k.Ticket[i+1:]; bad != k.Ticket {
					if _, ok := tickets.Open(bad); ok {
						t.Errorf("%q opens", bad)
					}
				}
			}
		}
		other, err := NewTickets([][]byte{[]byte("another")})
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := other.Open(k.Ticket); ok {
			t.Error("a ticket opens with another secret")
		}
	}
}

func TestRequestsAreReadAsTheyAreWritten(t *testing.T) {
	v := readVectors(t)
	for _, o := range v.Opens {
		open, _, err := Parse([]byte(strings.TrimSuffix(o.Line, "\n")))
		if err != nil || string(open.Sealed) != o.Sealed || encoding.EncodeToString(open.Key) != o.Public {
			t.Errorf("%q: %+v, %v", o.Line, open, err)
		}
	}
	for _, r := range v.Resumes {
		_, got, err := Parse([]byte(strings.TrimSuffix(r.Line, "\n")))
		if err != nil {
			t.Fatalf("%q: %v", r.Line, err)
		}
		key := [32]byte(unhex(t, r.Key))
		want := Request{Ticket: r.Ticket, Seq: number(t, r.Seq), From: number(t, r.From), Recv: number(t, r.Recv)}
		if line := string(want.AppendSigned(nil, key)); line != r.Line || !got.Authentic(key) || want.MAC != got.MAC {
			t.Errorf("%q, want %q", line, r.Line)
		}
		for _, change := range []func(r *Request){
			func(r *Request) { r.Ticket += "A" }, func(r *Request) { r.Seq++ }, func(r *Request) { r.From++ },
			func(r *Request) { r.Recv++ }, func(r *Request) { r.MAC[31] ^= 1 },
		} {
			changed := *got
			if change(&changed); changed.Authentic(key) {
				t.Errorf("%+v passes for authentic", changed)
			}
		}
	}
	for _, line := range v.BadLines {
		if o, r, err := Parse([]byte(line)); err == nil {
			t.Errorf("%q is taken for a request: %v, %v", line, o, r)
		}
	}
}

// frames reads all of b, cut into pieces of n bytes.
func readFrames(b []byte, n int) (list []oneVector, err error) {
	var d decoder
	var hello Session
	hello.greets = true
	open := false // data whose frame has more
	for len(b) > 0 {
		piece := b[:min(n, len(b))]
		b = b[len(piece):]
		for {
			f, rest, ok, err := d.next(piece)
			if err != nil {
				return list, err
			}
			if !ok {
				break
			}
			piece = rest
			switch f.kind {
			case kindData:
				if !open {
					list = append(list, oneVector{Type: "data"})
				}
				list[len(list)-1].Data += hex.EncodeToString(f.body)
				open = !f.last
			case typeHELLO:
				if err := hello.takeHello(f); err != nil {
					return list, err
				}
				if h, ok := hello.Hello(); ok && f.last {
					list = append(list, oneVector{Type: "HELLO", Window: h.Window, Ticket: h.Ticket, Secret: hex.EncodeToString(h.Secret[:])})
				}
			default:
				name := map[int]string{typeACK: "ACK", typeFIN: "FIN", typeCLOSE: "CLOSE", typePING: "PING", typePONG: "PONG"}[f.kind]
				list = append(list, oneVector{Type: name, Low: f.ack, Reason: int(f.reason)})
			}
		}
	}
	return list, nil
}

func TestFramesAreReadHoweverTheyAreCut(t *testing.T) {
	for _, f := range readVectors(t).Frames {
		b := unhex(t, f.Hex)
		for _, n := range []int{1, 2, 3, 5, 7, 100, len(b)} {
			if len(b) > 1000 && n < 100 {
				continue
			}
			got, err := readFrames(b, n)
			same := err == nil && len(got) == len(f.Frames)
			for i := range got {
				same = same && got[i] == f.Frames[i]
			}
			if !same {
				t.Errorf("%.100s in pieces of %d: %.200v, %v", f.Hex, n, got, err)
			}
		}
	}
}

func TestWhatIsNoProtocolIsAViolation(t *testing.T) {
	v := readVectors(t)
	for _, f := range v.BadFrames {
		for _, n := range []int{1, 1000} {
			s := NewClient()
			if err := s.Input(unhex(t, v.Sessions[0].Steps[0].Receive)); err != nil {
				t.Fatal(err)
			}
			var err error
			for b := unhex(t, f.Hex); len(b) > 0 && err == nil; {
				k := min(n, len(b))
				err = s.Input(b[:k])
				b = b[k:]
			}
			if err != ErrViolation {
				t.Errorf("%s, %s: %v", f.Hex, f.Why, err)
			}
			if out := s.Output(nil, 1000, 0); string(out) != "\x00\x00\x03\x04" || !s.Over() {
				t.Errorf("%s: answered by %x", f.Hex, out)
			}
		}
	}
	for _, a := range v.ACKs {
		s := NewSession(MinWindow, [32]byte{})
		s.acked, s.sent = number(t, a.Acked), number(t, a.Sent)
		s.next, s.end = s.acked, s.acked
		err := s.takeACK(a.Low)
		if a.Passed == "" && err != ErrViolation || a.Passed != "" && (err != nil || s.acked != number(t, a.Passed)) {
			t.Errorf("%+v: %d, %v", a, s.acked, err)
		}
	}
}

func TestClientsResumeWhereTheyWere(t *testing.T) {
	for _, v := range readVectors(t).Sessions {
		s := NewClient()
		reads := []byte{}
		for _, step := range v.Steps {
			if err := s.Input(unhex(t, step.Receive)); err != nil {
				t.Fatalf("%s: %v", v.Name, err)
			}
			h, _ := s.Hello()
			s.SetKey([32]byte(unhex(t, v.Key)))
			if step.Write != "" {
				s.Send(unhex(t, step.Write))
			}
			if step.Finish {
				s.Finish()
			}
			if step.Resume {
				s.Detach()
				s.Reattach(h.Ticket)
			}
			s.Output(nil, 1<<20, 0)
			b := make([]byte, 100)
			reads = append(reads, b[:s.Take(b)]...)
			s.Pass(true, 0)
		}
		h, _ := s.Hello()
		s.Detach()
		line := s.Reattach(h.Ticket)
		if string(line) != v.Line {
			t.Errorf("%s: %q, want %q", v.Name, line, v.Line)
		}
		frames, err := readFrames(s.Output(nil, 1<<20, 0), 1<<20)
		again, fin := "", false
		for i, f := range frames {
			again += f.Data
			fin = fin || f.Type == "FIN"
			if i == 0 && f.Type != "ACK" {
				t.Errorf("%s: first comes %+v", v.Name, f)
			}
		}
		if err != nil || again != v.Again || fin != v.FIN || hex.EncodeToString(reads) != v.Reads || h.Window != v.Window {
			t.Errorf("%s: sends %q again, FIN %v, has read %x; %v", v.Name, again, fin, reads, err)
		}
	}
}
