/* SPDX-License-Identifier: MIT */
#include "info.h"

#include <dirent.h>
#include <string.h>
#include <time.h>

#define CHUNK 400 /* of text per line; longer texts take several lines of the same key */

static void say_text(struct serial *s, const char *key, const char *text)
{
	size_t len = strcspn(text, "\n");

	for (size_t at = 0; at < len || at == 0; at += CHUNK)
		say(s, "info key=%s text=%.*s", key, len - at < CHUNK ? (int)(len - at) : CHUNK,
		    text + at);
}

/* The lines of a file that hold `match` (all, if NULL); no more than max. */
static void say_lines(struct serial *s, const char *key, const char *path, const char *match,
		      int max)
{
	FILE *f = fopen(path, "re");
	char line[4096];

	if (!f)
		return;
	while (max > 0 && fgets(line, sizeof(line), f)) {
		if (match && !strstr(line, match))
			continue;
		say_text(s, key, line);
		max--;
	}
	fclose(f);
}

static void say_names(struct serial *s, const char *key, const char *path)
{
	char text[CHUNK] = "";
	struct dirent *e;
	size_t used = 0;
	DIR *d = opendir(path);

	if (!d)
		return;
	while ((e = readdir(d))) {
		size_t len = strlen(e->d_name);

		if (e->d_name[0] == '.' || used + len + 2 > sizeof(text))
			continue;
		if (used)
			text[used++] = ' ';
		memcpy(text + used, e->d_name, len + 1);
		used += len;
	}
	closedir(d);
	say_text(s, key, text);
}

void info_memory(struct serial *s)
{
	unsigned long long total = 0, available = 0;
	FILE *f = fopen("/proc/meminfo", "re");
	char line[128];

	while (f && fgets(line, sizeof(line), f)) {
		(void)sscanf(line, "MemTotal: %llu", &total);
		(void)sscanf(line, "MemAvailable: %llu", &available);
	}
	if (f)
		fclose(f);
	say(s, "mem total_kib=%llu available_kib=%llu", total, available);
}

void info_say(struct serial *s)
{
	static const char clocksource[] = "/sys/devices/system/clocksource/clocksource0/";
	char path[128];

	say_lines(s, "version", "/proc/version", NULL, 1);
	say_lines(s, "cmdline", "/proc/cmdline", NULL, 1);
	/* 176: the kernel was entered by its PVH note. */
	say_lines(s, "loader", "/proc/sys/kernel/bootloader_type", NULL, 1);
	say_lines(s, "online", "/sys/devices/system/cpu/online", NULL, 1);
	say_lines(s, "cpu", "/proc/cpuinfo", "model name", 1);
	say_lines(s, "flags", "/proc/cpuinfo", "flags", 1);
	snprintf(path, sizeof(path), "%s%s", clocksource, "current_clocksource");
	say_lines(s, "clocksource", path, NULL, 1);
	snprintf(path, sizeof(path), "%s%s", clocksource, "available_clocksource");
	say_lines(s, "clocksources", path, NULL, 1);
	say_lines(s, "memory", "/proc/meminfo", "Mem", 3);
	say_lines(s, "ram", "/proc/iomem", "System RAM", 16);
	say_names(s, "acpi", "/sys/firmware/acpi/tables");
	say_names(s, "acpi-devices", "/sys/bus/acpi/devices");
	say(s, "info key=date text=%lld", (long long)time(NULL));
	say_lines(s, "rtc", "/sys/class/rtc/rtc0/name", NULL, 1);
	say_lines(s, "rtc-date", "/sys/class/rtc/rtc0/since_epoch", NULL, 1);
	say_lines(s, "irq", "/proc/interrupts", NULL, 64);
	say_lines(s, "uart", "/proc/tty/driver/serial", "0:", 1);
}
