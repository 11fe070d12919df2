package report

import (
	"fmt"
	"io"
	"strings"
)

// Markdown writes the figures that stand in a README: what has a peer or a promise, with where and of what it was measured.
func (o *Output) Markdown(w io.Writer) error {
	var b strings.Builder
	m := &o.Machine
	virtual := ""
	if m.Virtual {
		virtual = " (virtual)"
	}
	fmt.Fprintf(&b, "%s%s, %d CPUs, %d MiB, kernel %s", m.CPU, virtual, m.CPUs, m.MemoryMiB, m.Kernel)
	for _, part := range [][2]string{{"demarc", m.Demarc}, {"AF_XDP", m.Mode}, {"nftables", m.Nft}, {"begun", o.Began}} {
		if part[1] != "" {
			fmt.Fprintf(&b, "; %s %s", part[0], part[1])
		}
	}
	if m.Disturbed > 0 {
		fmt.Fprintf(&b, "; %d loads or rows were disturbed, by other work or a slowed CPU", m.Disturbed)
	}
	if m.Speed.Looks > 0 {
		fmt.Fprintf(&b, "; %s", m.Speed)
	}
	fmt.Fprintf(&b, ".\nMedian (least–most) of n runs, of which so many were disturbed; the ratio is demarc over the peer, with its 95 %% interval.\n")
	if o.Partial != "" {
		fmt.Fprintf(&b, "Not whole: %s.\n", o.Partial)
	}
	fmt.Fprintf(&b, "\n| figure | side | value | n | ratio, verdict; promise |\n|---|---|---|---|---|\n")
	for i := range o.Results {
		r := &o.Results[i]
		if len(r.Peers) == 0 && r.Limit == nil || r.Better == "" && r.Limit == nil {
			continue
		}
		name := r.Scenario + " " + r.Case + ", " + r.Metric
		if r.Unit != "" {
			name += ", " + r.Unit
		}
		for _, side := range r.Sides() {
			s, last := r.Side(side), ""
			if side != Us {
				last = r.Peers[side].Text()
			} else if r.Limit != nil {
				last = r.Limit.Fared()
			}
			n := fmt.Sprint(s.N)
			if s.Disturbed > 0 {
				n += fmt.Sprintf(", %d disturbed", s.Disturbed)
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", strings.ReplaceAll(name, "|", `\|`), side, s.Spread(), n, last)
			name = ""
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
