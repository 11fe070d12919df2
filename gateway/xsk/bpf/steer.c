//go:build ignore

/* The XDP program of a port decides one thing: is this frame ours or the host's.
 *
 * Ours goes to the AF_XDP socket of its queue, and is dropped when there is none: the program outlives the process, so a
 * dead gateway is a closed one. Only what is recognised as the host's is passed to the kernel; what cannot be told
 * goes to the socket, whose parser names what is wrong with it. So no transit packet reaches the host's stack, whatever
 * it looks like. DESIGN.md in the folder above has the rules in prose and why. */
#include "kernel.h"

/* What became of a frame; Go has the same list (counters.go) and a test holds them together. */
enum what {
	TO_SOCKET,      /* redirected */
	HOST_LINK,      /* link control, 01-80-C2 */
	HOST_ARP,
	HOST_ND,
	HOST_RA,
	HOST_DHCP,
	HOST_ADDRESS,   /* to an address that is wholly the host's */
	HOST_SHARED,    /* to a shared address, on a port or identifier of the host's */
	DROP_MAC,       /* for neither the port's nor a group's MAC */
	DROP_NO_SOCKET, /* no socket is bound to this queue */
	DROP_NOT_OWNER, /* to a group's MAC, and another node serves the group: its deadline here is over */
	KEPT,           /* redirected too: to a group's MAC, and the group has just been handed over; its next owner gets it */
	WHATS,
};

/* Whose an address is: values of the address tries. */
enum class { NOBODY, HOST, SHARED, GATEWAY };

/* Bits of a VLAN's word. Without VLAN_HOST nothing of it is the host's. */
enum { VLAN_HOST = 1, VLAN_RESOLVES4 = 2, VLAN_RESOLVES6 = 4 };

/* Rows of the port bitmap. */
enum { CLASS_TCP, CLASS_UDP, CLASS_ICMP };

/* Bits of settings.flags. */
enum { ANY_MAC = 1, DHCP_UNICAST = 2 };

struct settings {
	u8 mac[6];
	u16 flags;
	s64 ahead; /* of the kernel's CLOCK_BOOTTIME, ns: the node's own clock may be in a time namespace */
	u64 known[4]; /* sums of the addresses in the tries: what has another sum is nobody's, and is asked no trie */
};
/* Constants of one load: an update loads a fresh program and replaces the old one in one step. */
const volatile struct settings settings = {};

struct key4 {
	u32 prefixlen;
	u32 vid;
	u8 addr[4];
};
struct key6 {
	u32 prefixlen;
	u32 vid;
	u8 addr[16];
};
struct mac {
	u8 b[8]; /* six and two zeros */
};
/* Until when this node serves a group. Written by the process alone, through its mapping; a process that ends leaves deadlines that run out. */
struct deadline {
	u64 until; /* ns of the node's CLOCK_BOOTTIME; 0 = not at all */
	u64 epoch;
	u64 keep; /* until when what comes behind until goes to the socket all the same: not as the group's, but to be handed on to who serves it next */
	u64 rest;
};

struct {
	UINT(type, MAP_XSKMAP);
	UINT(max_entries, 1);
	TYPE(key, u32);
	TYPE(value, u32);
} xsks SEC(".maps");

struct {
	UINT(type, MAP_PERCPU_ARRAY);
	UINT(max_entries, WHATS);
	TYPE(key, u32);
	TYPE(value, u64);
} counters SEC(".maps");

struct {
	UINT(type, MAP_LPM_TRIE);
	UINT(max_entries, 1024);
	UINT(map_flags, F_NO_PREALLOC);
	TYPE(key, struct key4);
	TYPE(value, u32);
} addrs4 SEC(".maps");

struct {
	UINT(type, MAP_LPM_TRIE);
	UINT(max_entries, 1024);
	UINT(map_flags, F_NO_PREALLOC);
	TYPE(key, struct key6);
	TYPE(value, u32);
} addrs6 SEC(".maps");

struct {
	UINT(type, MAP_HASH);
	UINT(max_entries, 512); /* two for each group */
	TYPE(key, struct mac);
	TYPE(value, u32); /* the group's id */
} macs SEC(".maps");

struct {
	UINT(type, MAP_ARRAY); /* one for the programs of all ports of a process */
	UINT(max_entries, 256);
	UINT(map_flags, F_MMAPABLE);
	TYPE(key, u32);
	TYPE(value, struct deadline);
} deadlines SEC(".maps");

struct {
	UINT(type, MAP_ARRAY);
	UINT(max_entries, 3 * 1024); /* 65536 bits a class */
	TYPE(key, u32);
	TYPE(value, u64);
} ports SEC(".maps");

struct {
	UINT(type, MAP_ARRAY);
	UINT(max_entries, 4096);
	TYPE(key, u32);
	TYPE(value, u32);
} vlans SEC(".maps");

/* How many frames have gone to the socket of each queue, a line each: a worker that compares it with what it has received knows what is on its way. Written by this program and by the second
 * executor, read by the process through its mapping. */
struct ups {
	u64 n;
	u64 rest[7];
};
struct {
	UINT(type, MAP_ARRAY);
	UINT(max_entries, 1);
	UINT(map_flags, F_MMAPABLE);
	TYPE(key, u32);
	TYPE(value, struct ups);
} ups SEC(".maps");

/* What is ours is shown to the second executor first, where there is one (gateway/cruise). The kernel empties the array when the process ends, however it ends. */
struct {
	UINT(type, MAP_PROG_ARRAY);
	UINT(max_entries, 1);
	TYPE(key, u32);
	TYPE(value, u32);
} second SEC(".maps");

struct eth {
	u8 dst[6], src[6];
	u16 type;
};

struct tag {
	u16 tci, type;
};

struct ip4 {
	u8 ver_ihl, tos;
	u16 len, id, frag;
	u8 ttl, proto;
	u16 sum;
	u8 src[4], dst[4];
};

struct ip6 {
	u8 ver, tc[3];
	u16 len;
	u8 next, hops;
	u8 src[16], dst[16];
};

/* The start of TCP, UDP and of ICMP echo, as far as we look. */
struct l4 {
	union {
		struct {
			u16 sport, dport;
		};
		struct {
			u8 type, code;
			u16 sum;
		};
	};
	u16 id, seq;
};

struct arp {
	u16 htype, ptype;
	u8 hlen, plen;
	u16 op;
	u8 sha[6], spa[4], tha[6], tpa[4];
};

struct dhcp {
	u8 op, htype, hlen, hops;
	u8 fixed[12];
	u8 yiaddr[4];
	u8 rest[8];
	u8 chaddr[6];
};

enum { ETH_IP4 = 0x0800, ETH_ARP = 0x0806, ETH_VLAN = 0x8100, ETH_IP6 = 0x86dd };
enum { ICMP = 1, TCP = 6, UDP = 17, ICMP6 = 58 };

INLINE int same4(const u8 *a, const u8 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

/* May an address with this sum be in the tries? Most packets are nobody's here, and a trie costs ten times as much. */
INLINE int known(u32 sum)
{
	sum ^= sum >> 16;
	sum ^= sum >> 8;
	return settings.known[sum >> 6 & 3] >> (sum & 63) & 1;
}

INLINE u32 class4(u32 vid, const u8 *a)
{
	if (!known(AT32(a)))
		return NOBODY;
	struct key4 k = {.prefixlen = 64, .vid = vid};
	__builtin_memcpy(k.addr, a, 4);
	u32 *c = map_lookup(&addrs4, &k);
	return c ? *c : NOBODY;
}

INLINE u32 class6(u32 vid, const u8 *a)
{
	if (!known(AT32(a) ^ AT32(a + 4) ^ AT32(a + 8) ^ AT32(a + 12)))
		return NOBODY;
	struct key6 k = {.prefixlen = 160, .vid = vid};
	__builtin_memcpy(k.addr, a, 16);
	u32 *c = map_lookup(&addrs6, &k);
	return c ? *c : NOBODY;
}

INLINE int kernels(u32 class)
{
	return class == HOST || class == SHARED;
}

/* Is this port (or echo identifier), in network order, the host's on shared addresses? */
INLINE int hosts_port(u32 class, u16 port)
{
	u32 n = be16(port), at = class * 1024 + (n >> 6);
	u64 *w = map_lookup(&ports, &at);
	return w && (*w >> (n & 63) & 1);
}

INLINE int own_mac(const u8 *m)
{
	const volatile u8 *own = settings.mac;
	return AT32(m) == *(const volatile u32 *)own && AT16(m + 4) == *(const volatile u16 *)(own + 4);
}

/* By target address. A neighbour that announces itself (RFC 5227 section 3) tells the kernel where the kernel resolves for
 * the gateway too, which then hears it by netlink; else the gateway. */
INLINE enum what arp(void *p, void *end, u32 vid, u32 vlan)
{
	struct arp *a = p;
	if ((void *)(a + 1) > end || a->htype != be16(1) || a->ptype != be16(ETH_IP4) || a->hlen != 6 || a->plen != 4)
		return TO_SOCKET;
	u32 c = class4(vid, a->tpa);
	if (kernels(c) || (c != GATEWAY && vlan & VLAN_RESOLVES4 && same4(a->spa, a->tpa)))
		return HOST_ARP;
	return TO_SOCKET;
}

/* A source route (RFC 791 section 3.1) could make the kernel send the packet on: 1 when there is one or it cannot be told. */
INLINE int source_routed(struct ip4 *ip, void *end)
{
	u32 size = (ip->ver_ihl & 15) * 4, at = 20;
	for (int i = 0; i < 40; i++) {
		if (at >= size)
			return 0;
		u8 *o = (u8 *)ip + (at & 63);
		if ((void *)(o + 2) > end)
			return 1;
		u32 kind = o[0], len = o[1], longer = kind ^ 1;
		if (kind == 0) /* end of list */
			return 0;
		/* Padding (1) has no length. Without a branch, because the verifier would follow each mix of options to its own
		 * offset: a million instructions, which newer kernels refuse. */
		longer = -(-longer >> 31);
		asm volatile("" : "+r"(longer));
		if (kind == 131 || kind == 137 || (len | ~longer) < 2)
			return 1;
		at += 1 + ((len - 1) & longer);
	}
	return 0;
}

/* Does an ICMP error (v4 or v6) quote a packet that the host sent from the shared address? */
INLINE int quotes_host(u32 proto, struct l4 *q, void *end)
{
	if ((void *)(q + 1) > end) /* an error quotes eight bytes at least */
		return 0;
	if (proto == TCP)
		return hosts_port(CLASS_TCP, q->sport);
	if (proto == UDP)
		return hosts_port(CLASS_UDP, q->sport);
	if ((proto == ICMP && q->type == 8) || (proto == ICMP6 && q->type == 128))
		return hosts_port(CLASS_ICMP, q->id);
	return 0;
}

INLINE int shared4(struct ip4 *ip, struct l4 *l, void *end)
{
	if (ip->frag & be16(0x3fff)) /* later fragments have no ports: whole packets only */
		return 0;
	if ((void *)(l + 1) > end)
		return 0;
	switch (ip->proto) {
	case TCP:
		return hosts_port(CLASS_TCP, l->dport);
	case UDP:
		return hosts_port(CLASS_UDP, l->dport);
	case ICMP:
		break;
	default:
		return 0;
	}
	if (l->type == 0)
		return hosts_port(CLASS_ICMP, l->id);
	if (l->type != 3 && l->type != 4 && l->type != 5 && l->type != 11 && l->type != 12)
		return 0;
	struct ip4 *q = (void *)(l + 1);
	if ((void *)(q + 1) > end || q->ver_ihl >> 4 != 4 || (q->ver_ihl & 15) < 5 || q->frag & be16(0x1fff) || !same4(q->src, ip->dst))
		return 0;
	return quotes_host(q->proto, (void *)q + (q->ver_ihl & 15) * 4, end);
}

/* DHCP for a client on the host: answers are broadcast, or sent to the address that is only being offered (then the client's
 * hardware address must be the port's, and only where the node file says that there is a client). */
INLINE int dhcp4(struct ip4 *ip, struct l4 *l, void *end)
{
	if (ip->proto != UDP || ip->frag & be16(0x3fff) || (void *)(l + 1) > end || l->sport != be16(67) || l->dport != be16(68))
		return 0;
	if ((ip->dst[0] & ip->dst[1] & ip->dst[2] & ip->dst[3]) == 255)
		return 1;
	struct dhcp *d = (void *)(l + 1);
	return settings.flags & DHCP_UNICAST && (void *)(d + 1) <= end && d->op == 2 && same4(d->yiaddr, ip->dst) && own_mac(d->chaddr);
}

INLINE enum what ip4(void *p, void *end, u32 vid)
{
	struct ip4 *ip = p;
	if ((void *)(ip + 1) > end || ip->ver_ihl >> 4 != 4 || (ip->ver_ihl & 15) < 5)
		return TO_SOCKET;
	struct l4 *l = p + (ip->ver_ihl & 15) * 4;
	u32 c = class4(vid, ip->dst);
	if (!kernels(c))
		return c == NOBODY && dhcp4(ip, l, end) ? HOST_DHCP : TO_SOCKET;
	if (source_routed(ip, end))
		return TO_SOCKET;
	if (c == HOST)
		return HOST_ADDRESS;
	return shared4(ip, l, end) ? HOST_SHARED : TO_SOCKET;
}

/* A routing header could make the kernel send the packet on: 1 when there is one or it cannot be told. */
INLINE int routed6(struct ip6 *ip, void *end)
{
	u32 next = ip->next, at = 40;
	for (int i = 0; i < 8; i++) {
		if (next == 43)
			return 1;
		if (next != 0 && next != 60 && next != 44)
			return 0;
		u8 *h = (u8 *)ip + (at & 0x7ff);
		if ((void *)(h + 8) > end)
			return 1;
		if (next == 44 && ((h[2] << 8 | h[3]) & 0xfff8)) /* a later fragment */
			return 0;
		at += next == 44 ? 8 : (h[1] + 1) * 8;
		if (at > 0x7ff)
			return 1;
		next = h[0];
	}
	return 1;
}

INLINE int shared6(struct ip6 *ip, struct l4 *l, void *end)
{
	if ((void *)(l + 1) > end)
		return 0;
	switch (ip->next) {
	case TCP:
		return hosts_port(CLASS_TCP, l->dport);
	case UDP:
		return hosts_port(CLASS_UDP, l->dport);
	case ICMP6:
		break;
	default:
		return 0;
	}
	if (l->type == 129)
		return hosts_port(CLASS_ICMP, l->id);
	if (l->type < 1 || l->type > 4)
		return 0;
	struct ip6 *q = (void *)(l + 1);
	if ((void *)(q + 1) > end || q->ver >> 4 != 6)
		return 0;
	for (int i = 0; i < 16; i++)
		if (q->src[i] != ip->dst[i])
			return 0;
	return quotes_host(q->next, (void *)(q + 1), end);
}

/* RFC 4861. The destination must be on the link or the kernel's own, or the kernel might send the message on as transit. */
INLINE enum what nd(struct ip6 *ip, struct l4 *l, void *end, u32 vid, u32 vlan, u32 c)
{
	int link = ip->dst[0] == 0xff && (ip->dst[1] & 15) == 2; /* multicast, link scope */
	if (!link && !kernels(c))
		return TO_SOCKET;
	if (l->type == 134) /* the host configures itself by it; the gateway has static routes */
		return HOST_RA;
	u8 *target = (void *)(l + 1);
	if ((void *)(target + 16) > end)
		return TO_SOCKET;
	if (l->type == 136 && !link) /* the answer to a solicitation of the kernel's */
		return HOST_ND;
	u32 t = class6(vid, target);
	if (kernels(t) || (l->type == 136 && t != GATEWAY && vlan & VLAN_RESOLVES6))
		return HOST_ND;
	return TO_SOCKET;
}

INLINE enum what ip6(void *p, void *end, u32 vid, u32 vlan)
{
	struct ip6 *ip = p;
	if ((void *)(ip + 1) > end || ip->ver >> 4 != 6)
		return TO_SOCKET;
	struct l4 *l = (void *)(ip + 1);
	u32 c = class6(vid, ip->dst);
	if ((void *)(l + 1) <= end) {
		if (ip->next == ICMP6 && ip->hops == 255 && l->type >= 134 && l->type <= 136)
			return nd(ip, l, end, vid, vlan, c);
		if (ip->next == UDP && l->sport == be16(547) && l->dport == be16(546) && c == NOBODY &&
		    ip->dst[0] == 0xfe && (ip->dst[1] & 0xc0) == 0x80) /* never forwarded by the kernel */
			return HOST_DHCP;
	}
	if (!kernels(c) || routed6(ip, end))
		return TO_SOCKET;
	if (c == HOST)
		return HOST_ADDRESS;
	return shared6(ip, l, end) ? HOST_SHARED : TO_SOCKET;
}

/* Does this node serve the group now, or has it just handed it over? One load each of words that somebody else writes. */
INLINE enum what of_group(u32 group)
{
	struct deadline *d = map_lookup(&deadlines, &group);
	if (!d)
		return DROP_NOT_OWNER;
	u64 now = ktime_get_boot_ns() + settings.ahead;
	if (now < *(volatile u64 *)&d->until)
		return TO_SOCKET;
	return now < *(volatile u64 *)&d->keep ? KEPT : DROP_NOT_OWNER;
}

INLINE enum what decide(void *p, void *end)
{
	struct eth *e = p;
	if ((void *)(e + 1) > end)
		return TO_SOCKET;
	u32 type = be16(e->type), vid = 0;
	p = e + 1;
	if (type == ETH_VLAN) {
		struct tag *t = p;
		if ((void *)(t + 1) > end)
			return TO_SOCKET;
		vid = be16(t->tci) & 0xfff;
		type = be16(t->type);
		p = t + 1;
	}
	if (e->dst[0] == 1 && e->dst[1] == 0x80 && e->dst[2] == 0xc2)
		return type == ETH_IP4 || type == ETH_IP6 || type == ETH_ARP || type == ETH_VLAN ? TO_SOCKET : HOST_LINK;
	if (!(e->dst[0] & 1) && !own_mac(e->dst)) { /* a group's MAC is the gateway's alone */
		struct mac m = {};
		__builtin_memcpy(m.b, e->dst, 6);
		u32 *group = map_lookup(&macs, &m);
		if (group)
			return of_group(*group);
		return settings.flags & ANY_MAC ? TO_SOCKET : DROP_MAC;
	}
	u32 *vlan = map_lookup(&vlans, &vid);
	if (!vlan || !(*vlan & VLAN_HOST))
		return TO_SOCKET;
	switch (type) {
	case ETH_ARP:
		return arp(p, end, vid, *vlan);
	case ETH_IP4:
		return ip4(p, end, vid);
	case ETH_IP6:
		return ip6(p, end, vid, *vlan);
	}
	return TO_SOCKET;
}

SEC("xdp") int demarc_steer(struct xdp_md *ctx)
{
	u32 what = decide((void *)(u64)ctx->data, (void *)(u64)ctx->data_end);
	long action = XDP_PASS;
	if (what == DROP_MAC || what == DROP_NOT_OWNER) {
		action = XDP_DROP;
	} else if (what == TO_SOCKET || what == KEPT) {
		if (what == TO_SOCKET)
			tail_call(ctx, &second, 0); /* comes back only where there is none */
		action = redirect_map(&xsks, ctx->rx_queue_index, XDP_DROP);
		if (action != XDP_REDIRECT) {
			what = DROP_NO_SOCKET;
		} else {
			u32 queue = ctx->rx_queue_index;
			struct ups *u = map_lookup(&ups, &queue);
			if (u)
				u->n++;
		}
	}
	u64 *n = map_lookup(&counters, &what);
	if (n)
		(*n)++;
	return action;
}

char license_text[] SEC("license") = "Dual MIT/GPL";
