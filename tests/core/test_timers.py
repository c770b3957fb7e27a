"""The heap of deadlines: order, a million of them, and what becomes of those that are cancelled."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest

import flowno
from flowno import current_event_loop, current_time, sleep, sleep_until, spawn
from flowno.core.event_loop.timers import Timer, Timers
from tests.support.tasks import FOREVER


@pytest.fixture
def no_collections() -> Iterator[None]:
    """A million objects are nothing that the garbage collector would have to look through again and again."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collections")
def test_a_million_timers_are_kept_in_order_and_leave_nothing_when_they_are_cancelled() -> None:
    timers = Timers()
    fired: list[int] = []
    pending = [
        timers.add(float(number * 7919 % 1_000_000), fired.append, number * 7919 % 1_000_000)
        for number in range(1_000_000)
    ]
    assert timers.next_deadline() == 0.0
    timers.fire_due(999.0)
    assert fired == list(range(1000))
    for timer in pending:
        timers.cancel(timer)
    assert len(timers) == 0
    assert timers.next_deadline() is None
    assert len(timers.heap) <= 1000  # as many cancelled ones as may stay


def test_equal_deadlines_fire_in_the_order_in_which_they_were_set() -> None:
    timers = Timers()
    fired: list[int] = []
    for number in range(1000):
        timers.add(FOREVER if number % 2 else 1.0, fired.append, number)
    timers.fire_due(1.0)
    assert fired == list(range(0, 1000, 2))
    timers.fire_due(FOREVER)
    assert fired[500:] == list(range(1, 1000, 2))


def test_cancelled_timers_do_not_pile_up_and_cost_no_heap_operation_each() -> None:
    timers = Timers()
    kept = [timers.add(1e6 + number, print, None) for number in range(100)]
    longest = 0
    for number in range(100_000):
        timers.cancel(timers.add(float(number), print, None))
        longest = max(longest, len(timers.heap))
    assert len(timers) == len(kept)
    assert longest <= 3 * 1000  # as many as are swept out in one go


def test_a_timer_that_was_cancelled_or_has_fired_can_be_cancelled_again() -> None:
    timers = Timers()
    fired: list[str] = []
    cancelled, due = timers.add(1.0, fired.append, "cancelled"), timers.add(1.0, fired.append, "due")
    timers.cancel(cancelled)
    timers.cancel(cancelled)
    timers.fire_due(1.0)
    timers.cancel(due)
    assert fired == ["due"]
    assert len(timers) == 0


def test_what_fires_may_set_and_cancel_others() -> None:
    timers = Timers()
    fired: list[str] = []
    others: list[Timer] = []

    def fire(_: Any) -> None:
        fired.append("first")
        timers.cancel(others[0])
        timers.add(0.5, fired.append, "set meanwhile, and due")

    timers.add(1.0, fire, None)
    others.append(timers.add(1.0, fired.append, "cancelled meanwhile"))
    timers.fire_due(1.0)
    assert fired == ["first", "set meanwhile, and due"]


@pytest.mark.usefixtures("backend")
def test_many_sleepers_wake_at_one_time_in_their_order_and_leave_nothing() -> None:
    woken: list[int] = []

    async def sleeper(number: int, deadline: float) -> None:
        await sleep_until(deadline)
        woken.append(number)

    async def root() -> int:
        deadline = current_time() + 0.2
        tasks = [await spawn(sleeper(number, deadline)) for number in range(5000)]
        forever = [await spawn(sleep(FOREVER)) for _ in range(5000)]
        for task in tasks:
            await task.join()
        for each in forever:
            await each.cancel()
        loop = current_event_loop()
        assert loop is not None
        return len(loop.timers)

    assert flowno.run(root()) == 0
    # start + seconds is rounded, so equal times may be told apart by the last bit; most are not.
    assert sorted(woken) == list(range(5000))
