package beat

import (
	"slices"
	"strings"
	"time"
)

// Drop is why a datagram was not carried.
type Drop string

// The reasons.
const (
	DropForm     Drop = "malformed"    // no datagram of ours
	DropKey      Drop = "unknown_key"  // sealed by keys that are not in use here: a stranger's, or those of a process that has ended
	DropMember   Drop = "not_a_member" // sealed by keys of a member that is none any more
	DropForged   Drop = "forged"       // not sealed by who has the key, or damaged on the way
	DropRepeated Drop = "repeated"     // it has come already, by another path most likely, or is too old to tell
	DropContent  Drop = "unreadable"   // of a member, and makes no sense here: of a later release, say

	DropNoKey       Drop = "no_key"      // to send: there are no keys with that member yet
	DropLarge       Drop = "too_large"   // to send: more than fits a datagram
	DropQueue       Drop = "queue_full"  // to send: the kernel had no room at once
	DropUnreachable Drop = "unreachable" // to send: there is no way to that address
)

// Drops lists all reasons.
var Drops = []Drop{DropForm, DropKey, DropMember, DropForged, DropRepeated, DropContent, DropNoKey, DropLarge, DropQueue, DropUnreachable}

// Status is how datagrams fare.
type Status struct {
	Local   []string // our addresses, as others are told
	Dropped map[Drop]uint64
	Peers   []PeerStatus // by name
}

// PeerStatus is how they fare with one member.
type PeerStatus struct {
	Name     string
	Keyed    bool          // messages to it can be sealed
	Age      time.Duration // of the keys that are sent with
	Keys     int           // pairs of keys that it may send with
	Met      uint64        // how often keys were agreed on
	Problem  string        // why the last try to agree on keys came to nothing; "" = it did not
	Heard    time.Duration // ago; negative = never
	Sent     uint64        // messages
	Received uint64        // messages
	Repeated uint64        // datagrams that came more than once: with several paths, most of them
	NoKey    uint64        // messages that could not be sealed
	Paths    []PathStatus
}

// PathStatus is one way to a member.
type PathStatus struct {
	Local, Remote string
	Heard         time.Duration // ago; negative = never
	RoundTrip     time.Duration // 0 = not known
	Loss          float64       // of the last probes, 0 to 1: both ways together
	Sent          uint64        // datagrams
	Failed        uint64        // datagrams that the kernel did not take
}

// Trips are the round trips to all members that are known, of each by the shortest path that something has come by lately. One that is not measured is left out.
func (c *Carrier) Trips() map[string]time.Duration {
	out := map[string]time.Duration{}
	late := time.Second + 4*c.cfg.RoundTrip
	for _, p := range c.Status().Peers {
		for _, w := range p.Paths {
			if d, ok := out[p.Name]; w.RoundTrip > 0 && w.Heard >= 0 && w.Heard < late && (!ok || w.RoundTrip < d) {
				out[p.Name] = w.RoundTrip
			}
		}
	}
	return out
}

// Status of all members that are known.
func (c *Carrier) Status() Status {
	s := Status{Local: slices.Clone(c.tell), Dropped: map[Drop]uint64{}}
	for d, n := range c.drops {
		s.Dropped[d] = n.Load()
	}
	now := c.now()
	ago := func(at int64) time.Duration {
		if at == 0 {
			return -1
		}
		return time.Duration(max(now-at, 0))
	}
	late := int64(time.Second + 4*c.cfg.RoundTrip)
	for _, p := range *c.peers.Load() {
		p.mu.Lock()
		q := PeerStatus{Name: p.name, Keyed: p.send != nil, Keys: len(p.epochs), Met: p.met, Problem: p.err, Heard: ago(p.heard.Load()), Sent: p.sent.Load(),
			Received: p.received.Load(), Repeated: p.repeated.Load(), NoKey: p.unkeyed.Load()}
		if p.send != nil {
			q.Age = time.Since(p.send.born)
		}
		for _, w := range *p.paths.Load() {
			r := PathStatus{Local: w.local.local.String(), Remote: w.remote.String(), Heard: ago(w.heard.Load()), RoundTrip: w.trip, Sent: w.sent.Load(), Failed: w.failed.Load()}
			all, lost := 0, 0
			for _, b := range w.probes {
				switch {
				case b.answered:
					all++
				case b.at != 0 && now-b.at > late:
					all++
					lost++
				}
			}
			if all > 0 {
				r.Loss = float64(lost) / float64(all)
			}
			q.Paths = append(q.Paths, r)
		}
		p.mu.Unlock()
		s.Peers = append(s.Peers, q)
	}
	slices.SortFunc(s.Peers, func(a, b PeerStatus) int { return strings.Compare(a.Name, b.Name) })
	return s
}
