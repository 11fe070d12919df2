package trace

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/gateway/flow"
	"demarc/gateway/packet"
	"demarc/gateway/verdict"
)

func key(src string, sport uint16, dst string, dport uint16) flow.Key {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	k := flow.Key{Src: flow.AddrFrom(s), Dst: flow.AddrFrom(d), SPort: sport, DPort: dport, Proto: flow.UDP, Family: 4}
	if s.Is6() {
		k.Family = 6
	}
	return k
}

// An inside host is found by its own address before and after translation, in both directions, and in what an error quotes.
func TestAFilterFindsAnInsideHostEverywhere(t *testing.T) {
	inside, far, pub := "198.18.10.5", "203.0.113.11", "192.0.2.16"
	f := All()
	f.Prefix, f.Port = netip.MustParsePrefix("198.18.10.5/32"), 4000
	for name, c := range map[string]struct {
		j    Journey
		want bool
	}{
		"out":             {Journey{In: key(inside, 4000, far, 53), Out: key(pub, 7, far, 53)}, true},
		"in":              {Journey{In: key(far, 53, pub, 7), Out: key(far, 53, inside, 4000)}, true},
		"in, dropped":     {Journey{In: key(far, 53, pub, 7)}, false},
		"error about it":  {Journey{In: key("203.0.113.1", 0, inside, 0), Quotes: true, Quoted: key(inside, 4000, far, 53)}, true},
		"another port":    {Journey{In: key(inside, 4001, far, 53), Out: key(pub, 7, far, 53)}, false},
		"another host":    {Journey{In: key("198.18.10.6", 4000, far, 53), Out: key(pub, 4000, far, 53)}, false},
		"another family":  {Journey{In: key("2001:db8::5", 4000, "2001:db8::6", 53)}, false},
		"port of another": {Journey{In: key(inside, 1, far, 53), Out: key(pub, 4000, far, 53)}, false},
	} {
		if got := f.Journey(&c.j); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	f = All()
	f.Reason = verdict.TTLExceeded
	told := Journey{Verdict: verdict.Send, Answer: true, Reason: verdict.TTLExceeded}
	if !f.Journey(&told) || f.Journey(&Journey{Verdict: verdict.Send}) || f.Journey(&Journey{Verdict: verdict.Drop, Reason: verdict.Land}) {
		t.Error("by reason")
	}
	f = All()
	f.Rules, f.Dir = []flow.RuleID{3}, 1
	if !f.Journey(&Journey{Rule: 3, RuleDir: 1}) || f.Journey(&Journey{Rule: 3}) || f.Journey(&Journey{Rule: 2, RuleDir: 1}) {
		t.Error("by rule")
	}
}

// A flood of one kind neither copies each of its packets nor hides another kind, and what is not recorded is said.
func TestARecorderIsBoundedByKind(t *testing.T) {
	r := NewRecorder()
	put := func(tenant flow.TenantID, why verdict.Reason, tick uint32) bool {
		d := r.Take(tenant, why, tick)
		if d == nil {
			return false
		}
		d.Tenant, d.Reason = tenant, why
		d.Keep([]byte{byte(tick)})
		return true
	}
	flood := 0
	const ticks, each = 1000, 500
	for tick := range uint32(ticks) {
		for range each {
			if put(1, verdict.ACLDefault, tick) {
				flood++
			}
		}
		if tick%100 == 50 && !put(2, verdict.NoRoute, tick) {
			t.Fatal("a rare drop is not recorded beside a flood")
		}
	}
	if flood > atOnce+ticks*perTick || flood < ticks/2 {
		t.Errorf("%d of %d of the flood recorded", flood, ticks*each)
	}
	out := make([]Drop, dropRing)
	_, n, lost := r.From(0, out)
	said, rare := uint64(0), 0
	for _, d := range out[:n] {
		if d.Tenant == 1 {
			said += 1 + uint64(d.Skipped)
		} else {
			rare++
		}
	}
	if rare != 10 || lost != 0 || said < (ticks-1)*each {
		t.Errorf("%d rare ones, %d lost, %d of the flood said", rare, lost, said)
	}
	for range 3 * dropRing {
		r.class[0].left = atOnce
		put(64, 0, 0)
	}
	next, n, lost := r.From(5, out)
	if n != dropRing || next != r.Written() || lost != r.Written()-dropRing-5 {
		t.Errorf("%d read, %d lost, next %d", n, lost, next)
	}
	if n := testing.AllocsPerRun(1000, func() { put(1, verdict.Land, 5) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A reader that does not read loses packets, which are counted; who reads again gets what comes then.
func TestASlowReaderLosesAndIsTold(t *testing.T) {
	c := NewCapture(All(), 0, 128, true, true)
	size := len(c.frames)
	for i := range size {
		if c.Want(2) {
			c.Keep(Frame{Len: uint16(i)}, []byte{1, byte(i)})
			c.Keep(Frame{Len: uint16(i), Side: After}, make([]byte, 300))
		}
	}
	if c.Lost != uint64(size-size/2) || c.Matched != uint64(size) {
		t.Fatalf("%d matched, %d lost", c.Matched, c.Lost)
	}
	out, data := make([]Frame, size), []byte(nil)
	n, data := c.Frames(out, data)
	if n != size/2*2 || out[0].N != 2 || out[1].N != 128 || len(data) != n/2*130 || data[1] != 0 || data[131] != 1 {
		t.Fatalf("%d frames, %d bytes", n, len(data))
	}
	if !c.Want(2) {
		t.Error("it has room again")
	}
	tr := NewTracer(All(), 3, 2)
	for range 20 {
		if tr.Want(1) {
			tr.Note(&Journey{})
		}
	}
	if got := tr.Journeys(make([]Journey, 9)); got != 2 || tr.Matched != 20 || tr.Taken != 2 {
		t.Errorf("%d of 20, one in 3, 2 at most; %d matched", got, tr.Matched)
	}
}

func TestACaptureIsReadBack(t *testing.T) {
	var p PCAPNG
	b := p.Begin(nil, "test")
	b, before := p.Interface(b, "before", 64)
	b, after := p.Interface(b, "after", 64)
	frames := [][]byte{bytes.Repeat([]byte{1}, 60), bytes.Repeat([]byte{2}, 61), {3}}
	for i, f := range frames {
		b = p.Packet(b, []int{before, after, before}[i], 1700000000123456789, 1500, f, []string{"", "send alpha", "x"}[i])
	}
	b = p.Lost(b, after, 1, 7)
	got, err := ReadFrames(b, 100)
	if err != nil || len(got) != 3 {
		t.Fatal(len(got), err)
	}
	for i := range got {
		if !bytes.Equal(got[i], frames[i]) {
			t.Errorf("frame %d: %x", i, got[i])
		}
	}
	if one, err := ReadFrames(b, 1); err != nil || len(one) != 1 {
		t.Error(len(one), err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20000 { // never a panic, whatever is in the file
		c := bytes.Clone(b[:rng.IntN(len(b)+1)])
		for range rng.IntN(4) {
			if len(c) > 0 {
				c[rng.IntN(len(c))] = byte(rng.Uint32())
			}
		}
		_, _ = ReadFrames(c, 10)
	}
	old := binary.BigEndian.AppendUint32(nil, 0xa1b2c3d4)
	old = append(old, make([]byte, 16)...)
	old = binary.BigEndian.AppendUint32(old, linkEther)
	old = append(old, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 2, 8, 9)
	if got, err := ReadFrames(old, 5); err != nil || len(got) != 1 || !bytes.Equal(got[0], []byte{8, 9}) {
		t.Error(got, err)
	}
}

// What Build makes is a sound packet by gopacket's opinion and by ours, with the fields that were asked for.
func TestABuiltFrameIsSound(t *testing.T) {
	quote := key("192.0.2.16", 4000, "203.0.113.11", 53)
	icmp := key("203.0.113.1", 0, "192.0.2.16", 0)
	icmp.Proto = flow.ICMP
	tcp6 := key("2001:db8::1", 1, "2001:db8::2", 2)
	tcp6.Proto = flow.TCP
	for name, s := range map[string]*Spec{
		"udp":   {Key: key("198.18.10.5", 4000, "203.0.113.11", 9999), TTL: 9, Len: 100, DF: true},
		"tcp6":  {Key: tcp6, TTL: 64, TCPFlags: packet.TCPSyn, VLAN: 20},
		"error": {Key: icmp, TTL: 64, ICMPType: 3, ICMPCode: 1, Quote: &quote},
	} {
		f, err := Build(s)
		if err != nil {
			t.Fatal(name, err)
		}
		p := packet.Packet{Buf: f, Len: len(f)}
		if r := packet.Parse(&p); r != verdict.Pass || p.VLAN != s.VLAN || p.TTL != s.TTL || p.Key.Src != s.Key.Src || s.Len > 0 && p.L3End-p.L3 != s.Len {
			t.Errorf("%s: %s %+v", name, r, p.Key)
		}
		g := gopacket.NewPacket(f, layers.LayerTypeEthernet, gopacket.Default)
		if g.ErrorLayer() != nil {
			t.Errorf("%s: %v", name, g.ErrorLayer())
		}
		b := gopacket.NewSerializeBuffer()
		ls := []gopacket.SerializableLayer{}
		for _, l := range g.Layers() {
			switch x := l.(type) {
			case *layers.UDP:
				_ = x.SetNetworkLayerForChecksum(g.NetworkLayer())
			case *layers.TCP:
				_ = x.SetNetworkLayerForChecksum(g.NetworkLayer())
			}
			ls = append(ls, l.(gopacket.SerializableLayer))
		}
		if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{ComputeChecksums: true}, ls...); err != nil || !bytes.Equal(b.Bytes(), f) {
			t.Errorf("%s: with right checksums (%v)\n%x, built\n%x", name, err, b.Bytes(), f)
		}
		if s.Quote != nil {
			if in, r := packet.ParseInner(&p); r != verdict.Pass || in.Key.Dst != quote.Dst || in.Key.DPort != 53 {
				t.Errorf("%s: quotes %+v, %s", name, in.Key, r)
			}
		}
	}
	for _, s := range []*Spec{{Key: key("198.18.10.5", 1, "203.0.113.11", 2), Len: 27}, {Key: key("198.18.10.5", 1, "203.0.113.11", 2), Len: MaxLen + 1}} {
		if _, err := Build(s); err == nil {
			t.Errorf("length %d was built", s.Len)
		}
	}
}
