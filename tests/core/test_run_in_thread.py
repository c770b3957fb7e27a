"""run_in_thread: calls that block, made beside the loop; their outcome, their limits, and what a cancellation does."""

import gc
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from typing import Any

import pytest

import flowno
from flowno import (
    AsyncQueue,
    CapacityLimiter,
    EventLoop,
    EventLoopError,
    TaskCancelled,
    current_default_thread_limiter,
    move_on_after,
    run_in_thread,
    sleep,
    spawn,
)
from flowno.core.event_loop import threads
from tests.conftest import RunPython
from tests.support.garbage import no_collections
from tests.support.tasks import FOREVER

pytestmark = pytest.mark.usefixtures("backend")

NET = 20.0  # seconds; a bound for what should not take any


class Gate:
    """A function for a thread, that waits until it is let go on."""

    def __init__(self, outcome: object = None) -> None:
        self.outcome = outcome
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.ended = threading.Event()
        self.threads: list[threading.Thread] = []

    def __call__(self) -> Any:
        self.threads.append(threading.current_thread())
        self.begun.set()
        assert self.go_on.wait(NET)
        self.ended.set()
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    async def has_begun(self) -> None:
        while not self.begun.is_set():
            await sleep(0.001)


@contextmanager
def gate(outcome: object = None) -> Iterator[Gate]:
    made = Gate(outcome)
    try:
        yield made
    finally:
        made.go_on.set()


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("flowno worker")]


def raises(error: BaseException) -> None:
    raise error


# --- what it gives ----------------------------------------------------------------------------------------------------


def test_a_function_runs_in_another_thread_while_the_other_tasks_run() -> None:
    async def main() -> None:
        with gate("value") as blocking:
            task = await spawn(run_in_thread(blocking))
            await blocking.has_begun()
            assert not task.is_finished
            blocking.go_on.set()
            assert await task.join() == "value"
            assert blocking.threads != [threading.current_thread()]

    flowno.run(main())


def test_its_arguments_are_handed_on() -> None:
    async def main() -> None:
        assert await run_in_thread(divmod, 7, 3) == (2, 1)

    flowno.run(main())


@pytest.mark.parametrize("error", [ValueError("of a thread"), ExceptionGroup("group", [OSError()])], ids=repr)
@pytest.mark.parametrize("abandon", [False, True])
def test_its_error_is_raised_in_the_task(error: Exception, abandon: bool) -> None:
    async def main() -> None:
        with pytest.raises(type(error)) as caught:
            await run_in_thread(raises, error, abandon_on_cancel=abandon)
        assert caught.value is error
        assert caught.traceback[-1].name == "raises"

    flowno.run(main())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_what_ends_a_program_ends_the_run(error: BaseException) -> None:
    async def main() -> None:
        await run_in_thread(raises, error)

    with pytest.raises(type(error)) as caught:
        flowno.run(main())
    assert caught.value is error


@pytest.mark.parametrize("abandon", [False, True])
def test_stop_iteration_is_the_cause_of_a_runtime_error(abandon: bool) -> None:
    """A coroutine that raised it would look as if it had returned."""

    async def main() -> None:
        with pytest.raises(RuntimeError, match="next.*raised StopIteration") as caught:
            await run_in_thread(next, iter([]), abandon_on_cancel=abandon)
        assert isinstance(caught.value.__cause__, StopIteration)

    flowno.run(main())


def test_the_thread_has_a_copy_of_the_context_of_the_task() -> None:
    variable = ContextVar("variable", default="nothing")

    def work() -> str:
        seen = variable.get()
        variable.set("of the thread")
        return seen

    async def main() -> None:
        variable.set("of the task")
        assert await run_in_thread(work) == "of the task"
        assert variable.get() == "of the task"
        assert await (await spawn(run_in_thread(variable.get))).join() == "of the task"

    flowno.run(main())


class Service:
    """Is called like a coroutine function."""

    async def __call__(self) -> None:
        pass


@pytest.mark.parametrize(
    "function",
    [None, "text", sleep(0), run_in_thread, Service()],
    ids=["None", "str", "coroutine", "coroutine function", "asynchronous object"],
)
def test_only_an_ordinary_function_is_taken(function: Any) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match="function must be an ordinary function"):
            await run_in_thread(function)

    flowno.run(main())


def test_a_class_is_called_whatever_its_objects_are() -> None:
    assert isinstance(flowno.run(run_in_thread(Service)), Service)


def test_a_limiter_is_a_capacity_limiter() -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match="limiter must be a CapacityLimiter"):
            await run_in_thread(bool, limiter=3)  # type: ignore[arg-type]

    flowno.run(main())


def test_there_is_no_thread_outside_of_an_event_loop() -> None:
    coroutine = run_in_thread(bool)
    with pytest.raises(EventLoopError, match="outside of an event loop"):
        coroutine.send(None)
    with pytest.raises(EventLoopError, match="outside of an event loop"):
        current_default_thread_limiter()


def test_a_thread_that_cannot_be_started_is_an_error_of_the_task_and_keeps_no_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(threads.Worker, "start", lambda worker: raises(RuntimeError("can't start new thread")))
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await run_in_thread(bool)
        assert current_default_thread_limiter().borrowed_tokens == 0
        assert await run_in_thread(bool) is False

    flowno.run(main())


# --- its threads ------------------------------------------------------------------------------------------------------


def test_a_thread_that_is_idle_is_used_again() -> None:
    async def main() -> set[int]:
        return {await run_in_thread(threading.get_ident) for _ in range(50)}

    assert len(flowno.run(main())) == 1


def test_a_thread_says_by_its_name_what_it_runs() -> None:
    def fetch() -> str:
        return threading.current_thread().name

    async def main() -> None:
        assert "fetch" in await run_in_thread(fetch)
        (worker,) = workers()
        assert worker.name == "flowno worker: idle"
        assert worker.daemon

    flowno.run(main())


def test_a_thread_that_is_idle_for_long_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "LONGEST_REST", 0.01)

    async def main() -> None:
        await run_in_thread(bool)
        for worker in workers():
            worker.join(NET)
        assert workers() == []
        assert await run_in_thread(bool) is False

    flowno.run(main())


def test_a_thread_that_is_about_to_end_does_the_job_that_it_is_given_at_that_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "LONGEST_REST", 0.0)

    async def main() -> None:
        for number in range(300):
            assert await run_in_thread(abs, -number) == number

    flowno.run(main())


@pytest.mark.parametrize("how", ["run", "loop"])
def test_no_idle_thread_outlives_the_run(how: str) -> None:
    async def main() -> None:
        await run_in_thread(bool)
        assert len(workers()) == 1

    if how == "run":
        flowno.run(main())
        assert workers() == []
    else:
        with EventLoop() as loop:
            for _ in range(2):
                loop.run_until_complete(main(), join=True)
                assert workers() == []


# --- limits -----------------------------------------------------------------------------------------------------------


def test_no_more_threads_run_than_the_limiter_has_tokens() -> None:
    lock = threading.Lock()
    running = most = 0

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.001)
        with lock:
            running -= 1

    async def main() -> None:
        limiter = CapacityLimiter(3)
        for task in [await spawn(run_in_thread(work, limiter=limiter)) for _ in range(30)]:
            await task.join()
        assert limiter.borrowed_tokens == 0

    flowno.run(main())
    assert most <= 3


def test_each_event_loop_has_a_limiter_for_those_that_are_given_none() -> None:
    async def main() -> CapacityLimiter:
        limiter = current_default_thread_limiter()
        assert limiter.total_tokens == 40
        limiter.total_tokens = 1
        with gate() as blocking:
            first = await spawn(run_in_thread(blocking))
            second = await spawn(run_in_thread(bool))
            await blocking.has_begun()
            assert limiter.borrowed_tokens == 1
            blocking.go_on.set()
            await first.join()
            await second.join()
        assert current_default_thread_limiter() is limiter
        return limiter

    assert flowno.run(main()) is not flowno.run(main())


def test_a_task_that_is_cancelled_while_it_waits_for_a_token_calls_nothing() -> None:
    async def main() -> None:
        limiter = CapacityLimiter(1)
        with gate() as blocking:
            first = await spawn(run_in_thread(blocking, limiter=limiter))
            second = await spawn(run_in_thread(called.append, 1, limiter=limiter))
            await blocking.has_begun()
            await second.cancel()
            blocking.go_on.set()
            await first.join()
        assert called == []
        assert limiter.borrowed_tokens == 0

    called: list[int] = []
    flowno.run(main())


def test_the_token_of_an_abandoned_call_is_given_back_when_its_thread_is_done() -> None:
    async def main() -> None:
        limiter = CapacityLimiter(1)
        with gate() as blocking:
            task = await spawn(run_in_thread(blocking, abandon_on_cancel=True, limiter=limiter))
            await blocking.has_begun()
            await task.cancel()
            next_one = await spawn(run_in_thread(blocking.ended.is_set, limiter=limiter))
            await sleep(0)
            assert limiter.borrowed_tokens == 1
            assert len(limiter.waiters) == 1
            blocking.go_on.set()
            assert await next_one.join() is True
        assert limiter.borrowed_tokens == 0

    flowno.run(main())


def test_the_end_of_an_abandoned_call_is_something_that_can_happen(run_python: RunPython) -> None:
    """Who waits for its token is no deadlock. A program of its own, since pytest has signal handlers of its own."""
    program = """
import threading, flowno
from flowno import CapacityLimiter, run_in_thread, sleep, spawn
from flowno.core.event_loop.threads import ThreadJob
go_on, begun = threading.Event(), threading.Event()
def work():
    begun.set()
    go_on.wait(20)
async def main():
    limiter = CapacityLimiter(1)
    task = await spawn(run_in_thread(work, abandon_on_cancel=True, limiter=limiter))
    begun.wait(20)
    await task.cancel()
    threading.Timer(0.2, go_on.set).start()
    print(await run_in_thread(go_on.is_set, limiter=limiter))
flowno.run(main())
"""
    result = run_python(program)
    assert (result.stdout, result.stderr) == ("True\n", "")


def test_a_token_goes_to_whoever_waits_for_it_although_that_is_in_another_loop() -> None:
    limiter, got = CapacityLimiter(1), threading.Event()

    async def elsewhere() -> None:
        async with limiter:
            got.set()

    async def main() -> None:
        with gate() as blocking:
            task = await spawn(run_in_thread(blocking, limiter=limiter))
            await blocking.has_begun()
            other.start()
            while not limiter.waiters:
                await sleep(0.001)
            blocking.go_on.set()
            await task.join()

    other = threading.Thread(target=lambda: flowno.run(elsewhere()), daemon=True)
    flowno.run(main())
    other.join(NET)
    assert got.is_set()
    assert limiter.borrowed_tokens == 0


# --- cancellation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "scope"])
def test_a_cancelled_task_waits_for_its_thread_has_the_result_and_is_cancelled_at_its_next_wait(how: str) -> None:
    seen = []

    async def work(blocking: Gate) -> None:
        with scope:
            seen.append(await run_in_thread(blocking))
            try:
                await sleep(FOREVER)
            except TaskCancelled:
                seen.append("cancelled")
                raise

    async def main() -> None:
        with gate("result") as blocking:
            task = await spawn(work(blocking))
            await blocking.has_begun()
            if how == "cancel":
                task.cancel()
            else:
                scope.cancel()
            for _ in range(5):
                await sleep(0)
            assert seen == []
            blocking.go_on.set()
            await task.cancel()
            assert seen == ["result", "cancelled"]
            assert task.is_cancelled == (how == "cancel")

    scope = flowno.CancelScope()
    flowno.run(main())


def test_a_task_that_is_cancelled_already_calls_nothing() -> None:
    async def main() -> None:
        with flowno.CancelScope() as scope:
            scope.cancel()
            await run_in_thread(called.append, 1)
        assert scope.cancelled_caught
        assert current_default_thread_limiter().borrowed_tokens == 0

    called: list[int] = []
    flowno.run(main())
    assert called == []


def test_an_abandoned_call_is_not_waited_for_and_runs_on() -> None:
    async def main() -> None:
        with gate() as blocking:
            with move_on_after(0.01) as scope:
                await run_in_thread(blocking, abandon_on_cancel=True)
            assert scope.cancelled_caught
            assert not blocking.ended.is_set()
            blocking.go_on.set()
            assert blocking.ended.wait(NET)

    flowno.run(main())


@pytest.mark.parametrize("outcome", ["value", ValueError("of an abandoned call"), KeyboardInterrupt()], ids=repr)
def test_the_outcome_of_an_abandoned_call_is_dropped_and_an_error_logged_for_those_who_debug(
    outcome: object, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with gate(outcome) as blocking:
            task = await spawn(run_in_thread(blocking, abandon_on_cancel=True))
            await blocking.has_begun()
            await task.cancel()
            blocking.go_on.set()
            while current_default_thread_limiter().borrowed_tokens:
                await sleep(0.001)

    caplog.set_level(logging.DEBUG, "flowno")
    flowno.run(main())
    logged = [record for record in caplog.records if "abandoned" in record.getMessage()]
    assert [record.levelno for record in logged] == [logging.DEBUG] * isinstance(outcome, BaseException)
    assert [record.exc_info and record.exc_info[1] for record in logged] == [outcome] * len(logged)


# --- the end of a run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["exit", "error", "return"])
def test_a_call_is_waited_for_at_the_end_of_a_run(how: str) -> None:
    seen = []

    async def work(blocking: Gate) -> None:
        seen.append(await run_in_thread(blocking))
        await sleep(FOREVER)

    async def main() -> None:
        await spawn(work(blocking))
        await blocking.has_begun()
        threading.Timer(0.05, blocking.go_on.set).start()
        if how == "exit":
            await flowno.exit()
        elif how == "error":
            raise KeyboardInterrupt

    with gate("result") as blocking:
        try:
            flowno.run(main())
        except KeyboardInterrupt:
            assert how == "error"
        assert seen == ["result"]


def test_an_abandonable_call_is_not_waited_for_at_the_end_of_a_run() -> None:
    async def main() -> None:
        await spawn(run_in_thread(blocking, abandon_on_cancel=True))
        await blocking.has_begun()

    with gate() as blocking:
        flowno.run(main())
        assert not blocking.ended.is_set()


def test_a_task_that_makes_call_after_call_whatever_happens_does_not_hold_up_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def stubborn() -> None:
        while True:
            try:
                await run_in_thread(bool)
            except TaskCancelled:
                pass

    async def main() -> None:
        await spawn(stubborn())
        await sleep(0)

    flowno.run(main())
    assert "swallowed" in caplog.text


def test_a_call_goes_on_from_one_run_to_the_next() -> None:
    async def work(blocking: Gate) -> Any:
        return await run_in_thread(blocking)

    async def begin(blocking: Gate) -> Any:
        task = await spawn(work(blocking))
        await blocking.has_begun()
        return task

    with gate("value") as blocking, EventLoop() as loop:
        task = loop.run_until_complete(begin(blocking), join=True, wait_for_spawned_tasks=False)
        assert not task.is_finished
        blocking.go_on.set()
        assert loop.run_until_complete(task.join(), join=True) == "value"


INTERRUPTED = """
import os, signal, sys, threading, time
import flowno

begun, told = threading.Event(), threading.Event()

def work():
    begun.set()
    while True:
        time.sleep(0.01)

async def main():
    task = await flowno.spawn(flowno.run_in_thread(work))
    begun.wait(20)
    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        told.wait(20)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        await task.join()
    finally:
        told.set()

try:
    flowno.run(main())
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(os.name != "posix", reason="os.kill ends the process there")
def test_a_second_interrupt_gets_out_although_a_call_never_ends(run_python: RunPython) -> None:
    result = run_python(INTERRUPTED)
    assert result.stdout == "interrupted\n"
    assert "cut short" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("outcome", ["value", "error"])
def test_nothing_of_a_call_is_kept(outcome: str) -> None:
    class Thing:
        pass

    def work(thing: Thing) -> Thing:
        if outcome == "error":
            raise ValueError(thing)
        return thing

    async def main() -> None:
        thing = Thing()
        seen = weakref.ref(thing)
        try:
            assert await run_in_thread(work, thing) is thing
        except ValueError:
            assert outcome == "error"
        del thing
        await sleep(0)
        assert seen() is None

    gc.collect()
    with no_collections():
        flowno.run(main())


# --- deadlocks and forks ----------------------------------------------------------------------------------------------

DEADLOCK = """
import sys, threading, flowno
from flowno import DeadlockError, Event, run_in_thread, from_thread
case = sys.argv[1]
async def main():
    await run_in_thread(bool)
    if case == "waits for its own loop":
        await run_in_thread(from_thread.run, Event().wait)
    await Event().wait()
try:
    flowno.run(main())
except DeadlockError:
    print("deadlock")
"""


@pytest.mark.parametrize("case", ["idle", "waits for its own loop"])
def test_a_thread_that_is_idle_or_waits_for_the_loop_is_nobody_who_could_help(run_python: RunPython, case: str) -> None:
    result = run_python(DEADLOCK, case)
    assert (result.stdout, result.stderr) == ("deadlock\n", "")


ABANDONED = """
import logging, threading, flowno
from flowno import Event, run_in_thread, sleep, spawn
from flowno.core.event_loop import deadlock
deadlock.PATIENCE = 0.01
logging.basicConfig(format="%(levelname)s")
class Logged(logging.Handler):
    def emit(self, record):
        go_on.set()
logging.getLogger("flowno").addHandler(Logged())
go_on, begun = threading.Event(), threading.Event()
def work(loop, event):
    begun.set()
    go_on.wait(20)
    loop.call_soon_threadsafe(event.set)
async def main():
    event = Event()
    task = await spawn(run_in_thread(work, flowno.current_event_loop(), event, abandon_on_cancel=True))
    begun.wait(20)
    await task.cancel()
    await event.wait()
    print("helped")
flowno.run(main())
"""


def test_an_abandoned_function_of_the_program_is_somebody_who_could_help(run_python: RunPython) -> None:
    result = run_python(ABANDONED)
    assert (result.stdout, result.stderr) == ("helped\n", "WARNING\n")


FORKED = """
import os, signal, sys, threading, flowno
from flowno import CapacityLimiter, EventLoopError, from_thread, run_in_thread, sleep, spawn
go_on, begun = threading.Event(), threading.Event()
def work():
    begun.set()
    go_on.wait(20)
    return "done"
def child(pid):
    if pid == 0:
        signal.alarm(10)
    return pid == 0
def end(code=0):
    sys.stdout.flush()
    os._exit(code)
async def outcome(task):
    try:
        return await task.join()
    except EventLoopError as error:
        return f"{type(error).__name__}: {error}"
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.parametrize(
    ("program", "lines"),
    [
        pytest.param(
            """
async def main():
    limiter = CapacityLimiter(2)
    waiting = await spawn(run_in_thread(work, limiter=limiter))
    abandoned = await spawn(run_in_thread(work, abandon_on_cancel=True, limiter=limiter))
    while limiter.borrowed_tokens < 2 or not begun.is_set():
        await sleep(0.001)
    await sleep(0.01)
    await abandoned.cancel()
    pid = os.fork()
    if child(pid):
        print(await outcome(waiting), limiter.borrowed_tokens)
        print(await run_in_thread(os.getpid, limiter=limiter) == os.getpid())
        end()
    os.waitpid(pid, 0)
    go_on.set()
    print(await outcome(waiting))
flowno.run(main())
""",
            [
                "EventLoopError: the worker thread did not come along when the process forked 0",
                "True",
                "done",
            ],
            id="while threads run",
        ),
        pytest.param(
            """
async def main():
    for _ in range(3):
        await run_in_thread(bool)
    pid = os.fork()
    if child(pid):
        print(await run_in_thread(os.getpid) == os.getpid())
        end()
    os.waitpid(pid, 0)
    print(await run_in_thread(bool))
flowno.run(main())
""",
            ["True", "False"],
            id="while threads are idle",
        ),
        pytest.param(
            """
async def fork():
    global pid
    pid = os.fork()
    if child(pid):
        await sleep(0.01)
async def main():
    task = await spawn(run_in_thread(from_thread.run, fork))
    print(await outcome(task), flowno.current_default_thread_limiter().borrowed_tokens)
    if pid == 0:
        end()
    os.waitpid(pid, 0)
flowno.run(main())
""",
            ["EventLoopError: the worker thread did not come along when the process forked 0", "None 0"],
            id="in a call of a thread",
        ),
    ],
)
def test_a_child_has_none_of_the_threads_and_makes_its_own(
    run_python: RunPython, program: str, lines: list[str]
) -> None:
    result = run_python(FORKED + program, options=("-W", "error", "-W", "ignore::DeprecationWarning"))
    assert result.stderr == ""
    assert sorted(result.stdout.splitlines()) == sorted(lines)


# --- names ------------------------------------------------------------------------------------------------------------


def test_look_ups_have_a_limiter_of_their_own_so_that_none_that_hangs_keeps_a_call_waiting() -> None:
    async def main() -> None:
        loop = flowno.current_event_loop()
        assert loop is not None
        limiter = loop.threads.lookup_limiter
        limiter.total_tokens = 1
        with gate("of a resolver") as resolver:
            first = await spawn(threads.look_up(resolver))
            second = await spawn(threads.look_up(resolver))
            await resolver.has_begun()
            assert (limiter.borrowed_tokens, len(limiter.waiters)) == (1, 1)
            assert await run_in_thread(bool) is False
            await first.cancel()
            assert limiter.borrowed_tokens == 1
            resolver.go_on.set()
            assert await second.join() == "of a resolver"
        assert limiter.borrowed_tokens == 0

    flowno.run(main())


def test_a_name_that_is_looked_up_counts() -> None:
    async def main() -> None:
        loop = flowno.current_event_loop()
        assert loop is not None
        loop.threads.lookup_limiter.acquire_on_behalf_of_nowait("somebody")
        loop.threads.lookup_limiter.total_tokens = 1
        tasks: list[Callable[[], Any]] = [
            lambda: flowno.getaddrinfo("localhost", 80),
            lambda: flowno.getnameinfo(("127.0.0.1", 80)),
        ]
        for ask in tasks:
            with move_on_after(0.01) as scope:
                await ask()
            assert scope.cancelled_caught
        with flowno.socket() as handle, move_on_after(0.01) as scope:
            await flowno.connect(handle, ("localhost", 1))
        assert scope.cancelled_caught
        loop.threads.lookup_limiter.total_tokens = inf
        assert await flowno.getaddrinfo("localhost", 80)

    flowno.run(main())


def test_an_interrupt_while_a_thread_is_started_leaves_nobody_who_is_woken_twice(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    give = threads._Crew.give
    log: list[object] = []

    def interrupted(crew: threads._Crew, job: threads.ThreadJob) -> None:
        give(crew, job)
        raise KeyboardInterrupt

    async def root() -> None:
        queue: AsyncQueue[str] = AsyncQueue()
        try:
            await run_in_thread(str, "of the thread")
        finally:
            with move_on_after(0.05):
                log.append(await queue.get())
            log.append("cleaned up")

    monkeypatch.setattr(threads._Crew, "give", interrupted)
    with EventLoop() as loop, pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(root(), join=True)
    assert log == ["cleaned up"]
    assert caplog.records == []
