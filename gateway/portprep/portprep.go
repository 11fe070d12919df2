package portprep

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"demarc/gateway/hostnet"
)

// Want is what the node file makes of a port.
type Want struct {
	Trunk   bool // interfaces with tags are on it
	Generic bool // the program runs on finished packets
	Queues  int  // 0 = as many as there are
}

// Change is one setting that is not as it was found, in the words of ethtool.
type Change struct{ What, Was, Now string }

// String is "gro on -> off".
func (c Change) String() string { return c.What + " " + c.Was + " -> " + c.Now }

// Port is one prepared device.
type Port struct {
	d      device
	dir    string
	name   string
	first  *record // what the first start found, this one's changes included
	before *record // what first was when this start began
	mine   record  // what this start changed

	// Warnings are what the driver refused and the gateway can live with.
	Warnings []string
	// Queues says how many of the device's queues, from the first, are to be bound: the table leaves out the others, if there are any. 0 = all.
	Queues int
	// Promiscuous says why the device must receive everything; "" = it need not.
	Promiscuous string
}

// off is what no port of the gateway wants, in the order in which it is switched off.
var off = []hostnet.Offload{hostnet.LRO, hostnet.HWGRO, hostnet.GRO, hostnet.RxVLAN, hostnet.RxSTag, hostnet.RxFilter, hostnet.RxSTagFilter}

// Foresee tells, without a change, what Prepare will be refused.
func Foresee(name string, w Want) error { return foresee(kernel{}, name, w) }

func foresee(d device, name string, w Want) error {
	o, err := d.Offloads(name)
	if err != nil {
		o = hostnet.Offloads{} // a driver that cannot tell has none
	}
	for _, x := range off {
		o[x].On = o[x].On && o[x].Fixed
	}
	_, err = judge(name, &o, w)
	if w.Queues == 0 {
		return err
	}
	c, cerr := d.Channels(name)
	switch {
	case cerr != nil:
		cerr = fmt.Errorf("queues = %d: the driver of %s cannot change them: leave queues out", w.Queues, name)
	case w.Queues > c.Most():
		cerr = fmt.Errorf("queues = %d: %s has at most %d: ethtool -l %s", w.Queues, name, c.Most(), name)
	}
	return errors.Join(err, cerr)
}

// Judge says of a device that nobody prepares what cannot be lived with (the error) and what can.
func Judge(name string, w Want) (warnings []string, err error) { return judgeAsIs(kernel{}, name, w) }

func judgeAsIs(d device, name string, w Want) (warnings []string, err error) {
	o, err := d.Offloads(name)
	if err != nil {
		o = hostnet.Offloads{}
	}
	warnings, err = judge(name, &o, w)
	if w.Trunk && (o[hostnet.RxFilter].On || o[hostnet.RxSTagFilter].On) {
		warnings = append(warnings, fmt.Sprintf("the card may hold tags back that the kernel has no device for: ethtool -K %s rx-vlan-filter off", name))
	}
	if c, cerr := d.Channels(name); w.Queues > 0 && (cerr != nil || c.Queues() != w.Queues) {
		err = errors.Join(err, fmt.Errorf("queues = %d, but %s has %d and prepare = false: ethtool -L %s %s", w.Queues, name, c.Queues(), name, c.With(w.Queues)))
	}
	if t, rerr := d.RSS(name); rerr == nil {
		if n := queueCount(d, name); n > 0 && !even(t, n) {
			warnings = append(warnings, fmt.Sprintf("received packets are not spread evenly over the %d queues: ethtool -X %s equal %d", n, name, n))
		}
	}
	return warnings, err
}

// queueCount is how many receive queues there are; 0 = the driver does not say.
func queueCount(d device, name string) int {
	c, err := d.Channels(name)
	if err != nil {
		return 0
	}
	return c.Rx + c.Combined
}

// judge looks at offloads that stay as they are.
func judge(name string, o *hostnet.Offloads, w Want) (warnings []string, err error) {
	mend := func(x hostnet.Offload) string {
		if o[x].Fixed {
			return "the driver cannot be told not to: use another device"
		}
		return fmt.Sprintf("ethtool -K %s %s off", name, x)
	}
	var errs []error
	for _, x := range []struct {
		o          hostnet.Offload
		bad, plain string
	}{
		{hostnet.RxVLAN, "the driver strips VLAN tags, so tenants on this trunk would fall together", "the driver strips VLAN tags, so a tagged frame counts as untagged"},
		{hostnet.RxSTag, "the driver strips service tags, so what they carry would pass for a tenant's on this trunk", "the driver strips service tags, so what they carry counts as untagged"},
	} {
		switch {
		case o[x.o].On && w.Trunk:
			errs = append(errs, fmt.Errorf("%s: %s", x.bad, mend(x.o)))
		case o[x.o].On:
			warnings = append(warnings, x.plain+": "+mend(x.o))
		}
	}
	if o[hostnet.LRO].On {
		errs = append(errs, fmt.Errorf("the driver joins packets to ones that cannot be forwarded (lro): %s", mend(hostnet.LRO)))
	}
	if o[hostnet.HWGRO].On {
		warnings = append(warnings, "the driver joins packets (rx-gro-hw), and what is larger than the next link is lost: "+mend(hostnet.HWGRO))
	}
	if o[hostnet.GRO].On && w.Generic {
		warnings = append(warnings, "packets are joined before the gateway sees them (gro), and what is larger than the next link is lost: "+mend(hostnet.GRO))
	}
	return warnings, errors.Join(errs...)
}

// Prepare makes a device what the gateway needs. dir keeps what was found. After an error the device is as it was.
func Prepare(dir, name string, ifindex int, w Want) (*Port, error) {
	id, err := identity(ifindex)
	if err != nil {
		return nil, err
	}
	return prepare(kernel{}, dir, name, id, w)
}

func prepare(d device, dir, name, id string, w Want) (p *Port, err error) {
	p = &Port{d: d, dir: dir, name: name, mine: record{Device: name, Identity: id}}
	first, lerr := load(dir, name, id)
	if lerr != nil {
		p.warn("what an earlier start found cannot be read, what is there now counts as found: %v", lerr)
	}
	p.first, p.before = first, first.clone()
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Abandon())
			p = nil
		}
	}()
	for _, x := range off {
		// What does not follow is judged below, all at once.
		if v, rerr := read(d, name, x.String()); rerr == nil && v != nil && v.On {
			_ = p.set(x.String(), v, &value{})
		}
	}
	if err := p.spreadOut(w.Queues); err != nil {
		return p, err
	}
	o, oerr := d.Offloads(name)
	if oerr != nil {
		o = hostnet.Offloads{}
	}
	warnings, err := judge(name, &o, w)
	if err != nil {
		return p, err
	}
	p.Warnings = append(p.Warnings, warnings...)
	if w.Trunk && (o[hostnet.RxFilter].On || o[hostnet.RxSTagFilter].On) {
		p.Promiscuous = "the driver filters tags and cannot be told not to"
	}
	return p, nil
}

// spreadOut sees to the queues and to the table that spreads packets over them.
func (p *Port) spreadOut(n int) error {
	c, err := read(p.d, p.name, queues)
	if err != nil {
		return err
	}
	t, err := read(p.d, p.name, rss)
	if err != nil {
		return err
	}
	if n > 0 && (c == nil || c.Channels.Queues() != n) {
		if c == nil {
			return fmt.Errorf("queues = %d: the driver of %s cannot change them: leave queues out", n, p.name)
		}
		// A table that names a queue beyond n would be in the way of fewer, unless it is the driver's own.
		if own := t == nil || slices.Equal(t.Table, spread(len(t.Table), c.Channels.Queues())); !own && n < c.Channels.Queues() {
			if err := p.set(rss, t, &value{Table: spread(len(t.Table), n)}); err != nil {
				return fmt.Errorf("queues = %d: %w", n, err)
			}
		}
		want := c.Channels.With(n)
		if err := p.set(queues, c, &value{Channels: &want}); err != nil {
			if t == nil || n > c.Channels.Queues() || p.hold(n) != nil {
				return fmt.Errorf("queues = %d: %w", n, err)
			}
		}
		if t, err = read(p.d, p.name, rss); err != nil {
			return err
		}
	}
	p.Queues = n
	return p.evenOut()
}

// hold keeps received packets to the first n queues, where the driver has more and does not take them away. virtio_net does not while a program is
// on it, and adds one for each CPU when it gets one.
func (p *Port) hold(n int) error {
	t, err := read(p.d, p.name, rss)
	if err != nil || t == nil || even(t.Table, n) {
		return err
	}
	return p.set(rss, t, &value{Table: spread(len(t.Table), n)})
}

// evenOut spreads received packets over the queues that are to be bound.
func (p *Port) evenOut() error {
	there := queueCount(p.d, p.name)
	n := there
	if p.Queues > 0 {
		n = p.Queues
	}
	t, err := read(p.d, p.name, rss)
	if err != nil {
		return err
	}
	if t == nil && n < there { // then all of them
		p.warn("the driver has %d queues, not %d, and no table to leave some out: all are bound", there, n)
		p.Queues = 0
	}
	if t == nil || n == 0 {
		return nil
	}
	if err := p.hold(n); err != nil {
		p.warn("received packets are not spread evenly over the %d queues: %v", n, err)
		if n < there {
			p.Queues = 0
		}
	}
	return nil
}

// Settle looks again once the program is on the device: the driver may have changed its queues for it, and reads otherwise now.
func (p *Port) Settle() error {
	c, err := read(p.d, p.name, queues)
	if err != nil {
		return err
	}
	for _, r := range []*record{p.first, &p.mine} {
		for i := range r.Steps {
			if s := &r.Steps[i]; s.What == queues && c != nil && !c.same(&s.Now) {
				s.Under = c
			}
		}
	}
	if err := p.evenOut(); err != nil {
		return err
	}
	if err := p.first.save(p.dir); err != nil {
		p.warn("a kill -9 would lose what was found: %v", err)
	}
	return p.Exchanged()
}

// Exchanged writes the table again that was set: each program that comes has virtio_net tell its device the number of queues, and by that the device
// (virtio 1.2, 5.1.6.5.5) forgets a table that is not the driver's own, while the driver goes on to show it.
func (p *Port) Exchanged() error {
	if p.Queues == 0 && !slices.ContainsFunc(p.first.Steps, func(s step) bool { return s.What == rss }) {
		return nil
	}
	t, err := read(p.d, p.name, rss)
	if err != nil || t == nil {
		return err
	}
	return p.d.SetRSS(p.name, t.Table)
}

// set changes one setting: first the memory of it, then the thing.
func (p *Port) set(what string, was, now *value) error {
	s := step{What: what, Was: *was, Now: *now}
	first, mine := p.first.clone(), p.mine.clone()
	p.first.note(s)
	p.mine.note(s)
	if err := p.first.save(p.dir); err != nil {
		p.warn("a kill -9 would lose what was found: %v", err)
	}
	err := write(p.d, p.name, what, now)
	if err == nil {
		return nil
	}
	if is, rerr := read(p.d, p.name, what); rerr == nil && is != nil && is.same(was) { // nothing has changed, nothing is to be put back
		p.first, p.mine = first, *mine
		if serr := p.first.save(p.dir); serr != nil {
			p.warn("a kill -9 would lose what was found: %v", serr)
		}
	}
	return err
}

func (p *Port) warn(format string, args ...any) {
	if s := fmt.Sprintf(format, args...); !slices.Contains(p.Warnings, s) {
		p.Warnings = append(p.Warnings, s)
	}
}

// Changes lists what is not as the first start found it.
func (p *Port) Changes() []Change { return p.first.changes() }

func (r *record) changes() (out []Change) {
	for i := range r.Steps {
		s := &r.Steps[i]
		out = append(out, Change{s.What, s.Was.String(), s.Now.String()})
	}
	return out
}

// Restore puts back what the first start found. What the driver refuses stays on record for Release; the error names it.
func (p *Port) Restore() ([]Change, error) { return restore(p.d, p.dir, p.first) }

// Abandon puts back what this start found, after it failed.
func (p *Port) Abandon() error {
	_, err := undo(p.d, &p.mine)
	p.first = p.before.clone()
	return errors.Join(err, p.first.save(p.dir))
}

// Release puts back what is on record for a device, after its gateway and the program on it have gone. None on record is no error.
func Release(dir, name string, ifindex int) ([]Change, error) {
	id, err := identity(ifindex)
	if err != nil {
		return nil, err
	}
	r, err := load(dir, name, id)
	if err != nil || len(r.Steps) == 0 {
		return nil, err
	}
	return release(kernel{}, dir, r)
}

// release is for a device without a program: how something read under one says nothing any more.
func release(d device, dir string, r *record) ([]Change, error) {
	for i := range r.Steps {
		r.Steps[i].Under = nil
	}
	return restore(d, dir, r)
}

func restore(d device, dir string, r *record) ([]Change, error) {
	done, err := undo(d, r)
	return done, errors.Join(err, r.save(dir))
}

// undo goes through the steps from the end and keeps those that the driver refused. What somebody has changed since is theirs.
func undo(d device, r *record) (done []Change, err error) {
	var left []step
	waits := false // for the queues, which the driver does not give back yet
	for i := len(r.Steps) - 1; i >= 0; i-- {
		s := r.Steps[i]
		is, rerr := read(d, r.Device, s.What)
		if errors.Is(rerr, hostnet.ErrNotFound) {
			continue // with the device its settings went
		}
		under := rerr == nil && is != nil && s.Under != nil && is.same(s.Under)
		ours := under || rerr == nil && is != nil && is.same(&s.Now)
		switch {
		case rerr != nil:
		case s.What == rss && waits: // the table that was found names queues that would be gone with the program
			rerr = errors.New("it comes with the queues")
		case under && is.same(&s.Was): // those that the program brought make up the number that was found
			rerr = errors.New("the program on the device makes it read so already")
		case !ours || is.same(&s.Was):
			continue
		default:
			rerr = write(d, r.Device, s.What, &s.Was)
		}
		if rerr != nil {
			left, waits = append([]step{s}, left...), waits || s.What == queues
			err = errors.Join(err, fmt.Errorf("put %s back to %s: %w", s.What, s.Was.String(), rerr))
			continue
		}
		done = append(done, Change{s.What, s.Now.String(), s.Was.String()})
	}
	r.Steps = left
	return done, err
}

// Join writes changes into one line.
func Join(list []Change) string {
	s := make([]string, len(list))
	for i, c := range list {
		s[i] = c.String()
	}
	return strings.Join(s, ", ")
}
