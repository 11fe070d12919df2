package lease

import "sync/atomic"

// Deadline is one group's, as the XDP program has it (struct deadline in steer.c): 32 bytes.
type Deadline struct {
	until atomic.Uint64 // ns of CLOCK_BOOTTIME; 0 = not at all
	epoch atomic.Uint64 // under which; for who looks, nothing goes by it
	keep  atomic.Uint64 // ns of CLOCK_BOOTTIME: see Keep; 0 = not at all
	rest  uint64
}

// Deadlines is the whole table, by the group's id. Entry 0 is nobody's and never written. A nil table serves no group.
type Deadlines [256]Deadline

// Until is when what this node may send for a group ends; 0 = it may not. Any goroutine.
func (d *Deadlines) Until(id uint8) uint64 {
	if d == nil {
		return 0
	}
	return d[id].until.Load()
}

// Epoch is the term under which the deadline was written. Any goroutine.
func (d *Deadlines) Epoch(id uint8) uint64 {
	if d == nil {
		return 0
	}
	return d[id].epoch.Load()
}

// May reports whether a frame of a group may leave at this time. What is of no group (0) always may.
func (d *Deadlines) May(id uint8, now uint64) bool {
	return id == 0 || now < d.Until(id)
}

// Keep has what comes for a group behind its deadline kept until then, to be handed on to who serves it next; 0 = dropped at once, as ever. Nothing leaves as the group's by it. The
// goroutine that writes deadlines calls it, before it ends the deadline.
func (d *Deadlines) Keep(id uint8, until uint64) {
	if id != 0 {
		d[id].keep.Store(until)
	}
}

// Keeps reports whether what comes for a group at this time is to be kept: its deadline is over, and the time for that is not. Any goroutine.
func (d *Deadlines) Keeps(id uint8, now uint64) bool {
	return d != nil && id != 0 && now >= d[id].until.Load() && now < d[id].keep.Load()
}

// End ends a group's deadline at once, whoever writes it besides: unlike Write any goroutine may call it.
func (d *Deadlines) End(id uint8) { d[id].until.Store(0) }

// Write sets a group's deadline; until 0 ends it at once. It is the only function that writes, and one goroutine alone calls it. Whoever wants to know
// that nothing leaves any more waits until each worker has looked since.
func (d *Deadlines) Write(id uint8, epoch, until uint64) {
	if id == 0 {
		return
	}
	// The old deadline never stands beside the new epoch.
	if d[id].epoch.Load() != epoch {
		d[id].until.Store(0)
		d[id].epoch.Store(epoch)
	}
	d[id].until.Store(until)
}
