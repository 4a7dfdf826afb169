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

from sandrun.messages import Dispatch, UploadPart
from sandrun.pool.zygote.unpack import Refused, Unpacked, Upload, unpack_and_resolve

if TYPE_CHECKING:
    from sandrun.pool.zygote.boot import Plan

Answer = Unpacked | Refused


def resolve(plan: Plan, dispatch: Dispatch, upload_fd: int, work_fd: int) -> Answer:
    """Unpack the upload into ``work_fd`` and find out what is to run."""
    index = os.pread(upload_fd, dispatch.index_size, dispatch.index_offset)
    upload = Upload(
        fd=upload_fd,
        parts=msgspec.msgpack.decode(index, type=list[UploadPart]),
        work_fd=work_fd,
        max_files=plan.max_files,
        max_bytes=dispatch.spec.limits.storage_bytes,
    )
    return unpack_and_resolve(
        upload,
        dispatch.spec,
        dispatch.manifest_given,
        plan.interpreters,
        plan.known_environments,
        plan.default_limits,
        plan.max_limits,
    )
