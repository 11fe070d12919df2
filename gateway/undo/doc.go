// Package undo remembers what memory held before it was written, so that a trial can be taken back to the last bit.
//
// It does not know what it keeps, and it does not lock: the memory must belong to the goroutine that works with the Log, from the first Keep to
// Undo. A nil Log keeps nothing and costs a comparison.
package undo
