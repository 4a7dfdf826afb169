"""When a child is started again."""

from sandrun.restart import HEALTHY_AFTER_S, MAX_DELAY_S, OPEN_AFTER, Restart


def test_a_child_that_dies_young_is_tried_ever_more_rarely():
    restart = Restart()
    delays = []
    for now in range(20):
        restart.on_start(now)
        delays.append(restart.on_failure(now, "boom"))
    assert delays == sorted(delays)
    assert delays[1] == 2 * delays[0]
    assert delays[-1] == MAX_DELAY_S


def test_the_circuit_opens_and_says_why():
    restart = Restart()
    for _ in range(OPEN_AFTER):
        assert restart.fault == ""
        restart.on_failure(1.0, "no memory")
    assert restart.fault == "no memory"
    restart.on_success()
    assert restart.fault == ""


def test_a_child_that_lived_starts_with_a_clean_slate():
    restart = Restart()
    for _ in range(OPEN_AFTER):
        restart.on_start(0.0)
        restart.on_failure(0.1, "boom")
    restart.on_start(1.0)
    assert restart.on_failure(1.0 + HEALTHY_AFTER_S, "news") == restart.on_failure(0, "") / 2
