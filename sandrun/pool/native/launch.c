/* Starts a PID 1. Runs as: the spawner, root of its outer user namespace. I/O.

   One call: a child in new namespaces whose parent is the supervisor (CLONE_PARENT),
   which becomes the compiled init at once. It shares our memory until then
   (CLONE_VFORK: we sleep meanwhile), because copying an interpreter's page tables
   costs more than all the rest. So between clone and exec it only moves
   descriptors, in a table and on a stack of its own. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    FIRST = 3,
    MOST = 64,
    STACK = 64 * 1024,
    KEPT_FROM = 512,  /* the spawner's own descriptors: networks.py */
    CLOSE_UNSHARE = 2 /* CLOSE_RANGE_UNSHARE of linux/close_range.h, Linux 5.9 */
};

struct launch {
    const int *fds;
    int count;
    int program;
    int failed; /* errno of the child, which shares our memory */
};

/* Who is not root of its namespace (nobody is: 0 is not mapped) loses its capabilities
   by exec, but for the ambient ones. The init gives them up when its boot is done. */
static int keep_capabilities(void)
{
    /* mounts and names, ids, the bounding set. Each costs a copy of the credentials, so not
       all of them. */
    static const int needed[] = {CAP_SYS_ADMIN, CAP_SETUID, CAP_SETGID, CAP_SETPCAP};
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2];
    if (syscall(SYS_capget, &header, sets))
        return -1;
    for (int i = 0; i < 2; i++)
        sets[i].inheritable = sets[i].permitted;
    if (syscall(SYS_capset, &header, sets))
        return -1;
    for (unsigned i = 0; i < sizeof needed / sizeof *needed; i++)
        if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, needed[i], 0, 0))
            return -1;
    return 0;
}

static int become_init(void *argument)
{
    struct launch *l = argument;
    static char *const argv[] = {"sandrun-init", NULL};
    static char *const env[] = {NULL};
    int high[MOST];
    /* The table is still the spawner's. It holds two for every sandbox that there is, which
       were copied and closed again here: 1.6 ms for each with 1,000 of them. */
    if (syscall(SYS_close_range, KEPT_FROM, ~0U, CLOSE_UNSHARE))
        goto failed;
    int program = fcntl(l->program, F_DUPFD_CLOEXEC, 2 * MOST);
    if (program < 0)
        goto failed;
    for (int i = 0; i < l->count; i++)
        if (l->fds[i] >= 0 && (high[i] = fcntl(l->fds[i], F_DUPFD_CLOEXEC, 2 * MOST)) < 0)
            goto failed;
    for (int i = 0; i < l->count; i++) {
        if (l->fds[i] < 0)
            close(FIRST + i);
        else if (dup2(high[i], FIRST + i) < 0)
            goto failed;
    }
    /* What is left and not the program's: close-on-exec closes it, and this the rest. */
    if (syscall(SYS_close_range, FIRST + l->count, program - 1, 0) ||
        syscall(SYS_close_range, program + 1, ~0U, 0) || keep_capabilities())
        goto failed;
    syscall(SYS_execveat, program, "", argv, env, AT_EMPTY_PATH);
failed:
    l->failed = errno;
    _exit(127);
}

/* Descriptors fds[i] become 3 + i of the new process; a negative one stays closed.
   Returns its pid, or -errno if there is no process. *failed: errno of a process that
   is there and could not become the init. flags: namespaces, signal of its death. */
int sandrun_launch(const int *fds, int count, int program, int flags, int *failed)
{
    static uint8_t stack[STACK] __attribute__((aligned(16))); /* we have one thread */
    struct launch l = {fds, count, program, 0};
    sigset_t all, before;
    if (count < 0 || count > MOST)
        return -EINVAL;
    for (int i = -1; i < count; i++)
        if ((i < 0 ? program : fds[i]) >= KEPT_FROM)
            return -EMFILE;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &before); /* no handler may run on shared memory */
    flags |= CLONE_VM | CLONE_VFORK | CLONE_PARENT | CLONE_FILES;
    int pid = clone(become_init, stack + STACK, flags, &l);
    int number = errno;
    sigprocmask(SIG_SETMASK, &before, NULL);
    *failed = l.failed;
    return pid < 0 ? -number : pid;
}
