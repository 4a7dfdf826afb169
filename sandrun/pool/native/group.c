/* The job's control group. Runs as: PID 1. I/O. The reference, with the reasons, is
   zygote/group.py: same files, same arithmetic. */

#include "init.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_ATTACH = 8 };

static struct {
    int attach[MOST_ATTACH];
    size_t attach_count;
    int memory_max, memory_peak, memory_now, memory_events;
    int pids_max, pids_now, pids_peak, pids_events;
    int cpu_stat, cpuacct, oom_event;
    bool peak_resets;
    int64_t memory_seen, tasks_seen;
    double cpu_base;
    int64_t oom_base, refused_base, tasks_base;
} group;

static int64_t number_in(int fd)
{
    char text[64];
    ssize_t size = must(pread(fd, text, sizeof text - 1, 0), "pread(control file)");
    text[size] = 0;
    return strncmp(text, "max", 3) ? strtoll(text, NULL, 10) : 0;
}

static int64_t number_beside(int fd, const char *key)
{
    char text[1024];
    size_t length = strlen(key);
    ssize_t size = must(pread(fd, text, sizeof text - 1, 0), "pread(control file)");
    text[size] = 0;
    for (char *line = text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
        if (!strncmp(line, key, length) && line[length] == ' ')
            return strtoll(line + length + 1, NULL, 10);
    fail(0, "control file without %s", key);
}

static double cpu_now(void)
{
    if (group.cpu_stat >= 0)
        return (double)number_beside(group.cpu_stat, "usage_usec") / 1e6;
    return (double)number_in(group.cpuacct) / 1e9;
}

static int64_t oom_now(void)
{
    return number_beside(group.memory_events, "oom_kill");
}

static int64_t refused_now(void)
{
    return group.pids_events < 0 ? 0 : number_beside(group.pids_events, "max");
}

void open_group(struct bytes names, int first_fd, size_t *count)
{
    static const struct {
        const char *name;
        int *fd;
    } files[] = {
        {"memory.max", &group.memory_max},
        {"memory.limit_in_bytes", &group.memory_max},
        {"memory.peak", &group.memory_peak},
        {"memory.max_usage_in_bytes", &group.memory_peak},
        {"memory.current", &group.memory_now},
        {"memory.usage_in_bytes", &group.memory_now},
        {"memory.events", &group.memory_events},
        {"memory.oom_control", &group.memory_events},
        {"pids.max", &group.pids_max},
        {"pids.current", &group.pids_now},
        {"pids.peak", &group.pids_peak},
        {"pids.events", &group.pids_events},
        {"cpu.stat", &group.cpu_stat},
        {"cpuacct.usage", &group.cpuacct},
        {"oom.event", &group.oom_event},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        *files[i].fd = -1;
    struct cursor c = cursor_of(names);
    *count = take_array(&c);
    for (size_t n = 0; n < *count; n++) {
        struct bytes name = take_text(&c);
        int fd = first_fd + (int)n;
        if (name.size > 7 && !memcmp(name.at, "attach.", 7)) {
            if (group.attach_count == MOST_ATTACH)
                fail(0, "too many control files");
            group.attach[group.attach_count++] = fd;
        }
        for (size_t i = 0; i < sizeof files / sizeof *files; i++)
            if (is_word(name, files[i].name)) {
                *files[i].fd = fd;
                if (is_word(name, "memory.max_usage_in_bytes"))
                    group.peak_resets = true;
            }
    }
    if (c.bad || !group.attach_count || group.memory_max < 0 || group.memory_events < 0 ||
        group.pids_max < 0 || (group.cpu_stat < 0 && group.cpuacct < 0))
        fail(0, "control files are missing");
    group.cpu_base = cpu_now();
    group.oom_base = oom_now();
    group.refused_base = refused_now();
    group.tasks_base = group.pids_peak < 0 ? 0 : number_in(group.pids_peak);
}

void group_attach_self(void)
{
    for (size_t i = 0; i < group.attach_count; i++)
        write_word(group.attach[i], "0");
}

size_t group_attach_fds(int *fds, size_t room)
{
    if (group.attach_count > room)
        fail(0, "too many control files");
    memcpy(fds, group.attach, group.attach_count * sizeof *fds);
    return group.attach_count;
}

void group_set_memory(int64_t bytes, bool *refused)
{
    char text[32];
    int size = snprintf(text, sizeof text, "%lld", (long long)bytes);
    *refused = pwrite(group.memory_max, text, (size_t)size, 0) != size;
}

void group_set_processes(int64_t count)
{
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)count);
    write_word(group.pids_max, text);
}

double group_cpu_seconds(void)
{
    return cpu_now() - group.cpu_base;
}

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

int64_t group_memory_peak(void)
{
    if (group.memory_peak >= 0)
        group.memory_seen = most(group.memory_seen, number_in(group.memory_peak));
    else if (group.memory_now >= 0)
        group.memory_seen = most(group.memory_seen, number_in(group.memory_now));
    return group.memory_seen;
}

int64_t group_memory_now(void)
{
    if (group.memory_now >= 0)
        return number_in(group.memory_now);
    if (group.memory_peak < 0 || !group.peak_resets)
        return 0;
    group_memory_peak();
    write_word(group.memory_peak, "0");
    return number_in(group.memory_peak);
}

int64_t group_oom_kills(void)
{
    return oom_now() - group.oom_base;
}

int64_t group_fork_refusals(void)
{
    return refused_now() - group.refused_base;
}

int64_t group_processes_now(void)
{
    return group.pids_now < 0 ? 0 : number_in(group.pids_now);
}

int64_t group_processes_peak(void)
{
    int64_t seen = most(group.tasks_seen, group_processes_now());
    if (group.pids_peak >= 0) {
        int64_t peak = number_in(group.pids_peak);
        if (peak > group.tasks_base)
            seen = most(seen, peak);
    }
    if (group_fork_refusals())
        seen = most(seen, number_in(group.pids_max));
    return group.tasks_seen = seen;
}

int group_oom_fd(void)
{
    return group.oom_event >= 0 ? group.oom_event : group.memory_events;
}

short group_oom_mask(void)
{
    return group.oom_event >= 0 ? POLLIN : POLLPRI;
}
