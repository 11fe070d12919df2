package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"time"

	"demarc/acl"
	"demarc/bench/peers"
	"demarc/bench/pktgen"
)

// quick is one run of `demarc bench quick`.
type quick struct {
	Pairs      int
	Seconds    float64 // of the load at full speed
	Step       float64 // seconds of each step of the search
	Flows      int
	Rules      int
	Offer      float64       // frames per second at full load; 0 = as many as it can
	Rate       uint64        // bit/s, of the limit that both sides apply and that cuts nothing
	Budget     time.Duration // no pair is repeated past it
	Binary     string        // that is the gateway
	BreakStage string
	Mode       string    // that the gateway's ports are asked for; "" = auto
	Offload    string    // likewise; "" = auto
	Progress   io.Writer // a line per step

	room  *room
	d     *demarc
	k     *kernel
	began time.Time
	done  int // pairs
}

// late says that nothing may be tried twice any more, else the run does not end within its budget. Pairs have equal shares of it.
func (q *quick) late() bool {
	return time.Since(q.began) > q.Budget*time.Duration(q.done+1)/time.Duration(q.Pairs+1)
}

// leg is one device's turn.
type leg struct {
	Device    string
	Sessions  int // established, as the device counts them
	Answered  int // flows whose answer came back, as the far ends count them
	Establish time.Duration
	Full      trial
	Paced     trial // at pacedPart of its rate
	Lossless  trial // at the highest rate with at most lossLimit of loss
	Again     int   // loads at full speed that were disturbed and repeated
	Disturbed bool
}

// pair is both devices' turns, one after the other.
type pair struct {
	Legs      map[string]leg
	First     string
	Disturbed bool
	Others    bool // something else ran: the pair is repeated then, not for a CPU that is slowed
}

// outcome is everything that was measured.
type outcome struct {
	Pairs    []pair
	Repeated int
	Forms    map[peers.Form]formTrial
	Form     peers.Form
	Ruleset  string
	Mode     string
	Refused  string // why no ratio may be shown; "" = it may
	Took     time.Duration
}

// formTrial is what a way to write the rules for nftables gave in a short look.
type formTrial struct {
	NewPerSecond float64 // flows established; 0 = it took no time that could be told
	Rate         float64 // frames per second at full load, established
	Disturbed    bool
}

func (t formTrial) String() string {
	first := "flows were too few for a rate of new ones"
	if t.NewPerSecond > 0 {
		first = fmt.Sprintf("%6.0f thousand new flows/s", t.NewPerSecond/1e3)
	}
	return fmt.Sprintf("%s, %6.3f Mpps established", first, t.Rate/1e6)
}

func (q *quick) say(format string, args ...any) { fmt.Fprintf(q.Progress, format+"\n", args...) }

// run measures. What it could measure is in the outcome also when there is an error.
func (q *quick) run(ctx context.Context) (out *outcome, err error) {
	start := time.Now()
	q.began = start
	out = &outcome{}
	if runtime.NumCPU() < 2 {
		return out, errors.New("the bench needs two CPUs: one makes frames, one moves them")
	}
	if _, err := nftVersion(); err != nil {
		return out, err
	}
	p := plan(q.Flows)
	rules, err := makeRules(1, q.Rules, &p)
	if err != nil {
		return out, err
	}
	if q.room, err = openRoom(p); err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, q.room.Close()) }()
	q.d = &demarc{r: q.room, binary: q.Binary, rules: rules, pool: pool, rate: q.Rate, table: max(4096, 2*q.Flows), breakStage: q.BreakStage, asked: q.Mode, offload: q.Offload}
	if err := q.chooseForm(ctx, rules, out); err != nil {
		return out, err
	}
	defer func() { out.Ruleset, out.Mode, out.Took = q.k.ruleset, q.d.mode, time.Since(start) }() // also of what was interrupted
	for n := 0; len(out.Pairs) < q.Pairs; n++ {
		began := time.Now()
		p, why, err := q.pair(ctx, n)
		if err != nil {
			return out, fmt.Errorf("pair %d: %w", n+1, err)
		}
		if why != "" {
			out.Refused = why
			break
		}
		took := time.Since(began)
		left := q.Budget - time.Since(start) - took*time.Duration(q.Pairs-len(out.Pairs))
		if p.Others && left > 0 {
			out.Repeated++
			q.say("  something else ran: this pair is repeated")
			continue
		}
		out.Pairs = append(out.Pairs, p)
		q.done = len(out.Pairs)
	}
	return out, nil
}

// chooseForm looks at both ways to write the rules and takes the better one. Established packets never come to the list, so the
// rates should be the same; how fast sessions begin decides then.
func (q *quick) chooseForm(ctx context.Context, rules []acl.Rule, out *outcome) error {
	out.Forms = map[peers.Form]formTrial{}
	for _, f := range []peers.Form{peers.Maps, peers.Linear} {
		k := &kernel{r: q.room, rules: rules, form: f, rate: q.Rate}
		l, why, err := q.leg(ctx, k, q.Flows, 0.4, 0)
		if err != nil {
			return fmt.Errorf("nftables with %s: %w", f, err)
		}
		if why != "" {
			return fmt.Errorf("nftables with %s lacks %s", f, why)
		}
		out.Forms[f] = formTrial{ratio(float64(q.Flows), l.Establish.Seconds()), l.Full.judged.Rate(), l.Disturbed}
		q.say("nftables with %-13s %s", string(f)+":", out.Forms[f])
	}
	out.Form = better(out.Forms)
	q.k = &kernel{r: q.room, rules: rules, form: out.Form, rate: q.Rate}
	return nil
}

// better takes a difference of less than 10 % for noise, and a disturbed look for none: then it is the form that an expert would choose.
func better(forms map[peers.Form]formTrial) peers.Form {
	m, l := forms[peers.Maps], forms[peers.Linear]
	switch {
	case m.Disturbed || l.Disturbed:
		return peers.Maps
	case l.Rate > 1.1*m.Rate:
		return peers.Linear
	case m.Rate > 1.1*l.Rate:
		return peers.Maps
	case l.NewPerSecond > 1.1*m.NewPerSecond:
		return peers.Linear
	}
	return peers.Maps
}

func (q *quick) pair(ctx context.Context, n int) (p pair, why string, err error) {
	devices := []device{q.d, q.k}
	if n%2 == 1 {
		slices.Reverse(devices)
	}
	p = pair{Legs: map[string]leg{}, First: devices[0].name()}
	for _, d := range devices {
		l, why, err := q.leg(ctx, d, q.Flows, q.Seconds, q.Step)
		if err != nil {
			return p, "", fmt.Errorf("%s: %w", d.name(), err)
		}
		if why != "" {
			return p, fmt.Sprintf("%s does not do %s", d.name(), why), nil
		}
		p.Legs[d.name()] = l
		p.Disturbed, p.Others = p.Disturbed || l.Disturbed, p.Others || l.Full.use.others()
		mark := ""
		if l.Disturbed {
			mark = "  disturbed (" + l.Full.use.words() + ")"
		}
		q.say("pair %d %-10s %6d sessions  full load %6.3f Mpps (%4.1f %% loss)  at most %.1f %% loss: %6.3f Mpps  cpu0 %3.0f %% cpu1 %3.0f %%%s", n+1, d.name(), l.Sessions,
			l.Full.judged.Rate()/1e6, 100*l.Full.loss(), 100*lossLimit, l.Lossless.judged.Rate()/1e6, 100*l.Full.use.cpus[makerCPU], 100*l.Full.use.cpus[deviceCPU], mark)
	}
	return p, "", nil
}

// leg is one device's turn from a start to its end. why says what the device does not do; then it was not measured, or not to the end.
// Without step there is no search.
func (q *quick) leg(ctx context.Context, d device, flows int, seconds, step float64) (l leg, why string, err error) {
	defer func() { err = errors.Join(err, d.stop()) }()
	l.Device = d.name()
	if err := d.start(ctx); err != nil {
		return l, "", err
	}
	if g, ok := d.(*demarc); ok {
		// A stage that was switched off is known before any frame is sent, and may make sessions impossible.
		st, err := g.status(ctx, false)
		if err != nil {
			return l, "", err
		}
		if st.Broken != "" {
			return l, st.Broken + " (switched off by --break)", nil
		}
	}
	e, took, err := q.room.establish(ctx, flows, establishRate)
	if err != nil {
		return l, "", fmt.Errorf("establish %d flows: %w", flows, err)
	}
	l.Answered, l.Establish = e.Answered, took
	// A worker publishes its figures now and then.
	for end := time.Now().Add(2 * time.Second); l.Sessions < flows && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if l.Sessions, err = d.sessions(ctx); err != nil {
			return l, "", err
		}
	}
	if l.Sessions < flows {
		return l, "", fmt.Errorf("it holds %d established sessions, want %d", l.Sessions, flows)
	}
	full := time.Duration(seconds * float64(time.Second))
	// Caches, clocks and buffers as they are after a while.
	if _, err := q.room.trial(ctx, q.Offer, full/5, d.pids()); err != nil {
		return l, "", err
	}
	// A disturbed load is repeated at once, while the sessions are there; only what others used decides, never the rate.
	for try := 0; ; try++ {
		if l.Full, err = q.room.trial(ctx, q.Offer, full, d.pids()); err != nil {
			return l, "", err
		}
		if l.Disturbed = l.Full.use.disturbed(); !l.Full.use.again(try) || q.late() {
			break
		}
		l.Again++
	}
	if err := sound(l.Full); err != nil {
		return l, "", err
	}
	if step > 0 {
		if l.Paced, err = q.room.trial(ctx, pacedPart*l.Full.judged.Rate(), full*2/3, d.pids()); err != nil {
			return l, "", err
		}
		if err := q.search(ctx, d, &l, time.Duration(step*float64(time.Second))); err != nil {
			return l, "", err
		}
	}
	// Asked after the load, a device that lost sessions or never looked at its rules under way is found too.
	if n, err := d.sessions(ctx); err != nil || n < flows {
		return l, "", errors.Join(fmt.Errorf("after the load it holds %d sessions, want %d", n, flows), err)
	}
	why, err = d.missing(ctx, flows)
	return l, why, err
}

// sound refuses a load that measured nothing. Wrong frames are counted as lost; many of them are a fault, not a result.
func sound(t trial) error {
	right, wrong := t.judged.Counts[pktgen.Right], t.judged.Counts.Wrong()
	if right == 0 || t.judged.Rate() == 0 {
		return fmt.Errorf("no right frame arrived of %d sent; wrong ones: %v", t.sent.Frames, t.judged.Counts.WrongKinds())
	}
	if float64(wrong) > lossLimit*float64(right) {
		return fmt.Errorf("%d frames arrived wrong beside %d right ones: %v", wrong, right, t.judged.Counts.WrongKinds())
	}
	return nil
}

// searchSteps halve the range each: 64 parts are 1.6 % of what full load gave.
const searchSteps = 6

// search finds the highest rate with at most lossLimit of loss. A step that fails is tried once more, since one hiccup of the
// machine loses more than the limit.
func (q *quick) search(ctx context.Context, d device, l *leg, step time.Duration) error {
	lo, hi := 0.0, l.Full.judged.Rate()*1.05
	for range searchSteps {
		rate := (lo + hi) / 2
		pass := false
		for range 2 {
			t, err := q.room.trial(ctx, rate, step, d.pids())
			if err != nil {
				return err
			}
			if t.loss() <= lossLimit {
				// The sender may have been slower than it was told: what counts is what it did.
				if pass = true; t.judged.Rate() > l.Lossless.judged.Rate() {
					l.Lossless = t
				}
				break
			}
			if q.late() {
				break
			}
		}
		if pass {
			lo = rate
		} else {
			hi = rate
		}
	}
	return nil
}
