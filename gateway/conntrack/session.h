/* The session entry of gateway/conntrack (session.go) as another executor reads it. Little-endian, 128 bytes, aligned to 64.
 * A test parses these lines and compiles them: both files say the same or the build is red.
 *
 * Reading while the owner writes: load seq; if odd, there is nothing here. Copy. Load seq again; if it changed, start over or
 * give up. Then compare the key: an index entry may have been overtaken. (slot, gen) names one session only. */
#ifndef DEMARC_SESSION_H
#define DEMARC_SESSION_H

typedef unsigned char demarc_u8;
typedef unsigned short demarc_u16;
typedef unsigned int demarc_u32;
typedef unsigned long long demarc_u64;

struct demarc_session {
	demarc_u32 seq;
	demarc_u32 gen;
	demarc_u8 orig_src[16];
	demarc_u8 orig_dst[16];
	demarc_u8 xlat_src[4];
	demarc_u8 xlat_dst[4];
	demarc_u16 orig_sport;
	demarc_u16 orig_dport;
	demarc_u16 xlat_sport;
	demarc_u16 xlat_dport;
	demarc_u8 proto;
	demarc_u8 flags;
	demarc_u8 state;
	demarc_u8 class_;
	demarc_u16 tenant;
	demarc_u16 next_hop[2];
	demarc_u8 scale[2];
	demarc_u32 rule;
	demarc_u32 view_gen;
	demarc_u32 mapping;
	demarc_u32 last_seen[2];
	demarc_u64 bytes[2];
	demarc_u32 packets[2];
	demarc_u32 tcp_end[2];
	demarc_u32 tcp_limit[2];
};

/* One cache line of the index: lanes 0..9 tags (0 = empty), lane 10 how many entries went on to the next line, lane 11 zero. */
struct demarc_bucket {
	demarc_u16 tag[10];
	demarc_u16 passed;
	demarc_u16 zero;
	demarc_u32 ref[10]; /* slot << 1 | direction */
};

#define DEMARC_FLAG_V6 0x01
#define DEMARC_FLAG_FROM_BACKBONE 0x02
#define DEMARC_FLAG_TO_BACKBONE 0x04
#define DEMARC_FLAG_NAT 0x08
#define DEMARC_FLAG_REPLIED 0x10
#define DEMARC_FLAG_COUNTED 0x20
#define DEMARC_FLAG_PERMIT 0x40
#define DEMARC_FLAG_UNANSWERED 0x80

_Static_assert(sizeof(struct demarc_session) == 128, "size");
_Static_assert(sizeof(struct demarc_bucket) == 64, "size");
_Static_assert(__builtin_offsetof(struct demarc_bucket, passed) == 20, "passed");
_Static_assert(__builtin_offsetof(struct demarc_bucket, ref) == 24, "ref");
_Static_assert(__builtin_offsetof(struct demarc_session, seq) == 0, "Seq");
_Static_assert(__builtin_offsetof(struct demarc_session, gen) == 4, "Gen");
_Static_assert(__builtin_offsetof(struct demarc_session, orig_src) == 8, "OrigSrc");
_Static_assert(__builtin_offsetof(struct demarc_session, orig_dst) == 24, "OrigDst");
_Static_assert(__builtin_offsetof(struct demarc_session, xlat_src) == 40, "XlatSrc");
_Static_assert(__builtin_offsetof(struct demarc_session, xlat_dst) == 44, "XlatDst");
_Static_assert(__builtin_offsetof(struct demarc_session, orig_sport) == 48, "OrigSPort");
_Static_assert(__builtin_offsetof(struct demarc_session, orig_dport) == 50, "OrigDPort");
_Static_assert(__builtin_offsetof(struct demarc_session, xlat_sport) == 52, "XlatSPort");
_Static_assert(__builtin_offsetof(struct demarc_session, xlat_dport) == 54, "XlatDPort");
_Static_assert(__builtin_offsetof(struct demarc_session, proto) == 56, "Proto");
_Static_assert(__builtin_offsetof(struct demarc_session, flags) == 57, "Flags");
_Static_assert(__builtin_offsetof(struct demarc_session, state) == 58, "State");
_Static_assert(__builtin_offsetof(struct demarc_session, class_) == 59, "Class");
_Static_assert(__builtin_offsetof(struct demarc_session, tenant) == 60, "Tenant");
_Static_assert(__builtin_offsetof(struct demarc_session, next_hop) == 62, "NextHop");
_Static_assert(__builtin_offsetof(struct demarc_session, scale) == 66, "Scale");
_Static_assert(__builtin_offsetof(struct demarc_session, rule) == 68, "Rule");
_Static_assert(__builtin_offsetof(struct demarc_session, view_gen) == 72, "ViewGen");
_Static_assert(__builtin_offsetof(struct demarc_session, mapping) == 76, "Mapping");
_Static_assert(__builtin_offsetof(struct demarc_session, last_seen) == 80, "LastSeen");
_Static_assert(__builtin_offsetof(struct demarc_session, bytes) == 88, "Bytes");
_Static_assert(__builtin_offsetof(struct demarc_session, packets) == 104, "Packets");
_Static_assert(__builtin_offsetof(struct demarc_session, tcp_end) == 112, "TCPEnd");
_Static_assert(__builtin_offsetof(struct demarc_session, tcp_limit) == 120, "TCPLimit");

#endif
