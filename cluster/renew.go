package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"demarc/cluster/transport"
)

const (
	warnBefore = 30 * 24 * time.Hour // an expiry is warned of
	renewEvery = time.Hour           // a renewal that came to nothing is tried again, the first times sooner:
	renewSoon  = 2 * time.Second     // after that, then twice that, and so on: who could renew may be starting as well
)

// renewFor signs a member's new certificate, if the authority's key is here.
func (n *Node) renewFor(p transport.Peer, request []byte) (answer, []byte) {
	if n.keys == nil || !hasAuthority(n.keys.Dir()) {
		return answer{Refused: n.cfg.Name + " does not hold the authority's key"}, nil
	}
	if m, ok := n.st.State().Named(p.Name); ok && m.Key != "" && p.Key != "" && m.Key != p.Key && n.informed() {
		return answer{Refused: fmt.Sprintf("%s has another certificate by now: that one is renewed, and this one is not", p.Name)}, nil
	}
	ca, err := transport.OpenAuthority(n.keys.Dir())
	if err != nil {
		return answer{Refused: err.Error()}, nil
	}
	cert, err := ca.Renew(request, p.Name, n.cfg.Wall())
	if err != nil {
		return answer{Refused: err.Error()}, nil
	}
	n.log.Info("certificate renewed", "for", p.Name)
	return answer{}, cert
}

func hasAuthority(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, transport.AuthorityKey))
	return err == nil
}

// renewals renews this node's certificate when two thirds of its life are over: by the authority's key if it is here, else by a member that has
// it. Where nobody has, an operator must, and is told.
func (n *Node) renewals(ctx context.Context) {
	t := time.NewTicker(n.pace(renewSoon))
	defer t.Stop()
	var next, said time.Time
	wait := n.pace(renewSoon)
	for begun := false; ; begun = true {
		if begun {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
		}
		until, due := n.keys.Expiry()
		if !due || time.Now().Before(next) {
			continue
		}
		err := n.renew(ctx)
		if err == nil {
			n.log.Info("certificate renewed", "for", n.cfg.Name)
			next, wait = time.Time{}, n.pace(renewSoon)
			continue
		}
		next, wait = time.Now().Add(wait), min(2*wait, n.pace(renewEvery))
		if left := until.Sub(n.cfg.Wall()); left < warnBefore && time.Since(said) > 24*time.Hour {
			said = time.Now()
			n.log.Warn("the certificate of this node ends soon and was not renewed", "valid_until", until, "err", err)
		}
	}
}

// renew gets one new certificate and writes it; the keyring finds it by itself.
func (n *Node) renew(ctx context.Context) error {
	r, err := n.keys.NewRenewal()
	if err != nil {
		return err
	}
	if hasAuthority(n.keys.Dir()) {
		ca, err := transport.OpenAuthority(n.keys.Dir())
		if err != nil {
			return err
		}
		cert, err := ca.Renew(r.Request, n.cfg.Name, n.cfg.Wall())
		if err != nil {
			return err
		}
		return n.keys.Finish(r, cert)
	}
	err = fmt.Errorf("no member has the authority's key: `demarc cluster cert %s` makes a new one", n.cfg.Name)
	for _, m := range n.State().Members {
		if m.ID == n.id || m.Address == "" {
			continue
		}
		c, cancel := context.WithTimeout(ctx, n.askTime(m.ID))
		a, cert, _, cerr := n.call(c, m.Address, request{Kind: askRenew}, r.Request)
		cancel()
		if cerr == nil && a.Refused == "" {
			return n.keys.Finish(r, cert)
		}
	}
	return err
}

// Expiring says when this node's certificate ends, if that is soon enough to be told.
func (n *Node) expiring() string {
	if n.keys == nil {
		return ""
	}
	until, due := n.keys.Expiry()
	left := until.Sub(n.cfg.Wall())
	begins, early := n.keys.Early()
	switch {
	case early:
		return fmt.Sprintf("the wall clock of this node is off: it says %s, and its own certificate begins at %s: it meets no other member before the clock is set",
			n.cfg.Wall().UTC().Format(time.RFC3339), begins.UTC().Format(time.RFC3339))
	case left <= 0:
		return fmt.Sprintf("the certificate of this node has ended at %s: connections that stand go on, new ones do not come about; `demarc cluster cert %s` makes a new one",
			until.UTC().Format(time.RFC3339), n.cfg.Name)
	case due && left < warnBefore:
		return fmt.Sprintf("the certificate of this node ends at %s and no member renews it: `demarc cluster cert %s` makes a new one", until.UTC().Format(time.RFC3339), n.cfg.Name)
	}
	return ""
}
