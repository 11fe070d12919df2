package configs

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Times below what the RFCs ask of a translator are allowed and named; the defaults and the least values are not.
func TestWarnsOfTimesBelowTheRFCs(t *testing.T) {
	for name, c := range map[string]struct{ keys, want string }{
		"defaults": {"", ""},
		"least":    {"tcp_established = \"2h4m\"\ntcp_transitory = \"4m\"\ntcp_closing = \"4m\"\ntcp_closed = \"1s\"\nudp = \"2m\"\nudp_unanswered = \"2m\"\nicmp = \"1m\"\nother = \"1s\"", ""},
		"too short": {"tcp_established = \"2h\"\ntcp_transitory = \"3m\"\ntcp_closing = \"30s\"\nudp = \"90s\"\nudp_unanswered = \"30s\"\nicmp = \"59s\"", `
p.toml:3: timeouts.tcp_established: "2h" is shorter than a NAT should wait: 2h4m or more (RFC 5382 REQ-5)
p.toml:4: timeouts.tcp_transitory: "3m" is shorter than a NAT should wait: 4m or more (RFC 5382 REQ-5)
p.toml:5: timeouts.tcp_closing: "30s" is shorter than a NAT should wait: 4m or more (RFC 5382 REQ-5, RFC 7857 section 2.2)
p.toml:6: timeouts.udp: "1m30s" is shorter than a NAT should wait: 2m or more (RFC 4787 REQ-5)
p.toml:7: timeouts.udp_unanswered: "30s" is shorter than a NAT should wait: 2m or more (RFC 4787 REQ-5)
p.toml:8: timeouts.icmp: "59s" is shorter than a NAT should wait: 1m or more (RFC 5508 REQ-2)`},
	} {
		p := decodePolicy(t, "schema = 1\n[timeouts]\n"+c.keys+"\n[backbone]\ninterfaces = [\"wan\"]\n[[tenant]]\nname = \"a\"\ninterfaces = [\"a\"]\nprefixes = [\"198.18.0.0/24\"]\n")
		got := ""
		if w := p.Warnings(); len(w) > 0 {
			got = w.Error()
		}
		if d := cmp.Diff(strings.TrimSpace(c.want), got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

// Voice goes before what waits for a rate, so where there is none it is named, by direction; a rate of packets is one, and a rule that refuses has no class.
func TestWarnsOfVoiceWithoutARate(t *testing.T) {
	const rule = "[[tenant.rule]]\ndirection = \"out\"\naction = %q\nservice = [\"udp/5060\"]\n%s"
	both := []string{"out", "in"}
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"no voice":           {fmt.Sprintf(rule, "allow", ""), nil},
		"by a mark":          {"[tenant.rates.voice]\ndscp = [\"ef\"]\n", both},
		"by a rule":          {fmt.Sprintf(rule, "allow", "class = \"voice\"\n"), both},
		"with both rates":    {"[tenant.rates]\nout = { bits = \"10M\" }\nin = { packets = 1000 }\nvoice = { dscp = [\"ef\"] }\n", nil},
		"with one of them":   {"[tenant.rates]\nout = { bits = \"10M\" }\nvoice = { dscp = [\"ef\"] }\n", []string{"in"}},
		"with a host's rate": {"[tenant.rates]\nhost = { out = { bits = \"1M\" } }\nvoice = { dscp = [\"ef\"] }\n", both},
	} {
		p := decodePolicy(t, "schema = 1\n[backbone]\ninterfaces = [\"wan\"]\n[[tenant]]\nname = \"a\"\ninterfaces = [\"a\"]\nprefixes = [\"198.18.0.0/24\"]\n"+c.text)
		w := p.Warnings()
		if len(w) != len(c.want) {
			t.Errorf("%s: %v, want %d", name, w, len(c.want))
			continue
		}
		for _, dir := range c.want {
			if !strings.Contains(w.Error(), "tenant[1].rates."+dir+": is without a rate") {
				t.Errorf("%s: %v, want one of %s", name, w, dir)
			}
		}
	}
}

// A rule for those who may come in says nothing to the others where the filtering of mappings lets them in: that is named, and where nothing of that kind is meant it is not.
func TestWarnsOfOpenMappings(t *testing.T) {
	const allow, deny = "[[tenant.rule]]\ndirection = \"in\"\naction = \"allow\"\nfrom = [\"203.0.113.0/24\"]\n", "[[tenant.rule]]\ndirection = \"in\"\naction = \"deny\"\n"
	const out = "[[tenant.rule]]\ndirection = \"out\"\naction = \"deny\"\nservice = [\"tcp/25\"]\n"
	for name, c := range map[string]struct {
		nat, rules string
		warned     bool
	}{
		"open, and rules that allow":      {"pool = [\"192.0.2.1\"]\nfiltering = \"endpoint-independent\"", allow + out, true},
		"half open":                       {"pool = [\"192.0.2.1\"]\nfiltering = \"address-dependent\"", allow, true},
		"the rest is denied":              {"pool = [\"192.0.2.1\"]\nfiltering = \"endpoint-independent\"", allow + deny, false},
		"open to everybody, as some like": {"pool = [\"192.0.2.1\"]\nfiltering = \"endpoint-independent\"", out, false},
		"the default":                     {"pool = [\"192.0.2.1\"]", allow, false},
		"not translated":                  {"", allow, false},
	} {
		p := decodePolicy(t, "schema = 1\n[backbone]\ninterfaces = [\"wan\"]\n[[tenant]]\nname = \"a\"\ninterfaces = [\"a\"]\nprefixes = [\"198.18.0.0/24\"]\n[tenant.nat]\n"+c.nat+"\n"+c.rules)
		w := p.Warnings()
		if warned := len(w) == 1 && strings.Contains(w.Error(), "tenant[1].nat.filtering: "); warned != c.warned || !warned && len(w) > 0 {
			t.Errorf("%s: %v", name, w)
		}
	}
}

// Rules that match nobody are named, whatever it is by: objects that hold nothing, public addresses where rules see inside ones, and messages of ICMP that no rule is asked about. What is meant is not.
func TestWarnsOfRulesForNobody(t *testing.T) {
	const objects = "[objects.hosts]\nnone = []\nnested = [\"none\"]\nsome = [\"203.0.113.7\"]\n[objects.services]\nnothing = []\n"
	for name, c := range map[string]struct{ rule, want string }{
		"empty object":            {"direction = \"in\"\naction = \"allow\"\nfrom = [\"none\"]", "from: names objects that hold nothing"},
		"object of empty objects": {"direction = \"in\"\naction = \"deny\"\nfrom = [\"nested\"]", "from: names objects that hold nothing"},
		"empty to":                {"direction = \"out\"\naction = \"deny\"\nto = [\"none\"]", "to: names objects that hold nothing"},
		"empty service":           {"direction = \"out\"\naction = \"deny\"\nservice = [\"nothing\"]", "service: names objects that hold nothing"},
		"one that holds some":     {"direction = \"in\"\naction = \"allow\"\nfrom = [\"none\", \"some\"]", ""},
		"public address":          {"direction = \"in\"\naction = \"deny\"\nto = [\"203.0.113.8\"]", "to: can never match"},
		"inside address":          {"direction = \"in\"\naction = \"deny\"\nto = [\"198.18.0.8\", \"203.0.113.8\"]", ""},
		"wider than inside":       {"direction = \"out\"\naction = \"deny\"\nfrom = [\"198.18.0.0/15\"]", ""},
		"somebody else's":         {"direction = \"out\"\naction = \"deny\"\nfrom = [\"198.18.1.0/24\"]", "from: can never match"},
		"an error":                {"direction = \"out\"\naction = \"deny\"\nservice = [\"tcp/1\", \"icmp/time-exceeded\"]", "service: icmp/11 has no effect"},
		"a code":                  {"direction = \"out\"\naction = \"deny\"\nservice = [\"icmp/8/1\"]", "service: icmp/8/1 has no effect"},
		"too big of IPv6":         {"direction = \"in\"\naction = \"allow\"\nservice = [\"icmpv6/packet-too-big\"]", "service: icmpv6/2 has no effect"},
		"requests":                {"direction = \"in\"\naction = \"allow\"\nservice = [\"icmp/echo-request\", \"icmp/timestamp-request\", \"icmpv6/echo-request\", \"icmp/8/0\"]", ""},
		"all of ICMP":             {"direction = \"in\"\naction = \"allow\"\nservice = [\"icmp\", \"icmpv6\", \"any\"]", ""},
	} {
		p := decodePolicy(t, "schema = 1\n[backbone]\ninterfaces = [\"wan\"]\n"+objects+"[[tenant]]\nname = \"a\"\ninterfaces = [\"a\"]\nprefixes = [\"198.18.0.0/24\"]\n[[tenant.rule]]\n"+c.rule+"\n")
		got := ""
		if w := p.Warnings(); len(w) > 0 {
			got = w.Error()
		}
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) || strings.Contains(got, "\n") {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// 1:1 translations without a pool leave all other hosts without IPv4 to the backbone, and a deny of some does not end what mappings let in.
func TestWarnsOfTranslations(t *testing.T) {
	tenant := "schema = 1\n[backbone]\ninterfaces = [\"wan\"]\n[[tenant]]\nname = \"a\"\ninterfaces = [\"a\"]\nprefixes = [\"198.18.0.0/24\"]\n[tenant.nat]\n"
	const static, allow = "[[tenant.nat.static]]\npublic = \"203.0.113.9\"\ninside = \"198.18.0.9\"\n", "[[tenant.rule]]\ndirection = \"in\"\naction = \"allow\"\nfrom = [\"203.0.113.0/24\"]\n"
	for name, c := range map[string]struct{ more, want string }{
		"1:1 alone":        {"bypass = [\"192.0.2.0/24\"]\n" + static, "nat.static: leaves all other hosts without IPv4"},
		"1:1 and a pool":   {"pool = [\"203.0.113.8\"]\n" + static, ""},
		"a deny of some":   {"pool = [\"203.0.113.8\"]\nfiltering = \"endpoint-independent\"\n" + allow + "[[tenant.rule]]\ndirection = \"in\"\naction = \"deny\"\nservice = [\"tcp/22\"]\n", "nat.filtering"},
		"a deny in parts":  {"pool = [\"203.0.113.8\"]\nfiltering = \"endpoint-independent\"\n" + allow + "[[tenant.rule]]\ndirection = \"in\"\naction = \"deny\"\nfrom = [\"0.0.0.0/0\"]\nto = [\"198.18.0.0/24\"]\nservice = [\"tcp\", \"udp\"]\n", ""},
		"a deny of others": {"pool = [\"203.0.113.8\"]\nfiltering = \"endpoint-independent\"\n" + allow + "[[tenant.rule]]\ndirection = \"in\"\naction = \"deny\"\nfrom = [\"any\"]\n", ""},
	} {
		p := decodePolicy(t, tenant+c.more)
		got := ""
		if w := p.Warnings(); len(w) > 0 {
			got = w.Error()
		}
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) || strings.Contains(got, "\n") {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// Two tenants' prefixes differ where one of them is not always translated.
func TestBypassedTenantsDoNotOverlap(t *testing.T) {
	tenant := func(name, prefix, nat string) string {
		return "[[tenant]]\nname = \"" + name + "\"\ninterfaces = [\"" + name + "\"]\nprefixes = [\"" + prefix + "\"]\n[tenant.nat]\n" + nat
	}
	const head = "schema = 1\n[backbone]\ninterfaces = [\"wan\"]\n"
	const pool, bypass = "pool = [\"203.0.113.8\"]\n", "bypass = [\"192.0.2.0/24\"]\n"
	for name, c := range map[string]struct {
		text string
		ok   bool
	}{
		"both translated":              {tenant("a", "198.18.1.0/24", pool) + tenant("b", "198.18.0.0/16", "pool = [\"203.0.113.9\"]\n"), true},
		"one with a bypass, one plain": {tenant("a", "198.18.1.0/24", pool+bypass) + tenant("b", "198.18.0.0/16", ""), false},
		"both with a bypass":           {tenant("a", "198.18.1.0/24", pool+bypass) + tenant("b", "198.18.1.0/24", "pool = [\"203.0.113.9\"]\n"+bypass), false},
		"one 1:1 alone":                {tenant("a", "198.18.1.0/24", pool+bypass) + tenant("b", "198.18.0.0/16", "[[tenant.nat.static]]\npublic = \"203.0.113.9\"\ninside = \"198.18.7.9\"\n"), true},
		"one with a bypass":            {tenant("a", "198.18.1.0/24", pool+bypass) + tenant("b", "198.18.1.0/24", "pool = [\"203.0.113.9\"]\n"), true},
	} {
		if err := CheckSound(decodePolicy(t, head+c.text), nil, [2]uint16{}); (err == nil) != c.ok || err != nil && !strings.Contains(err.Error(), "no nat.bypass") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
