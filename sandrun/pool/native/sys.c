/* Failing, small helpers, and the kernel's calls that the C library lacks. I/O. */

#include "init.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* The same on every architecture; older headers lack them. */
enum {
    CALL_MOVE_MOUNT = 429,
    CALL_LANDLOCK_CREATE_RULESET = 444,
    CALL_LANDLOCK_ADD_RULE,
    CALL_LANDLOCK_RESTRICT_SELF,
};

failure_handler *on_failure;
const char *current_step = "adopt_descriptors";

_Noreturn void fail(int number, const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    on_failure(current_step, number, text);
    _exit(1);
}

long must(long result, const char *what)
{
    if (result < 0) {
        int number = errno;
        fail(number, "[Errno %d] %s: %s", number, what, strerror(number));
    }
    return result;
}

#ifdef SANDRUN_FAULTS
/* Tests only, never in the program that is served: a mapped text of "kind place
   step" parts, joined by semicolons. See tests/sandbox/faulty.py. */
const char *fault_text;

static bool meets_fault(const char *place, const char *step)
{
    char word[128];
    for (const char *at = fault_text; at && *at; at = strchr(at, ';') ? strchr(at, ';') + 1 : "") {
        size_t size = strcspn(at, ";");
        static const char *const kinds[] = {"fail", "skip", "die"};
        for (int kind = 0; kind < 3; kind++) {
            snprintf(word, sizeof word, "%s %s %s", kinds[kind], place, step);
            if (strlen(word) != size || strncmp(word, at, size))
                continue;
            if (kind == 0)
                fail(EPERM, "[Errno 1] a fault was injected");
            if (kind == 2)
                _exit(7);
            return true;
        }
    }
    return false;
}
#else
static bool meets_fault(const char *place, const char *step)
{
    (void)place;
    (void)step;
    return false;
}
#endif

void take_steps(const char *place, const struct step *steps, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        current_step = steps[i].name;
        if (!meets_fault(place, steps[i].name))
            steps[i].run();
    }
}

double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

void write_word(int fd, const char *word)
{
    ssize_t size = (ssize_t)strlen(word);
    if (must(pwrite(fd, word, (size_t)size, 0), "write") != size)
        fail(0, "a control file took only a part");
}

void move_high(int *fd)
{
    *fd = (int)must(fcntl(*fd, F_DUPFD_CLOEXEC, 64), "fcntl(F_DUPFD)");
}

char *text_of(struct bytes text)
{
    if (memchr(text.at, 0, text.size))
        fail(0, "a text has a zero byte");
    char *copy = malloc(text.size + 1);
    if (!copy)
        fail(ENOMEM, "no memory");
    memcpy(copy, text.at, text.size);
    copy[text.size] = 0;
    return copy;
}

size_t read_file(const char *path, char *buffer, size_t size)
{
    int fd = (int)must(open(path, O_RDONLY | O_CLOEXEC), path);
    size_t done = 0;
    while (done < size - 1) {
        ssize_t part = must(read(fd, buffer + done, size - 1 - done), path);
        if (!part)
            break;
        done += (size_t)part;
    }
    if (done == size - 1)
        fail(EFBIG, "%s is longer than expected", path);
    close(fd);
    buffer[done] = 0;
    return done;
}

void kernel_move_mount(int fd, const char *target)
{
    enum { MOVE_MOUNT_EMPTY_PATH = 4 };
    must(syscall(CALL_MOVE_MOUNT, fd, "", AT_FDCWD, target, MOVE_MOUNT_EMPTY_PATH), "move_mount");
}

static int filter(struct bytes program, unsigned flags)
{
    struct {
        unsigned short length;
        const void *filter;
    } fprog = {(unsigned short)(program.size / 8), program.at};
    if (!program.size || program.size % 8 || program.size / 8 > 4096)
        fail(0, "there is no filter");
    return (int)must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &fprog), "seccomp");
}

void load_filter(struct bytes program)
{
    filter(program, 0);
}

int load_filter_with_listener(struct bytes program)
{
    return filter(program, SECCOMP_FILTER_FLAG_NEW_LISTENER);
}

int landlock_ruleset(uint64_t handled, uint64_t scope, size_t size)
{
    uint64_t attributes[3] = {handled, 0, scope};
    return (int)must(syscall(CALL_LANDLOCK_CREATE_RULESET, attributes, size, 0),
                     "landlock_create_ruleset");
}

void landlock_allow(int ruleset, int path, uint64_t access)
{
    struct __attribute__((packed)) {
        uint64_t access;
        int32_t path;
    } rule = {access, path};
    must(syscall(CALL_LANDLOCK_ADD_RULE, ruleset, 1, &rule, 0), "landlock_add_rule");
}

void landlock_restrict(int ruleset)
{
    must(syscall(CALL_LANDLOCK_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self");
}

void no_capabilities(void)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};
    must(syscall(SYS_capset, &header, none), "capset");
}
