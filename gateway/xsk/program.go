package xsk

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"demarc/gateway/xsk/bpf"
)

// programName is how the kernel lists our program; by it a restart, an upgrade and Release know it.
const programName = bpf.SteerProgDemarcSteer

// ErrNoNative says that the device's driver has no native XDP: mode generic remains.
var ErrNoNative = errors.New("the driver has no native XDP")

// Program is the XDP program of one port with its maps. It belongs to the control goroutine.
type Program struct {
	cfg            ProgramConfig
	prog           *ebpf.Program
	xsks, counters *ebpf.Map // what is in them lives through Update
	ups            *ebpf.Map // likewise, and is read through upsMem
	upsMem         []byte
	old            [][]byte  // what upsMem was before: a worker may be looking at it yet
	second         *ebpf.Map // likewise: the second executor's program, if there is one
	deadlines      *Deadlines

	attached bool
	generic  bool
	moved    bool          // to another device, and no socket is in it yet
	previous *ebpf.Program // what Attach replaced: an earlier process's program of ours, or nil
}

// LoadProgram loads the program for one port into the kernel. It is not attached and no socket is in it. It goes by the deadlines d; with nil it
// serves no group.
func LoadProgram(c ProgramConfig, d *Deadlines) (*Program, error) {
	p := &Program{cfg: c, deadlines: d}
	var err error
	var o *bpf.SteerObjects
	if o, err = load(&c, d.keep(map[string]*ebpf.Map{})); err != nil {
		return nil, fmt.Errorf("load xdp program for device %d: %w", c.Ifindex, err)
	}
	p.prog, p.xsks, p.counters, p.second, p.ups = o.DemarcSteer, o.Xsks, o.Counters, o.Second, o.Ups
	if p.upsMem, err = mapUps(p.ups); err != nil {
		return nil, errors.Join(fmt.Errorf("load xdp program for device %d: %w", c.Ifindex, err), p.Close())
	}
	return p, nil
}

// upsSize is that of struct ups in bpf/steer.c: a cache line, because each queue has a CPU of its own.
const upsSize = 64

func mapUps(m *ebpf.Map) ([]byte, error) {
	mem, err := unix.Mmap(m.FD(), 0, int(m.MaxEntries())*upsSize, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the counts of queues: %w", err)
	}
	return mem, nil
}

// load makes a program with maps of its own, except for those that keep says to take over: socket map, counters, those of queues and the second executor's place, and the deadlines of all ports.
// Only the program and the first four are open.
func load(c *ProgramConfig, keep map[string]*ebpf.Map) (_ *bpf.SteerObjects, err error) {
	t, err := c.compile()
	if err != nil {
		return nil, err
	}
	spec, err := bpf.LoadSteer()
	if err != nil {
		return nil, err
	}
	spec.Maps[bpf.SteerMapXsks].MaxEntries = uint32(c.Queues)
	spec.Maps[bpf.SteerMapUps].MaxEntries = uint32(c.Queues)
	spec.Maps[bpf.SteerMapAddrs4].MaxEntries = uint32(max(1, len(t.addrs4)))
	spec.Maps[bpf.SteerMapAddrs6].MaxEntries = uint32(max(1, len(t.addrs6)))
	spec.Maps[bpf.SteerMapMacs].MaxEntries = uint32(max(1, len(t.macs)))
	if t.settings.Ahead, err = bootAhead(); err != nil {
		return nil, err
	}
	if err := spec.Variables[bpf.SteerVarSettings].Set(t.settings); err != nil {
		return nil, err
	}
	var o bpf.SteerObjects
	if err := spec.LoadAndAssign(&o, &ebpf.CollectionOptions{MapReplacements: keep}); err != nil {
		if errors.Is(err, unix.EPERM) {
			return nil, explain("load", err)
		}
		return nil, err
	}
	// The program holds what it uses; only these are needed again.
	defer func() {
		errs := []error{err, o.Addrs4.Close(), o.Addrs6.Close(), o.Macs.Close(), o.Deadlines.Close(), o.Ports.Close(), o.Vlans.Close()}
		if err != nil {
			errs = append(errs, o.DemarcSteer.Close(), o.Xsks.Close(), o.Counters.Close(), o.Second.Close(), o.Ups.Close())
		}
		err = errors.Join(errs...)
	}()
	if err := t.write(&o); err != nil {
		return nil, err
	}
	return &o, nil
}

func (t *tables) write(o *bpf.SteerObjects) error {
	for k, v := range t.addrs4 {
		if err := o.Addrs4.Put(k, v); err != nil {
			return fmt.Errorf("write address: %w", err)
		}
	}
	for k, v := range t.addrs6 {
		if err := o.Addrs6.Put(k, v); err != nil {
			return fmt.Errorf("write address: %w", err)
		}
	}
	for k, v := range t.macs {
		if err := o.Macs.Put(k, v); err != nil {
			return fmt.Errorf("write mac: %w", err)
		}
	}
	var words []uint32
	var bits []uint64
	for i, w := range t.ports {
		if w != 0 {
			words, bits = append(words, uint32(i)), append(bits, w)
		}
	}
	if len(words) > 0 { // more than a thousand: one call instead of one for each
		if _, err := o.Ports.BatchUpdate(words, bits, nil); err != nil {
			return fmt.Errorf("write ports: %w", err)
		}
	}
	for i, w := range t.vlans {
		if w != 0 {
			if err := o.Vlans.Put(uint32(i), w); err != nil {
				return fmt.Errorf("write vlan: %w", err)
			}
		}
	}
	return nil
}

// Update changes the rules in one step: a program with the new ones is loaded beside the old, with the same sockets and
// counters, and replaces it atomically where it is attached. No frame is judged by a mixture. After an error the old rules hold.
func (p *Program) Update(c ProgramConfig) error {
	if c.Ifindex != p.cfg.Ifindex {
		return fmt.Errorf("update xdp program of device %d: the device cannot change", p.cfg.Ifindex)
	}
	keep := p.deadlines.keep(map[string]*ebpf.Map{bpf.SteerMapXsks: p.xsks, bpf.SteerMapCounters: p.counters, bpf.SteerMapSecond: p.second, bpf.SteerMapUps: p.ups})
	if c.Queues != p.cfg.Queues {
		if !p.moved {
			return fmt.Errorf("update xdp program of device %d: the number of queues cannot change", p.cfg.Ifindex)
		}
		delete(keep, bpf.SteerMapXsks) // there is no socket in it
		delete(keep, bpf.SteerMapUps)
	}
	o, err := load(&c, keep)
	if err != nil {
		return fmt.Errorf("update xdp program of device %d: %w", p.cfg.Ifindex, err)
	}
	prog, xsks, ups, upsMem := o.DemarcSteer, o.Xsks, o.Ups, []byte(nil)
	o.Counters.Close() // clones of what p has
	o.Second.Close()
	if c.Queues != p.cfg.Queues {
		if upsMem, err = mapUps(ups); err != nil {
			return errors.Join(fmt.Errorf("update xdp program of device %d: %w", c.Ifindex, err), prog.Close(), xsks.Close(), ups.Close())
		}
	}
	if p.attached {
		if err := setXDP(c.Ifindex, prog.FD(), p.prog.FD(), p.generic); err != nil {
			prog.Close()
			xsks.Close()
			ups.Close()
			if upsMem != nil {
				unix.Munmap(upsMem)
			}
			return fmt.Errorf("update xdp program of device %d: %w", c.Ifindex, err)
		}
	}
	old := p.prog
	if c.Queues != p.cfg.Queues {
		p.xsks, xsks = xsks, p.xsks
		p.ups, ups = ups, p.ups
		p.old, p.upsMem = append(p.old, p.upsMem), upsMem
	}
	xsks.Close() // a clone, or the old device's
	ups.Close()
	p.prog, p.cfg = prog, c
	return old.Close()
}

// Move takes the program along to the device that has come in the place of its own, which has vanished and its sockets with it. It is not attached
// there yet. Its rules are the old device's until Update, but with no socket in it all that it does is to drop transit.
func (p *Program) Move(ifindex int) {
	p.forget()
	p.cfg.Ifindex, p.attached, p.moved = ifindex, false, true
}

// Attach puts the program on its device, in native mode or in generic mode; native says which it is now. From here on the port
// is closed until SetSocket, and it stays so when this process ends, however it ends. A program that an earlier process of
// ours left is replaced atomically; anybody else's is refused by name. ErrNoNative: only generic mode is possible.
func (p *Program) Attach(generic bool) (native bool, err error) {
	ifi := p.cfg.Ifindex
	if p.attached {
		return !p.generic, fmt.Errorf("attach xdp program to device %d: it is attached", ifi)
	}
	cur, err := readXDP(ifi)
	if err != nil {
		return false, err
	}
	expected := -1
	if cur.id != 0 {
		if !cur.ours() {
			return false, fmt.Errorf("attach xdp program to device %d: %s is attached there (id %d, %s) and is not demarc's: take it off first", ifi, cur.label(), cur.id, cur.mode)
		}
		if (cur.mode == modeGeneric) != generic {
			return false, fmt.Errorf("attach xdp program to device %d: demarc's program of an earlier run is there in %s mode; the kernel cannot change that without an open moment: release the port first", ifi, cur.mode)
		}
		if p.previous, err = ebpf.NewProgramFromID(ebpf.ProgramID(cur.id)); err != nil {
			return false, fmt.Errorf("attach xdp program to device %d: open program %d: %w", ifi, cur.id, err)
		}
		expected = p.previous.FD()
	}
	if err := setXDP(ifi, p.prog.FD(), expected, generic); err != nil {
		p.forget()
		if !generic && errors.Is(err, unix.EOPNOTSUPP) {
			err = fmt.Errorf("%w (%w)", ErrNoNative, err)
		}
		return false, fmt.Errorf("attach xdp program to device %d: %w", ifi, err)
	}
	p.attached, p.generic = true, generic
	return !generic, nil
}

// Restore undoes Attach after a start that failed: what was attached before comes back, or nothing.
func (p *Program) Restore() error {
	if !p.attached {
		return nil
	}
	fd := -1
	if p.previous != nil {
		fd = p.previous.FD()
	}
	if err := setXDP(p.cfg.Ifindex, fd, p.prog.FD(), p.generic); err != nil {
		return fmt.Errorf("restore xdp of device %d: %w", p.cfg.Ifindex, err)
	}
	p.attached = false
	p.forget()
	return nil
}

func (p *Program) forget() {
	if p.previous != nil {
		p.previous.Close()
		p.previous = nil
	}
}

// SetSocket gives a queue's frames to a socket. The kernel takes the entry out by itself when the socket is closed.
func (p *Program) SetSocket(queue, fd int) error {
	p.moved = false
	if err := p.xsks.Put(uint32(queue), uint32(fd)); err != nil {
		return fmt.Errorf("set socket of device %d queue %d: %w", p.cfg.Ifindex, queue, err)
	}
	return nil
}

// ClearSocket closes a queue: its transit frames are dropped. Not an error when it is closed already.
func (p *Program) ClearSocket(queue int) error {
	if err := p.xsks.Delete(uint32(queue)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("clear socket of device %d queue %d: %w", p.cfg.Ifindex, queue, err)
	}
	return nil
}

// SetSecond has a program (gateway/cruise) see what is the gateway's before the socket of its queue does; it uses Sockets and Steered. It is there for as long as this process: the kernel takes it out by itself.
func (p *Program) SetSecond(fd int) error {
	if err := p.second.Put(uint32(0), uint32(fd)); err != nil {
		return fmt.Errorf("set second program of device %d: %w", p.cfg.Ifindex, err)
	}
	return nil
}

// ClearSecond takes it out. A packet may still be under way in it. Not an error when there is none.
func (p *Program) ClearSecond() error {
	if err := p.second.Delete(uint32(0)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("clear second program of device %d: %w", p.cfg.Ifindex, err)
	}
	return nil
}

// Sockets is the map of the port's sockets. It is another one after Move and an Update to another number of queues.
func (p *Program) Sockets() *ebpf.Map { return p.xsks }

// Steered is the map of the program's counters.
func (p *Program) Steered() *ebpf.Map { return p.counters }

// Ups is how many frames have gone to the socket of each queue. It is another map when Sockets is.
func (p *Program) Ups() *ebpf.Map { return p.ups }

// Up is that of one queue as the programs count it. It may be read until Close.
func (p *Program) Up(queue int) *atomic.Uint64 {
	_ = p.upsMem[queue*upsSize : (queue+1)*upsSize] // a queue that there is not is a panic, and no look behind the mapping
	return (*atomic.Uint64)(unsafe.Pointer(&p.upsMem[queue*upsSize]))
}

// Close lets go of the program. If attached it stays attached, and closed once the sockets are: Release alone takes it off. Idempotent.
func (p *Program) Close() (err error) {
	p.forget()
	for _, m := range append(p.old, p.upsMem) {
		if m != nil {
			err = errors.Join(err, unix.Munmap(m))
		}
	}
	p.old, p.upsMem = nil, nil
	return errors.Join(err, p.prog.Close(), p.xsks.Close(), p.counters.Close(), p.second.Close(), p.ups.Close())
}
