package transport

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"demarc/cluster/store"
)

// What TLS negotiates (ALPN, RFC 7301): what a connection is for.
const (
	protoRaft     = "demarc-raft/1"
	protoRequest  = "demarc-request/1"
	protoKeys     = "demarc-keys/1"     // two members agree on keys for datagrams
	protoSessions = "demarc-sessions/1" // an owner has a standby copy its sessions
)

// greeted says whether a connection begins with a Hello.
func greeted(proto string) bool { return proto != protoRequest }

// Config is what Listen needs. Keys is required.
type Config struct {
	Address   string // to listen on, "192.0.2.1:7400"
	Advertise string // what others reach it by; empty = Address
	Keys      *Keyring
	Allowed   func(Peer) error                               // who may connect and be connected to, see Refuse; nil = every member's certificate
	Self      func() Hello                                   // what this side says of itself on a connection for Raft or keys; nil = nothing
	Greet     func(Peer, Hello) error                        // judges what the other side says of itself, see Refuse; nil = anything will do
	Turned    func(address string, kind Refusal, why string) // this side was refused by the member there on a stream of Raft's; may be nil
	Log       *slog.Logger
	Timeout   time.Duration // of a handshake, and of one message of Raft; 0 = 5 s
	Handshake int           // at a time; 0 = 64
	PerSource int           // of them, from one address; 0 = 16
	InFlight  int           // messages of Raft to one member that wait for their answer, at most; 0 = 2
	Held      bool          // accept nothing before Open is called
}

// Hello is what a member says before Raft's messages, or before keys are agreed on: a certificate says neither which cluster a data directory is of, nor which machine it
// was issued to before.
type Hello struct {
	Cluster string `json:"cluster"` // "" = it is not known yet
	ID      string `json:"id"`
}

// welcome answers a Hello.
type welcome struct {
	Kind Refusal `json:"kind,omitempty"`
	Why  string  `json:"why,omitempty"` // "" = come in
}

const maxHello = 4 << 10 // bytes of either

// Transport is one listening port and the connections that leave from here.
type Transport struct {
	cfg      Config
	l        net.Listener
	raft     *pipe
	requests *pipe
	keys     *pipe
	sessions *pipe
	slots    chan struct{}
	mu       sync.Mutex
	shaking  map[netip.Addr]int // mu: handshakes by where they come from
	refused  map[Refusal]*atomic.Uint64
	said     atomic.Int64 // unix seconds of the last refusal that was logged
	wg       sync.WaitGroup
	begin    sync.Once
	once     sync.Once
	end      chan struct{}
	alive    context.Context // until it hangs up
	hangUp   context.CancelFunc
	out      map[*outgoing]bool // mu: connections for Raft that left from here
	connects connector
}

// Listen opens the port and begins to accept, unless that is held back.
func Listen(c Config) (*Transport, error) {
	c.Timeout, c.Handshake, c.PerSource = cmp.Or(c.Timeout, 5*time.Second), cmp.Or(c.Handshake, 64), cmp.Or(c.PerSource, 16)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	l, here, err := ListenTCP(c.Address)
	if err != nil {
		return nil, fmt.Errorf("cluster address: %w", err)
	}
	if !here {
		c.Log.Warn("no other member reaches this node until a link has its cluster address", "address", c.Address)
	}
	if c.Advertise == "" {
		c.Advertise = l.Addr().String()
	}
	t := &Transport{cfg: c, l: l, slots: make(chan struct{}, c.Handshake), shaking: map[netip.Addr]int{}, refused: map[Refusal]*atomic.Uint64{}, end: make(chan struct{}), out: map[*outgoing]bool{}}
	t.alive, t.hangUp = context.WithCancel(context.Background())
	for _, r := range Refusals {
		t.refused[r] = new(atomic.Uint64)
	}
	t.raft, t.requests, t.keys, t.sessions = newPipe(l.Addr(), t.end), newPipe(l.Addr(), t.end), newPipe(l.Addr(), t.end), newPipe(l.Addr(), t.end)
	if !c.Held {
		t.Open()
	}
	return t, nil
}

// Open begins to accept, where Listen was told to hold that back: what judges peers may need what is opened in between.
func (t *Transport) Open() { t.begin.Do(func() { t.wg.Go(t.accept) }) }

// Address is what others reach this member by.
func (t *Transport) Address() string { return t.cfg.Advertise }

// Refused counts the connections that were not taken up.
func (t *Transport) Refused() map[Refusal]uint64 {
	out := map[Refusal]uint64{}
	for r, n := range t.refused {
		out[r] = n.Load()
	}
	return out
}

func (t *Transport) accept() {
	for {
		c, err := t.l.Accept()
		if err != nil {
			select {
			case <-t.end:
				return
			case <-time.After(50 * time.Millisecond): // out of descriptors, say: it passes
				continue
			}
		}
		leave, ok := t.enter(c.RemoteAddr())
		if !ok {
			t.refuse(c, &refused{RefusedBusy, errors.New("too many connections are shaking hands")})
			continue
		}
		t.wg.Go(func() {
			defer leave()
			t.shake(c)
		})
	}
}

// enter takes a place for a handshake. One address has only some of them: whoever holds connections half open must not keep members out.
func (t *Transport) enter(a net.Addr) (leave func(), ok bool) {
	from := netip.Addr{}
	if ap, err := netip.ParseAddrPort(a.String()); err == nil {
		from = ap.Addr().Unmap()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.shaking[from] >= t.cfg.PerSource {
		return nil, false
	}
	select {
	case t.slots <- struct{}{}:
	default:
		return nil, false
	}
	t.shaking[from]++
	return func() {
		<-t.slots
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.shaking[from]--; t.shaking[from] == 0 {
			delete(t.shaking, from)
		}
	}, true
}

// shake finishes the handshake and hands the connection on.
func (t *Transport) shake(raw net.Conn) {
	c := tls.Server(raw, t.cfg.Keys.serve(t.cfg.Allowed, protoRaft, protoRequest, protoKeys, protoSessions))
	ctx, cancel := context.WithTimeout(t.alive, t.cfg.Timeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	err := c.HandshakeContext(ctx)
	var h Hello
	if err == nil && greeted(c.ConnectionState().NegotiatedProtocol) {
		h, err = t.greet(c)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		t.refuse(raw, t.cfg.Keys.named(err))
		return
	}
	to, conn := t.requests, net.Conn(c)
	switch c.ConnectionState().NegotiatedProtocol {
	case protoRaft:
		to = t.raft
	case protoKeys:
		to = t.keys
	case protoSessions:
		to, conn = t.sessions, introduced{c, h.ID}
	case protoRequest:
	default:
		t.refuse(raw, refuse(RefusedHandshake, "the peer wants no protocol of ours"))
		return
	}
	if !to.put(ctx, conn) {
		c.Close()
	}
}

// introduced is a connection whose other end has said which member it is.
type introduced struct {
	*tls.Conn
	id string
}

// IDOf is which member the other end of a connection for sessions has said to be; "" = it has dialled nobody.
func IDOf(c net.Conn) string {
	if i, ok := c.(introduced); ok {
		return i.id
	}
	return ""
}

// greet reads what a peer says of itself and answers it. The caller ends the connection when that takes too long.
func (t *Transport) greet(c net.Conn) (h Hello, err error) {
	if err := readJSON(c, &h); err != nil {
		return h, refuse(RefusedHandshake, "the peer says nothing sensible of itself: %w", err)
	}
	if t.cfg.Greet == nil {
		return h, writeJSON(c, welcome{})
	}
	if err = t.cfg.Greet(PeerOf(c), h); err == nil {
		return h, writeJSON(c, welcome{})
	}
	_ = writeJSON(c, welcome{KindOf(err), err.Error()}) // it is refused in any case
	return h, err
}

func writeJSON(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > maxHello {
		return fmt.Errorf("%d bytes, at most %d", len(b), maxHello)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}

func readJSON(r io.Reader, v any) error {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint16(head[:])
	if n > maxHello {
		return fmt.Errorf("%d bytes, at most %d", n, maxHello)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// Refuse counts what a user of a connection found wrong with it, and says so at most once a second.
func (t *Transport) Refuse(c net.Conn, err error) { t.refuse(c, err) }

// refuse counts, says so at most once a second, and closes.
func (t *Transport) refuse(c net.Conn, err error) {
	kind := KindOf(err)
	t.refused[kind].Add(1)
	if now := time.Now().Unix(); t.said.Swap(now) != now {
		t.cfg.Log.Warn("cluster connection refused", "from", c.RemoteAddr().String(), "why", string(kind), "err", err)
	}
	c.Close()
}

func (t *Transport) dial(ctx context.Context, address, proto string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Timeout)
	defer cancel()
	defer context.AfterFunc(t.alive, cancel)()
	var allowed func(Peer) error
	if t.cfg.Allowed != nil {
		allowed = func(p Peer) error {
			p.Dialed = true
			return t.cfg.Allowed(p)
		}
	}
	c, err := dial(ctx, &t.connects, address, t.cfg.Keys.config(allowed, proto), proto)
	if err != nil {
		return nil, err
	}
	if greeted(proto) {
		if err := t.present(ctx, address, c); err != nil {
			c.Close()
			return nil, fmt.Errorf("%s: %w", address, t.cfg.Keys.named(err))
		}
	}
	return c, nil
}

// DialRequest opens a connection for requests from a node that does not run.
func DialRequest(ctx context.Context, k *Keyring, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return dial(ctx, new(connector), address, k.config(nil, protoRequest), protoRequest)
}

func dial(ctx context.Context, k *connector, address string, cfg *tls.Config, proto string) (net.Conn, error) {
	raw, err := k.connect(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", address, err)
	}
	c := tls.Client(raw, cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("%s: %w", address, err)
	}
	if c.ConnectionState().NegotiatedProtocol != proto {
		c.Close()
		return nil, fmt.Errorf("%s: speaks no %s", address, proto)
	}
	return c, nil
}

// present says who this side is and waits until it is let in.
func (t *Transport) present(ctx context.Context, address string, c net.Conn) error {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	var h Hello
	if t.cfg.Self != nil {
		h = t.cfg.Self()
	}
	if err := writeJSON(c, h); err != nil {
		return err
	}
	var w welcome
	if err := readJSON(c, &w); err != nil {
		return err
	}
	if w.Why != "" {
		if t.cfg.Turned != nil {
			t.cfg.Turned(address, w.Kind, w.Why)
		}
		return fmt.Errorf("does not let this node in: %s", w.Why)
	}
	return nil
}

// Named says what is behind an error of a connection, where that is a certificate.
func (t *Transport) Named(err error) error { return t.cfg.Keys.named(err) }

// Dial opens a connection for requests to another member.
func (t *Transport) Dial(ctx context.Context, address string) (net.Conn, error) {
	return t.dial(ctx, address, protoRequest)
}

// DialKeys opens a connection over which keys for datagrams are agreed on with another member.
func (t *Transport) DialKeys(ctx context.Context, address string) (net.Conn, error) {
	return t.dial(ctx, address, protoKeys)
}

// KeyConns is where connections of others for keys come out. It ends with the transport.
func (t *Transport) KeyConns() net.Listener { return t.keys }

// ErrNoSessions says that a member runs a release that does not know connections for sessions.
var ErrNoSessions = errors.New("its release takes no copies of sessions: bring it to this one")

// DialSessions opens a connection over which another member copies the sessions that this one has. What leaves here on it is bulk: see bulk.
func (t *Transport) DialSessions(ctx context.Context, address string) (net.Conn, error) {
	c, err := t.dial(ctx, address, protoSessions)
	if err != nil {
		if strings.HasSuffix(err.Error(), "remote error: tls: no application protocol") { // RFC 7301, 3.2; the library has no type for it
			return nil, fmt.Errorf("%s: %w", address, ErrNoSessions)
		}
		return nil, err
	}
	bulk(c)
	return c, nil
}

// SessionConns is where connections of others for sessions come out. It ends with the transport.
func (t *Transport) SessionConns() net.Listener { return t.sessions }

// unsent is how much of what is written to a connection for sessions the kernel holds that it has not sent: more would wait in a queue of ours, older than it need be.
const unsent = 256 << 10

// bulk has what leaves on a connection give way to everything else here, in the queues of this machine and on the way where that is honoured: above all to the datagrams that keep
// leases. It is a wish: without it the connection works.
func bulk(c net.Conn) {
	t, ok := c.(*tls.Conn)
	if !ok {
		return
	}
	raw, ok := t.NetConn().(*net.TCPConn)
	if !ok {
		return
	}
	sc, err := raw.SyscallConn()
	if err != nil {
		return
	}
	_ = sc.Control(func(fd uintptr) {
		const dscpCS1 = 8 << 2 // low-priority data (RFC 3662), as it stands in the TOS or traffic class byte
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, dscpCS1)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_TCLASS, dscpCS1)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PRIORITY, 2) // the last band of the usual queue; after TOS, which changes it
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent)
	})
}

// Export derives n bytes that only the two ends of a connection know (RFC 8446, 7.5). The label and the context say what for.
func Export(c net.Conn, label string, context []byte, n int) ([]byte, error) {
	t, ok := c.(*tls.Conn)
	if !ok {
		return nil, errors.New("the connection is not one of TLS")
	}
	s := t.ConnectionState()
	return s.ExportKeyingMaterial(label, context, n)
}

// Requests is where connections of others for requests come out. It ends with the transport.
func (t *Transport) Requests() net.Listener { return t.requests }

// Raft is the transport for a store. It is closed by the store.
func (t *Transport) Raft() store.Transport {
	return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: stream{t}, MaxPool: 3, Timeout: t.cfg.Timeout, MaxRPCsInFlight: t.cfg.InFlight,
		Logger: hclog.New(&hclog.LoggerOptions{Name: "raft-net", Level: hclog.Error, Output: lines{t.cfg.Log}, DisableTime: true}),
	})
}

type lines struct{ log *slog.Logger }

func (l lines) Write(b []byte) (int, error) {
	l.log.Debug("raft transport", "says", string(b)) // peers that cannot be reached are told by status, not a line each 100 ms
	return len(b), nil
}

// stream is the part of a Transport that Raft's own one stands on.
type stream struct{ t *Transport }

func (s stream) Accept() (net.Conn, error) { return s.t.raft.Accept() }
func (s stream) Close() error              { return nil } // the port belongs to the Transport
func (s stream) Addr() net.Addr            { return named(s.t.cfg.Advertise) }

func (s stream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c, err := s.t.dial(ctx, string(address), protoRaft)
	if err != nil {
		return nil, err
	}
	o := &outgoing{c, s.t}
	s.t.mu.Lock()
	s.t.out[o] = true
	s.t.mu.Unlock()
	if s.t.alive.Err() != nil { // HangUp may have looked before
		o.Close()
		return nil, net.ErrClosed
	}
	return o, nil
}

// outgoing is a connection for Raft that HangUp closes.
type outgoing struct {
	net.Conn
	t *Transport
}

func (o *outgoing) Close() error {
	o.t.mu.Lock()
	delete(o.t.out, o)
	o.t.mu.Unlock()
	return o.Conn.Close()
}

// HangUp ends what is under way with others, handshakes, dials and messages of Raft, and lets nothing new begin: who waits for the end of Raft would wait for each to time out, where
// others do not answer. The port is left to Close.
func (t *Transport) HangUp() {
	t.hangUp()
	t.mu.Lock()
	var all []*outgoing
	for o := range t.out {
		all = append(all, o)
	}
	t.mu.Unlock()
	for _, o := range all {
		if c, ok := o.Conn.(*tls.Conn); ok {
			c.NetConn().Close() // without a word that the other end might not take
		}
		o.Close()
	}
}

type named string

func (named) Network() string  { return "tcp" }
func (n named) String() string { return string(n) }

// Close hangs up and stops accepting. Connections that were handed on belong to whoever took them.
func (t *Transport) Close() error {
	var err error
	t.once.Do(func() {
		t.HangUp()
		close(t.end)
		err = t.l.Close()
		t.wg.Wait()
	})
	return err
}

// pipe is a listener that is fed.
type pipe struct {
	addr net.Addr
	c    chan net.Conn
	end  <-chan struct{}
	shut chan struct{}
	once sync.Once
}

func newPipe(a net.Addr, end <-chan struct{}) *pipe {
	return &pipe{addr: a, c: make(chan net.Conn), end: end, shut: make(chan struct{})}
}

// put hands a connection on. False when nobody will take it.
func (p *pipe) put(ctx context.Context, c net.Conn) bool {
	select {
	case p.c <- c:
		return true
	case <-ctx.Done(): // else connections that nobody takes would keep the places of those that shake hands
	case <-p.end:
	case <-p.shut:
	}
	return false
}

func (p *pipe) Accept() (net.Conn, error) {
	select {
	case c := <-p.c:
		return c, nil
	case <-p.end:
	case <-p.shut:
	}
	return nil, net.ErrClosed
}

func (p *pipe) Close() error {
	p.once.Do(func() { close(p.shut) })
	return nil
}

func (p *pipe) Addr() net.Addr { return p.addr }
