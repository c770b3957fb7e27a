"""What a handle can be asked: name, outcome, end, stack, and what the task waits for."""

import contextvars
import logging
import sys
import threading
from collections.abc import AsyncGenerator
from typing import Any

import pytest

import flowno
from flowno import (
    Event,
    EventLoop,
    EventLoopError,
    Lock,
    TaskCancelled,
    TaskGroup,
    TaskHandle,
    as_completed,
    current_event_loop,
    sleep,
    spawn,
)
from flowno.core.event_loop.commands import EventWaitCommand, JoinCommand, LockAcquireCommand, SleepCommand
from tests.support.tasks import FOREVER, fail, value

pytestmark = pytest.mark.usefixtures("backend")


def loop_of_this_thread() -> EventLoop:
    loop = current_event_loop()
    assert loop is not None
    return loop


# ----------------------------------------------------------------------------------------------------------------- name


def test_a_task_is_called_as_its_function_unless_it_is_given_a_name() -> None:
    async def root() -> None:
        loop = loop_of_this_thread()
        async with TaskGroup() as group:
            plain = await spawn(value(1))
            named = [
                await spawn(value(1), name="one"),
                loop.create_task(value(1), name="two"),
                await group.spawn(value(1), name="three"),
                group.create_task(value(1), name="four"),
            ]
        assert plain.name == "value"
        assert [task.name for task in named] == ["one", "two", "three", "four"]
        assert repr(plain) == "<TaskHandle value finished>"
        assert repr(named[0]) == "<TaskHandle 'one' value finished>"

    flowno.run(root())


def test_a_name_can_be_changed_and_messages_have_the_new_one(caplog: pytest.LogCaptureFixture) -> None:
    async def root() -> None:
        task = await spawn(fail(ValueError("text"), 2), name="first")
        task.name = "second"
        await sleep(0)
        await sleep(0)

    with EventLoop() as loop:
        loop.run_until_complete(root())
    assert "'second' fail" in caplog.text
    assert "first" not in caplog.text


@pytest.mark.parametrize("name", [1, b"bytes", ["list"]])
def test_a_name_is_a_text(name: Any) -> None:
    async def root() -> None:
        loop = loop_of_this_thread()
        with pytest.raises(TypeError, match="name must be a str"):
            loop.create_task(value(1), name=name)
        task = await spawn(value(1))
        with pytest.raises(TypeError, match="name must be a str"):
            task.name = name
        coroutine = value(1)
        with pytest.raises(TypeError, match="name must be a str"):
            await spawn(coroutine, name=name)
        coroutine.close()
        assert len(loop.tasks) == 1

    flowno.run(root())


# -------------------------------------------------------------------------------------------------------------- outcome


def test_an_outcome_can_be_asked_for_once_the_task_has_ended() -> None:
    error = ValueError("text")

    async def root() -> None:
        returned, failed = await spawn(value("x", 9)), await spawn(fail(error, 9))
        cancelled = await spawn(sleep(FOREVER))
        handles: list[TaskHandle[Any]] = [returned, failed, cancelled]
        for handle in handles:
            assert not handle.done()
            with pytest.raises(EventLoopError, match=r"result\(\) of .* has not ended"):
                handle.result()
            with pytest.raises(EventLoopError, match=r"exception\(\) of .* has not ended"):
                handle.exception()
        await cancelled.cancel()
        async for _ in as_completed(handles):
            pass
        assert [handle.done() for handle in handles] == [True, True, True]
        assert returned.result() == "x"
        assert returned.exception() is None
        assert failed.exception() is error
        with pytest.raises(ValueError, match="text") as caught:
            failed.result()
        assert caught.value is error
        for ask in (cancelled.result, cancelled.exception):
            with pytest.raises(TaskCancelled) as thrown:
                ask()
            assert thrown.value.by is cancelled

    flowno.run(root())


@pytest.mark.parametrize("ask", ["result", "exception"])
def test_whoever_asks_for_the_error_knows_of_it_so_it_is_not_logged(ask: str, caplog: pytest.LogCaptureFixture) -> None:
    async def root() -> None:
        task = await spawn(fail(ValueError("text")))
        if ask == "exception":
            assert isinstance(task.exception(), ValueError)
        else:
            with pytest.raises(ValueError, match="text"):
                task.result()

    flowno.run(root())
    assert caplog.records == []


# ----------------------------------------------------------------------------------------------------------------- ends


def test_a_callback_is_called_once_when_its_task_has_ended_however_it_does() -> None:
    calls: list[tuple[str, TaskHandle[Any]]] = []

    async def root() -> None:
        handles: list[TaskHandle[Any]] = [
            await spawn(value("x", 9)),
            await spawn(fail(ValueError("text"), 9)),
            await spawn(sleep(FOREVER)),
        ]
        for handle in handles:
            handle.add_done_callback(lambda done: calls.append(("first", done)))
            handle.add_done_callback(lambda done: calls.append(("second", done)))
        assert calls == []
        handles[2].cancel()
        async for _ in as_completed(handles):
            pass
        await sleep(0)
        assert isinstance(handles[1].exception(), ValueError)
        assert {done for _, done in calls} == set(handles)
        for handle in handles:
            assert [name for name, done in calls if done is handle] == ["first", "second"]

    flowno.run(root())
    assert len(calls) == 6


def test_a_callback_for_a_task_that_has_ended_is_called_soon_and_not_at_once() -> None:
    calls: list[TaskHandle[Any]] = []

    async def root() -> None:
        task = await spawn(value(1))
        task.add_done_callback(calls.append)
        assert calls == []
        await sleep(0)
        assert calls == [task]

    flowno.run(root())


def test_a_callback_that_was_taken_back_is_not_called() -> None:
    calls: list[Any] = []

    async def root() -> None:
        task = await spawn(value(1, 2))
        task.add_done_callback(calls.append)
        task.add_done_callback(calls.append)
        task.add_done_callback(lambda _: calls.append("kept"))
        assert task.remove_done_callback(calls.append) == 2
        assert task.remove_done_callback(calls.append) == 0
        await task.join()
        await sleep(0)

    flowno.run(root())
    assert calls == ["kept"]


def test_what_a_callback_raises_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[Any] = []

    def broken(task: TaskHandle[Any]) -> None:
        raise ZeroDivisionError("of the callback")

    async def root() -> str:
        task = await spawn(value("x", 1))
        task.add_done_callback(broken)
        task.add_done_callback(calls.append)
        await task.join()
        await sleep(0)
        return "went on"

    assert flowno.run(root()) == "went on"
    assert len(calls) == 1
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "ZeroDivisionError: of the callback" in caplog.text


def test_a_callback_that_asks_a_cancelled_task_for_its_outcome_ends_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def root() -> str:
        task = await spawn(sleep(FOREVER))
        task.add_done_callback(lambda done: done.result())
        await task.cancel()
        loop_of_this_thread().call_soon_threadsafe(task.exception)
        await sleep(0)
        await sleep(0)
        return "went on"

    assert flowno.run(root()) == "went on"
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.ERROR]


def test_a_callback_runs_in_a_copy_of_the_context_of_whoever_added_it() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    seen: list[str] = []

    def callback(task: TaskHandle[Any]) -> None:
        seen.append(variable.get())
        variable.set("of the callback")

    async def root() -> None:
        variable.set("of the root")
        task = await spawn(value(1, 1))
        task.add_done_callback(callback)
        variable.set("later")
        await task.join()
        await sleep(0)
        seen.append(variable.get())

    flowno.run(root())
    assert seen == ["of the root", "later"]


def test_a_callback_may_be_added_from_another_thread() -> None:
    called = threading.Event()
    in_thread: list[int] = []

    async def root() -> None:
        task = await spawn(sleep(FOREVER))
        thread = threading.Thread(
            target=task.add_done_callback, args=(lambda _: in_thread.append(threading.get_ident()),)
        )
        thread.start()
        thread.join()
        await sleep(0)
        await task.cancel()
        await sleep(0)
        called.set()

    flowno.run(root())
    assert called.is_set()
    assert in_thread == [threading.get_ident()]


def test_callbacks_of_tasks_that_the_end_of_a_run_cancels_are_called() -> None:
    calls: list[TaskHandle[Any]] = []

    async def root() -> None:
        task = await spawn(sleep(FOREVER))
        task.add_done_callback(calls.append)

    flowno.run(root())
    assert [task.is_cancelled for task in calls] == [True]


@pytest.mark.parametrize("callback", [None, 1, "text"])
def test_a_callback_must_be_callable(callback: Any) -> None:
    async def root() -> None:
        task = await spawn(value(1))
        with pytest.raises(TypeError, match="callback must be a function"):
            task.add_done_callback(callback)

    flowno.run(root())


# ------------------------------------------------------------------------------------------------- where it is, and why


def test_a_task_can_be_asked_what_it_waits_for() -> None:
    async def root() -> None:
        event, lock = Event(), Lock()
        await lock.acquire()
        sleeper = await spawn(sleep(FOREVER))
        waits: list[tuple[TaskHandle[Any], type]] = [
            (sleeper, SleepCommand),
            (await spawn(event.wait()), EventWaitCommand),
            (await spawn(lock.acquire()), LockAcquireCommand),
            (await spawn(sleeper.join()), JoinCommand),
        ]
        for task, command in waits:
            assert type(task.waiting_for) is command
        ready = await spawn(sleep(0))
        assert ready.waiting_for is None
        for task, _ in reversed(waits):
            await task.cancel()
            assert task.waiting_for is None

    flowno.run(root())


def names(task: TaskHandle[Any]) -> list[str]:
    return [frame.name for frame in task.get_stack()]


def test_a_stack_goes_down_to_the_operation_that_a_task_waits_in() -> None:
    async def inner() -> None:
        await sleep(FOREVER)

    async def numbers() -> AsyncGenerator[int, None]:
        await inner()
        yield 1

    async def steps() -> None:
        async for _ in numbers():
            pass

    async def cancels(task: TaskHandle[Any]) -> None:
        await task.cancel()

    class Awaitable:
        def __await__(self) -> Any:
            return (yield from inner().__await__())

    async def awaits() -> None:
        await Awaitable()

    async def stubborn() -> None:
        try:
            await sleep(FOREVER)
        finally:
            await sleep(0.001)

    async def root() -> None:
        stepping, awaiting = await spawn(steps()), await spawn(awaits())
        assert names(stepping) == ["steps", "numbers", "inner", "sleep"]
        assert names(awaiting) == ["awaits", "__await__", "inner", "sleep"]
        canceller = await spawn(cancels(await spawn(stubborn())))
        assert names(canceller) == ["cancels", "__await__"]
        await stepping.cancel()
        await awaiting.cancel()
        assert names(stepping) == []
        await canceller.join()

    flowno.run(root())


def test_the_stack_of_a_running_task_goes_down_to_the_call_that_it_is_in() -> None:
    stacks: list[list[str]] = []

    def called() -> None:
        stacks.append(names(me[0]))

    async def inner() -> None:
        called()

    async def outer() -> None:
        await sleep(0)
        await inner()

    me: list[TaskHandle[Any]] = []

    async def root() -> None:
        me.append(await spawn(outer()))
        assert names(me[0]) == ["outer", "sleep"]
        await me[0].join()

    flowno.run(root())
    (stack,) = stacks
    assert stack[:3] == ["outer", "inner", "called"]


def test_the_stack_of_a_task_that_holds_up_its_loop_can_be_had_from_another_thread() -> None:
    inside, looked = threading.Event(), threading.Event()
    stacks: list[list[str]] = []

    def holds_up() -> None:
        inside.set()
        looked.wait(20)

    async def root() -> None:
        await sleep(0)
        holds_up()

    def look(task: TaskHandle[Any]) -> None:
        inside.wait(20)
        stacks.append(names(task))
        looked.set()

    with EventLoop() as loop:
        task = loop.create_task(root())
        thread = threading.Thread(target=look, args=(task,))
        thread.start()
        loop.run_until_complete(task.join(), join=True)
        thread.join()
    assert stacks[0][:2] == ["root", "holds_up"]


def test_a_task_that_has_not_begun_is_at_the_first_line_of_its_function() -> None:
    async def root() -> None:
        task = loop_of_this_thread().create_task(value(1))
        (frame,) = task.get_stack()
        assert (frame.name, frame.lineno) == ("value", value.__code__.co_firstlineno)
        await task.join()

    flowno.run(root())


def test_asking_keeps_nothing_alive() -> None:
    async def root() -> int:
        task = await spawn(value(1, 1))
        before = sys.getrefcount(task)
        task.get_stack()
        task.add_done_callback(print)
        task.remove_done_callback(print)
        await sleep(0)
        return sys.getrefcount(task) - before

    assert flowno.run(root()) <= 0
