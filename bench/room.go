package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"demarc/bench/pktgen"
	"demarc/gateway/hostnet"
	"demarc/gateway/netlab"
)

// Namespaces and devices: frames are made in src, go through the device under test in gw and are judged in dst.
const (
	nsSrc, nsGW, nsDst     = "src", "gw", "dst"
	devSrc, devIn          = "dmbsrc", "dmbin"
	devOut, devDst         = "dmbout", "dmbdst"
	dirRun                 = "/run/demarc-bench"
	makerCPU, deviceCPU    = 0, 1
	lossLimit              = 0.001
	establishRate, retries = 400_000, 16 // frames per second at first, rounds at most
)

// Addresses of the room. The kernel's own stay on the devices all the time; the gateway answers for its own beside them.
var (
	insideNet  = netip.MustParsePrefix("198.18.0.0/16")
	insideLink = netip.MustParsePrefix("198.19.0.0/24")
	outsideNet = netip.MustParsePrefix("203.0.113.0/24")
	insideVia  = netip.MustParseAddr("198.19.0.2")
	outsideVia = netip.MustParseAddr("198.51.100.2")
	pool       = [2]netip.Addr{netip.MustParseAddr("192.0.2.16"), netip.MustParseAddr("192.0.2.31")}

	// The same of IPv6, which is routed: no address is translated.
	insideNet6  = netip.MustParsePrefix("2001:db8:18::/64")
	insideLink6 = netip.MustParsePrefix("2001:db8:19::/64")
	outsideNet6 = netip.MustParsePrefix("2001:db8:113::/64")
	insideVia6  = netip.MustParseAddr("2001:db8:19::2")
	outsideVia6 = netip.MustParseAddr("2001:db8:100::2")

	macSrc = net.HardwareAddr{0x02, 0xdb, 0, 0, 0, 1}
	macIn  = net.HardwareAddr{0x02, 0xdb, 0, 0, 0, 2}
	macOut = net.HardwareAddr{0x02, 0xdb, 0, 0, 0, 3}
	macDst = net.HardwareAddr{0x02, 0xdb, 0, 0, 0, 4}
)

// poolOf is a pool that has ports for so many flows of pktgen.InsideHosts hosts, which keep one address each: a quarter of it is used, so that no
// address runs out, however the hosts fall on them. It is 192.0.2.0/24 at most.
func poolOf(flows int) [2]netip.Addr {
	n := max(16, flows/16384)
	if n <= 16 {
		return pool
	}
	return [2]netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(256 - n)}), netip.AddrFrom4([4]byte{192, 0, 2, 255})}
}

func plan(flows int) pktgen.Plan {
	pool := poolOf(flows)
	return pktgen.Plan{
		Flows: flows, Key: pktgen.NewKey(), Inside: netip.MustParseAddr("198.18.4.0"), InsidePort: 20000,
		Outside: netip.MustParseAddr("203.0.113.16"), OutsidePort: 5004, Pool: pool, From: [6]byte(macSrc), To: [6]byte(macIn),
		OutsideFrom: [6]byte(macDst), OutsideTo: [6]byte(macOut),
	}
}

// plan6 is the same with IPv6.
func plan6(flows int) pktgen.Plan {
	p := plan(flows)
	p.Inside, p.Outside, p.Pool = netip.MustParseAddr("2001:db8:18::400"), netip.MustParseAddr("2001:db8:113::10"), [2]netip.Addr{}
	return p
}

// ways are the networks of the room's family and who leads to them.
type ways struct {
	inside, link, outside netip.Prefix // link is that of the device under test and insideVia
	insideVia, outsideVia netip.Addr
}

func waysOf(p *pktgen.Plan) ways {
	if p.V6() {
		return ways{insideNet6, insideLink6, outsideNet6, insideVia6, outsideVia6}
	}
	return ways{insideNet, insideLink, outsideNet, insideVia, outsideVia}
}

// room is the namespaces, the devices and both far ends.
type room struct {
	*netlab.Lab
	plan pktgen.Plan
	ends *pktgen.Ends
	// Of the bench of connections, instead of those.
	talks *pktgen.Talks
	// Frames come to the device under test from the outside too: its outer device needs a thread as its inner one does, where the kernel moves them.
	bothSides bool
	firsts    pktgen.Judged // of the last establish: its first round, when every frame began a flow
	lock      *machineLock
}

// machineLock says that the machine is taken for a bench.
type machineLock struct {
	file  *os.File // nil = the suite of this process holds it
	swept []string // what a run that was killed had left and takeRun has removed
}

// kept says that this process's suite has the machine for all of its scenarios, which take it in turn.
var kept atomic.Bool

// keep has the scenarios of this process take the machine without asking.
func (l *machineLock) keep() { kept.Store(true) }

// letGo ends that.
func (l *machineLock) letGo() error {
	kept.Store(false)
	return leaveRun(l)
}

var errNoRoot = errors.New("the bench needs root (namespaces, XDP): run it with sudo")

// takeRun makes the directory of a run. Only one bench runs on a machine at a time: two would measure each other.
func takeRun() (lock *machineLock, err error) {
	if os.Geteuid() != 0 {
		return nil, errNoRoot
	}
	lock = &machineLock{}
	if !kept.Load() {
		if lock.file, err = takeFile(dirRun + ".lock"); err != nil {
			return nil, err
		}
	}
	lock.swept, err = sweep()
	if err := errors.Join(err, os.Mkdir(dirRun, 0o700)); err != nil {
		return nil, errors.Join(err, leaveRun(lock))
	}
	return lock, nil
}

// takeFile locks a file that goes with its holder. Between opening it and locking it somebody may have ended and removed it: then that lock is nobody's, and
// another try finds the next file.
func takeFile(name string) (*os.File, error) {
	for {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			return nil, fmt.Errorf("another bench runs on this machine (%s is held): wait for its end", name)
		}
		mine, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		if named, err := os.Stat(name); err == nil && os.SameFile(mine, named) {
			return f, nil
		}
		f.Close()
	}
}

// sweep removes what a run left behind that was killed: its processes, namespaces with their devices and programs, files. Nobody else's bench is there, since the machine is
// ours.
func sweep() (found []string, err error) {
	found, err = netlab.Sweep(labName)
	if _, e := os.Stat(dirRun); e == nil {
		found = append(found, dirRun)
	}
	return found, errors.Join(err, os.RemoveAll(dirRun))
}

// leaveRun removes it.
func leaveRun(lock *machineLock) error {
	errs := []error{os.RemoveAll(dirRun)}
	if lock.file != nil {
		errs = append(errs, os.Remove(dirRun+".lock"), lock.file.Close())
	}
	return errors.Join(errs...)
}

// labName is that of every lab that a bench makes: by it they are found when their maker was killed.
const labName = "bench"

// spaces takes the machine for a room and makes its namespaces, with IPv6 or without: neighbour discovery and its kind would only be noise.
func (r *room) spaces(v6 bool, names ...string) (err error) {
	if r.lock, err = takeRun(); err != nil {
		return err
	}
	if r.Lab, err = netlab.New(labName); err != nil {
		return err
	}
	for _, ns := range names {
		if err := r.AddNamespace(ns); err != nil {
			return err
		}
		if v6 {
			continue
		}
		if err := r.Sysctl(ns, "net.ipv6.conf.default.disable_ipv6", "1"); err != nil {
			return err
		}
	}
	return nil
}

// openRoom builds it.
func openRoom(p pktgen.Plan) (r *room, err error) {
	r = &room{plan: p}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if err := r.connect(); err != nil {
		return r, err
	}
	if r.ends, err = pktgen.Load(p); err != nil {
		return r, err
	}
	return r, errors.Join(r.inside(nsSrc, devSrc, r.ends.Attach), r.inside(nsDst, devDst, r.ends.AttachJudge))
}

// connect makes the namespaces, the devices between them and the routes of the one under test.
func (r *room) connect() error {
	p := &r.plan
	if err := r.spaces(p.V6(), nsSrc, nsGW, nsDst); err != nil {
		return err
	}
	links := []netlab.LinkSpec{
		{A: netlab.End{NS: nsSrc, Name: devSrc, MAC: macSrc, Addrs: []netip.Prefix{netip.PrefixFrom(insideVia, 24)}},
			B: netlab.End{NS: nsGW, Name: devIn, MAC: macIn, Addrs: []netip.Prefix{netip.MustParsePrefix("198.19.0.1/24")}}},
		{A: netlab.End{NS: nsDst, Name: devDst, MAC: macDst, Addrs: []netip.Prefix{netip.PrefixFrom(outsideVia, 24)}},
			B: netlab.End{NS: nsGW, Name: devOut, MAC: macOut, Addrs: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24")}}},
	}
	if p.V6() {
		for i, a := range []string{"2001:db8:19::", "2001:db8:100::"} {
			links[i].A.Addrs = []netip.Prefix{netip.MustParsePrefix(a + "2/64")}
			links[i].B.Addrs = []netip.Prefix{netip.MustParsePrefix(a + "1/64")}
		}
	}
	for _, l := range links {
		if err := r.AddLink(l); err != nil {
			return err
		}
	}
	w := waysOf(p)
	return errors.Join(r.AddRoute(nsGW, w.inside, w.insideVia), r.AddRoute(nsGW, w.outside, w.outsideVia))
}

// openDirect builds one without a device under test: what is made arrives where it is judged.
func openDirect(p pktgen.Plan) (r *room, err error) {
	r = &room{plan: p}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if err := r.spaces(false, nsSrc, nsDst); err != nil {
		return r, err
	}
	if err := r.AddLink(netlab.LinkSpec{A: netlab.End{NS: nsSrc, Name: devSrc, MAC: macSrc}, B: netlab.End{NS: nsDst, Name: devDst, MAC: macDst}}); err != nil {
		return r, err
	}
	if r.ends, err = pktgen.Load(p); err != nil {
		return r, err
	}
	return r, errors.Join(r.ends.Expect(true, 0), r.inside(nsSrc, devSrc, r.ends.Attach), r.inside(nsDst, devDst, r.ends.AttachJudge))
}

// inside calls fn with a device's index in its namespace.
func (r *room) inside(ns, dev string, fn func(ifindex int) error) error {
	return r.Do(ns, func() error {
		l, err := hostnet.LinkByName(dev)
		if err != nil {
			return err
		}
		return fn(l.Index)
	})
}

// Close removes everything, whatever state it is in.
func (r *room) Close() error {
	var errs []error
	if r.ends != nil {
		errs = append(errs, r.ends.Close())
	}
	if r.talks != nil {
		errs = append(errs, r.talks.Close())
	}
	if r.Lab != nil {
		errs = append(errs, r.Lab.Close())
	}
	if r.lock != nil {
		errs = append(errs, leaveRun(r.lock))
		r.lock = nil
	}
	return errors.Join(errs...)
}

// send makes frames until the order is done or ctx ends.
func (r *room) send(ctx context.Context, o pktgen.Order) (s pktgen.Sent, err error) {
	o.CPU = makerCPU
	err = r.until(ctx, r.ends.Halt, func() error {
		return r.Do(nsSrc, func() (err error) {
			s, err = r.ends.Send(o)
			return err
		})
	})
	return s, err
}

// until carries an order out that halt ends where ctx does.
func (r *room) until(ctx context.Context, halt, order func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		select {
		case <-done:
		case <-ctx.Done():
			// The order may be written after the first try.
			for range 100 {
				_ = halt() // what it cannot stop ends by itself within seconds
				select {
				case <-done:
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		}
	}()
	err := order()
	close(done)
	return errors.Join(err, ctx.Err())
}

// trial is one timed load.
type trial struct {
	direction pktgen.Direction
	sent      pktgen.Sent
	over      time.Time     // when all was sent
	judged    pktgen.Judged // at the outside
	inside    pktgen.Judged // of what the outside made
	use       usage
	carried   carried
}

// carried are packets that the gateway's XDP programs carried, of those that they were shown.
type carried struct{ by, of uint64 }

// enough says that what was measured is not what programs do.
func (c carried) enough() error {
	if 2*c.by > c.of {
		return nil
	}
	return fmt.Errorf("the XDP programs carried %d of %d packets that they were shown, so workers were measured", c.by, c.of)
}

// carrier is a device that has such programs.
type carrier interface {
	carried(ctx context.Context) (carried, error)
}

// carriedBy asks a device, if it has any.
func carriedBy(ctx context.Context, d device) (c carried, err error) {
	if x, ok := d.(carrier); ok {
		return x.carried(ctx)
	}
	return c, nil
}

// right is how many frames arrived right, wherever they were to arrive.
func (t *trial) right() uint64 {
	return t.judged.Counts[pktgen.Right] + t.inside.Counts[pktgen.Right]
}

// wrong is how many arrived and were not, reordered how many of the right ones came after a later one of their flow.
func (t *trial) wrong() uint64 { return t.judged.Counts.Wrong() + t.inside.Counts.Wrong() }
func (t *trial) reordered() uint64 {
	return t.judged.Counts[pktgen.Reordered] + t.inside.Counts[pktgen.Reordered]
}

// kind is how many of a kind arrived.
func (t *trial) kind(k pktgen.Kind) uint64 { return t.judged.Counts[k] + t.inside.Counts[k] }

// wrongKinds lists those that happened.
func (t *trial) wrongKinds() map[string]uint64 {
	m := t.judged.Counts.WrongKinds()
	for k, n := range t.inside.Counts.WrongKinds() {
		m[k] += n
	}
	return m
}

// rate is right frames per second.
func (t *trial) rate() float64 { return t.judged.Rate() + t.inside.Rate() }

// loss is the part of what was sent that did not arrive right, 0..1.
func (t *trial) loss() float64 {
	if t.sent.Frames == 0 {
		return 1
	}
	return 1 - float64(t.right())/float64(t.sent.Frames)
}

// trial sends at rate (0 = as fast as possible) for some time to the outside and counts what arrives.
func (r *room) trial(ctx context.Context, rate float64, d time.Duration, pids []int) (t trial, err error) {
	return r.load(ctx, pktgen.Order{Duration: d, Rate: rate}, pids)
}

// load carries an order out that ends by time, and counts what arrives.
func (r *room) load(ctx context.Context, o pktgen.Order, pids []int) (t trial, err error) {
	t.direction = o.Direction
	if err := r.ends.Fresh(); err != nil {
		return t, err
	}
	// The account is taken well inside the load: at its ends the maker sets up and runs idle.
	long := o.Duration
	if o.Frames > 0 && o.Rate > 0 {
		long = min(long, time.Duration(float64(o.Frames)/o.Rate*float64(time.Second)))
	}
	slowdown, err := yard.around(func() (err error) {
		used := make(chan error, 1)
		go func() {
			time.Sleep(long / 10)
			before, err := sampleCPU(pids)
			if err != nil {
				used <- err
				return
			}
			time.Sleep(long * 3 / 4)
			after, err := sampleCPU(pids)
			t.use = before.until(after)
			used <- err
		}()
		t.sent, err = r.send(ctx, o)
		t.over = time.Now()
		if err := errors.Join(err, <-used); err != nil {
			return err
		}
		return r.ends.Settle(3 * time.Second) // what is still on its way has the CPUs
	})
	if err != nil {
		return t, err
	}
	t.use.slowdown = slowdown
	if cpu := t.use.cpus; cpu != nil {
		cpu[makerCPU] = max(0, cpu[makerCPU]-ratio(t.sent.Idle, t.sent.Seconds))
	}
	if t.judged, err = r.ends.Judged(); err != nil {
		return t, err
	}
	t.inside, err = r.ends.JudgedIn()
	return t, err
}

// establish sends each flow once, at rate, learns its translated source and sees an answer come back through it, again those that were
// lost, and slower where they were many.
func (r *room) establish(ctx context.Context, flows int, rate float64) (e pktgen.Established, took time.Duration, err error) {
	if err := errors.Join(r.ends.Forget(), r.ends.Learn(true)); err != nil {
		return e, 0, err
	}
	start := time.Now()
	patience := 30*time.Second + time.Duration(4*float64(flows)/rate*float64(time.Second))
	var sending float64 // seconds
	for try, left := 0, flows; try < retries; try++ {
		s, err := r.send(ctx, pktgen.Order{Duration: patience, Frames: uint64(flows), Rate: rate, Missing: left})
		if err != nil {
			return e, 0, err
		}
		sending += s.Seconds
		if err := r.ends.Settle(3 * time.Second); err != nil {
			return e, 0, err
		}
		if try == 0 {
			if r.firsts, err = r.ends.Judged(); err != nil {
				return e, 0, err
			}
		}
		if left, err = r.ends.Missing(); err != nil {
			return e, 0, err
		}
		if left == 0 {
			took = time.Duration(sending * float64(time.Second))
			e, err = r.ends.Established()
			return e, took, errors.Join(err, r.ends.Learn(false))
		}
		j, err := r.ends.Judged()
		if err != nil {
			return e, 0, err
		}
		a, err := r.ends.Answered()
		if err != nil {
			return e, 0, err
		}
		hopeless := j.Counts.Wrong()+a.Wrong() > 0 || time.Since(start) > patience
		if hopeless || left == flows && try >= 3 {
			if e, err = r.ends.Established(); err != nil {
				return e, 0, err
			}
		}
		if hopeless || left == flows && try >= 3 && e.Learned == 0 {
			return e, 0, fmt.Errorf("of %d flows %d got through and %d were answered (%d frames sent in the last round); at the outside %v; at the inside %v",
				flows, e.Learned, e.Answered, s.Frames, j.Counts.WrongKinds(), a.WrongKinds())
		}
		if left > flows/50 { // else it was a hiccup
			rate = max(5000, rate/1.5)
		}
	}
	if e, err = r.ends.Established(); err != nil {
		return e, 0, err
	}
	return e, 0, fmt.Errorf("of %d flows %d got through and %d were answered after %d rounds", flows, e.Learned, e.Answered, retries)
}
