package listen

import (
	"errors"
	"strings"
	"testing"
)

func parse(words ...string) ([]Address, error) {
	var list []Address
	v := Value{List: &list, Check: func(o Option) error {
		if o.Name != "most" || o.Value == "none" {
			return errors.New("want most=COUNT")
		}
		return nil
	}}
	for _, w := range words {
		if err := v.Set(w); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func TestWhatIsWrittenIsReadAgain(t *testing.T) {
	for _, text := range []string{
		"", "127.0.0.1:8000=sealed", ":8000=sealed;most=7", "[::1]:1=forward:10.0.0.7:80",
		"127.0.0.1:1=sealed 127.0.0.1:2=forward:10.0.0.7:80,10.0.0.8:80*3;most=1", ":0=sealed :0=sealed",
		":1=forward:srv:game.test",
	} {
		list, err := parse(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got := (Value{List: &list}).String(); got != text {
			t.Errorf("%q became %q", text, got)
		}
		for _, a := range list {
			if a.Setting != "listen" || a.Given != "" || a.KCP || a.Peer {
				t.Errorf("%q: %+v", text, a)
			}
		}
	}
	if (Value{}).String() != "" {
		t.Error("nothing is something")
	}
	// The same twice is the same.
	if list, err := parse(":1=sealed;most=1", ":1=sealed;most=1"); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
}

func TestWhatIsWrongIsNamed(t *testing.T) {
	for text, want := range map[string]string{
		"8000=sealed":                           "before =sealed",
		":8000":                                 "want ADDRESS=sealed",
		":8000=open":                            "want ADDRESS=sealed",
		":8000=forward:":                        "want host:port",
		":8000=sealed;":                         "want most=COUNT",
		":8000=sealed;most=none":                "most=none",
		":8000=sealed;most=1;most=2":            "most once",
		":8000=sealed :8000=forward:10.0.0.7:1": "one use of :8000",
		":8000=sealed :8000=sealed;most=1":      "one use of :8000",
	} {
		if _, err := parse(text); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want %q in it", text, err, want)
		}
	}
}

func TestSocketsThatAreGivenReplaceOthers(t *testing.T) {
	to, err := ParseTarget("10.0.0.7:1")
	if err != nil {
		t.Fatal(err)
	}
	addr := Address{Addr: ":8000", Setting: "addr", Forward: to}
	udp := Address{Addr: ":8000", Setting: "kcp", KCP: true}
	other := Address{Addr: "127.0.0.1:9000", Setting: "listen"}
	text := func(list []Address) string {
		var words []string
		for _, a := range list {
			words = append(words, strings.Trim(strings.Join([]string{a.Given, a.Setting, a.Addr, TargetText(a.Forward)}, " "), " "))
		}
		return strings.Join(words, ", ")
	}
	for _, tt := range []struct {
		given []Address
		want  string
	}{
		{nil, "addr :8000 10.0.0.7:1, kcp :8000, listen 127.0.0.1:9000"},
		{[]Address{{Given: "game", Setting: "addr", Addr: "0.0.0.0:7000"}}, "game addr 0.0.0.0:7000 10.0.0.7:1, kcp :8000, listen 127.0.0.1:9000"},
		{[]Address{{Given: "game", Setting: "addr", Addr: "127.0.0.1:9000"}}, "addr :8000 10.0.0.7:1, kcp :8000, game listen 127.0.0.1:9000"},
		{[]Address{{Given: "127.0.0.1:9000", Setting: "addr", Addr: "127.0.0.1:1"}}, "addr :8000 10.0.0.7:1, kcp :8000, 127.0.0.1:9000 listen 127.0.0.1:9000"},
		{[]Address{{Given: "u", Setting: "kcp", Addr: ":7000", KCP: true}}, "u kcp :7000, addr :8000 10.0.0.7:1, listen 127.0.0.1:9000"},
	} {
		if got := text(Activate([]Address{addr, udp, other}, tt.given, to)); got != tt.want {
			t.Errorf("%s\n%s, want\n%s", text(tt.given), got, tt.want)
		}
	}
}
