package lab

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"demarc/gateway/trio"
)

// What a handing over may cost. The tables of `demarc bench failover` say what it costs; here it must hold on a busy machine too.
const (
	killGap  = 600 * time.Millisecond
	moveGap  = 150 * time.Millisecond
	oneStill = 3 * time.Second // that the download may stand still: TCP waits longer each time that it hears nothing
)

// judgePair turns what was measured into the verdict. It is pure.
func judgePair(s *pairSeen) []Promise {
	list := []Promise{judgeTakeover(s), judgeOneDownload(s), judgeCall(s), judgeProtect(s), judgeMove(s), judgeOwner(s), judgePairTools(s)}
	for i := range list {
		list[i].OK = len(list[i].Why) == 0
	}
	return list
}

func (e *pairEvent) words() string {
	return fmt.Sprintf("worst flow %s (%s), median %s", ms(e.Gap), e.Flow, ms(e.Median))
}

func (e *pairEvent) says() string {
	if e.Says == nil || e.Says.Gap == nil {
		return ""
	}
	return fmt.Sprintf("%s to %s, %s, %.0f ms", e.Says.From, e.Says.To, e.Says.Cause, *e.Says.Gap*1e3)
}

// judgeTakeover: whoever serves is killed, and the other one goes on.
func judgeTakeover(s *pairSeen) Promise {
	e := &s.Kill
	p := Promise{Name: "takeover", Text: "the node that serves is killed (kill -9), and the other one serves at once", Hosts: e.words(), Gateway: e.says()}
	p.require(e.Done, "nobody has taken over within %s", takeWithin)
	p.require(e.Gap > 0, "no flow noticed: nothing was killed, or nothing measured")
	p.inTime(e.Gap <= killGap+e.Paused, "a flow was silent for %s, want at most %s (senders paused for %s)", ms(e.Gap), ms(killGap), ms(e.Paused))
	p.require(e.Says != nil && e.Says.To == e.To && e.Says.From == e.From, "%s does not say that it has taken over from %s", e.To, e.From)
	return p
}

// judgeOneDownload: one connection, every byte.
func judgeOneDownload(s *pairSeen) Promise {
	d := &s.Download
	p := Promise{Name: "download", Text: "a download goes on, on the same connection"}
	p.Hosts = fmt.Sprintf("%.1f MB in %.1f s on %d connection, all bytes right: %t; seen as %s; longest time without a byte %s", float64(d.Bytes)/1e6, d.Seconds, s.Fetched, d.OK, d.SeenAs, ms(s.DownloadStill))
	p.require(d.OK && d.Bytes > 0, "it is not complete or not the same: %s", d.Error)
	p.require(s.Fetched == 1, "the server saw %d requests", s.Fetched)
	p.inTime(s.DownloadStill <= oneStill, "it stood still for %s", ms(s.DownloadStill))
	p.inTime(float64(d.Bytes)*8 >= 0.6*downloadRate*d.Seconds, "it came at %.1f Mbit/s, asked for were %.0f", d.Mbits, downloadRate/1e6)
	return p
}

// judgeCall: the call loses what was sent while nobody served, and nothing else; the other end does not notice another address.
func judgeCall(s *pairSeen) Promise {
	c := &s.Call
	lost := c.Sent - min(c.Sent, c.Received)
	most := uint64((s.Kill.Gap+s.Move.Gap)/(time.Second/callPPS)) + 4 // one that was under way at each begin and end
	p := Promise{Name: "call", Text: "a call goes on: what was sent while nobody served is lost, and no more"}
	p.Hosts = fmt.Sprintf("%d sent, %d heard, %d came back: %d lost; from %d address and port; longest silence %.0f ms", c.Sent, s.CallHeard, c.Received, lost, s.CallPeers, c.LongestMs)
	p.require(c.Sent > 0 && c.Received > 0, "nobody spoke")
	p.inTime(lost <= most, "%d packets were lost, the gaps explain %d", lost, most)
	p.require(s.CallPeers == 1, "the phone outside was called from %d addresses and ports", s.CallPeers)
	p.require(s.MovedFlows == 0, "%d of %d flows have another public port than before", s.MovedFlows, s.TotalFlows)
	return p
}

// judgeProtect: a node that comes back is a standby with a whole copy.
func judgeProtect(s *pairSeen) Promise {
	p := Promise{Name: "protect", Text: "the killed node comes back as a standby and is soon as good as before", Hosts: "nothing noticed"}
	p.require(s.Back > 0, "the group was not protected within %s: %s", protectWithin, strings.Join(s.WhyNot, "; "))
	p.Gateway = fmt.Sprintf("a whole copy %s after it was ready", ms(s.Back))
	return p
}

// judgeMove: an operator's move.
func judgeMove(s *pairSeen) Promise {
	e := &s.Move
	p := Promise{Name: "move", Text: "an operator moves the group back", Hosts: e.words(), Gateway: e.says()}
	p.require(e.Done, "it was not moved")
	p.inTime(e.Gap <= moveGap+e.Paused, "a flow was silent for %s, want at most %s (senders paused for %s)", ms(e.Gap), ms(moveGap), ms(e.Paused))
	return p
}

// judgeOwner: what was recorded at the switches.
func judgeOwner(s *pairSeen) Promise {
	p := Promise{Name: "owner", Text: "never do both send for the group"}
	if s.Verdict == nil {
		p.fail("nothing was recorded")
		return p
	}
	var list []string
	for _, t := range s.Verdict.Terms[trio.PairGroup] {
		list = append(list, t.Node)
	}
	p.Hosts = fmt.Sprintf("%d frames with the group's address at the switches, sent by %s in turn", s.Verdict.Frames, strings.Join(list, ", "))
	p.require(s.Verdict.Marked > 0, "no packet of a flow was among them")
	want := []string{s.Kill.From}
	for _, e := range []*pairEvent{&s.Kill, &s.Move} {
		if e.Done {
			want = append(want, e.To)
		}
	}
	// A time: an owner whose CPU is elsewhere for longer than its lease loses it, as it should.
	p.inTime(slices.Equal(list, want), "want %s", strings.Join(want, ", "))
	for _, o := range s.Verdict.Offences {
		p.fail("%s", o)
	}
	return p
}

// judgePairTools: what could not be measured is not taken for good.
func judgePairTools(s *pairSeen) Promise {
	return Promise{Name: "lab", Text: "the lab itself worked", Why: slices.Clone(s.Errors), Hosts: fmt.Sprintf("%d tools failed", len(s.Errors))}
}
