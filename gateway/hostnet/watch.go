package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// EventKind says what an Event is about.
type EventKind uint8

// The kinds.
const (
	LinkEvent     EventKind = iota // Link is what it is now; Gone: it vanished, or left this namespace
	AddrEvent                      // Addr on Ifindex
	NeighborEvent                  // Neigh
	ResyncEvent                    // events were lost; Gone events for what vanished and all that is true now follow
)

// Event is one change, or one thing that is there.
type Event struct {
	Kind    EventKind
	Gone    bool
	Ifindex int
	Link    Link
	Addr    netip.Prefix
	Neigh   Neigh
}

type addrKey struct {
	ifindex int
	prefix  netip.Prefix
}

type neighKey struct {
	ifindex int
	addr    netip.Addr
}

// watcher remembers what it has reported, so that after an overrun it can say what vanished.
type watcher struct {
	fn     func(Event)
	links  map[int]Link
	addrs  map[addrKey]bool
	neighs map[neighKey]Neigh
}

// Watch reports what is there and then every change, until ctx ends; it then returns nil. fn is called on this goroutine. When fn is
// too slow and the kernel loses events, everything is read again.
func Watch(ctx context.Context, fn func(Event)) error { return watch(ctx, fn, 1<<20) }

func watch(ctx context.Context, fn func(Event), buffer int) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return fmt.Errorf("subscribe to link changes: %w", err)
	}
	defer s.Close()
	// Without CAP_NET_ADMIN the forced size is refused; the bounded one does then.
	if s.SetReceiveBufferSize(buffer, true) != nil {
		_ = s.SetReceiveBufferSize(buffer, false)
	}
	defer context.AfterFunc(ctx, s.Close)()
	w := &watcher{fn: fn, links: map[int]Link{}, addrs: map[addrKey]bool{}, neighs: map[neighKey]Neigh{}}
	// Subscribed before the first look, so that nothing falls between.
	if err := w.resync(); err != nil {
		return err
	}
	return follow(ctx, s, func() error {
		fn(Event{Kind: ResyncEvent})
		return w.resync()
	}, w.message)
}

// follow hands over each message of the kernel's that a socket gets, until ctx ends, whose end must close it; it then returns nil. again is called where the kernel has lost some.
func follow(ctx context.Context, s *nl.NetlinkSocket, again func() error, message func(*syscall.NetlinkMessage)) error {
	for {
		msgs, from, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			if err := again(); err != nil {
				return err
			}
			continue
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN), errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case err != nil:
			return fmt.Errorf("read what the kernel says of changes: %w", err)
		}
		if from.Pid != nl.PidKernel {
			continue
		}
		for i := range msgs {
			message(&msgs[i])
		}
	}
}

func (w *watcher) message(m *syscall.NetlinkMessage) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if len(m.Data) < unix.SizeofIfInfomsg || nl.DeserializeIfInfomsg(m.Data).Family != unix.AF_UNSPEC {
			return // of a bridge port, not of the link
		}
		h := unix.NlMsghdr(m.Header)
		l, err := netlink.LinkDeserialize(&h, m.Data)
		if err != nil {
			return
		}
		w.link(fromNetlink(l), m.Header.Type == unix.RTM_DELLINK)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if i, p, ok := parseAddr(m.Data); ok {
			w.addr(addrKey{i, p}, m.Header.Type == unix.RTM_DELADDR)
		}
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		n, err := netlink.NeighDeserialize(m.Data)
		if err != nil || n.Family != unix.AF_INET && n.Family != unix.AF_INET6 {
			return
		}
		if v, ok := neighFrom(n); ok {
			w.neigh(v, m.Header.Type == unix.RTM_DELNEIGH)
		}
	}
}

// parseAddr reads an address message: the local address with its prefix length (of a point-to-point link the local end).
func parseAddr(b []byte) (ifindex int, p netip.Prefix, ok bool) {
	if len(b) < unix.SizeofIfAddrmsg {
		return 0, p, false
	}
	m := nl.DeserializeIfAddrmsg(b)
	attrs, err := attributes(b[unix.SizeofIfAddrmsg:])
	if err != nil {
		return 0, p, false
	}
	var local, peer netip.Addr
	for _, a := range attrs {
		switch a.typ {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(a.value)
		case unix.IFA_ADDRESS:
			peer, _ = netip.AddrFromSlice(a.value)
		}
	}
	bits := int(m.Prefixlen)
	switch {
	case !local.IsValid():
		local = peer // IPv6 says only this one
	case local != peer:
		bits = local.BitLen()
	}
	p = netip.PrefixFrom(local, bits)
	return int(m.Index), p, p.IsValid()
}

func (w *watcher) link(l Link, gone bool) {
	if gone {
		delete(w.links, l.Index)
		// The kernel says nothing of a vanished link's addresses and neighbours where it tears the link down at once.
		for k := range w.addrs {
			if k.ifindex == l.Index {
				w.addr(k, true)
			}
		}
		for k, n := range w.neighs {
			if k.ifindex == l.Index {
				w.neigh(n, true)
			}
		}
	} else {
		w.links[l.Index] = l
	}
	w.fn(Event{Kind: LinkEvent, Gone: gone, Ifindex: l.Index, Link: l})
}

func (w *watcher) addr(k addrKey, gone bool) {
	if gone {
		if !w.addrs[k] {
			return
		}
		delete(w.addrs, k)
	} else {
		w.addrs[k] = true
	}
	w.fn(Event{Kind: AddrEvent, Gone: gone, Ifindex: k.ifindex, Addr: k.prefix})
}

func (w *watcher) neigh(n Neigh, gone bool) {
	k := neighKey{n.Ifindex, n.Addr}
	if gone {
		if _, ok := w.neighs[k]; !ok {
			return
		}
		delete(w.neighs, k)
	} else {
		w.neighs[k] = n
	}
	w.fn(Event{Kind: NeighborEvent, Gone: gone, Ifindex: n.Ifindex, Neigh: n})
}

// resync reads everything, reports what vanished, then what is there.
func (w *watcher) resync() error {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	neighs, err := Neighbors(0)
	if err != nil {
		return err
	}
	haveLink, haveAddr, haveNeigh := map[int]bool{}, map[addrKey]bool{}, map[neighKey]bool{}
	for _, l := range links {
		haveLink[l.Attrs().Index] = true
	}
	for _, a := range addrs {
		if p, ok := prefixOf(a.IPNet); ok {
			haveAddr[addrKey{a.LinkIndex, p}] = true
		}
	}
	for _, n := range neighs {
		haveNeigh[neighKey{n.Ifindex, n.Addr}] = true
	}
	for k, n := range w.neighs {
		if !haveNeigh[k] {
			w.neigh(n, true)
		}
	}
	for k := range w.addrs {
		if !haveAddr[k] {
			w.addr(k, true)
		}
	}
	for i, l := range w.links {
		if !haveLink[i] {
			w.link(l, true)
		}
	}
	for _, l := range links {
		w.link(fromNetlink(l), false)
	}
	for k := range haveAddr {
		w.addr(k, false)
	}
	for _, n := range neighs {
		w.neigh(n, false)
	}
	return nil
}
