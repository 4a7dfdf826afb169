"""What one client may use: CPU seconds as a budget that may go into debt. Pure.

Clients have no accounts. A client is an IPv4 address or an IPv6 /64 (one home or
one server usually owns a whole /64, so an address inside it is not a person), and
even that is kept only as a keyed hash whose key lives in RAM and changes daily.

A job is admitted while the balance is positive and charged what it really used:
reserving the limit up front would refuse honest short jobs, and charging only up
to the balance would make the last job free. What stands against many long jobs
submitted before any is charged (N5 of the hostile list) is the number of jobs at
once, which is reserved atomically, plus the charge while they run.

The clock and the random source are arguments. ``now`` is monotonic seconds.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final, NamedTuple

from sandrun.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandrun.config import RateLimit

HOUR_S: Final = 3600.0
DAY_S: Final = 86_400.0
MAX_CLIENTS: Final = 65_536  # records of about 0.5 KiB: a flood of addresses costs 32 MiB at most


class Client:
    """One client's account. Only :class:`Quota` changes it."""

    __slots__ = (
        "active",
        "balance_s",
        "key",
        "key_in_store",
        "pending",
        "seen",
        "starts",
        "updated",
    )

    def __init__(self, key: bytes, balance_s: float, now: float) -> None:
        self.key = key
        self.balance_s = balance_s
        self.updated = now
        self.seen = now
        self.active = 0
        self.starts: deque[float] = deque()
        self.pending: set[float] = set()  # starts whose upload is not complete
        self.key_in_store = 0  # of its record in the supervisor's store, if it has one


class Standing(NamedTuple):
    """What a client has left; ``reason`` is "" while it may submit."""

    used_s: float
    limit_s: float
    available_s: float
    active_jobs: int
    max_active_jobs: int
    jobs_this_hour: int
    max_jobs_per_hour: int
    reason: str
    resets_in_s: float


class Quota:
    """Accounts of all clients, bounded, least recently seen first out."""

    def __init__(self, config: RateLimit, random_bytes: Callable[[int], bytes], now: float) -> None:
        self._config = config
        self._random = random_bytes
        self._key = random_bytes(32)
        self._old_key: bytes | None = None
        self._key_since = now
        self._clients: OrderedDict[bytes, Client] = OrderedDict()
        self.on_forget: Callable[[Client], None] = lambda _: None
        self.on_new_key: Callable[[], None] = lambda: None

    @property
    def keys(self) -> tuple[bytes, bytes | None, float]:
        """The secrets that turn addresses into clients: today's, yesterday's, since when."""
        return self._key, self._old_key, self._key_since

    def restore(self, key: bytes, old_key: bytes | None, since: float) -> None:
        """Go on with the secrets of an earlier process, so that its clients stay who they are."""
        self._key, self._old_key, self._key_since = key, old_key, since

    def add(self, client: Client) -> None:
        """A client of an earlier process. Oldest first."""
        self._clients[client.key] = client

    @property
    def rate(self) -> float:
        """CPU seconds that come back per second."""
        return self._config.cpu_seconds_per_minute / 60.0

    def client(self, address: str, now: float) -> Client:
        """The account of ``address``, made if it is new."""
        self._rotate(now)
        name = prefix(address)
        key = _hash(self._key, name)
        found = self._clients.get(key)
        if found is None and self._old_key is not None:
            # The key has just changed: carry the account over, once.
            found = self._clients.pop(_hash(self._old_key, name), None)
            if found is not None:
                found.key = key
                self._clients[key] = found
        if found is not None and not found.active and now - found.seen > HOUR_S:
            del self._clients[key]
            self.on_forget(found)
            found = None
        if found is None:
            found = Client(key, self._config.cpu_seconds_per_minute, now)
            self._clients[key] = found
            self._forget(now)
        found.seen = now
        self._clients.move_to_end(key)
        return found

    def _rotate(self, now: float) -> None:
        age = now - self._key_since
        if age > HOUR_S:
            self._old_key = None  # whoever has not come for an hour is forgotten anyway
        if age > DAY_S:
            self._old_key, self._key = self._key, self._random(32)
            self._key_since = now
            self.on_new_key()

    def _forget(self, now: float) -> None:
        """Drop idle accounts, and the oldest when there are too many."""
        for key in list(self._oldest(8)):
            record = self._clients[key]
            idle = now - record.seen > HOUR_S
            if not record.active and (idle or len(self._clients) > MAX_CLIENTS):
                del self._clients[key]
                self.on_forget(record)

    def _oldest(self, count: int) -> list[bytes]:
        found = []
        for key in self._clients:
            found.append(key)
            if len(found) == count:
                break
        return found

    def _refill(self, client: Client, now: float) -> None:
        gained = (now - client.updated) * self.rate
        client.balance_s = min(self._config.cpu_seconds_per_minute, client.balance_s + gained)
        client.updated = now
        starts = client.starts
        while starts and starts[0] <= now - HOUR_S:
            starts.popleft()

    def standing(self, client: Client, now: float) -> Standing:
        """What the client has left, and why it may not submit if so."""
        self._refill(client, now)
        config = self._config
        reason, wait = "", 0.0
        if config.enabled:
            reason, wait = self._refusal(client, now)
        missing = config.cpu_seconds_per_minute - client.balance_s
        return Standing(
            used_s=max(0.0, missing),
            limit_s=config.cpu_seconds_per_minute,
            available_s=max(0.0, client.balance_s),
            active_jobs=client.active,
            max_active_jobs=config.concurrent_jobs,
            jobs_this_hour=len(client.starts),
            max_jobs_per_hour=config.jobs_per_hour,
            reason=reason,
            resets_in_s=max(wait, missing / self.rate),
        )

    def _refusal(self, client: Client, now: float) -> tuple[str, float]:
        config = self._config
        if client.active >= config.concurrent_jobs:
            return (
                "concurrent_jobs",
                2.0,
            )  # no one can know when a job ends; short jobs are the rule
        if len(client.starts) >= config.jobs_per_hour:
            return "jobs_per_hour", client.starts[0] + HOUR_S - now
        if client.balance_s <= 0:
            return "cpu_seconds", -client.balance_s / self.rate + 1.0
        return "", 0.0

    def admit(self, client: Client, now: float) -> None:
        """Reserve one of the client's jobs. Raises :class:`RequestError` 429.

        The caller owes :meth:`settle` or :meth:`refund`.
        """
        self._refill(client, now)
        if self._config.enabled:
            reason, wait = self._refusal(client, now)
            if reason:
                raise self._refused(client, reason, wait, now)
        client.active += 1
        client.starts.append(now)
        client.pending.add(now)
        while len(client.starts) > self._config.jobs_per_hour:
            client.starts.popleft()  # only when switched off: stay bounded

    def _refused(self, client: Client, reason: str, wait: float, now: float) -> RequestError:
        retry_after_s = max(1, math.ceil(wait))
        limit, allowed = {
            "concurrent_jobs": ("jobs at once", self._config.concurrent_jobs),
            "jobs_per_hour": ("jobs per hour", self._config.jobs_per_hour),
            "cpu_seconds": ("CPU seconds per minute", self._config.cpu_seconds_per_minute),
        }[reason]
        wait_text = f"{retry_after_s} s"
        if retry_after_s > 120:  # nobody divides 3,599 by 60
            wait_text = f"{math.ceil(retry_after_s / 60)} minutes"
        return RequestError(
            429,
            "quota_exceeded",
            f"your quota of {allowed:g} {limit} is used up; try again in {wait_text}",
            details={
                "reason": reason,
                "limit": allowed,
                "active_jobs": client.active,
                "cpu_seconds_available": round(client.balance_s, 3),
            },
            retry_after_s=retry_after_s,
            headers=self.headers(client, now),
        )

    def charge(self, client: Client, cpu_seconds: float, now: float) -> None:
        """Take ``cpu_seconds``; a negative number gives back."""
        self._refill(client, now)
        client.balance_s -= cpu_seconds

    def settle(self, client: Client, cpu_seconds: float, now: float) -> None:
        """The job has ended: charge the rest and free its place."""
        self.charge(client, cpu_seconds, now)
        client.active -= 1

    def refund(self, client: Client, admitted: float, now: float, charged_s: float = 0.0) -> None:
        """Refused after all, or failed by our fault: as if it had not been.

        ``admitted`` is the ``now`` of :meth:`admit`; ``charged_s`` was charged meanwhile.
        """
        self.settle(client, -charged_s, now)
        client.pending.discard(admitted)
        if admitted in client.starts:
            client.starts.remove(admitted)

    def headers(self, client: Client, now: float) -> tuple[tuple[str, str], ...]:
        """``RateLimit`` fields (draft-ietf-httpapi-ratelimit-headers)."""
        if not self._config.enabled:
            return ()
        self._refill(client, now)
        budget, hourly = self._config.cpu_seconds_per_minute, self._config.jobs_per_hour
        refill_s = math.ceil((budget - client.balance_s) / self.rate)
        next_start_s = math.ceil(client.starts[0] + HOUR_S - now) if client.starts else 0
        left = max(0, math.floor(client.balance_s))
        return (
            ("RateLimit-Policy", f'"cpu";q={budget:.0f};w=60, "jobs";q={hourly};w=3600'),
            (
                "RateLimit",
                f'"cpu";r={left};t={refill_s}, "jobs";r={hourly - len(client.starts)};t={next_start_s}',
            ),
        )

    def __len__(self) -> int:
        return len(self._clients)


def prefix(address: str) -> str:
    """An address as a client: IPv4 as it is, IPv6 as its /64, else (a Unix socket) "local"."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "local"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
    return str(parsed)


def _hash(key: bytes, name: str) -> bytes:
    return hashlib.blake2b(name.encode(), key=key, digest_size=16).digest()
