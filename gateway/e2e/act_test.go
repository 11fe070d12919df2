package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
)

// silent sends a datagram and reports whether no answer comes within a moment.
func silent(c *net.UDPConn) bool {
	c.Write([]byte("still there?"))
	c.SetReadDeadline(time.Now().Add(150 * time.Millisecond))
	_, err := c.Read(make([]byte, 100))
	return err != nil
}

// drain reads what has arrived at a socket by now.
func drain(c *net.UDPConn, wait time.Duration) (n int, from *net.UDPAddr) {
	b := make([]byte, 2000)
	for {
		c.SetReadDeadline(time.Now().Add(wait))
		_, a, err := c.ReadFromUDP(b)
		if err != nil {
			return n, from
		}
		n++
		from = a
	}
}

// taken is how many datagrams wait at a socket now. A deadline that is near may be over before the first look, when the machine was elsewhere.
func taken(t testing.TB, c *net.UDPConn) (n int) {
	t.Helper()
	check(t, c.SetReadDeadline(time.Time{}))
	raw, err := c.SyscallConn()
	check(t, err)
	b := make([]byte, 2000)
	check(t, raw.Read(func(fd uintptr) bool {
		for ; ; n++ {
			if _, _, err = unix.Recvfrom(int(fd), b, unix.MSG_DONTWAIT); err != nil {
				return true
			}
		}
	}))
	if err != unix.EAGAIN {
		t.Fatal(err)
	}
	return n
}

// Cut sessions forward not one packet more once the cut has returned, what waited in the shaper included; their ports rest; the rest of the
// tenant's and the other tenant's sessions go on as they were.
func TestCutOnTheWire(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "cut", rigPolicy("[tenant.rates.out]\nbits = \"1M\"\nqueue = \"300ms\"\n", ""))
	r.start()
	for _, ns := range []string{r.Public1.Name, r.Public2.Name} {
		rigUDPEcho(r, ns, 7007)
	}
	dst := addrPort(r.Public1.V4, 7007)
	stays, beta := rigUDP(r, r.Alpha1.Name, 0, dst), rigUDP(r, r.Beta1.Name, 0, dst)
	for _, c := range []*net.UDPConn{stays, beta} {
		if err := answered(c, "before"); err != nil {
			t.Fatal(err)
		}
	}
	var listed api.Sessions
	r.ask(&listed, "sessions", "--port", "7007")
	sink := rigUDP(r, r.Public1.Name, 7000, "")
	flood := rigUDP(r, r.Alpha1.Name, 0, addrPort(r.Public1.V4, 7000))
	flood.Write(make([]byte, 900))
	n, old := drain(sink, time.Second)
	if n != 1 {
		t.Fatalf("%d of 1 datagram arrived", n)
	}
	before := rigTenantOf(r.status(), "alpha")

	// Without a filter, and without somebody to ask, nothing is cut.
	for _, c := range []struct {
		args string
		code int
		says string
	}{{"sessions cut", 2, "no filter"}, {"sessions cut --port 7000", 1, "1 session of 3 would be cut (alpha 1)"}, {"sessions cut --tenant nobody --yes", 1, `no tenant "nobody"`}} {
		if _, bad, code := r.cli(strings.Fields(c.args)...); code != c.code || !strings.Contains(bad, c.says) {
			t.Errorf("%s: status %d, %s", c.args, code, bad)
		}
	}
	var fault *api.Fault
	if err := r.api.Post(t.Context(), api.PathCut, api.CutRequest{}, new(api.Cut)); !errors.As(err, &fault) || fault.Status != http.StatusBadRequest {
		t.Errorf("an empty filter: %v", err)
	}

	// The queue is full of the session's packets when it is cut.
	for range 60 {
		flood.Write(make([]byte, 900))
	}
	var cut api.Cut
	if err := r.api.Post(t.Context(), api.PathCut, api.CutRequest{Filter: api.SessionFilter{Tenant: "alpha", Port: 7000}}, &cut); err != nil {
		t.Fatal(err)
	}
	early := taken(t, sink)
	late, _ := drain(sink, 500*time.Millisecond)
	if cut.Cut != 1 || cut.Matched != 1 || cut.Total != 3 || early < 10 || late != 0 {
		t.Errorf("cut %+v; %d datagrams had come out when it returned (want those that waited), %d after it (want none)", cut, early, late)
	}
	after := rigTenantOf(r.status(), "alpha")
	if after.Sessions != before.Sessions-1 || after.Pool.InUse != before.Pool.InUse-1 || after.Pool.Held != before.Pool.Held+1 {
		t.Errorf("alpha has %d sessions, %d ports, %d at rest; before %d, %d, %d", after.Sessions, after.Pool.InUse, after.Pool.Held, before.Sessions, before.Pool.InUse, before.Pool.Held)
	}
	for name, c := range map[string]*net.UDPConn{"another session of the host": stays, "another tenant": beta} {
		if err := answered(c, "after"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	var still api.Sessions
	r.ask(&still, "sessions", "--port", "7007")
	if len(still.Sessions) != 2 || still.Sessions[0].Gen != listed.Sessions[0].Gen || still.Sessions[1].XlatSrc != listed.Sessions[1].XlatSrc {
		t.Errorf("those that stay have changed: %+v, were %+v", still.Sessions, listed.Sessions)
	}
	// The policy allows it, so the host may begin anew: another session with another port.
	flood.Write(make([]byte, 900))
	if n, now := drain(sink, 500*time.Millisecond); n != 1 || now.Port == old.Port && now.IP.Equal(old.IP) {
		t.Errorf("after the cut %d datagrams came, from %v; the old session's was %v", n, now, old)
	}

	// TCP in the middle of a conversation has no way to go on.
	check(t, r.Do(r.Public1.Name, func() error {
		l, err := net.Listen("tcp", ":7080")
		if err == nil {
			t.Cleanup(func() { l.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() { defer c.Close(); b := make([]byte, 100); n, _ := c.Read(b); c.Write(b[:n]); c.Read(b) }()
				}
			}()
		}
		return err
	}))
	c := rigDial(r, r.Alpha2.Name, addrPort(r.Public1.V4, 7080))
	c.Write([]byte("x"))
	if _, err := c.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	was := r.status()
	if out, bad, code := r.cli("sessions", "cut", "--address", r.Alpha2.V4.String(), "--yes"); code != 0 || !strings.Contains(out, "1 session of 4 cut (alpha 1)") {
		t.Fatalf("status %d, %s%s", code, out, bad)
	}
	seen, err := r.Capture(r.Public1.Name, netlab.HostDevice, 100, func(f []byte) bool { return strings.Contains(string(f), "after the cut") })
	check(t, err)
	c.Write([]byte("after the cut"))
	r.until(3*time.Second, "the segment is dropped", func() (bool, string) {
		d := drops(was, r.status())
		return d["tcp_not_syn"] > 0, fmt.Sprint(d)
	})
	if n := seen.Seen(); n != 0 {
		t.Errorf("%d segments of the cut connection came out", n)
	}
}

// A block stops everything from and to an address at the next packet, on the side that was named; it survives an apply, a restart and kill -9 with the
// time that was left; it ends by itself.
func TestBlockOnTheWire(t *testing.T) {
	mostlyWaits(t)
	policy := rigPolicy("", "")
	r := newRig(t, "block", policy)
	r.start()
	rigUDPEcho(r, r.Public1.Name, 7007)
	rigUDPEcho(r, r.Public2.Name, 7007)
	to1, to6 := addrPort(r.Public1.V4, 7007), addrPort(r.Public1.V6, 7007)
	alpha, alpha6, beta := rigUDP(r, r.Alpha1.Name, 0, to1), rigUDP(r, r.Alpha1.Name, 0, to6), rigUDP(r, r.Beta1.Name, 0, to1)
	works := func(when string, list ...*net.UDPConn) {
		t.Helper()
		for _, c := range list {
			if err := answered(c, "hello"); err != nil {
				t.Errorf("%s: %v -> %v: %v", when, c.LocalAddr(), c.RemoteAddr(), err)
			}
		}
	}
	stopped := func(when string, list ...*net.UDPConn) {
		t.Helper()
		for _, c := range list {
			if !silent(c) {
				t.Errorf("%s: %v -> %v: answered", when, c.LocalAddr(), c.RemoteAddr())
			}
		}
	}
	works("before", alpha, alpha6, beta)

	for _, c := range []struct{ args, says string }{
		{"block 0.0.0.0/0 for 10m", "0.0.0.0/0 is most of what there is: say force"},
		{"block 203.0.113.0/24 for 10m", "203.0.113.1 is the gateway's own address on interface backbone"},
		{"block 198.18.10.0/24 for 10m --tenant alpha", "gateway's own address on interface alpha"},
		{"block 198.51.100.1 for 200h", "want a time from 1s to 168h"},
		{"block 198.51.100.1/24 for 10m", "did you mean 198.51.100.0/24 or 198.51.100.1?"},
		{"block example for 10m", "neither an address nor a prefix"},
		{"block 198.51.100.1 for 10m --tenant nobody", `no tenant "nobody"`},
		{"unblock 198.51.100.1", "198.51.100.1 is not blocked on every side"},
	} {
		if out, bad, code := r.cli(strings.Fields(c.args)...); code != 1 || !strings.Contains(bad, c.says) {
			t.Errorf("%s: status %d, %s%s; want %q", c.args, code, out, bad, c.says)
		}
	}
	works("after what was refused", alpha, alpha6, beta)

	// As alpha sees it; beta speaks with the same host.
	if out, bad, code := r.cli("block", r.Public1.V4.String(), "for", "10m", "--tenant", "alpha"); code != 0 || out != "1 session live touched (alpha 1)\n203.0.113.11 is blocked on alpha for 10m00s\n" {
		t.Fatalf("status %d, %s%s", code, out, bad)
	}
	stopped("blocked", alpha)
	works("beside the block", beta, alpha6)
	var b api.Blocks
	r.ask(&b, "blocks")
	st := r.status()
	if len(b.Blocks) != 1 || b.Blocks[0].Dropped == 0 || b.Blocks[0].Dropped != rigTenantOf(st, "alpha").Drops["blocked"] || st.Drops["blocked"] != b.Blocks[0].Dropped || len(st.Blocks) != 1 {
		t.Errorf("%+v; alpha's drops %v, all %d", b, rigTenantOf(st, "alpha").Drops, st.Drops["blocked"])
	}
	r.apply(strings.Replace(policy, `name = "e2e"`, `name = "another"`, 1))
	stopped("after an apply", alpha)
	works("after an apply", beta)

	// A restart, and a crash.
	r.stop()
	r.start()
	stopped("after a restart", alpha)
	works("after a restart", beta)
	r.kill()
	r.start()
	stopped("after kill -9", alpha)
	works("after kill -9", beta)
	r.ask(&b, "blocks")
	if len(b.Blocks) != 1 || b.Blocks[0].Side.Tenant != "alpha" || b.Blocks[0].Seconds >= 600 || b.Blocks[0].Seconds < 500 {
		t.Errorf("after two starts: %+v", b)
	}
	if out, _, code := r.cli("unblock", r.Public1.V4.String(), "--tenant", "alpha"); code != 0 || !strings.Contains(out, "203.0.113.11 is free on alpha") {
		t.Errorf("status %d, %s", code, out)
	}
	works("unblocked", alpha)

	// Live sessions of IPv6, and what ends by itself.
	if _, bad, code := r.cli("block", "2001:db8:a::/64", "2s", "--force"); code != 0 {
		t.Fatal(bad)
	}
	stopped("blocked", alpha6)
	works("beside the block", alpha)
	r.until(10*time.Second, "the block to end", func() (bool, string) { return !silent(alpha6), "still silent" })
	r.until(3*time.Second, "the list to forget it", func() (bool, string) {
		r.ask(&b, "blocks")
		return len(b.Blocks) == 0, fmt.Sprint(b)
	})

	// A file that was damaged blocks nothing, and is named.
	if _, bad, code := r.cli("block", "198.51.100.0/24", "1h"); code != 0 {
		t.Fatal(bad)
	}
	r.stop()
	file := filepath.Join(r.data, "blocks")
	data, err := os.ReadFile(file)
	check(t, err)
	check(t, os.WriteFile(file, []byte(strings.Replace(string(data), "198.51.100.0", "198.51.101.0", 1)), 0o600))
	r.start()
	if st := r.status(); len(st.Damaged) != 1 || !strings.Contains(st.Damaged[0], "blocks") || len(st.Blocks) != 0 {
		t.Errorf("damaged %q, %d blocks", st.Damaged, len(st.Blocks))
	}
}
