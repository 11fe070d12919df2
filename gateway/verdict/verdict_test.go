package verdict

import "testing"

func TestEveryReasonHasItsOwnText(t *testing.T) {
	seen := map[string]Reason{}
	for r := Unset; r < NumReasons; r++ {
		s := r.String()
		if s == "" {
			t.Fatalf("reason %d has no text", r)
		}
		if o, dup := seen[s]; dup {
			t.Fatalf("reasons %d and %d share the text %q", o, r, s)
		}
		seen[s] = r
		if got, ok := ParseReason(s); !ok || got != r {
			t.Fatalf("ParseReason(%q) = %v, %v", s, got, ok)
		}
	}
}

func TestZeroFailsClosed(t *testing.T) {
	var v Verdict
	var r Reason
	if v != Drop || r != Unset {
		t.Fatalf("zero verdict %v, zero reason %v: want drop, unset", v, r)
	}
}
