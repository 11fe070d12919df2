package pipeline

import (
	"bytes"
	"testing"

	"github.com/google/gopacket/layers"

	"demarc/gateway/trace"
	"demarc/gateway/verdict"
)

func lastDrops(sh *Shard, n int) []trace.Drop {
	out := make([]trace.Drop, 4096)
	_, k, _ := sh.Drops().From(0, out)
	return out[max(0, k-n):k]
}

// Each way to be dropped leaves the frame as it was received, also where its sender is told.
func TestEveryDropIsRecorded(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	short := udp4(t, 1, "198.18.10.5", 4000, "203.0.113.11", 53)
	short[14+8] = 1 // hop limit
	short[14+10], short[14+11] = 0, 0
	be.PutUint16(short[14+10:], ^fold(short[14:34]))
	for name, c := range map[string]struct {
		frame []byte
		why   verdict.Reason
	}{
		"by receive":     {udp4(t, 0, "198.18.10.5", 4000, "203.0.113.11", 53), verdict.ForeignMAC},
		"by the ACL":     {tcp4(t, 1, "198.18.10.5", 4000, "203.0.113.11", 25, func(x *layers.TCP) { x.SYN = true }), verdict.ACLDeny},
		"spoofed":        {udp4(t, 1, "198.51.100.5", 4000, "203.0.113.11", 53), verdict.SpoofedSource},
		"told by ICMP":   {short, verdict.TTLExceeded},
		"no packet":      {make([]byte, 10), verdict.Truncated},
		"longer than it": {append(udp4(t, 1, "198.51.100.5", 4000, "203.0.113.11", 53), make([]byte, 300)...), verdict.SpoofedSource},
	} {
		was := r.sh.Drops().Written()
		r.send(1, c.frame)
		d := lastDrops(r.sh, 1)
		if r.sh.Drops().Written() != was+1 || d[0].Reason != c.why || int(d[0].Len) != len(cutToIP(c.frame)) || !bytes.Equal(d[0].Data[:d[0].N], c.frame[:min(len(cutToIP(c.frame)), trace.DropBytes)]) || d[0].After || d[0].Port != 1 || d[0].Ns != r.now {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func fold(b []byte) uint16 {
	n := uint32(0)
	for i := 0; i < len(b); i += 2 {
		n += uint32(be.Uint16(b[i:]))
	}
	for n>>16 != 0 {
		n = n&0xffff + n>>16
	}
	return uint16(n)
}

// What the rate drops has been translated: it says as what it was received, so that the inside host is found.
func TestADropByTheRateNamesTheInsideHost(t *testing.T) {
	r := newRig(t, testNode, testPolicy+"[tenant.rates.out]\nbits = \"8k\"\nmode = \"police\"\n")
	for range 20 {
		r.send(2, udp4(t, 2, "198.18.30.5", 4000, "203.0.113.11", 53))
	}
	d := lastDrops(r.sh, 1)[0]
	if d.Reason != verdict.TenantRateBits || !d.After || d.In.Src.Netip(4).String() != "198.18.30.5" || d.In.SPort != 4000 || d.Out.Src.Netip(4).String() != "192.0.2.48" {
		t.Errorf("%s %+v", d.Reason, d)
	}
}

// Looking costs no memory per packet, and what one sees is what went in and what came out.
func TestTapsSeeBothSidesAndAllocateNothing(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	f := trace.All()
	tr, cp := trace.NewTracer(f, 1, 0), trace.NewCapture(f, 0, 256, true, true)
	r.sh.Tap(tr)
	r.sh.Tap(cp)
	in := udp4(t, 1, "198.18.10.5", 4000, "203.0.113.11", 53)
	s := r.send(1, in)
	out := bytes.Clone(s[0].Frame())
	js, fs := make([]trace.Journey, 10), make([]trace.Frame, 10)
	n, data := cp.Frames(fs, nil)
	if tr.Journeys(js) != 1 || n != 2 || fs[0].Side != trace.Before || fs[1].Side != trace.After || !bytes.Equal(data[:fs[0].N], in) || !bytes.Equal(data[fs[0].N:], out) {
		t.Fatalf("%d frames: %x", n, data)
	}
	if j := &js[0]; !j.Made || j.Found || !j.Asked || !j.Allow || j.Out != s[0].Key || j.Verdict != verdict.Send || j.In.SPort != 4000 {
		t.Errorf("%+v", j)
	}
	r.send(1, tcp4(t, 1, "198.18.10.5", 4000, "203.0.113.11", 25, func(x *layers.TCP) { x.SYN = true }))
	if n, _ := cp.Frames(fs, nil); n != 1 || fs[0].Reason != verdict.ACLDeny {
		t.Errorf("a drop is %d frames, %s", n, fs[0].Reason)
	}
	if tr.Journeys(js) != 1 || js[0].Rule != 0 || js[0].Allow || !js[0].Dropped() {
		t.Errorf("%+v", js[0])
	}
	buf, data := make([]trace.Frame, 64), make([]byte, 0, 64<<10)
	if n := testing.AllocsPerRun(200, func() {
		for i := range 32 {
			sl := &r.slots[i]
			sl.Buf, sl.Off, sl.Len = r.mem[i][:], 256, copy(r.mem[i][256:], in)
			sl.Port, sl.Looped, sl.Handed, sl.Addr = 1, false, false, uint64(i)
		}
		r.sh.Process(r.slots[:32], r.now)
		tr.Journeys(js)
		_, data = cp.Frames(buf, data[:0])
	}); n != 0 {
		t.Errorf("%v allocations a burst", n)
	}
	r.sh.Untap(tr)
	r.sh.Untap(cp)
	was := tr.Matched
	r.send(1, in)
	if tr.Matched != was {
		t.Error("who has gone still sees packets")
	}
}
