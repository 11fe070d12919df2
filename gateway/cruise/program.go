package cruise

import (
	"errors"
	"fmt"
	"maps"

	"github.com/cilium/ebpf"

	"demarc/gateway/conntrack"
	"demarc/gateway/cruise/bpf"
)

// Program is the program of one port, loaded and not attached.
type Program struct {
	prog     *ebpf.Program
	counters *ebpf.Map
}

// Load loads the program of a port; sockets, steered and ups are the maps of its steering program (xsk), which calls it: where frames go up, and where they are counted, by what became of them and by queue.
func (t *Tables) Load(port uint16, sockets, steered, ups *ebpf.Map) (*Program, error) {
	spec, err := bpf.LoadCruise()
	if err != nil {
		return nil, err
	}
	return t.load(spec, port, map[string]*ebpf.Map{bpf.CruiseMapXsks: sockets, bpf.CruiseMapSteered: steered, bpf.CruiseMapUps: ups})
}

func (t *Tables) load(spec *ebpf.CollectionSpec, port uint16, of map[string]*ebpf.Map) (*Program, error) {
	c := &t.cfg
	s := settings{Ahead: c.Ahead, Port: uint32(port), Workers: uint32(len(c.Seeds)), Slots: uint32(c.Sessions), Stride: uint32(t.stride), Lines: uint32(conntrack.Lines(c.Sessions))}
	if err := spec.Variables[bpf.CruiseVarSettings].Set(s); err != nil {
		return nil, fmt.Errorf("load cruise program of port %d: %w", port, err)
	}
	maps := maps.Clone(t.maps)
	for name, m := range of {
		maps[name] = m
	}
	for name, m := range maps {
		spec.Maps[name].MaxEntries = m.MaxEntries()
	}
	var o bpf.CruiseObjects
	if err := spec.LoadAndAssign(&o, &ebpf.CollectionOptions{MapReplacements: maps}); err != nil {
		return nil, fmt.Errorf("load cruise program of port %d: %w", port, err)
	}
	p := &Program{prog: o.DemarcCruise, counters: o.Counters}
	o.DemarcCruise, o.Counters = nil, nil
	// The program holds what it uses.
	if err := o.CruiseMaps.Close(); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// FD is the program's descriptor, for who puts it into a program array.
func (p *Program) FD() int { return p.prog.FD() }

// Close lets go of the program. Idempotent.
func (p *Program) Close() error {
	return errors.Join(p.prog.Close(), p.counters.Close())
}
