/* SPDX-License-Identifier: MIT */
/*
 * A main() for a fuzz target without libFuzzer, for any compiler: runs each input of the files and
 * folders that it is given; without arguments those of corpus/NAME beside the source of fuzz-NAME,
 * from the tree's top. Each input is named before it runs, so that the last line of a failed run
 * says which it was. The last line of a good one is `N passed, 0 failed, 0 skipped`.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz.h"

#define PATH_ROOM 4096

static unsigned n_run;

static void run_file(const char *path)
{
	AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
	AUTO_FREE uint8_t *data = NULL;
	struct stat st;

	if (fd < 0 || fstat(fd, &st)) {
		fprintf(stderr, "%s: %s\n", path, strerror(errno));
		exit(1);
	}
	/* Of exactly this size: reading beyond it is found. */
	data = malloc(MAX((size_t)st.st_size, 1));
	if (!data || read_exact(fd, data, (size_t)st.st_size)) {
		fprintf(stderr, "%s: cannot be read\n", path);
		exit(1);
	}
	printf("%s\n", path);
	fflush(stdout);
	LLVMFuzzerTestOneInput(data, (size_t)st.st_size);
	n_run++;
}

static int not_hidden(const struct dirent *e)
{
	return e->d_name[0] != '.';
}

static void run_path(const char *path)
{
	struct dirent **names;
	int n = scandir(path, &names, not_hidden, alphasort);

	if (n < 0) {
		run_file(path);
		return;
	}
	for (int i = 0; i < n; i++) {
		char file[PATH_ROOM];

		snprintf(file, sizeof(file), "%s/%s", path, names[i]->d_name);
		run_file(file);
		free(names[i]);
	}
	free(names);
}

/* .../vmm/fuzz/fuzz-NAME: vmm/fuzz/corpus/NAME */
static void run_own_corpus(const char *program)
{
	const char *name = strstr(program, "/fuzz/fuzz-"), *layer = name;
	char path[PATH_ROOM];

	if (!name) {
		fprintf(stderr, "%s: not called fuzz/fuzz-NAME: which files?\n", program);
		exit(2);
	}
	while (layer > program && layer[-1] != '/')
		layer--;
	snprintf(path, sizeof(path), "%.*s/fuzz/corpus/%s", (int)(name - layer), layer,
		 name + strlen("/fuzz/fuzz-"));
	if (access(path, R_OK)) {
		fprintf(stderr, "%s: %s\n", path, strerror(errno));
		exit(1);
	}
	run_path(path);
}

int main(int argc, char **argv)
{
	/* The empty input is one, too. */
	LLVMFuzzerTestOneInput((const uint8_t *)"", 0);
	if (argc < 2)
		run_own_corpus(argv[0]);
	for (int i = 1; i < argc; i++)
		run_path(argv[i]);
	printf("%u passed, 0 failed, 0 skipped\n", n_run + 1);
	return 0;
}
