package trace

import "encoding/binary"

// PCAPNG appends the blocks of a pcapng file (draft-ietf-opsawg-pcapng), little-endian, times in nanoseconds. It keeps no state but how many
// interfaces there are, so whoever writes may write in pieces.
type PCAPNG struct{ interfaces int }

var le = binary.LittleEndian

const (
	blockSection   = 0x0a0d0d0a
	blockInterface = 1
	blockPacket    = 6
	blockStats     = 5

	optEnd     = 0
	optComment = 1
	shbApp     = 4
	ifName     = 2
	ifResol    = 9
	isbDrop    = 5
	linkEther  = 1
)

func option(b []byte, code uint16, v []byte) []byte {
	b = le.AppendUint16(b, code)
	b = le.AppendUint16(b, uint16(len(v)))
	b = append(b, v...)
	return append(b, make([]byte, -len(v)&3)...)
}

// block appends a block of that type whose body is written by fn.
func block(b []byte, typ uint32, fn func([]byte) []byte) []byte {
	at := len(b)
	b = le.AppendUint32(b, typ)
	b = le.AppendUint32(b, 0)
	b = fn(b)
	n := uint32(len(b) - at + 4)
	le.PutUint32(b[at+4:], n)
	return le.AppendUint32(b, n)
}

// Begin appends the section header.
func (p *PCAPNG) Begin(b []byte, application string) []byte {
	return block(b, blockSection, func(b []byte) []byte {
		b = le.AppendUint32(b, 0x1a2b3c4d)
		b = le.AppendUint16(b, 1)
		b = le.AppendUint16(b, 0)
		b = le.AppendUint64(b, ^uint64(0)) // length not known
		b = option(b, shbApp, []byte(application))
		return option(b, optEnd, nil)
	})
}

// Interface appends one more interface and returns its number.
func (p *PCAPNG) Interface(b []byte, name string, snap int) ([]byte, int) {
	b = block(b, blockInterface, func(b []byte) []byte {
		b = le.AppendUint32(b, linkEther)
		b = le.AppendUint32(b, uint32(snap))
		b = option(b, ifName, []byte(name))
		b = option(b, ifResol, []byte{9})
		return option(b, optEnd, nil)
	})
	p.interfaces++
	return b, p.interfaces - 1
}

// Packet appends one frame of size bytes of which data is kept. ns is of the wall clock.
func (p *PCAPNG) Packet(b []byte, iface int, ns uint64, size int, data []byte, comment string) []byte {
	return block(b, blockPacket, func(b []byte) []byte {
		b = le.AppendUint32(b, uint32(iface))
		b = le.AppendUint32(b, uint32(ns>>32))
		b = le.AppendUint32(b, uint32(ns))
		b = le.AppendUint32(b, uint32(len(data)))
		b = le.AppendUint32(b, uint32(size))
		b = append(b, data...)
		b = append(b, make([]byte, -len(data)&3)...)
		if comment == "" {
			return b
		}
		b = option(b, optComment, []byte(comment))
		return option(b, optEnd, nil)
	})
}

// Lost appends how many packets of an interface were wanted and lost.
func (p *PCAPNG) Lost(b []byte, iface int, ns, lost uint64) []byte {
	return block(b, blockStats, func(b []byte) []byte {
		b = le.AppendUint32(b, uint32(iface))
		b = le.AppendUint32(b, uint32(ns>>32))
		b = le.AppendUint32(b, uint32(ns))
		b = option(b, isbDrop, le.AppendUint64(nil, lost))
		return option(b, optEnd, nil)
	})
}
