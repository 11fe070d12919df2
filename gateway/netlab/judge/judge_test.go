package judge

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"demarc/gateway/netlab/host"
)

var begin = time.Unix(1000, 0)

// frame is a UDP packet with a group's address as its source and a flow's mark in it.
func frame(id byte, src, dst string, m host.FlowMark) []byte {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	b := []byte{0x02, 0, 0, 0, 0, 9, 0, 0, 0x5e, 0, 1, id}
	payload := make([]byte, 64)
	m.Put(payload)
	udp := make([]byte, 8)
	binary.BigEndian.PutUint16(udp, s.Port())
	binary.BigEndian.PutUint16(udp[2:], d.Port())
	if s.Addr().Is4() {
		ip := make([]byte, 20)
		ip[0], ip[8], ip[9] = 0x45, 63, 17
		copy(ip[12:], s.Addr().AsSlice())
		copy(ip[16:], d.Addr().AsSlice())
		b = append(append(b, 8, 0), ip...)
	} else {
		b[10] = 2
		ip := make([]byte, 40)
		ip[0], ip[6], ip[7] = 0x60, 17, 63
		copy(ip[8:], s.Addr().AsSlice())
		copy(ip[24:], d.Addr().AsSlice())
		b = append(append(b, 0x86, 0xdd), ip...)
	}
	return append(append(b, udp...), payload...)
}

func arp(id byte) []byte {
	return append([]byte{255, 255, 255, 255, 255, 255, 0, 0, 0x5e, 0, 1, id, 8, 6}, make([]byte, 28)...)
}

func tagged(b []byte) []byte {
	return slices.Concat(b[:12], []byte{0x81, 0, 0, 100}, b[12:])
}

var (
	h1 = host.FlowMark{Tag: "alpha", Flow: 1, Inside: netip.MustParseAddrPort("198.18.10.11:20000")}
	h2 = host.FlowMark{Tag: "alpha", Flow: 2, Inside: netip.MustParseAddrPort("198.18.10.12:20000")}
	b1 = host.FlowMark{Tag: "beta", Flow: 1, Inside: netip.MustParseAddrPort("198.18.10.11:20000")}
	h6 = host.FlowMark{Tag: "alpha6", Flow: 1, Inside: netip.MustParseAddrPort("[2001:db8:a::11]:20000")}
)

func reply(m host.FlowMark) host.FlowMark { m.Reply = true; return m }

// shot is a frame at so many ms.
type shot struct {
	ms   float64
	node string
	side string
	data []byte
}

// out is the commonest frame: h1's, on the backbone.
func out(node string, ms ...float64) (list []shot) {
	for _, m := range ms {
		list = append(list, shot{m, node, "", frame(1, "192.0.2.16:1024", "203.0.113.11:7", h1)})
	}
	return list
}

// every is out each ms of a time.
func every(node string, from, to float64) (list []shot) {
	for m := from; m < to; m++ {
		list = append(list, out(node, m)...)
	}
	return list
}

func speak(node string, ms float64) []shot { return []shot{{ms, node, "alpha", arp(1)}} }

func one(node, side string, ms float64, data []byte) []shot { return []shot{{ms, node, side, data}} }

func cat(parts ...[]shot) []shot { return slices.Concat(parts...) }

// Each offence is found, named and counted, and what is rightful passes.
func TestJudge(t *testing.T) {
	c := Case{Groups: map[uint8]string{1: "east", 2: "west"}, Sides: map[string]string{"alpha": "alpha", "beta": "beta", "alpha6": "alpha"}}
	for _, x := range []struct {
		name  string
		shots []shot
		want  []string // kind, node, frames
		terms string   // of east
	}{
		{"nothing", nil, nil, ""},
		{"one owner", every("a", 0, 50), nil, "a:50"},
		{"a takeover, announced", cat(every("a", 0, 50), speak("b", 190), speak("b", 190.1), every("b", 191, 300)), nil, "a:50 b:109"},
		{"there and back", cat(every("a", 0, 50), every("b", 200, 400), speak("a", 599), every("a", 600, 700)), nil, "a:50 b:200 a:100"},
		{"back at once where the other sent for long enough", cat(every("a", 0, 50), every("b", 200, 301), every("a", 301, 400)), nil, "a:50 b:101 a:99"},
		{"a burst of the one that woke up", cat(every("a", 0, 50), every("b", 200, 300), out("a", 250.1, 250.2, 250.3)), []string{"both a 3"}, "a:50 b:100"},
		{"a burst long after", cat(every("a", 0, 50), every("b", 200, 3000), out("a", 2000.5)), []string{"both a 1"}, "a:50 b:2800"},
		{"two bursts are two offences", cat(every("a", 0, 50), every("b", 200, 1000), out("a", 400.5, 800.5)), []string{"both a 1", "both a 1"}, "a:50 b:800"},
		{"the old one goes on for a moment", cat(every("a", 0, 205), every("b", 200.5, 400)), []string{"both a 4"}, "a:201 b:200"},
		{"both go on to the end", cat(every("a", 0, 500), every("b", 200.5, 500)), []string{"both a 299"}, "a:201 b:300"},
		{"who takes over for a moment is the wrong one where the old one goes on", cat(every("a", 0, 500), out("b", 200.5)), []string{"both b 1"}, "a:500"},
		{"one frame is enough, at the same switch or another", cat(every("b", 0, 300), one("a", "alpha", 100.5, frame(1, "203.0.113.11:7", "198.18.10.11:20000", reply(h1)))), []string{"both a 1"}, "b:300"},
		{"an announcement of who does not serve", cat(every("a", 0, 300), speak("b", 100.5)), []string{"both b 1"}, "a:300"},
		{"an announcement while nobody sends", cat(every("a", 0, 50), speak("a", 60), every("b", 200, 300)), nil, "a:50 b:100"},
		{"a short term, announced, and so is the next", cat(every("a", 0, 50), speak("b", 190), every("b", 191, 230), speak("a", 245), every("a", 246, 400)), nil, "a:50 b:39 a:154"},
		{"a short one after which the old one just goes on", cat(every("a", 0, 180), speak("b", 190), every("b", 191, 230), every("a", 231, 400)), []string{"both b 1", "both b 39"}, "a:349"},
		{"a burst that comes with nothing said", cat(every("a", 0, 50), speak("b", 190), every("b", 191, 230), out("a", 230.5), every("b", 231, 400)), []string{"both a 1"}, "a:50 b:208"},
		{"two that have both announced, and go on", cat(every("a", 0, 50), speak("b", 190), every("b", 191, 300), speak("a", 299), every("a", 300.5, 400), every("b", 300, 400)), []string{"both a 1", "both b 99"}, "a:50 b:110 a:100"},
		{"another group is another matter", cat(every("a", 0, 300), one("b", "", 100.5, frame(2, "192.0.2.17:1024", "203.0.113.11:7", b1))), nil, "a:300"},
		{"own addresses are nobody's matter", cat(every("a", 0, 300), one("b", "", 100.5, append([]byte{2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8}, frame(1, "192.0.2.17:1024", "203.0.113.11:7", h1)[12:]...))), nil, "a:300"},
		{"with a tag", cat(every("a", 0, 300), one("b", "", 100.5, tagged(frame(1, "192.0.2.16:1024", "203.0.113.11:7", h1)))), []string{"both b 1"}, "a:300"},
		{"IPv6", cat(every("a", 0, 300), one("b", "", 100.5, frame(1, "[2001:db8:a::11]:20000", "[2001:db8:ff::11]:7", h6))), []string{"both b 1"}, "a:300"},

		{"a reply to its own host", one("a", "alpha", 0, frame(1, "203.0.113.11:7", "198.18.10.11:20000", reply(h1))), nil, "a:1"},
		{"a reply to another host", one("a", "alpha", 0, frame(1, "203.0.113.11:7", "198.18.10.12:20000", reply(h1))), []string{"binding a 1"}, "a:1"},
		{"a reply to another port", one("a", "alpha", 0, frame(1, "203.0.113.11:7", "198.18.10.11:20001", reply(h1))), []string{"binding a 1"}, "a:1"},
		{"a reply to the same address of another tenant", one("a", "beta", 0, frame(1, "203.0.113.11:7", "198.18.10.11:20000", reply(h1))), []string{"binding a 1"}, "a:1"},
		{"a reply that went back", one("a", "", 0, frame(1, "203.0.113.11:7", "198.18.10.11:20000", reply(h1))), []string{"binding a 1"}, "a:1"},
		{"a packet for the outside inside", one("a", "beta", 0, frame(1, "192.0.2.16:1024", "203.0.113.11:7", h1)), []string{"binding a 1"}, "a:1"},

		{"a public port with two hosts", cat(out("a", 0), one("a", "", 500, frame(1, "192.0.2.16:1024", "203.0.113.11:7", h2))), []string{"port a 1"}, "a:2"},
		{"of two tenants, by another node", cat(out("a", 0), one("b", "", 500, frame(1, "192.0.2.16:1024", "203.0.113.11:7", b1))), []string{"port b 1"}, "a:1 b:1"},
		{"after the hold time it is another's", cat(out("a", 0), one("a", "", 120_001, frame(1, "192.0.2.16:1024", "203.0.113.11:7", h2))), nil, "a:2"},
		{"another port", cat(out("a", 0), one("a", "", 500, frame(1, "192.0.2.16:1026", "203.0.113.11:7", h2))), nil, "a:2"},
		{"one host with two public ports", cat(out("a", 0), one("b", "", 500, frame(1, "192.0.2.16:1026", "203.0.113.11:7", h1))), nil, "a:1 b:1"},
		{"one flow that stays wrong is one offence", cat(one("a", "alpha", 0, frame(1, "203.0.113.11:7", "198.18.10.12:20000", reply(h1))), one("a", "alpha", 1, frame(1, "203.0.113.11:7", "198.18.10.12:20000", reply(h1)))), []string{"binding a 2"}, "a:2"},

		{"what is cut short is looked at as far as it goes", cat(one("a", "", 0, frame(1, "192.0.2.16:1024", "203.0.113.11:7", h1)[:20]), one("a", "", 1, []byte{1, 2, 3}), one("a", "", 2, nil)), nil, "a:1"},
	} {
		t.Run(strings.ReplaceAll(x.name, " ", "-"), func(t *testing.T) {
			var frames []Frame
			for _, s := range slices.Backward(x.shots) { // they need no order
				frames = append(frames, Frame{begin.Add(time.Duration(s.ms * 1e6)), s.node, s.side, s.data})
			}
			v := Judge(c, frames)
			var got []string
			for _, o := range v.Offences {
				got = append(got, fmt.Sprintf("%s %s %d", o.Kind, o.Node, o.Frames))
				if o.Words == "" || o.At.IsZero() {
					t.Errorf("an offence that does not say what it is: %+v", o)
				}
			}
			if !slices.Equal(got, x.want) {
				t.Errorf("offences %v, want %v\n%v", got, x.want, v.Offences)
			}
			var terms []string
			for _, s := range v.Terms["east"] {
				terms = append(terms, fmt.Sprintf("%s:%d", s.Node, s.Frames))
			}
			if s := strings.Join(terms, " "); s != x.terms {
				t.Errorf("terms %q, want %q", s, x.terms)
			}
		})
	}
}

// Who has no group's addresses is judged by flows alone, whatever address they are sent with: what else is sent is not looked at.
func TestJudgeOfAll(t *testing.T) {
	c := Case{All: "east", Sides: map[string]string{"alpha": "alpha"}}
	own := append([]byte{2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8}, frame(1, "192.0.2.16:1024", "203.0.113.11:7", h1)[12:]...)
	var frames []Frame
	for _, s := range cat(one("a", "", 0, own), out("a", 1), speak("b", 1.5), one("b", "", 200, own), one("b", "alpha", 201, frame(1, "203.0.113.11:7", "198.18.10.12:20000", reply(h1))), one("a", "", 202, []byte{1})) {
		frames = append(frames, Frame{begin.Add(time.Duration(s.ms * 1e6)), s.node, s.side, s.data})
	}
	v := Judge(c, frames)
	if len(v.Terms["east"]) != 2 || v.Frames != 4 || v.Marked != 4 || len(v.Offences) != 1 || v.Offences[0].Kind != Binding {
		t.Errorf("%+v", v)
	}
}

// How long after the new owner's first frame the old one sent is told, since it says what was at fault.
func TestJudgeSaysWhen(t *testing.T) {
	c := Case{Groups: map[uint8]string{1: "east"}, Sides: map[string]string{"alpha": "alpha"}}
	var frames []Frame
	for _, s := range cat(every("a", 0, 50), every("b", 200, 400), out("a", 330.5)) {
		frames = append(frames, Frame{begin.Add(time.Duration(s.ms * 1e6)), s.node, s.side, s.data})
	}
	v := Judge(c, frames)
	if len(v.Offences) != 1 || v.Offences[0].After != 130500*time.Microsecond || !v.Offences[0].At.Equal(begin.Add(330500*time.Microsecond)) {
		t.Errorf("%+v", v.Offences)
	}
	if len(v.Of(Both)) != 1 || len(v.Of(Port)) != 0 {
		t.Errorf("by kind: %v, %v", v.Of(Both), v.Of(Port))
	}
}

// TestTheFirstWordOfATerm: it is that of the node that the term is of, behind the last data frame of the one before, and no later than shortly behind its own first one.
func TestTheFirstWordOfATerm(t *testing.T) {
	c := Case{Groups: map[uint8]string{1: "east"}, Sides: map[string]string{"alpha": "alpha"}}
	for _, x := range []struct {
		name string
		word float64 // of b, whose first data frame is at 60; a's last one is at 49
		want bool
	}{{"before its data", 55, true}, {"behind it", 70, true}, {"long behind it", 130, false}} {
		var list []Frame
		for _, s := range cat(speak("a", 10), every("a", 0, 50), speak("b", x.word), every("b", 60, 200)) {
			list = append(list, Frame{At: time.Unix(1000, 0).Add(time.Duration(s.ms * 1e6)), Node: s.node, Side: s.side, Data: s.data})
		}
		terms := Judge(c, list).Terms["east"]
		if len(terms) != 2 || terms[1].Node != "b" {
			t.Fatalf("%s: %+v", x.name, terms)
		}
		if got := terms[1].Word; got.IsZero() == x.want || x.want && got.Sub(time.Unix(1000, 0)) != time.Duration(x.word*1e6) || !terms[0].Word.IsZero() {
			t.Errorf("%s: %v; of the first term %v", x.name, got, terms[0].Word)
		}
	}
}

// TestATermWithNothingToSend: a word of another node is that of a term in which it had nothing to send, where behind it who sends says where the addresses are before it sends again. A standby's word has no such thing behind it.
func TestATermWithNothingToSend(t *testing.T) {
	c := Case{Groups: map[uint8]string{1: "east"}, Sides: map[string]string{"alpha": "alpha"}}
	for _, x := range []struct {
		name  string
		again float64 // when a says it again; its data frames are until 100 and from 160 on, b's word at 120
		want  int     // offences
	}{{"before it sends", 150, 0}, {"before the other's word", 110, 1}, {"after it has sent", 165, 1}} {
		var list []Frame
		for _, s := range cat(speak("b", 5), every("b", 0, 10), speak("a", 20), every("a", 20, 100), speak("b", 120), speak("a", x.again), every("a", 160, 300)) {
			list = append(list, Frame{At: time.Unix(1000, 0).Add(time.Duration(s.ms * 1e6)), Node: s.node, Side: s.side, Data: s.data})
		}
		if got := Judge(c, list).Offences; len(got) != x.want {
			t.Errorf("%s: %+v", x.name, got)
		}
	}
}
