package configs

import (
	"fmt"
	"math/bits"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// MaxRate is the fastest line that can be written: 10 Tbit/s, far above any port and far below an overflow.
const MaxRate Rate = 10_000_000_000_000

// UnmarshalText reads "90s", "2h4m", "1.5s". A number without a unit and a negative duration are errors.
func (d *Duration) UnmarshalText(text []byte) error {
	s := string(text)
	v, err := time.ParseDuration(s)
	if err != nil || strings.HasPrefix(s, "+") || strings.HasPrefix(s, "-") {
		return fmt.Errorf("%s is not a duration: write it with units, such as \"90s\", \"2h4m\" or \"20ms\"", quote(s))
	}
	d.Duration = v
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String is the shortest text for the duration: "2h4m" and not "2h4m0s".
func (d Duration) String() string {
	s := d.Duration.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// UnmarshalText reads "20M", "1.5G", "64k", "250000": bits per second with decimal prefixes k, M, G, T. What does not come
// out as a whole number of bits is an error, and so are other spellings (K, m, Mbit), since they mean other things elsewhere.
func (r *Rate) UnmarshalText(text []byte) error {
	s := string(text)
	if len(s) > 32 {
		return fmt.Errorf("%s is not a rate", quote(s))
	}
	num, zeros := s, 0
	if n := len(s); n > 0 {
		if i := strings.IndexByte("kMGT", s[n-1]); i >= 0 {
			num, zeros = s[:n-1], 3*(i+1)
		}
	}
	whole, frac, dot := strings.Cut(num, ".")
	if !digits(whole) || dot && !digits(frac) || len(frac) > zeros {
		return fmt.Errorf("%s is not a rate: write bits per second, such as \"20M\", \"1.5G\", \"64k\" or 250000", quote(s))
	}
	v, err := strconv.ParseUint(whole+frac, 10, 64)
	for i := len(frac); i < zeros && err == nil; i++ {
		hi, lo := bits.Mul64(v, 10)
		if v = lo; hi != 0 {
			err = strconv.ErrRange
		}
	}
	if err != nil || Rate(v) > MaxRate {
		return fmt.Errorf("%s is more than %s bit/s", quote(s), MaxRate)
	}
	*r = Rate(v)
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// String is the shortest exact text: "1500M" for 1,500,000,000 (whole numbers only), "0" for no limit.
func (r Rate) String() string {
	v, unit := uint64(r), ""
	for _, u := range []string{"k", "M", "G", "T"} {
		if v == 0 || v%1000 != 0 {
			break
		}
		v, unit = v/1000, u
	}
	return strconv.FormatUint(v, 10) + unit
}

func digits(s string) bool {
	if s == "" {
		return false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// parseAddr reads an address without zone; an IPv4 address in IPv6 clothes is refused, since it would never match.
func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return a, fmt.Errorf("is not an address")
	case a.Zone() != "":
		return netip.Addr{}, fmt.Errorf("has a zone")
	case a.Is4In6():
		return netip.Addr{}, fmt.Errorf("is IPv4 written as IPv6: write %s", quote(a.Unmap().String()))
	}
	return a, nil
}

// parseHop reads a next hop. A link-local one may name its interface, as "fe80::1%transit".
func parseHop(s string) (netip.Addr, error) {
	if bare, iface, ok := strings.Cut(s, "%"); ok {
		a, err := parseAddr(bare)
		if err != nil {
			return a, err
		}
		if !a.Is6() || !a.IsLinkLocalUnicast() || iface == "" {
			return netip.Addr{}, fmt.Errorf("has a zone: only a link-local IPv6 address may name its interface, as \"fe80::1%%transit\"")
		}
		return a.WithZone(iface), nil
	}
	return parseAddr(s)
}

// parsePrefix reads address/length and keeps the host bits: who must not have any checks for them.
func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		if a, err := parseAddr(s); err == nil {
			return p, fmt.Errorf("has no prefix length: for one address write %s", quote(netip.PrefixFrom(a, a.BitLen()).String()))
		}
		return p, fmt.Errorf("is not a prefix: write it as \"192.0.2.0/24\" or \"2001:db8::/64\"")
	case p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("is IPv4 written as IPv6")
	}
	return p, nil
}
