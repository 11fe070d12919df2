package cli

import (
	"slices"
	"strings"
	"testing"

	"demarc/gateway/api"
)

func TestGroupsAre(t *testing.T) {
	s := someStatus()
	s.Node, s.Groups = "edge1", someGroups()
	socket := serve(t, &fake{status: []*api.Status{s}})
	run := func(args ...string) result {
		return call(t, t.Context(), "", append([]string{"--socket", socket}, args...)...)
	}
	golden(t, "groups", run("group").out)
	golden(t, "group_events", run("group", "events").out)
	r := run("status")
	for _, line := range []string{"group     east: edge1 owns it, epoch 7, served here, lease 121 ms; a failover takes 155 ms\n" +
		"          copy at edge2: 41200 records, 3 ms behind, whole\n          copy at edge3: 9000 records, 2500 ms behind, NOT WHOLE: copying, 63 %\n" +
		"          last failover 2026-03-04 05:06:07 UTC, from edge2 to edge1, epoch 7, lease: silent for 187 ms\n",
		"          copy here: NOT WHOLE: tenant not in this node's policy",
		"group     west: edge2 owns it, epoch 3; NOT PROTECTED: the copy of edge1 is not in sync; its owner serves on without a majority (keep)"} {
		if !strings.Contains(r.out, line) {
			t.Errorf("status says\n%s\nand not %q", r.out, line)
		}
	}
}

func TestGroupChanges(t *testing.T) {
	f := &fake{}
	socket := serve(t, f)
	run := func(args ...string) result {
		return call(t, t.Context(), "", append([]string{"--socket", socket}, args...)...)
	}
	for _, args := range [][]string{{"group", "take", "east"}, {"group", "move", "east"}, {"group", "lose"}, {"node"}, {"node", "rest"}, {"node", "drain", "a", "b"}} {
		if r := run(args...); r.code != exitUsage {
			t.Errorf("%v: %v", args, r)
		}
	}
	if r := run("group", "move", "west", "edge1"); r.code != exitFailed || !strings.Contains(r.err, "not whole: sessions would be cut") {
		t.Error(r)
	}
	if r := run("group", "move", "east", "edge2"); r.code != exitOK || !strings.Contains(r.out, "east") {
		t.Error(r)
	}
	if r := run("group", "take", "east", "--force"); r.code != exitOK {
		t.Error(r)
	}
	if r := run("node", "drain", "edge2"); r.code != exitFailed || r.err != "" || !strings.Contains(r.out, "edge2 is drained and still serves west: no other node has a whole copy") || !strings.Contains(r.out, "Do not stop it yet") {
		t.Error(r)
	}
	if r := run("node", "drain", "edge2", "--json"); r.code != exitFailed || !strings.Contains(r.out, `"still_owned": [`) {
		t.Error(r)
	}
	if r := run("node", "drain"); r.code != exitOK || r.out != "edge1 is drained: it owns no group\n" {
		t.Error(r)
	}
	if r := run("node", "undrain", "edge2"); r.code != exitOK || r.out != "edge2 may own groups again\n" {
		t.Error(r)
	}
	if want := []string{"move west edge1", "move east edge2", "take east", "drain edge2", "drain edge2", "drain edge1", "drain edge2"}; !slices.Equal(f.acted.groups, want) {
		t.Errorf("%q, want %q", f.acted.groups, want)
	}
}

// TestCopyWords: who may take over by what is agreed on and has no whole copy now is told so in the same line, and a copy that never was has no age.
func TestCopyWords(t *testing.T) {
	g := &api.Group{InSync: []string{"gw1", "gw2"}, Copies: []api.GroupCopy{{Node: "gw1", Lag: 12599.039, Why: "copying, 0 %"}, {Node: "gw2", Records: 5, Lag: 0.002, Whole: true}}}
	if got := inSync(g); got != "gw1 (not whole now), gw2" || g.InSync[0] != "gw1" {
		t.Errorf("%q", got)
	}
	for i, want := range []string{"copy at gw1: none yet, NOT WHOLE: copying, 0 %", "copy at gw2: 5 records, 2 ms behind, whole"} {
		if got := copyLine(&g.Copies[i]); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
