package cli

import (
	"context"
	"errors"
	"net/http"
	"time"

	"demarc/gateway/api"
)

// someGroups is two groups: one that is served here and protected after a failover, one that another node owns and nobody could take over.
func someGroups() *api.Groups {
	gap := 0.187
	return &api.Groups{Node: "edge1", Standby: &api.Standby{Refused: 1, Peers: []api.StandbyPeer{{Node: "edge3", Refused: []string{"it is not one of the nodes of group west, which are edge2, edge1"}}}}, Drained: []string{"edge3"}, Clock: api.GroupClock{Gaps: 2, Longest: 0.031},
		Paths: []api.GroupPath{{Member: "edge2", Local: "192.0.2.1:7400", Remote: "192.0.2.2:7400", Heard: 0.012, RoundTrip: 0.0005, Loss: 0.25}, {Member: "wit", Heard: -1, Problem: "no keys yet"}}, Groups: []api.Group{
			{Name: "east", ID: 1, Nodes: []string{"edge1", "edge2"}, Owner: "edge1", Epoch: 7, Serving: true, Lease: 0.121, Alone: "fence", InSync: []string{"edge2"}, Cause: "lease", From: "edge2", Expected: 0.155, Why: []string{},
				Copies: []api.GroupCopy{{Node: "edge2", Connected: true, Whole: true, Lag: 0.003, Done: 1, Records: 41200}, {Node: "edge3", Connected: true, Lag: 2.5, Done: 0.63, Records: 9000, Why: "copying, 63 %"}},
				Last:   &api.GroupMove{Epoch: 7, From: "edge2", To: "edge1", Cause: "lease", Gap: &gap, Time: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)}},
			{Name: "west", ID: 2, Nodes: []string{"edge2", "edge1"}, Owner: "edge2", Epoch: 3, Alone: "keep", Cause: "first", Here: &api.CopyHere{Why: "tenant not in this node's policy: 12 records of stream 0 of edge2 were not taken"}, Against: []string{"1 of its ports carry nothing"}, Why: []string{"the copy of edge1 is not in sync", "its owner serves on without a majority (keep): nobody takes over without proof that it has stopped"}}}}
}

func (f *fake) Groups(context.Context) (*api.Groups, error) { return someGroups(), nil }

func (f *fake) GroupEvents(context.Context) (*api.GroupEvents, error) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	return &api.GroupEvents{Events: []api.GroupEvent{{Time: at, Node: "edge1", Group: "east", What: "claiming epoch 7: lease"},
		{Time: at.Add(12 * time.Millisecond), What: "group east: edge1 owns it, epoch 7: lease", By: "edge1"}}}, nil
}

func (f *fake) MoveGroup(_ context.Context, r api.MoveRequest) (*api.Groups, error) {
	f.acted.groups = append(f.acted.groups, "move "+r.Group+" "+r.To)
	if r.Group == "west" {
		return nil, &api.Fault{Status: http.StatusConflict, Err: errors.New("the copy of edge1 is not whole: sessions would be cut. Status says what it lacks; wait for it, or run `demarc group take west --force` on edge1, which cuts those that it does not have")}
	}
	return someGroups(), nil
}

func (f *fake) TakeGroup(_ context.Context, r api.TakeRequest) (*api.Groups, error) {
	f.acted.groups = append(f.acted.groups, "take "+r.Group)
	return someGroups(), nil
}

func (f *fake) Drain(_ context.Context, r api.DrainRequest) (*api.Drained, error) {
	d := &api.Drained{Node: r.Node, Undo: r.Undo}
	if d.Node == "" {
		d.Node = "edge1"
	}
	if d.Node == "edge2" && !r.Undo {
		d.Still = []string{"west"}
	}
	f.acted.groups = append(f.acted.groups, "drain "+d.Node)
	return d, nil
}
