package netlab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What a tc program answers: go on with the next one, or drop.
const (
	tcNext = -1 // TC_ACT_UNSPEC
	tcShot = 2  // TC_ACT_SHOT
)

// Offsets in struct __sk_buff.
const (
	skbPktType     = 4
	skbVLANPresent = 20
	skbVLANTCI     = 24
)

// Priorities of our tc programs: on the way in the tag goes before anything counts, on the way out it comes after.
const (
	prioPop   = 10
	prioMeter = 100 // the first meter of a lab; each has its own, since the kernel keeps one program per priority
	prioPush  = 60000
)

// Tag makes a device without 8021q support speak one VLAN: what it sends gets the 802.1Q tag, what it receives loses it, and what
// comes in with another tag or none is dropped. The host behind it sees plain frames.
func (l *Lab) Tag(ns, dev string, vid uint16) error {
	push := asm.Instructions{
		asm.Mov.Imm(asm.R2, 0x0081), // 0x8100 in network byte order
		asm.Mov.Imm(asm.R3, int32(vid)),
		asm.FnSkbVlanPush.Call(),
		asm.JEq.Imm(asm.R0, 0, "done"),
		asm.Mov.Imm(asm.R0, tcShot),
		asm.Return(),
		asm.Mov.Imm(asm.R0, tcNext).WithSymbol("done"),
		asm.Return(),
	}
	pop := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, skbVLANPresent, asm.Word),
		asm.JEq.Imm(asm.R2, 0, "drop"),
		asm.LoadMem(asm.R2, asm.R1, skbVLANTCI, asm.Word),
		asm.And.Imm(asm.R2, 0xfff),
		asm.JNE.Imm(asm.R2, int32(vid), "drop"),
		asm.FnSkbVlanPop.Call(),
		asm.JNE.Imm(asm.R0, 0, "drop"),
		asm.Mov.Imm(asm.R0, tcNext),
		asm.Return(),
		asm.Mov.Imm(asm.R0, tcShot).WithSymbol("drop"),
		asm.Return(),
	}
	if err := l.attach(ns, dev, Egress, prioPush, "dm_tag_push", push); err != nil {
		return err
	}
	return l.attach(ns, dev, Ingress, prioPop, "dm_tag_pop", pop)
}

// Direction is where a program looks at a device's packets.
type Direction uint32

// Ingress is what the device receives, Egress what it sends.
const (
	Ingress Direction = netlink.HANDLE_MIN_INGRESS
	Egress  Direction = netlink.HANDLE_MIN_EGRESS
)

// attach loads a program and hangs it on a device's clsact qdisc. It lives as long as the device.
func (l *Lab) attach(ns, dev string, d Direction, prio uint16, name string, ins asm.Instructions) error {
	s, link, err := l.link(ns, dev)
	if err != nil {
		return err
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, Instructions: ins, License: "GPL"})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer prog.Close()
	qdisc := &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := s.h.QdiscAdd(qdisc); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("clsact on %s in %s: %w", dev, ns, err)
	}
	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: link.Attrs().Index, Parent: uint32(d), Handle: 1, Protocol: unix.ETH_P_ALL, Priority: prio},
		Fd:          prog.FD(), Name: name, DirectAction: true,
	}
	if err := s.h.FilterAdd(filter); err != nil {
		return fmt.Errorf("%s on %s in %s: %w", name, dev, ns, err)
	}
	return nil
}

// Match is what a meter counts. Zero fields match all; addresses of one family only.
type Match struct {
	Src, Dst netip.Prefix
	Proto    uint8
	DstPort  uint16 // TCP or UDP, packets without IP options or extension headers
}

// Count is packets and IP bytes without the link header.
type Count struct{ Packets, Bytes uint64 }

// Meter counts packets on a device, in the kernel, exactly: nothing is sampled or lost. It counts what a host receives or sends, whoever
// carried it, so it is the hosts' side of the account.
type Meter struct{ m *ebpf.Map }

// Read is the total so far.
func (m *Meter) Read() (Count, error) {
	var per [][2]uint64
	if err := m.m.Lookup(uint32(0), &per); err != nil {
		return Count{}, err
	}
	var c Count
	for _, v := range per {
		c.Packets += v[0]
		c.Bytes += v[1]
	}
	return c, nil
}

// Meter starts to count what matches on a device; Close of the lab ends it. On ingress it counts what is for the device's own address, so
// that a frame which a switch floods is counted once.
func (l *Lab) Meter(ns, dev string, d Direction, match Match) (*Meter, error) {
	counts, err := ebpf.NewMap(&ebpf.MapSpec{Name: "dm_meter", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 16, MaxEntries: 1})
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	prio := uint16(prioMeter + l.meters)
	l.meters++
	l.mu.Unlock()
	if err := l.attach(ns, dev, d, prio, "dm_meter", meterProgram(match, d == Ingress, counts.FD())); err != nil {
		counts.Close()
		return nil, err
	}
	m := &Meter{m: counts}
	l.AtEnd(func() { counts.Close() })
	return m, nil
}

// Where meterProgram keeps the packet on its stack: the Ethernet header begins at an odd word so that the IP header is aligned, as
// the verifier demands of the stack.
const (
	stackFrame = -62
	stackIP    = stackFrame + 14
	stackKey   = -4
)

// meterProgram counts by the length in the IP header: padding and link headers are nobody's traffic.
func meterProgram(m Match, onlyOurs bool, counts int) asm.Instructions {
	families := func(is4 func(netip.Addr) bool) bool {
		return (!m.Src.IsValid() || is4(m.Src.Addr())) && (!m.Dst.IsValid() || is4(m.Dst.Addr()))
	}
	load := func(n int32) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Imm(asm.R2, 0),
			asm.Mov.Reg(asm.R3, asm.RFP),
			asm.Add.Imm(asm.R3, stackFrame),
			asm.Mov.Imm(asm.R4, n),
			asm.FnSkbLoadBytes.Call(),
			asm.JNE.Imm(asm.R0, 0, "out"),
		}
	}
	ins := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	if onlyOurs {
		ins = append(ins, asm.LoadMem(asm.R2, asm.R6, skbPktType, asm.Word), asm.JNE.Imm(asm.R2, unix.PACKET_HOST, "out"))
	}
	// An IPv4 packet with 4 bytes of payload is the least that can matter; without them nothing of the port is read.
	need4 := int32(14 + 20)
	if m.DstPort != 0 {
		need4 += 4
	}
	ins = append(ins, load(need4)...)
	ins = append(ins, asm.LoadMem(asm.R2, asm.RFP, stackIP-2, asm.Half))
	if families(netip.Addr.Is4) {
		ins = append(ins, asm.JNE.Imm(asm.R2, 0x0008, "not4"))
		ins = append(ins, matchBytes(m.Src, stackIP+12)...)
		ins = append(ins, matchBytes(m.Dst, stackIP+16)...)
		ins = append(ins, matchProto(m, stackIP+9, stackIP+22)...)
		if m.DstPort != 0 {
			ins = append(ins,
				asm.LoadMem(asm.R2, asm.RFP, stackIP, asm.Byte), asm.JNE.Imm(asm.R2, 0x45, "out"),
				asm.LoadMem(asm.R2, asm.RFP, stackIP+6, asm.Half), asm.And.Imm(asm.R2, 0xff1f), asm.JNE.Imm(asm.R2, 0, "out"))
		}
		ins = append(ins, asm.LoadMem(asm.R7, asm.RFP, stackIP+2, asm.Half), asm.HostTo(asm.BE, asm.R7, asm.Half), asm.Ja.Label("count"))
	}
	ins = append(ins, asm.Mov.Reg(asm.R2, asm.R2).WithSymbol("not4"))
	if families(netip.Addr.Is6) {
		ins = append(ins, asm.JNE.Imm(asm.R2, 0xdd86, "out"))
		need6 := int32(14 + 40)
		if m.DstPort != 0 {
			need6 += 4
		}
		ins = append(ins, load(need6)...)
		ins = append(ins, matchBytes(m.Src, stackIP+8)...)
		ins = append(ins, matchBytes(m.Dst, stackIP+24)...)
		ins = append(ins, matchProto(m, stackIP+6, stackIP+42)...)
		ins = append(ins, asm.LoadMem(asm.R7, asm.RFP, stackIP+4, asm.Half), asm.HostTo(asm.BE, asm.R7, asm.Half), asm.Add.Imm(asm.R7, 40))
	} else {
		ins = append(ins, asm.Ja.Label("out"))
	}
	return append(ins,
		asm.StoreImm(asm.RFP, stackKey, 0, asm.Word).WithSymbol("count"),
		asm.LoadMapPtr(asm.R1, counts),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, stackKey),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, asm.R0, 8, asm.DWord),
		asm.Add.Reg(asm.R1, asm.R7),
		asm.StoreMem(asm.R0, 8, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, tcNext).WithSymbol("out"),
		asm.Return(),
	)
}

// matchBytes leaves for "out" unless the address on the stack lies in p.
func matchBytes(p netip.Prefix, at int16) (ins asm.Instructions) {
	if !p.IsValid() {
		return nil
	}
	addr, mask := p.Masked().Addr().AsSlice(), ipNet(p).Mask
	for i := 0; i < len(addr); i += 4 {
		if w := binary.NativeEndian.Uint32(mask[i:]); w != 0 {
			ins = append(ins,
				asm.LoadMem(asm.R2, asm.RFP, at+int16(i), asm.Word),
				asm.And.Imm32(asm.R2, int32(w)),
				asm.JNE.Imm32(asm.R2, int32(binary.NativeEndian.Uint32(addr[i:])), "out"))
		}
	}
	return ins
}

func matchProto(m Match, proto, port int16) (ins asm.Instructions) {
	if m.Proto != 0 {
		ins = append(ins, asm.LoadMem(asm.R2, asm.RFP, proto, asm.Byte), asm.JNE.Imm(asm.R2, int32(m.Proto), "out"))
	}
	if m.DstPort != 0 {
		ins = append(ins, asm.LoadMem(asm.R2, asm.RFP, port, asm.Half), asm.HostTo(asm.BE, asm.R2, asm.Half),
			asm.JNE.Imm(asm.R2, int32(m.DstPort), "out"))
	}
	return ins
}
