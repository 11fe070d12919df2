package cluster

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"demarc/cluster/command"
	"demarc/cluster/store"
	"demarc/cluster/transport"
)

// Peers connects a node to the others for requests, beside Raft's own streams.
type Peers interface {
	Dial(ctx context.Context, address string) (net.Conn, error)
	Requests() net.Listener
}

// What one member asks of another.
const (
	askPropose = "propose" // the leader: have an entry carried out. Body: the entry
	askCheck   = "check"   // a gateway: could it serve this text, and what would that end. Body: the text
	askServed  = "served"  // a gateway: wait until it serves a revision
	askStatus  = "status"  // anybody
	askRenew   = "renew"   // who has the authority's key: a certificate. Body: the request for it
	askJoin    = "join"    // anybody, by a newcomer: take it in
	askRemove  = "remove"  // the leader: take a member out
	askPromote = "promote" // the leader: give a learner its vote now
	askYield   = "yield"   // the leader: let another one lead
	askMove    = "move"    // the owner of a group: hand it over
)

// A connection carries one request after the other. A request is a head as JSON and a body, an answer the same; each of the four has its
// length before it, 4 bytes, big-endian.
const (
	maxHead   = 256 << 10 // of a request
	maxBody   = command.MaxText + 128<<10
	maxAnswer = 1 << 20
	maxConns  = 128 // at a time, and
	maxOfPeer = 24  // of them, of one member
	maxLarge  = 4   // bodies above largeBody at a time, so that members cannot take all memory
	largeBody = 64 << 10
	patience  = 10 * time.Second // for the next bytes of what has begun, and for the first request
	idleTime  = 2 * time.Minute  // between two requests
	keepIdle  = 90 * time.Second // this side's, shorter so that it does not meet the other's end
	longWait  = time.Minute      // the longest that a member has another one wait
)

// request is the head of a request.
type request struct {
	Kind    string        `json:"kind"`
	Cluster string        `json:"cluster,omitempty"` // that the asker belongs to; "" = a newcomer
	ID      string        `json:"id,omitempty"`      // of the asker
	Wait    time.Duration `json:"wait_ns,omitempty"` // how long it waits for the answer

	Source string      `json:"source,omitempty"` // check
	Number uint64      `json:"number,omitempty"` // served
	Target string      `json:"target,omitempty"` // remove, promote, yield, move: a member's name
	Group  string      `json:"group,omitempty"`  // move
	Who    command.Who `json:"who"`

	Member  *command.Member `json:"member,omitempty"` // join: the newcomer
	Token   string          `json:"token,omitempty"`
	Replace string          `json:"replace,omitempty"` // name of the member whose place it takes
	Seen    *transport.Peer `json:"seen,omitempty"`    // the newcomer's certificate, as the member saw it that passes this on
}

// answer is the head of an answer.
type answer struct {
	Result  command.Result    `json:"result"`
	Leads   bool              `json:"leads"`             // of what only the leader does; false: ask another, nothing was done
	Unknown string            `json:"unknown,omitempty"` // the outcome is not known, and why
	Refused string            `json:"refused,omitempty"` // it was not done, and why
	Turned  transport.Refusal `json:"turned,omitempty"`  // the asker is not answered at all, and as what that counts

	Report *Report `json:"report,omitempty"`
	Status *Status `json:"status,omitempty"`
	Joined *Joined `json:"joined,omitempty"`
}

// listen answers the requests of other members until the listener ends.
func (n *Node) listen(ctx context.Context, l net.Listener) {
	var wg sync.WaitGroup
	defer wg.Wait()
	var mu sync.Mutex
	all, of := 0, map[string]int{}
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		name := transport.PeerOf(c).Name
		mu.Lock()
		busy := all >= maxConns || of[name] >= maxOfPeer
		if !busy {
			all++
			of[name]++
		}
		mu.Unlock()
		if busy { // who asks will ask again
			n.refuseConn(c, transport.Refuse(transport.RefusedBusy, "too many connections for requests"))
			continue
		}
		wg.Go(func() {
			defer func() {
				c.Close()
				mu.Lock()
				all--
				if of[name]--; of[name] == 0 {
					delete(of, name)
				}
				mu.Unlock()
			}()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			if err := n.serveRequests(ctx, c); err != nil && ctx.Err() == nil {
				n.refuseConn(c, err)
			}
		})
	}
}

// refuseConn counts and closes a connection whose requests are not answered any more.
func (n *Node) refuseConn(c net.Conn, err error) {
	if n.tr != nil {
		n.tr.Refuse(c, err)
		return
	}
	n.log.Warn("request of a member", "from", c.RemoteAddr().String(), "err", err)
	c.Close()
}

// serveRequests answers what comes on one connection. The error is why it came to its end before the peer ended it.
func (n *Node) serveRequests(ctx context.Context, c net.Conn) error {
	p := transport.PeerOf(c)
	r := bufio.NewReaderSize(c, 16<<10)
	for first := true; ; first = false {
		wait := idleTime
		if first {
			wait = patience
		}
		_ = c.SetReadDeadline(time.Now().Add(wait))
		if _, err := r.Peek(1); err != nil {
			if first {
				return transport.Refuse(transport.RefusedRequest, "nothing was asked: %w", err)
			}
			return nil
		}
		q, body, err := n.readRequest(c, r, p)
		if err != nil {
			return err
		}
		a, out, end := n.handle(ctx, p, q, body)
		head, err := json.Marshal(a)
		if err != nil {
			return err
		}
		if len(head) > maxAnswer {
			return fmt.Errorf("the answer to %q takes %d bytes, at most %d", q.Kind, len(head), maxAnswer)
		}
		_ = c.SetWriteDeadline(time.Now().Add(patience))
		if err := writeBlock(c, head); err != nil {
			return nil // the peer has gone
		}
		_ = c.SetWriteDeadline(time.Now().Add(longWait))
		if err := writeBlock(c, out); err != nil {
			return nil
		}
		if end != nil {
			return end
		}
	}
}

// readRequest reads one request. The bytes of a large body are taken only when there is a place for it.
func (n *Node) readRequest(c net.Conn, r *bufio.Reader, p transport.Peer) (q request, body []byte, err error) {
	bad := func(err error) error { return transport.Refuse(transport.RefusedRequest, "a request: %w", err) }
	head, err := readBlock(c, r, maxHead, patience)
	if err != nil {
		return q, nil, bad(err)
	}
	if err := json.Unmarshal(head, &q); err != nil {
		return q, nil, bad(err)
	}
	size, err := r.Peek(4)
	if err != nil {
		return q, nil, bad(err)
	}
	if bytes := binary.BigEndian.Uint32(size); bytes > largeBody && bytes <= maxBody { // of more nothing is read
		if n.mayAsk(p, &q) != nil { // a place is for who may ask: it is read away, so that the refusal arrives
			for left := int64(bytes) + 4; left > 0; left -= pieceOfBody {
				_ = c.SetReadDeadline(time.Now().Add(patience))
				if _, err := io.CopyN(io.Discard, r, min(left, pieceOfBody)); err != nil {
					return q, nil, bad(err)
				}
			}
			return q, nil, nil
		}
		select {
		case n.large <- struct{}{}:
			defer func() { <-n.large }()
		case <-time.After(patience):
			return q, nil, transport.Refuse(transport.RefusedBusy, "too many large requests at a time")
		}
	}
	if body, err = readBlock(c, r, maxBody, patience); err != nil {
		return q, nil, bad(err)
	}
	return q, body, nil
}

// pieceOfBody is how much of a body must come within patience.
const pieceOfBody = 64 << 10

// handle carries out one request. end is set when the peer is not to be answered after this.
func (n *Node) handle(ctx context.Context, p transport.Peer, q request, body []byte) (a answer, out []byte, end error) {
	if err := n.mayAsk(p, &q); err != nil {
		return answer{Leads: true, Refused: err.Error(), Turned: transport.KindOf(err)}, nil, err
	}
	wait := longWait
	if q.Wait > 0 {
		wait = min(wait, q.Wait)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	switch q.Kind {
	case askPropose, askRemove, askPromote, askYield:
		a, out = n.lead(ctx, &q, body)
	case askJoin:
		if q.Seen == nil && p.Name != "" { // else a member has passed it on, and is believed
			q.Seen = &p
			a, out = n.passOn(ctx, &q)
		} else {
			a, out = n.lead(ctx, &q, body)
		}
	case askCheck:
		a = n.checkHere(ctx, q.Source, body)
	case askServed:
		if err := n.Await(ctx, q.Number); err != nil {
			a.Refused = err.Error()
		}
	case askStatus:
		a.Status = n.status()
	case askRenew:
		a, out = n.renewFor(p, body)
	case askMove:
		a = n.moveHere(ctx, &q)
	default:
		a = answer{Leads: true, Refused: fmt.Sprintf("%s (version %s) does not know the request %q: upgrade it", n.cfg.Name, n.cfg.Version, q.Kind)}
	}
	return a, out, nil
}

// mayAsk holds the asker to be of this cluster, and a member of it unless it is about to become one.
func (n *Node) mayAsk(p transport.Peer, q *request) error {
	id := n.ClusterID()
	newcomer := q.Kind == askJoin && q.Seen == nil
	switch {
	case newcomer && q.Cluster == "":
	case q.Cluster != id && id != "":
		return transport.Refuse(transport.RefusedCluster, "%s belongs to cluster %s, %s is of %s", orUnnamed(p.Name), q.Cluster, n.cfg.Name, id)
	}
	if newcomer || p.Name == "" { // a Peer without a name is not of a Transport
		return nil
	}
	return n.mayEnter(p, q.ID)
}

func orUnnamed(name string) string {
	if name == "" {
		return "the asker"
	}
	return name
}

// informed reports whether this node's list of members can be taken to be whole: it leads, or hears of who leads. Else somebody who has joined meanwhile may
// lead by now, and refusing it would keep this node from ever learning so.
func (n *Node) informed() bool {
	return n.current.Load() && n.st.Stopped() == "" && (n.st.Leads() || time.Since(n.st.Heard()) < n.pace(time.Second)+4*n.cfg.RoundTrip())
}

// mayEnter refuses who was removed and, while this node knows who is a member, who is none. That an id is forgotten is never undone. That a certificate is may be: by a token its
// machine joins as a new member, and this node may not have heard of it yet, from nobody but that one, if it leads.
func (n *Node) mayEnter(p transport.Peer, id string) error {
	s := n.st.State()
	for _, g := range s.Gone {
		if g.ID == id || g.Key != "" && g.Key == p.Key && n.informed() {
			return transport.Refuse(transport.RefusedRemoved, "%s", g.Words())
		}
	}
	if _, ok := s.Named(p.Name); !ok && s.Cluster != "" && n.informed() {
		return transport.Refuse(transport.RefusedNotMember, "%s is not a member of this cluster: `demarc cluster join` makes it one", p.Name)
	}
	return nil
}

// lead does what only the leader does. Where another one leads, the answer says so.
func (n *Node) lead(ctx context.Context, q *request, body []byte) (answer, []byte) {
	if !n.st.Leads() {
		return answer{}, nil
	}
	switch q.Kind {
	case askPropose:
		e, err := command.Decode(body)
		if err != nil {
			return answer{Leads: true, Refused: fmt.Sprintf("%s cannot read it: %v", n.cfg.Name, err)}, nil
		}
		return n.here(ctx, e), nil
	case askJoin:
		return n.takeIn(ctx, q)
	case askRemove:
		return n.takeOut(ctx, q), nil
	case askPromote:
		return n.promote(ctx, q.Target), nil
	}
	return n.yield(q.Target), nil
}

// known waits until all that is agreed on is applied here, so that State says it: a new leader may have been told of it, and not have got there. If it cannot, what is not known is in the answer.
func (n *Node) known(what string) (a answer, known bool) {
	switch err := n.st.Barrier(changeTime); {
	case err == nil:
		return answer{}, true
	case errors.Is(err, store.ErrNotLeader):
		return answer{}, false
	default:
		return refused("it cannot be said %s: %v", what, err), false
	}
}

// here proposes an entry on this node, once.
func (n *Node) here(ctx context.Context, e *command.Entry) answer {
	if e.Level > 1 || e.Kind == command.KindJoin { // who joins while it is being looked who could read an entry might not be able to
		n.entering.Lock()
		defer n.entering.Unlock()
	}
	if e.Level > 1 && n.st.Leads() {
		if a, known := n.known("who could read this"); !known {
			return a
		}
	}
	if why := unreadable(n.st.State(), e); why != "" && n.st.Leads() {
		return answer{Leads: true, Refused: why}
	}
	r, err := n.st.Propose(ctx, e)
	switch {
	case err == nil:
		n.st.Spread()
		return answer{Result: r, Leads: true}
	case errors.Is(err, store.ErrNotLeader):
		return answer{}
	case errors.Is(err, store.ErrUnknownOutcome):
		return answer{Leads: true, Unknown: strings.TrimPrefix(err.Error(), store.ErrUnknownOutcome.Error()+": ")}
	}
	return answer{Leads: true, Refused: err.Error()}
}

// able says why this node takes no changes.
func (n *Node) able() error {
	if p := n.st.Problem(); p != "" {
		return errors.New(p)
	}
	return n.out()
}

// out says that this node was taken out of the cluster: it would look for somebody who leads it for ever.
func (n *Node) out() error {
	why := ""
	if g, gone := n.st.State().Left(n.id); gone {
		why = g.Words()
	} else if t := n.turned.Load(); t != nil && t.kind == transport.RefusedRemoved {
		why = t.why
	}
	if why == "" {
		return nil
	}
	return fmt.Errorf("nothing was changed: %s", why)
}

// atLeader has whoever leads do something, again and again until there is an answer or ctx ends. That it may get there twice must do no harm.
func (n *Node) atLeader(ctx context.Context, q request, body []byte, here func(context.Context) (answer, []byte)) (answer, []byte, error) {
	unknown := ""
	for {
		var a answer
		var out []byte
		asked, address := n.st.Leader()
		if n.st.Leads() || n.cfg.peers == nil {
			a, out = here(ctx)
		} else if address != "" && !n.ended(asked) {
			var err error
			sent := false
			a, out, sent, err = n.callLeading(ctx, asked, address, q, body)
			switch {
			case err != nil && !sent:
				a = answer{} // it did not get there: as good as no leader
			case err != nil:
				a = answer{Leads: true, Unknown: err.Error()}
			}
		}
		switch {
		case a.Refused != "":
			return a, out, errors.New(a.Refused)
		case a.Unknown != "":
			unknown = a.Unknown
		case a.Leads && a.Result.Refused != nil:
			return a, out, a.Result.Refused
		case a.Leads:
			return a, out, nil
		}
		if err := n.out(); err != nil && unknown == "" {
			return answer{}, nil, err
		}
		if !n.leaderAgain(ctx, asked) {
			if unknown != "" {
				return answer{}, nil, fmt.Errorf("%w: %s", store.ErrUnknownOutcome, unknown)
			}
			return answer{}, nil, &leaderless{n.silent(), ctx.Err()}
		}
	}
}

const (
	leaderAgain = 20 * time.Millisecond // before the same leader is asked again
	leaderLook  = 2 * time.Millisecond  // whether there is another one
)

// leaderAgain waits a while, or until another one leads than was asked; false = ctx has ended.
func (n *Node) leaderAgain(ctx context.Context, asked string) bool {
	t := time.NewTicker(leaderLook)
	defer t.Stop()
	for end := time.Now().Add(leaderAgain); time.Now().Before(end) && !n.follows(asked); {
		select {
		case <-t.C:
		case <-ctx.Done():
			return false
		}
	}
	return ctx.Err() == nil
}

// follows reports whether another one leads than a member, as far as this node knows.
func (n *Node) follows(id string) bool {
	now, _ := n.st.Leader()
	return now != id && now != ""
}

// callLeading asks a member for as long as no other one leads, and its process is not known to have ended. A leader that is cut off never answers, and a claim of a group must not wait for it when there is
// another one; and connections of a process that has ended may stay open for longer than a lease, while the kernel gives back its memory.
func (n *Node) callLeading(ctx context.Context, id, address string, q request, body []byte) (a answer, out []byte, sent bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		t := time.NewTicker(leaderLook)
		defer t.Stop()
		for !n.ended(id) && !n.follows(id) {
			select {
			case <-t.C:
			case <-ctx.Done():
				return
			}
		}
		cancel()
	}()
	return n.call(ctx, address, q, body)
}

// leaderless says that nobody led while a change waited for that.
type leaderless struct {
	silent string
	why    error // that the wait is over, which says nothing to an operator
}

func (e *leaderless) Error() string {
	return "the cluster has no leader: nothing was changed" + e.silent
}
func (e *leaderless) Unwrap() error { return e.why }

// silent names the voters that did not answer the last time, with what they are of: nobody leads without a majority.
func (n *Node) silent() string {
	voters, err := n.st.Voters()
	if err != nil {
		return ""
	}
	var who []string
	votes := 0
	s := n.st.State()
	for _, v := range voters {
		if !v.Votes {
			continue
		}
		votes++
		if seen, ok := n.seenOf(v.ID); ok && seen.err != "" {
			m, _ := s.Member(v.ID)
			who = append(who, cmp.Or(m.Name, v.ID))
		}
	}
	if len(who) == 0 {
		return ""
	}
	slices.Sort(who)
	return fmt.Sprintf("; of %d with a vote %s not answer", votes, list(who)+map[bool]string{true: " does", false: " do"}[len(who) == 1])
}

// pool keeps connections to other members for the next request.
type pool struct {
	mu   sync.Mutex
	idle map[string][]idleConn
	shut bool
}

type idleConn struct {
	net.Conn
	since time.Time
}

const idlePerPeer = 3

func (p *pool) take(address string) net.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	for list := p.idle[address]; len(list) > 0; {
		c := list[len(list)-1]
		list = list[:len(list)-1]
		p.idle[address] = list
		if time.Since(c.since) < keepIdle {
			return c.Conn
		}
		c.Close()
	}
	return nil
}

func (p *pool) put(address string, c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shut || len(p.idle[address]) >= idlePerPeer {
		c.Close()
		return
	}
	if p.idle == nil {
		p.idle = map[string][]idleConn{}
	}
	p.idle[address] = append(p.idle[address], idleConn{c, time.Now()})
}

// close ends what is idle, for addresses that are not in keep. No address in keep: for good.
func (p *pool) close(keep []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shut = p.shut || len(keep) == 0
	for a, list := range p.idle {
		if !slices.Contains(keep, a) {
			for _, c := range list {
				c.Close()
			}
			delete(p.idle, a)
		}
	}
}

// call asks one member. sent says that the request may have got there.
func (n *Node) call(ctx context.Context, address string, q request, body []byte) (a answer, out []byte, sent bool, err error) {
	q.Cluster, q.ID = n.ClusterID(), n.id
	if d, ok := ctx.Deadline(); ok {
		q.Wait = max(time.Until(d), time.Millisecond)
	}
	// Who asks for a certificate shows the one that it has now; a connection that stands may show the one before.
	if c := n.pool.take(address); c != nil && q.Kind == askRenew {
		n.pool.put(address, c)
	} else if c != nil {
		a, out, err = exchange(ctx, c, q, body)
		if err == nil {
			n.letIn(address)
			n.pool.put(address, c)
			return a, out, true, nil
		}
		c.Close()
		if ctx.Err() != nil {
			return a, out, true, err
		}
		sent = true // on a connection that had ended, most likely: again on a new one
	}
	c, err := n.cfg.peers.Dial(ctx, address)
	if err != nil {
		return a, nil, sent, err
	}
	if a, out, err = exchange(ctx, c, q, body); err != nil {
		c.Close()
		if n.tr != nil { // the other side judges our certificate when the handshake is over here
			err = n.tr.Named(err)
		}
		return a, nil, true, err
	}
	if a.Turned != "" {
		c.Close()
		n.turnedAway(address, a.Refused, a.Turned)
		return a, out, true, nil
	}
	n.letIn(address)
	n.pool.put(address, c)
	return a, out, true, nil
}

// turnedAway notes that the member at address would not let this node in. It may be this node itself, which has come back to the address of what it was before and has read
// the log only to where that was taken out.
func (n *Node) turnedAway(address, why string, kind transport.Refusal) {
	if address != n.address {
		n.turned.Store(&turned{address, why, kind, time.Now()})
	}
}

// letIn forgets that the member at address would not let this node in: it knows better by now. Who has forgotten this node's id never does.
func (n *Node) letIn(address string) {
	if t := n.turned.Load(); t != nil && t.by == address {
		n.turned.CompareAndSwap(t, nil)
	}
}

// exchange sends one request and reads its answer.
func exchange(ctx context.Context, c net.Conn, q request, body []byte) (a answer, out []byte, err error) {
	head, err := json.Marshal(q)
	if err != nil {
		return a, nil, err
	}
	if len(head) > maxHead {
		return a, nil, fmt.Errorf("the request takes %d bytes, at most %d", len(head), maxHead)
	}
	wait := longWait
	if q.Wait > 0 {
		wait = q.Wait
	}
	_ = c.SetDeadline(time.Now().Add(wait + patience))
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer func() {
		if !stop() && err == nil { // it is closed by now
			err = ctx.Err()
		}
	}()
	if err := writeBlock(c, head); err != nil {
		return a, nil, err
	}
	if err := writeBlock(c, body); err != nil {
		return a, nil, err
	}
	r := bufio.NewReaderSize(c, 16<<10)
	b, err := readBlock(nil, r, maxAnswer, 0)
	if err != nil {
		return a, nil, err
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return a, nil, fmt.Errorf("the answer: %w", err)
	}
	out, err = readBlock(nil, r, maxBody, 0)
	return a, out, err
}

func writeBlock(w io.Writer, b []byte) error {
	head := binary.BigEndian.AppendUint32(nil, uint32(len(b)))
	if len(b) <= largeBody { // in one piece, which TLS makes one record of
		_, err := w.Write(append(head, b...))
		return err
	}
	if _, err := w.Write(head); err != nil {
		return err
	}
	_, err := w.Write(b)
	return err
}

// readBlock reads what writeBlock wrote. With a connection, each next piece must come within wait. A length alone takes no memory.
func readBlock(c net.Conn, r io.Reader, most int, wait time.Duration) ([]byte, error) {
	more := func() {
		if c != nil {
			_ = c.SetReadDeadline(time.Now().Add(wait))
		}
	}
	more()
	var h [4]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, err
	}
	size := int64(binary.BigEndian.Uint32(h[:]))
	if size > int64(most) {
		return nil, fmt.Errorf("a message of %d bytes, at most %d", size, most)
	}
	var out []byte
	for int64(len(out)) < size {
		piece := min(size-int64(len(out)), 64<<10)
		at := len(out)
		out = slices.Grow(out, int(piece))[:at+int(piece)]
		more()
		if _, err := io.ReadFull(r, out[at:]); err != nil {
			return nil, noEOF(err)
		}
	}
	return out, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
