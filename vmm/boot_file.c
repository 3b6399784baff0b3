/* SPDX-License-Identifier: MIT */
/*
 * Opening what the user named, and telling what it is when it is not a kernel: people hand over
 * packed kernels, initramfs archives, disk images and kernels of other machines.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "boot_image.h"

int boot_file_open(struct boot_file *f, const char *what, const char *path, struct errmsg *err)
{
	struct stat st;
	int ret;

	*f = (struct boot_file){.fd = -1, .path = path};
	/* A FIFO without a writer would block the open. */
	f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (f->fd < 0)
		return errmsg_set(err, -errno, "%s %s: %s", what, path, strerror(errno));
	if (fstat(f->fd, &st)) {
		ret = errmsg_set(err, -errno, "%s %s: %s", what, path, strerror(errno));
		goto fail;
	}
	if (S_ISDIR(st.st_mode)) {
		ret = errmsg_set(err, -EISDIR, "%s %s: is a directory, not a file", what, path);
		goto fail;
	}
	if (!S_ISREG(st.st_mode)) {
		ret = errmsg_set(err, -ENOEXEC, "%s %s: not a regular file; copy it into one", what,
				 path);
		goto fail;
	}
	if (st.st_size <= 0) {
		ret = errmsg_set(err, -ENOEXEC, "%s %s: the file is empty", what, path);
		goto fail;
	}
	f->size = (uint64_t)st.st_size;
	return 0;
fail:
	boot_file_close(f);
	return ret;
}

void boot_file_close(struct boot_file *f)
{
	if (f->fd >= 0)
		close(f->fd);
	f->fd = -1;
}

struct known_type {
	size_t offset;
	const char *magic;
	size_t len;
	const char *text;
};

#define KNOWN(offset, magic, text)                                                                 \
	{                                                                                          \
		offset, magic, sizeof(magic) - 1, text                                             \
	}

/* First match counts: what says more comes first. */
static const struct known_type known_types[] = {
	KNOWN(0, "\x1f\x8b", "gzip-compressed data: unpack it with gunzip"),
	KNOWN(0,
	      "\xfd"
	      "7zXZ\0",
	      "xz-compressed data: unpack it with unxz"),
	KNOWN(0, "\x28\xb5\x2f\xfd", "zstd-compressed data: unpack it with unzstd"),
	KNOWN(0, "\x04\x22\x4d\x18", "lz4-compressed data: unpack it with unlz4"),
	KNOWN(0, "\x02\x21\x4c\x18", "lz4-compressed data: unpack it with unlz4"),
	KNOWN(0, "BZh", "bzip2-compressed data: unpack it with bunzip2"),
	KNOWN(0, "0707", "a cpio archive: an initramfs belongs to -i"),
	KNOWN(0, "QFI\xfb", "a qcow2 disk image: a disk belongs to --disk"),
	KNOWN(0, "!<arch>\n", "a package or archive: unpack it and use the kernel inside"),
	KNOWN(56, "ARM\x64", "an arm64 kernel: godwit runs x86-64 kernels"),
	KNOWN(48, "RISCV\0\0\0", "a RISC-V kernel: godwit runs x86-64 kernels"),
	KNOWN(4, "zimg", "a packed EFI kernel of another architecture"),
	KNOWN(0, "MZ",
	      "an EFI program without a Linux setup header: of a unified kernel image use what "
	      "`objcopy -O binary --only-section=.linux` takes out"),
	KNOWN(0, "#!", "a script"),
};

static bool is_text(const uint8_t *head, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (head[i] < 0x20 && !(head[i] >= '\t' && head[i] <= '\r'))
			return false;
	}
	return true;
}

int boot_not_a_kernel(const struct boot_file *f, const uint8_t *head, size_t len,
		      struct errmsg *err)
{
	const char *text = NULL;

	for (size_t i = 0; i < ARRAY_SIZE(known_types) && !text; i++) {
		const struct known_type *k = &known_types[i];

		if (len >= k->offset + k->len && !memcmp(head + k->offset, k->magic, k->len))
			text = k->text;
	}
	if (!text && is_text(head, len))
		text = "a text file";
	if (text)
		return errmsg_set(err, -ENOEXEC,
				  "%s is not a kernel: neither bzImage nor ELF, but %s", f->path,
				  text);
	return errmsg_set(err, -ENOEXEC, "%s is not a kernel: neither bzImage nor ELF", f->path);
}
