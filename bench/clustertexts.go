package bench

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"demarc/gateway/trio"
)

// texts makes the policies of the cluster's bench. The same seed makes the same ones.
type texts struct {
	seed    uint64
	tenants int // one on the untagged interface, which the traffic is of, the others on VLANs
	rules   int // of all tenants together
}

const (
	changedLines = 100
	firstVLAN    = 2
)

// text is the policy in its nth version: between two versions changedLines lines differ, in that many rules.
func (x *texts) text(version int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "schema = 1\nname = \"bench\"\n\n[backbone]\ninterfaces = [\"wan\"]\n")
	rnd := rand.New(rand.NewPCG(x.seed, uint64(x.rules)))
	every := max(1, x.rules/changedLines)
	n := 0
	for i := range x.tenants {
		name, port, pool := "alpha", "in", "203.0.113.10"
		if i > 0 {
			name = fmt.Sprintf("t%d", i)
			port, pool = vlanName(i), fmt.Sprintf("198.19.%d.%d", i/250, i%250+1)
		}
		fmt.Fprintf(&b, "\n[[tenant]]\nname = %q\ninterfaces = [%q]\nprefixes = [\"198.18.1.0/24\"]\nnat.pool = [%q]\n", name, port, pool)
		for range x.rules*(i+1)/x.tenants - x.rules*i/x.tenants {
			// None is about 203.0.113.0/24, where the traffic goes: what is not denied is let out.
			to, service := fmt.Sprintf("198.51.100.%d", rnd.IntN(256)), fmt.Sprintf("tcp/%d", 1024+rnd.IntN(20000))
			if n%every == 0 && n/every < changedLines {
				service = fmt.Sprintf("tcp/%d", 30000+(version*7+n)%30000)
			}
			fmt.Fprintf(&b, "\n[[tenant.rule]]\nname = \"r%d\"\ndirection = \"out\"\naction = \"deny\"\nto = [%q]\nservice = [%q]\n", n, to, service)
			n++
		}
	}
	return b.String()
}

func vlanName(i int) string { return fmt.Sprintf("v%d", firstVLAN+i-1) }

// small is the text before any of it: one tenant without rules, whose traffic runs.
func (x *texts) small() string { return (&texts{seed: x.seed, tenants: 1}).text(0) }

// node is what the gateways' node files need for it.
func (x *texts) node() string {
	var b strings.Builder
	fmt.Fprintf(&b, "[log]\nlevel = \"warn\"\n\n[tables]\nsessions = 4096\nframes = 4096\ntenants = %d\n", max(16, x.tenants+24))
	for i := 1; i < x.tenants; i++ {
		fmt.Fprintf(&b, "\n[[interface]]\nname = %q\nport = \"in0\"\nvlan = %d\naddresses = [\"198.18.1.1/24\"]\n", vlanName(i), firstVLAN+i-1)
	}
	return b.String()
}

// passed adds up what came of streams.
func passed(list []*trio.Stream) (sum trio.Passed, err error) {
	for _, s := range list {
		p, e := s.End()
		if e != nil && err == nil {
			err = e
		}
		sum.Sent, sum.Back, sum.There, sum.Longest = sum.Sent+p.Sent, sum.Back+p.Back, sum.There+p.There, max(sum.Longest, p.Longest)
	}
	return sum, err
}
