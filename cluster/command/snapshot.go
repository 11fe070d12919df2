package command

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// snapshotHead precedes the state, so that a build meets the level before anything that it does not know.
type snapshotHead struct {
	Level int `json:"level"`
}

// EncodeState writes the state for a snapshot, without texts. It carries the level of the entries that led to it and not this build's: a member of an earlier release
// may need it, and until something is used that its release does not know it can read it. What a later level adds to the state is left out while it is empty.
func (s *State) EncodeState() ([]byte, error) {
	return json.Marshal(struct {
		snapshotHead
		State *State `json:"state"`
	}{snapshotHead{max(s.Level, 1)}, s})
}

// DecodeState is the reverse of EncodeState. Every error wraps ErrUnreadable.
func DecodeState(b []byte) (*State, error) {
	var h snapshotHead
	if err := json.Unmarshal(b, &h); err != nil {
		return nil, fmt.Errorf("%w: the state is damaged: %v", ErrUnreadable, err)
	}
	if h.Level < 1 {
		return nil, fmt.Errorf("%w: the state is damaged: level %d", ErrUnreadable, h.Level)
	}
	if h.Level > Level {
		return nil, later("a state of level %d, this build reads up to %d", h.Level, Level)
	}
	var v struct {
		snapshotHead
		State *State `json:"state"`
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrUnreadable, err)
	}
	if v.State == nil {
		return nil, fmt.Errorf("%w: there is no state in it", ErrUnreadable)
	}
	return v.State, nil
}

// Digests lists the texts that the state names, each once, oldest first.
func (s *State) Digests() (out []string) {
	seen := map[string]bool{}
	for _, r := range s.Revisions {
		if !seen[r.Digest] {
			seen[r.Digest] = true
			out = append(out, r.Digest)
		}
	}
	return out
}
