/* SPDX-License-Identifier: MIT */
#include "kmsg.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

static const struct {
	const char *text;
	enum kmsg_class class;
	bool at_start;
} problems[] = {
	/*
	 * Boot messages hold "WARNING" too ("Spectre V2 : WARNING: ..."); that of WARN() begins
	 * with it.
	 */
	{"WARNING:", KMSG_ERROR, true},
	{"BUG:", KMSG_ERROR, false}, /* among others "watchdog: BUG: soft lockup" */
	{"Oops", KMSG_ERROR, false},
	{"Kernel panic", KMSG_ERROR, false},
	{"hard LOCKUP", KMSG_ERROR, false},
	{"blocked for more than", KMSG_ERROR, false},
	{"rcu: INFO:", KMSG_ERROR, false},
	{"kthread starved", KMSG_ERROR, false},
	{"general protection", KMSG_ERROR, false},
	{"segfault at", KMSG_ERROR, false},
	{"trap invalid opcode", KMSG_ERROR, false},
	{"bad frame in", KMSG_ERROR, false},
	{"Bad page", KMSG_ERROR, false},
	{"nobody cared", KMSG_ERROR, false},
	{"Out of memory", KMSG_ERROR, false},
	{"Machine check", KMSG_ERROR, false},
	{"Hardware Error", KMSG_ERROR, false},
	{"too much work for irq", KMSG_ERROR, false},
	{"I/O error", KMSG_ERROR, false},
	{"EXT4-fs error", KMSG_ERROR, false},
	{"EXT4-fs warning", KMSG_ERROR, false},
	{"JBD2: ", KMSG_ERROR, true}, /* it speaks only of trouble */
	{"Aborting journal", KMSG_ERROR, true},
	{"timekeeping watchdog", KMSG_NOTE, false},
	{"Marking clocksource", KMSG_NOTE, false},
	{"Marking TSC unstable", KMSG_NOTE, false},
	{"TSC warp", KMSG_NOTE, false},
	{"hrtimer: interrupt took", KMSG_NOTE, false},
	{"unchecked MSR access", KMSG_NOTE, false},
};

enum kmsg_class kmsg_classify(const char *text)
{
	for (size_t i = 0; i < sizeof(problems) / sizeof(problems[0]); i++) {
		const char *found = strstr(text, problems[i].text);

		if (found && (!problems[i].at_start || found == text))
			return problems[i].class;
	}
	return KMSG_OTHER;
}

int kmsg_open(void)
{
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

void kmsg_read(int fd, void (*problem)(void *arg, enum kmsg_class class, const char *text),
	       void *arg)
{
	/*
	 * A record is "priority,number,time,flags;text", a newline, and lines of properties. One
	 * read, one record.
	 */
	char record[2048];

	for (;;) {
		ssize_t n = read(fd, record, sizeof(record) - 1);
		enum kmsg_class class;
		char *text;

		if (n < 0 && (errno == EPIPE || errno == EINTR))
			continue; /* EPIPE: some were overwritten; go on with the oldest */
		if (n <= 0)
			return;
		record[n] = '\0';
		text = strchr(record, ';');
		if (!text)
			continue;
		text++;
		text[strcspn(text, "\n")] = '\0';
		class = kmsg_classify(text);
		if (class != KMSG_OTHER)
			problem(arg, class, text);
	}
}

bool kmsg_write(const char *text)
{
	int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	bool done;

	if (fd < 0)
		return false;
	done = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);
	return done;
}
