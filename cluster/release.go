package cluster

import (
	"context"
	"fmt"
	"slices"
	"time"

	"demarc/cluster/command"
)

// ErrLater wraps what a node cannot read because a later release has written it. Nothing is damaged: an upgrade of the node mends it.
var ErrLater = command.ErrLater

// unreadable says which members could not read an entry, and what would be right; "" = every one can. One that cannot would stop where it is.
func unreadable(s *command.State, e *command.Entry) string {
	if l := s.CannotRead(e); len(l) > 0 {
		return command.LackWords(l)
	}
	return ""
}

// lacking is the refusal of a policy whose features not every member knows; nil when there is none. Names in except are gateways that may stay behind.
func (n *Node) lacking(features, except []string) (ids []string, refused *command.Refusal) {
	s := n.st.State()
	for _, name := range except {
		if m, ok := s.Named(name); ok {
			ids = append(ids, m.ID)
		}
	}
	if l := s.Lacking(features, ids); len(l) > 0 {
		refused = &command.Refusal{Why: command.WhyRelease, Text: command.LackWords(l)}
	}
	return ids, refused
}

// union is all that two sorted lists hold, sorted.
func union(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

// lacks says what some other member's release knows and this member's does not: what is refused until it is upgraded.
func lacks(s *command.State, m command.Member) []string {
	features, level := s.Ahead()
	out := m.Unknown(features)
	if m.Level < level {
		out = append(out, fmt.Sprintf("log entries of level %d", level))
	}
	return out
}

// KnownTo names another member whose release knows a feature, with its version; "" = none that this node knows of.
func (n *Node) KnownTo(feature string) string {
	for _, m := range n.st.State().Members {
		if m.ID != n.id && len(m.Unknown([]string{feature})) == 0 {
			return m.Release()
		}
	}
	return ""
}

// Stopped says why this node carries out no entry any more; "" = it does. It goes on voting, and keeps entries for when its cause is mended.
func (n *Node) Stopped() string { return n.st.Stopped() }

// step has a leader that cannot carry entries out hand the lead on: nothing could be changed while it leads.
func (n *Node) step() {
	if n.st.Stopped() == "" || !n.st.Leads() {
		return
	}
	voters, err := n.st.Voters()
	if err != nil || len(voters) < 2 {
		return
	}
	id, address := "", "" // whichever is best
	for _, v := range voters {
		if seen, ok := n.seenOf(v.ID); ok && v.Votes && seen.err == "" && seen.status != nil && seen.status.Stopped == "" {
			id, address = v.ID, v.Address
		}
	}
	if err := n.st.Yield(id, address); err != nil {
		n.log.Warn("hand the lead on: this node applies no entries", "err", err)
		return
	}
	n.log.Info("the lead is handed on: this node applies no entries", "why", n.st.Stopped())
}

// standDown does so whenever this node has come to lead. What tends may be waiting for the very leader that this node is.
func (n *Node) standDown(ctx context.Context) {
	t := time.NewTicker(n.pace(time.Second))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			n.step()
		}
	}
}
