"""The programs of ``docs/examples`` do what the documentation says of them."""

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE
from types import ModuleType
from typing import IO

import pytest

from flowno import Selector
from tests.conftest import ROOT, RunPython
from tests.support.loopback import resets_at_close

if os.name == "posix":
    import fcntl
    import resource
else:
    import msvcrt

EXAMPLES = ROOT / "docs" / "examples"
ECHO = EXAMPLES / "echo.py"
PATIENCE = 20.0  # seconds

# ---------------------------------------------------------------------------------------------- the documented example


def transcript(port: int) -> str:
    return rf"""Server: Listening on port {port}
Client: Connected to server
Client: Sent: Hello, world!
Server: Client connected from \('127\.0\.0\.1', \d+\)
Server: Received: Hello, world!
Server: Response sent
Client: Received: Echo: Hello, world!
Main: All tasks completed
"""


def is_locked(file: IO[str]) -> bool:
    """Lock a file, unless somebody has."""
    try:
        if os.name == "posix":
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    return True


def is_free(port: int) -> bool:
    with socket.socket() as sock:
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("localhost", port))
        except OSError:
            return False
    return True


def becomes_true(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not (is_true := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return is_true


@contextmanager
def alone_on_port(port: int) -> Iterator[None]:
    """One test of this user at a time, whichever process it runs in; skips where somebody else keeps the port."""
    user = os.environ.get("USER", os.environ.get("USERNAME", ""))
    with open(Path(tempfile.gettempdir()) / f"flowno-tests-{user}-{port}.lock", "w") as file:
        assert becomes_true(lambda: is_locked(file)), f"another test has kept port {port} for {PATIENCE} s"
        if not becomes_true(lambda: is_free(port)):
            pytest.skip(f"another program uses port {port}, which is that of the documented example")
        yield


# The example closes nothing: ResourceWarning is allowed to it, and to nobody else.
ALLOWED = ["-W", "error", "-W", "ignore::ResourceWarning"]


def test_the_documented_example_runs_unchanged_and_again_at_once(backend: str, run_python: RunPython) -> None:
    with alone_on_port(8888):
        for _ in range(2):
            result = run_python(ECHO, options=ALLOWED)
            assert (result.returncode, result.stderr) == (0, "")
            assert re.fullmatch(transcript(8888), result.stdout)


def test_the_documented_example_runs_on_another_port(backend: str, run_python: RunPython, free_port: int) -> None:
    program = ECHO.read_text(encoding="utf-8").replace("8888", str(free_port))
    result = run_python(program, options=ALLOWED)
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(transcript(free_port), result.stdout)


# ----------------------------------------------------------------------------------------------------- the echo server


@dataclass
class Server:
    process: "subprocess.Popen[str]"
    address: tuple[str, int]

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, PATIENCE)


@pytest.fixture
def server(backend: str) -> Iterator[Server]:
    """The server in a process of its own, ended by Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(EXAMPLES / "echo_server.py"), "0"],
        env={**os.environ, "FLOWNO_DEBUG": "", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            match = re.fullmatch(rf"Listening on port (\d+): <EventLoop {re.escape(backend)} running>\n", line)
            assert match, line + process.stderr.read()
            yield Server(process, ("127.0.0.1", int(match[1])))
            if os.name == "posix":
                process.send_signal(signal.SIGINT)
                output, errors = process.communicate(timeout=PATIENCE)
                assert (process.returncode, output) == (0, "Stopped\n"), errors
        finally:
            process.kill()


def echo(sock: socket.socket, message: bytes) -> bytes:
    """What comes back, read by this thread while another one sends."""
    answer = bytearray()
    with ThreadPoolExecutor(1) as executor:
        sending = executor.submit(sock.sendall, message)
        while len(answer) < len(message) and (data := sock.recv(65536)):
            answer += data
        sending.result()
    return bytes(answer)


def test_the_echo_server_serves_every_client_while_another_one_is_silent(server: Server) -> None:
    with ExitStack() as stack:
        silent, *clients = [stack.enter_context(server.connect()) for _ in range(4)]
        for number, client in enumerate(clients):
            message = bytes([65 + number]) * 300_000
            assert echo(client, message) == message
        silent.sendall(b"I am still here")
        silent.shutdown(socket.SHUT_WR)
        assert silent.recv(100) == b"I am still here"
        assert silent.recv(100) == b""


def test_the_echo_server_survives_a_client_that_breaks_off(server: Server) -> None:
    with server.connect() as client:
        assert echo(client, b"Hello") == b"Hello"
        resets_at_close(client)
    with server.connect() as client:
        assert echo(client, b"Is anybody there?") == b"Is anybody there?"


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit(2) is Linux's")
def test_the_echo_server_waits_for_descriptors_and_then_serves_on(server: Server) -> None:
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (24, 24))
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(40)]
        assert echo(clients[0], b"first") == b"first"
        for client in clients[:30]:
            client.close()
        assert echo(clients[-1], b"last") == b"last"


# -------------------------------------------------------------------------------------------------- the small programs


def test_the_buggy_greeting_is_halved_on_every_backend(backend: str, run_python: RunPython) -> None:
    result = run_python(EXAMPLES / "half_a_greeting.py")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"<EventLoop {backend} running> b'Hello, '\n"


def test_many_sockets_holds_what_it_is_told_to(backend: str, run_python: RunPython) -> None:
    result = run_python(EXAMPLES / "many_sockets.py", "50")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"<EventLoop {backend} running> holds 50 connections\n"


@pytest.mark.parametrize("choice", ["minimal_backend:MinimalSelector", "traced_backend:TracedSelector"])
def test_the_backends_of_the_examples_run_the_documented_example(
    choice: str, run_python: RunPython, free_port: int
) -> None:
    program = ECHO.read_text(encoding="utf-8").replace("8888", str(free_port))
    path = os.pathsep.join(map(str, (ROOT, ROOT / "backends", EXAMPLES)))
    result = run_python(program, options=ALLOWED, env={"PYTHONPATH": path, "FLOWNO_SELECTOR": choice})
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(transcript(free_port), result.stdout)
    assert re.fullmatch(r"(fd \d+: (-|r|w|rw) -> (-|r|w|rw)\n)*", result.stderr)
    assert bool(result.stderr) == choice.startswith("traced")


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestMinimalSelector:
    """It keeps the promises that the page about it makes."""

    @pytest.fixture
    def selector(self) -> Iterator[Selector]:
        with closing(load_example("minimal_backend").MinimalSelector()) as selector:
            yield selector

    @pytest.fixture
    def pair(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            yield ours, theirs

    def test_register_refuses_what_can_never_be_held(self, selector: Selector) -> None:
        with socket.socket() as sock:
            for mask in (0, 4, EVENT_READ | 4):
                with pytest.raises(ValueError, match="events must be"):
                    selector.register(sock, mask)
        with pytest.raises((ValueError, OSError)):
            selector.register(sock, EVENT_READ)  # it is closed
        with pytest.raises(KeyError):
            selector.unregister(sock)

    def test_an_fd_is_registered_once(self, selector: Selector, pair: tuple[socket.socket, socket.socket]) -> None:
        selector.register(pair[0], EVENT_READ)
        with pytest.raises(KeyError):
            selector.register(pair[0].fileno(), EVENT_READ)
        selector.unregister(pair[0].fileno())
        for unknown in (selector.unregister, lambda sock: selector.modify(sock, EVENT_READ)):
            with pytest.raises(KeyError):
                unknown(pair[0])

    def test_it_reports_both_directions_and_the_data(
        self, selector: Selector, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        selector.register(pair[0], EVENT_READ, "first")
        assert selector.select(0) == []
        pair[1].send(b"x")
        key = selector.modify(pair[0], EVENT_READ | EVENT_WRITE, "second")
        assert key.data == "second"
        assert selector.select(None) == [(key, EVENT_READ | EVENT_WRITE)]
        assert selector.select(-1) == [(key, EVENT_READ | EVENT_WRITE)]
        assert selector.unregister(pair[0]) == key
