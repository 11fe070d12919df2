package replica

import (
	"errors"
	"fmt"
	"time"
)

// On a connection the owner, which has dialled, says Hello. The standby says for each stream how far it is, in an answer each, or in words why it takes none. Then frames, which
// carry their length, go from the owner to the standby, and answers with their length before them go back: for each stream of which something was read when what has come at once is done
// with, and for all of them after every Beat at the latest. An owner sends the digest of each group every second, so
// one by which nothing has come for Silence, and whose frames are all answered, is given up.

// WireVersion is that of the connection. What may change without a new one is in frames and answers, which have a format of their own.
const WireVersion = 1

const (
	// HelloLen is how long a Hello is.
	HelloLen = 16
	// MaxStreams is how many streams an owner has at most: one for each worker, and those that no worker has.
	MaxStreams = 256
	// MaxAnswer is the longest answer, without the length before it.
	MaxAnswer = 32 << 10

	// Beat is how often at least an answer for each stream comes.
	Beat = 100 * time.Millisecond
	// Silence is for how long the owner waits for an answer, and the standby for a Hello, for the next frame and for the rest of one, before the connection is given up.
	Silence = 3 * time.Second

	helloMagic   = "DMSS"
	refusalMagic = 0x4d57
	lengthLen    = 4
	maxRefusal   = 1024
)

// Hello is what the owner says first.
type Hello struct {
	Version uint16
	Streams uint16
	Life    uint64 // as in all its frames
}

// Append encodes h.
func (h *Hello) Append(b []byte) []byte {
	b = append(b, helloMagic...)
	b = le.AppendUint16(b, h.Version)
	b = le.AppendUint16(b, h.Streams)
	return le.AppendUint64(b, h.Life)
}

// DecodeHello reads one.
func DecodeHello(b []byte) (h Hello, err error) {
	if len(b) != HelloLen || string(b[:4]) != helloMagic {
		return h, fmt.Errorf("hello: %d bytes that do not begin a session stream", len(b))
	}
	h = Hello{Version: le.Uint16(b[4:]), Streams: le.Uint16(b[6:]), Life: le.Uint64(b[8:])}
	switch {
	case h.Version != WireVersion:
		return h, fmt.Errorf("hello: the peer copies sessions by version %d, this node by %d: bring both to the same release", h.Version, WireVersion)
	case h.Streams == 0 || h.Streams > MaxStreams:
		return h, fmt.Errorf("hello: %d streams, want 1 to %d", h.Streams, MaxStreams)
	case h.Life == 0:
		return h, errors.New("hello: life 0: a process draws another number")
	}
	return h, nil
}

// Refused is why the standby takes no streams, in its words.
type Refused string

func (r Refused) Error() string { return "the standby takes no sessions: " + string(r) }

// AppendAnswer encodes an answer with its length before it.
func AppendAnswer(b []byte, a *Answer) []byte {
	at := len(b)
	b = a.Append(le.AppendUint32(b, 0))
	le.PutUint32(b[at:], uint32(len(b)-at-lengthLen))
	return b
}

// AppendRefusal encodes, in an answer's place, why none comes any more. The connection ends with it.
func AppendRefusal(b []byte, why string) []byte {
	why = why[:min(len(why), maxRefusal)]
	b = le.AppendUint32(b, uint32(2+len(why)))
	b = le.AppendUint16(b, refusalMagic)
	return append(b, why...)
}

// Peeker is a *bufio.Reader.
type Peeker interface {
	Peek(n int) ([]byte, error)
	Discard(n int) (int, error)
}

// ReadHello reads a Hello.
func ReadHello(r Peeker) (Hello, error) {
	b, err := next(r, HelloLen)
	if err != nil {
		return Hello{}, err
	}
	return DecodeHello(b)
}

// ReadAnswer reads an answer. What the standby says instead of one is a Refused.
func ReadAnswer(r Peeker) (Answer, error) {
	b, err := r.Peek(lengthLen)
	if err != nil {
		return Answer{}, err
	}
	n := le.Uint32(b)
	if n < 2 || n > MaxAnswer {
		return Answer{}, fmt.Errorf("answer: says that it is %d bytes long: want 2 to %d", n, MaxAnswer)
	}
	if b, err = next(r, lengthLen+int(n)); err != nil {
		return Answer{}, err
	}
	b = b[lengthLen:]
	if le.Uint16(b) == refusalMagic {
		return Answer{}, Refused(b[2:])
	}
	return DecodeAnswer(b)
}

// ReadFrame reads a frame, for Receiver.Frame. It is valid until the next read. r has room for MaxFrame.
func ReadFrame(r Peeker) ([]byte, error) {
	b, err := r.Peek(headerLen)
	if err != nil {
		return nil, err
	}
	n, err := FrameLen(b)
	if err != nil {
		return nil, err
	}
	return next(r, n)
}

// FrameHead is of which life and stream a frame is that ReadFrame has read.
func FrameHead(f []byte) (life uint64, stream uint8) { return le.Uint64(f[8:]), f[3] }

// next is the next n bytes, which are read then.
func next(r Peeker, n int) ([]byte, error) {
	b, err := r.Peek(n)
	if err != nil {
		return nil, err
	}
	_, err = r.Discard(n)
	return b, err
}
