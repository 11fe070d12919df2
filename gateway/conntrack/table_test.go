package conntrack

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"
	"unsafe"

	"demarc/gateway/flow"
	"demarc/gateway/nat"
	"demarc/gateway/prefetch"
	"demarc/gateway/undo"
	"demarc/gateway/verdict"
)

func aligned(n int) []byte {
	b := make([]byte, n+64)
	off := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & 63
	return b[off : off+n : off+n]
}

func newTable(t testing.TB, capacity int) *Table {
	t.Helper()
	tab, err := New(aligned(Bytes(capacity)), capacity, 0xfeedface)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

func seeded(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// The C header's assertions are read and held against the Go struct; and the header is compiled, so that they hold for C too.
func TestLayoutIsTheHeaders(t *testing.T) {
	text, err := os.ReadFile("session.h")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	typ := reflect.TypeFor[Session]()
	for _, m := range regexp.MustCompile(`offsetof\(struct demarc_session, \w+\) == (\d+), "(\w+)"`).FindAllStringSubmatch(string(text), -1) {
		f, ok := typ.FieldByName(m[2])
		if !ok {
			t.Errorf("the header knows a field %s", m[2])
			continue
		}
		if want, _ := strconv.Atoi(m[1]); int(f.Offset) != want {
			t.Errorf("%s is at %d, the header says %d", m[2], f.Offset, want)
		}
		found++
	}
	if found != typ.NumField() {
		t.Errorf("the header asserts %d fields, the session has %d", found, typ.NumField())
	}
	flags := map[string]uint8{"V6": FlagV6, "FROM_BACKBONE": FlagFromBackbone, "TO_BACKBONE": FlagToBackbone, "NAT": FlagNAT, "REPLIED": FlagReplied, "COUNTED": FlagCounted, "PERMIT": FlagPermit, "UNANSWERED": FlagUnanswered}
	for _, m := range regexp.MustCompile(`#define DEMARC_FLAG_(\w+) (0x\w+)`).FindAllStringSubmatch(string(text), -1) {
		if v, _ := strconv.ParseUint(m[2], 0, 8); flags[m[1]] != uint8(v) {
			t.Errorf("flag %s is %#x, the header says %#x", m[1], flags[m[1]], v)
		}
		delete(flags, m[1])
	}
	if len(flags) != 0 {
		t.Errorf("the header lacks flags %v", flags)
	}
	var b bucket
	if o := unsafe.Offsetof(b.refs); o != 24 {
		t.Errorf("refs at %d", o)
	}
	for _, cc := range []string{"clang", "gcc"} {
		if path, err := exec.LookPath(cc); err == nil {
			if out, err := exec.Command(path, "-fsyntax-only", "-Wall", "-Werror", "-x", "c", "session.h").CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", cc, err, out)
			}
		}
	}
}

func TestMemoryPerSession(t *testing.T) {
	const capacity = 1 << 20 // the default of the node file, with 16 public addresses to fill it
	sp := nat.NewSpace(16)
	for i := range 16 {
		if _, err := sp.Register([4]byte{192, 0, 2, byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	table, maps := float64(Bytes(capacity))/capacity, float64(nat.Bytes(capacity))/capacity
	ports := float64(sp.Bytes()) / capacity
	t.Logf("bytes a session: %.1f table, %.1f mapping, %.1f ports: %.1f", table, maps, ports, table+maps+ports)
	if table+maps+ports > 192 {
		t.Errorf("%.1f bytes a session, want at most 192", table+maps+ports)
	}
}

func TestKeys(t *testing.T) {
	s := Session{OrigSrc: flow.Addr{198, 18, 10, 5}, OrigDst: flow.Addr{203, 0, 113, 1}, XlatSrc: [4]byte{192, 0, 2, 1}, XlatDst: [4]byte{203, 0, 113, 1},
		OrigSPort: 1000, OrigDPort: 53, XlatSPort: 2000, XlatDPort: 53, Proto: flow.UDP, Tenant: 7, Flags: FlagNAT | FlagToBackbone}
	if got, want := s.Key(0), (flow.Key{Src: s.OrigSrc, Dst: s.OrigDst, SPort: 1000, DPort: 53, Proto: flow.UDP, Family: 4, Zone: 7}); got != want {
		t.Errorf("orig %+v, want %+v", got, want)
	}
	if got, want := s.Key(1), (flow.Key{Src: s.OrigDst, Dst: flow.Addr{192, 0, 2, 1}, SPort: 53, DPort: 2000, Proto: flow.UDP, Family: 4, Zone: flow.Backbone}); got != want {
		t.Errorf("reply %+v, want %+v", got, want)
	}
	if src, dst, sp, dp := s.Out(1); src != [4]byte{203, 0, 113, 1} || dst != [4]byte{198, 18, 10, 5} || sp != 53 || dp != 1000 {
		t.Errorf("a reply becomes %v:%d %v:%d", src, sp, dst, dp)
	}
	in := Session{OrigSrc: flow.Addr{0x20, 1, 15: 1}, OrigDst: flow.Addr{0x20, 1, 15: 2}, OrigSPort: 1, OrigDPort: 2, XlatSPort: 1, XlatDPort: 2, Proto: flow.TCP, Tenant: 7, Flags: FlagV6 | FlagFromBackbone}
	k0, k1 := in.Key(0), in.Key(1)
	if k0.Zone != flow.Backbone || k1.Zone != 7 || k1 != k0.Reverse(7) {
		t.Errorf("from the backbone: %+v, %+v", k0, k1)
	}
}

// is must say what Key says, for every field.
func TestIsMatchesKey(t *testing.T) {
	for n := range 8 {
		s := numbered(n)
		for dir := range 2 {
			k := s.Key(dir)
			if !s.is(&k, dir) {
				t.Errorf("session %d is not its own key %d", n, dir)
			}
			for name, change := range map[string]func(*flow.Key){
				"src": func(k *flow.Key) { k.Src[3]++ }, "src tail": func(k *flow.Key) { k.Src[15]++ }, "dst": func(k *flow.Key) { k.Dst[0]++ }, "dst tail": func(k *flow.Key) { k.Dst[14]++ },
				"sport": func(k *flow.Key) { k.SPort++ }, "dport": func(k *flow.Key) { k.DPort++ },
				"proto": func(k *flow.Key) { k.Proto++ }, "family": func(k *flow.Key) { k.Family ^= 2 }, "zone": func(k *flow.Key) { k.Zone += 9 },
			} {
				c := k
				change(&c)
				if s.is(&c, dir) {
					t.Errorf("session %d, direction %d: %s makes no difference", n, dir, name)
				}
			}
		}
	}
}

// A session numbered n: v4 with NAT, v4 without, v6, from either side.
func numbered(n int) *Session {
	s := &Session{Proto: flow.UDP, Tenant: flow.TenantID(1 + n%5), Mapping: NoMapping,
		OrigSPort: uint16(n), OrigDPort: uint16(n >> 16), XlatSPort: uint16(n), XlatDPort: uint16(n >> 16)}
	switch n % 4 {
	case 0:
		s.Flags = FlagToBackbone | FlagNAT
		s.OrigSrc, s.OrigDst = flow.Addr{198, 18, 0, 1}, flow.Addr{203, 0, 113, 1}
		s.XlatSrc, s.XlatDst = [4]byte{192, 0, 2, 1}, [4]byte{203, 0, 113, 1}
		s.XlatSPort = uint16(n) ^ 0x5555
	case 1:
		s.Flags = FlagToBackbone
		s.OrigSrc, s.OrigDst = flow.Addr{198, 18, 0, 2}, flow.Addr{203, 0, 113, 1}
		s.XlatSrc, s.XlatDst = [4]byte{198, 18, 0, 2}, [4]byte{203, 0, 113, 1}
	case 2:
		s.Flags = FlagV6 | FlagToBackbone
		s.OrigSrc, s.OrigDst = flow.Addr{0x20, 1, 15: 1}, flow.Addr{0x20, 1, 15: 2}
	case 3:
		s.Flags = FlagV6 | FlagFromBackbone
		s.OrigSrc, s.OrigDst = flow.Addr{0x20, 1, 15: 9}, flow.Addr{0x20, 1, 15: 8}
	}
	return s
}

// The table against a map: fills, empties, collides, expires, over the wrap of the tick.
func TestTableAgainstReference(t *testing.T) {
	for _, capacity := range []int{1, 7, 100, 3000} {
		rng := seeded(t)
		tab := newTable(t, capacity)
		tm := Timeouts{UDP: 5000, UDPUnanswered: 1000}
		type entry struct {
			slot, gen uint32
			deadline  uint32
			replied   bool
			seen      uint32
		}
		ref := map[int]*entry{}
		before := make([][2]Ref, capacity*3/2+2)
		right, wrong := 0, 0
		now := uint32(1<<32 - 20000)
		for step := range 30_000 {
			n := rng.IntN(capacity*3/2 + 2)
			e := ref[n]
			s := numbered(n)
			k0, k1 := s.Key(0), s.Key(1)
			h0, h1 := tab.Hash(&k0), tab.Hash(&k1)
			for dir, k := range []flow.Key{k0, k1} {
				guess := tab.Guess(tab.Hash(&k))
				if at, want := tab.BucketAt(tab.Hash(&k)), uintptr(unsafe.Pointer(&tab.buckets[tab.home(tab.Hash(&k))])); at != want {
					t.Fatalf("a bucket is to be at %#x, and is at %#x", want, at)
				}
				if guess != NoRef {
					if at, want := tab.SessionAt(guess), uintptr(unsafe.Pointer(&tab.sessions[guess.Slot()])); at != want {
						t.Fatalf("a session is to be at %#x, and is at %#x", want, at)
					}
					slot := guess.Slot()
					if at, want := tab.PlaceAt(slot), [3]uintptr{uintptr(unsafe.Pointer(&tab.sessions[slot])), uintptr(unsafe.Pointer(&tab.sessions[slot])) + 64, uintptr(unsafe.Pointer(&tab.deadlines[slot]))}; at != want {
						t.Fatalf("a place is to be at %#x, and is at %#x", want, at)
					}
				}
				r, ok := tab.Lookup(&k, []uint64{h0, h1}[dir])
				if ok != (e != nil) || ok && (r.Slot() != e.slot || r.Dir() != dir) {
					t.Fatalf("step %d: Lookup(%d, direction %d) = %d, %v; reference %+v", step, n, dir, r, ok, e)
				}
				for _, g := range []Ref{guess, before[n][dir], Ref(rng.Uint32()), NoRef} { // of now, of earlier, and made up
					if tab.Guessed(g, &k) && (!ok || g != r) {
						t.Fatalf("step %d: %d, direction %d: %d is taken for it; Lookup says %d, %v", step, n, dir, g, r, ok)
					}
				}
				if ok && !tab.Guessed(r, &k) {
					t.Fatalf("step %d: %d, direction %d: %d is not taken for it, and is it", step, n, dir, r)
				}
				if ok && tab.Guessed(guess, &k) {
					right++
				} else if ok {
					wrong++
				}
				before[n][dir] = guess
			}
			switch op := rng.IntN(10); {
			case op < 5:
				s.LastSeen[0] = now
				slot, r := tab.Create(s, now, tm.UDPUnanswered)
				want := verdict.Pass
				if e != nil {
					want = verdict.SessionCollision
				} else if len(ref) == capacity {
					want = verdict.SessionTableFull
				}
				if r != want {
					t.Fatalf("step %d: Create(%d): %v, want %v", step, n, r, want)
				}
				if r == verdict.Pass {
					if at := tab.At(slot); at.Seq&1 != 0 || at.Key(0) != k0 {
						t.Fatalf("step %d: Seq %d, key %+v", step, at.Seq, at.Key(0))
					}
					ref[n] = &entry{slot: slot, gen: tab.At(slot).Gen, seen: now}
				}
			case op < 7 && e != nil:
				if tab.At(e.slot).Gen != e.gen {
					t.Fatalf("step %d: the generation of a live session changed", step)
				}
				tab.Remove(e.slot)
				if at := tab.At(e.slot); at.Seq&1 == 0 || at.Gen == e.gen {
					t.Fatalf("step %d: removed, and Seq %d Gen %d", step, at.Seq, at.Gen)
				}
				tab.Remove(e.slot) // of an empty slot: nothing
				delete(ref, n)
			case op < 9 && e != nil:
				tab.At(e.slot).LastSeen[1] = now
				tab.At(e.slot).Flags |= FlagReplied
				e.seen, e.replied = now, true
			default:
				now += uint32(rng.IntN(100))
				budget := rng.IntN(2 * capacity)
				ended := map[uint32]bool{}
				tab.Sweep(now, &tm, budget, nil, nil, func(slot uint32, s *Session) {
					k := s.Key(0)
					if _, ok := tab.Lookup(&k, tab.Hash(&k)); !ok {
						t.Fatalf("step %d: gone before expired was told", step)
					}
					ended[slot] = true
				})
				for n, e := range ref {
					idle := tm.UDPUnanswered
					if e.replied {
						idle = tm.UDP
					}
					due := int32(e.seen+idle-now) <= 0
					if ended[e.slot] && !due {
						t.Fatalf("step %d: session %d ended after %d ticks", step, n, now-e.seen)
					}
					if !ended[e.slot] && due && budget >= capacity {
						t.Fatalf("step %d: session %d idle for %d ticks outlived a full sweep", step, n, now-e.seen)
					}
					if ended[e.slot] {
						delete(ref, n)
					}
				}
			}
			if tab.Len() != len(ref) {
				t.Fatalf("step %d: Len %d, want %d", step, tab.Len(), len(ref))
			}
		}
		if right < 9*wrong {
			t.Errorf("of %d sessions that there were, Guess has seen %d", right+wrong, right)
		}
		n, from, done := 0, uint32(0), false
		for !done {
			from, done = tab.Each(from, 13, func(slot uint32, s *Session) bool { n++; tab.Remove(slot); return true })
		}
		if n != len(ref) || tab.Len() != 0 {
			t.Fatalf("Each saw %d of %d, %d left", n, len(ref), tab.Len())
		}
		for i := range tab.buckets {
			if b := &tab.buckets[i]; b.words != [3]uint64{} {
				t.Fatalf("an empty table's bucket %d holds %x", i, b.words)
			}
		}
	}
}

// Either key being taken is a collision and changes nothing; so is a session whose answer would enter as itself.
func TestCollision(t *testing.T) {
	tab := newTable(t, 10)
	a := numbered(4)
	if _, r := tab.Create(a, 0, 1); r != verdict.Pass {
		t.Fatal(r)
	}
	b := *a
	b.OrigSrc[3]++ // another host, translated to the same
	if _, r := tab.Create(&b, 0, 1); r != verdict.SessionCollision {
		t.Errorf("same reply key: %v", r)
	}
	c := *a
	c.XlatSPort++
	if _, r := tab.Create(&c, 0, 1); r != verdict.SessionCollision {
		t.Errorf("same first key: %v", r)
	}
	d := Session{Proto: 47, Tenant: 1, OrigSrc: flow.Addr{1}, OrigDst: flow.Addr{1}, XlatSrc: [4]byte{1}, XlatDst: [4]byte{1}}
	if _, r := tab.Create(&d, 0, 1); r != verdict.SessionCollision {
		t.Errorf("its own answer: %v", r)
	}
	if tab.Len() != 1 {
		t.Errorf("%d sessions", tab.Len())
	}
}

// All sessions in one bucket: the worst that an index can meet still finds all.
func TestCrowdedBucket(t *testing.T) {
	tab := newTable(t, 64)
	for i := range uint32(64) {
		tab.insert(0x1234, Ref(i<<1))
		tab.insert(0x1234, Ref(i<<1|1))
	}
	for i := range uint32(128) {
		if !tab.erase(0x1234, Ref(i)) {
			t.Fatalf("entry %d lost", i)
		}
	}
	for i := range tab.buckets {
		if tab.buckets[i].words != [3]uint64{} {
			t.Fatalf("bucket %d holds %x", i, tab.buckets[i].words)
		}
	}
}

// A creation that a panic interrupted is undone wherever it stopped.
func TestRepair(t *testing.T) {
	for stage := range 4 {
		tab := newTable(t, 2)
		s := numbered(0)
		k0, k1 := s.Key(0), s.Key(1)
		slot, ok := tab.take()
		if !ok {
			t.Fatal("full")
		}
		tab.pending = slot
		d := tab.At(slot)
		d.Seq |= 1
		if stage > 0 {
			gen := d.Gen
			*d = *s
			d.Seq, d.Gen = 1, gen
		}
		if stage > 1 {
			tab.insert(tab.Hash(&k1), Ref(slot<<1|1))
		}
		if stage > 2 {
			tab.insert(tab.Hash(&k0), Ref(slot<<1))
		}
		if !tab.Repair() || tab.Repair() {
			t.Fatalf("stage %d: want one repair", stage)
		}
		if _, ok := tab.Lookup(&k1, tab.Hash(&k1)); ok || tab.Len() != 0 {
			t.Fatalf("stage %d: still there", stage)
		}
		for i := range 2 {
			if _, r := tab.Create(numbered(i), 0, 1); r != verdict.Pass {
				t.Fatalf("stage %d: session %d of 2: %v", stage, i, r)
			}
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for name, f := range map[string]func() (*Table, error){
		"short":     func() (*Table, error) { return New(aligned(100), 100, 1) },
		"unaligned": func() (*Table, error) { return New(aligned(Bytes(100) + 64)[8:], 100, 1) },
		"none":      func() (*Table, error) { return New(nil, 0, 1) },
		"too many":  func() (*Table, error) { return New(nil, MaxCapacity+1, 1) },
	} {
		if _, err := f(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestTimeout(t *testing.T) {
	tm := Timeouts{TCPEstablished: 1, TCPTransitory: 2, TCPClosed: 3, TCPClosing: 8, UDP: 4, UDPUnanswered: 5, ICMP: 6, Other: 7}
	for _, c := range []struct {
		proto, state, flags uint8
		want                uint32
	}{
		{flow.TCP, TCPSynSent, 0, 2}, {flow.TCP, TCPSynRecv, 0, 2}, {flow.TCP, TCPSimOpen, 0, 2}, {flow.TCP, TCPEstablished, 0, 1},
		{flow.TCP, TCPFinOrig, 0, 1}, {flow.TCP, TCPFinReply, 0, 1}, {flow.TCP, TCPResync, 0, 1}, {flow.TCP, TCPClosing, 0, 8}, {flow.TCP, TCPTimeWait, 0, 3},
		{flow.TCP, TCPReset, 0, 8}, {flow.TCP, TCPClosed, 0, 8}, {flow.TCP, TCPReuse, 0, 8},
		{flow.UDP, 0, 0, 5}, {flow.UDP, 0, FlagReplied, 4}, {flow.ICMP, 0, 0, 6}, {flow.ICMPv6, 0, 0, 6}, {47, 0, 0, 7},
	} {
		s := Session{Proto: c.proto, State: c.state, Flags: c.flags}
		if got := s.Timeout(&tm); got != c.want {
			t.Errorf("protocol %d, state %s, flags %x: %d, want %d", c.proto, TCPStateText(c.state), c.flags, got, c.want)
		}
	}
	// What was over has no more time because a SYN came.
	s := Session{Proto: flow.TCP, State: TCPReuse, Scale: [2]uint8{finAcked, finAcked}}
	if got := s.Timeout(&tm); got != 3 {
		t.Errorf("reuse of what was over: %d", got)
	}
}

// A session of which one direction is silent lives as long as the other one is not, for months: ticks are told apart by their sign for 26 days only. When both are silent it ends in its time.
func TestOneWayForMonths(t *testing.T) {
	tm := Timeouts{UDP: 300_000, UDPUnanswered: 30_000}
	const step = 60_000
	for dir := range 2 {
		tab := newTable(t, 8)
		now := uint32(1 << 20)
		s := Session{Proto: flow.UDP, OrigSPort: 1, XlatSPort: 1, OrigDst: flow.Addr{1}, XlatDst: [4]byte{1}, LastSeen: [2]uint32{now, now}, Flags: FlagReplied}
		slot, r := tab.Create(&s, now, now+tm.UDP)
		if r != verdict.Pass {
			t.Fatal(r)
		}
		for n := range 5 * (1 << 31 / step) { // 130 days
			now += step
			tab.At(slot).LastSeen[dir] = now + 100 // a program's clock is a little ahead
			if tab.Sweep(now, &tm, 8, nil, nil, nil) != 0 {
				t.Fatalf("direction %d: ended on day %d, and a packet was seen just now", dir, n/1373)
			}
		}
		for range 2 + int(tm.UDP)/step {
			now += step
			tab.Sweep(now, &tm, 8, nil, nil, nil)
		}
		if tab.Live(slot) {
			t.Errorf("direction %d: lives on %d ticks after its last packet", dir, 2*step+tm.UDP)
		}
	}
}

func TestNoAllocation(t *testing.T) {
	tab := newTable(t, 1000)
	tm := Timeouts{UDP: 10, UDPUnanswered: 10}
	i := 0
	if n := testing.AllocsPerRun(3000, func() {
		i++
		s := Session{Proto: flow.TCP, OrigSPort: uint16(i), XlatSPort: uint16(i), OrigDst: flow.Addr{1}, XlatDst: [4]byte{1}, LastSeen: [2]uint32{uint32(i)}}
		seg := Segment{Flags: tcpSYN, Scale: -1}
		First(&s, &seg)
		slot, _ := tab.Create(&s, uint32(i), 10)
		k := s.Key(1)
		h := tab.Hash(&k)
		tab.BucketAt(h)
		tab.SessionAt(tab.Guess(h))
		tab.Lookup(&k, h)
		Track(tab.At(slot), 0, &seg)
		tab.Sweep(uint32(i), &tm, 4, nil, nil, nil)
		if i%2 == 0 {
			tab.Remove(slot)
		}
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func fill(b *testing.B, n int) (*Table, []flow.Key) {
	tab := newTable(b, n)
	rng := rand.New(rand.NewPCG(1, 2))
	keys := make([]flow.Key, 0, 2*n)
	for i := range n {
		s := numbered(i * 4)
		if _, r := tab.Create(s, 0, 1000); r != verdict.Pass {
			b.Fatal(i, r)
		}
		keys = append(keys, s.Key(0), s.Key(1))
	}
	rng.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	return tab, keys
}

// One packet of a burst of 64: hash, both asked for ahead, the lookup, one write to the second line.
func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{64 << 10, 1 << 20} {
		tab, keys := fill(b, n)
		for _, staged := range []bool{true, false} {
			b.Run(fmt.Sprintf("n=%d/staged=%v", n, staged), func(b *testing.B) {
				var h [64]uint64
				var guess [64]Ref
				var lines [64]uintptr
				at, left := 0, 0
				for b.Loop() {
					if left == 0 { // the whole burst's work falls on its first packet; the average is right
						left = 64
						if at += 64; at+64 > len(keys) {
							at = 0
						}
						ks := keys[at : at+64]
						for i := range ks {
							h[i] = tab.Hash(&ks[i])
							if staged {
								lines[i] = tab.BucketAt(h[i])
							}
						}
						if staged {
							prefetch.Lines(lines[:])
							for i := range ks {
								guess[i] = tab.Guess(h[i])
								lines[i] = tab.SessionAt(guess[i])
							}
							prefetch.Pairs(lines[:])
						}
						for i := range ks {
							r := guess[i]
							if !staged || !tab.Guessed(r, &ks[i]) {
								var ok bool
								if r, ok = tab.Lookup(&ks[i], h[i]); !ok {
									b.Fatal("lost")
								}
							}
							tab.At(r.Slot()).Packets[r.Dir()]++
						}
					}
					left--
				}
			})
		}
	}
}

func BenchmarkCreateRemove(b *testing.B) {
	for _, n := range []int{64 << 10, 1 << 20} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			tab, _ := fill(b, n)
			rng := rand.New(rand.NewPCG(3, 4))
			for b.Loop() {
				slot := uint32(rng.IntN(n))
				s := *tab.At(slot)
				tab.Remove(slot)
				if _, r := tab.Create(&s, 0, 1000); r != verdict.Pass {
					b.Fatal(r)
				}
			}
		})
	}
}

func BenchmarkTrack(b *testing.B) {
	s := Session{Proto: flow.TCP, State: TCPEstablished, Scale: [2]uint8{scaleOffered | 7, scaleOffered | 7}, TCPLimit: [2]uint32{60000, 60000}}
	var seq uint32
	for b.Loop() {
		g := Segment{Flags: tcpACK, Seq: seq, Ack: 0, Window: 500, Payload: 1000}
		if Track(&s, 0, &g) != verdict.Pass {
			b.Fatal("refused")
		}
		seq += 1000
		s.TCPLimit[1] = seq + 1000
	}
}

// A slot that rests is not used until it comes back; one of a twin does not rest.
func TestSlotsRest(t *testing.T) {
	tab := newTable(t, 3)
	var resting []uint32
	want := true
	tab.Rests(func(slot uint32) bool {
		if want {
			resting = append(resting, slot)
		}
		return want
	})
	port := uint16(0)
	begin := func() (uint32, bool) {
		port++
		s := Session{OrigSrc: flow.Addr{198, 18, 0, 1}, OrigDst: flow.Addr{203, 0, 113, 1}, OrigSPort: port, OrigDPort: 9, XlatSPort: port, XlatDPort: 10, Proto: flow.UDP}
		slot, r := tab.Create(&s, 1, 100)
		return slot, r == verdict.Pass
	}
	for range 3 {
		if _, ok := begin(); !ok {
			t.Fatal("the table is full")
		}
	}
	tab.Remove(1)
	tab.Remove(1) // is left alone
	if !slices.Equal(resting, []uint32{1}) || tab.Room() != 0 || tab.Len() != 2 {
		t.Fatalf("%d rest, room for %d, %d there", resting, tab.Room(), tab.Len())
	}
	if slot, ok := begin(); ok {
		t.Errorf("a session begins in %d, where another one may still be written to", slot)
	}
	tab.Reuse(1)
	if slot, ok := begin(); !ok || slot != 1 || tab.Room() != 0 {
		t.Errorf("a session begins in %d (%v), room for %d", slot, ok, tab.Room())
	}
	var l undo.Log
	twin := tab.Twin(&l)
	twin.Remove(2)
	if len(resting) != 1 || twin.Room() != 1 {
		t.Errorf("what a twin ends rests: %d, room for %d", resting, twin.Room())
	}
	l.Undo()
	if !tab.Live(2) || tab.Room() != 0 {
		t.Error("what the twin ended is not there again")
	}
	want = false
	tab.Remove(0)
	if slot, ok := begin(); !ok || slot != 0 {
		t.Errorf("a session begins in %d (%v), want 0", slot, ok)
	}
}
