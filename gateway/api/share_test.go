package api

import (
	"encoding/json"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
)

// plant fills a value with a text and a number, everywhere.
func plant(v reflect.Value, text string, n int64) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(n)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(n))
	case reflect.Float64:
		v.SetFloat(float64(n))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		plant(v.Elem(), text, n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		plant(v.Index(0), text, n)
	case reflect.Map:
		e := reflect.New(v.Type().Elem()).Elem()
		plant(e, text, n)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf(text), e)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Date(1977, 7, 7, 7, 7, 7, 0, time.UTC)))
			return
		}
		for i := range v.NumField() {
			plant(v.Field(i), text, n)
		}
	}
}

func planted[T any](text string, n int64) T {
	var v T
	plant(reflect.ValueOf(&v).Elem(), text, n)
	return v
}

// foreign is what an answer to alpha must not hold: a text and a number of somebody else's.
const (
	foreignText   = "of-beta"
	foreignNumber = 7_777_777
)

func leaks(t *testing.T, what string, answer any) string {
	t.Helper()
	b, err := json.Marshal(answer)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{foreignText, "7777777", "198.18.66."} {
		if strings.Contains(string(b), s) {
			t.Errorf("%s holds %s:\n%s", what, s, b)
		}
	}
	return string(b)
}

// TestATenantSeesNothingElse fills the answer of each route for tenants with what is another's, in every field that there is, also in those that are added
// later. Whatever comes out is a leak. What the node says of itself to tenants is set apart here, by name.
func TestATenantSeesNothingElse(t *testing.T) {
	n := 0
	for _, rt := range routes {
		if rt.only == nil || rt.gives == reflect.TypeFor[[]byte]() {
			continue
		}
		n++
		v := reflect.New(rt.gives).Elem()
		plant(v, foreignText, foreignNumber)
		if s, ok := v.Interface().(*Status); ok {
			s.Node, s.Started, s.Uptime, s.Revision.Number, s.Revision.AppliedAt = "edge1", time.Unix(1, 0), 5, 3, time.Unix(2, 0)
		}
		if s, ok := v.Interface().(*Sessions); ok {
			s.Matched = 1 // of what was asked, and that was narrowed
		}
		leaks(t, rt.path, rt.only(v.Interface(), "alpha"))
	}
	if n < 3 {
		t.Errorf("only %d routes were looked at", n)
	}
}

// TestATenantSeesItsOwn, between the figures of two others, whose names are longer and shorter.
func TestATenantSeesItsOwn(t *testing.T) {
	const own, ownNumber = "of-alpha", 1_111_111
	mine := planted[Tenant](own, ownNumber)
	mine.Name = "alpha"
	other := planted[Tenant](foreignText, foreignNumber)
	other.Name = "alpha" + foreignText
	s := planted[Status](foreignText, foreignNumber)
	s.Node, s.Started, s.Uptime, s.Revision.Number = "edge1", time.Unix(1, 0), 5, 3
	s.Tenants = []Tenant{other, mine, planted[Tenant](foreignText, foreignNumber)}
	block := planted[Block](own, ownNumber)
	block.Side = Side{Tenant: "alpha"}
	s.Blocks = append(s.Blocks, block, Block{Address: "198.18.66.1"}, Block{Address: "198.18.66.2", Side: Side{Backbone: true}}, Block{Address: "198.18.66.3", Side: Side{Tenant: other.Name}})
	got := statusOfTenant(&s, "alpha")
	leaks(t, "status", got)
	if len(got.Tenants) != 1 || !reflect.DeepEqual(got.Tenants[0], mine) || len(got.Blocks) != 1 || got.Blocks[0].Address != own || got.Drops[own] != ownNumber || got.OnlyTenant != "alpha" || !got.Ready {
		t.Errorf("%+v", got)
	}

	one := planted[Session](own, ownNumber)
	one.Tenant = "alpha"
	se := &Sessions{Total: foreignNumber, Matched: 1, Sessions: []Session{planted[Session](foreignText, foreignNumber), one, {Tenant: other.Name, Src: "198.18.66.4:1"}, {Src: "198.18.66.5:1"}}}
	gs := sessionsOfTenant(se, "alpha")
	leaks(t, "sessions", gs)
	if len(gs.Sessions) != 1 || !reflect.DeepEqual(gs.Sessions[0], one) || gs.Total != 1 {
		t.Errorf("%+v", gs)
	}

	rule := planted[RuleHits](own, ownNumber)
	rule.Tenant = "alpha"
	d := planted[Drops](foreignText, foreignNumber)
	d.ByTenant["alpha"], d.ByTenant[other.Name] = map[string]uint64{"acl_deny": 5, "ttl_exceeded": 2}, map[string]uint64{foreignText: 1}
	d.ByRule = append(d.ByRule, rule, RuleHits{Tenant: other.Name, Name: foreignText}, RuleHits{Name: "alpha: " + foreignText})
	d.ByBlock = s.Blocks
	gd := dropsOfTenant(&d, "alpha")
	leaks(t, "drops", gd)
	if gd.Total != 7 || gd.ByReason["ttl_exceeded"] != 2 || len(gd.ByTenant) != 1 || len(gd.ByRule) != 1 || !reflect.DeepEqual(gd.ByRule[0], rule) || len(gd.ByBlock) != 1 {
		t.Errorf("%+v", gd)
	}
	// A tenant that the node does not have: nothing, and no word about it.
	if text := leaks(t, "status of nobody", statusOfTenant(&s, "nobody")); strings.Contains(text, "of-alpha") {
		t.Error(text)
	}
}

func TestNarrowSessions(t *testing.T) {
	for _, c := range []struct {
		f      SessionFilter
		status int
	}{
		{SessionFilter{}, 0}, {SessionFilter{Tenant: "alpha", Limit: maxTenantSessions}, 0}, {SessionFilter{Limit: maxTenantSessions + 1}, 0}, {SessionFilter{Tenant: "beta"}, http.StatusForbidden}, {SessionFilter{Tenant: "Alpha"}, http.StatusForbidden},
	} {
		f := c.f
		err := narrowSessions(&f, "alpha")
		if c.status == 0 && (err != nil || f.Tenant != "alpha" || f.Limit == 0 || f.Limit > maxTenantSessions) || c.status != 0 && (err == nil || statusOf(err) != c.status) {
			t.Errorf("%+v: %+v, %v", c.f, f, err)
		}
	}
}
