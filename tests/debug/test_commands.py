"""flowno ps, where and top: what they print of a process, and what they say where there is none.

The process is this one: the step that asks blocks the loop, and the monitor answers all the same.
"""

import io
import json
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

import flowno
from flowno import EventLoop, TaskGroup, sleep
from flowno.cli import main as command_line
from flowno.debug import Monitor
from flowno.debug.asking import MonitorError, ask
from flowno.debug.protocol import Answer

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="Python has no Unix sockets here"),
]


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield f"{folder}/socket"


async def works() -> None:
    await sleep(60)


def told(path: str, *arguments: str) -> int:
    """The exit code of a command that asks this process, in which a task waits and another one is stuck."""
    codes: list[int] = []

    async def program() -> None:
        async with TaskGroup() as group:
            for name in ("first", "second"):
                await group.spawn(works(), name=name)
            codes.append(command_line([*arguments[:1], path, *arguments[1:]]))
            group.cancel_scope.cancel()

    with Monitor(path):
        flowno.run(program())
    return codes[0]


PLACE = f"{__file__}:{works.__code__.co_firstlineno + 1}"


def test_ps_lists_the_tasks_as_a_tree(path: str, backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(path, "ps") == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    head, titles, root, *rows = printed.splitlines()
    assert head == f"<EventLoop {backend} running> in MainThread, tasks: 3 (0 ready, 2 waiting), fds: 0, timers: 2"
    assert titles.split() == ["task", "state", "waits", "for", "where"]
    assert root.startswith("told.<locals>.program  running")
    assert [row.split()[:2] for row in rows] == [["first", "waiting"], ["second", "waiting"]]
    assert all(row.startswith("  ") and "s left of 60 s" in row and row.endswith(PLACE) for row in rows)


def test_where_shows_the_stacks(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(path, "where") == 0
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("  - first waits for a timer"))
    assert lines[first + 1] == f"      at {PLACE} in works"
    assert lines[first + 2].endswith(" in sleep")
    assert "timers:" in lines


def test_where_shows_one_task_by_its_name_or_id(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(path, "where", "second") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("- second waits for a timer")
    assert len(lines) == 4
    assert told(path, "where", "second", "--json") == 0
    (task,) = json.loads(capsys.readouterr().out)["loops"][0]["tasks"]
    assert task["name"] == "second"


def test_where_a_task_is_by_its_id(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def program() -> None:
        loop = flowno.current_event_loop()
        assert loop is not None
        (task,) = loop.snapshot().tasks
        assert command_line(["where", path, str(task.id)]) == 0

    with Monitor(path):
        flowno.run(program())
    assert "program is running" in capsys.readouterr().out


def test_where_says_that_there_is_no_such_task(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(path, "where", "third") == 1
    message = f"flowno where: process {os.getpid()} has no task 'third'; `flowno ps` lists those that it has\n"
    assert capsys.readouterr() == ("", message)


@pytest.mark.parametrize("command", ["ps", "where"])
def test_as_json_it_is_what_the_monitor_tells(path: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(path, command, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert list(answer) == list(Answer._fields)
    assert answer["pid"] == os.getpid()
    (loop,) = answer["loops"]
    assert [task["state"] for task in loop["tasks"]] == ["running", "waiting", "waiting"]
    assert loop["tasks"][1]["parent"] == loop["tasks"][0]["id"]
    assert loop["tasks"][1]["stack"][0]["function"] == "works"


@pytest.mark.parametrize("command", ["ps", "where"])
def test_a_process_without_a_loop_says_so(path: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Monitor(path):
        assert command_line([command, path]) == 0
    assert capsys.readouterr() == (f"no event loop runs in process {os.getpid()}\n", "")


@pytest.mark.parametrize("command", ["ps", "where", "top"])
def test_where_nobody_listens_it_fails_in_one_line(path: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line([command, path]) == 1
    assert capsys.readouterr() == ("", f"flowno {command}: {path}: No such file or directory\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
    assert command_line([command, path]) == 1
    assert capsys.readouterr() == ("", f"flowno {command}: {path}: nobody listens there; the process has ended\n")


# ------------------------------------------------------------------------------------------------------------------ top


def looks(path: str, number: int, monkeypatch: pytest.MonkeyPatch, tasks: int = 2, height: int = 40) -> str:
    """What top shows, one look after the other, until the process ends."""
    console_of = pytest.importorskip("rich.console").Console
    from flowno.debug import top

    monkeypatch.setattr(top, "INTERVAL", 0)
    answers: list[Answer] = []
    console = console_of(file=io.StringIO(), width=100, height=height)

    def look() -> Answer:
        if len(answers) == number:
            raise MonitorError("it has ended")
        answers.append(ask(path))
        return answers[-1]

    async def program() -> None:
        async with TaskGroup() as group:
            for each in range(tasks):
                await group.spawn(works(), name=f"worker [red]{each}")
            with pytest.raises(MonitorError, match="it has ended"):
                top.watch(look, console)
            group.cancel_scope.cancel()

    with Monitor(path):
        flowno.run(program())
    return str(console.file.getvalue())


def test_top_shows_what_runs_first_and_what_the_others_wait_for(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    title = f"process {os.getpid()}\n"
    before, *shown = looks(path, 3, monkeypatch).split(title)
    assert (before, len(shown)) == ("", 3)
    head, _, table = shown[-1].partition(" task ")
    words = " ".join(head.split())
    assert " in MainThread, tasks: 3 (0 ready, 2 waiting), fds: 0, timers: 2, threads: 0, busy, waits/s: " in words
    _, running, *rows = table.rstrip().splitlines()
    assert running.split()[1:] == ["running", running.split()[-1]]
    assert [row.split()[:3] for row in rows] == [["worker", f"[red]{number}", "waiting"] for number in range(2)]
    assert all("a timer, " in row and row.rstrip().endswith(os.path.basename(PLACE)) for row in rows)


def test_top_says_of_a_loop_that_has_just_stopped_that_it_does_not_run(backend: str) -> None:
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=200)
    from flowno.debug import top

    with EventLoop() as loop:
        answer = Answer(1, (loop.snapshot(),))
    console.print(top.screen_of(answer, answer, 40))
    assert f"<EventLoop {backend} idle> not running, tasks: 0 " in console.file.getvalue()


def test_top_shows_as_many_tasks_as_there_are_lines_for(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = looks(path, 1, monkeypatch, tasks=100, height=20).rstrip().splitlines()
    assert len(lines) <= 20
    assert "... and " in lines[-1]


def test_top_ends_with_the_process_and_with_ctrl_c(
    path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    from flowno.debug import top

    def end(seconds: float) -> None:
        opened.close()

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    opened = Monitor(path)
    monkeypatch.setattr(top.time, "sleep", end)
    assert command_line(["top", path]) == 1
    assert capsys.readouterr().err == f"flowno top: {path}: No such file or directory\n"
    monkeypatch.setattr(top.time, "sleep", interrupt)
    with Monitor(path):
        assert command_line(["top", path]) == 130
    assert f"no event loop runs in process {os.getpid()}" in capsys.readouterr().out


def test_top_without_rich_says_what_to_install(
    path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.delitem(sys.modules, "flowno.debug.top", raising=False)
    assert command_line(["top", path]) == 1
    message = "flowno top: it draws by rich, which is not installed; the extra 'monitor' of flowno has it\n"
    assert capsys.readouterr() == ("", message)


def test_the_commands_need_somebody_to_ask(capsys: pytest.CaptureFixture[Any]) -> None:
    for command in ("ps", "where", "top"):
        assert command_line([command]) == 2
        assert "PID|SOCKET" in capsys.readouterr().err
