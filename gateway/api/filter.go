package api

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Check says what no node could make sense of.
func (f SessionFilter) Check() error {
	if f.Port < 0 || f.Port > 65535 {
		return fmt.Errorf("port %d: want 1 to 65535", f.Port)
	}
	if _, err := f.Prefix(); err != nil {
		return err
	}
	_, err := f.Protocol()
	return err
}

// Prefix is Address as a prefix, the zero one where there is none.
func (f SessionFilter) Prefix() (p netip.Prefix, err error) {
	if f.Address == "" {
		return p, nil
	}
	if p, err = netip.ParsePrefix(f.Address); err == nil {
		if p != p.Masked() {
			return p, fmt.Errorf("address %s has bits beyond its length: did you mean %s or %s?", f.Address, p.Masked(), p.Addr())
		}
		return p, nil
	}
	a, err := netip.ParseAddr(f.Address)
	if err != nil {
		return p, fmt.Errorf("address %q is neither an address nor a prefix", f.Address)
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// Protocol is the number of Proto, -1 where there is none.
func (f SessionFilter) Protocol() (int, error) {
	switch strings.ToLower(f.Proto) {
	case "":
		return -1, nil
	case "icmp":
		return 1, nil
	case "tcp":
		return 6, nil
	case "udp":
		return 17, nil
	case "icmpv6":
		return 58, nil
	}
	n, err := strconv.Atoi(f.Proto)
	if err != nil || n < 0 || n > 255 {
		return 0, fmt.Errorf("proto %q is none of tcp, udp, icmp, icmpv6 or a number up to 255", f.Proto)
	}
	return n, nil
}
