package nat

import "demarc/gateway/flow"

// AddrID is a public address of this node; it is stable while the process runs.
type AddrID uint16

// NoAddr is no address.
const NoAddr = AddrID(0xffff)

// Class is a port space of its own: the same port number may be in use once in each.
type Class uint8

// The classes. An ICMP query's identifier is its port.
const (
	TCP Class = iota
	UDP
	ICMP
	numClasses
)

// ClassOf is the class of an IPv4 protocol, false where it has no ports to translate.
func ClassOf(proto uint8) (Class, bool) {
	switch proto {
	case flow.TCP:
		return TCP, true
	case flow.UDP:
		return UDP, true
	case flow.ICMP:
		return ICMP, true
	}
	return 0, false
}

// Request asks for a mapping.
type Request struct {
	Tenant  flow.TenantID
	Class   Class
	PerHost bool // a block of ports belongs to one inside host, else to the worker for this tenant
	Inside  [4]byte
	Port    uint16   // inside port or ICMP identifier
	Pool    []AddrID // the public addresses that the tenant may use now
	Hold    uint32   // ticks that the public port rests after its mapping has ended
}
