/* Forks that land in sandboxes. Runs as: a template, see zygote/warm_python.py. I/O.

   The template waits for requests in here and not in Python: after each fork it would
   copy the 127 pages that its own loop writes to, half a millisecond of CPU time.

   The child must be an orphan of the sandbox's pid namespace, so that its PID 1 reaps
   it: somebody has to stand between, enter the other namespaces, fork and end. That one
   shares the template's memory (CLONE_VM) while the template sleeps (CLONE_VFORK), so
   an interpreter's page tables are copied once and not twice: 2 ms of 6.5 for an empty
   script, more with large modules.

   The second child has a copy of all memory, the template's sleeping stack included: it
   leaves the stack of the one between, confines itself (in Python that takes a
   millisecond more) and goes on where the template was. */

#define _GNU_SOURCE
#include "template.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { STACK = 256 * 1024 }; /* at-fork handlers run on it */
enum { NAMESPACES = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS };

enum { GO_FD = 3, HIGH_FD = 64, CALL_LANDLOCK_RESTRICT_SELF = 446 };
enum { MAX_FDS = 32, REQUEST_MAX = 1024 };

struct limit {
    uint64_t resource, soft, hard;
};

struct range {
    uint64_t start, size, advice;
};

/* What all children of a template have in common. Laid out as Settings in
   zygote/warm_python.py. */
struct settings {
    int32_t uid, gid, last_capability, listens;
    const char *cwd;
    uint64_t limit_count;
    const struct limit *limits;
    uint64_t program_length; /* instructions; 0: no filter */
    const void *program;
    uint64_t range_count;
    const struct range *ranges; /* of pages that children need */
};

/* What one of them gets: descriptors. landlock: -1 without rules. */
static struct {
    int pidfd, streams[3], go, landlock, group_count;
    int groups[MAX_FDS];
} order;

static const struct settings *settings;
static const char *step; /* the one that is being taken, or failed */
static int failed;       /* its errno */
static void *template_frame[5]; /* of __builtin_setjmp */

#ifdef SANDRUN_FAULTS
/* Tests only, never in the library that is served: as in sys.c, at the place "fork". The
   template finds the text behind its last descriptor. See tests/sandbox/faulty.py. */
enum { SEAM = 4 };
static const char *fault_text;

__attribute__((constructor)) static void map_faults(void)
{
    const char *at = mmap(NULL, 4096, PROT_READ, MAP_SHARED, SEAM, 0);
    fault_text = at == MAP_FAILED ? "" : at;
    close(SEAM);
}

static int meets_fault(const char *step)
{
    char word[128];
    snprintf(word, sizeof word, "die fork %s", step);
    if (!strcmp(fault_text, word))
        _exit(7);
    snprintf(word, sizeof word, "fail fork %s", step);
    errno = EPERM;
    return !strcmp(fault_text, word);
}
#else
static int meets_fault(const char *step)
{
    (void)step;
    return 0;
}
#endif

static int between(void *argument)
{
    (void)argument;
    step = "namespaces";
    if (meets_fault(step) || setns(order.pidfd, NAMESPACES))
        goto failed;
    step = "control_group";
    for (int i = 0; i < order.group_count; i++)
        if (meets_fault(step) || write(order.groups[i], "0", 1) != 1)
            goto failed;
    step = "cgroup_namespace";
    if (meets_fault(step) || (order.group_count && unshare(CLONE_NEWCGROUP)))
        goto failed;
    step = "bounding_set";
    for (int capability = 0; capability <= settings->last_capability; capability++)
        if (meets_fault(step) || prctl(PR_CAPBSET_DROP, capability, 0, 0, 0))
            goto failed;
    step = "fork";
    /* the C library's: its at-fork handlers must run */
    pid_t pid = meets_fault(step) ? -1 : fork();
    if (!pid)
        __builtin_longjmp(template_frame, 1);
    if (pid > 0)
        _exit(0);
failed:
    failed = errno ? errno : EIO;
    _exit(1);
}

/* ── the child: each step is what zygote/warm_python.py says of it ── */

static int go = -1, landlock_ruleset = -1; /* where they are now */

static int own_session(void)
{
    return setsid() < 0;
}

static int standard_streams(void)
{
    const int sources[] = {order.streams[0], order.streams[1], order.streams[2], order.go};
    int high[4];
    for (int i = 0; i < 4; i++)
        if ((high[i] = fcntl(sources[i], F_DUPFD_CLOEXEC, HIGH_FD)) < 0)
            return -1;
    if (order.landlock >= 0 &&
        (landlock_ruleset = fcntl(order.landlock, F_DUPFD_CLOEXEC, HIGH_FD)) < 0)
        return -1;
    go = high[3];
    for (int i = 0; i < 4; i++)
        if ((i < GO_FD ? dup2(high[i], i) : dup3(high[i], i, O_CLOEXEC)) < 0)
            return -1;
    go = GO_FD;
    return 0;
}

static int place(void)
{
    umask(022);
    return chdir(settings->cwd);
}

static int rlimits(void)
{
    for (uint64_t i = 0; i < settings->limit_count; i++) {
        const struct limit *l = settings->limits + i;
        if (setrlimit((__rlimit_resource_t)l->resource, &(struct rlimit){l->soft, l->hard}))
            return -1;
    }
    return 0;
}

static int job_ids(void)
{
    gid_t gid = (gid_t)settings->gid;
    uid_t uid = (uid_t)settings->uid;
    return setgroups(0, NULL) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid);
}

static int no_capabilities(void)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};
    return (int)syscall(SYS_capset, &header, none);
}

static int dumpable(void)
{
    return prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
}

static int no_new_privileges(void)
{
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

static int landlock(void)
{
    if (landlock_ruleset < 0)
        return 0;
    return (int)syscall(CALL_LANDLOCK_RESTRICT_SELF, landlock_ruleset, 0);
}

static int few_descriptors(void)
{
    return (int)syscall(SYS_close_range, GO_FD + 1, ~0U, 0);
}

static int system_calls(void)
{
    struct {
        unsigned short length;
        const void *filter;
    } fprog = {(unsigned short)settings->program_length, settings->program};
    unsigned flags = settings->listens ? SECCOMP_FILTER_FLAG_NEW_LISTENER : 0;
    if (!settings->program_length)
        return 0;
    long listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &fprog);
    if (listener < 0)
        return -1;
    return settings->listens ? send_listener(GO_FD, (int)listener) : 0;
}

static const struct {
    const char *name;
    int (*take)(void);
} child_steps[] = {
    {"own_session", own_session},
    {"standard_streams", standard_streams},
    {"place", place},
    {"rlimits", rlimits},
    {"job_ids", job_ids},
    {"no_capabilities", no_capabilities},
    {"dumpable", dumpable},
    {"no_new_privileges", no_new_privileges},
    {"landlock", landlock},
    {"few_descriptors", few_descriptors},
    {"system_calls", system_calls},
};

/* [step, errno, text], as warm_python.py says it. */
static size_t report_of(char *report, size_t room, int number)
{
    int size = snprintf(report, room, "[\"%s\",%d,\"%s: %s\"]", step, number, step,
                        strerror(number));
    return size < 0 ? 0 : (size_t)size < room ? (size_t)size : room - 1;
}

static void confine(void)
{
    char report[256];
    go = order.go;
    for (unsigned i = 0; i < sizeof child_steps / sizeof *child_steps; i++) {
        step = child_steps[i].name;
        errno = 0;
        if (!meets_fault(step) && !child_steps[i].take())
            continue;
        size_t size = report_of(report, sizeof report, errno);
        if (write(go, report, size) < 0)
            _exit(2); /* PID 1 sees the end of the socket instead */
        _exit(1);
    }
}

/* Copy the pages that a job writes to, and map those that it reads, before it is there.
   Linux 5.14; before that the job meets them itself. man: madvise(2) */
static void populate(void)
{
    for (uint64_t i = 0; i < settings->range_count; i++) {
        const struct range *r = settings->ranges + i;
        madvise((void *)(uintptr_t)r->start, r->size, (int)r->advice);
    }
}

/* Our children already go into the pid namespace. Returns true in the new process, which
   is confined then (or has reported the step that failed, and ended); in the template
   false, with *number the errno of the step that failed, or 0. */
static bool fork_into(int *number)
{
    static uint8_t stack[STACK] __attribute__((aligned(16))); /* we have one thread of our own */
    sigset_t all, before;
    int status;
    failed = 0;
    if (__builtin_setjmp(template_frame)) {
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        populate();
        confine();
        return true;
    }
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &before);
    pid_t pid = clone(between, stack + STACK, CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);
    *number = pid < 0 ? errno : 0;
    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); /* the change of credentials cleared it for all of us */
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (pid < 0) {
        step = "clone";
        return false;
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    *number = failed ? failed : WIFEXITED(status) && !WEXITSTATUS(status) ? 0 : ECHILD;
    return false;
}

/* ── requests ── */

static bool follows(const char **text, const char *word)
{
    size_t size = strlen(word);
    if (strncmp(*text, word, size))
        return false;
    *text += size;
    return true;
}

/* From PID 1's words to the order. Whether it is one. */
static bool read_request(const char *text, const int *fds, int count)
{
    int used = FORK_FDS;
    if (count < FORK_FDS || !follows(&text, FORK_REQUEST))
        return false;
    order.pidfd = fds[0];
    memcpy(order.streams, fds + 1, sizeof order.streams);
    order.group_count = 0;
    while (used < count && follows(&text, FORK_GROUP))
        order.groups[order.group_count++] = fds[used++];
    order.landlock = used < count && follows(&text, FORK_LANDLOCK) ? fds[used++] : -1;
    return used == count && !strcmp(text, FORK_END);
}

/* The next message and its descriptors, which are then ours to close; their number. */
static int receive(int control, char *text, int *fds)
{
    struct iovec part = {text, REQUEST_MAX};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(MAX_FDS * sizeof(int))];
    } rights;
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &rights,
                             .msg_controllen = sizeof rights};
    ssize_t size;
    int count = 0;
    while ((size = recvmsg(control, &message, MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR)
        ;
    if (size <= 0 || size == REQUEST_MAX || message.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
        _exit(0); /* nobody needs us, or the peer is broken */
    text[size] = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        count = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(fds, CMSG_DATA(c), (size_t)count * sizeof(int)); /* one header holds them all */
    }
    return count;
}

/* To the spawner, which notes it, and to PID 1, which waits for a word of the child that
   there is not. Both may be gone. */
static void report_failure(int control, int number)
{
    char report[256];
    size_t size = report_of(report, sizeof report, number);
    send(control, report, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (order.go >= 0)
        send(order.go, report, size, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* A fork whose parent does nothing, so that what the child has of its own is what it has
   written to. Returns 0 in the child; in the parent, when that has ended, something else. */
int sandrun_fork_and_wait(void)
{
    pid_t pid = fork();
    while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
    return pid;
}

/* Have children inherit what a template reads of the files that are mapped by now: its
   program and the libraries of it. fork(2) leaves such pages out, unless some page of the
   same mapping is the process's own (vma_needs_copy() in mm/memory.c); each child would meet
   its program again, page by page, 85 times for the smallest script. So one byte of each
   mapping is written, as it is; a debugger's breakpoint does the same. Not of what is
   preloaded: there are far more pages than a job looks at. Where the kernel forbids it
   (proc_mem.force_override), children are slower and otherwise the same. */
void sandrun_inherit_program(void)
{
    char line[4096 + 128], may[5];
    unsigned long start, inode;
    FILE *maps = fopen("/proc/self/maps", "re");
    int memory = open("/proc/self/mem", O_WRONLY | O_CLOEXEC);
    while (maps && memory >= 0 && fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%*x %4s %*x %*s %lu", &start, may, &inode) == 3 && inode &&
            may[0] == 'r' && may[1] == '-' && may[3] == 'p' &&
            pwrite(memory, (const void *)start, 1, (off_t)start) < 0)
            break;
    if (maps)
        fclose(maps);
    if (memory >= 0)
        close(memory);
}

/* As fork_into(). */
static bool follow_request(const char *text, const int *fds, int count, int *number)
{
    *number = EINVAL;
    step = "request";
    if (meets_fault(step) || !read_request(text, fds, count))
        return false;
    step = "pid_namespace";
    if (!meets_fault(step) && !setns(order.pidfd, CLONE_NEWPID))
        return fork_into(number);
    *number = errno;
    return false;
}

/* Make a child for each request that comes in at a socket, until nobody is left who could
   ask: then we end. Returns in the children only, each confined. What succeeds the spawner
   is not told. */
void sandrun_serve_forks(int control, const struct settings *common)
{
    static char text[REQUEST_MAX + 1];
    static int fds[MAX_FDS];
    settings = common;
    for (;;) {
        int number, count = receive(control, text, fds);
        order.go = count >= FORK_FDS ? fds[FORK_FDS - 1] : -1;
        if (follow_request(text, fds, count, &number))
            return;
        if (number)
            report_failure(control, number);
        for (int i = 0; i < count; i++)
            close(fds[i]);
    }
}
