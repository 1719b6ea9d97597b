package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// parsed is parseLine with "more has to be read" told apart from failures.
func parsed(b []byte, limit int) (line, rest []byte, ok bool, err error) {
	line, rest, err = parseLine(b, limit)
	if err == errIncomplete {
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
		if line != nil || rest != nil || ok || !errors.Is(err, errTooLong) {
			t.Errorf("%.20q: line %q, rest %q, %v, %v; want %v", in, line, rest, ok, err, errTooLong)
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
			if _, _, ok, err := parsed(append(in, end...), limit); ok || err != errTooLong {
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
	case line != nil || rest != nil || err != nil && err != errTooLong:
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
