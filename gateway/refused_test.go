package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"

	"demarc/cluster"
	"demarc/cluster/command"
	"demarc/gateway/api"
)

// A status says whether a change was made: not (409, 503), or perhaps (504), which whoever asks again must look for first.
func TestRefusalsSayWhetherItWasDone(t *testing.T) {
	perhaps := fmt.Errorf("asked: %w", cluster.ErrUnknownOutcome)
	for _, c := range []struct {
		what string
		by   func(error) error
		err  error
		want int
	}{
		{"a group, refused", refusedGroup, &command.Refusal{}, http.StatusConflict},
		{"a group, perhaps", refusedGroup, perhaps, http.StatusGatewayTimeout},
		{"a group, nobody leads", refusedGroup, errors.New("no leader"), http.StatusServiceUnavailable},
		{"members, refused", refusedByMembers, &command.Refusal{}, http.StatusConflict},
		{"members, perhaps", refusedByMembers, perhaps, http.StatusGatewayTimeout},
		{"members, perhaps, out of time", refusedByMembers, fmt.Errorf("%w: %w", cluster.ErrUnknownOutcome, context.DeadlineExceeded), http.StatusGatewayTimeout},
		{"members, out of time", refusedByMembers, context.DeadlineExceeded, http.StatusServiceUnavailable},
		{"a policy, perhaps", refusal, perhaps, http.StatusGatewayTimeout},
		{"a policy, agreed on and not heard of yet", refusal, fmt.Errorf("revision 7: %w", cluster.ErrLate), http.StatusGatewayTimeout},
	} {
		var f *api.Fault
		if err := c.by(c.err); !errors.As(err, &f) || f.Status != c.want {
			t.Errorf("%s: %+v, want status %d", c.what, c.by(c.err), c.want)
		}
		if !errors.Is(c.by(c.err), c.err) {
			t.Errorf("%s: why is lost", c.what)
		}
	}
	if err := refusedGroup(nil); err != nil {
		t.Error(err)
	}
	if err := refusedByMembers(nil); err != nil {
		t.Error(err)
	}
}
