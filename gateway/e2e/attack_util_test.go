package e2e

import (
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	"demarc/gateway/netlab/quiet"
)

// An attack is paced: maker, gateway and bystander share the machine's cores, and what is tested is the gateway's decisions, not who gets
// the processor. TestAttackUnpaced is the other.
const (
	attackRate = 10000 // frames per second
	attackTime = 2500 * time.Millisecond
)

const attackForwards = `
[[tenant.nat.forward]]
public = "192.0.2.16"
proto = "tcp"
port = 8080
inside = "198.18.10.11"
inside_port = 80
[[tenant.nat.forward]]
public = "192.0.2.16"
proto = "udp"
port = 5300
inside = "198.18.10.11"
inside_port = 53
[[tenant.rule]]
name = "forwards"
direction = "in"
action = "allow"
to = ["198.18.10.11"]
service = ["tcp/80", "udp/53"]
`

// attacked is a gateway with two tenants: alpha, with forwarded ports, is attacked, and beta lives beside it.
type attacked struct {
	*rig
	rng    *rand.Rand
	out    net.Conn // of alpha, to the outside
	in     net.Conn // from outside to a forwarded port of alpha
	beta   net.Conn
	before *api.Status
}

// newAttacked starts it; more is what else alpha's policy says. Everything that answers is known to its neighbours when this returns.
func newAttacked(t *testing.T, name, node, more string) *attacked {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	policy := replace(t, rigPolicy(attackForwards+more, ""), "interfaces = [\"backbone\"]\n", "interfaces = [\"backbone\"]\n[[route]]\nprefix = \"0.0.0.0/0\"\nvia = \"203.0.113.12\"\n")
	a := &attacked{rig: newRig(t, name, policy), rng: rand.New(rand.NewPCG(seed, 1))}
	if node != "" {
		a.write(a.node, replace(t, rigNode(a.data, a.socket, ""), "sessions = 16384", node))
	}
	a.start()
	a.serve(a.Public1.Name, "udp-echo", "-addr", ":7007")
	rigUDPEcho(a.rig, a.Public1.Name, 7008)
	rigUDPEcho(a.rig, a.Alpha1.Name, 53)
	rigEcho(a.rig, a.Public1.Name, ":7100")
	rigEcho(a.rig, a.Alpha1.Name, ":80")
	for _, h := range []netlab.Host{a.Alpha1, a.Alpha2, a.Beta1, a.Beta2} {
		if err := answered(rigUDP(a.rig, h.Name, 0, addrPort(a.Public1.V4, 7008)), "x"); err != nil {
			t.Fatalf("%s: %v", h.Name, err)
		}
	}
	if err := answered(rigUDP(a.rig, a.Public2.Name, 0, "192.0.2.16:5300"), "x"); err != nil {
		t.Fatalf("the forwarded port: %v", err)
	}
	a.out, a.beta = rigDial(a.rig, a.Alpha2.Name, addrPort(a.Public1.V4, 7100)), rigDial(a.rig, a.Beta1.Name, addrPort(a.Public1.V4, 7100))
	a.in = rigDial(a.rig, a.Public1.Name, "192.0.2.16:8080")
	a.before = a.status()
	return a
}

// frames makes one frame after the other: layer 4 of it, and who sends it.
type frames func(n int) []byte

// flood sends frames on a host's device at a rate (0: as fast as it goes) for d, and says how many. Late, it leaves frames out: a burst of
// what a scheduler withheld would not be the rate.
func (a *attacked) flood(ns string, rate int, d time.Duration, next frames) (sent int) {
	send := (&site{Topology: a.Topology, t: a.t}).rawFrames(ns, netlab.HostDevice)
	const tick = time.Millisecond
	start := time.Now()
	for at := start; time.Since(start) < d; {
		burst := 64
		if rate > 0 {
			burst = max(1, int(float64(rate)*tick.Seconds()))
			at = at.Add(tick * time.Duration(burst) * time.Second / time.Duration(rate) / tick)
			if late := time.Since(at); late > 0 {
				at = at.Add(late)
			}
			time.Sleep(time.Until(at))
		}
		for range burst {
			if err := send(next(sent)); err == nil {
				sent++
			} else if err != unix.ENOBUFS {
				a.t.Error(err)
				return sent
			}
		}
	}
	return sent
}

// beside is what the bystander and the attacked tenant's live sessions saw meanwhile.
type beside struct {
	probe         host.Probe // beta, one flow there and back
	asked, opened int        // new sessions of beta, one packet each, no second try
	retransmitted uint32     // by beta's TCP, both ways
	out, in       bool       // alpha's TCP sessions lived all the time
	sent          int        // of the flood
	after         *api.Status
}

// attack is under and held, on a machine that is there: while it is elsewhere for a fifth of a second TCP sends again, and what comes meanwhile is more than a ring holds.
func (a *attacked) attack(rate int, ns string, next frames, reasons ...string) (b beside) {
	a.t.Helper()
	quiet.Judge(a.t, func(l *quiet.Limits) {
		b = a.under(rate, ns, next)
		a.held(l, rate, b, reasons...)
	})
	return b
}

// retransmits is how many segments beta's TCP has sent again so far.
func (a *attacked) retransmits() (n uint32) {
	a.t.Helper()
	raw, err := a.beta.(*net.TCPConn).SyscallConn()
	check(a.t, err)
	check(a.t, raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = info.Total_retrans
		}
	}))
	return n
}

// under lets the attack run and the others go on.
func (a *attacked) under(rate int, ns string, next frames) (b beside) {
	a.t.Helper()
	again := a.retransmits()
	var wg sync.WaitGroup
	end := time.Now().Add(attackTime)
	stream := a.spawn(a.Beta1.Name, &b.probe, "udp-probe", "-dst", addrPort(a.Public1.V4, 7007), "-pps", "1000", "-duration", attackTime.String())
	wg.Go(func() { b.sent = a.flood(ns, rate, attackTime, next) })
	for _, c := range []struct {
		conn net.Conn
		ok   *bool
	}{{a.out, &b.out}, {a.in, &b.in}, {a.beta, new(bool)}} {
		wg.Go(func() {
			*c.ok = true
			for ; *c.ok && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				*c.ok = alive(c.conn, 2*time.Second)
			}
		})
	}
	var got sync.WaitGroup
	var mu sync.Mutex
	wg.Go(func() {
		for ; time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			c := rigUDP(a.rig, a.Beta2.Name, 0, addrPort(a.Public1.V4, 7008))
			b.asked++
			got.Go(func() {
				c.Write([]byte("x"))
				c.SetReadDeadline(time.Now().Add(time.Second))
				if _, err := c.Read(make([]byte, 100)); err == nil {
					mu.Lock()
					b.opened++
					mu.Unlock()
				}
			})
		}
	})
	wg.Wait()
	got.Wait()
	a.wait(stream)
	b.retransmitted = a.retransmits() - again
	b.after = a.status()
	return b
}

// held is what every paced attack is held against: the bystander lost nothing, the attacked tenant's sessions live, the gateway is well,
// and the flood was dropped under each of the reasons ("one or another": either).
func (a *attacked) held(l *quiet.Limits, rate int, b beside, reasons ...string) {
	a.t.Helper()
	d := drops(a.before, b.after)
	al, be := rigTenantOf(b.after, "alpha"), rigTenantOf(b.after, "beta")
	a.t.Logf("%d frames of the flood (%.0f/s); beta: %d of %d probes, longest gap %.1f ms, %d of %d new sessions, %d retransmissions; alpha: %d sessions, %d from outside, unanswered %d out %d in; dropped %v; beta %v",
		b.sent, float64(b.sent)/attackTime.Seconds(), b.probe.Received, b.probe.Sent, b.probe.LongestMs, b.opened, b.asked, b.retransmitted, al.Sessions, al.Inbound, al.Unanswered.Out, al.Unanswered.In, d, be.Drops)
	if b.sent < int(float64(rate)*attackTime.Seconds()/4) {
		l.Missed("only %d frames of the flood were sent: no attack", b.sent)
	}
	if b.probe.Received != b.probe.Sent || b.opened != b.asked || b.retransmitted > 0 {
		l.Missed("beside the attack, beta lost %d of %d probes, %d of %d new sessions, and retransmitted %d segments", b.probe.Sent-b.probe.Received, b.probe.Sent,
			b.asked-b.opened, b.asked, b.retransmitted)
	}
	if !b.out || !b.in {
		a.t.Errorf("live sessions of the attacked tenant: outwards %v, inwards %v", b.out, b.in)
	}
	for _, any := range reasons {
		n := uint64(0)
		for r := range strings.SplitSeq(any, " or ") {
			n += d[r]
		}
		if n == 0 {
			a.t.Errorf("nothing was dropped as %s", any)
		}
	}
	(&site{t: a.t}).healthy(b.after)
}

// opens says whether a host can begin a session that is answered.
func (a *attacked) opens(h netlab.Host) error {
	return answered(rigUDP(a.rig, h.Name, 0, addrPort(a.Public1.V4, 7008)), "x")
}

// macs are the gateway's and the host's on one link.
func (a *attacked) macs(port string, h netlab.Host) (gw, own net.HardwareAddr) {
	a.t.Helper()
	gw, err := a.MAC(netlab.GW, port)
	check(a.t, err)
	own, err = a.MAC(h.Name, netlab.HostDevice)
	check(a.t, err)
	return gw, own
}
