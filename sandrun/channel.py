"""One end of a SEQPACKET socket pair: whole messages and descriptors. I/O.

Typed by direction: ``Channel[Sent, Received]``; the type checker refuses the
wrong letter. A datagram holds one msgpack message of at most 128 KiB and up to
24 descriptors.

Three traps, each stepped around here. ``socket.recv_fds`` ignores its flags on
Python 3.11, so received descriptors would be inheritable and leak into the job:
we use ``recvmsg(MSG_CMSG_CLOEXEC)``. SEQPACKET truncates silently: we look at
``MSG_TRUNC`` and ``MSG_CTRUNC``. A peer that sends junk is a broken or hostile
process: every fault is a :class:`ProtocolError` and closes what came with it.
"""

from __future__ import annotations

import array
import functools
import os
import socket
from typing import Any, Final, Generic, TypeVar

import msgspec

from sandrun.errors import ProtocolError

MAX_MESSAGE: Final = 128 * 1024  # below net.core.wmem_default (208 KiB), so one send is enough
MAX_FDS: Final = 24
_FD_BYTES: Final = array.array("i").itemsize
_TRUNCATED: Final = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)  # once: enums are slow to join
_ANCILLARY: Final = socket.CMSG_SPACE(MAX_FDS * _FD_BYTES)

Sent = TypeVar("Sent")
Received = TypeVar("Received")

_encoder: Final = msgspec.msgpack.Encoder()


@functools.cache
def decoder(received: Any) -> Any:
    """From bytes to one of the types of a union.

    Kept, because making one is 1.5 ms; a zygote finds it in what it was forked from.
    """
    return msgspec.msgpack.Decoder(received).decode


class Closed(Exception):
    """The peer has closed its end (or died)."""


class Channel(Generic[Sent, Received]):
    """Owns one socket. Blocking or not is the socket's own setting."""

    def __init__(self, sock: socket.socket, received: Any) -> None:
        self.socket = sock
        self._decode = decoder(received)

    def send(self, message: Sent, fds: tuple[int, ...] = ()) -> None:
        """Send one message. Raises :class:`Closed`, or BlockingIOError when full."""
        data = _encoder.encode(message)
        if len(data) > MAX_MESSAGE:
            raise ProtocolError(f"{type(message).__name__} of {len(data)} bytes is too large")
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self.socket.sendmsg((data,), ancillary, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed from error

    def receive(self) -> tuple[Received, list[int]]:
        """One message and its descriptors, which are then the caller's to close.

        Raises :class:`Closed` at the end, :class:`ProtocolError` for junk, and
        BlockingIOError if the socket does not block and nothing is there.
        """
        try:
            data, ancillary, flags, _ = self.socket.recvmsg(
                MAX_MESSAGE + 1, _ANCILLARY, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError as error:
            raise Closed from error
        fds = _descriptors(ancillary)
        try:
            if flags & _TRUNCATED:
                raise ProtocolError("message or descriptors were truncated")
            if not data:
                raise Closed
            return self._decode(data), fds
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            close_all(fds)
            raise ProtocolError(f"not a message: {error}") from error
        except (ProtocolError, Closed):
            close_all(fds)
            raise

    def fileno(self) -> int:
        """For ``poll`` and ``add_reader``."""
        return self.socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % _FD_BYTES])
    return list(fds)


def close_all(fds: list[int] | tuple[int, ...]) -> None:
    """Close descriptors that nobody wants."""
    for fd in fds:
        os.close(fd)


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new SEQPACKET pair, close-on-exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
