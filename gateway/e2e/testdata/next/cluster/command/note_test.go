package command

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestGoldenNext: what today's build must refuse (TestNextRelease) is what this one writes.
func TestGoldenNext(t *testing.T) {
	e := &Entry{Level: 2, Kind: KindNote, Time: t0, Who: Who{Author: "root", From: "gw1"}, Note: &Note{Text: "hello"}}
	b, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	s, _ := run(t, begin(), e)
	state, err := s.EncodeState()
	if err != nil {
		t.Fatal(err)
	}
	// Until something is used that today's build does not know, that one reads what this one writes.
	if s, _ := run(t, begin()); s.Level != 1 {
		t.Errorf("a cluster begins at level %d", s.Level)
	} else if b, err := s.EncodeState(); err != nil || !strings.HasPrefix(string(b), `{"level":1,`) || strings.Contains(string(b), "notes") {
		t.Errorf("today's build cannot read a state of before: %v, %s", err, b)
	}
	for file, got := range map[string]string{"note.hex": hex.EncodeToString(b), "state.json": string(state)} {
		file = filepath.Join("testdata", "next", file)
		if *update {
			if err := os.WriteFile(file, []byte(got+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(want)) != got {
			t.Errorf("%s: %v, this build writes %s", file, err, got)
		}
	}
	if _, err := (&Entry{Level: 1, Kind: KindNote, Note: &Note{Text: "hello"}}).Encode(); err == nil {
		t.Error("a note goes out as something that today's build can read")
	}
}
