package lab

import (
	"fmt"
	"math"
	"net/netip"
	"sort"
	"strings"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/verdict"
)

// Promise is one line of the verdict.
type Promise struct {
	Name    string   `json:"name"`    // what --break switches off has the same name
	Text    string   `json:"text"`    // what was promised
	Hosts   string   `json:"hosts"`   // what the hosts saw
	Gateway string   `json:"gateway"` // what the gateway says
	OK      bool     `json:"ok"`
	Why     []string `json:"why,omitempty"` // what is wrong
	late    int      // how many of Why are a time or a rate, and so could be the machine's
}

// Tolerances. Counts on both sides are exact; what is left is what moves while they are read.
const (
	accountTolerance = 0.001                  // of the larger count
	accountSlack     = 3                      // packets
	limitTolerance   = 0.02                   // of the configured rate, over floodWindow
	floodSkip        = time.Second            // the bucket's burst and the start of both ends are over
	floodTail        = 500 * time.Millisecond // not measured at the end
	quietP50         = 5.0                    // ms that beta's median ping may grow while alpha floods
	quietP99         = 40.0                   // ms that beta's ping may take at all
	lossTolerance    = 0.01                   // of the lost packets: hosts' count against the gateway's
)

func (p *Promise) fail(format string, args ...any) {
	p.Why = append(p.Why, fmt.Sprintf(format, args...))
}

func (p *Promise) require(ok bool, format string, args ...any) {
	if !ok {
		p.fail(format, args...)
	}
}

// inTime is require for a limit of time or rate.
func (p *Promise) inTime(ok bool, format string, args ...any) {
	if p.require(ok, format, args...); !ok {
		p.late++
	}
}

// judge turns what was measured into the verdict. It is pure.
func judge(s *seen) []Promise {
	list := []Promise{
		judgeDownload(s), judgePing(s), judgeUDP(s), judgeDNS(s), judgeNAT(s), judgeTenant(s), judgeForward(s), judgeACL(s),
		judgeLimit(s), judgeNeighbour(s), judgeAccount(s), judgeAFXDP(s), judgeFrames(s), judgeLab(s),
	}
	for i := range list {
		list[i].OK = len(list[i].Why) == 0
	}
	return list
}

// tenants gives both tenants' sides of everything.
func (s *seen) tenants() []side {
	return []side{
		{"alpha", "alpha1", &s.Alpha, netip.MustParsePrefix(netlab.AlphaPool), netip.MustParsePrefix(netlab.AlphaNet6)},
		{"beta", "beta1", &s.Beta, netip.MustParsePrefix(netlab.BetaPool), netip.MustParsePrefix(netlab.BetaNet6)},
	}
}

type side struct {
	name, tag  string
	seen       *tenantSeen
	pool, net6 netip.Prefix
}

// tenantIn finds a tenant in a status; a missing one counts as all zero.
func tenantIn(st *api.Status, name string) api.Tenant {
	if st != nil {
		for _, t := range st.Tenants {
			if t.Name == name {
				return t
			}
		}
	}
	return api.Tenant{}
}

func delta(after, before api.Counter) netlab.Count {
	return netlab.Count{Packets: since(after.Packets, before.Packets), Bytes: since(after.Bytes, before.Bytes)}
}

// since is how far a counter moved; one that went back (a gateway that started again) counts as not moved.
func since(after, before uint64) uint64 { return after - min(after, before) }

// dropped is how many packets of a tenant the gateway dropped for these reasons while the demo ran.
func (s *seen) dropped(tenant string, reasons ...verdict.Reason) (n uint64) {
	before, after := tenantIn(s.Before, tenant).Drops, tenantIn(s.After, tenant).Drops
	for _, r := range reasons {
		n += since(after[r.String()], before[r.String()])
	}
	return n
}

func judgeDownload(s *seen) Promise {
	p := Promise{Name: "download", Text: "files arrive whole, IPv4 and IPv6"}
	var hosts, says []string
	for _, t := range s.tenants() {
		for _, d := range []struct {
			what string
			ok   bool
			err  string
			n    int64
		}{{"IPv4", t.seen.Download.OK, t.seen.Download.Error, t.seen.Download.Bytes}, {"IPv6", t.seen.Download6.OK, t.seen.Download6.Error, t.seen.Download6.Bytes}} {
			why := d.err
			if why == "" {
				why = "the checksum differs"
			}
			p.require(d.ok, "%s's download over %s: %d bytes came: %s", t.name, d.what, d.n, why)
		}
		payload := t.seen.Download.Bytes + t.seen.Download6.Bytes
		in := delta(tenantIn(s.After, t.name).In, tenantIn(s.Before, t.name).In)
		p.require(in.Bytes >= uint64(payload), "%s got %d bytes of files, the gateway counted only %d inbound", t.name, payload, in.Bytes)
		hosts = append(hosts, fmt.Sprintf("%s %.1f MB, SHA-256 equal", t.name, float64(payload)/1e6))
		says = append(says, fmt.Sprintf("in %.1f MB", float64(in.Bytes)/1e6))
	}
	p.Hosts, p.Gateway = strings.Join(hosts, "; "), strings.Join(says, "; ")
	return p
}

func judgePing(s *seen) Promise {
	p := Promise{Name: "ping", Text: "every ping is answered, IPv4 and IPv6"}
	sent, got, worst := 0, 0, 0.0
	for _, t := range s.tenants() {
		for _, x := range []struct {
			what                string
			sent, received, bad int
			p99                 float64
		}{{"IPv4", t.seen.Ping4.Sent, t.seen.Ping4.Received, t.seen.Ping4.Bad, t.seen.Ping4.RTT.P99},
			{"IPv6", t.seen.Ping6.Sent, t.seen.Ping6.Received, t.seen.Ping6.Bad, t.seen.Ping6.RTT.P99}} {
			p.require(x.sent > 0 && x.received == x.sent && x.bad == 0, "%s's %s pings: %d sent, %d answered, %d bad answers",
				t.name, x.what, x.sent, x.received, x.bad)
			sent, got, worst = sent+x.sent, got+x.received, max(worst, x.p99)
		}
	}
	p.Hosts = fmt.Sprintf("%d of %d answered, p99 %.2f ms", got, sent, worst)
	p.Gateway = "in the account below"
	return p
}

func judgeUDP(s *seen) Promise {
	p := Promise{Name: "udp", Text: "paced UDP both ways without loss"}
	var hosts []string
	for _, t := range s.tenants() {
		pr := &t.seen.Probe
		there := uint64(0)
		if e := s.Echo.Tags[t.tag]; e != nil {
			there = e.Packets
		}
		p.require(pr.Sent > 0 && there == pr.Sent && pr.Received == pr.Sent && pr.Duplicate == 0,
			"%s sent %d, %d reached the server, %d came back, %d twice", t.tag, pr.Sent, there, pr.Received, pr.Duplicate)
		hosts = append(hosts, fmt.Sprintf("%s %d/%d/%d", t.tag, pr.Sent, there, pr.Received))
	}
	p.Hosts = strings.Join(hosts, "; ") + " (sent/there/back)"
	p.Gateway = "in the account below"
	return p
}

func judgeDNS(s *seen) Promise {
	p := Promise{Name: "dns", Text: "every name query gets its right answer"}
	for _, t := range s.tenants() {
		q := &t.seen.DNS
		p.require(q.Asked > 0 && q.Answered == q.Asked && q.Wrong == 0, "%s: %d asked, %d answered, %d wrong", t.name, q.Asked, q.Answered, q.Wrong)
	}
	p.Hosts = fmt.Sprintf("%d of %d", s.Alpha.DNS.Answered+s.Beta.DNS.Answered, s.Alpha.DNS.Asked+s.Beta.DNS.Asked)
	p.Gateway = "in the account below"
	return p
}

// judgeNAT: the public side knows a tenant by its own public addresses only, and the gateway's session names the same ones.
func judgeNAT(s *seen) Promise {
	p := Promise{Name: "nat", Text: "inside addresses are translated to the tenant's own pool"}
	p.require(s.Untranslated.Packets == 0, "%d packets with an inside source address reached the public side", s.Untranslated.Packets)
	p.require(len(s.Web.Peers) > 0, "the public web server saw nobody")
	for _, peer := range names(s.Web.Peers) {
		a, err := netip.ParseAddr(peer)
		p.require(err == nil && known(s, a), "the public web server saw %s, which is nobody's public address", peer)
	}
	for _, peer := range names(s.Names.Peers) {
		a, err := netip.ParseAddr(peer)
		p.require(err == nil && known(s, a), "the public name server saw %s, which is nobody's public address", peer)
	}
	var hosts, says []string
	for _, t := range s.tenants() {
		as := "nothing"
		if e := s.Echo.Tags[t.tag]; e != nil {
			as = strings.Join(names(e.Sources), " ")
			for _, src := range names(e.Sources) {
				a, err := netip.ParseAddrPort(src)
				p.require(err == nil && t.pool.Contains(a.Addr()), "%s was seen as %s, outside its pool %s", t.tag, src, t.pool)
			}
			p.require(len(e.Sources) == 1, "%s's one socket was seen as %d sources: %s", t.tag, len(e.Sources), as)
		} else {
			p.fail("nothing of %s reached the public side", t.tag)
		}
		p.require(t.seen.SessionXlat == as, "%s was seen as %s, the gateway's session says %q", t.tag, as, t.seen.SessionXlat)
		hosts, says = append(hosts, t.tag+" seen as "+as), append(says, "session: "+t.seen.SessionXlat)
	}
	p.Hosts, p.Gateway = strings.Join(hosts, "; "), strings.Join(says, "; ")
	return p
}

// known says whether the public side may see this source at all.
func known(s *seen, a netip.Addr) bool {
	for _, t := range s.tenants() {
		if t.pool.Contains(a) || t.net6.Contains(a) {
			return true
		}
	}
	return false
}

// judgeTenant: two hosts with the same inside address and port at the same time never meet.
func judgeTenant(s *seen) Promise {
	p := Promise{Name: "tenant", Text: "tenants with equal inside addresses never meet"}
	pools := map[netip.Prefix]string{}
	for _, t := range s.tenants() {
		pools[t.pool] = t.name
	}
	for _, t := range s.tenants() {
		p.require(t.seen.Leaked == 0, "%d frames with the other tenant's payload on %s's devices", t.seen.Leaked, t.name)
		p.require(t.seen.Probe.Foreign == 0, "%s received %d packets that were not for it", t.tag, t.seen.Probe.Foreign)
		p.require(t.seen.Probe.Received > 0, "%s got nothing back, so it is not known whose its sessions are", t.tag)
		if e := s.Echo.Tags[t.tag]; e != nil {
			for _, src := range names(e.Sources) {
				a, err := netip.ParseAddrPort(src)
				for pool, owner := range pools {
					p.require(err != nil || owner == t.name || !pool.Contains(a.Addr()), "%s's traffic left as %s, an address of %s", t.tag, src, owner)
				}
			}
		}
		p.require(t.seen.SessionXlat != "", "the gateway has no session of %s for its inside port %d", t.name, samePort)
	}
	p.Hosts = fmt.Sprintf("both used port %d: %d and %d answers, none of the other's; %d foreign frames on any device",
		samePort, s.Alpha.Probe.Received, s.Beta.Probe.Received, s.Alpha.Leaked+s.Beta.Leaked)
	p.Gateway = fmt.Sprintf("two sessions: %s, %s", s.Alpha.SessionXlat, s.Beta.SessionXlat)
	return p
}

func judgeForward(s *seen) Promise {
	p := Promise{Name: "forward", Text: "the forwarded port reaches its inside host"}
	p.require(s.Forward.Connected && s.Forward.Banner == "alpha1", "public1 to %s: %s, banner %q", s.Forward.Dst, s.Forward.How, s.Forward.Banner)
	p.require(s.Inside.Peers["203.0.113.11"] == 1, "alpha1's server was reached %d times by public1, want once", s.Inside.Peers["203.0.113.11"])
	p.Hosts = fmt.Sprintf("public1 reached %q in %.1f ms", s.Forward.Banner, s.Forward.Seconds*1e3)
	p.Gateway = "in the account below"
	return p
}

// judgeACL: what the rules refuse does not get in, though something listens there, and each refused packet is counted.
func judgeACL(s *seen) Promise {
	p := Promise{Name: "acl", Text: "inbound attempts that no rule allows are refused"}
	p.require(len(s.Refused) > 0, "nothing was tried")
	for _, a := range s.Refused {
		p.require(!a.Connected, "%s was reached from outside: %s answered", a.Dst, a.Banner)
	}
	for peer, n := range s.Inside.Peers {
		p.require(peer == "203.0.113.11", "alpha1's server was reached %d times by %s", n, peer)
	}
	var says []string
	for _, t := range s.tenants() {
		got, want := s.dropped(t.name, verdict.ACLDeny, verdict.ACLDefault), s.RefusedSyn[t.name].Packets
		p.require(want > 0, "no refused attempt at %s was sent", t.name)
		p.require(near(got, want, 0, 2), "%d packets were sent at %s's closed addresses, the gateway refused %d by rule", want, t.name, got)
		says = append(says, fmt.Sprintf("%s refused %d", t.name, got))
	}
	p.Hosts = fmt.Sprintf("%d attempts, %d packets, none got in", len(s.Refused), s.RefusedSyn["alpha"].Packets+s.RefusedSyn["beta"].Packets)
	p.Gateway = strings.Join(says, "; ")
	return p
}

// judgeLimit: what reaches the sink is the configured rate; what is missing is what the gateway says that it cut.
func judgeLimit(s *seen) Promise {
	p := Promise{Name: "limit", Text: "alpha's flood is cut to its 20 Mbit/s"}
	sunk := s.Sink.Tags["alphaF"]
	rate := 0.0
	window := s.FloodFor - floodSkip - floodTail
	if sunk != nil {
		rate = sunk.Rate(floodSkip, window)
	}
	p.inTime(math.Abs(rate-alphaBits) <= limitTolerance*alphaBits, "%.2f Mbit/s arrived over %s, want %.0f ± %.0f %%",
		rate/1e6, window, alphaBits/1e6, limitTolerance*100)
	p.inTime(s.Flood.Bits > 2*alphaBits, "the flood itself was only %.1f Mbit/s", s.Flood.Bits/1e6)
	missing := lostOf(&s.Alpha.Tally)
	cut := s.dropped("alpha", verdict.TenantRateBits, verdict.TenantRatePackets, verdict.TenantQueueFull, verdict.TenantVoiceRate, verdict.ShaperFull)
	p.require(near(cut, missing, lossTolerance, accountSlack), "%d packets of alpha are missing on the public side, the gateway says that it cut %d", missing, cut)
	p.Hosts = fmt.Sprintf("%.1f offered, %.2f Mbit/s arrived; %d packets missing", s.Flood.Bits/1e6, rate/1e6, missing)
	p.Gateway = fmt.Sprintf("cut %d", cut)
	return p
}

// judgeNeighbour: beta does not notice.
func judgeNeighbour(s *seen) Promise {
	p := Promise{Name: "neighbour", Text: "beta does not notice alpha's flood"}
	pr, calm, under := &s.BetaProbe, &s.Beta.Ping4.RTT, &s.BetaUnder.RTT
	p.require(pr.Sent > 0 && pr.Received == pr.Sent, "beta's paced stream: %d sent, %d came back", pr.Sent, pr.Received)
	p.require(s.BetaUnder.Sent > 0 && s.BetaUnder.Received == s.BetaUnder.Sent, "beta's pings: %d sent, %d answered", s.BetaUnder.Sent, s.BetaUnder.Received)
	p.inTime(under.P50 <= calm.P50+quietP50 && under.P99 <= quietP99, "beta's ping went from p50 %.2f to %.2f ms, p99 %.2f ms (want p50 + %.0f, p99 %.0f)",
		calm.P50, under.P50, under.P99, quietP50, quietP99)
	drops := uint64(0)
	before, after := tenantIn(s.Before, "beta").Drops, tenantIn(s.After, "beta").Drops
	for reason, n := range after {
		// What was refused at beta's door by the ACL is judged there. Multicast is the hosts' own talk on their link (MLD, RFC 3810):
		// it comes when their kernels like, is never forwarded, and no host misses it.
		if reason != verdict.ACLDeny.String() && reason != verdict.ACLDefault.String() && reason != verdict.Multicast.String() {
			drops += since(n, before[reason])
		}
	}
	lost := lostOf(&s.Beta.Tally)
	p.require(near(drops, lost, 0, accountSlack), "beta lost %d packets, the gateway says %d", lost, drops)
	p.Hosts = fmt.Sprintf("%d of %d probes back; ping p50 %.2f -> %.2f ms, p99 %.2f", pr.Received, pr.Sent, calm.P50, under.P50, under.P99)
	p.Gateway = fmt.Sprintf("%d drops of beta's own", drops)
	return p
}

// lostOf is what a tenant's hosts sent and the public side did not get. Inbound is left out: what the ACL refuses is meant to be lost.
func lostOf(t *tally) uint64 { return since(t.OutSent.Packets, t.OutCame.Packets) }

// judgeAccount: per tenant and direction, the gateway's bill is what the hosts counted on their own devices.
func judgeAccount(s *seen) Promise {
	p := Promise{Name: "account", Text: "each tenant's counters are what its hosts counted"}
	var hosts, says []string
	for _, t := range s.tenants() {
		before, after := tenantIn(s.Before, t.name), tenantIn(s.After, t.name)
		for _, d := range []struct {
			what     string
			gw, host netlab.Count
		}{{"out", delta(after.Out, before.Out), t.seen.Tally.OutCame}, {"in", delta(after.In, before.In), t.seen.Tally.InCame}} {
			p.require(d.host.Packets > 0, "%s %s: the hosts saw nothing", t.name, d.what)
			p.require(near(d.gw.Packets, d.host.Packets, accountTolerance, accountSlack), "%s %s: the hosts counted %d packets, the gateway %d",
				t.name, d.what, d.host.Packets, d.gw.Packets)
			p.require(near(d.gw.Bytes, d.host.Bytes, accountTolerance, accountSlack*1500), "%s %s: the hosts counted %d bytes, the gateway %d",
				t.name, d.what, d.host.Bytes, d.gw.Bytes)
			hosts = append(hosts, fmt.Sprintf("%s %s %d", t.name, d.what, d.host.Packets))
			says = append(says, fmt.Sprint(d.gw.Packets))
		}
	}
	p.Hosts, p.Gateway = strings.Join(hosts, ", ")+" packets", strings.Join(says, ", ")
	return p
}

// judgeAFXDP: all of it went through AF_XDP sockets, in a mode that is told, and nothing through the host's stack.
func judgeAFXDP(s *seen) Promise {
	p := Promise{Name: "afxdp", Text: "all of it through AF_XDP, nothing through the host's stack"}
	p.require(s.KernelForward == 0, "the gateway's kernel forwarded %d packets", s.KernelForward)
	p.Hosts = fmt.Sprintf("%d packets forwarded by the kernel", s.KernelForward)
	if s.After == nil {
		p.fail("the gateway gave no status")
		return p
	}
	rx, modes := uint64(0), map[string]int{}
	for _, port := range s.After.Ports {
		p.require(len(port.Queues) > 0, "%s has no queue", port.Name)
		for _, q := range port.Queues {
			switch q.Mode {
			case "zerocopy", "copy", "generic":
			default:
				p.fail("%s queue %d has mode %q", port.Name, q.Queue, q.Mode)
			}
			modes[q.Mode]++
			rx += q.Rx.Packets
		}
	}
	p.require(len(s.After.Ports) == 3, "%d ports, want 3", len(s.After.Ports))
	carried := uint64(0)
	for _, t := range s.tenants() {
		carried += t.seen.Tally.OutCame.Packets + t.seen.Tally.InCame.Packets
	}
	p.require(rx >= carried, "the hosts received %d packets, the AF_XDP sockets only %d", carried, rx)
	p.Gateway = fmt.Sprintf("queues: %s; %d packets from sockets", counts(modes), rx)
	return p
}

func judgeFrames(s *seen) Promise {
	p := Promise{Name: "frames", Text: "no frame of packet memory is lost, and it ends in order"}
	if s.After == nil {
		p.fail("the gateway gave no status")
	} else {
		p.require(s.After.Conservation.OK, "the sum of frames is wrong: %s", s.After.Conservation.Detail)
		p.Gateway = s.After.Conservation.Detail
	}
	p.Hosts = "ended as told"
	if s.GatewayEnd != "" {
		p.Hosts = s.GatewayEnd
		p.fail("the gateway %s", s.GatewayEnd)
	}
	return p
}

func judgeLab(s *seen) Promise {
	p := Promise{Name: "lab", Text: "every host could measure", Hosts: "yes", Why: s.Errors}
	if len(s.Errors) > 0 {
		p.Hosts = "no"
	}
	return p
}

// near compares two counts with a relative and an absolute slack.
func near(a, b uint64, relative float64, slack uint64) bool {
	d := max(a, b) - min(a, b)
	return d <= slack || float64(d) <= relative*float64(max(a, b))
}

// names are a map's keys in order, with IPv6-mapped forms as they came.
func names[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

func counts(m map[string]int) string {
	var out []string
	for _, k := range names(m) {
		out = append(out, fmt.Sprintf("%d %s", m[k], k))
	}
	return strings.Join(out, ", ")
}
