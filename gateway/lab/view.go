package lab

import (
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"demarc/gateway/api"
)

// view shows the gateway's live figures. On a terminal it draws them in place, otherwise it writes one line a second.
type view struct {
	out   io.Writer
	width int // of the terminal; 0 = no terminal
	every time.Duration

	mu    sync.Mutex
	phase string
	lines int // drawn last time, to go back over

	start time.Time
	last  *api.Status
	at    time.Time
}

func newView(out io.Writer) *view {
	v := &view{out: out, every: time.Second, start: time.Now()}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		v.every, v.width = 400*time.Millisecond, 80
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			v.width = w
		}
	}
	return v
}

// setPhase says what happens from now on.
func (v *view) setPhase(s string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.phase = s
	if v.width == 0 {
		fmt.Fprintf(v.out, "%5.1f s  -- %s\n", time.Since(v.start).Seconds(), s)
	}
}

// show takes one reading. The first one only begins the rates.
func (v *view) show(st *api.Status, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	last, seconds := v.last, now.Sub(v.at).Seconds()
	v.last, v.at = st, now
	if last == nil || seconds <= 0 {
		return
	}
	if v.width == 0 {
		fmt.Fprintln(v.out, v.line(last, st, seconds))
		return
	}
	lines := v.table(last, st, seconds)
	var b strings.Builder
	if v.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", v.lines)
	}
	for _, l := range lines {
		if r := []rune(l); len(r) >= v.width {
			l = string(r[:v.width-1])
		}
		b.WriteString("\r\x1b[2K" + l + "\n")
	}
	for i := len(lines); i < v.lines; i++ { // fewer lines than before: blank the rest
		b.WriteString("\r\x1b[2K\n")
	}
	v.lines = max(v.lines, len(lines))
	io.WriteString(v.out, b.String())
}

// figures are one tenant's rates since the last reading.
type figures struct {
	outPPS, inPPS, outBits, inBits float64
	drops                          map[string]uint64 // in the interval
}

func rates(last, now *api.Tenant, seconds float64) (f figures) {
	per := func(a, b uint64) float64 { return float64(since(a, b)) / seconds }
	f.outPPS, f.inPPS = per(now.Out.Packets, last.Out.Packets), per(now.In.Packets, last.In.Packets)
	f.outBits, f.inBits = 8*per(now.Out.Bytes, last.Out.Bytes), 8*per(now.In.Bytes, last.In.Bytes)
	f.drops = map[string]uint64{}
	for r, n := range now.Drops {
		if d := since(n, last.Drops[r]); d > 0 {
			f.drops[r] = d
		}
	}
	return f
}

func (v *view) table(last, st *api.Status, seconds float64) []string {
	lines := []string{
		fmt.Sprintf("demarc lab   %.0f s   %s", time.Since(v.start).Seconds(), v.phase),
		"",
		fmt.Sprintf("%-10s%22s%24s%10s", "", "tenant -> backbone", "backbone -> tenant", ""),
		fmt.Sprintf("%-10s%10s%12s%12s%12s%10s   %s", "tenant", "packet/s", "bit/s", "packet/s", "bit/s", "sessions", "drops by reason (total)"),
	}
	for i := range st.Tenants {
		t := &st.Tenants[i]
		was := tenantIn(last, t.Name)
		f := rates(&was, t, seconds)
		lines = append(lines, fmt.Sprintf("%-10s%10.0f%12s%12.0f%12s%10d   %s", t.Name, f.outPPS, si(f.outBits), f.inPPS, si(f.inBits), t.Sessions, reasons(t.Drops)))
	}
	lines = append(lines, "", fmt.Sprintf("%-10s%6s%8s%10s%12s%12s   %s", "port", "queue", "worker", "AF_XDP", "rx pkt/s", "tx pkt/s", "why not better"))
	for i, p := range st.Ports {
		for j, q := range p.Queues {
			var was api.Queue
			if i < len(last.Ports) && j < len(last.Ports[i].Queues) {
				was = last.Ports[i].Queues[j]
			}
			lines = append(lines, fmt.Sprintf("%-10s%6d%8d%10s%12.0f%12.0f   %s", p.Name, q.Queue, q.Worker, q.Mode,
				float64(since(q.Rx.Packets, was.Rx.Packets))/seconds, float64(since(q.Tx.Packets, was.Tx.Packets))/seconds, q.WhyNotBetter))
		}
	}
	for _, w := range st.Workers {
		lines = append(lines, fmt.Sprintf("worker %d   %d of %d sessions   %d of %d frames free", w.ID, w.Sessions, w.SessionsCap, w.FramesFree, w.Frames))
	}
	return lines
}

// line is the same in one line, for a log.
func (v *view) line(last, st *api.Status, seconds float64) string {
	s := fmt.Sprintf("%5.1f s ", time.Since(v.start).Seconds())
	for i := range st.Tenants {
		t := &st.Tenants[i]
		was := tenantIn(last, t.Name)
		f := rates(&was, t, seconds)
		s += fmt.Sprintf(" | %s out %.0f pkt/s %sbit/s in %.0f pkt/s %sbit/s, %d sessions", t.Name, f.outPPS, si(f.outBits), f.inPPS, si(f.inBits), t.Sessions)
		if len(f.drops) > 0 {
			s += ", drops " + reasons(f.drops)
		}
	}
	modes := map[string]int{}
	for _, p := range st.Ports {
		for _, q := range p.Queues {
			modes[q.Mode]++
		}
	}
	return s + " | queues " + counts(modes)
}

// reasons lists drops, most first.
func reasons(m map[string]uint64) string {
	keys := names(m)
	sort.SliceStable(keys, func(i, j int) bool { return m[keys[i]] > m[keys[j]] })
	var out []string
	for _, k := range keys {
		if m[k] > 0 {
			out = append(out, fmt.Sprintf("%s %d", k, m[k]))
		}
	}
	return strings.Join(out, ", ")
}

// si writes a rate with three figures and a decimal prefix.
func si(v float64) string {
	switch {
	case v >= 1e9:
		return fmt.Sprintf("%.2f G", v/1e9)
	case v >= 1e6:
		return fmt.Sprintf("%.2f M", v/1e6)
	case v >= 1e3:
		return fmt.Sprintf("%.1f k", v/1e3)
	}
	return fmt.Sprintf("%.0f ", v)
}
