package gateway

import (
	"crypto/x509"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"demarc/cluster"
	"demarc/cluster/command"
	"demarc/cluster/transport"
	"demarc/configs"
	"demarc/gateway/api"
)

// revoked is whose certificates are refused although they are good, by what this node knows.
type revoked struct {
	mu      sync.Mutex
	list    []command.Revoked
	unknown error         // the node cannot say who is revoked, so it lets nobody in
	changed chan struct{} // closed and replaced when any of it changes
}

// readRevoked begins with what the node of a directory knew when it last ran: what is agreed on comes later, and may never where nobody leads.
func readRevoked(dir string, log *slog.Logger) *revoked {
	r := &revoked{changed: make(chan struct{})}
	if r.list, r.unknown = cluster.ReadRevoked(dir); r.unknown != nil {
		log.Error("no client is let in over TCP before the cluster has said whose certificates are revoked", "err", r.unknown)
	}
	return r
}

// set is cluster.Config.Revoked.
func (r *revoked) set(list []command.Revoked) {
	r.mu.Lock()
	r.list, r.unknown = list, nil
	close(r.changed)
	r.changed = make(chan struct{})
	r.mu.Unlock()
}

func (r *revoked) wait() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

func (r *revoked) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.list)
}

// judge refuses a client that is revoked.
func (r *revoked) judge(client, key string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.unknown != nil {
		return transport.Refuse(transport.RefusedRevoked, "this node does not know yet whose certificates are revoked, so it lets nobody in: %w", r.unknown)
	}
	for i := range r.list {
		if v := &r.list[i]; v.Covers(client, key) {
			return transport.Refuse(transport.RefusedRevoked, "%s was revoked %s: an operator can issue another one, `demarc cluster client`", v.Which(), v.Time.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// openRemote reads the keys for the interface on TCP; nil where the node file wants none.
func openRemote(c configs.API, gone *revoked, now func() time.Time, log *slog.Logger) (*api.Remote, error) {
	if c.Listen == "" {
		return nil, nil
	}
	keys, err := transport.OpenKeyring(c.Keys, now, log)
	if err != nil {
		return nil, fmt.Errorf("api.keys: %w", err)
	}
	r := &api.Remote{Listen: c.Listen, TLS: keys.ServeClients(),
		Who: func(chain []*x509.Certificate) (api.Peer, error) {
			who, err := keys.Client(chain)
			if err == nil {
				err = gone.judge(who.Name, transport.KeyOf(chain[0]))
			}
			return api.Peer{Name: who.Name, Role: api.Role(who.Role), Tenant: who.Tenant}, err
		},
		Kind:  func(err error) string { return string(transport.ClientRefusal(err)) },
		Until: func() time.Time { end, _ := keys.Expiry(); return end }, Changed: gone.wait, Revoked: gone.count,
	}
	for _, k := range transport.ClientRefusals {
		r.Kinds = append(r.Kinds, string(k))
	}
	return r, nil
}
