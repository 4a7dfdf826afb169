/* Lets a test call the decoding and encoding of PID 1 on bytes of its choice. Tests only;
   built with the sanitizers, see test_native.py.

   stdin:  one letter, u32 size, bytes.   stdout:  u32 size, bytes.
   Arguments: descriptors of a directory that stands for /work, and of a file for the log. */

#include "init.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static jmp_buf case_end;
static struct out answer;

static _Noreturn void end_case(int code)
{
    char text[16];
    snprintf(text, sizeof text, "exit %d", code);
    put_plain(&answer, text);
    longjmp(case_end, 1);
}

#define _exit(code) end_case(code)
#include "files.c"
#include "group.c"
#include "log.c"
#include "serve.c"
#undef _exit

int work_fd = 100, signal_fd = -1, self_fd = -1; /* boot.c and main.c are not here */
struct process parked;

enum { WORK = 100, LOG = 101, ROOM = 4 << 20 };

static void say_failure(const char *step, int number, const char *text)
{
    (void)step;
    (void)number;
    put_plain(&answer, "fail ");
    put_plain(&answer, text);
    longjmp(case_end, 1);
}

static void copy_value(struct cursor *c, struct out *o)
{
    uint8_t tag = c->at < c->end ? *c->at : 0xc1;
    if ((tag & 0xf0) == 0x80 || tag == 0xde || tag == 0xdf) {
        uint32_t n = take_map(c);
        put_map(o, n);
        for (n *= 2; n && !c->bad; n--)
            copy_value(c, o);
    } else if ((tag & 0xf0) == 0x90 || tag == 0xdc || tag == 0xdd) {
        uint32_t n = take_array(c);
        put_array(o, n);
        for (; n && !c->bad; n--)
            copy_value(c, o);
    } else if (tag >= 0xc4 && tag <= 0xc6) {
        put_bin(o, take_text(c));
    } else if ((tag & 0xe0) == 0xa0 || (tag >= 0xd9 && tag <= 0xdb)) {
        put_text(o, take_text(c));
    } else if (tag == 0xca || tag == 0xcb) {
        put_number(o, take_number(c));
    } else if (tag == 0xc2 || tag == 0xc3) {
        put_bool(o, take_bool(c));
    } else if (is_nil(c)) {
        c->at++;
        put_nil(o);
    } else {
        put_int(o, take_int(c));
    }
}

static void msgpack_case(struct bytes data)
{
    struct cursor c = cursor_of(data);
    struct bytes whole = take_raw(&c);
    if (c.bad || c.at != c.end)
        return;
    c = cursor_of(whole);
    copy_value(&c, &answer);
    if (c.bad || c.at != c.end) /* an int that is none of ours */
        answer.size = 0;
}

static void plan_case(struct bytes data)
{
    int fd = (int)must(memfd_create("plan", 0), "memfd");
    must(write(fd, data.at, data.size), "write");
    plan.writable_count = plan.rlimit_count = 0;
    read_plan(fd);
    put_plain(&answer, "ok");
}

static void log_case(struct bytes data)
{
    struct cursor c = cursor_of(data);
    free(job_log.marks);
    memset(&job_log, 0, sizeof job_log);
    must(ftruncate(LOG, 0), "ftruncate");
    take_array(&c);
    log_open(LOG, take_int(&c));
    for (uint32_t n = take_array(&c); n && !c.bad; n--) {
        take_array(&c);
        int stream = (int)take_int(&c);
        struct bytes text = take_text(&c);
        double t = take_number(&c);
        if (stream)
            log_write(stream, text, t);
        else
            journal_write(SLOT_FINAL, text);
    }
    put_array(&answer, 2);
    put_int(&answer, log_end());
    put_int(&answer, log_dropped());
}

static void group_case(struct bytes data)
{
    struct cursor c = cursor_of(data);
    uint32_t count = take_map(&c);
    uint8_t names[4096];
    struct out o = {names, 0, sizeof names, false};
    size_t seen;
    memset(&group, 0, sizeof group);
    put_array(&o, count);
    for (uint32_t n = 0; n < count && !c.bad; n++) {
        struct bytes name = take_text(&c), text = take_text(&c);
        int fd = (int)must(memfd_create("file", 0), "memfd");
        put_text(&o, name);
        must(write(fd, text.at, text.size), "write");
        must(dup2(fd, 200 + (int)n), "dup2");
        close(fd);
    }
    open_group((struct bytes){names, o.size}, 200, &seen);
    group.cpu_base = 0;
    group.oom_base = group.refused_base = group.tasks_base = 0;
    put_array(&answer, 5);
    put_number(&answer, group_cpu_seconds());
    put_int(&answer, group_oom_kills());
    put_int(&answer, group_fork_refusals());
    put_int(&answer, group_processes_now());
    put_int(&answer, group_memory_peak());
}

static void pair(int *far, int near)
{
    int ends[2];
    must(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends), "socketpair");
    must(dup2(ends[0], near), "dup2");
    close(ends[0]);
    must(dup2(ends[1], *far), "dup2");
    close(ends[1]);
}

static void ready_case(struct bytes data)
{
    struct process process = {.go = 150};
    int far = 151;
    pair(&far, process.go);
    must(write(far, data.at, data.size), "write");
    close(far);
    await_ready(&process);
    put_int(&answer, process.pid);
}

static void take_dispatch(struct bytes *dispatch, struct bytes data)
{
    static const uint8_t acknowledge[] = "\x81\xa4type\xab" "Acknowledge";
    int far = 151, upload = -1;
    pair(&far, FD_HTTP);
    must(write(far, data.at, data.size), "write");
    must(write(far, acknowledge, sizeof acknowledge - 1), "write");
    memset(&job, 0, sizeof job);
    placed_count = 0;
    job.spec.raw = (struct bytes){(const uint8_t *)"\x80", 1};
    await_dispatch(dispatch, &upload);
    uint8_t *own = malloc(dispatch->size); /* the exact size, so that one byte beyond is seen */
    dispatch->at = memcpy(own, dispatch->at, dispatch->size);
    struct cursor spec_at = field(*dispatch, "spec");
    struct bytes raw = take_raw(&spec_at);
    if (spec_at.bad || !read_spec(raw, &job.spec))
        fail(0, "the dispatch is damaged");
}

static void dispatch_case(struct bytes data)
{
    struct bytes dispatch, path, argv[16];
    uint32_t count = 0;
    take_dispatch(&dispatch, data);
    if (within_maxima(&job.spec.limits))
        place_files(dispatch, true);
    bool known = !job.over && find_command(&path, argv, 15, &count);
    if (!job.over && !known)
        refuse_interpreter();
    put_array(&answer, 3);
    if (job.over) {
        put_verdict(&answer);
        put_nil(&answer);
    } else {
        struct out go = go_exec(path, argv, count, job.spec.args);
        put_bin(&answer, (struct bytes){go.buffer, go.full ? 0 : go.size});
        go = go_warm();
        put_bin(&answer, (struct bytes){go.buffer, go.full ? 0 : go.size});
    }
    put_bool(&answer, work_is_unchanged(are_default_outputs()));
}

static void utf8_case(struct bytes data)
{
    struct bytes text = as_utf8(data);
    put_bin(&answer, text);
    free((void *)text.at);
}

static void read_exactly(void *buffer, size_t size)
{
    if (size && fread(buffer, size, 1, stdin) != 1)
        exit(0);
}

int main(int count, char **arguments)
{
    static uint8_t room[ROOM];
    if (count != 3)
        return 2;
    must(dup2(atoi(arguments[1]), WORK), "dup2"); /* the low numbers are PID 1's */
    must(dup2(atoi(arguments[2]), LOG), "dup2");
    on_failure = say_failure;
    log_open(LOG, 1 << 20);
    for (;;) {
        char letter;
        uint32_t size;
        read_exactly(&letter, 1);
        read_exactly(&size, 4);
        uint8_t *data = malloc(size + !size); /* nothing behind it: every overrun is seen */
        read_exactly(data, size);
        answer = (struct out){room, 0, sizeof room, false};
        if (!setjmp(case_end)) {
            struct bytes given = {data, size};
            switch (letter) {
            case 'm': msgpack_case(given); break;
            case 'j': put_json(&answer, given); break;
            case 'p': plan_case(given); break;
            case 'l': log_case(given); break;
            case 'g': group_case(given); break;
            case 'r': ready_case(given); break;
            case 'd': dispatch_case(given); break;
            case 'u': utf8_case(given); break;
            }
        }
        free(data);
        size = answer.full ? 0 : (uint32_t)answer.size;
        fwrite(&size, 4, 1, stdout);
        fwrite(room, size, 1, stdout);
        fflush(stdout);
    }
}
