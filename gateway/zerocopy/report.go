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

var cases = []string{caseZeroCopy, caseCopy}

// checks is what a case must have reported, each exactly once, in this order. A guest that forgets one has not passed.
var checks = []string{"start", "attach", "sockets", "umem", "udp-nat", "icmp-nat", "tcp-nat", "ipv6", "neighbours", "acl", "session-limit", "rate-limit", "status", "stop", "closed"}

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

// read takes the verdicts from a guest's console. fatal is why it could run nothing.
func read(console io.Reader) (list []*verdict, kernel, fatal string) {
	by := map[string]*verdict{}
	for _, n := range cases {
		v := &verdict{name: n, done: map[string]string{}}
		by[n] = v
		list = append(list, v)
	}
	sc := bufio.NewScanner(console)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		_, text, found := strings.Cut(sc.Text(), marker)
		var r record
		if !found || json.Unmarshal([]byte(strings.TrimSpace(text)), &r) != nil {
			continue
		}
		if r.Fatal != "" {
			fatal = r.Fatal
		}
		if r.Boot != "" {
			kernel = r.Boot
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
	for _, v := range list {
		if !v.ended || len(v.failed) > 0 {
			continue // dead or failed: what comes after the first failure is not run
		}
		for _, c := range checks {
			if _, made := v.done[c]; !made {
				v.failed = append(v.failed, c+": not reported")
			}
		}
	}
	return list, kernel, fatal
}
