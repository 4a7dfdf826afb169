/* PID 1 of a sandbox, compiled. Runs as: root of the sandbox's user namespace until
   the last steps of its boot, then uid P without capabilities. I/O.

   The same life as zygote/boot.py, child.py, attest.py and serve.py, which stay the
   reference and the fall-back; messages, logs and verdicts are the same bytes. It is
   here for its price: a forked Python PID 1 costs 9 to 11 ms of CPU per job, mostly
   page faults, and 2 to 3 MB; this one less than 2 ms and 0.1 MB. What is not on
   every job's way and parses what strangers wrote (archives, job.json, output
   patterns) is not here: a Python child does it, see ../assist.py.

   Every function that can fail ends in fail(), which says the step and the error and
   never returns: there is no half-made sandbox. */

#ifndef SANDRUN_INIT_H
#define SANDRUN_INIT_H

#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { MESSAGE_MAX = 128 * 1024, MAX_FDS = 24 };

/* ── sys.c: failing, and the kernel's calls that the C library lacks ── */

struct bytes {
    const uint8_t *at;
    size_t size;
};

struct step {
    const char *name;
    void (*run)(void);
};

typedef void failure_handler(const char *step, int number, const char *text);

extern failure_handler *on_failure; /* never returns */
extern const char *current_step;

_Noreturn void fail(int number, const char *format, ...) __attribute__((format(printf, 2, 3)));
long must(long result, const char *what); /* fails with errno if negative */
void take_steps(const char *place, const struct step *steps, size_t count);
double now_s(void); /* CLOCK_MONOTONIC */
void write_word(int fd, const char *word);
void move_high(int *fd); /* out of the way of 0 to 63 */
char *text_of(struct bytes text); /* a copy that ends in 0; fails if there is a 0 in it */
size_t read_file(const char *path, char *buffer, size_t size); /* ends it in 0 */
void kernel_move_mount(int fd, const char *target);
void load_filter(struct bytes program);
int load_filter_with_listener(struct bytes program); /* close-on-exec */
int landlock_ruleset(uint64_t handled, uint64_t scope, size_t size);
void landlock_allow(int ruleset, int path, uint64_t access);
void landlock_restrict(int ruleset);
void no_capabilities(void);

/* ── msgpack.c: a cursor that turns bad and stays so; a writer that cuts nothing ── */

struct cursor {
    const uint8_t *at, *end;
    bool bad;
};

struct cursor cursor_of(struct bytes raw);
uint32_t take_map(struct cursor *c);
uint32_t take_array(struct cursor *c);
struct bytes take_text(struct cursor *c); /* str or bin */
int64_t take_int(struct cursor *c);
double take_number(struct cursor *c);
bool take_bool(struct cursor *c);
bool is_nil(const struct cursor *c);
struct bytes take_raw(struct cursor *c); /* one whole value, as it is */
struct cursor field(struct bytes map, const char *key); /* bad if it is not there */
struct bytes text_field(struct bytes map, const char *key); /* empty for nil */
int64_t int_field(struct bytes map, const char *key);
double number_field(struct bytes map, const char *key);
bool is_word(struct bytes text, const char *word);
bool same(struct bytes a, struct bytes b);

struct out {
    uint8_t *buffer;
    size_t size, room;
    bool full;
};

void put_map(struct out *o, uint32_t pairs);
void put_array(struct out *o, uint32_t items);
void put_str(struct out *o, const char *text);
void put_text(struct out *o, struct bytes text);
void put_bin(struct out *o, struct bytes data);
void put_int(struct out *o, int64_t value);
void put_number(struct out *o, double value);
void put_bool(struct out *o, bool value);
void put_nil(struct out *o);
void put_raw(struct out *o, struct bytes raw);
void put_plain(struct out *o, const char *text); /* characters, for JSON */
void put_json(struct out *o, struct bytes text); /* a JSON string */

/* ── plan.c: what all sandboxes of one spawner share, and this one's order ── */

enum { LIMITS = 8, MAX_WRITABLE = 8, MAX_RLIMITS = 12 };

struct limits {
    double timeout_s, cpu_seconds;
    int64_t memory_bytes, storage_bytes, processes, open_files, log_bytes, output_bytes;
};

struct rlimit_of {
    int resource;
    uint64_t soft, hard;
};

struct plan {
    struct bytes environment;
    struct bytes known_environments; /* raw array */
    struct bytes commands;           /* raw map: interpreter to argv prefix */
    struct bytes warm;               /* raw map: interpreter to [path, argv, env] of its door */
    struct bytes env;                /* raw map */
    struct bytes read_only_trees;    /* raw array: mounts may lie below these */
    struct bytes filter_default, filter_warm, filter_compute, filter_zygote;
    struct limits defaults, maxima;
    struct rlimit_of rlimits[MAX_RLIMITS];
    size_t rlimit_count;
    struct {
        char *name, *target;
    } writable[MAX_WRITABLE];
    size_t writable_count;
    char *box, *work, *environment_place, *hostname;
    uid_t job_uid, init_uid;
    gid_t gid;
    int landlock_abi, last_capability;
};

extern struct plan plan;

struct order {
    int64_t zygote;
    struct bytes mode, warm;
    struct bytes control_files; /* raw array */
};

extern struct order order;

void read_plan(int fd);
struct limits read_limits(struct bytes map);

/* Descriptors that the spawner puts there. See launch.c. */
enum {
    FD_SUPERVISOR = 3,
    FD_GATE,
    FD_PLAN,
    FD_ASSIST,
    FD_HTTP,
    FD_LOG,
    FD_OUTPUTS,
    FD_TMPFS,
    FD_TEMPLATE,
    FD_CONTROL, /* the first of the control files; behind them the seam of tests */
};

/* ── group.c ── */

void open_group(struct bytes names, int first_fd, size_t *count);
void group_attach_self(void);
size_t group_attach_fds(int *fds, size_t room);
void group_set_memory(int64_t bytes, bool *refused);
void group_set_processes(int64_t count);
double group_cpu_seconds(void);
int64_t group_memory_peak(void);
int64_t group_memory_now(void);
int64_t group_oom_kills(void);
int64_t group_fork_refusals(void);
int64_t group_processes_now(void);
int64_t group_processes_peak(void);
int group_oom_fd(void);        /* or -1 */
short group_oom_mask(void);

/* ── sockets.c ── */

enum { UNCHARGED_MOST = 32 * 1024 * 1024 }; /* job.py */

int64_t uncharged_bytes(bool *many);

/* ── child.c ── */

enum { GO_FD = 3 };

struct process {
    pid_t pid;
    int go, stdin_fd, stdout_fd, stderr_fd;
    int listener; /* of its filter, or -1 */
};

extern int job_ruleset; /* of Landlock, or -1 */

struct process park_exec(void);
struct process park_door(struct bytes warm);
struct process park_from_template(int template);
struct process start_late(struct bytes program);
void await_ready(struct process *process);
void forget_process(struct process *process);

/* ── boot.c, attest.c ── */

extern int work_fd, signal_fd, self_fd;
extern struct process parked;
void boot(void);
void attest_job(pid_t pid);
void attest_self(void);

/* ── log.c ── */

enum { STDOUT = 1, STDERR = 2, SYSTEM = 3, MAX_DATA = 64 * 1024 };

void log_open(int fd, int64_t capacity);
void log_write(int stream, struct bytes data, double t);
int64_t log_end(void);
int64_t log_dropped(void);
void journal_write(int slot, struct bytes message);

/* ── files.c ── */

void place_file(struct bytes path, struct bytes data, bool executable, char *reason, size_t room);
bool work_is_unchanged(bool ignore_pycache);
void put_snapshot(struct out *o); /* [[path, size, mtime in ns, inode], ...] */

/* ── serve.c ── */

int serve(void);

#endif
