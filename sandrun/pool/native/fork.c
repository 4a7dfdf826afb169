/* A fork that lands in a sandbox. Runs as: a template, see zygote/warm_python.py. I/O.

   The child must be an orphan of the sandbox's pid namespace, so that its PID 1 reaps
   it: somebody has to stand between, enter the other namespaces, fork and end. That one
   shares the template's memory (CLONE_VM) while the template sleeps (CLONE_VFORK), so
   an interpreter's page tables are copied once and not twice: 2 ms of 6.5 for an empty
   script, more with large modules.

   The second child has a copy of all memory, the template's sleeping stack included: it
   leaves the stack of the one between and goes on where the template was. */

#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { STACK = 256 * 1024 }; /* at-fork handlers run on it */
enum { NAMESPACES = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS };

struct request {
    int pidfd, count, last_capability;
    const int *groups;
    const char *step; /* the one that failed */
    int failed;       /* its errno */
};

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
    struct request *r = argument;
    r->step = "namespaces";
    if (meets_fault(r->step) || setns(r->pidfd, NAMESPACES))
        goto failed;
    r->step = "control_group";
    for (int i = 0; i < r->count; i++)
        if (meets_fault(r->step) || write(r->groups[i], "0", 1) != 1)
            goto failed;
    r->step = "cgroup_namespace";
    if (meets_fault(r->step) || (r->count && unshare(CLONE_NEWCGROUP)))
        goto failed;
    r->step = "bounding_set";
    for (int capability = 0; capability <= r->last_capability; capability++)
        if (meets_fault(r->step) || prctl(PR_CAPBSET_DROP, capability, 0, 0, 0))
            goto failed;
    r->step = "fork";
    /* the C library's: its at-fork handlers must run */
    pid_t pid = meets_fault(r->step) ? -1 : fork();
    if (!pid)
        __builtin_longjmp(template_frame, 1);
    if (pid > 0)
        _exit(0);
failed:
    r->failed = errno ? errno : EIO;
    _exit(1);
}

/* The caller's children already go into the pid namespace. Returns 0 in the new process;
   in the caller 1, or -errno with *step set. Capabilities up to the last one leave the
   bounding set on the way, which takes 0.3 ms in Python. */
int sandrun_fork_into(int pidfd, const int *groups, int count, int last_capability,
                      const char **step)
{
    static uint8_t stack[STACK] __attribute__((aligned(16))); /* we have one thread of our own */
    struct request request = {pidfd, count, last_capability, groups, "clone", 0};
    struct request *volatile r = &request;
    sigset_t all, before;
    int status;
    if (__builtin_setjmp(template_frame)) {
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        return 0;
    }
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &before);
    pid_t pid = clone(between, stack + STACK, CLONE_VM | CLONE_VFORK | SIGCHLD, r);
    int number = errno;
    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); /* the change of credentials cleared it for all of us */
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (pid < 0) {
        *step = "clone";
        return -number;
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    *step = r->step;
    if (r->failed)
        return -r->failed;
    return WIFEXITED(status) && !WEXITSTATUS(status) ? 1 : -ECHILD;
}
