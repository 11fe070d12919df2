package pipeline

import (
	"encoding/binary"

	"demarc/gateway/flow"
	"demarc/gateway/packet"
	"demarc/gateway/packet/csum"
)

// unfinished reports whether the transport checksum was left for a network card to finish: virtual ports hand frames over so when the
// sender's transmit offload is on. The field then holds the sum of the pseudo-header alone. Incremental rewriting would carry the error on,
// and the receiver would drop every packet without a word. Asked about the first packet of each direction only.
func unfinished(p *packet.Packet) bool {
	at := p.L4
	switch p.Key.Proto {
	case flow.TCP:
		at += 16
	case flow.UDP:
		at += 6
	default:
		return false
	}
	f := p.Frame()
	if at+2 > p.L3End || p.Flags&packet.FlagFragFirst != 0 { // of a fragment nobody can say; who cuts has finished it before
		return false
	}
	n := p.L3End - p.L4
	var pseudo uint64
	if p.Key.Family == 4 {
		pseudo = csum.Pseudo4([4]byte(p.Key.Src[:4]), [4]byte(p.Key.Dst[:4]), p.Key.Proto, n)
	} else {
		src, dst := [16]byte(p.Key.Src), [16]byte(p.Key.Dst)
		pseudo = csum.Pseudo6(&src, &dst, p.Key.Proto, n)
	}
	// By chance a right checksum looks the same once in 65,536: only one that is also wrong is unfinished.
	return binary.BigEndian.Uint16(f[at:]) == csum.Fold(pseudo) && csum.Fold(csum.Sum(pseudo, f[p.L4:p.L3End])) != 0xffff
}
