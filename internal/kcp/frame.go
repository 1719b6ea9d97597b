package kcp

import (
	"crypto/rand"
	"encoding/binary"
	"hash/crc32"
	"sync"

	kcpgo "github.com/xtaci/kcp-go/v5"
)

const (
	// maxPacket is the most that kcp-go reads of a packet.
	maxPacket = 1500
	// frameHeader is a nonce of 16 bytes and a CRC-32 of what follows.
	frameHeader = 20
	maxDatagram = maxPacket + frameHeader
)

// A frame is what kcp-go puts around a packet when it has a BlockCrypt. It is
// done here, below kcp-go, for two reasons: the guard can read what comes, and
// kcp-go's listener shares one BlockCrypt, which is not safe for concurrent
// use, among all its sessions. The nil frame adds nothing.
//
// A frame may seal in one goroutine and open in another, but no more.
type frame struct{ block kcpgo.BlockCrypt }

// newFrame returns a frame that is encrypted if there is a key.
func newFrame(key []byte) *frame {
	if key == nil {
		block, _ := kcpgo.NewNoneBlockCrypt(nil) // it cannot fail
		return &frame{block}
	}
	block, err := kcpgo.NewAESBlockCrypt(key)
	if err != nil {
		panic(err) // the key has 32 bytes
	}
	return &frame{block}
}

func (f *frame) overhead() int {
	if f == nil {
		return 0
	}
	return frameHeader
}

// open returns the packet in a datagram, which it overwrites, or nil.
func (f *frame) open(d []byte) []byte {
	if f == nil {
		return d
	}
	if len(d) < frameHeader+segmentHeader {
		return nil
	}
	f.block.Decrypt(d, d)
	packet := d[frameHeader:]
	if crc32.ChecksumIEEE(packet) != binary.LittleEndian.Uint32(d[16:]) {
		return nil
	}
	return packet
}

// seal calls send with a datagram that holds the packet, and is send's only
// until it returns.
func (f *frame) seal(packet []byte, send func([]byte) error) error {
	if f == nil {
		return send(packet)
	}
	buf := datagrams.Get().(*[maxDatagram]byte)
	defer datagrams.Put(buf)
	return send(f.fill(buf, packet))
}

// fill returns a datagram in buf that holds the packet.
func (f *frame) fill(buf *[maxDatagram]byte, packet []byte) []byte {
	if f == nil {
		return buf[:copy(buf[:], packet)]
	}
	d := buf[:frameHeader+copy(buf[frameHeader:], packet)]
	rand.Read(d[:16])
	binary.LittleEndian.PutUint32(d[16:], crc32.ChecksumIEEE(d[frameHeader:]))
	f.block.Encrypt(d, d)
	return d
}

var datagrams = sync.Pool{New: func() any { return new([maxDatagram]byte) }}
