package cli

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"demarc/cluster"
	agreed "demarc/cluster/command"
)

// recover changes nothing by accident: not while the node runs, not without the cluster's id, and it says what it would do.
func TestRecover(t *testing.T) {
	data := t.TempDir()
	dir := filepath.Join(data, "cluster")
	open := func() *cluster.Node {
		t.Helper()
		began := time.Now()
		n, err := cluster.Open(cluster.Config{Dir: dir, Name: "gw1", Version: "test", Wall: time.Now, Mono: func() uint64 { return uint64(time.Since(began)) },
			Serve: func(context.Context, agreed.Revision, []byte) error { return nil }})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	run := func(args ...string) result {
		return call(t, t.Context(), "", append([]string{"cluster", "recover", "--data-dir", data}, args...)...)
	}
	if r := run(); r.code != exitFailed || !strings.Contains(r.err, "is no directory of a node's replicated state") {
		t.Errorf("an empty directory: exit %d, %s", r.code, r)
	}
	n := open()
	if _, err := n.Begin(t.Context(), cluster.First{Text: []byte("policy")}); err != nil {
		t.Fatal(err)
	}
	id := n.State().Cluster
	if r := run("--cluster-id", id); r.code != exitFailed || !strings.Contains(r.err, "another process uses it") {
		t.Errorf("while the node runs: exit %d, %s", r.code, r)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	r := run()
	for _, want := range []string{"cluster    " + id, "revision 1,", "to forget  nobody"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("without an id: no %q in %s", want, r)
		}
	}
	if r.code != exitUsage || !strings.Contains(r.err, "nothing was changed") || !strings.Contains(r.err, "--cluster-id "+id) {
		t.Errorf("without an id: exit %d, %s", r.code, r)
	}
	if r := run("--cluster-id", "another"); r.code != exitFailed || !strings.Contains(r.err, "nothing was changed") {
		t.Errorf("another cluster's id: exit %d, %s", r.code, r)
	}
	if r := run("--cluster-id", id); r.code != exitOK || !strings.Contains(r.out, "this node is the only member now") {
		t.Errorf("exit %d, %s", r.code, r)
	}
	n = open()
	defer n.Close()
	if _, err := n.Revise(t.Context(), cluster.Change{Text: []byte("after")}); err != nil {
		t.Fatal(err)
	}
	lines := n.State().Audit
	if l := lines[len(lines)-2]; l.Kind != agreed.KindRecover || !strings.HasPrefix(l.Who.Author, "uid ") {
		t.Errorf("audit: %+v", l)
	}
}
