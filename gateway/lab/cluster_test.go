package lab

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"demarc/gateway/api"
	"demarc/gateway/trio"
)

// goodCluster is what the demo measures when everything is as promised.
func goodCluster() *clusterSeen {
	at := func(ms int) looked { // a look takes 10 ms
		return looked{time.Duration(ms-10) * time.Millisecond, time.Duration(ms) * time.Millisecond}
	}
	acks := func(cut int) []api.Serves { return []api.Serves{{Node: "gw1", Cut: cut}, {Node: "gw2", Cut: cut}} }
	past := func(n uint64, fate string) api.Past {
		return api.Past{Revision: api.Revision{Number: n, Digest: strings.Repeat("a", int(n))}, Fate: fate, Served: n == 2}
	}
	s := &clusterSeen{
		Doors:     map[string][]passage{},
		Steady:    map[string]trio.Passed{},
		Shut:      applied{By: "witness", Began: 2 * time.Second, Took: 50 * time.Millisecond, Revision: 2, Nodes: acks(1)},
		Open:      applied{By: "gw1", Began: 4 * time.Second, Took: 50 * time.Millisecond, Revision: 3, Nodes: acks(0)},
		Histories: map[string]api.History{},
		Before:    map[string]*api.Status{}, After: map[string]*api.Status{},
	}
	for _, n := range []string{"gw1", "gw2", "witness"} {
		s.Histories[n] = api.History{Cluster: "c", Serving: 2, Confirmed: 2, Revisions: []api.Past{past(3, "expired"), past(2, "confirmed"), past(1, "confirmed")}}
	}
	for _, g := range clusterGateways {
		s.Doors[g] = []passage{{at(500), at(2040)}, {at(4045), at(7050)}}
		s.Steady[g] = trio.Passed{Sent: 1000, There: 1000, Back: 1000}
		s.After[g] = &api.Status{Revision: api.Revision{Number: 2}, Conservation: api.Conservation{OK: true}}
	}
	return s
}

// Each thing that can go wrong in a cluster must break the promise of its name, and only those listed.
func TestJudgeCluster(t *testing.T) {
	for _, p := range judgeCluster(goodCluster()) {
		if !p.OK {
			t.Fatalf("%s: %v", p.Name, p.Why)
		}
	}
	second := time.Second
	for _, c := range []struct {
		name   string
		change func(*clusterSeen)
		want   []string
	}{
		{"a gateway has not acknowledged", func(s *clusterSeen) { s.Shut.Nodes[1].Why = "not reached" }, []string{"reach"}},
		{"a gateway is not named", func(s *clusterSeen) { s.Open.Nodes = s.Open.Nodes[:1] }, []string{"reach"}},
		{"an apply takes long", func(s *clusterSeen) { s.Open.Took = 3 * second }, []string{"reach"}},
		{"a packet after the command has returned", func(s *clusterSeen) {
			s.Doors["gw2"][0].Last = looked{2100 * time.Millisecond, 2110 * time.Millisecond}
		}, []string{"acl"}},
		{"the door is shut before anybody says so", func(s *clusterSeen) {
			s.Doors["gw1"][0].Last = looked{second, second}
		}, []string{"acl"}},
		{"the door is never shut", func(s *clusterSeen) {
			s.Doors["gw2"] = []passage{{s.Doors["gw2"][0].First, s.Doors["gw2"][1].Last}}
		}, []string{"acl", "confirm"}},
		{"another session was cut", func(s *clusterSeen) { s.Shut.Nodes[0].Cut = 3 }, []string{"acl"}},
		{"it goes back too early", func(s *clusterSeen) { s.Doors["gw1"][1].Last = looked{5 * second, 5 * second} }, []string{"confirm"}},
		{"it goes back too late", func(s *clusterSeen) { s.Doors["gw2"][1].Last = looked{9 * second, 9 * second} }, []string{"confirm"}},
		{"it was confirmed", func(s *clusterSeen) {
			for n, h := range s.Histories {
				h.Serving, h.Revisions[0].Fate = 3, "confirmed"
				s.Histories[n] = h
			}
			for _, a := range s.After {
				a.Revision.Number = 3
			}
		}, []string{"confirm"}},
		{"one node has another text", func(s *clusterSeen) { s.Histories["gw2"].Revisions[1].Digest = "b" }, []string{"agree"}},
		{"one gateway serves something else", func(s *clusterSeen) { s.After["gw1"].Revision.Number = 1 }, []string{"agree"}},
		{"a packet is lost", func(s *clusterSeen) { s.Steady["gw2"] = trio.Passed{Sent: 1000, There: 1000, Back: 999} }, []string{"traffic"}},
		{"nothing was sent", func(s *clusterSeen) { delete(s.Steady, "gw1") }, []string{"traffic"}},
		{"frames are lost", func(s *clusterSeen) { s.After["gw1"].Conservation.OK = false }, []string{"traffic"}},
		{"a tool failed", func(s *clusterSeen) { s.Errors = []string{"udp-probe"} }, []string{"lab"}},
	} {
		s := goodCluster()
		c.change(s)
		r := Result{Promises: judgeCluster(s)}
		if d := cmp.Diff(c.want, r.Broken()); d != "" {
			t.Errorf("%s: broken promises (-want +got):\n%s", c.name, d)
		}
	}
	r := Result{Promises: judgeCluster(&clusterSeen{})}
	for _, name := range []string{"reach", "acl", "confirm", "agree", "traffic"} {
		if !slices.Contains(r.Broken(), name) {
			t.Errorf("%s held without anything measured", name)
		}
	}
}

func TestClusterDemo(t *testing.T) {
	demoHolds(t, RunCluster, Options{}, `witness agrees on revision 2 "shut", confirmed; revision 3 "open" has expired`)
}

func TestRunClusterRefusesWrongOptions(t *testing.T) {
	if _, err := RunCluster(t.Context(), Options{Break: "nat"}); err == nil || !strings.Contains(err.Error(), "acl, reach, confirm") {
		t.Errorf("%v", err)
	}
}
