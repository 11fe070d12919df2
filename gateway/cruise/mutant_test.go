package cruise

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"demarc/gateway/netlab/roottest"
)

// mutants are changes of cruise.c, each of which takes a check out of a stage, or has it write something else. Whoever agrees with the pipeline in spite of one has not looked.
var mutants = []struct{ stage, is, becomes string }{
	{"receive", "ktime_get_boot_ns() + settings.ahead", "ktime_get_boot_ns() - settings.ahead"},
	{"receive", "e + 14 > end || e[0] & 1", "e + 14 > end"},
	{"receive", "!f || !f->used", "!f"},
	{"receive", "if (!takes(f, e))", "if (0)"},
	{"receive", "head == AT32(f->mac) && tail == AT16(f->mac + 4)", "head == AT32(f->mac)"},
	{"receive", "head == AT32(f->mac) && tail", "tail"},
	{"receive", "head == 0x005e0000 && ", "head != 0 && "},
	{"receive", "(kind == 1 || kind == 2) && ", ""},
	{"receive", "f->here[group >> 6 & 3] >> (group & 63) & 1", "1"},
	{"receive", "group >> 6 & 3", "group >> 7 & 3"},
	{"receive", "p->tci & 0xfff", "p->tci"},
	{"parse", "type == ETH_IP6 ? parse6(h, end, p) : UP_FRAME", "parse6(h, end, p)"},
	{"parse", "|| h[0] >> 4 != 4", ""},
	{"parse", "|| h[0] >> 4 != 6", ""},
	{"parse", "if (h[0] != 0x45)", "if (0)"},
	{"parse", "p->len < 20 || p->len > end - h", "p->len < 20"},
	{"parse", "p->len < 20 || p->len > end - h", "p->len > end - h"},
	{"parse", "if (n + 40 > end - h)", "if (0)"},
	{"parse", "if (fold(sum) != 0xffff)", "if (0)"},
	{"parse", "if (frag & 0x3fff)", "if (frag & 0x2000)"},
	{"parse", "if (frag & 0x3fff)", "if (frag & 0x1fff)"},
	{"parse", "(frag & 0x7fff) == 0x4000", "1"},
	{"parse", "(frag & 0x7fff) == 0x4000", "frag == 0x4000"},
	{"parse", "be16(AT16(t + 4)) < 8 || ", ""},
	{"parse", " || be16(AT16(t + 4)) > n)", ")"},
	{"parse", "if (off < 20 || off > n)", "if (off > n)"},
	{"parse", "if (off < 20 || off > n)", "if (off < 20)"},
	{"parse", "(FIN | SYN | RST | ACK)) != ACK", "(SYN | RST | ACK)) != ACK"},
	{"parse", "(FIN | SYN | RST | ACK)) != ACK", "(FIN | RST | ACK)) != ACK"},
	{"parse", "(FIN | SYN | RST | ACK)) != ACK", "(FIN | SYN | ACK)) != ACK"},
	{"parse", "(FIN | SYN | RST | ACK)) != ACK", "(FIN | SYN | RST)) != 0"},
	{"parse", "p->payload = n - off", "p->payload = n - 20"},
	{"sane", "return src != dst && ", "return "},
	{"sane", "src >> 24 && ", ""},
	{"sane", "src >> 24 != 127 && ", ""},
	{"sane", "src >> 28 < 0xe && ", ""},
	{"sane", "dst >> 24 && ", ""},
	{"sane", "dst >> 24 != 127 && ", ""},
	{"sane", "dst >> 28 < 0xe &&", ""},
	{"sane", "src >> 16 != 0xa9fe && ", ""},
	{"sane", " && dst >> 16 != 0xa9fe", ""},
	{"sane", "demarc_same16(s, d) || ", ""},
	{"sane", "s[0] == 0xff || ", ""},
	{"sane", "!AT32(s) || ", ""},
	{"sane", "!(s[0] == 0xfe && (s[1] & 0xc0) == 0x80) && ", ""},
	{"find", "down != ((u64)DOWN << 32 | copy->gen)", "!down"},
	{"find", "if (p->odd)", "if (0)"},
	{"find", "if (own && !(ONCE(own->down) >> 32 & UP))", "if (0)"},
	{"find", "(u64)UP << 32);", "0);"},
	{"find", "i < settings.workers", "i < 1"},
	{"find", "\tif (ref < 0)\n\t\tref = find", "\tif (ref < 0 && !p->key.zone)\n\t\tref = find"},
	{"find", "slot = n * settings.slots + ", "slot = "},
	{"find", "if (now >= ONCE(w->until))", "if (!ONCE(w->until))"},
	{"find", "!t || !t->used", "!t"},
	{"find", "if (!serves(t->group, now))", "if (0)"},
	{"serves", "now < ONCE(d->until)", "ONCE(d->until)"},
	{"serves", "return !group || ", "return "},
	{"find", "if (ONCE(w->up) | ONCE(w->held))", "if (0)"},
	{"find", "ONCE(w->up) | ", ""},
	{"find", " | ONCE(w->held)", ""},
	{"find", "if (ONCE(w->gen) != copy->view_gen)", "if (0)"},
	{"track", "ONCE(s->state) != TCP_ESTABLISHED || ", ""},
	{"track", " || scale_of(word, 1) & LEARNING", ""},
	{"track", "g->end = p->seq + p->payload", "g->end = p->seq"},
	{"track", "(u32)p->window << shift_of(word, dir)", "(u32)p->window"},
	{"track", "(u32)p->window << shift_of(word, dir)", "(u32)p->window << shift_of(word, o)"},
	{"track", "scale_of(word, 0) & TAKEN_OVER && ", ""},
	{"track", " && beyond <= reach(word, dir);", ";"},
	{"track", "> 1)\n\t\treturn UP_WINDOW", "> 2)\n\t\treturn UP_WINDOW"},
	{"track", "- reach(word, o) - 1)) < 0", "- reach(word, o))) < 0"},
	{"track", "- reach(word, o) - 1)) < 0", "- reach(word, dir) - 1)) < 0"},
	{"track", "if (behind > reach(word, dir) && !g->ahead)", "if (0)"},
	{"track", "if (behind > reach(word, dir) && !g->ahead)", "if (behind >= reach(word, dir) && !g->ahead)"},
	{"track", "scale_of(word, 0) & scale_of(word, 1) & OFFERED ?", "scale_of(word, dir) & OFFERED ?"},
	{"track", "n < 1 << 30 ? n : 1 << 30", "n"},
	{"advance", "\t\tall_acked(s, dir, 0);", "\t\t;"},
	{"advance", "\t\traise(&s->tcp_end[o], g->ack);", "\t\t;"},
	{"advance", "\t\tall_acked(s, o, 1);", "\t\t;"},
	{"advance", "\traise(&s->tcp_limit[dir], g->limit);", ""},
	{"advance", "if ((int)(to - old) <= 0)", "if (to == old)"},
	{"offer", "if (ONCE(t->words[dir].queued))", "if (0)"},
	{"offer", "if (ONCE(t->words[dir].queued))", "if (ONCE(t->words[0].queued) | ONCE(t->words[1].queued))"},
	{"offer", "at = now * 64", "at = now * 63"},
	{"offer", "voice = conforms(calls, &w[VOICE], at, sv);", ""},
	{"offer", "voice == RULED ? 0 : ", ""},
	{"offer", "voice == RULED ? 0 : -(calls->burst >> 1)", "0"},
	{"offer", "r->burst + (slack < 0 ? slack : 0)", "r->burst"},
	{"offer", "s64 sb = voice ? bits->slack : 0", "s64 sb = 0"},
	{"offer", "s64 sb = voice ? bits->slack : 0", "s64 sb = bits->slack"},
	{"offer", "!conforms(packets, &w[PACKETS], at, sp) || ", ""},
	{"offer", " || !conforms(bits, &w[BITS], at, sb))", ")"},
	{"offer", "(voice || packets->mul) && ", "packets->mul && "},
	{"offer", "(voice || packets->mul) && ", "voice && "},
	{"offer", "if (voice && !take(calls, &w[VOICE], at, n, sv))", "if (0)"},
	{"offer", "!take(packets, &w[PACKETS], at, 1, sp) || ", ""},
	{"offer", " || !take(bits, &w[BITS], at, n, sb))", ")"},
	{"offer", "d > r->ahead ? r->burst + (slack < 0 ? slack : 0) : d", "d"},
	{"offer", "if (!r->fine)", "if (1)"},
	{"offer", "if (!r->fine)", "if (0)"},
	{"offer", "+ (one >> 1))", ")"},
	{"usable", "gen = way >> 32", "gen = 0; struct hop *any = map_lookup(&hops, &at); gen = any ? any->gen : 0"},
	{"usable", "if (p->ttl <= 1)", "if (p->ttl < 1)"},
	{"usable", "if (p->ttl <= 1)", "if (p->ttl <= 2)"},
	{"usable", "if (p->len > hop->mtu)", "if (0)"},
	{"usable", "if (p->len > hop->mtu)", "if (p->len >= hop->mtu)"},
	{"translate", " && !p->atomic)\n\t\treturn identify", ")\n\t\treturn identify"},
	{"translate", "s->flags & DEMARC_FLAG_NAT && !p->atomic", "!p->atomic"},
	{"translate", "s->flags & DEMARC_FLAG_NAT && !p->atomic", "0"},
	{"translate", "w->idents + ((u32)", "((u32)"},
	{"translate", ">> 52 ^ h[9]", ">> 52"},
	{"translate", "(__sync_fetch_and_add(last, 1) + 1)", "__sync_fetch_and_add(last, 1)"},
	{"translate", " & w->ident_mask", ""},
	{"translate", "(u64)(u16)~AT16(h + 4) + id", "0"},
	{"usable", "redirect_map(&devices, hop->port, XDP_PASS) == XDP_REDIRECT ? CARRIED : UP_PORT", "redirect_map(&devices, hop->port, XDP_PASS), CARRIED"},
	{"translate", "s->flags & DEMARC_FLAG_NAT && !translate4", "!translate4"},
	{"translate", "AT16(h + 10) = apply(AT16(h + 10), delta);", ""},
	{"translate", "u16 sport = s->xlat_sport", "u16 sport = s->orig_sport"},
	{"translate", "\tif (dir) {\n\t\tsrc", "\tif (0) {\n\t\tsrc"},
	{"translate", "delta += (u64)(u32)~old + ports;", ""},
	{"translate", "else if (AT16(t + 6))", "else"},
	{"translate", "non_zero(apply(AT16(t + 6), delta))", "apply(AT16(t + 6), delta)"},
	{"translate", "\tAT32(t) = ports;", ""},
	{"rewrite", "if (c >= 0xffff)", "if (c > 0xffff)"},
	{"rewrite", "if (c >= 0xffff)", "if (0)"},
	{"rewrite", "\th[8]--;", ""},
	{"rewrite", "\t\th[7]--;", ""},
	{"rewrite", "hop->vlan | (p->tci & 0xf000)", "hop->vlan"},
	{"rewrite", "\tAT16(e + 10) = AT16(hop->src + 4);", ""},
	{"rewrite", "\tAT16(e + 4) = AT16(hop->dst + 4);", ""},
	{"account", "return from == !dir ? IN : OUT", "return from == !dir ? OUT : IN"},
	{"account", "\t\treturn INSIDE;", "\t\treturn OUT;"},
	{"account", "(u32)(now >> 20)", "(u32)(now >> 19)"},
	{"account", "\t__sync_fetch_and_add(&s->packets[dir], 1);", ""},
	{"account", "__sync_fetch_and_add(&s->bytes[dir], p->len)", "__sync_fetch_and_add(&s->bytes[dir], p->len + p->l2)"},
	{"account", "\tadd(&volumes, id * FIGURES + d, p->len);", ""},
	{"account", "\tif (p->voice)\n\t\tadd(&volumes, id * FIGURES + p->voice + d, p->len);\n", ""},
	{"offer", "p->voice = voice ? WITHIN : ABOVE", "p->voice = ABOVE"},
	{"offer", "p->voice = voice ? WITHIN : ABOVE", "p->voice = WITHIN"},
	{"offer", " + bits->beside", ""},
	{"account", "\tadd(&sent, hop->port, end - e);", ""},
}

var all = flag.Bool("all-mutants", false, "try all changes of the program, not a tenth that the seed draws")

// Each check of the program is one without which it does not agree with the pipeline.
func TestEachCheckIsNeeded(t *testing.T) {
	roottest.Require(t)
	if _, err := exec.LookPath("clang"); err != nil {
		roottest.Missing(t, "clang, which .ci/setup.sh installs, to compile what is changed (%v)", err)
	}
	source, err := os.ReadFile("bpf/cruise.c")
	if err != nil {
		t.Fatal(err)
	}
	here, err := filepath.Abs("bpf")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	objects := make([][]byte, len(mutants))
	var wg sync.WaitGroup
	next := make(chan int)
	for range 2 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range next {
				m := &mutants[i]
				text := strings.Replace(string(source), m.is, m.becomes, 1)
				if text == string(source) {
					t.Errorf("there is no %q to be changed", m.is)
					continue
				}
				text = strings.ReplaceAll(text, `#include "../..`, `#include "`+here+`/../..`)
				c, o := filepath.Join(dir, fmt.Sprint(i, ".c")), filepath.Join(dir, fmt.Sprint(i, ".o"))
				if err := os.WriteFile(c, []byte(text), 0o600); err != nil {
					t.Error(err)
					continue
				}
				if out, err := exec.Command("clang", "-target", "bpf", "-mcpu=v3", "-O2", "-g", "-nostdinc", "-c", "-o", o, c).CombinedOutput(); err != nil {
					t.Errorf("%q: %v\n%s", m.becomes, err, out)
					continue
				}
				if objects[i], err = os.ReadFile(o); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	rng := seeded(t)
	began := time.Now()
	for i := range mutants {
		if *all || rng.IntN(10) == 0 {
			next <- i
		}
	}
	close(next)
	wg.Wait()
	t.Logf("compiled in %v", time.Since(began))

	w := newWorld(t, rng, 2, true)
	w.populate(48)
	for i, m := range mutants {
		if objects[i] == nil {
			continue
		}
		ps, err := w.load(func() (*ebpf.CollectionSpec, error) {
			return ebpf.LoadCollectionSpecFromReader(bytes.NewReader(objects[i]))
		})
		if err != nil {
			t.Errorf("%s: %q instead of %q is not loaded: %v", m.stage, m.becomes, m.is, err)
		} else if _, _, err := w.compare(&ps, 30000); err == nil {
			t.Errorf("%s: with %q instead of %q they agree", m.stage, m.becomes, m.is)
		} else if testing.Verbose() { // most within some hundred packets
			t.Logf("%s: %q: %.120s", m.stage, m.becomes, err)
		}
		ps.close(t)
	}
}
