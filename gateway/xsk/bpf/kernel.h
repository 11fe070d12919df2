//go:build ignore

/* What programs of ports need of the kernel's BPF interface and no more, so that neither libbpf nor kernel headers need be installed
 * to regenerate it. Layouts and numbers are the kernel's stable user interface. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long s64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

/* Map definitions that the loader reads from BTF. */
#define UINT(name, val) int(*name)[val]
#define TYPE(name, val) typeof(val) *name

enum {
	MAP_ARRAY = 2,
	MAP_HASH = 1,
	MAP_PROG_ARRAY = 3,
	MAP_PERCPU_ARRAY = 6,
	MAP_LPM_TRIE = 11,
	MAP_XSKMAP = 17,
};
enum { F_NO_PREALLOC = 1, F_RDONLY_PROG = 1 << 7, F_MMAPABLE = 1 << 10 };

enum { XDP_DROP = 1, XDP_PASS = 2, XDP_REDIRECT = 4 };

struct xdp_md {
	u32 data;
	u32 data_end;
	u32 data_meta;
	u32 ingress_ifindex;
	u32 rx_queue_index;
	u32 egress_ifindex;
};

static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*tail_call)(void *ctx, void *map, u32 index) = (void *)12;
static long (*redirect_map)(void *map, u32 key, u64 flags) = (void *)51;
static u64 (*ktime_get_boot_ns)(void) = (void *)125;

#define be16(x) ((u16)__builtin_bswap16(x)) /* the target is little-endian */

/* A word of the frame: x86 and BPF on it read what is not aligned. */
#define AT16(p) (*(u16 *)(p))
#define AT32(p) (*(u32 *)(p))
#define AT64(p) (*(u64 *)(p))
