package beat

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"demarc/cluster/transport"
)

// A datagram: one byte form, 8 bytes id of the key, 8 bytes sequence number, and what is sealed with AES-256-GCM, the 17 bytes before it
// authenticated too. The nonce is the key's iv with the sequence number in its last 8 bytes, as TLS 1.3 has it (RFC 8446, 5.3). What was sealed
// begins with one byte that says what it is.
const (
	form      = 1
	headLen   = 1 + 8 + 8
	tagLen    = 16
	maxPacket = headLen + 1 + maxPlain + tagLen
)

// What a datagram carries.
const (
	carriesMessage = 1
	carriesProbe   = 2 // 8 bytes number: answer it, on the same path
	carriesEcho    = 3 // the answer to a probe, with its number
)

// exportLabel names what is derived from a connection (RFC 5705, 4).
const exportLabel = "EXPERIMENTAL-demarc-beat/1"

const (
	keyLen    = 8 + 12 + 32 // id, iv, key
	exportLen = 4 * keyLen
)

// sealer is the key of one direction, on the side that sends. Whoever uses it holds the peer's lock.
type sealer struct {
	id    uint64
	aead  cipher.AEAD
	iv    [12]byte
	nonce [12]byte
	seq   uint64
}

// seal seals what stands in b behind the head, in place. b must have room for the tag.
func (s *sealer) seal(b []byte) []byte {
	s.seq++
	b[0] = form
	binary.BigEndian.PutUint64(b[1:], s.id)
	binary.BigEndian.PutUint64(b[9:], s.seq)
	s.nonce = s.iv
	binary.BigEndian.PutUint64(s.nonce[4:], binary.BigEndian.Uint64(s.iv[4:])^s.seq)
	return s.aead.Seal(b[:headLen], s.nonce[:], b[headLen:], b[:headLen])
}

// opener is the key of one direction, on the side that receives.
type opener struct {
	epoch *epoch
	last  bool // for a release alone, see Carrier.Parting
	id    uint64

	mu    sync.Mutex
	aead  cipher.AEAD
	iv    [12]byte
	nonce [12]byte // mu
	win   window   // mu
}

// open opens a datagram in place, and notes that it has come. The error is as what it counts.
func (o *opener) open(b []byte) (plain []byte, why Drop) {
	seq := binary.BigEndian.Uint64(b[9:])
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.win.fresh(seq) {
		return nil, DropRepeated
	}
	o.nonce = o.iv
	binary.BigEndian.PutUint64(o.nonce[4:], binary.BigEndian.Uint64(o.iv[4:])^seq)
	plain, err := o.aead.Open(b[headLen:headLen], o.nonce[:], b[headLen:], b[:headLen])
	if err != nil {
		return nil, DropForged
	}
	o.win.take(seq)
	return plain, ""
}

// epoch is the keys of one connection.
type epoch struct {
	peer *peer
	who  transport.Peer // as its certificate said then
	id   string         // the member's
	born time.Time

	out, partOut sealer // peer.mu
	in, partIn   opener

	known   atomic.Bool  // the other side is known to have them, so they may be sent with
	refused atomic.Bool  // the member is none any more
	used    atomic.Int64 // since the carrier's start: when something was last opened with them
	ended   int64        // Carrier.mu: since start, when they were refused
}

// derive makes the keys of a connection. The side that has dialled sends with the first and the third, the other one with the second and the fourth.
func derive(c net.Conn, dialed bool, dialer, answerer string) (*epoch, error) {
	context := append(append([]byte(dialer), 0), answerer...) // names have no zero byte
	secret, err := transport.Export(c, exportLabel, context, exportLen)
	if err != nil {
		return nil, fmt.Errorf("keys of the connection: %w", err)
	}
	return split(secret, dialed)
}

func split(secret []byte, dialed bool) (*epoch, error) {
	if len(secret) != exportLen {
		return nil, errors.New("keys of the connection: too short")
	}
	e := &epoch{}
	out, in, partOut, partIn := 0, 1, 2, 3
	if !dialed {
		out, in, partOut, partIn = in, out, partIn, partOut
	}
	part := func(i int) (id uint64, iv [12]byte, aead cipher.AEAD, err error) {
		b := secret[i*keyLen : (i+1)*keyLen]
		id = binary.BigEndian.Uint64(b)
		copy(iv[:], b[8:20])
		block, err := aes.NewCipher(b[20:])
		if err == nil {
			aead, err = cipher.NewGCM(block)
		}
		return id, iv, aead, err
	}
	for i, s := range map[int]*sealer{out: &e.out, partOut: &e.partOut} {
		var err error
		if s.id, s.iv, s.aead, err = part(i); err != nil {
			return nil, err
		}
	}
	for i, o := range map[int]*opener{in: &e.in, partIn: &e.partIn} {
		var err error
		if o.id, o.iv, o.aead, err = part(i); err != nil {
			return nil, err
		}
		o.epoch = e
	}
	e.partIn.last = true
	clear(secret)
	return e, nil
}
