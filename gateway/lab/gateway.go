package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
)

// gateway is the child process under test and its status interface.
type gateway struct {
	cmd    *exec.Cmd
	log    string
	ended  chan struct{} // closed when the process has been waited for; err is valid from then on
	err    error
	client http.Client
}

// startGateway runs BINARY run in the gateway's namespace and returns once it says that it is ready.
func startGateway(ctx context.Context, l *netlab.Lab, binary, breakStage string, f files) (*gateway, error) {
	args := []string{"run", "--node", f.node, "--policy", f.policy}
	if breakStage != "" {
		args = append(args, "--break", breakStage)
	}
	log, err := os.Create(f.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	g := &gateway{cmd: l.Command(netlab.GW, binary, args...), log: f.log, ended: make(chan struct{})}
	g.cmd.Stdout, g.cmd.Stderr = log, log
	g.client.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", f.socket)
	}}
	if err := g.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the gateway: %w", err)
	}
	go func() {
		g.err = g.cmd.Wait()
		close(g.ended)
	}()
	deadline := time.Now().Add(15 * time.Second)
	why := "no answer on its socket"
	for {
		if st, err := g.status(ctx); err == nil {
			if st.Ready {
				return g, nil
			}
			why = st.WhyNotReady
		}
		select {
		case <-g.ended:
			return nil, fmt.Errorf("the gateway ended before it was ready (%v):\n%s", g.err, g.lastLines())
		case <-ctx.Done():
			g.stop()
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			g.stop()
			return nil, fmt.Errorf("the gateway is not ready after 15 s: %s\n%s", why, g.lastLines())
		}
	}
}

// get decodes the answer to one question.
func (g *gateway) get(ctx context.Context, path string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://demarc"+path, nil)
	if err != nil {
		return err
	}
	resp, err := g.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", path, resp.Status, bytes.TrimSpace(body))
	}
	return json.Unmarshal(body, v)
}

func (g *gateway) status(ctx context.Context) (*api.Status, error) {
	st := new(api.Status)
	return st, g.get(ctx, api.PathStatus, st)
}

// stop asks the gateway to end, insists after 5 s, and returns how it ended. Calling it again returns the same.
func (g *gateway) stop() error {
	g.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-g.ended:
		return g.err
	case <-time.After(5 * time.Second):
		g.cmd.Process.Kill()
		<-g.ended
		return errors.New("the gateway did not end within 5 s of SIGTERM")
	}
}

// lastLines is the end of the gateway's log.
func (g *gateway) lastLines() string {
	b, err := os.ReadFile(g.log)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-10):], []byte("\n")))
}
