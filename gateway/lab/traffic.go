package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
)

// What the demo relies on in lab.policy.toml.
const (
	alphaBits   = 20e6              // alpha's limit in each direction, bit/s
	forwardTo   = "192.0.2.16:8080" // forwarded to alpha1's port 80, allowed from public1 only
	floodBits   = 60e6              // what alpha2 offers
	samePort    = 40000             // alpha1 and beta1 send from the same inside address and this port
	alphaRate   = 8e6               // paced download of alpha, below its limit so that nothing of it may be lost
	betaRate    = 60e6              // paced download of beta
	dnsQueries  = 10
	pingsPerSec = 10
)

// tally is what one tenant's hosts and the public hosts counted of its traffic on their own devices.
type tally struct {
	OutSent netlab.Count // by the tenant's hosts, for the public side
	OutCame netlab.Count // to the public hosts, from the tenant's public addresses
	InSent  netlab.Count // by the public hosts, for the tenant's public addresses
	InCame  netlab.Count // to the tenant's hosts, from the public side
}

// tenantSeen is what one tenant's hosts measured.
type tenantSeen struct {
	Download, Download6 host.Download
	Ping4, Ping6        host.Ping // before the flood
	Probe               host.Probe
	DNS                 host.DNS
	Tally               tally
	Leaked              int    // frames on its devices with the other tenant's payload
	SessionXlat         string // what the gateway says that its inside samePort became
}

// seen is everything that promises are judged by.
type seen struct {
	Alpha, Beta   tenantSeen
	Web           host.HTTPServed
	Echo          host.Echo
	Names         host.DNSServed
	Sink          host.Sink
	Flood         host.Flood
	FloodFor      time.Duration
	BetaUnder     host.Ping  // during the flood; Beta.Ping4 is before it
	BetaProbe     host.Probe // beta's paced stream during the flood
	Forward       host.Attempt
	Refused       []host.Attempt
	Inside        host.TCPServed          // whom alpha1's server on port 80 accepted
	RefusedSyn    map[string]netlab.Count // what was sent to the refused addresses, by tenant
	Untranslated  netlab.Count            // packets with a private source that reached the public side
	KernelForward uint64                  // packets that the kernel of the gateway's namespace forwarded
	Before, After *api.Status
	Errors        []string // tools that could not measure
	GatewayEnd    string   // how the gateway ended when it should not have; empty = it did what it was told
}

// traffic lets the hosts talk and fills a seen.
type traffic struct {
	top   *netlab.Topology
	g     *gateway
	phase func(string) // tells the view what happens now

	mu   sync.Mutex
	seen seen
}

// fail notes that something could not be measured.
func (t *traffic) fail(err error) {
	if err != nil {
		t.mu.Lock()
		t.seen.Errors = append(t.seen.Errors, err.Error())
		t.mu.Unlock()
	}
}

// meters are the devices' counters that make a tally: one per host and address family, added up.
type meters struct{ outSent, outCame, inSent, inCame []*netlab.Meter }

func (t *traffic) meters(tenant [2]host2, pool, net6 string) (m meters, err error) {
	public := [2]host2{{t.top.Public1.Name}, {t.top.Public2.Name}}
	add := func(list *[]*netlab.Meter, hosts [2]host2, d netlab.Direction, matches ...netlab.Match) {
		for _, h := range hosts {
			for _, match := range matches {
				meter, e := t.top.Meter(h.ns, netlab.HostDevice, d, match)
				err = errors.Join(err, e)
				*list = append(*list, meter)
			}
		}
	}
	pool4, own6 := netip.MustParsePrefix(pool), netip.MustParsePrefix(net6)
	public4, public6 := netip.MustParsePrefix(netlab.PublicNet4), netip.MustParsePrefix(netlab.PublicNet6)
	add(&m.outSent, tenant, netlab.Egress, netlab.Match{Dst: public4}, netlab.Match{Dst: public6})
	add(&m.outCame, public, netlab.Ingress, netlab.Match{Src: pool4}, netlab.Match{Src: own6})
	add(&m.inSent, public, netlab.Egress, netlab.Match{Dst: pool4}, netlab.Match{Dst: own6})
	add(&m.inCame, tenant, netlab.Ingress, netlab.Match{Src: public4}, netlab.Match{Src: public6})
	return m, err
}

type host2 struct{ ns string }

func sum(list []*netlab.Meter) (c netlab.Count, err error) {
	for _, m := range list {
		one, e := m.Read()
		err = errors.Join(err, e)
		c.Packets += one.Packets
		c.Bytes += one.Bytes
	}
	return c, err
}

func (m *meters) tally() (t tally, err error) {
	for _, x := range []struct {
		to   *netlab.Count
		from []*netlab.Meter
	}{{&t.OutSent, m.outSent}, {&t.OutCame, m.outCame}, {&t.InSent, m.inSent}, {&t.InCame, m.inCame}} {
		c, e := sum(x.from)
		*x.to, err = c, errors.Join(err, e)
	}
	return t, err
}

// run is the whole demo's traffic: first everything at once but the flood, for calm; then the flood of alpha with beta going on. It
// returns an error only when the lab itself does not work; what the gateway does wrong is in seen.
func (t *traffic) run(ctx context.Context, calm, flood time.Duration) error {
	top := t.top
	alphaM, err := t.meters([2]host2{{top.Alpha1.Name}, {top.Alpha2.Name}}, netlab.AlphaPool, netlab.AlphaNet6)
	if err != nil {
		return err
	}
	betaM, err := t.meters([2]host2{{top.Beta1.Name}, {top.Beta2.Name}}, netlab.BetaPool, netlab.BetaNet6)
	if err != nil {
		return err
	}
	var private []*netlab.Meter
	for _, h := range []string{top.Public1.Name, top.Public2.Name} {
		m, err := top.Meter(h, netlab.HostDevice, netlab.Ingress, netlab.Match{Src: netip.MustParsePrefix("198.18.0.0/15")})
		if err != nil {
			return err
		}
		private = append(private, m)
	}
	refused, err := t.refusedTargets()
	if err != nil {
		return err
	}
	leaks, err := t.watchLeaks()
	if err != nil {
		return err
	}
	servers, err := t.servers()
	if err != nil {
		return err
	}
	if t.seen.Before, err = t.g.status(ctx); err != nil {
		return err
	}

	t.phase("downloads, pings, UDP both ways, DNS, inbound attempts")
	t.together(ctx, t.calmJobs(calm, refused)...)
	t.phase("alpha floods its line, beta goes on")
	t.seen.FloodFor = flood
	t.together(ctx, t.floodJobs(flood)...)
	t.phase("counting")
	if ctx.Err() != nil {
		return ctx.Err()
	}

	// The sessions that the flood phase did not touch are still there: what the gateway says of the two equal inside sources.
	t.fail(t.readSessions(ctx))
	for _, s := range servers {
		t.fail(s.server.Stop(s.into))
	}
	if err := t.settle(ctx, &alphaM, &betaM); err != nil {
		return err
	}
	if t.seen.Untranslated, err = sum(private); err != nil {
		return err
	}
	t.seen.RefusedSyn = map[string]netlab.Count{}
	for _, r := range refused {
		c, err := r.meter.Read()
		if err != nil {
			return err
		}
		was := t.seen.RefusedSyn[r.tenant]
		t.seen.RefusedSyn[r.tenant] = netlab.Count{Packets: was.Packets + c.Packets, Bytes: was.Bytes + c.Bytes}
	}
	for _, l := range leaks {
		n, err := l.capture.Stop()
		t.fail(err)
		*l.into += n
	}
	t.seen.KernelForward, err = kernelForwarded(top.Lab)
	return err
}

// settle waits until nothing moves any more (what was queued has left), then takes both sides' counts.
func (t *traffic) settle(ctx context.Context, alpha, beta *meters) error {
	deadline := time.Now().Add(3 * time.Second)
	var last [2]tally
	for {
		a, err1 := alpha.tally()
		b, err2 := beta.tally()
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if a == last[0] && b == last[1] || time.Now().After(deadline) {
			break
		}
		last = [2]tally{a, b}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
	// Workers publish their counters per burst, or when idle for a moment; 200 ms have passed since the last packet.
	st, err := t.g.status(ctx)
	if err != nil {
		return fmt.Errorf("last status: %w", err)
	}
	t.seen.After = st
	t.seen.Alpha.Tally, t.seen.Beta.Tally = last[0], last[1]
	return nil
}

// together runs jobs at the same time and waits for all.
func (t *traffic) together(ctx context.Context, jobs ...func(context.Context) error) {
	var wg sync.WaitGroup
	for _, job := range jobs {
		wg.Go(func() { t.fail(job(ctx)) })
	}
	wg.Wait()
}

func (t *traffic) tool(ns string, into any, args ...string) func(context.Context) error {
	return func(ctx context.Context) error { return t.top.Run(ctx, ns, into, args...) }
}

func (t *traffic) calmJobs(d time.Duration, refused []refusedTarget) []func(context.Context) error {
	top, s := t.top, &t.seen
	seconds := d.Seconds()
	var jobs []func(context.Context) error
	for _, x := range []struct {
		seen          *tenantSeen
		first, second netlab.Host
		rate          float64
		seed          int
	}{{&s.Alpha, top.Alpha1, top.Alpha2, alphaRate, 1}, {&s.Beta, top.Beta1, top.Beta2, betaRate, 2}} {
		// A seventh less than fits, so that the transfer ends within the phase.
		size := strconv.Itoa(int(x.rate / 8 * seconds * 6 / 7))
		pings := strconv.Itoa(max(5, int(seconds*pingsPerSec)-pingsPerSec))
		period := (time.Second / pingsPerSec).String()
		timeout := (d + 5*time.Second).String()
		jobs = append(jobs,
			t.tool(x.first.Name, &x.seen.Download, "http-get", "-url", "http://"+top.Public1.V4.String(), "-seed", strconv.Itoa(x.seed),
				"-size", size, "-rate", strconv.FormatFloat(x.rate, 'f', 0, 64), "-timeout", timeout),
			t.tool(x.second.Name, &x.seen.Download6, "http-get", "-url", "http://["+top.Public1.V6.String()+"]", "-seed", strconv.Itoa(x.seed+10),
				"-size", "300000", "-rate", "2000000", "-timeout", timeout),
			t.tool(x.second.Name, &x.seen.Ping4, "ping", "-dst", top.Public2.V4.String(), "-count", pings, "-interval", period),
			t.tool(x.second.Name, &x.seen.Ping6, "ping", "-dst", top.Public2.V6.String(), "-count", pings, "-interval", period),
			t.tool(x.first.Name, &x.seen.Probe, "udp-probe", "-dst", top.Public1.V4.String()+":7007",
				"-local", fmt.Sprintf("%s:%d", x.first.V4, samePort), "-tag", x.first.Name, "-pps", "100", "-duration", (d-time.Second).String()),
			t.tool(x.second.Name, &x.seen.DNS, "dns-query", "-server", top.Public2.V4.String()+":53", "-count", strconv.Itoa(dnsQueries),
				"-interval", (d/(dnsQueries+2)).String()),
		)
	}
	s.Refused = make([]host.Attempt, len(refused))
	for i, r := range refused {
		jobs = append(jobs, t.tool(r.from, &s.Refused[i], "tcp-connect", "-dst", r.dst.String(), "-timeout", "2500ms"))
	}
	return append(jobs, t.tool(top.Public1.Name, &s.Forward, "tcp-connect", "-dst", forwardTo))
}

func (t *traffic) floodJobs(d time.Duration) []func(context.Context) error {
	top, s := t.top, &t.seen
	// Beta is judged while the flood runs at its full rate, and only then.
	inner := d - time.Second
	later := func(job func(context.Context) error) func(context.Context) error {
		return func(ctx context.Context) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(500 * time.Millisecond):
			}
			return job(ctx)
		}
	}
	pings := strconv.Itoa(int(inner.Seconds() * 20))
	return []func(context.Context) error{
		t.tool(top.Alpha2.Name, &s.Flood, "udp-flood", "-dst", top.Public2.V4.String()+":9000", "-tag", "alphaF",
			"-bits", strconv.FormatFloat(floodBits, 'f', 0, 64), "-duration", d.String()),
		later(t.tool(top.Beta2.Name, &s.BetaUnder, "ping", "-dst", top.Public2.V4.String(), "-count", pings, "-interval", "50ms")),
		later(t.tool(top.Beta1.Name, &s.BetaProbe, "udp-probe", "-dst", top.Public2.V4.String()+":7007", "-tag", "betaP",
			"-pps", "400", "-size", "600", "-duration", inner.String())),
	}
}

type running struct {
	server *netlab.Server
	into   any
}

func (t *traffic) servers() (out []running, err error) {
	top, s := t.top, &t.seen
	for _, x := range []struct {
		ns   string
		into any
		args []string
	}{
		{top.Public1.Name, &s.Web, []string{"http-serve", "-addr", ":80"}},
		{top.Public1.Name, &s.Echo, []string{"udp-echo", "-addr", ":7007"}},
		{top.Public2.Name, nil, []string{"udp-echo", "-addr", ":7007"}},
		{top.Public2.Name, &s.Names, []string{"dns-serve", "-addr", ":53"}},
		{top.Public2.Name, &s.Sink, []string{"udp-sink", "-addr", ":9000"}},
		{top.Alpha1.Name, &s.Inside, []string{"tcp-serve", "-addr", ":80", "-banner", top.Alpha1.Name}},
		{top.Beta1.Name, nil, []string{"tcp-serve", "-addr", ":80", "-banner", top.Beta1.Name}},
	} {
		server, err := top.Serve(x.ns, x.args...)
		if err != nil {
			return nil, err
		}
		out = append(out, running{server, x.into})
	}
	return out, nil
}

// refusedTarget is an inbound connection that the ACL must refuse: something listens there, so nothing else would.
type refusedTarget struct {
	tenant, from string
	dst          netip.AddrPort
	meter        *netlab.Meter
}

func (t *traffic) refusedTargets() ([]refusedTarget, error) {
	top := t.top
	list := []refusedTarget{
		{tenant: "alpha", from: top.Public2.Name, dst: netip.MustParseAddrPort(forwardTo)},
		{tenant: "alpha", from: top.Public1.Name, dst: netip.AddrPortFrom(top.Alpha1.V6, 80)},
		{tenant: "beta", from: top.Public2.Name, dst: netip.AddrPortFrom(top.Beta1.V6, 80)},
	}
	for i := range list {
		r := &list[i]
		var err error
		r.meter, err = top.Meter(r.from, netlab.HostDevice, netlab.Egress, netlab.Match{
			Dst: netip.PrefixFrom(r.dst.Addr(), r.dst.Addr().BitLen()), Proto: unix.IPPROTO_TCP, DstPort: r.dst.Port()})
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

type leak struct {
	capture *netlab.Capture
	into    *int
}

// watchLeaks looks for one tenant's payload on the other's devices: nothing of it may ever be there.
func (t *traffic) watchLeaks() (out []leak, err error) {
	top := t.top
	for _, x := range []struct {
		hosts   []netlab.Host
		foreign string
		into    *int
	}{
		{[]netlab.Host{top.Beta1, top.Beta2}, "alpha", &t.seen.Beta.Leaked},
		{[]netlab.Host{top.Alpha1, top.Alpha2}, "beta", &t.seen.Alpha.Leaked},
	} {
		marker := bytes.TrimRight(host.ProbeMarker(x.foreign), "\x00")
		for _, h := range x.hosts {
			c, err := top.Capture(h.Name, netlab.HostDevice, 0, func(frame []byte) bool { return bytes.Contains(frame, marker) })
			if err != nil {
				return nil, err
			}
			out = append(out, leak{c, x.into})
		}
	}
	return out, nil
}

// readSessions asks the gateway what became of the one inside address and port that both tenants use.
func (t *traffic) readSessions(ctx context.Context) error {
	for name, s := range map[string]*tenantSeen{"alpha": &t.seen.Alpha, "beta": &t.seen.Beta} {
		var list api.Sessions
		if err := t.g.get(ctx, fmt.Sprintf("%s?tenant=%s&proto=udp&port=%d", api.PathSessions, name, samePort), &list); err != nil {
			return err
		}
		want := netip.AddrPortFrom(t.top.Alpha1.V4, samePort).String()
		for _, x := range list.Sessions {
			if x.Tenant == name && x.Src == want {
				s.SessionXlat = x.XlatSrc
			}
		}
	}
	return nil
}

// kernelForwarded is how many packets the kernel routed in the gateway's namespace, both families.
func kernelForwarded(l *netlab.Lab) (total uint64, err error) {
	err = l.Do(netlab.GW, func() error {
		v4, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		v6, err := os.ReadFile("/proc/thread-self/net/snmp6")
		if err != nil {
			return err
		}
		m4 := regexp.MustCompile(`(?m)^Ip: \d+ \d+ \d+ \d+ \d+ (\d+) `).FindSubmatch(v4)
		m6 := regexp.MustCompile(`(?m)^Ip6OutForwDatagrams\s+(\d+)$`).FindSubmatch(v6)
		if m4 == nil || m6 == nil {
			return errors.New("no count of forwarded packets in /proc/net/snmp")
		}
		for _, m := range [][][]byte{m4, m6} {
			n, err := strconv.ParseUint(string(m[1]), 10, 64)
			if err != nil {
				return err
			}
			total += n
		}
		return nil
	})
	return total, err
}
