"""Requirements of jobs, installed for real from a local directory of wheels."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import wheels

from sandrun import config
from sandrun.errors import HostError
from sandrun.messages import Install, Installed, InstallFailed, NodeLock
from sandrun.pool import installer, installs, package_index, seccomp

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building a sandbox needs root")


class FakePool:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.environments: dict[str, str] = {}
        self.busy: set[str] = set()

    async def add_environment(self, name, environment, directory):
        self.environments[name] = directory

    def remove_environment(self, name):
        del self.environments[name]

    def is_idle(self, name):
        return name not in self.busy


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def make(tmp_path: Path):
    try:
        installer.find_uv()
    except HostError as error:
        pytest.skip(str(error))
    for name in ("alpha", "beta", "gamma"):
        wheels.make(tmp_path / "wheels", name, "1.0", requires=["beta"] if name == "alpha" else ())
    (tmp_path / "cache").mkdir()

    def build(more: str = ""):
        settings = config.parse(
            f'[packages]\nfind_links = ["{tmp_path}/wheels"]\noffline = true\n{more}'
        )
        index = package_index.discover(settings.packages, {})
        factory = installs.installer_factory(settings, index, seccomp.job_program())
        pool = FakePool()
        clock = Clock()
        made = installs.Installs(settings, pool, tmp_path / "cache", factory, index, clock)
        return made, pool, clock

    return build


def wish(*lines: str, request: int = 1, environment: str = "default") -> Install:
    return Install(request=request, environment=environment, lines=lines)


def test_lines_become_an_environment_and_a_second_wish_costs_nothing(make):
    async def main():
        cache, pool, _ = make()
        first = await cache.install(wish("alpha"))
        second = await cache.install(wish("alpha", request=2))
        return first, second, pool.environments

    first, second, known = asyncio.run(main())
    assert isinstance(first, Installed)
    assert {p.name: p.version for p in first.packages} == {"alpha": "1.0", "beta": "1.0"}
    assert first.cpu_seconds > 0
    assert "resolved 2 packages" in first.log
    assert (second.request, second.environment) == (2, first.environment)
    assert (second.seconds, second.cpu_seconds, second.log) == (0, 0, "")
    assert Path(known[first.environment], "lib").is_dir()


def test_the_same_wish_at_the_same_time_is_built_once_and_paid_once(make):
    async def main():
        cache, pool, _ = make()
        answers = await asyncio.gather(*(cache.install(wish("beta", request=n)) for n in range(5)))
        return answers, pool.environments

    answers, known = asyncio.run(main())
    assert len({answer.environment for answer in answers}) == len(known) == 1
    assert [answer.request for answer in answers] == [0, 1, 2, 3, 4]
    assert sum(answer.cpu_seconds > 0 for answer in answers) == 1


def test_other_words_with_the_same_lock_share_the_environment(make):
    async def main():
        cache, pool, _ = make()
        await cache.install(wish("alpha"))
        await cache.install(wish("alpha==1.0", "beta"))
        return pool.environments

    assert len(asyncio.run(main())) == 1


def test_what_cannot_be_resolved_fails_with_the_resolvers_words(make):
    async def main():
        return await make()[0].install(wish("alpha>=2"))

    answer = asyncio.run(main())
    assert isinstance(answer, InstallFailed)
    assert not answer.fault
    assert "alpha" in answer.reason
    assert "/build" not in answer.reason


@pytest.mark.parametrize("line", ["-r /etc/passwd", "x @ file:///etc/passwd", "../x"])
def test_lines_are_checked_here_too(make, line):
    answer = asyncio.run(make()[0].install(wish("beta", line)))
    assert isinstance(answer, InstallFailed)
    assert "line 2" in answer.reason
    assert not answer.fault


def test_a_server_may_refuse_and_a_strange_environment_is_refused(make):
    async def main():
        refused = await make("requirements = false\n")[0].install(wish("beta"))
        strange = await make()[0].install(wish("beta", environment="nope"))
        return refused, strange

    refused, strange = asyncio.run(main())
    assert "installs no requirements" in refused.reason
    assert "no environment 'nope'" in strange.reason


def test_the_least_recently_used_goes_and_the_busy_one_stays(make):
    async def main():
        cache, pool, clock = make("cache_environments = 1\n")
        first = await cache.install(wish("alpha"))
        clock.now += 100
        second = await cache.install(wish("beta"))
        kept = set(pool.environments)
        pool.busy.add(second.environment)
        clock.now += 100
        third = await cache.install(wish("gamma"))
        clock.now += 100
        await cache.make_room()
        return first, second, third, kept, pool.environments

    first, second, third, kept, known = asyncio.run(main())
    assert kept == {second.environment}
    assert first.environment not in known
    assert set(known) == {second.environment}  # the third was idle, the second was not
    assert third.environment != second.environment


def test_an_evicted_environment_is_built_again(make):
    async def main():
        cache, pool, clock = make("cache_environments = 1\n")
        await cache.install(wish("alpha"))
        clock.now += 100
        await cache.install(wish("beta"))
        clock.now += 100
        again = await cache.install(wish("alpha"))
        return again, pool.environments

    again, known = asyncio.run(main())
    assert again.environment in known
    assert again.cpu_seconds > 0


def test_stopping_ends_a_build_that_runs(make):
    async def main():
        cache, _, _ = make()
        tasks = [asyncio.ensure_future(cache.install(wish("alpha"))) for _ in range(2)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await cache.stop()
        return await asyncio.gather(*tasks)

    for answer in asyncio.run(main()):
        assert isinstance(answer, Installed | InstallFailed)


def test_victims_are_enough_for_bytes_and_never_fresh_ones():
    def kept(size, used):
        return installs.Kept(Path("/x"), None, size, used)

    entries = {"old": kept(5, 0.0), "new": kept(5, 50.0), "fresh": kept(5, 95.0)}
    assert installs.victims(entries, lambda _: True, 150.0, count=9, size_bytes=10) == ["old"]
    assert installs.victims(entries, lambda _: True, 150.0, count=1, size_bytes=99) == [
        "old",
        "new",
    ]
    assert installs.victims(entries, lambda _: False, 150.0, count=1, size_bytes=1) == []
    assert installs.victims(entries, lambda _: True, 150.0, count=3, size_bytes=15) == []


def test_without_a_registry_node_packages_are_refused_without_asking_npm_each_time(make):
    """What npm is asked for, no client pays."""

    async def main():
        cache, pool, clock = make()
        lock = NodeLock(data=b"x", packages=1)
        wished = Install(request=1, environment="default", lines=(), lock=lock)
        first = await cache.install(wished)
        second = await cache.install(wished)
        return first, second, cache._node_refusal, clock.now, pool.environments

    first, second, refusal, now, known = asyncio.run(main())
    assert isinstance(first, InstallFailed)
    assert "offline" in first.reason
    assert first.reason == second.reason
    assert not first.fault
    assert refusal[1] == now
    assert known == {}


def test_two_builds_that_come_to_the_same_lock_at_once_share_its_environment(make):
    async def main():
        cache, pool, _ = make()
        words = (("beta",), ("beta==1.0",))
        wishes = (cache.install(wish(*lines)) for lines in words)
        return await asyncio.gather(*wishes), pool.environments, sorted(os.listdir(cache.directory))

    answers, known, left = asyncio.run(main())
    assert {type(answer) for answer in answers} == {Installed}, answers
    assert left == list(known) == [answers[0].environment]


def test_one_that_is_evicted_before_it_is_admitted_is_built_again(make, monkeypatch):
    async def main():
        cache, pool, _ = make()
        first = await cache.install(wish("beta"))
        found = cache._try

        async def evict_meanwhile(*asked):
            cache._try = found
            result = await found(*asked)
            with monkeypatch.context() as patch:
                patch.setattr(installs, "victims", lambda kept, *_, **__: list(kept))
                await cache.make_room()
            assert not pool.environments
            return result

        cache._try = evict_meanwhile
        return first, await cache.install(wish("beta==1.0")), dict(pool.environments)

    first, second, known = asyncio.run(main())
    assert second.environment == first.environment
    assert Path(known[second.environment], "lib").is_dir()
