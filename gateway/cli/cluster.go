package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"demarc/cluster"
	log "demarc/cluster/command"
	"demarc/cluster/transport"
	"demarc/configs"
	"demarc/gateway/api"
	"demarc/gateway/revisions"
)

func (a *app) clusterCmd() *cobra.Command {
	c := command("cluster COMMAND", "keys, and the nodes that share one policy",
		"Make several nodes agree on one policy. A node alone is a cluster of one; with a [cluster] section in its node file others may join it.\n"+
			"ca, cert, client, join, replace and recover work where no node runs; all others ask one.",
		cobra.ArbitraryArgs, func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("no command given")}
			}
			return usageError{fmt.Errorf("there is no command \"cluster %s\"", args[0])}
		})
	c.AddCommand(a.clientCmd(), a.recoverCmd(), a.clusterCACmd(), a.clusterCertCmd(), a.clusterInitCmd(), a.clusterTokenCmd(), a.clusterJoinCmd(), a.clusterReplaceCmd(), a.clusterMembersCmd(),
		a.clusterPromoteCmd(), a.clusterLeadCmd(), a.clusterLeaveCmd(), a.clusterRemoveCmd(), a.clusterKeepCmd(),
		a.clusterRevokeCmd())
	return c
}

// DefaultCA is where the cluster's authority is made, unless it is said otherwise.
const DefaultCA = "/etc/demarc/ca"

func (a *app) clusterCACmd() *cobra.Command {
	var dir string
	c := command("ca [--dir DIR]", "make the cluster's authority, which issues certificates",
		"Make the authority that the certificates of all members come from, in DIR: ca.crt and ca.key. ca.key belongs on no gateway: keep it on the\n"+
			"machine where you run `demarc cluster cert`. A member whose directory of keys holds it renews the certificates of all by itself.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			if _, err := transport.NewAuthority(dir, "demarc", time.Now()); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "authority made in %s; next: demarc cluster cert NAME... --ca %s\n", dir, dir)
			return nil
		})
	c.Flags().StringVar(&dir, "dir", DefaultCA, "`directory`")
	return c
}

func (a *app) clusterCertCmd() *cobra.Command {
	var ca, out string
	c := command("cert NAME... [--ca DIR] [--out DIR]", "issue certificates for members",
		"Issue a certificate for each NAME, which is `name` in that node's file: ca.crt, node.crt and node.key in OUT/NAME. Copy that directory to\n"+
			"/etc/demarc/keys of the node (cluster.keys in its node file). A running node reads new ones by itself.",
		cobra.MinimumNArgs(1), func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				if name != filepath.Base(name) || name == "." || name == ".." || len(name) > 255 {
					return usageError{fmt.Errorf("%q is not the name of a node", name)}
				}
			}
			auth, err := transport.OpenAuthority(ca)
			if err != nil {
				return fmt.Errorf("the authority: %w: `demarc cluster ca` makes one", err)
			}
			for _, name := range args {
				dir := filepath.Join(out, name)
				if err := auth.Issue(dir, name, time.Now()); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: certificate until %s; copy it to /etc/demarc/keys of %s\n", dir, auth.Until(time.Now()).Format(time.DateOnly), name)
			}
			return nil
		})
	c.Flags().StringVar(&ca, "ca", DefaultCA, "`directory` of the authority")
	c.Flags().StringVar(&out, "out", ".", "`directory` to write to")
	return c
}

func (a *app) clusterInitCmd() *cobra.Command {
	return a.data(command("init", "say whether others can join this node, and what to do next",
		"A node that runs is a cluster of one already. init says whether others can reach it, and the commands by which they join.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			var c api.Members
			if err := a.ask(func(cl *api.Client) error { return cl.Get(cmd.Context(), api.PathMembers, &c) }); err != nil {
				return err
			}
			if c.Address == "" {
				return fmt.Errorf("node %s is a cluster of one that nobody can reach. Add to its node file, and start it again:\n"+
					"    [cluster]\n    listen = \"ADDRESS:7400\"\nwith ca.crt, node.crt and node.key from `demarc cluster cert %s` in %s", c.Node, c.Node, configs.DefaultKeys)
			}
			return show(a, cmd, &c, func(w io.Writer, c *api.Members) {
				fmt.Fprintf(w, "cluster %s, %s, reachable at %s\n", c.Cluster, plural(len(c.Members), "member"), c.Address)
				fmt.Fprintf(w, "next, here:               demarc cluster token [--role witness]\n")
				fmt.Fprintf(w, "then, on the new machine: demarc cluster join %s --token TOKEN --node /etc/demarc/node.toml\n", c.Address)
			})
		}))
}

func (a *app) clusterTokenCmd() *cobra.Command {
	r := api.TokenRequest{}
	var life time.Duration
	c := command("token [--role gateway|witness] [--for 1h]", "make a token that one node may join by",
		"Make a token that one node may join by, once and for a while. It is shown this once: the cluster keeps only its hash.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			if r.Role != string(roleGateway) && r.Role != string(roleWitness) {
				return usageError{fmt.Errorf("--role %q: want gateway or witness", r.Role)}
			}
			if life < time.Second || life > log.MaxTokenLife {
				return usageError{fmt.Errorf("--for %s: want 1s to %s", life, log.MaxTokenLife)}
			}
			r.Seconds = life.Seconds()
			var t api.Token
			if err := a.ask(func(c *api.Client) error { return c.Post(cmd.Context(), api.PathToken, r, &t) }); err != nil {
				return err
			}
			return show(a, cmd, &t, func(w io.Writer, t *api.Token) {
				fmt.Fprintf(w, "%s\n", t.Token)
				fmt.Fprintf(cmd.ErrOrStderr(), "for one %s, until %s: demarc cluster join %s --token TOKEN --node FILE\n", t.Role, stamp(t.Until, 0), t.Address)
			})
		})
	c.Flags().StringVar(&r.Role, "role", string(roleGateway), "what the newcomer is: gateway or witness")
	c.Flags().DurationVar(&life, "for", time.Hour, "how long it is good")
	return a.data(c)
}

func (a *app) clusterKeepCmd() *cobra.Command {
	var r api.KeepRequest
	var days, mib uint32
	c := command("keep [--revisions N] [--days N] [--text MIB] [--audit N]", "say or change how much of the past the cluster keeps",
		"Say how many revisions and lines of the audit log the cluster keeps and has, or change it; less than now forgets the oldest at once. The policy\n"+
			"that is served, and the one that would be gone back to, are always kept. Archive first: demarc audit --json, demarc export N.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			given := 0
			for _, name := range []string{"revisions", "days", "text", "audit"} {
				if f := cmd.Flags().Lookup(name); f.Changed {
					given++
					if f.Value.String() == "0" {
						return usageError{fmt.Errorf("--%s 0: want at least 1; how much may be asked for the node says", name)}
					}
				}
			}
			if given == 0 {
				return get(a, cmd, api.PathKept, writeKept)
			}
			r.Seconds, r.TextBytes = 86400*float64(days), int64(mib)<<20
			var k api.Kept
			if err := a.ask(func(c *api.Client) error { return c.Post(cmd.Context(), api.PathKeep, r, &k) }); err != nil {
				return err
			}
			return show(a, cmd, &k, writeKept)
		})
	c.Flags().IntVar(&r.Revisions, "revisions", 0, "at most `N` revisions")
	c.Flags().Uint32Var(&days, "days", 0, "none that was replaced more than `N` days ago")
	c.Flags().Uint32Var(&mib, "text", 0, "at most `MIB` mebibytes of their texts")
	c.Flags().IntVar(&r.Audit, "audit", 0, "at most `N` lines of the audit log")
	return a.data(c)
}

func writeKept(w io.Writer, k *api.Kept) {
	t := newTable(w, "KEPT", "AT MOST", "NOW")
	t.row("revisions", k.Revisions, k.Now.Revisions)
	t.row("days since replaced", fmt.Sprintf("%.3g", k.Seconds/86400), fmt.Sprintf("%.3g", k.Now.Seconds/86400))
	t.row("MiB of their texts", fmt.Sprintf("%.5g", float64(k.TextBytes)/(1<<20)), fmt.Sprintf("%.3g", float64(k.Now.TextBytes)/(1<<20)))
	t.row("lines of the audit log", k.Audit, k.Now.Audit)
	t.flush()
}

const (
	roleGateway = log.RoleGateway
	roleWitness = log.RoleWitness
)

// joining is what join and replace have in common.
type joining struct{ node, token, replace string }

func (j *joining) flags(c *cobra.Command) {
	c.Flags().StringVar(&j.node, "node", "", "node `file` of this machine")
	c.Flags().StringVar(&j.token, "token", "", "`TOKEN` that demarc cluster token has printed; - reads it from standard input")
}

func (a *app) clusterJoinCmd() *cobra.Command {
	var j joining
	c := command("join ADDRESS --token TOKEN --node FILE", "make this machine a member, before it is started",
		"Make this machine a member of the cluster that ADDRESS, any member's, belongs to; done before `demarc run` or `demarc witness`, not while\n"+
			"it runs. It gets the confirmed policy, so that it has something to serve at its first start, follows the others, and votes by itself once it\n"+
			"has caught up. Needs the certificate of this node in place (cluster.keys in the node file).",
		cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error { return a.join(cmd, args[0], j) })
	j.flags(c)
	c.Flags().StringVar(&j.replace, "replace", "", "`name` of a member whose place it takes; may be its own")
	return c
}

func (a *app) clusterReplaceCmd() *cobra.Command {
	var j joining
	c := command("replace OLD ADDRESS --token TOKEN --node FILE", "make this machine a member in place of another one",
		"As join, and OLD, whose hardware is gone, say, is a member no more: it is refused should it come back.",
		cobra.ExactArgs(2), func(cmd *cobra.Command, args []string) error {
			j.replace = args[0]
			return a.join(cmd, args[1], j)
		})
	j.flags(c)
	return c
}

func (a *app) join(cmd *cobra.Command, address string, j joining) error {
	if j.node == "" || j.token == "" {
		return usageError{errors.New("--node and --token are needed: the node file of this machine, and what `demarc cluster token` on a member has printed")}
	}
	n, err := readNode(cmd, j.node)
	if err != nil {
		return err
	}
	if n.Cluster == nil {
		return fmt.Errorf("%s: has no [cluster] section, so the others could not reach this node: add one with listen = \"ADDRESS:7400\"", j.node)
	}
	if j.token == "-" {
		b, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), 4096))
		if err != nil {
			return err
		}
		j.token = strings.TrimSpace(string(b))
	}
	if !strings.Contains(address, ":") {
		return usageError{fmt.Errorf("%q: want an address and port, such as 192.0.2.1:7400", address)}
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second+10*n.Cluster.RoundTrip.Duration)
	defer cancel()
	got, err := cluster.Join(ctx, cluster.Newcomer{Dir: clusterDir(n), Name: n.Name, Role: log.Role(n.Cluster.Role), Version: a.version, Features: configs.Features(), Address: n.Cluster.Advertise,
		Keys: n.Cluster.Keys, Contact: address, Token: j.token, Replace: j.replace,
		Keep: func(r log.Revision, text []byte) error { return keepJoined(n, r, text) }})
	if err != nil {
		return err
	}
	var names []string
	for _, m := range got.Members {
		names = append(names, m.Name)
	}
	start := "demarc run"
	if n.Witness() {
		start = "demarc witness"
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s is a member of cluster %s: %s\nnext: %s --node %s\n", n.Name, got.Cluster, strings.Join(names, ", "), start, j.node)
	return nil
}

// keepJoined has the cluster's policy be what the node serves at its first start.
func keepJoined(n *configs.Node, r log.Revision, text []byte) error {
	if n.Witness() {
		return nil
	}
	s, err := revisions.Open(filepath.Join(n.DataDir, "policies"))
	if err != nil {
		return err
	}
	_, err = s.SaveAs(r.Number, text, revisions.Meta{Author: r.Author, Comment: r.Comment, Time: r.Time, Source: r.Source, Features: r.Features})
	return err
}

// clusterDir is where a node keeps the replicated state.
func clusterDir(n *configs.Node) string { return filepath.Join(n.DataDir, "cluster") }

func (a *app) clusterMembersCmd() *cobra.Command {
	return a.data(command("members", "list the members of the cluster",
		"List the members as the node that is asked sees them: role, vote, leader, how long ago each answered, what it serves.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return get(a, cmd, api.PathMembers, writeMembers) }))
}

func writeMembers(w io.Writer, c *api.Members) {
	lead := c.Leader + " leads"
	if c.Leader == "" {
		lead = "nobody leads: nothing can be changed until a majority of those with a vote meet"
	}
	fmt.Fprintf(w, "cluster %s, %s\n", c.Cluster, lead)
	t := newTable(w, "NAME", "ROLE", "ADDRESS", "VOTES", "ANSWERED", "SERVES", "APPLIED", "VERSION", "CERTIFICATE UNTIL")
	for _, m := range c.Members {
		name, votes := m.Name, yes(m.Votes)
		if m.Leads {
			name += " *"
		}
		if !m.Votes {
			votes = "not yet"
		}
		serves := "-"
		if m.Serving != 0 {
			serves = fmt.Sprint(m.Serving)
		}
		t.row(name, m.Role, m.Address, votes, answered(&m), serves, m.Applied, m.Version, until(m.Until))
	}
	t.flush()
	for _, m := range c.Members {
		if m.Problem != "" {
			fmt.Fprintf(w, "%s: %s\n", clean(m.Name), clean(m.Problem))
		}
		if len(m.Lacks) > 0 {
			fmt.Fprintf(w, "%s: its release (version %s) does not know %s: refused until it is upgraded\n", clean(m.Name), clean(m.Version), clean(log.Listed(m.Lacks)))
		}
		if m.ClockOff != 0 {
			fmt.Fprintf(w, "%s: its clock differs from this node's by %s: one of the two is wrong\n", clean(m.Name), time.Duration(m.ClockOff*float64(time.Second)).Round(time.Second))
		}
	}
	if c.Log.Longest > slowWrite {
		fmt.Fprintf(w, "%s: a write of the log took %s on its disk within the last two minutes: a takeover would wait for such writes\n", clean(c.Node), ms(c.Log.Longest))
	}
	writeRevoked(w, c.Revoked)
}

// slowWrite is from when a write of the log is worth a word, seconds: the alert's.
const slowWrite = 0.1

func writeRevoked(w io.Writer, list []api.RevokedClient) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintln(w)
	t := newTable(w, "REVOKED CLIENT", "KEY", "SINCE", "BY", "WHY")
	for _, v := range list {
		key := "every certificate"
		if v.Key != "" {
			key = v.Key
		}
		t.row(v.Client, key, stamp(v.Time, 0), v.By, v.Why)
	}
	t.flush()
}

func answered(m *api.MemberState) string {
	switch {
	case m.Self:
		return "this one"
	case m.Answered == nil:
		return "never"
	}
	return fmt.Sprintf("%.0f s ago", *m.Answered)
}

func until(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.Format(time.DateOnly)
}

// about is a command that names one member.
func (a *app) about(use, short, long, path, done string) *cobra.Command {
	return a.data(command(use, short, long, cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
		var c api.Members
		if err := a.ask(func(cl *api.Client) error { return cl.Post(cmd.Context(), path, api.MemberRequest{Name: args[0]}, &c) }); err != nil {
			return err
		}
		return show(a, cmd, &c, func(w io.Writer, c *api.Members) {
			fmt.Fprintf(w, "%s %s\n", args[0], done)
			writeMembers(w, c)
			writeWarnings(w, c.Warnings)
		})
	}))
}

func (a *app) clusterPromoteCmd() *cobra.Command {
	return a.about("promote NAME", "give a newcomer its vote now", "Give NAME its vote, if it has caught up. It gets it by itself too; this says what it waits for.",
		api.PathPromote, "votes")
}

func (a *app) clusterLeadCmd() *cobra.Command {
	return a.about("lead NAME", "let another member lead", "Hand the lead to NAME, before maintenance of the one that leads, say. A witness takes it back by itself.",
		api.PathLead, "leads")
}

func (a *app) clusterRemoveCmd() *cobra.Command {
	return a.about("remove NAME", "take a member out for good",
		"Take NAME out. It is not let in any more, by its certificate or its data; it may join again with a token, as a new node. Refused when those that\n"+
			"are left and live would be no majority.", api.PathRemove, "is removed")
}

func (a *app) clusterLeaveCmd() *cobra.Command {
	var yes bool
	c := command("leave", "take this node out for good", "Take the node that is asked out of the cluster. It goes on serving what it serves, and takes no changes any more.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			var c api.Members
			if err := a.ask(func(cl *api.Client) error { return cl.Get(cmd.Context(), api.PathMembers, &c) }); err != nil {
				return err
			}
			if !yes {
				if ok, err := confirmed(cmd, fmt.Sprintf("take %s out of cluster %s?", c.Node, c.Cluster)); err != nil {
					return err
				} else if !ok {
					return errors.New("nothing was changed")
				}
			}
			var l api.Left
			if err := a.ask(func(cl *api.Client) error {
				return cl.Post(cmd.Context(), api.PathLeave, api.MemberRequest{Name: c.Node}, &l)
			}); err != nil {
				return err
			}
			return show(a, cmd, &l, func(w io.Writer, l *api.Left) {
				fmt.Fprintf(w, "%s has left and goes on serving revision %d. Before it joins again, or begins anew: stop it, mv %s %s.old\n", l.Name, l.Serving, l.Dir, l.Dir)
			})
		})
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return a.data(c)
}

func (a *app) clusterRevokeCmd() *cobra.Command {
	var r api.RevokeRequest
	var cert string
	c := command("revoke [CLIENT] [--cert FILE] [--why TEXT] [--undo]", "refuse a client's certificate before its end",
		"Have every node refuse the certificates of CLIENT, the name that `demarc cluster client` gave: those that there are and those to come, whatever their role.\n"+
			"With --cert only the one in FILE, which is its client.crt, so that CLIENT goes on with another one. Connections and streams that stand are cut.\n"+
			"It holds on each node as soon as that follows the cluster; one that is cut off goes on as it was until it meets the others.\n"+
			"--undo takes it back, said the same way. `demarc cluster members` lists who is revoked.",
		cobra.MaximumNArgs(1), func(cmd *cobra.Command, args []string) error {
			if cert != "" {
				who, key, err := transport.ReadClient(cert)
				if err != nil {
					return err
				}
				r.Client, r.Key = who.Name, key
			}
			switch {
			case len(args) == 0 && cert == "":
				return usageError{errors.New("name a client, or its certificate with --cert")}
			case len(args) == 1 && cert != "" && args[0] != r.Client:
				return usageError{fmt.Errorf("%s is a certificate of %s, not of %s", cert, r.Client, args[0])}
			case len(args) == 1:
				r.Client = args[0]
			}
			var c api.Members
			if err := a.ask(func(cl *api.Client) error { return cl.Post(cmd.Context(), api.PathRevoke, r, &c) }); err != nil {
				return err
			}
			return show(a, cmd, &c, func(w io.Writer, c *api.Members) {
				what := "every certificate of " + r.Client
				if r.Key != "" {
					what = "the certificate of " + r.Client + " in " + cert
				}
				done := "is refused from now on"
				if r.Undo {
					done = "is let in again"
				}
				fmt.Fprintf(w, "%s %s\n", what, done)
				for _, m := range c.Members {
					if !m.Self && m.Problem != "" {
						fmt.Fprintf(w, "%s may not know it yet: %s\n", clean(m.Name), clean(m.Problem))
					}
				}
				writeRevoked(w, c.Revoked)
			})
		})
	c.Flags().StringVar(&cert, "cert", "", "`file` with one certificate of the client")
	c.Flags().StringVar(&r.Why, "why", "", "`text` for the list and the audit log")
	c.Flags().BoolVar(&r.Undo, "undo", false, "let in again")
	return a.data(c)
}
