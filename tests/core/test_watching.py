"""What the core offers to those who watch its loops: what is exchanged while they do, and put back."""

from collections.abc import Callable
from typing import Any

import pytest

import flowno
from flowno import EventLoop, current_event_loop, sleep, spawn
from flowno.core.event_loop.observers import entering, leaving
from tests.support.counting_selector import CountingSelector
from tests.support.loopback import pair
from tests.support.tasks import fail, value

pytestmark = pytest.mark.usefixtures("backend")


# ------------------------------------------------------------------------------------------------------------- selector


@pytest.mark.not_watched(reason="it looks at a loop that nobody else watches")
def test_whoever_watches_the_selector_is_asked_in_its_place_until_it_is_taken_back() -> None:
    log: list[str] = []

    def watch(name: str) -> Any:
        def wrapper(ask: Callable[[float | None], Any], timeout: float | None) -> Any:
            log.append(f"{name} {timeout}")
            return ask(timeout)

        return wrapper

    async def root() -> None:
        loop = current_event_loop()
        assert loop is not None
        with pair() as (one, _):
            reader = await spawn(one.recv(1))
            inner, outer = watch("inner"), watch("outer")
            loop.add_select_wrapper(inner)
            await sleep(0)
            assert log == ["inner 0"]
            loop.add_select_wrapper(outer)
            log.clear()
            await sleep(0)
            assert log == ["outer 0", "inner 0"]
            loop.remove_select_wrapper(inner)
            log.clear()
            await sleep(0)
            assert log == ["outer 0"]
            loop.remove_select_wrapper(outer)
            log.clear()
            await sleep(0)
            assert log == []
            assert "_select" not in vars(loop)
            await reader.cancel()

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it counts calls")
def test_a_loop_that_rests_is_not_tied_to_itself_by_who_watches_its_selector() -> None:
    with CountingSelector() as counting, EventLoop(counting) as loop:
        calls: list[float | None] = []

        def wrapper(ask: Callable[[float | None], Any], timeout: float | None) -> Any:
            calls.append(timeout)
            return ask(timeout)

        loop.add_select_wrapper(wrapper)
        assert "_select" not in vars(loop)
        for _ in range(2):
            loop.run_until_complete(sleep(0.001), join=True)
            assert len(calls) == counting.calls["select"] > 0
            assert "_select" not in vars(loop)


# ---------------------------------------------------------------------------------------------------------------- steps


def test_a_task_that_was_made_before_somebody_watched_is_watched_from_its_first_step_on() -> None:
    watched: list[str] = []

    def wrapper(task: Any, run: Any, method: Any, argument: Any) -> Any:
        watched.append(task.name)
        return run(method, argument)

    with EventLoop() as loop:
        loop.create_task(value(1), name="posted")
        loop.add_step_wrapper(wrapper)
        loop.run_until_complete(value(1))
        assert watched == ["value", "posted"]
        loop.create_task(value(1), name="later")
        loop.remove_step_wrapper(wrapper)
        loop.run_until_complete(value(1))
        assert watched == ["value", "posted"]


def test_the_traceback_of_an_error_begins_in_the_task_whoever_watches_it() -> None:
    def wrapper(task: Any, run: Any, method: Any, argument: Any) -> Any:
        return run(method, argument)

    with EventLoop() as loop:
        loop.add_step_wrapper(wrapper)
        loop.add_step_wrapper(wrapper)
        task = loop.create_task(fail(ValueError("no")))
        loop.run_until_complete(value(1))
        error = task.exception()
    assert error is not None
    assert error.__traceback__ is not None
    assert error.__traceback__.tb_frame.f_code.co_name == "fail"


# ---------------------------------------------------------------------------------------------------------------- loops


def test_whoever_watches_all_loops_hears_of_each_run() -> None:
    log: list[tuple[str, EventLoop | None]] = []

    def begins(loop: EventLoop) -> None:
        log.append(("begins", current_event_loop()))

    def ends(loop: EventLoop) -> None:
        log.append(("ends", current_event_loop()))

    entering.append(begins)
    leaving.append(ends)
    try:
        with EventLoop() as loop:
            loop.run_until_complete(value(1))
            with pytest.raises(ValueError, match="no"):
                loop.run_until_complete(fail(ValueError("no")), join=True)
            assert log == [("begins", loop), ("ends", loop)] * 2
    finally:
        entering.remove(begins)
        leaving.remove(ends)
