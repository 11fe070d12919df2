package doctor

import "demarc/configs"

// Level is how bad a finding is.
type Level uint8

const (
	OK Level = iota
	Info
	Warn
	Bad // the gateway cannot start, or would forward wrongly
)

var levelText = [...]string{"ok", "info", "warn", "bad"}

// String returns the level's lower-case name.
func (l Level) String() string { return levelText[l&3] }

// MarshalText writes the name, so that --json prints it.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// Finding is one thing looked at.
type Finding struct {
	Level   Level  `json:"level"`
	Subject string `json:"subject"` // "kernel", "port wan0", "worker 1", …
	What    string `json:"what"`    // what was found
	Why     string `json:"why,omitempty"`
	Mend    string `json:"mend,omitempty"` // the exact line to run
}

// Check looks at this machine with the eyes of node. node may be nil: then only the machine itself is looked at.
func Check(node *configs.Node) []Finding { return New().Check(node) }

// Doctor is Check with its instruments; the zero value of each hook means the real one.
type Doctor struct {
	// Probe tries a zero-copy socket on one queue (xsk.Probe).
	Probe func(ifindex, queue int) (zerocopy bool, why string)
	// Attached tells what XDP program sits on a device and whether it is demarc's (xsk.Attached).
	Attached func(ifindex int) (name string, id uint32, mode string, ours bool, err error)
}

// New returns a Doctor with all real instruments.
func New() *Doctor { return &Doctor{} }

// Check looks and tells.
func (d *Doctor) Check(node *configs.Node) []Finding { return nil }
