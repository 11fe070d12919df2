package cli

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"demarc/gateway/api"
)

// revisionArg is the number of a revision on the command line; without one it is 0, where that may be.
func revisionArg(args []string) (uint64, error) {
	if len(args) == 0 {
		return 0, nil
	}
	n, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil || n == 0 {
		return 0, usageError{fmt.Errorf("%q is not the number of a revision, from 1: demarc history lists them", args[0])}
	}
	return n, nil
}

// changeFlags are those of a command that makes a revision.
type changeFlags struct {
	expect  uint64
	confirm time.Duration
	comment string
}

func (f *changeFlags) add(c *cobra.Command) {
	c.Flags().Uint64Var(&f.expect, "expect", 0, "refuse unless revision `N` is the one served now")
	c.Flags().DurationVar(&f.confirm, "confirm", 0, "go back by itself unless it is confirmed within this `time`, as 60s or 5m")
	c.Flags().StringVar(&f.comment, "comment", "", "why, for the history")
}

func (f *changeFlags) check(cmd *cobra.Command) error {
	switch {
	case cmd.Flags().Changed("expect") && f.expect == 0:
		return usageError{errors.New("--expect 0: want the number of a revision, from 1")}
	case cmd.Flags().Changed("confirm") && (f.confirm < time.Second || f.confirm > 24*time.Hour):
		return usageError{fmt.Errorf("--confirm %s: want 1s to 24h", f.confirm)}
	}
	return nil
}

func (a *app) confirmCmd() *cobra.Command {
	return a.data(command("confirm [N]", "keep the revision that was applied with --confirm",
		"Keep the provisional revision; with N, only if it is that one. Without this the revision before it is served again when its time is over.\n"+
			"A confirmation that comes too late is told so and changes nothing.",
		cobra.MaximumNArgs(1), func(cmd *cobra.Command, args []string) error {
			n, err := revisionArg(args)
			if err != nil {
				return err
			}
			var d api.Confirmed
			if err := a.ask(func(c *api.Client) error {
				return c.Post(cmd.Context(), api.PathConfirm, api.ConfirmRequest{Revision: n}, &d)
			}); err != nil {
				return err
			}
			return show(a, cmd, &d, func(w io.Writer, d *api.Confirmed) {
				fmt.Fprintf(w, "revision %d is confirmed and stays\n", d.Revision.Number)
				writeNotKept(w, d.NotKept)
			})
		}))
}

func (a *app) rollbackCmd() *cobra.Command {
	var f changeFlags
	c := command("rollback [N]", "serve an earlier revision again, without a restart",
		"Serve the text of revision N again, as a new revision that names N. It is checked, compiled and taken up like any other policy: sessions that it\n"+
			"allows go on, those that it denies are cut. Without N the provisional revision is taken back before its time is over.",
		cobra.MaximumNArgs(1), func(cmd *cobra.Command, args []string) error {
			n, err := revisionArg(args)
			if err == nil {
				err = f.check(cmd)
			}
			if err == nil && n == 0 && (f.confirm != 0 || f.comment != "") {
				err = usageError{errors.New("--confirm and --comment belong to a rollback to a revision: name it")}
			}
			if err != nil {
				return err
			}
			var d api.Applied
			if err := a.ask(func(c *api.Client) error {
				return c.Post(cmd.Context(), api.PathRollback, api.RollbackRequest{To: n, Expected: f.expect, Confirm: f.confirm.Seconds(), Comment: f.comment}, &d)
			}); err != nil {
				return err
			}
			return show(a, cmd, &d, writeApplied)
		})
	f.add(c)
	return a.data(c)
}

func (a *app) historyCmd() *cobra.Command {
	return a.data(command("history", "list the revisions that are kept: who, when, why, and what became of them",
		"List the revisions that are kept, the newest first: number, time, author and where from, what became of it, digest, comment.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			return get(a, cmd, api.PathHistory, writeHistory)
		}))
}

func writeHistory(w io.Writer, h *api.History) {
	t := newTable(w, "REVISION", "APPLIED", "AUTHOR", "FROM", "FATE", "DIGEST", "COMMENT")
	for i := range h.Revisions {
		r := &h.Revisions[i]
		fate := r.Fate
		if r.Served {
			fate += ", served"
		}
		comment := r.Comment
		if r.Back != 0 {
			comment = strings.TrimSpace(fmt.Sprintf("(back to %d) %s", r.Back, comment))
		}
		t.row(r.Number, stamp(r.AppliedAt, 0), r.Author, r.From, fate, short(r.Digest), comment)
	}
	t.flush()
}

func (a *app) auditCmd() *cobra.Command {
	var after uint64
	c := command("audit", "list who wanted which change, and what came of it",
		"List every change that somebody wanted and that came to be decided on, the latest last: policies, confirmations, members, tokens; also those that were\n"+
			"refused. As many lines as the cluster keeps (see demarc cluster keep). For an archive: --json, and --after with the last index that it has.\n"+
			"Below stand the changes that the node which is asked has refused since it started (a policy with errors, a wrong request, a role that is not enough): nobody\n"+
			"else has heard of those. What the cluster has refused stands in both.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			path := api.PathAudit
			if after != 0 {
				path += fmt.Sprintf("?after=%d", after)
			}
			return get(a, cmd, path, writeAudit)
		})
	c.Flags().Uint64Var(&after, "after", 0, "only what came after the line of index `N`")
	return a.data(c)
}

func writeAudit(w io.Writer, l *api.Audit) {
	if l.Forgotten {
		fmt.Fprintf(w, "older lines are gone: %d are kept\n", l.Bound)
	}
	t := newTable(w, "INDEX", "TIME", "AUTHOR", "FROM", "KIND", "DONE", "WHAT")
	for i := range l.Lines {
		a := &l.Lines[i]
		done := "yes"
		if !a.OK {
			done = "no"
		}
		t.row(a.Index, stamp(a.Time, 0), a.Author, a.From, a.Kind, done, a.What)
	}
	t.flush()
	if len(l.Refused) == 0 {
		return
	}
	fmt.Fprintln(w, "\nrefused by this node since it started:")
	if l.RefusedGone > 0 {
		fmt.Fprintf(w, "%s gone: %d are kept\n", plural(l.RefusedGone, "older line"), len(l.Refused))
	}
	t = newTable(w, "TIME", "TIMES", "AUTHOR", "FROM", "WHAT", "STATUS", "WHY")
	for i := range l.Refused {
		r := &l.Refused[i]
		t.row(stamp(r.Time, 0), r.Times, r.Author, r.From, strings.TrimPrefix(r.What, "/v1/"), r.Status, r.Why)
	}
	t.flush()
}

// short is enough of a digest to tell two apart.
func short(digest string) string {
	d := strings.TrimPrefix(digest, "sha256:")
	return d[:min(12, len(d))]
}

func (a *app) revision(cmd *cobra.Command, args []string, human func(w io.Writer, s *api.Shown)) error {
	n, err := revisionArg(args)
	if err != nil {
		return err
	}
	path := api.PathRevision
	if n != 0 {
		path += fmt.Sprintf("?number=%d", n)
	}
	return get(a, cmd, path, human)
}

func (a *app) showCmd() *cobra.Command {
	return a.data(command("show N", "print the policy of a revision",
		"Print the text of revision N as it was applied. With --json also all that is known of it.",
		cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
			return a.revision(cmd, args, func(w io.Writer, s *api.Shown) { fmt.Fprint(w, s.Policy) })
		}))
}

func (a *app) exportCmd() *cobra.Command {
	return a.data(command("export [N]", "print the policy of a revision, with a header that says which it is",
		"Print the text of revision N, or of the one that is served, behind a header of comments: number, cluster, digest, author, time. It may be applied as\n"+
			"it is, here or on another node: the header is left out then, so that the same text has the same digest.",
		cobra.MaximumNArgs(1), func(cmd *cobra.Command, args []string) error {
			return a.revision(cmd, args, func(w io.Writer, s *api.Shown) { fmt.Fprint(w, s.Export) })
		}))
}

func writeNotKept(w io.Writer, why string) {
	if why != "" {
		fmt.Fprintf(w, "warning: it is agreed on, but not in this node's own copy yet, so a start would serve an older revision first: %s\n", clean(why))
	}
}
