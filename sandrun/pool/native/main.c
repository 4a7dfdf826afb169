/* PID 1's whole life: boot, report, serve one job, exit. See init.h. */

#include "init.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int self_fd = -1;

static void report_failure(const char *step, int number, const char *text)
{
    uint8_t buffer[1024];
    struct out o = {buffer, 0, sizeof buffer, false};
    put_map(&o, 5);
    put_str(&o, "type");
    put_str(&o, "BootFailed");
    put_str(&o, "zygote");
    put_int(&o, order.zygote);
    put_str(&o, "step");
    put_str(&o, step);
    put_str(&o, "errno");
    put_int(&o, number);
    put_str(&o, "detail");
    put_str(&o, text);
    send(FD_SUPERVISOR, buffer, o.size, MSG_NOSIGNAL);
    _exit(1);
}

static void report_booted(void)
{
    uint8_t buffer[64];
    struct out o = {buffer, 0, sizeof buffer, false};
    put_map(&o, 2);
    put_str(&o, "type");
    put_str(&o, "Booted");
    put_str(&o, "zygote");
    put_int(&o, order.zygote);
    must(send(FD_SUPERVISOR, buffer, o.size, MSG_NOSIGNAL), "send(Booted)");
    close(FD_SUPERVISOR);
}

/* Until the spawner has mapped our ids we are nobody. Its word is our order. */
static void await_order(void)
{
    static uint8_t buffer[4096];
    ssize_t size = must(recv(FD_GATE, buffer, sizeof buffer, 0), "recv(gate)");
    if (!size)
        _exit(0); /* the spawner could not map our ids, and has said so */
    close(FD_GATE);
    struct bytes text = {buffer, (size_t)size};
    struct cursor files = field(text, "control_files");
    order.zygote = int_field(text, "zygote");
    order.mode = text_field(text, "mode");
    order.warm = text_field(text, "warm");
    order.control_files = take_raw(&files);
    if (files.bad)
        fail(0, "the order is damaged");
}

static void adopt_descriptors(void)
{
    size_t count;
    /* Ours, and no child's that executes something. */
    must(syscall(SYS_close_range, FD_SUPERVISOR, ~0U, 4 /* CLOSE_RANGE_CLOEXEC */), "close_range");
    read_plan(FD_PLAN);
    open_group(order.control_files, FD_CONTROL, &count);
    self_fd = (int)must(syscall(SYS_pidfd_open, getpid(), 0), "pidfd_open");
#ifdef SANDRUN_FAULTS
    extern const char *fault_text;
    fault_text = mmap(NULL, 4096, PROT_READ, MAP_SHARED, FD_CONTROL + (int)count, 0);
    close(FD_CONTROL + (int)count);
#endif
}

int main(void)
{
    on_failure = report_failure;
    await_order();
    adopt_descriptors();
    boot();
    report_booted();
    return serve();
}
