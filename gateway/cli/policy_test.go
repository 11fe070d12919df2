package cli

import (
	"bytes"
	"strings"
	"testing"

	"demarc/gateway/api"
)

// TestUnknownChanges: a node that does not know what a policy changes says nothing of that; one that knows that it is nothing says so.
func TestUnknownChanges(t *testing.T) {
	for want, list := range map[string][]api.Change{"revision 2 is served (12 ms)\n": nil, "revision 2 is served (0 changes, 12 ms)\n": {}, "revision 2 is served (1 change, 12 ms)\n": {{Path: "name"}}} {
		var b bytes.Buffer
		writeApplied(&b, &api.Applied{Revision: api.Revision{Number: 2}, Changes: list, Took: 0.012})
		if got, _, _ := strings.Cut(b.String(), "  ~ "); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
