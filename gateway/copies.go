package gateway

import (
	"context"
	"slices"
	"time"

	"demarc/cluster/failover"
	"demarc/gateway/api"
	"demarc/gateway/pipeline"
	"demarc/gateway/snapshot"
	"demarc/gateway/standby"
)

// openStandby makes the receiving end of copies: workers take orders. What they are given ends with ctx.
func (g *Gateway) openStandby(ctx context.Context) {
	g.openCommons()
	g.standby = standby.New(standby.Config{Shards: g.shards, Common: g.common, Slots: g.common.slots, View: g.view.Load, Taken: g.taken, Now: func() int64 { return int64(g.clock.Exact()) }, Log: g.log,
		Steps:  func(w int, fn func(*pipeline.Shard, time.Duration) bool) error { return g.workers[w].Steps(ctx, fn) },
		Marked: g.marked, Member: g.isMember, Owner: g.ownerOf})
	g.keepLeft()
}

// ownerOf is whom this node's log has as the owner of a group.
func (g *Gateway) ownerOf(group string) (node string, epoch uint64, ok bool) {
	m, err := g.known()
	if err != nil {
		return "", 0, false
	}
	o := m.State().Groups.Groups[group]
	return o.Node, o.Epoch, true
}

// taken reports whether every worker works with a View, or a later one.
func (g *Gateway) taken(v *snapshot.View) bool {
	for _, w := range g.workers {
		if int32(w.Stats().Gen-v.Gen) < 0 {
			return false
		}
	}
	return true
}

// marked tells the driver that the copy of a group is as its owner has it.
func (g *Gateway) marked(group uint8, epoch uint64) {
	if x := g.view.Load().Group(group); x != nil {
		g.groups.driver.Marked(failover.Marked{Group: x.Name, Epoch: epoch})
	}
}

// isMember reports whether a gateway is a member of the cluster, as far as is known.
func (g *Gateway) isMember(name string) (bool, error) {
	m, err := g.known()
	if err != nil {
		return false, err
	}
	_, ok := m.State().Named(name)
	return ok, nil
}

// heldHere puts in how copies of what other nodes serve stand here.
func (g *Gateway) heldHere(out *api.Groups) {
	if g.standby == nil { // the node is starting
		return
	}
	for i := range out.Groups {
		if x := &out.Groups[i]; x.Serving && x.ID > 0 {
			x.Ports = g.common.ports(uint8(x.ID))
		}
	}
	st := g.standby.Status()
	out.Standby = &api.Standby{Peers: []api.StandbyPeer{}, Records: st.Records, Copies: st.Copies, Mismatches: st.Mismatches, Odd: st.Odd, Refused: st.Refused, Failed: st.Failed, Steps: st.Steps, Held: st.Held.Seconds(),
		Longest: st.Longest.Seconds()}
	for _, p := range st.Peers {
		out.Standby.Peers = append(out.Standby.Peers, api.StandbyPeer{Node: p.Name, Connected: p.Connected, Since: p.Since.Seconds(), Why: p.Why, Refused: p.Refused})
	}
	for _, c := range st.Groups {
		for i := range out.Groups {
			if x := &out.Groups[i]; x.Name == c.Name && slices.Contains(x.Nodes, out.Node) && x.Owner != out.Node {
				x.Here = &api.CopyHere{Epoch: c.Epoch, Whole: c.Whole, Age: c.Age.Seconds(), Why: c.Why}
			}
		}
	}
}
