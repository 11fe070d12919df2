package conntrack

import (
	"testing"

	"demarc/gateway/flow"
)

// With one writer there is no difference between Track and TrackShared, whatever comes in whatever state.
func TestTrackSharedIsTrack(t *testing.T) {
	rng := seeded(t)
	edges := []uint32{0, 1, 2, 0xffff, 0x10000, 1 << 30, 1<<32 - 1, 1<<32 - 2}
	word := func() uint32 {
		if rng.IntN(3) == 0 {
			return rng.Uint32()
		}
		return edges[rng.IntN(len(edges))]
	}
	moved, plain := 0, 0
	for range 300_000 {
		s := Session{Proto: flow.TCP, State: TCPEstablished, NextHop: [2]uint16{uint16(rng.Uint32()), uint16(rng.Uint32())}}
		if rng.IntN(4) == 0 {
			s.State = uint8(rng.IntN(int(numTCPStates) + 1))
		}
		s.Scale = [2]uint8{uint8(rng.Uint32()), uint8(rng.Uint32())}
		base := [2]uint32{word(), word()}
		for d := range 2 {
			s.TCPEnd[d] = base[d]
			s.TCPLimit[1-d] = base[d] + word()%(1<<21)
		}
		dir := rng.IntN(2)
		g := Segment{Flags: tcpACK, Seq: base[dir] + uint32(rng.IntN(5)) - 2, Ack: base[1-dir] + uint32(rng.IntN(5)) - 2, Window: uint16(word()), Payload: uint16(rng.IntN(3) * 700), Scale: -1}
		switch rng.IntN(8) {
		case 0:
			g.Flags = uint8(rng.Uint32())
		case 1:
			g.Seq = s.TCPLimit[1-dir] + uint32(rng.IntN(4)) - 1
		case 2:
			g.Ack = base[1-dir] - reach(&s, dir) + uint32(rng.IntN(3)) - 1
		case 3:
			g.Ack = base[1-dir] + reach(&s, dir) + uint32(rng.IntN(3)) - 1
		}
		a, b := s, s
		ra, rb := Track(&a, dir, &g), TrackShared(&b, dir, &g)
		if ra != rb || a != b {
			t.Fatalf("segment %+v of direction %d in\n%+v\nTrack       %s %+v\nTrackShared %s %+v", g, dir, s, ra, a, rb, b)
		}
		if s.State == TCPEstablished && g.class() == cACK && s.Scale[1]&learning == 0 {
			plain++
			if a != s {
				moved++
			}
		}
	}
	if moved < 20_000 || plain-moved < 5_000 {
		t.Errorf("too little was met: %d plain segments, %d moved something", plain, moved)
	}
}
