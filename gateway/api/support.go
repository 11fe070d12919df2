package api

import "context"

// Paths of what a ticket needs beside the rest. Texts are as they are: who sends them on leaves secrets out.
const (
	PathNode      = "/v1/node"      // the text of the node file that the node was started with, text/plain
	PathLog       = "/v1/log"       // the last lines of the log, text/plain
	PathRevisions = "/v1/revisions" // Revisions
)

// Supporter is the part of Backend for tickets.
type Supporter interface {
	NodeFile(ctx context.Context) ([]byte, error)
	Log(ctx context.Context) ([]byte, error)
	Revisions(ctx context.Context) (*Revisions, error)
}

// Revisions lists the applied policies that are kept, newest first.
type Revisions struct {
	Revisions []Revision `json:"revisions"`
	Damaged   []string   `json:"damaged"` // files and what is wrong with them
}
