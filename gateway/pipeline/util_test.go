package pipeline

import (
	"net"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/nat"
)

type sessionT = conntrack.Session

func flowID(i int) flow.TenantID { return flow.TenantID(i) }

func replaceOnce(t *testing.T, s, old, new string) string {
	t.Helper()
	if strings.Count(s, old) != 1 {
		t.Fatalf("%q is there %d times", old, strings.Count(s, old))
	}
	return strings.Replace(s, old, new, 1)
}

func udp6(t testing.TB) []byte {
	return frame(t, eth(macs[1], layers.EthernetTypeIPv6), &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP,
		SrcIP: net.ParseIP("2001:db8:a::11"), DstIP: net.ParseIP("2001:db8:ff::11")}, udp(4000, 53), gopacket.Payload("x"))
}

// icmpError is a time exceeded from src to dst that quotes the IP packet.
func icmpError(t testing.TB, port int, src, dst string, quoted []byte) []byte {
	return frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip4(src, dst, layers.IPProtocolICMPv4),
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(11, 0)}, gopacket.Payload(quoted[:28]))
}

func classOf(proto uint8) nat.Class {
	c, _ := nat.ClassOf(proto)
	return c
}
