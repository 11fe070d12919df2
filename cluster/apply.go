package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"demarc/cluster/command"
)

// Compiler is what a gateway knows of texts. It changes nothing.
type Compiler interface {
	// Check says what stands against serving a text on this node, and which live sessions it would end. source is the name for problems.
	Check(ctx context.Context, source string, text []byte) Report
}

// Report is what one gateway says of a text.
type Report struct {
	Problems []Problem      `json:"problems,omitempty"` // none: it can be served here
	More     int            `json:"more,omitempty"`     // problems beyond those
	Name     string         `json:"name,omitempty"`     // of the policy, from its text
	Sessions int            `json:"sessions"`           // live ones that were looked at
	Cut      int            `json:"cut"`                // of them, those that would end
	Tenants  map[string]int `json:"tenants,omitempty"`  // cut, by tenant
	Features []string       `json:"features,omitempty"` // that the text uses, sorted
	Warnings []string       `json:"warnings,omitempty"` // of what can be served and is hardly meant
}

// Problem is one thing that is wrong with a text, or with the two files together.
type Problem struct {
	File  string `json:"file,omitempty"`
	Line  int    `json:"line,omitempty"`
	Path  string `json:"path,omitempty"`
	Value string `json:"value,omitempty"`
	Want  string `json:"want,omitempty"`
	Text  string `json:"text"` // all of it, as it is shown
}

const maxProblems = 100 // of one gateway, in an answer

// Checked is what became of asking one gateway.
type Checked struct {
	Name   string
	Later  string // why it could not be asked: it compiles when it is back. "" = it was asked
	Spared bool   // --except: its problems stop nothing
	Report Report
}

// Rejection is the error of a policy that a gateway cannot serve.
type Rejection struct{ Nodes []Checked } // those with problems

func (r *Rejection) Error() string {
	var lines []string
	for _, c := range r.Nodes {
		for _, p := range c.Report.Problems {
			lines = append(lines, c.Name+": "+p.Text)
		}
		if c.Report.More > 0 {
			lines = append(lines, fmt.Sprintf("%s: and %d more", c.Name, c.Report.More))
		}
	}
	return strings.Join(lines, "\n")
}

// Ack is what became of waiting for one gateway.
type Ack struct {
	Name string
	Why  string // it does not serve the revision, as far as this node knows; "" = every worker of it does
}

// Outcome is what an apply has come to. The revision is agreed on in any case.
type Outcome struct {
	Revision command.Revision
	Checked  []Checked // every gateway, by name
	Acks     []Ack     // every gateway, by name
}

// Late lists the gateways that have not acknowledged.
func (o *Outcome) Late() (late []Ack) {
	for _, a := range o.Acks {
		if a.Why != "" {
			late = append(late, a)
		}
	}
	return late
}

// ErrExcept means that somebody is to be excepted who is no gateway.
var ErrExcept = errors.New("there is no gateway")

// ErrUnasked means that nobody has looked at a policy: it could be any text.
var ErrUnasked = errors.New("nothing is changed")

// Check asks every gateway what it says of a text. Names in except must be gateways.
func (n *Node) Check(ctx context.Context, source string, text []byte, except []string) ([]Checked, error) {
	return n.check(ctx, source, text, except, false)
}

// Asked is a question to every gateway but this one that is on its way.
type Asked struct {
	done chan struct{}
	list []Checked
	err  error
}

// Ask has every other gateway compile a text while this node does so itself. ctx ends it.
func (n *Node) Ask(ctx context.Context, source string, text []byte, except []string) *Asked {
	a := &Asked{done: make(chan struct{})}
	go func() {
		defer close(a.done)
		a.list, a.err = n.check(ctx, source, text, except, true)
	}()
	return a
}

// CheckOthers asks every gateway but this one.
func (n *Node) CheckOthers(ctx context.Context, source string, text []byte) ([]Checked, error) {
	list, err := n.check(ctx, source, text, nil, true)
	return slices.DeleteFunc(list, func(c Checked) bool { return c.Name == n.cfg.Name }), err
}

// check spares this node where it has compiled the text already.
func (n *Node) check(ctx context.Context, source string, text []byte, except []string, own bool) ([]Checked, error) {
	gateways := n.gateways()
	for _, e := range except {
		if !slices.ContainsFunc(gateways, func(m command.Member) bool { return m.Name == e }) {
			return nil, fmt.Errorf("%w %s: the gateways are %s", ErrExcept, e, list(names(gateways)))
		}
	}
	if len(text) == 0 || len(text) > command.MaxText {
		return nil, fmt.Errorf("a policy of %d bytes: want 1 to %d", len(text), command.MaxText)
	}
	out := make([]Checked, len(gateways))
	var wg sync.WaitGroup
	for i, m := range gateways {
		c := &out[i]
		c.Name, c.Spared = m.Name, slices.Contains(except, m.Name)
		if own && m.ID == n.id {
			continue
		}
		wg.Go(func() {
			var a answer
			if m.ID == n.id {
				a = n.checkHere(ctx, source, text)
			} else {
				ctx, cancel := context.WithTimeout(ctx, n.askTime(m.ID)+time.Duration(len(text)>>10)*time.Millisecond)
				defer cancel()
				var err error
				if a, _, _, err = n.call(ctx, m.Address, request{Kind: askCheck, Source: source}, text); err != nil {
					c.Later = shortly(err)
					return
				}
			}
			switch {
			case a.Refused != "":
				c.Later = a.Refused
			case a.Report != nil:
				c.Report = *a.Report
			}
		})
	}
	wg.Wait()
	return out, ctx.Err()
}

// checkHere answers for this node.
func (n *Node) checkHere(ctx context.Context, source string, text []byte) answer {
	if n.cfg.Compiler == nil {
		if n.cfg.Role == command.RoleWitness {
			return answer{Refused: n.cfg.Name + " is a witness and compiles nothing"}
		}
		return answer{Report: &Report{}}
	}
	r := n.cfg.Compiler.Check(ctx, source, text)
	if len(r.Problems) > maxProblems {
		r.More += len(r.Problems) - maxProblems
		r.Problems = r.Problems[:maxProblems]
	}
	r.Warnings = r.Warnings[:min(len(r.Warnings), maxProblems)]
	for i := range r.Warnings {
		r.Warnings[i] = cut(r.Warnings[i], 1500)
	}
	for i := range r.Problems { // so that the answer stays within its bound, whatever the text holds
		p := &r.Problems[i]
		p.Text, p.Value, p.Want, p.Path, p.File = cut(p.Text, 1500), cut(p.Value, 500), cut(p.Want, 500), cut(p.Path, 500), cut(p.File, 500)
	}
	return answer{Report: &r}
}

func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// Apply has every gateway compile a change, the cluster agree on it, and every gateway that can be reached serve it. The error is a *Rejection when a
// gateway cannot serve it and a *command.Refusal when the cluster said no: then nothing has changed. Names in except are gateways whose
// problems stop nothing: they go on with what they serve.
func (n *Node) Apply(ctx context.Context, c Change, except ...string) (Outcome, error) {
	var o Outcome
	err := n.out() // it has nobody to ask
	if err != nil {
		return o, err
	}
	if a := c.Asked; a != nil && c.Checked {
		<-a.done
		o.Checked, err = a.list, a.err
	} else {
		o.Checked, err = n.check(ctx, c.Source, c.Text, except, c.Checked)
	}
	if err != nil {
		return o, err
	}
	var bad []Checked
	for _, k := range o.Checked {
		if c.Name == "" {
			c.Name = k.Report.Name
		}
		c.Features = union(c.Features, k.Report.Features)
		if len(k.Report.Problems) > 0 && !k.Spared {
			bad = append(bad, k)
		}
	}
	// Whose release is too old says more than what it could not read.
	ids, no := n.lacking(c.Features, except)
	if no != nil {
		return o, no
	}
	c.except = ids
	if len(bad) > 0 {
		return o, &Rejection{bad}
	}
	if !c.Checked && !slices.ContainsFunc(o.Checked, func(k Checked) bool { return k.Later == "" }) {
		why := "there is none"
		if len(o.Checked) > 0 {
			why = o.Checked[0].Name + ": " + o.Checked[0].Later
		}
		return o, fmt.Errorf("%w: no gateway could be asked whether it can serve this: %s", ErrUnasked, why)
	}
	if o.Revision, err = n.Revise(ctx, c); err != nil {
		return o, err
	}
	o.Acks = n.Acknowledged(ctx, o.Revision.Number, o.Checked)
	return o, nil
}

// Acknowledged waits until every gateway serves a revision, but for those that were not reached before: they are only named.
func (n *Node) Acknowledged(ctx context.Context, number uint64, before []Checked) []Ack {
	gateways := n.gateways()
	out := make([]Ack, len(gateways))
	var wg sync.WaitGroup
	for i, m := range gateways {
		a := &out[i]
		a.Name = m.Name
		if k := slices.IndexFunc(before, func(c Checked) bool { return c.Name == m.Name }); k >= 0 && before[k].Later != "" {
			a.Why = "not reached: " + before[k].Later
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, ackTime+n.askTime(m.ID))
			defer cancel()
			if m.ID == n.id {
				if err := n.Await(ctx, number); err != nil {
					a.Why = shortly(err)
				}
				return
			}
			r, _, _, err := n.call(ctx, m.Address, request{Kind: askServed, Number: number}, nil)
			switch {
			case err != nil:
				a.Why = "not reached: " + shortly(err)
			case r.Refused != "":
				a.Why = r.Refused
			}
		})
	}
	wg.Wait()
	return out
}

// ackTime is how long a gateway has until its workers must have taken a revision up.
const ackTime = 6 * time.Second

// askTime is how long an answer that takes no work may take: shorter where the last try came to nothing, so that a node that is gone holds nobody up.
func (n *Node) askTime(id string) time.Duration {
	t := 4*time.Second + 4*n.cfg.RoundTrip()
	if s, ok := n.seenOf(id); ok && s.err != "" {
		t = time.Second + 4*n.cfg.RoundTrip()
	}
	return t
}

// shortly is an error without what the reader cannot act on.
func shortly(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	return err.Error()
}

// gateways lists the members that serve policies, by name. A node that is in no list yet is alone.
func (n *Node) gateways() (out []command.Member) {
	for _, m := range n.st.State().Members {
		if m.Role == command.RoleGateway {
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b command.Member) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func names(list []command.Member) (out []string) {
	for _, m := range list {
		out = append(out, m.Name)
	}
	slices.Sort(out)
	return out
}

// list is "a", "a and b", "a, b and c".
func list(l []string) string { return command.Listed(l) }
