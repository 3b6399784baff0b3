/* SPDX-License-Identifier: MIT */
/*
 * netrelay: a laboratory of two hosts and a bad network between them, on one machine.
 *
 * The hosts are network namespaces (hosts.h). A relay (relay.h) in user space carries their packets
 * and does to them what a link of a given rate, delay and loss does (link.h); the TCP at both ends
 * is the kernel's, and reacts as it would. It works the same on every kernel with TUN devices:
 * qdiscs that are not there do not matter, and a seed makes chance repeat itself.
 *
 * `up` leaves a process behind, which is the laboratory; the other commands talk to it.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "../../vmm/util.h"
#include "relay.h"
#include "settings.h"

#define RUNDIR "/run/netlab"
#define MTU_MIN 576U
#define MTU_MAX 65535U
#define ANSWER_S 30
#define NICE -20 /* packets are to be late by what was asked for */

static const char usage[] =
	"usage: netlab up [OPTION]...         make the two hosts, a and b, and the link\n"
	"       netlab exec a|b -- CMD ...    run a command on a host\n"
	"       netlab set [a|b] [OPTION]...  change the link, or that of what one host sends\n"
	"       netlab cut [a|b]              lose everything (that one host sends)\n"
	"       netlab join [a|b]             and stop doing so\n"
	"       netlab status                 the link, and counts of segments in both directions\n"
	"       netlab down                   remove all of it\n"
	"\n"
	"Two hosts on one machine, as network namespaces: a is " HOST_ADDRESS_A
	", b is " HOST_ADDRESS_B ".\n"
	"Every command takes --name NAME, for several at once (default: lab; with a slash in it:\n"
	"the path of its control socket). Nothing outside of the namespaces is changed.\n"
	"\n"
	"The link, each way; what is not given is ideal:\n"
	"  --rate RATE           bits of IP a second: 10mbit, 1gbit, none\n"
	"  --delay TIME          one way: a round trip takes twice that\n"
	"  --jitter TIME         the delay is up to this more or less (order is kept)\n"
	"  --queue TIME          what waits where the rate is too low for it (auto: a round trip,\n"
	"                        50 ms at least); the rest is dropped\n"
	"  --loss P              P is a probability: 1%, 0.01, 1e-6\n"
	"  --duplicate P\n"
	"  --reorder P           overtakes all that is on its way (needs a delay)\n"
	"  --corrupt P           of each bit; TCP's sum is then wrong, so it is another loss\n"
	"  --corrupt-fixed P     of each bit; TCP's sum is right, so the receiver gets it\n"
	"\n"
	"Only for up:\n"
	"  --mtu BYTES           of both hosts' devices (1500)\n"
	"  --tcp NAME            congestion control of both hosts (the kernel's default)\n"
	"  --seed N              of all that is left to chance (1)\n"
	"  --owner PID           ends when this process does\n"
	"  --foreground          do not leave a process behind; SIGTERM ends it\n";

struct options {
	char socket[sizeof(((struct sockaddr_un *)0)->sun_path)];
	const char *name;
	char settings[RELAY_MESSAGE_MAX / 2]; /* "rate=1gbit delay=..." */
	struct link_config config;
	unsigned mtu;
	const char *tcp;
	uint64_t seed;
	pid_t owner; /* 0: none */
	bool foreground;
	bool only_up; /* was given what only up takes */
};

enum {
	OPT_HELP,
	OPT_NAME,
	OPT_MTU,
	OPT_TCP,
	OPT_SEED,
	OPT_OWNER,
	OPT_FOREGROUND,
	OPT_SETTING,
};

static const struct option long_options[] = {
	{"help", no_argument, NULL, OPT_HELP},
	{"name", required_argument, NULL, OPT_NAME},
	{"mtu", required_argument, NULL, OPT_MTU},
	{"tcp", required_argument, NULL, OPT_TCP},
	{"seed", required_argument, NULL, OPT_SEED},
	{"owner", required_argument, NULL, OPT_OWNER},
	{"foreground", no_argument, NULL, OPT_FOREGROUND},
	{"rate", required_argument, NULL, OPT_SETTING},
	{"delay", required_argument, NULL, OPT_SETTING},
	{"jitter", required_argument, NULL, OPT_SETTING},
	{"queue", required_argument, NULL, OPT_SETTING},
	{"loss", required_argument, NULL, OPT_SETTING},
	{"duplicate", required_argument, NULL, OPT_SETTING},
	{"reorder", required_argument, NULL, OPT_SETTING},
	{"corrupt", required_argument, NULL, OPT_SETTING},
	{"corrupt-fixed", required_argument, NULL, OPT_SETTING},
	{NULL, 0, NULL, 0},
};

__attribute__((format(printf, 1, 2))) static int complain(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fprintf(stderr, "netlab: ");
	vfprintf(stderr, fmt, ap);
	fprintf(stderr, "\n");
	va_end(ap);
	return EXIT_FAILURE;
}

#define EXIT_USAGE 2

static int bad_usage(void)
{
	fprintf(stderr, "netlab: --help says how it is used\n");
	return EXIT_USAGE;
}

/* ---- options ---- */

static bool take_setting(struct options *o, const char *name, const char *value)
{
	size_t at = strlen(o->settings);
	struct errmsg err = {""};
	char word[256];

	snprintf(word, sizeof(word), "%s=%s", name, value);
	if (settings_set(&o->config, word, &err)) {
		complain("%s", err.text);
		return false;
	}
	snprintf(o->settings + at, sizeof(o->settings) - at, "%s%s", at ? " " : "", word);
	return true;
}

static bool take_option(struct options *o, int opt, const char *name)
{
	uint64_t n = 0;

	switch (opt) {
	case OPT_NAME:
		o->name = optarg;
		return true;
	case OPT_SETTING:
		return take_setting(o, name, optarg);
	case OPT_TCP:
		o->tcp = optarg;
		break;
	case OPT_MTU:
		if (parse_u64(optarg, MTU_MIN, MTU_MAX, &n)) {
			complain("no MTU of '%s': %u to %u", optarg, MTU_MIN, MTU_MAX);
			return false;
		}
		o->mtu = (unsigned)n;
		break;
	case OPT_SEED:
		if (parse_u64(optarg, 0, UINT64_MAX, &o->seed)) {
			complain("no seed '%s': a number", optarg);
			return false;
		}
		break;
	case OPT_OWNER:
		if (parse_u64(optarg, 1, INT32_MAX, &n)) {
			complain("no owner '%s': the id of a process", optarg);
			return false;
		}
		o->owner = (pid_t)n;
		break;
	case OPT_FOREGROUND:
		o->foreground = true;
		break;
	default:
		return false;
	}
	o->only_up = true;
	return true;
}

/* Options before the first other word or "--"; optind is there then. 0, or an exit status + 1. */
static int take_options(struct options *o, int argc, char **argv)
{
	int index, opt;

	while ((opt = getopt_long(argc, argv, "+h", long_options, &index)) != -1) {
		if (opt == OPT_HELP || opt == 'h') {
			fputs(usage, stdout);
			return EXIT_SUCCESS + 1;
		}
		if (opt == '?' || !take_option(o, opt, long_options[index].name)) {
			bad_usage();
			return EXIT_USAGE + 1;
		}
	}
	return 0;
}

static bool find_socket(struct options *o)
{
	int n = snprintf(o->socket, sizeof(o->socket), strchr(o->name, '/') ? "%s" : RUNDIR "/%s",
			 o->name);

	if (n < (int)sizeof(o->socket) && o->name[0] && o->name[0] != '.')
		return true;
	complain("'%s' is not a name for a laboratory", o->name);
	return false;
}

/* ---- talking to one that is up ---- */

static int open_socket(const struct options *o)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	struct timeval limit = {.tv_sec = ANSWER_S};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	int ret;

	if (fd < 0)
		return -errno;
	memcpy(un.sun_path, o->socket, sizeof(un.sun_path));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	if (connect(fd, (struct sockaddr *)&un, sizeof(un)) == 0)
		return fd;
	ret = -errno;
	close(fd);
	return ret;
}

/* The answer's text after "ok\n". False: it has said why. */
static bool ask(const struct options *o, const char *request, char text[RELAY_MESSAGE_MAX])
{
	AUTO_CLOSE int fd = open_socket(o);
	ssize_t n = -1;

	if (fd == -ENOENT || fd == -ECONNREFUSED) {
		complain("'%s' is not up", o->name);
		return false;
	}
	if (fd < 0) {
		complain("%s: %s", o->socket, strerror(-fd));
		return false;
	}
	if (send(fd, request, strlen(request), MSG_NOSIGNAL) > 0)
		n = recv(fd, text, RELAY_MESSAGE_MAX - 2, 0);
	if (n <= 0) {
		complain("'%s' does not answer", o->name);
		return false;
	}
	text[n] = '\0';
	if (strncmp(text, "ok\n", 3) != 0) {
		complain("%.*s", (int)strcspn(text, "\n"), text);
		return false;
	}
	/* The end of this connection is that of the laboratory. */
	if (strcmp(request, "down") == 0)
		(void)!recv(fd, text + n, 1, 0);
	memmove(text, text + 3, (size_t)n - 2);
	return true;
}

/* set, cut, join, status, down */
static int request(const struct options *o, const char *command, const char *host)
{
	char line[RELAY_MESSAGE_MAX], text[RELAY_MESSAGE_MAX];

	snprintf(line, sizeof(line), "%s%s%s%s%s", command, host ? " " : "", host ? host : "",
		 o->settings[0] ? " " : "", o->settings);
	if (!ask(o, line, text))
		return EXIT_FAILURE;
	fputs(text, stdout);
	return EXIT_SUCCESS;
}

static int run_on_host(const struct options *o, const char *host, char **argv)
{
	char text[RELAY_MESSAGE_MAX], key[] = "a=", path[64];
	AUTO_CLOSE int fd = -1;
	const char *at;

	if (!ask(o, "status", text))
		return EXIT_FAILURE;
	key[0] = host[0];
	at = strstr(text, key);
	if (!at || sscanf(at + 2, "%63s", path) != 1)
		return complain("'%s' does not say where its hosts are", o->name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || setns(fd, CLONE_NEWNET))
		return complain("%s: %s", path, strerror(errno));
	execvp(argv[0], argv);
	complain("%s: %s", argv[0], strerror(errno));
	return errno == ENOENT ? 127 : 126;
}

/* ---- up ---- */

/* Binds the socket; takes over the file of one that is no more. */
static int listen_at(const struct options *o, struct errmsg *err)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	mode_t mask = umask(0077);
	int fd = open_socket(o), ret = 0;

	if (fd >= 0) {
		close(fd);
		umask(mask);
		return errmsg_set(err, -EADDRINUSE, "'%s' is up already: netlab down --name %s",
				  o->name, o->name);
	}
	if (fd == -ECONNREFUSED)
		unlink(o->socket);
	if (!strchr(o->name, '/') && mkdir(RUNDIR, 0700) && errno != EEXIST)
		ret = errmsg_set(err, -errno, RUNDIR ": %s", strerror(errno));
	memcpy(un.sun_path, o->socket, sizeof(un.sun_path));
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (ret == 0 && (fd < 0 || bind(fd, (struct sockaddr *)&un, sizeof(un)) || listen(fd, 8)))
		ret = errmsg_set(err, -errno, "%s: %s", o->socket, strerror(errno));
	umask(mask);
	if (ret && fd >= 0)
		close(fd);
	return ret ? ret : fd;
}

static int watch_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static int be_the_lab(const struct options *o, int told_fd)
{
	struct relay r = {.listen_fd = -1, .owner_fd = -1};
	struct errmsg err = {""};
	char text[160];
	int ret = 0;

	r.signal_fd = watch_signals();
	if (o->owner) {
		r.owner_fd = pidfd_open(o->owner, 0);
		if (r.owner_fd < 0)
			ret = errmsg_set(&err, -errno, "the owner %d: %s", (int)o->owner,
					 strerror(errno));
	}
	if (ret == 0)
		ret = hosts_make(r.host, o->mtu, o->tcp, &err);
	if (ret == 0) {
		r.listen_fd = listen_at(o, &err);
		ret = MIN(r.listen_fd, 0);
	}
	for (int i = 0; i < HOSTS; i++)
		link_init(&r.link[i], &o->config, o->seed * 2 + (uint64_t)i);
	(void)setpriority(PRIO_PROCESS, 0, NICE);
	if (ret == 0) {
		dprintf(told_fd, "%s\n", relay_show_hosts(&r, text, sizeof(text)));
		if (!o->foreground) {
			int null = open("/dev/null", O_RDWR | O_CLOEXEC);

			for (int fd = 0; fd <= STDERR_FILENO && null >= 0; fd++)
				dup2(null, fd);
			close(told_fd);
		}
		ret = relay_run(&r, &err);
		unlink(o->socket);
	}
	if (ret)
		complain("%s", err.text);
	return ret ? EXIT_FAILURE : EXIT_SUCCESS;
}

static int up(const struct options *o)
{
	AUTO_CLOSE int from = -1;
	char text[160];
	int pipe_fd[2];
	pid_t child;
	ssize_t n;

	if (o->foreground)
		return be_the_lab(o, STDOUT_FILENO);
	if (pipe2(pipe_fd, O_CLOEXEC))
		return complain("a pipe: %s", strerror(errno));
	child = fork();
	if (child < 0)
		return complain("a process: %s", strerror(errno));
	if (child == 0) {
		close(pipe_fd[0]);
		setsid();
		_exit(be_the_lab(o, pipe_fd[1]));
	}
	close(pipe_fd[1]);
	from = pipe_fd[0];
	/* Nothing: it has said why. */
	n = read(from, text, sizeof(text));
	if (n <= 0)
		return EXIT_FAILURE;
	printf("%.*s", (int)n, text);
	return EXIT_SUCCESS;
}

/* ---- words ---- */

static const char *take_host(int argc, char **argv)
{
	if (optind < argc && (strcmp(argv[optind], "a") == 0 || strcmp(argv[optind], "b") == 0))
		return argv[optind++];
	return NULL;
}

int main(int argc, char **argv)
{
	struct options o = {.name = "lab", .mtu = 1500, .seed = 1};
	const char *command, *host = NULL;
	int ret = take_options(&o, argc, argv);
	bool is_set;

	if (ret)
		return ret - 1;
	if (optind == argc)
		return bad_usage();
	command = argv[optind++];
	ret = take_options(&o, argc, argv);
	if (ret)
		return ret - 1;
	if (strcmp(command, "up") != 0 && strcmp(command, "status") != 0 &&
	    strcmp(command, "down") != 0)
		host = take_host(argc, argv);
	if (strcmp(command, "exec") == 0) {
		if (optind < argc && strcmp(argv[optind], "--") == 0)
			optind++;
		if (!host || optind == argc || o.settings[0] || o.only_up || !find_socket(&o))
			return bad_usage();
		return run_on_host(&o, host, argv + optind);
	}
	ret = take_options(&o, argc, argv);
	if (ret)
		return ret - 1;
	is_set = strcmp(command, "set") == 0;
	if (optind < argc) {
		complain("too many words: '%s'", argv[optind]);
		return bad_usage();
	}
	if (!find_socket(&o))
		return EXIT_USAGE;
	if (strcmp(command, "up") == 0)
		return up(&o);
	if (o.only_up || (o.settings[0] != '\0') != is_set)
		return bad_usage();
	if (is_set || strcmp(command, "cut") == 0 || strcmp(command, "join") == 0 ||
	    strcmp(command, "status") == 0 || strcmp(command, "down") == 0)
		return request(&o, command, host);
	complain("there is no command '%s'", command);
	return bad_usage();
}
