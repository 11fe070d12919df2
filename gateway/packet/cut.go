package packet

import (
	"encoding/binary"
	"math/bits"

	"demarc/gateway/packet/csum"
)

const (
	flagDF = 0x4000
	flagMF = 0x2000
)

// Atomic reports whether an IPv4 packet is neither a fragment nor may become one: its identification means nothing (RFC 6864 section 4).
func Atomic(p *Packet) bool {
	h := p.ip4()
	return h != nil && Atomic4(h)
}

// Atomic4 is Atomic of a packet with that header.
func Atomic4(h *[ip4Len]byte) bool { return le16(h[6:8])&^0x80 == flagDF>>8 } // in the order of memory

// SetID gives an IPv4 packet another identification.
func SetID(p *Packet, id uint16) {
	if h := p.ip4(); h != nil {
		id = bits.ReverseBytes16(id)
		put16(h[10:12], csum.Update16(le16(h[10:12]), le16(h[4:6]), id))
		put16(h[4:6], id)
	}
}

// Cut writes into dst, as a frame, the piece of an IPv4 packet that begins at byte from of its payload and is at most mtu IP bytes long,
// and returns the frame's length and where the next piece begins; next is 0 after the last one, n is 0 when nothing fits. RFC 791 section
// 3.2: whole eighths but for the last piece; of the options the first piece has all, the others those that are marked to be copied. A
// packet that is a fragment itself goes on from its own offset. dst must not be part of p's buffer.
func Cut(p *Packet, from, mtu int, dst []byte) (n, next int) {
	f := p.Buf[p.Off : p.Off+p.Len]
	if p.Key.Family != 4 || p.L3End > len(f) || p.L4-p.L3 < ip4Len {
		return 0, 0
	}
	payload := f[p.L3+int(f[p.L3]&15)*4 : p.L3End]
	if from < 0 || from >= len(payload) || from%8 != 0 || len(dst) < p.L3+60+8 {
		return 0, 0
	}
	copy(dst, f[:p.L3+ip4Len])
	h := dst[p.L3:]
	head := ip4Len + copyOptions(h[ip4Len:60], f[p.L3+ip4Len:p.L3+int(f[p.L3]&15)*4], from == 0)
	size := len(payload) - from
	more := be16(f[p.L3+6:])&flagMF != 0
	if room := min(mtu, len(h)) - head; size > room {
		size, more = room&^7, true
	}
	if size <= 0 {
		return 0, 0
	}
	copy(h[head:], payload[from:from+size])
	h[0] = 0x40 | byte(head/4)
	binary.BigEndian.PutUint16(h[2:4], uint16(head+size))
	fo := be16(h[6:8])&^flagMF + uint16(from/8)
	if more {
		fo |= flagMF
	}
	binary.BigEndian.PutUint16(h[6:8], fo)
	put16(h[10:12], 0)
	binary.BigEndian.PutUint16(h[10:12], csum.Checksum(csum.Sum(0, h[:head])))
	if next = from + size; next == len(payload) {
		next = 0
	}
	return p.L3 + head + size, next
}

// copyOptions writes options, or those with the copied flag alone, padded to whole words, and returns how many bytes they are.
func copyOptions(dst, o []byte, all bool) (n int) {
	if all {
		return copy(dst, o)
	}
	for len(o) > 0 && o[0] != optEnd {
		size := 1
		if o[0] != optNop {
			if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
				break
			}
			size = int(o[1])
			if o[0]&0x80 != 0 {
				n += copy(dst[n:], o[:size])
			}
		}
		o = o[size:]
	}
	for n%4 != 0 {
		dst[n] = optEnd
		n++
	}
	return n
}
