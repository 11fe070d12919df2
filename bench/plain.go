package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"demarc/gateway/xsk"
)

// plain is the kernel that only forwards: no rules, no connection tracking, no translation. It does less than the others, so it is what they can be held against and no rival.
type plain struct {
	r       *room
	threads []int // NAPI
}

func (p *plain) name() string { return sideKernel }
func (p *plain) pids() []int  { return p.threads }
func (p *plain) hops() int    { return 1 }

func (p *plain) config() string {
	w := waysOf(&p.r.plan)
	return fmt.Sprintf("forwarding on, no nftables, no connection tracking; sources stay as they are\nip route add %s via %s dev %s\nip route add %s via %s dev %s\n%s", w.inside, w.insideVia, devIn, w.outside, w.outsideVia, devOut, kernelDevices)
}

// kernelDevices is what the devices of all of the kernel's sides have.
var kernelDevices = fmt.Sprintf("gro on on both devices, tso and tx checksumming off; NAPI of %s in a thread on CPU %d (where frames come from the outside too, %s's as well)\n", devIn, deviceCPU, devOut)

func (p *plain) start(ctx context.Context) (err error) {
	if p.threads, err = p.r.interrupts(); err != nil {
		return err
	}
	return errors.Join(p.r.forwarding(true), ctx.Err())
}

func (p *plain) stop() error {
	p.threads = nil
	return errors.Join(p.r.forwarding(false), p.r.noInterrupts())
}

func (p *plain) sessions(context.Context) (int, error)        { return 0, nil }
func (p *plain) missing(context.Context, int) (string, error) { return "", nil }
func (k *kernel) config() string                              { return withoutList(k.ruleset) + kernelDevices }
func (d *demarc) config() string {
	policy, err := d.policy()
	if err != nil {
		return err.Error() // start has made the same
	}
	return d.node() + "\n" + withoutRules(policy)
}

// withoutRules leaves the access list out and says how long it is.
func withoutRules(policy string) string {
	head, list, _ := strings.Cut(policy, "[[tenant.rule]]")
	n := strings.Count(list, "[[tenant.rule]]")
	if list != "" {
		n++
	}
	return fmt.Sprintf("%s# access list: %d rules\n", head, n)
}

// testpmd is DPDK's own forwarder on AF_XDP sockets: it looks into no packet and only changes MAC addresses, so it shows what moving frames through AF_XDP costs by itself.
type testpmd struct {
	r     *room
	cmd   *exec.Cmd
	stdin io.WriteCloser
	ended chan struct{}
	err   error
}

const (
	testpmdProgram = "dpdk-testpmd"
	testpmdLog     = "testpmd.log"
	noTestpmd      = "the program dpdk-testpmd is not there: apt-get install dpdk-dev librte-net-af-xdp23"
)

func (d *testpmd) name() string { return sideTestpmd }
func (d *testpmd) hops() int    { return 0 }
func (d *testpmd) pids() []int {
	if d.cmd == nil {
		return nil
	}
	return []int{d.cmd.Process.Pid}
}

// args of testpmd. The main lcore only waits for the end of standard input; the other one polls.
func (d *testpmd) args() []string {
	args := []string{"-v", "--no-huge", "-m", "256", "--no-pci", "--no-telemetry", "--no-shconf", "-l", fmt.Sprintf("%d,%d", makerCPU, deviceCPU), "--main-lcore", fmt.Sprint(makerCPU)}
	for i, dev := range []string{devIn, devOut} {
		args = append(args, "--vdev", fmt.Sprintf("net_af_xdp%d,iface=%s", i, dev))
	}
	return append(args, "--", "--forward-mode=mac", "--eth-peer=0,"+macSrc.String(), "--eth-peer=1,"+macDst.String(), "--auto-start", "--disable-link-check", "--total-num-mbufs=16384")
}

func (d *testpmd) config() string {
	return "MAC addresses are changed and nothing else: no routes, no rules, no sessions; both devices gro off\n" + testpmdProgram + " " + strings.Join(d.args(), " ") + "\n"
}

// probe starts it once and ends it, and says what version it is; an error says why it cannot take part.
func (d *testpmd) probe(ctx context.Context) (version string, err error) {
	if _, err := exec.LookPath(testpmdProgram); err != nil {
		return "", errors.New(noTestpmd)
	}
	err = d.start(ctx)
	b, _ := os.ReadFile(filepath.Join(dirRun, testpmdLog)) // without it there is an error already
	err = errors.Join(err, d.stop())
	return cmp.Or(string(regexp.MustCompile(`DPDK [0-9.]+[0-9]`).Find(b)), testpmdProgram), err
}

func (d *testpmd) start(ctx context.Context) error {
	cmd := d.r.Command(nsGW, testpmdProgram, d.args()...)
	logFile := filepath.Join(dirRun, testpmdLog)
	log, err := os.Create(logFile)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	// It writes no file of its own (--no-shconf), and what a library of its wants stays in the run's folder.
	cmd.Env = append(cmd.Env, "XDG_RUNTIME_DIR="+filepath.Join(dirRun, "dpdk"))
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if d.stdin, err = cmd.StdinPipe(); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start testpmd: %w", err)
	}
	ended := make(chan struct{})
	d.cmd, d.ended = cmd, ended
	go func() {
		d.err = cmd.Wait()
		close(ended)
	}()
	for end := time.Now().Add(15 * time.Second); ; {
		// Its own word that it forwards stays in its buffer until it ends. With the programs on both devices it is about to: what is lost until then is sent again.
		ready := 0
		for _, dev := range []string{devIn, devOut} {
			err := d.r.inside(nsGW, dev, func(i int) error {
				_, id, _, _, err := xsk.Attached(i)
				if id != 0 {
					ready++
				}
				return err
			})
			if err != nil {
				return err
			}
		}
		if ready == 2 {
			return nil
		}
		select {
		case <-ended:
			return fmt.Errorf("testpmd ended before it forwarded (%v):\n%s", d.err, lastLines(logFile))
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(end) {
			return fmt.Errorf("testpmd does not forward after 15 s:\n%s", lastLines(logFile))
		}
	}
}

func (d *testpmd) stop() error {
	if d.cmd == nil {
		return nil
	}
	var errs []error
	_ = d.cmd.Process.Signal(unix.SIGTERM) // it may have ended
	select {
	case <-d.ended:
	case <-time.After(5 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.ended
		errs = append(errs, errors.New("testpmd did not end within 5 s of SIGTERM"))
	}
	d.stdin.Close()
	d.cmd = nil
	for _, dev := range []string{devIn, devOut} {
		// It takes its programs off itself where it ends in order.
		errs = append(errs, d.r.Do(nsGW, func() error {
			link, err := netlink.LinkByName(dev)
			if err != nil {
				return err
			}
			return netlink.LinkSetXdpFd(link, -1)
		}))
	}
	return errors.Join(errs...)
}

func (d *testpmd) sessions(context.Context) (int, error)        { return 0, nil }
func (d *testpmd) missing(context.Context, int) (string, error) { return "", nil }
