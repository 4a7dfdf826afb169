"""What a PID 1 that was taken over may ask for, and what its asking may not break."""

import os
import socket
from types import SimpleNamespace

import pytest

from sandrun.pool import assist

PLAN = SimpleNamespace(landlock_abi=0)  # no request here gets as far as the rest of a plan


@pytest.fixture
def asking():
    """PID 1's end, and the assistant's view of it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client = assist.Client(theirs)
    with ours, theirs:
        yield ours, client


def open_descriptors():
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("request_bytes", "fds"),
    [(b"", 0), (b"X\0\0", 7), (b"C", 7), (b"C\0\0", 3), (b"C\0\5", 7), (b"U\1\0", 8), (b"C\0\0\0", 7),
     (b"C" * 17, 7), (b"U" + bytes(200), 24)],
)  # fmt: skip
def test_junk_is_dropped_with_its_descriptors(asking, request_bytes, fds):
    ours, client = asking
    before = open_descriptors()
    socket.send_fds(ours, [request_bytes], [0] * fds)
    client.answer(PLAN)
    assert open_descriptors() == before


def test_nothing_to_hear_is_no_end(asking):
    _, client = asking
    assert client.answer(PLAN)


def test_the_end_of_a_sandbox_is_the_end(asking):
    ours, client = asking
    ours.close()
    assert not client.answer(PLAN)


def test_each_operation_is_to_be_had_once(asking):
    ours, client = asking
    for request, more in ((b"C", True), (b"C", False)):
        ours.send(request)
        assert client.answer(PLAN) is more


def test_whoever_does_not_listen_holds_nobody_up(asking):
    """The answer to a request that fails goes to a pipe that is full."""
    ours, client = asking
    out, go = os.pipe()
    os.set_blocking(go, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(go, bytes(65536))
    os.set_blocking(go, True)
    socket.send_fds(ours, [b"C\0\0"], [out, 0, 0, 0, go, 0, 0])  # a pipe is no process
    assert client.answer(PLAN)
    os.close(out)
    os.close(go)


@pytest.mark.parametrize(("abi", "heard"), [(0, True), (6, False)])
def test_a_process_without_landlock_is_not_to_be_had_where_there_is_landlock(asking, abi, heard):
    ours, client = asking
    out, go = os.pipe()
    socket.send_fds(ours, [b"C\0\0"], [out, 0, 0, 0, go, 0, 0])  # a pipe is no process
    client.answer(SimpleNamespace(landlock_abi=abi))
    os.close(go)
    assert bool(os.read(out, 4096)) is heard  # why there is none, or nothing at all
    os.close(out)
