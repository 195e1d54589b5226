/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * outputs.h - odd places for a log line to go to
 *
 * Descriptor 2 becomes the near end, FAR the far end where there is one.
 */
#ifndef OUTPUTS_H
#define OUTPUTS_H

#include "check.h"

#include <fcntl.h>
#include <poll.h>
#include <netinet/in.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <termios.h>

/* Descriptors from here on are the test's own. */
#define FAR 100

static inline void place(int fd, int at)
{
	CHECK(fd >= 0);
	if (fd != at) {
		CHECK(dup2(fd, at) == at);
		CHECK(close(fd) == 0);
	}
}

static inline void tcp_pair(int pair[2])
{
	struct sockaddr_in address = {
		.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	socklen_t size = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	CHECK(bind(listener, (void *)&address, size) == 0);
	CHECK(listen(listener, 1) == 0);
	CHECK(getsockname(listener, (void *)&address, &size) == 0);
	pair[0] = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(connect(pair[0], (void *)&address, size) == 0);
	pair[1] = accept(listener, NULL, NULL);
	CHECK(pair[1] >= 0);
	CHECK(close(listener) == 0);
}

static inline int open_terminal_master(void)
{
	int master = posix_openpt(O_RDWR | O_NOCTTY);

	CHECK(master >= 0);
	CHECK(grantpt(master) == 0);
	CHECK(unlockpt(master) == 0);
	return master;
}

static inline void make_output(const char *kind, const char *path)
{
	int pair[2] = { -1, -1 }, ends[2];

	if (!strcmp(kind, "file")) {
		pair[0] = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
	} else if (!strcmp(kind, "readonly")) {
		pair[0] = open(path, O_RDONLY);
	} else if (!strcmp(kind, "path")) {
		pair[0] = open(path, O_PATH);
	} else if (!strcmp(kind, "closed")) {
		close(2);
		return;
	} else if (!strcmp(kind, "eventfd")) {
		pair[0] = eventfd(0, 0);
	} else if (!strcmp(kind, "pipe")) {
		CHECK(pipe(ends) == 0);
		pair[0] = ends[1];
		pair[1] = ends[0];
	} else if (!strcmp(kind, "stream")) {
		CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	} else if (!strcmp(kind, "seqpacket")) {
		CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
	} else if (!strcmp(kind, "datagram")) {
		CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
	} else if (!strcmp(kind, "tcp")) {
		tcp_pair(pair);
	} else if (!strcmp(kind, "terminal")) {
		pair[1] = open_terminal_master();
		pair[0] = open(ptsname(pair[1]), O_RDWR | O_NOCTTY);
	} else {
		CHECK(!"a kind of output");
	}
	if (pair[1] >= 0)
		place(pair[1], FAR);
	place(pair[0], 2);
}

/* An open file description of its own that does not block; sockets have none. */
static inline int open_again(const char *path)
{
	int fd = open(path ? path : "/proc/self/fd/2",
		      O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);

	CHECK(fd >= 0);
	return fd;
}

/* Until no byte more is taken; the far end of a terminal takes its time. */
static inline void fill_output(const char *path)
{
	static const char bytes[64];
	struct stat stat;
	int is_socket, fd;

	CHECK(fstat(2, &stat) == 0);
	is_socket = !path && S_ISSOCK(stat.st_mode);
	fd = is_socket ? 2 : open_again(path);
	for (int full = 0; full < 3; full++) {
		for (size_t n = sizeof(bytes); n; n /= 2)
			while ((is_socket ? send(fd, bytes, n, MSG_DONTWAIT) :
				write(fd, bytes, n)) > 0)
				full = 0;
		CHECK(errno == EAGAIN);
		poll(NULL, 0, 10);
	}
	if (!is_socket)
		CHECK(close(fd) == 0);
}

static inline void set_tostop(int fd, int on)
{
	struct termios settings;

	CHECK(tcgetattr(fd, &settings) == 0);
	settings.c_lflag &= ~TOSTOP;
	if (on)
		settings.c_lflag |= TOSTOP;
	CHECK(tcsetattr(fd, TCSANOW, &settings) == 0);
}

static inline void limit_file_size(pid_t pid, rlim_t size)
{
	struct rlimit limit;

	CHECK(prlimit(pid, RLIMIT_FSIZE, NULL, &limit) == 0);
	limit.rlim_cur = size;
	CHECK(prlimit(pid, RLIMIT_FSIZE, &limit, NULL) == 0);
}

/* What became of the far end. */
static inline void change_far_end(const char *how)
{
	const struct linger at_once = { 1, 0 };

	if (!strcmp(how, "close")) {
		CHECK(close(FAR) == 0);
	} else if (!strcmp(how, "reset")) {
		CHECK(setsockopt(FAR, SOL_SOCKET, SO_LINGER, &at_once,
				 sizeof(at_once)) == 0);
		CHECK(close(FAR) == 0);
	} else if (!strcmp(how, "deaf")) {
		CHECK(shutdown(FAR, SHUT_RD) == 0);
	} else if (!strcmp(how, "mute")) {
		CHECK(shutdown(2, SHUT_WR) == 0);
	} else {
		CHECK(!"a change of the far end");
	}
}

#endif
