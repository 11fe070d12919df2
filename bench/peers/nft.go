package peers

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"demarc/acl"
)

// Form is how a rule list is written for nftables.
type Form string

const (
	// Linear is a rule per rule.
	Linear Form = "linear"
	// Maps finds the few rules that can match by verdict maps over protocol, destination and source.
	Maps Form = "verdict maps"
)

// Config says what the kernel does.
type Config struct {
	Form     Form
	Rules    []acl.Rule // of one family, in order; what none matches is dropped
	V6       bool       // that family is IPv6, which is routed: no source is translated
	In, Out  string     // devices of the inside and the outside
	Inside   netip.Prefix
	Pool     [2]netip.Addr
	RateBits uint64 // of each direction
}

// Table is the name of the kernel's table.
const Table = "demarc_bench"

// Ruleset is the text for `nft -f`. What an established packet meets is as short as it can be while limit and accounting still see it: one
// look at the device, the limit, the counter, the state. Translation costs rules for the first packet only.
func Ruleset(c Config) (string, error) {
	for i := range c.Rules {
		if _, err := matches(&c.Rules[i], c.V6); err != nil {
			return "", fmt.Errorf("rule %d: %w", i, err)
		}
	}
	w := &writer{rules: c.Rules, v6: c.V6}
	first := w.acl(c.Form)
	bytes := c.RateBits / 8
	var b strings.Builder
	fmt.Fprintf(&b, "table %s %s {\n", family(c.V6), Table)
	b.WriteString("\tcounter tenant_out { }\n\tcounter tenant_in { }\n")
	b.WriteString(w.b.String())
	for _, d := range []struct{ name, next string }{{"out", "goto " + first}, {"in", "drop"}} {
		fmt.Fprintf(&b, "\tchain %s {\n", d.name)
		fmt.Fprintf(&b, "\t\tlimit rate over %d bytes/second burst %d bytes drop\n", bytes, bytes/50)
		fmt.Fprintf(&b, "\t\tcounter name tenant_%s\n\t\tct state established,related accept\n\t\tct state invalid drop\n\t\t%s\n\t}\n", d.name, d.next)
	}
	b.WriteString("\tchain forward {\n\t\ttype filter hook forward priority filter; policy drop;\n")
	fmt.Fprintf(&b, "\t\tiif %q goto out\n\t\tiif %q goto in\n\t}\n", c.In, c.Out)
	if c.V6 {
		b.WriteString("}\n")
		return b.String(), nil
	}
	b.WriteString("\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat;\n")
	fmt.Fprintf(&b, "\t\toif %q ip saddr %s snat to %s-%s\n\t}\n}\n", c.Out, c.Inside, c.Pool[0], c.Pool[1])
	return b.String(), nil
}

// writer collects chains. Chains that would be the same are written once.
type writer struct {
	rules []acl.Rule
	v6    bool
	b     strings.Builder
	n     int
	names map[string]string
}

func (w *writer) acl(f Form) (first string) {
	all := make([]int, len(w.rules))
	for i := range all {
		all[i] = i
	}
	if f == Linear {
		return w.linear(all)
	}
	w.names = map[string]string{}
	var parts []string
	for _, p := range []struct {
		name string
		n    uint8
	}{{"tcp", 6}, {"udp", 17}, {icmp(w.v6), icmpNumber(w.v6)}} {
		parts = append(parts, fmt.Sprintf("%s : goto %s", p.name, w.byAddr(w.ofProto(all, p.n, false), daddr)))
	}
	rest := w.linear(w.ofProto(all, 0, true))
	name := w.name()
	fmt.Fprintf(&w.b, "\tchain %s {\n\t\tmeta l4proto vmap { %s }\n\t\tgoto %s\n\t}\n", name, strings.Join(parts, ", "), rest)
	return name
}

func (w *writer) name() string {
	w.n++
	return fmt.Sprintf("acl_%d", w.n)
}

// ofProto keeps the rules that a packet of protocol p can match; other keeps those for any protocol and unlisted ones.
func (w *writer) ofProto(list []int, p uint8, other bool) (out []int) {
	for _, i := range list {
		r := &w.rules[i]
		if len(r.Services) == 0 || slices.ContainsFunc(r.Services, func(s acl.Service) bool {
			return s.AnyProto || !other && s.Proto == p || other && s.Proto != icmpNumber(w.v6) && s.Proto != 6 && s.Proto != 17
		}) {
			out = append(out, i)
		}
	}
	return out
}

// axis is one of the two addresses.
type axis struct {
	word  string
	of    func(*acl.Rule) []netip.Prefix
	parts int // at most so many chains; more intervals are merged
	next  *axis
}

var (
	saddr = &axis{word: "saddr", of: func(r *acl.Rule) []netip.Prefix { return r.From }, parts: 1 << 16}
	daddr = &axis{word: "daddr", of: func(r *acl.Rule) []netip.Prefix { return r.To }, parts: 16, next: saddr}
)

// few rules are tried one after the other.
const few = 10

// byAddr splits the address space of one axis into intervals in which the same rules can match.
func (w *writer) byAddr(list []int, a *axis) string {
	if a == nil || len(list) <= few {
		return w.linear(list)
	}
	key := fmt.Sprint(a.word, list)
	if name, ok := w.names[key]; ok {
		return name
	}
	type span struct {
		lo, hi edge
		rules  []int
	}
	cuts := []edge{{netip.AddrFrom4([4]byte{})}, end}
	if w.v6 {
		cuts[0] = edge{netip.IPv6Unspecified()}
	}
	within := make([][][2]edge, len(list)) // the intervals of each rule
	for n, i := range list {
		for _, p := range a.of(&w.rules[i]) {
			lo, hi := bounds(p)
			cuts, within[n] = append(cuts, lo, hi), append(within[n], [2]edge{lo, hi})
		}
	}
	slices.SortFunc(cuts, edge.compare)
	cuts = slices.Compact(cuts)
	// Coarser where there are more intervals than chains wanted: every n-th cut.
	step := (len(cuts) + a.parts - 1) / a.parts
	var spans []span
	for i := 0; i < len(cuts)-1; i += step {
		s := span{lo: cuts[i], hi: cuts[min(i+step, len(cuts)-1)]}
		for n, r := range list {
			if len(within[n]) == 0 || slices.ContainsFunc(within[n], func(p [2]edge) bool { return p[0].compare(s.hi) < 0 && s.lo.compare(p[1]) < 0 }) {
				s.rules = append(s.rules, r)
			}
		}
		if n := len(spans); n > 0 && slices.Equal(spans[n-1].rules, s.rules) {
			spans[n-1].hi = s.hi
		} else {
			spans = append(spans, s)
		}
	}
	var parts []string
	for _, s := range spans {
		parts = append(parts, fmt.Sprintf("%s-%s : goto %s", s.lo, s.hi.before(w.v6), w.byAddr(s.rules, a.next)))
	}
	name := w.name()
	w.names[key] = name
	fmt.Fprintf(&w.b, "\tchain %s {\n\t\t%s %s vmap { %s }\n\t}\n", name, family(w.v6), a.word, strings.Join(parts, ", "))
	return name
}

func (w *writer) linear(list []int) string {
	key := fmt.Sprint(list)
	if name, ok := w.names[key]; ok {
		return name
	}
	name := w.name()
	fmt.Fprintf(&w.b, "\tchain %s {\n", name)
	for _, i := range list {
		r := &w.rules[i]
		lines, err := matches(r, w.v6)
		if err != nil {
			continue // Ruleset has looked at every rule before
		}
		for _, m := range lines {
			verdict := "drop"
			if r.Allow {
				verdict = "accept"
			}
			// The last rule counts, so that the bench can see that it decided.
			if i == len(w.rules)-1 {
				verdict = "counter " + verdict + ` comment "last rule"`
			}
			fmt.Fprintf(&w.b, "\t\t%s\n", strings.TrimSpace(m+verdict))
		}
	}
	b := "\t\tdrop\n\t}\n"
	w.b.WriteString(b)
	if w.names != nil {
		w.names[key] = name
	}
	return name
}

// matches are the conditions of one rule, a line per service.
func matches(r *acl.Rule, v6 bool) ([]string, error) {
	if len(r.FromRanges)+len(r.ToRanges) > 0 {
		return nil, fmt.Errorf("address ranges are not written for nftables")
	}
	base := ""
	for _, side := range []struct {
		word string
		list []netip.Prefix
	}{{"saddr", r.From}, {"daddr", r.To}} {
		if len(side.list) == 0 {
			continue
		}
		var s []string
		for _, p := range side.list {
			if p.Addr().Is6() != v6 {
				return nil, fmt.Errorf("%s is not of the table's family %s", p, family(v6))
			}
			s = append(s, p.String())
		}
		if len(s) == 1 {
			base += fmt.Sprintf("%s %s %s ", family(v6), side.word, s[0])
		} else {
			base += fmt.Sprintf("%s %s { %s } ", family(v6), side.word, strings.Join(s, ", "))
		}
	}
	if len(r.Services) == 0 {
		return []string{base}, nil
	}
	var out []string
	for _, s := range r.Services {
		m, err := service(s, v6)
		if err != nil {
			return nil, err
		}
		out = append(out, base+m)
	}
	return out, nil
}

func service(s acl.Service, v6 bool) (string, error) {
	ports := func(proto string) string {
		m := ""
		for _, x := range []struct {
			word   string
			lo, hi uint16
		}{{"sport", s.SPortLo, s.SPortHi}, {"dport", s.DPortLo, s.DPortHi}} {
			switch {
			case x.lo == x.hi:
				m += fmt.Sprintf("%s %s %d ", proto, x.word, x.lo)
			case x.lo != 0 || x.hi != 65535:
				m += fmt.Sprintf("%s %s %d-%d ", proto, x.word, x.lo, x.hi)
			}
		}
		if m == "" {
			return "meta l4proto " + proto + " "
		}
		return m
	}
	switch {
	case s.AnyProto:
		return "", nil
	case s.Proto == 6:
		return ports("tcp"), nil
	case s.Proto == 17:
		return ports("udp"), nil
	case s.Proto == icmpNumber(v6) && s.DPortLo == 0 && s.DPortHi == 65535:
		return "meta l4proto " + icmp(v6) + " ", nil
	case s.Proto == 1 && !v6 && s.DPortLo&0xff == 0 && s.DPortHi == s.DPortLo|0xff:
		return fmt.Sprintf("icmp type %d ", s.DPortLo>>8), nil
	}
	return "", fmt.Errorf("protocol %d, ports %d-%d are not written for nftables", s.Proto, s.DPortLo, s.DPortHi)
}

// family is nft's word for one, in a table and before an address.
func family(v6 bool) string {
	if v6 {
		return "ip6"
	}
	return "ip"
}

// icmp is nft's word for the protocol of a family.
func icmp(v6 bool) string {
	if v6 {
		return "ipv6-icmp"
	}
	return "icmp"
}

func icmpNumber(v6 bool) uint8 {
	if v6 {
		return 58
	}
	return 1
}

// edge is where an interval of addresses begins, or the one before it ends; without an address it is the end of all.
type edge struct{ netip.Addr }

var end edge

func (e edge) compare(o edge) int {
	switch {
	case e == o:
		return 0
	case e == end:
		return 1
	case o == end:
		return -1
	}
	return e.Compare(o.Addr)
}

// before is the last address of the interval that ends here.
func (e edge) before(v6 bool) netip.Addr {
	switch {
	case e != end:
		return e.Prev()
	case v6:
		return netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
	}
	return netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// bounds is a prefix as a half-open range.
func bounds(p netip.Prefix) (lo, hi edge) {
	p = p.Masked()
	last := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(last); i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(last) // 4 or 16 bytes
	return edge{p.Addr()}, edge{a.Next()}
}
