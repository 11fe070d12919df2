package bench

import (
	"time"

	"demarc/gateway/netlab"
)

// far wires nodes of a trio by lines: those in wait by one that takes so long one way, the others by a cable.
type far struct {
	wait  map[string]time.Duration
	lines []*netlab.Line
}

func (f *far) wire(l *netlab.Lab, e netlab.End) error {
	wait, ok := f.wait[e.NS]
	if !ok {
		return l.Plug("net", e, 1, 1500)
	}
	n, err := l.PlugByLine("net", e, netlab.LineFault{Wait: wait})
	if err == nil {
		f.lines = append(f.lines, n)
	}
	return err
}

// lost is what the lines lost, of what they moved, and how late a frame was at most.
func (f *far) lost() (lost, moved uint64, late time.Duration) {
	for _, n := range f.lines {
		lost, moved, late = lost+n.Lost.Load(), moved+n.Moved.Load(), max(late, n.Late())
	}
	return lost, moved, late
}
