package replica

import (
	"encoding/binary"
	"math/bits"

	"demarc/gateway/flow"
)

// Kind says what a record is about. Numbers are a promise between versions.
type Kind uint8

// The kinds. One of Critical and above must be understood: who does not know it has no whole copy of that group, and says so. Others are skipped.
const (
	KindSession Kind = iota + 1
	KindTouch        // a session lives on: what is left of its time, and what it counted
	KindGone         // what the sender had in a slot is over
	KindBlock        // a block of public ports
	KindRate         // a rate word
	KindCount        // a counter of a tenant
	KindName         // a number of the stream stands for a name from here on
	KindBegin        // everything of a group follows
	KindEnd          // that was everything, with the digest of it
	KindDigest       // the digest of all that was written so far
	numKinds

	Critical Kind = 0x80
)

// Record is one thing that the owner has, in words that hold on every node but for Tenant, Hop, and what Local says: those are local
// numbers of whoever holds the Record, and numbers of the stream on the wire.
type Record struct {
	Kind  Kind
	Group uint8  // 0 = nobody's: not copied
	Slot  uint32 // where the sender keeps it, and Gen, which changes whenever the slot is used anew. Together: the serial
	Gen   uint32

	Tenant   uint16
	Revision uint64 // stands for the policy that it was judged under, the same on every node: snapshot.View.Text; 0 = none that another node might have

	Session Session // KindSession; of KindTouch only what changes
	Block   Block
	Rate    Rate
	Count   Count
}

// Session is one conversation with its NAT binding. Ports and addresses are as in conntrack.Session.
type Session struct {
	OrigSrc, OrigDst     flow.Addr
	XlatSrc, XlatDst     [4]byte
	OrigSPort, OrigDPort uint16
	XlatSPort, XlatDPort uint16
	Proto                uint8
	State                uint8 // of TCP, numbered as conntrack does
	Class                uint8
	Flags                Flags
	Rule                 flow.RuleID
	Hop                  [2]uint16 // per direction; NoName: none
	Left                 uint32    // ms until it would end if no packet came
	Scale                [2]uint8
	End, Limit           [2]uint32
	Bytes                [2]uint64
	Packets              [2]uint32

	Hold   uint32  // ms that its public port rests afterwards
	Remote [4]byte // far address that its mapping was made for; zero: any
}

// Flags of a session. Numbers are a promise between versions.
type Flags uint16

// The flags.
const (
	FlagV6           Flags = 1 << iota
	FlagFromBackbone       // the first packet came from the backbone
	FlagToBackbone         // it left to the backbone
	FlagNAT                // translated
	FlagReplied            // a packet of the reply direction was seen
	FlagPermit             // as conntrack.FlagPermit
	FlagUnanswered         // who began it has not yet shown that it hears the other end
	FlagMapped             // it has a mapping of the NAT
	FlagAside              // new sessions of the inside port do not use that mapping
	FlagPerHost            // its block of ports is of one inside host

	binding = FlagV6 | FlagFromBackbone | FlagToBackbone | FlagNAT | FlagMapped
)

// Block is 64 public ports of one address and class.
type Block struct {
	Addr   [4]byte
	Class  uint8
	Number uint16
	Inside [4]byte // whose it is, where blocks are per host
	Held   uint64  // ports that rest: no mapping is made of them before Rest is over. On a stream all or none
	Rest   uint32  // ms; where none is Held, what they would have to rest if this were the owner's last word
}

// Rate is how far a rate word is ahead of now.
type Rate struct {
	Index uint16 // which of the tenant's
	Ahead uint64 // ns
}

// Count is a counter of a tenant.
type Count struct {
	Index uint16
	Value uint64
}

// NoName stands where nothing is named.
const NoName = 0xffff

// Reset makes r empty, to be filled.
func (r *Record) Reset() { *r = Record{Session: Session{Hop: [2]uint16{NoName, NoName}}} }

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

// Hash is a keyed hash of the record's binding part: what must not differ between owner and standby. tenant is HashName of its tenant.
// It knows no slot, generation or local number, so tables may be compared that were filled in any order.
func (r *Record) Hash(key, tenant uint64) uint64 {
	le := binary.LittleEndian
	h := mix(key^m1^uint64(r.Kind), tenant^m2)
	switch r.Kind {
	case KindSession:
		s := &r.Session
		h ^= mix(le.Uint64(s.OrigSrc[:])^m1^key, le.Uint64(s.OrigDst[:])^m2^h)
		if s.Flags&FlagV6 != 0 {
			h ^= mix(le.Uint64(s.OrigSrc[8:])^m3^key, le.Uint64(s.OrigDst[8:])^m4^h)
		}
		h ^= mix(uint64(le.Uint32(s.XlatSrc[:]))<<32^uint64(le.Uint32(s.XlatDst[:]))^m3^key, uint64(le.Uint32(s.Remote[:]))^m4^h)
		ports := uint64(s.OrigSPort)<<48 | uint64(s.OrigDPort)<<32 | uint64(s.XlatSPort)<<16 | uint64(s.XlatDPort)
		return mix(h^m4, mix(ports^m1, uint64(s.Proto)<<16^uint64(s.Flags&binding)^m3^key))
	case KindBlock:
		b := &r.Block
		at := uint64(le.Uint32(b.Addr[:]))<<32 | uint64(b.Class)<<16 | uint64(b.Number)
		return mix(h^m4, mix(at^m1, uint64(le.Uint32(b.Inside[:]))^m3^key))
	}
	return mix(h^m4, uint64(r.Rate.Index)<<16^uint64(r.Count.Index)^m3^key)
}

// HashName is the part of a hash that stands for a name.
func HashName(key uint64, kind NameKind, name string) uint64 {
	h := key ^ m1 ^ uint64(kind)
	for i := range len(name) {
		h = mix(h^uint64(name[i]), m2)
	}
	return mix(h^uint64(len(name)), m3)
}

// NameKind is what a name is of.
type NameKind uint8

// The kinds of names.
const (
	NameTenant NameKind = iota
	NameHop
	numNames
)
