package e2e

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
)

// large writes a policy that takes about a megabyte wherever it is kept: nothing that becomes small when it is packed.
func (r *trio) large(name string) string {
	r.t.Helper()
	dice := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{byte(len(name))}).Read(dice)
	file := filepath.Join(r.dir, name+".toml")
	check(r.t, os.WriteFile(file, fmt.Appendf(nil, clusterPolicy+"# %s\n", name, base64.StdEncoding.EncodeToString(dice)), 0o644))
	return file
}

// cluster is where a machine keeps the replicated state.
func (m *machine) cluster() string { return filepath.Join(m.dir, "data", "cluster") }

// snapshots are the files of a machine's snapshots.
func (m *machine) snapshots() []string {
	list, err := filepath.Glob(filepath.Join(m.cluster(), "snapshots", "*-*", "state.bin"))
	check(m.trio.t, err)
	return list
}

// aside moves a machine's replicated state away.
func (m *machine) aside() {
	m.trio.t.Helper()
	check(m.trio.t, os.Rename(m.cluster(), m.cluster()+".old"))
}

// anew is docs/recovery.md: the machine, which does not run, becomes a member again, as a new one with an empty directory.
func (m *machine) anew(by *machine) {
	m.trio.t.Helper()
	m.aside()
	by.must("cluster", "remove", m.name)
	m.enter(by, "")
}

// damaged starts a gateway with damaged files, waits until it serves and names the file, and holds it to its packets.
func (m *machine) damaged(s *steady, file string) {
	r := m.trio
	r.t.Helper()
	m.launch() // it is not ready as a member
	r.eventually(20*time.Second, m.name+" serves and names "+file, func() (bool, string) {
		st := new(api.Status)
		err := m.client.Get(r.t.Context(), api.PathStatus, st)
		c := st.Cluster
		return err == nil && st.Ready && c.State == api.ClusterClosed && strings.Contains(c.Problem, "is damaged") && strings.Contains(c.Problem, file), fmt.Sprintf("%v %+v", err, c)
	})
	if said := m.p.lastLines(25); !strings.Contains(said, "the replicated state cannot be opened") {
		r.t.Errorf("its log does not say so: %s", said)
	}
	ping := m.stream("300ms")
	s.more("while "+file+" of "+m.name+" is damaged", 1, 20*time.Second)
	if p := ping(); p.Received != p.Sent {
		r.t.Errorf("%d of %d packets came back through the gateway whose %s is damaged", p.Received, p.Sent, file)
	}
	check(r.t, r.end(m.p, unix.SIGTERM))
}

// TestClusterDamage: a log that ends in the middle, a snapshot with another bit, a log with other bits. Each is named with its file, by the node and its log; the witness, which has
// nothing to serve, ends; the gateway serves; the others go on, and from them both come back as docs/recovery.md says.
func TestClusterDamage(t *testing.T) {
	mostlyWaits(t)
	r := newTrio(t)
	gw1, gw2, wit := r.begin()
	for i := range 20 { // until every member has shortened its log behind a snapshot: what is in that is nowhere else then
		gw1.must("apply", r.large("large"+strings.Repeat("-", i)))
		if i >= 2 && len(gw1.snapshots())*len(gw2.snapshots())*len(wit.snapshots()) > 0 {
			break
		}
	}
	s := r.applies(gw1)

	check(t, r.end(wit.p, unix.SIGTERM))
	file := filepath.Join(wit.cluster(), "raft.db")
	f, err := os.Stat(file)
	check(t, err)
	check(t, os.Truncate(file, f.Size()/2))
	wit.launch()
	r.eventually(10*time.Second, "the witness ends", func() (bool, string) { return wit.p.done(), wit.p.lastLines(5) })
	if said := wit.p.lastLines(5); wit.p.err == nil || !strings.Contains(said, "the replicated state on disk is damaged: "+file) || !strings.Contains(said, "its end is cut off") || !strings.Contains(said, "docs/recovery.md") {
		t.Errorf("a witness with half of its log: %v, %s", wit.p.err, said)
	}
	s.more("while the witness is damaged", 1, 20*time.Second)
	wit.anew(gw1)
	gw1.whole(3)

	gw2.kill()
	sound := map[string][]byte{}
	change := func(file string, fn func(b []byte) []byte) {
		t.Helper()
		b, err := os.ReadFile(file)
		check(t, err)
		now := fn(bytes.Clone(b))
		if bytes.Equal(now, b) {
			t.Fatalf("nothing of %s is changed", file)
		}
		sound[file] = b
		check(t, os.WriteFile(file, now, 0o600))
	}
	list := gw2.snapshots()
	for _, file := range list {
		change(file, func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	}
	if len(list) == 0 {
		t.Fatal("gw2 has no snapshot")
	}
	gw2.damaged(s, filepath.Base(filepath.Dir(list[0])))
	for file, b := range sound {
		check(t, os.WriteFile(file, b, 0o600))
	}
	change(filepath.Join(gw2.cluster(), "raft.db"), func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(`"revise":{`), []byte(`"Revise":{`)) }) // one bit each
	gw2.damaged(s, "raft.db")
	gw2.anew(gw1)
	s.end(gw1, gw2, wit)
}
