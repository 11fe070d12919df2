package undo

// Log is what has to be put back.
type Log struct{ back []func() }

// Keep remembers what p points to. To be called before each write, or once before several.
func Keep[T any](l *Log, p *T) {
	if l != nil {
		keep(l, p)
	}
}

func keep[T any](l *Log, p *T) {
	was := *p
	l.back = append(l.back, func() { *p = was })
}

// Then remembers something else that Undo has to do.
func (l *Log) Then(fn func()) {
	if l != nil {
		l.back = append(l.back, fn)
	}
}

// Undo puts everything back, the last first.
func (l *Log) Undo() {
	for i := len(l.back) - 1; i >= 0; i-- {
		l.back[i]()
	}
	l.back = nil
}
