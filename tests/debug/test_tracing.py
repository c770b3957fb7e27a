"""Traces: what is in them, that they are right by the rules of their format, and that a program does not notice."""

import gc
import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import flowno
from flowno import AsyncQueue, Event, EventLoop, Lock, SocketHandle, TaskGroup, run_in_thread, sleep, spawn
from flowno.core.event_loop import exchange
from flowno.core.event_loop.observers import entering, leaving
from flowno.debug import trace, tracing
from flowno.debug.trace_file import PIECE, TraceFile
from tests.conftest import ROOT, RunPython
from tests.support import wine
from tests.support.loopback import listening, pair, receive
from tests.support.tasks import FOREVER, fail, value
from tests.support.tls import tls_pair
from tests.support.trace_format import Trace, read_trace
from tests.support.virtual_time import VirtualTimeSelector

pytestmark = pytest.mark.usefixtures("backend")
on_posix = pytest.mark.skipif(os.name != "posix", reason="signals and forks of POSIX")

Main = Callable[[], Coroutine[Any, Any, Any]]


def traced(path: Path, main: Main) -> Trace:
    """The trace of a program."""
    with trace(path):
        flowno.run(main())
    return read_trace(path)


def line_of(function: Any, text: str) -> str:
    """``file:line`` of the line of a function that has this text."""
    first = function.__code__.co_firstlineno
    for number, line in enumerate(Path(__file__).read_text(encoding="utf-8").splitlines()[first - 1 :], first):
        if text in line:
            return f"{os.path.basename(__file__)}:{number}"
    raise AssertionError(text)


# -------------------------------------------------------------------------------------------------------- what it shows


def test_a_task_has_a_slice_with_its_steps_and_between_them_its_waits(tmp_path: Path) -> None:
    async def worker() -> None:
        await sleep(0.001)
        await sleep(0)
        await sleep(0.002)

    async def main() -> None:
        await (await spawn(worker(), name="the worker")).join()

    found = traced(tmp_path / "trace.json", main)
    task = next(one for one in found.slices if one.name == "the worker")
    assert task.lane == worker.__qualname__
    assert task.args == {"function": worker.__qualname__, "outcome": "returned"}
    inside = sorted((one for one in found.slices if one.task == "the worker"), key=lambda one: one.start)
    # It is not shown as ready where its step begins in the moment in which its wait ends.
    categories = [one.category for one in inside]
    assert "ready" in categories
    assert [each for each in categories if each != "ready"] == ["step", "wait", "step", "step", "wait", "step"]
    assert all(one.end == following.start for one, following in pairwise(inside))  # without a gap
    assert (inside[0].start, inside[-1].end) == (task.start, task.end)


def test_a_step_says_from_which_line_to_which_it_went_in_the_programs_own_code(tmp_path: Path) -> None:
    async def inner() -> None:
        await sleep(0.001)  # inner

    async def worker() -> None:
        await inner()
        await sleep(0)  # outer

    async def main() -> None:
        await (await spawn(worker(), name="worker")).join()

    steps = traced(tmp_path / "trace.json", main).of("step", "worker")
    first = f"{worker.__qualname__} {line_of(worker, 'async def worker')}"
    second = f"{inner.__qualname__} {line_of(inner, '# inner')}"
    third = f"{worker.__qualname__} {line_of(worker, '# outer')}"
    assert [(one.name, one.args.get("until")) for one in steps] == [(first, second), (second, third), (third, None)]
    assert steps[1].args["at"] == f"{__file__}:{second.rpartition(':')[2]}"


async def wait_for_data() -> None:
    with pair() as (one, other):
        task = await spawn(one.recv(1), name="waiter")
        await sleep(0.001)
        await other.sendAll(b"x")
        await task.join()


async def wait_for_a_connection() -> None:
    with listening() as listener, flowno.socket() as client:
        task = await spawn(listener.accept(), name="waiter")
        await sleep(0.001)
        await flowno.connect(client, listener.getsockname())
        (await task.join())[0].close()


async def wait_for_an_event() -> None:
    event = Event()
    task = await spawn(event.wait(), name="waiter")
    event.set()
    await task.join()


async def wait_for_a_lock() -> None:
    lock = Lock()
    async with lock:
        task = await spawn(lock.acquire(), name="waiter")
    await task.join()


async def wait_for_an_item() -> None:
    queue: AsyncQueue[int] = AsyncQueue()
    task = await spawn(queue.get(), name="waiter")
    await queue.put(1)
    await task.join()


async def wait_for_a_task() -> None:
    async def waiter() -> None:
        await ended.join()

    event = Event()
    ended = await spawn(event.wait(), name="ended")
    task = await spawn(waiter(), name="waiter")
    event.set()
    await task.join()


async def wait_for_a_group() -> None:
    async def waiter() -> None:
        async with TaskGroup() as group:
            await group.spawn(event.wait(), name="ended")

    event = Event()
    task = await spawn(waiter(), name="waiter")
    await sleep(0)
    event.set()
    await task.join()


async def wait_for_cancellation() -> None:
    task = await spawn(sleep(FOREVER), name="waiter")
    await task.cancel()


async def wait_for_the_time() -> None:
    await (await spawn(sleep(0.001), name="waiter")).join()


async def wait_for_a_thread() -> None:
    await (await spawn(run_in_thread(int), name="waiter")).join()


@pytest.mark.parametrize(
    ("main", "wait", "waker"),
    [
        (wait_for_data, "waits for data", "selector"),
        (wait_for_a_connection, "waits for a connection", "selector"),
        (wait_for_an_event, "waits for an event", "wait_for_an_event"),
        (wait_for_a_lock, "waits for a lock", "wait_for_a_lock"),
        (wait_for_an_item, "waits for an item", "wait_for_an_item"),
        (wait_for_a_task, "waits for the end of a task", "ended"),
        (wait_for_a_group, "waits for the tasks of its group", "ended"),
        (wait_for_cancellation, "sleeps", "wait_for_cancellation"),
        (wait_for_the_time, "sleeps", "selector"),
        (wait_for_a_thread, "waits for a thread", "selector"),
    ],
)
def test_a_wait_says_what_for_and_an_arrow_comes_from_who_ended_it(
    tmp_path: Path, main: Main, wait: str, waker: str
) -> None:
    found = traced(tmp_path / "trace.json", main)
    waits = found.of("wait", "waiter")
    assert waits[-1].name == wait
    assert "Command(" in waits[-1].args["for"]
    to_waiter = [(who, whom) for who, whom in found.arrows if whom.task == "waiter"]
    who, whom = to_waiter[-1]
    assert (who.task or who.category) == waker
    assert whom.category == "ready"
    assert whom.start == waits[-1].end
    spawner, born = to_waiter[0]
    assert (spawner.task, born.category) == (main.__name__, "ready")


def test_with_sockets_in_use_the_arrows_are_the_same(tmp_path: Path) -> None:
    async def main() -> None:
        with pair() as (one, _):
            idle = await spawn(one.recv(1), name="idle")
            await wait_for_an_event()
            await wait_for_a_task()
            await idle.cancel()

    found = traced(tmp_path / "trace.json", main)
    name = main.__qualname__
    assert found.between() == [
        (name, "idle"), (name, "waiter"), (name, "waiter"), ("waiter", name),
        (name, "ended"), (name, "waiter"), (name, "ended"), ("ended", "waiter"), ("waiter", name),
        (name, "idle"), ("idle", name),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("coroutine", "outcome"),
    [
        (lambda: value(1), "returned"),
        (lambda: fail(ValueError("no")), "error: ValueError"),
        (lambda: sleep(FOREVER), "cancelled"),
    ],
)
def test_a_task_says_how_it_ended(tmp_path: Path, coroutine: Main, outcome: str) -> None:
    async def main() -> None:
        task = await spawn(coroutine(), name="it")
        await sleep(0)
        if outcome == "cancelled":
            await task.cancel()
        elif task.is_error:
            task.exception()

    found = traced(tmp_path / "trace.json", main)
    assert [one.args["outcome"] for one in found.slices if one.name == "it"] == [outcome]


def test_the_lane_of_the_selector_shows_how_long_the_loop_waited_and_for_how_long_it_would_have(tmp_path: Path) -> None:
    with EventLoop() as loop, trace(tmp_path / "trace.json"):
        loop.run_until_complete(sleep(0.005), join=True)
    waits = read_trace(tmp_path / "trace.json").of("selector")
    assert {one.lane for one in waits} == {f"selector: {loop._selector_name}"}
    assert {one.name for one in waits} == {"waits"}
    assert all(0 < one.args["timeout"] <= 0.005 and one.args["ready"] == 0 for one in waits)
    assert sum(one.end - one.start for one in waits) > 3_000_000


def test_the_lane_of_the_selector_shows_how_many_descriptors_were_ready(tmp_path: Path) -> None:
    asked = traced(tmp_path / "trace.json", wait_for_data).of("selector")
    assert [one.args["ready"] for one in asked if one.args["ready"]] == [1]


def test_bytes_are_counted_however_they_come_and_go(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"f" * 1000)

    async def main() -> None:
        with pair() as (one, other):
            await one.sendAll(b"x" * 10)
            assert len(await other.recv(100)) == 10
            assert await one.send(b"y" * 20) == 20
            assert await other.recv_into(bytearray(100)) == 20
            assert await one.sendmsg([b"a", b"bc"]) == 3
            await other.recv(100)
            with file.open("rb") as source:
                await one.sendfile(source)
            await receive(other, 1000)
        sockets = [SocketHandle(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2)]
        with sockets[0] as one, sockets[1] as other:
            other.bind(("127.0.0.1", 0))
            await one.sendto(b"d" * 100, other.getsockname())
            assert len((await other.recvfrom(1000))[0]) == 100

    counters = traced(tmp_path / "trace.json", main).counters
    for curve in (counters["bytes in"], counters["bytes out"]):
        assert curve[0] == 0
        assert curve == sorted(curve)
        assert curve[-1] == 10 + 20 + 3 + 1000 + 100


def test_of_tls_the_bytes_of_the_network_are_counted(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, tmp_path: Path
) -> None:
    async def main() -> None:
        with tls_pair(server_context, client_context) as (client, server):
            reader = await spawn(receive(server, 1000))
            await client.sendAll(b"x" * 1000)
            await reader.join()

    counters = traced(tmp_path / "trace.json", main).counters
    assert counters["bytes in"][-1] > 1500


# ------------------------------------------------------------------------------------------------------------ the lanes


def test_a_lane_is_used_again_by_the_next_task_of_its_function(tmp_path: Path) -> None:
    async def worker(number: int) -> None:
        await sleep(0)

    async def main() -> None:
        for number in range(50):
            await (await spawn(worker(number), name=f"worker {number}")).join()
        await (await spawn(value(1))).join()

    found = traced(tmp_path / "trace.json", main)
    assert list(found.lanes.values())[1:] == [[main.__qualname__], [worker.__qualname__], ["value"]]
    assert len(found.of("task")) == 52


def test_where_there_are_too_many_tasks_they_share_a_lane_and_every_step_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "LANES", 3)
    event = Event()

    async def worker() -> None:
        await event.wait()

    async def main() -> None:
        tasks = [await spawn(worker(), name=f"worker {number}") for number in range(5)]
        event.set()
        for task in tasks:
            await task.join()
        await (await spawn(value(1, turns=1), name="late")).join()

    found = traced(tmp_path / "trace.json", main)
    assert sorted(list(found.lanes.values())[1:]) == sorted(
        [
            [main.__qualname__],
            [worker.__qualname__, "tasks of several functions"],
            [worker.__qualname__],
            ["further tasks, without their waits"],
        ]
    )
    for number in range(5):
        assert len(found.of("step", f"worker {number}")) == 2
    shared = [one for one in found.slices if one.lane.startswith("further")]
    assert {one.category for one in shared} == {"step"}
    assert (main.__qualname__, "worker 4") in found.between()
    assert len(found.of("step", "late")) == 2


def test_an_arrow_in_the_shared_lane_leads_somewhere_also_where_the_task_does_not_run_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "LANES", 1)

    async def main() -> None:
        event = Event()
        task = await spawn(event.wait(), name="waiter")
        await sleep(0)
        with trace(tmp_path / "trace.json"):
            await sleep(0)
            event.set()
        await task.join()

    flowno.run(main())
    assert read_trace(tmp_path / "trace.json").between() == [(main.__qualname__, "waiter")]


def test_thousands_of_tasks_at_once_make_no_more_lanes_than_a_viewer_can_show(tmp_path: Path) -> None:
    event = Event()

    async def main() -> None:
        async with TaskGroup() as group:
            for _ in range(2000):
                await group.spawn(event.wait())
            event.set()

    found = traced(tmp_path / "trace.json", main)
    assert len(found.lanes) == tracing.LANES + 2  # and that of the selector, and the one that is shared
    assert len(found.of("step")) >= 4000


# ---------------------------------------------------------------------------------------------------- when, and of what


def test_in_a_loop_that_runs_it_begins_and_ends_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"

    async def main() -> None:
        event = Event()
        before = await spawn(event.wait(), name="before")
        await sleep(0)
        with trace(path):
            after = await spawn(event.wait(), name="after")
            await sleep(0)
            await spawn(sleep(0), name="not run any more")
            after.cancel()
        event.set()
        await before.join()

    flowno.run(main())
    found = read_trace(path)
    outcomes = {one.name: one.args["outcome"] for one in found.of("task")}
    assert outcomes == dict.fromkeys([main.__qualname__, "before", "after", "not run any more"], "none yet")
    assert [one.name for one in found.of("wait", "before")] == ["waits for an event"]
    assert [one.category for one in found.slices if one.task == "after"][-1] == "ready"


def test_every_loop_that_runs_meanwhile_has_its_group_of_lanes_also_in_other_threads(tmp_path: Path) -> None:
    with EventLoop() as loop, trace(tmp_path / "trace.json"):
        loop.run_until_complete(sleep(0))
        flowno.run(wait_for_data())
        thread = threading.Thread(target=lambda: flowno.run(wait_for_data()), name="another")
        thread.start()
        thread.join()
        loop.run_until_complete(value(1), join=True)
    found = read_trace(tmp_path / "trace.json")
    name = loop._selector_name
    assert found.processes == [
        f"{name} event loop 1, MainThread", f"{name} event loop 3, MainThread", f"{name} event loop 6, another",
    ]  # fmt: skip
    assert len(found.of("step", "waiter")) >= 4
    assert found.of("step", "value")


@pytest.mark.usefixtures("untraced_process")
def test_traces_may_overlap_and_end_in_any_order_and_nothing_stays_behind(tmp_path: Path) -> None:
    names = ["recv_into", "_sock_recv", "_sock_send", "_read_by", "_write_by"]
    before = [vars(SocketHandle)[name] for name in names]

    async def main() -> EventLoop:
        loop = flowno.current_event_loop()
        assert loop is not None
        first, second = trace(tmp_path / "first.json"), trace(tmp_path / "second.json")
        first.__enter__()
        await wait_for_data()
        second.__enter__()
        await wait_for_data()
        first.__exit__(None, None, None)
        await wait_for_data()
        second.__exit__(None, None, None)
        assert not loop.step_wrappers
        assert not loop.select_wrappers
        assert "_select" not in vars(loop)
        assert loop.close_callbacks == callbacks
        return loop

    with EventLoop() as loop:
        callbacks = list(loop.close_callbacks)
        loop.run_until_complete(main(), join=True)
    assert [vars(SocketHandle)[name] for name in names] == before
    assert not exchange.layers
    for name in ("first", "second"):
        found = read_trace(tmp_path / f"{name}.json")
        assert found.counters["bytes in"][-1] == 2
        assert len([one for one in found.of("wait") if one.name == "waits for data"]) == 2


@pytest.mark.usefixtures("untraced_process")
def test_a_trace_that_ends_in_another_thread_leaves_the_loop_as_it_was(tmp_path: Path) -> None:
    started, ended = threading.Event(), Event()
    loops: list[EventLoop] = []

    async def main() -> None:
        loop = flowno.current_event_loop()
        assert loop is not None
        loops.append(loop)
        started.set()
        await ended.wait()
        assert not loop.step_wrappers

    with trace(tmp_path / "trace.json"):
        thread = threading.Thread(target=lambda: flowno.run(main()))
        thread.start()
        started.wait(10)
    read_trace(tmp_path / "trace.json")
    loops[0].call_soon_threadsafe(ended.set)
    thread.join()


def test_a_task_that_was_closed_where_it_stood_is_not_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "flowno")  # the record would keep it

    async def stubborn() -> None:
        for _ in range(5):
            try:
                await sleep(FOREVER)
            except flowno.TaskCancelled:
                pass

    with EventLoop() as loop, trace(tmp_path / "trace.json"):
        task = loop.create_task(stubborn(), name="stubborn")
        reference = weakref.ref(task)
        del task
        loop.run_until_complete(flowno.exit(), join=True)
        assert reference() is None
        loop.run_until_complete(value(1), join=True)
    outcomes = {one.name: one.args["outcome"] for one in read_trace(tmp_path / "trace.json").of("task")}
    assert outcomes["stubborn"] == "cancelled"


def test_in_virtual_time_the_trace_has_real_times(tmp_path: Path) -> None:
    with VirtualTimeSelector() as selector, EventLoop(selector) as loop, trace(tmp_path / "trace.json"):
        loop.run_until_complete(sleep(3600), join=True)
    (wait,) = read_trace(tmp_path / "trace.json").of("wait")
    assert wait.args["for"] == "SleepCommand(3600.0)"
    assert wait.end - wait.start < 60e9


@pytest.mark.usefixtures("untraced_process")
def test_a_loop_that_is_dropped_is_freed_by_its_last_reference_and_its_part_is_complete(tmp_path: Path) -> None:
    gc.disable()
    try:
        with trace(tmp_path / "trace.json"):
            loop = EventLoop()
            loop.run_until_complete(wait_for_data(), join=True)
            reference = weakref.ref(loop)
            del loop
            assert reference() is None
    finally:
        gc.enable()
    assert read_trace(tmp_path / "trace.json").of("task")
    assert not entering
    assert not leaving


def test_an_error_of_a_task_has_no_frame_of_the_trace_and_keeps_nothing_alive(tmp_path: Path) -> None:
    async def main() -> None:
        task = await spawn(fail(ValueError("no")), name="it")
        error = task.exception() if task.done() else None
        assert error is not None
        assert error.__traceback__ is not None
        assert error.__traceback__.tb_frame.f_code.co_name == "fail"
        reference = weakref.ref(task)
        del task, error
        await sleep(0)
        gc.disable()
        assert reference() is None

    try:
        traced(tmp_path / "trace.json", main)
    finally:
        gc.enable()


# ------------------------------------------------------------------------------------------------------------- the file


@pytest.mark.usefixtures("untraced_process")
def test_a_path_that_cannot_be_written_is_said_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), trace(tmp_path / "nowhere" / "trace.json"):
        pass
    assert not entering
    assert not leaving


@wine.says_nothing_of_locks
def test_two_traces_do_not_write_into_one_file(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with trace(path):
        with pytest.raises(OSError, match="another trace is being written there"), trace(path):
            raise AssertionError
        flowno.run(wait_for_data())
    assert read_trace(path).of("wait")
    with trace(path):  # it is free again
        pass


def test_what_is_kept_in_memory_is_bounded_and_the_file_is_whole_after_each_piece(tmp_path: Path) -> None:
    file = TraceFile(tmp_path / "trace.json")
    number = 0
    for number in range(20_000):
        file.add({"number": number, "text": "x" * 50})
        assert len(file._events) < PIECE
    seen = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert len(seen) > 19_000
    file.close()
    file.close()
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [event["number"] for event in events] == list(range(number + 1))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_ends_the_trace_and_not_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = TraceFile._write
    written = 0

    def write(self: TraceFile, data: bytes) -> None:
        nonlocal written
        written += 1
        if written == 2:
            original(self, data[:100])
            with open("/dev/full", "wb", buffering=0) as full:
                full.write(data)
        original(self, data)

    monkeypatch.setattr(TraceFile, "_write", write)
    with trace(tmp_path / "trace.json"):
        flowno.run(wait_for_data())
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"] == []
    (record,) = caplog.records
    assert record.name == "flowno.trace"
    assert "No space left on device" in record.getMessage()


@on_posix
def test_a_pipe_gets_the_same_document(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read: list[str] = []
    thread = threading.Thread(target=lambda: read.append(fifo.read_text()))
    thread.start()
    with trace(fifo):
        flowno.run(wait_for_data())
    thread.join()
    (tmp_path / "trace.json").write_text(read[0])
    assert read_trace(tmp_path / "trace.json").of("wait")


PROGRAM = """
import os, signal, sys
import flowno
from flowno.debug import trace

async def main():
    await flowno.spawn(flowno.sleep(60), name="sleeper")
    await flowno.sleep(0.001)
    {end}
    await flowno.sleep(60)

with trace(sys.argv[1]):
    flowno.run(main())
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("raise ValueError", 1),
        ("sys.exit(3)", 3),
        pytest.param("signal.raise_signal(signal.SIGINT)", -2, marks=on_posix),
        pytest.param("signal.raise_signal(signal.SIGINT); signal.raise_signal(signal.SIGINT)", -2, marks=on_posix),
    ],
    ids=["error", "exit", "Ctrl-C", "Ctrl-C twice"],
)
def test_however_the_program_ends_the_trace_is_complete(
    tmp_path: Path, run_python: RunPython, end: str, code: int
) -> None:
    path = tmp_path / "trace.json"
    result = run_python(PROGRAM.format(end=end), str(path))
    assert result.returncode == code, result.stderr
    found = read_trace(path)
    assert {one.name for one in found.of("task")} >= {"main", "sleeper"}
    assert "cancelled" in {one.args["outcome"] for one in found.of("task")}


@on_posix
def test_after_sigkill_the_file_is_whole_and_has_what_came_before_the_last_long_wait(
    tmp_path: Path, run_python: RunPython
) -> None:
    path = tmp_path / "trace.json"
    end = "flowno.current_event_loop().call_soon_threadsafe(print); await flowno.sleep(0.01); os.kill(os.getpid(), 9)"
    result = run_python(PROGRAM.format(end=end), str(path))
    assert result.returncode == -signal.SIGKILL
    names = [event.get("name") for event in json.loads(path.read_text())["traceEvents"]]
    assert {"main", "sleeper"} <= set(names)


# --------------------------------------------------------------------------------------------------------- FLOWNO_TRACE

LOOPS = """
import os, sys
import flowno

async def main():
    await flowno.sleep(0.001)

flowno.run(main())
flowno.run(main())
if "fork" in sys.argv and os.fork() == 0:
    flowno.run(main())
    sys.exit()
elif "fork" in sys.argv:
    os.wait()
    flowno.run(main())
"""


def test_the_variable_traces_every_loop_of_a_program(tmp_path: Path, run_python: RunPython) -> None:
    result = run_python(LOOPS, env={"FLOWNO_TRACE": str(tmp_path / "trace.json")})
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    found = read_trace(tmp_path / "trace.json")
    assert len(found.processes) == 2
    assert len(found.of("wait")) == 2


@on_posix
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_write_into_the_trace_of_its_parent(tmp_path: Path, run_python: RunPython) -> None:
    result = run_python(LOOPS, "fork", env={"FLOWNO_TRACE": str(tmp_path / "trace.json")})
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert len(read_trace(tmp_path / "trace.json").processes) == 3
    assert os.listdir(tmp_path) == ["trace.json"]


@on_posix
def test_with_its_number_in_the_path_each_process_has_a_trace_of_its_own(tmp_path: Path, run_python: RunPython) -> None:
    result = run_python(LOOPS, "fork", env={"FLOWNO_TRACE": str(tmp_path / "trace-{pid}.json")})
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert sorted(len(read_trace(path).processes) for path in tmp_path.iterdir()) == [1, 3]


@on_posix
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_waits_for_no_lock_that_a_thread_of_its_parent_has(tmp_path: Path) -> None:
    tracer = tracing.Tracer(tmp_path / "trace.json")
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with tracer.lock, tracer.file._lock, tracing._counting_lock:
            held.set()
            done.wait()

    with EventLoop() as loop:
        tracer.start()
        loop.run_until_complete(sleep(0))
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(10)  # ends it where it hangs
            try:
                tracer.stop()
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        done.set()
        thread.join()
        tracer.stop()
    assert status == 0


@wine.says_nothing_of_locks
def test_a_program_that_another_one_starts_does_not_write_into_its_trace(tmp_path: Path, run_python: RunPython) -> None:
    child = "import flowno; flowno.run(flowno.sleep(0.001))"
    program = f"{LOOPS}\nimport subprocess\nsubprocess.run([sys.executable, '-c', {child!r}], check=True)"
    path = tmp_path / "trace.json"
    result = run_python(program, env={"FLOWNO_TRACE": str(path)})
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr.startswith(f"FLOWNO_TRACE={path}: there will be no trace: ")
    assert "another trace is being written there" in result.stderr
    assert result.stderr.count("\n") == 1
    assert len(read_trace(path).processes) == 2


@on_posix
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_that_lives_on_does_not_keep_others_from_the_file(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with trace(tmp_path / "trace.json"):
            child = os.fork()
            if not child:
                ours.close()
                theirs.send(b"x")
                theirs.recv(1)  # until the parent has looked
                os._exit(0)
            assert ours.recv(1) == b"x"
        with trace(tmp_path / "trace.json"):
            pass
    os.waitpid(child, 0)


def test_a_variable_that_names_no_file_is_one_line_in_the_log(tmp_path: Path, run_python: RunPython) -> None:
    path = tmp_path / "nowhere" / "trace.json"
    result = run_python(LOOPS, env={"FLOWNO_TRACE": str(path)})
    assert result.returncode == 0
    assert result.stderr.startswith(f"FLOWNO_TRACE={path}: there will be no trace: ")
    assert result.stderr.count("\n") == 1


def test_the_variable_is_ignored_where_the_environment_is_not_trusted(tmp_path: Path, run_python: RunPython) -> None:
    program = f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'backends')]!r}\n{LOOPS}"
    result = run_python(program, options=["-I"], env={"FLOWNO_TRACE": str(tmp_path / "trace.json")})
    assert result.returncode == 0
    assert result.stderr.count("RuntimeWarning: FLOWNO_TRACE=") == 1
    assert not (tmp_path / "trace.json").exists()


def test_without_it_nothing_of_the_debugging_is_loaded(run_python: RunPython) -> None:
    result = run_python(f"{LOOPS}\nprint([name for name in sys.modules if name.startswith('flowno.debug')])")
    assert (result.stdout, result.stderr) == ("[]\n", "")


# --------------------------------------------------------------------------------------------------------- flowno trace

TRACED = """
import os, signal, sys
import flowno

def outermost():
    return sys.modules["__main__"].__dict__ is globals()

async def main():
    await flowno.sleep(0)
    end = sys.argv[1]
    if end == "value":
        print(__name__, __file__, sys.argv, sys.path[0], outermost())
    elif end == "error":
        raise ValueError("no")
    elif end == "os error":
        raise OSError(28, "no space")
    elif end == "exit":
        sys.exit(7)
    elif end == "message":
        sys.exit("bye")
    elif end == "interrupt":
        signal.raise_signal(signal.SIGINT)
        await flowno.sleep(60)

flowno.run(main())
"""


def run_flowno(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run ``flowno``, or with ``python`` as the first argument Python."""
    command = [sys.executable, *arguments[1:]] if arguments[0] == "python" else [sys.executable, "-m", *arguments]
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1"}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=30 * wine.PATIENCE, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize(
    "end",
    ["value", "error", "os error", "exit", "message", pytest.param("interrupt", marks=on_posix)],
)
def test_a_program_that_is_traced_runs_prints_and_ends_as_it_does_under_python(tmp_path: Path, end: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "program.py").write_text(TRACED)
    program = os.path.join("folder", "program.py")
    alone = run_flowno("python", program, end, "--option", "-o", "x", cwd=tmp_path)
    under = run_flowno("flowno", "trace", program, end, "--option", "-o", "x", cwd=tmp_path)
    assert (under.returncode, under.stdout, under.stderr) == (alone.returncode, alone.stdout, alone.stderr)
    assert [one.name for one in read_trace(tmp_path / "trace.json").of("task")] == ["main"]


def test_the_option_says_where_the_trace_goes(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(TRACED)
    result = run_flowno("flowno", "trace", "-o", "other.json", "program.py", "value", cwd=tmp_path)
    assert result.returncode == 0
    assert read_trace(tmp_path / "other.json").of("step")


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.stdout.close()",
        "import sys; sys.stdout = None",
        "def f(x: int): pass\nassert f.__annotations__ == {'x': int}",
    ],
    ids=["closes its output", "has no output", "reads its annotations"],
)
def test_a_program_has_its_output_and_its_annotations_as_under_python(tmp_path: Path, program: str) -> None:
    (tmp_path / "program.py").write_text(program)
    result = run_flowno("flowno", "trace", "program.py", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_option_and_the_variable_may_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "program.py").write_text(TRACED)
    monkeypatch.setenv("FLOWNO_TRACE", "same.json")
    result = run_flowno("flowno", "trace", "-o", "same.json", "program.py", "exit", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (7, "")
    assert read_trace(tmp_path / "same.json").of("step")


def test_a_program_with_a_syntax_error_ends_as_under_python(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("1 +\n")
    result = run_flowno("flowno", "trace", "program.py", cwd=tmp_path)
    assert result.returncode == 1
    assert "SyntaxError" in result.stderr
    assert "cli.py" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.py"], 2, "flowno trace: error: cannot read nowhere.py: "),
        ([], 2, "flowno trace: error: the following arguments are required: program.py"),
        (["-o", "nowhere/trace.json", "program.py"], 1, "flowno trace: nowhere/trace.json: "),
        (["-o", "./program.py", "program.py"], 2, "flowno trace: error: -o ./program.py is the program itself"),
    ],
)
def test_what_cannot_be_traced_is_said_in_one_line(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "program.py").write_text("print('runs')")
    result = run_flowno("flowno", "trace", *arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.splitlines()[-1].startswith(message)
