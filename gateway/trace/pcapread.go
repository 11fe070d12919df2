package trace

import (
	"encoding/binary"
	"errors"
)

var errCapture = errors.New("neither pcap nor pcapng of Ethernet frames, or cut off in a block")

// ReadFrames returns at most the first limit frames of a pcap or pcapng file.
func ReadFrames(b []byte, limit int) (frames [][]byte, err error) {
	if len(b) < 24 {
		return nil, errCapture
	}
	switch m := le.Uint32(b); m {
	case blockSection:
		return readNG(b, limit)
	case 0xa1b2c3d4, 0xa1b23c4d:
		return readPcap(b, le, limit)
	case 0xd4c3b2a1, 0x4d3cb2a1:
		return readPcap(b, be, limit)
	}
	return nil, errCapture
}

func readPcap(b []byte, o binary.ByteOrder, limit int) (frames [][]byte, err error) {
	if o.Uint32(b[20:])&0xffff != linkEther {
		return nil, errCapture
	}
	for b = b[24:]; len(b) > 0 && len(frames) < limit; {
		if len(b) < 16 {
			return nil, errCapture
		}
		n := o.Uint32(b[8:])
		if uint64(n) > uint64(len(b)-16) {
			return nil, errCapture
		}
		frames = append(frames, b[16:16+n])
		b = b[16+n:]
	}
	return frames, nil
}

func readNG(b []byte, limit int) (frames [][]byte, err error) {
	var o binary.ByteOrder = le
	var links []uint16
	for len(b) > 0 && len(frames) < limit {
		if len(b) < 12 {
			return nil, errCapture
		}
		typ := o.Uint32(b)
		if le.Uint32(b) == blockSection {
			if o = le; le.Uint32(b[8:]) != 0x1a2b3c4d {
				o = be
			}
			typ, links = blockSection, nil
		}
		n := o.Uint32(b[4:])
		if n < 12 || n%4 != 0 || uint64(n) > uint64(len(b)) {
			return nil, errCapture
		}
		body := b[8 : n-4]
		switch typ {
		case blockInterface:
			if len(body) < 8 {
				return nil, errCapture
			}
			links = append(links, o.Uint16(body))
		case blockPacket:
			if len(body) < 20 {
				return nil, errCapture
			}
			i, size := o.Uint32(body), o.Uint32(body[12:])
			if uint64(i) >= uint64(len(links)) || links[i] != linkEther || uint64(size) > uint64(len(body)-20) {
				return nil, errCapture
			}
			frames = append(frames, body[20:20+size])
		}
		b = b[n:]
	}
	return frames, nil
}
