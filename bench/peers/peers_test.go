package peers

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"demarc/acl"
	"demarc/acl/aclgen"
	"demarc/acl/aclref"
)

// chains is a ruleset as nft would read it: the lines of each chain.
type chains map[string][]string

func parse(t *testing.T, text string) chains {
	t.Helper()
	c := chains{}
	name := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "chain "):
			name = strings.Fields(line)[1]
			if c[name] != nil {
				t.Fatalf("chain %s is written twice", name)
			}
			c[name] = []string{}
		case line == "}":
			name = ""
		case name != "":
			c[name] = append(c[name], line)
		}
	}
	return c
}

// allow walks a packet through a chain as nftables does, knowing only the words that the writer uses.
func (c chains) allow(t *testing.T, chain string, k *acl.Key) bool {
	t.Helper()
	for range 10 {
		lines, ok := c[chain]
		if !ok {
			t.Fatalf("no chain %q", chain)
		}
		next := ""
		for _, line := range lines {
			if i := strings.Index(line, " vmap { "); i >= 0 {
				next = vmap(t, line[:i], strings.TrimSuffix(line[i+8:], " }"), k)
				if next != "" {
					break
				}
				continue
			}
			if name, ok := strings.CutPrefix(line, "goto "); ok {
				next = name
				break
			}
			line = strings.TrimSuffix(strings.Replace(line, "counter ", "", 1), ` comment "last rule"`)
			cond := strings.Fields(line)
			if holds(t, cond[:len(cond)-1], k) {
				return cond[len(cond)-1] == "accept"
			}
		}
		if next == "" {
			t.Fatalf("chain %s has no end", chain)
		}
		chain = next
	}
	t.Fatal("goes on for ever")
	return false
}

func vmap(t *testing.T, what, elements string, k *acl.Key) string {
	for e := range strings.SplitSeq(elements, ", ") {
		key, verdict, _ := strings.Cut(e, " : goto ")
		if what == "meta l4proto" {
			if protoOf(key) == k.Proto {
				return verdict
			}
			continue
		}
		lo, hi, _ := strings.Cut(key, "-")
		a := side(t, strings.Fields(what)[1], k)
		if l, h := netip.MustParseAddr(lo), netip.MustParseAddr(hi); !a.Less(l) && !h.Less(a) {
			return verdict
		}
	}
	return ""
}

func protoOf(s string) uint8 {
	return map[string]uint8{"icmp": 1, "tcp": 6, "udp": 17, "ipv6-icmp": 58}[s]
}

func side(t *testing.T, word string, k *acl.Key) netip.Addr {
	t.Helper()
	a, known := map[string][16]byte{"saddr": k.Src, "daddr": k.Dst}[word]
	if !known {
		t.Fatalf("unknown word %q", word)
	}
	if k.Family == 6 {
		return netip.AddrFrom16(a)
	}
	return netip.AddrFrom4([4]byte(a[:4]))
}

func holds(t *testing.T, cond []string, k *acl.Key) bool {
	t.Helper()
	for i := 0; i < len(cond); i += 3 {
		a, b, v := cond[i], cond[i+1], cond[i+2]
		switch {
		case a == "ip" || a == "ip6":
			p, err := netip.ParsePrefix(v)
			if err != nil {
				t.Fatal(err)
			}
			if !p.Contains(side(t, b, k)) {
				return false
			}
		case a == "meta" && b == "l4proto":
			if protoOf(v) != k.Proto {
				return false
			}
		case a == "icmp" && b == "type":
			n, _ := strconv.Atoi(v)
			if k.Proto != 1 || int(k.DPort>>8) != n {
				return false
			}
		case b == "sport" || b == "dport":
			port := k.SPort
			if b == "dport" {
				port = k.DPort
			}
			lo, hi, dash := strings.Cut(v, "-")
			if !dash {
				hi = lo
			}
			l, _ := strconv.Atoi(lo)
			h, _ := strconv.Atoi(hi)
			if k.Proto != protoOf(a) || int(port) < l || int(port) > h {
				return false
			}
		default:
			t.Fatalf("unknown condition %q", cond)
		}
	}
	return true
}

func config(f Form, rules []acl.Rule) Config {
	return Config{Form: f, Rules: rules, In: "in0", Out: "out0", Inside: netip.MustParsePrefix("198.18.0.0/16"),
		Pool: [2]netip.Addr{netip.MustParseAddr("192.0.2.16"), netip.MustParseAddr("192.0.2.31")}, RateBits: 8e9}
}

var first = regexp.MustCompile(`goto (acl_\d+)\n\t}\n\tchain in `)

// Both forms decide what the linear reference decides, in both families: a peer with other rules would be no peer.
func TestBothFormsDecideAsTheReference(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for n, kind := range aclgen.Kinds {
		for _, size := range []int{1, 12, 400} {
			rules := aclgen.Rules(seed+uint64(n), size, aclgen.Options{Kind: kind})
			decide(t, aclgen.KindNames[n], rules, append(aclgen.Keys(seed, rules, 1500), aclgen.Inside(seed, 500)...), 4)
			if kind != aclgen.Edge || size == 1 {
				continue
			}
			rules = aclgen.Rules(seed+uint64(n), size, aclgen.Options{Kind: kind, V6: 1})
			for i := range rules {
				for j, s := range rules[i].Services {
					if s.Proto == 1 && !s.AnyProto {
						rules[i].Services[j] = acl.Service{Proto: 58, SPortHi: 65535, DPortHi: 65535}
					}
				}
			}
			decide(t, aclgen.KindNames[n], rules, aclgen.Keys(seed, rules, 700), 6)
		}
	}
}

// decide compares both forms of a list with the reference for the keys of one family.
func decide(t *testing.T, name string, rules []acl.Rule, keys []acl.Key, family uint8) {
	t.Helper()
	for _, f := range []Form{Linear, Maps} {
		cfg := config(f, rules)
		cfg.V6 = family == 6
		text, err := Ruleset(cfg)
		if err != nil {
			t.Fatal(err)
		}
		c := parse(t, text)
		m := first.FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("no list is called:\n%.300s", text)
		}
		looked := 0
		for i := range keys {
			if keys[i].Family != family {
				continue
			}
			looked++
			want := aclref.Lookup(rules, &keys[i])
			if got := c.allow(t, m[1], &keys[i]); got != (want.Found && want.Allow) {
				t.Fatalf("%s list of %d, %s, family %d: key %+v: allow %v, want %+v", name, len(rules), f, family, keys[i], got, want)
			}
		}
		if looked < 100 {
			t.Fatalf("%d keys of family %d were looked at", looked, family)
		}
	}
}

func TestRulesThatCannotBeWritten(t *testing.T) {
	for name, r := range map[string]acl.Rule{
		"ipv6":     {From: []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")}},
		"range":    {FromRanges: [][2]netip.Addr{{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.9")}}},
		"protocol": {Services: []acl.Service{{Proto: 47, SPortHi: 65535, DPortHi: 65535}}},
	} {
		if _, err := Ruleset(config(Linear, []acl.Rule{r})); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

const listing = `table ip demarc_bench {
	counter tenant_out {
		packets 7 bytes 70
	}
	chain acl_1 {
		ip saddr 198.18.1.0/24 udp dport 53 drop
		ip daddr 192.0.2.1 accept
		counter packets %d bytes 46 accept comment "last rule"
		drop
	}
	chain out {
		limit rate over 1000000000 bytes/second burst 20000000 bytes drop
		counter name "tenant_out"
		ct state established,related accept
		goto acl_1
	}
	chain in {
		limit rate over 1000000000 bytes/second burst 20000000 bytes drop
		counter name "tenant_in"
		drop
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oif "out0" ip saddr 198.18.0.0/16 snat to 192.0.2.16/28
	}
}
`

// A ruleset that lacks any of its duties is found out.
func TestInspect(t *testing.T) {
	whole := fmt.Sprintf(listing, 100)
	without := func(s string) string {
		var b strings.Builder
		for line := range strings.Lines(whole) {
			if !strings.Contains(line, s) {
				b.WriteString(line)
			}
		}
		return b.String()
	}
	for _, c := range []struct{ name, text, want string }{
		{"whole", whole, ""},
		{"no nat", without("snat"), "source translation"},
		{"no limit", without("limit"), "the rate limit"},
		{"no counters", without("counter name"), "accounting"},
		{"a rule less", without("udp dport"), "rules: it has 2 of 3"},
		{"never asked", fmt.Sprintf(listing, 99), "the last rule"},
		{"empty", "", "source translation"},
	} {
		if got := Inspect(c.text).Missing(3, 100, true); !strings.HasPrefix(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%s: lacks %q, want %q", c.name, got, c.want)
		}
	}
}

func TestSameInputSameText(t *testing.T) {
	rules := aclgen.Rules(rand.Uint64(), 300, aclgen.Options{})
	a, err := Ruleset(config(Maps, rules))
	b, err2 := Ruleset(config(Maps, rules))
	if err != nil || err2 != nil || a != b {
		t.Errorf("two texts for one list: %v %v", err, err2)
	}
}
