package api

import (
	"context"
	"testing"
)

func (e echo) NodeFile(context.Context) ([]byte, error) { return []byte("node\n"), e.fault }
func (e echo) Log(context.Context) ([]byte, error)      { return []byte("log\n"), e.fault }
func (e echo) Revisions(context.Context) (*Revisions, error) {
	return &Revisions{Revisions: []Revision{{Number: 7}}}, e.fault
}

func TestTextsForATicket(t *testing.T) {
	c, _ := serve(t, echo{})
	for path, want := range map[string]string{PathNode: "node\n", PathLog: "log\n"} {
		if b, err := c.Text(t.Context(), path); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	var r Revisions
	if err := c.Get(t.Context(), PathRevisions, &r); err != nil || r.Revisions[0].Number != 7 {
		t.Errorf("%+v, %v", r, err)
	}
}
