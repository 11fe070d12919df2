package cli

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"demarc/configs"
	"demarc/gateway/api"
	"demarc/gateway/hostnet"
)

// checked is what check prints as JSON.
type checked struct {
	OK       bool          `json:"ok"`
	Tenants  int           `json:"tenants"`
	Rules    int           `json:"rules"`
	Problems []api.Problem `json:"problems"`
	Warnings []api.Problem `json:"warnings"`
}

func (a *app) checkCmd() *cobra.Command {
	var node string
	c := command("check [POLICY] [--node NODE]", "say everything that is wrong with a policy or a node file",
		"Read a policy file (- is standard input), a node file, or both together, and print everything that is wrong with them: one line per\n"+
			"error with its file, line, path and what would be right. It needs no running node and no root. Where the node's devices are on this machine it warns of\n"+
			"forwards that the node will refuse because this kernel takes their ports for its own connections. Exit status 1 when there is an error.",
		cobra.MaximumNArgs(1), func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && node == "" {
				return usageError{errors.New("name a policy file, a node file with --node, or both")}
			}
			return a.check(cmd, args, node)
		})
	c.Flags().StringVar(&node, "node", "", "node `file`; with a policy, check also that they fit together")
	return a.data(c)
}

func (a *app) check(cmd *cobra.Command, args []string, node string) error {
	out := checked{OK: true, Problems: []api.Problem{}, Warnings: []api.Problem{}}
	bad := func(err error) error {
		var list configs.ErrorList
		if err != nil && !errors.As(err, &list) {
			return err
		}
		out.Problems = append(out.Problems, problems(list)...)
		out.OK = len(out.Problems) == 0
		return nil
	}
	var n *configs.Node
	var p *configs.Policy
	if len(args) == 1 {
		text, source, err := read(cmd, args[0])
		if err != nil {
			return err
		}
		p, err = configs.DecodePolicy(source, text)
		if berr := bad(err); berr != nil {
			return berr
		}
		if err == nil {
			out.Tenants = len(p.Tenants)
			for i := range p.Tenants {
				out.Rules += len(p.Tenants[i].Rules)
			}
			out.Warnings = append(out.Warnings, problems(p.Warnings())...)
		}
	}
	if node != "" {
		var err error
		n, err = readNode(cmd, node)
		if err := bad(err); err != nil {
			return err
		}
	}
	if n != nil && p != nil && out.OK {
		if err := bad(configs.CheckTogether(p, n)); err != nil {
			return err
		}
	}
	if p != nil && out.OK {
		if err := bad(configs.CheckSound(p, n, [2]uint16{})); err != nil {
			return err
		}
	}
	if n != nil && p != nil && out.OK {
		out.Warnings = append(out.Warnings, problems(refusedHere(p, n))...)
	}
	if a.json {
		if err := show(a, cmd, &out, nil); err != nil {
			return err
		}
	} else {
		for _, w := range out.Warnings {
			fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", w.Text)
		}
		for _, e := range out.Problems {
			fmt.Fprintln(cmd.ErrOrStderr(), e.Text)
		}
		if out.OK {
			switch {
			case p != nil:
				fmt.Fprintf(cmd.OutOrStdout(), "ok: %s, %s, %s\n", plural(out.Tenants, "tenant"), plural(out.Rules, "rule"), plural(len(out.Warnings), "warning"))
			default:
				fmt.Fprintf(cmd.OutOrStdout(), "ok: %s, %s\n", plural(len(n.Ports), "port"), plural(len(n.Interfaces), "interface"))
			}
		}
	}
	if !out.OK {
		return errSilent
	}
	return nil
}

// refusedHere is what a node that runs on this machine would refuse of a policy besides, because of the ports that this kernel takes for its own connections. Whether this is the node's machine no file says, so it
// is no more than a warning, and is said where all of the node's devices are here.
func refusedHere(p *configs.Policy, n *configs.Node) (list configs.ErrorList) {
	for i := range n.Ports {
		if _, err := thisMachine.link(n.Ports[i].Device); err != nil {
			return nil
		}
	}
	if lo, hi, err := hostnet.EphemeralRange(); err == nil {
		errors.As(configs.CheckSound(p, n, [2]uint16{lo, hi}), &list)
	}
	return list
}

func problems(list configs.ErrorList) []api.Problem {
	out := make([]api.Problem, 0, len(list))
	for _, e := range list {
		out = append(out, api.Problem{File: e.File, Line: e.Line, Path: e.Path, Value: e.Value, Want: e.Want, Text: e.Error()})
	}
	return out
}

func (a *app) diffCmd() *cobra.Command {
	var from, to uint64
	c := command("diff FILE | diff --to N", "say what a policy would change and how many live sessions it would cut",
		"Ask the node what FILE (- is standard input), or revision N with --to, would change in what it serves, and which live sessions it would end, by tenant.\n"+
			"With --from M the changes are told against revision M; sessions are always those that live now. Changes nothing.",
		cobra.MaximumNArgs(1), func(cmd *cobra.Command, args []string) error {
			for _, name := range []string{"from", "to"} {
				if v := cmd.Flags().Lookup(name); v.Changed && v.Value.String() == "0" {
					return usageError{fmt.Errorf("--%s 0: want the number of a revision, from 1", name)}
				}
			}
			if (len(args) == 0) == (to == 0) {
				return usageError{errors.New("name either a policy file or a revision with --to")}
			}
			q := api.DiffRequest{To: to, From: from}
			if len(args) == 1 {
				text, source, err := read(cmd, args[0])
				if err == nil {
					err = sayable(source, text)
				}
				if err != nil {
					return err
				}
				q.Policy, q.Source = string(text), source
			}
			var d api.Diff
			if err := a.ask(func(c *api.Client) error { return c.Post(cmd.Context(), api.PathDiff, q, &d) }); err != nil {
				return err
			}
			if len(args) == 1 {
				d.Warnings = append(hardlyMeant(q.Source, []byte(q.Policy)), d.Warnings...)
			}
			return show(a, cmd, &d, writeDiff)
		})
	c.Flags().Uint64Var(&to, "to", 0, "revision `N` instead of a file")
	c.Flags().Uint64Var(&from, "from", 0, "tell the changes against revision `M` instead of what is served")
	return a.data(c)
}

// sayable refuses text that the node's interface could not carry as it is: JSON is UTF-8, and what is not would arrive changed.
func sayable(source string, text []byte) error {
	line := 1
	for rest := text; len(rest) > 0; {
		r, n := utf8.DecodeRune(rest)
		if r == utf8.RuneError && n == 1 {
			return fmt.Errorf("%s:%d: byte 0x%02x is not UTF-8 text: save the file as UTF-8", source, line, rest[0])
		}
		if r == '\n' {
			line++
		}
		rest = rest[n:]
	}
	return nil
}

func (a *app) applyCmd() *cobra.Command {
	var f changeFlags
	var except []string
	c := command("apply FILE", "serve another policy, without losing a packet of what does not change",
		"Hand FILE (- is standard input) to the node. It returns when every worker serves the new policy, which is agreed on and kept on disk.\n"+
			"A policy with errors is refused whole, with every error; what is hardly meant is served and warned of. If another change comes in between, it is refused as a conflict.\n"+
			"In a cluster every gateway compiles the policy first and serves it before this returns; one that does not answer is named, and does so when it\n"+
			"is back.\n\n"+
			"With --confirm the policy is provisional: unless `demarc confirm` comes in time, the one before is served again, whatever happens to this\n"+
			"terminal, to the node or to its leader meanwhile.",
		cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			text, source, err := read(cmd, args[0])
			if err == nil {
				err = sayable(source, text)
			}
			if err != nil {
				return err
			}
			var d api.Applied
			err = a.ask(func(c *api.Client) error {
				return c.Post(cmd.Context(), api.PathApply, api.ApplyRequest{Policy: string(text), Source: source, Expected: f.expect, Confirm: f.confirm.Seconds(), Comment: f.comment, Except: except}, &d)
			})
			if err != nil {
				return err
			}
			d.Warnings = append(hardlyMeant(source, text), d.Warnings...)
			return show(a, cmd, &d, writeApplied)
		})
	f.add(c)
	c.Flags().StringSliceVar(&except, "except", nil, "apply although the gateway `NODE` cannot serve it: it goes on with what it serves")
	return a.data(c)
}

// mostWarnings is how many diff and apply print of what check has to say.
const mostWarnings = 10

// hardlyMeant is what check warns of in a policy that the node has taken, the first of it. The node may be of another release: what this one cannot read it says nothing of.
func hardlyMeant(source string, text []byte) (lines []string) {
	p, err := configs.DecodePolicy(source, text)
	if err != nil {
		return nil
	}
	list := p.Warnings()
	for i := range list {
		if i == mostWarnings {
			return append(lines, fmt.Sprintf("and %d more, which demarc check says", len(list)-i))
		}
		lines = append(lines, list[i].Error())
	}
	return lines
}

func (a *app) policyCmd() *cobra.Command {
	return a.data(command("policy", "print the policy that is served", "Print the text of the policy that the node serves, as it was applied.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			var text []byte
			err := a.ask(func(c *api.Client) (err error) {
				text, err = c.Text(cmd.Context(), api.PathPolicy)
				return err
			})
			if err != nil {
				return err
			}
			return show(a, cmd, &policyText{string(text)}, func(w io.Writer, p *policyText) { fmt.Fprint(w, p.Policy) })
		}))
}

// policyText is what policy prints as JSON.
type policyText struct {
	Policy string `json:"policy"`
}

func writeChanges(w io.Writer, list []api.Change) {
	for _, c := range list {
		switch {
		case c.Was == "" && c.Now == "":
			fmt.Fprintf(w, "  ~ %s\n", c.Path)
		case c.Was == "":
			fmt.Fprintf(w, "  + %s: %s\n", c.Path, c.Now)
		case c.Now == "":
			fmt.Fprintf(w, "  - %s: %s\n", c.Path, c.Was)
		default:
			fmt.Fprintf(w, "  ~ %s: %s -> %s\n", c.Path, c.Was, c.Now)
		}
	}
}

func writeDiff(w io.Writer, d *api.Diff) {
	to := ""
	if d.To != nil {
		to = fmt.Sprintf("revision %d (%s) ", d.To.Number, clean(d.To.Source))
	}
	fmt.Fprintf(w, "%sagainst revision %d (%s)\n", to, d.From.Number, clean(d.From.Source))
	if d.Same {
		fmt.Fprintln(w, "nothing would change")
	} else {
		fmt.Fprintf(w, "%s:\n", plural(len(d.Changes), "change"))
		writeChanges(w, d.Changes)
	}
	fmt.Fprintf(w, "%s of %d would be cut%s\n", plural(d.Cut, "session"), d.Checked, byTenant(d.CutByTenant))
	if len(d.Cuts) > 0 {
		writeSessions(w, d.Cuts, false)
		if d.Cut > len(d.Cuts) {
			fmt.Fprintf(w, "and %d more\n", d.Cut-len(d.Cuts))
		}
	}
	for i := range d.Nodes {
		n := &d.Nodes[i]
		switch {
		case n.Why != "":
			fmt.Fprintf(w, "%s could not be asked: %s\n", clean(n.Node), clean(n.Why))
		case len(n.Problems) > 0:
			fmt.Fprintf(w, "%s could not serve it:\n", clean(n.Node))
		default:
			fmt.Fprintf(w, "on %s %s of %d would be cut%s\n", clean(n.Node), plural(n.Cut, "session"), n.Checked, byTenant(n.CutByTenant))
		}
		for _, p := range n.Problems {
			fmt.Fprintf(w, "  %s\n", clean(p))
		}
	}
	writeWarnings(w, d.Warnings)
}

func writeApplied(w io.Writer, d *api.Applied) {
	known := ""
	if d.Changes != nil {
		known = plural(len(d.Changes), "change") + ", "
	}
	fmt.Fprintf(w, "revision %d is served (%s%.0f ms)\n", d.Revision.Number, known, d.Took*1e3)
	writeChanges(w, d.Changes)
	if d.Cut > 0 {
		fmt.Fprintf(w, "%s cut%s\n", plural(d.Cut, "session"), byTenant(d.CutByTenant))
	}
	writeNodes(w, d.Nodes)
	if d.Confirm > 0 {
		fmt.Fprintf(w, "not confirmed: the revision before is served again in %s unless you run: demarc confirm %d\n", seconds(d.Confirm), d.Revision.Number)
	}
	writeNotKept(w, d.NotKept)
	writeWarnings(w, d.Warnings)
}

func writeWarnings(w io.Writer, list []string) {
	for _, text := range list {
		fmt.Fprintf(w, "warning: %s\n", clean(text))
	}
}

// writeNodes says who serves it, where there are several.
func writeNodes(w io.Writer, list []api.Serves) {
	if len(list) < 2 {
		return
	}
	var good []string
	for i := range list {
		if list[i].Why == "" {
			good = append(good, clean(list[i].Node))
		}
	}
	switch len(good) {
	case 0:
	case 1:
		fmt.Fprintf(w, "%s serves it\n", good[0])
	default:
		fmt.Fprintf(w, "%s and %s serve it\n", strings.Join(good[:len(good)-1], ", "), good[len(good)-1])
	}
	for i := range list {
		n := &list[i]
		if n.Why == "" {
			continue
		}
		fmt.Fprintf(w, "%s does not serve it yet: %s", clean(n.Node), clean(n.Why))
		if n.Later {
			fmt.Fprint(w, "; it compiles it when it is back")
		}
		fmt.Fprintln(w)
		for _, p := range n.Problems {
			fmt.Fprintf(w, "  %s\n", clean(p))
		}
	}
}

// byTenant says whose they are.
func byTenant(m map[string]int) string {
	if len(m) == 0 {
		return ""
	}
	var list []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		list = append(list, fmt.Sprintf("%s %d", clean(name), m[name]))
	}
	return ": " + strings.Join(list, ", ")
}

// plural is "1 rule", "2 rules".
func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
