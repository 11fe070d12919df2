package gateway

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/conntrack"
	"demarc/gateway/nat"
)

const (
	// aheadOf is how many entries beyond those that are used have their memory. A worker that has come a quarter of that further says so; what is left is more than it uses until it has more.
	aheadOf   = 1 << 16
	aheadCall = aheadOf / 4
	// aheadAgain is when the kernel is asked again for what it did not give.
	aheadAgain = 50 * time.Millisecond
	// aheadStep is how much is asked of the kernel at once: one huge page.
	aheadStep = 2 << 20
)

// stretch is a part of a table's memory that is used from the front on.
type stretch struct {
	mem  []byte // begins with the mapping that it is a part of
	from int    // where the first entry lies
	size int    // bytes an entry; 0 = all of it is met at random, from the first entry on
	to   int
	done int // up to where memory was asked for, not less than from
}

// ahead has the kernel make the pages of a worker's tables before the worker comes to them. The first touch of a huge page takes as long as the kernel, and perhaps a host below it, needs to clear 2 MiB: a worker
// that does it itself lets packets wait for milliseconds. What no session will need for long is not asked for: an empty table takes some 28 bytes for each session that it has room for, and 65,536 sessions' own.
type ahead struct {
	parts []stretch
	used  func() (sessions, mappings int)
	next  func(n int) // has the worker say when it has more than n of either
	off   bool        // the kernel does not do it (before 5.14): pages come with their first touch, as without this
}

// newAhead is for tables of conntrack.Bytes and nat.Bytes, each the beginning of a mapping; sessions nil: those are the kernel's, and there already.
func newAhead(sessions []byte, capacity int, mappings []byte, room int, used func() (sessions, mappings int), next func(n int)) *ahead {
	a := &ahead{used: used, next: next}
	if sessions != nil {
		from, to := conntrack.Index(capacity)
		a.parts = append(a.parts, stretch{mem: sessions, from: from, to: to}, stretch{mem: sessions, size: conntrack.SessionSize, to: from}, stretch{mem: sessions, from: to, size: 4, to: conntrack.Bytes(capacity)})
	}
	from, to, size := nat.Entries(room)
	a.parts = append(a.parts, stretch{mem: mappings, to: from}, stretch{mem: mappings, from: to, to: nat.Bytes(room)}, stretch{mem: mappings, from: from, size: size, to: to})
	for i := range a.parts {
		a.parts[i].done = a.parts[i].from
	}
	return a
}

// turn asks for what is to be there now. It reports whether that is there: then there is nothing to do until the worker says so.
func (a *ahead) turn(ctx context.Context) (done bool) {
	if a.off {
		return true
	}
	sessions, mappings := a.used()
	n := max(sessions, mappings)
	a.next(n + aheadCall) // before the work: it says so meanwhile
	n += aheadOf
	for i := range a.parts {
		p := &a.parts[i]
		end := p.to
		if p.size > 0 {
			end = min(p.to, p.from+n*p.size)
		}
		for p.done < end && !a.off && ctx.Err() == nil {
			at := p.done &^ (unix.Getpagesize() - 1)
			next := min(p.to, (at+aheadStep)&^(aheadStep-1))
			switch err := unix.Madvise(p.mem[at:next], unix.MADV_POPULATE_WRITE); err {
			case nil:
				p.done = next
			case unix.EINVAL:
				a.off = true
			default: // EINTR, or no memory now: the next turn goes on
				return false
			}
		}
	}
	return ctx.Err() == nil
}

// makeAhead does so for all workers, until ctx ends. It sleeps while none has come further: no clock wakes it.
func (g *Gateway) makeAhead(ctx context.Context) error {
	for {
		done := true
		for _, a := range g.ahead {
			done = a.turn(ctx) && done
		}
		var again <-chan time.Time
		if !done {
			again = time.After(aheadAgain)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-g.grown:
		case <-again:
		}
	}
}
