// Package nat maps inside addresses and ports to public ones and back: which public port an inside host's port has, who
// holds it, and when another host may have it.
//
// It does not touch packets, choose who is translated, or count limits. Port forwards and static translations are the
// compiled policy's; here they are reserved ports only.
//
// A Space is what all workers of a node share: the public addresses, and which worker owns which block of 64 ports of a protocol.
// Owner and Reserved may be called by anyone at any time (one atomic load each); Register, Find and SetReserved belong to
// the control goroutine. A Shard belongs to one worker; only it changes the blocks that it owns, but for single ports that others borrow of them
// when there is no block left, by atomic words. Its memory is handed in,
// without pointers; unsafe is used solely to lay the layout over it and to say where a line lies. Time is an argument: ticks of 2^20 ns that wrap.
package nat
