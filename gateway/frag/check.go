package frag

import "fmt"

// Check looks whether the table agrees with itself: for tests, it walks all of it.
func (t *Table) Check() error {
	freeB, freeD := 0, 0
	for at := t.freeB; at != none; at = t.b[at].next {
		freeB++
	}
	for at := t.freeD; at != none; at = t.d[at].next {
		freeD++
	}
	held, inAges := 0, 0
	for age := range t.ages {
		var last uint32
		for at := t.ages[age].oldest; at != none; at = t.d[at].newer[byAge] {
			d := &t.d[at]
			inAges++
			n := 0
			for b := d.first; b != none; b = t.b[b].next {
				n++
			}
			if n != int(d.waiting) || n > 0 && d.State != Waiting || (d.State == Waiting) != (age == ageWait) || int(d.age) != age || d.self != at {
				return fmt.Errorf("datagram %d: %d buffers, counts %d, state %d, age list %d of %d", at, n, d.waiting, d.State, age, d.age)
			}
			if t.find(&d.Key, d.Key.hash(t.cfg.Seed)) != at {
				return fmt.Errorf("datagram %d is not found by its key", at)
			}
			if d.older[byAge] != last {
				return fmt.Errorf("datagram %d: the one before it is %d, not %d", at, d.older[byAge], last)
			}
			last = at
			held += n
		}
		if t.ages[age].newest != last {
			return fmt.Errorf("age list %d ends at %d, not %d", age, t.ages[age].newest, last)
		}
	}
	inLanes, known := 0, 0
	for owner := range t.lane {
		for class := range classes {
			sum := uint32(0)
			for i := range t.lane[owner][class] {
				l, n, weight := &t.lane[owner][class][i], 0, 0
				for at := l.oldest; at != none; at = t.d[at].newer[byLane] {
					n++
					weight += int(t.d[at].waiting)
				}
				inLanes += n
				if class == settled {
					weight = n
					known += n
				}
				if int(l.weight) != weight {
					return fmt.Errorf("owner %d class %d lane %d weighs %d, counts %d", owner, class, i, weight, l.weight)
				}
				sum += l.weight
			}
			if sum != t.sums[owner][class] {
				return fmt.Errorf("owner %d class %d weighs %d, counts %d", owner, class, sum, t.sums[owner][class])
			}
		}
	}
	ready := 0
	for at := t.ready.oldest; ready < int(t.ready.weight); at = t.b[at].next {
		ready++
		if at == none {
			return fmt.Errorf("%d ready, %d counted", ready-1, t.ready.weight)
		}
	}
	switch {
	case held+ready != t.used || t.used+freeB != int(t.freshB)-1:
		return fmt.Errorf("buffers: %d held, %d ready, %d free, %d used, %d taken", held, ready, freeB, t.used, t.freshB-1)
	case inAges != inLanes || known != t.known || inAges+freeD != int(t.fresh)-1:
		return fmt.Errorf("datagrams: %d by age, %d by owner, %d known, counts %d, %d free, %d taken", inAges, inLanes, known, t.known, freeD, t.fresh-1)
	case t.known > t.cfg.Datagrams || t.used > t.cfg.Datagrams:
		return fmt.Errorf("%d known and %d waiting of %d", t.known, t.used, t.cfg.Datagrams)
	}
	return nil
}
