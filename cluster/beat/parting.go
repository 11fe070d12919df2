package beat

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"demarc/cluster/failover"
)

// Parcel is a datagram that is ready to be sent by whoever has it.
type Parcel struct {
	From  netip.Addr // the address that it leaves from
	To    netip.AddrPort
	Bytes []byte
}

// Parting seals a release for one member, for each path, for somebody else to send when this process has ended. It is sealed by keys of its own, which are good
// for releases alone: this process may go on sending. Nil when there are no keys with that member.
func (c *Carrier) Parting(to string, m failover.Message) []Parcel {
	p := (*c.peers.Load())[to]
	if p == nil || m.Kind != failover.Release {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.send == nil {
		return nil
	}
	b, err := appendMessage(append(make([]byte, headLen, 256), carriesMessage), &m)
	if err != nil {
		c.drop(DropLarge)
		return nil
	}
	b = p.send.partOut.seal(b)
	var out []Parcel
	for _, w := range *p.paths.Load() {
		out = append(out, Parcel{w.local.local.Addr(), w.remote, b})
	}
	return out
}

// PartingKeys names by member the keys that Parting would seal with now. Where one has changed, what was sealed before may not be opened any more.
func (c *Carrier) PartingKeys() map[string]uint64 {
	all := map[string]uint64{}
	for name, p := range *c.peers.Load() {
		p.mu.Lock()
		if p.send != nil {
			all[name] = p.send.partOut.id
		}
		p.mu.Unlock()
	}
	return all
}

// Outbox sends parcels from another process than the one that has sealed them: from the same addresses, but not from the port, which the next process may want
// already. It belongs to one goroutine.
type Outbox struct{ socks map[netip.Addr]int }

// NewOutbox makes one. It opens sockets as it needs them.
func NewOutbox() *Outbox { return &Outbox{map[netip.Addr]int{}} }

// Post sends all of them, without waiting, and says which could not be sent.
func (o *Outbox) Post(list []Parcel) error {
	var errs []error
	for _, p := range list {
		fd, ok := o.socks[p.From]
		if !ok {
			var err error
			if fd, err = outSocket(p.From); err != nil {
				errs = append(errs, err)
				continue
			}
			o.socks[p.From] = fd
		}
		if err := unix.Sendto(fd, p.Bytes, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, sockaddr(p.To, p.From)); err != nil {
			errs = append(errs, fmt.Errorf("send to %s: %w", p.To, err))
		}
	}
	return errors.Join(errs...)
}

func outSocket(from netip.Addr) (fd int, err error) {
	family := unix.AF_INET6
	if from.Is4() {
		family = unix.AF_INET
	}
	if fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, fmt.Errorf("socket for datagrams: %w", err)
	}
	if err = options(fd, from); err == nil {
		err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(from, 0), from))
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("socket for datagrams at %s: %w", from, err)
	}
	return fd, nil
}

// Close ends its sockets.
func (o *Outbox) Close() {
	for _, fd := range o.socks {
		unix.Close(fd)
	}
	o.socks = nil
}
