"""In debug mode Python says of every operation that was called and never awaited, and where it was."""

import inspect

import pytest

from flowno import EventLoop, Stream, run, sleep, socketpair, spawn
from tests.conftest import RunPython

pytestmark = pytest.mark.usefixtures("backend")

CALLS = {
    "sleep": "sleep(1)",
    "Event.wait": "Event().wait()",
    "Lock.acquire": "Lock().acquire()",
    "AsyncQueue.get": "AsyncQueue().get()",
    "TaskHandle.join": "(await spawn(Lock().acquire())).join()",
    "SocketHandle.recv": "one.recv(1)",
    "SocketHandle.sendAll": "one.sendAll(b'')",
    "Stream.readline": "Stream(other).readline()",
    "run_in_thread": "run_in_thread(len, '')",
}

PROGRAM = """
import sys, warnings
from flowno import *
from flowno import Stream
def show(message, category, filename, line, *_):
    print(category.__name__, str(message))
warnings.showwarning = show
async def main():
    one, other = socketpair()
    with one, other:
        forgets = {call}
        del forgets
EventLoop.slow_step_duration = 20.0  # of a machine that does much else nothing is to be said here
with EventLoop(debug=True) as loop:
    loop.run_until_complete(main(), join=True)
"""


@pytest.mark.parametrize("name", CALLS)
def test_an_operation_that_is_not_awaited_is_warned_of_with_where_it_was_made(name: str, run_python: RunPython) -> None:
    program = PROGRAM.replace("{call}", CALLS[name])
    result = run_python(program, options=("-W", "always"))
    assert result.stderr == ""
    assert "RuntimeWarning coroutine " in result.stdout
    assert f"{name}' was never awaited" in result.stdout.replace("BaseQueue.", "AsyncQueue.")
    assert "Coroutine created at (most recent call last)" in result.stdout
    assert ", in main" in result.stdout


@pytest.mark.not_in_debug_mode(reason="there is always a loop in debug mode")
def test_once_the_last_loop_in_debug_mode_has_gone_operations_are_generators_again() -> None:
    def is_native() -> bool:
        operation = sleep(0)
        operation.close()
        return inspect.iscoroutine(operation)

    first, second = EventLoop(debug=True), EventLoop(debug=True)
    assert is_native()
    first.close()
    assert is_native()
    second.close()
    assert not is_native()


def test_what_is_under_way_when_a_loop_in_debug_mode_comes_or_goes_is_finished_as_it_began() -> None:
    async def main() -> list[str]:
        one, other = socketpair()
        with one, other:
            receiving = await spawn(one.recv(100))
            debugged = EventLoop(debug=True)
            from_there = await spawn(Stream(other).readexactly(4))
            debugged.close()
            await one.sendAll(b"back")
            await other.sendAll(b"data")
            return [(await each.join()).decode() for each in (receiving, from_there)]

    assert run(main()) == ["data", "back"]


@pytest.mark.not_in_debug_mode(reason="operations are native coroutines")
def test_outside_debug_mode_nothing_is_said(run_python: RunPython) -> None:
    program = PROGRAM.replace("{call}", CALLS["sleep"]).replace("debug=True", "")
    result = run_python(program, options=("-W", "always"))
    assert (result.stdout, result.stderr) == ("", "")


def test_where_coroutines_are_made_is_kept_only_while_a_step_of_a_debugged_loop_runs(run_python: RunPython) -> None:
    program = """
import sys
from flowno import EventLoop
async def depth():
    return sys.get_coroutine_origin_tracking_depth()
sys.set_coroutine_origin_tracking_depth(3)
for debug in (True, False):
    with EventLoop(debug=debug) as loop:
        print(loop.run_until_complete(depth(), join=True), sys.get_coroutine_origin_tracking_depth())
"""
    assert run_python(program).stdout == "10 3\n3 3\n"


DECORATED = """
import inspect
from flowno import EventLoop
from flowno.core.event_loop.operations import coroutine

early = EventLoop(debug=True)

class Base:
    @coroutine
    def ask(self, /, number: int, *, more: int = 1):
        "What it is for."
        answer = yield number + more
        return answer

class Derived(Base):
    @coroutine
    def ask(self, /, number: int, *, more: int = 2):
        return (yield from super().ask(number, more=more))

function = Derived.ask
print(inspect.iscoroutinefunction(function), function.__qualname__, inspect.signature(function), Base.ask.__doc__)
one = Derived().ask(1)
print(one.send(None))
try:
    one.send("answer")
except StopIteration as stop:
    print(stop.value)
again = Derived().ask(1)
again.send(None)
try:
    again.throw(ValueError("into it"))
except ValueError as error:
    print(error)
"""


def test_what_it_decorates_is_called_as_before_and_gets_what_is_sent_and_thrown_in(run_python: RunPython) -> None:
    result = run_python(DECORATED)
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "True Derived.ask (self, /, number: int, *, more: int = 2) What it is for.",
        "3",
        "answer",
        "into it",
    ]
