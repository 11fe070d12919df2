package acl

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"
)

// Family is the IP version that a key belongs to.
type Family uint8

// The two families. A key of any other matches no rule.
const (
	V4 Family = 4
	V6 Family = 6
)

// MaxBoxesPerRule bounds what one rule may expand to: the sum over both families of source intervals times
// destination intervals times services, after overlapping and adjacent prefixes and ranges are joined.
const MaxBoxesPerRule = 1 << 16

// MaxBoxes bounds what a whole list may expand to.
const MaxBoxes = 1 << 20

// Rule is one line of a list. A side matches when any of its prefixes or ranges holds the address, or when it names neither.
// A side that names addresses of one family only does not match keys of the other.
type Rule struct {
	From, To             []netip.Prefix  // host bits beyond the length are ignored
	FromRanges, ToRanges [][2]netip.Addr // first and last address, both inclusive, of one family
	Services             []Service       // empty = any
	Never                bool            // matches nothing, whatever the fields before say: what the rule named has come to nothing
	Allow                bool
	ID                   uint32 // the caller's own; Lookup never looks at it
}

// RuleError is why Compile refuses a list: which rule of it, counted from 0, and what is wrong with that.
type RuleError struct {
	Index int
	Err   error
}

// Error names the rule by its place.
func (e *RuleError) Error() string { return fmt.Sprintf("rule %d: %v", e.Index, e.Err) }

// Unwrap is what is wrong.
func (e *RuleError) Unwrap() error { return e.Err }

// Service is a protocol with its port ranges, both ends inclusive, taken literally: zero ports match port 0 alone.
// For ICMP and ICMPv6 DPort is type<<8|code and SPort is 0..65535. With AnyProto every protocol and port
// matches; Proto must then be 0 and the ports all zero or 0..65535, so that a written port is never ignored.
type Service struct {
	Proto            uint8
	AnyProto         bool
	SPortLo, SPortHi uint16
	DPortLo, DPortHi uint16
}

// Key is what a lookup asks about. Ports are host byte order; for ICMP they are as in Service.
type Key struct {
	Src, Dst     [16]byte // IPv4 in the first 4 bytes; the rest is not looked at
	SPort, DPort uint16
	Proto        uint8
	Family       uint8 // 4 or 6
}

// Match is the answer. Index is the position of the deciding rule in the list given to Compile, valid when Found.
type Match struct {
	Index uint32
	Found bool
	Allow bool
}

// addr is an address as a number; IPv4 lies in the low 32 bits.
type addr struct{ hi, lo uint64 }

func (a addr) compare(b addr) int {
	return cmp.Or(cmp.Compare(a.hi, b.hi), cmp.Compare(a.lo, b.lo))
}

// next is a+1; callers see to it that a is not the last address.
func (a addr) next() addr {
	if a.lo++; a.lo == 0 {
		a.hi++
	}
	return a
}

func addrOf(a netip.Addr) addr {
	if a.Is4() {
		b := a.As4()
		return addr{lo: uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return addr{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// lastAddr is the highest address of a family.
func lastAddr(f Family) addr {
	if f == V4 {
		return addr{lo: math.MaxUint32}
	}
	return addr{math.MaxUint64, math.MaxUint64}
}

type interval struct{ lo, hi addr }

// lastOf is the last address of p.
func lastOf(p netip.Prefix) addr {
	a := addrOf(p.Masked().Addr())
	host := p.Addr().BitLen() - p.Bits()
	switch {
	case host >= 128:
		return addr{math.MaxUint64, math.MaxUint64}
	case host >= 64:
		return addr{a.hi | (1<<(host-64) - 1), math.MaxUint64}
	}
	return addr{a.hi, a.lo | (1<<host - 1)}
}

func checkAddr(a netip.Addr) error {
	switch {
	case !a.IsValid():
		return fmt.Errorf("the address is empty")
	case a.Is4In6():
		return fmt.Errorf("%v is an IPv4 address in IPv6 form; write %v", a, a.Unmap())
	case a.Zone() != "":
		return fmt.Errorf("%v has a zone; packets carry none", a)
	}
	return nil
}

func checkSide(side string, ps []netip.Prefix, rs [][2]netip.Addr) error {
	for _, p := range ps {
		if err := checkAddr(p.Addr()); err != nil {
			return fmt.Errorf("%s: %w", side, err)
		}
		if !p.IsValid() {
			return fmt.Errorf("%s: the prefix length of %v is not within 0..%d", side, p.Addr(), p.Addr().BitLen())
		}
	}
	for _, r := range rs {
		for _, a := range r {
			if err := checkAddr(a); err != nil {
				return fmt.Errorf("%s range: %w", side, err)
			}
		}
		if r[0].Is4() != r[1].Is4() {
			return fmt.Errorf("%s range %v-%v: the ends are of different families", side, r[0], r[1])
		}
		if r[1].Less(r[0]) {
			return fmt.Errorf("%s range %v-%v: the first address lies above the last", side, r[0], r[1])
		}
	}
	return nil
}

func (s *Service) check() error {
	full := func(lo, hi uint16) bool { return lo == 0 && hi == math.MaxUint16 }
	none := s.SPortLo|s.SPortHi|s.DPortLo|s.DPortHi == 0
	switch {
	case s.SPortLo > s.SPortHi:
		return fmt.Errorf("source ports %d-%d: the first lies above the last", s.SPortLo, s.SPortHi)
	case s.DPortLo > s.DPortHi:
		return fmt.Errorf("destination ports %d-%d: the first lies above the last", s.DPortLo, s.DPortHi)
	case s.AnyProto && s.Proto != 0:
		return fmt.Errorf("any protocol, and protocol %d: only one of them can be meant", s.Proto)
	case s.AnyProto && !none && !(full(s.SPortLo, s.SPortHi) && full(s.DPortLo, s.DPortHi)):
		return fmt.Errorf("ports together with any protocol: name the protocols that have them")
	}
	return nil
}

func (r *Rule) check() error {
	if err := checkSide("from", r.From, r.FromRanges); err != nil {
		return err
	}
	if err := checkSide("to", r.To, r.ToRanges); err != nil {
		return err
	}
	for i := range r.Services {
		if err := r.Services[i].check(); err != nil {
			return fmt.Errorf("service %d: %w", i, err)
		}
	}
	return nil
}

// intervals is one side of a rule in one family: sorted, disjoint, with a gap between any two. Nil when the side matches nothing there.
func intervals(f Family, ps []netip.Prefix, rs [][2]netip.Addr) []interval {
	if len(ps)+len(rs) == 0 {
		return []interval{{addr{}, lastAddr(f)}}
	}
	var out []interval
	for _, p := range ps {
		if p.Addr().Is4() == (f == V4) {
			out = append(out, interval{addrOf(p.Masked().Addr()), lastOf(p)})
		}
	}
	for _, r := range rs {
		if r[0].Is4() == (f == V4) {
			out = append(out, interval{addrOf(r[0]), addrOf(r[1])})
		}
	}
	if len(out) < 2 {
		return out
	}
	slices.SortFunc(out, func(a, b interval) int { return a.lo.compare(b.lo) })
	last, n := lastAddr(f), 1
	for _, iv := range out[1:] {
		top := &out[n-1]
		if top.hi == last || iv.lo.compare(top.hi.next()) <= 0 {
			if iv.hi.compare(top.hi) > 0 {
				top.hi = iv.hi
			}
			continue
		}
		out[n] = iv
		n++
	}
	return out[:n]
}

// service is a Service as three ranges.
type service struct {
	sLo, sHi, dLo, dHi uint16
	pLo, pHi           uint8
}

var anyService = service{sHi: math.MaxUint16, dHi: math.MaxUint16, pHi: math.MaxUint8}

func (s *service) covers(o *service) bool {
	return s.sLo <= o.sLo && o.sHi <= s.sHi && s.dLo <= o.dLo && o.dHi <= s.dHi && s.pLo <= o.pLo && o.pHi <= s.pHi
}

// maxServiceScan bounds the quadratic search for services that another one of the same rule covers.
const maxServiceScan = 256

func services(in []Service) []service {
	if len(in) == 0 {
		return []service{anyService}
	}
	out := make([]service, 0, len(in))
next:
	for _, s := range in {
		v := service{s.SPortLo, s.SPortHi, s.DPortLo, s.DPortHi, s.Proto, s.Proto}
		if s.AnyProto {
			return []service{anyService}
		}
		for i := range out[:min(len(out), maxServiceScan)] {
			if out[i].covers(&v) {
				continue next
			}
		}
		out = append(out, v)
	}
	return out
}
