/* That find.h compiles for BPF, in the way in which a program uses it. */
static void *(*lookup)(void *map, const void *key) = (void *)1;
extern struct demarc_arrays {
	unsigned long long buckets, sessions;
} arrays;
#define DEMARC_BUCKET(table, at) ({ unsigned key_ = (table) * 7 + (at); (struct demarc_bucket *)lookup(&arrays.buckets, &key_); })
#define DEMARC_SESSION(table, slot) ({ unsigned key_ = (table) * 100 + (slot); (struct demarc_session *)lookup(&arrays.sessions, &key_); })
#include "find.h"

__attribute__((section("xdp"), used)) int find(struct demarc_key *k)
{
	struct demarc_session copy = {};
	demarc_u32 ref = 0;
	return demarc_find(k, demarc_hash(k, 1), 0, 7, DEMARC_LINES, &copy, &ref) == DEMARC_FOUND ? (int)ref : -1;
}
