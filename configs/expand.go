package configs

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Service is what a rule matches of the layer above IP. A range of ports is inclusive; protocols without ports have 0..65535 in
// both. For ICMP and ICMPv6 the destination "port" is type<<8 | code and the source covers all.
type Service struct {
	Proto            uint8
	AnyProto         bool
	SPortLo, SPortHi uint16
	DPortLo, DPortHi uint16
}

// protocols are the names that stand for an IP protocol. sctp is matched as a whole: sessions of it have no ports here.
var protocols = map[string]uint8{"icmp": 1, "tcp": 6, "udp": 17, "gre": 47, "esp": 50, "ah": 51, "icmpv6": 58, "sctp": 132}

// icmpTypes and icmpv6Types are the names of messages (IANA registries).
var icmpTypes = map[string]uint8{
	"echo-reply": 0, "destination-unreachable": 3, "redirect": 5, "echo-request": 8, "router-advertisement": 9,
	"router-solicitation": 10, "time-exceeded": 11, "parameter-problem": 12, "timestamp-request": 13, "timestamp-reply": 14,
}

var icmpv6Types = map[string]uint8{
	"destination-unreachable": 1, "packet-too-big": 2, "time-exceeded": 3, "parameter-problem": 4, "echo-request": 128,
	"echo-reply": 129,
}

// ParseService reads one service that is not the name of an object: "any", "tcp", "tcp/443", "udp/10000-20000", "icmp",
// "icmp/echo-request", "icmp/8", "icmp/3/4" (type 3, code 4), the same with icmpv6, "gre", "esp", "ah", "sctp", "proto/47".
// The error reads on from the text: `is not a service: …`.
func ParseService(s string) (Service, error) {
	all := Service{SPortHi: 65535, DPortHi: 65535}
	if s == "any" {
		all.AnyProto = true
		return all, nil
	}
	name, rest, slash := strings.Cut(s, "/")
	if name == "proto" {
		n, err := number(rest, 255)
		if err != nil {
			return Service{}, errors.New(`is not a service: a protocol is "proto/0" to "proto/255"`)
		}
		all.Proto = uint8(n)
		return all, nil
	}
	proto, ok := protocols[name]
	if !ok {
		return Service{}, errors.New("is not a service: " + serviceHint(name, rest, slash))
	}
	all.Proto = proto
	if !slash {
		return all, nil
	}
	switch name {
	case "tcp", "udp":
		lo, hi, err := ports(name, rest)
		if err != nil {
			return Service{}, err
		}
		all.DPortLo, all.DPortHi = lo, hi
	case "icmp", "icmpv6":
		types := icmpTypes
		if name == "icmpv6" {
			types = icmpv6Types
		}
		typ, code, hasCode := strings.Cut(rest, "/")
		n, known := types[typ]
		if !known {
			v, err := number(typ, 255)
			if err != nil {
				if near := nearest(typ, sortedKeys(types)); near != "" {
					return Service{}, fmt.Errorf("is not a service: did you mean %s?", quote(name+"/"+near))
				}
				return Service{}, fmt.Errorf("is not a service: a type is a number or one of %s", strings.Join(sortedKeys(types), ", "))
			}
			n = uint8(v)
		}
		all.DPortLo, all.DPortHi = uint16(n)<<8, uint16(n)<<8|0xff
		if hasCode {
			c, err := number(code, 255)
			if err != nil {
				return Service{}, errors.New("is not a service: a code is a number up to 255")
			}
			all.DPortLo |= uint16(c)
			all.DPortHi = all.DPortLo
		}
	default:
		return Service{}, fmt.Errorf("is not a service: %s has no ports here: write %s", name, quote(name))
	}
	return all, nil
}

// serviceHint guesses at a misspelt protocol, keeping the port that follows it.
func serviceHint(name, rest string, slash bool) string {
	if n := nearest(name, append(sortedKeys(protocols), "proto", "any")); n != "" {
		if guess := n; slash {
			guess += "/" + rest
			if _, err := ParseService(guess); err == nil {
				return fmt.Sprintf("did you mean %s?", quote(guess))
			}
		} else if n != "proto" {
			return fmt.Sprintf("did you mean %s?", quote(guess))
		}
	}
	return `write "tcp/443", "udp/10000-20000", "icmp/echo-request", "any" or the name of a service object`
}

func number(s string, most int) (int, error) {
	if !digits(s) || len(s) > 1 && s[0] == '0' {
		return 0, strconv.ErrSyntax
	}
	n, err := strconv.Atoi(s)
	if err != nil || n > most {
		return 0, strconv.ErrRange
	}
	return n, nil
}

func ports(proto, s string) (lo, hi uint16, err error) {
	a, b, dash := strings.Cut(s, "-")
	first, err1 := number(a, 65535)
	last, err2 := first, err1
	if dash {
		last, err2 = number(b, 65535)
	}
	switch {
	case err1 != nil || err2 != nil:
		return 0, 0, errors.New(`is not a service: a port is a number up to 65535, a range is "1000-2000"`)
	case first > last:
		return 0, 0, fmt.Errorf("is an empty range: did you mean \"%s/%d-%d\"?", proto, last, first)
	case last == 0:
		return 0, 0, errors.New("is not a service: nobody uses port 0")
	}
	return uint16(first), uint16(last), nil
}

// host is one item of a rule's from or to: a prefix (an address is one of full length) or a range, whichever is set.
type host struct {
	prefix netip.Prefix
	lo, hi netip.Addr
}

var anywhere = []host{{prefix: netip.PrefixFrom(netip.IPv4Unspecified(), 0)}, {prefix: netip.PrefixFrom(netip.IPv6Unspecified(), 0)}}

// parseHost reads an address, a prefix, a range or "any". literal is false when s can only be the name of an object.
func parseHost(s string) (h []host, literal bool, err error) {
	if s == "any" {
		return anywhere, true, nil
	}
	if a, b, dash := strings.Cut(s, "-"); dash && looksLikeAddr(a) && looksLikeAddr(b) {
		lo, err1 := parseAddr(a)
		hi, err2 := parseAddr(b)
		switch {
		case err1 != nil || err2 != nil || lo.Is4() != hi.Is4():
			return nil, true, errors.New(`is not a range: write it as "192.0.2.1-192.0.2.9"`)
		case hi.Less(lo):
			return nil, true, fmt.Errorf("is an empty range: did you mean %s?", quote(b+"-"+a))
		}
		return []host{{lo: lo, hi: hi}}, true, nil
	}
	if !looksLikeAddr(s) {
		return nil, false, nil
	}
	if strings.Contains(s, "/") {
		p, err := parsePrefix(s)
		if err != nil {
			return nil, true, err
		}
		if p != p.Masked() {
			return nil, true, hostBits(p)
		}
		return []host{{prefix: p}}, true, nil
	}
	a, err := parseAddr(s)
	if err != nil {
		return nil, true, err
	}
	return []host{{prefix: netip.PrefixFrom(a, a.BitLen())}}, true, nil
}

func hostBits(p netip.Prefix) error {
	return fmt.Errorf("has bits beyond its length: did you mean %s?", quote(p.Masked().String()))
}

// looksLikeAddr tells what was meant as an address from the name of an object: names may not look like this.
func looksLikeAddr(s string) bool {
	if strings.Contains(s, ":") {
		return true
	}
	letters := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' && r != '/' }) >= 0
	return !letters && strings.ContainsAny(s, "./")
}

// scope is where names are looked up: the tenant's own objects hide the shared ones; shared objects see only each other.
type scope struct{ own, shared map[string][]string }

type seen struct {
	own  bool
	name string
}

// walk calls leaf for every item that is not a name, each object once however often it is named. A loop is an error.
// sound, if not nil, is what earlier walks found to be in order: it is not entered again.
func (s scope) walk(items []string, isLeaf func(string) (bool, error), what string, sound map[seen]bool) error {
	const (
		open = 1
		done = 2
	)
	state := map[seen]int{}
	var trail []string // the objects that are open, outermost first
	var visit func(items []string, own bool) error
	visit = func(items []string, own bool) error {
		for _, item := range items {
			leaf, err := isLeaf(item)
			if err != nil {
				return fmt.Errorf("%s %w", quote(item), err)
			}
			if leaf {
				continue
			}
			key := seen{own: own, name: item}
			list, ok := s.own[item]
			if !own || !ok {
				key.own = false
				list, ok = s.shared[item]
			}
			if !ok {
				return fmt.Errorf("%s is not %s", quote(item), what)
			}
			if state[key] == open {
				return fmt.Errorf("%s names itself: %s", quote(item), cut(strings.Join(append(trail, item), " -> ")))
			}
			if state[key] == done || sound[key] {
				continue
			}
			state[key] = open
			trail = append(trail, item)
			if err := visit(list, key.own); err != nil {
				return err
			}
			trail = trail[:len(trail)-1]
			state[key] = done
			if sound != nil {
				sound[key] = true
			}
		}
		return nil
	}
	return visit(items, true)
}

func (p *Policy) hostScope(t *Tenant) scope {
	s := scope{shared: p.Objects.Hosts}
	if t != nil {
		s.own = t.Objects.Hosts
	}
	return s
}

func (p *Policy) serviceScope(t *Tenant) scope {
	s := scope{shared: p.Objects.Services}
	if t != nil {
		s.own = t.Objects.Services
	}
	return s
}

// Hosts resolves the items of a rule's from or to, names of objects recursively: first the tenant's own, then the shared ones (a
// nil tenant sees only those). "any" is 0.0.0.0/0 and ::/0. Nothing named gives nothing, which in a rule means all.
func (p *Policy) Hosts(t *Tenant, names []string) (prefixes []netip.Prefix, ranges [][2]netip.Addr, err error) {
	err = p.hostScope(t).walk(names, func(item string) (bool, error) {
		hosts, literal, err := parseHost(item)
		for _, h := range hosts {
			if h.prefix.IsValid() {
				prefixes = append(prefixes, h.prefix)
			} else {
				ranges = append(ranges, [2]netip.Addr{h.lo, h.hi})
			}
		}
		return literal, err
	}, "an address or a host object", nil)
	if err != nil {
		return nil, nil, err
	}
	return prefixes, ranges, nil
}

// Services is Hosts for the services of a rule. The name of an object goes before a protocol of the same name; such names are
// refused by the decoder.
func (p *Policy) Services(t *Tenant, names []string) (out []Service, err error) {
	s := p.serviceScope(t)
	err = s.walk(names, func(item string) (bool, error) {
		if s.named(item) {
			return false, nil
		}
		v, err := ParseService(item)
		if err != nil {
			return true, err
		}
		out = append(out, v)
		return true, nil
	}, "a service or a service object", nil)
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (s scope) names() []string { return append(sortedKeys(s.own), sortedKeys(s.shared)...) }

func (s scope) named(item string) bool {
	_, own := s.own[item]
	_, shared := s.shared[item]
	return own || shared
}

// MaxPool bounds the public addresses of one policy: a node has places for so many.
const MaxPool = 4096

// addrRange is one item of a pool, inclusive.
type addrRange struct{ lo, hi netip.Addr }

func (r addrRange) count() uint64 { return uint64(v4(r.hi)) - uint64(v4(r.lo)) + 1 }

func v4(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

// parsePool reads one item of a pool. The error reads on from the text.
func parsePool(s string) (addrRange, error) {
	hosts, literal, err := parseHost(s)
	if err != nil {
		return addrRange{}, err
	}
	if !literal || s == "any" {
		return addrRange{}, errors.New(`is not an address: write "192.0.2.1", "192.0.2.8/30" or "192.0.2.1-192.0.2.9"`)
	}
	r := addrRange{hosts[0].lo, hosts[0].hi}
	if p := hosts[0].prefix; p.IsValid() {
		r = addrRange{p.Addr(), lastAddr(p)}
	}
	if !r.lo.Is4() {
		return addrRange{}, errors.New("is IPv6, which is never translated: only IPv4 addresses")
	}
	if err := publicAddr(r.lo); err != nil {
		return addrRange{}, err
	}
	if err := publicAddr(r.hi); err != nil {
		return addrRange{}, err
	}
	if r.count() > MaxPool {
		return addrRange{}, fmt.Errorf("holds %d addresses: at most %d", r.count(), MaxPool)
	}
	return r, nil
}

// publicAddr refuses what cannot be the source of a packet.
func publicAddr(a netip.Addr) error {
	switch {
	case a.IsUnspecified() || a.Is4() && a.As4()[0] == 0:
		return errors.New("is not the address of a host")
	case a.IsMulticast():
		return errors.New("is a multicast address")
	case a.IsLoopback():
		return errors.New("is a loopback address")
	case a.Is4() && a.As4()[0] >= 240:
		return errors.New("is a reserved address")
	}
	return nil
}

// lastAddr is the highest address of p.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// PoolAddrs lists every address of a pool, in the order written; all addresses of a prefix count, also its first and last.
func PoolAddrs(items []string) ([]netip.Addr, error) {
	var out []netip.Addr
	have := map[netip.Addr]bool{}
	for _, item := range items {
		r, err := parsePool(item)
		if err != nil {
			return nil, fmt.Errorf("%s %w", quote(item), err)
		}
		if uint64(len(out))+r.count() > MaxPool {
			return nil, fmt.Errorf("%s makes more than %d addresses", quote(item), MaxPool)
		}
		for a := r.lo; ; a = a.Next() {
			if have[a] {
				return nil, fmt.Errorf("%s names %s again", quote(item), a)
			}
			have[a] = true
			out = append(out, a)
			if a == r.hi {
				break
			}
		}
	}
	return out, nil
}

// dscpNames are the code points with a name (RFC 2474, 2597, 3246, 5865, 8622).
var dscpNames = func() map[string]uint8 {
	m := map[string]uint8{"be": 0, "le": 1, "va": 44, "ef": 46}
	for i := range uint8(8) {
		m[fmt.Sprintf("cs%d", i)] = i << 3
	}
	for class := uint8(1); class <= 4; class++ {
		for drop := uint8(1); drop <= 3; drop++ {
			m[fmt.Sprintf("af%d%d", class, drop)] = class<<3 | drop<<1
		}
	}
	return m
}()

func parseDSCP(s string) (uint8, error) {
	if v, ok := dscpNames[strings.ToLower(s)]; ok {
		return v, nil
	}
	if n, err := number(s, 63); err == nil {
		return uint8(n), nil
	}
	return 0, errors.New("is not a DSCP: " + didYouMean(s, sortedKeys(dscpNames), `write a name such as "ef", "cs3", "af41" or a number up to 63`))
}

// DSCPs reads code points by name or number.
func DSCPs(names []string) ([]uint8, error) {
	var out []uint8
	for _, s := range names {
		v, err := parseDSCP(s)
		if err != nil {
			return nil, fmt.Errorf("%s %w", quote(s), err)
		}
		out = append(out, v)
	}
	return out, nil
}
