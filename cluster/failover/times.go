package failover

import (
	"fmt"
	"time"
)

// Time is nanoseconds of a node's own CLOCK_BOOTTIME. Times of two nodes have nothing to do with each other; none is ever sent.
type Time int64

// Add is t, d later.
func (t Time) Add(d time.Duration) Time { return t + Time(d) }

// Sub is how long before t u was.
func (t Time) Sub(u Time) time.Duration { return time.Duration(t - u) }

// Times of the machine. They are the same on every node of one release.
type Times struct {
	Lease time.Duration // for so long a voter is asked to help nobody else, from when it received the question
	Renew time.Duration // so often the owner asks again, and every node says that it lives
	Ask   time.Duration // so often whoever has no lease asks
	Guard time.Duration // what the owner stops earlier

	MaxLag    time.Duration // a copy further behind is not in sync
	MaxMarker time.Duration // a standby whose last digest is older does not take its copy for whole
	Waits     time.Duration // for so long behind an equal digest an owner that has a lease waits for the word of who has that copy before it uses what others must not
	Retry     time.Duration // what was proposed and not heard of is proposed again
	Flush     time.Duration // so long who hands over waits at most for the last changes to be at the heir

	HoldFirst, HoldMost time.Duration // how long a group stays after it has moved because of a condition; doubled each time
	PanicRest           time.Duration // for so long after a demotion for panics nobody else is demoted for them
}

// Earlier is the lease of releases that do not say in a question how long theirs is. It is the longest that any release asks for, and that a voter promises.
const Earlier = 150 * time.Millisecond

// Default is what every node runs with.
var Default = Times{
	Lease: 120 * time.Millisecond, Renew: 20 * time.Millisecond, Ask: 5 * time.Millisecond, Guard: 20 * time.Millisecond,
	MaxLag: time.Second, MaxMarker: 2 * time.Second, Waits: 8 * time.Second, Retry: 100 * time.Millisecond, Flush: 30 * time.Millisecond,
	HoldFirst: 10 * time.Second, HoldMost: 5 * time.Minute, PanicRest: 10 * time.Minute,
}

// Skew is by how much a clock may be fast or slow, in percent of true time.
const Skew = 5

// Use is for how long the owner may emit after it sent the question that a majority has answered, on its own clock.
func (t Times) Use() time.Duration { return t.Lease*95/100 - t.Guard }

// Reach is how long the answer may take that completes a majority: the lease that it gives lasts then until the next one comes. Behind that it has holes, and behind Use there never is one.
func (t Times) Reach() time.Duration { return t.Use() - t.Renew }

// Slack is what is left, in true time, between the end of the owner's use and the earliest moment at which a voter may help another, when the
// owner's clock is as slow and the voter's as fast as may be. So long a system call may take that began in time.
func (t Times) Slack() time.Duration {
	return t.Lease*100/(100+Skew) - t.Use()*100/(100-Skew)
}

// Check says what is wrong with them. Whoever sets others than Default asks it.
func (t Times) Check() error {
	least := t.Guard / 2
	switch {
	case t.Lease <= 0 || t.Renew <= 0 || t.Ask <= 0 || t.Guard <= 0 || t.Retry <= 0 || t.Flush <= 0 || t.MaxLag <= 0 || t.MaxMarker <= 0 || t.Waits <= 0 || t.HoldFirst <= 0 || t.PanicRest <= 0:
		return fmt.Errorf("times of the lease: each must be more than nothing")
	case t.Lease > Earlier:
		return fmt.Errorf("a lease of %s: no voter promises more than %s, which is what it waits for when it starts", t.Lease, Earlier)
	case t.HoldMost < t.HoldFirst:
		return fmt.Errorf("times of the lease: a group stays %s at first, and at most %s: at most must be more", t.HoldFirst, t.HoldMost)
	case t.Slack() < least:
		return fmt.Errorf("a lease of %s with a guard of %s leaves %s for a system call where clocks differ by %d%% each way, and %s is the least: a longer guard does it",
			t.Lease, t.Guard, t.Slack(), Skew, least)
	case t.Use() <= 4*t.Renew:
		return fmt.Errorf("a lease of %s is used for %s, and renewed every %s: three renewals in a row could not be lost, renew at least every %s", t.Lease, t.Use(), t.Renew, t.Use()/5)
	}
	return nil
}

// May says whether what the owner's data plane has in hand may leave: it asks before it publishes, and again before each system call that can
// transmit. The deadline is the one that the last Lease action brought.
func May(now, until Time) bool { return now < until }
