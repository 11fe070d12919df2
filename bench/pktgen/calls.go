package pktgen

import (
	"fmt"
	"time"

	"github.com/cilium/ebpf"
)

// Late is how long a frame of a call may be under way: who hears waits no longer for it.
const Late = 40 * time.Millisecond

// Call is what the frames of one direction of a call, or of a tenant's flow, met since Fresh, while Time was on.
type Call struct {
	Right  uint64
	Late   uint64 // of them
	Mean   time.Duration
	Worst  time.Duration
	Jitter time.Duration // RFC 3550, A.8
}

// accounts says that there is one of each flow.
func (p *Plan) accounts() bool { return p.Calls || p.VLAN > 0 }

// Calls reads all calls of one direction, flow 0 first, then flow 2; of a plan with tenants each flow.
func (e *Ends) Calls(d Direction) ([]Call, error) {
	keys, states := make([]uint32, 2*e.plan.Flows), make([]callState, 2*e.plan.Flows)
	var cur ebpf.MapBatchCursor
	if n, err := e.objs.Calls.BatchLookup(&cur, keys, states, nil); n != len(keys) {
		return nil, fmt.Errorf("read %d of %d directions of flows: %w", n, len(keys), err)
	}
	step := 1
	if e.plan.Calls {
		step = 2
	}
	list := make([]Call, 0, e.plan.Flows/step)
	for flow := 0; flow < e.plan.Flows; flow += step {
		s := &states[2*flow+int(d)]
		c := Call{Right: uint64(s.Right), Late: uint64(s.Late), Worst: time.Duration(s.Worst), Jitter: time.Duration(s.Jitter / 16)}
		if s.Right > 0 {
			c.Mean = time.Duration(s.Sum / uint64(s.Right))
		}
		list = append(list, c)
	}
	return list, nil
}

func (e *Ends) freshCalls() error {
	keys := make([]uint32, 2*e.plan.Flows)
	for i := range keys {
		keys[i] = uint32(i)
	}
	_, err := e.objs.Calls.BatchUpdate(keys, make([]callState, len(keys)), nil)
	return err
}
