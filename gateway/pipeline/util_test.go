package pipeline

import (
	"strings"
	"testing"

	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
)

type sessionT = conntrack.Session

func flowID(i int) flow.TenantID { return flow.TenantID(i) }

func replaceOnce(t *testing.T, s, old, new string) string {
	t.Helper()
	if strings.Count(s, old) != 1 {
		t.Fatalf("%q is there %d times", old, strings.Count(s, old))
	}
	return strings.Replace(s, old, new, 1)
}
