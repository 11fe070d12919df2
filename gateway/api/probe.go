package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Paths of what the node sends of its own. Both answer with a line of JSON for each event, as it happens.
const (
	PathPing  = "/v1/ping"       // POST ProbeRequest -> ProbeEvent…
	PathTrace = "/v1/traceroute" // POST ProbeRequest -> ProbeEvent…
)

// Prober is the part of Backend that sends probes. emit is called for one event after the other; its error ends the probing.
type Prober interface {
	Ping(ctx context.Context, r ProbeRequest, emit func(*ProbeEvent) error) error
	Traceroute(ctx context.Context, r ProbeRequest, emit func(*ProbeEvent) error) error
}

// ProbeRequest says what is sent, and from where: from an interface, or from a tenant's interface that leads to the address, or from the
// backbone's.
type ProbeRequest struct {
	Address   string  `json:"address"`
	Interface string  `json:"interface,omitempty"`
	Tenant    string  `json:"tenant,omitempty"`
	Timeout   float64 `json:"timeout_seconds"` // for an answer
	Size      int     `json:"size"`            // payload bytes; of ping, and of traceroute but with tcp

	// Of ping.
	Count    int     `json:"count,omitempty"` // 0 = until the request ends
	Interval float64 `json:"interval_seconds,omitempty"`
	TTL      int     `json:"ttl,omitempty"` // 0 = 64
	DF       bool    `json:"df,omitempty"`  // IPv4: do not fragment

	// Of traceroute.
	Proto   string `json:"proto,omitempty"` // udp, icmp, tcp
	Port    int    `json:"port,omitempty"`  // udp: the first one, 0 = 33434; tcp: 0 = 80
	MaxHops int    `json:"max_hops,omitempty"`
	Queries int    `json:"queries,omitempty"` // per hop
}

// ProbeEvent is one of: start, reply, error (an ICMP error, ping), probe (traceroute: one answer or its absence, in order), end.
type ProbeEvent struct {
	Event     string `json:"event"`
	Interface string `json:"interface,omitempty"` // start
	Source    string `json:"source,omitempty"`    // start
	Via       string `json:"via,omitempty"`       // start: the next hop, where there is one

	Seq   int     `json:"seq,omitempty"`
	Hop   int     `json:"hop,omitempty"`  // probe
	From  string  `json:"from,omitempty"` // who answered; empty = nobody
	TTL   int     `json:"ttl,omitempty"`
	Bytes int     `json:"bytes,omitempty"` // reply: of ICMP
	Ms    float64 `json:"ms,omitempty"`
	Dup   bool    `json:"dup,omitempty"`   // reply: not the first to this request
	Error string  `json:"error,omitempty"` // what the ICMP error says
	Mark  string  `json:"mark,omitempty"`  // probe: !H, !N, !P, !X, !F-1400 as traceroute writes them
	MTU   int     `json:"mtu,omitempty"`
	Final bool    `json:"final,omitempty"` // probe: no further hop is asked

	Sent     int     `json:"sent,omitempty"` // end
	Received int     `json:"received,omitempty"`
	Errors   int     `json:"errors,omitempty"`
	Seconds  float64 `json:"seconds,omitempty"`
	Min      float64 `json:"min_ms,omitempty"`
	Avg      float64 `json:"avg_ms,omitempty"`
	Max      float64 `json:"max_ms,omitempty"`
	Mdev     float64 `json:"mdev_ms,omitempty"`
	Reached  bool    `json:"reached,omitempty"`
	Remark   string  `json:"remark,omitempty"` // why nothing may have come
}

func (s *Server) probes(mux *http.ServeMux) {
	b := s.cfg.Backend
	mux.HandleFunc("POST "+PathPing, func(w http.ResponseWriter, r *http.Request) { lines(w, r, b.Ping) })
	mux.HandleFunc("POST "+PathTrace, func(w http.ResponseWriter, r *http.Request) { lines(w, r, b.Traceroute) })
}

// lines answers with what fn emits, each at once. What goes wrong before the first is an ordinary refusal, after it a line with an error.
func lines(w http.ResponseWriter, r *http.Request, fn func(context.Context, ProbeRequest, func(*ProbeEvent) error) error) {
	var q ProbeRequest
	if err := body(w, r, &q); err != nil {
		refuse(w, err)
		return
	}
	c, begun := http.NewResponseController(w), false
	_ = c.SetReadDeadline(time.Time{}) // else the server's own would end it
	err := fn(r.Context(), q, func(e *ProbeEvent) error {
		if !begun {
			begun = true
			w.Header().Set("Content-Type", "application/x-ndjson")
		}
		_ = c.SetWriteDeadline(time.Now().Add(10 * time.Second)) // who stops reading is gone
		if err := json.NewEncoder(w).Encode(e); err != nil {
			return err
		}
		return c.Flush()
	})
	if err == nil || r.Context().Err() != nil {
		return
	}
	if !begun {
		refuse(w, err)
		return
	}
	_ = json.NewEncoder(w).Encode(&ProbeEvent{Event: "failed", Error: err.Error()})
}

// Probe sends r and calls fn for each event, until the node says that it is over or ctx ends, which is no error.
func (c *Client) Probe(ctx context.Context, path string, r ProbeRequest, fn func(*ProbeEvent) error) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if _, err := c.do(ctx, http.MethodGet, PathBlocks, nil); err != nil { // says in plain words that no node is there
		return err
	}
	hr, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://demarc"+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	res, err := (&http.Client{Transport: c.http.Transport}).Do(hr) // without the time limit of an answer
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("ask the node at %s: %w", c.path, err)
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		b, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20))
		var e Error
		if json.Unmarshal(b, &e) != nil || e.Error == "" {
			e.Error = "the node answered " + res.Status
		}
		return &Fault{Status: res.StatusCode, Err: errors.New(e.Error)}
	}
	in := bufio.NewScanner(res.Body)
	for in.Scan() {
		var e ProbeEvent
		if err := json.Unmarshal(in.Bytes(), &e); err != nil {
			return fmt.Errorf("the node's answer: %w", err)
		}
		if e.Event == "failed" {
			return errors.New(e.Error)
		}
		if err := fn(&e); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return in.Err()
}
