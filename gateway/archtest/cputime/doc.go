// Package cputime is for tests that bound how much work something may be: what others leave of the machine must not decide how long it takes.
//
// It does not tell goroutines or tests apart: it counts what the whole process uses, so a test that bounds by it runs with nothing beside it. What it returns may be
// called by any goroutine. No other code imports it.
package cputime
