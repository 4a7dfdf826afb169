"""An upload becomes files and a complete JobSpec. Runs as: a child of PID 1 under the
job's uid, limits and filter.

This is where a stranger's archive and a stranger's job.json are parsed: in a
process that could do no more than the job itself. Its answer is a message that
PID 1 bounds and checks again.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from sandrun import manifest
from sandrun.errors import RequestError
from sandrun.job import JobSpec
from sandrun.messages import Dispatch, UploadPart
from sandrun.pool.zygote import unpack

if TYPE_CHECKING:
    from sandrun.pool.zygote.boot import Plan

JOB_JSON = "job.json"
_FIRST_LINE_BYTES = 256


class Resolved(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The files are in place, and this is the job."""

    spec: JobSpec


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The upload cannot be used; the text is for the client."""

    reason: str


Answer = Resolved | Refused


def resolve(plan: Plan, dispatch: Dispatch, upload_fd: int, work_fd: int) -> Answer:
    """Unpack the upload into ``work_fd`` and find out what is to run."""
    try:
        index = os.pread(upload_fd, dispatch.index_size, dispatch.index_offset)
        parts = msgspec.msgpack.decode(index, type=list[UploadPart])
        report = unpack.unpack(
            upload_fd,
            parts,
            work_fd,
            max_files=plan.max_files,
            max_bytes=dispatch.spec.limits.storage_bytes,
        )
        return Resolved(spec=_complete(plan, dispatch, work_fd, report))
    except unpack.UploadRefused as error:
        return Refused(reason=str(error))
    except RequestError as error:
        return Refused(reason=error.message)


def _complete(plan: Plan, dispatch: Dispatch, work_fd: int, report: unpack.Report) -> JobSpec:
    files = [(path, executable) for path, _, executable in report.files]
    extensions = {name: info.extensions for name, info in plan.interpreters.items()}
    spec = dispatch.spec
    if any(path == JOB_JSON for path, _ in files):
        rules = manifest.Rules(plan.max_limits, extensions, plan.known_environments)
        data = _read(work_fd, JOB_JSON, manifest.MAX_BYTES + 1)
        given = manifest.parse(data, rules, JOB_JSON)
        spec = manifest.overlay(spec, dispatch.manifest_given, given)
    return manifest.complete(
        spec, files, lambda path: _read(work_fd, path, _FIRST_LINE_BYTES), extensions
    )


def _read(work_fd: int, path: str, size: int) -> bytes:
    """The file's first ``size`` bytes. Nothing of the job runs yet that could race us."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=work_fd)
    try:
        return os.read(fd, size)
    finally:
        os.close(fd)
