"""Tasks that return something that nobody asks for."""

import logging
import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from flowno import EventLoop, TaskGroup, TaskHandle, gather, sleep, spawn
from tests.debug.conftest import messages
from tests.support.garbage import no_collections
from tests.support.tasks import fail, value

pytestmark = pytest.mark.usefixtures("backend")


async def drop(task: TaskHandle[Any]) -> None:
    """Nobody asks."""


async def join(task: TaskHandle[Any]) -> None:
    assert await task.join() == 42


async def join_late(task: TaskHandle[Any]) -> None:
    await sleep(0)
    await sleep(0)
    assert task.is_finished
    assert await task.join() == 42


async def result(task: TaskHandle[Any]) -> None:
    await sleep(0)
    await sleep(0)
    assert task.result() == 42


async def exception(task: TaskHandle[Any]) -> None:
    await sleep(0)
    await sleep(0)
    assert task.exception() is None


async def cancel(task: TaskHandle[Any]) -> None:
    await sleep(0)
    await sleep(0)
    assert await task.cancel() == 42


async def call_back(task: TaskHandle[Any]) -> None:
    task.add_done_callback(lambda task: None)


async def call_back_late(task: TaskHandle[Any]) -> None:
    await sleep(0)
    await sleep(0)
    task.add_done_callback(lambda task: None)


async def gathered(task: TaskHandle[Any]) -> None:
    assert await gather(task.join(), value(1)) == (42, 1)


def test_a_value_that_nobody_asks_for_is_reported_when_the_task_is_dropped_with_where_it_was_made(
    loop: EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        task = await spawn(value(42), name="answer")  # this line
        await sleep(0)
        assert messages(caplog) == []
        del task
        await sleep(0)
        assert len(messages(caplog)) == 1

    loop.run_until_complete(main(), join=True)
    [message] = messages(caplog)
    assert message.startswith(
        "<TaskHandle 'answer' value finished> returned 42, which nobody asked it for\n"
        "its coroutine was made at (most recent call last):\n"
    )
    assert 'spawn(value(42), name="answer")  # this line' in message


def test_one_whose_handle_is_kept_is_reported_when_the_loop_has_ended(
    loop: EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    kept: list[Any] = []

    async def main() -> None:
        kept.append(await spawn(value("x" * 1000)))

    loop.run_until_complete(main(), join=True)
    [message] = messages(caplog)
    assert re.match(r"<TaskHandle value finished> returned 'x+\.\.\.x+', which nobody asked it for\n", message)


@pytest.mark.parametrize(
    "ask",
    [join, join_late, result, exception, cancel, call_back, call_back_late, gathered],
    ids=lambda ask: ask.__name__,
)
def test_whoever_asks_has_it(loop: EventLoop, caplog: pytest.LogCaptureFixture, ask: Callable[[Any], Any]) -> None:
    async def main() -> None:
        await ask(await spawn(value(42, turns=1)))

    loop.run_until_complete(main(), join=True)
    assert messages(caplog) == []


def test_what_is_no_mistake_is_not_reported(loop: EventLoop, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> int:
        await spawn(value(None))
        (await spawn(value(1, turns=9))).cancel()
        async with TaskGroup() as group:  # which waits for its tasks
            await group.spawn(value(2))
        return 3

    for join in (True, False):  # without, the caller has said that the value is nothing to him
        loop.run_until_complete(main(), join=join)
    assert messages(caplog) == []


def test_a_task_that_the_end_of_the_loop_cuts_off_is_told_of_where_nobody_waits_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "flowno.debug")

    async def waits(task: TaskHandle[Any]) -> None:
        await task.join()

    async def main() -> None:
        joined = await spawn(sleep(60), name="joined")
        await spawn(waits(joined), name="joins")
        await spawn(drop(joined), name="through")
        await (await spawn(sleep(60), name="cancelled before")).cancel()

    with EventLoop(debug=True) as loop:
        loop.run_until_complete(main(), join=True, wait_for_spawned_tasks=False)
        assert messages(caplog) == []
    [message] = messages(caplog)
    assert re.match(
        r"<TaskHandle 'joins' \S*waits \w+> was cancelled by the end of its loop, and nobody waited for it\n"
        r"its coroutine was made at \(most recent call last\):\n",
        message,
    )
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_an_error_that_nobody_asks_for_is_reported_once_as_without_debug_mode(
    loop: EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        await spawn(fail(ValueError("of a task")))

    loop.run_until_complete(main(), join=True)
    assert [record.getMessage() for record in caplog.records] == [
        "<TaskHandle fail failed> ended with an error that nobody joined"
    ]


def test_the_traceback_of_a_task_that_is_watched_begins_in_the_task(loop: EventLoop) -> None:
    with pytest.raises(ValueError, match="of a task") as caught:
        loop.run_until_complete(fail(ValueError("of a task")), join=True)
    frames = [frame.name for frame in caught.traceback]
    assert "run_step" not in frames
    assert frames[-1] == "fail"


def test_nothing_of_a_task_that_is_watched_is_held_in_a_cycle(loop: EventLoop) -> None:
    tasks: list[weakref.ref[TaskHandle[Any]]] = []

    async def main() -> None:
        for coroutine in (value(42), fail(ValueError("of a task"))):
            task = await spawn(coroutine)
            tasks.append(weakref.ref(task))
            try:
                await task.join()
            except ValueError:
                pass
            del task, coroutine
        await sleep(0)
        assert [task() for task in tasks] == [None, None]

    with no_collections():
        loop.run_until_complete(main(), join=True)
