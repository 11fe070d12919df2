package configs

import (
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"time"
)

// warningBudget bounds the work of looking for rules that never match: steps, about 10 ns each. What a very large policy has
// beyond it is not looked at; Warnings says so.
const warningBudget = 50_000_000

// Warnings lists what is allowed but hardly meant: rules that never match because one earlier rule covers them, and settings
// that do nothing. It wants a policy that was decoded without errors.
func (p *Policy) Warnings() ErrorList {
	at := p.src.loc()
	w := &warner{p: p, budget: warningBudget}
	p.Timeouts.warn(at.key("timeouts"))
	for i := range p.Tenants {
		t := &p.Tenants[i]
		where := at.key("tenant").at(i)
		switch {
		case len(t.NAT.Pool) > 0:
		case len(t.NAT.Static) > 0 && slices.ContainsFunc(t.Prefixes, func(p netip.Prefix) bool {
			return p.Addr().Is4() && !(p.Bits() == 32 && slices.ContainsFunc(t.NAT.Static, func(s StaticNAT) bool { return s.Inside == p.Addr() }))
		}):
			where.key("nat").key("static").bad(nil, "leaves all other hosts without IPv4 to the backbone", "a nat.pool for them")
		case len(t.NAT.Bypass) > 0:
			where.key("nat").key("bypass").bad(nil, "does nothing without nat.pool", "this tenant is routed untranslated anyway")
		}
		t.warnVoice(where)
		w.sets = map[string][][2]netip.Addr{}
		w.open(where, t)
		w.rules(where, t)
	}
	p.warnGroups(at)
	if w.budget < 0 {
		at.bad(nil, "is too large to look for all rules that never match", "")
	}
	return at.c.list.sort()
}

// warnVoice names directions in which nothing waits for a rate, so that voice has nothing to go before: what waits does so in the port's or the provider's own queue, which knows no classes.
func (t *Tenant) warnVoice(at loc) {
	if len(t.Rates.Voice.DSCP) == 0 && !slices.ContainsFunc(t.Rules, func(r Rule) bool { return r.Action == "allow" && r.Class == "voice" }) {
		return
	}
	for _, d := range []struct {
		key string
		dir *RateDir
	}{{"out", &t.Rates.Out}, {"in", &t.Rates.In}} {
		if d.dir.Bits == 0 && d.dir.Packets == 0 {
			at.key("rates").key(d.key).bad(nil, "is without a rate, so voice goes before no other host's packets", "bits: a little less than the line")
		}
	}
}

// warn names times that are shorter than the RFCs allow a translator: they take sessions from under applications that keep to them.
func (t *Timeouts) warn(at loc) {
	for _, d := range []struct {
		key   string
		value Duration
		least time.Duration
		why   string
	}{
		{"tcp_established", t.TCPEstablished, DefaultTCPEstablished, "RFC 5382 REQ-5"},
		{"tcp_transitory", t.TCPTransitory, DefaultTCPTransitory, "RFC 5382 REQ-5"},
		{"tcp_closing", t.TCPClosing, DefaultTCPClosing, "RFC 5382 REQ-5, RFC 7857 section 2.2"},
		{"udp", t.UDP, 2 * time.Minute, "RFC 4787 REQ-5"},
		{"udp_unanswered", t.UDPUnanswered, 2 * time.Minute, "RFC 4787 REQ-5"},
		{"icmp", t.ICMP, DefaultICMP, "RFC 5508 REQ-2"},
	} {
		if d.value.Duration < d.least {
			at.key(d.key).bad(d.value, "is shorter than a NAT should wait", fmt.Sprintf("%s or more (%s)", Duration{d.least}, d.why))
		}
	}
}

// open names rules that let somebody in where everybody is: what the looser kinds of filtering let in by a mapping needs no rule, so whoever writes one for those that
// may come in has meant the others to stay out.
func (w *warner) open(at loc, t *Tenant) {
	var inside [][2]netip.Addr // mappings are of these
	for _, p := range t.Prefixes {
		if p.Addr().Is4() {
			inside = append(inside, [2]netip.Addr{p.Masked().Addr(), lastAddr(p)})
		}
	}
	all := func(items []string, of [][2]netip.Addr) bool {
		set := w.set(t, items)
		return len(items) == 0 || len(set) > 0 && w.coversSet(set, of)
	}
	mapped := []Service{{Proto: 6, SPortHi: 65535, DPortHi: 65535}, {Proto: 17, SPortHi: 65535, DPortHi: 65535}}
	in := func(is func(*Rule) bool) bool {
		return slices.ContainsFunc(t.Rules, func(r Rule) bool { return r.Direction == "in" && is(&r) })
	}
	allows := in(func(r *Rule) bool { return r.Action != "deny" })
	ends := in(func(r *Rule) bool {
		services, err := w.p.Services(t, r.Service)
		return r.Action == "deny" && all(r.From, everything[:1]) && all(r.To, merge(inside)) && err == nil && (len(r.Service) == 0 || len(services) > 0 && w.coversServices(services, mapped))
	})
	if len(t.NAT.Pool) > 0 && t.NAT.Filtering != "address-and-port-dependent" && allows && !ends {
		at.key("nat").key("filtering").bad(t.NAT.Filtering, `lets others in by mappings than the "in" rules allow, which do not deny all others`, `end them with a rule that does (direction = "in", action = "deny"), or leave filtering out`)
	}
}

type warner struct {
	p      *Policy
	budget int
	sets   map[string][][2]netip.Addr // of the tenant at hand, by the items
}

// resolved is a rule as what it covers; nil from, to or services is all.
type resolved struct {
	from, to [][2]netip.Addr
	services []Service
	index    int
}

func (w *warner) rules(at loc, t *Tenant) {
	before := map[string][]resolved{}
	for j := range t.Rules {
		r := &t.Rules[j]
		where := at.key("rule").at(j)
		if r.Class != "" && r.Action != "allow" {
			where.key("class").bad(r.Class, "does nothing in a rule that denies", "leave it out")
		}
		if w.budget < 0 {
			return
		}
		one := resolved{from: w.set(t, r.From), to: w.set(t, r.To), index: j}
		services, err := w.p.Services(t, r.Service)
		if err != nil {
			return // the decoder has said so
		}
		one.services = services
		if w.nobody(where, t, r, &one) {
			continue
		}
		requests(where, services)
		for _, earlier := range before[r.Direction] {
			if w.covers(&earlier, &one) {
				name := ""
				if n := t.Rules[earlier.index].Name; n != "" {
					name = " (" + quote(n) + ")"
				}
				where.bad(nil, "can never match", fmt.Sprintf("rule[%d]%s covers all of it", earlier.index+1, name))
				break
			}
		}
		before[r.Direction] = append(before[r.Direction], one)
	}
}

// nobody names a rule that matches nothing, whatever the rules before it are.
func (w *warner) nobody(at loc, t *Tenant, r *Rule, one *resolved) (found bool) {
	const empty, fill = "names objects that hold nothing", "as long as that is so the rule matches nobody"
	for _, x := range []struct {
		key  string
		none bool
	}{{"from", len(r.From) > 0 && len(one.from) == 0}, {"to", len(r.To) > 0 && len(one.to) == 0}, {"service", len(r.Service) > 0 && len(one.services) == 0}} {
		if x.none {
			at.key(x.key).bad(nil, empty, fill)
			found = true
		}
	}
	if found {
		return true
	}
	key, inside := "from", one.from
	if r.Direction == "in" {
		key, inside = "to", one.to
	}
	if inside == nil || len(t.Prefixes) == 0 {
		return false
	}
	for _, x := range inside {
		w.budget -= len(t.Prefixes)
		if slices.ContainsFunc(t.Prefixes, func(p netip.Prefix) bool {
			return p.Addr().Is4() == x[0].Is4() && !lastAddr(p).Less(x[0]) && !x[1].Less(p.Masked().Addr())
		}) {
			return false
		}
	}
	at.key(key).bad(nil, "can never match", "addresses of the tenant's prefixes: rules see hosts as they are inside, not as they are translated")
	return true
}

// requests names services of a rule that it is never asked about: of ICMP only requests begin a conversation, and errors and answers pass with the one that they belong to.
func requests(at loc, list []Service) {
	for _, s := range list {
		kind, only := s.DPortLo>>8, s.DPortLo>>8 == s.DPortHi>>8
		v4 := s.Proto == 1 && !s.AnyProto && only && kind != 8 && kind != 13
		v6 := s.Proto == 58 && !s.AnyProto && only && kind != 128
		code := (s.Proto == 1 || s.Proto == 58) && !s.AnyProto && only && s.DPortLo&0xff != 0
		if v4 || v6 || code {
			name := "icmp"
			if s.Proto == 58 {
				name = "icmpv6"
			}
			if name = fmt.Sprintf("%s/%d", name, kind); code {
				name += fmt.Sprintf("/%d", s.DPortLo&0xff)
			}
			at.key("service").bad(nil, name+" has no effect", "icmp/echo-request, icmp/timestamp-request or icmpv6/echo-request: errors and answers pass with the conversation that they belong to")
			return
		}
	}
}

// set is items as ranges, sorted and merged.
func (w *warner) set(t *Tenant, items []string) [][2]netip.Addr {
	if len(items) == 0 {
		return nil
	}
	key := strings.Join(items, "\x00")
	if s, ok := w.sets[key]; ok {
		return s
	}
	prefixes, out, err := w.p.Hosts(t, items)
	if err != nil {
		return nil
	}
	w.budget -= 20 * (len(prefixes) + len(out) + 1)
	for _, p := range prefixes {
		out = append(out, [2]netip.Addr{p.Masked().Addr(), lastAddr(p)})
	}
	out = merge(out)
	w.sets[key] = out
	return out
}

func merge(list [][2]netip.Addr) [][2]netip.Addr {
	slices.SortFunc(list, func(a, b [2]netip.Addr) int { return a[0].Compare(b[0]) })
	out := list[:0]
	for _, r := range list {
		if n := len(out); n > 0 && out[n-1][0].Is4() == r[0].Is4() {
			last := &out[n-1]
			if next := last[1].Next(); !next.IsValid() || !next.Less(r[0]) {
				if last[1].Less(r[1]) {
					last[1] = r[1]
				}
				continue
			}
		}
		out = append(out, r)
	}
	return out
}

func (w *warner) covers(a, b *resolved) bool {
	return w.coversServices(a.services, b.services) && w.coversSet(a.from, b.from) && w.coversSet(a.to, b.to)
}

func (w *warner) coversServices(a, b []Service) bool {
	w.budget -= 1 + len(a)*len(b)
	if len(a) == 0 || slices.ContainsFunc(a, func(s Service) bool { return s.AnyProto }) {
		return true
	}
	if len(b) == 0 {
		return false
	}
	for _, s := range b {
		if !slices.ContainsFunc(a, func(o Service) bool {
			return !s.AnyProto && o.Proto == s.Proto && o.SPortLo <= s.SPortLo && o.SPortHi >= s.SPortHi && o.DPortLo <= s.DPortLo && o.DPortHi >= s.DPortHi
		}) {
			return false
		}
	}
	return true
}

func (w *warner) coversSet(a, b [][2]netip.Addr) bool {
	w.budget -= 1 + len(b)
	if a == nil {
		return true
	}
	if b == nil {
		b = everything
	}
	for _, r := range b {
		i := sort.Search(len(a), func(i int) bool { return r[0].Less(a[i][0]) }) - 1
		if i < 0 || a[i][1].Less(r[1]) || a[i][0].Is4() != r[0].Is4() {
			return false
		}
	}
	return true
}

var everything = [][2]netip.Addr{
	{netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{255, 255, 255, 255})},
	{netip.IPv6Unspecified(), lastAddr(netip.PrefixFrom(netip.IPv6Unspecified(), 0))},
}
