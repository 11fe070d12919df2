package metrics

import (
	"context"
	"net/http"
	"runtime"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"demarc/gateway/api"
)

// MemberSource is who knows the members of the cluster.
type MemberSource interface {
	Members(ctx context.Context) (*api.Members, error)
}

var (
	memberAnswers = gauge("cluster_member_answers", "1 when the member answers this node; of the node itself always.", "member")
	memberVotes   = gauge("cluster_member_votes", "1 when the member has a vote; a newcomer has none until it has caught up.", "member")
	memberApplied = gauge("cluster_member_applied_entries", "Entries of the log that the member has carried out, as it last said.", "member")
	memberUntil   = gauge("cluster_member_certificate_expiry_timestamp_seconds", "When the member's certificate ends, Unix time; 0 where that is not known, or there is none.", "member")
	memberClock   = gauge("cluster_member_clock_off_seconds", "The member's wall clock against this node's, where that is too much; else 0.", "member")
	memberStopped = gauge("cluster_member_stopped", "1 when the member has said that it carries out no entry of the log any more: it cannot read one, or its disk is damaged.", "member")
	memberBehind  = gauge("cluster_member_behind", "1 when another member's release knows what this one's does not: that is refused until it is upgraded.", "member")
	clusterTokens = gauge("cluster_tokens", "Tokens that somebody may join by.")
	peersRefused  = counter("cluster_refused_connections", "Connections to the cluster's port that were not let in, by kind.", "why")

	clusterTerm  = gauge("cluster_term", "The term of the log: it goes up with each election, also one that comes to nothing.")
	clusterTaken = counter("cluster_lead_taken", "Times that this node has come to lead the log since it started.")
	clusterStood = counter("cluster_stood", "Times that this node stood for election because it did not hear the leader beside the log's own messages, or the leader's process had ended, or nobody led and it heard a majority. Elections for want of the log's messages alone are not in it: the term counts them.")

	clusterWrites  = counter("cluster_log_writes", "Writes of the log to this node's disk: entries, and term and vote.")
	clusterWriting = counter("cluster_log_write_seconds", "Seconds that they took together.")
	clusterLongest = gauge("cluster_longest_log_write_seconds", "The longest of the last minute, and up to the one before. A takeover waits for two writes here or at whoever leads, and two at another member.")

	memberFamilies = []*family{memberAnswers, memberVotes, memberApplied, memberUntil, memberClock, memberStopped, memberBehind, clusterTokens, peersRefused, clusterTerm, clusterTaken, clusterStood, clusterWrites, clusterWriting, clusterLongest}
)

func (o out) members(m *api.Members) {
	for i := range m.Members {
		x := &m.Members[i]
		o.put(memberAnswers, truth(x.Self || x.Problem == "" && x.Answered != nil || x.Answered != nil && *x.Answered < 10), x.Name)
		o.put(memberVotes, truth(x.Votes), x.Name)
		o.put(memberApplied, float64(x.Applied), x.Name)
		until := 0.0
		if x.Until != nil {
			until = float64(x.Until.Unix())
		}
		o.put(memberUntil, until, x.Name)
		o.put(memberClock, x.ClockOff, x.Name)
		o.put(memberStopped, truth(x.Stopped != ""), x.Name)
		o.put(memberBehind, truth(len(x.Lacks) > 0), x.Name)
	}
	o.put(clusterTokens, float64(m.Tokens))
	o.put(clusterTerm, float64(m.Election.Term))
	o.put(clusterTaken, float64(m.Election.Led))
	o.put(clusterStood, float64(m.Election.Stood))
	o.put(clusterWrites, float64(m.Log.Count))
	o.put(clusterWriting, m.Log.Seconds)
	o.put(clusterLongest, m.Log.Longest)
	for kind, n := range m.Refused {
		o.put(peersRefused, float64(n), kind)
	}
}

// cluster puts this node's own part in it.
func (o out) cluster(c *api.Cluster) {
	o.put(clusterCurrent, truth(c.State == api.ClusterCurrent))
	o.put(clusterLeads, truth(c.Leads))
	o.put(clusterLed, truth(c.Leader != ""))
	o.put(clusterMembers, float64(len(c.Members)))
	o.put(clusterRevision, float64(c.Revision))
	o.put(clusterConfirmed, float64(c.Confirmed))
	o.put(clusterProvisional, truth(c.Provisional != nil))
	left := 0.0
	if c.Provisional != nil {
		left = c.Provisional.Left
	}
	o.put(clusterLeft, left)
	o.put(clusterProblem, truth(c.Problem != ""))
}

// WitnessSource is who knows the figures of a witness: it has no packets.
type WitnessSource interface {
	MemberSource
	Status(ctx context.Context, rules bool) (*api.Status, error)
}

// Witness serves what a witness has: what runs, its members, its part in the cluster, its interface, and the process's own figures.
func Witness(src WitnessSource) http.Handler {
	return handler(func(ctx context.Context) prometheus.Collector { return &witnessCollector{ctx, src} })
}

// witnessCollector is one scrape of a witness.
type witnessCollector struct {
	ctx context.Context
	src WitnessSource
}

// witnessFamilies are what a witness shows.
func witnessFamilies() []*family {
	return slices.Concat([]*family{buildInfo}, memberFamilies, clusterFamilies, groupFamilies, apiFamilies)
}

// Describe lists the families of a witness.
func (c *witnessCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range witnessFamilies() {
		ch <- f.desc
	}
}

// Collect reads the source once.
func (c *witnessCollector) Collect(ch chan<- prometheus.Metric) {
	m, err := c.src.Members(c.ctx)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(clusterTokens.desc, err)
		return
	}
	s, err := c.src.Status(c.ctx, false)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(clusterCurrent.desc, err)
		return
	}
	o := out(ch)
	o.put(buildInfo, 1, s.Version, runtime.Version())
	o.members(m)
	o.cluster(&s.Cluster)
	o.groups(c.ctx, c.src)
	o.api(&s.API)
}
