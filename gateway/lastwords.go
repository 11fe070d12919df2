package gateway

import (
	"context"
	"maps"
	"slices"
	"time"

	"demarc/cluster/beat"
	"demarc/cluster/failover"
	"demarc/gateway/guard"
	"demarc/gateway/worker"
)

// wordsEvery is how often it is looked whether the parent process has to say something else: a member has new keys once an hour and after its restart.
const wordsEvery = 100 * time.Millisecond

// lastWords tells the parent process what it is to say once this one has ended: a release of each term that this node has. The parent must have it before that.
func (g *Gateway) lastWords(ctx context.Context) error {
	if g.o.Parent == nil {
		return nil
	}
	t := time.NewTicker(wordsEvery)
	defer t.Stop()
	var terms map[string]failover.Term
	var keys map[string]uint64
	failed, zerocopy := false, slices.ContainsFunc(g.workers, func(w *worker.Worker) bool { _, u := w.Area(true); return u != nil })
	for {
		nowTerms, err := g.groups.driver.Terms(ctx)
		if c := g.groups.carrier.Load(); err == nil && c != nil {
			// The keys are read first: where they change meanwhile, it is done again.
			nowKeys := c.PartingKeys()
			if !maps.Equal(nowTerms, terms) || len(nowTerms) > 0 && !maps.Equal(nowKeys, keys) {
				if err = g.o.Parent.LastWords(sealWords(c, g.groups.driver.Life(), nowTerms, nowKeys), zerocopy, g.off != nil); err == nil {
					terms, keys = nowTerms, nowKeys
				} else if !failed {
					failed = true
					g.log.Warn("the parent process cannot be told what to say when this one has ended: its death will be found by the end of its leases", "err", err)
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-g.groups.owns:
		case <-t.C:
		}
	}
}

func sealWords(c *beat.Carrier, life uint64, terms map[string]failover.Term, keys map[string]uint64) (list []guard.Words) {
	for _, group := range slices.Sorted(maps.Keys(terms)) {
		w := guard.Words{Group: group, Epoch: terms[group].Epoch}
		for _, member := range slices.Sorted(maps.Keys(keys)) {
			w.Parcels = append(w.Parcels, c.Parting(member, failover.Message{Kind: failover.Release, Life: life, Group: group, Term: terms[group]})...)
		}
		list = append(list, w)
	}
	return list
}
