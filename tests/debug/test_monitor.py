"""The monitor: private from its first moment, there while there is a loop, and held up by nobody."""

import errno
import json
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import flowno
from flowno import BusyResourceError, EventLoop, TaskGroup, sleep, spawn
from flowno.debug import Monitor, monitor
from flowno.debug.asking import MonitorError, ask, ask_target
from flowno.debug.protocol import LONGEST_REQUEST, MOST, PROTOCOL, decode, encode, path_of
from tests.conftest import ROOT, RunPython
from tests.support import wine
from tests.support.tasks import FOREVER

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="Python has no Unix sockets here"),
]

FORKING = ("-W", "error", "-W", "ignore::DeprecationWarning")


@pytest.fixture
def folder() -> Iterator[str]:
    """A short path: that of a Unix socket has about 100 bytes."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        yield path


@pytest.fixture
def path(folder: str) -> str:
    return f"{folder}/socket"


def connect(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(20)
    connection.connect(path)
    return connection


def talk(path: str, request: bytes) -> bytes:
    """What comes for these bytes until the end."""
    with connect(path) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while data := connection.recv(1 << 16):
            answer += data
        return answer


# ----------------------------------------------------------------------------------------------------------- the answer


def test_it_answers_while_the_loop_is_stuck_in_a_step(path: str, backend: str) -> None:
    async def main() -> None:
        await spawn(sleep(FOREVER), name="sleeper")
        answer = ask(path)  # which blocks
        assert answer.pid == os.getpid()
        (loop,) = answer.loops
        assert loop.selector == backend
        assert [(task.name.rpartition(".")[2], task.state) for task in loop.tasks] == [
            ("main", "running"),
            ("sleeper", "waiting"),
        ]
        assert __file__ in [frame.file for frame in loop.tasks[0].stack]

    with Monitor(path):
        flowno.run(main())
        assert ask(path).loops == ()


def test_what_is_told_is_what_the_snapshot_has(path: str) -> None:
    async def main() -> None:
        async with TaskGroup() as group:
            near, far = flowno.socketpair()
            with near, far:
                await group.spawn(near.recv(1), name="reader\n\ud800")
                loop = flowno.current_event_loop()
                assert loop is not None
                (told,) = ask(path).loops
                own = loop.snapshot()
                assert told.registrations == own.registrations
                assert told.tasks[1:] == own.tasks[1:]
                assert told.counters == own.counters
                group.cancel_scope.cancel()

    with Monitor(path):
        flowno.run(main())


def test_ten_thousand_tasks_are_counted_and_told_as_far_as_they_were_asked_for(path: str) -> None:
    async def main() -> None:
        async with TaskGroup() as group:
            for _ in range(MOST):
                await group.spawn(sleep(1000))
            for limit in (0, 10, MOST):
                (loop,) = ask(path, limit).loops
                assert loop.counters.tasks == MOST + 1
                assert len(loop.tasks) == len(loop.timers) == limit
            group.cancel_scope.cancel()

    with Monitor(path):
        flowno.run(main())


@pytest.mark.parametrize(
    ("request_line", "error"),
    [
        (b"\n", "the request is not understood"),
        (b"GET / HTTP/1.1\r\n", "the request is not understood"),
        (b"[]\n", "a request is an object whose protocol is 1"),
        (b'{"protocol": 2, "limit": 1}\n', "a request is an object whose protocol is 1"),
        (b'{"protocol": 1}\n', "limit must be a number from 0 to 10000"),
        (b'{"protocol": 1, "limit": -1}\n', "limit must be a number"),
        (b'{"protocol": 1, "limit": 1e9}\n', "limit must be a number"),
        (b"[" * LONGEST_REQUEST + b"\n", "the request is not understood"),
        (b"\xff\xfe\n", "the request is not understood"),
        (b"x" * (LONGEST_REQUEST + 1), f"a request has at most {LONGEST_REQUEST} bytes"),
    ],
)
def test_a_request_that_is_none_is_answered_with_what_is_wrong(path: str, request_line: bytes, error: str) -> None:
    with Monitor(path):
        told = json.loads(talk(path, request_line))
        assert told["protocol"] == PROTOCOL
        assert error in told["error"]
        assert ask(path).pid == os.getpid()


def test_a_client_that_says_nothing_gets_nothing(path: str) -> None:
    with Monitor(path):
        assert talk(path, b"") == b""
        assert talk(path, b'{"protocol"') == b""


# -------------------------------------------------------------------------------------------------------- slow and many


def test_clients_that_say_nothing_hold_up_nobody(path: str) -> None:
    with Monitor(path):
        silent = [connect(path) for _ in range(monitor.MOST_CLIENTS + 3)]
        assert ask(path).pid == os.getpid()
        assert silent[0].recv(1) == b""  # it has made room
        for connection in silent:
            connection.close()


def test_a_client_has_little_time(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "PATIENCE", 0.01)
    with Monitor(path), connect(path) as connection:
        connection.send(b"{")
        assert connection.recv(1) == b""


def test_a_client_that_does_not_take_its_answer_holds_up_nobody(path: str) -> None:
    async def main() -> None:
        for _ in range(3000):
            await spawn(sleep(1000))
        with connect(path) as lazy:
            lazy.send(b'{"protocol": 1, "limit": 10000}\n')
            assert lazy.recv(1) == b"{"  # the answer is on its way, and too long for any buffer
            assert len(ask(path).loops[0].tasks) == 3001

    with Monitor(path):
        flowno.run(main())


@pytest.mark.skipif(not hasattr(socket, "MSG_NOSIGNAL"), reason="a send that makes no SIGPIPE cannot be asked for")
def test_a_client_that_has_gone_does_not_end_a_program_without_a_handler_for_sigpipe(
    path: str, run_python: RunPython
) -> None:
    program = """
import signal, socket, sys, threading
import flowno
from flowno.debug import Monitor
from flowno.debug.asking import ask

signal.signal(signal.SIGPIPE, signal.SIG_DFL)

async def main():
    for _ in range(3000):
        await flowno.spawn(flowno.sleep(1000))
    with socket.socket(socket.AF_UNIX) as lazy:
        lazy.connect(sys.argv[1])
        lazy.send(b'{"protocol": 1, "limit": 10000}\\n')
        lazy.recv(1)
    print(len(ask(sys.argv[1], 0).loops))

with Monitor(sys.argv[1]):
    flowno.run(main())
"""
    result = run_python(program, path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "1\n", "")


def test_an_accept_that_fails_is_logged_and_the_monitor_goes_on(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(monitor, "REST", 0.001)

    class Failing:
        """A listener that fails once."""

        def __init__(self, listener: socket.socket) -> None:
            self._listener = listener
            self._failures = [OSError(24, "Too many open files")]

        def accept(self) -> Any:
            if self._failures:
                raise self._failures.pop()
            return self._listener.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._listener, name)

    def listen_and_fail(path: str) -> Any:
        listener, file = listen(path)
        return Failing(listener), file

    listen = monitor._listen
    monkeypatch.setattr(monitor, "_listen", listen_and_fail)
    with Monitor(path):
        assert ask(path).pid == os.getpid()
    assert [record.message for record in caplog.records] == [
        f"the monitor at {path} cannot accept a connection: [Errno 24] Too many open files"
    ]


# -------------------------------------------------------------------------------------------------------------- private


def mode_of(path: str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o177])
def test_the_file_is_for_its_owner_only_whatever_the_umask(path: str, umask: int) -> None:
    outer = os.umask(umask)
    try:
        with Monitor(path):
            assert mode_of(path) == 0o600
            assert stat.S_ISSOCK(os.lstat(path).st_mode)
    finally:
        assert os.umask(outer) == umask


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes the mode of the socket")
def test_on_linux_it_is_private_from_the_first_moment(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def chmod(*args: object) -> None:
        raise AssertionError("it was not")

    monkeypatch.setattr(os, "chmod", chmod)
    outer = os.umask(0)
    try:
        with Monitor(path):
            assert mode_of(path) == 0o600
    finally:
        os.umask(outer)


def test_elsewhere_it_is_private_before_anybody_can_connect(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fchmod(*args: object) -> None:
        raise OSError(22, "Invalid argument")

    modes: list[int] = []
    listen = socket.socket.listen

    class Listening(socket.socket):
        def listen(self, backlog: int = 0) -> None:
            modes.append(mode_of(path))
            listen(self, backlog)

    monkeypatch.setattr(os, "fchmod", fchmod)
    monkeypatch.setattr(monitor.socket, "socket", Listening)
    outer = os.umask(0)
    try:
        with Monitor(path):
            assert modes == [0o600]
    finally:
        os.umask(outer)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can be another user")
def test_another_user_gets_no_answer_even_where_the_file_lets_him_in(run_python: RunPython) -> None:
    program = """
import os, socket, sys, tempfile
from flowno.debug import Monitor
from flowno.debug.asking import ask

with tempfile.TemporaryDirectory(dir="/tmp") as folder, Monitor(folder + "/socket") as monitor:
    os.chmod(folder, 0o755)
    os.chmod(monitor.path, 0o666)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.setuid(65534)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(monitor.path)
            try:
                connection.send(b'{"protocol": 1, "limit": 0}\\n')
                print(connection.recv(100))
            except (ConnectionResetError, BrokenPipeError):
                print(b"")
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)
    print(ask(monitor.path).pid == os.getpid())
"""
    result = run_python(program, options=FORKING)
    assert (result.stdout.split(), result.stderr) == (["b''", "True"], "")


# ------------------------------------------------------------------------------------------------------------- the path


def test_the_file_goes_with_the_monitor(path: str) -> None:
    with Monitor(path):
        assert os.path.exists(path)
    assert not os.path.lexists(path)


def test_a_file_that_is_not_ours_any_more_stays(path: str) -> None:
    with Monitor(path):
        os.unlink(path)
        Path(path).write_text("somebody else's")
    assert Path(path).read_text() == "somebody else's"


@pytest.mark.parametrize("kind", ["file", "folder", "link", "listener"])
def test_what_is_there_already_is_refused_and_left_as_it_is(path: str, folder: str, kind: str) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener:
        if kind == "file":
            Path(path).write_text("precious")
        elif kind == "folder":
            Path(path_of(folder, os.getpid())).mkdir()
            path = folder
        elif kind == "link":
            os.symlink(f"{folder}/nowhere", path)
        else:
            listener.bind(path)
            listener.listen()
        before = identity(path)
        with pytest.raises(BusyResourceError, match="there is something at .* already.* choose another path"):
            Monitor(path)
        assert identity(path) == before
        assert os.listdir(folder) == [os.path.basename(path_of(path, os.getpid()))]


def identity(path: str) -> tuple[int, int, int, int, int]:
    """Which file stands at *path*, and when it was last written. When it was last read is no change of it."""
    found = os.lstat(path)
    return found.st_dev, found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns


def test_the_socket_of_a_process_that_has_ended_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
    with Monitor(path):
        assert ask(path).pid == os.getpid()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full backlog refuses as the socket of nobody does")
def test_the_socket_of_a_process_that_is_too_busy_to_accept_is_left(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, ExitStack() as clients:
        listener.bind(path)
        listener.listen(0)
        code = 0
        while not code:
            client = clients.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.setblocking(False)
            code = client.connect_ex(path)
        assert code == errno.EAGAIN
        before = identity(path)
        with pytest.raises(BusyResourceError, match="there is something at .* already"):
            Monitor(path)
        assert identity(path) == before


def test_a_folder_that_is_not_there_is_an_error_that_names_it(folder: str) -> None:
    with pytest.raises(OSError, match="No such file or directory: .*/nowhere/socket"):
        Monitor(f"{folder}/nowhere/socket")


def test_a_path_that_is_too_long_is_said_to_be(folder: str) -> None:
    path = f"{folder}/{'x' * 120}"
    with pytest.raises(OSError, match="the path is too long for a Unix socket") as caught:
        Monitor(path)
    assert (caught.value.errno, caught.value.filename) == (errno.ENAMETOOLONG, path)


def test_what_is_no_socket_is_named_for_what_it_is(folder: str, path: str) -> None:
    Path(path).write_text("")
    with pytest.raises(MonitorError, match=f"^{path}: that is no socket$"):
        ask_target(path)
    with pytest.raises(MonitorError, match=f"^{folder}: that is a folder; a monitor in it is flowno-NUMBER.sock$"):
        ask_target(folder)


def test_the_path_may_have_the_number_of_the_process_or_be_a_folder(folder: str) -> None:
    assert path_of(f"{folder}/{{pid}}.sock", 123) == f"{folder}/123.sock"
    assert path_of(folder, 123) == f"{folder}/flowno-123.sock"
    with Monitor(Path(folder)) as opened:
        assert opened.path == f"{folder}/flowno-{os.getpid()}.sock"


def test_one_that_cannot_begin_leaves_nothing(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(monitor, "OwnThread", refuse)
    with pytest.raises(MemoryError):
        Monitor(f"{folder}/socket")
    assert os.listdir(folder) == []


def test_a_program_may_change_its_folder(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with Monitor("socket"):
        monkeypatch.chdir("/")
        assert ask(f"{folder}/socket").pid == os.getpid()
    assert os.listdir(folder) == []


def test_python_without_unix_sockets_has_no_monitor(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(OSError, match="a monitor needs Unix sockets"):
        Monitor(path)
    for target in (path, str(os.getpid())):
        with pytest.raises(MonitorError, match="Unix socket"):
            ask_target(target)


# ------------------------------------------------------------------------------------------------------- by environment


def test_the_variable_opens_a_monitor_for_as_long_as_there_is_a_loop(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWNO_MONITOR", f"{folder}/{{pid}}")
    path = f"{folder}/{os.getpid()}"
    first = EventLoop()
    with EventLoop():
        assert ask(path).pid == os.getpid()
        first.close()
        assert ask(path).pid == os.getpid()
    assert os.listdir(folder) == []
    dropped = EventLoop()
    assert os.listdir(folder) == [str(os.getpid())]
    del dropped
    assert os.listdir(folder) == []


def test_a_path_that_cannot_be_had_is_logged_once_and_the_program_runs(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Path(path).write_text("precious")
    monkeypatch.setenv("FLOWNO_MONITOR", path)
    caplog.set_level(logging.WARNING, "flowno")
    for _ in range(2):
        flowno.run(sleep(0))
    (record,) = caplog.records
    assert record.message.startswith(
        f"FLOWNO_MONITOR={path}: this process has no monitor: there is something at {path}"
    )
    assert Path(path).read_text() == "precious"


def test_under_isolation_the_variable_is_ignored_with_a_warning(path: str, run_python: RunPython) -> None:
    program = f"""
import sys
sys.path[:0] = {[str(ROOT), str(ROOT / "backends")]!r}
import os, flowno
flowno.run(flowno.sleep(0))
print(os.path.exists({path!r}))
"""
    result = run_python(program, options=("-I",), env={"FLOWNO_MONITOR": path})
    assert result.stdout.split() == ["False"]
    assert f"FLOWNO_MONITOR={path} was ignored" in result.stderr


def test_a_program_that_ends_in_the_middle_of_a_run_leaves_no_file(folder: str, run_python: RunPython) -> None:
    program = """
import os, sys, flowno
loop = flowno.EventLoop()
loop.create_task(flowno.sleep(20))
print(os.listdir(sys.argv[1]))
sys.exit(3)
"""
    result = run_python(program, folder, env={"FLOWNO_MONITOR": f"{folder}/socket"})
    assert (result.returncode, result.stdout, result.stderr) == (3, "['socket']\n", "")
    assert os.listdir(folder) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_forked_child_leaves_the_monitor_to_its_parent_and_has_its_own(folder: str, run_python: RunPython) -> None:
    program = """
import os, sys
import flowno
from flowno.debug.asking import ask

folder = sys.argv[1]

async def main():
    pid = os.fork()
    if pid == 0:
        return
    os.waitpid(pid, 0)
    print("parent", ask(f"{folder}/{os.getpid()}").pid == os.getpid(), len(os.listdir(folder)))

async def child():
    print("child", ask(f"{folder}/{os.getpid()}").pid == os.getpid(), len(os.listdir(folder)))

parent = os.getpid()
flowno.run(main())
if os.getpid() != parent:
    print("inherited", len(os.listdir(folder)))
    flowno.run(child())
print(len(os.listdir(folder)))
"""
    result = run_python(program, folder, options=FORKING, env={"FLOWNO_MONITOR": f"{folder}/{{pid}}"})
    assert result.stderr == ""
    assert result.stdout.splitlines() == ["inherited 1", "child True 2", "1", "parent True 1", "0"]


# --------------------------------------------------------------------------------------------------- whom one asks, how


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the environment of another process")
@pytest.mark.parametrize("off", ["", "0"])
def test_a_process_whose_variable_is_off_has_no_monitor(off: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWNO_MONITOR", raising=False)
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={"FLOWNO_MONITOR": off}) as it,
        pytest.raises(MonitorError, match=f"process {it.pid} has no monitor that is known here"),
    ):
        ask_target(str(it.pid))


PROGRAM = """
import sys
import flowno

async def main():
    await flowno.spawn(flowno.sleep_forever(), name="sleeper")
    print("stuck", flush=True)
    sys.stdin.readline()

flowno.run(main())
"""


@pytest.fixture
def stuck(folder: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that is stuck in a step, until a line comes."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")]),
            "FLOWNO_MONITOR": f"{folder}/{{pid}}.sock",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "stuck\n"
        yield process
        process.communicate("go on\n", timeout=20 * wine.PATIENCE)
        assert process.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the environment of a process")
def test_on_linux_a_process_is_asked_by_its_number(stuck: "subprocess.Popen[str]") -> None:
    answer = ask_target(str(stuck.pid))
    assert answer.pid == stuck.pid
    assert [task.name for task in answer.loops[0].tasks] == ["main", "sleeper"]


def test_elsewhere_the_variable_here_says_where_a_number_listens(
    stuck: "subprocess.Popen[str]", folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowno.debug import asking

    monkeypatch.setattr(asking.sys, "platform", "darwin")
    monkeypatch.setenv("FLOWNO_MONITOR", f"{folder}/{{pid}}.sock")
    assert ask_target(str(stuck.pid)).pid == stuck.pid
    monkeypatch.setenv("FLOWNO_MONITOR", f"{folder}/{stuck.pid}.sock")
    with pytest.raises(MonitorError, match=f"process {stuck.pid} answers, and not 1"):
        ask_target("1")
    for off in ("", "0"):
        monkeypatch.setenv("FLOWNO_MONITOR", off)
        with pytest.raises(MonitorError, match="process 1 has no monitor that is known here: start it with FLOWNO_M"):
            ask_target("1")


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="there is no SIGSTOP")
def test_a_process_that_is_stopped_does_not_hold_up_who_asks(
    stuck: "subprocess.Popen[str]", folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowno.debug import asking

    monkeypatch.setattr(asking, "PATIENCE", 0.05)
    stuck.send_signal(signal.SIGSTOP)
    assert os.WIFSTOPPED(os.waitpid(stuck.pid, os.WUNTRACED)[1])  # all of its threads stand still
    try:
        with pytest.raises(MonitorError, match="no answer within 0.05 s; the process is stopped"):
            ask(f"{folder}/{stuck.pid}.sock")
    finally:
        stuck.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("target", ["999999999", "/nowhere/socket"])
def test_nobody_there_is_an_error_that_says_so(target: str) -> None:
    with pytest.raises(MonitorError, match="there is no process|No such file|no monitor that is known"):
        ask_target(target)


@pytest.mark.parametrize("answer", [b"", b"hello\n", b"{}\n", b'{"protocol": 1, "pid": 1, "loops": [{}]}\n'])
def test_somebody_else_who_answers_is_no_monitor(path: str, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(MonitorError):
            ask(path)
        thread.join()


def test_an_answer_survives_the_way(path: str) -> None:
    with Monitor(path):
        answer = ask(path)
    assert decode(encode(answer)) == answer
    with pytest.raises(ValueError, match="what is wrong"):
        decode(encode("what is wrong"))
