"""The programs that are measured, as each side wants them. Pure but for reading /bin/true."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from sandrun.job import JobSpec
from sandrun.messages import Dispatch, InlineFile

HELLO = "print('hello')\n"
DATA = """\
import numpy as np, pandas as pd
d = pd.DataFrame({"k": ["a", "b", "a"], "v": np.arange(3.0)})
print(d.groupby("k")["v"].sum().to_dict())
"""
BOUNDARY = "sandrun-bench-boundary"


@dataclass(frozen=True)
class Job:
    """``code`` for python3, or "" for /bin/true. ``environment``: of the sandbox."""

    name: str
    code: str = ""
    environment: str = "default"
    expect: str = ""
    body: tuple[str, bytes] = field(init=False)  # content type and body of a submission

    def __post_init__(self) -> None:
        object.__setattr__(self, "body", self._body())

    @property
    def warm(self) -> str:
        """The kind of zygote that it wants when the environment has a warm one."""
        return "python3" if self.code and self.environment != "default" else "exec"

    def dispatch(self) -> Dispatch:
        """For PID 1."""
        if self.code:
            spec = JobSpec(
                entrypoint="main.py", interpreter="python3", environment=self.environment
            )
            return Dispatch(spec=spec, files=(InlineFile(path="main.py", data=self.code.encode()),))
        spec = JobSpec(entrypoint="true", interpreter="binary", environment=self.environment)
        program = InlineFile(path="true", data=Path("/bin/true").read_bytes(), executable=True)
        return Dispatch(spec=spec, files=(program,))

    def bare(self, directory: Path, python: str = "/usr/bin/python3") -> tuple[str, ...]:
        """argv of the same without a sandbox; writes the script into ``directory``."""
        if not self.code:
            return ("/bin/true",)
        script = directory / f"{self.name}.py"
        script.write_text(self.code)
        return (python, str(script))

    def _body(self) -> tuple[str, bytes]:
        if self.code:
            manifest = {"environment": self.environment}
            return "application/json", json.dumps(
                {"code": self.code, "manifest": manifest}
            ).encode()
        manifest = json.dumps(
            {"entrypoint": "true", "interpreter": "binary", "environment": self.environment}
        ).encode()
        head = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=".encode()
        body = (
            head
            + b'"manifest"\r\n\r\n'
            + manifest
            + b"\r\n"
            + head
            + b'"files"; filename="true"\r\n\r\n'
            + Path("/bin/true").read_bytes()
            + f"\r\n--{BOUNDARY}--\r\n".encode()
        )
        return f"multipart/form-data; boundary={BOUNDARY}", body


def hello(environment: str) -> Job:
    """hello.py in one of the environments, which are named after their start mode."""
    return Job("hello", HELLO, environment, "hello\n")


def data(environment: str) -> Job:
    """A few lines of numpy and pandas."""
    return Job("data", DATA, environment, "{'a': 2.0, 'b': 1.0}\n")


TRUE = Job("true")
