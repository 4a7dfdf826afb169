/* The job's log and PID 1's last words. Runs as: PID 1. I/O: pwrite. The layout of the
   records is that of ../../logs.py, that of the journal of ../../journal.py. */

#include "init.h"

#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum { HEADER_BYTES = 64, RECORD_BYTES = 24, PAD = 0, SLOT_BYTES = 132 * 1024 };

static const uint64_t magic = 0x31676F6C72646E73; /* "sndrlog1" */

struct mark { /* of a record in the ring */
    int64_t end, output;
};

static struct {
    int fd;
    int64_t capacity, head_end, ring_size;
    int64_t end, dropped, ring_base, first;
    struct mark *marks; /* oldest first, from marks_head on */
    size_t marks_head, marks_count, marks_room;
} job_log;

static void save(void)
{
    uint64_t header[5] = {magic, (uint64_t)job_log.end, (uint64_t)job_log.ring_base,
                          (uint64_t)job_log.first, (uint64_t)job_log.dropped};
    must(pwrite(job_log.fd, header, sizeof header, 0), "pwrite(log)");
}

void log_open(int fd, int64_t capacity)
{
    job_log.fd = fd;
    job_log.capacity = capacity;
    job_log.head_end = (capacity - HEADER_BYTES) / 2;
    job_log.ring_size = capacity - HEADER_BYTES - job_log.head_end;
    if (capacity < HEADER_BYTES + 4 * (RECORD_BYTES + MAX_DATA))
        fail(0, "a log of %lld bytes is too small", (long long)capacity);
    save();
}

static void put_record(int64_t at, int stream, struct bytes data, double t, uint32_t length)
{
    uint8_t head[RECORD_BYTES] = {0};
    uint64_t seq = (uint64_t)(job_log.end + RECORD_BYTES + length);
    memcpy(head, &seq, 8);
    memcpy(head + 8, &t, 8);
    memcpy(head + 16, &length, 4);
    head[20] = (uint8_t)stream;
    struct iovec parts[2] = {{head, sizeof head}, {(void *)data.at, data.size}};
    must(pwritev(job_log.fd, parts, data.size ? 2 : 1, at), "pwritev(log)");
}

static void make_room(int64_t new_end)
{
    int64_t before = job_log.first;
    while (job_log.first < new_end - job_log.ring_size && job_log.marks_count) {
        struct mark oldest = job_log.marks[job_log.marks_head++];
        job_log.marks_count--;
        job_log.first = oldest.end;
        job_log.dropped += oldest.output;
    }
    if (job_log.first != before)
        save(); /* before the bytes are overwritten */
}

static void add_mark(int64_t end, int64_t output)
{
    if (job_log.marks_head + job_log.marks_count == job_log.marks_room) {
        if (job_log.marks_head > job_log.marks_room / 2) {
            memmove(job_log.marks, job_log.marks + job_log.marks_head,
                    job_log.marks_count * sizeof *job_log.marks);
        } else {
            /* At most one per 24 bytes of ring. */
            size_t room = job_log.marks_room ? 2 * job_log.marks_room : 256;
            struct mark *marks = malloc(room * sizeof *marks);
            if (!marks)
                fail(ENOMEM, "no memory for the log");
            if (job_log.marks_count)
                memcpy(marks, job_log.marks + job_log.marks_head,
                       job_log.marks_count * sizeof *marks);
            free(job_log.marks);
            job_log.marks = marks;
            job_log.marks_room = room;
        }
        job_log.marks_head = 0;
    }
    job_log.marks[job_log.marks_head + job_log.marks_count++] = (struct mark){end, output};
}

static int64_t physical(int64_t position)
{
    return HEADER_BYTES + job_log.head_end + (position - job_log.ring_base) % job_log.ring_size;
}

static void append(int stream, struct bytes data, double t)
{
    int64_t size = RECORD_BYTES + (int64_t)data.size;
    if (!job_log.ring_base) {
        if (job_log.end + size <= job_log.head_end) {
            put_record(HEADER_BYTES + job_log.end, stream, data, t, (uint32_t)data.size);
            job_log.end += size;
            return;
        }
        job_log.ring_base = job_log.first = job_log.end;
    }
    int64_t room = job_log.ring_size - (job_log.end - job_log.ring_base) % job_log.ring_size;
    if (room < size) {
        make_room(job_log.end + room);
        if (room >= RECORD_BYTES)
            put_record(physical(job_log.end), PAD, (struct bytes){NULL, 0}, t,
                       (uint32_t)(room - RECORD_BYTES));
        job_log.end += room;
        add_mark(job_log.end, 0);
    }
    make_room(job_log.end + size);
    put_record(physical(job_log.end), stream, data, t, (uint32_t)data.size);
    job_log.end += size;
    add_mark(job_log.end, (int64_t)data.size);
}

void log_write(int stream, struct bytes data, double t)
{
    while (data.size) {
        size_t part = data.size < MAX_DATA ? data.size : MAX_DATA;
        append(stream, (struct bytes){data.at, part}, t);
        data.at += part;
        data.size -= part;
    }
    save();
}

int64_t log_end(void)
{
    return job_log.end;
}

int64_t log_dropped(void)
{
    return job_log.dropped;
}

static uint32_t crc32_of(struct bytes data)
{
    uint32_t crc = ~0U;
    for (size_t i = 0; i < data.size; i++) {
        crc ^= data.at[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (0xEDB88320U & -(crc & 1));
    }
    return ~crc;
}

void journal_write(int slot, struct bytes message)
{
    uint8_t head[16];
    uint32_t length = (uint32_t)message.size, crc = crc32_of(message);
    double t = now_s();
    memcpy(head, &length, 4);
    memcpy(head + 4, &crc, 4);
    memcpy(head + 8, &t, 8);
    struct iovec parts[2] = {{head, sizeof head}, {(void *)message.at, message.size}};
    /* No page left for it: the message itself still gets through. */
    if (pwritev(job_log.fd, parts, 2, job_log.capacity + (int64_t)slot * SLOT_BYTES) < 0)
        return;
}
