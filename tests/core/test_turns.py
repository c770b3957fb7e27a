"""Who runs when: turns, fairness, contexts, and the commands that are answered."""

import asyncio
import contextvars
import threading
import types
from collections.abc import AsyncIterable, Awaitable, Callable, Generator
from typing import Any

import pytest

import flowno
from flowno import EventLoop, TaskHandle, current_event_loop, move_on_after, sleep, spawn
from flowno.core.event_loop.commands import Command, SleepCommand, SocketRecvCommand
from tests.support.counting_selector import CountingSelector
from tests.support.fairness import check_it_gives_way
from tests.support.loopback import listening, pair
from tests.support.tasks import FOREVER, value

pytestmark = pytest.mark.usefixtures("backend")


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


@pytest.mark.not_under_faults(reason="it counts turns of the loop, or what is done in one of them")
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


@pytest.mark.not_under_faults(reason="it counts turns of the loop, or what is done in one of them")
@pytest.mark.parametrize(
    "what",
    [
        "receive", "send", "accept", "failure", "refusal", "join", "cancel", "closed",
        "group", "gather", "as_completed", "as_completed of nothing", "until_empty", "azip",
    ],
)  # fmt: skip
def test_no_operation_that_completes_at_once_starves_the_others(what: str) -> None:
    async def root() -> None:
        with pair() as (one, other), pair() as (closed, _), listening(1) as listener:
            closed.close()
            ended = await spawn(value(1))
            reader = await spawn(other.recv(1)) if what == "refusal" else None

            async def receive() -> None:
                one.socket.send(b"x")
                await other.recv(1)

            async def send() -> None:
                await one.send(b"x")
                other.socket.recv(1)

            async def accept() -> None:
                with flowno.socket() as client:
                    client.connect(listener.getsockname())
                    (await listener.accept())[0].close()

            async def empty_group() -> None:
                async with flowno.TaskGroup():
                    pass

            async def steps(iterable: AsyncIterable[object]) -> None:
                async for _ in iterable:
                    pass

            async def refused(handle: flowno.SocketHandle, error: type[Exception]) -> None:
                with pytest.raises(error):
                    await handle.recv(1)

            operations: dict[str, Callable[[], Awaitable[object]]] = {
                "receive": receive,
                "send": send,
                "accept": accept,
                "failure": lambda: refused(listener, OSError),  # it is not connected
                "refusal": lambda: refused(other, flowno.BusyResourceError),
                "join": ended.join,
                "cancel": ended.cancel,
                "closed": lambda: refused(closed, flowno.ClosedResourceError),
                "group": empty_group,
                "gather": flowno.gather,
                "as_completed": lambda: anext(flowno.as_completed([ended])),
                "as_completed of nothing": lambda: steps(flowno.as_completed([])),
                "until_empty": lambda: steps(flowno.AsyncQueue[int]().until_empty()),
                "azip": lambda: steps(flowno.azip()),
            }
            await check_it_gives_way(operations[what])
            if reader is not None:
                await reader.cancel()

    flowno.run(root())


@pytest.mark.parametrize("busy", ["give way", "spawn", "join", "send and receive", "time limits"])
def test_timers_sockets_cancellations_and_other_threads_are_served_however_busy_the_tasks_are(busy: str) -> None:
    """Within a few turns, by tasks that are ready again whenever it is their turn."""

    async def once() -> None:
        if busy == "give way":
            await sleep(0)
        elif busy == "spawn":
            await spawn(value(1))
        elif busy == "join":
            await (await spawn(value(1))).join()
        elif busy == "time limits":
            with move_on_after(0):
                await sleep(1)
        else:
            with pair() as (one, other):
                await one.sendAll(b"x")
                await other.recv(1)

    async def always() -> None:
        while not done.is_set():
            await once()

    async def root() -> None:
        called = threading.Event()

        async def call() -> None:
            called.set()

        with pair() as (one, other):
            busy_tasks = [await spawn(always()) for _ in range(3)]
            reader, sleeper = await spawn(one.recv(1)), await spawn(sleep(0.001))
            victim = await spawn(sleep(FOREVER))
            thread = threading.Thread(target=lambda: loop.create_task(call()))
            thread.start()
            thread.join()
            await other.sendAll(b"x")
            victim.cancel()
            start = loop.clock()
            while loop.clock() < start + 0.001:
                pass
            for _ in range(10):
                await sleep(0)
            done.set()
            assert [reader.is_finished, sleeper.is_finished, victim.is_cancelled, called.is_set()] == [True] * 4
            for task in busy_tasks:
                await task.join()

    done = threading.Event()
    with EventLoop() as loop:
        loop.run_until_complete(root(), join=True)


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


# ---------------------------------------------------------------------------------------------------------------- steps


@pytest.mark.not_in_debug_mode(reason="somebody watches already")
def test_whoever_watches_the_steps_of_a_loop_runs_each_of_them_until_it_is_taken_back() -> None:
    log: list[str] = []

    def watch(name: str) -> Any:
        def wrapper(task: Any, run: Any, method: Any, argument: Any) -> Any:
            log.append(f"{name}: {method.__name__}")
            try:
                return run(method, argument)
            finally:
                log.append(f"{name}: end")

        return wrapper

    async def child() -> None:
        await sleep(0)

    async def root() -> None:
        loop = current_event_loop()
        assert loop is not None
        outer, inner = watch("outer"), watch("inner")
        loop.add_step_wrapper(inner)
        loop.add_step_wrapper(outer)
        await sleep(0)
        assert log == ["outer: send", "inner: send"]
        loop.remove_step_wrapper(outer)
        log.clear()
        await sleep(0)
        assert log == ["inner: end", "outer: end", "inner: send"]
        task = await spawn(sleep(FOREVER))
        log.clear()
        await task.cancel()
        assert log == ["inner: end", "inner: throw", "inner: end", "inner: send"]
        loop.remove_step_wrapper(inner)
        log.clear()
        await (await spawn(child())).join()
        assert log == ["inner: end"]  # of the step in which it was taken back

    flowno.run(root())
