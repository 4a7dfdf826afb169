/* One job, from Dispatch to Acknowledge. Runs as: PID 1 of the sandbox, confined. The
   reference is zygote/serve.py. One poll over the http socket, the job's pipes, SIGCHLD
   and the memory event, with a deadline computed from the limits. */

#include "init.h"

#include <fcntl.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    SLOT_STARTED,
    SLOT_FINAL,
    UNPACK_TIMEOUT_S = 60, /* 100 MB of gzip take about a second */
    COLLECT_TIMEOUT_S = 60,
    ORPHAN_MS = 5000,
    PLACED_ROOM = 64 * 1024, /* beside the spec: what is placed came in one message with it */
    REPORT_MAX = 1024 * 1024, /* of a Python child */
    EVIDENCE_MAX = 600,
    CALM_READS = 128, /* in a second: so much is told of at once */
    READS_PER_STEP = 128, /* of up to 64 KiB: 400 MB/s, and a flood of single bytes is 6400/s */
};

static const double spent_every_s = 1.0; /* how often http hears what a job has used */
static const double cpu_check_min_s = 0.01; /* how late a CPU limit may bite, per CPU */
static const double look_s = 0.25; /* how often connections are counted, or, if many, */
static const double look_again_s = 0.1;
static const double look_cost = 20; /* but no more than a twentieth of the time is spent on it */
static const double oom_counted_s = 0.02; /* v1 tells of an OOM kill before it counts it */
/* Output of a job that writes much is told of, and read, in steps: single bytes would
   otherwise keep http busy, which serves everybody, for four times as long as it runs itself. */
static const double step_s = 0.02;
static const struct bytes nothing = {(const uint8_t *)"", 0};

struct outcome {
    bool exited, signaled, cancelled, timed_out, cpu_exceeded;
    bool parting; /* it has ended and the kernel is not done with it: see hear_farewell() */
    int exit_code, signal;
    int64_t uncharged; /* bytes, if they ended it */
    double wall_time_s;
};

struct verdict { /* of a job that ended before its entrypoint ran */
    const char *reason;
    char evidence[EVIDENCE_MAX], remedy[EVIDENCE_MAX];
};

struct spec {
    struct bytes raw, entrypoint, interpreter, args, env, input, outputs, requirements;
    struct bytes environment, profile, build;
    bool fail_on_output_limit;
    struct limits limits;
};

struct outputs {
    int64_t index_offset, index_size, bytes;
    bool over_limit;
};

static uint8_t received[MESSAGE_MAX + 1], sent[MESSAGE_MAX];
static struct {
    struct spec spec;
    double started, cpu_before, step_end, second_end;
    int reads, second_reads;
    bool cancelled, wants_room, was_calm;
    int64_t nudged, storage_bytes, parked_tasks, snapshot_size;
    struct verdict verdict;
    bool over;
    pid_t watched;
    int watched_status;
    double watched_cpu_s;
    bool watched_ended, parked_ended, has_parked;
} job;

/* ── towards http ── */

static bool send_now(struct bytes message)
{
    if (send(FD_HTTP, message.at, message.size, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
        return true;
    if (errno == EAGAIN || errno == ENOBUFS)
        return false;
    _exit(0); /* http is gone: so are we, and with us everything inside */
}

/* Send, waiting for room if need be. First into the journal: the http that reads it may
   be killed before it acts. */
static void send_word(int slot, const struct out *o)
{
    struct bytes message = {o->buffer, o->size};
    if (o->full)
        fail(EMSGSIZE, "a message is too large");
    journal_write(slot, message);
    while (!send_now(message))
        poll(&(struct pollfd){.fd = FD_HTTP, .events = POLLOUT}, 1, -1);
}

static struct out new_message(const char *type, uint32_t fields)
{
    struct out o = {sent, 0, sizeof sent, false};
    put_map(&o, fields + 1);
    put_str(&o, "type");
    put_str(&o, type);
    return o;
}

static void send_started(bool build)
{
    struct out o = new_message("Started", 2);
    put_str(&o, "spec");
    put_raw(&o, job.spec.raw);
    put_str(&o, "build");
    put_bool(&o, build);
    send_word(SLOT_STARTED, &o);
}

/* Invalid UTF-8 would make the whole message unreadable. */
static struct bytes as_utf8(struct bytes text)
{
    uint8_t *copy = malloc(text.size + 1);
    if (!copy)
        fail(ENOMEM, "no memory");
    for (size_t i = 0; i < text.size;) {
        uint8_t c = text.at[i];
        size_t size = c < 0x80 ? 1 : c >= 0xc2 && c < 0xe0 ? 2 : c >= 0xe0 && c < 0xf0 ? 3
                    : c >= 0xf0 && c < 0xf5 ? 4 : 0;
        bool good = size && i + size <= text.size;
        for (size_t n = 1; good && n < size; n++)
            good = (text.at[i + n] & 0xc0) == 0x80;
        if (good && size > 2) { /* overlong forms, surrogates, beyond U+10FFFF */
            uint8_t next = text.at[i + 1];
            good = !(c == 0xe0 && next < 0xa0) && !(c == 0xed && next > 0x9f) &&
                   !(c == 0xf0 && next < 0x90) && !(c == 0xf4 && next > 0x8f);
        }
        if (good)
            memcpy(copy + i, text.at + i, size);
        else
            copy[i] = '?';
        i += good ? size : 1;
    }
    return (struct bytes){copy, text.size};
}

static void nudge(void)
{
    uint8_t buffer[64];
    struct out o = {buffer, 0, sizeof buffer, false};
    if (log_end() == job.nudged || now_s() < job.step_end)
        return;
    job.step_end = now_s() + (job.was_calm && job.second_reads <= CALM_READS ? 0 : step_s);
    put_map(&o, 2);
    put_str(&o, "type");
    put_str(&o, "LogGrew");
    put_str(&o, "end");
    put_int(&o, log_end());
    if (send_now((struct bytes){buffer, o.size}))
        job.nudged = log_end();
    else
        job.wants_room = true; /* poll says when there is some */
}

/* How much it writes: in this step, in this second, in the one before. */
static void count_reads(double now)
{
    if (now >= job.step_end)
        job.reads = 0;
    if (now >= job.second_end) {
        job.was_calm = job.second_reads <= CALM_READS;
        job.second_reads = 0;
        job.second_end = now + 1;
    }
}

/* Best effort: the Result tells the whole. */
static void tell_spent(void)
{
    uint8_t buffer[64];
    struct out o = {buffer, 0, sizeof buffer, false};
    put_map(&o, 2);
    put_str(&o, "type");
    put_str(&o, "Spent");
    put_str(&o, "cpu_seconds");
    put_number(&o, group_cpu_seconds() - job.cpu_before);
    send_now((struct bytes){buffer, o.size});
}

enum heard { NOTHING, DISPATCH, CANCEL, ACKNOWLEDGE };

/* One message, if there is one. `upload`: the descriptor that came along, or -1. */
static enum heard hear(struct bytes *message, int *upload)
{
    struct iovec part = {received, sizeof received};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(MAX_FDS * sizeof(int))];
    } control;
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                            .msg_controllen = sizeof control};
    ssize_t size = recvmsg(FD_HTTP, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return NOTHING;
    if (size <= 0 || header.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
        _exit(0); /* http is gone, or broken */
    int kept = -1;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&header); c; c = CMSG_NXTHDR(&header, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if (kept < 0 && upload)
                kept = fd;
            else
                close(fd);
        }
    }
    *message = (struct bytes){received, (size_t)size};
    struct bytes type = text_field(*message, "type");
    if (is_word(type, "Dispatch") && upload) {
        *upload = kept;
        return DISPATCH;
    }
    if (kept >= 0)
        close(kept);
    if (is_word(type, "Cancel"))
        return CANCEL;
    if (is_word(type, "Acknowledge"))
        return ACKNOWLEDGE;
    _exit(0); /* junk: the peer is broken or taken over */
}

/* ── processes ── */

static double own_cpu_s(void)
{
    struct timespec spent;
    must(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &spent), "clock_gettime");
    return (double)spent.tv_sec + (double)spent.tv_nsec / 1e9;
}

static double seconds(struct timeval time)
{
    return (double)time.tv_sec + (double)time.tv_usec / 1e6;
}

static void note_end(pid_t pid, int status, const struct rusage *used)
{
    if (pid == job.watched) {
        job.watched_status = status;
        job.watched_cpu_s = seconds(used->ru_utime) + seconds(used->ru_stime);
        job.watched_ended = true;
    }
    if (job.has_parked && pid == parked.pid)
        job.parked_ended = true;
}

static void reap(bool block)
{
    struct signalfd_siginfo signals[16];
    struct rusage used;
    int status;
    pid_t pid;
    while (read(signal_fd, signals, sizeof signals) > 0)
        ;
    while ((pid = wait4(-1, &status, block ? 0 : WNOHANG, &used)) > 0)
        note_end(pid, status, &used);
}

/* kill(-1) from PID 1 reaches all others in one step under the kernel's task lock, so
   nothing can fork its way out. */
static void kill_everything(void)
{
    kill(-1, SIGKILL);
    reap(true);
}

static void dismiss_parked(void)
{
    if (!job.has_parked)
        return;
    kill(parked.pid, SIGKILL);
    forget_process(&parked);
    job.has_parked = false;
}

/* See that nothing of the process is left, and spare the parked one if we can. If
   anything else is in the group, or hides, everything goes and the start is cold. */
static void end_of(pid_t pid)
{
    struct rusage used;
    int status;
    pid_t ended;
    if (!job.has_parked) {
        kill_everything();
        /* What the assistant forked is our child only when its parent has ended. */
        while (!job.watched_ended && poll(&(struct pollfd){signal_fd, POLLIN, 0}, 1, ORPHAN_MS) > 0)
            reap(false);
        return;
    }
    kill(pid, SIGKILL);
    while (!job.watched_ended && (ended = wait4(-1, &status, 0, &used)) > 0)
        note_end(ended, status, &used);
    reap(false);
    /* A build that killed the parked process may have put another in its place. */
    if (job.parked_ended || group_processes_now() != job.parked_tasks) {
        kill_everything();
        forget_process(&parked);
        job.has_parked = false;
    }
}

struct sink {
    bool to_log;
    bool in_group; /* whoever writes: memory that ran out before is no news to others */
    double started;
    uint8_t *report; /* of a Python child: REPORT_MAX bytes */
    size_t size;
};

static void take_output(struct sink *sink, int stream, struct bytes data)
{
    if (sink->to_log) {
        log_write(stream, data, now_s() - sink->started);
    } else if (stream == STDOUT && data.size <= REPORT_MAX - sink->size) {
        memcpy(sink->report + sink->size, data.at, data.size); /* more is no report */
        sink->size += data.size;
    }
}

/* One step at a time while the job runs, so that a flood cannot keep us from its
   deadline; to the end when every writer is dead. */
static void drain(int *fd, int stream, struct sink *sink, bool to_the_end)
{
    static uint8_t data[MAX_DATA];
    while (*fd >= 0) {
        ssize_t size = read(*fd, data, sizeof data);
        if (size > 0)
            take_output(sink, stream, (struct bytes){data, (size_t)size});
        else if (!size || errno != EAGAIN || to_the_end) {
            close(*fd);
            *fd = -1;
        }
        if (!to_the_end)
            return;
    }
}

static void feed_input(int *fd, struct bytes *input, short happened)
{
    ssize_t done = -1;
    if (!(happened & (POLLERR | POLLHUP))) {
        done = write(*fd, input->at, input->size < MAX_DATA ? input->size : MAX_DATA);
        if (done < 0 && errno == EAGAIN)
            return;
    }
    if (done > 0) {
        input->at += done;
        input->size -= (size_t)done;
    }
    if (done <= 0 || !input->size) {
        close(*fd);
        *fd = -1;
    }
}

static bool out_of_memory(int oom_fd)
{
    uint64_t count;
    if (group_oom_mask() == POLLIN && read(oom_fd, &count, sizeof count) < 0 && errno != EAGAIN)
        fail(errno, "the memory event cannot be read");
    return group_oom_kills() > 0;
}

static bool http_says_stop(short happened)
{
    struct bytes message;
    if (happened & POLLOUT)
        job.wants_room = false;
    if (!(happened & (POLLIN | POLLHUP | POLLERR)) || hear(&message, NULL) != CANCEL)
        return false;
    return job.cancelled = true;
}

/* Whether a process has no other beside it in the group, threads of its own apart. */
static bool is_alone(pid_t pid)
{
    int64_t tasks = group_processes_now();
    char path[64], text[1024], *behind;
    long threads;
    if (tasks == 1)
        return true;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    close(fd);
    if (size < 0)
        return false;
    text[size] = 0;
    behind = strrchr(text, ')'); /* the name may hold anything */
    /* state ppid pgrp session tty tpgid flags, 4 faults, 4 times, priority nice threads */
    return behind && tasks > 0 &&
           sscanf(behind + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d "
                              "%*d %ld", &threads) == 1 && threads == tasks;
}

/* A warm interpreter calls exit_group with nothing left to do (FAREWELL in ../seccomp.py)
   and waits in the kernel for our answer, which never comes: we know its status, and kill
   it. It cannot come back to its program any more, whatever it is, so its job is over;
   that the kernel then frees its memory, which takes longer than a small script, nobody
   has to wait for. Not if there are others, which may do more until they are dead, nor if
   it is another process that says this: the call goes on as if nobody listened. */
static bool hear_farewell(const struct process *process, struct outcome *outcome)
{
    struct seccomp_notif notice = {0};
    if (ioctl(process->listener, SECCOMP_IOCTL_NOTIF_RECV, &notice) < 0) {
        if (errno != ENOENT && errno != EINTR)
            fail(errno, "a farewell cannot be heard: %s", strerror(errno));
        return false; /* killed while it waited: SIGCHLD tells the rest */
    }
    if ((pid_t)notice.pid == process->pid && is_alone(process->pid)) {
        outcome->exit_code = (int)(notice.data.args[0] & 0xff);
        return outcome->exited = outcome->parting = true;
    }
    struct seccomp_notif_resp answer = {.id = notice.id,
                                        .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};
    if (ioctl(process->listener, SECCOMP_IOCTL_NOTIF_SEND, &answer) < 0 && errno != ENOENT)
        fail(errno, "a farewell cannot be answered: %s", strerror(errno));
    return false;
}

/* Feed and drain the process until it ends, or a limit ends everything. */
static struct outcome supervise(struct process process, struct sink *sink, double timeout_s,
                                double cpu_seconds, struct bytes input)
{
    struct outcome outcome = {0};
    double start = now_s(), deadline = start + timeout_s, now;
    double cpu_end = group_cpu_seconds() + cpu_seconds;
    double cpus = (double)sysconf(_SC_NPROCESSORS_ONLN);
    double step = cpu_seconds / cpus > cpu_check_min_s ? cpu_seconds / cpus : cpu_check_min_s;
    double cpu_check = start + step, report = start + spent_every_s, look = start + look_s;
    int oom_fd = sink->in_group ? group_oom_fd() : -1;
    bool ended = false;
    job.watched = process.pid;
    job.watched_ended = false;
    job.watched_cpu_s = 0;
    must(fcntl(process.stdout_fd, F_SETFL, O_NONBLOCK), "fcntl");
    must(fcntl(process.stderr_fd, F_SETFL, O_NONBLOCK), "fcntl");
    must(fcntl(process.stdin_fd, F_SETFL, O_NONBLOCK), "fcntl");
    if (!input.size) {
        close(process.stdin_fd);
        process.stdin_fd = -1;
    }
    /* It may have ended before we began to look. */
    reap(false);
    ended = job.watched_ended;
    while (!ended) {
        enum { HTTP, SIGNALS, OUT, ERR, IN, OOM, FAREWELL, ALL };
        count_reads(now_s());
        bool rests = job.reads >= READS_PER_STEP;
        struct pollfd polled[ALL] = {
            [HTTP] = {FD_HTTP, (short)(POLLIN | (job.wants_room ? POLLOUT : 0)), 0},
            [SIGNALS] = {signal_fd, POLLIN, 0},
            [OUT] = {rests ? -1 : process.stdout_fd, POLLIN, 0},
            [ERR] = {rests ? -1 : process.stderr_fd, POLLIN, 0},
            [IN] = {process.stdin_fd, POLLOUT, 0},
            [OOM] = {oom_fd, group_oom_mask(), 0},
            [FAREWELL] = {process.listener, POLLIN, 0},
        };
        double next = deadline < cpu_check ? deadline : cpu_check;
        next = next < report ? next : report;
        next = next < look ? next : look;
        if ((rests || (log_end() != job.nudged && !job.wants_room)) && job.step_end < next)
            next = job.step_end;
        double wait_s = next - now_s();
        wait_s = wait_s < 0 ? 0 : wait_s > 1e6 ? 1e6 : wait_s;
        int count = poll(polled, ALL, (int)(wait_s * 1000 + 1));
        if (count > 0) {
            int reads = !!polled[OUT].revents + !!polled[ERR].revents;
            job.reads += reads;
            job.second_reads += reads;
            if (polled[OUT].revents)
                drain(&process.stdout_fd, STDOUT, sink, false);
            if (polled[ERR].revents)
                drain(&process.stderr_fd, STDERR, sink, false);
            if (polled[IN].revents)
                feed_input(&process.stdin_fd, &input, polled[IN].revents);
            if (polled[OOM].revents) {
                ended = out_of_memory(oom_fd) || ended;
                report = now_s() + oom_counted_s;
            }
            if (polled[HTTP].revents)
                ended = http_says_stop(polled[HTTP].revents) || ended;
            if (polled[SIGNALS].revents) {
                reap(false);
                ended = job.watched_ended || ended;
            }
            if (!ended && polled[FAREWELL].revents & POLLIN)
                ended = hear_farewell(&process, &outcome);
        }
        now = now_s();
        if (!ended && now >= deadline)
            outcome.timed_out = ended = true;
        if (!ended && now >= cpu_check) {
            double left = cpu_end - group_cpu_seconds();
            if (left <= 0)
                outcome.cpu_exceeded = ended = true;
            cpu_check = now + (left / cpus > cpu_check_min_s ? left / cpus : cpu_check_min_s);
        }
        if (!ended && now >= look) {
            bool many;
            double spent = own_cpu_s();
            int64_t held = sink->in_group ? uncharged_bytes(&many) : (many = false);
            double rest = (own_cpu_s() - spent) * look_cost, usual = many ? look_again_s : look_s;
            if (held > UNCHARGED_MOST) {
                outcome.uncharged = held;
                ended = true;
            }
            look = now_s() + (rest > usual ? rest : usual);
        }
        if (!ended && now >= report) {
            ended = oom_fd >= 0 && group_oom_kills() > 0;
            tell_spent();
            report = now + spent_every_s;
        }
        nudge();
    }
    outcome.wall_time_s = now_s() - start;
    outcome.cancelled = job.cancelled;
    if (outcome.parting)
        kill(-1, SIGKILL);
    else
        end_of(process.pid);
    drain(&process.stdout_fd, STDOUT, sink, true);
    drain(&process.stderr_fd, STDERR, sink, true);
    if (process.stdin_fd >= 0)
        close(process.stdin_fd);
    if (!outcome.parting && !job.watched_ended)
        fail(0, "the end of the process was not seen");
    if (!outcome.parting && WIFSIGNALED(job.watched_status)) {
        outcome.signaled = true;
        outcome.signal = WTERMSIG(job.watched_status);
    } else if (!outcome.parting) {
        outcome.exited = true;
        outcome.exit_code = WEXITSTATUS(job.watched_status);
    }
    job.watched = 0;
    job.step_end = 0; /* what is left to tell is told at once */
    nudge();
    return outcome;
}

/* ── Python children, see ../assist.py ── */

static struct process assisted(char operation, int upload)
{
    int in[2], out[2], err[2], go[2], fds[MAX_FDS];
    size_t attach = 0, count = 0;
    bool walled = job_ruleset >= 0;
    must(pipe2(in, O_CLOEXEC), "pipe2");
    must(pipe2(out, O_CLOEXEC), "pipe2");
    must(pipe2(err, O_CLOEXEC), "pipe2");
    must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, go), "socketpair");
    const int named[] = {self_fd, in[0], out[1], err[1], go[1], work_fd, FD_OUTPUTS};
    memcpy(fds, named, sizeof named);
    count = sizeof named / sizeof *named;
    if (upload >= 0)
        fds[count++] = upload;
    if (walled)
        fds[count++] = job_ruleset;
    if (operation == 'U') /* what it unpacks is the job's; collecting comes after the job */
        attach = group_attach_fds(fds + count, MAX_FDS - count);
    count += attach;
    uint8_t text[] = {(uint8_t)operation, walled, (uint8_t)attach};
    struct iovec part = {text, sizeof text};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(MAX_FDS * sizeof(int))];
    } control = {0};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = CMSG_SPACE(count * sizeof(int))};
    control.head = (struct cmsghdr){CMSG_LEN(count * sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
    memcpy(CMSG_DATA(&control.head), fds, count * sizeof(int));
    must(sendmsg(FD_ASSIST, &message, MSG_NOSIGNAL | MSG_DONTWAIT), "sendmsg(assist)");
    close(in[0]);
    close(out[1]);
    close(err[1]);
    close(go[1]);
    struct process process = {0, go[0], in[1], out[0], err[0], -1};
    await_ready(&process);
    return process;
}

/* Let it work on the request; its report, as msgpack, in memory of our own. */
static struct bytes assist(char operation, int upload, struct bytes request, double timeout_s,
                           struct outcome *outcome)
{
    struct process process = assisted(operation, upload);
    struct sink sink = {.in_group = operation == 'U', .report = malloc(REPORT_MAX)};
    if (!sink.report)
        fail(ENOMEM, "no memory");
    must(send(process.go, request.at, request.size, MSG_NOSIGNAL), "send(assist)");
    close(process.go);
    *outcome = supervise(process, &sink, timeout_s, job.spec.limits.cpu_seconds, nothing);
    return (struct bytes){sink.report, sink.size};
}

/* ── before the entrypoint ── */

static void end_with(const char *reason, const char *remedy, const char *evidence, ...)
    __attribute__((format(printf, 3, 4)));

static void end_with(const char *reason, const char *remedy, const char *evidence, ...)
{
    va_list arguments;
    va_start(arguments, evidence);
    vsnprintf(job.verdict.evidence, EVIDENCE_MAX, evidence, arguments);
    va_end(arguments);
    snprintf(job.verdict.remedy, EVIDENCE_MAX, "%s", remedy);
    job.verdict.reason = reason;
    job.over = true;
}

static void refuse_upload(const char *evidence)
{
    end_with("upload_error", "mend the upload and submit again", "%s", evidence);
}

static bool read_spec(struct bytes raw, struct spec *spec)
{
    struct cursor limits_at = field(raw, "limits"), args_at = field(raw, "args");
    struct cursor env_at = field(raw, "env"), outputs_at = field(raw, "outputs");
    struct cursor strict_at = field(raw, "fail_on_output_limit");
    *spec = (struct spec){
        .raw = raw,
        .entrypoint = text_field(raw, "entrypoint"),
        .interpreter = text_field(raw, "interpreter"),
        .input = text_field(raw, "stdin"),
        .requirements = text_field(raw, "requirements"),
        .environment = text_field(raw, "environment"),
        .profile = text_field(raw, "profile"),
        .build = text_field(raw, "build"),
        .args = take_raw(&args_at),
        .env = take_raw(&env_at),
        .outputs = take_raw(&outputs_at),
        .fail_on_output_limit = take_bool(&strict_at),
        .limits = read_limits(take_raw(&limits_at)),
    };
    return !limits_at.bad && !args_at.bad && !env_at.bad && !outputs_at.bad && !strict_at.bad;
}

/* http may have been taken over: it gets no more than the operator's maxima. */
static bool within_maxima(const struct limits *l)
{
    const struct limits *most = &plan.maxima;
    const struct {
        const char *name;
        double value, maximum;
    } all[LIMITS] = {
        {"timeout_s", l->timeout_s, most->timeout_s},
        {"cpu_seconds", l->cpu_seconds, most->cpu_seconds},
        {"memory_bytes", (double)l->memory_bytes, (double)most->memory_bytes},
        {"storage_bytes", (double)l->storage_bytes, (double)most->storage_bytes},
        {"processes", (double)l->processes, (double)most->processes},
        {"open_files", (double)l->open_files, (double)most->open_files},
        {"log_bytes", (double)l->log_bytes, (double)most->log_bytes},
        {"output_bytes", (double)l->output_bytes, (double)most->output_bytes},
    };
    for (size_t i = 0; i < LIMITS; i++)
        if (!(all[i].value > 0 && all[i].value <= all[i].maximum)) { /* not a number: refused */
            end_with("server_fault", "", "limits: %s is over the maximum", all[i].name);
            return false;
        }
    return true;
}

static void await_dismissal(void)
{
    for (;;) {
        struct bytes message;
        struct pollfd polled[] = {{FD_HTTP, POLLIN, 0}, {signal_fd, POLLIN, 0}};
        poll(polled, 2, -1);
        if (polled[1].revents)
            reap(false);
        if (polled[0].revents && hear(&message, NULL) == ACKNOWLEDGE)
            return;
    }
}

static _Noreturn void go_elsewhere(struct bytes spec, struct bytes requirements)
{
    struct out o = new_message("Elsewhere", 2);
    put_str(&o, "spec");
    put_raw(&o, spec);
    put_str(&o, "requirements");
    put_text(&o, as_utf8(requirements));
    send_word(SLOT_FINAL, &o);
    await_dismissal();
    _exit(0);
}

/* Installed requirements make an environment of their own; this may be a named one. */
static void need_installed(struct bytes spec, struct bytes requirements)
{
    struct cursor c = cursor_of(plan.known_environments);
    if (!requirements.size)
        return;
    for (uint32_t n = take_array(&c); n && !c.bad; n--)
        if (same(take_text(&c), plan.environment))
            go_elsewhere(spec, requirements);
}

static void place_files(struct bytes dispatch, bool is_whole)
{
    struct cursor c = field(dispatch, "files");
    struct bytes requirements = nothing;
    for (uint32_t n = take_array(&c); n && !c.bad; n--) {
        struct bytes file = take_raw(&c);
        struct bytes path = text_field(file, "path"), data = text_field(file, "data");
        struct cursor executable = field(file, "executable");
        char reason[EVIDENCE_MAX] = "";
        place_file(path, data, take_bool(&executable), reason, sizeof reason);
        if (*reason) {
            refuse_upload(reason);
            return;
        }
        if (job.spec.requirements.size && same(path, job.spec.requirements))
            requirements = data;
    }
    if (c.bad)
        fail(0, "the files of the dispatch are damaged");
    if (is_whole)
        need_installed(job.spec.raw, requirements);
}

static void unpack(struct bytes dispatch, int upload)
{
    struct outcome outcome;
    struct bytes report = assist('U', upload, dispatch, UNPACK_TIMEOUT_S, &outcome);
    close(upload);
    if (outcome.cancelled) {
        end_with("cancelled", "", "while unpacking");
        return;
    }
    if (group_oom_kills()) {
        refuse_upload("unpacking took more memory than the job may use");
        return;
    }
    if (outcome.timed_out || outcome.cpu_exceeded) {
        refuse_upload("unpacking took too long");
        return;
    }
    struct cursor answer_at = field(report, "answer");
    struct bytes answer = take_raw(&answer_at), type = text_field(answer, "type");
    if (is_word(type, "Refused")) {
        char *reason = text_of(text_field(answer, "reason"));
        refuse_upload(reason);
        free(reason);
        return;
    }
    struct cursor spec_at = field(answer, "spec");
    struct bytes raw = take_raw(&spec_at);
    struct spec spec;
    if (!is_word(type, "Unpacked") || spec_at.bad || !read_spec(raw, &spec)) {
        refuse_upload("the archive could not be unpacked");
        return;
    }
    if (!within_maxima(&spec.limits))
        return;
    struct bytes requirements = text_field(answer, "requirements");
    if (!same(spec.environment, plan.environment) ||
        spec.limits.storage_bytes != job.spec.limits.storage_bytes)
        go_elsewhere(raw, requirements);
    need_installed(raw, requirements);
    job.spec = spec;
    job.snapshot_size = int_field(report, "snapshot");
}

static void set_limits(void)
{
    const struct limits *l = &job.spec.limits;
    bool refused = false;
    if (l->memory_bytes != plan.defaults.memory_bytes)
        group_set_memory(l->memory_bytes, &refused);
    if (refused)
        end_with("out_of_memory", "raise memory_mb", "%lld bytes were in use before the job began",
                 (long long)group_memory_now());
    if (l->processes != plan.defaults.processes)
        group_set_processes(l->processes);
}

/* ── running ── */

static struct cursor in_map(struct bytes map, struct bytes key)
{
    struct cursor c = cursor_of(map);
    for (uint32_t n = take_map(&c); n && !c.bad; n--) {
        if (same(take_text(&c), key) && !c.bad)
            return c;
        take_raw(&c);
    }
    c.bad = true;
    return c;
}

/* The plan's environment with the job's over it: one call per variable. */
static uint32_t each_variable(void (*put)(struct out *, struct bytes, struct bytes, bool),
                              struct out *o)
{
    uint32_t count = 0;
    struct cursor c = cursor_of(plan.env);
    for (uint32_t n = take_map(&c); n && !c.bad; n--) {
        struct bytes name = take_text(&c), value = take_text(&c);
        struct cursor own = in_map(job.spec.env, name);
        if (!own.bad)
            value = take_text(&own);
        put(o, name, value, count++ == 0);
    }
    c = cursor_of(job.spec.env);
    for (uint32_t n = take_map(&c); n && !c.bad; n--) {
        struct bytes name = take_text(&c), value = take_text(&c);
        struct cursor known = in_map(plan.env, name);
        if (known.bad && !c.bad)
            put(o, name, value, count++ == 0);
    }
    if (c.bad)
        fail(0, "the environment is damaged");
    return count;
}

static void count_only(struct out *o, struct bytes name, struct bytes value, bool is_first)
{
    (void)o, (void)name, (void)value, (void)is_first;
}

static void as_msgpack(struct out *o, struct bytes name, struct bytes value, bool is_first)
{
    (void)is_first;
    put_text(o, name);
    put_text(o, value);
}

static void as_json(struct out *o, struct bytes name, struct bytes value, bool is_first)
{
    put_plain(o, is_first ? "" : ",");
    put_json(o, name);
    put_plain(o, ":");
    put_json(o, value);
}

static int64_t own_open_files(void)
{
    int64_t wanted = job.spec.limits.open_files;
    return wanted == plan.defaults.open_files ? 0 : wanted;
}

static struct out go_buffer(void)
{
    static uint8_t buffer[208 * 1024];
    return (struct out){buffer, 0, sizeof buffer, false};
}

/* What wait_and_exec() in child.c reads. argv: `words`, then the raw array `more`. */
static struct out go_exec(struct bytes path, const struct bytes *words, uint32_t count,
                          struct bytes more)
{
    struct out o = go_buffer();
    struct cursor c = cursor_of(more);
    uint32_t extra = more.size ? take_array(&c) : 0;
    put_map(&o, 4);
    put_str(&o, "path");
    put_text(&o, path);
    put_str(&o, "open_files");
    put_int(&o, own_open_files());
    put_str(&o, "argv");
    put_array(&o, count + extra);
    for (uint32_t i = 0; i < count; i++)
        put_text(&o, words[i]);
    for (uint32_t i = 0; i < extra; i++)
        put_text(&o, take_text(&c));
    put_str(&o, "env");
    put_map(&o, each_variable(count_only, NULL));
    each_variable(as_msgpack, &o);
    return o;
}

/* What a warm interpreter reads: zygote/warm_python.py, warm_node.js. */
static struct out go_warm(void)
{
    struct out o = go_buffer();
    struct cursor c = cursor_of(job.spec.args);
    char number[64];
    put_plain(&o, "{\"cwd\":");
    put_json(&o, (struct bytes){(const uint8_t *)plan.work, strlen(plan.work)});
    put_plain(&o, ",\"script\":");
    put_json(&o, job.spec.entrypoint);
    snprintf(number, sizeof number, ",\"open_files\":%lld,\"args\":[",
             (long long)own_open_files());
    put_plain(&o, number);
    uint32_t count = take_array(&c);
    for (uint32_t i = 0; i < count; i++) {
        put_plain(&o, i ? "," : "");
        put_json(&o, take_text(&c));
    }
    put_plain(&o, "],\"env\":{");
    each_variable(as_json, &o);
    put_plain(&o, "}}");
    return o;
}

static struct outcome run(struct process process, struct out go, struct bytes input)
{
    struct sink sink = {.to_log = true, .in_group = true, .started = now_s()};
    job.started = sink.started;
    if (go.full)
        fail(EMSGSIZE, "arguments and environment are too large");
    /* If it died in the meantime, its status says how. */
    if (send(process.go, go.buffer, go.size, MSG_NOSIGNAL) < 0 && errno != EPIPE &&
        errno != ECONNRESET)
        fail(errno, "the process cannot be released: %s", strerror(errno));
    close(process.go);
    return supervise(process, &sink, job.spec.limits.timeout_s, job.spec.limits.cpu_seconds,
                     input);
}

static struct bytes word(const char *text)
{
    return (struct bytes){(const uint8_t *)text, strlen(text)};
}

static struct outcome build(void)
{
    struct bytes argv[] = {word("sh"), word("-c"), job.spec.build};
    send_started(true);
    struct process process = start_late(plan.filter_default);
    return run(process, go_exec(word("/bin/sh"), argv, 3, nothing), nothing);
}

static bool fits_warm(void)
{
    return job.has_parked && !is_word(order.mode, "exec") &&
           same(order.warm, job.spec.interpreter) && is_word(job.spec.profile, "default");
}

static struct process take_parked(void)
{
    job.has_parked = false;
    return parked;
}

static bool find_command(struct bytes *path, struct bytes *argv, uint32_t room, uint32_t *count)
{
    static char own[4096], dotted[4096];
    struct bytes entry = job.spec.entrypoint;
    bool plain = entry.size && entry.at[0] != '-';
    if (entry.size > sizeof own / 2) /* http has lied: no path is so long */
        return false;
    snprintf(dotted, sizeof dotted, "./%.*s", (int)entry.size, (const char *)entry.at);
    if (is_word(job.spec.interpreter, "binary")) {
        snprintf(own, sizeof own, "%s/%.*s", plan.work, (int)entry.size, (const char *)entry.at);
        *path = word(own);
        argv[0] = word(dotted);
        *count = 1;
        return true;
    }
    struct cursor c = in_map(plan.commands, job.spec.interpreter);
    *count = c.bad ? 0 : take_array(&c);
    if (!*count || *count >= room)
        return false;
    for (uint32_t i = 0; i < *count; i++)
        argv[i] = take_text(&c);
    *path = argv[0];
    /* A name that begins with "-" must not be taken for an option. */
    argv[(*count)++] = plain ? entry : word(dotted);
    return true;
}

static void refuse_interpreter(void)
{
    char known[256] = "one of ";
    struct cursor c = cursor_of(plan.commands);
    for (uint32_t n = take_map(&c), i = 0; i < n && !c.bad; i++) {
        struct bytes name = take_text(&c);
        size_t used = strlen(known);
        take_raw(&c);
        snprintf(known + used, sizeof known - used, "%s%.*s", i ? ", " : "", (int)name.size,
                 (const char *)name.at);
    }
    end_with("upload_error", known, "interpreter '%.*s' is not in this environment",
             (int)(job.spec.interpreter.size < 64 ? job.spec.interpreter.size : 64),
             (const char *)job.spec.interpreter.at);
}

static struct outcome entrypoint(void)
{
    struct bytes path, argv[16];
    uint32_t count;
    struct process process;
    bool ordinary = is_word(job.spec.profile, "default");
    send_started(false);
    if (fits_warm())
        return run(take_parked(), go_warm(), job.spec.input);
    if (!find_command(&path, argv, 15, &count)) {
        refuse_interpreter();
        return (struct outcome){0};
    }
    struct out go = go_exec(path, argv, count, job.spec.args);
    if (job.has_parked && is_word(order.mode, "exec") && ordinary) {
        process = take_parked();
    } else {
        dismiss_parked();
        process = start_late(ordinary ? plan.filter_default : plan.filter_compute);
    }
    return run(process, go, job.spec.input);
}

/* ── the end ── */

/* The default patterns take everything but compiled Python. */
static bool are_default_outputs(void)
{
    struct cursor c = cursor_of(job.spec.outputs);
    return take_array(&c) == 2 && is_word(take_text(&c), "*") &&
           is_word(take_text(&c), "!__pycache__/") && !c.bad;
}

static bool wants_no_outputs(void)
{
    struct cursor c = cursor_of(job.spec.outputs);
    return take_array(&c) == 0 && !c.bad;
}

/* `cpu_seconds`: grows by what it took, which the job has made as long as it is. */
static struct outputs collect(bool *cancelled, double *cpu_seconds)
{
    static uint8_t buffer[MESSAGE_MAX + PLACED_ROOM];
    struct outputs found = {0};
    struct outcome outcome;
    if (wants_no_outputs() || work_is_unchanged(are_default_outputs()))
        return found;
    kill_everything(); /* who took leave is still being taken down */
    struct out request = {buffer, 0, sizeof buffer, false};
    put_map(&request, 3);
    put_str(&request, "spec");
    put_raw(&request, job.spec.raw);
    put_str(&request, "snapshot");
    put_int(&request, job.snapshot_size);
    put_str(&request, "placed");
    put_snapshot(&request);
    if (request.full)
        fail(EMSGSIZE, "the request to collect is too large");
    struct bytes report = assist('C', -1, (struct bytes){buffer, request.size},
                                 COLLECT_TIMEOUT_S, &outcome);
    *cancelled = outcome.cancelled || *cancelled;
    *cpu_seconds += job.watched_cpu_s;
    struct bytes fault = text_field(report, "fault");
    struct cursor over_at = field(report, "over_limit");
    found.over_limit = take_bool(&over_at);
    found.index_offset = int_field(report, "index_offset");
    found.index_size = int_field(report, "index_size");
    found.bytes = int_field(report, "output_bytes");
    if (over_at.bad)
        fault = word("whoever looked for them gave up");
    if (fault.size) {
        char text[EVIDENCE_MAX];
        int size = snprintf(text, sizeof text, "outputs could not be collected: %.*s\n",
                            (int)(fault.size < 400 ? fault.size : 400), (const char *)fault.at);
        log_write(SYSTEM, (struct bytes){(const uint8_t *)text, (size_t)size},
                  now_s() - job.started);
        found = (struct outputs){0};
    }
    free((void *)report.at);
    return found;
}

static void put_verdict(struct out *o)
{
    put_map(o, 3);
    put_str(o, "exit_reason");
    put_str(o, job.verdict.reason);
    put_str(o, "evidence");
    put_array(o, 1);
    put_text(o, as_utf8(word(job.verdict.evidence)));
    put_str(o, "remedy");
    if (*job.verdict.remedy)
        put_text(o, as_utf8(word(job.verdict.remedy)));
    else
        put_nil(o);
}

static void put_facts(struct out *o, const struct outcome *outcome, const char *phase,
                      const struct statvfs *room, bool over_limit)
{
    put_map(o, 14);
    put_str(o, "exit_code");
    outcome->exited ? put_int(o, outcome->exit_code) : put_nil(o);
    put_str(o, "signal");
    outcome->signaled ? put_int(o, outcome->signal) : put_nil(o);
    put_str(o, "cancelled");
    put_bool(o, outcome->cancelled);
    put_str(o, "timed_out");
    put_bool(o, outcome->timed_out);
    put_str(o, "cpu_exceeded");
    put_bool(o, outcome->cpu_exceeded);
    put_str(o, "oom_kills");
    put_int(o, group_oom_kills());
    put_str(o, "uncharged_bytes");
    put_int(o, outcome->uncharged);
    put_str(o, "fork_refusals");
    put_int(o, group_fork_refusals());
    put_str(o, "storage_full");
    put_bool(o, room->f_bavail == 0);
    put_str(o, "inodes_full");
    put_bool(o, room->f_favail == 0);
    put_str(o, "log_dropped_bytes");
    put_int(o, log_dropped());
    put_str(o, "outputs_over_limit");
    put_bool(o, over_limit);
    put_str(o, "fail_on_output_limit");
    put_bool(o, job.spec.fail_on_output_limit);
    put_str(o, "phase");
    put_str(o, phase);
}

static void put_usage(struct out *o, double cpu_seconds, double wall_time_s, int64_t memory_peak,
                      int64_t processes_peak, int64_t output_bytes)
{
    put_map(o, 7);
    put_str(o, "cpu_seconds");
    put_number(o, cpu_seconds > 0 ? cpu_seconds : 0);
    put_str(o, "memory_peak_bytes");
    put_int(o, memory_peak);
    put_str(o, "wall_time_s");
    put_number(o, wall_time_s);
    put_str(o, "processes_peak");
    put_int(o, processes_peak);
    put_str(o, "storage_bytes");
    put_int(o, job.storage_bytes);
    put_str(o, "output_bytes");
    put_int(o, output_bytes);
    put_str(o, "log_dropped_bytes");
    put_int(o, log_dropped());
}

static void put_result_end(struct out *o, const struct outputs *outputs)
{
    put_str(o, "spec");
    put_raw(o, job.spec.raw);
    put_str(o, "log_end");
    put_int(o, log_end());
    put_str(o, "index_offset");
    put_int(o, outputs->index_offset);
    put_str(o, "index_size");
    put_int(o, outputs->index_size);
}

/* A fault of ours in the middle of a job: nothing of it runs on. */
static void give_up(const char *step, int number, const char *text)
{
    static const struct outputs none;
    (void)number;
    static bool again;
    if (again)
        _exit(1);
    again = true;
    job.has_parked = false;
    kill_everything();
    end_with("server_fault", "", "%s: %s", step, text);
    struct out o = new_message("Result", 7);
    put_str(&o, "verdict");
    put_verdict(&o);
    put_str(&o, "facts");
    put_nil(&o);
    put_str(&o, "usage");
    /* What ran is paid for, whatever made it end. */
    put_usage(&o, group_cpu_seconds() - job.cpu_before, now_s() - job.started,
              group_memory_peak(), group_processes_peak(), 0);
    put_result_end(&o, &none);
    send_word(SLOT_FINAL, &o);
    await_dismissal();
    _exit(1);
}

static bool await_dispatch(struct bytes *dispatch, int *upload)
{
    for (;;) {
        struct pollfd polled[] = {{FD_HTTP, POLLIN, 0}, {signal_fd, POLLIN, 0}};
        poll(polled, 2, -1);
        if (polled[1].revents) {
            reap(false);
            if (job.parked_ended)
                return false;
        }
        if (!polled[0].revents)
            continue;
        switch (hear(dispatch, upload)) {
        case DISPATCH:
            return true;
        case CANCEL:
            job.cancelled = true;
            break;
        case ACKNOWLEDGE:
            _exit(0);
        case NOTHING:
            break;
        }
    }
}

static const char *prepare(struct bytes dispatch, int upload, struct outcome *outcome)
{
    if (!within_maxima(&job.spec.limits))
        return "upload";
    if (!same(job.spec.environment, plan.environment)) {
        end_with("server_fault", "", "environment: this is another one");
        return "upload";
    }
    place_files(dispatch, upload < 0);
    if (!job.over && upload >= 0)
        unpack(dispatch, upload);
    if (!job.over)
        set_limits();
    if (job.over || !job.spec.build.size)
        return "upload";
    *outcome = build();
    return "build";
}

/* Wait for the one Dispatch, run it, report, wait to be dismissed. Returns PID 1's exit
   status: 0, or 3 if the parked process died before there was a job. */
int serve(void)
{
    struct bytes dispatch;
    struct outcome outcome = {0};
    struct statvfs room;
    int upload = -1;
    job.has_parked = true;
    job.parked_tasks = group_processes_now();
    job.started = now_s();
    job.cpu_before = group_cpu_seconds();
    job.spec.raw = (struct bytes){(const uint8_t *)"\x80", 1}; /* an empty map: all defaults */
    log_open(FD_LOG, plan.maxima.log_bytes);
    on_failure = give_up;
    current_step = "serve";
    if (!await_dispatch(&dispatch, &upload))
        return 3;
    /* Its bytes are read for as long as the job lives, and the buffer hears more. */
    uint8_t *own = malloc(dispatch.size);
    if (!own)
        fail(ENOMEM, "no memory");
    dispatch.at = memcpy(own, dispatch.at, dispatch.size);
    job.started = now_s();
    job.cpu_before = group_cpu_seconds();
    struct cursor spec_at = field(dispatch, "spec");
    struct bytes raw = take_raw(&spec_at);
    struct spec spec;
    if (spec_at.bad || !read_spec(raw, &spec))
        fail(0, "the dispatch is damaged");
    job.spec = spec;
    const char *phase = prepare(dispatch, upload, &outcome);
    bool built = outcome.exited && !outcome.exit_code && !outcome.cancelled &&
                 !outcome.timed_out && !outcome.cpu_exceeded;
    if (!job.over && (!job.spec.build.size || built)) {
        phase = "entrypoint";
        outcome = entrypoint();
    }
    dismiss_parked();
    if (!outcome.parting)
        kill_everything();
    must(fstatvfs(work_fd, &room), "fstatvfs");
    job.storage_bytes = (int64_t)((room.f_blocks - room.f_bfree) * room.f_frsize);
    double cpu_seconds = group_cpu_seconds() - job.cpu_before;
    int64_t memory_peak = group_memory_peak(), processes_peak = group_processes_peak();
    struct outputs outputs = {0};
    if (!job.over) /* else nothing ran: what lies there is what came */
        outputs = collect(&outcome.cancelled, &cpu_seconds);
    struct out o = new_message("Result", 7);
    put_str(&o, "verdict");
    job.over ? put_verdict(&o) : put_nil(&o);
    put_str(&o, "facts");
    put_facts(&o, &outcome, phase, &room, outputs.over_limit);
    put_str(&o, "usage");
    put_usage(&o, cpu_seconds, outcome.wall_time_s, memory_peak, processes_peak, outputs.bytes);
    put_result_end(&o, &outputs);
    send_word(SLOT_FINAL, &o);
    await_dismissal();
    return 0;
}
