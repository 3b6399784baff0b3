/* SPDX-License-Identifier: MIT */
#include "relay.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "../../vmm/util.h"
#include "settings.h"

#define EVENTS 16
#define READ_BURST 32 /* packets, before others get a turn */
#define SMALL 2048U   /* a packet up to this long does not keep a buffer for a large one */

static int watch(const struct relay *r, int fd)
{
	struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};

	return epoll_ctl(r->epoll_fd, EPOLL_CTL_ADD, fd, &e) ? -errno : 0;
}

/* ---- packets ---- */

static int read_host(struct relay *r, int i, struct errmsg *err)
{
	struct packet *p, *spare;
	ssize_t n;

	for (int k = 0; k < READ_BURST; k++) {
		if (!r->spare)
			r->spare = packet_new(PACKET_MAX);
		spare = r->spare;
		if (!spare)
			return errmsg_set(err, -ENOMEM, "no memory for packets");
		spare->len = PACKET_MAX;
		n = read(r->host[i].tun_fd, PACKET_IO(spare), PACKET_IO_LEN(spare));
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return 0;
		if (n < (ssize_t)sizeof(spare->vnet))
			return errmsg_set(err, n < 0 ? -errno : -EIO, "reading " HOST_DEVICE ": %s",
					  n < 0 ? strerror(errno) : "too little");
		spare->len = (uint32_t)((size_t)n - sizeof(spare->vnet));
		p = spare;
		if (spare->len <= SMALL) {
			p = packet_new(spare->len);
			if (!p)
				return errmsg_set(err, -ENOMEM, "no memory for packets");
			memcpy(PACKET_IO(p), PACKET_IO(spare), (size_t)n);
		} else {
			r->spare = NULL;
			/* Shrinks: does not fail. */
			p = realloc(p, sizeof(*p) + p->len);
		}
		link_push(&r->link[i], p, now_ns());
	}
	return 0;
}

/* All that has arrived by now. A device that does not take one loses it: it is down, say. */
static void deliver(struct relay *r)
{
	struct packet *p;

	for (int i = 0; i < HOSTS; i++) {
		while ((p = link_pop(&r->link[i], now_ns()))) {
			(void)!write(r->host[!i].tun_fd, PACKET_IO(p), PACKET_IO_LEN(p));
			free(p);
		}
	}
}

static void set_timer(const struct relay *r)
{
	uint64_t due = MIN(link_due(&r->link[0]), link_due(&r->link[1]));
	struct itimerspec t = {.it_value.tv_sec = 0};

	if (due != UINT64_MAX) {
		t.it_value.tv_sec = (time_t)(due / NS_PER_SEC);
		t.it_value.tv_nsec = (long)(due % NS_PER_SEC);
	}
	timerfd_settime(r->timer_fd, TFD_TIMER_ABSTIME, &t, NULL);
}

/* ---- requests ---- */

const char *relay_show_hosts(const struct relay *r, char *text, size_t len)
{
	int pid = (int)getpid();

	snprintf(text, len, "pid=%d a=/proc/%d/fd/%d b=/proc/%d/fd/%d", pid, pid, r->host[0].ns_fd,
		 pid, r->host[1].ns_fd);
	return text;
}

static size_t show_link(const struct link *l, const char *name, char *text, size_t len)
{
	const struct link_stats *s = &l->stats;
	char settings[256];

	return (size_t)snprintf(
		text, len,
		"%s: %s%s\n"
		"%s sent=%lu sent_bytes=%lu delivered=%lu bytes=%lu dropped=%lu lost=%lu cut=%lu "
		"corrupted=%lu forged=%lu duplicated=%lu reordered=%lu foreign=%lu held=%lu "
		"late_us=%lu late_max_us=%lu\n",
		name, settings_show(&l->config, settings, sizeof(settings)), l->cut ? " CUT" : "",
		name, s->sent, s->sent_bytes, s->delivered, s->bytes, s->dropped, s->lost, s->cut,
		s->corrupted, s->forged, s->duplicated, s->reordered, s->foreign, l->held,
		s->timely ? s->late_ns / s->timely / 1000 : 0, s->late_max_ns / 1000);
}

/* Changes both links, or the one, or none of them. */
static int configure(struct relay *r, bool chosen[HOSTS], char *words, struct errmsg *err)
{
	struct link_config config[HOSTS];
	char *rest;

	for (int i = 0; i < HOSTS; i++)
		config[i] = r->link[i].config;
	for (char *w = strtok_r(words, " ", &rest); w; w = strtok_r(NULL, " ", &rest)) {
		for (int i = 0; i < HOSTS; i++) {
			int ret = chosen[i] ? settings_set(&config[i], w, err) : 0;

			if (ret)
				return ret;
		}
	}
	for (int i = 0; i < HOSTS; i++) {
		if (chosen[i])
			link_configure(&r->link[i], &config[i]);
	}
	return 0;
}

static void answer(struct relay *r, char *request, char *text, size_t len)
{
	size_t n = strcspn(request, " ");
	char *words = request + n + (request[n] == ' ');
	bool chosen[HOSTS] = {true, true};
	struct errmsg err = {""};
	char hosts[128];
	int ret = 0;

	request[n] = '\0';
	if ((words[0] == 'a' || words[0] == 'b') && (words[1] == ' ' || !words[1])) {
		chosen[words[0] == 'a'] = false;
		words += words[1] ? 2 : 1;
	}
	snprintf(text, len, "ok\n");
	if (strcmp(request, "set") == 0) {
		ret = configure(r, chosen, words, &err);
	} else if (strcmp(request, "cut") == 0 || strcmp(request, "join") == 0) {
		for (int i = 0; i < HOSTS; i++) {
			if (chosen[i])
				link_cut(&r->link[i], request[0] == 'c');
		}
	} else if (strcmp(request, "status") == 0) {
		n = (size_t)snprintf(text, len, "ok\n%s\n",
				     relay_show_hosts(r, hosts, sizeof(hosts)));
		n += show_link(&r->link[0], "a-b", text + n, len - n);
		show_link(&r->link[1], "b-a", text + n, len - n);
	} else if (strcmp(request, "down") == 0) {
		r->over = true;
	} else {
		ret = errmsg_set(&err, -EINVAL, "no request '%s'", request);
	}
	if (ret)
		snprintf(text, len, "error %s\n", err.text);
}

static void serve(struct relay *r, int fd)
{
	char request[RELAY_MESSAGE_MAX], text[RELAY_MESSAGE_MAX];
	ssize_t n = recv(fd, request, sizeof(request) - 1, MSG_DONTWAIT);

	if (n > 0) {
		request[n] = '\0';
		answer(r, request, text, sizeof(text));
		(void)!send(fd, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL);
	}
	if (!r->over)
		close(fd);
}

/* ---- the loop ---- */

static int handle(struct relay *r, int fd, struct errmsg *err)
{
	uint64_t expired;
	int conn;

	for (int i = 0; i < HOSTS; i++) {
		if (fd == r->host[i].tun_fd)
			return read_host(r, i, err);
	}
	if (fd == r->timer_fd) {
		(void)!read(fd, &expired, sizeof(expired));
	} else if (fd == r->signal_fd || fd == r->owner_fd) {
		r->over = true;
	} else if (fd == r->listen_fd) {
		conn = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
		if (conn >= 0 && watch(r, conn))
			close(conn);
	} else {
		serve(r, fd);
	}
	return 0;
}

int relay_run(struct relay *r, struct errmsg *err)
{
	struct epoll_event events[EVENTS];
	int ret = 0, n;

	r->over = false;
	r->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	r->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (r->epoll_fd < 0 || r->timer_fd < 0 || watch(r, r->host[0].tun_fd) ||
	    watch(r, r->host[1].tun_fd) || watch(r, r->timer_fd) || watch(r, r->signal_fd) ||
	    watch(r, r->listen_fd) || (r->owner_fd >= 0 && watch(r, r->owner_fd)))
		ret = errmsg_set(err, -errno, "setting up the loop: %s", strerror(errno));
	while (ret == 0 && !r->over) {
		deliver(r);
		set_timer(r);
		n = epoll_wait(r->epoll_fd, events, EVENTS, -1);
		if (n < 0 && errno != EINTR)
			ret = errmsg_set(err, -errno, "epoll_wait: %s", strerror(errno));
		for (int i = 0; i < n && ret == 0; i++)
			ret = handle(r, events[i].data.fd, err);
	}
	for (int i = 0; i < HOSTS; i++)
		link_free(&r->link[i]);
	free(r->spare);
	r->spare = NULL;
	if (r->timer_fd >= 0)
		close(r->timer_fd);
	if (r->epoll_fd >= 0)
		close(r->epoll_fd);
	return ret;
}
