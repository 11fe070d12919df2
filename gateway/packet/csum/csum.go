package csum

import (
	"encoding/binary"
	"math/bits"
)

// Sum adds the bytes of b to the partial sum acc. An odd last byte counts as if a zero followed (RFC 1071 section 1).
func Sum(acc uint64, b []byte) uint64 {
	var c uint64
	for len(b) >= 32 {
		acc, c = bits.Add64(acc, binary.BigEndian.Uint64(b[0:8]), 0)
		acc, c = bits.Add64(acc, binary.BigEndian.Uint64(b[8:16]), c)
		acc, c = bits.Add64(acc, binary.BigEndian.Uint64(b[16:24]), c)
		acc, c = bits.Add64(acc, binary.BigEndian.Uint64(b[24:32]), c)
		acc += c // cannot wrap again: a sum that carried ends below the largest value
		b = b[32:]
	}
	for len(b) >= 8 {
		acc, c = bits.Add64(acc, binary.BigEndian.Uint64(b[0:8]), 0)
		acc += c
		b = b[8:]
	}
	if len(b) >= 4 {
		acc, c = bits.Add64(acc, uint64(binary.BigEndian.Uint32(b[0:4])), 0)
		acc += c
		b = b[4:]
	}
	if len(b) >= 2 {
		acc, c = bits.Add64(acc, uint64(binary.BigEndian.Uint16(b[0:2])), 0)
		acc += c
		b = b[2:]
	}
	if len(b) == 1 {
		acc, c = bits.Add64(acc, uint64(b[0])<<8, 0)
		acc += c
	}
	return acc
}

// Fold brings a partial sum to 16 bits with end-around carry. It is not complemented; a packet whose sum, checksum
// field included, folds to 0xffff is intact.
func Fold(acc uint64) uint16 {
	// Added to itself with halves exchanged, the upper half is the sum of both plus the carry out of the lower: end-around carry in one step.
	acc += bits.RotateLeft64(acc, 32)
	w := uint32(acc >> 32)
	w += bits.RotateLeft32(w, 16)
	return uint16(w >> 16)
}

// Checksum is the value for a checksum field: the complement of the folded sum. The field itself must have been summed as zero.
func Checksum(acc uint64) uint16 { return ^Fold(acc) }

// NonZero replaces a computed zero by its other representation, because zero says "no checksum" in UDP (RFC 768).
func NonZero(c uint16) uint16 {
	if c == 0 {
		return 0xffff
	}
	return c
}

// Update16 is checksum field check after a 16-bit word at an even offset went from old to new (RFC 1624 eq. 3).
func Update16(check, old, new uint16) uint16 {
	return Apply(check, uint64(^old)+uint64(new))
}

// Update32 is Update16 for a 32-bit word.
func Update32(check uint16, old, new uint32) uint16 {
	return Apply(check, uint64(^old)+uint64(new))
}

// Apply is checksum field check after a change whose delta is the sum of the complements of all old words and of all new
// words. Both must be summed in the byte order that check was read in; the result is in that order too.
func Apply(check uint16, delta uint64) uint16 {
	return ^Fold(uint64(^check) + delta)
}

// Pseudo4 is the partial sum of the IPv4 pseudo header of TCP and UDP (RFC 9293 section 3.1); length counts the transport
// header and payload in bytes.
func Pseudo4(src, dst [4]byte, proto uint8, length int) uint64 {
	return uint64(binary.BigEndian.Uint32(src[:])) + uint64(binary.BigEndian.Uint32(dst[:])) + uint64(proto) + uint64(length)
}

// Pseudo6 is the partial sum of the IPv6 pseudo header of TCP, UDP and ICMPv6 (RFC 8200 section 8.1).
func Pseudo6(src, dst *[16]byte, proto uint8, length int) uint64 {
	return Sum(Sum(uint64(proto)+uint64(length), src[:]), dst[:])
}
