"""Many sockets, numbers beyond what a backend holds, and what is left registered: nothing."""

import logging
import socket
import sys
from contextlib import ExitStack

import pytest

import flowno
from flowno import ClosedResourceError, EventLoop, SocketHandle, sleep, spawn
from tests.support.backends import system_call_of
from tests.support.counting_selector import CountingSelector
from tests.support.limits import open_files
from tests.support.loopback import fill, pair

if sys.platform != "win32":
    import fcntl

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_two_thousand_sockets(backend: str) -> None:
    """A thousand connections, both ends in one loop."""
    number = 1000

    async def echo(handle: SocketHandle) -> None:
        await handle.sendAll(await handle.recv(100))

    async def root() -> None:
        with ExitStack() as stack:
            pairs = [stack.enter_context(pair()) for _ in range(number)]
            servers = [await spawn(echo(other)) for _, other in pairs]
            readers = [await spawn(one.recv(100)) for one, _ in pairs]
            for index, (one, _) in enumerate(pairs):
                await one.sendAll(b"%d" % index)
            assert [await reader.join() for reader in readers] == [b"%d" % index for index in range(number)]
            for server in servers:
                await server.join()

    if system_call_of(backend) == "select":
        pytest.skip("select holds FD_SETSIZE sockets, 1024 on most systems")
    with open_files(2 * number + 200):
        flowno.run(root())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.skipif(sys.platform == "win32", reason="fds are no small numbers there")
def test_a_socket_beyond_what_the_backend_holds_is_a_clear_error_at_the_call_and_the_loop_goes_on(backend: str) -> None:
    async def root() -> None:
        with pair() as (low, low_peer), ExitStack() as stack:
            ends = socket.socketpair()
            high = stack.enter_context(
                SocketHandle(socket.socket(fileno=fcntl.fcntl(ends[0], fcntl.F_DUPFD_CLOEXEC, 1500)))
            )
            ends[0].close()
            peer = stack.enter_context(SocketHandle(ends[1]))
            reader = await spawn(low.recv(9))
            if system_call_of(backend) == "select":
                with pytest.raises(ValueError, match="FD_SETSIZE"):
                    await high.recv(9)
                with pytest.raises(ValueError, match="FD_SETSIZE"):
                    await high.recv(9)  # the same again: nobody is registered as waiting
                await high.sendAll(b"what needs no waiting works")
                assert await peer.recv(99) == b"what needs no waiting works"
            else:
                high_reader = await spawn(high.recv(9))
                await peer.sendAll(b"data")
                assert await high_reader.join() == b"data"
            await low_peer.sendAll(b"data")
            assert await reader.join() == b"data"

    with open_files(2000):
        flowno.run(root())


def test_nothing_is_left_registered_after_a_run_that_was_broken_off() -> None:
    async def root() -> None:
        with ExitStack() as stack:
            for _ in range(10):
                one, _ = stack.enter_context(pair(4096))
                fill(one)
                await spawn(one.recv(1))
                await spawn(one.sendAll(b"x"))
            raise KeyError("broken off")

    with CountingSelector() as counting:
        with EventLoop(counting) as loop, pytest.raises(KeyError):
            loop.run_until_complete(root(), join=True)
        assert counting.masks == {}
        assert counting.calls["close"] == 0


def test_a_late_close_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def root() -> None:
        with pair() as (one, other):
            reader = await spawn(one.recv(1))
            await other.sendAll(b"x")
            one.close()
            with pytest.raises(ClosedResourceError):
                await reader.join()
            await sleep(0)

    with caplog.at_level(logging.INFO):
        flowno.run(root())
    assert caplog.records == []
