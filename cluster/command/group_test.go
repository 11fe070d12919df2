package command

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"demarc/cluster/failover"
)

// TestGroups: what is agreed on about groups stands in the state and in the audit log, and so do refusals by what members are; those by failover's own rules leave no line.
func TestGroups(t *testing.T) {
	claim := func(epoch uint64, after uint64, node string) *Entry {
		return entry(KindGroup, &failover.Entry{Kind: failover.KindClaim, Group: "east", After: after, Term: failover.Term{Epoch: epoch, Node: node, Life: 1}, Alone: failover.Fence,
			Cause: failover.CauseLease, Why: failover.RightExpired, Stale: true}, "")
	}
	drain := func(node string, on bool) *Entry {
		return entry(KindGroup, &failover.Entry{Kind: failover.KindDrain, Node: node, On: on}, "")
	}
	member := func(id, name string, role Role) *Entry {
		return entry(KindMember, &Member{ID: id, Name: name, Role: role, Level: 1}, "")
	}
	base := []*Entry{begin(), member("1", "a", RoleGateway), member("2", "b", RoleGateway), member("3", "w", RoleWitness)}
	var many []*Entry
	for i := range maxGroups + 1 {
		e := claim(1, 0, "a")
		e.Group.Group = fmt.Sprint("g", i)
		many = append(many, e)
	}
	for _, c := range []struct {
		name    string
		in      []*Entry
		why     Why
		says    string // the refusal, or the line of the audit log
		owner   string
		drained []string
	}{
		{"claimed", []*Entry{claim(1, 0, "a")}, "", "group east: a owns it, epoch 1: lease; its copy was not in sync by agreement", "a", nil},
		{"claimed again", []*Entry{claim(1, 0, "a"), claim(2, 1, "b")}, "", "group east: b owns it, epoch 2", "b", nil},
		{"two at once", []*Entry{claim(1, 0, "a"), claim(2, 1, "b"), claim(3, 1, "a")}, WhyGroup, "look again", "b", nil},
		{"an older epoch", []*Entry{claim(2, 0, "a"), claim(1, 1, "b")}, WhyGroup, "not above 2", "a", nil},
		{"drained", []*Entry{drain("a", true)}, "", "a is drained", "", []string{"a"}},
		{"and back", []*Entry{drain("a", true), drain("a", false)}, "", "a may own groups again", "", nil},
		{"a stranger", []*Entry{drain("c", true)}, WhyUnknown, "no member c", "", nil},
		{"a witness", []*Entry{drain("w", true)}, WhyGroup, "w is a witness", "", nil},
		{"drained, and claims", []*Entry{drain("a", true), claim(1, 0, "a")}, WhyGroup, "a is drained", "", []string{"a"}},
		{"drained, and leaves", []*Entry{drain("a", true), entry(KindForget, &Forget{ID: "1"}, "")}, "", "member a (1) is forgotten", "", nil},
		{"the rest is lost", []*Entry{drain("a", true), drain("b", true), entry(KindRecover, &Recover{ID: "2"}, "")}, "", "recovered", "", []string{"b"}},
		{"too many names", many, WhyFull, "1000 groups", "", nil},
	} {
		s, rs := run(t, slices.Concat(base, c.in)...)
		last := rs[len(rs)-1]
		if why(last) != c.why || last.Refused != nil && !strings.Contains(last.Refused.Text, c.says) {
			t.Errorf("%s: %+v, want %q: %s", c.name, last.Refused, c.why, c.says)
		}
		if got := s.Groups.Groups["east"].Node; got != c.owner || !slices.Equal(s.Groups.Drained, c.drained) {
			t.Errorf("%s: owner %q, drained %v", c.name, got, s.Groups.Drained)
		}
		l := s.Audit[len(s.Audit)-1]
		if c.why == "" && (!strings.Contains(l.What, c.says) || !l.OK) {
			t.Errorf("%s: the audit log says %+v, want %q", c.name, l, c.says)
		}
		if c.why != "" && l.Index == s.Index {
			t.Errorf("%s: a refused entry about a group is in the audit log: %+v", c.name, l)
		}
	}
}
