/* SPDX-License-Identifier: MIT */
/*
 * Frames that are damaged, lost, doubled or out of order on their way. Each is found out before the
 * guest runs at the destination, by the check that the frame itself carries or, where the relay has
 * made that right again, by a deeper one; and the guest goes on at the source.
 */
#include <stdlib.h>
#include <string.h>

#include "../../migrate/handshake.h"
#include "../../migrate/hashes.h"
#include "faults.h"

/* ---- bits ---- */

#define BYTES(n) ((n)*8U)
/* Of a PAGES payload: the head, then descriptors, then pages. */
#define DESC(i, field)                                                                             \
	(sizeof(struct wire_batch) + (i) * sizeof(struct wire_desc) +                              \
	 offsetof(struct wire_desc, field))

struct flip {
	enum relay_dir dir;
	unsigned type;
	size_t bit; /* of the payload */
	enum {
		PLAIN, /* as lines do it: the frame's own check finds it */
		FIXED, /* with a check that fits the damage */
		DEEP,  /* and, of STATE, a proof that fits it */
	} depth;
	const char *error; /* of migrate */
};

static const struct flip flips[] = {
	{TO_DEST, WIRE_HELLO, 100, PLAIN,
	 "HELLO frame from the source was damaged|closed the connection"},
	{TO_DEST, WIRE_HELLO, BYTES(40), PLAIN,
	 "HELLO frame from the source was damaged|closed the connection"},
	{TO_DEST, WIRE_PING, 7, PLAIN, "PING frame from the source was damaged"},
	{TO_DEST, WIRE_PAGES, BYTES(DESC(0, index)), PLAIN,
	 "PAGES frame from the source was damaged"},
	{TO_DEST, WIRE_PAGES, BYTES(DESC(0, hash)), PLAIN,
	 "PAGES frame from the source was damaged"},
	{TO_DEST, WIRE_ROUND_END, 0, PLAIN, "ROUND_END frame from the source was damaged"},
	{TO_DEST, WIRE_STATE, BYTES(2), PLAIN, "STATE frame from the source was damaged"},
	{TO_DEST, WIRE_STATE, BYTES(3000), PLAIN, "STATE frame from the source was damaged"},
	{TO_DEST, WIRE_PROOF, BYTES(20), PLAIN, "PROOF frame from the source was damaged"},
	{TO_SOURCE, WIRE_PONG, 70, PLAIN, "PONG frame from the destination was damaged"},
	{TO_SOURCE, WIRE_ROUND_ACK, 3, PLAIN, "ROUND_ACK frame from the destination was damaged"},
	{TO_SOURCE, WIRE_READY, 9, PLAIN, "READY frame from the destination was damaged"},
	/* Pages are covered by their hashes alone. */
	{TO_DEST, WIRE_PAGES, BYTES(sizeof(struct wire_batch) + 5 * sizeof(struct wire_desc)),
	 PLAIN, "damaged"},
	{TO_DEST, WIRE_HELLO, BYTES(20), FIXED, "section .* unknown|malformed|version"},
	{TO_DEST, WIRE_HELLO, 3, FIXED, "HELLO has a section"},
	{TO_DEST, WIRE_PING, 7, FIXED, "PONG is not an answer"},
	{TO_DEST, WIRE_PAGES, 7, FIXED, "PAGES frame of [0-9]+ descriptors in"},
	{TO_DEST, WIRE_PAGES, BYTES(4), FIXED, "counts beyond the limits"},
	{TO_DEST, WIRE_PAGES, BYTES(8), FIXED, "length and counts disagree"},
	{TO_DEST, WIRE_PAGES, BYTES(8) + 31, FIXED, "packed contents that are no smaller"},
	{TO_DEST, WIRE_PAGES, BYTES(12), FIXED, "counts beyond the limits|length and counts"},
	{TO_DEST, WIRE_PAGES, BYTES(DESC(0, index)) + 30, FIXED, "page beyond the guest's RAM"},
	{TO_DEST, WIRE_PAGES, BYTES(DESC(0, index)) + 63, FIXED, "page beyond the guest's RAM"},
	{TO_DEST, WIRE_PAGES, BYTES(DESC(0, count)) + 31, FIXED, "page beyond|unknown kind"},
	{TO_DEST, WIRE_PAGES, BYTES(DESC(0, kind)) + 9, FIXED, "unknown kind of page"},
	{TO_DEST, WIRE_PAGES, BYTES(DESC(0, kind)) + 1, FIXED, "page beyond|unknown kind|disagree"},
	{TO_DEST, WIRE_PAGES, BYTES(DESC(0, hash)), FIXED, "page [0-9]+ was damaged"},
	/* Another page gets the content: found by what both sides hold in the end. */
	{TO_DEST, WIRE_PAGES, BYTES(DESC(0, index)) + 12, FIXED, "different memory"},
	{TO_DEST, WIRE_ROUND_END, 0, FIXED, "acknowledges another round"},
	{TO_DEST, WIRE_STATE, BYTES(2), FIXED, "state was damaged on its way"},
	{TO_DEST, WIRE_STATE, BYTES(3000), FIXED, "state was damaged on its way"},
	{TO_DEST, WIRE_STATE, BYTES(2), DEEP, "state section .* is for nothing"},
	{TO_DEST, WIRE_STATE, BYTES(16), DEEP, "state section vcpu 1: "},
	{TO_DEST, WIRE_STATE, BYTES(20), DEEP, "state section vcpu 0: it has version 0"},
	{TO_DEST, WIRE_STATE, BYTES(24), DEEP, "malformed|state section"},
	{TO_DEST, WIRE_STATE, BYTES(27) + 7, DEEP, "malformed"},
	{TO_DEST, WIRE_PROOF, BYTES(20), FIXED, "different memory in pages 512 to 1023"},
	{TO_SOURCE, WIRE_PONG, 70, FIXED, ""}, /* its clock: only the guest's time is off */
	{TO_SOURCE, WIRE_PONG, 7, FIXED, "PONG is not an answer"},
	{TO_SOURCE, WIRE_ROUND_ACK, 3, FIXED, "acknowledges another round"},
	{TO_SOURCE, WIRE_READY, 9, FIXED, "proof does not match"},
};
#define N_FLIPS ((int)(sizeof(flips) / sizeof(flips[0])))

/* Both sides know why: who found it, and who was told. */
static void refused_and_back(struct scene *s, const char *error)
{
	scene_report(s, 1, error);
	dest_refused(s, error);
	source_owns(s);
}

/* The seed of this migration's hashes, from its HELLO. */
static void learn_seed(void *arg, struct relay_frame *f)
{
	static struct hello hello;
	struct hashes *h = arg;
	struct errmsg err = {""};

	need(!hello_load(&hello, relay_payload(f), relay_payload_len(f), &err), "%s", err.text);
	need(!hashes_init(h, 1, hello.hash_seed), "out of memory");
}

struct forged_state {
	struct hashes h;
	struct page_hash digest;
};

/* Of a state alone the proof is one digest. */
static void digest_state(void *arg, struct relay_frame *f)
{
	struct forged_state *s = arg;
	struct hashes none = s->h;
	struct page_hash root, *digest;
	size_t n;

	none.npages = 0;
	digest = hashes_proof(&none, relay_payload(f), relay_payload_len(f), &n, &root);
	need(digest && n == 1, "%zu digests", n);
	s->digest = *digest;
	free(digest);
}

static void forge_proof(void *arg, struct relay_frame *f)
{
	const struct forged_state *s = arg;

	memcpy(f->bytes + f->len - sizeof(s->digest), &s->digest, sizeof(s->digest));
}

static void edit(struct scene *s, unsigned type, void (*fn)(void *arg, struct relay_frame *f),
		 void *arg)
{
	relay_act(s->relay, (struct relay_act){.dir = TO_DEST,
					       .type = type,
					       .what = RELAY_EDIT,
					       .edit = fn,
					       .arg = arg,
					       .fix = true});
}

START_TEST(flipped_bit)
{
	const struct flip *f = &flips[_i];
	struct forged_state forged = {.h = {.npages = 0}};
	struct scene s;

	scene_start(&s, "unix:");
	if (f->depth == DEEP)
		edit(&s, WIRE_HELLO, learn_seed, &forged.h);
	relay_act(s.relay, (struct relay_act){.dir = f->dir,
					      .type = f->type,
					      .what = RELAY_FLIP,
					      .at = f->bit,
					      .fix = f->depth != PLAIN});
	if (f->depth == DEEP) {
		edit(&s, WIRE_STATE, digest_state, &forged);
		edit(&s, WIRE_PROOF, forge_proof, &forged);
	}
	scene_migrate(&s);
	if (f->error[0]) {
		refused_and_back(&s, f->error);
		/* READY is said by who holds all and has applied all, not before. */
		need(relay_seen(s.relay, TO_SOURCE, WIRE_READY) == (f->type == WIRE_READY), "%s",
		     s.relay->trace);
	} else {
		scene_report(&s, 0, "");
		dest_owns(&s);
	}
}
END_TEST

static void spoil_check(void *arg, struct relay_frame *f)
{
	(void)arg;
	relay_header(f)->check ^= 1;
}

/* COMMIT must be for what is held; who says so gives his word that nothing has run. */
START_TEST(flipped_commit)
{
	struct scene s;

	scene_start(&s, "unix:");
	relay_act(s.relay, (struct relay_act){.dir = TO_DEST,
					      .type = WIRE_COMMIT,
					      .what = RELAY_FLIP,
					      .at = 17,
					      .fix = _i == 1});
	scene_migrate(&s);
	refused_and_back(&s, _i ? "COMMIT is for other memory" : "COMMIT frame .* was damaged");
}
END_TEST

/* An answer to COMMIT that cannot be read may have been RUNNING. */
START_TEST(flipped_running)
{
	struct scene s;

	scene_start(&s, "unix:");
	relay_act(s.relay, (struct relay_act){.dir = TO_SOURCE,
					      .type = WIRE_RUNNING,
					      .what = RELAY_EDIT,
					      .edit = spoil_check});
	scene_migrate(&s);
	scene_report(&s, 3, "RUNNING frame from the destination was damaged");
	source_uncertain(&s);
	dest_owns(&s);
	godwit_run(0, "resolve", "--discard", s.g.name, NULL);
	guest_ended(&s.g, 0, 10000);
}
END_TEST

/* ---- damage that a peer of ill will, or a bug, would do: everything fits but the memory ---- */

/* Another content for the first page that has one, with the hash of it. */
static void forge_page(void *arg, struct relay_frame *f)
{
	const struct hashes *h = arg;
	uint8_t *payload = relay_payload(f), *page;
	struct wire_batch head;
	struct wire_desc d = {.kind = WIRE_PAGE_ZERO};
	unsigned i;

	memcpy(&head, payload, sizeof(head));
	need(head.n_data > 0, "a batch without content");
	page = payload + sizeof(head) + head.n_descs * sizeof(d);
	for (i = 0; i < head.n_descs && d.kind != WIRE_PAGE_DATA; i++)
		memcpy(&d, payload + sizeof(head) + i * sizeof(d), sizeof(d));
	page[1234] ^= 1;
	d.hash = hash_page(h, page);
	memcpy(payload + sizeof(head) + (i - 1) * sizeof(d), &d, sizeof(d));
}

/* The n-th batch: one of the first round, with pages that the guest does not write again. */
START_TEST(forged_page)
{
	static const char *const verify[] = {"stream", "full"};
	struct hashes h = {.npages = 0};
	struct scene s;

	scene_start(&s, "unix:");
	edit(&s, WIRE_HELLO, learn_seed, &h);
	edit(&s, WIRE_PAGES, forge_page, &h);
	s.migrate = move_start(&s.g, s.relay->uri, "--connections=1", "--verify", verify[_i], NULL);
	refused_and_back(&s, "source and destination hold different memory in pages");
}
END_TEST

/* A page of zeros turns up where content was sent: the first descriptor becomes one. */
static void zero_instead(void *arg, struct relay_frame *f)
{
	uint8_t *payload = relay_payload(f);
	struct wire_batch head;
	struct wire_desc d;
	size_t pages;

	(void)arg;
	memcpy(&head, payload, sizeof(head));
	memcpy(&d, payload + sizeof(head), sizeof(d));
	need(d.kind == WIRE_PAGE_DATA, "first descriptor of kind %u", d.kind);
	d.kind = WIRE_PAGE_ZERO;
	memcpy(payload + sizeof(head), &d, sizeof(d));
	head.n_data--;
	memcpy(payload, &head, sizeof(head));
	pages = sizeof(head) + head.n_descs * sizeof(d);
	memmove(payload + pages, payload + pages + PAGE_SIZE, head.n_data * PAGE_SIZE);
	f->len -= PAGE_SIZE;
	relay_header(f)->length -= (uint32_t)PAGE_SIZE;
}

START_TEST(zeros_instead)
{
	struct scene s;

	scene_start(&s, "unix:");
	edit(&s, WIRE_PAGES, zero_instead, NULL);
	scene_migrate(&s);
	refused_and_back(&s, "source and destination hold different memory in pages 0 to 511");
}
END_TEST

/* A proof of less than all: nothing is read that did not come. */
static void shorten(void *arg, struct relay_frame *f)
{
	(void)arg;
	f->len -= sizeof(struct page_hash);
	relay_header(f)->length -= (uint32_t)sizeof(struct page_hash);
}

START_TEST(short_proof)
{
	struct scene s;

	scene_start(&s, "unix:");
	edit(&s, WIRE_PROOF, shorten, NULL);
	scene_migrate(&s);
	refused_and_back(&s, "proof has [0-9]+ bytes, [0-9]+ are due");
}
END_TEST

/* ---- frames lost, doubled, swapped ---- */

struct shuffle {
	enum relay_dir dir;
	unsigned type, nth;
	enum relay_what what;
	bool renumber;
	const char *error; /* NULL: it does no harm */
};

static const struct shuffle shuffles[] = {
	{TO_DEST, WIRE_PING, 1, RELAY_TWICE, false, "sent frame 1 where 2 was due"},
	{TO_DEST, WIRE_PAGES, 1, RELAY_DROP, false, "sent frame [0-9]+ where [0-9]+ was due"},
	{TO_DEST, WIRE_PAGES, 2, RELAY_TWICE, false, "sent frame [0-9]+ where [0-9]+ was due"},
	{TO_DEST, WIRE_PAGES, 2, RELAY_SWAP, false, "sent frame [0-9]+ where [0-9]+ was due"},
	{TO_DEST, WIRE_PROOF, 1, RELAY_TWICE, false, "sent frame [0-9]+ where|went away"},
	{TO_SOURCE, WIRE_PONG, 2, RELAY_TWICE, false, "sent frame [0-9]+ where [0-9]+ was due"},
	/* The numbers made right. */
	{TO_DEST, WIRE_HELLO, 1, RELAY_TWICE, true, "sent HELLO during"},
	{TO_DEST, WIRE_PAGES, 1, RELAY_DROP, true, "different memory"},
	{TO_DEST, WIRE_PAGES, 2, RELAY_TWICE, true, NULL},
	{TO_DEST, WIRE_PAGES, 2, RELAY_SWAP, true, NULL},
	{TO_DEST, WIRE_STATE, 1, RELAY_TWICE, true, "sent STATE during"},
	{TO_DEST, WIRE_STATE, 1, RELAY_DROP, true, "sent PROOF during"},
	{TO_DEST, WIRE_STATE, 1, RELAY_SWAP, true, "sent PROOF during"},
	{TO_DEST, WIRE_PROOF, 1, RELAY_TWICE, true, "sent PROOF during|went away"},
	{TO_SOURCE, WIRE_HELLO_OK, 1, RELAY_TWICE, true, "sent HELLO_OK where PONG was due"},
	{TO_SOURCE, WIRE_PONG, 2, RELAY_TWICE, true, "PONG is not an answer"},
	{TO_SOURCE, WIRE_ROUND_ACK, 1, RELAY_TWICE, true, "sent ROUND_ACK|acknowledges another"},
};
#define N_SHUFFLES ((int)(sizeof(shuffles) / sizeof(shuffles[0])))

START_TEST(shuffled)
{
	const struct shuffle *f = &shuffles[_i];
	struct scene s;

	scene_start(&s, "unix:");
	s.relay->renumber = f->renumber;
	relay_act(s.relay, (struct relay_act){
				   .dir = f->dir, .type = f->type, .nth = f->nth, .what = f->what});
	scene_migrate(&s);
	if (f->error) {
		refused_and_back(&s, f->error);
	} else {
		scene_report(&s, 0, "");
		dest_owns(&s);
	}
}
END_TEST

int main(void)
{
	Suite *s = suite_create("faults-frames");

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs here");
	tcase_add_loop_test(harness_case(s, "flips", 60), flipped_bit, 0, N_FLIPS);
	tcase_add_loop_test(harness_case(s, "flipped-commit", 60), flipped_commit, 0, 2);
	tcase_add_test(harness_case(s, "flipped-running", 60), flipped_running);
	tcase_add_loop_test(harness_case(s, "forged", 60), forged_page, 0, 2);
	tcase_add_test(harness_case(s, "zeros", 60), zeros_instead);
	tcase_add_test(harness_case(s, "proof", 60), short_proof);
	tcase_add_loop_test(harness_case(s, "shuffled", 60), shuffled, 0, N_SHUFFLES);
	return harness_main(s);
}
