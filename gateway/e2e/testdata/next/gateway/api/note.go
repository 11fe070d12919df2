package api

// PathNote takes a NoteRequest.
const PathNote = "/v1/cluster/note"

// NoteRequest is a line for the audit log.
type NoteRequest struct {
	Text string `json:"text"`
}
