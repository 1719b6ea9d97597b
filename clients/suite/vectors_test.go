package suite

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// testVectors has a driver answer each vector of testdata/resume.json, one line each:
//
//	key PRIVATE GATEWAY           the public key and K, or "refused"
//	open PUBLIC SEALED            the line
//	resume KEY TICKET SEQ FROM RECV
//	                              the line
//	session KEY STEP...           the line to resume, what follows it, what was read;
//	                              or "refused". Steps: receive:HEX (byte by byte; the
//	                              first has HELLO), write:HEX, finish, resume
//
// Keys and bytes are hexadecimal, but for the public key that is answered.
func testVectors(t *testing.T, _ *kit, command []string) {
	var v struct {
		Keys []struct {
			ClientPrivate string `json:"client_private"`
			ClientPublic  string `json:"client_public"`
			GatewayPublic string `json:"gateway_public"`
			Key           string
		}
		BadPublicKeys []string `json:"bad_public_keys"`
		Opens         []struct{ Public, Sealed, Line string }
		Resumes       []struct{ Key, Ticket, Seq, From, Recv, Line string }
		BadFrames     []struct{ Hex, Why string } `json:"bad_frames"`
		Sessions      []struct {
			Key   string
			Steps []struct {
				Receive, Write string
				Finish, Resume bool
			}
			Line, Again, Reads string
			Fin                bool
		}
	}
	text, err := os.ReadFile("../testdata/resume.json")
	if err == nil {
		err = json.Unmarshal(text, &v)
	}
	if err != nil {
		t.Fatal(err)
	}
	var ask, want []string
	add := func(request, answer string) { ask, want = append(ask, request), append(want, answer) }
	for _, k := range v.Keys {
		add("key "+k.ClientPrivate+" "+unbase64(t, k.GatewayPublic), k.ClientPublic+" "+k.Key)
	}
	for _, bad := range v.BadPublicKeys {
		add("key "+v.Keys[0].ClientPrivate+" "+unbase64(t, bad), "refused")
	}
	for _, o := range v.Opens {
		if o.Public != "" { // always sent by these kits
			add("open "+unbase64(t, o.Public)+" "+o.Sealed, strings.TrimSuffix(o.Line, "\n"))
		}
	}
	for _, r := range v.Resumes {
		add(strings.Join([]string{"resume", r.Key, r.Ticket, r.Seq, r.From, r.Recv}, " "), strings.TrimSuffix(r.Line, "\n"))
	}
	hello := "receive:" + v.Sessions[0].Steps[0].Receive
	for _, f := range v.BadFrames {
		add("session "+v.Sessions[0].Key+" "+hello+" receive:"+f.Hex, "refused")
	}
	for i, s := range v.Sessions {
		request := "session " + s.Key
		passed := 0
		for _, step := range s.Steps {
			switch {
			case step.Receive != "":
				request += " receive:" + step.Receive
			case step.Write != "":
				request += " write:" + step.Write
			case step.Finish:
				request += " finish"
			case step.Resume:
				request += " resume"
			}
		}
		passed = len(s.Reads) / 2
		if i == finishedSession {
			passed++ // the peer's FIN
		}
		again := "000001" + hex.EncodeToString([]byte{0, 0, 0, byte(passed)})
		if s.Again != "" {
			again += hex.EncodeToString([]byte{0, byte(len(s.Again) / 2)}) + s.Again
		}
		if s.Fin {
			again += "000002"
		}
		add(request, strings.TrimSuffix(s.Line, "\n")+" "+again+" "+s.Reads)
	}
	got := strings.Split(run(t, strings.Join(ask, "\n")+"\n", command, "vectors"), "\n")
	for i, request := range ask {
		answer := "nothing"
		if i < len(got) {
			answer = strings.TrimSpace(got[i])
		}
		if answer != strings.TrimSpace(want[i]) {
			t.Errorf("%s\nis answered by\n%s\nwant\n%s", request, answer, want[i])
		}
	}
}

// finishedSession is the vector in which the gateway has finished.
const finishedSession = 4

func unbase64(t *testing.T, s string) string {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(b)
}
