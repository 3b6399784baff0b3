/* SPDX-License-Identifier: MIT */
/*
 * Small helpers that every layer uses: sizes, time, exact reads and writes, scoped clean-up.
 */
#ifndef GODWIT_UTIL_H
#define GODWIT_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/types.h>

#define KIB 1024ULL
#define MIB (1024ULL * KIB)
#define GIB (1024ULL * MIB)
#define PAGE_SIZE 4096ULL
#define PAGE_SHIFT 12

#define NS_PER_US 1000ULL
#define NS_PER_MS 1000000ULL
#define NS_PER_SEC 1000000000ULL

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define ALIGN_DOWN(x, a) ((x) & ~((__typeof__(x))(a)-1))
#define ALIGN_UP(x, a) ALIGN_DOWN((x) + ((__typeof__(x))(a)-1), a)
#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

#define PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))

/* Scoped clean-up: `AUTO_FREE char *s = ...;`, `AUTO_CLOSE int fd = -1;` */
void auto_free_cleanup(void *ptr);
void auto_close_cleanup(const int *fd);
#define AUTO_FREE __attribute__((cleanup(auto_free_cleanup)))
#define AUTO_CLOSE __attribute__((cleanup(auto_close_cleanup)))

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t now_ns(void);

/* CPU time of the calling thread in nanoseconds. */
uint64_t thread_cpu_ns(void);

/*
 * Where there are too few CPUs the calling thread, which works through much memory, has about half
 * the share of one that runs a guest (setpriority(2)): a guest does not stand still for a whole
 * slice of the scheduler's. There is no way back.
 */
void thread_give_way(void);

/* CLOCK_REALTIME in nanoseconds since 1970. */
uint64_t realtime_ns(void);

/*
 * Reads or writes exactly len bytes on a blocking fd, going on after EINTR and short counts.
 * 0, -errno, or (reads) -ENODATA when the file ends first.
 */
int read_exact(int fd, void *buf, size_t len);
int write_exact(int fd, const void *buf, size_t len);

/* As read_exact, at a file offset. */
int pread_exact(int fd, void *buf, size_t len, uint64_t offset);

/*
 * "512M", "4G", "64k", "1048576" to bytes (suffixes K M G T P, powers of 1024, either case).
 * -EINVAL on anything else, -ERANGE when it does not fit 64 bits.
 */
int parse_size(const char *text, uint64_t *bytes);

/* "50ms", "2s", "1h", "300us", "5m" to nanoseconds; a bare number is seconds. Errors as parse_size.
 */
int parse_duration(const char *text, uint64_t *ns);

/* Whole decimal number from min to max. -EINVAL, or -ERANGE outside the limits. */
int parse_u64(const char *text, uint64_t min, uint64_t max, uint64_t *out);

/* "12.3 MiB" into buf; returns buf. */
const char *format_size(char *buf, size_t len, uint64_t bytes);

/* a + b or a * b into *out; false when it does not fit. */
static inline bool add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
	return !__builtin_add_overflow(a, b, out);
}
static inline bool mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
	return !__builtin_mul_overflow(a, b, out);
}

#endif
