package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"demarc/gateway/api"
	"demarc/gateway/netlab/roottest"
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

// The demo of a cluster holds with real nodes; with one thing switched off it fails and names that.
func TestClusterDemoAndEachBrokenStage(t *testing.T) {
	demoHolds(t, "--cluster", ClusterStages, RunCluster, `witness agrees on revision 2 "shut", confirmed; revision 3 "open" has expired`)
}

// demoHolds has a demo of several nodes hold, with these words on its screen, and, by the command line with one thing switched off, fail and name that. Those are judged for one thing each,
// so they may run at the same time.
func demoHolds(t *testing.T, kind string, stages []string, run func(context.Context, Options) (Result, error), shows ...string) {
	t.Helper()
	roottest.Require(t)
	binary := filepath.Join(t.TempDir(), "demarc")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "demarc")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	var out bytes.Buffer
	r, err := run(t.Context(), Options{Binary: binary, Out: &out})
	if err != nil || !r.OK {
		t.Errorf("broken: %v, %v\n%s", r.Broken(), err, &out)
	}
	for _, want := range shows {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the view does not show %q:\n%s", want, &out)
		}
	}
	nothingLeft(t, os.Getpid())
	var wg sync.WaitGroup
	for _, stage := range stages {
		wg.Go(func() {
			c := exec.CommandContext(t.Context(), binary, "lab", kind, "--json", "--break", stage)
			text, err := c.Output()
			var r Result
			if jerr := json.Unmarshal(text, &r); jerr != nil {
				t.Errorf("break=%s: %v, %v: %s", stage, err, jerr, text)
				return
			}
			if err == nil || r.OK || !slices.Contains(r.Broken(), stage) {
				t.Errorf("with %s broken the demo says that these are: %v (%v)\n%s", stage, r.Broken(), err, text)
			}
			nothingLeft(t, c.Process.Pid)
		})
	}
	wg.Wait()
}

func TestRunClusterRefusesWrongOptions(t *testing.T) {
	if _, err := RunCluster(t.Context(), Options{Break: "nat"}); err == nil || !strings.Contains(err.Error(), "acl, reach, confirm") {
		t.Errorf("%v", err)
	}
}
