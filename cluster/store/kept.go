package store

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"demarc/cluster/command"
)

// The copy: the state as it was last applied here, in a file of its own beside log and snapshots, with the end of the audit log only. Only what was agreed on
// gets there, and no vote hangs on it: it is what a node whose log or snapshot is damaged is recovered from.
const (
	keptFile  = "kept.state"
	keptMagic = "demarc-kept 1\n"
	keptAudit = 100                    // lines
	keptPace  = 100 * time.Millisecond // between two writes
)

// keep writes the copy in the background, never more often than its pace, and once more at the end. It also shortens the log.
func (s *Store) keep() {
	defer close(s.keepDone)
	last := uint64(0)
	write := func() {
		st := s.State()
		if st.Cluster == "" || st.Index == last {
			return
		}
		if err := writeKept(s.cfg.Dir, st); err != nil {
			s.cfg.Log.Debug("keep a copy of the state", "err", err) // the disk's trouble is told by log and texts
			return
		}
		last = st.Index
	}
	for {
		select {
		case <-s.keepWake:
			write()
			s.compact()
		case <-s.keepEnd:
			write()
			return
		}
		select {
		case <-time.After(keptPace):
		case <-s.keepEnd:
			write()
			return
		}
	}
}

func writeKept(dir string, s *command.State) error {
	c := *s
	c.Audit = slices.Clone(s.Audit[max(0, len(s.Audit)-keptAudit):])
	body, err := c.EncodeState()
	if err != nil {
		return err
	}
	b := append([]byte(keptMagic), body...)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return ReplaceFile(filepath.Join(dir, keptFile), b)
}

// ReplaceFile replaces a file as a whole, durably. What a crash leaves beside it is overwritten by the next call; a file has one writer at a time.
func ReplaceFile(name string, b []byte) error {
	f, err := os.OpenFile(name+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(name+".new", name)
	}
	if err != nil {
		_ = os.Remove(name + ".new")
		return err
	}
	return SyncFile(filepath.Dir(name))
}

// readKept reads the copy of a data directory.
func readKept(dir string) (*command.State, error) {
	name := filepath.Join(dir, keptFile)
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("the copy of the state: %w", err)
	}
	n := len(b) - 4
	if n < len(keptMagic) || !strings.HasPrefix(string(b), keptMagic) || crc32.Checksum(b[:n], castagnoli) != binary.LittleEndian.Uint32(b[n:]) {
		return nil, fmt.Errorf("%w: the copy of the state, %s", ErrDamaged, name)
	}
	return command.DecodeState(b[len(keptMagic):n])
}
