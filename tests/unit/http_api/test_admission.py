"""Accepted by the wait that it would have, not by the length of the queue."""

from sandrun.http.admission import STALL_STARTS, STANDING_S, Admission, crowded
from sandrun.http.queue import FairQueue


def busy(pace_s, *, starts=200, waiting=50, most_s=60.0):
    """An admission that has seen jobs start at this pace; and the time now."""
    admission = Admission(most_s)
    for n in range(starts):
        admission.on_start(waiting, n * pace_s)
    return admission, (starts - 1) * pace_s


def test_the_wait_is_the_place_times_the_measured_pace():
    admission, now = busy(0.01)
    assert abs(admission.wait_s(50, now, guess_s=1.0) - 0.5) < 1e-6
    assert Admission(60.0).wait_s(50, 0.0, guess_s=0.1) == 5.0


def test_starts_between_which_nothing_waited_say_nothing_about_the_pace():
    admission = Admission(60.0)
    for n in range(100):
        admission.on_start(0, n * 30.0)
    assert admission.wait_s(10, 3000.0, guess_s=0.01) == 0.1


def test_a_pace_that_stalls_is_believed_no_longer():
    admission, now = busy(0.01)
    later = now + 100 * STALL_STARTS * 0.01
    assert abs(admission.wait_s(1, later, guess_s=0.0) - 1.0) < 1e-6


def test_a_burst_may_wait_and_a_longer_one_is_told_when_to_come_again():
    admission, now = busy(0.1, most_s=20.0)
    assert admission.refusal(199, 199, now, 0.1, 0.1) == 0.0
    assert abs(admission.refusal(250, 250, now, 0.1, 0.1) - 5.0) < 1e-6


def test_a_standing_queue_lets_in_only_who_waits_a_quarter_as_long_as_he_runs():
    admission, now = busy(0.1)
    assert admission.refusal(100, 100, now, 0.1, 0.1) == 0.0
    step = 0.1
    while (now := now + step) < 20 + STANDING_S + 1:
        admission.on_start(100, now)
        admission.refusal(100, 100, now, 0.1, 0.1)
    assert admission.refusal(100, 100, now, 0.1, 0.1) > 0
    assert admission.refusal(1, 100, now, 0.1, 0.1) == 0.0  # the next one always may
    assert admission.refusal(2, 100, now, 0.1, 0.1) > 0
    assert admission.refusal(12, 100, now, 0.1, service_s=5.0) == 0.0  # long jobs: more patience
    assert admission.refusal(13, 100, now, 0.1, service_s=5.0) > 0
    admission.on_start(0, now)
    now += STANDING_S  # nobody was refused for so long: the next one is a burst
    assert admission.refusal(100, 100, now, 0.1, 0.1) == 0.0


def test_the_next_place_is_what_the_queue_then_says():
    """For clients that wait, that are new, and that come back with a debt."""
    queue = FairQueue()
    for client, count in (("a", 5), ("b", 1), ("c", 3)):
        for n in range(count):
            queue.push(client, (client, n))
    queue.pop()
    queue.restore("debtor", -10.0, 1.0)
    for client in ("a", "b", "c", "new", "debtor"):
        expected = queue.next_position(client)
        queue.push(client, (client, "next"))
        assert queue.position(client, (client, "next")) == expected, client
        queue.remove(client, (client, "next"))


def test_others_backlog_does_not_refuse_a_new_clients_first_job():
    queue, (admission, now) = FairQueue(), busy(1.0, most_s=30.0)
    for n in range(500):
        queue.push("heavy", n)
    queue.pop()
    assert admission.refusal(queue.next_position("heavy"), len(queue), now, 1.0, 1.0) > 0
    assert admission.refusal(queue.next_position("new"), len(queue), now, 1.0, 1.0) == 0.0


def test_only_a_crowd_of_our_own_is_held_back():
    def crowd(young, runnable):
        return crowded(young, lambda: runnable, processors=2)

    assert not crowd(3, 100)  # so many may always begin
    assert not crowd(60, 8)  # they sleep
    assert crowd(8, 10)
    assert not crowd(8, 40)  # others keep the host busy: holding back would leave it to them
    assert crowd(20, 40)
