package packet_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"demarc/gateway/packet/badpackets"
)

var update = flag.Bool("update", false, "write the seed corpus again from badpackets")

// TestCorpus holds testdata/fuzz/FuzzParse, which every run of the tests replays, to what badpackets makes: the first case of each
// group and reason. A crash found by fuzzing is committed beside them under the name that the fuzzer gave it.
func TestCorpus(t *testing.T) {
	dir := filepath.Join("testdata", "fuzz", "FuzzParse")
	want := map[string]string{}
	seen := map[string]bool{}
	for _, c := range badpackets.All(1) {
		group, _, _ := strings.Cut(c.Name, "/")
		key := group + "-" + c.Want.String()
		if !seen[key] {
			seen[key] = true
			want["bad-"+key] = fmt.Sprintf("go test fuzz v1\n[]byte(%q)\n", c.Frame)
		}
	}
	if *update {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range want {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, text := range want {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != text {
			t.Errorf("%s is not what badpackets makes (go test -run TestCorpus -update): %v", name, err)
		}
	}
	have, _ := filepath.Glob(filepath.Join(dir, "bad-*"))
	for _, f := range have {
		if want[filepath.Base(f)] == "" {
			t.Errorf("%s: no longer made by badpackets", f)
		}
	}
}

// TestSameSeedSameCases: a wire test that failed must be able to send the same again.
func TestSameSeedSameCases(t *testing.T) {
	a, b, other := badpackets.All(9), badpackets.All(9), badpackets.All(10)
	differs := false
	for i := range a {
		if a[i].Name != b[i].Name || a[i].Want != b[i].Want || string(a[i].Frame) != string(b[i].Frame) {
			t.Fatalf("case %d: %s and %s differ", i, a[i].Name, b[i].Name)
		}
		differs = differs || string(a[i].Frame) != string(other[i].Frame)
	}
	if !differs {
		t.Error("the seed makes no difference")
	}
	t.Logf("%d cases", len(a))
}
