package configs

import "testing"

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
