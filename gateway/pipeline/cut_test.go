package pipeline

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"demarc/gateway/nat"
	"demarc/gateway/packet/csum"
	"demarc/gateway/verdict"
)

// cutWorld is a world whose inside takes 1500 bytes and whose outside takes mtu, or the other way round.
func cutWorld(t testing.TB, workers, inside, outside int) *world {
	w := newWorld(t, workers, rfcText(t))
	for i := range w.view.Ifaces[1:] {
		f := &w.view.Ifaces[i+1]
		if f.MTU = inside; f.Zone == 0 {
			f.MTU = outside
		}
	}
	return w
}

func leaves(t testing.TB, hops []hop) (out [][]byte) {
	t.Helper()
	for _, h := range hops {
		if h.verdict != verdict.Send {
			t.Fatalf("%s (%s)", h.verdict, h.reason)
		}
		out = append(out, h.frame)
	}
	return out
}

// inOrder checks that the pieces leave from the first to the last, and that none is larger than mtu.
func inOrder(t testing.TB, out [][]byte, mtu int) {
	t.Helper()
	next := 0
	for i, f := range out {
		ip := packetOf(f)
		if len(ip) > mtu || i < len(out)-1 && len(ip) <= mtu-8 {
			t.Fatalf("piece %d has %d bytes, for %d", i, len(ip), mtu)
		}
		if at := int(be.Uint16(ip[6:])&0x1fff) * 8; i > 0 && at != next {
			t.Fatalf("piece %d begins at %d, want %d", i, at, next)
		}
		next = int(be.Uint16(ip[6:])&0x1fff)*8 + len(ip) - int(ip[0]&15)*4
	}
}

// RFC 4787 REQ-13a: without DF what is too large is fragmented, and its fragments leave in order, whichever way it goes.
func TestRFC4787Req13aFragmentsInOrder(t *testing.T) {
	for _, mtu := range []int{68, 576, 600, 1280, 1499} {
		w := cutWorld(t, 1, 1500, mtu)
		out := leaves(t, w.carry(0, 1, false, false, bigUDP(t, 1, hostA, 4000, far, 53, 1472)))
		inOrder(t, out, mtu)
		x := readWire(t, join(t, out))
		if x.src.String() != pub || x.dst.String() != far || x.ttl != 63 {
			t.Fatalf("left as %s ttl %d", x, x.ttl)
		}
		w = cutWorld(t, 1, mtu, 1500)
		w.out(hostA, 4000, far, 53)
		x = readWire(t, join(t, leaves(t, w.carry(0, 0, false, false, bigUDP(t, 0, far, 53, pub, 8080, 1472)))))
		if x.dst.String() != server || x.dport != 80 {
			t.Fatalf("came as %s", x)
		}
		w.whole()
	}
}

// What is a fragment itself is cut further, and its pieces are pieces of the same datagram. Of options each piece has those that are to be copied.
func TestFragmentsAreFragmented(t *testing.T) {
	for _, by := range permutations(3) {
		w := cutWorld(t, 1, 1500, 300)
		f := bigUDP(t, 1, hostA, 4000, far, 53, 1700)
		var out [][]byte
		for _, p := range order(split(t, f, 7, 600), by) {
			for _, h := range w.carry(0, 1, false, false, p) {
				if h.verdict == verdict.Send {
					out = append(out, h.frame)
				}
			}
		}
		if len(out) < 6 {
			t.Fatalf("%d pieces", len(out))
		}
		if x := readWire(t, join(t, out)); x.src.String() != pub {
			t.Fatalf("left as %s", x)
		}
	}
	w := cutWorld(t, 1, 1500, 300)
	w.view.Tenant(w.tenant("alpha")).Extra = 0xff
	f := bigUDP(t, 1, hostA, 4000, far, 53, 1000)
	with := append(append([]byte(nil), f[:34]...), 7, 7, 4, 0, 0, 0, 0, 1, 148, 4, 0, 0) // record route, which is not copied, and router alert, which is
	with = append(with, f[34:]...)
	with[14] = 0x48
	be.PutUint16(with[16:], uint16(len(with)-14))
	be.PutUint16(with[24:], 0)
	be.PutUint16(with[24:], csum.Checksum(csum.Sum(0, with[14:46])))
	var payload []byte
	for i, f := range leaves(t, w.carry(0, 1, false, false, with)) {
		ip := packetOf(f)
		want := []byte{148, 4, 0, 0}
		if i == 0 {
			want = with[34:46]
		}
		head := int(ip[0]&15) * 4
		if !bytes.Equal(ip[20:head], want) || sum16(ip[:head]) != 0xffff || len(ip) > 300 {
			t.Fatalf("piece %d has options %x, want %x", i, ip[20:head], want)
		}
		payload = append(payload, ip[head:]...)
	}
	if !bytes.Equal(payload[8:], with[54:]) {
		t.Fatal("the payload is another")
	}
}

// RFC 5508 section 7.1.1: a query that is too large and may be fragmented is.
func TestRFC5508Sec711FragmentsWithoutDF(t *testing.T) {
	w := cutWorld(t, 1, 1500, 576)
	out := leaves(t, w.carry(0, 1, false, false, bigEcho(t, 1, hostA, far, 8, 77, 1400)))
	inOrder(t, out, 576)
	x := readWire(t, join(t, out))
	if x.icmp != 8 || x.src.String() != pub {
		t.Fatalf("left as %s", x)
	}
	w.view.Ifaces[1].MTU, w.view.Ifaces[2].MTU = 576, 576
	x = readWire(t, join(t, leaves(t, w.carry(0, 0, false, false, bigEcho(t, 0, far, pub, 0, x.sport, 1400)))))
	if x.icmp != 0 || x.dst.String() != hostA || x.sport != 77 {
		t.Fatalf("came as %s", x)
	}
	df := bigEcho(t, 1, hostA, far, 8, 77, 1400)
	be.PutUint16(df[20:], 0x4000)
	be.PutUint16(df[24:], 0)
	be.PutUint16(df[24:], csum.Checksum(csum.Sum(0, df[14:34])))
	if h := w.from(1, df); h.verdict != verdict.Send || readWire(t, h.frame).icmp != 3 {
		t.Fatal("with DF the sender is not told")
	}
}

func idOf(f []byte) uint16 { return binary.BigEndian.Uint16(f[18:]) }

// RFC 7857 section 10, RFC 6864 section 5.3.1: two inside hosts that chose the same identification have two outside, whether they fragment, the
// gateway does, or somebody behind it may; what can never be fragmented keeps its own.
func TestRFC7857Sec10IdentificationIsUnique(t *testing.T) {
	for workers := 1; workers <= 4; workers++ {
		w := cutWorld(t, workers, 1500, 1400)
		used := map[string]map[uint16]string{"whole": {}, "pieces": {}}
		rng := rand.New(rand.NewPCG(3, uint64(workers)))
		note := func(kind, who string, id uint16) {
			t.Helper()
			for k, ids := range used {
				if was, taken := ids[id]; taken && (k != kind || was != who) {
					t.Fatalf("%d workers: identification %d is %s's and %s's", workers, id, was, who)
				}
			}
			used[kind][id] = who
		}
		for n := range 600 {
			host := fmt.Sprintf("198.18.10.%d", 20+rng.IntN(40))
			who := fmt.Sprintf("%s %d", host, n)
			at := rng.IntN(workers)
			switch n % 3 {
			case 0: // they fragment, all with the same identification, and their pieces come mixed
				other := fmt.Sprintf("198.18.10.%d", 60+rng.IntN(40))
				a, b := split(t, bigUDP(t, 1, host, 4000, far, 53, 600), 1, 320), split(t, bigUDP(t, 1, other, 4000, far, 53, 600), 1, 320)
				var left [2][][]byte
				for _, k := range []int{1, 0} {
					left[0] = append(left[0], w.pass(1, a[k])...)
					left[1] = append(left[1], w.pass(1, b[k])...)
				}
				if idOf(left[0][0]) == idOf(left[1][0]) {
					t.Fatal("both have one identification")
				}
				for i, l := range left {
					readWire(t, join(t, l))
					note("pieces", fmt.Sprintf("%s %d", who, i), idOf(l[0]))
				}
				w.wait(10 * time.Second) // the same host may use it again once nobody can have pieces of the last; the shard forgets before
			case 1: // the gateway does
				var out [][]byte
				for _, h := range w.carry(at, 1, false, false, bigUDP(t, 1, host, 4001, far, 53, 1450)) {
					if h.verdict == verdict.Send {
						out = append(out, h.frame)
					}
				}
				readWire(t, join(t, out))
				note("pieces", who, idOf(out[0]))
			default: // somebody may
				h := w.carry(at, 1, false, false, bigUDP(t, 1, host, 4002, far, 53, 100))
				id := idOf(h[len(h)-1].frame)
				if id >= nat.WholeIdents {
					t.Fatalf("%d is of those for pieces", id)
				}
				note("whole", who, id)
			}
		}
		df := frame(t, eth(macs[1], layers.EthernetTypeIPv4), &layers.IPv4{Version: 4, TTL: 64, Id: 4711, Flags: layers.IPv4DontFragment, SrcIP: ip4(hostA, far, 17).SrcIP, DstIP: ip4(hostA, far, 17).DstIP, Protocol: 17}, udp(4000, 53), load(8))
		if h := w.carry(0, 1, false, false, df); idOf(h[len(h)-1].frame) != 4711 {
			t.Fatal("what is atomic has another identification")
		}
	}
	// From a hundred hosts to one far end there are only so many names in half a minute: then nobody has one twice.
	w := cutWorld(t, 1, 1500, 1500)
	ids, refused := map[uint16]bool{}, 0
	p := split(t, bigUDP(t, 1, hostA, 4000, far, 53, 300), 1, 160)[0]
	for n := range 60000 {
		w.now += uint64(400 * time.Microsecond)
		p[29] = byte(101 + n%100)
		be.PutUint16(p[18:], uint16(n))
		be.PutUint16(p[24:], 0)
		be.PutUint16(p[24:], csum.Checksum(csum.Sum(0, p[14:34])))
		h := w.from(1, p)
		if h.verdict == verdict.Drop && h.reason == verdict.FragmentNoID {
			refused++
			continue
		}
		if h.verdict != verdict.Send || ids[idOf(h.frame)] {
			t.Fatalf("datagram %d: %s (%s), identification %d", n, h.verdict, h.reason, idOf(h.frame))
		}
		ids[idOf(h.frame)] = true
	}
	if refused == 0 || len(ids) < 40000 {
		t.Fatalf("%d refused, %d identifications used", refused, len(ids))
	}
	w.whole()
}

// Neither fragments nor cutting cost garbage.
func TestFragmentsAllocateNothing(t *testing.T) {
	w := cutWorld(t, 1, 1500, 1000)
	sh := w.shards[0]
	p := split(t, bigUDP(t, 1, hostA, 4000, far, 53, 1200), 1, 496)
	whole := bigUDP(t, 1, hostA, 4000, far, 53, 1400)
	slots, pieces := make([]Slot, 4), make([]Slot, 1)
	mem := make([]byte, 5*2048)
	id := uint16(0)
	allocs := testing.AllocsPerRun(500, func() {
		id++
		w.now += 1e6
		for i, f := range [][]byte{p[1], p[0], p[2], whole} {
			s := &slots[i]
			s.Buf, s.Off, s.Len, s.Port, s.Handed, s.Gathered = mem[i*2048:][:2048], 256, len(f), 1, false, false
			copy(s.Buf[256:], f)
			if i < 3 {
				be.PutUint16(s.Buf[256+18:], id)
				be.PutUint16(s.Buf[256+24:], 0)
				be.PutUint16(s.Buf[256+24:], csum.Checksum(csum.Sum(0, s.Buf[256+14:256+34])))
			}
		}
		sh.Process(slots, w.now)
		for sh.Ready() > 0 {
			pieces[0].Buf = mem[4*2048:]
			if !sh.Fetch(&pieces[0], 256) {
				t.Fatal("not ready")
			}
			sh.Process(pieces, w.now)
			if pieces[0].Verdict != verdict.Send {
				t.Fatalf("%s (%s)", pieces[0].Verdict, pieces[0].Reason)
			}
		}
		for from, more := 0, true; more; {
			pieces[0].Buf = mem[4*2048:]
			from, _ = sh.Piece(&slots[3], &pieces[0], from, 256)
			sh.SendPieces(pieces)
			more = from != 0
		}
		sh.Maintain(w.now, 64)
		if slots[0].Verdict != verdict.Keep || slots[1].Verdict != verdict.Send || slots[2].Verdict != verdict.Send || slots[3].Verdict != verdict.Cut || pieces[0].Verdict != verdict.Send {
			t.Fatalf("%s %s %s %s %s (%s)", slots[0].Verdict, slots[1].Verdict, slots[2].Verdict, slots[3].Verdict, pieces[0].Verdict, slots[1].Reason)
		}
	})
	if allocs != 0 {
		t.Fatalf("%v allocations", allocs)
	}
}
