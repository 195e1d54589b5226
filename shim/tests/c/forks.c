// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * forks.c - do some things, then fork, in the order of the arguments
 *
 *   mib=N           touch N MiB and keep them
 *   chroot=DIR
 *   setuid=UID      and the group of that number
 *   exec            this program again, with the rest of the arguments
 *   full            use up the descriptors
 *   deny=ERRNO      from now on fork fails with this errno
 *   no_memfd=ERRNO  and memfd_create, likewise
 *   no_mmap=ERRNO   and mmap of one page that nobody may touch
 *   old_memfd       memfd_create knows no flags newer than Linux 6.1
 *   fsize=N         limit of the size of files
 *   marks           prints how many of the library's marks this process and a
 *                   child of it have
 *   fork=NAME       fork, _Fork or __fork; prints the child or the errno
 *   times=N         repeats the next fork
 *   lacks_Fork      the C library has no _Fork: it is another name of fork
 *
 * A child exits at once with a status that the parent checks.
 */
#include "asyncfork.h"
#include "check.h"

#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>

#define SENTINEL 4242

static int atfork_runs;		/* prepare, parent and child handlers */
static int times = 1;
static int lacks_Fork;

static void count(void)
{
	atfork_runs++;
}

static void deny_forks(int err)
{
	const struct sock_filter code[] = {
		LOAD(nr),
		SKIP_UNLESS(SYS_fork, 1),	/* musl's */
		RETURN(SECCOMP_RET_ERRNO | err),
		SKIP_UNLESS(SYS_clone, 3),
		LOAD_ARG(0),
		SKIP_IF_SET(CLONE_VM, 1),
		RETURN(SECCOMP_RET_ERRNO | err),
		RETURN(SECCOMP_RET_ALLOW),
	};

	install_filter(code, sizeof(code) / sizeof(*code));
}

static void deny_memfd(int err)
{
	const struct sock_filter code[] = {
		LOAD(nr),
		SKIP_UNLESS(SYS_memfd_create, 1),
		RETURN(SECCOMP_RET_ERRNO | err),
		RETURN(SECCOMP_RET_ALLOW),
	};

	install_filter(code, sizeof(code) / sizeof(*code));
}

static void deny_untouchable_page(int err)
{
	const struct sock_filter code[] = {
		LOAD(nr),
		SKIP_UNLESS(SYS_mmap, 5),
		LOAD_ARG(1),
		SKIP_UNLESS(4096, 3),
		LOAD_ARG(2),
		SKIP_UNLESS(PROT_NONE, 1),
		RETURN(SECCOMP_RET_ERRNO | err),
		RETURN(SECCOMP_RET_ALLOW),
	};

	install_filter(code, sizeof(code) / sizeof(*code));
}

static void make_memfd_old(void)
{
	const struct sock_filter code[] = {
		LOAD(nr),
		SKIP_UNLESS(SYS_memfd_create, 3),
		LOAD_ARG(1),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MFD_CLOEXEC, 1, 0),
		RETURN(SECCOMP_RET_ERRNO | EINVAL),
		RETURN(SECCOMP_RET_ALLOW),
	};

	install_filter(code, sizeof(code) / sizeof(*code));
}

static int count_marks(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[4096];
	int marks = 0;

	CHECK(maps);
	while (fgets(line, sizeof(line), maps)) {
		unsigned long start, end;
		char access[5];

		if (!strstr(line, "/memfd:" ASYNCFORK_MARK " "))
			continue;
		CHECK(sscanf(line, "%lx-%lx %4s", &start, &end, access) == 3);
		CHECK(end - start == 4096);
		CHECK(!strcmp(access, "---p"));
		marks++;
	}
	fclose(maps);
	return marks;
}

/* No descriptor of the library's is left. */
static void check_descriptors(void)
{
	char path[32], target[256];

	for (int fd = 0; fd < 100; fd++) {
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		n = readlink(path, target, sizeof(target) - 1);
		if (n < 0)
			continue;
		target[n] = '\0';
		CHECK(!strstr(target, "memfd"));
	}
}

static void print_marks(void)
{
	pid_t pid;

	check_descriptors();
	printf("%d marks\n", count_marks());
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		printf("%d marks in the child\n", count_marks());
		_exit(7);
	}
	wait_exit(pid, 7);
}

static void use_up_descriptors(void)
{
	struct rlimit limit = { 16, 16 };

	CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	while (dup(0) >= 0)
		;
	CHECK(errno == EMFILE);
}

static void fork_once(const char *name)
{
	pid_t (*call)(void) = !strcmp(name, "fork") ? fork :
			      !strcmp(name, "_Fork") ? _Fork :
			      !strcmp(name, "__fork") ? __fork : NULL;
	/* On each side. */
	int handlers = !strcmp(name, "_Fork") && !lacks_Fork ? 0 : 2;
	pid_t parent = getpid();
	pid_t pid;

	CHECK(call);
	atfork_runs = 0;
	errno = SENTINEL;
	pid = call();
	if (pid < 0) {
		printf("%s failed: errno %d\n", name, errno);
		return;
	}
	CHECK(errno == SENTINEL);
	CHECK(atfork_runs == handlers);
	if (pid == 0) {
		CHECK(getpid() != parent);
		CHECK(getppid() == parent);
		_exit(7);
	}
	CHECK(pid != parent);
	wait_exit(pid, 7);
	printf("%s gave a child\n", name);
}

int main(int argc, char **argv)
{
	setlinebuf(stdout);
	CHECK(is_interposed("fork"));
	CHECK(is_interposed("_Fork"));
	CHECK(is_interposed("__fork"));
	CHECK(pthread_atfork(count, count, count) == 0);
	for (int i = 1; i < argc; i++) {
		char *value = strchr(argv[i], '=');
		size_t n = value ? (size_t)(value++ - argv[i]) : strlen(argv[i]);

		if (!strncmp(argv[i], "mib", n)) {
			size_t size = (size_t)atoi(value) << 20;
			char *block = mmap(NULL, size, PROT_READ | PROT_WRITE,
					   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

			CHECK(block != MAP_FAILED);
			memset(block, 1, size);
		} else if (!strncmp(argv[i], "chroot", n)) {
			CHECK(chroot(value) == 0);
			CHECK(chdir("/") == 0);
		} else if (!strncmp(argv[i], "setuid", n)) {
			CHECK(setresgid(atoi(value), atoi(value), atoi(value)) == 0);
			CHECK(setresuid(atoi(value), atoi(value), atoi(value)) == 0);
		} else if (!strncmp(argv[i], "exec", n)) {
			argv[i] = argv[0];
			execv("/proc/self/exe", argv + i);
			CHECK(!"execv");
		} else if (!strncmp(argv[i], "lacks_Fork", n)) {
			lacks_Fork = 1;
		} else if (!strncmp(argv[i], "full", n)) {
			use_up_descriptors();
		} else if (!strncmp(argv[i], "deny", n)) {
			deny_forks(atoi(value));
		} else if (!strncmp(argv[i], "no_memfd", n)) {
			deny_memfd(atoi(value));
		} else if (!strncmp(argv[i], "no_mmap", n)) {
			deny_untouchable_page(atoi(value));
		} else if (!strncmp(argv[i], "old_memfd", n)) {
			make_memfd_old();
		} else if (!strncmp(argv[i], "fsize", n)) {
			struct rlimit limit = { atoi(value), atoi(value) };

			CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
		} else if (!strncmp(argv[i], "marks", n)) {
			print_marks();
		} else if (!strncmp(argv[i], "times", n)) {
			times = atoi(value);
		} else if (!strncmp(argv[i], "fork", n)) {
			for (; times > 0; times--)
				fork_once(value);
			times = 1;
		} else {
			dprintf(2, "no such argument: %s\n", argv[i]);
			_exit(99);
		}
	}
	return 0;
}
