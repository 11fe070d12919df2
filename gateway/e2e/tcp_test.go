package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
)

// tcpPolicy has short times for all but established connections, so that one that is taken for another state ends while the test looks on.
func tcpPolicy() string {
	return `schema = 1
name = "tcp"
[timeouts]
tcp_established = "1h"
tcp_transitory = "1500ms"
tcp_closing = "1s"
tcp_closed = "1s"
[backbone]
interfaces = ["backbone"]
` + rigTenant("alpha", "alpha", netlab.AlphaNet6, netlab.AlphaPool, rigNAT, rigNATRules+`
[[tenant.rule]]
name = "peers"
direction = "in"
action = "allow"
to = ["198.18.10.12"]
service = ["tcp/5000-5999"]
`) + rigBeta("")
}

// tcpFrom connects from a fixed port, which may be in TIME_WAIT.
func tcpFrom(r *rig, ns string, port int, dst string, wait time.Duration) (c *net.TCPConn, err error) {
	if e := r.Do(ns, func() error {
		d := net.Dialer{LocalAddr: &net.TCPAddr{Port: port}, Timeout: wait, Control: func(_, _ string, rc syscall.RawConn) error {
			var e error
			if err := rc.Control(func(fd uintptr) { e = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }); err != nil {
				return err
			}
			return e
		}}
		x, e := d.Dial("tcp", dst)
		if e == nil {
			c = x.(*net.TCPConn)
		}
		err = e
		return nil
	}); e != nil {
		r.t.Fatal(e)
	}
	if c != nil {
		r.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// retransmitted is how many segments the kernel has sent again.
func retransmitted(t *testing.T, c *net.TCPConn) (n uint32) {
	t.Helper()
	rc, err := c.SyscallConn()
	check(t, err)
	var info *unix.TCPInfo
	check(t, rc.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }))
	check(t, err)
	return info.Total_retrans
}

// tcpListen accepts connections into a channel.
func tcpListen(r *rig, ns string, port int) chan *net.TCPConn {
	r.t.Helper()
	var l *net.TCPListener
	if err := r.Do(ns, func() (err error) {
		l, err = net.ListenTCP("tcp", &net.TCPAddr{Port: port})
		return err
	}); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { l.Close() })
	ch := make(chan *net.TCPConn, 16)
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			ch <- c
		}
	}()
	return ch
}

func tcpAccept(t testing.TB, ch chan *net.TCPConn) *net.TCPConn {
	t.Helper()
	select {
	case c := <-ch:
		t.Cleanup(func() { c.Close() })
		return c
	case <-time.After(5 * time.Second):
		t.Fatal("nobody connected")
		return nil
	}
}

// exchangeTCP sends text one way and waits for it.
func exchangeTCP(t testing.TB, from, to *net.TCPConn, text string) {
	t.Helper()
	if _, err := from.Write([]byte(text)); err != nil {
		t.Fatalf("write %q: %v", text, err)
	}
	to.SetReadDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, len(text))
	if _, err := io.ReadFull(to, b); err != nil || string(b) != text {
		t.Fatalf("read %q: %q, %v", text, b, err)
	}
}

// tcpSession is the one session of a far port.
func tcpSession(r *rig, port int) (s api.Session, n int) {
	var list api.Sessions
	r.ask(&list, "sessions", "--port", fmt.Sprint(port), "--proto", "tcp")
	for _, x := range list.Sessions {
		s = x
	}
	return s, len(list.Sessions)
}

// tcpEye sees the numbers of a connection on the wire: what the far end has sent last, and what it expects.
type tcpEye struct {
	mu                   sync.Mutex
	first                uint32 // number of the first byte from the far end
	next, ack, innerNext uint32
	peer                 netip.AddrPort // the client as the far end sees it
	mac                  net.HardwareAddr
	resets               int
}

func watchTCP(r *rig, h netlab.Host, port uint16) *tcpEye {
	r.t.Helper()
	e := &tcpEye{}
	if _, err := r.Capture(h.Name, netlab.HostDevice, 0, func(f []byte) bool {
		if len(f) < 54 || binary.BigEndian.Uint16(f[12:]) != 0x0800 || f[23] != 6 {
			return false
		}
		ip := f[14:]
		l4 := ip[int(ip[0]&15)*4 : binary.BigEndian.Uint16(ip[2:])]
		sport, dport := binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:])
		if sport != port && dport != port {
			return false
		}
		n := uint32(len(l4) - int(l4[12]>>4)*4)
		if l4[13]&3 != 0 {
			n++
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		if l4[13]&4 != 0 {
			e.resets++
		}
		if sport == port { // the far end speaks
			e.next, e.ack = binary.BigEndian.Uint32(l4[4:])+n, binary.BigEndian.Uint32(l4[8:])
			if l4[13]&2 != 0 {
				e.first = e.next
			}
			e.mac = append(net.HardwareAddr(nil), f[:6]...)
		} else {
			e.innerNext = binary.BigEndian.Uint32(l4[4:]) + n
			e.peer = netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[12:16])), sport)
		}
		return false
	}); err != nil {
		r.t.Fatal(err)
	}
	return e
}

func (e *tcpEye) now() tcpEye {
	e.mu.Lock()
	defer e.mu.Unlock()
	return tcpEye{first: e.first, next: e.next, ack: e.ack, innerNext: e.innerNext, peer: e.peer, mac: e.mac, resets: e.resets}
}

func tcpSegment(sport, dport uint16, seq, ack uint32, flags byte, body string) []byte {
	b := binary.BigEndian.AppendUint16(nil, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	b = binary.BigEndian.AppendUint32(b, seq)
	b = binary.BigEndian.AppendUint32(b, ack)
	b = append(b, 5<<4, flags, 0x40, 0, 0, 0, 0, 0)
	return append(b, body...)
}

// Kernels open at once: the first SYN is lost on the other host, the other's crosses the second one, and one connection comes of it, through a 1:1
// address (RFC 9293 section 3.5, RFC 5382 REQ-2a).
func TestTCPSimultaneousOpenOnTheWire(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "tcpboth", tcpPolicy())
	r.start()
	p, a := r.Public1, r.Alpha2
	if err := answered(rigUDP(r, a.Name, 0, addrPort(p.V4, 9)), "x"); !errors.Is(err, unix.ECONNREFUSED) { // neighbours are known from here on
		t.Fatal(err)
	}
	hole := func(do string) {
		t.Helper()
		if _, err := r.Exec(p.Name, "ip", "route", do, "blackhole", "192.0.2.100/32"); err != nil {
			t.Fatal(err)
		}
	}
	hole("add") // the far kernel can answer nothing: no reset for the SYN that comes too early
	type dialed struct {
		c   *net.TCPConn
		err error
	}
	inside := make(chan dialed, 1)
	go func() {
		c, err := tcpFrom(r, a.Name, 5000, addrPort(p.V4, 6000), 8*time.Second)
		inside <- dialed{c, err}
	}()
	r.until(5*time.Second, "the SYN has left", func() (bool, string) {
		s, n := tcpSession(r, 6000)
		return n == 1 && s.State == "syn_sent", s.State
	})
	hole("del")
	out, err := tcpFrom(r, p.Name, 6000, "192.0.2.100:5000", 8*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	in := <-inside
	if in.err != nil {
		t.Fatal(in.err)
	}
	exchangeTCP(t, out, in.c, "from outside")
	exchangeTCP(t, in.c, out, "from inside")
	s, n := tcpSession(r, 6000)
	if n != 1 || s.State != "established" || s.Reply.Packets == 0 {
		t.Errorf("%d sessions, %s", n, s.State)
	}
}

// A kernel closes its half and the other goes on for longer than any time but that of established connections (RFC 9293 section 3.6, RFC 5382 section 5).
func TestTCPHalfCloseOnTheWire(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "tcphalf", tcpPolicy())
	r.start()
	ch := tcpListen(r, r.Public1.Name, 7200)
	type pair struct{ client, server *net.TCPConn }
	var pairs []pair
	for i, ns := range []string{r.Alpha1.Name, r.Alpha1.Name} {
		c, err := tcpFrom(r, ns, 41000+i, addrPort(r.Public1.V4, 7200), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		pairs = append(pairs, pair{c, tcpAccept(t, ch)})
	}
	half := func(p pair) { // whoever closes reads on
		t.Helper()
		if err := p.client.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		p.server.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, err := p.server.Read(make([]byte, 9)); n != 0 || err != io.EOF {
			t.Fatalf("the other end read %d bytes, %v", n, err)
		}
	}
	half(pairs[0])
	half(pair{pairs[1].server, pairs[1].client})
	begun := time.Now()
	r.until(10*time.Second, "a time has gone by in which any other state would have ended", func() (bool, string) {
		return time.Since(begun) > 3500*time.Millisecond, ""
	})
	for i, p := range []pair{{pairs[0].client, pairs[0].server}, {pairs[1].server, pairs[1].client}} {
		for n := range 50 {
			exchangeTCP(t, p.server, p.client, fmt.Sprintf("connection %d, line %d, half closed", i, n))
		}
		p.server.Close()
		p.client.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, err := p.client.Read(make([]byte, 9)); n != 0 || err != io.EOF {
			t.Fatalf("the end: %d bytes, %v", n, err)
		}
	}
	r.until(8*time.Second, "what both have closed ends", func() (bool, string) {
		_, n := tcpSession(r, 7200)
		return n == 0, fmt.Sprint(n)
	})
}

// A tuple is used again at once, whichever end closed it and how, with its public port kept (RFC 9293 section 3.6.1, RFC 6191).
func TestTCPTupleIsUsedAgainOnTheWire(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "tcpagain", tcpPolicy())
	r.start()
	ch := tcpListen(r, r.Public1.Name, 7300)
	seen := map[string]int{}
	for round := range 12 {
		var c *net.TCPConn
		r.until(5*time.Second, fmt.Sprintf("round %d", round), func() (bool, string) {
			var err error
			if c, err = tcpFrom(r, r.Alpha1.Name, 42000, addrPort(r.Public1.V4, 7300), 5*time.Second); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				t.Fatalf("round %d: %v", round, err)
			}
			return err == nil, "the client's kernel still has its own end"
		})
		if n := retransmitted(t, c); n > 0 { // nothing but its SYN was sent
			t.Errorf("round %d: connected after %d further SYNs: the first one was dropped", round, n)
		}
		s := tcpAccept(t, ch)
		seen[s.RemoteAddr().String()]++
		exchangeTCP(t, c, s, "there")
		exchangeTCP(t, s, c, "and back")
		first, second := s, c // whoever ends by FIN keeps TIME_WAIT: the far end, or the client's kernel would not connect again
		if round%3 == 2 {
			first, second = c, s
		}
		if round%3 != 1 {
			first.SetLinger(0) // by RST
			first.Close()
			second.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := second.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Fatalf("round %d: after the reset: %v", round, err)
			}
		} else {
			first.Close()
			second.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := second.Read(make([]byte, 1)); err != io.EOF {
				t.Fatalf("round %d: after the end: %v", round, err)
			}
		}
		second.Close()
	}
	if len(seen) != 1 {
		t.Errorf("public ends %v, want one", seen)
	}
	if _, n := tcpSession(r, 7300); n > 1 {
		t.Errorf("%d sessions", n)
	}
}

// Who forges segments without knowing the numbers harms nothing: not with RSTs outside the window, nor within it but not in place, nor with data, FINs
// and SYNs. The far host's address is all that is right about them (RFC 5961, RFC 9293 section 3.10.7.4).
func TestTCPForgedSegmentsOnTheWire(t *testing.T) {
	r := newRig(t, "tcpforge", tcpPolicy())
	r.start()
	p := r.Public1
	eye := watchTCP(r, p, 7400)
	ch := tcpListen(r, p.Name, 7400)
	c, err := tcpFrom(r, r.Alpha1.Name, 43000, addrPort(p.V4, 7400), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	s := tcpAccept(t, ch)
	exchangeTCP(t, c, s, "hello")
	exchangeTCP(t, s, c, "welcome")
	r.until(5*time.Second, "the wire is read", func() (bool, string) {
		x := eye.now()
		return x.mac != nil && x.peer.IsValid() && x.ack == x.innerNext && x.next == x.first+uint32(len("welcome")), ""
	})
	x := eye.now()
	send := (&site{Topology: r.Topology, t: t}).rawFrames(r.Public2.Name, netlab.HostDevice)
	forge := func(seq, ack uint32, flags byte, body string) {
		t.Helper()
		f := raw4(x.mac, net.HardwareAddr{2, 0xd3, 0, 0, 0xbe, 0xef}, p.V4, x.peer.Addr(), 6, 64, true, tcpSegment(7400, x.peer.Port(), seq, ack, flags, body), 16)
		if err := send(f); err != nil {
			t.Fatal(err)
		}
	}
	const fin, syn, rst, psh, ack = 1, 2, 4, 8, 16
	before := r.status()
	far := 0
	for _, off := range []uint32{1 << 31, 1 << 30, 3 << 30, 1<<31 - 1, 0x40001000, 0xe0000000, 1 << 28} {
		forge(x.next+off, x.ack, rst, "")
		forge(x.next+off, x.ack, rst|ack, "")
		forge(x.next+off, x.ack, psh|ack, "injected")
		forge(x.next+off, x.ack, fin|ack, "")
		far += 4
	}
	for _, off := range []uint32{1, 5, 1 << 10, 1 << 20} { // from before what was acknowledged: the receiver would not even ask back
		forge(x.next-off, x.ack, rst, "")
		far++
	}
	r.until(5*time.Second, "all of them are dropped", func() (bool, string) {
		d := drops(before, r.status())
		return d["tcp_out_of_window"] >= uint64(far), fmt.Sprintf("%v of %d", d, far)
	})
	exchangeTCP(t, c, s, "still here")
	const last = "so am I"
	next := x.next + uint32(len(last))
	exchangeTCP(t, s, c, last)
	// Within the window, but not where the next byte is: the kernel asks back (RFC 5961 section 3.2) and the session stays what it was. A capture that has not shown
	// the last segment yet would put one of them just there.
	r.until(5*time.Second, "the wire is read again", func() (bool, string) {
		x = eye.now()
		return x.next == next, fmt.Sprintf("%d, want %d", x.next, next)
	})
	for _, off := range []uint32{1, 7, 1000} {
		forge(x.next+off, x.ack, rst, "")
	}
	forge(x.next+9, x.ack, syn, "") // RFC 5961 section 4
	exchangeTCP(t, c, s, "not reset")
	exchangeTCP(t, s, c, "neither")
	begun := time.Now()
	r.until(10*time.Second, "longer than what is reset lives", func() (bool, string) { return time.Since(begun) > 2500*time.Millisecond, "" })
	exchangeTCP(t, c, s, "after the time-outs of all other states")
	exchangeTCP(t, s, c, "and back")
	if y, n := tcpSession(r, 7400); n != 1 || y.State != "established" {
		t.Errorf("%d sessions, %s", n, y.State)
	}
	// A genuine reset ends it.
	s.SetLinger(0)
	s.Close()
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("after a genuine reset: %v", err)
	}
	r.until(8*time.Second, "the session ends", func() (bool, string) {
		_, n := tcpSession(r, 7400)
		return n == 0, fmt.Sprint(n)
	})
}
