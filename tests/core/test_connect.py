"""Connecting: blocking as documented, or beside the other tasks; and what comes out of it when it fails."""

import errno
import itertools
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import flowno
from flowno import BusyResourceError, ClosedResourceError, EventLoop, SocketHandle, TaskCancelled, sleep, spawn
from flowno.core.event_loop.backend import SystemWorld
from flowno.core.event_loop.commands import SocketConnectCommand
from tests.support.counting_selector import CountingSelector
from tests.support.loopback import full_backlog, listening, pair, resets_at_close, tcp_pair
from tests.support.unhelpful_selector import unhelpful
from tests.support.worlds import ScriptedWorld, answer, in_world

pytestmark = pytest.mark.usefixtures("backend")


@contextmanager
def refusing() -> Iterator[Any]:
    """An address of this machine that nobody listens on, and nobody else gets."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()


# ------------------------------------------------------------------------------------------------------------- blocking


def test_a_blocking_connect_gives_none_and_leaves_the_socket_non_blocking() -> None:
    with listening() as listener, flowno.socket() as client:
        assert client.connect(listener.getsockname()) is None  # type: ignore[func-returns-value]
        assert not client.socket.getblocking()
        assert client.getpeername() == listener.getsockname()


def test_a_blocking_connect_works_inside_and_outside_of_a_loop() -> None:
    async def root() -> None:
        with listening() as listener, flowno.socket() as client:
            client.connect(listener.getsockname())
            connection, _ = await listener.accept()
            connection.close()
            assert await client.recv(1) == b""

    flowno.run(root())


def test_a_blocking_connect_takes_no_longer_than_its_limit_and_says_what_to_do() -> None:
    with full_backlog() as address, flowno.socket() as client:
        assert client.connect_timeout == 30
        client.connect_timeout = 0.05
        with pytest.raises(TimeoutError, match=re.escape("use await flowno.connect")) as caught:
            client.connect(address)
        assert "if the server runs in this loop" in str(caught.value)
        assert str(address) in str(caught.value)
        assert "0.05" in str(caught.value)
        assert not client.socket.getblocking()


def test_a_refused_blocking_connect_names_the_address() -> None:
    with refusing() as address, flowno.socket() as client:
        with pytest.raises(ConnectionRefusedError, match=re.escape(str(address))) as caught:
            client.connect(address)
        assert caught.value.errno == errno.ECONNREFUSED
        assert not client.socket.getblocking()


def test_a_blocking_connect_that_the_system_gives_up_is_no_matter_of_our_limit() -> None:
    """tcp(7): after some SYNs without an answer the system says ETIMEDOUT, which may be long before connect_timeout."""

    class GivenUp(socket.socket):
        def connect(self, address: Any) -> None:
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    address = ("127.0.0.1", 9)
    with SocketHandle(GivenUp()) as client:
        with pytest.raises(TimeoutError, match=re.escape(str(address))) as caught:
            client.connect(address)
        assert caught.value.errno == errno.ETIMEDOUT
        assert "connect_timeout" not in str(caught.value)
        assert not client.socket.getblocking()


# --------------------------------------------------------------------------------------------------- beside other tasks


def test_await_connect_connects_while_other_tasks_run() -> None:
    async def root() -> None:
        with full_backlog() as address, flowno.socket() as client:
            turns = 0
            connecting = await spawn(flowno.connect(client, address))
            for _ in range(10):
                await sleep(0)
                turns += 1
            assert not connecting.is_finished
            await connecting.cancel()
            assert turns == 10
        with listening() as listener, flowno.socket() as client:
            assert await flowno.connect(client, listener.getsockname()) is None  # type: ignore[func-returns-value]
            connection, address = await listener.accept()
            with connection:
                assert address == client.getsockname()
                await client.sendAll(b"x")
                assert await connection.recv(9) == b"x"

    flowno.run(root())


def test_await_connect_yields_a_connect_command() -> None:
    async def root() -> None:
        with full_backlog() as address, flowno.socket() as client:
            coroutine = flowno.connect(client, address)
            command = coroutine.send(None)
            assert type(command) is SocketConnectCommand
            assert command.handle is client
            coroutine.close()

    flowno.run(root())


def test_a_refused_connection_names_the_address_and_leaves_the_handle_open() -> None:
    async def root() -> None:
        with refusing() as address, flowno.socket() as client:
            with pytest.raises(ConnectionRefusedError, match=re.escape(str(address))) as caught:
                await flowno.connect(client, address)
            assert caught.value.errno == errno.ECONNREFUSED
            assert client.fileno() >= 0

    flowno.run(root())


def test_a_cancelled_connect_closes_the_handle() -> None:
    async def root() -> None:
        with full_backlog() as address, flowno.socket() as client:
            connecting = await spawn(flowno.connect(client, address))
            await sleep(0)
            assert await connecting.cancel() is None
            assert client.fileno() == -1
            with pytest.raises(ClosedResourceError):
                await client.send(b"x")

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(root(), join=True)
        assert counting.masks == {}


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_the_number_of_a_cancelled_connect_serves_the_next_handle() -> None:
    """The writer that the attempt had registered is gone before its fd is closed and used again."""

    async def root() -> None:
        with full_backlog() as address, listening() as listener:
            for _ in range(5):
                with flowno.socket() as client:
                    number = client.fileno()
                    connecting = await spawn(flowno.connect(client, address))
                    await sleep(0)
                    assert number in counting.masks
                    connecting.cancel()
                    await sleep(0)
                    assert number not in counting.masks
                    with flowno.socket() as again:
                        assert again.fileno() == number
                        await flowno.connect(again, listener.getsockname())
                        accepted, _ = await listener.accept()
                        with accepted:
                            reader = await spawn(again.recv(9))
                            await accepted.sendAll(b"data")
                            assert await reader.join() == b"data"

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(root(), join=True)


def test_a_false_alarm_is_not_taken_for_a_connection() -> None:
    """Without an error a socket is connected only where it has a peer, whatever the selector says."""

    async def root() -> None:
        with full_backlog() as address, flowno.socket() as client:
            connecting = await spawn(flowno.connect(client, address))
            for _ in range(100):
                await sleep(0)
            assert not connecting.is_finished
            assert await connecting.cancel() is None

    with CountingSelector() as selector, EventLoop(unhelpful(selector, 1)) as loop:
        loop.run_until_complete(root(), join=True)


def test_the_error_of_an_attempt_is_asked_for_once_and_raised() -> None:
    """The system forgets SO_ERROR when it has been read."""

    class Refused(socket.socket):
        """Refused later, as by a peer that is far away."""

        error = errno.ECONNREFUSED

        def connect_ex(self, address: Any) -> int:
            super().connect_ex(address)  # whose error the system has told with this
            return errno.EINPROGRESS

        def getsockopt(self, level: int, option: int, *args: Any) -> Any:
            if (level, option) != (socket.SOL_SOCKET, socket.SO_ERROR):
                return super().getsockopt(level, option, *args)
            error, self.error = self.error, 0
            return error

    async def root() -> None:
        with refusing() as address, SocketHandle(Refused()) as client, pytest.raises(ConnectionRefusedError):
            await flowno.connect(client, address)

    flowno.run(root())


@pytest.mark.parametrize("lost", [0, errno.ECONNRESET])
def test_a_peer_that_has_gone_before_anybody_looked_was_there(lost: int) -> None:
    """Wine tells neither an address nor an error where the connection was reset; the rest is the receiver's to find."""

    class Forgetful(socket.socket):
        def getpeername(self) -> Any:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

        def getsockopt(self, level: int, option: int, *args: Any) -> Any:
            return 0 if option == socket.SO_ERROR else super().getsockopt(level, option, *args)

        def recv(self, *args: Any) -> bytes:
            data = super().recv(*args)
            if lost:
                raise OSError(lost, os.strerror(lost))
            return data

    async def root() -> None:
        with listening() as listener, SocketHandle(Forgetful()) as client:
            connecting = await spawn(flowno.connect(client, listener.getsockname()))
            connection, _ = await listener.accept()
            connection.close()
            if lost:
                with pytest.raises(ConnectionResetError):
                    await connecting.join()
            else:
                await connecting.join()
                assert await client.recv(1) == b""

    flowno.run(root())


def test_an_attempt_that_a_signal_interrupts_goes_on() -> None:
    """connect(2): after EINTR the attempt goes on by itself, and to call it again would be an error."""

    class Interrupted(socket.socket):
        calls = 0

        def connect_ex(self, address: Any) -> int:
            self.calls += 1
            super().connect_ex(address)
            return errno.EINTR

    async def root() -> None:
        with listening() as listener, SocketHandle(Interrupted()) as client:
            await flowno.connect(client, listener.getsockname())
            accepted, address = await listener.accept()
            accepted.close()
            assert address == client.getsockname()
            assert client.socket.calls == 1

    flowno.run(root())


def test_a_handle_closed_under_a_connect_raises_in_it() -> None:
    async def root() -> None:
        with full_backlog() as address, flowno.socket() as client:
            connecting = await spawn(flowno.connect(client, address))
            await sleep(0)
            client.close()
            with pytest.raises(ClosedResourceError):
                await connecting.join()

    flowno.run(root())


def test_a_handle_that_is_connecting_is_busy_in_both_directions() -> None:
    async def root() -> None:
        with full_backlog() as address, flowno.socket() as client:
            connecting = await spawn(flowno.connect(client, address))
            for operation in (client.recv(1), client.send(b"x"), client.sendAll(b"x"), flowno.connect(client, address)):
                with pytest.raises(BusyResourceError):
                    await operation
            assert client.fileno() >= 0
            assert not connecting.is_finished
            await connecting.cancel()

    flowno.run(root())


def test_connecting_a_handle_that_somebody_receives_from_leaves_that_one_alone() -> None:
    async def root() -> None:
        with pair() as (one, other), refusing() as address:
            reader = await spawn(one.recv(9))
            with pytest.raises(BusyResourceError):
                await flowno.connect(one, address)
            await other.sendAll(b"x")
            assert await reader.join() == b"x"

    flowno.run(root())


def test_connecting_a_connected_handle_leaves_it_open() -> None:
    async def root() -> None:
        with tcp_pair() as (client, server), listening() as listener:
            with pytest.raises(OSError) as caught:  # noqa: PT011
                await flowno.connect(server, listener.getsockname())
            assert caught.value.errno == errno.EISCONN
            await client.sendAll(b"x")
            assert await server.recv(9) == b"x"

    flowno.run(root())


@pytest.mark.parametrize("address", [None, 7, "127.0.0.1", ("127.0.0.1",), ("127.0.0.1", "http", 0, 0, 0)])
def test_what_is_no_address_is_a_type_error_and_closes_nothing(address: Any) -> None:
    async def root() -> None:
        with flowno.socket() as client:
            with pytest.raises((TypeError, ValueError)):
                await flowno.connect(client, address)
            assert client.fileno() >= 0

    flowno.run(root())


def test_hundreds_of_connections_one_after_the_other() -> None:
    async def root() -> None:
        with listening() as listener:
            for _ in range(300):
                with flowno.socket() as client:
                    resets_at_close(client)
                    await flowno.connect(client, listener.getsockname())
                    (await listener.accept())[0].close()

    flowno.run(root())


# ---------------------------------------------------------------------------------------------------------------- names


def test_a_name_is_resolved_off_the_loop() -> None:
    world = ScriptedWorld()
    world.go_on.clear()

    async def root() -> None:
        with listening() as listener, flowno.socket() as client:
            port = listener.getsockname()[1]
            world.names["some.name.test"] = answer(listener.getsockname())
            connecting = await spawn(flowno.connect(client, ("some.name.test", port)))
            for _ in range(5):
                await sleep(0)  # the loop goes on while the resolver hangs
            assert not connecting.is_finished
            world.go_on.set()
            await connecting.join()
            assert client.getpeername() == listener.getsockname()
            assert world.asked[0][:2] == ("some.name.test", port)
            assert world.threads != [threading.get_ident()]

    with in_world(world) as loop:
        loop.run_until_complete(root(), join=True)


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_a_numeric_address_asks_no_resolver(host: str) -> None:
    world = ScriptedWorld()

    async def root() -> None:
        with listening() as listener, flowno.socket() as client:
            await flowno.connect(client, (host, listener.getsockname()[1]))

    with in_world(world) as loop:
        loop.run_until_complete(root(), join=True)
    assert world.asked == []


def test_a_name_that_does_not_resolve_is_named() -> None:
    world = ScriptedWorld()

    async def root() -> None:
        with flowno.socket() as client:
            with pytest.raises(socket.gaierror, match="no-such-host.test"):
                await flowno.connect(client, ("no-such-host.test", 80))
            assert client.fileno() >= 0

    with in_world(world) as loop:
        loop.run_until_complete(root(), join=True)


@pytest.mark.parametrize("host", ["a" * 70 + ".com", "no..name", "no\0name", b"no\0name"])
def test_what_can_be_no_name_is_a_value_error_that_names_it(host: Any) -> None:
    async def root() -> None:
        with flowno.socket() as client:
            with pytest.raises(ValueError, match=re.escape(f"{host!r} cannot be the name of a host")) as caught:
                await flowno.connect(client, (host, 80))
            assert type(caught.value) is ValueError
            assert client.fileno() >= 0

    flowno.run(root())


@pytest.mark.parametrize("host", ["a" * 70 + ".com", "é" * 70, "no..name", "no\0name", b"no\0name"])
def test_bind_and_the_blocking_connect_refuse_in_the_same_way_what_can_be_no_name(host: Any) -> None:
    with flowno.socket() as handle:
        for operation in (handle.bind, handle.connect):
            with pytest.raises(ValueError, match=re.escape(f"{host!r} cannot be the name of a host")) as caught:
                operation((host, 80))
            assert type(caught.value) is ValueError


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("port", [-1, 65536, 2**40])
def test_a_number_that_is_no_port_is_a_value_error(host: str, port: int) -> None:
    async def root() -> None:
        with flowno.socket() as handle:
            for operation in (handle.bind, handle.connect):
                with pytest.raises(ValueError, match=f"port must be 0 to 65535, not {port}"):
                    operation((host, port))
            with pytest.raises(ValueError, match=f"port must be 0 to 65535, not {port}"):
                await flowno.connect(handle, (host, port))
        with flowno.socket(type=socket.SOCK_DGRAM) as handle, pytest.raises(ValueError, match=f"not {port}"):
            await handle.sendto(b"", (host, port))

    flowno.run(root())


def test_a_refused_connection_names_the_host_that_was_asked_for() -> None:
    world = ScriptedWorld()

    async def root() -> None:
        with refusing() as address, flowno.socket() as client:
            name = ("some.name.test", address[1])
            world.names[name[0]] = answer(address)
            with pytest.raises(ConnectionRefusedError, match=re.escape(str(name))):
                await flowno.connect(client, name)

    with in_world(world) as loop:
        loop.run_until_complete(root(), join=True)


def test_a_connect_cancelled_while_its_name_is_resolved_does_not_wait_for_the_resolver() -> None:
    world = ScriptedWorld()
    world.go_on.clear()

    async def root() -> None:
        with flowno.socket() as client:
            connecting = await spawn(flowno.connect(client, ("some.name.test", 80)))
            while not world.asked:
                await sleep(0.001)
            assert await connecting.cancel() is None
            assert client.fileno() == -1
            with pytest.raises(TaskCancelled):
                await connecting.join()

    with in_world(world) as loop:
        loop.run_until_complete(root(), join=True)


def test_the_sockets_of_a_loop_come_from_its_world() -> None:
    made: list[Any] = []

    class World(SystemWorld):
        def socket(self, *args: Any) -> socket.socket:
            made.append(args)
            return super().socket(*args)

    async def root() -> None:
        with flowno.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
            assert isinstance(handle, SocketHandle)

    with CountingSelector() as counting:
        counting.world = World()
        with EventLoop(counting) as loop:
            loop.run_until_complete(root(), join=True)
            assert loop.world is counting.world
    assert made == [(socket.AF_INET, socket.SOCK_DGRAM, -1, None)]


# ------------------------------------------------------------------------------------------ its turn, and its ownership


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this platform has no Unix sockets")
@pytest.mark.parametrize("outcome", ["connected", "refused"])
def test_connects_that_complete_at_once_do_not_starve_the_others(outcome: str, tmp_path: Path) -> None:
    """A Unix socket connects without waiting. 64 in a row, and then it is somebody else's turn."""
    done = 0

    async def repeat(listener: socket.socket) -> None:
        nonlocal done
        while True:
            with flowno.socket(socket.AF_UNIX) as client:
                if outcome == "connected":
                    await flowno.connect(client, listener.getsockname())
                    listener.accept()[0].close()
                else:
                    with pytest.raises(FileNotFoundError):
                        await flowno.connect(client, str(tmp_path / "missing"))
            done += 1

    async def root() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "socket"))
            listener.listen()
            task = await spawn(repeat(listener))
            seen = [0, done]
            for _ in range(3):
                await sleep(0)
                await sleep(0)
                seen.append(done)
            assert seen == sorted(set(seen)), "it makes progress"
            assert max(b - a for a, b in itertools.pairwise(seen)) <= 2 * 65
            await task.cancel()

    flowno.run(root())


async def spend_the_budget(handle: SocketHandle) -> None:
    """So many operations in a row that the next one gives way first."""
    for _ in range(64):
        await handle.send(b"x")


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.parametrize("host", ["127.0.0.1", "some.name.test"])
def test_a_connect_of_a_handle_in_use_is_refused_and_cancelling_it_does_not_disturb_the_owner(host: str) -> None:
    async def root() -> None:
        with tcp_pair() as (handle, peer):
            reader = await spawn(handle.recv(9))
            intruder = await spawn(flowno.connect(handle, (host, 9)))
            with pytest.raises(BusyResourceError):
                await intruder.cancel()
            await peer.sendAll(b"data")
            assert await reader.join() == b"data"

    world = ScriptedWorld()
    world.go_on.clear()
    with in_world(world) as loop:
        loop.run_until_complete(root(), join=True)


@pytest.mark.not_under_faults(reason="it counts turns of the loop, or what is done in one of them")
def test_a_connect_owns_both_directions_while_it_gives_way() -> None:
    async def connect(handle: SocketHandle, address: Any, other: SocketHandle) -> None:
        await spend_the_budget(other)
        await flowno.connect(handle, address)

    async def root() -> None:
        with listening() as listener, flowno.socket() as handle, pair() as (other, _):
            task = await spawn(connect(handle, listener.getsockname(), other))
            for operation in (handle.recv(9), handle.accept(), handle.send(b"x"), handle.sendAll(b"x")):
                with pytest.raises(BusyResourceError):
                    await operation
            await task.join()
            accepted, _ = await listener.accept()
            with accepted:
                await handle.sendAll(b"data")
                assert await accepted.recv(9) == b"data"

    flowno.run(root())


@pytest.mark.parametrize("what", [None, 5, socket.socket])
def test_connect_takes_a_handle_and_says_what_it_got(what: Any) -> None:
    async def root() -> None:
        with pytest.raises(TypeError, match=r"handle must be a SocketHandle, not ") as caught:
            await flowno.connect(what, ("127.0.0.1", 1))
        assert repr(what) in str(caught.value)

    flowno.run(root())


@pytest.mark.parametrize("address", ["localhost", None, 7, ("127.0.0.1",), ("127.0.0.1", "http"), ["127.0.0.1", 1]])
def test_what_is_no_address_is_a_type_error_that_shows_it_and_the_handle_stays_usable(address: Any) -> None:
    async def root() -> None:
        with listening() as listener, flowno.socket() as handle:
            with pytest.raises(TypeError) as caught:
                await flowno.connect(handle, address)
            assert str(caught.value).startswith(f"connect() cannot take {address!r} for an address: ")
            assert "connect_ex" not in str(caught.value)
            await flowno.connect(handle, listener.getsockname())

    flowno.run(root())
