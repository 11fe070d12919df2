package api

import (
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestEveryRouteHasARole: a route that nobody has thought about is refused here, and the operator's alone until then.
func TestEveryRouteHasARole(t *testing.T) {
	seen := map[string]bool{}
	for _, rt := range routes {
		name := rt.method + " " + rt.path
		switch {
		case seen[name]:
			t.Errorf("%s is there twice", name)
		case rt.least != RoleOperator && rt.least != RoleReadOnly && rt.least != RoleTenant:
			t.Errorf("%s has no role: say who may use it at least", name)
		case rt.least != RoleOperator && (rt.method != http.MethodGet || rt.changes):
			t.Errorf("%s is for %s: only an operator may send more than a question", name, rt.least)
		case rt.changes != strings.HasPrefix(rt.tells, "demarc "):
			t.Errorf("%s: which command shows whether it has changed something? %q", name, rt.tells)
		case (rt.least == RoleTenant) != (rt.narrow != nil && rt.only != nil):
			t.Errorf("%s: who is for tenants says what of it is theirs (forTenant), and nobody else does", name)
		case !strings.HasSuffix(rt.does, ".") || strings.ToUpper(rt.does[:1]) != rt.does[:1]:
			t.Errorf("%s: %q is not a sentence", name, rt.does)
		case rt.query == nil || rt.part == nil || rt.gives == nil || rt.serve == nil || rt.media == "":
			t.Errorf("%s is half a route: %+v", name, rt)
		}
		seen[name] = true
	}
}

func TestMay(t *testing.T) {
	open := func() *route {
		return &route{narrow: func(any, string) error { return nil }, only: func(a any, _ string) any { return a }}
	}
	for _, c := range []struct {
		least Role
		p     Peer
		want  bool
	}{
		{RoleOperator, Peer{Role: RoleOperator}, true}, {RoleReadOnly, Peer{Role: RoleOperator}, true}, {RoleTenant, Peer{Role: RoleOperator}, true},
		{RoleOperator, Peer{Role: RoleReadOnly}, false}, {RoleReadOnly, Peer{Role: RoleReadOnly}, true}, {RoleTenant, Peer{Role: RoleReadOnly}, true},
		{RoleOperator, Peer{Role: RoleTenant, Tenant: "a"}, false}, {RoleReadOnly, Peer{Role: RoleTenant, Tenant: "a"}, false}, {RoleTenant, Peer{Role: RoleTenant, Tenant: "a"}, true},
		// What fits nothing.
		{RoleTenant, Peer{Role: RoleTenant}, false}, {RoleTenant, Peer{}, false}, {RoleTenant, Peer{Role: "admin"}, false}, {RoleTenant, Peer{Name: "root"}, false},
		{RoleReadOnly, Peer{Role: RoleReadOnly, Tenant: "a"}, false}, {RoleOperator, Peer{Role: RoleOperator, Tenant: "a"}, false},
		{"", Peer{Role: RoleOperator}, true}, {"", Peer{Role: RoleReadOnly}, false}, {"", Peer{Role: RoleTenant, Tenant: "a"}, false},
		{"everybody", Peer{Role: RoleReadOnly}, false}, {"everybody", Peer{Role: RoleTenant, Tenant: "a"}, false},
	} {
		rt := open()
		rt.least = c.least
		if got := rt.may(c.p); got != c.want {
			t.Errorf("a route for %q and %+v: %v", c.least, c.p, got)
		}
	}
	if (&route{least: RoleTenant}).may(Peer{Role: RoleTenant, Tenant: "a"}) {
		t.Error("a route that does not say what of it is a tenant's let one in")
	}
}

// TestNothingIsServedBesideTheTable: whoever adds a handler elsewhere has neither permission nor document.
func TestNothingIsServedBesideTheTable(t *testing.T) {
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), e.Name(), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && (s.Sel.Name == "HandleFunc" || s.Sel.Name == "Handle") {
				got[e.Name()]++
			}
			return true
		})
	}
	// handler's own two, and the address that serves metrics alone.
	if d := cmp.Diff(map[string]int{"route.go": 2, "server.go": 1}, got); d != "" {
		t.Errorf("handlers: put a route into routes (-want +got):\n%s", d)
	}
}

func TestQuery(t *testing.T) {
	for _, c := range []struct {
		query string
		into  any
		want  string // of the error
		then  any
	}{
		{"tenant=a&port=53&limit=0", new(SessionFilter), "", &SessionFilter{Tenant: "a", Port: 53}},
		{"rules=1", new(StatusQuery), "", &StatusQuery{Rules: true}},
		{"rules=false", new(StatusQuery), "", &StatusQuery{}},
		{"", new(none), "", &none{}},
		{"x=1", new(none), "this path has no query", nil},
		{"tennant=a", new(SessionFilter), `"tennant" is not in the query of this path: want tenant, address, port, proto, limit`, nil},
		{"tenant=a&tenant=b", new(SessionFilter), "tenant is in the query 2 times", nil},
		{"port=-1", new(SessionFilter), `port="-1" is not a number from 0`, nil},
		{"port=1e3", new(SessionFilter), "is not a number", nil},
		{"limit=99999999999999999999", new(SessionFilter), "is not a number", nil},
		{"rules=yes", new(StatusQuery), `rules="yes": want 1 or 0`, nil},
	} {
		v, err := url.ParseQuery(c.query)
		if err != nil {
			t.Fatal(err)
		}
		err = queryOf(v, c.into)
		switch {
		case c.want == "" && (err != nil || !reflect.DeepEqual(c.into, c.then)):
			t.Errorf("%s: %+v, %v", c.query, c.into, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || statusOf(err) != http.StatusBadRequest):
			t.Errorf("%s: %v, want %s", c.query, err, c.want)
		}
	}
}

// TestUnknownPaths are told where the list is, and a path with another method what it takes.
func TestUnknownPaths(t *testing.T) {
	c, _ := serve(t, echo{})
	for path, want := range map[string]string{"/v1/nothing": "there is no", "/": "there is no", PathApply: "takes POST", PathExplain: "there is no"} {
		if _, err := c.Text(t.Context(), path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	// What this node does not have is told apart from what no node has.
	lacking, _ := serve(t, echo{}, "ask a gateway")
	for path, want := range map[string]string{"/v1/nothing": "there is no", PathApply: "takes POST", PathExplain: "ask a gateway", PathFollow: "ask a gateway"} {
		if _, err := lacking.Text(t.Context(), path); err == nil || !strings.HasPrefix(err.Error(), want) && !strings.HasSuffix(err.Error(), want) || want == "ask a gateway" && statusOf(err) != http.StatusNotFound {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := c.Post(t.Context(), PathStatus, none{}, nil); err == nil || !strings.Contains(err.Error(), "takes GET") || statusOf(err) != http.StatusMethodNotAllowed {
		t.Errorf("%v", err)
	}
}
