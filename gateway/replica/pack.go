package replica

import "fmt"

// A Packer writes what a Source holds as frames of one stream that nobody answers: for a file, each slot once. An Unpacker reads it. Both are for a node's own next process: records know
// no worker and no local number, so that one may have other workers, another policy, and be of another release.

// Packer writes what slots of a Source hold.
type Packer struct{ s Sender }

// NewPacker makes a packer of one stream of several. life is a number of the file: all its streams have the same, not 0.
func NewPacker(src Source, stream uint8, life uint64) *Packer {
	return &Packer{Sender{src: src, stream: stream, of: 1, life: life, lim: Limits{Frame: MaxFrame / 2}, seq: 1, first: true, linked: true, names: map[nameKey]uint16{}}}
}

// Add writes what a slot holds.
func (p *Packer) Add(slot uint32) {
	s := &p.s
	s.fill(slot, s.src.Look(slot), &s.rec)
	s.cur = appendRecord(s.open(), &s.rec)
	s.wroteOne()
}

// Take is the next frame, nil when none is full. It is valid until the next call. With all, what there is is a frame.
func (p *Packer) Take(all bool) []byte {
	s := &p.s
	if s.next > 0 { // nobody asks again for what was handed out
		f := &s.queue[s.next-1]
		s.pop(f.seq + uint64(f.count))
	}
	if all {
		s.flush()
	}
	return s.Take()
}

// Tally is how many records came to what, by Outcome.
type Tally [numOutcomes]uint64

var outcomeKeys = [numOutcomes]string{"taken", "table_full", "no_tenant", "conflict", "newer_release", "malformed"}

// Key is the outcome as interfaces and metrics name it.
func (o Outcome) Key() string { return outcomeKeys[o%numOutcomes] }

// Outcomes lists them all, for who reports a Tally.
func Outcomes() (out []Outcome) {
	for o := range numOutcomes {
		out = append(out, o)
	}
	return out
}

// Unpacker has a Sink take what Packers have written.
type Unpacker struct {
	r    *Receiver
	in   map[uint8]*inbound
	past uint32
	ops  []Op

	Sessions Tally
	Others   Tally  // records of other kinds
	Over     uint64 // sessions whose time has run out since they were written
}

// NewUnpacker makes one. past is how many ms ago the records were written: what is left of a session's time is so much less.
func NewUnpacker(sink Sink, past uint32) *Unpacker {
	return &Unpacker{r: NewReceiver(sink, 0), in: map[uint8]*inbound{}, past: past, ops: make([]Op, 0, batch)}
}

// Frame has the Sink take the records of one frame. Frames of a stream are read in their order. What is wrong with a record costs that one; the error is about the frame, and nothing
// more of its stream can be read then.
func (u *Unpacker) Frame(b []byte) error {
	var h header
	if err := h.get(b); err != nil {
		return err
	}
	in := u.in[h.Stream]
	switch {
	case int(h.Len) != len(b):
		return fmt.Errorf("frame: %d bytes, and says that it is %d long", len(b), h.Len)
	case in == nil && h.First:
		in = &inbound{life: h.Life, stream: h.Stream, next: h.Seq, ctx: Context{claims: &u.r.claims}}
		u.in[h.Stream] = in
	case in == nil || h.First || in.life != h.Life || in.next != h.Seq:
		return fmt.Errorf("frame: record %d of stream %d is not the next one", h.Seq, h.Stream)
	}
	rest := b[headerLen:]
	for range h.Count {
		k, group, body, more, err := nextRecord(rest)
		if err != nil {
			u.flush(in)
			return err
		}
		rest = more
		if err := u.record(in, k, group, body); err != nil {
			u.flush(in)
			return err
		}
	}
	in.next += uint64(h.Count)
	u.flush(in)
	return nil
}

func (u *Unpacker) record(in *inbound, k Kind, group uint8, body []byte) error {
	switch k {
	case KindName:
		return u.r.name(in, body)
	case KindSession, KindBlock, KindRate, KindCount:
	default:
		if k >= Critical {
			u.Others[NotKnown]++
		}
		return nil
	}
	u.ops = append(u.ops, Op{Do: Put, At: NoPlace})
	op := &u.ops[len(u.ops)-1]
	rec := &op.Rec
	rec.Reset()
	rec.Kind, rec.Group = k, group
	why := u.r.translate(in, rec, decode(body, rec))
	left := &rec.Session.Left
	if k == KindBlock {
		left = &rec.Block.Rest
	}
	if why == Taken && (k == KindSession || k == KindBlock) {
		over := *left <= u.past
		if over && k == KindSession {
			u.Over++
			op.Over = rec.Session.Flags&FlagMapped != 0
		}
		if over && !op.Over {
			u.ops = u.ops[:len(u.ops)-1]
			return nil
		}
		*left -= min(u.past, *left)
	}
	switch {
	case why != Taken:
		u.tally(k)[why]++
		u.ops = u.ops[:len(u.ops)-1]
	case len(u.ops) == batch:
		u.flush(in)
	}
	return nil
}

func (u *Unpacker) flush(in *inbound) {
	u.r.sink.Do(u.ops, &in.ctx)
	for i := range u.ops {
		if op := &u.ops[i]; !op.Over {
			u.tally(op.Rec.Kind)[op.Outcome]++
		} else if op.Outcome != Taken {
			u.Others[op.Outcome]++
		}
	}
	u.ops = u.ops[:0]
}

func (u *Unpacker) tally(k Kind) *Tally {
	if k == KindSession {
		return &u.Sessions
	}
	return &u.Others
}
