package proxyheader

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/pires/go-proxyproto"
)

// typeHops is the TLV that counts gateways, in one byte. It is of the
// application's own range, 0xE0 to 0xEF (section 2.2.8); 0xE0, 0xEA and 0xEE are
// Google's, Amazon's and Microsoft's. One that has another length is somebody
// else's and means nothing here.
const typeHops proxyproto.PP2Type = 0xe7

// typeLabel is the TLV of a label, of the same range.
const typeLabel proxyproto.PP2Type = 0xe8

// tlvSize is the size in bytes of a TLV's type and length.
const tlvSize = 3

// readTLVs reads what stands behind the addresses of a complete header of
// version 2: b is the header, and at is where they end. Unknown types are
// skipped.
func (h *Header) readTLVs(b []byte, at int) error {
	var ids, sums int
	for at < len(b) {
		if len(b)-at < tlvSize {
			return malformed("a TLV is cut short")
		}
		kind, start := proxyproto.PP2Type(b[at]), at+tlvSize
		at = start + int(binary.BigEndian.Uint16(b[at+1:]))
		if at > len(b) {
			return malformed("a TLV is longer than the header")
		}
		value := b[start:at]
		switch kind {
		case proxyproto.PP2_TYPE_UNIQUE_ID:
			if len(value) > maxUniqueID {
				return malformed("the unique id is too long")
			}
			if ids++; ids == 1 {
				h.UniqueID = string(value)
			}
		case proxyproto.PP2_TYPE_CRC32C:
			// With two, neither would be of a header in which it alone is zero.
			if sums++; sums > 1 || len(value) != crc32.Size || !isSum(value, b, start) {
				return malformed("the checksum is wrong")
			}
		case typeLabel:
			if len(value) <= maxLabel {
				h.Label = string(value)
			}
		case typeHops:
			if len(value) == 1 {
				h.Hops = max(h.Hops, value[0])
			}
		}
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// isSum tells whether sum, which stands at a place in a header, is the header's
// checksum: that of all its bytes, with its own as zeros (section 2.2.3).
func isSum(sum, header []byte, at int) bool {
	c := crc32.Update(0, castagnoli, header[:at])
	c = crc32.Update(c, castagnoli, make([]byte, crc32.Size))
	c = crc32.Update(c, castagnoli, header[at+crc32.Size:])
	return c == binary.BigEndian.Uint32(sum)
}
