/* What all sandboxes of one spawner share. Made once by launcher.py as msgpack in
   a sealed memory file, mapped by every PID 1; it is ours, and still it is checked. */

#include "init.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct plan plan;
struct order order;

struct limits read_limits(struct bytes map)
{
    return (struct limits){
        .timeout_s = number_field(map, "timeout_s"),
        .cpu_seconds = number_field(map, "cpu_seconds"),
        .memory_bytes = int_field(map, "memory_bytes"),
        .storage_bytes = int_field(map, "storage_bytes"),
        .processes = int_field(map, "processes"),
        .open_files = int_field(map, "open_files"),
        .log_bytes = int_field(map, "log_bytes"),
        .output_bytes = int_field(map, "output_bytes"),
    };
}

static struct bytes raw_field(struct bytes map, const char *key)
{
    struct cursor c = field(map, key);
    struct bytes raw = take_raw(&c);
    if (c.bad)
        fail(0, "the plan has no %s", key);
    return raw;
}

static struct bytes needed_text(struct bytes map, const char *key)
{
    struct cursor c = field(map, key);
    struct bytes text = take_text(&c);
    if (c.bad)
        fail(0, "the plan has no %s", key);
    return text;
}

static int64_t needed_int(struct bytes map, const char *key)
{
    struct cursor c = field(map, key);
    int64_t value = take_int(&c);
    if (c.bad)
        fail(0, "the plan has no %s", key);
    return value;
}

static void read_writable(struct bytes raw)
{
    struct cursor c = cursor_of(raw);
    uint32_t count = take_array(&c);
    if (!count || count > MAX_WRITABLE)
        fail(0, "%u writable places", count);
    for (uint32_t i = 0; i < count; i++) {
        if (take_array(&c) != 2)
            fail(0, "a writable place is no pair");
        plan.writable[i].name = text_of(take_text(&c));
        plan.writable[i].target = text_of(take_text(&c));
    }
    if (c.bad)
        fail(0, "the writable places are damaged");
    plan.writable_count = count;
}

static void read_rlimits(struct bytes raw)
{
    struct cursor c = cursor_of(raw);
    uint32_t count = take_array(&c);
    if (!count || count > MAX_RLIMITS)
        fail(0, "%u resource limits", count);
    for (uint32_t i = 0; i < count; i++) {
        if (take_array(&c) != 3)
            fail(0, "a resource limit is no triple");
        plan.rlimits[i].resource = (int)take_int(&c);
        plan.rlimits[i].soft = (uint64_t)take_int(&c); /* -1: RLIM_INFINITY */
        plan.rlimits[i].hard = (uint64_t)take_int(&c);
    }
    if (c.bad)
        fail(0, "the resource limits are damaged");
    plan.rlimit_count = count;
}

void read_plan(int fd)
{
    struct stat info;
    must(fstat(fd, &info), "fstat");
    size_t size = (size_t)info.st_size;
    const uint8_t *at = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        fail(errno, "the plan cannot be mapped");
    close(fd);
    struct bytes all = {at, size};
    plan.environment = needed_text(all, "environment");
    plan.known_environments = raw_field(all, "known_environments");
    plan.commands = raw_field(all, "commands");
    plan.warm = raw_field(all, "warm");
    plan.env = raw_field(all, "env");
    plan.read_only_trees = raw_field(all, "read_only_trees");
    plan.filter_default = needed_text(all, "filter_default");
    plan.filter_warm = needed_text(all, "filter_warm");
    plan.filter_compute = needed_text(all, "filter_compute");
    plan.filter_zygote = needed_text(all, "filter_zygote");
    plan.defaults = read_limits(raw_field(all, "default_limits"));
    plan.maxima = read_limits(raw_field(all, "max_limits"));
    read_rlimits(raw_field(all, "rlimits"));
    read_writable(raw_field(all, "writable"));
    plan.box = text_of(needed_text(all, "box"));
    plan.work = text_of(needed_text(all, "work"));
    plan.environment_place = text_of(needed_text(all, "environment_place"));
    plan.hostname = text_of(needed_text(all, "hostname"));
    plan.job_uid = (uid_t)needed_int(all, "job_uid");
    plan.init_uid = (uid_t)needed_int(all, "init_uid");
    plan.gid = (gid_t)needed_int(all, "gid");
    plan.landlock_abi = (int)needed_int(all, "landlock_abi");
    plan.last_capability = (int)needed_int(all, "last_capability");
}
