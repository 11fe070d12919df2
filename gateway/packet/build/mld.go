package build

import (
	"demarc/gateway/flow"
	"demarc/gateway/packet"
	"demarc/gateway/packet/csum"
)

const (
	mldReport = 143 // ICMPv6 type, RFC 3810 section 5.2
	mldFixed  = 8   // before its records
	mldRecord = 20  // without sources
	alertLen  = 8   // a hop-by-hop header with the router alert option

	// Types of records, RFC 3810 section 5.2.12.
	modeIsExclude       = 2
	changeToExcludeMode = 4
)

// allMLDv2 is whom reports go to, ff02::16, RFC 3810 section 5.2.14.
var (
	allMLDv2    = [16]byte{0: 0xff, 1: 0x02, 15: 0x16}
	allMLDv2MAC = [6]byte{0x33, 0x33, 0, 0, 0, 0x16}
)

// MLDReport writes a Version 2 Multicast Listener Report (RFC 3810 section 5.2): srcIP, a link-local address, at srcMAC listens to groups, whoever sends there. joined says that it is new (a State Change Report).
// It returns the frame's length, 0 when buf is too short: 70 bytes, 20 for each group, 4 for a tag.
func MLDReport(buf []byte, srcMAC [6]byte, srcIP [16]byte, groups [][16]byte, joined bool, vlan uint16) int {
	l2 := ethLen
	if vlan != 0 {
		l2 += 4
	}
	n := mldFixed + mldRecord*len(groups)
	end := l2 + ip6Len + alertLen + n
	if len(buf) < end {
		return 0
	}
	buf = buf[:end]
	ethernet(buf, allMLDv2MAC, srcMAC, vlan, packet.EtherIPv6)
	header6(buf[l2:], 0, alertLen+n, 0, 1, srcIP, allMLDv2)
	copy(buf[l2+ip6Len:], []byte{flow.ICMPv6, 0, 5, 2, 0, 0, 1, 0}) // RFC 2711: router alert, of MLD; then PadN
	t := buf[l2+ip6Len+alertLen:]
	clear(t)
	t[0] = mldReport
	be.PutUint16(t[6:8], uint16(len(groups)))
	for i := range groups {
		r := t[mldFixed+i*mldRecord:]
		r[0] = modeIsExclude
		if joined {
			r[0] = changeToExcludeMode
		}
		copy(r[4:20], groups[i][:])
	}
	be.PutUint16(t[2:4], csum.Checksum(csum.Sum(csum.Pseudo6(&srcIP, &allMLDv2, flow.ICMPv6, n), t)))
	return end
}
