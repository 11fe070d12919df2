package trace

import (
	"demarc/gateway/flow"
	"demarc/gateway/verdict"
)

// What a captured frame shows.
const (
	Before = iota // as it was received
	After         // as it leaves
)

// Frame is what a tap knows of a captured frame beside its bytes.
type Frame struct {
	Ns      uint64 // CLOCK_BOOTTIME
	Len     uint16 // of the frame
	N       uint16 // bytes kept
	Port    uint16
	Tenant  flow.TenantID
	Side    uint8
	Verdict verdict.Verdict
	Reason  verdict.Reason
}

// Tap is somebody who looks at the live packets of one worker that a filter wants: at their journeys, or at their bytes. What the reader does not
// take in time is lost and counted; the packets never wait.
type Tap struct {
	Filter        Filter
	Every         uint32 // of the packets that match, one in so many; 0 and 1 = each
	Limit         uint64 // so many in all; 0 = no end
	Snap          int    // capture: bytes kept of a frame; 0 = journeys
	Before, After bool   // capture: which sides

	Matched uint64 // packets that the filter wanted
	Taken   uint64 // of them, those that were to be kept: after Every and Limit
	Lost    uint64 // of them, those that found the ring full

	journeys []Journey
	frames   []Frame
	mem      []byte
	head     uint64
	tail     uint64
}

const (
	traceRing   = 4096
	captureMem  = 4 << 20
	minCaptured = 128
	maxCaptured = 8192
)

// NewTracer makes a tap for journeys.
func NewTracer(f Filter, every uint32, limit uint64) *Tap {
	return &Tap{Filter: f, Every: every, Limit: limit, journeys: make([]Journey, traceRing)}
}

// NewCapture makes a tap for frames, of which it keeps the first snap bytes.
func NewCapture(f Filter, limit uint64, snap int, before, after bool) *Tap {
	n := min(max(captureMem/max(snap, 1), minCaptured), maxCaptured)
	return &Tap{Filter: f, Limit: limit, Snap: snap, Before: before, After: after, frames: make([]Frame, n), mem: make([]byte, n*snap)}
}

// Want counts a packet that matches and says whether it is to be kept, and whether there is room for it.
func (t *Tap) Want(sides int) bool {
	t.Matched++
	if t.Limit > 0 && t.Taken >= t.Limit || t.Every > 1 && (t.Matched-1)%uint64(t.Every) != 0 {
		return false
	}
	t.Taken++
	size := uint64(len(t.journeys) + len(t.frames))
	if t.head-t.tail+uint64(sides) > size {
		t.Lost++
		return false
	}
	return true
}

// Note keeps a journey. After Want alone.
func (t *Tap) Note(j *Journey) {
	t.journeys[t.head%uint64(len(t.journeys))] = *j
	t.head++
}

// Keep keeps a frame. After Want alone.
func (t *Tap) Keep(f Frame, data []byte) {
	i := int(t.head % uint64(len(t.frames)))
	f.N = uint16(copy(t.mem[i*t.Snap:(i+1)*t.Snap], data))
	t.frames[i] = f
	t.head++
}

// Journeys moves at most len(out) journeys out.
func (t *Tap) Journeys(out []Journey) (n int) {
	for ; n < len(out) && t.tail < t.head; n++ {
		out[n] = t.journeys[t.tail%uint64(len(t.journeys))]
		t.tail++
	}
	return n
}

// Frames moves at most len(out) frames out, and appends their bytes to data.
func (t *Tap) Frames(out []Frame, data []byte) (n int, bytes []byte) {
	for ; n < len(out) && t.tail < t.head; n++ {
		i := int(t.tail % uint64(len(t.frames)))
		out[n] = t.frames[i]
		data = append(data, t.mem[i*t.Snap:i*t.Snap+int(out[n].N)]...)
		t.tail++
	}
	return n, data
}
