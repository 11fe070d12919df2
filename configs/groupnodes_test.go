package configs

import (
	"strings"
	"testing"
)

// TestGroupNodes: a name that no member has is a warning with what was meant, where that can be told; a witness is an error.
func TestGroupNodes(t *testing.T) {
	p := decodePolicy(t, grouped)
	const line = `p.toml:13: group[1].nodes: `
	for name, c := range map[string]struct {
		members        []NodeName
		warnings, errs string
	}{
		"all there":      {[]NodeName{{"gw1", false}, {"gw2", false}, {"wit", true}}, "", ""},
		"a typo":         {[]NodeName{{"gw1", false}, {"gw3", false}}, line + `"gw2" is no member of this cluster: did you mean "gw3"?`, ""},
		"named already":  {[]NodeName{{"gw1", false}}, line + `"gw2" is no member of this cluster: the name of a gateway, or of one that joins later`, ""},
		"not a witness":  {[]NodeName{{"gw1", false}, {"gw3", true}}, line + `"gw2" is no member of this cluster: the name of a gateway, or of one that joins later`, ""},
		"a witness":      {[]NodeName{{"gw1", false}, {"gw2", true}}, "", line + `"gw2" is a witness, which serves no group: gateways alone`},
		"witness, typo":  {[]NodeName{{"gw1", false}, {"gw2", true}, {"gw3", false}}, "", line + `"gw2" is a witness, which serves no group: did you mean "gw3"?`},
		"two that stray": {[]NodeName{{"east1", false}}, line + "\"gw1\" is no member of this cluster: the name of a gateway, or of one that joins later\n" + line + `"gw2" is no member of this cluster: the name of a gateway, or of one that joins later`, ""},
	} {
		warnings, err := CheckGroupNodes(p, c.members)
		got, errs := "", ""
		if len(warnings) > 0 {
			got = warnings.Error()
		}
		if err != nil {
			errs = err.Error()
		}
		if got != c.warnings || errs != c.errs {
			t.Errorf("%s: warnings %q, errors %q", name, got, errs)
		}
	}
	if w, err := CheckGroupNodes(decodePolicy(t, small), []NodeName{{"a", true}}); w != nil || err != nil {
		t.Error("a policy without groups:", w, err)
	}
}

// TestGroupLeft: a group is not taken from the node that serves it while another one could have it handed over.
func TestGroupLeft(t *testing.T) {
	p := decodePolicy(t, grouped) // group[1] names gw1 and gw2
	name := p.Groups[0].Name
	pair := []NodeName{{"gw1", false}, {"gw2", false}, {"gw9", false}, {"wit", true}}
	for what, c := range map[string]struct {
		node    string
		members []NodeName
		serves  bool
		want    string
	}{
		"new to the group":  {"gw9", append(pair[2:3:3], NodeName{"gw1", false}), true, "p.toml:13: group[1].nodes: does not name gw9, which serves the group now: its sessions would be cut: first a policy that names both, and a move to one of these, then this policy"},
		"named":             {"gw1", pair, true, ""},
		"serves it":         {"gw9", pair, true, "p.toml:13: group[1].nodes: does not name gw9, which serves the group now: its sessions would be cut: first `demarc group move " + name + " gw1`, then this policy"},
		"prefers it":        {"gw9", pair, true, "p.toml:13: group[1].nodes: does not name gw9, which serves the group now: its sessions would be cut: first `demarc group move " + name + " gw1`, then this policy"},
		"the second can":    {"gw9", pair[1:], true, "p.toml:13: group[1].nodes: does not name gw9, which serves the group now: its sessions would be cut: first `demarc group move " + name + " gw2`, then this policy"},
		"does not serve it": {"gw9", pair, false, ""},
		"nobody else":       {"gw9", pair[2:], true, ""},
		"a witness":         {"gw9", []NodeName{{"gw9", false}, {"gw1", true}}, true, ""},
	} {
		got := ""
		was := decodePolicy(t, grouped)
		was.Groups[0].Nodes = []string{"gw9", "gw1", "gw2"}
		if what == "new to the group" {
			was.Groups[0].Nodes = []string{"gw9"}
		}
		if was.Groups[0].Prefer = what == "prefers it"; was.Groups[0].Prefer {
			c.want = strings.Replace(c.want, "demarc group move "+name+" gw1", "demarc node drain gw9", 1)
		}
		if err := CheckGroupLeft(was, p, c.node, c.members, func(g string) bool { return c.serves && g == name }); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", what, got, c.want)
		}
	}
}
