package gateway

import (
	"testing"

	"demarc/gateway/pipeline"
)

// TestAnswerFoundInATurnThatBeganBefore: the turn of a worker that finds an answer may have begun before another one sent the question. That is no reason to think it somebody else's, nor a negative time.
func TestAnswerFoundInATurnThatBeganBefore(t *testing.T) {
	for _, c := range []struct {
		at, ns uint64
		want   float64
	}{{5e6, 7.5e6, 2.5}, {5e6, 5e6, 0}, {5e6, 4.9e6, 0}} {
		if got := took(c.at, &pipeline.Answer{Ns: c.ns}); got != c.want {
			t.Errorf("sent at %d, found at %d: %g ms, want %g", c.at, c.ns, got, c.want)
		}
	}
}
