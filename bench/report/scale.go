package report

import (
	"math"
	"strconv"
)

// scale puts values on an axis of 0 to 100 per cent, with some room at both ends.
type scale struct {
	lo, hi float64
	log    bool
	seen   bool
}

// see widens the scale to a value.
func (s *scale) see(v float64) {
	if !s.seen {
		s.lo, s.hi, s.seen = v, v, true
	}
	s.lo, s.hi = min(s.lo, v), max(s.hi, v)
}

// settle chooses between an axis from 0 and, where values are far apart and all above 0, one by powers.
func (s *scale) settle() {
	switch {
	case s.lo > 0 && s.hi > 30*s.lo:
		s.log = true
	case s.lo > 0:
		s.lo = 0
	}
	if s.hi <= s.lo {
		s.hi = s.lo + 1
	}
}

const room = 2.0 // per cent at each end

func (s *scale) at(v float64) float64 {
	part := (v - s.lo) / (s.hi - s.lo)
	if s.log {
		part = math.Log(v/s.lo) / math.Log(s.hi/s.lo)
	}
	return room + part*(100-2*room)
}

// ticksAt are round values of the axis, four to eight of them.
func (s *scale) ticksAt() (list []float64) {
	if s.log {
		steps := []float64{1, 2, 5}
		if s.hi > 1000*s.lo {
			steps = steps[:1]
		}
		for p := math.Pow(10, math.Floor(math.Log10(s.lo))); p <= s.hi; p *= 10 {
			for _, k := range steps {
				if v := k * p; v >= s.lo*0.999 && v <= s.hi*1.001 {
					list = append(list, v)
				}
			}
		}
		return list
	}
	step := math.Pow(10, math.Floor(math.Log10((s.hi-s.lo)/4)))
	for _, k := range []float64{5, 2} {
		if (s.hi-s.lo)/(step*k) >= 4 {
			step *= k
			break
		}
	}
	for i := math.Ceil(s.lo/step - 1e-9); i*step <= s.hi*(1+1e-9); i++ {
		list = append(list, i*step+0) // + 0: no -0
	}
	return list
}

func (s *scale) ticks() (list []tick) {
	for _, v := range s.ticksAt() {
		list = append(list, tick{percent(s.at(v)), Number(v)})
	}
	return list
}

func percent(v float64) string { return strconv.FormatFloat(v, 'f', 2, 64) }
