package conntrack

import (
	"bytes"
	"encoding/binary"
	"flag"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"demarc/gateway/flow"
	"demarc/gateway/netlab/roottest"
	"demarc/gateway/verdict"
)

// guarded is what of a session the sequence word guards; find.h asserts the same.
const guarded = unsafe.Offsetof(Session{}.LastSeen)

const (
	foundNone uint32 = iota
	foundIt
	foundUnsure
)

type question struct {
	Key       flow.Key
	Hash      uint64
	Meanwhile uint64 // the owner changes the session while it is read
}

type finding struct {
	Hash       uint64
	Found, Ref uint32
	Copy       [guarded]byte
}

// other is a session of few different values, so that keys differ in one field only.
func other(rng *rand.Rand) *Session {
	s := numbered(rng.IntN(4))
	s.Proto = []uint8{flow.TCP, flow.UDP}[rng.IntN(2)]
	s.OrigSPort, s.OrigDPort, s.XlatSPort, s.XlatDPort = uint16(rng.Uint32()), uint16(rng.IntN(9)), uint16(rng.Uint32()), uint16(rng.IntN(9))
	s.OrigDst[3], s.Tenant = byte(rng.IntN(9)), flow.TenantID(1+rng.IntN(3))
	s.NextHop, s.Rule, s.ViewGen, s.Mapping = [2]uint16{uint16(rng.Uint32()), uint16(rng.Uint32())}, flow.RuleID(rng.Uint32()), rng.Uint32(), rng.Uint32()
	if s.Flags&FlagV6 == 0 {
		s.XlatDst = [4]byte(s.OrigDst[:4])
	}
	return s
}

// changed is k with one field another one.
func changed(rng *rand.Rand, k flow.Key) flow.Key {
	switch rng.IntN(9) {
	case 0:
		k.Proto = flow.TCP + flow.UDP - k.Proto
	case 1:
		k.Family = 10 - k.Family
	case 2:
		k.Zone = (k.Zone + 1 + flow.TenantID(rng.IntN(3))) % 4
	case 3:
		k.SPort ^= 1 << rng.IntN(16)
	case 4:
		k.DPort ^= 1 << rng.IntN(16)
	case 5, 6:
		k.Src[rng.IntN(16)] ^= 1 << rng.IntN(8)
	default:
		k.Dst[rng.IntN(16)] ^= 1 << rng.IntN(8)
	}
	return k
}

// asked is a crowded table of which some sessions are just being written, and questions about it. last: all first keys belong into the last line of the index, so that
// some lie in the first one.
func asked(t *testing.T, rng *rand.Rand, capacity int, last bool) (*Table, []question) {
	tab, err := New(aligned(Bytes(capacity)), capacity, rng.Uint64())
	if err != nil {
		t.Fatal(err)
	}
	var keys []flow.Key
	for tab.Len() < capacity {
		s := other(rng)
		for k := s.Key(0); last && tab.home(tab.Hash(&k)) != tab.n-1; k = s.Key(0) {
			s = other(rng)
		}
		// The tag 0 means an empty place. The references of places that were never used name slot 0: who asked for the tag 0 would find a session there for the wrong reason.
		if tab.Len() == 1 {
			for k := s.Key(0); tab.Hash(&k)&0xffff != 0; k = s.Key(0) {
				s.OrigSPort, s.OrigSrc[3] = uint16(rng.Uint32()), byte(rng.Uint32())
			}
		}
		slot, r := tab.Create(s, 0, 1)
		if r == verdict.SessionCollision {
			continue
		}
		if r != verdict.Pass {
			t.Fatal(r)
		}
		keys = append(keys, s.Key(0), s.Key(1))
		switch rng.IntN(20) {
		case 0:
			if slot > 1 {
				tab.At(slot).BeginWrite()
			}
		case 1:
			if slot > 1 {
				tab.Remove(slot)
			}
		}
		if len(keys) > 4*capacity {
			break
		}
	}
	var qs []question
	ask := func(k flow.Key, h uint64) {
		q := question{Key: k, Hash: h}
		if rng.IntN(20) == 0 {
			q.Meanwhile = 1
		}
		qs = append(qs, q)
	}
	for _, k := range keys {
		h := tab.Hash(&k)
		qs = append(qs, question{Key: k, Hash: h})
		ask(k, h)
		for range 4 {
			ask(changed(rng, k), h) // under the tag of another: the key alone tells them apart
		}
		k = changed(rng, k)
		ask(k, tab.Hash(&k))
	}
	return tab, qs
}

// ask has the other executor answer.
func ask(t *testing.T, program string, tab *Table, qs []question) []finding {
	var in bytes.Buffer
	put := func(v any) {
		if err := binary.Write(&in, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	put([]uint64{tab.seed, tab.n, uint64(len(tab.sessions)), uint64(len(qs))})
	put(tab.sessions)
	in.Write(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(tab.buckets))), tab.n*bucketSize))
	put(qs)
	cmd := exec.Command(program)
	cmd.Stdin = &in
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", filepath.Base(program), err)
	}
	as := make([]finding, len(qs))
	if err := binary.Read(bytes.NewReader(out), binary.LittleEndian, as); err != nil {
		t.Fatal(err)
	}
	return as
}

// should is what the protocol asks for, read off the table.
func should(tab *Table, q *question) (found uint32, ref Ref) {
	at, tag, none := tab.home(q.Hash), uint16(tagOf(q.Hash)), foundNone
	for range 3 {
		b := &tab.buckets[at]
		for i := range bucketSlots {
			r := b.refs[i]
			if s := &tab.sessions[r.Slot()]; b.tag(i) != tag {
				continue
			} else if s.Seq&1 != 0 || q.Meanwhile != 0 {
				none = foundUnsure
			} else if s.Key(r.Dir()) == q.Key {
				return foundIt, r
			}
		}
		if b.passed() == 0 {
			return none, 0
		}
		at = (at + 1) % tab.n
	}
	return foundUnsure, 0
}

// differs counts the answers that are not as they should be.
func differs(tab *Table, qs []question, as []finding, met *[3]int) (n int) {
	for i := range qs {
		q, a := &qs[i], &as[i]
		found, ref := should(tab, q)
		met[found]++
		mine, ok := tab.Lookup(&q.Key, q.Hash)
		switch {
		case a.Hash != tab.Hash(&q.Key), a.Found != found:
			n++
		case found == foundNone && ok:
			n++
		case found == foundIt:
			s := (*[guarded]byte)(unsafe.Pointer(&tab.sessions[ref.Slot()]))
			// But for the sequence word, which an earlier question may have moved on.
			if Ref(a.Ref) != ref || !ok || mine != ref || !bytes.Equal(a.Copy[4:], s[4:]) {
				n++
			}
		}
	}
	return n
}

var all = flag.Bool("all-mutants", false, "try all changes of find.h, not a third that the seed draws")

// Another executor, written in C, finds what Lookup finds: never another session, never one that is being written. Each of its checks is needed: without it, it
// is caught.
func TestAnotherExecutorFindsTheSame(t *testing.T) {
	cc, err := exec.LookPath("clang")
	if err != nil {
		roottest.Missing(t, "clang, which .ci/setup.sh installs, to compile find.h (%v)", err)
	}
	header, err := os.ReadFile("find.h")
	if err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	compile := func(text string, flags ...string) string {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "find.h"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		program := filepath.Join(dir, "find")
		args := append([]string{"-std=gnu11", "-Wall", "-Wextra", "-I", dir, "-I", here, "-o", program}, flags...)
		if out, err := exec.Command(cc, args...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return program
	}
	native := filepath.Join(here, "testdata", "find.c")
	rng := seeded(t)
	sizes := append(slices.Repeat([]int{12}, 40), 3000)
	tabs, qs := make([]*Table, len(sizes)), make([][]question, len(sizes))
	for i, n := range sizes {
		tabs[i], qs[i] = asked(t, rng, n, i < 2)
	}
	wrong := func(program string, all bool) (n int, met [3]int) {
		for i := range slices.Backward(sizes) {
			if n += differs(tabs[i], qs[i], ask(t, program, tabs[i], qs[i]), &met); n > 0 && !all {
				break
			}
		}
		return n, met
	}

	n, met := wrong(compile(string(header), "-O2", "-Werror", native), true)
	t.Logf("none %d, found %d, unsure %d", met[foundNone], met[foundIt], met[foundUnsure])
	if n != 0 {
		t.Fatalf("%d answers differ", n)
	}
	if slices.Min(met[:]) < 1000 {
		t.Errorf("too little was met: %v", met)
	}
	for _, m := range [][2]string{ // a third of them each run, which the seed draws
		{"if (seq & 1)", "if (0)"},
		{"s->seq != seq)", "s->seq != seq && 0)"},
		{"k->proto != s->proto || ", ""},
		{"k->family != family || ", ""},
		{" || k->zone != zone", " || zone > 65535"},
		{"dir ? DEMARC_FLAG_TO_BACKBONE : ", ""},
		{"k->sport == s->orig_sport && ", ""},
		{"k->dport == s->orig_dport && ", ""},
		{"demarc_same16(k->src, s->orig_src) && ", ""},
		{" && demarc_same16(k->dst, s->orig_dst);", ";"},
		{"k->sport != s->xlat_dport || ", ""},
		{" || k->dport != s->xlat_sport", ""},
		{"demarc_same16(k->src, s->orig_dst) && ", ""},
		{" && demarc_same16(k->dst, s->orig_src);", ";"},
		{"demarc_same4(s->xlat_dst, k->src) && ", ""},
		{" && demarc_same4(s->xlat_src, k->dst);", ";"},
		{" && demarc_load(k + 8) == 0", ""},
		{"return demarc_load(k) ==", "return (demarc_u32)demarc_load(k) =="},
		{"(demarc_u16)h ? (demarc_u16)h : 1", "(demarc_u16)h"},
		{"if (!*(volatile demarc_u16 *)&b->passed)", "if (1)"},
		{"if (!*(volatile demarc_u16 *)&b->passed)", "if (0)"},
		{"DEMARC_LINES = 3", "DEMARC_LINES = 1"},
		{"DEMARC_LANES = 10", "DEMARC_LANES = 9"},
		{"if (++at == lines)", "if (++at == lines + 1)"},
		{"if (k->family == 6)", "if (0)"},
		{"(demarc_u32)mid;", "mid;"},
		{"(copy, s, DEMARC_GUARDED)", "(copy, s, DEMARC_GUARDED - 4)"},
	} {
		text := strings.Replace(string(header), m[0], m[1], 1)
		if text == string(header) {
			t.Errorf("there is no %q to be taken out", m[0])
			continue
		}
		if rng.IntN(3) != 0 && !*all {
			continue
		}
		if n, _ := wrong(compile(text, "-O1", native), false); n == 0 {
			t.Errorf("with %q instead of %q nothing differs", m[1], m[0])
		}
	}

	// It is for a BPF program: no wide multiplication, no call, no more stack than there is.
	compile(string(header), "-target", "bpf", "-mcpu=v3", "-O2", "-Werror", "-nostdinc", "-c", filepath.Join(here, "testdata", "find_bpf.c"))
}
