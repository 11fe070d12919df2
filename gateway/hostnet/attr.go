package hostnet

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// attr is one netlink attribute; value borrows from the message.
type attr struct {
	typ   uint16 // without the flags for nesting and byte order
	value []byte
}

// attributes reads a run of them. The library's own reader panics on a last attribute without padding.
func attributes(b []byte) (out []attr, err error) {
	for len(b) >= unix.SizeofNlAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofNlAttr || n > len(b) {
			return nil, unix.EBADMSG
		}
		out = append(out, attr{typ: binary.NativeEndian.Uint16(b[2:]) & typeMask, value: b[unix.SizeofNlAttr:n]})
		b = b[min(len(b), (n+3)&^3):]
	}
	return out, nil
}
