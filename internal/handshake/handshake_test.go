package handshake

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

const goldenLine = "U2FsdGVkX19KIJ9OQJKT/yHGMrS+5SsBAAjetomptQ0="

// parsed is parseLine with "more has to be read" told apart from failures.
func parsed(b []byte, limit int) (line, rest []byte, ok bool, err error) {
	line, rest, err = parseLine(b, limit)
	if err == ErrIncomplete {
		return line, rest, false, nil
	}
	return line, rest, err == nil, err
}

func TestALineEndsAtTheFirstNewline(t *testing.T) {
	const limit = 4
	for _, tt := range []struct {
		in         string
		line, rest string
	}{
		{"\n", "", ""},
		{"\r\n", "", ""},
		{"\n\n", "", "\n"},
		{"a\n", "a", ""},
		{"a\r\n", "a", ""},
		{"abcd\n", "abcd", ""},
		{"abcd\r\n", "abcd", ""},
		{"abc\r\n", "abc", ""},
		{"abc\r\r\n", "abc\r", ""}, // one is forgiven; what is left is not base64
		{"\r\r\n", "\r", ""},
		{"a\rb\n", "a\rb", ""},
		{"a\x00\xff\n", "a\x00\xff", ""},
		{"abcd\nrest", "abcd", "rest"},
		{"abcd\r\nrest", "abcd", "rest"},
		{"a\nb\nc\n", "a", "b\nc\n"},
		{"a\n\r\n", "a", "\r\n"},
		{"\n" + strings.Repeat("x", 1<<16), "", strings.Repeat("x", 1<<16)},
	} {
		line, rest, ok, err := parsed([]byte(tt.in), limit)
		if string(line) != tt.line || string(rest) != tt.rest || !ok || err != nil {
			t.Errorf("%.20q: line %q, rest %.20q, %v, %v; want %q, %.20q", tt.in, line, rest, ok, err, tt.line, tt.rest)
		}
	}
}

func TestALineMayNotBeTooLong(t *testing.T) {
	const limit = 4
	for _, in := range []string{
		"abcde", // known before the newline is there
		"abcde\n",
		"abcde\r\n",
		"abcd\rx", // the '\r' did not end the line
		"abcd\r\r",
		"abcd\r\r\n",
		"abc\r\r\r\n",
		"abcdefgh\n",
		"abcdx\n\n",
		strings.Repeat("x", 1<<16),
	} {
		line, rest, ok, err := parsed([]byte(in), limit)
		if line != nil || rest != nil || ok || !errors.Is(err, ErrTooLong) {
			t.Errorf("%.20q: line %q, rest %q, %v, %v; want %v", in, line, rest, ok, err, ErrTooLong)
		}
	}
}

func TestALineMayNeedMoreBytes(t *testing.T) {
	const limit = 4
	for _, in := range []string{"", "a", "abcd", "\r", "abc\r", "abcd\r", "\r\r\r\r\r"} {
		line, rest, ok, err := parsed([]byte(in), limit)
		if line != nil || rest != nil || ok || err != nil {
			t.Errorf("%q: line %q, rest %q, %v, %v; want nothing yet", in, line, rest, ok, err)
		}
	}
}

func TestTheLimitOfALineIsExact(t *testing.T) {
	for _, limit := range []int{1, 2, 44, 1024, 1 << 20} {
		for _, end := range []string{"\n", "\r\n"} {
			in := bytes.Repeat([]byte("x"), limit)
			if line, _, ok, err := parsed(append(in, end...), limit); len(line) != limit || !ok || err != nil {
				t.Errorf("%d of %d bytes and %q: %d bytes, %v, %v", limit, limit, end, len(line), ok, err)
			}
			in = append(in[:limit], 'x')
			if _, _, ok, err := parsed(append(in, end...), limit); ok || err != ErrTooLong {
				t.Errorf("%d of %d bytes and %q: %v, %v", limit+1, limit, end, ok, err)
			}
		}
	}
}

// checkParseLine checks what holds for every input.
func checkParseLine(t *testing.T, in []byte, limit int) {
	t.Helper()
	line, rest, ok, err := parsed(in, limit)
	switch {
	case ok:
		end := in[len(line) : len(in)-len(rest)]
		if err != nil || len(line) > limit || bytes.ContainsRune(line, '\n') ||
			string(end) != "\n" && string(end) != "\r\n" ||
			!bytes.HasPrefix(in, line) || !bytes.HasSuffix(in, rest) {
			t.Fatalf("limit %d, %q: line %q, end %q, rest %q, %v", limit, in, line, end, rest, err)
		}
		if string(end) == "\n" && bytes.HasSuffix(line, []byte("\r")) {
			t.Fatalf("limit %d, %q: '\\r' left in line %q", limit, in, line)
		}
	case line != nil || rest != nil || err != nil && err != ErrTooLong:
		t.Fatalf("limit %d, %q: line %q, rest %q, %v, %v", limit, in, line, rest, ok, err)
	}

	// Byte by byte it is the same: undecided, then this decision for good.
	for n := range in {
		l, r, o, e := parsed(in[:n], limit)
		undecided := !o && e == nil
		switch {
		case undecided:
			// An error comes as early as it can be known: a newline now would
			// still make a request.
			if _, _, o, e := parsed(append(bytes.Clone(in[:n]), '\n'), limit); !o || e != nil {
				t.Fatalf("limit %d: %q is undecided, but cannot become a line: %v", limit, in[:n], e)
			}
		case ok != o || err != e || !bytes.Equal(l, line) || o && len(r) != len(rest)-(len(in)-n):
			t.Fatalf("limit %d: %q is line %q, rest %q, %v, %v; but %q is line %q, rest %q, %v, %v",
				limit, in[:n], l, r, o, e, in, line, rest, ok, err)
		}
	}
}

func TestEveryShortRequestIsParsedAlikeByteByByte(t *testing.T) {
	for limit := 1; limit <= 4; limit++ {
		var grow func(in []byte)
		grow = func(in []byte) {
			checkParseLine(t, in, limit)
			if len(in) < limit+4 {
				for _, c := range []byte("x\r\n") {
					grow(append(in[:len(in):len(in)], c))
				}
			}
		}
		grow(nil)
	}
}

func FuzzParseLine(f *testing.F) {
	for _, in := range []string{
		"", "\n", "\r\n", "\r\r\n", "abcd\n", "abcd\r\n", "abcde\n", "abcd\rx\n", "abcd\r\nrest\n", "a\x00b\n",
		goldenLine + "\n", goldenLine + "\r\nhello",
	} {
		f.Add([]byte(in), uint16(4))
		f.Add([]byte(in), uint16(len(goldenLine)))
	}
	f.Fuzz(func(t *testing.T, in []byte, limit uint16) {
		if limit == 0 || len(in) > 1<<12 { // 0 is refused; the check is quadratic
			t.Skip()
		}
		checkParseLine(t, in, int(limit))
	})
}

func TestFormsAreToldApartByTheirFirstBytes(t *testing.T) {
	for _, tt := range []struct {
		name, bytes string
		form        Form
		decided     int // how many bytes it takes
	}{
		{"a line", "U2FsdGVkX19K", Line, 3},
		{"an empty line", "\n", Line, 1},
		{"a short line", "a\n", Line, 2},
		{"a newline before two zeros", "a\n\x00\x00", Line, 2},
		{"a newline first", "\n\x05\x00\x00", Line, 1},
		{"a newline in the third place", "ab\n\x00", Line, 3},
		{"a line that starts with a method", "GETmore\n", Line, 4},
		{"a method alone", "GET\n", Line, 4},
		{"an unknown method", "BREW / HTTP/1.1", Line, 3},
		{"a method in lower case", "get / HTTP/1.1", Line, 3},
		{"a line with HTTP inside", "U2FsHTTP/1.1", Line, 3},
		{"the methods of others", "PRI * HTTP/2.0", Line, 3},
		{"high bytes", "\xff\xff\xff\xff", Line, 3},

		{"GET", "GET / HTTP/1.1", HTTP, 4},
		{"HEAD", "HEAD / ", HTTP, 5},
		{"POST", "POST / ", HTTP, 5},
		{"PUT", "PUT / ", HTTP, 4},
		{"PATCH", "PATCH / ", HTTP, 6},
		{"DELETE", "DELETE / ", HTTP, 7},
		{"OPTIONS", "OPTIONS * ", HTTP, 8},
		{"TRACE", "TRACE / ", HTTP, 6},
		{"CONNECT", "CONNECT a:1 ", HTTP, 8},

		{"a length", "\x2c\x00\x00\x00U2Fs", Prefixed, 4},
		{"a length of two bytes", "\x00\x01\x00\x00", Prefixed, 4},
		{"the least length", "\x01\x00\x00\x00", Prefixed, 4},
		{"a length like a method", "GE\x00\x00", Prefixed, 4},
		{"a length like TLS", "\x16\x03\x00\x00", Prefixed, 4},
		{"a length of 24 bits is none", "\x01\x00\x01\x00", Line, 3},

		{"binary", "\x00\x20Salted__", Binary, 3},
		{"binary of length 10", "\x00\nSa", Binary, 2},
		{"binary without a length", "\x00\x00Sa", Binary, 2},
		{"no length of either kind", "\x00\x00\x00\x00", Binary, 2},

		{"TLS", "\x16\x03\x01\x02\x00\x01", TLS, 3},
		{"TLS of a newer record", "\x16\x03\x03\x00\x2f", TLS, 3},
		{"SSL 3.0's record", "\x16\x03\x00\x02", TLS, 4},
		{"another record type", "\x17\x03\x03\x00", Line, 3},
		{"another major version", "\x16\x02\x01\x00", Line, 3},
	} {
		for n := 1; n <= len(tt.bytes); n++ {
			want := Unknown
			if n >= tt.decided {
				want = tt.form
			}
			if got := Sniff([]byte(tt.bytes[:n]), true); got != want {
				t.Errorf("%s: %q is %v, want %v", tt.name, tt.bytes[:n], got, want)
			}
		}
		if got := Sniff([]byte(tt.bytes), false); tt.form == TLS && got != Line {
			t.Errorf("%s, where nobody speaks TLS, is %v", tt.name, got)
		}
	}
}

func TestPrefixedAndBinaryRequestsAreCutAtTheirLength(t *testing.T) {
	const limit = 60
	for _, tt := range []struct {
		name       string
		parse      func([]byte, int) ([]byte, []byte, error)
		bytes      string
		line, rest string
		err        error
	}{
		{"prefixed", parsePrefixed, "\x03\x00\x00\x00abc", "abc", "", nil},
		{"prefixed, with more", parsePrefixed, "\x03\x00\x00\x00abcdef", "abc", "def", nil},
		{"prefixed, with a newline", parsePrefixed, "\x04\x00\x00\x00abc\n", "abc\n", "", nil},
		{"prefixed, incomplete", parsePrefixed, "\x03\x00\x00\x00ab", "", "", ErrIncomplete},
		{"prefixed, half a length", parsePrefixed, "\x03\x00\x00", "", "", ErrIncomplete},
		{"prefixed, of the limit", parsePrefixed, "\x3c\x00\x00\x00" + strings.Repeat("x", limit), strings.Repeat("x", limit), "", nil},
		{"prefixed, beyond the limit", parsePrefixed, "\x3d\x00\x00\x00", "", "", ErrTooLong},
		{"prefixed, far beyond", parsePrefixed, "\xff\xff\x00\x00", "", "", ErrTooLong},
		{"prefixed, empty", parsePrefixed, "\x00\x00\x00\x00", "", "", ErrBadLength},
		{"binary", parseBinary, "\x00\x03abc", "abc", "", nil},
		{"binary, with more", parseBinary, "\x00\x03abcdef", "abc", "def", nil},
		{"binary, incomplete", parseBinary, "\x00\x03ab", "", "", ErrIncomplete},
		{"binary, without its length", parseBinary, "\x00", "", "", ErrIncomplete},
		{"binary, empty", parseBinary, "\x00\x00", "", "", ErrBadLength},
		{"binary, beyond the limit", parseBinary, "\x00\x3d", "", "", ErrTooLong},
	} {
		line, rest, err := tt.parse([]byte(tt.bytes), limit)
		if string(line) != tt.line || string(rest) != tt.rest || err != tt.err {
			t.Errorf("%s: %q, %q, %v", tt.name, line, rest, err)
		}
	}
}

func FuzzSniff(f *testing.F) {
	f.Add([]byte("U2FsdGVk"), false)
	f.Add([]byte("\x16\x03\x01\x02\x00"), true)
	f.Add([]byte("\x2c\x00\x00\x00U2Fs"), true)
	f.Add([]byte("CONNECT x"), true)
	f.Fuzz(func(t *testing.T, b []byte, tls bool) {
		decided := Unknown
		for n := 1; n <= len(b); n++ {
			form := Sniff(b[:n], tls)
			if decided != Unknown && form != decided {
				t.Fatalf("%q is %v, and with more %v", b[:n-1], decided, form)
			}
			if decided = form; n >= 8 && form == Unknown {
				t.Fatalf("%q is not told by 8 bytes", b[:n])
			}
		}
		for _, parse := range []func([]byte, int) ([]byte, []byte, error){parseLine, parsePrefixed, parseBinary} {
			line, rest, err := parse(b, 100)
			if err != nil && (line != nil || rest != nil) || err == nil && !bytes.HasSuffix(b, rest) {
				t.Fatalf("%q: %q, %q, %v", b, line, rest, err)
			}
		}
	})
}

func TestFormsAreReadByTheirNames(t *testing.T) {
	for f := Unknown; f <= Upgrade; f++ {
		if got := ParseForm(f.String()); got != f {
			t.Errorf("%v is read as %v", f, got)
		}
	}
	if got := ParseForm("smoke"); got != Unknown {
		t.Errorf("nonsense is read as %v", got)
	}
}
