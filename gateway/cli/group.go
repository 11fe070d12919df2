package cli

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"demarc/gateway/api"
)

func (a *app) groupCmd() *cobra.Command {
	c := a.data(command("group [COMMAND]", "say who serves each group, and move groups between nodes",
		"List the groups as the node that is asked knows them: who owns each, under which epoch, how much of its lease is left, how long a failover is\n"+
			"expected to take, how the last one went, and why a group is not protected now.",
		cobra.ArbitraryArgs, func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("there is no command \"group %s\"", args[0])}
			}
			return get(a, cmd, api.PathGroups, writeGroups)
		}))
	c.AddCommand(a.groupMoveCmd(), a.groupTakeCmd(), a.groupEventsCmd())
	return c
}

func (a *app) groupMoveCmd() *cobra.Command {
	return a.data(command("move GROUP NODE", "hand a group over to a node whose copy is whole",
		"Have the owner of GROUP hand it over to NODE, and wait until that owns it. Any member can be asked. It is refused where sessions would be lost, and where more conditions count against NODE than against the owner; a copy that is on its way is waited for, three seconds at most.",
		cobra.ExactArgs(2), func(cmd *cobra.Command, args []string) error {
			return a.groupDo(cmd, api.PathGroupMove, api.MoveRequest{Group: args[0], To: args[1]})
		}))
}

func (a *app) groupTakeCmd() *cobra.Command {
	var force bool
	c := command("take GROUP --force", "have the node that is asked own a group, by force",
		"Have the node that is asked own GROUP, whatever its copy of the sessions is, and serve it alone if no majority agrees within a second. With\n"+
			"--force you answer for it that no other node serves the group: its machine is off, say. Without that, two may send from the same addresses.",
		cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
			if !force {
				return usageError{errors.New("--force is missing: you answer for it that no other node serves the group; `demarc group move` is for when one does")}
			}
			return a.groupDo(cmd, api.PathGroupTake, api.TakeRequest{Group: args[0], Force: true})
		})
	c.Flags().BoolVar(&force, "force", false, "no other node serves the group")
	return a.data(c)
}

func (a *app) groupDo(cmd *cobra.Command, path string, r any) error {
	var g api.Groups
	if err := a.ask(func(c *api.Client) error { return c.Post(cmd.Context(), path, r, &g) }); err != nil {
		return err
	}
	return show(a, cmd, &g, writeGroups)
}

func (a *app) groupEventsCmd() *cobra.Command {
	return a.data(command("events", "list what became of groups, and why",
		"List what was agreed on about groups, as long as the audit log keeps it, and what the node that is asked did and saw since it started.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			return get(a, cmd, api.PathGroupEvents, func(w io.Writer, e *api.GroupEvents) {
				if len(e.Events) == 0 {
					fmt.Fprintln(w, "nothing has happened to a group yet")
					return
				}
				t := newTable(w, "TIME", "WHO", "WHAT")
				for _, l := range e.Events {
					who, what := l.Node, l.What
					if who == "" {
						who = "agreed"
						if l.By != "" {
							what += ", proposed by " + l.By
						}
					}
					if l.Group != "" {
						what = "group " + l.Group + ": " + what
					}
					t.row(stamp(l.Time, 3), who, what)
				}
				t.flush()
			})
		}))
}

func (a *app) nodeCmd() *cobra.Command {
	c := command("node COMMAND", "have a node own no group while it is worked on",
		"drain has a node hand its groups over and own none until undrain. Both ask any member.",
		cobra.ArbitraryArgs, func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("no command given")}
			}
			return usageError{fmt.Errorf("there is no command \"node %s\"", args[0])}
		})
	c.AddCommand(a.drainCmd(false), a.drainCmd(true))
	return c
}

func (a *app) drainCmd(undo bool) *cobra.Command {
	use, short := "drain [NODE]", "have a node hand its groups over, and own none"
	long := "Have NODE, or the node that is asked, hand over the groups that it owns and own none until `demarc node undrain`, also across restarts. A witness owns none: there, name NODE.\n" +
		"Meanwhile nobody takes over from the other nodes but by force. A group that no other node has a whole copy of, or that more conditions count against everywhere else, stays until that is over.\n" +
		"What it still serves after five seconds is named, with exit status 1: wait until `demarc group` shows another owner before you stop it."
	if undo {
		use, short = "undrain [NODE]", "let a node own groups again"
		long = "Let NODE, or the node that is asked, own groups again. A witness owns none: there, name NODE. Nothing moves by that alone, unless a group prefers the node."
	}
	return a.data(command(use, short, long, cobra.MaximumNArgs(1), func(cmd *cobra.Command, args []string) error {
		r := api.DrainRequest{Undo: undo}
		if len(args) > 0 {
			r.Node = args[0]
		}
		var d api.Drained
		if err := a.ask(func(c *api.Client) error { return c.Post(cmd.Context(), api.PathDrain, r, &d) }); err != nil {
			return err
		}
		err := show(a, cmd, &d, func(w io.Writer, d *api.Drained) {
			switch {
			case d.Undo:
				fmt.Fprintf(w, "%s may own groups again\n", clean(d.Node))
			case len(d.Still) > 0:
				fmt.Fprintf(w, "%s is drained and still serves %s: no other node has a whole copy and as little against it. Do not stop it yet: it hands over as soon as one has. `demarc group` says what the copies lack, and then who owns the group; `demarc node undrain %s` takes the drain back\n",
					clean(d.Node), clean(strings.Join(d.Still, ", ")), clean(d.Node))
			default:
				fmt.Fprintf(w, "%s is drained: it owns no group\n", clean(d.Node))
			}
		})
		if err == nil && len(d.Still) > 0 { // what comes behind it in a script would stop an owner
			return errSilent
		}
		return err
	}))
}

// groupLine is one group in one line.
func groupLine(node string, g *api.Group) string {
	s := g.Name + ": nobody has owned it yet"
	if g.Owner != "" {
		s = fmt.Sprintf("%s: %s owns it, epoch %d", g.Name, g.Owner, g.Epoch)
	}
	switch {
	case g.Serving && g.Solo:
		s += ", served here WITHOUT A MAJORITY"
	case g.Serving:
		s += fmt.Sprintf(", served here, lease %s", ms(g.Lease))
	case g.Owner == node:
		s += ", NOT SERVED"
	}
	if len(g.Why) > 0 {
		s += "; NOT PROTECTED: " + strings.Join(g.Why, "; ")
	} else if g.Expected > 0 {
		s += fmt.Sprintf("; a failover takes %s", ms(g.Expected))
	}
	return clean(s)
}

// lastLine is how the last failover of a group went; "" = there was none since this node started.
func lastLine(x *api.Group) string {
	l := x.Last
	if l == nil || l.From == "" || l.From == l.To {
		return ""
	}
	gap := "its gap was not seen from here"
	if l.Gap != nil {
		gap = "silent for " + ms(*l.Gap)
	}
	return fmt.Sprintf("last failover %s, from %s to %s, epoch %d, %s: %s", stamp(l.Time, 0), l.From, l.To, l.Epoch, orNone(l.Cause), gap)
}

// groupMore is what status says of a group below its line: how far behind copies are, and how its last failover went.
func groupMore(x *api.Group) (lines []string) {
	for i := range x.Copies {
		lines = append(lines, copyLine(&x.Copies[i]))
	}
	if x.Here != nil {
		lines = append(lines, hereLine(x.Here))
	}
	if line := lastLine(x); line != "" {
		lines = append(lines, line)
	}
	return lines
}

func ms(s float64) string { return fmt.Sprintf("%.0f ms", 1000*s) }

func writeGroups(w io.Writer, g *api.Groups) {
	if len(g.Groups) == 0 {
		fmt.Fprintln(w, "there is no group: every node serves all tenants that the policy gives it")
	} else {
		t := newTable(w, "GROUP", "ID", "NODES", "OWNER", "EPOCH", "SINCE", "SERVED HERE", "LEASE LEFT", "ALONE", "IN SYNC", "EXPECTED GAP")
		for i := range g.Groups {
			x := &g.Groups[i]
			owner, cause := "nobody", "-"
			if x.Owner != "" {
				owner, cause = x.Owner, x.Cause
			}
			left, gap, in := "-", "-", "nobody"
			if x.Serving {
				left = ms(x.Lease)
			}
			if x.Expected > 0 {
				gap = ms(x.Expected)
			}
			if len(x.InSync) > 0 {
				in = inSync(x)
			}
			t.row(x.Name, x.ID, strings.Join(x.Nodes, ", "), owner, x.Epoch, cause, yes(x.Serving), left, x.Alone, in, gap)
		}
		t.flush()
	}
	for i := range g.Groups {
		x := &g.Groups[i]
		if line := lastLine(x); line != "" {
			fmt.Fprintf(w, "%s: %s\n", clean(x.Name), clean(line))
		}
		for j := range x.Copies {
			fmt.Fprintf(w, "%s: %s\n", clean(x.Name), clean(copyLine(&x.Copies[j])))
		}
		if h := x.Here; h != nil {
			fmt.Fprintf(w, "%s: %s\n", clean(x.Name), clean(hereLine(h)))
		}
		for _, what := range x.Against {
			fmt.Fprintf(w, "%s: against this node: %s\n", clean(x.Name), clean(what))
		}
		if p := x.Ports; p != nil && p.Rest > 0 {
			fmt.Fprintf(w, "%s: PORTS REST: %s\n", clean(x.Name), restLine(p))
		}
		if p := x.Ports; p != nil && p.Waiting > 0 {
			fmt.Fprintf(w, "%s: %d address pools have no port to give before another node has acknowledged that it is used\n", clean(x.Name), p.Waiting)
		}
		for _, why := range x.Why {
			fmt.Fprintf(w, "%s: NOT PROTECTED: %s\n", clean(x.Name), clean(why))
		}
	}
	if g.Standby != nil {
		for _, p := range g.Standby.Peers {
			for _, what := range p.Refused {
				fmt.Fprintf(w, "REFUSED: copies of %s are not taken: %s\n", clean(p.Node), clean(what))
			}
		}
	}
	for i := range g.Paths {
		fmt.Fprintf(w, "%s\n", clean(pathLine(&g.Paths[i])))
	}
	if len(g.Drained) > 0 {
		fmt.Fprintf(w, "drained: %s; until undrain the others of its groups serve on without a majority (ALONE keep), whatever the policy says, and nobody takes over from them but by force\n", clean(strings.Join(g.Drained, ", ")))
	}
	if g.Clock.Gaps > 0 {
		fmt.Fprintf(w, "this node did not run for longer than the guard of a lease %d times, the longest %s\n", g.Clock.Gaps, ms(g.Clock.Longest))
	}
	if g.Problem != "" {
		fmt.Fprintf(w, "PROBLEM: %s\n", clean(g.Problem))
	}
}

// inSync names who may take over by what is agreed on. After a move that is who served before, whose copy begins anew: who says so here is not whole now.
func inSync(x *api.Group) string {
	list := slices.Clone(x.InSync)
	for i, n := range list {
		if slices.ContainsFunc(x.Copies, func(c api.GroupCopy) bool { return c.Node == n && !c.Whole }) {
			list[i] += " (not whole now)"
		}
	}
	return strings.Join(list, ", ")
}

// restLine says why new conversations get few public ports, or none.
func restLine(p *api.GroupPorts) string {
	line := fmt.Sprintf("this node took over without knowing which public ports are in use; for %s new conversations get ", time.Duration(p.Rest*1e9).Round(time.Second))
	if p.Reserve {
		return line + "one of its reserve, one in 64"
	}
	return line + "none: its reserve may be in use too, or is not on disk as used yet"
}

// copyLine is how the copy of a group's sessions at another node stands.
func copyLine(c *api.GroupCopy) string {
	line := fmt.Sprintf("copy at %s: %d records, %s behind", c.Node, c.Records, ms(c.Lag))
	if !c.Whole && c.Records == 0 { // it lacks everything: by how long says nothing
		line = fmt.Sprintf("copy at %s: none yet", c.Node)
	}
	switch {
	case c.Whole:
		return line + ", whole"
	case c.Why != "":
		return line + ", NOT WHOLE: " + c.Why
	}
	return line + ", NOT WHOLE"
}

// hereLine is how the copy of a group's sessions at the node that answers stands.
func hereLine(h *api.CopyHere) string {
	if h.Whole {
		return fmt.Sprintf("copy here: of epoch %d, whole, equal %s ago", h.Epoch, ms(h.Age))
	}
	return "copy here: NOT WHOLE: " + h.Why
}

// pathLine is how messages fare by one path.
func pathLine(p *api.GroupPath) string {
	line := "messages with " + p.Member
	if p.Remote != "" {
		line += " by " + p.Local + " to " + p.Remote
	}
	switch {
	case p.Heard < 0:
		line += ": never heard"
	default:
		line += ": heard " + ms(p.Heard) + " ago"
		if p.RoundTrip > 0 {
			line += fmt.Sprintf(", round trip %.1f ms", 1000*p.RoundTrip)
		}
		if p.Loss > 0 {
			line += fmt.Sprintf(", %.0f %% of probes lost", 100*p.Loss)
		}
	}
	if p.Problem != "" {
		line += ": " + p.Problem
	}
	return line
}

func orNone(s string) string {
	if s == "" {
		return "cause not known here"
	}
	return s
}
