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
	"time"

	"golang.org/x/net/ipv4"
)

// manyMagic begins a packet of udp-many; its number (4 bytes) follows.
const manyMagic = 0x64656d6172634d4e // "demarcMN"

const manySize = 12

// Many is what became of very many conversations: a packet there and the same one back on each.
type Many struct {
	Asked    int     `json:"asked"`
	Answered int     `json:"answered"`
	Sent     uint64  `json:"sent"`    // packets: those that were not answered are tried again
	Refused  uint64  `json:"refused"` // by the own stack
	Wrong    uint64  `json:"wrong"`   // answers that are another's
	Seconds  float64 `json:"seconds"` // to send
}

// manyAgain is how long after a socket's turn its answers are read. By then they have come, or have not.
const manyAgain = 300 * time.Millisecond

// udpMany begins a conversation on each pair of an address and a port.
func udpMany(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	dst := fs.String("dst", "", "ADDRESS:PORT of udp-mirror")
	list := fs.String("from", "", "own addresses, with commas between")
	port := fs.Int("port", 10000, "first own port")
	ports := fs.Int("ports", 1, "own ports")
	rate := fs.Float64("rate", 10_000, "packets a second")
	rounds := fs.Int("rounds", 8, "tries of those that are not answered")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	to, err := netip.ParseAddrPort(*dst)
	if err != nil {
		return nil, err
	}
	var control [][]byte
	var from []netip.Addr
	for a := range strings.SplitSeq(*list, ",") {
		one, err := netip.ParseAddr(a)
		if err != nil || one.Is4() != to.Addr().Is4() {
			return nil, fmt.Errorf("from %q: want addresses of the family of %s", a, to)
		}
		from, control = append(from, one), append(control, sourceMessage(one))
	}
	if *ports < 1 || *port < 1 || *port+*ports > 65536 || *rate < 100 || *rate > 1e6 || *rounds < 1 {
		return nil, errors.New("want ports that exist, a rate from 100 to a million and a round at least")
	}
	if err := roomFor(*ports); err != nil {
		return nil, err
	}
	r := Many{Asked: len(from) * *ports}
	answered := make([]bool, r.Asked)
	in, conns := newInbox(), make([]*flowSocket, *ports)
	for i := range conns {
		if conns[i], err = openFlowSocket(netip.AddrPortFrom(unspecified(to.Addr()), uint16(*port+i)), in); err != nil {
			return nil, err
		}
		defer conns[i].Close()
	}
	read := func(i int) error {
		return conns[i].each(func(b []byte, _ *net.UDPAddr, at netip.Addr, _ int64) {
			n := -1
			if len(b) == manySize && binary.BigEndian.Uint64(b) == manyMagic {
				n = int(binary.BigEndian.Uint32(b[8:]))
			}
			switch {
			case n < 0 || n >= r.Asked || n/len(from) != i || from[n%len(from)] != at:
				r.Wrong++
			case !answered[n]:
				answered[n] = true
				r.Answered++
			}
		})
	}
	out := make([]ipv4.Message, len(from))
	for i := range out {
		out[i].Buffers, out[i].Addr = [][]byte{make([]byte, manySize)}, net.UDPAddrFromAddrPort(to)
		binary.BigEndian.PutUint64(out[i].Buffers[0], manyMagic)
	}
	type turn struct {
		i  int
		at time.Time
	}
	began, due := time.Now(), 0.0 // due: seconds since it began
	for range *rounds {
		var waits []turn
		for i := range conns {
			ms := out[:0:len(out)]
			for j := range from {
				if n := i*len(from) + j; !answered[n] {
					m := &out[len(ms)]
					binary.BigEndian.PutUint32(m.Buffers[0][8:], uint32(n))
					m.OOB = control[j]
					ms = out[:len(ms)+1]
				}
			}
			if len(ms) == 0 {
				continue
			}
			if !sleepUntil(ctx, began.Add(time.Duration(due*1e9))) {
				return r, nil
			}
			due += float64(len(ms)) / *rate
			r.Sent += uint64(len(ms))
			r.Refused += conns[i].send(ms)
			for waits = append(waits, turn{i, time.Now()}); len(waits) > 0 && time.Since(waits[0].at) > manyAgain; waits = waits[1:] {
				if err := read(waits[0].i); err != nil {
					return nil, err
				}
			}
		}
		r.Seconds = time.Since(began).Seconds()
		if len(waits) == 0 || !sleepUntil(ctx, time.Now().Add(manyAgain)) {
			break
		}
		for _, t := range waits {
			if err := read(t.i); err != nil {
				return nil, err
			}
		}
		due = max(due, time.Since(began).Seconds())
	}
	return r, nil
}

// Mirrored is what the outside of udp-many saw.
type Mirrored struct {
	Packets uint64 `json:"packets"`
	Refused uint64 `json:"refused"` // answers that the own stack did not take
}

// udpMirror sends each packet back.
func udpMirror(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	addr := fs.String("addr", "", "own ADDRESS:PORT")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	at, err := netip.ParseAddrPort(*addr)
	if err != nil {
		return nil, err
	}
	c, err := openFlowSocket(at, newInbox())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	end, err := serving(ctx, at.String())
	if err != nil {
		return nil, err
	}
	var r Mirrored
	out := make([]ipv4.Message, 0, flowBatch)
	for look := time.Now(); sleepUntil(end, look); look = time.Now().Add(time.Millisecond) {
		err := c.each(func(b []byte, from *net.UDPAddr, _ netip.Addr, _ int64) {
			if out = out[:len(out)+1]; out[len(out)-1].Buffers == nil {
				out[len(out)-1].Buffers = [][]byte{make([]byte, 2048)}
			}
			m := &out[len(out)-1]
			m.Buffers[0] = append(m.Buffers[0][:0], b...)
			m.Addr = from
			if r.Packets++; len(out) == cap(out) {
				r.Refused += c.send(out)
				out = out[:0]
			}
		})
		r.Refused += c.send(out)
		if out = out[:0]; err != nil {
			return nil, err
		}
	}
	return r, nil
}
