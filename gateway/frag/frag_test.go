package frag

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"demarc/gateway/flow"
	"demarc/gateway/verdict"
)

// model is what a table should know, by maps, as long as there is room.
type model struct {
	state State
	spans [][2]uint16
	end   uint16
	held  [][]byte
	born  uint32 // or when it was settled, or its latest piece came
	why   verdict.Reason
}

func (m *model) covered() (n uint16) {
	for _, s := range m.spans {
		n += s[1] - s[0]
	}
	return n
}

func (m *model) complete() bool { return m.end != 0 && m.covered() == m.end }

// fits says what a piece is to those before it, byte by byte.
func (m *model) fits(from, to uint16, more bool) Outcome {
	for _, s := range m.spans {
		if s == [2]uint16{from, to} {
			if more == (m.end == to) {
				return Overlap
			}
			return Again
		}
	}
	for _, s := range m.spans {
		for at := s[0]; at < s[1]; at++ {
			if at >= from && at < to {
				return Overlap
			}
		}
		if !more && s[1] > to {
			return Overlap
		}
	}
	if m.end != 0 && (to > m.end || !more) {
		return Overlap
	}
	return Fresh
}

func TestAgainstReference(t *testing.T) {
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 1))
		lost := 0
		tab := New(Config{Datagrams: 4096, Size: 64, Tenants: 4, Seed: seed, Lost: func(_ flow.TenantID, _ verdict.Reason, n int) { lost += n }})
		ref := map[Key]*model{}
		tick := uint32(1<<32 - 5000) // it wraps
		wantLost, kept, back := 0, 0, 0
		for step := range 30000 {
			if rng.IntN(4) == 0 {
				tick += uint32(rng.IntN(8))
			}
			k := Key{Src: flow.Addr{byte(rng.IntN(3))}, ID: uint32(rng.IntN(40)), Zone: flow.TenantID(rng.IntN(3)), Family: 4, Proto: 17}
			from := uint16(8 * rng.IntN(12))
			to, more := from+uint16(8*(1+rng.IntN(3))), rng.IntN(4) > 0
			if rng.IntN(3) > 0 { // mostly pieces that fit each other
				n := uint16(rng.IntN(4))
				from, to, more = n*24, n*24+24, n < 3
			}
			m := ref[k]
			want := Fresh
			if m != nil && m.state != Dead {
				want = m.fits(from, to, more)
				if want == Overlap && m.complete() && m.state != Waiting {
					m, want = nil, Fresh
				}
			}
			if m == nil {
				m = &model{born: tick}
				ref[k] = m
			}
			d, got := tab.Note(&k, Owner{k.Zone, rng.IntN(1) == 1}, from, to, more, tick)
			if got != want {
				t.Fatalf("seed %d step %d: %d..%d more %v of %v: %d, want %d", seed, step, from, to, more, m.spans, got, want)
			}
			if m.state == Dead {
				if d.State != Dead || d.Reason != m.why {
					t.Fatalf("step %d: state %d, want dead", step, d.State)
				}
				continue
			}
			switch {
			case got == Overlap:
				wantLost += len(m.held)
				*m = model{state: Dead, born: tick, why: verdict.FragmentOverlap}
			case got == Again:
			default:
				m.spans = append(m.spans, [2]uint16{from, to})
				if !more {
					m.end = to
				}
				if m.state == Known {
					m.born = tick
				}
				if m.state == Waiting {
					if from == 0 {
						if rng.IntN(8) == 0 {
							wantLost += len(m.held)
							tab.Kill(d, verdict.ACLDeny, tick)
							*m = model{state: Dead, born: tick, why: verdict.ACLDeny}
							break
						}
						tab.Resolve(d, tick)
						m.state, m.born = Known, tick
						if tab.Ready() != len(m.held) {
							t.Fatalf("step %d: %d ready, want %d", step, tab.Ready(), len(m.held))
						}
						buf := make([]byte, 64)
						for _, h := range m.held {
							if n, meta, ok := tab.Fetch(buf); !ok || !bytes.Equal(buf[:n], h) || meta.Port != uint16(len(h)) {
								t.Fatalf("step %d: fetched %x, want %x", step, buf[:n], h)
							}
							back++
						}
						m.held = nil
					} else {
						f := []byte(fmt.Sprintf("%d:%d-%d", step, from, to))
						if !tab.Hold(d, f, Meta{Port: uint16(len(f))}) {
							t.Fatalf("step %d: no room for %d", step, tab.Waiting())
						}
						m.held = append(m.held, f)
						kept++
					}
				}
			}
			if m.state != Dead && (d.State != m.state || d.Complete() != m.complete()) {
				t.Fatalf("step %d: state %d complete %v, want %d %v", step, d.State, d.Complete(), m.state, m.complete())
			}
			if step%64 == 0 {
				tab.Sweep(tick, 1<<20)
				for k, m := range ref {
					after := ticks(Wait)
					if m.state != Waiting {
						after = ticks(Keep)
					}
					if m.state == Known && m.complete() {
						after = ticks(Done)
					}
					if tick-m.born > after {
						wantLost += len(m.held)
						delete(ref, k)
					}
				}
				if err := tab.Check(); err != nil {
					t.Fatalf("seed %d step %d: %v", seed, step, err)
				}
				if lost != wantLost || kept != back+lost+tab.Waiting() {
					t.Fatalf("seed %d step %d: %d lost, want %d; %d kept, %d back, %d wait", seed, step, lost, wantLost, kept, back, tab.Waiting())
				}
			}
		}
		if back < 100 || lost < 100 {
			t.Fatalf("%d went on, %d were lost", back, lost)
		}
		tab.Clear(verdict.Shutdown)
		if err := tab.Check(); err != nil || tab.Waiting() != 0 || tab.Known() != 0 {
			t.Fatalf("%v; %d wait, %d known", err, tab.Waiting(), tab.Known())
		}
	}
}

// However full it gets, the table agrees with itself, every owner finds room, and nobody has more than all.
func TestFullTable(t *testing.T) {
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 2))
		tab := New(Config{Datagrams: 1 + rng.IntN(64), Size: 64, Tenants: 8, Seed: seed, Lost: func(flow.TenantID, verdict.Reason, int) {}})
		tick, refused := uint32(0), 0
		for step := range 40000 {
			k := Key{Src: flow.Addr{byte(rng.IntN(9))}, ID: rng.Uint32(), Family: 4}
			if rng.IntN(2) == 0 {
				k.ID = uint32(rng.IntN(20))
			}
			n := uint16(rng.IntN(5))
			d, got := tab.Note(&k, Owner{flow.TenantID(rng.IntN(8)), rng.IntN(2) == 0}, n*8, n*8+8, true, tick)
			if got == Full || d.State == Dead || got != Fresh {
				continue
			}
			switch {
			case n == 0 && d.State == Waiting && rng.IntN(8) == 0:
				tab.Kill(d, verdict.ACLDeny, tick)
			case n == 0:
				tab.Resolve(d, tick)
			case d.State == Waiting && !tab.Hold(d, make([]byte, 1+rng.IntN(70)), Meta{}):
				refused++ // longer than Size, or the last of its owner's
			}
			for tab.Ready() > 0 && rng.IntN(3) > 0 {
				tab.Fetch(make([]byte, 60))
			}
			if rng.IntN(200) == 0 {
				tick += uint32(rng.IntN(4000))
				tab.Sweep(tick, rng.IntN(100))
			}
			if rng.IntN(2000) == 0 {
				tab.Flush(flow.TenantID(rng.IntN(8)), verdict.SessionCut)
			}
			if step%16 == 0 {
				if err := tab.Check(); err != nil {
					t.Fatalf("seed %d step %d: %v", seed, step, err)
				}
			}
		}
		if refused > 20000 {
			t.Fatalf("%d refused", refused)
		}
	}
}
