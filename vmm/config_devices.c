/* SPDX-License-Identifier: MIT */
#include "config_devices.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>

#include "util.h"

/* ---- words ---- */

#define WORD_MAX VM_PATH_MAX

/*
 * Takes the next word off *rest, up to a single comma, with doubled ones made one. 1, 0 at the
 * end, or -EINVAL when it is too long.
 */
static int next_word(const char **rest, char word[WORD_MAX])
{
	const char *p = *rest;
	size_t n = 0;

	if (!p)
		return 0;
	for (; *p && (*p != ',' || p[1] == ','); p++) {
		if (*p == ',')
			p++;
		if (n + 1 == WORD_MAX)
			return -EINVAL;
		word[n++] = *p;
	}
	word[n] = '\0';
	*rest = *p ? p + 1 : NULL;
	return 1;
}

/* "key=value": the value if word has this key. */
static const char *value_of(const char *word, const char *key)
{
	size_t n = strlen(key);

	return strncmp(word, key, n) == 0 && word[n] == '=' ? word + n + 1 : NULL;
}

static int take_text(const char *option, const char *key, const char *value, char *dst, size_t size,
		     struct errmsg *err)
{
	size_t n = strlen(value);

	if (n == 0 || n >= size)
		return errmsg_set(err, -EINVAL, "'--%s': %s '%.100s' must be 1 to %zu bytes long",
				  option, key, value, size - 1);
	memcpy(dst, value, n + 1);
	return 0;
}

static int take_on_off(const char *option, const char *key, const char *value, bool *dst,
		       struct errmsg *err)
{
	if (strcmp(value, "on") != 0 && strcmp(value, "off") != 0)
		return errmsg_set(err, -EINVAL, "'--%s': %s=%.100s is neither on nor off", option,
				  key, value);
	*dst = strcmp(value, "on") == 0;
	return 0;
}

static int take_queues(const char *option, const char *value, uint16_t *dst, struct errmsg *err)
{
	uint64_t n;

	if (parse_u64(value, 1, VM_MAX_DEVICE_QUEUES, &n))
		return errmsg_set(err, -EINVAL, "'--%s': queues=%.100s is not 1 to %d", option,
				  value, VM_MAX_DEVICE_QUEUES);
	*dst = (uint16_t)n;
	return 0;
}

static int unknown_word(const char *option, const char *word, const char *known, struct errmsg *err)
{
	return errmsg_set(err, -EINVAL, "'--%s': '%.100s' is none of %s", option, word, known);
}

static int too_long(const char *option, struct errmsg *err)
{
	return errmsg_set(err, -EINVAL, "'--%s': a word of it is longer than %d bytes", option,
			  WORD_MAX - 1);
}

/* ---- disks ---- */

static int take_cache(const char *value, uint8_t *dst, struct errmsg *err)
{
	for (unsigned i = 0; i <= VM_CACHE_UNSAFE; i++) {
		if (strcmp(value, vm_cache_name((enum vm_cache)i)) == 0) {
			*dst = (uint8_t)i;
			return 0;
		}
	}
	return errmsg_set(err, -EINVAL,
			  "'--disk': cache=%.100s is none of writeback, none, writethrough, unsafe",
			  value);
}

static int disk_word(struct vm_disk *d, const char *word, struct errmsg *err)
{
	const char *value;

	if (strcmp(word, "ro") == 0) {
		d->readonly = true;
		return 0;
	}
	if ((value = value_of(word, "cache")))
		return take_cache(value, &d->cache, err);
	if ((value = value_of(word, "serial")))
		return take_text("disk", "serial", value, d->serial, sizeof(d->serial), err);
	if ((value = value_of(word, "queues")))
		return take_queues("disk", value, &d->queues, err);
	if ((value = value_of(word, "discard")))
		return take_on_off("disk", "discard", value, &d->discard, err);
	return unknown_word("disk", word, "ro, cache=, serial=, queues=, discard=", err);
}

int config_disk(struct vm_devices *d, const char *value, struct errmsg *err)
{
	struct vm_disk disk = {.queues = 1, .discard = true};
	char word[WORD_MAX];
	int ret;

	if (d->n_disks == VM_MAX_DISKS)
		return errmsg_set(err, -EINVAL, "'--disk': a guest has %d disks at most",
				  VM_MAX_DISKS);
	ret = next_word(&value, word);
	if (ret > 0)
		ret = take_text("disk", "path", word, disk.path, sizeof(disk.path), err);
	while (ret == 0 && (ret = next_word(&value, word)) > 0)
		ret = disk_word(&disk, word, err);
	if (ret)
		return err->text[0] ? ret : too_long("disk", err);
	d->disk[d->n_disks++] = disk;
	return 0;
}

/* ---- networks ---- */

static int take_mac(const char *value, uint8_t mac[6], struct errmsg *err)
{
	unsigned b[6];
	int end = 0;

	if (sscanf(value, "%2x:%2x:%2x:%2x:%2x:%2x%n", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5],
		   &end) != 6 ||
	    end != 17 || value[end])
		return errmsg_set(err, -EINVAL, "'--net': mac=%.100s is not aa:bb:cc:dd:ee:ff",
				  value);
	for (unsigned i = 0; i < 6; i++)
		mac[i] = (uint8_t)b[i];
	if ((mac[0] & 1) || !(b[0] | b[1] | b[2] | b[3] | b[4] | b[5]))
		return errmsg_set(err, -EINVAL, "'--net': mac=%s is no address of a device", value);
	return 0;
}

/* "tcp:[ADDR:]HOSTPORT:GUESTPORT"; an IPv6 ADDR stands in brackets. */
static int take_forward(const char *value, struct vm_net *net, struct errmsg *err)
{
	struct vm_forward f = {.udp = strncmp(value, "udp:", 4) == 0};
	const char *last = strrchr(value, ':'), *host = value + 4, *port, *end;
	uint64_t n;
	char text[8];

	if (net->n_forwards == VM_MAX_FORWARDS)
		return errmsg_set(err, -EINVAL, "'--net': more than %d port forwards",
				  VM_MAX_FORWARDS);
	if ((!f.udp && strncmp(value, "tcp:", 4) != 0) || last < host + 1 ||
	    parse_u64(last + 1, 1, 65535, &n))
		goto bad;
	f.guest_port = (uint16_t)n;
	for (port = last; port > host && port[-1] != ':';)
		port--;
	if ((size_t)(last - port) >= sizeof(text))
		goto bad;
	memcpy(text, port, (size_t)(last - port));
	text[last - port] = '\0';
	if (parse_u64(text, 1, 65535, &n))
		goto bad;
	f.host_port = (uint16_t)n;
	end = port > host ? port - 1 : host;
	if (end > host && *host == '[' && end[-1] == ']') {
		host++;
		end--;
	}
	if ((size_t)(end - host) >= sizeof(f.host))
		goto bad;
	memcpy(f.host, host, (size_t)(end - host));
	net->forward[net->n_forwards++] = f;
	return 0;
bad:
	return errmsg_set(err, -EINVAL,
			  "'--net': hostfwd=%.100s is not tcp:[ADDRESS:]HOSTPORT:GUESTPORT or the "
			  "same with udp",
			  value);
}

static int net_word(struct vm_net *net, const char *word, struct errmsg *err)
{
	const char *value;

	if ((value = value_of(word, "mac")))
		return take_mac(value, net->mac, err);
	if (net->kind == VM_NET_USER && (value = value_of(word, "hostfwd")))
		return take_forward(value, net, err);
	if (net->kind == VM_NET_TAP && (value = value_of(word, "queues")))
		return take_queues("net", value, &net->queues, err);
	return unknown_word("net", word,
			    net->kind == VM_NET_USER ? "hostfwd=, mac=" : "queues=, mac=", err);
}

static int net_kind(struct vm_net *net, const char *word, struct errmsg *err)
{
	if (strcmp(word, "user") == 0) {
		net->kind = VM_NET_USER;
		return 0;
	}
	if (strncmp(word, "tap:", 4) == 0) {
		net->kind = VM_NET_TAP;
		return take_text("net", "tap", word + 4, net->tap, sizeof(net->tap), err);
	}
	return errmsg_set(err, -EINVAL, "'--net': '%.100s' is neither user nor tap:NAME", word);
}

int config_net(struct vm_devices *d, const char *value, struct errmsg *err)
{
	struct vm_net net = {.queues = 1};
	char word[WORD_MAX];
	int ret;

	if (d->n_nets == VM_MAX_NETS)
		return errmsg_set(err, -EINVAL, "'--net': a guest has %d network devices at most",
				  VM_MAX_NETS);
	ret = next_word(&value, word);
	if (ret > 0)
		ret = net_kind(&net, word, err);
	while (ret == 0 && (ret = next_word(&value, word)) > 0)
		ret = net_word(&net, word, err);
	if (ret)
		return err->text[0] ? ret : too_long("net", err);
	d->net[d->n_nets++] = net;
	return 0;
}

/* ---- vsock, console ---- */

int config_vsock(struct vm_devices *d, const char *value, struct errmsg *err)
{
	struct vm_vsock v = {.present = true, .cid = 3};
	char word[WORD_MAX];
	int ret;

	if (d->vsock.present)
		return errmsg_set(err, -EINVAL, "'--vsock' is given twice");
	ret = next_word(&value, word);
	if (ret > 0)
		ret = take_text("vsock", "path", word, v.path, sizeof(v.path), err);
	while (ret == 0 && (ret = next_word(&value, word)) > 0) {
		const char *cid = value_of(word, "cid");

		if (!cid)
			ret = unknown_word("vsock", word, "cid=", err);
		else if (parse_u64(cid, 3, UINT32_MAX - 1, &v.cid))
			ret = errmsg_set(err, -EINVAL, "'--vsock': cid=%.100s is not 3 to %u", cid,
					 UINT32_MAX - 1);
		else
			ret = 0;
	}
	if (ret)
		return err->text[0] ? ret : too_long("vsock", err);
	d->vsock = v;
	return 0;
}

int config_console(struct vm_devices *d, const char *value, struct errmsg *err)
{
	struct vm_console c = {.present = true};
	char word[WORD_MAX];
	int ret;

	if (d->console.present)
		return errmsg_set(err, -EINVAL, "'--console' is given twice");
	ret = next_word(&value, word);
	if (ret > 0)
		ret = take_text("console", "path", word, c.path, sizeof(c.path), err);
	if (ret == 0 && (ret = next_word(&value, word)) > 0)
		ret = errmsg_set(err, -EINVAL, "'--console': '%.100s' after the path", word);
	if (ret)
		return err->text[0] ? ret : too_long("console", err);
	d->console = c;
	return 0;
}

/* ---- receiving ---- */

static int has_fewer(const char *what, uint32_t there, uint32_t here, struct errmsg *err)
{
	return errmsg_set(err, -ENOTSUP, "the guest has %u %s, this receiver was given %u", there,
			  what, here);
}

int config_override_devices(struct vm_devices *d, const struct vm_devices *here, struct errmsg *err)
{
	if (here->n_disks > d->n_disks)
		return has_fewer("disks (--disk)", d->n_disks, here->n_disks, err);
	if (here->n_nets > d->n_nets)
		return has_fewer("network devices (--net)", d->n_nets, here->n_nets, err);
	if (here->vsock.present && !d->vsock.present)
		return has_fewer("vsock devices (--vsock)", 0, 1, err);
	if (here->console.present && !d->console.present)
		return has_fewer("consoles (--console)", 0, 1, err);
	for (uint32_t i = 0; i < here->n_disks; i++) {
		memcpy(d->disk[i].path, here->disk[i].path, sizeof(d->disk[i].path));
		d->disk[i].cache = here->disk[i].cache;
	}
	for (uint32_t i = 0; i < here->n_nets; i++) {
		struct vm_net *n = &d->net[i];

		n->kind = here->net[i].kind;
		memcpy(n->tap, here->net[i].tap, sizeof(n->tap));
		n->n_forwards = here->net[i].n_forwards;
		memcpy(n->forward, here->net[i].forward, sizeof(n->forward));
	}
	if (here->vsock.present)
		memcpy(d->vsock.path, here->vsock.path, sizeof(d->vsock.path));
	if (here->console.present)
		memcpy(d->console.path, here->console.path, sizeof(d->console.path));
	return 0;
}

/* ---- paths ---- */

int config_absolute_path(const char *what, const char *path, char out[VM_PATH_MAX],
			 struct errmsg *err)
{
	AUTO_FREE char *full = realpath(path, NULL);

	if (!full)
		return errmsg_set(err, -errno, "%s %s: %s", what, path, strerror(errno));
	if (strlen(full) >= VM_PATH_MAX)
		return errmsg_set(err, -ENAMETOOLONG, "%s %s: the path is longer than %d bytes",
				  what, full, VM_PATH_MAX - 1);
	strcpy(out, full);
	return 0;
}

static int absolute_socket(const char *what, char path[VM_SOCKET_MAX], struct errmsg *err)
{
	char *slash = strrchr(path, '/'), folder[VM_SOCKET_MAX] = ".", joined[VM_SOCKET_MAX];
	const char *name = slash ? slash + 1 : path;
	AUTO_FREE char *full = NULL;

	if (slash)
		snprintf(folder, sizeof(folder), "%.*s", (int)(slash - path), path);
	full = realpath(slash == path ? "/" : folder, NULL);
	if (!full)
		return errmsg_set(err, -errno, "%s %s: its folder: %s", what, path,
				  strerror(errno));
	if (snprintf(joined, sizeof(joined), "%s/%s", full, name) >= (int)sizeof(joined))
		return errmsg_set(err, -ENAMETOOLONG,
				  "%s %s/%s: the path is longer than %d bytes: use a shorter one",
				  what, full, name, VM_SOCKET_MAX - 1);
	memcpy(path, joined, sizeof(joined));
	return 0;
}

int config_absolute_paths(struct vm_devices *d, struct errmsg *err)
{
	int ret = 0;

	for (uint32_t i = 0; i < d->n_disks && ret == 0; i++)
		ret = config_absolute_path("disk", d->disk[i].path, d->disk[i].path, err);
	if (ret == 0 && d->vsock.present)
		ret = absolute_socket("vsock", d->vsock.path, err);
	if (ret == 0 && d->console.present)
		ret = absolute_socket("console", d->console.path, err);
	return ret;
}

int config_choose_macs(struct vm_devices *d, struct errmsg *err)
{
	static const uint8_t none[6];

	for (uint32_t i = 0; i < d->n_nets; i++) {
		uint8_t *mac = d->net[i].mac;

		if (memcmp(mac, none, sizeof(none)) != 0)
			continue;
		if (getrandom(mac, 6, 0) != 6)
			return errmsg_set(err, -EIO, "no random numbers: %s", strerror(errno));
		mac[0] = (uint8_t)((mac[0] & 0xfc) | 2);
	}
	return 0;
}
