package backends

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gateway/internal/address"
	"gateway/internal/harness"
)

// Where the gateway may go, as an operator and a client see it: the real
// process, in a network that shows every SYN.

// What a client is told, and the reason that the log has.
const (
	isServed   = "200"
	isDenied   = "502 denied"
	isRefused  = "502 refused"
	isTimedOut = "504 timeout"    // nobody answers the SYN
	isFailed   = "502 and no SYN" // the kernel itself refuses, for any other reason
)

// try is a backend that a client asks for, and what comes of it. In the
// address, {own} is the port that the gateway listens on and {second} that of
// its second listener, {pprof} its port of pprof, {echo} that of a backend on
// 127.0.0.1 and ::1, and {closed} one where nobody listens.
type try struct{ backend, want string }

func denied(backends ...string) []try { return tries(isDenied, backends) }

func tries(want string, backends []string) []try {
	var list []try
	for _, b := range backends {
		list = append(list, try{b, want})
	}
	return list
}

// spellings returns an IPv4 address in the forms that lead to it, here or
// behind some translator.
func spellings(port string, ips ...string) []string {
	var list []string
	for _, ip := range ips {
		b := netip.MustParseAddr(ip).As4()
		hex := fmt.Sprintf("%02x%02x:%02x%02x", b[0], b[1], b[2], b[3])
		for _, form := range []string{
			ip,
			"[::ffff:" + ip + "]", // IPv4-mapped
			"[::FFFF:" + strings.ToUpper(hex) + "]",
			"[0:0:0:0:0:ffff:" + ip + "]",
			"[64:ff9b::" + ip + "]", // NAT64
			"[0064:ff9b:0:0:0:0:" + hex + "]",
			"[2002:" + hex + "::1]", // 6to4
			"[::ffff:0:" + ip + "]", // IPv4-translated
			"[::" + ip + "]",        // IPv4-compatible
		} {
			list = append(list, form+":"+port)
		}
	}
	return list
}

var (
	// unspecified, multicast and broadcast: no rule opens them.
	never = slices.Concat(
		spellings("80", "0.0.0.0", "0.1.2.3", "224.0.0.1", "239.255.255.255", "255.255.255.255"),
		[]string{
			"[::]:80", "[0:0:0:0:0:0:0:0]:80",
			"[ff02::1]:80", "[ff0e::1]:80", "[FF05:0:0:0:0:0:0:2]:80", "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:80",
		})
	// sensitive is what only a rule of its own opens.
	sensitive = slices.Concat(
		spellings("80", "169.254.0.1", "169.254.169.254", "169.254.170.2", "169.254.255.255",
			"100.100.100.200", "168.63.129.16", "192.0.0.192"),
		[]string{
			"169.254.169.254:1", "169.254.169.254:65535",
			"[fe80::1]:80", "[FE80:0:0:0:0:0:0:1]:80", "[febf:ffff::1]:80", "[fe80::a9fe:a9fe]:80",
			"[fd00:ec2::254]:80", "[fd00:0ec2:0:0:0:0:0:254]:80", "[FD00:EC2::254]:80",
		})
	// unreachable takes a SYN and says nothing.
	unreachable = slices.Concat(
		spellings("80", "192.0.2.7")[:1], // the mapped forms lead to the same
		[]string{"[::ffff:192.0.2.8]:80", "[64:ff9b::192.0.2.9]:80", "[2001:db8::7]:80",
			// next to what is forbidden
			"1.0.0.0:80", "223.255.255.255:80", "240.0.0.1:80", "169.253.255.255:80", "169.255.0.0:80",
			"100.100.100.199:80", "168.63.129.17:80", "192.0.0.193:80", "[fec0::1]:80", "[fd00:ec2::253]:80"})
)

var policies = []struct {
	name string
	args []string
	all  []try
}{
	{"by default", []string{"-addr=:0", "-pprof=127.0.0.1:0"}, slices.Concat(
		denied(never...),
		denied(sensitive...),
		denied(spellings("{own}", "127.0.0.1", "127.0.0.2", "127.255.255.254", ownIPv4)...),
		denied("[::1]:{own}", "[0:0:0:0:0:0:0:1]:{own}", "["+ownIPv6+"]:{own}", "[::]:{own}", "localhost:{own}", "LOCALHOST:{own}"),
		denied(spellings("{pprof}", "127.0.0.1")...),
		tries(isTimedOut, unreachable),
		tries(isServed, []string{"127.0.0.1:{echo}", "[::ffff:127.0.0.1]:{echo}", "[::1]:{echo}", "localhost:{echo}"}),
		tries(isRefused, []string{"127.0.0.1:{closed}", "[::1]:{closed}", ownIPv4 + ":{closed}", "localhost:{closed}"}),
		tries(isTimedOut, []string{"192.0.2.7:{own}", "[2001:db8::7]:{own}"}),
		denied(ownIPv4Broadcast+":80", "[::ffff:"+ownIPv4Broadcast+"]:80"),
	)},
	{"listening on one address", []string{"-addr=127.0.0.1:0", "-listen=[::1]:0=sealed"}, slices.Concat(
		denied(spellings("{own}", "127.0.0.1", "0.0.0.0")...),
		denied("[::1]:{second}", "[::]:{second}"),
		tries(isRefused, []string{"127.0.0.2:{own}", ownIPv4 + ":{own}", "127.0.0.1:{second}", "[::1]:{own}"}),
		tries(isServed, []string{"127.0.0.1:{echo}", "localhost:{echo}"}),
	)},
	{"listening on IPv4", []string{"-addr=0.0.0.0:0"}, slices.Concat(
		denied(spellings("{own}", "127.0.0.1", "127.0.0.2", ownIPv4)...),
		tries(isRefused, []string{"[::1]:{own}", "[" + ownIPv6 + "]:{own}"}),
	)},
	{"-allow of everything", []string{"-allow=0.0.0.0/0,::/0"}, slices.Concat(
		denied(never...),
		denied(sensitive...),
		denied(spellings("{own}", "127.0.0.1")...),
		tries(isTimedOut, unreachable),
		tries(isServed, []string{"127.0.0.1:{echo}", "[::1]:{echo}"}),
	)},
	{"-allow within a range", []string{
		"-allow=169.254.0.0/16,fe80::/10", "-allow=100.100.100.200:80", "-allow=[fd00:ec2::254]",
		"-allow=168.63.129.16/32:32526-32527,192.0.0.192", "-allow=224.0.0.0/4,0.0.0.0/8,255.255.255.255,ff00::/8,::/128"}, slices.Concat(
		tries(isTimedOut, []string{
			"169.254.169.254:80", "[::ffff:169.254.169.254]:80", "169.254.0.1:1", "169.254.255.255:65535",
			"100.100.100.200:80", "[fd00:ec2::254]:80", "[FD00:EC2:0:0::254]:8080",
			"168.63.129.16:32526", "168.63.129.16:32527", "192.0.0.192:80"}),
		tries(isFailed, []string{"[fe80::1]:80"}), // there is no telling on which link
		denied(never...),
		denied("100.100.100.200:79", "100.100.100.200:81", "100.100.100.201:80", "[fd00:ec2::253]:80",
			"168.63.129.16:80", "168.63.129.16:32525", "168.63.129.16:32528", "[64:ff9b::169.254.169.254]:80",
			"127.0.0.1:{own}", "127.0.0.1:{echo}", "[::1]:{echo}", "localhost:{echo}", "192.0.2.7:80", "[2001:db8::7]:80"),
	)},
	{"-allow around a range", []string{"-allow=169.254.0.0/15,100.100.100.0/24,fe80::/9,fd00:ec2::/32,128.0.0.0/1"}, slices.Concat(
		denied(sensitive...),
		tries(isTimedOut, []string{"169.255.0.1:80", "100.100.100.201:80", "[fd00:ec2::255]:80"}),
	)},
	{"-allow and -deny with ports", []string{
		"-allow=127.0.0.0/8", "-allow=10.0.0.0/8:4000-4999,[2001:db8::/32]:443", "-allow=10.1.1.1",
		"-deny=10.0.0.7:4001-4003,10.2.0.0/16", "-deny=127.0.0.1:{closed},[2001:db8:1::/48]:443"}, slices.Concat(
		tries(isTimedOut, []string{
			"10.0.0.1:4000", "10.255.255.255:4999", "[::ffff:10.0.0.2]:4500", "10.1.1.1:80",
			"10.0.0.7:4000", "10.0.0.7:4004", "[2001:db8::1]:443"}),
		denied("10.0.0.1:3999", "10.0.0.1:5000", "[::ffff:10.0.0.1]:5000", "10.1.1.2:80", "9.255.255.255:4000", "11.0.0.0:4000",
			"10.0.0.7:4001", "10.0.0.7:4002", "10.0.0.7:4003", "[::ffff:10.0.0.7]:4002", "10.2.0.0:4000", "10.2.255.255:4000",
			"[2001:db8::1]:444", "[2001:db8::1]:442", "[2001:db9::1]:443", "[2001:db8:1::1]:443", "[64:ff9b::10.0.0.1]:4000",
			"127.0.0.1:{closed}", "[::ffff:127.0.0.1]:{closed}", "127.0.0.1:{own}", "[::1]:{echo}", "169.254.169.254:80"),
		tries(isServed, []string{"127.0.0.1:{echo}", "[::ffff:7f00:1]:{echo}"}),
		tries(isRefused, []string{"127.0.0.2:{closed}"}),
	)},
	{"-deny alone", []string{"-deny=192.0.2.0/24,2001:db8::/32", "-deny=127.0.0.1:{echo}"}, slices.Concat(
		denied(spellings("80", "192.0.2.0", "192.0.2.255")...),
		denied(spellings("{echo}", "127.0.0.1")...),
		denied("[2001:db8::7]:80", "169.254.169.254:80"),
		tries(isTimedOut, []string{"192.0.1.255:80", "192.0.3.0:80", "[2001:db9::]:80"}),
		tries(isServed, []string{"[::1]:{echo}"}),
	)},
}

func TestNoSYNLeavesForWhereTheGatewayMayNotGo(t *testing.T) {
	for _, p := range policies {
		for _, way := range []string{"-loops=0", "-loops=-1"} {
			t.Run(p.name+" "+way, func(t *testing.T) {
				t.Parallel()
				inNetwork(t, func(t *testing.T, n *network) { checkPolicy(t, n, append(p.args, way), p.all) })
			})
		}
	}
}

func TestNoSYNLeavesForWhereNamesLead(t *testing.T) {
	for _, way := range []string{"-loops=0", "-loops=-1"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			inNetwork(t, func(t *testing.T, n *network) {
				zone := zoneOf(slices.Concat(names, []named{
					{"far.test", []string{"169.254.169.254", "192.0.2.7"}, ""},
					{"self.test", []string{"127.0.0.1", "::1", ownIPv4}, ""},
				}))
				startNames(t, "127.0.0.1:53", zone)
				useNames(t, "127.0.0.1")
				all := []try{{"far.test:80", isTimedOut}, {"self.test:{own}", isDenied}, {"192.0.2.8:80", isTimedOut}}
				for _, n := range names {
					all = append(all, try{n.name + ":{echo}", n.want})
				}
				checkPolicy(t, n, []string{"-addr=:0", way}, all, netip.MustParseAddrPort("192.0.2.7:80"))
			})
		})
	}
}

// checkPolicy asks a gateway for each backend, and compares what it says, what
// it logs and what it sends. Names lead to named.
func checkPolicy(t *testing.T, n *network, args []string, all []try, named ...netip.AddrPort) {
	echo, closed := startEverywhere(t), harness.ClosedPort(t)
	places := []string{"{echo}", harness.PortOf(echo), "{closed}", harness.PortOf(closed)}
	for i, a := range args {
		args[i] = strings.NewReplacer(places...).Replace(a)
	}
	p := harness.Start(t, append([]string{"-timeout=3s"}, args...)...)
	places = append(places, "{own}", harness.PortOf(p.Addr))
	if strings.Contains(strings.Join(args, " "), "-listen=") {
		places = append(places, "{second}", harness.PortOf(p.Listeners(t, 2)[1]["addr"].(string)))
	}
	if found := p.Log.Lines("pprof is on"); len(found) > 0 {
		url := strings.TrimSuffix(found[0]["url"].(string), "/debug/pprof/")
		places = append(places, "{pprof}", harness.PortOf(strings.TrimPrefix(url, "http://")))
	}
	all = slices.Clone(all)
	for i := range all {
		all[i].backend = strings.NewReplacer(places...).Replace(all[i].backend)
	}
	n.mustSeeKnocksAt(t, all)

	gateway := net.JoinHostPort("127.0.0.1", harness.PortOf(p.Addr))
	answers := make([]string, len(all))
	clients := make([]string, len(all))
	var asking sync.WaitGroup
	for i := range all {
		line := harness.Line(all[i].backend)
		asking.Go(func() { answers[i], clients[i] = ask(gateway, line) })
	}
	asking.Wait()
	sent := n.seen(t)
	p.End(t)

	lines := make(map[string]map[string]any) // by client
	for _, line := range append(p.Log.Lines("tunnel"), p.Log.Lines("refused")...) {
		lines[line["client"].(string)] = line
	}

	wantDenied := 0
	wantSent := make(map[netip.AddrPort]bool)
	for _, to := range named {
		wantSent[to] = true
	}
	for i, a := range all {
		status, reason, _ := strings.Cut(a.want, " ")
		if answers[i] != status {
			t.Errorf("%s: answered %q, want %s", a.backend, answers[i], status)
		}
		line := lines[clients[i]]
		switch {
		case line["backend"] != a.backend:
			t.Errorf("%s is logged as %v", a.backend, line["backend"])
		case a.want == isServed && line["msg"] != "tunnel",
			a.want == isFailed && (line["reason"] == nil || line["reason"] == "denied"),
			a.want != isServed && a.want != isFailed && line["reason"] != reason:
			t.Errorf("%s is logged with %v, want %s", a.backend, line, a.want)
		}
		if a.want == isDenied {
			wantDenied++
		} else if ip := parseAddr(t, a.backend).IP; ip.IsValid() && a.want != isFailed {
			wantSent[netip.AddrPortFrom(ip.Unmap(), parseAddr(t, a.backend).Port)] = true
		}
	}
	if line := p.Log.WaitLine(t, "stopped", 1); line["denied"] != float64(wantDenied) {
		t.Errorf("stopped with denied=%v, want %d", line["denied"], wantDenied)
	}
	checkSent(t, sent, gateway, clients, wantSent, harness.PortOf(echo), harness.PortOf(closed))
}

// checkSent compares the SYNs of a gateway with those that it had to send.
// clients are those of its clients. A name of this host may go to its ports
// too.
func checkSent(t *testing.T, sent sent, gateway string, clients []string, want map[netip.AddrPort]bool, localPorts ...string) {
	t.Helper()
	got := make(map[netip.AddrPort]bool)
	for s := range sent {
		if s.isClients(gateway, clients) {
			continue
		}
		got[s.to] = true
		if !want[s.to] && !(s.to.Addr().IsLoopback() && slices.Contains(localPorts, harness.PortOf(s.to.String()))) {
			t.Errorf("a SYN went to %v", s.to)
		}
	}
	for to := range want {
		if !got[to] {
			t.Errorf("no SYN went to %v", to)
		}
	}
}

// mustSeeKnocksAt makes sure that the capture would see a SYN to each literal:
// that it is not the kernel that keeps it back.
func (n *network) mustSeeKnocksAt(t *testing.T, all []try) {
	t.Helper()
	from := make(map[string]netip.AddrPort)
	for _, a := range all {
		if b := parseAddr(t, a.backend); b.IP.IsValid() && !kernelRefuses(b.IP.Unmap()) {
			from[a.backend] = knock(t, netip.AddrPortFrom(b.IP, b.Port))
		}
	}
	came := make(map[netip.AddrPort]bool)
	for s := range n.seen(t) {
		came[s.from] = true
	}
	for backend, from := range from {
		if !came[from] {
			t.Errorf("no SYN to %s can be seen, so the test has no meaning", backend)
		}
	}
}

// kernelRefuses tells whether Linux connects no TCP socket to an address
// whatever the routes.
func kernelRefuses(ip netip.Addr) bool {
	zero := netip.MustParsePrefix("0.0.0.0/8")
	return ip.IsMulticast() || ip.String() == ownIPv4Broadcast || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}) ||
		ip.IsLinkLocalUnicast() && ip.Is6() || // without a zone
		zero.Contains(ip) && !ip.IsUnspecified()
}

// ask returns all that a gateway answers to a request, and from where it was
// asked.
func ask(gateway, line string) (answer, client string) {
	c, err := net.Dial("tcp", gateway)
	if err != nil {
		return err.Error(), ""
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(harness.Patience))
	io.WriteString(c, line)
	c.(*net.TCPConn).CloseWrite()
	b, err := io.ReadAll(c)
	if err != nil {
		return err.Error(), c.LocalAddr().String()
	}
	return string(b), c.LocalAddr().String()
}

// startEverywhere starts a backend on a port of all addresses, which closes
// each connection at once.
func startEverywhere(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	})
	t.Cleanup(func() {
		ln.Close()
		serving.Wait()
	})
	return ln.Addr().String()
}

func parseAddr(t testing.TB, text string) address.Address {
	t.Helper()
	a, err := address.Parse(text)
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return a
}
