/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/ready.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tools/pagurus/paths.h"

void ready_tell(void)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un a;
	socklen_t length;
	int fd;

	if (!path || !path[0] || paths_socket(path, &a, NULL))
		return;
	length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
	if (a.sun_path[0] == '@')
		a.sun_path[0] = 0; /* the abstract name space */
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return;
	sendto(fd, "READY=1", 7, MSG_NOSIGNAL, (struct sockaddr *)&a, length);
	close(fd);
	unsetenv("NOTIFY_SOCKET");
}
