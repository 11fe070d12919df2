package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

// ProbeEvent is one of: start, sent (ping: one more request), reply, error (an ICMP error, ping), probe (traceroute: one answer or its absence, in order), end.
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

	Sent     int     `json:"sent,omitempty"` // sent: so far; end
	Received int     `json:"received,omitempty"`
	Errors   int     `json:"errors,omitempty"`
	Seconds  float64 `json:"seconds,omitempty"`
	Min      float64 `json:"min_ms,omitempty"`
	Avg      float64 `json:"avg_ms,omitempty"`
	Max      float64 `json:"max_ms,omitempty"`
	Mdev     float64 `json:"mdev_ms,omitempty"`
	Reached  bool    `json:"reached,omitempty"`
	Remark   string  `json:"remark,omitempty"` // sent, end: why nothing may have come
}

// Probe sends r and calls fn for each event, until the node says that it is over or ctx ends, which is no error.
func (c *Client) Probe(ctx context.Context, path string, r ProbeRequest, fn func(*ProbeEvent) error) error {
	res, err := c.open(ctx, path, r)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer res.Body.Close()
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
