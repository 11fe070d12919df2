package e2e

import (
	"testing"

	"demarc/gateway/netlab/host"
)

// The switches of the node file reach the sockets, and traffic passes under each: kernel told or not told to look, busy poll, small bursts.
func TestWorkerOptionsCarryTraffic(t *testing.T) {
	for _, c := range []struct {
		name, workers string
		needWakeup    bool
	}{
		{"plain", "", true},
		{"nowake", "[workers]\nneed_wakeup = false\n", false},
		{"busypoll", "[workers]\nbusy_poll = \"50us\"\nbatch = 8\nspin = \"1ms\"\n", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, "opt"+c.name, rigPolicy("", ""))
			r.write(r.node, rigNode(r.data, r.socket, c.workers))
			r.start()
			r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
			var p host.Probe
			r.wait(r.spawn(r.Alpha1.Name, &p, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "1000", "-duration", "1s"))
			t.Logf("%d of %d, p50 %.3f ms, p99 %.3f ms", p.Received, p.Sent, p.RTT.P50, p.RTT.P99)
			if p.Sent < 750 || p.Received != p.Sent {
				t.Errorf("%d of %d came back, not %d; dropped %v", p.Received, p.Sent, p.Lost, r.status().Drops)
			}
			st := r.status()
			if !st.Ready || !st.Conservation.OK {
				t.Errorf("ready %v, frames: %s", st.Ready, st.Conservation.Detail)
			}
			for _, port := range st.Ports {
				for _, q := range port.Queues {
					if q.NeedWakeup != c.needWakeup {
						t.Errorf("port %s queue %d: need-wakeup %v, want %v", port.Name, q.Queue, q.NeedWakeup, c.needWakeup)
					}
				}
			}
			r.stop()
		})
	}
}
