"""A process that forks: the child's loop is its own, and the parent's does not notice."""

import os

import pytest

from tests.conftest import RunPython

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")

#: Python 3.12 warns of a fork where there is another thread, which is what some of these are about.
FORKING = ("-W", "error", "-W", "ignore::DeprecationWarning")

PRELUDE = """
import os, selectors, signal, socket, sys, time
import flowno
from flowno import EventLoop, SocketHandle, sleep, spawn

signal.alarm(20)

def pair():
    return [SocketHandle(end) for end in socket.socketpair()]

def in_child(work):
    sys.stdout.flush()  # or both would have what is in the buffer
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        try:
            work()
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}")
            code = 1
        sys.stdout.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_a_loop_made_before_a_fork_runs_in_the_child_and_in_the_parent(backend: str, run_python: RunPython) -> None:
    program = (
        PRELUDE
        + """
async def exchange(text):
    one, other = pair()
    reader = await spawn(one.recv(9))
    await sleep(0)
    await other.sendAll(text)
    assert await reader.join() == text
    one.close(); other.close()
    print(text.decode())
    sys.stdout.flush()

with EventLoop() as loop:
    loop.run_until_complete(exchange(b"before"), join=True)
    print(in_child(lambda: loop.run_until_complete(exchange(b"child"), join=True)))
    loop.run_until_complete(exchange(b"parent"), join=True)
"""
    )
    result = run_python(program, options=FORKING)
    assert (result.stdout.split(), result.stderr) == (["before", "child", "0", "parent"], "")


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_a_loop_forked_while_it_runs_goes_on_in_the_child_and_in_the_parent(
    backend: str, run_python: RunPython
) -> None:
    """Sockets that are registered in both, timers, and the way in for other threads."""
    program = (
        PRELUDE
        + """
import threading

async def reader(handle, name):
    data = await handle.recv(9)
    return data

async def root():
    one, other = pair()
    waiting = await spawn(reader(one, "x"))
    sleeper = await spawn(sleep(0.05))
    await sleep(0)
    pid = os.fork()
    who = "parent"
    if pid == 0:
        signal.alarm(10)
        who = "child"
        # What the child takes out of its selector stays in the parent's.
        await waiting.cancel()
        one.close(); other.close()
        one, other = pair()
        waiting = await spawn(reader(one, "x"))
    else:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print("child ended with", code)
    await sleeper.join()
    loop = flowno.current_event_loop()
    async def send():
        await other.sendAll(who.encode())
    thread = threading.Thread(target=lambda: loop.create_task(send()))
    thread.start()
    print((await waiting.join()).decode(), who)
    thread.join()
    one.close(); other.close()
    sys.stdout.flush()
    if pid == 0:
        os._exit(0)

flowno.run(root())
"""
    )
    result = run_python(program, options=FORKING)
    assert (result.stdout.splitlines(), result.stderr) == (
        ["child child", "child ended with 0", "parent parent"],
        "",
    )


def test_a_child_does_not_wake_its_parent_nor_the_other_way_round(backend: str, run_python: RunPython) -> None:
    """Both have a waker of their own: a task created in the child does not end the parent's wait."""
    program = (
        PRELUDE
        + """
from tests.support.counting_selector import CountingSelector

async def root():
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        loop = flowno.current_event_loop()
        import threading
        async def nothing(): pass
        for _ in range(50):
            thread = threading.Thread(target=lambda: loop.create_task(nothing()))
            thread.start()
            await sleep(0.001)
            thread.join()
        os._exit(0)
    before = counting.calls["select"]
    await sleep(0.3)
    print(counting.calls["select"] - before < 10)
    os.waitpid(pid, 0)

counting = CountingSelector()
counting.after_fork = counting.inner.after_fork
with EventLoop(counting) as loop:
    loop.run_until_complete(root(), join=True)
counting.inner.close()
"""
    )
    result = run_python(program, options=FORKING)
    assert (result.stdout.split(), result.stderr) == (["True"], "")


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.parametrize("when", ["between two runs", "during a run"])
def test_a_foreign_selector_is_a_clear_error_in_the_child_and_works_on_in_the_parent(
    when: str, run_python: RunPython
) -> None:
    program = (
        PRELUDE
        + f"""
async def exchange():
    one, other = pair()
    reader = await spawn(one.recv(9))
    await sleep(0)
    pid = None
    if {when == "during a run"}:
        pid = os.fork()
        if pid == 0:
            signal.alarm(10)
            await sleep(0)
            await sleep(0)
            print("not reached")
        else:
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    await other.sendAll(b"data")
    print((await reader.join()).decode())
    one.close(); other.close()

parent = os.getpid()
selector = selectors.DefaultSelector()
loop = EventLoop(selector)
loop.run_until_complete(sleep(0))
def run():
    coroutine = exchange()
    try:
        loop.run_until_complete(coroutine, join=True)
    finally:
        coroutine.close()
if {when == "between two runs"}:
    print(in_child(run))
    run()
else:
    try:
        run()
    except flowno.EventLoopError as error:
        print("EventLoopError:", error)
        sys.stdout.flush()
        os._exit(1 if os.getpid() != parent else 2)
loop.close()
selector.close()
"""
    )
    result = run_python(program, options=FORKING)
    lines = result.stdout.splitlines()
    assert lines[0].startswith("EventLoopError:"), result.stdout + result.stderr
    assert "after_fork" in lines[0]
    assert "fork" in lines[0]
    assert lines[1:] == ["1", "data"]


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.parametrize("when", ["between two runs", "during a run"])
def test_a_foreign_selector_with_after_fork_is_told_before_its_first_use_in_the_child(
    when: str, run_python: RunPython
) -> None:
    program = (
        PRELUDE
        + f"""
class Told(selectors.SelectSelector):
    forks = 0
    pid = os.getpid()
    def after_fork(self):
        self.forks += 1
        self.pid = os.getpid()
    def select(self, timeout=None):
        assert self.pid == os.getpid()
        return super().select(timeout)

async def exchange():
    one, other = pair()
    reader = await spawn(one.recv(9))
    await sleep(0)
    child = {when == "during a run"} and os.fork() == 0
    if {when == "during a run"} and not child:
        print(os.waitstatus_to_exitcode(os.wait()[1]))
    if child:
        await reader.cancel()
        one.close(); other.close()
        one, other = pair()
        reader = await spawn(one.recv(9))
    await other.sendAll(b"data")
    print((await reader.join()).decode(), selector.forks, flush=True)
    one.close(); other.close()
    if child:
        os._exit(0)

selector = Told()
with EventLoop(selector) as loop:
    run = lambda: loop.run_until_complete(exchange(), join=True)
    loop.run_until_complete(sleep(0))
    if {when == "between two runs"}:
        print(in_child(run))
    run()
selector.close()
"""
    )
    result = run_python(program, options=FORKING)
    assert (result.stdout.splitlines(), result.stderr) == (["data 1", "0", "data 0"], "")


def test_a_new_loop_in_the_child_needs_nothing(backend: str, run_python: RunPython) -> None:
    program = (
        PRELUDE
        + """
async def root():
    def work():
        async def inner():
            return await sleep(0.001) > 0
        thread_result = []
        import threading
        thread = threading.Thread(target=lambda: thread_result.append(flowno.run(inner())))
        thread.start(); thread.join()
        assert thread_result == [True]
    print(in_child(work))
    await sleep(0.001)

flowno.run(root())
print(in_child(lambda: flowno.run(sleep(0.001))))
"""
    )
    result = run_python(program, options=FORKING)
    assert (result.stdout.split(), result.stderr) == (["0", "0"], "")


def test_a_task_that_waits_for_a_worker_thread_is_told_in_the_child_that_it_did_not_come_along(
    backend: str, run_python: RunPython
) -> None:
    program = (
        PRELUDE
        + """
import threading
from flowno.core.event_loop.backend import SystemWorld, open_selector

class World(SystemWorld):
    gate = threading.Event()
    asked = threading.Event()
    def getaddrinfo(self, *args):
        self.asked.set()
        self.gate.wait(10)
        return socket.getaddrinfo("127.0.0.1", 1)

async def resolve():
    with flowno.socket() as client:
        try:
            await flowno.connect(client, ("name.test", 1))
        except (OSError, RuntimeError) as error:
            return type(error).__name__

async def root():
    task = await spawn(resolve())
    selector.world.asked.wait(10)
    pid = os.fork()
    if pid == 0:
        signal.alarm(5)
        print(await task.join())
        sys.stdout.flush()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    selector.world.gate.set()
    print(await task.join())

selector = open_selector(None).selector
selector.world = World()
with EventLoop(selector) as loop:
    loop.run_until_complete(root(), join=True)
selector.close()
"""
    )
    result = run_python(program, options=FORKING)
    assert (result.stdout.split(), result.stderr) == (["EventLoopError", "0", "ConnectionRefusedError"], "")


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_a_child_that_only_execs_pays_nothing(backend: str, run_python: RunPython) -> None:
    program = (
        PRELUDE
        + """
import subprocess
async def root():
    one, other = pair()
    reader = await spawn(one.recv(9))
    await sleep(0)
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    await other.sendAll(b"data")
    print((await reader.join()).decode())
    one.close(); other.close()
flowno.run(root())
"""
    )
    result = run_python(program)
    assert (result.stdout.split(), result.stderr) == (["data"], "")


def test_a_fork_while_another_thread_acts_on_a_loop_that_rests_does_not_stop_the_child(
    backend: str, run_python: RunPython
) -> None:
    program = (
        PRELUDE
        + """
import threading
inside, release = threading.Event(), threading.Event()

def act(_):
    inside.set()
    release.wait(15)

with EventLoop() as loop:
    thread = threading.Thread(target=loop.inbox.act, args=(act, None))
    thread.start()
    inside.wait()
    print(in_child(lambda: loop.run_until_complete(sleep(0), join=True)))
    release.set()
    thread.join()
"""
    )
    result = run_python(program, options=FORKING)
    assert (result.stdout.split(), result.stderr) == (["0"], "")
