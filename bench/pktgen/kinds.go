package pktgen

// Kind is what was found about one frame. frame.h has the same list.
type Kind int

// The kinds, in the order of frame.h.
const (
	Right Kind = iota
	Reordered
	Other
	BadForm
	BadIPSum
	BadL4Sum
	NotSent
	WrongPayload
	WrongDst
	WrongTTL
	WrongTuple
	WrongMapping
	NotLearned
	Duplicate
	Stale
	kinds
)

var kindText = [kinds]string{
	Right:        "right",
	Reordered:    "right, but after a later frame of its flow",
	Other:        "not of the bench's family, left to the host",
	BadForm:      "not the shape of the bench's frames",
	BadIPSum:     "wrong IP checksum",
	BadL4Sum:     "wrong UDP or TCP checksum",
	NotSent:      "never sent: unknown flow or wrong check word",
	WrongPayload: "payload or length changed",
	WrongDst:     "wrong destination",
	WrongTTL:     "TTL not as it should be",
	WrongTuple:   "source not of the pool, or not as sent",
	WrongMapping: "another public address or port than the flow had",
	NotLearned:   "flow without a mapping",
	Duplicate:    "duplicate",
	Stale:        "too far behind its flow to tell from a duplicate",
}

// String is what a person reads.
func (k Kind) String() string {
	if k < 0 || k >= kinds {
		return "unknown kind"
	}
	return kindText[k]
}

// Counts is how many frames of each kind one end saw.
type Counts [kinds]uint64

// Wrong is how many frames arrived and were not right. What was left to the host is nobody's fault.
func (c *Counts) Wrong() (n uint64) {
	for k := BadForm; k < kinds; k++ {
		n += c[k]
	}
	return n
}

// WrongKinds lists those that happened.
func (c *Counts) WrongKinds() map[string]uint64 {
	m := map[string]uint64{}
	for k := BadForm; k < kinds; k++ {
		if c[k] > 0 {
			m[k.String()] = c[k]
		}
	}
	return m
}

// Sub is what was added since an earlier count.
func (c Counts) Sub(before Counts) Counts {
	for k := range c {
		c[k] -= before[k]
	}
	return c
}
