/* SPDX-License-Identifier: MIT */
#include "disk_image.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "fault.h"
#include "util.h"

#define ALIGN_TRY_MAX 4096U
#define MEM_ALIGN_MAX 4096U

/* ---- opening ---- */

static const char *open_remedy(int err, bool readonly)
{
	switch (err) {
	case ENOENT:
		return "; create it (truncate -s SIZE) or correct the path";
	case EACCES:
	case EPERM:
	case EROFS:
		return readonly ? "" : "; allow writing to it or add ,ro to the disk";
	case EINVAL:
		return "; its file system has no direct I/O, use cache=writeback";
	default:
		return "";
	}
}

/* Opens a path as img says; a file descriptor or -errno with the cause in err. */
static int open_path(const struct disk_image *img, const char *path, struct errmsg *err)
{
	int flags = O_CLOEXEC | (img->readonly ? O_RDONLY : O_RDWR);
	int fd, ret;

	if (img->cache == VM_CACHE_NONE)
		flags |= O_DIRECT;
	/* A FIFO would keep us waiting for its other end; what it is, is looked at once open. */
	fd = fault_at(FAULT_EIO, "open") ? (errno = EIO, -1) : open(path, flags | O_NONBLOCK);
	if (fd < 0) {
		ret = -errno;
		return errmsg_set(err, ret, "disk %s: %s%s", img->path, strerror(-ret),
				  open_remedy(-ret, img->readonly));
	}
	/* Reads of a file that is O_NONBLOCK end in -EAGAIN in io_uring. */
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0) {
		ret = errmsg_set(err, -errno, "disk %s: %s", img->path, strerror(errno));
		close(fd);
		return ret;
	}
	return fd;
}

/* ---- what it is ---- */

struct facts {
	bool block;
	uint64_t bytes;
	dev_t dev;
	ino_t ino;
	struct timespec written; /* of a file */
};

static int look(const struct disk_image *img, int fd, struct facts *f, struct errmsg *err)
{
	struct stat st;

	if (fstat(fd, &st))
		return errmsg_set(err, -errno, "disk %s: %s", img->path, strerror(errno));
	if (S_ISDIR(st.st_mode))
		return errmsg_set(err, -EISDIR,
				  "disk %s is a directory; name a raw image or a block device",
				  img->path);
	if (S_ISREG(st.st_mode)) {
		*f = (struct facts){
			.bytes = (uint64_t)st.st_size,
			.dev = st.st_dev,
			.ino = st.st_ino,
			.written = st.st_mtim,
		};
		return 0;
	}
	if (!S_ISBLK(st.st_mode))
		return errmsg_set(err, -EINVAL,
				  "disk %s is neither a file nor a block device; name a raw image",
				  img->path);
	/* Whatever node it is opened by, the device is the same. */
	*f = (struct facts){.block = true, .dev = st.st_rdev};
	if (ioctl(fd, BLKGETSIZE64, &f->bytes))
		return errmsg_set(err, -errno, "disk %s: its size is not known: %s", img->path,
				  strerror(errno));
	return 0;
}

/*
 * A block device that is mounted, or that something else of this host holds for itself, would be
 * written behind that one's back.
 */
static int check_not_held(const struct disk_image *img, struct errmsg *err)
{
	int fd = open(img->path, O_RDONLY | O_EXCL | O_CLOEXEC);

	if (fd < 0 && errno == EBUSY)
		return errmsg_set(err, -EBUSY,
				  "disk %s is mounted or held by this host; unmount it, or add ,ro "
				  "to the disk",
				  img->path);
	if (fd >= 0)
		close(fd);
	return 0;
}

static int check_writable_block(const struct disk_image *img, int fd, struct errmsg *err)
{
	int ro = 0;

	if (ioctl(fd, BLKROGET, &ro) == 0 && ro)
		return errmsg_set(err, -EROFS, "disk %s is a read-only device; add ,ro to the disk",
				  img->path);
	return check_not_held(img, err);
}

/* ---- direct I/O ---- */

/* What the kernel says, where it does: 1, or 0 when it does not, or -EOPNOTSUPP. */
static int align_by_statx(const struct disk_image *img, int fd, uint32_t *io, uint32_t *mem)
{
#ifdef STATX_DIOALIGN
	struct statx sx = {0};

	(void)img;
	if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) || !(sx.stx_mask & STATX_DIOALIGN))
		return 0;
	if (!sx.stx_dio_offset_align)
		return -EOPNOTSUPP;
	*io = sx.stx_dio_offset_align;
	*mem = MAX(sx.stx_dio_mem_align, 1U);
	return 1;
#else
	(void)img, (void)fd, (void)io, (void)mem;
	return 0;
#endif
}

/* The smallest unit in which a read from the start works; -errno when none does. */
static int align_by_trying(int fd, uint32_t *io)
{
	AUTO_FREE uint8_t *buf = NULL;
	void *p;
	int ret = -EOPNOTSUPP;

	if (posix_memalign(&p, 2 * (size_t)ALIGN_TRY_MAX, 2 * (size_t)ALIGN_TRY_MAX))
		return -ENOMEM;
	buf = p;
	for (uint32_t a = DISK_SECTOR; a <= ALIGN_TRY_MAX; a *= 2) {
		/* At buf + a: a multiple of a, and of nothing larger. */
		if (pread(fd, buf + a, a, 0) > 0) {
			*io = a;
			return 0;
		}
		if (errno != EINVAL)
			ret = -errno;
	}
	return ret;
}

/*
 * io_uring begins direct I/O on the thread that submits it and relies on the file system not to
 * wait for locks, nor for room in queues. These are known to keep to that; FUSE and some others do
 * not, and a disk that hangs would hang the loop.
 */
static bool may_block(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs))
		return true;
	return fs.f_type != EXT4_SUPER_MAGIC && fs.f_type != XFS_SUPER_MAGIC;
}

static int learn_alignment(struct disk_image *img, struct errmsg *err)
{
	uint32_t io = 0, mem = 0;
	int sector = 0, ret;

	img->io_align = img->mem_align = img->discard_align = 1;
	if (img->block && ioctl(img->fd, BLKSSZGET, &sector) == 0 && sector > 0)
		img->discard_align = (uint32_t)sector;
	if (img->cache != VM_CACHE_NONE)
		return 0;
	ret = align_by_statx(img, img->fd, &io, &mem);
	if (ret == 0 && img->block && sector > 0) {
		io = mem = (uint32_t)sector;
		ret = 1;
	}
	if (ret == 0) {
		ret = align_by_trying(img->fd, &io);
		mem = io;
	}
	if (ret < 0 || (io & (io - 1)) || (mem & (mem - 1)) || io > DISK_ALIGN_MAX ||
	    mem > MEM_ALIGN_MAX)
		return errmsg_set(err, ret < 0 ? ret : -EOPNOTSUPP,
				  "disk %s: direct I/O does not work there: %s; use "
				  "cache=writeback",
				  img->path, strerror(ret < 0 ? -ret : EOPNOTSUPP));
	/* The last unit would be written whole, and a file would grow by that. */
	if (img->size % io)
		return errmsg_set(err, -EINVAL,
				  "disk %s: cache=none needs a size in whole units of %u bytes "
				  "there, it has %llu bytes; enlarge it or use cache=writeback",
				  img->path, io, (unsigned long long)img->size);
	img->io_align = io;
	img->mem_align = mem;
	img->io_blocks = !img->block && may_block(img->fd);
	return 0;
}

/* ---- the whole of it ---- */

int disk_image_open(struct disk_image *img, const struct vm_disk *disk, struct errmsg *err)
{
	struct facts f = {0};
	int ret;

	*img = (struct disk_image){
		.cache = (enum vm_cache)disk->cache,
		.readonly = disk->readonly,
	};
	memcpy(img->path, disk->path, sizeof(img->path));
	img->path[sizeof(img->path) - 1] = 0;
	img->fd = -1;
	ret = open_path(img, img->path, err);
	if (ret < 0)
		return ret;
	img->fd = ret;
	ret = look(img, img->fd, &f, err);
	if (ret)
		goto fail;
	img->block = f.block;
	img->dev = f.dev;
	img->ino = f.ino;
	img->size = ALIGN_DOWN(f.bytes, (uint64_t)DISK_SECTOR);
	img->tail = (uint32_t)(f.bytes % DISK_SECTOR);
	if (!img->size) {
		ret = errmsg_set(err, -EINVAL,
				 "disk %s has %llu bytes, less than a sector; enlarge it "
				 "(truncate -s SIZE)",
				 img->path, (unsigned long long)f.bytes);
		goto fail;
	}
	if (img->block && !img->readonly) {
		ret = check_writable_block(img, img->fd, err);
		if (ret)
			goto fail;
	}
	ret = learn_alignment(img, err);
	if (ret)
		goto fail;
	return 0;
fail:
	disk_image_close(img);
	return ret;
}

void disk_image_close(struct disk_image *img)
{
	if (img->fd < 0)
		return;
	disk_image_release(img);
	close(img->fd);
	img->fd = -1;
}

int disk_image_check(const struct vm_disk *disk, struct errmsg *err)
{
	struct disk_image img;
	int ret = disk_image_open(&img, disk, err);

	if (ret)
		return ret;
	disk_image_close(&img);
	return 0;
}

/* ---- locking ---- */

static struct flock whole_file(const struct disk_image *img)
{
	return (struct flock){
		.l_type = (short)(img->readonly ? F_RDLCK : F_WRLCK),
		.l_whence = SEEK_SET,
	};
}

static int lock_file(const struct disk_image *img, int fd, struct errmsg *err)
{
	struct flock fl = whole_file(img);
	char holder[64];
	int ret;

	ret = fault_at(FAULT_EIO, "lock") ? (errno = EIO, -1) : fcntl(fd, F_OFD_SETLK, &fl);
	if (ret == 0)
		return 0;
	ret = -errno;
	if (ret != -EAGAIN && ret != -EACCES)
		return errmsg_set(err, ret,
				  "disk %s cannot be locked: %s; its file system must support "
				  "locks (NFS: mount it without nolock, with lockd running)",
				  img->path, strerror(-ret));
	/* Open file descriptions have no owner: only a classic lock tells its process. */
	snprintf(holder, sizeof(holder), "to find it: fuser -v");
	if (fcntl(fd, F_OFD_GETLK, &fl) == 0 && fl.l_type != F_UNLCK && fl.l_pid > 0)
		snprintf(holder, sizeof(holder), "process %d; ps -p %d", (int)fl.l_pid,
			 (int)fl.l_pid);
	return errmsg_set(err, -EBUSY,
			  "disk %s is in use by another process (%s), which %s it: stop that one "
			  "first, or give this guest an image of its own",
			  img->path, holder, fl.l_type == F_RDLCK ? "reads" : "may write to");
}

static bool same_file(const struct disk_image *img, const struct facts *f)
{
	return f->block == img->block && f->dev == img->dev && f->ino == img->ino;
}

/* Opens the file that img has open a second time. */
static int reopen(const struct disk_image *img, struct facts *f, struct errmsg *err)
{
	struct errmsg why = {""};
	char self[32];
	int fd, ret;

	fd = open_path(img, img->path, &why);
	if (fd >= 0) {
		ret = look(img, fd, f, &why);
		if (ret == 0 && same_file(img, f))
			return fd;
		close(fd);
		if (ret == 0)
			ret = errmsg_set(
				&why, -ESTALE,
				"disk %s is another file than when the guest was prepared; "
				"put the right one there and try again",
				img->path);
	} else {
		ret = fd;
	}
	/* A guest that ran on it goes on with it, whatever became of the name. */
	if (img->ran) {
		snprintf(self, sizeof(self), "/proc/self/fd/%d", img->fd);
		fd = open_path(img, self, NULL);
		if (fd >= 0 && look(img, fd, f, NULL) == 0)
			return fd;
		if (fd >= 0)
			close(fd);
	}
	return errmsg_set(err, ret, "%s", why.text);
}

/*
 * A guest that was handed over, ran elsewhere and is no more must not go on here: its memory is
 * older than its disk. A free lock does not tell; that the image was written since does.
 */
static int check_unwritten(const struct disk_image *img, const struct facts *f, struct errmsg *err)
{
	if (!img->given_up || (f->written.tv_sec == img->written.tv_sec &&
			       f->written.tv_nsec == img->written.tv_nsec))
		return 0;
	return errmsg_set(err, -ESTALE,
			  "disk %s was written after this guest gave it up: the guest has run "
			  "elsewhere, and here its memory is older than its disk; boot it anew",
			  img->path);
}

int disk_image_acquire(struct disk_image *img, struct errmsg *err)
{
	struct facts f = {0};
	int fd, ret;

	if (img->locked)
		return 0;
	fd = reopen(img, &f, err);
	if (fd < 0)
		return fd;
	ret = lock_file(img, fd, err);
	/* Its size only counts once nobody else may change it. */
	if (ret == 0)
		ret = look(img, fd, &f, err);
	if (ret == 0 && ALIGN_DOWN(f.bytes, (uint64_t)DISK_SECTOR) != img->size)
		ret = errmsg_set(err, -ESTALE,
				 "disk %s has %llu bytes now, %llu when the guest was prepared; "
				 "give it its size back and try again",
				 img->path, (unsigned long long)f.bytes,
				 (unsigned long long)img->size);
	if (ret == 0)
		ret = check_unwritten(img, &f, err);
	if (ret) {
		close(fd);
		return ret;
	}
	/*
	 * The host's cache of a device that others write to over a network may be as old as the
	 * guest's last stay here. (Files of a shared file system are that one's business.)
	 */
	if (img->block)
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	close(img->fd);
	img->fd = fd;
	img->locked = img->ran = true;
	img->given_up = false;
	return 0;
}

void disk_image_release(struct disk_image *img)
{
	struct flock fl = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
	struct facts f = {0};

	if (!img->locked)
		return;
	img->locked = false;
	if (!img->readonly && look(img, img->fd, &f, NULL) == 0 && !f.block) {
		img->given_up = true;
		img->written = f.written;
	}
	/*
	 * Not by closing: the kernel may still hold the file for a request that has ended, and the
	 * lock with it.
	 */
	if (fcntl(img->fd, F_OFD_SETLK, &fl))
		log_error("disk %s: its lock cannot be given up: %s", img->path, strerror(errno));
}
