package pipeline

import (
	"errors"
	"fmt"

	"demarc/gateway/flow"
	"demarc/gateway/frag"
	"demarc/gateway/meter"
	"demarc/gateway/police"
	"demarc/gateway/snapshot"
	"demarc/gateway/trace"
	"demarc/gateway/undo"
	"demarc/gateway/verdict"
)

// Trial lets a packet go its way as it would now, and leaves nothing behind. It runs the stages themselves, on a twin of the shard: the twin
// works in the shard's own tables and keeps what it writes over, has copies of what is small, and of what workers share; in the end the tables are put
// back to the last bit. So what a trial says is what Process does, and no stage has to know that it is one.
//
// The trial holds up each worker that it comes to, from its Run until End: some tens of microseconds, and a tenth of one for each tenant (BenchmarkTrial).
type Trial struct {
	of, view *snapshot.View
	fresh    bool
	twins    map[int]*Shard
	log      undo.Log
}

// ErrViewChanged says that the shard serves another View than the trial was made for.
var ErrViewChanged = errors.New("the policy has changed meanwhile")

// NewTrial prepares a trial under v.
func NewTrial(v *snapshot.View) *Trial {
	return &Trial{of: v, view: v.Twin(), twins: map[int]*Shard{}}
}

// Run takes the packet in s one time through sh, and j says what was decided. What earlier Runs did is still there. To be called on the
// worker of sh, between two bursts, and that worker must be held until End.
func (t *Trial) Run(sh *Shard, s *Slot, nowNs uint64, j *trace.Journey) (err error) {
	if sh.view != t.of {
		return ErrViewChanged
	}
	defer func() {
		if e := recover(); e != nil {
			err = fmt.Errorf("this packet makes the gateway panic: %v", e)
		}
	}()
	if !t.fresh {
		t.view.Refresh(t.of)
		t.fresh = true
	}
	tw := t.twins[sh.Worker]
	if tw == nil {
		tw = sh.twin(&t.log, t.view)
		t.twins[sh.Worker] = tw
	}
	tw.setNow(nowNs)
	if s.Verdict = tw.receive(s); s.Verdict == verdict.Next {
		s.hash = tw.Sessions.Hash(&s.Key)
		tw.embark(j, s)
		tw.journey(j, s)
		return nil
	}
	tw.embark(j, s)
	tw.arrive(j, s)
	return nil
}

// Twin is the shard as the trial has made it, or nil.
func (t *Trial) Twin(worker int) *Shard { return t.twins[worker] }

// End puts everything back. Every worker that Run was called on must still be held.
func (t *Trial) End() { t.log.Undo() }

// twin is a shard that may be thrown away: what belongs to sh alone and is small is copied, the tables are sh's own and l remembers what
// is written to them. Only plain fields come by themselves; a test knows the others by name.
func (sh *Shard) twin(l *undo.Log, v *snapshot.View) *Shard {
	c := *sh
	c.view = v
	c.eventLog = &eventLog{}
	c.watch = watching{}
	c.Sessions, c.NAT, c.permits, c.hosts = sh.Sessions.Twin(l), sh.NAT.Twin(l), sh.permits.Twin(l), sh.hosts.twin(l)
	c.Neighbors = sh.Neighbors.Quiet()
	c.Shaper = sh.Shaper.Twin(l)
	c.blocks = sh.blocks.Quiet()
	c.asked = sh.asked.quiet()
	c.Meter = meter.NewShard(1) // a sink: nobody reads it
	c.held, c.tenures = append([]held(nil), sh.held...), append([]tenure(nil), sh.tenures...)
	c.echo = copyWords(sh.echo)
	idents := *sh.idents
	c.idents = &idents
	c.frags = frag.New(frag.Config{Datagrams: 1, Size: 4096, Tenants: 1, Lost: func(flow.TenantID, verdict.Reason, int) {}}) // of its datagram nothing else has come
	c.looks, c.copies, c.second, c.Want = true, nil, nil, nil
	return &c
}

func copyWords(ws []police.Word) []police.Word {
	c := make([]police.Word, len(ws))
	for i := range ws {
		c[i].Store(ws[i].Load())
	}
	return c
}
