package revisions

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// Keep is how many intact revisions stay; older ones are removed after a new one is safe.
	Keep = 10
	// MaxText bounds the text of one revision.
	MaxText = 8 << 20

	maxMeta = 64 << 10
	magic   = "demarc-revision 1 "
	suffix  = ".revision"
	aside   = "aside-" // before the name of a revision of another history
	temp    = "new.tmp"
	last    = "last" // the highest number that is known to be given, when no file has it
)

// ErrNone means that no intact revision is there.
var ErrNone = errors.New("no applied policy is kept")

// ErrNotKept means that there is no revision of that number (any more).
var ErrNotKept = errors.New("no such revision is kept")

// Meta is who applied a policy, and why. Time is wall time, given by the caller; nothing is decided by it.
type Meta struct {
	Author  string    `json:"author,omitempty"`
	Comment string    `json:"comment,omitempty"`
	Time    time.Time `json:"time"`
	Source  string    `json:"source,omitempty"` // the file that it came from

	Features []string `json:"features,omitempty"` // that the text uses: a release that does not know them cannot serve it
}

// Revision is one applied policy.
type Revision struct {
	Number uint64 // from 1, never used twice while a later one is kept
	Digest string // SHA-256 of Text, 64 hex digits
	Meta   Meta
	Text   []byte // nil in a listing
}

// Problem is a file that is not served, and why.
type Problem struct {
	File string
	Err  error
}

// String is one line for a log or status.
func (p Problem) String() string { return p.File + ": " + p.Err.Error() }

// Store is one directory of revisions.
//
// A file is one line with the SHA-256 of all that follows, one line of JSON, and the text. So the digest covers the
// number and author as well, and a file that was cut short, even within its first line, does not match.
type Store struct {
	mu  sync.Mutex // one Save at a time; readers take it too, so that they never meet a half pruned directory
	dir string
	fs  filesystem
}

type header struct {
	Number uint64 `json:"number"`
	Meta   Meta   `json:"meta"`
	Bytes  int    `json:"bytes"`
}

// Open makes dir if need be. A directory that can be read but not written opens: the last policy can still be served.
func Open(dir string) (*Store, error) { return open(dir, disk{}) }

func open(dir string, fs filesystem) (*Store, error) {
	s := &Store{dir: dir, fs: fs}
	if _, err := fs.Names(dir); err != nil {
		if err := fs.MkdirAll(dir); err != nil {
			return nil, fmt.Errorf("open revisions: %w", err)
		}
		if err := fs.SyncDir(filepath.Dir(dir)); err != nil {
			return nil, fmt.Errorf("open revisions: %w", err)
		}
		if _, err := fs.Names(dir); err != nil {
			return nil, fmt.Errorf("open revisions: %w", err)
		}
	}
	return s, nil
}

// Save keeps text as the newest revision, under the next number. When it returns without an error the revision survives a power loss; with one, what
// was kept before is untouched and Latest gives the same as before.
func (s *Store) Save(text []byte, meta Meta) (Revision, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.last()
	if err != nil {
		return Revision{}, fmt.Errorf("keep revision: %w", err)
	}
	r, err := s.save(n+1, text, meta)
	if err == nil {
		s.prune()
	}
	return r, err
}

// SaveAs is Save under a number that others have given. Latest gives that one from then on: another text under the same number, and what has a
// higher one, is of another history (another cluster's, or of after the moment that a backup was made at) and is set aside under another name.
// What is kept as it should be is not written again.
func (s *Store) SaveAs(number uint64, text []byte, meta Meta) (r Revision, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if number == 0 || number > math.MaxInt64 {
		return r, fmt.Errorf("keep revision %d: numbers are from 1 to %d", number, int64(math.MaxInt64))
	}
	numbers, err := s.numbers()
	if err != nil {
		return r, fmt.Errorf("keep revision %d: %w", number, err)
	}
	there := false
	if slices.Contains(numbers, number) {
		old, err := s.read(number)
		if there = err == nil && bytes.Equal(old.Text, text); there {
			r = old
		} else if err == nil { // a damaged one is only written anew
			if err := s.setAside(number); err != nil {
				return r, err
			}
		}
	}
	if !there {
		if r, err = s.save(number, text, meta); err != nil {
			return r, err
		}
	}
	for _, n := range numbers {
		if n > number {
			if err := s.setAside(n); err != nil {
				return r, err
			}
		}
	}
	if !there {
		s.prune()
	}
	return r, nil
}

// setAside takes a revision out of the row without losing it.
func (s *Store) setAside(n uint64) error {
	if err := s.fs.Rename(s.path(n), filepath.Join(s.dir, aside+filepath.Base(s.path(n)))); err != nil {
		return fmt.Errorf("set revision %d aside, which is of another history: %w%s", n, err, hint(err))
	}
	return nil
}

// save writes a revision. The caller holds mu.
func (s *Store) save(n uint64, text []byte, meta Meta) (Revision, error) {
	if len(text) > MaxText {
		return Revision{}, fmt.Errorf("keep revision: %d bytes are more than %d", len(text), MaxText)
	}
	r := Revision{Number: n, Digest: digest(text), Meta: meta, Text: bytes.Clone(text)}
	data, err := encode(&r)
	if err != nil {
		return Revision{}, fmt.Errorf("keep revision %d: %w", n, err)
	}
	if err := s.write(n, data); err != nil {
		return Revision{}, fmt.Errorf("keep revision %d: %w%s; what was kept before is untouched", n, err, hint(err))
	}
	return r, nil
}

// Prove says whether a text could be kept now, by writing it and taking it away again. It is asked before others agree on the text: what no disk
// takes must not become the policy.
func (s *Store) Prove(text []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(text) > MaxText {
		return fmt.Errorf("keep revision: %d bytes are more than %d", len(text), MaxText)
	}
	name := filepath.Join(s.dir, temp)
	err := s.put(name, text)
	if rmErr := s.fs.Remove(name); err == nil {
		err = rmErr
	}
	if err != nil {
		return fmt.Errorf("keep revision: %w%s; what was kept before is untouched", err, hint(err))
	}
	return nil
}

// Reserve notes that a number was given which has no file, so that Last knows it after a restart.
func (s *Store) Reserve(number uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, err := s.last(); err == nil && n >= number {
		return nil
	}
	name, final := filepath.Join(s.dir, temp), filepath.Join(s.dir, last)
	err := s.put(name, []byte(strconv.FormatUint(number, 10)+"\n"))
	if err == nil {
		if err = s.fs.Rename(name, final); err == nil {
			return s.fs.SyncDir(s.dir)
		}
	}
	_ = s.fs.Remove(name) // the first error is the one that matters
	return fmt.Errorf("note that revision %d was given: %w%s", number, err, hint(err))
}

// Last is the highest number that was given as far as is known here, to a damaged file too; 0 = none.
func (s *Store) Last() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last()
}

func (s *Store) last() (n uint64, err error) {
	numbers, err := s.numbers()
	if err != nil {
		return 0, err
	}
	if len(numbers) > 0 {
		n = numbers[0]
	}
	if b, err := s.fs.Read(filepath.Join(s.dir, last), 32); err == nil {
		if noted, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 63); err == nil { // damaged: as good as none
			n = max(n, noted)
		}
	}
	return n, nil
}

// hint says what would help, where the error itself does not.
func hint(err error) string {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return " (make room on that file system and apply again)"
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return " (the data directory must be writable)"
	}
	return ""
}

// write puts data under its number in four steps, each of which may be the last before a crash: the bytes under another name,
// made durable, renamed, the name made durable.
func (s *Store) write(n uint64, data []byte) error {
	name, final := filepath.Join(s.dir, temp), s.path(n)
	err := s.put(name, data)
	if err == nil {
		if err = s.fs.Rename(name, final); err == nil {
			if err = s.fs.SyncDir(s.dir); err == nil {
				return nil
			}
			name = final // it is there but perhaps not for long: an error must not leave it as the newest
		}
	}
	if rmErr := s.fs.Remove(name); rmErr != nil && !errors.Is(rmErr, os.ErrNotExist) { // it could not even be made
		return errors.Join(err, rmErr)
	}
	return err
}

// put makes a file with data in it, on disk for good but for its name. What an error leaves is the caller's to remove.
func (s *Store) put(name string, data []byte) error {
	f, err := s.fs.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// prune removes what is older than the last Keep intact revisions. Its errors are not the caller's: the new revision is safe, and
// the next Save tries again.
func (s *Store) prune() {
	numbers, err := s.numbers()
	if err != nil {
		return
	}
	intact := 0
	for _, n := range numbers {
		if intact >= Keep {
			_ = s.fs.Remove(s.path(n))
			continue
		}
		if _, err := s.read(n); err == nil {
			intact++
		}
	}
}

// Latest is the newest intact revision, and the damaged files that are newer or older. ErrNone when there is none.
func (s *Store) Latest() (Revision, []Problem, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, problems, err := s.all(true)
	if err != nil {
		return Revision{}, nil, err
	}
	if len(all) == 0 {
		return Revision{}, problems, ErrNone
	}
	return all[0], problems, nil
}

// List is all intact revisions without their texts, newest first, and the damaged files.
func (s *Store) List() ([]Revision, []Problem, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all(false)
}

// all reads every file; of the texts it keeps only the newest, if asked.
func (s *Store) all(text bool) (out []Revision, problems []Problem, err error) {
	numbers, err := s.numbers()
	if err != nil {
		return nil, nil, fmt.Errorf("read revisions: %w", err)
	}
	for _, n := range numbers {
		r, err := s.read(n)
		if err != nil {
			problems = append(problems, Problem{File: s.path(n), Err: err})
			continue
		}
		if !text || len(out) > 0 {
			r.Text = nil
		}
		out = append(out, r)
	}
	return out, problems, nil
}

// Get is revision n, with its text. The error wraps ErrNotKept, or says how the file is damaged.
func (s *Store) Get(n uint64) (Revision, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	numbers, err := s.numbers()
	if err != nil {
		return Revision{}, fmt.Errorf("read revision %d: %w", n, err)
	}
	if !slices.Contains(numbers, n) {
		return Revision{}, fmt.Errorf("read revision %d: %w", n, ErrNotKept)
	}
	r, err := s.read(n)
	if err != nil {
		return Revision{}, fmt.Errorf("read revision %d: %w", n, err)
	}
	return r, nil
}

func (s *Store) path(n uint64) string { return filepath.Join(s.dir, fmt.Sprintf("%010d%s", n, suffix)) }

// numbers lists the revisions that have a file, damaged or not, newest first. Other files are nobody's business.
func (s *Store) numbers() ([]uint64, error) {
	names, err := s.fs.Names(s.dir)
	if err != nil {
		return nil, err
	}
	var out []uint64
	for _, name := range names {
		base, ok := strings.CutSuffix(name, suffix)
		n, err := strconv.ParseUint(base, 10, 63)
		if ok && err == nil && n > 0 && filepath.Base(s.path(n)) == name {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	slices.Reverse(out)
	return out, nil
}

// Any reports whether a directory has a revision, intact or not. It makes nothing.
func Any(dir string) bool {
	n, err := (&Store{dir: dir, fs: disk{}}).numbers()
	return err == nil && len(n) > 0
}

func (s *Store) read(n uint64) (Revision, error) {
	data, err := s.fs.Read(s.path(n), int64(len(magic)+maxMeta+MaxText+256))
	if err != nil {
		return Revision{}, err
	}
	r, err := decode(data)
	if err == nil && r.Number != n {
		return Revision{}, fmt.Errorf("is revision %d under the name of another", r.Number)
	}
	return r, err
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func encode(r *Revision) ([]byte, error) {
	head, err := json.Marshal(header{Number: r.Number, Meta: r.Meta, Bytes: len(r.Text)})
	if err != nil {
		return nil, err
	}
	if len(head) > maxMeta {
		return nil, fmt.Errorf("author, comment and source are longer than %d bytes", maxMeta)
	}
	body := slices.Concat(head, []byte{'\n'}, r.Text)
	return slices.Concat([]byte(magic), []byte(digest(body)), []byte{'\n'}, body), nil
}

// decode is the reverse of encode; the error reads on from the name of the file.
func decode(data []byte) (Revision, error) {
	rest, ok := bytes.CutPrefix(data, []byte(magic))
	if !ok {
		return Revision{}, errors.New("is not a revision, or its beginning is damaged")
	}
	if len(rest) < 65 || rest[64] != '\n' {
		return Revision{}, errors.New("is damaged: it ends within its digest")
	}
	sum, body := string(rest[:64]), rest[65:]
	if digest(body) != sum {
		return Revision{}, errors.New("is damaged: its digest does not match")
	}
	head, text, _ := bytes.Cut(body, []byte{'\n'})
	var h header
	if err := json.Unmarshal(head, &h); err != nil {
		return Revision{}, fmt.Errorf("has a header that this build does not read: %w", err)
	}
	if h.Bytes != len(text) {
		return Revision{}, fmt.Errorf("holds %d bytes of text where its header says %d", len(text), h.Bytes)
	}
	return Revision{Number: h.Number, Digest: digest(text), Meta: h.Meta, Text: text}, nil
}
