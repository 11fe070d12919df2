package cli

import (
	"encoding/json"
	"strings"
	"testing"

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
