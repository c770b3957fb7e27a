"""What no task sees happen: finalizers, loops that were dropped or have ended, and errors that nobody waits for."""

import gc
import os
import sys
import threading
from collections.abc import AsyncGenerator

import pytest

import flowno
from flowno import (
    CancelScope,
    Event,
    EventLoop,
    EventLoopError,
    TaskCancelled,
    TaskHandle,
    sleep,
    spawn,
)
from tests.conftest import RunPython
from tests.support.counting_selector import CountingSelector
from tests.support.loopback import pair

pytestmark = pytest.mark.usefixtures("backend")


def test_a_finalizer_that_raises_is_reported_by_python_and_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bad:
        def __del__(self) -> None:
            raise ValueError("of a finalizer")

    async def child() -> Bad:
        bad = Bad()
        await sleep(0)
        return bad

    async def root() -> str:
        for _ in range(3):
            await (await spawn(child())).join()
            cancelled = await spawn(child())
            await cancelled.cancel()
        return "done"

    reported: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: reported.append(str(what.exc_value)))
    assert flowno.run(root()) == "done"
    gc.collect()
    assert reported == ["of a finalizer"] * 6


def test_a_generator_that_is_dropped_in_another_thread_is_closed_in_the_thread_of_its_loop() -> None:
    closed: list[int] = []

    async def count(done: Event) -> AsyncGenerator[int, None]:
        try:
            yield 1
            yield 2
        finally:
            await sleep(0)
            closed.append(threading.get_ident())
            done.set()

    def drop() -> None:
        counting.before_select = bool
        thread = threading.Thread(target=held.clear)
        thread.start()
        thread.join()

    async def root() -> None:
        done = Event()
        held.append(count(done))
        assert await anext(held[0]) == 1
        counting.before_select = drop  # when the loop goes to sleep, from which it is woken
        await done.wait()

    held: list[AsyncGenerator[int, None]] = []
    with CountingSelector() as counting, EventLoop(counting, deadlock="off") as loop:
        loop.run_until_complete(root(), join=True)
    assert closed == [threading.get_ident()]


def test_awaits_as_deep_as_python_allows_are_an_error_of_their_task_and_of_no_other() -> None:
    async def deeper() -> None:
        await deeper()

    async def deep(depth: int) -> int:
        return await deep(depth - 1) + 1 if depth else int(await sleep(0))

    async def root() -> int:
        bystander = await spawn(deep(200))
        task = await spawn(deeper())
        with pytest.raises(RecursionError):
            await task.join()
        return await bystander.join()

    assert flowno.run(root()) == 200


def test_a_loop_that_was_dropped_leaves_nothing_that_wakes_the_next_one() -> None:
    def drop() -> None:
        loop = EventLoop()

        async def root() -> None:
            one, _ = ends
            await (await spawn(one.recv(1))).cancel()

        with pair() as ends:
            loop.run_until_complete(root(), join=True)
            loop.create_task(sleep(0))

    for _ in range(3):
        drop()
    gc.collect()
    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(sleep(0.05))
        assert counting.calls["select"] <= 3


def test_what_other_threads_ask_of_a_loop_that_has_ended_is_refused_or_does_no_harm() -> None:
    async def root() -> None:
        scopes.append(CancelScope())
        with scopes[0]:
            tasks.append(await spawn(sleep(0)))
            await tasks[0].join()

    def ask() -> None:
        tasks[0].cancel()
        scopes[0].cancel()
        handle.close()
        assert loop.cancel(tasks[0].raw_task) is False
        try:
            loop.create_task(sleep(0))
        except EventLoopError:
            refused.append("create_task")

    tasks: list[TaskHandle[float]] = []
    scopes: list[CancelScope] = []
    refused: list[str] = []
    with pair() as (handle, _):
        with EventLoop() as loop:
            loop.run_until_complete(root(), join=True)
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert refused == ["create_task"]
    assert tasks[0].is_finished


def test_an_error_in_a_task_and_the_cancellation_of_all_in_one_turn_are_both_accounted_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        await sleep(0)
        raise ValueError("of the task")

    async def root() -> None:
        failing, joiner = await spawn(fail()), await spawn(sleep(1))
        await sleep(0)
        failing.cancel()
        joiner.cancel()
        with pytest.raises(ValueError, match="of the task"):
            await failing.join()
        with pytest.raises(TaskCancelled):
            await joiner.join()

    flowno.run(root())
    gc.collect()
    assert not caplog.records


@pytest.mark.parametrize("options", [("-O",), ("-OO",)], ids=" ".join)
def test_the_checks_on_users_are_made_in_an_optimized_python_too(
    options: tuple[str, ...], run_python: RunPython
) -> None:
    program = """
import flowno

async def refused(awaitable, *errors):
    try:
        await awaitable
    except errors as error:
        print(type(error).__name__)

async def release(lock):
    lock.release()

async def main():
    lock = flowno.Lock()
    await refused(release(lock), flowno.NotOwnerError)
    async with lock:
        await refused(lock.acquire(), flowno.BusyResourceError)
    one, other = flowno.socketpair()
    with one, other:
        reader = await flowno.spawn(one.recv(1))
        await refused(one.recv(1), flowno.BusyResourceError)
        await reader.cancel()
    await refused(one.recv(1), flowno.ClosedResourceError)
    await refused(flowno.sleep(float("nan")), ValueError)
    await refused(flowno.spawn(5), TypeError)

flowno.run(main())
"""
    result = run_python(program, options=(*options, "-W", "error"))
    expected = ["NotOwnerError", *["BusyResourceError"] * 2, "ClosedResourceError", "ValueError", "TypeError"]
    assert (result.stdout.split(), result.stderr) == (expected, "")


@pytest.mark.skipif(os.name != "posix", reason="os.pipe() has no ends that can be waited for there")
def test_a_pipe_whose_reader_is_gone_is_an_error_and_no_signal(run_python: RunPython) -> None:
    program = """
import os
import flowno

async def main():
    reader, writer = os.pipe()
    os.close(reader)
    await flowno.wait_writable(writer)
    try:
        os.write(writer, b"x")
    except BrokenPipeError:
        print("broken pipe")
    os.close(writer)
    one, other = flowno.socketpair()
    with one:
        other.close()
        try:
            await one.sendAll(b"x")
        except BrokenPipeError:
            print("broken socket")

flowno.run(main())
"""
    result = run_python(program)
    assert (result.returncode, result.stdout.splitlines()) == (0, ["broken pipe", "broken socket"])
