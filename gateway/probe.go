package gateway

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/flow"
	"demarc/gateway/packet"
	"demarc/gateway/packet/build"
	"demarc/gateway/pipeline"
	"demarc/gateway/snapshot"
)

// maxProbes is how many pings and traceroutes may run at once.
const maxProbes = 8

// prober is who sends of its own and waits for answers.
type prober struct {
	mu   sync.Mutex
	list []*probing
	next uint32
	stop chan struct{} // of the reader of answers; nil = nobody waits
}

// probing is one ping or traceroute.
type probing struct {
	g     *Gateway
	wait  pipeline.Wait
	in    chan pipeline.Answer
	frame build.Probe
	iface *snapshot.Iface
	hop   flow.Addr // whose MAC is wanted
	via   string    // that, where it is not the far end itself
	began time.Time
}

// probe finds out from where and which way, and lets the workers know that answers are waited for. The caller calls close.
func (g *Gateway) probe(ctx context.Context, r *api.ProbeRequest, proto func(family uint8) uint8) (*probing, error) {
	bad := api.BadRequest
	a, err := netip.ParseAddr(r.Address)
	if err != nil {
		return nil, bad("%q is not an address: names are not resolved here", r.Address)
	}
	if a.Zone() != "" {
		return nil, bad("%q: say the address alone, and --interface", r.Address)
	}
	if a = a.Unmap(); a.IsMulticast() || a.IsUnspecified() || a.IsLoopback() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return nil, bad("%s is no address of a host", a)
	}
	if r.Interface != "" && r.Tenant != "" {
		return nil, bad("an interface and a tenant: name one of them")
	}
	v := g.view.Load()
	family := uint8(4)
	if a.Is6() {
		family = 6
	}
	far := flow.AddrFrom(a)
	var f *snapshot.Iface
	zone := flow.Backbone
	if r.Interface != "" {
		var names []string
		for i := 1; i < len(v.Ifaces); i++ {
			if v.Ifaces[i].Used {
				names = append(names, v.Ifaces[i].Name)
			}
			if v.Ifaces[i].Name == r.Interface && v.Ifaces[i].Used {
				f = &v.Ifaces[i]
			}
		}
		if f == nil {
			return nil, bad("there is no interface %q in use: there are %s", r.Interface, strings.Join(names, ", "))
		}
		zone = f.Zone
	} else if r.Tenant != "" {
		t := v.TenantByName(r.Tenant)
		if t == nil {
			return nil, bad("there is no tenant %q", r.Tenant)
		}
		zone = t.ID
	}
	side := "the backbone"
	if t := v.Tenant(zone); t != nil {
		side = fmt.Sprintf("tenant %q", t.Name)
	}
	p := &probing{g: g, in: make(chan pipeline.Answer, 256), hop: far}
	out := f
	if a.IsLinkLocalUnicast() {
		if f == nil {
			return nil, bad("%s is on one link only: name the interface", a)
		}
		if a.Is4() {
			return nil, bad("%s never leaves its link, and the gateway has no such address", a)
		}
	} else if f == nil || !onLinkOf(f, a) {
		nh, h, ok := v.Lookup(zone, family, &far)
		if !ok || h.Kind == snapshot.HopDiscard {
			return nil, bad("no route of %s leads to %s", side, a)
		}
		switch h.Kind {
		case snapshot.HopLocal:
			return nil, bad("%s is the gateway's own address", a)
		case snapshot.HopPublic, snapshot.HopTenant:
			return nil, bad("%s is behind the gateway itself, not out there: ask from the tenant's side", a)
		}
		h = v.Hop(v.Choose(nh, &flow.Key{Dst: far, Family: family, Zone: zone}, snapshot.NoHop)) // of several next hops one that lives
		if out = &v.Ifaces[h.Iface]; out.Zone != zone {
			return nil, bad("%s is not on the side of %s", a, side)
		}
		if !h.OnLink {
			p.hop, p.via = h.Via, h.Via.Netip(h.Family).String()
		}
	} else if slices.ContainsFunc(f.Addrs, func(x netip.Prefix) bool { return x.Addr() == a }) {
		return nil, bad("%s is the gateway's own address", a)
	}
	if f == nil {
		f = out
	}
	local, err := sourceOn(f, a)
	if err != nil {
		return nil, bad("%s", err)
	}
	if slices.Contains(g.ports[f.Port].cfg.Host.Shared, local.Netip(family)) {
		return nil, bad("%s is the host's address too, and the host would take the answers: ping from the host", local.Netip(family))
	}
	p.iface = out
	p.wait = pipeline.Wait{Zone: zone, Family: family, Proto: proto(family), Local: local, Far: far, ID: uint16(rand.Uint32())}
	if p.wait.Proto == flow.UDP || p.wait.Proto == flow.TCP {
		p.wait.ID |= 0x8000 // a port as a client has it
	}
	p.frame = build.Probe{SrcMAC: out.MAC, VLAN: out.VLAN, Src: local, Dst: far, Family: family, Proto: p.wait.Proto, TTL: 64, SPort: p.wait.ID}
	head := 28
	if family == 6 {
		head = 48
	}
	if r.Size < 0 || r.Size+head > 65535 {
		return nil, bad("size %d: want a number from 0", r.Size)
	}
	if r.Size+head > out.MTU {
		return nil, bad("size %d makes packets of %d bytes, and interface %s takes %d: the gateway sends no fragments of its own, so want at most %d", r.Size, r.Size+head, out.Name, out.MTU, out.MTU-head)
	}
	p.frame.Payload = make([]byte, r.Size)
	for i := range p.frame.Payload {
		p.frame.Payload[i] = byte(i)
	}
	if r.Timeout == 0 {
		r.Timeout = 1
	}
	if r.Timeout < 0.01 || r.Timeout > 60 {
		return nil, bad("a time of %g s for an answer: want 0.01 to 60", r.Timeout)
	}
	return p, g.prober.enter(ctx, p)
}

func onLinkOf(f *snapshot.Iface, a netip.Addr) bool {
	return slices.ContainsFunc(f.Addrs, func(p netip.Prefix) bool { return p.Contains(a) })
}

// sourceOn is the gateway's address on an interface for packets to a.
func sourceOn(f *snapshot.Iface, a netip.Addr) (flow.Addr, error) {
	if a.IsLinkLocalUnicast() {
		return f.LinkLocal, nil
	}
	for _, p := range f.Addrs {
		if p.Contains(a) {
			return flow.AddrFrom(p.Addr()), nil
		}
	}
	switch {
	case a.Is4() && f.Has4:
		return f.Addr4, nil
	case a.Is6() && f.Has6:
		return f.Addr6, nil
	}
	return flow.Addr{}, fmt.Errorf("interface %s has no address of the family of %s", f.Name, a)
}

func (l *prober) enter(ctx context.Context, p *probing) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.list) >= maxProbes {
		return &api.Fault{Status: http.StatusTooManyRequests, Err: fmt.Errorf("%d pings and traceroutes run already: wait for one to end", len(l.list))}
	}
	l.next++
	p.wait.Token = l.next
	l.list = append(l.list, p)
	if err := l.tell(ctx, p.g); err != nil {
		l.list = l.list[:len(l.list)-1]
		return err
	}
	if l.stop == nil {
		l.stop = make(chan struct{})
		go l.read(p.g, l.stop)
	}
	return nil
}

// tell has every worker know who waits. The caller holds mu.
func (l *prober) tell(ctx context.Context, g *Gateway) error {
	var waits []pipeline.Wait
	for _, p := range l.list {
		waits = append(waits, p.wait)
	}
	return g.each(ctx, func(_ int, sh *pipeline.Shard) { sh.SetWaits(waits) })
}

// close ends the waiting. It is done also when the one who asked has gone.
func (p *probing) close() {
	l := &p.g.prober
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = slices.DeleteFunc(slices.Clone(l.list), func(x *probing) bool { return x == p })
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = l.tell(ctx, p.g) // a worker that has ended waits for nothing
	if len(l.list) == 0 && l.stop != nil {
		close(l.stop)
		l.stop = nil
	}
}

// read hands out what has come, as long as somebody waits. When it came is written on it, so how often it looks does not matter.
func (l *prober) read(g *Gateway, stop chan struct{}) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		l.mu.Lock()
		for _, sh := range g.shards {
			sh.Answers(func(a *pipeline.Answer) {
				for _, p := range l.list {
					if p.wait.Token == a.Token {
						select {
						case p.in <- *a:
						default: // more than was asked for
						}
					}
				}
			})
		}
		l.mu.Unlock()
	}
}

// send sends the frame as it stands and says when.
func (p *probing) send(ctx context.Context) (at uint64, err error) {
	w := p.g.workers[0]
	p.frame.IPID = uint16(rand.Uint32())
	frame := p.frame.Append(nil)
	c, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err = w.Do(c, func(*pipeline.Shard) {
		at = p.g.clock.Now()
		w.Originate(p.iface.Port, p.iface.Index, p.wait.Family, &p.hop, frame)
	})
	return at, err
}

// remark says why nothing may have come.
func (p *probing) remark() string {
	if _, ok := p.g.neigh.Lookup(p.iface.Index, p.wait.Family, &p.hop); ok {
		return ""
	}
	return fmt.Sprintf("%s does not answer on %s: is it up, and on this link?", p.hop.Netip(p.wait.Family), p.iface.Name)
}

func (p *probing) started() *api.ProbeEvent {
	return &api.ProbeEvent{Event: "start", Interface: p.iface.Name, Source: p.wait.Local.Netip(p.wait.Family).String(), Via: p.via}
}

func icmpOf(family uint8) uint8 {
	if family == 6 {
		return flow.ICMPv6
	}
	return flow.ICMP
}

// sent tells of one more request. Who is interrupted has no other end than what was told until then, so it says as well why nothing may have come:
// not with the first, which is what asks for the next hop.
func (p *probing) sent(end *api.ProbeEvent) *api.ProbeEvent {
	e := &api.ProbeEvent{Event: "sent", Seq: int(uint16(end.Sent)), Sent: end.Sent}
	if time.Since(p.began) >= time.Second && end.Received+end.Errors == 0 { // a next hop has had the time to answer
		e.Remark = p.remark()
	}
	return e
}

// errorText is what ping and traceroute print for an ICMP error, and whether it ends a traceroute.
func errorText(family uint8, a *pipeline.Answer) (text, mark string, final bool) {
	codes4 := map[uint8][2]string{0: {"Destination Net Unreachable", "!N"}, 1: {"Destination Host Unreachable", "!H"}, 2: {"Destination Protocol Unreachable", "!P"}, 3: {"Destination Port Unreachable", ""},
		9: {"Destination Net Prohibited", "!X"}, 10: {"Destination Host Prohibited", "!X"}, 13: {"Packet filtered", "!X"}}
	codes6 := map[uint8][2]string{0: {"No route", "!N"}, 1: {"Administratively prohibited", "!X"}, 2: {"Beyond scope of source address", "!S"}, 3: {"Address unreachable", "!H"}, 4: {"Port unreachable", ""},
		5: {"Source address failed policy", "!X"}, 6: {"Reject route", "!X"}}
	unknown := func(what string) (string, string, bool) {
		return fmt.Sprintf("%s, type %d code %d", what, a.Type, a.Code), fmt.Sprintf("!<%d-%d>", a.Type, a.Code), true
	}
	if family == 4 {
		switch a.Type {
		case packet.ICMPTimeExceeded:
			return "Time to live exceeded", "", false
		case packet.ICMPUnreachable:
			if a.Code == 4 {
				return fmt.Sprintf("Frag needed and DF set (mtu = %d)", a.MTU), fmt.Sprintf("!F-%d", a.MTU), true
			}
			if c, ok := codes4[a.Code]; ok {
				return c[0], c[1], true
			}
			return unknown("Destination unreachable")
		}
		return unknown("ICMP error")
	}
	switch a.Type {
	case packet.ICMP6TimeExceeded:
		return "Time exceeded: Hop limit", "", false
	case packet.ICMP6TooBig:
		return fmt.Sprintf("Packet too big: mtu=%d", a.MTU), fmt.Sprintf("!F-%d", a.MTU), true
	case packet.ICMP6Unreachable:
		if c, ok := codes6[a.Code]; ok {
			return "Destination unreachable: " + c[0], c[1], true
		}
		return unknown("Destination unreachable")
	}
	return unknown("ICMP error")
}

func tooBig(family uint8, a *pipeline.Answer) bool {
	return family == 4 && a.Type == packet.ICMPUnreachable && a.Code == 4 || family == 6 && a.Type == packet.ICMP6TooBig
}

func (b backend) Ping(ctx context.Context, r api.ProbeRequest, emit func(*api.ProbeEvent) error) error {
	if r.Interval == 0 {
		r.Interval = 1
	}
	if r.Interval < 0.01 || r.Interval > 3600 {
		return api.BadRequest("an interval of %g s: want 0.01 to 3600", r.Interval)
	}
	if r.Count < 0 || r.Count > 65535 {
		return api.BadRequest("count %d: want 1 to 65535, or 0 for no end", r.Count)
	}
	if r.TTL < 0 || r.TTL > 255 {
		return api.BadRequest("ttl %d: want 1 to 255", r.TTL)
	}
	p, err := b.g.probe(ctx, &r, icmpOf)
	if err != nil {
		return err
	}
	defer p.close()
	p.frame.DF = r.DF
	if r.TTL > 0 {
		p.frame.TTL = uint8(r.TTL)
	}
	nonce := rand.Uint64()
	if len(p.frame.Payload) >= 8 {
		binary.BigEndian.PutUint64(p.frame.Payload, nonce)
	}
	if err := emit(p.started()); err != nil {
		return err
	}
	began := time.Now()
	p.began = began
	end := api.ProbeEvent{Event: "end"}
	sentAt := map[uint16]uint64{}
	seen := map[uint16]bool{}
	var sum, squares float64
	next := time.NewTimer(0)
	defer next.Stop()
	var last <-chan time.Time // runs when all is sent
	for over := false; !over; {
		select {
		case <-ctx.Done():
			over = true
		case <-last:
			over = true
		case <-next.C:
			end.Sent++
			seq := uint16(end.Sent)
			p.frame.Seq = uint32(seq)
			delete(seen, seq)
			if sentAt[seq], err = p.send(ctx); err != nil {
				return err
			}
			if err := emit(p.sent(&end)); err != nil {
				return err
			}
			if r.Count != 0 && end.Sent == r.Count {
				last = time.After(time.Duration(r.Timeout * float64(time.Second)))
			} else {
				next.Reset(time.Duration(r.Interval * float64(time.Second)))
			}
		case a := <-p.in:
			seq := uint16(a.Seq)
			at, ok := sentAt[seq]
			if !ok {
				continue // not to one of ours
			}
			from := a.From.Netip(p.wait.Family).String()
			if a.Error {
				end.Errors++
				text, _, _ := errorText(p.wait.Family, &a)
				e := &api.ProbeEvent{Event: "error", Seq: int(seq), From: from, TTL: int(a.TTL), Error: text, Ms: took(at, &a)}
				if tooBig(p.wait.Family, &a) {
					e.MTU = int(a.MTU)
				}
				if err := emit(e); err != nil {
					return err
				}
			} else {
				if len(p.frame.Payload) >= 8 && a.Nonce != nonce {
					continue // guessed
				}
				head := 20
				if p.wait.Family == 6 {
					head = 40
				}
				ms := took(at, &a)
				if err := emit(&api.ProbeEvent{Event: "reply", Seq: int(seq), From: from, TTL: int(a.TTL), Bytes: int(a.Len) - head, Ms: ms, Dup: seen[seq]}); err != nil {
					return err
				}
				if !seen[seq] {
					seen[seq] = true
					end.Received++
					if end.Min == 0 || ms < end.Min {
						end.Min = ms
					}
					end.Max = max(end.Max, ms)
					sum += ms
					squares += ms * ms
				}
			}
			if last != nil && end.Received+end.Errors >= end.Sent {
				over = true
			}
		}
	}
	if n := float64(end.Received); n > 0 {
		end.Avg = sum / n
		end.Mdev = math.Sqrt(max(0, squares/n-end.Avg*end.Avg))
	}
	if end.Received+end.Errors == 0 {
		end.Remark = p.remark()
	}
	end.Seconds = time.Since(began).Seconds()
	return emit(&end)
}

// took is how long an answer took (ms). It has the time at which the turn of the worker began that found it, and that may be another worker's that was about to look as the question left.
func took(at uint64, a *pipeline.Answer) float64 { return float64(max(a.Ns, at)-at) / 1e6 }

// hopsAtOnce is how many hops are asked together.
const hopsAtOnce = 5

func (b backend) Traceroute(ctx context.Context, r api.ProbeRequest, emit func(*api.ProbeEvent) error) error {
	proto := func(family uint8) uint8 { return icmpOf(family) }
	switch r.Proto {
	case "icmp":
	case "", "udp":
		proto = func(uint8) uint8 { return flow.UDP }
	case "tcp":
		proto = func(uint8) uint8 { return flow.TCP }
	default:
		return api.BadRequest("proto %q: want udp, icmp or tcp", r.Proto)
	}
	if r.MaxHops == 0 {
		r.MaxHops = 30
	}
	if r.Queries == 0 {
		r.Queries = 3
	}
	if r.MaxHops < 1 || r.MaxHops > 64 || r.Queries < 1 || r.Queries > 10 {
		return api.BadRequest("%d hops, %d queries: want 1 to 64 hops and 1 to 10 queries", r.MaxHops, r.Queries)
	}
	highest := 65535
	if r.Proto == "" || r.Proto == "udp" { // each probe has the next port
		highest -= 64 * 10
	}
	if r.Port < 0 || r.Port > highest {
		return api.BadRequest("port %d: want 1 to %d", r.Port, highest)
	}
	p, err := b.g.probe(ctx, &r, proto)
	if err != nil {
		return err
	}
	defer p.close()
	base := uint32(0) // of what names a probe
	switch p.wait.Proto {
	case flow.UDP:
		if base = uint32(r.Port); base == 0 {
			base = 33434
		}
	case flow.TCP:
		if p.frame.DPort = uint16(r.Port); r.Port == 0 {
			p.frame.DPort = 80
		}
		base = rand.Uint32()
	default:
		base = 1
	}
	if err := emit(p.started()); err != nil {
		return err
	}
	end := api.ProbeEvent{Event: "end"}
	began := time.Now()
	type asked struct {
		at  uint64
		got *pipeline.Answer
	}
	probes := make([]asked, r.MaxHops*r.Queries)
	finalHop := func(i int) bool { // the answer to probe i says that there is nothing behind
		a := probes[i].got
		if a == nil {
			return false
		}
		if !a.Error {
			return true
		}
		_, _, final := errorText(p.wait.Family, a)
		return final
	}
	take := func(a pipeline.Answer) {
		i := int(int32(a.Seq - base))
		if p.wait.Proto == flow.ICMP || p.wait.Proto == flow.ICMPv6 {
			i = int(uint16(a.Seq) - uint16(base))
		}
		if p.wait.Proto == flow.TCP && !a.Error && a.Flags&packet.TCPAck == 0 || i < 0 || i >= len(probes) || probes[i].at == 0 || probes[i].got != nil {
			return
		}
		probes[i].got = &a
		if !a.Error && a.Flags&packet.TCPSyn != 0 { // nobody here will finish the handshake: the far end need not ask again
			f := p.frame
			p.frame.TTL, p.frame.Flags, p.frame.Seq = 64, packet.TCPRst, a.Seq+1
			_, _ = p.send(ctx)
			p.frame = f
		}
	}
	complete := func(hop, until int) bool { // all has come that will be shown
		for ; hop < until; hop++ {
			final := false
			for i := hop * r.Queries; i < (hop+1)*r.Queries; i++ {
				if probes[i].got == nil {
					return false
				}
				final = final || finalHop(i)
			}
			if final {
				return true
			}
		}
		return true
	}
	for first := 0; first < r.MaxHops && !end.Reached; first += hopsAtOnce {
		until := min(first+hopsAtOnce, r.MaxHops)
		for i := first * r.Queries; i < until*r.Queries; i++ {
			p.frame.TTL = uint8(i/r.Queries + 1)
			p.frame.Seq = base + uint32(i)
			if p.wait.Proto == flow.UDP {
				p.frame.DPort = uint16(base) + uint16(i)
			}
			if probes[i].at, err = p.send(ctx); err != nil {
				return err
			}
			end.Sent++
			select {
			case <-ctx.Done():
				return nil
			case a := <-p.in:
				take(a)
			case <-time.After(5 * time.Millisecond): // routers answer at a rate
			}
		}
		deadline := time.After(time.Duration(r.Timeout * float64(time.Second)))
		for waiting := true; waiting && !complete(first, until); {
			select {
			case <-ctx.Done():
				return nil
			case <-deadline:
				waiting = false
			case a := <-p.in:
				take(a)
			}
		}
		for hop := first; hop < until && !end.Reached; hop++ {
			final := false
			for q := range r.Queries {
				final = final || finalHop(hop*r.Queries+q)
			}
			for q := range r.Queries {
				x := probes[hop*r.Queries+q]
				e := &api.ProbeEvent{Event: "probe", Hop: hop + 1, Seq: q + 1, Final: final}
				if a := x.got; a != nil {
					end.Received++
					e.From, e.TTL, e.Ms = a.From.Netip(p.wait.Family).String(), int(a.TTL), took(x.at, a)
					if a.Error {
						e.Error, e.Mark, _ = errorText(p.wait.Family, a)
						if tooBig(p.wait.Family, a) {
							e.MTU = int(a.MTU)
						}
					}
				}
				if err := emit(e); err != nil {
					return err
				}
			}
			end.Reached = final
		}
	}
	if end.Received == 0 {
		end.Remark = p.remark()
	}
	end.Seconds = time.Since(began).Seconds()
	return emit(&end)
}
