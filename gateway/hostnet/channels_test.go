package hostnet

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestChannels(t *testing.T) {
	namespace(t, 4)
	was, err := ReadChannels("dmh0")
	if err != nil || was.Rx != 4 || was.Tx != 4 || was.MaxRx != 4 || was.Queues() != 4 || was.Most() != 4 || was.String() != "rx 4 tx 4" {
		t.Fatalf("%+v (%s), %v", was, was, err)
	}
	want := was.With(2)
	if err := SetChannels("dmh0", want); err != nil {
		t.Fatal(err)
	}
	if now, err := ReadChannels("dmh0"); err != nil || !now.Same(want) || now.Same(was) {
		t.Errorf("%+v, %v", now, err)
	}
	if rx, tx, err := Queues("dmh0"); rx != 2 || tx != 2 || err != nil {
		t.Errorf("Queues: %d %d, %v", rx, tx, err)
	}
	if err := SetChannels("dmh0", was.With(5)); err == nil {
		t.Error("five of four were accepted")
	}
	if err := SetChannels("dmh0", was); err != nil {
		t.Error(err)
	}
	if _, err := ReadChannels("dmnone"); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing link: %v", err)
	}
	if got := (Channels{Combined: 8, MaxCombined: 8}).With(3); got.Combined != 3 || got.Rx+got.Tx != 0 || got.String() != "combined 3" {
		t.Errorf("%+v", got)
	}
}

// A veth has no RSS table.
func TestRSSNotSupported(t *testing.T) {
	namespace(t, 2)
	if _, err := ReadRSS("dmh0"); !errors.Is(err, ErrNotSupported) {
		t.Errorf("read: %v", err)
	}
	if err := SetRSS("dmh0", []uint32{0, 1}); !errors.Is(err, ErrNotSupported) {
		t.Errorf("set: %v", err)
	}
	if _, err := ReadRSS("dmnone"); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing link: %v", err)
	}
	if _, err := ReadRSS("a name that is too long for a device"); !errors.Is(err, ErrNotFound) {
		t.Errorf("long name: %v", err)
	}
}

func TestPromiscuousLastsAsLongAsItIsOpen(t *testing.T) {
	namespace(t, 1)
	l, err := LinkByName("dmh0")
	if err != nil {
		t.Fatal(err)
	}
	receives := func() bool {
		l, err := netlink.LinkByName("dmh0")
		if err != nil {
			t.Fatal(err)
		}
		return l.Attrs().Promisc > 0 // how many ask for it
	}
	if receives() {
		t.Fatal("promiscuous before anything")
	}
	m, err := ReceiveAll(l.Index)
	if err != nil {
		t.Fatal(err)
	}
	if !receives() {
		t.Error("not while open")
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if receives() {
		t.Error("still after close")
	}
}
