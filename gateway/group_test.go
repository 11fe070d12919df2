package gateway

import (
	"slices"
	"testing"
	"time"

	"demarc/cluster/failover"
	"demarc/gateway/api"
)

// TestCausesAreTold: the interface has every cause that the machine knows.
func TestCausesAreTold(t *testing.T) {
	var all []string
	for _, c := range failover.Causes {
		all = append(all, string(c))
	}
	if !slices.Equal(all, api.Causes) {
		t.Errorf("the machine's causes are %q, the interface's %q", all, api.Causes)
	}
}

// TestServedText: what explain says of a group's lease.
func TestServedText(t *testing.T) {
	now := uint64(time.Hour)
	for until, want := range map[uint64]string{
		0:                                  "which this node does not serve",
		now:                                "which this node does not serve: its lease ended 0s ago",
		now - uint64(90*time.Millisecond):  "which this node does not serve: its lease ended 90ms ago",
		now + uint64(120*time.Millisecond): "which this node serves: its lease lasts 120ms more",
	} {
		if got := servedText(until, now); got != want {
			t.Errorf("until %d: %s, want %s", until, got, want)
		}
	}
}
