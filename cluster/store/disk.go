package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// engine is what keeps logs, terms and votes: bbolt, or a test's.
type engine interface {
	raft.LogStore
	raft.StableStore
	Close() error
}

// ErrNotWritten means that an entry was not written because this node's disk refused: it has not taken effect and never will.
var ErrNotWritten = errors.New("nothing was changed: this node's disk refused to keep it")

// notWritten is ErrNotWritten with the disk's reason and what would help.
type notWritten struct{ cause error }

func (e *notWritten) Error() string {
	return ErrNotWritten.Error() + ": " + e.cause.Error() + helps(e.cause)
}

func (e *notWritten) Unwrap() []error { return []error{ErrNotWritten, e.cause} }

// helps says what to do about a disk's refusal.
func helps(err error) string {
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return " (make room on that file system; nothing needs a restart)"
	case errors.Is(err, syscall.EDQUOT):
		return " (raise the quota or make room; nothing needs a restart)"
	case errors.Is(err, syscall.EROFS):
		return " (the data directory must be writable)"
	}
	return ""
}

// How long between two looks at a disk that refuses: in the background, and where Raft waits.
const (
	diskPace = 250 * time.Millisecond
	waitPace = 50 * time.Millisecond
)

// disk stands between Raft and the engine. Raft panics when it cannot write its term or read a committed entry, and leaves its own memory wrong
// after some writes that fail (DESIGN.md has the list): here each of them becomes a wait, a refusal, or a node that has stopped and says so.
// Every entry has a checksum: the engine would hand out a page whose bits have changed, which on a follower would be another
// state than everybody else's, without a word.
type disk struct {
	in     engine
	log    *slog.Logger
	stop   func(error)                 // ends taking part, for good
	base   func() (index, term uint64) // what the newest snapshot is of; nil = nobody knows of any
	done   func() uint64               // the last entry that was carried out; nil = nobody knows
	end    chan struct{}               // closed when the store closes or has stopped
	once   sync.Once
	wg     sync.WaitGroup
	others func() // is told that the newest members in the log are others; nil = nobody is
	meter  meter
	cold   bool // for tests: every entry is read from the engine

	mu      sync.Mutex
	hard    hard       // mu: as it is on disk
	kept    bool       // mu: hard is on disk
	vote    uint64     // mu: the term of a vote that is being given
	cut     bool       // mu: the log's end was taken off and what replaces it is not there yet
	trouble error      // mu: why a write failed; nil = none did since one of want bytes did not
	want    int        // mu: bytes of the largest write that failed since there is trouble
	fails   uint64     // mu: writes that failed
	last    []raft.Log // mu: the last entries that were appended, a few; what is read from the engine stays in memory that is mapped from its file
	sizes   []int      // mu: of the last entries that were appended, the newest last
	fresh   int64      // mu: bytes that were appended since the last snapshot was asked for
	looking bool       // mu: whether it works again is looked at in the background
	broken  error      // mu: the engine panicked: it is not called any more
	newest  *newest    // mu: valid when scanned; nil = there is none in the log
	scanned bool       // mu
}

func openDisk(in engine, log *slog.Logger, stop func(error)) (*disk, error) {
	d := &disk{in: in, log: log, stop: stop, end: make(chan struct{})}
	var b []byte
	err := d.guard(func() (err error) { b, err = in.Get(hardKey); return err })
	switch {
	case errors.Is(err, raftboltdb.ErrKeyNotFound):
	case err != nil:
		return nil, err
	default:
		if d.hard, err = readHard(b); err != nil {
			return nil, err
		}
		d.kept = true
	}
	return d, nil
}

// shut lets nothing more be written and ends every wait. Raft may still run.
func (d *disk) shut() { d.once.Do(func() { close(d.end) }) }

func (d *disk) ended() bool {
	select {
	case <-d.end:
		return true
	default:
		return false
	}
}

// close closes the engine. After Raft has ended.
func (d *disk) close() error {
	d.shut()
	d.wg.Wait()
	d.mu.Lock()
	broken := d.broken
	d.mu.Unlock()
	if broken != nil {
		go d.in.Close() // it may hold its own locks for ever
		return nil
	}
	return d.in.Close()
}

// guard has what goes wrong inside the engine come out as an error: bbolt panics on a page that makes no sense, and memory that is mapped from a file faults
// when the file has become shorter or its disk does not answer.
func (d *disk) guard(fn func() error) (err error) {
	d.mu.Lock()
	err = d.broken
	d.mu.Unlock()
	if err != nil {
		return err
	}
	err = guard(fn)
	if errors.Is(err, errPanic) {
		d.mu.Lock()
		d.broken = err
		d.mu.Unlock()
		d.stop(err) // what it has in memory cannot be trusted any more
	}
	return err
}

var errPanic = errors.New("raft.db is damaged or cannot be read")

func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errPanic, r)
		}
	}()
	return fn()
}

// refusal reports whether it is the disk that says no, and not what is on it.
func refusal(err error) bool {
	for _, e := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EACCES, syscall.EPERM, syscall.EIO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// failed notes a write of size bytes that failed, says so once, and has somebody look whether so many can be written again: a smaller one proves nothing, for the
// engine's file has some room of its own.
func (d *disk) failed(size int, err error) {
	if nw := (*notWritten)(nil); errors.As(err, &nw) {
		err = nw.cause
	}
	d.mu.Lock()
	d.trouble, d.want = err, max(d.want, size)
	d.fails++
	look := !d.looking && !d.ended()
	d.looking = d.looking || look
	d.mu.Unlock()
	if look {
		d.log.Error("the disk refuses the replicated log", "err", err)
		d.wg.Go(d.look)
	}
}

func (d *disk) look() {
	t := time.NewTicker(diskPace)
	defer t.Stop()
	for {
		select {
		case <-d.end:
			return
		case <-t.C:
		}
		d.mu.Lock()
		size, fails := d.want, d.fails
		d.mu.Unlock()
		if d.write(size) != nil {
			continue
		}
		d.mu.Lock()
		over := d.fails == fails
		if over {
			d.trouble, d.want, d.looking = nil, 0, false
		}
		d.mu.Unlock()
		if over {
			d.log.Info("the disk takes the replicated log again")
			return
		}
	}
}

// write writes so many bytes and takes them back. What they took stays with the engine's file, for what comes next.
func (d *disk) write(size int) error {
	if err := d.guard(func() error { return d.in.Set(roomKey, make([]byte, size)) }); err != nil {
		return err
	}
	return d.guard(func() error { return d.in.Set(roomKey, []byte{}) })
}

// due reports whether so many bytes were appended since the last time that it was true, and how many of the last entries are within keep bytes.
func (d *disk) due(most, keep int64) (trailing uint64, due bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fresh < most {
		return 0, false
	}
	d.fresh = 0
	for i := len(d.sizes) - 1; i >= 0 && keep >= int64(d.sizes[i]); i-- {
		keep -= int64(d.sizes[i])
		trailing++
	}
	return max(trailing, 1), true
}

// room looks whether so many bytes can be written now.
func (d *disk) room(size int) error {
	if d.ended() {
		return errEnded
	}
	d.mu.Lock()
	fails := d.fails
	d.mu.Unlock()
	err := d.write(size)
	if err != nil {
		d.failed(size, err)
		return err
	}
	d.mu.Lock()
	if size >= d.want && d.fails == fails {
		d.trouble, d.want = nil, 0
	}
	d.mu.Unlock()
	return nil
}

// undo takes back a beginning that Raft left half done: the term of it is on disk and the first entry is not. No leader ever has that term.
func (d *disk) undo() error {
	d.mu.Lock()
	h := d.hard
	d.mu.Unlock()
	last, err := d.LastIndex()
	if err != nil || last != 0 || h.term != 1 || h.voted != 0 {
		return err
	}
	return d.keep(hard{})
}

// refuses is why the disk takes nothing now; nil when it does.
func (d *disk) refuses() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.broken != nil {
		return d.broken
	}
	return d.trouble
}

// hard is what Raft must not forget. It is one record, so that a vote is there with its term or not at all, and costs one write.
type hard struct {
	term, voted uint64 // voted: the term in which candidate got the vote
	candidate   []byte
}

var hardKey, roomKey = []byte("hard"), []byte("room")

func (h hard) bytes() []byte {
	b := binary.LittleEndian.AppendUint64(nil, h.term)
	b = binary.LittleEndian.AppendUint64(b, h.voted)
	b = append(b, h.candidate...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func readHard(b []byte) (hard, error) {
	n := len(b) - 4
	if n < 16 || crc32.Checksum(b[:n], castagnoli) != binary.LittleEndian.Uint32(b[n:]) {
		return hard{}, errors.New("the term and vote are damaged: their checksum does not match")
	}
	return hard{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), append([]byte(nil), b[16:n]...)}, nil
}

func (d *disk) keep(h hard) error {
	b := h.bytes()
	if err := d.timed(func() error { return d.in.Set(hardKey, b) }); err != nil {
		d.failed(len(b), err)
		return err
	}
	d.mu.Lock()
	d.hard, d.kept = h, true
	d.mu.Unlock()
	return nil
}

// The keys that Raft uses.
const (
	keyTerm      = "CurrentTerm"
	keyVoteTerm  = "LastVoteTerm"
	keyCandidate = "LastVoteCand"
)

var errEnded = errors.New("this node is being stopped")

// SetUint64 keeps Raft's term, or begins a vote. Raft panics when it cannot write its term: so it waits until it can. Meanwhile it neither votes
// nor follows, as it must not.
func (d *disk) SetUint64(key []byte, v uint64) error {
	d.mu.Lock()
	h, kept := d.hard, d.kept
	switch string(key) {
	case keyVoteTerm:
		d.vote = v // on disk with the candidate, who comes next
		d.mu.Unlock()
		return nil
	case keyTerm:
	default:
		d.mu.Unlock()
		return fmt.Errorf("%q is no key of Raft's", key)
	}
	d.mu.Unlock()
	if h.term == v && (kept || v == 0) {
		return nil // Raft writes its term at each start
	}
	h.term = v
	for !d.ended() {
		if d.keep(h) == nil {
			return nil
		}
		select {
		case <-d.end:
		case <-time.After(waitPace):
		}
	}
	return nil // Raft ends. Neither a vote nor an entry of this term will be on disk.
}

// Set keeps a vote. One that cannot be kept is not given.
func (d *disk) Set(key, val []byte) error {
	if string(key) != keyCandidate {
		return fmt.Errorf("%q is no key of Raft's", key)
	}
	if d.ended() {
		return errEnded
	}
	d.mu.Lock()
	h := d.hard
	h.voted, h.candidate = d.vote, append([]byte(nil), val...)
	d.mu.Unlock()
	return d.keep(h)
}

// GetUint64 answers from memory, which is as on disk.
func (d *disk) GetUint64(key []byte) (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case !d.kept:
		return 0, raftboltdb.ErrKeyNotFound
	case string(key) == keyTerm:
		return d.hard.term, nil
	case string(key) == keyVoteTerm:
		return d.hard.voted, nil
	}
	return 0, fmt.Errorf("%q is no key of Raft's", key)
}

// Get answers whom the last vote was for.
func (d *disk) Get(key []byte) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if string(key) != keyCandidate {
		return nil, fmt.Errorf("%q is no key of Raft's", key)
	}
	if len(d.hard.candidate) == 0 {
		return nil, raftboltdb.ErrKeyNotFound
	}
	return d.hard.candidate, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sum(l *raft.Log) uint32 {
	var head [17]byte
	binary.LittleEndian.PutUint64(head[0:], l.Index)
	binary.LittleEndian.PutUint64(head[8:], l.Term)
	head[16] = byte(l.Type)
	return crc32.Update(crc32.Checksum(head[:], castagnoli), castagnoli, l.Data)
}

// StoreLog is StoreLogs of one.
func (d *disk) StoreLog(l *raft.Log) error { return d.StoreLogs([]*raft.Log{l}) }

// StoreLogs appends entries, all or none. An error that is ErrNotWritten is certain of none.
func (d *disk) StoreLogs(list []*raft.Log) error {
	out := make([]*raft.Log, len(list))
	size, members := 0, false
	for i, l := range list {
		o := *l
		o.Extensions = binary.LittleEndian.AppendUint32(nil, sum(l))
		out[i] = &o
		size += len(o.Data)
		members = members || l.Type == raft.LogConfiguration
	}
	for {
		if d.ended() {
			return &notWritten{errEnded}
		}
		err := d.append(out)
		d.mu.Lock()
		cut := d.cut
		if err == nil {
			d.cut = false
			d.fresh += int64(size)
			for i, l := range list {
				d.sizes = append(d.sizes, len(l.Data))
				d.last = append(d.last, *list[i])
				d.noted(list[i])
			}
			n, bytes := len(d.last)-1, 0
			for ; n > 0; n-- {
				if bytes += len(d.last[n].Data); bytes+len(d.last[n-1].Data) > recentBytes || len(d.last)-n >= maxTrailing {
					break
				}
			}
			d.last = append([]raft.Log(nil), d.last[n:]...)
			d.sizes = d.sizes[max(0, len(d.sizes)-maxTrailing):]
		}
		d.mu.Unlock()
		if err == nil {
			if members && d.others != nil {
				d.others()
			}
			return nil
		}
		d.failed(size, err)
		switch {
		case cut:
			// Raft's memory still has the end that was taken off: it must not go on before there is another one.
			select {
			case <-d.end:
			case <-time.After(waitPace):
			}
			continue
		case members && calledBy("appendConfigurationEntry"):
			// The leader has taken the new members up already and would count votes by them.
			d.stop(fmt.Errorf("a change of members could not be written: %w%s: then start this node again", err, helps(err)))
		}
		return err
	}
}

// recentBytes of the last entries are kept in memory: a follower applies them a moment later, a leader sends them on.
const recentBytes = 3 << 20

func (d *disk) recent(index uint64, l *raft.Log) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.last {
		if d.last[i].Index == index {
			*l = d.last[i]
			return true
		}
	}
	return false
}

// append tries once. A commit of the engine's may fail after it was written, so what is there is looked at and taken away.
func (d *disk) append(out []*raft.Log) error {
	err := d.timed(func() error { return d.in.StoreLogs(out) })
	if err == nil {
		return nil
	}
	first, last := out[0].Index, uint64(0)
	lerr := d.guard(func() (err error) { last, err = d.in.LastIndex(); return err })
	if lerr == nil && last >= first {
		lerr = d.guard(func() error { return d.in.DeleteRange(first, last) })
	}
	if lerr != nil {
		return fmt.Errorf("%w; whether it is on disk could not be found out: %w", err, lerr)
	}
	return &notWritten{err}
}

// DeleteRange shortens the log at its beginning, or takes its end off because a leader has another one.
func (d *disk) DeleteRange(from, to uint64) error {
	if d.ended() {
		return errEnded
	}
	last, err := d.LastIndex()
	if err != nil {
		return err
	}
	if d.done != nil && to >= last {
		// Not so where Raft shortens the log behind a snapshot while it takes the end off: there everything may go.
		if n := d.done(); from <= n && calledBy("appendEntries") {
			err := fmt.Errorf("the leader has another entry %d than the one that was carried out here, and %d were: it has lost what was agreed on, or this node has", from, n)
			d.stop(err)
			return err
		}
	}
	d.mu.Lock()
	d.last = nil
	d.mu.Unlock()
	if err := d.guard(func() error { return d.in.DeleteRange(from, to) }); err != nil {
		d.failed(0, err)
		return err
	}
	d.mu.Lock()
	d.cut = d.cut || to >= last && from <= last
	gone := d.forgot(from, to, last)
	d.mu.Unlock()
	if gone && d.others != nil {
		d.others()
	}
	return nil
}

// differs reports whether the log has an entry of another term at index.
func (d *disk) differs(index, term uint64) bool {
	var l raft.Log
	return d.read(index, &l) == nil && l.Term != term
}

// clear takes everything off the log. Before Raft begins.
func (d *disk) clear() error {
	first, err := d.FirstIndex()
	if err != nil {
		return err
	}
	last, err := d.LastIndex()
	if err != nil {
		return err
	}
	return d.guard(func() error { return d.in.DeleteRange(first, last) })
}

// FirstIndex is the log's first entry; 0 = none.
func (d *disk) FirstIndex() (n uint64, err error) {
	err = d.guard(func() (err error) { n, err = d.in.FirstIndex(); return err })
	return n, err
}

// LastIndex is the log's last entry; 0 = none.
func (d *disk) LastIndex() (n uint64, err error) {
	err = d.guard(func() (err error) { n, err = d.in.LastIndex(); return err })
	return n, err
}

// GetLog reads an entry. Where Raft would panic if it could not, which is a committed entry that is to be applied, this node stops applying.
func (d *disk) GetLog(index uint64, l *raft.Log) error {
	err := d.read(index, l)
	if err != nil && calledBy("processLogs") {
		if errors.Is(err, raft.ErrLogNotFound) {
			err = fmt.Errorf("the log is damaged: entry %d is missing", index)
		}
		d.stop(err)
		// Nothing is applied after stop, so it matters to nobody what this is.
		*l = raft.Log{Index: index, Type: raft.LogNoop}
		return nil
	}
	if errors.Is(err, raft.ErrLogNotFound) && d.base != nil && (calledBy("appendEntries") || calledBy("setPreviousLog")) {
		// The log begins behind the snapshot, and a leader asks whether it may go on from there, or goes on from there itself. Raft looks into the log only: it would refuse
		// for ever where what follows the snapshot here was never agreed on, and send its snapshot for ever where it has an older one in mind.
		if i, term := d.base(); i == index {
			*l = raft.Log{Index: index, Term: term, Type: raft.LogNoop}
			return nil
		}
	}
	return err
}

func (d *disk) read(index uint64, l *raft.Log) error {
	// The engine decodes into the bytes that l has already, and those may be an entry's that is kept here and on its way to others.
	*l = raft.Log{}
	if !d.cold && d.recent(index, l) {
		return nil
	}
	if err := d.guard(func() error { return d.in.GetLog(index, l) }); err != nil {
		if errors.Is(err, raft.ErrLogNotFound) {
			return err
		}
		return fmt.Errorf("log entry %d: %w", index, err)
	}
	if len(l.Extensions) != 4 {
		return fmt.Errorf("log entry %d is damaged: it has no checksum", index)
	}
	if l.Index != index || sum(l) != binary.LittleEndian.Uint32(l.Extensions) {
		return fmt.Errorf("log entry %d is damaged: its checksum does not match", index)
	}
	l.Extensions = nil
	return nil
}

// calledBy reports whether it is this method of Raft's that asks, by the stack: there are two that must not get an error, and the same calls come from
// others that must. It is looked at when something has gone wrong and never otherwise.
func calledBy(method string) bool {
	var pcs [32]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, "raft.(*Raft)."+method) {
			return true
		}
		if !more {
			return false
		}
	}
}

// IsMonotonic says that gaps are allowed: after a snapshot of the leader's the log goes on beyond what is there.
func (d *disk) IsMonotonic() bool { return false }

// check reads the log, so that damage is found at start and by name and not in the middle of an election. Beyond the snapshot that ends at base it
// has no gap. It returns the last entry, without its data.
func (d *disk) check(base uint64) (tail raft.Log, err error) {
	first, err := d.FirstIndex()
	if err != nil {
		return tail, err
	}
	last, err := d.LastIndex()
	if err != nil || first == 0 {
		return tail, err
	}
	if first > base+1 {
		return tail, fmt.Errorf("the log begins with entry %d, and no snapshot that can be read reaches %d", first, first-1)
	}
	for i := first; i <= last; i++ {
		err := d.read(i, &tail)
		switch {
		case errors.Is(err, raft.ErrLogNotFound) && i <= base:
			continue
		case errors.Is(err, raft.ErrLogNotFound):
			return tail, fmt.Errorf("log entry %d is missing: the last one is %d", i, last)
		case err != nil:
			return tail, err
		}
		if err := entrySound(&tail); err != nil { // Raft would panic, at each start
			return tail, err
		}
	}
	tail.Data = nil
	return tail, nil
}
