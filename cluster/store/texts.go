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
// again: the log has it too, and is not shortened before everything is here.
type texts struct {
	dir string

	mu   sync.Mutex
	owed map[string][]byte // by digest: not on disk yet
	why  error             // of the last refusal
}

func openTexts(dir string) (*texts, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the texts of policies: %w", err)
	}
	return &texts{dir: dir, owed: map[string][]byte{}}, nil
}

func (t *texts) path(digest string) string { return filepath.Join(t.dir, digest) }

// put keeps a text: on disk if that can be, in memory until it can.
func (t *texts) put(text []byte) {
	digest := command.Digest(text)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.write(digest, text); err != nil {
		t.owed[digest], t.why = text, err
	}
}

// settle writes what is owed. Its error is the first text's that the disk still refuses.
func (t *texts) settle() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for digest, text := range t.owed {
		if err := t.write(digest, text); err != nil {
			t.why = err
			return err
		}
		delete(t.owed, digest)
	}
	t.why = nil
	return nil
}

// problem is why a text is owed; nil when none is.
func (t *texts) problem() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.owed) == 0 {
		return nil
	}
	return t.why
}

// write makes a text durable: written under another name, synced, renamed, the name synced. A file that is there is looked into first, since
// one that was damaged is mended by this.
func (t *texts) write(digest string, text []byte) error {
	if _, err := t.read(digest); err == nil {
		return nil
	}
	f, err := os.CreateTemp(t.dir, "new-*")
	if err != nil {
		return fmt.Errorf("keep text %s: %w", digest, err)
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), t.path(digest))
	}
	if err == nil {
		err = syncDir(t.dir)
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
	_ = os.Remove(t.path(digest))
}

// retain removes every file that is not named. It is called when nothing is being put.
func (t *texts) retain(digests []string) error {
	keep := map[string]bool{}
	for _, d := range digests {
		keep[d] = true
	}
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

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
