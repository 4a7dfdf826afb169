"""What the kernel keeps for everybody on the host, and no control group counts."""

from __future__ import annotations

from typing import Any, Final

from sandrun.selftest.bank._words import python
from sandrun.selftest.case import Answer, Call, Case, Job, expect
from sandrun.selftest.target import Target


def _of_the_kernel(answer: Answer) -> str:
    evidence = " ".join(answer.get("evidence") or ())
    return "" if "nobody accepted" in evidence else f"evidence {evidence!r}"


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


def heavy(id: str, title: str, body: str, **more: Any) -> Job:  # noqa: A002
    """A Python case that keeps the machine busy for a while."""
    return python(id, title, body, heavy=True, **more)


CASES: Final[tuple[Case, ...]] = (
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
    Call(
        id="F58.timers",
        title="a job that makes timers to its limit takes none from others",
        run=_timers_of_others,
    ),
)
