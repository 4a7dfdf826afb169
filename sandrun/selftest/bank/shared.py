"""What the kernel keeps for everybody on the host, and no control group counts."""

from __future__ import annotations

from typing import Final

from sandrun.selftest.bank._words import heavy, python
from sandrun.selftest.case import Answer, Call, Case, expect
from sandrun.selftest.target import Target


def _of_the_kernel(answer: Answer) -> str:
    evidence = " ".join(answer.get("evidence") or ())
    return "" if "charges to nobody" in evidence else f"evidence {evidence!r}"


_TIMERS: Final = """
import ctypes, os, signal, sys, time
libc = ctypes.CDLL(None, use_errno=True)
event = ctypes.create_string_buffer(bytes(8) + (40).to_bytes(4, sys.byteorder) + bytes(52))
number = {"x86_64": 222, "aarch64": 107}[os.uname().machine]
def timers(most):
    for made in range(most):
        if libc.syscall(number, 1, ctypes.byref(event), ctypes.create_string_buffer(8)):
            return made
    return most
"""


def _timers_of_others(target: Target) -> None:
    """Counted for each user, and once more for whoever made their user namespaces."""
    greedy = target.submit(
        {"main.py": _TIMERS + "print(timers(200_000), flush=True)\ntime.sleep(20)"}, timeout=30
    )
    try:
        made = target.get(f"/logs/{greedy['job_id']}?wait=10").json()["stdout"].strip()
        expect(made.isdigit() and 8 <= int(made) < 10_000, f"one job made {made} timers")
        other = target.run({"main.py": _TIMERS + "print(timers(8))"})
        expect(other["stdout"] == "8\n", f"beside it another made {other['stdout']!r}")
    finally:
        target.request("POST", f"/jobs/{greedy['job_id']}/cancel")


_MANY_FILES: Final = """
import time
for n in range(4000):
    open("a" * 200 + f"{n:05}", "w").close()
print(time.process_time())
"""


def _collecting(target: Target) -> None:
    """Every pattern is looked at for every character of every name, by us and not by the job."""
    classes = ["[a-b]" * 11 + f"*{n}" for n in range(60)]
    answer = target.run({"main.py": _MANY_FILES}, {"outputs": classes})
    expect(answer["exit_reason"] == "exited", f"ended as {answer['exit_reason']!r}")
    expect("could not be collected" not in str(answer), "the outputs could not be collected")
    took = answer["execution_metadata"]["cpu_seconds"] - float(answer["stdout"])
    expect(took > 0.2, f"collecting was charged with {took:.2f} s")


_LISTENER: Final = """
import socket
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.bind(("0.0.0.0", 4242))
print("here", flush=True)
one.settimeout(2)
try: print(one.recv(99))
except TimeoutError: print("nothing")
"""
_SENDER: Final = """
import socket, struct
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for to in ("10.0.0.1", "169.254.169.254", "224.0.0.1", "239.1.1.1", "255.255.255.255", "127.9.9.9"):
    for via in (struct.pack("iii", 1, 0, 0), bytes(12)):  # IP_PKTINFO: out of lo, whatever routes say
        try: one.sendmsg([b"x"], [(0, 8, via)], 0, (to, 4242))
        except OSError: pass
print("held")
"""


def _packets(target: Target) -> None:
    listener = target.submit({"main.py": _LISTENER})
    target.get(f"/logs/{listener['job_id']}?wait=10")
    expect(target.run({"main.py": _SENDER})["stdout"] == "held\n", "the sender failed")
    target.wait(listener["job_id"])
    heard = target.get(f"/logs/{listener['job_id']}").json()["stdout"]
    expect(heard == "here\nnothing\n", f"the listener heard {heard!r}")


def _many_names(target: Target) -> None:
    code = (
        "import os\nopen('n', 'wb').write(bytes(1 << 20))\nmade = 0\ntry:\n"
        "    for n in range(10_000): os.link('n', f'n{n}'); made += 1\n"
        "except OSError: pass\nprint('held')\n"
    )
    answer = target.run({"main.py": code}, {"outputs": ["n*"]})
    expect(answer["stdout"] == "held\n", f"printed {answer['stdout']!r}")
    taken = answer["execution_metadata"]["output_bytes"]
    expect(taken <= 100 << 20, f"{taken} bytes were taken")


CASES: Final[tuple[Case, ...]] = (
    python(
        "E15.farewell",
        "an exit status that looks like a warm interpreter's farewell is a child's own affair",
        """
        import signal, threading
        for n in range(300):
            pid = os.fork()
            if pid == 0:
                if n % 3 == 1: signal.signal(signal.SIGALRM, lambda *_: None)
                if n % 3 == 1: signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
                if n % 3 == 2: threading.Thread(target=os._exit, args=(0x5EED5A00 | n % 256,)).start()
                else: os._exit(0x5EED5A00 | n % 256)
            _, how = os.waitpid(pid, 0)
            expect(n, how, (n % 256) << 8)
        """,
    ),
    heavy(
        "F55.unaccepted",
        "connections that nobody accepts end the job: the kernel charges them to nobody",
        """
        import socket
        servers = [socket.create_server(("127.0.0.1", 0), backlog=4096) for _ in range(100)]
        for server in servers:
            for _ in range(4000):
                client = socket.socket()
                client.setblocking(False)
                try: client.connect(server.getsockname())
                except BlockingIOError: pass
                client.close()
        """,
        reason=("out_of_memory",),
        stdout="",
        also=_of_the_kernel,
    ),
    heavy(
        "F56.unread",
        "what is sent to connections that nobody accepts ends the job as well, IPv6 too",
        """
        import socket, time
        server = socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=4096)
        for _ in range(2000):
            client = socket.socket(socket.AF_INET6)
            client.connect(server.getsockname())
            client.setblocking(False)
            try:
                while True: client.send(bytes(65536))
            except BlockingIOError: pass
            client.close()
        time.sleep(60)
        """,
        reason=("out_of_memory",),
        stdout="",
        also=_of_the_kernel,
    ),
    python(
        "F57.backlog",
        "a server that is slow to accept loses nothing",
        """
        import socket, time
        server = socket.create_server(("127.0.0.1", 0), backlog=512)
        clients = [socket.create_connection(server.getsockname()) for _ in range(100)]
        for client in clients: client.send(b"x" * 1000)
        time.sleep(0.6)  # longer than it takes to be looked at
        for _ in clients:
            one, _ = server.accept()
            expect("what was sent", one.recv(2000), b"x" * 1000)
            one.close()
        """,
    ),
    python(
        "F59.epolls",
        "epolls that watch epolls end at the kernel's depth, and a circle is refused",
        """
        import select
        r, w = os.pipe()
        chain, how = [r], "ok"
        try:
            for _ in range(8):
                one = select.epoll()
                one.register(chain[-1], 1)
                chain.append(one)
        except OSError as error:
            how = error.errno
        expect("the end of the chain", how, 22, 40)
        a, b = select.epoll(), select.epoll()
        a.register(b)
        def circle(): b.register(a)
        refused("a circle", circle, by=("ELOOP", "EINVAL"))
        """,
    ),
    python(
        "F60.files",
        "open files end at the limit of each process, and no descriptor in flight exceeds it",
        """
        import resource, socket
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        expect("a limit", hard < 100_000, True)
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        a.setblocking(False)
        flying = 0
        try:
            while flying < 100_000:
                socket.send_fds(a, [b"x"], [0] * 50)
                flying += 50
                if not flying % 500:
                    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
                    a.setblocking(False)
                    kept = globals().setdefault("kept", []); kept += [a, b]
        except OSError as error:
            expect("the end of it", error.errno, 109, 11, 24)
        expect("in flight", flying <= hard + 100, True)
        """,
    ),
    python(
        "G18.control",
        "control messages of a datagram give no power that a socket option would not",
        """
        import socket, struct
        for family, to in ((socket.AF_INET, ("127.0.0.1", 9)), (socket.AF_INET6, ("::1", 9))):
            one = socket.socket(family, socket.SOCK_DGRAM)
            def send(level, kind, data):
                one.sendmsg([b"x"], [(level, kind, data)], 0, to)
            refused("SO_MARK", send, 1, 36, struct.pack("i", 7))
            refused("SO_PRIORITY", send, 1, 12, struct.pack("i", 7))
            refused("SCM_TXTIME", send, 1, 61, struct.pack("q", 10**18))
            if family == socket.AF_INET6:
                for kind in (54, 55, 59):  # IPV6_HOPOPTS, IPV6_RTHDRDSTOPTS, IPV6_DSTOPTS
                    refused(kind, send, 41, kind, bytes([17, 0, 1, 4, 0, 0, 0, 0]))
        """,
    ),
    Call(id="G19.packets", title="a packet with a way of its own meets no other job", run=_packets),
    python(
        "S20.options",
        "of prctl's, fcntl's and madvise's commands only those on the list are there",
        """
        prctl = {1, 2, 3, 15, 16, 23, 29, 30, 38, 39, 41, 42}
        for option in set(range(85)) - prctl:
            refused("prctl %d" % option, raw, "prctl", option, 1, 0, 0, 0, by=("EINVAL", "EPERM", "SIGSYS"))
        fcntl = {0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032, 1033, 1034}
        for command in (set(range(45)) | set(range(1024, 1045))) - fcntl:
            refused("fcntl %d" % command, raw, "fcntl", 1, command, 1, by=("EPERM", "EINVAL"))
        advice = {0, 1, 2, 3, 4, 8, 10, 11, 14, 15, 16, 17, 18, 20, 21, 22, 23}
        for value in set(range(105)) - advice:
            refused("madvise %d" % value, raw, "madvise", 0, 4096, value, by=("EINVAL", "EPERM"))
        """,
    ),
    python(
        "S21.wake",
        "no timer wakes the machine from sleep, and no clock can be waited for beyond the job",
        """
        import ctypes
        place = ctypes.create_string_buffer(8)
        for clock in (8, 9):  # CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM
            refused(clock, raw, "timer_create", clock, None, place)
        for pid in (1, 2 ** 20):  # another process's CPU clock
            refused(pid, raw, "timer_create", (~pid << 3) | 2, None, place) if pid != 1 else None
        for name in ("timerfd_create", "signalfd4", "io_setup", "mq_open", "semget", "shmget"):
            refused(name, raw, {"io_setup": 0 if ARM else 206, "mq_open": 180 if ARM else 240, "semget": 190 if ARM else 64, "shmget": 194 if ARM else 29}.get(name, name), 0, 0, 0, by=("ENOSYS",))
        """,
    ),
    Call(
        id="K20.links",
        title="ten thousand names of one file cost what one file may",
        run=_many_names,
        heavy=True,
    ),
    Call(
        id="K19.patterns",
        title="patterns that meet long names take seconds, and these are the job's own bill",
        run=_collecting,
        heavy=True,
    ),
    Call(
        id="F58.timers",
        title="a job that makes timers to its limit takes none from others",
        run=_timers_of_others,
    ),
)
