package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"demarc/gateway/api"
)

func TestProbeVerbs(t *testing.T) {
	f := &fake{}
	s := serve(t, f)
	last := func() api.ProbeRequest { return f.acted.probes[len(f.acted.probes)-1] }
	r := call(t, t.Context(), "", "ping", "198.51.100.9", "--interface", "wan", "-c", "5", "-s", "100", "-W", "500ms", "-i", "200ms", "-t", "9", "--df", "--socket", s)
	golden(t, "ping", r.out)
	if d := cmp.Diff(api.ProbeRequest{Address: "198.51.100.9", Interface: "wan", Count: 5, Size: 100, Timeout: 0.5, Interval: 0.2, TTL: 9, DF: true}, last()); d != "" || r.code != exitOK {
		t.Error(r.code, d)
	}
	r = call(t, t.Context(), "", "ping", "198.51.100.1", "-c", "2", "--socket", s)
	golden(t, "ping-nobody", r.out)
	if r.code != exitFailed || r.err != "" {
		t.Error(r.code, r.err)
	}
	r = call(t, t.Context(), "", "traceroute", "2001:db8::9", "--tenant", "alpha", "--tcp", "443", "-m", "9", "-q", "2", "-w", "1s", "--socket", s)
	golden(t, "traceroute", r.out)
	if d := cmp.Diff(api.ProbeRequest{Address: "2001:db8::9", Tenant: "alpha", Proto: "tcp", Port: 443, MaxHops: 9, Queries: 2, Timeout: 1, Size: 32}, last()); d != "" || r.code != exitOK {
		t.Error(r.code, d)
	}
	for arg, want := range map[string]string{"--icmp": "icmp", "-I": "icmp", "--udp": "udp", "-q3": "udp"} {
		call(t, t.Context(), "", "traceroute", "198.51.100.9", arg, "--socket", s)
		if last().Proto != want {
			t.Errorf("%s: %s", arg, last().Proto)
		}
	}
	r = call(t, t.Context(), "", "ping", "198.51.100.9", "-c", "5", "--json", "--socket", s)
	if lines := strings.Split(strings.TrimSpace(r.out), "\n"); len(lines) != 7 {
		t.Errorf("%d lines of JSON", len(lines))
	} else {
		for _, l := range lines {
			var e api.ProbeEvent
			if err := json.Unmarshal([]byte(l), &e); err != nil || e.Event == "" {
				t.Errorf("%q: %v", l, err)
			}
		}
	}
	for _, args := range []string{"ping", "ping a b", "ping 1.2.3.4 -c -1", "traceroute", "traceroute 1.2.3.4 --icmp --udp", "traceroute 1.2.3.4 --tcp 0", "traceroute 1.2.3.4 --tcp 80 -I"} {
		if r := call(t, t.Context(), "", append(strings.Fields(args), "--socket", s)...); r.code != exitUsage {
			t.Errorf("%s: exit %d, %s", args, r.code, r)
		}
	}
	f.refuse = api.BadRequest("there is no interface %q", "x")
	if r := call(t, t.Context(), "", "ping", "198.51.100.9", "--socket", s); r.code != exitFailed || r.err != "demarc: there is no interface \"x\"\n" {
		t.Error(r)
	}
}

// untilWritten calls fn once text is among what was written.
type untilWritten struct {
	bytes.Buffer
	text string
	fn   func()
}

func (u *untilWritten) Write(b []byte) (int, error) {
	n, err := u.Buffer.Write(b)
	if strings.Contains(u.String(), u.text) {
		u.fn()
	}
	return n, err
}

// TestPingInterrupted: who interrupts a ping is told the end all the same: all that was sent, and why nothing may have come.
func TestPingInterrupted(t *testing.T) {
	s := serve(t, &fake{})
	run := func(until, address string, args ...string) (int, *untilWritten) {
		ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
		defer stop()
		out := &untilWritten{text: until, fn: stop}
		root := New("v0.1")
		root.SetArgs(append([]string{"ping", address, "--socket", s}, args...))
		root.SetOut(out)
		return Execute(ctx, root), out
	}
	last := func(u *untilWritten) (e api.ProbeEvent) {
		t.Helper()
		lines := strings.Split(strings.TrimSpace(u.String()), "\n")
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &e); err != nil || e.Seconds <= 0 || e.Seconds > 60 {
			t.Errorf("%v: %s", err, u)
		}
		e.Seconds = 0
		return e
	}
	code, out := run("icmp_seq=2", "198.51.100.2")
	if code != exitOK || !strings.Contains(out.String(), "\n3 packets transmitted, 2 received, 33.33% packet loss, time ") || !strings.HasSuffix(out.String(), "\nrtt min/avg/max/mdev = 10.000/20.000/30.000/10.000 ms\n") {
		t.Errorf("answered: exit %d, %s", code, out)
	}
	code, out = run(`"seq":2,"ms"`, "198.51.100.2", "--json")
	if d := cmp.Diff(api.ProbeEvent{Event: "end", Sent: 3, Received: 2, Min: 10, Avg: 20, Max: 30, Mdev: 10}, last(out)); d != "" || code != exitOK {
		t.Errorf("answered: exit %d, %s", code, d)
	}
	code, out = run(`"sent":2`, "198.51.100.3", "--json")
	if d := cmp.Diff(api.ProbeEvent{Event: "end", Sent: 2, Remark: "203.0.113.254 does not answer on wan"}, last(out)); d != "" || code != exitFailed {
		t.Errorf("not answered: exit %d, %s", code, d)
	}
	code, out = run(`"seq":4`, "198.51.100.4", "--json")
	if d := cmp.Diff(api.ProbeEvent{Event: "end", Sent: 4, Received: 1, Min: 10, Avg: 10, Max: 10}, last(out)); d != "" || code != exitOK {
		t.Errorf("a node of a release before: exit %d, %s", code, d)
	}
	// What the node ended itself has one end.
	code, out = run(`"end"`, "198.51.100.9", "--json")
	if code != exitOK || strings.Count(out.String(), `"event":"end"`) != 1 {
		t.Errorf("ended: exit %d, %s", code, out)
	}
}
