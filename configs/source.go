package configs

import (
	"fmt"
	"strings"
)

// What a file may hold. The TOML parser recurses once per bracket and a name in a policy is never longer than a line, so
// both are bounded before it sees the text.
const (
	MaxBytes  = 8 << 20
	maxDepth  = 16
	maxDotted = 8
)

// pos is where a value stands in the text, and its parts. The TOML library knows no positions of decoded values, so this
// tree is read from the same text beside it.
type pos struct {
	line  int
	keys  []keyPos
	index map[string]*pos // only when there are many keys
	elems []*pos
}

type keyPos struct {
	name string
	at   *pos
}

func (p *pos) child(name string) *pos {
	if p.index != nil {
		return p.index[name]
	}
	for i := range p.keys {
		if p.keys[i].name == name {
			return p.keys[i].at
		}
	}
	return nil
}

// descend returns the child, made if it is not there yet.
func (p *pos) descend(name string, line int) *pos {
	if c := p.child(name); c != nil {
		return c
	}
	c := &pos{line: line}
	p.keys = append(p.keys, keyPos{name, c})
	switch {
	case p.index != nil:
		p.index[name] = c
	case len(p.keys) > 16:
		p.index = make(map[string]*pos, 2*len(p.keys))
		for _, k := range p.keys {
			p.index[k.name] = k.at
		}
	}
	return c
}

// scanner reads positions from TOML text. On text that is not TOML it stops somewhere; the parser then says what is wrong.
type scanner struct {
	text string
	at   int
	line int
	err  string // a bound that the text breaks
}

// scan returns the positions of everything in text; bound says which limit was broken, "" if none, at which line.
func scan(text string) (root *pos, bound string, line int) {
	root = &pos{line: 1}
	s := &scanner{text: text, line: 1}
	cur := root
	for s.err == "" {
		s.blank(true)
		if s.at >= len(s.text) {
			break
		}
		line := s.line
		if s.peek() == '[' {
			s.at++
			list := s.peek() == '['
			if list {
				s.at++
			}
			s.blank(false)
			parts, ok := s.key()
			if !ok {
				break
			}
			cur = root
			for i, name := range parts {
				cur = cur.descend(name, line)
				if list && i == len(parts)-1 {
					cur.elems = append(cur.elems, &pos{line: line})
				}
				if n := len(cur.elems); n > 0 {
					cur = cur.elems[n-1]
				}
			}
			s.restOfLine()
			continue
		}
		if !s.pair(cur, 0) {
			break
		}
		s.restOfLine()
	}
	return root, s.err, s.line
}

func (s *scanner) peek() byte {
	if s.at < len(s.text) {
		return s.text[s.at]
	}
	return 0
}

// blank skips white space, and with lines also comments and line ends.
func (s *scanner) blank(lines bool) {
	for s.at < len(s.text) {
		switch c := s.text[s.at]; {
		case c == ' ' || c == '\t':
			s.at++
		case lines && c == '\n':
			s.line++
			s.at++
		case lines && c == '\r':
			s.at++
		case lines && c == '#':
			s.comment()
		default:
			return
		}
	}
}

func (s *scanner) comment() {
	if n := strings.IndexByte(s.text[s.at:], '\n'); n >= 0 {
		s.at += n
	} else {
		s.at = len(s.text)
	}
}

// restOfLine skips what may follow a header or a value.
func (s *scanner) restOfLine() {
	s.comment()
}

// pair reads key = value into t.
func (s *scanner) pair(t *pos, depth int) bool {
	line := s.line
	parts, ok := s.key()
	if !ok {
		return false
	}
	for _, name := range parts {
		t = t.descend(name, line)
	}
	s.blank(false)
	if s.peek() != '=' {
		return false
	}
	s.at++
	s.blank(false)
	return s.value(t, depth)
}

// key reads a dotted key.
func (s *scanner) key() (parts []string, ok bool) {
	for {
		s.blank(false)
		var name string
		switch c := s.peek(); {
		case c == '"' || c == '\'':
			from := s.at + 1
			if !s.quoted() {
				return nil, false
			}
			// Escapes in a key are left as they are: its position is then not found and the line around it is named.
			name = s.text[from : s.at-1]
		default:
			from := s.at
			for s.at < len(s.text) && bare(s.text[s.at]) {
				s.at++
			}
			if s.at == from {
				return nil, false
			}
			name = s.text[from:s.at]
		}
		parts = append(parts, name)
		if len(parts) > maxDotted {
			s.err = fmt.Sprintf("a key has more than %d parts", maxDotted)
			return nil, false
		}
		s.blank(false)
		if s.peek() != '.' {
			return parts, true
		}
		s.at++
	}
}

func bare(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' || c >= 0x80
}

// quoted skips a string on one line, whose opening quote is next.
func (s *scanner) quoted() bool {
	q := s.text[s.at]
	s.at++
	for s.at < len(s.text) {
		switch c := s.text[s.at]; {
		case c == '\\' && q == '"':
			s.at += 2
		case c == q:
			s.at++
			return true
		case c == '\n':
			return false
		default:
			s.at++
		}
	}
	s.at = len(s.text)
	return false
}

// long skips a string in three quotes.
func (s *scanner) long(q string) bool {
	s.at += 3
	for s.at < len(s.text) {
		switch c := s.text[s.at]; {
		case c == '\\' && q[0] == '"':
			if s.at+1 < len(s.text) && s.text[s.at+1] == '\n' {
				s.line++
			}
			s.at += 2
		case c == '\n':
			s.line++
			s.at++
		case strings.HasPrefix(s.text[s.at:], q):
			s.at += 3
			for n := 0; n < 2 && s.peek() == q[0]; n++ { // up to two quotes may stand before the closing three
				s.at++
			}
			return true
		default:
			s.at++
		}
	}
	s.at = len(s.text)
	return false
}

// value skips a value and notes where its parts are.
func (s *scanner) value(v *pos, depth int) bool {
	if depth > maxDepth {
		s.err = fmt.Sprintf("brackets are nested deeper than %d", maxDepth)
		return false
	}
	rest := s.text[s.at:]
	switch {
	case strings.HasPrefix(rest, `"""`):
		return s.long(`"""`)
	case strings.HasPrefix(rest, `'''`):
		return s.long(`'''`)
	case strings.HasPrefix(rest, `"`), strings.HasPrefix(rest, `'`):
		return s.quoted()
	case strings.HasPrefix(rest, "["):
		return s.parts(']', func() bool {
			e := &pos{line: s.line}
			v.elems = append(v.elems, e)
			return s.value(e, depth+1)
		})
	case strings.HasPrefix(rest, "{"):
		return s.parts('}', func() bool { return s.pair(v, depth+1) })
	}
	from := s.at
	for s.at < len(s.text) && !strings.ContainsRune(",]}#\r\n", rune(s.text[s.at])) {
		s.at++
	}
	return s.at > from
}

// parts reads what stands between brackets, separated by commas; each reads one.
func (s *scanner) parts(end byte, each func() bool) bool {
	s.at++
	for {
		s.blank(true)
		if s.peek() == end {
			s.at++
			return true
		}
		if s.at >= len(s.text) || !each() {
			return false
		}
		s.blank(true)
		switch s.peek() {
		case ',':
			s.at++
		case end:
		default:
			return false
		}
	}
}
