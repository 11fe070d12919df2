package configs

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"demarc/gateway/archtest/cputime"
)

func TestServices(t *testing.T) {
	const all = 65535
	for in, want := range map[string]Service{
		"any":                   {0, true, 0, all, 0, all},
		"tcp":                   {6, false, 0, all, 0, all},
		"tcp/80":                {6, false, 0, all, 80, 80},
		"tcp/1000-2000":         {6, false, 0, all, 1000, 2000},
		"udp/0-65535":           {17, false, 0, all, 0, all},
		"icmp":                  {1, false, 0, all, 0, all},
		"icmp/echo-request":     {1, false, 0, all, 0x0800, 0x08ff},
		"icmp/8":                {1, false, 0, all, 0x0800, 0x08ff},
		"icmp/3/4":              {1, false, 0, all, 0x0304, 0x0304},
		"icmp/echo-reply":       {1, false, 0, all, 0x0000, 0x00ff},
		"icmpv6/packet-too-big": {58, false, 0, all, 0x0200, 0x02ff},
		"icmpv6/128/0":          {58, false, 0, all, 0x8000, 0x8000},
		"gre":                   {47, false, 0, all, 0, all},
		"esp":                   {50, false, 0, all, 0, all},
		"ah":                    {51, false, 0, all, 0, all},
		"sctp":                  {132, false, 0, all, 0, all},
		"proto/47":              {47, false, 0, all, 0, all},
		"proto/0":               {0, false, 0, all, 0, all},
	} {
		got, err := ParseService(in)
		if err != nil || got != want {
			t.Errorf("%s: %+v %v", in, got, err)
		}
	}
	for _, in := range []string{"", "/", "tcp/", "tcp/-", "tcp/1-", "tcp/080", "tcp/+1", "tcp/1-2-3", "icmp/", "icmp/8/", "icmp/8/0/0", "any/1", "proto/", "proto/1/2", "icmpv6/redirect", "Any"} {
		if s, err := ParseService(in); err == nil {
			t.Errorf("%q was read as %+v", in, s)
		}
	}
}

func expandPolicy() (*Policy, *Tenant) {
	p := &Policy{
		Objects: Objects{
			Hosts:    map[string][]string{"dns": {"192.0.2.53"}, "both": {"dns", "net", "dns"}, "net": {"2001:db8::/32"}, "x": {"y"}, "y": {"x"}},
			Services: map[string][]string{"web": {"tcp/80", "tls"}, "tls": {"tcp/443"}},
		},
		Tenants: []Tenant{{Objects: Objects{
			Hosts:    map[string][]string{"dns": {"198.18.0.53", "net"}, "range": {"198.18.0.1-198.18.0.9"}},
			Services: map[string][]string{"tls": {"tcp/8443"}, "all": {"web", "tls", "udp"}},
		}}},
	}
	return p, &p.Tenants[0]
}

// A tenant's names hide the shared ones for the tenant's own lists; a shared object means the same to everybody.
func TestHosts(t *testing.T) {
	p, tenant := expandPolicy()
	for _, c := range []struct {
		tenant *Tenant
		names  []string
		want   string
	}{
		{nil, nil, "[] []"},
		{nil, []string{"dns"}, "[192.0.2.53/32] []"},
		{tenant, []string{"dns"}, "[198.18.0.53/32 2001:db8::/32] []"},
		{tenant, []string{"both"}, "[192.0.2.53/32 2001:db8::/32] []"},
		{tenant, []string{"range", "10.0.0.0/8"}, "[10.0.0.0/8] [[198.18.0.1 198.18.0.9]]"},
		{tenant, []string{"any"}, "[0.0.0.0/0 ::/0] []"},
		{nil, []string{"range"}, `"range" is not an address or a host object`},
		{nil, []string{"x"}, `"x" names itself: x -> y -> x`},
		{nil, []string{"10.0.0.1/8"}, `"10.0.0.1/8" has bits beyond its length: did you mean "10.0.0.0/8"?`},
	} {
		prefixes, ranges, err := p.Hosts(c.tenant, c.names)
		got := fmt.Sprint(prefixes, " ", ranges)
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%v: got %s, want %s", c.names, got, c.want)
		}
	}
	services, err := p.Services(tenant, []string{"all"})
	var ports []string
	for _, s := range services {
		ports = append(ports, fmt.Sprint(s.Proto, "/", s.DPortLo))
	}
	if got := strings.Join(ports, " "); err != nil || got != "6/80 6/443 6/8443 17/0" {
		t.Errorf("%s %v", got, err)
	}
}

func TestPoolAddrs(t *testing.T) {
	got, err := PoolAddrs([]string{"192.0.2.9", "192.0.2.4/30", "192.0.2.1-192.0.2.2"})
	if want := "[192.0.2.9 192.0.2.4 192.0.2.5 192.0.2.6 192.0.2.7 192.0.2.1 192.0.2.2]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("%v %v", got, err)
	}
	for _, in := range [][]string{{"192.0.2.1", "192.0.2.0/30"}, {"2001:db8::1"}, {"10.0.0.0/8"}, {"240.0.0.1"}, {"192.0.2.1/30"}, {"any"}, {"x"}, {"192.0.0.0/18", "203.0.113.1"}} {
		if got, err := PoolAddrs(in); err == nil {
			t.Errorf("%v gave %d addresses", in, len(got))
		}
	}
}

func TestDSCPs(t *testing.T) {
	got, err := DSCPs([]string{"ef", "EF", "cs3", "af41", "0", "63", "va"})
	if d := cmp.Diff([]uint8{46, 46, 24, 34, 0, 63, 44}, got); d != "" || err != nil {
		t.Error(d, err)
	}
	if _, err := DSCPs([]string{"64"}); err == nil {
		t.Error("64 is no code point")
	}
}

func TestVoiceBits(t *testing.T) {
	tenant := &Tenant{}
	if v := tenant.VoiceBits(&RateDir{Bits: 20_000_000}); v != 15_000_000 {
		t.Error(v)
	}
	tenant.Rates.Voice.Bits = 8_000_000
	for bits, want := range map[Rate]Rate{0: 0, 5_000_000: 5_000_000, 20_000_000: 8_000_000} {
		if v := tenant.VoiceBits(&RateDir{Bits: bits}); v != want {
			t.Errorf("%s of %s", v, bits)
		}
	}
}

func TestMSS(t *testing.T) {
	for _, c := range []struct {
		clamp       string
		family, mtu int
		want        uint16
	}{{"", 4, 1500, 0}, {"mtu", 4, 1492, 1452}, {"mtu", 6, 1492, 1432}, {"1400", 6, 1500, 1400}} {
		if got := (&Interface{MSSClamp: c.clamp}).MSS(c.family, c.mtu); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}

// Merged sets must hold the same addresses as the list they came from: that is what "never matches" is decided by.
func TestMergeHoldsTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var list, in [][2]netip.Addr
		for range rapid.IntRange(0, 6).Draw(t, "n") {
			a, b := rapid.IntRange(0, 30).Draw(t, "a"), rapid.IntRange(0, 30).Draw(t, "b")
			list = append(list, [2]netip.Addr{low(min(a, b)), low(max(a, b))})
		}
		in = append(in, list...)
		out := merge(list)
		for i := range 32 {
			has := func(l [][2]netip.Addr) bool {
				for _, r := range l {
					if !low(i).Less(r[0]) && !r[1].Less(low(i)) {
						return true
					}
				}
				return false
			}
			if has(in) != has(out) {
				t.Fatalf("%v: %v and %v disagree", low(i), in, out)
			}
		}
		for i := 1; i < len(out); i++ {
			if !out[i-1][1].Next().Less(out[i][0]) {
				t.Fatalf("%v is not merged", out)
			}
		}
	})
}

func low(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, 0, byte(i)}) }

func TestWarnings(t *testing.T) {
	rule := func(name, dir, action, rest string) string {
		return fmt.Sprintf("[[tenant.rule]]\nname = %q\ndirection = %q\naction = %q\n%s\n", name, dir, action, rest)
	}
	p := decodePolicy(t, small+"[tenant.nat]\nbypass = [\"192.0.2.0/24\"]\n"+
		rule("wide", "in", "allow", `from = ["192.0.2.0/25", "192.0.2.128/25"]
service = ["tcp", "udp/53"]`)+
		rule("covered", "in", "deny", `from = ["192.0.2.7", "192.0.2.120-192.0.2.140"]
service = ["tcp/80", "udp/53"]`)+
		rule("other direction", "out", "deny", `from = ["192.0.2.7"]
service = ["tcp/80"]
class = "voice"`)+
		rule("other port", "in", "allow", `from = ["192.0.2.7"]
service = ["udp/54"]`)+
		rule("all", "in", "deny", "")+
		rule("after all", "in", "allow", `from = ["any"]`))
	want := []string{
		`p.toml:9: tenant[1].nat.bypass: does nothing without nat.pool: this tenant is routed untranslated anyway`,
		`p.toml:16: tenant[1].rule[2]: can never match: rule[1] ("wide") covers all of it`,
		`p.toml:26: tenant[1].rule[3].from: can never match: addresses of the tenant's prefixes: rules see hosts as they are inside, not as they are translated`,
		`p.toml:28: tenant[1].rule[3].class: "voice" does nothing in a rule that denies: leave it out`,
		`p.toml:40: tenant[1].rule[6]: can never match: rule[5] ("all") covers all of it`,
	}
	if d := cmp.Diff(strings.Join(want, "\n"), p.Warnings().Error()); d != "" {
		t.Error(d)
	}
}

// A large policy must not make an operator wait.
func TestLargePolicyIsQuick(t *testing.T) {
	var b strings.Builder
	b.WriteString(small)
	for i := range 20_000 {
		fmt.Fprintf(&b, "[[tenant.rule]]\nname = \"r%d\"\ndirection = \"in\"\naction = \"allow\"\nfrom = [\"192.0.2.0/24\"]\nto = [\"198.18.%d.%d\"]\nservice = [\"tcp/%d\"]\n", i, i>>8, i&255, i+1)
	}
	used := cputime.Spent(t)
	p := decodePolicy(t, b.String())
	decoded := used()
	w := p.Warnings()
	all := used()
	t.Logf("%d bytes, 20000 rules: decoded in %v, warnings in %v", b.Len(), decoded, all-decoded)
	if len(p.Tenants[0].Rules) != 20_000 || all > 20*time.Second {
		t.Fatalf("%d warnings, %v", len(w), all)
	}
}
