package revisions

import (
	"io"
	"os"
)

// file is what a revision is written to.
type file interface {
	io.Writer
	Sync() error
	Close() error
}

// filesystem is the seam at which tests fail or stop each step. The only other implementation is in the tests.
type filesystem interface {
	MkdirAll(dir string) error
	Create(name string) (file, error)
	Rename(from, to string) error
	Remove(name string) error
	SyncDir(dir string) error
	Names(dir string) ([]string, error)
	Read(name string, most int64) ([]byte, error)
}

type disk struct{}

func (disk) MkdirAll(dir string) error { return os.MkdirAll(dir, 0o700) }

func (disk) Create(name string) (file, error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (disk) Rename(from, to string) error { return os.Rename(from, to) }

func (disk) Remove(name string) error { return os.Remove(name) }

// SyncDir makes names in dir durable: without it a rename may be undone by a power loss, though the file itself is safe.
func (disk) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		_ = d.Close() // the first error is the one that matters
		return err
	}
	return d.Close()
}

func (disk) Names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

// Read returns at most most bytes: what somebody put there must not take all memory.
func (disk) Read(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}
