package policy

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestTheAddressesOfTheInterfacesAreLocal(t *testing.T) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Skip(err)
	}
	for _, a := range addrs {
		ip, _ := netip.AddrFromSlice(a.(*net.IPNet).IP)
		ip = ip.Unmap()
		if ip.IsLinkLocalUnicast() {
			continue // cannot be connected to without a zone
		}
		if local, err := askSystem(ip); !local || err != nil {
			t.Errorf("askSystem(%v) = %v, %v", ip, local, err)
		}
		if local, err := isOwnSource(ip); !local || err != nil {
			t.Errorf("isOwnSource(%v) = %v, %v", ip, local, err)
		}
	}
}

func TestOtherAddressesAreNotLocal(t *testing.T) {
	for _, s := range []string{"203.0.113.77", "2001:db8::77", "255.255.255.255", "fe80::77"} {
		ip := netip.MustParseAddr(s)
		if local, err := askSystem(ip); local || err != nil {
			t.Errorf("askSystem(%v) = %v, %v", ip, local, err)
		}
		if local, err := isOwnSource(ip); local || err != nil {
			t.Errorf("isOwnSource(%v) = %v, %v", ip, local, err)
		}
	}
}

func TestAnAnswerHoldsForASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c localCache
		asked, answer := 0, false
		want := func(ip string, local bool, asks int) {
			t.Helper()
			got, err := c.isLocal(netip.MustParseAddr(ip), func(netip.Addr) (bool, error) {
				asked++
				return answer, nil
			})
			if got != local || err != nil || asked != asks {
				t.Fatalf("isLocal(%s) = %v, %v after %d questions; want %v after %d", ip, got, err, asked, local, asks)
			}
		}
		want("10.0.0.7", false, 1)
		answer = true
		want("10.0.0.7", false, 1)
		want("10.0.0.8", true, 2)
		time.Sleep(localTTL - time.Nanosecond)
		want("10.0.0.7", false, 2)
		time.Sleep(time.Nanosecond)
		want("10.0.0.7", true, 3)
		answer = false
		want("10.0.0.7", true, 3)
		time.Sleep(localTTL)
		want("10.0.0.7", false, 4)
	})
}

func TestAFailureIsNotRemembered(t *testing.T) {
	var c localCache
	ip := netip.MustParseAddr("10.0.0.7")
	failure := errors.New("no descriptor")
	if local, err := c.isLocal(ip, func(netip.Addr) (bool, error) { return true, failure }); local || err != failure {
		t.Errorf("isLocal = %v, %v; want the failure", local, err)
	}
	if local, err := c.isLocal(ip, func(netip.Addr) (bool, error) { return true, nil }); !local || err != nil {
		t.Errorf("isLocal = %v, %v; want the answer", local, err)
	}
}

func TestAddressesThatShareASlotKeepTheirOwnAnswers(t *testing.T) {
	var c localCache
	ask := func(ip netip.Addr) (bool, error) { return ip.As4()[3]%2 == 1, nil }
	used := map[uint8]bool{}
	for range 2 {
		for i := range 2048 {
			ip := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
			used[slotOf(ip)] = true
			if local, _ := c.isLocal(ip, ask); local != (i%2 == 1) {
				t.Fatalf("isLocal(%v) = %v", ip, local)
			}
		}
	}
	if len(used) < len(c.slots) {
		t.Errorf("2048 neighbours use %d of %d slots", len(used), len(c.slots))
	}
}

func TestLoopbackIsLocalWithoutAsking(t *testing.T) {
	var c localCache
	for _, s := range []string{"127.0.0.1", "127.0.0.2", "127.255.255.255", "::1"} {
		local, err := c.isLocal(netip.MustParseAddr(s), func(netip.Addr) (bool, error) {
			return false, errors.New("asked")
		})
		if !local || err != nil {
			t.Errorf("isLocal(%s) = %v, %v", s, local, err)
		}
	}
}

func BenchmarkAskSystem(b *testing.B) {
	benchAsk(b, askSystem)
}

func BenchmarkIsOwnSource(b *testing.B) {
	benchAsk(b, isOwnSource)
}

func benchAsk(b *testing.B, ask func(netip.Addr) (bool, error)) {
	b.ReportAllocs()
	ip := netip.MustParseAddr("127.0.0.1")
	for b.Loop() {
		if local, err := ask(ip); !local || err != nil {
			b.Fatal(local, err)
		}
	}
}
