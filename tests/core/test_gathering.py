"""Several tasks as one thing to wait for: gather and as_completed."""

from typing import Any

import pytest

import flowno
from flowno import (
    CancelScope,
    Event,
    EventLoop,
    EventLoopError,
    TaskCancelled,
    TaskGroup,
    TaskHandle,
    as_completed,
    current_event_loop,
    gather,
    sleep,
    spawn,
)
from tests.support.tasks import FOREVER, fail, value

pytestmark = pytest.mark.usefixtures("backend")


def living_tasks() -> int:
    loop = current_event_loop()
    assert loop is not None
    return len(loop.tasks)


# --------------------------------------------------------------------------------------------------------------- gather


def test_results_come_in_the_order_of_the_arguments() -> None:
    async def root() -> None:
        assert await gather() == ()
        assert await gather(value("a", 3), value("b"), value("c", 1)) == ("a", "b", "c")
        assert await gather(sleep(0), value("generator-based coroutines, too")) == (
            0.0,
            "generator-based coroutines, too",
        )

    flowno.run(root())


def test_the_coroutines_run_side_by_side() -> None:
    async def root() -> None:
        one, other = Event(), Event()

        async def meet(mine: Event, theirs: Event) -> None:
            mine.set()
            await theirs.wait()

        await gather(meet(one, other), meet(other, one))

    flowno.run(root())


def test_the_first_error_cancels_the_others_and_is_raised_when_they_have_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = ValueError("text")
    ended = []

    async def other() -> None:
        try:
            await sleep(FOREVER)
        finally:
            with CancelScope(shield=True):
                await sleep(0)
            ended.append("other")

    async def root() -> None:
        with pytest.raises(ValueError, match="text") as caught:
            await gather(other(), fail(error, 2), value(1))
        assert caught.value is error
        assert ended == ["other"]
        assert living_tasks() == 1

    flowno.run(root())
    assert caplog.records == []


def test_an_error_that_is_lost_behind_the_first_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fails_in_its_clean_up() -> None:
        try:
            await sleep(FOREVER)
        finally:
            raise ZeroDivisionError("of the clean-up")

    async def root() -> None:
        with pytest.raises(ValueError, match="text"):
            await gather(fails_in_its_clean_up(), fail(ValueError("text"), 1))

    flowno.run(root())
    assert len(caplog.records) == 1
    assert "ZeroDivisionError: of the clean-up" in caplog.text


def test_errors_can_be_results() -> None:
    error = ValueError("text")

    async def root() -> None:
        results = await gather(value(1, 5), fail(error), value(2), return_exceptions=True)
        assert results == (1, error, 2)

    flowno.run(root())


def test_a_cancellation_ends_all_of_them_first() -> None:
    ended = []

    async def child(name: str) -> None:
        try:
            await sleep(FOREVER)
        finally:
            ended.append(name)

    async def root() -> None:
        gathering = await spawn(gather(child("one"), child("two")))
        assert await gathering.cancel() is None
        assert sorted(ended) == ["one", "two"]
        assert living_tasks() == 1

    flowno.run(root())


def test_a_task_that_somebody_else_cancels_is_told_of() -> None:
    tasks: list[TaskHandle[Any]] = []

    async def child() -> None:
        loop = current_event_loop()
        assert loop is not None
        assert loop.running_task is not None
        tasks.append(loop.running_task)
        await sleep(FOREVER)

    async def root() -> None:
        gathering = await spawn(gather(child(), value(1)))
        while not tasks:
            await sleep(0)
        tasks[0].cancel()
        with pytest.raises(TaskCancelled) as caught:
            await gathering.join()
        assert caught.value.by is tasks[0]

    flowno.run(root())


@pytest.mark.parametrize("wrong", [1, None, value], ids=["int", "None", "function"])
def test_what_is_no_coroutine_is_an_error_before_anything_is_started(wrong: Any) -> None:
    started = []

    async def child() -> None:
        started.append(True)

    async def root() -> None:
        with pytest.raises(TypeError, match=r"gather\(\) takes a coroutine"):
            await gather(child(), wrong)

    flowno.run(root())
    assert started == []


def test_its_tasks_are_called_as_what_they_run() -> None:
    seen: list[str] = []

    async def a_child() -> None:
        loop = current_event_loop()
        assert loop is not None
        assert loop.running_task is not None
        seen.append(loop.running_task.name)

    async def root() -> None:
        await gather(a_child())
        await gather(a_child(), return_exceptions=True)

    flowno.run(root())
    assert len(seen) == 2
    assert all(name.endswith("a_child") for name in seen)


# --------------------------------------------------------------------------------------------------------- as_completed


def test_tasks_come_in_the_order_in_which_they_end() -> None:
    async def root() -> None:
        async with TaskGroup() as group:
            tasks = [await group.spawn(value(turns, turns)) for turns in (20, 0, 10, 30)]
            assert [task.result() async for task in as_completed(tasks)] == [0, 10, 20, 30]
        assert [task async for task in as_completed([])] == []

    flowno.run(root())


def test_a_task_that_has_failed_or_was_cancelled_comes_like_any_other() -> None:
    async def root() -> None:
        failing, sleeping = await spawn(fail(ValueError("text"), 1)), await spawn(sleep(FOREVER))
        handles: list[TaskHandle[Any]] = [failing, sleeping]
        completions = as_completed(handles)
        first = await anext(completions)
        assert isinstance(first.exception(), ValueError)
        sleeping.cancel()
        assert (await anext(completions)).is_cancelled
        with pytest.raises(StopAsyncIteration):
            await anext(completions)

    flowno.run(root())


def test_a_wait_for_the_next_that_is_cancelled_passes_over_none() -> None:
    async def root() -> None:
        tasks = [await spawn(value(turns, turns)) for turns in (3, 5)]
        completions = as_completed(tasks)

        async def take() -> TaskHandle[Any]:
            return await anext(completions)

        await (await spawn(take())).cancel()
        assert [task async for task in completions] == tasks

    flowno.run(root())


def test_several_tasks_may_share_it_and_each_that_ends_comes_to_one_of_them() -> None:
    async def root() -> None:
        tasks = [await spawn(value(turns, turns)) for turns in (2, 4, 6)]
        completions = as_completed(tasks)

        async def take_all() -> list[TaskHandle[Any]]:
            return [task async for task in completions]

        assert repr(completions) == "<as_completed() with 3 tasks to come>"
        first, second, third, fourth = await gather(*[take_all() for _ in range(4)])
        assert sorted([*first, *second, *third, *fourth], key=tasks.index) == tasks
        assert repr(completions) == "<as_completed() with 0 tasks to come>"

    flowno.run(root())


def test_leaving_early_leaves_the_tasks_running_and_nothing_behind() -> None:
    async def root() -> None:
        slow = await spawn(value("slow", 20))
        async for task in as_completed([slow, await spawn(value("quick", 1))]):
            assert task.result() == "quick"
            break
        assert await slow.join() == "slow"

    flowno.run(root())


def test_a_handle_that_is_given_twice_comes_once() -> None:
    async def root() -> None:
        task = await spawn(value(1, 1))
        assert [each async for each in as_completed([task, task])] == [task]

    flowno.run(root())


def test_it_takes_handles_of_this_loop() -> None:
    with EventLoop() as other:
        foreign = other.create_task(value(1))

        async def root() -> None:
            wrong: Any = value(1)
            with pytest.raises(TypeError, match="takes handles"):
                as_completed([wrong])
            wrong.close()
            with pytest.raises(EventLoopError, match="same loop"):
                as_completed([foreign])

        flowno.run(root())
    with pytest.raises(EventLoopError, match="outside of an event loop"):
        as_completed([])
