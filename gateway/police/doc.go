// Package police decides when a packet of a tenant may leave: at once, after a wait in a bounded queue, or never.
//
// It does not read a clock, send or free frames, or know what a tenant is: time, rates, rate words and the two
// functions that look up a queue's limits and take what leaves are arguments.
//
// Concurrency: Rate and Dir are immutable. A Word may be shared by any number of goroutines; it is moved only by
// atomic read-modify-write. A Shaper belongs to one goroutine, its worker, and owns the frames that wait in it.
package police
