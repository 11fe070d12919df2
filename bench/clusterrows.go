package bench

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/trio"
)

// commits applies version after version by asking these nodes in turn, in batches; a batch that something else disturbed is repeated while there is time.
func (q *clusterBench) commits(ctx context.Context, t *trio.Trio, x *texts, row string, many int, ask []*trio.Node, of string, most float64) error {
	var all []float64
	by := map[string][]float64{}
	// The first ones fill caches and connections.
	version := 0
	one := func(n *trio.Node) (float64, error) {
		version++
		file := filepath.Join(dirRun, strconv.Itoa(q.number), "policy.toml")
		if err := os.WriteFile(file, []byte(x.text(version)), 0o600); err != nil {
			return 0, err
		}
		a, took, err := n.Apply(ctx, file)
		switch {
		case err != nil:
			return 0, err
		case len(a.Nodes) != 2 || len(trio.Late(a)) > 0:
			return 0, fmt.Errorf("revision %d is not acknowledged by both gateways: %v", a.Revision.Number, a.Nodes)
		case version > 1 && n != t.Witness && len(a.Changes) != changedLines: // a witness compares nothing
			return 0, fmt.Errorf("revision %d has %d changes, want %d", a.Revision.Number, len(a.Changes), changedLines)
		}
		return took.Seconds() * 1e3, nil
	}
	for _, n := range ask {
		if _, err := one(n); err != nil {
			return err
		}
	}
	kept, slowed := 0, 0 // batches that were disturbed; tries of one because a CPU was slowed
	rounds := pacer{due: share(time.Now(), dueOf(ctx), 1, float64(len(q.Rows)))}
	for len(all) < many {
		fits := rounds.fits(time.Now())
		if !fits && len(all) > 0 {
			q.fewer(row, len(all), many, "commits")
			break
		}
		var took []float64
		var who []string
		u, err := watched(t, func() error {
			for range min(batch, many-len(all)) {
				n := ask[(len(all)+len(took))%len(ask)]
				ms, err := one(n)
				if err != nil {
					return err
				}
				took, who = append(took, ms), append(who, n.Name)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", row, err)
		}
		if (u.others() || u.again(slowed)) && time.Since(q.began) < q.Budget && fits {
			if !u.others() {
				slowed++
			}
			q.machine.Repeated++
			q.say("%-28s %d commits, %s: again", row, len(took), u.words())
			continue
		}
		slowed = 0
		if u.disturbed() {
			kept++
		}
		all = append(all, took...)
		for i, ms := range took {
			by[who[i]] = append(by[who[i]], ms)
		}
	}
	q.machine.Disturbed += kept
	q.add(row, "commit", "ms", all, of, most)
	if len(ask) > 1 {
		for _, n := range ask {
			q.add(row, "commit-asked-"+n.Name, "ms", by[n.Name], "", 0)
		}
	}
	q.add(row, "disturbed-batches", "batches", []float64{float64(kept)}, "", 0)
	return nil
}

// near is what is measured where all nodes are in one site.
func (q *clusterBench) near(ctx context.Context) (err error) {
	x := &texts{seed: q.Seed, tenants: 1, rules: changedLines}
	wait := map[string]time.Duration{}
	if q.Near > 0 {
		wait["witness"] = q.Near
	}
	t, _, err := q.open(ctx, x, wait, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	if slices.Contains(q.Rows, "commit") {
		if err := q.commits(ctx, t, x, "commit/100-lines/near", q.Commits, t.Nodes(), "p99", commitMs); err != nil {
			return err
		}
	}
	if slices.Contains(q.Rows, "death") {
		return q.deaths(ctx, t, x)
	}
	return nil
}

// deaths kills who leads, again and again, and has a change made at once, while packets go through the gateways that live.
func (q *clusterBench) deaths(ctx context.Context, t *trio.Trio, x *texts) error {
	file := filepath.Join(dirRun, strconv.Itoa(q.number), "policy.toml")
	version := 1 << 20
	due := dueOf(ctx)
	all := q.Deaths + (q.Deaths+1)/2
	for _, c := range []struct {
		row     string
		victim  *trio.Node
		through []*trio.Node
		times   int
	}{
		{"death/witness-leads", t.Witness, t.Gateways(), q.Deaths},
		{"death/gateway-leads", t.GW1, []*trio.Node{t.GW2}, (q.Deaths + 1) / 2},
	} {
		var accepted, lost, sent []float64
		var longest time.Duration
		rounds := pacer{due: share(time.Now(), due, float64(c.times), float64(all))}
		all -= c.times
		u, err := watched(t, func() error {
			for n := range c.times {
				if !rounds.fits(time.Now()) {
					q.fewer(c.row, n, c.times, "deaths")
					break
				}
				// With the lead comes the wish to hand it on to the witness: who is asked again has it for a while.
				if err := leads(ctx, t, c.victim); err != nil {
					return err
				}
				var streams []*trio.Stream
				for _, n := range c.through {
					s, err := n.Stream(ctx, 2, 500)
					if err != nil {
						return err
					}
					streams = append(streams, s)
				}
				if err := rest(ctx, 300*time.Millisecond); err != nil {
					return err
				}
				version++
				if err := os.WriteFile(file, []byte(x.text(version)), 0o600); err != nil {
					return err
				}
				began := time.Now()
				c.victim.Kill()
				a, _, err := c.through[len(accepted)%len(c.through)].Apply(ctx, file)
				took := time.Since(began)
				p, serr := passed(streams)
				if err := errors.Join(err, serr); err != nil {
					return err
				}
				for _, n := range c.through {
					if i := slices.IndexFunc(a.Nodes, func(s api.Serves) bool { return s.Node == n.Name }); i < 0 || a.Nodes[i].Why != "" {
						return fmt.Errorf("revision %d is not acknowledged by %s: %v", a.Revision.Number, n.Name, a.Nodes)
					}
				}
				accepted, longest = append(accepted, took.Seconds()*1e3), max(longest, p.Longest)
				lost, sent = append(lost, float64(p.Lost())), append(sent, float64(p.Sent))
				if err := c.victim.Start(ctx); err != nil {
					return err
				}
				if err := t.Whole(ctx, time.Minute, nil); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", c.row, err)
		}
		q.add(c.row, "change-served", "ms", accepted, "max", acceptedMs)
		q.add(c.row, "sent", "packets", sent, "", 0)
		q.add(c.row, "lost", "packets", lost, "max", 0)
		q.add(c.row, "longest-gap", "ms", []float64{longest.Seconds() * 1e3}, "", 0)
		q.beside(c.row, u)
	}
	return nil
}

// leads has a node lead, whoever does now.
func leads(ctx context.Context, t *trio.Trio, n *trio.Node) error {
	var err error
	for range 20 {
		if err = t.Whole(ctx, time.Minute, nil); err != nil {
			return err
		}
		m, e := n.Members(ctx)
		if e == nil && m.Leader == n.Name {
			return nil
		}
		_, err = n.Run(ctx, "cluster", "lead", n.Name)
		if err := rest(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s does not come to lead: %w", n.Name, err)
}

func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// far measures commits with a site at the end of a satellite link, each case in which that makes a difference.
func (q *clusterBench) far(ctx context.Context) error {
	half := q.RoundTrip / 2
	for _, c := range []struct {
		row  string
		wait map[string]time.Duration
		ask  []string
	}{
		{"witness-far", map[string]time.Duration{"witness": half}, []string{"gw1"}},
		{"gateway-far", map[string]time.Duration{"gw2": half}, []string{"gw1", "gw2"}},
		{"all-apart", map[string]time.Duration{"gw1": half / 2, "gw2": half / 2, "witness": half / 2}, []string{"gw1"}},
	} {
		if err := q.farCase(ctx, "commit/100-lines/"+c.row, c.wait, c.ask); err != nil {
			return err
		}
	}
	return nil
}

func (q *clusterBench) farCase(ctx context.Context, row string, wait map[string]time.Duration, ask []string) (err error) {
	x := &texts{seed: q.Seed, tenants: 1, rules: changedLines}
	t, f, err := q.open(ctx, x, wait, q.RoundTrip)
	if err != nil {
		return fmt.Errorf("%s: %w", row, err)
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	var nodes []*trio.Node
	for _, name := range ask {
		nodes = append(nodes, t.Node(name))
	}
	if err := q.commits(ctx, t, x, row, q.FarEach*len(nodes), nodes, "max", farMs); err != nil {
		return err
	}
	lost, moved, late := f.lost()
	q.add(row, "frames-over-the-line", "frames", []float64{float64(moved)}, "", 0)
	q.add(row, "frames-lost-by-the-line", "frames", []float64{float64(lost)}, "", 0)
	q.add(row, "line-late", "ms", []float64{late.Seconds() * 1e3}, "", 0)
	return nil
}

// big is what is measured with a large policy.
func (q *clusterBench) big(ctx context.Context) (err error) {
	x := &texts{seed: q.Seed, tenants: q.Tenants, rules: q.Rules}
	t, _, err := q.open(ctx, x, nil, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	if slices.Contains(q.Rows, "large") {
		if err := q.large(ctx, t, x); err != nil {
			return err
		}
	}
	if slices.Contains(q.Rows, "applies") {
		return q.applies(ctx, t, x)
	}
	return nil
}

// apply applies one version of the large policy.
func (q *clusterBench) apply(ctx context.Context, n *trio.Node, x *texts, version int) (took time.Duration, err error) {
	file := filepath.Join(dirRun, strconv.Itoa(q.number), "large.toml")
	if err := os.WriteFile(file, []byte(x.text(version)), 0o600); err != nil {
		return 0, err
	}
	a, took, err := n.Apply(ctx, file)
	if err == nil && (len(a.Nodes) != 2 || len(trio.Late(a)) > 0) {
		err = fmt.Errorf("revision %d is not acknowledged by both gateways: %v", a.Revision.Number, a.Nodes)
	}
	return took, err
}

func (q *clusterBench) large(ctx context.Context, t *trio.Trio, x *texts) error {
	row := fmt.Sprintf("apply/%d-rules/%d-tenants", x.rules, x.tenants)
	var took []float64
	var p trio.Passed
	u, err := watched(t, func() error {
		var streams []*trio.Stream
		for _, n := range t.Gateways() {
			s, err := n.Stream(ctx, 4, 250)
			if err != nil {
				return err
			}
			streams = append(streams, s)
		}
		if err := rest(ctx, 500*time.Millisecond); err != nil {
			return err
		}
		for i := range q.Large {
			d, err := q.apply(ctx, t.Nodes()[i%3], x, i)
			if err != nil {
				return err
			}
			took = append(took, d.Seconds())
		}
		var err error
		p, err = passed(streams)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", row, err)
	}
	q.add(row, "apply", "seconds", took, "max", largeSeconds)
	q.add(row, "text", "bytes", []float64{float64(len(x.text(0)))}, "", 0)
	q.add(row, "sent", "packets", []float64{float64(p.Sent)}, "", 0)
	q.add(row, "lost", "packets", []float64{float64(p.Lost())}, "max", 0)
	q.add(row, "longest-gap", "ms", []float64{p.Longest.Seconds() * 1e3}, "", 0)
	q.beside(row, u)
	return nil
}

// applies has a large policy applied again and again, and looks at what that leaves in memory and on disk, before and after a restart of all.
func (q *clusterBench) applies(ctx context.Context, t *trio.Trio, x *texts) error {
	row := fmt.Sprintf("applies/%d-rules", x.rules)
	var took []float64
	u, err := watched(t, func() error {
		for i := range q.Applies {
			d, err := q.apply(ctx, t.Nodes()[i%3], x, 1000+i)
			if err != nil {
				return fmt.Errorf("apply %d: %w", i+1, err)
			}
			if took = append(took, d.Seconds()); (i+1)%50 == 0 {
				q.say("%-28s %d of %d", row, i+1, q.Applies)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", row, err)
	}
	q.add(row, "apply", "seconds", took, "", 0)
	q.beside(row, u)
	if err := q.left(ctx, t, row, "end"); err != nil {
		return err
	}
	peak, err := memory(t.Witness.Pid(), "VmHWM:")
	if err != nil {
		return err
	}
	q.add(row, "witness-peak", "MB", []float64{float64(peak) / 1e6}, "", 0)
	for _, n := range t.Nodes() {
		if err := n.Stop(); err != nil {
			return err
		}
	}
	for _, n := range t.Nodes() {
		if err := n.Start(ctx); err != nil {
			return err
		}
	}
	if err := t.Whole(ctx, time.Minute, nil); err != nil {
		return fmt.Errorf("after a restart: %w", err)
	}
	return q.left(ctx, t, row, "restarted")
}

// left is what nodes hold in memory and on disk.
func (q *clusterBench) left(ctx context.Context, t *trio.Trio, row, when string) error {
	rss, err := resident(t.Witness.Pid())
	if err != nil {
		return err
	}
	q.add(row, "witness-resident-"+when, "MB", []float64{float64(rss) / 1e6}, "max", witnessMB)
	var dirs []float64
	for _, n := range t.Nodes() {
		size, err := directory(n.Data)
		if err != nil {
			return err
		}
		dirs = append(dirs, float64(size)/(1<<20))
	}
	q.add(row, "directories-"+when, "MiB", dirs, "max", directoryMiB)
	return ctx.Err()
}

// directory is how many bytes the files below it have. One that goes away meanwhile counts as none.
func directory(dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && !e.Type().IsRegular() {
			return nil
		}
		if err != nil {
			return err
		}
		i, err := e.Info()
		if err == nil {
			size += i.Size()
		} else if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	})
	return size, err
}
