package configs

import (
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
