package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"demarc/cluster/command"
)

// texts is a directory with one file a policy, named by the digest of what is in it. What the disk refuses stays in memory and is tried
// again: the log has it too, and is not shortened before everything is here and durable. So a text need not be durable when it is put.
type texts struct {
	dir   string
	hooks *Hooks

	mu    sync.Mutex
	owed  map[string][]byte // by digest: not on disk yet
	loose map[string]bool   // by digest: written, perhaps not durable yet
	lost  map[string]bool   // by digest: should be here and cannot be read
	why   error             // of the last refusal
}

func openTexts(dir string, h *Hooks) (*texts, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the texts of policies: %w", err)
	}
	return newTexts(dir, h), nil
}

func newTexts(dir string, h *Hooks) *texts {
	return &texts{dir: dir, hooks: h, owed: map[string][]byte{}, loose: map[string]bool{}, lost: map[string]bool{}}
}

func (t *texts) path(digest string) string { return filepath.Join(t.dir, digest) }

// put keeps a text: on disk if that can be, in memory until it can.
func (t *texts) put(text []byte) {
	digest := command.Digest(text)
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.lost, digest)
	if err := t.write(digest, text); err != nil {
		t.owed[digest], t.why = text, err
		return
	}
	t.loose[digest] = true
}

// miss notes that a text should be here and is not, unless it is.
func (t *texts) miss(digest string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, err := t.read(digest); err != nil {
		t.lost[digest] = true
	}
}

// settle writes what is owed and makes everything durable. Its error is the first that the disk gives.
func (t *texts) settle() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for digest, text := range t.owed {
		if err := t.write(digest, text); err != nil {
			t.why = err
			return err
		}
		delete(t.owed, digest)
		t.loose[digest] = true
	}
	for digest := range t.loose {
		if err := SyncFile(t.path(digest)); err != nil {
			// Whether it is there after the next power cut nobody knows: it is written anew.
			// One that is gone stays loose: the log is not shortened, and the next start takes it from there.
			if text, rerr := t.read(digest); rerr == nil {
				t.owed[digest] = text
				_ = os.Remove(t.path(digest))
				delete(t.loose, digest)
			}
			t.why = fmt.Errorf("keep text %s: %w", digest, err)
			return t.why
		}
	}
	if len(t.loose) > 0 {
		if err := SyncFile(t.dir); err != nil {
			t.why = err
			return err
		}
		clear(t.loose)
	}
	t.why = nil
	return nil
}

// problem is why a text is owed, or which are lost; nil when all are there.
func (t *texts) problem() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.owed) > 0 {
		return t.why
	}
	for digest := range t.lost {
		return fmt.Errorf("%d texts of old revisions are damaged or gone, %s first: apply or roll back to another one where it is needed", len(t.lost), t.path(digest))
	}
	return nil
}

// write writes a text under another name and renames it. A file that is there is looked into first, since one that was damaged is mended by this.
func (t *texts) write(digest string, text []byte) error {
	if _, err := t.read(digest); err == nil {
		return nil
	}
	if err := t.hooks.write(len(text)); err != nil {
		return fmt.Errorf("keep text %s: %w", digest, err)
	}
	f, err := os.CreateTemp(t.dir, "new-*")
	if err != nil {
		return fmt.Errorf("keep text %s: %w", digest, err)
	}
	_, err = f.Write(text)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), t.path(digest))
	}
	if err != nil {
		_ = os.Remove(f.Name()) // gone already when it was renamed
		return fmt.Errorf("keep text %s: %w", digest, err)
	}
	return nil
}

// get finds a text.
func (t *texts) get(digest string) ([]byte, error) {
	t.mu.Lock()
	text, owed := t.owed[digest]
	t.mu.Unlock()
	if owed {
		return text, nil
	}
	return t.read(digest)
}

// read reads a file and holds it against its name.
func (t *texts) read(digest string) ([]byte, error) {
	b, err := os.ReadFile(t.path(digest))
	if err != nil {
		return nil, fmt.Errorf("text %s: %w", digest, err)
	}
	if command.Digest(b) != digest {
		return nil, fmt.Errorf("text %s: the file %s is damaged", digest, t.path(digest))
	}
	return b, nil
}

// drop forgets a text. A file that cannot be removed is removed by retain, at the next start.
func (t *texts) drop(digest string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.owed, digest)
	delete(t.loose, digest)
	delete(t.lost, digest)
	_ = os.Remove(t.path(digest))
}

// retain removes every file that is not named. It is called when nothing is being put.
func (t *texts) retain(digests []string) error {
	keep := map[string]bool{}
	for _, d := range digests {
		keep[d] = true
	}
	t.mu.Lock()
	for d := range t.lost {
		if !keep[d] {
			delete(t.lost, d)
		}
	}
	t.mu.Unlock()
	list, err := os.ReadDir(t.dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if name := e.Name(); !keep[name] && (len(name) == 64 || strings.HasPrefix(name, "new-")) {
			err = errors.Join(err, os.Remove(filepath.Join(t.dir, name)))
		}
	}
	return err
}

// SyncFile makes a file durable, or the names in a directory.
func SyncFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
