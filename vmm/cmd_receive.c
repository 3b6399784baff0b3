/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "config.h"
#include "config_devices.h"
#include "instance.h"

static int start(const struct config *cfg, struct instance *in, struct errmsg *err)
{
	struct receive_options opt = {
		.want_ram = cfg->memory,
		.want_vcpus = cfg->cpus,
		.keep_ns = cfg->keep_ns,
		.peer_timeout_ns = cfg->peer_timeout_ns,
	};
	int ret;

	in->cfg.dirty = cfg->dirty;
	in->no_reboot = cfg->no_reboot;
	in->start_paused = cfg->paused;
	in->json = cfg->json;
	snprintf(opt.uri, sizeof(opt.uri), "%s", cfg->args[0]);
	_Static_assert(sizeof(opt.cpu_mask) == sizeof(cfg->cpu_mask), "the same text");
	memcpy(opt.cpu_mask, cfg->cpu_mask, sizeof(opt.cpu_mask));
	opt.tls = cfg->tls;
	_Static_assert(sizeof(opt.base) == sizeof(cfg->base), "the same text");
	memcpy(opt.base, cfg->base, sizeof(opt.base));

	/* Without a name of our choosing the guest brings its own; it is claimed when it comes. */
	if (cfg->name[0]) {
		ret = instance_claim(in, cfg->name, err);
		if (ret)
			return ret;
	}
	in->cfg.devices = cfg->devices;
	ret = config_absolute_paths(&in->cfg.devices, err);
	if (ret)
		return ret;
	ret = instance_receive(in, &opt, cfg->kernel, cfg->initrd, err);
	if (ret)
		return ret;
	printf("listening %s\n", in->receive_uri);
	if (fflush(stdout))
		return errmsg_set(err, -errno, "cannot write to stdout: %s", strerror(errno));
	return 0;
}

int cmd_receive(int argc, char **argv)
{
	AUTO_FREE struct instance *in = NULL;
	struct errmsg err = {""};
	struct config cfg;
	int status;

	if (!cmd_parse(argc, argv, &cfg, &status))
		return status;
	if (config_check_uri(cfg.args[0], &err)) {
		log_error("receive: %s (see 'godwit receive --help')", err.text);
		return EXIT_USAGE;
	}
	if (migrate_check_tls(cfg.args[0], &cfg.tls, &err)) {
		log_error("receive: %s", err.text);
		return EXIT_USAGE;
	}
	cmd_warn_exposed(&cfg, cfg.args[0], true);
	in = calloc(1, sizeof(*in));
	if (!in) {
		log_error("out of memory");
		return EXIT_FAILED;
	}

	status = EXIT_FAILED;
	if (instance_init_confined(in, cfg.user, cfg.confine, &err) == 0 &&
	    start(&cfg, in, &err) == 0)
		status = instance_run(in);
	instance_destroy(in);
	if (err.text[0])
		log_error("%s", err.text);
	return status;
}
