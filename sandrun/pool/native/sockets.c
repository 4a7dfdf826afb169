/* Connections that nobody has accepted. Runs as: PID 1. I/O. The reference, with the
   reasons, is zygote/sockets.py: same files, same arithmetic. */

#include "init.h"

#include <stdio.h>
#include <string.h>

enum { LISTED_FROM = 16, CONNECTION_BYTES = 4096, SMALL_BYTES = 1024 };
enum { TCP_TIME_WAIT = 6, TCP_LISTEN = 10 };

/* "TCP: inuse 3 orphan 0 tw 2 ...", "TCP6: inuse 0" */
static int64_t sockets_in(const char *path)
{
    char line[256];
    long long inuse, waiting, found = 0;
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof line, file)) {
        if (sscanf(line, "TCP: inuse %lld orphan %*d tw %lld", &inuse, &waiting) == 2)
            found = inuse + waiting;
        else if (sscanf(line, "TCP6: inuse %lld", &inuse) == 1)
            found = inuse;
    }
    if (file)
        fclose(file);
    return found;
}

static int64_t held_in(const char *path, int64_t most)
{
    char line[512];
    unsigned state;
    unsigned long long sends, receives, inode;
    int64_t held = 0;
    FILE *file = fopen(path, "re");
    while (file && held <= most && fgets(line, sizeof line, file))
        if (sscanf(line, " %*d: %*s %*s %x %llx:%llx %*s %*s %*s %*s %llu", &state, &sends,
                   &receives, &inode) == 4) {
            if (!inode && state != TCP_TIME_WAIT)
                held += CONNECTION_BYTES + (int64_t)(sends + receives);
            else if (state != TCP_LISTEN)
                held += SMALL_BYTES;
        }
    if (file)
        fclose(file);
    return held;
}

int64_t unaccepted_bytes(bool *many)
{
    *many = sockets_in("/proc/self/net/sockstat") + sockets_in("/proc/self/net/sockstat6") >=
            LISTED_FROM;
    if (!*many)
        return 0;
    int64_t held = held_in("/proc/self/net/tcp", UNACCEPTED_MOST);
    return held + held_in("/proc/self/net/tcp6", UNACCEPTED_MOST - held);
}
