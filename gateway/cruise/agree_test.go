package cruise

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"demarc/gateway/conntrack"
	"demarc/gateway/cruise/bpf"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/netlab/roottest"
	"demarc/gateway/packet/csum"
	"demarc/gateway/pipeline"
	"demarc/gateway/police"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

// round is one packet, and what is to become of it.
type round struct {
	*form
	handed
	dir    int
	se     *conntrack.Session
	sh     *pipeline.Shard
	tenant *snapshot.Tenant
	d      meter.Dir
	undo   []func()
	until  uint64 // a bucket that was emptied for this packet holds it back before, not since
}

func (r *round) then(undo func()) { r.undo = append(r.undo, undo) }

// asPipeline stands where the pipeline says whether the program is to carry it.
const asPipeline = NumWhats

// kind is one way in which packets, or what is known of their session, can be out of the ordinary.
type kind struct {
	name  string
	want  What
	fits  func(*round) bool
	make  func(*world, *round)
	frame func(*world, []byte) []byte // changes what was built
}

func tcp(r *round) bool     { return r.key.Proto == flow.TCP }
func udp(r *round) bool     { return r.key.Proto == flow.UDP }
func v4(r *round) bool      { return r.key.Family == 4 }
func v6(r *round) bool      { return r.key.Family == 6 }
func nat4(r *round) bool    { return r.se.Flags&conntrack.FlagNAT != 0 }
func plain4(r *round) bool  { return v4(r) && !nat4(r) }
func limited(r *round) bool { return r.d != meter.Inside && !r.tenant.Dir[r.d].Bits.Unlimited() }
func grouped(r *round) bool { return r.tenant.Group != nil }

// set changes a byte of the frame.
func set(at int, to func(byte) byte) func(*world, []byte) []byte {
	return func(_ *world, f []byte) []byte { f[at] = to(f[at]); return f }
}

func flags(f byte) func(*world, *round) { return func(_ *world, r *round) { r.tcp = f } }

// reach is conntrack's: two of the largest windows that direction dir can have advertised, and one without scale.
func reach(se *conntrack.Session, dir int) uint32 {
	shift := uint(0)
	if se.Scale[0]&se.Scale[1]&0x80 != 0 {
		shift = uint(se.Scale[dir] & 15)
	}
	return min(2*(uint32(0xffff)<<shift)+0xffff, 1<<30)
}

// near is n, or up to two off.
func (w *world) near(n uint32) uint32 { return n + uint32(w.rng.IntN(5)) - 2 }

// level fills a rate word up to so many units beyond what the rate lets through, for this packet.
func (w *world) level(r *round, rate *police.Rate, word *police.Word, beyond int64) {
	r.then(func() { word.Store(0) })
	now := bootNow(w.t)
	word.Store(now*police.UnitsPerNs + uint64(rate.Numbers().Burst+beyond))
	r.until = now + uint64(max(beyond, 0))/police.UnitsPerNs
}

const someTime = int64(300*time.Millisecond) * police.UnitsPerNs

// inIP is where the IP header of a frame begins.
func inIP(f []byte) int {
	if f[12] == 0x81 && f[13] == 0 {
		return 18
	}
	return 14
}

// mend writes the checksum of the IPv4 header.
func mend(f []byte) []byte {
	ip := f[inIP(f):]
	head := ip[:min(len(ip), int(ip[0]&15)*4)]
	ip[10], ip[11] = 0, 0
	binary.BigEndian.PutUint16(ip[10:], csum.Checksum(csum.Sum(0, head)))
	return f
}

// ip changes the IP header of a frame, which stays a header with a right checksum.
func ip(change func(w *world, h []byte)) func(*world, []byte) []byte {
	return func(w *world, f []byte) []byte {
		h := f[inIP(f):]
		change(w, h)
		if h[0]>>4 == 4 && h[0]&15 >= 5 {
			mend(f)
		}
		return f
	}
}

// l4 changes what follows the header.
func l4(change func(w *world, t []byte)) func(*world, []byte) []byte {
	return func(w *world, f []byte) []byte {
		h := f[inIP(f):]
		if h[0]>>4 == 4 {
			change(w, h[20:])
		} else {
			change(w, h[40:])
		}
		return f
	}
}

var kinds = []kind{
	{name: "plain", want: asPipeline},
	{name: "plain", want: asPipeline},
	{name: "plain", want: asPipeline},
	{name: "plain tcp", want: asPipeline, fits: tcp},
	{name: "padded", want: asPipeline, make: func(_ *world, r *round) { r.payload, r.options = 0, 0 }, frame: func(_ *world, f []byte) []byte { return append(f, make([]byte, max(0, 60-len(f)))...) }},
	{name: "trailed", want: UpFrame, frame: func(w *world, f []byte) []byte { return append(f, make([]byte, max(1, 65-len(f))+w.rng.IntN(400))...) }},
	{name: "odd checksum", want: asPipeline, make: func(w *world, r *round) { r.l4is = func(uint16) uint16 { return uint16(w.rng.Uint32()) } }},
	{name: "no checksum", want: asPipeline, fits: udp, make: func(_ *world, r *round) { r.noSum = true }},
	{name: "surplus", want: asPipeline, fits: udp, make: func(w *world, r *round) { r.surplus = 1 + w.rng.IntN(20) }},
	{name: "priority tag", want: asPipeline, fits: func(r *round) bool { return r.iface.VLAN == 0 }, make: func(w *world, r *round) { r.tagged, r.priority = true, uint16(w.rng.IntN(16))<<12 }},
	{name: "no df", want: asPipeline, fits: plain4, make: func(_ *world, r *round) { r.flags = 0 }},
	{name: "evil bit", want: asPipeline, fits: v4, make: func(_ *world, r *round) { r.flags |= 0x8000 }},
	{name: "hop limit 2", want: asPipeline, make: func(_ *world, r *round) { r.ttl = 2 }},
	{name: "as large as may be", want: asPipeline, make: func(w *world, r *round) { w.size(r, 0) }},
	{name: "options of tcp", want: asPipeline, fits: tcp, make: func(w *world, r *round) { r.options = 4 * (1 + w.rng.IntN(10)) }},
	{name: "no checksum, translated", want: asPipeline, fits: func(r *round) bool { return nat4(r) && udp(r) }, make: func(_ *world, r *round) { r.noSum = true }},
	{name: "checksum of all ones", want: asPipeline, make: func(_ *world, r *round) { r.l4is = func(uint16) uint16 { return 0xffff } }},
	{name: "checksum zero", want: asPipeline, fits: tcp, make: func(_ *world, r *round) { r.l4is = func(uint16) uint16 { return 0 } }},
	{name: "checksum that becomes zero", want: asPipeline, fits: nat4, make: func(_ *world, r *round) {
		// What is there and what the translation adds are all ones together.
		r.l4is = func(uint16) uint16 { return csum.Fold(r.delta()) }
	}},
	{name: "header checksum at the edge", want: asPipeline, fits: v4, make: func(w *world, r *round) { w.edge(r) }},
	{name: "taken over", want: asPipeline, fits: tcp, make: func(_ *world, r *round) { r.se.Scale[0] |= 0x10 }},
	{name: "taken over no more", want: asPipeline, fits: tcp, make: func(_ *world, r *round) { r.se.Scale[0] &^= 0x10 }},
	{name: "all acknowledged", want: asPipeline, fits: tcp, make: func(_ *world, r *round) { r.payload, r.ack = 0, r.se.TCPEnd[1-r.dir] }},
	{name: "at the limit", want: asPipeline, fits: tcp, make: func(w *world, r *round) { r.seq = w.near(r.se.TCPLimit[1-r.dir]) }},
	{name: "long ago", want: asPipeline, fits: tcp, make: func(w *world, r *round) {
		r.seq = w.near(r.se.TCPEnd[r.dir]-reach(r.se, 1-r.dir)-1) - uint32(r.payload)
	}},
	{name: "acknowledged long ago", want: asPipeline, fits: tcp, make: func(w *world, r *round) { r.ack = w.near(r.se.TCPEnd[1-r.dir] - reach(r.se, r.dir)) }},
	{name: "acknowledged too much", want: asPipeline, fits: tcp, make: func(w *world, r *round) { r.ack = w.near(r.se.TCPEnd[1-r.dir]) }},
	{name: "acknowledged what was before", want: asPipeline, fits: tcp, make: func(w *world, r *round) {
		r.se.Scale[0] |= 0x10
		r.ack = w.near(r.se.TCPEnd[1-r.dir] + reach(r.se, r.dir))
	}},
	{name: "bucket nearly empty", want: asPipeline, fits: limited, make: func(w *world, r *round) {
		w.level(r, &r.tenant.Dir[r.d].Bits, &r.tenant.Shared.Words[r.d].Bits, -someTime/200)
	}},
	{name: "bucket empty", want: UpRate, fits: limited, make: func(w *world, r *round) {
		w.level(r, &r.tenant.Dir[r.d].Bits, &r.tenant.Shared.Words[r.d].Bits, someTime)
		if w.rng.IntN(2) == 0 {
			r.tos = 46 << 2
		}
	}},
	{name: "no packet left", want: UpRate, fits: func(r *round) bool { return limited(r) && !r.tenant.Dir[r.d].Packets.Unlimited() }, make: func(w *world, r *round) {
		w.level(r, &r.tenant.Dir[r.d].Packets, &r.tenant.Shared.Words[r.d].Packets, someTime)
		if w.rng.IntN(2) == 0 { // voice has a word of its own, which must not be taken from
			r.tos = 46 << 2
		}
	}},
	{name: "word of a slower rate", want: asPipeline, fits: limited, make: func(w *world, r *round) {
		w.level(r, &r.tenant.Dir[r.d].Bits, &r.tenant.Shared.Words[r.d].Bits, 10*someTime)
	}},
	{name: "voice beyond the rate", want: asPipeline, fits: limited, make: func(w *world, r *round) {
		r.tos = 46 << 2
		d := &r.tenant.Dir[r.d]
		w.level(r, &d.Bits, &r.tenant.Shared.Words[r.d].Bits, d.Bits.Numbers().Slack/2)
	}},
	{name: "voice of a rule", want: asPipeline, fits: limited, make: func(w *world, r *round) {
		class := r.se.Class
		r.se.Class = 1
		r.then(func() { r.se.Class = class })
		d := &r.tenant.Dir[r.d]
		w.level(r, &d.Bits, &r.tenant.Shared.Words[r.d].Bits, d.Bits.Numbers().Slack/2)
	}},
	{name: "voice beyond its own rate", want: asPipeline, fits: func(r *round) bool { return limited(r) && !r.tenant.Dir[r.d].Voice.Unlimited() }, make: func(w *world, r *round) {
		r.tos = 46 << 2
		w.level(r, &r.tenant.Dir[r.d].Voice, &r.tenant.Shared.Words[r.d].Voice, someTime)
	}},
	{name: "voice by a mark or a rule", want: asPipeline, fits: func(r *round) bool { return limited(r) && !r.tenant.Dir[r.d].Voice.Unlimited() }, make: func(w *world, r *round) {
		class := r.se.Class
		r.then(func() { r.se.Class = class })
		r.tos, r.se.Class = 46<<2, uint8(w.rng.IntN(2))
		d, words := &r.tenant.Dir[r.d], &r.tenant.Shared.Words[r.d]
		burst := d.Voice.Numbers().Burst
		w.level(r, &d.Voice, &words.Voice, []int64{-burst / 4, -burst / 2, -burst * 3 / 4, 10 * someTime}[w.rng.IntN(4)]) // marks leave half of the burst to rules
		w.level(r, &d.Bits, &words.Bits, d.Bits.Numbers().Slack/2)                                                        // only voice passes
	}},

	{name: "broadcast", want: UpFrame, make: func(_ *world, r *round) { r.mac = [6]byte{255, 255, 255, 255, 255, 255} }},
	{name: "another's mac", want: UpMAC, make: func(w *world, r *round) { r.mac[w.rng.IntN(5)+1] ^= 4 }},
	{name: "mac of a group that is not here", want: UpMAC, fits: func(r *round) bool { return r.iface.Zone != flow.Backbone && !grouped(r) }, make: func(_ *world, r *round) { r.mac = [6]byte{0, 0, 0x5e, 0, 1, 200} }},
	{name: "mac like that of a group", want: UpMAC, fits: grouped, make: func(w *world, r *round) {
		r.mac = [][6]byte{{0, 0, 0x5e, 0, 3, 200}, {2, 0, 0x5e, 0, 1, 200}}[w.rng.IntN(2)]
	}},
	{name: "another ethertype", want: UpFrame, frame: func(_ *world, f []byte) []byte { f[inIP(f)-1] ^= 1; return f }},
	{name: "another version", want: UpFrame, frame: func(_ *world, f []byte) []byte { f[inIP(f)] ^= 0x20; return f }},
	{name: "two tags", want: UpFrame, fits: func(r *round) bool { return r.iface.VLAN != 0 }, frame: func(_ *world, f []byte) []byte { return slices.Insert(f, 16, 0x81, 0, 0, 5) }},
	{name: "unknown vlan", want: UpInterface, fits: func(r *round) bool { return r.iface.VLAN == 0 }, make: func(_ *world, r *round) { r.tagged, r.priority = true, 99 }},
	{name: "cut short", want: UpFrame, frame: func(w *world, f []byte) []byte { return f[:max(14, len(f)-1-w.rng.IntN(60))] }},
	{name: "length below the header", want: UpFrame, fits: v4, frame: ip(func(_ *world, h []byte) { h[2], h[3] = 0, 19 })},
	{name: "wrong header checksum", want: UpChecksum, fits: v4, frame: func(_ *world, f []byte) []byte { f[inIP(f)+11] ^= 1; return f }},
	{name: "options of ipv4", want: UpOptions, fits: v4, make: func(_ *world, r *round) { r.headOption = true }},
	{name: "more fragments", want: UpFragment, fits: v4, make: func(_ *world, r *round) { r.flags = 0x2000 }},
	{name: "later fragment", want: UpFragment, fits: v4, make: func(_ *world, r *round) { r.flags = 5 }},
	{name: "icmp", want: UpProtocol, frame: ip(func(_ *world, h []byte) {
		if h[0]>>4 == 4 {
			h[9] = 1
		} else {
			h[6] = 58
		}
	})},
	{name: "extension header", want: UpProtocol, fits: v6, frame: ip(func(_ *world, h []byte) { h[6] = 60 })},
	{name: "datagram shorter than its header", want: UpFrame, fits: udp, frame: l4(func(_ *world, t []byte) { t[4], t[5] = 0, 7 })},
	{name: "datagram longer than its packet", want: UpFrame, fits: udp, frame: l4(func(_ *world, t []byte) {
		binary.BigEndian.PutUint16(t[4:], binary.BigEndian.Uint16(t[4:])+1)
	})},
	{name: "short data offset", want: UpFrame, fits: tcp, frame: l4(func(_ *world, t []byte) { t[12] = 0x40 })},
	{name: "long data offset", want: UpFrame, fits: tcp, make: func(_ *world, r *round) { r.payload = 0 }, frame: l4(func(_ *world, t []byte) { t[12] = 0x60 })},
	{name: "syn", want: UpFlags, fits: tcp, make: flags(0x12)},
	{name: "fin", want: UpFlags, fits: tcp, make: flags(0x11)},
	{name: "rst", want: UpFlags, fits: tcp, make: flags(0x14)},
	{name: "no ack", want: UpFlags, fits: tcp, make: flags(0x08)},
	{name: "another source port", want: UpSession, make: func(_ *world, r *round) { r.key.SPort ^= 1 << 15 }},
	{name: "another address", want: UpSession, make: func(_ *world, r *round) { r.key.Src[3] ^= 1 }},
	{name: "another's interface", want: UpSession, fits: func(r *round) bool { return r.iface.Name == "alpha" || r.iface.Name == "beta" }, make: func(w *world, r *round) {
		i := slices.IndexFunc(w.view.Ifaces, func(f snapshot.Iface) bool {
			return f.Name == map[string]string{"alpha": "beta", "beta": "alpha"}[r.iface.Name]
		})
		r.iface = &w.view.Ifaces[i]
		r.mac, r.priority = r.iface.MAC, 0
	}},
	{name: "from itself", want: UpAddress, make: func(_ *world, r *round) { r.key.Src = r.key.Dst }},
	{name: "martian source", want: UpAddress, fits: v4, make: func(w *world, r *round) { r.key.Src[0] = []byte{0, 127, 224, 240}[w.rng.IntN(4)] }},
	{name: "martian destination", want: UpAddress, fits: v4, make: func(w *world, r *round) { r.key.Dst[0] = []byte{0, 127, 224, 255}[w.rng.IntN(4)] }},
	{name: "link-local source", want: UpAddress, fits: v4, make: func(_ *world, r *round) { r.key.Src[0], r.key.Src[1] = 169, 254 }},
	{name: "link-local destination", want: UpAddress, fits: v4, make: func(_ *world, r *round) { r.key.Dst[0], r.key.Dst[1] = 169, 254 }},
	{name: "link-local source of ipv6", want: UpAddress, fits: v6, make: func(_ *world, r *round) { r.key.Src[0], r.key.Src[1] = 0xfe, 0x80 }},
	{name: "link-local destination of ipv6", want: UpAddress, fits: v6, make: func(_ *world, r *round) { r.key.Dst[0], r.key.Dst[1] = 0xfe, 0x9f }},
	{name: "multicast of ipv6", want: UpAddress, fits: v6, make: func(w *world, r *round) { [](*flow.Addr){&r.key.Src, &r.key.Dst}[w.rng.IntN(2)][0] = 0xff }},
	{name: "mapped address", want: UpAddress, fits: v6, make: func(w *world, r *round) { clear([](*flow.Addr){&r.key.Src, &r.key.Dst}[w.rng.IntN(2)][:4]) }},

	{name: "being written", want: UpSession, make: func(_ *world, r *round) {
		seq := r.se.Seq
		r.se.Seq |= 1
		r.then(func() { r.se.Seq = seq })
	}},
	{name: "called back", want: UpNotDown, make: func(w *world, r *round) {
		w.tab.CallBack(r.worker, r.slot)
		r.then(func() { w.handDown(r.worker, r.slot) })
	}},
	{name: "another generation", want: UpNotDown, make: func(_ *world, r *round) {
		r.se.Gen++
		r.then(func() { r.se.Gen-- })
	}},
	{name: "watched", want: UpWatched, make: func(w *world, r *round) {
		w.tab.Watch(r.worker, true)
		r.then(func() { w.tab.Watch(r.worker, false) })
	}},
	{name: "all held", want: UpWatched, make: func(w *world, r *round) {
		w.tab.Hold(true)
		r.then(func() { w.tab.Hold(false) })
	}},
	{name: "judged under another view", want: UpJudged, make: func(w *world, r *round) {
		w.tab.SetGen(r.worker, r.sh.Gen()+1)
		r.then(func() { w.tab.SetGen(r.worker, r.sh.Gen()) })
	}},
	{name: "tenant gone", want: UpTenant, make: func(w *world, r *round) {
		w.tab.tenants[r.tenant.ID].used = 0
		r.then(func() { w.tab.tenants[r.tenant.ID].used = 1 })
	}},
	{name: "interface not used", want: UpInterface, make: func(w *world, r *round) {
		w.tab.ifaces[r.iface.Index].used = 0
		r.then(func() { w.tab.ifaces[r.iface.Index].used = 1 })
	}},
	{name: "worker not fed", want: DropDead, make: func(w *world, r *round) {
		w.tab.Feed(r.worker, []uint64{0, bootNow(w.t)}[w.rng.IntN(2)])
		r.then(func() { w.tab.Feed(r.worker, 1<<64-1) })
	}},
	{name: "worker just fed", want: asPipeline, make: func(w *world, r *round) {
		w.tab.Feed(r.worker, bootNow(w.t)+uint64(time.Minute))
		r.then(func() { w.tab.Feed(r.worker, 1<<64-1) })
	}},
	{name: "another node's", want: DropNotOwner, fits: grouped, make: func(w *world, r *round) {
		id := r.tenant.Group.ID
		w.tab.Deadlines().Write(id, 1, []uint64{0, bootNow(w.t)}[w.rng.IntN(2)])
		r.then(func() { w.tab.Deadlines().Write(id, 1, 1<<64-1) })
	}},
	{name: "half closed", want: UpState, fits: tcp, make: func(_ *world, r *round) {
		r.se.State = conntrack.TCPFinOrig
		r.then(func() { r.se.State = conntrack.TCPEstablished })
	}},
	{name: "numbers not known", want: UpState, fits: tcp, make: func(_ *world, r *round) {
		scale := r.se.Scale
		r.se.Scale[1] |= 0x10
		r.then(func() { r.se.Scale = scale })
	}},
	{name: "hop dropped", want: UpHop, make: func(w *world, r *round) {
		n := w.hopOf(r.sh, r.se, r.dir)
		gen := w.tab.hops[n].gen.Load()
		w.tab.DropHop(int(n))
		r.then(func() { w.tab.hops[n].gen.Store(gen) })
	}},
	{name: "hop changed", want: UpHop, make: func(w *world, r *round) {
		n := w.hopOf(r.sh, r.se, r.dir)
		w.tab.hops[n].gen.Add(1)
		r.then(func() { w.tab.hops[n].gen.Add(^uint32(0)) })
	}},
	{name: "hop limit", want: UpTTL, make: func(w *world, r *round) { r.ttl = byte(w.rng.IntN(2)) }},
	{name: "too large", want: UpSize, make: func(w *world, r *round) { w.size(r, 1) }},
	{name: "translated without df", want: asPipeline, fits: nat4, make: func(_ *world, r *round) { r.flags = 0 }},
	{name: "no device", want: UpPort, make: func(w *world, r *round) {
		port := w.view.Ifaces[w.view.Hop(r.se.NextHop[r.dir]).Iface].Port
		w.device(port, 0)
		r.then(func() { w.device(port, 1) })
	}},
	{name: "others wait", want: UpQueue, fits: func(r *round) bool { return r.d != meter.Inside }, make: func(w *world, r *round) {
		w.tab.Words(r.tenant.ID)[r.d].Queued.Add(1)
		r.then(func() { w.tab.Words(r.tenant.ID)[r.d].Queued.Add(-1) })
	}},
	{name: "others of the other direction wait", want: asPipeline, fits: func(r *round) bool { return r.d != meter.Inside }, make: func(w *world, r *round) {
		w.tab.Words(r.tenant.ID)[1-r.d].Queued.Add(1)
		r.then(func() { w.tab.Words(r.tenant.ID)[1-r.d].Queued.Add(-1) })
	}},
}

func (w *world) device(port uint16, ifindex int) {
	if err := w.tab.SetDevice(port, ifindex); err != nil {
		w.t.Fatal(err)
	}
}

// size makes the packet as large as the way takes, and more.
func (w *world) size(r *round, more int) {
	mtu := w.view.Ifaces[w.view.Hop(r.se.NextHop[r.dir]).Iface].MTU
	head := map[uint8]int{4: 20, 6: 40}[r.key.Family] + map[uint8]int{flow.TCP: 20, flow.UDP: 8}[r.key.Proto]
	r.payload = mtu - head + more
}

// edge chooses the identification so that the header's checksum, as it leaves, lies where end-around carries happen.
func (w *world) edge(r *round) {
	to := []uint16{0x0000, 0xfe00, 0xfeff, 0xff00, 0xfffe, 0x0100}[w.rng.IntN(6)]
	for range 65536 {
		r.ident++
		h := make([]byte, 20)
		h[0], h[1], h[8], h[9] = 0x45, r.tos, r.ttl, r.key.Proto
		n := 20 + 8 + r.payload
		if r.key.Proto == flow.TCP {
			n += 12
		}
		binary.BigEndian.PutUint16(h[2:], uint16(n))
		binary.BigEndian.PutUint16(h[4:], r.ident)
		binary.BigEndian.PutUint16(h[6:], r.flags)
		src, dst, _, _ := r.se.Out(r.dir)
		copy(h[12:], src[:])
		copy(h[16:], dst[:])
		if csum.Checksum(csum.Sum(0, h)) == to {
			return
		}
	}
}

// delta is what the translation adds to a sum over addresses and ports.
func (r *round) delta() (sum uint64) {
	src, dst, sport, dport := r.se.Out(r.dir)
	be := binary.BigEndian
	for _, c := range [][2]uint32{{be.Uint32(r.key.Src[:]), be.Uint32(src[:])}, {be.Uint32(r.key.Dst[:]), be.Uint32(dst[:])}, {uint32(r.key.SPort)<<16 | uint32(r.key.DPort), uint32(sport)<<16 | uint32(dport)}} {
		sum += uint64(^c[0]) + uint64(c[1])
	}
	return sum
}

// next is a packet of a kind.
func (w *world) next(k *kind) *round {
	for {
		h := w.live[w.rng.IntN(len(w.live))]
		sh := w.shards[h.worker]
		r := &round{handed: h, dir: w.rng.IntN(2), se: sh.Sessions.At(h.slot), sh: sh}
		r.form = w.form(r.se, r.dir)
		r.tenant, r.d = w.view.Tenant(r.se.Tenant), pipeline.Direction(r.se, r.dir)
		if k.fits != nil && !k.fits(r) {
			continue
		}
		if r.key.Proto == flow.TCP {
			o := 1 - r.dir
			r.seq, r.ack = r.se.TCPEnd[r.dir], r.se.TCPEnd[o]
			if int32(r.seq-r.se.TCPLimit[o]) > 0 {
				r.seq = r.se.TCPLimit[o]
			}
			if w.rng.IntN(3) == 0 {
				r.seq -= uint32(w.rng.IntN(2000))
			}
			if w.rng.IntN(3) == 0 {
				r.ack -= uint32(w.rng.IntN(2000))
			}
		}
		return r
	}
}

// run has the program judge a frame.
func run(p *Program, frame []byte) (action uint32, out []byte, err error) {
	ro := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+headroom)}
	action, err = p.prog.Run(&ro)
	return action, ro.DataOut, err
}

// counts are what all frames of a port were.
func (w *world) counts(p *Program) (n [NumWhats]uint64, last uint64) {
	for i := range n {
		c, at, err := p.Count(What(i))
		if err != nil {
			w.t.Fatal(err)
		}
		n[i], last = c, max(last, at)
	}
	return n, last
}

// play has both executors judge one packet of a kind and says how they disagree, or what is not as it should be.
func (w *world) play(ps *programs, k *kind, before, after *[]byte) (what What, wrong error) {
	r := w.next(k)
	if k.make != nil {
		k.make(w, r)
	}
	frame := w.build(r.form)
	if k.frame != nil {
		frame = k.frame(w, frame)
	}
	defer func() {
		for _, u := range r.undo {
			u()
		}
		if wrong != nil {
			wrong = fmt.Errorf("%s (session of %s, %s, proto %d, dir %d): %w", k.name, r.tenant.Name, r.d, r.key.Proto, r.dir, wrong)
		}
	}()
	port := r.iface.Port
	m := &w.tab.marks[r.sh.Worker*w.tab.cfg.Sessions+int(r.sh.Sessions.SlotOf(r.se))]
	mark := m.down.Load()
	defer m.down.Store(mark)
	*before = w.image(*before)
	was, _ := w.counts(ps[port])
	mine := w.carried(r.tenant.ID)
	action, out, err := run(ps[port], frame)
	if err != nil {
		w.t.Fatalf("%s: run a frame of %d bytes: %v", k.name, len(frame), err)
	}
	is, now := w.counts(ps[port])
	want := k.want
	if want == UpRate && now >= r.until { // the machine was elsewhere for so long that there is something in the bucket again
		want = asPipeline
	}
	what = NumWhats
	for i := range is {
		if n := is[i] - was[i]; n == 1 && what == NumWhats {
			what = What(i)
		} else if n != 0 {
			return what, fmt.Errorf("counter %s rose by %d", What(i), n)
		}
	}
	if what == NumWhats {
		return what, fmt.Errorf("not counted")
	}
	is2, gone := m.down.Load(), mark
	m.down.Store(mark)
	if what == UpFlags || k.name == "trailed" || what >= UpNotDown { // those behind it must not pass it by; nobody else is found
		gone |= markUp
	}
	if is2 != gone {
		return what, fmt.Errorf("%s, and the mark is %x, want %x", what, is2, gone)
	}
	now2 := w.carried(r.tenant.ID)
	*after = w.image(*after)
	w.restore(*before)
	if (action == 4) != (what == Carried) {
		return what, fmt.Errorf("%s, and the action is %d", what, action)
	}
	if what != Carried {
		switch {
		case !bytes.Equal(out, frame):
			return what, fmt.Errorf("%s, and the frame is changed", what)
		case !bytes.Equal(*after, *before) || now2 != mine:
			return what, fmt.Errorf("%s, and something is written", what)
		case want != asPipeline && what != want:
			return what, fmt.Errorf("%s, want %s", what, want)
		}
	} else if want != asPipeline {
		return what, fmt.Errorf("carried, want %s", want)
	}
	if want != asPipeline && want != DropNotOwner {
		return what, nil
	}

	metered := w.metered(r.tenant.ID)
	s := w.process(port, frame, now)
	if s.Verdict == verdict.Queue { // the program leaves what waits to the worker
		for q := range 2 {
			w.shards[w.worker].Shaper.FlushQueue(int(r.tenant.ID)*2+q, func(*police.Item) {})
			if n := r.tenant.Shared.Words[q].Queued.Load(); n > 1 || n != 0 && k.name != "others of the other direction wait" {
				return what, fmt.Errorf("%d queues are counted", n)
			}
		}
		w.restore(*before)
	}
	switch {
	case want == DropNotOwner:
		if s.Verdict != verdict.Drop || s.Reason != verdict.NotOwner {
			return what, fmt.Errorf("%s, and the pipeline says %s (%s)", what, s.Verdict, s.Reason)
		}
		return what, nil
	case (s.Verdict == verdict.Send) != (what == Carried):
		return what, fmt.Errorf("%s, and the pipeline says %s (%s)", what, s.Verdict, s.Reason)
	case what != Carried:
		return what, nil
	}
	if !bytes.Equal(out, s.Frame()) {
		return what, fmt.Errorf("the program sends\n%x, the pipeline\n%x", out, s.Frame())
	}
	*before = w.image(*before)
	if !bytes.Equal(*after, *before) {
		at := 0
		for (*after)[at] == (*before)[at] {
			at++
		}
		return what, fmt.Errorf("the memory differs from byte %d of %d on: %d, the pipeline writes %d", at, len(*before), (*after)[at], (*before)[at])
	}
	total := mine
	total.sent[s.OutPort].Packets++
	total.sent[s.OutPort].Bytes += uint64(len(out))
	total.volume[s.Dir].Packets++
	total.volume[s.Dir].Bytes += uint64(s.IPLen)
	passed := w.metered(r.tenant.ID)
	for d := range total.voice {
		total.voice[d] = more(total.voice[d], passed.voice[d], metered.voice[d])
	}
	if now2 != total {
		return what, fmt.Errorf("counted %v, want %v", now2, total)
	}
	for d := range passed.volume {
		if passed.volume[d].Bytes-metered.volume[d].Bytes != now2.volume[d].Bytes-mine.volume[d].Bytes {
			return what, fmt.Errorf("the pipeline counts other bytes")
		}
	}
	return what, nil
}

// compare plays n packets, and stops at the first about which the executors do not agree.
func (w *world) compare(ps *programs, n int) (met [NumWhats]int, by map[string]int, err error) {
	by = map[string]int{}
	var before, after []byte
	for i := range n {
		k := &kinds[w.rng.IntN(len(kinds))]
		what, err := w.play(ps, k, &before, &after)
		if err != nil {
			return met, by, fmt.Errorf("packet %d: %w", i, err)
		}
		met[what]++
		if what == Carried {
			by[k.name]++
		}
	}
	return met, by, nil
}

func seeded(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// The program carries what the pipeline would send, and each byte that it writes, in the frame and in the tables, is the one that the pipeline writes; all else it leaves alone.
func TestBothExecutorsAgree(t *testing.T) {
	roottest.Require(t)
	rng := seeded(t)
	for workers := 1; workers <= 2; workers++ {
		w := newWorld(t, rng, workers, workers == 2)
		w.populate(48)
		ps, err := w.load(bpf.LoadCruise)
		defer ps.close(t)
		if err != nil {
			t.Fatal(err)
		}
		info, err := ps[0].prog.Info()
		if err != nil {
			t.Fatal(err)
		}
		if n, ok := info.VerifiedInstructions(); !ok || n > 200000 { // the verifier gives up at a million, and each port waits for it
			t.Errorf("%d instructions verified (%t), want at most 200,000", n, ok)
		} else {
			t.Logf("%d instructions verified", n)
		}
		met, by, err := w.compare(&ps, 10000)
		if err != nil {
			t.Fatal(err)
		}
		for what, n := range met {
			switch What(what) {
			case DropBroken, UpRoom: // the one cannot be, the other not here
			default:
				if n == 0 {
					t.Errorf("%s was never met", What(what))
				}
			}
		}
		for _, k := range kinds {
			if k.want == asPipeline && by[k.name] == 0 {
				t.Errorf("%s: never carried", k.name)
			}
		}
		t.Logf("%d workers: %d of 10000 carried", workers, met[Carried])
	}
}
