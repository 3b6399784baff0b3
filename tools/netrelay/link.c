/* SPDX-License-Identifier: MIT */
#include "link.h"

#include <math.h>
#include <stdlib.h>

#include "../../vmm/util.h"

#define PIECE_NS NS_PER_MS
#define QUEUE_MIN_NS (50 * NS_PER_MS)
#define QUEUE_MIN_BYTES (16 * 1500U)
#define HELD_MAX (1 * GIB) /* whatever rate and delay say */

enum fate {
	PASSES,
	IS_LOST,
	IS_DAMAGED,
	IS_FORGED,
	IS_DOUBLED,
	OVERTAKES,
};

/* splitmix64 */
static uint64_t draw(struct link *l)
{
	uint64_t z = l->random += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

/* From 0 up to, not including, 1. */
static double chance(struct link *l)
{
	return (double)(draw(l) >> 11) * 0x1p-53;
}

/* How many bits are sound before the next that is not. */
static double sound_bits(struct link *l, double p)
{
	return p > 0 ? floor(log(1 - chance(l)) / log1p(-p)) : INFINITY;
}

void link_init(struct link *l, const struct link_config *c, uint64_t seed)
{
	*l = (struct link){.random = seed};
	link_configure(l, c);
}

void link_configure(struct link *l, const struct link_config *c)
{
	l->config = *c;
	l->corrupt_in = sound_bits(l, c->corrupt);
	l->forge_in = sound_bits(l, c->corrupt_fixed);
}

void link_free(struct link *l)
{
	for (struct packet *p = l->head, *next; p; p = next) {
		next = p->next;
		free(p);
	}
	l->head = l->tail = NULL;
	l->held = 0;
}

static uint32_t segments_of(const struct packet *p)
{
	struct packet_shape s;

	return packet_parse(p, &s) ? s.segments : 1;
}

void link_cut(struct link *l, bool cut)
{
	l->cut = cut;
	if (!cut)
		return;
	for (const struct packet *p = l->head; p; p = p->next)
		l->stats.cut += segments_of(p);
	link_free(l);
	l->free_ns = l->last_due_ns = 0;
}

/* Is there one that is not sound among the next so many bits? Then *at is where. */
static bool bit_falls(struct link *l, double *in, double p, uint64_t bits, uint64_t *at)
{
	if (*in >= (double)bits) {
		*in -= (double)bits;
		return false;
	}
	*at = (uint64_t)*in;
	*in = sound_bits(l, p);
	return true;
}

static enum fate fate_of(struct link *l, uint32_t bytes, uint64_t *bit)
{
	const struct link_config *c = &l->config;

	if (c->loss > 0 && chance(l) < c->loss)
		return IS_LOST;
	if (bit_falls(l, &l->corrupt_in, c->corrupt, bytes * 8UL, bit))
		return IS_DAMAGED;
	if (bit_falls(l, &l->forge_in, c->corrupt_fixed, bytes * 8UL, bit))
		return IS_FORGED;
	if (c->duplicate > 0 && chance(l) < c->duplicate)
		return IS_DOUBLED;
	if (c->reorder > 0 && chance(l) < c->reorder)
		return OVERTAKES;
	return PASSES;
}

static uint64_t queue_ns(const struct link_config *c)
{
	uint64_t least = QUEUE_MIN_BYTES * 8 * NS_PER_SEC / c->rate;

	if (c->queue_ns)
		return c->queue_ns;
	return MAX(MAX(least, QUEUE_MIN_NS), 2 * c->delay_ns);
}

/* Through the narrow place: false when there is no room to wait for it. */
static bool pass(struct link *l, uint32_t bytes, uint64_t now)
{
	const struct link_config *c = &l->config;

	if (l->held + bytes > HELD_MAX)
		return false;
	if (l->free_ns < now)
		l->free_ns = now;
	if (!c->rate)
		return true;
	if (l->free_ns - now > queue_ns(c))
		return false;
	l->free_ns += bytes * 8 * NS_PER_SEC / c->rate;
	return true;
}

static uint64_t arrival(struct link *l, enum fate fate)
{
	const struct link_config *c = &l->config;
	uint64_t delay = c->delay_ns, jitter = MIN(c->jitter_ns, c->delay_ns), due;

	if (fate == OVERTAKES)
		return l->free_ns;
	if (jitter)
		delay = delay - jitter + (uint64_t)(chance(l) * 2 * (double)jitter);
	due = l->free_ns + delay;
	/* The order stays, also when the delay has just been made shorter. */
	l->last_due_ns = MAX(due, l->last_due_ns);
	return l->last_due_ns;
}

static void insert(struct link *l, struct packet *p, uint64_t due)
{
	struct packet **at = &l->head;

	p->due_ns = due;
	if (l->tail && l->tail->due_ns <= due)
		at = &l->tail->next;
	else
		while (*at && (*at)->due_ns <= due)
			at = &(*at)->next;
	p->next = *at;
	*at = p;
	if (!p->next)
		l->tail = p;
	l->held += p->len;
}

/* p is what has passed, and one segment unless it just passes. */
static void send_on(struct link *l, struct packet *p, enum fate fate, uint64_t bit)
{
	struct packet_shape s;
	struct packet *twin;

	if (fate == IS_DAMAGED) {
		packet_damage(p, bit);
		l->stats.corrupted++;
	} else if (fate == IS_FORGED) {
		l->stats.forged += packet_forge(p, bit);
	} else if (fate == OVERTAKES) {
		l->stats.reordered++;
	} else if (fate == IS_DOUBLED && packet_parse(p, &s)) {
		twin = packet_take(p, &s, 0, 1);
		if (twin) {
			l->stats.duplicated++;
			insert(l, twin, arrival(l, fate));
		}
	}
	insert(l, p, arrival(l, fate));
}

void link_push(struct link *l, struct packet *p, uint64_t now)
{
	uint64_t bit = 0, next_bit = 0, piece = UINT64_MAX;
	enum fate fate, next = PASSES;
	bool known = false; /* what becomes of the segment after this piece: next, next_bit */
	struct packet_shape s;
	struct packet *out;
	uint32_t n;

	if (!packet_parse(p, &s)) {
		l->stats.foreign++;
		free(p);
		return;
	}
	l->stats.sent += s.segments;
	l->stats.sent_bytes += packet_wire_bytes(p, &s, 0, s.segments);
	if (l->cut) {
		l->stats.cut += s.segments;
		free(p);
		return;
	}
	if (l->config.rate)
		piece = l->config.rate * PIECE_NS / NS_PER_SEC / 8 / (s.header + s.mss);

	for (uint32_t from = 0; from < s.segments; from += n) {
		fate = known ? next : fate_of(l, packet_wire_bytes(p, &s, from, 1), &bit);
		if (known)
			bit = next_bit;
		known = false;
		/* As many as pass unharmed make one piece. */
		for (n = 1; fate == PASSES && n < piece && from + n < s.segments; n++) {
			next = fate_of(l, packet_wire_bytes(p, &s, from + n, 1), &next_bit);
			known = next != PASSES;
			if (known)
				break;
		}
		if (!pass(l, packet_wire_bytes(p, &s, from, n), now)) {
			l->stats.dropped += n;
			continue;
		}
		if (fate == IS_LOST) {
			l->stats.lost++;
			continue;
		}
		out = n == s.segments ? p : packet_take(p, &s, from, n);
		if (!out) {
			l->stats.dropped += n;
			continue;
		}
		if (out == p) {
			send_on(l, p, fate, bit);
			return;
		}
		send_on(l, out, fate, bit);
	}
	free(p);
}

uint64_t link_due(const struct link *l)
{
	return l->head ? l->head->due_ns : UINT64_MAX;
}

struct packet *link_pop(struct link *l, uint64_t now)
{
	struct packet *p = l->head;
	struct packet_shape s;
	uint64_t late;

	if (!p || p->due_ns > now)
		return NULL;
	l->head = p->next;
	if (!l->head)
		l->tail = NULL;
	l->held -= p->len;
	late = now - p->due_ns;
	l->stats.late_ns += late;
	l->stats.late_max_ns = MAX(l->stats.late_max_ns, late);
	l->stats.timely++;
	if (!packet_parse(p, &s)) /* damaged */
		s = (struct packet_shape){.header = p->len, .segments = 1, .mss = 0};
	l->stats.delivered += s.segments;
	l->stats.bytes += packet_wire_bytes(p, &s, 0, s.segments);
	return p;
}
