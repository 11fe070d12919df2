package configs

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// source is what a decoded file remembers of its text, so that later checks can name lines too.
type source struct {
	file string
	root *pos
	uses []string // features, sorted
}

// loc is the root of the file for a checker; it works for a policy that was not decoded (no lines then).
func (s *source) loc() loc {
	if s == nil {
		return loc{c: &checker{}}
	}
	return loc{c: &checker{file: s.file}, node: s.root, line: 1}
}

// DecodePolicy reads, checks and completes a policy. file is only a name for messages. The error is an ErrorList with every
// problem that was found; no policy is returned with one.
func DecodePolicy(file string, data []byte) (*Policy, error) {
	p := &Policy{}
	at, ok := decode(file, data, p)
	if ok {
		p.src = &source{file: file, root: at.node}
		checkPolicy(at, p)
		p.src.uses = at.c.features(p.Schema)
	}
	if err := at.c.done(); err != nil {
		return nil, err
	}
	p.Defaults()
	return p, nil
}

// DecodeNode is DecodePolicy for the node file.
func DecodeNode(file string, data []byte) (*Node, error) {
	n := &Node{}
	at, ok := decode(file, data, n)
	if ok {
		n.src = &source{file: file, root: at.node}
		checkNode(at, n)
	}
	if err := at.c.done(); err != nil {
		return nil, err
	}
	n.Defaults()
	return n, nil
}

// decode fills dst from text; not ok means that the text is not even TOML.
func decode(file string, data []byte, dst any) (at loc, ok bool) {
	at = loc{c: &checker{file: file}, line: 1}
	whole := at
	whole.line = 0
	if len(data) > MaxBytes {
		whole.bad(nil, fmt.Sprintf("is %d bytes long", len(data)), fmt.Sprintf("at most %d", MaxBytes))
		return at, false
	}
	text := strings.TrimPrefix(string(data), "\ufeff") // a byte order mark, as some editors write it, says nothing in UTF-8
	root, bound, line := scan(text)
	if bound != "" {
		at.line = line
		at.bad(nil, bound, "")
		return at, false
	}
	var tree map[string]any
	if _, err := toml.Decode(text, &tree); err != nil {
		var pe toml.ParseError
		if errors.As(err, &pe) {
			at.line = pe.Position.Line
			if pe.LastKey != "" {
				at.path = cut(pe.LastKey)
			}
			at.bad(nil, "is not TOML", cut(pe.Message))
		} else {
			whole.bad(nil, "is not TOML", cut(strings.TrimPrefix(err.Error(), "toml: ")))
		}
		return at, false
	}
	at.node = root
	fill(at, tree, reflect.ValueOf(dst).Elem(), "")
	return at, true
}

// maxList bounds every list; lists that must be shorter say so where they are checked.
const maxList = 131_072

var (
	addrType     = reflect.TypeFor[netip.Addr]()
	prefixType   = reflect.TypeFor[netip.Prefix]()
	durationType = reflect.TypeFor[Duration]()
	rateType     = reflect.TypeFor[Rate]()
)

// fill puts v into dst, or says at which place why not and leaves dst zero. options is what follows the name in the toml tag.
func fill(at loc, v any, dst reflect.Value, options string) {
	switch dst.Type() {
	case addrType:
		fillText(at, v, `"192.0.2.1"`, func(s string) error {
			parse := parseAddr
			if options == "hops" {
				parse = parseHop
			}
			a, err := parse(s)
			dst.Set(reflect.ValueOf(a))
			return err
		})
		return
	case prefixType:
		fillText(at, v, `"192.0.2.0/24"`, func(s string) error {
			p, err := parsePrefix(s)
			dst.Set(reflect.ValueOf(p))
			return err
		})
		return
	case durationType:
		fillText(at, v, `"90s"`, func(s string) error {
			if dst.Addr().Interface().(*Duration).UnmarshalText([]byte(s)) != nil {
				return errors.New(`is not a duration: write it with units, such as "90s", "2h4m" or "20ms"`)
			}
			return nil
		})
		return
	case rateType:
		if n, ok := v.(int64); ok {
			if n < 0 || Rate(n) > MaxRate {
				at.bad(v, "is not a rate", "bits per second up to 10T")
				return
			}
			dst.SetUint(uint64(n))
			return
		}
		fillText(at, v, `"20M"`, func(s string) error {
			if dst.Addr().Interface().(*Rate).UnmarshalText([]byte(s)) != nil {
				return errors.New("is not a rate: " + rateHint(s))
			}
			return nil
		})
		return
	}
	switch dst.Kind() {
	case reflect.Pointer:
		p := reflect.New(dst.Type().Elem())
		fill(at, v, p.Elem(), options)
		dst.Set(p)
	case reflect.String:
		if n, ok := v.(int64); ok && options == "number" {
			dst.SetString(fmt.Sprint(n))
			return
		}
		fillText(at, v, `"name"`, func(s string) error { dst.SetString(s); return nil })
	case reflect.Bool:
		if b, ok := v.(bool); ok {
			dst.SetBool(b)
		} else {
			at.bad(v, "is "+kindOf(v), "write true or false")
		}
	case reflect.Int, reflect.Uint64:
		n, ok := v.(int64)
		switch {
		case !ok:
			at.bad(v, "is "+kindOf(v), "write a whole number, without quotes")
		case n < 0:
			at.bad(v, "is negative", "")
		case n > math.MaxInt32 && dst.Kind() == reflect.Int:
			at.bad(v, "is too large", "")
		case dst.Kind() == reflect.Int:
			dst.SetInt(n)
		default:
			dst.SetUint(uint64(n))
		}
	case reflect.Slice:
		fillList(at, v, dst, options)
	case reflect.Map:
		t, ok := v.(map[string]any)
		if !ok {
			at.bad(v, "is "+kindOf(v), "write a table: name = [\"…\"]")
			return
		}
		dst.Set(reflect.MakeMapWithSize(dst.Type(), len(t)))
		for _, k := range sortedKeys(t) {
			e := reflect.New(dst.Type().Elem()).Elem()
			fill(at.key(k), t[k], e, "")
			dst.SetMapIndex(reflect.ValueOf(k), e)
		}
	case reflect.Struct:
		t, ok := v.(map[string]any)
		if !ok {
			at.bad(v, "is "+kindOf(v), "write a table")
			return
		}
		fillStruct(at, t, dst)
	}
}

// fillText wants text and hands it to parse, whose error reads on from the value.
func fillText(at loc, v any, want string, parse func(string) error) {
	s, ok := v.(string)
	if !ok {
		at.bad(v, "is "+kindOf(v), "write text, such as "+want)
		return
	}
	if err := parse(s); err != nil {
		msg, want, _ := strings.Cut(err.Error(), ": ")
		at.bad(s, msg, want)
	}
}

func fillList(at loc, v any, dst reflect.Value, options string) {
	elem := dst.Type().Elem()
	tables := elem.Kind() == reflect.Struct && elem != addrType && elem != prefixType
	var items []any
	switch v := v.(type) {
	case []any:
		items = v
	case []map[string]any:
		for _, m := range v {
			items = append(items, m)
		}
	case map[string]any:
		if tables {
			at.bad(nil, "is one table", "write a list of tables: [["+strings.Trim(indexes.Replace(at.path), ".")+"]] in double brackets")
			return
		}
		at.bad(nil, "is a table", "write a list in brackets")
		return
	default:
		if _, text := v.(string); options != "hops" || !text {
			at.bad(v, "is "+kindOf(v), "write a list in brackets: ["+show(v)+"]")
			return
		}
		items = []any{v} // one next hop is written without brackets
	}
	if len(items) > maxList {
		at.bad(nil, fmt.Sprintf("has %d entries", len(items)), fmt.Sprintf("at most %d", maxList))
		return
	}
	out := reflect.MakeSlice(dst.Type(), len(items), len(items))
	for i, item := range items {
		where := at.item(i)
		if tables {
			where = at.at(i)
		}
		fill(where, item, out.Index(i), options)
	}
	dst.Set(out)
}

// indexes takes the positions out of a path, which gives a TOML header. Paths hold few of them.
var indexes = strings.NewReplacer("[1]", "", "[2]", "", "[3]", "", "[4]", "", "[5]", "", "[6]", "", "[7]", "", "[8]", "", "[9]", "")

// notAKey is what is said of a key that this build does not know.
const notAKey = "is not a key of this schema"

func fillStruct(at loc, t map[string]any, dst reflect.Value) {
	typ := dst.Type()
	fields := make(map[string]int, typ.NumField())
	var names []string
	for i := range typ.NumField() {
		if name, _, _ := strings.Cut(typ.Field(i).Tag.Get("toml"), ","); name != "" {
			fields[name] = i
			names = append(names, name)
		}
	}
	for _, k := range sortedKeys(t) {
		i, ok := fields[k]
		if !ok {
			want := didYouMean(k, names, "known here: "+strings.Join(names, ", "))
			if at.path == "" {
				want = belongs(k, typ, want)
			}
			at.key(k).bad(nil, notAKey, want)
			continue
		}
		where := at.key(k)
		if typ.Field(i).Tag.Get(addedTag) != "" {
			at.c.use(featureOf(where.path))
		}
		_, options, _ := strings.Cut(typ.Field(i).Tag.Get("toml"), ",")
		fill(where, t[k], dst.Field(i), options)
	}
}

// belongs knows the commonest slips: the other one of the two files, and a header without its parent, as [nat] instead of [tenant.nat].
func belongs(key string, root reflect.Type, other string) string {
	for t, file := range map[reflect.Type]string{reflect.TypeFor[Node](): "the node file", reflect.TypeFor[Policy](): "the policy"} {
		for i := range t.NumField() {
			if name, _, _ := strings.Cut(t.Field(i).Tag.Get("toml"), ","); t != root && name == key {
				return "it belongs into " + file
			}
		}
	}
	for i := range root.NumField() {
		f := root.Field(i)
		if f.Type.Kind() != reflect.Slice || f.Type.Elem().Kind() != reflect.Struct {
			continue
		}
		for j := range f.Type.Elem().NumField() {
			if name, _, _ := strings.Cut(f.Type.Elem().Field(j).Tag.Get("toml"), ","); name == key {
				return fmt.Sprintf("it belongs into a %s: %s.%s", f.Tag.Get("toml"), f.Tag.Get("toml"), key)
			}
		}
	}
	return other
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func kindOf(v any) string {
	switch v.(type) {
	case string:
		return "text"
	case int64:
		return "a number"
	case float64:
		return "a fraction"
	case bool:
		return "true or false"
	case time.Time:
		return "a date"
	case []any, []map[string]any:
		return "a list"
	case map[string]any:
		return "a table"
	}
	return "something else"
}

// rateHint guesses what a misspelt rate was meant to be.
func rateHint(s string) string {
	t := strings.TrimSpace(s)
	for _, unit := range []string{"bit/s", "bps", "bits", "bit", "b"} {
		t = strings.TrimSpace(strings.TrimSuffix(t, unit))
	}
	if n := len(t); n > 0 {
		switch t[n-1] {
		case 'K':
			t = t[:n-1] + "k"
		case 'm', 'g', 't':
			t = t[:n-1] + strings.ToUpper(t[n-1:])
		}
	}
	var r Rate
	if t != s && r.UnmarshalText([]byte(t)) == nil {
		return fmt.Sprintf("did you mean %s?", quote(t))
	}
	return `bits per second, such as "20M", "1.5G", "64k" or 250000`
}
