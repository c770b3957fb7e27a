"""Other threads: they start and cancel tasks, call functions, close handles, and no wake-up is lost."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pytest

import flowno
from flowno import ClosedResourceError, EventLoop, EventLoopError, Semaphore, TaskCancelled, TaskHandle, sleep, spawn
from flowno.core.event_loop import synchronization
from flowno.core.event_loop.inbox import Inbox
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


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
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


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
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


# --- call_soon_threadsafe ---------------------------------------------------------------------------------------------


def test_a_function_called_from_another_thread_wakes_the_loop_and_runs_in_its_thread() -> None:
    seen: list[object] = []
    done = threading.Event()

    def call(*args: object) -> None:
        seen.append((args, threading.get_ident(), flowno.current_event_loop()))
        done.set()

    def run() -> None:
        seen.append(threading.get_ident())
        loop.run_until_complete(root(), join=True)

    async def root() -> None:
        event = flowno.Event()
        events.append(event)
        started.set()
        await event.wait()

    started = threading.Event()
    events: list[flowno.Event] = []
    with EventLoop() as loop:
        thread = threading.Thread(target=run)
        thread.start()
        assert started.wait(NET)
        loop.call_soon_threadsafe(call, 1, "two")
        assert done.wait(NET)
        loop.call_soon_threadsafe(events[0].set)
        thread.join(NET)
    assert seen[1] == ((1, "two"), seen[0], loop)


def test_calls_are_made_in_their_order_before_the_next_batch() -> None:
    async def root() -> None:
        loop = flowno.current_event_loop()
        assert loop is not None
        for number in range(3):
            loop.call_soon_threadsafe(seen.append, number)
        assert seen == []
        await sleep(0)
        assert seen == [0, 1, 2]

    seen: list[int] = []
    flowno.run(root())


def test_a_call_that_makes_another_does_not_keep_the_tasks_waiting() -> None:
    async def root() -> None:
        def again() -> None:
            seen.append(1)
            loop.call_soon_threadsafe(again)

        again()
        for _ in range(5):
            await sleep(0)

    seen: list[int] = []
    with EventLoop() as loop:
        loop.run_until_complete(root(), join=True, wait_for_spawned_tasks=False)
        assert 5 <= len(seen) <= 7
        loop.inbox.items.clear()


def test_a_call_made_before_the_run_is_made_with_it() -> None:
    seen: list[int] = []
    with EventLoop() as loop:
        loop.call_soon_threadsafe(seen.append, 1)
        assert seen == []
        loop.run_until_complete(sleep(0))
        assert seen == [1]


def test_a_call_has_a_copy_of_the_context_of_its_caller() -> None:
    variable = ContextVar("variable", default="nothing")

    def call() -> None:
        seen.append(variable.get())
        variable.set("of the call")

    seen: list[str] = []
    with EventLoop() as loop:
        variable.set("of the caller")
        loop.call_soon_threadsafe(call)
        variable.set("changed since")
        loop.call_soon_threadsafe(call)
        loop.run_until_complete(sleep(0))
        assert seen == ["of the caller", "changed since"]
        assert variable.get() == "changed since"


def test_an_error_of_a_call_is_logged_and_the_loop_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def call() -> None:
        raise error

    async def root() -> str:
        loop.call_soon_threadsafe(call)
        loop.call_soon_threadsafe(seen.append, 1)
        await sleep(0)
        return "root"

    error = ValueError("of a call")
    seen: list[int] = []
    with EventLoop() as loop:
        assert loop.run_until_complete(root(), join=True) == "root"
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert "call_soon_threadsafe" in record.getMessage()
    assert seen == [1]


def test_an_interrupt_in_a_call_ends_the_run() -> None:
    def call() -> None:
        raise KeyboardInterrupt

    async def root() -> None:
        loop.call_soon_threadsafe(call)
        await sleep(FOREVER)

    with EventLoop() as loop, pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(root())


@pytest.mark.skipif(os.name != "posix", reason="os.kill ends the process there")
def test_a_signal_handler_can_call_a_function_while_the_loop_waits() -> None:
    async def root() -> None:
        event = flowno.Event()
        loop = flowno.current_event_loop()
        assert loop is not None
        before = signal.signal(signal.SIGUSR1, lambda *_: loop.call_soon_threadsafe(event.set))
        timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1))
        try:
            timer.start()
            await event.wait()
        finally:
            timer.join()
            signal.signal(signal.SIGUSR1, before)

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it counts calls")
def test_a_call_that_comes_between_the_last_look_and_the_wait_is_made_at_once() -> None:
    """It is posted by another thread just before the selector is asked, for as long as it takes."""

    async def root() -> None:
        event = flowno.Event()
        await sleep(0)
        counting.before_select = lambda: post(event)
        await event.wait()

    def post(event: flowno.Event) -> None:
        counting.before_select = bool
        asked.append(counting.timeouts[-1])
        in_threads(1, lambda _: loop.call_soon_threadsafe(event.set))

    asked: list[float | None] = []
    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(root(), join=True)
    assert asked != [0]
    assert counting.calls["select"] < 20


def test_a_call_that_comes_before_the_last_look_keeps_the_loop_from_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is posted just before the loop says that it sleeps, so nobody wakes it."""

    async def root() -> None:
        event = flowno.Event()
        await sleep(0)

        def nothing_can_happen(deadline: float | None) -> bool:
            monkeypatch.undo()
            in_threads(1, lambda _: loop.call_soon_threadsafe(event.set))
            return False

        monkeypatch.setattr(loop, "_nothing_can_happen", nothing_can_happen)
        await event.wait()

    with EventLoop() as loop:
        loop.run_until_complete(root(), join=True)


def test_no_call_is_lost_while_the_loop_has_nothing_else_to_do() -> None:
    number, each = 4, 500
    seen: list[tuple[int, int]] = []

    def work(index: int) -> None:
        for count in range(each):
            done = threading.Event()
            loop.call_soon_threadsafe(lambda count=count, done=done: (seen.append((index, count)), done.set()))
            if count % 5 == 0:
                assert done.wait(NET)  # so that the loop goes to sleep in between

    with EventLoop() as loop, running(loop):
        in_threads(number, work)
    for index in range(number):
        assert [count for i, count in seen if i == index] == list(range(each))


@pytest.mark.parametrize("function", [None, "text", sleep(0)], ids=["None", "str", "coroutine"])
def test_only_a_function_can_be_called(function: Any) -> None:
    with EventLoop() as loop, pytest.raises(TypeError, match="takes a function"):
        loop.call_soon_threadsafe(function)


# --- after the end ----------------------------------------------------------------------------------------------------


def test_a_closed_loop_takes_neither_calls_nor_tasks() -> None:
    loop = EventLoop()
    loop.close()
    with pytest.raises(EventLoopError, match="cannot call a function: <EventLoop .* closed>"):
        loop.call_soon_threadsafe(bool)
    coroutine = sleep(0)
    with pytest.raises(EventLoopError, match="cannot start a task: <EventLoop .* closed>"):
        loop.create_task(coroutine)


@pytest.mark.parametrize("what", ["task", "call"])
def test_a_loop_that_is_closed_at_this_moment_says_so(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the caller has looked whether it is open, and before what it posts is there."""

    async def task() -> None:
        seen.append("run")

    def post_late(inbox: Inbox, *args: Any) -> None:
        monkeypatch.undo()
        loop.close()
        inbox.post(*args)

    seen: list[str] = []
    loop = EventLoop()
    monkeypatch.setattr(Inbox, "post", post_late)
    with pytest.raises(EventLoopError, match="closed"):
        loop.create_task(task()) if what == "task" else loop.call_soon_threadsafe(seen.append, "called")
    assert seen == []


def test_a_task_that_comes_too_late_for_the_end_is_closed_and_known_to_be() -> None:
    """Each clean-up starts another task, in another thread; at some time the end is final."""
    handles: list[TaskHandle[None]] = []

    async def again() -> None:
        try:
            await sleep(FOREVER)
        finally:
            in_threads(1, lambda _: handles.append(loop.create_task(again())))

    with EventLoop() as loop:
        handles.append(loop.create_task(again()))
    assert len(handles) > 2
    assert all(handle.is_cancelled for handle in handles)
    assert not loop.has_living_tasks()


# ------------------------------------------------------------------------------------------ a loop that begins, or ends


def test_what_a_thread_asks_of_a_loop_that_rests_is_done_before_that_begins_to_run() -> None:
    log: list[str] = []
    inside = threading.Event()

    def acts(_: None) -> None:
        inside.set()
        began.wait(0.05)  # which does not come: the loop waits for this
        log.append("acted")

    began = threading.Event()

    async def root() -> None:
        began.set()
        log.append("ran")

    with EventLoop() as loop:
        thread = threading.Thread(target=loop.inbox.act, args=(acts, None))
        thread.start()
        inside.wait(20)
        loop.run_until_complete(root(), join=True)
        thread.join()
    assert log == ["acted", "ran"]


def test_a_task_from_another_thread_is_never_started_by_that_thread() -> None:
    """It may see a loop that rests, and start the task in one that runs by then."""
    with EventLoop() as loop:
        handles: list[TaskHandle[None]] = []
        thread = threading.Thread(target=lambda: handles.append(loop.create_task(asyncless())))
        thread.start()
        thread.join()
        assert not loop.tasks
        assert loop.has_living_tasks()
        loop.run_until_complete(sleep(0))
        assert handles[0].is_finished


async def asyncless() -> None:
    pass


def test_what_was_posted_and_is_taken_back_while_the_calls_are_made_is_not_missed() -> None:
    inbox = Inbox()
    calls: list[str] = []
    inbox.post(lambda _: calls.append(str(inbox.withdraw(calls.append, "taken back"))), None)
    inbox.post(calls.append, "taken back")
    inbox.run()
    assert calls == ["True"]
    assert not inbox.withdraw(calls.append, "taken back")


# ------------------------------------------------------------------------------------------------------ signal handlers


def test_a_cancellation_that_comes_as_a_task_goes_into_its_wait_is_not_lost() -> None:
    class Loop(EventLoop):
        """A signal handler runs while the loop carries out a command."""

        def _sleep(self, task: TaskHandle[Any], command: Any) -> None:
            if command.seconds == FOREVER:
                task.cancel()
            super()._sleep(task, command)

    async def root() -> None:
        waiting = await spawn(sleep(FOREVER))
        with pytest.raises(TaskCancelled):
            await waiting.join()

    with Loop() as loop:
        loop.run_until_complete(root(), join=True)


def test_a_cancellation_that_comes_as_a_sleeper_is_woken_does_not_wake_it_twice() -> None:
    steps: list[str] = []

    class Loop(EventLoop):
        def _wake_sleeper(self, task: TaskHandle[Any]) -> None:
            task.cancel()
            super()._wake_sleeper(task)

    async def sleeper() -> None:
        await sleep(0.001)
        steps.append("slept")
        try:
            await sleep(0)
        except TaskCancelled:
            steps.append("cancelled")
            raise

    async def root() -> None:
        task = await spawn(sleeper())
        with pytest.raises(TaskCancelled):
            await task.join()

    with Loop() as loop:
        loop.run_until_complete(root(), join=True)
    assert steps == ["slept", "cancelled"]


def test_a_cancellation_that_comes_as_a_permit_is_handed_over_does_not_lose_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = synchronization.take_first

    def take_first(waiters: Any) -> Any:
        task = original(waiters)
        task.cancel()  # by a signal handler, just then
        return task

    async def worker(semaphore: Semaphore) -> str:
        await semaphore.acquire()
        return "has it"

    async def root() -> None:
        semaphore = Semaphore(0)
        task = await spawn(worker(semaphore))
        monkeypatch.setattr(synchronization, "take_first", take_first)
        semaphore.release()
        monkeypatch.undo()
        assert await task.join() == "has it"
        assert semaphore.value == 0

    flowno.run(root())


def test_a_loop_gives_back_what_it_holds_whatever_posted_calls_raise(caplog: pytest.LogCaptureFixture) -> None:
    def leave() -> None:
        raise SystemExit(7)

    async def root() -> None:
        loop.call_soon_threadsafe(leave)
        raise KeyboardInterrupt

    selector = CountingSelector()
    loop = EventLoop(selector)
    with pytest.raises(KeyboardInterrupt):  # the first error counts
        loop.run_until_complete(root(), join=True)
    loop.call_soon_threadsafe(leave)
    loop.call_soon_threadsafe(leave)
    try:
        loop.close()
    except SystemExit:
        pass
    with EventLoop(selector) as other:  # nobody holds it any more
        other.run_until_complete(sleep(0))
    selector.close()
