package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Role is how much a caller may do.
type Role string

// The roles. A caller without one of these may do nothing; a route without one is the operator's alone.
const (
	RoleOperator Role = "operator"  // everything
	RoleReadOnly Role = "read-only" // looks at the whole node, but not at what packets carry, and changes nothing
	RoleTenant   Role = "tenant"    // looks at one tenant's figures
)

// route is one thing that a node can be asked. The list of them is all that server, permissions and document are made from.
type route struct {
	method, path string
	least        Role         // that may use it
	does         string       // one sentence, for the document
	part         reflect.Type // of the backend, that answers; a backend without it has no such route
	query        reflect.Type // what the query is read into; an empty struct: there is none
	takes        reflect.Type // the body; nil: there is none
	gives        reflect.Type // the answer, or one line of a stream
	media        string       // of the answer
	changes      bool         // something: who asked is logged
	tells        string       // of one that changes something: the command that shows whether it did

	also func(s *Server, answer any) // adds what the server knows to a backend's answer; nil = nothing

	// Of a route for tenants: narrow fits the query to the tenant or refuses it, only makes of an answer the part that is the tenant's. A route
	// without them is for no tenant, whatever its role says.
	narrow func(query any, tenant string) error
	only   func(answer any, tenant string) any

	serve func(s *Server, w http.ResponseWriter, r *http.Request) error // the error has been answered already
}

const (
	mediaJSON  = "application/json"
	mediaLines = "application/x-ndjson"
	mediaText  = "text/plain; charset=utf-8"
)

// none is the query of a route that has none.
type none struct{}

// get is a question without anything to say with it. An answer of []byte is text as it is.
func get[B, A any](path string, least Role, does string, fn func(B, context.Context) (A, error)) *route {
	return ask(path, least, does, func(b B, ctx context.Context, _ none) (A, error) { return fn(b, ctx) })
}

// ask is a question whose query is read into a Q, by the names of its JSON.
func ask[B, Q, A any](path string, least Role, does string, fn func(B, context.Context, Q) (A, error)) *route {
	rt := &route{method: http.MethodGet, path: path, least: least, does: does, part: reflect.TypeFor[B](), query: reflect.TypeFor[Q](), gives: reflect.TypeFor[A](), media: mediaJSON}
	if rt.gives == reflect.TypeFor[[]byte]() {
		rt.media = mediaText
	}
	rt.serve = func(s *Server, w http.ResponseWriter, r *http.Request) error {
		a, err := func() (any, error) {
			q := new(Q)
			if err := queryOf(r.URL.Query(), q); err != nil {
				return nil, err
			}
			tenant := PeerOf(r.Context()).Tenant
			if tenant != "" {
				if err := rt.narrow(q, tenant); err != nil {
					return nil, err
				}
			}
			if r.ContentLength == 0 { // a body that never comes is waited for when the answer is sent
				unhurried(w)
			}
			a, err := fn(any(s.cfg.Backend).(B), r.Context(), *q)
			if err == nil && rt.also != nil {
				rt.also(s, a)
			}
			if err != nil || tenant == "" {
				return a, err
			}
			return rt.only(a, tenant), nil
		}()
		return answer(s, rt, w, r, a, err)
	}
	return rt
}

// post sends a Q as the body.
func post[B, Q, A any](path string, least Role, does string, fn func(B, context.Context, Q) (A, error)) *route {
	rt := &route{method: http.MethodPost, path: path, least: least, does: does, part: reflect.TypeFor[B](), query: reflect.TypeFor[none](), takes: reflect.TypeFor[Q](), gives: reflect.TypeFor[A](), media: mediaJSON}
	rt.serve = func(s *Server, w http.ResponseWriter, r *http.Request) error {
		a, err := func() (any, error) {
			q := new(Q)
			if err := errors.Join(queryOf(r.URL.Query(), new(none)), body(w, r, q)); err != nil {
				return nil, err
			}
			unhurried(w)
			defer afresh(w, r)
			return fn(any(s.cfg.Backend).(B), r.Context(), *q)
		}()
		return answer(s, rt, w, r, a, err)
	}
	return rt
}

// unhurried lets a request that has been read take its time: an apply waits for its workers and for other nodes, and the server's read deadline, where it passes, ends the request's context.
func unhurried(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
}

// afresh gives an answer all of its time: the server counts that from the request's header on, and what was asked for may have taken as long.
func afresh(w http.ResponseWriter, r *http.Request) {
	if srv, ok := r.Context().Value(http.ServerContextKey).(*http.Server); ok && srv.WriteTimeout > 0 {
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(srv.WriteTimeout))
	}
}

// stream answers a Q with an L a line, until fn returns or the client goes. An error before the first line is an answer like any; after it,
// it is the last line, as last makes it.
func stream[B, Q, L any](path string, least Role, does string, fn func(B, context.Context, Q, func(*L) error) error, last func(why string) *L) *route {
	rt := &route{method: http.MethodPost, path: path, least: least, does: does, part: reflect.TypeFor[B](), query: reflect.TypeFor[none](), takes: reflect.TypeFor[Q](), gives: reflect.TypeFor[L](), media: mediaLines}
	rt.serve = func(s *Server, w http.ResponseWriter, r *http.Request) error {
		q := new(Q)
		if err := errors.Join(queryOf(r.URL.Query(), new(none)), body(w, r, q)); err != nil {
			return answer(s, rt, w, r, nil, err)
		}
		c := http.NewResponseController(w)
		_ = c.SetReadDeadline(time.Time{}) // else the server's own would end it
		e, begun := json.NewEncoder(w), false
		emit := func(l *L) error {
			if !begun {
				begun = true
				w.Header().Set("Content-Type", mediaLines)
			}
			_ = c.SetWriteDeadline(time.Now().Add(10 * time.Second)) // who stops reading is gone
			if err := e.Encode(l); err != nil {
				return err
			}
			return c.Flush()
		}
		ctx, end := untilTurned(r.Context())
		defer end()
		err := fn(any(s.cfg.Backend).(B), ctx, *q, emit)
		if why := context.Cause(ctx); why != nil && r.Context().Err() == nil {
			err = &Fault{Status: http.StatusUnauthorized, Err: why}
		}
		if err == nil || r.Context().Err() != nil {
			return nil
		}
		if !begun {
			return answer(s, rt, w, r, nil, err)
		}
		_ = emit(last(err.Error()))
		return err
	}
	return rt
}

// changing marks a route that changes something. The command tells shows whether it did, to whoever has not heard the answer.
func changing(tells string, rt *route) *route {
	rt.changes, rt.tells = true, tells
	return rt
}

// forTenant opens a route to tenants.
func forTenant[Q, A any](rt *route, narrow func(*Q, string) error, only func(A, string) A) *route {
	rt.narrow = func(q any, tenant string) error { return narrow(q.(*Q), tenant) }
	rt.only = func(a any, tenant string) any { return only(a.(A), tenant) }
	return rt
}

// anyTenant is for routes that tell every caller the same.
func anyTenant[A any](rt *route) *route {
	return forTenant(rt, func(*none, string) error { return nil }, func(a A, _ string) A { return a })
}

// may says whether somebody may use the route. What is not known is refused.
func (rt *route) may(p Peer) bool {
	switch p.Role {
	case RoleOperator:
		return p.Tenant == ""
	case RoleReadOnly:
		return p.Tenant == "" && (rt.least == RoleReadOnly || rt.least == RoleTenant)
	case RoleTenant:
		return p.Tenant != "" && rt.least == RoleTenant && rt.narrow != nil && rt.only != nil
	}
	return false
}

// needs is who may use the route, in words.
func (rt *route) needs() string {
	switch rt.least {
	case RoleTenant, RoleReadOnly:
		return string(RoleReadOnly) + " or " + string(RoleOperator)
	}
	return string(RoleOperator)
}

// describe is who asks, in words.
func (p Peer) describe() string {
	switch {
	case p.Role == RoleTenant:
		return fmt.Sprintf("%q may see tenant %q alone", p.Name, p.Tenant)
	case p.Role == "":
		return "nobody knows who asks"
	}
	return fmt.Sprintf("%q is %s", p.Name, p.Role)
}

// handler serves the routes that the backend has.
func (s *Server) handler() http.Handler {
	mux, backend := http.NewServeMux(), reflect.TypeOf(s.cfg.Backend)
	methods, lacks := map[string][]string{}, map[string]bool{}
	for _, rt := range routes {
		if !backend.Implements(rt.part) {
			lacks[rt.path] = s.cfg.Lacks != ""
			continue
		}
		methods[rt.path] = append(methods[rt.path], rt.method)
		mux.HandleFunc(rt.method+" "+rt.path, func(w http.ResponseWriter, r *http.Request) { s.enter(rt, w, r) })
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if m := methods[r.URL.Path]; m != nil {
			w.Header().Set("Allow", strings.Join(m, ", "))
			refuse(w, &Fault{Status: http.StatusMethodNotAllowed, Err: fmt.Errorf("%s takes %s", r.URL.Path, strings.Join(m, " and "))})
			return
		}
		if lacks[r.URL.Path] {
			refuse(w, &Fault{Status: http.StatusNotFound, Err: errors.New(s.cfg.Lacks)})
			return
		}
		refuse(w, &Fault{Status: http.StatusNotFound, Err: fmt.Errorf("there is no %.200q here: %s lists what there is", r.URL.Path, PathOpenAPI)})
	})
	return mux
}

// enter lets a request through to its route if its sender may.
func (s *Server) enter(rt *route, w http.ResponseWriter, r *http.Request) {
	p := PeerOf(r.Context())
	if !rt.may(p) {
		s.forbidden.Add(1)
		if now := time.Now().Unix(); s.said.Swap(now) != now {
			s.cfg.Log.Warn("request refused: the role is not enough", "by", p.Name, "from", p.From, "what", rt.path)
		}
		err := &Fault{Status: http.StatusForbidden, Err: fmt.Errorf("%s %s needs the role %s, and %s", rt.method, rt.path, rt.needs(), p.describe())}
		if rt.changes {
			s.refused.add(time.Now(), p, rt.path, err)
		}
		refuse(w, err)
		return
	}
	if p.Tenant != "" {
		done, err := s.turns.take(r.Context(), p.Tenant)
		if err != nil {
			refuse(w, err)
			return
		}
		defer done()
	}
	err := rt.serve(s, w, r)
	if rt.changes { // never what was sent: it may be long, and not for the log
		if err != nil {
			s.refused.add(time.Now(), p, rt.path, err)
			s.cfg.Log.Info("change refused", "by", p.Name, "from", p.From, "what", rt.path, "status", statusOf(err))
		} else {
			s.cfg.Log.Info("change asked for and carried out", "by", p.Name, "from", p.From, "what", rt.path)
		}
	}
}

// queryOf reads a query into a struct by the names of its JSON. What the struct does not know is refused.
func queryOf(values url.Values, into any) error {
	v := reflect.ValueOf(into).Elem()
	fields := map[string]reflect.Value{}
	var names []string
	for _, f := range reflect.VisibleFields(v.Type()) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && !f.Anonymous {
			fields[name] = v.FieldByIndex(f.Index)
			names = append(names, name)
		}
	}
	for name, list := range values {
		f, ok := fields[name]
		switch {
		case !ok && len(names) == 0:
			return BadRequest("%.100q: this path has no query", name)
		case !ok:
			return BadRequest("%.100q is not in the query of this path: want %s", name, strings.Join(names, ", "))
		case len(list) != 1:
			return BadRequest("%s is in the query %d times", name, len(list))
		}
		text := list[0]
		var err error
		switch f.Kind() {
		case reflect.String:
			f.SetString(text)
		case reflect.Bool:
			var b bool
			if b, err = strconv.ParseBool(text); err != nil {
				err = fmt.Errorf("%s=%.100q: want 1 or 0", name, text)
			}
			f.SetBool(b)
		case reflect.Int, reflect.Uint64:
			var n uint64
			if n, err = strconv.ParseUint(text, 10, 63); err != nil && text != "" {
				err = fmt.Errorf("%s=%.100q is not a number from 0", name, text)
			} else if err = nil; f.Kind() == reflect.Int {
				f.SetInt(int64(n))
			} else {
				f.SetUint(n)
			}
		default:
			err = fmt.Errorf("%s: a %s cannot be in a query", name, f.Kind())
		}
		if err != nil {
			return &Fault{Status: http.StatusBadRequest, Err: err}
		}
	}
	return nil
}

func body(w http.ResponseWriter, r *http.Request, into any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 2*MaxPolicy)) // JSON may write a byte as two
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil {
		if _, more := d.Token(); more != io.EOF {
			err = errors.New("something follows the object")
		}
	}
	if err != nil {
		return BadRequest("request body: %w: want one JSON object as %s describes it", err, PathOpenAPI)
	}
	return nil
}

// answer sends what a route has to say and hands the error on.
func answer(s *Server, rt *route, w http.ResponseWriter, r *http.Request, v any, err error) error {
	if err != nil {
		if p := PeerOf(r.Context()); p.Tenant != "" && statusOf(err) >= http.StatusInternalServerError {
			s.cfg.Log.Warn("answer a tenant", "tenant", p.Tenant, "what", rt.path, "err", err)
			err = &Fault{Status: statusOf(err), Err: errors.New("the node cannot answer this now: its operator can see why")} // it may name what is not the tenant's
		}
		refuse(w, err)
		return err
	}
	if text, ok := v.([]byte); ok {
		w.Header().Set("Content-Type", rt.media)
		_, _ = w.Write(text)
		return nil
	}
	write(w, http.StatusOK, v)
	return nil
}

func statusOf(err error) int {
	var f *Fault
	if errors.As(err, &f) {
		return f.Status
	}
	return http.StatusInternalServerError
}

func refuse(w http.ResponseWriter, err error) {
	write(w, statusOf(err), Error{Error: err.Error(), Problems: problemsOf(err)})
}

func problemsOf(err error) []Problem {
	var f *Fault
	if errors.As(err, &f) {
		return f.Problems
	}
	return nil
}

func write(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", mediaJSON)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client has gone: nobody to tell
}
