"""Signal handlers: they run in the loop's thread while it sleeps, and what they ask for ends the sleep."""

import os

import pytest

from tests.conftest import RunPython

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.skipif(os.name != "posix", reason="this platform has neither SIGUSR1 nor setitimer"),
]

PROGRAM = """
import os, signal, socket, sys
import flowno
from flowno import ClosedResourceError, EventLoop, SocketHandle, TaskCancelled, sleep, spawn
from flowno.core.event_loop.backend import SystemWorld, open_selector

when, what = sys.argv[1:]

class Selector:
    def __init__(self):
        self.inner = open_selector(None).selector
        self.register, self.modify = self.inner.register, self.inner.modify
        self.unregister, self.close = self.inner.unregister, self.inner.close
        self.world = World()
    def select(self, timeout=None):
        if not armed or not timeout:
            return self.inner.select(timeout)
        armed.clear()
        if when == "as it begins":
            os.kill(os.getpid(), signal.SIGUSR1)
        else:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
        events = self.inner.select(timeout)
        if not events:
            outcome.append("slept on")
        return events

class World(SystemWorld):
    def clock(self):
        if armed and when == "just before" and not loop.ready and loop.running_task is None:
            armed.clear()
            os.kill(os.getpid(), signal.SIGUSR1)
        return super().clock()

armed, outcome = [], []

async def child():
    outcome.append("created")
    await root_task.cancel()

async def waiter(handle):
    try:
        await handle.recv(1)
    except TaskCancelled:
        outcome.append("cancelled")
    except ClosedResourceError:
        outcome.append("closed")
    await root_task.cancel()

def handler(*_):
    if what == "create":
        loop.create_task(child())
    elif what == "cancel":
        task.cancel()
    else:
        handle.close()

async def main():
    global handle, task
    ends = socket.socketpair()
    with SocketHandle(ends[0]) as handle, ends[1]:
        task = await spawn(waiter(handle))
        armed.append(True)
        try:
            await sleep(1_000_000)
        finally:
            if what == "create":
                await task.cancel()

signal.signal(signal.SIGUSR1, handler)
signal.signal(signal.SIGALRM, handler)
selector = Selector()
with EventLoop(selector) as loop:
    root_task = loop.create_task(main())
    loop.run_until_complete(sleep(0))
selector.inner.close()
print(*outcome)
"""


@pytest.mark.parametrize("what", ["create", "cancel", "close"])
@pytest.mark.parametrize("when", ["just before", "as it begins", "in the middle"])
def test_what_a_signal_handler_asks_for_ends_the_wait(when: str, what: str, run_python: RunPython) -> None:
    result = run_python(PROGRAM, when, what, timeout=20)
    expected = {"create": "created cancelled", "cancel": "cancelled", "close": "closed"}[what]
    assert (result.stdout.strip(), result.stderr) == (expected, "")
