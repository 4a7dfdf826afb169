"""Which zygote a job waits for. A real socket to the pool's side; the clock is ours."""

import os
import resource
import socket

import pytest

from sandrun.channel import Channel, pair
from sandrun.http.leases import PATIENCE_S, Leases
from sandrun.messages import Finished, GiveBack, KindState, Lease, Ping, Pong, PoolState, ToPool


class Loop:
    """A clock that stands still; readers are called by hand."""

    def __init__(self):
        self.now = 100.0
        self.readers = {}
        self.later = []

    def time(self):
        return self.now

    def add_reader(self, fd, work, *args):
        self.readers[fd] = lambda: work(*args)

    def remove_reader(self, fd):
        self.readers.pop(fd, None)

    def call_later(self, delay, work, *args):
        self.later.append((delay, work, args))
        return self

    def cancel(self):
        self.later.clear()


class Listener:
    """Counts what it is asked to do."""

    def __init__(self):
        self.asked = 0
        self.gone = False

    def on_ready(self):
        self.asked += 1

    def on_pool_state(self, state):
        pass

    def on_supervisor_gone(self):
        self.gone = True


class Node:
    """Leases, and what the supervisor would do."""

    def __init__(self):
        ours, theirs = pair()
        theirs.setblocking(False)
        self.loop, self.listener = Loop(), Listener()
        self.leases = Leases(ours, self.listener, self.loop, 1 << 20)
        self.control = ours.fileno()
        self.supervisor = Channel(theirs, ToPool)
        self.far = []
        self.count = 0

    def lease(self, warm, environment="default"):
        self.count += 1
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        files = [os.memfd_create("log"), os.memfd_create("outputs")]
        for fd in files:
            os.ftruncate(fd, 1 << 20)
        lease = Lease(zygote=self.count, environment=environment, warm=warm)
        self.supervisor.send(lease, (near.fileno(), *files))
        near.close()
        for fd in files:
            os.close(fd)
        self.far.append(far)
        self.hear()
        return self.count

    def state(self, *kinds):
        self.supervisor.send(PoolState(warm=0, booting=0, busy=0, capacity=8, kinds=kinds))
        self.hear()

    def hear(self):
        self.loop.readers[self.control]()

    def close(self):
        for zygote in self.leases._zygotes.values():
            zygote.kept.release()
        self.leases.close()
        self.supervisor.close()
        for far in self.far:
            far.close()


@pytest.fixture
def node():
    node = Node()
    yield node
    node.close()


def kind(warm, mode, *, coming=0, served=True):
    return KindState(environment="default", warm=warm, mode=mode, coming=coming, served=served)


def test_without_a_word_of_the_pool_any_zygote_will_do(node):
    assert not node.leases.can_start("default", "python3", 1)
    node.lease("exec")
    assert node.leases.can_start("default", "python3", 1)
    assert not node.leases.can_start("other", "python3", 1)


def test_a_cold_start_is_no_way_out_of_a_moment_without_a_fork(node):
    """Once, 16 clients kept each other in cold starts: 365 ms of CPU for each job with
    pandas instead of 45, because the generic zygotes were taken as soon as the pool was
    empty, and what they used was missing for the next warm one.
    """
    node.lease("exec")
    node.state(kind("python3", "fork"), kind("exec", "exec"))
    assert not node.leases.can_start("default", "python3", 50)
    node.lease("python3")
    assert node.leases.can_start("default", "python3", 50)


def test_for_a_door_so_many_wait_as_are_coming(node):
    node.lease("exec")
    node.state(kind("python3", "door", coming=2), kind("exec", "exec"))
    assert node.leases.can_start("default", "python3", 3)
    assert not node.leases.can_start("default", "python3", 2)
    assert not node.leases.can_start("default", "python3", 1)


def test_a_kind_that_does_not_boot_is_not_waited_for(node):
    node.lease("exec")
    node.state(kind("python3", "fork", coming=4, served=False), kind("exec", "exec"))
    assert node.leases.can_start("default", "python3", 1)


def test_a_promise_that_is_not_kept_is_not_believed_for_ever(node):
    node.lease("exec")
    node.state(kind("python3", "fork", coming=4), kind("exec", "exec"))
    assert not node.leases.can_start("default", "python3", 1)
    [(delay, look_again, _)] = node.loop.later
    node.loop.now += delay
    asked = node.listener.asked
    look_again()
    assert node.listener.asked == asked + 1
    assert delay == PATIENCE_S
    assert node.leases.can_start("default", "python3", 1)


def test_as_long_as_warm_ones_come_they_are_waited_for(node):
    node.lease("exec")
    node.state(kind("python3", "fork", coming=4), kind("exec", "exec"))
    for _ in range(5):
        assert not node.leases.can_start("default", "python3", 9)
        node.loop.now += PATIENCE_S - 0.1
        number = node.lease("python3")
        node.supervisor.send(GiveBack(zygote=number))
        node.hear()


def test_a_warm_one_is_not_taken_for_something_else_while_a_generic_one_is_coming(node):
    node.lease("python3")
    node.state(kind("python3", "fork"), kind("exec", "exec", coming=1))
    assert not node.leases.can_start("default", "bash", 1)
    node.state(kind("python3", "fork"), kind("exec", "exec"))
    assert node.leases.can_start("default", "bash", 1)


def test_what_is_given_back_is_no_longer_there_and_the_supervisor_hears_it(node):
    number = node.lease("python3")
    assert node.leases.ready_count == 1
    node.supervisor.send(GiveBack(zygote=number))
    node.supervisor.send(GiveBack(zygote=number))  # a second time, and one that never was
    node.supervisor.send(GiveBack(zygote=number + 1))
    node.hear()
    assert node.leases.ready_count == 0
    assert not node.leases.can_start("default", "python3", 1)
    assert node.supervisor.receive()[0] == Finished(zygote=number)
    with pytest.raises(BlockingIOError):
        node.supervisor.receive()


def test_a_ping_is_answered(node):
    node.supervisor.send(Ping())
    node.hear()
    assert isinstance(node.supervisor.receive()[0], Pong)


def test_a_lease_that_is_lost_for_want_of_descriptors_is_not_passed_over(node):
    """The pool would take it for stock and make no other: better to be replaced."""
    node.lease("exec")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = [os.memfd_create(name) for name in ("socket", "log", "outputs")]
    node.supervisor.send(Lease(zygote=9, environment="default", warm="exec"), tuple(files))
    free = os.dup(files[0])
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
    try:
        node.hear()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in files:
            os.close(fd)
    assert node.listener.gone
