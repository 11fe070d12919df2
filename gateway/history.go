package gateway

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"demarc/cluster"
	"demarc/cluster/command"
	"demarc/gateway/api"
)

func (b backend) Apply(ctx context.Context, r api.ApplyRequest) (*api.Applied, error) {
	a, err := b.g.Apply(ctx, r)
	return a, faultOf(err)
}

func (b backend) Confirm(ctx context.Context, r api.ConfirmRequest) (*api.Confirmed, error) {
	a, err := b.g.Confirm(ctx, r)
	return a, faultOf(err)
}

func (b backend) Rollback(ctx context.Context, r api.RollbackRequest) (*api.Applied, error) {
	a, err := b.g.Rollback(ctx, r)
	return a, faultOf(err)
}

func (b backend) Diff(ctx context.Context, r api.DiffRequest) (*api.Diff, error) {
	d, err := b.g.Diff(ctx, r)
	return d, faultOf(err)
}

// History lists the kept revisions, the newest first.
func (b backend) History(context.Context) (*api.History, error) {
	m, err := b.g.known()
	if err != nil {
		return nil, err
	}
	return historyOf(m.Node), nil
}

func historyOf(n *cluster.Node) *api.History {
	s := n.State()
	h := &api.History{Cluster: s.Cluster, Serving: s.Serving, Confirmed: s.Confirmed, Revisions: []api.Past{}}
	for i := len(s.Revisions) - 1; i >= 0; i-- {
		h.Revisions = append(h.Revisions, wirePast(s, &s.Revisions[i]))
	}
	return h
}

func wirePast(s *command.State, r *command.Revision) api.Past {
	return api.Past{Revision: wireRevision(r), From: r.From, Bytes: r.Bytes, Before: r.Before, Back: r.Back, Confirm: r.Confirm.Seconds(), Fate: string(r.Fate),
		Served: r.Number == s.Serving}
}

// Show is one kept revision with its text.
func (b backend) Show(_ context.Context, number uint64) (*api.Shown, error) {
	m, err := b.g.known()
	if err != nil {
		return nil, err
	}
	return shownOf(m.Node, number)
}

func shownOf(n *cluster.Node, number uint64) (*api.Shown, error) {
	if number == 0 {
		number = n.State().Serving
	}
	r, text, err := n.Text(number)
	if err != nil {
		return nil, &api.Fault{Status: http.StatusNotFound, Err: err}
	}
	s := n.State()
	return &api.Shown{Past: wirePast(s, &r), Policy: string(text), Export: string(export(s.Cluster, &r, text))}, nil
}

// Audit is who did what after an index, the latest last.
func (b backend) Audit(_ context.Context, after uint64) (*api.Audit, error) {
	m, err := b.g.known()
	if err != nil {
		return nil, err
	}
	return auditOf(m.Node.State(), after), nil
}

func auditOf(s *command.State, after uint64) *api.Audit {
	out := &api.Audit{Lines: []api.AuditLine{}, Bound: s.Bounds.Audit}
	// The first entry of a cluster begins it: where that line is kept, nothing is gone.
	out.Forgotten = len(s.Audit) > 0 && s.Audit[0].Kind != command.KindInit && after < s.Audit[0].Index
	for _, l := range s.Audit {
		// A recovery stands in no log and has the index of the entry before it: rather twice in an archive than never.
		if l.Index < after || l.Index == after && l.Kind != command.KindRecover {
			continue
		}
		out.Lines = append(out.Lines, api.AuditLine{Index: l.Index, Time: l.Time, Author: l.Who.Author, From: l.Who.From, Kind: string(l.Kind), What: l.What, OK: l.OK})
	}
	return out
}

// clusterStatus is what this node knows of what was agreed on. It waits for nothing.
func (g *Gateway) clusterStatus() api.Cluster {
	c := api.Cluster{State: api.ClusterClosed, Members: []api.Member{}}
	g.agreed.mu.Lock()
	m, why := g.agreed.member, g.agreed.why
	g.agreed.mu.Unlock()
	if m == nil {
		if why == errStarting {
			c.State = api.ClusterReading
			return c
		}
		c.Problem = fmt.Sprintf("%v: this node serves its own copy and takes no change", why)
		return c
	}
	return clusterOf(m.Node, m.up)
}

// clusterOf is what an open node knows; up is closed once changes can be proposed.
func clusterOf(m *cluster.Node, up <-chan struct{}) api.Cluster {
	c := api.Cluster{State: api.ClusterReading, Members: []api.Member{}}
	s := m.State()
	c.ID, c.Revision, c.Confirmed = s.Cluster, s.Serving, s.Confirmed
	c.Leader, c.Leads = m.Lead()
	c.Problem = m.Problem()
	select {
	case <-up:
		c.State = api.ClusterCurrent
	default:
	}
	if m.Stopped() != "" {
		c.State = api.ClusterStopped
	}
	if p, ok := s.Pending(); ok && c.State == api.ClusterCurrent {
		c.Provisional = &api.Provisional{Revision: p.Number, Before: s.Confirmed, Author: p.Author, Left: p.Confirm.Seconds()}
		if n, left, ok := m.Left(); ok && n == p.Number {
			c.Provisional.Left = left.Seconds()
		}
	}
	for _, x := range s.Members {
		c.Members = append(c.Members, api.Member{ID: x.ID, Name: x.Name, Address: x.Address, Role: string(x.Role), Version: x.Version, Self: x.ID == m.ID()})
	}
	return c
}

// An export is the text behind a header of comments. Apply leaves the header out again, so that the text has the digest that it had.
const (
	exportFirst = "# exported by demarc: "
	exportEnd   = "# end of what the export says of itself: apply leaves it out"
	exportLines = 16 // of a header, at most
)

func export(cluster string, r *command.Revision, text []byte) []byte {
	var b bytes.Buffer
	line := func(format string, args ...any) {
		// What people wrote must not end the comment.
		b.WriteString(strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f || r == '\u2028' || r == '\u2029' || r == '\u0085' {
				return ' '
			}
			return r
		}, fmt.Sprintf(format, args...)))
		b.WriteByte('\n')
	}
	line("%srevision %d of cluster %s", exportFirst, r.Number, cluster)
	line("# digest sha256:%s", r.Digest)
	line("# applied %s by %s, %s", r.Time.UTC().Format(time.RFC3339), orNobody(r.Author), r.From)
	if r.Comment != "" {
		line("# comment %s", r.Comment)
	}
	if r.Back != 0 {
		line("# the text of revision %d again", r.Back)
	}
	b.WriteString(exportEnd + "\n")
	b.Write(text)
	return b.Bytes()
}

func orNobody(author string) string {
	if author == "" {
		return "nobody that is known"
	}
	return author
}

// withoutHeader is a text without the header of an export.
func withoutHeader(text []byte) []byte {
	if !bytes.HasPrefix(text, []byte(exportFirst)) {
		return text
	}
	rest := text
	for range exportLines {
		line, after, ok := bytes.Cut(rest, []byte{'\n'})
		if !ok || !bytes.HasPrefix(line, []byte{'#'}) {
			break
		}
		if rest = after; string(line) == exportEnd {
			return rest
		}
	}
	return text
}
