"""How a run ends, and what is left of it: nothing."""

import gc
import os
import weakref
from typing import Any

import pytest

import flowno
from flowno import EventLoop, TaskCancelled, TaskHandle, exit, sleep, spawn
from tests.conftest import RunPython
from tests.support.garbage import no_collections
from tests.support.loopback import pair
from tests.support.tasks import FOREVER, fail, value

pytestmark = pytest.mark.usefixtures("backend")


class Fatal(BaseException):
    pass


class OtherFatal(BaseException):
    pass


@pytest.mark.parametrize("join", [True, False])
@pytest.mark.parametrize(
    "error",
    [
        Fatal("end"),
        KeyboardInterrupt(),
        SystemExit(3),
        GeneratorExit(),
        BaseExceptionGroup("group", [ValueError(), BaseExceptionGroup("inner", [Fatal()])]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_no_exception_ends_the_run_after_the_others_have_cleaned_up(error: BaseException, join: bool) -> None:
    ended = []

    async def bystander(handle: flowno.SocketHandle) -> None:
        try:
            await handle.recv(1)
        except TaskCancelled:
            await sleep(0)
            ended.append("cleaned up")
            raise

    async def child() -> None:
        await sleep(0)
        raise error

    async def root(handle: flowno.SocketHandle) -> None:
        tasks.append(await spawn(bystander(handle)))
        await spawn(child())
        await sleep(FOREVER)

    tasks: list[TaskHandle[None]] = []
    with EventLoop() as loop, pair() as (one, _):
        with pytest.raises(type(error)) as caught:
            loop.run_until_complete(root(one), join=join)
        assert caught.value is error
        assert ended == ["cleaned up"]
        assert tasks[0].is_cancelled
        assert not loop.has_living_tasks()
        assert loop.run_until_complete(value("again"), join=True) == "again"


def test_a_group_of_exceptions_is_an_outcome_like_any_other() -> None:
    async def root() -> str:
        cancelled = await spawn(sleep(FOREVER))
        await cancelled.cancel()
        for group in (
            ExceptionGroup("group", [ValueError()]),
            BaseExceptionGroup("group", [ValueError(), BaseExceptionGroup("inner", [TaskCancelled(cancelled)])]),
        ):
            handle = await spawn(fail(group))
            with pytest.raises(type(group)):
                await handle.join()
        return "goes on"

    assert flowno.run(root()) == "goes on"


@pytest.mark.skipif(os.name != "posix", reason="os.kill ends the process there")
def test_an_interrupt_while_the_loop_waits_ends_the_run_after_a_clean_up(run_python: RunPython) -> None:
    program = """
import os, signal, threading
import flowno
async def reader():
    one, other = flowno.socketpair()
    with one, other:
        try:
            await one.recv(1)
        finally:
            await flowno.sleep(0.001)
            print("cleaned up", flush=True)
async def root():
    task = await flowno.spawn(reader())
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    await task.join()
try:
    flowno.run(root())
except KeyboardInterrupt:
    print("interrupted")
"""
    result = run_python(program)
    assert (result.stdout.split("\n"), result.stderr) == (["cleaned up", "interrupted", ""], "")


@pytest.mark.parametrize("where", ["root", "child"])
@pytest.mark.parametrize("join", [True, False])
def test_exit_ends_the_run_with_its_value(where: str, join: bool) -> None:
    ended = []

    async def bystander() -> None:
        try:
            await sleep(FOREVER)
        finally:
            ended.append("cleaned up")

    async def leave() -> None:
        try:
            await flowno.exit("value")
        finally:
            await sleep(0)
            ended.append("left")

    async def root() -> str:
        await spawn(bystander())
        if where == "root":
            await leave()
        await spawn(leave())
        await sleep(FOREVER)
        return "not this"

    with EventLoop() as loop:
        assert loop.run_until_complete(root(), join=join) == ("value" if join else None)
        assert sorted(ended) == ["cleaned up", "left"]
        assert not loop.has_living_tasks()
        assert loop.run_until_complete(value(1), join=True) == 1


@pytest.mark.parametrize("join", [True, False])
@pytest.mark.parametrize("error", [ValueError("mine"), Fatal("mine")], ids=lambda error: type(error).__name__)
def test_exit_with_an_exception_raises_it_from_the_run(join: bool, error: BaseException) -> None:
    async def root() -> None:
        await spawn(sleep(FOREVER))
        await flowno.exit(exception=error)

    with EventLoop() as loop, pytest.raises(type(error), match="mine") as caught:
        loop.run_until_complete(root(), join=join)
    assert caught.value is error


def test_exit_takes_exceptions_alone() -> None:
    async def root() -> None:
        with pytest.raises(TypeError, match="exception must be"):
            await flowno.exit(exception="text")  # type: ignore[arg-type]
        await flowno.exit("value")

    assert flowno.run(root()) == "value"


def test_exit_from_a_clean_up_at_the_end_does_not_change_the_outcome() -> None:
    async def child() -> None:
        try:
            await sleep(FOREVER)
        finally:
            await flowno.exit("child")

    async def root() -> None:
        await spawn(child())
        await flowno.exit("root")

    assert flowno.run(root()) == "root"


def test_a_task_that_swallows_its_cancellation_three_times_is_closed_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    swallowed = 0
    closed = []

    async def stubborn() -> None:
        nonlocal swallowed
        try:
            while True:
                try:
                    await sleep(FOREVER)
                except TaskCancelled:
                    swallowed += 1
        finally:
            closed.append("closed")

    async def root() -> None:
        await spawn(stubborn())

    flowno.run(root())
    assert swallowed == 3
    assert closed == ["closed"]
    (record,) = caplog.records
    assert "swallowed" in record.message
    assert "stubborn" in record.message


def test_a_task_that_keeps_the_cancellations_it_swallows_does_not_hold_up_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def stubborn() -> None:
        kept = []
        while True:
            try:
                await sleep(FOREVER)
            except TaskCancelled as error:
                kept.append(error)

    async def root() -> None:
        await spawn(stubborn())

    flowno.run(root())
    assert "stubborn" in caplog.text


@pytest.mark.parametrize("wait", ["sleep", "receive", "join"])
def test_a_clean_up_at_the_end_of_a_run_may_wait_as_often_as_it_likes(
    wait: str, caplog: pytest.LogCaptureFixture
) -> None:
    ended = []

    async def child() -> None:
        with pair() as (one, other):
            try:
                await sleep(FOREVER)
            finally:
                for number in range(10):
                    if wait == "sleep":
                        await sleep(0.0001)
                    elif wait == "receive":
                        other.socket.send(b"x")
                        assert await one.recv(9) == b"x"  # from the second on it waits first
                    else:
                        await (await spawn(value(1))).join()
                    ended.append(number)

    async def root() -> None:
        await spawn(child())

    flowno.run(root())
    assert ended == list(range(10))
    assert caplog.records == []


def test_a_task_that_was_never_started_runs_to_its_first_wait_at_the_end() -> None:
    seen = []

    async def late(loop: EventLoop) -> None:
        seen.append("started")
        try:
            await sleep(FOREVER)
        finally:
            seen.append("cleaned up")

    async def root(loop: EventLoop) -> None:
        loop.create_task(late(loop))
        raise Fatal

    with EventLoop() as loop, pytest.raises(Fatal):
        loop.run_until_complete(root(loop))
    assert seen == ["started", "cleaned up"]


@pytest.mark.parametrize("how", ["error", "exit"])
def test_an_error_in_a_clean_up_does_not_replace_what_ended_the_run(how: str) -> None:
    cleaned = []

    async def child(error: BaseException) -> None:
        try:
            await sleep(FOREVER)
        finally:
            cleaned.append(type(error))
            raise error

    async def root() -> None:
        await spawn(child(OtherFatal()))
        await spawn(child(ValueError()))
        if how == "error":
            raise Fatal
        await flowno.exit(exception=Fatal())

    with EventLoop() as loop, pytest.raises(Fatal):
        loop.run_until_complete(root())
    assert cleaned == [OtherFatal, ValueError]


def test_a_loop_keeps_nothing_of_tasks_that_have_ended() -> None:
    class Result:
        pass

    kept: list[weakref.ref[Any]] = []

    async def child() -> Result:
        result = Result()
        kept.append(weakref.ref(result))
        await sleep(0)
        return result

    async def failing() -> None:
        local = Result()
        kept.append(weakref.ref(local))
        await sleep(0)
        raise ValueError(local)

    async def root() -> None:
        for _ in range(3):
            handle = await spawn(child())
            kept.append(weakref.ref(handle.raw_task))
            assert isinstance(await handle.join(), Result)
            failed = await spawn(failing())
            with pytest.raises(ValueError, match="Result"):
                await failed.join()
            cancelled = await spawn(sleep(FOREVER))
            await cancelled.cancel()
            kept.append(weakref.ref(cancelled))

    with EventLoop() as loop:
        loop.run_until_complete(root(), join=True)
        gc.collect()
        assert [ref() for ref in kept] == [None] * len(kept)


def test_a_task_that_ends_well_is_freed_without_the_garbage_collector() -> None:
    class Result:
        pass

    freed = []

    async def child() -> Result:
        result = Result()
        weakref.finalize(result, freed.append, "result")
        await sleep(0)
        return result

    async def root() -> None:
        await (await spawn(child())).join()
        cancelled = await spawn(child())
        await cancelled.cancel()
        del cancelled
        await sleep(0)
        freed.append("root")

    gc.collect()
    with no_collections():
        flowno.run(root())
        assert freed == ["result", "result", "root"]


@pytest.mark.parametrize("join", [True, False])
@pytest.mark.parametrize("when", ["before", "in its clean-up"])
def test_the_error_of_root_is_logged_where_another_task_decides_what_the_run_gives(
    when: str, join: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def child() -> None:
        for _ in range(3):
            await sleep(0)
        await exit("of the child")

    async def root() -> None:
        await spawn(child())
        try:
            if when != "before":
                await sleep(FOREVER)
        finally:
            raise ValueError("of root")

    with EventLoop() as loop:
        assert loop.run_until_complete(root(), join=join) == ("of the child" if join else None)
        del loop
    gc.collect()
    assert [record.exc_info and repr(record.exc_info[1]) for record in caplog.records] == ["ValueError('of root')"]


def test_an_interrupt_between_the_end_of_a_coroutine_and_that_of_its_task_is_raised_without_a_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As Ctrl-C does that comes just then."""
    end_task = EventLoop.end_task

    def interrupted(loop: EventLoop, *args: Any) -> None:
        monkeypatch.setattr(EventLoop, "end_task", end_task)
        raise KeyboardInterrupt

    async def main() -> None:
        monkeypatch.setattr(EventLoop, "end_task", interrupted)

    with pytest.raises(KeyboardInterrupt):
        flowno.run(main())
    assert not caplog.records
