package cruise

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"demarc/configs"
	"demarc/gateway/conntrack"
	"demarc/gateway/fib"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/nat"
	"demarc/gateway/packet/csum"
	"demarc/gateway/pipeline"
	"demarc/gateway/police"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

const testNode = `
schema = 1
name = "test"
[tables]
sessions = 1024
mappings = 1024
tenants = 8
frames = 1024
[[port]]
device = "bb0"
[[port]]
device = "t0"
[[port]]
device = "u0"
[[interface]]
name = "backbone"
port = "bb0"
vlan = 7
addresses = ["203.0.113.1/24", "2001:db8:ff::1/64"]
[[interface]]
name = "transit"
port = "bb0"
addresses = ["198.51.100.1/24"]
[[interface]]
name = "alpha"
port = "t0"
addresses = ["198.18.10.1/24", "2001:db8:a::1/64"]
[[interface]]
name = "alpha-far"
port = "u0"
vlan = 30
addresses = ["198.18.11.1/24"]
[[interface]]
name = "beta"
port = "t0"
vlan = 20
addresses = ["198.18.10.1/24", "2001:db8:b::1/64"]
[[interface]]
name = "gamma"
port = "u0"
addresses = ["198.18.30.1/24"]
`

const testPolicy = `
schema = 1
[backbone]
interfaces = ["backbone", "transit"]
[[route]]
prefix = "0.0.0.0/0"
via = "203.0.113.254"
[[tenant]]
name = "alpha"
interfaces = ["alpha", "alpha-far"]
prefixes = ["198.18.10.0/24", "198.18.11.0/24", "2001:db8:a::/64"]
[tenant.nat]
pool = ["192.0.2.16"]
[[tenant.nat.static]]
public = "192.0.2.100"
inside = "198.18.10.100"
[[tenant.nat.forward]]
public = "192.0.2.16"
proto = "tcp"
port = 8080
inside = "198.18.10.11"
inside_port = 80
[tenant.rates.out]
bits = "20G"
packets = 3000000
burst = "20ms"
[tenant.rates.in]
bits = "300M"
burst = "20ms"
mode = "police"
[tenant.rates.voice]
dscp = ["ef"]
[[tenant.rule]]
name = "web"
direction = "in"
action = "allow"
service = ["tcp/80", "udp/53"]
[[tenant]]
name = "beta"
interfaces = ["beta"]
prefixes = ["198.18.10.0/24", "2001:db8:b::/64"]
[tenant.nat]
pool = ["192.0.2.32"]
[tenant.rates]
overhead = 38
[tenant.rates.out]
bits = "10M"
burst = "20ms"
queue = "30ms"
[[tenant]]
name = "gamma"
interfaces = ["gamma"]
prefixes = ["198.18.30.0/24"]
[tenant.rates]
overhead = 256
[tenant.rates.in]
bits = "200M"
burst = "20ms"
[[group]]
name = "east"
id = 200
nodes = ["a", "b"]
tenants = ["beta"]
[[group.address]]
interface = "beta"
addresses = ["198.18.10.250/24", "2001:db8:b::fa/64"]
`

const (
	capacity = 128 // sessions of a worker
	ports    = 3
	headroom = 256
)

var mtus = [ports]int{1500, 1400, 1500}

// world is a data plane whose workers and whose program have the same tables.
type world struct {
	t      testing.TB
	rng    *rand.Rand
	tab    *Tables
	view   *snapshot.View
	shards []*pipeline.Shard
	hops   map[Hop]int
	slots  [1]pipeline.Slot
	buf    [4096]byte
	worker int // that carried the last packet
	live   []handed
	shared bool
}

// handed is a session that is handed down.
type handed struct {
	worker int
	slot   uint32
}

// bootAhead is how far the node's clock is ahead of the kernel's, as in a time namespace.
const bootAhead = 37 * time.Hour

func bootNow(t testing.TB) uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		t.Fatal(err)
	}
	return uint64(ts.Nano()) + uint64(bootAhead)
}

func newWorld(t testing.TB, rng *rand.Rand, workers int, shared bool) *world {
	t.Helper()
	node, err := configs.DecodeNode("node.toml", []byte(testNode))
	if err != nil {
		t.Fatal(err)
	}
	node.Workers.Count = workers
	policy, err := configs.DecodePolicy("policy.toml", []byte(testPolicy))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, rng: rng, hops: map[Hop]int{}, shared: shared}
	links := make([]snapshot.Link, ports)
	for i := range links {
		links[i] = snapshot.Link{MAC: [6]byte{2, 0, 0, 0, 0, byte(0x10 * (i + 1))}, MTU: mtus[i]}
	}
	w.view, err = snapshot.Compile(snapshot.Input{Policy: policy, Node: node, Links: links, HomeSeed: 7,
		LinkLocal: func(m [6]byte) netip.Addr { return netip.AddrFrom16([16]byte{0xfe, 0x80, 15: m[5]}) }})
	if err != nil {
		t.Fatal(err)
	}
	space := nat.NewSpace(64)
	if err := w.view.Register(space); err != nil {
		t.Fatal(err)
	}
	w.view.Activate(space)

	seeds := make([]uint64, workers)
	for i := range seeds {
		seeds[i] = rng.Uint64()
	}
	w.tab, err = Open(Config{Seeds: seeds, Sessions: capacity, Ports: ports, Interfaces: len(w.view.Ifaces), Tenants: snapshot.MaxTenantID(node), Hops: 256, Ahead: int64(bootAhead)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.tab.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, tn := range w.view.Tenants {
		if tn != nil {
			tn.Shared.Words = w.tab.Words(tn.ID)
		}
	}
	if err := w.tab.SetView(w.view); err != nil {
		t.Fatal(err)
	}
	for i := range uint16(ports) {
		if err := w.tab.SetDevice(i, 1); err != nil {
			t.Fatal(err)
		}
	}
	neigh := fib.NewNeighbors(4096, 1)
	for _, f := range w.view.Ifaces[1:] {
		for _, p := range f.Addrs {
			a := p.Masked().Addr()
			for n := range 256 {
				fa := flow.AddrFrom(a)
				if err := neigh.Set(f.Index, map[bool]uint8{true: 4, false: 6}[a.Is4()], &fa, [6]byte{2, 1, 0, 0, byte(f.Index), byte(n % 16)}, fib.Permanent, 0); err != nil {
					t.Fatal(err)
				}
				a = a.Next()
			}
		}
	}
	for _, g := range w.view.Groups() {
		w.tab.Deadlines().Write(g.ID, 1, 1<<64-1)
	}
	for i := range workers {
		sh, err := pipeline.NewShard(pipeline.Config{Worker: i, SessionMem: w.tab.SessionMem(i), Sessions: capacity, Shared: w.shared, Idents: w.tab.Idents(i), NATMem: make([]byte, nat.Bytes(1024)+64), Mappings: 1024,
			PermitMem: make([]byte, nat.PermitBytes(capacity)+64), Tenants: snapshot.MaxTenantID(node), ShaperMax: 64, Seed: seeds[i], Space: space, Neighbors: neigh, Deadlines: w.tab.Deadlines()})
		if err != nil {
			t.Fatal(err)
		}
		sh.SetView(w.view)
		for _, g := range w.view.Groups() {
			sh.TakeOver(g.ID)
		}
		w.tab.SetGen(i, sh.Gen())
		w.tab.Feed(i, 1<<64-1)
		w.shards = append(w.shards, sh)
	}
	return w
}

// process has the pipeline carry a frame to its end.
func (w *world) process(port uint16, frame []byte, now uint64) *pipeline.Slot {
	w.worker = 0
	handed := false
	for {
		s := &w.slots[0]
		*s = pipeline.Slot{Port: port, Handed: handed}
		s.Buf, s.Off, s.Len = w.buf[:], headroom, copy(w.buf[headroom:], frame)
		w.shards[w.worker].Process(w.slots[:], now)
		if s.Verdict != verdict.Hand {
			return s
		}
		w.worker, handed = int(s.Home), true
	}
}

// at is where packets of direction dir of a session come in.
func (w *world) at(se *conntrack.Session, dir int) *snapshot.Iface {
	return &w.view.Ifaces[w.view.Hop(se.NextHop[1-dir]).Iface]
}

// form is how a packet is built: what a test may want to be out of the ordinary.
type form struct {
	iface      *snapshot.Iface
	mac        [6]byte
	key        flow.Key
	payload    int
	ttl, tos   byte
	flags      uint16 // IPv4: of the fragment word
	ident      uint16
	tcp        byte
	seq, ack   uint32
	window     uint16
	options    int // bytes of TCP options
	surplus    int // UDP: bytes behind its length
	noSum      bool
	priority   uint16                    // of the tag
	tagged     bool                      // with VLAN 0 where there is none
	l4is       func(right uint16) uint16 // the checksum that is written; nil = the right one
	headOption bool                      // IPv4
}

func (w *world) form(se *conntrack.Session, dir int) *form {
	f := &form{iface: w.at(se, dir), key: se.Key(dir), payload: w.rng.IntN(200), ttl: byte(2 + w.rng.IntN(254)), tos: byte(w.rng.Uint32()), flags: 0x4000, ident: uint16(w.rng.Uint32()), tcp: 0x10, window: uint16(w.rng.Uint32())}
	f.mac = f.iface.MAC
	if w.rng.IntN(3) == 0 {
		f.tcp |= []byte{0x08, 0x20, 0x40, 0x80}[w.rng.IntN(4)]
	}
	if g := f.iface.Group; g != nil && w.rng.IntN(2) == 0 {
		f.mac = [][6]byte{g.MAC4, g.MAC6}[w.rng.IntN(2)]
	}
	if f.iface.VLAN != 0 {
		f.priority = uint16(w.rng.IntN(16)) << 12
	}
	return f
}

func (w *world) build(f *form) []byte {
	be := binary.BigEndian
	var l4 []byte
	switch f.key.Proto {
	case flow.TCP:
		l4 = make([]byte, 20+f.options+f.payload)
		be.PutUint32(l4[4:], f.seq)
		be.PutUint32(l4[8:], f.ack)
		l4[12], l4[13] = byte(20+f.options)/4<<4, f.tcp
		be.PutUint16(l4[14:], f.window)
		for i := range f.options {
			l4[20+i] = 1
		}
	default:
		l4 = make([]byte, 8+f.payload+f.surplus)
		be.PutUint16(l4[4:], uint16(8+f.payload))
	}
	for i := len(l4) - f.payload - f.surplus; i < len(l4); i++ {
		l4[i] = byte(w.rng.Uint32())
	}
	be.PutUint16(l4, f.key.SPort)
	be.PutUint16(l4[2:], f.key.DPort)
	var head []byte
	var pseudo uint64
	typ := uint16(0x800)
	sumAt := map[uint8]int{flow.TCP: 16}[f.key.Proto]
	if sumAt == 0 {
		sumAt = 6
	}
	covered := len(l4) - f.surplus
	if f.key.Family == 4 {
		head = make([]byte, 20)
		head[0] = 0x45
		if f.headOption {
			head = append(head, 1, 1, 1, 1)
			head[0] = 0x46
		}
		head[1], head[8], head[9] = f.tos, f.ttl, f.key.Proto
		be.PutUint16(head[2:], uint16(len(head)+len(l4)))
		be.PutUint16(head[4:], f.ident)
		be.PutUint16(head[6:], f.flags)
		copy(head[12:], f.key.Src[:4])
		copy(head[16:], f.key.Dst[:4])
		be.PutUint16(head[10:], csum.Checksum(csum.Sum(0, head)))
		pseudo = csum.Pseudo4([4]byte(f.key.Src[:4]), [4]byte(f.key.Dst[:4]), f.key.Proto, covered)
	} else {
		typ = 0x86dd
		head = make([]byte, 40)
		be.PutUint32(head, 6<<28|uint32(f.tos)<<20|w.rng.Uint32N(1<<20))
		be.PutUint16(head[4:], uint16(len(l4)))
		head[6], head[7] = f.key.Proto, f.ttl
		src, dst := [16]byte(f.key.Src), [16]byte(f.key.Dst)
		copy(head[8:], src[:])
		copy(head[24:], dst[:])
		pseudo = csum.Pseudo6(&src, &dst, f.key.Proto, covered)
	}
	if !f.noSum {
		right := csum.Checksum(csum.Sum(pseudo, l4[:covered]))
		if f.l4is != nil {
			right = f.l4is(right)
		}
		be.PutUint16(l4[sumAt:], right)
	}
	e := append([]byte(nil), f.mac[:]...)
	e = append(e, 2, 1, 0, 0, 0, 99)
	if f.iface.VLAN != 0 || f.tagged {
		e = be.AppendUint16(e, 0x8100)
		e = be.AppendUint16(e, f.iface.VLAN|f.priority)
	}
	e = be.AppendUint16(e, typ)
	e = append(append(e, head...), l4...)
	return e
}

// populate opens sessions of each kind through the pipeline, by their packets, and hands down those that suit.
func (w *world) populate(n int) {
	w.t.Helper()
	addr := func(s string) flow.Addr { return flow.AddrFrom(netip.MustParseAddr(s)) }
	iface := map[string]*snapshot.Iface{}
	for i := range w.view.Ifaces {
		iface[w.view.Ifaces[i].Name] = &w.view.Ifaces[i]
	}
	kinds := []struct {
		in, src, dst string
		proto        uint8
		dport        uint16
	}{
		{"alpha", "198.18.10.20", "203.0.113.20", flow.UDP, 53}, {"alpha", "198.18.10.21", "198.51.100.21", flow.TCP, 443}, {"alpha", "198.18.10.22", "198.19.0.22", flow.TCP, 443},
		{"alpha", "198.18.10.100", "203.0.113.22", flow.UDP, 123}, {"alpha", "2001:db8:a::23", "2001:db8:ff::23", flow.TCP, 443}, {"alpha", "2001:db8:a::24", "2001:db8:ff::24", flow.UDP, 443},
		{"alpha", "198.18.10.25", "198.18.11.25", flow.UDP, 7}, {"alpha-far", "198.18.11.26", "198.18.10.26", flow.TCP, 22},
		{"beta", "198.18.10.20", "203.0.113.20", flow.UDP, 53}, {"beta", "198.18.10.28", "198.51.100.28", flow.TCP, 80}, {"beta", "2001:db8:b::29", "2001:db8:ff::29", flow.UDP, 9},
		{"gamma", "198.18.30.30", "203.0.113.30", flow.TCP, 25}, {"gamma", "198.18.30.31", "198.51.100.31", flow.UDP, 5060},
		{"backbone", "203.0.113.40", "192.0.2.16", flow.TCP, 8080}, {"transit", "198.51.100.41", "192.0.2.100", flow.UDP, 53}, {"backbone", "2001:db8:ff::42", "2001:db8:a::42", flow.UDP, 53},
	}
	// A packet with the highest bit of its port changed, or on the interface of another tenant, is to be nobody's: no two sessions have the same port but for that bit.
	taken := map[uint16]bool{}
	port := func() uint16 {
		for {
			if p := uint16(1024 + w.rng.IntN(60000)); !taken[p&0x7fff] {
				taken[p&0x7fff] = true
				return p
			}
		}
	}
	scaled := 0
	for i := range n {
		k := kinds[i%len(kinds)]
		f := &form{iface: iface[k.in], mac: iface[k.in].MAC, ttl: 64, flags: 0x4000, tcp: 2, seq: w.rng.Uint32(), window: 65535,
			key: flow.Key{Src: addr(k.src), Dst: addr(k.dst), SPort: port(), DPort: k.dport, Proto: k.proto, Family: 4}}
		if netip.MustParseAddr(k.src).Is6() {
			f.key.Family = 6
		}
		now := bootNow(w.t)
		step := func() *pipeline.Slot {
			s := w.process(f.iface.Port, w.build(f), now)
			if s.Verdict != verdict.Send {
				w.t.Fatalf("session %d (%s, %s): %s %s", i, k.in, k.dst, s.Verdict, s.Reason)
			}
			return s
		}
		before := w.shards
		s := step()
		sh := before[w.worker]
		back := s.Key.Reverse(w.view.Ifaces[s.OutIface].Zone)
		ref, ok := sh.Sessions.Lookup(&back, sh.Sessions.Hash(&back))
		if !ok {
			w.t.Fatalf("session %d: its answer has none", i)
		}
		se := sh.Sessions.At(ref.Slot())
		reply := *f
		reply.iface, reply.key = w.at(se, 1), se.Key(1)
		reply.mac = reply.iface.MAC
		if k.proto == flow.TCP {
			reply.tcp, reply.seq, reply.ack = 0x12, w.rng.Uint32(), f.seq+1
		}
		first := *f
		*f = reply
		step()
		if k.proto == flow.TCP {
			first.tcp, first.seq, first.ack = 0x10, first.seq+1, reply.seq+1
			*f = first
			step()
			switch scaled++; scaled % 6 {
			case 0: // the largest window, see reach
				se.Scale = [2]uint8{0x80 | 14, 0x80 | 14}
			case 1, 2: // what one offers alone does not count
				se.Scale[scaled%6-1] = 0x80 | uint8(1+w.rng.IntN(14))
			case 3, 4:
				se.Scale = [2]uint8{0x80 | uint8(w.rng.IntN(15)), 0x80 | uint8(w.rng.IntN(15))}
			}
		} else {
			*f = first
			step()
		}
		if !Suits(w.view, se) {
			w.t.Fatalf("session %d does not suit: %+v", i, se)
		}
		w.handDown(w.worker, ref.Slot())
		w.live = append(w.live, handed{w.worker, ref.Slot()})
	}
}

// hopOf is the number of the hop by which the pipeline sends packets of direction dir.
func (w *world) hopOf(sh *pipeline.Shard, se *conntrack.Session, dir int) uint32 {
	nh := w.view.Hop(se.NextHop[dir])
	f := &w.view.Ifaces[nh.Iface]
	family, to := uint8(4), nh.Via
	if se.Flags&conntrack.FlagV6 != 0 {
		family = 6
	}
	if nh.OnLink {
		to = se.Key(1 - dir).Src // whom it answers
	}
	mac, ok := sh.Neighbors.Lookup(f.Index, family, &to)
	if !ok {
		w.t.Fatalf("no neighbour %s on %s", to.Netip(family), f.Name)
	}
	h := Hop{Port: f.Port, VLAN: f.VLAN, MTU: f.MTU, Dst: mac, Src: *f.Source(w.view.GroupOf(se.Tenant), family)}
	n, ok := w.hops[h]
	if !ok {
		n = len(w.hops)
		w.hops[h] = n
		if err := w.tab.SetHop(n, h, uint32(n)+1); err != nil {
			w.t.Fatal(err)
		}
	}
	return uint32(n)
}

func (w *world) handDown(worker int, slot uint32) {
	sh := w.shards[worker]
	se := sh.Sessions.At(slot)
	w.tab.HandDownNow(worker, slot, se, [2]Way{w.tab.Way(w.hopOf(sh, se, 0)), w.tab.Way(w.hopOf(sh, se, 1))})
}

// programs are those of all ports.
type programs [ports]*Program

func (w *world) load(spec func() (*ebpf.CollectionSpec, error)) (ps programs, err error) {
	for i := range ps {
		s, err := spec()
		if err != nil {
			return ps, err
		}
		if ps[i], err = w.tab.load(s, uint16(i), nil); err != nil {
			return ps, err
		}
	}
	return ps, nil
}

func (ps *programs) close(t testing.TB) {
	for _, p := range ps {
		if p == nil {
			continue
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// told is all that both executors count.
type told struct {
	volume [dirs]meter.Volume
	voice  [2]meter.Voice
	sent   [ports]meter.Volume
}

// carried is what the program has counted.
func (w *world) carried(id flow.TenantID) (c told) {
	var err error
	for d := range c.volume {
		if c.volume[d], err = w.tab.Volume(id, meter.Dir(d)); err != nil {
			w.t.Fatal(err)
		}
	}
	for d := range c.voice {
		if c.voice[d], err = w.tab.Voice(id, meter.Dir(d)); err != nil {
			w.t.Fatal(err)
		}
	}
	for p := range c.sent {
		if c.sent[p], err = w.tab.Sent(uint16(p)); err != nil {
			w.t.Fatal(err)
		}
	}
	return c
}

// metered is what the pipeline has counted.
func (w *world) metered(id flow.TenantID) (c told) {
	for _, sh := range w.shards {
		sh.Meter.Publish()
		for d := range c.volume {
			v := sh.Meter.Volume(id, meter.Dir(d))
			c.volume[d].Packets += v.Packets
			c.volume[d].Bytes += v.Bytes
		}
		for d := range c.voice {
			c.voice[d] = more(c.voice[d], sh.Meter.VoiceOf(id, meter.Dir(d)), meter.Voice{})
		}
	}
	return c
}

// more is a and what b has more than c.
func more(a, b, c meter.Voice) meter.Voice {
	for f := range a {
		a[f].Packets += b[f].Packets - c[f].Packets
		a[f].Bytes += b[f].Bytes - c[f].Bytes
	}
	return a
}

// image is the memory that both write.
func (w *world) image(to []byte) []byte {
	to = to[:0]
	for i := range w.shards {
		to = append(to, w.tab.SessionMem(i)[:conntrack.Bytes(capacity)]...)
	}
	for _, n := range w.tab.idents {
		to = binary.LittleEndian.AppendUint16(to, uint16(n))
	}
	for i := range w.tab.tenants {
		for d := range w.tab.tenants[i].words {
			x := &w.tab.tenants[i].words[d]
			for _, word := range []*police.Word{&x.Bits, &x.Packets, &x.Voice} {
				to = binary.LittleEndian.AppendUint64(to, word.Load())
			}
		}
	}
	return to
}

func (w *world) restore(from []byte) {
	for i := range w.shards {
		n := copy(w.tab.SessionMem(i)[:conntrack.Bytes(capacity)], from)
		from = from[n:]
	}
	for i := range w.tab.idents {
		w.tab.idents[i] = uint64(binary.LittleEndian.Uint16(from))
		from = from[2:]
	}
	for i := range w.tab.tenants {
		for d := range w.tab.tenants[i].words {
			x := &w.tab.tenants[i].words[d]
			for _, word := range []*police.Word{&x.Bits, &x.Packets, &x.Voice} {
				word.Store(binary.LittleEndian.Uint64(from))
				from = from[8:]
			}
		}
	}
}
