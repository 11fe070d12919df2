package host

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sort"
	"syscall"
	"time"
)

// tool runs with its own flags; what it returns is printed as JSON.
type tool struct {
	name, about string
	run         func(ctx context.Context, fs *flag.FlagSet, args []string) (any, error)
}

var tools = []tool{
	{"http-serve", "serves seeded bodies", httpServe},
	{"http-get", "downloads one and compares its SHA-256", httpGet},
	{"ping", "ICMP or ICMPv6 echo", ping},
	{"machine", "says how far the CPUs were there", machine},
	{"udp-echo", "echoes probes and counts them by tag", udpEcho},
	{"udp-probe", "a paced stream of probes to an echo", udpProbe},
	{"udp-sink", "counts a flood by tag and time", udpSink},
	{"udp-flood", "sends numbered packets at a rate", udpFlood},
	{"dns-serve", "a name server with one answer", dnsServe},
	{"dns-query", "asks it", dnsQuery},
	{"tcp-serve", "accepts connections and says who it is", tcpServe},
	{"tcp-connect", "tries one connection", tcpConnect},
	{"flows", "both ends of many paced flows, with every silence", flows},
	{"flows-new", "the inside of conversations that begin all the time", flowsNew},
	{"flows-remind", "the outside of them, which goes on sending to all", flowsRemind},
	{"udp-many", "begins very many conversations at a rate", udpMany},
	{"udp-mirror", "the outside of them", udpMirror},
	{"tcp-hold", "holds connections and says which are lost", tcpHold},
	{"tcp-open", "opens connections at a rate, keeps them and says which are lost", tcpOpen},
	{"tcp-exchange", "connects, asks, hears the reply and the end, again and again", exchange},
	{"tcp-exchange-serve", "the outside of it", exchangeServe},
	{"udp-turns", "asks and waits for the answer, again and again", turns},
	{"udp-turns-serve", "the outside of it", turnsServe},
	{"tcp-hold-serve", "the outside of them", tcpHoldServe},
}

// Main runs one tool and returns the exit status: 0 when it could measure, whatever it measured; 1 when it could not; 2 for a wrong call.
func Main(args []string) int {
	if len(args) > 0 {
		for _, t := range tools {
			if t.name == args[0] {
				return run(t, args[1:])
			}
		}
	}
	fmt.Fprintln(os.Stderr, "usage: demarc lab-host TOOL [flags]; tools:")
	for _, t := range tools {
		fmt.Fprintf(os.Stderr, "  %-12s %s\n", t.name, t.about)
	}
	return 2
}

func run(t tool, args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	fs := flag.NewFlagSet(t.name, flag.ContinueOnError)
	result, err := t.run(ctx, fs, args)
	if errors.Is(err, flag.ErrHelp) {
		return 2
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", t.name, err)
		return 1
	}
	if err := emit(result); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", t.name, err)
		return 1
	}
	return 0
}

func emit(v any) error { return json.NewEncoder(os.Stdout).Encode(v) }

// Ready is the first line of a server.
type Ready struct {
	Ready string `json:"ready"` // the address that it listens on
}

// serving tells the starter that addr listens and returns a context that ends with standard input or ctx.
func serving(ctx context.Context, addr string) (context.Context, error) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	return ctx, emit(Ready{addr})
}

// Latency is a distribution of times, in milliseconds.
type Latency struct {
	N    int     `json:"n"`
	Min  float64 `json:"min_ms"`
	P50  float64 `json:"p50_ms"`
	P90  float64 `json:"p90_ms"`
	P99  float64 `json:"p99_ms"`
	Max  float64 `json:"max_ms"`
	Mean float64 `json:"mean_ms"`
}

// latencyOf sorts d. Percentiles are of the nearest rank: with few samples P99 is the largest.
func latencyOf(d []time.Duration) Latency {
	if len(d) == 0 {
		return Latency{}
	}
	sort.Slice(d, func(i, j int) bool { return d[i] < d[j] })
	ms := func(x time.Duration) float64 { return float64(x) / 1e6 }
	rank := func(p int) float64 { return ms(d[min((len(d)*p+99)/100, len(d))-1]) }
	sum := time.Duration(0)
	for _, x := range d {
		sum += x
	}
	return Latency{N: len(d), Min: ms(d[0]), P50: rank(50), P90: rank(90), P99: rank(99), Max: ms(d[len(d)-1]),
		Mean: ms(sum) / float64(len(d))}
}

// sleepUntil waits for a moment or the end of ctx; false means that ctx ended.
func sleepUntil(ctx context.Context, t time.Time) bool {
	d := time.Until(t)
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
