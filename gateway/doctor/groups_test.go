package doctor

import (
	"strings"
	"testing"

	"demarc/configs"
)

// TestGroupFindings: what a pair cannot promise alone is said of each group, the worse the more it costs.
func TestGroupFindings(t *testing.T) {
	two := []string{"gw1", "gw2"}
	found := Groups(&configs.Policy{Groups: []configs.Group{{Name: "a", Nodes: two}, {Name: "b", Nodes: two, Alone: "keep"}, {Name: "c", Nodes: two, Alone: "auto"},
		{Name: "d", Nodes: two, Alone: "fence"}, {Name: "e", Nodes: two[:1], Alone: "auto"}}})
	for i, want := range []struct {
		level Level
		what  string
	}{
		{Info, "demarc group take a --force"}, {Info, "nobody takes over without proof"}, {Warn, "both nodes serve it"}, {Info, "the loss of either node ends service"}, {Warn, "alone may serve it"},
	} {
		if f := found[i]; f.Level != want.level || f.Subject != "group "+string(rune('a'+i)) || !strings.Contains(f.What+f.Why, want.what) {
			t.Errorf("%+v, want %+v", f, want)
		}
	}
	if len(found) != 5 || len(Groups(&configs.Policy{})) != 0 {
		t.Errorf("%d findings", len(found))
	}
}
