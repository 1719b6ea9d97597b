package policy

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// lookUp asks the kernel for the route to ip, as "ip route get" does
// (rtnetlink(7), RTM_GETROUTE), and tells whether it is a local one. This is
// what decides where a packet goes, and it alone knows of whole prefixes that
// are routed to this machine ("ip route add local PREFIX dev lo"). ok is false
// if the kernel gives no route, or a sandbox no netlink socket.
//
// The kernel answers within the write, so nothing blocks.
func lookUp(ip netip.Addr) (local, ok bool) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return false, false
	}
	defer unix.Close(fd)

	family := byte(unix.AF_INET6)
	if ip.Is4() {
		family = unix.AF_INET
	}
	dst := ip.AsSlice()
	ne := binary.NativeEndian
	var buf [512]byte
	b := buf[:0]
	// struct nlmsghdr
	b = ne.AppendUint32(b, uint32(unix.SizeofNlMsghdr+unix.SizeofRtMsg+unix.SizeofRtAttr+len(dst)))
	b = ne.AppendUint16(b, unix.RTM_GETROUTE)
	b = ne.AppendUint16(b, unix.NLM_F_REQUEST)
	b = append(b, make([]byte, 8)...) // sequence number and port, which nobody needs
	// struct rtmsg
	b = append(b, family, byte(len(dst)*8))
	b = append(b, make([]byte, unix.SizeofRtMsg-2)...)
	// struct rtattr
	b = ne.AppendUint16(b, uint16(unix.SizeofRtAttr+len(dst)))
	b = ne.AppendUint16(b, unix.RTA_DST)
	b = append(b, dst...)

	if _, err := unix.Write(fd, b); err != nil {
		return false, false
	}
	n, err := unix.Read(fd, buf[:])
	if err != nil || n < unix.SizeofNlMsghdr+unix.SizeofRtMsg || ne.Uint16(buf[4:]) != unix.RTM_NEWROUTE {
		return false, false
	}
	const rtmType = unix.SizeofNlMsghdr + 7 // of struct rtmsg's rtm_type
	return buf[rtmType] == unix.RTN_LOCAL, true
}
