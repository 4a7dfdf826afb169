"""Clients without accounts: a budget with debt, hashed, bounded."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandrun.config import RateLimit
from sandrun.errors import RequestError
from sandrun.http import quota as quota_module
from sandrun.http.quota import Quota, prefix


def random_bytes(size: int, count: itertools.count[int] = itertools.count()) -> bytes:  # noqa: B008
    return next(count).to_bytes(size, "big")


def make(**changes: object) -> Quota:
    return Quota(msgspec.structs.replace(RateLimit(), **changes), random_bytes, 0.0)


def refused(quota: Quota, client: quota_module.Client, now: float) -> RequestError:
    with pytest.raises(RequestError) as caught:
        quota.admit(client, now)
    assert caught.value.status == 429
    return caught.value


def test_a_job_is_admitted_while_the_balance_is_positive_and_charged_what_it_used() -> None:
    quota = make()
    client = quota.client("192.0.2.1", 0)
    quota.admit(client, 0)
    quota.settle(client, 60.0, 0)  # 10 were there: 50 of debt
    error = refused(quota, client, 1)
    assert error.details is not None
    assert error.details["reason"] == "cpu_seconds"
    assert error.retry_after_s is not None
    assert error.retry_after_s == pytest.approx(300, abs=3)
    quota.admit(client, 1 + error.retry_after_s)


def test_the_balance_never_exceeds_one_minute_of_budget() -> None:
    quota = make()
    client = quota.client("192.0.2.1", 0)
    assert quota.standing(client, 3000).available_s == 10.0


def test_of_many_submissions_in_one_instant_exactly_the_allowed_are_admitted() -> None:
    quota = make()
    client = quota.client("192.0.2.1", 0)
    admitted = 0
    for _ in range(500):
        try:
            quota.admit(client, 0)
        except RequestError:
            continue
        admitted += 1
    assert admitted == 2


def test_jobs_of_an_hour_are_counted_and_the_wait_is_told() -> None:
    quota = make()
    client = quota.client("192.0.2.1", 0)
    for number in range(20):
        quota.admit(client, number)
        quota.settle(client, 0.0, number)
    error = refused(quota, client, 100)
    assert error.details is not None
    assert error.details["reason"] == "jobs_per_hour"
    assert error.retry_after_s == 3500
    quota.admit(client, 3600.5)


def test_our_fault_gives_place_hour_and_budget_back() -> None:
    quota = make(jobs_per_hour=1)
    client = quota.client("192.0.2.1", 0)
    quota.admit(client, 5)
    quota.refund(client, 5, 6)
    assert client.active == 0
    assert quota.standing(client, 6).available_s == 10
    quota.admit(client, 6)


def test_switched_off_it_still_counts_but_refuses_nobody() -> None:
    quota = make(enabled=False)
    client = quota.client("192.0.2.1", 0)
    for _ in range(100):
        quota.admit(client, 0)
    assert client.active == 100
    assert quota.standing(client, 0).reason == ""
    assert quota.headers(client, 0) == ()


def test_an_ipv6_client_is_its_64() -> None:
    quota = make()
    assert quota.client("2001:db8:1:2::1", 0) is quota.client("2001:db8:1:2:ffff::9", 0)
    assert quota.client("2001:db8:1:2::1", 0) is not quota.client("2001:db8:1:3::1", 0)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", "local"),
        ("unix:", "local"),
    ],
)
def test_addresses_become_clients(address: str, name: str) -> None:
    assert prefix(address) == name


def test_the_key_changes_daily_and_the_account_survives_it() -> None:
    quota = make()
    now = 86_300.0
    client = quota.client("192.0.2.1", now)
    quota.admit(client, now)
    before = client.key
    later = quota.client("192.0.2.1", now + 200)
    assert later is client
    assert later.key != before


def test_an_account_is_forgotten_after_an_hour_without_activity() -> None:
    quota = make()
    client = quota.client("192.0.2.1", 0)
    assert quota.client("192.0.2.1", 3601) is not client


def test_a_flood_of_addresses_stays_bounded_and_keeps_who_is_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quota_module, "MAX_CLIENTS", 50)
    quota = make()
    runner = quota.client("192.0.2.1", 0)
    quota.admit(runner, 0)
    for number in range(1000):
        quota.client(f"10.0.{number // 250}.{number % 250}", 1)
    assert len(quota) <= 51
    assert quota.client("192.0.2.1", 2) is runner


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 60)), max_size=50))
def test_nothing_is_lost_between_admit_and_settle(steps: list[tuple[float, float]]) -> None:
    quota = make(concurrent_jobs=1)
    client = quota.client("192.0.2.1", 0)
    now = 0.0
    for wait, used in steps:
        now += wait
        try:
            quota.admit(client, now)
        except RequestError as error:
            assert error.retry_after_s is not None
            assert error.retry_after_s > 0
            continue
        quota.settle(client, used, now)
        assert client.active == 0
    assert client.balance_s <= 10
