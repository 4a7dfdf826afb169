"""Tells systemd how we are. Runs as: root (supervisor). I/O: one datagram socket.

The protocol of sd_notify(3) without its library: ``KEY=VALUE`` lines to the socket
in ``NOTIFY_SOCKET``. Without that variable every call does nothing. The socket is
opened once, so that a later change of the environment changes nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class Notifier:
    """One service's line to its manager. ``environ`` is read once, and kept from children."""

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
            self._address = address.replace("@", "\0", 1) if address[0] == "@" else address
        ours = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
        usec = environ.get("WATCHDOG_USEC", "")
        on = self._socket is not None and ours and usec.isdigit() and int(usec) > 0
        self.watchdog_s = int(usec) / 2e6 if on else 0.0  # half the time that systemd grants

    def __call__(self, state: str) -> None:
        """Send e.g. ``"READY=1"``. A manager that does not listen is not our problem."""
        if self._socket is not None:
            try:
                self._socket.sendto(state.encode(), self._address)
            except OSError:
                pass

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()


def from_environment() -> Notifier:
    """The one that systemd gave us."""
    return Notifier(os.environ, os.getpid())
