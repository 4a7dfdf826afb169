"""``equal_pids.py DIR fresh|stale``: random bytes of two processes with their template's pid.

Run by test_freshness, as root, under the job's own Python. Prints the template's pid,
then a line "pid hex" for each. The processes between them only make namespaces; they
draw nothing, so OpenSSL sees no pid but 2.
"""

import ctypes
import os
import ssl
import sys

sys.path.insert(0, sys.argv[1])
import warm_python

CLONE_NEWPID = 0x20000000
libc = ctypes.CDLL(None)


def in_child(work):
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    os.waitpid(pid, 0)


def as_pid_2(work):
    def unshare():
        if libc.unshare(CLONE_NEWPID):
            os._exit(1)
        in_child(lambda: in_child(work))

    in_child(unshare)


def job():
    if sys.argv[2] == "fresh":
        warm_python._fresh(warm_python.Fork(warm_python.System(), {"fds": []}, []))
    print(os.getpid(), ssl.RAND_bytes(16).hex(), flush=True)


def template():
    ssl.RAND_bytes(1)
    print(os.getpid(), flush=True)
    as_pid_2(job)
    as_pid_2(job)


as_pid_2(template)
