package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"demarc/gateway/flow"
)

// A frame is a header and records. A record is kind, group, length of the body in two bytes, and the body. A body is what its kind always has (its core), and
// then fields: tag, length, value. A reader skips fields that it does not know and what a longer core has at its end, and takes what a shorter one
// lacks as zero; a field of critField and above it must know, or it does not take the record. All numbers are little-endian.
const (
	magic      = 0x4d44 // "DM"
	format     = 1      // a frame of another format is refused whole
	headerLen  = 28
	recordHead = 4
	critField  = 0x80

	// MaxFrame is the longest frame.
	MaxFrame = 64 << 10
	maxName  = 255
)

// The fields.
const (
	fieldV4 uint8 = 1 + iota
	fieldV6
	fieldHops
	fieldTCP
	fieldCounts

	fieldNAT uint8 = critField // a session whose translation is not understood must not be served
)

var le = binary.LittleEndian

// header is the beginning of a frame.
type header struct {
	First  bool // the stream begins anew: names and slots of before mean nothing
	Stream uint8
	Len    uint32 // of the frame, header included
	Life   uint64 // of the sender
	Seq    uint64 // of the first record
	Count  uint16
}

func (h *header) put(b []byte) {
	le.PutUint16(b, magic)
	b[2] = format
	b[3] = h.Stream
	le.PutUint32(b[4:], h.Len)
	le.PutUint64(b[8:], h.Life)
	le.PutUint64(b[16:], h.Seq)
	le.PutUint16(b[24:], h.Count)
	b[26], b[27] = 0, 0
	if h.First {
		b[26] = 1
	}
}

// ErrShort says that more bytes are needed before the length of a frame is known.
var ErrShort = errors.New("frame: header is not complete")

// FrameLen is the length of the frame that b begins with, so that a reader of a byte stream knows how much to wait for.
func FrameLen(b []byte) (int, error) {
	var h header
	if err := h.get(b); err != nil {
		return 0, err
	}
	return int(h.Len), nil
}

func (h *header) get(b []byte) error {
	if len(b) < headerLen {
		return ErrShort
	}
	switch {
	case le.Uint16(b) != magic:
		return fmt.Errorf("frame: begins with %#x and not with %#x: this is no session stream", le.Uint16(b), magic)
	case b[2] != format:
		return fmt.Errorf("frame: the peer writes format %d, this node reads %d: bring both to the same release", b[2], format)
	}
	*h = header{First: b[26]&1 != 0, Stream: b[3], Len: le.Uint32(b[4:]), Life: le.Uint64(b[8:]), Seq: le.Uint64(b[16:]), Count: le.Uint16(b[24:])}
	if h.Len < headerLen || h.Len > MaxFrame {
		return fmt.Errorf("frame: says that it is %d bytes long: want %d to %d", h.Len, headerLen, MaxFrame)
	}
	return nil
}

// marker is what KindBegin, KindEnd and KindDigest say.
type marker struct {
	Epoch  uint64
	Key    uint64 // of the hashes
	Sum    uint64
	Number uint64 // of records in the sum
	Round  uint16
	Of     uint8 // how many streams the group has
}

const (
	coreSession = 31
	coreTouch   = 12
	coreGone    = 8
	coreBlock   = 38
	coreRate    = 20
	coreCount   = 20
	coreName    = 3
	coreMarker  = 35
)

// begin appends the head of a record, end enters its length.
func begin(b []byte, k Kind, group uint8) (out []byte, at int) {
	return append(b, byte(k), group, 0, 0), len(b)
}

func end(b []byte, at int) []byte {
	le.PutUint16(b[at+2:], uint16(len(b)-at-recordHead))
	return b
}

// appendRecord encodes r, whose Tenant and Hop are numbers of the stream.
func appendRecord(b []byte, r *Record) []byte {
	b, at := begin(b, r.Kind, r.Group)
	b = le.AppendUint32(b, r.Slot)
	b = le.AppendUint32(b, r.Gen)
	switch r.Kind {
	case KindSession:
		b = appendSession(b, r)
	case KindTouch:
		b = le.AppendUint32(b, r.Session.Left)
		b = appendCounts(b, &r.Session)
		b = appendTCP(b, &r.Session)
	case KindBlock:
		x := &r.Block
		b = le.AppendUint16(b, r.Tenant)
		b = append(b, x.Addr[:]...)
		b = append(b, x.Class)
		b = le.AppendUint16(b, x.Number)
		b = append(b, x.Inside[:]...)
		b = append(b, 0)
		b = le.AppendUint64(b, x.Held)
		b = le.AppendUint32(b, x.Rest)
		b = le.AppendUint32(b, 0)
	case KindRate:
		b = le.AppendUint16(b, r.Tenant)
		b = le.AppendUint16(b, r.Rate.Index)
		b = le.AppendUint64(b, r.Rate.Ahead)
	case KindCount:
		b = le.AppendUint16(b, r.Tenant)
		b = le.AppendUint16(b, r.Count.Index)
		b = le.AppendUint64(b, r.Count.Value)
	}
	return end(b, at)
}

// mostFixed is how long a session is before the fields of which it has some or none.
const mostFixed = coreSession - coreGone + 2 + 40

// appendSession writes at places that are known beforehand, into room that is made once: thirty appends, each of which looks whether there is room, were a third of what a session cost its owner.
func appendSession(b []byte, r *Record) []byte {
	s := &r.Session
	at := len(b)
	b = slices.Grow(b, mostFixed)[:at+mostFixed]
	w := (*[mostFixed]byte)(b[at:])
	w[0], w[1], w[2] = s.Proto, s.State, s.Class
	le.PutUint16(w[3:], uint16(s.Flags))
	le.PutUint16(w[5:], r.Tenant)
	le.PutUint32(w[7:], s.Left)
	le.PutUint32(w[11:], uint32(s.Rule))
	le.PutUint64(w[15:], r.Revision)
	if s.Flags&FlagV6 != 0 {
		w[23], w[24] = fieldV6, 40
		*(*[16]byte)(w[25:]), *(*[16]byte)(w[41:]) = s.OrigSrc, s.OrigDst
		putPorts((*[8]byte)(w[57:]), s)
	} else {
		w[23], w[24] = fieldV4, 24
		*(*[4]byte)(w[25:]), *(*[4]byte)(w[29:]) = [4]byte(s.OrigSrc[:4]), [4]byte(s.OrigDst[:4])
		*(*[4]byte)(w[33:]), *(*[4]byte)(w[37:]) = s.XlatSrc, s.XlatDst
		putPorts((*[8]byte)(w[41:]), s)
		b = b[:at+49]
	}
	if s.Hop != [2]uint16{NoName, NoName} {
		b = append(b, fieldHops, 4, byte(s.Hop[0]), byte(s.Hop[0]>>8), byte(s.Hop[1]), byte(s.Hop[1]>>8))
	}
	b = appendTCP(b, s)
	b = appendCounts(b, s)
	if s.Flags&(FlagMapped|FlagNAT) != 0 {
		b = append(b, fieldNAT, 8, byte(s.Hold), byte(s.Hold>>8), byte(s.Hold>>16), byte(s.Hold>>24), s.Remote[0], s.Remote[1], s.Remote[2], s.Remote[3])
	}
	return b
}

func putPorts(w *[8]byte, s *Session) {
	le.PutUint16(w[0:], s.OrigSPort)
	le.PutUint16(w[2:], s.OrigDPort)
	le.PutUint16(w[4:], s.XlatSPort)
	le.PutUint16(w[6:], s.XlatDPort)
}

func appendTCP(b []byte, s *Session) []byte {
	if s.Proto != flow.TCP {
		return b
	}
	const size = 20
	at := len(b)
	b = slices.Grow(b, size)[:at+size]
	w := (*[size]byte)(b[at:])
	w[0], w[1], w[2], w[3] = fieldTCP, size-2, s.Scale[0], s.Scale[1]
	le.PutUint32(w[4:], s.End[0])
	le.PutUint32(w[8:], s.Limit[0])
	le.PutUint32(w[12:], s.End[1])
	le.PutUint32(w[16:], s.Limit[1])
	return b
}

func appendCounts(b []byte, s *Session) []byte {
	if s.Packets == [2]uint32{} && s.Bytes == [2]uint64{} {
		return b
	}
	b = append(b, fieldCounts, 0)
	at := len(b)
	for d := range 2 {
		b = binary.AppendUvarint(b, uint64(s.Packets[d]))
		b = binary.AppendUvarint(b, s.Bytes[d])
	}
	b[at-1] = byte(len(b) - at)
	return b
}

func appendGone(b []byte, group uint8, slot, gen uint32) []byte {
	b, at := begin(b, KindGone, group)
	b = le.AppendUint32(b, slot)
	return end(le.AppendUint32(b, gen), at)
}

func appendName(b []byte, kind NameKind, number uint16, name string) []byte {
	b, at := begin(b, KindName, 0)
	b = le.AppendUint16(b, number)
	b = append(b, byte(kind))
	return end(append(b, name...), at)
}

func appendMarker(b []byte, k Kind, group uint8, m *marker) []byte {
	b, at := begin(b, k, group)
	b = le.AppendUint64(b, m.Epoch)
	b = le.AppendUint64(b, m.Key)
	b = le.AppendUint64(b, m.Sum)
	b = le.AppendUint64(b, m.Number)
	b = le.AppendUint16(b, m.Round)
	return end(append(b, m.Of), at)
}

// nextRecord cuts a record off the front of b.
func nextRecord(b []byte) (k Kind, group uint8, body, rest []byte, err error) {
	if len(b) < recordHead {
		return 0, 0, nil, nil, fmt.Errorf("record: %d bytes are left of the frame, its head alone has %d", len(b), recordHead)
	}
	n := int(le.Uint16(b[2:])) + recordHead
	if n > len(b) {
		return 0, 0, nil, nil, fmt.Errorf("record of kind %d: says that it is %d bytes long, %d are left of the frame", b[0], n, len(b))
	}
	return Kind(b[0]), b[1], b[recordHead:n], b[n:], nil
}

// core copies a body's core into room for what this version knows of it: a shorter one is filled with zeros, what follows a whole one is fields.
func core(body []byte, room []byte) (fields []byte) {
	n := copy(room, body)
	return body[n:]
}

var errUnknownField = errors.New("a field that must be understood is not known here")

// decode fills r from a body. r's Kind says how.
func decode(body []byte, r *Record) error {
	var room [coreBlock]byte
	c := room[:]
	switch r.Kind {
	case KindSession:
		if len(body) < coreSession {
			return fmt.Errorf("session: %d bytes, want at least %d", len(body), coreSession)
		}
		return decodeSession(body, r)
	case KindTouch:
		f := core(body, c[:coreTouch])
		r.Slot, r.Gen, r.Session.Left = le.Uint32(c), le.Uint32(c[4:]), le.Uint32(c[8:])
		_, err := fields(f, &r.Session)
		return err
	case KindGone:
		core(body, c[:coreGone])
		r.Slot, r.Gen = le.Uint32(c), le.Uint32(c[4:])
	case KindBlock:
		core(body, c[:coreBlock])
		r.Slot, r.Gen, r.Tenant = le.Uint32(c), le.Uint32(c[4:]), le.Uint16(c[8:])
		r.Block = Block{Addr: [4]byte(c[10:14]), Class: c[14], Number: le.Uint16(c[15:]), Inside: [4]byte(c[17:21]), Held: le.Uint64(c[22:]), Rest: le.Uint32(c[30:])}
	case KindRate, KindCount:
		core(body, c[:coreRate])
		r.Slot, r.Gen, r.Tenant = le.Uint32(c), le.Uint32(c[4:]), le.Uint16(c[8:])
		i, v := le.Uint16(c[10:]), le.Uint64(c[12:])
		if r.Kind == KindRate {
			r.Rate = Rate{i, v}
		} else {
			r.Count = Count{i, v}
		}
	}
	return nil
}

func decodeSession(body []byte, r *Record) error {
	s := &r.Session
	r.Slot, r.Gen = le.Uint32(body), le.Uint32(body[4:])
	s.Proto, s.State, s.Class = body[8], body[9], body[10]
	s.Flags, r.Tenant = Flags(le.Uint16(body[11:])), le.Uint16(body[13:])
	s.Left, s.Rule, r.Revision = le.Uint32(body[15:]), flow.RuleID(le.Uint32(body[19:])), le.Uint64(body[23:])
	s.Hop = [2]uint16{NoName, NoName}
	s.OrigSPort, s.OrigDPort, s.XlatSPort, s.XlatDPort = 0, 0, 0, 0
	tuple := fieldV4
	if s.Flags&FlagV6 != 0 {
		tuple = fieldV6
	}
	switch seen, err := fields(body[coreSession:], s); {
	case err != nil:
		return err
	case seen>>tuple&1 == 0:
		return fmt.Errorf("session: has no addresses (field %d)", tuple)
	}
	return nil
}

// fields reads the fields of a session, and says which of the first 32 there were.
func fields(b []byte, s *Session) (seen uint32, err error) {
	for len(b) > 0 {
		if len(b) < 2 || int(b[1]) > len(b)-2 {
			return seen, fmt.Errorf("a field is cut off: %d bytes are left", len(b))
		}
		tag, v := b[0], b[2:2+int(b[1])]
		b = b[2+int(b[1]):]
		want := 0
		switch tag {
		case fieldV4:
			if want = 24; len(v) >= want {
				copy(s.OrigSrc[:4], v)
				copy(s.OrigDst[:4], v[4:])
				s.XlatSrc, s.XlatDst = [4]byte(v[8:12]), [4]byte(v[12:16])
				ports(v[16:], s)
			}
		case fieldV6:
			if want = 40; len(v) >= want {
				s.OrigSrc, s.OrigDst = [16]byte(v[:16]), [16]byte(v[16:32])
				ports(v[32:], s)
			}
		case fieldHops:
			if want = 4; len(v) >= want {
				s.Hop = [2]uint16{le.Uint16(v), le.Uint16(v[2:])}
			}
		case fieldTCP:
			if want = 18; len(v) >= want {
				s.Scale = [2]uint8{v[0], v[1]}
				for d := range 2 {
					s.End[d], s.Limit[d] = le.Uint32(v[2+8*d:]), le.Uint32(v[6+8*d:])
				}
			}
		case fieldNAT:
			if want = 8; len(v) >= want {
				s.Hold, s.Remote = le.Uint32(v), [4]byte(v[4:8])
			}
		case fieldCounts:
			for d := range 2 {
				p, n := binary.Uvarint(v)
				q, m := binary.Uvarint(v[max(n, 0):])
				if n <= 0 || m <= 0 {
					return seen, fmt.Errorf("counters of a session are cut off")
				}
				s.Packets[d], s.Bytes[d] = uint32(p), q
				v = v[n+m:]
			}
		default:
			if tag >= critField {
				return seen, errUnknownField
			}
		}
		if len(v) < want {
			return seen, fmt.Errorf("field %d of a session has %d bytes, want %d", tag, len(v), want)
		}
		seen |= 1 << tag // of a tag above 31 nothing
	}
	return seen, nil
}

func ports(v []byte, s *Session) {
	s.OrigSPort, s.OrigDPort, s.XlatSPort, s.XlatDPort = le.Uint16(v), le.Uint16(v[2:]), le.Uint16(v[4:]), le.Uint16(v[6:])
}

func decodeName(body []byte) (kind NameKind, number uint16, name string, err error) {
	if len(body) < coreName || len(body) > coreName+maxName {
		return 0, 0, "", fmt.Errorf("name: %d bytes, want %d to %d", len(body), coreName, coreName+maxName)
	}
	return NameKind(body[2]), le.Uint16(body), string(body[coreName:]), nil
}

func decodeMarker(body []byte) (m marker, err error) {
	if len(body) < coreMarker {
		return m, fmt.Errorf("marker: %d bytes, want at least %d", len(body), coreMarker)
	}
	return marker{Epoch: le.Uint64(body), Key: le.Uint64(body[8:]), Sum: le.Uint64(body[16:]), Number: le.Uint64(body[24:]), Round: le.Uint16(body[32:]), Of: body[34]}, nil
}
