package pipeline

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"demarc/gateway/archtest/cputime"
	"demarc/gateway/flow"
	"demarc/gateway/packet"
	"demarc/gateway/packet/build"
	"demarc/gateway/packet/csum"
	"demarc/gateway/police"
	"demarc/gateway/verdict"
)

var (
	stormCount = flag.Uint64("storm", 0, "TestStorm: how many packets to send through the pipeline; 0 = as many as fit into a minute of processor time in CI, else into two seconds")
	stormSeed  = flag.Uint64("storm.seed", 0, "TestStorm, TestNothingOfAGroupLeavesWhereItIsNotServed: seed; 0 = another one each time. One seed is one sequence of packets")
)

// stormPolicy is the test policy with rates, limits and more protocols let in, so that a packet can get everywhere. Its second form has
// other forwards, filtering and rules: sessions of either are judged again under the other.
func stormPolicies(t testing.TB) [2]string {
	a := testPolicy + `
[tenant.rates.out]
bits = "1M"
[tenant.rates.in]
packets = 2000
mode = "police"
[tenant.rates.voice]
dscp = ["ef"]
[tenant.limits]
sessions = 600
host_sessions = 300
session_rate = 20000
host_session_rate = 10000
`
	b := strings.NewReplacer("port = 8080\ninside = \"198.18.10.11\"", "port = 8080\ninside = \"198.18.10.12\"", `service = ["tcp/80", "icmp/echo-request"]`, `service = ["tcp", "udp", "icmp/echo-request", "icmpv6/echo-request"]`,
		`pool = ["192.0.2.32"]`, "pool = [\"192.0.2.32\", \"192.0.2.33\"]\nfiltering = \"endpoint-independent\"\npooling = \"arbitrary\"",
		"pool = [\"192.0.2.48\"]\nfiltering = \"endpoint-independent\"", "pool = [\"192.0.2.48\"]\nfiltering = \"address-dependent\"\nmapping = \"address-and-port-dependent\"", `action = "deny"`+"\nservice = [\"tcp/25\"]", `action = "deny"`+"\nservice = [\"tcp/25\", \"udp/5060\"]").Replace(a)
	if a == b || strings.Count(b, "198.18.10.12") != 1 || !strings.Contains(b, "udp/5060") || !strings.Contains(b, "arbitrary") || !strings.Contains(b, "mapping = ") || !strings.Contains(b, `"tcp", "udp"`) {
		t.Fatal("the second policy is not what it should be")
	}
	return [2]string{a, b}
}

// storm is hostile traffic through the shards of a node.
type storm struct {
	*world
	g        *generator
	policies [2]string
	policy   int

	slots [Burst]Slot
	mem   [Burst][2048]byte
	sent  [Burst][stormMax + 64]byte // what was put into the slots, before anything was done to it
	size  [Burst]int
	had   [Burst]bool // it had been sent to where its fragments meet
	spare [2048]byte
	again []follow // handed over, or round by one of our own addresses: for the next burst

	executions, ours uint64 // packets put through Process; those of them that the gateway answered with one of its own
	verdicts         [11]uint64
	fetched, kept    uint64 // fragments that waited; those of them that went on
	reasons          [verdict.NumReasons]uint64
	pieces           [6]uint64 // fragments that came in, by kind
	went             uint64    // of those that waited, in all worlds
	base             uint64    // metered drops before this world
	dropPiece        uint64
}

// follow is a frame that another call of Process must take further.
type follow struct {
	worker         int
	port           uint16
	looped, handed bool
	gathered       bool
	data           []byte
}

func newStorm(t testing.TB, seed uint64) *storm {
	s := &storm{policies: stormPolicies(t)}
	s.g = &generator{rng: rand.New(rand.NewPCG(seed, 0x73746f726d)), corpus: stormCorpus(t, seed), long: stormLong(t)}
	s.g.corpus = append(s.g.corpus, s.g.long...)
	return s
}

// begin builds a new node.
func (s *storm) begin(t testing.TB, workers int) {
	s.world = newWorld(t, workers, s.policies[0])
	s.policy, s.again, s.base, s.ours, s.kept, s.fetched, s.dropPiece = 0, s.again[:0], s.verdicts[verdict.Drop], 0, 0, 0, 0
	s.establish()
	s.passed, s.dropped = 0, 0
	for _, sh := range s.shards {
		sh.Shaper.Flush(func(*police.Item) {})
	}
	s.passed, s.dropped = s.metered()
}

// burst fills slots from the generator, or with what has to go on, and lets one worker process them.
func (s *storm) burst() {
	worker, n := s.g.rng.IntN(len(s.shards)), 0
	put := func(port uint16, looped, handed, gathered bool, data []byte) {
		sl := &s.slots[n]
		*sl = Slot{Port: port, Looped: looped, Handed: handed, Gathered: gathered, Addr: uint64(n), Verdict: 99}
		sl.Buf, sl.Off = s.mem[n][:], 256
		sl.Len = copy(sl.Buf[256:], data)
		s.size[n], s.had[n] = copy(s.sent[n][:], data), gathered
		n++
	}
	if len(s.again) >= 32 || len(s.again) > 0 && s.g.rng.IntN(4) == 0 {
		worker = s.again[0].worker
		rest := s.again[:0]
		for _, f := range s.again {
			if f.worker == worker && n < Burst {
				put(f.port, f.looped, f.handed, f.gathered, f.data)
			} else {
				rest = append(rest, f)
			}
		}
		s.again = rest
	}
	for fill := 1 + s.g.rng.IntN(Burst); n < fill; {
		f := s.g.next()
		put(f.port, false, false, false, f.data)
		s.count(f.data)
	}
	s.now += s.g.rng.Uint64N(2e5)
	s.process(worker, n)
	for i := range n {
		s.after(worker, i)
	}
	s.late()
	s.executions += uint64(n)
	for _, sh := range s.shards {
		sh.Shaper.Release(s.now, func(q int) (*police.Dir, *police.Words) {
			tn := s.view.Tenant(flow.TenantID(q / 2))
			return &tn.Dir[q%2], &tn.Shared.Words[q%2]
		}, func(*police.Item) bool { return true })
	}
}

// pieceKinds are how fragments are counted: each must have a real share.
var pieceKinds = [6]string{"first, IPv4", "later, IPv4", "tiny first, IPv4", "first, IPv6", "later, IPv6", "tiny first, IPv6"}

// count notes which kind of fragment a frame is, by its own header.
func (s *storm) count(f []byte) {
	l3, family := l3Of(f)
	kind := 0
	switch fo := uint16(0); {
	case family == 4:
		if fo = be.Uint16(f[l3+6:]); fo&0x3fff == 0 {
			return
		}
		switch {
		case fo&0x1fff != 0:
			kind = 1
		case be.Uint16(f[l3+2:]) < 20+20:
			kind = 2
		}
	case family == 6 && f[l3+6] == 44 && len(f) >= l3+48:
		switch kind = 3; {
		case be.Uint16(f[l3+42:])&^7 != 0:
			kind = 4
		case be.Uint16(f[l3+4:]) < 8+20:
			kind = 5
		}
	default:
		return
	}
	s.pieces[kind]++
}

func (s *storm) process(worker, n int) {
	defer func() {
		if e := recover(); e != nil {
			for i := range n {
				s.t.Logf("slot %d: port %d looped %v handed %v: %x", i, s.slots[i].Port, s.slots[i].Looped, s.slots[i].Handed, s.sent[i][:s.size[i]])
			}
			s.t.Fatalf("panic: %v\n%s", e, debug.Stack())
		}
	}()
	s.shards[worker].Process(s.slots[:n], s.now)
}

// late takes up the fragments that wait no longer.
func (s *storm) late() {
	for i, sh := range s.shards {
		for sh.Ready() > 0 {
			if s.g.rng.IntN(64) == 0 { // no frame is free
				sh.Forgo()
				continue
			}
			sl := Slot{}
			if sl.Buf = s.spare[:]; !sh.Fetch(&sl, 256) {
				s.t.Fatal("a fragment was ready and is not")
			}
			s.fetched++
			s.went++
			s.again = append(s.again, follow{i, sl.Port, sl.Looped, sl.Handed, sl.Gathered, bytes.Clone(sl.Frame())})
		}
	}
}

// cut makes the pieces of a slot and holds them against it: together they are its payload.
func (s *storm) cut(worker int, sl *Slot, fail func(string, ...any)) {
	whole := sl.Frame()[sl.L4:sl.L3End]
	for from, more := 0, true; more; {
		p := []Slot{{}}
		p[0].Buf = s.spare[:]
		next, ok := s.shards[worker].Piece(sl, &p[0], from, 256)
		if !ok {
			fail("too large, and no piece fits")
		}
		s.shards[worker].SendPieces(p)
		piece := &p[0]
		switch piece.Verdict {
		case verdict.Send, verdict.Queue, verdict.Neighbor:
			s.passed++
		case verdict.Drop:
			s.dropPiece++
			s.reasons[piece.Reason]++
		default:
			fail("a piece has the verdict %s", piece.Verdict)
		}
		q := packet.Packet{Buf: piece.Frame(), Len: piece.Len}
		if r := packet.Parse(&q); r != verdict.Pass && (from == 0 || r != verdict.Fragment) { // the second piece of TCP may be at byte 8 after all
			fail("cut into a piece that is %s: %x", r, piece.Frame())
		}
		if q.L3End-q.L3 > 1500 || !bytes.Equal(q.Buf[q.L4:q.L3End], whole[from:from+q.L3End-q.L4]) {
			fail("cut into a piece that is another: %x", piece.Frame())
		}
		from, more = next, next != 0
	}
}

// after holds what became of a slot against what went in.
func (s *storm) after(worker, i int) {
	sl := &s.slots[i]
	in := s.sent[i][:s.size[i]]
	fail := func(format string, args ...any) {
		s.t.Helper()
		s.t.Fatalf("%s\nworker %d port %d looped %v handed %v, %s (%s)\nin  %x\nout %x", fmt.Sprintf(format, args...), worker, sl.Port, sl.Looped, sl.Handed,
			sl.Verdict, sl.Reason, in, sl.Frame())
	}
	if sl.Off < 0 || sl.Len < 0 || sl.Off+sl.Len > len(sl.Buf) {
		s.t.Fatalf("frame at %d, %d bytes", sl.Off, sl.Len)
	}
	if int(sl.Verdict) >= len(s.verdicts) || sl.Verdict == verdict.Next {
		fail("verdict %d", sl.Verdict)
	}
	s.verdicts[sl.Verdict]++
	if sl.Verdict == verdict.Drop {
		if sl.Reason == verdict.Unset || sl.Reason == verdict.Pass || sl.Reason >= verdict.NumReasons {
			fail("dropped without a reason")
		}
		s.reasons[sl.Reason]++
		return
	}
	out := sl.Frame()
	switch sl.Verdict {
	case verdict.Hand:
		if sl.Handed || int(sl.Home) == worker || int(sl.Home) >= len(s.shards) {
			fail("handed to %d", sl.Home)
		}
		if !bytes.Equal(in, out) && !(len(in) > ethMost && len(out) == max(sl.L3End, ethLeast+sl.L3-ethHeader) && bytes.HasPrefix(in, out)) {
			fail("changed before it was handed over")
		}
		if sl.Gathered && (q(in).Flags&inPieces == 0 || s.had[i]) {
			fail("gathered, and is no fragment or was before")
		}
		s.again = append(s.again, follow{int(sl.Home), sl.Port, sl.Looped, !sl.Gathered, sl.Gathered, bytes.Clone(out)})
		return
	case verdict.Keep:
		if q(in).Flags&packet.FlagFragLater == 0 {
			fail("kept, and is no later fragment")
		}
		s.kept++
		return
	case verdict.Cut:
		s.cut(worker, sl, fail)
		return
	case verdict.Punt: // what the slow path does with it first
		_, arp := build.ParseARP(&sl.Packet)
		_, nd := build.ParseND(&sl.Packet)
		if arp && nd {
			fail("is ARP and neighbour discovery at once")
		}
		return
	case verdict.Loop:
		if sl.Looped && !ourError(in, out) {
			fail("went round twice")
		}
		s.again = append(s.again, follow{s.g.rng.IntN(len(s.shards)), 0, true, false, false, bytes.Clone(out)})
	}
	s.carried(sl, in, out, fail)
	if sl.Verdict == verdict.Send || sl.Verdict == verdict.Queue && sl.OutIface != 0 {
		if sl.Flags&packet.FlagICMPError == 0 || s.g.rng.IntN(16) == 0 {
			s.g.left(sl.OutPort, out)
		}
	}
}

// carried checks a frame that goes on: still a packet, of addresses that may be there, with a checksum as right or wrong as before and the
// same payload, unless the gateway made it.
func (s *storm) carried(sl *Slot, in, out []byte, fail func(string, ...any)) {
	p := packet.Packet{Buf: out, Len: len(out)}
	if r := packet.Parse(&p); r != verdict.Pass {
		fail("goes on as a frame that is %s", r)
	}
	loop := sl.Verdict == verdict.Loop || sl.Verdict == verdict.Queue && sl.OutIface == 0 // queued on its way round: it has no port yet
	if !loop {
		if int(sl.OutPort) >= len(s.node.Ports) {
			fail("port %d", sl.OutPort)
		}
		if n := s.view.Iface(sl.OutPort, p.VLAN); n == 0 || n != sl.OutIface || !s.view.Ifaces[n].Used {
			fail("port %d vlan %d is not interface %d", sl.OutPort, p.VLAN, sl.OutIface)
		}
	}
	l3, family := l3Of(out)
	il3, ifamily := l3Of(in)
	if family == 0 || family != ifamily {
		fail("family %d became %d", ifamily, family)
	}
	s.places(sl.OutPort, loop, &p, fail)
	q := packet.Packet{Buf: in, Len: len(in)}
	if r := packet.Parse(&q); r != verdict.Pass {
		fail("goes on, and came in as a frame that is %s", r)
	}
	iproto, il4, iend := q.Key.Proto, q.L4, q.L3End
	proto, l4, end := p.Key.Proto, p.L4, p.L3End
	if ours(in[il3:], out[l3:], iproto, proto, il4-il3, l4-l3) {
		s.ours++
		if p.Flags&inPieces == 0 && !sound(out, l3, l4, end, family, proto) {
			fail("made with a wrong checksum")
		}
		return
	}
	if own := [4]byte{192, 0, 2}; family == 4 && sl.Port == 0 && !sl.Looped && q.Key.Src.V4()>>8 == be.Uint32(own[:])>>8 {
		if last := in[il3+15]; last == 16 || last == 32 || last == 48 || last == 100 {
			fail("came over the wire with a source of ours and goes on")
		}
	}
	s.passed++
	ttl := map[byte]int{4: 8, 6: 7}[family]
	if want := in[il3+ttl] - 1; !loop && out[l3+ttl] != want {
		fail("hop limit %d became %d", in[il3+ttl], out[l3+ttl])
	}
	if proto != iproto || end-l4 != iend-il4 || p.Flags&(packet.FlagFragFirst|packet.FlagFragLater) != 0 {
		if proto != iproto {
			fail("protocol %d became %d", iproto, proto)
		}
		if p.Flags&packet.FlagFragLater != 0 && !bytes.Equal(in[il4:iend], out[l4:end]) {
			fail("the payload of a fragment changed")
		}
		return
	}
	head := headOf[proto]
	if p.Flags&packet.FlagICMPError == 0 && (proto != flow.TCP || in[il4+13]&packet.TCPSyn == 0) && !bytes.Equal(in[min(il4+head, iend):iend], out[min(l4+head, end):end]) {
		fail("payload changed")
	}
	if was, is := sound(in, il3, il4, iend, family, proto), sound(out, l3, l4, end, family, proto); was != is {
		fail("checksum right: %v before, %v after", was, is)
	}
}

// places checks that nobody is spoken to, or for, who must not be.
func (s *storm) places(port uint16, loop bool, p *packet.Packet, fail func(string, ...any)) {
	if p.Key.Family != 4 {
		if p.Key.Dst[0] == 0xff || p.Key.Src[0] == 0xff || reserved6(&p.Key.Src) || reserved6(&p.Key.Dst) {
			fail("from %s to %s", p.Key.Src.Netip(6), p.Key.Dst.Netip(6))
		}
		return
	}
	src, dst := p.Key.Src.V4(), p.Key.Dst.V4()
	for _, a := range []uint32{src, dst} {
		if a>>24 == 0 || a>>24 == 127 || a>>28 >= 0xe || a>>16 == 0xa9fe {
			fail("from %x to %x", src, dst)
		}
	}
	inside := func(a uint32) bool { return a>>17 == 0xc612>>1 } // 198.18.0.0/15
	if (loop || port == 0) && inside(src) {
		fail("an inside address leaves: %x to %x", src, dst)
	}
	if !loop && port != 0 && !inside(dst) {
		fail("%x to %x went inside", src, dst)
	}
}

// ours says whether the gateway made the packet itself: an error about it, or the answer to a ping. Both are IP packets.
func ours(in, out []byte, iproto, proto byte, il4, l4 int) bool {
	src, size := 12, 4
	if out[0]>>4 == 6 {
		src, size = 8, 16
	}
	if len(in) >= src+2*size && in[0]>>4 == out[0]>>4 && bytes.Equal(in[src:src+size], out[src+size:src+2*size]) && bytes.Equal(out[src:src+size], in[src+size:src+2*size]) {
		return true // turned round, be it a later fragment of a ping
	}
	if proto != flow.ICMP && proto != flow.ICMPv6 || l4 >= len(out) {
		return false
	}
	// What goes on stays a fragment; and the first byte of a later one is no type, though it may look like that of our error.
	if out[0]>>4 == 6 && len(in) > 6 && in[6] == 44 && out[6] != 44 || out[0]>>4 == 4 && len(in) > 8 && be.Uint16(in[6:])&0x1fff != 0 && be.Uint16(out[6:])&0x1fff == 0 {
		return true
	}
	return iproto != proto || il4 < len(in) && in[il4] != out[l4]
}

// q parses a frame.
func q(f []byte) *packet.Packet {
	p := &packet.Packet{Buf: f, Len: len(f)}
	packet.Parse(p)
	return p
}

func ourError(in, out []byte) bool {
	l3, f := l3Of(out)
	il3, fi := l3Of(in)
	if f == 0 || fi == 0 {
		return false
	}
	proto, l4, _ := l4Of(out, l3, f)
	iproto, il4, _ := l4Of(in, il3, fi) // only errors of ours are looked for: they have no extension headers
	return ours(in[il3:], out[l3:], iproto, proto, il4-il3, l4-l3)
}

// sound says whether the transport checksum is right. What has none is right.
func sound(f []byte, l3, l4, end int, family, proto byte) bool {
	at := sumAt(proto, family)
	if at < 0 || l4+at+2 > end {
		return true
	}
	if proto == flow.UDP && family == 4 && be.Uint16(f[l4+6:]) == 0 {
		return true
	}
	return csum.Fold(csum.Sum(pseudoOf(f, l3, family, proto, end-l4), f[l4:end])) == 0xffff
}

// interval does what happens beside traffic, and checks that everything agrees.
func (s *storm) interval() {
	if s.g.rng.IntN(4) == 0 {
		s.now += s.g.rng.Uint64N(400e9)
	}
	for _, sh := range s.shards {
		sh.Maintain(s.now, 1<<s.g.rng.IntN(14))
	}
	if s.g.rng.IntN(16) == 0 {
		s.policy ^= 1
		s.view = compileView(s.t, s.node, s.space, s.view, s.policies[s.policy])
		for _, sh := range s.shards {
			sh.SetView(s.view)
		}
	}
	for _, sh := range s.shards {
		if s.g.rng.IntN(2) == 0 {
			sh.Rejudge(s.now, 1+s.g.rng.IntN(4096))
		}
		if sh.Recover() {
			s.t.Fatal("something was half made between two bursts")
		}
	}
	s.whole()
	passed, dropped := s.metered()
	lost, waiting := uint64(0), uint64(0)
	for i, sh := range s.shards {
		lost += sh.frags.Lost()
		waiting += uint64(sh.frags.Waiting())
		if err := sh.frags.Check(); err != nil {
			s.t.Fatalf("worker %d: %v", i, err)
		}
	}
	if s.kept != s.fetched+lost+waiting {
		s.t.Fatalf("%d fragments were kept; %d went on, %d were given up, %d wait", s.kept, s.fetched, lost, waiting)
	}
	if given := s.verdicts[verdict.Drop] - s.base + lost + s.dropPiece; passed != s.passed || dropped < given || dropped > given+s.ours {
		s.t.Fatalf("metered %d passed and %d dropped; given %d, %d and %d of our own", passed, dropped, s.passed, given, s.ours)
	}
}

// TestStorm is the corpus of bad packets and what grows out of it, at the speed of the pipeline: nothing may panic, nothing may be half made,
// and whatever goes on must be a packet that may go there. go test ./gateway/pipeline -run TestStorm -v -storm 100000000 is the long form.
func TestStorm(t *testing.T) {
	seed, count, limit := *stormSeed, *stormCount, 2*time.Second
	if seed == 0 {
		seed = rand.Uint64()
	}
	if os.Getenv("CI") != "" {
		limit = time.Minute
	}
	start, used := time.Now(), cputime.Spent(t)
	s := newStorm(t, seed)
	done := func() bool {
		if count > 0 {
			return s.executions >= count
		}
		return used() >= limit
	}
	defer func() {
		t.Logf("figure: %d executions, seed %d, %s", s.executions, seed, time.Since(start).Round(time.Second))
	}()
	for round := 0; !done(); round++ {
		s.begin(t, 1+round%3)
		length := 1 << min(14+round/3, 16) // short at first, so that a short run has all three
		for bursts := 0; bursts < length && (bursts&255 != 0 || !done()); bursts++ {
			s.burst()
			if bursts&1023 == 1023 {
				s.interval()
			}
		}
		s.interval()
	}
	if s.executions < 2e6 { // too few to meet the rare ones
		return
	}
	for v, n := range s.verdicts {
		if verdict.Verdict(v) != verdict.Next && verdict.Verdict(v) != verdict.Taken && n == 0 { // nobody asks here
			t.Errorf("no packet had the verdict %s", verdict.Verdict(v))
		}
	}
	said := 0
	for r, n := range s.reasons {
		if n > 0 {
			said++
			t.Logf("%9d %s", n, verdict.Reason(r))
		}
	}
	t.Logf("verdicts %v, %d reasons, %d of our own in the last world", s.verdicts, said, s.ours)
	if said < 36 {
		t.Errorf("only %d reasons were given", said)
	}
	all := uint64(0)
	for kind, n := range s.pieces {
		all += n
		if t.Logf("%9d fragments: %s", n, pieceKinds[kind]); n < s.executions/1000 {
			t.Errorf("only %d fragments of %d packets were %s", n, s.executions, pieceKinds[kind])
		}
	}
	if t.Logf("%9d waited and went on", s.went); all < s.executions/5 || s.went < s.executions/200 {
		t.Errorf("%d of %d packets were fragments, and %d of them waited and went on", all, s.executions, s.went)
	}
	for _, r := range []verdict.Reason{verdict.Fragment, verdict.FragmentOverlap, verdict.FragmentDuplicate, verdict.FragmentTableFull} {
		if s.reasons[r] < s.executions/2000 {
			t.Errorf("only %d fragments were dropped as %s", s.reasons[r], r)
		}
	}
}

// headOf is how much of a transport header translation may touch: DCCP and UDP-Lite have a checksum there, with the addresses in it.
var headOf = [256]int{flow.UDP: 8, flow.TCP: 20, flow.ICMP: 8, flow.ICMPv6: 8, 33: 8, 136: 8}
