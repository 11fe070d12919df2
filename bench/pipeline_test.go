package bench

import "testing"

// The whole command, short: each figure is there, has its aim, and a new flow costs more than a packet of one that is known.
func TestPipeline(t *testing.T) {
	r, said, err := asJSON(t, "pipeline", "--flows", "1,64k", "--trials", "2", "--packets", "100000", "--retries", "1")
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	by := byMetric(t, &r, said, err)
	one, many, begun := by["64B/1/nat44/1000-rules packet"], by["64B/64k/nat44/1000-rules packet"], by["64B/256k/nat44/1000-rules new-flow"]
	if one.Demarc.N != 2 || one.Demarc.Min <= 0 || one.Limit != nil {
		t.Errorf("one flow: %+v", one)
	}
	if many.Demarc.N != 2 || many.Limit == nil || many.Limit.Text() != "median at most 100" || !many.Limit.Aim {
		t.Errorf("64k flows: %+v", many)
	}
	if begun.Demarc.N != 2 || begun.Limit == nil || begun.Limit.Text() != "median at most 1000" || begun.Demarc.Median <= one.Demarc.Median {
		t.Errorf("new flows: %+v", begun)
	}
	for _, args := range [][]string{{"--flows", "3"}, {"--flows", "2M"}, {"--flows", "1,1"}, {"--rules", "0"}, {"--rules", "10001"}, {"--trials", "0"}, {"--packets", "0"}, {"--retries", "-1"}} {
		wrongCall(t, append([]string{"pipeline"}, args...))
	}
}
