package host

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/ipv4"
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
	Silences []Silence `json:"silences,omitempty"` // longer than Shortest, and than Floor
	Floor    int64     `json:"floor,omitempty"`    // ns; there were more silences than are held: of those up to this long some are missing
	Sources  []string  `json:"sources,omitempty"`  // that it came from, in this order; at the outside
}

// FlowSide is what one side of many flows did and saw.
type FlowSide struct {
	Flows   map[string][]*FlowSeen `json:"flows"`   // by tag; nil = nothing came
	Pauses  []Silence              `json:"pauses"`  // in which the side itself was late to send, longer than Shortest; the longest ones
	Refused uint64                 `json:"refused"` // sends that the own stack did not take
	Wrong   uint64                 `json:"wrong"`   // packets that were another host's, or none of a flow
	Example string                 `json:"example,omitempty"`
	Ended   int64                  `json:"ended"` // when it last sent

	floor int64 // as FlowSeen.Floor, of Pauses
}

// Shortest is what counts as a silence: less is what a machine does that has other things to do.
const Shortest = 4 * time.Millisecond

// mostSilences are held of one flow, or of a sender.
const mostSilences = 4096

// silence adds one to a list of them. Where there are more than are held the longest stay: the shorter half goes, and none up to floor, the longest of these, is taken any more.
func silence(list []Silence, floor *int64, from, to int64) []Silence {
	if from == 0 || to-from <= max(int64(Shortest), *floor) {
		return list
	}
	if len(list) == mostSilences {
		long := make([]int64, len(list))
		for i, s := range list {
			long[i] = int64(s.Long())
		}
		slices.Sort(long)
		*floor = long[len(long)/2]
		list = slices.DeleteFunc(list, func(s Silence) bool { return int64(s.Long()) <= *floor })
		return silence(list, floor, from, to)
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
	f.Silences = silence(f.Silences, &f.Floor, f.Last, at)
	f.Received++
	f.Last = max(f.Last, at)
}

func (s *FlowSide) wrong(format string, args ...any) {
	s.Wrong++
	if s.Example == "" {
		s.Example = fmt.Sprintf(format, args...)
	}
}

// arrival reads control messages: where a packet came to, and when.
func arrival(oob []byte) (to netip.Addr, at int64) {
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		switch {
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SCM_TIMESTAMPNS && len(data) >= 16:
			at = int64(binary.NativeEndian.Uint64(data))*1e9 + int64(binary.NativeEndian.Uint64(data[8:]))
		case h.Level == unix.SOL_IP && h.Type == unix.IP_PKTINFO && len(data) >= 12: // index, the local address, the address in the header
			to = netip.AddrFrom4([4]byte(data[8:12]))
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= 16:
			to = netip.AddrFrom16([16]byte(data[:16]))
		}
		oob = rest
	}
	if at == 0 {
		at = time.Now().UnixNano()
	}
	return to, at
}

// FlowsSpec is many flows and both their ends, which one process sends and receives: a wakeup each millisecond for every host would be most of what they cost.
type FlowsSpec struct {
	Talk     []TalkSpec    `json:"talk"`
	Answer   []AnswerSpec  `json:"answer"`
	Interval time.Duration `json:"interval"` // between two packets of a flow
	Size     int           `json:"size"`     // payload bytes
	Patience time.Duration `json:"patience"` // until something has come back on each
}

// TalkSpec is some flows of one host inside: one for each pair of an address and a port.
type TalkSpec struct {
	Space string         `json:"space"` // file of the network namespace that it is in
	Dst   netip.AddrPort `json:"dst"`   // of an AnswerSpec
	From  []netip.Addr   `json:"from"`
	Port  int            `json:"port"` // the first own one
	Ports int            `json:"ports"`
	Tag   string         `json:"tag"` // up to 8 bytes, names the tenant
}

// AnswerSpec is an end outside.
type AnswerSpec struct {
	Space string         `json:"space"`
	At    netip.AddrPort `json:"at"`
}

// FlowsDone is what both ends did and saw.
type FlowsDone struct {
	Inside  FlowSide `json:"inside"`
	Outside FlowSide `json:"outside"`
}

func (s *TalkSpec) check() error {
	for _, a := range s.From {
		if a.Is4() != s.Dst.Addr().Is4() {
			return fmt.Errorf("from %s: want addresses of the family of %s", a, s.Dst)
		}
	}
	if !s.Dst.IsValid() || len(s.From) == 0 || s.Ports < 1 || s.Port < 1 || s.Port+s.Ports > 65536 || s.Tag == "" || len(s.Tag) > 8 {
		return fmt.Errorf("%+v: want a destination, addresses, ports that exist and a tag of at most 8 bytes", *s)
	}
	return nil
}

// enter has the thread be in a namespace: sockets that it opens are there for good.
func enter(space string) error {
	f, err := os.Open(space)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
}

// talkers is the inside of many flows.
type talkers struct {
	side    *FlowSide
	list    []talker
	all     int // flows
	waiting int // of them, those that nothing has come back on
}

// talker is the flows of one socket.
type talker struct {
	*flowSocket
	out  []ipv4.Message // the next packet of each
	read func() error
}

func newTalkers(spec *FlowsSpec, in inbox) (t *talkers, err error) {
	t = &talkers{side: &FlowSide{Flows: map[string][]*FlowSeen{}}}
	for _, s := range spec.Talk {
		if err := errors.Join(s.check(), enter(s.Space)); err != nil {
			return nil, err
		}
		if t.side.Flows[s.Tag] != nil {
			return nil, fmt.Errorf("tag %s twice", s.Tag)
		}
		flows := make([]*FlowSeen, len(s.From)*s.Ports)
		for i := range flows {
			flows[i] = &FlowSeen{}
		}
		t.side.Flows[s.Tag] = flows
		t.all += len(flows)
		for p := range s.Ports {
			c, err := openFlowSocket(netip.AddrPortFrom(unspecified(s.Dst.Addr()), uint16(s.Port+p)), in)
			if err != nil {
				return nil, err
			}
			one := talker{flowSocket: c}
			for i, a := range s.From {
				b := make([]byte, spec.Size)
				FlowMark{Tag: s.Tag, Flow: i*s.Ports + p, Inside: netip.AddrPortFrom(a, uint16(s.Port+p))}.Put(b)
				one.out = append(one.out, ipv4.Message{Buffers: [][]byte{b}, OOB: sourceMessage(a), Addr: net.UDPAddrFromAddrPort(s.Dst)})
			}
			one.read = func() error {
				return c.each(func(b []byte, _ *net.UDPAddr, at netip.Addr, when int64) {
					m, ok := ParseFlow(b)
					here := netip.AddrPortFrom(at, uint16(s.Port+p))
					if !ok || !m.Reply || m.Tag != s.Tag || m.Inside != here || m.Flow >= len(flows) {
						t.side.wrong("%s of %s got a packet of flow %d of %s of %s", here, s.Tag, m.Flow, m.Inside, m.Tag)
						return
					}
					f := flows[m.Flow]
					if f.Received == 0 {
						t.waiting--
					}
					t.side.seen(f, m.Seq, when)
				})
			}
			t.list = append(t.list, one)
		}
	}
	t.waiting = t.all
	return t, nil
}

func (t *talkers) send(phase, phases int, seq uint64) {
	for i := phase; i < len(t.list); i += phases {
		for _, m := range t.list[i].out {
			FlowMark{Seq: seq}.putSeq(m.Buffers[0])
		}
		t.side.Refused += t.list[i].flowSocket.send(t.list[i].out)
	}
}

func (t *talkers) read() error {
	for i := range t.list {
		if err := t.list[i].read(); err != nil {
			return err
		}
	}
	return nil
}

// silent names the first flow that nothing came on.
func (t *talkers) silent(specs []TalkSpec) string {
	for _, spec := range specs {
		for i, f := range t.side.Flows[spec.Tag] {
			if f.Received == 0 {
				return fmt.Sprintf("of %s from %s", spec.Tag, netip.AddrPortFrom(spec.From[i/spec.Ports], uint16(spec.Port+i%spec.Ports)))
			}
		}
	}
	return "of nobody"
}

// answerers is the outside: it sends on each flow that it has heard of, at the same pace whether anything comes or not, to where the last packet came from.
type answerers struct {
	side  *FlowSide
	size  int
	conns []*answering
	known map[string][]*answerer // by tag
	flows []*answerer            // in the order in which they came
}

// answering is a socket at the outside.
type answering struct {
	*flowSocket
	out []ipv4.Message
}

// answerer is one flow there.
type answerer struct {
	*FlowSeen
	mark FlowMark
	c    *answering
	out  ipv4.Message // the next packet, to where the last one came from
}

func newAnswerers(spec *FlowsSpec, in inbox) (*answerers, error) {
	a := &answerers{side: &FlowSide{Flows: map[string][]*FlowSeen{}}, size: spec.Size, known: map[string][]*answerer{}}
	for _, s := range spec.Answer {
		if err := enter(s.Space); err != nil {
			return nil, err
		}
		c, err := openFlowSocket(s.At, in)
		if err != nil {
			return nil, err
		}
		a.conns = append(a.conns, &answering{flowSocket: c})
	}
	return a, nil
}

func (a *answerers) send(phase, phases int) {
	for i := phase; i < len(a.flows); i += phases {
		f := a.flows[i]
		f.mark.Seq++
		f.mark.Put(f.out.Buffers[0])
		f.c.out = append(f.c.out, f.out)
	}
	for _, c := range a.conns {
		a.side.Refused += c.send(c.out)
		c.out = c.out[:0]
	}
}

func (a *answerers) read() (err error) {
	for _, c := range a.conns {
		err = errors.Join(err, c.each(func(b []byte, from *net.UDPAddr, _ netip.Addr, when int64) {
			m, ok := ParseFlow(b)
			if !ok || m.Reply || m.Flow > 1<<16 || from == nil {
				a.side.wrong("the outside got something from %s that is no packet of a flow", from)
				return
			}
			for len(a.known[m.Tag]) <= m.Flow {
				a.known[m.Tag], a.side.Flows[m.Tag] = append(a.known[m.Tag], nil), append(a.side.Flows[m.Tag], nil)
			}
			f := a.known[m.Tag][m.Flow]
			if f == nil {
				f = &answerer{FlowSeen: &FlowSeen{}, c: c, mark: FlowMark{Tag: m.Tag, Flow: m.Flow, Reply: true, Inside: m.Inside}, out: ipv4.Message{Buffers: [][]byte{make([]byte, a.size)}}}
				a.known[m.Tag][m.Flow], a.side.Flows[m.Tag][m.Flow] = f, f.FlowSeen
				a.flows = append(a.flows, f)
			}
			if f.mark.Inside != m.Inside {
				a.side.wrong("flow %d of %s was that of %s, and now of %s", m.Flow, m.Tag, f.mark.Inside, m.Inside)
			}
			if to, ok := f.out.Addr.(*net.UDPAddr); !ok || to.Port != from.Port || !to.IP.Equal(from.IP) {
				f.out.Addr = from
				f.Sources = append(f.Sources, from.String())
			}
			a.side.seen(f.FlowSeen, m.Seq, when)
		}))
	}
	return err
}

// flows is both ends of many flows. It is ready when something has come back on each.
func flows(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	text := fs.String("spec", "", "JSON")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	var spec FlowsSpec
	if err := json.Unmarshal([]byte(*text), &spec); err != nil {
		return nil, fmt.Errorf("spec: %w", err)
	}
	if len(spec.Talk) == 0 || len(spec.Answer) == 0 || spec.Size < flowHeader || spec.Size > 1400 || spec.Interval <= 0 || spec.Patience <= 0 {
		return nil, fmt.Errorf("want flows, %d <= size <= 1400, an interval and patience", flowHeader)
	}
	runtime.LockOSThread() // it goes from one namespace to another
	undelayed()
	in := newInbox()
	outside, err := newAnswerers(&spec, in)
	if err != nil {
		return nil, err
	}
	inside, err := newTalkers(&spec, in)
	if err != nil {
		return nil, err
	}
	read := func() error { return errors.Join(inside.read(), outside.read()) }
	var end context.Context // once it is ready
	begun := time.Now()
	for b := inside.side.beat(spec.Interval); end == nil || end.Err() == nil; {
		phase, seq, look := b.next()
		inside.send(phase, b.phases, seq)
		outside.send(phase, b.phases)
		if !look {
			continue
		}
		if err := read(); err != nil {
			return nil, err
		}
		switch {
		case end != nil:
		case inside.waiting == 0:
			var err error
			if end, err = serving(ctx, spec.Answer[0].At.String()); err != nil {
				return nil, err
			}
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case time.Since(begun) > spec.Patience:
			return nil, fmt.Errorf("nothing came back on %d of %d flows within %s, as on that %s", inside.waiting, inside.all, spec.Patience, inside.silent(spec.Talk))
		}
	}
	time.Sleep(20 * time.Millisecond) // what is on its way
	outside.side.Ended = inside.side.Ended
	err = read()
	return FlowsDone{*inside.side, *outside.side}, err
}
