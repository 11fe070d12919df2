package police

import (
	"sync/atomic"

	"demarc/gateway/undo"
	"demarc/gateway/verdict"
)

// Dir is the compiled limit of one tenant and direction. It is immutable; the shared words live outside.
type Dir struct {
	Bits, Packets Rate   // what the tenant may use
	Voice         Rate   // what of it voice may use before the rest; above it, voice is one of the rest
	QueueNs       uint64 // how long a packet may wait, nanoseconds
	QueueBytes    int    // the same in bytes of the line: rate x queue. 0 = only QueueNs bounds
	Shape         bool   // false: police, nothing waits
}

// Words are the shared state of a Dir. Queued is how many shapers have packets of it waiting: whoever lets packets pass that go through no shaper asks it first, or
// they would overtake. It is raised before the first packet waits, and lowered when the last one was handed on; a twin counts nothing.
type Words struct {
	Bits, Packets, Voice Word
	Queued               atomic.Int64
}

// Item is a packet that waits, by its descriptor.
type Item struct {
	Frame uint64 // address in the UMEM of Area
	Area  uint8
	Voice bool
	Ruled bool   // voice because a rule says so, and not by a mark that its sender has set
	Above bool   // set by Offer: voice that its own rate had no room for, which is one of the rest
	Port  uint16 // egress port
	Off   uint16 // of the frame in its chunk
	Len   uint16 // bytes of the frame
	IPLen uint16 // IP bytes
	Tag   uint32 // the packet's group; 0 = none
}

const (
	// quantum is what a queue may send per round while others wait, in IP bytes: about one full packet.
	quantum = 1536
	// maxRelease bounds one call of Release, so that a worker comes back to its receive rings.
	maxRelease = 256
	// maxSleep bounds how long a queue is left alone, ns: a policy that raises the rate holds after this at most.
	maxSleep = 16 << 20
	// minShare is how many items a queue may always hold while there are free ones.
	minShare = 8

	none = ^uint32(0)
)

// take takes n bytes and one packet, both or neither.
func (d *Dir) take(w *Words, now uint64, n int, voice bool) verdict.Reason {
	var sb, sp int64
	if voice {
		sb, sp = d.Bits.slack, d.Packets.slack
	}
	if d.Packets.mul != 0 && !d.Packets.take(&w.Packets, now, 1, sp) {
		return verdict.TenantRatePackets
	}
	if d.Bits.mul != 0 && !d.Bits.take(&w.Bits, now, n, sb) {
		d.Packets.Refund(&w.Packets, 1)
		return verdict.TenantRateBits
	}
	return verdict.Pass
}

func (d *Dir) refund(w *Words, n int) {
	d.Bits.Refund(&w.Bits, n)
	d.Packets.Refund(&w.Packets, 1)
}

func (d *Dir) wait(w *Words, now uint64, voice bool) uint64 {
	var sb, sp int64
	if voice {
		sb, sp = d.Bits.slack, d.Packets.slack
	}
	return max(d.Bits.wait(&w.Bits, now, sb), d.Packets.wait(&w.Packets, now, sp))
}

// node is an item in a FIFO or in the free list: 32 bytes.
type node struct {
	it   Item
	next uint32
	at   uint32 // when it was queued, ns >> 10
}

type fifo struct {
	head, tail uint32 // none = empty
	items      uint32
	bytes      uint32 // IP bytes
}

// Where a queue with items is kept.
const (
	idle    = iota // no items
	ready          // in the round
	waiting        // in the heap, until wake
)

type queue struct {
	fifo    [2]fifo // voice, the rest
	deficit int32   // bytes that it may still send in this round
	pos     uint32  // in the heap, while waiting
	next    uint32  // in the round, while ready
	state   uint8
	told    *Words // where Queued counts this queue, nil while it is idle
}

// wakes notes that a packet is about to wait in an idle queue.
func (q *queue) wakes(w *Words) {
	w.Queued.Add(1)
	q.told = w
}

// rests makes an empty queue idle, which is out of round and heap.
func (q *queue) rests() {
	q.state, q.deficit = idle, 0
	if q.told != nil {
		q.told.Queued.Add(-1)
		q.told = nil
	}
}

type timer struct {
	wake uint64 // ns
	q    uint32
}

// Shaper holds the packets of one worker that wait for their rate. All of its memory is taken at New. A queue costs
// something only while it holds packets: then it is either in the round (it may send, or must be looked at) or in a
// heap by the time at which its rate lets it go on. It belongs to one goroutine.
type Shaper struct {
	nodes       []node
	free        uint32
	nfree       uint32
	queues      []queue
	heap        []timer
	first, last uint32 // the round: a list of ready queues
	held        int
	log         *undo.Log // of a twin
}

// NewShaper makes a shaper for at most maxItems packets in queues 0..maxQueues-1 (tenant*2+direction).
func NewShaper(maxItems, maxQueues int) *Shaper {
	s := &Shaper{
		nodes:  make([]node, max(maxItems, 0)),
		queues: make([]queue, max(maxQueues, 0)),
		heap:   make([]timer, 0, max(maxQueues, 0)),
		free:   none, first: none, last: none,
		nfree: uint32(max(maxItems, 0)),
	}
	for i := range s.nodes {
		s.nodes[i].next = s.free
		s.free = uint32(i)
	}
	for i := range s.queues {
		q := &s.queues[i]
		q.fifo[0] = fifo{head: none, tail: none}
		q.fifo[1] = fifo{head: none, tail: none}
	}
	return s
}

// Twin is a shaper in the same memory that remembers in l what it writes. Until l is undone, only the twin may be used, and of it only Offer and HeldIn.
func (s *Shaper) Twin(l *undo.Log) *Shaper {
	c := *s
	c.log = l
	return &c
}

// keep remembers what holding one more item in queue q writes. Nothing else of a twin writes to what it shares.
func (s *Shaper) keep(q, tail uint32) {
	undo.Keep(s.log, &s.queues[q])
	undo.Keep(s.log, &s.nodes[s.free])
	if tail != none {
		undo.Keep(s.log, &s.nodes[tail])
	}
	heap, was := s.heap, append([]timer(nil), s.heap...) // as many as there are tenants with packets that wait
	s.log.Then(func() {
		copy(heap, was)
		for i := range was {
			s.queues[was[i].q].pos = uint32(i)
		}
	})
}

// Passes is what Offer begins with for a packet of n bytes that is not voice: true, the rate is taken and nothing of the queue waits. False: nothing has been taken, and Offer is to be asked.
func (s *Shaper) Passes(q int, d *Dir, w *Words, n int, nowNs uint64) bool {
	switch {
	case uint(q) >= uint(len(s.queues)) || s.queues[q].state != idle:
		return false
	case d.Packets.mul != 0:
		return d.take(w, nowNs, n, false) == verdict.Pass
	}
	return d.Bits.mul == 0 || d.Bits.take(&w.Bits, nowNs, n, 0)
}

// takeVoice asks the rate of voice. Anybody can mark packets as voice: what does so leaves half of the burst to what rules call voice, which so has all of that rate whenever it comes.
func (d *Dir) takeVoice(w *Words, nowNs uint64, n int, ruled bool) bool {
	if ruled {
		return d.Voice.Take(&w.Voice, nowNs, n)
	}
	return d.Voice.TakeLow(&w.Voice, nowNs, n)
}

// Offer decides what becomes of it now: Send (the rate is taken), Queue (the shaper owns the frame now) or Drop with
// the limit that did it. Order within a class is kept: while packets of the class wait, new ones wait behind them;
// the rest also waits behind voice. Voice is voice while its own rate lets it; above, it is one of the rest, and it.Above says so.
//
// When policing is switched on while packets still wait here, new packets may overtake those, once.
func (s *Shaper) Offer(q int, d *Dir, w *Words, it *Item, nowNs uint64) (verdict.Verdict, verdict.Reason) {
	if uint(q) >= uint(len(s.queues)) {
		return verdict.Drop, verdict.InternalError
	}
	n := int(it.IPLen)
	qu := &s.queues[q]
	voice := it.Voice && d.takeVoice(w, nowNs, n, it.Ruled)
	it.Above = it.Voice && !voice
	if qu.state == idle || voice && qu.fifo[0].items == 0 || !d.Shape {
		r := d.take(w, nowNs, n, voice)
		if r == verdict.Pass {
			return verdict.Send, verdict.Pass
		}
		if !d.Shape {
			if voice {
				d.Voice.Refund(&w.Voice, n)
			}
			return verdict.Drop, r
		}
	}
	return s.hold(uint32(q), d, w, it, nowNs, voice)
}

// hold queues it, or says which bound forbids that.
func (s *Shaper) hold(q uint32, d *Dir, w *Words, it *Item, now uint64, voice bool) (verdict.Verdict, verdict.Reason) {
	qu, class, n := &s.queues[q], 1, int(it.IPLen)
	if voice {
		class = 0
	}
	f := &qu.fifo[class]
	r := verdict.Pass
	switch {
	case s.full(f, d, n, now):
		r = verdict.TenantQueueFull
		if it.Above {
			r = verdict.TenantVoiceRate
		}
	case s.nfree == 0 || f.items >= minShare && f.items >= s.nfree && (!voice || f.items/4 >= s.nfree):
		// A queue of the rest may hold as much as is still free, so one of them takes at most half of all items, two
		// two thirds, and one of voice four times that: there is always room for another tenant and for voice.
		r = verdict.ShaperFull
	}
	if r != verdict.Pass {
		if voice {
			d.Voice.Refund(&w.Voice, n)
		}
		return verdict.Drop, r
	}
	if s.log != nil {
		s.keep(q, f.tail)
	} else if qu.state == idle {
		qu.wakes(w)
	}
	i := s.free
	nd := &s.nodes[i]
	s.free = nd.next
	s.nfree--
	nd.it, nd.next, nd.at = *it, none, uint32(now>>10)
	if f.tail == none {
		f.head = i
	} else {
		s.nodes[f.tail].next = i
	}
	f.tail = i
	f.items++
	f.bytes += uint32(n)
	s.held++
	switch wake := s.wake(d, w, now, voice); {
	case qu.state == idle:
		s.sleep(q, wake)
	case qu.state == waiting && wake < s.heap[qu.pos].wake:
		s.heap[qu.pos].wake = wake
		s.up(qu.pos)
	}
	return verdict.Queue, verdict.Pass
}

// full reports whether the time that d allows is used up for f. One packet may always wait, however slow the rate.
func (s *Shaper) full(f *fifo, d *Dir, n int, now uint64) bool {
	if d.QueueNs == 0 && d.QueueBytes <= 0 {
		return true
	}
	if f.items == 0 {
		return false
	}
	if d.over(int(f.bytes)+n, int(f.items)+1) {
		return true
	}
	if d.QueueNs == 0 {
		return false
	}
	// Bytes mean time only while this worker has the rate to itself. Where another shares it, what counts is how long
	// the oldest has waited; with a quarter of slack, else the last packet of a queue that is just full would tip it.
	age := uint64(uint32(now>>10) - s.nodes[f.head].at)
	return age > (d.QueueNs+d.QueueNs/4)>>10
}

// over reports whether so many IP bytes and packets are more than d lets wait.
func (d *Dir) over(bytes, items int) bool {
	bytes += items * int(d.Bits.beside)
	if d.QueueBytes > 0 && bytes > d.QueueBytes {
		return true
	}
	if d.QueueNs == 0 {
		return false
	}
	limit := min(d.QueueNs, uint64(maxBurst)) * UnitsPerNs
	return d.QueueBytes <= 0 && d.Bits.mul != 0 && d.Bits.floor(uint64(bytes)) > limit || d.Packets.mul != 0 && d.Packets.floor(uint64(items)) > limit
}

// Trim hands to drop what waits in queue q beyond what d lets wait, the oldest first: behind a rate that was lowered what had come by the one before would leave for seconds, and nothing else be taken meanwhile.
func (s *Shaper) Trim(q int, d *Dir, drop func(*Item)) {
	if uint(q) >= uint(len(s.queues)) || !d.Shape {
		return
	}
	for i := range s.queues[q].fifo {
		for f := &s.queues[q].fifo[i]; f.items > 1 && d.over(int(f.bytes), int(f.items)); {
			it := s.nodes[f.head].it
			s.pop(f)
			drop(&it)
		}
	}
}

func (s *Shaper) wake(d *Dir, w *Words, now uint64, voice bool) uint64 {
	return now + min(d.wait(w, now, voice), maxSleep)
}

// Release hands to emit what may leave now, round robin over the queues that have something, and returns how many.
// look gives a queue's present limits; nil (a tenant that is gone) leaves the queue alone until FlushQueue. emit
// returns false when it cannot take the item (a full ring): the item stays first in its queue, nothing is charged, and
// Release returns; the next call goes on with that queue. One call sends a bounded number.
func (s *Shaper) Release(nowNs uint64, look func(q int) (*Dir, *Words), emit func(*Item) bool) (n int) {
	for len(s.heap) > 0 && s.heap[0].wake <= nowNs {
		q := s.heap[0].q
		s.remove(0)
		s.enter(q)
	}
	for s.first != none && n < maxRelease {
		q := s.first
		qu := &s.queues[q]
		d, w := look(int(q))
		if d == nil || w == nil {
			s.leave()
			s.sleep(q, nowNs+maxSleep)
			continue
		}
		if qu.deficit <= 0 {
			qu.deficit += quantum
		}
		sent, more := s.serve(qu, d, w, nowNs, maxRelease-n, emit)
		n += sent
		switch {
		case qu.fifo[0].items+qu.fifo[1].items == 0:
			s.leave()
			qu.rests()
		case more == refused:
			return n
		case more == tooFast:
			s.leave()
			qu.deficit = 0
			s.sleep(q, s.wake(d, w, nowNs, qu.fifo[0].items > 0))
		case qu.deficit <= 0:
			s.leave()
			s.enter(q)
		}
	}
	return n
}

// Why serve stopped.
const (
	spent   = iota // empty, out of deficit or out of budget
	refused        // by emit
	tooFast        // for the rate
)

// serve sends from one queue while its deficit, its rate, budget and emit allow.
func (s *Shaper) serve(qu *queue, d *Dir, w *Words, now uint64, budget int, emit func(*Item) bool) (n, why int) {
	for n < budget && qu.deficit > 0 {
		f := &qu.fifo[0]
		voice := f.items > 0
		if !voice {
			if f = &qu.fifo[1]; f.items == 0 {
				break
			}
		}
		i := f.head
		nd := &s.nodes[i]
		size := int(nd.it.IPLen)
		if d.take(w, now, size, voice) != verdict.Pass {
			return n, tooFast
		}
		if !emit(&nd.it) {
			d.refund(w, size)
			return n, refused
		}
		qu.deficit -= int32(size)
		s.pop(f)
		n++
	}
	return n, spent
}

// pop frees the first node of f.
func (s *Shaper) pop(f *fifo) {
	i := f.head
	nd := &s.nodes[i]
	f.head = nd.next
	if f.head == none {
		f.tail = none
	}
	f.items--
	f.bytes -= uint32(nd.it.IPLen)
	nd.next, s.free = s.free, i
	s.nfree++
	s.held--
}

// Next is how many nanoseconds from nowNs Release should be called again: 0 = now, ^0 = nothing waits. Rates that
// other workers share may by then have been used up; Release finds out.
func (s *Shaper) Next(nowNs uint64) uint64 {
	if s.first != none {
		return 0
	}
	if len(s.heap) == 0 {
		return ^uint64(0)
	}
	if wake := s.heap[0].wake; wake > nowNs {
		return wake - nowNs
	}
	return 0
}

// Held is how many items wait.
func (s *Shaper) Held() int { return s.held }

// HeldIn is how many items and IP bytes wait in queue q.
func (s *Shaper) HeldIn(q int) (items, bytes int) {
	if uint(q) >= uint(len(s.queues)) {
		return 0, 0
	}
	f := &s.queues[q].fifo
	return int(f[0].items + f[1].items), int(f[0].bytes + f[1].bytes)
}

// Flush hands everything that waits to emit, queue by queue, whatever the rates say; for shutdown.
func (s *Shaper) Flush(emit func(*Item)) {
	for q := range s.queues {
		s.FlushQueue(q, emit)
	}
}

// FlushQueue hands what waits in q to drop, which frees the frames; for a tenant that is gone.
func (s *Shaper) FlushQueue(q int, drop func(*Item)) {
	if uint(q) >= uint(len(s.queues)) {
		return
	}
	qu := &s.queues[q]
	for c := range qu.fifo {
		for f := &qu.fifo[c]; f.items > 0; {
			it := s.nodes[f.head].it
			s.pop(f)
			drop(&it)
		}
	}
	switch qu.state {
	case waiting:
		s.remove(qu.pos)
	case ready:
		s.unlink(uint32(q))
	}
	qu.rests()
}

// enter puts q at the end of the round.
func (s *Shaper) enter(q uint32) {
	qu := &s.queues[q]
	qu.state, qu.next = ready, none
	if s.last == none {
		s.first = q
	} else {
		s.queues[s.last].next = q
	}
	s.last = q
}

// leave takes the first queue out of the round.
func (s *Shaper) leave() {
	s.first = s.queues[s.first].next
	if s.first == none {
		s.last = none
	}
}

// unlink takes q out of the round, wherever it stands. It walks: only FlushQueue needs it.
func (s *Shaper) unlink(q uint32) {
	if s.first == q {
		s.leave()
		return
	}
	for p := s.first; p != none; p = s.queues[p].next {
		if s.queues[p].next == q {
			s.queues[p].next = s.queues[q].next
			if s.last == q {
				s.last = p
			}
			return
		}
	}
}

// sleep puts q into the heap.
func (s *Shaper) sleep(q uint32, wake uint64) {
	s.queues[q].state = waiting
	s.heap = append(s.heap, timer{wake, q}) // capacity for all queues since New
	i := uint32(len(s.heap) - 1)
	s.queues[q].pos = i
	s.up(i)
}

// remove takes entry i out of the heap.
func (s *Shaper) remove(i uint32) {
	last := uint32(len(s.heap) - 1)
	moved := s.heap[last]
	s.heap = s.heap[:last]
	if i == last {
		return
	}
	s.heap[i] = moved
	s.queues[moved.q].pos = i
	s.up(i)
	s.down(s.queues[moved.q].pos)
}

func (s *Shaper) up(i uint32) {
	t := s.heap[i]
	for i > 0 {
		p := (i - 1) / 2
		if s.heap[p].wake <= t.wake {
			break
		}
		s.heap[i] = s.heap[p]
		s.queues[s.heap[i].q].pos = i
		i = p
	}
	s.heap[i] = t
	s.queues[t.q].pos = i
}

func (s *Shaper) down(i uint32) {
	t := s.heap[i]
	n := uint32(len(s.heap))
	for {
		c := 2*i + 1
		if c >= n {
			break
		}
		if c+1 < n && s.heap[c+1].wake < s.heap[c].wake {
			c++
		}
		if t.wake <= s.heap[c].wake {
			break
		}
		s.heap[i] = s.heap[c]
		s.queues[s.heap[i].q].pos = i
		i = c
	}
	s.heap[i] = t
	s.queues[t.q].pos = i
}
