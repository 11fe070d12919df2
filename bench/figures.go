package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"demarc/bench/report"
)

// figuresBlock is a place in a document that holds the figures of a results file, whose name is relative to the document: all of them, or those that are named behind it.
var figuresBlock = regexp.MustCompile(`(?s)(<!-- bench:figures (\S+)(?: (\S+))? -->\n)(.*?)(<!-- /bench:figures -->)`)

// onlyFigures keeps those that are named, SCENARIO/METRIC; each name must be one that is there.
func onlyFigures(r *report.Output, list string) error {
	if list == "" {
		return nil
	}
	found, keep := map[string]bool{}, r.Results[:0:0]
	names := strings.Split(list, ",")
	for _, f := range r.Results {
		if name := f.Scenario + "/" + f.Metric; slices.Contains(names, name) {
			found[name] = true
			keep = append(keep, f)
		}
	}
	for _, name := range names {
		if !found[name] {
			return fmt.Errorf("there is no figure %s in it", name)
		}
	}
	r.Results = keep
	return nil
}

// withFigures is a document with its figures as their files have them; blocks says how many there are.
func withFigures(dir, text string) (out string, blocks int, err error) {
	if a, b := strings.Count(text, "<!-- bench:figures "), strings.Count(text, "<!-- /bench:figures -->"); a != b || a != len(figuresBlock.FindAllString(text, -1)) {
		return "", 0, fmt.Errorf("%d times <!-- bench:figures FILE --> and %d times <!-- /bench:figures -->: want a line each around every block", a, b)
	}
	out = figuresBlock.ReplaceAllStringFunc(text, func(block string) string {
		blocks++
		m := figuresBlock.FindStringSubmatch(block)
		r, e := readResults(filepath.Join(dir, m[2]))
		if e != nil {
			err = e
			return block
		}
		if e := onlyFigures(r, m[3]); e != nil {
			err = fmt.Errorf("%s: %w", m[2], e)
			return block
		}
		var b strings.Builder
		b.WriteString(m[1])
		if e := r.Markdown(&b); e != nil {
			err = e
		}
		b.WriteString(m[5])
		return b.String()
	})
	return out, blocks, err
}

func figuresCommand() *cobra.Command {
	var into string
	c := &cobra.Command{
		Use:   "figures [RESULTS]",
		Short: "print results as a table for a README, or write them into one",
		Long: "Print the figures of a results file that have a peer or a promise as a table in Markdown. With --write FILE: write them into a document instead, between the lines\n" +
			"<!-- bench:figures RESULTS --> and <!-- /bench:figures -->, where RESULTS is relative to the document, and figures may be named\n" +
			"behind it (SCENARIO/METRIC,…), or all are written. A test holds README.md to its files.",
		Args: func(_ *cobra.Command, args []string) error {
			if into == "" && len(args) != 1 || into != "" && len(args) != 0 {
				return usageError{fmt.Errorf("want a results file, or --write FILE")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if into == "" {
				r, err := readResults(args[0])
				if err != nil {
					return err
				}
				return r.Markdown(cmd.OutOrStdout())
			}
			text, err := os.ReadFile(into)
			if err != nil {
				return err
			}
			out, blocks, err := withFigures(filepath.Dir(into), string(text))
			if err != nil {
				return fmt.Errorf("%s: %w", into, err)
			}
			if blocks == 0 {
				return fmt.Errorf("%s: no line <!-- bench:figures RESULTS --> in it", into)
			}
			return writeWhole(into, []byte(out))
		},
	}
	c.Flags().StringVar(&into, "write", "", "the `document`")
	return c
}
