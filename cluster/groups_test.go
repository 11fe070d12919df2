package cluster

import (
	"strings"
	"testing"

	"demarc/cluster/command"
	"demarc/cluster/failover"
)

// What a log has beyond what is known to be agreed on is somebody's claim, one of an earlier life of this node, somebody's copy in sync, or nothing that keeps a voter from its promises: least of all a claim
// that this life is waiting for.
func TestClaimsInTheLog(t *testing.T) {
	group := func(kind failover.Kind, node string, life uint64) *command.Entry {
		return &command.Entry{Kind: command.KindGroup, Group: &failover.Entry{Kind: kind, Group: "g", Term: failover.Term{Epoch: 2, Node: node, Life: life}}}
	}
	for _, c := range []struct {
		name                 string
		e                    *command.Entry
		behind, past, copies bool
	}{
		{"another's claim", group(failover.KindClaim, "b", 7), true, false, false},
		{"an earlier life's", group(failover.KindClaim, "a", 6), false, true, false},
		{"this life's", group(failover.KindClaim, "a", 7), false, false, false},
		{"a copy in sync", &command.Entry{Kind: command.KindGroup, Group: &failover.Entry{Kind: failover.KindSync, Group: "g", Node: "b", On: true}}, false, false, true},
		{"one that is not any more", group(failover.KindSync, "", 0), false, false, false},
		{"nothing about groups", &command.Entry{Kind: command.KindMember}, false, false, false},
	} {
		if behind, past := claims(c.e, "a", 7); behind != c.behind || past != c.past {
			t.Errorf("%s: %v, %v", c.name, behind, past)
		}
		if copies := inSync(c.e); copies != c.copies {
			t.Errorf("%s: %v", c.name, copies)
		}
	}
}

// Whoever undrains by a name that nobody has is told which names there are, and nothing is agreed on: the log itself takes any name, so that older members and old logs agree. A witness is nobody
// to drain, least of all by being asked.
func TestUndrainOfNobody(t *testing.T) {
	s := newSite(t)
	gw, wit := s.host("gw1", command.RoleGateway), s.host("wit", command.RoleWitness)
	m := gw.run()
	begun(t, m)
	w := wit.enter(m, "")
	voting(t, []*member{m, w}, 2)
	root := command.Who{Author: "root"}
	const asked = "wit, which is asked, is a witness: it owns no group, so name the node that is meant: the gateways are gw1"
	refused := func(by *member, name string, on bool, says string) {
		t.Helper()
		if _, err := by.DrainNode(t.Context(), name, on, root); err == nil || err.Error() != says {
			t.Errorf("drain %v of %q: %v, want %s", on, name, err, says)
		}
	}
	refused(m, "gw9", false, "gw9 is neither drained nor a member: no node is drained, the members are gw1 and wit")
	refused(m, "wit", false, "wit is a witness: it owns no group")
	refused(w, "", false, asked)
	refused(w, "", true, asked)
	done := func(what, name string, on bool) {
		t.Helper()
		eventually(t, what, func() bool { _, err := m.DrainNode(t.Context(), name, on, root); return err == nil })
	}
	done("gw1 is drained", "", true)
	refused(m, "gw9", false, "gw9 is neither drained nor a member: drained are gw1, the members are gw1 and wit")
	done("it may own groups again", "gw1", false)
	done("and once more, which changes nothing", "gw1", false)
	for _, l := range m.State().Audit {
		if strings.Contains(l.What, "gw9") || strings.Contains(l.What, "wit may own") {
			t.Errorf("agreed on: %s", l.What)
		}
	}
}
