"""from_thread: back from a thread into the loop, with the scopes and the cancellation of the task that waits for it."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pytest

import flowno
from flowno import (
    CancelScope,
    Event,
    EventLoop,
    EventLoopError,
    TaskCancelled,
    current_default_thread_limiter,
    current_event_loop,
    current_task,
    from_thread,
    move_on_after,
    run_in_thread,
    sleep,
    spawn,
)
from tests.conftest import RunPython
from tests.support.garbage import no_collections
from tests.support.tasks import FOREVER, fail, value

pytestmark = pytest.mark.usefixtures("backend")

NET = 20.0  # seconds; a bound for what should not take any


@contextmanager
def other_thread(work: Callable[[], object]) -> Iterator[None]:
    """A thread that flowno knows nothing of."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join(NET)
        assert not thread.is_alive()


def outcome_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a function returns, or the exception that it raises."""
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        return error


# --- for the task that waits ------------------------------------------------------------------------------------------


def test_a_coroutine_runs_in_the_loop_and_its_value_comes_back() -> None:
    async def answer(number: int) -> tuple[int, int]:
        await sleep(0)
        return number, threading.get_ident()

    def work() -> Any:
        return from_thread.run(answer, 1), from_thread.run_sync(threading.get_ident), from_thread.run(answer, 2)

    async def main() -> Any:
        return await run_in_thread(work)

    here = threading.get_ident()
    assert flowno.run(main()) == ((1, here), here, (2, here))


@pytest.mark.parametrize("abandon", [False, True])
def test_an_error_comes_back_too_and_the_task_goes_on(abandon: bool) -> None:
    def work(error: BaseException) -> list[BaseException]:
        return [
            outcome_of(from_thread.run, fail, error, 1),
            outcome_of(from_thread.run_sync, next, iter([])),
            outcome_of(from_thread.run_sync, None),
            outcome_of(from_thread.run, bool),
        ]

    async def main() -> None:
        error = ValueError("of a coroutine")
        outcomes = await run_in_thread(work, error, abandon_on_cancel=abandon)
        assert outcomes[0] is error
        assert [type(each) for each in outcomes[1:]] == [RuntimeError, TypeError, TypeError]
        assert isinstance(outcomes[1].__cause__, StopIteration)
        assert "from_thread.run() takes a coroutine, not bool" in str(outcomes[3])

    flowno.run(main())


def test_it_is_the_waiting_task_that_runs_it_inside_of_its_scopes() -> None:
    async def who() -> tuple[Any, Any]:
        await sleep(0)
        return current_task(), current_event_loop()

    async def main() -> None:
        assert await run_in_thread(from_thread.run, who) == (current_task(), current_event_loop())
        with move_on_after(0.01) as scope:
            await run_in_thread(from_thread.run, sleep, FOREVER)
        assert scope.cancelled_caught

    flowno.run(main())


def test_what_runs_has_the_context_of_the_thread_and_the_task_its_own_afterwards() -> None:
    variable = ContextVar("variable", default="nothing")

    async def change(new: str) -> str:
        before = variable.get()
        await sleep(0)
        variable.set(new)
        return before

    def work() -> list[str]:
        variable.set("of the thread")
        first = from_thread.run(change, "of the coroutine")
        return [first, from_thread.run_sync(variable.get), variable.get()]

    async def main() -> str:
        variable.set("of the task")
        assert await run_in_thread(work) == ["of the thread"] * 3
        variable.set(variable.get() + " still")
        await sleep(0)
        return variable.get()

    assert flowno.run(main()) == "of the task still"


def test_calls_can_be_nested() -> None:
    async def down(depth: int) -> int:
        return depth and 1 + await run_in_thread(from_thread.run, down, depth - 1)

    assert flowno.run(down(5)) == 5


@pytest.mark.parametrize("how", ["cancel", "scope"])
def test_a_task_that_is_cancelled_in_a_call_raises_it_in_the_thread_and_ends_by_it(how: str) -> None:
    seen: list[object] = []
    scope = CancelScope()
    inside = Event()

    async def wait() -> None:
        inside.set()
        await sleep(FOREVER)

    def work() -> None:
        try:
            from_thread.run(wait)
        except TaskCancelled as error:
            seen.append(error.scope)
            raise

    async def task() -> None:
        with scope:
            await run_in_thread(work)
        seen.append("left")

    async def main() -> None:
        handle = await spawn(task())
        await inside.wait()
        if how == "cancel":
            await handle.cancel()
            assert handle.is_cancelled
            assert seen == [None]
        else:
            scope.cancel()
            await handle.join()
            assert scope.cancelled_caught
            assert seen == [scope, "left"]

    flowno.run(main())


def test_a_thread_that_catches_the_cancellation_may_go_on() -> None:
    inside = Event()

    async def wait() -> None:
        inside.set()
        await sleep(FOREVER)

    def work() -> str:
        assert isinstance(outcome_of(from_thread.run, wait), TaskCancelled)
        return str(from_thread.run(value, "caught", 2))

    async def main() -> None:
        handle = await spawn(run_in_thread(work))
        await inside.wait()
        assert await handle.cancel() == "caught"

    flowno.run(main())


def test_an_interrupt_in_a_call_comes_out_through_the_thread() -> None:
    async def main() -> None:
        await run_in_thread(from_thread.run, fail, KeyboardInterrupt())

    with pytest.raises(KeyboardInterrupt):
        flowno.run(main())


# --- check_cancelled --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "scope", "abandon"])
def test_a_thread_can_ask_whether_its_task_is_cancelled(how: str) -> None:
    begun, ended = threading.Event(), threading.Event()
    scope = CancelScope()

    def work() -> None:
        try:
            while True:
                from_thread.check_cancelled()
                begun.set()
        finally:
            ended.set()

    async def task() -> None:
        with scope:
            await run_in_thread(work, abandon_on_cancel=how == "abandon")

    async def main() -> None:
        handle = await spawn(task())
        while not begun.is_set():
            await sleep(0.001)
        if how == "scope":
            scope.cancel()
            await handle.join()
            assert scope.cancelled_caught
        else:
            await handle.cancel()
            assert handle.is_cancelled
        assert ended.wait(NET)

    flowno.run(main())


def test_a_shield_keeps_the_thread_from_being_told() -> None:
    outer = CancelScope()

    def work() -> str:
        from_thread.run_sync(outer.cancel)
        from_thread.check_cancelled()
        return "done"

    async def main() -> None:
        with outer, CancelScope(shield=True):
            assert await run_in_thread(work) == "done"
        assert outer.cancel_called

    flowno.run(main())


def test_asking_after_each_answer_never_takes_the_task_for_gone() -> None:
    """The thread runs on before the task has gone back to its wait."""

    def work() -> None:
        for _ in range(500):
            from_thread.run_sync(bool)
            from_thread.check_cancelled()

    async def main() -> None:
        await run_in_thread(work)

    flowno.run(main())


# --- where nobody waits -----------------------------------------------------------------------------------------------


def test_for_an_abandoned_thread_a_new_task_runs_it() -> None:
    begun, abandoned = threading.Event(), threading.Event()
    variable = ContextVar("variable", default="nothing")
    done = Event()

    async def answer() -> str:
        await sleep(0)
        tasks.append(current_task())
        return variable.get()

    def work() -> None:
        variable.set("of the thread")
        begun.set()
        assert abandoned.wait(NET)
        answers.append(from_thread.run(answer))
        from_thread.run_sync(done.set)

    async def main() -> None:
        task = await spawn(run_in_thread(work, abandon_on_cancel=True))
        while not begun.is_set():
            await sleep(0.001)
        await task.cancel()
        abandoned.set()
        await done.wait()
        assert answers == ["of the thread"]
        assert tasks[0] not in (current_task(), task.raw_task)

    answers: list[str] = []
    tasks: list[Any] = []
    flowno.run(main())


def test_any_thread_can_call_into_a_loop_that_it_names() -> None:
    async def answer() -> Any:
        await sleep(0)
        return threading.get_ident(), current_event_loop()

    def work() -> None:
        seen.append(from_thread.run(answer, loop=loop))
        seen.append(from_thread.run_sync(threading.get_ident, loop=loop))
        seen.append(outcome_of(from_thread.run, fail, error, loop=loop))
        loop.call_soon_threadsafe(done.set)

    async def main() -> None:
        with other_thread(work):
            await done.wait()

    seen: list[Any] = []
    error = ValueError("of a coroutine")
    done = Event()
    here = threading.get_ident()
    with EventLoop() as loop:
        loop.run_until_complete(main(), join=True)
    assert seen == [(here, loop), here, error]


def test_a_call_that_names_the_loop_is_not_inside_of_the_scopes_of_the_waiting_task() -> None:
    async def main() -> None:
        loop = current_event_loop()
        assert loop is not None
        with CancelScope() as scope:
            scope.cancel()
            with CancelScope(shield=True):
                assert await run_in_thread(call, loop) is not current_task()

    async def who() -> Any:
        await sleep(0)
        return current_task()

    def call(loop: EventLoop) -> Any:
        return from_thread.run(who, loop=loop)

    flowno.run(main())


def test_what_ends_a_program_ends_the_run_where_a_task_of_its_own_raises_it() -> None:
    seen: list[Any] = []

    def work() -> None:
        seen.append(outcome_of(from_thread.run, fail, SystemExit(3), loop=loop))

    async def main() -> None:
        threads.append(other_thread(work))
        threads[0].__enter__()
        await sleep(FOREVER)

    threads: list[Any] = []
    with EventLoop() as loop, pytest.raises(SystemExit):
        loop.run_until_complete(main())
    threads[0].__exit__(None, None, None)
    assert [type(each) for each in seen] == [EventLoopError]


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [from_thread.run_sync, from_thread.run])
def test_the_thread_of_a_loop_would_wait_for_itself(call: Any) -> None:
    async def main() -> None:
        for loop in (current_event_loop(), None):
            with pytest.raises(EventLoopError, match=r"from_thread.run.* would block <EventLoop"):
                call(bool, loop=loop)

    flowno.run(main())


@pytest.mark.parametrize(
    "call",
    [
        lambda: from_thread.run(sleep, 0),
        lambda: from_thread.run_sync(bool),
        lambda: from_thread.check_cancelled(),
    ],
    ids=["run", "run_sync", "check_cancelled"],
)
def test_a_thread_that_is_none_of_flownos_must_say_which_loop(call: Callable[[], object]) -> None:
    with pytest.raises(EventLoopError, match="say which loop"):
        call()


def test_the_loop_must_be_one() -> None:
    with pytest.raises(TypeError, match="loop must be an EventLoop"):
        from_thread.run_sync(bool, loop="loop")  # type: ignore[arg-type]


@pytest.mark.parametrize("state", ["idle", "closed"])
def test_a_loop_that_does_not_run_answers_nobody(state: str) -> None:
    with EventLoop() as loop:
        if state == "closed":
            loop.close()
        with pytest.raises(EventLoopError, match=f"{state}.*does not run"):
            from_thread.run_sync(bool, loop=loop)
        assert not loop.has_living_tasks()


# --- the end of a run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["waits", "swallows", "stays"])
def test_a_thread_that_waits_for_an_answer_is_told_that_the_run_has_ended(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the task that makes the call does then: it ends, it must be closed, or it waits for the next run."""

    async def call() -> None:
        inside.set()
        while True:
            try:
                await sleep(FOREVER)
            except TaskCancelled:
                if how == "waits":
                    raise

    def work() -> None:
        seen.append(outcome_of(from_thread.run, call, loop=loop))
        ended.wait(20)
        seen.append(outcome_of(from_thread.run, call, loop=loop))

    async def main() -> None:
        threads.append(other_thread(work))
        threads[0].__enter__()
        await inside.wait()
        if how != "stays":
            await flowno.exit()

    seen: list[Any] = []
    threads: list[Any] = []
    inside, ended = Event(), threading.Event()
    with EventLoop() as loop:
        loop.run_until_complete(main(), join=True, wait_for_spawned_tasks=False)
        ended.set()
        threads[0].__exit__(None, None, None)
        assert [type(each) for each in seen] == [EventLoopError, EventLoopError]
        assert "cut short" in str(seen[0])
        assert "does not run" in str(seen[1])


def test_a_thread_whose_task_was_closed_is_told_so(run_python: RunPython) -> None:
    """As after a second Ctrl-C."""
    program = """
import flowno, threading
from flowno import EventLoop, EventLoopError, from_thread, run_in_thread, sleep, spawn
ended = threading.Event()
def work():
    try:
        from_thread.run(call)
    except EventLoopError as error:
        print(type(error).__name__)
    try:
        from_thread.run_sync(bool)
    except EventLoopError as error:
        print(type(error).__name__)
    ended.set()
async def call():
    inside.set()
    try:
        await sleep(1000)
    finally:
        flowno.current_event_loop().call_soon_threadsafe(interrupt)
        await sleep(1000)
def interrupt():
    raise KeyboardInterrupt
inside = flowno.Event()
async def main():
    await spawn(run_in_thread(work))
    await inside.wait()
    raise KeyboardInterrupt
try:
    flowno.run(main())
except KeyboardInterrupt:
    print(ended.wait(10))
"""
    result = run_python(program)
    assert result.stdout.split() == ["EventLoopError", "EventLoopError", "True"]


def test_the_answer_of_a_call_that_went_on_in_the_next_run_is_dropped() -> None:
    async def call() -> str:
        inside.set()
        await go_on.wait()
        return "late"

    def work() -> Any:
        return outcome_of(from_thread.run, call), ended.wait(NET), outcome_of(from_thread.run, value, "in time", 1)

    async def first() -> Any:
        task = await spawn(run_in_thread(work))
        await inside.wait()
        return task

    async def second(task: Any) -> Any:
        go_on.set()
        await sleep(0)
        ended.set()
        return await task.join()

    inside, go_on, ended = Event(), Event(), threading.Event()
    with EventLoop() as loop:
        task = loop.run_until_complete(first(), join=True, wait_for_spawned_tasks=False)
        refused, _, answered = loop.run_until_complete(second(task), join=True)
    assert isinstance(refused, EventLoopError)
    assert answered == "in time"


@pytest.mark.parametrize("end", ["value", "error"])
def test_nothing_of_a_call_is_kept(end: str) -> None:
    class Thing:
        pass

    async def call(thing: Thing) -> Thing:
        if end == "error":
            raise ValueError(thing)
        return thing

    def work() -> weakref.ref[Thing]:
        thing = Thing()
        outcome_of(from_thread.run, call, thing)
        return weakref.ref(thing)

    async def main() -> None:
        seen = await run_in_thread(work)
        await sleep(0)
        assert seen() is None

    gc.collect()
    with no_collections():
        flowno.run(main())


def test_nothing_is_kept_of_an_abandoned_thread_that_has_made_a_call() -> None:
    class Thing:
        pass

    begun, abandoned = threading.Event(), threading.Event()
    done = Event()

    def work(thing: Thing) -> None:
        begun.set()
        assert abandoned.wait(NET)
        from_thread.run(sleep, 0)
        from_thread.run_sync(done.set)

    async def main() -> None:
        thing = Thing()
        seen = weakref.ref(thing)
        task = await spawn(run_in_thread(work, thing, abandon_on_cancel=True))
        del thing
        while not begun.is_set():
            await sleep(0.001)
        await task.cancel()
        abandoned.set()
        await done.wait()
        with move_on_after(NET):
            while current_default_thread_limiter().borrowed_tokens:
                await sleep(0.001)
        await sleep(0)
        assert seen() is None

    gc.collect()
    with no_collections():
        flowno.run(main())
