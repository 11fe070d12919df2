package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"demarc/cluster/transport"
)

// far is a server over TCP with an authority of its own, and everybody who might come. It is what every test of this long file stands on, so they stand together.
type far struct {
	t      *testing.T
	s      *Server
	url    string
	ca     *transport.Authority
	dir    string // of node's keys
	log    *safeBuffer
	skew   atomic.Int64 // of the node's clock
	client map[string]string

	mu      sync.Mutex
	barred  string        // name of a client that is refused; "" = nobody
	changed chan struct{} // closed when that changes
}

// bar has a client refused from now on.
func (f *far) bar(name string) {
	f.mu.Lock()
	f.barred = name
	close(f.changed)
	f.changed = make(chan struct{})
	f.mu.Unlock()
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// tenants is a backend with two of them.
type tenants struct{ echo }

func (tenants) Status(context.Context, bool) (*Status, error) {
	return &Status{Node: "edge1", Ready: true, Broken: "of-beta", Tenants: []Tenant{{Name: "alpha", Sessions: 3}, {Name: "beta", Sessions: 7_777_777}}}, nil
}

func (tenants) Sessions(_ context.Context, f SessionFilter) (*Sessions, error) {
	switch f.Address {
	case "198.18.66.1":
		return nil, errors.New("worker 3 of beta's is late")
	case "198.18.77.1":
		return &Sessions{Sessions: []Session{{Tenant: f.Tenant, Src: strings.Repeat("x", 32<<20)}}}, nil // more than sockets hold
	}
	return &Sessions{Matched: 1, Sessions: []Session{{Tenant: f.Tenant, Src: "198.18.10.1:1"}, {Tenant: "beta", Src: "198.18.66.9:1"}}}, nil
}

func remote(t *testing.T, lim limits, b Backend) *far {
	t.Helper()
	f := &far{t: t, dir: t.TempDir(), log: new(safeBuffer), client: map[string]string{}, changed: make(chan struct{})}
	var err error
	now := func() time.Time { return time.Now().Add(time.Duration(f.skew.Load())) }
	if f.ca, err = transport.NewAuthority(filepath.Join(t.TempDir(), "ca"), "cluster", time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := f.ca.Issue(f.dir, "gw1", time.Now()); err != nil {
		t.Fatal(err)
	}
	keys, err := transport.OpenKeyring(f.dir, now, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := &Remote{Listen: "127.0.0.1:0", TLS: keys.ServeClients(), Until: func() time.Time { end, _ := keys.Expiry(); return end },
		Who: func(chain []*x509.Certificate) (Peer, error) {
			c, err := keys.Client(chain)
			f.mu.Lock()
			defer f.mu.Unlock()
			if err == nil && c.Name == f.barred {
				err = transport.Refuse(transport.RefusedRevoked, "%s was revoked", c.Name)
			}
			return Peer{Name: c.Name, Role: Role(c.Role), Tenant: c.Tenant}, err
		},
		Kind: func(err error) string { return string(transport.ClientRefusal(err)) },
		Changed: func() <-chan struct{} {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.changed
		}}
	for _, k := range transport.ClientRefusals {
		r.Kinds = append(r.Kinds, string(k))
	}
	old := remoteLimits
	remoteLimits = lim
	f.s, err = Listen(ServerConfig{Socket: filepath.Join(t.TempDir(), "s"), Remote: r, Backend: b, Handler: http.NotFoundHandler(), Log: slog.New(slog.NewTextHandler(f.log, nil))})
	remoteLimits = old
	if err != nil {
		t.Fatal(err)
	}
	f.url = "https://" + f.s.door.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run does not end")
		}
	})
	for name, c := range map[string]transport.Client{"alice": {Role: transport.RoleOperator}, "robert": {Role: transport.RoleReadOnly}, "anna": {Role: transport.RoleTenant, Tenant: "alpha"}} {
		c.Name = name
		f.issue(f.ca, name, c, 0, time.Now())
	}
	return f
}

func (f *far) issue(a *transport.Authority, dir string, c transport.Client, life time.Duration, now time.Time) {
	f.t.Helper()
	f.client[dir] = filepath.Join(f.t.TempDir(), dir)
	if _, err := a.IssueClient(f.client[dir], c, life, now); err != nil {
		f.t.Fatal(err)
	}
}

// as is a client with the keys of somebody.
func (f *far) as(name string) *Client {
	f.t.Helper()
	keys, err := transport.OpenClientKeys(f.client[name], time.Now)
	if err != nil {
		f.t.Fatal(err)
	}
	c, err := DialTLS(f.url, keys.TLS(), keys.Why)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(c.Close)
	return c
}

func (f *far) refused(kind transport.Refusal) uint64 { return f.s.State().Refused[string(kind)] }

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain: ", what)
		}
	}
}

// TestRoles asks for every route as every role, and compares with what the table promises.
func TestRoles(t *testing.T) {
	f := remote(t, remoteLimits, tenants{})
	for name, role := range map[string]Role{"alice": RoleOperator, "robert": RoleReadOnly, "anna": RoleTenant} {
		c := f.as(name)
		for _, rt := range routes {
			if !tenantsHave(rt) {
				continue
			}
			var body io.Reader = http.NoBody
			if rt.method == http.MethodPost {
				body = strings.NewReader("nonsense") // whoever may ask is told that it is nonsense
			}
			req := must(http.NewRequestWithContext(t.Context(), rt.method, c.base+rt.path, body))
			res, err := c.http.Do(req)
			if err != nil {
				t.Fatalf("%s: %s: %v", name, rt.path, err)
			}
			text, _ := io.ReadAll(res.Body)
			res.Body.Close()
			want := rt.least == RoleTenant || rt.least == RoleReadOnly && role != RoleTenant || role == RoleOperator
			if got := res.StatusCode != http.StatusForbidden; got != want {
				t.Errorf("%s %s %s: %s, want let in = %v: %s", name, rt.method, rt.path, res.Status, want, text)
			}
			if role == RoleTenant && rt.path != PathOpenAPI {
				for _, s := range []string{"of-beta", "7777777", "198.18.66."} {
					if bytes.Contains(text, []byte(s)) {
						t.Errorf("%s holds %s: %s", rt.path, s, text)
					}
				}
			}
		}
	}
	if n := f.s.State().Forbidden; n == 0 {
		t.Error("nothing was counted as forbidden")
	}
	var st Status
	if err := f.as("anna").Get(t.Context(), PathStatus, &st); err != nil || len(st.Tenants) != 1 || st.Tenants[0].Name != "alpha" || st.OnlyTenant != "alpha" {
		t.Errorf("%+v, %v", st, err)
	}
	// What goes wrong inside may name others: a tenant is told that it went wrong, the log has the rest.
	_, err := f.as("anna").Text(t.Context(), PathSessions+"?address=198.18.66.1")
	if err == nil || strings.Contains(err.Error(), "beta") || !strings.Contains(err.Error(), "the node cannot answer this now") || !strings.Contains(f.log.String(), "worker 3 of beta's is late") {
		t.Errorf("%v\n%s", err, f.log)
	}
	if _, err = f.as("anna").Text(t.Context(), PathSessions+"?tenant=beta"); err == nil || statusOf(err) != http.StatusForbidden {
		t.Errorf("another tenant's sessions: %v", err)
	}
	if _, err = f.as("robert").Text(t.Context(), PathSessions+"?address=198.18.66.1"); err == nil || !strings.Contains(err.Error(), "beta") {
		t.Errorf("who sees everything is told everything: %v", err)
	}
	if err = f.as("robert").Post(t.Context(), PathApply, ApplyRequest{}, nil); err == nil || !strings.Contains(err.Error(), `needs the role operator, and "robert" is read-only`) {
		t.Errorf("%v", err)
	}
	// Who changed something, and from where, stands in the log; what was sent does not.
	if err := f.as("alice").Post(t.Context(), PathApply, ApplyRequest{Policy: "# planted-secret"}, new(Applied)); err != nil {
		t.Error(err)
	}
	if err := f.as("alice").Post(t.Context(), PathBlock, map[string]any{"planted-secret": 1}, new(Blocked)); err == nil {
		t.Error("nonsense was taken")
	}
	for _, want := range []string{`msg="change asked for and carried out" by=alice from=127.0.0.1:`, `what=/v1/apply`, `msg="change refused" by=alice from=127.0.0.1:`, `what=/v1/block status=400`,
		`msg="request refused: the role is not enough" by=`} {
		if !strings.Contains(f.log.String(), want) {
			t.Errorf("the log lacks %s:\n%s", want, f.log)
		}
	}
	if n := strings.Count(f.log.String(), "the role is not enough"); n > 5 { // of some 25 within a second or so
		t.Errorf("%d lines about what was forbidden:\n%s", n, f.log)
	}
	if strings.Contains(f.log.String(), "planted-secret") {
		t.Errorf("the log holds what was sent:\n%s", f.log)
	}
}

func tenantsHave(rt *route) bool {
	for _, p := range []string{PathExplain, PathFollow, PathCapture, PathDropped} { // of a part that this backend has not
		if rt.path == p {
			return false
		}
	}
	return true
}

// TestPeerOfARequest: the backend is told the name in the certificate and the address, or who opened the socket.
func TestPeerOfARequest(t *testing.T) {
	seen := make(chan Peer, 1)
	f := remote(t, remoteLimits, watched{seen: seen})
	if err := f.as("alice").Get(t.Context(), PathDrops, new(Drops)); err != nil {
		t.Fatal(err)
	}
	if p := <-seen; p.Name != "alice" || p.Role != RoleOperator || !strings.HasPrefix(p.From, "127.0.0.1:") {
		t.Errorf("%+v", p)
	}
	c := Dial(f.s.cfg.Socket)
	defer c.Close()
	if err := c.Get(t.Context(), PathDrops, new(Drops)); err != nil {
		t.Fatal(err)
	}
	if p := <-seen; p.Name == "" || p.Role != RoleOperator || !strings.HasPrefix(p.From, "unix socket") {
		t.Errorf("%+v", p)
	}
	// A request that came no known way may do nothing.
	w := &recorder{head: http.Header{}}
	f.s.handler().ServeHTTP(w, must(http.NewRequest(http.MethodGet, PathOpenAPI, nil)))
	if w.status != http.StatusForbidden {
		t.Errorf("nobody was let in: %d", w.status)
	}
}

type watched struct {
	tenants
	seen chan Peer
}

func (w watched) Drops(ctx context.Context) (*Drops, error) {
	w.seen <- PeerOf(ctx)
	return &Drops{}, nil
}

type recorder struct {
	head   http.Header
	status int
}

func (r *recorder) Header() http.Header         { return r.head }
func (r *recorder) WriteHeader(n int)           { r.status = n }
func (r *recorder) Write(b []byte) (int, error) { return len(b), nil }

// TestStrangers: each is refused under its kind, told in plain words where our own client asks, and the log says so without its own flood.
func TestStrangers(t *testing.T) {
	f := remote(t, remoteLimits, tenants{})
	other, err := transport.NewAuthority(filepath.Join(t.TempDir(), "ca"), "cluster", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	someone := transport.Client{Name: "someone", Role: transport.RoleOperator}
	f.issue(f.ca, "expired", someone, time.Hour, time.Now().Add(-2*time.Hour))
	f.issue(f.ca, "early", someone, 0, time.Now().Add(48*time.Hour))
	f.issue(other, "foreign", someone, 0, time.Now())
	// foreign trusts our node, but comes with another authority's certificate.
	ca, err := os.ReadFile(filepath.Join(f.dir, transport.AuthorityCert))
	if err != nil {
		t.Fatal(err)
	}
	raw := func(dir, cert, key string) *tls.Config {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(ca)
		c := &tls.Config{RootCAs: pool, ServerName: "gw1"} // what other programs check: the authority, and the member's name as a host's
		if dir != "" {
			pair, err := tls.LoadX509KeyPair(filepath.Join(dir, cert), filepath.Join(dir, key))
			if err != nil {
				t.Fatal(err)
			}
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		}
		return c
	}
	get := func(conf *tls.Config) error {
		tr := &http.Transport{TLSClientConfig: conf}
		defer tr.CloseIdleConnections()
		res, err := (&http.Client{Transport: tr, Timeout: 5 * time.Second}).Get(f.url + PathStatus)
		if err == nil {
			res.Body.Close()
			err = fmt.Errorf("answered %s", res.Status)
		}
		return err
	}
	for range 5 { // the alert must arrive each time, whatever is first
		for _, c := range []struct {
			name string
			kind transport.Refusal
			conf *tls.Config
			says string
		}{
			{"none", transport.RefusedNoCertificate, raw("", "", ""), "certificate required"},
			{"foreign", transport.RefusedAuthority, raw(f.client["foreign"], transport.ClientCert, transport.ClientKey), "unknown certificate authority"},
			{"expired", transport.RefusedClock, raw(f.client["expired"], transport.ClientCert, transport.ClientKey), "expired certificate"},
			{"early", transport.RefusedClock, raw(f.client["early"], transport.ClientCert, transport.ClientKey), "expired certificate"},
			{"a member", transport.RefusedNotClient, raw(f.dir, transport.MemberCert, transport.MemberKey), "bad certificate"},
		} {
			before := f.refused(c.kind)
			if err := get(c.conf); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v, want %s", c.name, err, c.says)
			}
			eventually(t, c.name+" is counted", func() bool { return f.refused(c.kind) == before+1 })
		}
	}
	if err := get(raw(f.client["alice"], transport.ClientCert, transport.ClientKey)); err == nil || err.Error() != "answered 200 OK" {
		t.Errorf("another program with good keys: %v", err)
	}
	for name, want := range map[string]string{"expired": "client.crt is not valid now: it is valid from", "early": "or mend the clock that is off", "foreign": "is not of the authority in"} {
		if _, err := f.as(name).Text(t.Context(), PathStatus); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is told: %v", name, err)
		}
	}
	// Also in the middle of a large request, whose sending fails while the alert comes in.
	for range 20 {
		if err := f.as("expired").Post(t.Context(), PathApply, ApplyRequest{Policy: strings.Repeat("x", 1<<20)}, new(Applied)); err == nil || !strings.Contains(err.Error(), "client.crt is not valid now: it is valid from") {
			t.Errorf("told while it sends: %v", err)
		}
		// All of a small one may have been sent by then, and nobody has read it.
		if err := f.as("expired").Post(t.Context(), PathApply, ApplyRequest{}, new(Applied)); err == nil || strings.Contains(err.Error(), "took effect") {
			t.Errorf("what was refused at the door: %v", err)
		}
	}
	// Keys of another authority, whose owner has taken the cluster's ca.crt: refused here already.
	if err := os.WriteFile(filepath.Join(f.client["foreign"], transport.AuthorityCert), ca, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := transport.OpenClientKeys(f.client["foreign"], time.Now); err == nil || !strings.Contains(err.Error(), "is not signed by the authority") {
		t.Errorf("%v", err)
	}
	if n := strings.Count(f.log.String(), "connection to the interface refused"); n == 0 || n > 20 { // 48 refusals within a few seconds
		t.Errorf("%d lines:\n%s", n, f.log)
	}
	if c, err := DialTLS("https://127.0.0.1:1", &tls.Config{}, func(error) error { return nil }); err != nil {
		t.Error(err)
	} else if _, err := c.Text(t.Context(), PathStatus); err == nil || !strings.Contains(err.Error(), "nobody listens at https://127.0.0.1:1") {
		t.Errorf("%v", err)
	}
	for _, server := range []string{"", "192.0.2.1:7443", "http://192.0.2.1:7443", "https://192.0.2.1", "https://192.0.2.1:7443/v1", "https://a@192.0.2.1:7443"} {
		if _, err := DialTLS(server, nil, nil); err == nil || !strings.Contains(err.Error(), "want https://ADDRESS:PORT") {
			t.Errorf("%q: %v", server, err)
		}
	}
}

// TestPart: whoever is turned away in the middle of a sentence is not cut short by a reset, which would overtake what it was told.
func TestPart(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	go func() { part(s, 30*time.Second); close(over) }()
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("the end is not told: %v", err)
	}
	for range 1024 {
		if _, err := c.Write(make([]byte, 1<<10)); err != nil {
			t.Fatalf("cut short: %v", err)
		}
	}
	c.Close()
	<-over
	// And it does not wait for ever.
	if c, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if s, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	part(s, time.Millisecond)
}

// TestACertificateIsJudgedEachTime: on a connection that stands, one that has ended is refused at its next request, and one of an authority that was replaced.
func TestACertificateIsJudgedEachTime(t *testing.T) {
	f := remote(t, remoteLimits, tenants{})
	f.issue(f.ca, "short", transport.Client{Name: "short", Role: transport.RoleReadOnly}, time.Hour, time.Now())
	c, a := f.as("short"), f.as("alice")
	for _, c := range []*Client{c, a} {
		if _, err := c.Text(t.Context(), PathStatus); err != nil {
			t.Fatal(err)
		}
	}
	f.skew.Store(int64(2 * time.Hour))
	if _, err := c.Text(t.Context(), PathStatus); err == nil || statusOf(err) != http.StatusUnauthorized || !strings.Contains(err.Error(), "was valid until") {
		t.Errorf("after its end: %v", err)
	}
	if _, err := a.Text(t.Context(), PathStatus); err != nil {
		t.Errorf("another one: %v", err)
	}
	// The node moves to another authority.
	other, err := transport.NewAuthority(filepath.Join(t.TempDir(), "ca"), "cluster", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Issue(f.dir, "gw1", time.Now()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the old authority's client is refused", func() bool {
		_, err := a.Text(t.Context(), PathStatus)
		return err != nil && statusOf(err) == http.StatusUnauthorized && strings.Contains(err.Error(), "another authority")
	})
	f.issue(other, "new", transport.Client{Name: "new", Role: transport.RoleOperator}, 0, time.Now())
	if _, err := f.as("new").Text(t.Context(), PathStatus); err != nil {
		t.Errorf("the new authority's: %v", err)
	}
}

// lasting streams until it is told to end, and answers slowly what is no stream.
type lasting struct {
	streamer
	slow chan struct{}
}

func (l lasting) Sessions(ctx context.Context, f SessionFilter) (*Sessions, error) {
	l.slow <- struct{}{}
	<-l.slow
	return l.echo.Sessions(ctx, f)
}

// TestATurnedGuestIsCut: whose certificate is good no more loses a stream that runs, with the reason as its last line, and connections that wait; what it has asked for
// is answered. Others notice nothing.
func TestATurnedGuestIsCut(t *testing.T) {
	lim := remoteLimits
	lim.again = time.Hour // by the change alone; below by the time alone
	for name, by := range map[string]func(f *far){
		"a change": func(f *far) { f.bar("alice") },
		"the time": func(f *far) { f.skew.Store(int64(30 * time.Hour)) },
	} {
		t.Run(name, func(t *testing.T) {
			if name == "the time" {
				lim.again = 20 * time.Millisecond
			}
			b := lasting{streamer{gone: make(chan error, 2)}, make(chan struct{})}
			f := remote(t, lim, b)
			f.issue(f.ca, "alice", transport.Client{Name: "alice", Role: transport.RoleOperator}, 24*time.Hour, time.Now())
			var ends sync.WaitGroup
			why := make(chan string, 1)
			begun := make(chan struct{}, 2)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			follow := func(name string, end func(string)) {
				c := f.as(name)
				ends.Go(func() {
					err := c.Stream(ctx, PathFollow, TraceRequest{}, func(l *StreamLine) error {
						if l.Begin != nil {
							begun <- struct{}{}
						}
						if l.End != nil {
							end(l.End.Why)
						}
						return nil
					})
					if err != nil && ctx.Err() == nil {
						t.Errorf("%s: %v", name, err)
					}
				})
			}
			follow("alice", func(s string) { why <- s })
			f.issue(f.ca, "other", transport.Client{Name: "other", Role: transport.RoleOperator}, 0, time.Now())
			follow("other", func(s string) { t.Errorf("the other one's stream ends: %s", s) })
			<-begun
			<-begun
			idle := must(tls.Dial("tcp", f.s.door.Addr().String(), must(transport.OpenClientKeys(f.client["alice"], time.Now)).TLS()))
			defer idle.Close()
			if _, err := io.WriteString(idle, "GET "+PathDrops+" HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			if _, err := idle.Read(make([]byte, 64<<10)); err != nil {
				t.Fatal(err)
			}
			asked := make(chan error, 1)
			c := f.as("alice")
			go func() { asked <- c.Get(t.Context(), PathSessions, new(Sessions)) }()
			<-b.slow
			before := f.refused(transport.RefusedRevoked) + f.refused(transport.RefusedClock)
			by(f)
			select {
			case s := <-why:
				if !strings.Contains(s, "was revoked") && !strings.Contains(s, "was valid until") {
					t.Errorf("the stream ends with %q", s)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("the stream goes on")
			}
			_ = idle.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.Copy(io.Discard, idle); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("a connection that waits for a request is kept")
			}
			b.slow <- struct{}{}
			if err := <-asked; err != nil {
				t.Errorf("what was asked for before: %v", err)
			}
			eventually(t, "its connections are closed", func() bool { return f.s.State().Connections == 1 })
			if _, err := f.as("alice").Text(t.Context(), PathDrops); err == nil {
				t.Error("it comes in again")
			} else if f.barred != "" && (statusOf(err) != http.StatusUnauthorized || !strings.Contains(err.Error(), "alice was revoked")) {
				t.Errorf("on a new connection a client that is revoked is told %v", err)
			}
			eventually(t, "all three connections, and the one after, are counted", func() bool {
				return f.refused(transport.RefusedRevoked)+f.refused(transport.RefusedClock) == before+4
			})
			cancel()
			ends.Wait()
			if err := <-b.gone; err == nil {
				t.Error("the backend was not told")
			}
		})
	}
}

// TestBounds: what strangers and guests can take is bounded, and who has a right comes in beside them. Only the limit in time that a part is about is short
// there, each at a server of its own: another one would end what a busy machine is slow with.
func TestBounds(t *testing.T) {
	lim := remoteLimits
	lim.handshakes, lim.perSource, lim.connections, lim.tenants, lim.caller = 8, 4, 12, 6, 3
	lim.handshake, lim.header, lim.body, lim.answer = time.Minute, time.Minute, time.Minute, time.Minute
	server := func(t *testing.T, short func(l *limits)) *far {
		t.Helper()
		l := lim
		short(&l)
		return remote(t, l, tenants{})
	}
	dial := func(t *testing.T, f *far) net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", f.s.door.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	strangers := server(t, func(l *limits) { l.handshake = time.Second })
	t.Run("half open", func(t *testing.T) {
		f := strangers
		for range 10 {
			dial(t, f)
		}
		eventually(t, "those beyond four of one source are refused", func() bool { return f.s.State().Refused[KindBusy] == 6 })
		eventually(t, "a client comes in once the silent ones were given up", func() bool {
			c := f.as("alice")
			defer c.Close()
			_, err := c.Text(t.Context(), PathStatus)
			return err == nil
		})
		eventually(t, "the silent ones are counted", func() bool { return f.refused(transport.RefusedHandshake) >= 4 })
	})
	t.Run("garbage", func(t *testing.T) {
		f := strangers
		before := f.refused(transport.RefusedHandshake)
		for _, text := range []string{strings.Repeat("garbage", 10000), "\x16\x03\x01\xff\xff" + strings.Repeat("x", 1000), "\x16\x03\x01"} {
			c := dial(t, f)
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			_, _ = io.WriteString(c, text)
			_, _ = io.Copy(io.Discard, c) // until it is closed
			c.Close()
		}
		eventually(t, "all three are counted", func() bool { return f.refused(transport.RefusedHandshake) == before+3 })
		c := dial(t, server(t, func(*limits) {}))
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if b, _ := io.ReadAll(c); !bytes.Contains(b, []byte("this port speaks TLS: use https://")) {
			t.Errorf("plain HTTP is told %q", b)
		}
	})
	secure := func(t *testing.T, f *far, name string) (net.Conn, error) {
		c := tls.Client(dial(t, f), must(transport.OpenClientKeys(f.client[name], time.Now)).TLS())
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		return c, c.Handshake()
	}
	t.Run("slow and oversize", func(t *testing.T) {
		f := server(t, func(l *limits) { l.header, l.body = 500*time.Millisecond, time.Second })
		for name, text := range map[string]string{
			"half a header":   "GET /v1/status HTTP/1.1\r\nHost: x\r\nX: ",
			"half a body":     "POST /v1/apply HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
			"a large header":  "GET /v1/status HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n",
			"no HTTP":         strings.Repeat("\x00", 1000) + "\r\n\r\n",
			"HTTP/2 unasked":  "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
			"an endless path": "GET /" + strings.Repeat("a", 64<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n",
		} {
			c, err := secure(t, f, "alice")
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(c, text)
			b, err := io.ReadAll(c)
			if bytes.Contains(b, []byte("200 OK")) || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: %.200s, %v", name, b, err)
			}
			c.Close()
		}
		big := strings.NewReader(`{"policy":"` + strings.Repeat("x", 2*MaxPolicy) + `"}`)
		c := f.as("alice")
		if res, err := c.http.Post(c.base+PathApply, mediaJSON, big); err == nil {
			if res.Body.Close(); res.StatusCode != http.StatusBadRequest {
				t.Errorf("a body beyond all measure: %s", res.Status)
			}
		}
		c.Close()
	})
	t.Run("an answer that nobody reads", func(t *testing.T) {
		f := server(t, func(l *limits) { l.answer = 2 * time.Second })
		c, err := secure(t, f, "alice")
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the connection stands", func() bool { return f.s.State().Connections == 1 })
		if _, err := io.WriteString(c, "GET "+PathSessions+"?address=198.18.77.1 HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the connection is given up", func() bool { return f.s.State().Connections == 0 })
	})
	t.Run("connections", func(t *testing.T) {
		f := server(t, func(*limits) {})
		f.issue(f.ca, "anton", transport.Client{Name: "anton", Role: transport.RoleTenant, Tenant: "alpha"}, 0, time.Now())
		hold := func(name string) bool {
			c, err := secure(t, f, name)
			if err != nil {
				return false
			}
			if _, err = io.WriteString(c, "GET "+PathOpenAPI+" HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				return false
			}
			_, err = c.Read(make([]byte, 12))
			return err == nil
		}
		// Two certificates of one tenant are one tenant.
		for i := range 5 {
			if got, want := hold([]string{"anna", "anton"}[i%2]), i < 3; got != want {
				t.Errorf("connection %d of alpha: %v", i, got)
			}
		}
		for _, tenant := range []string{"beta", "gamma"} {
			f.issue(f.ca, tenant, transport.Client{Name: tenant, Role: transport.RoleTenant, Tenant: tenant}, 0, time.Now())
			for i := range 3 {
				if got, want := hold(tenant), tenant == "beta"; got != want { // tenants together have 6 of 12
					t.Errorf("connection %d of %s: %v", i, tenant, got)
				}
			}
		}
		for i := range 4 {
			if got, want := hold("alice"), i < 3; got != want {
				t.Errorf("connection %d of the operator: %v", i, got)
			}
		}
		if !hold("robert") {
			t.Error("another one finds no place")
		}
		if n := f.s.State().Connections; n != 10 {
			t.Errorf("%d connections are counted", n)
		}
	})
}

// TestAnotherSitesPage cannot have a browser change anything with the certificate that it holds.
func TestAnotherSitesPage(t *testing.T) {
	f := remote(t, remoteLimits, tenants{})
	c := f.as("alice")
	for origin, want := range map[string]int{"": http.StatusOK, "https://evil.example": http.StatusForbidden, "null": http.StatusForbidden} {
		req := must(http.NewRequestWithContext(t.Context(), http.MethodPost, c.base+PathApply, strings.NewReader("{}")))
		if origin != "" {
			req.Header.Set("Origin", origin)
		}
		res, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if res.Body.Close(); res.StatusCode != want {
			t.Errorf("origin %q: %s", origin, res.Status)
		}
	}
}
