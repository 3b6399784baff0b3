/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <string.h>

#include "cmd.h"
#include "config.h"
#include "ctl_client.h"
#include "report.h"

static void print_size(const json_t *a, const char *label, const char *key)
{
	char text[32];

	if (json_object_get(a, key))
		printf("%-16s %s\n", label, format_size(text, sizeof(text), report_u64(a, key)));
}

/* What the guest has given back, and what it says of the memory that it has. */
static void print_balloon(const json_t *a)
{
	if (!json_is_true(json_object_get(a, "driver")))
		printf("the guest has no driver for it (yet)\n");
	print_size(a, "asked for", "target_bytes");
	print_size(a, "given back", "actual_bytes");
	print_size(a, "takes here", "used_bytes");
	print_size(a, "guest's total", "guest_total_bytes");
	print_size(a, "free", "guest_free_bytes");
	print_size(a, "available", "guest_available_bytes");
	print_size(a, "caches", "guest_cache_bytes");
}

int cmd_balloon(int argc, char **argv)
{
	struct errmsg err = {""};
	json_t *request, *answer;
	struct config cfg;
	uint64_t target;
	int status;

	if (!cmd_parse(argc, argv, &cfg, &status))
		return status;
	if (!config_name_ok(cfg.args[0])) {
		log_error("balloon: '%.100s' is not a guest's name (see 'godwit list')",
			  cfg.args[0]);
		return EXIT_USAGE;
	}
	request = json_pack("{s:s}", "cmd", "balloon");
	if (cfg.n_args == 2) {
		if (parse_size(cfg.args[1], &target)) {
			log_error("balloon: '%.100s' is not a size such as 256M", cfg.args[1]);
			json_decref(request);
			return EXIT_USAGE;
		}
		json_object_set_new(request, "target_bytes", json_integer((json_int_t)target));
	}
	if (ctl_call(cfg.args[0], request, CTL_CALL_TIMEOUT, &answer, &err)) {
		log_error("balloon: %s", err.text);
		return EXIT_FAILED;
	}
	json_object_del(answer, "ok");
	if (cfg.json) {
		json_dumpf(answer, stdout, REPORT_JSON_FLAGS);
		printf("\n");
	} else {
		print_balloon(answer);
	}
	json_decref(answer);
	return EXIT_DONE;
}
