package conntrack

import (
	"demarc/gateway/flow"
	"demarc/gateway/verdict"
)

// The states of a TCP session, as far as a router on the path can know them.
const (
	TCPNone        uint8 = iota // not TCP
	TCPSynSent                  // SYN of the first direction
	TCPSynRecv                  // SYN/ACK of the reply direction
	TCPSimOpen                  // SYN of both directions: simultaneous open
	TCPEstablished              // handshake complete
	TCPFinOrig                  // FIN of the first direction only: half closed
	TCPFinReply                 // FIN of the reply direction only: half closed
	TCPResync                   // established, and the first direction sent a SYN again: it may have restarted
	TCPClosing                  // FIN of both directions, not both acknowledged
	TCPTimeWait                 // FIN of both directions, both acknowledged
	TCPReset                    // RST in the window, but not at its exact place: the receiver may have refused it
	TCPClosed                   // RST at its exact place
	TCPReuse                    // closing or over, and the first direction sent a SYN that is no newer: the tuple may be used again
	numTCPStates
)

var tcpText = [numTCPStates]string{"none", "syn_sent", "syn_recv", "sim_open", "established", "fin_orig", "fin_reply", "resync", "closing", "time_wait", "reset", "closed", "reuse"}

// TCPStateText is the state's lower-case name.
func TCPStateText(state uint8) string {
	if int(state) < len(tcpText) {
		return tcpText[state]
	}
	return "invalid"
}

// TCPCloses reports whether an end of a session in that state has said that it sends no more, or was reset: it is established again only where its tuple is used anew.
func TCPCloses(state uint8) bool {
	return state == TCPFinOrig || state == TCPFinReply || state == TCPClosing || state == TCPTimeWait || state == TCPClosed || state == TCPReuse
}

// Segment is what Track needs of a TCP segment.
type Segment struct {
	Flags    uint8 // the TCP flags byte
	Seq, Ack uint32
	Window   uint16 // as written, not scaled
	Payload  uint16 // bytes
	Scale    int8   // the window scale option of a SYN, -1 when there is none; not read on other segments
}

const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpACK = 0x10
)

// The flag classes. PSH, URG, ECE and CWR say nothing about the state.
const (
	cSYN uint8 = iota
	cSYNACK
	cACK // any segment with ACK alone: data, acknowledgements, keep-alives, probes
	cFIN // FIN with ACK
	cRST // with or without ACK
	numClasses
	cBad = numClasses
)

// classOf is by FIN 1, SYN 2, RST 4, ACK 8. What is not here no TCP sends (RFC 9293 section 3.10: after the SYN, ACK is always set).
var classOf = [16]uint8{
	cBad,    // none: null scan
	cBad,    // FIN
	cSYN,    // SYN
	cBad,    // SYN FIN
	cRST,    // RST
	cBad,    // RST FIN
	cBad,    // RST SYN
	cBad,    // RST SYN FIN
	cACK,    // ACK
	cFIN,    // ACK FIN
	cSYNACK, // ACK SYN
	cBad,    // ACK SYN FIN
	cRST,    // ACK RST
	cBad,    // ACK RST FIN
	cBad,    // ACK RST SYN
	cBad,    // all: Christmas tree
}

func (g *Segment) class() uint8 { return classOf[g.Flags&7|g.Flags>>1&8] }

// end is the sequence number after the segment: SYN and FIN count one (RFC 9293 section 3.4).
func (g *Segment) end() uint32 {
	return g.Seq + uint32(g.Payload) + uint32(g.Flags>>1&1) + uint32(g.Flags&1)
}

// What is done with a segment before the state moves.
const (
	refuse    uint8 = iota // TCPInvalidFlags: no endpoint in that state sends it
	notSyn                 // TCPNotSyn: would open a new conversation, see Reopens
	pass                   // goes through, unexamined, and moves nothing: the receiver will answer it (RFC 5961 challenge ACK, or RST)
	open                   // SYN of the first direction: all numbers start afresh
	reopen                 // the same on a closed tuple; a number that is no newer may be a late copy's, see TCPReuse
	resync                 // SYN of the first direction on a live session: a late copy or a restart, what comes next tells
	resyncNew              // the same on a half closed one, whose FIN would be forgotten on the way back: what may be a late copy passes
	restart                // SYN/ACK after that: the server knows nothing of the old conversation, and all numbers start afresh; a late copy passes
	answer                 // SYN or SYN/ACK of the reply direction: its numbers start
	again                  // another SYN/ACK of the reply direction before the first was acknowledged
	move                   // must lie in the window
	reset                  // RST: must lie in the window, or acknowledge a SYN exactly
)

type cell struct{ how, next uint8 }

// tcpTable is what becomes of a segment: by state, direction (0 orig, 1 reply) and flag class.
var tcpTable = [numTCPStates][2][numClasses]cell{
	TCPNone: {
		// Not begun: First, not Track, takes a first packet.
		{cSYN: {notSyn, 0}, cSYNACK: {notSyn, 0}, cACK: {notSyn, 0}, cFIN: {notSyn, 0}, cRST: {notSyn, 0}},
		{cSYN: {notSyn, 0}, cSYNACK: {notSyn, 0}, cACK: {notSyn, 0}, cFIN: {notSyn, 0}, cRST: {notSyn, 0}},
	},
	TCPSynSent: {
		{
			cSYN:    {open, TCPSynSent}, // The SYN was not answered and comes again, or a new attempt has a new number.
			cSYNACK: {refuse, 0},        // Nobody accepts before being asked.
			cACK:    {refuse, 0},        // Nothing has come that could be acknowledged.
			cFIN:    {refuse, 0},        // Nothing is open that could be closed.
			cRST:    {reset, TCPClosed}, // Gives up, or answers a stale segment of an earlier conversation (RFC 9293 figure 9).
		}, {
			cSYN:    {answer, TCPSimOpen}, // Both ends opened at once (RFC 9293 figure 7).
			cSYNACK: {answer, TCPSynRecv}, // Accepted.
			cACK:    {pass, 0},            // The server still holds an earlier conversation: the client will reset it (RFC 9293 figure 9).
			cFIN:    {pass, 0},            // The same, and it was closing.
			cRST:    {reset, TCPClosed},   // Refused; must acknowledge the SYN.
		},
	},
	TCPSynRecv: {
		{
			cSYN:    {open, TCPSynSent},     // The SYN/ACK did not arrive, so the SYN comes again, maybe without its data (RFC 7413); a repeated number moves nothing.
			cSYNACK: {move, TCPEstablished}, // The other half of a simultaneous open.
			cACK:    {move, TCPEstablished}, // Third step of the handshake, maybe with data already.
			cFIN:    {move, TCPFinOrig},     // The third step was lost or overtaken, and this closes.
			cRST:    {reset, TCPClosed},     // Gives up, or does not want this SYN/ACK.
		}, {
			cSYN:    {pass, 0},           // A late copy from a simultaneous open.
			cSYNACK: {again, TCPSynRecv}, // The third step has not arrived there, so it comes again; a SYN cookie may bring a new number.
			cACK:    {move, TCPSynRecv},  // Data before the handshake is complete (RFC 7413), or a challenge.
			cFIN:    {move, TCPFinReply}, // All of a short answer before the handshake is complete (RFC 7413).
			cRST:    {reset, TCPClosed},  // The listener has gone.
		},
	},
	TCPSimOpen: {
		{
			cSYN:    {pass, 0},              // Comes again.
			cSYNACK: {move, TCPSimOpen},     // Has the other's SYN; whether its own arrived is not known yet.
			cACK:    {move, TCPEstablished}, // Only who was acknowledged sends without SYN.
			cFIN:    {move, TCPFinOrig},     // Was acknowledged, and closes.
			cRST:    {reset, TCPClosed},     // Gives up.
		}, {
			cSYN:    {pass, 0},              // Comes again.
			cSYNACK: {move, TCPSynRecv},     // Accepted; now like a plain open.
			cACK:    {move, TCPEstablished}, // Only who was acknowledged sends without SYN.
			cFIN:    {move, TCPFinReply},    // Was acknowledged, and closes.
			cRST:    {reset, TCPClosed},     // Gives up.
		},
	},
	TCPEstablished: {
		{
			cSYN:    {resync, TCPResync},    // A late copy, or the client has restarted; the server will challenge it (RFC 5961 section 4) or accept it.
			cSYNACK: {pass, 0},              // A late copy from a simultaneous open.
			cACK:    {move, TCPEstablished}, // Data.
			cFIN:    {move, TCPFinOrig},     // Has no more to send; the other may go on for as long as it likes.
			cRST:    {reset, TCPClosed},     // Aborts.
		}, {
			cSYN:    {pass, 0},              // A late copy, or the server has restarted: the client will challenge it.
			cSYNACK: {pass, 0},              // The third step was lost, so the SYN/ACK comes again.
			cACK:    {move, TCPEstablished}, // Data.
			cFIN:    {move, TCPFinReply},    // Has no more to send.
			cRST:    {reset, TCPClosed},     // Aborts.
		},
	},
	TCPFinOrig: {
		{
			cSYN:    {resyncNew, TCPResync}, // As when established.
			cSYNACK: {pass, 0},              // A late copy.
			cACK:    {move, TCPFinOrig},     // Acknowledges what still comes, or repeats what was lost.
			cFIN:    {move, TCPFinOrig},     // The FIN comes again.
			cRST:    {reset, TCPClosed},     // Aborts the half that was left.
		}, {
			cSYN:    {pass, 0},          // A late copy.
			cSYNACK: {pass, 0},          // A late copy.
			cACK:    {move, TCPFinOrig}, // The other half goes on.
			cFIN:    {move, TCPClosing}, // The other half closes too.
			cRST:    {reset, TCPClosed}, // Aborts the half that was left.
		},
	},
	TCPFinReply: {
		{
			cSYN:    {resyncNew, TCPResync}, // As when established.
			cSYNACK: {pass, 0},              // A late copy.
			cACK:    {move, TCPFinReply},    // The other half goes on.
			cFIN:    {move, TCPClosing},     // The other half closes too.
			cRST:    {reset, TCPClosed},     // Aborts the half that was left.
		}, {
			cSYN:    {pass, 0},           // A late copy.
			cSYNACK: {pass, 0},           // A late copy.
			cACK:    {move, TCPFinReply}, // Acknowledges what still comes, or repeats what was lost.
			cFIN:    {move, TCPFinReply}, // The FIN comes again.
			cRST:    {reset, TCPClosed},  // Aborts the half that was left.
		},
	},
	TCPResync: {
		{
			cSYN:    {pass, 0},              // Comes again.
			cSYNACK: {pass, 0},              // A late copy.
			cACK:    {move, TCPEstablished}, // Fits the old numbers: the SYN was a late copy or forged, and all goes on.
			cFIN:    {move, TCPFinOrig},     // The same, and it closes.
			cRST:    {reset, TCPClosed},     // Answers the server's challenge: the old conversation is over.
		}, {
			cSYN:    {pass, 0},             // A late copy.
			cSYNACK: {restart, TCPSynRecv}, // The server had lost the old conversation and accepts the new one.
			cACK:    {move, TCPResync},     // The challenge, or data under way.
			cFIN:    {move, TCPFinReply},   // The old conversation is closing; a client that has restarted sends its SYN again.
			cRST:    {reset, TCPReset},     // Refuses the new SYN, with no number of its own, or aborts the old conversation.
		},
	},
	TCPClosing: {
		{
			cSYN:    {reopen, TCPSynSent}, // A late copy, or the last acknowledgement was lost and the tuple is used again.
			cSYNACK: {pass, 0},            // A late copy.
			cACK:    {move, TCPClosing},   // Acknowledges, maybe the FIN: see closes.
			cFIN:    {move, TCPClosing},   // The FIN comes again.
			cRST:    {reset, TCPClosed},   // Does not wait.
		}, {
			cSYN:    {notSyn, 0},        // A new conversation from the other side: the ACL must judge it, see Reopens.
			cSYNACK: {pass, 0},          // A late copy.
			cACK:    {move, TCPClosing}, // Acknowledges, maybe the FIN: see closes.
			cFIN:    {move, TCPClosing}, // The FIN comes again.
			cRST:    {reset, TCPClosed}, // Does not wait.
		},
	},
	TCPTimeWait: {
		{
			cSYN:    {reopen, TCPSynSent}, // A late copy, or the tuple is used again (RFC 9293 section 3.6.1, RFC 6191).
			cSYNACK: {pass, 0},            // A late copy.
			cACK:    {move, TCPTimeWait},  // Last acknowledgement, or what was lost before the FIN.
			cFIN:    {move, TCPTimeWait},  // The FIN comes again.
			cRST:    {reset, TCPClosed},   // Does not wait.
		}, {
			cSYN:    {notSyn, 0},         // A new conversation from the other side: the ACL must judge it, see Reopens.
			cSYNACK: {pass, 0},           // A late copy.
			cACK:    {move, TCPTimeWait}, // Last acknowledgement, or what was lost before the FIN.
			cFIN:    {move, TCPTimeWait}, // The FIN comes again.
			cRST:    {reset, TCPClosed},  // Does not wait.
		},
	},
	TCPReset: {
		{
			cSYN:    {resync, TCPResync},    // The RST may have been forged, so as when established.
			cSYNACK: {pass, 0},              // A late copy.
			cACK:    {move, TCPEstablished}, // The RST was refused (RFC 5961 section 3): all goes on. Who is really gone will reset again.
			cFIN:    {move, TCPFinOrig},     // The same, and it closes.
			cRST:    {reset, TCPClosed},     // Again, maybe at its exact place.
		}, {
			cSYN:    {pass, 0},              // May be forged like the RST before it: the client will challenge it.
			cSYNACK: {pass, 0},              // A late copy.
			cACK:    {move, TCPEstablished}, // The RST was refused: all goes on.
			cFIN:    {move, TCPFinReply},    // The same, and it closes.
			cRST:    {reset, TCPClosed},     // Again, maybe at its exact place.
		},
	},
	TCPClosed: {
		{
			cSYN:    {open, TCPSynSent}, // The tuple is used again.
			cSYNACK: {pass, 0},          // A late copy.
			cACK:    {move, TCPClosed},  // Was on the way when the RST was sent: it will be answered with RST.
			cFIN:    {move, TCPClosed},  // The same.
			cRST:    {reset, TCPClosed}, // That answer.
		}, {
			cSYN:    {notSyn, 0},        // A new conversation from the other side: the ACL must judge it, see Reopens.
			cSYNACK: {pass, 0},          // A late copy.
			cACK:    {move, TCPClosed},  // Was on the way when the RST was sent: it will be answered with RST.
			cFIN:    {move, TCPClosed},  // The same.
			cRST:    {reset, TCPClosed}, // That answer.
		},
	},
	TCPReuse: {
		{
			cSYN:    {reopen, TCPSynSent}, // Comes again, or a new attempt has a newer number.
			cSYNACK: {pass, 0},            // A late copy.
			cACK:    {move, TCPClosing},   // Fits the old numbers: the SYN was a late copy. Over is what was over: see closes.
			cFIN:    {move, TCPClosing},   // The same, and the FIN comes again.
			cRST:    {reset, TCPClosed},   // Answers the server's challenge: the old conversation is over.
		}, {
			cSYN:    {notSyn, 0},           // A new conversation from the other side: the ACL must judge it, see Reopens.
			cSYNACK: {restart, TCPSynRecv}, // The server accepts the new conversation.
			cACK:    {move, TCPReuse},      // The challenge, or acknowledges, maybe the FIN: see closes.
			cFIN:    {move, TCPReuse},      // The FIN comes again.
			cRST:    {reset, TCPClosed},    // Refuses the new SYN, with no number of its own, or does not wait.
		},
	},
}

// First judges the first packet of a TCP session, not yet in the table, and starts its numbers: only a SYN opens.
// Pass, TCPNotSyn or TCPInvalidFlags.
func First(s *Session, seg *Segment) verdict.Reason {
	switch seg.class() {
	case cSYN:
		begin(s, seg)
		return verdict.Pass
	case cBad:
		return verdict.TCPInvalidFlags
	}
	return verdict.TCPNotSyn
}

// Track judges one more segment of a session in the table, of direction dir (0 or 1), and moves its state.
// Pass, TCPInvalidFlags, TCPOutOfWindow or TCPNotSyn; what it refuses moves nothing. Ask Reopens first where it matters.
//
// It changes State, Scale, TCPEnd and TCPLimit, none of which the sequence word guards.
func Track(s *Session, dir int, seg *Segment) verdict.Reason {
	dir &= 1
	c := seg.class()
	if c == cBad || s.State >= numTCPStates {
		return verdict.TCPInvalidFlags
	}
	if s.Scale[1]&learning != 0 && c != cSYN && c != cSYNACK {
		if r, done := learn(s, dir, seg, c); done {
			return r
		}
	}
	todo := tcpTable[s.State][dir][c]
	switch todo.how {
	case move:
		if !inWindow(s, dir, seg) {
			return verdict.TCPOutOfWindow
		}
		advance(s, dir, seg)
	case pass:
		return verdict.Pass
	case open:
		if s.State == TCPSynRecv && s.TCPEnd[0]-(seg.Seq+1) <= 0xffff {
			return verdict.Pass // the same SYN, for nothing but its own data came behind it: what the SYN/ACK has told stays
		}
		begin(s, seg)
	case reopen:
		if !newerThan(s, dir, seg.Seq) {
			s.State = TCPReuse
			return verdict.Pass
		}
		begin(s, seg)
	case resync: // no number moves: it may be forged
	case resyncNew:
		if !newerThan(s, dir, seg.Seq) {
			return verdict.Pass
		}
	case restart:
		if !newerThan(s, dir, seg.Seq) && s.TCPEnd[0]-seg.Ack <= reach(s, dir) {
			return verdict.Pass // both its numbers are of the old conversation
		}
		// The SYN's own numbers were not kept, for it may have been forged: be generous until the windows are seen.
		s.Scale = [2]uint8{offered(14), offered(seg.Scale)}
		s.TCPEnd[0], s.TCPLimit[0] = seg.Ack, 0xffff
		answered(s, seg)
	case answer:
		if seg.Flags&tcpACK != 0 && !acksSyn(s, seg.Ack) {
			return verdict.Pass // an answer to an older SYN: the client will reset it (RFC 9293 figure 8)
		}
		answered(s, seg)
	case again:
		if s.TCPEnd[1]-seg.end() <= 0xffff {
			return verdict.Pass // the same one, maybe after early data
		}
		if s.TCPEnd[0]-seg.Ack > 0xffff {
			return verdict.TCPOutOfWindow
		}
		s.TCPLimit[0] = 0xffff // the SYN's own window is no longer known; it was no larger
		answered(s, seg)
	case reset:
		return resets(s, dir, seg)
	case notSyn:
		return verdict.TCPNotSyn
	default:
		return verdict.TCPInvalidFlags
	}
	s.State = todo.next
	if todo.how == move && s.State >= TCPFinOrig {
		closes(s, dir, seg)
	}
	return verdict.Pass
}

// closes notes that a FIN was acknowledged. With both the closing phase is over (RFC 5382 section 5): what is left is TIME_WAIT.
func closes(s *Session, dir int, seg *Segment) {
	o := 1 - dir
	sent := s.State == TCPClosing || s.State == TCPReuse || s.State == TCPFinOrig && o == 0 || s.State == TCPFinReply && o == 1
	if sent && seg.Ack == s.TCPEnd[o] {
		s.Scale[o] |= finAcked
	}
	if s.State == TCPClosing && s.Scale[0]&s.Scale[1]&finAcked != 0 {
		s.State = TCPTimeWait
	}
}

// Reopens reports that seg is a SYN that opens a new conversation on the tuple of one that is surely over. Ask before Track: judge
// the packet as the first of a new session, and only if it may pass remove the old session and create the new one. A pipeline
// that does not ask loses nothing in direction 0, where Track restarts the same session; in direction 1 Track refuses.
func Reopens(s *Session, dir int, seg *Segment) bool {
	if seg.class() != cSYN || s.Proto != flow.TCP {
		return false
	}
	switch s.State {
	case TCPClosed:
		return true
	case TCPClosing, TCPTimeWait, TCPReuse:
		return newerThan(s, dir, seg.Seq)
	}
	return false
}

// scaleOffered marks in Session.Scale that the direction's SYN had the option; the shift is in the low 4 bits. It counts only
// when both offered (RFC 7323 section 2.2). finAcked beside it says that the direction's FIN was acknowledged, allAcked that all it has sent was.
const (
	scaleOffered = 0x80
	finAcked     = 0x40
	allAcked     = 0x20
)

func offered(scale int8) uint8 {
	if scale < 0 {
		return 0
	}
	return scaleOffered | uint8(min(scale, 14)) // RFC 7323 section 2.3
}

func (s *Session) shift(dir int) uint {
	if s.Scale[0]&s.Scale[1]&scaleOffered == 0 {
		return 0
	}
	return uint(s.Scale[dir&1] & 15)
}

// begin starts the numbers at the first SYN. Until the other side answers, TCPEnd[1] holds this SYN's own sequence number and TCPLimit[0]
// its bare window, for there is nothing yet that they could be relative to.
func begin(s *Session, seg *Segment) {
	old := s.Scale[0]
	same := s.State == TCPSynSent && seg.Seq == s.TCPEnd[1]
	s.State = TCPSynSent
	s.Scale[0], s.Scale[1] = offered(seg.Scale), 0
	end := seg.end()
	if same {
		// Repeated, maybe without the options or the data of the first try, which may be the one that is answered.
		s.Scale[0] |= old &^ (allAcked | takenOver)
		if int32(s.TCPEnd[0]-end) > 0 {
			end = s.TCPEnd[0]
		}
	}
	s.TCPEnd = [2]uint32{end, seg.Seq}
	s.TCPLimit = [2]uint32{uint32(seg.Window), 0}
}

// acksSyn reports whether ack acknowledges the SYN that begin took, with none, some or all of its data (RFC 9293 section 3.10.7.3).
func acksSyn(s *Session, ack uint32) bool {
	first := s.TCPEnd[1] + 1
	return ack-first <= s.TCPEnd[0]-first
}

// answered starts the reply direction's numbers at its SYN or SYN/ACK. Windows of SYNs are never scaled (RFC 7323 section 2.2).
func answered(s *Session, seg *Segment) {
	s.Scale[0] &^= allAcked
	s.Scale[1] &^= allAcked | learning
	if o := offered(seg.Scale); o != 0 {
		s.Scale[1] = o
	}
	s.TCPEnd[1] = seg.end()
	s.TCPLimit[0] += s.TCPEnd[1]
	ack := s.TCPEnd[0]
	if seg.Flags&tcpACK != 0 {
		ack = seg.Ack
	}
	s.TCPLimit[1] = ack + uint32(seg.Window)
}

// reach is how far behind the last that it sent a direction's numbers may still be, where dir receives: a whole window of the largest
// size that dir can have advertised is under way, and a delayed copy may be as old again. Below 2^30, so that comparisons stay signed.
func reach(s *Session, dir int) uint32 { return min(2*(uint32(0xffff)<<s.shift(dir))+0xffff, 1<<30) }

// inWindow reports whether seg can be of this conversation:
// it starts no later than one byte beyond what the receiver has allowed (that byte is a window probe or a FIN; an acknowledgement follows it),
// it ends no earlier than two windows before the last that was sent (a keep-alive is one byte before; a retransmission up to a window),
// it acknowledges nothing that was never sent and nothing long past (RFC 5961 section 5.2).
func inWindow(s *Session, dir int, seg *Segment) bool {
	o := 1 - dir
	if int32(seg.Seq-s.TCPLimit[o]) > 1 || !notOld(s, dir, seg.end()) {
		return false
	}
	behind := s.TCPEnd[o] - seg.Ack
	return behind <= reach(s, dir) || ahead(s, dir, seg)
}

func notOld(s *Session, dir int, end uint32) bool {
	return int32(end-(s.TCPEnd[dir]-reach(s, 1-dir)-1)) >= 0
}

// newerThan reports whether a SYN with that number is a new one rather than a late copy from the conversation that is over: beyond
// its end, or too far from it.
func newerThan(s *Session, dir int, seq uint32) bool {
	dir &= 1
	return int32(seq-s.TCPEnd[dir]) >= 0 || !notOld(s, dir, seq)
}

func advance(s *Session, dir int, seg *Segment) {
	if end := seg.end(); int32(end-s.TCPEnd[dir]) > 0 {
		s.TCPEnd[dir] = end
		if s.Scale[1]&learning == 0 {
			s.Scale[dir] &^= allAcked
		}
	}
	o := 1 - dir
	if ahead(s, dir, seg) {
		s.TCPEnd[o] = seg.Ack
	}
	if seg.Ack == s.TCPEnd[o] && s.Scale[o]&allAcked == 0 && s.Scale[1]&learning == 0 {
		s.Scale[o] |= allAcked
	}
	if lim := s.limit(dir, seg); int32(lim-s.TCPLimit[dir]) > 0 {
		s.TCPLimit[dir] = lim
	}
}

// resets judges an RST (RFC 9293 section 3.10.7, RFC 5961 section 3.2). One at the exact place ends the session; elsewhere in the window it goes
// through, and what comes after it tells whether it was believed.
func resets(s *Session, dir int, seg *Segment) verdict.Reason {
	o := 1 - dir
	exact := seg.Seq == s.TCPEnd[dir]
	switch s.State {
	case TCPSynSent:
		if dir == 0 {
			if exact {
				s.State = TCPClosed
			}
			return verdict.Pass
		}
		if seg.Flags&tcpACK == 0 || !acksSyn(s, seg.Ack) {
			return verdict.TCPOutOfWindow
		}
		s.State = TCPClosed
		return verdict.Pass
	case TCPSynRecv, TCPSimOpen:
		// Refuses a repeated SYN: has no number of its own then (RFC 9293 section 3.5.2).
		if seg.Flags&tcpACK != 0 && seg.Ack == s.TCPEnd[o] {
			exact = true
		}
	}
	switch {
	case exact:
		s.State = TCPClosed
	case s.State == TCPResync && dir == 1 && seg.Flags&tcpACK != 0:
		s.State = TCPReset // which SYN it acknowledges is not known; the client knows
	case s.State == TCPReuse && dir == 1 && seg.Flags&tcpACK != 0:
		// The same, and what was over stays over.
	case s.Scale[dir]&allAcked != 0 && int32(seg.Seq-s.TCPEnd[dir]) < 0:
		// The receiver has all that was sent and takes nothing from before it, not even to ask back (RFC 5961 section 3.2): forged, or late.
		return verdict.TCPOutOfWindow
	case int32(seg.Seq-s.TCPLimit[o]) > 1 || !notOld(s, dir, seg.Seq):
		return verdict.TCPOutOfWindow
	case s.State >= TCPEstablished && s.State < TCPClosing: // before, it would only be a way past the third step of the handshake; and what is over stays over
		s.State = TCPReset
	}
	return verdict.Pass
}
