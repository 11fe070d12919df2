/* How another executor finds a session (flow.Key.Hash, Table.Lookup and what DESIGN.md says of reading while the owner writes). A test compiles
 * this and runs it on the memory of a table: both say the same of each key. Little-endian; nothing here is a function of a library, so that it
 * compiles for BPF too. The order of its loads is the processor's: amd64 keeps it, and DESIGN.md says what else would be needed elsewhere.
 *
 * Who includes it defines DEMARC_BUCKET(table, at) and DEMARC_SESSION(table, slot): pointers into the two arrays of a table, or 0 where there is no such
 * element. Which table that is, is the includer's: each worker has one. */
#ifndef DEMARC_FIND_H
#define DEMARC_FIND_H

#include "session.h"

#define DEMARC_INLINE static inline __attribute__((always_inline))
#define DEMARC_BARRIER() __asm__ volatile("" ::: "memory")

/* A test's seam: what the owner does between the copy and the second look at the sequence word. */
#ifndef DEMARC_MEANWHILE
#define DEMARC_MEANWHILE(s)
#endif

/* flow.Key. IPv4 addresses are in the first four bytes, the rest is zero; ports are in host order. Aligned, because BPF reads a word of what may not be
 * byte by byte; so are the addresses in a session. */
struct demarc_key {
	demarc_u8 src[16], dst[16];
	demarc_u16 sport, dport;
	demarc_u8 proto, family;
	demarc_u16 zone;
} __attribute__((aligned(8)));

/* The first 80 bytes of a session: all that its sequence word guards. */
enum { DEMARC_GUARDED = __builtin_offsetof(struct demarc_session, last_seen) };

/* How many lines of the index are looked at. At a full table one entry in 40 lies beside its line; what lies further off is the owner's. */
enum { DEMARC_LINES = 3, DEMARC_LANES = 10 };

/* What is known of a key. Whoever is not sure leaves the packet to the owner; so does who finds none. */
enum demarc_found { DEMARC_NONE, DEMARC_FOUND, DEMARC_UNSURE };

typedef demarc_u64 __attribute__((may_alias)) demarc_u64a;
typedef demarc_u32 __attribute__((may_alias)) demarc_u32a;

DEMARC_INLINE demarc_u64 demarc_load(const demarc_u8 *p)
{
	return *(const demarc_u64a *)p;
}

/* The high half of a product, from parts: BPF has no wider multiplication. */
DEMARC_INLINE demarc_u64 demarc_high(demarc_u64 a, demarc_u64 b)
{
	demarc_u64 al = (demarc_u32)a, ah = a >> 32, bl = (demarc_u32)b, bh = b >> 32;
	demarc_u64 mid = ah * bl + (al * bl >> 32), mid2 = al * bh + (demarc_u32)mid;
	return ah * bh + (mid >> 32) + (mid2 >> 32);
}

DEMARC_INLINE demarc_u64 demarc_mix(demarc_u64 a, demarc_u64 b)
{
	return demarc_high(a, b) ^ a * b;
}

DEMARC_INLINE demarc_u64 demarc_hash(const struct demarc_key *k, demarc_u64 seed)
{
	const demarc_u64 m1 = 0xa0761d6478bd642f, m2 = 0xe7037ed1a0b428db, m3 = 0x8ebc6af09c88c6e3, m4 = 0x589965cc75374cc3;
	demarc_u64 meta = k->sport | (demarc_u64)k->dport << 16 | (demarc_u64)k->proto << 32 | (demarc_u64)k->family << 40 | (demarc_u64)k->zone << 48;
	demarc_u64 h = demarc_mix(demarc_load(k->src) ^ m1 ^ seed, demarc_load(k->dst) ^ m2 ^ (seed << 23 | seed >> 41));
	if (k->family == 6)
		h ^= demarc_mix(demarc_load(k->src + 8) ^ m3 ^ seed, demarc_load(k->dst + 8) ^ m4 ^ h);
	return demarc_mix(h ^ m4, meta ^ m3 ^ seed);
}

DEMARC_INLINE int demarc_same16(const demarc_u8 *a, const demarc_u8 *b)
{
	return demarc_load(a) == demarc_load(b) && demarc_load(a + 8) == demarc_load(b + 8);
}

/* Four bytes of a session against an address of a key, whose rest is zero. */
DEMARC_INLINE int demarc_same4(const demarc_u8 *a, const demarc_u8 *k)
{
	return demarc_load(k) == *(const demarc_u32a *)a && demarc_load(k + 8) == 0;
}

/* Session.is: is k the key of direction dir? */
DEMARC_INLINE int demarc_is(const struct demarc_session *s, const struct demarc_key *k, demarc_u32 dir)
{
	demarc_u32 family = s->flags & DEMARC_FLAG_V6 ? 6 : 4;
	demarc_u32 inward = s->flags & (dir ? DEMARC_FLAG_TO_BACKBONE : DEMARC_FLAG_FROM_BACKBONE);
	demarc_u32 zone = inward ? 0 : s->tenant;
	if (k->proto != s->proto || k->family != family || k->zone != zone)
		return 0;
	if (!dir)
		return k->sport == s->orig_sport && k->dport == s->orig_dport && demarc_same16(k->src, s->orig_src) && demarc_same16(k->dst, s->orig_dst);
	if (k->sport != s->xlat_dport || k->dport != s->xlat_sport)
		return 0;
	if (family == 6)
		return demarc_same16(k->src, s->orig_dst) && demarc_same16(k->dst, s->orig_src);
	return demarc_same4(s->xlat_dst, k->src) && demarc_same4(s->xlat_src, k->dst);
}

/* Finds the session whose key in one of its directions is k, copies what its sequence word guards, and says which direction it is. h is k's hash,
 * lines the number of lines of the index, most how many of them are looked at. The copy is whole: had the owner been writing, it would not be taken. */
DEMARC_INLINE enum demarc_found demarc_find(const struct demarc_key *k, demarc_u64 h, demarc_u32 table, demarc_u64 lines, int most, struct demarc_session *copy, demarc_u32 *ref)
{
	demarc_u64 at = demarc_high(h, lines);
	demarc_u16 tag = (demarc_u16)h ? (demarc_u16)h : 1;
	enum demarc_found none = DEMARC_NONE;
	for (int line = 0; line < most; line++) {
		struct demarc_bucket *b = DEMARC_BUCKET(table, at);
		if (!b)
			return DEMARC_UNSURE;
		for (int i = 0; i < DEMARC_LANES; i++) {
			if (*(volatile demarc_u16 *)&b->tag[i] != tag)
				continue;
			demarc_u32 r = *(volatile demarc_u32 *)&b->ref[i];
			struct demarc_session *s = DEMARC_SESSION(table, r >> 1);
			if (!s)
				return DEMARC_UNSURE;
			demarc_u32 seq = *(volatile demarc_u32 *)&s->seq;
			if (seq & 1) { /* being written, or gone */
				none = DEMARC_UNSURE;
				continue;
			}
			DEMARC_BARRIER();
			__builtin_memcpy(copy, s, DEMARC_GUARDED);
			DEMARC_BARRIER();
			DEMARC_MEANWHILE(s);
			if (*(volatile demarc_u32 *)&s->seq != seq) {
				none = DEMARC_UNSURE;
				continue;
			}
			if (demarc_is(copy, k, r & 1)) {
				*ref = r;
				return DEMARC_FOUND;
			}
		}
		if (!*(volatile demarc_u16 *)&b->passed)
			return none;
		if (++at == lines)
			at = 0;
	}
	return DEMARC_UNSURE;
}

_Static_assert(sizeof(struct demarc_key) == 40, "key");
_Static_assert(DEMARC_GUARDED == 80, "guarded");

#endif
