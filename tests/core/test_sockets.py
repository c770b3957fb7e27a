"""SocketHandle: what a socket can do, without holding up the loop."""

import array
import copy
import errno
import inspect
import os
import pickle
import re
import socket
import sys
import types
from collections.abc import Generator
from typing import Any

import pytest

import flowno
from flowno import (
    BusyResourceError,
    ClosedResourceError,
    EventLoopError,
    SocketHandle,
    current_event_loop,
    sleep,
    spawn,
)
from flowno.core.event_loop.commands import SocketAcceptCommand, SocketCommand, SocketRecvCommand, SocketSendCommand
from flowno.core.event_loop.selectors import sel
from tests.support.loopback import LARGE, fill, listening, pair, receive, tcp_pair

pytestmark = pytest.mark.usefixtures("backend")


# -------------------------------------------------------------------------------------------------------- the exchange


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_a_server_and_a_client_exchange_bytes_in_one_loop() -> None:
    async def serve(listener: SocketHandle) -> tuple[Any, bytes]:
        connection, address = await listener.accept()
        with connection:
            data = await connection.recv(100)
            await connection.sendAll(b"Echo: " + data)
            return address, data

    async def root() -> None:
        with listening() as listener, flowno.socket() as client:
            server = await spawn(serve(listener))
            client.connect(listener.getsockname())
            await client.sendAll(b"Hello")
            assert await client.recv(100) == b"Echo: Hello"
            assert await client.recv(100) == b""
            assert await server.join() == (client.getsockname(), b"Hello")

    flowno.run(root())


def test_both_directions_of_one_handle_work_at_once() -> None:
    """Each end sends more than fits while it receives."""
    size = 1 << 20

    async def root() -> None:
        with pair(4096) as (one, other):
            tasks = []
            for handle, letter in ((one, b"a"), (other, b"b")):
                tasks.append(await spawn(handle.sendAll(letter * size)))
            readers = [await spawn(receive(handle, size)) for handle in (one, other)]
            for task in tasks:
                await task.join()
            assert [await reader.join() for reader in readers] == [b"b" * size, b"a" * size]

    flowno.run(root())


def test_send_all_sends_more_than_every_buffer_to_a_peer_in_the_same_loop() -> None:
    data = os.urandom(1 << 16) * (LARGE >> 16)

    async def root() -> None:
        with tcp_pair() as (one, other):
            reader = await spawn(receive(other, len(data)))
            assert await one.sendAll(data) is None
            assert one.bytes_sent == len(data)
            assert await reader.join() == data

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_send_says_how_much_it_took_and_waits_while_there_is_no_room() -> None:
    async def root() -> None:
        with pair(4096) as (one, other):
            assert await one.send(b"abc") == 3
            filled = fill(one)
            sender = await spawn(one.send(b"x" * 1_000_000))
            for _ in range(3):
                await sleep(0)
            assert not sender.is_finished
            await receive(other, 3 + filled)
            taken = await sender.join()
            assert 0 < taken < 1_000_000

    flowno.run(root())


@pytest.mark.not_in_debug_mode(reason="operations are native coroutines")
def test_the_operations_are_generator_based_and_yield_their_commands() -> None:
    with pair(4096) as (one, _), listening() as listener:
        fill(one)

        async def root() -> None:
            expected = {
                one.recv(1): SocketRecvCommand,
                one.recv_into(bytearray(1)): SocketRecvCommand,
                one.send(b"x"): SocketSendCommand,
                one.sendAll(b"x"): SocketSendCommand,
                listener.accept(): SocketAcceptCommand,
            }
            for coroutine, command in expected.items():
                assert inspect.isgenerator(coroutine)
                assert inspect.isawaitable(coroutine)
                yielded = coroutine.send(None)
                assert type(yielded) is command
                assert isinstance(yielded, SocketCommand)
                assert yielded.handle is (listener if command is SocketAcceptCommand else one)
                coroutine.close()

        flowno.run(root())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.parametrize(
    "data",
    [
        b"abcdefgh",
        bytearray(b"abcdefgh"),
        memoryview(b"abcdefgh"),
        memoryview(b"-abcdefgh-")[1:-1],
        array.array("H", b"abcdefgh"),
        memoryview(array.array("I", b"abcdefgh")),
    ],
    ids=["bytes", "bytearray", "memoryview", "slice", "array", "memoryview of ints"],
)
@pytest.mark.parametrize("method", ["send", "sendAll", "sendall"])
def test_any_buffer_can_be_sent(method: str, data: Any) -> None:
    async def root() -> None:
        with pair() as (one, other):
            assert await getattr(one, method)(data) == (8 if method == "send" else None)
            assert await other.recv(100) == b"abcdefgh"
            assert method == "send" or one.bytes_sent == 8

    flowno.run(root())


def test_a_large_buffer_of_wide_items_is_sent_whole() -> None:
    data = array.array("Q", range(1 << 17))

    async def root() -> None:
        with pair(4096) as (one, other):
            reader = await spawn(receive(other, len(data) * 8))
            await one.sendAll(data)
            assert await reader.join() == data.tobytes()

    flowno.run(root())


@pytest.mark.parametrize("method", ["send", "sendAll", "sendall"])
@pytest.mark.parametrize("full", [False, True])
def test_nothing_can_be_sent_at_any_time(method: str, full: bool) -> None:
    async def root() -> None:
        with pair(4096) as (one, other):
            if full:
                fill(one)
            for _ in range(100):
                assert not await getattr(one, method)(b"")
            assert full or other.socket.fileno() >= 0

    flowno.run(root())


@pytest.mark.parametrize("data", ["text", 7, None, [1]])
@pytest.mark.parametrize("method", ["send", "sendAll"])
def test_what_is_no_buffer_is_a_type_error_and_the_handle_stays_usable(method: str, data: Any) -> None:
    async def root() -> None:
        with pair() as (one, other):
            with pytest.raises(TypeError):
                await getattr(one, method)(data)
            await one.sendAll(b"x")
            assert await other.recv(9) == b"x"

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_recv_gives_what_is_there_up_to_the_size() -> None:
    async def root() -> None:
        with pair() as (one, other):
            await one.sendAll(b"abcdef")
            assert await other.recv(2) == b"ab"
            assert await other.recv(2) == b"cd"
            assert await other.recv(100) == b"ef"
            late = await spawn(other.recv(100))
            await one.sendAll(b"gh")
            assert await late.join() == b"gh"

    flowno.run(root())


def test_recv_of_a_negative_size_is_a_value_error() -> None:
    async def root() -> None:
        with pair() as (one, other):
            await other.sendAll(b"x")
            assert await one.recv(100) == b"x"
            with pytest.raises(ValueError, match="negative"):
                await one.recv(-1)

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_the_end_of_the_stream_comes_again_and_again() -> None:
    async def root() -> None:
        with pair() as (one, other):
            await other.sendAll(b"last")
            other.close()
            assert await one.recv(100) == b"last"
            for _ in range(200):
                assert await one.recv(100) == b""

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_recv_into_fills_a_buffer() -> None:
    async def root() -> None:
        with pair() as (one, other):
            buffer = bytearray(b"........")
            await other.sendAll(b"abcd")
            assert await one.recv_into(buffer) == 4
            await other.sendAll(b"efgh")
            assert await one.recv_into(memoryview(buffer)[4:], 2) == 2
            assert buffer == b"abcdef.."
            late = await spawn(one.recv_into(buffer))
            await sleep(0)
            assert not late.is_finished or buffer[:2] == b"gh"
            await late.join()
            late = await spawn(one.recv_into(buffer))
            await sleep(0)
            assert not late.is_finished
            other.close()
            assert await late.join() == 0
            with pytest.raises(TypeError):
                await one.recv_into(b"read-only")  # type: ignore[arg-type]

    flowno.run(root())


@pytest.mark.parametrize("drained", [False, True], ids=["fresh", "drained"])
def test_a_buffer_that_will_not_do_is_an_error_before_anything_is_waited_for(drained: bool) -> None:
    async def main() -> None:
        with pair() as (one, other):
            if drained:
                await other.sendAll(b"x")
                await one.recv(10)
            read_only: Any = b"read-only"
            with pytest.raises(TypeError, match="writable buffer"):
                await one.recv_into(read_only)
            for nbytes in (-1, 4):
                with pytest.raises(ValueError, match=f"cannot take {nbytes} bytes into a buffer of 3"):
                    await one.recv_into(bytearray(3), nbytes)

    flowno.run(main())


def test_datagrams_keep_their_boundaries() -> None:
    async def root() -> None:
        with flowno.socket(type=socket.SOCK_DGRAM) as one, flowno.socket(type=socket.SOCK_DGRAM) as other:
            for handle in (one, other):
                handle.bind(("127.0.0.1", 0))
            await flowno.connect(one, other.getsockname())
            await flowno.connect(other, one.getsockname())
            reader = await spawn(other.recv(100))
            for text in (b"first", b"", b"third"):
                await one.send(text)
            assert await reader.join() == b"first"
            assert [await other.recv(100) for _ in range(2)] == [b"", b"third"]

    flowno.run(root())


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this platform has no Unix sockets")
def test_unix_sockets_work_as_tcp_does(tmp_path: Any) -> None:
    async def root() -> None:
        path = str(tmp_path / "sock")
        with flowno.socket(socket.AF_UNIX) as listener, flowno.socket(socket.AF_UNIX) as client:
            listener.bind(path)
            listener.listen()
            await flowno.connect(client, path)
            connection, _ = await listener.accept()
            with connection:
                await client.sendAll(b"x")
                assert await connection.recv(9) == b"x"
            assert path in repr(listener)

    flowno.run(root())


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
def test_ipv6_works_as_ipv4_does() -> None:
    async def root() -> None:
        with flowno.socket(socket.AF_INET6) as listener, flowno.socket(socket.AF_INET6) as client:
            try:
                listener.bind(("::1", 0))
            except OSError as error:
                pytest.skip(f"this machine has no IPv6 loopback: {error}")
            listener.listen()
            await flowno.connect(client, listener.getsockname()[:2])
            connection, _ = await listener.accept()
            with connection:
                await client.sendAll(b"x")
                assert await connection.recv(9) == b"x"
            assert "[::1]:" in repr(client)

    flowno.run(root())


# ------------------------------------------------------------------------------------------------------ making a handle


def test_a_handle_makes_its_socket_non_blocking() -> None:
    one, other = socket.socketpair()
    with other:
        assert one.getblocking()
        with SocketHandle(one) as handle:
            assert handle.socket is one
            assert not one.getblocking()


def test_socket_makes_a_non_blocking_tcp_socket_by_default() -> None:
    with flowno.socket() as handle:
        assert type(handle) is SocketHandle
        assert (handle.socket.family, handle.socket.type) == (socket.AF_INET, socket.SOCK_STREAM)
        assert not handle.socket.getblocking()
        assert not handle.socket.get_inheritable()


def test_socket_passes_its_arguments_on() -> None:
    with flowno.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET, socket.SOCK_DGRAM, 0) as handle:
        assert handle.socket.type == socket.SOCK_DGRAM
        other = socket.socket(type=socket.SOCK_DGRAM)
        other.bind(("127.0.0.1", 0))  # Windows knows no family of one that is not bound
        with flowno.socket(fileno=other.detach()) as taken:
            assert taken.socket.type == socket.SOCK_DGRAM


def test_tls_settings_without_tls_are_a_value_error() -> None:
    with pytest.raises(ValueError, match="use_tls"):
        flowno.socket(server_hostname="localhost")


def test_the_signatures_are_the_documented_ones() -> None:
    def parameters(function: Any) -> str:
        return re.sub(r": [^,=)/]+|'", "", str(inspect.signature(function)).partition(" ->")[0]).replace(" ", "")

    assert parameters(SocketHandle.bind) == "(self,address,/)"
    assert parameters(SocketHandle.connect) == "(self,address,/)"
    assert list(inspect.signature(SocketHandle.listen).parameters) == ["self", "backlog"]
    assert list(inspect.signature(SocketHandle.recv).parameters) == ["self", "bufsize"]
    assert list(inspect.signature(SocketHandle.send).parameters) == ["self", "data"]
    assert list(inspect.signature(SocketHandle.sendAll).parameters) == ["self", "data"]
    assert list(inspect.signature(SocketHandle).parameters) == ["socket"]
    assert SocketHandle.sendall is SocketHandle.sendAll
    defaults = {name: each.default for name, each in inspect.signature(flowno.socket).parameters.items()}
    assert defaults == {
        "family": -1,
        "type": -1,
        "proto": -1,
        "fileno": None,
        "use_tls": False,
        "ssl_context": None,
        "server_hostname": None,
    }


# ------------------------------------------------------------------------------------------ what a socket has besides


def test_addresses_options_and_number_are_those_of_the_socket() -> None:
    with listening() as listener, flowno.socket() as client:
        client.connect(listener.getsockname())
        assert client.fileno() == client.socket.fileno()
        assert client.getpeername() == listener.getsockname()
        assert client.getsockname() == client.socket.getsockname()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        assert len(client.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4)) == 4  # type: ignore[arg-type]


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_shutdown_ends_one_direction() -> None:
    async def root() -> None:
        with tcp_pair() as (one, other):
            await one.sendAll(b"question")
            one.shutdown(socket.SHUT_WR)
            assert await receive(other, 100) == b"question"
            with pytest.raises(OSError) as caught:  # noqa: PT011
                await one.send(b"more")
            assert caught.value.errno in (errno.EPIPE, getattr(errno, "WSAESHUTDOWN", errno.EPIPE))
            await other.sendAll(b"answer")
            assert await one.recv(100) == b"answer"

    flowno.run(root())


def test_the_repr_shows_fd_and_addresses_and_whether_it_is_closed() -> None:
    with listening() as listener, flowno.socket() as client:
        client.connect(listener.getsockname())
        port, own = listener.getsockname()[1], client.getsockname()[1]
        assert f"fd={client.fileno()}" in repr(client)
        assert f"127.0.0.1:{own} -> 127.0.0.1:{port}" in repr(client)
        assert f"127.0.0.1:{port}" in repr(listener)
        client.close()
        assert "closed" in repr(client)
        assert "SocketHandle" in repr(client)


def test_a_handle_awaited_outside_of_a_loop_says_so() -> None:
    with pair() as (one, _):
        for coroutine in (one.recv(1), one.send(b"x"), one.sendAll(b"x"), one.accept(), one.recv_into(bytearray(1))):
            with pytest.raises(EventLoopError, match=r"flowno\.run"):
                coroutine.send(None)


def test_sel_is_the_selector_of_the_running_loop() -> None:
    async def root() -> None:
        loop = current_event_loop()
        assert loop is not None
        assert sel.select == loop.selector.select
        assert repr(loop.selector) in repr(sel)

    flowno.run(root())
    with pytest.raises(RuntimeError, match="no event loop|none runs"):
        sel.select(0)


# ----------------------------------------------------------------------------------------------------- bind and listen


def test_a_taken_address_is_named() -> None:
    with listening() as listener, flowno.socket() as second:
        address = listener.getsockname()
        with pytest.raises(OSError, match=re.escape(str(address))) as caught:
            second.bind(address)
        assert caught.value.errno == errno.EADDRINUSE


def test_a_foreign_address_is_named() -> None:
    with flowno.socket() as handle, pytest.raises(OSError, match=re.escape("192.0.2.1")) as caught:  # TEST-NET-1
        handle.bind(("192.0.2.1", 0))
    assert caught.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.parametrize("address", [None, 7, "127.0.0.1", ("127.0.0.1",), ("127.0.0.1", "http")])
def test_what_is_no_address_is_a_type_error(address: Any) -> None:
    with flowno.socket() as handle:
        with pytest.raises(TypeError):
            handle.bind(address)
        with pytest.raises(TypeError):
            handle.connect(address)


@pytest.mark.skipif(os.name != "posix", reason="Windows has SO_EXCLUSIVEADDRUSE for it")
def test_bind_lets_a_server_restart_at_once_and_two_servers_never_share() -> None:
    with flowno.socket() as tcp, flowno.socket(type=socket.SOCK_DGRAM) as udp:
        for handle in (tcp, udp):
            handle.bind(("127.0.0.1", 0))
        assert tcp.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) != 0
        assert udp.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0

    async def root() -> None:
        with listening() as listener:
            address = listener.getsockname()
            with flowno.socket() as client:
                client.connect(address)
                connection, _ = await listener.accept()
                connection.close()  # the server's end goes first: its address stays in TIME_WAIT
                assert await client.recv(1) == b""
        with flowno.socket() as again:
            again.bind(address)
            again.listen()

    flowno.run(root())


def test_listen_takes_a_backlog_or_none() -> None:
    for backlog in (None, 0, 5):
        with flowno.socket() as handle:
            handle.bind(("127.0.0.1", 0))
            handle.listen(backlog)
            with flowno.socket() as client:
                client.connect(handle.getsockname())


# ---------------------------------------------------------------------------------------------------------------- close


def test_close_is_idempotent_and_synchronous() -> None:
    with pair() as (one, other):
        one.close()
        assert one.fileno() == -1
        one.close()
        assert other.socket.recv(1) == b""
        assert one.socket.fileno() == -1


def test_leaving_the_with_block_closes() -> None:
    with flowno.socket() as handle:
        assert handle.fileno() >= 0
    assert handle.fileno() == -1
    with pytest.raises(ZeroDivisionError), flowno.socket() as handle:
        raise ZeroDivisionError
    assert handle.fileno() == -1


@pytest.mark.parametrize("used", [False, True], ids=["never used", "used before"])
def test_every_operation_on_a_closed_handle_raises_and_none_pretends_the_end_of_the_stream(used: bool) -> None:
    async def root() -> None:
        with tcp_pair() as (handle, other), listening() as listener:
            if used:
                await other.sendAll(b"x")
                assert await handle.recv(100) == b"x"
            address = listener.getsockname()
            handle.close()
            for operation in (
                lambda: handle.recv(1),
                lambda: handle.recv(0),
                lambda: handle.recv_into(bytearray(1)),
                lambda: handle.send(b"x"),
                lambda: handle.sendAll(b"x"),
                lambda: handle.sendAll(b""),
                lambda: handle.accept(),
                lambda: flowno.connect(handle, address),
            ):
                with pytest.raises(ClosedResourceError) as caught:
                    await operation()
                assert caught.value.errno == errno.EBADF
            for call in (
                lambda: handle.bind(("127.0.0.1", 0)),
                lambda: handle.listen(),
                lambda: handle.connect(address),
                lambda: handle.shutdown(socket.SHUT_RDWR),
                lambda: handle.getsockname(),
                lambda: handle.getpeername(),
                lambda: handle.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
                lambda: handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            ):
                with pytest.raises(ClosedResourceError):
                    call()

    flowno.run(root())


def test_a_closed_resource_error_is_an_os_error_and_a_flowno_error() -> None:
    error = ClosedResourceError()
    assert isinstance(error, OSError)
    assert isinstance(error, flowno.FlownoError)
    assert error.errno == errno.EBADF


@pytest.mark.skipif(sys.platform == "win32", reason="a socket is no file descriptor there")
def test_a_regular_file_behind_a_handle_is_always_ready(tmp_path: Any) -> None:
    """epoll refuses regular files with EPERM; poll and select call them ready. The loop makes them the same."""

    class File:
        def __init__(self, path: Any) -> None:
            self.file = open(path, "rb")  # noqa: SIM115

        def setblocking(self, flag: bool) -> None:
            os.set_blocking(self.file.fileno(), flag)

        def fileno(self) -> int:
            return -1 if self.file.closed else self.file.fileno()

        def recv(self, size: int) -> bytes:
            return os.read(self.file.fileno(), size)

        def send(self, data: bytes) -> int:
            raise OSError(errno.EBADF, "read-only")

        def close(self) -> None:
            self.file.close()

    async def root() -> None:
        path = tmp_path / "file"
        path.write_bytes(bytes(range(256)) * 4)
        other = await spawn(sleep(0.001))
        with SocketHandle(File(path)) as handle:  # type: ignore[arg-type]
            data = b""
            while some := await handle.recv(3):  # more often than the budget
                data += some
            assert data == bytes(range(256)) * 4
            short = SocketHandle(File(path))  # type: ignore[arg-type]
            assert len(await short.recv(2000)) == 1024  # a short receive: the next one waits first
            assert await short.recv(2000) == b""
            short.close()
        await other.join()

    flowno.run(root())


def test_a_closed_resource_error_can_be_pickled_and_copied() -> None:
    error = ClosedResourceError("the handle was closed")
    error.add_note("a note")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is ClosedResourceError
        assert (str(twin), twin.errno, twin.args) == (str(error), errno.EBADF, error.args)
        assert twin.__notes__ == ["a note"]


@pytest.mark.parametrize("what", [3, None, "socket", socket.socket.fileno])
def test_what_is_no_socket_is_a_type_error_that_shows_it(what: Any) -> None:
    with pytest.raises(TypeError, match=f"SocketHandle takes a socket, not {re.escape(repr(what))}$"):
        SocketHandle(what)


@pytest.mark.parametrize("method", ["bind", "listen", "recv", "recv_into", "send", "sendAll", "accept", "shutdown"])
def test_an_operation_on_a_closed_handle_is_named(method: str) -> None:
    arguments: dict[str, tuple[Any, ...]] = {
        "bind": (("127.0.0.1", 0),),
        "recv": (1,),
        "recv_into": (bytearray(1),),
        "send": (b"x",),
        "sendAll": (b"x",),
        "shutdown": (socket.SHUT_RDWR,),
    }

    async def operate(handle: SocketHandle) -> None:
        result = getattr(handle, method)(*arguments.get(method, ()))
        if result is not None:
            await result

    handle = flowno.socket()
    handle.close()
    with pytest.raises(ClosedResourceError, match=rf"^\[Errno {errno.EBADF}\] {method} on <SocketHandle closed>: "):
        flowno.run(operate(handle))


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.parametrize("command_class", [SocketRecvCommand, SocketAcceptCommand, SocketSendCommand])
def test_a_command_that_a_program_yields_by_hand_binds_a_fresh_handle(command_class: type[SocketCommand]) -> None:
    @types.coroutine
    def wait(handle: SocketHandle) -> Generator[SocketCommand, None, None]:
        yield command_class(handle)

    async def root() -> None:
        with pair() as (one, other):
            other.socket.send(b"data")
            await wait(one)
            assert await one.recv(9) == b"data"
            await one.sendAll(b"answer")
            assert await other.recv(9) == b"answer"
            reader = await spawn(one.recv(9))
            await sleep(0)
            other.socket.send(b"more")
            assert await reader.join() == b"more"

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it counts turns of the loop, or what is done in one of them")
def test_a_send_that_is_refused_leaves_the_count_of_the_one_that_goes_on() -> None:
    async def root() -> None:
        with pair(4096) as (one, other):
            sender = await spawn(one.sendAll(bytes(LARGE)))
            sent = one.bytes_sent
            assert 0 < sent < LARGE
            with pytest.raises(BusyResourceError):
                await one.sendAll(b"second")
            assert one.bytes_sent == sent
            assert len(await receive(other, LARGE)) == LARGE
            await sender.join()
            assert one.bytes_sent == LARGE

    flowno.run(root())
