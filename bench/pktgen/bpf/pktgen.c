//go:build ignore

/* The far ends of the bench: one program makes frames, one judges what a device under test made of them at the outside, one at the inside.
 *
 * make runs as live frames of BPF_PROG_TEST_RUN on the device that leads to the device under test. It writes all headers each
 * time, because pages come back as the other side left them. It makes frames of both ends: those of the inside leave by the device of the
 * run, those of the outside by the second entry of a device map. judge is on the public side: while it learns it remembers the translated
 * source of each flow and sends the frame back, afterwards it only compares, and drops. answer is on the inside, where frames are made.
 *
 * The smallest frame is 60 bytes, 64 on a wire with its checksum: Ethernet, IPv4, UDP, 18 bytes of payload; with IPv6 it is 78. Payload is flow,
 * sequence number, time stamp, check word and filler, which user space writes once and whose sum it computes. pktgen.go has the same layout and
 * flow plan in Go, and a test holds both together. */
#include "frame.h"

/* What the judges do; user space writes it between runs. */
struct control {
	u64 learning; /* 1: remember, and answer; 2: only remember */
	u64 plain;    /* sources arrive as they were sent */
	u64 hops;     /* what the device under test takes off the TTL */
	u64 timing;   /* note how long frames were under way; of a plan with calls those of calls only, of one with tenants of all but the first, and of each by itself */
};
struct order {
	u64 end;      /* ns, CLOCK_MONOTONIC: no frame is sent after it */
	u64 limit;    /* frames to send; 0 = until end */
	u64 interval; /* 1/256 ns between two frames; 0 = as fast as possible */
	u64 direction;
	u64 flood;    /* of one with tenants: so many frames of the first flow come to each frame in turn */
	u64 missing;  /* flows that were answered are passed over, and count towards the limit */
	u64 batch;    /* so many runs the kernel makes before it hands on the frames of them */
};
struct progress {
	u64 index[2]; /* of the next frame of each direction, over the whole run: its flow and sequence number follow from it */
	u64 sent[2];  /* since the order */
	u64 due;      /* when the next frame may leave, 1/256 ns */
	u64 first, last; /* ns, when the first and the last looked-at frame left */
	u64 done;
	u64 flooded;     /* frames of the first flow of a plan with tenants, over the whole run */
	u64 passed;      /* since the order: flows that were passed over */
	u64 idle;        /* ns since the order in which it ran, and no frame was due */
	u64 looked;      /* ns, when it was so last; 0: it has made a frame since */
	u64 left;        /* runs of the batch to come */
	u64 made;        /* frames of the batch */
};
struct flow {
	u32 addr;    /* translated source, host order; 0 = not learned */
	u16 port;
	u16 learned;
	u32 seq;     /* highest seen */
	u32 window;  /* bit n: seq - n was seen */
};
struct back {
	u32 answers; /* seen at the inside */
	u32 seq;     /* of frames that the outside made, as in a flow */
	u32 window;  /* 0 = none was seen yet */
};
struct tally {
	u64 kinds[KINDS];
	u64 first, last;       /* ns, of the looked-at right frames; one in 64 is looked at */
	u64 at_first, at_last; /* right frames then */
	/* With timing: */
	u64 timed;             /* frames of which it is known how long they were under way */
	u64 before;            /* ns, of the last of them */
	u64 changes;           /* ns, sum of the differences between each and the one before it */
	u64 worst;             /* ns */
};

/* What one direction of a call or of a tenant's flow met, with timing. */
struct call {
	u32 right;
	u32 late;    /* of them: under way for longer than a listener waits */
	u32 before;  /* ns, of the last one */
	u32 worst;   /* ns */
	u64 sum;     /* ns */
	u64 jitter;  /* 1/16 ns: RFC 3550, A.8 */
};
enum { LATE = 40 * 1000 * 1000 }; /* ns */

ARRAY(controls, 1, struct control);
ARRAY(orders, 1, struct order);
ARRAY(progresses, 1, struct progress);
ARRAY(flows, 1, struct flow);   /* the loader sets how many */
ARRAY(answers, 1, struct back); /* likewise */
ARRAY(calls, 1, struct call);   /* of a plan with calls or tenants two for each flow: to the outside, to the inside */
/* Row 0 is judge's, row 1 answer's. Each program runs on one queue, so on one CPU at a time: plain additions. */
ARRAY(tallies, 2, struct tally);
ARRAY(delays, 2, struct times);

/* The device that frames to the inside leave by, in row 1. It may be of another namespace. */
struct {
	UINT(type, MAP_DEVMAP);
	UINT(max_entries, 2);
	TYPE(key, u32);
	TYPE(value, u32);
} outs SEC(".maps");

INLINE u32 size_index(u32 flow, u32 seq)
{
	if (plan.sizes <= 1)
		return 0;
	if (plan.calls)
		return flow & 1;
	u32 i = (flow + seq) % plan.sizes;
	return i < SIZES ? i : 0;
}

/* l4_sum is that of the UDP checksum without addresses and filler. */
INLINE u64 l4_sum(const struct l4 *u)
{
	return addr_sum((const u16 *)u, L4 / 2) + be16(17) + u->ulen;
}

/* When the sender fell behind its schedule (it waits between two calls, or for the device under test) it may catch up this much. */
#define CATCH_UP (100 * 1000ull << 8)

SEC("xdp") int demarc_make(struct xdp_md *ctx)
{
	u32 zero = 0;
	struct order *o = map_lookup(&orders, &zero);
	struct progress *p = map_lookup(&progresses, &zero);
	if (!o || !p || p->done)
		return XDP_DROP;
	if (!p->left) { /* the batch before has been handed on: where it had a frame, the time since is that */
		p->left = o->batch;
		if (p->made)
			p->looked = 0;
		p->made = 0;
	}
	p->left--;
	/* At full speed one frame in 16 looks at the clock. */
	u64 sent = p->sent[OUT] + p->sent[IN];
	if (o->missing) {
		u32 next = scramble(p->index[OUT] & plan.mask);
		struct back *b = map_lookup(&answers, &next);
		if (!b || b->answers) {
			p->index[OUT]++;
			p->passed++;
			if (sent + p->passed == o->limit)
				p->done = 1;
			return XDP_DROP;
		}
	}
	if (o->interval || !(sent & 15)) {
		u64 now = now_ns();
		if (now >= o->end) {
			p->done = 1;
			return XDP_DROP;
		}
		if (o->interval) {
			u64 now256 = now << 8;
			if (now - p->looked < IDLE_TURN)
				p->idle += now - p->looked;
			p->looked = 0;
			if (p->due > now256) {
				p->looked = now;
				return XDP_DROP;
			}
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
	p->made++;
	u32 stamp = p->last;
	int in = o->direction == IN || (o->direction == BOTH && sent & 1);
	u64 i = 0;
	if (in) {
		i = p->index[IN]++;
		p->sent[IN]++;
	} else {
		if (!plan.vlan || !o->flood || !(sent % (o->flood + 1)))
			i = p->index[OUT]++;
		else
			i = 0; /* the first flow's */
		p->sent[OUT]++;
	}
	if (sent + p->passed + 1 == o->limit)
		p->done = 1;
	u32 flow = scramble(i & plan.mask);
	u32 seq = (i >> plan.shift & 0x7fffffff) | (u32)in << 31;
	if (plan.vlan && !flow)
		seq = p->flooded++ & 0x7fffffff;
	u32 which = size_index(flow, seq & 0x7fffffff);
	if (which >= SIZES) /* for the verifier */
		return XDP_DROP;
	u32 size = plan.size[which];
	if (plan.sizes > 1) {
		u64 page = (void *)(u64)ctx->data_end - (void *)(u64)ctx->data;
		asm volatile("" : "+r"(page)); /* else the compiler subtracts from a pointer, which the verifier forbids */
		if (page > size && adjust_tail(ctx, (int)size - (int)page))
			return XDP_DROP;
	}
	void *data = (void *)(u64)ctx->data, *end = (void *)(u64)ctx->data_end;
	u32 ip_len = plan.v6 ? IP6 : IP4;
	struct eth *e = data;
	struct l4 *u = data + ETH + ip_len;
	if ((void *)(u + 1) > end)
		return XDP_DROP;

	u32 src = inside_addr(flow), dst = outside_addr(flow);
	u16 sport = inside_port(flow), dport = plan.outside_port;
	if (in) {
		struct flow *s = map_lookup(&flows, &flow);
		if (!s || !s->learned)
			return XDP_DROP;
		src = dst;
		dst = s->addr;
		sport = dport;
		dport = s->port;
	}
#pragma unroll
	for (int b = 0; b < 6; b++) {
		e->dst_mac[b] = in ? plan.dst_mac[IN][b] : plan.dst_mac[OUT][b];
		e->src_mac[b] = in ? plan.src_mac[IN][b] : plan.src_mac[OUT][b];
	}
	u64 sum = plan.filler[which];
	u16 ulen = be16((u16)(size - ETH - ip_len));
	if (plan.v6) {
		struct ip6 *f = data + ETH;
		e->ethertype = be16(0x86dd);
		f->version[0] = be16(0x6000);
		f->version[1] = 0;
		f->len = ulen;
		f->proto = 17;
		f->ttl = TTL;
#pragma unroll
		for (int b = 0; b < 6; b++) {
			f->src[b] = in ? plan.outside_net[b] : plan.inside_net[b];
			f->dst[b] = in ? plan.inside_net[b] : plan.outside_net[b];
		}
		store32(f->src + 6, src);
		store32(f->dst + 6, dst);
		sum += addr_sum(f->src, 16);
	} else {
		struct ip4 *f = data + ETH;
		e->ethertype = be16(0x0800);
		f->vihl = 0x45;
		f->tos = plan.calls && !(flow & 1) ? 0xb8 : 0; /* EF */
		f->len = be16((u16)(size - ETH));
		f->id = (u16)seq;
		f->frag = be16(0x4000);
		f->ttl = TTL;
		f->proto = 17;
		f->sum = 0;
		store32(f->src, src);
		store32(f->dst, dst);
		f->sum = ~fold(ip_sum(f));
		sum += addr_sum(f->src, 4);
	}
	u->sport = be16(sport);
	u->dport = be16(dport);
	u->ulen = ulen;
	u->usum = 0;
	store32(u->flow, flow);
	store32(u->seq, seq);
	store32(u->stamp, stamp);
	store32(u->check, check_word(flow, seq, stamp));
	u16 usum = ~fold(sum + l4_sum(u));
	u->usum = usum ? usum : 0xffff;
	if (in)
		return redirect_map(&outs, IN, 0);
	if (plan.vlan) {
		if (adjust_head(ctx, -TAG))
			return XDP_DROP;
		u16 *w = (void *)(u64)ctx->data;
		if ((void *)(w + (ETH + TAG) / 2) > (void *)(u64)ctx->data_end)
			return XDP_DROP;
#pragma unroll
		for (int b = 0; b < 6; b++)
			w[b] = w[b + TAG / 2];
		w[6] = be16(0x8100);
		w[7] = be16((u16)(plan.vlan + flow));
	}
	return XDP_TX; /* of the device that the run names: out of it */
}

/* filler_sum adds up all bytes behind the check word. It is a function that the verifier looks at by itself: its loops have many ends. */
__attribute__((noinline)) u32 filler_sum(struct xdp_md *ctx)
{
	void *end = (void *)(u64)ctx->data_end, *p = (void *)(u64)ctx->data + ETH + (plan.v6 ? IP6 : IP4) + L4;
	u64 s = 0;
	u32 part = 0;
	if (p > end)
		return 0;
	if ((end - p) & 2) {
		if (p + 2 > end)
			return 0;
		s = *(u16 *)p;
		p += 2;
	}
	for (int i = 0; i < 6; i++) {
		if (p + 256 > end)
			break;
		part = csum_diff(0, 0, p, 256, part);
		p += 256;
	}
	for (int i = 0; i < 4; i++) {
		if (p + 64 > end)
			break;
		part = csum_diff(0, 0, p, 64, part);
		p += 64;
	}
	for (int i = 0; i < 16; i++) {
		if (p + 4 > end)
			break;
		u16 *w = p;
		s += (u32)w[0] + w[1];
		p += 4;
	}
	return fold(s + part);
}

/* What both judges need of a frame. */
struct seen {
	void *data, *end;
	struct l4 *u;
	u16 *src, *dst;  /* the last 32 bits of both addresses */
	u32 flow, seq;
	u8 ttl;
	u8 nets;         /* IPv6: the first 96 bits are those of a frame to the outside (1), to the inside (2) */
};

/* ours tells frames of the bench's family from what is left to the host: ARP, neighbour discovery and the like. */
INLINE int ours(void *data, void *end)
{
	struct eth *e = data;
	if (e->ethertype != (plan.v6 ? be16(0x86dd) : be16(0x0800)))
		return 0;
	struct ip6 *f = data + ETH;
	return !plan.v6 || (void *)(f + 1) > end || f->proto == 17;
}

/* common judges what both directions share. */
INLINE enum kind common(struct xdp_md *ctx, struct seen *n)
{
	void *data = n->data, *end = n->end;
	u32 ip_len = plan.v6 ? IP6 : IP4, len = end - data;
	struct l4 *u = data + ETH + ip_len;
	if ((void *)(u + 1) > end)
		return BAD_FORM;
	u16 ulen = be16((u16)(len - ETH - ip_len));
	u64 sum;
	if (plan.v6) {
		struct ip6 *f = data + ETH;
		if ((f->version[0] & be16(0xf000)) != be16(0x6000) || f->len != ulen || f->proto != 17)
			return BAD_FORM;
		sum = addr_sum(f->src, 16);
		n->ttl = f->ttl;
		n->src = f->src + 6;
		n->dst = f->dst + 6;
		int out = 1, in = 1;
#pragma unroll
		for (int b = 0; b < 6; b++) {
			out &= f->src[b] == plan.inside_net[b] && f->dst[b] == plan.outside_net[b];
			in &= f->src[b] == plan.outside_net[b] && f->dst[b] == plan.inside_net[b];
		}
		n->nets = out | in << 1;
	} else {
		struct ip4 *f = data + ETH;
		if (f->vihl != 0x45 || f->len != be16((u16)(len - ETH)) || f->frag & be16(0x3fff) || f->proto != 17)
			return BAD_FORM;
		if (fold(ip_sum(f)) != 0xffff)
			return BAD_IP_SUM;
		sum = addr_sum(f->src, 4);
		n->ttl = f->ttl;
		n->src = f->src;
		n->dst = f->dst;
		n->nets = 3;
	}
	if (u->ulen != ulen)
		return BAD_FORM;
	u16 filler = filler_sum(ctx);
	if (!u->usum || fold(sum + l4_sum(u) + filler) != 0xffff)
		return BAD_L4_SUM;
	n->u = u;
	n->flow = load32(u->flow);
	n->seq = load32(u->seq);
	if (n->flow & ~plan.mask || load32(u->check) != check_word(n->flow, n->seq, load32(u->stamp)))
		return NOT_SENT;
	u32 which = size_index(n->flow, n->seq & 0x7fffffff);
	if (which >= SIZES) /* for the verifier */
		return NOT_SENT;
	/* Zero has two forms in ones' complement. */
	u16 want = plan.filler[which];
	if (len != plan.size[which] || (filler != want && filler % 0xffff != want % 0xffff))
		return WRONG_PAYLOAD;
	return RIGHT;
}

/* in_window looks for a sequence number among those that were seen. */
INLINE enum kind in_window(u32 *last, u32 *window, u32 seq)
{
	if (seq > *last) {
		u32 ahead = seq - *last;
		*window = ahead < 32 ? *window << ahead | 1 : 1;
		*last = seq;
		return RIGHT;
	}
	u32 behind = *last - seq;
	if (behind >= 32)
		return STALE;
	if (*window >> behind & 1)
		return DUPLICATE;
	*window |= 1u << behind;
	return REORDERED;
}

INLINE enum kind judge(struct xdp_md *ctx, struct seen *n, const struct control *c)
{
	enum kind k = common(ctx, n);
	if (k != RIGHT)
		return k;
	u32 flow = n->flow, seq = n->seq;
	if (seq >> 31)
		return NOT_SENT; /* to here */
	if (load32(n->dst) != outside_addr(flow) || n->u->dport != be16(plan.outside_port) || !(n->nets & 1))
		return WRONG_DST;
	if (n->ttl != (u8)(TTL - c->hops))
		return WRONG_TTL;
	struct flow *s = map_lookup(&flows, &flow);
	if (!s)
		return NOT_SENT;
	u32 addr = load32(n->src);
	u16 port = be16(n->u->sport);
	if (c->plain) {
		if (addr != inside_addr(flow) || port != inside_port(flow))
			return WRONG_TUPLE;
	} else if (addr < plan.pool_lo || addr > plan.pool_hi) {
		return WRONG_TUPLE;
	}
	if (!s->learned) {
		if (!c->learning)
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
	return in_window(&s->seq, &s->window, seq);
}

INLINE enum kind answer(struct xdp_md *ctx, struct seen *n, const struct control *c)
{
	enum kind k = common(ctx, n);
	if (k != RIGHT)
		return k;
	u32 flow = n->flow, made = n->seq >> 31;
	if (load32(n->src) != outside_addr(flow) || n->u->sport != be16(plan.outside_port) || load32(n->dst) != inside_addr(flow) ||
	    n->u->dport != be16(inside_port(flow)) || !(n->nets & 2))
		return WRONG_DST;
	/* What the outside only sent back has come by the device under test twice. */
	if (n->ttl != (u8)(TTL - c->hops * (made ? 1 : 2)))
		return WRONG_TTL;
	struct back *b = map_lookup(&answers, &flow);
	if (!b)
		return NOT_SENT;
	if (!made) {
		b->answers++;
		return RIGHT;
	}
	u32 seq = n->seq & 0x7fffffff;
	if (!b->window) {
		b->seq = seq;
		b->window = 1;
		return RIGHT;
	}
	return in_window(&b->seq, &b->window, seq);
}

INLINE void note_time(u32 row, struct tally *t, u32 ns)
{
	struct times *h = map_lookup(&delays, &row);
	u32 i = bucket(ns);
	if (!h || i >= BUCKETS)
		return;
	h->frames[i]++;
	if (t->timed++)
		t->changes += ns > t->before ? ns - t->before : t->before - ns;
	t->before = ns;
	if (ns > t->worst)
		t->worst = ns;
}

/* note_call adds a frame to its call. */
INLINE void note_call(u32 row, u32 flow, u32 ns)
{
	u32 i = flow << 1 | row;
	struct call *l = map_lookup(&calls, &i);
	if (!l)
		return;
	u64 d = ns > l->before ? ns - l->before : l->before - ns;
	if (l->right++)
		l->jitter += d - ((l->jitter + 8) >> 4);
	l->before = ns;
	l->sum += ns;
	if (ns > LATE)
		l->late++;
	if (ns > l->worst)
		l->worst = ns;
}

/* counted adds a frame to a tally and says whether it was right. */
INLINE int counted(u32 row, struct tally *t, enum kind k, const struct control *c, const struct seen *n)
{
	if (k >= KINDS) /* for the verifier */
		return 0;
	t->kinds[k]++;
	if (k == REORDERED)
		t->kinds[RIGHT]++;
	else if (k != RIGHT)
		return 0;
	u64 right = t->kinds[RIGHT], now = 0;
	if (c->timing) {
		now = now_ns();
		u32 ns = (u32)now - load32(n->u->stamp);
		if (!plan.calls || !(n->flow & 1)) {
			if (!plan.vlan || n->flow)
				note_time(row, t, ns);
			if (plan.calls || plan.vlan)
				note_call(row, n->flow, ns);
		}
	}
	if (!(right & 63)) {
		if (!now)
			now = now_ns();
		if (!t->first) {
			t->first = now;
			t->at_first = right;
		}
		t->last = now;
		t->at_last = right;
	}
	return 1;
}

/* opened looks at what both judges need before anything else: 1 = go on, else the verdict is in *verdict. */
INLINE int opened(struct xdp_md *ctx, struct tally *t, struct seen *n, int *verdict)
{
	n->data = (void *)(u64)ctx->data;
	n->end = (void *)(u64)ctx->data_end;
	*verdict = XDP_DROP;
	if (n->data + ETH > n->end) {
		t->kinds[BAD_FORM]++;
		return 0;
	}
	if (!ours(n->data, n->end)) {
		t->kinds[OTHER]++;
		*verdict = XDP_PASS;
		return 0;
	}
	return 1;
}

SEC("xdp") int demarc_judge(struct xdp_md *ctx)
{
	u32 row = 0;
	struct tally *t = map_lookup(&tallies, &row);
	struct control *c = map_lookup(&controls, &row);
	struct seen n;
	int verdict;
	if (!t || !c)
		return XDP_DROP;
	if (!opened(ctx, t, &n, &verdict))
		return verdict;
	if (!counted(row, t, judge(ctx, &n, c), c, &n) || c->learning != 1)
		return XDP_DROP;
	/* The answer: addresses and ports change places, which no checksum notices. */
	struct eth *e = n.data;
	struct l4 *u = n.u;
#pragma unroll
	for (int b = 0; b < 6; b++) {
		u8 m = e->dst_mac[b];
		e->dst_mac[b] = e->src_mac[b];
		e->src_mac[b] = m;
	}
	if (plan.v6) {
		struct ip6 *f = n.data + ETH;
#pragma unroll
		for (int b = 0; b < 8; b++) {
			u16 a = f->dst[b];
			f->dst[b] = f->src[b];
			f->src[b] = a;
		}
	} else {
		struct ip4 *f = n.data + ETH;
#pragma unroll
		for (int b = 0; b < 2; b++) {
			u16 a = f->dst[b];
			f->dst[b] = f->src[b];
			f->src[b] = a;
		}
	}
	u16 port = u->sport;
	u->sport = u->dport;
	u->dport = port;
	/* Back out of this device. Not XDP_TX: veth then wakes a peer only if that has a program too, which the kernel's side has not. */
	return redirect(ctx->ingress_ifindex, 0);
}

/* neighbour answers for a tenant's host, whose VLAN has no device of its own: the request, tagged, becomes the reply. What is something else is left to the host. */
INLINE int neighbour(struct xdp_md *ctx)
{
	u16 *w = (void *)(u64)ctx->data;
	if ((void *)(w + 23) > (void *)(u64)ctx->data_end || w[8] != be16(0x0806) || w[12] != be16(1))
		return XDP_PASS;
	u32 flow = (be16(w[7]) & 0xfff) - plan.vlan;
	if (flow & ~plan.mask || load32(w + 21) != inside_addr(flow))
		return XDP_PASS;
	w[12] = be16(2);
	u8 *own = (u8 *)(w + 13), *dst = (u8 *)w;
#pragma unroll
	for (int b = 0; b < 6; b++) {
		dst[36 + b] = own[b]; /* who asked */
		dst[b] = own[b];
		own[b] = plan.src_mac[OUT][b];
		dst[6 + b] = plan.src_mac[OUT][b];
	}
#pragma unroll
	for (int b = 0; b < 2; b++) {
		u16 a = w[16 + b];
		w[16 + b] = w[21 + b];
		w[21 + b] = a;
	}
	return redirect(ctx->ingress_ifindex, 0);
}

SEC("xdp") int demarc_answer(struct xdp_md *ctx)
{
	u32 row = 1, zero = 0;
	struct tally *t = map_lookup(&tallies, &row);
	struct control *c = map_lookup(&controls, &zero);
	struct seen n;
	int verdict;
	if (!t || !c)
		return XDP_DROP;
	u32 vlan = 0;
	if (plan.vlan) {
		/* Where the device under test is the kernel the tag is beside the frame and not in it. */
		u16 *w = (void *)(u64)ctx->data;
		if ((void *)(w + (ETH + TAG) / 2) <= (void *)(u64)ctx->data_end && w[6] == be16(0x8100)) {
			if (w[8] != be16(0x0800)) {
				t->kinds[OTHER]++;
				return neighbour(ctx);
			}
			vlan = be16(w[7]) & 0xfff;
#pragma unroll
			for (int b = 5; b >= 0; b--)
				w[b + TAG / 2] = w[b];
			if (adjust_head(ctx, TAG))
				return XDP_DROP;
		}
	}
	if (!opened(ctx, t, &n, &verdict))
		return verdict;
	enum kind k = answer(ctx, &n, c);
	if (k == RIGHT && vlan && vlan != plan.vlan + n.flow)
		k = WRONG_DST; /* another tenant's */
	counted(row, t, k, c, &n);
	return XDP_DROP;
}

char license_text[] SEC("license") = "Dual MIT/GPL";
