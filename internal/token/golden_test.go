package token

import (
	"testing"
	"time"
)

// goldenClock is a time at which the tokens below are good. They expire in the
// year 2286.
var goldenClock = time.Unix(9_999_999_000, 0)

// goldenSet holds the keys of the tokens below. The private halves are gone.
const goldenSet = `{
  "keys": [
    {
      "kty": "oct",
      "kid": "enc",
      "use": "enc",
      "alg": "A256GCM",
      "k": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    },
    {
      "kty": "oct",
      "kid": "sig",
      "use": "sig",
      "alg": "HS256",
      "k": "ZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7fH1-f4CBgoM"
    },
    {
      "crv": "Ed25519",
      "x": "9qS96qLw49arOGj_l1rLdG-WkM-O4pZmkH5LV73ZKkw",
      "kty": "OKP",
      "kid": "ed"
    },
    {
      "kty": "EC",
      "x": "ZlZmIpEIPdrCa0UegzslxMQE36ET66XsInRriIBLqt0",
      "y": "9amHRMV3Mk0jbPBsDG8AyFz4haxrEWsLVCxZtNjJBzw",
      "crv": "P-256",
      "kid": "es"
    }
  ]
}`

// The tokens expire in the year 2286.
func TestTokensOfOtherLibrariesOpen(t *testing.T) {
	for _, tt := range []struct{ library, token string }{
		{"jose 6 (Node), enc", "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIiwia2lkIjoiZW5jIn0..Rj_qh59ks1vjqEiw.FHazeZHMTqhpylaL3cLzYP4hIcofxCbmxL_-H-Jkkrkwhlbuj16K_i9GB_fWbTE.UCWFX7E69h6xUq8jgR1jaQ"},
		{"jose 6 (Node), sig", "eyJhbGciOiJIUzI1NiIsImtpZCI6InNpZyJ9.eyJzdWIiOiJnYW1lLTcuaW50ZXJuYWw6NDAwMCIsImlhdCI6MTc5NTI1NzkyMCwiZXhwIjo5OTk5OTk5OTk5fQ.GQsSzVqh9Mu2zjyStdN-D5P56t-mDot52InfLAoehhU"},
		{"jose 6 (Node), ed", "eyJhbGciOiJFZERTQSIsImtpZCI6ImVkIn0.eyJzdWIiOiJnYW1lLTcuaW50ZXJuYWw6NDAwMCIsImlhdCI6MTc5NTI1NzkyMCwiZXhwIjo5OTk5OTk5OTk5fQ.UbE0Osyi0ABp9FmZRdk07Pj5b4P3u-WKV1C5SJFzx_gyMmV2SKLF4maydZB8szvrUdGHCTjjTgvgNesxW6PjDQ"},
		{"jose 6 (Node), es", "eyJhbGciOiJFUzI1NiIsImtpZCI6ImVzIn0.eyJzdWIiOiJnYW1lLTcuaW50ZXJuYWw6NDAwMCIsImlhdCI6MTc5NTI1NzkyMCwiZXhwIjo5OTk5OTk5OTk5fQ.p4IaAbopIaRkZqUg-_dbZKEZOuxnD9SyBlwyMQGtGTsiY4oZLdOqmoZ_cXFTSGurvAi-NeDZ9CAZAN_XgrlvKQ"},
		{"jwcrypto 1.1 (Python), enc", "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIiwia2lkIjoiZW5jIiwidHlwIjoiSldUIn0..b5RunT1qhNf2Uisy.sT6FZu2IUwrbpng2tapqn9HQeX6MlpfFWG3AhbkYFUEjCnPV1mX_Io_1SxfIFVo.rU7J6eX1kONfa_w5Z7Fo-A"},
		{"jwcrypto 1.1 (Python), sig", "eyJhbGciOiJIUzI1NiIsImtpZCI6InNpZyJ9.eyJleHAiOjk5OTk5OTk5OTksInN1YiI6ImdhbWUtNy5pbnRlcm5hbDo0MDAwIn0.4sTGUIJP0LC8ZbkAvHGafH8FlV4VXAQAWyKjWqOY67c"},
		{"jwcrypto 1.1 (Python), ed", "eyJhbGciOiJFZERTQSIsImtpZCI6ImVkIn0.eyJleHAiOjk5OTk5OTk5OTksInN1YiI6ImdhbWUtNy5pbnRlcm5hbDo0MDAwIn0.Ru7V3RYwq31qo_uLbtd8p5buybOM80gWpiFKgq6fg16ItQKdofAKfYKUQ6p1OvovtXNtHTa0f_Dcwo526WJLCw"},
		{"jwcrypto 1.1 (Python), es", "eyJhbGciOiJFUzI1NiIsImtpZCI6ImVzIn0.eyJleHAiOjk5OTk5OTk5OTksInN1YiI6ImdhbWUtNy5pbnRlcm5hbDo0MDAwIn0.kvl6PkGYOzbTwcc2Hc6qPu_T_tLHTx7kv61kBxIPKXjVBYg_gxWZnle81rnClF2iLiU2T8vd2ZGck54M4FoB0w"},
		{"jsonwebtoken 9 (Node), HS256", "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCIsImtpZCI6InNpZyJ9.eyJzdWIiOiJnYW1lLTcuaW50ZXJuYWw6NDAwMCIsImV4cCI6OTk5OTk5OTk5OSwiaWF0IjoxNzk1MjU3OTIwfQ.RtjLFPpL4zTYJTWCY2Y1LKU0T6pbOcoA9EoqjI64v3k"},
		{"jsonwebtoken 9 (Node), ES256", "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCIsImtpZCI6ImVzIn0.eyJzdWIiOiJnYW1lLTcuaW50ZXJuYWw6NDAwMCIsImV4cCI6OTk5OTk5OTk5OSwiaWF0IjoxNzk1MjU3OTIwfQ.EwtTJSXxUrGA1P4LJfRaqznQ4uPuSIeLH4Ttct6tf3wNp7_gNTOrkFeoWe_KNw-DHIBMpPabsqfuAUNvogG9hg"},
		{"PyJWT 2.6 (Python), HS256", "eyJhbGciOiJIUzI1NiIsImtpZCI6InNpZyIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJnYW1lLTcuaW50ZXJuYWw6NDAwMCIsImV4cCI6OTk5OTk5OTk5OSwiYXVkIjpbImd3IiwieCJdfQ.JTVCOxxoBQY4zkjaBGIedJ-N0-QhiqXI1lOlXRaez0M"},
		{"PyJWT 2.6 (Python), EdDSA", "eyJhbGciOiJFZERTQSIsImtpZCI6ImVkIiwidHlwIjoiSldUIn0.eyJzdWIiOiJnYW1lLTcuaW50ZXJuYWw6NDAwMCIsImV4cCI6OTk5OTk5OTk5OX0.wbuC1dlYoczfg5o0kiyf0HaCz2N7bUOfTqfT9g6XJ8sqP_EoY7cMxLN_pUbRPMFOT7ZxXSCCo6xJPBr3TCpSCw"},
	} {
		t.Run(tt.library, func(t *testing.T) {
			if got, err := load(t, goldenSet).Open([]byte(tt.token), goldenClock); err != nil || got != "game-7.internal:4000" {
				t.Errorf("Open = %q, %v", got, err)
			}
		})
	}
}

func TestTheAudienceOfAnotherLibraryIsRead(t *testing.T) {
	const token = "eyJhbGciOiJIUzI1NiIsImtpZCI6InNpZyIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJnYW1lLTcuaW50ZXJuYWw6NDAwMCIsImV4cCI6OTk5OTk5OTk5OSwiYXVkIjpbImd3IiwieCJdfQ.JTVCOxxoBQY4zkjaBGIedJ-N0-QhiqXI1lOlXRaez0M" // PyJWT; aud: gw, x
	for audience, want := range map[string]error{"gw": nil, "g": ErrAudience} {
		if _, err := loadFor(t, audience, goldenSet).Open([]byte(token), goldenClock); err != want {
			t.Errorf("for %q: %v, want %v", audience, err, want)
		}
	}
}
