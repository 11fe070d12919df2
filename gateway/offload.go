package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/cruise"
	"demarc/gateway/flow"
	"demarc/gateway/hostnet"
	"demarc/gateway/meter"
	"demarc/gateway/police"
	"demarc/gateway/snapshot"
	"demarc/gateway/worker"
	"demarc/gateway/xsk"
)

// What `offload` of a port may be. Default: auto.
const (
	offloadAuto   = "auto"
	offloadAlways = "always"
	offloadNever  = "never"
)

// offload is the second executor of the node: the tables that workers and XDP programs have in common. A nil one is that of a node that has none.
type offload struct {
	tables *cruise.Tables
	hops   *cruise.Hops
	send   *cruise.Transmit // nil = workers send by their sockets alone

	mu   sync.Mutex
	held int // how many want all packets to go up

	devices sync.Mutex
	look    chan struct{} // has watchTargets look at all ports
	refuses []uint64      // by port: how often its device has said that it takes no redirected frames any more; 0 = it takes them, as far as is known

	unsettled bool // endRests: the last time it could not, which the log has said

	reading sync.Mutex
	volumes [][meter.NumDirs]lastVolume // by tenant
	voices  map[[2]uint16]meter.Voice   // by tenant and direction: as it was read last
	said    bool                        // that they cannot be read
	log     *slog.Logger
}

// lastVolume is what programs had carried of a tenant when it was last read. Written under reading; any goroutine may read.
type lastVolume struct{ packets, bytes atomic.Uint64 }

// portOffload is what a port has of it. Under mu and linkMu as portFacts.
type portOffload struct {
	on   bool
	why  string // why not
	lost bool   // it was to be on, and the device takes no redirected frames for now
}

// offloadAsk is what the kernel is asked of a device that is to carry.
type offloadAsk struct {
	features func(ifindex int) (hostnet.XDPFeatures, error)
	queues   func(device string) (queues, cpus int, err error) // to send by, of a device; CPUs that there may be
}

var askKernel = offloadAsk{hostnet.ReadXDPFeatures, func(device string) (queues, cpus int, err error) {
	c, err := hostnet.ReadChannels(device)
	n, e := hostnet.CPUs()
	return c.Combined + c.Tx, n, errors.Join(err, e)
}}

// judgeOffload says whether packets of established sessions may pass a port without a worker; why = why not. What was asked for and cannot be is an error.
func (g *Gateway) judgeOffload(p *port, ask offloadAsk) (on bool, why string, err error) {
	asked := p.cfg.Offload
	if asked == "" {
		asked = offloadAuto
	}
	switch {
	case asked == offloadNever:
		return false, "the node file says never", nil
	case runtime.GOARCH != "amd64":
		why = "what a worker writes and the program reads is in the order that amd64 keeps, and this processor is another one"
	case g.o.Break != "":
		why = "a stage is switched off for a test, and the XDP program knows of none"
	case max(1, g.o.Node.Workers.Count) > cruise.MaxWorkers:
		why = fmt.Sprintf("there are more than %d workers", cruise.MaxWorkers)
	case p.mode == xsk.ZeroCopy:
		why = "the port is zero-copy: a worker gets packets without the kernel's copies"
	case p.mode == xsk.Generic || !p.native:
		why = "the driver has no native XDP"
	default:
		// A veth hands what is redirected to it to its far end at once, by whichever queue there is.
		if why = ask.redirects(p.link.Index, p.link.Driver, asked == offloadAlways); why == "" && asked == offloadAuto && p.link.Driver != "veth" {
			why = ask.tooFewQueues(p.cfg.Device)
		}
	}
	if why != "" && asked == offloadAlways {
		return false, why, fmt.Errorf("port %s: offload = \"always\" cannot be: %s", p.cfg.Name, why)
	}
	return why == "", why, nil
}

// decideOffload settles what a port has of it. A start is refused where what was asked for cannot be; a port that comes back while the node runs opens nevertheless, and workers carry what the others
// would: a closed port is worse. Where its device takes no redirected frames for now, that is looked at again.
func (g *Gateway) decideOffload(p *port) error {
	i, known := slices.Index(g.ports, p), uint64(0)
	if g.off != nil {
		known = g.off.known(uint16(i))
	}
	on, why, err := g.judgeOffload(p, askKernel)
	off := portOffload{on: on, why: why}
	if on && g.off != nil {
		g.off.takes(uint16(i), known)
	}
	if !on && g.off != nil && g.ready.Load() && p.cfg.Offload != offloadNever {
		off.lost = p.mode == xsk.Copy && p.native && askKernel.redirects(p.link.Index, p.link.Driver, true) != ""
	}
	if err != nil && g.ready.Load() {
		g.log.Warn("offload: workers carry everything", "port", p.cfg.Name, "err", err)
		err = nil
	}
	g.change(p, func() { p.off = off })
	return err
}

// tooFewQueues says why frames that a CPU redirects to a device may find no queue there: several drivers have the CPU's number be that of the queue, and drop what has none without a word. "" = each CPU has one.
func (ask *offloadAsk) tooFewQueues(device string) string {
	queues, cpus, err := ask.queues(device)
	switch {
	case err != nil:
		return fmt.Sprintf("whether each CPU has a queue of the device cannot be told: %v", err)
	case queues < cpus:
		return fmt.Sprintf("the device has %d queues for %d CPUs, and its driver may lose what the others redirect; offload = \"always\" is for who knows that it does not", queues, cpus)
	}
	return ""
}

// redirects says why a device does not take redirected frames; "" = it does. The kernel says so since 6.3; trust: what it cannot tell is so.
func (ask *offloadAsk) redirects(ifindex int, driver string, trust bool) string {
	f, err := ask.features(ifindex)
	switch {
	case errors.Is(err, hostnet.ErrNotSupported) && trust:
		return ""
	case err != nil:
		return fmt.Sprintf("whether the driver takes redirected frames cannot be told: %v", err)
	case f&hostnet.XDPTarget != 0:
		return ""
	case driver == "veth":
		return "the far end of the veth takes no redirected frames: ethtool -K FAR-END gro on, there"
	}
	return "the driver takes no redirected frames"
}

// openOffload makes the tables if a port wants them. Workers are made with them; nothing is carried before a port is open.
func (g *Gateway) openOffload(seeds []uint64, sessions int) error {
	want := false
	for _, p := range g.ports {
		want = want || p.off.on
	}
	if !want {
		return nil
	}
	n, v := g.o.Node, g.view.Load()
	ahead, err := xsk.BootAhead()
	if err != nil {
		return err
	}
	t, err := cruise.Open(cruise.Config{Seeds: seeds, Sessions: sessions, Ports: len(g.ports), Interfaces: max(1, len(v.Ifaces)), Tenants: snapshot.MaxTenantID(n), Hops: 2 * n.Tables.Neighbors, Ahead: ahead, Deadlines: g.deadlines.FD()})
	if errors.Is(err, unix.ENOMEM) {
		return fmt.Errorf("%w: make tables.sessions smaller or add memory", err)
	} else if err != nil {
		return err
	}
	if err := t.SetView(v); err != nil {
		return errors.Join(err, t.Close())
	}
	g.off = &offload{tables: t, hops: cruise.NewHops(t), look: make(chan struct{}, 1), voices: map[[2]uint16]meter.Voice{}, refuses: make([]uint64, len(g.ports)), volumes: make([][meter.NumDirs]lastVolume, snapshot.MaxTenantID(n)+1), log: g.log}
	for _, tn := range v.Tenants { // nothing runs yet
		if tn != nil {
			tn.Shared.Words = t.Words(tn.ID)
		}
	}
	g.off.hops.Renew(v.Gen)
	g.neigh.Changed = g.off.hops.Changed
	if g.off.send, err = t.OpenTransmit(); err != nil {
		g.log.Warn("offload: what workers send goes by their sockets alone", "err", err)
	}
	return nil
}

// firstAgain has what programs carry by the routers that stand in for one go up, since that one is settled again: workers have it go on there.
func (g *Gateway) firstAgain(iface uint16, a netip.Addr) {
	v := g.view.Load()
	if g.off == nil || v == nil {
		return
	}
	for _, h := range v.StandsIn(iface, a) {
		g.off.hops.Changed(h.Iface, h.Family, &h.Via)
	}
}

// noOffload has workers carry everything of a port because of an error, unless it was to be offloaded always and the node is starting.
func (g *Gateway) noOffload(p *port, err error) error {
	if !p.off.on && !p.off.lost {
		return nil
	}
	if p.cfg.Offload == offloadAlways && !g.ready.Load() {
		return fmt.Errorf("port %s: offload = \"always\" cannot be: %w", p.cfg.Name, err)
	}
	g.log.Warn("offload: workers carry everything", "port", p.cfg.Name, "err", err)
	g.change(p, func() { p.off = portOffload{why: err.Error()} })
	return nil
}

// words is where the rate words of tenants lie, for snapshot.Input.
func (o *offload) words() func(flow.TenantID) *[2]police.Words {
	if o == nil {
		return nil
	}
	return o.tables.Words
}

func (o *offload) second() *worker.Second {
	if o == nil {
		return nil
	}
	return &worker.Second{Tables: o.tables, Hops: o.hops, Transmit: o.send}
}

// settle returns when no packet is under way any more that was begun by what held before. It takes some milliseconds.
func (o *offload) settle() error {
	if o == nil {
		return nil
	}
	return o.tables.Settle()
}

// endRests waits for programs that are under way while slots of sessions that have ended wait for that. It holds up no worker.
func (g *Gateway) endRests() {
	if g.off == nil || g.off.tables.Resting() == 0 {
		return
	}
	err := g.off.settle()
	if err != nil && !g.off.unsettled {
		g.log.Error("offload: places of sessions that have ended are not used again", "err", err)
	}
	g.off.unsettled = err != nil
}

// up has all packets that come from now on go up until the function that it returns is called.
func (o *offload) up() (release func()) {
	if o == nil {
		return func() {}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.held++; o.held == 1 {
		o.tables.Hold(true)
	}
	return sync.OnceFunc(func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.held--; o.held == 0 {
			o.tables.Hold(false)
		}
	})
}

// hold is up, and waits for those under way.
func (o *offload) hold() (release func(), err error) {
	release = o.up()
	if err := o.settle(); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// offloadView has the programs know what workers are about to go by. All packets go up until the function that it returns is called, when every worker does. If it fails they go up for good: nothing
// is judged by what is half written.
func (g *Gateway) offloadView(v *snapshot.View) (release func()) {
	if g.off == nil {
		return func() {}
	}
	release, err := g.off.hold()
	if err == nil {
		err = g.off.tables.SetView(v)
		g.off.forget(v.Fresh)
		g.off.hops.Renew(v.Gen)
	}
	if err != nil {
		g.log.Error("offload: the XDP programs cannot be told of the policy: workers carry everything from now on", "err", err)
		g.off.mu.Lock()
		defer g.off.mu.Unlock()
		g.off.held++ // of which nobody lets go
		g.off.tables.Hold(true)
		return func() {}
	}
	return release
}

// setDevice says which device a port is, 0 = none. One that refuses redirected frames is none.
func (o *offload) setDevice(port uint16, ifindex int) error {
	o.devices.Lock()
	defer o.devices.Unlock()
	return o.putDevice(port, ifindex)
}

func (o *offload) putDevice(port uint16, ifindex int) error {
	if o.refuses[port] != 0 {
		ifindex = 0
	}
	if o.send != nil {
		o.send.SetPort(port, false)
		defer func() { o.send.SetPort(port, ifindex != 0) }()
	}
	return o.tables.SetDevice(port, ifindex)
}

// refused has a port be no device at once, whoever holds what: what is redirected there is lost. It stays so until takes.
func (o *offload) refused(port uint16) error {
	o.devices.Lock()
	defer o.devices.Unlock()
	o.refuses[port]++
	return o.putDevice(port, 0)
}

// known is what takes wants to be told of what was read from now on.
func (o *offload) known(port uint16) uint64 {
	o.devices.Lock()
	defer o.devices.Unlock()
	return o.refuses[port]
}

// takes notes that a device takes redirected frames, by what was read behind known; it may have refused since. It reports whether it had refused.
func (o *offload) takes(port uint16, known uint64) bool {
	o.devices.Lock()
	defer o.devices.Unlock()
	if known == 0 || o.refuses[port] != known {
		return false
	}
	o.refuses[port] = 0
	return true
}

// setDevice lets frames be redirected to a port, or no longer.
func (g *Gateway) setDevice(i int, p *port) {
	if g.off == nil {
		return
	}
	index := 0
	if p.off.on && p.state == portOpen && p.link.Up && p.link.Carrier {
		index = p.link.Index
	}
	if err := g.off.setDevice(uint16(i), index); err != nil {
		g.log.Error("offload", "port", p.cfg.Name, "err", err)
	}
	if index != 0 { // it may have refused between the look by which it is on and now
		poke(g.off.look)
	}
}

// watchTargets follows which devices take redirected frames. The kernel says it before a veth's far end takes none any more: from that moment on its frames are dropped without a word, so nothing is waited for then. What else follows waits for others.
func (g *Gateway) watchTargets(ctx context.Context) error {
	if g.off == nil {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		defer cancel() // a fault in here ends the watch
		done <- contained(g.log, "what follows from devices", func() error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case <-g.off.look:
				}
				for i, p := range g.ports {
					g.lookOffload(i, p)
				}
			}
		})
	}()
	for ctx.Err() == nil {
		err := hostnet.WatchXDPFeatures(ctx, func(ifindex int, f hostnet.XDPFeatures) {
			for i, p := range g.ports {
				if ifindex != 0 && f&hostnet.XDPTarget == 0 && g.facts(p).link.Index == ifindex {
					if err := g.off.refused(uint16(i)); err != nil {
						g.log.Error("offload", "port", p.cfg.Name, "err", err)
					}
				}
			}
			poke(g.off.look)
		})
		if errors.Is(err, hostnet.ErrNotSupported) { // then no port has it but by always
			<-ctx.Done()
		} else if err != nil {
			g.log.Warn("offload: whether devices take redirected frames is looked at once a second for now", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(mendPause):
			}
		}
	}
	cancel()
	return <-done
}

// openSecond has the port's program show frames to the second executor, if it is to. The caller holds mu.
func (g *Gateway) openSecond(i int, p *port) error {
	err := errors.New("the tables that it needs are made at start: restart the node")
	wanted := p.off.on || p.off.lost // what comes in at a port that nothing is redirected to may be carried all the same
	if wanted && g.off != nil {
		err = g.loadSecond(i, p)
	}
	if wanted && err == nil {
		return nil
	}
	return errors.Join(p.prog.ClearSecond(), g.noOffload(p, err))
}

func (g *Gateway) loadSecond(i int, p *port) error {
	if p.second != nil && p.secondFor != p.prog.Sockets() {
		old := p.second
		g.change(p, func() { p.second = nil })
		if err := old.Close(); err != nil {
			return err
		}
	}
	if p.second == nil {
		s, err := g.off.tables.Load(uint16(i), p.prog.Sockets(), p.prog.Steered(), p.prog.Ups())
		if err != nil {
			return err
		}
		g.change(p, func() { p.second, p.secondFor = s, p.prog.Sockets() })
	}
	return p.prog.SetSecond(p.second.FD())
}

// closeSecond ends that: the port's program goes by its sockets alone, and nothing is redirected to it. The caller holds mu.
func (g *Gateway) closeSecond(i int, p *port) {
	if g.off == nil || p.prog == nil {
		return
	}
	err := errors.Join(p.prog.ClearSecond(), g.off.setDevice(uint16(i), 0), g.off.settle())
	if err != nil {
		g.log.Error("offload", "port", p.cfg.Name, "err", err)
	}
}

// useNeighbors keeps those neighbours alive to whom programs send. It holds up no worker.
func (g *Gateway) useNeighbors() {
	if g.off != nil {
		g.off.hops.Used(func(k *cruise.Neighbor) { g.neigh.Lookup(k.Iface, k.Family, &k.Addr) })
	}
}

// lookOffload sees whether the device of a port still takes redirected frames.
func (g *Gateway) lookOffload(i int, p *port) {
	if f := g.facts(p); g.off == nil || f.state != portOpen || !f.off.on && !f.off.lost {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if p.state != portOpen || !p.off.on && !p.off.lost {
		return
	}
	known := g.off.known(uint16(i))
	_, why, _ := g.judgeOffload(p, askKernel)           // the error is why, for a start
	again := why == "" && g.off.takes(uint16(i), known) // it may have come and gone between two looks
	if (why == "") == p.off.on {
		if again {
			g.setDevice(i, p)
		}
		return
	}
	g.change(p, func() { p.off = portOffload{on: why == "", lost: why != "", why: why} })
	if why != "" {
		g.log.Warn("offload: the device takes no redirected frames any more, workers carry what is sent there", "port", p.cfg.Name, "why", why)
	} else {
		g.log.Info("offload: the device takes redirected frames again", "port", p.cfg.Name)
	}
	g.setDevice(i, p)
}

// offloadReport is what a port's program has done since the device was opened.
func (g *Gateway) offloadReport(i int, p *port) (a api.Offload, err error) {
	a, index, err := g.offloadCounts(i, p)
	if err == nil && g.off != nil { // outside the lock: the kernel answers when nobody changes links. A device that is gone, or tells nothing, has no figure
		if n, err := hostnet.TxDropped(index); err == nil {
			a.DeviceDropped = &n
		}
	}
	return a, err
}

func (g *Gateway) offloadCounts(i int, p *port) (a api.Offload, index int, err error) {
	g.linkMu.Lock()
	defer g.linkMu.Unlock()
	index = p.link.Index
	a = api.Offload{Asked: cmp.Or(p.cfg.Offload, offloadAuto), On: p.off.on, Why: p.off.why, Frames: map[string]uint64{}}
	a.Watched = p.off.on && slices.ContainsFunc(g.workers, func(w *worker.Worker) bool { return w.Stats().Watched })
	a.Held = a.Watched || p.off.on && g.off.isHeld()
	for w := range cruise.NumWhats {
		n := uint64(0)
		if p.second != nil {
			if n, _, err = p.second.Count(w); err != nil {
				return a, index, fmt.Errorf("port %s: offload: %w", p.cfg.Name, err)
			}
		}
		a.Frames[w.String()] = n
	}
	a.Carried = a.Frames[cruise.Carried.String()]
	if g.off != nil {
		v, err := g.off.tables.Sent(uint16(i))
		if err != nil {
			return a, index, fmt.Errorf("port %s: offload: %w", p.cfg.Name, err)
		}
		a.Sent = api.Counter(v)
	}
	return a, index, nil
}

// isHeld reports whether all packets go up for now, whatever ports have.
func (o *offload) isHeld() bool {
	if o == nil {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.held > 0
}

// carried is what programs have carried of a tenant. Where it cannot be read it is what it was.
func (o *offload) carried(t flow.TenantID, d meter.Dir) meter.Volume {
	if o == nil {
		return meter.Volume{}
	}
	o.reading.Lock()
	defer o.reading.Unlock()
	at := &o.volumes[t][d]
	switch v, err := o.tables.Volume(t, d); {
	case err == nil:
		at.packets.Store(v.Packets)
		at.bytes.Store(v.Bytes)
	case !o.said:
		o.said = true
		o.log.Error("offload: what programs have carried cannot be read: it counts as it did", "err", err)
	}
	return o.last(t, d)
}

// voice is what of that is voice.
func (o *offload) voice(t flow.TenantID, d meter.Dir) meter.Voice {
	if o == nil {
		return meter.Voice{}
	}
	o.reading.Lock()
	defer o.reading.Unlock()
	at := [2]uint16{uint16(t), uint16(d)}
	if v, err := o.tables.Voice(t, d); err == nil {
		o.voices[at] = v
	} // what it is, carried has said
	return o.voices[at]
}

// last is what carried has found last. It costs two loads: who takes a group over asks it for each tenant.
func (o *offload) last(t flow.TenantID, d meter.Dir) meter.Volume {
	at := &o.volumes[t][d]
	return meter.Volume{Packets: at.packets.Load(), Bytes: at.bytes.Load()}
}

// readOffload has what programs have carried be known once a second. Each tenant costs calls of the kernel, so nothing else waits for it.
func (g *Gateway) readOffload(ctx context.Context) error {
	if g.off == nil {
		return nil
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		g.off.read(g.view.Load())
	}
}

// read has last be of now.
func (o *offload) read(v *snapshot.View) {
	for _, t := range v.Tenants {
		if t != nil {
			o.readOf(t.ID)
		}
	}
}

func (o *offload) readOf(t flow.TenantID) {
	if o != nil {
		for d := range meter.NumDirs {
			o.carried(t, d)
		}
	}
}

// forget begins anew for tenants whose numbers have gone to others.
func (o *offload) forget(fresh []flow.TenantID) {
	o.reading.Lock()
	defer o.reading.Unlock()
	for _, id := range fresh {
		for d := range o.volumes[id] {
			o.volumes[id][d].packets.Store(0)
			o.volumes[id][d].bytes.Store(0)
			delete(o.voices, [2]uint16{uint16(id), uint16(d)})
		}
	}
}

func (o *offload) close() error {
	if o == nil {
		return nil
	}
	var err error
	if o.send != nil {
		err = o.send.Close()
	}
	return errors.Join(err, o.tables.Close())
}
