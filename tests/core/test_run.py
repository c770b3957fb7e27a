"""A run of an event loop: what it returns and raises, and how a loop is made, used and closed."""

import gc
import logging
import sys
import warnings
import weakref
from typing import Any

import pytest

import flowno
from flowno import EventLoop, EventLoopError, TaskCancelled, TaskHandle, current_event_loop, current_task, sleep, spawn
from flowno.core.event_loop.backend import display_name
from tests.support.garbage import no_collections
from tests.support.loopback import pair
from tests.support.tasks import FOREVER, fail, value

pytestmark = pytest.mark.usefixtures("backend")


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


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
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


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
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


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
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


@pytest.mark.not_in_debug_mode(reason="the value that nobody asks for is reported")
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
    with no_collections():
        del loop
        assert alive() is None


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
    with EventLoop() as loop:
        names = {backend, display_name(loop.fds.selector)}  # the latter where a decorator was put around it: by faults
        assert any(name in repr(loop) for name in names)
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


@pytest.mark.parametrize("how", ["before __init__", "in __init__"])
def test_a_loop_that_was_never_made_drops_silently(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Loop(EventLoop):
        def __init__(self) -> None:
            if how == "before __init__":
                raise ValueError("of the subclass")
            super().__init__(deadlock="no such policy")  # type: ignore[arg-type]

    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    with pytest.raises(ValueError, match="of the subclass|no such policy"):
        Loop()
    gc.collect()
    assert unraisable == []


@pytest.mark.parametrize(
    "how", ["create_task", "run_until_complete", "in a run", "in another run", "run", "no selector"]
)
def test_a_coroutine_that_is_refused_leaves_no_warning(how: str) -> None:
    """Else Python adds to the error that the coroutine was never awaited."""

    async def inside(loop: EventLoop) -> None:
        with pytest.raises(EventLoopError):
            loop.run_until_complete(value(1))
        with pytest.raises(EventLoopError):
            flowno.run(value(1))

    with warnings.catch_warnings(record=True) as caught, EventLoop() as loop:
        warnings.simplefilter("always")
        if how == "in a run":
            loop.run_until_complete(inside(loop), join=True)
        elif how == "in another run":
            flowno.run(inside(loop))
        elif how == "no selector":
            with pytest.raises(flowno.UnknownSelectorError):
                flowno.run(value(1), "no such selector")
        elif how == "run":
            with pytest.raises(TypeError):
                flowno.run(value)  # type: ignore[arg-type]
        else:
            loop.close()
            with pytest.raises(EventLoopError):
                getattr(loop, how)(value(1))
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


def test_a_loop_is_closed_once_its_tasks_have_been_ended() -> None:
    seen: list[bool] = []

    async def cleans_up() -> None:
        try:
            await sleep(FOREVER)
        finally:
            seen.append(loop.is_closed)

    loop = EventLoop()
    loop.run_until_complete(value(1))
    assert not loop.is_closed
    loop.create_task(cleans_up())
    loop.run_until_complete(sleep(0), wait_for_spawned_tasks=False)
    loop.close()
    assert loop.is_closed
    assert seen == [False]


def test_the_living_tasks_are_those_that_have_not_ended_and_those_that_are_to_start() -> None:
    with EventLoop() as loop:
        sleeper = loop.create_task(sleep(FOREVER))
        done = loop.create_task(value(1))
        assert loop.living_tasks() == [sleeper, done]
        loop.run_until_complete(sleep(0), wait_for_spawned_tasks=False)
        assert done.done()
        posted = loop.create_task(sleep(FOREVER))
        assert loop.living_tasks() == [sleeper, posted]
