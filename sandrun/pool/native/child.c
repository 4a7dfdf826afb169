/* What becomes a job: from fork to exec. Runs as: root of the sandbox's user namespace at
   first, the job's uid at the end. The reference, with the reasons for the order, is
   zygote/child.py. */

#include "init.h"
#include "template.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    CANNOT_EXECUTE = 126,
    NOT_FOUND = 127,
    ORDER_MAX = 256 * 1024,
    KEPT_FROM = 4,
    READY_TIMEOUT_MS = 60 * 1000, /* while a job runs, nothing else ends such a wait */
};

int job_ruleset = -1;
static struct bytes child_filter; /* of the child that is being made */
static bool child_announces;      /* its farewell; then the filter has a listener */
static int child_go = -1;

/* ── steps ── */

static void attach(void)
{
    group_attach_self();
}

static void own_cgroup_namespace(void)
{
    must(unshare(CLONE_NEWCGROUP), "unshare(NEWCGROUP)");
}

static void own_session(void)
{
    must(setsid(), "setsid");
}

static void rlimits(void)
{
    for (size_t i = 0; i < plan.rlimit_count; i++) {
        struct rlimit limit = {plan.rlimits[i].soft, plan.rlimits[i].hard};
        must(setrlimit((__rlimit_resource_t)plan.rlimits[i].resource, &limit), "setrlimit");
    }
}

static void job_uid(void)
{
    must(setresgid(plan.gid, plan.gid, plan.gid), "setresgid");
    must(setresuid(plan.job_uid, plan.job_uid, plan.job_uid), "setresuid");
}

static void die_with_parent(void)
{
    must(prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), "prctl(PDEATHSIG)");
    must(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl(DUMPABLE)");
}

static void no_new_privileges(void)
{
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(NO_NEW_PRIVS)");
}

static void landlock(void)
{
    if (job_ruleset >= 0)
        landlock_restrict(job_ruleset);
}

static void signals(void)
{
    static const int ours[] = {SIGPIPE, SIGXFSZ, SIGCHLD, SIGINT, SIGTERM, SIGHUP};
    sigset_t none;
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
        signal(ours[i], SIG_DFL);
    sigemptyset(&none);
    must(sigprocmask(SIG_SETMASK, &none, NULL), "sigprocmask");
}

static void few_descriptors(void)
{
    must(syscall(SYS_close_range, KEPT_FROM, ~0U, 0), "close_range");
}

static void system_calls(void)
{
    if (child_announces)
        must(send_listener(GO_FD, load_filter_with_listener(child_filter)), "sendmsg(listener)");
    else
        load_filter(child_filter);
}

static const struct step parked_steps[] = {
    {"attach", attach},
    {"own_cgroup_namespace", own_cgroup_namespace},
    {"own_session", own_session},
    {"rlimits", rlimits},
    {"job_uid", job_uid},
    {"no_capabilities", no_capabilities},
    {"die_with_parent", die_with_parent},
    {"no_new_privileges", no_new_privileges},
    {"landlock", landlock},
    {"signals", signals},
    {"few_descriptors", few_descriptors},
    {"system_calls", system_calls},
};

static const struct step late_steps[] = {
    {"attach", attach},
    {"own_session", own_session},
    {"rlimits", rlimits},
    {"job_uid", job_uid},
    {"die_with_parent", die_with_parent},
    {"landlock", landlock},
    {"signals", signals},
    {"few_descriptors", few_descriptors},
    {"system_calls", system_calls},
};

/* ── making one ── */

struct ends {
    int in[2], out[2], err[2], go[2];
};

static struct ends open_ends(void)
{
    struct ends e;
    must(pipe2(e.in, O_CLOEXEC), "pipe2");
    must(pipe2(e.out, O_CLOEXEC), "pipe2");
    must(pipe2(e.err, O_CLOEXEC), "pipe2");
    must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, e.go), "socketpair");
    return e;
}

static struct process keep_ours(struct ends e, pid_t pid)
{
    close(e.in[0]);
    close(e.out[1]);
    close(e.err[1]);
    close(e.go[1]);
    return (struct process){pid, e.go[0], e.in[1], e.out[0], e.err[0], -1};
}

static void report_and_end(const char *step, int number, const char *text)
{
    static uint8_t buffer[2048];
    struct out o = {buffer, 0, sizeof buffer, false};
    char digits[16];
    snprintf(digits, sizeof digits, ",%d,", number);
    put_plain(&o, "[");
    put_json(&o, (struct bytes){(const uint8_t *)step, strlen(step)});
    put_plain(&o, digits);
    put_json(&o, (struct bytes){(const uint8_t *)text, strnlen(text, 500)});
    put_plain(&o, "]");
    if (write(child_go, buffer, o.size) < 0)
        _exit(1); /* PID 1 sees the end of the socket instead */
    _exit(1);
}

static void take_descriptors(struct ends e)
{
    int high[4] = {e.in[0], e.out[1], e.err[1], e.go[1]};
    for (int i = 0; i < 4; i++)
        move_high(&high[i]);
    for (int i = 0; i < 4; i++)
        must(i < GO_FD ? dup2(high[i], i) : dup3(high[i], i, O_CLOEXEC), "dup2");
    child_go = GO_FD;
}

static struct process fork_confined(const char *place, const struct step *steps, size_t count,
                                    struct bytes program, void (*then)(void))
{
    struct ends e = open_ends();
    pid_t pid = fork();
    if (pid)
        return keep_ours(e, (pid_t)must(pid, "fork"));
    child_go = e.go[1];
    child_filter = program;
    on_failure = report_and_end;
    current_step = "descriptors";
    if (job_ruleset >= 0)
        move_high(&job_ruleset); /* its number may be one of the first four */
    take_descriptors(e);
    take_steps(place, steps, count);
    current_step = "then";
    then();
    _exit(1);
}

/* ── what a confined process does ── */

static char **words_of(struct cursor *c, uint32_t count)
{
    char **words = calloc(count + 1, sizeof *words);
    if (!words)
        fail(ENOMEM, "no memory");
    for (uint32_t i = 0; i < count; i++)
        words[i] = text_of(take_text(c));
    return words;
}

static char **environment_of(struct cursor *c)
{
    uint32_t count = take_map(c);
    char **words = calloc(count + 1, sizeof *words);
    if (!words)
        fail(ENOMEM, "no memory");
    for (uint32_t i = 0; i < count; i++) {
        char *name = text_of(take_text(c)), *value = text_of(take_text(c));
        if (asprintf(&words[i], "%s=%s", name, value) < 0)
            fail(ENOMEM, "no memory");
    }
    return words;
}

static void wait_and_exec(void)
{
    static uint8_t datagram[ORDER_MAX];
    must(write(GO_FD, "+", 1), "write");
    ssize_t size = read(GO_FD, datagram, sizeof datagram);
    if (size <= 0)
        _exit(0); /* PID 1 does not need us */
    struct bytes go = {datagram, (size_t)size};
    close(GO_FD);
    rlim_t open_files = (rlim_t)int_field(go, "open_files");
    struct cursor argv_at = field(go, "argv"), env_at = field(go, "env");
    char *path = text_of(text_field(go, "path"));
    char **argv = words_of(&argv_at, take_array(&argv_at));
    char **env = environment_of(&env_at);
    if (open_files)
        must(setrlimit(RLIMIT_NOFILE, &(struct rlimit){open_files, open_files}), "setrlimit");
    if (!chdir(plan.work))
        execve(path, argv, env);
    int number = errno;
    dprintf(2, "sandrun: cannot run %s: %s\n", path, strerror(number));
    _exit(number == ENOENT ? NOT_FOUND : CANNOT_EXECUTE);
}

static struct bytes door; /* [path, argv, env] */

static void exec_door(void)
{
    struct cursor c = cursor_of(door);
    if (take_array(&c) != 3)
        fail(0, "the plan's warm interpreter is no triple");
    char *path = text_of(take_text(&c));
    char **argv = words_of(&c, take_array(&c));
    char **env = environment_of(&c);
    must(dup2(GO_FD, KEPT_FROM), "dup2"); /* without close-on-exec */
    must(dup2(KEPT_FROM, GO_FD), "dup2");
    close(KEPT_FROM);
    must(chdir(plan.work), "chdir");
    must(execve(path, argv, env), path);
}

/* ── the kinds of process ── */

#define COUNT(array) (sizeof(array) / sizeof *(array))

struct process park_exec(void)
{
    return fork_confined("parked", parked_steps, COUNT(parked_steps), plan.filter_default,
                         wait_and_exec);
}

struct process park_door(struct bytes warm)
{
    struct cursor c = cursor_of(plan.warm);
    for (uint32_t n = take_map(&c); n && !c.bad; n--) {
        bool found = same(take_text(&c), warm);
        struct bytes value = take_raw(&c);
        if (found && !c.bad) {
            door = value;
            child_announces = true;
            struct process process = fork_confined("parked", parked_steps, COUNT(parked_steps),
                                                   plan.filter_warm, exec_door);
            child_announces = false;
            return process;
        }
    }
    fail(0, "no such warm interpreter");
}

struct process start_late(struct bytes program)
{
    struct process process =
        fork_confined("late", late_steps, COUNT(late_steps), program, wait_and_exec);
    await_ready(&process);
    return process;
}

/* Ask a template (zygote/warm_python.py) for a child of its own in our namespaces. */
struct process park_from_template(int template)
{
    struct ends e = open_ends();
    int fds[MAX_FDS] = {(int)must(syscall(SYS_pidfd_open, getpid(), 0), "pidfd_open"), e.in[0],
                        e.out[1], e.err[1], e.go[1]};
    size_t attach_count = group_attach_fds(fds + 5, MAX_FDS - 6), count = 5 + attach_count;
    char text[512] = FORK_REQUEST;
    for (size_t i = 0; i < attach_count; i++)
        strcat(text, FORK_GROUP);
    if (job_ruleset >= 0) {
        strcat(text, FORK_LANDLOCK);
        fds[count++] = job_ruleset;
    }
    strcat(text, FORK_END);
    struct iovec part = {text, strlen(text)};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(MAX_FDS * sizeof(int))];
    } control = {0};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = CMSG_SPACE(count * sizeof(int))};
    control.head = (struct cmsghdr){CMSG_LEN(count * sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
    memcpy(CMSG_DATA(&control.head), fds, count * sizeof(int));
    must(sendmsg(template, &message, MSG_NOSIGNAL), "sendmsg(template)");
    close(template);
    close(fds[0]);
    return keep_ours(e, 0);
}

static _Noreturn void fail_as_it_says(char *report)
{
    /* ["step", errno, "text"], written by us or by warm_python.py */
    static char step[64], text[600];
    int number = 0;
    char *quote = strchr(report, '"'), *end = quote ? strchr(quote + 1, '"') : NULL;
    if (!end || end - quote - 1 >= (ptrdiff_t)sizeof step)
        fail(0, "junk from the parked process");
    memcpy(step, quote + 1, (size_t)(end - quote - 1));
    number = atoi(end + 1 + strspn(end + 1, ", "));
    char *from = strchr(end + 1, '"'), *to = from ? strrchr(from + 1, '"') : NULL;
    if (to)
        snprintf(text, sizeof text, "%.*s", (int)(to - from - 1), from + 1);
    current_step = step;
    fail(number, "%s", text);
}

/* One message of a process that is getting ready; a descriptor that came along. */
static ssize_t hear_parked(const struct process *process, char *report, size_t room, int *fd)
{
    struct iovec part = {report, room};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control};
    if (!poll(&(struct pollfd){.fd = process->go, .events = POLLIN}, 1, READY_TIMEOUT_MS)) {
        current_step = "park";
        fail(ETIMEDOUT, "the process is not ready");
    }
    ssize_t size = must(recvmsg(process->go, &message, MSG_CMSG_CLOEXEC), "recvmsg");
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    *fd = -1;
    if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS &&
        head->cmsg_len == CMSG_LEN(sizeof(int)))
        memcpy(fd, CMSG_DATA(head), sizeof *fd);
    return size;
}

void await_ready(struct process *process)
{
    char report[4096];
    int fd;
    ssize_t size = hear_parked(process, report, sizeof report - 1, &fd);
    if (size == 1 && report[0] == 'L' && fd >= 0 && process->listener < 0) {
        process->listener = fd;
        size = hear_parked(process, report, sizeof report - 1, &fd);
    }
    if (fd >= 0) {
        current_step = "park";
        fail(0, "a descriptor that nobody waits for");
    }
    report[size] = 0;
    if (!size) {
        current_step = "park";
        fail(0, "the process died before it was ready");
    }
    if (report[0] != '+')
        fail_as_it_says(report);
    if (size > 1) /* a template's child: we learn its pid from itself */
        process->pid = (pid_t)atoi(report + 1);
    if (process->pid <= 1)
        fail(0, "the parked process has no pid");
}

void forget_process(struct process *process)
{
    int *fds[] = {&process->go, &process->stdin_fd, &process->stdout_fd, &process->stderr_fd,
                  &process->listener};
    for (size_t i = 0; i < COUNT(fds); i++) {
        if (*fds[i] >= 0)
            close(*fds[i]);
        *fds[i] = -1;
    }
    process->pid = 0;
}
