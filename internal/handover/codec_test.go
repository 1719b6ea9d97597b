package handover

import (
	"bytes"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"reflect"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the file of the present version anew; only before it is released")

// examples are the tunnels in testdata: one with nothing, one with everything.
func examples() []Tunnel {
	return []Tunnel{
		{Addr: netip.MustParseAddrPort("127.0.0.1:4000"), Target: "10.0.0.7:80"},
		{
			Client: Side{Hung: true}, Backend: Side{Stalled: true},
			Up:   Flow{Moved: 1 << 40, Unsent: []byte("unsent"), Bulk: true, Ended: true},
			Down: Flow{Moved: 7, InPipe: 1 << 20, Large: true, Done: true},
			Deaf: true, Optioned: true, EndedBy: "backend", How: "fin",
			Age: 36 * time.Hour, Idle: 60 * time.Second, Rest: 59 * time.Second,
			Addr: netip.MustParseAddrPort("[2001:db8::1]:65535"), Local: netip.MustParseAddrPort("192.0.2.1:443"),
			Name: "abc-1", Listener: "127.0.0.1:62863", Forward: "a:1,b:2*3", Form: "line", Secure: true, Proxied: true, Hops: 2, Header: 52,
			Target: "game.example:4000", Dialed: netip.MustParseAddrPort("198.51.100.9:4000"), Route: "srv:game.example",
			Preface: 107, FirstByte: 23 * time.Millisecond, Dialing: 4 * time.Second, Tries: 3, Failed: "game.example:4001", Label: "eu/room-42",
			Layer: Layer{Name: "websocket", State: []byte("state"), Owed: 4, Finished: true, Wait: 5 * time.Second},
		},
		{
			Addr: netip.MustParseAddrPort("127.0.0.1:4001"), Target: "10.0.0.7:80",
			Layer: Layer{Name: "resume", State: []byte("session")}, Detached: true,
		},
	}
}

func TestTheEncodingsOfAllReleasesAreRead(t *testing.T) {
	present := Append(nil, examples())
	name := fmt.Sprintf("testdata/v%d.bin", Version)
	if *update {
		if err := os.WriteFile(name, present, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for v := oldest; v <= Version; v++ {
		golden, err := os.ReadFile(fmt.Sprintf("testdata/v%d.bin", v))
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(golden, v)
		if err != nil {
			t.Fatalf("version %d: %v", v, err)
		}
		want := examples()
		if v < 3 {
			want = want[:2]
		}
		if v < 2 {
			for i := range want {
				w := &want[i]
				w.Layer, w.FirstByte, w.Dialing, w.Tries, w.Failed, w.Label = Layer{}, 0, 0, 0, "", ""
				if w.Name != "" {
					w.Name = "abc-2" // what the backend was told
				}
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("version %d: %+v, want %+v", v, got, want)
		}
	}
	golden, _ := os.ReadFile(name)
	if !bytes.Equal(present, golden) {
		t.Errorf("the encoding has changed: count Version up, and keep %s", name)
	}
}

// randomTunnel has each field differ from its zero value, most of the time.
func randomTunnel(r *rand.Rand) Tunnel {
	var t Tunnel
	var fill func(v reflect.Value)
	fill = func(v reflect.Value) {
		switch x := v.Addr().Interface().(type) {
		case *netip.AddrPort:
			if r.IntN(4) > 0 {
				var ip [16]byte
				for i := range ip {
					ip[i] = byte(r.Uint32())
				}
				*x = netip.AddrPortFrom(netip.AddrFrom16(ip), uint16(r.Uint32()))
			}
			return
		case *Pipe: // are descriptors
			return
		case *[]byte:
			if n := r.IntN(200) - 50; n > 0 {
				*x = make([]byte, n)
				for i := range *x {
					(*x)[i] = byte(r.Uint32())
				}
			}
			return
		}
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				if v.Type().Field(i).Name != "FD" {
					fill(v.Field(i))
				}
			}
		case reflect.Bool:
			v.SetBool(r.IntN(2) == 0)
		case reflect.Uint8:
			v.SetUint(uint64(r.UintN(256)))
		case reflect.Int64:
			v.SetInt(r.Int64N(math.MaxInt64) >> r.IntN(64))
		case reflect.Int:
			v.SetInt(r.Int64N(math.MaxInt32) >> r.IntN(32))
		case reflect.String:
			b := make([]byte, r.IntN(40))
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			v.SetString(string(b))
		default:
			panic(v.Type())
		}
	}
	fill(reflect.ValueOf(&t).Elem())
	if t.Layer.Name == "" {
		t.Layer = Layer{}
	}
	return t
}

func TestWhatIsEncodedIsDecoded(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	for range 2000 {
		want := make([]Tunnel, r.IntN(5))
		for i := range want {
			want[i] = randomTunnel(r)
		}
		b := Append(nil, want)
		got, err := Decode(b, Version)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("seed %d: %v, %+v, want %+v", seed, err, got, want)
		}
		if _, err := Decode(b[:r.IntN(len(b))], Version); err == nil {
			t.Fatalf("seed %d: a part is taken for the whole", seed)
		}
		if _, err := Decode(append(b, 0), Version); err == nil {
			t.Fatalf("seed %d: a byte too many is overlooked", seed)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Append(nil, examples()))
	f.Add(Append(nil, nil))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x07})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := Decode(b, Version)
		if err != nil {
			return
		}
		again, err := Decode(Append(nil, got), Version)
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("%+v comes back as %+v, %v", got, again, err)
		}
	})
}
