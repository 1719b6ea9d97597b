package token

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

func TestClaimsThatAreGoodNow(t *testing.T) {
	k := load(t, allKeys)
	for name, claims := range map[string]string{
		"good":               good,
		"a fraction":         `{"sub":"127.0.0.1:4000","exp":1700000000.5}`,
		"an exponent":        `{"sub":"127.0.0.1:4000","exp":1.7000006e9}`,
		"expired in leeway":  `{"sub":"127.0.0.1:4000","exp":1699999941}`,
		"just in leeway":     `{"sub":"127.0.0.1:4000","exp":1699999940.001}`,
		"ten years ahead":    `{"sub":"127.0.0.1:4000","exp":2015619200}`,
		"in leeway of that":  `{"sub":"127.0.0.1:4000","exp":2015619260}`,
		"nbf is past":        `{"sub":"127.0.0.1:4000","exp":1700000600,"nbf":1699999999}`,
		"nbf in leeway":      `{"sub":"127.0.0.1:4000","exp":1700000600,"nbf":1700000060}`,
		"nbf long ago":       `{"sub":"127.0.0.1:4000","exp":1700000600,"nbf":-1e300}`,
		"iat to come":        `{"sub":"127.0.0.1:4000","exp":1700000600,"iat":1800000000}`,
		"iat of any type":    `{"sub":"127.0.0.1:4000","exp":1700000600,"iat":"now"}`,
		"aud unasked":        `{"sub":"127.0.0.1:4000","exp":1700000600,"aud":"whoever"}`,
		"aud of any type":    `{"sub":"127.0.0.1:4000","exp":1700000600,"aud":7}`,
		"others":             `{"sub":"127.0.0.1:4000","exp":1700000600,"iss":1,"jti":null,"x":{"sub":"b","sub":"c"}}`,
		"other case besides": `{"SUB":"10.0.0.1:1","Exp":1,"exp":1700000600,"sub":"127.0.0.1:4000","NBF":1e20,"Sub":2}`,
		"white space":        " {\n\"sub\" : \"127.0.0.1:4000\",\t\"exp\":1700000600 }\r\n",
		"escapes":            `{"s\u0075b":"127.0.0.1\u003a4000","exp":1700000600}`,
	} {
		t.Run(name, func(t *testing.T) {
			for _, mint := range kinds {
				opens(t, k, mint(claims), "127.0.0.1:4000")
			}
		})
	}
}

func TestClaimsThatAreNotGoodNow(t *testing.T) {
	k := load(t, allKeys)
	for _, tt := range []struct {
		name, claims string
		reason       Error
	}{
		{"no exp", `{"sub":"127.0.0.1:4000"}`, ErrNoExpiry},
		{"no exp but EXP", `{"sub":"127.0.0.1:4000","EXP":1700000600}`, ErrNoExpiry},
		{"no exp but nbf", `{"sub":"127.0.0.1:4000","nbf":1}`, ErrNoExpiry},
		{"null", `null`, ErrNoExpiry},
		{"empty", `{}`, ErrNoExpiry},
		{"exp is null", `{"sub":"127.0.0.1:4000","exp":null}`, ErrClaims},
		{"exp is a string", `{"sub":"127.0.0.1:4000","exp":"1700000600"}`, ErrClaims},
		{"exp is true", `{"sub":"127.0.0.1:4000","exp":true}`, ErrClaims},
		{"exp is an array", `{"sub":"127.0.0.1:4000","exp":[1700000600]}`, ErrClaims},
		{"exp is an object", `{"sub":"127.0.0.1:4000","exp":{}}`, ErrClaims},
		{"exp is too large", `{"sub":"127.0.0.1:4000","exp":1e400}`, ErrClaims},
		{"exp is no JSON number", `{"sub":"127.0.0.1:4000","exp":NaN}`, ErrClaims},
		{"exp is infinite", `{"sub":"127.0.0.1:4000","exp":Infinity}`, ErrClaims},
		{"exp is hexadecimal", `{"sub":"127.0.0.1:4000","exp":0x7FFFFFFF}`, ErrClaims},
		{"exp has underscores", `{"sub":"127.0.0.1:4000","exp":1_700_000_600}`, ErrClaims},
		{"two exps", `{"sub":"127.0.0.1:4000","exp":1,"exp":1700000600}`, ErrClaims},
		{"two exps, one in disguise", `{"sub":"127.0.0.1:4000","exp":1,"e\u0078p":1700000600}`, ErrClaims},
		{"expired", `{"sub":"127.0.0.1:4000","exp":1699999939}`, ErrExpired},
		{"expired with the leeway", `{"sub":"127.0.0.1:4000","exp":1699999940}`, ErrExpired},
		{"exp is 0", `{"sub":"127.0.0.1:4000","exp":0}`, ErrExpired},
		{"exp is negative", `{"sub":"127.0.0.1:4000","exp":-1700000600}`, ErrExpired},
		{"exp is very negative", `{"sub":"127.0.0.1:4000","exp":-1e300}`, ErrExpired},
		{"exp in milliseconds", `{"sub":"127.0.0.1:4000","exp":1700000600000}`, ErrExpiryFar},
		{"exp in microseconds", `{"sub":"127.0.0.1:4000","exp":1700000600000000}`, ErrExpiryFar},
		{"exp in milliseconds, nbf too", `{"sub":"127.0.0.1:4000","exp":1700000600000,"nbf":1700000000000}`, ErrExpiryFar},
		{"ten years and a bit ahead", `{"sub":"127.0.0.1:4000","exp":2015619260.001}`, ErrExpiryFar},
		{"far future", `{"sub":"127.0.0.1:4000","exp":1e300}`, ErrExpiryFar},
		{"beyond an int64", `{"sub":"127.0.0.1:4000","exp":9223372036854775808}`, ErrExpiryFar},
		{"nbf in milliseconds", `{"sub":"127.0.0.1:4000","exp":1700000600,"nbf":1699999999000}`, ErrNotYet},
		{"nbf is to come", `{"sub":"127.0.0.1:4000","exp":1700000600,"nbf":1700000060.5}`, ErrNotYet},
		{"nbf is far away", `{"sub":"127.0.0.1:4000","exp":1700000600,"nbf":9223372036854775808}`, ErrNotYet},
		{"nbf is null", `{"sub":"127.0.0.1:4000","exp":1700000600,"nbf":null}`, ErrClaims},
		{"nbf is a string", `{"sub":"127.0.0.1:4000","exp":1700000600,"nbf":"1"}`, ErrClaims},
		{"two nbfs", `{"sub":"127.0.0.1:4000","exp":1700000600,"nbf":1,"nbf":1}`, ErrClaims},
		{"no sub", `{"exp":1700000600}`, ErrNoSubject},
		{"no sub but SUB", `{"SUB":"127.0.0.1:4000","exp":1700000600}`, ErrNoSubject},
		{"sub is empty", `{"sub":"","exp":1700000600}`, ErrNoSubject},
		{"sub is null", `{"sub":null,"exp":1700000600}`, ErrClaims},
		{"sub is a number", `{"sub":1,"exp":1700000600}`, ErrClaims},
		{"sub is an array", `{"sub":["127.0.0.1:4000"],"exp":1700000600}`, ErrClaims},
		{"two subs", `{"sub":"127.0.0.1:4000","sub":"127.0.0.1:4000","exp":1700000600}`, ErrClaims},
		{"an array", `[` + good + `]`, ErrClaims},
		{"a string", `"127.0.0.1:4000"`, ErrClaims},
		{"text", `127.0.0.1:4000`, ErrClaims},
		{"cut short", good[:len(good)-1], ErrClaims},
		{"two objects", good + good, ErrClaims},
		{"a token inside", `eyJhbGciOiJub25lIn0.e30.`, ErrClaims},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, mint := range kinds {
				refuses(t, k, mint(tt.claims), tt.reason)
			}
		})
	}
}

func TestTheAudienceIsCheckedWhereOneIsSet(t *testing.T) {
	k := loadFor(t, "game", allKeys)
	for aud, reason := range map[string]error{
		`"game"`:               nil,
		`["game"]`:             nil,
		`["a","game","b"]`:     nil,
		`"g\u0061me"`:          nil,
		`"Game"`:               ErrAudience,
		`"games"`:              ErrAudience,
		`"game "`:              ErrAudience,
		`""`:                   ErrAudience,
		`[]`:                   ErrAudience,
		`["a"]`:                ErrAudience,
		`["ga","me"]`:          ErrAudience,
		`null`:                 ErrClaims,
		`7`:                    ErrClaims,
		`{"game":1}`:           ErrClaims,
		`["game",7]`:           ErrClaims,
		`[["game"]]`:           ErrClaims,
		`"a","aud":"game"`:     ErrClaims, // twice
		`"a","AUD":"game"`:     ErrAudience,
		`"game","AUD":"other"`: nil,
	} {
		t.Run(aud, func(t *testing.T) {
			token := sig(strings.Replace(good, "{", `{"aud":`+aud+`,`, 1))
			if _, err := k.Open([]byte(token), clock); err != reason {
				t.Errorf("Open: %v, want %v", err, reason)
			}
		})
	}
	refuses(t, k, sig(good), ErrAudience)
}

func TestTheLeewayIsAMinuteEitherWay(t *testing.T) {
	k := load(t, allKeys)
	token := []byte(enc(`{"sub":"a:1","exp":1700000600,"nbf":1700000300}`))
	for at, want := range map[float64]error{
		239: ErrNotYet, 239.999: ErrNotYet, 240: nil, 240.001: nil, 400: nil,
		659: nil, 659.999: nil, 660: ErrExpired, 660.001: ErrExpired, 1e6: ErrExpired,
	} {
		now := clock.Add(time.Duration(math.Round(at*1000)) * time.Millisecond)
		if _, err := k.Open(token, now); err != want {
			t.Errorf("at %v: %v, want %v", at, err, want)
		}
	}
}

func TestFractionsOfASecondCount(t *testing.T) {
	k := load(t, allKeys)
	token := []byte(enc(`{"sub":"a:1","exp":1700000600.5,"nbf":1700000300.5}`))
	for at, want := range map[time.Duration]error{
		240_400: ErrNotYet, 240_600: nil, 660_400: nil, 660_600: ErrExpired,
	} {
		if _, err := k.Open(token, clock.Add(at*time.Millisecond)); err != want {
			t.Errorf("at %v: %v, want %v", at*time.Millisecond, err, want)
		}
	}
}

func TestWithoutNbfATokenIsGoodFromTheBeginningOfTime(t *testing.T) {
	if _, err := load(t, allKeys).Open([]byte(enc(good)), clock.AddDate(-9, 0, 0)); err != nil {
		t.Error(err)
	}
}

// Another reader of JSON agrees with what was accepted.
func FuzzAcceptedClaimsAreValid(f *testing.F) {
	for _, s := range []string{
		good, `{"sub":"a:1","exp":1e300,"nbf":-0.5,"aud":["x","game"]}`, `{"sub":"a:1","exp":1700000000,"aud":"game"}`,
		`{"sub":"a","sub":"b","exp":1700000600}`, `{"exp":1700000600}`, `[]`, `null`, `{"sub":"\ud800","exp":2e9,"aud":"game"}`,
	} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, payload []byte, asked bool) {
		audience := ""
		if asked {
			audience = "game"
		}
		subject, err := validate(payload, audience, clock)
		if err != nil {
			if _, ok := err.(Error); !ok || subject != "" {
				t.Fatalf("validate = %q, %v", subject, err)
			}
			return
		}
		var members map[string]any // unlike a struct, it minds the case
		if err := json.Unmarshal(payload, &members); err != nil {
			t.Fatalf("%q is accepted, but: %v", payload, err)
		}
		exp, _ := members["exp"].(float64)
		nbf, _ := members["nbf"].(float64)
		if members["sub"] != subject || subject == "" || exp <= 1_699_999_940 || nbf > 1_700_000_060 ||
			exp > 2_015_619_260 ||
			asked && !strings.Contains(fmt.Sprint(members["aud"]), "game") {
			t.Fatalf("%q is accepted as %q", payload, subject)
		}
	})
}
