/* The boot, as a list of steps. Runs as: root of the sandbox's user namespace until the
   last ones. The reference, with the reasons for the order and for the identity (P, J,
   P), is zygote/boot.py. */

#include "init.h"

#include <fcntl.h>
#include <grp.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* linux/landlock.h, which older headers lack in part. man: landlock(7) */
enum {
    FS_EXECUTE = 1 << 0,
    FS_WRITE_FILE = 1 << 1,
    FS_READ_FILE = 1 << 2,
    FS_READ_DIR = 1 << 3,
    FS_REMOVE_DIR = 1 << 4,
    FS_REMOVE_FILE = 1 << 5,
    FS_MAKE_CHAR = 1 << 6,
    FS_MAKE_DIR = 1 << 7,
    FS_MAKE_REG = 1 << 8,
    FS_MAKE_SOCK = 1 << 9,
    FS_MAKE_FIFO = 1 << 10,
    FS_MAKE_BLOCK = 1 << 11,
    FS_MAKE_SYM = 1 << 12,
    FS_REFER = 1 << 13,    /* ABI 2 */
    FS_TRUNCATE = 1 << 14, /* ABI 3 */
    SCOPE_ABSTRACT_UNIX_SOCKET = 1, /* ABI 6 */
    SCOPE_SIGNAL = 2,
    READ = FS_READ_FILE | FS_READ_DIR | FS_EXECUTE,
    WRITE = FS_WRITE_FILE | FS_REMOVE_DIR | FS_REMOVE_FILE | FS_MAKE_DIR | FS_MAKE_REG |
            FS_MAKE_SOCK | FS_MAKE_FIFO | FS_MAKE_SYM | FS_REFER | FS_TRUNCATE,
};

/* NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE, each with its lock. */
enum { SECBITS_LOCKED = 0x2F | 0xC0 };

int work_fd = -1, signal_fd = -1;
struct process parked;
static int init_ruleset = -1;

static void take_ids(void)
{
    must(setgroups(0, NULL), "setgroups");
    must(setresgid(plan.gid, plan.gid, plan.gid), "setresgid");
    must(setresuid(plan.init_uid, plan.job_uid, plan.init_uid), "setresuid");
    must(prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), "prctl(PDEATHSIG)");
    must(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl(DUMPABLE)");
}

static void quiet_descriptors(void)
{
    int null = (int)must(open("/dev/null", O_RDWR | O_CLOEXEC), "/dev/null");
    for (int fd = 0; fd < 3; fd++)
        must(dup2(null, fd), "dup2");
    close(null);
}

static void writable_places(void)
{
    char path[256];
    kernel_move_mount(FD_TMPFS, plan.box);
    close(FD_TMPFS);
    for (size_t i = 0; i < plan.writable_count; i++) {
        snprintf(path, sizeof path, "%s/%s", plan.box, plan.writable[i].name);
        must(mkdir(path, 0700), path);
        must(mount(path, plan.writable[i].target, "none", MS_BIND, NULL), path);
    }
    must(umount2(plan.box, MNT_DETACH), plan.box); /* this way in is gone */
}

static void proc(void)
{
    must(mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC,
               "subset=pid,hidepid=invisible"),
         "mount(/proc)");
}

static void names(void)
{
    must(sethostname(plan.hostname, strlen(plan.hostname)), "sethostname");
    must(prctl(PR_SET_NAME, "sandrun-init", 0, 0, 0), "prctl(NAME)");
}

static void loopback(void)
{
    struct ifreq request = {.ifr_name = "lo"};
    int fd = (int)must(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");
    must(ioctl(fd, SIOCGIFFLAGS, &request), "ioctl(SIOCGIFFLAGS)");
    if (!(request.ifr_flags & IFF_UP))
        fail(ENETDOWN, "lo is not up");
    close(fd);
}

static void work_directory(void)
{
    work_fd = (int)must(open(plan.work, O_RDONLY | O_DIRECTORY | O_CLOEXEC), plan.work);
    must(chdir(plan.work), plan.work);
    umask(022);
}

static void landlock_rulesets(void)
{
    /* PID 1's has no scopes: the kernel would count the job as a stranger that it may
       not kill. */
    int abi = plan.landlock_abi;
    if (!abi)
        return;
    uint64_t handled = READ | WRITE | FS_MAKE_CHAR | FS_MAKE_BLOCK;
    if (abi < 2)
        handled &= ~(uint64_t)FS_REFER;
    if (abi < 3)
        handled &= ~(uint64_t)FS_TRUNCATE;
    size_t size = abi >= 6 ? 24 : abi >= 4 ? 16 : 8;
    job_ruleset =
        landlock_ruleset(handled, abi >= 6 ? SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL : 0, size);
    init_ruleset = landlock_ruleset(handled, 0, size);
    struct {
        const char *path;
        uint64_t access;
    } rules[2 + MAX_WRITABLE] = {{"/", READ}, {"/dev", READ | FS_WRITE_FILE}};
    size_t count = 2;
    for (size_t i = 0; i < plan.writable_count; i++) {
        rules[count].path = plan.writable[i].target;
        rules[count++].access = READ | WRITE;
    }
    for (size_t i = 0; i < count; i++) {
        int fd = (int)must(open(rules[i].path, O_PATH | O_CLOEXEC), rules[i].path);
        landlock_allow(job_ruleset, fd, rules[i].access & handled);
        landlock_allow(init_ruleset, fd, rules[i].access & handled);
        close(fd);
    }
}

static void bounding_set(void)
{
    for (int capability = 0; capability <= plan.last_capability; capability++)
        must(prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "prctl(CAPBSET_DROP)");
    must(prctl(PR_SET_SECUREBITS, SECBITS_LOCKED, 0, 0, 0), "prctl(SECUREBITS)");
}

static void wake_ups(void)
{
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    must(sigprocmask(SIG_SETMASK, &child, NULL), "sigprocmask");
    signal(SIGPIPE, SIG_IGN);
    signal_fd = (int)must(signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK), "signalfd");
}

static void park(void)
{
    if (is_word(order.mode, "fork"))
        parked = park_from_template(FD_TEMPLATE);
    else if (is_word(order.mode, "door"))
        parked = park_door(order.warm);
    else
        parked = park_exec();
    await_ready(&parked);
}

static void cgroup_namespace(void)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/cgroup", parked.pid);
    int fd = (int)must(open(path, O_RDONLY | O_CLOEXEC), path);
    must(setns(fd, CLONE_NEWCGROUP), "setns(NEWCGROUP)");
    close(fd);
}

static void attest_the_job(void)
{
    if (plan.landlock_abi && (job_ruleset < 0 || init_ruleset < 0))
        fail(0, "Landlock is there and there are no rules");
    attest_job(parked.pid);
}

static void confine(void)
{
    must(setrlimit(RLIMIT_CORE, &(struct rlimit){1, 1}), "setrlimit");
    no_capabilities();
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(NO_NEW_PRIVS)");
    if (init_ruleset >= 0) {
        landlock_restrict(init_ruleset);
        close(init_ruleset);
    }
    load_filter(plan.filter_zygote);
}

static void attest_init(void)
{
    attest_self();
    /* From here on, nothing inside may look into us. */
    must(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl(DUMPABLE)");
}

static const struct step boot_steps[] = {
    {"take_ids", take_ids},
    {"quiet_descriptors", quiet_descriptors},
    {"writable_places", writable_places},
    {"proc", proc},
    {"names", names},
    {"loopback", loopback},
    {"work_directory", work_directory},
    {"landlock_rulesets", landlock_rulesets},
    {"bounding_set", bounding_set},
    {"wake_ups", wake_ups},
    {"park", park},
    {"cgroup_namespace", cgroup_namespace},
    {"attest_job", attest_the_job},
    {"confine", confine},
    {"attest_self", attest_init},
};

void boot(void)
{
    take_steps("boot", boot_steps, sizeof boot_steps / sizeof *boot_steps);
}
