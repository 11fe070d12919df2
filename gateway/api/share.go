package api

import (
	"cmp"
	"fmt"
	"net/http"
)

// What a tenant sees of an answer. Each of these begins with nothing and takes in what is the tenant's, so that a field that is added to an answer
// stays hidden until somebody opens it here.

// maxTenantSessions is how many sessions one answer to a tenant lists at most.
const maxTenantSessions = 20_000

func anyStatus(*StatusQuery, string) error { return nil }

func statusOfTenant(s *Status, tenant string) *Status {
	out := &Status{OnlyTenant: tenant, Node: s.Node, Started: s.Started, Uptime: s.Uptime, Ready: s.Ready,
		Revision: Revision{Number: s.Revision.Number, AppliedAt: s.Revision.AppliedAt}, Drops: map[string]uint64{}}
	for i := range s.Tenants {
		if t := &s.Tenants[i]; t.Name == tenant {
			out.Tenants = append(out.Tenants, *t)
			for reason, n := range t.Drops {
				out.Drops[reason] = n
			}
		}
	}
	out.Blocks = blocksOfTenant(s.Blocks, tenant)
	return out
}

// narrowSessions does not say whether there is a tenant of another name.
func narrowSessions(f *SessionFilter, tenant string) error {
	if f.Tenant != "" && f.Tenant != tenant {
		return &Fault{Status: http.StatusForbidden, Err: fmt.Errorf("tenant=%.100q: this certificate is for tenant %q alone", f.Tenant, tenant)}
	}
	f.Tenant, f.Limit = tenant, min(cmp.Or(f.Limit, 1000), maxTenantSessions)
	return nil
}

func sessionsOfTenant(s *Sessions, tenant string) *Sessions {
	out := &Sessions{Total: s.Matched, Matched: s.Matched, Truncated: s.Truncated, Sessions: []Session{}}
	for i := range s.Sessions {
		if s.Sessions[i].Tenant == tenant {
			out.Sessions = append(out.Sessions, s.Sessions[i])
		}
	}
	return out
}

func dropsOfTenant(d *Drops, tenant string) *Drops {
	out := &Drops{ByReason: map[string]uint64{}, ByTenant: map[string]map[string]uint64{}, ByPort: map[string]map[string]uint64{}, ByBlock: blocksOfTenant(d.ByBlock, tenant)}
	if m, ok := d.ByTenant[tenant]; ok {
		out.ByTenant[tenant] = m
		for reason, n := range m {
			out.ByReason[reason] = n
			out.Total += n
		}
	}
	for _, r := range d.ByRule {
		if r.Tenant == tenant {
			out.ByRule = append(out.ByRule, r)
		}
	}
	return out
}

// blocksOfTenant are those on the tenant's own side. One on every side is the operator's affair.
func blocksOfTenant(list []Block, tenant string) []Block {
	out := []Block{}
	for _, b := range list {
		if b.Side.Tenant == tenant && !b.Side.Backbone {
			out = append(out, b)
		}
	}
	return out
}
