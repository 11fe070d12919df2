// Package instructions counts the machine instructions that a piece of code executes, one by one, with the functions that they are in: it runs the test's own program again
// under ptrace and single-steps it. So it tells what a change costs on a machine whose time nobody can trust, and without the counters of a processor, which virtual machines
// seldom have.
//
// It does not say how long anything takes: a load that misses every cache is one instruction. What the Go scheduler does in between, because a stepped program is slow, is
// left out, and so is the garbage collector, which is off. It wants Linux on amd64.
// It has no state, and Count is for one goroutine at a time. No other code imports it.
package instructions
