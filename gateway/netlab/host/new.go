package host

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// NewSeen is what one side of conversations that begin all the time did and saw.
type NewSeen struct {
	Sent    uint64 `json:"sent"`
	New     uint64 `json:"new"`     // conversations: the inside begins them, the outside hears of them
	Ports   uint64 `json:"ports"`   // public addresses and ports that they came from, at the outside
	Refused uint64 `json:"refused"` // sends that the own stack did not take
	Wrong   uint64 `json:"wrong"`   // packets that are none of a flow
}

// newPace is how often packets are sent: all that are due.
const newPace = 2 * time.Millisecond

// due is how many of a rate are due after a time.
func due(rate float64, since time.Duration) uint64 { return uint64(rate * since.Seconds()) }

// flowsNew is the inside of conversations that begin all the time: one packet each, from an address and port that had none before, and now and then a further one from
// one that had. It hears no answer: whoever looks at the wire sees where those go. IPv4, without a checksum.
func flowsNew(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	dst := fs.String("dst", "", "ADDRESS:PORT of flows-remind")
	list := fs.String("from", "", "own addresses, with commas between")
	rate := fs.Float64("rate", 1000, "conversations that begin in a second")
	again := fs.Float64("again", 200, "further packets a second, from those that have begun")
	first := fs.Int("port", 33000, "first own port")
	tag := fs.String("tag", "new", "up to 8 bytes, names the tenant")
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
		if err != nil || !one.Is4() || !to.Addr().Is4() {
			return nil, fmt.Errorf("from %q to %s: want IPv4 addresses", a, to)
		}
		from = append(from, one)
	}
	if *rate < 0 || *rate > 1e5 || *again < 0 || *again > 1e5 || *first < 1 || *first > 65535 || len(*tag) > 8 {
		return nil, errors.New("want rates up to 100000, a port, and a tag of at most 8 bytes")
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("raw socket: %w", err)
	}
	defer unix.Close(fd)
	end, err := serving(ctx, to.String())
	if err != nil {
		return nil, err
	}
	var r NewSeen
	most := uint64(len(from) * (65536 - *first))
	p := make([]byte, 28+64)
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	a := to.Addr().As4()
	copy(p[16:], a[:])
	binary.BigEndian.PutUint16(p[22:], to.Port())
	binary.BigEndian.PutUint16(p[24:], uint16(len(p)-20))
	at := unix.SockaddrInet4{Addr: a}
	send := func(n uint64) {
		own := netip.AddrPortFrom(from[n%uint64(len(from))], uint16(*first)+uint16(n/uint64(len(from))))
		b := own.Addr().As4()
		copy(p[12:], b[:])
		binary.BigEndian.PutUint16(p[20:], own.Port())
		FlowMark{Tag: *tag, Flow: int(n), Seq: r.Sent, Inside: own}.Put(p[28:])
		if unix.Sendto(fd, p, 0, &at) != nil {
			r.Refused++
		}
		r.Sent++
	}
	begin, old := time.Now(), uint64(0)
	for t := begin; sleepUntil(end, t); t = t.Add(newPace) {
		since := time.Since(begin)
		for want := min(due(*rate, since), most); r.New < want; r.New++ {
			send(r.New)
		}
		for want := due(*again, since); r.New > 0 && old < want; old++ {
			send(rand.Uint64N(r.New))
		}
		if time.Since(t) > newPace { // what was missed is made up for at once
			t = time.Now()
		}
	}
	return r, nil
}

// flowsRemind is the outside of them: it answers each packet, and goes on sending to all the public ports that it has ever heard from, one after the other, whatever became
// of them: as remote hosts do that have not noticed.
func flowsRemind(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	addr := fs.String("addr", "", "own ADDRESS:PORT")
	rate := fs.Float64("rate", 1000, "packets a second to ports heard from before")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	own, err := netip.ParseAddrPort(*addr)
	if err != nil {
		return nil, err
	}
	if *rate < 0 || *rate > 1e5 {
		return nil, errors.New("want a rate up to 100000")
	}
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(own))
	if err != nil {
		return nil, err
	}
	forceBuffer(c, unix.SO_RCVBUFFORCE)
	end, err := serving(ctx, own.String())
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex // all below
	var r NewSeen
	type known struct {
		at   netip.AddrPort
		mark FlowMark
	}
	var all []known
	index := map[netip.AddrPort]int{}
	flows := map[FlowMark]bool{}
	out := func(k known, b []byte) {
		k.mark.Reply, k.mark.Seq = true, r.Sent
		k.mark.Put(b)
		if _, err := c.WriteToUDPAddrPort(b, k.at); err != nil {
			r.Refused++
		}
		r.Sent++
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b, back := make([]byte, 2048), make([]byte, 64)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue // an ICMP error for something sent before
			}
			m, ok := ParseFlow(b[:n])
			mu.Lock()
			if !ok || m.Reply {
				r.Wrong++
				mu.Unlock()
				continue
			}
			if id := (FlowMark{Tag: m.Tag, Flow: m.Flow}); !flows[id] {
				flows[id] = true
				r.New++
			}
			k := known{netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), m}
			if i, ok := index[k.at]; ok {
				all[i] = k // whoever has it now
			} else {
				index[k.at] = len(all)
				all = append(all, k)
			}
			out(k, back)
			mu.Unlock()
		}
	}()
	begin, sent, at := time.Now(), uint64(0), 0
	b := make([]byte, 64)
	for t := begin; sleepUntil(end, t); t = t.Add(newPace) {
		mu.Lock()
		for want := due(*rate, time.Since(begin)); sent < want; sent++ {
			if len(all) > 0 {
				at = (at + 1) % len(all)
				out(all[at], b)
			}
		}
		mu.Unlock()
		if time.Since(t) > newPace {
			t = time.Now()
		}
	}
	c.Close()
	<-done
	r.Ports = uint64(len(all))
	return r, nil
}
