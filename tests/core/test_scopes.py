"""Cancel scopes, time limits and task groups."""
# ruff: noqa: PT012, PT017, SIM117 - what happens inside and between nested blocks is the subject here

import copy
import gc
import math
import types
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import ExitStack
from typing import Any
from unittest.mock import ANY

import pytest

import flowno
from flowno import (
    AsyncQueue,
    CancelScope,
    Condition,
    Event,
    EventLoop,
    EventLoopError,
    SocketHandle,
    TaskCancelled,
    TaskGroup,
    current_event_loop,
    move_on_after,
    move_on_at,
    sleep,
    spawn,
    timeout,
    timeout_at,
)
from flowno.core.event_loop.commands import Command, QueueingCommand
from flowno.core.event_loop.scopes import TaskStatus
from tests.support.counting_selector import CountingSelector
from tests.support.loopback import pair
from tests.support.virtual_time import VirtualTimeSelector

pytestmark = pytest.mark.usefixtures("backend")

FOREVER = math.inf


def clock() -> float:
    loop = current_event_loop()
    assert loop is not None
    return loop.clock()


async def cleans_up(log: list[str]) -> None:
    """Wait to be cancelled, and then take a while for the clean-up."""
    try:
        await sleep(FOREVER)
    finally:
        with CancelScope(shield=True):
            await sleep(0.001)
        log.append("cleaned up")


# --- scopes ----------------------------------------------------------------------------------------------------------


def test_a_cancelled_scope_ends_its_block_and_nothing_else() -> None:
    async def main() -> list[str]:
        log = []
        with CancelScope() as scope:
            scope.cancel()
            log.append("goes on to its next wait")
            await sleep(0)
            log.append("never")
        assert scope.cancel_called
        assert scope.cancelled_caught
        await sleep(0)
        return log

    assert flowno.run(main()) == ["goes on to its next wait"]


def test_every_wait_inside_of_a_cancelled_scope_raises() -> None:
    async def main() -> int:
        raised = 0
        with CancelScope() as scope:
            scope.cancel()
            for _ in range(5):
                try:
                    await sleep(FOREVER)
                except TaskCancelled as error:
                    assert error.scope is scope
                    raised += 1
        assert not scope.cancelled_caught  # the block came to its end by itself
        await sleep(0)
        return raised

    assert flowno.run(main()) == 5


def test_another_task_can_cancel_a_scope() -> None:
    async def main() -> None:
        scope = CancelScope()

        async def waits() -> str:
            with scope:
                await sleep(FOREVER)
            return "left"

        task = await spawn(waits())
        scope.cancel()
        assert await task.join() == "left"

    flowno.run(main())


def test_a_scope_that_is_cancelled_before_it_is_entered_ends_its_block_at_the_first_wait() -> None:
    async def main() -> None:
        scope = CancelScope()
        scope.cancel()
        with scope:
            await sleep(FOREVER)
        assert scope.cancelled_caught

    flowno.run(main())


def test_the_outermost_cancelled_scope_is_left_at_once() -> None:
    async def main() -> None:
        with CancelScope() as outer:
            with CancelScope() as inner:
                inner.cancel()
                outer.cancel()
                await sleep(FOREVER)
            raise AssertionError("the outer scope was not left")
        assert outer.cancelled_caught
        assert not inner.cancelled_caught

    flowno.run(main())


def test_an_inner_scope_leaves_only_its_own_block() -> None:
    async def main() -> None:
        with CancelScope() as outer:
            with CancelScope() as inner:
                inner.cancel()
                await sleep(FOREVER)
            await sleep(0)
        assert inner.cancelled_caught
        assert not outer.cancelled_caught

    flowno.run(main())


def test_a_shield_keeps_out_what_cancels_from_outside_until_it_is_left() -> None:
    async def main() -> list[str]:
        log = []
        with CancelScope() as outer:
            with CancelScope(shield=True):
                outer.cancel()
                await sleep(0)
                log.append("shielded")
            await sleep(0)
            log.append("never")

        async def shielded() -> None:
            with CancelScope(shield=True):
                await sleep(0)
                await sleep(0)
                log.append("shielded from cancel()")
            await sleep(0)
            log.append("never")

        task = await spawn(shielded())
        task.cancel()
        assert await task.cancel() is None
        assert task.is_cancelled
        return log

    assert flowno.run(main()) == ["shielded", "shielded from cancel()"]


def test_a_shielded_scope_can_itself_be_cancelled() -> None:
    async def main() -> None:
        with CancelScope(shield=True) as scope:
            scope.cancel()
            await sleep(FOREVER)
        assert scope.cancelled_caught

    flowno.run(main())


def test_a_shield_can_be_raised_and_lowered_at_any_time() -> None:
    async def main() -> list[str]:
        log = []
        with CancelScope() as outer:
            with CancelScope() as inner:
                outer.cancel()
                inner.shield = True
                await sleep(0)
                log.append("shielded")
                inner.shield = False
                await sleep(0)
                log.append("never")
        assert outer.cancelled_caught

        scope = CancelScope(shield=True)

        async def waits() -> None:
            with scope:
                await sleep(FOREVER)

        task = await spawn(waits())
        task.cancel()
        for _ in range(5):
            await sleep(0)
        assert not task.is_cancelled
        scope.shield = False
        with pytest.raises(TaskCancelled):
            await task.join()
        return log

    assert flowno.run(main()) == ["shielded"]


def test_cancel_in_a_cancelled_scope_arrives_at_the_first_wait_after_it() -> None:
    async def main() -> None:
        log = []

        async def work() -> None:
            with CancelScope() as scope:
                scope.cancel()
                try:
                    await sleep(FOREVER)
                finally:
                    log.append("left by the scope")
                    task.cancel()
            log.append("after the scope")
            await sleep(0)
            log.append("never")

        started = Event()

        async def begin() -> None:
            await started.wait()
            await work()

        task = await spawn(begin())
        started.set()
        with pytest.raises(TaskCancelled):
            await task.join()
        assert log == ["left by the scope", "after the scope"]
        assert task.is_cancelled

    flowno.run(main())


def test_spawned_tasks_are_outside_of_the_scope_of_their_parent() -> None:
    async def main() -> None:
        with CancelScope() as scope:
            child = await spawn(sleep(0.001))
            scope.cancel()
            await sleep(FOREVER)
        await child.join()

    flowno.run(main())


def test_a_scope_serves_one_block_once_and_is_left_innermost_first() -> None:
    async def main() -> None:
        with CancelScope() as scope:
            with pytest.raises(EventLoopError, match="one block, once"):
                scope.__enter__()
        with pytest.raises(EventLoopError, match="one block, once"):
            scope.__enter__()
        with pytest.raises(EventLoopError, match="no task is in its block"):
            scope.__exit__(None, None, None)
        group = TaskGroup()
        async with group:
            with pytest.raises(EventLoopError, match="TaskGroup.*a group serves one block, once"):
                await group.__aenter__()

    flowno.run(main())


@pytest.mark.parametrize("cancelled", ["outer", "inner"])
def test_a_scope_that_is_left_before_one_inside_of_it_is_an_error_and_is_gone(cancelled: str) -> None:
    async def main() -> None:
        with CancelScope() as around:
            outer, inner = CancelScope(), CancelScope()
            outer.__enter__()
            inner.__enter__()
            with pytest.raises(EventLoopError, match="inside of it"):
                outer.__exit__(None, None, None)
            if cancelled == "outer":
                outer.cancel()
                await sleep(0)
            else:
                inner.cancel()
                with pytest.raises(TaskCancelled) as caught:
                    await sleep(0)
                assert caught.value.scope is inner
            inner.__exit__(None, None, None)
            await sleep(0)
            around.cancel()
            await sleep(0)
        assert around.cancelled_caught
        await sleep(0)

    flowno.run(main())


def test_a_scope_that_was_left_is_of_no_consequence() -> None:
    async def main() -> None:
        loop = current_event_loop()
        assert loop is not None
        with move_on_after(60) as scope:
            assert repr(scope).startswith("<CancelScope active, deadline")
            await sleep(0)
        scope.deadline = clock() + 60
        assert len(loop.timers) == 0
        assert repr(scope).startswith("<CancelScope left, deadline")
        scope.deadline = clock() - 1
        scope.shield = True
        scope.cancel()
        await sleep(0)
        assert not scope.cancelled_caught
        assert repr(CancelScope()) == "<CancelScope not entered>"

    flowno.run(main())


# --- scopes in asynchronous generators -------------------------------------------------------------------------------


@pytest.mark.parametrize("dropped", [True, False])
def test_a_scope_that_another_task_leaves_is_an_error_and_is_gone(
    dropped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def limited(scopes: list[CancelScope]) -> AsyncIterator[int]:
        with move_on_after(60) as scope:
            scopes.append(scope)
            yield 1
            yield 2

    async def main() -> None:
        scopes: list[CancelScope] = []
        with CancelScope() as outer:
            numbers = limited(scopes)
            assert await anext(numbers) == 1
            with CancelScope() as inside:
                if dropped:
                    del numbers
                    for _ in range(3):
                        await sleep(0)
                else:

                    async def go_on() -> None:
                        async for _ in numbers:
                            pass

                    with pytest.raises(EventLoopError, match="left by another task.*asynchronous generator"):
                        await (await spawn(go_on())).join()
                assert repr(scopes[0]).startswith("<CancelScope left")
                scopes[0].cancel()
                await sleep(0)
                inside.cancel()
                await sleep(0)
            assert inside.cancelled_caught
            loop = current_event_loop()
            assert loop is not None
            assert len(loop.timers) == 0
        assert not outer.cancel_called
        task = loop.running_task
        assert task is not None
        assert task._scope is None

    flowno.run(main())
    gc.collect()
    assert ("left by another task" in caplog.text) == dropped


@pytest.mark.parametrize("how", ["aclose", "error of a task", "dropped"])
def test_a_group_in_an_asynchronous_generator_waits_for_its_tasks_when_that_is_closed(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    log: list[str] = []

    async def child() -> None:
        try:
            await cleans_up(log)
        finally:
            if how == "error of a task":
                raise ValueError("of a child")

    async def numbers() -> AsyncGenerator[int, None]:
        try:
            async with TaskGroup() as group:
                await group.spawn(child())
                yield 1
        finally:
            log.append("left")

    async def main() -> None:
        steps = numbers()
        assert await anext(steps) == 1
        if how == "aclose":
            await steps.aclose()
        elif how == "dropped":
            del steps
            gc.collect()
            await sleep(0)
            while "left" not in log:
                await sleep(0)
        else:
            with pytest.raises(ExceptionGroup) as caught:
                await steps.aclose()
            assert [str(error) for error in caught.value.exceptions] == ["of a child"]

    flowno.run(main())
    assert log == ["cleaned up", "left"]
    gc.collect()
    assert ("left by another task" in caplog.text) == (how == "dropped")


@pytest.mark.parametrize("limit", ["move_on_after", "timeout", "a group", "an outer scope", "a group of exceptions"])
def test_a_cancellation_is_not_lost_where_a_scope_ends_its_clean_up(limit: str) -> None:
    log: list[str] = []

    async def clean_up() -> None:
        try:
            raise KeyError("an error that is being handled where the clean-up is awaited")
        except KeyError:
            try:
                await sleep(FOREVER)
            finally:
                log.append("cleans up")
                await sleep(FOREVER)

    async def child() -> None:
        await sleep(0.002)
        raise ValueError("of a child")

    async def work() -> None:
        if limit == "move_on_after":
            with move_on_after(0.002):
                await clean_up()
        elif limit == "timeout":
            with timeout(0.002):
                await clean_up()
        elif limit == "an outer scope":
            with move_on_after(0.002), CancelScope(), move_on_after(60):
                await clean_up()
        elif limit == "a group of exceptions":
            with move_on_after(0.002):
                try:
                    await clean_up()
                except BaseException as error:
                    raise BaseExceptionGroup("text", [error]) from None
        else:
            with pytest.raises(ExceptionGroup):
                async with TaskGroup() as group:
                    await group.spawn(child())
                    await clean_up()
            log.append("errors")
            await sleep(0)
        log.append("never")

    async def main() -> None:
        task = await spawn(work())
        assert await task.cancel() is None
        assert task.is_cancelled

    flowno.run(main())
    assert log == (["cleans up", "errors"] if limit == "a group" else ["cleans up"])


def test_a_cancellation_that_was_dealt_with_does_not_come_again_by_a_scope() -> None:
    kept: list[TaskCancelled] = []

    async def swallows() -> str:
        with move_on_after(0.001) as scope:
            try:
                await sleep(FOREVER)
            except TaskCancelled as error:
                kept.append(error)
            await sleep(FOREVER)
        assert scope.cancelled_caught
        await sleep(0)
        return "done"

    async def main() -> None:
        assert await (await spawn(swallows())).cancel() == "done"
        assert kept[0].scope is None

    flowno.run(main())


@pytest.mark.parametrize("how", ["an inner limit ends a part", "a part catches the limit", "caught before"])
def test_a_cancellation_is_not_lost_where_its_clean_up_is_interrupted_again_and_again(how: str) -> None:
    log: list[str] = []

    async def work() -> None:
        with move_on_after(0.1):
            try:
                await sleep(FOREVER)
            finally:
                if how == "an inner limit ends a part":
                    with move_on_after(0.001):
                        await sleep(FOREVER)
                elif how == "a part catches the limit":
                    with pytest.raises(TaskCancelled):
                        await sleep(FOREVER)
                else:
                    task.cancel()
                    with pytest.raises(TaskCancelled):
                        await sleep(0)
                log.append("cleans up")
                await sleep(FOREVER)
        log.append("never")

    async def main() -> None:
        nonlocal task
        task = await spawn(work())
        await task.cancel()
        assert task.is_cancelled

    task: Any = None
    flowno.run(main())
    assert log == ["cleans up"]


def test_a_clean_up_with_a_limit_inside_is_still_a_clean_up_at_the_end_of_a_run() -> None:
    log: list[str] = []

    async def careful() -> None:
        try:
            await sleep(FOREVER)
        finally:
            with move_on_after(0.001):
                await sleep(FOREVER)
            await sleep(0.001)
            log.append("cleaned up")

    async def main() -> None:
        await spawn(careful())

    flowno.run(main())
    assert log == ["cleaned up"]


def test_a_cancellation_goes_on_once_where_a_limit_ends_a_part_of_its_clean_up() -> None:
    log: list[str] = []

    async def work() -> None:
        with CancelScope():
            try:
                await sleep(FOREVER)
            finally:
                with move_on_after(0.001) as scope:
                    await sleep(FOREVER)
                assert scope.cancelled_caught
                await sleep(0)
                log.append("cleaned up")

    async def main() -> None:
        task = await spawn(work())
        assert await task.cancel() is None
        assert task.is_cancelled

    flowno.run(main())
    assert log == ["cleaned up"]


def test_a_scope_needs_an_event_loop() -> None:
    with pytest.raises(EventLoopError), CancelScope():
        pass


# --- time limits -----------------------------------------------------------------------------------------------------


def test_timeout_raises_and_move_on_after_does_not() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError, match=r"longer than 0\.001 s"):
            async with timeout(0.001):
                await sleep(FOREVER)
        with move_on_after(0.001) as scope:
            await sleep(FOREVER)
        assert scope.cancelled_caught
        with pytest.raises(TimeoutError):
            with timeout_at(clock() + 0.001):
                await sleep(FOREVER)
        with move_on_at(clock() + 0.001) as scope:
            await sleep(FOREVER)
        assert scope.cancelled_caught

    flowno.run(main())


@pytest.mark.parametrize("seconds", [0, -1, -math.inf])
def test_a_time_limit_in_the_past_ends_the_block_at_its_first_wait(seconds: float) -> None:
    async def main() -> None:
        with move_on_after(seconds) as scope:
            await sleep(FOREVER)
        assert scope.cancelled_caught

    flowno.run(main())


@pytest.mark.parametrize("how", ["seconds", "deadline", "set inside"])
def test_a_time_limit_that_has_passed_ends_the_block_also_where_the_first_wait_takes_no_time(how: str) -> None:
    async def main() -> None:
        scope = move_on_after(0) if how == "seconds" else move_on_at(clock()) if how == "deadline" else CancelScope()
        with scope:
            if how == "set inside":
                scope.deadline = clock()
            await sleep(0)
            raise AssertionError("it went on")
        assert scope.cancelled_caught

    flowno.run(main())


def test_the_timeout_says_what_the_tasks_of_the_block_waited_for() -> None:
    async def main() -> list[str]:
        queue: AsyncQueue[int] = AsyncQueue()
        try:
            async with timeout(0.001), TaskGroup() as group:
                await group.spawn(queue.get(), name="consumer")
                await sleep(FOREVER)
        except TimeoutError as error:
            return error.__notes__
        return []

    with VirtualTimeSelector() as selector:
        [note] = flowno.run(main(), selector)
    assert note.splitlines() == [
        "when the time was over:",
        ANY,
        "  <TaskHandle 'consumer' BaseQueue.get alive> waits for an item in an AsyncQueue (1 waiting)",
    ]
    assert "main alive> waits for its cancellation, as it sleeps for ever" in note


def test_a_timeout_of_many_tasks_names_some_of_them() -> None:
    async def main() -> list[str]:
        try:
            async with timeout(0.001), TaskGroup() as group:
                for _ in range(100):
                    await group.spawn(sleep(FOREVER))
        except TimeoutError as error:
            return error.__notes__
        return []

    with VirtualTimeSelector() as selector:
        [note] = flowno.run(main(), selector)
    assert len(note.splitlines()) == 12
    assert note.endswith("\n  and 91 more")


def test_a_timeout_of_a_task_that_does_not_wait_says_so() -> None:
    async def main() -> list[str]:
        try:
            async with timeout(0.001):
                while True:
                    await sleep(0)
        except TimeoutError as error:
            return error.__notes__

    [note] = flowno.run(main())
    assert note.endswith("main alive> does not wait")


def test_what_is_waited_for_may_have_no_words_and_the_time_is_over_all_the_same() -> None:
    class Wordless(QueueingCommand):
        def __init__(self) -> None:
            self.queue = {}

        def __repr__(self) -> str:
            raise RuntimeError("no words")

    @types.coroutine
    def wait() -> Generator[Command, Any, None]:
        yield Wordless()

    async def main() -> None:
        with pytest.raises(TimeoutError, match="longer than") as caught:
            async with timeout(0.001):
                await wait()
        assert "main alive> waits for" in caught.value.__notes__[0]

    flowno.run(main())


def test_a_limit_that_has_passed_already_waits_for_nothing() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError) as caught:
            async with timeout(0):
                await sleep(FOREVER)
        assert not hasattr(caught.value, "__notes__")

    flowno.run(main())


@pytest.mark.parametrize("seconds", [None, math.inf, 1e300, 3600])
def test_a_block_that_is_in_time_is_not_touched_and_leaves_no_timer(seconds: float | None) -> None:
    async def main() -> None:
        loop = current_event_loop()
        assert loop is not None
        with timeout(seconds), move_on_after(seconds) as scope:
            await sleep(0)
        assert not scope.cancel_called
        assert len(loop.timers) == 0

    flowno.run(main())


@pytest.mark.parametrize("make", [timeout, move_on_after, timeout_at, move_on_at])
def test_no_time_limit_is_nan(make: Callable[[float], CancelScope]) -> None:
    with pytest.raises(ValueError, match="NaN"):
        make(math.nan)


@pytest.mark.parametrize("make", [timeout, move_on_after, timeout_at, move_on_at])
def test_what_is_no_number_is_an_error_that_leaves_the_scopes_as_they_are(make: Callable[[Any], CancelScope]) -> None:
    async def root() -> None:
        async with timeout(1000) as outer:
            with pytest.raises(TypeError, match="must be a number, not 'soon'"):
                async with make("soon"):
                    pass
            wrong: Any = "soon"
            with pytest.raises(TypeError, match="deadline must be a number"):
                outer.deadline = wrong
            await sleep(0)
        assert not outer.cancelled_caught

    flowno.run(root())


def test_an_error_of_the_block_goes_before_the_time_limit() -> None:
    async def main() -> None:
        with pytest.raises(KeyError):
            async with timeout(0.001):
                try:
                    await sleep(FOREVER)
                except TaskCancelled:
                    raise KeyError from None

    flowno.run(main())


def test_the_inner_and_the_outer_limit_are_told_apart() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError, match=r"0\.001 s"):
            with timeout(60):
                with timeout(0.001):
                    await sleep(FOREVER)
        with move_on_after(0.001) as outer:
            try:
                with timeout(60):
                    await sleep(FOREVER)
            except TimeoutError as error:
                raise AssertionError("that was the outer limit") from error
        assert outer.cancelled_caught

    flowno.run(main())


def test_a_deadline_can_be_extended_again_and_again_without_the_heap_growing() -> None:
    async def main() -> None:
        loop = current_event_loop()
        assert loop is not None
        with move_on_after(0.001) as scope:
            for _ in range(1000):
                scope.deadline = clock() + 3600
            assert len(loop.timers.heap) == 1
            await sleep(0.002)
        assert not scope.cancel_called

    flowno.run(main())


def test_a_deadline_can_be_moved_forward_and_be_taken_away() -> None:
    async def main() -> None:
        with move_on_after(3600) as scope:
            scope.deadline = clock() + 0.001
            await sleep(FOREVER)
        assert scope.cancelled_caught
        with move_on_after(0.001) as scope:
            scope.deadline = FOREVER
            await sleep(0.003)
        assert not scope.cancel_called
        with CancelScope() as scope:
            scope.deadline = clock() + 0.001
            await sleep(FOREVER)
        assert scope.cancelled_caught

    flowno.run(main())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_a_time_limit_around_a_receive_loses_nothing() -> None:
    async def main() -> None:
        one, other = flowno.socketpair()
        with one, other:
            for _ in range(3):
                with move_on_after(0.001) as scope:
                    await one.recv(10)
                assert scope.cancelled_caught
            await other.sendAll(b"data")
            with timeout(60):
                assert await one.recv(10) == b"data"

    flowno.run(main())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.not_in_debug_mode(reason="it makes operations that it does not await")
@pytest.mark.parametrize("waits_for", ["data", "an item", "a task"])
def test_a_time_limit_that_ends_when_the_answer_is_there_takes_nothing_away(waits_for: str) -> None:
    """The task is ready, and has not run yet, when its limit comes."""

    async def answer(other: SocketHandle, queue: AsyncQueue[bytes]) -> bytes:
        await sleep(0)
        selector.world.now += 1
        other.socket.send(b"answer")
        queue.put_nowait(b"answer")
        return b"answer"

    async def main() -> None:
        with pair() as (one, other):
            queue: AsyncQueue[bytes] = AsyncQueue()
            answering = await spawn(answer(other, queue))
            with timeout(1) as scope:
                waits = {"data": one.recv(9), "an item": queue.get(), "a task": answering.join()}
                assert await waits[waits_for] == b"answer"
            assert scope.cancel_called
            assert not scope.cancelled_caught
            await sleep(0)
            await answering.join()

    with VirtualTimeSelector() as selector, EventLoop(selector) as loop:
        loop.run_until_complete(main(), join=True)


def test_of_limits_that_come_at_once_the_outermost_ends_its_block() -> None:
    async def main() -> None:
        for order in (1, -1):  # whichever was set first, and so fires first
            scopes = [CancelScope(), CancelScope(), CancelScope()]
            with scopes[0], scopes[1], scopes[2]:
                deadline = clock() + 1
                for scope in scopes[::order]:
                    scope.deadline = deadline
                await sleep(FOREVER)
            assert [scope.cancel_called for scope in scopes] == [True, True, True]
            assert [scope.cancelled_caught for scope in scopes] == [True, False, False]
        with pytest.raises(TimeoutError, match="longer than 2 s"):
            async with timeout(2):
                with move_on_after(2):
                    async with timeout(2):
                        await sleep(FOREVER)
                raise AssertionError("the outer block went on")

    with VirtualTimeSelector() as selector, EventLoop(selector) as loop:
        loop.run_until_complete(main(), join=True)


def test_a_timeout_error_of_another_is_not_taken_for_the_limit_of_the_block() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError, match=r"longer than 0\.001 s"):
            with move_on_after(60) as outer:
                with timeout(0.001):
                    await sleep(FOREVER)
        assert not outer.cancelled_caught
        with pytest.raises(TimeoutError, match="of the block"):
            with timeout(60):
                raise TimeoutError("of the block")

    flowno.run(main())


@pytest.mark.parametrize("first", ["cancel()", "the limit"])
def test_a_cancellation_that_comes_with_a_time_limit_is_not_hidden_by_it(first: str) -> None:
    """The task has not run yet since the one when the other comes."""
    log: list[str] = []

    async def limited() -> None:
        try:
            with timeout(1):
                await sleep(FOREVER)
        except TimeoutError:
            log.append("limit")
        await sleep(0)
        log.append("never")

    async def main() -> None:
        async def cancel() -> None:
            await sleep(1)  # set before the limit, so that it comes first; both are due in the same turn
            task.cancel()

        if first == "the limit":
            cancelling = await spawn(cancel())
            task = await spawn(limited())
            await cancelling.join()
        else:
            task = await spawn(limited())
            task.cancel()
            selector.world.now += 1
        with pytest.raises(TaskCancelled):
            await task.join()
        assert task.is_cancelled

    with VirtualTimeSelector() as selector, EventLoop(selector) as loop:
        loop.run_until_complete(main(), join=True)
    assert log == (["limit"] if first == "the limit" else [])


@pytest.mark.parametrize("held_up_by", ["a shield", "a lock", "a task of a group", "a task that is joined"])
def test_a_cancelled_task_that_cannot_go_on_yet_waits_without_turning(held_up_by: str) -> None:
    """A scope delivers again and again; not into a wait that it cannot end."""

    async def careful() -> None:
        with CancelScope(shield=True):
            await sleep(0.1)

    async def hold(condition: Condition) -> None:
        async with condition:
            await sleep(0.1)

    async def main() -> None:
        condition = Condition()
        with pair() as (one, _):
            reader = await spawn(one.recv(1))  # so that every turn asks the selector
            with CancelScope() as outer, CancelScope() as scope:
                if held_up_by == "a lock":
                    async with condition:
                        await spawn(hold(condition))
                        await spawn(cancel_soon(scope, outer))
                        await condition.wait()
                elif held_up_by == "a task of a group":
                    async with TaskGroup() as group:
                        await group.spawn(careful())
                        await spawn(cancel_soon(scope, outer))
                elif held_up_by == "a task that is joined":
                    task = await spawn(sleep(0.1))
                    scope.cancel()
                    with CancelScope(shield=True):
                        await task.join()
                else:
                    scope.cancel()
                    await careful()
            assert scope.cancel_called
            await reader.cancel()

    async def cancel_soon(*scopes: CancelScope) -> None:
        for scope in scopes:
            for _ in range(3):
                await sleep(0)
            scope.cancel()

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(main(), join=True)
        assert counting.calls["select"] < 30


def test_scopes_nest_as_deep_as_one_likes() -> None:
    """Deeper than Python would recurse."""

    async def child() -> None:
        with CancelScope() as scope, ExitStack() as stack:
            for _ in range(3000):
                stack.enter_context(CancelScope())
            scope.cancel()
            await sleep(FOREVER)
        assert scope.cancelled_caught

    async def main() -> None:
        await (await spawn(child())).join()
        with CancelScope() as outer, ExitStack() as stack:
            for _ in range(3000):
                stack.enter_context(move_on_after(60))
            outer.deadline = clock()
            await sleep(FOREVER)
        assert outer.cancelled_caught
        loop = current_event_loop()
        assert loop is not None
        assert len(loop.timers) == 0

    flowno.run(main())


def test_groups_nest_as_deep_as_one_likes() -> None:
    """Each task is in a group of the one before it; the innermost fails, or the outermost is cancelled."""
    ended = 0

    async def nest(depth: int) -> None:
        nonlocal ended
        try:
            if not depth:
                await sleep(0.001)
                raise ValueError("innermost")
            async with TaskGroup() as group:
                await group.spawn(nest(depth - 1))
        finally:
            ended += 1

    async def main() -> None:
        with pytest.raises(ExceptionGroup):
            async with TaskGroup() as group:
                await group.spawn(nest(400))
        assert ended == 401
        async with TaskGroup() as group:
            await group.spawn(nest(2000))
            group.cancel_scope.cancel()
        assert ended == 401 + 2001

    flowno.run(main())


# --- groups ----------------------------------------------------------------------------------------------------------


async def fails(error: BaseException, after: int = 0) -> None:
    for _ in range(after):
        await sleep(0)
    raise error


async def ends_with(value: Any) -> Any:
    await sleep(0)
    return value


async def fails_when_cancelled() -> None:
    try:
        await sleep(FOREVER)
    finally:
        raise KeyError("clean-up")


def test_a_group_waits_for_its_tasks_and_their_values_are_at_the_handles() -> None:
    async def main() -> list[int]:
        async with TaskGroup() as group:
            tasks = [await group.spawn(ends_with(number)) for number in range(3)]
            tasks.append(group.create_task(ends_with(3)))
        assert all(task.is_finished for task in tasks)
        return [await task.join() for task in tasks]

    assert flowno.run(main()) == [0, 1, 2, 3]


def test_the_first_error_cancels_the_others_and_all_errors_are_raised_together(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        tasks = []
        with pytest.raises(ExceptionGroup) as caught:
            async with TaskGroup() as group:
                tasks.append(await group.spawn(sleep(FOREVER)))
                await group.spawn(fails_when_cancelled())
                await group.spawn(fails(ValueError("first"), after=1))
                await sleep(FOREVER)
        assert [type(error) for error in caught.value.exceptions] == [ValueError, KeyError]
        assert tasks[0].is_cancelled

    flowno.run(main())
    assert not caplog.records


def test_an_error_of_the_block_cancels_the_tasks_and_is_in_the_group() -> None:
    async def main() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            async with TaskGroup() as group:
                task = await group.spawn(sleep(FOREVER))
                raise ValueError("of the block")
        assert [str(error) for error in caught.value.exceptions] == ["of the block"]
        assert task.is_cancelled

    flowno.run(main())


def test_cancelling_the_scope_of_a_group_ends_all_of_it_without_an_error() -> None:
    async def main() -> None:
        async with TaskGroup() as group:
            task = await group.spawn(sleep(FOREVER))
            group.cancel_scope.cancel()
            await sleep(FOREVER)
        assert task.is_cancelled
        assert group.cancel_scope.cancelled_caught

    flowno.run(main())


def test_the_scope_of_a_group_says_that_its_tasks_were_cut() -> None:
    async def main() -> None:
        async with TaskGroup() as group:
            await group.spawn(sleep(FOREVER))
            group.cancel_scope.cancel()
        assert group.cancel_scope.cancelled_caught
        async with TaskGroup() as group:
            await group.spawn(ends_with("value"))
            with CancelScope(shield=True):
                await sleep(0)
                await sleep(0)
            group.cancel_scope.cancel()
        assert not group.cancel_scope.cancelled_caught
        with move_on_after(0.001) as outer:
            async with TaskGroup() as group:
                await group.spawn(sleep(FOREVER))
        assert outer.cancelled_caught
        assert not group.cancel_scope.cancelled_caught

    flowno.run(main())


@pytest.mark.parametrize("error", [TaskCancelled, KeyboardInterrupt], ids=lambda kind: kind.__name__)
def test_a_group_of_exceptions_from_the_block_waits_for_the_tasks(error: Any) -> None:
    log: list[str] = []

    async def main() -> None:
        loop = current_event_loop()
        assert loop is not None
        try:
            async with TaskGroup() as group:
                await group.spawn(cleans_up(log))
                raise BaseExceptionGroup("of the block", [error(loop.running_task), ValueError("too")])
        finally:
            log.append("left")

    with pytest.raises(BaseExceptionGroup, match="of the block"):
        flowno.run(main())
    assert log == ["cleaned up", "left"]


def test_what_ends_the_run_is_not_hidden_by_errors_in_a_group(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with TaskGroup() as group:
            await group.spawn(fails(ValueError("of a child")))
            raise SystemExit(3)

    with pytest.raises(SystemExit):
        flowno.run(main())
    assert "lost behind SystemExit" in caplog.text
    assert "ValueError: of a child" in caplog.text


def test_a_group_in_a_task_that_is_closed_where_it_stands_cancels_its_tasks(caplog: pytest.LogCaptureFixture) -> None:
    log: list[str] = []

    async def child() -> None:
        try:
            await sleep(FOREVER)
        finally:
            log.append("child")

    async def stubborn() -> None:
        async with TaskGroup() as group:
            await group.spawn(child())
            while True:
                try:
                    with CancelScope(shield=True):
                        await sleep(FOREVER)
                except TaskCancelled:
                    continue

    async def main() -> None:
        await spawn(stubborn())

    flowno.run(main())
    assert log == ["child"]
    assert "it is closed" in caplog.text
    assert "raised when its coroutine was closed" not in caplog.text


@pytest.mark.parametrize("in_block", [True, False])
def test_cancelling_the_task_of_a_group_cancels_all_of_it(in_block: bool) -> None:
    async def main() -> None:
        children = []

        async def parent() -> None:
            async with TaskGroup() as group:
                children.append(await group.spawn(sleep(FOREVER)))
                if in_block:
                    await sleep(FOREVER)

        task = await spawn(parent())
        for _ in range(5):
            await sleep(0)
        assert await task.cancel() is None
        assert task.is_cancelled
        assert children[0].is_cancelled

    flowno.run(main())


def test_a_time_limit_around_a_group_cancels_all_of_it() -> None:
    async def main() -> None:
        with move_on_after(0.001) as scope:
            async with TaskGroup() as outer:
                task = await outer.spawn(sleep(FOREVER))
                async with TaskGroup() as inner:
                    deep = await inner.spawn(sleep(FOREVER))
        assert scope.cancelled_caught
        assert task.is_cancelled
        assert deep.is_cancelled

    flowno.run(main())


def test_a_join_of_a_task_that_was_cancelled_along_with_this_one_does_not_leave_their_scope() -> None:
    async def child() -> None:
        await sleep(FOREVER)

    async def main() -> tuple[bool, bool]:
        with move_on_after(60) as scope:
            async with TaskGroup() as group:
                task = await group.spawn(child())
                scope.cancel()
                with CancelScope(shield=True):
                    await task.cancel()
                await task.join()
        return scope.cancelled_caught, task.is_cancelled

    assert flowno.run(main()) == (True, True)


def test_the_clean_up_of_a_cancelled_task_can_be_shielded_and_the_group_waits_for_it() -> None:
    async def main() -> list[str]:
        log: list[str] = []
        async with TaskGroup() as group:
            await group.spawn(cleans_up(log))
            group.cancel_scope.cancel()
        return log

    assert flowno.run(main()) == ["cleaned up"]


def test_a_task_that_is_cancelled_by_hand_is_no_error_of_its_group() -> None:
    async def main() -> None:
        async with TaskGroup() as group:
            one, other = await group.spawn(sleep(FOREVER)), await group.spawn(ends_with("value"))
            await one.cancel()
        assert await other.join() == "value"

    flowno.run(main())


def test_a_task_can_start_others_in_its_group_while_the_block_waits() -> None:
    async def main() -> None:
        log = []

        async def spawns(depth: int) -> None:
            log.append(depth)
            if depth:
                await group.spawn(spawns(depth - 1))

        async with TaskGroup() as group:
            await group.spawn(spawns(3))
        assert log == [3, 2, 1, 0]
        with pytest.raises(EventLoopError, match="only inside of its block"):
            await group.spawn(spawns(1))
        with pytest.raises(EventLoopError, match="only inside of its block"):
            group.create_task(spawns(1))

    flowno.run(main())


def test_start_waits_until_the_task_says_that_it_is_ready() -> None:
    async def serve(name: str, *, task_status: TaskStatus[str]) -> None:
        await sleep(0)
        task_status.started(f"{name} is ready")
        await sleep(FOREVER)

    async def main() -> None:
        async with TaskGroup() as group:
            assert await group.start(serve, "it") == "it is ready"
            group.cancel_scope.cancel()

    flowno.run(main())


def test_what_goes_wrong_before_a_task_is_ready_is_raised_by_start_alone() -> None:
    async def breaks(*, task_status: TaskStatus[None]) -> None:
        await sleep(0)
        raise ValueError("not ready")

    async def forgets(*, task_status: TaskStatus[None]) -> None:
        await sleep(0)

    async def repeats(*, task_status: TaskStatus[None]) -> None:
        task_status.started()
        with pytest.raises(EventLoopError, match="twice"):
            task_status.started()

    async def main() -> None:
        async with TaskGroup() as group:
            with pytest.raises(ValueError, match="not ready"):
                await group.start(breaks)
            with pytest.raises(EventLoopError, match="without calling"):
                await group.start(forgets)
            await group.start(repeats)
            await sleep(0)

    flowno.run(main())


def test_a_start_that_is_cancelled_cancels_the_task() -> None:
    async def never_ready(*, task_status: TaskStatus[None]) -> None:
        try:
            await sleep(FOREVER)
        finally:
            ended.set()

    ended = Event()

    async def main() -> None:
        async with TaskGroup() as group:
            with move_on_after(0.001):
                await group.start(never_ready)
            await ended.wait()

    flowno.run(main())


def test_a_start_that_is_cancelled_waits_for_the_clean_up_and_its_error_is_one_of_the_group() -> None:
    log: list[str] = []

    async def never_ready(*, task_status: TaskStatus[None]) -> None:
        try:
            await sleep(FOREVER)
        finally:
            await sleep(0.001)
            log.append("cleaned up")
            raise ValueError("of the clean-up")

    async def main() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            async with TaskGroup() as group:
                with move_on_after(0.001):
                    await group.start(never_ready)
                log.append("start returned")
                await sleep(FOREVER)
        assert [str(error) for error in caught.value.exceptions] == ["of the clean-up"]

    flowno.run(main())
    assert log == ["cleaned up", "start returned"]


def test_a_task_that_becomes_ready_though_its_start_is_cancelled_lives_on() -> None:
    async def ready_after_all(*, task_status: TaskStatus[None]) -> str:
        try:
            await sleep(FOREVER)
        except TaskCancelled:
            task_status.started()
        await sleep(0.001)
        return "value"

    async def main() -> None:
        async with TaskGroup() as group:
            with move_on_after(0.001) as scope:
                await group.start(ready_after_all)
            assert scope.cancelled_caught
            assert not group.is_empty

    flowno.run(main())


def test_a_started_task_that_is_cancelled_before_it_is_ready_is_an_error_of_start() -> None:
    async def is_cancelled(*, task_status: TaskStatus[None]) -> None:
        loop = current_event_loop()
        assert loop is not None
        assert loop.running_task is not None
        loop.running_task.cancel()
        await sleep(0)

    async def main() -> None:
        async with TaskGroup() as group:
            with pytest.raises(EventLoopError, match="was cancelled without calling"):
                await group.start(is_cancelled)

    flowno.run(main())


@pytest.mark.parametrize(("name", "expected"), [(None, "serve"), ("web", "web")])
def test_a_task_of_start_is_called_as_its_function_or_as_one_likes(name: str | None, expected: str) -> None:
    async def serve(*, task_status: TaskStatus[str]) -> None:
        loop = current_event_loop()
        assert loop is not None
        assert loop.running_task is not None
        task_status.started(loop.running_task.name)

    async def main() -> str:
        async with TaskGroup() as group:
            seen: str = await group.start(serve, name=name)
            with pytest.raises(TypeError, match="name must be a str"):
                await group.start(serve, name=7)  # type: ignore[arg-type]
        return seen

    assert flowno.run(main()).endswith(expected)


def test_start_takes_the_function() -> None:
    async def serve(*, task_status: TaskStatus[str]) -> None:
        task_status.started()

    async def main() -> None:
        async with TaskGroup() as group:
            wrong: Any = serve(task_status=TaskStatus())
            with pytest.raises(TypeError, match="pass the function and its arguments"):
                group.start(wrong)

    flowno.run(main())


def test_an_interrupt_in_a_group_ends_the_run() -> None:
    async def main() -> None:
        async with TaskGroup() as group:
            await group.spawn(fails(KeyboardInterrupt(), after=1))
            await sleep(FOREVER)

    with pytest.raises(KeyboardInterrupt):
        flowno.run(main())


def test_a_cancellation_is_not_lost_behind_the_errors_of_a_group() -> None:
    async def parent(log: list[str]) -> None:
        try:
            async with TaskGroup() as group:
                await group.spawn(fails_when_cancelled())
                await sleep(FOREVER)
        except ExceptionGroup:
            log.append("errors")
        await sleep(0)
        log.append("never")

    async def main() -> None:
        log: list[str] = []
        task = await spawn(parent(log))
        for _ in range(5):
            await sleep(0)
        await task.cancel()
        assert task.is_cancelled
        assert log == ["errors"]

    flowno.run(main())


@pytest.mark.parametrize("wait", [lambda: sleep(0), lambda: Event().wait()], ids=["sleep", "event"])
def test_a_cancelled_scope_takes_tasks_out_of_any_wait(wait: Callable[[], Awaitable[Any]]) -> None:
    async def main() -> None:
        with move_on_after(0.001) as scope:
            while True:
                await wait()
        assert scope.cancelled_caught

    flowno.run(main())


def test_the_errors_of_a_group_can_be_shown_and_copied() -> None:
    async def fails() -> None:
        raise ValueError("text")

    async def root() -> None:
        async with TaskGroup() as group:
            await group.spawn(fails())

    with pytest.raises(ExceptionGroup) as caught:
        flowno.run(root())
    assert repr(caught.value) == "ExceptionGroup('errors in a TaskGroup', [ValueError('text')])"
    assert str(copy.copy(caught.value).exceptions) == "(ValueError('text'),)"
