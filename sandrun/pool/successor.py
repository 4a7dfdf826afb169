"""An assistant for the sandboxes of a spawner that is dead, as is its own assistant. Runs
as: root of the dead spawner's user namespace. I/O.

The next spawner of the environment has a user namespace of its own and no power over
those sandboxes. So the supervisor, which holds the dead one's namespace and the ends of
its sandboxes' sockets (``estate.py``), starts us: we come as root of the host, leave its
file system and network, enter that namespace, where we are what the dead assistant was,
and do what it did (``assist.py``).
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from sandrun.channel import Channel
from sandrun.messages import Prepare, Succeed, ToSuccessor
from sandrun.pool import assist
from sandrun.pool.linux import libc
from sandrun.pool.linux.constants import CLONE, MS, PR
from sandrun.pool.spawner import become_root, private_namespaces
from sandrun.pool.zygote import boot

_EMPTY_ROOT = "/tmp"  # where it is made, for a moment


def leave_host() -> None:
    """An empty root and a network without anything: what we need is in memory."""
    private_namespaces()
    libc.unshare(CLONE.NEWNET)
    libc.mount("sandrun", _EMPTY_ROOT, "tmpfs", MS.RDONLY | MS.NOSUID | MS.NODEV, "mode=755")
    os.chdir(_EMPTY_ROOT)
    libc.pivot_root(".", ".")
    libc.umount(".")
    os.chdir("/")


def main() -> None:
    """Serve the sandboxes whose sockets the supervisor sends, until all have ended."""
    libc.prctl(PR.SET_PDEATHSIG, signal.SIGKILL)
    supervisor = os.getppid()
    os.setsid()  # whom we leave behind is known by it: manager.reap_adopted
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the supervisor acts
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    channel: Channel[Prepare, ToSuccessor] = Channel(sock, ToSuccessor)
    prepare, _ = channel.receive()
    found, namespace = channel.receive()
    if not isinstance(prepare, Prepare) or not isinstance(found, Succeed):
        raise SystemExit("expected Prepare and Succeed")
    plan = boot.make_plan(prepare, found.interpreters)
    leave_host()
    libc.setns(namespace[0], CLONE.NEWUSER)
    os.close(namespace[0])
    become_root()
    assist.run(sock, plan, [], assist.Parents(spawner=0, supervisor=supervisor))


if __name__ == "__main__":
    main()
