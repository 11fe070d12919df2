package gateway

import (
	"context"
	"fmt"
	"strings"

	"demarc/gateway/pipeline"
)

// Alive is an error unless every worker answers between two of its bursts.
func (g *Gateway) Alive(ctx context.Context) error {
	for i, w := range g.workers {
		if err := w.Do(ctx, func(*pipeline.Shard) {}); err != nil {
			return fmt.Errorf("worker %d: %w", i, err)
		}
	}
	return nil
}

// Headline is the node's state in one line, for a service manager.
func (g *Gateway) Headline() string {
	if !g.ready.Load() {
		return "not forwarding"
	}
	var dead []string
	for _, p := range g.ports {
		f := g.facts(p)
		switch {
		case f.state != portOpen:
			dead = append(dead, p.cfg.Name+" "+f.state)
		case f.bare:
			dead = append(dead, p.cfg.Name+" without its program")
		case !f.link.Up:
			dead = append(dead, p.cfg.Name+" down")
		case !f.link.Carrier:
			dead = append(dead, p.cfg.Name+" without carrier")
		}
	}
	s := fmt.Sprintf("forwarding, policy revision %d", g.revision.Load().Number)
	if len(dead) > 0 {
		s += "; " + strings.Join(dead, ", ")
	}
	return s
}
