"""How the bank's programs are written down. Pure."""

from __future__ import annotations

from textwrap import dedent
from typing import Any, Final

from sandrun.selftest.case import Job

_HEAD: Final = "import os, sys\nfrom attack import *\n"


def python(id: str, title: str, body: str, **more: Any) -> Job:  # noqa: A002 - that is what it is
    """A case that is a Python program: ``body`` with everything of ``attack`` at hand."""
    return Job(id=id, title=title, code=f"{_HEAD}{dedent(body)}\ndone()\n", **more)


def killed(id: str, title: str, body: str, **more: Any) -> Job:  # noqa: A002
    """A Python program that must end by the system call filter."""
    more.setdefault("reason", ("syscall_denied",))
    return python(id, title, f"{dedent(body)}\nprint('survived')", stdout="", **more)


def heavy(id: str, title: str, body: str, **more: Any) -> Job:  # noqa: A002
    """A Python program that keeps the machine busy for a while."""
    return python(id, title, body, heavy=True, **more)


def shell(id: str, title: str, body: str, **more: Any) -> Job:  # noqa: A002
    """A case that is a bash script."""
    return Job(id=id, title=title, code=f"#!/bin/bash\n{dedent(body)}", file="main.sh", **more)
