"""A real pool that is too small for what comes."""

from concurrent.futures import ThreadPoolExecutor

import servers

CONFIG = """
[pool]
ready = 2
[environments.default]
mode = "fork"
preload = ["decimal"]
"""
WARM = "import sys\nprint('decimal' in sys.modules)\n"


def test_a_burst_larger_than_the_pool_is_served_warm():
    """Once the generic zygotes were taken as soon as the warm ones were gone."""
    with servers.running(servers.NO_RATE_LIMIT + CONFIG) as server:
        with ThreadPoolExecutor(12) as threads:
            answers = list(threads.map(lambda _: server.python(WARM), range(24)))
        assert [answer["stdout"] for answer in answers] == ["True\n"] * 24
