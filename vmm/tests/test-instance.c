/* SPDX-License-Identifier: MIT */
/*
 * A guest's process from the inside: what comes while its machine is taken apart for a reset, and
 * how words of elsewhere are shown.
 */
#include "../instance.h"

#include <elf.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../cmd.h"
#include "../instance_text.h"
#include "../kvm.h"
#include "check-main.h"

#define KERNEL_GPA 0x400000U

/* ---- a reset ---- */

static struct instance in;
static struct errmsg err;
static char dir[] = "/tmp/godwit-instance-XXXXXX";

/*
 * In the place of a device that runs the loop until the kernel has let go of its timer: what that
 * loop would have served is called from here.
 */
static struct spy {
	struct device dev;
	void (*at_end)(void);
} * spy;

static unsigned ends;

static int spy_init(struct device *d, const void *config)
{
	spy = container_of(d, struct spy, dev);
	(void)config;
	return 0;
}

static void spy_nothing(struct device *d)
{
	(void)d;
}

static int spy_quiesce(struct device *d, uint64_t deadline_ns)
{
	(void)d;
	(void)deadline_ns;
	return 0;
}

static void spy_fields(struct device *d, struct sbuf *s)
{
	(void)d;
	(void)s;
}

static void spy_destroy(struct device *d)
{
	struct spy *s = container_of(d, struct spy, dev);

	ends++;
	if (s->at_end)
		s->at_end();
}

static const struct device_ops spy_ops = {
	.tag = "spy",
	.size = sizeof(struct spy),
	.version = 1,
	.min_version = 1,
	.init = spy_init,
	.reset = spy_nothing,
	.quiesce = spy_quiesce,
	.resume = spy_nothing,
	.fields = spy_fields,
	.destroy = spy_destroy,
};

/* A PVH kernel that stands still: 1: pause; jmp 1b */
static void write_kernel(const char *path)
{
	static const struct {
		Elf64_Ehdr eh;
		Elf64_Phdr ph[2];
		struct {
			Elf64_Nhdr nh;
			char name[4];
			uint32_t entry;
		} note;
		uint8_t code[4];
	} elf = {
		.eh = {.e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB,
				   EV_CURRENT},
		       .e_type = ET_EXEC,
		       .e_machine = EM_X86_64,
		       .e_version = EV_CURRENT,
		       .e_entry = KERNEL_GPA,
		       .e_phoff = sizeof(Elf64_Ehdr),
		       .e_ehsize = sizeof(Elf64_Ehdr),
		       .e_phentsize = sizeof(Elf64_Phdr),
		       .e_phnum = 2},
		.ph = {{.p_type = PT_LOAD,
			.p_flags = PF_R | PF_X,
			.p_offset = sizeof(Elf64_Ehdr) + 2 * sizeof(Elf64_Phdr) +
				    sizeof(Elf64_Nhdr) + 8,
			.p_vaddr = KERNEL_GPA,
			.p_paddr = KERNEL_GPA,
			.p_filesz = 4,
			.p_memsz = 4},
		       {.p_type = PT_NOTE,
			.p_offset = sizeof(Elf64_Ehdr) + 2 * sizeof(Elf64_Phdr),
			.p_filesz = sizeof(Elf64_Nhdr) + 8,
			.p_memsz = sizeof(Elf64_Nhdr) + 8}},
		.note = {.nh = {.n_namesz = 4, .n_descsz = 4, .n_type = 18},
			 .name = "Xen",
			 .entry = KERNEL_GPA},
		.code = {0xf3, 0x90, 0xeb, 0xfc},
	};
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write_exact(fd, &elf, sizeof(elf)), 0);
	close(fd);
}

static void begin(void)
{
	struct kvm_caps caps;
	struct cpuid host;
	int fd;

	fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	ck_assert(dup2(fd, STDIN_FILENO) >= 0);
	close(fd);
	ck_assert_ptr_nonnull(mkdtemp(dir));
	setenv("GODWIT_RUNDIR", dir, 1);
	ck_assert_msg(instance_init(&in, &err) == 0, "%s", err.text);
	in.cfg.ram_size = RAM_MIN;
	in.cfg.vcpus = 1;
	snprintf(in.cfg.kernel, sizeof(in.cfg.kernel), "%s/kernel", dir);
	write_kernel(in.cfg.kernel);
	fd = kvm_open(&caps, &err);
	ck_assert_msg(fd >= 0, "%s", err.text);
	ck_assert_int_eq(cpuid_host(&host, fd, "", &err), 0);
	close(fd);
	ck_assert_int_eq(cpuid_build(&in.cpuid, &host, 1, &err), 0);
	ck_assert_msg(instance_claim(&in, "vm", &err) == 0, "%s", err.text);
	ck_assert_msg(instance_boot(&in, &err) == 0, "%s", err.text);
	ck_assert_int_eq(vm_add_device(in.vm, &spy_ops, 0, NULL, &err), 0);
}

static void end(void)
{
	unlink(in.cfg.kernel);
	rmdir(dir);
}

/* The guest resets, and at_end() is what comes while its old machine goes. The exit status. */
static int reset(void (*at_end)(void))
{
	int status;

	spy->at_end = at_end;
	vm_set_end(in.vm, VM_END_RESET, "a test");
	status = instance_run(&in);
	instance_destroy(&in);
	ck_assert_uint_eq(ends, 1);
	return status;
}

/* Safety net: ends a run that was not ended by what the test did. */
static struct loop_op late;

static void too_late(struct loop_op *op, int32_t res)
{
	(void)op;
	(void)res;
	if (!in.quitting)
		instance_stop(&in, 99);
}

static void stop_by_force(void)
{
	instance_stop(&in, 17);
}

START_TEST(stop_during_a_reset_is_kept)
{
	begin();
	late.done = too_late;
	loop_timer(&in.loop, &late, 10 * NS_PER_SEC);
	ck_assert_int_eq(reset(stop_by_force), 17);
	end();
}
END_TEST

/* Nothing that is half gone is to be found. */
static void look(void)
{
	ck_assert_ptr_null(in.vm);
	ck_assert(!instance_uncertain(&in));
	late.done = too_late;
	loop_timer(&in.loop, &late, NS_PER_MS);
}

START_TEST(reset_boots_a_new_machine)
{
	begin();
	/* Ended by look()'s timer, when a machine is there again: 99 is a stop that found one. */
	ck_assert_int_eq(reset(look), 99);
	end();
}
END_TEST

static void lose_kernel(void)
{
	late.done = too_late;
	loop_timer(&in.loop, &late, 10 * NS_PER_SEC);
	unlink(in.cfg.kernel);
}

START_TEST(reset_without_its_kernel)
{
	begin();
	ck_assert_int_eq(reset(lose_kernel), EXIT_FAILED);
	end();
}
END_TEST

/* ---- the end ---- */

static char answer[1024];

/* As `godwit status` asks; the loop that a device runs as it goes serves it. */
static void ask_for_status(void)
{
	static const char request[] = "{\"cmd\":\"status\"}\n";
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ssize_t n = -1;

	ck_assert_int_eq(
		connect(fd, (const struct sockaddr *)&in.claim.addr, sizeof(in.claim.addr)), 0);
	ck_assert_int_eq(send(fd, request, strlen(request), 0), (ssize_t)strlen(request));
	for (unsigned i = 0; i < 1000 && n < 0; i++) {
		ck_assert_int_eq(loop_step(&in.loop, 10 * NS_PER_MS), 0);
		n = recv(fd, answer, sizeof(answer) - 1, MSG_DONTWAIT);
	}
	ck_assert_int_gt(n, 0);
	close(fd);
}

START_TEST(a_guest_that_has_ended_does_not_run)
{
	begin();
	spy->at_end = ask_for_status;
	instance_stop(&in, 0);
	ck_assert_int_eq(instance_run(&in), 0);
	instance_destroy(&in);
	ck_assert_msg(strstr(answer, "\"state\":\"ended\""), "%s", answer);
	end();
}
END_TEST

/* ---- words ---- */

static const struct {
	const char *text, *plain;
} words[] = {
	{"", ""},
	{"/boot/vmlinuz-6.1 quiet", "/boot/vmlinuz-6.1 quiet"},
	{"\033]0;owned\007\r\n\t\177", "?]0;owned?????"},
	/* Other letters stay, C1 controls (CSI is U+009B) and what is no UTF-8 do not. */
	{"/tmp/Gr\303\266\303\237e \342\202\254 \360\237\220\246",
	 "/tmp/Gr\303\266\303\237e \342\202\254 \360\237\220\246"},
	{"a\302\233b\302\200\302\237\302\240", "a?b??\302\240"},
	{"\2332J", "?2J"},
	{"\303", "?"},
	{"\303(", "?("},
	{"\342\202", "??"},
	{"\300\201", "??"},
	{"\340\200\200", "???"},
	{"\355\240\200", "???"},
	{"\364\220\200\200\377", "?????"},
};

START_TEST(plain_words)
{
	for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
		char buf[64];

		ck_assert_str_eq(text_plain(buf, sizeof(buf), words[i].text), words[i].plain);
	}
}
END_TEST

START_TEST(plain_words_that_do_not_fit)
{
	char buf[8];

	memset(buf, 'x', sizeof(buf));
	ck_assert_str_eq(text_plain(buf, 4, "abcdef"), "abc");
	ck_assert_int_eq(buf[4], 'x');
	/* No half of a letter. */
	ck_assert_str_eq(text_plain(buf, 4, "ab\303\266"), "ab");
	ck_assert_str_eq(text_plain(buf, 5, "ab\303\266"), "ab\303\266");
	ck_assert_str_eq(text_plain(buf, 1, "a"), "");
	buf[0] = 'x';
	text_plain(buf, 0, "a");
	ck_assert_int_eq(buf[0], 'x');
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		plain_words,
		plain_words_that_do_not_fit,
		stop_during_a_reset_is_kept,
		reset_boots_a_new_machine,
		reset_without_its_kernel,
		a_guest_that_has_ended_does_not_run,
	};

	if (access("/dev/kvm", R_OK | W_OK)) {
		fprintf(stderr, "instance: no /dev/kvm: resets are left out\n");
		return check_main("instance", tests, 2);
	}
	return check_main("instance", tests, ARRAY_SIZE(tests));
}
