package bench

import (
	"context"
	"fmt"
	"time"

	"demarc/bench/report"
)

// A part of the suite is told when it should have ended. It measures nothing a second time and begins no further round that would end later, and says what it left out; a
// part that is run by itself has all the time that it needs.
type dueKey struct{}

func withDue(ctx context.Context, at time.Time) context.Context {
	return context.WithValue(ctx, dueKey{}, at)
}

// dueOf is that time; zero = there is none.
func dueOf(ctx context.Context) time.Time {
	at, _ := ctx.Value(dueKey{}).(time.Time)
	return at
}

// within is what is left of a budget, or of the time until due where that is less.
func within(budget time.Duration, due time.Time) time.Duration {
	if due.IsZero() {
		return budget
	}
	return min(budget, time.Until(due))
}

// share is when the first of several parts should have ended, so that each has its part of the time that is left.
func share(now, due time.Time, first, all float64) time.Time {
	if due.IsZero() || all <= 0 {
		return due
	}
	return now.Add(time.Duration(float64(due.Sub(now)) * first / all))
}

// pacer says whether another round ends in time, from what the longest took.
type pacer struct {
	due     time.Time // zero = any does
	began   time.Time // of the round before
	longest time.Duration
	aside   time.Duration // of the round before: what not each round does
	next    time.Duration // of the coming one: the same
}

// fits is asked before each round. The first always does.
func (p *pacer) fits(now time.Time) bool {
	first := p.began.IsZero()
	if !first {
		p.longest = max(p.longest, now.Sub(p.began)-p.aside)
	}
	p.began = now
	return first || p.due.IsZero() || !now.Add(p.longest+p.next).After(p.due)
}

// fewer is that note of rounds.
func fewer(what string, done, planned int, of string) string {
	return fmt.Sprintf(report.LeftOut+"%s: %d of %d %s", what, done, planned, of)
}
