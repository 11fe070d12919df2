package configs

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func lines(list []Change) string {
	var out []string
	for _, c := range list {
		out = append(out, c.String())
	}
	return strings.Join(out, "\n")
}

func TestDiff(t *testing.T) {
	old := decodePolicy(t, `schema = 1
name = "one"
[backbone]
interfaces = ["wan"]
[[route]]
prefix = "0.0.0.0/0"
via = "203.0.113.1"
[[route]]
prefix = "10.0.0.0/8"
discard = true
[objects.hosts]
noc = ["192.0.2.1"]
[[tenant]]
name = "a"
interfaces = ["a"]
prefixes = ["198.18.0.0/24"]
[tenant.nat]
pool = ["192.0.2.8/30", "192.0.2.1"]
[[tenant.nat.forward]]
public = "192.0.2.1"
proto = "tcp"
port = 25
inside = "198.18.0.25"
[tenant.rates.out]
bits = "20M"
[[tenant.rule]]
name = "first"
direction = "in"
action = "allow"
from = ["noc"]
[[tenant.rule]]
name = "second"
direction = "in"
action = "allow"
service = ["tcp/25"]
[[tenant.rule]]
direction = "in"
action = "deny"
service = ["udp"]
[[tenant.rule]]
name = "last"
direction = "in"
action = "deny"
[[tenant]]
name = "gone"
interfaces = ["b"]
prefixes = ["198.18.0.0/24"]
[tenant.nat]
pool = ["192.0.2.70"]
`)
	new := decodePolicy(t, `schema = 1
name = "one"
[timeouts]
udp = "1m"
[backbone]
interfaces = ["wan"]
[[route]]
prefix = "0.0.0.0/0"
via = "203.0.113.2"
[objects.hosts]
noc = ["192.0.2.1", "192.0.2.2"]
[[tenant]]
name = "come"
interfaces = ["b"]
prefixes = ["198.18.0.0/24"]
[tenant.nat]
pool = ["192.0.2.70"]
[[tenant]]
name = "a"
interfaces = ["a"]
prefixes = ["198.18.0.0/24", "2001:db8::/64"]
[tenant.nat]
pool = ["192.0.2.1", "192.0.2.16"]
[[tenant.nat.forward]]
public = "192.0.2.1"
proto = "tcp"
port = 25
inside = "198.18.0.26"
[tenant.rates]
overhead = 38
[tenant.rates.out]
bits = "50M"
[[tenant.rule]]
name = "new"
direction = "in"
action = "allow"
to = ["198.18.0.9"]
log = true
[[tenant.rule]]
name = "second"
direction = "in"
action = "allow"
service = ["tcp/25", "tcp/465"]
[[tenant.rule]]
direction = "in"
action = "deny"
service = ["udp"]
[[tenant.rule]]
name = "first"
direction = "in"
action = "allow"
from = ["noc"]
`)
	want := `changed timeouts.udp: 5m -> 1m
changed route 0.0.0.0/0: via 203.0.113.1 -> via 203.0.113.2
removed route 10.0.0.0/8: discard
changed objects.hosts noc: 192.0.2.1 -> 192.0.2.1,192.0.2.2
tenant "a": added prefixes: 2001:db8::/64
tenant "a": removed nat.pool: 192.0.2.8/30
tenant "a": added nat.pool: 192.0.2.16
tenant "a": changed nat.forward 192.0.2.1 tcp/25: 198.18.0.25:25 -> 198.18.0.26:25
tenant "a": changed rates.out.bits: 20M -> 50M
tenant "a": changed rates.overhead: none -> 38
tenant "a": moved rule "first" (in, 4): position 1 -> position 4
tenant "a": changed rule "second" (in, 2): allow in service tcp/25 -> allow in service tcp/25,tcp/465
tenant "a": removed rule "last" (in, 4): deny in
tenant "a": added rule "new" (in, 1): allow in to 198.18.0.9 log
tenant "gone": removed the tenant: 198.18.0.0/24 on b, 0 rules
tenant "come": added the tenant: 198.18.0.0/24 on b, 0 rules`
	if d := cmp.Diff(strings.Split(want, "\n"), strings.Split(lines(Diff(old, new)), "\n")); d != "" {
		t.Error(d)
	}
	if d := Diff(old, old); len(d) != 0 {
		t.Error(lines(d))
	}
}

// What Diff says about rules is enough to get from one list to the other, and nothing in it is idle.
func TestDiffOfRulesIsComplete(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		gen := func(label string) []Rule {
			var out []Rule
			for _, n := range rapid.SliceOfNDistinct(rapid.IntRange(0, 7), 0, 7, rapid.ID[int]).Draw(t, label) {
				out = append(out, Rule{Name: string(rune('a' + n)), Direction: "in", Action: "allow"})
			}
			return out
		}
		old, new := gen("old"), gen("new")
		d := &differ{}
		d.rules("in", old, new)
		touched := map[string]bool{}
		for _, c := range d.out {
			touched[strings.Split(c.Path, `"`)[1]] = true
		}
		rest := func(list []Rule) (s string) {
			for _, r := range list {
				if !touched[r.Name] {
					s += r.Name
				}
			}
			return s
		}
		if rest(old) != rest(new) {
			t.Fatalf("rules that are not named differ: %q and %q\n%s", rest(old), rest(new), lines(d.out))
		}
		same := len(old) == len(new)
		for i := range old {
			same = same && old[i].Name == new[i].Name
		}
		if same != (len(d.out) == 0) {
			t.Fatalf("same is %v, but:\n%s", same, lines(d.out))
		}
	})
}
