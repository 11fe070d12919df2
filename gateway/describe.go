package gateway

import (
	"fmt"
	"net/netip"
	"strings"

	"demarc/gateway/api"
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/snapshot"
	"demarc/gateway/trace"
	"demarc/gateway/verdict"
)

// The stages in their order, as steps name them.
const (
	stageFrame     = "frame"
	stageInterface = "interface"
	stageFragment  = "fragment"
	stageGroup     = "group"
	stageHome      = "worker"
	stageSession   = "session"
	stageSource    = "source"
	stageDest      = "destination nat"
	stageRoute     = "route"
	stageACL       = "acl"
	stageSize      = "hop limit, size"
	stageLimits    = "limits"
	stageNAT       = "source nat"
	stageLocal     = "gateway itself"
	stageHost      = "host rate"
	stageNeighbour = "neighbour"
	stageRate      = "rate"
	stageVerdict   = "verdict"
)

// stageOf is the stage that drops for a reason; the frame itself where none is named.
var stageOf = map[verdict.Reason]string{
	verdict.UnknownVLAN: stageInterface, verdict.ForeignMAC: stageInterface, verdict.InterfaceDown: stageInterface,
	verdict.Fragment: stageFragment, verdict.NotOwner: stageGroup,
	verdict.Martian: stageSource, verdict.Multicast: stageSource, verdict.LinkLocal: stageSource, verdict.Land: stageSource, verdict.SpoofedSource: stageSource,
	verdict.TTLExceeded: stageSize, verdict.TooBig: stageSize,
	verdict.NoRoute: stageRoute, verdict.NotForUs: stageRoute, verdict.LoopTwice: stageRoute,
	verdict.LocalUnhandled: stageLocal, verdict.ICMPRateLimited: stageLocal,
	verdict.ACLDeny: stageACL, verdict.ACLDefault: stageACL,
	verdict.SessionTableFull: stageSession, verdict.SessionCollision: stageSession, verdict.SessionCut: stageSession, verdict.ICMPNoSession: stageSession,
	verdict.ICMPBadInner: stageSession, verdict.TCPNotSyn: stageSession, verdict.TCPInvalidFlags: stageSession, verdict.TCPOutOfWindow: stageSession,
	verdict.FlowBlocked: stageSession,
	verdict.NATNoPort:   stageNAT, verdict.NATNoPool: stageNAT, verdict.NATMappingTableFull: stageNAT,
	verdict.NATUnusedAddress: stageDest, verdict.NATFiltered: stageDest,
	verdict.TenantSessions: stageLimits, verdict.TenantSessionRate: stageLimits, verdict.TenantInbound: stageLimits, verdict.TenantUnanswered: stageLimits,
	verdict.TableShare: stageLimits, verdict.HostSessions: stageLimits, verdict.HostSessionRate: stageLimits, verdict.HostTableFull: stageLimits,
	verdict.HostRateBits: stageHost, verdict.HostRatePackets: stageHost,
	verdict.TenantRateBits: stageRate, verdict.TenantRatePackets: stageRate, verdict.TenantVoiceRate: stageRate, verdict.TenantQueueFull: stageRate, verdict.ShaperFull: stageRate,
}

// more is what explain can say beside the journey itself, all of it from before the packet.
type more struct {
	limits, hostRate, rate string
	neighbour              string
	group                  func(g *snapshot.Group) string // whether this node serves it
	route                  func(zone flow.TenantID, a flow.Addr, family uint8) string
	mapping                func(id uint32) string
}

// teller puts a journey into words under a view.
type teller struct {
	v     *snapshot.View
	j     *trace.Journey
	more  *more // nil: a live packet
	steps []api.Step
	over  bool
}

func (w *teller) say(stage, format string, args ...any) {
	if !w.over {
		w.steps = append(w.steps, api.Step{Stage: stage, Result: "pass", Text: fmt.Sprintf(format, args...)})
	}
}

// ends says that the packet ends at this stage, if that is where it ends.
func (w *teller) ends(stage string) {
	j := w.j
	if w.over || !j.Dropped() {
		return
	}
	at, ok := stageOf[j.Reason]
	switch {
	case ok:
	case strings.HasPrefix(j.Reason.String(), "fragment_"):
		at = stageFragment
	default:
		at = stageFrame
	}
	if at != stage {
		return
	}
	what, _ := j.Reason.Words()
	if n := len(w.steps); n > 0 && w.steps[n-1].Stage == stage {
		w.steps[n-1].Result = "drop"
		w.steps[n-1].Text += ": " + j.Reason.String() + ": " + what
	} else {
		w.steps = append(w.steps, api.Step{Stage: stage, Result: "drop", Text: j.Reason.String() + ": " + what})
	}
	w.over = true
}

// steps puts a journey into words.
func steps(v *snapshot.View, j *trace.Journey, m *more) []api.Step {
	w := &teller{v: v, j: j, more: m}
	w.entry()
	if j.Verdict == verdict.Punt || j.Verdict == verdict.Hand {
		w.verdict()
		return w.steps
	}
	w.session()
	if !j.Found || j.Made || j.Asked {
		w.opening()
	} else if j.Dropped() {
		w.ends(stageACL)
		w.ends(stageNAT)
		w.ends(stageDest)
		w.ends(stageLimits)
		w.ends(stageLocal)
		w.ends(stageSource)
		w.ends(stageRoute)
		w.ends(stageSize)
	}
	w.leaving()
	w.verdict()
	return w.steps
}

func (w *teller) entry() {
	j := w.j
	w.ends(stageFrame)
	switch {
	case j.Looped:
		w.say(stageInterface, "came round by a public address of ours: enters from the backbone side")
	case j.Iface != 0:
		f := &w.v.Ifaces[j.Iface]
		w.say(stageInterface, "%s, faces %s", f.Name, w.zone(f.Zone))
	}
	w.ends(stageInterface)
	if j.Frag {
		w.say(stageFragment, "a fragment")
	}
	w.ends(stageFragment)
	if g := w.v.GroupOf(j.Tenant); g != nil {
		text := g.Name
		if w.more != nil {
			text += ", " + w.more.group(g)
		}
		w.say(stageGroup, "%s", text)
	}
	w.ends(stageGroup)
	if !j.Found {
		if a, ok := stageOf[j.Reason]; ok && a == stageSource && j.Dropped() && !j.Asked && j.Hop == trace.NoHop && j.Dest == trace.NoDestination {
			w.say(stageSource, "%s to %s", j.In.Src.Netip(j.In.Family), j.In.Dst.Netip(j.In.Family))
			w.ends(stageSource)
		}
	}
}

func (w *teller) zone(id flow.TenantID) string {
	if id == flow.Backbone {
		return "the backbone"
	}
	if t := w.v.Tenant(id); t != nil {
		return "tenant " + t.Name
	}
	return "nobody"
}

func (w *teller) session() {
	j := w.j
	what := "none yet"
	if j.Quotes {
		what = fmt.Sprintf("none for what the error quotes, %s", tupleText(&j.Quoted))
	}
	if j.Found {
		what = fmt.Sprintf("found, worker %d slot %d", j.Worker, j.Slot)
		if j.Quotes {
			what += fmt.Sprintf(", of what the error quotes, %s", tupleText(&j.Quoted))
		}
		dir := "in the direction of its first packet"
		if j.Back {
			dir = "an answer"
		}
		what += ", " + dir
		if j.In.Proto == flow.TCP {
			what += ", " + conntrack.TCPStateText(j.State)
			if j.Next != j.State {
				what += ", then " + conntrack.TCPStateText(j.Next)
			}
		} else if j.Replied {
			what += ", answered"
		}
		if j.Stale {
			what += ", judged again under the policy served now"
		}
		if j.Made {
			what += "; it is over, and this packet opens another"
		}
		if !j.Made && !j.Asked {
			what += "; " + w.rule("allowed by")
		}
	}
	w.say(stageSession, "%s", what)
	if j.Found || j.Quotes {
		w.ends(stageSession)
	}
}

// rule names the rule that decided.
func (w *teller) rule(by string) string {
	j := w.j
	d := meter.Dir(j.RuleDir)
	t := w.v.Tenant(j.Tenant)
	if t == nil || d > meter.In {
		return by + " nobody"
	}
	if j.Rule == flow.NoRule || int64(j.Rule) >= int64(len(t.Rules[d])) {
		if j.ByMapping {
			return by + " the filtering of the mapping (no rule for it)"
		}
		return fmt.Sprintf("%s the default for %s", by, d)
	}
	r := &t.Rules[d][j.Rule]
	name := fmt.Sprintf("rule %d (%s)", j.Rule+1, d)
	if r.Name != "" {
		name = fmt.Sprintf("rule %d (%s) %q", j.Rule+1, d, r.Name)
	}
	log := ""
	if r.Log {
		log = ", logged"
	}
	return by + " " + name + log
}

// opening tells how a conversation is opened, in the order of open.go.
func (w *teller) opening() {
	j, v := w.j, w.v
	if w.over || j.Quotes {
		return
	}
	if j.In.Zone == flow.Backbone || j.Looped {
		w.ends(stageSource)
		w.say(stageSource, "%s may come from the backbone", j.In.Src.Netip(j.In.Family))
		if j.Dest != trace.NoDestination {
			dst := netip.AddrPortFrom(j.In.Dst.Netip(4), j.In.DPort)
			inside := netip.AddrPortFrom(j.Inside.Netip(4), j.InPort)
			switch j.Dest {
			case trace.Static:
				w.say(stageDest, "%s is 1:1 to %s", dst.Addr(), inside.Addr())
			case trace.PortForward:
				w.say(stageDest, "%s/%s is forwarded to %s", dst, protoName(j.In.Proto), inside)
			case trace.Mapped:
				w.say(stageDest, "%s is mapped to %s, and filtering lets this far end in", dst, inside)
			default:
				w.say(stageDest, "%s", dst)
			}
		}
		w.ends(stageDest)
		w.ends(stageLocal)
		if j.Dest == trace.NoDestination && !j.Asked {
			w.say(stageRoute, "%s", w.routeText(flow.Backbone))
			w.ends(stageRoute)
		}
	} else {
		w.ends(stageSource)
		w.say(stageSource, "%s is of %s's prefixes", j.In.Src.Netip(j.In.Family), w.zone(j.In.Zone))
		w.say(stageRoute, "%s", w.routeText(j.In.Zone))
		if !j.Asked {
			w.ends(stageRoute)
			w.ends(stageLocal)
		}
	}
	if j.Asked {
		by := "denied by"
		if j.Allow {
			by = "allowed by"
		}
		w.say(stageACL, "%s", w.rule(by))
		w.ends(stageACL)
		if j.RuleDir == uint8(meter.In) && j.Hop != trace.NoHop {
			w.say(stageRoute, "inside: %s", w.hopText(v.Hop(j.Hop)))
		}
		w.ends(stageRoute)
	} else {
		w.ends(stageACL)
	}
	w.ends(stageLocal)
	if j.Answer && !j.Dropped() {
		return
	}
	w.ends(stageSize)
	w.say(stageSize, "hop limit %d, %d bytes", j.TTL, j.IPLen)
	if !j.Made {
		w.ends(stageSession) // what opens nothing: not a SYN, an answer to nothing
	}
	if w.more != nil && w.more.limits != "" {
		w.say(stageLimits, "%s", w.more.limits)
	}
	w.ends(stageLimits)
	switch {
	case j.Made && j.NAT && j.In.Zone != flow.Backbone && !j.Looped:
		text := fmt.Sprintf("%s becomes %s", end(&j.In, true), end(&j.Out, true))
		if j.Out.Family == 0 {
			text = "translated"
		}
		if w.more != nil && j.Mapping != conntrack.NoMapping {
			text += w.more.mapping(j.Mapping)
		}
		w.say(stageNAT, "%s", text)
	case j.Made && j.In.Zone != flow.Backbone && !j.Looped:
		w.say(stageNAT, "not translated")
	}
	w.ends(stageNAT)
	w.ends(stageSession)
}

func (w *teller) routeText(zone flow.TenantID) string {
	j := w.j
	text := j.In.Dst.Netip(j.In.Family).String()
	if w.more != nil {
		text = w.more.route(zone, j.In.Dst, j.In.Family)
	}
	if j.Hop == trace.NoHop {
		return text
	}
	return text + ": " + w.hopText(w.v.Hop(j.Hop))
}

func (w *teller) hopText(h *snapshot.Hop) string {
	switch h.Kind {
	case snapshot.HopDiscard:
		return "discarded"
	case snapshot.HopLocal:
		return "the gateway itself"
	case snapshot.HopPublic:
		return "a public address of ours: goes round"
	case snapshot.HopTenant:
		return "goes round to " + w.zone(h.Tenant)
	}
	via := "on the link"
	if !h.OnLink {
		via = "via " + h.Via.Netip(h.Family).String()
	}
	on := fmt.Sprintf("%s on %s", via, w.v.Ifaces[h.Iface].Name)
	if len(w.v.Over(h)) > 0 {
		on += ", a backup"
	}
	return on
}

// leaving tells of forward and send.
func (w *teller) leaving() {
	j := w.j
	if w.over || j.Answer && !j.Dropped() {
		return
	}
	w.ends(stageSource)
	w.ends(stageSize)
	w.ends(stageRoute)
	if w.more != nil && w.more.hostRate != "" {
		w.say(stageHost, "%s", w.more.hostRate)
	}
	w.ends(stageHost)
	if w.over {
		return
	}
	if j.Out.Family != 0 && j.NAT && !j.Made && tupleText(&j.In) != tupleText(&j.Out) {
		w.say("translation", "leaves as %s", tupleText(&j.Out))
	} else if j.Made && j.Dest > trace.Unused && j.Out.Family != 0 {
		w.say("translation", "leaves as %s", tupleText(&j.Out))
	}
	if j.OutIface != 0 {
		f := &w.v.Ifaces[j.OutIface]
		text := fmt.Sprintf("%s on %s", j.NextHop.Netip(j.Out.Family), f.Name)
		if w.more != nil && w.more.neighbour != "" {
			text += ", " + w.more.neighbour
		}
		if j.Verdict == verdict.Neighbor {
			w.say(stageNeighbour, "%s: its MAC is not known", text)
			w.steps[len(w.steps)-1].Result = "wait"
		} else {
			w.say(stageNeighbour, "%s", text)
		}
	}
	w.ends(stageNeighbour)
	if w.more != nil && w.more.rate != "" && j.Verdict != verdict.Neighbor {
		w.say(stageRate, "%s", w.more.rate)
	} else if j.Verdict == verdict.Queue {
		w.say(stageRate, "above the rate: waits in the shaper")
	}
	if j.Verdict == verdict.Queue && len(w.steps) > 0 {
		w.steps[len(w.steps)-1].Result = "wait"
	}
	w.ends(stageRate)
}

func (w *teller) verdict() {
	j := w.j
	result := "pass"
	if j.Dropped() {
		result = "drop"
	}
	w.steps = append(w.steps, api.Step{Stage: stageVerdict, Result: result, Text: verdictText(j)})
}

// verdictText is the end of a journey in words.
func verdictText(j *trace.Journey) string {
	what, _ := j.Reason.Words()
	switch {
	case j.Verdict == verdict.Drop:
		return fmt.Sprintf("dropped, %s: %s", j.Reason, what)
	case j.Answer && j.Reason == verdict.Pass:
		return "answered by the gateway itself"
	case j.Answer:
		return fmt.Sprintf("dropped, %s: %s; its sender is told", j.Reason, what)
	}
	switch j.Verdict {
	case verdict.Send:
		return "sent as " + tupleText(&j.Out)
	case verdict.Queue:
		return "waits for the tenant's rate, then leaves as " + tupleText(&j.Out)
	case verdict.Neighbor:
		return "waits until the MAC of the next hop is known, then leaves as " + tupleText(&j.Out)
	case verdict.Loop:
		return "goes round as " + tupleText(&j.Out) + ", and enters from the backbone side"
	case verdict.Hand:
		return fmt.Sprintf("handed over to worker %d, which its inside host belongs to", j.Home)
	case verdict.Punt:
		return "address resolution: for the slow path"
	}
	return j.Verdict.String()
}

// end is one end of a packet: address, or address:port.
func end(k *flow.Key, src bool) string {
	a, p := k.Dst, k.DPort
	if src {
		a, p = k.Src, k.SPort
	}
	if k.Family == 0 {
		return "?"
	}
	if k.Proto != flow.TCP && k.Proto != flow.UDP && k.SPort == 0 && k.DPort == 0 {
		return a.Netip(k.Family).String()
	}
	return netip.AddrPortFrom(a.Netip(k.Family), p).String()
}

func tupleText(k *flow.Key) string {
	if k.Family == 0 {
		return "not IP"
	}
	return fmt.Sprintf("%s %s > %s", protoName(k.Proto), end(k, true), end(k, false))
}

func tuple(k *flow.Key) api.Tuple {
	if k.Family == 0 {
		return api.Tuple{}
	}
	return api.Tuple{Proto: protoName(k.Proto), Src: end(k, true), Dst: end(k, false)}
}

// pass puts a journey into the interface's struct.
func pass(v *snapshot.View, j *trace.Journey, m *more) api.Pass {
	p := api.Pass{Worker: int(j.Worker), In: tuple(&j.In), Length: int(j.IPLen), Steps: steps(v, j, m), Verdict: j.Verdict.String()}
	if j.Out.Family != 0 {
		o := tuple(&j.Out)
		p.Out = &o
		p.Direction = meter.Dir(j.Dir).String()
	}
	if t := v.Tenant(j.Tenant); t != nil {
		p.Tenant = t.Name
	}
	if j.Dropped() {
		p.Reason = j.Reason.String()
	}
	return p
}
