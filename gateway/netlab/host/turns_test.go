package host

import (
	"flag"
	"net"
	"testing"
	"time"
)

// Each question has one answer: another copy of it is told apart from one that comes late, which is the first to a question that was given up.
func TestTurnsTellDoubledAndLateAnswersApart(t *testing.T) {
	for _, x := range []struct {
		name, patience string
		serve          func(n int, answer func())
		again          bool
	}{
		{"once", "1s", func(_ int, answer func()) { answer() }, false},
		{"twice", "1s", func(_ int, answer func()) { answer(); answer() }, true},
		{"late", "30ms", func(n int, answer func()) {
			if n == 20 {
				time.Sleep(60 * time.Millisecond)
			}
			answer()
		}, false},
	} {
		t.Run(x.name, func(t *testing.T) {
			s, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			go func() {
				var asked, out [turnBytes]byte
				for n := 0; ; n++ {
					_, from, err := s.ReadFromUDP(asked[:])
					if err != nil {
						return
					}
					x.serve(n, func() {
						reply(out[:], asked[:])
						_, _ = s.WriteToUDP(out[:], from)
					})
				}
			}()
			got, err := turns(t.Context(), flag.NewFlagSet("", flag.ContinueOnError), []string{"-dst", s.LocalAddr().String(), "-from", "127.0.0.1", "-duration", "150ms", "-patience", x.patience})
			if err != nil {
				t.Fatal(err)
			}
			r := got.(Turned)
			if r.Done < 20 || r.Wrong > 0 || x.again != (r.Again > 0) || x.name == "late" && r.Lost == 0 {
				t.Errorf("%+v", r)
			}
		})
	}
}
