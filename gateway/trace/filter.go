package trace

import (
	"net/netip"

	"demarc/gateway/flow"
	"demarc/gateway/verdict"
)

// Filter says which packets are wanted. See All.
type Filter struct {
	Tenant flow.TenantID  // 0 = any
	Prefix netip.Prefix   // of either end, before or after translation; invalid = any
	Port   uint16         // of either end, before or after translation; 0 = any
	Proto  int            // -1 = any
	Reason verdict.Reason // only what was dropped for it; verdict.Unset = any
	Rules  []flow.RuleID  // only conversations that one of these decided; nil = any
	Dir    uint8          // meter.Dir of Rules
}

// All wants every packet.
func All() Filter { return Filter{Proto: -1} }

// Tuple reports whether one of the two ends of k is wanted, as far as addresses, ports and protocol go.
func (f *Filter) Tuple(k *flow.Key) bool {
	if f.Proto >= 0 && int(k.Proto) != f.Proto {
		return false
	}
	if f.Port != 0 && k.SPort != f.Port && k.DPort != f.Port {
		return false
	}
	if !f.Prefix.IsValid() {
		return true
	}
	if k.Family == 0 || (k.Family == 4) != f.Prefix.Addr().Is4() {
		return false
	}
	return f.Prefix.Contains(k.Src.Netip(k.Family)) || f.Prefix.Contains(k.Dst.Netip(k.Family))
}

// Journey reports whether a packet is wanted. Address, port and protocol may match before or after translation, or in what an ICMP error
// quotes: an inside host is found in both directions by the address that it has.
func (f *Filter) Journey(j *Journey) bool {
	if f.Tenant != 0 && f.Tenant != j.Tenant || f.Reason != verdict.Unset && !(j.Dropped() && f.Reason == j.Reason) {
		return false
	}
	if !f.Tuple(&j.In) && !(j.Out.Family != 0 && f.Tuple(&j.Out)) && !(j.Quotes && f.Tuple(&j.Quoted)) {
		return false
	}
	return f.Rules == nil || f.rule(j.Rule, j.RuleDir)
}

func (f *Filter) rule(r flow.RuleID, dir uint8) bool {
	if dir != f.Dir {
		return false
	}
	for _, x := range f.Rules {
		if x == r {
			return true
		}
	}
	return false
}

// Drop reports whether a recorded drop is wanted. Recorded drops know no rule.
func (f *Filter) Drop(d *Drop) bool {
	if f.Tenant != 0 && f.Tenant != d.Tenant || f.Reason != verdict.Unset && f.Reason != d.Reason {
		return false
	}
	return f.Tuple(&d.In) || d.Out.Family != 0 && f.Tuple(&d.Out)
}
