package host

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// A probe's payload: magic, tag (8 bytes), sequence number, CLOCK_MONOTONIC nanoseconds when sent; the rest is zero.
const (
	probeMagic  = 0x64656d6172635052 // "demarcPR", also what a capture looks for
	probeHeader = 32
)

// ProbeMarker is how the payload of a probe with this tag begins: what to look for on a link where it must not be.
func ProbeMarker(tag string) []byte {
	b := binary.BigEndian.AppendUint64(nil, probeMagic)
	return append(b, fixedTag(tag)...)
}

func fixedTag(tag string) []byte {
	b := make([]byte, 8)
	copy(b, tag)
	return b
}

func monotonic() uint64 {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail with this clock
	return uint64(ts.Nano())
}

func putProbe(b, tag []byte, seq uint64) {
	binary.BigEndian.PutUint64(b, probeMagic)
	copy(b[8:16], tag)
	binary.BigEndian.PutUint64(b[16:], seq)
	binary.BigEndian.PutUint64(b[24:], monotonic())
}

func getProbe(b []byte) (tag string, seq, sent uint64, ok bool) {
	if len(b) < probeHeader || binary.BigEndian.Uint64(b) != probeMagic {
		return "", 0, 0, false
	}
	return strings.TrimRight(string(b[8:16]), "\x00"), binary.BigEndian.Uint64(b[16:]), binary.BigEndian.Uint64(b[24:]), true
}

// ProbeSent is when a probe with this payload was sent: nanoseconds of CLOCK_MONOTONIC. It is false of what is none.
func ProbeSent(payload []byte) (ns int64, ok bool) {
	_, _, sent, ok := getProbe(payload)
	return int64(sent), ok
}

// ProbeNumber is which one of its sender's a probe with this payload is, from 0. It is false of what is none.
func ProbeNumber(payload []byte) (n uint64, ok bool) {
	_, n, _, ok = getProbe(payload)
	return n, ok
}

// ipOverhead is IP and UDP header bytes: what a rate counts besides the payload.
func ipOverhead(a netip.Addr) int {
	if a.Unmap().Is4() {
		return 28
	}
	return 48
}

// listenUDP opens a socket with a receive buffer that holds a scheduling hiccup of the machine.
func listenUDP(addr string) (*net.UDPConn, error) {
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		return nil, err
	}
	u := c.(*net.UDPConn)
	forceBuffer(u, unix.SO_RCVBUFFORCE)
	return u, nil
}

// withoutDF has an IPv4 socket send what a router may cut, as many telephones do.
func withoutDF(c syscall.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
	}), err)
}

// forceBuffer asks for 8 MB past the system's limit; without the right to do so the default stays.
func forceBuffer(u *net.UDPConn, opt int) {
	if raw, err := u.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, opt, 8<<20) })
	}
}

// Echoed is what an echo saw of one tag.
type Echoed struct {
	Packets uint64         `json:"packets"`
	IPBytes uint64         `json:"ip_bytes"`
	Sources map[string]int `json:"sources"` // address:port
}

// Echo is what an echo saw.
type Echo struct {
	Tags    map[string]*Echoed `json:"tags"`
	Foreign uint64             `json:"foreign"` // packets that are no probe
}

func udpEcho(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	addr := fs.String("addr", ":7007", "listen address")
	noDF := fs.Bool("no-df", false, "answers may be cut on their way (IPv4)")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	conn, err := listenUDP(*addr)
	if err != nil {
		return nil, err
	}
	if *noDF {
		if err := withoutDF(conn); err != nil {
			return nil, err
		}
	}
	end, err := serving(ctx, conn.LocalAddr().String())
	if err != nil {
		return nil, err
	}
	context.AfterFunc(end, func() { conn.Close() })
	r := Echo{Tags: map[string]*Echoed{}}
	buf := make([]byte, 1<<16)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			if end.Err() != nil {
				return r, nil
			}
			return nil, err
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		tag, _, _, ok := getProbe(buf[:n])
		if !ok {
			r.Foreign++
			continue
		}
		e := r.Tags[tag]
		if e == nil {
			e = &Echoed{Sources: map[string]int{}}
			r.Tags[tag] = e
		}
		e.Packets++
		e.IPBytes += uint64(n + ipOverhead(from.Addr()))
		e.Sources[from.String()]++
		conn.WriteToUDPAddrPort(buf[:n], from) // what is lost here the prober misses
	}
}

// Probe is a paced stream to an echo and back.
type Probe struct {
	Dst       string   `json:"dst"`
	Local     string   `json:"local"`
	Tag       string   `json:"tag"`
	Sent      uint64   `json:"sent"`
	SentBytes uint64   `json:"sent_ip_bytes"`
	Received  uint64   `json:"received"` // different own probes
	Duplicate uint64   `json:"duplicate"`
	Reordered uint64   `json:"reordered"`
	Foreign   uint64   `json:"foreign"` // with another tag, or no probe: somebody else's traffic
	Refused   uint64   `json:"refused"` // ICMP errors that the socket was told of
	RTT       Latency  `json:"rtt"`
	LongestMs float64  `json:"longest_gap_ms"` // between two received probes
	Lost      []uint64 `json:"lost,omitempty"` // the first numbers that did not come back, from 0
	Late      []uint64 `json:"late,omitempty"` // the first numbers that were reordered
}

// lostShown is how many lost numbers a probe names.
const lostShown = 10

func udpProbe(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	to := fs.String("dst", "", "ADDRESS:PORT of an echo")
	local := fs.String("local", "", "own ADDRESS:PORT")
	tag := fs.String("tag", "probe", "up to 8 bytes, names the sender")
	rate := fs.Float64("pps", 100, "probes per second")
	size := fs.Int("size", 200, "payload bytes, at least 32")
	tos := fs.Int("tos", 0, "IPv4 TOS or IPv6 traffic class")
	duration := fs.Duration("duration", 5*time.Second, "how long to send")
	noDF := fs.Bool("no-df", false, "probes may be cut on their way (IPv4)")
	wait := fs.Duration("wait", 2*time.Second, "for the last answers; who has them all does not wait") // a processor on their way is elsewhere for half a second now and then
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if *size < probeHeader || *size > 65000 || *rate <= 0 || len(*tag) > 8 {
		return nil, errors.New("want 32 <= size <= 65000, pps > 0 and a tag of at most 8 bytes")
	}
	conn, dst, err := dialUDP(*to, *local, *tos)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if *noDF {
		if err := withoutDF(conn); err != nil {
			return nil, err
		}
	}
	r := Probe{Dst: dst.String(), Local: conn.LocalAddr().String(), Tag: *tag}
	total := uint64(float64(*duration) / float64(time.Second) * *rate)

	var mu sync.Mutex
	received := make([]bool, total)
	var rtt []time.Duration
	go func() {
		buf := make([]byte, 1<<16)
		highest, last := uint64(0), time.Time{}
		for {
			n, err := conn.Read(buf)
			now, at := time.Now(), monotonic()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			mu.Lock()
			if err != nil {
				r.Refused++
				mu.Unlock()
				continue
			}
			got, seq, sent, ok := getProbe(buf[:n])
			switch {
			case !ok || got != *tag || seq >= total:
				r.Foreign++
			case received[seq]:
				r.Duplicate++
			default:
				received[seq] = true
				r.Received++
				if seq < highest {
					r.Reordered++
					if len(r.Late) < 16 {
						r.Late = append(r.Late, seq)
					}
				}
				highest = max(highest, seq)
				rtt = append(rtt, time.Duration(at-sent))
				if !last.IsZero() {
					r.LongestMs = max(r.LongestMs, float64(now.Sub(last))/1e6)
				}
				last = now
			}
			mu.Unlock()
		}
	}()

	b := make([]byte, *size)
	start, period := time.Now(), time.Duration(float64(time.Second) / *rate)
	for seq := uint64(0); seq < total; seq++ {
		if !sleepUntil(ctx, start.Add(time.Duration(seq)*period)) {
			break
		}
		putProbe(b, fixedTag(*tag), seq)
		if _, err := conn.Write(b); err != nil && !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EHOSTUNREACH) {
			return nil, fmt.Errorf("send probe %d: %w", seq, err)
		}
		r.Sent++
		r.SentBytes += uint64(*size + ipOverhead(dst.Addr()))
	}
	// One that is told to stop waits for the answers to what it has sent.
	for end := time.Now().Add(*wait); time.Now().Before(end); time.Sleep(time.Millisecond) {
		mu.Lock()
		whole := r.Received == r.Sent
		mu.Unlock()
		if whole {
			break
		}
	}
	mu.Lock()
	defer mu.Unlock()
	r.RTT = latencyOf(rtt)
	for seq, ok := range received[:r.Sent] {
		if !ok && len(r.Lost) < lostShown {
			r.Lost = append(r.Lost, uint64(seq))
		}
	}
	return r, nil
}

func dialUDP(to, local string, tos int) (*net.UDPConn, netip.AddrPort, error) {
	dst, err := netip.ParseAddrPort(to)
	if err != nil {
		return nil, dst, err
	}
	var from *net.UDPAddr
	if local != "" {
		a, err := netip.ParseAddrPort(local)
		if err != nil {
			return nil, dst, err
		}
		from = net.UDPAddrFromAddrPort(a)
	}
	conn, err := net.DialUDP("udp", from, net.UDPAddrFromAddrPort(dst))
	if err != nil {
		return nil, dst, err
	}
	forceBuffer(conn, unix.SO_RCVBUFFORCE)
	if tos != 0 {
		if dst.Addr().Is4() {
			err = ipv4.NewConn(conn).SetTOS(tos)
		} else {
			err = ipv6.NewConn(conn).SetTrafficClass(tos)
		}
	}
	return conn, dst, err
}

// SinkBucket is the width of one step of Sunk.Buckets.
const SinkBucket = 50 * time.Millisecond

// Sunk is what a sink got of one tag.
type Sunk struct {
	Packets uint64         `json:"packets"`
	IPBytes uint64         `json:"ip_bytes"`
	Highest uint64         `json:"highest_seq"`
	Sources map[string]int `json:"sources"`
	Buckets []uint64       `json:"buckets"` // IP bytes per SinkBucket, from the first packet
}

// Rate is the mean in bit/s over a window that begins skip after the first packet; 0 when the flood was shorter than that.
func (s *Sunk) Rate(skip, window time.Duration) float64 {
	from, n := int(skip/SinkBucket), int(window/SinkBucket)
	if n == 0 || len(s.Buckets) < from+n {
		return 0
	}
	sum := uint64(0)
	for _, b := range s.Buckets[from : from+n] {
		sum += b
	}
	return float64(sum) * 8 / (time.Duration(n) * SinkBucket).Seconds()
}

// Sink is what a sink got.
type Sink struct {
	Tags    map[string]*Sunk `json:"tags"`
	Foreign uint64           `json:"foreign"`
}

func udpSink(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	addr := fs.String("addr", ":9000", "listen address")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	conn, err := listenUDP(*addr)
	if err != nil {
		return nil, err
	}
	// The kernel's time counts: a sink that waits for a processor finds at once all that came meanwhile, and would count it where it finds it: a step too late.
	raw, err := conn.SyscallConn()
	if err == nil {
		var set error
		err = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) })
		err = errors.Join(err, set)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	end, err := serving(ctx, conn.LocalAddr().String())
	if err != nil {
		return nil, err
	}
	context.AfterFunc(end, func() { conn.SetReadDeadline(time.Now()) })
	r := Sink{Tags: map[string]*Sunk{}}
	first := map[string]int64{}
	take := func(b, oob []byte, from netip.AddrPort) {
		_, at := arrival(oob)
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		tag, seq, _, ok := getProbe(b)
		if !ok {
			r.Foreign++
			return
		}
		s := r.Tags[tag]
		if s == nil {
			s = &Sunk{Sources: map[string]int{}}
			r.Tags[tag], first[tag] = s, at
		}
		size := uint64(len(b) + ipOverhead(from.Addr()))
		s.Packets++
		s.IPBytes += size
		s.Highest = max(s.Highest, seq)
		s.Sources[from.String()]++
		i := int(max(0, at-first[tag]) / int64(SinkBucket))
		for len(s.Buckets) <= i && i < 1<<16 {
			s.Buckets = append(s.Buckets, 0)
		}
		if i < len(s.Buckets) {
			s.Buckets[i] += size
		}
	}
	buf, oob := make([]byte, 1<<16), make([]byte, 128)
	for {
		n, oobn, _, from, err := conn.ReadMsgUDPAddrPort(buf, oob)
		switch {
		case err == nil:
			take(buf[:n], oob[:oobn], from)
		case end.Err() != nil:
			err = unread(conn, take)
			return r, err
		default:
			return nil, err
		}
	}
}

// unread takes what has come to a socket and was not read: who is told to end may have been kept from its CPU for a while before.
func unread(u *net.UDPConn, take func(b, oob []byte, from netip.AddrPort)) error {
	raw, err := u.SyscallConn()
	if err != nil {
		return err
	}
	buf, oob := make([]byte, 1<<16), make([]byte, 128)
	return raw.Control(func(fd uintptr) {
		for range 1 << 16 { // more than the buffer holds: a flood that goes on does not keep it
			n, oobn, _, from, err := unix.Recvmsg(int(fd), buf, oob, unix.MSG_DONTWAIT)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return
			}
			switch a := from.(type) {
			case *unix.SockaddrInet4:
				take(buf[:n], oob[:oobn], netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)))
			case *unix.SockaddrInet6:
				take(buf[:n], oob[:oobn], netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)))
			}
		}
	})
}

// Flood is what was sent.
type Flood struct {
	Sent    uint64  `json:"sent"`
	IPBytes uint64  `json:"ip_bytes"`
	Seconds float64 `json:"seconds"`
	Bits    float64 `json:"bits_per_second"` // IP bytes
	Refused uint64  `json:"refused"`         // sends that the own stack did not take
}

func udpFlood(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	to := fs.String("dst", "", "ADDRESS:PORT of a sink")
	tag := fs.String("tag", "flood", "up to 8 bytes")
	bits := fs.Float64("bits", 60e6, "bit/s of IP bytes")
	size := fs.Int("size", 1172, "payload bytes, at least 32")
	duration := fs.Duration("duration", 5*time.Second, "how long to send")
	tos := fs.Int("tos", 0, "IPv4 TOS or IPv6 traffic class")
	from := fs.String("from", "", "own address; empty = what the system takes")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if *from != "" {
		*from = net.JoinHostPort(*from, "0")
	}
	if *size < probeHeader || *size > 65000 || *bits <= 0 || len(*tag) > 8 {
		return nil, errors.New("want 32 <= size <= 65000, bits > 0 and a tag of at most 8 bytes")
	}
	conn, dst, err := dialUDP(*to, *from, *tos)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ipSize := *size + ipOverhead(dst.Addr())
	perSecond := *bits / 8 / float64(ipSize)
	var r Flood
	b := make([]byte, *size)
	start := time.Now()
	const step = time.Millisecond
	for tick := 1; ; tick++ {
		elapsed := time.Since(start)
		if elapsed >= *duration || ctx.Err() != nil {
			break
		}
		// What is due by now, but never more than a tenth of a second's worth after a pause of the machine.
		due := uint64(elapsed.Seconds() * perSecond)
		for n := uint64(perSecond/10) + 1; r.Sent+r.Refused < due && n > 0; n-- {
			putProbe(b, fixedTag(*tag), r.Sent)
			if _, err := conn.Write(b); err != nil {
				r.Refused++
				continue
			}
			r.Sent++
			r.IPBytes += uint64(ipSize)
		}
		sleepUntil(ctx, start.Add(time.Duration(tick)*step))
	}
	r.Seconds = time.Since(start).Seconds()
	r.Bits = float64(r.IPBytes) * 8 / r.Seconds
	return r, nil
}
