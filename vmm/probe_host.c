/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/memfd.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "probe_parts.h"

#define FAULT_WAIT_MS 1000
#define FAULT_BYTE 0xa5
#define HUGE_SIZE (2 * MIB)
#define HUGE_SYS "/sys/kernel/mm/hugepages/hugepages-2048kB/"

/*
 * A descriptor that also sees faults that KVM takes in the kernel, which is what is restricted
 * for users without privilege.
 */
static int open_userfaultfd(const char **by)
{
	int dev, fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	int err = errno;

	*by = "userfaultfd(2)";
	if (fd >= 0)
		return fd;
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev < 0)
		return -err;
	*by = "/dev/userfaultfd";
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	err = errno;
	close(dev);
	return fd < 0 ? -err : fd;
}

static void *touch(void *arg)
{
	return (void *)(uintptr_t) * (volatile uint8_t *)arg;
}

/* Answers the one fault on page with bytes of FAULT_BYTE. 0 or -errno. */
static int serve_fault(int fd, uint8_t *page)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	struct uffdio_copy copy = {.dst = (uintptr_t)page, .len = PAGE_SIZE};
	uint8_t content[PAGE_SIZE];
	struct uffd_msg msg;

	if (poll(&p, 1, FAULT_WAIT_MS) != 1)
		return -ETIMEDOUT;
	if (read(fd, &msg, sizeof(msg)) != (ssize_t)sizeof(msg))
		return -EIO;
	if (msg.event != UFFD_EVENT_PAGEFAULT ||
	    ALIGN_DOWN(msg.arg.pagefault.address, PAGE_SIZE) != (uintptr_t)page)
		return -EPROTO;
	memset(content, FAULT_BYTE, sizeof(content));
	copy.src = (uintptr_t)content;
	return ioctl(fd, UFFDIO_COPY, &copy) ? -errno : 0;
}

/* Takes over fd. */
static int try_userfaultfd(int fd, uint8_t *page)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM};
	struct uffdio_register reg = {
		.range = {.start = (uintptr_t)page, .len = PAGE_SIZE},
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	pthread_t thread;
	void *seen;
	int ret;

	if (ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg)) {
		ret = -errno;
		close(fd);
		return ret;
	}
	ret = -pthread_create(&thread, NULL, touch, page);
	if (ret) {
		close(fd);
		return ret;
	}
	ret = serve_fault(fd, page);
	/* Lets a fault that was not answered go through as an ordinary one: the thread ends. */
	close(fd);
	pthread_join(thread, &seen);
	if (!ret && (uintptr_t)seen != FAULT_BYTE)
		ret = -EIO;
	return ret;
}

void probe_userfaultfd(struct probe_ctx *ctx, struct probe_item *item)
{
	AUTO_CLOSE int mem = memfd_create("godwit-probe", MFD_CLOEXEC);
	const char *by;
	void *page;
	int fd, ret;

	(void)ctx;
	fd = open_userfaultfd(&by);
	if (fd < 0) {
		probe_not(item, PROBE_MISSING,
			  fd == -ENOSYS
				  ? "use a kernel built with CONFIG_USERFAULTFD"
				  : "`sudo sysctl vm.unprivileged_userfaultfd=1`, or give this "
				    "user access: `sudo setfacl -m u:$USER:rw /dev/userfaultfd`",
			  "%s (vm.unprivileged_userfaultfd = %ld)", strerror(-fd),
			  probe_read_number("/proc/sys/vm/unprivileged_userfaultfd", 0));
		return;
	}
	if (mem < 0 || ftruncate(mem, (off_t)PAGE_SIZE) ||
	    (page = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, mem, 0)) ==
		    MAP_FAILED) {
		probe_not(item, PROBE_MISSING, "free some memory", "memfd: %s", strerror(errno));
		close(fd);
		return;
	}
	ret = try_userfaultfd(fd, page);
	munmap(page, PAGE_SIZE);
	if (ret)
		probe_not(item, PROBE_MISSING, "use Linux 4.11 or later with CONFIG_USERFAULTFD",
			  "a missing page of a memfd cannot be filled in: %s", strerror(-ret));
	else
		probe_ok(item, "a missing page of a memfd was filled in, by %s", by);
}

void probe_hugepages(struct probe_ctx *ctx, struct probe_item *item)
{
	long total = probe_read_number(HUGE_SYS "nr_hugepages", 0);
	long avail = probe_read_number(HUGE_SYS "free_hugepages", 0);
	AUTO_CLOSE int fd = memfd_create("godwit-probe", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB);
	void *mem = MAP_FAILED;
	int err = 0;

	(void)ctx;
	/* fallocate() fails where a page fault would kill, as under a cgroup's limit. */
	if (fd < 0 || fallocate(fd, 0, 0, (off_t)HUGE_SIZE) ||
	    (mem = mmap(NULL, HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED)
		err = errno;
	if (mem != MAP_FAILED) {
		*(volatile uint8_t *)mem = 1;
		munmap(mem, HUGE_SIZE);
	}
	if (err)
		probe_not(item, PROBE_MISSING,
			  "`sudo sysctl vm.nr_hugepages=512` reserves 1 GiB; guests run without",
			  "no 2 MiB page to be had: %s (%ld of %ld free)", strerror(err), avail,
			  total);
	else
		probe_ok(item, "2 MiB pages: %ld of %ld free", avail, total);
}

void probe_tap(struct probe_ctx *ctx, struct probe_item *item)
{
	AUTO_CLOSE int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI, .ifr_name = "gwprobe%d"};
	int err;

	(void)ctx;
	if (fd < 0) {
		err = errno;
		probe_not(item, PROBE_MISSING,
			  err == EACCES || err == EPERM
				  ? "give this user access: `sudo setfacl -m u:$USER:rw "
				    "/dev/net/tun`"
				  : "load its module: `sudo modprobe tun`",
			  "/dev/net/tun: %s", strerror(err));
	} else if (ioctl(fd, TUNSETIFF, &ifr)) {
		probe_not(item, PROBE_LIMITED,
			  "run with CAP_NET_ADMIN, or make one for this user: `sudo ip tuntap add "
			  "dev tap0 mode tap user $USER`",
			  "cannot make a tap device: %s", strerror(errno));
	} else {
		/* It is not persistent: closing takes it away. */
		probe_ok(item, "a tap device was made");
	}
}
