"""``process_per_core.py``: several processes behind one port, which end with the program that has started them."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.conftest import RunPython
from tests.examples.programs import EXAMPLES, PATIENCE, Program, started

pytestmark = pytest.mark.usefixtures("backend")

shares_ports = pytest.mark.skipif(
    not hasattr(socket, "SO_REUSEPORT"), reason=f"{sys.platform} has no SO_REUSEPORT, by which processes share a port"
)
deals_out = pytest.mark.skipif(
    sys.platform != "linux", reason=f"{sys.platform} gives all connections to one of the sockets on a port"
)

PROCESSES = 3


@pytest.fixture
def server() -> Iterator[Program]:
    with started("process_per_core", "--processes", str(PROCESSES)) as program:
        yield program


def becomes_true(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not (is_true := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return is_true


def ask(sock: socket.socket, line: bytes) -> int:
    """The process that answers a line, as it should be answered."""
    sock.sendall(line)
    answer = b""
    while not answer.endswith(b"\n"):
        some = sock.recv(1024)
        assert some, "the connection has ended"
        answer += some
    process, _, rest = answer.partition(b": ")
    assert rest == line
    return int(process)


def processes_of(server: Program) -> set[int]:
    """Those that answer a hundred connections, which are open at the same time."""
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection(server.address, PATIENCE)) for _ in range(100)]
        processes = [ask(sock, b"hello\n") for sock in socks]
        assert [ask(sock, b"again\n") for sock in socks] == processes
    return set(processes)


def is_refused(server: Program) -> bool:
    try:
        socket.create_connection(server.address, PATIENCE).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # it was in the backlog of a process that has ended
    return False


@shares_ports
@deals_out
def test_each_process_serves_its_share_of_the_connections(server: Program) -> None:
    processes = processes_of(server)
    assert len(processes) == PROCESSES
    assert server.process.pid not in processes


@shares_ports
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_all_of_them_in_order(server: Program, number: signal.Signals) -> None:
    processes = processes_of(server)
    server.process.send_signal(number)
    assert server.end() == "Stopped\n"
    assert server.errors() == ""
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    assert is_refused(server)


@shares_ports
@deals_out
def test_a_process_that_ends_is_replaced(server: Program) -> None:
    before = processes_of(server)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    assert server.logs(f"Process {victim} has ended (-9)\n")
    assert becomes_true(lambda: len(processes_of(server)) == PROCESSES)
    assert before - {victim} < processes_of(server)
    assert server.stop() == "Stopped\n"


@shares_ports
def test_none_of_them_outlives_the_program_that_has_started_it(server: Program) -> None:
    server.process.kill()
    assert becomes_true(lambda: is_refused(server))


def test_without_the_option_it_says_so(run_python: RunPython) -> None:
    result = run_python(
        "import runpy, socket, sys\n"
        "if hasattr(socket, 'SO_REUSEPORT'): del socket.SO_REUSEPORT\n"
        "program = sys.argv.pop(1)\n"
        "runpy.run_path(program, run_name='__main__')",
        str(EXAMPLES / "process_per_core.py"),
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"OSError: {sys.platform} has no SO_REUSEPORT\n"
