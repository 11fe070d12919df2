package gateway

import (
	"testing"

	"demarc/gateway/api"
)

// Nobody has more sessions listed at a time than the node has memory for, whatever they ask for.
func TestListedAtATime(t *testing.T) {
	for _, c := range []struct {
		limit int
		role  api.Role
		want  int
	}{{0, api.RoleOperator, 1000}, {7, api.RoleReadOnly, 7}, {maxListedAll, api.RoleOperator, maxListedAll}, {2_000_000, api.RoleOperator, maxListedAll}, {2_000_000, api.RoleReadOnly, maxListed}, {2_000_000, "", maxListed}} {
		if got := listed(c.limit, c.role); got != c.want {
			t.Errorf("%d for %q: %d, want %d", c.limit, c.role, got, c.want)
		}
	}
}
