package zerocopy

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/gateway/netlab/roottest"
)

// TestZeroCopy boots the project's own binary and demands that every case holds.
func TestZeroCopy(t *testing.T) {
	if testing.Short() {
		roottest.Missing(t, "the time to boot a guest, which -short does not give")
	}
	binary, err := gatewayProgram()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	var out bytes.Buffer
	err = run(ctx, options{binary: binary, out: &out})
	t.Log("\n" + out.String())
	var u unavailable
	switch {
	case errors.As(err, &u):
		roottest.Missing(t, "a guest to show it in: %v", err)
	case err != nil:
		t.Fatal(err)
	}
}

// TestFrames holds the frame builder against a decoder that others wrote: every field, and both checksums.
func TestFrames(t *testing.T) {
	v4, r4 := netip.MustParseAddr("198.18.10.20"), netip.MustParseAddr("203.0.113.1")
	v6, r6 := netip.MustParseAddr("2001:db8:a::10"), netip.MustParseAddr("2001:db8:77::1")
	for _, n := range []int{0, 1, 31, 1001, 1460} {
		for name, m := range map[string]message{
			"udp4":  {src: v4, dst: r4, proto: protoUDP, sport: 5000, dport: 53},
			"tcp4":  {src: v4, dst: r4, proto: protoTCP, sport: 5000, dport: 443, tcpSeq: 0xfffffff0, tcpAck: 7, tcpFlags: 0x18},
			"icmp4": {src: v4, dst: r4, proto: protoICMP, sport: 77, dport: 9, icmpType: 8},
			"udp6":  {src: v6, dst: r6, proto: protoUDP, sport: 5000, dport: 53},
			"tcp6":  {src: v6, dst: r6, proto: protoTCP, sport: 5000, dport: 443, tcpFlags: 2},
		} {
			m.from, m.to, m.ttl, m.tos, m.id = mac{2, 0, 0, 0, 0, 1}, mac{2, 0, 0, 0, 0, 2}, 63, 0xb8, 0xbeef
			for i := range n {
				m.payload = append(m.payload, byte(i*13))
			}
			got := m.frame()
			eth := &layers.Ethernet{SrcMAC: m.from[:], DstMAC: m.to[:]}
			stack := []gopacket.SerializableLayer{eth}
			var net gopacket.NetworkLayer
			if m.src.Is4() {
				eth.EthernetType = layers.EthernetTypeIPv4
				ip := &layers.IPv4{Version: 4, IHL: 5, TOS: m.tos, TTL: m.ttl, Id: m.id, Protocol: layers.IPProtocol(m.proto), SrcIP: m.src.AsSlice(), DstIP: m.dst.AsSlice()}
				net, stack = ip, append(stack, ip)
			} else {
				eth.EthernetType = layers.EthernetTypeIPv6
				ip := &layers.IPv6{Version: 6, TrafficClass: m.tos, HopLimit: m.ttl, NextHeader: layers.IPProtocol(m.proto), SrcIP: m.src.AsSlice(), DstIP: m.dst.AsSlice()}
				net, stack = ip, append(stack, ip)
			}
			switch m.proto {
			case protoUDP:
				l := &layers.UDP{SrcPort: layers.UDPPort(m.sport), DstPort: layers.UDPPort(m.dport)}
				_ = l.SetNetworkLayerForChecksum(net)
				stack = append(stack, l)
			case protoTCP:
				l := &layers.TCP{SrcPort: layers.TCPPort(m.sport), DstPort: layers.TCPPort(m.dport), Seq: m.tcpSeq, Ack: m.tcpAck, SYN: m.tcpFlags&2 != 0, PSH: m.tcpFlags&8 != 0, ACK: m.tcpFlags&16 != 0, Window: 64000}
				_ = l.SetNetworkLayerForChecksum(net)
				stack = append(stack, l)
			default:
				stack = append(stack, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(m.icmpType, 0), Id: m.sport, Seq: m.dport})
			}
			buf := gopacket.NewSerializeBuffer()
			if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, append(stack, gopacket.Payload(m.payload))...); err != nil {
				t.Fatal(err)
			}
			want := buf.Bytes()
			if short := 14 + 20 + 8 + n; len(want) > len(got) && short < 60 { // gopacket pads
				want = want[:len(got)]
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s with %d bytes:\n got % x\nwant % x", name, n, got, want)
			}
		}
	}
}

// console is what a guest prints that reports the given checks of both cases, with changes.
func console(change func(name, check string, r *record) bool) string {
	var out bytes.Buffer
	out.WriteString("[    0.1] kernel line\r\n")
	(&record{Boot: "7.0"}).write(&out)
	for _, c := range forwarding.cases {
		for _, k := range forwarding.checks {
			r := record{Case: c, Check: k, OK: true, Detail: "d", Frames: 2}
			if change(c, k, &r) {
				r.write(&out)
			}
		}
		r := record{Case: c, End: true}
		if change(c, "end", &r) {
			r.write(&out)
		}
	}
	return strings.ReplaceAll(out.String(), "\n", "\r\n")
}

func TestVerdict(t *testing.T) {
	for name, tt := range map[string]struct {
		change  func(c, k string, r *record) bool
		ok      [2]bool
		ended   bool
		message string
	}{
		"all held":         {func(string, string, *record) bool { return true }, [2]bool{true, true}, true, ""},
		"one check failed": {func(c, k string, r *record) bool { r.OK = !(c == "copy" && k == "sockets"); return true }, [2]bool{true, false}, true, "sockets: d"},
		"one check is not there": {func(c, k string, r *record) bool { return !(c == "zerocopy" && k == "acl") }, [2]bool{false, true}, true,
			"acl: not reported"},
		"the control did not end": {func(c, k string, r *record) bool { return !(c == "copy" && k == "end") }, [2]bool{true, false}, false, ""},
		"nothing at all":          {func(string, string, *record) bool { return false }, [2]bool{false, false}, false, ""},
	} {
		s := forwarding.read(strings.NewReader(console(tt.change)))
		if s.kernel != "7.0" || s.fatal != "" {
			t.Errorf("%s: kernel %q, fatal %q", name, s.kernel, s.fatal)
		}
		for i, v := range s.list {
			if v.ok() != tt.ok[i] {
				t.Errorf("%s: %s is ok = %v, want %v (%v)", name, v.name, v.ok(), tt.ok[i], v.failed)
			}
		}
		if s.list[1].ended != tt.ended {
			t.Errorf("%s: ended = %v", name, s.list[1].ended)
		}
		var out bytes.Buffer
		err := tell(&out, s)
		if both := tt.ok[0] && tt.ok[1]; (err == nil) != both || !strings.Contains(out.String(), tt.message) {
			t.Errorf("%s: %v, %s", name, err, out.String())
		}
	}
}

// TestCPIO unpacks an archive with another program.
func TestCPIO(t *testing.T) {
	tool, err := exec.LookPath("cpio")
	var out bytes.Buffer
	if err := writeCPIO(&out, []entry{{name: "d", mode: modeDir}, {name: "d/file", mode: modeFile, data: []byte("abcde")}, {name: "x", mode: modeExec, data: []byte("12")}}); err != nil {
		t.Fatal(err)
	}
	if out.Len()%4 != 0 || !bytes.HasPrefix(out.Bytes(), []byte("070701")) || !bytes.Contains(out.Bytes(), []byte("TRAILER!!!\x00")) {
		t.Fatalf("not an archive: %q", out.Bytes())
	}
	if err != nil {
		return // the guest of TestZeroCopy unpacks one too
	}
	dir := t.TempDir()
	cmd := exec.Command(tool, "-i", "--quiet")
	cmd.Dir, cmd.Stdin = dir, &out
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v: %s", err, b)
	}
	for name, want := range map[string]string{"d/file": "abcde", "x": "12"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestKernelVersion(t *testing.T) {
	meta := "Package: linux-image-cloud-amd64\nDepends: linux-base-cloud-amd64 (= 7.3.4-1~bpo13+1), linux-image-7.3.4+deb13-cloud-amd64 (= 7.3.4-1~bpo13+1), linux-modules-cloud-amd64\n"
	if v, err := kernelVersion([]byte(meta)); err != nil || v != "7.3.4+deb13-cloud-amd64" {
		t.Errorf("got %q, %v", v, err)
	}
	if v, err := kernelVersion([]byte("Depends: linux-base\n")); err == nil {
		t.Errorf("got %q from nothing", v)
	}
}
