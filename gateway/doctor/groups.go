package doctor

import (
	"errors"
	"fmt"

	"demarc/configs"
	"demarc/gateway/hostnet"
)

// Policy says what is wrong with a policy that earlier releases took: it is served where it is kept, and not taken anew.
func Policy(p *configs.Policy, n *configs.Node) []Finding {
	d := &Doctor{}
	var ephemeral [2]uint16
	if lo, hi, err := hostnet.EphemeralRange(); err == nil {
		ephemeral = [2]uint16{lo, hi}
	}
	var list configs.ErrorList
	errors.As(configs.CheckSound(p, n, ephemeral), &list)
	for i := range list {
		d.say(Bad, "policy", list[i].Error(), "it is served where it is kept already, and refused where it would be served anew", "demarc apply FILE   # mended")
	}
	return d.out
}

// Groups says of each group of a policy what it cannot promise where a pair has no witness. Whether there is one no file of this machine says.
func Groups(p *configs.Policy) []Finding {
	d := &Doctor{}
	const witness = "demarc cluster token --role witness   # on a member; then let a witness join"
	for i := range p.Groups {
		g := &p.Groups[i]
		subject := "group " + g.Name
		switch {
		case len(g.Nodes) < 2:
			d.say(Warn, subject, fmt.Sprintf("%v alone may serve it", g.Nodes), "nobody takes over when that node is gone", "name a second node in nodes of the [[group]]")
		case g.Alone == "auto":
			d.say(Warn, subject, `alone = "auto": without a witness both nodes serve it where every path between them is cut`,
				"each takes the other one for dead: connections break, and a public port may have two inside hosts; with a witness auto is fence, and this cannot be", witness)
		case g.Alone == "keep":
			d.say(Info, subject, `alone = "keep": its owner serves on without a majority, and nobody takes over without proof that it has stopped`,
				fmt.Sprintf("when its machine is gone nobody serves the group before an operator says so: demarc group take %s --force; with a witness leave alone out", g.Name), "")
		case g.Alone == "":
			d.say(Info, subject, "alone is not said: with a witness another node takes over when its owner is gone",
				fmt.Sprintf("without one it is keep: when the owner's machine is gone nobody serves the group before an operator says so: demarc group take %s --force", g.Name), "")
		default:
			d.say(Info, subject, `alone = "fence": its owner stops when it hears no majority`, "without a witness the loss of either node ends service at the other one too", "")
		}
	}
	return d.out
}
