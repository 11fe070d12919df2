package bench

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"
)

// modelled searches on a device that is a function from rate to loss.
func modelled(t *testing.T, s rateSearch, loss func(rate float64) float64) foundRate {
	t.Helper()
	s.try = func(_ context.Context, rate float64, _ bool) (bool, error) { return loss(rate) <= lossLimit, nil }
	f, err := s.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// overload is a device that carries so much and drops the rest.
func overload(capacity float64) func(float64) float64 {
	return func(rate float64) float64 { return max(0, 1-capacity/rate) }
}

func TestSearchFindsWhatADeviceCarries(t *testing.T) {
	const most, resolution = 2e6, 0.02
	for _, c := range []struct {
		name        string
		loss        func(float64) float64
		least, most float64
	}{
		{"carries a part", overload(1.3e6), 1.3e6 - most*resolution, 1.3e6 / (1 - lossLimit)},
		{"carries hardly anything", overload(50e3), 50e3 - most*resolution, 50e3 / (1 - lossLimit)},
		{"carries all", func(float64) float64 { return 0 }, most, most},
		{"loses at any rate", func(float64) float64 { return 0.01 }, 0, 0},
		{"loses within the limit", func(float64) float64 { return lossLimit }, most, most},
		{"collapses", func(r float64) float64 {
			if r > 8e5 {
				return 0.9
			}
			return 0
		}, 8e5 - most*resolution, 8e5},
	} {
		f := modelled(t, rateSearch{Most: most, Resolution: resolution}, c.loss)
		if f.Rate < c.least || f.Rate > c.most {
			t.Errorf("%s: found %.0f, want %.0f to %.0f", c.name, f.Rate, c.least, c.most)
		}
		if f.Rate < most && f.Failed == 0 || f.Rate > 0 && f.Failed > 0 && f.Failed-f.Rate > 2*most*resolution {
			t.Errorf("%s: found %.0f, but %.0f is the lowest that failed", c.name, f.Rate, f.Failed)
		}
		if f.Trials > 30 {
			t.Errorf("%s: %d trials", c.name, f.Trials)
		}
	}
}

// A search that knows what was found before finds the same with fewer trials, also where that was wrong.
func TestSearchBeginsNearby(t *testing.T) {
	const most, resolution, capacity = 2e6, 0.02, 1.3e6
	plain := modelled(t, rateSearch{Most: most, Resolution: resolution}, overload(capacity))
	for _, c := range []struct {
		near   float64
		trials int
	}{{1.29e6, plain.Trials - 3}, {1.31e6, plain.Trials - 3}, {1e4, 30}, {1.99e6, 30}, {most, plain.Trials}, {3e6, plain.Trials}} {
		f := modelled(t, rateSearch{Most: most, Resolution: resolution, Near: c.near}, overload(capacity))
		if f.Rate < capacity-most*resolution || f.Rate > capacity/(1-lossLimit) || f.Failed == 0 || f.Failed-f.Rate > 2*most*resolution {
			t.Errorf("near %.0f: found %.0f, and %.0f fails", c.near, f.Rate, f.Failed)
		}
		if f.Trials > c.trials {
			t.Errorf("near %.0f: %d trials, without it %d", c.near, f.Trials, plain.Trials)
		}
	}
	for name, loss := range map[string]func(float64) float64{"carries all": func(float64) float64 { return 0 }, "carries nothing": func(float64) float64 { return 1 }} {
		want := map[string]float64{"carries all": most}[name]
		if f := modelled(t, rateSearch{Most: most, Resolution: resolution, Near: 1e6}, loss); f.Rate != want || f.Trials > 30 {
			t.Errorf("%s: found %.0f in %d trials, want %.0f", name, f.Rate, f.Trials, want)
		}
	}
}

// A machine that pauses now and then spoils single trials and not the search: of a hundred searches nine in ten are within three steps, and none is above.
func TestSearchOnANoisyMachine(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	const most, resolution, capacity = 2e6, 0.02, 1.3e6
	near := 0
	for range 100 {
		f := modelled(t, rateSearch{Most: most, Resolution: resolution}, func(rate float64) float64 {
			loss := overload(capacity)(rate)
			if rnd.Float64() < 0.1 {
				loss += 0.02
			}
			return loss
		})
		if f.Rate > capacity/(1-lossLimit) {
			t.Fatalf("found %.0f, which it cannot carry", f.Rate)
		}
		if f.Rate >= capacity-3*most*resolution {
			near++
		}
	}
	if near < 80 {
		t.Errorf("%d of 100 searches are near what it carries", near)
	}
}

// What passes a short trial only is not reported: the longer one decides.
func TestSearchConfirms(t *testing.T) {
	var confirmed []float64
	s := rateSearch{Most: 1e6, Resolution: 0.02, try: func(_ context.Context, rate float64, confirm bool) (bool, error) {
		if confirm {
			confirmed = append(confirmed, rate)
			return rate <= 4e5, nil
		}
		return rate <= 5e5, nil
	}}
	f, err := s.run(t.Context())
	if err != nil || f.Rate > 4e5 || f.Rate < 3e5 {
		t.Errorf("found %.0f after confirming trials at %.0f, want at most 400000; %v", f.Rate, confirmed, err)
	}
	failed := errors.New("no frame arrived")
	s.try = func(context.Context, float64, bool) (bool, error) { return false, failed }
	if _, err := s.run(t.Context()); !errors.Is(err, failed) {
		t.Errorf("a trial that could not be made: %v", err)
	}
}
