package replica

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// reader gives a byte at a time, as a connection may.
func reader(b []byte) *bufio.Reader {
	return bufio.NewReaderSize(oneByte{bytes.NewReader(b)}, MaxFrame)
}

type oneByte struct{ r io.Reader }

func (o oneByte) Read(b []byte) (int, error) { return o.r.Read(b[:min(len(b), 1)]) }

// TestWireGoesThere: what one end writes the other one reads, in order, however it is cut up on its way.
func TestWireGoesThere(t *testing.T) {
	h := Hello{Version: WireVersion, Streams: 3, Life: 1 << 60}
	out := h.Append(nil)
	if len(out) != HelloLen {
		t.Fatalf("a hello has %d bytes, want %d", len(out), HelloLen)
	}
	frames := [][]byte{stream(), stream()}
	for _, f := range frames {
		out = append(out, f...)
	}
	r := reader(out)
	if got, err := ReadHello(r); err != nil || got != h {
		t.Fatalf("hello %+v, %v", got, err)
	}
	for i, f := range frames {
		if got, err := ReadFrame(r); err != nil || !bytes.Equal(got, f) {
			t.Fatalf("frame %d: %d bytes, want %d: %v", i, len(got), len(f), err)
		}
	}
	if _, err := ReadFrame(r); !errors.Is(err, io.EOF) {
		t.Errorf("after the last frame: %v", err)
	}
	answers := []Answer{{Stream: 1, Anew: true}, {Life: 7, Stream: 2, Seq: 9, Groups: []GroupAnswer{{Group: 3, Want: true, Round: 4, Equal: 5, Missing: 6, Why: Full}}}}
	var back []byte
	for i := range answers {
		back = AppendAnswer(back, &answers[i])
	}
	r = reader(AppendRefusal(back, "another node owns it"))
	for i := range answers {
		if got, err := ReadAnswer(r); err != nil || cmp.Diff(answers[i], got) != "" {
			t.Errorf("answer %d: %v %s", i, err, cmp.Diff(answers[i], got))
		}
	}
	_, err := ReadAnswer(r)
	if said := Refused(""); !errors.As(err, &said) || said != "another node owns it" {
		t.Errorf("a refusal reads as %v", err)
	}
}

// TestWireRefusesOthers: what is none of ours, too long, of another version or cut off is told in words that say what would be right, and never taken as something.
func TestWireRefusesOthers(t *testing.T) {
	hello := func(h Hello) []byte { return h.Append(nil) }
	good := Hello{WireVersion, 1, 1}
	later, none, many, dead := good, good, good, good
	later.Version, none.Streams, many.Streams, dead.Life = WireVersion+1, 0, MaxStreams+1, 0
	read := map[string]func(Peeker) error{
		"hello":  func(r Peeker) error { _, err := ReadHello(r); return err },
		"answer": func(r Peeker) error { _, err := ReadAnswer(r); return err },
		"frame":  func(r Peeker) error { _, err := ReadFrame(r); return err },
	}
	for _, c := range []struct {
		what string
		b    []byte
		want string
	}{
		{"hello", []byte("GET / HTTP/1.1\r\n"), "do not begin a session stream"},
		{"hello", hello(later), "bring both to the same release"},
		{"hello", hello(none), "0 streams, want 1 to 256"},
		{"hello", hello(many), "257 streams, want 1 to 256"},
		{"hello", hello(dead), "life 0"},
		{"hello", hello(good)[:15], "EOF"},
		{"answer", []byte{0, 0, 1, 0, 0}, "65536 bytes long: want 2 to 32768"},
		{"answer", []byte{0, 0, 0, 0}, "0 bytes long"},
		{"answer", []byte{255, 255, 255, 255}, "want 2 to 32768"},
		{"answer", []byte{2, 0, 0, 0, 'x', 'y'}, "no answer about a session stream"},
		{"answer", AppendAnswer(nil, &Answer{})[:20], "EOF"},
		{"frame", bytes.Repeat([]byte("garbage "), 8), "this is no session stream"},
		{"frame", stream()[:len(stream())-1], "EOF"},
	} {
		if err := read[c.what](reader(c.b)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %q: %v, want %q", c.what, c.b, err, c.want)
		}
	}
	long := strings.Repeat("x", 5000)
	if err := read["answer"](reader(AppendRefusal(nil, long))); err == nil || !strings.HasSuffix(err.Error(), strings.Repeat("x", maxRefusal)) || len(err.Error()) > maxRefusal+100 {
		t.Errorf("a refusal of 5000 bytes reads as one of %d", len(err.Error()))
	}
}

// FuzzWire: no bytes of a peer do more than end the connection, and never more than the longest frame is waited for.
func FuzzWire(f *testing.F) {
	f.Add((&Hello{WireVersion, 2, 3}).Append(nil))
	f.Add(AppendRefusal(AppendAnswer(nil, &Answer{Life: 1}), "no"))
	f.Add(stream())
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, read := range []func(Peeker) error{
			func(r Peeker) error { _, err := ReadHello(r); return err },
			func(r Peeker) error { _, err := ReadAnswer(r); return err },
			func(r Peeker) error { _, err := ReadFrame(r); return err },
		} {
			r := bufio.NewReaderSize(bytes.NewReader(b), MaxFrame)
			for read(r) == nil {
			}
		}
	})
}
