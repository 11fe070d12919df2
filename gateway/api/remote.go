package api

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
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

	// Changed is closed when Who may judge otherwise than before: connections that stand are judged again then, and every few seconds in any case. nil = only that.
	Changed func() <-chan struct{}
	Revoked func() int // clients that Who refuses although their certificates are good; nil = none
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
	again                        time.Duration // between two judgements of a connection that stands
}

var remoteLimits = limits{handshakes: 64, perSource: 16, connections: 256, tenants: 192, caller: 16,
	handshake: 5 * time.Second, header: 5 * time.Second, body: 30 * time.Second, answer: 2 * time.Minute, idle: 60 * time.Second, again: 5 * time.Second}

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
	stands  map[*guest]bool      // mu: connections behind their handshake
}

// guest is a connection behind its handshake.
type guest struct {
	*tls.Conn
	chain []*x509.Certificate
	leave func()

	life context.Context // ends, with the reason as its cause, when its certificate is good no more: streams end with it
	cut  context.CancelCauseFunc
	idle atomic.Bool // between two requests
}

// Close ends the connection and gives its place free.
func (g *guest) Close() error {
	g.leave()
	return g.Conn.Close()
}

// turn ends a guest whose certificate is good no more. What it has asked for is answered, but for streams, which could last for ever.
func (g *guest) turn(why error) {
	g.cut(why)
	if g.idle.Load() {
		g.Close()
	}
}

// turned is why a guest was cut; nil = it was not.
func (g *guest) turned() error { return context.Cause(g.life) }

// follows is a ConnState: it knows who waits for a request.
func follows(c net.Conn, s http.ConnState) {
	g, ok := c.(*guest)
	if !ok {
		return
	}
	g.idle.Store(s == http.StateIdle)
	if s == http.StateIdle && g.turned() != nil {
		g.Close()
	}
}

func openDoor(r *Remote, listen func(string) (net.Listener, error), lim limits, log *slog.Logger) (*door, error) {
	l, err := listen(r.Listen)
	if err != nil {
		return nil, err
	}
	d := &door{Listener: l, r: r, lim: lim, log: log, ready: make(chan *guest), end: make(chan struct{}), refused: map[string]*atomic.Uint64{}, shaking: map[netip.Prefix]int{}, inside: map[string]int{}, stands: map[*guest]bool{}}
	for _, k := range append([]string{KindBusy}, r.Kinds...) {
		d.refused[k] = new(atomic.Uint64)
	}
	d.wg.Go(d.answer)
	d.wg.Go(d.watch)
	return d, nil
}

// watch judges again who is inside: a certificate may be revoked or end, and an authority be replaced, while a stream runs.
func (d *door) watch() {
	t := time.NewTicker(d.lim.again)
	defer t.Stop()
	for {
		var changed <-chan struct{}
		if d.r.Changed != nil {
			changed = d.r.Changed()
		}
		d.judgeAll() // after Changed was asked for: a change in between is met by one of the two
		select {
		case <-changed:
		case <-t.C:
		case <-d.end:
			return
		}
	}
}

func (d *door) judgeAll() {
	d.mu.Lock()
	list := slices.Collect(maps.Keys(d.stands))
	d.mu.Unlock()
	for _, g := range list {
		if g.turned() != nil {
			continue
		}
		if _, err := d.r.Who(g.chain); err != nil {
			d.turnAway(g, d.r.Kind(err), err)
			g.turn(err)
		}
	}
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
		if p, err = d.r.Who(c.ConnectionState().PeerCertificates); err != nil {
			d.turnAway(raw, d.r.Kind(err), err)
			unauthorized(c, err)
			part(raw, 2*time.Second)
			return
		}
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
	g := &guest{Conn: c, chain: c.ConnectionState().PeerCertificates}
	g.life, g.cut = context.WithCancelCause(context.Background())
	g.leave = func() {
		leave()
		d.mu.Lock()
		delete(d.stands, g)
		d.mu.Unlock()
		g.cut(nil) // gives back what the context holds
	}
	d.mu.Lock()
	d.stands[g] = true
	d.mu.Unlock()
	select {
	case d.ready <- g:
	case <-d.end:
		g.Close()
	}
}

// unauthorized answers the first request of a client that TLS let in and Who does not, one that is revoked: no alert says why. The handshake's time bounds it.
func unauthorized(c *tls.Conn, why error) {
	lim := &io.LimitedReader{R: c, N: 16 << 10}
	if _, err := http.ReadRequest(bufio.NewReader(lim)); err != nil {
		return
	}
	b, err := json.Marshal(Error{Error: why.Error()})
	if err != nil {
		return
	}
	_, _ = fmt.Fprintf(c, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", http.StatusUnauthorized, http.StatusText(http.StatusUnauthorized), mediaJSON, len(b), b)
	_ = c.CloseWrite()
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

// untilTurned ends with a request, or with the right of who sent it; the cause says which.
func untilTurned(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	g, ok := ctx.Value(guestKey{}).(*guest)
	if !ok {
		return ctx, func() { cancel(nil) }
	}
	stop := context.AfterFunc(g.life, func() { cancel(g.turned()) })
	return ctx, func() { stop(); cancel(nil) }
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
			if g.turned() == nil {
				d.turnAway(g, d.r.Kind(err), err)
				g.turn(err)
			}
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
	return &http.Server{Handler: d.judged(safe), ConnContext: remember, ConnState: follows, ReadHeaderTimeout: d.lim.header, ReadTimeout: d.lim.body, WriteTimeout: d.lim.answer, IdleTimeout: d.lim.idle,
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
	if d.r.Revoked != nil {
		out.Revoked = d.r.Revoked()
	}
	d.mu.Lock()
	out.Connections = d.guests
	d.mu.Unlock()
	return out
}
