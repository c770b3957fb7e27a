"""Sleep: what it returns, what it accepts, and who wakes first."""

import random
import time
from collections.abc import Callable
from selectors import SelectorKey
from typing import Any

import pytest

import flowno
from flowno import (
    EventLoop,
    EventLoopError,
    current_event_loop,
    current_time,
    sleep,
    sleep_forever,
    sleep_until,
    spawn,
)
from flowno.core.event_loop.backend import SystemWorld
from tests.support.counting_selector import CountingSelector

pytestmark = pytest.mark.usefixtures("backend")

FOREVER = float("inf")


@pytest.mark.parametrize("seconds", [0, -1, -0.0, -FOREVER, False])
def test_nothing_to_wait_for_lets_the_others_run_once(seconds: float) -> None:
    order = []

    async def other() -> None:
        order.append("other")
        await sleep(0)
        order.append("other")

    async def root() -> None:
        await spawn(other())
        order.append("root")
        assert await sleep(seconds) == 0.0
        order.append("root")

    flowno.run(root())
    assert order == ["other", "root", "other", "root"]


@pytest.mark.parametrize("seconds", [1e-9, 0.001, 0.01])
def test_it_returns_the_seconds_that_it_took_and_never_wakes_early(seconds: float) -> None:
    async def root() -> None:
        start = time.monotonic()
        slept = await sleep(seconds)
        assert seconds <= slept <= time.monotonic() - start + 1e-6
        assert time.monotonic() - start >= seconds

    flowno.run(root())


@pytest.mark.parametrize("seconds", [FOREVER, 1e300, 1e18, 1e10, 10**30, 10**400], ids=lambda s: f"{str(s)[:9]}")
def test_a_huge_number_sleeps_until_it_is_cancelled(seconds: float) -> None:
    async def root() -> None:
        handles = [await spawn(sleep(seconds)) for _ in range(3)]
        await sleep(0.001)
        for handle in handles:
            assert await handle.cancel() is None

    flowno.run(root())


def test_nan_is_a_value_error() -> None:
    async def root() -> None:
        with pytest.raises(ValueError, match="seconds"):
            await sleep(float("nan"))

    flowno.run(root())


@pytest.mark.parametrize("seconds", [None, "1", b"1", 1j, [1]])
def test_what_is_no_number_is_a_type_error(seconds: Any) -> None:
    async def root() -> None:
        with pytest.raises(TypeError, match="seconds"):
            await sleep(seconds)

    flowno.run(root())


class Clock(SystemWorld):
    """A world whose time goes forward when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0

    def clock(self) -> float:
        return self.now


class StoppedTime(CountingSelector):
    """Waits by setting the clock forward."""

    def __init__(self) -> None:
        super().__init__()
        self.world = Clock()

    def select(self, timeout: float | None = None, /) -> list[tuple[SelectorKey, int]]:
        events = super().select(0)
        self.timeouts[-1] = timeout
        if not events and timeout is not None:
            self.world.now += timeout
        return events


def test_sleepers_wake_in_the_order_of_their_deadlines() -> None:
    order = []

    async def sleeper(seconds: float) -> None:
        assert await sleep(seconds) == pytest.approx(seconds)
        order.append(seconds)

    async def root() -> None:
        for seconds in (5.0, 1.0, 3600.0, 2.0, 200_000.0, 0.5):
            await spawn(sleeper(seconds))

    with StoppedTime() as selector, EventLoop(selector) as loop:
        loop.run_until_complete(root())
        assert selector.world.now == pytest.approx(200_100.0)
    assert order == sorted(order)
    assert len(order) == 6


def test_equal_deadlines_wake_in_the_order_in_which_they_were_set() -> None:
    order = []

    async def sleeper(number: int) -> None:
        await sleep(1)
        order.append(number)

    async def root() -> None:
        for number in range(50):
            await spawn(sleeper(number))

    with StoppedTime() as selector, EventLoop(selector) as loop:
        loop.run_until_complete(root())
    assert order == list(range(50))


@pytest.mark.not_under_faults(reason="it counts calls")
def test_sleepers_are_on_time_and_in_order_among_thousands_that_were_cancelled() -> None:
    """So many that the heap is swept again and again."""
    order: list[float] = []

    async def sleeper(seconds: float) -> None:
        assert await sleep(seconds) == pytest.approx(seconds)
        order.append(seconds)

    async def root() -> None:
        loop = current_event_loop()
        assert loop is not None
        chosen = random.Random(7)
        cancelled = []
        for number in range(8000):
            task = await spawn(sleeper(chosen.uniform(1, 1000)))
            if number % 8:
                cancelled.append(task)
        chosen.shuffle(cancelled)
        for task in cancelled:
            await task.cancel()
        assert len(loop.timers) == 1000
        assert len(loop.timers.heap) < 3100

    with StoppedTime() as selector, EventLoop(selector) as loop:
        loop.run_until_complete(root())
        assert len(order) == 1000
        assert order == sorted(order)
        assert selector.calls["select"] < 1100


@pytest.mark.not_under_faults(reason="it looks at the selector of the loop")
def test_the_selector_is_never_asked_to_wait_longer_than_a_day_nor_for_less_than_nothing() -> None:
    async def root() -> None:
        waiting = await spawn(sleep(FOREVER))
        await sleep(1_000_000)
        await waiting.cancel()

    with StoppedTime() as selector, EventLoop(selector) as loop:
        loop.run_until_complete(root())
        assert all(timeout is None or 0 <= timeout <= 86_400 for timeout in selector.timeouts)
        assert selector.calls["select"] < 30


@pytest.mark.not_under_faults(reason="it counts calls")
def test_a_cancelled_sleep_does_not_wake_the_loop() -> None:
    async def root() -> None:
        short = await spawn(sleep(1))
        await short.cancel()
        await sleep(10)

    with StoppedTime() as selector, EventLoop(selector) as loop:
        loop.run_until_complete(root())
        assert selector.calls["select"] == 1


def test_a_sleeper_is_on_time_while_others_are_always_ready() -> None:
    async def root() -> None:
        sleeper = await spawn(sleep(0.01))
        turns = 0
        while not sleeper.is_finished:
            turns += 1
            await sleep(0)
        assert await sleeper.join() < 1
        assert turns > 1

    flowno.run(root())


def test_the_clock_of_the_world_is_the_one_that_counts() -> None:
    asked: list[Callable[[], float]] = []

    async def root() -> float:
        loop = current_event_loop()
        assert loop is not None
        asked.append(loop.world.clock)
        return await sleep(1000)

    with StoppedTime() as selector, EventLoop(selector) as loop:
        assert loop.run_until_complete(root(), join=True) == pytest.approx(1000)
        assert asked[0]() == pytest.approx(1100)


# ------------------------------------------------------------------------------------------- until a time, and for ever


def test_sleep_until_waits_for_a_time_of_the_loops_clock() -> None:
    async def root() -> None:
        start = current_time()
        assert await sleep_until(start + 0.01) > 0
        assert current_time() >= start + 0.01

    flowno.run(root())


@pytest.mark.parametrize("ago", [0, 1, FOREVER])
def test_sleep_until_a_time_that_has_passed_lets_the_others_run_once(ago: float) -> None:
    order = []

    async def other() -> None:
        await sleep(0)
        order.append("other")

    async def root() -> None:
        await spawn(other())
        assert await sleep_until(current_time() - ago) == 0.0
        order.append("root")

    flowno.run(root())
    assert order == ["other", "root"]


@pytest.mark.parametrize("deadline", [FOREVER, 1e300, 10**400], ids=["inf", "1e300", "10**400"])
def test_sleep_until_a_time_that_never_comes_and_sleep_forever_wait_for_a_cancellation(deadline: float) -> None:
    async def root() -> None:
        handles = [await spawn(sleep_until(deadline)), await spawn(sleep_forever())]
        await sleep(0.001)
        for handle in handles:
            assert not handle.done()
            assert await handle.cancel() is None

    flowno.run(root())


def test_sleep_until_says_what_is_wrong() -> None:
    async def root() -> None:
        wrong: Any = "noon"
        with pytest.raises(TypeError, match="deadline must be a number, not 'noon'"):
            await sleep_until(wrong)
        with pytest.raises(ValueError, match="not NaN"):
            await sleep_until(float("nan"))

    flowno.run(root())


def test_the_time_of_a_loop_is_that_of_its_world() -> None:
    with pytest.raises(EventLoopError, match=r"current_time\(\)"):
        current_time()

    async def root() -> None:
        loop = current_event_loop()
        assert loop is not None
        assert loop.clock() <= current_time() <= loop.clock()

    flowno.run(root())
