package cli

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"demarc/cluster/transport"
	"demarc/gateway/api"
)

func TestClusterMembersAre(t *testing.T) {
	socket := serve(t, &fake{})
	run := func(args ...string) result {
		return call(t, t.Context(), "", append([]string{"--socket", socket}, args...)...)
	}
	golden(t, "members", run("cluster", "members").out)
	golden(t, "keep", run("cluster", "keep").out)
	if r := run("cluster", "init"); r.code != exitOK || !strings.Contains(r.out, "cluster 8e4c0a7d, 3 members, reachable at 192.0.2.1:7400") {
		t.Error(r)
	}
}

func TestClusterChanges(t *testing.T) {
	f := &fake{}
	socket := serve(t, f)
	run := func(args ...string) result {
		return call(t, t.Context(), "", append([]string{"--socket", socket}, args...)...)
	}
	// A token alone on standard output, so that it can be read into a variable.
	if r := run("cluster", "token", "--role", "witness", "--for", "10m"); r.code != exitOK || r.out != "demarc-abc\n" || !strings.Contains(r.err, "for one witness, until 2026-03-04 12:00:00 UTC: ") {
		t.Error(r)
	}
	if len(f.acted.tokens) != 1 || f.acted.tokens[0] != (api.TokenRequest{Role: "witness", Seconds: 600}) {
		t.Errorf("%+v", f.acted.tokens)
	}
	for _, args := range [][]string{{"token", "--role", "arbiter"}, {"token", "--for", "0s"}, {"token", "--for", "200h"}, {"remove"}, {"join"}, {"join", "192.0.2.1:7400"}, {"unheard"}, {},
		{"join", "192.0.2.1", "--node", "x", "--token", "y"}, {"cert", "a/b"}, {"replace", "gw2"}, {"keep", "--revisions", "0"}, {"keep", "--days", "-1"}, {"keep", "9"}} {
		if r := run(append([]string{"cluster"}, args...)...); r.code == exitOK || r.code == exitFailed && args[0] != "join" {
			t.Errorf("%v: %v", args, r)
		}
	}
	if r := run("cluster", "remove", "wit"); r.code != exitFailed || !strings.Contains(r.err, "edge2 does not answer") {
		t.Error(r)
	}
	for _, verb := range []string{"remove", "promote", "lead"} {
		if r := run("cluster", verb, "edge2"); r.code != exitOK || !strings.Contains(r.out, "edge2 ") || !strings.Contains(r.out, "wit leads") {
			t.Error(r)
		}
	}
	if r := run("cluster", "keep", "--revisions", "50", "--days", "7", "--text", "64", "--audit", "500"); r.code != exitOK || !strings.Contains(r.out, "revisions") {
		t.Error(r)
	}
	if want := []api.KeepRequest{{Bounds: api.Bounds{Revisions: 50, Seconds: 7 * 86400, TextBytes: 64 << 20, Audit: 500}}}; !slices.Equal(f.acted.kept, want) {
		t.Errorf("%+v, want %+v", f.acted.kept, want)
	}
	if r := run("cluster", "leave"); r.code != exitFailed || !strings.Contains(r.err, "say --yes") {
		t.Error(r)
	}
	if r := run("cluster", "leave", "--yes"); r.code != exitOK || !strings.Contains(r.out, "edge1 has left and goes on serving revision 7") || !strings.Contains(r.out, "mv /var/lib/demarc/cluster") {
		t.Error(r)
	}
	if want := []string{"remove wit", "remove edge2", "promote edge2", "lead edge2", "leave edge1"}; !slices.Equal(f.acted.members, want) {
		t.Errorf("%q, want %q", f.acted.members, want)
	}
}

// TestClusterRevoke: by name and by certificate, and what is no client's.
func TestClusterRevoke(t *testing.T) {
	f := &fake{}
	socket, dir := serve(t, f), t.TempDir()
	ca, err := transport.NewAuthority(filepath.Join(dir, "ca"), "x", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.IssueClient(filepath.Join(dir, "al"), transport.Client{Name: "al", Role: transport.RoleReadOnly}, 0, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := ca.Issue(filepath.Join(dir, "gw1"), "gw1", time.Now()); err != nil {
		t.Fatal(err)
	}
	cert := filepath.Join(dir, "al", transport.ClientCert)
	_, key, err := transport.ReadClient(cert)
	if err != nil || len(key) != 64 {
		t.Fatal(key, err)
	}
	run := func(args ...string) result {
		return call(t, t.Context(), "", append([]string{"--socket", socket, "cluster", "revoke"}, args...)...)
	}
	if r := run("al", "--why", "has left"); r.code != exitOK || !strings.Contains(r.out, "every certificate of al is refused from now on") || !strings.Contains(r.out, "edge2 may not know it yet: no answer in time") ||
		!strings.Contains(r.out, "has left") {
		t.Error(r)
	}
	if r := run("--cert", cert); r.code != exitOK || !strings.Contains(r.out, "the certificate of al in "+cert+" is refused from now on") || !strings.Contains(r.out, key) {
		t.Error(r)
	}
	if r := run("al", "--cert", cert, "--undo"); r.code != exitOK || !strings.Contains(r.out, "is let in again") {
		t.Error(r)
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{nil, exitUsage, "name a client"},
		{[]string{"robert", "--cert", cert}, exitUsage, "is a certificate of al, not of robert"},
		{[]string{"--cert", filepath.Join(dir, "none")}, exitFailed, "no such file"},
		{[]string{"--cert", filepath.Join(dir, "gw1", transport.MemberCert)}, exitFailed, "it is a member's"},
	} {
		if r := run(c.args...); r.code != c.code || !strings.Contains(r.err, c.want) {
			t.Errorf("%v: %v", c.args, r)
		}
	}
	if want := []api.RevokeRequest{{Client: "al", Why: "has left"}, {Client: "al", Key: key}, {Client: "al", Key: key, Undo: true}}; !slices.Equal(f.acted.revoked, want) {
		t.Errorf("%+v, want %+v", f.acted.revoked, want)
	}
}

// TestStatusOfAWitness is what it has, and nothing about packets.
func TestStatusOfAWitness(t *testing.T) {
	var b strings.Builder
	writeStatus(&b, &api.Status{Node: "wit", Role: "witness", Version: "v0.1", Uptime: 5, Ready: true, Revision: api.Revision{Number: 4, Source: "p.toml", Digest: "sha256:00"},
		Cluster: api.Cluster{State: api.ClusterCurrent, Leader: "wit", Leads: true, Revision: 4, Confirmed: 4, Members: make([]api.Member, 3)},
		API:     api.APIState{Listen: "192.0.2.3:7443", Revoked: 2}}, nil)
	text := b.String()
	for _, want := range []string{"node      wit, demarc v0.1, up 5s, a witness\n", "policy    revision 4 from p.toml", "this node leads, revision 4 is agreed on", "2 clients revoked"} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
	for _, not := range []string{"WORKER", "next hops", "frames", "forwarding"} {
		if strings.Contains(text, not) {
			t.Errorf("has %q:\n%s", not, text)
		}
	}
}

// TestClusterKeys: an authority, certificates of it, and what stands in the way.
func TestClusterKeys(t *testing.T) {
	dir := t.TempDir()
	ca, out := filepath.Join(dir, "ca"), filepath.Join(dir, "out")
	run := func(args ...string) result { return call(t, t.Context(), "", args...) }
	if r := run("cluster", "cert", "gw1", "--ca", ca, "--out", out); r.code != exitFailed || !strings.Contains(r.err, "`demarc cluster ca` makes one") {
		t.Error(r)
	}
	if r := run("cluster", "ca", "--dir", ca); r.code != exitOK {
		t.Error(r)
	}
	if r := run("cluster", "ca", "--dir", ca); r.code != exitFailed || !strings.Contains(r.err, "is there already") {
		t.Error(r)
	}
	if r := run("cluster", "cert", "gw1", "gw2", "--ca", ca, "--out", out); r.code != exitOK || strings.Count(r.out, "certificate until") != 2 {
		t.Error(r)
	}
	for _, name := range []string{"gw1", "gw2"} {
		if st, err := os.Stat(filepath.Join(out, name, transport.MemberKey)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	node := filepath.Join(dir, "node.toml")
	write := func(cluster string) {
		t.Helper()
		text := fmt.Sprintf("schema = 1\nname = \"gw1\"\ndata_dir = %q\n%s", filepath.Join(dir, "data"), cluster)
		if !strings.Contains(cluster, "witness") {
			text += "[[port]]\ndevice = \"eth0\"\n[[interface]]\nname = \"wan\"\nport = \"eth0\"\naddresses = [\"198.18.0.1/24\"]\n"
		}
		if err := os.WriteFile(node, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	l.Close()
	join := func() result { return run("cluster", "join", nobody, "--node", node, "--token", "demarc-x") }
	write("")
	if r := join(); r.code != exitFailed || !strings.Contains(r.err, "has no [cluster] section") {
		t.Error(r)
	}
	write(fmt.Sprintf("[cluster]\nlisten = \"192.0.2.1:7400\"\nkeys = %q\n", filepath.Join(dir, "nowhere")))
	if r := join(); r.code != exitFailed || !strings.Contains(r.err, "make them with `demarc cluster cert gw1`") {
		t.Error(r)
	}
	write(fmt.Sprintf("[cluster]\nlisten = \"192.0.2.1:7400\"\nkeys = %q\n", filepath.Join(out, "gw2")))
	if r := join(); r.code != exitFailed || !strings.Contains(r.err, "is gw2's, the node file says that this node is gw1") {
		t.Error(r)
	}
	write(fmt.Sprintf("[cluster]\nlisten = \"192.0.2.1:7400\"\nkeys = %q\n", filepath.Join(out, "gw1")))
	if r := join(); r.code != exitFailed || !strings.Contains(r.err, "no member answers at "+nobody) {
		t.Error(r)
	}
	if r := run("witness", "--node", node); r.code != exitFailed || !strings.Contains(r.err, "is a gateway's: start it with `demarc run --node "+node) {
		t.Error(r)
	}
	write(fmt.Sprintf("[cluster]\nlisten = \"127.0.0.1:0\"\nrole = \"witness\"\nkeys = %q\n", filepath.Join(out, "gw1")))
	if r := run("witness", "--node", node); r.code != exitFailed || !strings.Contains(r.err, "is not an address and port") {
		t.Error(r)
	}
	write(fmt.Sprintf("[cluster]\nlisten = %q\nrole = \"witness\"\nkeys = %q\n", nobody, filepath.Join(out, "gw1")))
	if r := run("witness", "--node", node); r.code != exitFailed || !strings.Contains(r.err, "belongs to no cluster yet") {
		t.Error(r)
	}
	if r := run("run", "--node", node); r.code != exitFailed || !strings.Contains(r.err, "is a witness's: start it with `demarc witness --node "+node) {
		t.Error(r)
	}
}

// TestApplyOnSeveral: who serves it, who does not, and why.
func TestApplyOnSeveral(t *testing.T) {
	var b strings.Builder
	writeNodes(&b, []api.Serves{{Node: "gw1"}})
	if b.Len() != 0 {
		t.Errorf("alone: %s", b.String())
	}
	writeNodes(&b, []api.Serves{{Node: "gw1"}, {Node: "gw2", Why: "not reached: no answer in time", Later: true}, {Node: "gw3"}, {Node: "gw4", Why: "it does not fit", Problems: []string{"p.toml:3: x"}}})
	want := "gw1 and gw3 serve it\ngw2 does not serve it yet: not reached: no answer in time; it compiles it when it is back\ngw4 does not serve it yet: it does not fit\n  p.toml:3: x\n"
	if b.String() != want {
		t.Errorf("%s", b.String())
	}
}

// TestDiffOnSeveral: what a policy would end on other gateways, and which of them could not serve it.
func TestDiffOnSeveral(t *testing.T) {
	var b strings.Builder
	writeDiff(&b, &api.Diff{Same: true, Nodes: []api.Elsewhere{{Node: "gw2", Cut: 3, Checked: 40, CutByTenant: map[string]int{"a": 3}}, {Node: "gw3", Why: "no answer in time"},
		{Node: "gw4", Problems: []string{"p.toml:3: x"}}}})
	want := "on gw2 3 sessions of 40 would be cut: a 3\ngw3 could not be asked: no answer in time\ngw4 could not serve it:\n  p.toml:3: x\n"
	if !strings.HasSuffix(b.String(), want) {
		t.Errorf("%s", b.String())
	}
}
