// Package block is the list of addresses that an operator has blocked for a while: which there are, until when, and how often each was hit.
//
// It does not know why, nor whose they are: sides are zones. A List is immutable and read by all workers; each counts on a line of its own.
package block
