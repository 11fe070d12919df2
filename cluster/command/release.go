package command

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// ErrLater means that something was written by a later release: nothing is damaged, and an upgrade of this node reads it. It is an ErrUnreadable.
var ErrLater = fmt.Errorf("%w: it is of a later release", ErrUnreadable)

func later(format string, args ...any) error {
	return fmt.Errorf("%w: %s: upgrade this node", ErrLater, fmt.Sprintf(format, args...))
}

// Least is the lowest level that reads the entry: all that this build writes is of the first one. A release that adds a kind, or a field that is set, says here which it is.
func (e *Entry) Least() int { return 1 }

// A feature is a part of a policy's text that came after the first release, by the name that every build that knows it gives it. The level is about the log, features are
// about what stands in texts, which the log only carries.
const (
	maxFeatures    = 1000 // of one member, or of one text
	maxFeatureName = 128
	maxFeatureText = 32 << 10
)

func checkFeatures(what string, list []string) error {
	total := 0
	for i, f := range list {
		if total += len(f); f == "" || len(f) > maxFeatureName || i > 0 && list[i-1] >= f {
			return fmt.Errorf("%s: features must be sorted names of 1 to %d bytes, each once", what, maxFeatureName)
		}
	}
	if len(list) > maxFeatures || total > maxFeatureText {
		return fmt.Errorf("%s: %d features of %d bytes, at most %d of %d", what, len(list), total, maxFeatures, maxFeatureText)
	}
	return nil
}

// Equal reports whether two say the same of themselves.
func (m Member) Equal(o Member) bool {
	same := slices.Equal(m.Features, o.Features)
	m.Features, o.Features = nil, nil
	return same && reflect.DeepEqual(m, o)
}

// Release is the member with the version that it runs, as messages name it.
func (m Member) Release() string {
	if m.Version == "" {
		return m.Name
	}
	return fmt.Sprintf("%s (version %s)", m.Name, m.Version)
}

// Unknown lists which of these features the member does not know.
func (m Member) Unknown(features []string) (out []string) {
	for _, f := range features {
		if _, ok := slices.BinarySearch(m.Features, f); !ok {
			out = append(out, f)
		}
	}
	return out
}

// Lack is a member whose release does not know something, and what.
type Lack struct {
	Member Member
	What   string
}

// Lacking lists the members whose releases do not know all of these features, by name. Those with an id in except may stay behind.
func (s *State) Lacking(features, except []string) (out []Lack) {
	for _, m := range s.Members {
		if slices.Contains(except, m.ID) {
			continue
		}
		if unknown := m.Unknown(features); len(unknown) > 0 {
			out = append(out, Lack{m, Listed(unknown)})
		}
	}
	return byName(out)
}

// CannotRead lists the members whose releases could not read an entry, by name. A member counts by what it last told, also while it is down: it would stop where the entry is.
func (s *State) CannotRead(e *Entry) (out []Lack) {
	for _, m := range s.Members {
		if m.Level < e.Level {
			out = append(out, Lack{m, fmt.Sprintf("%q entries of level %d (reading up to %d)", e.Kind, e.Level, m.Level)})
		}
	}
	return byName(out)
}

func byName(l []Lack) []Lack {
	slices.SortFunc(l, func(a, b Lack) int { return strings.Compare(a.Member.Name, b.Member.Name) })
	return l
}

// LackWords say who does not know what, and what would be right.
func LackWords(l []Lack) string {
	var says []string
	for i := 0; i < len(l); {
		who := []string{l[i].Member.Release()}
		first := l[i].What
		for i++; i < len(l) && l[i].What == first; i++ {
			who = append(who, l[i].Member.Release())
		}
		does := "does"
		if len(who) > 1 {
			does = "do"
		}
		says = append(says, fmt.Sprintf("%s %s not know %s", Listed(who), does, first))
	}
	it := "it"
	if len(l) > 1 {
		it = "them"
	}
	return strings.Join(says, ", ") + ": upgrade " + it + " first"
}

// Ahead is all that some member's release knows: the features, sorted, and the level.
func (s *State) Ahead() (features []string, level int) {
	for _, m := range s.Members {
		features, level = append(features, m.Features...), max(level, m.Level)
	}
	slices.Sort(features)
	return slices.Compact(features), level
}

// Listed is "a", "a and b", "a, b and c".
func Listed(l []string) string {
	if len(l) < 2 {
		return strings.Join(l, "")
	}
	return strings.Join(l[:len(l)-1], ", ") + " and " + l[len(l)-1]
}
