"""Fixtures for all tests. A real server needs root; without it those tests say so."""

import os

import hypothesis
import pytest
import servers

# How long an example takes says how busy the machine is: no test is about that.
hypothesis.settings.register_profile("sandrun", deadline=None)
hypothesis.settings.load_profile("sandrun")


@pytest.fixture(scope="session")
def server():
    """One server for all tests that do not need their own, without rate limits."""
    if os.geteuid() != 0:
        pytest.skip("a real server needs root")
    with servers.running() as found:
        yield found
