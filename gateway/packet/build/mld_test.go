package build

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/gateway/packet"
	"demarc/gateway/verdict"
)

// A report is read by another library as what was meant, is what a switch wants (RFC 3810 section 5.2: link-local source, hop limit 1, router alert), and has the checksum that the library makes.
func TestMLDReport(t *testing.T) {
	mac, src := [6]byte{2, 0, 0, 0, 0, 1}, netip.MustParseAddr("fe80::1").As16()
	groups := [][16]byte{netip.MustParseAddr("ff02::1:ff00:1").As16(), netip.MustParseAddr("ff02::1:ffab:cdef").As16()}
	for _, vlan := range []uint16{0, 7} {
		for joined, typ := range map[bool]layers.MLDv2MulticastAddressRecordType{true: 4, false: 2} {
			var buf [256]byte
			n := MLDReport(buf[:], mac, src, groups, joined, vlan)
			want := 110
			if vlan != 0 {
				want += 4
			}
			if n != want {
				t.Fatalf("%d bytes, want %d", n, want)
			}
			if MLDReport(buf[:n-1], mac, src, groups, joined, vlan) != 0 {
				t.Error("written into what is too short for it")
			}
			MLDReport(buf[:n], mac, src, groups, joined, vlan)
			frame := buf[:n]
			p := packet.Packet{Buf: bytes.Clone(frame), Len: n}
			if r := packet.Parse(&p); r != verdict.Pass || p.VLAN != vlan {
				t.Errorf("our own parser says %v, VLAN %d", r, p.VLAN)
			}
			g := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
			if e := g.ErrorLayer(); e != nil {
				t.Fatalf("gopacket: %v", e.Error())
			}
			eth := g.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
			ip := g.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
			if eth.DstMAC.String() != "33:33:00:00:00:16" || ip.DstIP.String() != "ff02::16" || ip.SrcIP.String() != "fe80::1" || ip.HopLimit != 1 {
				t.Errorf("to %s, from %s to %s, hop limit %d", eth.DstMAC, ip.SrcIP, ip.DstIP, ip.HopLimit)
			}
			hop, ok := g.Layer(layers.LayerTypeIPv6HopByHop).(*layers.IPv6HopByHop)
			if !ok || len(hop.Options) == 0 || hop.Options[0].OptionType != 5 || !bytes.Equal(hop.Options[0].OptionData, []byte{0, 0}) {
				t.Errorf("no router alert for MLD (RFC 2711): %+v", hop)
			}
			m, ok := g.Layer(layers.LayerTypeMLDv2MulticastListenerReport).(*layers.MLDv2MulticastListenerReportMessage)
			if !ok || len(m.MulticastAddressRecords) != 2 {
				t.Fatalf("gopacket reads %v", g)
			}
			for i, r := range m.MulticastAddressRecords {
				if r.RecordType != typ || len(r.SourceAddresses) != 0 || !r.MulticastAddress.Equal(groups[i][:]) {
					t.Errorf("record %d: %+v", i, r)
				}
			}
			icmp := g.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
			_ = icmp.SetNetworkLayerForChecksum(ip)
			sum := icmp.Checksum
			out := gopacket.NewSerializeBuffer()
			if err := gopacket.SerializeLayers(out, gopacket.SerializeOptions{ComputeChecksums: true}, icmp, gopacket.Payload(icmp.Payload)); err != nil {
				t.Fatal(err)
			}
			if icmp.Checksum != sum {
				t.Errorf("checksum %#04x, gopacket has %#04x", sum, icmp.Checksum)
			}
		}
	}
}
