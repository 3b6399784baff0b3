/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "boot.h"
#include "cmd.h"
#include "config.h"
#include "config_devices.h"
#include "cpuid.h"
#include "instance.h"
#include "kvm.h"
#include "probe.h"
#include "util.h"

#define MEMORY_DEFAULT (512 * MIB)

static bool has_word(const char *cmdline, const char *start)
{
	for (const char *p = cmdline; (p = strstr(p, start)); p++) {
		if (p == cmdline || p[-1] == ' ')
			return true;
	}
	return false;
}

/* Linux says nothing unless it is told where: on the serial line, unless the user chose. */
static int build_cmdline(const struct config *cfg, bool linux_guest, char out[VM_CMDLINE_MAX],
			 struct errmsg *err)
{
	bool add = linux_guest && !has_word(cfg->cmdline, "console=");
	int n = snprintf(out, VM_CMDLINE_MAX, "%s%s%s", add ? "console=ttyS0" : "",
			 add && cfg->cmdline[0] ? " " : "", cfg->cmdline);

	if (n >= VM_CMDLINE_MAX)
		return errmsg_set(err, -E2BIG, "the kernel command line is longer than %d bytes",
				  VM_CMDLINE_MAX - 1);
	return 0;
}

static int build_cpu(const struct config *cfg, uint32_t vcpus, struct cpuid *cpuid, int *status,
		     struct errmsg *err)
{
	struct kvm_caps caps;
	struct cpuid host;
	int ret;
	AUTO_CLOSE int fd = kvm_open(&caps, err);

	if (fd < 0)
		return fd;
	ret = cpuid_host(&host, fd, cfg->cpu_mask, err);
	if (ret == -EINVAL && cfg->cpu_mask[0])
		*status = EXIT_USAGE; /* a word that is no feature's name */
	return ret ? ret : cpuid_build(cpuid, &host, vcpus, err);
}

/* All that can be found wrong before anything is made. */
static int prepare(const struct config *cfg, struct instance *in, int *status, struct errmsg *err)
{
	struct vm_config *vm = &in->cfg;
	struct boot_info info;
	int ret;

	vm->ram_size = cfg->memory ? cfg->memory : MEMORY_DEFAULT;
	vm->vcpus = cfg->cpus ? cfg->cpus : 1;
	vm->dirty = cfg->dirty;
	in->no_reboot = cfg->no_reboot;
	in->start_paused = cfg->paused;
	ret = config_absolute_path("kernel", cfg->kernel, vm->kernel, err);
	if (ret == 0 && cfg->initrd[0])
		ret = config_absolute_path("initrd", cfg->initrd, vm->initrd, err);
	vm->devices = cfg->devices;
	if (ret == 0)
		ret = config_absolute_paths(&vm->devices, err);
	if (ret == 0)
		ret = config_choose_macs(&vm->devices, err);
	if (ret == 0)
		ret = boot_inspect(vm->kernel, &info, err);
	if (ret == 0)
		ret = build_cmdline(cfg, info.linux_guest, vm->cmdline, err);
	if (ret == 0)
		ret = build_cpu(cfg, vm->vcpus, &in->cpuid, status, err);
	if (ret)
		return ret;
	if (info.linux_guest) {
		struct errmsg why = {""};

		ret = probe_linux(&why);
		if (ret)
			return errmsg_set(err, ret, "%s", why.text);
	}
	return 0;
}

int cmd_run(int argc, char **argv)
{
	AUTO_FREE struct instance *in = NULL;
	struct errmsg err = {""};
	struct config cfg;
	int status;

	if (!cmd_parse(argc, argv, &cfg, &status))
		return status;
	if (!cfg.kernel[0]) {
		log_error("run: --kernel is missing (see 'godwit run --help')");
		return EXIT_USAGE;
	}
	in = calloc(1, sizeof(*in));
	if (!in) {
		log_error("out of memory");
		return EXIT_FAILED;
	}

	status = EXIT_FAILED;
	if (instance_init_confined(in, cfg.user, cfg.confine, &err) == 0 &&
	    prepare(&cfg, in, &status, &err) == 0 && instance_claim(in, cfg.name, &err) == 0 &&
	    instance_boot(in, &err) == 0) {
		log_debug("'%s': %u vCPUs, %llu MiB, %s", in->cfg.name, in->cfg.vcpus,
			  (unsigned long long)(in->cfg.ram_size / MIB), in->cfg.kernel);
		status = instance_run(in);
	}
	instance_destroy(in);
	if (err.text[0])
		log_error("%s", err.text);
	return status;
}
