"""print_tasks() shows every loop of the process, in few lines; a signal prints the same, and is not swallowed."""

import io
import itertools
import os
import re
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import flowno
from flowno import EventLoop, EventLoopError, Stream, TaskGroup, gather, print_tasks, sleep, spawn
from flowno.core.event_loop.snapshots import FrameSnapshot, TaskSnapshot, TimerSnapshot, take_snapshot
from flowno.debug import report_on_signal, reports
from flowno.debug.reports import lines_of, place_of, printable
from tests.conftest import RunPython
from tests.support.tasks import FOREVER

pytestmark = pytest.mark.usefixtures("backend")

needs_usr1 = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no SIGUSR1")


def printed() -> str:
    file = io.StringIO()
    print_tasks(file)
    return file.getvalue()


def run_and_print(main: Callable[[], Awaitable[str]]) -> list[str]:
    with EventLoop() as loop:
        task = loop.create_task(main(), name="main")
        loop.run_until_complete(task.join(), join=True, wait_for_spawned_tasks=False)
        return task.result().splitlines()


def tree_of(lines: list[str]) -> list[str]:
    """The lines of the tasks, cut before what they do."""
    return [line.partition(" waits")[0].partition(" is ")[0] for line in lines if line.lstrip().startswith("- ")]


# ------------------------------------------------------------------------------------------------------------- the text


def test_the_place_of_a_task_is_a_line_of_the_program_however_deep_in_flowno_it_waits() -> None:
    async def reads(stream: Stream) -> None:
        await stream.readline()

    async def main() -> str:
        near, far = flowno.socketpair()
        with far:
            async with Stream(near) as stream, TaskGroup() as group:
                await group.spawn(reads(stream), name="reader")
                await sleep(0)
                [snapshot] = reports.take_all()
                group.cancel_scope.cancel()
        [reader] = [task for task in snapshot.tasks if task.name == "reader"]
        assert [frame.is_own for frame in reader.stack[:2]] == [False, True]
        return place_of(reader)

    assert run_and_print(main) == [f"{__file__}:{reads.__code__.co_firstlineno + 1}"]


def test_it_prints_a_tree_with_places_registrations_and_timers(backend: str) -> None:
    near, far = flowno.socketpair()

    async def reads() -> None:
        await near.recv(1)

    async def main() -> str:
        async with TaskGroup() as group:
            await group.spawn(reads(), name="reader")
            await group.spawn(sleep(60), name="sleeper")
            text = printed()
            group.cancel_scope.cancel()
        return text

    with near, far:
        lines = run_and_print(main)
    assert lines[0] == f"<EventLoop {backend} running> in MainThread, tasks: 4 (0 ready, 3 waiting), fds: 1, timers: 1"
    assert tree_of(lines) == ["- TaskHandle.join", "  - main", "    - reader", "    - sleeper"]
    fd = next(line for line in lines if "- reader" in line).rpartition(" ")[2]
    waits = re.compile(rf"    - reader waits for data (from \S+ )?on fd {fd}")  # a socketpair by TCP has addresses
    (reader,) = (number for number, line in enumerate(lines) if waits.fullmatch(line))
    assert lines[reader + 1] == f"        at {__file__}:{reads.__code__.co_firstlineno + 1} in {reads.__qualname__}"
    registered = re.compile(rf"  fd {fd}( \S+ -> \S+)?, armed: read, reader waits to read")
    assert any(map(registered.fullmatch, lines[lines.index("registrations:") :]))
    assert lines[-1].endswith(" s: wakes sleeper")


def test_a_timer_that_is_overdue_says_by_how_much() -> None:
    with EventLoop() as loop:
        snapshot = take_snapshot(loop)
    timers = (TimerSnapshot(-0.284, "wakes one", None), TimerSnapshot(1.5, "wakes another", None))
    *_, first, second = lines_of(snapshot._replace(timers=timers, counters=snapshot.counters._replace(timers=2)))
    assert (first, second) == ("  overdue by 0.28 s: wakes one", "  1.50 s: wakes another")


def test_tasks_that_join_each_other_in_a_ring_are_all_shown() -> None:
    async def joins(other: str) -> None:
        while other not in tasks:
            await sleep(0)
        await tasks[other].join()

    tasks: dict[str, Any] = {}

    async def main() -> str:
        for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
            tasks[name] = await spawn(joins(other), name=name)
        for _ in range(5):
            await sleep(0)
        await spawn(tasks["a"].join(), name="outside")
        text = printed()
        for task in tasks.values():
            task.cancel()
        return text

    shown = tree_of(run_and_print(main))
    assert sorted(line.strip("- ") for line in shown if "TaskHandle" not in line) == ["a", "b", "c", "main", "outside"]
    assert shown[shown.index("- a") :][:3] == ["- a", "  - b", "    - c"]


def test_of_many_that_are_alike_a_few_are_shown() -> None:
    async def main() -> str:
        async with TaskGroup() as group:
            for _ in range(10_000):
                await group.spawn(sleep(FOREVER), name="worker")
            await group.spawn(sleep(FOREVER), name="boss")
            text = printed()
            group.cancel_scope.cancel()
        return text

    lines = run_and_print(main)
    assert len(lines) < 30
    assert tree_of(lines)[1:] == [
        "  - main",
        *["    - worker"] * 3,
        "    - boss",
        "    - and 9997 more worker at the same place",
    ]


def test_ten_thousand_tasks_of_different_names_are_not_all_shown() -> None:
    async def main() -> str:
        for number in range(10_000):
            await spawn(sleep(1000 + number), name=f"worker {number}")
        return printed()

    lines = run_and_print(main)
    assert len(lines) < 3 * reports.MOST_TASKS
    assert f"... and more; {reports.MOST_TASKS} of 10002 tasks were shown" in lines
    assert lines[-1] == "  ... and 9980 more"


def test_a_chain_that_is_deeper_than_python_recurses_is_printed() -> None:
    async def main() -> str:
        task = await spawn(sleep(FOREVER), name="end")
        for _ in range(2000):
            task = await spawn(task.join(), name="link")
        return printed()

    assert max(len(line) - len(line.lstrip()) for line in run_and_print(main)) == 2 * reports.DEEPEST + 4


def test_a_name_cannot_move_the_cursor_nor_begin_a_line() -> None:
    async def main() -> str:
        await spawn(sleep(60), name="\x1b[2Jone\ntwo\ud800" + "x" * 1000)
        return printed()

    text = "\n".join(run_and_print(main))
    assert r"- \x1b[2Jone\ntwo\ud800xxx" in text
    assert max(map(len, text.splitlines())) < 3 * reports.LONGEST


def test_a_file_with_a_small_alphabet_gets_what_it_has_and_no_error() -> None:
    buffer = io.BytesIO()
    file = io.TextIOWrapper(buffer, encoding="ascii")

    async def main() -> str:
        await spawn(sleep(60), name="Müßiggang")
        print_tasks(file)
        file.flush()
        return buffer.getvalue().decode("ascii")

    assert r"- M\xfc\xdfiggang waits" in "\n".join(run_and_print(main))


@pytest.mark.parametrize(("own", "place"), [((True, False, True), 1), ((True, True), 0)])
def test_a_task_is_at_the_innermost_line_of_the_program_else_at_the_outermost(
    own: tuple[bool, ...], place: int
) -> None:
    stack = tuple(FrameSnapshot("file.py", line, "function", is_own) for line, is_own in enumerate(own))
    task = TaskSnapshot(1, "task", "waiting", None, None, None, None, False, stack)
    assert place_of(task) == f"file.py:{place}"


def test_the_middle_of_a_very_long_stack_is_left_out() -> None:
    stack = tuple(FrameSnapshot("deep.py", line, "down", is_own=False) for line in range(1000))
    task = TaskSnapshot(1, "deep", "ready", None, None, None, None, False, stack)
    with EventLoop() as loop:
        snapshot = take_snapshot(loop)._replace(tasks=(task,))
    lines = list(lines_of(snapshot))
    assert lines[2] == "    at deep.py:0 in down"
    assert "    ..." in lines
    assert lines[-1] == "    at deep.py:999 in down"
    assert len(lines) < 50


@pytest.mark.parametrize(
    ("text", "shown"), [("a b", "a b"), ("é", "é"), ("\r\t\\", "\\r\\t\\"), ("x" * 300, "x" * 200 + "...")]
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_without_a_loop_that_is_what_it_says() -> None:
    assert printed() == "no event loop runs in this process\n"


def test_it_goes_to_standard_output_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    print_tasks()
    assert capsys.readouterr() == ("no event loop runs in this process\n", "")


# -------------------------------------------------------------------------------------------------------------- threads


class Stuck:
    """Event loops, each in a thread of its own, that are stuck in a step until this is left."""

    def __init__(self, number: int) -> None:
        self._go_on = threading.Event()
        self._barrier = threading.Barrier(number + 1)
        self._threads = [threading.Thread(target=self._run, name=f"thread {each}") for each in range(number)]

    def __enter__(self) -> "Stuck":
        for thread in self._threads:
            thread.start()
        self._barrier.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._go_on.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        flowno.run(self._blocks())

    async def _blocks(self) -> None:
        await spawn(sleep(FOREVER), name="bystander")
        self._barrier.wait(20)
        self._go_on.wait(20)


def test_loops_that_are_stuck_in_two_threads_are_both_printed_from_a_third() -> None:
    with Stuck(2):
        lines = printed().splitlines()
    for number in range(2):
        assert any(f"in thread {number}, tasks: 2" in line for line in lines)
    assert lines.count("- Stuck._blocks is running") == 2
    assert sum(line.startswith("- bystander waits for its cancellation") for line in lines) == 2
    assert printed() == "no event loop runs in this process\n"


def test_the_loop_of_this_thread_comes_first() -> None:
    async def main() -> str:
        return printed()

    with Stuck(2):
        assert "in MainThread" in run_and_print(main)[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_forked_child_prints_its_own_loop_and_none_of_the_other_threads(run_python: RunPython) -> None:
    program = """
import os, sys, threading
import flowno

started, go_on = threading.Event(), threading.Event()

async def other():
    started.set()
    go_on.wait(20)

async def main():
    pid = os.fork()
    if pid == 0:
        flowno.print_tasks()
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)

thread = threading.Thread(target=lambda: flowno.run(other()), name="other")
thread.start()
started.wait(20)
flowno.run(main())
go_on.set()
thread.join()
"""
    result = run_python(program, options=("-W", "error", "-W", "ignore::DeprecationWarning"))
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert [line for line in lines if line.startswith("<EventLoop")] == lines[:1]
    assert "in MainThread" in lines[0]
    assert lines[1] == "- main is running"


# ------------------------------------------------------------------------------------------------------------ by signal


@needs_usr1
@pytest.mark.parametrize("when", ["stuck", "asleep", "idle"])
def test_a_signal_prints_the_tasks_whatever_the_loop_is_at(when: str) -> None:
    file = io.StringIO()

    async def main() -> None:
        if when == "stuck":
            signal.raise_signal(signal.SIGUSR1)
            return
        task = await spawn(sleep(FOREVER), name="sleeper")
        sender = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGUSR1))
        sender.start()
        while not file.getvalue():
            await sleep(0.01)
        sender.join()
        await task.cancel()

    with report_on_signal(signal.SIGUSR1, file):
        if when == "idle":
            signal.raise_signal(signal.SIGUSR1)
        else:
            flowno.run(main())
    first, *lines = file.getvalue().splitlines()
    if when == "idle":
        assert first == "no event loop runs in this process"
    else:
        assert "in MainThread, tasks: " in first
        assert any("main is running" in line or "main waits for a timer" in line for line in lines)
    assert "_arrived" not in file.getvalue()


@needs_usr1
def test_a_signal_prints_a_loop_that_is_stuck_in_another_thread() -> None:
    file = io.StringIO()
    with report_on_signal(signal.SIGUSR1, file), Stuck(1):
        signal.raise_signal(signal.SIGUSR1)
    assert "- Stuck._blocks is running" in file.getvalue()


@needs_usr1
def test_the_handler_of_the_program_is_called_after_the_report_and_put_back() -> None:
    file = io.StringIO()
    calls: list[tuple[int, bool]] = []

    def handler(number: int, frame: object) -> None:
        calls.append((number, bool(file.getvalue())))

    outer = signal.signal(signal.SIGUSR1, handler)
    try:
        with report_on_signal(signal.SIGUSR1, file):
            signal.raise_signal(signal.SIGUSR1)
        assert calls == [(signal.SIGUSR1, True)]
        assert signal.getsignal(signal.SIGUSR1) is handler
    finally:
        signal.signal(signal.SIGUSR1, outer)


@needs_usr1
def test_a_handler_that_was_set_meanwhile_is_left_and_may_call_ours() -> None:
    file = io.StringIO()
    outer = signal.getsignal(signal.SIGUSR1)
    try:
        with report_on_signal(signal.SIGUSR1, file):
            ours = signal.getsignal(signal.SIGUSR1)
            assert callable(ours)
            theirs = signal.signal(signal.SIGUSR1, lambda *args: ours(*args))
            signal.raise_signal(signal.SIGUSR1)
            assert file.getvalue()
        assert theirs is ours
        signal.raise_signal(signal.SIGUSR1)  # it does nothing any more, and does no harm
        assert file.getvalue().count("no event loop") == 1
    finally:
        signal.signal(signal.SIGUSR1, outer)


@pytest.mark.skipif(os.name != "posix", reason="the shell's signals")
def test_sigterm_still_ends_the_process_after_the_report(run_python: RunPython) -> None:
    program = """
import os, signal
import flowno
from flowno.debug import report_on_signal

async def main():
    os.kill(os.getpid(), signal.SIGTERM)
    await flowno.sleep(20)

with report_on_signal(signal.SIGTERM):
    flowno.run(main())
"""
    result = run_python(program)
    assert result.returncode == -signal.SIGTERM
    assert "- main is running" in result.stderr


@needs_usr1
def test_what_a_handler_raises_that_comes_during_the_report_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    def stop(number: int, frame: object) -> None:
        raise Stop

    def slow(texts: list[str], made: Any) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    monkeypatch.setattr(reports, "_make", slow)
    outer = signal.signal(signal.SIGTERM, stop)
    try:
        with report_on_signal(signal.SIGUSR1, io.StringIO()), pytest.raises(Stop):
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGTERM, outer)


@needs_usr1
def test_without_a_thread_to_make_it_there_is_no_report_and_no_error() -> None:
    file = io.StringIO()
    threading.stack_size(1 << 46)  # no machine has so much
    try:
        with report_on_signal(signal.SIGUSR1, file):
            signal.raise_signal(signal.SIGUSR1)
    finally:
        threading.stack_size(0)
    assert file.getvalue() == "there is no report: can't start new thread\n"


@needs_usr1
def test_it_writes_past_the_buffer_of_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    """The signal may have come in the lock of the buffer."""
    reading, writing = os.pipe()
    with open(writing, "w") as file, report_on_signal(signal.SIGUSR1, file):
        file.write("this waits in the buffer")
        signal.raise_signal(signal.SIGUSR1)
        assert os.read(reading, 1000) == b"no event loop runs in this process\n"
    os.close(reading)


class Refusing(io.StringIO):
    def write(self, text: str) -> int:
        raise ZeroDivisionError("no")


class Closed(io.StringIO):
    def __init__(self) -> None:
        super().__init__()
        self.close()


@needs_usr1
@pytest.mark.parametrize(("kind", "reason"), [(Refusing, "no"), (Closed, "I/O operation on closed file")])
def test_a_file_that_takes_no_report_is_logged_once_and_raises_nothing_into_the_program(
    kind: type[io.StringIO], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with report_on_signal(signal.SIGUSR1, kind()):
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
    [message] = [record.getMessage() for record in caplog.records if record.name == "flowno.debug"]
    assert message.startswith(f"the report on signal {signal.SIGUSR1:d} cannot be written to <")
    assert message.endswith(f": {reason}")


@needs_usr1
def test_a_real_file_that_was_closed_raises_nothing_either(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    file = open(tmp_path / "file", "w")  # noqa: SIM115  # it is closed in the block
    with report_on_signal(signal.SIGUSR1, file):
        file.close()
        signal.raise_signal(signal.SIGUSR1)
    assert [record.name for record in caplog.records] == ["flowno.debug"]


@needs_usr1
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_in_whatever_order_they_are_left_the_handler_of_before_is_put_back(order: tuple[int, ...]) -> None:
    outer = signal.getsignal(signal.SIGUSR1)
    reporters = [report_on_signal(signal.SIGUSR1, io.StringIO()) for _ in order]
    for each in reporters:
        each.__enter__()
    for index in order:
        reporters[index].__exit__(None, None, None)
    assert signal.getsignal(signal.SIGUSR1) is outer


@needs_usr1
def test_neither_the_handler_nor_the_monitor_hides_a_deadlock(run_python: RunPython, tmp_path: Any) -> None:
    program = """
import signal, sys
import flowno
from flowno.debug import Monitor, report_on_signal

with report_on_signal(signal.SIGUSR1), Monitor(sys.argv[1]):
    try:
        flowno.run(flowno.Event().wait())
    except flowno.DeadlockError as error:
        print(error)
"""
    result = run_python(program, str(tmp_path))
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "no task can ever go on:",
        "  <TaskHandle Event.wait alive> waits for an event (1 waiting)",
    ]


@needs_usr1
def test_what_is_no_signal_is_refused() -> None:
    with pytest.raises(TypeError, match="a signal is a number"):
        report_on_signal("USR1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="this system has no signal 12345"):
        report_on_signal(12345)
    with pytest.raises(ValueError, match="SIGINT would not end a run in order"):
        report_on_signal(signal.SIGINT)
    with pytest.raises(OSError, match="SIGKILL cannot be handled"), report_on_signal(signal.SIGKILL):
        pass


@needs_usr1
def test_it_is_entered_once_and_in_the_main_thread() -> None:
    errors: list[str] = []

    def enter() -> None:
        try:
            report_on_signal(signal.SIGUSR1).__enter__()
        except EventLoopError as error:
            errors.append(str(error))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert errors == ["report_on_signal() cannot be entered here: signals come to the main thread only"]
    reporter = report_on_signal(signal.SIGUSR1)
    with reporter, pytest.raises(EventLoopError, match="entered already"):
        reporter.__enter__()


def test_the_children_of_gather_stand_below_the_one_that_gathers() -> None:
    async def look() -> str:
        return printed()

    async def main() -> str:
        text, _ = await gather(look(), sleep(0))
        return str(text)

    shown = tree_of(run_and_print(main))
    assert shown[1] == "  - main"
    assert all(line.startswith("    - ") for line in shown[2:])
