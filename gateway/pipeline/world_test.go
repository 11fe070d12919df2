package pipeline

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"demarc/configs"
	"demarc/gateway/conntrack"
	"demarc/gateway/fib"
	"demarc/gateway/flow"
	"demarc/gateway/lease"
	"demarc/gateway/meter"
	"demarc/gateway/nat"
	"demarc/gateway/packet"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

// world is several shards with one Space between them, as the workers of a node have it, driven packet by packet: what is handed over
// or goes round by a public address is followed to its end.
type world struct {
	t      testing.TB
	node   *configs.Node
	space  *nat.Space
	neigh  *fib.Neighbors
	view   *snapshot.View
	shards []*Shard
	until  *lease.Deadlines
	now    uint64
	buf    [2048]byte
	slots  [1]Slot

	passed, dropped uint64 // verdicts given
	kept            uint64 // fragments that the pipeline has a copy of
}

// always is those of a node that serves every group.
func always() *lease.Deadlines {
	var d lease.Deadlines
	for i := range d {
		d.Write(uint8(i), 1, 1<<64-1)
	}
	return &d
}

// arrival is a frame that somebody has to process.
type arrival struct {
	worker, port             int
	looped, handed, gathered bool
	frame                    []byte
}

func newWorld(t testing.TB, workers int, policy string) *world {
	t.Helper()
	node, err := configs.DecodeNode("node.toml", []byte(testNode))
	if err != nil {
		t.Fatal(err)
	}
	node.Workers.Count = workers
	w := &world{t: t, node: node, space: nat.NewSpace(96), neigh: fib.NewNeighbors(4096, 1), until: always(), now: 1e12}
	w.view = compileView(t, node, w.space, nil, policy)
	for _, f := range w.view.Ifaces[1:] {
		for _, p := range f.Addrs {
			a := p.Masked().Addr()
			for range 256 {
				fa := flow.AddrFrom(a)
				if err := w.neigh.Set(f.Index, map[bool]uint8{true: 4, false: 6}[a.Is4()], &fa, hostMAC, fib.Permanent, 0); err != nil {
					t.Fatal(err)
				}
				a = a.Next()
			}
		}
	}
	for i := range workers {
		const n = 4096
		sh, err := NewShard(Config{Worker: i, SessionMem: make([]byte, conntrack.Bytes(n)+64), Sessions: n, NATMem: make([]byte, nat.Bytes(n)+64), Mappings: n, PermitMem: make([]byte, nat.PermitBytes(n)+64),
			Tenants: snapshot.MaxTenantID(node), ShaperMax: 64, Seed: uint64(i) + 42, Space: w.space, Neighbors: w.neigh, Deadlines: w.until})
		if err != nil {
			t.Fatal(err)
		}
		sh.SetView(w.view)
		for _, g := range w.view.Groups() {
			sh.TakeOver(g.ID)
		}
		w.shards = append(w.shards, sh)
	}
	return w
}

// follows makes the node a standby of all groups.
func (w *world) follows() {
	for _, sh := range w.shards {
		for _, g := range w.view.Groups() {
			sh.GiveUp(g.ID)
		}
	}
}

// takesOver makes it serve them.
func (w *world) takesOver() {
	for _, sh := range w.shards {
		sh.setNow(w.now)
		for _, g := range w.view.Groups() {
			sh.TakeOver(g.ID)
		}
	}
}

// hop is what one Process made of a frame.
type hop struct {
	worker  int
	verdict verdict.Verdict
	reason  verdict.Reason
	tenant  flow.TenantID
	port    uint16
	frame   []byte
}

// carry brings a frame in on a port at a worker and follows it. The last hop is what became of it.
func (w *world) carry(worker, port int, looped, handed bool, frame []byte) (hops []hop) {
	w.t.Helper()
	return w.arrive(arrival{worker, port, looped, handed, false, frame})
}

func (w *world) arrive(a arrival) (hops []hop) {
	w.t.Helper()
	worker, port, looped, handed, gathered, frame := a.worker, a.port, a.looped, a.handed, a.gathered, a.frame
	for range 8 {
		s := &w.slots[0]
		*s = Slot{Port: uint16(port), Looped: looped, Handed: handed, Gathered: gathered, Verdict: 99}
		s.Buf, s.Off, s.Len = w.buf[:], 256, copy(w.buf[256:], frame)
		w.shards[worker].Process(w.slots[:], w.now)
		w.sound(s)
		h := hop{worker: worker, verdict: s.Verdict, reason: s.Reason, tenant: s.Tenant, port: s.OutPort, frame: append([]byte(nil), s.Frame()...)}
		hops = append(hops, h)
		switch s.Verdict {
		case verdict.Hand:
			if handed || gathered && s.Gathered || int(s.Home) == worker || int(s.Home) >= len(w.shards) {
				w.t.Fatalf("worker %d hands to %d (handed already: %v)", worker, s.Home, handed)
			}
			worker, handed, gathered, frame = int(s.Home), !s.Gathered, s.Gathered, h.frame
		case verdict.Loop:
			if looped {
				w.t.Fatal("went round twice")
			}
			w.passed++
			looped, handed, gathered, port, frame = true, false, false, 0, h.frame
		case verdict.Drop:
			w.dropped++
			return append(hops, w.late()...)
		case verdict.Punt:
			return hops
		case verdict.Keep:
			w.kept++
			return hops
		case verdict.Cut:
			hops = append(hops[:len(hops)-1], w.cut(worker, s)...)
			return append(hops, w.late()...)
		default:
			w.passed++
			return append(hops, w.late()...)
		}
	}
	w.t.Fatalf("no end: %+v", hops)
	return nil
}

// cut makes the pieces of a slot and sends them.
func (w *world) cut(worker int, s *Slot) (hops []hop) {
	w.t.Helper()
	for from, more := 0, true; more; {
		pieces := []Slot{{}}
		pieces[0].Buf = make([]byte, len(w.buf))
		next, ok := w.shards[worker].Piece(s, &pieces[0], from, 256)
		if !ok {
			w.dropped++
			return append(hops, hop{worker: worker, verdict: verdict.Drop, reason: verdict.TooBig, tenant: s.Tenant})
		}
		w.shards[worker].SendPieces(pieces)
		p := &pieces[0]
		w.sound(p)
		if p.Verdict == verdict.Drop {
			w.dropped++
		} else {
			w.passed++
		}
		hops = append(hops, hop{worker: worker, verdict: p.Verdict, reason: p.Reason, tenant: p.Tenant, port: p.OutPort, frame: append([]byte(nil), p.Frame()...)})
		from, more = next, next != 0
	}
	return hops
}

// late carries the fragments that wait no longer.
func (w *world) late() (hops []hop) {
	w.t.Helper()
	for i, sh := range w.shards {
		for sh.Ready() > 0 {
			s := Slot{}
			s.Buf = make([]byte, len(w.buf))
			if !sh.Fetch(&s, 256) {
				w.t.Fatal("a fragment was ready and is not")
			}
			w.kept--
			hops = append(hops, w.arrive(arrival{i, int(s.Port), s.Looped, s.Handed, s.Gathered, append([]byte(nil), s.Frame()...)})...)
		}
	}
	return hops
}

// sound checks what holds for every slot after Process.
func (w *world) sound(s *Slot) {
	w.t.Helper()
	switch s.Verdict {
	case verdict.Drop:
		if s.Reason == verdict.Unset || s.Reason == verdict.Pass || s.Reason >= verdict.NumReasons {
			w.t.Fatalf("dropped for %s", s.Reason)
		}
	case verdict.Send, verdict.Queue, verdict.Hand, verdict.Loop, verdict.Punt, verdict.Neighbor, verdict.Keep, verdict.Cut:
	default:
		w.t.Fatalf("verdict %d (%s)", s.Verdict, s.Verdict)
	}
	if s.Off < 0 || s.Len < 0 || s.Off+s.Len > len(s.Buf) || len(s.Buf) != len(w.buf) {
		w.t.Fatalf("frame at %d, %d bytes, in %d", s.Off, s.Len, len(s.Buf))
	}
	if s.Verdict != verdict.Send {
		return
	}
	p := packet.Packet{Buf: append([]byte(nil), s.Buf...), Off: s.Off, Len: s.Len}
	if int(s.OutPort) >= len(w.node.Ports) {
		w.t.Fatalf("sent to port %d", s.OutPort)
	}
	if r := packet.Parse(&p); r != verdict.Pass {
		w.t.Fatalf("sent a frame that is %s: %x", r, s.Frame())
	}
	if i := w.view.Iface(s.OutPort, p.VLAN); i == 0 || i != s.OutIface || !w.view.Ifaces[i].Used {
		w.t.Fatalf("sent on port %d vlan %d, interface %d, not %d", s.OutPort, p.VLAN, i, s.OutIface)
	}
}

// whole checks that nothing is half made: sessions, tenants' counts and mappings' references agree, meters are the verdicts given.
func (w *world) whole() {
	w.t.Helper()
	sessions, counted := 0, int64(0)
	perTenant, inbound := map[flow.TenantID]int64{}, map[flow.TenantID]int64{}
	var unanswered [2]map[flow.TenantID]int64
	for d := range unanswered {
		unanswered[d] = map[flow.TenantID]int64{}
	}
	for _, sh := range w.shards {
		sessions += sh.Sessions.Len()
		refs, n := map[uint32]uint32{}, 0
		here := make([]held, len(sh.held))
		sh.Sessions.Each(0, sh.Sessions.Capacity(), func(slot uint32, se *conntrack.Session) bool {
			n++
			perTenant[se.Tenant]++
			here[se.Tenant].sessions++
			if began(se) == meter.In {
				inbound[se.Tenant]++
			}
			if se.Flags&conntrack.FlagUnanswered != 0 {
				unanswered[began(se)][se.Tenant]++
				here[se.Tenant].unanswered[began(se)]++
			}
			if se.Mapping != conntrack.NoMapping {
				refs[se.Mapping]++
			}
			for dir := range 2 {
				k := se.Key(dir)
				if ref, ok := sh.Sessions.Lookup(&k, sh.Sessions.Hash(&k)); !ok || ref.Slot() != slot || ref.Dir() != dir {
					w.t.Fatalf("session %d is not found by its key %+v", slot, k)
				}
			}
			return true
		})
		if !slices.Equal(here, sh.held) {
			w.t.Fatalf("worker %d holds %+v and counts %+v", sh.Worker, here, sh.held)
		}
		if n != sh.Sessions.Len() {
			w.t.Fatalf("%d sessions, the table says %d", n, sh.Sessions.Len())
		}
		sh.NAT.Each(0, sh.NAT.Capacity(), func(id uint32, m *nat.Mapping) bool {
			if m.Refs() == 0 || m.Refs() != refs[id] {
				w.t.Fatalf("mapping %d has %d references, %d sessions", id, m.Refs(), refs[id])
			}
			delete(refs, id)
			return true
		})
		if len(refs) != 0 {
			w.t.Fatalf("sessions without a mapping: %v", refs)
		}
	}
	for _, t := range w.view.Tenants {
		if t == nil {
			continue
		}
		n := t.Shared.Sessions.Load()
		counted += n
		for d := range unanswered {
			if got, want := t.Shared.Unanswered[d].Load(), unanswered[d][t.ID]; got != want {
				w.t.Fatalf("tenant %s counts %d unanswered sessions begun %s and has %d", t.Name, got, meter.Dir(d), want)
			}
		}
		if got, want := t.Shared.Inbound.Load(), inbound[t.ID]; got != want {
			w.t.Fatalf("tenant %s counts %d sessions from outside and has %d", t.Name, got, want)
		}
		if n != perTenant[t.ID] {
			w.t.Fatalf("tenant %s counts %d sessions and has %d", t.Name, n, perTenant[t.ID])
		}
	}
	if int64(sessions) != counted {
		w.t.Fatalf("%d sessions, %d counted", sessions, counted)
	}
}

// metered adds up all shards' meters.
func (w *world) metered() (passed, dropped uint64) {
	for _, sh := range w.shards {
		sh.Meter.Publish()
		for id := range sh.Meter.Tenants() {
			for d := meter.Dir(0); d < meter.NumDirs; d++ {
				passed += sh.Meter.Volume(flow.TenantID(id), d).Packets
			}
			for r := verdict.Reason(0); r < verdict.NumReasons; r++ {
				dropped += sh.Meter.Drops(flow.TenantID(id), r)
			}
		}
	}
	return passed, dropped
}

// wire is a frame read by the test's own eyes: nothing of gateway/packet.
type wire struct {
	vlan         uint16
	proto        uint8
	src, dst     netip.Addr
	sport, dport uint16 // ICMP echo: the identifier twice
	ttl          uint8
	icmp         uint8
	flags        uint8
}

func (x wire) String() string {
	return fmt.Sprintf("vlan %d proto %d %s:%d > %s:%d", x.vlan, x.proto, x.src, x.sport, x.dst, x.dport)
}

// readWire checks every checksum of an IPv4 frame in full.
func readWire(t testing.TB, f []byte) (x wire) {
	t.Helper()
	if binary.BigEndian.Uint16(f[12:]) == 0x8100 {
		x.vlan = binary.BigEndian.Uint16(f[14:]) & 0xfff
		f = f[4:]
	}
	if binary.BigEndian.Uint16(f[12:]) != 0x0800 {
		t.Fatalf("ethertype of %x", f)
	}
	ip := f[14:]
	ip = ip[:binary.BigEndian.Uint16(ip[2:])]
	sum := func(start uint32, b []byte) uint16 {
		for i, c := range b {
			if i%2 == 0 {
				start += uint32(c) << 8
			} else {
				start += uint32(c)
			}
		}
		for start > 0xffff {
			start = start>>16 + start&0xffff
		}
		return uint16(start)
	}
	head := int(ip[0]&15) * 4
	if sum(0, ip[:head]) != 0xffff {
		t.Fatalf("IP checksum of %x", ip)
	}
	x.proto, x.ttl = ip[9], ip[8]
	x.src, x.dst = netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
	l4 := ip[head:]
	pseudo := uint32(sum(0, ip[12:20])) + uint32(x.proto) + uint32(len(l4))
	switch x.proto {
	case flow.UDP, flow.TCP:
		x.sport, x.dport = binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:])
		if x.proto == flow.TCP {
			x.flags = l4[13]
		}
		if (x.proto == flow.TCP || l4[6]|l4[7] != 0) && sum(pseudo, l4) != 0xffff {
			t.Fatalf("checksum of %s: %x", x, ip)
		}
	case flow.ICMP:
		x.icmp = l4[0]
		x.sport = binary.BigEndian.Uint16(l4[4:])
		x.dport = x.sport
		if sum(0, l4) != 0xffff {
			t.Fatalf("ICMP checksum of %s: %x", x, ip)
		}
	}
	return x
}
