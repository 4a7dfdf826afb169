/* A fork that lands in a sandbox. Runs as: a template, see zygote/warm_python.py. I/O.

   The child must be an orphan of the sandbox's pid namespace, so that its PID 1 reaps
   it: somebody has to stand between, enter the other namespaces, fork and end. That one
   shares the template's memory (CLONE_VM) while the template sleeps (CLONE_VFORK), so
   an interpreter's page tables are copied once and not twice: 2 ms of 6.5 for an empty
   script, more with large modules.

   The second child has a copy of all memory, the template's sleeping stack included: it
   leaves the stack of the one between, confines itself (in Python that takes a
   millisecond more) and goes on where the template was. */

#define _GNU_SOURCE
#include "listener.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
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

struct limit {
    uint64_t resource, soft, hard;
};

/* What all children of a template have in common, and what one of them gets. Laid out
   as Settings and Order in zygote/warm_python.py. */
struct settings {
    int32_t uid, gid, last_capability, listens;
    const char *cwd;
    uint64_t limit_count;
    const struct limit *limits;
    uint64_t program_length; /* instructions; 0: no filter */
    const void *program;
};

struct order {
    int32_t pidfd, streams[3], go, landlock, group_count;
    const int32_t *groups;
};

static const struct settings *settings;
static const struct order *order;
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
    if (meets_fault(step) || setns(order->pidfd, NAMESPACES))
        goto failed;
    step = "control_group";
    for (int i = 0; i < order->group_count; i++)
        if (meets_fault(step) || write(order->groups[i], "0", 1) != 1)
            goto failed;
    step = "cgroup_namespace";
    if (meets_fault(step) || (order->group_count && unshare(CLONE_NEWCGROUP)))
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
    const int sources[] = {order->streams[0], order->streams[1], order->streams[2], order->go};
    int high[4];
    for (int i = 0; i < 4; i++)
        if ((high[i] = fcntl(sources[i], F_DUPFD_CLOEXEC, HIGH_FD)) < 0)
            return -1;
    if (order->landlock >= 0 &&
        (landlock_ruleset = fcntl(order->landlock, F_DUPFD_CLOEXEC, HIGH_FD)) < 0)
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

static void confine(void)
{
    char report[256];
    go = order->go;
    for (unsigned i = 0; i < sizeof child_steps / sizeof *child_steps; i++) {
        step = child_steps[i].name;
        errno = 0;
        if (!meets_fault(step) && !child_steps[i].take())
            continue;
        int number = errno;
        int size = snprintf(report, sizeof report, "[\"%s\",%d,\"%s: %s\"]", step, number, step,
                            strerror(number));
        if (write(go, report, (size_t)size) < 0)
            _exit(2); /* PID 1 sees the end of the socket instead */
        _exit(1);
    }
}

/* The caller's children already go into the pid namespace. Returns 0 in the new process,
   which is confined then (or has reported the step that failed, and ended); in the caller
   1, or -errno with *failed_step set. */
int sandrun_fork_into(const struct settings *common, const struct order *own,
                      const char **failed_step)
{
    static uint8_t stack[STACK] __attribute__((aligned(16))); /* we have one thread of our own */
    sigset_t all, before;
    int status;
    settings = common;
    order = own;
    failed = 0;
    if (__builtin_setjmp(template_frame)) {
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        confine();
        return 0;
    }
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &before);
    pid_t pid = clone(between, stack + STACK, CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);
    int number = errno;
    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); /* the change of credentials cleared it for all of us */
    sigprocmask(SIG_SETMASK, &before, NULL);
    *failed_step = "clone";
    if (pid < 0)
        return -number;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    *failed_step = step;
    if (failed)
        return -failed;
    return WIFEXITED(status) && !WEXITSTATUS(status) ? 1 : -ECHILD;
}
