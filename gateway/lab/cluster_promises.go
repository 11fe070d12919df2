package lab

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"demarc/gateway/api"
)

// judgeCluster turns what was measured into the verdict. It is pure.
func judgeCluster(s *clusterSeen) []Promise {
	list := []Promise{judgeReach(s), judgeRules(s), judgeConfirm(s), judgeAgree(s), judgeSteady(s), judgeTools(s)}
	for i := range list {
		list[i].OK = len(list[i].Why) == 0
	}
	return list
}

var clusterGateways = []string{"gw1", "gw2"}

func ms(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }

// judgeReach: a command that has returned says of each gateway that it serves the policy.
func judgeReach(s *clusterSeen) Promise {
	p := Promise{Name: "reach", Text: "an apply on any node returns when every gateway serves the policy"}
	var says []string
	for _, a := range []applied{s.Shut, s.Open} {
		p.require(a.Revision > 0, "the apply on %s made no revision", a.By)
		p.inTime(a.Took <= reachWithin, "the apply on %s took %s, want at most %s", a.By, a.Took, reachWithin)
		for _, g := range clusterGateways {
			i := slices.IndexFunc(a.Nodes, func(n api.Serves) bool { return n.Node == g })
			if i < 0 {
				p.fail("the apply on %s says nothing of %s", a.By, g)
				continue
			}
			p.require(a.Nodes[i].Why == "", "%s does not serve revision %d: %s", g, a.Revision, a.Nodes[i].Why)
		}
		says = append(says, fmt.Sprintf("revision %d after %s", a.Revision, ms(a.Took)))
	}
	p.Hosts = "the door, below"
	p.Gateway = strings.Join(says, ", ")
	return p
}

// judgeRules: what the command said is what the hosts meet, at both gateways: the door was open until the first apply, and from then on shut but for one time.
func judgeRules(s *clusterSeen) Promise {
	p := Promise{Name: "acl", Text: "what was applied decides about packets at both gateways"}
	var hosts []string
	for _, g := range clusterGateways {
		list := s.Doors[g]
		if len(list) == 0 {
			p.fail("no packet ever came through the door of %s", g)
			continue
		}
		shut, returned := list[0].Last, s.Shut.Began+s.Shut.Took
		p.require(shut.After <= returned, "the door of %s let a packet through %s after the apply had returned", g, ms(shut.After-returned))
		// Who knocks may be kept from its CPU for longer than makes a door count as shut.
		p.inTime(shut.Before >= s.Shut.Began-doorSilence, "the door of %s was shut %s before anybody applied that", g, ms(s.Shut.Began-shut.Before))
		p.inTime(len(list) == 2, "the door of %s was open %d times, want twice", g, len(list))
		hosts = append(hosts, fmt.Sprintf("%s: last packet %s after the command began", g, ms(shut.Before-s.Shut.Began)))
	}
	p.Hosts = strings.Join(hosts, "; ")
	for _, g := range clusterGateways {
		for _, n := range s.Shut.Nodes {
			if n.Node == g {
				p.Gateway += fmt.Sprintf("%s cut %d; ", g, n.Cut)
				p.require(n.Cut == 1, "%s says that it cut %d sessions, one used the door", g, n.Cut)
			}
		}
	}
	p.Gateway = strings.TrimSuffix(p.Gateway, "; ")
	return p
}

// judgeConfirm: a policy that nobody confirms is gone when its time is over, at both gateways, and not before.
func judgeConfirm(s *clusterSeen) Promise {
	p := Promise{Name: "confirm", Text: fmt.Sprintf("what nobody confirms within %s is taken back by itself, %s later at most", confirmTime, backWithin)}
	var hosts []string
	for _, g := range clusterGateways {
		list := s.Doors[g]
		if len(list) < 2 {
			p.fail("the door of %s was not opened by the policy to be confirmed", g)
			continue
		}
		least, most := list[1].Last.After-list[1].First.Before, list[1].Last.Before-list[1].First.After
		hosts = append(hosts, fmt.Sprintf("%s: open for %.3f s", g, most.Seconds()))
		// The first packet may come some time after the door was opened, the last one some time before it was shut.
		p.inTime(most >= confirmTime-500*time.Millisecond, "the door of %s was open for %.3f s only", g, most.Seconds())
		p.inTime(least <= confirmTime+backWithin, "the door of %s was open for %.3f s", g, least.Seconds())
	}
	p.Hosts = strings.Join(hosts, "; ")
	for _, name := range append(slices.Clone(clusterGateways), "witness") {
		h := s.Histories[name]
		i := slices.IndexFunc(h.Revisions, func(r api.Past) bool { return r.Number == s.Open.Revision })
		fate := "unknown"
		if i >= 0 {
			fate = h.Revisions[i].Fate
		}
		p.require(fate == "expired" && h.Serving == s.Shut.Revision, "%s says that revision %d is %s, and %d is served, want expired and %d", name, s.Open.Revision, fate, h.Serving, s.Shut.Revision)
	}
	p.Gateway = fmt.Sprintf("revision %d expired, %d is served", s.Open.Revision, s.Shut.Revision)
	return p
}

// judgeAgree: three nodes, one history.
func judgeAgree(s *clusterSeen) Promise {
	p := Promise{Name: "agree", Text: "three nodes have one history"}
	first := s.Histories["witness"]
	p.require(len(first.Revisions) >= 3 && first.Cluster != "", "the witness knows %d revisions", len(first.Revisions))
	line := func(h *api.History) string {
		var out []string
		for _, r := range h.Revisions {
			out = append(out, fmt.Sprintf("%d %s %s", r.Number, r.Digest, r.Fate))
		}
		return h.Cluster + ": " + strings.Join(out, ", ")
	}
	for _, g := range clusterGateways {
		h := s.Histories[g]
		p.require(line(&h) == line(&first), "%s has %s, the witness %s", g, line(&h), line(&first))
		if a := s.After[g]; a == nil || a.Revision.Number != first.Serving {
			p.fail("%s does not serve revision %d", g, first.Serving)
		}
	}
	p.Hosts = fmt.Sprintf("%d revisions, equal by digest and fate on all", len(first.Revisions))
	return p
}

// judgeSteady: what no policy was about did not notice any of it.
func judgeSteady(s *clusterSeen) Promise {
	p := Promise{Name: "traffic", Text: "sessions that no policy is about lose nothing meanwhile"}
	var hosts []string
	for _, g := range clusterGateways {
		f := s.Steady[g]
		p.require(f.Sent > 0 && f.Lost() == 0 && f.There == f.Sent, "%s: %d sent, %d reached the host outside, %d came back", g, f.Sent, f.There, f.Back)
		hosts = append(hosts, fmt.Sprintf("%s %d/%d/%d, longest gap %s", g, f.Sent, f.There, f.Back, ms(f.Longest)))
		if a := s.After[g]; a != nil {
			p.require(a.Conservation.OK, "%s's account of frames does not close: %s", g, a.Conservation.Detail)
			if f.Lost() > 0 {
				p.fail("%s dropped, the door's packets among them: %s; lost before it: %s", g, reasons(more(a.Drops, s.Before[g])), reasons(a.AtQueues()))
			}
		}
	}
	p.Hosts = strings.Join(hosts, "; ") + " (sent/there/back)"
	return p
}

// more is what a gateway dropped since then.
func more(drops map[string]uint64, then *api.Status) map[string]uint64 {
	out := map[string]uint64{}
	for reason, n := range drops {
		if then != nil {
			n = since(n, then.Drops[reason])
		}
		out[reason] = n
	}
	return out
}

// judgeTools: what could not be measured is not taken for good.
func judgeTools(s *clusterSeen) Promise {
	p := Promise{Name: "lab", Text: "the lab itself worked", Why: slices.Clone(s.Errors)}
	p.Hosts = fmt.Sprintf("%d tools failed", len(s.Errors))
	return p
}
