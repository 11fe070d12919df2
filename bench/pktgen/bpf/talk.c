//go:build ignore

/* The far ends of the bench of connections: a client and a server of TCP that keep no more of a connection than how far it is, so that the device
 * under test is what bounds. The client runs as live frames of BPF_PROG_TEST_RUN where it begins a connection, and everywhere else an end answers
 * what arrives, which is judged first: each connection is seven frames.
 *
 *	client                        server
 *	SYN                       ->
 *	                          <-  SYN ACK
 *	ACK PSH, 4 bytes          ->
 *	                          <-  ACK PSH, 4 bytes
 *	FIN ACK                   ->
 *	                          <-  FIN ACK
 *	ACK                       ->  over
 *
 * No frame is longer than the one that it answers: a frame that comes from a socket has no room behind it to grow into.
 * Nothing is sent again: a connection that a frame is lost of is given up. A connection's number is the client's first sequence number, in steps
 * of 1024; the server's is a keyed hash of it. talk.go has the flow plan in Go. */
#include "frame.h"

enum { FIN = 1, SYN = 2, PSH = 8, ACK = 16 };
enum { TCP = 20, MSS = 4, TOLD = 4, NUMBERS = 10 };

struct tcp {
	u16 sport, dport, seq[2], ack[2];
	u8 off, flags;
	u16 window, sum, urgent;
} __attribute__((packed, aligned(2)));
_Static_assert(sizeof(struct tcp) == TCP, "a header has no gaps");
_Static_assert(MSS == 4 && TOLD == 4, "what is behind a header is a word, in all frames that have something there");

struct talk_control {
	u64 plain; /* sources arrive as they were sent */
	u64 hops;  /* what the device under test takes off the TTL */
};
struct talk_order {
	u64 end;     /* ns, CLOCK_MONOTONIC: no connection is begun after it */
	u64 limit;   /* connections */
	u64 at_once; /* so many are under way at a time */
	u64 patience; /* ns without an end of a connection, after which all that are under way are given up */
	u64 batch;   /* so many runs the kernel makes before it hands on the frames of them */
};
struct talk_progress {
	u64 begun;
	u64 given;  /* up, of these */
	u64 over;   /* at the last look */
	u64 since;  /* ns, when it was first so */
	u64 first;  /* ns, of the first connection */
	u64 done;
	u64 idle;   /* ns in which no connection was to be begun */
	u64 looked; /* ns, when it was so last; 0: it has begun one since */
	u64 left;   /* runs of the batch to come */
	u64 made;   /* frames of the batch */
};
struct talk {
	u32 addr; /* translated source, host order */
	u16 port;
	u16 pad;
	u32 client, server; /* frames that either has sent */
	u64 begun;          /* ns */
};
struct talk_tally {
	u64 kinds[KINDS];
	u64 over; /* connections */
	u64 last; /* ns, when the last one was */
	u64 worst; /* ns that one took */
};

ARRAY(talk_controls, 1, struct talk_control);
ARRAY(talk_orders, 1, struct talk_order);
ARRAY(talk_progresses, 1, struct talk_progress);
ARRAY(talks, 1, struct talk); /* the loader sets how many */
/* Row 0 is the server's, row 1 the client's. Each program runs on one queue, so on one CPU at a time: plain additions. */
ARRAY(talk_tallies, 2, struct talk_tally);
ARRAY(talk_times, 1, struct times);

/* A frame of a connection: seq and ack are behind the first numbers of who sends and of who hears. */
struct says {
	u8 flags, told;
	u16 seq, ack;
};
static const struct says client_says[4] = {
	{SYN, 0, 0, 0},
	{ACK | PSH, TOLD, 1, 1},
	{ACK | FIN, 0, 1 + TOLD, 1 + TOLD},
	{ACK, 0, 2 + TOLD, 2 + TOLD},
};
static const struct says server_says[4] = {
	{ACK | SYN, 0, 0, 1},
	{ACK | PSH, TOLD, 1, 1 + TOLD},
	{ACK | FIN, 0, 1 + TOLD, 2 + TOLD},
};

INLINE u32 client_first(u32 n) { return n << NUMBERS; }
INLINE u32 server_first(u32 n) { return check_word(n, 0, 0); }

/* told is what an end tells. */
INLINE u32 told(u32 n, u32 server) { return check_word(n, 1, server); }

/* say writes a whole frame: what lies in the page does not matter. */
INLINE int say(struct xdp_md *ctx, const struct says *s, u32 server, u32 n, u32 addr, u16 port)
{
	u32 options = s->flags & SYN ? MSS : 0, size = ETH + IP4 + TCP + options + s->told;
	u64 have = (void *)(u64)ctx->data_end - (void *)(u64)ctx->data;
	asm volatile("" : "+r"(have)); /* else the compiler subtracts from a pointer, which the verifier forbids */
	if (have != size && adjust_tail(ctx, (int)size - (int)have))
		return 0;
	void *data = (void *)(u64)ctx->data, *end = (void *)(u64)ctx->data_end;
	struct eth *e = data;
	struct ip4 *f = data + ETH;
	struct tcp *t = data + ETH + IP4;
	if ((void *)(t + 1) > end)
		return 0;
#pragma unroll
	for (int b = 0; b < 6; b++) {
		e->dst_mac[b] = server ? plan.dst_mac[IN][b] : plan.dst_mac[OUT][b];
		e->src_mac[b] = server ? plan.src_mac[IN][b] : plan.src_mac[OUT][b];
	}
	e->ethertype = be16(0x0800);
	f->vihl = 0x45;
	f->tos = 0;
	f->len = be16((u16)(size - ETH));
	f->id = (u16)n;
	f->frag = be16(0x4000);
	f->ttl = TTL;
	f->proto = 6;
	f->sum = 0;
	store32(f->src, server ? outside_addr(n) : addr);
	store32(f->dst, server ? addr : outside_addr(n));
	f->sum = ~fold(ip_sum(f));
	u16 own = server ? plan.outside_port : port, other = server ? port : plan.outside_port;
	u32 first = server ? server_first(n) : client_first(n), heard = server ? client_first(n) : server_first(n);
	t->sport = be16(own);
	t->dport = be16(other);
	store32(t->seq, first + s->seq);
	store32(t->ack, s->flags & ACK ? heard + s->ack : 0);
	t->off = (TCP + options) << 2;
	t->flags = s->flags;
	t->window = be16(0xffff);
	t->sum = 0;
	t->urgent = 0;
	u64 sum = addr_sum((const u16 *)t, TCP / 2) + addr_sum(f->src, 4) + be16(6) + be16((u16)(size - ETH - IP4));
	u16 *w = (u16 *)(t + 1);
	if (options) {
		if ((void *)(w + MSS / 2) > end)
			return 0;
		w[0] = be16(0x0204);
		w[1] = be16(1460);
		sum += (u32)w[0] + w[1];
	} else if (s->told) {
		if ((void *)(w + TOLD / 2) > end)
			return 0;
		store32(w, told(n, server));
		sum += (u32)w[0] + w[1];
	}
	t->sum = ~fold(sum);
	return 1;
}

/* shape judges the form of a frame and its checksums. */
INLINE enum kind shape(struct xdp_md *ctx, const struct says *s, u64 hops)
{
	void *data = (void *)(u64)ctx->data, *end = (void *)(u64)ctx->data_end;
	struct ip4 *f = data + ETH;
	struct tcp *t = data + ETH + IP4;
	u32 options = s->flags & SYN ? MSS : 0, size = ETH + IP4 + TCP + options + s->told;
	if ((void *)(t + 1) > end || end - data != size || f->vihl != 0x45 || f->len != be16((u16)(size - ETH)) || f->frag & be16(0x3fff) || t->off != (TCP + options) << 2)
		return BAD_FORM;
	if (fold(ip_sum(f)) != 0xffff)
		return BAD_IP_SUM;
	u64 sum = addr_sum((const u16 *)t, TCP / 2) + addr_sum(f->src, 4) + be16(6) + be16((u16)(size - ETH - IP4));
	u16 *w = (u16 *)(t + 1);
	if (options || s->told) {
		if ((void *)(w + 2) > end)
			return BAD_FORM;
		sum += (u32)w[0] + w[1];
	}
	if (fold(sum) != 0xffff)
		return BAD_L4_SUM;
	if (f->ttl != (u8)(TTL - hops))
		return WRONG_TTL;
	return RIGHT;
}

/* right_words looks at what was told. */
INLINE int right_words(struct xdp_md *ctx, u32 n, u32 server)
{
	u16 *w = (void *)(u64)ctx->data + ETH + IP4 + TCP;
	return (void *)(w + TOLD / 2) <= (void *)(u64)ctx->data_end && load32(w) == told(n, server);
}

/* opened finds the headers of a frame of ours; what is of something else is left to the host. */
INLINE int opened(struct xdp_md *ctx, struct talk_tally *y, int *verdict)
{
	void *data = (void *)(u64)ctx->data, *end = (void *)(u64)ctx->data_end;
	struct eth *e = data;
	struct ip4 *f = data + ETH;
	*verdict = XDP_DROP;
	if (data + ETH + IP4 + TCP > end || e->ethertype != be16(0x0800) || f->proto != 6) {
		y->kinds[OTHER]++;
		*verdict = XDP_PASS;
		return 0;
	}
	return 1;
}

INLINE void note(struct talk_tally *y, u64 took)
{
	u32 zero = 0, ns = took >> 32 ? 0xffffffff : (u32)took, i = bucket(ns);
	struct times *h = map_lookup(&talk_times, &zero);
	if (took > y->worst)
		y->worst = took;
	if (h && i < BUCKETS)
		h->frames[i]++;
}

/* hears judges a frame at the server, and says which connection it is of. */
INLINE enum kind hears(struct xdp_md *ctx, const struct talk_control *c, struct talk **of, u32 *number)
{
	void *data = (void *)(u64)ctx->data;
	struct ip4 *f = data + ETH;
	struct tcp *t = data + ETH + IP4;
	if ((void *)(t + 1) > (void *)(u64)ctx->data_end)
		return BAD_FORM;
	u32 seq = load32(t->seq), n = seq >> NUMBERS;
	if (n & ~plan.mask)
		return NOT_SENT;
	struct talk *k = map_lookup(&talks, &n);
	if (!k)
		return NOT_SENT;
	u32 at = k->server;
	if (at > 3)
		return DUPLICATE;
	const struct says *s = &client_says[at & 3], *before = &client_says[(at - 1) & 3];
	if (t->flags != s->flags || seq != client_first(n) + s->seq || load32(t->ack) != (s->flags & ACK ? server_first(n) + s->ack : 0))
		return at && t->flags == before->flags && seq == client_first(n) + before->seq ? DUPLICATE : NOT_SENT;
	enum kind kind = shape(ctx, s, c->hops);
	if (kind != RIGHT)
		return kind;
	if (s->told && !right_words(ctx, n, 0))
		return WRONG_PAYLOAD;
	if (load32(f->dst) != outside_addr(n) || t->dport != be16(plan.outside_port))
		return WRONG_DST;
	u32 addr = load32(f->src);
	u16 port = be16(t->sport);
	if (c->plain ? addr != inside_addr(n) || port != inside_port(n) : addr < plan.pool_lo || addr > plan.pool_hi)
		return WRONG_TUPLE;
	if (!at) {
		k->addr = addr;
		k->port = port;
	} else if (k->addr != addr || k->port != port) {
		return WRONG_MAPPING;
	}
	*of = k;
	*number = n;
	return RIGHT;
}

SEC("xdp") int demarc_server(struct xdp_md *ctx)
{
	u32 row = 0, n = 0;
	struct talk_tally *y = map_lookup(&talk_tallies, &row);
	struct talk_control *c = map_lookup(&talk_controls, &row);
	struct talk *k = 0;
	int verdict;
	if (!y || !c)
		return XDP_DROP;
	if (!opened(ctx, y, &verdict))
		return verdict;
	enum kind kind = hears(ctx, c, &k, &n);
	if (kind < KINDS) /* for the verifier */
		y->kinds[kind]++;
	if (kind != RIGHT || !k)
		return XDP_DROP;
	u32 at = k->server++;
	if (at == 3) {
		u64 now = now_ns();
		note(y, now - k->begun);
		y->last = now;
		y->over++;
		return XDP_DROP;
	}
	if (!say(ctx, &server_says[at & 3], 1, n, k->addr, k->port))
		return XDP_DROP;
	return redirect(ctx->ingress_ifindex, 0); /* see pktgen.c */
}

/* answered judges a frame at the client. */
INLINE enum kind answered(struct xdp_md *ctx, const struct talk_control *c, struct talk **of, u32 *number)
{
	void *data = (void *)(u64)ctx->data;
	struct ip4 *f = data + ETH;
	struct tcp *t = data + ETH + IP4;
	if ((void *)(t + 1) > (void *)(u64)ctx->data_end)
		return BAD_FORM;
	u32 host = load32(f->dst) - plan.inside, row = (u16)(be16(t->dport) - plan.inside_port), n = row << 10 | host;
	if (host > 1023 || n & ~plan.mask)
		return WRONG_DST;
	struct talk *k = map_lookup(&talks, &n);
	if (!k || !k->client)
		return NOT_SENT;
	u32 at = k->client - 1;
	if (at > 2)
		return DUPLICATE;
	const struct says *s = &server_says[at & 3], *before = &server_says[(at - 1) & 3];
	u32 seq = load32(t->seq) - server_first(n);
	if (t->flags != s->flags || seq != s->seq || load32(t->ack) != client_first(n) + s->ack)
		return at && t->flags == before->flags && seq == before->seq ? DUPLICATE : NOT_SENT;
	enum kind kind = shape(ctx, s, c->hops);
	if (kind != RIGHT)
		return kind;
	if (s->told && !right_words(ctx, n, 1))
		return WRONG_PAYLOAD;
	if (load32(f->src) != outside_addr(n) || t->sport != be16(plan.outside_port))
		return WRONG_TUPLE;
	*of = k;
	*number = n;
	return RIGHT;
}

SEC("xdp") int demarc_client(struct xdp_md *ctx)
{
	u32 row = 1, zero = 0, n = 0;
	struct talk_tally *y = map_lookup(&talk_tallies, &row);
	struct talk_control *c = map_lookup(&talk_controls, &zero);
	struct talk *k = 0;
	int verdict;
	if (!y || !c)
		return XDP_DROP;
	if (!opened(ctx, y, &verdict))
		return verdict;
	enum kind kind = answered(ctx, c, &k, &n);
	if (kind < KINDS) /* for the verifier */
		y->kinds[kind]++;
	if (kind != RIGHT || !k)
		return XDP_DROP;
	u32 at = k->client++;
	if (!say(ctx, &client_says[at & 3], 0, n, inside_addr(n), inside_port(n)))
		return XDP_DROP;
	return redirect(ctx->ingress_ifindex, 0);
}

/* dial begins connections, so that a number of them is under way. */
SEC("xdp") int demarc_dial(struct xdp_md *ctx)
{
	u32 zero = 0;
	struct talk_order *o = map_lookup(&talk_orders, &zero);
	struct talk_progress *p = map_lookup(&talk_progresses, &zero);
	struct talk_tally *y = map_lookup(&talk_tallies, &zero);
	if (!o || !p || !y || p->done)
		return XDP_DROP;
	if (!p->left) { /* the batch before has been handed on: where it had a frame, the time since is that */
		p->left = o->batch;
		if (p->made)
			p->looked = 0;
		p->made = 0;
	}
	p->left--;
	u64 over = *(volatile u64 *)&y->over, now = now_ns();
	if (over != p->over || !p->since) {
		p->over = over;
		p->since = now;
	}
	if (p->looked && now - p->looked < IDLE_TURN)
		p->idle += now - p->looked;
	p->looked = 0;
	/* What was given up may have ended all the same: then fewer are under way than there were. */
	u64 gone = over + p->given, under_way = p->begun > gone ? p->begun - gone : 0;
	if (now >= o->end || (p->begun >= o->limit && !under_way)) {
		p->done = 1;
		return XDP_DROP;
	}
	if (p->begun >= o->limit || under_way >= o->at_once) {
		if (now - p->since > o->patience) {
			p->given += under_way;
			p->since = now;
		}
		p->looked = now;
		return XDP_DROP;
	}
	u32 n = scramble(p->begun & plan.mask);
	struct talk *k = map_lookup(&talks, &n);
	if (!k)
		return XDP_DROP;
	if (!p->first)
		p->first = now;
	p->begun++;
	p->made++;
	k->begun = now;
	k->client = 1;
	if (!say(ctx, &client_says[0], 0, n, inside_addr(n), inside_port(n)))
		return XDP_DROP;
	return XDP_TX; /* of the device that the run names: out of it */
}

char license_text[] SEC("license") = "Dual MIT/GPL";
