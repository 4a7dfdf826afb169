"""The server that the bank is run against, and its honest neighbour."""

from __future__ import annotations

import os
import threading

import pytest
import servers

from sandrun.selftest import host
from sandrun.selftest.target import Target


class Neighbour:
    """An honest client: the same small job again and again, beside the hostile ones."""

    PROGRAM = "print(sum(i * i for i in range(20000)))"
    WANTED = f"{sum(i * i for i in range(20000))}\n"

    def __init__(self, url):
        self._target = Target(url)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self.jobs = 0
        self.complaints = []

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(120)
        self._target.forget()
        self._target.close()

    def _work(self):
        while not (self.jobs and self._stop.wait(0.4)):
            self.jobs += 1
            try:
                answer = self._target.run({"main.py": self.PROGRAM})
            except Exception as error:
                self.complaints.append(repr(error))
                continue
            if (answer["exit_reason"], answer["stdout"]) != ("exited", self.WANTED):
                self.complaints.append(f"{answer['exit_reason']}: {answer['stdout'][:200]!r}")


class Bench:
    """A server, and the machine as it was before anything hostile."""

    def __init__(self, server, canaries):
        self.pid = server.process.pid
        self.url = server.url
        self.server = server
        self.target = Target(server.url)
        self.canaries = canaries
        for _ in range(3):
            self.target.run({"main.py": "print('first')"})
        self.target.close()
        self.before = host.at_rest(self.pid, canaries)

    def changes(self):
        """What is not as it was, once the server had time to tidy up."""
        self.target.forget()
        self.target.close()
        return host.settled(self.pid, self.canaries, self.before, self.target.warm)


@pytest.fixture(scope="session")
def bench():
    if os.geteuid() != 0:
        pytest.skip("a real server needs root")
    with servers.running() as server, host.Canaries() as canaries:
        found = Bench(server, canaries)
        yield found
        found.target.close()


@pytest.fixture(scope="session")
def neighbour_of():
    """Neighbours are made per layer."""
    return lambda bench: Neighbour(bench.url)
