package cli

import (
	"context"

	"demarc/gateway/api"
)

func (f *fake) NodeFile(context.Context) ([]byte, error) {
	return []byte("schema = 1\nname = \"edge1\"\napi_token = \"node-planted\"\n"), f.refuse
}
func (f *fake) Log(context.Context) ([]byte, error) {
	return []byte("level=INFO msg=forwarding\nlevel=WARN msg=x password=log-planted\n"), f.refuse
}
func (f *fake) Revisions(context.Context) (*api.Revisions, error) {
	return &api.Revisions{Revisions: []api.Revision{someRevision()}}, f.refuse
}
