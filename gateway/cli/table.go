package cli

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// table prints rows in columns. An empty cell becomes "-", so that columns can be cut by tools.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer, heads ...string) *table {
	t := &table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	t.row(toAny(heads)...)
	return t
}

func toAny(list []string) []any {
	out := make([]any, len(list))
	for i, s := range list {
		out[i] = s
	}
	return out
}

func (t *table) row(cells ...any) {
	for i, c := range cells {
		s := clean(fmt.Sprint(c))
		if s == "" {
			s = "-"
		}
		if i > 0 {
			fmt.Fprint(t.w, "\t")
		}
		fmt.Fprint(t.w, s)
	}
	fmt.Fprintln(t.w)
}

func (t *table) flush() { _ = t.w.Flush() } // it writes to memory

// clean keeps names that came from files, or from whoever answers at an address, from moving the cursor.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, s)
}

// yes prints a truth.
func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// scaled prints n with a decimal prefix and three digits: 1.50k, 20.0M.
func scaled(n float64) string {
	for _, p := range []string{"", "k", "M", "G", "T"} {
		if n < 999.5 || p == "T" {
			switch {
			case p == "" && n == float64(int64(n)):
				return fmt.Sprintf("%.0f", n)
			case n < 9.995:
				return fmt.Sprintf("%.2f%s", n, p)
			case n < 99.95:
				return fmt.Sprintf("%.1f%s", n, p)
			}
			return fmt.Sprintf("%.0f%s", n, p)
		}
		n /= 1000
	}
	return ""
}

// stamp prints a moment, with so many digits behind the second: with its date, since lists hold old ones, and in one zone that it names, since nodes and
// those who ask them stand in several.
func stamp(t time.Time, digits int) string {
	layout := time.DateTime
	if digits > 0 {
		layout += "." + strings.Repeat("0", digits)
	}
	return t.UTC().Format(layout + " UTC")
}

// seconds prints a span as people say it: 850ms, 12s, 3m20s, 5h10m, 3d4h.
func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(time.Second).String()
	case d < time.Hour:
		d = d.Round(time.Second)
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		d = d.Round(time.Minute)
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	d = d.Round(time.Hour)
	return fmt.Sprintf("%dd%02dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}
