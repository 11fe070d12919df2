package configs

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Error is one thing wrong in one file. Its text is one line that says where, what, and what would be right.
type Error struct {
	File  string
	Line  int    // from 1; 0 when no line can be named
	Path  string // "tenant[2].rule[3].service": positions count from 1, as a reader of the file counts
	Value string // as written, quoted if it was text; "" when there is none
	Msg   string // what is wrong with it, reading on from Value: `is not a service`
	Want  string // what would be right; may be ""
}

// Error is `policy.toml:12: tenant[1].rule[3].service: "tpc/443" is not a service: did you mean "tcp/443"?`.
func (e Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	if e.Path != "" {
		b.WriteString(e.Path + ": ")
	}
	if e.Value != "" {
		b.WriteString(e.Value + " ")
	}
	b.WriteString(e.Msg)
	if e.Want != "" {
		b.WriteString(": " + e.Want)
	}
	return b.String()
}

// ErrorList is everything wrong, in the order of the files' lines. Decoders never return an empty one.
type ErrorList []Error

// Error is one line per problem.
func (l ErrorList) Error() string {
	lines := make([]string, len(l))
	for i, e := range l {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// err is l as an error, nil when there is nothing in it (a nil list in an interface would not be).
func (l ErrorList) err() error {
	if len(l) == 0 {
		return nil
	}
	return l
}

// sort puts the list into its one order; equal entries become one.
func (l ErrorList) sort() ErrorList {
	slices.SortStableFunc(l, func(a, b Error) int {
		if c := strings.Compare(a.File, b.File); c != 0 {
			return c
		}
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		if c := strings.Compare(a.Path, b.Path); c != 0 {
			return c
		}
		return strings.Compare(a.Value+a.Msg, b.Value+b.Msg)
	})
	return slices.Compact(l)
}

// maxErrors bounds a report: a file that is wrong all over is one mistake made often.
const maxErrors = 1000

// checker collects the errors of one file.
type checker struct {
	file string
	list ErrorList
	more int

	guessed int // names that were compared to find the nearest

	uses map[string]bool // features that the file uses
}

// maxGuesses bounds the search for what was meant in a file that names thousands of unknown things.
const maxGuesses = 500_000

// guess is the candidates, or none when enough have been compared: then they are not even listed.
func (c *checker) guess(candidates func() []string) []string {
	if c.guessed > maxGuesses || len(c.list) >= maxErrors {
		return nil
	}
	list := candidates()
	c.guessed += len(list)
	return list
}

// loc is a place in the file: where to point when what stands there is wrong. A loc of something that is not written
// has no node and points at the nearest thing around it that is.
type loc struct {
	c    *checker
	node *pos
	line int
	path string
}

func (l loc) key(name string) loc {
	out := loc{c: l.c, line: l.line, path: name}
	if l.path != "" {
		out.path = l.path + "." + name
	}
	if l.node != nil {
		if n := l.node.child(name); n != nil {
			out.node, out.line = n, n.line
		}
	}
	return out
}

// at is element i (from 0) of a list of tables.
func (l loc) at(i int) loc {
	out := l.item(i)
	out.path = l.path + "[" + strconv.Itoa(i+1) + "]"
	return out
}

// item is element i of a list of plain values: it has its own line, but goes by the name of the list.
func (l loc) item(i int) loc {
	out := loc{c: l.c, line: l.line, path: l.path}
	if l.node != nil && i < len(l.node.elems) {
		out.node, out.line = l.node.elems[i], l.node.elems[i].line
	}
	return out
}

// has says whether the key is written, with whatever value.
func (l loc) has(name string) bool { return l.node != nil && l.node.child(name) != nil }

// bad reports value at l. A value of type string is quoted; nil means that there is none to show.
func (l loc) bad(value any, msg, want string) {
	if len(l.c.list) >= maxErrors {
		l.c.more++
		return
	}
	l.c.list = append(l.c.list, Error{File: l.c.file, Line: l.line, Path: l.path, Value: show(value), Msg: msg, Want: want})
}

// missing reports that name is not written under l, unless it is, or all of l was wrong (then that has been said).
func (l loc) missing(name, want string) {
	whole := func(e Error) bool { return e.Path == l.path && l.path != "" }
	if !l.has(name) && !slices.ContainsFunc(l.c.list, whole) {
		at := l.key(name)
		at.bad(nil, "is missing", want)
	}
}

// done is the result: nil, or every problem in order.
func (c *checker) done() error {
	c.list = c.list.sort()
	if c.more > 0 {
		c.list = append(c.list, Error{File: c.file, Msg: fmt.Sprintf("and %d more", c.more)})
	}
	return c.list.err()
}

// show is v as it stands in an error: short, on one line, without control characters.
func show(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return quote(v)
	case fmt.Stringer:
		return quote(v.String())
	case map[string]any, []map[string]any, []any:
		return "" // as long as the file; the path says which
	default:
		return cut(fmt.Sprint(v))
	}
}

func quote(s string) string { return strconv.Quote(cut(s)) }

// cut keeps a line readable when somebody puts a novel into a name.
func cut(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// nearest is the candidate that word was probably meant to be, "" when none is close. Ties go to the first in
// alphabetical order, so that the same file always gets the same message.
func nearest(word string, candidates []string) string {
	if len(word) > 64 {
		return ""
	}
	best, bestCost := "", max(1, len(word)/3)+1
	for _, c := range candidates {
		if c == word || len(c) > 64 || len(c) > len(word)+bestCost || len(word) > len(c)+bestCost {
			continue
		}
		if d := distance(strings.ToLower(word), strings.ToLower(c)); d < bestCost || d == bestCost && best != "" && c < best {
			best, bestCost = c, d
		}
	}
	return best
}

// Nearest is the candidate that was meant by a word that is none; "" = none is near.
func Nearest(word string, candidates []string) string { return nearest(word, candidates) }

// didYouMean is the Want text for nearest, or otherwise what stands in other.
func didYouMean(word string, candidates []string, other string) string {
	if n := nearest(word, candidates); n != "" {
		return fmt.Sprintf("did you mean %s?", quote(n))
	}
	return other
}

// distance counts the insertions, deletions, changes and swaps of neighbours between a and b (optimal string alignment).
func distance(a, b string) int {
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}

// oneOf is `"a", "b" or "c"`.
func oneOf(names ...string) string {
	q := make([]string, len(names))
	for i, n := range names {
		q[i] = quote(n)
	}
	if len(q) == 1 {
		return q[0]
	}
	return strings.Join(q[:len(q)-1], ", ") + " or " + q[len(q)-1]
}
