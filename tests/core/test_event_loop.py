"""What a run of an event loop promises: who runs when, how a run ends, and what is left of it."""

import asyncio
import contextvars
import gc
import itertools
import logging
import os
import types
import weakref
from collections.abc import Generator
from typing import Any

import pytest

import flowno
from flowno import EventLoop, EventLoopError, TaskCancelled, TaskHandle, current_event_loop, current_task, sleep, spawn
from flowno.core.event_loop.commands import Command, SleepCommand, SocketRecvCommand
from tests.conftest import RunPython
from tests.support.counting_selector import CountingSelector
from tests.support.loopback import listening, pair

pytestmark = pytest.mark.usefixtures("backend")

FOREVER = float("inf")


async def value(result: object) -> object:
    return result


async def fail(error: BaseException) -> None:
    raise error


# ------------------------------------------------------------------------------------------------ what a run returns


def test_join_returns_the_value_of_root() -> None:
    with EventLoop() as loop:
        assert loop.run_until_complete(value(7), join=True) == 7


def test_without_join_a_run_returns_none() -> None:
    with EventLoop() as loop:
        assert loop.run_until_complete(value(7)) is None


def test_join_raises_the_error_of_root_and_does_not_log_it_too(caplog: pytest.LogCaptureFixture) -> None:
    error = ValueError("root")
    with EventLoop() as loop, pytest.raises(ValueError, match="root") as caught:
        loop.run_until_complete(fail(error), join=True)
    assert caught.value is error
    assert caplog.records == []


def test_without_join_the_error_of_root_is_logged_once_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with EventLoop() as loop:
        loop.run_until_complete(fail(ValueError("root")))
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "in fail" in caplog.text
    assert "ValueError: root" in caplog.text


def test_join_raises_the_cancellation_of_root() -> None:
    async def root() -> None:
        loop, task = current_event_loop(), current_task()
        assert loop is not None
        assert task is not None
        loop.cancel(task)
        await sleep(FOREVER)

    with EventLoop() as loop, pytest.raises(TaskCancelled) as caught:
        loop.run_until_complete(root(), join=True)
    assert caught.value.by.is_cancelled


@pytest.mark.parametrize("join", [True, False])
def test_a_run_goes_on_until_every_spawned_task_has_ended(join: bool) -> None:
    ended = []

    async def child(depth: int) -> None:
        await sleep(0)
        if depth:
            await spawn(child(depth - 1))
        ended.append(depth)

    async def root() -> None:
        await spawn(child(3))

    with EventLoop() as loop:
        loop.run_until_complete(root(), join=join)
        assert not loop.has_living_tasks()
    assert ended == [3, 2, 1, 0]


def test_a_failing_root_does_not_end_the_tasks_that_it_has_spawned() -> None:
    ended = []

    async def child() -> None:
        for _ in range(10):
            await sleep(0)
        ended.append("child")

    async def root() -> None:
        await spawn(child())
        raise ValueError("root")

    with EventLoop() as loop, pytest.raises(ValueError, match="root"):
        loop.run_until_complete(root(), join=True)
    assert ended == ["child"]


def test_tasks_that_are_not_waited_for_go_on_in_the_next_run() -> None:
    seen = []

    async def child() -> None:
        with pair() as (one, other):
            reader = await spawn(one.recv(9))
            seen.append("waits")
            await sleep(0)
            await other.sendAll(b"later")
            seen.append(await reader.join())

    async def root() -> None:
        await spawn(child())
        await sleep(0)

    with EventLoop() as loop:
        loop.run_until_complete(root(), wait_for_spawned_tasks=False)
        assert seen == ["waits"]
        assert loop.has_living_tasks()
        loop.run_until_complete(sleep(0))
        assert seen == ["waits", b"later"]
        assert not loop.has_living_tasks()


def test_a_socket_wait_lasts_over_two_runs() -> None:
    with pair() as (one, other), EventLoop() as loop:
        readers = []

        async def first() -> None:
            readers.append(await spawn(one.recv(9)))

        async def second() -> bytes:
            await other.sendAll(b"hello")
            return await readers[0].join()

        loop.run_until_complete(first(), wait_for_spawned_tasks=False)
        assert loop.run_until_complete(second(), join=True) == b"hello"


def test_one_loop_runs_many_times() -> None:
    async def echo(text: bytes) -> bytes:
        with pair() as (one, other):
            await one.sendAll(text)
            return await other.recv(9)

    with EventLoop() as loop:
        for text in (b"one", b"two", b"three"):
            assert loop.run_until_complete(echo(text), join=True) == text


# ---------------------------------------------------------------------------------------------------- its life and use


def test_leaving_a_loop_cancels_what_is_left_and_closes_it() -> None:
    ended = []

    async def child() -> None:
        try:
            await sleep(FOREVER)
        finally:
            await sleep(0)  # a clean-up may wait
            ended.append("cleaned up")

    async def root() -> TaskHandle[None]:
        return await spawn(child())

    with EventLoop() as loop:
        handle = loop.run_until_complete(root(), join=True, wait_for_spawned_tasks=False)
    assert ended == ["cleaned up"]
    assert handle.is_cancelled
    assert "closed" in repr(loop)


def test_closing_twice_is_closing_once() -> None:
    loop = EventLoop()
    loop.close()
    loop.close()


def test_a_loop_that_is_dropped_closes_silently(caplog: pytest.LogCaptureFixture) -> None:
    async def root() -> None:
        await spawn(sleep(FOREVER))

    loop = EventLoop()
    loop.create_task(value(1))  # never started
    loop.run_until_complete(root(), wait_for_spawned_tasks=False)
    loop.create_task(value(1))  # never started
    alive = weakref.ref(loop)
    del loop
    gc.collect()
    assert alive() is None
    assert caplog.records == []


def test_a_loop_that_was_never_run_goes_with_its_last_reference() -> None:
    loop = EventLoop()
    loop.run_until_complete(sleep(0))
    alive = weakref.ref(loop)
    gc.disable()
    try:
        del loop
        assert alive() is None
    finally:
        gc.enable()


def test_a_closed_loop_refuses_to_run_and_to_start_tasks() -> None:
    loop = EventLoop()
    loop.close()
    coroutine = value(1)
    with pytest.raises(EventLoopError, match="closed"):
        loop.run_until_complete(coroutine)
    with pytest.raises(EventLoopError, match="closed"):
        loop.create_task(coroutine)
    with pytest.raises(EventLoopError, match="closed"):
        loop.__enter__()
    coroutine.close()


def test_a_running_loop_refuses_to_run_again_and_to_close() -> None:
    with EventLoop() as loop:

        async def root() -> None:
            inner = value(1)
            with pytest.raises(EventLoopError, match="runs already"):
                loop.run_until_complete(inner)
            with pytest.raises(EventLoopError, match="running"):
                loop.close()
            inner.close()
            await sleep(0)  # and it runs on

        loop.run_until_complete(root(), join=True)


def test_a_loop_does_not_run_inside_of_another() -> None:
    with EventLoop() as inner, EventLoop() as outer:

        async def root() -> None:
            coroutine = value(1)
            with pytest.raises(EventLoopError, match="await or spawn"):
                inner.run_until_complete(coroutine)
            coroutine.close()

        outer.run_until_complete(root(), join=True)
        assert inner.run_until_complete(value(2), join=True) == 2


def test_the_repr_names_the_backend(backend: str) -> None:
    name = backend.rpartition(":")[2]
    with EventLoop() as loop:
        assert name in repr(loop)
        assert "idle" in repr(loop)
        assert loop.run_until_complete(value(0), join=True) == 0

        async def root() -> str:
            return repr(current_event_loop())

        assert "running" in loop.run_until_complete(root(), join=True)


def test_current_loop_and_task_are_known_inside_of_a_run_alone() -> None:
    async def root() -> tuple[object, object]:
        return current_event_loop(), current_task()

    assert (current_event_loop(), current_task()) == (None, None)
    with EventLoop() as loop:
        coroutine = root()
        assert loop.run_until_complete(coroutine, join=True) == (loop, coroutine)
        assert (current_event_loop(), current_task()) == (None, None)


def test_the_current_task_is_the_one_that_runs() -> None:
    async def child() -> tuple[object, object]:
        before = current_task()
        await sleep(0)
        return before, current_task()

    async def root() -> None:
        me = current_task()
        coroutine = child()
        handle = await spawn(coroutine)
        assert current_task() is me
        assert await handle.join() == (coroutine, coroutine)
        assert handle.raw_task is coroutine

    flowno.run(root())


@pytest.mark.parametrize("not_a_coroutine", [None, 7, sleep, value, (n for n in "ab"), [1]])
def test_what_is_no_coroutine_is_a_type_error_at_the_call(not_a_coroutine: Any) -> None:
    with EventLoop() as loop:
        with pytest.raises(TypeError, match="takes a coroutine"):
            loop.create_task(not_a_coroutine)
        with pytest.raises(TypeError, match="takes a coroutine"):
            loop.run_until_complete(not_a_coroutine)

        async def root() -> None:
            with pytest.raises(TypeError, match="takes a coroutine"):
                await spawn(not_a_coroutine)

        loop.run_until_complete(root(), join=True)
    with pytest.raises(TypeError, match="takes a coroutine"):
        flowno.run(not_a_coroutine)


def test_generator_based_coroutines_are_tasks_too() -> None:
    async def root() -> object:
        handle = await spawn(sleep(0))
        return await handle.join()

    assert flowno.run(sleep(0)) == 0.0
    assert flowno.run(root()) == 0.0
    with EventLoop() as loop:
        handle = loop.create_task(sleep(0))
        loop.run_until_complete(sleep(0))
        assert handle.is_finished


def test_run_returns_the_value_and_cancels_what_is_left() -> None:
    handles = []

    async def root() -> str:
        handles.append(await spawn(sleep(FOREVER)))
        return "done"

    assert flowno.run(root()) == "done"
    assert handles[0].is_cancelled


def test_run_that_gets_no_loop_complains_of_that_alone() -> None:
    with pytest.raises(flowno.UnknownSelectorError):  # a RuntimeWarning of the coroutine would fail the test
        flowno.run(value(1), selector="no such selector")


# ------------------------------------------------------------------------------------------------------- who runs when


def test_a_child_runs_before_its_parent_goes_on() -> None:
    order = []

    async def child(name: str) -> None:
        order.append(name)
        await sleep(0)
        order.append(f"{name} again")

    async def root() -> None:
        await spawn(child("first"))
        order.append("root")
        await spawn(child("second"))
        order.append("root again")

    flowno.run(root())
    assert order[:3] == ["first", "root", "first again"]
    assert order.index("second") < order.index("root again")


def test_ready_tasks_take_turns() -> None:
    order = []

    async def counter(name: str) -> None:
        for number in range(4):
            order.append(f"{name}{number}")
            await sleep(0)

    async def root() -> None:
        tasks = [current_event_loop().create_task(counter(name)) for name in "abc"]  # type: ignore[union-attr]
        for task in tasks:
            await task.join()

    flowno.run(root())
    assert order == [f"{name}{number}" for number in range(4) for name in "abc"]


def test_a_task_that_is_always_ready_does_not_keep_the_sockets_waiting() -> None:
    async def root() -> int:
        with pair() as (one, other):
            reader = await spawn(one.recv(1))
            await other.sendAll(b"x")
            turns = 0
            while not reader.is_finished:
                turns += 1
                await sleep(0)
            return turns

    assert flowno.run(root()) <= 3


def test_the_selector_is_asked_once_a_batch_and_not_at_all_without_sockets() -> None:
    async def idle() -> None:
        for _ in range(50):
            await sleep(0)

    async def with_a_socket(handle: flowno.SocketHandle) -> None:
        reader = await spawn(handle.recv(1))
        for task in [await spawn(idle()) for _ in range(20)]:
            await task.join()
        await reader.cancel()

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(idle())
        assert counting.calls["select"] == 0
        with pair() as (one, _):
            loop.run_until_complete(with_a_socket(one))
        assert 50 <= counting.calls["select"] <= 100  # 20 tasks of 50 steps each, side by side


def test_an_idle_loop_does_not_spin() -> None:
    async def root() -> None:
        with pair() as (one, other):
            reader = await spawn(one.recv(1))
            writer = await spawn(other.recv(1))
            await sleep(0.2)
            await reader.cancel()
            await writer.cancel()

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(root(), join=True)
        assert counting.calls["select"] < 12


@pytest.mark.parametrize("what", ["receive", "send", "accept", "failure", "refusal", "join", "cancel", "closed"])
def test_no_operation_that_completes_at_once_starves_the_others(what: str) -> None:
    """64 in a row, and then it is somebody else's turn."""

    async def root() -> None:
        with pair() as (one, other), pair() as (closed, _), listening(1) as listener:
            closed.close()
            ended = await spawn(value(1))
            reader = await spawn(other.recv(1)) if what == "refusal" else None
            done = 0

            async def repeat() -> None:
                nonlocal done
                while True:
                    if what == "receive":
                        one.socket.send(b"x")
                        await other.recv(1)
                    elif what == "send":
                        await one.send(b"x")
                        other.socket.recv(1)
                    elif what == "accept":
                        with flowno.socket() as client:
                            client.connect(listener.getsockname())
                            (await listener.accept())[0].close()
                    elif what == "failure":
                        with pytest.raises(OSError):  # noqa: PT011 - not connected
                            await listener.recv(1)
                    elif what == "refusal":
                        with pytest.raises(flowno.BusyResourceError):
                            await other.recv(1)
                    elif what == "join":
                        await ended.join()
                    elif what == "cancel":
                        await ended.cancel()
                    else:
                        with pytest.raises(flowno.ClosedResourceError):
                            await closed.recv(1)
                    done += 1

            task = await spawn(repeat())
            seen = [done]
            for _ in range(4):
                await sleep(0)
                await sleep(0)
                seen.append(done)
            assert seen == sorted(set(seen)), "it makes progress"
            assert max(b - a for a, b in itertools.pairwise(seen)) <= 2 * 65
            assert seen[0] <= 65  # one that waited its turn, and 64 in a row
            await task.cancel()
            if reader is not None:
                await reader.cancel()

    flowno.run(root())


# ------------------------------------------------------------------------------------------------------------- contexts


def test_each_task_has_context_variables_of_its_own() -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    async def child(name: str) -> tuple[str, str]:
        inherited = variable.get()
        variable.set(name)
        await sleep(0)
        return inherited, variable.get()

    async def root() -> None:
        variable.set("root")
        first = await spawn(child("first"))
        second = await spawn(child("second"))
        assert await first.join() == ("root", "first")
        assert await second.join() == ("root", "second")
        assert variable.get() == "root"

    flowno.run(root())
    assert variable.get() == "unset"


def test_create_task_copies_the_context_of_its_caller() -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    async def child() -> str:
        seen = variable.get()
        variable.set("changed")
        return seen

    async def root(loop: EventLoop, earlier: TaskHandle[str]) -> None:
        variable.set("root")
        assert await loop.create_task(child()).join() == "root"
        assert await earlier.join() == "caller"

    with EventLoop() as loop:
        context = contextvars.copy_context()
        context.run(variable.set, "caller")
        earlier = context.run(loop.create_task, child())
        loop.run_until_complete(root(loop, earlier), join=True)
        assert context[variable] == "caller"


# ----------------------------------------------------------------------------------------------- commands and answers


def test_an_awaitable_of_asyncio_is_a_type_error_at_the_await() -> None:
    other_loop = asyncio.new_event_loop()

    async def root() -> str:
        with pytest.raises(TypeError, match=r"Future.*asyncio") as caught:
            await asyncio.Future(loop=other_loop)
        assert any(entry.name == "root" for entry in caught.traceback)
        await sleep(0)  # and the task goes on
        return "done"

    try:
        assert flowno.run(root()) == "done"
    finally:
        other_loop.close()


@pytest.mark.parametrize("yielded", [None, 7, "text", object, SleepCommand, Command()])
def test_anything_else_that_is_yielded_is_a_type_error_at_the_await(yielded: object) -> None:
    @types.coroutine
    def foreign() -> Generator[object, Any, None]:
        yield yielded

    async def root() -> None:
        with pytest.raises(TypeError, match="no flowno command"):
            await foreign()

    flowno.run(root())


def test_a_derived_command_is_carried_out_as_its_base_is() -> None:
    class LongSleep(SleepCommand):
        __slots__ = ()

    class Receive(SocketRecvCommand):
        __slots__ = ()

    @types.coroutine
    def ask(command: Command) -> Generator[Command, Any, Any]:
        return (yield command)

    async def root() -> None:
        with pair() as (one, other):
            assert await ask(LongSleep(0)) == 0
            waiting = await spawn(ask(Receive(one)))
            await sleep(0)
            assert not waiting.is_finished
            await other.sendAll(b"x")
            await waiting.join()
            waiting = await spawn(ask(Receive(other)))
            assert await waiting.cancel() is None

    flowno.run(root())


def test_what_a_handler_raises_is_thrown_into_the_task_that_asked() -> None:
    async def root() -> str:
        with pair() as (one, other):
            counting.fail["register"] = OSError(28, "no space")
            bystander = await spawn(sleep(0.001))
            with pytest.raises(OSError, match="no space"):
                await one.recv(1)
            counting.fail.clear()
            await other.sendAll(b"x")
            assert await one.recv(1) == b"x"
            await bystander.join()
            return "done"

    with CountingSelector() as counting, EventLoop(counting) as loop:
        assert loop.run_until_complete(root(), join=True) == "done"


# ------------------------------------------------------------------------------------------------------- how a run ends


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
async def reader(handle):
    try:
        await handle.recv(1)
    finally:
        await flowno.sleep(0.001)
        print("cleaned up", flush=True)
async def root():
    import socket
    ends = socket.socketpair()
    with flowno.SocketHandle(ends[0]) as one, flowno.SocketHandle(ends[1]):
        task = await flowno.spawn(reader(one))
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
    gc.disable()
    try:
        flowno.run(root())
        assert freed == ["result", "result", "root"]
    finally:
        gc.enable()
