package gateway

import (
	"context"
	"strings"
	"testing"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab/roottest"
	"demarc/gateway/pipeline"
)

// TestPingTellsWhatItSends: each request, and a second behind the first why nothing may have come, so that who interrupts it knows.
func TestPingTellsWhatItSends(t *testing.T) {
	roottest.MostlyWaits(t)
	g := walkGateway(t, 1)
	g.ports = []*port{{}, {}}
	ctx, stop := context.WithTimeout(t.Context(), 5*time.Second)
	defer stop()
	var got []api.ProbeEvent
	if err := (backend{g}).Ping(ctx, api.ProbeRequest{Address: "203.0.113.9", Interval: 0.4}, func(e *api.ProbeEvent) error {
		if got = append(got, *e); e.Sent == 4 {
			stop()
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	const why = "203.0.113.9 does not answer on backbone: is it up, and on this link?"
	for i, want := range []api.ProbeEvent{{Event: "start"}, {Event: "sent", Seq: 1, Sent: 1}, {Event: "sent", Seq: 2, Sent: 2}, {Event: "sent", Seq: 3, Sent: 3, Remark: "either"}, {Event: "sent", Seq: 4, Sent: 4, Remark: why}, {Event: "end", Sent: 4, Remark: why}} {
		if i >= len(got) || got[i].Event != want.Event || got[i].Seq != want.Seq || got[i].Sent != want.Sent || want.Remark != "either" && got[i].Remark != want.Remark {
			t.Fatalf("event %d of %+v: want %+v", i, got, want)
		}
	}
}

// TestTraceroutePort: only UDP needs ports behind the one that is named.
func TestTraceroutePort(t *testing.T) {
	for _, c := range []struct {
		proto string
		port  int
		want  string // the error begins so; that of an address means that the port is good
	}{{"tcp", 65535, `"x" is not an address`}, {"tcp", 65536, "port 65536: want 1 to 65535"}, {"udp", 64895, `"x" is not an address`}, {"udp", 64896, "port 64896: want 1 to 64895"}, {"", 65000, "port 65000: want 1 to 64895"}} {
		if err := (backend{}).Traceroute(t.Context(), api.ProbeRequest{Address: "x", Proto: c.proto, Port: c.port}, nil); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s to port %d: %v, want %s", c.proto, c.port, err, c.want)
		}
	}
}

// TestAnswerFoundInATurnThatBeganBefore: the turn of a worker that finds an answer may have begun before another one sent the question. That is no reason to think it somebody else's, nor a negative time.
func TestAnswerFoundInATurnThatBeganBefore(t *testing.T) {
	for _, c := range []struct {
		at, ns uint64
		want   float64
	}{{5e6, 7.5e6, 2.5}, {5e6, 5e6, 0}, {5e6, 4.9e6, 0}} {
		if got := took(c.at, &pipeline.Answer{Ns: c.ns}); got != c.want {
			t.Errorf("sent at %d, found at %d: %g ms, want %g", c.at, c.ns, got, c.want)
		}
	}
}
