// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * signals.c - do some things to signals and to what log lines are written to,
 * then fork, in the order of the arguments
 *
 *   stderr=KIND[:PATH]   descriptor 2 becomes this, see outputs.h
 *   log=terminal         the log file is the terminal of stderr=terminal
 *   far=HOW              close, reset: the far end of descriptor 2 goes away;
 *                        deaf: it receives no more; mute: the near end sends no more
 *   reader=FIFO          the far end reads this FIFO
 *   fill[=PATH]          fill descriptor 2, or the FIFO
 *   take=N               read so much at the far end
 *   show                 print what is to be read at the far end
 *   freeze               stop output to the terminal
 *   exec                 this program again, with the rest of the arguments; the
 *                        library takes descriptor 2 as it is then for its own
 *   session              become a session leader, without a terminal
 *   no-terminal          there must still be none
 *   background[=tostop]  go on in the background of a new terminal
 *
 *   fsize=BYTES          the soft limit of a file's size; -1: none
 *   stretch=FILE         as large as its file system allows
 *   tmpfs=DIR            mount one of a page there, for this process only
 *   fill-disk=FILE       until there is no space
 *   lease=FILE           another process has a lease of it
 *
 *   handle=SIG ignore=SIG fork-in=SIG     its handler counts, or forks
 *   block=SIG raise=SIG kill=SIG          raise: to this thread, kill: to the process
 *   bystanders           two more threads: one has blocked all that concerns us and
 *                        has it pending, one has nothing blocked
 *   deny=CALL:ERRNO      from now on this system call fails
 *   trap=CALL            from now on it is SIGSYS, whose handler makes it fail
 *   forbid               from now on calls that change more than this thread kill
 *   race=WHAT[+WHAT]...  what happens when the library is about to write:
 *                        close, fill, tostop, freeze, fsize, or a signal comes
 *   expect=SIG           the next fork must let this signal through, from elsewhere
 *
 *   times=N threads=N    the next fork so often, in so many threads at once
 *   fork=NAME            fork, _Fork or __fork
 *   own=SIG              the program's own write to descriptor 2 must raise it
 *   write                such a write, reported when it is done
 *
 * Each fork checks that everything in signal_state.h is as before.
 */
#define CHECK_FD 1
#include "outputs.h"
#include "race.h"
#include "signal_state.h"

#include <pthread.h>
#include <sched.h>
#include <sys/mount.h>
#include <time.h>
#include <ucontext.h>

#define SENTINEL 4242

static const struct {
	const char *name;
	int number;
} signals[] = {
	{ "PIPE", SIGPIPE }, { "XFSZ", SIGXFSZ }, { "TTOU", SIGTTOU },
	{ "USR1", SIGUSR1 },
}, calls[] = {
	{ "fcntl", SYS_fcntl },
	{ "fstat", SYS_fstat },
	{ "getpid", SYS_getpid },
	{ "getrusage", SYS_getrusage },
	{ "ioctl", SYS_ioctl },
	{ "newfstatat", SYS_newfstatat },
	{ "openat", SYS_openat },
	{ "poll", SYS_poll },
	{ "ppoll", SYS_ppoll },
	{ "prctl", SYS_prctl },
	{ "prlimit64", SYS_prlimit64 },
	{ "pwritev2", SYS_pwritev2 },
	{ "read", SYS_read },
	{ "rt_sigpending", SYS_rt_sigpending },
	{ "rt_sigprocmask", SYS_rt_sigprocmask },
	{ "rt_sigtimedwait", SYS_rt_sigtimedwait },
	{ "sendmsg", SYS_sendmsg },
	{ "sendto", SYS_sendto },
	{ "statx", SYS_statx },
	{ "write", SYS_write },
	{ "writev", SYS_writev },
};

/* Those that a write can raise. */
static const int ours[] = { SIGPIPE, SIGXFSZ, SIGTTOU };

static int handled;		/* signals, in all threads */
static int expected;		/* signal from elsewhere, 0: none */
static int times = 1, threads = 1;
static pid_t bystanders[2];
static pthread_barrier_t barrier;
/* The state before the fork that this thread is in. */
static _Thread_local const struct state *before_fork;

static int signal_number(const char *name)
{
	for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++)
		if (!strcmp(signals[i].name, name))
			return signals[i].number;
	CHECK(!"a signal");
	return 0;
}

static int call_number(const char *name)
{
	for (size_t i = 0; i < sizeof(calls) / sizeof(*calls); i++)
		if (!strcmp(calls[i].name, name))
			return calls[i].number;
	CHECK(!"a system call");
	return 0;
}

static void block(int sig)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, sig);
	CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
}

static void on_signal(int sig, void (*handler)(int))
{
	struct sigaction action = { .sa_handler = handler };

	CHECK(sigaction(sig, &action, NULL) == 0);
}

/* Handlers see the program's own mask, also in the midst of the library. */
static void count(int sig)
{
	if (before_fork)
		CHECK(read_state(0).blocked ==
		      (before_fork->blocked | SIGNAL_BIT(sig)));
	__atomic_add_fetch(&handled, 1, __ATOMIC_SEQ_CST);
}

static void fork_in_handler(int sig)
{
	int saved = errno;
	pid_t pid;

	count(sig);
	pid = _Fork();
	CHECK(pid >= 0);
	if (pid == 0)
		_exit(read_state(0).blocked ==
		      (before_fork->blocked | SIGNAL_BIT(sig)) ? 7 : 98);
	wait_exit(pid, 7);
	errno = saved;
}

/* So do fork handlers. */
static void check_mask(void)
{
	if (before_fork)
		CHECK(read_state(0).blocked == before_fork->blocked);
}

static void *stand_by(void *arg)
{
	int blocks = arg != NULL;
	sigset_t set;

	sigemptyset(&set);
	for (size_t i = 0; i < sizeof(ours) / sizeof(*ours); i++)
		sigaddset(&set, ours[i]);
	CHECK(pthread_sigmask(blocks ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL) == 0);
	for (size_t i = 0; blocks && i < sizeof(ours) / sizeof(*ours); i++)
		CHECK(raise(ours[i]) == 0);
	bystanders[blocks] = gettid();
	pthread_barrier_wait(&barrier);
	for (;;)
		pause();
}

static void start_bystanders(void)
{
	pthread_t thread;

	CHECK(pthread_barrier_init(&barrier, NULL, 3) == 0);
	CHECK(pthread_create(&thread, NULL, stand_by, NULL) == 0);
	CHECK(pthread_create(&thread, NULL, stand_by, &barrier) == 0);
	pthread_barrier_wait(&barrier);
}

static void deny(int call, int verdict)
{
	const struct sock_filter code[] = {
		LOAD(nr),
		SKIP_UNLESS(call, 1),
		RETURN(verdict),
		RETURN(SECCOMP_RET_ALLOW),
	};

	install_filter(code, sizeof(code) / sizeof(*code));
}

static void refuse_trapped(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)info;
	((ucontext_t *)context)->uc_mcontext.gregs[REG_RAX] = -EPERM;
}

static void trap(int call)
{
	struct sigaction action = {
		.sa_sigaction = refuse_trapped,
		.sa_flags = SA_SIGINFO,
	};

	CHECK(sigaction(SIGSYS, &action, NULL) == 0);
	deny(call, SECCOMP_RET_TRAP);
}

#define KILL RETURN(SECCOMP_RET_KILL_PROCESS)
#define KILL_IF(value) SKIP_UNLESS(value, 1), KILL

/* What other threads, or other processes, would notice. */
static void forbid(void)
{
	static const struct sock_filter code[] = {
		LOAD(nr),
		KILL_IF(SYS_rt_sigaction),
		KILL_IF(SYS_sigaltstack),
		KILL_IF(SYS_signalfd4),
		KILL_IF(SYS_kill),
		KILL_IF(SYS_tkill),
		KILL_IF(SYS_tgkill),
		KILL_IF(SYS_rt_sigqueueinfo),
		KILL_IF(SYS_rt_tgsigqueueinfo),
		KILL_IF(SYS_alarm),
		KILL_IF(SYS_setitimer),
		KILL_IF(SYS_timer_create),
		KILL_IF(SYS_setrlimit),
		KILL_IF(SYS_dup),
		KILL_IF(SYS_dup2),
		KILL_IF(SYS_dup3),
		KILL_IF(SYS_clone3),
		KILL_IF(SYS_vfork),
		SKIP_UNLESS(SYS_prlimit64, 3),
		LOAD_ARG(2),	/* new limits */
		SKIP_UNLESS(0, 11),
		RETURN(SECCOMP_RET_ALLOW),
		SKIP_UNLESS(SYS_clone, 3),
		LOAD_ARG(0),
		SKIP_IF_SET(CLONE_VM, 7),
		RETURN(SECCOMP_RET_ALLOW),
		SKIP_UNLESS(SYS_fcntl, 6),
		LOAD_ARG(1),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, F_SETFL, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, F_SETOWN, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, F_SETSIG, 1, 0),
		RETURN(SECCOMP_RET_ALLOW),
		KILL,
		SKIP_UNLESS(SYS_ioctl, 7),
		LOAD_ARG(1),
		KILL_IF(FIONBIO),
		KILL_IF(TCSETS),
		KILL_IF(TCXONC),
		RETURN(SECCOMP_RET_ALLOW),
	};

	install_filter(code, sizeof(code) / sizeof(*code));
}

static void stretch(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT, 0600);
	off_t size = 0;

	CHECK(fd >= 0);
	for (int bit = 62; bit >= 0; bit--)
		if (ftruncate(fd, size | 1L << bit) == 0)
			size |= 1L << bit;
	CHECK(close(fd) == 0);
}

static void mount_tmpfs(const char *dir)
{
	CHECK(unshare(CLONE_NEWNS) == 0);
	CHECK(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0);
	CHECK(mount("tmpfs", dir, "tmpfs", 0, "size=4096") == 0);
}

static void fill_disk(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	CHECK(fd >= 0);
	while (write(fd, "x", 1) == 1)
		;
	CHECK(errno == ENOSPC);
	CHECK(close(fd) == 0);
}

static void lease(const char *path)
{
	int ready[2], fd;
	pid_t pid;
	char byte;

	CHECK(pipe(ready) == 0);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
		CHECK(signal(SIGIO, SIG_IGN) != SIG_ERR);
		fd = open(path, O_RDONLY);
		CHECK(fcntl(fd, F_SETLEASE, F_RDLCK) == 0);
		CHECK(write(ready[1], "", 1) == 1);
		for (;;)
			pause();
	}
	CHECK(read(ready[0], &byte, 1) == 1);
	CHECK(close(ready[0]) == 0);
	CHECK(close(ready[1]) == 0);
}

/* Copies what comes out at the far end, as far as it comes at once. */
static void show(int to)
{
	struct pollfd far = { .fd = FAR, .events = POLLIN };
	char text[4096];

	while (poll(&far, 1, 50) == 1) {
		ssize_t size = read(FAR, text, sizeof(text));

		if (size <= 0)
			break;
		CHECK(write(to, text, size) == size);
	}
}

static void take(size_t size)
{
	char text[4096];

	CHECK(size <= sizeof(text));
	CHECK(read(FAR, text, size) > 0);
}

/* The leader of the terminal's session: tells each stop, and lets go on. */
static void watch(pid_t pid, int terminal)
{
	int status;

	for (;;) {
		CHECK(waitpid(pid, &status, WUNTRACED) == pid);
		show(2);
		if (!WIFSTOPPED(status))
			break;
		printf("stopped by signal %d\n", WSTOPSIG(status));
		set_tostop(terminal, 0);
		CHECK(kill(pid, SIGCONT) == 0);
	}
	_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

/* Rather than wait for ever: SIGALRM, or SIGKILL if that is blocked for good. */
static void set_bound(void)
{
	struct sigevent event = {
		.sigev_notify = SIGEV_SIGNAL,
		.sigev_signo = SIGKILL,
	};
	struct itimerspec time = { .it_value.tv_sec = 65 };
	timer_t timer;

	alarm(60);
	CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
	CHECK(timer_settime(timer, 0, &time, NULL) == 0);
}

static void go_to_background(int tostop)
{
	int master = open_terminal_master(), terminal;
	pid_t pid;

	CHECK(setsid() > 0);
	terminal = open(ptsname(master), O_RDWR | O_CLOEXEC);
	CHECK(terminal >= 0);
	CHECK(tcgetpgrp(terminal) == getpid());
	place(master, FAR);
	set_tostop(terminal, tostop);
	pid = fork();
	CHECK(pid >= 0);
	if (pid > 0)
		watch(pid, terminal);
	CHECK(setpgid(0, 0) == 0);
	CHECK(close(FAR) == 0);
	CHECK(dup2(terminal, 2) == 2);
	CHECK(close(terminal) == 0);
	set_bound();
}

/* In another process: see race.h. */
static void happen(pid_t pid, char *what)
{
	const char *fifo = getenv("ASYNCFORK_LOG_FILE");

	block(SIGTTOU);
	for (what = strtok(what, "+"); what; what = strtok(NULL, "+")) {
		if (!strcmp(what, "close"))
			change_far_end("close");
		else if (!strcmp(what, "fill"))
			fill_output(fifo);
		else if (!strcmp(what, "tostop"))
			set_tostop(2, 1);
		else if (!strcmp(what, "freeze"))
			CHECK(tcflow(2, TCOOFF) == 0);
		else if (!strcmp(what, "fsize"))
			limit_file_size(pid, 0);
		else
			CHECK(kill(pid, signal_number(what)) == 0);
	}
	dprintf(1, "it happened\n");
}

static void check_fork(pid_t (*call)(void))
{
	struct state before, after, beside[2], now;
	int before_handled = handled, want = handled, err;
	pid_t pid;

	for (int i = 0; i < 2; i++)
		if (bystanders[i])
			beside[i] = read_state(bystanders[i]);
	before = read_state(0);
	before_fork = &before;
	errno = SENTINEL;
	pid = call();
	err = errno;
	before_fork = NULL;
	CHECK(pid >= 0);
	CHECK(err == SENTINEL);
	if (pid > 0 && expected) {
		if (before.blocked & SIGNAL_BIT(expected) && !bystanders[0])
			before.process_pending |= SIGNAL_BIT(expected);
		else
			want++;
		/* Perhaps in another thread. */
		while (__atomic_load_n(&handled, __ATOMIC_SEQ_CST) < want)
			sched_yield();
	}
	after = read_state(0);
	if (threads > 1) {
		after.descriptors = before.descriptors;
		/* Others' children end; glibc's fork has all blocked meanwhile (2.41). */
		before.process_pending &= ~SIGNAL_BIT(SIGCHLD);
		after.process_pending &= ~SIGNAL_BIT(SIGCHLD);
	}
	if (pid == 0) {
		CHECK(handled == before_handled || expected);
		CHECK(!after.thread_pending && !after.process_pending);
		after.thread_pending = before.thread_pending;
		after.process_pending = before.process_pending;
		check_same_state(&before, &after);
		_exit(7);
	}
	CHECK(handled == want);
	check_same_state(&before, &after);
	for (int i = expected ? 1 : 0; i < 2; i++) {
		if (!bystanders[i])
			continue;
		now = read_state(bystanders[i]);
		check_same_state(&beside[i], &now);
	}
	wait_exit(pid, 7);
	expected = 0;
}

struct job {
	pid_t (*call)(void);
	int times, mask;
};

/* Each thread with signals of its own blocked and pending. */
static void *run(void *arg)
{
	const struct job *job = arg;

	for (size_t i = 0; i < sizeof(ours) / sizeof(*ours); i++) {
		if (job->mask & 1 << i) {
			block(ours[i]);
			CHECK(raise(ours[i]) == 0);
		}
	}
	pthread_barrier_wait(&barrier);
	for (int i = 0; i < job->times; i++)
		check_fork(job->call);
	return NULL;
}

static void fork_here(const char *name)
{
	pid_t (*call)(void) = !strcmp(name, "fork") ? fork :
			      !strcmp(name, "_Fork") ? _Fork :
			      !strcmp(name, "__fork") ? __fork : NULL;
	pthread_t started[16];
	struct job jobs[16];

	CHECK(call);
	CHECK(threads <= 16);
	if (threads == 1) {
		for (int i = 0; i < times; i++)
			check_fork(call);
	} else {
		CHECK(pthread_barrier_init(&barrier, NULL, threads) == 0);
		for (int i = 0; i < threads; i++) {
			jobs[i] = (struct job){ call, times, i % 8 };
			CHECK(pthread_create(&started[i], NULL, run,
					     &jobs[i]) == 0);
		}
		for (int i = 0; i < threads; i++)
			CHECK(pthread_join(started[i], NULL) == 0);
	}
	printf("forked\n");
	times = threads = 1;
}

/* The library's loading is no more to be noticed than its forks. */
static void run_again(char **args)
{
	struct state state = read_state(0);
	char text[128];

	snprintf(text, sizeof(text), "%llx %llx %llx %llx", state.thread_pending,
		 state.process_pending, state.blocked, state.ignored);
	CHECK(setenv("SIGNALS_BEFORE_EXEC", text, 1) == 0);
	execv("/proc/self/exe", args);
	CHECK(!"execv");
}

static void check_exec(const char *text)
{
	struct state before, state = read_state(0);

	before = state;
	CHECK(sscanf(text, "%llx %llx %llx %llx", &before.thread_pending,
		     &before.process_pending, &before.blocked,
		     &before.ignored) == 4);
	check_same_state(&before, &state);
}

static void write_own(int sig)
{
	int before = handled;

	CHECK(write(2, "own\n", 4) == -1);
	CHECK(handled == before + (sig != 0));
}

static void step(char *name, char *value)
{
	char *path = value ? strchr(value, ':') : NULL;

	if (path)
		*path++ = '\0';
	if (!strcmp(name, "stderr")) {
		make_output(value, path);
	} else if (!strcmp(name, "log")) {
		CHECK(setenv("ASYNCFORK_LOG_FILE", ptsname(FAR), 1) == 0);
	} else if (!strcmp(name, "far")) {
		change_far_end(value);
	} else if (!strcmp(name, "reader")) {
		place(open(value, O_RDONLY | O_NONBLOCK), FAR);
	} else if (!strcmp(name, "fill")) {
		fill_output(value);
	} else if (!strcmp(name, "take")) {
		take(atoi(value));
	} else if (!strcmp(name, "show")) {
		show(1);
	} else if (!strcmp(name, "freeze")) {
		CHECK(tcflow(2, TCOOFF) == 0);
	} else if (!strcmp(name, "session")) {
		CHECK(setsid() > 0);
	} else if (!strcmp(name, "no-terminal")) {
		CHECK(open("/dev/tty", O_RDWR) == -1 && errno == ENXIO);
	} else if (!strcmp(name, "background")) {
		go_to_background(value != NULL);
	} else if (!strcmp(name, "fsize")) {
		limit_file_size(0, atol(value));
	} else if (!strcmp(name, "stretch")) {
		stretch(value);
	} else if (!strcmp(name, "tmpfs")) {
		mount_tmpfs(value);
	} else if (!strcmp(name, "fill-disk")) {
		fill_disk(value);
	} else if (!strcmp(name, "lease")) {
		lease(value);
	} else if (!strcmp(name, "handle")) {
		on_signal(signal_number(value), count);
	} else if (!strcmp(name, "fork-in")) {
		on_signal(signal_number(value), fork_in_handler);
	} else if (!strcmp(name, "ignore")) {
		on_signal(signal_number(value), SIG_IGN);
	} else if (!strcmp(name, "block")) {
		block(signal_number(value));
	} else if (!strcmp(name, "raise")) {
		CHECK(raise(signal_number(value)) == 0);
	} else if (!strcmp(name, "kill")) {
		CHECK(kill(getpid(), signal_number(value)) == 0);
	} else if (!strcmp(name, "bystanders")) {
		start_bystanders();
	} else if (!strcmp(name, "deny")) {
		deny(call_number(value), SECCOMP_RET_ERRNO | atoi(path));
	} else if (!strcmp(name, "trap")) {
		trap(call_number(value));
	} else if (!strcmp(name, "forbid")) {
		forbid();
	} else if (!strcmp(name, "race")) {
		race(value, happen);
	} else if (!strcmp(name, "expect")) {
		expected = signal_number(value);
	} else if (!strcmp(name, "times")) {
		times = atoi(value);
	} else if (!strcmp(name, "threads")) {
		threads = atoi(value);
	} else if (!strcmp(name, "fork")) {
		fork_here(value);
	} else if (!strcmp(name, "own")) {
		write_own(signal_number(value));
	} else if (!strcmp(name, "write")) {
		CHECK(write(2, "own\n", 4) == 4);
		printf("wrote\n");
	} else {
		CHECK(!"a step");
	}
}

int main(int argc, char **argv)
{
	const char *before_exec = getenv("SIGNALS_BEFORE_EXEC");

	setlinebuf(stdout);
	CHECK(is_interposed("fork"));
	if (before_exec)
		check_exec(before_exec);
	set_bound();
	CHECK(pthread_atfork(check_mask, check_mask, check_mask) == 0);
	for (int i = 1; i < argc; i++) {
		char *value = strchr(argv[i], '=');

		if (value)
			*value++ = '\0';
		if (!strcmp(argv[i], "exec")) {
			argv[i] = argv[0];
			run_again(argv + i);
		}
		step(argv[i], value);
	}
	return 0;
}
