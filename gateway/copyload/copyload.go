package copyload

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"demarc/cluster/transport"
	"demarc/configs"
	"demarc/gateway/conntrack"
	"demarc/gateway/fib"
	"demarc/gateway/lease"
	"demarc/gateway/nat"
	"demarc/gateway/packet/csum"
	"demarc/gateway/pipeline"
	"demarc/gateway/replica"
	"demarc/gateway/snapshot"
	"demarc/gateway/standby"
	"demarc/gateway/stream"
	"demarc/gateway/worker"
	"demarc/gateway/xsk"
)

const nodeText = `
schema = 1
name = "copyload"
[tables]
sessions = %d
mappings = %d
tenants = 8
frames = 1024
[[port]]
device = "bb0"
[[port]]
device = "t0"
[[interface]]
name = "backbone"
port = "bb0"
addresses = ["203.0.113.1/24"]
[[interface]]
name = "alpha"
port = "t0"
addresses = ["198.18.10.1/24"]
`

// Ports rest for as short as can be: a round takes a third of a second, and with the default of two minutes the seventh found none.
const policyText = `
schema = 1
[timeouts]
nat_hold = "1s"
[backbone]
interfaces = ["backbone"]
[[route]]
prefix = "0.0.0.0/0"
via = "203.0.113.254"
[[tenant]]
name = "alpha"
interfaces = ["alpha"]
prefixes = ["198.18.10.0/24"]
[tenant.nat]
pool = ["192.0.2.16/28"]
[[group]]
name = "east"
id = 1
nodes = ["a", "b"]
tenants = ["alpha"]
[[group.address]]
interface = "backbone"
addresses = ["203.0.113.250/24"]
`

const (
	group = 1
	epoch = 5

	// Flows is how many conversations begin, one of each, before all are ended.
	Flows = 40_000
	room  = 1 << 17 // of either table

	patience = 30 * time.Second // with what is on its way
)

// node is one end: a worker without ports, and its tables.
type node struct {
	w     *worker.Worker
	sh    *pipeline.Shard
	umem  *xsk.UMEM
	clock *worker.Clock
	view  *snapshot.View
	until lease.Deadlines
}

func newNode() (n *node, err error) {
	n = &node{}
	conf, err := configs.DecodeNode("node.toml", fmt.Appendf(nil, nodeText, room, room))
	if err != nil {
		return nil, err
	}
	policy, err := configs.DecodePolicy("policy.toml", []byte(policyText))
	if err != nil {
		return nil, err
	}
	space := nat.NewSpace(64)
	n.view, err = snapshot.Compile(snapshot.Input{Policy: policy, Node: conf, HomeSeed: 1, Links: []snapshot.Link{{MAC: [6]byte{2, 0, 0, 0, 0, 1}, MTU: 1500}, {MAC: [6]byte{2, 0, 0, 0, 0, 2}, MTU: 1500}},
		LinkLocal: func(m [6]byte) netip.Addr { return netip.AddrFrom16([16]byte{0xfe, 0x80, 15: m[5]}) }})
	if err != nil {
		return nil, err
	}
	if err := n.view.Register(space); err != nil {
		return nil, err
	}
	n.view.Activate(space)
	if n.clock, err = worker.NewClock(); err != nil {
		return nil, err
	}
	n.sh, err = pipeline.NewShard(pipeline.Config{SessionMem: make([]byte, conntrack.Bytes(room)+64), Sessions: room, NATMem: make([]byte, nat.Bytes(room)+64), PermitMem: make([]byte, nat.PermitBytes(room)+64), Mappings: room,
		Tenants: snapshot.MaxTenantID(conf), ShaperMax: 256, Seed: 1, Space: space, Neighbors: fib.NewNeighbors(4096, 1), Deadlines: &n.until})
	if err != nil {
		return nil, err
	}
	if n.umem, err = xsk.NewUMEM(512, 2048); err != nil {
		return nil, err
	}
	n.w, err = worker.New(worker.Config{CPU: -1, Ports: 2, Areas: []*xsk.UMEM{n.umem}, Shard: n.sh, Clock: n.clock, Spin: 1, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, errors.Join(err, n.umem.Close())
	}
	worker.Connect([]*worker.Worker{n.w})
	n.w.Publish(n.view)
	return n, nil
}

// Pair is both ends.
type Pair struct {
	from, to *node
	set      *stream.Set
	sb       *standby.Standby
	frames   [][]byte
	closing  []io.Closer
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	failed   atomic.Pointer[error] // what ended that should not
	ended    atomic.Pointer[error] // why the last connection did
}

// Open makes both ends, with keys in a directory, and returns when the copy of an empty table is whole.
func Open(ctx context.Context, dir string) (p *Pair, err error) {
	p = &Pair{frames: conversations()}
	p.ctx, p.cancel = context.WithCancel(ctx)
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	for _, n := range []**node{&p.from, &p.to} {
		if *n, err = newNode(); err != nil {
			return nil, err
		}
		p.run((*n).w.Run)
	}
	p.sb = standby.New(standby.Config{Shards: []*pipeline.Shard{p.to.sh}, View: func() *snapshot.View { return p.to.view }, Now: func() int64 { return int64(p.to.clock.Exact()) }, Log: slog.New(slog.DiscardHandler),
		Steps:  func(_ int, fn func(*pipeline.Shard, time.Duration) bool) error { return p.to.w.Steps(p.ctx, fn) },
		Taken:  func(v *snapshot.View) bool { return int32(p.to.w.Stats().Gen-v.Gen) >= 0 },
		Member: func(string) (bool, error) { return true, nil }})
	p.run(p.sb.Run)
	dial, err := p.members(dir)
	if err != nil {
		return nil, err
	}
	life := rand.Uint64() | 1
	p.set = stream.NewSet("b", life)
	out := replica.NewSender(pipeline.Copies{Shard: p.from.sh}, p.from.sh.Sessions.Capacity(), 0, 1, life, rand.Uint64(), replica.Limits{})
	if err := p.from.w.CopyTo(p.ctx, p.set.Add(out, p.from.w.Call)); err != nil {
		return nil, err
	}
	if err := p.from.w.Do(p.ctx, func(sh *pipeline.Shard) { sh.TakeOver(group) }); err != nil {
		return nil, err
	}
	p.from.until.Write(group, epoch, 1<<63)
	p.sb.Serving(group, epoch, false)
	if err := p.set.Own(p.ctx, group, epoch); err != nil {
		return nil, err
	}
	p.run(func(ctx context.Context) error { p.set.Run(ctx, dial); return nil })
	return p, p.there(0)
}

// run has something go on until Close. What ends before that is told by whatever waits next.
func (p *Pair) run(fn func(context.Context) error) {
	p.wg.Go(func() {
		if err := fn(p.ctx); err != nil && p.ctx.Err() == nil {
			p.failed.CompareAndSwap(nil, &err)
		}
	})
}

// members are two of one cluster, one of which dials the other.
func (p *Pair) members(dir string) (dial func(context.Context) (net.Conn, error), err error) {
	ca, err := transport.NewAuthority(filepath.Join(dir, "ca"), "copyload", time.Now())
	if err != nil {
		return nil, err
	}
	var ends [2]*transport.Transport
	for i, name := range []string{"a", "b"} {
		keys := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(keys, 0o700), ca.Issue(keys, name, time.Now())); err != nil {
			return nil, err
		}
		k, err := transport.OpenKeyring(keys, time.Now, nil)
		if err != nil {
			return nil, err
		}
		if ends[i], err = transport.Listen(transport.Config{Address: "127.0.0.1:0", Keys: k}); err != nil {
			return nil, err
		}
		p.closing = append(p.closing, ends[i])
	}
	p.run(func(ctx context.Context) error {
		for {
			c, err := ends[1].SessionConns().Accept()
			if err != nil {
				return err
			}
			p.wg.Go(func() {
				err := p.sb.Serve("a", c) // a link that breaks is dialled again
				p.ended.Store(&err)
			})
		}
	})
	return func(ctx context.Context) (net.Conn, error) { return ends[0].DialSessions(ctx, ends[1].Address()) }, nil
}

// Close ends both ends.
func (p *Pair) Close() error {
	p.cancel()
	if p.set != nil {
		p.set.Close()
	}
	var errs []error
	for _, c := range p.closing {
		errs = append(errs, c.Close())
	}
	p.wg.Wait()
	for _, n := range []*node{p.from, p.to} {
		if n != nil {
			errs = append(errs, n.w.Close(), n.umem.Close())
		}
	}
	return errors.Join(errs...)
}

func (p *Pair) copy() stream.Copy { return p.set.Copy(int64(p.from.clock.Now()), group) }

// there waits until both tables have so many sessions and nothing is on its way. Until the owner has them, those that have not begun are tried again: no public port is given to a conversation before the standby has acknowledged
// that its block is in use, and on a machine that is elsewhere the blocks that are kept open ahead are all taken meanwhile; a host sends again then. What has just been marked does not count as behind before the stream has looked: so the tables are asked, too.
func (p *Pair) there(want int) error {
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		var n [2]int
		for i, x := range []*node{p.from, p.to} {
			if err := x.w.Do(p.ctx, func(sh *pipeline.Shard) { n[i] = sh.Sessions.Len() }); err != nil {
				return err
			}
		}
		if n[0] < want {
			if err := p.begin(0, want); err != nil {
				return err
			}
		}
		c := p.copy()
		if n == [2]int{want, want} && c.Whole && c.Lag == 0 {
			return nil
		}
		if err := p.failed.Load(); err != nil {
			return *err
		}
		if time.Now().After(end) {
			err := fmt.Errorf("after %s the owner has %d sessions and the standby %d, want %d: %s (lag %s)", patience, n[0], n[1], want, c.Words, c.Lag)
			if e := p.ended.Load(); e != nil {
				err = errors.Join(err, *e)
			}
			return err
		}
	}
}

// begin has the owner's worker judge the first packets of conversations, a burst at a time.
func (p *Pair) begin(from, to int) error {
	var mem [pipeline.Burst * 2048]byte
	for at := from; at < to; at += pipeline.Burst {
		part := p.frames[at:min(at+pipeline.Burst, to)]
		if err := p.from.w.Do(p.ctx, func(sh *pipeline.Shard) {
			var slots [pipeline.Burst]pipeline.Slot
			for k, f := range part {
				slots[k].Buf, slots[k].Off, slots[k].Len, slots[k].Port = mem[k*2048:(k+1)*2048], 256, len(f), 1
				copy(slots[k].Buf[256:], f)
			}
			sh.Process(slots[:len(part)], p.from.clock.Now())
		}); err != nil {
			return err
		}
	}
	return nil
}

// end ends all conversations.
func (p *Pair) end() error {
	return p.from.w.Do(p.ctx, func(sh *pipeline.Shard) { sh.Cut(func(*conntrack.Session) bool { return true }) })
}

// Round begins all conversations and ends them, as fast as the owner can, and says how many events a second that is until the last of them is in the standby's table. An event is a session that began, or ended, and the
// standby's table has it, by its own count.
func (p *Pair) Round() (rate float64, err error) {
	before, took := p.sb.Status().Records, time.Duration(0)
	for _, x := range []struct {
		do   func() error
		want int
	}{{func() error { return p.begin(0, Flows) }, Flows}, {p.end, 0}} {
		began := time.Now()
		if err := x.do(); err != nil {
			return 0, err
		}
		if err := p.there(x.want); err != nil {
			return 0, err
		}
		took += time.Since(began)
	}
	if n := p.sb.Status().Records - before; n < 2*Flows {
		return 0, fmt.Errorf("%d records for %d events", n, 2*Flows)
	}
	return 2 * Flows / took.Seconds(), nil
}

// Lags begins all conversations at so many a second, looks each millisecond how far the standby is behind, in ms, and says how many a second they were. Then it ends them.
func (p *Pair) Lags(rate int) (lags []float64, got float64, err error) {
	each := max(1, rate/1000)
	began := time.Now()
	n := 0
	for ; n+each <= Flows; n += each {
		if err := p.begin(n, n+each); err != nil {
			return nil, 0, err
		}
		lags = append(lags, float64(p.copy().Lag)/1e6)
		time.Sleep(time.Until(began.Add(time.Duration(n/each+1) * time.Millisecond)))
	}
	got = float64(n) / time.Since(began).Seconds()
	if err := p.there(n); err != nil {
		return nil, 0, err
	}
	if err := p.end(); err != nil {
		return nil, 0, err
	}
	return lags, got, p.there(0)
}

// conversations are their first packets: UDP from 50 hosts, without a checksum.
func conversations() (list [][]byte) {
	for i := range Flows {
		b := make([]byte, 14+20+8+16)
		copy(b, []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 9, 8, 0})
		ip := b[14:]
		ip[0], ip[8], ip[9] = 0x45, 64, 17
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		copy(ip[12:], []byte{198, 18, 10, byte(20 + i%50), 203, 0, 113, byte(10 + i/50%100)})
		binary.BigEndian.PutUint16(ip[10:], csum.Checksum(csum.Sum(0, ip[:20])))
		binary.BigEndian.PutUint16(ip[20:], uint16(1024+i))
		binary.BigEndian.PutUint16(ip[22:], 53)
		binary.BigEndian.PutUint16(ip[24:], uint16(len(ip)-20))
		list = append(list, b)
	}
	return list
}
