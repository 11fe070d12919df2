package replica

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"demarc/gateway/flow"
)

var golden = flag.Bool("golden", false, "write testdata anew")

// samples is a record of each kind and of each kind of session.
func samples() []Record {
	v4 := Session{OrigSrc: flow.Addr{198, 18, 0, 1}, OrigDst: flow.Addr{203, 0, 113, 7}, XlatSrc: [4]byte{192, 0, 2, 1}, XlatDst: [4]byte{203, 0, 113, 7},
		OrigSPort: 40000, OrigDPort: 443, XlatSPort: 50001, XlatDPort: 443, Proto: flow.TCP, State: 4, Class: 1, Flags: FlagToBackbone | FlagNAT | FlagReplied | FlagMapped,
		Rule: 3, Hop: [2]uint16{1, 2}, Left: 7440000, Scale: [2]uint8{0x87, 0x88}, End: [2]uint32{0xfffffff0, 5}, Limit: [2]uint32{70000, 80000},
		Bytes: [2]uint64{1 << 40, 300}, Packets: [2]uint32{1 << 31, 2}, Hold: 120000}
	udp := v4
	udp.Proto, udp.State, udp.Scale, udp.End, udp.Limit, udp.Remote = flow.UDP, 0, [2]uint8{}, [2]uint32{}, [2]uint32{}, [4]byte{203, 0, 113, 7}
	udp.Flags |= FlagAside | FlagPermit | FlagPerHost
	routed := udp
	routed.Flags, routed.Hold, routed.Remote, routed.Bytes, routed.Packets, routed.Hop = FlagToBackbone|FlagUnanswered, 0, [4]byte{}, [2]uint64{}, [2]uint32{}, [2]uint16{NoName, NoName}
	routed.XlatSrc, routed.XlatSPort = [4]byte{198, 18, 0, 1}, 40000
	ping := routed
	ping.Proto, ping.OrigDPort, ping.XlatDPort = flow.ICMP, 8, 8
	gre := routed
	gre.Proto, gre.OrigSPort, gre.OrigDPort, gre.XlatSPort, gre.XlatDPort = 47, 0, 0, 0, 0
	v6 := Session{OrigSrc: flow.Addr{0x20, 1, 0xd, 0xb8, 15: 1}, OrigDst: flow.Addr{0x20, 1, 0xd, 0xb8, 15: 2}, OrigSPort: 1, OrigDPort: 2, XlatSPort: 1, XlatDPort: 2,
		Proto: flow.UDP, Flags: FlagV6 | FlagFromBackbone, Hop: [2]uint16{0, NoName}, Left: 1}
	var out []Record
	for i, s := range []Session{v4, udp, routed, ping, gre, v6} {
		out = append(out, Record{Kind: KindSession, Group: 7, Slot: uint32(i), Gen: 9, Tenant: 2, Revision: 41, Session: s})
	}
	touch := Session{Proto: flow.TCP, Left: 5, Scale: [2]uint8{1, 2}, End: [2]uint32{3, 4}, Limit: [2]uint32{5, 6}, Bytes: [2]uint64{7, 8}, Packets: [2]uint32{9, 10}}
	return append(out,
		Record{Kind: KindTouch, Group: 7, Slot: 1, Gen: 9, Session: touch},
		Record{Kind: KindGone, Group: 7, Slot: 1, Gen: 9},
		Record{Kind: KindBlock, Group: 7, Slot: 1, Gen: 9, Tenant: 2, Block: Block{Addr: [4]byte{192, 0, 2, 1}, Class: 1, Number: 1023, Inside: [4]byte{198, 18, 0, 1}, Held: 1 << 63, Rest: 90000}},
		Record{Kind: KindRate, Group: 7, Slot: 1, Gen: 9, Tenant: 2, Rate: Rate{5, 1 << 40}},
		Record{Kind: KindCount, Group: 7, Slot: 1, Gen: 9, Tenant: 2, Count: Count{6, 1 << 50}})
}

// again is a record after it was written and read.
func again(t *testing.T, b []byte) Record {
	t.Helper()
	k, group, body, rest, err := nextRecord(b)
	if err != nil || len(rest) != 0 {
		t.Fatalf("%x: %v, %d bytes are left", b, err, len(rest))
	}
	r := Record{Kind: k, Group: group}
	if err := decode(body, &r); err != nil {
		t.Fatalf("%x: %v", b, err)
	}
	return r
}

// TestRecordsGoThere: what is written is read, for each kind; and what is written is what stands in testdata, which other releases have read.
func TestRecordsGoThere(t *testing.T) {
	var text strings.Builder
	for _, r := range samples() {
		b := appendRecord(nil, &r)
		fmt.Fprintf(&text, "%d %s\n", r.Kind, hex.EncodeToString(b))
		got := again(t, b)
		if r.Kind == KindTouch { // says no protocol: windows are there or not
			got.Session.Proto = flow.TCP
		}
		if d := cmp.Diff(r, got); d != "" {
			t.Errorf("kind %d: %s", r.Kind, d)
		}
	}
	m := marker{Epoch: 1, Key: 2, Sum: 3, Number: 4, Round: 5, Of: 6}
	fmt.Fprintf(&text, "begin %x\n", appendMarker(nil, KindBegin, 7, &m))
	fmt.Fprintf(&text, "name %x\n", appendName(nil, NameHop, 3, "wan via 192.0.2.254"))
	a := Answer{Life: 1, Stream: 2, Anew: true, Seq: 3, Groups: []GroupAnswer{{Group: 4, Want: true, Round: 5, Equal: 6, Missing: 7, Why: Full}}}
	fmt.Fprintf(&text, "answer %x\n", a.Append(nil))
	if b, err := DecodeAnswer(a.Append(nil)); err != nil || cmp.Diff(a, b) != "" {
		t.Errorf("answer: %v\n%s", err, cmp.Diff(a, b))
	}
	if *golden {
		if err := os.WriteFile("testdata/records.txt", []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/records.txt")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), text.String()); d != "" {
		t.Errorf("what is written has changed, and other releases read it: a new field goes behind, a new kind gets a number of its own\n%s", d)
	}
}

// TestNewerRelease: fields that are not known are skipped, a core that has grown is taken as far as it is known; a field that must be understood is an error.
func TestNewerRelease(t *testing.T) {
	r := samples()[0]
	b := appendRecord(nil, &r)
	more := append(append([]byte{}, b...), 0x7f, 3, 1, 2, 3)
	le.PutUint16(more[2:], uint16(len(more)-recordHead))
	if d := cmp.Diff(r, again(t, more)); d != "" {
		t.Errorf("with an unknown field: %s", d)
	}
	more[len(b)] = 0xff
	if err := decode(more[recordHead:], &Record{Kind: KindSession}); err != errUnknownField {
		t.Errorf("with a field that must be understood: %v", err)
	}
	long := appendRecord(nil, &samples()[8])
	long = append(long, 1, 2, 3, 4, 5, 6, 7)
	le.PutUint16(long[2:], uint16(len(long)-recordHead))
	if d := cmp.Diff(samples()[8], again(t, long)); d != "" {
		t.Errorf("a block with a longer core: %s", d)
	}
	old := long[:recordHead+22] // an older release knows of no ports that rest
	le.PutUint16(old[2:], 22)
	if got := again(t, old); got.Block.Number != 1023 || got.Block.Held != 0 {
		t.Errorf("a block with a shorter core: %+v", got.Block)
	}
}

// TestDigestSeesTheBinding: each field of the binding part is in the hash, nothing of the rest is.
func TestDigestSeesTheBinding(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		base := samples()[1]
		if v6 {
			base.Session.Flags |= FlagV6
		}
		h := base.Hash(1, 2)
		for name, change := range map[string]func(*Record){
			"kind": func(r *Record) { r.Kind = KindBlock }, "source": func(r *Record) { r.Session.OrigSrc[3]++ }, "destination": func(r *Record) { r.Session.OrigDst[0]++ },
			"public": func(r *Record) { r.Session.XlatSrc[3]++ }, "inside": func(r *Record) { r.Session.XlatDst[3]++ }, "port 1": func(r *Record) { r.Session.OrigSPort++ },
			"port 2": func(r *Record) { r.Session.OrigDPort++ }, "port 3": func(r *Record) { r.Session.XlatSPort++ }, "port 4": func(r *Record) { r.Session.XlatDPort++ },
			"protocol": func(r *Record) { r.Session.Proto++ }, "side": func(r *Record) { r.Session.Flags ^= FlagFromBackbone }, "mapping": func(r *Record) { r.Session.Flags ^= FlagMapped },
			"far": func(r *Record) { r.Session.Remote[0]++ },
		} {
			r := base
			if change(&r); r.Hash(1, 2) == h {
				t.Errorf("v6 %v: %s is not in the hash", v6, name)
			}
		}
		if base.Hash(3, 2) == h || base.Hash(1, 3) == h {
			t.Error("key or tenant is not in the hash")
		}
		r := base
		r.Slot, r.Gen, r.Tenant, r.Group, r.Session.State, r.Session.Left, r.Session.Bytes[0], r.Session.Hop[0], r.Session.Class = 1, 2, 3, 4, 5, 6, 7, 8, 9
		if r.Hash(1, 2) != h {
			t.Error("the hash knows more than the binding")
		}
	}
}

// anySink takes whatever comes.
type anySink struct{ n uint32 }

func (x *anySink) Local(NameKind, string) (uint16, bool) { return 1, true }
func (x *anySink) Sweep(uint8, func(Place) bool)         {}
func (x *anySink) Lost() uint64                          { return 0 }
func (x *anySink) Do(ops []Op, c *Context) {
	for i := range ops {
		if ops[i].Do == Put && ops[i].At == NoPlace {
			x.n++
			ops[i].At = PlaceAt(0, x.n, 0)
			c.Claim(ops[i].At)
		}
	}
}

// stream is a frame with all that there is.
func stream() []byte {
	b := make([]byte, headerLen)
	b = appendMarker(b, KindBegin, 7, &marker{Epoch: 1, Round: 1, Of: 1})
	b = appendName(b, NameTenant, 0, "acme")
	n := 2
	for _, r := range samples() {
		b = appendRecord(b, &r)
		n++
	}
	b = appendMarker(b, KindEnd, 7, &marker{Epoch: 1, Round: 1, Of: 1})
	h := header{First: true, Len: uint32(len(b)), Life: 1, Seq: 1, Count: uint16(n + 1)}
	h.put(b)
	return b
}

// FuzzFrame: no bytes of a peer do harm, whatever they are, and what is remembered of them is bounded.
func FuzzFrame(f *testing.F) {
	f.Add(stream())
	dice := rand.New(rand.NewPCG(1, 1))
	for range 40 {
		b := bytes.Clone(stream())
		for range 1 + dice.IntN(4) {
			b[headerLen+dice.IntN(len(b)-headerLen)] = byte(dice.IntN(256))
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReceiver(&anySink{}, 1<<14)
		if len(b) >= headerLen {
			le.PutUint32(b[4:], uint32(len(b)))
		}
		r.Frame(1, "a", b)
		r.Frame(2, "a", stream())
		if r.pages > 1<<14/pageItems+1 {
			t.Errorf("%d pages are remembered", r.pages)
		}
	})
}

// FuzzAnswer: what is read can be written, and nothing else is read.
func FuzzAnswer(f *testing.F) {
	f.Add((&Answer{Life: 1, Seq: 2, Groups: []GroupAnswer{{Group: 1, Round: 2}}}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := DecodeAnswer(b)
		if err != nil {
			return
		}
		c, err := DecodeAnswer(a.Append(nil))
		if err != nil || cmp.Diff(a, c) != "" {
			t.Errorf("%x: %v %s", b, err, cmp.Diff(a, c))
		}
	})
}
