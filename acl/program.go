package acl

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Program is a compiled list.
type Program struct {
	v4         tree
	v6         tree
	src4, dst4 ranks4
	src6, dst6 ranks6
}

// sides is a rule's intervals in one family.
type sides struct{ from, to []interval }

// Compile builds the classifier of rules, where the first match decides. An error names the index of the rule that it is about.
func Compile(rules []Rule) (*Program, error) {
	if uint64(len(rules)) > maxIndex {
		return nil, fmt.Errorf("%d rules: at most %d", len(rules), maxIndex)
	}
	var (
		per   [2][]sides
		svcs  = make([][]service, len(rules))
		total int
	)
	per[0], per[1] = make([]sides, len(rules)), make([]sides, len(rules))
	for i := range rules {
		r := &rules[i]
		if err := r.check(); err != nil {
			return nil, &RuleError{i, err}
		}
		if r.Never {
			continue
		}
		svcs[i] = services(r.Services)
		n := 0
		for f, fam := range [...]Family{V4, V6} {
			s := sides{intervals(fam, r.From, r.FromRanges), intervals(fam, r.To, r.ToRanges)}
			if len(s.from) == 0 || len(s.to) == 0 {
				continue
			}
			per[f][i] = s
			pairs := uint64(len(s.from)) * uint64(len(s.to))
			if pairs > MaxBoxesPerRule || pairs*uint64(len(svcs[i])) > MaxBoxesPerRule {
				return nil, &RuleError{i, fmt.Errorf("%d sources times %d destinations times %d services are more than %d combinations; split the rule",
					len(s.from), len(s.to), len(svcs[i]), MaxBoxesPerRule)}
			}
			n += int(pairs) * len(svcs[i])
		}
		if n > MaxBoxesPerRule {
			return nil, &RuleError{i, fmt.Errorf("%d combinations of source, destination and service, at most %d; split the rule", n, MaxBoxesPerRule)}
		}
		if total += n; total > MaxBoxes {
			return nil, &RuleError{i, fmt.Errorf("the rules up to it have %d combinations of source, destination and service, at most %d in a list", total, MaxBoxes)}
		}
	}

	p := new(Program)
	from, to := ends(per[0], V4)
	p.src4, p.dst4 = newRanks4(from), newRanks4(to)
	p.v4 = build(boxes(rules, per[0], svcs,
		func(a addr) uint32 { return p.src4.find(uint32(a.lo)) },
		func(a addr) uint32 { return p.dst4.find(uint32(a.lo)) }), len(p.src4.starts), len(p.dst4.starts))
	from, to = ends(per[1], V6)
	p.src6, p.dst6 = newRanks6(from), newRanks6(to)
	p.v6 = build(boxes(rules, per[1], svcs, p.src6.find, p.dst6.find), len(p.src6.los), len(p.dst6.los))
	return p, nil
}

// ends collects where, in one family, something begins to match or has ceased to.
func ends(per []sides, f Family) (from, to []addr) {
	top := lastAddr(f)
	add := func(out []addr, ivs []interval) []addr {
		for _, iv := range ivs {
			out = append(out, iv.lo)
			if iv.hi != top {
				out = append(out, iv.hi.next())
			}
		}
		return out
	}
	for i := range per {
		from, to = add(from, per[i].from), add(to, per[i].to)
	}
	return sortEnds(from), sortEnds(to)
}

// boxes multiplies the rules out, in list order, over ranks.
func boxes(rules []Rule, per []sides, svcs [][]service, src, dst func(addr) uint32) []box {
	var out []box
	seen := make(map[[5]uint64]struct{})
	for i := range per {
		index := uint32(i) << 1
		if rules[i].Allow {
			index |= 1
		}
		for _, from := range per[i].from {
			fLo, fHi := src(from.lo), src(from.hi)
			for _, to := range per[i].to {
				tLo, tHi := dst(to.lo), dst(to.hi)
				for _, s := range svcs[i] {
					b := box{
						lo:    [dims]uint32{fLo, tLo, uint32(s.sLo), uint32(s.dLo), uint32(s.pLo)},
						hi:    [dims]uint32{fHi, tHi, uint32(s.sHi), uint32(s.dHi), uint32(s.pHi)},
						index: index,
					}
					// A second box that is the same can never be the first match, and no cut would ever part the two.
					id := b.id()
					if _, dup := seen[id]; !dup {
						seen[id] = struct{}{}
						out = append(out, b)
					}
				}
			}
		}
	}
	return out
}

// Lookup finds the first rule in list order that matches k.
func (p *Program) Lookup(k *Key) Match {
	var v point
	v[dimSPort], v[dimDPort], v[dimProto] = uint32(k.SPort), uint32(k.DPort), uint32(k.Proto)
	var t *tree
	switch Family(k.Family) {
	case V4:
		t = &p.v4
		if len(t.nodes) == 0 {
			return Match{}
		}
		v[dimSrc] = p.src4.find(binary.BigEndian.Uint32(k.Src[:4]))
		v[dimDst] = p.dst4.find(binary.BigEndian.Uint32(k.Dst[:4]))
	case V6:
		t = &p.v6
		if len(t.nodes) == 0 {
			return Match{}
		}
		v[dimSrc] = p.src6.find(addr{be64(k.Src[:8]), be64(k.Src[8:])})
		v[dimDst] = p.dst6.find(addr{be64(k.Dst[:8]), be64(k.Dst[8:])})
	default:
		return Match{}
	}
	best := t.find(&v)
	if best == none {
		return Match{}
	}
	return Match{Index: best >> 1, Found: true, Allow: best&1 != 0}
}

// Bytes is the memory that p takes, in bytes.
func (p *Program) Bytes() int {
	return programBytes + p.v4.bytes() + p.v6.bytes() +
		p.src4.bytes() + p.dst4.bytes() + p.src6.bytes() + p.dst6.bytes()
}

const (
	none     = math.MaxUint32      // in place of index<<1|allow: no rule
	maxIndex = math.MaxUint32 >> 1 // so that index<<1|allow never is none

	programBytes = 352 // a Program without what its slices point to
)
