package peers

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Seen is what the kernel's own listing of its ruleset shows.
type Seen struct {
	Rules    int    // of the list, as often as its chains have them; the end of a chain is none
	NAT      bool   // a source translation is there
	Limits   int    // rules that limit a rate
	Counters int    // tenants' counters that count in a rule
	LastRule uint64 // packets that the last rule of the list decided about
}

var lastRule = regexp.MustCompile(`counter packets (\d+) bytes \d+ (?:accept|drop) comment "last rule"`)

// Inspect reads the output of `nft list ruleset`.
func Inspect(listing string) Seen {
	var s Seen
	inACL := false
	for line := range strings.Lines(listing) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "chain "); ok {
			inACL = strings.HasPrefix(name, "acl_")
			continue
		}
		switch {
		case inACL && line != "drop" && (strings.HasSuffix(line, "accept") || strings.HasSuffix(line, "drop") || strings.HasSuffix(line, `comment "last rule"`)):
			s.Rules++
			if m := lastRule.FindStringSubmatch(line); m != nil {
				n, _ := strconv.ParseUint(m[1], 10, 64) // digits by the expression
				s.LastRule += n
			}
		case strings.Contains(line, "snat to "):
			s.NAT = true
		case strings.HasPrefix(line, "limit rate over "):
			s.Limits++
		case strings.HasPrefix(line, "counter name "):
			s.Counters++
		}
	}
	return s
}

// Missing says what the ruleset lacks to be a fair peer for a list of rules of which the last one let flows begin; "" = nothing.
func (s Seen) Missing(rules, flows int, nat bool) string {
	switch {
	case nat && !s.NAT:
		return "source translation"
	case s.Limits < 2:
		return "the rate limit"
	case s.Counters < 2:
		return "accounting"
	case s.Rules < rules:
		return fmt.Sprintf("rules: it has %d of %d", s.Rules, rules)
	case s.LastRule < uint64(flows):
		return fmt.Sprintf("the last rule's decision: it was asked for %d of %d flows", s.LastRule, flows)
	}
	return ""
}
