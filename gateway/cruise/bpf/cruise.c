//go:build ignore

/* The second executor: carries packets of sessions that user space has handed down. It judges nothing. Each stage has the name of the Go pipeline's
 * (gateway/pipeline), and does what that one does or leaves the packet to it: every doubt goes up, unchanged. DESIGN.md in the folder above says why.
 *
 * It writes counters, time stamps, TCP's numbers, identifications and rate words, beside a session that one of its packets has gone up, and of a hop that it is used: by atomic operations, or by
 * one store of a word that nobody adds to. Nothing else. */
#include "../../xsk/bpf/kernel.h"

enum { MAP_DEVMAP = 14 };

static long (*xdp_adjust_head)(struct xdp_md *ctx, int delta) = (void *)44;

/* What lies in an array is a multiple of eight bytes, or the kernel makes it one. */

/* What became of a frame; Go has the same list (counters.go) and a test holds them together. */
enum what {
	CARRIED,
	DROP_NOT_OWNER,  /* another node serves the group: its deadline here is over */
	DROP_DEAD,       /* the worker has not fed its deadline: nobody looks after the session */
	DROP_BROKEN,     /* cannot be: what was there to be written is not there any more */
	UP_FRAME,        /* no plain unicast IPv4 or IPv6, its lengths contradict each other, or something stands behind it */
	UP_CHECKSUM,     /* of the IPv4 header */
	UP_OPTIONS,      /* IPv4 options */
	UP_FRAGMENT,
	UP_PROTOCOL,     /* neither TCP nor UDP at once behind the header */
	UP_FLAGS,        /* TCP: anything but a plain segment */
	UP_INTERFACE,    /* no interface of ours has that tag on this port */
	UP_MAC,
	UP_ADDRESS,      /* no forwarded packet has such an address */
	UP_SESSION,      /* not found, or just being written */
	UP_NOT_DOWN,     /* found, and not handed down */
	UP_WATCHED,      /* the worker wants to see all of its packets */
	UP_JUDGED,       /* judged under another view */
	UP_TENANT,
	UP_STATE,        /* TCP: not established, or its numbers are not known */
	UP_WINDOW,       /* TCP: does not lie in the window */
	UP_HOP,          /* the next hop is another one now */
	UP_TTL,
	UP_SIZE,
	UP_PORT,         /* no device to send to */
	UP_QUEUE,        /* others of its tenant wait */
	UP_RATE,
	UP_ROOM,         /* no headroom for a tag */
	WHATS,
};

enum { IDENTS = 4096 }; /* nat.WholeWords */
enum { MAX_WORKERS = 16, DIRS = 3, WITHIN = DIRS, ABOVE = DIRS + 2, FIGURES = DIRS + 4 }; /* what is counted of a tenant: by direction, and of OUT and IN voice within its rate and above */
enum { OUT, IN, INSIDE }; /* meter.Dir */

struct settings {
	s64 ahead;   /* of the kernel's CLOCK_BOOTTIME, ns: the node's own clock may be in a time namespace */
	u32 port;    /* whose program it is */
	u32 workers; /* how many tables there are */
	u32 slots;   /* sessions of a table */
	u32 lines;   /* of its index */
	u32 stride;  /* from the index of one table to the next, in lines: whole pages */
};
const volatile struct settings settings = {};

/* One worker, and its table. */
struct worker {
	u64 until; /* ns of the node's CLOCK_BOOTTIME; the worker feeds it, and nothing of its table is carried past it */
	u64 seed;  /* of the hash */
	u32 gen;   /* sessions judged under another one go up */
	u32 up;    /* not 0: all go up, because the worker wants to see them */
	u32 held;  /* likewise, because control changes what all workers go by */
	u32 idents; /* where its words of idents begin */
	u16 ident, ident_mask; /* its share of identifications (nat.WholeShare) */
	u32 zero;
};

/* Bits of the upper half of mark.down. All else there is the worker's. */
enum { DOWN = 1, UP = 4 };

/* Beside each session: handed down or not. */
struct mark {
	u64 down;   /* DOWN << 32 | the session's generation: carried. UP, with whatever else: one of its packets went up, and others must not pass it by */
	u64 way[2]; /* per direction: the hop's generation << 32 | the hop */
};

/* How a frame leaves. */
struct hop {
	u32 gen;  /* changes with anything below; 0 = nothing may leave here */
	u16 port;
	u16 vlan; /* 0 = untagged */
	u16 mtu;  /* IP bytes */
	u8 dst[6], src[6];
	u16 pad;
	u32 used; /* something has left here since user space cleared it: whoever keeps neighbours alive wants to know */
	u32 zero;
};

struct iface {
	u64 here[4]; /* groups whose virtual MACs are taken here */
	u8 mac[6];
	u16 zone;
	u8 used;
	u8 zero[7];
};

/* police.Numbers */
struct rate {
	u64 mul; /* 0 = unlimited */
	s64 burst, ahead, slack;
	u32 max;
	u8 shift, fine;
	u16 beside;
};

enum { BITS, PACKETS, VOICE, RATES };

/* police.Words: shared with the workers, moved by compare-and-swap. */
struct words {
	u64 rates[RATES];
	s64 queued; /* how many workers have a queue of it; theirs alone */
};

struct tenant {
	struct words words[2];       /* by OUT, IN */
	struct rate rates[2][RATES];
	u64 voice;                   /* bit n: DSCP n is voice */
	u8 used;
	u8 group;                    /* 0 = every node serves it */
	u8 zero[6];
};

struct deadline { /* as in steer.c */
	u64 until;
	u64 epoch;
	u64 keep, rest;
};

struct volume {
	u64 packets, bytes;
};

/* How many frames have gone up from a queue; a line each. As in steer.c. */
struct ups {
	u64 n;
	u64 rest[7];
};

struct counter {
	u64 n;
	u64 at; /* ns of the node's CLOCK_BOOTTIME: the last time */
};

#define TABLE(name, flags, V) \
	struct { UINT(type, MAP_ARRAY); UINT(max_entries, 1); UINT(map_flags, flags); TYPE(key, u32); TYPE(value, V); } name SEC(".maps")
#define COUNTS(name, V) \
	struct { UINT(type, MAP_PERCPU_ARRAY); UINT(max_entries, WHATS); TYPE(key, u32); TYPE(value, V); } name SEC(".maps")

#define DEMARC_BUCKET(table, at) ({ u32 at_ = (table) * settings.stride + (u32)(at); (struct demarc_bucket *)map_lookup(&buckets, &at_); })
#define DEMARC_SESSION(table, slot) ({ u32 in_ = (slot), at_ = (table) * settings.slots + in_; \
	in_ < settings.slots ? (struct demarc_session *)map_lookup(&sessions, &at_) : 0; })
#include "../../conntrack/session.h"

/* F_RDONLY_PROG would say of most that the program does not write them; but what has it, no process may map to write. */
TABLE(sessions, F_MMAPABLE, struct demarc_session);
TABLE(buckets, F_MMAPABLE, struct demarc_bucket);
TABLE(marks, F_MMAPABLE, struct mark);
TABLE(workers, F_MMAPABLE, struct worker);
TABLE(hops, F_MMAPABLE, struct hop);
TABLE(ifaces, F_MMAPABLE, struct iface);
TABLE(vlans, F_MMAPABLE, u64); /* by port and VLAN: the interface, 0 = none */
TABLE(tenants, F_MMAPABLE, struct tenant);
TABLE(idents, F_MMAPABLE, u64); /* the last identification between two addresses, by worker and a hash of these: shared with the worker */
TABLE(deadlines, F_MMAPABLE, struct deadline); /* the one of steer.c */
COUNTS(counters, struct counter);
COUNTS(volumes, struct volume); /* by tenant and FIGURES */
COUNTS(sent, struct volume);    /* by port: bytes of frames */
struct { UINT(type, MAP_DEVMAP); UINT(max_entries, 1); TYPE(key, u32); TYPE(value, u32); } devices SEC(".maps");
struct { UINT(type, MAP_XSKMAP); UINT(max_entries, 1); TYPE(key, u32); TYPE(value, u32); } xsks SEC(".maps"); /* the one of the port's steer.c */
/* The counters of the port's steer.c, by its enum what: it leaves to us to say what became of a frame. Where no worker lives there is no socket either. */
enum { STEER_TO_SOCKET = 0, STEER_DROP_NO_SOCKET = 9, STEER_DROP_NOT_OWNER = 10, STEER_WHATS = 11 };
struct { UINT(type, MAP_PERCPU_ARRAY); UINT(max_entries, STEER_WHATS); TYPE(key, u32); TYPE(value, u64); } steered SEC(".maps");
TABLE(ups, F_MMAPABLE, struct ups); /* by queue: likewise the port's */

#include "../../conntrack/find.h"

enum { ETH_IP4 = 0x0800, ETH_VLAN = 0x8100, ETH_IP6 = 0x86dd };
enum { TCP = 6, UDP = 17 };
enum { FIN = 1, SYN = 2, RST = 4, ACK = 16 };

/* What receive finds, as gateway/packet has it. */
struct packet {
	struct demarc_key key;
	u32 seq, ack;   /* TCP, in host order */
	u16 payload;
	u16 len;        /* IP bytes */
	u16 window;
	u16 tci;        /* of the tag that it came with */
	u8 l2;          /* 14 or 18 */
	u8 ttl, tos;
	u8 odd;         /* TCP: anything but a plain segment */
	u8 trailed;     /* something stands behind it */
	u8 atomic;      /* IPv4: DF, and no fragment: nobody looks at its identification (RFC 6864) */
	u8 worker;      /* whose session it is of */
	u8 voice;       /* 0 = it is none; MARKED or RULED, and when it passes WITHIN or ABOVE */
};

INLINE u32 be32(u32 x) { return __builtin_bswap32(x); }

#define ONCE(x) (*(volatile typeof(x) *)&(x))

/* csum.Fold, to the last bit: of the two zeros it gives the same one. */
INLINE u16 fold(u64 acc)
{
	acc += acc << 32 | acc >> 32;
	u32 w = acc >> 32;
	w += w << 16 | w >> 16;
	return w >> 16;
}

INLINE u16 apply(u16 check, u64 delta) { return ~fold((u16)~check + delta); }
INLINE u16 non_zero(u16 c) { return c ? c : 0xffff; }

INLINE int parse_l4(u8 *t, u8 *end, u32 n, struct packet *p)
{
	switch (p->key.proto) {
	case UDP:
		if (t + 8 > end || n < 8 || be16(AT16(t + 4)) < 8 || be16(AT16(t + 4)) > n)
			return UP_FRAME;
		break;
	case TCP:
		if (t + 20 > end || n < 20)
			return UP_FRAME;
		u32 off = (t[12] >> 4) * 4;
		if (off < 20 || off > n)
			return UP_FRAME;
		p->odd = (t[13] & (FIN | SYN | RST | ACK)) != ACK;
		p->seq = be32(AT32(t + 4));
		p->ack = be32(AT32(t + 8));
		p->window = be16(AT16(t + 14));
		p->payload = n - off;
		break;
	default:
		return UP_PROTOCOL;
	}
	p->key.sport = be16(AT16(t));
	p->key.dport = be16(AT16(t + 2));
	return CARRIED;
}

/* Bytes behind the packet, which the pipeline cuts off: they would be sent, and not counted. Up to 64 bytes they are the padding that Ethernet wants. */
INLINE void look_behind(u8 *h, u8 *end, struct packet *p)
{
	u32 n = end - h;
	p->trailed = n > p->len && n + p->l2 > 64;
}

INLINE int parse4(u8 *h, u8 *end, struct packet *p)
{
	if (h + 20 > end || h[0] >> 4 != 4)
		return UP_FRAME;
	if (h[0] != 0x45)
		return UP_OPTIONS;
	p->len = be16(AT16(h + 2));
	if (p->len < 20 || p->len > end - h)
		return UP_FRAME;
	look_behind(h, end, p);
	u64 sum = (u64)AT32(h) + AT32(h + 4) + AT32(h + 8) + AT32(h + 12) + AT32(h + 16);
	if (fold(sum) != 0xffff)
		return UP_CHECKSUM;
	u16 frag = be16(AT16(h + 6));
	if (frag & 0x3fff)
		return UP_FRAGMENT;
	p->atomic = (frag & 0x7fff) == 0x4000;
	p->tos = h[1];
	p->ttl = h[8];
	p->key.family = 4;
	p->key.proto = h[9];
	AT32(p->key.src) = AT32(h + 12);
	AT32(p->key.dst) = AT32(h + 16);
	return parse_l4(h + 20, end, p->len - 20, p);
}

INLINE int parse6(u8 *h, u8 *end, struct packet *p)
{
	if (h + 40 > end || h[0] >> 4 != 6)
		return UP_FRAME;
	u32 n = be16(AT16(h + 4));
	if (n + 40 > end - h)
		return UP_FRAME;
	p->len = n + 40;
	look_behind(h, end, p);
	p->tos = h[0] << 4 | h[1] >> 4;
	p->ttl = h[7];
	p->key.family = 6;
	p->key.proto = h[6]; /* an extension header is no protocol that we carry */
	AT64(p->key.src) = AT64(h + 8);
	AT64(p->key.src + 8) = AT64(h + 16);
	AT64(p->key.dst) = AT64(h + 24);
	AT64(p->key.dst + 8) = AT64(h + 32);
	return parse_l4(h + 40, end, n, p);
}

/* Addresses that no forwarded packet may carry. */
INLINE int sane(struct packet *p)
{
	u8 *s = p->key.src, *d = p->key.dst;
	if (p->key.family == 4) {
		u32 src = be32(AT32(s)), dst = be32(AT32(d));
		return src != dst && src >> 24 && src >> 24 != 127 && src >> 28 < 0xe && dst >> 24 && dst >> 24 != 127 && dst >> 28 < 0xe &&
			src >> 16 != 0xa9fe && dst >> 16 != 0xa9fe;
	}
	if (demarc_same16(s, d) || s[0] == 0xff || d[0] == 0xff || !AT32(s) || !AT32(d))
		return 0;
	return !(s[0] == 0xfe && (s[1] & 0xc0) == 0x80) && !(d[0] == 0xfe && (d[1] & 0xc0) == 0x80);
}

/* Is the frame for the gateway: to the port's own MAC, or a virtual one (RFC 9568 section 7.3, for either family) of a group that is here? */
INLINE int takes(struct iface *f, u8 *mac)
{
	u32 head = AT32(mac), tail = AT16(mac + 4);
	if (head == AT32(f->mac) && tail == AT16(f->mac + 4))
		return 1;
	u32 kind = tail & 0xff, group = tail >> 8;
	return head == 0x005e0000 && (kind == 1 || kind == 2) && f->here[group >> 6 & 3] >> (group & 63) & 1;
}

/* Parses a frame and finds out where it came in. */
INLINE int receive(struct xdp_md *ctx, struct packet *p)
{
	u8 *e = (void *)(u64)ctx->data, *end = (void *)(u64)ctx->data_end;
	if (e + 14 > end || e[0] & 1)
		return UP_FRAME;
	u32 type = be16(AT16(e + 12)), vid = 0;
	p->l2 = 14;
	u8 *h = e + 14;
	if (type == ETH_VLAN) {
		if (e + 18 > end)
			return UP_FRAME;
		p->tci = be16(AT16(e + 14));
		vid = p->tci & 0xfff;
		type = be16(AT16(e + 16));
		p->l2 = 18;
		h = e + 18;
	}
	u32 at = settings.port * 4096 + vid;
	u64 *n = map_lookup(&vlans, &at);
	u32 index = n ? ONCE(*n) : 0;
	struct iface *f = map_lookup(&ifaces, &index);
	if (!f || !f->used) /* number 0 is none */
		return UP_INTERFACE;
	if (!takes(f, e))
		return UP_MAC;
	p->key.zone = f->zone;
	int r = type == ETH_IP4 ? parse4(h, end, p) : type == ETH_IP6 ? parse6(h, end, p) : UP_FRAME;
	if (r != CARRIED)
		return r;
	return sane(p) ? CARRIED : UP_ADDRESS;
}

/* A copy of what a session's sequence word guards; the rest would not fit on the stack. */
struct guarded {
	u64 words[DEMARC_GUARDED / 8];
};

/* Looks a key up in so many lines of one worker's table; -1 = not there, or not to be read now. */
INLINE s64 look(struct demarc_key *k, struct guarded *copy, u32 worker, int lines)
{
	u32 ref = 0;
	struct worker *w = map_lookup(&workers, &worker);
	if (!w)
		return -1;
	return demarc_find(k, demarc_hash(k, w->seed), worker, settings.lines, lines, (void *)copy, &ref) == DEMARC_FOUND ? (s64)ref : -1;
}

/* The same in all lines. Functions that are not inlined are walked by the verifier once. */
__attribute__((noinline)) s64 lookup(struct demarc_key *k, struct guarded *copy, u32 worker)
{
	return k && copy ? look(k, copy, worker, DEMARC_LINES) : -1;
}

/* The same in all tables: the reference, and the worker above it. */
__attribute__((noinline)) s64 find(struct demarc_key *k, struct guarded *copy)
{
	for (u32 i = 0; i < MAX_WORKERS && i < settings.workers; i++) {
		s64 ref = lookup(k, copy, i);
		if (ref >= 0)
			return ref | (s64)i << 32;
	}
	return -1;
}

INLINE struct mark *mark_of(s64 found)
{
	u32 slot = (u32)(found >> 32) * settings.slots + ((u32)found >> 1);
	return map_lookup(&marks, &slot);
}

/* Does this node serve the group now? */
INLINE int serves(u32 group, u64 now)
{
	struct deadline *d = map_lookup(&deadlines, &group);
	return !group || (d && now < ONCE(d->until));
}

/* The bits of the word that scale is the upper half of (conntrack: scaleOffered, allAcked, learning, takenOver). */
enum { OFFERED = 0x80, ALL_ACKED = 0x20, LEARNING = 0x10, TAKEN_OVER = 0x10 };
enum { TCP_ESTABLISHED = 4, CLASS_VOICE = 1 };
enum { MARKED = 1, RULED }; /* what makes a packet voice: police.Item's Voice, and its Ruled too */

/* What track makes of a segment, to be written when it is carried. */
struct segment {
	u32 end, limit, ack, ahead;
};

INLINE u32 *scale_word(struct demarc_session *s) { return (u32 *)&s->next_hop[1]; }
INLINE u32 scale_of(u32 word, u32 dir) { return word >> (16 + 8 * dir) & 0xff; }

INLINE u32 shift_of(u32 word, u32 dir)
{
	return scale_of(word, 0) & scale_of(word, 1) & OFFERED ? scale_of(word, dir) & 15 : 0;
}

/* conntrack.reach */
INLINE u32 reach(u32 word, u32 dir)
{
	u64 n = 2 * (0xffffull << shift_of(word, dir)) + 0xffff;
	return n < 1 << 30 ? n : 1 << 30;
}

/* conntrack.Track for a plain segment of an established session. It changes nothing. */
INLINE int track(struct demarc_session *s, u32 dir, struct packet *p, struct segment *g)
{
	u32 o = dir ^ 1, word = ONCE(*scale_word(s));
	if (ONCE(s->state) != TCP_ESTABLISHED || scale_of(word, 1) & LEARNING)
		return UP_STATE;
	g->end = p->seq + p->payload;
	g->ack = p->ack;
	g->limit = p->ack + ((u32)p->window << shift_of(word, dir));
	u32 behind = ONCE(s->tcp_end[o]) - p->ack, beyond = p->ack - ONCE(s->tcp_end[o]);
	g->ahead = scale_of(word, 0) & TAKEN_OVER && beyond <= reach(word, dir);
	if ((int)(p->seq - ONCE(s->tcp_limit[o])) > 1)
		return UP_WINDOW;
	if ((int)(g->end - (ONCE(s->tcp_end[dir]) - reach(word, o) - 1)) < 0)
		return UP_WINDOW;
	if (behind > reach(word, dir) && !g->ahead)
		return UP_WINDOW;
	return CARRIED;
}

/* Moves a number forward, unless somebody else has moved it as far. Who loses four times leaves it to the next segment. */
INLINE int raise(u32 *w, u32 to)
{
	for (int i = 0; i < 4; i++) {
		u32 old = ONCE(*w);
		if ((int)(to - old) <= 0)
			return 0;
		if (__sync_val_compare_and_swap(w, old, to) == old)
			return 1;
	}
	return 0;
}

/* Sets or clears ALL_ACKED of a direction; the rest of the word stays as it is. */
INLINE void all_acked(struct demarc_session *s, u32 dir, u32 on)
{
	u32 *w = scale_word(s), bit = ALL_ACKED << (16 + 8 * dir);
	for (int i = 0; i < 4; i++) {
		u32 old = ONCE(*w), new = on ? old | bit : old & ~bit;
		if (old == new || __sync_val_compare_and_swap(w, old, new) == old)
			return;
	}
}

/* conntrack.advance */
INLINE void advance(struct demarc_session *s, u32 dir, struct segment *g)
{
	u32 o = dir ^ 1;
	if (raise(&s->tcp_end[dir], g->end))
		all_acked(s, dir, 0);
	if (g->ahead)
		raise(&s->tcp_end[o], g->ack);
	if (g->ack == ONCE(s->tcp_end[o]))
		all_acked(s, o, 1);
	raise(&s->tcp_limit[dir], g->limit);
}

/* police.Rate.leadAt */
INLINE s64 lead(struct rate *r, u64 tat, u64 now, s64 slack)
{
	s64 d = tat - now;
	if (d < 0)
		return 0;
	return d > r->ahead ? r->burst + (slack < 0 ? slack : 0) : d;
}

/* police.Rate.cost */
INLINE u64 cost(struct rate *r, u32 n, u64 tat)
{
	u64 c = n < r->max ? n : r->max, one = 1ull << (r->shift & 63);
	if (!r->fine)
		return (c * r->mul + (one >> 1)) >> (r->shift & 63);
	u64 h = tat * 0x9e3779b97f4a7c15;
	h = (h ^ h >> 32) * 0xd6e8feb86659fd93;
	h ^= h >> 32;
	return (c * r->mul + (h & (one - 1))) >> (r->shift & 63);
}

INLINE int conforms(struct rate *r, u64 *w, u64 now, s64 slack)
{
	return !r->mul || lead(r, ONCE(*w), now, slack) <= r->burst + slack;
}

/* police.Rate.take; 0 = somebody else was faster and has left nothing. */
INLINE int take(struct rate *r, u64 *w, u64 now, u32 n, s64 slack)
{
	if (!r->mul)
		return 1;
	for (int i = 0; i < 8; i++) {
		u64 old = ONCE(*w);
		s64 d = lead(r, old, now, slack);
		if (d > r->burst + slack)
			return 0;
		u64 tat = now + d;
		if (__sync_val_compare_and_swap(w, old, tat + cost(r, n, tat)) == old)
			return 1;
	}
	return 0;
}

/* police.Shaper.Offer where nothing has to wait. All that would is left to the worker, before anything is taken: nothing is ever given back. Who loses a race after
 * that has paid for one packet too much. */
static __attribute__((noinline)) int offer(u32 tenant, u32 dir, struct packet *p, u64 now)
{
	struct tenant *t = map_lookup(&tenants, &tenant);
	if (!t || dir > IN)
		return UP_TENANT;
	if (ONCE(t->words[dir].queued))
		return UP_QUEUE;
	struct rate *bits = &t->rates[dir][BITS], *packets = &t->rates[dir][PACKETS], *calls = &t->rates[dir][VOICE];
	u64 *w = t->words[dir].rates, at = now * 64; /* police.UnitsPerNs */
	u32 n = p->len + bits->beside, voice = p->voice; /* the voice rate has the same */
	s64 sv = voice == RULED ? 0 : -(calls->burst >> 1);
	if (voice) {
		voice = conforms(calls, &w[VOICE], at, sv);
		p->voice = voice ? WITHIN : ABOVE;
	}
	s64 sb = voice ? bits->slack : 0, sp = voice ? packets->slack : 0;
	/* The last one that is taken looks by itself. */
	if ((voice || packets->mul) && (!conforms(packets, &w[PACKETS], at, sp) || !conforms(bits, &w[BITS], at, sb)))
		return UP_RATE;
	if (voice && !take(calls, &w[VOICE], at, n, sv))
		return UP_RATE;
	if (!take(packets, &w[PACKETS], at, 1, sp) || !take(bits, &w[BITS], at, n, sb))
		return UP_RATE;
	return CARRIED;
}

/* packet.DecTTL */
INLINE void dec_ttl(u8 *h)
{
	h[8]--;
	u32 c = be16(AT16(h + 10)) + 0x0100;
	if (c >= 0xffff)
		c++;
	AT16(h + 10) = be16((u16)c);
}

/* packet.Translate4. 0 = the frame is too short, which receive has seen to. */
INLINE int translate4(u8 *h, u8 *end, struct packet *p, struct demarc_session *s, u32 dir)
{
	u8 *t = h + 20;
	if (t + 8 > end)
		return 0;
	u32 src = AT32(s->xlat_src), dst = AT32(s->xlat_dst);
	u16 sport = s->xlat_sport, dport = s->xlat_dport;
	if (dir) {
		src = AT32(s->orig_dst);
		dst = AT32(s->orig_src);
		sport = s->orig_dport;
		dport = s->orig_sport;
	}
	u64 delta = (u64)(u32)~AT32(h + 12) + (u32)~AT32(h + 16) + src + dst;
	AT32(h + 12) = src;
	AT32(h + 16) = dst;
	AT16(h + 10) = apply(AT16(h + 10), delta);
	u32 old = AT32(t), ports = be16(sport) | (u32)be16(dport) << 16;
	AT32(t) = ports;
	delta += (u64)(u32)~old + ports;
	if (p->key.proto == TCP) {
		if (t + 20 > end)
			return 0;
		AT16(t + 16) = apply(AT16(t + 16), delta);
	} else if (AT16(t + 6)) { /* 0 = none */
		AT16(t + 6) = non_zero(apply(AT16(t + 6), delta));
	}
	return 1;
}

/* packet.SetL2, but for the room, which is there. */
INLINE void set_l2(u8 *e, struct packet *p, struct hop *hop)
{
	AT32(e) = AT32(hop->dst);
	AT16(e + 4) = AT16(hop->dst + 4);
	AT32(e + 6) = AT32(hop->src);
	AT16(e + 10) = AT16(hop->src + 4);
	u16 type = p->key.family == 4 ? be16(ETH_IP4) : be16(ETH_IP6);
	if (hop->vlan) { /* a tag that stays keeps its priority */
		AT16(e + 12) = be16(ETH_VLAN);
		AT16(e + 14) = be16((u16)(hop->vlan | (p->tci & 0xf000)));
		AT16(e + 16) = type;
	} else {
		AT16(e + 12) = type;
	}
}

INLINE void add(void *map, u32 at, u32 bytes)
{
	struct volume *v = map_lookup(map, &at);
	if (v) {
		v->packets++;
		v->bytes += bytes;
	}
}

/* pipeline.Shard.ident of a translated packet that leaves whole, and may be cut on its way. */
static __attribute__((noinline)) int identify(struct xdp_md *ctx, u32 l2, u32 worker)
{
	struct worker *w = map_lookup(&workers, &worker);
	u8 *h = (u8 *)(u64)ctx->data + (l2 & 31);
	if (!w || h + 20 > (u8 *)(u64)ctx->data_end)
		return DROP_BROKEN;
	u64 ends = ((u64)AT32(h + 12) << 32 | AT32(h + 16)) * 0x9e3779b97f4a7c15;
	u32 at = w->idents + ((u32)(ends >> 52 ^ h[9]) & (IDENTS - 1));
	u64 *last = map_lookup(&idents, &at);
	if (!last)
		return DROP_BROKEN;
	u16 id = be16(w->ident | ((u16)(__sync_fetch_and_add(last, 1) + 1) & w->ident_mask));
	AT16(h + 10) = apply(AT16(h + 10), (u64)(u16)~AT16(h + 4) + id);
	AT16(h + 4) = id;
	return CARRIED;
}

/* Writes the frame as it leaves, and accounts for it. */
INLINE int send(struct xdp_md *ctx, struct packet *p, struct demarc_session *s, u32 dir, struct hop *hop)
{
	u32 l2 = hop->vlan ? 18 : 14;
	if (l2 != p->l2 && xdp_adjust_head(ctx, (int)p->l2 - (int)l2))
		return UP_ROOM;
	u8 *e = (void *)(u64)ctx->data, *end = (void *)(u64)ctx->data_end;
	u8 *h = hop->vlan ? e + 18 : e + 14;
	if (p->key.family == 4) {
		if (h + 20 > end || (s->flags & DEMARC_FLAG_NAT && !translate4(h, end, p, s, dir)))
			return DROP_BROKEN;
		dec_ttl(h);
	} else {
		if (h + 40 > end)
			return DROP_BROKEN;
		h[7]--;
	}
	set_l2(e, p, hop);
	add(&sent, hop->port, end - e);
	if (p->key.family == 4 && s->flags & DEMARC_FLAG_NAT && !p->atomic)
		return identify(ctx, l2, p->worker);
	return CARRIED;
}

/* From which side to which it goes, as its tenant sees it (pipeline.Direction). */
INLINE u32 direction(struct demarc_session *s, u32 dir)
{
	u32 from = !!(s->flags & DEMARC_FLAG_FROM_BACKBONE);
	if (!from && !(s->flags & DEMARC_FLAG_TO_BACKBONE))
		return INSIDE;
	return from == !dir ? IN : OUT;
}

/* Copies the hop by which a direction leaves, and says whether the packet can leave there as it is. live is the hop itself, for who has sent by it. A redirect that is asked for is none unless the
 * program says so in the end. */
INLINE int usable(struct packet *p, struct mark *m, u64 down, u32 dir, struct hop *hop, struct hop **live)
{
	u64 way = ONCE(m->way[dir]);
	u32 at = (u32)way, gen = way >> 32;
	struct hop *is = map_lookup(&hops, &at);
	if (!is || !gen || ONCE(is->gen) != gen)
		return UP_HOP;
	DEMARC_BARRIER();
	__builtin_memcpy(hop, is, sizeof(*hop));
	DEMARC_BARRIER();
	if (ONCE(is->gen) != gen || ONCE(m->down) != down)
		return UP_HOP;
	*live = is;
	if (p->ttl <= 1)
		return UP_TTL;
	if (p->len > hop->mtu)
		return UP_SIZE;
	return redirect_map(&devices, hop->port, XDP_PASS) == XDP_REDIRECT ? CARRIED : UP_PORT;
}

/* Everything of a packet, in the pipeline's order. The frame is not touched before it is sure that it leaves. own is the mark of its session. */
INLINE int carry(struct xdp_md *ctx, struct packet *p, struct guarded *guarded, u64 now, struct mark **own)
{
	struct demarc_session *copy = (void *)guarded;
	int r = receive(ctx, p);
	if (r != CARRIED)
		return r;

	/* find. With one worker most are in the first line of its table: a look there without a call saves a tenth of all that a packet takes. */
	s64 ref = look(&p->key, guarded, 0, 1);
	if (ref < 0)
		ref = find(&p->key, guarded);
	if (ref < 0)
		return UP_SESSION;
	u32 n = ref >> 32, dir = ref & 1, slot = n * settings.slots + ((u32)ref >> 1);
	struct demarc_session *s = map_lookup(&sessions, &slot);
	struct mark *m = map_lookup(&marks, &slot);
	struct worker *w = map_lookup(&workers, &n);
	if (!s || !m || !w)
		return UP_SESSION;
	*own = m;
	p->worker = n;
	u64 down = ONCE(m->down);
	if (down != ((u64)DOWN << 32 | copy->gen))
		return UP_NOT_DOWN;
	if (p->odd)
		return UP_FLAGS;
	if (p->trailed)
		return UP_FRAME;
	if (now >= ONCE(w->until))
		return DROP_DEAD;
	u32 id = copy->tenant;
	struct tenant *t = map_lookup(&tenants, &id);
	if (!t || !t->used)
		return UP_TENANT;
	if (!serves(t->group, now))
		return DROP_NOT_OWNER;
	if (ONCE(w->up) | ONCE(w->held))
		return UP_WATCHED;
	if (ONCE(w->gen) != copy->view_gen)
		return UP_JUDGED;
	struct segment g = {};
	if (p->key.proto == TCP) {
		r = track(s, dir, p, &g);
		if (r != CARRIED)
			return r;
	}

	struct hop hop, *live = 0;
	r = usable(p, m, down, dir, &hop, &live);
	if (r != CARRIED)
		return r;
	u32 d = direction(copy, dir);
	if (d != INSIDE) {
		p->voice = copy->class_ == CLASS_VOICE ? RULED : t->voice >> (p->tos >> 2) & MARKED;
		r = offer(id, d, p, now);
		if (r != CARRIED)
			return r;
	}
	r = send(ctx, p, copy, dir, &hop);
	if (r != CARRIED)
		return r;
	if (p->key.proto == TCP)
		advance(s, dir, &g);
	ONCE(s->last_seen[dir]) = (u32)(now >> 20);
	__sync_fetch_and_add(&s->packets[dir], 1);
	__sync_fetch_and_add(&s->bytes[dir], p->len);
	add(&volumes, id * FIGURES + d, p->len);
	if (p->voice)
		add(&volumes, id * FIGURES + p->voice + d, p->len);
	if (!ONCE(live->used))
		ONCE(live->used) = 1;
	return CARRIED;
}

/* Counts a frame that goes to the socket of a queue. */
INLINE void goes_up(u32 queue)
{
	struct ups *u = map_lookup(&ups, &queue);
	if (u) {
		u64 was = __sync_fetch_and_add(&u->n, 1); /* that it is asked for makes it a barrier */
		__asm__ volatile("" ::"r"(was));
	}
}

/* steer.c calls it with what is the gateway's. What it does not carry goes to the socket of its queue, and is dropped where there is none: by itself it closes a port. */
SEC("xdp") int demarc_cruise(struct xdp_md *ctx)
{
	u64 now = ktime_get_boot_ns() + settings.ahead;
	struct packet p = {};
	struct guarded guarded = {};
	struct mark *own = 0;
	u32 what = carry(ctx, &p, &guarded, now, &own);
	struct counter *c = map_lookup(&counters, &what);
	if (c) {
		c->n++;
		c->at = now;
	}
	if (what == CARRIED)
		return XDP_REDIRECT;
	long action = XDP_DROP;
	u32 as = what == DROP_NOT_OWNER ? STEER_DROP_NOT_OWNER : STEER_DROP_NO_SOCKET;
	if (what >= UP_FRAME) {
		if ((action = redirect_map(&xsks, ctx->rx_queue_index, XDP_DROP)) == XDP_REDIRECT) {
			as = STEER_TO_SOCKET;
			goes_up(ctx->rx_queue_index);
		}
		/* Those behind it go up too, until the worker has seen to it and hands the session down again. It is counted first, and looked at then: a worker that begins to hand down marks first, and
		 * looks at the counts then, so one of the two sees the other. Where there was no session, there may be one by now. */
		if (what == UP_SESSION && !p.odd && !p.trailed) {
			s64 found = find(&p.key, &guarded);
			own = found < 0 ? 0 : mark_of(found);
		}
		if (own && !(ONCE(own->down) >> 32 & UP))
			__sync_fetch_and_or(&own->down, (u64)UP << 32);
	}
	u64 *n = map_lookup(&steered, &as);
	if (n)
		(*n)++;
	return action;
}

char license_text[] SEC("license") = "Dual MIT/GPL";
