"""Tasks: what a handle tells, what a join gives, and what becomes of an error that nobody asks for."""

import gc
import logging
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import flowno
from flowno import (
    AsyncQueue,
    AsyncSetQueue,
    Event,
    EventLoop,
    EventLoopError,
    SocketHandle,
    TaskCancelled,
    TaskHandle,
    current_event_loop,
    sleep,
    spawn,
)
from flowno.core.event_loop.commands import CancelCommand, JoinCommand, SleepCommand, SpawnCommand
from flowno.core.event_loop.tasks import OPERATIONS_PER_STEP
from tests.support.loopback import pair
from tests.support.tasks import FOREVER, fail, value

pytestmark = pytest.mark.usefixtures("backend")


def flags(handle: TaskHandle[object]) -> str:
    names = ("is_finished", "is_error", "is_cancelled")
    return " ".join(name for name in names if getattr(handle, name))


# ----------------------------------------------------------------------------------------------------------------- join


@pytest.mark.parametrize("turns", [0, 1, 3], ids=["ended before", "ends next", "ends later"])
def test_join_gives_the_value(turns: int) -> None:
    async def root() -> object:
        handle = await spawn(value("result", turns))
        return await handle.join()

    assert flowno.run(root()) == "result"


@pytest.mark.parametrize("turns", [0, 1, 3], ids=["ended before", "ends next", "ends later"])
def test_join_raises_the_error(turns: int) -> None:
    error = ValueError("text")

    async def root() -> None:
        handle = await spawn(fail(error, turns))
        with pytest.raises(ValueError, match="text") as caught:
            await handle.join()
        assert caught.value is error

    flowno.run(root())


@pytest.mark.parametrize("result", [None, 0, "", (), False, ValueError("returned, not raised")], ids=repr)
def test_join_gives_any_value_as_it_is(result: object) -> None:
    async def root() -> object:
        return await (await spawn(value(result, 1))).join()

    assert flowno.run(root()) is result


def test_join_of_a_cancelled_task_raises_task_cancelled_by_it() -> None:
    async def root() -> None:
        handle = await spawn(sleep(FOREVER))
        waiting = await spawn(handle.join())
        handle.cancel()
        with pytest.raises(TaskCancelled) as caught:
            await handle.join()
        assert caught.value.by is handle
        with pytest.raises(TaskCancelled) as caught:
            await waiting.join()
        assert caught.value.by is handle

    flowno.run(root())


def test_the_cancellation_in_whose_handling_a_task_failed_knows_the_task_while_somebody_has_it() -> None:
    async def cleans_up_in_vain() -> None:
        try:
            await sleep(FOREVER)
        finally:
            raise ValueError("of the clean-up")

    async def root() -> TaskCancelled:
        handle = await spawn(cleans_up_in_vain(), name="worker")
        handle.cancel()
        with pytest.raises(ValueError, match="of the clean-up") as caught:
            await handle.join()
        cancelled = caught.value.__context__
        assert isinstance(cancelled, TaskCancelled)
        assert cancelled.by is handle
        return cancelled

    cancelled = flowno.run(root())
    gc.collect()
    with pytest.raises(ReferenceError, match="nobody has its handle any more"):
        _ = cancelled.by
    assert "worker" in str(cancelled)


def test_every_joiner_gets_the_outcome_and_they_go_on_in_order() -> None:
    order = []

    async def joiner(name: str, handle: TaskHandle[object]) -> None:
        order.append((name, await handle.join()))

    async def root() -> None:
        handle = await spawn(value("x", 10))
        joiners = [await spawn(joiner(name, handle)) for name in "abc"]
        for each in joiners:
            await each.join()
        assert await handle.join() == "x"

    flowno.run(root())
    assert order == [("a", "x"), ("b", "x"), ("c", "x")]


def test_an_error_that_many_join_does_not_grow() -> None:
    async def root() -> list[int]:
        handle = await spawn(fail(ValueError("text")))
        lengths = []
        for _ in range(4):
            with pytest.raises(ValueError, match="text") as caught:
                await handle.join()
            lengths.append(len(traceback.extract_tb(caught.value.__traceback__)))
        assert caught.value.__context__ is None
        return lengths

    assert len(set(flowno.run(root()))) == 1


def test_the_traceback_of_a_join_shows_where_the_task_failed_and_nothing_of_the_loop() -> None:
    async def root() -> list[str]:
        handle = await spawn(fail(ValueError("text"), 1))
        try:
            await handle.join()
        except ValueError as error:
            return [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        return []

    names = flowno.run(root())
    assert names[0] == "root"
    assert names[-1] == "fail"
    assert not set(names) & {"_run", "run_until_complete"}


def test_the_traceback_of_what_the_loop_met_shows_the_await_and_nothing_of_the_loop() -> None:
    async def root() -> set[str]:
        queue: AsyncSetQueue[object] = AsyncSetQueue()
        for item in range(OPERATIONS_PER_STEP):
            await queue.put(item)
        try:
            await queue.put([])  # which the loop does, as the task has had its share
        except TypeError as error:
            return {Path(frame.filename).name for frame in traceback.extract_tb(error.__traceback__)}
        return set()

    assert flowno.run(root()) == {Path(__file__).name, "queues.py"}


def test_a_joiner_that_is_cancelled_leaves_the_task_alone() -> None:
    async def root() -> None:
        handle = await spawn(value("x", 5))
        joiner = await spawn(handle.join())
        assert await joiner.cancel() is None
        assert flags(handle) == ""
        assert await handle.join() == "x"

    flowno.run(root())


def test_a_task_cannot_join_itself() -> None:
    async def root() -> None:
        handles: list[TaskHandle[None]] = []

        async def narcissus() -> None:
            await sleep(0)
            with pytest.raises(EventLoopError, match="its own end"):
                await handles[0].join()

        handles.append(await spawn(narcissus()))
        await handles[0].join()

    flowno.run(root())


def test_a_task_of_another_loop_cannot_be_joined_until_it_has_ended() -> None:
    with EventLoop() as one, EventLoop() as other:
        handle = one.create_task(value("x"))

        async def root() -> object:
            if not handle.is_finished:
                with pytest.raises(EventLoopError, match="same loop"):
                    await handle.join()
                return None
            return await handle.join()

        other.run_until_complete(root(), join=True)
        one.run_until_complete(sleep(0))
        assert other.run_until_complete(root(), join=True) == "x"


def test_a_long_chain_of_joins_does_not_recurse() -> None:
    async def link(previous: TaskHandle[int] | None) -> int:
        if previous is None:
            await sleep(0)
            return 0
        return 1 + await previous.join()

    async def root() -> int:
        handle = None
        for _ in range(5000):
            handle = await spawn(link(handle))
        assert handle is not None
        return await handle.join()

    assert flowno.run(root()) == 4999


# ------------------------------------------------------------------------------------------------------------- handles


def test_a_handle_tells_how_its_task_ended() -> None:
    async def root() -> None:
        returned = await spawn(value(1, 10))
        failed = await spawn(fail(ValueError("text"), 10))
        cancelled = await spawn(sleep(FOREVER))
        handles: list[TaskHandle[object]] = [returned, failed, cancelled]
        assert [flags(handle) for handle in handles] == ["", "", ""]
        cancelled.cancel()
        await returned.join()
        with pytest.raises(ValueError, match="text"):
            await failed.join()
        await cancelled.cancel()
        assert [flags(handle) for handle in handles] == ["is_finished", "is_error", "is_cancelled"]

    flowno.run(root())


def test_a_handle_knows_its_loop_and_its_coroutine() -> None:
    async def root() -> None:
        coroutine = value(1)
        handle = await spawn(coroutine)
        assert handle.event_loop is current_event_loop()
        assert handle.raw_task is coroutine
        assert "value" in repr(handle)

    flowno.run(root())


def test_handles_are_hashable_and_equal_to_themselves_alone() -> None:
    async def root() -> None:
        one, other = await spawn(value(1)), await spawn(value(1))
        assert len({one, other}) == 2
        assert one != other
        assert len({TaskCancelled(one), TaskCancelled(one)}) == 2

    flowno.run(root())


def test_task_cancelled_is_no_exception() -> None:
    assert issubclass(TaskCancelled, BaseException)
    assert not issubclass(TaskCancelled, Exception)


def test_every_joiner_of_a_cancelled_task_gets_an_exception_of_its_own_that_can_be_a_key() -> None:
    async def root() -> None:
        task = await spawn(sleep(FOREVER))
        joiners = [await spawn(task.join()) for _ in range(3)]
        task.cancel()
        caught = set()
        for joiner in joiners:
            with pytest.raises(TaskCancelled) as info:
                await joiner.join()
            assert info.value.by is task
            caught.add(info.value)
        assert len(caught) == 3

    flowno.run(root())


@pytest.mark.parametrize("wait", ["event", "queue", "sleep", "receive", "join"])
def test_a_task_that_nobody_refers_to_goes_on(wait: str) -> None:
    """The loop holds its tasks itself; nothing else need to, however it waits."""
    done: list[str] = []

    async def forgotten(one: SocketHandle) -> None:
        event, queue = Event(), AsyncQueue[int]()
        if wait in ("event", "queue"):
            await spawn(later(lambda: (event.set(), queue.put_nowait(1))))
        waits: dict[str, Callable[[], Awaitable[object]]] = {
            "event": event.wait,
            "queue": queue.get,
            "sleep": lambda: sleep(0.002),
            "receive": lambda: one.recv(9),
            "join": lambda: child.join(),
        }
        child = await spawn(value(1, 5))
        await waits[wait]()
        done.append(wait)

    async def later(call: Callable[[], object]) -> None:
        await sleep(0.002)
        call()

    async def root() -> None:
        with pair() as (one, other):
            await spawn(forgotten(one))
            for _ in range(3):
                gc.collect()
                await sleep(0)
            await other.sendAll(b"x")
            while not done:
                gc.collect()
                await sleep(0.001)

    flowno.run(root())
    assert done == [wait]


def test_a_task_that_raises_stop_iteration_fails_with_a_runtime_error() -> None:
    async def root() -> None:
        handle = await spawn(fail(StopIteration(1), 1))
        with pytest.raises(RuntimeError, match="StopIteration"):
            await handle.join()

    flowno.run(root())


def test_commands_show_what_they_ask_for() -> None:
    async def root() -> None:
        handle = await spawn(value(1))
        coroutine = value(2)
        assert repr(SleepCommand(2.5)) == "SleepCommand(2.5)"
        assert "value" in repr(JoinCommand(handle))
        assert repr(CancelCommand(handle)).startswith("CancelCommand(")
        assert "value" in repr(SpawnCommand(coroutine))
        assert not hasattr(SleepCommand(1), "__dict__")
        coroutine.close()

    flowno.run(root())


# ------------------------------------------------------------------------------------------------- errors nobody joins


def test_an_error_that_nobody_joins_is_logged_once_when_its_task_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    async def root() -> int:
        handle = await spawn(fail(ValueError("text")))
        await sleep(0)
        assert caplog.records == []
        del handle
        gc.collect()
        await sleep(0)
        return len(caplog.records)

    assert flowno.run(root()) == 1
    (record,) = caplog.records
    assert record.name.startswith("flowno")
    assert record.levelno == logging.ERROR
    assert "fail" in record.message
    assert "ValueError: text" in caplog.text


def test_an_error_that_nobody_joins_is_logged_once_when_the_loop_ends(caplog: pytest.LogCaptureFixture) -> None:
    kept = []

    async def root() -> None:
        kept.append(await spawn(fail(ValueError("text"))))

    flowno.run(root())
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    kept.clear()
    gc.collect()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("by", ["join", "late join", "late cancel"])
def test_an_error_that_somebody_asked_for_is_not_logged(by: str, caplog: pytest.LogCaptureFixture) -> None:
    async def root() -> None:
        handle = await spawn(fail(ValueError("text"), 2))
        if by != "join":
            for _ in range(5):
                await sleep(0)
        with pytest.raises(ValueError, match="text"):
            await (handle.cancel() if by == "late cancel" else handle.join())

    flowno.run(root())
    gc.collect()
    assert caplog.records == []


def test_an_error_whose_joiner_was_cancelled_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def root() -> None:
        handle = await spawn(fail(ValueError("text"), 3))
        joiner = await spawn(handle.join())
        await joiner.cancel()

    with EventLoop() as loop:
        loop.run_until_complete(root())
    gc.collect()
    assert len(caplog.records) == 1


def test_a_cancellation_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def root() -> None:
        handle = await spawn(sleep(FOREVER))
        handle.cancel()

    flowno.run(root())
    gc.collect()
    assert caplog.records == []


def test_a_cancellation_that_comes_out_of_a_join_is_an_error_of_the_joiner(caplog: pytest.LogCaptureFixture) -> None:
    async def root() -> None:
        handle = await spawn(sleep(FOREVER))
        joiner = await spawn(handle.join())
        handle.cancel()
        await sleep(0)
        await sleep(0)
        assert flags(handle) == "is_cancelled"
        assert flags(joiner) == "is_error"

    flowno.run(root())
    gc.collect()
    assert len(caplog.records) == 1
    assert "join" in caplog.text


def test_a_task_that_raises_a_cancellation_of_its_own_making_has_failed() -> None:
    async def root() -> None:
        other = await spawn(value(1))
        handle = await spawn(fail(TaskCancelled(other), 1))
        with pytest.raises(TaskCancelled) as caught:
            await handle.join()
        assert caught.value.by is other
        assert flags(handle) == "is_error"

    flowno.run(root())
