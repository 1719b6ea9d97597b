package address

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestAnAddressIsARouteOfOneTarget(t *testing.T) {
	for _, in := range []string{"127.0.0.1:62863", "[::1]:80", "game-7.internal:4000", "tcp://h:1", "kcp://h:1", "http://[::1]:80", "srv:80", "tcp://srv:80"} {
		want, err := Parse(in)
		if err != nil {
			t.Fatalf("Parse(%q): %v", in, err)
		}
		r, err := ParseRoute(in)
		if err != nil {
			t.Errorf("ParseRoute(%q): %v", in, err)
			continue
		}
		addr, single := r.Single()
		if !single || addr != want || r.Len() != 1 || r.Target(0) != (Target{want, 1}) || r.Service() != "" || r.String() != in {
			t.Errorf("ParseRoute(%q) = %+v", in, r)
		}
		if want.Scheme != "" && !r.Has(want.Scheme) || r.Has("") != (want.Scheme == "") {
			t.Errorf("ParseRoute(%q) hides the scheme", in)
		}
	}
}

func TestANameToAskForStandsAlone(t *testing.T) {
	for _, word := range []string{"room-42", "a", "eu/room:7@shard+1~x_y.z", "123456", "0", "80x", "1:2", strings.Repeat("w", 253)} {
		r, err := ParseRoute("ask:" + word)
		_, single := r.Single()
		if err != nil || r.Asked() != word || r.String() != "ask:"+word || r.Len() != 0 || single || r.Service() != "" || r.Ticket() != "" || r.Has("") {
			t.Errorf("ask:%s is %+v, %v", word, r, err)
		}
	}
	for in, want := range map[string]error{
		"ask:":                            ErrAsk,
		"ask:a b":                         ErrAsk,
		"ask:a,b":                         ErrAsk,
		"ask:a*2":                         ErrAsk,
		"ask:ä":                           ErrAsk,
		"ask:a\n":                         ErrAsk,
		"ask:a\x00":                       ErrAsk,
		"ask:?x":                          ErrAsk,
		"a:1,ask:room":                    ErrAsk,
		"ask:" + strings.Repeat("w", 254): ErrAsk,
		"tcp://ask:room":                  ErrPort,
		"ASK:room":                        ErrPort,
		"srv:ask:room":                    ErrService,
	} {
		if r, err := ParseRoute(in); err != want || r.Asked() != "" {
			t.Errorf("ParseRoute(%q) = %+v, %v; want %v", in, r, err, want)
		}
	}
	for _, host := range []string{"ask:80", "ask:80,ask:81", "ask:80*2"} { // the host ask
		if r, err := ParseRoute(host); err != nil || r.Asked() != "" || r.Len() == 0 {
			t.Errorf("ParseRoute(%q) = %+v, %v", host, r, err)
		}
	}
}

func TestATicketIsNotInTheTextOfItsRoute(t *testing.T) {
	r := ByTicket("s3cret")
	if r.Ticket() != "s3cret" || r.Asked() != "" || r.Service() != "" || r.Len() != 0 || strings.Contains(r.String(), "s3cret") {
		t.Errorf("%+v", r)
	}
}

func TestARouteHasTargetsWithWeights(t *testing.T) {
	sixteen := strings.Repeat("a:1,", 15) + "b:2*256"
	for in, want := range map[string][]string{ // address, weight
		"a:1,b:2":                            {"a:1 1", "b:2 1"},
		"a:1*5,127.0.0.1:2*1,[::1]:3*256":    {"a:1 5", "127.0.0.1:2 1", "[::1]:3 256"},
		"tcp://a:1,kcp://b:2*3,c:3":          {"tcp://a:1 1", "kcp://b:2 3", "c:3 1"},
		"http://a:1,http://b:2*10":           {"http://a:1 1", "http://b:2 10"},
		"a:1*7":                              {"a:1 7"},
		"a:1,a:1":                            {"a:1 1", "a:1 1"},
		"srv:80*2,srv:81":                    {"srv:80 2", "srv:81 1"},
		"_a._tcp:1,b:1":                      {"_a._tcp:1 1", "b:1 1"},
		sixteen:                              append(slices.Repeat([]string{"a:1 1"}, 15), "b:2 256"),
		"1.2.3.4:65535*99,1.2.3.5:65535*100": {"1.2.3.4:65535 99", "1.2.3.5:65535 100"},
	} {
		r, err := ParseRoute(in)
		if err != nil {
			t.Errorf("ParseRoute(%q): %v", in, err)
			continue
		}
		var got []string
		for i := range r.Len() {
			got = append(got, r.Target(i).Addr.String()+" "+strconv.Itoa(int(r.Target(i).Weight)))
		}
		if !slices.Equal(got, want) || r.String() != in || r.Service() != "" {
			t.Errorf("ParseRoute(%q) has %v and gives back %q", in, got, r)
		}
		addr, single := r.Single()
		if single != (len(want) == 1) || single && addr != r.Target(0).Addr || !single && addr != (Address{}) {
			t.Errorf("ParseRoute(%q): the only target is %v, %t", in, addr, single)
		}
		for _, scheme := range append(schemes[:], "") {
			has := slices.ContainsFunc(want, func(s string) bool {
				before, _, found := strings.Cut(s, "://")
				return found && before == scheme || !found && scheme == ""
			})
			if r.Has(scheme) != has {
				t.Errorf("ParseRoute(%q) has the scheme %q: %t", in, scheme, !has)
			}
		}
	}
}

func TestAServiceIsANameForDNS(t *testing.T) {
	name253 := strings.Repeat(strings.Repeat("a", 62)+".", 4) + "a"
	for _, name := range []string{"_game._tcp.example.com", "game.service.consul", "a", "_a", "80a", name253} {
		r, err := ParseRoute("srv:" + name)
		if err != nil {
			t.Errorf("srv:%s: %v", name, err)
			continue
		}
		if _, single := r.Single(); r.Service() != name || single || r.Len() != 0 || r.String() != "srv:"+name {
			t.Errorf("srv:%s = %+v", name, r)
		}
		for _, scheme := range append(schemes[:], "") {
			if r.Has(scheme) {
				t.Errorf("srv:%s has the scheme %q", name, scheme)
			}
		}
	}
}

func TestWhatIsNoRouteIsRefused(t *testing.T) {
	for in, want := range map[string]error{
		"":                                 ErrPort,
		"host":                             ErrPort,
		"127.1:80":                         ErrIPv4,
		",":                                ErrPort,
		"a:1,":                             ErrPort,
		",a:1":                             ErrPort,
		"a:1,,b:1":                         ErrPort,
		"a:1, b:1":                         ErrName,
		"a:1 ,b:1":                         ErrPort,
		"a:1;b:1":                          ErrName,
		"a,b:1":                            ErrPort,
		"a:1,127.1:1":                      ErrIPv4,
		"a:1,udp://b:1":                    ErrScheme,
		"tcp://a:1,b:1/":                   ErrPort,
		"a:1\n,b:1":                        ErrPort,
		"a:1*":                             ErrWeight,
		"a:1*0":                            ErrWeight,
		"a:1*01":                           ErrWeight,
		"a:1*+1":                           ErrWeight,
		"a:1*-1":                           ErrWeight,
		"a:1*1.5":                          ErrWeight,
		"a:1* 1":                           ErrWeight,
		"a:1*1 ":                           ErrWeight,
		"a:1*257":                          ErrWeight,
		"a:1*99999":                        ErrWeight,
		"a:1*18446744073709551617":         ErrWeight,
		"a:1*1*1":                          ErrWeight,
		"a:1*x":                            ErrWeight,
		"a:1*2,b:1*":                       ErrWeight,
		"a*2:1":                            ErrPort,
		"*2":                               ErrPort,
		"http://a:1,b:1":                   ErrMixed,
		"a:1,http://b:1":                   ErrMixed,
		"http://a:1,tcp://b:1":             ErrMixed,
		"kcp://a:1,http://b:1,http://c:1":  ErrMixed,
		strings.Repeat("a:1,", 16) + "a:1": ErrTargets,
		strings.Repeat(",", 1000):          ErrTargets,
		"srv:":                             ErrName,
		"srv:.":                            ErrName,
		"srv:a.":                           ErrName,
		"srv:.a":                           ErrName,
		"srv:a..b":                         ErrName,
		"srv:a b":                          ErrName,
		"srv:ä":                            ErrName,
		"srv:a/b":                          ErrName,
		"srv://a":                          ErrName,
		"srv:0":                            ErrIPv4,
		"srv:0x":                           ErrIPv4,
		"srv:65536":                        ErrIPv4,
		"srv:game.7":                       ErrIPv4,
		"srv:127.0.0.1":                    ErrName,
		"srv:[::1]":                        ErrService,
		"srv:a:80":                         ErrService,
		"srv:a*2":                          ErrService,
		"srv:a,b:1":                        ErrService,
		"srv:a,srv:b":                      ErrService,
		"srv:srv:a":                        ErrService,
		"b:1,srv:a":                        ErrService,
		"srv:80,srv:a":                     ErrService,
		"tcp://srv:a":                      ErrPort,
		"srv:tcp://a":                      ErrService,
		"SRV:a":                            ErrPort,
		"srv:" + strings.Repeat("a", 64):   ErrName,
		"srv:" + strings.Repeat("a.", 126) + "aa": ErrName,
	} {
		if r, err := ParseRoute(in); !errors.Is(err, want) {
			t.Errorf("ParseRoute(%q) = %+v, %v; want %v", in, r, err, want)
		}
	}
}

func TestARouteOfOneAddressAllocatesNothing(t *testing.T) {
	for _, in := range []string{"127.0.0.1:62863", "game.example.com:4000", "srv:game.example.com"} {
		if n := testing.AllocsPerRun(100, func() {
			r, err := ParseRoute(in)
			if _, ok := r.Single(); err != nil || !ok && r.Service() == "" {
				t.Fatal(r, err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", in, n)
		}
	}
}

func FuzzWhatIsARouteIsItsTargets(f *testing.F) {
	for _, s := range []string{
		"127.0.0.1:62863", "a:1,b:2", "a:1*5,b:1*256", "http://a:1,http://[::1]:2*3", "tcp://a:1,kcp://b:2",
		"srv:_game._tcp.example.com", "srv:80", "srv:80,srv:81*2", "srv:a,b:1", "a:1*0", "a:1*01", ",", "*",
		"a:1,http://b:1", strings.Repeat("a:1,", 15) + "a:1", strings.Repeat("a:1,", 16) + "a:1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRoute(s)
		addr, notAddress := Parse(s)
		if err != nil {
			if notAddress == nil {
				t.Fatalf("%q is an address but no route: %v", s, err)
			}
			if r.String() != "" || r.Len() != 0 || r.Service() != "" || r.targets != nil {
				t.Fatalf("ParseRoute(%q) failed but returned %+v", s, r)
			}
			return
		}
		if r.String() != s {
			t.Fatalf("ParseRoute(%q).String() = %q", s, r.String())
		}
		if name := r.Service(); name != "" {
			if "srv:"+name != s || r.Len() != 0 || notAddress == nil {
				t.Fatalf("ParseRoute(%q) is the service %q", s, name)
			}
			if _, err := Parse(name + ":1"); err != nil {
				t.Fatalf("the service %q is no host name: %v", name, err)
			}
			return
		}
		only, single := r.Single()
		if single != (r.Len() == 1) || notAddress == nil && (!single || only != addr) {
			t.Fatalf("ParseRoute(%q): the only target is %v, %t", s, only, single)
		}
		words := strings.Split(s, ",")
		if r.Len() != len(words) || r.Len() > MaxTargets {
			t.Fatalf("ParseRoute(%q) has %d targets", s, r.Len())
		}
		for i, word := range words {
			target := r.Target(i)
			text := target.Addr.String()
			weighted := text + "*" + strconv.Itoa(int(target.Weight))
			if word != weighted && (word != text || target.Weight != 1) {
				t.Fatalf("ParseRoute(%q) has %q for %q", s, weighted, word)
			}
			if target.Weight < 1 || target.Weight > 256 {
				t.Fatalf("ParseRoute(%q) has a weight of %d", s, target.Weight)
			}
			if (target.Addr.Scheme == "http") != r.Has("http") {
				t.Fatalf("ParseRoute(%q) mixes HTTP with others", s)
			}
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for b.Loop() {
		if _, err := Parse("127.0.0.1:62863"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseRoute(b *testing.B) {
	for name, s := range map[string]string{"one": "127.0.0.1:62863", "three": "127.0.0.1:62863,127.0.0.1:62864*2,127.0.0.1:62865"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ParseRoute(s); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
