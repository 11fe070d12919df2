package copyload

import "testing"

// What is measured is what came over: both tables are counted in each round.
func TestPair(t *testing.T) {
	p, err := Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var rate float64
	for i := range 9 { // the ports of a round are free again in time
		if rate, err = p.Round(); err != nil || rate <= 0 {
			t.Fatalf("round %d: %.0f events/s: %v", i+1, rate, err)
		}
	}
	lags, got, err := p.Lags(20_000)
	if err != nil || len(lags) != Flows/20 || got <= 0 || got > 21_000 {
		t.Errorf("%d looks, %.0f events/s: %v", len(lags), got, err)
	}
	t.Logf("%.0f events/s at best, %.0f at a pace", rate, got)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, err := p.Round(); err == nil {
		t.Error("a pair that is closed measures something")
	}
}
