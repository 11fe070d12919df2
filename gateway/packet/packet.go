package packet

import (
	"encoding/binary"

	"demarc/gateway/flow"
)

// Flags say what Parse found beside the plain fields.
type Flags uint16

// The flags.
const (
	FlagARP       Flags = 1 << iota // ARP frame, IPv4 over Ethernet, lengths checked
	FlagND                          // ICMPv6 133..137; hop limit, code, lengths and options checked (RFC 4861 sections 6.1, 7.1, 8.1)
	FlagFragFirst                   // first fragment of several: the transport header is here, the payload is not complete
	FlagFragLater                   // later fragment: no transport header, ports are 0
	FlagOptions                     // IPv4 options present and well formed
	FlagICMPError                   // ICMP or ICMPv6 error message, redirect included
	FlagICMPQuery                   // echo or timestamp, request or reply: Key's ports are as flow.Key says
	FlagICMPReply                   // with FlagICMPQuery: it is the reply
	FlagMcastMAC                    // the destination MAC is a group address
)

// Extra says which options an IPv4 header has, or which extension headers follow an IPv6 header: what a policy may want to keep out. Source routes
// and routing header 0 are none of them, because Parse refuses those, nor are fragment headers.
type Extra uint8

// What an IP header may carry beside the plain fields.
const (
	ExtraRecordRoute Extra = 1 << iota
	ExtraTimestamp
	ExtraRouterAlert
	ExtraSecurity // labels: basic and extended security, CIPSO
	ExtraOther    // any other IPv4 option but end and no-operation
	ExtraHopByHop
	ExtraDestination
	ExtraRouting
)

// EtherTypes (IEEE 802 numbers, IANA).
const (
	EtherIPv4 = 0x0800
	EtherARP  = 0x0806
	EtherVLAN = 0x8100
	EtherIPv6 = 0x86dd
)

// TCP header flags as they stand in Packet.TCPFlags (RFC 9293 section 3.1).
const (
	TCPFin = 1 << iota
	TCPSyn
	TCPRst
	TCPPsh
	TCPAck
	TCPUrg
	TCPEce
	TCPCwr
)

// ICMP and ICMPv6 types that the gateway tells apart.
const (
	ICMPEchoReply        = 0
	ICMPUnreachable      = 3
	ICMPSourceQuench     = 4
	ICMPRedirect         = 5
	ICMPEcho             = 8
	ICMPTimeExceeded     = 11
	ICMPParameterProblem = 12
	ICMPTimestamp        = 13
	ICMPTimestampReply   = 14

	ICMP6Unreachable      = 1
	ICMP6TooBig           = 2
	ICMP6TimeExceeded     = 3
	ICMP6ParameterProblem = 4
	ICMP6Echo             = 128
	ICMP6EchoReply        = 129
	ICMP6RouterSolicit    = 133
	ICMP6RouterAdvert     = 134
	ICMP6NeighborSolicit  = 135
	ICMP6NeighborAdvert   = 136
	ICMP6Redirect         = 137
)

// Packet is one frame of a burst and what Parse found in it. No field outlives the burst.
//
// It has many fields because it is the one record that every stage reads; splitting it would cost each stage a second cache line.
type Packet struct {
	Buf      []byte // the whole chunk, with headroom before Off; borrowed
	Off, Len int    // the frame is Buf[Off:Off+Len]

	EtherType uint16 // of the payload: behind the tag if there is one
	VLAN      uint16 // VLAN id; 0 = untagged, or tagged with priority only
	L2Len     uint8  // bytes of Ethernet header, 14 or 18

	// Offsets in the frame (relative to Off). L3End comes from the IP length: Ethernet padding lies beyond it.
	// L4 is the transport header; in a later fragment the first payload byte.
	L3, L4, L3End int

	Flags    Flags
	TTL, TOS uint8 // IPv6: hop limit, traffic class
	TCPFlags uint8
	ICMPType uint8 // ICMP and ICMPv6, valid unless a later fragment
	ICMPCode uint8
	Extra    Extra

	Key flow.Key // Zone is left 0: the pipeline sets it

	Seq, Ack   uint32 // TCP
	Window     uint16 // TCP, unscaled
	PayloadLen uint16 // TCP: payload bytes in this packet

	// Valid with FlagFragFirst or FlagFragLater. Off and Len are bytes of the part that was fragmented: of IPv6 it begins behind the
	// fragment header.
	FragID           uint32
	FragOff, FragLen uint16
	FragMore         bool
}

// Frame is the frame's bytes, valid as long as Buf.
func (p *Packet) Frame() []byte { return p.Buf[p.Off : p.Off+p.Len] }

func be16(b []byte) uint16 { return binary.BigEndian.Uint16(b) }
func be32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }
