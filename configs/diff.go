package configs

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Change is one difference between two policies.
type Change struct {
	Kind   string // "added", "removed", "changed", "moved"
	Tenant string // "" for what belongs to the whole policy
	Path   string // "rule \"mail\" (in, 3)", "nat.pool", "rates.out.bits"
	Old    string // "" when added
	New    string // "" when removed
}

// String is one line: `tenant "acme": changed rates.out.bits: 20M -> 50M`.
func (c Change) String() string {
	var b strings.Builder
	if c.Tenant != "" {
		fmt.Fprintf(&b, "tenant %s: ", quote(c.Tenant))
	}
	b.WriteString(c.Kind + " " + c.Path)
	switch {
	case c.Old != "" && c.New != "":
		b.WriteString(": " + c.Old + " -> " + c.New)
	case c.Old+c.New != "":
		b.WriteString(": " + c.Old + c.New)
	}
	return b.String()
}

// differ collects changes of one tenant, or of the whole policy.
type differ struct {
	tenant string
	out    []Change
}

func (d *differ) add(kind, path, old, new string) {
	d.out = append(d.out, Change{Kind: kind, Tenant: d.tenant, Path: path, Old: old, New: new})
}

// value compares two texts of one field.
func (d *differ) value(path string, old, new any) {
	if a, b := fmt.Sprint(old), fmt.Sprint(new); a != b {
		d.add("changed", path, orNone(a), orNone(b))
	}
}

func orNone(s string) string {
	if s == "" || s == "0" || s == "0s" {
		return "none"
	}
	return s
}

// set compares lists whose order means nothing.
func (d *differ) set(path string, old, new []string) {
	was, is := make(map[string]bool, len(old)), make(map[string]bool, len(new))
	for _, s := range old {
		was[s] = true
	}
	for _, s := range new {
		is[s] = true
	}
	for _, s := range old {
		if !is[s] {
			d.add("removed", path, s, "")
		}
	}
	for _, s := range new {
		if !was[s] {
			d.add("added", path, "", s)
		}
	}
}

// keyed compares things by what identifies them; text is all that can change. Order: as in old, then what is new.
func (d *differ) keyed(what string, old, new []entry) {
	in := func(list []entry) map[string]string {
		m := make(map[string]string, len(list))
		for _, e := range list {
			m[e.key] = e.text
		}
		return m
	}
	was, is := in(old), in(new)
	for _, e := range old {
		if now, ok := is[e.key]; !ok {
			d.add("removed", what+" "+e.key, e.text, "")
		} else if now != e.text {
			d.add("changed", what+" "+e.key, e.text, now)
		}
	}
	for _, e := range new {
		if _, ok := was[e.key]; !ok {
			d.add("added", what+" "+e.key, "", e.text)
		}
	}
}

type entry struct{ key, text string }

// Diff lists what would change, for a person to read: the whole policy first, then tenants in the order of old, then new ones.
// The same two policies always give the same list; equal ones give none. Both must have their defaults filled in. What an
// object means counts as a change of the object, not of each rule that names it.
func Diff(old, new *Policy) []Change {
	d := &differ{}
	d.value("name", old.Name, new.Name)
	d.timeouts(&old.Timeouts, &new.Timeouts)
	d.value("icmp_errors.total", old.ICMPErrors.Total, new.ICMPErrors.Total)
	d.value("icmp_errors.per_side", old.ICMPErrors.PerSide, new.ICMPErrors.PerSide)
	d.set("backbone.interfaces", old.Backbone.Interfaces, new.Backbone.Interfaces)
	d.keyed("route", routes(old.Routes), routes(new.Routes))
	d.objects(old.Objects, new.Objects)
	d.groups(old.Groups, new.Groups)
	was, is := tenantsByName(old), tenantsByName(new)
	for i := range old.Tenants {
		t := &old.Tenants[i]
		d.tenant = t.Name
		if now, ok := is[t.Name]; ok {
			d.tenantFields(t, now)
		} else {
			d.add("removed", "the tenant", t.summary(), "")
		}
	}
	for i := range new.Tenants {
		t := &new.Tenants[i]
		if _, ok := was[t.Name]; !ok {
			d.tenant = t.Name
			d.add("added", "the tenant", "", t.summary())
		}
	}
	return d.out
}

// groups compares what moves together. The order of the nodes says who is preferred.
func (d *differ) groups(old, new []Group) {
	for i := range old {
		g := &old[i]
		j := slices.IndexFunc(new, func(n Group) bool { return n.Name == g.Name })
		if j < 0 {
			d.add("removed", "group "+quote(g.Name), g.String(), "")
			continue
		}
		now, at := &new[j], "group "+quote(g.Name)+" "
		d.value(at+"id", g.ID, now.ID)
		d.value(at+"nodes", join(g.Nodes), join(now.Nodes))
		d.set(at+"tenants", g.Tenants, now.Tenants)
		d.value(at+"alone", g.Alone, now.Alone)
		d.value(at+"stale", g.Stale, now.Stale)
		d.value(at+"prefer", g.Prefer, now.Prefer)
		d.value(at+"mac", g.MAC, now.MAC)
		d.set(at+"address", g.placed(), now.placed())
	}
	for i := range new {
		if !slices.ContainsFunc(old, func(o Group) bool { return o.Name == new[i].Name }) {
			d.add("added", "group "+quote(new[i].Name), "", new[i].String())
		}
	}
}

// placed lists the virtual addresses with their interfaces.
func (g *Group) placed() (out []string) {
	for _, a := range g.Addresses {
		for _, p := range a.Addresses {
			out = append(out, p.String()+" on "+a.Interface)
		}
	}
	return out
}

func tenantsByName(p *Policy) map[string]*Tenant {
	m := make(map[string]*Tenant, len(p.Tenants))
	for i := range p.Tenants {
		m[p.Tenants[i].Name] = &p.Tenants[i]
	}
	return m
}

func (t *Tenant) summary() string {
	return fmt.Sprintf("%s on %s, %d rules", join(texts(t.Prefixes)), join(t.Interfaces), len(t.Rules))
}

func (d *differ) timeouts(a, b *Timeouts) {
	d.value("timeouts.tcp_established", a.TCPEstablished, b.TCPEstablished)
	d.value("timeouts.tcp_transitory", a.TCPTransitory, b.TCPTransitory)
	d.value("timeouts.tcp_closing", a.TCPClosing, b.TCPClosing)
	d.value("timeouts.tcp_closed", a.TCPClosed, b.TCPClosed)
	d.value("timeouts.udp", a.UDP, b.UDP)
	d.value("timeouts.udp_unanswered", a.UDPUnanswered, b.UDPUnanswered)
	d.value("timeouts.icmp", a.ICMP, b.ICMP)
	d.value("timeouts.other", a.Other, b.Other)
	d.value("timeouts.nat_hold", a.NATHold, b.NATHold)
}

func (d *differ) objects(a, b Objects) {
	d.keyed("objects.hosts", objectEntries(a.Hosts), objectEntries(b.Hosts))
	d.keyed("objects.services", objectEntries(a.Services), objectEntries(b.Services))
}

func objectEntries(m map[string][]string) (out []entry) {
	for _, name := range sortedKeys(m) {
		out = append(out, entry{name, join(m[name])})
	}
	return out
}

func (d *differ) tenantFields(a, b *Tenant) {
	d.set("interfaces", a.Interfaces, b.Interfaces)
	d.set("prefixes", texts(a.Prefixes), texts(b.Prefixes))
	d.keyed("route", routes(a.Routes), routes(b.Routes))
	d.objects(a.Objects, b.Objects)
	d.nat(&a.NAT, &b.NAT)
	d.value("limits.sessions", a.Limits.Sessions, b.Limits.Sessions)
	d.value("limits.session_rate", a.Limits.SessionRate, b.Limits.SessionRate)
	d.value("limits.host_sessions", a.Limits.HostSessions, b.Limits.HostSessions)
	d.value("limits.host_session_rate", a.Limits.HostSessionRate, b.Limits.HostSessionRate)
	d.rateDir("rates.out.", &a.Rates.Out, &b.Rates.Out)
	d.rateDir("rates.in.", &a.Rates.In, &b.Rates.In)
	d.hostRate("rates.host.out.", &a.Rates.Host.Out, &b.Rates.Host.Out)
	d.hostRate("rates.host.in.", &a.Rates.Host.In, &b.Rates.Host.In)
	d.value("rates.overhead", a.Rates.Overhead, b.Rates.Overhead)
	d.set("rates.voice.dscp", a.Rates.Voice.DSCP, b.Rates.Voice.DSCP)
	d.value("rates.voice.bits", a.Rates.Voice.Bits, b.Rates.Voice.Bits)
	d.value("default_out", a.DefaultOut, b.DefaultOut)
	d.value("reject", a.Reject, b.Reject)
	d.set("ipv4_options", a.IPv4Options, b.IPv4Options)
	d.set("ipv6_headers", a.IPv6Headers, b.IPv6Headers)
	for _, dir := range []string{"out", "in"} {
		d.rules(dir, a.Rules, b.Rules)
	}
}

func (d *differ) rateDir(path string, a, b *RateDir) {
	d.value(path+"bits", a.Bits, b.Bits)
	d.value(path+"packets", a.Packets, b.Packets)
	d.value(path+"burst", a.Burst, b.Burst)
	d.value(path+"queue", a.Queue, b.Queue)
	d.value(path+"mode", a.Mode, b.Mode)
}

func (d *differ) hostRate(path string, a, b *HostRate) {
	d.value(path+"bits", a.Bits, b.Bits)
	d.value(path+"packets", a.Packets, b.Packets)
	d.value(path+"burst", a.Burst, b.Burst)
}

func (d *differ) nat(a, b *NAT) {
	d.set("nat.pool", a.Pool, b.Pool)
	d.value("nat.mapping", a.Mapping, b.Mapping)
	d.value("nat.filtering", a.Filtering, b.Filtering)
	d.value("nat.pooling", a.Pooling, b.Pooling)
	d.value("nat.ports", a.Ports, b.Ports)
	static := func(list []StaticNAT) (out []entry) {
		for _, s := range list {
			out = append(out, entry{s.Public.String(), s.Inside.String()})
		}
		return out
	}
	d.keyed("nat.static", static(a.Static), static(b.Static))
	forward := func(list []PortForward) (out []entry) {
		for _, f := range list {
			key, to := fmt.Sprintf("%s %s/%d", f.Public, f.Proto, f.Port), netip.AddrPortFrom(f.Inside, uint16(f.InsidePort)).String()
			if more := f.LastPort - f.Port; more > 0 {
				key, to = fmt.Sprintf("%s-%d", key, f.LastPort), fmt.Sprintf("%s-%d", to, f.InsidePort+more)
			}
			out = append(out, entry{key, to})
		}
		return out
	}
	d.keyed("nat.forward", forward(a.Forward), forward(b.Forward))
	d.set("nat.bypass", texts(a.Bypass), texts(b.Bypass))
}

func routes(list []Route) (out []entry) {
	for _, r := range list {
		text := "discard"
		if !r.Discard {
			hops := texts(r.Via)
			slices.Sort(hops) // who gets which conversation does not go by the order
			text = "via " + join(hops)
			if backups := texts(r.Backup); len(backups) > 0 {
				slices.Sort(backups)
				text += ", backup " + join(backups)
			}
		}
		if r.Interface != "" {
			text += " on " + r.Interface
		}
		out = append(out, entry{r.Prefix.String(), text})
	}
	return out
}

// placed is a rule with its position (from 1) among those of its direction.
type placed struct {
	key  string
	text string
	name string
	pos  int
}

// place lists the rules of one direction. A rule goes by its name; one without goes by its text, and by how many there were of that.
func place(list []Rule, dir string) (out []placed) {
	count := map[string]int{}
	for i := range list {
		r := &list[i]
		if r.Direction != dir {
			continue
		}
		p := placed{text: r.String(), name: r.Name, pos: len(out) + 1}
		p.key = "n" + r.Name
		if r.Name == "" {
			p.key = "t" + p.text
		}
		count[p.key]++
		p.key = fmt.Sprint(p.key, "#", count[p.key])
		out = append(out, p)
	}
	return out
}

func (p *placed) path(dir string) string {
	if p.name == "" {
		return fmt.Sprintf("rule %d (%s)", p.pos, dir)
	}
	return fmt.Sprintf("rule %s (%s, %d)", quote(p.name), dir, p.pos)
}

// rules compares one direction. Order decides what matches, so a rule that overtook another is a change too; rules that only
// shifted, because others came or went, are none.
func (d *differ) rules(dir string, old, new []Rule) {
	was, is := place(old, dir), place(new, dir)
	newAt := make(map[string]int, len(is))
	for i := range is {
		newAt[is[i].key] = i
	}
	oldAt := make(map[string]int, len(was))
	var order []int // positions in new of the rules that stay, in their old order
	for i := range was {
		oldAt[was[i].key] = i
		if j, ok := newAt[was[i].key]; ok {
			order = append(order, j)
		}
	}
	stays := longestRise(order)
	for i := range was {
		p := &was[i]
		j, ok := newAt[p.key]
		if !ok {
			d.add("removed", p.path(dir), p.text, "")
			continue
		}
		now := &is[j]
		if now.text != p.text {
			d.add("changed", now.path(dir), p.text, now.text)
		}
		if !stays[j] {
			d.add("moved", now.path(dir), fmt.Sprint("position ", p.pos), fmt.Sprint("position ", now.pos))
		}
	}
	for i := range is {
		if _, ok := oldAt[is[i].key]; !ok {
			d.add("added", is[i].path(dir), "", is[i].text)
		}
	}
}

// longestRise marks the values of a longest rising subsequence: the most rules that can be said not to have moved.
func longestRise(seq []int) map[int]bool {
	tails := []int{} // index in seq of the last element of the best run of each length
	prev := make([]int, len(seq))
	for i, v := range seq {
		k, _ := slices.BinarySearchFunc(tails, v, func(t, v int) int { return seq[t] - v })
		prev[i] = -1
		if k > 0 {
			prev[i] = tails[k-1]
		}
		if k == len(tails) {
			tails = append(tails, i)
		} else {
			tails[k] = i
		}
	}
	out := make(map[int]bool, len(tails))
	if len(tails) > 0 {
		for i := tails[len(tails)-1]; i >= 0; i = prev[i] {
			out[seq[i]] = true
		}
	}
	return out
}

// String is the rule on one line, without its name: `allow in from office to any service tcp/25 class voice log`.
func (r *Rule) String() string {
	var b strings.Builder
	b.WriteString(r.Action + " " + r.Direction)
	for _, part := range []struct {
		word  string
		items []string
	}{{"from", r.From}, {"to", r.To}, {"service", r.Service}} {
		if len(part.items) > 0 {
			b.WriteString(" " + part.word + " " + join(part.items))
		}
	}
	if r.Class != "" {
		b.WriteString(" class " + r.Class)
	}
	if r.Log {
		b.WriteString(" log")
	}
	return b.String()
}

func join(items []string) string {
	if len(items) == 0 {
		return "none"
	}
	return strings.Join(items, ",")
}

func texts[T fmt.Stringer](list []T) []string {
	out := make([]string, len(list))
	for i, p := range list {
		out[i] = p.String()
	}
	return out
}
