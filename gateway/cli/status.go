package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"demarc/gateway/api"
)

func (a *app) statusCmd() *cobra.Command {
	var watch, rules bool
	var every time.Duration
	c := command("status", "say how the node is and what its tenants do",
		"Print the node, the policy revision that it serves, workers, queues with their real AF_XDP mode and why it is not a better one, and\n"+
			"per tenant what has passed since the start. With --watch, rates per second between two looks.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			path := api.PathStatus
			if rules {
				path += "?rules=1"
			}
			if watch {
				if every < 100*time.Millisecond {
					return usageError{errors.New("--interval is below 100ms")}
				}
				return a.watch(cmd, path, every)
			}
			return get(a, cmd, path, func(w io.Writer, s *api.Status) { writeStatus(w, s, nil) })
		})
	c.Flags().BoolVarP(&watch, "watch", "w", false, "print again and again, with rates, until interrupted")
	c.Flags().BoolVar(&rules, "rules", false, "also how often each rule decided about a new session")
	c.Flags().DurationVar(&every, "interval", time.Second, "time between two looks of --watch")
	return a.data(c)
}

// watch prints the status until the context ends, which is no error: that is how a watch ends. JSON is one object per line.
func (a *app) watch(cmd *cobra.Command, path string, every time.Duration) error {
	out := cmd.OutOrStdout()
	f, ok := out.(*os.File)
	redraw := ok && !a.json && term.IsTerminal(int(f.Fd()))
	c, err := a.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	var last *api.Status
	for {
		var s api.Status
		if err := c.Get(cmd.Context(), path, &s); err != nil {
			if cmd.Context().Err() != nil {
				return nil
			}
			return err
		}
		var b bytes.Buffer
		switch {
		case a.json:
			if err := json.NewEncoder(&b).Encode(&s); err != nil {
				return err
			}
		default:
			if redraw {
				b.WriteString("\x1b[H\x1b[2J")
			} else if last != nil {
				b.WriteString("\n")
			}
			writeStatus(&b, &s, last)
		}
		if _, err := out.Write(b.Bytes()); err != nil {
			return err
		}
		last = &s
		if !sleep(cmd.Context(), every) {
			return nil
		}
	}
}

// writeCluster says what was agreed on, and what this node lacks of it.
func writeCluster(w io.Writer, s *api.Status) {
	c := &s.Cluster
	lead := "nobody leads"
	switch {
	case c.Leads && len(c.Members) == 1:
		lead = "this node by itself"
	case c.Leads:
		lead = "this node leads"
	case c.Leader != "":
		lead = clean(c.Leader) + " leads"
	}
	copied, on := fmt.Sprintf(": revision %d is served from this node's own copy", s.Revision.Number), fmt.Sprintf("; revision %d goes on being served", s.Revision.Number)
	if s.Role == string(roleWitness) { // serves nothing
		copied, on = "", ""
	}
	switch c.State {
	case api.ClusterReading:
		fmt.Fprintf(w, "cluster   reading what was agreed on%s\n", copied)
	case api.ClusterClosed:
		fmt.Fprintf(w, "cluster   CLOSED\n")
	case api.ClusterStopped:
		fmt.Fprintf(w, "cluster   STOPPED, %s: no entry is applied here any more%s\n", lead, on)
	default:
		fmt.Fprintf(w, "cluster   %s, revision %d is agreed on, %d confirmed\n", lead, c.Revision, c.Confirmed)
	}
	if p := c.Provisional; p != nil {
		fmt.Fprintf(w, "UNCONFIRMED revision %d by %s: revision %d comes back in %s unless you run: demarc confirm %d\n", p.Revision, clean(p.Author), p.Before, seconds(p.Left), p.Revision)
	}
	if c.Problem != "" {
		fmt.Fprintf(w, "PROBLEM   %s\n", clean(c.Problem))
	}
	if g := s.Groups; g != nil {
		for i := range g.Groups {
			fmt.Fprintf(w, "group     %s\n", groupLine(s.Node, &g.Groups[i]))
			for _, line := range groupMore(&g.Groups[i]) {
				fmt.Fprintf(w, "          %s\n", clean(line))
			}
		}
		if g.Problem != "" {
			fmt.Fprintf(w, "PROBLEM   groups: %s\n", clean(g.Problem))
		}
	}
}

// writeResumed says what the process has of the one before it.
func writeResumed(w io.Writer, r *api.Resumed) {
	switch {
	case r == nil:
		return
	case r.Problem != "":
		fmt.Fprintf(w, "ANEW      sessions of the process before are not taken up: %s\n", clean(r.Problem))
		return
	}
	fmt.Fprintf(w, "resumed   %s of the process before (%s) after %.2f s", plural(int(r.Taken), "session"), clean(r.Version), r.Away+r.Took)
	if r.Over > 0 {
		fmt.Fprintf(w, ", %d were over", r.Over)
	}
	for _, why := range slices.Sorted(maps.Keys(r.Refused)) {
		if n := r.Refused[why]; n > 0 {
			fmt.Fprintf(w, ", %d refused: %s", n, clean(why))
		}
	}
	fmt.Fprintln(w)
}

// writeStatus prints totals, or with an earlier look at the same process, rates since then.
func writeStatus(w io.Writer, s, last *api.Status) {
	if s.OnlyTenant != "" {
		writeTenantStatus(w, s, last)
		return
	}
	state, witness := "forwarding", s.Role == string(roleWitness)
	if witness {
		state = "a witness"
	}
	if !s.Ready {
		state = "NOT READY"
	}
	if s.WhyNotReady != "" {
		state += ": " + s.WhyNotReady
	}
	fmt.Fprintf(w, "node      %s, demarc %s, up %s, %s\n", clean(s.Node), clean(s.Version), seconds(s.Uptime), clean(state))
	if s.Broken != "" {
		fmt.Fprintf(w, "BROKEN    stage %q was switched off on purpose\n", s.Broken)
	}
	r := &s.Revision
	name := ""
	if r.Name != "" {
		name = fmt.Sprintf(" %q", r.Name)
	}
	if r.Number > 0 || !witness {
		fmt.Fprintf(w, "policy    revision %d%s from %s, applied %s\n", r.Number, clean(name), clean(r.Source), stamp(r.AppliedAt, 0))
		fmt.Fprintf(w, "          %s\n", r.Digest)
	}
	writeCluster(w, s)
	for _, d := range s.Damaged {
		fmt.Fprintf(w, "DAMAGED   %s: passed over at start\n", clean(d))
	}
	for _, l := range s.Later {
		fmt.Fprintf(w, "LATER     %s: passed over at start; upgrade this node\n", clean(l))
	}
	writeResumed(w, s.Resumed)
	if i := &s.API; i.Listen != "" {
		refused := uint64(0)
		for _, n := range i.Refused {
			refused += n
		}
		fmt.Fprintf(w, "api       %s, %s, %d refused, %d beyond the role", clean(i.Listen), plural(i.Connections, "connection"), refused, i.Forbidden)
		if i.Revoked > 0 {
			fmt.Fprintf(w, ", %s revoked (demarc cluster members)", plural(i.Revoked, "client"))
		}
		fmt.Fprintln(w)
		if i.Until != nil && i.Until.Sub(s.Started.Add(time.Duration(s.Uptime*1e9))) < warnCertificate {
			fmt.Fprintf(w, "RENEW     the certificate of %s: it is good until %s\n", clean(i.Listen), stamp(*i.Until, 0))
		}
	}
	if witness { // the rest is about packets
		return
	}
	frames := "frames ok: "
	if !s.Conservation.OK {
		frames = "FRAMES LOST: "
	}
	fmt.Fprintf(w, "memory    %s%s\n", frames, s.Conservation.Detail)
	if n := len(s.Blocks); n > 0 {
		dropped := uint64(0)
		for i := range s.Blocks {
			dropped += s.Blocks[i].Dropped
		}
		fmt.Fprintf(w, "blocked   %s, %s dropped by them (demarc blocks)\n", map[bool]string{true: "1 address", false: fmt.Sprintf("%d addresses", n)}[n == 1], plural(int(dropped), "packet"))
	}
	p := &s.SlowPath
	fmt.Fprintf(w, "next hops %d known, %d asked for, %s waiting\n", p.Neighbours, p.Pending, plural(p.Waiting, "packet"))
	for i := range p.Routers.Dead {
		d := &p.Routers.Dead[i]
		fmt.Fprintf(w, "DEAD      next hop %s on %s: %s for %s\n", clean(d.Address), clean(d.Interface), clean(d.Why), seconds(d.Since))
	}
	if n := p.Routers.NoAnswer + p.Routers.NoLink - len(p.Routers.Dead); n > 0 {
		fmt.Fprintf(w, "DEAD      %d more\n", n)
	}
	if n := p.Routers.OnBackup; n > 0 {
		fmt.Fprintf(w, "BACKUP    %s by backup next hops, since the others are not up (demarc routes)\n", map[bool]string{true: "1 route goes", false: fmt.Sprintf("%d routes go", n)}[n == 1])
	}
	for i := range p.Conflicts {
		c := &p.Conflicts[i]
		fmt.Fprintf(w, "CONFLICT  %s on %s is used by %s too: %s, the last one %s ago\n", clean(c.Address), clean(c.Interface), clean(c.MAC), plural(int(c.Count), "time"), seconds(c.Age))
	}
	waiting, most, known := 0, 0, 0
	for i := range s.Workers {
		k := &s.Workers[i]
		waiting, most, known = waiting+k.FragmentsWaiting, most+k.FragmentsCap, known+k.FragmentedKnown
	}
	fmt.Fprintf(w, "fragments %d of %d waiting, %s followed\n", waiting, most, plural(known, "datagram"))

	fmt.Fprintln(w)
	writeTenants(w, s, last)

	fmt.Fprintln(w)
	t := newTable(w, "WORKER", "CPU", "BUSY", "SESSIONS", "BY XDP", "MAPPINGS", "FRAMES FREE", "SHAPED", "HANDED OUT/IN", "PANICS")
	for i := range s.Workers {
		k := &s.Workers[i]
		cpu := "any"
		if k.CPU >= 0 {
			cpu = fmt.Sprint(k.CPU)
		}
		t.row(k.ID, cpu, fmt.Sprintf("%.0f%%", 100*k.Busy), fmt.Sprintf("%d/%d", k.Sessions, k.SessionsCap), k.Cruising, fmt.Sprintf("%d/%d", k.Mappings, k.MappingsCap),
			fmt.Sprintf("%d/%d", k.FramesFree, k.Frames), k.FramesHeld, fmt.Sprintf("%d/%d", k.HandedOut, k.HandedIn), k.Panics)
	}
	t.flush()

	fmt.Fprintln(w)
	writeQueues(w, s.Ports)
	writeSettings(w, s.Ports)

	fmt.Fprintln(w)
	writeReasons(w, s.Drops, false)

	for i := range s.Tenants {
		if len(s.Tenants[i].Rules) > 0 {
			fmt.Fprintf(w, "\nrules of %s:\n", clean(s.Tenants[i].Name))
			writeRules(w, s.Tenants[i].Rules)
		}
	}
}

// warnCertificate is how long before its end a certificate is spoken of.
const warnCertificate = 30 * 24 * time.Hour

// writeTenantStatus prints what a tenant's certificate shows: its own figures, and none of the node's.
func writeTenantStatus(w io.Writer, s, last *api.Status) {
	state, witness := "forwarding", s.Role == string(roleWitness)
	if witness {
		state = "a witness"
	}
	if !s.Ready {
		state = "NOT READY"
	}
	fmt.Fprintf(w, "node      %s, %s\n", clean(s.Node), state)
	fmt.Fprintf(w, "policy    revision %d, applied %s\n", s.Revision.Number, stamp(s.Revision.AppliedAt, 0))
	if len(s.Tenants) == 0 {
		fmt.Fprintf(w, "the node serves no tenant %s\n", clean(s.OnlyTenant))
		return
	}
	fmt.Fprintln(w)
	writeTenants(w, s, last)
	fmt.Fprintln(w)
	writeReasons(w, s.Drops, false)
	if len(s.Tenants[0].Rules) > 0 {
		fmt.Fprintln(w)
		writeRules(w, s.Tenants[0].Rules)
	}
}

// writeSettings says what the gateway changed on its devices, and what it could not.
func writeSettings(w io.Writer, ports []api.Port) {
	between := "\n"
	for i := range ports {
		p := &ports[i]
		if len(p.Changed) > 0 {
			list := make([]string, len(p.Changed))
			for k, c := range p.Changed {
				list[k] = fmt.Sprintf("%s %s -> %s", c.Name, c.Was, c.Now)
			}
			fmt.Fprintf(w, "%schanged on %s until the gateway ends: %s\n", between, clean(p.Name), clean(strings.Join(list, ", ")))
			between = ""
		}
		for _, s := range p.Warnings {
			fmt.Fprintf(w, "%swarning for %s: %s\n", between, clean(p.Name), clean(s))
			between = ""
		}
	}
}

func writeTenants(w io.Writer, s, last *api.Status) {
	if last == nil || !last.Started.Equal(s.Started) || s.Uptime <= last.Uptime {
		t := newTable(w, "TENANT", "SESSIONS", "UNANSWERED", "OUT PACKETS", "OUT BYTES", "IN PACKETS", "IN BYTES", "DROPPED", "LIMIT OUT/IN", "PORTS USED")
		for i := range s.Tenants {
			x := &s.Tenants[i]
			t.row(x.Name, x.Sessions, unanswered(x), x.Out.Packets, scaled(float64(x.Out.Bytes)), x.In.Packets, scaled(float64(x.In.Bytes)), sum(x.Drops), limits(x), ports(x))
		}
		t.flush()
		writeVoice(w, s, nil, nil)
		return
	}
	before := map[string]*api.Tenant{}
	for i := range last.Tenants {
		before[last.Tenants[i].Name] = &last.Tenants[i]
	}
	span := s.Uptime - last.Uptime
	// A tenant that was taken out and put in again counts anew: less than before is then all that is known.
	rate := func(now, was uint64) float64 {
		if now < was {
			was = 0
		}
		return float64(now-was) / span
	}
	t := newTable(w, "TENANT", "SESSIONS", "UNANSWERED", "OUT pkt/s", "OUT bit/s", "IN pkt/s", "IN bit/s", "DROP/s", "LIMIT OUT/IN", "PORTS USED")
	for i := range s.Tenants {
		x := &s.Tenants[i]
		b := before[x.Name]
		if b == nil {
			b = &api.Tenant{}
		}
		t.row(x.Name, x.Sessions, unanswered(x), scaled(rate(x.Out.Packets, b.Out.Packets)), scaled(8*rate(x.Out.Bytes, b.Out.Bytes)),
			scaled(rate(x.In.Packets, b.In.Packets)), scaled(8*rate(x.In.Bytes, b.In.Bytes)), scaled(rate(sum(x.Drops), sum(b.Drops))), limits(x), ports(x))
	}
	t.flush()
	writeVoice(w, s, before, rate)
}

// writeVoice prints which tenants have had voice, how much of it found no room in its own rate, and how much was dropped although it did. Without rate, totals; with it, what came per second since before.
func writeVoice(w io.Writer, s *api.Status, before map[string]*api.Tenant, rate func(now, was uint64) float64) {
	heads := []string{"VOICE OF", "DIRECTION", "ITS RATE", "PACKETS WITHIN", "BYTES WITHIN", "PACKETS ABOVE", "PACKETS LOST"}
	packets, bytes := func(n, _ uint64) string { return fmt.Sprint(n) }, func(n, _ uint64) string { return scaled(float64(n)) }
	if rate != nil {
		heads[3], heads[4], heads[5], heads[6] = "pkt/s WITHIN", "bit/s WITHIN", "pkt/s ABOVE", "pkt/s LOST"
		packets, bytes = func(n, was uint64) string { return scaled(rate(n, was)) }, func(n, was uint64) string { return scaled(8 * rate(n, was)) }
	}
	var t *table
	for i := range s.Tenants {
		x := &s.Tenants[i]
		b := before[x.Name]
		if b == nil {
			b = &api.Tenant{}
		}
		for _, d := range [...]struct {
			dir     string
			is, was api.VoiceCounts
			bits    uint64
		}{{"out", x.Voice.Out, b.Voice.Out, x.Limits.VoiceOut}, {"in", x.Voice.In, b.Voice.In, x.Limits.VoiceIn}} {
			if d.is == (api.VoiceCounts{}) {
				continue
			}
			if t == nil {
				fmt.Fprintln(w)
				t = newTable(w, heads...)
			}
			own := "none"
			if d.bits > 0 {
				own = scaled(float64(d.bits)) + "bit/s"
			}
			t.row(x.Name, d.dir, own, packets(d.is.Within.Packets, d.was.Within.Packets), bytes(d.is.Within.Bytes, d.was.Within.Bytes), packets(d.is.Above.Packets, d.was.Above.Packets), packets(d.is.Lost.Packets, d.was.Lost.Packets))
		}
	}
	if t != nil {
		t.flush()
	}
}

// unanswered is how many sessions wait for an answer, begun by the tenant / by the backbone.
func unanswered(t *api.Tenant) string { return fmt.Sprintf("%d/%d", t.Unanswered.Out, t.Unanswered.In) }

func limits(t *api.Tenant) string {
	one := func(bits, packets uint64) string {
		switch {
		case bits == 0 && packets == 0:
			return "none"
		case packets == 0:
			return scaled(float64(bits)) + "bit/s"
		case bits == 0:
			return scaled(float64(packets)) + "pkt/s"
		}
		return scaled(float64(bits)) + "bit/s+" + scaled(float64(packets)) + "pkt/s"
	}
	out, in := one(t.Limits.OutBits, t.Limits.OutPackets), one(t.Limits.InBits, t.Limits.InPackets)
	if out == "none" && in == "none" {
		return "none"
	}
	if n := t.Limits.Overhead; n > 0 {
		return fmt.Sprintf("%s / %s, %d B a packet beside IP", out, in, n)
	}
	return out + " / " + in
}

func ports(t *api.Tenant) string {
	if t.Pool == nil {
		return ""
	}
	return fmt.Sprintf("%d on %d addresses", t.Pool.InUse, t.Pool.Addresses)
}

func sum(m map[string]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}

func writeQueues(w io.Writer, list []api.Port) {
	t := newTable(w, "PORT", "DEVICE", "LINK", "QUEUE", "WORKER", "MODE", "ASKED", "RX PACKETS", "TX PACKETS", "LOST", "WHY NOT BETTER")
	for i := range list {
		p := &list[i]
		link := "up"
		switch {
		case p.State == "gone", p.State == "closed":
			link = p.State
		case !p.Up:
			link = "down"
		case !p.Carrier:
			link = "no carrier"
		}
		for j := range p.Queues {
			q := &p.Queues[j]
			lost := q.Rings.RxDropped + q.Rings.RxRingFull + q.Rings.RxInvalidDescs + q.Rings.TxInvalidDescs + q.TxFull + q.TxErrors
			t.row(p.Name, p.Device, link, q.Queue, q.Worker, q.Mode, q.Asked, q.Rx.Packets, q.Tx.Packets, lost, q.WhyNotBetter)
		}
		if len(p.Queues) == 0 {
			t.row(p.Name, p.Device, link, "", "", "", p.Asked, "", "", "", p.Problem)
		}
	}
	t.flush()
	for i := range list {
		switch o := &list[i].Offload; {
		case o.Watched:
			fmt.Fprintf(w, "port %s: offload: workers look at every packet, for a trace or a capture, blocked addresses, or a flow that has met a fault; the XDP program has carried %d packets that came in here, and sent %d\n", clean(list[i].Name), o.Carried, o.Sent.Packets)
		case o.Held:
			fmt.Fprintf(w, "port %s: offload: workers carry everything for the moment; the XDP program has carried %d packets that came in here, and sent %d\n", clean(list[i].Name), o.Carried, o.Sent.Packets)
		case o.On:
			fmt.Fprintf(w, "port %s: offload: the XDP program has carried %d packets that came in here, and sent %d\n", clean(list[i].Name), o.Carried, o.Sent.Packets)
		case o.Asked == "always":
			fmt.Fprintf(w, "port %s: offload = \"always\", and it is off: %s\n", clean(list[i].Name), clean(o.Why))
		}
		if n := list[i].Offload.DeviceDropped; n != nil && *n > 0 {
			fmt.Fprintf(w, "port %s: its device says that it has dropped %d frames on their way out; those of programs count as sent\n", clean(list[i].Name), *n)
		}
		if list[i].Problem != "" && len(list[i].Queues) > 0 {
			fmt.Fprintf(w, "port %s: %s\n", clean(list[i].Name), clean(list[i].Problem))
		}
	}
}

// writeReasons prints drops by reason, most first.
func writeReasons(w io.Writer, m map[string]uint64, zeroes bool) {
	t := newTable(w, "DROPPED", "REASON")
	keys := slices.Sorted(maps.Keys(m))
	slices.SortStableFunc(keys, func(a, b string) int {
		switch {
		case m[a] > m[b]:
			return -1
		case m[a] < m[b]:
			return 1
		}
		return 0
	})
	n := 0
	for _, k := range keys {
		if m[k] > 0 || zeroes {
			t.row(m[k], k)
			n++
		}
	}
	if n == 0 {
		fmt.Fprintln(w, "nothing dropped")
		return
	}
	t.flush()
}

func writeRules(w io.Writer, list []api.RuleHits) {
	t := newTable(w, "HITS", "DIRECTION", "RULE", "ACTION", "NAME")
	for _, r := range list {
		rule := "default"
		if r.Rule >= 0 {
			rule = fmt.Sprint(r.Rule + 1) // as a reader of the file counts
		}
		t.row(r.Hits, r.Direction, rule, r.Action, strings.TrimSpace(r.Name))
	}
	t.flush()
}
