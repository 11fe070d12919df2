package beat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"demarc/cluster/failover"
)

// A message, as it is before it is sealed. Numbers without a width are varints (encoding/binary); a string has its length before it, one byte.
//
//	version  1 byte   what this release writes. A decoder refuses a later one: additions do not raise it, only what cannot be read without knowing it does
//	kind     1 byte   as failover.Say
//	flags    1 byte   1 = yes, 2 = released, 4 = bare, 8 = stands; others are of later releases
//	life     8 bytes, big-endian
//	group    string
//	term     epoch, node as a string, life as 8 bytes
//	seq      number
//	voters   number
//	views    number; each is its length in two bytes and then: group, epoch, flags as one byte, faults, and what later releases add
//	more     two bytes length; then, of a question for a promise, the lease in microseconds, and what later releases add
//
// Nothing follows. What a later release adds, in a view or at the end, is passed over by this one.
const version = 1

const (
	flagYes    = 1 << 0
	flagGone   = 1 << 1
	flagBare   = 1 << 2
	flagStands = 1 << 3

	viewServing = 1 << 0
	viewWhole   = 1 << 1
	viewPanics  = 1 << 2
	viewLeaving = 1 << 3
)

// Bounds of a message.
const (
	maxPlain = 32 << 10 // bytes of one, before it is sealed
	maxViews = 255      // a policy has no more groups
	maxName  = 255
)

var errLarge = errors.New("the message is too large")

// appendMessage writes m behind b.
func appendMessage(b []byte, m *failover.Message) ([]byte, error) {
	if len(m.Views) > maxViews {
		return b, fmt.Errorf("%w: %d views, at most %d", errLarge, len(m.Views), maxViews)
	}
	start := len(b)
	flags := byte(0)
	if m.Yes {
		flags |= flagYes
	}
	if m.Gone {
		flags |= flagGone
	}
	if m.Bare {
		flags |= flagBare
	}
	if m.Stands {
		flags |= flagStands
	}
	b = append(b, version, byte(m.Kind), flags)
	b = binary.BigEndian.AppendUint64(b, m.Life)
	var err error
	if b, err = appendString(b, m.Group); err != nil {
		return b, err
	}
	b = binary.AppendUvarint(b, m.Term.Epoch)
	if b, err = appendString(b, m.Term.Node); err != nil {
		return b, err
	}
	b = binary.BigEndian.AppendUint64(b, m.Term.Life)
	b = binary.AppendUvarint(b, m.Seq)
	b = binary.AppendUvarint(b, m.Voters)
	b = binary.AppendUvarint(b, uint64(len(m.Views)))
	for i := range m.Views {
		if b, err = appendView(b, &m.Views[i]); err != nil {
			return b, err
		}
	}
	more := len(b)
	b = append(b, 0, 0)
	if m.Lease > 0 {
		b = binary.AppendUvarint(b, uint64(m.Lease.Microseconds()))
		binary.BigEndian.PutUint16(b[more:], uint16(len(b)-more-2))
	}
	if len(b)-start > maxPlain {
		return b, fmt.Errorf("%w: %d bytes, at most %d", errLarge, len(b)-start, maxPlain)
	}
	return b, nil
}

func appendView(b []byte, v *failover.View) ([]byte, error) {
	at := len(b)
	b, err := appendString(append(b, 0, 0), v.Group)
	if err != nil {
		return b, err
	}
	b = binary.AppendUvarint(b, v.Epoch)
	flags := byte(0)
	for _, f := range [...]struct {
		set bool
		bit byte
	}{{v.Serving, viewServing}, {v.Whole, viewWhole}, {v.Panics, viewPanics}, {v.Leaving, viewLeaving}} {
		if f.set {
			flags |= f.bit
		}
	}
	b = append(b, flags)
	b = binary.AppendUvarint(b, uint64(max(v.Faults, 0)))
	binary.BigEndian.PutUint16(b[at:], uint16(len(b)-at-2))
	return b, nil
}

func appendString(b []byte, s string) ([]byte, error) {
	if len(s) > maxName {
		return b, fmt.Errorf("%w: a name of %d bytes, at most %d", errLarge, len(s), maxName)
	}
	return append(append(b, byte(len(s))), s...), nil
}

// names keeps strings that come again and again, so that reading a message does not make them anew. It belongs to one goroutine.
type names map[string]string

// maxNames bounds what is kept: names come from members, but not all of them need to be sane.
const maxNames = 1024

func (n names) of(b []byte) string {
	if s, ok := n[string(b)]; ok {
		return s
	}
	if len(n) >= maxNames {
		clear(n)
	}
	s := string(b)
	n[s] = s
	return s
}

// reader takes values off a message. After the first one that is not there, all are zero and bad is set.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if r.bad || n > len(r.b) {
		r.bad = true
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) byte() byte {
	if v := r.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (r *reader) fixed() uint64 {
	if v := r.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

func (r *reader) number() uint64 {
	v, n := binary.Uvarint(r.b)
	if r.bad || n <= 0 {
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) string() []byte { return r.take(int(r.byte())) }

// block is what has its length before it in two bytes.
func (r *reader) block() reader {
	v := r.take(2)
	if v == nil {
		return reader{bad: true}
	}
	v = r.take(int(binary.BigEndian.Uint16(v)))
	return reader{b: v, bad: r.bad}
}

// decode reads one message. Whoever sent it is a member; it may be of another release, or mad.
func decode(b []byte, n names) (m failover.Message, err error) {
	r := reader{b: b}
	v := r.byte()
	switch {
	case r.bad:
		return m, errors.New("a message without a version")
	case v != version:
		return m, fmt.Errorf("a message of version %d; this release reads version %d", v, version)
	}
	m.Kind = failover.Say(r.byte())
	flags := r.byte()
	m.Yes, m.Gone, m.Bare, m.Stands = flags&flagYes != 0, flags&flagGone != 0, flags&flagBare != 0, flags&flagStands != 0
	m.Life = r.fixed()
	m.Group = n.of(r.string())
	m.Term.Epoch = r.number()
	m.Term.Node = n.of(r.string())
	m.Term.Life = r.fixed()
	m.Seq = r.number()
	m.Voters = r.number()
	views := r.number()
	if views > maxViews {
		return m, fmt.Errorf("a message with %d views, at most %d", views, maxViews)
	}
	if views > 0 && !r.bad {
		m.Views = make([]failover.View, 0, views)
	}
	for range views {
		v := r.block()
		if v.bad {
			break
		}
		m.Views = append(m.Views, v.view(n))
		r.bad = v.bad
	}
	more := r.block()
	if m.Kind == failover.Renew && len(more.b) > 0 { // earlier releases have nothing there
		m.Lease = time.Duration(min(more.number(), math.MaxInt64/1000)) * time.Microsecond
	}
	switch {
	case r.bad || more.bad:
		return failover.Message{}, errors.New("a message that ends too early")
	case len(r.b) > 0:
		return failover.Message{}, fmt.Errorf("a message with %d bytes behind its end", len(r.b))
	}
	return m, nil
}

func (r *reader) view(n names) failover.View {
	v := failover.View{Group: n.of(r.string()), Epoch: r.number()}
	flags := r.byte()
	v.Serving, v.Whole = flags&viewServing != 0, flags&viewWhole != 0
	v.Panics, v.Leaving = flags&viewPanics != 0, flags&viewLeaving != 0
	v.Faults = int(min(r.number(), math.MaxInt32))
	return v
}
