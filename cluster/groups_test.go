package cluster

import (
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
