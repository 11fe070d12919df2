package replica

import "fmt"

// Outcome says what became of a record at the standby. Numbers are a promise between versions.
type Outcome uint8

// The outcomes.
const (
	Taken     Outcome = iota
	Full              // a table has no room
	NoTenant          // this node's policy has no such tenant
	Conflict          // its place is taken by something that the owner has too
	NotKnown          // a kind or a field that must be understood is not known here
	Malformed         // not what its kind must be
	numOutcomes
)

var outcomeText = [numOutcomes]string{"taken", "table full", "tenant not in this node's policy", "place taken by another", "written by a newer release", "malformed"}

func (o Outcome) String() string {
	if o < numOutcomes {
		return outcomeText[o]
	}
	return fmt.Sprintf("outcome %d", uint8(o))
}

// Answer is what a standby says to the owner about one stream: how far it has come, and how each group of it stands.
type Answer struct {
	Life   uint64 // of the stream that it is about
	Stream uint8
	Anew   bool   // it cannot go on from Seq: the stream must begin anew
	Seq    uint64 // of the next record that is wanted: all before are done with
	Groups []GroupAnswer
}

// GroupAnswer is how one group stands at the standby.
type GroupAnswer struct {
	Group   uint8
	Want    bool   // copy all of it again: of the round Round there is nothing, or its digest was another
	Round   uint16 // that this is about
	Equal   uint64 // the last record at which digests were equal, 0 = none of this round
	Missing uint32 // records that could not be taken, and
	Why     Outcome
}

const (
	answerMagic = 0x4d41
	answerHead  = 24
	answerGroup = 20
)

// Append encodes a.
func (a *Answer) Append(b []byte) []byte {
	b = le.AppendUint16(b, answerMagic)
	anew := byte(0)
	if a.Anew {
		anew = 1
	}
	b = append(b, format, a.Stream)
	b = append(b, anew, byte(len(a.Groups)), answerGroup, 0)
	b = le.AppendUint64(b, a.Life)
	b = le.AppendUint64(b, a.Seq)
	for i := range a.Groups {
		g := &a.Groups[i]
		want := byte(0)
		if g.Want {
			want = 1
		}
		b = append(b, g.Group, want)
		b = le.AppendUint16(b, g.Round)
		b = le.AppendUint64(b, g.Equal)
		b = le.AppendUint32(b, g.Missing)
		b = append(b, byte(g.Why), 0, 0, 0)
	}
	return b
}

// DecodeAnswer reads one answer. What a later version adds to the entry of a group is skipped.
func DecodeAnswer(b []byte) (a Answer, err error) {
	if len(b) < answerHead || le.Uint16(b) != answerMagic {
		return a, fmt.Errorf("answer: %d bytes that are no answer about a session stream", len(b))
	}
	if b[2] != format {
		return a, fmt.Errorf("answer: the peer writes format %d, this node reads %d: bring both to the same release", b[2], format)
	}
	n, each := int(b[5]), int(b[6])
	if each < answerGroup || len(b) != answerHead+n*each {
		return a, fmt.Errorf("answer: %d bytes, and %d groups of %d bytes each do not fit that", len(b), n, each)
	}
	a = Answer{Stream: b[3], Anew: b[4]&1 != 0, Life: le.Uint64(b[8:]), Seq: le.Uint64(b[16:])}
	for i := range n {
		g := b[answerHead+i*each:]
		a.Groups = append(a.Groups, GroupAnswer{Group: g[0], Want: g[1]&1 != 0, Round: le.Uint16(g[2:]), Equal: le.Uint64(g[4:]), Missing: le.Uint32(g[12:]), Why: Outcome(g[16])})
	}
	return a, nil
}
