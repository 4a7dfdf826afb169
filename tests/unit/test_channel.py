"""The channel: whole messages with their descriptors, or an error and nothing left open."""

from __future__ import annotations

import array
import fcntl
import os
import socket
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandrun import channel
from sandrun.channel import Channel, Closed
from sandrun.errors import ProtocolError
from sandrun.job import JobSpec
from sandrun.messages import Acknowledge, Cancel, Dispatch, InlineFile, LogGrew, ToZygote

Ends = tuple[Channel[ToZygote, LogGrew], Channel[LogGrew, ToZygote]]


@pytest.fixture
def ends() -> Iterator[Ends]:
    left, right = channel.pair()
    here: Channel[ToZygote, LogGrew] = Channel(left, LogGrew)
    there: Channel[LogGrew, ToZygote] = Channel(right, ToZygote)
    right.setblocking(False)
    yield here, there
    here.close()
    there.close()


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_messages_arrive_whole_and_in_order(ends: Ends) -> None:
    here, there = ends
    sent = [
        Cancel(),
        Dispatch(spec=JobSpec(args=("ü",)), files=(InlineFile(path="a", data=b"\0" * 48 * 1024),)),
        Acknowledge(),
    ]
    for message in sent:
        here.send(message)  # type: ignore[arg-type]
    assert [there.receive() for _ in sent] == [(message, []) for message in sent]
    with pytest.raises(BlockingIOError):
        there.receive()


def test_descriptors_arrive_in_order_and_close_on_exec(ends: Ends) -> None:
    """``socket.recv_fds`` on 3.11 would make them inheritable: a leak into the job."""
    here, there = ends
    files = [os.memfd_create(str(number)) for number in range(channel.MAX_FDS)]
    for number, fd in enumerate(files):
        os.write(fd, b"%d" % number)
    here.send(Cancel(), tuple(files))
    _, received = there.receive()
    assert [int(os.pread(fd, 9, 0)) for fd in received] == list(range(channel.MAX_FDS))
    assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in received)
    channel.close_all([*files, *received])


def test_a_closed_peer_is_told(ends: Ends) -> None:
    here, there = ends
    here.close()
    with pytest.raises(Closed):
        there.receive()
    with pytest.raises(Closed):
        there.send(LogGrew(end=1))


def test_a_message_that_is_too_large_is_refused_by_its_sender(ends: Ends) -> None:
    here, _ = ends
    large = Dispatch(spec=JobSpec(), files=(InlineFile(path="a", data=bytes(channel.MAX_MESSAGE)),))
    with pytest.raises(ProtocolError, match="too large"):
        here.send(large)


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        b"x" * (channel.MAX_MESSAGE + 1),
        b"x" * (channel.MAX_MESSAGE + 5000),
        b"\x91" * 5000,
        msgspec.msgpack.encode({"type": "Nobody"}),
        msgspec.msgpack.encode({"type": "Cancel", "more": 1}),
        msgspec.msgpack.encode({"type": "LogGrew", "end": 1}),  # the other direction's
        msgspec.msgpack.encode({"type": "Dispatch", "spec": {}, "index_offset": 2**41}),
        msgspec.msgpack.encode({"type": "Dispatch", "spec": {"args": [1]}}),
        msgspec.msgpack.encode({"type": "Dispatch", "spec": {"who": "root"}}),
        msgspec.msgpack.encode([]),
    ],
    ids=lambda data: repr(data)[:25],
)
def test_junk_is_an_error_and_its_descriptors_are_closed(ends: Ends, data: bytes) -> None:
    here, there = ends
    before = open_fds()
    fds = array.array("i", [0, 0, 0])
    here.socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    with pytest.raises(ProtocolError):
        there.receive()
    assert open_fds() == before
    here.send(Cancel())  # the channel itself still stands; its owner decides
    assert there.receive() == (Cancel(), [])


def test_too_many_descriptors_are_an_error_and_closed(ends: Ends) -> None:
    here, there = ends
    before = open_fds()
    fds = array.array("i", [0] * (channel.MAX_FDS + 20))
    data = msgspec.msgpack.encode(Cancel())
    here.socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    with pytest.raises(ProtocolError, match="truncated"):
        there.receive()
    assert open_fds() == before


def test_an_empty_datagram_is_an_end_and_its_descriptors_are_closed(ends: Ends) -> None:
    """SEQPACKET cannot tell it from the end of the channel; neither do we."""
    here, there = ends
    before = open_fds()
    fds = array.array("i", [0])
    here.socket.sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    with pytest.raises(Closed):
        there.receive()
    assert open_fds() == before


def test_text_that_is_not_utf_8_is_an_error_and_its_descriptors_are_closed(ends: Ends) -> None:
    """msgspec tells it by an exception of another family."""
    here, there = ends
    before = open_fds()
    data = msgspec.msgpack.encode({"type": "LogGrew", "end": 1}).replace(b"LogGrew", b"\x80ogGrew")
    fds = array.array("i", [0])
    here.socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    with pytest.raises(ProtocolError, match="not a message"):
        there.receive()
    assert open_fds() == before


@given(data=st.binary(min_size=1, max_size=300))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    left, right = channel.pair()
    there: Channel[LogGrew, ToZygote] = Channel(right, ToZygote)
    try:
        left.send(data)
        try:
            message, fds = there.receive()
        except ProtocolError:
            return
        assert isinstance(message, ToZygote)
        assert fds == []
    finally:
        left.close()
        there.close()


@given(
    spec=st.builds(
        JobSpec,
        entrypoint=st.none() | st.text(max_size=20),
        args=st.lists(st.text(max_size=9), max_size=4).map(tuple),
        env=st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=4),
        stdin=st.none() | st.binary(max_size=99),
        fail_on_output_limit=st.booleans(),
    ),
    files=st.lists(st.binary(max_size=500), max_size=4),
)
def test_any_dispatch_arrives_as_it_was_sent(spec: JobSpec, files: list[bytes]) -> None:
    left, right = channel.pair()
    here: Channel[ToZygote, LogGrew] = Channel(left, LogGrew)
    there: Channel[LogGrew, ToZygote] = Channel(right, ToZygote)
    try:
        inline = tuple(InlineFile(path=str(n), data=data) for n, data in enumerate(files))
        message = Dispatch(spec=spec, files=inline)
        here.send(message)
        assert there.receive() == (message, [])
    finally:
        here.close()
        there.close()
