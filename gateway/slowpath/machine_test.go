package slowpath

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"demarc/gateway/fib"
	"demarc/gateway/flow"
	"demarc/gateway/packet"
	"demarc/gateway/packet/build"
	"demarc/gateway/verdict"
)

var (
	gwMAC   = [6]byte{2, 0, 0, 0, 0, 1}
	hostMAC = [6]byte{2, 0, 0, 0, 0, 0xaa}
	evilMAC = [6]byte{2, 0, 0, 0, 0, 0xbb}
)

const start = 1000 * sec

// rig is a machine with a fake clock and a recording port.
type rig struct {
	t           *testing.T
	m           *machine
	now         uint64
	sent        [][]byte
	full        bool // the port takes nothing
	by          flow.TenantID
	unreachable int
	from        []int // the workers of those
	dropped     map[verdict.Reason]int
	log         bytes.Buffer
}

func plainIface() Interface {
	return Interface{
		Index: 1, Name: "wan", Port: 3, MAC: gwMAC,
		Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8::1/64")},
		Proxy: []netip.Prefix{netip.MustParsePrefix("192.0.2.64/30"), netip.MustParsePrefix("2001:db8::40/126")},
	}
}

func newRig(t *testing.T, change func(*Config), list ...Interface) *rig {
	r := &rig{t: t, now: start, dropped: map[verdict.Reason]int{}}
	c := Config{
		Neighbors: fib.NewNeighbors(64, 1), QueuePerHop: 3, MaxPending: 16, FrameBytes: 256, Seed: 7, Capacity: 64,
		Send: func(port uint16, _ uint8, b []byte) bool {
			if r.full {
				return false
			}
			if port != 3 {
				t.Errorf("sent to port %d", port)
			}
			r.sent = append(r.sent, bytes.Clone(b))
			return true
		},
		Log:         slog.New(slog.NewTextHandler(&r.log, nil)),
		HostResolve: func(uint16, netip.Addr) {},
		Unreachable: func(_ []byte, _ uint16, worker int) { r.unreachable++; r.from = append(r.from, worker) },
		Dropped:     func(_ []byte, _ uint16, why verdict.Reason) { r.dropped[why]++ },
	}
	if change != nil {
		change(&c)
	}
	r.m = newMachine(c)
	if list == nil {
		list = []Interface{plainIface()}
	}
	r.m.setInterfaces(list, r.now)
	r.m.jobs = nil // announcements have a test of their own
	t.Cleanup(r.conserved)
	return r
}

// conserved checks that each frame that came to wait left once, and that the table is what the entries say.
func (r *rig) conserved() {
	s := r.m.stats
	if got := s.Forwarded + s.NoNeighbor + s.QueueFull + s.Dropped + uint64(r.m.t.nWaiting); got != s.Resolves {
		r.t.Errorf("%d frames came, %d are accounted for: %+v", s.Resolves, got, s)
	}
	usable := 0
	for k, i := range r.m.t.index {
		e := &r.m.t.all[i]
		mac, ok := r.m.cfg.Neighbors.Lookup(k.iface, k.family, &k.addr)
		if ok != e.state.Usable() || ok && mac != e.mac {
			r.t.Errorf("%v is %v %x, workers see %v %x", k.addr.Netip(k.family), e.state, e.mac, ok, mac)
		}
		if ok {
			usable++
		}
		if int(e.heap) >= len(r.m.t.heap) || r.m.t.heap[e.heap] != i {
			r.t.Errorf("%v is not in the heap where it says", k.addr.Netip(k.family))
		}
	}
	if n := r.m.cfg.Neighbors.Len(); n != usable {
		r.t.Errorf("workers' table has %d entries, %d are usable", n, usable)
	}
	free := 0
	for f := r.m.t.freeFrame; f != none; f = r.m.t.frames[f].next {
		free++
	}
	if free+r.m.t.nWaiting != len(r.m.t.frames) {
		r.t.Errorf("%d frames free and %d waiting of %d", free, r.m.t.nWaiting, len(r.m.t.frames))
	}
}

// pass lets time go by in small steps and runs what is due.
func (r *rig) pass(d uint64) {
	for end := r.now + d; r.now < end; {
		r.now = min(r.now+100*ms, end)
		for r.m.expire(r.now) {
		}
		r.m.announce(r.now)
	}
}

// use is what a worker does with each packet.
func (r *rig) use(iface uint16, a string) bool {
	ad := netip.MustParseAddr(a)
	k := keyOf(iface, ad)
	_, ok := r.m.cfg.Neighbors.Lookup(iface, k.family, &k.addr)
	return ok
}

func (r *rig) resolve(iface uint16, a string, tag byte) {
	ad := netip.MustParseAddr(a)
	k := keyOf(iface, ad)
	f := make([]byte, 60)
	f[59] = tag
	r.m.resolve(int(tag), iface, r.by, 0, k.family, &k.addr, f, r.now)
}

func (r *rig) learn(frame []byte) { r.m.learn(1, frame, r.now) }

// took returns what was sent since it was last called, as text.
func (r *rig) took() (out []string) {
	for _, b := range r.sent {
		out = append(out, describe(r.t, b))
	}
	r.sent = nil
	return out
}

func short(m []byte) string {
	switch [6]byte(m) {
	case gwMAC:
		return "gw"
	case hostMAC:
		return "host"
	case evilMAC:
		return "evil"
	case [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}:
		return "all"
	case allNodesMAC:
		return "allnodes"
	case virtual4:
		return "v4"
	case virtual6:
		return "v6"
	}
	if m[0] == 0x33 {
		return "group"
	}
	return "?"
}

func describe(t *testing.T, b []byte) string {
	t.Helper()
	p := packet.Packet{Buf: b, Len: len(b)}
	to := short(b[0:6]) + "<" + short(b[6:12]) + " "
	if b[12] == 0 && b[13] == 0 {
		return to + "frame " + string('0'+b[59])
	}
	if r := packet.Parse(&p); r != verdict.Pass {
		t.Fatalf("sent a frame that does not parse: %v: %x", r, b)
	}
	if p.VLAN != 0 {
		to += "tagged "
	}
	if a, ok := build.ParseARP(&p); ok {
		return to + map[uint16]string{1: "ask ", 2: "reply "}[a.Op] + netip.AddrFrom4(a.SPA).String() + " " + netip.AddrFrom4(a.TPA).String()
	}
	n, ok := build.ParseND(&p)
	if !ok {
		t.Fatalf("sent neither ARP nor ND: %x", b)
	}
	s := to + map[uint8]string{135: "ask ", 136: "reply "}[n.Type] + netip.AddrFrom16(n.Src).String() + " " + netip.AddrFrom16(n.Target).String()
	if n.Solicited {
		s += " S"
	}
	if n.Override {
		s += " O"
	}
	return s
}

func v4(s string) [4]byte  { return netip.MustParseAddr(s).As4() }
func v6(s string) [16]byte { return netip.MustParseAddr(s).As16() }

func arpAsk(mac [6]byte, spa, tpa string) []byte {
	b := make([]byte, 64)
	return b[:build.ARPRequest(b, mac, v4(spa), v4(tpa), [6]byte{}, 0)]
}

func arpReply(mac [6]byte, spa, tpa string) []byte {
	b := make([]byte, 64)
	return b[:build.ARPReply(b, mac, v4(spa), gwMAC, v4(tpa), 0)]
}

func ns(mac [6]byte, src, target string, to [6]byte) []byte {
	b := make([]byte, 90)
	return b[:build.NeighborSolicitation(b, mac, v6(src), v6(target), to, 0)]
}

func na(mac [6]byte, target, dst string, solicited, override bool) []byte {
	b := make([]byte, 90)
	return b[:build.NeighborAdvertisement(b, mac, v6(target), gwMAC, v6(dst), v6(target), solicited, override, 0)]
}

// TestAnswers is a table of single frames and what is said to them.
func TestAnswers(t *testing.T) {
	ll := LinkLocal(gwMAC).String()
	for name, c := range map[string]struct {
		in    []byte
		want  []string
		known string // neighbour that is known afterwards
		check func(*Stats) bool
	}{
		"arp for our address":               {in: arpAsk(hostMAC, "192.0.2.9", "192.0.2.1"), want: []string{"host<gw reply 192.0.2.1 192.0.2.9"}, known: "192.0.2.9"},
		"arp for a nat address":             {in: arpAsk(hostMAC, "192.0.2.9", "192.0.2.66"), want: []string{"host<gw reply 192.0.2.66 192.0.2.9"}, known: "192.0.2.9"},
		"arp beside the nat pool":           {in: arpAsk(hostMAC, "192.0.2.9", "192.0.2.68"), check: func(s *Stats) bool { return s.Ignored == 1 }},
		"arp for another":                   {in: arpAsk(hostMAC, "192.0.2.9", "192.0.2.8"), check: func(s *Stats) bool { return s.Ignored == 1 }},
		"arp probe for our address":         {in: arpAsk(hostMAC, "0.0.0.0", "192.0.2.1"), want: []string{"host<gw reply 192.0.2.1 0.0.0.0"}, check: func(s *Stats) bool { return s.Probed == 1 && s.Duplicates == 0 }},
		"arp from off the link":             {in: arpAsk(hostMAC, "198.51.100.9", "192.0.2.1"), want: []string{"host<gw reply 192.0.2.1 198.51.100.9"}},
		"unasked arp reply":                 {in: arpReply(hostMAC, "192.0.2.9", "192.0.2.1"), check: func(s *Stats) bool { return s.Ignored == 1 }},
		"gratuitous arp of a stranger":      {in: arpAsk(hostMAC, "192.0.2.9", "192.0.2.9"), check: func(s *Stats) bool { return s.Ignored == 1 }},
		"our address used by another":       {in: arpAsk(evilMAC, "192.0.2.1", "192.0.2.9"), want: []string{"all<gw ask 192.0.2.1 192.0.2.1"}, check: func(s *Stats) bool { return s.Duplicates == 1 }},
		"our address answered by another":   {in: arpReply(evilMAC, "192.0.2.1", "192.0.2.9"), want: []string{"all<gw ask 192.0.2.1 192.0.2.1"}, check: func(s *Stats) bool { return s.Duplicates == 1 }},
		"a nat address used by another":     {in: arpAsk(evilMAC, "192.0.2.65", "192.0.2.65"), want: []string{"all<gw ask 192.0.2.65 192.0.2.65"}, check: func(s *Stats) bool { return s.Duplicates == 1 }},
		"our own arp come back":             {in: arpAsk(gwMAC, "192.0.2.1", "192.0.2.1"), check: func(s *Stats) bool { return s.Ignored == 1 && s.Duplicates == 0 }},
		"arp from a group mac":              {in: arpAsk([6]byte{1, 0, 0, 0, 0, 1}, "192.0.2.9", "192.0.2.1"), check: func(s *Stats) bool { return s.Malformed == 1 }},
		"arp cut short":                     {in: arpAsk(hostMAC, "192.0.2.9", "192.0.2.1")[:30], check: func(s *Stats) bool { return s.Malformed == 1 }},
		"arp from the broadcast address":    {in: arpAsk(hostMAC, "192.0.2.255", "192.0.2.1"), want: []string{"host<gw reply 192.0.2.1 192.0.2.255"}},
		"nothing at all":                    {in: []byte{}, check: func(s *Stats) bool { return s.Malformed == 1 }},
		"ns for our address":                {in: ns(hostMAC, "2001:db8::9", "2001:db8::1", [6]byte{}), want: []string{"host<gw reply 2001:db8::1 2001:db8::1 S O"}, known: "2001:db8::9"},
		"ns for our link-local address":     {in: ns(hostMAC, "fe80::9", ll, [6]byte{}), want: []string{"host<gw reply " + ll + " " + ll + " S O"}, known: "fe80::9"},
		"unicast ns":                        {in: ns(hostMAC, "fe80::9", "2001:db8::1", gwMAC), want: []string{"host<gw reply 2001:db8::1 2001:db8::1 S O"}, known: "fe80::9"},
		"ns for an address answered for":    {in: ns(hostMAC, "2001:db8::9", "2001:db8::41", [6]byte{}), want: []string{"host<gw reply 2001:db8::41 2001:db8::41 S"}, known: "2001:db8::9"},
		"ns for another":                    {in: ns(hostMAC, "2001:db8::9", "2001:db8::8", [6]byte{}), check: func(s *Stats) bool { return s.Ignored == 1 }},
		"ns probe for our address":          {in: ns(hostMAC, "::", "2001:db8::1", [6]byte{}), want: []string{"allnodes<gw reply 2001:db8::1 2001:db8::1 O"}, check: func(s *Stats) bool { return s.Probed == 1 && s.Duplicates == 0 }},
		"ns from our address":               {in: ns(evilMAC, "2001:db8::1", "2001:db8::1", [6]byte{}), want: []string{"allnodes<gw reply 2001:db8::1 2001:db8::1 O"}, check: func(s *Stats) bool { return s.Duplicates == 1 }},
		"na for our address":                {in: na(evilMAC, "2001:db8::1", "ff02::1", false, true), want: []string{"allnodes<gw reply 2001:db8::1 2001:db8::1 O"}, check: func(s *Stats) bool { return s.Duplicates == 1 }},
		"na for our link-local address":     {in: na(evilMAC, ll, "ff02::1", false, true), want: []string{"allnodes<gw reply " + ll + " " + ll + " O"}, check: func(s *Stats) bool { return s.Duplicates == 1 }},
		"na of a stranger":                  {in: na(hostMAC, "2001:db8::9", "ff02::1", false, true), check: func(s *Stats) bool { return s.Ignored == 1 }},
		"our own na come back":              {in: na(gwMAC, "2001:db8::1", "ff02::1", false, true), check: func(s *Stats) bool { return s.Ignored == 1 && s.Duplicates == 0 }},
		"ns from off the link":              {in: ns(hostMAC, "2001:db8:1::9", "2001:db8::1", [6]byte{}), want: []string{"host<gw reply 2001:db8::1 2001:db8::1 S O"}},
		"ns with a bad checksum":            {in: flip(ns(hostMAC, "2001:db8::9", "2001:db8::1", [6]byte{}), 80), check: func(s *Stats) bool { return s.Malformed == 1 }},
		"ns that a router has passed":       {in: flip(ns(hostMAC, "2001:db8::9", "2001:db8::1", [6]byte{}), 21), check: func(s *Stats) bool { return s.Malformed == 1 }},
		"solicited na to a multicast group": {in: na(hostMAC, "2001:db8::9", "ff02::1", true, true), check: func(s *Stats) bool { return s.Malformed == 1 }},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.learn(c.in)
			if d := cmp.Diff(c.want, r.took()); d != "" {
				t.Errorf("answers: %s", d)
			}
			if n := r.m.t.len(); (c.known != "") != (n == 1) || n > 1 {
				t.Errorf("%d neighbours known, want %q", n, c.known)
			}
			if c.known != "" && !r.use(1, c.known) {
				t.Errorf("%s is not known", c.known)
			}
			if c.check != nil && !c.check(&r.m.stats) {
				t.Errorf("counters: %+v", r.m.stats)
			}
			if dup := strings.Contains(r.log.String(), "another station uses our address"); dup != (r.m.stats.Duplicates > 0) {
				t.Errorf("log: %s", r.log.String())
			}
		})
	}
}

func flip(b []byte, i int) []byte { b[i] ^= 1; return b }

func TestResolve(t *testing.T) {
	for name, c := range map[string]struct {
		hop, ask string
		reply    []byte
	}{
		"ipv4":            {"192.0.2.9", "all<gw ask 192.0.2.1 192.0.2.9", arpReply(hostMAC, "192.0.2.9", "192.0.2.1")},
		"ipv6":            {"2001:db8::9", "group<gw ask 2001:db8::1 2001:db8::9", na(hostMAC, "2001:db8::9", "2001:db8::1", true, true)},
		"ipv6 link-local": {"fe80::9", "group<gw ask fe80::de:6a00:1 fe80::9", na(hostMAC, "fe80::9", "fe80::de:6a00:1", true, true)},
		"no override":     {"2001:db8::9", "group<gw ask 2001:db8::1 2001:db8::9", na(hostMAC, "2001:db8::9", "2001:db8::1", true, false)},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.resolve(1, c.hop, 1)
			r.resolve(1, c.hop, 2)
			if d := cmp.Diff([]string{c.ask}, r.took()); d != "" {
				t.Fatalf("asked: %s", d)
			}
			r.pass(1100 * ms)
			if d := cmp.Diff([]string{c.ask}, r.took()); d != "" {
				t.Fatalf("asked again: %s", d)
			}
			if r.use(1, c.hop) {
				t.Fatal("known before the answer")
			}
			r.learn(c.reply)
			if d := cmp.Diff([]string{"host<gw frame 1", "host<gw frame 2"}, r.took()); d != "" {
				t.Errorf("what waited: %s", d)
			}
			r.resolve(1, c.hop, 3) // overtaken by the answer on its way
			if d := cmp.Diff([]string{"host<gw frame 3"}, r.took()); d != "" {
				t.Errorf("what came late: %s", d)
			}
			if !r.use(1, c.hop) {
				t.Error("not known after the answer")
			}
		})
	}
}

func TestResolveOnTaggedInterface(t *testing.T) {
	c := plainIface()
	c.VLAN = 7
	r := newRig(t, nil, c)
	r.resolve(1, "192.0.2.9", 1)
	r.resolve(1, "2001:db8::9", 1)
	r.learn(arpAsk(hostMAC, "192.0.2.8", "192.0.2.1"))
	want := []string{"all<gw tagged ask 192.0.2.1 192.0.2.9", "group<gw tagged ask 2001:db8::1 2001:db8::9", "host<gw tagged reply 192.0.2.1 192.0.2.8"}
	if d := cmp.Diff(want, r.took()); d != "" {
		t.Error(d)
	}
}

func TestNoAnswer(t *testing.T) {
	r := newRig(t, nil)
	r.resolve(1, "192.0.2.9", 1)
	r.pass(2900 * ms)
	if len(r.took()) != 3 || r.unreachable != 0 {
		t.Fatalf("%d given up before the third question was given its second", r.unreachable)
	}
	r.pass(200 * ms)
	if r.unreachable != 1 {
		t.Fatalf("%d told unreachable, want 1", r.unreachable)
	}
	r.resolve(1, "192.0.2.9", 2) // negative entry: at once, and nobody is asked
	if r.unreachable != 2 || len(r.took()) != 0 {
		t.Fatalf("negative entry: %d unreachable", r.unreachable)
	}
	if d := cmp.Diff([]int{1, 2}, r.from); d != "" { // the rig's tag is the worker too
		t.Fatalf("the frames went back to workers %v: %s", r.from, d)
	}
	r.pass(3 * sec)
	if r.m.t.len() != 0 {
		t.Fatal("negative entry stays")
	}
	r.resolve(1, "192.0.2.9", 3)
	if d := cmp.Diff([]string{"all<gw ask 192.0.2.1 192.0.2.9"}, r.took()); d != "" {
		t.Fatalf("after the negative entry: %s", d)
	}
	r.pass(3100 * ms)
	r.learn(arpAsk(hostMAC, "192.0.2.9", "192.0.2.1")) // it speaks after all: the negative entry ends
	r.took()
	r.resolve(1, "192.0.2.9", 4)
	if d := cmp.Diff([]string{"host<gw frame 4"}, r.took()); d != "" {
		t.Fatalf("once it spoke: %s", d)
	}
}

func TestNotWorthAsking(t *testing.T) {
	r := newRig(t, nil)
	for _, a := range []string{"192.0.2.0", "192.0.2.255", "255.255.255.255", "0.0.0.0", "224.0.0.1", "127.0.0.1", "192.0.2.1", "ff02::1", "::", "::1", "2001:db8::1"} {
		r.resolve(1, a, 1)
	}
	if r.unreachable != 11 || len(r.sent) != 0 || r.m.t.len() != 0 {
		t.Errorf("%d unreachable of 11, %d sent, %d entries", r.unreachable, len(r.sent), r.m.t.len())
	}
	r.resolve(9, "192.0.2.9", 1)
	if r.dropped[verdict.InterfaceDown] != 1 {
		t.Errorf("no such interface: %v", r.dropped)
	}
}

func TestQueueBounds(t *testing.T) {
	r := newRig(t, nil)
	for tag := byte(1); tag <= 5; tag++ { // 3 fit: the oldest go
		r.resolve(1, "192.0.2.9", tag)
	}
	if r.dropped[verdict.NeighborQueueFull] != 2 {
		t.Fatalf("dropped: %v", r.dropped)
	}
	for i := range 14 { // 13 frames are free
		r.resolve(1, netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i/2)}).String(), 6)
	}
	if r.m.t.nWaiting != 16 || r.dropped[verdict.NeighborQueueFull] != 3 {
		t.Fatalf("%d wait, dropped %v", r.m.t.nWaiting, r.dropped)
	}
	r.took()
	r.learn(arpReply(hostMAC, "192.0.2.9", "192.0.2.1"))
	if d := cmp.Diff([]string{"host<gw frame 4", "host<gw frame 5"}, r.took()); d != "" {
		t.Error(d)
	}
	r.full = true
	r.learn(arpReply(hostMAC, "192.0.2.100", "192.0.2.1"))
	if r.dropped[verdict.TxRingFull] != 2 {
		t.Errorf("port full: %v", r.dropped)
	}
}

// known makes a neighbour that has answered.
func (r *rig) known(a string, mac [6]byte) {
	r.t.Helper()
	r.resolve(1, a, 1)
	if strings.Contains(a, ":") {
		r.learn(na(mac, a, "2001:db8::1", true, true))
	} else {
		r.learn(arpReply(mac, a, "192.0.2.1"))
	}
	r.took()
	if !r.use(1, a) {
		r.t.Fatalf("%s did not become known", a)
	}
}

func TestInUseIsConfirmed(t *testing.T) {
	for _, a := range []string{"192.0.2.9", "2001:db8::9"} {
		r := newRig(t, nil)
		r.known(a, hostMAC)
		asked := 0
		for range 120 * 10 { // two minutes in which it answers
			r.pass(100 * ms)
			if !r.use(1, a) {
				t.Fatalf("%s: an entry in use was lost", a)
			}
			for _, s := range r.took() {
				if !strings.HasPrefix(s, "host<gw ask ") {
					t.Fatalf("%s: %s: the confirmation is asked of it alone", a, s)
				}
				asked++
				if strings.Contains(a, ":") {
					r.learn(na(hostMAC, a, "2001:db8::1", true, false))
				} else {
					r.learn(arpReply(hostMAC, a, "192.0.2.1"))
				}
			}
		}
		if asked < 2 || asked > 8 { // every 15 to 45 s
			t.Errorf("%s: asked %d times in two minutes", a, asked)
		}
	}
}

func TestInUseAndGone(t *testing.T) {
	r := newRig(t, nil)
	r.known("192.0.2.9", hostMAC)
	var said []string
	lost := uint64(0)
	for lost == 0 && r.now < start+100*sec {
		r.pass(100 * ms)
		said = append(said, r.took()...)
		if !r.use(1, "192.0.2.9") {
			lost = r.now
		}
	}
	want := []string{"host<gw ask 192.0.2.1 192.0.2.9", "host<gw ask 192.0.2.1 192.0.2.9", "host<gw ask 192.0.2.1 192.0.2.9", "all<gw ask 192.0.2.1 192.0.2.9"}
	if d := cmp.Diff(want, said); d != "" {
		t.Errorf("three to it, then to all: %s", d)
	}
	if lost < start+15*sec || lost > start+50*sec {
		t.Errorf("lost after %d s", (lost-start)/sec)
	}
	r.learn(arpReply(evilMAC, "192.0.2.9", "192.0.2.1")) // its successor answers
	if !r.use(1, "192.0.2.9") {
		t.Error("the successor is not known")
	}
}

func TestUnusedExpires(t *testing.T) {
	r := newRig(t, nil)
	r.known("192.0.2.9", hostMAC)
	r.learn(arpAsk(hostMAC, "192.0.2.10", "192.0.2.1"))
	r.took()
	r.m.cfg.Neighbors.Used(1, 4, &[]flow.Addr{flow.AddrFrom(netip.MustParseAddr("192.0.2.9"))}[0], true)
	r.pass(290 * sec)
	if r.m.t.len() != 2 {
		t.Fatalf("%d entries after 290 s", r.m.t.len())
	}
	r.pass(60 * sec)
	if r.m.t.len() != 0 || r.m.cfg.Neighbors.Len() != 0 || len(r.took()) != 0 {
		t.Errorf("%d entries after 350 s without use", r.m.t.len())
	}
}

func TestMACChange(t *testing.T) {
	type step struct {
		in    []byte
		wait  uint64 // before it
		mac   [6]byte
		state fib.State
	}
	a4, a6 := "192.0.2.9", "2001:db8::9"
	for name, c := range map[string]struct {
		a       string
		steps   []step
		changes uint64
	}{
		"arp reply to us":                         {a4, []step{{arpReply(evilMAC, a4, "192.0.2.1"), 2 * sec, evilMAC, fib.Reachable}}, 1},
		"arp request to us":                       {a4, []step{{arpAsk(evilMAC, a4, "192.0.2.1"), 2 * sec, evilMAC, fib.Stale}}, 1},
		"arp request to another":                  {a4, []step{{arpAsk(evilMAC, a4, "192.0.2.3"), 2 * sec, evilMAC, fib.Stale}}, 1},
		"two that answer: the first for a second": {a4, []step{{arpReply(evilMAC, a4, "192.0.2.1"), 0, hostMAC, fib.Reachable}}, 0},
		"gratuitous arp counts at once":           {a4, []step{{arpAsk(evilMAC, a4, a4), 0, evilMAC, fib.Stale}}, 1},
		"the same again":                          {a4, []step{{arpReply(hostMAC, a4, "192.0.2.1"), 2 * sec, hostMAC, fib.Reachable}}, 0},
		"na with override":                        {a6, []step{{na(evilMAC, a6, "2001:db8::1", true, true), 0, evilMAC, fib.Reachable}}, 1},
		"unsolicited na with override":            {a6, []step{{na(evilMAC, a6, "ff02::1", false, true), 0, evilMAC, fib.Stale}}, 1},
		"na without override makes it doubtful":   {a6, []step{{na(evilMAC, a6, "2001:db8::1", true, false), 0, hostMAC, fib.Stale}}, 0},
		"and a second one changes nothing":        {a6, []step{{na(evilMAC, a6, "2001:db8::1", true, false), 0, hostMAC, fib.Stale}, {na(evilMAC, a6, "2001:db8::1", true, false), 0, hostMAC, fib.Stale}}, 0},
		"unsolicited na with the same mac":        {a6, []step{{na(hostMAC, a6, "ff02::1", false, true), 0, hostMAC, fib.Reachable}}, 0},
		"ns with another mac":                     {a6, []step{{ns(evilMAC, a6, "2001:db8::1", [6]byte{}), 0, evilMAC, fib.Stale}}, 1},
		"doubt ends with an answer":               {a6, []step{{na(evilMAC, a6, "2001:db8::1", true, false), 0, hostMAC, fib.Stale}, {na(hostMAC, a6, "2001:db8::1", true, false), 0, hostMAC, fib.Reachable}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.known(c.a, hostMAC)
			for i, s := range c.steps {
				r.pass(s.wait)
				r.learn(s.in)
				k := keyOf(1, netip.MustParseAddr(c.a))
				e := &r.m.t.all[r.m.t.find(&k)]
				if mac, _ := r.m.cfg.Neighbors.Lookup(1, k.family, &k.addr); mac != s.mac || e.state != s.state {
					t.Errorf("step %d: %s %v, want %s %v", i, short(mac[:]), e.state, short(s.mac[:]), s.state)
				}
			}
			if r.m.stats.MACChanges != c.changes || strings.Contains(r.log.String(), "moved to another mac") != (c.changes > 0) {
				t.Errorf("%d changes counted, log %q", r.m.stats.MACChanges, r.log.String())
			}
		})
	}
}

func TestDuplicateIsLoggedOnceAMinute(t *testing.T) {
	r := newRig(t, nil)
	for range 130 {
		r.learn(arpReply(evilMAC, "192.0.2.1", "192.0.2.9"))
		r.pass(1 * sec)
	}
	if n := strings.Count(r.log.String(), "another station uses our address"); n != 3 || r.m.stats.Duplicates != 130 {
		t.Errorf("%d lines, %d counted", n, r.m.stats.Duplicates)
	}
	if !strings.Contains(r.log.String(), "mac=02:00:00:00:00:bb") || !strings.Contains(r.log.String(), "address=192.0.2.1") {
		t.Errorf("log says %q", r.log.String())
	}
}

// An address is defended at most once in ten seconds, each for itself, and never given up (RFC 5227 section 2.4 c).
func TestAddressesAreDefended(t *testing.T) {
	r := newRig(t, nil)
	for range 350 { // 35 s
		r.learn(arpReply(evilMAC, "192.0.2.1", "192.0.2.9"))
		r.learn(na(evilMAC, "2001:db8::1", "ff02::1", false, true))
		r.pass(100 * ms)
	}
	count := map[string]int{}
	for _, d := range r.took() {
		count[d]++
	}
	if d := cmp.Diff(map[string]int{"all<gw ask 192.0.2.1 192.0.2.1": 4, "allnodes<gw reply 2001:db8::1 2001:db8::1 O": 4}, count); d != "" {
		t.Error(d)
	}
	if s := r.m.stats; s.Duplicates != 700 || s.Defended != 8 {
		t.Errorf("%+v", s)
	}
	r.learn(arpAsk(hostMAC, "192.0.2.9", "192.0.2.1"))
	if got := r.took(); len(got) != 1 || got[0] != "host<gw reply 192.0.2.1 192.0.2.9" {
		t.Errorf("the address is not answered for any more: %v", got)
	}
	list := r.m.clashes
	if len(list) != 2 || list[0].Addr.String() != "192.0.2.1" || list[0].MAC != evilMAC || list[0].Count != 350 {
		t.Errorf("%+v", list)
	}
	for i := range 40 { // what is remembered is bounded
		r.m.conflict(1, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
	}
	if len(r.m.clashes) != maxConflicts {
		t.Errorf("%d are remembered", len(r.m.clashes))
	}
}

// Whoever claims many of the addresses that are only answered for leaves the gateway's own their defence.
func TestOwnAddressesAreDefendedBesideOthers(t *testing.T) {
	c := plainIface()
	c.Proxy = []netip.Prefix{netip.MustParsePrefix("192.0.2.64/26")}
	r := newRig(t, nil, c)
	for i := range 200 {
		r.learn(arpReply(evilMAC, netip.AddrFrom4([4]byte{192, 0, 2, byte(70 + i%40)}).String(), "192.0.2.9"))
	}
	if n := len(r.took()); n != maxConflicts {
		t.Errorf("%d defences at once, want %d", n, maxConflicts)
	}
	r.learn(arpReply(evilMAC, "192.0.2.1", "192.0.2.9"))
	if d := cmp.Diff([]string{"all<gw ask 192.0.2.1 192.0.2.1"}, r.took()); d != "" {
		t.Error(d)
	}
}

// However many addresses are claimed by others at a time, what is told to everyone about that is bounded.
func TestDefenceIsBounded(t *testing.T) {
	c := plainIface()
	c.Proxy = []netip.Prefix{netip.MustParsePrefix("192.0.2.64/26")}
	r := newRig(t, nil, c)
	for i := range 10000 { // 10 s, 40 addresses in a circle
		r.learn(arpReply(evilMAC, netip.AddrFrom4([4]byte{192, 0, 2, byte(70 + i%40)}).String(), "192.0.2.9"))
		r.pass(ms)
	}
	told := 0
	for _, d := range r.took() {
		if strings.HasPrefix(d, "all<gw ask 192.0.2.") {
			told++
		}
	}
	if told < maxConflicts || told > 2*maxConflicts+1 {
		t.Errorf("%d frames to everyone in 10 s for 10,000 forged ones, want %d to %d", told, maxConflicts, 2*maxConflicts+1)
	}
}

// One station that answers for as many addresses as the table holds, and is sent nothing, leaves room for who is: that it answers is no use.
func TestWhoAnswersForAllLeavesRoom(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Capacity = 64 })
	r.known("192.0.2.9", hostMAC)
	address := func(i int) string {
		a := v6("fe80::7:0:0")
		a[14], a[15] = byte(i>>8), byte(i)
		return netip.AddrFrom16(a).String()
	}
	for i := range 500 {
		r.learn(ns(evilMAC, address(i), "2001:db8::1", [6]byte{}))
		r.learn(na(evilMAC, address(i), "2001:db8::1", true, true))
		if !r.use(1, "192.0.2.9") {
			t.Fatalf("who is in use was lost at %d", i)
		}
	}
	r.took()
	r.known("192.0.2.10", hostMAC)
	if r.m.stats.TableFull != 0 {
		t.Errorf("no room %d times", r.m.stats.TableFull)
	}
}

// TestFloodsLeaveWhatIsInUse: neither a flood of questions from forged neighbours nor a scan of a /64 pushes out an entry in use, and a
// new neighbour can still be resolved during them.
func TestFloodsLeaveWhatIsInUse(t *testing.T) {
	for name, flood := range map[string]func(r *rig, i int){
		"arp requests": func(r *rig, i int) {
			r.learn(arpAsk([6]byte{2, 1, byte(i >> 16), byte(i >> 8), byte(i), 1}, netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i%100)}).String(), "192.0.2.1"))
		},
		"solicitations": func(r *rig, i int) {
			a := v6("2001:db8::5:0")
			a[14], a[15], a[10] = byte(i>>8), byte(i), byte(i>>16)
			r.learn(ns([6]byte{2, 1, byte(i >> 16), byte(i >> 8), byte(i), 1}, netip.AddrFrom16(a).String(), "2001:db8::1", [6]byte{}))
		},
		"scan of the /64": func(r *rig, i int) {
			a := v6("2001:db8::6:0:0")
			a[14], a[15], a[12] = byte(i>>8), byte(i), byte(i>>16)
			r.resolve(1, netip.AddrFrom16(a).String(), 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			inUse := []string{"192.0.2.9", "192.0.2.10", "2001:db8::9", "fe80::9"}
			for _, a := range inUse {
				r.known(a, hostMAC)
			}
			resolved := false
			for i := range 20000 { // 20 s of 5000 a second
				for k := range 5 {
					flood(r, 5*i+k)
				}
				r.pass(1 * ms)
				for _, a := range inUse {
					if !r.use(1, a) {
						t.Fatalf("%s was lost at %d", a, i)
					}
				}
				for _, b := range r.sent { // those in use answer, and so does one that is new
					for _, a := range append(inUse, "2001:db8::99") {
						if d := describe(t, b); strings.Contains(d, " ask ") && strings.HasSuffix(d, " "+a) {
							if strings.Contains(a, ":") {
								r.learn(na(hostMAC, a, "2001:db8::1", true, true))
							} else {
								r.learn(arpReply(hostMAC, a, "192.0.2.1"))
							}
						}
					}
				}
				r.sent = nil
				if i > 5000 && i%7 == 0 && !resolved {
					r.resolve(1, "2001:db8::99", 1)
					resolved = r.use(1, "2001:db8::99")
				}
			}
			if !resolved && !r.use(1, "2001:db8::99") {
				t.Error("a new neighbour could not be resolved during the flood")
			}
			if r.m.t.len() > 64 || r.m.t.unanswered > 16 {
				t.Errorf("%d entries, %d not answered", r.m.t.len(), r.m.t.unanswered)
			}
			if sent := r.m.stats.Solicited; sent > 20*1000+askBurst+100 {
				t.Errorf("%d questions in 20 s: the flood was passed on", sent)
			}
		})
	}
}

// TestWhoGoesFirst: of those not in use a failed one goes before an idle one, and that before one still asked for.
func TestWhoGoesFirst(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Capacity = 8 }) // at most 2 failed or resolving
	r.resolve(1, "192.0.2.20", 1)
	r.pass(3100 * ms) // has failed
	r.resolve(1, "192.0.2.21", 1)
	r.resolve(1, "192.0.2.22", 1)
	state := func(a string) string {
		k := keyOf(1, netip.MustParseAddr(a))
		if i := r.m.t.find(&k); i != none {
			return r.m.t.all[i].state.String()
		}
		return "gone"
	}
	if state("192.0.2.20") != "gone" || state("192.0.2.21") != "incomplete" || state("192.0.2.22") != "incomplete" {
		t.Fatalf("%s %s %s", state("192.0.2.20"), state("192.0.2.21"), state("192.0.2.22"))
	}
	r.resolve(1, "192.0.2.23", 1) // no failed one is left: the longest asked-for
	if state("192.0.2.21") != "gone" || state("192.0.2.22") != "incomplete" || state("192.0.2.23") != "incomplete" {
		t.Fatalf("%s %s %s", state("192.0.2.21"), state("192.0.2.22"), state("192.0.2.23"))
	}
	for i := range 6 { // the table is full now
		r.learn(arpAsk(hostMAC, netip.AddrFrom4([4]byte{192, 0, 2, byte(30 + i)}).String(), "192.0.2.1"))
	}
	r.use(1, "192.0.2.30")
	r.learn(arpAsk(hostMAC, "192.0.2.40", "192.0.2.1"))
	if state("192.0.2.30") != "stale" || state("192.0.2.31") != "gone" || state("192.0.2.40") != "stale" || state("192.0.2.22") != "incomplete" {
		t.Fatalf("%s %s %s %s", state("192.0.2.30"), state("192.0.2.31"), state("192.0.2.40"), state("192.0.2.22"))
	}
}

func TestFullOfWhatIsInUse(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Capacity = 4 })
	for _, a := range []string{"192.0.2.9", "192.0.2.10", "192.0.2.11", "192.0.2.12"} {
		r.known(a, hostMAC)
	}
	r.resolve(1, "192.0.2.13", 1)
	if r.dropped[verdict.NeighborQueueFull] != 1 || r.m.stats.TableFull != 1 || r.m.t.len() != 4 {
		t.Errorf("dropped %v, %+v", r.dropped, r.m.stats)
	}
	r.learn(arpAsk(evilMAC, "192.0.2.14", "192.0.2.1"))
	if len(r.took()) != 1 || r.m.t.len() != 4 {
		t.Error("a stranger is answered also when it cannot be remembered")
	}
}

func TestRatesOfAnswers(t *testing.T) {
	r := newRig(t, nil)
	for range 5000 {
		r.learn(arpAsk(hostMAC, "192.0.2.9", "192.0.2.1"))
	}
	const most = answerBurst + stationBurst // of one station
	if n := len(r.sent); n != most || r.m.stats.RateLimited != 5000-most {
		t.Errorf("%d answers at once, %d withheld", n, r.m.stats.RateLimited)
	}
	r.sent = nil
	r.now += sec
	for range 5000 {
		r.learn(arpAsk(hostMAC, "192.0.2.9", "192.0.2.1"))
	}
	if n := len(r.sent); n < most || n > most+1 {
		t.Errorf("%d answers a second later", n)
	}
}

// Whoever asks more than is answered takes no answer from who is beside him, by ARP or by neighbour discovery.
func TestAFloodLeavesOthersTheirAnswers(t *testing.T) {
	r := newRig(t, nil)
	answered := 0
	for range 10 {
		for range 100 { // a second
			for range 100 {
				r.learn(arpAsk(evilMAC, "192.0.2.99", "192.0.2.1"))
				r.learn(ns(evilMAC, "2001:db8::66", "2001:db8::1", [6]byte{}))
			}
			r.now += 10 * ms
		}
		r.sent = nil
		r.learn(arpAsk(hostMAC, "192.0.2.9", "192.0.2.1"))
		r.learn(ns(hostMAC, "2001:db8::9", "2001:db8::1", [6]byte{}))
		answered += len(r.sent)
	}
	// However many stations they say that they are, what leaves an interface is bounded.
	r.now += 10 * sec
	r.sent = nil
	for i := range 20000 {
		r.learn(arpAsk([6]byte{2, 0x66, 0, 0, byte(i >> 8), byte(i)}, "192.0.2.99", "192.0.2.1"))
	}
	if n := len(r.sent); n < answerBurst || n > answerBurst+firstBurst {
		t.Errorf("%d answers at once", n)
	}
	if answered != 20 || r.m.stats.RateLimited < 150_000 {
		t.Errorf("%d of 20 questions were answered beside a flood, of which %d were not", answered, r.m.stats.RateLimited)
	}
}

func sharedIface() Interface {
	c := plainIface()
	c.HostShared = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	return c
}

func TestSharedAddressIsTheKernels(t *testing.T) {
	r := newRig(t, nil, sharedIface())
	r.learn(arpAsk(hostMAC, "192.0.2.9", "192.0.2.1"))
	r.learn(arpReply(evilMAC, "192.0.2.1", "192.0.2.9"))
	r.learn(ns(hostMAC, "2001:db8::9", "2001:db8::1", [6]byte{}))
	r.learn(ns(evilMAC, "2001:db8::1", "2001:db8::41", [6]byte{}))
	r.learn(na(evilMAC, "2001:db8::1", "ff02::1", false, true))
	if len(r.took()) != 0 || r.m.stats.Duplicates != 0 || r.m.t.len() != 0 {
		t.Fatalf("answered or learnt for an address of the kernel: %+v", r.m.stats)
	}
	r.learn(arpAsk(hostMAC, "192.0.2.9", "192.0.2.65"))
	if d := cmp.Diff([]string{"host<gw reply 192.0.2.65 192.0.2.9"}, r.took()); d != "" {
		t.Fatalf("a nat address beside it: %s", d)
	}
	hop := netip.MustParseAddr("192.0.2.9")
	r.resolve(1, "192.0.2.9", 1)
	ask := []hostAsk{{1, hop}}
	if d := cmp.Diff(ask, r.m.hostAsks, cmp.AllowUnexported(hostAsk{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Fatalf("asked of the kernel: %s", d)
	}
	r.m.learned(1, netip.MustParseAddr("192.0.2.77"), hostMAC, r.now) // nobody asked
	r.m.learned(1, hop, hostMAC, r.now)
	if d := cmp.Diff([]string{"host<gw frame 1"}, r.took()); d != "" {
		t.Fatalf("what waited: %s", d)
	}
	r.learn(arpAsk(evilMAC, "192.0.2.9", "192.0.2.65")) // hearsay against the kernel's knowledge
	r.took()
	k := keyOf(1, hop)
	if mac, _ := r.m.cfg.Neighbors.Lookup(1, 4, &k.addr); mac != hostMAC {
		t.Errorf("mac %s", short(mac[:]))
	}
	r.m.hostAsks = nil
	for range 60 {
		r.pass(sec)
		r.use(1, "192.0.2.9")
	}
	if n := len(r.m.hostAsks); n < 1 || n > 3 {
		t.Errorf("the kernel was told of use %d times in a minute", n)
	}
	r.m.learned(1, hop, evilMAC, r.now)
	if mac, _ := r.m.cfg.Neighbors.Lookup(1, 4, &k.addr); mac != evilMAC {
		t.Errorf("after the kernel saw it move: %s", short(mac[:]))
	}
	r.m.learned(1, hop, [6]byte{}, r.now)
	if r.use(1, "192.0.2.9") || r.m.t.len() != 0 {
		t.Error("known although the kernel gave it up")
	}
	r.resolve(1, "192.0.2.9", 2)
	r.pass(4 * sec)
	if r.unreachable != 1 {
		t.Errorf("the kernel did not answer: %d unreachable", r.unreachable)
	}
	if len(r.took()) != 0 {
		t.Error("a question of our own for the kernel's address")
	}
}

func TestSource(t *testing.T) {
	pfx := func(s ...string) (out []netip.Prefix) {
		for _, x := range s {
			out = append(out, netip.MustParsePrefix(x))
		}
		return out
	}
	addr := func(s ...string) (out []netip.Addr) {
		for _, x := range s {
			out = append(out, netip.MustParseAddr(x))
		}
		return out
	}
	ll := LinkLocal(gwMAC).String()
	for name, c := range map[string]struct {
		addrs  []netip.Prefix
		shared []netip.Addr
		target string
		src    string
		kernel bool
	}{
		"of the same prefix":            {pfx("192.0.2.1/25", "192.0.2.129/25"), nil, "192.0.2.200", "192.0.2.129", false},
		"of another prefix":             {pfx("192.0.2.1/25"), nil, "198.51.100.1", "192.0.2.1", false},
		"unnumbered":                    {nil, nil, "198.51.100.1", "0.0.0.0", false},
		"only the kernel's":             {pfx("192.0.2.1/25"), addr("192.0.2.1"), "192.0.2.9", "192.0.2.1", true},
		"ours beside the kernel's":      {pfx("192.0.2.1/25", "192.0.2.2/25"), addr("192.0.2.1"), "192.0.2.9", "192.0.2.2", false},
		"the kernel's, elsewhere":       {pfx("192.0.2.1/25"), addr("192.0.2.1"), "198.51.100.1", "192.0.2.1", true},
		"ipv6 of the same prefix":       {pfx("192.0.2.1/25", "2001:db8::1/64"), nil, "2001:db8::9", "2001:db8::1", false},
		"ipv6 of another prefix":        {pfx("2001:db8::1/64"), nil, "2001:db8:1::9", ll, false},
		"ipv6 link-local":               {pfx("2001:db8::1/64"), nil, "fe80::9", ll, false},
		"ipv6 link-local is the kernel": {pfx("2001:db8::1/64"), addr(ll), "fe80::9", ll, true},
	} {
		f := newNetif(Interface{MAC: gwMAC, Addrs: c.addrs, HostShared: c.shared})
		if src, k := f.source(netip.MustParseAddr(c.target)); src.String() != c.src || k != c.kernel {
			t.Errorf("%s: %v %v, want %s %v", name, src, k, c.src, c.kernel)
		}
	}
}

func TestLinkLocal(t *testing.T) {
	if a := LinkLocal([6]byte{0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde}); a != netip.MustParseAddr("fe80::3656:78de:6a9a:bcde") {
		t.Error(a)
	}
}

func TestAnnouncements(t *testing.T) {
	r := newRig(t, nil, Interface{Index: 9, Port: 3, MAC: gwMAC}) // another, to begin with
	r.took()
	c := plainIface()
	c.Proxy = c.Proxy[:1]
	c.HostShared = []netip.Addr{netip.MustParseAddr("192.0.2.65")}
	r.m.setInterfaces([]Interface{c}, r.now)
	round := []string{
		"all<gw ask 192.0.2.1 192.0.2.1", "allnodes<gw reply 2001:db8::1 2001:db8::1 O", "allnodes<gw reply fe80::de:6a00:1 fe80::de:6a00:1 O",
		"all<gw ask 192.0.2.64 192.0.2.64", "all<gw ask 192.0.2.66 192.0.2.66", "all<gw ask 192.0.2.67 192.0.2.67",
	}
	r.m.announce(r.now)
	if d := cmp.Diff(round, r.took()); d != "" {
		t.Fatalf("first round: %s", d)
	}
	r.pass(900 * ms)
	if got := r.took(); got != nil {
		t.Fatalf("too soon: %v", got)
	}
	r.pass(200 * ms)
	if d := cmp.Diff(round, r.took()); d != "" {
		t.Fatalf("second round: %s", d)
	}
	r.pass(10 * sec)
	if d := cmp.Diff(round, r.took()); d != "" {
		t.Fatalf("third round: %s", d)
	}
	r.m.setInterfaces([]Interface{c}, r.now) // nothing new
	r.pass(5 * sec)
	if got := r.took(); got != nil {
		t.Fatalf("announced what was known: %v", got)
	}
	c.Proxy = append(c.Proxy, netip.MustParsePrefix("192.0.2.80/32"))
	r.m.setInterfaces([]Interface{c}, r.now)
	r.pass(10 * sec)
	if d := cmp.Diff([]string{"all<gw ask 192.0.2.80 192.0.2.80", "all<gw ask 192.0.2.80 192.0.2.80", "all<gw ask 192.0.2.80 192.0.2.80"}, r.took()); d != "" {
		t.Fatalf("only the new one: %s", d)
	}
}

func TestAnnouncementsArePaced(t *testing.T) {
	c := Interface{Index: 1, Port: 3, MAC: gwMAC, Proxy: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::/64")}}
	r := newRig(t, nil, Interface{Index: 9, Port: 3, MAC: gwMAC})
	r.m.setInterfaces([]Interface{c}, r.now)
	r.full = true
	r.pass(2 * sec) // the port is not ready yet: nothing is lost
	r.full = false
	for i := range 400 {
		before := len(r.sent)
		r.now += ms
		r.m.announce(r.now)
		if n := len(r.sent) - before; n > announceBurst {
			t.Fatalf("%d frames at once", n)
		}
		if i == 99 && (len(r.sent) < 50 || len(r.sent) > 90) {
			t.Errorf("%d frames in 100 ms", len(r.sent))
		}
	}
	r.pass(10 * sec)
	if len(r.sent) != 3*(256+1) { // the /64 is not
		t.Errorf("%d frames, want three rounds of 257", len(r.sent))
	}
	if len(r.m.jobs) != 0 {
		t.Error("jobs are left")
	}
}

func TestInterfacesChange(t *testing.T) {
	r := newRig(t, nil)
	r.known("192.0.2.9", hostMAC)
	r.resolve(1, "192.0.2.10", 1)
	c := plainIface()
	c.Addrs = append(c.Addrs, netip.MustParsePrefix("198.51.100.1/24"))
	r.m.setInterfaces([]Interface{c}, r.now)
	if !r.use(1, "192.0.2.9") || r.m.t.nWaiting != 1 {
		t.Fatal("a further address cost what was known")
	}
	c.Addrs = append(c.Addrs, netip.MustParsePrefix("192.0.2.9/24")) // becomes our own
	r.m.setInterfaces([]Interface{c}, r.now)
	if r.use(1, "192.0.2.9") {
		t.Error("our own address is a neighbour")
	}
	c.VLAN = 5
	r.m.setInterfaces([]Interface{c}, r.now)
	if r.m.t.len() != 0 || r.dropped[verdict.InterfaceDown] != 1 {
		t.Errorf("another link: %d entries, dropped %v", r.m.t.len(), r.dropped)
	}
	r.known("192.0.2.11", hostMAC)
	r.m.setInterfaces(nil, r.now)
	if r.m.t.len() != 0 {
		t.Error("entries of an interface that went")
	}
	r.learn(arpAsk(hostMAC, "192.0.2.9", "192.0.2.1"))
	if r.m.stats.Ignored == 0 {
		t.Error("learnt on an interface that went")
	}
}

func TestShutdownTellsWhatWaits(t *testing.T) {
	r := newRig(t, nil)
	r.resolve(1, "192.0.2.9", 1)
	r.resolve(1, "192.0.2.10", 1)
	r.m.shutdown()
	if r.dropped[verdict.Shutdown] != 2 || r.m.t.nWaiting != 0 {
		t.Errorf("dropped %v, %d wait", r.dropped, r.m.t.nWaiting)
	}
}

func FuzzLearn(f *testing.F) {
	f.Add(arpAsk(hostMAC, "192.0.2.9", "192.0.2.1"))
	f.Add(arpReply(hostMAC, "192.0.2.10", "192.0.2.1"))
	f.Add(ns(hostMAC, "2001:db8::9", "2001:db8::1", [6]byte{}))
	f.Add(na(hostMAC, "2001:db8::10", "2001:db8::1", true, true))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newRig(t, nil)
		r.resolve(1, "192.0.2.10", 1)
		r.resolve(1, "2001:db8::10", 1)
		r.learn(b)
		r.pass(4 * sec)
	})
}

// TestNeighboursAreAskedForAhead: who is wanted is asked for once, and known when the first frame comes; who does not answer is forgotten, so that the first frame asks anew; a frame that comes meanwhile waits as any other.
func TestNeighboursAreAskedForAhead(t *testing.T) {
	r := newRig(t, nil)
	want := func(a string) {
		addr := flow.AddrFrom(netip.MustParseAddr(a))
		r.m.want(1, 0, 4, &addr, r.now)
	}
	want("192.0.2.9")
	want("192.0.2.9")
	if got := r.took(); len(got) != 1 || r.m.stats.Wanted != 1 {
		t.Fatalf("asked %v, %d wanted", got, r.m.stats.Wanted)
	}
	r.learn(arpReply(hostMAC, "192.0.2.9", "192.0.2.1"))
	if !r.use(1, "192.0.2.9") {
		t.Error("it has answered, and is not known")
	}
	r.took()
	want("192.0.2.9")
	if got := r.took(); len(got) != 0 {
		t.Errorf("who is known is asked for again: %v", got)
	}
	want("192.0.2.10") // does not answer
	r.pass(5 * sec)
	r.took()
	if r.resolve(1, "192.0.2.10", 1); len(r.took()) != 1 || r.m.stats.NoNeighbor != 0 {
		t.Errorf("the first frame to who did not answer is not asked for anew: %+v", r.m.stats)
	}
	want("192.0.2.11")
	r.resolve(1, "192.0.2.11", 2)
	r.pass(5 * sec)
	if r.unreachable != 2 || r.m.stats.NoNeighbor != 2 {
		t.Errorf("%d frames came back, want that of each who did not answer: %+v", r.unreachable, r.m.stats)
	}
}
