package pipeline

import (
	"slices"

	"demarc/gateway/nat"
	"demarc/gateway/replica"
)

// reserve is the blocks of ports in which a node of a group may make mappings although it does not know what owners before it have used: one in 64 of each address for each node, which nobody else ever makes
// a mapping in, and it not at other times. It is clean while there can be no mapping in it anywhere: this node has found it unused for the hold time, all of which it knew of all sessions.
// Who uses it must have it on disk before that it is clean no more.
type reserve struct {
	nodes []string // of the group, sorted: which blocks are whose goes by it
	all   uint64   // of each word, the blocks of all nodes, and
	mine  uint64   // of this node
	clean bool
	wants bool  // it was clean, and this node needs it: it is open as soon as that is on disk
	open  bool  // new mappings may be made in it
	since int64 // since when it was found unused; 0 = it was not
}

// mostReserves is how many nodes of a group have a reserve: half of all ports would be theirs.
const mostReserves = 32

func (r *reserve) begin() { r.wants, r.clean, r.since = r.clean && r.mine != 0, false, 0 }
func (r *reserve) end()   { r.wants, r.open = false, false }

// Reserve is what must be on disk of a group's reserve.
type Reserve struct {
	Nodes []string `json:"nodes"`
	Clean bool     `json:"clean"`
}

// Reserve says whose node this is and what an earlier process of it has left on disk, by group. It is called once, behind the first Renew and before anything is served.
func (c *Common) Reserve(name string, kept map[string]Reserve) {
	c.name = name
	c.reserves()
	for id := range c.groups {
		if x := c.view.Group(uint8(id)); x != nil {
			r := &c.groups[id].reserve
			r.clean = kept[x.Name].Clean && slices.Equal(kept[x.Name].Nodes, r.nodes)
		}
	}
}

// Reserved reports whether something is to be put on disk.
func (c *Common) Reserved() bool { return c.news }

// Reserves is what must be on disk, nil where that has not changed since it was asked.
func (c *Common) Reserves() map[string]Reserve {
	if !c.news {
		return nil
	}
	c.news = false
	out := map[string]Reserve{}
	for id := range c.groups {
		if x := c.view.Group(uint8(id)); x != nil && c.groups[id].reserve.mine != 0 {
			out[x.Name] = Reserve{c.groups[id].reserve.nodes, c.groups[id].reserve.clean}
		}
	}
	return out
}

// Unkept has Reserves say it again.
func (c *Common) Unkept() { c.news = true }

// Kept notes that this is on disk: where a reserve is needed that is not clean there, it is open now.
func (c *Common) Kept(on map[string]Reserve) {
	for id := range c.groups {
		g, x := &c.groups[id], c.view.Group(uint8(id))
		if x == nil || !g.reserve.wants {
			continue
		}
		if k, there := on[x.Name]; there && !k.Clean {
			g.reserve.wants, g.reserve.open = false, true
			for _, a := range c.addrs {
				if a != nil && int(a.group) == id {
					c.closeAll(a)
				}
			}
		}
	}
}

// reserves takes up which nodes the groups of the policy have. Another list makes other blocks somebody's, and nobody knows what is in them.
func (c *Common) reserves() {
	for id := range c.groups {
		r, x := &c.groups[id].reserve, c.view.Group(uint8(id))
		var nodes []string
		if x != nil && c.name != "" {
			nodes = slices.Sorted(slices.Values(x.Nodes))
		}
		if slices.Equal(nodes, r.nodes) {
			continue
		}
		*r = reserve{nodes: nodes}
		c.news = true
		for i, n := range nodes[:min(len(nodes), mostReserves)] {
			bit := uint64(1) << (63 - i) // above the ports below 1024
			r.all |= bit
			if n == c.name {
				r.mine = bit
			}
		}
		for _, a := range c.addrs {
			if a != nil && int(a.group) == id {
				a.each(func(p *replica.Pool) { c.blocks.Exclude(p, r.all) })
				c.closeAll(a)
			}
		}
	}
}

// Known is how much this node knows of what owners of a group before it have used.
type Known struct {
	All  bool  // it has acknowledged each block of ports in which there may be mappings
	Here bool  // this node was the owner before, in a process that has left what it had to this one
	Age  int64 // ns since it last knew of all sessions that there were; negative = it never did

	Unagreed bool // nobody has agreed to its serving, so another may have been the owner meanwhile, under whatever epoch
}

// closeWord closes 64 blocks as pools want it, and more: all while another node serves the group, and until this one has gone through the address, which workers that serve it do not wait for; all where nobody knows
// what was used; and what nodes of the group have in reserve, always, but this node's own for as long as it may use it.
func (c *Common) closeWord(a *commonAddr, at int) {
	closed, g := a.want[at], &c.groups[a.group]
	shut := g.own && c.now < a.shut
	if shut {
		closed = 1<<64 - 1
	}
	if closed |= g.reserve.all; shut && g.reserve.open {
		closed &^= g.reserve.mine
	}
	if a.group != 0 && !a.taken && !c.blocks.Plant.OpenEarly {
		closed = 1<<64 - 1
	}
	c.space.Close(a.id, nat.Class(at/nat.BlockWords), at%nat.BlockWords, closed)
}

func (c *Common) closeAll(a *commonAddr) {
	for at := range a.want {
		c.closeWord(a, at)
	}
}

// Whole says of which groups that others serve this node's copy is whole: it knows of all sessions.
func (c *Common) Whole(groups map[uint8]bool) {
	for id := range c.groups {
		c.groups[id].whole = groups[uint8(id)]
	}
}

// empty looks whether reserves are unused, and have been for the hold time. One that is clean is so no more as soon as something is seen in it: an owner of an earlier release keeps none.
func (c *Common) empty(now int64) {
	for id := range c.groups {
		g := &c.groups[id]
		r := &g.reserve
		if r.mine == 0 || r.wants {
			continue
		}
		knows, unused, hold := (g.own || g.whole) && now >= g.rests, true, c.hold()
		for _, a := range c.addrs {
			if a == nil || int(a.group) != id {
				continue
			}
			hold = max(hold, a.hold)
			knows, unused = knows && now >= a.shut, unused && c.unused(a, r.mine)
		}
		switch {
		case r.clean && !unused:
			r.clean, r.since, c.news = false, 0, true
		case r.clean:
		case !knows || !unused:
			r.since = 0
		case r.since == 0:
			r.since = now
		case now-r.since > hold:
			r.clean, r.since, c.news = true, 0, true
		}
	}
}

// unused reports whether nobody has, or lets rest, a port of those blocks, here or as the owner says.
func (c *Common) unused(a *commonAddr, blocks uint64) bool {
	for at := range addrWords {
		if _, used := c.space.Look(a.id, nat.Class(at/nat.BlockWords), at%nat.BlockWords); (used|a.known[at])&blocks != 0 {
			return false
		}
	}
	return true
}

// Knows reports whether all that may be in use of a group's public ports is in this node's tables: it serves the group, and nothing rests because an owner before may have used it.
func (c *Common) Knows(group uint8, now int64) bool {
	knows := c.groups[group].own && now >= c.groups[group].rests
	for _, a := range c.addrs {
		if knows && a != nil && a.group == group {
			knows = now >= a.shut
			a.each(func(p *replica.Pool) { knows = knows && !c.blocks.Resting(p) })
		}
	}
	return knows
}

// Rests is for how long new conversations of a group get ports of this node's reserve alone, or none, because nobody knows which others are in use, in ns; and whether there is a reserve.
func (c *Common) Rests(group uint8) (left int64, reserve bool) {
	for _, a := range c.addrs {
		if a != nil && a.group == group && c.groups[group].own {
			left = max(left, a.shut-c.now)
		}
	}
	return max(left, 0), c.groups[group].reserve.open
}
