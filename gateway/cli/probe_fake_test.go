package cli

import (
	"context"

	"demarc/gateway/api"
)

func (f *fake) Ping(ctx context.Context, r api.ProbeRequest, emit func(*api.ProbeEvent) error) error {
	f.acted.probes = append(f.acted.probes, r)
	if f.refuse != nil {
		return f.refuse
	}
	if r.Address == "198.51.100.1" {
		emit(&api.ProbeEvent{Event: "start", Interface: "wan", Source: "203.0.113.1"})
		return emit(&api.ProbeEvent{Event: "end", Sent: 2, Seconds: 2.001, Remark: "203.0.113.254 does not answer on wan: is it up, and on this link?"})
	}
	if list := withoutEnd[r.Address]; list != nil {
		for _, e := range list {
			emit(&e)
		}
		<-ctx.Done()
		return nil
	}
	for _, e := range []api.ProbeEvent{{Event: "start", Interface: "wan", Source: "203.0.113.1", Via: "203.0.113.254"},
		{Event: "reply", Seq: 1, From: r.Address, TTL: 61, Bytes: 64, Ms: 0.1234}, {Event: "reply", Seq: 1, From: r.Address, TTL: 61, Bytes: 64, Ms: 12.34, Dup: true},
		{Event: "error", Seq: 2, From: "203.0.113.254", TTL: 64, Error: "Frag needed and DF set (mtu = 1400)", MTU: 1400, Ms: 0.5}, {Event: "error", Seq: 3, From: "203.0.113.254", TTL: 64, Error: "Time to live exceeded", Ms: 0.5},
		{Event: "reply", Seq: 4, From: r.Address, TTL: 61, Bytes: 64, Ms: 345.6},
		{Event: "end", Sent: 5, Received: 2, Errors: 2, Seconds: 4.012, Min: 0.1234, Avg: 172.86, Max: 345.6, Mdev: 172.7}} {
		if err := emit(&e); err != nil {
			return err
		}
	}
	return nil
}

// withoutEnd are pings that go on until they are interrupted: one that is answered twice, one that is not, and one of a release before, which tells of answers alone.
var withoutEnd = map[string][]api.ProbeEvent{
	"198.51.100.2": {{Event: "start", Source: "203.0.113.1"}, {Event: "sent", Seq: 1, Sent: 1}, {Event: "sent", Seq: 2, Sent: 2, Remark: "too early"}, {Event: "reply", Seq: 1, Ms: 10},
		{Event: "sent", Seq: 3, Sent: 3}, {Event: "reply", Seq: 2, Ms: 30}},
	"198.51.100.3": {{Event: "start", Source: "203.0.113.1"}, {Event: "sent", Seq: 1, Sent: 1}, {Event: "sent", Seq: 2, Sent: 2, Remark: "203.0.113.254 does not answer on wan"}},
	"198.51.100.4": {{Event: "start", Source: "203.0.113.1"}, {Event: "reply", Seq: 4, Ms: 10}},
}

func (f *fake) Traceroute(_ context.Context, r api.ProbeRequest, emit func(*api.ProbeEvent) error) error {
	f.acted.probes = append(f.acted.probes, r)
	if f.refuse != nil {
		return f.refuse
	}
	for _, e := range []api.ProbeEvent{{Event: "start", Interface: "wan", Source: "2001:db8:ff::1"},
		{Event: "probe", Hop: 1, Seq: 1, From: "2001:db8:ff::254", Ms: 0.25, Error: "Time exceeded: Hop limit"}, {Event: "probe", Hop: 1, Seq: 2, From: "2001:db8:ff::254", Ms: 0.125}, {Event: "probe", Hop: 1, Seq: 3, From: "2001:db8:ff::253", Ms: 1},
		{Event: "probe", Hop: 2, Seq: 1}, {Event: "probe", Hop: 2, Seq: 2}, {Event: "probe", Hop: 2, Seq: 3},
		{Event: "probe", Hop: 3, Seq: 1, From: "2001:db8:ff::9", Ms: 3, Mark: "!F-1280", MTU: 1280, Final: true}, {Event: "probe", Hop: 3, Seq: 2, From: "2001:db8:ff::9", Ms: 3, Mark: "!X", Final: true}, {Event: "probe", Hop: 3, Seq: 3, Final: true},
		{Event: "end", Sent: 9, Received: 5, Reached: true, Seconds: 2.1}} {
		if err := emit(&e); err != nil {
			return err
		}
	}
	return nil
}
