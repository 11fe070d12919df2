package store

import (
	"testing"

	"github.com/hashicorp/raft"
)

// TestReadLeavesEntriesAlone: who reads one entry after the other into the same variable, as CaughtUp does, changes nothing of what is kept in memory. The engine decodes into
// the bytes that are there already, and those were the ones of an entry that was on its way to other members: a change of members became another entry's
// bytes, and who got it panicked.
func TestReadLeavesEntriesAlone(t *testing.T) {
	d, _ := testDisk(t)
	list := []*raft.Log{
		{Index: 1, Term: 1, Type: raft.LogCommand, Data: []byte("an entry of before")},
		{Index: 2, Term: 1, Type: raft.LogConfiguration, Data: []byte("a change of members that goes to others")},
	}
	for i, l := range list {
		if err := d.StoreLog(l); err != nil {
			t.Fatal(err)
		}
		if i == 0 { // entries of before a restart are with the engine only
			d.mu.Lock()
			d.last = nil
			d.mu.Unlock()
		}
	}
	want := string(list[1].Data)
	var l raft.Log
	for i := uint64(2); i > 0; i-- {
		if err := d.read(i, &l); err != nil || l.Index != i {
			t.Fatalf("%+v, %v", l, err)
		}
	}
	if got := string(list[1].Data); got != want {
		t.Errorf("the entry that Raft holds became %q", got)
	}
	if err := d.read(2, &l); err != nil || string(l.Data) != want {
		t.Errorf("%q, %v", l.Data, err)
	}
}
