package aclref

import (
	"net/netip"

	"demarc/acl"
)

// Lookup returns the first rule in list order that matches k. The rules are taken to be ones that acl.Compile accepts.
func Lookup(rules []acl.Rule, k *acl.Key) acl.Match {
	for i := range rules {
		if Matches(&rules[i], k) {
			return acl.Match{Index: uint32(i), Found: true, Allow: rules[i].Allow}
		}
	}
	return acl.Match{}
}

// Matches says whether r alone matches k.
func Matches(r *acl.Rule, k *acl.Key) bool {
	var src, dst netip.Addr
	switch k.Family {
	case 4:
		src, dst = netip.AddrFrom4([4]byte(k.Src[:4])), netip.AddrFrom4([4]byte(k.Dst[:4]))
	case 6:
		src, dst = netip.AddrFrom16(k.Src), netip.AddrFrom16(k.Dst)
	default:
		return false
	}
	return side(src, r.From, r.FromRanges) && side(dst, r.To, r.ToRanges) && service(r.Services, k)
}

func side(a netip.Addr, ps []netip.Prefix, rs [][2]netip.Addr) bool {
	if len(ps) == 0 && len(rs) == 0 {
		return true
	}
	for _, p := range ps {
		if inPrefix(p, a) {
			return true
		}
	}
	for _, r := range rs {
		if a.BitLen() == r[0].BitLen() && r[0].Compare(a) <= 0 && a.Compare(r[1]) <= 0 {
			return true
		}
	}
	return false
}

// inPrefix compares bit by bit: netip.Prefix.Contains would not take the IPv4-mapped addresses that ::/0 holds.
func inPrefix(p netip.Prefix, a netip.Addr) bool {
	if p.Addr().BitLen() != a.BitLen() {
		return false
	}
	x, y := p.Addr().AsSlice(), a.AsSlice()
	for i := range p.Bits() {
		if (x[i/8]^y[i/8])>>(7-i%8)&1 != 0 {
			return false
		}
	}
	return true
}

func service(ss []acl.Service, k *acl.Key) bool {
	if len(ss) == 0 {
		return true
	}
	for _, s := range ss {
		if s.AnyProto || s.Proto == k.Proto && s.SPortLo <= k.SPort && k.SPort <= s.SPortHi && s.DPortLo <= k.DPort && k.DPort <= s.DPortHi {
			return true
		}
	}
	return false
}
