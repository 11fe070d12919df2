package api

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const page = "../../docs/api.md"

// TestPage holds the list of paths in the operators' page to the table.
func TestPage(t *testing.T) {
	var b strings.Builder
	b.WriteString("| path | role at least | |\n|---|---|---|\n")
	for _, rt := range routes {
		fmt.Fprintf(&b, "| `%s %s` | %s | %s |\n", rt.method, rt.path, rt.least, rt.does)
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- paths -->\n", "<!-- /paths -->\n"
	head, rest, ok := strings.Cut(string(text), begin)
	have, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the paths", page)
	}
	if *update {
		if err := os.WriteFile(page, []byte(head+begin+b.String()+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(b.String(), have); d != "" {
		t.Errorf("%s is not what the code serves; -update writes it anew (-code +page):\n%s", page, d)
	}
}
