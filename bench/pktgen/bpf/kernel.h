//go:build ignore

/* What pktgen.c needs of the kernel's BPF interface and no more, so that neither libbpf nor kernel headers need be installed
 * to regenerate it. Layouts and numbers are the kernel's stable user interface. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

/* Map definitions that the loader reads from BTF. */
#define UINT(name, val) int(*name)[val]
#define TYPE(name, val) typeof(val) *name

enum { MAP_ARRAY = 2, MAP_DEVMAP = 14 };

enum { XDP_DROP = 1, XDP_PASS = 2, XDP_TX = 3 };

struct xdp_md {
	u32 data;
	u32 data_end;
	u32 data_meta;
	u32 ingress_ifindex;
	u32 rx_queue_index;
	u32 egress_ifindex;
};

static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static u64 (*now_ns)(void) = (void *)5; /* CLOCK_MONOTONIC */
static long (*redirect)(u32 ifindex, u64 flags) = (void *)23; /* XDP_REDIRECT or XDP_ABORTED */
static long (*csum_diff)(void *from, u32 from_size, void *to, u32 to_size, u32 seed) = (void *)28; /* sizes: multiples of 4, 512 at most */
static long (*adjust_head)(struct xdp_md *ctx, int delta) = (void *)44;
static long (*redirect_map)(void *map, u64 key, u64 flags) = (void *)51; /* likewise */
static long (*adjust_tail)(struct xdp_md *ctx, int delta) = (void *)65;

#define be16(x) ((u16)__builtin_bswap16(x)) /* the target is little-endian */
#define be32(x) ((u32)__builtin_bswap32(x))
