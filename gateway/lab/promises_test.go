package lab

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
)

// good is what a demo measures when everything is as promised.
func good() *seen {
	ping := host.Ping{Sent: 50, Received: 50, RTT: host.Latency{N: 50, P50: 0.2, P99: 1}}
	buckets := make([]uint64, 160)
	for i := range buckets {
		buckets[i] = uint64(alphaBits / 8 * host.SinkBucket.Seconds())
	}
	tenant := func(xlat string) tenantSeen {
		return tenantSeen{
			Download: host.Download{OK: true, Bytes: 1000}, Download6: host.Download{OK: true, Bytes: 100},
			Ping4: ping, Ping6: ping, Probe: host.Probe{Sent: 400, Received: 400}, DNS: host.DNS{Asked: 10, Answered: 10},
			Tally:       tally{OutSent: netlab.Count{Packets: 5000}, OutCame: netlab.Count{Packets: 5000, Bytes: 50000}, InCame: netlab.Count{Packets: 7000, Bytes: 70000}},
			SessionXlat: xlat,
		}
	}
	status := func(drops map[string]uint64, alphaOut uint64, k uint64) *api.Status {
		return &api.Status{
			Conservation: api.Conservation{OK: true},
			Tenants: []api.Tenant{
				{Name: "alpha", Out: api.Counter{Packets: alphaOut, Bytes: 50000 * k}, In: api.Counter{Packets: 7000 * k, Bytes: 70000 * k}, Drops: drops},
				{Name: "beta", Out: api.Counter{Packets: 5000 * k, Bytes: 50000 * k}, In: api.Counter{Packets: 7000 * k, Bytes: 70000 * k},
					Drops: map[string]uint64{"acl_default": 2 * k}},
			},
			Ports: []api.Port{{Name: "bb0", Queues: []api.Queue{{Mode: "copy", Rx: api.Counter{Packets: 100000}}}},
				{Name: "alpha0", Queues: []api.Queue{{Mode: "copy"}}}, {Name: "beta0", Queues: []api.Queue{{Mode: "copy"}}}},
		}
	}
	s := &seen{
		Alpha: tenant("192.0.2.17:40000"), Beta: tenant("192.0.2.33:40000"),
		Web: host.HTTPServed{Peers: map[string]int{"192.0.2.17": 1, "192.0.2.40": 1, "2001:db8:a::12": 1, "2001:db8:b::12": 1}},
		Echo: host.Echo{Tags: map[string]*host.Echoed{
			"alpha1": {Packets: 400, Sources: map[string]int{"192.0.2.17:40000": 400}},
			"beta1":  {Packets: 400, Sources: map[string]int{"192.0.2.33:40000": 400}},
		}},
		Names: host.DNSServed{Peers: map[string]int{"192.0.2.18": 10}},
		Sink:  host.Sink{Tags: map[string]*host.Sunk{"alphaF": {Buckets: buckets}}},
		Flood: host.Flood{Bits: floodBits}, FloodFor: 8 * time.Second,
		BetaUnder: ping, BetaProbe: host.Probe{Sent: 3000, Received: 3000},
		Forward: host.Attempt{Connected: true, Banner: "alpha1"},
		Refused: []host.Attempt{{How: "timeout"}, {How: "timeout"}, {How: "timeout"}},
		Inside:  host.TCPServed{Accepted: 1, Peers: map[string]int{"203.0.113.11": 1}},
		RefusedSyn: map[string]netlab.Count{
			"alpha": {Packets: 4}, "beta": {Packets: 2},
		},
		Before: status(nil, 0, 0),
		After:  status(map[string]uint64{"acl_default": 4, "tenant_queue_full": 20000}, 5000, 1),
	}
	s.Alpha.Tally.OutSent.Packets = 25000
	return s
}

func broken(s *seen) []string {
	r := Result{Promises: judge(s)}
	return r.Broken()
}

// Each thing that can go wrong must break the promise of its name, and only those listed.
func TestJudge(t *testing.T) {
	if b := broken(good()); len(b) != 0 {
		for _, p := range judge(good()) {
			t.Log(p.Name, p.Why)
		}
		t.Fatalf("broken: %v", b)
	}
	for _, c := range []struct {
		name   string
		change func(*seen)
		want   []string
	}{
		{"a checksum differs", func(s *seen) { s.Beta.Download.OK = false }, []string{"download"}},
		{"fewer inbound bytes counted than files came", func(s *seen) { s.Alpha.Download.Bytes = 1e9 }, []string{"download"}},
		{"an IPv6 ping is lost", func(s *seen) { s.Alpha.Ping6.Received-- }, []string{"ping"}},
		{"nobody pinged", func(s *seen) { s.Alpha.Ping4 = host.Ping{} }, []string{"ping"}},
		{"a probe is lost on the way back", func(s *seen) { s.Alpha.Probe.Received-- }, []string{"udp"}},
		{"a probe is lost on the way there", func(s *seen) { s.Echo.Tags["beta1"].Packets-- }, []string{"udp"}},
		{"a wrong name answer", func(s *seen) { s.Beta.DNS.Wrong++ }, []string{"dns"}},
		{"an inside source outside", func(s *seen) { s.Untranslated.Packets = 1 }, []string{"nat"}},
		{"the web server saw an inside address", func(s *seen) { s.Web.Peers["198.18.10.11"] = 1 }, []string{"nat"}},
		{"the gateway says another port", func(s *seen) { s.Alpha.SessionXlat = "192.0.2.17:40001" }, []string{"nat"}},
		{"two ports for one socket", func(s *seen) { s.Echo.Tags["alpha1"].Sources["192.0.2.17:40002"] = 1 }, []string{"nat"}},
		{"beta leaves as alpha", func(s *seen) {
			s.Echo.Tags["beta1"].Sources = map[string]int{"192.0.2.18:40000": 400}
			s.Beta.SessionXlat = "192.0.2.18:40000"
		}, []string{"nat", "tenant"}},
		{"alpha's payload at beta", func(s *seen) { s.Beta.Leaked = 1 }, []string{"tenant"}},
		{"the other's answer", func(s *seen) { s.Alpha.Probe.Foreign = 1 }, []string{"tenant"}},
		{"one session for both", func(s *seen) { s.Beta.SessionXlat = "" }, []string{"nat", "tenant"}},
		{"the forward leads elsewhere", func(s *seen) { s.Forward.Banner = "beta1" }, []string{"forward"}},
		{"a refused attempt gets in", func(s *seen) { s.Refused[1].Connected = true }, []string{"acl"}},
		{"a stranger at the inside server", func(s *seen) { s.Inside.Peers["203.0.113.12"] = 1 }, []string{"acl"}},
		{"refused without being counted", func(s *seen) { s.After.Tenants[0].Drops["acl_default"] = 0 }, []string{"acl"}},
		{"nothing refused was tried", func(s *seen) { s.Refused, s.RefusedSyn = nil, nil }, []string{"acl"}},
		{"the flood passes", func(s *seen) {
			for i := range s.Sink.Tags["alphaF"].Buckets {
				s.Sink.Tags["alphaF"].Buckets[i] *= 3
			}
		}, []string{"limit"}},
		{"3 % too little", func(s *seen) {
			for i := range s.Sink.Tags["alphaF"].Buckets {
				s.Sink.Tags["alphaF"].Buckets[i] = s.Sink.Tags["alphaF"].Buckets[i] * 97 / 100
			}
		}, []string{"limit"}},
		{"no flood arrived", func(s *seen) { s.Sink.Tags = nil }, []string{"limit"}},
		{"lost without being counted", func(s *seen) { s.After.Tenants[0].Drops["tenant_queue_full"] = 19000 }, []string{"limit"}},
		{"beta loses one", func(s *seen) { s.BetaProbe.Received-- }, []string{"neighbour"}},
		{"beta waits", func(s *seen) { s.BetaUnder.RTT.P50 = 30 }, []string{"neighbour"}},
		{"the bill is 1 % too high", func(s *seen) { s.After.Tenants[1].Out.Bytes += 5000 }, []string{"account"}},
		{"the bill counts double", func(s *seen) { s.After.Tenants[0].Out.Packets *= 2 }, []string{"account"}},
		{"the kernel forwarded", func(s *seen) { s.KernelForward = 1 }, []string{"afxdp"}},
		{"a queue without a mode", func(s *seen) { s.After.Ports[1].Queues[0].Mode = "" }, []string{"afxdp"}},
		{"more came than sockets gave", func(s *seen) { s.After.Ports[0].Queues[0].Rx.Packets = 10 }, []string{"afxdp"}},
		{"frames are lost", func(s *seen) { s.After.Conservation.OK = false }, []string{"frames"}},
		{"it crashed at the end", func(s *seen) { s.GatewayEnd = "did not end in order" }, []string{"frames"}},
		{"a tool failed", func(s *seen) { s.Errors = []string{"ping in alpha2"} }, []string{"lab"}},
	} {
		s := good()
		c.change(s)
		if d := cmp.Diff(c.want, broken(s)); d != "" {
			t.Errorf("%s: broken promises (-want +got):\n%s", c.name, d)
		}
	}
}

// A gateway that died early leaves nothing to compare: that must not panic, and must not pass.
func TestJudgeNothing(t *testing.T) {
	b := broken(&seen{GatewayEnd: "ended by itself", FloodFor: 8 * time.Second})
	for _, name := range append([]string{"download", "ping", "udp", "frames", "afxdp"}, Stages...) {
		if !slices.Contains(b, name) {
			t.Errorf("%s held without anything measured; broken: %v", name, b)
		}
	}
}

func TestView(t *testing.T) {
	var out bytes.Buffer
	v := newView(&out)
	s := good()
	now := time.Now()
	v.setPhase("talking")
	v.show(s.Before, now)
	v.show(s.After, now.Add(time.Second))
	for _, want := range []string{"talking", "alpha out 5000 pkt/s 400.0 kbit/s in 7000 pkt/s 560.0 kbit/s", "tenant_queue_full 20000, acl_default 4", "3 copy"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, out.String())
		}
	}
	out.Reset()
	v = newView(&out)
	v.width = 60
	v.show(s.Before, now)
	v.show(s.After, now.Add(time.Second))
	v.show(s.After, now.Add(2*time.Second))
	text := out.String()
	first := strings.Index(text, "\x1b[")
	if strings.Count(text, "demarc lab") != 2 || first < 0 || !strings.Contains(text, "A\r\x1b[2Kdemarc lab") {
		t.Errorf("the second picture is not drawn over the first:\n%q", text)
	}
	for _, l := range strings.Split(strings.ReplaceAll(text, "\r\x1b[2K", ""), "\n") {
		if n := len([]rune(l)); n > 70 {
			t.Errorf("a line of %d characters on a terminal of 60: %q", n, l)
		}
	}
}

func TestFilesOfTheLab(t *testing.T) {
	f, err := writeFiles(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(f.socket, f.dir) {
		t.Errorf("the socket %s is outside %s", f.socket, f.dir)
	}
}

func TestRunRefusesWrongOptions(t *testing.T) {
	for _, o := range []Options{{Break: "everything"}, {Duration: time.Second}} {
		if _, err := Run(t.Context(), o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}
