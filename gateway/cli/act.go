package cli

import (
	"bufio"
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

// filterFlags are what sessions and sessions cut have in common.
func filterFlags(c *cobra.Command, f *api.SessionFilter) {
	c.Flags().StringVar(&f.Tenant, "tenant", "", "of this tenant")
	c.Flags().StringVar(&f.Address, "address", "", "with this address or prefix on any side")
	c.Flags().IntVar(&f.Port, "port", 0, "with this port on any side")
	c.Flags().StringVar(&f.Proto, "proto", "", "tcp, udp, icmp, icmpv6 or a number")
}

func (a *app) cutCmd() *cobra.Command {
	var r api.CutRequest
	var yes bool
	c := command("cut FILTER", "end live sessions",
		"End the sessions that a filter of flags meets: say how many first, and ask, or go on with --yes. When it returns, not one more packet of\n"+
			"those sessions is forwarded. A conversation that the policy allows may begin anew; see block for one that must not.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			f := &r.Filter
			if err := f.Check(); err != nil {
				return usageError{err}
			}
			if empty := f.Tenant == "" && f.Address == "" && f.Port == 0 && f.Proto == ""; empty && !r.All {
				return usageError{errors.New("no filter: name --tenant, --address, --port or --proto, or say --all")}
			} else if !empty && r.All {
				return usageError{errors.New("--all beside a filter: say one of the two")}
			}
			return a.cut(cmd, r, yes)
		})
	filterFlags(c, &r.Filter)
	c.Flags().BoolVar(&r.All, "all", false, "every session of every tenant")
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&r.DryRun, "dry-run", false, "only say which")
	return a.data(c)
}

func (a *app) cut(cmd *cobra.Command, r api.CutRequest, yes bool) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	if !yes || r.DryRun {
		look := r
		look.DryRun = true
		var would api.Cut
		if err := c.Post(cmd.Context(), api.PathCut, look, &would); err != nil {
			return err
		}
		if r.DryRun {
			return show(a, cmd, &would, writeWouldCut)
		}
		// What is asked must not stand in the way of what is answered.
		writeWouldCut(cmd.ErrOrStderr(), &would)
		if would.Matched == 0 {
			return show(a, cmd, &would, func(io.Writer, *api.Cut) {})
		}
		if ok, err := confirmed(cmd, "cut them?"); err != nil {
			return err
		} else if !ok {
			return errors.New("nothing was cut")
		}
	}
	var done api.Cut
	if err := c.Post(cmd.Context(), api.PathCut, r, &done); err != nil {
		return err
	}
	return show(a, cmd, &done, func(w io.Writer, d *api.Cut) {
		fmt.Fprintf(w, "%s of %d cut%s\n", plural(d.Cut, "session"), d.Total, perTenant(d.ByTenant))
		writeCopies(w, d)
	})
}

func writeCopies(w io.Writer, d *api.Cut) {
	if d.Copies > 0 {
		fmt.Fprintf(w, "%s beside those: copies of what another node serves. They end when that node ends them: give it the same command\n", plural(d.Copies, "session"))
	}
}

func writeWouldCut(w io.Writer, d *api.Cut) {
	if len(d.Sessions) > 0 {
		writeSessions(w, d.Sessions, false)
		if more := d.Matched - len(d.Sessions); more > 0 {
			fmt.Fprintf(w, "… and %d more\n", more)
		}
	}
	fmt.Fprintf(w, "%s of %d would be cut%s\n", plural(d.Matched, "session"), d.Total, perTenant(d.ByTenant))
	writeCopies(w, d)
}

func perTenant(m map[string]int) string {
	if len(m) == 0 {
		return ""
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%s %d", clean(name), m[name]))
	}
	return " (" + strings.Join(parts, ", ") + ")"
}

// confirmed asks on the terminal; without one there is nobody to ask.
func confirmed(cmd *cobra.Command, question string) (bool, error) {
	in := cmd.InOrStdin()
	if f, ok := in.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		return false, errors.New("standard input is no terminal to ask on: say --yes if that is meant")
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s [y/N] ", question)
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && err != io.EOF {
		return false, err
	}
	s := strings.ToLower(strings.TrimSpace(line))
	return s == "y" || s == "yes", nil
}

func sideFlags(c *cobra.Command, s *api.Side) {
	c.Flags().StringVar(&s.Tenant, "tenant", "", "as this tenant's side sees the address; two tenants may have the same one")
	c.Flags().BoolVar(&s.Backbone, "backbone", false, "as the backbone sees it")
}

func checkSide(s api.Side) error {
	if s.Tenant != "" && s.Backbone {
		return usageError{errors.New("--tenant and --backbone: name one side, or none for every side")}
	}
	return nil
}

func (a *app) blockCmd() *cobra.Command {
	var r api.BlockRequest
	c := command("block ADDRESS|PREFIX [for] TIME", "drop everything from and to an address for a while",
		"Drop everything from and to an address or prefix, from the next packet on, also of live sessions: for the moment of an attack, before a rule\n"+
			"is written. It ends by itself after TIME (10m, 1h30m; 1s to 168h), survives an apply and, with the time that was left, a restart. Sessions\n"+
			"are not cut: what outlives the block goes on. Without a side it holds on every side; an inside address may be another tenant's as well.\n"+
			"What is the host's own on a port (ssh to it, say) does not come through the gateway and is not blocked. Blocking again sets the time anew.",
		cobra.RangeArgs(2, 3), func(cmd *cobra.Command, args []string) error {
			if len(args) == 3 && args[1] != "for" {
				return usageError{fmt.Errorf("%q: want ADDRESS for TIME", strings.Join(args, " "))}
			}
			if err := checkSide(r.Side); err != nil {
				return err
			}
			d, err := time.ParseDuration(args[len(args)-1])
			if err != nil {
				return usageError{fmt.Errorf("%q is not a time: want 10m, 90s or 1h30m", args[len(args)-1])}
			}
			r.Address, r.Seconds = args[0], d.Seconds()
			var b api.Blocked
			if err := a.ask(func(c *api.Client) error { return c.Post(cmd.Context(), api.PathBlock, r, &b) }); err != nil {
				return err
			}
			return show(a, cmd, &b, writeBlocked)
		})
	sideFlags(c, &r.Side)
	c.Flags().BoolVar(&r.Force, "force", false, "also what looks like a mistake: the gateway's own address, a next hop, a tenant's network, half the world")
	c.Flags().BoolVar(&r.DryRun, "dry-run", false, "only say what it would touch")
	return a.data(c)
}

func writeBlocked(w io.Writer, b *api.Blocked) {
	fmt.Fprintf(w, "%s live touched%s\n", plural(b.Sessions, "session"), perTenant(b.ByTenant))
	what := "is blocked"
	switch {
	case b.DryRun:
		what = "would be blocked"
	case b.Replaced:
		what = "stays blocked"
	}
	fmt.Fprintf(w, "%s %s on %s for %s\n", b.Block.Address, what, clean(b.Block.Side.String()), seconds(b.Block.Seconds))
	if b.NotKept != "" {
		fmt.Fprintf(w, "a restart would forget it: %s\n", clean(b.NotKept))
	}
}

func (a *app) unblockCmd() *cobra.Command {
	var r api.UnblockRequest
	c := command("unblock ADDRESS|PREFIX", "end a block before its time", "End the block of exactly this address or prefix on this side, or of all of them.",
		cobra.MaximumNArgs(1), func(cmd *cobra.Command, args []string) error {
			if err := checkSide(r.Side); err != nil {
				return err
			}
			if r.All != (len(args) == 0) || r.All && (r.Side != api.Side{}) {
				return usageError{errors.New("want an address, or --all and nothing else")}
			}
			if len(args) > 0 {
				r.Address = args[0]
			}
			var u api.Unblocked
			if err := a.ask(func(c *api.Client) error { return c.Post(cmd.Context(), api.PathUnblock, r, &u) }); err != nil {
				return err
			}
			return show(a, cmd, &u, func(w io.Writer, u *api.Unblocked) {
				for _, b := range u.Removed {
					fmt.Fprintf(w, "%s is free on %s, %s dropped\n", b.Address, clean(b.Side.String()), plural(int(b.Dropped), "packet"))
				}
				if len(u.Removed) == 0 {
					fmt.Fprintln(w, "nothing was blocked")
				}
				if u.NotKept != "" {
					fmt.Fprintf(w, "a restart would block again: %s\n", clean(u.NotKept))
				}
			})
		})
	sideFlags(c, &r.Side)
	c.Flags().BoolVar(&r.All, "all", false, "everything that is blocked")
	return a.data(c)
}

func (a *app) blocksCmd() *cobra.Command {
	return a.data(command("blocks", "list what is blocked, for how long still, and how often it was hit", "List the addresses that are blocked for a while, and how many packets each has dropped.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			return get(a, cmd, api.PathBlocks, func(w io.Writer, b *api.Blocks) {
				if len(b.Blocks) > 0 {
					writeBlocks(w, b.Blocks)
				}
				fmt.Fprintf(w, "%d of %d\n", len(b.Blocks), b.Max)
			})
		}))
}

func writeBlocks(w io.Writer, list []api.Block) {
	t := newTable(w, "DROPPED", "ADDRESS", "SIDE", "STILL", "REMARK")
	for _, b := range list {
		t.row(b.Dropped, b.Address, b.Side.String(), seconds(b.Seconds), b.Idle+b.Own)
	}
	t.flush()
}
