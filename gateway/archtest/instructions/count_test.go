//go:build linux && amd64

package instructions

import (
	"testing"
)

var sink uint64

//go:noinline
func rounds(n int) {
	for range n {
		sink += 3
	}
}

// What is done ten times takes ten times as much, to the instruction; twice the same is the same; and who took it is named.
func TestCount(t *testing.T) {
	work := func(n int) Case {
		return Case{Name: "rounds", Units: n, Ready: func() {}, Do: func() { rounds(n) }}
	}
	r := Count(t, work(1000), work(2000), work(2000), Case{Name: "nothing", Units: 1, Ready: func() { rounds(5) }, Do: func() {}})
	in := func(i int) int { return r[i].Functions["demarc/gateway/archtest/instructions.rounds"] }
	if r[0].Steps < 3000 || r[2].Steps != r[1].Steps || r[1].Steps-r[0].Steps < 3000 {
		t.Errorf("steps: 1,000 rounds %d, 2,000 rounds %d and %d", r[0].Steps, r[1].Steps, r[2].Steps)
	}
	if len(r[3].Functions) > 1 || r[3].Steps > 20 {
		t.Errorf("nothing: %v", r[3].Functions)
	}
	if 100*in(0) < 99*r[0].Steps {
		t.Errorf("%d of %d are in rounds", in(0), r[0].Steps)
	}
	t.Logf("%d %d %d %d, %d %s", r[0].Steps, r[1].Steps, r[2].Steps, r[3].Steps, in(0), r[3].Top(9))
}
