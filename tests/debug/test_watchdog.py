"""A step that holds up the loop is reported, once, while it does; and the thread that does it is in nobody's way."""

import logging
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import closing
from math import inf, nan
from types import FunctionType
from typing import Any

import pytest

from flowno import EventLoop, run_in_thread, sleep, spawn
from flowno.core.event_loop.threads import OwnThread
from tests.conftest import RunPython
from tests.support.tasks import value
from tests.support.virtual_time import VirtualTimeSelector

pytestmark = pytest.mark.usefixtures("backend")


class Reports(logging.Handler):
    """The reports of the watchdog, and an event for each that comes."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.came = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.came.set()

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def reports() -> Iterator[Reports]:
    handler = Reports()
    logger = logging.getLogger("flowno.debug")
    logger.addHandler(handler)
    logger.propagate = False
    yield handler
    logger.propagate = True
    logger.removeHandler(handler)


def watchdogs() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "flowno watchdog"]


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    with EventLoop(debug=True) as loop:
        loop.slow_step_duration = 0.01
        yield loop


# -------------------------------------------------------------------------------------------------------------- reports


def test_a_step_that_blocks_is_reported_while_it_does_with_its_task_and_the_line(
    loop: EventLoop, reports: Reports
) -> None:
    def wait_for_the_report() -> bool:
        return reports.came.wait(20)  # this line

    async def blocks() -> bool:
        return wait_for_the_report()

    async def main() -> bool:
        return await (await spawn(blocks(), name="the slow one")).join()

    assert loop.run_until_complete(main(), join=True) is True
    [report] = reports.records
    assert report.levelname == "WARNING"
    lines = report.getMessage().splitlines()
    assert lines[0].startswith("<TaskHandle 'the slow one' ")
    assert "holds up the event loop: its step has taken 0.0" in lines[0]
    functions = [line.rpartition(" in ")[2] for line in lines if line.startswith('  File "')]
    assert functions[:2] == ["blocks", "wait_for_the_report"]
    assert "    return reports.came.wait(20)  # this line" in lines


def test_a_step_is_reported_once_and_the_next_one_again(loop: EventLoop, reports: Reports) -> None:
    async def main() -> None:
        for _ in range(2):
            reports.came.clear()
            assert reports.came.wait(20)
            time.sleep(10 * loop.slow_step_duration)  # the thread has time for another look
            await sleep(0)

    loop.run_until_complete(main(), join=True)
    assert len(reports.records) == 2


def test_every_step_above_the_limit_is_reported_also_one_that_ends_before_the_thread_has_looked(
    loop: EventLoop, reports: Reports
) -> None:
    loop.slow_step_duration = 0.0

    async def main() -> None:
        for _ in range(99):
            await sleep(0)

    loop.run_until_complete(main(), join=True)
    assert len(reports.records) == 100
    assert any("has held up the event loop: a step took 0.0" in message for message in reports.messages)


def test_steps_within_the_limit_are_not_reported(loop: EventLoop, reports: Reports) -> None:
    loop.slow_step_duration = inf

    async def main() -> None:
        time.sleep(0.02)
        await sleep(0.02)

    loop.run_until_complete(main(), join=True)
    assert reports.records == []


@pytest.mark.parametrize("value", [nan, -1.0, "0.1", None])
def test_a_limit_that_is_none_is_logged_once_and_the_program_runs(
    loop: EventLoop, reports: Reports, value: Any
) -> None:
    async def main() -> str:
        await sleep(0)
        loop.slow_step_duration = value
        await sleep(0)
        await sleep(0)
        return "done"

    loop.slow_step_duration = 20.0
    assert loop.run_until_complete(main(), join=True) == "done"
    assert reports.messages == [
        f"slow_step_duration is to be a number of seconds, 0 or more, and not {value!r}; no step is reported"
    ]


def test_the_time_that_a_task_waits_does_not_count(loop: EventLoop, reports: Reports) -> None:
    loop.slow_step_duration = 20.0
    loop.run_until_complete(sleep(0.05), join=True)
    assert reports.records == []


@pytest.mark.not_in_debug_mode(reason="tests may take longer then")
def test_the_limit_is_100_milliseconds_unless_it_is_changed() -> None:
    with EventLoop(debug=True) as loop:
        assert loop.slow_step_duration == 0.1


def test_a_step_that_blocks_in_virtual_time_blocks_all_the_same(reports: Reports) -> None:
    async def main() -> bool:
        await sleep(3600)
        return reports.came.wait(20)

    with closing(VirtualTimeSelector()) as selector, EventLoop(selector, debug=True) as loop:
        loop.slow_step_duration = 0.01
        assert loop.run_until_complete(main(), join=True) is True
    assert len(reports.records) == 1


@pytest.mark.not_watched(reason="it counts the threads of the process")
def test_a_thread_that_rests_while_the_loop_does_looks_again_afterwards(loop: EventLoop, reports: Reports) -> None:
    async def main() -> bool:
        await run_in_thread(resting)
        return reports.came.wait(20)

    def resting() -> None:
        [watchdog] = watchdogs()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:  # its innermost call is then one without a limit
            frame = sys._current_frames()[watchdog.ident or 0]
            if frame.f_locals.get("pause", 0) is None:
                return
            time.sleep(0.001)
        pytest.fail("it looks on though nothing happens")

    assert loop.run_until_complete(main(), join=True) is True


# ----------------------------------------------------------------------------------------------------------- the thread


@pytest.mark.not_watched(reason="it counts the threads of the process")
def test_the_thread_begins_with_the_first_step_and_ends_with_the_loop() -> None:
    with EventLoop(debug=True) as loop:
        assert watchdogs() == []
        for _ in range(2):
            loop.run_until_complete(value(1))
            [watchdog] = watchdogs()
            assert isinstance(watchdog, OwnThread)
            assert watchdog.daemon
    assert watchdogs() == []


@pytest.mark.not_watched(reason="it counts the threads of the process")
def test_each_loop_has_its_own() -> None:
    with EventLoop(debug=True) as one:
        one.run_until_complete(value(1))
        with EventLoop(debug=True) as other:
            other.run_until_complete(value(1))
            assert len(watchdogs()) == 2
        assert len(watchdogs()) == 1


@pytest.mark.not_watched(reason="it counts the threads of the process")
def test_the_thread_keeps_no_loop_alive_and_ends_with_one_that_is_dropped() -> None:
    loop = EventLoop(debug=True)
    loop.run_until_complete(value(1))
    [watchdog] = watchdogs()
    gone = weakref.ref(loop)
    del loop
    assert gone() is None
    watchdog.join(20)
    assert watchdogs() == []


def test_the_thread_hides_no_deadlock(run_python: RunPython) -> None:
    program = """
from flowno import DeadlockError, Event, EventLoop
async def waits():
    await Event().wait()
with EventLoop(debug=True) as loop:
    try:
        loop.run_until_complete(waits(), join=True)
    except DeadlockError as error:
        print(error)
"""
    assert "waits for an event" in run_python(program).stdout


def test_the_thread_keeps_no_process_alive(run_python: RunPython) -> None:
    program = """
from flowno import EventLoop, sleep
loop = EventLoop(debug=True)
loop.run_until_complete(sleep(0))
print("end")
"""
    result = run_python(program)
    assert (result.stdout, result.stderr, result.returncode) == ("end\n", "", 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_the_child_of_a_fork_has_a_thread_of_its_own(run_python: RunPython) -> None:
    program = """
import logging, os, threading
from flowno import EventLoop, sleep
came = threading.Event()
class Handler(logging.Handler):
    def emit(self, record): came.set()
logging.getLogger("flowno.debug").addHandler(Handler())
async def blocks():
    return came.wait(20)
loop = EventLoop("poll,select", debug=True)
loop.run_until_complete(sleep(0))
child = os.fork()
with loop:
    line = f"{loop.run_until_complete(blocks(), join=True)}\\n"
    os.write(1, line.encode())  # at once, as two processes write
if child:
    os.waitpid(child, 0)
"""
    # Python warns of a fork in a process that has threads: the watchdog is one.
    result = run_python(program, options=())
    assert (result.stdout, result.returncode) == ("True\nTrue\n", 0), result.stderr


def test_ctrl_c_that_comes_where_a_step_is_watched_does_not_lose_the_step() -> None:
    log: list[str] = []

    def watch(task: Any, run: Any, method: Any, argument: Any) -> Any:
        if not log:
            log.append("pressed twice")
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return run(method, argument)

    async def root() -> None:
        log.append("began")
        try:
            await sleep(inf)
        finally:
            log.append("cleaned up")

    here = {"__name__": "flowno.debug.some_room", "signal": signal}
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with EventLoop() as loop:
            loop.add_step_wrapper(FunctionType(watch.__code__, here, closure=watch.__closure__))
            with pytest.raises(KeyboardInterrupt):
                loop.run_until_complete(root(), join=True)
    finally:
        signal.signal(signal.SIGINT, outer)
    assert log == ["pressed twice", "began", "cleaned up"]
