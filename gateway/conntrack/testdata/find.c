/* Another executor over a table's memory, for the test of find.h. In: seed, lines, slots, questions (8 bytes each), the sessions, the index, the
 * questions. Out: an answer to each. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static uint64_t lines, slots;
static struct demarc_bucket *buckets;
static struct demarc_session *sessions;
static int meanwhile;

#define DEMARC_BUCKET(table, at) ((void)(table), (at) < lines ? &buckets[at] : 0)
#define DEMARC_SESSION(table, slot) ((slot) < slots ? &sessions[slot] : 0)
#define DEMARC_MEANWHILE(s) ((s)->seq += meanwhile)
#include "find.h"

struct question {
	struct demarc_key key;
	uint64_t hash;
	uint64_t meanwhile; /* the owner changes the session while it is read */
};

struct answer {
	uint64_t hash;
	uint32_t found, ref;
	uint8_t copy[DEMARC_GUARDED];
};

static void *take(size_t n)
{
	void *p = aligned_alloc(64, (n + 63) / 64 * 64);
	if (!p || fread(p, 1, n, stdin) != n)
		exit(1);
	return p;
}

int main(void)
{
	uint64_t *head = take(32), n = head[3];
	lines = head[1], slots = head[2];
	sessions = take(slots * sizeof(*sessions));
	buckets = take(lines * sizeof(*buckets));
	struct question *q = take(n * sizeof(*q));
	for (uint64_t i = 0; i < n; i++) {
		struct answer a = {.hash = demarc_hash(&q[i].key, head[0])};
		struct demarc_session copy = {0};
		meanwhile = q[i].meanwhile ? 2 : 0;
		a.found = demarc_find(&q[i].key, q[i].hash, 0, lines, DEMARC_LINES, &copy, &a.ref);
		if (a.found == DEMARC_FOUND)
			__builtin_memcpy(a.copy, &copy, sizeof(a.copy));
		if (fwrite(&a, sizeof(a), 1, stdout) != 1)
			return 1;
	}
	return 0;
}
