package pureload

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"demarc/configs"
	"demarc/gateway/conntrack"
	"demarc/gateway/fib"
	"demarc/gateway/flow"
	"demarc/gateway/nat"
	"demarc/gateway/packet/csum"
	"demarc/gateway/pipeline"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

const nodeText = `
schema = 1
name = "pureload"
[tables]
sessions = %d
mappings = %d
tenants = 8
frames = 1024
[[port]]
device = "bb0"
[[port]]
device = "t0"
[[interface]]
name = "backbone"
port = "bb0"
addresses = ["203.0.113.1/24"]
[[interface]]
name = "alpha"
port = "t0"
addresses = ["198.18.10.1/24"]
`

const policyText = `
schema = 1
[backbone]
interfaces = ["backbone"]
[[tenant]]
name = "alpha"
interfaces = ["alpha"]
prefixes = ["198.18.0.0/15"]
default_out = "deny"
[tenant.nat]
pool = ["192.0.2.0/27"]
[tenant.rates.out]
bits = "100G"
[tenant.rates.in]
bits = "100G"
[[tenant.route]]
prefix = "198.18.0.0/15"
via = "198.18.10.254"
`

// The ends of a flow, and who carries it: its inside host is one of hosts behind a router, its outside host a neighbour.
const (
	hosts       = 4096
	headroom    = 256
	frameBytes  = 60 // without the check sequence: 64 on a wire
	insideFirst = 0xc6130001
	portFirst   = 1024
	backbone    = 0
	inside      = 1
)

var (
	outside = [4]byte{203, 0, 113, 11}
	links   = [2][6]byte{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}
	others  = [6]byte{2, 0, 0, 0, 0, 9}
)

// Load is one shard and the flows that it is given.
type Load struct {
	sh    *pipeline.Shard
	now   uint64 // ns
	flows int
	order []int // of packets
	at    int
	mem   [][]byte // of tables
	bufs  [pipeline.Burst][2048]byte
	slots [pipeline.Burst]pipeline.Slot
	frame [frameBytes]byte
}

// Open makes a shard for so many flows, from 1 to 1,048,576, whose policy translates, limits at 100 Gbit/s and counts, with an access list of so many rules, of which the last one matches.
func Open(flows, rules int) (l *Load, err error) {
	if flows < 1 || flows > 1<<20 || rules < 1 || rules > 1<<16 {
		return nil, fmt.Errorf("%d flows, %d rules: want from 1 to %d flows and from 1 to %d rules", flows, rules, 1<<20, 1<<16)
	}
	l = &Load{now: 1e12, flows: flows, frame: first(), order: rand.New(rand.NewPCG(1, 2)).Perm(max(flows, pipeline.Burst))}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	room := max(4096, 4*flows) // connections that wait for an answer may fill a part of what is free
	node, err := configs.DecodeNode("node.toml", fmt.Appendf(nil, nodeText, room, room))
	if err != nil {
		return nil, err
	}
	policy, err := configs.DecodePolicy("policy.toml", []byte(policyText+list(rules)))
	if err != nil {
		return nil, err
	}
	space := nat.NewSpace(64)
	in := snapshot.Input{Policy: policy, Node: node, HomeSeed: 1, LinkLocal: func(m [6]byte) netip.Addr { return netip.AddrFrom16([16]byte{0xfe, 0x80, 15: m[5]}) }}
	for _, mac := range links {
		in.Links = append(in.Links, snapshot.Link{MAC: mac, MTU: 1500})
	}
	view, err := snapshot.Compile(in)
	if err != nil {
		return nil, err
	}
	if err := view.Register(space); err != nil {
		return nil, err
	}
	view.Activate(space)
	c := pipeline.Config{Sessions: room, Mappings: room, Tenants: snapshot.MaxTenantID(node), ShaperMax: 512, Seed: 1, Space: space, Neighbors: fib.NewNeighbors(64, 1)}
	for _, x := range []struct {
		of *[]byte
		n  int
	}{{&c.SessionMem, conntrack.Bytes(room)}, {&c.NATMem, nat.Bytes(room)}, {&c.PermitMem, nat.PermitBytes(room)}} {
		if *x.of, err = l.table(x.n); err != nil {
			return nil, err
		}
	}
	if l.sh, err = pipeline.NewShard(c); err != nil {
		return nil, err
	}
	for _, f := range view.Ifaces[1:] {
		for _, a := range [][4]byte{outside, {198, 18, 10, 254}} {
			if at := netip.AddrFrom4(a); f.Addrs[0].Contains(at) {
				to := flow.AddrFrom(at)
				if err := c.Neighbors.Set(f.Index, 4, &to, others, fib.Permanent, 0); err != nil {
					return nil, err
				}
			}
		}
	}
	l.sh.SetView(view)
	return l, nil
}

// list is an access list of which the last rule matches, and the others do by their addresses and not by their ports: hosts and networks of the flows, to their destination, what is around it and anywhere.
func list(rules int) string {
	var b strings.Builder
	for i := range rules - 1 {
		from := fmt.Sprintf("198.19.%d.%d/32", i>>6&15, i*37&255)
		to := [...]string{"203.0.113.11/32", "203.0.113.0/24", "0.0.0.0/0", fmt.Sprintf("203.0.113.%d/32", 12+i%200)}[i&3]
		if i%5 == 0 {
			from = fmt.Sprintf("198.19.%d.0/24", i/5&15)
		}
		fmt.Fprintf(&b, "[[tenant.rule]]\ndirection = \"out\"\naction = \"deny\"\nfrom = [%q]\nto = [%q]\nservice = [\"udp/%d-%d\"]\n", from, to, 1024+i, 1024+i+i%7)
	}
	b.WriteString("[[tenant.rule]]\ndirection = \"out\"\naction = \"allow\"\nservice = [\"udp\"]\n")
	return b.String()
}

// table is memory as a node takes it: outside the Go heap, in huge pages where the kernel has them.
func (l *Load) table(n int) ([]byte, error) {
	m, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("%d MiB of tables: %w", n>>20, err)
	}
	_ = unix.Madvise(m, unix.MADV_HUGEPAGE) // a wish
	l.mem = append(l.mem, m)
	return m, nil
}

// Close gives the tables back.
func (l *Load) Close() (err error) {
	for _, m := range l.mem {
		err = errors.Join(err, unix.Munmap(m))
	}
	l.mem = nil
	return err
}

// first is the first packet of flow 0: UDP.
func first() (b [frameBytes]byte) {
	copy(b[:], links[inside][:])
	copy(b[6:], others[:])
	b[12] = 8
	ip := b[14:]
	ip[0], ip[8], ip[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	copy(ip[16:], outside[:])
	binary.BigEndian.PutUint16(ip[22:], 9)
	binary.BigEndian.PutUint16(ip[24:], uint16(len(ip)-20))
	return b
}

// put makes slot i a packet of flow n, as a kernel that copies leaves it.
func (l *Load) put(i, n int) {
	b := l.bufs[i][headroom:]
	copy(b, l.frame[:])
	ip := b[14:frameBytes]
	binary.BigEndian.PutUint32(ip[12:], insideFirst+uint32(n%hosts))
	binary.BigEndian.PutUint16(ip[20:], uint16(portFirst+n/hosts))
	binary.BigEndian.PutUint16(ip[10:], csum.Checksum(csum.Sum(0, ip[:20])))
	sum := csum.Pseudo4([4]byte(ip[12:16]), [4]byte(ip[16:20]), 17, len(ip)-20)
	binary.BigEndian.PutUint16(ip[26:], csum.NonZero(csum.Checksum(csum.Sum(sum, ip[20:]))))
	l.arrived(i, inside)
}

func (l *Load) arrived(i, port int) {
	s := &l.slots[i]
	s.Buf, s.Off, s.Len = l.bufs[i][:], headroom, frameBytes
	s.Port, s.Looped, s.Handed, s.Addr = uint16(port), false, false, uint64(i)
}

// answer makes slot i the answer to what it has just sent to the backbone.
func (l *Load) answer(i int) {
	b := l.slots[i].Frame()
	var a [frameBytes]byte
	copy(a[:], b)
	copy(a[:6], b[6:12])
	copy(a[6:], b[:6])
	copy(a[26:], b[30:34])
	copy(a[30:], b[26:30])
	copy(a[34:], b[36:38])
	copy(a[36:], b[34:36])
	copy(l.bufs[i][headroom:], a[:])
	l.arrived(i, backbone)
}

// judge has the pipeline judge the first k slots, and says how long that took.
func (l *Load) judge(k int) (took time.Duration, err error) {
	l.now += 10_000
	began := time.Now()
	l.sh.Process(l.slots[:k], l.now)
	l.sh.Meter.Publish()
	took = time.Since(began)
	for i := range k {
		if s := &l.slots[i]; s.Verdict != verdict.Send {
			return took, fmt.Errorf("packet %d of a burst of %d: %s (%s), want it sent", i, k, s.Verdict, s.Reason)
		}
	}
	return took, nil
}

// Establish begins each flow, and answers it.
func (l *Load) Establish() error {
	for n := 0; n < l.flows; n += pipeline.Burst {
		k := min(pipeline.Burst, l.flows-n)
		for i := range k {
			l.put(i, n+i)
		}
		if _, err := l.judge(k); err != nil {
			return err
		}
		for i := range k {
			l.answer(i)
		}
		if _, err := l.judge(k); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
	if n := l.sh.Sessions.Len(); n != l.flows {
		return fmt.Errorf("%d flows are %d sessions", l.flows, n)
	}
	return nil
}

// Part is told what some packets took, a millisecond's worth, or what is left at the end, and whatever it does is in nobody's time. It may be nil.
type Part func(packets int, took time.Duration)

// parts hands bursts on by the millisecond.
type parts struct {
	to      Part
	packets int
	took    time.Duration
}

func (p *parts) burst(took time.Duration) {
	p.packets += pipeline.Burst
	if p.took += took; p.took >= time.Millisecond {
		p.end()
	}
}

func (p *parts) end() {
	if p.to != nil && p.packets > 0 {
		p.to(p.packets, p.took)
	}
	p.packets, p.took = 0, 0
}

// Packets is what the pipeline takes of a packet of an established flow, in ns: so many packets at least, in bursts, of all flows in random order. Each is told of all packets, part by part.
func (l *Load) Packets(n int, each Part) (ns float64, err error) {
	sum, bursts, p := time.Duration(0), 0, parts{to: each}
	for ; bursts*pipeline.Burst < n; bursts++ {
		for i := range pipeline.Burst {
			l.put(i, l.order[l.at]%l.flows)
			if l.at++; l.at == len(l.order) {
				l.at = 0
			}
		}
		took, err := l.judge(pipeline.Burst)
		if err != nil {
			return 0, err
		}
		sum += took
		p.burst(took)
	}
	p.end()
	return float64(sum.Nanoseconds()) / float64(bursts*pipeline.Burst), nil
}

// Begin is what it takes of the first packet of a flow, in ns: all flows begin, a multiple of a burst. Then all of them end, and their ports are free again.
func (l *Load) Begin(each Part) (ns float64, err error) {
	if l.flows%pipeline.Burst != 0 {
		return 0, fmt.Errorf("%d flows: want a multiple of %d", l.flows, pipeline.Burst)
	}
	sum, p := time.Duration(0), parts{to: each}
	for n := 0; n < l.flows; n += pipeline.Burst {
		for i := range pipeline.Burst {
			l.put(i, n+i)
		}
		took, err := l.judge(pipeline.Burst)
		if err != nil {
			return 0, err
		}
		sum += took
		p.burst(took)
	}
	p.end()
	if n := l.sh.Sessions.Len(); n != l.flows {
		return 0, fmt.Errorf("%d flows are %d sessions", l.flows, n)
	}
	l.sh.Cut(func(*conntrack.Session) bool { return true })
	l.now += uint64(5 * time.Minute) // longer than ports rest
	for range 4 {
		l.sh.Maintain(l.now, 8*l.flows)
		l.now += uint64(time.Second)
	}
	return float64(sum.Nanoseconds()) / float64(l.flows), nil
}
