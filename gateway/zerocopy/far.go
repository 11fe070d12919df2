package zerocopy

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// far is the network card at the far end of a port: all hosts of that side, behind one address. It answers ARP and neighbour
// solicitations for the prefixes of owns but their .1 and ::1, which are the gateway's, as hosts do; every other frame goes to the judge.
// With a tag it stands for the hosts of that VLAN alone, and its judge sees frames without the tag.
type far struct {
	mac    mac
	vlan   uint16 // 0: untagged
	fd     int
	owns   []netip.Prefix
	frames chan []byte    // reader: wo, judge: ro
	told   chan neighbour // reader: wo, judge: ro; answers to what ask asked
	asked  atomic.Int64
	lost   atomic.Int64 // frames that the judge did not take
}

// neighbour is an address and whose it is.
type neighbour struct {
	addr netip.Addr
	mac  mac
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func openFar(ifindex int, m mac, vlan uint16, owns ...string) (*far, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	f := &far{mac: m, vlan: vlan, fd: fd, frames: make(chan []byte, 16384), told: make(chan neighbour, 64)}
	for _, p := range owns {
		f.owns = append(f.owns, netip.MustParsePrefix(p))
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20); err != nil {
		return nil, fmt.Errorf("packet socket: receive buffer: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: ifindex}); err != nil {
		return nil, fmt.Errorf("packet socket: bind: %w", err)
	}
	// A host joins the groups of its addresses; this one stands for many.
	if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &unix.PacketMreq{Ifindex: int32(ifindex), Type: unix.PACKET_MR_ALLMULTI}); err != nil {
		return nil, fmt.Errorf("packet socket: all multicast: %w", err)
	}
	// The kernel takes the tag off before a packet socket sees the frame, and tells it beside. A card that filters tags knows none of ours.
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
		return nil, fmt.Errorf("packet socket: auxiliary data: %w", err)
	}
	if vlan != 0 {
		if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &unix.PacketMreq{Ifindex: int32(ifindex), Type: unix.PACKET_MR_PROMISC}); err != nil {
			return nil, fmt.Errorf("packet socket: promiscuous: %w", err)
		}
	}
	go f.read()
	return f, nil
}

// read ends with the process, that is with the guest.
func (f *far) read() {
	buf, beside := make([]byte, 65536), make([]byte, 256)
	for {
		n, oob, _, from, err := unix.Recvmsg(f.fd, buf, beside, 0)
		if err != nil || tagOf(beside[:oob]) != f.vlan {
			continue
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		b := buf[:n]
		if f.resolution(b) {
			continue
		}
		select {
		case f.frames <- append([]byte(nil), b...):
		default:
			f.lost.Add(1)
		}
	}
}

// tagOf is the VLAN in a packet socket's auxiliary data; 0: none.
func tagOf(oob []byte) uint16 {
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for _, m := range list {
		// struct tpacket_auxdata: status, len, snaplen (32 bits each), mac, net, vlan_tci, vlan_tpid (16 bits each)
		if d := m.Data; m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA && len(d) >= 20 &&
			binary.NativeEndian.Uint32(d)&unix.TP_STATUS_VLAN_VALID != 0 {
			return binary.NativeEndian.Uint16(d[16:]) & 0xfff
		}
	}
	return 0
}

// resolution reports whether a frame belongs to neighbour resolution, after answering it.
func (f *far) resolution(b []byte) bool {
	if len(b) < 42 {
		return false
	}
	switch binary.BigEndian.Uint16(b[12:]) {
	case etherARP:
		target := netip.AddrFrom4([4]byte(b[38:42]))
		if b[21] == 1 && f.has(target) {
			f.asked.Add(1)
			_ = f.send(arp(2, f.mac, target, mac(b[22:28]), netip.AddrFrom4([4]byte(b[28:32]))))
		}
		if b[21] == 2 && mac(b[:6]) == f.mac {
			f.tell(netip.AddrFrom4([4]byte(b[28:32])), mac(b[22:28]))
		}
		return true
	case etherIPv6:
		if b[20] == 0 && len(b) >= 70 && b[54] == protoICMPv6 && b[62] == 143 { // behind a router alert: a multicast listener report, which is for switches
			return true
		}
		if b[20] != protoICMPv6 || len(b) < 14+40+24 || b[54] < 133 || b[54] > 137 {
			return false
		}
		src, target := netip.AddrFrom16([16]byte(b[22:38])), netip.AddrFrom16([16]byte(b[62:78]))
		if b[54] == 135 && f.has(target) && !src.IsUnspecified() {
			f.asked.Add(1)
			_ = f.send(advertisement(f.mac, target, mac(b[6:12]), src))
		}
		if b[54] == 136 && mac(b[:6]) == f.mac && len(b) >= 86 && b[78] == 2 && b[79] == 1 {
			f.tell(target, mac(b[80:86]))
		}
		return true
	}
	return false
}

func (f *far) tell(a netip.Addr, m mac) {
	select {
	case f.told <- neighbour{a, m}:
	default: // the judge has its answer already
	}
}

// ask resolves an address as the host own does: three times, a second apart.
func (f *far) ask(own, target netip.Addr) (mac, error) {
	for range 3 {
		q := solicitation(f.mac, own, target)
		if target.Is4() {
			q = arp(1, f.mac, own, mac{}, target)
		}
		if err := f.send(q); err != nil {
			return mac{}, err
		}
		for late := time.After(time.Second); ; {
			select {
			case n := <-f.told:
				if n.addr == target {
					return n.mac, nil
				}
				continue
			case <-late:
			}
			break
		}
	}
	return mac{}, fmt.Errorf("nobody answers for %s, asked three times", target)
}

func (f *far) has(a netip.Addr) bool {
	for _, p := range f.owns {
		if p.Contains(a) && (p.IsSingleIP() || a != p.Masked().Addr().Next()) {
			return true
		}
	}
	return false
}

func (f *far) send(b []byte) error {
	if f.vlan != 0 {
		b = slices.Concat(b[:12], []byte{0x81, 0, byte(f.vlan >> 8), byte(f.vlan)}, b[12:])
	}
	for {
		_, err := unix.Write(f.fd, b)
		if err != unix.EINTR && err != unix.ENOBUFS && err != unix.EAGAIN {
			return err
		}
		time.Sleep(100 * time.Microsecond) // the card's queue is full
	}
}

// next waits for a frame; nil when there is none within d.
func (f *far) next(d time.Duration) []byte {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case b := <-f.frames:
		return b
	case <-t.C:
		return nil
	}
}
