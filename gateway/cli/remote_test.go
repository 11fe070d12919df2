package cli

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"demarc/cluster/transport"
	"demarc/gateway/api"
)

// serveTLS makes f answer over TCP too, until the test ends, and returns its address and the directory of its authority.
func serveTLS(t *testing.T, f *fake) (server, ca string) {
	t.Helper()
	f.status, f.sessions = []*api.Status{someStatus()}, []*api.Sessions{{Total: 14, Matched: 3, Sessions: someSessions()}}
	ca = filepath.Join(t.TempDir(), "ca")
	a, err := transport.NewAuthority(ca, "cluster", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := a.Issue(dir, "gw1", time.Now()); err != nil {
		t.Fatal(err)
	}
	keys, err := transport.OpenKeyring(dir, time.Now, nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") // for a port that is free
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	s, err := api.Listen(api.ServerConfig{Socket: filepath.Join(t.TempDir(), "s"), Backend: f, Handler: http.NotFoundHandler(), Remote: &api.Remote{Listen: address, TLS: keys.ServeClients(),
		Who: func(chain []*x509.Certificate) (api.Peer, error) {
			c, err := keys.Client(chain)
			return api.Peer{Name: c.Name, Role: api.Role(c.Role), Tenant: c.Tenant}, err
		},
		Kind: func(err error) string { return string(transport.ClientRefusal(err)) }, Kinds: []string{"handshake"}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return "https://" + address, ca
}

// TestANodeElsewhere: the same commands over TCP, with keys that cluster client has made.
func TestANodeElsewhere(t *testing.T) {
	f := &fake{}
	server, ca := serveTLS(t, f)
	keys := func(name, role string) string {
		t.Helper()
		out := filepath.Join(t.TempDir(), name)
		r := call(t, t.Context(), "", "cluster", "client", name, "--role", role, "--ca", ca, "--out", out, "--json")
		var m madeClient
		if r.code != exitOK || json.Unmarshal([]byte(r.out), &m) != nil || m.Name != name || len(m.Files) != 3 || time.Until(m.Until) < 364*24*time.Hour {
			t.Fatalf("exit %d, %s", r.code, r)
		}
		return out
	}
	alice, noc, portal := keys("alice", "operator"), keys("noc", "read-only"), keys("portal", "tenant=alpha")
	golden(t, "status", call(t, t.Context(), "", "status", "--server", server, "--keys", noc).out)
	golden(t, "status-tenant", call(t, t.Context(), "", "status", "--server", server, "--keys", portal).out)
	if r := call(t, t.Context(), "", "sessions", "--server", server, "--keys", portal); r.code != exitOK || strings.Contains(r.out, "beta") || !strings.Contains(r.out, "alpha") {
		t.Errorf("exit %d, %s", r.code, r)
	}
	if r := call(t, t.Context(), "new", "apply", "-", "--server", server, "--keys", alice); r.code != exitOK || f.apply.Policy != "new" {
		t.Errorf("exit %d, %s", r.code, r)
	}
	if r := call(t, t.Context(), "other", "apply", "-", "--server", server, "--keys", noc); r.code != exitFailed || f.apply.Policy != "new" || r.err != "demarc: POST /v1/apply needs the role operator, and \"noc\" is read-only\n" {
		t.Errorf("exit %d, %s", r.code, r)
	}
	t.Setenv(serverEnv, server)
	t.Setenv(keysEnv, alice)
	if r := call(t, t.Context(), "", "policy"); r.code != exitOK || !strings.HasPrefix(r.out, "schema = 1") {
		t.Errorf("from the environment: exit %d, %s", r.code, r)
	}
	// What is said counts more than the environment.
	local := serve(t, &fake{})
	if r := call(t, t.Context(), "x", "apply", "-", "--socket", local); r.code != exitOK || f.apply.Policy != "new" {
		t.Errorf("exit %d, %s, the node elsewhere got %q", r.code, r, f.apply.Policy)
	}
	t.Setenv(socketEnv, local)
	if r := call(t, t.Context(), "", "policy"); r.code != exitUsage || !strings.Contains(r.err, "which node is meant?") {
		t.Errorf("both in the environment: exit %d, %s", r.code, r)
	}
	if r := call(t, t.Context(), "", "policy", "--server", server); r.code != exitOK {
		t.Errorf("exit %d, %s", r.code, r)
	}
	t.Setenv(socketEnv, "")
	t.Setenv(serverEnv, "")
	t.Setenv(keysEnv, "")

	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"both":             {[]string{"--server", server, "--keys", alice, "--socket", local}, exitUsage, "which node is meant?"},
		"no keys":          {[]string{"--server", server}, exitUsage, "without --keys"},
		"no address":       {[]string{"--server", "gw1", "--keys", alice}, exitUsage, "want https://ADDRESS:PORT"},
		"no such keys":     {[]string{"--server", server, "--keys", "/nowhere"}, exitFailed, "/nowhere/ca.crt"},
		"nobody there":     {[]string{"--server", "https://127.0.0.1:1", "--keys", alice}, exitFailed, "nobody listens at https://127.0.0.1:1"},
		"the node's dir":   {[]string{"--server", server, "--keys", ca}, exitFailed, "demarc cluster client"},
		"a socket's value": {[]string{"--server", "/run/demarc.sock", "--keys", alice}, exitUsage, "want https://ADDRESS:PORT"},
	} {
		if r := call(t, t.Context(), "", append([]string{"policy"}, c.args...)...); r.code != c.code || r.out != "" || !strings.Contains(r.err, c.says) {
			t.Errorf("%s: exit %d, %s", name, r.code, r)
		}
	}
}

// TestSupportOfANodeElsewhere has nothing of this machine in it.
func TestSupportOfANodeElsewhere(t *testing.T) {
	server, ca := serveTLS(t, &fake{})
	a, err := transport.OpenAuthority(ca)
	if err != nil {
		t.Fatal(err)
	}
	keys, out := t.TempDir(), filepath.Join(t.TempDir(), "x.tar.gz")
	if _, err := a.IssueClient(keys, transport.Client{Name: "alice", Role: transport.RoleOperator}, 0, time.Now()); err != nil {
		t.Fatal(err)
	}
	r := call(t, t.Context(), "", "support", "-o", out, "--server", server, "--keys", keys)
	if r.code != exitOK || !strings.Contains(r.out, "missing: machine, doctor.txt, what is on disk: the node is not this machine") {
		t.Errorf("exit %d, %s", r.code, r)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	got := untar(t, data)
	if got["status.json"] == "" || got["node.toml"] == "" {
		t.Errorf("it lacks what the node knows: %s", r)
	}
	for name := range got {
		if strings.HasPrefix(name, "machine") || name == "doctor.txt" {
			t.Errorf("%s is of this machine", name)
		}
	}
}

func TestClusterClientRefusals(t *testing.T) {
	ca, out := filepath.Join(t.TempDir(), "ca"), filepath.Join(t.TempDir(), "out")
	if _, err := transport.NewAuthority(ca, "cluster", time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{}, exitUsage, "it needs an argument"},
		{[]string{"x", "--ca", ca, "--out", out}, exitUsage, "--role is missing"},
		{[]string{"x", "--role", "operator", "--out", out}, exitUsage, "--ca is missing"},
		{[]string{"x", "--role", "operator", "--ca", ca}, exitUsage, "--out is missing"},
		{[]string{"x", "--role", "admin", "--ca", ca, "--out", out}, exitUsage, "want operator, read-only or tenant=NAME"},
		{[]string{"x", "--role", "tenant", "--ca", ca, "--out", out}, exitUsage, "tenant=NAME"},
		{[]string{"x", "--role", "operator", "--ca", ca, "--out", out, "--days", "0"}, exitUsage, "want 1 to 3650"},
		{[]string{"", "--role", "operator", "--ca", ca, "--out", out}, exitFailed, "1 to 64 bytes"},
		{[]string{"x", "--role", "operator", "--ca", "/nowhere", "--out", out}, exitFailed, "/nowhere"},
	} {
		r := call(t, t.Context(), "", append([]string{"cluster", "client"}, c.args...)...)
		if r.code != c.code || r.out != "" || !strings.Contains(r.err, c.says) {
			t.Errorf("%v: exit %d, %s", c.args, r.code, r)
		}
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("something was written")
	}
	if r := call(t, t.Context(), "", "cluster", "client", "x", "--role", "tenant=alpha", "--ca", ca, "--out", out, "--days", "7"); r.code != exitOK || !strings.HasPrefix(r.out, "x (tenant alpha), valid until ") || !strings.Contains(r.out, "demarc --server https://ADDRESS:PORT --keys "+out+" status") {
		t.Errorf("exit %d, %s", r.code, r)
	}
}
