package xsk

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/netlab/roottest"
	"demarc/gateway/verdict"
)

// What the process writes into its mapping decides about the next frame, on all ports at once; a deadline runs out by itself; and an exchange of the program
// has no moment in which a group is served that was not, nor one in which it is not that was.
func TestADeadlineIsReadByThePrograms(t *testing.T) {
	roottest.Require(t)
	p, d := loadServing(t, steerConfig())
	withSocket(t, p)
	q, err := LoadProgram(steerConfig(), d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.Close() })
	withSocket(t, q)
	of7 := ether(groupMAC, 0x800, ip4(6, farA, otherA, l4(1, 22)))
	of8 := ether(away6, 0x86dd, ip6(6, 64, far6, other6, l4(1, 22)))
	want := func(step string, seven, eight int) {
		t.Helper()
		for i, x := range []*Program{p, q} {
			a, _ := run(t, x, of7)
			b, _ := run(t, x, of8)
			if a != seven || b != eight {
				t.Errorf("%s, port %d: group 7 is %d, group 8 is %d: want %d and %d", step, i, a, b, seven, eight)
			}
		}
	}
	want("at first", toSocket, dropNotOwner)
	d.Table().Write(7, 2, 0)
	want("ended", dropNotOwner, dropNotOwner)
	d.Table().Keep(7, bootNow(t)+uint64(time.Hour))
	want("ended, and what comes is kept", kept, dropNotOwner)
	d.Table().Keep(7, bootNow(t)-1)
	want("kept for long enough", dropNotOwner, dropNotOwner)
	d.Table().Write(8, 1, bootNow(t)+uint64(time.Hour))
	d.Table().Keep(8, bootNow(t)+uint64(time.Hour))
	want("the other one", dropNotOwner, toSocket)
	d.Table().Keep(8, 0)
	c := steerConfig()
	c.SharedTCP = []uint16{80}
	if err := p.Update(c); err != nil {
		t.Fatal(err)
	}
	want("after an update", dropNotOwner, toSocket)
	soon := bootNow(t) + uint64(20*time.Millisecond)
	d.Table().Write(7, 3, soon)
	for {
		what, _ := run(t, p, of7)
		if now := bootNow(t); what != toSocket {
			if now < soon {
				t.Errorf("dropped %d ns before the deadline", soon-now)
			}
			break
		} else if now > soon+uint64(5*time.Second) {
			t.Fatal("the deadline does not run out")
		}
	}
	// A process that ends cannot write any more; what is in the kernel goes on as it stands. Whoever comes after it begins with nothing.
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	want("without the process", dropNotOwner, toSocket)
	next, err := NewDeadlines()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { next.Close() })
	r, err := LoadProgram(steerConfig(), next)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	withSocket(t, r)
	for _, f := range [][]byte{of7, of8} {
		if what, _ := run(t, r, f); what != dropNotOwner {
			t.Errorf("a new process serves a group at once: %d", what)
		}
	}
	n, err := r.Counters()
	if err != nil || n.Dropped[verdict.XDPNotOwner] != 2 {
		t.Errorf("counted %d as not_owner, want 2 (%v)", n.Dropped[verdict.XDPNotOwner], err)
	}
}

// A program without a table serves nobody, and one in a time namespace goes by the node's clock.
func TestADeadlineIsOfTheNodesClock(t *testing.T) {
	p, d := loadServing(t, steerConfig())
	withSocket(t, p)
	none, err := LoadProgram(steerConfig(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { none.Close() })
	withSocket(t, none)
	of7 := ether(groupMAC, 0x800, ip4(6, farA, otherA, l4(1, 22)))
	if what, _ := run(t, none, of7); what != dropNotOwner {
		t.Errorf("without a table: %d", what)
	}
	// As in a namespace whose clock is a day ahead: the same deadline, an hour from the machine's now, is 23 hours ago there.
	was := readAhead
	t.Cleanup(func() { readAhead = was })
	readAhead = func() ([]byte, error) {
		return []byte("monotonic           0         0\nboottime        86400         0\n"), nil
	}
	if err := p.Update(steerConfig()); err != nil {
		t.Fatal(err)
	}
	if what, _ := run(t, p, of7); what != dropNotOwner {
		t.Errorf("a day ahead: %d", what)
	}
	d.Table().Write(7, 2, bootNow(t)+uint64(25*time.Hour))
	if what, _ := run(t, p, of7); what != toSocket {
		t.Errorf("a day ahead, with its own deadline: %d", what)
	}
}

func TestOffsetsOfATimeNamespace(t *testing.T) {
	for _, c := range []struct {
		text string
		want int64
		ok   bool
	}{
		{"monotonic           0         0\nboottime            0         0\n", 0, true},
		{"monotonic 5 0\nboottime -3 250000000\n", -2750000000, true},
		{"1 5 0\n7 86400 1\n", 86400000000001, true},
		{"monotonic 5 0\n", 0, false},
		{"boottime x 0\n", 0, false},
		{"", 0, false},
	} {
		got, err := parseAhead(c.text)
		if (err == nil) != c.ok || c.ok && got != c.want {
			t.Errorf("%q: %d, %v", c.text, got, err)
		}
	}
	was := readAhead
	t.Cleanup(func() { readAhead = was })
	readAhead = func() ([]byte, error) { return nil, &os.PathError{Err: unix.ENOENT} }
	if n, err := bootAhead(); err != nil || n != 0 {
		t.Errorf("a kernel without time namespaces: %d, %v", n, err)
	}
	readAhead = func() ([]byte, error) { return nil, unix.EIO }
	if _, err := bootAhead(); err == nil {
		t.Error("offsets that cannot be read count as none")
	}
}
