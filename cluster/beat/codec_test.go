package beat

import (
	"encoding/hex"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"demarc/cluster/failover"
)

var update = flag.Bool("update", false, "write the golden files anew")

// goldens are messages whose bytes a later release must still read, and write where an older one is to read them.
var goldens = map[string]failover.Message{
	"beat": {Kind: failover.Beat, Life: 0x1122334455667788, Views: []failover.View{
		{Group: "east", Epoch: 300, Serving: true, Whole: true}, {Group: "west", Epoch: 1, Faults: 200, Panics: true, Leaving: true}}},
	"renew":   {Kind: failover.Renew, Life: 1, Group: "east", Term: failover.Term{Epoch: 7, Node: "gw-a", Life: 1<<64 - 1}, Seq: 1 << 40, Voters: 12},
	"lease":   {Kind: failover.Renew, Life: 1, Group: "east", Term: failover.Term{Epoch: 7, Node: "gw-a", Life: 3}, Seq: 1, Voters: 12, Lease: 120 * time.Millisecond},
	"promise": {Kind: failover.Promise, Life: 9, Group: "east", Term: failover.Term{Epoch: 7, Node: "gw-a", Life: 3}, Seq: 129, Yes: true},
	"free":    {Kind: failover.Free, Life: 9, Group: "east", Term: failover.Term{Epoch: 7, Node: "gw-a", Life: 3}, Seq: 2, Gone: true},
	"bare":    {Kind: failover.Free, Life: 9, Group: "east", Term: failover.Term{Epoch: 7, Node: "gw-a", Life: 3}, Seq: 3, Bare: true},
	"stands":  {Kind: failover.Beat, Life: 9, Stands: true, Views: []failover.View{{Group: "east", Epoch: 3, Whole: true}}},
	"release": {Kind: failover.Release, Life: 9, Group: "east", Term: failover.Term{Epoch: 7, Node: "gw-a", Life: 3}},
}

func golden(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGolden(t *testing.T) {
	for name, m := range goldens {
		b, err := appendMessage(nil, &m)
		if err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(filepath.Join("testdata", name+".hex"), []byte(hex.EncodeToString(b)+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want := golden(t, name)
		if d := cmp.Diff(want, b); d != "" {
			t.Errorf("%s is written otherwise than before:\n%s", name, d)
		}
		got, err := decode(want, names{})
		if d := cmp.Diff(m, got); err != nil || d != "" {
			t.Errorf("%s is read as something else: %v\n%s", name, err, d)
		}
	}
}

// TestReadsLaterReleases: bytes that a later release adds, in a view and at the end, and flags that this one does not know, change nothing of what it knows.
func TestReadsLaterReleases(t *testing.T) {
	got, err := decode(golden(t, "later"), names{})
	if err != nil {
		t.Fatal(err)
	}
	want := failover.Message{Kind: failover.Beat, Life: 5, Yes: true, Views: []failover.View{{Group: "east", Epoch: 3, Serving: true, Faults: 1}, {Group: "b", Epoch: 1}}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestRefusesWhatIsNoMessage(t *testing.T) {
	whole := golden(t, "beat")
	for i := range whole {
		if _, err := decode(whole[:i], names{}); err == nil {
			t.Errorf("the first %d bytes of %d were taken for a message", i, len(whole))
		}
	}
	if _, err := decode(append(whole[:len(whole):len(whole)], 0), names{}); err == nil {
		t.Error("a byte behind the end was passed over")
	}
	next := append([]byte{version + 1}, whole[1:]...)
	if _, err := decode(next, names{}); err == nil || !strings.Contains(err.Error(), "reads version 1") {
		t.Errorf("a later version: %v", err)
	}
	long := failover.Message{Kind: failover.Renew, Group: strings.Repeat("g", 256)}
	if _, err := appendMessage(nil, &long); !errors.Is(err, errLarge) {
		t.Errorf("a name of 256 bytes: %v", err)
	}
	many := failover.Message{Kind: failover.Beat, Views: make([]failover.View, maxViews+1)}
	if _, err := appendMessage(nil, &many); !errors.Is(err, errLarge) {
		t.Errorf("%d views: %v", len(many.Views), err)
	}
	many.Views = many.Views[:maxViews]
	for i := range many.Views {
		many.Views[i].Group = strings.Repeat("g", 64) // as long as a policy allows
	}
	b, err := appendMessage(nil, &many)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decode(b, names{}); err != nil || len(got.Views) != maxViews {
		t.Errorf("%d views: %v", len(got.Views), err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range goldens {
		b, _ := appendMessage(nil, &m)
		f.Add(b)
	}
	kept := names{}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b, kept)
		if len(kept) > maxNames {
			t.Fatalf("%d names are kept", len(kept))
		}
		if err != nil {
			return
		}
		out, err := appendMessage(nil, &m)
		if err != nil && len(b) <= maxPlain {
			t.Fatalf("%x was read and cannot be written: %v", b, err)
		}
		again, err := decode(out, names{})
		if d := cmp.Diff(m, again); err == nil && d != "" {
			t.Fatalf("%x: %s", b, d)
		}
	})
}

// TestWindow holds the window against a set of all that has come.
func TestWindow(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for range 200 {
		var w window
		come, top := map[uint64]bool{}, uint64(0)
		for range 3000 {
			n := top + r.Uint64N(5)
			switch r.IntN(10) {
			case 0:
				n = top + r.Uint64N(3*span)
			case 1, 2, 3:
				n = top - min(top, r.Uint64N(span+100))
			}
			want := n > 0 && !come[n] && n+span > top
			if got := w.fresh(n); got != want {
				t.Fatalf("%d with %d on top: fresh %v, want %v", n, top, got, want)
			}
			if want {
				w.take(n)
				come[n], top = true, max(top, n)
			}
		}
	}
}
