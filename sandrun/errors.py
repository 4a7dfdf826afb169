"""Errors by blame. Pure.

Blame is a type, because it decides what happens next:

=================  ===================  ==========================================
error              whose fault          what follows
=================  ===================  ==========================================
ConfigError        the operator's       the server does not start; exit status 78
HostError          the host's           the server does not start and names the cure
RequestError       the client's         a 4xx that names the field or the limit
SetupError         ours                 the sandbox is discarded, ``server_fault``
ProtocolError      a peer process of    the channel is closed, the peer replaced
                   ours, gone wrong
=================  ===================  ==========================================

A job's failure is none of these: it is a :class:`sandrun.job.Verdict`, a value.
"""

from __future__ import annotations

import os
from typing import Any


class SandrunError(Exception):
    """Everything that sandrun raises on purpose."""


class ConfigError(SandrunError):
    """The configuration is wrong. The text names the key and what was expected."""


class HostError(SandrunError):
    """The host lacks something we promise. ``cure`` is a command or a setting."""

    def __init__(self, what: str, cure: str) -> None:
        super().__init__(f"{what}; {cure}")
        self.what = what
        self.cure = cure


class RequestError(SandrunError):
    """The client asked for something it cannot have.

    ``status`` is the HTTP status, ``code`` the stable snake_case name for
    programs, ``details`` extra JSON-able facts, ``retry_after_s`` seconds.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        details: dict[str, Any] | None = None,
        retry_after_s: float | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details
        self.retry_after_s = retry_after_s
        self.headers = headers


class SetupError(SandrunError):
    """A step of a sandbox's set-up failed: fail closed, nothing of the job has run."""

    def __init__(self, step: str, number: int, what: str = "") -> None:
        reason = os.strerror(number) if number else "refused"
        super().__init__(f"{step}: {what + ': ' if what else ''}{reason}")
        self.step = step
        self.errno = number


class ProtocolError(SandrunError):
    """A message is not one that this end may be sent."""
