/* SPDX-License-Identifier: MIT */
/*
 * The machine's state as a hostile source sends it: sections of each vCPU, the chips, the clock and
 * every device, into a machine that waits for it, on hosts that set clocks in other ways.
 *
 * Whatever comes,
 *
 *	- it is refused with a reason, or taken;
 *	- guest RAM is as it was, for state has no business there;
 *	- what was taken is a state that can move on: it is saved, another machine takes it, and
 *	  saves the same again but for what is time;
 *	- the machine's devices go on, and come to rest once more;
 *	- who only looks at it, without a machine, can read all that a machine took.
 */
#include "../state.h"

#include <errno.h>
#include <stdio.h>

#include "../../vmm/fuzz/fake_kvm.h"
#include "../../vmm/machine.h"
#include "guest.h"

/* What was taken moves on. */
static void move_on(struct fuzz_guest *from, unsigned variant)
{
	struct errmsg err = {""};
	struct sbuf first, second;
	struct fuzz_guest to;

	guest_save(from, &first, "what was taken");
	guest_create(&to, variant);
	fuzz_need(state_load(to.vm, first.data, first.len, &err) == 0,
		  "what one machine took and saved another one refuses: %s", err.text);
	guest_save(&to, &second, "what was taken twice");
	guest_compare(&first, &second);
	sb_free(&first);
	sb_free(&second);
	guest_destroy(&to);
}

static void go_on(struct fuzz_guest *g)
{
	struct errmsg err = {""};

	vm_resume_devices(g->vm);
	for (unsigned i = 0; i < 3; i++)
		loop_step(g->loop, 0);
	fuzz_need(guest_quiesce(g, &err) == 0, "devices do not come to rest: %s", err.text);
}

static void on_field(struct sb_view *view, const char *name, const struct sb_field *f)
{
	unsigned *fields = view->arg;

	fuzz_need(name[0] && strlen(name) < 256, "a field without a name");
	fuzz_need(f->kind != SB_BOOL || f->number <= 1, "%s is neither true nor false", name);
	(*fields)++;
}

/* Can all of it be read? */
static bool look(const struct sbuf *state)
{
	struct sb_section sec;
	struct sbuf s, body;
	bool whole = true;
	int ret;

	sb_init_load(&s, state->data, state->len);
	while ((ret = sb_section_next(&s, &sec, &body)) > 0) {
		unsigned fields = 0;
		struct sb_view view = {.field = on_field, .arg = &fields};
		struct errmsg err = {""};

		sb_look(&body, &view);
		ret = state_look(&sec, machine_device_ops(sec.tag), &body, &err);
		fuzz_need(ret || fields, "section %s has no fields", sec.tag);
		/* The machine may have passed over it. */
		whole &= ret == 0 || (sec.flags & SB_OPTIONAL);
	}
	return whole && ret == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = {data, data + size};
	uint8_t first = in_u8(&in);
	unsigned variant = first % GUEST_VARIANTS, fds;
	const struct sbuf *honest;
	struct errmsg err = {""};
	struct fuzz_guest g;
	struct sbuf state;
	bool lies, seen;
	int ret;

	fake_kvm_set_host(0);
	honest = guest_state(variant);
	fake_kvm_set_host(first / GUEST_VARIANTS % FAKE_KVM_HOSTS);
	lies = sections_edit(honest, &in, &state);
	fds = count_fds();
	seen = look(&state);
	guest_create(&g, variant);
	ret = state_load(g.vm, state.data, state.len, &err);
	fuzz_need(ram_used(&g.vm->ram) == 0, "loading state has stored into RAM");
	fuzz_need(ret == 0 || lies, "an honest state is refused: %s", err.text);
	fuzz_need(ret == 0 || err.text[0], "refused without a reason: %s", strerror(-ret));
	fuzz_need(ret || seen, "what a machine took cannot be looked at");
	if (ret == 0) {
		move_on(&g, variant);
		go_on(&g);
		fuzz_need_marks(&g.vm->ram, "after a load");
	}
	guest_destroy(&g);
	sb_free(&state);
	fuzz_need(count_fds() == fds, "%u file descriptors before, %u after", fds, count_fds());
	return 0;
}
