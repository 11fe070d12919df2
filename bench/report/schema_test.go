package report

import (
	"bytes"
	"encoding/json"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

var update = flag.Bool("update", false, "write docs/bench/results.schema.json anew")

const schemaFile = "../../docs/bench/results.schema.json"

type object = map[string]any

// source is what this package's own source says of its types: their comments, and the values of those that have a list of constants.
type source struct {
	t      *testing.T
	words  map[string]string // "Type" and "Type.Field"
	values map[string][]any  // "Type"
	defs   object
}

func read(t *testing.T) *source {
	s := &source{t: t, words: map[string]string{}, values: map[string][]any{}, defs: object{}}
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
			if !ok {
				continue
			}
			for _, spec := range g.Specs {
				switch spec := spec.(type) {
				case *ast.ValueSpec:
					if id, ok := spec.Type.(*ast.Ident); ok && g.Tok == token.CONST {
						text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
						if err != nil {
							t.Fatal(err)
						}
						s.values[id.Name] = append(s.values[id.Name], text)
					}
				case *ast.TypeSpec:
					s.words[spec.Name.Name] = plain(spec.Doc, g.Doc)
					if st, ok := spec.Type.(*ast.StructType); ok {
						for _, f := range st.Fields.List {
							for _, n := range f.Names {
								s.words[spec.Name.Name+"."+n.Name] = plain(f.Doc, f.Comment)
							}
						}
					}
				}
			}
		}
	}
	return s
}

// schema describes a type; structs are described once and referred to. A list or map that is always written may be null.
func (s *source) schema(typ reflect.Type, omit bool) object {
	kind := func(k string) any {
		if omit {
			return k
		}
		return []any{k, "null"}
	}
	switch typ.Kind() {
	case reflect.String:
		if list := s.values[typ.Name()]; list != nil {
			return object{"type": "string", "enum": list}
		}
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int, reflect.Uint64:
		return object{"type": "integer", "minimum": 0}
	case reflect.Float64:
		return object{"type": "number"}
	case reflect.Pointer:
		return s.schema(typ.Elem(), omit)
	case reflect.Slice:
		return object{"type": kind("array"), "items": s.schema(typ.Elem(), true)}
	case reflect.Map:
		return object{"type": kind("object"), "additionalProperties": s.schema(typ.Elem(), true)}
	case reflect.Struct:
		if _, ok := s.defs[typ.Name()]; !ok {
			d := object{"type": "object", "description": s.words[typ.Name()]}
			s.defs[typ.Name()] = d
			properties, required := object{}, []any{}
			s.fields(typ, properties, &required)
			d["properties"], d["required"] = properties, required
		}
		return object{"$ref": "#/$defs/" + typ.Name()}
	}
	s.t.Errorf("a %s cannot be described", typ)
	return nil
}

func (s *source) fields(typ reflect.Type, properties object, required *[]any) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" {
			s.fields(f.Type, properties, required)
			continue
		}
		omit := strings.Contains(opts, "omitempty") || strings.Contains(opts, "omitzero")
		if !omit {
			*required = append(*required, name)
		}
		p := s.schema(f.Type, omit)
		if w := s.words[typ.Name()+"."+f.Name]; w != "" {
			p["description"] = w
		}
		properties[name] = p
	}
}

// The committed schema is that of the types and of their comments.
func TestSchemaIsThatOfTheTypes(t *testing.T) {
	s := read(t)
	s.schema(reflect.TypeFor[Output](), true)
	for name := range s.defs {
		if s.words[name] == "" {
			t.Errorf("type %s has no comment", name)
		}
	}
	want, err := json.MarshalIndent(object{"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "results of demarc bench, schema " + strconv.Itoa(Schema), "$ref": "#/$defs/Output", "$defs": s.defs}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	if *update {
		if err := os.WriteFile(schemaFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(schemaFile)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not that of the types: go test ./bench/report -run Schema -update; %v", schemaFile, err)
	}
}

// fill sets every field to something.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		switch v.Interface().(type) {
		case Better:
			v.SetString(string(Higher))
		case Verdict:
			v.SetString(string(Wins))
		default:
			v.SetString("x")
		}
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int:
		v.SetInt(1)
	case reflect.Uint64:
		v.SetUint(1)
	case reflect.Float64:
		v.SetFloat(1.5)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		e := reflect.New(v.Type().Elem()).Elem()
		fill(e)
		v.SetMapIndex(reflect.ValueOf("k"), e)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	}
}

// An object with every field, and one with none, satisfy the schema; damaged ones do not.
func TestSchemaJudges(t *testing.T) {
	schema, err := jsonschema.NewCompiler().Compile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	judge := func(text string) error {
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		return schema.Validate(v)
	}
	var full Output
	fill(reflect.ValueOf(&full).Elem())
	var b bytes.Buffer
	if err := full.JSON(&b); err != nil {
		t.Fatal(err)
	}
	whole := b.String()
	if err := judge(whole); err != nil {
		t.Error(err)
	}
	b.Reset()
	if err := new(Output).JSON(&b); err != nil {
		t.Fatal(err)
	}
	if err := judge(b.String()); err != nil {
		t.Error(err)
	}
	for _, damage := range [][2]string{{`"verdict":"better"`, `"verdict":"faster"`}, {`"better":"higher"`, `"better":"up"`}, {`"median":1.5,`, ``}, {`"cpus":1`, `"cpus":"two"`}, {`"schema":1,`, ``}, {`"results":[`, `"results":[7,`}} {
		if !strings.Contains(whole, damage[0]) {
			t.Errorf("there is no %s in %s", damage[0], whole)
		}
		if judge(strings.Replace(whole, damage[0], damage[1], 1)) == nil {
			t.Errorf("%s instead of %s is no error", damage[1], damage[0])
		}
	}
}
