package command

import "errors"

// KindNote writes a line into the audit log.
const KindNote Kind = "note"

// Note is that line.
type Note struct {
	Text string `json:"text"`
}

func (n *Note) check() error {
	if n.Text == "" || len(n.Text) > MaxField {
		return errors.New("a note has 1 to 4096 bytes")
	}
	return nil
}
