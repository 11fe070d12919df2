package handed

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

const (
	// Name is the file, in the data directory.
	Name = "sessions.handed"

	taken = Name + ".taken" // a process has it, or had
	temp  = Name + ".tmp"

	magic   = "demarc-handed\n"
	format  = 1 // a file of another one is not read
	maxHead = 64 << 10

	// MaxChunk is the longest chunk.
	MaxChunk = 64 << 10
)

// Header says whose a file is, and of when.
type Header struct {
	Node     string `json:"node"`
	Version  string `json:"version"` // of the program that wrote it, for words
	Boot     string `json:"boot"`    // of the kernel: no file outlives it
	At       uint64 `json:"at"`      // CLOCK_BOOTTIME, ns
	Revision uint64 `json:"revision"`
	Digest   string `json:"digest"` // of the policy's text

	Terms map[string]Term `json:"terms"` // by group, those that the process had to its end; nil = it is of a release that did not say
}

// Term is one time of a node's being the owner of a group. What is left of it is good as long as nobody has had the group since.
type Term struct {
	Epoch uint64 `json:"epoch"`
	Life  uint64 `json:"life"`
	At    uint64 `json:"at"`  // CLOCK_BOOTTIME, ns: when it was last served, earlier than Header.At where the process was only left it
	All   bool   `json:"all"` // all is left that may be in use of public ports; else some rested that others had used before, and which is not
}

var (
	// ErrNone says that there is no file: nothing was handed over.
	ErrNone = errors.New("nothing was handed over")
	// ErrDamaged is in every error about what the file holds.
	ErrDamaged = errors.New("damaged")
	// ErrUnfinished says that a process has taken the file before and did not come as far as to be done with it.
	ErrUnfinished = errors.New("the process that took it up did not come as far as to forward")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A file is the magic, the format in two bytes, the length of the header in four, its sum, and the header. Then chunks: length and sum in four bytes each. Length 0 ends them: the sum is that of
// all sums of the file then, and the number of chunks stands behind it in eight bytes. All numbers are little-endian, all sums CRC-32C.

// Writer writes a file.
type Writer struct {
	dir    string
	f      *os.File
	b      *bufio.Writer
	sums   uint32
	chunks uint64
	size   int64
	most   int64
	err    error
}

// Create begins a file in dir of at most so many bytes. What was there of one before is no longer.
func Create(dir string, h *Header, most int64) (*Writer, error) {
	if err := Drop(dir); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, temp), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("hand sessions over: %w", err)
	}
	w := &Writer{dir: dir, f: f, b: bufio.NewWriterSize(f, 256<<10), most: most}
	text, err := json.Marshal(h)
	if err != nil {
		return nil, errors.Join(err, w.Abort())
	}
	head := binary.LittleEndian.AppendUint16([]byte(magic), format)
	w.write(head)
	w.part(text)
	return w, nil
}

func (w *Writer) write(b []byte) {
	if w.err != nil {
		return
	}
	if w.size += int64(len(b)); w.size > w.most {
		w.err = fmt.Errorf("it would be longer than %d MiB", w.most>>20)
		return
	}
	_, w.err = w.b.Write(b)
}

// part writes length, sum and bytes.
func (w *Writer) part(b []byte) {
	var head [8]byte
	sum := crc32.Checksum(b, castagnoli)
	binary.LittleEndian.PutUint32(head[:], uint32(len(b)))
	binary.LittleEndian.PutUint32(head[4:], sum)
	w.sums = crc32.Update(w.sums, castagnoli, head[4:])
	w.write(head[:])
	w.write(b)
}

// Chunk writes one chunk. An error comes with Commit, at the latest.
func (w *Writer) Chunk(b []byte) error {
	if len(b) == 0 || len(b) > MaxChunk {
		return fmt.Errorf("chunk of %d bytes, want 1 to %d", len(b), MaxChunk)
	}
	w.part(b)
	w.chunks++
	return w.err
}

// Commit ends the file and gives it its name. With an error there is none.
func (w *Writer) Commit() error {
	end := binary.LittleEndian.AppendUint32(make([]byte, 4), w.sums)
	w.write(binary.LittleEndian.AppendUint64(end, w.chunks))
	if w.err == nil {
		w.err = w.b.Flush()
	}
	if w.err == nil {
		w.err = w.f.Sync()
	}
	if err := w.f.Close(); w.err == nil {
		w.err = err
	}
	if w.err == nil {
		w.err = os.Rename(filepath.Join(w.dir, temp), filepath.Join(w.dir, Name))
	}
	if w.err != nil {
		return fmt.Errorf("hand sessions over: %w", errors.Join(w.err, os.Remove(filepath.Join(w.dir, temp))))
	}
	return nil
}

// Abort leaves no file.
func (w *Writer) Abort() error {
	return errors.Join(w.f.Close(), os.Remove(filepath.Join(w.dir, temp)))
}

// Size is how many bytes were written.
func (w *Writer) Size() int64 { return w.size }

// Reader reads a file that was taken.
type Reader struct {
	Header
	dir  string
	f    *os.File
	b    *bufio.Reader
	sums uint32
	n    uint64
	buf  [MaxChunk]byte
}

// Take takes the file, if there is one: ErrNone. All of it is read once and compared with its sums, so that nothing is used of one that is damaged. It must be ended by Done, or given back.
func Take(dir string) (*Reader, error) {
	from, to := filepath.Join(dir, Name), filepath.Join(dir, taken)
	if _, err := os.Lstat(to); err == nil {
		return nil, errors.Join(ErrUnfinished, Drop(dir))
	}
	if err := os.Remove(filepath.Join(dir, temp)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("take up sessions: %w", err)
	}
	switch err := os.Rename(from, to); {
	case errors.Is(err, os.ErrNotExist):
		return nil, ErrNone
	case err != nil:
		return nil, fmt.Errorf("take up sessions: %w", err)
	}
	r, err := open(dir, to)
	if err != nil {
		return nil, errors.Join(err, Drop(dir))
	}
	return r, nil
}

func open(dir, name string) (*Reader, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("take up sessions: %w", err)
	}
	r := &Reader{dir: dir, f: f}
	err = r.begin()
	for err == nil {
		_, err = r.Next()
	}
	if errors.Is(err, io.EOF) {
		err = r.begin()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return r, nil
}

func damaged(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, a...))
}

// begin reads the header.
func (r *Reader) begin() error {
	if _, err := r.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	r.b, r.sums, r.n = bufio.NewReaderSize(r.f, 256<<10), 0, 0
	head := make([]byte, len(magic)+2)
	switch _, err := io.ReadFull(r.b, head); {
	case err != nil || string(head[:len(magic)]) != magic:
		return damaged("it does not begin as such a file does")
	case binary.LittleEndian.Uint16(head[len(magic):]) != format:
		return fmt.Errorf("it is of format %d, this release reads %d", binary.LittleEndian.Uint16(head[len(magic):]), format)
	}
	text, err := r.part(maxHead)
	if errors.Is(err, io.EOF) {
		return damaged("it has no header")
	}
	if err != nil {
		return err
	}
	r.Header = Header{}
	if err := json.Unmarshal(text, &r.Header); err != nil {
		return damaged("header: %v", err)
	}
	return nil
}

// part reads length, sum and bytes.
func (r *Reader) part(most int) ([]byte, error) {
	var head [8]byte
	if _, err := io.ReadFull(r.b, head[:]); err != nil {
		return nil, damaged("it is cut off after %d chunks", r.n)
	}
	n, sum := binary.LittleEndian.Uint32(head[:]), binary.LittleEndian.Uint32(head[4:])
	if n == 0 {
		return nil, r.end(sum)
	}
	if int64(n) > int64(most) {
		return nil, damaged("a part of %d bytes, at most %d are possible", n, most)
	}
	b := r.buf[:n]
	if _, err := io.ReadFull(r.b, b); err != nil {
		return nil, damaged("it is cut off after %d chunks", r.n)
	}
	if crc32.Checksum(b, castagnoli) != sum {
		return nil, damaged("chunk %d does not have its sum", r.n)
	}
	r.sums = crc32.Update(r.sums, castagnoli, head[4:])
	return b, nil
}

func (r *Reader) end(sum uint32) error {
	var b [9]byte
	if n, err := io.ReadFull(r.b, b[:]); n != 8 || !errors.Is(err, io.ErrUnexpectedEOF) {
		return damaged("its end is %d bytes long, want 8", n)
	}
	if n := binary.LittleEndian.Uint64(b[:]); sum != r.sums || n != r.n {
		return damaged("%d chunks, and its end tells of %d", r.n, n)
	}
	return io.EOF
}

// Next is the next chunk, valid until the next call; io.EOF after the last.
func (r *Reader) Next() ([]byte, error) {
	b, err := r.part(MaxChunk)
	if err == nil {
		r.n++
	}
	return b, err
}

// Done removes the file: what was in it is in use, or not to be used.
func (r *Reader) Done() error { return errors.Join(r.f.Close(), Drop(r.dir)) }

// GiveBack leaves it for the next process: this one has forwarded nothing.
func (r *Reader) GiveBack() error {
	return errors.Join(r.f.Close(), os.Rename(filepath.Join(r.dir, taken), filepath.Join(r.dir, Name)))
}

// Drop removes what there is of such files.
func Drop(dir string) (err error) {
	for _, n := range []string{Name, taken, temp} {
		if e := os.Remove(filepath.Join(dir, n)); e != nil && !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("remove what was handed over before: %w", e))
		}
	}
	return err
}
