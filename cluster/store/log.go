package store

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/hashicorp/raft"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checkedLog puts a checksum before each entry's data and index. Raft's own store would hand out a page whose bits have changed; on a
// follower that would be another state than everybody else's, without a word.
type checkedLog struct{ raft.LogStore }

func sum(l *raft.Log, data []byte) uint32 {
	var head [17]byte
	binary.LittleEndian.PutUint64(head[0:], l.Index)
	binary.LittleEndian.PutUint64(head[8:], l.Term)
	head[16] = byte(l.Type)
	return crc32.Update(crc32.Checksum(head[:], castagnoli), castagnoli, data)
}

func (c checkedLog) StoreLog(l *raft.Log) error { return c.StoreLogs([]*raft.Log{l}) }

func (c checkedLog) StoreLogs(list []*raft.Log) error {
	out := make([]*raft.Log, len(list))
	for i, l := range list {
		o := *l
		o.Data = append(binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(l.Data)), sum(l, l.Data)), l.Data...)
		out[i] = &o
	}
	return c.LogStore.StoreLogs(out)
}

func (c checkedLog) GetLog(index uint64, l *raft.Log) error {
	if err := c.LogStore.GetLog(index, l); err != nil {
		return err
	}
	if len(l.Data) < 4 {
		return fmt.Errorf("log entry %d is damaged: it has no checksum", index)
	}
	want, data := binary.LittleEndian.Uint32(l.Data), l.Data[4:]
	if l.Index != index || sum(l, data) != want {
		return fmt.Errorf("log entry %d is damaged: its checksum does not match", index)
	}
	l.Data = data
	return nil
}

// IsMonotonic says that Raft may not leave gaps, as bbolt's store requires nothing of the kind.
func (c checkedLog) IsMonotonic() bool { return false }

// check reads the whole log, so that damage is found at start and by name and not in the middle of an election. It returns the last entry.
func (c checkedLog) check() (tail raft.Log, err error) {
	first, err := c.FirstIndex()
	if err != nil {
		return tail, err
	}
	last, err := c.LastIndex()
	if err != nil || first == 0 {
		return tail, err
	}
	for i := first; i <= last; i++ {
		if err := c.GetLog(i, &tail); err != nil {
			return tail, err
		}
	}
	tail.Data = nil
	return tail, nil
}
