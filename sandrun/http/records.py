"""What http keeps in the supervisor's store, and the way back. Pure.

The supervisor never decodes these bytes; another incarnation of this same code
does. One entry per job, per client with jobs, and one (key 0) for the node::

    NODE     worker id, the keys under which clients are hashed
    ACCOUNT  a client's balance, and which of its jobs are not in it yet
    JOB      everything that does not change after a job is accepted
    FILES    its inline files, until it has started (larger uploads: a descriptor)
    STATE    what has happened to it that its zygote does not know
    END      its verdict, if the zygote did not write one into its journal

So a short job costs one small message: JOB, FILES and the zygote's number, sent
before the Dispatch. How it ended is in the journal behind its log.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec

from sandrun.job import JobSpec, Usage, Verdict
from sandrun.messages import InlineFile

NODE_KEY: Final = 0


class Part(IntEnum):
    """Numbers of an entry's parts."""

    NODE = 0
    ACCOUNT = 1
    JOB = 2
    FILES = 3
    STATE = 4
    END = 5


class _Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    pass


class NodeRecord(_Record, frozen=True):
    """One node, across its http processes. Moments are monotonic seconds."""

    worker_id: str
    quota_key: bytes
    quota_old_key: bytes | None
    quota_key_since: float


class AccountRecord(_Record, frozen=True):
    """A client as of the moment when it was written.

    Of the jobs with a key up to ``last`` exactly ``unsettled`` are not charged yet,
    of later ones none is: whoever restores it knows whose end must still be charged.
    """

    hash: bytes
    balance_s: float
    updated: float
    seen: float
    starts: tuple[float, ...]
    unsettled: tuple[int, ...]
    last: int
    flow_balance_s: float
    flow_expected_s: float
    charged: tuple[float, ...] = ()  # what of each of ``unsettled`` is charged already


class JobRecord(_Record, frozen=True):
    """A job as it was accepted. ``client`` is the key of its account."""

    job_id: str
    view_id: str
    client: int
    idempotency_key: str | None
    spec: JobSpec
    given: tuple[str, ...]
    job_hash: str
    admitted: float
    submitted: float
    wall_offset: float
    charge: int
    index_offset: int
    index_size: int


class StateRecord(_Record, frozen=True):
    """``spec``: what it turned out to be, if it went back into the queue for that."""

    returned: int
    cancelled: bool
    dispatched: float | None
    spec: JobSpec | None


class EndRecord(_Record, frozen=True):
    """An end that only http knows: cancelled while it waited, expired, lost."""

    verdict: Verdict
    usage: Usage
    ended: float


Files = tuple[InlineFile, ...]

encode: Final = msgspec.msgpack.Encoder().encode
decode_node: Final = msgspec.msgpack.Decoder(NodeRecord).decode
decode_account: Final = msgspec.msgpack.Decoder(AccountRecord).decode
decode_job: Final = msgspec.msgpack.Decoder(JobRecord).decode
decode_files: Final = msgspec.msgpack.Decoder(Files).decode
decode_state: Final = msgspec.msgpack.Decoder(StateRecord).decode
decode_end: Final = msgspec.msgpack.Decoder(EndRecord).decode
