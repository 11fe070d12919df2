//go:build ignore

/* Sends what a worker has ready, many frames by one system call: BPF_PROG_TEST_RUN with live frames runs the program once for each, and what it redirects the kernel gives to the devices in batches. A tx ring in copy mode
 * costs a socket buffer for each frame, and a turn of the far end's NAPI on a veth. DESIGN.md in the folder above has the figures.
 *
 * The program judges nothing but the time: until when a frame may leave has been asked by the worker, and a call may be held up by the kernel, or by whoever stops the process between two batches. */
#include "../../xsk/bpf/kernel.h"

enum { MAP_DEVMAP = 14 };

static long (*xdp_adjust_tail)(struct xdp_md *ctx, int delta) = (void *)65;
static long (*xdp_store_bytes)(struct xdp_md *ctx, u32 offset, void *from, u32 len) = (void *)190;

/* Powers of two, but for the bytes of a frame. Go has the same numbers. */
enum { WORKERS = 16, FRAMES = 256, BYTES = 2032, LEAST = 14 };

struct frame {
	u64 until; /* ns of the node's CLOCK_BOOTTIME: from then on it may not leave */
	u32 len;
	u16 port;
	u16 left; /* 1: it was in time, and the device was there */
	u8 bytes[BYTES];
};

struct settings {
	s64 ahead; /* of the kernel's CLOCK_BOOTTIME, ns: the node's own clock may be in a time namespace */
};
const volatile struct settings settings = {};

/* How far a worker's call has come: a line each. */
struct progress {
	u32 next;
	u32 rest[15];
};

struct { UINT(type, MAP_ARRAY); UINT(max_entries, FRAMES); UINT(map_flags, F_MMAPABLE); TYPE(key, u32); TYPE(value, struct frame); } frames SEC(".maps"); /* FRAMES of each worker */
struct { UINT(type, MAP_ARRAY); UINT(max_entries, 1); UINT(map_flags, F_MMAPABLE); TYPE(key, u32); TYPE(value, struct progress); } progresses SEC(".maps");
struct { UINT(type, MAP_DEVMAP); UINT(max_entries, 1); TYPE(key, u32); TYPE(value, u32); } devices SEC(".maps"); /* the one of cruise.c */

SEC("xdp") int demarc_transmit(struct xdp_md *ctx)
{
	/* Whose call it is, is said by the length of what it was called with: all else of a page is what was in it last. */
	u32 given = ctx->data_end - ctx->data, worker = given % WORKERS;
	struct progress *p = map_lookup(&progresses, &worker);
	if (!p || p->next >= FRAMES)
		return XDP_DROP;
	u32 at = worker * FRAMES + p->next++;
	struct frame *f = map_lookup(&frames, &at);
	if (!f)
		return XDP_DROP;
	u32 len = f->len;
	if (ktime_get_boot_ns() + settings.ahead >= f->until || len < LEAST || len > BYTES || xdp_adjust_tail(ctx, (int)len - (int)given) || xdp_store_bytes(ctx, 0, f->bytes, len))
		return XDP_DROP;
	long action = redirect_map(&devices, f->port, XDP_DROP);
	if (action == XDP_REDIRECT)
		f->left = 1;
	return action;
}

char license_text[] SEC("license") = "Dual MIT/GPL";
