package bench

import (
	"errors"
	"fmt"
	"math"
	"time"

	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	"demarc/gateway/netlab/judge"
	"demarc/gateway/trio"
)

// account is all that was recorded in one run.
type account struct {
	from, to      time.Time         // what was done to the pair began, and what may be its work ended
	struck        time.Time         // it was surely done: nothing that was sent later met the pair as it was before
	calm, calmed  time.Time         // between these nothing was done: what the machine does by itself. Where nothing may move, as long as from to to
	probes, calls *netlab.FlowsSeen // probes: nil = there are none
	held          []host.Held       // connections
	served        host.HoldServed   // their other ends
	fresh         []host.Fresh      // connections that were opened all the time
	verdict       *judge.Verdict    // of what the nodes sent
	woken         string            // the node that was stopped, and went on just before struck; "" = none
	pings         []host.Ping
}

// failure is what one run cost.
type failure struct {
	gap     time.Duration // of the worst probe and direction; of the worst call's where there is no probe
	flow    string        // that one
	callGap time.Duration // of the worst call and direction: up to callEvery longer than nothing came through
	call    string        // that one
	at      time.Duration // when the worst probe's began, since the event did; callAt: the worst call's
	callAt  time.Duration
	before  time.Duration // the worst gap while nothing was done: what the machine does by itself
	excess  time.Duration // of the gap over that, and over what senders paused meanwhile
	spared  time.Duration // the other way round: of what the machine did before, over the gap, and over what senders paused before
	paused  time.Duration // the longest pause of a sender while the gap was measured
	away    int           // flows and directions that had not come back at the end
	still   []string      // the first of them
	wrong   uint64        // packets that came to another host than theirs, or were none of a flow
	example string        // the first of them
	pings   [2]int        // not answered, of those that were sent
	silence time.Duration // the longest time without an answer to one host's
	moved   int           // flows that came from another public address or port afterwards: their sessions were lost
	lost    uint64        // packets, of probes and calls, of those that were sent
	sent    uint64
	calls   []float64      // packets lost of each call and direction
	data    [2]int         // connections with data on the way: lost, of
	idle    [2]int         // idle ones: lost, of those that were tried
	how     map[string]int // lost connections by how they were
	opened  int
	fresh   fresh
	word    time.Duration // from the same frame to when the next one says where the addresses are; 0 = it did not
	between time.Duration // the longest time from an owner's last data frame to the next one's first: what the pair itself took, without hosts, switches and what their threads wait
	owners  []string      // who sent data for the group, in turn, by the wire
	faults  []judge.Offence
	inHand  int // frames that a stopped node had in hand, and sent when it went on: no offence up to a burst
	frames  int
	started string // who served when it began
}

// fresh is what became of connections that were opened all the time.
type fresh struct {
	tried, failed int
	rate          float64       // at which connections were begun until the event, a second, of those that opened
	before        int           // open when the event came
	way           int           // on their way then: they began before it was done, and were open after it had begun
	lost          int           // of both
	age           time.Duration // of the oldest lost one, when the event came
	after         int           // lost ones that began afterwards
	shown, beyond time.Duration // the lag of the copy that the owner showed right before the event, and by how much the oldest lost one was older than that
}

// gone is a silence at the end after which a flow counts as one that has not come back.
const gone = 250 * time.Millisecond

// judge says what a run cost. An error says that the account cannot be true, or is not of a pair that worked: then it is no figure at all.
func (a *account) judge() (f failure, err error) {
	if a.calls == nil || a.verdict == nil || !a.to.After(a.from) || a.struck.Before(a.from) || !a.calmed.After(a.calm) || a.calmed.After(a.from) {
		return f, errors.New("the account is not whole")
	}
	var received uint64
	var calm time.Duration // senders paused
	for _, seen := range []*netlab.FlowsSeen{a.probes, a.calls} {
		if seen == nil {
			continue
		}
		if len(seen.Flows) == 0 {
			return f, errors.New("there was no flow")
		}
		if f.wrong += seen.Wrong; f.example == "" {
			f.example = seen.Example
		}
		if end := seen.Ended(); end.Add(gone).Before(a.to) {
			return f, fmt.Errorf("flows ended %s before the measurement did", a.to.Sub(end))
		}
		for i := range seen.Flows {
			e := &seen.Flows[i]
			if received += e.Received; e.Received == 0 || e.First >= a.from.UnixNano() {
				return f, fmt.Errorf("nothing came on %s before the event", e.Name())
			}
			if a.to.UnixNano()-e.Last > int64(gone) {
				if f.away++; len(f.still) < 4 {
					f.still = append(f.still, e.Name())
				}
			}
		}
		worst, paused := seen.Worst(a.from, a.to)
		earlier, late := seen.Worst(a.calm, a.calmed)
		if seen == a.calls {
			f.callGap, f.call, f.callAt = worst.Gap, worst.Flow, time.Duration(max(worst.From, a.from.UnixNano())-a.from.UnixNano())
		}
		if seen == a.probes || a.probes == nil {
			f.gap, f.flow, f.at = worst.Gap, worst.Flow, time.Duration(max(worst.From, a.from.UnixNano())-a.from.UnixNano())
		}
		calm = max(calm, late)
		f.paused, f.before = max(f.paused, paused), max(f.before, earlier.Long()-seen.Interval) // not what it may have been: the excess is over it
		f.moved += len(seen.Moved())
		for i := range seen.Flows {
			e := &seen.Flows[i]
			lost, n := lossOf(e, seen.Interval)
			f.lost, f.sent = f.lost+lost, f.sent+n
			if seen == a.calls {
				f.calls = append(f.calls, float64(lost))
			}
		}
	}
	for _, p := range a.pings {
		if p.Received == 0 {
			return f, fmt.Errorf("no ping of %s was answered", p.Dst)
		}
		f.pings[0], f.pings[1] = f.pings[0]+p.Sent-p.Received, f.pings[1]+p.Sent
		f.silence = max(f.silence, time.Duration(p.LongestMs*float64(time.Millisecond)))
	}
	f.excess = max(0, max(f.gap, f.callGap)-max(f.paused, f.before))
	f.spared = max(0, f.before-max(f.gap, f.callGap, calm))
	if f.frames = a.verdict.Frames; uint64(a.verdict.Marked) < received {
		return f, fmt.Errorf("hosts got %d packets of flows, and the judge saw nodes send %d", received, a.verdict.Marked)
	}
	terms := a.verdict.Terms[trio.PairGroup]
	for i, t := range terms {
		if f.owners = append(f.owners, t.Node); i > 0 {
			if d := t.First.Sub(terms[i-1].Last); d > f.between {
				if f.between, f.word = d, 0; !t.Word.IsZero() {
					f.word = t.Word.Sub(terms[i-1].Last)
				}
			}
		}
	}
	if len(f.owners) == 0 {
		return f, errors.New("the judge saw no node serve the group")
	}
	f.started = f.owners[0]
	for _, o := range a.verdict.Offences {
		if a.woken != "" && o.Handful(a.woken, a.struck, judge.Burst-f.inHand) {
			f.inHand += o.Frames
		} else {
			f.faults = append(f.faults, o)
		}
	}
	blocks := 0 // that the other ends must have had: one at the beginning, and a last one of those that went on
	for _, h := range a.held {
		data := h.Opened - h.Idle
		f.data[0], f.data[1] = f.data[0]+h.Lost-h.LostIdle, f.data[1]+data
		f.idle[0], f.idle[1] = f.idle[0]+h.LostIdle, f.idle[1]+h.Tried
		for why, n := range h.Why {
			if f.how == nil {
				f.how = map[string]int{}
			}
			f.how[why] += n
		}
		f.opened += h.Opened
		blocks += h.Opened + data + h.Tried - h.Lost
	}
	accepted := f.opened
	for _, h := range a.fresh {
		f.fresh.tried, f.fresh.failed = f.fresh.tried+h.Tried, f.fresh.failed+h.Failed
		lost := h.Lost()
		first, begun := int64(math.MaxInt64), 0
		for _, o := range h.Open {
			if o.Began < a.from.UnixNano() {
				first, begun = min(first, o.Began), begun+1
			}
			switch {
			case o.Open <= a.from.UnixNano():
				f.fresh.before++
			case o.Began <= a.struck.UnixNano():
				f.fresh.way++
			}
		}
		if begun > 0 {
			f.fresh.rate += float64(begun) / (float64(a.from.UnixNano()-first) / 1e9)
		}
		for _, o := range lost {
			if o.Began > a.struck.UnixNano() {
				f.fresh.after++
				continue
			}
			f.fresh.lost++
			f.fresh.age = max(f.fresh.age, time.Duration(a.from.UnixNano()-o.Open))
		}
		half := 0
		for _, o := range lost {
			if o.Half {
				half++
			}
		}
		accepted += len(h.Open) - half
		blocks += 2*(len(h.Open)-half) - (len(lost) - half)
	}
	if len(a.fresh) > 0 && f.fresh.before == 0 {
		return f, errors.New("no connection was opened before the event")
	}
	if a.served.Accepted < accepted || a.served.Blocks < uint64(blocks) {
		return f, fmt.Errorf("%d connections say that they are open, and that %d blocks went over them at least; their other ends accepted %d and had %d", accepted, blocks, a.served.Accepted, a.served.Blocks)
	}
	return f, nil
}

// handed reports whether the group went from who had it to somebody else, and stayed there.
func (f *failure) handed() bool { return len(f.owners) > 1 && f.owners[len(f.owners)-1] != f.started }
