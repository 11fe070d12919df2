package cluster

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"demarc/cluster/command"
	"demarc/cluster/store"
)

// Peers connects a node to the others for requests, beside Raft's own streams.
type Peers interface {
	Dial(ctx context.Context, address string) (net.Conn, error)
	Requests() net.Listener
}

// A request is its length (4 bytes, big-endian) and an encoded entry; the answer its length and an answer as JSON. One of each a connection.
const (
	maxRequest = command.MaxText + 128<<10
	maxAnswer  = 1 << 20
	requests   = 32               // at a time
	patience   = 10 * time.Second // of the side that waits for the other's bytes
)

// answer is what the leader says of an entry.
type answer struct {
	Result  command.Result `json:"result"`
	Leads   bool           `json:"leads"`             // false: ask another, nothing was done
	Unknown string         `json:"unknown,omitempty"` // the outcome is not known, and why
	Refused string         `json:"refused,omitempty"` // the entry was not taken, and why
}

// listen answers the requests of other members until the listener ends.
func (n *Node) listen(ctx context.Context, l net.Listener) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, requests)
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		select {
		case slots <- struct{}{}:
		default: // who asks will ask again
			c.Close()
			continue
		}
		wg.Go(func() {
			defer func() { c.Close(); <-slots }()
			if err := n.serveRequest(ctx, c); err != nil {
				n.log.Warn("request of a member", "from", c.RemoteAddr().String(), "err", err)
			}
		})
	}
}

func (n *Node) serveRequest(ctx context.Context, c net.Conn) error {
	_ = c.SetReadDeadline(time.Now().Add(patience))
	b, err := readBlock(bufio.NewReader(c), maxRequest)
	if err != nil {
		return err
	}
	e, err := command.Decode(b)
	var a answer
	if err != nil {
		a = answer{Leads: true, Refused: fmt.Sprintf("%s cannot read it: %v", n.cfg.Name, err)}
	} else {
		a = n.here(ctx, e)
	}
	out, err := json.Marshal(a)
	if err != nil {
		return err
	}
	_ = c.SetWriteDeadline(time.Now().Add(patience))
	return writeBlock(c, out)
}

// here proposes an entry on this node, once.
func (n *Node) here(ctx context.Context, e *command.Entry) answer {
	r, err := n.st.Propose(ctx, e)
	switch {
	case err == nil:
		return answer{Result: r, Leads: true}
	case errors.Is(err, store.ErrNotLeader):
		return answer{}
	case errors.Is(err, store.ErrUnknownOutcome):
		return answer{Leads: true, Unknown: err.Error()}
	}
	return answer{Leads: true, Refused: err.Error()}
}

// there hands an entry to the leader. An error says that it may or may not have got there.
func (n *Node) there(ctx context.Context, address string, e *command.Entry) (a answer, err error) {
	b, err := e.Encode()
	if err != nil {
		return answer{Leads: true, Refused: err.Error()}, nil
	}
	c, err := n.cfg.peers.Dial(ctx, address)
	if err != nil {
		return answer{}, nil // it did not get there: as good as no leader
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if err := writeBlock(c, b); err != nil {
		return a, err
	}
	if b, err = readBlock(bufio.NewReader(c), maxAnswer); err != nil {
		return a, err
	}
	return a, json.Unmarshal(b, &a)
}

func writeBlock(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(b)), uint32(len(b))), b...))
	return err
}

func readBlock(r io.Reader, most int) ([]byte, error) {
	var h [4]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(h[:])
	if int64(n) > int64(most) {
		return nil, fmt.Errorf("a message of %d bytes, at most %d", n, most)
	}
	// As it comes, so that a length alone takes no memory.
	b, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(b) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}
