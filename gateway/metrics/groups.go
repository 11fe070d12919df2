package metrics

import (
	"context"

	"demarc/gateway/api"
)

// GroupSource is who knows which node serves which group.
type GroupSource interface {
	Groups(ctx context.Context) (*api.Groups, error)
}

var (
	groupServing   = gauge("group_serving", "1 when this node serves the group now.", "group")
	groupOwner     = gauge("group_owner", "1 for the node that owns the group by agreement, 0 for the others that may.", "group", "node")
	groupEpoch     = gauge("group_epoch", "The term of the group's owner: it goes up with each failover.", "group")
	groupLease     = gauge("group_lease_seconds", "What is left of this node's lease of the group; 0 where it has none.", "group")
	groupProtected = gauge("group_protected", "1 when another node could take over without loss; status says why not. Not shown where the group is known from the log alone.", "group")
	groupFaults    = gauge("group_conditions", "How many conditions count against this node as the group's owner, by cause: ports that carry nothing, a dead uplink, stuck workers, a policy not served, faults on packets.", "group", "cause")
	groupExpected  = gauge("group_expected_gap_seconds", "How long a failover is expected to take; 0 when nobody could take over.", "group")
	groupLastGap   = gauge("group_last_failover_gap_seconds", "How long the group was silent at its last failover, as far as this node saw it; 0 when it did not.", "group")
	groupLastAt    = gauge("group_last_failover_timestamp_seconds", "When this node saw the last failover of the group, Unix time; 0 = none since it started.", "group")
	groupLastCause = gauge("group_last_failover_cause", "1 for what the last failover of the group that this node saw was for, 0 for every other cause; all are 0 when it saw none.", "group", "cause")

	groupRest     = gauge("group_ports_rest_seconds", "For how long new conversations of the group get ports of this node's reserve alone, or none: it took over without knowing which others are in use. 0 when they get all.", "group")
	groupReserve  = gauge("group_ports_reserve_open", "1 while ports rest and this node's reserve is in use.", "group")
	groupWaits    = gauge("group_ports_waiting", "Public addresses of the group, by protocol, with no port to give before another node has acknowledged that it is used.", "group")
	groupDrained  = gauge("group_node_drained", "1 when the node is to own no group: demarc node drain has said so.", "node")
	groupProblem  = gauge("group_problem", "1 when this node takes no part in who serves groups, or hears of nothing that is agreed on; status says why.")
	groupGaps     = counter("group_clock_gaps", "Times that this node did not run for longer than the guard of a lease; what had run out by then was asked for anew.")
	groupLongest  = gauge("group_clock_longest_gap_seconds", "The longest of these.")
	groupLost     = counter("group_lost_messages", "Messages of other members about groups that came faster than they were read.")
	groupHeard    = gauge("group_path_heard_seconds", "How long ago the member was heard by this path; -1 = never, and a path of no address is a member that none is known of.", "member", "remote")
	groupTrip     = gauge("group_path_round_trip_seconds", "How long a probe by this path took there and back; 0 = not known.", "member", "remote")
	groupLoss     = gauge("group_path_loss_ratio", "What of the last probes by this path was lost, there and back.", "member", "remote")
	groupDropped  = counter("group_dropped_datagrams", "Datagrams about groups that came and were not believed, or could not be sent.", "why")
	groupRealtime = gauge("group_realtime", "1 when the thread that keeps the leases has real-time priority.")

	copyLag       = gauge("copy_lag_seconds", "The oldest change of a group's sessions that the node may not have is no older; by the node that serves the group.", "group", "node")
	copyWhole     = gauge("copy_whole", "1 when all sessions of the group are at the node, up to the lag.", "group", "node")
	copyDone      = gauge("copy_done_ratio", "What of a full copy that is under way is done; 1 when none is.", "group", "node")
	copyRecords   = gauge("copy_records", "Sessions and blocks of ports of the group that the node was told of.", "group", "node")
	copyMissing   = gauge("copy_missing_records", "Of them, what the node could not take: its tables are too small, its release is older; status says which.", "group", "node")
	copyConnected = gauge("copy_connected", "1 when there is a connection to the node over which sessions are copied.", "node")
	copyWaiting   = gauge("copy_waiting_bytes", "What is written to the node and not acknowledged by it.", "node")
	copySent      = counter("copy_sent_bytes", "What was written to the node since copying to it began.", "node")
	copyDials     = counter("copy_dials", "Connections to the node that were tried since copying to it began.", "node")

	standbyWhole      = gauge("standby_whole", "1 when this node's copy of the group, which another node serves, is whole; by this node itself.", "group")
	standbyAge        = gauge("standby_age_seconds", "Since this node's copy of the group was last found to be equal to the owner's; 0 while it is not whole.", "group")
	standbyConnected  = gauge("standby_connected", "1 while the node has a connection by which its sessions are copied to this one.", "node")
	standbyRecords    = counter("standby_records", "Records of other nodes' sessions that have come.")
	standbyCopies     = counter("standby_full_copies", "Full copies that have begun, one for each group and worker of its owner.")
	standbyMismatches = counter("standby_mismatches", "Times that a copy was not equal to the owner's, and was made anew.")
	standbyOdd        = counter("standby_odd_records", "Records that were not understood: the log says which.")
	standbyRefused    = counter("standby_refused_groups", "Groups that a node said were its own and may not have, once for each of its streams: `demarc group` says which node.")
	standbyFailed     = counter("standby_failed_batches", "Batches that a worker did not write to their end.")
	standbySteps      = counter("standby_steps", "Steps in which workers wrote what had come, between two bursts.")
	standbyHeld       = counter("standby_held_seconds", "For how long these held packets up in all.")
	standbyLongest    = gauge("standby_longest_step_seconds", "The longest of these.")

	groupFamilies = []*family{standbyWhole, standbyAge, standbyConnected, standbyRecords, standbyCopies, standbyMismatches, standbyOdd, standbyRefused, standbyFailed, standbySteps, standbyHeld, standbyLongest, copyLag, copyWhole, copyDone, copyRecords, copyMissing, copyConnected, copyWaiting, copySent, copyDials, groupServing, groupOwner, groupEpoch, groupLease, groupProtected, groupFaults, groupExpected, groupLastGap, groupLastAt, groupLastCause, groupRest, groupReserve, groupWaits, groupDrained, groupProblem, groupGaps, groupLongest, groupLost, groupHeard, groupTrip, groupLoss, groupDropped, groupRealtime}
)

// groups puts what a source knows of groups; one that does not answer knows of none, and has a problem.
func (o out) groups(ctx context.Context, src any) {
	s, ok := src.(GroupSource)
	if !ok {
		return
	}
	g, err := s.Groups(ctx)
	if err != nil {
		g = &api.Groups{Problem: err.Error()}
	}
	copied := map[string]bool{}
	may := map[string]bool{} // each node of a group -> whether it is drained
	for i := range g.Groups {
		x := &g.Groups[i]
		for _, n := range x.Nodes {
			may[n] = false
		}
		o.put(groupServing, truth(x.Serving), x.Name)
		nodes := map[string]bool{}
		for _, n := range append(x.Nodes, x.Owner) {
			if n != "" && !nodes[n] {
				nodes[n] = true
				o.put(groupOwner, truth(n == x.Owner), x.Name, n)
			}
		}
		o.put(groupEpoch, float64(x.Epoch), x.Name)
		o.put(groupLease, x.Lease, x.Name)
		if len(x.Nodes) > 0 { // else it is known from the log alone, and whether it is protected is not known at all
			o.put(groupProtected, truth(len(x.Why) == 0), x.Name)
		}
		for cause, n := range x.Conditions {
			o.put(groupFaults, float64(n), x.Name, cause)
		}
		o.put(groupExpected, x.Expected, x.Name)
		gap, at, cause := 0.0, 0.0, ""
		if l := x.Last; l != nil {
			cause = l.Cause
			if at = float64(l.Time.UnixMilli()) / 1e3; l.Gap != nil {
				gap = *l.Gap
			}
		}
		if h := x.Here; h != nil {
			o.put(standbyWhole, truth(h.Whole), x.Name)
			o.put(standbyAge, h.Age, x.Name)
		}
		ports := api.GroupPorts{}
		if x.Ports != nil {
			ports = *x.Ports
		}
		o.put(groupRest, ports.Rest, x.Name)
		o.put(groupReserve, truth(ports.Reserve), x.Name)
		o.put(groupWaits, float64(ports.Waiting), x.Name)
		o.put(groupLastGap, gap, x.Name)
		o.put(groupLastAt, at, x.Name)
		for _, c := range api.Causes {
			o.put(groupLastCause, truth(c == cause), x.Name, c)
		}
		for j := range x.Copies {
			c := &x.Copies[j]
			o.put(copyLag, c.Lag, x.Name, c.Node)
			o.put(copyWhole, truth(c.Whole), x.Name, c.Node)
			o.put(copyDone, c.Done, x.Name, c.Node)
			o.put(copyRecords, float64(c.Records), x.Name, c.Node)
			o.put(copyMissing, float64(c.Missing), x.Name, c.Node)
			if copied[c.Node] { // what is not of one group alone
				continue
			}
			copied[c.Node] = true
			o.put(copyConnected, truth(c.Connected), c.Node)
			o.put(copyWaiting, float64(c.Waiting), c.Node)
			o.put(copySent, float64(c.Sent), c.Node)
			o.put(copyDials, float64(c.Dials), c.Node)
		}
	}
	st := g.Standby
	if st == nil {
		st = &api.Standby{}
	}
	for _, p := range st.Peers {
		o.put(standbyConnected, truth(p.Connected), p.Node)
	}
	o.put(standbyRecords, float64(st.Records))
	o.put(standbyCopies, float64(st.Copies))
	o.put(standbyMismatches, float64(st.Mismatches))
	o.put(standbyOdd, float64(st.Odd))
	o.put(standbyRefused, float64(st.Refused))
	o.put(standbyFailed, float64(st.Failed))
	o.put(standbySteps, float64(st.Steps))
	o.put(standbyHeld, st.Held)
	o.put(standbyLongest, st.Longest)
	for _, n := range g.Drained {
		may[n] = true
	}
	for n, drained := range may {
		o.put(groupDrained, truth(drained), n)
	}
	o.put(groupProblem, truth(g.Problem != ""))
	o.put(groupGaps, float64(g.Clock.Gaps))
	o.put(groupLongest, g.Clock.Longest)
	o.put(groupLost, float64(g.Clock.Lost))
	for _, p := range g.Paths {
		o.put(groupHeard, p.Heard, p.Member, p.Remote)
		o.put(groupTrip, p.RoundTrip, p.Member, p.Remote)
		o.put(groupLoss, p.Loss, p.Member, p.Remote)
	}
	for why, n := range g.Dropped {
		o.put(groupDropped, float64(n), why)
	}
	o.put(groupRealtime, truth(g.Clock.Realtime))
}
