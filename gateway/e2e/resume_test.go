package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/handed"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
)

const resumeForward = `
[[tenant.nat.forward]]
public = "192.0.2.16"
proto = "tcp"
port = 8080
inside = "198.18.10.11"
inside_port = 7100
[[tenant.rule]]
name = "forwarded"
direction = "in"
action = "allow"
to = ["198.18.10.11"]
service = ["tcp/7100"]
`

// keptSession is what of a session must be the same after a restart.
func keptSession(s *api.Session) string {
	return fmt.Sprintf("%s %s %s %s->%s as %s->%s", s.Tenant, s.From, s.Proto, s.Src, s.Dst, s.XlatSrc, s.XlatDst)
}

// carryOn carries data over a connection to an echo until stop, and says how much came back right.
func carryOn(c net.Conn, stop <-chan struct{}) (n int, err error) {
	c.SetDeadline(time.Now().Add(40 * time.Second))
	out, in := make([]byte, 512), make([]byte, 512)
	for i := 0; ; i++ {
		select {
		case <-stop:
			return n, nil
		default:
		}
		for k := range out {
			out[k] = byte(i*7 + k)
		}
		if _, err := c.Write(out); err != nil {
			return n, err
		}
		if _, err := io.ReadFull(c, in); err != nil {
			return n, err
		}
		if !bytes.Equal(in, out) {
			return n, fmt.Errorf("other bytes came back")
		}
		n += len(in)
	}
}

// A node is ended and started again, twice, with other numbers of workers: idle TCP connections of both tenants, translated, IPv6 and to a forwarded port, and one that carries data, go on,
// each with its public port; the ports' outage is all that a paced stream loses. What a process leaves is used once: kill -9 leaves nothing, and what is damaged is told and not used.
func TestRestartKeepsSessions(t *testing.T) {
	mostlyWaits(t)
	r := newRigWith(t, "resume", rigPolicy(resumeForward, ""), netlab.Options{Queues: 2})
	workers := func(n int) {
		r.write(r.node, rigNode(r.data, r.socket, fmt.Sprintf("[workers]\ncount = %d\n", n)))
	}
	workers(2)
	r.start()
	if st := r.status(); st.Resumed != nil {
		t.Errorf("the first process has something of one before: %+v", st.Resumed)
	}
	for _, h := range []string{r.Public1.Name, r.Alpha1.Name} {
		rigEcho(r, h, ":7100")
	}
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	var conns []net.Conn
	for range 4 {
		for _, from := range []netlab.Host{r.Alpha1, r.Alpha2, r.Beta1, r.Beta2} {
			conns = append(conns, rigDial(r, from.Name, addrPort(r.Public1.V4, 7100)))
		}
		conns = append(conns, rigDial(r, r.Beta1.Name, net.JoinHostPort(r.Public1.V6.String(), "7100")), rigDial(r, r.Public2.Name, "192.0.2.16:8080"))
	}
	busy := rigDial(r, r.Alpha2.Name, addrPort(r.Public1.V4, 7100))
	living := func(when string) {
		t.Helper()
		for _, c := range conns {
			if !alive(c, 5*time.Second) {
				t.Errorf("%s: %s to %s is dead", when, c.LocalAddr(), c.RemoteAddr())
			}
		}
	}
	living("before")
	table := func() map[string]api.Session {
		var s api.Sessions
		r.ask(&s, "sessions", "--proto", "tcp", "--limit", "1000")
		out := map[string]api.Session{}
		for _, x := range s.Sessions {
			out[keptSession(&x)] = x
		}
		return out
	}
	for round, n := range []int{1, 2} {
		stop := make(chan struct{})
		type said struct {
			n   int
			err error
		}
		end := make(chan said, 1)
		go func() {
			n, err := carryOn(busy, stop)
			end <- said{n, err}
		}()
		var p host.Probe
		stream := r.spawn(r.Alpha1.Name, &p, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-local", fmt.Sprintf("%s:%d", r.Alpha1.V4, 5000+round), "-pps", "500", "-duration", "4s", "-wait", "1s")
		r.until(5*time.Second, "the stream's session", func() (bool, string) { return len(sessionsOf(r, "alpha", 5000+round)) == 1, "" })
		before := table()
		public := sessionsOf(r, "alpha", 5000+round)[0].XlatSrc
		workers(n)
		if round == 1 { // as systemd restarts it
			r.cmd.Process.Signal(unix.SIGUSR1)
			if !r.gone(8*time.Second) || r.err != nil {
				t.Fatalf("ended with %v", r.err)
			}
		} else {
			r.stop()
		}
		if st, err := os.Stat(filepath.Join(r.data, handed.Name)); err != nil || st.Mode() != 0o600 {
			t.Fatalf("what is left: %v, %v", st, err)
		}
		r.start()
		after, st := table(), r.status()
		if x := st.Resumed; x == nil || x.Problem != "" || x.Taken < uint64(len(before)) || x.Version == "" || x.Away <= 0 || x.Away > 30 {
			t.Fatalf("round %d: %+v of %d sessions", round, x, len(before))
		} else {
			for why, n := range x.Refused {
				if n != 0 {
					t.Errorf("round %d: %d refused: %s", round, n, why)
				}
			}
		}
		for k, was := range before {
			if is, ok := after[k]; !ok {
				t.Errorf("round %d: no session %s", round, k)
			} else if is.Orig.Packets < was.Orig.Packets || is.Orig.Bytes < was.Orig.Bytes || is.State != was.State || is.Expires > 7440 || is.Expires < 30 {
				t.Errorf("round %d: session %+v, it was %+v", round, is, was)
			}
		}
		if files, _ := filepath.Glob(filepath.Join(r.data, handed.Name+"*")); files != nil {
			t.Errorf("round %d: %v are left", round, files)
		}
		living(fmt.Sprintf("round %d", round))
		close(stop)
		if s := <-end; s.err != nil || s.n == 0 {
			t.Errorf("round %d: of a connection with data %d bytes came back right, %v", round, s.n, s.err)
		}
		r.wait(stream)
		if got := sessionsOf(r, "alpha", 5000+round); len(got) != 1 || got[0].XlatSrc != public {
			t.Errorf("round %d: the stream had the public port %s: %+v", round, public, got)
		}
		if p.Sent-p.Received == 0 || p.Received < p.Sent/4 {
			t.Errorf("round %d: %d of %d came back", round, p.Received, p.Sent)
		}
		t.Logf("round %d, %d workers: %d sessions taken up in %.1f ms, %.1f ms after they were left; the stream's longest gap was %.0f ms", round, n, st.Resumed.Taken, 1e3*st.Resumed.Took, 1e3*st.Resumed.Away, p.LongestMs)
		if out, _, _ := r.cli("status"); !strings.Contains(out, fmt.Sprintf("resumed   %d sessions of the process before", st.Resumed.Taken)) {
			t.Errorf("round %d: status says\n%s", round, out)
		}
		if got := r.metric(`demarc_gateway_resumed_sessions{result="taken"}`); got != float64(st.Resumed.Taken) {
			t.Errorf("round %d: the metric says %v", round, got)
		}
	}
	r.stop()
	name := filepath.Join(r.data, handed.Name)
	b, err := os.ReadFile(name)
	check(t, err)
	b[len(b)/2] ^= 4
	check(t, os.WriteFile(name, b, 0o600))
	r.start()
	if x := r.status().Resumed; x == nil || !strings.Contains(x.Problem, "damaged") || x.Taken != 0 || len(table()) != 0 {
		t.Errorf("of a damaged file: %+v", x)
	}
	if out, _, _ := r.cli("status"); !strings.Contains(out, "ANEW      sessions of the process before are not taken up: damaged") {
		t.Errorf("status says\n%s", out)
	}
	fresh := rigDial(r, r.Alpha1.Name, addrPort(r.Public1.V4, 7100))
	if !alive(fresh, 5*time.Second) {
		t.Error("a new connection does not pass")
	}
	r.kill()
	r.start()
	if x := r.status().Resumed; x != nil {
		t.Errorf("after kill -9 there is %+v", x)
	}
	if alive(fresh, 300*time.Millisecond) || alive(conns[0], 300*time.Millisecond) {
		t.Error("a connection lives on after kill -9: of whose state?")
	}
	r.stop()
}
