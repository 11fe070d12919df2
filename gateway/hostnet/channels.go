package hostnet

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Channels is how many queues a device has and could have: for receive, for transmit, and for both at once (combined). A driver has
// one kind or the other.
type Channels struct {
	Rx          int `json:"rx,omitempty"`
	Tx          int `json:"tx,omitempty"`
	Combined    int `json:"combined,omitempty"`
	MaxRx       int `json:"-"`
	MaxTx       int `json:"-"`
	MaxCombined int `json:"-"`
}

// String writes what ethtool -L takes.
func (c Channels) String() string {
	var s []string
	for _, x := range []struct {
		name string
		n    int
	}{{"combined", c.Combined}, {"rx", c.Rx}, {"tx", c.Tx}} {
		if x.n > 0 {
			s = append(s, fmt.Sprintf("%s %d", x.name, x.n))
		}
	}
	return strings.Join(s, " ")
}

// Same reports whether the counts are equal, whatever the device could have.
func (c Channels) Same(o Channels) bool {
	return c.Rx == o.Rx && c.Tx == o.Tx && c.Combined == o.Combined
}

// Queues is how many a device has that both receive and send.
func (c Channels) Queues() int { return c.Combined + min(c.Rx, c.Tx) }

// Most is how many such queues it could have.
func (c Channels) Most() int { return max(c.MaxCombined, min(c.MaxRx, c.MaxTx)) }

// With is n queues that both receive and send, and no others.
func (c Channels) With(n int) Channels {
	if c.MaxCombined > 0 {
		c.Combined, c.Rx, c.Tx = n, 0, 0
	} else {
		c.Rx, c.Tx = n, n
	}
	return c
}

// ReadChannels asks the driver. The error wraps ErrNotFound or ErrNotSupported.
func ReadChannels(name string) (c Channels, err error) {
	answer, err := genl("ethtool", unix.ETHTOOL_MSG_CHANNELS_GET, 0, header(unix.ETHTOOL_A_CHANNELS_HEADER, name))
	if err == nil && len(answer) == 0 {
		err = ErrNotSupported
	}
	if err != nil {
		return c, fmt.Errorf("read queues of %s: %w", name, err)
	}
	into := map[uint16]*int{
		unix.ETHTOOL_A_CHANNELS_RX_COUNT: &c.Rx, unix.ETHTOOL_A_CHANNELS_TX_COUNT: &c.Tx, unix.ETHTOOL_A_CHANNELS_COMBINED_COUNT: &c.Combined,
		unix.ETHTOOL_A_CHANNELS_RX_MAX: &c.MaxRx, unix.ETHTOOL_A_CHANNELS_TX_MAX: &c.MaxTx, unix.ETHTOOL_A_CHANNELS_COMBINED_MAX: &c.MaxCombined,
	}
	for _, a := range answer[0] {
		if p := into[a.typ]; p != nil && len(a.value) == 4 {
			*p = int(binary.NativeEndian.Uint32(a.value))
		}
	}
	return c, nil
}

// SetChannels gives a device as many queues as c counts. Many drivers take the link down for a moment.
func SetChannels(name string, c Channels) error {
	now, err := ReadChannels(name)
	if err != nil {
		return err
	}
	attrs := []*nl.RtAttr{header(unix.ETHTOOL_A_CHANNELS_HEADER, name)}
	for _, x := range []struct{ typ, was, want int }{
		{unix.ETHTOOL_A_CHANNELS_RX_COUNT, now.Rx, c.Rx}, {unix.ETHTOOL_A_CHANNELS_TX_COUNT, now.Tx, c.Tx},
		{unix.ETHTOOL_A_CHANNELS_COMBINED_COUNT, now.Combined, c.Combined},
	} {
		if x.was != x.want { // a driver refuses a kind that it has not, even if it is asked for none
			attrs = append(attrs, nl.NewRtAttr(x.typ, nl.Uint32Attr(uint32(x.want))))
		}
	}
	if len(attrs) == 1 {
		return nil
	}
	if _, err := genl("ethtool", unix.ETHTOOL_MSG_CHANNELS_SET, unix.NLM_F_ACK, attrs...); err != nil {
		return fmt.Errorf("set queues of %s to %s: %w", name, c, err)
	}
	return nil
}

// CPUs is one more than the highest number that a CPU of the machine can have (sysfs: devices/system/cpu/possible, "0-3,8").
func CPUs() (int, error) {
	b, err := os.ReadFile("/sys/devices/system/cpu/possible")
	if err != nil {
		return 0, err
	}
	text := strings.TrimSpace(string(b))
	n, err := strconv.Atoi(text[strings.LastIndexAny(text, "-,")+1:])
	if err != nil {
		return 0, fmt.Errorf("possible CPUs %q: %w", text, err)
	}
	return n + 1, nil
}
