package bench

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"demarc/acl"
	"demarc/acl/aclgen"
	"demarc/bench/pktgen"
)

// makeRules makes a list like an enterprise edge's, of which only the last rule matches the plan's flows, and allows them.
func makeRules(seed uint64, n int, p *pktgen.Plan) ([]acl.Rule, error) {
	return rulesFor(seed, n, p.V6(), planKeys(p, 17))
}

// planKeys are what the first packets of a plan's flows ask an access list.
func planKeys(p *pktgen.Plan, proto uint8) []acl.Key {
	keys := make([]acl.Key, p.Flows)
	for i := range keys {
		in, out := p.Flow(i)
		keys[i] = keyOf(in, out, proto)
	}
	return keys
}

// keyOf is what the first packet of a flow asks.
func keyOf(in, out netip.AddrPort, proto uint8) (k acl.Key) {
	copy(k.Src[:], in.Addr().AsSlice())
	copy(k.Dst[:], out.Addr().AsSlice())
	k.SPort, k.DPort, k.Proto, k.Family = in.Port(), out.Port(), proto, 4
	if in.Addr().Is6() {
		k.Family = 6
	}
	return k
}

// rulesFor is that for other keys than a plan's.
func rulesFor(seed uint64, n int, v6 bool, keys []acl.Key) ([]acl.Rule, error) {
	// The generator looks at each key for each rule, so it gets a few, and those that an earlier rule caught.
	var few []acl.Key
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 64 {
		few = append(few, keys[rnd.IntN(len(keys))])
	}
	o := aclgen.Options{Kind: aclgen.Edge}
	if v6 {
		o.V6 = 1
	}
	for range 1000 {
		rules := aclgen.LastOnly(seed, n, o, few...)
		if v6 {
			forV6(rules)
		}
		prog, err := acl.Compile(rules)
		if err != nil {
			return nil, err
		}
		caught := false
		var hit []uint32
		for i := range keys {
			m := prog.Lookup(&keys[i])
			if m.Found && m.Index == uint32(n-1) && m.Allow {
				continue
			}
			caught = true
			// One more key for each rule that caught some.
			if !slices.Contains(hit, m.Index) {
				hit = append(hit, m.Index)
				few = append(few, keys[i])
			}
		}
		if !caught {
			return rules, nil
		}
	}
	return nil, fmt.Errorf("no list of %d rules was found that only the last rule of matches", n)
}

// forV6 makes those rules that are about ICMP rules about ICMPv6. No flow of ours is either.
func forV6(rules []acl.Rule) {
	for i := range rules {
		for j, s := range rules[i].Services {
			if !s.AnyProto && s.Proto == 1 {
				rules[i].Services[j] = acl.Service{Proto: 58, SPortHi: 65535, DPortHi: 65535}
			}
		}
	}
}

// policy is what the gateway serves. rate is in bit/s, for each direction.
func policy(rules []acl.Rule, inside []netip.Prefix, pool [2]netip.Addr, rate uint64, outsideVia, insideVia netip.Addr, outside netip.Prefix) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "schema = 1\nname = \"bench\"\n\n[backbone]\ninterfaces = [\"out\"]\n\n[[route]]\nprefix = %q\nvia = %q\n\n", outside, outsideVia)
	fmt.Fprintf(&b, "[[tenant]]\nname = \"bench\"\ninterfaces = [\"in\"]\nprefixes = %s\ndefault_out = \"deny\"\n\n", quoted(inside))
	fmt.Fprintf(&b, "[[tenant.route]]\nprefix = %q\nvia = %q\n\n", inside[0], insideVia)
	if pool[0].Is4() { // IPv6 is routed
		fmt.Fprintf(&b, "[tenant.nat]\npool = [\"%s-%s\"]\n\n", pool[0], pool[1])
	}
	for _, d := range []string{"out", "in"} {
		fmt.Fprintf(&b, "[tenant.rates.%s]\nbits = %d\n\n", d, rate)
	}
	for i := range rules {
		r := &rules[i]
		action := "deny"
		if r.Allow {
			action = "allow"
		}
		fmt.Fprintf(&b, "[[tenant.rule]]\nname = \"r%d\"\ndirection = \"out\"\naction = %q\n", i+1, action)
		if len(r.From) > 0 {
			fmt.Fprintf(&b, "from = %s\n", quoted(r.From))
		}
		if len(r.To) > 0 {
			fmt.Fprintf(&b, "to = %s\n", quoted(r.To))
		}
		if len(r.Services) > 0 {
			var s []string
			for _, v := range r.Services {
				text, err := service(v)
				if err != nil {
					return "", fmt.Errorf("rule %d: %w", i, err)
				}
				s = append(s, text)
			}
			fmt.Fprintf(&b, "service = %s\n", quoted(s))
		}
		b.WriteString("\n")
	}
	return b.String(), nil
}

func service(s acl.Service) (string, error) {
	proto := map[uint8]string{1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}[s.Proto]
	switch {
	case s.AnyProto:
		return "any", nil
	case proto == "" || s.SPortLo != 0 || s.SPortHi != 65535:
		return "", fmt.Errorf("a policy has no word for protocol %d, source ports %d-%d", s.Proto, s.SPortLo, s.SPortHi)
	case s.DPortLo == 0 && s.DPortHi == 65535:
		return proto, nil
	case s.Proto == 1 && s.DPortLo&0xff == 0 && s.DPortHi == s.DPortLo|0xff:
		return fmt.Sprintf("icmp/%d", s.DPortLo>>8), nil
	case s.Proto == 1:
		return "", fmt.Errorf("a policy has no word for ICMP %d-%d", s.DPortLo, s.DPortHi)
	case s.DPortLo == s.DPortHi:
		return fmt.Sprintf("%s/%d", proto, s.DPortLo), nil
	}
	return fmt.Sprintf("%s/%d-%d", proto, s.DPortLo, s.DPortHi), nil
}

func quoted[T any](list []T) string {
	var s []string
	for _, v := range list {
		s = append(s, fmt.Sprintf("%q", fmt.Sprint(v)))
	}
	return "[" + strings.Join(s, ", ") + "]"
}
