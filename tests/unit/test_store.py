"""The descriptor store, the journal and the line to systemd."""

import asyncio
import os
import socket

import pytest

from sandrun import journal
from sandrun.config import Config
from sandrun.errors import ProtocolError
from sandrun.messages import Keep
from sandrun.notify import Notifier
from sandrun.pool.lifecycle import State
from sandrun.pool.manager import Kind, Manager, Zygote
from sandrun.store import MESSAGE_BYTES, Sandbox, Store


def memfd():
    return os.memfd_create("test")


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def sandbox(zygote=7):
    return Sandbox(zygote, "default", "python3", memfd(), memfd(), memfd())


@pytest.fixture(name="store")
def make_store():
    store = Store(max_fds=100)
    yield store
    store.close()
    assert (store.bytes, store.fds, len(store)) == (0, 0, 0)


def entries(store):
    return [(message, fds) for message, fds in store.entries()]


def test_parts_are_replaced_one_by_one_and_an_empty_one_goes(store):
    store.keep(Keep(key=1, parts={0: b"job", 1: b"files"}), [])
    store.keep(Keep(key=1, parts={1: b"", 2: b"state"}), [])
    ((message, fds),) = entries(store)
    assert (message.parts, fds) == ({0: b"job", 2: b"state"}, ())


def test_entries_come_back_in_the_order_of_their_keys(store):
    for key in (3, 1, 2):
        store.keep(Keep(key=key, parts={0: b"x"}), [])
    assert [message.key for message, _ in entries(store)] == [1, 2, 3]


def test_descriptors_replace_those_that_were_there_and_are_closed_with_the_entry(store):
    first, second = memfd(), memfd()
    store.keep(Keep(key=1, parts={0: b"x"}), [first])
    store.keep(Keep(key=1), [second])
    assert not is_open(first)
    ((message, fds),) = entries(store)
    assert (message.fds, fds) == (1, (second,))
    store.keep(Keep(key=1, drop_fds=True), [])
    assert not is_open(second)


def test_a_sandbox_follows_http_s_own_descriptors_and_says_whether_it_is_alive(store):
    upload, box = memfd(), sandbox()
    store.keep(Keep(key=1, parts={0: b"x"}), [upload])
    store.bind(1, 7, box)
    assert store.holds(7)
    ((message, fds),) = entries(store)
    assert fds == (upload, box.log, box.outputs, box.socket)
    assert (message.zygote, message.alive, message.lost) == (7, True, False)
    sock = box.socket
    store.zygote_gone(7)
    assert not is_open(sock)
    assert not store.holds(7)
    ((message, fds),) = entries(store)
    assert (message.zygote, message.alive, fds) == (7, False, (upload, box.log, box.outputs))


def test_a_zygote_that_was_dead_before_it_could_be_bound_is_told_as_lost(store):
    store.keep(Keep(key=1, parts={0: b"x"}), [])
    store.bind(1, 7, None)
    ((message, fds),) = entries(store)
    assert (message.zygote, message.lost, message.alive, fds) == (7, True, False, ())
    store.bind(1, 8, sandbox(8))
    ((message, _),) = entries(store)
    assert (message.zygote, message.lost) == (8, False)


def test_another_zygote_replaces_the_first_and_unbinding_closes_all(store):
    first, second = sandbox(7), sandbox(8)
    store.keep(Keep(key=1, parts={0: b"x"}), [])
    store.bind(1, 7, first)
    store.bind(1, 8, second)
    assert not any(map(is_open, first.fds))
    assert (store.holds(7), store.holds(8)) == (False, True)
    store.keep(Keep(key=1, unbind=True), [])
    assert not any(map(is_open, second.fds))


def test_forgetting_what_is_not_there_is_no_fault(store):
    store.forget(5)


def test_a_large_entry_comes_in_messages_that_fit_with_the_descriptors_last(store):
    parts = {0: bytes(MESSAGE_BYTES), 1: bytes(70_000), 2: b"small"}
    upload = memfd()
    for part, data in parts.items():
        store.keep(Keep(key=1, parts={part: data}), [])
    store.keep(Keep(key=1), [upload])
    found = entries(store)
    together = {}
    for message, _ in found:
        assert sum(len(data) for data in message.parts.values()) <= MESSAGE_BYTES
        together |= message.parts
    assert together == parts
    assert [fds for _, fds in found] == [()] * (len(found) - 1) + [(upload,)]


def test_more_descriptors_than_an_upload_are_refused_and_closed(store):
    fds = [memfd(), memfd()]
    with pytest.raises(ProtocolError, match="2 descriptors"):
        store.keep(Keep(key=1), fds)
    assert not any(map(is_open, fds))


def test_the_marks_are_told_once_and_the_bounds_hold():
    said = []
    store = Store(max_fds=10, on_state=said.append, max_bytes=100_000)
    for key in range(9):
        store.keep(Keep(key=key, parts={0: bytes(9_600)}), [])
    assert said == [True]
    fd = memfd()
    with pytest.raises(ProtocolError, match="more than the store holds"):
        store.keep(Keep(key=10, parts={0: bytes(10_000)}), [fd])
    assert not is_open(fd)
    store.forget(0)
    assert said == [True, False]
    store.close()


def test_descriptors_count_too():
    said = []
    store = Store(max_fds=10, on_state=said.append)
    for key in range(4):
        store.keep(Keep(key=key), [])
        store.bind(key, key, sandbox(key))
    assert said == [True]
    store.close()
    assert (said, store.fds) == ([True, False], 0)


# ── journal ──────────────────────────────────────────────────────────────────

CAPACITY = 4096


@pytest.fixture(name="log_fd")
def make_log():
    fd = memfd()
    os.ftruncate(fd, CAPACITY + journal.JOURNAL_BYTES)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("size", [1, 4079, 4080, 4081, 128 * 1024])
def test_what_was_written_is_read_and_the_other_slot_stays_empty(log_fd, size):
    data = os.urandom(size)
    journal.write(log_fd, CAPACITY, journal.FINAL, data, 12.5)
    assert journal.read(log_fd, CAPACITY, journal.FINAL) == (data, 12.5)
    assert journal.read(log_fd, CAPACITY, journal.STARTED) is None
    assert os.pread(log_fd, CAPACITY, 0) == bytes(CAPACITY)


def test_a_word_that_was_being_written_counts_as_none(log_fd):
    journal.write(log_fd, CAPACITY, journal.STARTED, b"x" * 9000, 1.0)
    at = CAPACITY + journal.STARTED * journal.SLOT_BYTES
    os.pwrite(log_fd, bytes(100), at + 8000)
    assert journal.read(log_fd, CAPACITY, journal.STARTED) is None


def test_a_hostile_length_is_not_believed(log_fd):
    os.pwrite(log_fd, b"\xff" * 16, CAPACITY)
    assert journal.read(log_fd, CAPACITY, journal.STARTED) is None


# ── systemd ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("abstract", [False, True])
def test_states_reach_the_service_manager(tmp_path, abstract):
    name = f"@sandrun-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0", 1) if abstract else name)
        notify = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000000"}, 5)
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"
        assert notify.watchdog_s == 1.5
        notify.close()
        other = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "6"}
        notify = Notifier(other, 5)
        assert notify.watchdog_s == 0
        notify.close()


def test_without_a_service_manager_nothing_happens():
    notify = Notifier({"WATCHDOG_USEC": "1000000"}, 5)
    notify("READY=1")
    assert notify.watchdog_s == 0
    notify = Notifier({"NOTIFY_SOCKET": "/nowhere/at/all"}, 5)
    notify("READY=1")
    notify.close()


# ── the supervisor's watchdog ────────────────────────────────────────────────


def test_only_a_zygote_that_is_busy_for_longer_than_any_job_may_take_is_overdue():
    async def look():
        manager = Manager(
            Config(), None, {}, {}, landlock=False, noswap=False, to_http=lambda *_: None
        )
        most = Config().limits.maxima.timeout_s
        kind = Kind("default", "exec", "exec", 1)
        for number, (state, since) in enumerate(
            [(State.BUSY, 0.0), (State.BUSY, 500.0), (State.LEASED, 0.0)]
        ):
            zygote = Zygote(number, kind, 0, None, -1, (), state, busy_since=since)
            manager.zygotes[number] = zygote
        assert manager.overdue(2 * most) == []
        assert manager.overdue(2 * most + 200.0) == [0]
        assert manager.overdue(2 * most + 700.0) == [0, 1]

    asyncio.run(look())
