package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Remote is the interface on TCP. Who comes is known by a certificate; what that says is for others to judge, this package knows none.
type Remote struct {
	Listen string                                        // address and port
	TLS    *tls.Config                                   // asks for a client's certificate, and fails the handshake of who has no good one
	Who    func(chain []*x509.Certificate) (Peer, error) // judged by now: asked for each connection, and again for each request
	Kind   func(error) string                            // sorts handshakes that failed
	Kinds  []string                                      // all that Kind gives, so that each is counted from the start
	Until  func() time.Time                              // when the node's own certificate ends
}

// KindBusy counts connections that were refused because there are too many.
const KindBusy = "busy"

// limits bound what callers can take. Whoever has not shown a certificate yet holds a place for a handshake, from one source only some of them;
// whoever has holds a connection, and tenants together leave some for those who run the node.
type limits struct {
	handshakes, perSource        int
	connections, tenants, caller int
	handshake                    time.Duration
	header, body, answer, idle   time.Duration
}

var remoteLimits = limits{handshakes: 64, perSource: 16, connections: 256, tenants: 192, caller: 16,
	handshake: 5 * time.Second, header: 5 * time.Second, body: 30 * time.Second, answer: 2 * time.Minute, idle: 60 * time.Second}

// door is the listener of the interface on TCP: what comes out of it has shown a good certificate.
type door struct {
	net.Listener
	r     *Remote
	lim   limits
	log   *slog.Logger
	ready chan *guest
	end   chan struct{}
	once  sync.Once
	wg    sync.WaitGroup

	refused map[string]*atomic.Uint64
	said    atomic.Int64 // unix seconds of the last refusal that was logged

	mu      sync.Mutex
	shaking map[netip.Prefix]int // mu: handshakes by source
	shakes  int                  // mu: their sum
	inside  map[string]int       // mu: connections by who holds them
	guests  int                  // mu: their sum
	tenants int                  // mu: of them, those of tenants
}

// guest is a connection behind its handshake.
type guest struct {
	*tls.Conn
	chain []*x509.Certificate
	leave func()
}

// Close ends the connection and gives its place free.
func (g *guest) Close() error {
	g.leave()
	return g.Conn.Close()
}

func openDoor(r *Remote, lim limits, log *slog.Logger) (*door, error) {
	l, err := net.Listen("tcp", r.Listen)
	if err != nil {
		return nil, err
	}
	d := &door{Listener: l, r: r, lim: lim, log: log, ready: make(chan *guest), end: make(chan struct{}), refused: map[string]*atomic.Uint64{}, shaking: map[netip.Prefix]int{}, inside: map[string]int{}}
	for _, k := range append([]string{KindBusy}, r.Kinds...) {
		d.refused[k] = new(atomic.Uint64)
	}
	d.wg.Go(d.answer)
	return d, nil
}

func (d *door) answer() {
	for {
		c, err := d.Listener.Accept()
		if err != nil {
			select {
			case <-d.end:
				return
			case <-time.After(50 * time.Millisecond): // out of descriptors, say: it passes
				continue
			}
		}
		leave, ok := d.enter(source(c.RemoteAddr()))
		if !ok {
			d.turnAway(c, KindBusy, errors.New("too many connections are shaking hands"))
			c.Close()
			continue
		}
		d.wg.Go(func() {
			defer leave()
			d.shake(c)
		})
	}
}

// source is what counts as one place that connections come from: an IPv4 address, or a /64.
func source(a net.Addr) netip.Prefix {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Prefix{}
	}
	ip := ap.Addr().Unmap()
	p, _ := ip.Prefix(min(64, ip.BitLen()))
	return p
}

// enter takes a place for a handshake.
func (d *door) enter(from netip.Prefix) (leave func(), ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.shakes >= d.lim.handshakes || d.shaking[from] >= d.lim.perSource {
		return nil, false
	}
	d.shakes++
	d.shaking[from]++
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.shakes--
		if d.shaking[from]--; d.shaking[from] == 0 {
			delete(d.shaking, from)
		}
	}, true
}

// stay takes a place for a connection.
func (d *door) stay(p Peer) (leave func(), ok bool) {
	who, tenants := "client "+p.Name, 0
	if p.Tenant != "" {
		who, tenants = "tenant "+p.Tenant, 1
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.guests >= d.lim.connections || d.inside[who] >= d.lim.caller || tenants > 0 && d.tenants >= d.lim.tenants {
		return nil, false
	}
	d.guests++
	d.tenants += tenants
	d.inside[who]++
	return sync.OnceFunc(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.guests--
		d.tenants -= tenants
		if d.inside[who]--; d.inside[who] == 0 {
			delete(d.inside, who)
		}
	}), true
}

// shake finishes the handshake and hands the connection on.
func (d *door) shake(raw net.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), d.lim.handshake)
	defer cancel()
	defer context.AfterFunc(ctx, func() { raw.Close() })()
	stop := make(chan struct{})
	defer close(stop)
	go func() { // ends with the handshake
		select {
		case <-d.end:
			raw.Close()
		case <-stop:
		}
	}()
	c := tls.Server(raw, d.r.TLS)
	err := c.HandshakeContext(ctx)
	var p Peer
	if err == nil {
		p, err = d.r.Who(c.ConnectionState().PeerCertificates)
	}
	if err != nil {
		d.turnAway(raw, d.r.Kind(err), err)
		var plain tls.RecordHeaderError
		if errors.As(err, &plain) && plain.Conn != nil && slices.Contains([]string{"GET /", "HEAD ", "POST ", "PUT /"}, string(plain.RecordHeader[:])) {
			_, _ = io.WriteString(raw, "HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\nthis port speaks TLS: use https://\n")
		}
		part(raw, 2*time.Second)
		return
	}
	leave, ok := d.stay(p)
	if !ok {
		d.turnAway(raw, KindBusy, errors.New(p.describe()+", and has as many connections as it may, or there are too many in all"))
		c.Close()
		return
	}
	g := &guest{Conn: c, chain: c.ConnectionState().PeerCertificates, leave: leave}
	select {
	case d.ready <- g:
	case <-d.end:
		g.Close()
	}
}

// part closes a connection so that what was said last arrives: a socket that is closed with unread bytes sends a reset, which overtakes it.
func part(c net.Conn, wait time.Duration) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.CloseWrite()
	}
	_ = c.SetReadDeadline(time.Now().Add(wait))
	_, _ = io.CopyN(io.Discard, c, 4*MaxPolicy) // more than any request
	c.Close()
}

// turnAway counts, and says so at most once a second.
func (d *door) turnAway(c net.Conn, kind string, err error) {
	n := d.refused[kind]
	if n == nil {
		n = d.refused[KindBusy]
	}
	n.Add(1)
	if now := time.Now().Unix(); d.said.Swap(now) != now {
		why := err.Error()
		if len(why) > 300 { // a stranger's certificate has room for much
			why = why[:300] + "…"
		}
		d.log.Warn("connection to the interface refused", "from", c.RemoteAddr().String(), "why", kind, "err", why)
	}
}

// Accept gives the next connection behind its handshake.
func (d *door) Accept() (net.Conn, error) {
	select {
	case g := <-d.ready:
		return g, nil
	case <-d.end:
		return nil, net.ErrClosed
	}
}

// Close stops accepting and waits for handshakes under way.
func (d *door) Close() error {
	var err error
	d.once.Do(func() {
		close(d.end)
		err = d.Listener.Close()
		d.wg.Wait()
	})
	return err
}

type guestKey struct{}

// remember is a ConnContext.
func remember(ctx context.Context, c net.Conn) context.Context {
	if g, ok := c.(*guest); ok {
		return context.WithValue(ctx, guestKey{}, g)
	}
	return ctx
}

// judged finds out for each request anew who sends it: a certificate may end, and an authority be replaced, while a connection stands.
func (d *door) judged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g, ok := r.Context().Value(guestKey{}).(*guest)
		if !ok {
			refuse(w, &Fault{Status: http.StatusUnauthorized, Err: errors.New("no certificate was shown")})
			return
		}
		p, err := d.r.Who(g.chain)
		if err != nil {
			w.Header().Set("Connection", "close")
			refuse(w, &Fault{Status: http.StatusUnauthorized, Err: err})
			return
		}
		p.From = r.RemoteAddr
		next.ServeHTTP(w, r.WithContext(withPeer(r.Context(), func() Peer { return p })))
	})
}

// server serves the routes to who comes through the door.
func (d *door) server(routes http.Handler) *http.Server {
	// Browsers have certificates too, and send them along with what another site's page makes them ask for.
	safe := http.NewCrossOriginProtection().Handler(routes)
	return &http.Server{Handler: d.judged(safe), ConnContext: remember, ReadHeaderTimeout: d.lim.header, ReadTimeout: d.lim.body, WriteTimeout: d.lim.answer, IdleTimeout: d.lim.idle,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelWarn)}
}

// state is what status shows.
func (d *door) state() APIState {
	out := APIState{Listen: d.Addr().String(), Refused: map[string]uint64{}}
	for k, n := range d.refused {
		out.Refused[k] = n.Load()
	}
	if d.r.Until != nil {
		t := d.r.Until()
		out.Until = &t
	}
	d.mu.Lock()
	out.Connections = d.guests
	d.mu.Unlock()
	return out
}
