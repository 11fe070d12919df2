package xsk

import "fmt"

// Mode is how frames get between driver and UMEM.
type Mode uint8

// The modes. Auto is a wish that somebody resolves with Probe and Program.Attach before Open.
const (
	Auto     Mode = iota
	ZeroCopy      // the driver reads and writes the UMEM itself
	Copy          // native XDP, the kernel copies
	Generic       // XDP on finished skbs, the kernel copies: works on every device, slowly
)

// GenericCost is what generic mode costs, for messages; docs/operations.md has what was measured.
const GenericCost = "costs a kernel buffer for each packet before the gateway sees it, and a copy out of it"

var modeText = [...]string{Auto: "auto", ZeroCopy: "zerocopy", Copy: "copy", Generic: "generic"}

// String returns the mode as the node file writes it.
func (m Mode) String() string {
	if int(m) < len(modeText) {
		return modeText[m]
	}
	return "invalid"
}

// ParseMode reads a mode as the node file writes it.
func ParseMode(s string) (Mode, error) {
	for m, t := range modeText {
		if s == t {
			return Mode(m), nil
		}
	}
	return Auto, fmt.Errorf("mode %q: must be zerocopy, copy, generic or auto", s)
}

// Probe tries a zero-copy bind of one queue alone, on a UMEM of its own, and lets go again. The queue must be free. why
// says what stood against it.
func Probe(ifindex, queue int) (zerocopy bool, why string) {
	u, err := NewUMEM(64, 2048)
	if err != nil {
		return false, err.Error()
	}
	defer u.Close()
	s, err := Open(u, SocketConfig{Ifindex: ifindex, Queue: queue, RxSize: 64, TxSize: 64, FillSize: 64, CompSize: 64, Mode: ZeroCopy, NeedWakeup: true})
	if err != nil {
		return false, err.Error()
	}
	if err := s.Close(); err != nil {
		return true, err.Error()
	}
	return true, ""
}
