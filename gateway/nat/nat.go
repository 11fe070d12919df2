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

// Mode says on what a mapping, or who may answer on one, depends (RFC 4787 sections 4.1 and 5).
type Mode uint8

// The modes.
const (
	EndpointIndependent Mode = iota
	AddressDependent
	AddressAndPortDependent
)

// Pooling says which public address of several an inside host gets (RFC 4787 section 4.1, RFC 7857 section 4).
type Pooling uint8

// The poolings. An inside host without mappings gets an address by its hash, or the next one that has a port.
const (
	Paired     Pooling = iota // it keeps that while it has mappings, and gets no other port
	PairedSoft                // it keeps that while it has mappings, and gets ports of others when there is none left
	Arbitrary                 // each mapping may have another
)

// Request asks for a mapping.
type Request struct {
	Tenant  flow.TenantID
	Class   Class
	Mapping Mode
	Pooling Pooling
	PerHost bool // a block of ports belongs to one inside host, else to the worker for this tenant
	Inside  [4]byte
	Port    uint16   // inside port or ICMP identifier
	Remote  [4]byte  // the far address; not read where the mapping is endpoint-independent
	Pool    []AddrID // the public addresses that the tenant may use now
	First   uint64   // a hash of the inside host, the same at every worker: where in the pool to begin
	Hold    uint32   // ticks that the public port rests after its mapping has ended
}

// remote is the far address as far as the mapping depends on it.
func (r *Request) remote() (a [4]byte) {
	if r.Mapping != EndpointIndependent {
		a = r.Remote
	}
	return a
}
