"""Deadlocks: tasks that wait for one another are named; where somebody outside could still help, the loop waits on."""

import os
from typing import Any

import pytest

from flowno import DeadlockError, EventLoop, TaskHandle, sleep, spawn
from tests.conftest import RunPython
from tests.support.tasks import FOREVER

pytestmark = pytest.mark.usefixtures("backend")

# Two tasks that join each other. Programs of their own, since pytest has threads and signal handlers of its own.
PRELUDE = """
import logging, os, signal, sys, threading
import flowno
from flowno import DeadlockError, EventLoop, TaskCancelled, sleep, spawn
from flowno.core.event_loop import deadlock

class Stop(logging.Handler):
    "Prints what is logged, and goes on with what ends the deadlock."
    def emit(self, record):
        print(record.levelname, record.getMessage(), flush=True)
        stop()

def stop():
    pass

async def chick():
    while "egg" not in tasks:
        await sleep(0)
    try:
        await tasks["egg"].join()
    except TaskCancelled:
        pass

async def egg():
    await tasks["chick"].join()

tasks = {}

async def main():
    tasks["chick"] = await spawn(chick())
    tasks["egg"] = await spawn(egg())
    return "main"

async def free():
    "End the deadlock, if it is one."
    await tasks["egg"].cancel()

logging.getLogger("flowno").addHandler(Stop())
"""

# The backend under test, for a program that has a ``select`` of its own in front of it.
BACKEND = """
from flowno.core.event_loop.backend import open_selector
selector = open_selector(None).selector
class Backend:
    register, modify, unregister, close = selector.register, selector.modify, selector.unregister, selector.close
"""

GRAPH = [
    "  <TaskHandle chick alive> waits for the end of egg",
    "  <TaskHandle egg alive> waits for the end of chick",
]


def lines(run_python: RunPython, program: str, *args: str) -> list[str]:
    result = run_python(PRELUDE + program, *args, timeout=20)
    assert result.stderr == ""
    return result.stdout.splitlines()


@pytest.mark.parametrize("join", ["join", ""])
def test_tasks_that_join_each_other_are_a_deadlock_error_that_names_them(join: str, run_python: RunPython) -> None:
    program = """
with EventLoop() as loop:
    try:
        loop.run_until_complete(main(), join=bool(sys.argv[1]))
    except DeadlockError as error:
        print(error)
    print(loop.has_living_tasks())
"""
    assert lines(run_python, program, join) == ["no task can ever go on:", *GRAPH, "False"]


def test_the_default_handler_of_sigint_and_the_threads_of_the_loop_are_nobody_who_could_help(
    run_python: RunPython,
) -> None:
    program = """
from flowno.core.event_loop.commands import ThreadCommand
import types

@types.coroutine
def in_thread(function):
    return (yield ThreadCommand(function, ()))

go_on = threading.Event()

async def root():
    hangs = await spawn(in_thread(go_on.wait))
    await hangs.cancel()
    await main()

assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
try:
    with EventLoop() as loop:
        loop.run_until_complete(root())
except DeadlockError:
    print("deadlock", threading.active_count())
go_on.set()
"""
    assert lines(run_python, program) == ["deadlock 2"]


@pytest.mark.parametrize("abandon", ["abandon", ""])
def test_a_thread_that_waits_for_what_waits_for_its_token_is_a_deadlock(abandon: str, run_python: RunPython) -> None:
    program = """
from flowno import from_thread, run_in_thread

limiter = flowno.CapacityLimiter(1)
at_work, go_on = flowno.Event(), threading.Event()

async def inner():
    await run_in_thread(print, "never", limiter=limiter)

def work():
    from_thread.run_sync(at_work.set)
    go_on.wait()
    from_thread.run(inner)

async def root():
    abandon = bool(sys.argv[1])
    task = await spawn(run_in_thread(work, limiter=limiter, abandon_on_cancel=abandon))
    await at_work.wait()
    if abandon:
        await task.cancel()
    go_on.set()
    await flowno.Event().wait()

try:
    flowno.run(root())
except DeadlockError as error:
    print(error)
"""
    *_, graph = lines(run_python, program, abandon)
    assert graph.endswith("waits for a token of a limiter (1 of 1 borrowed, 1 waiting)")


def test_an_outstanding_thread_job_is_no_deadlock(run_python: RunPython) -> None:
    program = """
from flowno.core.event_loop.commands import ThreadCommand
import types

looked, polls = threading.Event(), []

@types.coroutine
def in_thread(function):
    return (yield ThreadCommand(function, ()))

class Selector(Backend):
    def select(self, timeout=None):
        if timeout is None or timeout > 0:
            looked.set()  # the loop has made up its mind to wait
        return selector.select(timeout)

async def root():
    return await in_thread(lambda: looked.wait(10))

print(flowno.run(root(), Selector()))
selector.close()
"""
    assert lines(run_python, BACKEND + program) == ["True"]


WAITS_ON = """
deadlock.PATIENCE = 0.01
policy, helper = sys.argv[1:]
logged = 0

def stop():
    global logged
    logged += 1
    if helper == "thread":
        go_on.set()
    elif helper == "handler":
        os.kill(os.getpid(), signal.SIGUSR1)
    else:
        raise KeyboardInterrupt

go_on = threading.Event()

def help_later():
    go_on.wait(10)
    loop.create_task(free())

with EventLoop(deadlock=policy) as loop:
    if helper == "thread":
        thread = threading.Thread(target=help_later)
        thread.start()
    elif helper == "handler":
        signal.signal(signal.SIGUSR1, lambda *_: loop.create_task(free()))
    try:
        print(loop.run_until_complete(main(), join=True))
    except KeyboardInterrupt:
        print("interrupted")
    if helper == "thread":
        thread.join()
print(logged)
"""


@pytest.mark.parametrize(
    ("policy", "helper", "end"),
    [
        ("raise", "thread", "main"),
        pytest.param(
            "raise", "handler", "main", marks=pytest.mark.skipif(os.name != "posix", reason="there is no SIGUSR1")
        ),
        ("log", "nobody", "interrupted"),
        ("log", "thread", "main"),
    ],
)
def test_where_somebody_could_help_the_deadlock_is_logged_once_and_the_loop_waits_on(
    policy: str, helper: str, end: str, run_python: RunPython, backend: str
) -> None:
    found = lines(run_python, WAITS_ON, policy, helper)
    assert found[0].startswith("WARNING only a call from outside can go on with <EventLoop ")
    assert found[1:3] == GRAPH
    assert found[-2:] == [end, "1"]
    assert "WARNING" not in "".join(found[1:])


def test_it_is_logged_once_although_the_loop_waits_on_for_long(run_python: RunPython) -> None:
    program = """
deadlock.PATIENCE = 0.001
waits = []
class Selector(Backend):
    def select(self, timeout=None):
        if timeout == 0:
            return selector.select(0)
        waits.append(timeout)
        if timeout is None and len(waits) > 4:
            loop.create_task(free())
        return selector.select(timeout or 0)
with EventLoop(Selector(), deadlock="log") as loop:
    loop.run_until_complete(main(), join=True)
selector.close()
print(set(waits[-4:]))
"""
    found = lines(run_python, BACKEND + program)
    assert found[-1] == "{None}"
    assert sum(line.startswith("WARNING") for line in found) == 1


def test_off_just_waits_and_logs_nothing(run_python: RunPython) -> None:
    program = """
deadlock.PATIENCE = 0.001
waits = []
class Selector(Backend):
    def select(self, timeout=None):
        if timeout != 0:
            waits.append(timeout)
            loop.create_task(free())
        return selector.select(0)
with EventLoop(Selector(), deadlock="off") as loop:
    print(loop.run_until_complete(main(), join=True))
selector.close()
print(waits)
"""
    assert lines(run_python, BACKEND + program) == ["main", "[None]"]


@pytest.mark.parametrize("policy", ["", "Raise", None, True, "ignore"])
def test_a_policy_that_there_is_not_is_a_value_error_that_lists_them(policy: Any) -> None:
    with pytest.raises(ValueError, match="'raise', 'log' or 'off', not") as caught:
        EventLoop(deadlock=policy)
    assert repr(policy) in str(caught.value)


@pytest.mark.parametrize("wait", ["join", "sleep"])
def test_a_clean_up_that_waits_for_what_never_comes_does_not_hold_up_the_end(
    wait: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told again; a clean-up that takes no notice of that either is closed."""
    seen: list[str] = []
    tasks: list[TaskHandle[None]] = []

    async def stubborn(name: str) -> None:
        while True:
            try:
                await sleep(FOREVER)
            finally:
                seen.append(name)
                if wait == "sleep":
                    await sleep(FOREVER)
                else:
                    await tasks[name == "one"].join()

    async def root() -> str:
        tasks.append(await spawn(stubborn("one")))
        tasks.append(await spawn(stubborn("two")))
        return "root"

    with EventLoop() as loop:
        assert loop.run_until_complete(root(), join=True, wait_for_spawned_tasks=False) == "root"
    assert seen == ["one", "two"]
    assert all(task.is_cancelled for task in tasks)
    assert caplog.records == []


def test_the_error_is_a_runtime_error_of_flowno() -> None:
    assert issubclass(DeadlockError, RuntimeError)
