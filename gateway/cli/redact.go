package cli

import (
	"bytes"
	"regexp"
)

// leftOut stands in an archive where something secret stood.
const leftOut = "(left out)"

// What a secret is called, as part of a key in TOML, JSON or a log line, and what one looks like whatever it is called.
const secretWord = `(?:passw(?:or)?d|passphrase|[_-]pass|secret|token|psk|(?:private|preshared|pre_shared|shared|api|auth|encryption|access|tls|ssh)[_.-]?key|community|credential|cookie|bearer)`

var (
	secretKey     = regexp.MustCompile(`(?i)(?:^|[\s{,;?&#"'.\[])["']?[\w.-]*` + secretWord + `s?[\w-]*["']?[ \t]*[:=][ \t]*`)
	secretSection = regexp.MustCompile(`(?i)^\s*\[+[^\]]*` + secretWord + `[^\]]*\]+`)
	anySection    = regexp.MustCompile(`^\s*\[+[\w."' -]+\]+\s*(?:#.*)?$`)
	anyKey        = regexp.MustCompile(`^\s*[\w."'-]+[ \t]*=[ \t]*`)
	secretLooks   = []*regexp.Regexp{
		regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----.*?(?:-----END [A-Z0-9 ]*-----|\z)`),
		regexp.MustCompile(`\b[A-Za-z0-9+/]{43}=`),                                         // a key of 32 bytes, as WireGuard writes one
		regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}`), // a JSON web token
		regexp.MustCompile(`\bAGE-SECRET-KEY-1[A-Z0-9]+`),
		regexp.MustCompile(`(?i)\b(?:basic|bearer) [A-Za-z0-9+/_=.-]{8,}`),
		regexp.MustCompile(`\$(?:1|2[aby]|5|6|y|argon2id?)\$[^\s"']+`), // a hashed password
	}
	userInfo = regexp.MustCompile(`([a-z][a-z0-9+.-]*://)[^/\s"'@]+@`)
)

// redact leaves secrets out of a text: values by the name of their key (TOML, JSON, key=value), all values of a section so named, and what looks
// like a secret under any name. It returns how many.
func redact(text []byte) (out []byte, n int) {
	for _, r := range secretLooks {
		text = r.ReplaceAllFunc(text, func([]byte) []byte { n++; return []byte(leftOut) })
	}
	text = userInfo.ReplaceAllFunc(text, func(m []byte) []byte {
		n++
		return userInfo.ReplaceAll(m, []byte("${1}"+leftOut+"@"))
	})
	inSecret := false
	for len(text) > 0 {
		end := len(text)
		if i := bytes.IndexByte(text, '\n'); i >= 0 {
			end = i + 1
		}
		line := text[:end]
		if secretSection.Match(line) {
			inSecret = true
		} else if anySection.Match(bytes.TrimRight(line, "\r\n")) {
			inSecret = false
		}
		at := secretKey.FindIndex(line)
		if at == nil && inSecret {
			at = anyKey.FindIndex(line)
		}
		if at == nil {
			out = append(out, line...)
			text = text[end:]
			continue
		}
		out = append(out, text[:at[1]]...)
		comment := bytes.IndexByte(text[:at[1]], '#') >= 0
		size := valueSize(text[at[1]:], comment)
		v := text[at[1] : at[1]+size]
		if string(v) == `"`+leftOut+`"` || string(v) == leftOut { // found by its looks already
			out = append(out, v...)
		} else if len(bytes.TrimSpace(v)) > 0 {
			out = append(out, '"')
			out = append(out, leftOut...)
			out = append(out, '"')
			n++
		}
		text = text[at[1]+size:]
	}
	return out, n
}

// valueSize is how many bytes the value at the beginning of b takes: a string of one or more lines, an array or table, or what stands there.
func valueSize(b []byte, comment bool) int {
	line := len(b)
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		line = i
	}
	if comment { // whatever the rest of it is
		return line
	}
	if len(b) == 0 {
		return 0
	}
	switch b[0] {
	case '"', '\'':
		return stringSize(b)
	case '[', '{':
		depth := 0
		for i := 0; i < len(b); {
			switch b[i] {
			case '"', '\'':
				i += stringSize(b[i:])
				continue
			case '[', '{':
				depth++
			case ']', '}':
				if depth--; depth == 0 {
					return i + 1
				}
			}
			i++
		}
		return len(b)
	}
	if i := bytes.IndexAny(b[:line], " \t,;}]&\"'"); i >= 0 {
		return i
	}
	return line
}

// stringSize is the size of a quoted string. One that does not end takes all there is: better too much.
func stringSize(b []byte) int {
	q := b[0]
	if three := bytes.Repeat([]byte{q}, 3); bytes.HasPrefix(b, three) {
		if i := bytes.Index(b[3:], three); i >= 0 {
			return i + 6
		}
		return len(b)
	}
	for i := 1; i < len(b); i++ {
		switch {
		case b[i] == '\\' && q == '"':
			i++
		case b[i] == q:
			return i + 1
		case b[i] == '\n':
			return len(b)
		}
	}
	return len(b)
}
