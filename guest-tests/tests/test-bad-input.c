/* SPDX-License-Identifier: MIT */
/*
 * What users get wrong: each is refused in one line that names the thing and, where there is one,
 * the remedy; with exit code 2 for what can be told from the words alone, 1 for all else; and a
 * guest that runs is none the worse.
 */
#include <asm/bootparam.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <regex.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "faults.h"

#define HDR_OFFSET 0x1f1U

static void need_one_line(struct proc *p, const char *regex)
{
	const char *nl = strchr(p->err.buf, '\n');
	regex_t re;
	int ret;

	need(p->out.len == 0, "stdout: '%s'", p->out.buf);
	need(nl && !nl[1], "not one line: '%s'", p->err.buf);
	need(strncmp(p->err.buf, "godwit: ", 8) == 0, "'%s'", p->err.buf);
	need(!regcomp(&re, regex, REG_EXTENDED | REG_NOSUB), "'%s'", regex);
	ret = regexec(&re, p->err.buf, 0, NULL, 0);
	regfree(&re);
	need(ret == 0, "'%s' is not like '%s'", p->err.buf, regex);
}

/* A file in the scratch folder; its path. */
static const char *make_file(const char *name, const void *data, size_t len)
{
	const char *path = harness_path("%s/%s", harness_tmp(), name);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	need(fd >= 0 && write(fd, data, len) == (ssize_t)len, "%s: %s", path, strerror(errno));
	close(fd);
	return path;
}

/* The first bytes of a good kernel. */
static const char *cut_kernel(size_t len)
{
	static char buf[1 << 20];
	int fd = open(bare_elf("hello"), O_RDONLY | O_CLOEXEC);
	ssize_t n = read(fd, buf, sizeof(buf));

	close(fd);
	need(n > (ssize_t)len, "a kernel of %zd bytes", n);
	return make_file("cut.elf", buf, len);
}

/* ---- words ---- */

static const struct {
	int status;
	const char *regex;
	const char *words[8];
} commands[] = {
	{2, "no command 'bogus'", {"bogus"}},
	{2, "--kernel is missing", {"run"}},
	{2, "unknown option '--bogus'", {"run", "--bogus"}},
	{2, "option '--memory' needs SIZE", {"run", "--memory"}},
	{2, "unexpected word 'more'", {"run", "-k", "x", "more"}},
	{2, "'0' is less than 16M", {"run", "-k", "x", "-m", "0"}},
	{2, "'1' is less than 16M", {"run", "-k", "x", "-m", "1"}},
	{2, "'15M' is less than 16M", {"run", "-k", "x", "-m", "15M"}},
	{2, "'abc' is not a size such as", {"run", "-k", "x", "-m", "abc"}},
	{2, "'-5' is not a size such as", {"run", "-k", "x", "-m", "-5"}},
	{2, "'64MM' is not a size such as", {"run", "-k", "x", "-m", "64MM"}},
	{2, "more than 64 bits", {"run", "-k", "x", "-m", "99999999999999999999"}},
	{2, "more than 64 bits", {"run", "-k", "x", "-m", "99999999P"}},
	{2, "not a multiple of 4K", {"run", "-k", "x", "-m", "17000001"}},
	{2, "'0' is not a number from 1", {"run", "-k", "x", "-c", "0"}},
	{2, "'two' is not a number from 1", {"run", "-k", "x", "-c", "two"}},
	{2, "'avx' is neither 'host' nor '-FEATURE'", {"run", "-k", "x", "--cpu", "avx"}},
	{2, "'bitmap' is none of 'auto', 'log'", {"run", "-k", "x", "--dirty", "bitmap"}},
	{2, "'' is none of 'auto', 'log'", {"run", "-k", "x", "--dirty", ""}},
	{2, "'ring:' is none of .*ENTRIES", {"run", "-k", "x", "--dirty", "ring:"}},
	{2, "'ring:1000' is none .*power of two", {"run", "-k", "x", "--dirty", "ring:1000"}},
	{2, "from 256 to 65536", {"run", "-k", "x", "--dirty", "ring:128"}},
	{2, "from 256 to 65536", {"receive", "--dirty", "ring:131072", "unix:/x"}},
	{2, "'log:256' is none of", {"receive", "--dirty", "log:256", "unix:/x"}},
	{2, "option '--dirty' needs HOW", {"receive", "--dirty"}},
	{2, "unknown option '--dirty'", {"migrate", "--dirty", "ring", "x", "unix:/x"}},
	{2, "'a/b' is not a name", {"run", "-k", "x", "-n", "a/b"}},
	{2, "'\\.\\.' is not a name", {"run", "-k", "x", "-n", ".."}},
	{2, "'-x' is not a name", {"run", "-k", "x", "-n", "-x"}},
	{2, "'' is not a name", {"run", "-k", "x", "-n", ""}},
	{2, "'a\\?b' is not a name", {"run", "-k", "x", "-n", "a\nb"}},
	{2, "the URI to listen at is missing", {"receive"}},
	{2, "'here' is none of tcp:HOST:PORT, tls:HOST:PORT and unix:PATH", {"receive", "here"}},
	{2, "'tcp:' is not tcp:HOST:PORT", {"receive", "tcp:"}},
	{2, "'unix:' is not unix:PATH", {"receive", "unix:"}},
	{1, "\"99999\" is not a port", {"receive", "tcp:127.0.0.1:99999"}},
	{1, "\"http\" is not a port", {"receive", "tcp:127.0.0.1:http"}},
	{1, "in brackets", {"receive", "tcp:::1:0"}},
	{1, "/nonexistent/s: No such file", {"receive", "unix:/nonexistent/s"}},
	{1, "tcp:192.0.2.1:1: Cannot assign", {"receive", "--insecure", "tcp:192.0.2.1:1"}},
	{2, "a guest's NAME is missing", {"migrate"}},
	{2, "the destination's URI is missing", {"migrate", "x"}},
	{2, "'y' is none of tcp:HOST:PORT", {"migrate", "x", "y"}},
	{2, "'a b' is not a guest's name", {"migrate", "a b", "unix:/x"}},
	{2,
	 "'0' .*more than 0|must be more than 0",
	 {"migrate", "--downtime", "0", "x", "unix:/x"}},
	{2, "'soon' is not a time such as", {"migrate", "--timeout", "soon", "x", "unix:/x"}},
	{2,
	 "'never' is none of 'cancel', 'throttle' and",
	 {"migrate", "--on-timeout", "never", "x", "unix:/x"}},
	{2, "'most' is neither 'stream' nor", {"migrate", "--verify", "most", "x", "unix:/x"}},
	{1, "no guest 'nobody' runs here", {"migrate", "nobody", "unix:/x"}},
	{1, "no guest 'nobody' runs here", {"status", "nobody"}},
	{1, "no guest 'nobody' runs here", {"pause", "nobody"}},
	{1, "no guest 'nobody' runs here", {"resume", "nobody"}},
	{1, "no guest 'nobody' runs here", {"resolve", "--run", "nobody"}},
	{1, "no guest 'nobody' runs here", {"resolve", "--discard", "nobody"}},
	{2, "say --run if", {"resolve", "nobody"}},
	{2, "say --run if", {"resolve", "--run", "--discard", "nobody"}},
	{1, "no guest 'nobody' runs here", {"cancel", "nobody"}},
	{1, "no guest 'nobody' runs here", {"stop", "nobody"}},
	{2, "'\\.\\./x' is not a guest's name", {"stop", "../x"}},
};
#define N_COMMANDS ((int)(sizeof(commands) / sizeof(commands[0])))

START_TEST(words)
{
	const char *const *w = commands[_i].words;

	need_one_line(
		godwit_run(commands[_i].status, w[0], w[1], w[2], w[3], w[4], w[5], w[6], NULL),
		commands[_i].regex);
}
END_TEST

START_TEST(too_long)
{
	static char text[5001];

	memset(text, 'x', sizeof(text) - 1);
	need_one_line(godwit_run(2, "run", "-k", "x", "-p", text, NULL),
		      "'--cmdline' is longer than 4095 bytes");
	need_one_line(godwit_run(2, "run", "-k", text, NULL), "'--kernel' is longer than");
	need_one_line(godwit_run(2, "receive", harness_path("unix:%s", text), NULL),
		      "URI is longer than");
	text[200] = '\0';
	need_one_line(godwit_run(2, "run", "-k", "x", "-n", text, NULL), "is not a name: 1 to 63");
	need_one_line(godwit_run(1, "receive", harness_path("unix:/%s", text), NULL),
		      "the path must have 1 to 107 bytes");
}
END_TEST

/* ---- kernels and initrds ---- */

static void refuse_kernel(const char *path, const char *regex)
{
	need_one_line(godwit_run(1, "run", "-m", "64M", "-k", path, NULL), regex);
}

START_TEST(kernels)
{
	static const char text[] = "This is not a kernel.\n";
	static Elf64_Ehdr elf = {
		.e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB,
			    EV_CURRENT},
		.e_type = ET_EXEC,
		.e_machine = EM_AARCH64,
		.e_phentsize = sizeof(Elf64_Phdr),
		.e_phnum = 1,
	};
	const char *fifo = harness_path("%s/fifo", harness_tmp());

	refuse_kernel("/nonexistent", "kernel /nonexistent: No such file");
	refuse_kernel(harness_tmp(), "is a directory");
	refuse_kernel(make_file("empty", "", 0), "the file is empty");
	refuse_kernel(make_file("text", text, sizeof(text) - 1),
		      "neither bzImage nor ELF, but a text");
	refuse_kernel(make_file("gz", "\x1f\x8b\x08\0\0\0\0\0", 8), "neither bzImage nor ELF");
	need(mkfifo(fifo, 0600) == 0, "%s", strerror(errno));
	refuse_kernel(fifo, "not a regular file");
	refuse_kernel("/dev/zero", "not a regular file");
	refuse_kernel(cut_kernel(40), "truncated");
	refuse_kernel(cut_kernel(100), "truncated");
	refuse_kernel(cut_kernel(8000), "truncated");
	refuse_kernel(make_file("arm", &elf, sizeof(elf)), "is an ELF for .*: godwit runs x86-64");
	refuse_kernel(harness_godwit(), "is not a kernel but a program");
}
END_TEST

/* A bzImage that is good as far as its header tells, and of the right size. */
static struct {
	uint8_t head[HDR_OFFSET];
	struct setup_header hdr;
	uint8_t rest[8192 - HDR_OFFSET - sizeof(struct setup_header)];
} __attribute__((packed)) bzimage;

static void good_bzimage(void)
{
	memset(&bzimage, 0, sizeof(bzimage));
	bzimage.hdr = (struct setup_header){
		.setup_sects = 1,
		.syssize = (sizeof(bzimage) - 1024) / 16,
		.boot_flag = 0xaa55,
		.jump = 0xeb | (0x290 - 0x202) << 8,
		.header = 0x53726448,
		.version = 0x20f,
		.loadflags = LOADED_HIGH,
		.kernel_alignment = 0x200000,
		.relocatable_kernel = 1,
		.xloadflags = XLF_KERNEL_64,
		.cmdline_size = 2047,
		.initrd_addr_max = 0x7fffffff,
		.pref_address = 0x1000000,
		.init_size = 0x100000,
	};
}

START_TEST(bzimages)
{
	good_bzimage();
	refuse_kernel(make_file("cut", &bzimage, 0x240),
		      "truncated: it ends within the setup header");
	refuse_kernel(make_file("cut", &bzimage, 700), "kernel .*/cut is truncated");
	refuse_kernel(make_file("cut", &bzimage, sizeof(bzimage) - 1), "is truncated: 8191 bytes");
	bzimage.hdr.xloadflags = 0;
	refuse_kernel(make_file("32", &bzimage, sizeof(bzimage)), "32-bit only: .*use an x86-64");
	good_bzimage();
	bzimage.hdr.version = 0x203;
	refuse_kernel(make_file("old", &bzimage, sizeof(bzimage)), "boot protocol 2\\.03: 2\\.12");
	good_bzimage();
	bzimage.hdr.pref_address = UINT64_MAX & ~0xfffULL;
	refuse_kernel(make_file("high", &bzimage, sizeof(bzimage)), "malformed|wants memory");
}
END_TEST

/* Where KVM cannot run Linux, that is said before anything starts, and why. */
START_TEST(linux_here)
{
	if (harness_linux_works())
		harness_skip("KVM runs Linux here");
	good_bzimage();
	refuse_kernel(make_file("linux", &bzimage, sizeof(bzimage)),
		      "this KVM cannot run Linux: .*: ");
}
END_TEST

START_TEST(initrds)
{
	const char *elf = bare_elf("hello");
	const char *big = make_file("big", "x", 1);

	need(truncate(big, 100 << 20) == 0, "%s", strerror(errno));
	need_one_line(godwit_run(1, "run", "-m", "64M", "-k", elf, "-i", "/nonexistent", NULL),
		      "initrd /nonexistent: No such file");
	need_one_line(godwit_run(1, "run", "-m", "64M", "-k", elf, "-i", harness_tmp(), NULL),
		      "initrd .*: is a directory");
	need_one_line(godwit_run(1, "run", "-m", "64M", "-k", elf, "-i", big, NULL),
		      "initrd .*/big has 100 MiB, but .* use -m [0-9]+M or more");
}
END_TEST

/* More than this host has to give, found out by asking it. */
START_TEST(too_much)
{
	const char *elf = bare_elf("hello");

	need_one_line(godwit_run(1, "run", "-m", "1P", "-k", elf, NULL),
		      "1 PiB of (guest )?RAM.*(physical address bits|use a smaller -m)");
	need_one_line(godwit_run(1, "run", "-m", "4096P", "-k", elf, NULL),
		      "4 EiB of (guest )?RAM.*(physical address bits|use a smaller -m)");
	need_one_line(godwit_run(1, "run", "-c", "100000", "-k", elf, NULL),
		      "100000 vCPUs: this host's KVM takes 1 to [0-9]+");
	need_one_line(godwit_run(2, "run", "-k", elf, "--cpu", "host,-nosuch", NULL),
		      "cpu feature \"nosuch\" is not known");
}
END_TEST

/* ---- beside a guest that runs ---- */

START_TEST(name_taken)
{
	struct scene s;

	scene_start(&s, "unix:");
	need_one_line(godwit_run(1, "run", "-n", s.g.name, "-k", bare_elf("hello"), NULL),
		      "name already taken: a guest 'vm' runs here");
	need_one_line(godwit_run(1, "receive", "-n", s.g.name, "tcp:127.0.0.1:0", NULL),
		      "name already taken: a guest 'vm' runs here");
	source_owns(&s);
}
END_TEST

START_TEST(nobody_listens)
{
	struct scene s;
	struct move m;
	char uri[256];
	int fd;

	scene_start(&s, "unix:");
	/* A port that was ours a moment ago. */
	fd = relay_listen("tcp:127.0.0.1:0", uri);
	close(fd);
	move_report(move_start(&s.g, uri, NULL), 1, &m, 20000);
	need(strstr(m.error, "nobody listens at tcp:127.0.0.1:") &&
		     strstr(m.error, "godwit receive"),
	     "%s", m.error);
	move_report(move_start(&s.g, "unix:/nonexistent/s", NULL), 1, &m, 20000);
	need(strstr(m.error, "nobody listens at unix:/nonexistent/s"), "%s", m.error);
	move_report(move_start(&s.g, "tcp:no-such-host.invalid:1", NULL), 1, &m, 25000);
	need(strstr(m.error, "no-such-host.invalid"), "%s", m.error);
	source_owns(&s);
}
END_TEST

START_TEST(port_taken)
{
	struct dest tcp, un;

	dest_start(&tcp, "first", "tcp:127.0.0.1:0", NULL);
	dest_start(&un, "second", "unix:", NULL);
	need_one_line(godwit_run(1, "receive", tcp.uri, NULL), "is in use by another process");
	need_one_line(godwit_run(1, "receive", un.uri, NULL), "is in use by another process");
	/* Being asked did not disturb them. */
	godwit_run(0, "status", "first", NULL);
	godwit_run(0, "status", "second", NULL);
}
END_TEST

/* A receiver refuses what is not as it was told, before anything moves and before any pause. */
static const struct {
	const char *words[2];
	const char *error;
} wishes[] = {
	{{"-m", "128M"}, "refuses: the guest has 64 MiB of RAM, this receiver takes only 128 MiB"},
	{{"-c", "2"}, "refuses: the guest has 1 vCPUs, this receiver takes only 2"},
	/* Features that every x86-64 KVM offers; the guest need not use them to have them. */
	{{"--cpu", "host,-sse2"}, "refuses: CPU features .* missing here: sse2"},
	{{"--cpu", "host,-cx8,-fxsr"}, "refuses: CPU features .* missing here: cx8 fxsr"},
};
#define N_WISHES ((int)(sizeof(wishes) / sizeof(wishes[0])))

START_TEST(refused_by_receiver)
{
	struct scene s;

	scene_start_with(&s, "unix:", "ws=4M rate=8M", wishes[_i].words[0], wishes[_i].words[1],
			 NULL);
	scene_migrate(&s);
	scene_report(&s, 1, wishes[_i].error);
	need(s.m.rounds == 0 && s.m.sent == 0 && s.m.downtime_ms <= 0, "%s",
	     json_dumps(s.m.json, 0));
	need(relay_seen(s.relay, TO_SOURCE, WIRE_REFUSE) == 1, "%s", s.relay->trace);
	need(relay_seen(s.relay, TO_DEST, WIRE_PAGES) == 0, "%s", s.relay->trace);
	dest_refused(&s, "no guest came to run here: ");
	source_owns(&s);
}
END_TEST

/* The same the other way round: a guest that was never given the feature goes anywhere. */
START_TEST(without_the_feature)
{
	struct guest g;
	struct dest d;
	struct move m;

	guest_start(&g, "plain", "-m", "64M", "--cpu", "host,-sse2", "-k", bare_elf("dirty"), "-p",
		    "ws=4M rate=8M", NULL);
	guest_expect(&g, "^dirty ready ", 15000);
	dest_start(&d, "there", "unix:", "--cpu", "host,-sse2", NULL);
	move_report(move_start(&g, d.uri, NULL), 0, &m, 30000);
	guest_moved(&g, &d);
	guest_send(&g, "q");
	guest_expect(&g, "^dirty done .* errors=0$", 10000);
	guest_ended(&g, 0, 10000);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("bad-input");
	bool kvm = harness_kvm_works();

	tcase_add_loop_test(harness_case(s, "words", 60), words, 0, N_COMMANDS);
	tcase_add_test(harness_case(s, "long", 60), too_long);
	tcase_add_test(harness_case(s, "kernels", 60), kernels);
	tcase_add_test(harness_case(s, "bzimages", 60), bzimages);
	if (!kvm)
		return harness_main(s);
	tcase_add_test(harness_case(s, "linux", 60), linux_here);
	tcase_add_test(harness_case(s, "initrds", 60), initrds);
	tcase_add_test(harness_case(s, "too-much", 60), too_much);
	tcase_add_test(harness_case(s, "name-taken", 60), name_taken);
	tcase_add_test(harness_case(s, "nobody", 90), nobody_listens);
	tcase_add_test(harness_case(s, "port-taken", 60), port_taken);
	tcase_add_loop_test(harness_case(s, "wishes", 60), refused_by_receiver, 0, N_WISHES);
	tcase_add_test(harness_case(s, "without", 60), without_the_feature);
	return harness_main(s);
}
