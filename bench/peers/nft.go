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
	Rules    []acl.Rule // IPv4, in order; what none matches is dropped
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
		if _, err := matches(&c.Rules[i]); err != nil {
			return "", fmt.Errorf("rule %d: %w", i, err)
		}
	}
	w := &writer{rules: c.Rules}
	first := w.acl(c.Form)
	bytes := c.RateBits / 8
	var b strings.Builder
	fmt.Fprintf(&b, "table ip %s {\n", Table)
	b.WriteString("\tcounter tenant_out { }\n\tcounter tenant_in { }\n")
	b.WriteString(w.b.String())
	for _, d := range []struct{ name, next string }{{"out", "goto " + first}, {"in", "drop"}} {
		fmt.Fprintf(&b, "\tchain %s {\n", d.name)
		fmt.Fprintf(&b, "\t\tlimit rate over %d bytes/second burst %d bytes drop\n", bytes, bytes/50)
		fmt.Fprintf(&b, "\t\tcounter name tenant_%s\n\t\tct state established,related accept\n\t\tct state invalid drop\n\t\t%s\n\t}\n", d.name, d.next)
	}
	b.WriteString("\tchain forward {\n\t\ttype filter hook forward priority filter; policy drop;\n")
	fmt.Fprintf(&b, "\t\tiif %q goto out\n\t\tiif %q goto in\n\t}\n", c.In, c.Out)
	b.WriteString("\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat;\n")
	fmt.Fprintf(&b, "\t\toif %q ip saddr %s snat to %s-%s\n\t}\n}\n", c.Out, c.Inside, c.Pool[0], c.Pool[1])
	return b.String(), nil
}

// writer collects chains. Chains that would be the same are written once.
type writer struct {
	rules []acl.Rule
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
	}{{"tcp", 6}, {"udp", 17}, {"icmp", 1}} {
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
			return s.AnyProto || !other && s.Proto == p || other && s.Proto != 1 && s.Proto != 6 && s.Proto != 17
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
		lo, hi uint64
		rules  []int
	}
	cuts := []uint64{0, 1 << 32}
	for _, i := range list {
		for _, p := range a.of(&w.rules[i]) {
			lo, hi := bounds(p)
			cuts = append(cuts, lo, hi)
		}
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	// Coarser where there are more intervals than chains wanted: every n-th cut.
	step := (len(cuts) + a.parts - 1) / a.parts
	var spans []span
	for i := 0; i < len(cuts)-1; i += step {
		s := span{lo: cuts[i], hi: cuts[min(i+step, len(cuts)-1)]}
		for _, r := range list {
			ps := a.of(&w.rules[r])
			if len(ps) == 0 || slices.ContainsFunc(ps, func(p netip.Prefix) bool {
				lo, hi := bounds(p)
				return lo < s.hi && s.lo < hi
			}) {
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
		parts = append(parts, fmt.Sprintf("%s-%s : goto %s", v4(s.lo), v4(s.hi-1), w.byAddr(s.rules, a.next)))
	}
	name := w.name()
	w.names[key] = name
	fmt.Fprintf(&w.b, "\tchain %s {\n\t\tip %s vmap { %s }\n\t}\n", name, a.word, strings.Join(parts, ", "))
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
		lines, err := matches(r)
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
func matches(r *acl.Rule) ([]string, error) {
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
			if !p.Addr().Is4() {
				return nil, fmt.Errorf("%s is not IPv4", p)
			}
			s = append(s, p.String())
		}
		if len(s) == 1 {
			base += fmt.Sprintf("ip %s %s ", side.word, s[0])
		} else {
			base += fmt.Sprintf("ip %s { %s } ", side.word, strings.Join(s, ", "))
		}
	}
	if len(r.Services) == 0 {
		return []string{base}, nil
	}
	var out []string
	for _, s := range r.Services {
		m, err := service(s)
		if err != nil {
			return nil, err
		}
		out = append(out, base+m)
	}
	return out, nil
}

func service(s acl.Service) (string, error) {
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
	case s.Proto == 1 && s.DPortLo == 0 && s.DPortHi == 65535:
		return "meta l4proto icmp ", nil
	case s.Proto == 1 && s.DPortLo&0xff == 0 && s.DPortHi == s.DPortLo|0xff:
		return fmt.Sprintf("icmp type %d ", s.DPortLo>>8), nil
	}
	return "", fmt.Errorf("protocol %d, ports %d-%d are not written for nftables", s.Proto, s.DPortLo, s.DPortHi)
}

// bounds is a prefix as a half-open range.
func bounds(p netip.Prefix) (lo, hi uint64) {
	b := p.Masked().Addr().As4()
	lo = uint64(b[0])<<24 | uint64(b[1])<<16 | uint64(b[2])<<8 | uint64(b[3])
	return lo, lo + 1<<(32-p.Bits())
}

func v4(v uint64) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}
