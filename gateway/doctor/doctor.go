package doctor

import (
	"cmp"

	"demarc/configs"
	"demarc/gateway/xsk"
)

// Level is how bad a finding is.
type Level uint8

// The levels.
const (
	OK   Level = iota
	Info       // worth knowing
	Warn       // works, but not as well as it could, or could not be looked at
	Bad        // the gateway cannot start, or would forward wrongly
)

var levelText = [...]string{"ok", "info", "warn", "bad"}

// String returns the level's lower-case name.
func (l Level) String() string {
	if int(l) < len(levelText) {
		return levelText[l]
	}
	return "invalid"
}

// MarshalText writes the name, so that --json prints it.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// Finding is one thing looked at.
type Finding struct {
	Level   Level  `json:"level"`
	Subject string `json:"subject"` // "kernel", "port wan0", "workers", …
	What    string `json:"what"`    // what was found
	Why     string `json:"why,omitempty"`
	Mend    string `json:"mend,omitempty"` // the exact line to run
}

// Check looks at this machine with the eyes of node. node may be nil: then only the machine itself is looked at.
func Check(node *configs.Node) []Finding { return New().Check(node) }

// Doctor is Check with its instruments, which may be replaced before Check.
type Doctor struct {
	// Probe tries a zero-copy socket on one queue. It is asked only where the driver claims to have zero-copy.
	Probe func(ifindex, queue int) (zerocopy bool, why string)
	// Attached tells what XDP program sits on a device and whether it is demarc's.
	Attached func(ifindex int) (name string, id uint32, mode string, ours bool, err error)

	sys system
	out []Finding
}

// New returns a Doctor with all real instruments.
func New() *Doctor { return &Doctor{Probe: xsk.Probe, Attached: xsk.Attached, sys: thisMachine()} }

// Check looks and tells, in a fixed order: the machine, where it meets its cluster, the workers, then port by port.
func (d *Doctor) Check(node *configs.Node) []Finding {
	d.out = nil
	need := d.memoryNeeded(node)
	d.privileges()
	d.kernel()
	d.memory(need)
	d.clock()
	if node != nil {
		d.cluster(node)
		d.asked(node)
		queues := 0
		links := d.links(node)
		for _, l := range links {
			queues = max(queues, l.RxQueues)
		}
		d.workers(node, queues)
		for i := range node.Ports {
			p := &node.Ports[i]
			if l, ok := links[p.Device]; ok {
				d.port(node, p, &l)
			}
		}
	}
	return d.out
}

func (d *Doctor) say(l Level, subject, what, why, mend string) {
	d.out = append(d.out, Finding{Level: l, Subject: subject, What: what, Why: why, Mend: mend})
}

// portName is what a finding about p is about.
func portName(p *configs.Port) string { return "port " + cmp.Or(p.Name, p.Device) }
