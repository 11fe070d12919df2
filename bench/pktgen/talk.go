package pktgen

import (
	"cmp"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"demarc/bench/pktgen/bpf"
)

// Structs of talk.c.
type (
	talkControl  struct{ Plain, Hops uint64 }
	talkOrder    struct{ End, Limit, AtOnce, Patience, Batch uint64 }
	talkProgress struct {
		Begun, Given, Over, Since, First, Done uint64
		Idle, Looked                           uint64
		Left, Made                             uint64
	}
	talkState struct {
		Addr           uint32
		Port, _        uint16
		Client, Server uint32
		Begun          uint64
	}
	talkTally struct {
		Kinds             Counts
		Over, Last, Worst uint64
	}
)

// MaxTalks is how many connections of one load a client's first sequence number tells apart.
const MaxTalks = 1 << 22

// TalkFrames is how many frames a connection is: to the outside and back.
const TalkFrames, talkOut, talkIn = 7, 4, 3

// Talks is a client and a server of TCP that keep next to nothing of a connection: SYN, SYN ACK, 4 bytes there and 4 back, FIN both ways, ACK. Flow n of the plan is a connection; its family is IPv4.
type Talks struct {
	plan  Plan
	objs  bpf.TalkObjects
	links []link.Link
	speed float64 // runs of the dialling program a second, the most that was seen
}

// LoadTalks brings the programs into the kernel for one plan. They are not attached.
func LoadTalks(p Plan) (*Talks, error) {
	if p.V6() || p.Calls || p.VLAN > 0 {
		return nil, errors.New("connections are of IPv4, and neither calls nor tenants")
	}
	w, err := p.wire()
	if err != nil {
		return nil, err
	}
	spec, err := bpf.LoadTalk()
	if err != nil {
		return nil, err
	}
	spec.Maps[bpf.TalkMapTalks].MaxEntries = uint32(p.Flows)
	if err := spec.Variables[bpf.TalkVarPlan].Set(w); err != nil {
		return nil, err
	}
	e := &Talks{plan: p}
	if err := spec.LoadAndAssign(&e.objs, nil); err != nil {
		return nil, notLoaded(err)
	}
	return e, nil
}

// AttachClient puts the client on a device. It must be called in that device's namespace.
func (e *Talks) AttachClient(ifindex int) error {
	return attachTo(&e.links, e.objs.DemarcClient, ifindex)
}

// AttachServer puts the server on a device. It must be called in that device's namespace.
func (e *Talks) AttachServer(ifindex int) error {
	return attachTo(&e.links, e.objs.DemarcServer, ifindex)
}

// Close takes the programs off. Calling it again does nothing.
func (e *Talks) Close() error {
	var errs []error
	for _, l := range e.links {
		errs = append(errs, l.Close())
	}
	e.links = nil
	return errors.Join(append(errs, e.objs.Close())...)
}

// Fresh forgets all connections and says what the device under test does to a frame: whether it leaves sources as they were sent, and what it takes off the TTL. No frame may be under way.
func (e *Talks) Fresh(plain bool, hops int) error {
	keys := make([]uint32, e.plan.Flows)
	for i := range keys {
		keys[i] = uint32(i)
	}
	_, err := e.objs.Talks.BatchUpdate(keys, make([]talkState, len(keys)), nil)
	return errors.Join(err, e.objs.TalkControls.Put(uint32(0), talkControl{Plain: word(plain), Hops: uint64(hops)}), e.account(0))
}

// account begins a new one behind so many connections.
func (e *Talks) account(begun uint64) error {
	err := errors.Join(e.objs.TalkProgresses.Put(uint32(0), talkProgress{Begun: begun, Given: begun}), e.objs.TalkTimes.Put(uint32(0), times{}))
	for row := range uint32(2) {
		err = errors.Join(err, e.objs.TalkTallies.Put(row, talkTally{}))
	}
	return err
}

// TalkOrder says how many connections.
type TalkOrder struct {
	Duration time.Duration // at most
	Limit    uint64        // connections since Fresh, those of earlier orders among them: at most the plan's flows
	AtOnce   int           // so many are under way at a time
	Patience time.Duration // in which none ends, after which those that are under way are given up
	CPU      int           // that begins them
	Device   int           // the client's, in whose namespace Dial is called
}

// Talked is what became of them.
type Talked struct {
	Begun, Over uint64
	Seconds     float64 // from the first one's beginning to the last one's end
	Idle        float64 // s of them in which none was to be begun: who begins them asks the clock all the time, and its CPU is always busy
	Server      Counts  // frames that arrived there
	Client      Counts
	Times       *hdrhistogram.Histogram // ns that those took that are over, SYN to the last ACK
	Worst       time.Duration
}

// Rate is connections per second.
func (t *Talked) Rate() float64 {
	if t.Seconds <= 0 {
		return 0
	}
	return float64(t.Over) / t.Seconds
}

// Lost is how many were begun and did not come to their end.
func (t *Talked) Lost() uint64 { return t.Begun - t.Over }

// Dial begins connections until the order is done. It must be called on a thread of its own in the namespace of the client's device; the thread stays on o.CPU.
func (e *Talks) Dial(o TalkOrder) (t Talked, err error) {
	if o.Limit == 0 || o.Limit > uint64(e.plan.Flows) || o.AtOnce < 1 {
		return t, fmt.Errorf("%d connections, %d at a time: want from 1 to %d, and 1 at least", o.Limit, o.AtOnce, e.plan.Flows)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var set unix.CPUSet
	set.Set(o.CPU)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return t, fmt.Errorf("stay on cpu %d: %w", o.CPU, err)
	}
	// A batch is no larger than what may be under way, else some wait in it for others that are idle.
	batch := uint32(min(wholeBatch, o.AtOnce))
	ord := talkOrder{End: monotonic() + uint64(o.Duration), Limit: o.Limit, AtOnce: uint64(o.AtOnce), Patience: uint64(cmp.Or(o.Patience, 200*time.Millisecond)), Batch: uint64(batch)}
	var p talkProgress
	if err := e.objs.TalkProgresses.Lookup(uint32(0), &p); err != nil {
		return t, err
	}
	before := p.Begun
	if err := errors.Join(e.account(before), e.objs.TalkOrders.Put(uint32(0), ord)); err != nil {
		return t, err
	}
	// Larger than a SYN: the kernel sends a frame as long as whoever had its page before left it, unless the program changes that.
	page := make([]byte, ethLen+ip4Len+20+4+4)
	for {
		began := monotonic()
		if began >= ord.End+uint64(time.Second) {
			return t, errors.New("connections do not end")
		}
		// Many short calls at the end would be pauses for the most part.
		left := min(float64(ord.End-min(ord.End, began))/1e9, float64(o.Limit-min(o.Limit, p.Begun))/slowTalks)
		n := uint32(min(1<<26, max(1<<23, left*max(e.speed, 16e6)))) // as for frames: each call costs a pause, and what is over at the end is skipped fast
		n -= n % batch
		_, err := e.objs.DemarcDial.Run(&ebpf.RunOptions{
			Data: page, Context: xdpMD{DataEnd: uint32(len(page)), Ingress: uint32(o.Device)}, Repeat: n, Flags: liveFrames, BatchSize: batch,
		})
		if err != nil {
			return t, fmt.Errorf("begin connections (BPF_PROG_TEST_RUN with live frames needs kernel 5.18): %w", err)
		}
		if err := e.objs.TalkProgresses.Lookup(uint32(0), &p); err != nil {
			return t, err
		}
		if p.Done != 0 {
			t, err = e.talked(&p)
			t.Begun -= before
			return t, err
		}
		e.speed = max(e.speed, 1e9*float64(n)/float64(monotonic()-began))
	}
}

// slowTalks is how many connections a second are thought possible before more were seen.
const slowTalks = 30_000

// Halt ends an order that runs in another goroutine.
func (e *Talks) Halt() error { return e.objs.TalkOrders.Put(uint32(0), talkOrder{}) }

func (e *Talks) talked(p *talkProgress) (t Talked, err error) {
	var server, client talkTally
	var raw times
	if err := errors.Join(e.objs.TalkTallies.Lookup(uint32(0), &server), e.objs.TalkTallies.Lookup(uint32(1), &client), e.objs.TalkTimes.Lookup(uint32(0), &raw)); err != nil {
		return t, err
	}
	t = Talked{Begun: p.Begun, Over: server.Over, Idle: float64(p.Idle) / 1e9, Server: server.Kinds, Client: client.Kinds, Worst: time.Duration(server.Worst)}
	if server.Over > 0 {
		t.Seconds = float64(server.Last-p.First) / 1e9
	}
	t.Times, err = raw.histogram()
	return t, err
}
