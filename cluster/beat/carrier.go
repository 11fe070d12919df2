package beat

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"maps"
	"math"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"demarc/cluster/failover"
	"demarc/cluster/transport"
)

// Conns connects members for keys. *transport.Transport does.
type Conns interface {
	DialKeys(ctx context.Context, address string) (net.Conn, error)
	KeyConns() net.Listener
}

// Path is one address of this node's.
type Path struct {
	Listen netip.AddrPort // bound; port 0 = any
	Tell   netip.AddrPort // where others reach it; none = Listen, port 0 = that of Listen
}

// Contact is where another member may be. Name is "" where only its address is known: its certificate will say it.
type Contact struct{ Name, Address string }

// Config is what Open needs. Name, Paths and Receive are required.
type Config struct {
	Name  string // this node's, as in its certificate
	Paths []Path // the cluster's address first

	// Receive takes what has come, opened and checked. Several goroutines call it, and it must not block. What it is given is its own.
	Receive func(from string, m failover.Message)

	RoundTrip time.Duration // to the farthest member, where that is long
	Log       *slog.Logger

	renew, grace, quiet time.Duration // of keys, shorter in tests
}

// Link is what keys come from, and who may have some. All of it is required.
type Link struct {
	ID    string // of this member
	Conns Conns
	// Contacts are the other members as far as they are known. It must not block.
	Contacts func() []Contact
	// Allowed says why a member is to be refused; nil = it is not. It is asked again while its keys live.
	Allowed func(p transport.Peer, id string) error
}

const (
	renewAfter = time.Hour              // keys are made anew; old ones stay good until nobody uses them
	graceTime  = 30 * time.Second       // keys that were not used for so long, and are not sent with, are forgotten
	quietTime  = 300 * time.Millisecond // nothing heard for so long, and probes were due: keys are asked for anew
	tickEvery  = 50 * time.Millisecond  // what recurs is looked at
	lookEvery  = time.Second            // who is a member
	probeBusy  = 100 * time.Millisecond // while messages go to a peer
	probeIdle  = time.Second            // while none do
	maxEpochs  = 8                      // of one peer: both sides may begin, several times
	maxPaths   = 8
	maxShaking = 32 // connections of others for keys, at a time
)

// Carrier carries messages between this node and the others.
type Carrier struct {
	cfg   Config
	log   *slog.Logger
	start time.Time
	socks []*socket
	tell  []string // our addresses, as others are told

	mu       sync.Mutex                         // of what follows, for writing
	peers    atomic.Pointer[map[string]*peer]   // mu; never changed, only replaced
	openers  atomic.Pointer[map[uint64]*opener] // mu; never changed, only replaced
	contacts map[string]*contact                // mu: by address
	dead     []*epoch                           // mu: of members that were refused: what they send is told apart for a while

	wake  chan struct{}
	drops map[Drop]*atomic.Uint64 // never changed
	once  sync.Once
}

// peer is another member.
type peer struct {
	name     string
	heard    atomic.Int64 // since start; 0 = never: of anything that was opened
	asked    atomic.Int64 // since start: when a message to it was last given to Send
	sent     atomic.Uint64
	received atomic.Uint64
	repeated atomic.Uint64
	unkeyed  atomic.Uint64
	paths    atomic.Pointer[[]*path] // mu: replaced

	mu     sync.Mutex
	epochs []*epoch // mu: newest first
	send   *epoch   // mu: newest that is confirmed; nil = none
	buf    []byte   // mu
	tell   []string // mu: its addresses, as it told
	probed int64    // mu: since start; long ago = now is the time
	met    uint64   // mu: how often keys were agreed on
	err    string   // mu: why the last try came to nothing
}

// path is one way to a peer.
type path struct {
	local  *socket
	remote netip.AddrPort
	heard  atomic.Int64 // since start
	sent   atomic.Uint64
	failed atomic.Uint64

	out    *sender // peer.mu
	number uint64  // peer.mu: of the last probe
	probes [64]probe
	trip   time.Duration // peer.mu: smoothed
}

// probe is one that was sent. peer.mu.
type probe struct {
	at       int64
	number   uint64
	answered bool
}

// Open binds the addresses. Run does the work; Send may be called before.
func Open(c Config) (*Carrier, error) {
	if len(c.Paths) == 0 || len(c.Paths) > maxPaths {
		return nil, errors.New("a node has one to eight addresses for datagrams")
	}
	c.renew, c.grace, c.quiet = cmp.Or(c.renew, renewAfter), cmp.Or(c.grace, graceTime), cmp.Or(c.quiet, quietTime+4*c.RoundTrip)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	x := &Carrier{cfg: c, log: c.Log, start: time.Now(), contacts: map[string]*contact{}, wake: make(chan struct{}, 1), drops: map[Drop]*atomic.Uint64{}}
	x.peers.Store(&map[string]*peer{})
	x.openers.Store(&map[uint64]*opener{})
	for _, d := range Drops {
		x.drops[d] = new(atomic.Uint64)
	}
	for _, p := range c.Paths {
		if !p.Tell.IsValid() {
			p.Tell = netip.AddrPortFrom(p.Listen.Addr(), 0)
		}
		s, err := open(p.Listen, p.Tell)
		if err != nil {
			x.Close()
			return nil, err
		}
		x.socks = append(x.socks, s)
		x.tell = append(x.tell, s.tell.String())
	}
	return x, nil
}

// Close ends the sockets. Run has returned, or was never called.
func (c *Carrier) Close() {
	c.once.Do(func() {
		for _, s := range c.socks {
			s.conn.Close()
		}
	})
}

func (c *Carrier) now() int64 { return int64(time.Since(c.start)) }

// Look has members looked at again soon, because something was agreed on about them.
func (c *Carrier) Look() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *Carrier) drop(why Drop) { c.drops[why].Add(1) }

// Send seals m for one member and sends it on every path. It never waits: what cannot be sent now is dropped and counted.
func (c *Carrier) Send(to string, m failover.Message) {
	p := (*c.peers.Load())[to]
	if p == nil {
		c.drop(DropNoKey)
		return
	}
	p.asked.Store(c.now())
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.send == nil {
		p.unkeyed.Add(1)
		c.drop(DropNoKey)
		return
	}
	b, err := appendMessage(append(p.buf[:headLen], carriesMessage), &m)
	p.buf = b // as large as it has become
	if err != nil {
		c.drop(DropLarge)
		return
	}
	b = p.send.out.seal(b)
	p.buf = b
	p.sent.Add(1)
	for _, w := range *p.paths.Load() {
		c.put(w, b)
	}
}

// put hands a sealed datagram to the kernel. The caller holds the peer's lock.
func (c *Carrier) put(w *path, b []byte) {
	err := w.out.send(b)
	switch {
	case err == nil:
		w.sent.Add(1)
		return
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS):
		c.drop(DropQueue)
	default:
		c.drop(DropUnreachable)
	}
	w.failed.Add(1)
}

// say sends a probe or an echo on one path. The caller holds the peer's lock.
func (c *Carrier) say(p *peer, w *path, what byte, number uint64) {
	if p.send == nil {
		return
	}
	b := binary.BigEndian.AppendUint64(append(p.buf[:headLen], what), number)
	p.buf = p.send.out.seal(b)
	c.put(w, p.buf)
}

// receive hands over what comes in on one socket until it is closed.
func (c *Carrier) receive(ctx context.Context, s *socket) {
	b, n := make([]byte, maxPacket+1), names{}
	for {
		size, from, err := s.conn.ReadFromUDPAddrPort(b)
		switch {
		case ctx.Err() != nil, errors.Is(err, net.ErrClosed):
			return
		case err != nil: // the link is gone, say: it passes
			select {
			case <-ctx.Done():
				return
			case <-time.After(tickEvery):
			}
			continue
		}
		c.incoming(s, from, b[:size], n)
	}
}

// incoming opens and hands over one datagram. b is used up.
func (c *Carrier) incoming(s *socket, from netip.AddrPort, b []byte, n names) {
	if len(b) < headLen+1+tagLen || len(b) > maxPacket || b[0] != form {
		c.drop(DropForm)
		return
	}
	o := (*c.openers.Load())[binary.BigEndian.Uint64(b[1:])]
	if o == nil {
		c.drop(DropKey)
		return
	}
	e, p := o.epoch, o.epoch.peer
	if e.refused.Load() {
		c.drop(DropMember)
		return
	}
	plain, why := o.open(b)
	if why != "" {
		if why == DropRepeated {
			p.repeated.Add(1)
		}
		c.drop(why)
		return
	}
	now := c.now()
	p.heard.Store(now)
	e.used.Store(now)
	if !o.last && !e.known.Load() {
		c.confirm(e)
	}
	w := p.by(s, from)
	if w != nil {
		w.heard.Store(now)
	}
	switch what, rest := plain[0], plain[1:]; {
	case what == carriesMessage:
		m, err := decode(rest, n)
		if err != nil || o.last && m.Kind != failover.Release {
			c.drop(DropContent)
			return
		}
		p.received.Add(1)
		m.Last = o.last
		c.cfg.Receive(p.name, m)
	case o.last || len(rest) != 8 || what != carriesProbe && what != carriesEcho:
		c.drop(DropContent)
	case w == nil: // it has told no addresses
	case what == carriesProbe:
		p.mu.Lock()
		c.say(p, w, carriesEcho, binary.BigEndian.Uint64(rest))
		p.mu.Unlock()
	default:
		p.mu.Lock()
		w.answered(binary.BigEndian.Uint64(rest), now)
		p.mu.Unlock()
	}
}

// by is the path that a datagram came by. One that comes from elsewhere than the peer told, through a translation say, counts for the first path of the socket.
func (p *peer) by(s *socket, from netip.AddrPort) (found *path) {
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	for _, w := range *p.paths.Load() {
		if w.local != s {
			continue
		}
		if w.remote == from {
			return w
		}
		if found == nil {
			found = w
		}
	}
	return found
}

func (w *path) answered(number uint64, now int64) {
	q := &w.probes[number%uint64(len(w.probes))]
	if q.number != number || q.at == 0 || q.answered {
		return
	}
	q.answered = true
	if took := time.Duration(max(now-q.at, 1)); w.trip == 0 {
		w.trip = took
	} else {
		w.trip += (took - w.trip) / 8 // as TCP smooths it (RFC 6298, 2.3)
	}
}

// Run receives, and asks how the paths are, until ctx ends. Keys come from Serve. What is sent after that still leaves, until Close.
func (c *Carrier) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() {
		cancel()
		for _, s := range c.socks {
			_ = s.conn.SetReadDeadline(time.Unix(1, 0))
		}
		wg.Wait()
	}()
	for _, s := range c.socks {
		wg.Go(func() { c.receive(ctx, s) })
	}
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for {
		now := c.now()
		for _, p := range *c.peers.Load() {
			c.probe(p, now)
			c.expire(p, now)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// probe asks on each path how long an answer takes, often while messages go to the peer.
func (c *Carrier) probe(p *peer, now int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.send == nil || now-p.probed < int64(p.pace(now)) {
		return
	}
	p.probed = now
	for _, w := range *p.paths.Load() {
		w.number++
		w.probes[w.number%uint64(len(w.probes))] = probe{at: now, number: w.number}
		c.say(p, w, carriesProbe, w.number)
	}
}

// pace is how often a peer is probed.
func (p *peer) pace(now int64) time.Duration {
	if a := p.asked.Load(); a != 0 && now-a < int64(probeIdle) {
		return probeBusy
	}
	return probeIdle
}

// expire forgets keys that nobody uses: the newest ones are sent with, and the other side may still send with older ones.
func (c *Carrier) expire(p *peer, now int64) {
	old := func(e *epoch) bool { return now-max(e.used.Load(), int64(e.born.Sub(c.start))) > int64(c.cfg.grace) }
	p.mu.Lock()
	any := slices.ContainsFunc(p.epochs, func(e *epoch) bool { return e != p.send && old(e) })
	p.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.dead)
	c.dead = slices.DeleteFunc(c.dead, func(e *epoch) bool { return now-e.ended > int64(2*c.cfg.grace) })
	if any {
		p.mu.Lock()
		p.epochs = slices.DeleteFunc(p.epochs, func(e *epoch) bool { return e != p.send && old(e) })
		p.mu.Unlock()
	}
	if any || n != len(c.dead) {
		c.index()
	}
}

// index makes openers anew. The caller holds mu.
func (c *Carrier) index() {
	m := map[uint64]*opener{}
	add := func(list []*epoch) {
		for _, e := range list {
			m[e.in.id], m[e.partIn.id] = &e.in, &e.partIn
		}
	}
	for _, p := range *c.peers.Load() {
		p.mu.Lock()
		add(p.epochs)
		p.mu.Unlock()
	}
	add(c.dead)
	c.openers.Store(&m)
}

// peerNamed is the peer of that name, made if need be. The caller holds mu.
func (c *Carrier) peerNamed(name string) *peer {
	old := *c.peers.Load()
	if p := old[name]; p != nil {
		return p
	}
	p := &peer{name: name, buf: make([]byte, headLen, 2048)}
	p.paths.Store(&[]*path{})
	m := maps.Clone(old)
	m[name] = p
	c.peers.Store(&m)
	return p
}

// install takes keys into use for what comes in. They are sent with once confirm says so.
func (c *Carrier) install(e *epoch, tell []netip.AddrPort) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := *c.openers.Load()
	if known[e.in.id] != nil || known[e.partIn.id] != nil || e.in.id == e.partIn.id {
		return errors.New("keys by a number that others have: again") // once in 2^60
	}
	p := c.peerNamed(e.who.Name)
	e.peer, e.born = p, time.Now()
	p.mu.Lock()
	p.epochs = slices.Insert(p.epochs, 0, e)
	for i := len(p.epochs) - 1; i > 0 && len(p.epochs) > maxEpochs; i-- {
		if p.epochs[i] != p.send {
			p.epochs = slices.Delete(p.epochs, i, i+1)
		}
	}
	p.met++
	p.err = ""
	c.lay(p, tell)
	p.mu.Unlock()
	c.index()
	return nil
}

// lay makes the paths to a peer: our first address with its first, and so on; whoever has fewer takes its last one for the rest. Both sides find the same
// pairs. The caller holds the peer's lock.
func (c *Carrier) lay(p *peer, tell []netip.AddrPort) {
	var said []string
	for _, a := range tell {
		said = append(said, a.String())
	}
	if len(tell) == 0 || slices.Equal(said, p.tell) {
		return
	}
	p.tell = said
	var paths []*path
	for i := range max(len(tell), len(c.socks)) {
		s, to := c.socks[min(i, len(c.socks)-1)], tell[min(i, len(tell)-1)]
		paths = append(paths, &path{local: s, remote: netip.AddrPortFrom(to.Addr().Unmap(), to.Port()), out: newSender(s, to)})
	}
	p.paths.Store(&paths)
}

// confirm has keys be sent with: the other side has them.
func (c *Carrier) confirm(e *epoch) {
	e.peer.mu.Lock()
	defer e.peer.mu.Unlock()
	if e.refused.Load() || !slices.Contains(e.peer.epochs, e) {
		return
	}
	e.known.Store(true)
	if s := e.peer.send; s == nil || !e.born.Before(s.born) {
		e.peer.send = e
		e.peer.probed = math.MinInt64 / 2 // at once: the first datagram tells the other side that these keys are in use
	}
}

// members looks who is one: keys of those that are none any more are good for nothing at once.
func (c *Carrier) members(l Link) {
	list, bad, now := l.Contacts(), c.refusals(l), c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	seen, named := map[string]bool{}, map[string]bool{}
	for _, m := range list {
		if m.Name == c.cfg.Name {
			continue
		}
		if m.Name != "" {
			named[m.Name] = true
			c.peerNamed(m.Name)
		}
		if m.Address == "" {
			continue
		}
		seen[m.Address] = true
		k := c.contacts[m.Address]
		if k == nil {
			k = &contact{address: m.Address}
			c.contacts[m.Address] = k
		}
		if m.Name != "" {
			k.name = m.Name
		}
	}
	maps.DeleteFunc(c.contacts, func(a string, k *contact) bool { return !seen[a] && k.dialing == 0 })
	left := maps.Clone(*c.peers.Load())
	for name, p := range left {
		p.mu.Lock()
		c.end(p, bad, now)
		gone := len(p.epochs) == 0 && !named[name]
		p.mu.Unlock()
		if gone {
			delete(left, name)
		}
	}
	c.peers.Store(&left)
	c.index()
}

// refusals asks of all keys whether their member may still use them. Without a lock: Send waits for nobody's answer.
func (c *Carrier) refusals(l Link) map[*epoch]error {
	bad := map[*epoch]error{}
	for _, p := range *c.peers.Load() {
		p.mu.Lock()
		list := slices.Clone(p.epochs)
		p.mu.Unlock()
		for _, e := range list {
			if err := l.Allowed(e.who, e.id); err != nil {
				bad[e] = err
			}
		}
	}
	return bad
}

// end takes keys away from a member. The caller holds mu and the peer's lock.
func (c *Carrier) end(p *peer, bad map[*epoch]error, now int64) {
	for i := len(p.epochs) - 1; i >= 0; i-- {
		e := p.epochs[i]
		err := bad[e]
		if err == nil {
			continue
		}
		e.refused.Store(true)
		e.ended = now
		c.dead = append(c.dead, e)
		p.epochs = slices.Delete(p.epochs, i, i+1)
		if p.send == e {
			p.send = nil
			c.log.Warn("keys of a member ended", "peer", p.name, "err", err)
		}
	}
	for _, e := range p.epochs { // newest first
		if p.send == nil && e.known.Load() {
			p.send = e
		}
	}
}
