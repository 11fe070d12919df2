package api

import (
	"context"
	"net/http"
)

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

func (s *Server) support(mux *http.ServeMux) {
	b := s.cfg.Backend
	text := func(path string, fn func(context.Context) ([]byte, error)) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			t, err := fn(r.Context())
			if err != nil {
				refuse(w, err)
				return
			}
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			_, _ = w.Write(t)
		})
	}
	text(PathNode, b.NodeFile)
	text(PathLog, b.Log)
	mux.HandleFunc("GET "+PathRevisions, func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, func(r *http.Request) (any, error) { return b.Revisions(r.Context()) })
	})
}
