// Package frag follows the datagrams that come in fragments: which pieces of each have been seen, and what waits for the first one.
//
// It does not put datagrams together, judge packets or translate them, and it reads no clock: a later fragment has no ports, so all that it
// needs is to know what its first one was. All memory is fixed at the start.
//
// A Table belongs to one worker. What waits are copies of frames in the table's own memory, so no frame has an owner more because of it.
package frag
