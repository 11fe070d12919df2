package host

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// A flow's packet: magic, tag (8 bytes), number of the flow (4), direction (1), 3 zeros, sequence number (8), the inside address (16), the
// inside port (2). Whoever sees one anywhere knows whose it is, whatever was translated on its way.
const (
	flowMagic  = 0x64656d617263464c // "demarcFL"
	flowHeader = 50
)

// FlowMark is what such a packet says of itself.
type FlowMark struct {
	Tag    string // who the inside host belongs to
	Flow   int
	Reply  bool // on its way to the inside
	Seq    uint64
	Inside netip.AddrPort
}

// ParseFlow reads the payload of a packet; ok = it is one of a flow.
func ParseFlow(b []byte) (m FlowMark, ok bool) {
	if len(b) < flowHeader || binary.BigEndian.Uint64(b) != flowMagic {
		return m, false
	}
	return FlowMark{Tag: strings.TrimRight(string(b[8:16]), "\x00"), Flow: int(binary.BigEndian.Uint32(b[16:])), Reply: b[20] != 0, Seq: binary.BigEndian.Uint64(b[24:]),
		Inside: netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[32:48])).Unmap(), binary.BigEndian.Uint16(b[48:]))}, true
}

// Put writes the mark to the beginning of a payload.
func (m FlowMark) Put(b []byte) {
	binary.BigEndian.PutUint64(b, flowMagic)
	copy(b[8:16], fixedTag(m.Tag))
	binary.BigEndian.PutUint32(b[16:], uint32(m.Flow))
	b[20], b[21], b[22], b[23] = 0, 0, 0, 0
	if m.Reply {
		b[20] = 1
	}
	m.putSeq(b)
	a := m.Inside.Addr().As16()
	copy(b[32:48], a[:])
	binary.BigEndian.PutUint16(b[48:], m.Inside.Port())
}

func (m FlowMark) putSeq(b []byte) { binary.BigEndian.PutUint64(b[24:], m.Seq) }

// Silence is a time without a packet, by the kernel's clock (Unix, ns).
type Silence struct {
	From, To int64
}

// Long is how long it was.
func (s Silence) Long() time.Duration { return time.Duration(s.To - s.From) }

// FlowSeen is what a receiver saw of one flow.
type FlowSeen struct {
	Received uint64    `json:"received"`
	Late     uint64    `json:"late"`      // behind one that was sent later, or twice
	FirstSeq uint64    `json:"first_seq"` // of the first one that came
	HighSeq  uint64    `json:"high_seq"`
	First    int64     `json:"first"`
	Last     int64     `json:"last"`
	Silences []Silence `json:"silences,omitempty"` // longer than Shortest
	Sources  []string  `json:"sources,omitempty"`  // that it came from, in this order; at the outside
}

// FlowSide is what one side of many flows did and saw.
type FlowSide struct {
	Flows   map[string][]*FlowSeen `json:"flows"`   // by tag; nil = nothing came
	Pauses  []Silence              `json:"pauses"`  // in which the side itself sent nothing, longer than Shortest
	Refused uint64                 `json:"refused"` // sends that the own stack did not take
	Wrong   uint64                 `json:"wrong"`   // packets that were another host's, or none of a flow
	Example string                 `json:"example,omitempty"`
	Ended   int64                  `json:"ended"` // when it last sent
	Full    bool                   `json:"full"`  // there were more silences than are held
}

// Shortest is what counts as a silence: less is what a machine does that has other things to do.
const Shortest = 4 * time.Millisecond

// mostSilences of one flow, or of a sender.
const mostSilences = 4096

func (s *FlowSide) silence(list []Silence, from, to int64) []Silence {
	if from == 0 || to-from <= int64(Shortest) {
		return list
	}
	if len(list) == mostSilences {
		s.Full = true
		return list
	}
	return append(list, Silence{from, to})
}

// seen notes a packet.
func (s *FlowSide) seen(f *FlowSeen, seq uint64, at int64) {
	switch {
	case f.Received == 0:
		f.First, f.FirstSeq, f.HighSeq = at, seq, seq
	case seq <= f.HighSeq:
		f.Late++
	default:
		f.HighSeq = seq
	}
	f.Silences = s.silence(f.Silences, f.Last, at)
	f.Received++
	f.Last = max(f.Last, at)
}

func (s *FlowSide) wrong(format string, args ...any) {
	s.Wrong++
	if s.Example == "" {
		s.Example = fmt.Sprintf(format, args...)
	}
}

// batchConn is a UDP socket of either family that takes many packets in one call.
type batchConn struct {
	*net.UDPConn
	v4 *ipv4.PacketConn
	v6 *ipv6.PacketConn
}

// listenBatch opens one on an address, with the kernel's time of arrival and the address that a packet came to.
func listenBatch(addr netip.AddrPort) (*batchConn, error) {
	u, err := net.ListenUDP(map[bool]string{true: "udp4", false: "udp6"}[addr.Addr().Is4()], net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return nil, err
	}
	forceBuffer(u, unix.SO_RCVBUFFORCE)
	forceBuffer(u, unix.SO_SNDBUFFORCE)
	raw, err := u.SyscallConn()
	if err == nil {
		var set error
		err = raw.Control(func(fd uintptr) {
			set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
			if addr.Addr().Is4() {
				set = errors.Join(set, unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_PKTINFO, 1))
			} else {
				set = errors.Join(set, unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1))
			}
		})
		err = errors.Join(err, set)
	}
	if err != nil {
		u.Close()
		return nil, err
	}
	c := &batchConn{UDPConn: u}
	if addr.Addr().Is4() {
		c.v4 = ipv4.NewPacketConn(u)
	} else {
		c.v6 = ipv6.NewPacketConn(u)
	}
	return c, nil
}

// from is the control message that has a packet leave from an address.
func (c *batchConn) from(a netip.Addr) []byte {
	if c.v4 != nil {
		return (&ipv4.ControlMessage{Src: a.AsSlice()}).Marshal()
	}
	return (&ipv6.ControlMessage{Src: a.AsSlice()}).Marshal()
}

// send hands over all packets, and returns how many the stack refused.
func (c *batchConn) send(ms []ipv4.Message) (refused uint64) {
	for len(ms) > 0 {
		var n int
		var err error
		if c.v4 != nil {
			n, err = c.v4.WriteBatch(ms, 0)
		} else {
			n, err = c.v6.WriteBatch(ms, 0)
		}
		if n <= 0 {
			if errors.Is(err, net.ErrClosed) {
				return refused
			}
			n = 1 // the first one is what it did not take
			refused++
		}
		ms = ms[n:]
	}
	return refused
}

// each receives until the socket is closed. The packet is valid during the call. to is the address that it came to.
func (c *batchConn) each(take func(p []byte, from net.Addr, to netip.Addr, at int64)) error {
	ms := make([]ipv4.Message, 64)
	for i := range ms {
		ms[i].Buffers, ms[i].OOB = [][]byte{make([]byte, 2048)}, make([]byte, 128)
	}
	for {
		var n int
		var err error
		if c.v4 != nil {
			n, err = c.v4.ReadBatch(ms, 0)
		} else {
			n, err = c.v6.ReadBatch(ms, 0)
		}
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		for i := range ms[:n] {
			to, at := arrival(ms[i].OOB[:ms[i].NN])
			take(ms[i].Buffers[0][:ms[i].N], ms[i].Addr, to, at)
		}
	}
}

// arrival reads struct cmsghdr after cmsghdr (len: u64; level, type: i32): where a packet came to, and when.
func arrival(oob []byte) (to netip.Addr, at int64) {
	for len(oob) >= 16 {
		size := int(binary.NativeEndian.Uint64(oob))
		if size < 16 || size > len(oob) {
			break
		}
		data := oob[16:size]
		switch level, kind := int(binary.NativeEndian.Uint32(oob[8:])), int(binary.NativeEndian.Uint32(oob[12:])); {
		case level == unix.SOL_SOCKET && kind == unix.SCM_TIMESTAMPNS && len(data) >= 16:
			at = int64(binary.NativeEndian.Uint64(data))*1e9 + int64(binary.NativeEndian.Uint64(data[8:]))
		case level == unix.SOL_IP && kind == unix.IP_PKTINFO && len(data) >= 12: // index, the local address, the address in the header
			to = netip.AddrFrom4([4]byte(data[8:12]))
		case level == unix.SOL_IPV6 && kind == unix.IPV6_PKTINFO && len(data) >= 16:
			to = netip.AddrFrom16([16]byte(data[:16]))
		}
		oob = oob[min((size+7)&^7, len(oob)):]
	}
	if at == 0 {
		at = time.Now().UnixNano()
	}
	return to, at
}

// pace calls fn once each interval until ctx ends. What was missed is not made up for: a burst would hide a silence. A pause is from before one call to behind the next: no flow
// was silent for longer by its sender, wherever in the two that was held up.
func (s *FlowSide) pace(ctx context.Context, interval time.Duration, mu *sync.Mutex, fn func()) {
	last := int64(0)
	for due := time.Now(); sleepUntil(ctx, due); {
		now := time.Now().UnixNano()
		fn()
		mu.Lock()
		s.Pauses = s.silence(s.Pauses, last, time.Now().UnixNano())
		mu.Unlock()
		last = now
		if due = due.Add(interval); time.Since(due) > interval {
			due = time.Now()
		}
	}
	s.Ended = last
}

// flowsTalk is the inside of many flows: one for each pair of an address and a port. It is ready when something has come back on each.
func flowsTalk(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	dst := fs.String("dst", "", "ADDRESS:PORT of flows-answer")
	list := fs.String("from", "", "own addresses, with commas between")
	port := fs.Int("port", 20000, "first own port")
	ports := fs.Int("ports", 1, "own ports")
	tag := fs.String("tag", "flows", "up to 8 bytes, names the tenant")
	interval := fs.Duration("interval", time.Millisecond, "between two packets of a flow")
	size := fs.Int("size", 64, "payload bytes")
	patience := fs.Duration("patience", 8*time.Second, "until something has come back on each")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	to, err := netip.ParseAddrPort(*dst)
	if err != nil {
		return nil, err
	}
	var from []netip.Addr
	for a := range strings.SplitSeq(*list, ",") {
		one, err := netip.ParseAddr(a)
		if err != nil || one.Is4() != to.Addr().Is4() {
			return nil, fmt.Errorf("from %q: want addresses of the family of %s", a, to)
		}
		from = append(from, one)
	}
	if *size < flowHeader || *size > 1400 || *ports < 1 || *port < 1 || *port+*ports > 65536 || *interval <= 0 || len(*tag) > 8 {
		return nil, fmt.Errorf("want %d <= size <= 1400, ports that exist, an interval and a tag of at most 8 bytes", flowHeader)
	}
	var mu sync.Mutex // side
	side := &FlowSide{Flows: map[string][]*FlowSeen{}}
	flows := make([]*FlowSeen, len(from)**ports)
	for i := range flows {
		flows[i] = &FlowSeen{}
	}
	side.Flows[*tag] = flows
	conns := make([]*batchConn, *ports)
	batches := make([][]ipv4.Message, *ports)
	failed := make(chan error, *ports)
	waiting, back := len(flows), make(chan struct{})
	remote := net.UDPAddrFromAddrPort(to)
	for p := range conns {
		any := netip.IPv4Unspecified()
		if to.Addr().Is6() {
			any = netip.IPv6Unspecified()
		}
		c, err := listenBatch(netip.AddrPortFrom(any, uint16(*port+p)))
		if err != nil {
			return nil, err
		}
		defer c.Close()
		conns[p] = c
		for i, a := range from {
			b := make([]byte, *size)
			FlowMark{Tag: *tag, Flow: i**ports + p, Inside: netip.AddrPortFrom(a, uint16(*port+p))}.Put(b)
			batches[p] = append(batches[p], ipv4.Message{Buffers: [][]byte{b}, OOB: c.from(a), Addr: remote})
		}
		go func() {
			err := c.each(func(b []byte, _ net.Addr, at netip.Addr, when int64) {
				m, ok := ParseFlow(b)
				mu.Lock()
				defer mu.Unlock()
				here := netip.AddrPortFrom(at, uint16(*port+p))
				if !ok || !m.Reply || m.Tag != *tag || m.Inside != here || m.Flow >= len(flows) {
					side.wrong("%s of %s got a packet of flow %d of %s of %s", here, *tag, m.Flow, m.Inside, m.Tag)
					return
				}
				f := flows[m.Flow]
				if f.Received == 0 {
					if waiting--; waiting == 0 {
						close(back)
					}
				}
				side.seen(f, m.Seq, when)
			})
			failed <- err
		}()
	}
	run, stop := context.WithCancel(ctx)
	defer stop()
	paced := make(chan struct{})
	var seq uint64
	go func() {
		defer close(paced)
		side.pace(run, *interval, &mu, func() {
			seq++
			for p, c := range conns {
				for i := range batches[p] {
					FlowMark{Seq: seq}.putSeq(batches[p][i].Buffers[0])
				}
				n := c.send(batches[p])
				mu.Lock()
				side.Refused += n
				mu.Unlock()
			}
		})
	}()
	select {
	case <-back:
	case err := <-failed:
		return nil, err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(*patience):
		mu.Lock()
		defer mu.Unlock()
		i := slices.IndexFunc(flows, func(f *FlowSeen) bool { return f.Received == 0 })
		return nil, fmt.Errorf("nothing came back on %d of %d flows of %s within %s, as on that from %s:%d", waiting, len(flows), *tag, *patience, from[max(i, 0) / *ports], *port+max(i, 0)%*ports)
	}
	end, err := serving(ctx, from[0].String())
	if err != nil {
		return nil, err
	}
	select {
	case <-end.Done():
	case err := <-failed:
		return nil, err
	}
	stop()
	<-paced
	time.Sleep(20 * time.Millisecond) // what is on its way back
	mu.Lock()
	defer mu.Unlock()
	return side, nil
}

// flowsAnswer is the outside: it sends on each flow that it has heard of, at the same pace whether anything comes or not, to where the last packet came from.
func flowsAnswer(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	addr := fs.String("addr", "", "own ADDRESS:PORT")
	interval := fs.Duration("interval", time.Millisecond, "between two packets of a flow")
	size := fs.Int("size", 64, "payload bytes")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	at, err := netip.ParseAddrPort(*addr)
	if err != nil {
		return nil, err
	}
	if *size < flowHeader || *size > 1400 || *interval <= 0 {
		return nil, fmt.Errorf("want %d <= size <= 1400 and an interval", flowHeader)
	}
	c, err := listenBatch(at)
	if err != nil {
		return nil, err
	}
	end, err := serving(ctx, at.String())
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex // all below
	side := &FlowSide{Flows: map[string][]*FlowSeen{}}
	type flow struct {
		*FlowSeen
		mark FlowMark
		to   *net.UDPAddr
	}
	known := map[string][]*flow{} // by tag
	failed := make(chan error, 1)
	go func() {
		failed <- c.each(func(b []byte, from net.Addr, _ netip.Addr, when int64) {
			m, ok := ParseFlow(b)
			u, isUDP := from.(*net.UDPAddr)
			mu.Lock()
			defer mu.Unlock()
			if !ok || m.Reply || !isUDP || m.Flow > 1<<16 {
				side.wrong("the outside got something from %s that is no packet of a flow", from)
				return
			}
			for len(known[m.Tag]) <= m.Flow {
				known[m.Tag], side.Flows[m.Tag] = append(known[m.Tag], nil), append(side.Flows[m.Tag], nil)
			}
			f := known[m.Tag][m.Flow]
			if f == nil {
				f = &flow{FlowSeen: &FlowSeen{}, mark: FlowMark{Tag: m.Tag, Flow: m.Flow, Reply: true, Inside: m.Inside}}
				known[m.Tag][m.Flow], side.Flows[m.Tag][m.Flow] = f, f.FlowSeen
			}
			if f.mark.Inside != m.Inside {
				side.wrong("flow %d of %s was that of %s, and now of %s", m.Flow, m.Tag, f.mark.Inside, m.Inside)
			}
			if f.to == nil || f.to.Port != u.Port || !f.to.IP.Equal(u.IP) {
				f.to = &net.UDPAddr{IP: slices.Clone(u.IP), Port: u.Port, Zone: u.Zone}
				f.Sources = append(f.Sources, u.String())
			}
			side.seen(f.FlowSeen, m.Seq, when)
		})
	}()
	go func() {
		var ms []ipv4.Message
		side.pace(end, *interval, &mu, func() {
			mu.Lock()
			n := 0
			for _, list := range known {
				for _, f := range list {
					if f == nil {
						continue
					}
					if n == len(ms) {
						ms = append(ms, ipv4.Message{Buffers: [][]byte{make([]byte, *size)}})
					}
					f.mark.Seq++
					f.mark.Put(ms[n].Buffers[0])
					ms[n].Addr = f.to
					n++
				}
			}
			mu.Unlock()
			refused := c.send(ms[:n])
			mu.Lock()
			side.Refused += refused
			mu.Unlock()
		})
		c.Close()
	}()
	if err := <-failed; err != nil {
		return nil, err
	}
	mu.Lock()
	defer mu.Unlock()
	return side, nil
}
