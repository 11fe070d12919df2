package e2e

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"demarc/gateway/netlab"
)

const (
	protoICMP = 1
	protoTCP  = 6
	protoUDP  = 17

	sumTCP, sumUDP, sumICMP = 16, 6, 2 // offsets of the checksums
)

// somewhere is a random address outside, of a network that nobody is in.
func (a *attacked) somewhere() netip.Addr {
	return netip.AddrFrom4([4]byte{198, 51, 100, byte(a.rng.Uint32N(254) + 1)})
}

func (a *attacked) port() uint16 { return uint16(1024 + a.rng.Uint32N(64512)) }

// A SYN flood of one tenant under false inside sources: those outside its prefixes are spoofed, the rest fill their part and no more.
func TestAttackSYNFloodSpoofed(t *testing.T) {
	a := newAttacked(t, "synspoof", "", "")
	gw, own := a.macs(netlab.AlphaPort, a.Alpha1)
	b := a.attack(attackRate, a.Alpha1.Name, func(n int) []byte {
		src := netip.AddrFrom4([4]byte{198, 18, 10, byte(64 + a.rng.Uint32N(128))})
		if n%2 == 0 {
			src = netip.AddrFrom4([4]byte{198, 19, byte(a.rng.Uint32()), byte(a.rng.Uint32())})
		}
		return raw4(gw, own, src, a.Public1.V4, protoTCP, 64, true, tcpSyn(a.port(), a.port()), sumTCP)
	}, "spoofed_source", "tenant_unanswered")
	if n := rigTenantOf(b.after, "alpha").Sessions; n > 16384/2 {
		t.Errorf("the flood holds %d of 16384 sessions", n)
	}
}

// A SYN flood of one inside host: its own limit takes it, the next host of the same tenant does not notice.
func TestAttackSYNFloodOneHost(t *testing.T) {
	a := newAttacked(t, "synhost", "", "[tenant.limits]\nsessions = 4000\nhost_sessions = 500\n")
	gw, own := a.macs(netlab.AlphaPort, a.Alpha1)
	a.attack(attackRate, a.Alpha1.Name, func(int) []byte {
		return raw4(gw, own, a.Alpha1.V4, a.somewhere(), protoTCP, 64, true, tcpSyn(a.port(), a.port()), sumTCP)
	}, "host_sessions")
	if err := a.opens(a.Alpha2); err != nil {
		t.Errorf("another host of the tenant: %v", err)
	}
}

// A SYN flood from outside, under random sources, at a forwarded port: the tenant goes on opening sessions of its own, and 10 s after the
// flood others get in again; meanwhile those that are in stay.
func TestAttackSYNFloodForward(t *testing.T) {
	a := newAttacked(t, "synfwd", "", "[tenant.limits]\nsessions = 1000\n")
	gw, own := a.macs(netlab.PublicPort, a.Public2)
	b := a.attack(attackRate, a.Public2.Name, func(int) []byte {
		return raw4(gw, own, a.somewhere(), addr("192.0.2.16"), protoTCP, 64, true, tcpSyn(a.port(), 8080), sumTCP)
	}, "tenant_unanswered")
	if al := rigTenantOf(b.after, "alpha"); al.Unanswered.In > 250 || al.Unanswered.In < 200 {
		t.Errorf("%d half-open sessions of a limit of 1000, want a quarter", al.Unanswered.In)
	}
	for range 20 {
		if err := a.opens(a.Alpha2); err != nil {
			t.Fatalf("a session of the attacked tenant's own: %v", err)
		}
	}
	a.until(25*time.Second, "somebody gets in after the flood", func() (bool, string) {
		err := answered(rigUDP(a.rig, a.Public1.Name, 0, "192.0.2.16:5300"), "x")
		return err == nil, "no answer"
	})
}

// A UDP flood under random sources, at a forwarded port whose server answers each datagram, and at the rest of the public addresses.
func TestAttackUDPFloodForward(t *testing.T) {
	a := newAttacked(t, "udpfwd", "", "[tenant.limits]\nsessions = 1000\n")
	gw, own := a.macs(netlab.PublicPort, a.Public2)
	a.attack(attackRate, a.Public2.Name, func(n int) []byte {
		dst, port := addr("192.0.2.16"), uint16(5300)
		if n%2 == 0 {
			dst, port = netip.AddrFrom4([4]byte{192, 0, 2, byte(16 + a.rng.Uint32N(16))}), a.port()
		}
		return raw4(gw, own, a.somewhere(), dst, protoUDP, 64, true, udp(a.port(), port, []byte("who are you?")), sumUDP)
	}, "tenant_unanswered", "nat_unused_address")
	for range 20 {
		if err := a.opens(a.Alpha2); err != nil {
			t.Fatalf("a session of the attacked tenant's own: %v", err)
		}
	}
}

// A small table under two floods of a tenant without limits, inwards and outwards: there is room for others all the time.
func TestAttackTableExhaustion(t *testing.T) {
	a := newAttacked(t, "table", "sessions = 4096\nmappings = 4096", "")
	gw, own := a.macs(netlab.AlphaPort, a.Alpha1)
	bbGW, bbOwn := a.macs(netlab.PublicPort, a.Public2)
	send := (&site{Topology: a.Topology, t: a.t}).rawFrames(a.Public2.Name, netlab.HostDevice)
	b := a.attack(attackRate/2, a.Alpha1.Name, func(int) []byte {
		if err := send(raw4(bbGW, bbOwn, a.somewhere(), addr("192.0.2.16"), protoUDP, 64, true, udp(a.port(), 5300, []byte("x")), sumUDP)); err != nil {
			t.Error(err)
		}
		return raw4(gw, own, a.Alpha1.V4, a.Public1.V4, protoUDP, 64, true, udp(a.port(), 7008, []byte("x")), sumUDP)
	}, "tenant_unanswered or table_share")
	if n := b.after.Workers[0].Sessions; n > 4096*9/10 {
		t.Errorf("%d of 4096 sessions: the others have no room", n)
	}
}

// Fragments that never become whole, and overlapping ones, at a forwarded port and under random sources.
func TestAttackFragmentFlood(t *testing.T) {
	a := newAttacked(t, "frags", "", "")
	gw, own := a.macs(netlab.PublicPort, a.Public2)
	b := a.attack(attackRate, a.Public2.Name, func(n int) []byte {
		f := raw4(gw, own, a.somewhere(), addr("192.0.2.16"), protoUDP, 64, false, udp(a.port(), 5300, make([]byte, 64)), sumUDP)
		ip := f[14:34]
		binary.BigEndian.PutUint16(ip[4:], uint16(a.rng.Uint32()))
		switch n % 3 {
		case 0: // a first one without the rest
			binary.BigEndian.PutUint16(ip[6:], 0x2000)
		case 1: // an orphan
			binary.BigEndian.PutUint16(ip[6:], 185)
		default: // over the one before
			binary.BigEndian.PutUint16(ip[6:], 0x2000|uint16(a.rng.Uint32N(9)))
		}
		checksum4(ip)
		return f
	})
	if al := rigTenantOf(b.after, "alpha"); al.Sessions > 16384/2 {
		t.Errorf("the flood holds %d sessions", al.Sessions)
	}
}

// Pings at the gateway, pings through it, and errors about conversations that never were.
func TestAttackICMPFlood(t *testing.T) {
	a := newAttacked(t, "icmp", "", "")
	gw, own := a.macs(netlab.PublicPort, a.Public2)
	a.attack(attackRate, a.Public2.Name, func(n int) []byte {
		src := a.Public2.V4
		switch n % 3 {
		case 0: // the gateway itself
			return raw4(gw, own, src, addr(netlab.PublicGW4), protoICMP, 64, true, echoRequest(uint16(n)), sumICMP)
		case 1: // a tenant's address
			return raw4(gw, own, a.somewhere(), addr("192.0.2.17"), protoICMP, 64, true, echoRequest(uint16(n)), sumICMP)
		}
		quoted := raw4(gw, own, addr("192.0.2.16"), a.somewhere(), protoUDP, 64, true, udp(a.port(), a.port(), make([]byte, 8)), sumUDP)[14:]
		return raw4(gw, own, a.somewhere(), addr("192.0.2.16"), protoICMP, 64, true, append([]byte{3, 1, 0, 0, 0, 0, 0, 0}, quoted...), sumICMP)
	}, "icmp_rate_limited", "icmp_no_session")
}

// LAND: packets from themselves, and from addresses of ours, at public addresses and at the gateway.
func TestAttackLAND(t *testing.T) {
	a := newAttacked(t, "land", "", "")
	gw, own := a.macs(netlab.PublicPort, a.Public2)
	targets := []netip.Addr{addr("192.0.2.16"), addr(netlab.PublicGW4), addr("192.0.2.33")}
	a.attack(attackRate, a.Public2.Name, func(n int) []byte {
		to := targets[n%3]
		from := to
		if n%2 == 0 {
			from = targets[(n+1)%3]
		}
		return raw4(gw, own, from, to, protoTCP, 64, true, tcpSyn(8080, 8080), sumTCP)
	}, "land", "spoofed_source")
}

// Packets to public addresses that nobody has now, from outside and from inside, go nowhere: least of all back where they came from, to be
// sent again by a router that has a route here.
func TestAttackLoops(t *testing.T) {
	a := newAttacked(t, "loops", "", "")
	gw, own := a.macs(netlab.PublicPort, a.Public2)
	inGW, inOwn := a.macs(netlab.AlphaPort, a.Alpha1)
	send := (&site{Topology: a.Topology, t: a.t}).rawFrames(a.Alpha1.Name, netlab.HostDevice)
	// Whatever goes out to 192.0.2/24 on the public side: the switch floods or forwards it to one of the two.
	back := (&site{Topology: a.Topology, t: a.t}).capture(a.Public2.Name, netlab.HostDevice, 100, func(f []byte) bool {
		return len(f) > 34 && f[12] == 8 && f[13] == 0 && f[30] == 192 && f[31] == 0 && f[32] == 2 && string(f[6:12]) == string(gw)
	})
	a.attack(attackRate/2, a.Public2.Name, func(int) []byte {
		unmapped := netip.AddrFrom4([4]byte{192, 0, 2, byte(18 + a.rng.Uint32N(200))}) // of a pool, or routed here and of nobody
		pool := netip.AddrFrom4([4]byte{192, 0, 2, byte(18 + a.rng.Uint32N(30))})
		if err := send(raw4(inGW, inOwn, a.Alpha1.V4, pool, protoUDP, 255, true, udp(4444, a.port(), []byte("loop?")), sumUDP)); err != nil {
			t.Error(err)
		}
		return raw4(gw, own, a.somewhere(), unmapped, protoUDP, 255, true, udp(a.port(), a.port(), []byte("loop?")), sumUDP)
	}, "nat_unused_address", "not_for_us or no_route")
	if n := len(back.Frames()); n > 0 {
		t.Errorf("%d packets to our own public addresses were sent out again", n)
	}
}

// A flood as fast as the machine makes it. It takes processor time from everybody here, the bystander's sender included, so nothing is
// promised about loss; docs/operations.md has the figures. What must hold: no session of the attacked tenant or of another ends, the
// gateway's accounts close, and it goes on as if nothing had been.
func TestAttackUnpaced(t *testing.T) {
	a := newAttacked(t, "unpaced", "", "[tenant.limits]\nsessions = 1000\n")
	gw, own := a.macs(netlab.PublicPort, a.Public2)
	pool := make([][]byte, 4096)
	for i := range pool {
		pool[i] = raw4(gw, own, a.somewhere(), addr("192.0.2.16"), protoTCP, 64, true, tcpSyn(a.port(), 8080), sumTCP)
	}
	b := a.under(0, a.Public2.Name, func(n int) []byte { return pool[n%len(pool)] })
	q := b.after.Ports[0].Queues[0]
	t.Logf("%d frames (%.0f/s), lost before the gateway %+v; beta: %d of %d probes, longest gap %.1f ms, %d of %d new sessions, %d retransmissions; dropped %v", b.sent, float64(b.sent)/attackTime.Seconds(),
		q.Rings, b.probe.Received, b.probe.Sent, b.probe.LongestMs, b.opened, b.asked, b.retransmitted, drops(a.before, b.after))
	if !alive(a.out, 3*time.Second) || !alive(a.in, 3*time.Second) || !alive(a.beta, 3*time.Second) {
		t.Error("a live session ended")
	}
	for _, h := range []netlab.Host{a.Alpha2, a.Beta1} {
		if err := a.opens(h); err != nil {
			t.Errorf("%s: %v", h.Name, err)
		}
	}
	(&site{t: a.t}).healthy(a.status())
}

// checksum4 writes an IPv4 header's checksum.
func checksum4(h []byte) {
	h[10], h[11] = 0, 0
	sum := uint32(0)
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum))
}
