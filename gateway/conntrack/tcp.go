package conntrack

import "demarc/gateway/verdict"

// The states of a TCP session.
const (
	TCPNone        uint8 = iota // not TCP, or nothing seen yet
	TCPSynSent                  // SYN of the first direction
	TCPSynRecv                  // SYN/ACK seen
	TCPSimOpen                  // SYN of both directions, neither acknowledged: simultaneous open
	TCPEstablished              // handshake complete
	TCPFinOrig                  // FIN of the first direction only: half closed
	TCPFinReply                 // FIN of the other direction only
	TCPTimeWait                 // FIN of both directions
	TCPClosed                   // RST
	numTCPStates
)

// Segment is what Track needs of a TCP segment. Scale is the window scale option of a SYN, or -1 when there is none.
type Segment struct {
	Flags    uint8 // the TCP flags byte
	Seq, Ack uint32
	Window   uint16
	Payload  uint16 // bytes
	Scale    int8
}

// First judges the first packet of a session and starts its state. Only a SYN opens.
func First(s *Session, seg *Segment) verdict.Reason {
	if seg.Flags&0x17 != 0x02 {
		return verdict.TCPNotSyn
	}
	s.State = TCPSynSent
	return verdict.Pass
}

// Track judges one more segment of a session and moves its state.
func Track(s *Session, dir int, seg *Segment) verdict.Reason {
	if s.State == TCPSynSent && dir == 1 {
		s.State = TCPEstablished
	}
	return verdict.Pass
}

// Reopens reports that seg is a SYN that starts a new conversation on the tuple of one that is over. Ask before Track,
// in both directions; if so, remove the session and take the packet as the first one of a new session.
func Reopens(s *Session, dir int, seg *Segment) bool {
	return seg.Flags&0x17 == 0x02 && (s.State == TCPTimeWait || s.State == TCPClosed)
}
