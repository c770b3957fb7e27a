"""What a loop does on Windows alone, where sockets, signals and files have rules of their own."""

import errno
import os
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

import flowno
from flowno import EventLoop, SocketHandle, current_event_loop, run_in_thread, sleep, spawn, wait_readable
from flowno.debug import Monitor, trace
from flowno.debug.asking import MonitorError, ask_target
from tests.conftest import RunPython
from tests.support.loopback import listening, pair

if sys.platform != "win32":
    pytest.skip("Windows alone", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("backend")


def test_the_waker_is_a_tcp_connection_of_the_two_ends_and_of_nobody_else() -> None:
    """Windows has no socketpair: Python makes one by TCP, and another program could be the first to connect."""
    with EventLoop() as loop:
        one, other = loop.world.socketpair()
        with one, other:
            assert one.family == socket.AF_INET
            assert one.getsockname() == other.getpeername()
            assert other.getsockname() == one.getpeername()


def test_a_refused_connect_ends_at_once_what_waits_for_it(free_port: int) -> None:
    async def root() -> None:
        with flowno.socket() as handle, pytest.raises(ConnectionRefusedError):
            await flowno.connect(handle, ("127.0.0.1", free_port))

    flowno.run(root())


@pytest.mark.parametrize("address", ["nobody listens", "connected already"])
def test_an_error_of_connect_has_the_number_and_words_of_windows(address: str, free_port: int) -> None:
    async def root() -> None:
        with listening() as listener, flowno.socket() as handle, socket.socket() as plain:
            if address == "nobody listens":
                target = ("127.0.0.1", free_port)
            else:
                target = listener.getsockname()
                await flowno.connect(handle, target)
                plain.connect(target)
            with pytest.raises(OSError, match="WinError") as theirs:
                plain.connect(target)
            with pytest.raises(OSError, match="WinError (?!.*Unknown error)") as ours:  # as C would say
                await flowno.connect(handle, target)
            assert (ours.type, ours.value.winerror) == (theirs.type, theirs.value.winerror)

    flowno.run(root())


def test_a_loop_waits_for_512_sockets_its_waker_among_them() -> None:
    async def root() -> None:
        with ExitStack() as stack:
            pairs = [stack.enter_context(pair()) for _ in range(512)]
            readers = [await spawn(one.recv(1)) for one, _ in pairs[:511]]
            with pytest.raises(ValueError, match="holds 512 sockets on Windows"):
                await pairs[511][0].recv(1)
            await pairs[511][1].sendAll(b"x")
            for _, other in pairs[:511]:
                await other.sendAll(b"y")
            assert [await reader.join() for reader in readers] == [b"y"] * 511
            pairs[0][0].close()
            assert await pairs[511][0].recv(1) == b"x"  # there is room for it now

    flowno.run(root())


def test_a_server_has_its_address_for_itself() -> None:
    """SO_REUSEADDR would let anybody take it away there, SO_EXCLUSIVEADDRUSE keeps even those out who set that."""
    with listening() as listener:
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE) != 0
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="10013|10048") as caught:
                thief.bind(listener.getsockname())
            assert caught.value.winerror in (errno.WSAEACCES, errno.WSAEADDRINUSE)


def test_ctrl_c_comes_in_a_thread_of_its_own_and_ends_the_wait_of_the_loop() -> None:
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)
    asleep = threading.Event()

    def press() -> None:
        asleep.wait()
        signal.raise_signal(signal.SIGINT)  # as the console does, in a thread that it makes for it

    async def root() -> None:
        asleep.set()
        await flowno.sleep_forever()

    try:
        thread = threading.Thread(target=press)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            flowno.run(root())
        thread.join()
    finally:
        signal.signal(signal.SIGINT, outer)


def test_python_is_lent_a_socket_for_its_signals_and_gets_its_own_back() -> None:
    async def root() -> None:
        lent = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(lent, warn_on_full_buffer=False)
        assert lent != -1
        with socket.socket(fileno=lent) as waker:
            assert waker.type == socket.SOCK_STREAM
            waker.detach()

    flowno.run(root())
    assert signal.set_wakeup_fd(-1) == -1


def test_a_report_is_asked_for_by_a_signal_that_there_is(run_python: RunPython) -> None:
    """There is no SIGUSR1, and Ctrl-Break stands in for it."""
    assert not hasattr(signal, "SIGUSR1")
    result = run_python(
        """
import signal, flowno
from flowno.debug import report_on_signal
async def main():
    signal.raise_signal(signal.SIGBREAK)
    await flowno.sleep(0)
    print("and goes on")
with report_on_signal(signal.SIGBREAK):
    flowno.run(main())
""",
    )
    assert (result.returncode, result.stdout) == (0, "and goes on\n"), result.stderr
    assert "EventLoop select" in result.stderr


def test_a_sleep_is_never_shorter_than_asked_however_coarse_the_timer() -> None:
    """It ticks every 15.6 ms, and a clock that is read between two ticks may still show the last one."""

    async def root() -> None:
        for _ in range(20):
            started = time.monotonic()
            assert await sleep(0.001) >= 0.001
            assert time.monotonic() - started >= 0.001

    flowno.run(root())


def test_a_call_in_a_thread_wakes_a_loop_that_waits_in_select() -> None:
    async def root() -> int:
        with pair() as (one, _):
            reader = await spawn(one.recv(1))
            result = await run_in_thread(threading.get_ident)
            await reader.cancel()
            return result

    assert flowno.run(root()) != threading.get_ident()


def test_what_is_no_socket_cannot_be_waited_for_and_the_error_says_so() -> None:
    async def root() -> None:
        reading, writing = os.pipe()
        try:
            with pytest.raises(ValueError, match="nothing else can be waited for"):
                await wait_readable(reading)
        finally:
            os.close(reading)
            os.close(writing)

    flowno.run(root())


def test_a_socket_that_is_bound_while_its_number_is_waited_for_is_still_the_same() -> None:
    """Nothing but what it says of itself tells a socket from a later one of the same number."""

    async def root() -> None:
        loop = current_event_loop()
        assert loop is not None
        with socket.socket(type=socket.SOCK_DGRAM) as receiver, socket.socket(type=socket.SOCK_DGRAM) as sender:
            waiter = await spawn(wait_readable(receiver.fileno()))
            receiver.bind(("127.0.0.1", 0))
            loop.fds.audit()
            sender.sendto(b"x", receiver.getsockname())
            await waiter.join()

    flowno.run(root())


def test_there_is_no_monitor_and_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="a monitor needs Unix sockets, which Python has not on win32"):
        Monitor(tmp_path / "monitor")
    for target in ("1", str(tmp_path / "monitor")):
        with pytest.raises(MonitorError, match="by a Unix socket, which Python has not on win32"):
            ask_target(target)


def test_a_trace_can_be_read_while_it_is_written_and_deleted_when_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"

    async def root() -> None:
        await sleep(0)
        assert path.read_bytes().endswith(b"]}\n")

    with trace(path):
        flowno.run(root())
    path.unlink()


def test_a_handle_gives_its_port_free_when_it_is_closed() -> None:
    with listening() as listener:
        address = listener.getsockname()
    with flowno.socket() as again:
        again.bind(address)
        assert isinstance(again, SocketHandle)
