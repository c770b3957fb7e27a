"""A snapshot says what a loop does, whoever asks and whatever the loop is at; and it changes nothing."""

import signal
import socket as system_socket
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import flowno
from flowno import (
    AsyncQueue,
    AsyncSetQueue,
    Barrier,
    CapacityLimiter,
    Condition,
    Event,
    EventLoop,
    Lock,
    Semaphore,
    SocketHandle,
    TaskGroup,
    TaskHandle,
    current_event_loop,
    open_signal_receiver,
    run_in_thread,
    sleep,
    sleep_forever,
    spawn,
    timeout,
    wait_readable,
    wait_writable,
)
from flowno.core.event_loop.commands import Command
from flowno.core.event_loop.snapshots import LoopSnapshot, TaskSnapshot
from flowno.core.event_loop.words import address_in_words, peer_in_words
from tests.support.garbage import no_collections
from tests.support.loopback import fill
from tests.support.tasks import FOREVER

pytestmark = pytest.mark.usefixtures("backend")


def here() -> LoopSnapshot:
    loop = current_event_loop()
    assert loop is not None
    return loop.snapshot()


def named(name: str, snapshot: LoopSnapshot) -> TaskSnapshot:
    (task,) = [task for task in snapshot.tasks if task.name.rpartition(".")[2] == name]
    return task


# ---------------------------------------------------------------------------------------------- what a task waits for

Wait = tuple[Awaitable[Any], str]


@asynccontextmanager
async def sockets() -> AsyncIterator[tuple[SocketHandle, SocketHandle]]:
    """A connection over TCP: Unix sockets have no addresses to show."""
    with system_socket.create_server(("127.0.0.1", 0)) as server:
        near = SocketHandle(system_socket.create_connection(server.getsockname()))
        far = SocketHandle(server.accept()[0])
    with near, far:
        yield near, far


@asynccontextmanager
async def lock() -> AsyncIterator[Wait]:
    held = Lock()
    current_task_handle().name = "its owner"
    async with held:
        yield held.acquire(), "a lock that its owner has (1 waiting)"


@asynccontextmanager
async def condition() -> AsyncIterator[Wait]:
    waited = Condition()

    async def wait() -> None:
        async with waited:
            await waited.wait()

    yield wait(), "a condition to be notified (1 waiting)"


@asynccontextmanager
async def event() -> AsyncIterator[Wait]:
    yield Event().wait(), "an event (1 waiting)"


@asynccontextmanager
async def semaphore() -> AsyncIterator[Wait]:
    yield Semaphore(0).acquire(), "a permit of a semaphore (1 waiting)"


@asynccontextmanager
async def barrier() -> AsyncIterator[Wait]:
    yield Barrier(3).wait(), "the others at a barrier (1 of 3 are there)"


@asynccontextmanager
async def limiter() -> AsyncIterator[Wait]:
    limited = CapacityLimiter(1)
    async with limited:
        yield limited.acquire(), "a token of a limiter (1 of 1 borrowed, 1 waiting)"


@asynccontextmanager
async def item() -> AsyncIterator[Wait]:
    queue: AsyncQueue[int] = AsyncQueue()
    yield queue.get(), "an item in an AsyncQueue (1 waiting)"


@asynccontextmanager
async def peek() -> AsyncIterator[Wait]:
    queue: AsyncSetQueue[int] = AsyncSetQueue()
    yield queue.peek(), "an item in an AsyncSetQueue (1 waiting)"


@asynccontextmanager
async def room() -> AsyncIterator[Wait]:
    queue: AsyncQueue[int] = AsyncQueue(1)
    await queue.put(1)
    yield queue.put(2), "room in an AsyncQueue (1 waiting)"


@asynccontextmanager
async def for_ever() -> AsyncIterator[Wait]:
    yield sleep_forever(), "its cancellation, as it sleeps for ever"


@asynccontextmanager
async def join() -> AsyncIterator[Wait]:
    task = await spawn(sleep(FOREVER), name="the other")
    yield task.join(), "the end of the other"
    await task.cancel()


@asynccontextmanager
async def cancel() -> AsyncIterator[Wait]:
    end = Event()

    async def clean_up_for_long() -> None:
        try:
            await sleep(FOREVER)
        finally:
            await end.wait()

    task = await spawn(clean_up_for_long(), name="the other")

    async def cancel_it() -> None:
        await task.cancel()

    yield cancel_it(), "the end of the other, which it has cancelled"
    end.set()


@asynccontextmanager
async def group() -> AsyncIterator[Wait]:
    async def wait() -> None:
        async with TaskGroup() as group:
            await group.spawn(sleep(FOREVER))

    yield wait(), "the end of 1 task of its group"


@asynccontextmanager
async def thread() -> AsyncIterator[Wait]:
    end = threading.Event()

    def in_thread() -> None:
        end.wait(10)

    yield run_in_thread(in_thread, abandon_on_cancel=True), "a thread that runs thread.<locals>.in_thread"
    end.set()


@asynccontextmanager
async def receive() -> AsyncIterator[Wait]:
    async with sockets() as (near, _):
        host, port = near.getpeername()
        yield near.recv(1), f"data from {host}:{port} on fd {near.fileno()}"


@asynccontextmanager
async def send() -> AsyncIterator[Wait]:
    async with sockets() as (near, _):
        host, port = near.getpeername()
        yield near.sendAll(bytes(1 << 24)), f"room to send to {host}:{port} on fd {near.fileno()}"


@asynccontextmanager
async def accept() -> AsyncIterator[Wait]:
    with flowno.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.accept(), f"a connection to 127.0.0.1:{server.getsockname()[1]} on fd {server.fileno()}"


@asynccontextmanager
async def acceptable() -> AsyncIterator[Wait]:
    with flowno.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        words = f"a connection to 127.0.0.1:{server.getsockname()[1]} on fd {server.fileno()}"
        yield flowno.wait_readable(server), words


@asynccontextmanager
async def datagram() -> AsyncIterator[Wait]:
    with flowno.socket(type=system_socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        yield receiver.recv(1), f"data at 127.0.0.1:{receiver.getsockname()[1]} on fd {receiver.fileno()}"


@asynccontextmanager
async def readable() -> AsyncIterator[Wait]:
    async with sockets() as (near, _):
        host, port = near.getpeername()
        yield wait_readable(near.socket), f"something to read from {host}:{port} on fd {near.fileno()}"


@asynccontextmanager
async def writable() -> AsyncIterator[Wait]:
    async with sockets() as (near, _):
        fill(near)
        yield wait_writable(near.socket), f"room to write on fd {near.fileno()}"


class Silent(Command):
    """A command of somebody else's, that nobody has words for."""

    __slots__ = ()


WAITS = [
    accept, acceptable, barrier, cancel, condition, datagram, event, for_ever, group, item, join, limiter, lock, peek,
    readable, receive, room, semaphore, send, thread, writable,
]  # fmt: skip


@pytest.mark.not_under_faults(reason="it counts on what the socket takes and gives at once")
@pytest.mark.parametrize("wait", WAITS, ids=lambda wait: wait.__name__)
def test_what_a_task_waits_for_is_said_in_words(wait: Callable[[], Any]) -> None:
    async def main() -> None:
        async with wait() as (awaitable, words):
            task = await spawn(awaitable, name="waiter")
            await sleep(0)
            taken = named("waiter", here())
            assert (taken.state, taken.waits_for) == ("waiting", words)
            assert taken.command == type(task.waiting_for).__name__
            task.cancel()

    flowno.run(main())


def test_a_sleeping_task_says_how_much_time_is_left() -> None:
    async def main() -> str | None:
        await spawn(sleep(100), name="sleeper")
        return named("sleeper", here()).waits_for

    words = flowno.run(main())
    assert words is not None
    assert words.startswith(("a timer, 99.", "a timer, 100."))
    assert words.endswith(" s left of 100 s")


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no SIGUSR1")
def test_a_task_that_waits_for_signals_says_for_which() -> None:
    async def receive_one() -> None:
        with open_signal_receiver(signal.SIGUSR1, signal.SIGTERM) as signals:
            await anext(signals)

    async def main() -> str | None:
        await spawn(receive_one(), name="receiver")
        return named("receiver", here()).waits_for

    assert flowno.run(main()) == "a signal: SIGUSR1, SIGTERM"


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80"),
        (("::1", 80, 0, 0), "[::1]:80"),
        ("/tmp/sock", "/tmp/sock"),
        (b"/tmp/sock", "/tmp/sock"),
        ("\0name", "@name"),
        (b"\0name", "@name"),
        ("", ""),
        (b"", ""),
        (None, ""),
    ],
)
def test_an_address_reads_the_same_in_whatever_form_the_system_gives_it(address: Any, text: str) -> None:
    assert address_in_words(address) == text
    assert peer_in_words(address) == (text or "a local client")


def test_a_wait_that_nobody_has_words_for_is_named_by_its_command() -> None:
    async def main() -> str | None:
        task = await spawn(sleep(FOREVER), name="foreign")
        command, task._waiting = task._waiting, Silent()
        words = named("foreign", here()).waits_for
        task._waiting = command
        return words

    assert flowno.run(main()) == "the answer to a Silent"


# ----------------------------------------------------------------------------------------------- where it is, and whose


def test_the_stack_leads_to_the_line_that_waits_and_not_to_who_asks() -> None:
    async def inner(event: Event) -> None:
        await event.wait()

    async def outer(event: Event) -> None:
        await inner(event)

    async def main() -> LoopSnapshot:
        await spawn(outer(Event()), name="waiter")
        return here()

    snapshot = flowno.run(main())
    functions = [frame.function.rpartition(".")[2] for frame in named("waiter", snapshot).stack]
    assert functions == ["outer", "inner", "wait"]
    first = named("waiter", snapshot).stack[0]
    assert (first.file, first.line) == (__file__, outer.__code__.co_firstlineno + 1)
    assert [frame.function for frame in named("main", snapshot).stack][-1] == "here"


def test_tasks_are_running_ready_or_waiting() -> None:
    async def main() -> dict[str, str]:
        await spawn(sleep(FOREVER), name="waits")
        current_event_loop().create_task(sleep(0), name="new")  # type: ignore[union-attr]
        return {task.name.rpartition(".")[2]: task.state for task in here().tasks}

    assert flowno.run(main()) == {"main": "running", "waits": "waiting", "new": "ready"}


def test_a_task_of_a_group_belongs_to_the_one_whose_block_it_is_in() -> None:
    async def limited() -> None:
        async with timeout(60):
            await sleep(FOREVER)

    async def main() -> LoopSnapshot:
        async with TaskGroup() as group:
            await group.spawn(limited(), name="member")
            snapshot = here()
            group.cancel_scope.cancel()
        return snapshot

    snapshot = flowno.run(main())
    assert named("member", snapshot).parent == named("main", snapshot).id


def test_a_task_that_is_joined_belongs_to_the_first_that_joins_it() -> None:
    async def main() -> LoopSnapshot:
        joined = await spawn(sleep(FOREVER), name="joined")
        await spawn(joined.join(), name="first")
        await spawn(joined.join(), name="second")
        await spawn(sleep(FOREVER), name="nobody's")
        return here()

    snapshot = flowno.run(main())
    assert named("joined", snapshot).parent == named("first", snapshot).id
    assert named("nobody's", snapshot).parent is None
    assert named("second", snapshot).holder == named("joined", snapshot).id


def test_who_waits_for_a_lock_waits_for_its_owner() -> None:
    async def main() -> tuple[int | None, int]:
        lock = Lock()
        async with lock:
            await spawn(lock.acquire(), name="waiter")
            snapshot = here()
        return named("waiter", snapshot).holder, named("main", snapshot).id

    holder, main_id = flowno.run(main())
    assert holder == main_id


def test_a_task_that_cleans_up_after_its_cancellation_is_cancelled() -> None:
    async def cleans_up(end: Event) -> None:
        try:
            await sleep(FOREVER)
        finally:
            await end.wait()

    async def main() -> bool:
        end = Event()
        task = await spawn(cleans_up(end), name="cleans up")
        assert not named("cleans up", here()).is_cancelled
        task.cancel()
        await sleep(0)
        is_cancelled = named("cleans up", here()).is_cancelled
        end.set()
        return is_cancelled

    assert flowno.run(main())


# -------------------------------------------------------------------------------------------- fds, timers and counters


def test_the_registrations_have_addresses_and_who_waits() -> None:
    async def main() -> None:
        async with sockets() as (near, _):
            task = await spawn(near.recv(1), name="reader")
            snapshot = here()
            (found,) = [each for each in snapshot.registrations if each.fd == near.fileno()]
            assert (found.armed, found.reader, found.writer) == (("read",), named("reader", snapshot).id, None)
            assert found.name == f"127.0.0.1:{near.getsockname()[1]}"
            assert found.peer == f"127.0.0.1:{near.getpeername()[1]}"
            await task.cancel()

    flowno.run(main())


def test_the_timers_come_in_their_order_and_say_whom_they_are_for() -> None:
    async def limited() -> None:
        async with timeout(50):
            await sleep(FOREVER)

    async def main() -> LoopSnapshot:
        await spawn(sleep(100), name="sleeper")
        await spawn(limited(), name="limited")
        return here()

    snapshot = flowno.run(main())
    first, second = snapshot.timers
    assert (first.purpose, second.purpose) == ("ends a time limit of limited", "wakes sleeper")
    assert (first.task, second.task) == (named("limited", snapshot).id, named("sleeper", snapshot).id)
    assert 0 < first.seconds_left <= 50 < second.seconds_left <= 100


def test_the_counters_count() -> None:
    async def main() -> LoopSnapshot:
        await spawn(sleep(100))
        await spawn(sleep(FOREVER))
        current_event_loop().create_task(sleep(0))  # type: ignore[union-attr]
        return here()

    counters = flowno.run(main()).counters
    assert (counters.tasks, counters.waiting, counters.ready, counters.timers) == (4, 2, 1, 1)
    assert (counters.fds, counters.calls, counters.threads) == (0, 0, 0)


# ------------------------------------------------------------------------------------------------------- from anywhere


@pytest.mark.not_under_faults(reason="it looks at the selector of the loop")
def test_a_loop_that_does_not_run_has_a_snapshot_also_when_it_is_closed(backend: str) -> None:
    with EventLoop() as loop:
        loop.create_task(sleep(FOREVER), name="to start")
        snapshot = loop.snapshot()
        assert (snapshot.thread, snapshot.is_asleep) == (None, False)
        assert [(task.name, task.state) for task in snapshot.tasks] == [("to start", "ready")]
        assert snapshot.selector == backend
    assert loop.snapshot().tasks == ()


def test_another_thread_sees_where_a_loop_is_stuck() -> None:
    stuck, go_on = threading.Event(), threading.Event()
    seen: list[LoopSnapshot] = []

    def block() -> None:
        stuck.set()
        go_on.wait(20)

    async def blocks() -> None:
        block()

    def look() -> None:
        stuck.wait(20)
        seen.append(loop.snapshot())
        go_on.set()

    watcher = threading.Thread(target=look)
    watcher.start()
    with EventLoop() as loop:
        loop.run_until_complete(blocks())
    watcher.join()
    (task,) = seen[0].tasks
    assert task.state == "running"
    assert "block" in [frame.function.rpartition(".")[2] for frame in task.stack]
    assert seen[0].thread == threading.main_thread().name


def test_another_thread_looks_all_the_time_while_tasks_come_and_go() -> None:
    """Nothing is raised, and no task that has ended is shown, nor kept."""
    over = threading.Event()
    errors: list[BaseException] = []
    looks: list[int] = []

    def look() -> None:
        while not over.is_set():
            try:
                looks.append(len(loop.snapshot().tasks))
            except BaseException as error:
                errors.append(error)

    async def child(queue: AsyncQueue[int]) -> None:
        async with timeout(60):
            await queue.get()

    async def main() -> None:
        queue: AsyncQueue[int] = AsyncQueue()
        while len(looks) < 20:
            async with TaskGroup() as group:
                for _ in range(50):
                    await group.spawn(child(queue))
                for number in range(50):
                    await queue.put(number)

    watcher = threading.Thread(target=look)
    with EventLoop() as loop:
        watcher.start()
        try:
            loop.run_until_complete(main(), join=True)
        finally:
            over.set()
            watcher.join()
    assert errors == []


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="this Python does not count references")
@pytest.mark.parametrize("ask", [here, lambda: current_task_handle().get_stack()], ids=["snapshot", "get_stack"])
def test_what_was_looked_at_is_freed_by_its_last_reference(ask: Callable[[], Any]) -> None:
    class Thing:
        pass

    async def main() -> weakref.ref[Thing]:
        thing = Thing()
        ask()
        return weakref.ref(thing)

    with no_collections():
        assert flowno.run(main())() is None


def current_task_handle() -> TaskHandle[Any]:
    loop = current_event_loop()
    assert loop is not None
    assert loop.running_task is not None
    return loop.running_task


@pytest.mark.not_watched(reason="who watches asks a coroutine for its code, as a snapshot does not")
def test_a_task_whose_name_and_coroutine_are_of_the_programs_making_is_no_error() -> None:
    class Odd:
        """A coroutine that tells nothing of itself."""

        def __init__(self) -> None:
            self._inner = sleep(FOREVER)

        def send(self, value: Any) -> Any:
            return self._inner.send(value)  # type: ignore[union-attr]

        def throw(self, *args: Any) -> Any:
            return self._inner.throw(*args)  # type: ignore[union-attr]

        def close(self) -> None:
            self._inner.close()  # type: ignore[union-attr]

        def __await__(self) -> Any:
            return self

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(f"it has no {name}")

    async def main() -> LoopSnapshot:
        await spawn(Odd(), name="named")
        await spawn(Odd())
        return here()

    snapshot = flowno.run(main())
    assert [(task.name, task.stack) for task in snapshot.tasks][1:] == [("named", ()), ("Odd", ())]
