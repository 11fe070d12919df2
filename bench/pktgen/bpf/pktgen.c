//go:build ignore

/* The far ends of the bench: one program makes frames, one judges what a device under test made of them, one counts answers.
 *
 * make runs as live frames of BPF_PROG_TEST_RUN on the device that leads to the device under test. It writes the whole frame each
 * time, because pages come back as the other side left them. judge is on the public side: while it learns it remembers the translated
 * source of each flow and sends the frame back, afterwards it only compares, and drops. answer is on the inside, where frames are made.
 *
 * A frame is 60 bytes, 64 on a wire with its checksum: Ethernet, IPv4, UDP, 18 bytes of payload. pktgen.go has the same layout and
 * flow plan in Go, and a test holds both together. */
#include "kernel.h"

/* What judge and answer found; Go has the same list (kinds.go) and a test holds them together. */
enum kind {
	RIGHT,
	REORDERED,     /* right too, and counted there as well: a later frame of its flow came first */
	OTHER,         /* not IPv4: ARP and the like, left to the host */
	BAD_FORM,      /* not the shape of our frames: length, header length, protocol, fragment */
	BAD_IP_SUM,    /* IPv4 header checksum */
	BAD_UDP_SUM,   /* UDP checksum wrong or missing */
	NOT_SENT,      /* no such flow, or the keyed check word is wrong: nobody sent this */
	WRONG_PAYLOAD, /* bytes after the check word are not zero */
	WRONG_DST,     /* destination is not what the flow was sent to */
	WRONG_TTL,     /* not one less than sent */
	WRONG_TUPLE,   /* translated source is not of the pool */
	WRONG_MAPPING, /* of the pool, but another than the flow's first frame had */
	NOT_LEARNED,   /* of a flow that has no mapping, while only comparing */
	DUPLICATE,     /* flow and sequence number were seen before */
	STALE,         /* so far behind its flow that it cannot be told from a duplicate */
	KINDS,
};

enum { FRAME = 60, TTL = 64, UDP_LEN = 26, IP_LEN = 46 };

struct frame {
	u8 dst_mac[6], src_mac[6];
	u16 ethertype;
	/* IPv4 */
	u8 vihl, tos;
	u16 len, id, frag;
	u8 ttl, proto;
	u16 sum;
	u16 src[2], dst[2]; /* halves, since the header begins at an odd word */
	/* UDP */
	u16 sport, dport, ulen, usum;
	/* payload */
	u16 flow[2], seq[2], check[4], zero;
} __attribute__((packed, aligned(2)));
_Static_assert(sizeof(struct frame) == FRAME, "a frame has no gaps");

/* The flow plan: user space chooses it once, both sides compute the same fields from a flow's number. All in host order. */
struct plan {
	u64 key;        /* of the check word; new for each run, so that no old frame passes */
	u32 mask;       /* flows - 1, a power of two minus one */
	u32 inside;     /* first inside address; flows spread over 1024 of them */
	u32 outside;    /* first outside address; flows spread over 16 of them */
	u32 pool_lo, pool_hi; /* public addresses, inclusive */
	u16 inside_port;      /* first inside port */
	u16 outside_port;
	u8 dst_mac[6], src_mac[6];
	u32 shift;           /* number of bits in mask */
};
const volatile struct plan plan = {};

struct order {
	u64 end;      /* ns, CLOCK_MONOTONIC: no frame is sent after it */
	u64 limit;    /* frames to send; 0 = until end */
	u64 interval; /* 1/256 ns between two frames; 0 = as fast as possible */
};
struct progress {
	u64 index; /* of the next frame, over the whole run: its flow and sequence number follow from it */
	u64 sent;  /* since the order */
	u64 due;   /* when the next frame may leave, 1/256 ns */
	u64 first, last; /* ns, when the first and the last looked-at frame left */
	u64 done;
};
struct flow {
	u32 addr;    /* translated source, host order; 0 = not learned */
	u16 port;
	u16 learned;
	u32 seq;     /* highest seen */
	u32 window;  /* bit n: seq - n was seen */
};
struct tally {
	u64 kinds[KINDS];
	u64 first, last;       /* ns, of the looked-at right frames; one in 64 is looked at */
	u64 at_first, at_last; /* right frames then */
	u64 learning;          /* nonzero: remember and answer; user space writes it between runs */
};

struct {
	UINT(type, MAP_ARRAY);
	UINT(max_entries, 1);
	TYPE(key, u32);
	TYPE(value, struct order);
} orders SEC(".maps");

struct {
	UINT(type, MAP_ARRAY);
	UINT(max_entries, 1);
	TYPE(key, u32);
	TYPE(value, struct progress);
} progresses SEC(".maps");

struct {
	UINT(type, MAP_ARRAY);
	UINT(max_entries, 1); /* set by the loader */
	TYPE(key, u32);
	TYPE(value, struct flow);
} flows SEC(".maps");

/* Answers seen per flow. */
struct {
	UINT(type, MAP_ARRAY);
	UINT(max_entries, 1); /* set by the loader */
	TYPE(key, u32);
	TYPE(value, u32);
} answers SEC(".maps");

/* Row 0 is judge's, row 1 answer's. Each program runs on one queue, so on one CPU at a time: plain additions. */
struct {
	UINT(type, MAP_ARRAY);
	UINT(max_entries, 2);
	TYPE(key, u32);
	TYPE(value, struct tally);
} tallies SEC(".maps");

INLINE u64 check_word(u32 flow, u32 seq)
{
	u64 h = plan.key ^ ((u64)flow << 32 | seq);
	h *= 0x9e3779b97f4a7c15ull;
	h ^= h >> 29;
	h *= 0xbf58476d1ce4e5b9ull;
	return h ^ h >> 32;
}

INLINE u32 inside_addr(u32 flow) { return plan.inside + (flow & 1023); }
INLINE u16 inside_port(u32 flow) { return plan.inside_port + (flow >> 10); }
INLINE u32 outside_addr(u32 flow) { return plan.outside + ((flow ^ flow >> 10) & 15); }

/* scramble is a bijection of 0..mask: every round visits each flow once, in an order that no prefetcher guesses. */
INLINE u32 scramble(u32 x)
{
	x = x * 0x9e3779b1u & plan.mask;
	x ^= x >> 7;
	x = x * 0x85ebca6bu & plan.mask;
	return x ^ x >> 5;
}

INLINE u16 fold(u64 s)
{
	s = (s & 0xffffffff) + (s >> 32);
	s = (s & 0xffff) + (s >> 16);
	s = (s & 0xffff) + (s >> 16);
	s = (s & 0xffff) + (s >> 16);
	return s;
}

INLINE u64 ip_sum(const struct frame *f)
{
	const u16 *w = (const u16 *)&f->vihl;
	u64 s = 0;
#pragma unroll
	for (int i = 0; i < 10; i++)
		s += w[i];
	return s;
}

INLINE u64 udp_sum(const struct frame *f)
{
	const u16 *w = f->src; /* both addresses, UDP header, payload */
	u64 s = be16(17) + be16(UDP_LEN);
#pragma unroll
	for (int i = 0; i < 4 + UDP_LEN / 2; i++)
		s += w[i];
	return s;
}

INLINE u32 load32(const u16 *h) { return (u32)be16(h[0]) << 16 | be16(h[1]); }
INLINE void store32(u16 *h, u32 v)
{
	h[0] = be16(v >> 16);
	h[1] = be16(v);
}
INLINE u64 load64(const u16 *h) { return (u64)load32(h) << 32 | load32(h + 2); }
INLINE void store64(u16 *h, u64 v)
{
	store32(h, v >> 32);
	store32(h + 2, v);
}

/* When the sender fell behind its schedule (it waits between two calls, or for the device under test) it may catch up this much. */
#define CATCH_UP (100 * 1000ull << 8)

SEC("xdp") int demarc_make(struct xdp_md *ctx)
{
	u32 zero = 0;
	struct order *o = map_lookup(&orders, &zero);
	struct progress *p = map_lookup(&progresses, &zero);
	struct frame *f = (void *)(u64)ctx->data;
	if (!o || !p || (void *)(f + 1) > (void *)(u64)ctx->data_end || p->done)
		return XDP_DROP;
	/* At full speed one frame in 16 looks at the clock. */
	if (o->interval || !(p->sent & 15)) {
		u64 now = now_ns();
		if (now >= o->end) {
			p->done = 1;
			return XDP_DROP;
		}
		if (o->interval) {
			u64 now256 = now << 8;
			if (p->due > now256)
				return XDP_DROP;
			if (p->due + CATCH_UP < now256)
				p->due = now256 - CATCH_UP;
			if (!p->first)
				p->due = now256;
			p->due += o->interval;
		}
		if (!p->first)
			p->first = now;
		p->last = now;
	}
	u64 i = p->index++;
	if (++p->sent == o->limit)
		p->done = 1;
	u32 flow = scramble(i & plan.mask);
	u32 seq = i >> plan.shift;

#pragma unroll
	for (int b = 0; b < 6; b++) {
		f->dst_mac[b] = plan.dst_mac[b];
		f->src_mac[b] = plan.src_mac[b];
	}
	f->ethertype = be16(0x0800);
	f->vihl = 0x45;
	f->tos = 0;
	f->len = be16(IP_LEN);
	f->id = (u16)seq;
	f->frag = be16(0x4000);
	f->ttl = TTL;
	f->proto = 17;
	f->sum = 0;
	store32(f->src, inside_addr(flow));
	store32(f->dst, outside_addr(flow));
	f->sum = ~fold(ip_sum(f));
	f->sport = be16(inside_port(flow));
	f->dport = be16(plan.outside_port);
	f->ulen = be16(UDP_LEN);
	f->usum = 0;
	store32(f->flow, flow);
	store32(f->seq, seq);
	store64(f->check, check_word(flow, seq));
	f->zero = 0;
	u16 sum = ~fold(udp_sum(f));
	f->usum = sum ? sum : 0xffff;
	return XDP_TX; /* of the device that the run names: out of it */
}

/* common judges what both directions share. */
INLINE enum kind common(const struct frame *f, u32 len, u32 *flow)
{
	if (len != FRAME || f->vihl != 0x45 || f->len != be16(IP_LEN) || f->frag & be16(0x3fff) || f->proto != 17 || f->ulen != be16(UDP_LEN))
		return BAD_FORM;
	if (fold(ip_sum(f)) != 0xffff)
		return BAD_IP_SUM;
	if (!f->usum || fold(udp_sum(f)) != 0xffff)
		return BAD_UDP_SUM;
	*flow = load32(f->flow);
	if (*flow & ~plan.mask || load64(f->check) != check_word(*flow, load32(f->seq)))
		return NOT_SENT;
	if (f->zero)
		return WRONG_PAYLOAD;
	return RIGHT;
}

INLINE enum kind judge(const struct frame *f, u32 len, const struct tally *t)
{
	u32 flow;
	enum kind k = common(f, len, &flow);
	if (k != RIGHT)
		return k;
	if (load32(f->dst) != outside_addr(flow) || f->dport != be16(plan.outside_port))
		return WRONG_DST;
	if (f->ttl != TTL - 1)
		return WRONG_TTL;
	struct flow *s = map_lookup(&flows, &flow);
	if (!s)
		return NOT_SENT;
	u32 addr = load32(f->src);
	u16 port = be16(f->sport);
	u32 seq = load32(f->seq);
	if (addr < plan.pool_lo || addr > plan.pool_hi)
		return WRONG_TUPLE;
	if (!s->learned) {
		if (!t->learning)
			return NOT_LEARNED;
		s->addr = addr;
		s->port = port;
		s->learned = 1;
		s->seq = seq;
		s->window = 1;
		return RIGHT;
	}
	if (s->addr != addr || s->port != port)
		return WRONG_MAPPING;
	if (seq > s->seq) {
		u32 ahead = seq - s->seq;
		s->window = ahead < 32 ? s->window << ahead | 1 : 1;
		s->seq = seq;
		return RIGHT;
	}
	u32 behind = s->seq - seq;
	if (behind >= 32)
		return STALE;
	if (s->window >> behind & 1)
		return DUPLICATE;
	s->window |= 1u << behind;
	return REORDERED;
}

SEC("xdp") int demarc_judge(struct xdp_md *ctx)
{
	u32 row = 0;
	struct tally *t = map_lookup(&tallies, &row);
	struct frame *f = (void *)(u64)ctx->data;
	void *end = (void *)(u64)ctx->data_end;
	if (!t)
		return XDP_DROP;
	if ((void *)f + 14 > end) {
		t->kinds[BAD_FORM]++;
		return XDP_DROP;
	}
	if (f->ethertype != be16(0x0800)) {
		t->kinds[OTHER]++;
		return XDP_PASS;
	}
	if ((void *)(f + 1) > end) {
		t->kinds[BAD_FORM]++;
		return XDP_DROP;
	}
	enum kind k = judge(f, end - (void *)f, t);
	if (k >= KINDS) /* for the verifier */
		return XDP_DROP;
	t->kinds[k]++;
	if (k == REORDERED)
		t->kinds[RIGHT]++;
	else if (k != RIGHT)
		return XDP_DROP;
	u64 right = t->kinds[RIGHT];
	if (!(right & 63)) {
		u64 now = now_ns();
		if (!t->first) {
			t->first = now;
			t->at_first = right;
		}
		t->last = now;
		t->at_last = right;
	}
	if (!t->learning)
		return XDP_DROP;
	/* The answer: addresses and ports change places, which no checksum notices. */
#pragma unroll
	for (int b = 0; b < 6; b++) {
		u8 m = f->dst_mac[b];
		f->dst_mac[b] = f->src_mac[b];
		f->src_mac[b] = m;
	}
#pragma unroll
	for (int b = 0; b < 2; b++) {
		u16 a = f->dst[b];
		f->dst[b] = f->src[b];
		f->src[b] = a;
	}
	u16 port = f->sport;
	f->sport = f->dport;
	f->dport = port;
	/* Back out of this device. Not XDP_TX: veth then wakes a peer only if that has a program too, which the kernel's side has not. */
	return redirect(ctx->ingress_ifindex, 0);
}

INLINE enum kind answer(const struct frame *f, u32 len)
{
	u32 flow;
	enum kind k = common(f, len, &flow);
	if (k != RIGHT)
		return k;
	if (load32(f->src) != outside_addr(flow) || f->sport != be16(plan.outside_port) || load32(f->dst) != inside_addr(flow) ||
	    f->dport != be16(inside_port(flow)))
		return WRONG_DST;
	if (f->ttl != TTL - 2)
		return WRONG_TTL;
	u32 *seen = map_lookup(&answers, &flow);
	if (!seen)
		return NOT_SENT;
	++*seen;
	return RIGHT;
}

SEC("xdp") int demarc_answer(struct xdp_md *ctx)
{
	u32 row = 1;
	struct tally *t = map_lookup(&tallies, &row);
	struct frame *f = (void *)(u64)ctx->data;
	void *end = (void *)(u64)ctx->data_end;
	if (!t)
		return XDP_DROP;
	if ((void *)f + 14 > end) {
		t->kinds[BAD_FORM]++;
		return XDP_DROP;
	}
	if (f->ethertype != be16(0x0800)) {
		t->kinds[OTHER]++;
		return XDP_PASS;
	}
	if ((void *)(f + 1) > end) {
		t->kinds[BAD_FORM]++;
		return XDP_DROP;
	}
	enum kind k = answer(f, end - (void *)f);
	if (k < KINDS)
		t->kinds[k]++;
	return XDP_DROP;
}

char license_text[] SEC("license") = "Dual MIT/GPL";
