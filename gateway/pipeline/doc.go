// Package pipeline judges packets: a burst in, a verdict and the rewritten frame for each out.
//
// It does not own frames, do I/O, take locks or read clocks. Everything that it writes belongs to one Shard, and a Shard belongs to
// one worker; a View is only read. What workers share are the rate words, the session counts of tenants, and the block table of
// the public ports, all atomic words.
//
// The stages, in order: receive, home, find, open (source check, destination NAT, ACL, limits, source NAT, create), track,
// hop limit, size, translate, neighbour, link header, rate, account.
package pipeline
