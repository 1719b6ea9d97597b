package flagvalue

import (
	"errors"
	"flag"
	"fmt"
	"strconv"
	"testing"
	"time"
)

func TestDurationsAreSecondsOrGoDurations(t *testing.T) {
	const none = -1
	kinds := map[bool]func(*time.Duration) flag.Value{
		false: Duration,
		true:  func(p *time.Duration) flag.Value { return DurationOrZero(p, 0) },
	}
	for _, tt := range []struct {
		text string
		want time.Duration
	}{
		{"3", 3 * time.Second},
		{"1.5", 1500 * time.Millisecond},
		{".5", 500 * time.Millisecond},
		{"007", 7 * time.Second},
		{"1500ms", 1500 * time.Millisecond},
		{"1h", time.Hour},
		{"1m30s", 90 * time.Second},
		{"1ns", 1},
		{"876000h", 876000 * time.Hour},
		{"", none},
		{".", none},
		{"s", none},
		{"-1", none},
		{"-1s", none},
		{"-1ns", none},
		{"1.5.5", none},
		{"1,5", none},
		{"1e9", none},
		{"0x10", none},
		{"1_0", none},
		{"3 ", none},
		{" 3", none},
		{"3 s", none},
		{"3S", none},
		{"3d", none},
		{"٣", none},
		{"NaN", none},
		{"Inf", none},
		{"876000h1ns", none},
		{"9223372036", none},
		{"9223372036854775807ns", none},
		{"9223372037", none},
		{"9223372036854775808ns", none},
		{"99999999999999999999", none},
	} {
		for _, zeroOK := range []bool{false, true} {
			d := 42 * time.Second
			err := kinds[zeroOK](&d).Set(tt.text)
			switch {
			case tt.want == none && (err == nil || d != 42*time.Second):
				t.Errorf("%q was taken as %v", tt.text, d)
			case tt.want != none && (err != nil || d != tt.want):
				t.Errorf("%q: %v, %v; want %v", tt.text, d, err, tt.want)
			}
		}
	}
	for _, zero := range []string{"0", "0s", "0.0", "0h0m", "0.0000000001"} {
		d := 42 * time.Second
		if err := kinds[true](&d).Set(zero); err != nil || d != 0 {
			t.Errorf("%q: %v, %v; want 0", zero, d, err)
		}
		if err := kinds[false](&d).Set(zero); err == nil {
			t.Errorf("%q was taken where it may not be 0", zero)
		}
	}
}

func TestADurationMayBeBounded(t *testing.T) {
	d := time.Second
	v := DurationOrZero(&d, time.Minute)
	if err := v.Set("61"); err == nil || err.Error() != "want at most 1m0s" || d != time.Second {
		t.Errorf("%v, %v", d, err)
	}
	if err := v.Set("60"); err != nil || v.String() != "60s" {
		t.Errorf("%v, %v", v, err)
	}
}

// Package flag asks a value that it has made itself for the text of zero.
func TestTheZeroValueHasAText(t *testing.T) {
	if got := new(value).String(); got != "" {
		t.Errorf("%q", got)
	}
}

func number(word string) (int, error) {
	n, err := strconv.Atoi(word)
	if err != nil {
		return 0, errors.New("want numbers")
	}
	return n, nil
}

func TestAListIsReplacedAndASumGrows(t *testing.T) {
	var list, sum []int
	l, s := List(&list, number, "want one"), Sum(&sum, number, "want one or nothing")
	for _, tt := range []struct{ text, list, sum string }{
		{"1,2", "1,2", "1,2"},
		{"3 2, 3", "3,2", "1,2,3"},
		{"", "want one", "1,2,3"},
		{" ,", "want one", "want one or nothing"},
		{"4,x", "want numbers", "want numbers"},
		{"5", "5", "1,2,3,5"},
	} {
		for _, v := range []struct {
			flag.Value
			want string
		}{{l, tt.list}, {s, tt.sum}} {
			got := fmt.Sprint(v.Set(tt.text))
			if got == "<nil>" {
				got = v.String()
			}
			if got != v.want {
				t.Errorf("%q: %s, want %s", tt.text, got, v.want)
			}
		}
	}
	if l.String() != "5" || s.String() != "1,2,3,5" {
		t.Errorf("what was refused has changed the lists: %v, %v", l, s)
	}
}
