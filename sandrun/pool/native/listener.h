/* Hands the listener of a filter to PID 1, which waits at the other end of the socket.
   Runs as: a job to be, confined (child.c, fork.c). I/O. */

#ifndef SANDRUN_LISTENER_H
#define SANDRUN_LISTENER_H

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Closes it. -1 with errno if it cannot be sent. */
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
