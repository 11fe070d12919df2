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

// TestPolicyFindings: what is served because it was taken once, and would not be taken now, is said.
func TestPolicyFindings(t *testing.T) {
	decode := func(pool string) *configs.Policy {
		p, err := configs.DecodePolicy("p.toml", []byte("schema = 1\n[backbone]\ninterfaces = [\"wan\"]\n[[route]]\nprefix = \"0.0.0.0/0\"\nvia = \"203.0.113.1\"\n[[tenant]]\nname = \"a\"\ninterfaces = [\"a\"]\nprefixes = [\"198.18.0.0/24\"]\n[tenant.nat]\npool = [\""+pool+"\"]\n"))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	n, err := configs.DecodeNode("n.toml", []byte("schema = 1\n[[port]]\ndevice = \"eth0\"\n[[port]]\ndevice = \"eth1\"\n[[interface]]\nname = \"wan\"\nport = \"eth0\"\naddresses = [\"203.0.113.2/24\"]\n[[interface]]\nname = \"a\"\nport = \"eth1\"\naddresses = [\"198.18.0.1/24\"]\n"))
	if err != nil {
		t.Fatal(err)
	}
	if found := Policy(decode("203.0.113.9"), n); len(found) != 0 {
		t.Errorf("%+v", found)
	}
	found := Policy(decode("203.0.113.1"), n)
	if len(found) != 1 || found[0].Level != Bad || !strings.Contains(found[0].What, "holds 203.0.113.1, the next hop of a route") || !strings.Contains(found[0].Mend, "demarc apply") {
		t.Errorf("%+v", found)
	}
}
