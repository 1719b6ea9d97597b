package backends

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"gateway/internal/harness"
)

// A network in which a test sees every SYN that anybody sends, and which
// nothing leaves. Every address has a route in it, so that the kernel never
// keeps to itself what the gateway should not have sent.

// network is the far end of everything.
type network struct {
	fd int // of the capture

	mu   sync.Mutex
	syns sent
}

// syn is a connection that somebody has begun to make.
type syn struct{ from, to netip.AddrPort }

// sent are connections that somebody has begun to make, and with which initial sequence
// numbers: ports are used again, and a SYN may be sent again.
type sent map[syn]map[uint32]bool

// The addresses of this machine in the network, besides those of loopback.
const (
	ownIPv4          = "10.9.0.1"
	ownIPv4Broadcast = "10.9.0.255"
	ownIPv6          = "fd00:9::1"
)

// inNetwork runs the rest of a test in a network and a mount namespace of its
// own.
func inNetwork(t *testing.T, test func(t *testing.T, n *network)) {
	t.Helper()
	if harness.InNamespaces(t, unix.CLONE_NEWNET|unix.CLONE_NEWNS) {
		test(t, newNetwork(t))
	}
}

// newNetwork furnishes an empty network namespace.
func newNetwork(t *testing.T) *network {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(rtnetlink(unix.RTM_NEWLINK, 0, linkUp(1, 0)))
	// Any of these takes packets and answers nothing. Kernels lack some.
	var err error
	for _, kind := range []string{"dummy", "ifb", "veth"} {
		if err = rtnetlink(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, make([]byte, unix.SizeofIfInfomsg),
			attr(unix.IFLA_IFNAME, []byte("far\x00")),
			attr(unix.IFLA_LINKINFO, attr(unix.IFLA_INFO_KIND, []byte(kind)))); err == nil {
			break
		}
	}
	if err != nil {
		t.Skip("no interface for a network of our own: ", err)
	}
	interfaces, err := net.Interfaces() // a veth has two ends
	must(err)
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback == 0 {
			must(rtnetlink(unix.RTM_NEWLINK, 0, linkUp(i.Index, unix.IFF_NOARP))) // nobody is there to be asked
		}
	}
	far, err := net.InterfaceByName("far")
	must(err)
	ip4, broadcast := netip.MustParseAddr(ownIPv4).AsSlice(), netip.MustParseAddr(ownIPv4Broadcast).AsSlice()
	must(rtnetlink(unix.RTM_NEWADDR, unix.NLM_F_CREATE, ifaddrmsg(unix.AF_INET, 24, far.Index),
		attr(unix.IFA_LOCAL, ip4), attr(unix.IFA_ADDRESS, ip4), attr(unix.IFA_BROADCAST, broadcast)))
	ip6 := netip.MustParseAddr(ownIPv6).AsSlice()
	must(rtnetlink(unix.RTM_NEWADDR, unix.NLM_F_CREATE, ifaddrmsg(unix.AF_INET6, 64, far.Index),
		attr(unix.IFA_LOCAL, ip6), attr(unix.IFA_ADDRESS, ip6)))
	index := binary.NativeEndian.AppendUint32(nil, uint32(far.Index))
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		// struct rtmsg of a default route
		route := []byte{family, 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_LINK, unix.RTN_UNICAST, 0, 0, 0, 0}
		must(rtnetlink(unix.RTM_NEWROUTE, unix.NLM_F_CREATE, route, attr(unix.RTA_OIF, index)))
	}

	n := &network{syns: make(sent)}
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in the network's order
	n.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, all)
	must(err)
	must(unix.SetsockoptSockFprog(n.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{
		Len: uint16(len(onlySYNs)), Filter: &onlySYNs[0]}))
	// Room for all that a test sends, however late they are read.
	const room = 16 << 20
	if unix.SetsockoptInt(n.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room) != nil {
		unix.SetsockoptInt(n.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, room)
	}
	packets := os.NewFile(uintptr(n.fd), "packets")
	var reading sync.WaitGroup
	reading.Go(func() { n.watch(packets) })
	t.Cleanup(func() {
		stats, err := unix.GetsockoptTpacketStats(n.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err != nil || stats.Drops > 0 {
			t.Errorf("the capture missed packets: %+v, %v", stats, err)
		}
		packets.Close()
		reading.Wait()
	})
	return n
}

// onlySYNs lets IP packets pass that this machine sends to begin a TCP
// connection (the flags have SYN and no ACK), so that nothing else fills the
// capture's buffer. IPv6 extension headers are not looked behind: TCP sends none
// by itself.
var onlySYNs = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0xfffff000 + 4}, // SKF_AD_OFF + SKF_AD_PKTTYPE,
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.PACKET_OUTGOING, Jf: 13},
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 0},
	{Code: unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K, K: 4}, // the version
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 6, Jt: 5},
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 9}, // IPv4's protocol
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_TCP, Jf: 8},
	{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH, K: 0}, // its header's length
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_IND, K: 13}, // the flags
	{Code: unix.BPF_JMP | unix.BPF_JA, K: 3},
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 6}, // IPv6's next header
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_TCP, Jf: 3},
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 40 + 13}, // the flags
	{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0x12},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0x02, Jt: 1},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	{Code: unix.BPF_RET | unix.BPF_K, K: 128}, // the headers
}

// linkUp is a struct ifinfomsg that brings an interface up.
func linkUp(index int, flags uint32) []byte {
	flags |= unix.IFF_UP
	b := make([]byte, 4, unix.SizeofIfInfomsg)
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = binary.NativeEndian.AppendUint32(b, flags)
	return binary.NativeEndian.AppendUint32(b, flags) // which of them to change
}

// ifaddrmsg is a struct ifaddrmsg. An address that nobody else can have need
// not be looked for before its use.
func ifaddrmsg(family, bits byte, index int) []byte {
	return binary.NativeEndian.AppendUint32([]byte{family, bits, unix.IFA_F_NODAD, unix.RT_SCOPE_UNIVERSE}, uint32(index))
}

// attr is a struct rtattr.
func attr(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofRtAttr+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, -len(b)&3)...)
}

// rtnetlink asks the kernel to change the network (rtnetlink(7)).
func rtnetlink(kind, flags uint16, header []byte, attrs ...[]byte) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	body := header
	for _, a := range attrs {
		body = append(body, a...)
	}
	ne := binary.NativeEndian
	msg := ne.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	msg = ne.AppendUint16(msg, kind)
	msg = ne.AppendUint16(msg, unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	msg = append(append(msg, make([]byte, 8)...), body...)
	if _, err := unix.Write(fd, msg); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	got, err := unix.Read(fd, buf)
	if err != nil {
		return err
	}
	if got < unix.SizeofNlMsghdr+4 || ne.Uint16(buf[4:]) != unix.NLMSG_ERROR {
		return errors.New("rtnetlink: an answer that is none")
	}
	if errno := -int32(ne.Uint32(buf[unix.SizeofNlMsghdr:])); errno != 0 {
		return os.NewSyscallError("rtnetlink", unix.Errno(errno))
	}
	return nil
}

// isClients tells whether a connection is one of clients to the gateway. The kernel may
// give the port of a client to the gateway as well, towards another address.
func (s syn) isClients(gateway string, clients []string) bool {
	return harness.PortOf(s.to.String()) == harness.PortOf(gateway) && slices.Contains(clients, s.from.String())
}

// watch notes each SYN that is sent, until packets is closed.
func (n *network) watch(packets *os.File) {
	buf := make([]byte, 128)
	for {
		got, err := packets.Read(buf)
		if err != nil {
			return
		}
		s, number := parseSYN(buf[:got])
		n.mu.Lock()
		if n.syns[s] == nil {
			n.syns[s] = make(map[uint32]bool)
		}
		n.syns[s][number] = true
		n.mu.Unlock()
	}
}

// parseSYN reads a packet that onlySYNs has let pass.
func parseSYN(b []byte) (s syn, number uint32) {
	from, to, tcp := netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), b[int(b[0]&15)*4:]
	if b[0]>>4 == 6 {
		from, to, tcp = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:])), b[40:]
	}
	return syn{
		netip.AddrPortFrom(from, binary.BigEndian.Uint16(tcp)),
		netip.AddrPortFrom(to, binary.BigEndian.Uint16(tcp[2:])),
	}, binary.BigEndian.Uint32(tcp[4:])
}

// seen returns all SYNs since the last call, of which there may be several in
// a connection. The capture is in order: once it has one that is sent now, it
// has whatever was sent before.
func (n *network) seen(t testing.TB) sent {
	t.Helper()
	marker := syn{to: netip.MustParseAddrPort("203.0.113.1:1")}
	marker.from = knock(t, marker.to)
	var found sent
	harness.Eventually(t, "the capture sees a SYN", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.syns[marker] == nil {
			return false
		}
		delete(n.syns, marker)
		found, n.syns = n.syns, make(sent)
		return true
	})
	return found
}

// knock begins a connection, gives it up at once, and returns from where it
// was, if the kernel has let it begin.
func knock(t testing.TB, to netip.AddrPort) (from netip.AddrPort) {
	t.Helper()
	family := unix.AF_INET
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if to.Addr().Is6() {
		unix.Connect(fd, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	} else {
		unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		from = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		from = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return from
}

// useNames has the processes of this network ask a server for names.
func useNames(t testing.TB, server string) {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver "+server+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	harness.Mount(t, conf, "/etc/resolv.conf", "", unix.MS_BIND, "")
}
