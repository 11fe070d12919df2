package api

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write openapi.json and docs/openapi.json anew")

// object is a JSON object; its keys are written in order.
type object = map[string]any

// document is the OpenAPI document of routes: paths from the table, schemas from the types, words from their comments.
func document(t *testing.T) object {
	d := &documenter{t: t, words: comments(t), schemas: object{}, asked: map[string]bool{}}
	for _, rt := range routes { // first, because a type that is both asked and answered is described as asked
		if rt.takes != nil {
			d.mark(rt.takes)
		}
	}
	paths := object{}
	for _, rt := range routes {
		p, _ := paths[rt.path].(object)
		if p == nil {
			p = object{}
			paths[rt.path] = p
		}
		p[strings.ToLower(rt.method)] = d.operation(rt)
	}
	refused := d.ref(reflect.TypeFor[Error]())
	return object{
		"openapi": "3.1.0",
		"info": object{"title": "demarc", "version": "1", "license": object{"name": "MIT", "identifier": "MIT"},
			"description": "What a node can be asked: on its unix socket, which is root's, and over TCP, if its node file says so, with a client's certificate that says who it is and " +
				"what they may do. Fields are added, never renamed; a count that is zero is still written. Packets and bytes are totals since the process started; " +
				"bytes are IP bytes for tenants and sessions, and whole frames for ports. Times are for reading only; durations are seconds."},
		"servers": []any{object{"url": "https://{node}:{port}", "description": "api.listen of the node file",
			"variables": object{"node": object{"default": "192.0.2.1"}, "port": object{"default": "7443"}}}},
		"paths": paths,
		"components": object{"schemas": d.schemas,
			"responses": object{"refused": object{"description": "Refused: 400 wrong request, 401 the certificate is not good any more, 403 the role is not enough, 404 there is no such thing, or this node lacks it (a witness, what is of packets), " +
				"405 another method, 409 refused as things stand (somebody else was first, say), 422 the policy is not good, or was agreed on and cannot be served here, 429 too much at a time, 500 the node could not, " +
				"503 nothing was changed, since nobody leads or the state is not open, 504 it may have taken effect: look at what it was to change.", "content": object{mediaJSON: object{"schema": refused}}}},
			"securitySchemes": object{"client": object{"type": "mutualTLS", "description": "A client's certificate, as demarc cluster client makes it. Its role: operator may do everything, read-only what names read-only or tenant, tenant what names tenant, for its own tenant."}}},
	}
}

type documenter struct {
	t       *testing.T
	words   map[string]string // "Type" and "Type.Field" -> comment
	schemas object
	asked   map[string]bool // types that requests are made of
}

func (d *documenter) operation(rt *route) object {
	words := strings.FieldsFunc(strings.TrimPrefix(rt.path, "/v1/"), func(r rune) bool { return r == '/' || r == '.' })
	id := strings.ToLower(rt.method)
	for _, w := range words {
		id += strings.ToUpper(w[:1]) + w[1:]
	}
	schema := object{"type": "string"}
	if rt.media != mediaText && rt.gives != reflect.TypeFor[[]byte]() {
		schema = d.ref(rt.gives)
	} else if rt.media == mediaJSON {
		schema = object{"type": "object"}
	}
	done := object{"description": "Done.", "content": object{strings.Split(rt.media, ";")[0]: object{"schema": schema}}}
	if rt.media == mediaLines {
		done["description"] = "A stream: one such object a line, until the node ends it or the client goes."
	}
	op := object{"operationId": id, "summary": rt.does, "security": []any{object{"client": []any{string(rt.least)}}},
		"responses": object{"200": done, "default": object{"$ref": "#/components/responses/refused"}}}
	if rt.takes != nil {
		op["requestBody"] = object{"required": true, "content": object{mediaJSON: object{"schema": d.ref(rt.takes)}}}
	}
	var query []any
	for _, f := range fieldsOf(rt.query) {
		query = append(query, object{"name": f.name, "in": "query", "description": d.words[f.owner+"."+f.Name], "schema": d.schema(f.Type, true)})
	}
	if query != nil {
		op["parameters"] = query
	}
	return op
}

// field is a field as JSON has it.
type field struct {
	reflect.StructField
	name, owner string
	omit        bool
}

func fieldsOf(t reflect.Type) (out []field) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" {
			out = append(out, fieldsOf(f.Type)...)
		} else if name != "-" && f.IsExported() {
			out = append(out, field{f, name, t.Name(), strings.Contains(opts, "omitempty")})
		}
	}
	return out
}

// mark notes all that a request is made of.
func (d *documenter) mark(t reflect.Type) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		d.mark(t.Elem())
	case reflect.Struct:
		if t != reflect.TypeFor[time.Time]() && !d.asked[t.Name()] {
			d.asked[t.Name()] = true
			for _, f := range fieldsOf(t) {
				d.mark(f.Type)
			}
		}
	}
}

// ref describes a struct once and refers to it.
func (d *documenter) ref(t reflect.Type) object {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	name := t.Name()
	if _, ok := d.schemas[name]; !ok {
		s := object{"type": "object"}
		d.schemas[name] = s
		if w := d.words[name]; w != "" {
			s["description"] = w
		} else {
			d.t.Errorf("type %s has no comment", name)
		}
		properties, required := object{}, []any{}
		for _, f := range fieldsOf(t) {
			if f.name == "" {
				d.t.Errorf("%s.%s has no name in JSON", name, f.Name)
			}
			p := d.schema(f.Type, f.omit || d.asked[name])
			if w := d.words[f.owner+"."+f.Name]; w != "" {
				p["description"] = w
			}
			properties[f.name] = p
			if !f.omit {
				required = append(required, f.name)
			}
		}
		s["properties"] = properties
		if d.asked[name] {
			s["additionalProperties"] = false // requests are read strictly
		} else if len(required) > 0 {
			s["required"] = required
		}
	}
	return object{"$ref": "#/components/schemas/" + name}
}

// schema describes a type. Lists and maps of Go may be null where they are written although they are empty.
func (d *documenter) schema(t reflect.Type, never bool) object {
	maybe := func(kind string) any {
		if never {
			return kind
		}
		return []any{kind, "null"}
	}
	switch {
	case t == reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case t == reflect.TypeFor[[]byte]():
		return object{"type": maybe("string"), "contentEncoding": "base64"}
	}
	switch t.Kind() {
	case reflect.String:
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int, reflect.Int64:
		return object{"type": "integer"}
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return object{"type": "integer", "minimum": 0}
	case reflect.Float64:
		return object{"type": "number"}
	case reflect.Pointer:
		return d.schema(t.Elem(), never)
	case reflect.Slice:
		return object{"type": maybe("array"), "items": d.schema(t.Elem(), false)}
	case reflect.Map:
		return object{"type": maybe("object"), "additionalProperties": d.schema(t.Elem(), false)}
	case reflect.Struct:
		return d.ref(t)
	}
	d.t.Errorf("a %s cannot be described", t)
	return object{}
}

// comments are the words of this package's own source about types and fields.
func comments(t *testing.T) map[string]string {
	out := map[string]string{}
	plain := func(g ...*ast.CommentGroup) string {
		var all []string
		for _, c := range g {
			if c != nil {
				all = append(all, strings.Join(strings.Fields(c.Text()), " "))
			}
		}
		return strings.Join(all, " ")
	}
	names, err := fs.Glob(os.DirFS("."), "*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range f.Decls {
			g, ok := decl.(*ast.GenDecl)
			if !ok || g.Tok != token.TYPE {
				continue
			}
			for _, spec := range g.Specs {
				s := spec.(*ast.TypeSpec)
				out[s.Name.Name] = plain(s.Doc, g.Doc)
				if st, ok := s.Type.(*ast.StructType); ok {
					for _, f := range st.Fields.List {
						for _, n := range f.Names {
							out[s.Name.Name+"."+n.Name] = plain(f.Doc, f.Comment)
						}
					}
				}
			}
		}
	}
	return out
}

// TestOpenAPI holds the document that is served, and the one among the documents, to the table and the types.
func TestOpenAPI(t *testing.T) {
	want, err := json.MarshalIndent(document(t), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	for _, name := range []string{"openapi.json", "../../docs/openapi.json"} {
		if *update {
			if err := os.WriteFile(name, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		have, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(want, have) {
			t.Errorf("%s is not what the code serves; `go test ./gateway/api -run TestOpenAPI -update` writes it anew (-code +file):\n%.3000s", name, cmp.Diff(string(want), string(have)))
		}
	}
}

// TestOpenAPIIsComplete: every route of a running server is in the document that it serves, under its method and role, and everything in the document is
// served; every reference leads somewhere.
func TestOpenAPIIsComplete(t *testing.T) {
	c, _ := serve(t, streamer{gone: make(chan error, 8)})
	text, err := c.Text(t.Context(), PathOpenAPI)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]struct {
			OperationID string                `json:"operationId"`
			Summary     string                `json:"summary"`
			Security    []map[string][]string `json:"security"`
		} `json:"paths"`
		Components map[string]object `json:"components"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	ids, n := map[string]bool{}, 0
	for _, rt := range routes {
		op, ok := doc.Paths[rt.path][strings.ToLower(rt.method)]
		if !ok || op.Summary != rt.does || len(op.Security) != 1 || !slices.Equal(op.Security[0]["client"], []string{string(rt.least)}) || ids[op.OperationID] {
			t.Errorf("%s %s: %+v", rt.method, rt.path, op)
		}
		ids[op.OperationID] = true
	}
	for path, ops := range doc.Paths {
		for method := range ops {
			n++
			res, err := c.http.Do(must(http.NewRequestWithContext(t.Context(), strings.ToUpper(method), c.base+path, strings.NewReader("nonsense"))))
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			// Without a handler for metrics the fake answers 404, in words of the library's.
			if path != PathMetrics && (res.StatusCode == http.StatusNotFound || res.StatusCode == http.StatusMethodNotAllowed) {
				t.Errorf("%s %s is documented and answers %s", method, path, res.Status)
			}
		}
	}
	if n != len(routes) {
		t.Errorf("%d operations for %d routes", n, len(routes))
	}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case object:
			if ref, ok := v["$ref"].(string); ok {
				parts := strings.Split(strings.TrimPrefix(ref, "#/components/"), "/")
				if len(parts) != 2 || doc.Components[parts[0]][parts[1]] == nil {
					t.Errorf("%s leads nowhere", ref)
				}
			}
			for _, k := range slices.Sorted(maps.Keys(v)) {
				walk(v[k])
			}
		case []any:
			for _, x := range v {
				walk(x)
			}
		}
	}
	var all any
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	walk(all)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(fmt.Sprint(err))
	}
	return v
}
