package standby

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"demarc/gateway/pipeline"
	"demarc/gateway/replica"
)

// TestCopiesComeOverAConnection: what an owner has, what it opens and ends meanwhile, and after its connection was cut, is in the standby's tables, with as many workers or others; the driver is told
// that the copy is whole, under the right epoch.
func TestCopiesComeOverAConnection(t *testing.T) {
	for _, workers := range [][2]int{{1, 2}, {2, 3}, {3, 1}, {2, 2}} {
		t.Run(fmt.Sprintf("%d to %d workers", workers[0], workers[1]), func(t *testing.T) {
			f := newFar(t, workers[1], 1<<14, policyText+groupText(`"alpha"`))
			n := newNear(t, workers[0], 1<<14)
			n.open(1, 0, 3000)
			end := connect(n, f)
			same := func(what string) {
				t.Helper()
				eventually(t, what, func() bool {
					all, _ := f.sessions()
					whole, _ := f.whole()
					return whole && all == n.count()
				})
			}
			same("all is copied")
			eventually(t, "the driver is told", func() bool { return f.marks.Load() > 0 && f.epoch.Load() == 5 })
			n.mu.Lock()
			n.open(1, 3000, 5000)
			n.end(func(i int) bool { return i%3 == 0 })
			n.mu.Unlock()
			same("changes")
			if a, b := end(); b != nil {
				t.Errorf("it ended with %v, %v", a, b)
			}
			n.mu.Lock()
			n.open(1, 5000, 5500)
			n.end(func(i int) bool { return i%5 == 0 })
			n.mu.Unlock()
			was := f.sb.Status().Copies
			end = connect(n, f)
			same("what happened meanwhile")
			if now := f.sb.Status().Copies; now != was {
				t.Errorf("%d copies were begun anew because a connection was cut: it goes on from where it was", now-was)
			}
			end()
		})
	}
}

// same waits until the standby's copy is whole, and as much as the owner has.
func same(t *testing.T, n *near, f *far, what string) {
	t.Helper()
	var all int
	var why string
	defer func() {
		if t.Failed() {
			t.Logf("%d sessions, the owner has %d: %s", all, n.count(), why)
		}
	}()
	eventually(t, what, func() (whole bool) {
		all, _ = f.sessions()
		whole, why = f.whole()
		return whole && all == n.count()
	})
}

// TestCopiesComeOverTLS: the same over connections as members have them.
func TestCopiesComeOverTLS(t *testing.T) {
	f := newFar(t, 2, 1<<14, policyText+groupText(`"alpha"`))
	n := newNear(t, 2, 1<<14)
	n.open(1, 0, 5000)
	dial := members(t)
	for range 2 {
		a, b := dial()
		end := over(n, f, a, b)
		same(t, n, f, "all is copied")
		if p := f.sb.Status().Peers; len(p) != 1 || p[0].Name != "a" || !p[0].Connected || p[0].Streams != 2 {
			t.Errorf("%+v", p)
		}
		if _, err := end(); err != nil {
			t.Errorf("it ended with %v", err)
		}
		n.mu.Lock()
		n.end(func(i int) bool { return i%3 == 0 })
		n.mu.Unlock()
	}
	if p := f.sb.Status().Peers; len(p) != 1 || p[0].Connected || p[0].Why == "" {
		t.Errorf("after its end: %+v", p)
	}
}

// TestOddPeers: what is no stream, is of another release, is cut off, does not go on or takes no answers ends the connection and nothing else, with words that say what it was; where the
// other side still listens it hears them. Another connection goes on meanwhile.
func TestOddPeers(t *testing.T) {
	f := impatient(t, 2, 1<<12, policyText+groupText(`"alpha"`), 300*time.Millisecond)
	n := newNear(t, 1, 1<<12)
	n.open(1, 0, 500)
	defer connect(n, f)()
	same(t, n, f, "all is copied")
	hello := func(change func(*replica.Hello)) []byte {
		h := replica.Hello{Version: replica.WireVersion, Streams: 1, Life: 77}
		change(&h)
		return h.Append(nil)
	}
	good := hello(func(*replica.Hello) {})
	other := frameOf(78, 0)
	for _, c := range []struct {
		name   string
		send   []byte
		later  []byte // when it has been silent for longer than what is begun may wait
		deaf   bool
		want   string
		hears  bool // the other side hears that
		answer bool // the first answer comes
	}{
		{name: "not a stream", send: []byte("GET / HTTP/1.1\r\nHost: b\r\n\r\n"), want: "do not begin a session stream", hears: true},
		{name: "a later release", send: hello(func(h *replica.Hello) { h.Version++ }), want: "bring both to the same release", hears: true},
		{name: "too many streams", send: hello(func(h *replica.Hello) { h.Streams = 1000 }), want: "want 1 to 256", hears: true},
		{name: "silence", send: good[:7], want: "its first word has not come for 300ms", hears: true},
		{name: "garbage for a frame", send: append(slices.Clone(good), bytes.Repeat([]byte("garbage!"), 20)...), want: "this is no session stream", answer: true},
		{name: "another life", send: append(slices.Clone(good), other...), want: "has said that it has 1 streams of life 4d", answer: true},
		{name: "another stream", send: append(slices.Clone(good), frameOf(77, 3)...), want: "a frame of stream 3", answer: true},
		{name: "half a frame", send: append(slices.Clone(good), frameOf(77, 0)[:40]...), want: "the rest of a frame has not come for 300ms", answer: true},
		{name: "half a frame after a silence", send: good, later: frameOf(77, 0)[:40], want: "the rest of a frame has not come for 300ms", answer: true},
		{name: "deaf", send: good, deaf: true, want: "it does not take our answers: none for 300ms"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := net.Pipe()
			defer a.Close()
			served := make(chan error, 1)
			go func() { served <- f.sb.Serve("odd", b) }()
			_ = a.SetDeadline(time.Now().Add(20 * time.Second))
			in := bufio.NewReaderSize(a, replica.MaxAnswer+4)
			heard := make(chan error, 1)
			if !c.deaf {
				go func() {
					answers := 0
					for {
						if _, err := replica.ReadAnswer(in); err != nil {
							if c.answer && answers == 0 {
								err = errors.New("no answer came")
							}
							heard <- err
							return
						}
						answers++
					}
				}()
			}
			_, _ = a.Write(c.send) // it may be refused before its end
			if c.later != nil {
				time.Sleep(400 * time.Millisecond)
				_, _ = a.Write(c.later)
			}
			err := <-served
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("ended with %v, want %q", err, c.want)
			}
			if c.deaf {
				return
			}
			err = <-heard
			if said := replica.Refused(""); c.hears && (!errors.As(err, &said) || !strings.Contains(string(said), c.want)) {
				t.Errorf("hears %v, want %q", err, c.want)
			} else if !c.hears && c.answer && strings.Contains(err.Error(), "no answer") {
				t.Error(err)
			}
		})
	}
	n.mu.Lock()
	n.open(1, 500, 800)
	n.mu.Unlock()
	same(t, n, f, "and the good one goes on")
	var gone string
	for _, p := range f.sb.Status().Peers {
		if p.Name == "odd" {
			gone = p.Why
		}
	}
	if !strings.Contains(gone, "does not take our answers") {
		t.Errorf("status says %q", gone)
	}
}

// TestAPeerLocksNobodyOut: a member that says of a group that it is its own, and is not one of its nodes or not its owner, changes nothing: the true owner's sessions go on to be copied, and who said so
// is told by its name, with what is right.
func TestAPeerLocksNobodyOut(t *testing.T) {
	f := newFar(t, 2, 1<<12, policyText+groupText(`"alpha"`))
	f.sb.mu.Lock()
	f.sb.c.Owner = func(group string) (string, uint64, bool) { return "a", 5, group == "east" }
	f.sb.mu.Unlock()
	n := newNear(t, 1, 1<<12)
	n.open(1, 0, 100)
	defer connect(n, f)()
	same(t, n, f, "before")
	total := 100
	for _, c := range []struct {
		name, words string
		epoch       uint64
	}{
		{"x", "it is not one of the nodes of group east, which are a, b", 1<<64 - 1},
		{"b", "it says that it owns group east under epoch 5, which is that of a", 5},
		{"b", "it says that it owns group east under epoch 18446744073709551615, and agreed on is a, epoch 5: " + replica.ErrEarly.Error(), 1<<64 - 1},
	} {
		liar := newNear(t, 2, 1<<12)
		liar.open(1, 2000, 2200)
		liar.mu.Lock()
		for _, s := range liar.senders {
			s.Own(1, c.epoch)
		}
		liar.mu.Unlock()
		here, there := net.Pipe()
		end := overAs(c.name, liar, f, here, there)
		eventually(t, c.name+" is told by its name", func() bool {
			for _, p := range f.sb.Status().Peers {
				if p.Name == c.name && slices.Equal(p.Refused, []string{c.words}) {
					return true
				}
			}
			return false
		})
		n.mu.Lock()
		n.open(1, total, total+100)
		n.mu.Unlock()
		total += 100
		same(t, n, f, "beside "+c.name)
		if all, _ := f.sessions(); all != total {
			t.Errorf("beside %s: %d sessions, the owner has %d", c.name, all, total)
		}
		if st := f.sb.Status(); st.Groups[0].Epoch != 5 || !st.Groups[0].Whole {
			t.Errorf("beside %s: %+v", c.name, st.Groups[0])
		}
		end()
	}
	if got := f.sb.Status().Refused; got < 3 {
		t.Errorf("%d were counted", got)
	}
}

// TestADeadOwnerIsNotConnected: a connection by which nothing comes any more, because the owner's machine has gone without a word, ends, and that is nobody's fault; one that waits for a worker here does not.
func TestADeadOwnerIsNotConnected(t *testing.T) {
	f := newFar(t, 1, 1<<12, policyText+groupText(`"alpha"`))
	f.sb.c.Quiet = 200 * time.Millisecond
	a, b := net.Pipe()
	defer a.Close()
	served := make(chan error, 1)
	go func() { served <- f.sb.Serve("a", b) }()
	go func() {
		for buf := make([]byte, 4096); ; {
			if _, err := a.Read(buf); err != nil {
				return
			}
		}
	}()
	hang, hangs := make(chan struct{}), make(chan struct{})
	go func() {
		_ = f.ws[0].Do(context.Background(), func(*pipeline.Shard) { close(hangs); <-hang })
	}()
	<-hangs
	n := newNear(t, 1, 1<<12)
	n.open(1, 0, 10)
	n.life = 77
	for i := range n.senders {
		n.senders[i] = replica.NewSender(n.tables[i], 1<<12, 0, 1, 77, 9, replica.Limits{})
		n.senders[i].Own(1, 5)
		n.senders[i].Link(0, &replica.Answer{Anew: true})
	}
	_, _ = a.Write((&replica.Hello{Version: replica.WireVersion, Streams: 1, Life: 77}).Append(nil))
	n.senders[0].Drain(0, 100)
	n.senders[0].Drain(1e9, 100)
	for frame := n.senders[0].Take(); frame != nil; frame = n.senders[0].Take() {
		_, _ = a.Write(frame)
	}
	select {
	case err := <-served:
		t.Fatalf("it has ended while a worker here had its frames: %v", err)
	case <-time.After(600 * time.Millisecond):
	}
	close(hang)
	select {
	case err := <-served:
		if err != nil {
			t.Errorf("it counts as a fault: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it stands")
	}
	if p := f.sb.Status().Peers; len(p) != 1 || p[0].Connected || p[0].Why != "nothing has come for 200ms, not even a digest: its node or the way to it has gone" {
		t.Errorf("status says %+v", p)
	}
}

// TestStatusDoesNotWait: while a worker hangs status answers, says which one it is, and that no copy is whole; the owner hears that this node lives and has no more; a connection that comes meanwhile is told why it
// is not taken, and none is kept waiting.
func TestStatusDoesNotWait(t *testing.T) {
	f := impatient(t, 2, 1<<12, policyText+groupText(`"alpha"`), 300*time.Millisecond)
	n := newNear(t, 1, 1<<12)
	n.open(1, 0, 100)
	defer connect(n, f)()
	same(t, n, f, "before")
	hang, hangs := make(chan struct{}), make(chan struct{})
	go func() {
		_ = f.ws[1].Do(context.Background(), func(*pipeline.Shard) { close(hangs); <-hang })
	}()
	<-hangs
	n.mu.Lock()
	n.open(1, 100, 300)
	n.mu.Unlock()
	var st Status
	eventually(t, "status says which worker hangs", func() bool {
		began := time.Now()
		st = f.sb.Status()
		if took := time.Since(began); took > 5*time.Second {
			t.Fatalf("status took %s", took)
		}
		return len(st.Groups) == 1 && strings.HasPrefix(st.Groups[0].Why, "worker 1 has not written what came for it for ")
	})
	if st.Groups[0].Whole || len(st.Peers) != 1 || !st.Peers[0].Connected {
		t.Errorf("status says %+v", st)
	}
	before := n.answers.Load()
	eventually(t, "answers go on", func() bool { return n.answers.Load() > before+5 })
	other := newNear(t, 1, 1<<12)
	end := connect(other, f)
	eventually(t, "a connection that comes meanwhile is refused", func() bool {
		why := other.refused.Load()
		return why != nil && strings.HasPrefix(*why, "worker 1 has not written")
	})
	if _, err := end(); err != nil {
		t.Errorf("it counts as its fault: %v", err)
	}
	close(hang)
	same(t, n, f, "when it goes on")
	if st := f.sb.Status(); !st.Groups[0].Whole {
		t.Errorf("status says %+v", st.Groups)
	}
}

// frameOf is a frame that a Sender of this life writes.
func frameOf(life uint64, stream uint8) []byte {
	x := &table{}
	s := replica.NewSender(x, 16, stream, 4, life, 1, replica.Limits{})
	s.Own(1, 5)
	s.Link(1, &replica.Answer{})
	s.Drain(2, 100)
	return s.Take()
}

// TestPolicyChangesInMidStream: sessions of a tenant that this node's policy does not have yet are named as what is missing, and come when it has; while a copy runs policies change again and
// again, next hops and tenants with other numbers, and what is copied stays each tenant's own. What the owner ends goes.
func TestPolicyChangesInMidStream(t *testing.T) {
	alpha, both := policyText+groupText(`"alpha"`), policyText+betaText+groupText(`"alpha", "beta"`)
	f := newFar(t, 2, 1<<15, alpha)
	n := newNear(t, 2, 1<<15)
	n.open(1, 0, 1000)
	n.open(2, 0, 1000)
	defer connect(n, f)()
	eventually(t, "it is said what is missing", func() bool {
		whole, why := f.whole()
		return !whole && strings.Contains(why, "tenant not in this node's policy: 500 records")
	})
	if marks := f.marks.Load(); marks != 0 {
		t.Errorf("told as whole %d times", marks)
	}
	f.publish(f.compile(both))
	same(t, n, f, "with the policy the rest comes")
	if _, of := f.sessions(); of["alpha"] != 1000 || of["beta"] != 1000 {
		t.Errorf("%v", of)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 40 {
			n.mu.Lock()
			n.open(1, 1000+i*100, 1100+i*100)
			n.open(2, 1000+i*50, 1050+i*50)
			n.end(func(slot int) bool { return slot%40 == i && slot < 900 })
			n.mu.Unlock()
			time.Sleep(3 * time.Millisecond)
		}
	}()
	for i := range 12 {
		text := both
		if i%2 == 0 { // beta first, and another route
			text = strings.Replace(policyText, "[[tenant]]", betaText+"\n[[route]]\nprefix = \"192.0.2.128/25\"\nvia = \"203.0.113.253\"\n[[tenant]]", 1) + groupText(`"alpha", "beta"`)
		}
		f.publish(f.compile(text))
		time.Sleep(8 * time.Millisecond)
	}
	<-done
	same(t, n, f, "all is copied")
	alive := map[string]int{}
	n.mu.Lock()
	for _, x := range n.tables {
		for slot, l := range x.live {
			if l {
				alive[x.Name(replica.NameTenant, x.recs[slot].Tenant)]++
			}
		}
	}
	n.mu.Unlock()
	if _, of := f.sessions(); of["alpha"] != alive["alpha"] || of["beta"] != alive["beta"] {
		t.Errorf("%v, the owner has %v", of, alive)
	}
}

// TestStandbyRestarts: one with empty tables is given everything; TestOwnerRestarts: what an owner's process of before had told is held until the next one has told everything, and then what it
// does not have is gone.
func TestStandbyRestarts(t *testing.T) {
	f := newFar(t, 2, 1<<14, policyText+groupText(`"alpha"`))
	n := newNear(t, 2, 1<<14)
	n.open(1, 0, 4000)
	end := connect(n, f)
	same(t, n, f, "all is copied")
	f.stop()
	end()
	f = newFar(t, 3, 1<<14, policyText+groupText(`"alpha"`))
	if all, _ := f.sessions(); all != 0 {
		t.Fatalf("%d sessions", all)
	}
	defer connect(n, f)()
	same(t, n, f, "all is copied again")
}

func TestOwnerRestarts(t *testing.T) {
	f := newFar(t, 2, 1<<14, policyText+groupText(`"alpha"`))
	n := newNear(t, 2, 1<<14)
	n.open(1, 0, 4000)
	end := connect(n, f)
	same(t, n, f, "all is copied")
	end()
	n.tables = []*table{{n: n}} // with another number of workers, and half of what it had
	n.reborn(1 << 14)
	n.open(1, 0, 2000)
	if all, _ := f.sessions(); all != 4000 {
		t.Errorf("%d sessions before it has told anything, want 4000", all)
	}
	defer connect(n, f)()
	same(t, n, f, "what it has, and no more")
	if st := f.sb.Status(); len(st.Groups) != 1 || !st.Groups[0].Whole || st.Groups[0].Epoch != 5 || st.Groups[0].Name != "east" {
		t.Errorf("%+v", st.Groups)
	}
}

// TestServingStopsTheCopy: from when Serving has returned nothing is written of a group that this node serves, whatever its owner before still sends; that takes no longer while a worker
// hangs. When another node has it, under a later epoch, it is copied anew.
func TestServingStopsTheCopy(t *testing.T) {
	f := newFar(t, 2, 1<<16, policyText+groupText(`"alpha"`))
	n := newNear(t, 2, 1<<16)
	n.budget = 64 // it takes a while
	n.open(1, 0, 30000)
	end := connect(n, f)
	eventually(t, "a part is copied", func() bool { all, _ := f.sessions(); return all > 2000 })
	f.sb.Serving(1, 6, true)
	all, _ := f.sessions() // an order of before it may be under way: this is one behind it
	if all, _ = f.sessions(); all >= 30000 {
		t.Fatal("it was copied already: nothing was tested")
	}
	for range 50 {
		if now, _ := f.sessions(); now != all {
			t.Fatalf("%d sessions, there were %d when this node began to serve", now, all)
		}
		time.Sleep(2 * time.Millisecond)
	}
	if whole, why := f.whole(); whole || why != "this node owns the group" {
		t.Errorf("%v %q", whole, why)
	}
	if marks := f.marks.Load(); marks != 0 {
		t.Errorf("%d marks", marks)
	}
	if st := f.sb.Status(); len(st.Groups) != 0 {
		t.Errorf("shown as a copy: %+v", st.Groups)
	}
	f.sb.Serving(1, 7, false)
	n.mu.Lock()
	for _, s := range n.senders {
		s.Own(1, 7)
	}
	n.budget = 1024
	n.mu.Unlock()
	same(t, n, f, "another has it again")
	if f.sb.Status().Groups[0].Epoch != 7 {
		t.Errorf("%+v", f.sb.Status().Groups)
	}

	hang, hangs := make(chan struct{}), make(chan struct{})
	go func() {
		_ = f.ws[1].Do(t.Context(), func(*pipeline.Shard) { close(hangs); <-hang })
	}()
	<-hangs
	n.mu.Lock()
	n.open(1, 30000, 31000)
	n.mu.Unlock()
	time.Sleep(20 * time.Millisecond) // so that the copy waits for that worker
	served := make(chan struct{})
	go func() { f.sb.Serving(1, 8, true); close(served) }()
	select {
	case <-served:
	case <-time.After(20 * time.Second):
		t.Error("it waits for a worker that hangs")
	}
	close(hang)
	<-served
	end()
}

// TestSmallerTables: a standby with less room than its owner needs says so, tells the owner, and is whole again when there is room.
func TestSmallerTables(t *testing.T) {
	f := newFar(t, 1, 1024, policyText+groupText(`"alpha"`))
	n := newNear(t, 1, 1<<14)
	n.open(1, 0, 3000)
	defer connect(n, f)()
	eventually(t, "it is said", func() bool {
		whole, why := f.whole()
		return !whole && strings.HasPrefix(why, "table full: 1976 records")
	})
	eventually(t, "the owner knows", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		c, ok := n.senders[0].Copy(n.now(), 1)
		return ok && c.Missing == 1976 && c.Why == replica.Full
	})
	n.mu.Lock()
	n.end(func(i int) bool { return i%4 != 0 })
	n.mu.Unlock()
	same(t, n, f, "there is room for the rest")
}

// TestWorkersEnd: when the node ends in the midst of a copy, nothing hangs.
func TestWorkersEnd(t *testing.T) {
	f := newFar(t, 2, 1<<16, policyText+groupText(`"alpha"`))
	n := newNear(t, 2, 1<<16)
	n.open(1, 0, 50000)
	end := connect(n, f)
	eventually(t, "a part is copied", func() bool { all, _ := f.sessions(); return all > 2000 })
	f.stop()
	ended := make(chan struct{})
	go func() { end(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Fatal("it hangs")
	}
}

// TestFormerMembersAreForgotten: what came from a gateway that is a member no more is held as nobody's, and costs no memory of streams.
func TestFormerMembersAreForgotten(t *testing.T) {
	f := newFar(t, 1, 1<<12, policyText+groupText(`"alpha"`))
	var is atomic.Bool
	is.Store(true)
	member := func(name string) (bool, error) { return is.Load() && name == "a", nil }
	f.member.Store(&member)
	n := newNear(t, 1, 1<<12)
	n.open(1, 0, 100)
	end := connect(n, f)
	same(t, n, f, "all is copied")
	end()
	is.Store(false)
	eventually(t, "it is forgotten", func() bool {
		f.sb.mu.Lock()
		defer f.sb.mu.Unlock()
		return len(f.sb.r.Peers()) == 0
	})
	if all, _ := f.sessions(); all != 100 {
		t.Errorf("%d sessions", all)
	}
}
