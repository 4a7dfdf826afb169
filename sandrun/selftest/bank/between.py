"""H: from one job to the next, or to one at the same time."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from sandrun.selftest.bank._words import python
from sandrun.selftest.case import Call, Case, Unable, expect
from sandrun.selftest.target import Target

_RUNS: Final = 12
_MARK: Final = "c4n4ry-of-another-job"


def _files_do_not_stay(target: Target) -> None:
    write = (
        "import os\n"
        "for d in ('/work', '/tmp', '/home/sandrun', '/dev/shm', '/var/tmp'):\n"
        f"    open(d + '/left', 'w').write('{_MARK}')\n"
        "    os.makedirs(d + '/.cache/x', exist_ok=True)\n"
    )
    read = (
        "import os\n"
        "for d in ('/work', '/tmp', '/home/sandrun', '/dev/shm', '/var/tmp', '/run', '/opt'):\n"
        "    for root, dirs, files in os.walk(d):\n"
        "        for f in files:\n"
        "            p = os.path.join(root, f)\n"
        "            if not p.startswith('/run/sandrun/') and not p.startswith('/opt/env') and p != '/work/main.py': print(p)\n"
        "print('held')\n"
    )
    for _ in range(6):
        target.run({"main.py": write}, {"outputs": []})
        found = target.run({"main.py": read})["stdout"]
        expect(found == "held\n", f"a later job finds {found!r}")


def _memory_does_not_stay(target: Target) -> None:
    fill = f"b = [b'{_MARK}' * 50000 for _ in range(30)]\nopen('/tmp/x', 'wb').write(b[0])\n"
    # The marker is put together at run time, so that the program itself does not hold it.
    look = (
        "import mmap\n"
        f"mark = b'-'.join({_MARK.split('-')!r}[i].encode() for i in range(4))\n"
        "n = 0\n"
        "for _ in range(40):\n"
        "    m = mmap.mmap(-1, 4 << 20)\n"
        "    n += m.find(mark) >= 0\n"
        "    m.close()\n"
        "import ctypes\n"
        "for _ in range(20):\n"
        "    b = ctypes.create_string_buffer(1 << 20)\n"
        "    n += b.raw.find(mark) >= 0\n"
        "print('held' if not n else n)\n"
    )
    for _ in range(4):
        target.run({"main.py": fill}, {"outputs": []})
        found = target.run({"main.py": look})["stdout"]
        expect(found == "held\n", f"marker found {found!r} times")


def _nothing_repeats(target: Target) -> None:
    code = (
        "import json, os, random, ssl, tempfile, uuid, secrets\n"
        "at = open('/proc/self/auxv', 'rb').read()\n"
        "print(json.dumps({'random': random.random(), 'hash': hash('x'), 'ssl': ssl.RAND_bytes(8).hex(),\n"
        " 'temp': tempfile.mktemp(), 'uuid4': str(uuid.uuid4()), 'urandom': os.urandom(8).hex(),\n"
        " 'token': secrets.token_hex(8), 'id': id(object()),\n"
        " 'stack': [l.split('-')[0] for l in open('/proc/self/maps') if '[stack]' in l],\n"
        " 'libc': [l.split('-')[0] for l in open('/proc/self/maps') if 'libc.so' in l][:1]}))\n"
    )
    seen: dict[str, list[str]] = {}
    for _ in range(_RUNS):
        for name, value in json.loads(target.run({"main.py": code})["stdout"]).items():
            seen.setdefault(name, []).append(str(value))
    for name, values in seen.items():
        # Children of one template share their layout; what is drawn must always differ.
        shared = {"hash", "id", "stack", "libc"}
        if name in shared and _forks(target):
            continue
        expect(len(set(values)) == len(values), f"{name} repeats in {_RUNS} jobs: {values[:3]}...")


def _forks(target: Target) -> bool:
    listed = target.get("/environments").json()["interpreters"]
    return any(entry["name"] == "python3" and entry["mode"] == "fork" for entry in listed)


def _node_random(target: Target) -> None:
    if "node" not in target.programs():
        raise Unable("the sandbox has no node")
    code = "console.log(Math.random(), require('crypto').randomBytes(8).toString('hex'))"
    values = [target.run({"index.js": code})["stdout"] for _ in range(5)]
    expect(len(set(values)) == len(values), "random numbers repeat between node jobs")
    parts = [value.split()[0] for value in values]
    expect(len(set(parts)) == len(parts), "Math.random repeats between node jobs")


def _others_are_invisible(target: Target) -> None:
    waiting = "import time; print('here', flush=True); time.sleep(6)"
    job = target.submit({"main.py": waiting}, timeout=10)
    look = (
        "import os\n"
        "pids = [p for p in os.listdir('/proc') if p.isdigit()]\n"
        "print(len(pids), [l.split(':')[1].strip() for l in open('/proc/self/status') if l.startswith('NSpid')][0])\n"
    )
    answer = target.run({"main.py": look})
    count, pid = answer["stdout"].split()[:2]
    target.request("POST", f"/jobs/{job['job_id']}/cancel")
    expect(int(count) <= 2, f"{count} processes are visible")
    expect(int(pid) < 100, f"pids start at {pid}")


def _id_is_not_inside(target: Target) -> None:
    code = (
        "import os, socket\n"
        "text = repr(os.environ) + socket.gethostname() + os.getcwd()\n"
        "for p in ('cgroup', 'mountinfo', 'cmdline', 'environ', 'status', 'maps'):\n"
        "    text += open('/proc/self/' + p, errors='replace').read()\n"
        "print(text)\n"
    )
    answer = target.run({"main.py": code})
    for name in ("job_id", "view_id"):
        secret = answer[name].partition("_")[2]
        expect(secret not in answer["stdout"], f"the job sees its own {name}")


def _logs_do_not_mix(target: Target) -> None:
    def one(number: int) -> tuple[int, str]:
        code = f"for i in range(6000): print('{number}' * 40)"
        return number, target.run({"main.py": code})["stdout"]

    with ThreadPoolExecutor(3) as pool:
        for number, text in pool.map(one, range(3)):
            wanted = f"{str(number) * 40}\n" * 6000
            expect(text == wanted, f"log of {number} holds {sorted(set(text))}")


def _caches_are_not_shared(target: Target) -> None:
    poison = (
        "import os, glob, sysconfig\n"
        "n = 0\n"
        "for d in [sysconfig.get_path('stdlib') + '/__pycache__', os.path.expanduser('~/.cache'), '/var/cache/fontconfig', '/run/sandrun/python', '/opt/env']:\n"
        "    try:\n        os.makedirs(d, exist_ok=True)\n"
        "        for p in [d + '/json.py', d + '/sitecustomize.py', d + '/x.pyc']:\n"
        "            open(p, 'w').write('print(1)'); n += not p.startswith('/home/sandrun')\n"
        "    except OSError: pass\n"
        "for p in glob.glob(sysconfig.get_path('stdlib') + '/__pycache__/os.*.pyc'):\n"
        "    try: open(p, 'r+b').write(b'xxxx'); n += 1\n    except OSError: pass\n"
        "print('held' if not n else n)\n"
    )
    answer = target.run({"main.py": poison}, {"outputs": []})
    expect(answer["stdout"] == "held\n", f"wrote {answer['stdout']!r} {answer['stderr'][-200:]!r}")
    found = target.run(
        {"main.py": "import json, os; print(os.path.exists(os.path.expanduser('~/.cache')))"}
    )
    expect(found["stdout"] == "False\n", "the next job finds the last one's cache")


def _different_users(target: Target) -> None:
    code = "import time\nprint(open('/proc/self/uid_map').read().split()[1], flush=True)\ntime.sleep(1)\n"
    jobs = [target.submit({"main.py": code}) for _ in range(3)]
    found = []
    for job in jobs:
        target.wait(job["job_id"])
        found.append(target.get(f"/logs/{job['job_id']}").json()["stdout"].strip())
    expect(len(set(found)) == len(found), f"live jobs share ids of their outer namespace: {found}")
    expect(all(re.fullmatch(r"[1-9]\d*", text) for text in found), f"uid maps: {found}")


CASES: Final[tuple[Case, ...]] = (
    Call(id="H1.files", title="files of a job are gone with it", run=_files_do_not_stay),
    Call(
        id="H2",
        title="memory of a job is not found by the next",
        run=_memory_does_not_stay,
        heavy=True,
    ),
    Call(
        id="H5",
        title="random numbers, hashes and addresses differ between jobs",
        run=_nothing_repeats,
    ),
    Call(
        id="H5.node",
        title="node's random numbers differ between jobs",
        run=_node_random,
        needs=("node",),
    ),
    Call(id="H6", title="a job at the same time is invisible", run=_others_are_invisible),
    Call(
        id="H6.users",
        title="jobs at the same time have different users of the host",
        run=_different_users,
    ),
    python(
        "H7",
        "no System V object, key or message queue of others",
        """
        for path in ("/proc/sysvipc/shm", "/proc/keys", "/dev/mqueue", "/proc/key-users"):
            expect(path, os.path.exists(path), False)
        """,
    ),
    python(
        "H8",
        "leases, dnotify and inotify on shared files are refused",
        """
        import fcntl
        fd = os.open("/usr/bin/env", os.O_RDONLY)
        for name, command, value in (("F_SETLEASE", 1024, 0), ("F_NOTIFY", 1026, 1), ("F_GETLEASE", 1025, 0), ("F_ADD_SEALS", 1033, 1)):
            refused(name, fcntl.fcntl, fd, command, value, by=("EPERM", "EINVAL", "EACCES"))
        refused("inotify", raw, "inotify_init1", 0, by=("ENOSYS",))
        refused("fanotify", raw, "fanotify_init", 0, 0, by=("SIGSYS",))
        """,
    ),
    python(
        "H9",
        "the page cache cannot be asked what others have read",
        """
        import ctypes, mmap
        fd = os.open("/usr/bin/env", os.O_RDONLY)
        m = mmap.mmap(fd, 4096, prot=mmap.PROT_READ)
        refused("mincore", raw, "mincore", 4096, 4096, ctypes.create_string_buffer(8), by=("ENOSYS",))
        refused("cachestat", raw, 451, fd, None, None, 0, by=("ENOSYS",))
        def nowait():
            os.preadv(fd, [bytearray(10)], 0, 8)
        refused("RWF_NOWAIT", nowait, by=("ENOSYS", "ENOTSUP"))
        """,
    ),
    python(
        "H11",
        "load, uptime and interrupt counts of the host are not shown",
        """
        for name in ("loadavg", "uptime", "stat", "interrupts", "softirqs", "schedstat", "vmstat", "zoneinfo", "buddyinfo", "locks", "net/dev", "pressure/cpu"):
            expect(name, os.path.exists("/proc/" + name) and name != "net/dev", False)
        """,
    ),
    python(
        "H12",
        "no machine id, boot id or host's hostname",
        """
        for path in ("/etc/machine-id", "/var/lib/dbus/machine-id", "/proc/sys/kernel/random/boot_id", "/sys/class/dmi", "/etc/hostid", "/etc/ssh", "/etc/shadow", "/root", "/etc/cron.d"):
            expect(path, os.path.exists(path), False)
        expect("hostname", open("/etc/hostname").read(), "sandrun\\n")
        """,
    ),
    Call(id="H13", title="a job does not learn its own ids", run=_id_is_not_inside),
    Call(
        id="H14", title="logs of jobs at the same time do not mix", run=_logs_do_not_mix, heavy=True
    ),
    Call(id="H16", title="caches cannot be poisoned for the next job", run=_caches_are_not_shared),
    python(
        "H17.merge",
        "pages cannot be offered for merging with others' (KSM)",
        """
        refused("MADV_MERGEABLE", raw, "madvise", 0, 4096, 12, by=("EINVAL",))
        refused("PR_SET_MEMORY_MERGE", raw, "prctl", 67, 1, 0, 0, 0, by=("EINVAL",))
        """,
    ),
)
