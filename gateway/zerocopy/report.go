package zerocopy

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// Cases that a guest runs, in this order. The second is the control: were XDP_OPTIONS to say zero-copy there too, it would say nothing.
const (
	caseZeroCopy = "zerocopy"
	caseCopy     = "copy"
)

// plan is what a guest must report.
type plan struct {
	cases  []string
	checks []string // of a case, each exactly once, in this order. A guest that forgets one has not passed.
}

var forwarding = plan{[]string{caseZeroCopy, caseCopy}, []string{"start", "attach", "sockets", "umem", "udp-nat", "icmp-nat", "tcp-nat", "ipv6", "neighbours", "acl", "session-limit", "rate-limit", "status", "stop", "closed"}}

// record is one line of the guest's verdict.
type record struct {
	Case   string `json:"case,omitempty"`
	Check  string `json:"check,omitempty"`
	OK     bool   `json:"ok,omitempty"`
	Detail string `json:"detail,omitempty"`
	Frames int    `json:"frames,omitempty"` // judged right to the byte
	End    bool   `json:"end,omitempty"`    // the case is over
	Fatal  string `json:"fatal,omitempty"`  // the guest cannot run any case
	Boot   string `json:"boot,omitempty"`   // the guest's kernel
}

// marker begins a line of the verdict: kernel messages share the console.
const marker = "demarc-zerocopy "

func (r *record) write(w io.Writer) {
	b, err := json.Marshal(r)
	if err != nil {
		panic(err) // strings, numbers and booleans
	}
	fmt.Fprintf(w, "\n%s%s\n", marker, b) // a kernel message may stand unfinished in the line
}

// verdict is what one boot said of one case.
type verdict struct {
	name   string
	ended  bool
	frames int
	failed []string // a line per check that did not hold or was not made
	done   map[string]string
}

func (v *verdict) ok() bool { return v.ended && len(v.failed) == 0 }

// said is what a guest has said of all cases.
type said struct {
	list   []*verdict
	kernel string
	fatal  string // why it could run nothing
	rest   string // what else it printed: the kernel, and what the reader of a failure wants to know
}

// read takes the verdicts from a guest's console.
func (p *plan) read(console io.Reader) *said {
	s, by := &said{}, map[string]*verdict{}
	for _, n := range p.cases {
		v := &verdict{name: n, done: map[string]string{}}
		by[n] = v
		s.list = append(s.list, v)
	}
	sc := bufio.NewScanner(console)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		_, text, found := strings.Cut(sc.Text(), marker)
		var r record
		if !found || json.Unmarshal([]byte(strings.TrimSpace(text)), &r) != nil {
			if line := strings.TrimSpace(sc.Text()); line != "" {
				s.rest += line + "\n"
			}
			continue
		}
		if r.Fatal != "" {
			s.fatal = r.Fatal
		}
		if r.Boot != "" {
			s.kernel = r.Boot
		}
		v := by[r.Case]
		if v == nil {
			continue
		}
		switch {
		case r.End:
			v.ended = true
		case r.Check != "":
			if _, twice := v.done[r.Check]; twice {
				v.failed = append(v.failed, r.Check+": reported twice")
			}
			v.done[r.Check] = r.Detail
			v.frames += r.Frames
			if !r.OK {
				v.failed = append(v.failed, r.Check+": "+r.Detail)
			}
		}
	}
	for _, v := range s.list {
		if !v.ended || len(v.failed) > 0 {
			continue // dead or failed: what comes after the first failure is not run
		}
		for _, c := range p.checks {
			if _, made := v.done[c]; !made {
				v.failed = append(v.failed, c+": not reported")
			}
		}
	}
	return s
}
