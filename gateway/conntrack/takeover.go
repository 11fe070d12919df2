package conntrack

import "demarc/gateway/verdict"

// Two more bits beside scaleOffered. The numbers of a session that another node has followed until now are those of that node's last word: exact where nothing was
// sent since, gigabytes behind where much was.
const (
	// In Scale[1]: the numbers are being taken anew. allAcked of a direction says meanwhile that it has been heard since.
	learning = 0x10
	// In Scale[0]: there was a takeover, see ahead. While learning: nothing has come that does not fit the other node's last word, so that still counts.
	takenOver = 0x10
)

// TakeOver notes that this node follows the session from now on, and another one did before.
//
// What fits the last word of the other node is judged as ever, until both directions have been heard. From the first segment on that does not, nothing is known: each goes through without moving
// the state, for its receiver to judge (RFC 9293 section 3.10.7.4, RFC 5961), until two of opposite directions agree with each other. Who is not on the path can write the one direction
// and not read the other, so he can neither close the session nor have it expect his numbers.
func TakeOver(s *Session) {
	s.Scale[0] = s.Scale[0]&^allAcked | takenOver
	s.Scale[1] = s.Scale[1]&^allAcked | learning
}

func (s *Session) heard(dir int) bool { return s.Scale[dir]&allAcked != 0 }

// known ends the learning: both directions are known.
func (s *Session) known() {
	s.Scale[0] = s.Scale[0]&^allAcked | takenOver
	s.Scale[1] &^= allAcked | learning
}

// learn is Track while the numbers are taken anew, for what is neither SYN nor SYN/ACK: those begin numbers by themselves. done = Track has nothing left to do, else
// the segment is judged as any.
func learn(s *Session, dir int, seg *Segment, c uint8) (r verdict.Reason, done bool) {
	o, trusted := 1-dir, s.Scale[0]&takenOver != 0
	if c == cRST {
		// At the exact place that the other node knew, or of the SYN that it knew. Any other goes to its receiver, who knows its place; if it is believed, what is left
		// here ends by its time.
		if trusted && (seg.Seq == s.TCPEnd[dir] || s.State < TCPEstablished) {
			_ = resets(s, dir, seg)
		}
		return verdict.Pass, true
	}
	if s.State == TCPSynSent {
		if dir == 1 {
			return verdict.Pass, true // as ever: the state moves with the client's next one
		}
		// The client follows up the SYN that is known here: there was an answer, and the other node was gone before it told.
		if seg.Seq-s.TCPEnd[0] > youngest {
			return verdict.TCPOutOfWindow, true
		}
		if s.Scale[0]&scaleOffered != 0 && s.Scale[1]&scaleOffered == 0 {
			s.Scale[1] |= offered(14) // unknown: be generous
		}
		s.State = TCPSynRecv
		s.hear(dir, seg)
		return verdict.Pass, true
	}
	switch {
	case trusted && inWindow(s, dir, seg):
		if s.Scale[dir] |= allAcked; s.heard(o) {
			s.known()
		}
		return 0, false
	case s.heard(o) && agrees(s, dir, seg):
		s.hear(dir, seg)
		s.known()
		return 0, false
	}
	s.hear(dir, seg)
	return verdict.Pass, true
}

// hear takes a segment's numbers for its direction's, and the other's for unknown.
func (s *Session) hear(dir int, seg *Segment) {
	s.TCPEnd[dir], s.TCPLimit[dir] = seg.end(), s.limit(dir, seg)
	s.Scale[1-dir] &^= allAcked
	s.Scale[dir] |= allAcked
	s.Scale[0] &^= takenOver
}

// youngest is how many bytes a client may have sent at most on a connection whose opening was not told to the end.
const youngest = 1 << 24

// agrees reports whether a segment and the last one of the other direction are of one conversation: it starts within what that allowed, or up to two windows before
// its end, and acknowledges what that was part of. What was sent before that is not known, so an acknowledgement may go beyond: where a segment was lost, its repetition fills a gap.
func agrees(s *Session, dir int, seg *Segment) bool {
	o := 1 - dir
	fits := func(n, mid uint32, below, above uint32) bool { return n-(mid-below) <= below+above }
	return fits(seg.Seq, s.TCPLimit[o], reach(s, o), 1) && fits(seg.Ack, s.TCPEnd[o], reach(s, dir), reach(s, dir))
}

// limit is what a segment of dir allows the other direction to send up to.
func (s *Session) limit(dir int, seg *Segment) uint32 {
	w := uint32(seg.Window)
	if seg.Flags&tcpSYN == 0 {
		w <<= s.shift(dir)
	}
	return seg.Ack + w
}

// ahead reports whether dir acknowledges more than its peer was seen to send, by no more than that may have been under way: sent before the takeover, it need not come again.
func ahead(s *Session, dir int, seg *Segment) bool {
	return s.Scale[0]&takenOver != 0 && seg.Ack-s.TCPEnd[1-dir] <= reach(s, dir)
}
