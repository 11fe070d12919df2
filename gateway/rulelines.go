package gateway

import (
	"time"

	"demarc/gateway/flow"
)

// What rules with log = true write at most, all workers together: less than what journald takes of a unit by its defaults (10,000 lines in 30 s), so that a scan does not have it drop everything else that the node says. One tenant has half of
// what is left at a look, so that nobody's rules are silent because of what is done to another.
const (
	ruleLinesEvery = time.Second / 200
	ruleLinesBurst = 500
)

// ruleLines counts the lines of rules, and those that are not written.
type ruleLines struct {
	left int                   // that may be written now
	had  map[flow.TenantID]int // since time passed last
	most int                   // that one tenant may have of those
	lost uint64                // since it was told last
	at   uint64                // ns: up to when left is true
	said uint64                // ns: when it was told last; 0 = never
}

func newRuleLines(now uint64) *ruleLines {
	return &ruleLines{left: ruleLinesBurst, most: ruleLinesBurst / 2, had: map[flow.TenantID]int{}, at: now}
}

// take reports whether a line of a tenant's may be written.
func (r *ruleLines) take(t flow.TenantID) bool {
	if r.left == 0 || r.had[t] >= r.most {
		r.lost++
		return false
	}
	r.left--
	r.had[t]++
	return true
}

// told lets time pass, up to now (ns), and returns how many lines were lost, once in five seconds at most and 0 where none were.
func (r *ruleLines) told(now uint64) (lost uint64) {
	if n := (now - r.at) / uint64(ruleLinesEvery); n > 0 {
		r.left = int(min(uint64(r.left)+n, ruleLinesBurst))
		r.at += n * uint64(ruleLinesEvery)
		clear(r.had)
		r.most = max(1, r.left/2)
	}
	if r.lost > 0 && (r.said == 0 || now-r.said >= uint64(5*time.Second)) {
		lost, r.lost, r.said = r.lost, 0, now
	}
	return lost
}
