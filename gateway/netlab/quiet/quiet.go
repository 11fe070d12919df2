package quiet

import (
	"fmt"
	"testing"
	"time"

	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
)

// Limits takes what a test finds too late, too slow or too little in its time.
type Limits struct{ missed []string }

// Missed says that a limit was missed.
func (l *Limits) Missed(format string, args ...any) {
	l.missed = append(l.missed, fmt.Sprintf(format, args...))
}

const tries = 5

// Judge runs once, and takes the limits that it misses for faults of the test if the machine was there all the while. If it was not, they say nothing: that is written into
// the log of the run, and once runs again, after a pause that grows, until the limits are held or the machine was there; but not for ever, and then they are faults all the same.
// What once reports to t itself counts at once.
func Judge(t testing.TB, once func(l *Limits)) {
	t.Helper()
	judge(t, tries, time.Sleep, watch, once)
}

// watch starts to look, and the function that it returns ends that.
func watch() (func() (host.Machine, error), error) {
	s, err := netlab.WatchMachine()
	if err != nil {
		return nil, err
	}
	return func() (m host.Machine, err error) {
		err = s.Stop(&m)
		return m, err
	}, nil
}

func judge(t testing.TB, tries int, sleep func(time.Duration), watch func() (func() (host.Machine, error), error), once func(l *Limits)) {
	t.Helper()
	for try := 1; ; try++ {
		seen, err := watch()
		if err != nil {
			t.Fatalf("watch the machine: %v", err)
		}
		var l Limits
		func() {
			defer func() { // also where once ends the test
				if m, e := seen(); e != nil {
					err = e
				} else if t.Logf("%s", m); !m.Disturbed() || t.Failed() { // a test that has failed learns nothing from another try
					try = tries
				}
			}()
			once(&l)
		}()
		if err != nil {
			t.Fatalf("watch the machine: %v", err)
		}
		if len(l.missed) == 0 {
			return
		}
		if try >= tries {
			for _, m := range l.missed {
				t.Error(m)
			}
			return
		}
		// testrun prints what begins so of tests that pass too.
		t.Logf("figure: not judged, try %d of %d, since the machine was elsewhere meanwhile: %q", try, tries, l.missed)
		sleep(time.Duration(2*try) * time.Second)
	}
}
