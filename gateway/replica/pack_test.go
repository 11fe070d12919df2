package replica

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// shelf is a Source of samples, and a Sink that takes everything.
type shelf struct {
	recs []Record
	got  []Record
}

func (s *shelf) Slots() uint32         { return uint32(len(s.recs)) }
func (s *shelf) Look(slot uint32) Look { return Look{Gen: s.recs[slot].Gen, Group: s.recs[slot].Group} }
func (s *shelf) Fill(slot uint32, r *Record) {
	*r = s.recs[slot]
}
func (s *shelf) Name(kind NameKind, local uint16) string {
	return fmt.Sprintf("%d of kind %d", local, kind)
}
func (s *shelf) Local(kind NameKind, name string) (local uint16, ok bool) {
	var k NameKind
	n, err := fmt.Sscanf(name, "%d of kind %d", &local, &k)
	return local, n == 2 && err == nil && k == kind && local != 99
}
func (s *shelf) Do(ops []Op, _ *Context) {
	for i := range ops {
		s.got = append(s.got, ops[i].Rec)
		ops[i].Outcome = Taken
	}
}
func (s *shelf) Lost() uint64                  { return 0 }
func (s *shelf) Sweep(uint8, func(Place) bool) {}

// keep is samples of what is packed, each with its own slot.
func keep() (out []Record) {
	for _, r := range samples() {
		if r.Kind == KindSession || r.Kind == KindBlock || r.Kind == KindRate || r.Kind == KindCount {
			if r.Slot = uint32(len(out)); r.Kind != KindSession {
				r.Session.Hop = [2]uint16{NoName, NoName}
			}
			out = append(out, r)
		}
	}
	return out
}

func packed(s *shelf, rounds int) (frames [][]byte) {
	p := NewPacker(s, 3, 7)
	take := func(all bool) {
		for f := p.Take(all); f != nil; f = p.Take(all) {
			frames = append(frames, bytes.Clone(f))
		}
	}
	for range rounds {
		for slot := range s.Slots() {
			p.Add(slot)
			take(false)
		}
	}
	take(true)
	return frames
}

// TestPacked: what is packed comes out as it was, in local numbers, with as much less time as has passed; what is over by then, and what is of a tenant that there is not, does not.
func TestPacked(t *testing.T) {
	s := &shelf{recs: keep()}
	const rounds = 1500
	frames := packed(s, rounds)
	if len(frames) < 5 {
		t.Fatalf("%d frames", len(frames))
	}
	u := NewUnpacker(s, 0)
	for _, f := range frames {
		if err := u.Frame(f); err != nil {
			t.Fatal(err)
		}
	}
	for i := range s.got {
		want := s.recs[i%len(s.recs)]
		if d := cmp.Diff(want, s.got[i]); d != "" {
			t.Fatalf("record %d: %s", i, d)
		}
	}
	if len(s.got) != rounds*len(s.recs) || u.Sessions[Taken]+u.Others[Taken] != uint64(len(s.got)) {
		t.Errorf("%d records came out of %d, %v, %v", len(s.got), rounds*len(s.recs), u.Sessions, u.Others)
	}

	gone := keep()[0]
	gone.Tenant = 99
	s = &shelf{recs: append(keep(), gone)}
	u = NewUnpacker(s, 1000)
	for _, f := range packed(s, 1) {
		if err := u.Frame(f); err != nil {
			t.Fatal(err)
		}
	}
	over := 0
	for _, r := range s.recs {
		if r.Kind == KindSession && r.Session.Left <= 1000 {
			over++
		}
	}
	if u.Sessions[NoTenant] != 1 || over == 0 || u.Over != uint64(over) || s.got[0].Session.Left != s.recs[0].Session.Left-1000 {
		t.Errorf("a second later: %v, %d over (want %d), %d ms left of %d", u.Sessions, u.Over, over, s.got[0].Session.Left, s.recs[0].Session.Left)
	}

	for _, c := range []struct {
		what   string
		frames [][]byte
		want   string
	}{
		{"from the middle", frames[1:], "is not the next one"},
		{"twice", slices.Concat(frames[:1], frames[:1]), "is not the next one"},
		{"with a gap", slices.Concat(frames[:1], frames[2:]), "is not the next one"},
		{"cut off", [][]byte{frames[0][:len(frames[0])-1]}, "says that it is"},
	} {
		u, err := NewUnpacker(&shelf{}, 0), error(nil)
		for _, f := range c.frames {
			if err == nil {
				err = u.Frame(f)
			}
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

// FuzzUnpack: no bytes do more than be refused.
func FuzzUnpack(f *testing.F) {
	for _, b := range packed(&shelf{recs: keep()}, 1) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &shelf{}
		u := NewUnpacker(s, 5)
		_ = u.Frame(b)
		if n := u.Sessions[Taken] + u.Others[Taken]; n != uint64(len(s.got)) {
			t.Errorf("%d records were taken, %d are counted", len(s.got), n)
		}
	})
}
