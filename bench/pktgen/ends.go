package pktgen

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"demarc/bench/pktgen/bpf"
)

// liveFrames is BPF_F_TEST_XDP_LIVE_FRAMES.
const liveFrames = 1 << 1

// Structs of pktgen.c.
type (
	control  struct{ Learning, Plain, Hops, Timing uint64 }
	order    struct{ End, Limit, Interval, Direction, Flood, Missing, Batch uint64 }
	progress struct {
		Index, Sent            [2]uint64
		Due, First, Last, Done uint64
		Flooded                uint64
		Passed                 uint64
		Idle, Looked           uint64
		Left, Made             uint64
	}
	tally struct {
		Kinds                         Counts
		First, Last                   uint64
		AtFirst, AtLast               uint64
		Timed, Before, Changes, Worst uint64
	}
	flowState struct {
		Addr          uint32
		Port, Learned uint16
		Seq, Window   uint32
	}
	backState struct{ Answers, Seq, Window uint32 }
	times     struct{ Frames [buckets]uint64 }
	callState struct {
		Right, Late, Before, Worst uint32
		Sum, Jitter                uint64
	}
	xdpMD struct{ Data, DataEnd, DataMeta, Ingress, RxQueue, Egress uint32 }
)

// Rows of the tallies.
const (
	rowJudge = iota
	rowAnswer
)

// Ends is the maker and the judge of one run.
type Ends struct {
	plan    Plan
	objs    bpf.PktgenObjects
	links   []link.Link
	ingress int              // the maker's device
	control control          // as the kernel has it
	speed   map[pace]float64 // runs of the maker's program a second, the most that was seen
}

// Load brings the programs into the kernel for one plan. They are not attached.
func Load(p Plan) (*Ends, error) {
	w, err := p.wire()
	if err != nil {
		return nil, err
	}
	spec, err := bpf.LoadPktgen()
	if err != nil {
		return nil, err
	}
	spec.Maps[bpf.PktgenMapFlows].MaxEntries = uint32(p.Flows)
	spec.Maps[bpf.PktgenMapAnswers].MaxEntries = uint32(p.Flows)
	if p.accounts() {
		spec.Maps[bpf.PktgenMapCalls].MaxEntries = uint32(2 * p.Flows)
	}
	if err := spec.Variables[bpf.PktgenVarPlan].Set(w); err != nil {
		return nil, err
	}
	e := &Ends{plan: p, speed: map[pace]float64{}, control: control{Hops: 1}}
	if err := spec.LoadAndAssign(&e.objs, nil); err != nil {
		return nil, notLoaded(err)
	}
	if err := e.objs.Controls.Put(uint32(0), e.control); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// notLoaded is the error of programs that the kernel does not take.
func notLoaded(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("load the bench's programs: %w: run as root", err)
	}
	return fmt.Errorf("load the bench's programs: %w", err)
}

// Attach puts the counter of answers on the maker's device. It must be called in that device's namespace.
func (e *Ends) Attach(maker int) error {
	e.ingress = maker
	return e.attach(e.objs.DemarcAnswer, maker)
}

// AttachJudge puts the judge on the device where frames arrive; frames of the outside leave by it. It must be called in that device's namespace.
func (e *Ends) AttachJudge(ifindex int) error {
	return errors.Join(e.attach(e.objs.DemarcJudge, ifindex), e.objs.Outs.Put(uint32(In), uint32(ifindex)))
}

func (e *Ends) attach(p *ebpf.Program, ifindex int) error { return attachTo(&e.links, p, ifindex) }

func attachTo(links *[]link.Link, p *ebpf.Program, ifindex int) error {
	l, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: ifindex, Flags: link.XDPDriverMode})
	if err != nil {
		return fmt.Errorf("attach to device %d: %w", ifindex, err)
	}
	*links = append(*links, l)
	return nil
}

// Close takes the programs off. Calling it again does nothing.
func (e *Ends) Close() error {
	var errs []error
	for _, l := range e.links {
		errs = append(errs, l.Close())
	}
	e.links = nil
	return errors.Join(append(errs, e.objs.Close())...)
}

// Direction is where frames go to.
type Direction int

// The directions, in the order of pktgen.c.
const (
	Out  Direction = iota // from the inside to the outside
	In                    // back, to where each flow was learned to come from
	Both                  // in turns
)

// String is what a person reads.
func (d Direction) String() string {
	return map[Direction]string{Out: "out", In: "in", Both: "both"}[d]
}

// Order says how much to send.
type Order struct {
	Duration  time.Duration
	Frames    uint64  // stop after so many; 0 = after Duration
	Rate      float64 // frames per second; 0 = as fast as it goes
	Direction Direction
	CPU       int // that makes the frames
	// Batch is how many runs of the program (most of them idle where Rate is low) hold a frame up before it leaves; 0 = the kernel's 64. Few cost speed.
	Batch uint32
	Flood uint64 // of a plan with tenants: so many frames of the first come to each frame of all in turn
	// Missing is how many flows no answer came back for while the judge learned: where it is not 0, only they are sent, and Frames counts the others too, which are
	// passed over.
	Missing int
}

// Sent is what was sent.
type Sent struct {
	Frames  uint64
	By      [2]uint64 // of these to the outside, to the inside
	Seconds float64   // from the first to the last frame
	Idle    float64   // s of them in which no frame was due, where there was a pace: the maker asks the clock all the time, and its CPU is always busy
}

// Rate is frames per second.
func (s Sent) Rate() float64 {
	if s.Seconds <= 0 {
		return 0
	}
	return float64(s.Frames) / s.Seconds
}

func monotonic() uint64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail for this clock
	return uint64(ts.Nano())
}

// Send makes frames. It must be called on a thread of its own in the namespace of the maker's device; the thread stays on o.CPU.
func (e *Ends) Send(o Order) (Sent, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var set unix.CPUSet
	set.Set(o.CPU)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return Sent{}, fmt.Errorf("stay on cpu %d: %w", o.CPU, err)
	}
	var p progress
	if err := e.objs.Progresses.Lookup(uint32(0), &p); err != nil {
		return Sent{}, err
	}
	if err := e.objs.Progresses.Put(uint32(0), progress{Index: p.Index, Flooded: p.Flooded}); err != nil { // a flow's numbers go on
		return Sent{}, err
	}
	ord := order{End: monotonic() + uint64(o.Duration), Limit: o.Frames, Direction: uint64(o.Direction), Flood: o.Flood, Missing: word(o.Missing > 0), Batch: uint64(cmp.Or(o.Batch, wholeBatch))}
	if o.Rate > 0 {
		ord.Interval = uint64(256e9 / o.Rate)
	}
	if err := e.objs.Orders.Put(uint32(0), ord); err != nil {
		return Sent{}, err
	}
	page := e.plan.page()
	for {
		n, began := e.repeat(o, ord.End), monotonic()
		n -= n % uint32(ord.Batch) // the program counts batches
		_, err := e.objs.DemarcMake.Run(&ebpf.RunOptions{
			Data: page, Context: xdpMD{DataEnd: uint32(len(page)), Ingress: uint32(e.ingress)},
			Repeat: n, Flags: liveFrames, BatchSize: o.Batch,
		})
		if err != nil {
			return Sent{}, fmt.Errorf("make frames (BPF_PROG_TEST_RUN with live frames needs kernel 5.18): %w", err)
		}
		if err := e.objs.Progresses.Lookup(uint32(0), &p); err != nil {
			return Sent{}, err
		}
		if p.Done != 0 || monotonic() >= ord.End {
			return Sent{Frames: p.Sent[Out] + p.Sent[In], By: p.Sent, Seconds: float64(p.Last-p.First) / 1e9, Idle: float64(p.Idle) / 1e9}, nil
		}
		// It came back too early: the next order asks for more at once.
		e.speed[o.pace()] = max(e.speed[o.pace()], 1.2e9*float64(n)/float64(monotonic()-began))
	}
}

// pace is what makes runs of the maker's program fast or slow: most of a paced order's are idle, and few that share a batch cost more each.
type pace struct {
	paced bool
	batch uint32
}

func (o *Order) pace() pace { return pace{o.Rate > 0, o.Batch} }

// firstSpeed is how many runs of the program a second are thought possible before one was seen.
func (p pace) firstSpeed() float64 {
	if !p.paced || p.batch > 0 {
		return 8e6
	}
	return 16e6
}

// wholeBatch is how many runs the kernel makes in one go where it is not told.
const wholeBatch = 64

// repeat is how often the kernel runs the program before it comes back. Each call costs a pause of tens of milliseconds (it waits for RCU)
// in which nothing is sent, so it is more than can be done in the time left. What is over at the end is idle, and skipped fast.
func (e *Ends) repeat(o Order, end uint64) uint32 {
	left, passes := (float64(end)-float64(monotonic()))/1e9, 0.0
	if o.Frames > 0 && o.Rate > 0 {
		frames := o.Frames
		if o.Missing > 0 {
			frames, passes = uint64(o.Missing), float64(o.Frames)
		}
		left = min(left, float64(frames)/o.Rate)
	}
	return uint32(min(1<<26, max(1<<16, passes+left*max(o.pace().firstSpeed(), e.speed[o.pace()]))))
}

// Halt ends an order that runs in another goroutine.
func (e *Ends) Halt() error { return e.objs.Orders.Put(uint32(0), order{}) }

// Learn says whether the judge remembers mappings and answers, or only compares.
func (e *Ends) Learn(on bool) error {
	return e.set(func(c *control) { c.Learning = word(on) })
}

// Remember has the judge remember mappings, and answer nothing: only what is sent to the inside then shows that they are there.
func (e *Ends) Remember() error {
	return e.set(func(c *control) { c.Learning = 2 })
}

// Expect says what the device under test does to a frame: whether it leaves sources as they were sent, and what it takes off the TTL. Without a
// call it translates and takes one off; the sources of IPv6 are never translated.
func (e *Ends) Expect(plain bool, hops int) error {
	return e.set(func(c *control) { c.Plain, c.Hops = word(plain || e.plan.V6()), uint64(hops) })
}

// Time says whether the judges note how long frames were under way. The frames must be paced: at full speed their stamps are rough.
func (e *Ends) Time(on bool) error {
	return e.set(func(c *control) { c.Timing = word(on) })
}

func word(on bool) uint64 {
	if on {
		return 1
	}
	return 0
}

func (e *Ends) set(change func(*control)) error {
	c := e.control
	change(&c)
	if err := e.objs.Controls.Put(uint32(0), c); err != nil {
		return err
	}
	e.control = c
	return nil
}

func (e *Ends) tally(row uint32) (t tally, err error) {
	err = e.objs.Tallies.Lookup(row, &t)
	return t, err
}

// Judged is what the judge found since Fresh.
type Judged struct {
	Counts  Counts
	Seconds float64 // between the first and the last looked-at right frame
	Between uint64  // right frames in that time
}

// Rate is right frames per second.
func (j *Judged) Rate() float64 {
	if j.Seconds <= 0 {
		return 0
	}
	return float64(j.Between) / j.Seconds
}

// Fresh sets the counts and times of both judges to zero; mappings and sequence numbers stay. No frame may be under way.
func (e *Ends) Fresh() error {
	var errs []error
	for row := range uint32(2) {
		errs = append(errs, e.objs.Tallies.Put(row, tally{}))
		if e.control.Timing != 0 {
			errs = append(errs, e.objs.Delays.Put(row, times{}))
		}
	}
	if e.control.Timing != 0 && e.plan.accounts() {
		errs = append(errs, e.freshCalls())
	}
	return errors.Join(errs...)
}

// Judged reads the counts of the outside's judge.
func (e *Ends) Judged() (Judged, error) { return e.judged(rowJudge) }

// JudgedIn reads the counts of the inside's: frames that the outside made, and answers.
func (e *Ends) JudgedIn() (Judged, error) { return e.judged(rowAnswer) }

func (e *Ends) judged(row uint32) (Judged, error) {
	t, err := e.tally(row)
	return Judged{Counts: t.Kinds, Seconds: float64(t.Last-t.First) / 1e9, Between: t.AtLast - t.AtFirst}, err
}

// Answered reads the counts of answers at the maker's end.
func (e *Ends) Answered() (Counts, error) {
	t, err := e.tally(rowAnswer)
	return t.Kinds, err
}

// Settle waits until no more frames arrive, at most limit. A CPU that the machine is without still has in hand what it was to carry: each is visited between two looks, and a time in which one could not be had is none
// in which nothing came.
func (e *Ends) Settle(limit time.Duration) error {
	settled := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and the thread ends with the goroutine: it goes from one CPU to another
		settled <- e.settle(limit)
	}()
	return <-settled
}

func (e *Ends) settle(limit time.Duration) error {
	const quiet, away = 30 * time.Millisecond, 10 * time.Millisecond
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return err
	}
	end := time.Now().Add(limit)
	var last [2]Counts
	came := time.Now()
	for still := came; time.Since(still) < quiet; {
		if time.Now().After(end) {
			if time.Since(came) >= quiet { // nothing came, on a machine that was away again and again
				return nil
			}
			return fmt.Errorf("frames still arrive %v after the last was sent", limit)
		}
		time.Sleep(5 * time.Millisecond)
		began := time.Now()
		for cpu := range len(allowed) * 64 {
			if !allowed.IsSet(cpu) {
				continue
			}
			var one unix.CPUSet
			one.Set(cpu)
			if err := unix.SchedSetaffinity(0, &one); err != nil { // it comes back on that CPU
				return fmt.Errorf("look at cpu %d: %w", cpu, err)
			}
		}
		if time.Since(began) > away {
			still = time.Now()
		}
		j, err := e.Judged()
		if err != nil {
			return err
		}
		a, err := e.Answered()
		if err != nil {
			return err
		}
		j.Counts[Other], a[Other] = 0, 0
		if now := [2]Counts{j.Counts, a}; now != last {
			last, still = now, time.Now()
			came = still
		}
	}
	return nil
}

// Forget drops all mappings and answers, for the next device under test.
func (e *Ends) Forget() error {
	keys := make([]uint32, e.plan.Flows)
	for i := range keys {
		keys[i] = uint32(i)
	}
	if _, err := e.objs.Flows.BatchUpdate(keys, make([]flowState, len(keys)), nil); err != nil {
		return err
	}
	if _, err := e.objs.Answers.BatchUpdate(keys, make([]backState, len(keys)), nil); err != nil {
		return err
	}
	return errors.Join(e.Fresh(), e.objs.Progresses.Put(uint32(0), progress{}))
}

// Missing is how many flows no answer came back for.
func (e *Ends) Missing() (n int, err error) {
	var cur ebpf.MapBatchCursor
	answers := make([]backState, e.plan.Flows)
	if n, err := e.objs.Answers.BatchLookup(&cur, make([]uint32, e.plan.Flows), answers, nil); n != e.plan.Flows {
		return 0, fmt.Errorf("read answers of %d of %d flows: %w", n, e.plan.Flows, err)
	}
	for i := range answers {
		if answers[i].Answers == 0 {
			n++
		}
	}
	return n, nil
}

// Established is how many flows have a mapping and got an answer through it.
type Established struct {
	Learned  int // flows whose translated source was seen
	Answered int // of those, flows whose answer came back to the inside
	Ports    int // different public address and port pairs
}

// Established looks at every flow. It is an error if two flows to the same outside end share a public address and port: answers could not
// be told apart.
func (e *Ends) Established() (Established, error) {
	var r Established
	var cur, cur2 ebpf.MapBatchCursor
	keys := make([]uint32, e.plan.Flows)
	states, answers := make([]flowState, e.plan.Flows), make([]backState, e.plan.Flows)
	if n, err := e.objs.Flows.BatchLookup(&cur, keys, states, nil); n != e.plan.Flows {
		return r, fmt.Errorf("read %d of %d flows: %w", n, e.plan.Flows, err)
	}
	if n, err := e.objs.Answers.BatchLookup(&cur2, keys, answers, nil); n != e.plan.Flows {
		return r, fmt.Errorf("read answers of %d of %d flows: %w", n, e.plan.Flows, err)
	}
	// A public end, and which of the outside hosts it talks to: 4 bits beside the 48 of the end, since a million flows are many.
	owners := make(map[uint64]uint32, e.plan.Flows)
	ports := make(map[uint64]struct{}, e.plan.Flows)
	for n, s := range states {
		if s.Learned == 0 {
			continue
		}
		r.Learned++
		if answers[n].Answers > 0 {
			r.Answered++
		}
		_, outside := e.plan.Flow(n)
		public := uint64(s.Addr)<<16 | uint64(s.Port)
		at := public<<16 | uint64(low(outside.Addr())-low(e.plan.Outside))
		if other, taken := owners[at]; taken {
			return r, fmt.Errorf("flows %d and %d both have public end %s towards %s", other, n, netip.AddrPortFrom(withLow(e.plan.Inside, s.Addr), s.Port), outside)
		}
		owners[at] = uint32(n)
		ports[public] = struct{}{}
	}
	r.Ports = len(ports)
	return r, nil
}

// NewKey is a key for a plan.
func NewKey() uint64 { return rand.Uint64() }
