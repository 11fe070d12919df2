package police

import (
	"fmt"
	"math/bits"
	"sync/atomic"
	"time"
)

// UnitsPerNs is the resolution of a rate word: it counts 1/64 ns of CLOCK_BOOTTIME. 64 bits of that wrap after 9.1
// years; all comparisons are differences, so the wrap itself does no harm.
const UnitsPerNs = 64

// Word is the state of one rate: the theoretical arrival time (GCRA, ITU-T I.371) in units, the time at which all
// that was let through so far would have left at exactly the rate. Zero is a full bucket. It is shared by workers and
// moved only by compare-and-swap or atomic addition, never stored to.
type Word = atomic.Uint64

const (
	unitsPerSecond = UnitsPerNs * uint64(time.Second)

	maxBytes    = 1 << 16   // what one Take of a BitRate may count; more counts as this
	maxPackets  = 1 << 10   // the same for a PacketRate
	maxBurst    = time.Hour // longer bursts are cut to this
	voiceBytes  = 2 * 1500  // what voice may overdraw a BitRate by
	voicePacket = 2         // the same for a PacketRate

	// maxSkew is how far, in units, the clocks of two users of a word may be apart: a worker reads the clock once a burst and
	// may be preempted before it takes. Within it no Take moves a word back.
	maxSkew = int64(time.Second) * UnitsPerNs

	// costBits keeps n*mul+dither below 2^64 for n <= maxBytes.
	costBits = 47
	// coarse is the cost of one byte (or packet) below which rounding each packet to whole units could be wrong by more
	// than 0.1 %. Rates above 1 Gbit/s are; their rounding is dithered.
	coarse = 512
)

// Rate is a limit, ready for integer arithmetic. It is immutable. The zero value is unlimited.
//
// A packet conforms while the word is at most burst ahead of now; its own size does not matter. So the credit of an
// idle rate is the burst, what passes in any time T is at most rate*T + burst + one packet, a packet larger than the
// burst still passes, and small packets (which would always fit into the last bit of credit) do not push out large
// ones, neither in one queue nor between workers that share the word.
type Rate struct {
	mul    uint64 // cost of one byte or packet, in units << shift; 0 = unlimited
	burst  int64  // units
	ahead  int64  // units; this rate cannot have brought a word further ahead of any worker's clock
	slack  int64  // units; how far voice may overdraw
	maxN   uint32
	beside uint16 // what each n has beside it, in n's units: the bytes of a packet's way over the line that are not IP's
	shift  uint8
	fine   bool // rounding must be dithered
}

// BitRate is a limit in bits per second; what Take counts is bytes. 0 is unlimited. A negative burst is 0, one above an
// hour is an hour. Long-run error is below 0.1 % from 1 bit/s to beyond 100 Gbit/s and for every packet size.
// One Take counts at most 64 KiB, so at 1 bit/s a word is never more than six days and the burst ahead.
func BitRate(bps uint64, burst time.Duration) Rate {
	return newRate(8*unitsPerSecond, bps, burst, maxBytes, voiceBytes)
}

// Beside is r with so many bytes more for each Take: what a packet has on the line beside what Take is told of it. It is for a BitRate.
func (r Rate) Beside(bytes uint16) Rate {
	r.beside = bytes
	return r
}

// PacketRate is a limit in packets (or new sessions) per second; what Take counts is 1 each, at most 1024. 0 is
// unlimited. The burst is as for BitRate.
func PacketRate(pps uint64, burst time.Duration) Rate {
	return newRate(unitsPerSecond, pps, burst, maxPackets, voicePacket)
}

// newRate makes one n cost num/den units.
func newRate(num, den uint64, burst time.Duration, maxN uint32, slack uint64) Rate {
	if den == 0 {
		return Rate{}
	}
	r := Rate{maxN: maxN}
	for shift := 63; ; shift-- {
		hi, lo := bits.Mul64(num, 1<<shift)
		lo, carry := bits.Add64(lo, den/2, 0) // round to nearest
		hi += carry
		if hi >= den {
			continue // the quotient has more than 64 bits
		}
		if q, _ := bits.Div64(hi, lo, den); q < 1<<costBits {
			r.mul, r.shift = max(q, 1), uint8(shift)
			break
		}
	}
	r.fine = r.mul>>r.shift < coarse
	burst = min(max(burst, 0), maxBurst)
	r.burst = int64(burst) * UnitsPerNs
	r.slack = int64(r.floor(slack))
	r.ahead = r.burst + r.slack + int64(r.floor(uint64(maxN))) + maxSkew
	return r
}

// Numbers is a Rate as another executor reads it (struct rate in gateway/cruise/bpf/cruise.c): what take and cost go by. Little-endian, 40 bytes.
type Numbers struct {
	Mul                 uint64
	Burst, Ahead, Slack int64
	Max                 uint32
	Shift, Fine         uint8
	Beside              uint16
}

// Numbers are those of r.
func (r *Rate) Numbers() Numbers {
	n := Numbers{Mul: r.mul, Burst: r.burst, Ahead: r.ahead, Slack: r.slack, Max: r.maxN, Shift: r.shift, Beside: r.beside}
	if r.fine {
		n.Fine = 1
	}
	return n
}

// Unlimited reports whether r lets everything pass.
func (r *Rate) Unlimited() bool { return r.mul == 0 }

// floor is the cost of n in whole units, rounded down. n may be beyond maxN (a whole queue).
func (r *Rate) floor(n uint64) uint64 {
	hi, lo := bits.Mul64(n, r.mul)
	if hi>>r.shift != 0 {
		return 1<<64 - 1
	}
	return hi<<(64-r.shift) | lo>>r.shift
}

// cost is what n adds to a word that stands at tat. Where units are coarse the rounding is a fair coin weighted by the
// remainder, drawn from the word itself: no state and no bias, and a retry of the same compare-and-swap draws the same.
func (r *Rate) cost(n int, tat uint64) uint64 {
	c := uint64(min(uint32(max(n, 0))+uint32(r.beside), r.maxN))
	if !r.fine {
		return (c*r.mul + 1<<r.shift>>1) >> r.shift
	}
	h := tat * 0x9e3779b97f4a7c15
	h = (h ^ h>>32) * 0xd6e8feb86659fd93
	h ^= h >> 32
	return (c*r.mul + h&(1<<r.shift-1)) >> r.shift
}

// lead is how far the word at tat is ahead of now, at least 0. A word further ahead than this rate can have brought it
// was left by a much slower rate before a change of policy: it counts as an empty bucket, so a raised rate holds within a
// second. So does a word that nobody touched for 4.5 years, or a new one after that uptime: half the circle looks like the
// future. It costs that tenant one burst.
func (r *Rate) lead(tat, now uint64) int64 {
	d := int64(tat - now)
	if d < 0 {
		return 0
	}
	if d > r.ahead {
		return r.burst
	}
	return d
}

// Take lets n bytes (or packets) pass and reports true, or leaves the word alone and reports false. nowNs is
// CLOCK_BOOTTIME in nanoseconds; it may lag behind that of another user of the word by up to a second.
func (r *Rate) Take(w *Word, nowNs uint64, n int) bool {
	return r.mul == 0 || r.take(w, nowNs, n, 0)
}

// leadAt is lead as one who may go to slack beyond the burst, or is to stay so far below it, sees it: what does not count is at the edge of what lets it pass.
func (r *Rate) leadAt(tat, now uint64, slack int64) int64 {
	if d := int64(tat - now); d > r.ahead {
		return r.burst + min(slack, 0)
	}
	return r.lead(tat, now)
}

// TakeVoice is Take for voice: it may overdraw by two full packets more, so that it finds room beside others that take all they can. The long-run rate is the same.
func (r *Rate) TakeVoice(w *Word, nowNs uint64, n int) bool {
	return r.mul == 0 || r.take(w, nowNs, n, r.slack)
}

// TakeLow is Take for what comes behind others: it leaves half of the burst to them, so that however much of it there is they find room.
func (r *Rate) TakeLow(w *Word, nowNs uint64, n int) bool {
	return r.mul == 0 || r.take(w, nowNs, n, -r.burst/2)
}

// WaitLow is Wait for TakeLow.
func (r *Rate) WaitLow(w *Word, nowNs uint64) uint64 { return r.wait(w, nowNs, -r.burst/2) }

// TakeHigh is Take for what is bounded by a rate of its own, a part of this one: it goes beyond the burst by half of it, at most half a second, so that others that take all they can leave it that part.
func (r *Rate) TakeHigh(w *Word, nowNs uint64, n int) bool {
	return r.mul == 0 || r.take(w, nowNs, n, min(r.burst, maxSkew)/2)
}

func (r *Rate) take(w *Word, nowNs uint64, n int, slack int64) bool {
	now := nowNs * UnitsPerNs
	for {
		old := w.Load()
		d := r.leadAt(old, now, slack)
		if d > r.burst+slack {
			return false
		}
		tat := now + uint64(d)
		if w.CompareAndSwap(old, tat+r.cost(n, tat)) {
			return true
		}
	}
}

// Wait is how many nanoseconds from nowNs n would conform, if nobody else takes meanwhile; 0 = now.
func (r *Rate) Wait(w *Word, nowNs uint64, n int) uint64 {
	return r.wait(w, nowNs, 0)
}

func (r *Rate) wait(w *Word, nowNs uint64, slack int64) uint64 {
	if r.mul == 0 {
		return 0
	}
	d := r.leadAt(w.Load(), nowNs*UnitsPerNs, slack) - r.burst - slack
	if d <= 0 {
		return 0
	}
	return uint64(d+UnitsPerNs-1) / UnitsPerNs
}

// Fill says how much of the burst is used now, in words: for people, not for decisions.
func (r *Rate) Fill(w *Word, nowNs uint64) string {
	if r.mul == 0 {
		return "unlimited"
	}
	ms := func(n int64) float64 { return float64(n) / UnitsPerNs / 1e6 }
	return fmt.Sprintf("%.1f of %.1f ms used", ms(r.lead(w.Load(), nowNs*UnitsPerNs)), ms(r.burst))
}

// Ahead is how many nanoseconds the word is ahead of now: how much of the burst is used, and 0 where nothing is.
func (r *Rate) Ahead(w *Word, nowNs uint64) uint64 {
	if r.mul == 0 {
		return 0
	}
	return uint64(r.lead(w.Load(), nowNs*UnitsPerNs)) / UnitsPerNs
}

// Raise makes the word at least so many nanoseconds ahead of now, as it was on another node; never further than this rate can have brought it.
func (r *Rate) Raise(w *Word, nowNs, ahead uint64) {
	if r.mul == 0 || ahead == 0 {
		return
	}
	now := nowNs * UnitsPerNs
	to := r.ahead
	if ahead < uint64(r.ahead)/UnitsPerNs {
		to = int64(ahead * UnitsPerNs)
	}
	for {
		old := w.Load()
		if d := int64(old - now); d >= to && d <= r.ahead || w.CompareAndSwap(old, now+uint64(to)) {
			return
		}
	}
}

// Refund gives back what a Take of n took, for a packet that did not leave after all; never more than was taken, and above
// 1 Gbit/s, where rounding is drawn, perhaps one unit less.
func (r *Rate) Refund(w *Word, n int) {
	if r.mul == 0 {
		return
	}
	c := r.floor(uint64(min(uint32(max(n, 0))+uint32(r.beside), r.maxN)))
	if !r.fine {
		c = r.cost(n, 0)
	}
	w.Add(-c)
}
