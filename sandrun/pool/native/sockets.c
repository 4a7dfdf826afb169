/* Connections that nobody has accepted. Runs as: PID 1. I/O. The reference, with the
   reasons, is zygote/sockets.py: same files, same arithmetic. */

#include "init.h"

#include <stdio.h>
#include <unistd.h>

enum { LISTED_FROM = 16, CONNECTION_BYTES = 4096, SMALL_BYTES = 1024 };
enum { TCP_TIME_WAIT = 6, TCP_LISTEN = 10 };

/* "TCP: inuse 3 orphan 0 tw 2 alloc 9 mem 7", "TCP6: inuse 0" */
static void sockets_in(const char *path, long long *sockets, long long *pages)
{
    char line[256];
    long long inuse, waiting;
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof line, file)) {
        if (sscanf(line, "TCP: inuse %lld orphan %*d tw %lld alloc %*d mem %lld", &inuse, &waiting,
                   pages) == 3)
            *sockets += inuse + waiting;
        else if (sscanf(line, "TCP6: inuse %lld", &inuse) == 1)
            *sockets += inuse;
    }
    if (file)
        fclose(file);
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

int64_t uncharged_bytes(bool *many)
{
    long long sockets = 0, pages = 0;
    sockets_in("/proc/self/net/sockstat", &sockets, &pages);
    sockets_in("/proc/self/net/sockstat6", &sockets, &pages);
    *many = sockets >= LISTED_FROM && (pages * sysconf(_SC_PAGESIZE) > UNCHARGED_MOST ||
                                       sockets * CONNECTION_BYTES > UNCHARGED_MOST);
    if (!*many)
        return 0;
    int64_t held = held_in("/proc/self/net/tcp", UNCHARGED_MOST);
    return held + held_in("/proc/self/net/tcp6", UNCHARGED_MOST - held);
}
