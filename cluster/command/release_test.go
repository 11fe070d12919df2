package command

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func node(id, name, version string, level int, features ...string) Member {
	return Member{ID: id, Name: name, Role: RoleGateway, Version: version, Level: level, Features: features}
}

// TestFeatures: a policy is agreed on only when every member's release knows what it uses; members count by what they last told, and who is told to stay behind may.
func TestFeatures(t *testing.T) {
	member := func(m Member) *Entry { return entry(KindMember, &m, "") }
	rev := func(text string, features, except []string) *Entry {
		return entry(KindRevise, &Revise{Features: features, Except: except}, text)
	}
	x, xy := []string{"tenant.x"}, []string{"tenant.x", "tenant.y"}
	token := func(of string) *Entry {
		return entry(KindToken, &Token{Hash: Digest([]byte(of)), Role: RoleGateway, Expires: t0.Add(time.Hour)}, "")
	}
	join := func(m Member, of string) *Entry {
		return entry(KindJoin, &Join{Member: m, Token: Digest([]byte(of))}, "")
	}
	old, new, both := member(node("1", "gw1", "v0.1", 1)), member(node("2", "gw2", "v0.2", 1, x...)), member(node("3", "wit", "v0.3", 1, xy...))
	for _, c := range []struct {
		name string
		in   []*Entry
		why  Why
		says string
	}{
		{"nothing used", []*Entry{old, rev("a", nil, nil)}, "", ""},
		{"known to all", []*Entry{new, both, rev("a", x, nil)}, "", ""},
		{"one is too old", []*Entry{old, new, both, rev("a", x, nil)}, WhyRelease, "gw1 (version v0.1) does not know tenant.x: upgrade it first"},
		{"two lack different things", []*Entry{old, new, both, rev("a", xy, nil)}, WhyRelease,
			"gw1 (version v0.1) does not know tenant.x and tenant.y, gw2 (version v0.2) does not know tenant.y: upgrade them first"},
		{"two lack the same", []*Entry{member(node("1", "gw1", "v0.1", 1)), member(node("4", "gw4", "v0.1", 1)), both, rev("a", x, nil)}, WhyRelease,
			"gw1 (version v0.1) and gw4 (version v0.1) do not know tenant.x: upgrade them first"},
		{"one may stay behind", []*Entry{old, new, rev("a", x, []string{"1"})}, "", ""},
		{"the wrong one may", []*Entry{old, new, rev("a", x, []string{"2"})}, WhyRelease, "gw1 (version v0.1) does not know tenant.x"},
		{"upgraded", []*Entry{old, new, member(node("1", "gw1", "v0.2", 1, x...)), rev("a", x, nil)}, "", ""},
		{"downgraded", []*Entry{new, member(node("2", "gw2", "v0.1", 1)), rev("a", x, nil)}, WhyRelease, "gw2 (version v0.1) does not know tenant.x"},
		{"an old one joins", []*Entry{new, rev("a", x, nil), token("t"), join(node("5", "gw5", "v0.1", 1), "t")}, WhyRelease,
			"gw5 (version v0.1) does not know tenant.x, which revision 1 uses: upgrade it first"},
		{"an old one joins before", []*Entry{new, rev("a", nil, nil), token("t"), join(node("5", "gw5", "v0.1", 1), "t")}, "", ""},
		{"a new one joins", []*Entry{new, rev("a", x, nil), token("t"), join(node("5", "gw5", "v0.2", 1, x...), "t")}, "", ""},
		{"what is gone back to counts too", []*Entry{new, rev("a", x, nil), entry(KindRevise, &Revise{Confirm: time.Minute}, "b"), token("t"), join(node("5", "gw5", "v0.1", 1), "t")},
			WhyRelease, "which revision 1 uses"},
	} {
		s, rs := run(t, append([]*Entry{begin()}, c.in...)...)
		last := rs[len(rs)-1]
		if why(last) != c.why || last.Refused != nil && !strings.Contains(last.Refused.Text, c.says) {
			t.Errorf("%s: %+v, want %q: %s", c.name, last.Refused, c.why, c.says)
		}
		if r, ok := s.Revision(last.Revision); ok && !reflect.DeepEqual(r.Features, c.in[len(c.in)-1].Revise.Features) {
			t.Errorf("%s: revision %d has the features %v", c.name, r.Number, r.Features)
		}
	}
	for name, e := range map[string]*Entry{"unsorted": rev("a", []string{"b", "a"}, nil), "twice": rev("a", []string{"a", "a"}, nil), "empty": member(node("1", "a", "", 1, "")),
		"long": member(node("1", "a", "", 1, strings.Repeat("x", maxFeatureName+1))), "nobody": rev("a", nil, []string{""}), "too many": rev("a", nil, make([]string, MaxMembers+1))} {
		if _, err := e.Encode(); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
}

// TestCannotRead: whose release is too old for an entry is told with what it is; the log is read by everybody else.
func TestCannotRead(t *testing.T) {
	s := &State{Members: []Member{node("1", "wit", "", 1), node("2", "gw2", "v0.2", 2), node("3", "gw1", "v0.1", 1)}}
	if l := s.CannotRead(&Entry{Level: 1, Kind: KindConfirm}); len(l) != 0 {
		t.Errorf("%+v", l)
	}
	if got, want := LackWords(s.CannotRead(&Entry{Level: 2, Kind: "note"})), `gw1 (version v0.1) and wit do not know "note" entries of level 2 (reading up to 1): upgrade them first`; got != want {
		t.Error(got)
	}
	if f, level := s.Ahead(); len(f) != 0 || level != 2 {
		t.Error(f, level)
	}
}

// TestSnapshotHasTheLevelOfItsEntries: what this build writes before anything of a later level was used is read by whoever reads that.
func TestSnapshotHasTheLevelOfItsEntries(t *testing.T) {
	for level, want := range map[int]string{0: `{"level":1,`, 1: `{"level":1,`, 7: `{"level":7,`} {
		b, err := (&State{Cluster: "c", Level: level}).EncodeState()
		if err != nil || !strings.HasPrefix(string(b), want) {
			t.Errorf("a state of level %d: %v, %s", level, err, b)
		}
	}
}

// TestNextRelease: an entry and a state as the stand-in of the next release has written them are refused with what would help, and count as nothing damaged.
// gateway/e2e has the stand-in, and checks that these are its own.
func TestNextRelease(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "next", "note.hex"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(b); !errors.Is(err, ErrLater) || !errors.Is(err, ErrUnreadable) ||
		err.Error() != `entry cannot be read: it is of a later release: "note" of level 2, this build reads up to 1: upgrade this node` {
		t.Errorf("the entry: %v", err)
	}
	state, err := os.ReadFile(filepath.Join("testdata", "next", "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeState(state); !errors.Is(err, ErrLater) || err.Error() != "entry cannot be read: it is of a later release: a state of level 2, this build reads up to 1: upgrade this node" {
		t.Errorf("the state: %v", err)
	}
	if _, err := DecodeState([]byte("{")); errors.Is(err, ErrLater) {
		t.Error("damage counts as a later release")
	}
}

// TestLevelHasItsFields: what stands in entries and states of a level was written down. A kind or field more needs another level, or members of the release before stop
// at it; until level 1 is released, -update writes the list again.
func TestLevelHasItsFields(t *testing.T) {
	var lines []string
	var walk func(t reflect.Type, path string)
	walk = func(t reflect.Type, path string) {
		switch {
		case t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice:
			walk(t.Elem(), path)
		case t.Kind() == reflect.Struct && t != reflect.TypeFor[time.Time]():
			for i := range t.NumField() {
				f := t.Field(i)
				if name, options, _ := strings.Cut(f.Tag.Get("json"), ","); name != "-" {
					lines = append(lines, strings.TrimRight(fmt.Sprintf("%s.%s %s %s", path, name, f.Type, options), " "))
					walk(f.Type, path+"."+name)
				}
			}
		}
	}
	walk(reflect.TypeFor[Entry](), "entry")
	walk(reflect.TypeFor[State](), "state")
	got := strings.Join(lines, "\n") + "\n"
	file := filepath.Join("testdata", fmt.Sprint("level", Level), "fields.txt")
	if *update && Level == 1 {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s is not what level %d has: raise Level and say in Least what needs it, or, as long as this level is unreleased, -update:\n%s", file, Level, d)
	}
}
