package netlab

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// Valve lets through what a device receives, or some of it, by who sent it: a cable that can be cut, or made lossy, for each sender and
// each direction by itself. Of one protocol of a sender's it can be told alone.
type Valve struct{ m, proto *ebpf.Map }

// protoKey is a sender and a protocol, what is lost of it, in 2^32nds, and how many packets were.
type (
	protoKey struct {
		From  [4]byte
		Proto uint32
	}
	protoLoss struct {
		Share uint32
		_     uint32
		Lost  uint64
	}
)

// prioValve: before anything counts.
const prioValve = 20

const (
	prioGate  = prioValve + 2
	prioProto = prioValve + 3
)

// Valve hangs one on a device. It is open at first. IPv4 only; ARP passes.
func (l *Lab) Valve(ns, dev string) (v *Valve, err error) {
	v = &Valve{}
	defer func() {
		if err != nil {
			v.close()
			v = nil
		}
	}()
	if v.m, err = ebpf.NewMap(&ebpf.MapSpec{Name: "dm_valve", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 256}); err != nil {
		return v, err
	}
	if v.proto, err = ebpf.NewMap(&ebpf.MapSpec{Name: "dm_valve_proto", Type: ebpf.Hash, KeySize: 8, ValueSize: 16, MaxEntries: 256}); err != nil {
		return v, err
	}
	if err := l.attach(ns, dev, Ingress, prioValve, "dm_valve", append(senderTo(stackKey), lost(v.m, stackKey, false)...)); err != nil {
		return v, err
	}
	both := append(senderTo(stackProtoKey),
		asm.LoadMem(asm.R2, asm.RFP, stackIP+9, asm.Byte),
		asm.StoreMem(asm.RFP, stackProtoKey+4, asm.R2, asm.Word))
	if err := l.attach(ns, dev, Ingress, prioProto, "dm_valve_proto", append(both, lost(v.proto, stackProtoKey, true)...)); err != nil {
		return v, err
	}
	l.AtEnd(v.close)
	return v, nil
}

func (v *Valve) close() {
	for _, m := range []*ebpf.Map{v.m, v.proto} {
		if m != nil {
			m.Close()
		}
	}
}

// stackProtoKey: eight bytes below the frame, aligned.
const stackProtoKey = -72

// senderTo keeps an IPv4 packet's head on the stack, and its sender at a place of it. All else passes.
func senderTo(key int16) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.Mov.Imm(asm.R2, 0),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, stackFrame),
		asm.Mov.Imm(asm.R4, 14+20),
		asm.FnSkbLoadBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, "pass"),
		asm.LoadMem(asm.R2, asm.RFP, stackIP-2, asm.Half),
		asm.JNE.Imm(asm.R2, 0x0008, "pass"),
		asm.LoadMem(asm.R2, asm.RFP, stackIP+12, asm.Word),
		asm.StoreMem(asm.RFP, key, asm.R2, asm.Word),
	}
}

// Lose has a share of a sender's packets be lost: 0 = none, 1 = all of them.
func (v *Valve) Lose(from netip.Addr, share float64) error {
	if !from.Is4() || share < 0 || share > 1 {
		return fmt.Errorf("lose %v of %s: want an IPv4 address, and a share between 0 and 1", share, from)
	}
	key := from.As4()
	if share == 0 {
		if err := v.m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		return nil
	}
	return v.m.Put(key, uint32(share*(1<<32-1)))
}

// LoseOf has a share of what a sender sends by one protocol be lost, beside what Lose says of all: 0 = none, 1 = all of it. It counts anew.
func (v *Valve) LoseOf(from netip.Addr, proto uint8, share float64) error {
	if !from.Is4() || proto == 0 || share < 0 || share > 1 {
		return fmt.Errorf("lose %v of protocol %d of %s: want an IPv4 address, a protocol, and a share between 0 and 1", share, proto, from)
	}
	return v.proto.Put(protoKey{from.As4(), uint32(proto)}, protoLoss{Share: uint32(share * (1<<32 - 1))})
}

// LostOf is how many packets of a sender's were lost by LoseOf since it was last called.
func (v *Valve) LostOf(from netip.Addr, proto uint8) (n uint64, err error) {
	var l protoLoss
	if err := v.proto.Lookup(protoKey{from.As4(), uint32(proto)}, &l); err != nil {
		return 0, fmt.Errorf("what protocol %d of %s has lost: %w", proto, from, err)
	}
	return l.Lost, nil
}

// lost ends a program that drops a share of the packets: the one that the map has for the key on the stack, in 2^32nds; none = all pass. counted: how many are is
// eight bytes behind it.
func lost(m *ebpf.Map, key int32, counted bool) asm.Instructions {
	var count asm.Instructions
	if counted {
		count = asm.Instructions{asm.Mov.Imm(asm.R1, 1), asm.StoreXAdd(asm.R8, asm.R1, asm.DWord)}
	}
	ins := asm.Instructions{
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, key),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.LoadMem(asm.R7, asm.R0, 0, asm.Word),
		asm.JEq.Imm(asm.R7, 0, "pass"),
		asm.Mov.Reg(asm.R8, asm.R0),
		asm.Add.Imm(asm.R8, 8),
		asm.FnGetPrandomU32.Call(),
		asm.LSh.Imm(asm.R0, 32), // it is the lower half that counts
		asm.RSh.Imm(asm.R0, 32),
		asm.JGT.Reg(asm.R0, asm.R7, "pass"),
	}
	return append(append(ins, count...),
		asm.Mov.Imm(asm.R0, tcShot),
		asm.Return(),
		asm.Mov.Imm(asm.R0, tcNext).WithSymbol("pass"),
		asm.Return(),
	)
}

// Gate lets through what passes a device, or some of it, whoever sent it: a cable that can be cut, or made lossy, in one direction.
type Gate struct{ m *ebpf.Map }

// Gate hangs one on a device, for what it receives (Ingress) or sends. It is open at first. A capture on the device sees what it receives before the gate does.
func (l *Lab) Gate(ns, dev string, d Direction) (*Gate, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "dm_gate", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return nil, err
	}
	drop := append(asm.Instructions{asm.StoreImm(asm.RFP, stackKey, 0, asm.Word)}, lost(m, stackKey, false)...)
	if err := l.attach(ns, dev, d, prioGate, "dm_gate", drop); err != nil {
		m.Close()
		return nil, err
	}
	l.AtEnd(func() { m.Close() })
	return &Gate{m}, nil
}

// Lose has a share of the packets be lost: 0 = none, 1 = all of them.
func (g *Gate) Lose(share float64) error {
	if share < 0 || share > 1 {
		return fmt.Errorf("lose %v: want a share between 0 and 1", share)
	}
	return g.m.Put(uint32(0), uint32(share*(1<<32-1)))
}

// Deafen has a host not hear announcements: gratuitous ARP and unsolicited neighbour advertisements. It resolves as others do.
func (l *Lab) Deafen(ns, dev string) error {
	const unsolicited = 136 // a neighbour advertisement; without the flag S
	ins := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.Mov.Imm(asm.R2, 0),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, stackFrame),
		asm.Mov.Imm(asm.R4, 14+28),
		asm.FnSkbLoadBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, "pass"),
		asm.LoadMem(asm.R2, asm.RFP, stackIP-2, asm.Half),
		asm.JNE.Imm(asm.R2, 0x0608, "not-arp"),
		// sender's address = the one asked for
		asm.LoadMem(asm.R2, asm.RFP, stackIP+14, asm.Half), asm.LoadMem(asm.R3, asm.RFP, stackIP+24, asm.Half), asm.JNE.Reg(asm.R2, asm.R3, "pass"),
		asm.LoadMem(asm.R2, asm.RFP, stackIP+16, asm.Half), asm.LoadMem(asm.R3, asm.RFP, stackIP+26, asm.Half), asm.JNE.Reg(asm.R2, asm.R3, "pass"),
		asm.Ja.Label("drop"),
		asm.JNE.Imm(asm.R2, 0xdd86, "pass").WithSymbol("not-arp"),
		asm.LoadMem(asm.R2, asm.RFP, stackIP+6, asm.Byte),
		asm.JNE.Imm(asm.R2, unix.IPPROTO_ICMPV6, "pass"),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, 14+40),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, stackIP),
		asm.Mov.Imm(asm.R4, 8),
		asm.FnSkbLoadBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, "pass"),
		asm.LoadMem(asm.R2, asm.RFP, stackIP, asm.Byte),
		asm.JNE.Imm(asm.R2, unsolicited, "pass"),
		asm.LoadMem(asm.R2, asm.RFP, stackIP+4, asm.Byte),
		asm.And.Imm(asm.R2, 0x40),
		asm.JNE.Imm(asm.R2, 0, "pass"),
		asm.Mov.Imm(asm.R0, tcShot).WithSymbol("drop"),
		asm.Return(),
		asm.Mov.Imm(asm.R0, tcNext).WithSymbol("pass"),
		asm.Return(),
	}
	return l.attach(ns, dev, Ingress, prioValve+1, "dm_deaf", ins)
}
