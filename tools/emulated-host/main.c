/* SPDX-License-Identifier: MIT */
#include "agent.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint16_t parse_port(const char *text)
{
	char *end;
	unsigned long port = strtoul(text, &end, 10);

	return *end || port > UINT16_MAX ? 0 : (uint16_t)port;
}

int main(int argc, char **argv)
{
	const char *action = argc > 2 ? argv[1] : "";
	uint16_t port = argc > 2 ? parse_port(argv[2]) : 0;

	if (port && argc == 4 && !strcmp(action, "serve"))
		return serve(port, argv[3]);
	if (port && argc >= 6 && !strcmp(action, "exec"))
		return exec_in_host(port, argv[3], argv[4], false, argv + 5);
	if (port && argc >= 6 && !strcmp(action, "exec-pipes"))
		return exec_in_host(port, argv[3], argv[4], true, argv + 5);
	fputs("usage: agent serve PORT SECRET-FILE\n"
	      "       agent exec|exec-pipes PORT SECRET-FILE CONSOLE-LOG COMMAND [ARG]...\n",
	      stderr);
	return 2;
}
