package configs

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// A feature is a key of the policy that a release has added, by its path without positions: "tenant.rates.out.burst". A field of a schema struct that came after the first
// release says so by this tag, with the release that brought it: `added:"v1.2"`. So a text says what it asks of whoever is to read it, and a cluster refuses it while a member's
// release does not know that. Another schema is a feature too: "schema-2".
const addedTag = "added"

var features = featuresOf(reflect.TypeFor[Policy](), SchemaVersion)

// Features are those that this build knows, sorted.
func Features() []string { return slices.Clone(features) }

func featuresOf(t reflect.Type, schema int) []string {
	found := map[string]bool{}
	for n := 2; n <= schema; n++ {
		found[schemaFeature(n)] = true
	}
	eachKey(t, "", func(path string, f reflect.StructField) {
		if f.Tag.Get(addedTag) != "" {
			found[path] = true
		}
	})
	return slices.Sorted(maps.Keys(found))
}

func schemaFeature(n int) string { return fmt.Sprintf("schema-%d", n) }

// eachKey calls fn for each key of a schema, with its path.
func eachKey(t reflect.Type, path string, fn func(path string, f reflect.StructField)) {
	for t.Kind() == reflect.Slice || t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		if name == "" {
			continue
		}
		at := name
		if path != "" {
			at = path + "." + name
		}
		fn(at, f)
		eachKey(f.Type, at, fn)
	}
}

// featureOf is the name of what stands at a path: without the positions.
func featureOf(path string) string {
	if !strings.Contains(path, "[") {
		return path
	}
	var b strings.Builder
	inside := false
	for _, r := range path {
		switch {
		case r == '[':
			inside = true
		case r == ']':
			inside = false
		case !inside:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// Feature is the name that what is wrong would have if it is a key that this build does not know; "" when it is about something else.
func (e Error) Feature() string {
	if e.Msg == notAKey {
		return featureOf(e.Path)
	}
	return ""
}

func (c *checker) use(feature string) {
	if c.uses == nil {
		c.uses = map[string]bool{}
	}
	c.uses[feature] = true
}

// features is what was used, sorted.
func (c *checker) features(schema int) []string {
	if schema > 1 {
		c.use(schemaFeature(schema))
	}
	return slices.Sorted(maps.Keys(c.uses))
}

// Uses are the features that the text of the policy uses, sorted; none of a policy that was not decoded.
func (p *Policy) Uses() []string {
	if p.src == nil {
		return nil
	}
	return p.src.uses
}

// Unknown lists those of features that this build does not know.
func Unknown(list []string) (out []string) {
	for _, f := range list {
		if _, ok := slices.BinarySearch(features, f); !ok {
			out = append(out, f)
		}
	}
	return out
}
