/* The job's inline files, and whether /work is still as it was. Runs as: PID 1, with the
   job's effective uid. I/O. Names come from http, which has checked them; http may have
   been taken over, so they are checked again. The rules are those of ../../paths.py. */

#include "init.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_PATH = 1024, MAX_NAME = 255, MAX_DEPTH = 100, MAX_WALK = 1000 };

static struct placed {
    char *path;
    int64_t size, mtime_ns;
    uint64_t inode;
} *placed;
static size_t placed_count, placed_room;

static const char *fault_of(struct bytes path)
{
    size_t depth = 0;
    if (!path.size || path.size > MAX_PATH)
        return "its name is empty or too long";
    if (path.at[0] == '/' || path.at[path.size - 1] == '/')
        return "its name is no relative path";
    for (size_t i = 0; i < path.size; i++) {
        uint8_t c = path.at[i];
        if (c < 0x20 || c == 0x7f || c == '\\' ||
            (c == 0xc2 && i + 1 < path.size && path.at[i + 1] >= 0x80 && path.at[i + 1] < 0xa0))
            return "its name has a control character or a backslash";
    }
    for (size_t start = 0; start < path.size;) {
        size_t size = 0;
        while (start + size < path.size && path.at[start + size] != '/')
            size++;
        struct bytes name = {path.at + start, size};
        if (!size || size > MAX_NAME || is_word(name, ".") || is_word(name, ".."))
            return "its name has an empty, overlong, '.' or '..' segment";
        start += size + 1;
        if (++depth > MAX_DEPTH)
            return "its name is too deep";
    }
    return NULL;
}

/* The descriptor of the directory that `path` lies in; *last becomes its name there. */
static int enter_parent(char *path, char **last)
{
    int at = fcntl(work_fd, F_DUPFD_CLOEXEC, 0);
    for (char *slash; at >= 0 && (slash = strchr(path, '/')); path = slash + 1) {
        *slash = 0;
        int below = -1;
        if (!mkdirat(at, path, 0755) || errno == EEXIST)
            below = openat(at, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        int number = errno;
        close(at);
        errno = number;
        at = below;
        *slash = '/';
    }
    *last = path;
    return at;
}

static bool is_runnable(struct bytes data)
{
    return (data.size >= 4 && !memcmp(data.at, "\x7f" "ELF", 4)) ||
           (data.size >= 2 && !memcmp(data.at, "#!", 2));
}

static int fill(int fd, struct bytes data, bool executable)
{
    struct stat info;
    while (data.size) {
        ssize_t done = write(fd, data.at, data.size);
        if (done < 0)
            return -1;
        data.at += done;
        data.size -= (size_t)done;
    }
    if (fchmod(fd, executable ? 0755 : 0644) || fstat(fd, &info))
        return -1;
    /* tmpfs' clock ticks every 4 ms: a change so soon would not show. A whole second is
       no tick. */
    struct timespec whole[2] = {{info.st_mtim.tv_sec, 0}, {info.st_mtim.tv_sec, 0}};
    return futimens(fd, whole);
}

static void remember(struct bytes path, int fd)
{
    struct stat info;
    if (fstat(fd, &info))
        return; /* it will be looked at as if it were new */
    if (placed_count == placed_room) {
        placed_room = placed_room ? 2 * placed_room : 16;
        placed = realloc(placed, placed_room * sizeof *placed);
        if (!placed)
            fail(ENOMEM, "no memory");
    }
    placed[placed_count++] = (struct placed){text_of(path), info.st_size,
                                             info.st_mtim.tv_sec * 1000000000LL,
                                             info.st_ino};
}

void place_file(struct bytes path, struct bytes data, bool executable, char *reason, size_t room)
{
    char *last;
    const char *fault = fault_of(path);
    if (fault) {
        snprintf(reason, room, "%.*s: %s", (int)(path.size < 200 ? path.size : 200),
                 (const char *)path.at, fault);
        return;
    }
    char *text = text_of(path);
    int directory = enter_parent(text, &last);
    int fd = directory < 0 ? -1
                           : openat(directory, last,
                                    O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        snprintf(reason, room, "%.200s: %s", text, strerror(errno));
    else if (fill(fd, data, executable || is_runnable(data)))
        snprintf(reason, room, "%.200s: it does not fit: %s", text, strerror(errno));
    else
        remember(path, fd);
    if (fd >= 0)
        close(fd);
    if (directory >= 0)
        close(directory);
    free(text);
}

static bool is_as_placed(const char *path, const struct stat *info)
{
    int64_t mtime_ns = info->st_mtim.tv_sec * 1000000000LL + info->st_mtim.tv_nsec;
    for (size_t i = 0; i < placed_count; i++)
        if (!strcmp(placed[i].path, path))
            return placed[i].size == info->st_size && placed[i].inode == info->st_ino &&
                   placed[i].mtime_ns == mtime_ns;
    return false;
}

static bool is_unchanged(int directory, const char *prefix, int depth, int *left,
                         bool ignore_pycache)
{
    struct stat info;
    DIR *entries = directory < 0 ? NULL : fdopendir(directory);
    bool unchanged = entries && depth <= MAX_DEPTH && !fstat(directory, &info) &&
                     (info.st_mode & 0700) == 0700;
    if (!entries && directory >= 0)
        close(directory);
    for (struct dirent *entry; unchanged && (entry = readdir(entries));) {
        char path[MAX_PATH + MAX_NAME + 2];
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        int size = snprintf(path, sizeof path, "%s%s", prefix, entry->d_name);
        if (--*left < 0 || size < 0 || size > MAX_PATH ||
            fstatat(directory, entry->d_name, &info, AT_SYMLINK_NOFOLLOW)) {
            unchanged = false;
        } else if (!S_ISDIR(info.st_mode)) {
            unchanged = is_as_placed(path, &info);
        } else if (!ignore_pycache || strcmp(entry->d_name, "__pycache__")) {
            strcat(path, "/");
            unchanged = is_unchanged(openat(directory, entry->d_name,
                                            O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC),
                                     path, depth + 1, left, ignore_pycache);
        }
    }
    if (entries)
        closedir(entries);
    return unchanged;
}

/* False if in doubt: then somebody with more patience looks. */
bool work_is_unchanged(bool ignore_pycache)
{
    int left = MAX_WALK;
    int directory = openat(work_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return is_unchanged(directory, "", 0, &left, ignore_pycache);
}

void put_snapshot(struct out *o)
{
    put_array(o, (uint32_t)placed_count);
    for (size_t i = 0; i < placed_count; i++) {
        put_array(o, 4);
        put_bin(o, (struct bytes){(const uint8_t *)placed[i].path, strlen(placed[i].path)});
        put_int(o, placed[i].size);
        put_int(o, placed[i].mtime_ns);
        put_int(o, (int64_t)placed[i].inode);
    }
}
