package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
)

// lone is one gateway by itself between the hosts of the standard lab: nobody stands beside it.
type lone struct {
	*netlab.Topology
	dir, binary string

	cmd    *exec.Cmd
	ended  chan struct{} // closed when it has been waited for; err is valid then
	err    error
	client *api.Client
}

const loneNode = `schema = 1
name = "lone"
data_dir = %q

[[port]]
device = "bb0"
[[port]]
device = "alpha0"
[[port]]
device = "beta0"

[[interface]]
name = "backbone"
port = "bb0"
addresses = ["203.0.113.1/24", "2001:db8:ff::1/64"]
[[interface]]
name = "alpha"
port = "alpha0"
addresses = ["198.18.10.1/24", "2001:db8:a::1/64"]
[[interface]]
name = "beta"
port = "beta0"
addresses = ["198.18.10.1/24", "2001:db8:b::1/64"]
`

const lonePolicy = `schema = 1
name = "lone"
[backbone]
interfaces = ["backbone"]
[[tenant]]
name = "alpha"
interfaces = ["alpha"]
prefixes = ["198.18.10.0/24", "2001:db8:a::/64"]
[tenant.nat]
pool = ["192.0.2.16/28"]
[[tenant]]
name = "beta"
interfaces = ["beta"]
prefixes = ["198.18.10.0/24", "2001:db8:b::/64"]
[tenant.nat]
pool = ["192.0.2.32/28"]
`

func openLone(dir, binary string) (l *lone, err error) {
	l = &lone{dir: dir, binary: binary}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if l.Topology, err = netlab.Standard(labName, netlab.Options{}); err != nil {
		return nil, err
	}
	for name, text := range map[string]string{"node.toml": l.node(), "policy.toml": lonePolicy} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, errors.Join(err, l.close())
		}
	}
	l.client = api.Dial(filepath.Join(dir, "data", "demarc.sock"))
	return l, nil
}

func (l *lone) node() string { return fmt.Sprintf(loneNode, filepath.Join(l.dir, "data")) }
func (l *lone) log() string  { return filepath.Join(l.dir, "log") }

// start runs it and returns when it forwards.
func (l *lone) start(ctx context.Context) (st *api.Status, err error) {
	log, err := os.OpenFile(l.log(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := l.Command(netlab.GW, l.binary, "run", "--node", filepath.Join(l.dir, "node.toml"), "--policy", filepath.Join(l.dir, "policy.toml"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	l.cmd, l.ended = cmd, ended
	go func() {
		l.err = cmd.Wait()
		close(ended)
	}()
	for end := time.Now().Add(15 * time.Second); ; {
		st = new(api.Status)
		look, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := l.client.Get(look, api.PathStatus, st)
		cancel()
		if err == nil && st.Ready {
			return st, nil
		}
		select {
		case <-ended:
			return nil, fmt.Errorf("the gateway ended before it was ready (%v):\n%s", l.err, lastLines(l.log()))
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("the gateway is not ready after 15 s:\n%s", lastLines(l.log()))
		}
	}
}

// stop ends it as systemd does.
func (l *lone) stop() error {
	if l.cmd == nil {
		return nil
	}
	_ = l.cmd.Process.Signal(unix.SIGTERM) // it may have ended, which is told below
	select {
	case <-l.ended:
	case <-time.After(8 * time.Second):
		_ = l.cmd.Process.Kill()
		<-l.ended
		return errors.New("the gateway did not end within 8 s of SIGTERM")
	}
	l.cmd = nil
	if l.err != nil {
		return fmt.Errorf("the gateway ended with %w:\n%s", l.err, lastLines(l.log()))
	}
	return nil
}

func (l *lone) close() error {
	errs := []error{l.stop()}
	if l.client != nil {
		l.client.Close()
	}
	return errors.Join(append(errs, l.Topology.Close(), os.RemoveAll(l.dir))...)
}

// restarted is what one restart cost.
type restarted struct {
	gap, paused, before time.Duration // as those of a failure
	flow                string
	stopping, starting  time.Duration // until the process had ended, and until the next one forwarded
	lost, lostIdle      [2]int        // connections, of
	away, moved         int
	wrong               uint64
	resumed             api.Resumed
}

// who of the standard lab has probes and connections: hosts of both tenants, and where they go, for one family.
func (l *lone) who(i int) (from netlab.Host, at, to netip.Addr) {
	from = []netlab.Host{l.Alpha1, l.Beta1}[i%2]
	if i/2%2 == 1 {
		return from, from.V6, l.Public1.V6
	}
	return from, from.V4, l.Public1.V4
}

const (
	loneFlowPort = 7150
	loneHoldPort = 8081
)

// restart has packets go and connections be open, restarts the gateway, and says what that cost.
func (q *failoverBench) restart(ctx context.Context, l *lone) (o restarted, err error) {
	far, err := l.Serve(l.Public1.Name, "tcp-hold-serve", "-addr", fmt.Sprintf(":%d", loneHoldPort), "-most", strconv.Itoa(perProcess))
	if err != nil {
		return o, err
	}
	var specs []netlab.FlowSpec
	var held []*netlab.Server
	for i := range 4 {
		from, at, to := l.who(i)
		specs = append(specs, netlab.FlowSpec{Inside: from.Name, From: []netip.Addr{at}, Tag: fmt.Sprintf("lone%d", i), Outside: l.Public1.Name, To: netip.AddrPortFrom(to, loneFlowPort), Interval: q.Interval})
		share := func(all int) string { return strconv.Itoa((max(4, all/10) + i) / 4) } // a tenth of them, as in most rows
		s, err := l.ServeWithin(30*time.Second, from.Name, "tcp-hold", "-dst", netip.AddrPortFrom(to, loneHoldPort).String(), "-from", at.String(), "-patience", "20s",
			"-count", share(q.Data), "-every", q.Every.String(), "-within", q.Within.String(), "-idle", share(q.Idle))
		if err != nil {
			return o, err
		}
		held = append(held, s)
	}
	flows, err := l.StartFlows(specs...)
	if err == nil {
		err = rest(ctx, before)
	}
	if err != nil {
		return o, err
	}
	from := time.Now()
	if err := l.stop(); err != nil {
		return o, err
	}
	o.stopping = time.Since(from)
	st, err := l.start(ctx)
	if err != nil {
		return o, err
	}
	o.starting = time.Since(from) - o.stopping
	if st.Resumed == nil {
		return o, errors.New("the process that was started says nothing of the one before it")
	}
	o.resumed = *st.Resumed
	if err := rest(ctx, behind); err != nil {
		return o, err
	}
	to := time.Now()
	seen, err := flows.End()
	if err != nil {
		return o, err
	}
	for i := range seen.Flows {
		e := &seen.Flows[i]
		if e.Received == 0 || e.First >= from.UnixNano() {
			return o, fmt.Errorf("nothing came on %s before the restart", e.Name())
		}
		if to.UnixNano()-e.Last > int64(gone) {
			o.away++
		}
	}
	worst, paused := seen.Worst(from, to)
	earlier, _ := seen.Worst(from.Add(-before), from)
	o.gap, o.flow, o.paused, o.before, o.moved, o.wrong = worst.Gap, worst.Flow, paused, earlier.Gap, len(seen.Moved()), seen.Wrong
	if o.gap == 0 {
		return o, errors.New("no flow was silent while no gateway was there: it was not measured")
	}
	opened := 0
	for _, s := range held {
		var h host.Held
		if err := s.StopWithin(20*time.Second, &h); err != nil {
			return o, err
		}
		data := h.Opened - h.Idle
		o.lost[0], o.lost[1], o.lostIdle[0], o.lostIdle[1] = o.lost[0]+h.Lost-h.LostIdle, o.lost[1]+data, o.lostIdle[0]+h.LostIdle, o.lostIdle[1]+h.Tried
		opened += h.Opened
	}
	var served host.HoldServed
	if err := far.Stop(&served); err != nil {
		return o, err
	}
	if opened == 0 || served.Accepted < opened {
		return o, fmt.Errorf("%d connections say that they are open; their other end accepted %d", opened, served.Accepted)
	}
	return o, nil
}

// alone restarts a gateway that nobody stands beside, as often as is asked.
func (q *failoverBench) alone(ctx context.Context, r *failoverRow, runs int) (err error) {
	q.number++
	l, err := openLone(filepath.Join(dirRun, strconv.Itoa(q.number)), q.Binary)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	st, err := l.start(ctx)
	if err != nil {
		return err
	}
	if q.machine.Mode == "" {
		q.machine.Mode = "lone " + modesOf(st)
	}
	q.configs["demarc, row "+r.name] = l.node() + "\n# policy\n" + lonePolicy
	begun, err := sampleCPU(nil)
	if err != nil {
		return err
	}
	rounds := pacer{due: q.due}
	var list []restarted
	for i := range runs {
		if !rounds.fits(time.Now()) {
			q.fewer(r.name, i, runs, "runs")
			break
		}
		o, err := q.restart(ctx, l)
		if err != nil {
			return fmt.Errorf("run %d: %w", i+1, err)
		}
		q.say("%-16s run %2d: gap %.1f ms (%s), %.1f ms just before, senders paused %.1f ms; stopped in %.0f ms, forwarding %.0f ms later; %d sessions taken up in %.1f ms; lost %d of %d connections with data, %d of %d idle; %d flows not back, %d on another session",
			r.name, i+1, o.gap.Seconds()*1e3, o.flow, o.before.Seconds()*1e3, o.paused.Seconds()*1e3, o.stopping.Seconds()*1e3, o.starting.Seconds()*1e3, o.resumed.Taken, o.resumed.Took*1e3, o.lost[0], o.lost[1], o.lostIdle[0], o.lostIdle[1], o.away, o.moved)
		list = append(list, o)
	}
	end, err := sampleCPU(nil)
	if err != nil {
		return err
	}
	q.restarts(r, list)
	q.beside(r.name, begun.until(end))
	return nil
}

// restarts notes what they have cost. The outage itself is promised by nobody; that nothing is lost is.
func (q *failoverBench) restarts(r *failoverRow, list []restarted) {
	add := func(metric, unit, of string, fn func(o *restarted) float64) {
		var values []float64
		for i := range list {
			values = append(values, fn(&list[i]))
		}
		q.add(r.name, metric, unit, values, of, 0)
	}
	ms := func(d time.Duration) float64 { return d.Seconds() * 1e3 }
	add("gap", "ms", "", func(o *restarted) float64 { return ms(o.gap) })
	add("stop", "ms", "", func(o *restarted) float64 { return ms(o.stopping) })
	add("start", "ms", "", func(o *restarted) float64 { return ms(o.starting) })
	add("taken-up", "sessions", "", func(o *restarted) float64 { return float64(o.resumed.Taken) })
	add("not-taken-up", "sessions", "max", func(o *restarted) float64 {
		n := uint64(0)
		for _, v := range o.resumed.Refused {
			n += v
		}
		return float64(n)
	})
	add("gap-before", "ms", "", func(o *restarted) float64 { return ms(o.before) })
	add("senders-paused", "ms", "", func(o *restarted) float64 { return ms(o.paused) })
	add("wrong-packets", "packets", "max", func(o *restarted) float64 { return float64(o.wrong) })
	add("flows-not-back", "flows", "max", func(o *restarted) float64 { return float64(o.away) })
	add("flows-on-another-session", "flows", "max", func(o *restarted) float64 { return float64(o.moved) })
	add("lost", "connections", "max", func(o *restarted) float64 { return float64(o.lost[0]) })
	add("lost-of", "connections", "", func(o *restarted) float64 { return float64(o.lost[1]) })
	add("lost-idle", "connections", "max", func(o *restarted) float64 { return float64(o.lostIdle[0]) })
	add("lost-idle-of", "connections", "", func(o *restarted) float64 { return float64(o.lostIdle[1]) })
}
