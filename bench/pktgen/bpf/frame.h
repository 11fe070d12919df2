//go:build ignore

/* What the far ends of both benches share, pktgen.c and talk.c: the shape of frames, the plan of flows, what is found about a frame. */
#pragma once
#include "kernel.h"

/* What judge and answer found; Go has the same list (kinds.go) and a test holds them together. */
enum kind {
	RIGHT,
	REORDERED,     /* right too, and counted there as well: a later frame of its flow came first */
	OTHER,         /* not of the bench's family: ARP, neighbour discovery and the like, left to the host */
	BAD_FORM,      /* not the shape of our frames: length, header length, protocol, fragment */
	BAD_IP_SUM,    /* IPv4 header checksum */
	BAD_L4_SUM,    /* UDP or TCP checksum wrong or missing */
	NOT_SENT,      /* no such flow, or the keyed check word is wrong: nobody sent this */
	WRONG_PAYLOAD, /* filler or length changed, with a checksum that is right again */
	WRONG_DST,     /* destination is not what the flow was sent to */
	WRONG_TTL,     /* not as much less than sent as the device under test takes off */
	WRONG_TUPLE,   /* translated source is not of the pool, or one that was to stay is not as sent */
	WRONG_MAPPING, /* of the pool, but another than the flow's first frame had */
	NOT_LEARNED,   /* of a flow that has no mapping, while only comparing */
	DUPLICATE,     /* flow and sequence number were seen before */
	STALE,         /* so far behind its flow that it cannot be told from a duplicate */
	KINDS,
};

enum { TAG = 4 }; /* of IEEE 802.1Q */
enum { TTL = 64, ETH = 14, IP4 = 20, IP6 = 40, L4 = 24, SIZES = 12 };
enum { OUT, IN, BOTH }; /* where frames go to: the outside, the inside */

struct eth {
	u8 dst_mac[6], src_mac[6];
	u16 ethertype;
} __attribute__((packed, aligned(2)));
struct ip4 {
	u8 vihl, tos;
	u16 len, id, frag;
	u8 ttl, proto;
	u16 sum;
	u16 src[2], dst[2]; /* halves, since the header begins at an odd word */
} __attribute__((packed, aligned(2)));
struct ip6 {
	u16 version[2], len;
	u8 proto, ttl;
	u16 src[8], dst[8];
} __attribute__((packed, aligned(2)));
struct l4 {
	u16 sport, dport, ulen, usum;
	/* payload; filler follows */
	u16 flow[2], seq[2], stamp[2], check[2];
} __attribute__((packed, aligned(2)));
_Static_assert(sizeof(struct eth) == ETH && sizeof(struct ip4) == IP4 && sizeof(struct ip6) == IP6 && sizeof(struct l4) == L4, "a frame has no gaps");

/* The flow plan: user space chooses it once, both sides compute the same fields from a flow's number. All in host order. */
struct plan {
	u64 key;        /* of the check word; new for each run, so that no old frame passes */
	u32 mask;       /* flows - 1, a power of two minus one */
	u32 inside;     /* first inside address (IPv6: its last 32 bits); flows spread over 1024 of them */
	u32 outside;    /* first outside address likewise; flows spread over 16 of them */
	u32 pool_lo, pool_hi; /* public addresses, inclusive */
	u16 inside_port;      /* first inside port */
	u16 outside_port;
	u8 dst_mac[2][6], src_mac[2][6]; /* of frames to the outside, to the inside */
	u32 shift;           /* number of bits in mask */
	u32 v6;              /* 1: IPv6, never translated */
	u16 inside_net[6], outside_net[6]; /* IPv6: the first 96 bits, as on the wire */
	u32 calls;           /* 1: flows with an even number are calls and have the first size, the others are bulk and have the second */
	u32 vlan;            /* of the first flow, each has one of its own: tenants. Frames of the inside are tagged; 0: none is */
	u32 sizes;           /* how many of the following are used */
	u16 size[SIZES];     /* of frames, taken in turn by each flow */
	u16 filler[SIZES];   /* ones' complement sum of the filler of such a frame */
};
const volatile struct plan plan = {};

/* How many frames were under way how long: each power of two above 256 ns is 128 parts, below it every ns is one. */
enum { PARTS = 128, BUCKETS = 26 * PARTS };
struct times {
	u64 frames[BUCKETS];
};

#define ARRAY(name, entries, of)        \
	struct {                        \
		UINT(type, MAP_ARRAY);  \
		UINT(max_entries, entries); \
		TYPE(key, u32);         \
		TYPE(value, of);        \
	} name SEC(".maps")

INLINE u32 check_word(u32 flow, u32 seq, u32 stamp)
{
	u64 h = plan.key ^ ((u64)flow << 32 | seq);
	h *= 0x9e3779b97f4a7c15ull;
	h ^= h >> 29 ^ stamp;
	h *= 0xbf58476d1ce4e5b9ull;
	return h >> 32;
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

INLINE u64 ip_sum(const struct ip4 *f)
{
	const u16 *w = (const u16 *)f;
	u64 s = 0;
#pragma unroll
	for (int i = 0; i < 10; i++)
		s += w[i];
	return s;
}

/* addr_sum adds n words of addresses. */
INLINE u64 addr_sum(const u16 *w, int n)
{
	u64 s = 0;
#pragma unroll
	for (int i = 0; i < n; i++)
		s += w[i];
	return s;
}

INLINE u32 load32(const u16 *h) { return (u32)be16(h[0]) << 16 | be16(h[1]); }
INLINE void store32(u16 *h, u32 v)
{
	h[0] = be16(v >> 16);
	h[1] = be16(v);
}

/* bucket is the place of a time among those of struct times. */
INLINE u32 bucket(u32 ns)
{
	u32 shift = 0, v = ns;
	if (v >> 16 >= 2 * PARTS) {
		v >>= 16;
		shift += 16;
	}
	if (v >> 8 >= 2 * PARTS) {
		v >>= 8;
		shift += 8;
	}
	if (v >> 4 >= 2 * PARTS) {
		v >>= 4;
		shift += 4;
	}
	if (v >> 2 >= 2 * PARTS) {
		v >>= 2;
		shift += 2;
	}
	if (v >> 1 >= 2 * PARTS) {
		v >>= 1;
		shift += 1;
	}
	/* The steps leave up to four times too much or none: one more. */
	if (v >= 2 * PARTS) {
		v >>= 1;
		shift += 1;
	}
	return shift * PARTS + v;
}

/* ns. A turn in which no frame is due takes 50 to 100; what took longer was work: frames that were handed on, an interrupt, a thread. */
#define IDLE_TURN 400
