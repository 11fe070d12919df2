package trace

import (
	"demarc/gateway/flow"
	"demarc/gateway/verdict"
)

// Destination says what stands behind a public address that the backbone sends to.
type Destination uint8

// The kinds.
const (
	NoDestination Destination = iota // was not asked
	Unused                           // nothing
	Static                           // 1:1
	PortForward                      // a forwarded port
	Mapped                           // a dynamic mapping
	Filtered                         // a dynamic mapping, but not for this far end
)

// Journey is the way of one packet through the stages. It is filled in only while somebody looks.
//
// It has many fields because it is one record of every stage.
type Journey struct {
	Ns      uint64 // CLOCK_BOOTTIME
	In, Out flow.Key
	Quoted  flow.Key // of an ICMP error: whom the quoted packet was from and to, as received
	Worker  uint16
	Port    uint16
	VLAN    uint16
	Iface   uint16 // ingress; 0 = none
	IPLen   uint16
	TTL     uint8
	TCP     uint8 // flags
	Looped  bool
	Handed  bool
	Quotes  bool // it is an ICMP error
	Frag    bool

	// The session that there was before the packet, and the one that there is after it.
	Found, Made, Stale bool // Stale: it was judged under an older policy
	Back               bool // the packet goes in the direction of answers
	Slot, Gen          uint32
	State, Next        uint8 // TCP, before and after
	Replied            bool
	Mapping            uint32 // of the session, or what conntrack calls NoMapping

	// What the ACL said, about a conversation that is opened now; of one that is there, what it said then.
	Asked, Allow, ByMapping bool
	Rule                    flow.RuleID
	RuleDir                 uint8

	// Where a conversation that is opened now goes; NoHop where that was not asked.
	Hop uint16

	Dest     Destination
	Inside   flow.Addr // with Dest: the inside host and port
	InPort   uint16
	NAT      bool
	OutPort  uint16
	OutIface uint16
	NextHop  flow.Addr
	Voice    bool

	Verdict verdict.Verdict
	Home    uint16
	Reason  verdict.Reason
	Tenant  flow.TenantID
	Dir     uint8
	Answer  bool // what leaves is not the packet but an answer of the gateway's own; Reason says to what, verdict.Pass for a ping
}

// NoHop stands where no next hop was looked for, or none was found.
const NoHop = 0xffff

// Ruled notes what the ACL said.
func (j *Journey) Ruled(dir uint8, rule flow.RuleID, allow, byMapping bool) {
	j.Asked, j.RuleDir, j.Rule, j.Allow, j.ByMapping = true, dir, rule, allow, byMapping
}

// Behind notes what stands behind a public address.
func (j *Journey) Behind(d Destination, inside flow.Addr, port uint16) {
	j.Dest, j.Inside, j.InPort = d, inside, port
}

// Dropped reports whether that was the packet's end; also where the gateway told its sender so.
func (j *Journey) Dropped() bool {
	return j.Verdict == verdict.Drop || j.Answer && j.Reason != verdict.Pass
}
