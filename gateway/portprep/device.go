package portprep

import (
	"errors"
	"fmt"
	"slices"

	"demarc/gateway/hostnet"
)

// device is the driver's side. The kernel's is the only one but for those of the tests.
type device interface {
	Offloads(name string) (hostnet.Offloads, error)
	SetOffload(name string, o hostnet.Offload, on bool) error
	Channels(name string) (hostnet.Channels, error)
	SetChannels(name string, c hostnet.Channels) error
	RSS(name string) ([]uint32, error)
	SetRSS(name string, table []uint32) error
}

type kernel struct{}

func (kernel) Offloads(name string) (hostnet.Offloads, error) { return hostnet.ReadOffloads(name) }
func (kernel) SetOffload(name string, o hostnet.Offload, on bool) error {
	return hostnet.SetOffloads(name, on, o)
}
func (kernel) Channels(name string) (hostnet.Channels, error)    { return hostnet.ReadChannels(name) }
func (kernel) SetChannels(name string, c hostnet.Channels) error { return hostnet.SetChannels(name, c) }
func (kernel) RSS(name string) ([]uint32, error)                 { return hostnet.ReadRSS(name) }
func (kernel) SetRSS(name string, table []uint32) error          { return hostnet.SetRSS(name, table) }

// Setting names that are no offload's.
const (
	queues = "queues"
	rss    = "rss"
)

// value is a setting as it can be written again: of an offload on or off, of queues their counts, of RSS the table.
type value struct {
	On       bool              `json:"on,omitempty"`
	Channels *hostnet.Channels `json:"channels,omitempty"`
	Table    []uint32          `json:"table,omitempty"`
}

func (v *value) same(o *value) bool {
	if v.Channels != nil && o.Channels != nil {
		return v.Channels.Same(*o.Channels)
	}
	return v.On == o.On && slices.Equal(v.Table, o.Table)
}

// String is for people.
func (v *value) String() string {
	switch {
	case v.Channels != nil:
		return v.Channels.String()
	case v.Table != nil:
		n := slices.Max(v.Table) + 1
		if even(v.Table, int(n)) {
			return fmt.Sprintf("even over %d queues", n)
		}
		return fmt.Sprintf("%d of %d queues, unevenly", len(slices.Compact(slices.Sorted(slices.Values(v.Table)))), n)
	case v.On:
		return "on"
	}
	return "off"
}

// even reports whether a table spreads packets over exactly n queues, each within one entry of the others.
func even(table []uint32, n int) bool {
	count := make([]int, n)
	for _, q := range table {
		if int(q) >= n {
			return false
		}
		count[q]++
	}
	return len(table) > 0 && slices.Max(count)-slices.Min(count) <= 1
}

func spread(size, n int) []uint32 {
	t := make([]uint32, size)
	for i := range t {
		t[i] = uint32(i % n)
	}
	return t
}

// read reads one setting; nil when the device has none of that kind.
func read(d device, name, what string) (*value, error) {
	none := func(err error) bool { return errors.Is(err, hostnet.ErrNotSupported) }
	switch what {
	case queues:
		c, err := d.Channels(name)
		if none(err) || err == nil && c.Most() == 0 {
			return nil, nil
		}
		return &value{Channels: &c}, err
	case rss:
		t, err := d.RSS(name)
		if none(err) {
			return nil, nil
		}
		return &value{Table: t}, err
	}
	o, ok := hostnet.ParseOffload(what)
	if !ok {
		return nil, fmt.Errorf("no setting is called %q", what)
	}
	all, err := d.Offloads(name)
	if none(err) {
		return nil, nil
	}
	return &value{On: all[o].On}, err
}

// write sets one setting and looks whether the driver did it.
func write(d device, name, what string, v *value) (err error) {
	switch {
	case what == queues && v.Channels != nil:
		err = d.SetChannels(name, *v.Channels)
	case what == rss && len(v.Table) > 0:
		t := v.Table
		if slices.Equal(t, spread(len(t), int(slices.Max(t))+1)) {
			// Perhaps the driver's own, which follows the number of queues; one that was set stays and stands in the way of fewer.
			if d.SetRSS(name, nil) == nil {
				if now, err := d.RSS(name); err == nil && slices.Equal(now, t) {
					return nil
				}
			}
		}
		err = d.SetRSS(name, t)
	default:
		o, ok := hostnet.ParseOffload(what)
		if !ok {
			return fmt.Errorf("no setting is called %q", what)
		}
		err = d.SetOffload(name, o, v.On)
	}
	if err != nil {
		return err
	}
	now, err := read(d, name, what)
	if err == nil && (now == nil || !now.same(v)) {
		err = fmt.Errorf("%s of %s: the driver says yes and does not do it: %w", what, name, hostnet.ErrNotSupported)
	}
	return err
}
