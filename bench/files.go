package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"demarc/bench/report"
)

// readResults reads what a bench printed or the suite wrote: a file, or a directory with results.json.
func readResults(name string) (*report.Output, error) {
	if st, err := os.Stat(name); err == nil && st.IsDir() {
		name = filepath.Join(name, resultsFile)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	out := new(report.Output)
	if err := json.Unmarshal(b, out); err != nil {
		return nil, fmt.Errorf("%s: not results of demarc bench (a results.json, or what --json printed): %w", name, err)
	}
	switch {
	case out.Schema != report.Schema:
		return nil, fmt.Errorf("%s: schema %d; this program reads schema %d", name, out.Schema, report.Schema)
	case len(out.Results) == 0:
		return nil, fmt.Errorf("%s: there are no results in it", name)
	}
	return out, nil
}

func pageCommand() *cobra.Command {
	var to string
	c := &cobra.Command{
		Use:   "page RESULTS",
		Short: "make the HTML page of a results file",
		Long: "Make the page that `demarc bench` writes beside its results.json, of that file, of a directory with one, or of what a bench printed with --json. The page is\n" +
			"whole by itself: it loads nothing and runs nothing.",
		Args: exactArgs(1, "a results file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			out, err := readResults(args[0])
			if err != nil {
				return err
			}
			if to == "" {
				return out.HTML(cmd.OutOrStdout())
			}
			return writePage(to, out)
		},
	}
	c.Flags().StringVar(&to, "out", "", "write to this `file` instead of standard output")
	return c
}

func compareCommand() *cobra.Command {
	var o report.Across
	var asJSON, any bool
	c := &cobra.Command{
		Use:   "compare A B",
		Short: "what is better or worse in results B than in results A",
		Long: "Hold each figure that both results files have against the other: ratio B over A with its 95 % interval, and better, worse, same or unresolved, for B. A and B are\n" +
			"results.json files, directories with one, or what a bench printed with --json. Results of different machines or AF_XDP modes are refused, unless --any-machine\n" +
			"is given: their difference says nothing of the program. Neither does that of two runs on a shared machine whose host has changed: look at the peers' rows, which are compared too\n" +
			"(--peers). Exit status: 0 nothing is worse, 1 something is worse or the two cannot be compared, 2 wrong usage.",
		Args: exactArgs(2, "two results files"),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := readResults(args[0])
			if err != nil {
				return err
			}
			b, err := readResults(args[1])
			if err != nil {
				return err
			}
			if why := report.Differ(a, b); why != nil && !any {
				return fmt.Errorf("%s and %s cannot be compared: %s (--any-machine compares them all the same)", args[0], args[1], strings.Join(why, "; "))
			}
			if apart := report.SpeedsApart(a, b); apart != "" {
				fmt.Fprintln(cmd.ErrOrStderr(), apart)
			}
			rows := o.Compare(a, b)
			if asJSON {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetEscapeHTML(false)
				err = e.Encode(rows)
			} else {
				err = report.PrintChanges(cmd.OutOrStdout(), rows)
			}
			if n := report.Worse(rows); err == nil && n > 0 {
				err = fmt.Errorf("%d figures are worse in %s than in %s", n, args[1], args[0])
			}
			return err
		},
	}
	f := c.Flags()
	f.BoolVar(&o.Peers, "peers", false, "the peers' rows too: they tell a slower machine from a slower program")
	f.BoolVar(&o.All, "all", false, "rows without a better direction too")
	f.BoolVar(&any, "any-machine", false, "compare results of different machines or modes")
	f.BoolVar(&asJSON, "json", false, "print a list of objects")
	return c
}

func historyCommand() *cobra.Command {
	var asJSON bool
	var only string
	c := &cobra.Command{
		Use:   "history DIR",
		Short: "how figures went from commit to commit, of all results under a directory",
		Long: "Read every results.json, and other results that end in .json, under a directory, and print each figure's median in the order in which they were measured, with commit\n" +
			"and machine. The last one is held against the one before it of the same machine and mode.",
		Args: exactArgs(1, "a directory"),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, odd, err := readHistory(args[0])
			if err != nil {
				return err
			}
			for _, o := range odd {
				fmt.Fprintln(cmd.ErrOrStderr(), "left out:", o)
			}
			if len(list) == 0 {
				return fmt.Errorf("%s: no results in it", args[0])
			}
			series := report.History(list, only)
			if len(series) == 0 {
				return fmt.Errorf("%s: no figure has %q in its name", args[0], only)
			}
			if asJSON {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetEscapeHTML(false)
				return e.Encode(series)
			}
			return report.PrintHistory(cmd.OutOrStdout(), series)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print a list of objects")
	c.Flags().StringVar(&only, "figure", "", "only figures with this `text` in \"scenario case metric\"")
	return c
}

// readHistory reads all results under a directory; odd are JSON files that are something else, with the reason.
func readHistory(dir string) (list []report.Named, odd []string, err error) {
	err = filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(name) != ".json" || strings.HasSuffix(name, ".schema.json") {
			return err
		}
		out, err := readResults(name)
		if err != nil {
			odd = append(odd, err.Error())
			return nil
		}
		list = append(list, report.Named{Name: name, Output: out})
		return nil
	})
	return list, odd, err
}

// exactArgs is a usage error where another number of arguments is given.
func exactArgs(n int, want string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != n {
			return usageError{errors.New("want " + want)}
		}
		return nil
	}
}
