package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
)

// revisionsKept is how many revisions a cluster keeps when nobody has said anything else (docs/cluster.md).
const revisionsKept = 200

// steady is a stream of applies to some machines, for as long as it runs.
type steady struct {
	r    *trio
	stop context.CancelFunc
	done chan struct{}

	mu    sync.Mutex
	acked map[uint64]string // revision -> name, of those that were acknowledged
}

// applies begins, with one author for each machine. Whoever does not take a change (no majority, killed meanwhile, another author was first) is asked again.
func (r *trio) applies(to ...*machine) *steady {
	ctx, cancel := context.WithCancel(r.t.Context())
	s := &steady{r: r, stop: cancel, done: make(chan struct{}), acked: map[uint64]string{}}
	var all sync.WaitGroup
	for _, m := range to {
		all.Go(func() {
			rest := time.NewTicker(40 * time.Millisecond) // it is not about how many there are
			defer rest.Stop()
			for i := 0; ctx.Err() == nil; i++ {
				name := fmt.Sprintf("steady-%s-%d", m.name, i)
				try, end := context.WithTimeout(ctx, 15*time.Second)
				var a api.Applied
				err := m.client.Post(try, api.PathApply, api.ApplyRequest{Policy: fmt.Sprintf(clusterPolicy, name), Source: name}, &a)
				end()
				if err == nil {
					s.mu.Lock()
					s.acked[a.Revision.Number] = name
					s.mu.Unlock()
				}
				<-rest.C
			}
		})
	}
	go func() { all.Wait(); close(s.done) }()
	return s
}

// count is how many were acknowledged so far.
func (s *steady) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.acked)
}

// more waits until n changes more were acknowledged.
func (s *steady) more(what string, n int, within time.Duration) {
	s.r.t.Helper()
	from, began := s.count(), time.Now()
	s.r.eventually(within, what, func() (bool, string) { c := s.count() - from; return c >= n, fmt.Sprintf("%d of %d changes", c, n) })
	s.r.t.Logf("%s: %d changes in %s", what, n, time.Since(began).Round(time.Millisecond))
}

// end stops it. What was acknowledged and is not too old to be kept is in every machine's history, under the number and the text that it was acknowledged with; all are at the same revision, and every
// gateway serves it.
func (s *steady) end(ms ...*machine) {
	t := s.r.t
	t.Helper()
	s.stop()
	<-s.done
	for _, m := range ms {
		m.whole(3)
	}
	// A request that the end of the stream has cut off may still be on its way to be agreed on, and this one then comes second.
	last := s.r.policy("the-end")
	s.r.eventually(20*time.Second, "the last change", func() (bool, string) {
		_, bad, err := ms[0].cli("apply", last)
		if err != nil && !strings.Contains(bad, "conflict: ") {
			t.Fatalf("%s: %v\n%s", ms[0].name, err, bad)
		}
		return err == nil, bad
	})
	var digest string
	for _, m := range ms {
		if !m.witness {
			m.serves("the-end", 5*time.Second)
		}
		var h api.History
		s.r.eventually(5*time.Second, m.name+" knows the last change", func() (bool, string) {
			h = api.History{}
			check(t, m.client.Get(t.Context(), api.PathHistory, &h))
			return h.Revisions[0].Name == "the-end", h.Revisions[0].Name
		})
		var all strings.Builder
		names := map[uint64]string{}
		for _, v := range h.Revisions {
			names[v.Number] = v.Name
			fmt.Fprintln(&all, v.Number, v.Digest, v.Fate)
		}
		oldest := h.Revisions[len(h.Revisions)-1].Number // a fast machine makes more than are kept
		if kept := len(h.Revisions); oldest > 1 && kept < revisionsKept {
			t.Errorf("%s: the oldest revision of %d is %d, and %d are kept", m.name, kept, oldest, revisionsKept)
		}
		for n, name := range s.acked {
			if n >= oldest && names[n] != name {
				t.Errorf("%s: revision %d was acknowledged as %q and is %q", m.name, n, name, names[n])
			}
		}
		st := m.status()
		fmt.Fprintln(&all, st.Revision.Digest, st.Cluster.Revision, st.Cluster.Confirmed)
		switch {
		case digest == "":
			digest = all.String()
		case digest != all.String():
			t.Errorf("%s and %s disagree:\n%s\n%s", ms[0].name, m.name, digest, all.String())
		}
	}
	t.Logf("%d changes were acknowledged", len(s.acked))
}

// nft gives a machine's namespace these rules alone; "" = none.
func (m *machine) nft(rules string) {
	m.trio.t.Helper()
	text := "table inet fault\ndelete table inet fault\n"
	if rules != "" {
		text += "table inet fault {\nchain in {\ntype filter hook input priority 0;\n" + rules + "\n}\n}\n"
	}
	c := m.trio.Command(m.space, "nft", "-f", "-")
	c.Stdin = strings.NewReader(text)
	if out, err := c.CombinedOutput(); err != nil {
		m.trio.t.Fatalf("nft in %s: %v\n%s", m.space, err, out)
	}
}

// TestClusterKilledAndCut: a stream of changes goes on while followers and leaders are killed, the network is cut 1|2 and 2|1 and loses packets in one direction, and through a
// start of all at once. Nothing that was acknowledged is lost, all agree, and the packets of the gateway that lives through it do not notice.
func TestClusterKilledAndCut(t *testing.T) {
	mostlyWaits(t)
	r := newTrio(t)
	gw1, gw2, wit := r.begin()
	began := time.Now()
	ping := gw1.stream("12s")
	s := r.applies(gw1, gw2, wit)
	s.more("all are there", 3, 10*time.Second)
	for range 2 {
		for _, m := range []*machine{gw2, wit} { // one of them leads, or will
			m.kill()
			s.more("without "+m.name, 1, 15*time.Second)
			m.start()
		}
	}
	lead := r.nodes[gw1.members().Leader]
	if lead == nil || lead == gw1 {
		lead = wit
	}
	lead.kill()
	s.more("without "+lead.name+", which led", 1, 15*time.Second)
	lead.start()

	// 1|2: the one that is alone takes no change, and serves.
	for _, alone := range []*machine{gw1, wit} { // as two gateways without the witness, and a gateway by itself
		alone.nft("iifname mgmt tcp dport 7400 drop; iifname mgmt tcp sport 7400 drop;")
		s.more(alone.name+" is cut off", 1, 15*time.Second)
		if alone == gw1 {
			if _, bad, err := alone.cli("apply", r.policy("alone")); err == nil {
				t.Error("one of three that is alone has taken a change")
			} else if !strings.Contains(bad, "no leader") && !strings.Contains(bad, "not known") {
				t.Errorf("one of three that is alone says: %s", bad)
			}
		}
		alone.nft("")
	}
	// What one hears is lost in part, what it says is not.
	gw2.nft("iifname mgmt numgen random mod 100 < 40 drop;")
	s.more("gw2 hears 6 of 10 packets", 2, 20*time.Second)
	gw2.nft("")
	if p := ping(); p.Received != p.Sent {
		t.Errorf("%d of %d packets came back through gw1, which was never killed", p.Received, p.Sent)
	}

	// All at once.
	all := []*machine{gw1, gw2, wit}
	for _, m := range all {
		m.kill()
	}
	for _, m := range all {
		m.launch()
	}
	for _, m := range all {
		m.ready()
	}
	s.more("after a start of all", 1, 20*time.Second)
	s.end(all...)
	t.Logf("all of it took %s", time.Since(began).Round(time.Millisecond))
}

// TestClusterDisks: one member's disk is slow, another's is full: the others go on, it says what is wrong, its packets flow, and it comes back.
func TestClusterDisks(t *testing.T) {
	mostlyWaits(t)
	r := newTrio(t)
	gw1, gw2, wit := r.nodes["gw1"], r.nodes["gw2"], r.nodes["wit"]
	data := filepath.Join(gw2.dir, "data")
	check(t, os.MkdirAll(data, 0o755))
	check(t, unix.Mount("dm-e2e", data, "tmpfs", 0, "size=12m,mode=755"))
	t.Cleanup(func() { check(t, unix.Unmount(data, unix.MNT_DETACH)) })
	// Each sync of the witness takes 100 ms longer; it is the one that leads.
	wit.wrap = []string{"strace", "-D", "-f", "--seccomp-bpf", "-qq", "-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=100ms", "-o", "/dev/null"}
	r.begin()
	r.eventually(15*time.Second, "the one with the slow disk leads", func() (bool, string) { l := gw1.members().Leader; return l == "wit", l })
	ping := gw2.stream("6s")
	s := r.applies(gw1, wit, gw2)
	began := time.Now()
	s.more("with a slow disk that leads", 3, 20*time.Second)
	if each := time.Since(began) / 3; each < 100*time.Millisecond {
		t.Errorf("a change takes %s: the disk is not slow", each)
	}

	s.end(gw1, gw2, wit)
	room := fill(t, data)
	if _, bad, err := gw1.cli("apply", r.policy("full")); err == nil || !strings.Contains(bad, "gw2: ") || !strings.Contains(bad, "no space left on device (make room on that file system and apply again)") {
		t.Errorf("an apply while the disk of gw2 is full: %v, %s", err, bad)
	}
	large := r.large("large") // more than the file of the log has free
	began = time.Now()
	out := gw1.must("apply", large, "--except", "gw2")
	if took := time.Since(began); took > 6*time.Second || !strings.Contains(out, "gw1 serves it") || !strings.Contains(out, "gw2 does not serve it yet: the disk refuses the replicated log: ") {
		t.Errorf("an apply that excepts it, after %s: %s", took, out)
	}
	if p := gw2.status().Cluster.Problem; !strings.Contains(p, "no space left on device") || !strings.Contains(p, "make room") {
		t.Errorf("gw2 says of its disk: %q", p)
	}
	room()
	s = r.applies(gw1, wit, gw2)
	r.eventually(15*time.Second, "gw2 follows again by itself", func() (bool, string) {
		own, agreed := gw2.status(), gw1.status().Cluster.Revision
		return own.Cluster.Problem == "" && own.Revision.Number+1 >= agreed, fmt.Sprintf("%d of %d, %q", own.Revision.Number, agreed, own.Cluster.Problem)
	})
	if p := ping(); p.Received != p.Sent {
		t.Errorf("%d of %d packets came back through the gateway with the full disk", p.Received, p.Sent)
	}
	s.end(gw1, gw2, wit)
}
