package api

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// TestTurns: one at a time for each tenant, a rest of four times the answer, and no queue without end. Another tenant notices nothing.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s turns
		busy, answers := 0, 0
		ask := func(tenant string, long time.Duration) error {
			done, err := s.take(t.Context(), tenant)
			if err != nil {
				return err
			}
			if busy++; tenant == "alpha" && busy > 1 {
				t.Error("two at a time")
			}
			time.Sleep(long)
			busy--
			answers++
			done()
			return nil
		}
		begin := time.Now()
		for range 6 {
			if err := ask("alpha", 100*time.Millisecond); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(begin); took != 5*500*time.Millisecond+100*time.Millisecond {
			t.Errorf("six answers of 0.1 s took %s", took)
		}
		begin = time.Now()
		if err := ask("beta", time.Millisecond); err != nil || time.Since(begin) != time.Millisecond {
			t.Errorf("beside it: %v, %s", err, time.Since(begin))
		}
		// A slow one does not make the next wait for minutes.
		_ = ask("alpha", time.Minute)
		begin = time.Now()
		if _ = ask("alpha", 0); time.Since(begin) != longestRest {
			t.Errorf("after a minute's answer: %s", time.Since(begin))
		}
		time.Sleep(time.Minute)
		// A crowd: those beyond the queue are told so at once, and it comes to an end.
		answers = 0
		refused := make(chan error, 20)
		for range 20 {
			go func() { refused <- ask("alpha", time.Second) }()
		}
		n := 0
		for range 20 {
			if err := <-refused; err != nil {
				if n++; statusOf(err) != http.StatusTooManyRequests {
					t.Error(err)
				}
			}
		}
		if n != 20-turnQueue || answers != turnQueue {
			t.Errorf("of 20 at a time %d refused, %d answered", n, answers)
		}
		// Who gives up leaves no place taken.
		done, err := s.take(t.Context(), "alpha")
		if err != nil {
			t.Fatal(err)
		}
		for range 3 * turnQueue {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			if _, err := s.take(ctx, "alpha"); err != context.DeadlineExceeded {
				t.Error(err)
			}
			cancel()
		}
		done()
		if err := ask("alpha", 0); err != nil {
			t.Error(err)
		}
	})
}
