package zerocopy

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"demarc/configs"
	"demarc/gateway"
	"demarc/gateway/api"
	"demarc/gateway/xsk"
)

// Figures of the policy that the checks come back to.
const (
	hostSessions  = 40   // per inside host
	ratePackets   = 2000 // per second, out
	floodRate     = 200  // per second, out, when the limit itself is looked at: what emulates a processor may be slow
	burstPackets  = 4    // 20 ms of that
	queuePackets  = 6    // 30 ms of that
	tableFrames   = 16384
	floodFrames   = 1500
	patience      = 5 * time.Second
	startLimit    = 20 * time.Second
	deniedPort    = 7777
	poolAddress   = "198.51.100.1"
	acceptedPorts = 64512 // 1024 to 65535
)

func nodeFile(name, dir string, devs [4]net.Interface) string {
	return fmt.Sprintf(`schema = 1
name = "guest"
data_dir = %q
[tables]
sessions = 8192
tenants = 4
neighbors = 256
frames = %d
[[port]]
name = "inside"
device = %q
mode = %q
[[port]]
name = "outside"
device = %q
mode = %q
[[interface]]
name = "lan"
port = "inside"
addresses = ["198.18.10.1/24", "2001:db8:a::1/64"]
[[interface]]
name = "wan"
port = "outside"
addresses = ["192.0.2.1/24", "2001:db8:ff::1/64"]
`, dir, tableFrames, devs[0].Name, name, devs[1].Name, name)
}

func policyFile(rate int) string {
	return fmt.Sprintf(`schema = 1
name = "guest"
[backbone]
interfaces = ["wan"]
[[route]]
prefix = "0.0.0.0/0"
via = "192.0.2.100"
[[route]]
prefix = "::/0"
via = "2001:db8:ff::64"
[[tenant]]
name = "a"
interfaces = ["lan"]
prefixes = ["198.18.10.0/24", "2001:db8:a::/64"]
default_out = "deny"
[tenant.nat]
pool = [%q]
[tenant.limits]
host_sessions = %d
[tenant.rates.out]
packets = %d
[tenant.rates.in]
bits = "1G"
[[tenant.rule]]
name = "not this port"
direction = "out"
action = "deny"
service = ["udp/%d"]
[[tenant.rule]]
name = "all else"
direction = "out"
action = "allow"
from = ["198.18.10.0/24", "2001:db8:a::/64"]
service = ["udp", "tcp", "icmp/echo-request"]
`, poolAddress, hostSessions, rate, deniedPort)
}

// bench is one case while it runs.
type bench struct {
	name  string
	devs  [4]net.Interface
	far   [2]*far // tenant's hosts, backbone's hosts
	gw    [2]mac  // of the gateway's ports
	out   io.Writer
	api   *api.Client
	tag   uint64
	wants map[uint64]want
	pubs  map[pub]*flow

	idents map[ident]bool // of IPv4, on what has come out
	exact  int            // frames right to the byte since the last check

	patience time.Duration // with a frame
}

// want is a frame that must arrive, named by the tag in its payload.
type want struct {
	side int
	m    message // as it must arrive; its public port is filled in from flow
	f    *flow
}

type pub struct {
	proto byte
	port  uint16
}

// ident is an identification and what it must be unique for (RFC 6864 section 4.1).
type ident struct {
	src, dst netip.Addr
	proto    byte
	id       uint16
}

// flow is one conversation as its two ends see it.
type flow struct {
	proto          byte
	inside, remote netip.Addr
	iport, rport   uint16
	public         netip.Addr // as the remote end sees the inside host
	pport          uint16     // 0: not seen yet
	seq            uint16
}

func runCase(name string, devs [4]net.Interface, fars [2]*far, out io.Writer) bool {
	b := &bench{name: name, patience: patience, devs: devs, far: fars, out: out, wants: map[uint64]want{}, pubs: map[pub]*flow{}, idents: map[ident]bool{}, gw: [2]mac{mac(devs[0].HardwareAddr), mac(devs[1].HardwareAddr)}}
	ok := b.run()
	(&record{Case: name, End: true}).write(out)
	return ok
}

// check reports one check. The first that does not hold ends the case.
func (b *bench) check(name string, detail string, err error) bool {
	r := record{Case: b.name, Check: name, OK: err == nil, Detail: detail, Frames: b.exact}
	b.exact = 0
	if err != nil {
		r.Detail = err.Error()
	}
	r.write(b.out)
	return err == nil
}

func (b *bench) run() bool {
	dir := filepath.Join("/run", b.name)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	if err := b.start(ctx, dir, ended); !b.check("start", "", err) {
		return false
	}
	detail, err := b.attach()
	if !b.check("attach", detail, err) {
		return false
	}
	detail, err = b.sockets()
	if !b.check("sockets", detail, err) {
		return false
	}
	detail, err = b.umem(ctx)
	if !b.check("umem", detail, err) {
		return false
	}
	for _, step := range []struct {
		name string
		fn   func(context.Context) error
	}{{"udp-nat", b.udp}, {"icmp-nat", b.icmp}, {"tcp-nat", b.tcp}, {"ipv6", b.ipv6}, {"neighbours", b.neighbours}, {"acl", b.acl}, {"session-limit", b.sessionLimit}, {"rate-limit", b.rateLimit}} {
		err := step.fn(ctx)
		if err != nil {
			err = fmt.Errorf("%w; %s", err, b.counted(ctx))
		}
		if !b.check(step.name, "", err) {
			return false
		}
	}
	detail, err = b.status(ctx)
	if !b.check("status", detail, err) {
		return false
	}
	cancel()
	if err := b.stop(ended); !b.check("stop", "", err) {
		return false
	}
	return b.check("closed", "", b.closed())
}

func (b *bench) start(ctx context.Context, dir string, ended chan<- error) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	node, err := configs.DecodeNode("node.toml", []byte(nodeFile(b.name, dir, b.devs)))
	if err != nil {
		return err
	}
	ready := make(chan struct{})
	logs := slog.New(slog.NewTextHandler(b.out, &slog.HandlerOptions{Level: slog.LevelWarn}))
	g, err := gateway.New(gateway.Options{Node: node, Policy: []byte(policyFile(ratePackets)), Source: "policy.toml", Version: "guest", Log: logs, Ready: func() { close(ready) }})
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		err := g.Run(ctx)
		done <- err
		ended <- err
	}()
	select {
	case <-ready:
	case err := <-done:
		return fmt.Errorf("the gateway ended before it was ready: %w", err)
	case <-time.After(startLimit):
		return fmt.Errorf("the gateway is not ready after %s", startLimit)
	}
	b.api = api.Dial(node.API.Socket)
	return nil
}

// attach asks the kernel how the programs are attached.
func (b *bench) attach() (string, error) {
	for _, d := range b.devs[:2] {
		name, _, mode, ours, err := xsk.Attached(d.Index)
		if err != nil {
			return "", err
		}
		if mode != "native" || !ours {
			return "", fmt.Errorf("%s: program %q is attached %q, want the gateway's, native", d.Name, name, mode)
		}
	}
	return "XDP attached native on both ports", nil
}

// sockets reads XDP_OPTIONS back from every AF_XDP socket that this process holds, whatever the gateway believes of them.
func (b *bench) sockets() (string, error) {
	list, err := xdpSockets()
	if err != nil {
		return "", err
	}
	if len(list) != 2 {
		return "", fmt.Errorf("%d AF_XDP sockets, want one for each of two ports", len(list))
	}
	for _, o := range list {
		if zero := o&unix.XDP_OPTIONS_ZEROCOPY != 0; zero != (b.name == caseZeroCopy) {
			return "", fmt.Errorf("XDP_OPTIONS of a socket is %#x, which is not %s", o, b.name)
		}
	}
	return fmt.Sprintf("XDP_OPTIONS reads %s on %d of %d sockets", b.name, len(list), len(list)), nil
}

// xdpSockets lists the options of this process's AF_XDP sockets.
func xdpSockets() (options []int, err error) {
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	for _, e := range dir {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil || domain != unix.AF_XDP {
			continue // not a socket, or another kind, or the directory itself, closed since
		}
		o, err := unix.GetsockoptInt(fd, unix.SOL_XDP, unix.XDP_OPTIONS)
		if err != nil {
			return nil, fmt.Errorf("read XDP_OPTIONS: %w", err)
		}
		options = append(options, o)
	}
	return options, nil
}

// umem shows that both ports share one memory area: one worker, and as many frames as one area has.
func (b *bench) umem(ctx context.Context) (string, error) {
	var s api.Status
	if err := b.api.Get(ctx, api.PathStatus, &s); err != nil {
		return "", err
	}
	if len(s.Workers) != 1 || s.Workers[0].Frames != tableFrames {
		return "", fmt.Errorf("%d workers, the first with %d frames, want 1 with %d: the ports do not share one memory area", len(s.Workers), s.Workers[0].Frames, tableFrames)
	}
	for _, p := range s.Ports {
		for _, q := range p.Queues {
			if q.Mode != b.name || p.Attach != "native" {
				return "", fmt.Errorf("port %s queue %d: status says %s, %s", p.Name, q.Queue, q.Mode, p.Attach)
			}
		}
	}
	return "both ports on one UMEM", nil
}

func (b *bench) newFlow(proto byte, inside, remote string, iport, rport uint16) *flow {
	f := &flow{proto: proto, inside: netip.MustParseAddr(inside), remote: netip.MustParseAddr(remote), iport: iport, rport: rport}
	f.public = netip.MustParseAddr(poolAddress)
	if f.inside.Is6() {
		f.public, f.pport = f.inside, f.iport
	}
	return f
}

// payload is n bytes, at least 32, that begin with a tag of their own.
func (b *bench) payload(n int) []byte {
	b.tag++
	p := binary.BigEndian.AppendUint64(make([]byte, 0, max(n, 32)), b.tag)
	for i := len(p); i < max(n, 32); i++ {
		p = append(p, byte(uint64(i)*7+b.tag))
	}
	return p
}

// outward sends a frame of f from its inside host, and notes what must arrive; arrives = false: nothing must.
func (b *bench) outward(f *flow, fill func(*message), size int, arrives bool) error {
	f.seq++
	m := message{from: b.far[0].mac, to: b.gw[0], src: f.inside, dst: f.remote, proto: f.proto, sport: f.iport, dport: f.rport, ttl: 64, tos: byte(f.seq%8) << 2, id: f.seq * 257, payload: b.payload(size)}
	if f.proto == protoICMP {
		m.icmpType, m.dport = 8, f.seq
	}
	if fill != nil {
		fill(&m)
	}
	if arrives {
		w := m
		w.from, w.to, w.src, w.ttl = b.gw[1], b.far[1].mac, f.public, m.ttl-1
		b.wants[b.tag] = want{side: 1, m: w, f: f}
	}
	return b.far[0].send(m.frame())
}

// inward is the answer of the remote host, to what it has seen.
func (b *bench) inward(f *flow, fill func(*message), size int, arrives bool) error {
	m := message{from: b.far[1].mac, to: b.gw[1], src: f.remote, dst: f.public, proto: f.proto, sport: f.rport, dport: f.pport, ttl: 57, tos: 0x28, id: f.seq*31 + 7, payload: b.payload(size)}
	if f.proto == protoICMP {
		m.icmpType, m.sport, m.dport = 0, f.pport, f.seq
	}
	if fill != nil {
		fill(&m)
	}
	if arrives {
		w := m
		w.from, w.to, w.dst, w.ttl = b.gw[0], b.far[0].mac, f.inside, m.ttl-1
		if f.proto == protoICMP {
			w.sport = f.iport
		} else {
			w.dport = f.iport
		}
		b.wants[b.tag] = want{side: 0, m: w}
	}
	return b.far[1].send(m.frame())
}

// settle takes frames until everything wanted has arrived.
func (b *bench) settle() error {
	for len(b.wants) > 0 {
		side := 0
		for _, w := range b.wants {
			side = w.side
			break
		}
		got := b.far[side].next(b.patience)
		if got == nil {
			return fmt.Errorf("%d frames did not arrive within %s", len(b.wants), b.patience)
		}
		if err := b.judge(side, got); err != nil {
			return err
		}
	}
	return b.quiet(0)
}

// quiet makes sure that nothing else arrives at either side for d.
func (b *bench) quiet(d time.Duration) error {
	for side, f := range b.far {
		if got := f.next(d); got != nil {
			return fmt.Errorf("a frame arrived that nothing explains, at side %d: % x", side, got[:min(len(got), 80)])
		}
		if n := f.lost.Load(); n > 0 {
			return fmt.Errorf("the judge was too slow for %d frames", n)
		}
	}
	return nil
}

// judge finds what a frame should have been and compares all of it.
func (b *bench) judge(side int, got []byte) error {
	w, tag, ok := b.find(got)
	if !ok || w.side != side {
		return fmt.Errorf("a frame arrived that must not, at side %d: % x", side, got[:min(len(got), 80)])
	}
	delete(b.wants, tag)
	if f := w.f; f != nil { // towards the backbone
		at := 34 // the source port of UDP and TCP over IPv4
		if f.proto == protoICMP {
			at = 38 // the identifier
		}
		if f.pport == 0 {
			f.pport = binary.BigEndian.Uint16(got[at:])
			k := pub{f.proto, f.pport}
			if other := b.pubs[k]; other != nil && (other.inside != f.inside || other.iport != f.iport) {
				return fmt.Errorf("public port %d was given to %s:%d and to %s:%d", f.pport, other.inside, other.iport, f.inside, f.iport)
			}
			if f.proto != protoICMP && f.pport < 65536-acceptedPorts {
				return fmt.Errorf("public port %d is a system port", f.pport)
			}
			b.pubs[k] = f
		}
		w.m.sport = f.pport
	}
	if w.m.src.Is4() {
		// Hosts with the same identification must not meet behind the translation, so the gateway chooses (RFC 7857 section 10).
		w.m.id = binary.BigEndian.Uint16(got[18:])
		k := ident{w.m.src, w.m.dst, w.m.proto, w.m.id}
		if b.idents[k] {
			return fmt.Errorf("identification %d was given twice to %s", w.m.id, w.m.dst)
		}
		b.idents[k] = true
	}
	if expected := w.m.frame(); !bytes.Equal(got, expected) {
		return fmt.Errorf("a frame is not right at side %d: got % x (%d bytes), want % x (%d bytes)", side, got[:min(len(got), 80)], len(got), expected[:min(len(expected), 80)], len(expected))
	}
	b.exact++
	return nil
}

// find reads the tag where any of the wanted kinds of frame would have it.
func (b *bench) find(got []byte) (want, uint64, bool) {
	for _, at := range []int{42, 54, 62} { // IPv4 UDP and ICMP, IPv4 TCP, IPv6 UDP
		if len(got) < at+8 {
			break
		}
		tag := binary.BigEndian.Uint64(got[at:])
		if w, ok := b.wants[tag]; ok && w.m.headerBytes() == at {
			return w, tag, true
		}
	}
	return want{}, 0, false
}

// talk sends rounds of windows both ways, and each window is judged before the next.
func (b *bench) talk(flows []*flow, rounds, biggest int) error {
	const window = 16
	for r := range rounds {
		for i := 0; i < len(flows); i += window {
			part := flows[i:min(i+window, len(flows))]
			for k, f := range part {
				if err := b.outward(f, nil, (r*977+(i+k)*61)%(biggest+1), true); err != nil {
					return err
				}
			}
			if err := b.settle(); err != nil {
				return fmt.Errorf("round %d, out: %w", r, err)
			}
			for k, f := range part {
				if err := b.inward(f, nil, (r*613+(i+k)*89)%(biggest+1), true); err != nil {
					return err
				}
			}
			if err := b.settle(); err != nil {
				return fmt.Errorf("round %d, in: %w", r, err)
			}
		}
	}
	return nil
}

// neighbours asks the gateway for its addresses as hosts do. For IPv6 the question goes to a group, which a card with a filter must
// have been told to take.
func (b *bench) neighbours(context.Context) error {
	for _, q := range []struct {
		side        int
		own, target string
	}{{0, "198.18.10.20", "198.18.10.1"}, {1, "192.0.2.100", "192.0.2.1"}, {0, "2001:db8:a::10", "2001:db8:a::1"}, {1, "2001:db8:ff::64", "2001:db8:ff::1"}} {
		m, err := b.far[q.side].ask(netip.MustParseAddr(q.own), netip.MustParseAddr(q.target))
		if err != nil {
			return err
		}
		if m != b.gw[q.side] {
			return fmt.Errorf("%s is said to be at % x, want % x", q.target, m, b.gw[q.side])
		}
	}
	return nil
}

// udp is many sessions of several hosts through NAT, more frames than any ring has room for, of all sizes.
func (b *bench) udp(context.Context) error {
	var flows []*flow
	for h := range 8 {
		for p := range 8 { // the same ports on every host
			flows = append(flows, b.newFlow(protoUDP, fmt.Sprintf("198.18.10.%d", 20+h), fmt.Sprintf("203.0.113.%d", 1+p), uint16(5000+p), uint16(2000+h)))
		}
	}
	// The first packet alone: only a few wait for a next hop that is being asked for.
	if err := b.talk(flows[:1], 1, 0); err != nil {
		return err
	}
	if err := b.talk(flows, 36, 1472); err != nil {
		return err
	}
	for side, f := range b.far {
		if f.asked.Load() == 0 {
			return fmt.Errorf("the gateway asked for no neighbour at side %d", side)
		}
	}
	return nil
}

func (b *bench) icmp(context.Context) error {
	var flows []*flow
	for h := range 8 { // the same identifier on every host
		flows = append(flows, b.newFlow(protoICMP, fmt.Sprintf("198.18.10.%d", 20+h), "203.0.113.1", 77, 0))
	}
	return b.talk(flows, 8, 1472)
}

// tcp is a whole connection: handshake, data both ways, both FINs.
func (b *bench) tcp(context.Context) error {
	const fin, syn, psh, ack = 1, 2, 8, 16
	f := b.newFlow(protoTCP, "198.18.10.30", "203.0.113.9", 40001, 443)
	mine, theirs := uint32(1000), uint32(0xfffffff0) // theirs wraps
	steps := []struct {
		out   bool
		flags byte
		size  int
	}{{true, syn, 0}, {false, syn | ack, 0}, {true, ack, 0}, {true, psh | ack, 500}, {false, psh | ack, 1460}, {false, psh | ack, 900}, {true, ack, 0}, {true, fin | ack, 0}, {false, fin | ack, 0}, {true, ack, 0}}
	for i, s := range steps {
		send, from, to := b.inward, &theirs, &mine
		if s.out {
			send, from, to = b.outward, &mine, &theirs
		}
		n := uint32(0)
		err := send(f, func(m *message) {
			m.tcpSeq, m.tcpFlags = *from, s.flags
			if s.flags&ack != 0 {
				m.tcpAck = *to
			}
			n = uint32(len(m.payload)) // every segment carries its tag, the SYN too (RFC 9293 3.4 allows it)
		}, s.size, true)
		if err != nil {
			return err
		}
		if err := b.settle(); err != nil {
			return fmt.Errorf("segment %d: %w", i, err)
		}
		*from += n
		if s.flags&(syn|fin) != 0 {
			*from++
		}
	}
	return nil
}

// ipv6 is routed and filtered, never translated.
func (b *bench) ipv6(context.Context) error {
	var flows []*flow
	for h := range 16 {
		flows = append(flows, b.newFlow(protoUDP, fmt.Sprintf("2001:db8:a::%x", 16+h), "2001:db8:77::1", uint16(6000+h), 53))
	}
	if err := b.talk(flows[:1], 1, 0); err != nil { // as in udp
		return err
	}
	return b.talk(flows, 8, 1452)
}

func (b *bench) drops(ctx context.Context) (map[string]uint64, error) {
	var d api.Drops
	err := b.api.Get(ctx, api.PathDrops, &d)
	return d.ByReason, err
}

// counted is what the gateway has dropped so far, for the reader of a failure.
func (b *bench) counted(ctx context.Context) string {
	d, err := b.drops(ctx)
	if err != nil {
		return err.Error()
	}
	var out []string
	for k, v := range d {
		if v > 0 {
			out = append(out, fmt.Sprintf("%s %d", k, v))
		}
	}
	slices.Sort(out)
	return fmt.Sprintf("neighbours asked for %d and %d times, dropped by the gateway: %s", b.far[0].asked.Load(), b.far[1].asked.Load(), strings.Join(out, ", "))
}

// grew waits until the drops by the reasons of list have grown by n together, and no others have.
func (b *bench) grew(ctx context.Context, before map[string]uint64, n uint64, list ...string) error {
	deadline := time.Now().Add(patience)
	for {
		now, err := b.drops(ctx)
		if err != nil {
			return err
		}
		sum, other := uint64(0), []string(nil)
		for k, v := range now {
			if v == before[k] {
				continue
			}
			for _, l := range list {
				if k == l {
					sum += v - before[k]
				}
			}
			if !strings.Contains(" "+strings.Join(list, " ")+" ", " "+k+" ") {
				other = append(other, fmt.Sprintf("%s %d", k, v-before[k]))
			}
		}
		switch {
		case sum == n && len(other) == 0:
			return nil
		case time.Now().After(deadline) || sum > n:
			return fmt.Errorf("%d frames dropped as %s, want %d (others: %s)", sum, strings.Join(list, ", "), n, strings.Join(other, ", "))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// acl sends what a rule denies, what nobody asked for, and what IPv6 alone would route. Frames that come through afterwards show that
// the gateway had seen it.
func (b *bench) acl(ctx context.Context) error {
	before, err := b.drops(ctx)
	if err != nil {
		return err
	}
	denied := b.newFlow(protoUDP, "198.18.10.20", "203.0.113.1", 5000, deniedPort) // a mapping that is in use
	uninvited := b.newFlow(protoUDP, "198.18.10.20", "203.0.113.1", 0, 2000)
	uninvited.pport = 9
	direct := b.newFlow(protoUDP, "2001:db8:a::10", "2001:db8:99::1", 22, 4000)
	for range 10 {
		if err := errors.Join(b.outward(denied, nil, 100, false), b.inward(uninvited, nil, 100, false), b.inward(direct, nil, 100, false)); err != nil {
			return err
		}
	}
	if err := b.talk([]*flow{b.newFlow(protoUDP, "198.18.10.20", "203.0.113.1", 5000, 2000)}, 2, 100); err != nil {
		return err
	}
	if err := b.quiet(100 * time.Millisecond); err != nil {
		return err
	}
	return b.grew(ctx, before, 30, "acl_deny", "acl_default", "nat_no_mapping", "nat_unused_address")
}

// sessionLimit opens more sessions from one host than it may hold.
func (b *bench) sessionLimit(ctx context.Context) error {
	const more = 10
	before, err := b.drops(ctx)
	if err != nil {
		return err
	}
	for i := range hostSessions + more {
		f := b.newFlow(protoUDP, "198.18.10.200", "203.0.113.5", uint16(10000+i), 4500)
		if err := b.outward(f, nil, 64, i < hostSessions); err != nil {
			return err
		}
		if err := b.settle(); err != nil { // one at a time: the order decides who is refused
			return fmt.Errorf("session %d: %w", i, err)
		}
	}
	if err := b.quiet(100 * time.Millisecond); err != nil {
		return err
	}
	return b.grew(ctx, before, more, "host_sessions")
}

// rateLimit sends one flow faster than the tenant's rate. What arrives is within the rate for the time that it took, the rest is
// counted, and none is unaccounted for.
func (b *bench) rateLimit(ctx context.Context) error {
	var applied api.Applied
	if err := b.api.Post(ctx, api.PathApply, api.ApplyRequest{Policy: policyFile(floodRate), Source: "lower rate"}, &applied); err != nil {
		return err
	}
	before, err := b.drops(ctx)
	if err != nil {
		return err
	}
	f := b.newFlow(protoUDP, "198.18.10.20", "203.0.113.1", 5000, 2000)
	exact, start := b.exact, time.Now()
	for range floodFrames {
		if err := b.outward(f, nil, 64, true); err != nil {
			return err
		}
	}
	last := time.Now()
	for {
		got := b.far[1].next(300 * time.Millisecond)
		if got == nil {
			break
		}
		last = time.Now()
		if err := b.judge(1, got); err != nil {
			return err
		}
	}
	passed, took := b.exact-exact, last.Sub(start)
	clear(b.wants)
	most := burstPackets + queuePackets + int(floodRate*took.Seconds()*1.02) + 2
	if passed > most || passed < burstPackets {
		return fmt.Errorf("%d of %d frames passed in %s, want %d to %d", passed, floodFrames, took, burstPackets, most)
	}
	if passed == floodFrames {
		return fmt.Errorf("the flood took %s, too slow to meet the limit", took)
	}
	return b.grew(ctx, before, uint64(floodFrames-passed), "tenant_rate_packets", "tenant_queue_full")
}

func (b *bench) status(ctx context.Context) (string, error) {
	var s api.Status
	if err := b.api.Get(ctx, api.PathStatus, &s); err != nil {
		return "", err
	}
	if !s.Conservation.OK {
		return "", fmt.Errorf("frame account: %s", s.Conservation.Detail)
	}
	for _, p := range s.Ports {
		for _, q := range p.Queues {
			if r := q.Rings; r.RxInvalidDescs+r.TxInvalidDescs+r.RxRingFull+r.RxDropped > 0 || q.TxErrors+q.TxFull > 0 {
				return "", fmt.Errorf("port %s: rings %+v, tx errors %d, tx full %d", p.Name, r, q.TxErrors, q.TxFull)
			}
		}
	}
	for _, w := range s.Workers {
		if w.Panics > 0 {
			return "", fmt.Errorf("%d contained panics", w.Panics)
		}
	}
	return s.Conservation.Detail, nil
}

// stop waits for the gateway, which takes its last frame account and returns it as an error when it does not add up.
func (b *bench) stop(ended <-chan error) error {
	b.api.Close()
	select {
	case err := <-ended:
		if err != nil {
			return fmt.Errorf("the gateway ended with: %w", err)
		}
	case <-time.After(15 * time.Second):
		return errors.New("the gateway did not stop within 15s")
	}
	left, err := xdpSockets()
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("%d AF_XDP sockets are still open", len(left))
	}
	return err
}

// closed shows that a stopped gateway lets nothing by, then takes its programs off.
func (b *bench) closed() error {
	f := b.newFlow(protoUDP, "198.18.10.20", "203.0.113.1", 5000, 2000)
	for range 5 {
		if err := b.outward(f, nil, 64, false); err != nil {
			return err
		}
	}
	if err := b.quiet(150 * time.Millisecond); err != nil {
		return err
	}
	for _, d := range b.devs[:2] {
		if err := xsk.Release(d.Index); err != nil {
			return err
		}
	}
	return nil
}
