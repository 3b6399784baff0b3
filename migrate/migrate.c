/* SPDX-License-Identifier: MIT */
#include "migrate.h"

#include <errno.h>
#include <string.h>
#include <strings.h>

#include "../vmm/util.h"
#include "uri.h"

const char *migrate_phase_name(enum migrate_phase p)
{
	switch (p) {
	case MIGRATE_IDLE:
		return "idle";
	case MIGRATE_LISTENING:
		return "listening";
	case MIGRATE_CONNECTING:
		return "connecting";
	case MIGRATE_HANDSHAKE:
		return "handshake";
	case MIGRATE_PRECOPY:
		return "pre-copy";
	case MIGRATE_STOPCOPY:
		return "stop-and-copy";
	case MIGRATE_READY:
		return "ready";
	case MIGRATE_COMMIT:
		return "commit";
	case MIGRATE_RECONNECTING:
		return "reconnecting";
	case MIGRATE_KEEPING:
		return "keeping";
	case MIGRATE_DONE:
		return "done";
	}
	return "?";
}

const char *migrate_status_name(enum migrate_status s)
{
	switch (s) {
	case MIGRATE_COMPLETED:
		return "completed";
	case MIGRATE_FAILED:
		return "failed";
	case MIGRATE_CANCELLED:
		return "cancelled";
	case MIGRATE_UNCERTAIN:
		return "uncertain";
	}
	return "?";
}

int migrate_parse_bandwidth(const char *text, uint64_t *bytes_per_s)
{
	static const struct {
		const char *suffix;
		uint64_t bits;
	} units[] = {{"bit", 1}, {"kbit", 1000}, {"Mbit", 1000000}, {"Gbit", 1000000000}};
	size_t digits = strspn(text, "0123456789");
	uint64_t n = 0;
	int ret;

	*bytes_per_s = 0;
	if (strcmp(text, "unlimited") == 0)
		return 0;
	ret = parse_size(text, &n);
	for (size_t i = 0; i < ARRAY_SIZE(units) && ret == -EINVAL; i++) {
		char number[24] = "";

		if (strcasecmp(text + digits, units[i].suffix) != 0 || digits >= sizeof(number))
			continue;
		memcpy(number, text, digits);
		ret = parse_size(number, &n);
		if (ret == 0 && !mul_u64(n, units[i].bits, &n))
			ret = -ERANGE;
		n /= 8;
		break;
	}
	if (ret)
		return ret;
	if (n > INT64_MAX || (n < MIGRATE_BANDWIDTH_MIN && strspn(text, "0") != strlen(text)))
		return -ERANGE;
	*bytes_per_s = n;
	return 0;
}

int migrate_parse_compress(const char *text, enum migrate_compress *mode, int *level)
{
	uint64_t v = MIGRATE_LEVEL_DEFAULT;

	*mode = MIGRATE_COMPRESS_AUTO;
	*level = MIGRATE_LEVEL_DEFAULT;
	if (strcmp(text, "auto") == 0)
		return 0;
	*mode = MIGRATE_COMPRESS_OFF;
	if (strcmp(text, "off") == 0)
		return 0;
	*mode = MIGRATE_COMPRESS_ZSTD;
	if (strcmp(text, "zstd") == 0)
		return 0;
	if (strncmp(text, "zstd:", 5) != 0 || strlen(text) > 7 ||
	    parse_u64(text + 5, 1, MIGRATE_LEVEL_MAX, &v))
		return -EINVAL;
	*level = (int)v;
	return 0;
}

int migrate_check_tls(const char *uri, const struct migrate_tls *tls, struct errmsg *err)
{
	bool all = tls->cert[0] && tls->key[0] && tls->ca[0];
	bool any = tls->cert[0] || tls->key[0] || tls->ca[0] || tls->name[0];

	if (!uri_is_tls(uri)) {
		if (any || tls->psk[0])
			return errmsg_set(err, -EINVAL,
					  "certificates and keys (--tls-...) are for a tls: URI, "
					  "and %s is none",
					  uri);
		return 0;
	}
	if (tls->psk[0] && any)
		return errmsg_set(err, -EINVAL,
				  "--tls-psk stands alone: a pre-shared key takes the place of "
				  "certificates");
	if (!tls->psk[0] && !all)
		return errmsg_set(err, -EINVAL,
				  "a tls: URI needs --tls-cert, --tls-key and --tls-ca, or "
				  "--tls-psk");
	return 0;
}

bool migrate_is_exposed(const char *uri, bool listens)
{
	return uri_is_exposed(uri, listens);
}
