/* A sandbox looks at itself before it may be leased. Runs as: PID 1. I/O: /proc. Same
   questions as zygote/attest.py: what the kernel says, not what we believe. */

#include "init.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static const char *found_in(const char *text, const char *key)
{
    /* "Key:\tvalue\n" at the beginning of a line; the value up to its end. */
    static char value[256];
    size_t length = strlen(key);
    for (const char *line = text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        if (strncmp(line, key, length) || line[length] != ':')
            continue;
        line += length + 1;
        line += strspn(line, " \t");
        size_t size = strcspn(line, "\n");
        while (size && (line[size - 1] == ' ' || line[size - 1] == '\t'))
            size--;
        if (size >= sizeof value)
            break;
        memcpy(value, line, size);
        value[size] = 0;
        return value;
    }
    fail(0, "the kernel does not tell %s", key);
}

static void expect(const char *text, const char *key, const char *wanted)
{
    const char *found = found_in(text, key);
    if (strcmp(found, wanted))
        fail(0, "%s is '%s', not '%s'", key, found, wanted);
}

static void expect_confined(const char *status)
{
    static const char *const sets[] = {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"};
    expect(status, "Seccomp", "2");
    expect(status, "NoNewPrivs", "1");
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        expect(status, sets[i], "0000000000000000");
}

static void expect_ids(pid_t pid)
{
    char path[64], text[512];
    long inside, outside, count;
    snprintf(path, sizeof path, "/proc/%d/uid_map", pid);
    read_file(path, text, sizeof text);
    char *end = strchr(text, '\n');
    if (!end || end[1] || sscanf(text, "%ld %ld %ld", &inside, &outside, &count) != 3 ||
        inside != (long)plan.job_uid || count != 2 || !outside)
        fail(0, "uid_map is '%s'", text);
}

static void expect_descriptors(pid_t pid)
{
    char path[64];
    unsigned seen = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", pid);
    DIR *directory = opendir(path);
    if (!directory)
        fail(errno, "%s: %s", path, strerror(errno));
    for (struct dirent *entry; (entry = readdir(directory));) {
        if (entry->d_name[0] == '.')
            continue;
        int fd = atoi(entry->d_name);
        if (fd > GO_FD)
            fail(0, "descriptor %d is open", fd);
        seen |= 1U << fd;
    }
    closedir(directory);
    if (seen != 0xf)
        fail(0, "of the descriptors 0 to 3 not all are open");
}

static void expect_namespaces(pid_t pid)
{
    static const char *const names[] = {"pid", "mnt", "net", "ipc", "uts", "user"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[64], its[64] = {0}, ours[64] = {0};
        snprintf(path, sizeof path, "/proc/%d/ns/%s", pid, names[i]);
        must(readlink(path, its, sizeof its - 1), path);
        snprintf(path, sizeof path, "/proc/self/ns/%s", names[i]);
        must(readlink(path, ours, sizeof ours - 1), path);
        /* Ours are new (clone() would have failed otherwise); the network may be one that
           is as good as new: expect_network(). */
        if (strcmp(its, ours))
            fail(0, "namespace %s is '%s', not '%s'", names[i], its, ours);
    }
}

static void expect_groups(pid_t pid)
{
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/%d/cgroup", pid);
    read_file(path, text, sizeof text);
    for (char *line = text; *line;) {
        char *end = line + strcspn(line, "\n");
        char *second = memchr(line, ':', (size_t)(end - line));
        char *third = second ? memchr(second + 1, ':', (size_t)(end - second - 1)) : NULL;
        if (!third || end - third != 2 || third[1] != '/')
            fail(0, "cgroup is '%.*s'", (int)(end - line), line);
        line = *end ? end + 1 : end;
    }
}

static void expect_session(pid_t pid)
{
    char path[64], text[2048];
    int session = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    read_file(path, text, sizeof text);
    char *behind = strrchr(text, ')'); /* the name may hold anything */
    if (!behind || sscanf(behind + 1, " %*c %*d %*d %d", &session) != 1 || session != pid)
        fail(0, "session is %d, not %d", session, pid);
}

static void expect_limits(pid_t pid)
{
    static const struct {
        int resource;
        const char *name;
    } names[] = {
        {RLIMIT_CORE, "Max core file size"},    {RLIMIT_NPROC, "Max processes"},
        {RLIMIT_NOFILE, "Max open files"},      {RLIMIT_MEMLOCK, "Max locked memory"},
        {RLIMIT_MSGQUEUE, "Max msgqueue size"}, {RLIMIT_SIGPENDING, "Max pending signals"},
    };
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/%d/limits", pid);
    read_file(path, text, sizeof text);
    for (size_t i = 0; i < plan.rlimit_count; i++)
        for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
            if (names[n].resource != plan.rlimits[i].resource)
                continue;
            char *line = strstr(text, names[n].name), words[2][32];
            if (!line || sscanf(line + strlen(names[n].name), "%31s %31s", words[0], words[1]) != 2)
                fail(0, "the kernel does not tell %s", names[n].name);
            uint64_t most[2] = {plan.rlimits[i].soft, plan.rlimits[i].hard};
            for (int w = 0; w < 2; w++)
                if (most[w] != RLIM_INFINITY &&
                    (!strcmp(words[w], "unlimited") || strtoull(words[w], NULL, 10) > most[w]))
                    fail(0, "%s is %s, over %llu", names[n].name, words[w],
                         (unsigned long long)most[w]);
        }
}

static bool is_writable_place(const char *target)
{
    for (size_t i = 0; i < plan.writable_count; i++)
        if (!strcmp(target, plan.writable[i].target))
            return true;
    return false;
}

static bool is_wanted(const char *target)
{
    if (!strcmp(target, "/") || !strcmp(target, "/usr") || !strcmp(target, "/proc") ||
        !strcmp(target, plan.environment_place) || is_writable_place(target))
        return true;
    struct cursor c = cursor_of(plan.read_only_trees);
    for (uint32_t n = take_array(&c); n && !c.bad; n--) {
        struct bytes tree = take_text(&c); /* ends in "/" */
        size_t size = strlen(target);
        if ((size >= tree.size && !memcmp(target, tree.at, tree.size)) ||
            (size + 1 == tree.size && !memcmp(target, tree.at, size)))
            return true;
    }
    return false;
}

static bool has_option(const char *options, const char *wanted)
{
    size_t length = strlen(wanted);
    for (const char *at = options; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (!strncmp(at, wanted, length) && (at[length] == ',' || !at[length]))
            return true;
    return false;
}

static void expect_mounts(void)
{
    static char text[64 * 1024];
    unsigned seen = 0;
    bool proc_is_small = false; /* of the last one, which hides the others */
    read_file("/proc/self/mountinfo", text, sizeof text);
    for (char *save, *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char target[1024], options[256];
        char *last = strrchr(line, ' ');
        if (!last || sscanf(line, "%*s %*s %*s %*s %1023s %255s", target, options) != 2)
            fail(0, "a line of mountinfo is damaged");
        if (!is_wanted(target))
            fail(0, "there is a mount at %s", target);
        bool may_write = !strcmp(target, "/proc") || is_writable_place(target);
        if (!may_write && !has_option(options, "ro"))
            fail(0, "%s is writable", target);
        if (!has_option(options, "nosuid"))
            fail(0, "%s is not nosuid", target);
        if (!strcmp(target, "/proc"))
            proc_is_small = has_option(last + 1, "subset=pid");
        for (size_t i = 0; i < plan.writable_count; i++)
            if (!strcmp(target, plan.writable[i].target))
                seen |= 1U << i;
    }
    if (seen != (1U << plan.writable_count) - 1)
        fail(0, "a writable place is not the sandbox's own");
    if (!proc_is_small)
        fail(0, "/proc shows more than processes");
}

/* There is lo, nothing has passed it, and nothing else is there. */
static void expect_network(void)
{
    char text[4096];
    read_file("/proc/self/net/dev", text, sizeof text);
    char *line = strchr(text, '\n'), *counters;
    line = line ? strchr(line + 1, '\n') : NULL; /* two of headings */
    line = line ? line + 1 + strspn(line + 1, " ") : text;
    size_t size = strcspn(line, "\n");
    if (strncmp(line, "lo:", 3) || line[size] != '\n' || line[size + 1])
        fail(0, "the network is '%s'", line);
    counters = line + 3;
    if (strspn(counters, " 0") != size - 3)
        fail(0, "something has passed lo: '%.*s'", (int)size, line);
}

void attest_job(pid_t pid)
{
    char path[64], status[8192], ids[64];
    if (group_processes_now() < 1)
        fail(0, "its control group is empty");
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    read_file(path, status, sizeof status);
    expect_confined(status);
    snprintf(ids, sizeof ids, "%u\t%u\t%u\t%u", plan.job_uid, plan.job_uid, plan.job_uid,
             plan.job_uid);
    expect(status, "Uid", ids);
    snprintf(ids, sizeof ids, "%u\t%u\t%u\t%u", plan.gid, plan.gid, plan.gid, plan.gid);
    expect(status, "Gid", ids);
    expect(status, "Groups", "");
    expect_ids(pid);
    expect_descriptors(pid);
    expect_namespaces(pid);
    expect_groups(pid);
    expect_session(pid);
    expect_limits(pid);
    expect_mounts();
    expect_network();
}

void attest_self(void)
{
    char status[8192], ids[64];
    current_step = "attest_init";
    read_file("/proc/self/status", status, sizeof status);
    expect_confined(status);
    snprintf(ids, sizeof ids, "%u\t%u\t%u\t%u", plan.init_uid, plan.job_uid, plan.init_uid,
             plan.job_uid);
    expect(status, "Uid", ids);
    expect(status, "Pid", "1");
}
