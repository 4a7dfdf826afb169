"""A deleted job's memory is nobody's any more: its files are held by no process, its
pages are free. What a freed page holds until it is used again is the kernel's affair:
it is zeroed before anybody sees it, or at once with ``init_on_free=1``, which
``sandrun doctor`` and ``/privacy`` tell.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import servers

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a real server needs root")

MIB = 1 << 20
OUTPUT_MIB = 24
PROGRAM = f"""
import os
mark = bytes(b ^ 0x55 for b in {bytes(b ^ 0x55 for b in b"forget-me-7b1c")!r})
with open("out.bin", "wb") as file:
    for _ in range({OUTPUT_MIB}):
        file.write(mark * ({MIB} // len(mark)))
print(mark.decode())
"""


def memory_files(pid):
    """(inode, name, bytes of pages) of each memory file that a process of the server holds."""
    found = set()
    for each in (pid, *servers.descendants(pid)):
        try:
            links = [f"/proc/{each}/fd/{name}" for name in os.listdir(f"/proc/{each}/fd")]
        except OSError:
            continue  # it has ended
        for link in links:
            try:
                where, info = os.readlink(link), os.stat(link)
            except OSError:
                continue  # closed in the meantime
            if where.startswith("/memfd:"):
                found.add((info.st_ino, where, info.st_blocks * 512))
    return found


def holding(pid, at_least):
    return {inode for inode, _, size in memory_files(pid) if size >= at_least}


def test_nothing_of_a_deleted_job_is_held(server):
    pid = server.process.pid
    archive = servers.tar_of({"main.py": PROGRAM, "pad": os.urandom(2 * MIB)})
    answer = server.post("/submit", archive=archive).json()
    server.client.get(f"/logs/{answer['job_id']}/stream")
    status = server.client.get(f"/status/{answer['job_id']}").json()
    assert status["exit_reason"] == "exited", status
    held = holding(pid, OUTPUT_MIB * MIB // 2)
    assert held, "the outputs are nowhere: this test tests nothing"
    marked = [
        (inode, where)
        for inode, where, size in memory_files(pid)
        if size and marks_in(pid, inode)
    ]
    assert {where.split()[0] for _, where in marked} == {
        "/memfd:sandrun-log",
        "/memfd:sandrun-outputs",
    }

    reply = server.client.delete(f"/jobs/{answer['job_id']}")
    assert reply.status_code in (200, 204), reply.text
    gone = held | {inode for inode, _ in marked}
    for _ in range(2000):  # the supervisor hears of it by a message
        left = gone & {inode for inode, _, _ in memory_files(pid)}
        if not left:
            break
        server.client.get("/health")
    assert not left
    assert not [where for inode, where, size in memory_files(pid) if size and marks_in(pid, inode)]


def marks_in(pid, inode):
    """Whether a memory file holds the mark; read through whoever holds it."""
    for each in (pid, *servers.descendants(pid)):
        directory = Path(f"/proc/{each}/fd")
        try:
            names = list(directory.iterdir())
        except OSError:
            continue
        for path in names:
            try:
                if path.stat().st_ino != inode or not os.readlink(path).startswith("/memfd:"):
                    continue
                with open(path, "rb") as file:
                    while piece := file.read(4 * MIB):
                        if b"forget-me-7b1c" in piece:
                            return True
                return False
            except OSError:
                continue
    return False
