/* What PID 1 says to a template, and what a process that gets ready says to PID 1.
   Included by: child.c (PID 1, and the job to be), fork.c (a template, and its children).
   I/O. */

#ifndef SANDRUN_TEMPLATE_H
#define SANDRUN_TEMPLATE_H

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* A request for a child: JSON, as the reference (zygote/warm_python.py) reads it, that names
   the descriptors which come along. In this order, FORK_GROUP once per control group. */
#define FORK_REQUEST "{\"op\":\"fork\",\"fds\":[\"pidfd\",\"stdin\",\"stdout\",\"stderr\",\"go\""
#define FORK_GROUP ",\"cgroup\""
#define FORK_LANDLOCK ",\"landlock\""
#define FORK_END "]}"
enum { FORK_FDS = 5 }; /* those that FORK_REQUEST names */

/* Hands over the listener of a filter, and closes it. -1 with errno if it cannot be sent. */
static inline int send_listener(int to, int listener)
{
    struct iovec part = {"L", 1};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {.head = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control};
    memcpy(CMSG_DATA(&control.head), &listener, sizeof listener);
    if (sendmsg(to, &message, MSG_NOSIGNAL) < 0)
        return -1;
    return close(listener);
}

#endif
