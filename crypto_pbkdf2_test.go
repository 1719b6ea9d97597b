package main

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gateway/internal/address"
)

// PBKDF2 is slow on purpose. Lines that need it take turns, and its keys are kept.

// takeTurns makes PBKDF2 busy: no derivation gets a turn until the returned
// function has been called.
func takeTurns(k *keyring) (giveBack func()) {
	for range cap(k.slow.sem) {
		k.slow.sem <- struct{}{}
	}
	return func() { <-k.slow.sem }
}

func TestPBKDF2IsTriedOnlyWhereListed(t *testing.T) {
	line := referenceEncrypt(kdfPBKDF2, testSecret, []byte("12345678"), pad(goldenAddr))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		kdfs []kdf
		want *refusal
	}{
		{[]kdf{kdfMD5, kdfSHA256}, errBadPadding},
		{[]kdf{kdfMD5}, errBadPadding},
		{allKDFs, errKDFBusy},
		{[]kdf{kdfPBKDF2}, errKDFBusy},
	} {
		k := keysOf(tt.kdfs, testSecret)
		takeTurns(k) // so that an attempt shows
		if _, err := k.open(ended, []byte(line)); err != tt.want {
			t.Errorf("-kdf=%v: %v, want %v", tt.kdfs, err, tt.want)
		}
	}
}

func TestALineInUseCostsOneDerivationOfPBKDF2(t *testing.T) {
	k := keysOf(allKDFs, testSecret)
	line := k.seal(parseAddr(t, "h:1")) // md5
	mustOpen(t, k, line, "h:1")
	salt := []byte("12345678")
	mustNotOpen(t, k, referenceEncrypt(kdfPBKDF2, testSecret, salt, pad("h:0")), errBadAddress)
	if n := len(k.slow.worked); n != 0 {
		t.Errorf("%d keys kept before one opened an address", n)
	}

	line = referenceEncrypt(kdfPBKDF2, testSecret, salt, pad(goldenAddr))
	mustOpen(t, k, line, goldenAddr)
	if n := len(k.slow.worked); n != 1 {
		t.Errorf("%d keys kept, want 1", n)
	}
	if n := len(k.slow.sem); n != 0 {
		t.Errorf("%d turns not given back", n)
	}

	takeTurns(k) // from here on a derivation would be refused
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for range 3 {
		if addr, err := k.open(ended, []byte(line)); err != nil || addr.String() != goldenAddr {
			t.Errorf("opened again: %v, %v", addr, err)
		}
	}
	other := referenceEncrypt(kdfPBKDF2, testSecret, []byte("87654321"), pad(goldenAddr))
	if _, err := k.open(ended, []byte(other)); err != errKDFBusy {
		t.Errorf("a line with another salt: %v, want %v", err, errKDFBusy)
	}
}

func TestALineInUseCostsNoDerivationOfOtherSecretsEither(t *testing.T) {
	k := keysOf(allKDFs, "the first secret", testSecret, "the third")
	line := referenceEncrypt(kdfPBKDF2, testSecret, []byte("12345678"), pad(goldenAddr))
	mustOpen(t, k, line, goldenAddr)
	takeTurns(k) // from here on a derivation would be refused
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if addr, err := k.open(ended, []byte(line)); err != nil || addr.String() != goldenAddr {
		t.Errorf("opened again: %v, %v", addr, err)
	}
}

func TestTheKeysThatAreKeptAreBounded(t *testing.T) {
	s := &keysOf(allKDFs, testSecret).slow
	for i := range 3 * maxSlowKeys {
		salt := fmt.Appendf(nil, "%08d", i)
		s.remember(i%2, salt, keyIV{byte(i)})
		if n, want := len(s.worked), min(i+1, maxSlowKeys); n != want {
			t.Fatalf("%d keys kept after %d, want %d", n, i+1, want)
		}
		if got, ok := s.worked[slowKey{i % 2, [saltSize]byte(salt)}]; !ok || got != (keyIV{byte(i)}) {
			t.Fatalf("key %d was not kept", i)
		}
	}
}

func TestAKeyThatIsKeptAlreadyPushesNoneOut(t *testing.T) {
	s := &keysOf(allKDFs, testSecret).slow
	for i := range maxSlowKeys {
		s.remember(0, fmt.Appendf(nil, "%08d", i), keyIV{})
	}
	for range 3 {
		s.remember(0, []byte("00000007"), keyIV{})
		if n := len(s.worked); n != maxSlowKeys {
			t.Fatalf("%d keys left of %d", n, maxSlowKeys)
		}
	}
}

func TestPBKDF2WaitsForItsTurnAndOnlyAsLongAsTheClient(t *testing.T) {
	t.Parallel()
	line := []byte(referenceEncrypt(kdfPBKDF2, testSecret, []byte("12345678"), pad(goldenAddr)))
	type result struct {
		addr address.Route
		err  error
	}
	// start opens the line and returns once that waits for its turn. The
	// channel holds the result when there is one.
	start := func(t *testing.T, ctx context.Context, k *keyring) chan result {
		t.Helper()
		got := make(chan result, 1)
		go func() {
			addr, err := k.open(ctx, line)
			got <- result{addr, err}
		}()
		synctest.Wait()
		if len(got) > 0 {
			t.Fatalf("did not wait for its turn: %v", <-got)
		}
		return got
	}
	t.Run("the client's time runs out", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			k := keysOf(allKDFs, testSecret)
			takeTurns(k)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			began := time.Now()
			got := <-start(t, ctx, k)
			if got.err != errKDFBusy || time.Since(began) != 10*time.Second {
				t.Errorf("%v after %v", got, time.Since(began))
			}
		})
	})
	t.Run("its turn comes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			k := keysOf(allKDFs, testSecret)
			giveBack := takeTurns(k)
			waiting := start(t, t.Context(), k)
			giveBack()
			if got := <-waiting; got.err != nil || got.addr.String() != goldenAddr {
				t.Errorf("%v", got)
			}
		})
	})
	t.Run("lines that need no turn", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			k := keysOf(allKDFs, testSecret)
			takeTurns(k)
			ctx, cancel := context.WithCancel(t.Context())
			waiting := start(t, ctx, k)
			for _, quick := range allKDFs[:2] {
				mustOpen(t, k, keysOf([]kdf{quick}, testSecret).seal(parseAddr(t, goldenAddr)), goldenAddr)
			}
			mustNotOpen(t, k, "", errBadFormat)
			cancel()
			<-waiting
		})
	})
}

func TestManyClientsShareAKeyring(t *testing.T) {
	t.Parallel()
	k := keysOf(allKDFs, "the first secret", testSecret)
	if n, most := cap(k.slow.sem), max(1, runtime.GOMAXPROCS(0)/2); n < 1 || n > most {
		t.Errorf("%d derivations of PBKDF2 at once, want 1 to %d", n, most)
	}
	var clients sync.WaitGroup
	for i := range 4 {
		clients.Go(func() {
			addr := fmt.Sprintf("h%d:1", i)
			for _, kdf := range allKDFs {
				line := referenceEncrypt(kdf, testSecret, fmt.Appendf(nil, "%8d", i/2), pad(addr))
				for range 2 {
					mustOpen(t, k, line, addr)
				}
			}
		})
	}
	clients.Wait()
}
