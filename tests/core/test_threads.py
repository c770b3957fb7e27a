"""Other threads: they start and cancel tasks, close handles, and no wake-up is lost."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import flowno
from flowno import ClosedResourceError, EventLoop, EventLoopError, TaskCancelled, TaskHandle, sleep, spawn
from tests.support.counting_selector import CountingSelector
from tests.support.loopback import pair
from tests.support.tasks import FOREVER

pytestmark = pytest.mark.usefixtures("backend")

NET = 20.0  # seconds; a bound for what should not take any


@contextmanager
def running(loop: EventLoop) -> Iterator[Callable[[], object]]:
    """A loop that runs in a thread of its own until the end, or until what is yielded here is called."""

    async def root() -> None:
        stop.append(flowno.current_task())
        started.set()
        try:
            await sleep(1_000_000)
        except TaskCancelled:
            pass

    stop: list[Any] = []
    started = threading.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(root(),))
    thread.start()
    assert started.wait(NET)

    def end() -> None:
        loop.cancel(stop[0])
        thread.join(NET)
        assert not thread.is_alive()

    try:
        yield end
    finally:
        end()


def in_threads(number: int, work: Callable[[int], object]) -> None:
    threads = [threading.Thread(target=work, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(NET)
    assert not any(thread.is_alive() for thread in threads)


def test_a_task_created_from_another_thread_wakes_the_loop() -> None:
    done = threading.Event()

    async def task() -> str:
        done.set()
        return "value"

    with EventLoop() as loop, running(loop):
        handle = loop.create_task(task())
        assert done.wait(NET)
    assert handle.is_finished


def test_a_loop_that_waits_without_a_limit_is_woken_too() -> None:
    """No timer, no readiness: just a reader that hears nothing until the other thread's task writes."""

    async def root() -> bytes:
        with pair() as (one, other):
            threads.append(threading.Thread(target=lambda: loop.create_task(other.sendAll(b"data"))))
            counting.before_select = start_once
            return await one.recv(9)

    def start_once() -> None:
        counting.before_select = bool
        threads[0].start()

    threads: list[threading.Thread] = []
    with CountingSelector() as counting, EventLoop(counting) as loop:
        assert loop.run_until_complete(root(), join=True) == b"data"
        threads[0].join(NET)


def test_a_task_created_before_the_run_starts_with_it() -> None:
    async def task() -> str:
        return "value"

    with EventLoop() as loop:
        assert not loop.has_living_tasks()
        handle = loop.create_task(task())
        assert loop.has_living_tasks()
        loop.run_until_complete(sleep(0))
        assert handle.is_finished
        assert not loop.has_living_tasks()


def test_tasks_of_many_threads_all_run() -> None:
    number, each = 8, 250
    ran: list[tuple[int, int]] = []
    all_ran = threading.Event()

    async def task(index: int, count: int) -> None:
        ran.append((index, count))
        if len(ran) == number * each:
            all_ran.set()

    def work(index: int) -> None:
        for count in range(each):
            loop.create_task(task(index, count))

    with EventLoop() as loop, running(loop):
        in_threads(number, work)
        assert all_ran.wait(NET)
    assert len(set(ran)) == number * each
    for index in range(number):
        assert [count for i, count in ran if i == index] == list(range(each))  # each thread's own in its order


def test_no_wake_up_is_lost_when_each_waits_for_the_other() -> None:
    """One task at a time, so that the loop goes to sleep before each of them."""

    async def task(done: threading.Event) -> None:
        done.set()

    def work(_: int) -> None:
        for _ in range(200):
            done = threading.Event()
            loop.create_task(task(done))
            assert done.wait(NET)

    with EventLoop() as loop, running(loop):
        in_threads(3, work)


def test_a_flood_of_tasks_does_not_wake_the_loop_for_each() -> None:
    number = 1000

    async def task() -> None:
        counted.append(1)
        if len(counted) == number:
            done.set()

    counted: list[int] = []
    done = threading.Event()
    with CountingSelector() as counting, EventLoop(counting) as loop, running(loop):
        before = counting.calls["select"]
        for _ in range(number):
            loop.create_task(task())
        assert done.wait(NET)
        assert counting.calls["select"] - before <= number + 2
    assert counting.masks == {}


def test_a_wake_up_is_taken_in_and_does_not_spin() -> None:
    async def task() -> None:
        done.set()

    done = threading.Event()
    with CountingSelector() as counting, EventLoop(counting) as loop, running(loop):
        for _ in range(3):
            done.clear()
            loop.create_task(task())
            assert done.wait(NET)
        before = counting.calls["select"]
        threading.Event().wait(0.1)
        assert counting.calls["select"] - before < 10


@pytest.mark.parametrize("how", ["handle", "loop"])
def test_a_task_is_cancelled_from_another_thread(how: str) -> None:
    cancelled = threading.Event()
    started = threading.Event()

    async def task() -> None:
        started.set()
        try:
            await sleep(FOREVER)
        finally:
            cancelled.set()

    with EventLoop() as loop, running(loop):
        handle = loop.create_task(task())
        assert started.wait(NET)
        if how == "handle":
            handle.cancel()
        else:
            assert loop.cancel(handle.raw_task) is True
        assert cancelled.wait(NET)
    assert handle.is_cancelled


def test_a_task_that_ends_the_run_from_another_thread() -> None:
    async def leave() -> None:
        await flowno.exit("left")

    def run() -> None:
        results.append(loop.run_until_complete(root(), join=True))

    async def root() -> None:
        started.set()
        await sleep(FOREVER)

    results: list[Any] = []
    started = threading.Event()
    with EventLoop() as loop:
        thread = threading.Thread(target=run)
        thread.start()
        assert started.wait(NET)
        loop.create_task(leave())
        thread.join(NET)
    assert results == ["left"]


def test_a_handle_closed_from_another_thread_raises_in_its_waiter() -> None:
    outcomes: list[object] = []
    waits, ended = threading.Event(), threading.Event()

    async def task(handle: flowno.SocketHandle) -> None:
        waits.set()
        try:
            outcomes.append(await handle.recv(1))
        except ClosedResourceError as error:
            outcomes.append(type(error))
        ended.set()

    with EventLoop() as loop, pair() as (one, other), running(loop):
        loop.create_task(task(one))
        assert waits.wait(NET)
        one.close()
        assert ended.wait(NET)
        assert outcomes == [ClosedResourceError]
        one.close()
        other.socket.setblocking(True)
        assert other.socket.recv(1) == b""


def test_a_handle_that_a_loop_in_another_thread_has_used_is_owned_by_who_uses_it_now() -> None:
    """The other loop lives on, but nobody waits there."""
    used = threading.Event()

    async def use(handle: flowno.SocketHandle) -> None:
        await handle.sendAll(b"x")
        used.set()

    async def root(one: flowno.SocketHandle, other: flowno.SocketHandle) -> None:
        assert await other.recv(9) == b"x"
        reader = await spawn(one.recv(9))
        other.socket.send(b"data")
        with pytest.raises(flowno.BusyResourceError):
            await one.recv(9)
        assert await reader.join() == b"data"

    with EventLoop() as loop, pair() as (one, other), running(loop):
        loop.create_task(use(one))
        assert used.wait(NET)
        flowno.run(root(one, other))


def test_a_loop_that_runs_elsewhere_refuses_a_second_run_and_to_close() -> None:
    with EventLoop() as loop, running(loop):
        coroutine = sleep(0)
        with pytest.raises(EventLoopError, match="runs already"):
            loop.run_until_complete(coroutine)
        with pytest.raises(EventLoopError, match="running"):
            loop.close()
        assert flowno.current_event_loop() is None
        assert flowno.current_task() is None
        assert flowno.run(sleep(0)) == 0.0  # another loop in this thread is fine


def test_a_task_created_after_the_run_waits_for_the_next() -> None:
    ran: list[str] = []

    async def task() -> None:
        ran.append("ran")

    with EventLoop() as loop:
        loop.run_until_complete(sleep(0))
        in_threads(1, lambda _: loop.create_task(task()))
        assert ran == []
        loop.run_until_complete(sleep(0))
        assert ran == ["ran"]


def test_a_task_that_never_got_to_run_is_cleaned_up_when_its_loop_is_closed() -> None:
    async def task() -> None:
        await sleep(FOREVER)

    with EventLoop() as loop:
        handle = loop.create_task(task())  # a RuntimeWarning "never awaited" would fail the test
    assert handle.is_cancelled
    assert not loop.has_living_tasks()


def test_loops_of_many_threads_are_independent() -> None:
    results: dict[int, list[int]] = {}

    async def count(number: int) -> list[int]:
        async def child() -> int:
            await sleep(0)
            return number

        assert flowno.current_event_loop() is loops[number]
        tasks: list[TaskHandle[int]] = [await spawn(child()) for _ in range(50)]
        return [await task.join() for task in tasks]

    def work(number: int) -> None:
        with EventLoop() as loop:
            loops[number] = loop
            results[number] = loop.run_until_complete(count(number), join=True)

    loops: dict[int, EventLoop] = {}
    in_threads(6, work)
    assert results == {number: [number] * 50 for number in range(6)}
    loops.clear()
