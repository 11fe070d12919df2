package gateway

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"

	"demarc/gateway/api"
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/pipeline"
)

// sessionMatch is a compiled SessionFilter.
type sessionMatch struct {
	tenant flow.TenantID
	prefix netip.Prefix
	port   uint16
	proto  int // -1 = any
}

func (b backend) match(f api.SessionFilter) (m sessionMatch, err error) {
	bad := func(err error) (sessionMatch, error) {
		return m, &api.Fault{Status: http.StatusBadRequest, Err: err}
	}
	if err := f.Check(); err != nil {
		return bad(err)
	}
	if f.Tenant != "" {
		t := b.g.view.Load().TenantByName(f.Tenant)
		if t == nil {
			return bad(fmt.Errorf("there is no tenant %q", f.Tenant))
		}
		m.tenant = t.ID
	}
	if m.prefix, err = f.Prefix(); err != nil {
		return bad(err)
	}
	if m.proto, err = f.Protocol(); err != nil {
		return bad(err)
	}
	m.port = uint16(f.Port)
	return m, nil
}

func (m *sessionMatch) matches(se *conntrack.Session) bool {
	if m.tenant != 0 && se.Tenant != m.tenant || m.proto >= 0 && int(se.Proto) != m.proto {
		return false
	}
	if m.port != 0 && se.OrigSPort != m.port && se.OrigDPort != m.port && se.XlatSPort != m.port && se.XlatDPort != m.port {
		return false
	}
	if !m.prefix.IsValid() {
		return true
	}
	a := addresses(se)
	for _, x := range a {
		if m.prefix.Contains(x) {
			return true
		}
	}
	return false
}

// addresses are original source and destination, then the translated ones.
func addresses(se *conntrack.Session) [4]netip.Addr {
	if se.Flags&conntrack.FlagV6 != 0 {
		s, d := se.OrigSrc.Netip(6), se.OrigDst.Netip(6)
		return [4]netip.Addr{s, d, s, d}
	}
	return [4]netip.Addr{se.OrigSrc.Netip(4), se.OrigDst.Netip(4), netip.AddrFrom4(se.XlatSrc), netip.AddrFrom4(se.XlatDst)}
}

// How many sessions are listed at a time: an answer is in memory as a whole, some two kilobytes a session with what it is made of, for each that asks.
const (
	maxListed    = 100_000 // for who only looks
	maxListedAll = 250_000 // for an operator; well below the 256 MiB that a client takes
)

// listed is how many sessions are listed for who asks for limit of them.
func listed(limit int, role api.Role) int {
	most := maxListed
	if role == api.RoleOperator {
		most = maxListedAll
	}
	return min(cmp.Or(limit, 1000), most)
}

func (b backend) Sessions(ctx context.Context, f api.SessionFilter) (*api.Sessions, error) {
	m, err := b.match(f)
	if err != nil {
		return nil, err
	}
	f.Limit = listed(f.Limit, api.PeerOf(ctx).Role)
	out := &api.Sessions{}
	now := uint32(b.g.clock.Now() >> 20)
	live := 0
	for _, w := range b.g.workers {
		live += int(w.Stats().Sessions)
	}
	list := make([]picked, 0, min(f.Limit, live+live/8+64)) // before the walk: packets wait for each step of it
	err = b.g.walk(ctx, walkLook, func(w int, sh *pipeline.Shard, slot uint32, se *conntrack.Session) bool {
		out.Total++
		if m.matches(se) {
			out.Matched++
			if len(list) < f.Limit {
				list = append(list, picked{w, slot, *se, sh.Copied(se), b.g.workers[w].HandedDown(slot, se)})
			} else {
				out.Truncated = true
			}
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	out.Sessions = b.g.wire(list, now)
	return out, nil
}

func protoName(p uint8) string {
	switch p {
	case flow.ICMP:
		return "icmp"
	case flow.TCP:
		return "tcp"
	case flow.UDP:
		return "udp"
	case flow.ICMPv6:
		return "icmpv6"
	}
	return strconv.Itoa(int(p))
}

// wireSession puts a session into the interface's struct.
func (g *Gateway) wireSession(p *picked, now uint32) api.Session {
	v, se := g.view.Load(), &p.se
	a := addresses(se)
	seconds := func(ticks uint32) float64 { return float64(uint64(ticks)<<20) / 1e9 }
	idle := uint32(max(0, int32(now-se.Seen(now))))
	out := api.Session{Worker: p.worker, Slot: p.slot, Gen: se.Gen, Copy: p.copied, Cruising: p.down, From: "tenant", Proto: protoName(se.Proto), State: stateName(se),
		Src: netip.AddrPortFrom(a[0], se.OrigSPort).String(), Dst: netip.AddrPortFrom(a[1], se.OrigDPort).String(),
		XlatSrc: netip.AddrPortFrom(a[2], se.XlatSPort).String(), XlatDst: netip.AddrPortFrom(a[3], se.XlatDPort).String(),
		NAT: se.Flags&conntrack.FlagNAT != 0, Unanswered: se.Flags&conntrack.FlagUnanswered != 0, Rule: -1, Idle: seconds(idle),
		Orig:  api.Counter{Packets: uint64(se.Packets[0]), Bytes: se.Bytes[0]},
		Reply: api.Counter{Packets: uint64(se.Packets[1]), Bytes: se.Bytes[1]}}
	if left := se.Timeout(&v.Timeouts); left > idle {
		out.Expires = seconds(left - idle)
	}
	d := meter.Out
	if se.Flags&conntrack.FlagFromBackbone != 0 {
		out.From, d = "backbone", meter.In
	}
	if se.Class != 0 {
		out.Class = "voice"
	}
	if t := v.Tenant(se.Tenant); t != nil {
		out.Tenant = t.Name
		if int64(se.Rule) < int64(len(t.Rules[d])) {
			out.Rule, out.RuleName = int(se.Rule), t.Rules[d][se.Rule].Name
		}
	}
	return out
}

// stateName is the TCP state, or whether an answer has been seen.
func stateName(se *conntrack.Session) string {
	if se.Proto == flow.TCP {
		return conntrack.TCPStateText(se.State)
	}
	if se.Flags&conntrack.FlagReplied != 0 {
		return "answered"
	}
	return "unanswered"
}
