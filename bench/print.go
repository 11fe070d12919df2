package bench

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"demarc/bench/peers"
	"demarc/bench/pktgen"
	"demarc/bench/report"
)

const peerName = "nft-expert"

// metrics are what is reported of a leg, in this order.
var metrics = []struct {
	name, unit, text string
	digits           int
	better           report.Better
	of               func(l leg) float64
}{
	{"rate", "Mpps", "full load, right frames", 3, report.Higher, func(l leg) float64 { return l.Full.judged.Rate() / 1e6 }},
	{"loss", "percent", "  loss of what was offered", 2, "", func(l leg) float64 { return 100 * l.Full.loss() }},
	{"offered", "Mpps", "  offered", 3, "", func(l leg) float64 { return l.Full.sent.Rate() / 1e6 }},
	{"wrong", "frames", "  frames that arrived wrong", 0, report.Lower, func(l leg) float64 { return float64(l.Full.judged.Counts.Wrong()) }},
	{"rate-0.1%-loss", "Mpps", "highest rate, loss <= 0.1 %", 3, report.Higher, func(l leg) float64 { return l.Lossless.judged.Rate() / 1e6 }},
	{"cpu0", "percent", "cpu 0 at full load", 0, "", func(l leg) float64 { return 100 * l.Full.use.cpus[makerCPU] }},
	{"cpu1", "percent", "cpu 1 at full load", 0, "", func(l leg) float64 { return 100 * l.Full.use.cpus[deviceCPU] }},
	{"rate-per-cpu", "Mpps", "right frames per busy CPU, at 80 % of full load", 3, report.Higher, func(l leg) float64 {
		return ratio(l.Paced.judged.Rate()/1e6, busy(l.Paced.use)) // at full load the CPU that makes frames has no rest
	}},
	{"established", "sessions", "established sessions held", 0, "", func(l leg) float64 { return float64(l.Sessions) }},
}

func caseName(flows int) string {
	n := fmt.Sprint(flows)
	if flows%1024 == 0 {
		n = fmt.Sprintf("%dk", flows/1024)
	}
	return "64B/" + n + "/nat44"
}

// report is the outcome as figures. Where the two did not do the same work there is no ratio.
func (q *quick) report(out *outcome, version string) *report.Output {
	r := &report.Output{Schema: report.Schema, Machine: machine(), Results: []report.Result{}}
	r.Machine.Demarc, r.Machine.Mode, r.Machine.Seconds = version, out.Mode, float64(int(out.Took.Seconds()*10))/10
	r.Machine.Nft, _ = nftVersion() // run has found it
	r.Machine.Repeated = out.Repeated
	for _, p := range out.Pairs {
		if p.Disturbed {
			r.Machine.Disturbed++
		}
		for _, l := range p.Legs {
			r.Machine.Again += l.Again
		}
	}
	if len(out.Pairs) == 0 {
		return r
	}
	for _, m := range metrics {
		values, disturbed := map[string][]float64{}, map[string]int{}
		for _, p := range out.Pairs {
			for name, l := range p.Legs {
				values[name] = append(values[name], m.of(l))
				if l.Disturbed {
					disturbed[name]++
				}
			}
		}
		for _, side := range []string{report.Us, peerName} {
			r.Add(report.Row{Scenario: "throughput", Case: caseName(q.Flows), Metric: m.name, Unit: m.unit, Better: m.better, Digits: 4, Side: side, Values: values[side], Disturbed: disturbed[side]})
		}
		if m.name == "rate" {
			f := r.Results[len(r.Results)-1]
			peer := f.Peers[peerName]
			peer.Form, peer.Ruleset = string(out.Form), out.Ruleset
			f.Peers[peerName] = peer
		}
	}
	if out.Refused == "" {
		r.Judge()
		if q.Mode == "" && q.Offload == "" { // what is aimed at is of what is shipped
			setAims(r)
		}
	}
	return r
}

func machine() report.Machine {
	m := report.Machine{CPUs: runtime.NumCPU(), Go: runtime.Version()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Machine[:])
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			k, v, _ := strings.Cut(line, ":")
			switch strings.TrimSpace(k) {
			case "model name":
				m.CPU = strings.TrimSpace(v)
			case "flags":
				m.Virtual = m.Virtual || strings.Contains(v+" ", " hypervisor ")
			}
		}
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		m.MemoryMiB = int(si.Totalram * uint64(si.Unit) >> 20)
	}
	m.Speed = yard.speed(report.Speed{})
	return m
}

// table is what a person reads.
func (q *quick) table(w io.Writer, out *outcome, r *report.Output) error {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	m := r.Machine
	p("")
	p("demarc bench quick: %s, access list of %d rules (the last one matches), NAT over 16 addresses, limit %d Gbit/s each way, counters on",
		caseName(q.Flows), q.Rules, q.Rate/1e9)
	p("machine     %s", machineWords(&m))
	p("demarc      %s, %s, AF_XDP: %s; one worker on CPU %d, frames made on CPU %d", m.Demarc, m.Go, m.Mode, deviceCPU, makerCPU)
	if len(out.Pairs) == 0 {
		_, err := io.WriteString(w, b.String())
		return err
	}
	p("%s  %s, %s; established first, threaded NAPI on CPU %d", peerName, m.Nft, out.Form, deviceCPU)
	for _, form := range []peers.Form{peers.Maps, peers.Linear} {
		p("            tried %-13s %s", string(form)+":", out.Forms[form])
	}
	p("")
	p("%-30s %26s %26s   %s", "median (least–most)", "demarc", peerName, "ratio (95 %)")
	for i, res := range r.Results {
		peer := res.Peers[peerName]
		d := metrics[i].digits
		p("%-30s %26s %26s   %s", metrics[i].text+", "+res.Unit, res.Demarc.Text(d), peer.Stat.Text(d), peer.Text())
	}
	for i, res := range r.Results {
		if res.Limit != nil {
			p("%s: %s", metrics[i].text, res.Limit.Fared())
		}
	}
	p("")
	p("pairs, Mpps right at full load / with at most 0.1 %% loss (a step of that search that fails is tried twice)")
	for i, pr := range out.Pairs {
		a, k := pr.Legs["demarc"], pr.Legs[peerName]
		mark := ""
		if pr.Disturbed {
			mark = fmt.Sprintf("  disturbed: %s; %s", a.Full.use.words(), k.Full.use.words())
		}
		if out.Refused == "" {
			mark = fmt.Sprintf("   ratio %.2f", a.Full.judged.Rate()/max(1, k.Full.judged.Rate())) + mark
		}
		p("  %d  %s first:  demarc %.3f / %.3f   %s %.3f / %.3f%s", i+1, pr.First, a.Full.judged.Rate()/1e6, a.Lossless.judged.Rate()/1e6,
			peerName, k.Full.judged.Rate()/1e6, k.Lossless.judged.Rate()/1e6, mark)
	}
	for _, name := range []string{"demarc", peerName} {
		wrong := map[string]uint64{}
		for _, pr := range out.Pairs {
			for _, t := range []trial{pr.Legs[name].Full, pr.Legs[name].Lossless} {
				for k, n := range t.judged.Counts.WrongKinds() {
					wrong[k] += n
				}
				if n := t.judged.Counts[pktgen.Reordered]; n > 0 {
					wrong[pktgen.Reordered.String()] += n
				}
			}
		}
		if len(wrong) > 0 {
			p("%s, frames not as sent: %v", name, wrong)
		}
	}
	if m.Disturbed > 0 {
		p("%d of %d pairs were disturbed, by other work or a slowed CPU, and kept: do not rely on the figures", m.Disturbed, len(out.Pairs))
	}
	p("")
	p("ruleset of %s, without its access list's chains (--ruleset FILE writes all, --json has it):", peerName)
	b.WriteString(withoutList(out.Ruleset))
	p("")
	p("took %.0f s; disturbed and repeated: %d loads, %d whole pairs", m.Seconds, m.Again, m.Repeated)
	_, err := io.WriteString(w, b.String())
	return err
}

// withoutList leaves the chains of the access list out and says how many there are.
func withoutList(ruleset string) string {
	var b strings.Builder
	skip, chains, lines := false, 0, 0
	for line := range strings.Lines(ruleset) {
		if strings.HasPrefix(line, "\tchain acl_") {
			if chains == 0 {
				b.WriteString("\t# … the access list …\n")
			}
			skip = true
			chains++
		}
		if !skip {
			b.WriteString("  " + line)
		} else if strings.HasPrefix(line, "\t\t") {
			lines++
		}
		if line == "\t}\n" {
			skip = false
		}
	}
	fmt.Fprintf(&b, "  # access list: %d chains with %d rules\n", chains, lines)
	return b.String()
}

// machineWords is the machine that a figure belongs to.
func machineWords(m *report.Machine) string {
	virtual := ""
	if m.Virtual {
		virtual = ", virtual machine"
	}
	speed := ""
	if m.Speed.Looks > 0 {
		speed = ", " + m.Speed.String()
	}
	return fmt.Sprintf("%s, %d CPUs, %d MiB%s, kernel %s%s", m.CPU, m.CPUs, m.MemoryMiB, virtual, m.Kernel, speed)
}
