package gateway

import (
	"crypto/x509"
	"fmt"
	"log/slog"
	"time"

	"demarc/cluster/transport"
	"demarc/configs"
	"demarc/gateway/api"
)

// openRemote reads the keys for the interface on TCP; nil where the node file wants none.
func openRemote(c configs.API, log *slog.Logger) (*api.Remote, error) {
	if c.Listen == "" {
		return nil, nil
	}
	keys, err := transport.OpenKeyring(c.Keys, time.Now, log)
	if err != nil {
		return nil, fmt.Errorf("api.keys: %w", err)
	}
	r := &api.Remote{Listen: c.Listen, TLS: keys.ServeClients(),
		Who: func(chain []*x509.Certificate) (api.Peer, error) {
			who, err := keys.Client(chain)
			return api.Peer{Name: who.Name, Role: api.Role(who.Role), Tenant: who.Tenant}, err
		},
		Kind:  func(err error) string { return string(transport.ClientRefusal(err)) },
		Until: func() time.Time { end, _ := keys.Expiry(); return end },
	}
	for _, k := range transport.ClientRefusals {
		r.Kinds = append(r.Kinds, string(k))
	}
	return r, nil
}
