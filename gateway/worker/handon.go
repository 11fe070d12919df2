package worker

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

// Behind a planned move hosts and switches send to this node for as long as they have not heard from the next owner: from the deadline here until its first words, some
// milliseconds of packets. They are kept, and handed on over the same link to the group's virtual MAC as soon as a frame from there has arrived on the same port and VLAN: the switch has
// then learned where the MAC is now. Nothing is judged or changed but the source MAC, which becomes the port's own: no frame of the group leaves here, and no switch learns anything else
// by it. (RFC 5568 does the same between access routers of Mobile IPv6: buffer, and forward to the new one.)
//
// What nobody has asked for in time is dropped as not_owner, as all of it would be without this.

// HandOn is what the workers of a node share of groups that have just been handed over: until when anything is kept, and where their next owners have been heard.
type HandOn struct {
	last  atomic.Uint64 // ns
	begun atomic.Uint64 // how often a deadline was closed with what comes behind it to be kept
	mu    sync.Mutex    // of who writes heard
	heard atomic.Pointer[map[place]struct{}]
}

// place is where a group's virtual MAC may be heard.
type place struct {
	port, vid     uint16
	group, family uint8 // family 1 = IPv4, 2 = IPv6, as in the MAC: each is learned by itself
}

// Begin is called before the deadline of a group that is handed over is closed: what comes for it is kept until then (ns, the clock of the deadlines). What was heard of it before does not count. Any goroutine.
func (h *HandOn) Begin(group uint8, until uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if old := h.heard.Load(); old != nil {
		next := maps.Clone(*old)
		maps.DeleteFunc(next, func(p place, _ struct{}) bool { return p.group == group })
		h.heard.Store(&next)
	}
	h.last.Store(max(h.last.Load(), until))
}

// Closed is called when it has been closed: what has come by then is carried still, and no more. Any goroutine.
func (h *HandOn) Closed() { h.begun.Add(1) }

// Until is until when anything may be kept (ns); 0 = nothing ever was. Any goroutine.
func (h *HandOn) Until() uint64 {
	if h == nil {
		return 0
	}
	return h.last.Load()
}

// hears notes that the next owner was heard, and reports whether that is news.
func (h *HandOn) hears(p place) bool {
	if h.heardAt(p) {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	next := map[place]struct{}{p: {}}
	if old := h.heard.Load(); old != nil {
		maps.Copy(next, *old)
	}
	h.heard.Store(&next)
	return true
}

// heardAt reports whether the next owner was heard. It locks nothing.
func (h *HandOn) heardAt(p place) bool {
	m := h.heard.Load()
	if m == nil {
		return false
	}
	_, ok := (*m)[p]
	return ok
}

// keeping is a worker's part of it.
type keeping struct {
	list  []kept
	area  []int               // of them, by memory area
	heard *map[place]struct{} // HandOn.heard when the list was last looked through
	begun uint64              // HandOn.begun when it was noted how much was in the rings
	due   uint64              // ns: when the list is looked through; 0 = in this turn
	next  uint64              // ns: from when on the next ones may be handed on
}

// kept is one frame that is kept.
type kept struct {
	place
	area   uint8
	addr   uint64
	off, n uint32
}

const (
	// keptShare of a worker's frames may be kept: an eighth.
	keptShare = 8
	// handOnStep is how many are handed on at once, and handOnPace how long the next ones wait: 128,000 a second. All at once would not fit into queues on the way, a veth's of 256 among them, and push out what
	// comes beside them.
	handOnStep = 64
	handOnPace = 500 * time.Microsecond
	// keptLook is how often the list is looked through where nobody was heard, and how long a worker sleeps that keeps something.
	keptLook = 5 * time.Millisecond
)

// virtual reads whose virtual MAC it is (RFC 9568 section 7.3); group 0 = nobody's.
func virtual(mac []byte) (group, family uint8) {
	if mac[0]|mac[1]|mac[3] != 0 || mac[2] != 0x5e || mac[4] != 1 && mac[4] != 2 {
		return 0, 0
	}
	return mac[5], mac[4]
}

// keep takes out of the first k received frames what came for a group that was handed over, and notes where its next owner is heard. It returns how many are left.
func (w *Worker) keep(s *sockState, k int, now uint64) int {
	if n := w.cfg.HandOn.begun.Load(); n != w.keeping.begun { // a group is being handed over: what has come by now is still carried, and no more
		w.keeping.begun = n
		w.noteDue(now)
	}
	left, first := 0, s.S.Received()-uint64(k)
	u := w.cfg.Areas[s.Area]
	mem, chunk := u.Mem(), uint64(u.Chunk())
	for i, d := range w.descs[:k] {
		f, base := mem[d.Addr:d.Addr+uint64(d.Len)], d.Addr&^(chunk-1)
		if w.keepFrame(kept{place: place{port: s.Port}, area: s.Area, addr: base, off: uint32(d.Addr - base), n: d.Len}, now, w.draining && first+uint64(i) >= s.due) {
			s.rxPackets.Add(1)
			s.rxBytes.Add(uint64(d.Len))
			continue
		}
		if len(f) >= 14 {
			if id, family := virtual(f[6:12]); w.cfg.Deadlines.Keeps(id, now) && w.ifaceAt(s.Port, vidOf(f)) != nil && w.cfg.HandOn.hears(place{s.Port, vidOf(f), id, family}) {
				for i, p := range w.peers {
					if i != w.cfg.ID {
						p.call()
					}
				}
			}
		}
		w.descs[left] = d
		left++
	}
	return left
}

// ifaceAt is the interface of a port and VLAN; nil = there is none.
func (w *Worker) ifaceAt(port, vid uint16) *snapshot.Iface {
	v := w.shard.View()
	if v == nil {
		return nil
	}
	if i := v.Iface(port, vid); i != 0 {
		return &v.Ifaces[i]
	}
	return nil
}

func vidOf(f []byte) uint16 {
	if len(f) < 18 || f[12] != 0x81 || f[13] != 0 {
		return 0
	}
	return uint16(f[14]&15)<<8 | uint16(f[15])
}

// keepFrame keeps a frame that came by a port, if it came for a group that was handed over. Behind: also where what had come by then is still carried.
func (w *Worker) keepFrame(k kept, now uint64, behind bool) bool {
	u := w.cfg.Areas[k.area]
	f := u.Mem()[k.addr+uint64(k.off) : k.addr+uint64(k.off)+uint64(k.n)]
	if len(f) < 14 {
		return false
	}
	k.group, k.family = virtual(f[:6])
	if !w.cfg.Deadlines.Keeps(k.group, now) || !behind && w.mayGo(k.group, now) {
		return false
	}
	c := &w.keeping
	if len(c.list) >= u.Frames()/keptShare {
		w.shard.Dropped(0, verdict.NotOwner, k.port, f, false)
		w.free(k.area, k.addr)
		return true
	}
	k.vid = vidOf(f)
	if w.cfg.HandOn.heardAt(k.place) {
		c.due = min(c.due, c.next)
	}
	c.list = append(c.list, k)
	c.area[k.area]++
	return true
}

// handOn hands on what is kept where the next owner has been heard, and drops what has been kept for long enough. It returns how much there was to do.
func (w *Worker) handOn(now uint64) (n int) {
	c := &w.keeping
	if heard := w.cfg.HandOn.heard.Load(); heard != c.heard {
		c.heard, c.due = heard, min(c.due, c.next)
	}
	if now < c.due {
		return 0
	}
	c.due = now + uint64(keptLook)
	rest := c.list[:0]
	for i := range c.list {
		k := &c.list[i]
		f := w.cfg.Areas[k.area].Mem()[k.addr+uint64(k.off) : k.addr+uint64(k.off)+uint64(k.n)]
		iface := w.ifaceAt(k.port, k.vid)
		switch {
		case !w.cfg.Deadlines.Keeps(k.group, now) || iface == nil:
			w.shard.Dropped(0, verdict.NotOwner, k.port, f, false)
			w.free(k.area, k.addr)
		case n < handOnStep && w.cfg.HandOn.heardAt(k.place):
			copy(f[6:12], iface.MAC[:])
			w.send(k.port, 0, k.area, k.addr, int(k.off), int(k.n))
			w.count.handedOn.Add(1)
			n++
		default:
			rest = append(rest, *k)
			continue
		}
		c.area[k.area]--
	}
	c.list = rest
	if n > 0 {
		c.next = now + uint64(handOnPace)
	}
	if n == handOnStep {
		c.due = c.next
	}
	return n
}

// rest is for how long nothing is due of it, but for what it is called for.
func (c *keeping) rest(now uint64) time.Duration {
	if c.due <= now {
		return 0
	}
	return time.Duration(c.due - now)
}

// letGo drops what is kept: the worker ends.
func (w *Worker) letGo() {
	for _, k := range w.keeping.list {
		w.free(k.area, k.addr)
		w.keeping.area[k.area]--
		w.shard.Meter.Drop(0, verdict.Shutdown)
	}
	w.keeping.list = nil
}
