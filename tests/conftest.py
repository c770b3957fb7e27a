"""What every test gets: the backends to run on, a check that nothing leaks, and a Python to run programs in."""

import functools
import gc
import logging
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from flowno import EventLoop
from flowno.core.event_loop.backend import BUILT_IN, ENVIRONMENT_VARIABLE, available_selectors
from flowno.core.event_loop.environment import DEBUG_VARIABLE, FAULTS_VARIABLE, TRACE_VARIABLE, VARIABLES, switched_on
from tests.support import wine
from tests.support.remains import open_fds

pytest_plugins = ["pytester", "tests.support.certificates"]  # only the outermost conftest may ask for a plugin

ROOT = Path(__file__).parent.parent

#: ``FLOWNO_DEBUG=1`` runs every test in debug mode, which must not change what a program does.
IS_DEBUGGED = switched_on(DEBUG_VARIABLE)

#: ``FLOWNO_FAULTS=seed=7`` runs every test under faults, which a program must bear.
IS_UNDER_FAULTS = switched_on(FAULTS_VARIABLE)

#: Whether something is attached to the loop of every test: one that watches it, or makes faults.
HAS_ATTACHMENTS = any(map(switched_on, VARIABLES))


def pytest_configure() -> None:
    """Have SIGINT mean something, also where the shell has started this in the background and ignores it, nohup(1).

    What is ignored stays ignored in the programs that the tests start, and then nothing would interrupt them.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if TRACE_VARIABLE in os.environ:  # the file stays open to the end of the process: no test has opened it
        EventLoop().close()
    if IS_DEBUGGED:  # several processes at once on a small machine hold up any step
        EventLoop.slow_step_duration = 20.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        marker = item.get_closest_marker("not_in_debug_mode")
        if marker is not None and IS_DEBUGGED:
            item.add_marker(pytest.mark.skip(reason=f"FLOWNO_DEBUG: {marker.kwargs['reason']}"))
        marker = item.get_closest_marker("not_under_faults")
        if marker is not None and IS_UNDER_FAULTS:
            item.add_marker(pytest.mark.skip(reason=f"{FAULTS_VARIABLE}: {marker.kwargs['reason']}"))
        marker = item.get_closest_marker("not_watched")
        if marker is not None and HAS_ATTACHMENTS:
            item.add_marker(pytest.mark.skip(reason=f"something is attached to every loop: {marker.kwargs['reason']}"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """What ``-n auto`` is: one more than there are processors, as the tests wait for a good part of their time."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # as xdist has it
    affinity = getattr(os, "sched_getaffinity", None)
    return 1 + (len(affinity(0)) if affinity is not None else os.cpu_count() or 1)


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """What a test has shown of the log, the next one does not show: a record that is kept keeps a loop alive."""
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "flowno"]
    before = [(logger, logger.level, logger.handlers[:]) for logger in map(logging.getLogger, names)]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


# ------------------------------------------------------------------------------------------------------ the backends


@functools.cache  # asked for each test, and it looks through every package that is installed
def _backends() -> list[str]:
    """What ``FLOWNO_SELECTOR`` says where it is set, as in tox; else each built-in backend that works here."""
    if chosen := os.environ.get(ENVIRONMENT_VARIABLE):
        return [chosen]
    return [row.name for row in available_selectors() if row.usable and row.source == BUILT_IN.get(row.name)]


def _silenced(choice: str) -> str:
    """A choice of which no trace is seen: no test has asked for one, in its log or in what its programs print."""
    return re.sub(r"\btrace\s*\(", "tests.support.silent_trace:SilentTrace(", choice)


if ENVIRONMENT_VARIABLE in os.environ:
    os.environ[ENVIRONMENT_VARIABLE] = _silenced(os.environ[ENVIRONMENT_VARIABLE])


def _short_name(backend: str) -> str:
    """``kqueue`` for ``tests.support.fake_kqueue:FakeKqueueSelector``."""
    factory = backend.rpartition(":")[2]
    return factory.removeprefix("Fake").removesuffix("Selector").lower() or factory


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", _backends(), ids=_short_name, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test once for each backend. ``EventLoop()`` and subprocesses get it through ``FLOWNO_SELECTOR``."""
    chosen: str = request.param
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, chosen)
    return chosen


# ---------------------------------------------------------------------------------------------------- nothing leaks

#: ``FLOWNO_TEST_GC=off`` runs every test without the garbage collector, as some programs run: nothing may depend on it.
_GC_IS_OFF = os.environ.get("FLOWNO_TEST_GC") == "off"
_THREAD_GRACE = 2.0  # seconds for a thread that was told to end before the test did
_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test the same fds are open and the same threads alive as before it."""
    if _GC_IS_OFF:
        gc.disable()  # before each test: some enable it at their end
    fds, threads = _open_fds(), set(threading.enumerate())
    yield
    if request.node.stash.get(_failed, False):
        return  # the traceback keeps the frames of a failed test alive, and with them its sockets
    for thread in set(threading.enumerate()) - threads:
        thread.join(_THREAD_GRACE)
    if _open_fds() != fds:
        gc.collect()  # only now: it is slow, and most tests leave no cycles
    now = _open_fds()
    problems = [f"opened and not closed: fd {fd}, {_describe(fd)}" for fd in now if now[fd] != fds.get(fd)]
    problems += [f"closed, though it was open before the test: fd {fd}" for fd in fds if fd not in now]
    problems += [f"started and not ended: {thread!r}" for thread in set(threading.enumerate()) - threads]
    if problems:
        pytest.fail("the test leaks\n" + "\n".join(problems), pytrace=False)


def _open_fds() -> dict[int, tuple[int, ...]]:
    return open_fds() if os.name == "posix" else {}  # the sockets of Windows, of which most tests are, are no fds


def _describe(fd: int) -> str:
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        with socket.socket(fileno=os.dup(fd)) as sock:
            return repr(sock)
    try:
        return os.readlink(f"/proc/self/fd/{fd}")  # Linux and NetBSD
    except OSError:
        return f"mode {os.fstat(fd).st_mode:o}"


# --------------------------------------------------------------------------------------------------- other processes


class RunPython(Protocol):
    def __call__(
        self,
        program: str | Path,
        *args: str,
        options: Sequence[str] = ("-W", "error"),
        env: Mapping[str, str | None] | None = None,
        timeout: float = 30,
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def run_python() -> RunPython:
    """Runs code (a str) or a file (a Path) in a Python of its own that can import flowno, and returns what it printed.

    ``options`` go to the interpreter; ``env`` is laid over this process's environment, None takes a variable out;
    ``timeout`` is in seconds, of which Wine gets more.
    """

    def run(
        program: str | Path,
        *args: str,
        options: Sequence[str] = ("-W", "error"),
        env: Mapping[str, str | None] | None = None,
        timeout: float = 30,
    ) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(ROOT), str(ROOT / "backends")])
        # What a program says is compared word by word, and a debug mode that it did not ask for would speak there, too.
        merged = {**os.environ, DEBUG_VARIABLE: "", "PYTHONPATH": path, "PYTHONUTF8": "1", **(env or {})}
        return subprocess.run(
            [sys.executable, *options, *([str(program)] if isinstance(program, Path) else ["-c", program]), *args],
            env={name: value for name, value in merged.items() if value is not None},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=timeout * wine.PATIENCE,
            check=False,
        )

    return run


@pytest.fixture
def free_port() -> int:
    """A TCP port of localhost that nobody listened on a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port
