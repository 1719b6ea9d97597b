package web

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func TestASealedAddressIsFoundWhereverItMayStand(t *testing.T) {
	long := strings.Repeat("A", 32)
	for name, tt := range map[string]struct {
		header http.Header
		query  string
		want   string
		from   place
		err    error
	}{
		"nowhere":              {nil, "a=1", "", nowhere, nil},
		"header":               {http.Header{"X-Cipher-Origin": {"a+/="}}, "", "a+/=", inOriginHeader, nil},
		"ident":                {http.Header{"Server-Identify": {"a+/="}}, "", "a+/=", inIdentHeader, nil},
		"query":                {nil, "x-cipher-origin=abc=", "abc=", inQuery, nil},
		"bare plus":            {nil, "x-cipher-origin=a+b+", "a+b+", inQuery, nil},
		"escaped":              {nil, "x-cipher-origin=a%2Bb%2f%3D", "a+b/=", inQuery, nil},
		"escaped space":        {nil, "x-cipher-origin=a%20b", "a+b", inQuery, nil},
		"escaped name":         {nil, "x%2Dcipher-origin=a", "a", inQuery, nil},
		"other case":           {nil, "X-Cipher-Origin=a", "", nowhere, nil},
		"header before query":  {http.Header{"X-Cipher-Origin": {"h"}}, "x-cipher-origin=q", "h", inOriginHeader, nil},
		"query before ident":   {http.Header{"Server-Identify": {"h"}}, "x-cipher-origin=q", "q", inQuery, nil},
		"two headers":          {http.Header{"X-Cipher-Origin": {"h", "h"}}, "", "", inOriginHeader, errAmbiguous},
		"two parameters":       {nil, "x-cipher-origin=a&x-cipher-origin=a", "", inQuery, errAmbiguous},
		"empty header":         {http.Header{"X-Cipher-Origin": {""}}, "x-cipher-origin=q", "", inOriginHeader, errMalformed},
		"empty parameter":      {nil, "x-cipher-origin=", "", inQuery, errMalformed},
		"bare parameter":       {nil, "x-cipher-origin", "", inQuery, errMalformed},
		"bad escape":           {nil, "x-cipher-origin=a%zz", "", inQuery, errMalformed},
		"as long as may be":    {http.Header{"X-Cipher-Origin": {long}}, "", long, inOriginHeader, nil},
		"too long":             {http.Header{"X-Cipher-Origin": {long + "A"}}, "", "", inOriginHeader, errTooLong},
		"too long in query":    {nil, "x-cipher-origin=" + long + "A", "", inQuery, errTooLong},
		"escapes do not count": {nil, "x-cipher-origin=" + strings.Repeat("%41", 32), long, inQuery, nil},
	} {
		got, from, err := findSealed(tt.header, tt.query, 32)
		if got != tt.want || from != tt.from || !errors.Is(err, tt.err) {
			t.Errorf("%s: %q, %v, %v; want %q, %v, %v", name, got, from, err, tt.want, tt.from, tt.err)
		}
	}
}

func TestTheRestOfAQueryStaysAsItIs(t *testing.T) {
	for query, want := range map[string]string{
		"":                                 "",
		"x-cipher-origin=s":                "",
		"a=1&x-cipher-origin=s&b=2":        "a=1&b=2",
		"x-cipher-origin=s&a=%zz&b;c&&=&%": "a=%zz&b;c&&=&%",
		"b=2&a=1&x%2dcipher-origin=s":      "b=2&a=1",
		"a=+%20%2B&x-cipher-origin=s&x-cipher-ori": "a=+%20%2B&x-cipher-ori",
		"x-cipher-origin=s&x-cipher-origin=s":      "",
		"&x-cipher-origin=s&":                      "&",
	} {
		if got, _ := cutParam(query, originParam); got != want {
			t.Errorf("%q became %q, want %q", query, got, want)
		}
	}
}

func TestARefererKeepsAllButTheSealedAddress(t *testing.T) {
	for in, want := range map[string]string{
		"http://h/p":                   "http://h/p",
		"http://h/p?":                  "http://h/p?",
		"http://h/p?a=b#f":             "http://h/p?a=b#f",
		"http://h/p?x-cipher-origin=s": "http://h/p",
		"http://h/p?a=%zz&x-cipher-origin=s&c=+#x?y":  "http://h/p?a=%zz&c=+#x?y",
		"http://h/p?x-cipher-origin=s#x-cipher-ori=s": "http://h/p#x-cipher-ori=s",
	} {
		h := http.Header{"Referer": {in}, "X-Cipher-Origin": {"s"}, "Server-Identify": {"s"}, "Other": {"o"}}
		stripSealed(h)
		if h.Get("Referer") != want || len(h) != 2 {
			t.Errorf("%q became %q in %v, want %q", in, h.Get("Referer"), h, want)
		}
	}
}

func FuzzAQueryLosesTheSealedAddressAndNothingElse(f *testing.F) {
	for _, q := range []string{
		"", "a=1&x-cipher-origin=U2Fs+/=&b=%zz", "x-cipher-origin", "&&=&x%2dcipher-origin=%", "a;x-cipher-origin=1",
		"x-cipher-origin=a&x-cipher-origin=b", "x%2Dcipher%2dorigin=+%20%2B",
	} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, query string) {
		rest, values := cutParam(query, originParam)
		if again, more := cutParam(rest, originParam); again != rest || more != nil {
			t.Fatalf("%q still has the parameter in %q", query, rest)
		}
		if parsed, _ := url.ParseQuery(rest); parsed.Has(originParam) {
			t.Fatalf("%q still has the parameter for others in %q", query, rest)
		}
		pairs := strings.Split(query, "&")
		for _, kept := range strings.Split(rest, "&") {
			for len(pairs) > 0 && pairs[0] != kept {
				pairs = pairs[1:]
			}
			if len(pairs) == 0 && rest != "" {
				t.Fatalf("%q became %q: %q is new or elsewhere", query, rest, kept)
			}
			pairs = pairs[min(1, len(pairs)):]
		}
		if values == nil && rest != query {
			t.Fatalf("%q became %q for nothing", query, rest)
		}
		sealed, from, err := findSealed(nil, query, 64)
		switch {
		case (from == nowhere) != (len(values) == 0):
			t.Fatalf("%q: found %v among %q", query, from, values)
		case err == nil && from == inQuery && (sealed == "" || len(sealed) > 64 || strings.Contains(sealed, " ")):
			t.Fatalf("%q: sealed %q", query, sealed)
		case err != nil && sealed != "":
			t.Fatalf("%q: %q, %v", query, sealed, err)
		}
	})
}
