package api

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// echo is a Backend that answers with what it was asked.
type echo struct{ fault error }

func (e echo) Status(_ context.Context, rules bool) (*Status, error) {
	s := &Status{Node: "n"}
	if rules {
		s.Tenants = []Tenant{{Rules: []RuleHits{{Name: "r"}}}}
	}
	return s, e.fault
}
func (e echo) Sessions(_ context.Context, f SessionFilter) (*Sessions, error) {
	return &Sessions{Total: f.Port, Matched: f.Limit, Sessions: []Session{{Tenant: f.Tenant, Src: f.Address, Proto: f.Proto}}}, e.fault
}
func (e echo) Drops(context.Context) (*Drops, error)           { return &Drops{Total: 7}, e.fault }
func (e echo) Routes(context.Context) (*Routes, error)         { return &Routes{}, e.fault }
func (e echo) Neighbours(context.Context) (*Neighbours, error) { return &Neighbours{}, e.fault }
func (e echo) Ports(context.Context) (*Ports, error)           { return &Ports{}, e.fault }
func (e echo) Policy(context.Context) ([]byte, error)          { return []byte("text\n"), e.fault }
func (e echo) Diff(_ context.Context, r DiffRequest) (*Diff, error) {
	return &Diff{Digest: r.Policy + "|" + r.Source}, e.fault
}
func (e echo) Apply(_ context.Context, r ApplyRequest) (*Applied, error) {
	return &Applied{Revision: Revision{Number: r.Expected}}, e.fault
}

func (e echo) Confirm(_ context.Context, r ConfirmRequest) (*Confirmed, error) {
	return &Confirmed{Revision: Revision{Number: r.Revision}}, e.fault
}
func (e echo) Rollback(_ context.Context, r RollbackRequest) (*Applied, error) {
	return &Applied{Revision: Revision{Number: r.To}, Confirm: r.Confirm}, e.fault
}
func (e echo) History(context.Context) (*History, error) {
	return &History{Cluster: "c", Revisions: []Past{{Revision: Revision{Number: 3}, From: "n", Fate: "expired"}}}, e.fault
}
func (e echo) Show(_ context.Context, n uint64) (*Shown, error) {
	return &Shown{Past: Past{Revision: Revision{Number: n}}, Policy: "p"}, e.fault
}
func (e echo) Audit(_ context.Context, after uint64) (*Audit, error) {
	return &Audit{Lines: []AuditLine{{Index: after + 4, What: "w"}}}, e.fault
}

// serve runs a server until the test ends. lacks is why the backend lacks something.
func serve(t *testing.T, b Backend, lacks ...string) (*Client, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	s, err := Listen(ServerConfig{Socket: path, Backend: b, Handler: http.NotFoundHandler(), Log: slog.New(slog.DiscardHandler), Lacks: strings.Join(lacks, "")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	c := Dial(path)
	t.Cleanup(func() {
		c.Close()
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
	return c, path
}

func TestEachPathReachesItsMethod(t *testing.T) {
	c, _ := serve(t, echo{})
	ctx := t.Context()
	var st Status
	if err := c.Get(ctx, PathStatus+"?rules=1", &st); err != nil || st.Node != "n" || len(st.Tenants) != 1 {
		t.Errorf("status: %+v, %v", st, err)
	}
	var se Sessions
	err := c.Get(ctx, PathSessions+"?tenant=a&address=192.0.2.0/24&port=53&proto=udp&limit=9", &se)
	want := Sessions{Total: 53, Matched: 9, Sessions: []Session{{Tenant: "a", Src: "192.0.2.0/24", Proto: "udp"}}}
	if d := cmp.Diff(want, se); err != nil || d != "" {
		t.Errorf("sessions: %v\n%s", err, d)
	}
	for _, p := range []string{PathDrops, PathRoutes, PathNeighbours, PathPorts} {
		var v map[string]any
		if err := c.Get(ctx, p, &v); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
	if b, err := c.Text(ctx, PathPolicy); err != nil || string(b) != "text\n" {
		t.Errorf("policy: %q, %v", b, err)
	}
	var d Diff
	if err := c.Post(ctx, PathDiff, DiffRequest{Policy: "p", Source: "s"}, &d); err != nil || d.Digest != "p|s" {
		t.Errorf("diff: %+v, %v", d, err)
	}
	var co Confirmed
	if err := c.Post(ctx, PathConfirm, ConfirmRequest{Revision: 6}, &co); err != nil || co.Revision.Number != 6 {
		t.Errorf("confirm: %+v, %v", co, err)
	}
	var back Applied
	if err := c.Post(ctx, PathRollback, RollbackRequest{To: 2, Confirm: 1.5}, &back); err != nil || back.Revision.Number != 2 || back.Confirm != 1.5 {
		t.Errorf("rollback: %+v, %v", back, err)
	}
	var h History
	if err := c.Get(ctx, PathHistory, &h); err != nil || len(h.Revisions) != 1 || h.Revisions[0].Number != 3 || h.Revisions[0].Fate != "expired" {
		t.Errorf("history: %+v, %v", h, err)
	}
	var sh Shown
	if err := c.Get(ctx, PathRevision+"?number=7", &sh); err != nil || sh.Number != 7 || sh.Policy != "p" {
		t.Errorf("show: %+v, %v", sh, err)
	}
	if err := c.Get(ctx, PathRevision, &sh); err != nil || sh.Number != 0 {
		t.Errorf("show the served one: %+v, %v", sh, err)
	}
	var au Audit
	if err := c.Get(ctx, PathAudit, &au); err != nil || len(au.Lines) != 1 || au.Lines[0].Index != 4 {
		t.Errorf("audit: %+v, %v", au, err)
	}
	if err := c.Get(ctx, PathAudit+"?after=5", &au); err != nil || au.Lines[0].Index != 9 {
		t.Errorf("audit after an index: %+v, %v", au, err)
	}
	var a Applied
	if err := c.Post(ctx, PathApply, ApplyRequest{Policy: strings.Repeat("x", MaxPolicy), Expected: 5}, &a); err != nil || a.Revision.Number != 5 {
		t.Errorf("apply of the largest policy: %+v, %v", a, err)
	}
}

func TestRefusals(t *testing.T) {
	c, path := serve(t, echo{fault: &Fault{Status: http.StatusConflict, Err: errors.New("conflict"), Problems: []Problem{{Line: 3, Text: "f:3: no"}}}})
	var f *Fault
	err := c.Get(t.Context(), PathStatus, new(Status))
	if !errors.As(err, &f) || f.Status != http.StatusConflict || len(f.Problems) != 1 || f.Problems[0].Line != 3 {
		t.Errorf("a fault came over as %#v", err)
	}
	for _, q := range []string{"?port=x", "?limit=-1"} {
		if err := c.Get(t.Context(), PathSessions+q, new(Sessions)); !errors.As(err, &f) || f.Status != http.StatusBadRequest {
			t.Errorf("%s: %v", q, err)
		}
	}
	for _, q := range []string{"?number=x", "?number=-1", "?nummer=1"} {
		if err := c.Get(t.Context(), PathRevision+q, new(Shown)); !errors.As(err, &f) || f.Status != http.StatusBadRequest {
			t.Errorf("%s: %v", q, err)
		}
	}
	raw := func(body string) (int, string) {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		h := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}}
		res, err := h.Post("http://x"+PathDiff, "application/json", strings.NewReader(body))
		if err != nil {
			return 0, err.Error()
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(b)
	}
	for _, body := range []string{"", "null garbage", `{"policy":1}`, `{"polcy":"x"}`, `{"policy":"` + strings.Repeat("x", 2*MaxPolicy) + `"}`} {
		if code, text := raw(body); code != http.StatusBadRequest || !strings.Contains(text, "request body") {
			t.Errorf("%.20q: %d %.100s", body, code, text)
		}
	}
	if err := c.Get(t.Context(), "/v1/nothing", new(Status)); !errors.As(err, &f) || f.Status != http.StatusNotFound {
		t.Errorf("unknown path: %v", err)
	}
}

func TestSocketIsTakenOverOnlyWhenNobodyServesIt(t *testing.T) {
	_, path := serve(t, echo{})
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the socket: %v, %v", info.Mode(), err)
	}
	if _, err := Listen(ServerConfig{Socket: path, Backend: echo{}, Handler: http.NotFoundHandler()}); err == nil || !strings.Contains(err.Error(), "another demarc serves it") {
		t.Errorf("second server: %v", err)
	}
	stale := filepath.Join(t.TempDir(), "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	s, err := Listen(ServerConfig{Socket: stale, Backend: echo{}, Handler: http.NotFoundHandler()})
	if err != nil {
		t.Fatalf("stale socket: %v", err)
	}
	s.unix.Close()
	if err := Dial(filepath.Join(t.TempDir(), "none")).Get(t.Context(), PathStatus, new(Status)); err == nil || !strings.Contains(err.Error(), "no demarc runs here") {
		t.Errorf("no node: %v", err)
	}
}

func TestSessionFilter(t *testing.T) {
	for _, c := range []struct {
		f     SessionFilter
		want  string // of the error; "" = none
		proto int
		net   string
	}{
		{f: SessionFilter{}, proto: -1, net: "invalid Prefix"},
		{f: SessionFilter{Proto: "TCP", Address: "192.0.2.1"}, proto: 6, net: "192.0.2.1/32"},
		{f: SessionFilter{Proto: "icmpv6", Address: "2001:db8::/64", Port: 65535}, proto: 58, net: "2001:db8::/64"},
		{f: SessionFilter{Proto: "47", Address: "2001:db8::1"}, proto: 47, net: "2001:db8::1/128"},
		{f: SessionFilter{Proto: "foo"}, want: `proto "foo" is none of`},
		{f: SessionFilter{Proto: "256"}, want: `proto "256" is none of`},
		{f: SessionFilter{Address: "here"}, want: `address "here" is neither`},
		{f: SessionFilter{Address: "10.0.0.5/24"}, want: "address 10.0.0.5/24 has bits beyond its length: did you mean 10.0.0.0/24 or 10.0.0.5?"},
		{f: SessionFilter{Port: 65536}, want: "port 65536"},
		{f: SessionFilter{Port: -1}, want: "port -1"},
	} {
		err := c.f.Check()
		proto, _ := c.f.Protocol()
		net, _ := c.f.Prefix()
		switch {
		case c.want == "" && (err != nil || proto != c.proto || net.String() != c.net):
			t.Errorf("%+v: %v, %d, %s", c.f, err, proto, net)
		case c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), c.want)):
			t.Errorf("%+v: %v, want %s", c.f, err, c.want)
		}
	}
}

// TestTheSocketIsBounded: connections that say nothing take so many places, and for so long; who comes then is served.
func TestTheSocketIsBounded(t *testing.T) {
	c, path := serve(t, echo{})
	for range localConns + 44 {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if err := c.Get(t.Context(), PathStatus, new(Status)); err == nil {
		t.Error("there is a place beyond the bound")
	}
	eventually(t, "the silent ones are given up", func() bool { return c.Get(t.Context(), PathStatus, new(Status)) == nil })
}
