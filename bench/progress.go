package bench

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

// progress says how far a run of the suite is. On a terminal it is one line with a bar, written over; elsewhere it is lines, those of the scenarios among
// them. All lines go to the log too.
type progress struct {
	w     io.Writer // of a person
	log   io.Writer
	width int // of the terminal; 0 = it is none
	stop  chan struct{}
	done  chan struct{}
	now   func() time.Time

	mu       sync.Mutex
	scale    timeScale
	count    int // scenarios
	at       int // the one that runs, from 1
	name     string
	expected float64
	began    time.Time // of it
	last     string    // line
	rest     []byte    // of a line that has not ended
}

// timeScale guesses how long a run goes on, from what its parts should take and from what they took.
type timeScale struct {
	total, done, took float64 // seconds: all parts should take, the ended ones should have taken, and took
}

// left is the guess while a part that should take expected seconds runs since elapsed.
func (s timeScale) left(expected, elapsed float64) (seconds, part float64) {
	scale := 1.0
	if s.done > 30 { // a short part says little of the others
		scale = min(3, max(0.5, s.took/s.done))
	}
	// A part that takes longer than it should is always about to end.
	here := max(expected*scale-elapsed, min(5, expected*scale))
	if expected == 0 {
		here = 0
	}
	seconds = here + max(0, s.total-s.done-expected)*scale
	if gone := s.took + elapsed; gone+seconds > 0 {
		part = gone / (gone + seconds)
	}
	return seconds, part
}

func newProgress(w, log io.Writer, count int, total float64) *progress {
	p := &progress{w: w, log: log, count: count, scale: timeScale{total: total}, now: time.Now, stop: make(chan struct{}), done: make(chan struct{})}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.width = 80
		if n, _, err := term.GetSize(int(f.Fd())); err == nil && n > 20 {
			p.width = n
		}
	}
	go p.tick()
	return p
}

func (p *progress) tick() {
	defer close(p.done)
	if p.width == 0 {
		return
	}
	t := time.NewTicker(500 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-t.C:
			p.mu.Lock()
			p.draw()
			p.mu.Unlock()
		}
	}
}

// close removes the bar.
func (p *progress) close() {
	close(p.stop)
	<-p.done
	if p.width > 0 {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

// begin notes that a scenario begins that should take so long.
func (p *progress) begin(name string, expected float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at++
	p.name, p.expected, p.began, p.last = name, expected, p.now(), ""
	left, _ := p.scale.left(expected, 0)
	p.line(fmt.Sprintf("%d of %d: %s, some %s; %s left in all", p.at, p.count, name, span(expected), span(left)))
}

// end notes that it has ended.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.scale.done += p.expected
	p.scale.took += p.now().Sub(p.began).Seconds()
	p.expected, p.began = 0, p.now()
}

// say is a line of the suite itself.
func (p *progress) say(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.line(text)
}

// Write takes the lines of a scenario.
func (p *progress) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rest = append(p.rest, b...)
	for {
		i := bytes.IndexByte(p.rest, '\n')
		if i < 0 {
			return len(b), nil
		}
		p.line("  " + string(p.rest[:i]))
		p.rest = p.rest[i+1:]
	}
}

func (p *progress) line(text string) {
	fmt.Fprintln(p.log, text)
	p.last = strings.TrimSpace(text)
	if p.width == 0 {
		fmt.Fprintln(p.w, text)
		return
	}
	p.draw()
}

// draw writes the bar.
func (p *progress) draw() {
	elapsed := 0.0
	if !p.began.IsZero() {
		elapsed = p.now().Sub(p.began).Seconds()
	}
	left, part := p.scale.left(p.expected, elapsed)
	fmt.Fprint(p.w, "\r"+bar(p.width, part, left, p.at, p.count, p.name, p.last)+"\x1b[K")
}

// bar is the line, at most width wide.
func bar(width int, part, left float64, at, count int, name, last string) string {
	const cells = 20
	full := min(cells, max(0, int(part*cells+0.5)))
	s := fmt.Sprintf("[%s%s] %3.0f %%  %s left  %d/%d %s: %s", strings.Repeat("█", full), strings.Repeat("░", cells-full), 100*part, span(left), at, count, name, last)
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if most := width - 1; utf8.RuneCountInString(s) > most {
		s = string([]rune(s)[:most-1]) + "…"
	}
	return s
}

// span is a time as people say it: "45 s", "6:30 min", "3:05 h".
func span(seconds float64) string {
	n := int(seconds + 0.5)
	switch {
	case n < 100:
		return fmt.Sprintf("%d s", n)
	case n < 5400:
		return fmt.Sprintf("%d:%02d min", n/60, n%60)
	}
	n /= 60
	return fmt.Sprintf("%d:%02d h", n/60, n%60)
}
