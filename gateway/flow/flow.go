package flow

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// TenantID names a tenant on this node; it is stable while the process runs, also across policies. As a zone, 0 is the backbone.
type TenantID uint16

// Backbone is the zone of the public side: no tenant has this id.
const Backbone TenantID = 0

// RuleID is the position of a rule in its tenant's list for one direction, from 0. NoRule means that the default decided.
type RuleID uint32

// NoRule stands where no written rule matched.
const NoRule RuleID = 1<<32 - 1

// IP protocol numbers that the gateway tells apart (IANA).
const (
	ICMP   = 1
	TCP    = 6
	UDP    = 17
	ICMPv6 = 58
)

// Addr is an IPv4 address in its first 4 bytes (the rest zero) or an IPv6 address, in network byte order. The family stands in Key.
type Addr [16]byte

// AddrFrom converts a; an IPv4-mapped address counts as IPv4.
func AddrFrom(a netip.Addr) (out Addr) {
	if a = a.Unmap(); a.Is4() {
		b := a.As4()
		copy(out[:], b[:])
		return out
	}
	return a.As16()
}

// Netip converts back; family is 4 or 6.
func (a Addr) Netip(family uint8) netip.Addr {
	if family == 4 {
		return netip.AddrFrom4([4]byte(a[:4]))
	}
	return netip.AddrFrom16(a)
}

// V4 is the address as a number, most significant byte first (192.0.2.1 = 0xC0000201). Valid for IPv4 only.
func (a *Addr) V4() uint32 { return binary.BigEndian.Uint32(a[:4]) }

// SetV4 makes a the IPv4 address with number v.
func (a *Addr) SetV4(v uint32) {
	*a = Addr{}
	binary.BigEndian.PutUint32(a[:4], v)
}

// Key identifies one direction of a conversation as seen where it enters.
//
// Ports are host byte order. For an ICMP or ICMPv6 query (echo, timestamp) the inside of the conversation is
// written with ports so that a reply is the exact reverse of its request: a request has SPort = identifier and
// DPort = the request's type; a reply has SPort = the request's type and DPort = identifier. For other protocols
// without ports both are 0.
type Key struct {
	Src, Dst     Addr
	SPort, DPort uint16
	Proto        uint8
	Family       uint8    // 4 or 6
	Zone         TenantID // the side that it comes from: Backbone or a tenant
}

// Reverse is the key of the answer, entering from zone.
func (k *Key) Reverse(zone TenantID) Key {
	return Key{Src: k.Dst, Dst: k.Src, SPort: k.DPort, DPort: k.SPort, Proto: k.Proto, Family: k.Family, Zone: zone}
}

const (
	m1 = 0xa0761d6478bd642f
	m2 = 0xe7037ed1a0b428db
	m3 = 0x8ebc6af09c88c6e3
	m4 = 0x589965cc75374cc3
)

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// Hash is a keyed hash of all of k: not cryptographic, but an attacker who does not know seed cannot aim for one bucket.
func (k *Key) Hash(seed uint64) uint64 {
	a := binary.LittleEndian.Uint64(k.Src[0:8])
	c := binary.LittleEndian.Uint64(k.Dst[0:8])
	meta := uint64(k.SPort) | uint64(k.DPort)<<16 | uint64(k.Proto)<<32 | uint64(k.Family)<<40 | uint64(k.Zone)<<48
	h := mix(a^m1^seed, c^m2^bits.RotateLeft64(seed, 23))
	if k.Family == 6 {
		b := binary.LittleEndian.Uint64(k.Src[8:16])
		d := binary.LittleEndian.Uint64(k.Dst[8:16])
		h ^= mix(b^m3^seed, d^m4^h)
	}
	return mix(h^m4, meta^m3^seed)
}

// HomeHash is the hash that says which worker an inside host belongs to: of tenant and inside address, nothing else.
func HomeHash(tenant TenantID, family uint8, a *Addr, seed uint64) uint64 {
	lo := binary.LittleEndian.Uint64(a[0:8])
	hi := binary.LittleEndian.Uint64(a[8:16])
	return mix(mix(lo^m1^seed, hi^m2)^m3, uint64(tenant)|uint64(family)<<16|seed<<32)
}

// Home maps a hash to one of n workers without a division.
func Home(h uint64, n int) int {
	hi, _ := bits.Mul64(h, uint64(n))
	return int(hi)
}
