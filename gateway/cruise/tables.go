package cruise

import (
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"demarc/gateway/conntrack"
	"demarc/gateway/cruise/bpf"
	"demarc/gateway/flow"
	"demarc/gateway/lease"
	"demarc/gateway/nat"
	"demarc/gateway/police"
	"demarc/gateway/snapshot"
)

// SessionUnit is what the number of a worker's sessions must be a multiple of: so many fill a page, and each worker maps its own part.
const SessionUnit = pageSize / conntrack.SessionSize

const pageSize = 4096

// Config says how large the tables are. They do not grow.
type Config struct {
	Seeds      []uint64 // of each worker's session table
	Sessions   int      // of each worker, a multiple of SessionUnit
	Ports      int
	Interfaces int // the highest index
	Tenants    int // the highest id
	Hops       int
	Ahead      int64 // of the kernel's CLOCK_BOOTTIME, ns: that of the process may be in a time namespace
	Deadlines  int   // descriptor of the table of deadlines that there is already (xsk); 0 = one of its own
}

// Tables are BPF arrays in memory that the process and the program have in common.
type Tables struct {
	cfg    Config
	cpus   int // that may be
	stride int // lines from one worker's index to the next
	maps   map[string]*ebpf.Map
	memory [][]byte // all that is mapped

	outer, inner *ebpf.Map // see Settle

	sessionMem [][]byte
	workers    []worker
	marks      []mark
	hops       []hop
	ifaces     []iface
	vlans      []uint64
	tenants    []tenant
	idents     []uint64 // by worker, nat.WholeWords each
	deadlines  *lease.Deadlines

	begun   atomic.Uint32 // how often Settle was called
	settled atomic.Uint32 // the highest of these calls, counted from 1, that has returned, and not in vain
	resting atomic.Int64  // slots, of all workers
	called  []uint32      // as marks: begun behind the last calling back of a session that was handed down, and 1; 0 = there was none. Each worker's own
	rested  []rests       // by worker
}

// rests are the slots that a worker keeps from use, the oldest first.
type rests struct {
	list []rest
	next int
}

type rest struct{ slot, since uint32 }

// Open makes the tables. Nothing is handed down, no hop may be used, and no worker is fed: a program with them carries nothing.
func Open(c Config) (t *Tables, err error) {
	n := len(c.Seeds)
	switch {
	case unix.Getpagesize() != pageSize:
		return nil, fmt.Errorf("cruise tables: pages of %d bytes, want %d", unix.Getpagesize(), pageSize)
	case n < 1 || n > MaxWorkers:
		return nil, fmt.Errorf("cruise tables: %d workers, want 1 to %d", n, MaxWorkers)
	case c.Sessions < 1 || c.Sessions%SessionUnit != 0 || c.Sessions > conntrack.MaxCapacity/n:
		return nil, fmt.Errorf("cruise tables: %d sessions for each of %d workers, want a multiple of %d and no more than %d in all", c.Sessions, n, SessionUnit, conntrack.MaxCapacity)
	case c.Ports < 1 || c.Ports > math.MaxUint16 || c.Interfaces < 1 || c.Interfaces > math.MaxUint16 || c.Tenants < 1 || c.Tenants > math.MaxUint16 || c.Hops < 1:
		return nil, fmt.Errorf("cruise tables: %d ports, %d interfaces, %d tenants, %d hops: want 1 to 65535 of each", c.Ports, c.Interfaces, c.Tenants, c.Hops)
	}
	spec, err := bpf.LoadCruise()
	if err != nil {
		return nil, err
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("cruise tables: %w", err)
	}
	t = &Tables{cfg: c, cpus: cpus, stride: pages(conntrack.Lines(c.Sessions)*lineSize) / lineSize, maps: map[string]*ebpf.Map{}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("cruise tables: %w", err), t.Close())
			t = nil
		}
	}()
	for name, size := range map[string]int{
		bpf.CruiseMapSessions: n * c.Sessions, bpf.CruiseMapBuckets: n * t.stride, bpf.CruiseMapMarks: n * c.Sessions, bpf.CruiseMapWorkers: n,
		bpf.CruiseMapHops: c.Hops, bpf.CruiseMapIfaces: c.Interfaces + 1, bpf.CruiseMapVlans: c.Ports * vlansOf, bpf.CruiseMapTenants: c.Tenants + 1,
		bpf.CruiseMapDeadlines: len(lease.Deadlines{}), bpf.CruiseMapVolumes: (c.Tenants + 1) * figures, bpf.CruiseMapSent: c.Ports, bpf.CruiseMapDevices: c.Ports, bpf.CruiseMapIdents: n * nat.WholeWords,
	} {
		m := spec.Maps[name].Copy()
		m.MaxEntries = uint32(size)
		if name == bpf.CruiseMapDeadlines && c.Deadlines != 0 {
			if t.maps[name], err = theirs(c.Deadlines); err != nil {
				return t, fmt.Errorf("take over the table of deadlines: %w", err)
			}
			continue
		}
		if t.maps[name], err = ebpf.NewMap(m); err != nil {
			return t, fmt.Errorf("make %s of %d: %w", name, size, err)
		}
	}
	for w := range n {
		mem, err := t.mapSessions(w)
		if err != nil {
			return t, fmt.Errorf("map the sessions of worker %d: %w", w, err)
		}
		t.sessionMem = append(t.sessionMem, mem)
	}
	for _, err := range []error{
		lay(t, bpf.CruiseMapWorkers, &t.workers, n), lay(t, bpf.CruiseMapMarks, &t.marks, n*c.Sessions), lay(t, bpf.CruiseMapHops, &t.hops, c.Hops),
		lay(t, bpf.CruiseMapIfaces, &t.ifaces, c.Interfaces+1), lay(t, bpf.CruiseMapVlans, &t.vlans, c.Ports*vlansOf), lay(t, bpf.CruiseMapTenants, &t.tenants, c.Tenants+1),
		lay(t, bpf.CruiseMapIdents, &t.idents, n*nat.WholeWords),
	} {
		if err != nil {
			return t, err
		}
	}
	var d []lease.Deadlines
	if err = lay(t, bpf.CruiseMapDeadlines, &d, 1); err != nil {
		return t, err
	}
	t.deadlines = &d[0]
	t.called, t.rested = make([]uint32, n*c.Sessions), make([]rests, n)
	for w, seed := range c.Seeds {
		x := &t.workers[w]
		x.seed, x.idents = seed, uint32(w*nat.WholeWords)
		x.ident, x.identMask = nat.WholeShare(w, n)
	}
	one := &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}
	if t.inner, err = ebpf.NewMap(one); err != nil {
		return t, fmt.Errorf("make a map to settle by: %w", err)
	}
	if t.outer, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: one}); err != nil {
		return t, fmt.Errorf("make a map of maps to settle by: %w", err)
	}
	return t, nil
}

// theirs is a map that somebody else has made and goes on using.
func theirs(fd int) (*ebpf.Map, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return ebpf.NewMapFromFD(own)
}

const lineSize = 64

func pages(n int) int { return (n + pageSize - 1) &^ (pageSize - 1) }

// lay maps an array of n elements and lays *to over it.
func lay[E any](t *Tables, name string, to *[]E, n int) error {
	var e E
	size := n * int(unsafe.Sizeof(e))
	if one := int(t.maps[name].ValueSize()); one%8 != 0 || one != size/n && name != bpf.CruiseMapDeadlines {
		return fmt.Errorf("map %s: %d bytes each, want %d", name, one, size/n)
	}
	mem, err := unix.Mmap(t.maps[name].FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %s: %w", name, err)
	}
	t.memory = append(t.memory, mem)
	*to = unsafe.Slice((*E)(unsafe.Pointer(&mem[0])), n)
	return nil
}

// mapSessions lays the two parts of a worker's table side by side, as conntrack.New wants them: sessions and index are parts of the two arrays, each of whole pages. Deadlines
// of sessions come behind the index: in the rest of its last page, where the program never looks, and in memory of the process's own.
func (t *Tables) mapSessions(w int) ([]byte, error) {
	sessions, index := t.cfg.Sessions*conntrack.SessionSize, t.stride*lineSize
	mem, err := unix.Mmap(-1, 0, max(pages(conntrack.Bytes(t.cfg.Sessions)), sessions+index), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	t.memory = append(t.memory, mem) // what is mapped over it goes with it
	for _, p := range []struct {
		name     string
		at, size int
	}{{bpf.CruiseMapSessions, 0, sessions}, {bpf.CruiseMapBuckets, sessions, index}} {
		if _, err := unix.MmapPtr(t.maps[p.name].FD(), int64(w*p.size), unsafe.Pointer(&mem[p.at]), uintptr(p.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return mem, nil
}

// Close unmaps and closes everything. Programs that are loaded keep the arrays, as they stand. Idempotent.
func (t *Tables) Close() error {
	var errs []error
	for _, m := range t.memory {
		errs = append(errs, unix.Munmap(m))
	}
	for _, m := range t.maps {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	for _, m := range []*ebpf.Map{t.outer, t.inner} {
		errs = append(errs, m.Close()) // also of nil
	}
	*t = Tables{}
	return errors.Join(errs...)
}

// Idents are what a worker and the program name whole packets by, for pipeline.Config.
func (t *Tables) Idents(w int) *[nat.WholeWords]uint64 {
	return (*[nat.WholeWords]uint64)(t.idents[w*nat.WholeWords:])
}

// SessionMem is the memory of a worker's session table, for pipeline.Config.
func (t *Tables) SessionMem(w int) []byte { return t.sessionMem[w] }

// Deadlines is until when this node serves each group.
func (t *Tables) Deadlines() *lease.Deadlines { return t.deadlines }

// Words are the rate words of a tenant: a View's Shared.Words points here.
func (t *Tables) Words(id flow.TenantID) *[2]police.Words { return &t.tenants[id].words }

// Feed says until when a worker looks after its sessions. The worker says so itself, after each turn.
func (t *Tables) Feed(w int, until uint64) { t.workers[w].until.Store(until) }

// Watch has all packets of a worker's sessions go up, or no longer, because the worker wants to see them. Worker only.
func (t *Tables) Watch(w int, up bool) { t.workers[w].up.Store(word(up)) }

// Hold has all packets of all workers' sessions go up, or no longer, whatever they themselves want. What is under way is settled by Settle. Control only.
func (t *Tables) Hold(up bool) {
	for w := range t.workers {
		t.workers[w].held.Store(word(up))
	}
}

func word(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

// SetGen says what ViewGen the sessions of a worker have that may be carried (pipeline.Shard.Gen).
func (t *Tables) SetGen(w int, gen uint32) { t.workers[w].gen.Store(gen) }

// SetDevice says which device a port is; 0 = none.
func (t *Tables) SetDevice(port uint16, ifindex int) error {
	if ifindex == 0 {
		if err := t.maps[bpf.CruiseMapDevices].Delete(uint32(port)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("take device out of port %d: %w", port, err)
		}
		return nil
	}
	if err := t.maps[bpf.CruiseMapDevices].Put(uint32(port), uint32(ifindex)); err != nil {
		return fmt.Errorf("set device %d of port %d: %w", ifindex, port, err)
	}
	return nil
}

// SetView writes interfaces and tenants. No program may be carrying meanwhile: each worker is held, and Settle has returned since.
func (t *Tables) SetView(v *snapshot.View) error {
	if len(v.Ifaces) > len(t.ifaces) || len(v.Tenants) > len(t.tenants) {
		return fmt.Errorf("cruise tables: %d interfaces and %d tenants, with room for %d and %d", len(v.Ifaces), len(v.Tenants), len(t.ifaces), len(t.tenants))
	}
	clear(t.vlans)
	clear(t.ifaces)
	for i := range v.Ifaces[1:] {
		f := &v.Ifaces[1+i]
		if int(f.Port) >= t.cfg.Ports || f.VLAN >= vlansOf {
			return fmt.Errorf("cruise tables: interface %s on port %d, VLAN %d, with room for %d ports", f.Name, f.Port, f.VLAN, t.cfg.Ports)
		}
		if !f.Used {
			continue
		}
		x := &t.ifaces[f.Index]
		x.mac, x.zone, x.used = f.MAC, uint16(f.Zone), 1
		for _, p := range f.Groups {
			if p.Group.Virtual {
				x.here[p.Group.ID/64] |= 1 << (p.Group.ID % 64)
			}
		}
		t.vlans[int(f.Port)*vlansOf+int(f.VLAN)] = uint64(f.Index)
	}
	for _, id := range v.Fresh { // the id has gone to another tenant
		for n := range uint32(figures) {
			if err := t.maps[bpf.CruiseMapVolumes].Put(uint32(id)*figures+n, make([]volume, t.cpus)); err != nil {
				return fmt.Errorf("cruise tables: begin to count anew for tenant %d: %w", id, err)
			}
		}
	}
	for id := range t.tenants {
		x, of := &t.tenants[id], v.Tenant(flow.TenantID(id))
		if of == nil {
			x.used = 0
			continue
		}
		x.used, x.group, x.voice = 1, groupID(of.Group), of.VoiceDSCP
		for d := range x.rates {
			l := &of.Dir[d]
			x.rates[d] = [3]police.Numbers{l.Bits.Numbers(), l.Packets.Numbers(), l.Voice.Numbers()}
		}
	}
	return nil
}

func groupID(g *snapshot.Group) uint8 {
	if g == nil {
		return 0
	}
	return g.ID
}

// Hop is how frames leave towards one neighbour.
type Hop struct {
	Port, VLAN uint16
	MTU        int // IP bytes
	Dst, Src   [6]byte
}

// SetHop makes hop n lead elsewhere, and its generation another one: whatever was handed down with it goes up from now on.
func (t *Tables) SetHop(n int, h Hop, gen uint32) error {
	if n < 0 || n >= len(t.hops) || gen == 0 || int(h.Port) >= t.cfg.Ports || h.VLAN >= vlansOf-1 || h.MTU < 0 || h.MTU > math.MaxUint16 || gen == t.hops[n].gen.Load() {
		return fmt.Errorf("cruise tables: hop %d of %d: %+v, generation %d", n, len(t.hops), h, gen)
	}
	x := &t.hops[n]
	x.gen.Store(0)
	x.port, x.vlan, x.mtu, x.dst, x.src = h.Port, h.VLAN, uint16(h.MTU), h.Dst, h.Src
	x.gen.Store(gen)
	return nil
}

// DropHop has nothing leave by a hop any more.
func (t *Tables) DropHop(n int) { t.hops[n].gen.Store(0) }

// Way is a hop as it stands: its generation << 32 | its number.
type Way uint64

// Way is hop n as it stands now.
func (t *Tables) Way(n uint32) Way { return Way(uint64(t.hops[n].gen.Load())<<32 | uint64(n)) }

// Note says that a session is to be handed down with a batch: Begin, and then HandDown or HandDownNow. It is false where that is known, and where nothing hinders it in the batch before, which is under way:
// that one waits for the packet behind which it would be noted. Worker only.
func (t *Tables) Note(w int, slot uint32, se *conntrack.Session, batch uint16, under bool) bool {
	m := &t.marks[w*t.cfg.Sessions+int(slot)]
	d := m.down.Load()
	is := markTry | uint64(batch)<<markBatch | uint64(se.Gen)
	if uint32(d) == se.Gen {
		is |= d & markDown
		if d&markTry != 0 {
			of, tries := uint16(d>>markBatch), d>>markTries&0xff
			part := under && of == batch-1
			if of == batch || part && d&markUp == 0 {
				return false
			}
			if part {
				tries = min(tries+1, mostTries)
			}
			is |= tries << markTries
		}
	}
	m.down.Store(is)
	return true
}

// Begin has packets of a noted session that go up from now on hinder HandDown. What has gone up before, as the counts of queues say that are looked at after it, must have left before that. False: it
// is not to be handed down with this batch any more. Worker only.
func (t *Tables) Begin(w int, slot uint32, batch uint16) bool {
	m := &t.marks[w*t.cfg.Sessions+int(slot)]
	d := m.down.Load()
	if d&markTry == 0 || uint16(d>>markBatch) != batch {
		return false
	}
	m.down.Store(d &^ markUp)
	return true
}

// HandDown has the program carry a session of worker w, which was begun with the batch; ways are those of both directions. The session must suit, and be looked at after the ways were: what changes
// about them afterwards changes their generation. It is false where a packet has gone up since Begin, with how often that was so, now too; or, with 0, where the session is another one or
// is called back. One that has been noted again since has been hindered. Worker only.
func (t *Tables) HandDown(w int, slot uint32, se *conntrack.Session, ways [2]Way, batch uint16) (tries int, ok bool) {
	m := &t.marks[w*t.cfg.Sessions+int(slot)]
	d := m.down.Load()
	if d&markTry == 0 || uint32(d) != se.Gen {
		return 0, false
	}
	switch uint16(d >> markBatch) {
	case batch:
	case batch + 1:
		return int(d >> markTries & 0xff), false
	default:
		return 0, false
	}
	for dir, n := range ways { // nobody goes by them yet
		m.way[dir].Store(uint64(n))
	}
	if d&markUp == 0 && m.down.CompareAndSwap(d, markDown|uint64(se.Gen)) {
		return 0, true
	}
	for {
		d = m.down.Load()
		tries := min(d>>markTries&0xff+1, mostTries)
		if m.down.CompareAndSwap(d, d&^(0xff<<markTries)|tries<<markTries) { // a program may mark it meanwhile
			return int(tries), false
		}
	}
}

// HandDownNow is HandDown whatever has gone up: that may be passed by. Worker only.
func (t *Tables) HandDownNow(w int, slot uint32, se *conntrack.Session, ways [2]Way) {
	m := &t.marks[w*t.cfg.Sessions+int(slot)]
	m.down.Store(0)
	for dir, n := range ways {
		m.way[dir].Store(uint64(n))
	}
	m.down.Store(markDown | uint64(se.Gen))
}

// Down reports whether a session is handed down, also where packets of it go up for the moment. Worker only.
func (t *Tables) Down(w int, slot uint32, se *conntrack.Session) bool {
	d := t.marks[w*t.cfg.Sessions+int(slot)].down.Load()
	return d&markDown != 0 && uint32(d) == se.Gen
}

// Stands reports whether a session is handed down, by ways that lead there still, and none of its packets has gone up since. Worker only.
func (t *Tables) Stands(w int, slot uint32, se *conntrack.Session) bool {
	m := &t.marks[w*t.cfg.Sessions+int(slot)]
	if m.down.Load() != markDown|uint64(se.Gen) {
		return false
	}
	for dir := range m.way {
		if x := Way(m.way[dir].Load()); x>>32 == 0 || t.Way(uint32(x)) != x {
			return false
		}
	}
	return true
}

// Settle returns when no program is under way any more that began before: what was called back, held or dropped until then is so for every packet. The kernel waits for a
// grace period before an update of a map of maps returns (maybe_wait_bpf_programs), because its caller wants to know the same. It takes some milliseconds, so
// one call is for many sessions; any goroutine.
func (t *Tables) Settle() error {
	n := t.begun.Add(1)
	if err := t.outer.Put(uint32(0), t.inner); err != nil {
		return fmt.Errorf("wait for cruise programs under way: %w", err)
	}
	for {
		was := t.settled.Load()
		if int32(n-was) <= 0 || t.settled.CompareAndSwap(was, n) {
			return nil
		}
	}
}

// CallBack has packets of a session go up again. One that is under way may still leave, until Settle. Worker only.
func (t *Tables) CallBack(w int, slot uint32) {
	i := w*t.cfg.Sessions + int(slot)
	if d := t.marks[i].down.Load(); d != 0 {
		t.marks[i].down.Store(0)
		if d&markDown != 0 {
			t.called[i] = t.begun.Load() + 1 // behind the store: a call of Settle that is not counted yet comes behind it
		}
	}
}

// Rest reports whether a slot whose session has ended must not have another one yet: a program may be under way with a packet of a session there that was called back not long ago, and writes its numbers and counters at the end. The slot
// comes back by Rested. Worker only.
func (t *Tables) Rest(w int, slot uint32) bool {
	since := t.called[w*t.cfg.Sessions+int(slot)]
	if since == 0 || t.through(since-1) {
		return false
	}
	r := &t.rested[w]
	r.list = append(r.list, rest{slot, since - 1})
	t.resting.Add(1)
	return true
}

// through reports whether a call of Settle that came behind the first so many has returned.
func (t *Tables) through(since uint32) bool { return int32(t.settled.Load()-since) > 0 }

// Rested is a slot that has rested for long enough, if there is one: Settle has begun and returned since. Worker only.
func (t *Tables) Rested(w int) (slot uint32, ok bool) {
	r := &t.rested[w]
	if r.next == len(r.list) || !t.through(r.list[r.next].since) {
		return 0, false
	}
	slot = r.list[r.next].slot
	if r.next++; r.next == len(r.list) {
		r.list, r.next = r.list[:0], 0
	} else if r.next >= 4096 && r.next > len(r.list)/2 {
		r.list, r.next = r.list[:copy(r.list, r.list[r.next:])], 0
	}
	t.resting.Add(-1)
	return slot, true
}

// Resting is how many slots rest, of all workers. Somebody has to Settle while there are any; any goroutine.
func (t *Tables) Resting() int { return int(t.resting.Load()) }

// Suits reports whether the program can carry a session as the pipeline would: all that it does not ask itself. It must have been judged under v.
func Suits(v *snapshot.View, se *conntrack.Session) bool {
	t := v.Tenant(se.Tenant)
	if t == nil || t.HostRates || se.Flags&(conntrack.FlagReplied|conntrack.FlagUnanswered) != conntrack.FlagReplied {
		return false // limits of single hosts are the worker's alone; who is not answered is counted
	}
	if se.Proto != flow.UDP && (se.Proto != flow.TCP || se.State != conntrack.TCPEstablished) {
		return false
	}
	for _, nh := range se.NextHop {
		// What goes round by an address of ours comes from another interface than its next hop says, or from none.
		if nh == snapshot.NoHop || v.Hop(nh).Kind != snapshot.HopForward || v.Leave(nh) {
			return false
		}
	}
	return true
}
