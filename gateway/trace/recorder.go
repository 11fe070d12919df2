package trace

import (
	"demarc/gateway/flow"
	"demarc/gateway/packet"
	"demarc/gateway/verdict"
)

const (
	// DropBytes is how much of a dropped frame is kept.
	DropBytes = 128

	classes  = 64 // by tenant and reason
	atOnce   = 64 // records that a class may have at once
	perTick  = 1  // and per tick of about 1 ms after that
	dropRing = 4096
)

// Drop is one dropped packet.
type Drop struct {
	Ns      uint64 // CLOCK_BOOTTIME
	In, Out flow.Key
	Skipped uint32 // packets of the same class that were dropped since the last one that was recorded, and are not
	Tenant  flow.TenantID
	Port    uint16 // ingress; NoPort where none is known
	VLAN    uint16
	Len     uint16 // of the frame
	N       uint16 // bytes kept
	Reason  verdict.Reason
	After   bool // the bytes are as the frame would have left; else as it was received
	Looped  bool // it came round by one of our own addresses
	Data    [DropBytes]byte
}

// NoPort stands where a packet came in by no port.
const NoPort = 0xffff

// Recorder keeps the last drops of a worker. It is always on, so its cost is bounded: a class of drops, by tenant and reason, may leave 64
// records at once and about a thousand a second after that; what is above only counts. So a flood neither costs a copy for each of its packets
// nor pushes out at once what else was dropped.
type Recorder struct {
	ring  []Drop
	n     uint64 // ever written
	class [classes]class
}

type class struct {
	left    uint32
	tick    uint32
	skipped uint32
}

// NewRecorder takes its memory.
func NewRecorder() *Recorder {
	r := &Recorder{ring: make([]Drop, dropRing)}
	for i := range r.class {
		r.class[i].left = atOnce
	}
	return r
}

// Take is the place for one more drop, whose Skipped is filled in and whose keys are zero, or nil where its class has used up its share. tick
// is of about a millisecond. A nil Recorder keeps nothing.
func (r *Recorder) Take(t flow.TenantID, why verdict.Reason, tick uint32) *Drop {
	if r == nil {
		return nil
	}
	c := &r.class[(uint32(t)*31+uint32(why))%classes]
	if passed := tick - c.tick; passed > 0 {
		c.left, c.tick = min(c.left+min(passed, atOnce)*perTick, atOnce), tick
	}
	if c.left == 0 {
		c.skipped++
		return nil
	}
	c.left--
	d := &r.ring[r.n%dropRing]
	r.n++
	d.In, d.Out, d.Skipped = flow.Key{}, flow.Key{}, c.skipped
	c.skipped = 0
	return d
}

// Keep copies the first bytes of a frame.
func (d *Drop) Keep(frame []byte) {
	d.Len = uint16(min(len(frame), 0xffff))
	d.N = uint16(copy(d.Data[:], frame))
}

// Frame records a frame of which nothing is known but its bytes. The tick is taken from ns.
func (r *Recorder) Frame(ns uint64, t flow.TenantID, why verdict.Reason, port uint16, frame []byte, after bool) {
	d := r.Take(t, why, uint32(ns>>20))
	if d == nil {
		return
	}
	p := packet.Packet{Buf: frame, Len: len(frame)}
	_ = packet.Parse(&p) // as much as there is to find
	d.Ns, d.Tenant, d.Port, d.VLAN, d.Reason, d.After, d.Looped = ns, t, port, p.VLAN, why, after, false
	if d.In = p.Key; after {
		d.Out = p.Key
	}
	d.Keep(frame)
}

// Written is how many drops were ever recorded.
func (r *Recorder) Written() uint64 { return r.n }

// From copies drops into out, beginning with number from or the oldest that is still there, and returns with which number to go on, how many it
// copied, and how many were overwritten before they could be read.
func (r *Recorder) From(from uint64, out []Drop) (next uint64, n int, lost uint64) {
	if oldest := r.n - min(r.n, dropRing); from < oldest {
		lost = oldest - from
		from = oldest
	}
	for n < len(out) && from < r.n {
		out[n] = r.ring[from%dropRing]
		n++
		from++
	}
	return from, n, lost
}
