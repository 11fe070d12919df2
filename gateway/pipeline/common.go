package pipeline

import (
	"maps"
	"math/bits"
	"slices"
	"time"

	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/nat"
	"demarc/gateway/police"
	"demarc/gateway/replica"
	"demarc/gateway/snapshot"
)

// Common is what the workers of a node share and the next owner of a group must know: which blocks of public ports may have mappings, how far the rates of tenants are used up, and
// what was counted for them. Of groups that this node owns it is a replica.Source for each standby, of others a replica.Sink.
//
// It belongs to one goroutine at a time, which is no worker: of shards it reads only what they publish.
type Common struct {
	space  *nat.Space
	shards []*Shard
	view   *snapshot.View
	blocks replica.Blocks
	rnd    uint64

	tenants []commonTenant // by id
	addrs   []*commonAddr  // by nat.AddrID; nil where no tenant has it in its pool
	at      int            // of addrs, where Turn goes on
	groups  [256]commonGroup
	peers   map[string]*commonPeer
	all     []*commonPeer // of peers, for what is done for each block
	now     int64
	lost    uint64 // how often a policy has ended what a stream has put here
	name    string // this node's, see Reserve

	// Carried is what another executor has carried of a tenant beside the shards; nil = there is none. Set before anything else is called.
	Carried func(flow.TenantID, meter.Dir) meter.Volume
	news    bool  // something of reserves is to be put on disk
	marked  int64 // when rates and counters were looked at last
	emptied int64 // when reserves were
	rests   int64 // until when something rests
	calm    int   // how many addresses were looked at since there was last anything to do
}

// commonGroup is a group as Common goes by it.
type commonGroup struct {
	own   bool
	kept  uint64 // see Keep
	epoch uint64 // under which this node owned it last; 0 = never

	unagreed bool // nobody had agreed to that epoch, so another node may have owned it under the same number
	guard    map[string]bool

	reserve reserve
	whole   bool  // another serves it, and this node's copy of its sessions is whole
	rests   int64 // until when all its public ports rest but those of known mappings: as this node found, or who owned it before
}

// The numbers of what is told of a tenant. They are a promise between versions.
const (
	rateOutBits = iota
	rateOutPackets
	rateOutVoice
	rateInBits
	rateInPackets
	rateInVoice
	rateSessions
	rateRests // no rate: how long it takes until ports that its owner does not know of rest no more. Where none do, it is not told
	numRates

	countCreated = 8
	countVolume  = 9                                  // packets and bytes of each direction
	countOffered = countVolume + 2*int(meter.NumDirs) // of out and in
	numCounts    = countOffered + 4

	tenantSlots = 32
	addrWords   = nat.NumClasses * nat.BlockWords
)

// commonTenant is what is known of a tenant's counters.
type commonTenant struct {
	gen   uint32
	total [numCounts]uint64 // of countCreated and above: by all owners of its group together
	last  [numCounts]uint64 // what this node's workers had counted, as it was added to total
	told  [numCounts]uint64 // as it was marked last; of rates, the word
}

// commonAddr is a public address that tenants share ports of.
type commonAddr struct {
	id     nat.AddrID
	tenant flow.TenantID
	group  uint8                           // 0 = none
	taken  bool                            // this node owns the group, and has gone through the address
	pools  [nat.NumClasses][2]replica.Pool // ports below 1024, and the others
	closed [nat.NumClasses][2]uint64       // of the first word, what each of the two wants closed
	want   [addrWords]uint64               // what pools want closed, by word
	shut   int64                           // until when all is closed, because nobody here knows what was used
	known  [addrWords]uint64               // blocks that the owner has open, as it says
	hold   int64                           // ns, as the owner says
	idle   [addrWords]uint64               // of known, those that only rest there, and
	ends   int64                           // until when at most
	rests  int64                           // until when blocks rest
	early  [addrWords]uint64               // those that rest only
	sooner int64                           // until then
	past   [addrWords]uint64               // blocks that were open when this node gave the group up, and
	rested [addrWords]uint64               // which of them rested
	gone   int64                           // until when that matters
}

// commonPeer is one standby.
type commonPeer struct {
	c    *Common
	s    *replica.Sender
	seqs []uint64 // by block: as what record it was written first; 0 = not yet
}

// NewCommon makes what shards with one Space have in common, for tenants with ids below tenants.
func NewCommon(space *nat.Space, shards []*Shard, tenants int, seed uint64) *Common {
	return &Common{space: space, shards: shards, blocks: replica.NewBlocks(), tenants: make([]commonTenant, tenants), peers: map[string]*commonPeer{}, rnd: seed | 1}
}

// Renew takes up another policy.
func (c *Common) Renew(v *snapshot.View, now int64) {
	before := c.view
	c.view, c.now = v, now
	for id := range c.tenants {
		var was, is *snapshot.Tenant
		if is = v.Tenant(flow.TenantID(id)); before != nil {
			was = before.Tenant(flow.TenantID(id))
		}
		if is == nil && was == nil || is != nil && was != nil && is.Name == was.Name && groupID(is) == groupID(was) {
			continue
		}
		if t := &c.tenants[id]; is != nil && was != nil && is.Name != was.Name || is != nil && was == nil && before != nil { // the number is another's
			*t = commonTenant{gen: t.gen + 1, last: c.counted(flow.TenantID(id))}
		}
		for i := range uint32(tenantSlots) {
			c.mark(uint32(id)*tenantSlots+i, false)
		}
	}
	c.reserves()
	has := map[nat.AddrID]bool{}
	for i := range v.Publics {
		if p := &v.Publics[i]; p.Dynamic {
			has[p.ID] = true
			c.address(p, now)
		}
	}
	for id, a := range c.addrs {
		if a != nil && !has[nat.AddrID(id)] {
			c.regroup(a, 0, now)
			c.addrs[id] = nil
			c.lost++
		}
	}
	for _, p := range c.peers {
		p.s.Renew()
		p.s.Grow(int(c.Slots()))
		p.seqs = append(p.seqs, make([]uint64, len(c.addrs)*addrWords*64-len(p.seqs))...)
	}
	if before != nil && before.NATHold != v.NATHold { // it is told with each block
		for slot := range uint32(len(c.addrs) * addrWords * 64) {
			if c.blocks.Told(slot) {
				c.mark(c.blockSlot(slot), true)
			}
		}
	}
}

// groupID is the group of a tenant, 0 for none.
func groupID(t *snapshot.Tenant) uint8 {
	if t.Group == nil {
		return 0
	}
	return t.Group.ID
}

// address takes up an address of a pool.
func (c *Common) address(p *snapshot.Public, now int64) {
	for int(p.ID) >= len(c.addrs) {
		c.addrs = append(c.addrs, nil)
	}
	c.blocks.Grow(len(c.addrs) * addrWords)
	a := c.addrs[p.ID]
	if a == nil {
		a = &commonAddr{id: p.ID}
		for class := range a.pools {
			from := uint32(int(p.ID)*addrWords + class*nat.BlockWords)
			a.pools[class][0] = replica.Pool{From: from, To: from + 1, First: nat.LowBlocks, Least: 4, Most: 16}
			a.pools[class][1] = replica.Pool{From: from, To: from + nat.BlockWords, First: ^nat.LowBlocks, Least: 32, Most: 256}
			if nat.Class(class) == nat.ICMP { // no query gets an identifier below 1024
				a.pools[class][0].Least, a.pools[class][0].Most = 0, 0
			}
			for part := range a.pools[class] {
				c.bind(a, class, part)
			}
		}
		c.addrs[p.ID] = a
	}
	group := uint8(0)
	if g := c.view.GroupOf(p.Tenant); g != nil {
		group = g.ID
	}
	if a.tenant != p.Tenant && c.groups[a.group].own { // blocks are told with their tenant
		c.regroup(a, 0, now)
	}
	if a.tenant != p.Tenant && a.known != [addrWords]uint64{} {
		a.known, a.idle, a.ends = [addrWords]uint64{}, [addrWords]uint64{}, 0
		c.lost++
	}
	a.tenant = p.Tenant
	c.regroup(a, group, now)
}

// bind has a pool look at the Space.
func (c *Common) bind(a *commonAddr, class, part int) {
	p := &a.pools[class][part]
	word := func(w uint32) int { return int(w - p.From) }
	p.Look = func(w uint32) (free, used uint64) { return c.space.Look(a.id, nat.Class(class), word(w)) }
	p.Over = func(w uint32) uint64 {
		switch {
		case c.now >= a.rests:
			return 1<<64 - 1
		case c.now >= a.sooner:
			return a.early[w-uint32(int(a.id)*addrWords)]
		}
		return 0
	}
	p.Close = func(w uint32, closed uint64) {
		if w == p.From {
			a.closed[class][part] = closed
			closed = a.closed[class][0] | a.closed[class][1]
		}
		at := class*nat.BlockWords + word(w)
		a.want[at] = closed
		c.closeWord(a, at)
	}
	p.Known = func(slot uint32) bool {
		for name := range c.groups[a.group].guard {
			if p := c.peers[name]; p == nil || !p.known(slot) {
				return false
			}
		}
		return true
	}
	p.Mark = func(slot uint32) { c.mark(c.blockSlot(slot), true) }
	p.Gone = func(slot uint32) {
		for _, x := range c.all {
			x.seqs[slot] = 0
			x.s.Gone(c.blockSlot(slot))
		}
	}
}

func (a *commonAddr) each(fn func(p *replica.Pool)) {
	for class := range a.pools {
		for part := range a.pools[class] {
			fn(&a.pools[class][part])
		}
	}
}

// regroup puts an address into a group, 0 for none.
func (c *Common) regroup(a *commonAddr, group uint8, now int64) {
	if a.group == group {
		return
	}
	if c.groups[a.group].own {
		c.giveUp(a, now)
	}
	c.space.Foreign(a.id, group != 0 && !c.groups[group].own && c.groups[group].kept == 0)
	a.each(func(p *replica.Pool) { c.blocks.Exclude(p, c.groups[group].reserve.all) })
	a.taken = c.groups[group].own
	a.group = group // what the owner says of it may have come before this, and this node may have become the owner before it
	if g := &c.groups[group]; g.own && a.known != [addrWords]uint64{} {
		c.takes(a, false, true, now)
	} else if g.own && now < g.rests { // whoever had the group before may have had the address
		a.shut = g.rests
		c.rests = max(c.rests, a.shut)
	}
	c.closeAll(a)
}

func (c *Common) mark(slot uint32, early bool) {
	for _, p := range c.all {
		p.s.Mark(slot, early)
	}
}

// Slots is how many records there can be: of tenants, then blocks.
func (c *Common) Slots() uint32 {
	return uint32(len(c.tenants)*tenantSlots + len(c.addrs)*addrWords*64)
}

func (c *Common) blockSlot(block uint32) uint32 { return uint32(len(c.tenants)*tenantSlots) + block }

// Peer is the stream to a standby, made where there is none.
func (c *Common) Peer(name string, life, key uint64, stream, of uint8, lim replica.Limits) *replica.Sender {
	p := c.peers[name]
	if p == nil {
		p = &commonPeer{c: c, seqs: make([]uint64, len(c.addrs)*addrWords*64)}
		p.s = replica.NewSender(p, int(c.Slots()), stream, of, life, key, lim)
		c.peers[name] = p
		c.all = append(c.all, p)
	}
	return p.s
}

// Drop ends it. Who waits for that standby's word waits on until Guard says otherwise: it may count as in sync still, and a new stream know nothing of what it has acknowledged.
func (c *Common) Drop(name string) {
	c.all = slices.DeleteFunc(c.all, func(p *commonPeer) bool { return p == c.peers[name] })
	delete(c.peers, name)
}

// Guard says whether a standby may take a group over, or is about to: then a block has no mapping before that standby has acknowledged it. It is on before a copy is proposed to be in sync,
// and off after it is agreed on that it is not.
func (c *Common) Guard(group uint8, peer string, on bool) {
	g := &c.groups[group]
	if on == g.guard[peer] {
		return
	}
	if !on {
		delete(g.guard, peer)
		return
	}
	if g.guard == nil {
		g.guard = map[string]bool{}
	}
	g.guard[peer] = true
}

// GuardNow is Guard with the blocks of the group closed for it at once, a number of addresses from one on; next is where to go on until done. What a peer is sent of the group behind it has each
// block that may have mappings without its word.
func (c *Common) GuardNow(group uint8, peer string, from int, now int64) (next int, done bool) {
	c.now = now
	c.Guard(group, peer, true)
	guard := len(c.groups[group].guard) > 0
	to := min(from+addrsATurn, len(c.addrs))
	for _, a := range c.addrs[min(from, to):to] {
		if a != nil && a.group == group && c.groups[group].own {
			a.each(func(p *replica.Pool) { c.blocks.Step(p, guard, c.now, c.random()) })
		}
	}
	return to, to >= len(c.addrs)
}

// Settled reports whether a standby knows every block that may have mappings, and will know of those to come. A copy is whole only if so.
func (c *Common) Settled(group uint8, peer string) bool {
	p, g := c.peers[peer], &c.groups[group]
	if p == nil || !g.own || !g.guard[peer] {
		return false
	}
	settled := true
	for _, a := range c.addrs {
		if a != nil && a.group == group {
			a.each(func(pool *replica.Pool) { settled = settled && c.blocks.Settled(pool, p.known) })
		}
	}
	return settled
}

// Waits is how many pools of blocks of a group have none to give until a standby has acknowledged more: a new conversation may find no port meanwhile.
func (c *Common) Waits(group uint8) (n int) {
	for _, a := range c.addrs {
		if a != nil && a.group == group && c.groups[group].own {
			for class := range a.pools { // who finds no port below 1024 gets one above
				if c.blocks.Dry(&a.pools[class][1]) {
					n++
				}
			}
		}
	}
	return n
}

func (c *Common) hold() int64 { return int64(c.view.NATHold) << 20 }

// TakeOver notes that this node serves a group from now on, before it does. It is a matter of microseconds an address. Where it does not know all that was used, no new mapping is made for the hold time but
// in this node's reserve. forget: mappings that are copies may be somebody else's by now, so their sessions must end. Where none has to, serves is called, if it is not nil, before addresses are gone through: sessions
// that there are need nothing of it, and all blocks are closed until then.
func (c *Common) TakeOver(group uint8, epoch uint64, known Known, now int64, serves func()) (forget bool) {
	c.now = now
	g := &c.groups[group]
	if g.own && g.epoch == epoch || group == 0 {
		return false
	}
	again := (g.epoch != 0 && !g.unagreed && epoch <= g.epoch+1 || known.All && known.Here) && !known.Unagreed // nobody can have served in between
	g.own, g.epoch, g.kept, g.unagreed = true, epoch, 0, known.Unagreed
	clear(g.guard)
	for id := range c.tenants {
		if t := c.tenant(id); t != nil && t.Group != nil && t.Group.ID == group {
			c.count(t.ID) // what was not counted yet when it was given up, or came while it was nobody's, was counted here and is in nobody's sum
		}
	}
	if !again {
		g.reserve.end()
	}
	if serves != nil && (again || known.All) {
		serves()
	}
	hold := c.hold()
	for _, a := range c.addrs {
		if a == nil || a.group != group {
			continue
		}
		hold = max(hold, a.hold)
		c.takes(a, again, known.All, now)
	}
	for id := range c.tenants {
		if t := c.tenant(id); t != nil && t.Group != nil && t.Group.ID == group {
			c.mark(uint32(id*tenantSlots+rateRests), true)
		}
	}
	if again {
		return false
	}
	if !known.All && !c.blocks.Plant.StayOn { // also where no address is known yet
		g.rests = max(g.rests, now+hold)
	}
	if now < g.rests { // who knows what the one before knew needs its reserve as much as that one did
		g.reserve.begin()
		c.news = true
	}
	return !known.All && (known.Age < 0 || known.Age > hold)
}

// takes makes an address this node's. again: nobody can have had it in between. all: each block is known that may have mappings.
func (c *Common) takes(a *commonAddr, again, all bool, now int64) {
	if g := &c.groups[a.group]; !again {
		if !all && !c.blocks.Plant.StayOn {
			g.rests = max(g.rests, now+max(c.hold(), a.hold))
		}
		a.shut = max(a.shut, g.rests)
		c.rests = max(c.rests, a.shut)
	}
	defer func() {
		a.taken = true // not before: workers may serve the group, and words are opened one by one
		c.closeAll(a)
		c.space.Foreign(a.id, false) // behind it: until then there are no ports, and that is not the pool's fault
	}()
	base := uint32(int(a.id) * addrWords)
	if again {
		if now < a.rests {
			a.each(func(p *replica.Pool) { c.blocks.GoOn(p, func(w uint32) uint64 { return a.rested[w-base] }) })
		}
		return
	}
	a.rests = now + max(c.hold(), a.hold)
	a.early, a.sooner = [addrWords]uint64{}, min(a.ends, a.rests)
	c.rests = max(c.rests, a.rests)
	a.each(func(p *replica.Pool) {
		c.blocks.Takeover(p, func(w uint32) uint64 {
			m, idle := a.known[w-base], a.idle[w-base]
			if now < a.gone {
				m, idle = m|a.past[w-base], idle&^a.past[w-base]
			}
			_, used := p.Look(w)
			a.early[w-base] |= idle &^ used & p.Mask(w)
			return m
		})
	})
	a.known, a.idle, a.hold, a.ends = [addrWords]uint64{}, [addrWords]uint64{}, 0, 0
}

// Owns reports whether this node serves a group.
func (c *Common) Owns(group uint8) bool { return c.groups[group].own }

// Keep says that what rests of a group's ports in this node's tables may be its own still, although it does not serve the group: the process before has left it at the end of a term, and nobody is known to have had
// the group since. It holds until this node serves the group, or another one is the owner under a later epoch. 0 = it does not hold.
func (c *Common) Keep(group uint8, epoch uint64) {
	g := &c.groups[group]
	if g.own || group == 0 {
		return
	}
	g.kept = epoch
	for _, a := range c.addrs {
		if a != nil && a.group == group {
			c.space.Foreign(a.id, epoch == 0)
		}
	}
}

// GiveUp notes that it serves a group no more: another node is the owner, under that epoch, or will be.
func (c *Common) GiveUp(group uint8, epoch uint64, now int64) {
	g := &c.groups[group]
	if !g.own {
		if epoch > g.kept && g.kept > 0 { // else the term is the one that the process before had, and nothing is over yet
			c.Keep(group, 0)
		}
		return
	}
	for id := range c.tenants {
		if t := c.tenant(id); t != nil && t.Group != nil && t.Group.ID == group {
			c.count(t.ID)
		}
	}
	for _, a := range c.addrs {
		if a != nil && a.group == group {
			a.taken = false
			c.giveUp(a, now)
			c.space.Foreign(a.id, true)
		}
	}
	g.own = false
	for _, a := range c.addrs {
		if a != nil && a.group == group {
			c.closeAll(a)
		}
	}
	clear(g.guard)
}

func (c *Common) giveUp(a *commonAddr, now int64) {
	base := uint32(int(a.id) * addrWords)
	a.past, a.rested, a.gone = [addrWords]uint64{}, [addrWords]uint64{}, now+c.hold()
	a.each(func(p *replica.Pool) {
		c.blocks.GiveUp(p, func(w uint32, blocks, rests uint64) {
			a.past[w-base] |= blocks
			a.rested[w-base] |= rests
		})
	})
}

const (
	addrsATurn = 128                    // so that a turn with thousands of addresses is a matter of a millisecond too
	markEvery  = 100 * time.Millisecond // rates and counters are told so often
	emptyEvery = 500 * time.Millisecond // and so often it is looked whether reserves are unused
)

// Turn goes on: blocks that were acknowledged are opened, more are asked for, rates and counters that have changed are marked. Every ten milliseconds is often enough.
func (c *Common) Turn(now int64) {
	c.now = now
	if now-c.emptied >= int64(emptyEvery) {
		c.emptied = now
		c.empty(now)
	}
	busy := len(c.peers) > 0 || now < c.rests
	for i := range c.groups {
		busy = busy || len(c.groups[i].guard) > 0
	}
	switch {
	case busy:
		c.calm = 0
	case c.calm >= 2*len(c.addrs):
		return // nobody is told anything, and nothing is closed
	}
	for range min(len(c.addrs), addrsATurn) {
		if c.at++; c.at >= len(c.addrs) {
			c.at = 0
		}
		c.calm++
		a := c.addrs[c.at]
		if a == nil || !c.groups[a.group].own {
			continue
		}
		if a.shut != 0 && now >= a.shut {
			a.shut = 0
			c.closeAll(a)
		}
		guard := len(c.groups[a.group].guard) > 0
		a.each(func(p *replica.Pool) { c.blocks.Step(p, guard, c.now, c.random()) })
	}
	if len(c.peers) > 0 && now-c.marked >= int64(markEvery) {
		c.marked = now
		c.markTenants(now)
	}
}

func (c *Common) random() uint64 {
	c.rnd ^= c.rnd << 13
	c.rnd ^= c.rnd >> 7
	c.rnd ^= c.rnd << 17
	return c.rnd * 0x2545f4914f6cdd1d
}

func (c *Common) tenant(id int) *snapshot.Tenant {
	if c.view == nil || id >= len(c.view.Tenants) {
		return nil
	}
	return c.view.Tenants[id]
}

// words are the rates of a tenant that are told, with what they are of.
func words(t *snapshot.Tenant) (out [rateRests]struct {
	word *police.Word
	rate *police.Rate
}) {
	for d, at := range [2]int{meter.Out: rateOutBits, meter.In: rateInBits} {
		w, r := &t.Shared.Words[d], &t.Dir[d]
		out[at].word, out[at].rate = &w.Bits, &r.Bits
		out[at+1].word, out[at+1].rate = &w.Packets, &r.Packets
		out[at+2].word, out[at+2].rate = &w.Voice, &r.Voice
	}
	out[rateSessions].word, out[rateSessions].rate = &t.Shared.SessionRate, &t.SessionRate
	return out
}

// counted is what this node's workers have counted for a tenant.
func (c *Common) counted(id flow.TenantID) (n [numCounts]uint64) {
	for _, sh := range c.shards {
		for d := range meter.NumDirs {
			v := sh.Meter.Volume(id, d)
			n[countVolume+2*int(d)] += v.Packets
			n[countVolume+2*int(d)+1] += v.Bytes
		}
		for _, d := range []meter.Dir{meter.Out, meter.In} {
			v := sh.Meter.Offered(id, d)
			n[countOffered+2*int(d)] += v.Packets
			n[countOffered+2*int(d)+1] += v.Bytes
		}
	}
	if c.Carried != nil {
		for d := range meter.NumDirs {
			v := c.Carried(id, d)
			n[countVolume+2*int(d)] += v.Packets
			n[countVolume+2*int(d)+1] += v.Bytes
			if d != meter.Inside { // it takes none but what the rate lets pass
				n[countOffered+2*int(d)] += v.Packets
				n[countOffered+2*int(d)+1] += v.Bytes
			}
		}
	}
	if t := c.view.Tenant(id); t != nil {
		n[countCreated] = t.Shared.Created.Load()
	}
	return n
}

// count adds what this node's workers have counted for a tenant since it was last asked.
func (c *Common) count(id flow.TenantID) {
	t, n := &c.tenants[id], c.counted(id)
	for i := countCreated; i < numCounts; i++ {
		if n[i] < t.last[i] { // a worker has begun anew for another tenant of this number
			t.last[i] = 0
		}
		t.total[i] += n[i] - t.last[i]
		t.last[i] = n[i]
	}
}

// markTenants marks what has changed of tenants in groups that this node owns.
func (c *Common) markTenants(now int64) {
	for id := range c.tenants {
		t := c.tenant(id)
		if t == nil || t.Group == nil || !c.groups[t.Group.ID].own {
			continue
		}
		c.markTenant(id, t, now)
	}
}

func (c *Common) markTenant(id int, t *snapshot.Tenant, now int64) {
	c.count(t.ID)
	x := &c.tenants[id]
	for i, w := range words(t) {
		// A word that stands still is back at the standby as fast as here.
		if at := w.word.Load(); at != x.told[i] && w.rate.Ahead(w.word, uint64(now)) > 0 {
			x.told[i] = at
			c.mark(uint32(id*tenantSlots+i), false)
		}
	}
	for i := countCreated; i < numCounts; i++ {
		if x.total[i] != x.told[i] {
			x.told[i] = x.total[i]
			c.mark(uint32(id*tenantSlots+i), false)
		}
	}
}

// Count marks what was counted for the tenants of a group that this node serves, or has just served, up to now: nobody sends for it any more, so that is all, and goes with the last changes.
func (c *Common) Count(group uint8, now int64) {
	if !c.groups[group].own {
		return
	}
	c.now = now
	for id := range c.tenants {
		if t := c.tenant(id); t != nil && t.Group != nil && t.Group.ID == group {
			c.markTenant(id, t, now)
		}
	}
}

// Usage is what was counted for a tenant by all that have served it, one after the other.
type Usage struct {
	Volume  [meter.NumDirs]meter.Volume
	Offered [2]meter.Volume // by meter.Out, meter.In
	Created uint64
}

// Usage is that of a tenant. Of a tenant that another node serves, it is as that node has said.
func (c *Common) Usage(id flow.TenantID) (u Usage) {
	if int(id) >= len(c.tenants) {
		return u
	}
	if t := c.tenant(int(id)); t != nil && (t.Group == nil || c.groups[t.Group.ID].own) {
		c.count(id)
	}
	n := &c.tenants[id].total
	for d := range u.Volume {
		u.Volume[d] = meter.Volume{Packets: n[countVolume+2*d], Bytes: n[countVolume+2*d+1]}
	}
	for d := range u.Offered {
		u.Offered[d] = meter.Volume{Packets: n[countOffered+2*d], Bytes: n[countOffered+2*d+1]}
	}
	u.Created = n[countCreated]
	return u
}

// Peers lists the standbys.
func (c *Common) Peers() []string { return slices.Sorted(maps.Keys(c.peers)) }

// block is the address and the block of a slot.
func (c *Common) block(slot uint32) (a *commonAddr, class nat.Class, number uint16) {
	n := addrWords * 64
	if at := int(slot) / n; at < len(c.addrs) {
		a = c.addrs[at]
	}
	at := int(slot) % n
	return a, nat.Class(at / (nat.BlockWords * 64)), uint16(at % (nat.BlockWords * 64))
}

// known reports whether the standby has acknowledged that a block is open.
func (p *commonPeer) known(block uint32) bool {
	return p.seqs[block] != 0 && p.seqs[block] < p.s.Acked()
}

// Slots implements replica.Source.
func (p *commonPeer) Slots() uint32 { return p.c.Slots() }

// Look implements replica.Source.
func (p *commonPeer) Look(slot uint32) (l replica.Look) {
	c := p.c
	if first := c.blockSlot(0); slot >= first {
		slot -= first
		if a, _, _ := c.block(slot); a != nil {
			l.Gen, l.Early = c.blocks.Gen(slot), true
			if c.blocks.Told(slot) {
				l.Group = a.group
			}
		}
		return l
	}
	id, i := int(slot/tenantSlots), int(slot%tenantSlots)
	l.Gen = c.tenants[id].gen
	switch t := c.tenant(id); {
	case t == nil || t.Group == nil || i == rateRests && c.now >= c.groups[t.Group.ID].rests:
	case i < numRates, i >= countCreated && i < numCounts:
		l.Group = t.Group.ID
	}
	return l
}

// mostWords is through how many words Next looks at most.
const mostWords = 1 << 13

// Next implements replica.Sparse: of the blocks few are told, and a copy that looked at each of the others took a second for two hundred addresses.
func (p *commonPeer) Next(slot uint32) uint32 {
	first := p.c.blockSlot(0)
	if slot < first {
		return slot
	}
	return first + p.c.blocks.Next(slot-first, mostWords)
}

// Fill implements replica.Source.
func (p *commonPeer) Fill(slot uint32, r *replica.Record) { p.c.fill(slot, r) }

// fill describes what a slot is of, and what this node has of it.
func (c *Common) fill(slot uint32, r *replica.Record) {
	if first := c.blockSlot(0); slot >= first {
		a, class, n := c.block(slot - first)
		r.Kind, r.Tenant = replica.KindBlock, uint16(a.tenant)
		r.Block = replica.Block{Addr: c.space.Addr(a.id), Class: uint8(class), Number: n, Rest: milliseconds(c.hold())}
		free, _ := c.space.Look(a.id, class, int(n/64))
		if block := slot - first; c.blocks.Told(block) && c.blocks.Rests(block) && free>>(n&63)&1 != 0 {
			until := a.rests
			if a.early[block/64-uint32(int(a.id)*addrWords)]>>(n&63)&1 != 0 {
				until = a.sooner
			}
			r.Block.Held, r.Block.Rest = 1<<64-1, milliseconds(max(until-c.now, 0))
		}
		return
	}
	id, i := int(slot/tenantSlots), int(slot%tenantSlots)
	r.Tenant = uint16(id)
	if i >= countCreated {
		r.Kind, r.Count = replica.KindCount, replica.Count{Index: uint16(i), Value: c.tenants[id].total[i]}
		return
	}
	r.Kind, r.Rate = replica.KindRate, replica.Rate{Index: uint16(i)}
	if t := c.tenant(id); t != nil && t.Group != nil && i == rateRests {
		r.Rate.Ahead = uint64(max(c.groups[t.Group.ID].rests-c.now, 0))
	} else if t != nil {
		w := words(t)[i]
		r.Rate.Ahead = w.rate.Ahead(w.word, uint64(c.marked))
	}
}

func milliseconds(ns int64) uint32 { return uint32((ns + 1e6 - 1) / 1e6) }

// Name implements replica.Source.
func (p *commonPeer) Name(kind replica.NameKind, local uint16) string {
	return nameOf(p.c.view, kind, local)
}

// Wrote implements replica.Writer: what is written again in a further copy is known already.
func (p *commonPeer) Wrote(slot uint32, seq uint64) {
	if first := p.c.blockSlot(0); slot >= first && p.seqs[slot-first] == 0 {
		p.seqs[slot-first] = seq
	}
}

// Anew implements replica.Writer.
func (p *commonPeer) Anew() { clear(p.seqs) }

// commonShard is the number of no worker: places of Common are of it.
const commonShard = 255

// Local implements replica.Sink.
func (c *Common) Local(kind replica.NameKind, name string) (uint16, bool) {
	if t := c.view.TenantByName(name); t != nil && kind == replica.NameTenant {
		return uint16(t.ID), true
	}
	return 0, false
}

// Do is that of replica.Sink, with the time.
func (c *Common) Do(ops []replica.Op, ctx *replica.Context, now uint64) {
	for i := range ops {
		op := &ops[i]
		op.Outcome, op.Old, op.New = replica.Taken, 0, 0
		if op.Do == replica.Live {
			continue
		}
		if op.At != replica.NoPlace {
			if slot := op.At.Slot(); slot < c.Slots() && c.is(slot) {
				op.Old = ctx.Hash(c.read(slot))
				ctx.Release(op.At)
				c.drop(slot)
			}
			op.At = replica.NoPlace
		}
		if op.Do != replica.Put {
			continue
		}
		var slot uint32
		if slot, op.Outcome = c.put(&op.Rec, now); op.Outcome != replica.Taken {
			continue
		}
		at := replica.PlaceAt(commonShard, slot, 0)
		if ctx.Claimed(at) {
			op.Outcome = replica.Conflict
			continue
		}
		op.At = at
		ctx.Claim(at)
		op.New = ctx.Hash(c.read(slot))
	}
}

func (c *Common) read(slot uint32) *replica.Record {
	var r replica.Record
	c.fill(slot, &r)
	return &r
}

// is reports whether a place is one that a record can have here.
func (c *Common) is(slot uint32) bool {
	if first := c.blockSlot(0); slot >= first {
		a, _, _ := c.block(slot - first)
		return a != nil
	}
	return true
}

func (a *commonAddr) forget(w int, m uint64) {
	a.known[w] &^= m
	a.idle[w] &^= m
}

// drop forgets a block that the owner has not open any more. Rates and counters stay as they are: they are not less for not being told.
func (c *Common) drop(slot uint32) {
	if first := c.blockSlot(0); slot >= first {
		a, _, _ := c.block(slot - first)
		w := slot - first
		a.forget(int(w/64)-int(a.id)*addrWords, 1<<(w&63))
	}
}

// put takes in what the owner says.
func (c *Common) put(r *replica.Record, now uint64) (slot uint32, out replica.Outcome) {
	id := int(r.Tenant)
	t := c.tenant(id)
	if t == nil || id >= len(c.tenants) {
		return 0, replica.NoTenant
	}
	if t.Group == nil || t.Group.ID != r.Group { // who owns a group has no say in what is not in it here
		return 0, replica.NoTenant
	}
	switch r.Kind {
	case replica.KindBlock:
		b := &r.Block
		if int(b.Class) >= nat.NumClasses || int(b.Number) >= nat.BlockWords*64 {
			return 0, replica.Malformed
		}
		var pub flow.Addr
		copy(pub[:], b.Addr[:])
		p := publicOf(c.view, &pub)
		if p == nil || int(p.Tenant) != id || !p.Dynamic || int(p.ID) >= len(c.addrs) || c.addrs[p.ID] == nil {
			return 0, replica.NoTenant // this node's policy gives the address to somebody else
		}
		a := c.addrs[p.ID]
		w := int(b.Class)*nat.BlockWords + int(b.Number/64)
		bit, rest := uint64(1)<<(b.Number&63), int64(min(b.Rest, maxRest))*int64(time.Millisecond)
		a.forget(w, bit)
		if a.known[w] |= bit; b.Held == 1<<64-1 {
			a.idle[w] |= bit
			a.ends = max(a.ends, int64(now)+rest)
		} else {
			a.hold = max(a.hold, rest)
		}
		return c.blockSlot(uint32((int(a.id)*addrWords+w)*64 + int(b.Number&63))), replica.Taken
	case replica.KindRate:
		i := int(r.Rate.Index)
		if i >= numRates {
			return 0, replica.NotKnown
		}
		switch {
		case i == rateRests: // also of who was the owner before this node: it is no less true
			g := &c.groups[t.Group.ID]
			g.rests = max(g.rests, int64(now)+int64(min(r.Rate.Ahead, maxRest*uint64(time.Millisecond))))
		case !c.groups[t.Group.ID].own:
			w := words(t)[i]
			w.rate.Raise(w.word, now, r.Rate.Ahead)
		}
		return uint32(id*tenantSlots + i), replica.Taken
	case replica.KindCount:
		i := int(r.Count.Index)
		if i < countCreated || i >= numCounts {
			return 0, replica.NotKnown
		}
		if !c.groups[t.Group.ID].own {
			x := &c.tenants[id]
			x.total[i] = max(x.total[i], r.Count.Value) // what this node counted last as the owner was not told, and is no less true
		}
		return uint32(id*tenantSlots + i), replica.Taken
	}
	return 0, replica.NotKnown
}

// maxRest is the longest hold time of a policy, in ms: what a peer says is not believed beyond that.
const maxRest = 3600 * 1000

// Lost implements replica.Sink.
func (c *Common) Lost() uint64 { return c.lost }

// Sweep implements replica.Sink.
func (c *Common) Sweep(group uint8, keep func(replica.Place) bool) {
	for _, a := range c.addrs {
		if a == nil || a.group != group {
			continue
		}
		for w := range a.known {
			for m := a.known[w]; m != 0; m &= m - 1 {
				slot := c.blockSlot(uint32((int(a.id)*addrWords+w)*64 + bits.TrailingZeros64(m)))
				if !keep(replica.PlaceAt(commonShard, slot, 0)) {
					a.forget(w, m&-m)
				}
			}
		}
	}
}
