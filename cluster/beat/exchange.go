package beat

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"demarc/cluster/transport"
)

// Two members agree on keys over a connection of transport: whoever has dialled tells its id and its addresses, the other one takes the keys into use for what
// comes in and answers with its own, the first one does the same and says so. Each sends with the keys once it knows that the other has them: the
// one that dialled by the answer, the other by the last word or by the first datagram. Each line is JSON with its length before it, two bytes. What
// a release does not know in it is passed over.
type offer struct {
	ID    string   `json:"id"`
	Paths []string `json:"paths"` // addresses and ports for datagrams, the cluster's first
}

// taken is the last word.
type taken struct{}

const maxLine = 4 << 10

// contact is where a member may be, and how often it is dialled. Carrier.mu.
type contact struct {
	address string
	name    string // "" = not known yet
	dialing int
	next    int64 // since start: not before
	fails   int   // in a row
	turned  int   // in a row: somebody is there, and agrees on nothing
	deaf    int   // keys were agreed on so often in a row, and nothing was heard
}

const (
	dialTime  = 2 * time.Second
	dialMost  = 3 // at a time to one address: one whose first packet was lost waits for a second
	dialSoon  = 100 * time.Millisecond
	dialLater = 250 * time.Millisecond // after ten that failed
	restFirst = time.Second            // where dialling brings nothing: a release without groups, a certificate that has ended, an address that no datagram reaches
	restMost  = 30 * time.Second       // doubled up to that
)

// Serve agrees on keys with other members, and looks who is one, until ctx ends. Keys outlive it: a node that is opened again serves again, and nothing is
// missed meanwhile. One Serve at a time.
func (c *Carrier) Serve(ctx context.Context, l Link) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	conns := l.Conns.KeyConns()
	defer func() {
		cancel()
		conns.Close()
		wg.Wait()
	}()
	wg.Go(func() { c.accept(ctx, &wg, l, conns) })
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for looked := int64(0); ; {
		now := c.now()
		if looked == 0 || now-looked >= int64(lookEvery) {
			looked = now
			c.members(l)
		}
		c.seek(ctx, &wg, l, now)
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
			looked = 0
		case <-t.C:
		}
	}
}

// seek dials whom there are no keys for, who is not heard any more, and those whose keys are old.
func (c *Carrier) seek(ctx context.Context, wg *sync.WaitGroup, l Link, now int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.contacts {
		why := c.needs(k, now)
		if why == needNothing || why == needWait {
			if why == needNothing {
				k.next, k.fails, k.turned, k.deaf = 0, 0, 0, 0
			}
			continue
		}
		if now < k.next || k.dialing >= dialMost || why == needNew && k.dialing > 0 {
			continue
		}
		wait := dialSoon
		switch {
		case why == needNew:
			wait = c.cfg.renew / 60
		case k.fails >= 10:
			wait = dialLater
		}
		k.next = now + int64(wait+c.cfg.RoundTrip)
		k.dialing++
		wg.Go(func() { c.call(ctx, l, k) })
	}
}

// need is why a member is dialled.
type need int

const (
	needNothing need = iota
	needWait         // keys are new, and nothing was heard yet
	needNew          // keys are old
	needWord         // it is not heard
	needKeys         // there are none
)

// needs says why a member is to be dialled. The caller holds mu.
func (c *Carrier) needs(k *contact, now int64) need {
	p := (*c.peers.Load())[k.name]
	if p == nil {
		return needKeys
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.send == nil {
		return needKeys
	}
	born := int64(p.send.born.Sub(c.start))
	quiet := int64(c.cfg.quiet)
	if p.pace(now) == probeIdle {
		quiet += 3 * int64(probeIdle)
	}
	if now-max(p.heard.Load(), born) > quiet {
		return needWord
	}
	if p.heard.Load() < born {
		return needWait
	}
	life := c.cfg.renew
	if c.cfg.Name > p.name { // not both at a time
		life += life / 4
	}
	if now-born > int64(life) {
		return needNew
	}
	return needNothing
}

// call dials one member and agrees on keys.
func (c *Carrier) call(ctx context.Context, l Link, k *contact) {
	c.mu.Lock()
	name := k.name
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, dialTime+4*c.cfg.RoundTrip)
	defer cancel()
	began := c.now()
	e, err := c.dial(ctx, l, k.address, name)
	c.mu.Lock()
	defer c.mu.Unlock()
	k.dialing--
	if err != nil {
		k.fails++
		if dial := (*net.OpError)(nil); errors.As(err, &dial) && dial.Op == "dial" || ctx.Err() != nil {
			k.turned = 0
		} else {
			k.turned++
			k.next = c.now() + int64(rest(k.turned))
		}
		if p := (*c.peers.Load())[name]; p != nil && ctx.Err() == nil {
			p.mu.Lock()
			p.err = err.Error()
			p.mu.Unlock()
		}
		return
	}
	k.name, k.fails, k.turned = e.who.Name, 0, 0
	if e.peer.heard.Load() < began { // else something came meanwhile
		k.deaf++
		k.next = c.now() + int64(rest(k.deaf))
	}
}

func rest(times int) time.Duration { return min(restFirst<<min(times-1, 10), restMost) }

func (c *Carrier) dial(ctx context.Context, l Link, address, name string) (*epoch, error) {
	conn, err := l.Conns.DialKeys(ctx, address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	who := transport.PeerOf(conn)
	switch {
	case who.Name == c.cfg.Name:
		return nil, fmt.Errorf("at %s is this node itself", address)
	case name != "" && who.Name != name:
		return nil, fmt.Errorf("at %s is another node: %s", address, who.Name)
	}
	if err := write(conn, offer{l.ID, c.tell}); err != nil {
		return nil, err
	}
	var a offer
	if err := read(conn, &a); err != nil {
		return nil, err
	}
	e, err := c.agree(l, conn, who, &a, true)
	if err != nil {
		return nil, err
	}
	c.confirm(e)
	c.probe(e.peer, c.now())
	_ = write(conn, taken{}) // the first datagram says the same
	return e, nil
}

// agree takes keys into use for what comes in.
func (c *Carrier) agree(l Link, conn net.Conn, who transport.Peer, o *offer, dialed bool) (*epoch, error) {
	if err := l.Allowed(who, o.ID); err != nil {
		return nil, err
	}
	if len(o.Paths) == 0 || len(o.Paths) > maxPaths {
		return nil, transport.Refuse(transport.RefusedRequest, "%s tells %d addresses for datagrams, 1 to %d make sense", who.Name, len(o.Paths), maxPaths)
	}
	var tell []netip.AddrPort
	for _, s := range o.Paths {
		a, err := netip.ParseAddrPort(s)
		if ip := a.Addr().Unmap(); err != nil || a.Port() == 0 || ip.IsUnspecified() || ip.IsMulticast() || ip.Zone() != "" || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			return nil, transport.Refuse(transport.RefusedRequest, "%s tells %q as an address for datagrams", who.Name, s)
		}
		tell = append(tell, a)
	}
	from, to := c.cfg.Name, who.Name
	if !dialed {
		from, to = to, from
	}
	e, err := derive(conn, dialed, from, to)
	if err != nil {
		return nil, err
	}
	e.who, e.id = who, o.ID
	return e, c.install(e, tell)
}

// accept answers those who dial.
func (c *Carrier) accept(ctx context.Context, wg *sync.WaitGroup, l Link, conns net.Listener) {
	var shaking atomic.Int32
	for {
		conn, err := conns.Accept()
		if err != nil {
			return
		}
		if shaking.Add(1) > maxShaking {
			shaking.Add(-1)
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer shaking.Add(-1)
			defer conn.Close()
			ctx, cancel := context.WithTimeout(ctx, dialTime+4*c.cfg.RoundTrip)
			defer cancel()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			if err := c.answer(l, conn); err != nil && ctx.Err() == nil && !errors.Is(err, io.EOF) {
				c.log.Debug("keys for datagrams", "from", conn.RemoteAddr().String(), "err", err)
			}
		})
	}
}

func (c *Carrier) answer(l Link, conn net.Conn) error {
	who := transport.PeerOf(conn)
	if who.Name == c.cfg.Name || who.Name == "" {
		return fmt.Errorf("%q is nobody to agree on keys with", who.Name)
	}
	var o offer
	if err := read(conn, &o); err != nil {
		return err
	}
	e, err := c.agree(l, conn, who, &o, false)
	if err != nil {
		return err
	}
	if err := write(conn, offer{l.ID, c.tell}); err != nil {
		return err
	}
	if err := read(conn, &taken{}); err != nil {
		return err
	}
	c.confirm(e)
	c.probe(e.peer, c.now())
	return nil
}

func write(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}

func read(r io.Reader, v any) error {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint16(head[:])
	if n > maxLine {
		return fmt.Errorf("a line of %d bytes, at most %d", n, maxLine)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}
