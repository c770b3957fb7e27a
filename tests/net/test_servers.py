"""Servers: what they listen on, how they accept, what one bad connection does to the others, and how they stop."""

# ruff: noqa: SIM117 - a server and what is connected to it do not belong in one line

import errno
import functools
import logging
import os
import re
import socket
import ssl
import stat
import sys
import types
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import flowno
from flowno import EventLoop, SocketHandle, TaskCancelled, TruncatedStreamError, move_on_after, sleep, spawn
from flowno.net import servers
from flowno.net.activation import activated_sockets
from flowno.net.connections import open_connection, open_unix_connection
from flowno.net.servers import Server, serve_activated, serve_sockets, serve_tcp, serve_unix
from flowno.net.streams import Stream
from tests.conftest import RunPython
from tests.support import wine
from tests.support.backends import system_call_of
from tests.support.counting_selector import CountingSelector
from tests.support.limits import open_files
from tests.support.loopback import needs_ipv6, pair, resets_at_close
from tests.support.tasks import FOREVER
from tests.support.worlds import ScriptedWorld, answer, in_world

pytestmark = pytest.mark.usefixtures("backend")

unix_sockets = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this Python has no Unix sockets")
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract names")


async def echo(stream: Stream) -> None:
    while data := await stream.read(65536):
        await stream.write(data)


async def until_told(stream: Stream) -> None:
    """A handler that says hello and goes on for ever."""
    await stream.write(b"hello\n")
    await sleep(FOREVER)


async def greeted(server: Server) -> Stream:
    """A connection whose handler runs."""
    stream = await open_connection(*server.addresses[0][:2])
    try:
        assert await stream.readline() == b"hello\n"
    except BaseException:
        stream.close()
        raise
    return stream


async def ask(server: Server, data: bytes = b"ping", **options: Any) -> bytes:
    """What an echo server says on a new connection; ``options`` are those of ``open_connection``."""
    async with await open_connection(*server.addresses[0][:2], **options) as stream:
        await stream.write(data)
        return await stream.readexactly(len(data))


async def say_in_the_clear(server: Server, data: bytes) -> Any:
    """Say this to a server that expects TLS, and wait until it has had enough; the address of who said it."""
    async with await open_connection(*server.addresses[0]) as stream:
        address = stream.get_extra_info("sockname")
        await stream.write(data)
        try:
            await stream.read()
        except ConnectionError:
            pass
        return address


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until this is so; pytest's time limit is the end of it."""
    while not condition():
        await sleep(0.001)


@contextmanager
def world(**names: list[Any]) -> Iterator[tuple[EventLoop, ScriptedWorld]]:
    scripted = ScriptedWorld()
    scripted.names.update(names)
    with in_world(scripted) as loop:
        yield loop, scripted


def run_with_sockets(kind: type[socket.socket], root: Coroutine[Any, Any, object]) -> None:
    """Run it where every socket that is made is of this kind."""
    with world() as (loop, scripted):
        scripted.make = kind
        loop.run_until_complete(root, join=True)


# -------------------------------------------------------------------------------------------------- what is listened on


def test_a_server_echoes_and_its_address_is_known_before_the_first_connection() -> None:
    async def root() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0) as server:
            ((host, port),) = server.addresses
            assert (host, port > 0) == ("127.0.0.1", True)
            assert [handle.getsockname() for handle in server.sockets] == [(host, port)]
            assert repr(server) == f"<Server 127.0.0.1:{port} listening, 0 connections>"
            assert await ask(server) == b"ping"
        assert repr(server) == f"<Server 127.0.0.1:{port} closed, 0 connections>"

    flowno.run(root())


def test_a_client_can_connect_as_soon_as_serve_tcp_has_returned() -> None:
    async def root() -> bytes:
        async with await serve_tcp(echo, "127.0.0.1", 0) as server:
            with flowno.socket() as client:
                client.connect(server.addresses[0])  # this blocks: only the backlog can answer
                await client.sendAll(b"x")
                return await client.recv(1)

    assert flowno.run(root()) == b"x"


@pytest.mark.parametrize("handler", [echo, functools.partial(echo)])
def test_the_task_of_a_connection_is_called_as_its_handler(handler: Any) -> None:
    async def root() -> set[str]:
        async with await serve_tcp(handler, "127.0.0.1", 0) as server:
            async with await open_connection(*server.addresses[0]) as stream:
                await stream.write(b"x")
                await stream.readexactly(1)
                return {task.name for task in flowno.current_event_loop().snapshot().tasks}

    assert "echo" in flowno.run(root())


@needs_ipv6
@pytest.mark.parametrize("host", [None, ""])
def test_all_interfaces_are_both_families_on_one_port(host: Any) -> None:
    async def root() -> None:
        async with await serve_tcp(echo, host, 0) as server:
            (four, port), (six, port_of_six, *_) = server.addresses
            assert (four, six) == ("0.0.0.0", "::")
            assert port == port_of_six > 0
            for address in ("127.0.0.1", "::1"):
                async with await open_connection(address, port) as stream:
                    await stream.write(b"ping")
                    assert await stream.readexactly(4) == b"ping"

    flowno.run(root())


@needs_ipv6
def test_all_addresses_of_a_host_and_several_hosts_share_a_port() -> None:
    async def root() -> None:
        async with await serve_tcp(echo, ["both", "127.0.0.1", "127.0.0.2"], 0) as server:
            assert [address[0] for address in server.addresses] == ["127.0.0.1", "127.0.0.2", "::1"]
            assert len({address[1] for address in server.addresses}) == 1

    with world(both=answer(("::1", 0), ("127.0.0.1", 0))) as (loop, _):
        loop.run_until_complete(root(), join=True)


@needs_ipv6
def test_a_port_that_one_of_the_addresses_cannot_have_is_given_up_for_another() -> None:
    taken: list[socket.socket] = []

    class Unlucky(socket.socket):
        """The first IPv6 sockets find their port taken."""

        def bind(self, address: Any) -> None:
            if self.family == socket.AF_INET6 and len(taken) < 3:
                taken.append(socket.create_server(("::1", address[1]), family=socket.AF_INET6))
            super().bind(address)

    async def root() -> None:
        async with await serve_tcp(echo, ["127.0.0.1", "::1"], 0) as server:
            assert len(scripted.open_sockets) == 2
            ports = {address[1] for address in server.addresses}
            assert len(ports) == 1
            assert not ports & {sock.getsockname()[1] for sock in taken}

    with world() as (loop, scripted), ExitStack() as stack:
        scripted.make = Unlucky
        stack.callback(lambda: [sock.close() for sock in taken])
        loop.run_until_complete(root(), join=True)
    assert len(taken) == 3


@needs_ipv6
def test_the_search_for_a_port_has_an_end() -> None:
    class Hopeless(socket.socket):
        def bind(self, address: Any) -> None:
            if self.family == socket.AF_INET6:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            super().bind(address)

    with world() as (loop, scripted):
        scripted.make = Hopeless
        with pytest.raises(OSError, match=r"'::1'") as caught:
            loop.run_until_complete(serve_tcp(echo, ["127.0.0.1", "::1"], 0), join=True)
        assert caught.value.errno == errno.EADDRINUSE
        assert scripted.open_sockets == []
        assert len(scripted.sockets) <= 50


def test_an_address_that_the_machine_does_not_have_is_left_out_of_several() -> None:
    async def root(host: Any) -> list[str]:
        async with await serve_tcp(echo, host, 0) as server:
            return [address[0] for address in server.addresses]

    with world(both=answer(("::1", 0), ("127.0.0.1", 0)), other=answer(("192.0.2.1", 0), ("127.0.0.1", 0))) as (
        loop,
        w,
    ):
        w.make = w.without_ipv6
        assert loop.run_until_complete(root("both"), join=True) == ["127.0.0.1"]
        assert loop.run_until_complete(root("other"), join=True) == ["127.0.0.1"]
        assert loop.run_until_complete(root(None), join=True) == ["0.0.0.0"]


@pytest.mark.parametrize("host", ["::1", "192.0.2.1", ["127.0.0.1", "::1"], "neither"])
def test_an_address_that_was_asked_for_and_cannot_be_had_is_an_error_that_names_it(host: Any) -> None:
    with world(neither=answer(("::1", 0), ("192.0.2.1", 0))) as (loop, scripted):
        scripted.make = scripted.without_ipv6
        with pytest.raises(OSError, match=r"'(::1|192\.0\.2\.1)'"):
            loop.run_until_complete(serve_tcp(echo, host, 0), join=True)
        assert scripted.open_sockets == []


def test_a_port_that_is_taken_is_an_error_that_names_it() -> None:
    async def root() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0) as server:
            with pytest.raises(OSError, match=re.escape(str(server.addresses[0]))) as caught:
                await serve_tcp(echo, *server.addresses[0])
            assert caught.value.errno in (errno.EADDRINUSE, getattr(errno, "WSAEADDRINUSE", errno.EADDRINUSE))

    flowno.run(root())


def test_a_name_that_does_not_resolve_is_an_error_that_names_it() -> None:
    with world() as (loop, _), pytest.raises(socket.gaierror, match="nowhere"):
        loop.run_until_complete(serve_tcp(echo, "nowhere", 80), join=True)


def test_a_server_can_be_started_again_at_once_on_its_port() -> None:
    async def root() -> None:
        async with await serve_tcp(until_told, "127.0.0.1", 0) as server:
            client = await greeted(server)
            await server.aclose(grace=0)
        async with await serve_tcp(until_told, *server.addresses[0]) as server:
            (await greeted(server)).close()
            client.close()
            await server.aclose(grace=0)

    flowno.run(root())


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="this system has no SO_REUSEPORT")
def test_reuse_port_lets_servers_share_a_port() -> None:
    async def root() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0, reuse_port=True) as one:
            async with await serve_tcp(echo, *one.addresses[0], reuse_port=True):
                for _ in range(10):
                    assert await ask(one) == b"ping"

    flowno.run(root())


def test_reuse_port_without_the_option_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SO_REUSEPORT", raising=False)
    with pytest.raises(ValueError, match="reuse_port"):
        flowno.run(serve_tcp(echo, "127.0.0.1", 0, reuse_port=True))


def test_the_backlog_is_what_was_asked_for_or_what_the_system_allows() -> None:
    asked: list[int] = []

    class Noting(socket.socket):
        def listen(self, *args: Any) -> None:
            asked.extend(args)
            super().listen(*args)

    async def root() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0, backlog=7), await serve_tcp(echo, "127.0.0.1", 0):
            pass

    run_with_sockets(Noting, root())
    assert asked[0] == 7
    assert asked[1] >= 4096


def test_connections_send_small_pieces_at_once_and_have_the_limit() -> None:
    async def handler(stream: Stream) -> None:
        seen.append((stream.limit, bool(stream.handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))))

    async def root() -> None:
        async with await serve_tcp(handler, "127.0.0.1", 0, limit=17) as server:
            async with await open_connection(*server.addresses[0]) as stream:
                assert await stream.read() == b""

    seen: list[Any] = []
    flowno.run(root())
    assert seen == [(17, True)]


async def sleep_after(address: Any, error: OSError) -> None:
    await sleep(0)


async def async_generator(stream: Stream) -> Any:
    yield await stream.read()


def generator(stream: Stream) -> Any:
    yield stream


class GeneratorMethod:
    async def __call__(self, stream: Stream) -> Any:
        yield await stream.read()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"handler": None}, TypeError),
        ({"handler": async_generator}, TypeError),
        ({"handler": generator}, TypeError),
        ({"handler": functools.partial(async_generator)}, TypeError),
        ({"handler": GeneratorMethod()}, TypeError),
        ({"tls": True}, TypeError),
        ({"max_connections": 0}, ValueError),
        ({"max_connections": "many"}, TypeError),
        ({"max_connections": float("nan")}, TypeError),
        ({"backlog": "many"}, TypeError),
        ({"backlog": float("nan")}, TypeError),
        ({"backlog": -1}, ValueError),
        ({"backlog": 2**40}, ValueError),
        ({"handshake_timeout": 0}, ValueError),
        ({"handshake_timeout": float("nan")}, ValueError),
        ({"handshake_timeout": "long"}, TypeError),
        ({"handshake_timeout": 10}, ValueError),  # without tls
        ({"require_close_notify": False}, ValueError),
        ({"on_handshake_error": print}, ValueError),
        ({"on_handshake_error": 7}, TypeError),
        ({"on_handshake_error": sleep_after}, TypeError),
        ({"limit": 0}, ValueError),
        ({"limit": "much"}, TypeError),
        ({"limit": float("nan")}, TypeError),
        ({"port": 65536}, ValueError),
        ({"host": []}, ValueError),
        ({"host": 7}, TypeError),
        ({"host": ["some.name.test", 7]}, TypeError),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else value.__name__,
)
def test_a_wrong_argument_is_refused_before_anything_listens(arguments: Any, error: type[Exception]) -> None:
    with world() as (loop, scripted):
        with pytest.raises(error, match=next(iter(arguments))):
            loop.run_until_complete(
                serve_tcp(**{"handler": echo, "host": "127.0.0.1", "port": 0} | arguments), join=True
            )
        assert scripted.sockets == []
        assert scripted.asked == []


@unix_sockets
@pytest.mark.parametrize(
    "arguments",
    [{"path": 7}, {"mode": "0o660"}, {"backlog": "many"}, {"limit": "much"}, {"handler": None}],
    ids=lambda arguments: next(iter(arguments)),
)
def test_a_wrong_argument_is_refused_before_a_socket_is_removed(tmp_path: Path, arguments: Any) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "socket"))
    with pytest.raises(TypeError, match=next(iter(arguments))):
        flowno.run(serve_unix(**{"handler": echo, "path": tmp_path / "socket"} | arguments))
    assert (tmp_path / "socket").exists()


def test_a_wrong_argument_leaves_activated_sockets_to_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    with pytest.raises(TypeError, match="max_connections"):
        flowno.run(serve_activated(echo, max_connections="many"))  # type: ignore[arg-type]
    assert os.environ["LISTEN_FDS"] == "1"


@pytest.mark.parametrize(("grace", "error"), [(float("nan"), ValueError), ("long", TypeError), (None, TypeError)])
def test_a_stop_with_a_wrong_time_stops_nothing(grace: Any, error: type[Exception]) -> None:
    async def root() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0) as server:
            with pytest.raises(error, match="grace"):
                await server.aclose(grace)
            assert await ask(server) == b"ping"

    flowno.run(root())


def test_a_cancelled_start_leaves_nothing_open() -> None:
    async def root() -> None:
        starting = await spawn(serve_tcp(echo, "slow", 0))
        await sleep(0)
        assert await starting.cancel() is None

    with world(slow=answer(("127.0.0.1", 0))) as (loop, scripted):
        scripted.go_on.clear()
        loop.run_until_complete(root(), join=True)
        assert scripted.sockets == []


# ------------------------------------------------------------------------------------------------------------ accepting


def test_many_connections_at_once_are_all_served() -> None:
    async def root() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0) as server:
            asking = [await spawn(ask(server, b"%d" % number)) for number in range(200)]
            assert [await task.join() for task in asking] == [b"%d" % number for number in range(200)]

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it counts calls")
def test_several_connections_are_accepted_in_one_turn_but_not_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "ACCEPTS_PER_TURN", 4)

    async def root() -> None:
        async with await serve_tcp(until_told, "127.0.0.1", 0) as server:
            with ExitStack() as stack:
                for _ in range(10):
                    stack.enter_context(flowno.socket()).connect(server.addresses[0])
                counts = [0]
                while counts[-1] < 10:
                    await sleep(0)
                    if server.connections != counts[-1]:
                        counts.append(server.connections)
                assert counts == [0, 4, 8, 10]
            await server.aclose(grace=0)

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it counts on the order in which connections are accepted")
def test_no_more_than_max_connections_are_open_and_the_others_wait() -> None:
    async def handler(stream: Stream) -> None:
        nonlocal most
        most = max(most, server.connections)
        await echo(stream)

    async def root() -> None:
        nonlocal server
        async with await serve_tcp(handler, ["127.0.0.1", "127.0.0.2"], 0, max_connections=3) as server:
            clients = [await open_connection(*server.addresses[number % 2]) for number in range(9)]
            for client in clients:
                await client.write(b"ping")
            await until(lambda: server.connections == 3)
            for _ in range(20):
                await sleep(0)
            assert server.connections == 3
            for client in clients:  # each one that ends makes room for the next
                assert await client.readexactly(4) == b"ping"
                client.close()

    server: Any = None
    most = 0
    flowno.run(root())
    assert most == 3


def test_a_full_server_waits_without_turning() -> None:
    async def root() -> None:
        async with await serve_tcp(until_told, "127.0.0.1", 0, max_connections=1) as server:
            client = await greeted(server)
            with flowno.socket() as waiting:
                waiting.connect(server.addresses[0])
                await sleep(0.01)
                turns = counting.calls["select"]
                await sleep(0.05)
                assert counting.calls["select"] - turns < 10
            client.close()
            await server.aclose(grace=0)

    with CountingSelector() as counting, EventLoop(counting) as loop:
        loop.run_until_complete(root(), join=True)


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.not_in_debug_mode(reason="its blocking connect is reported")
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on descriptors to run into")
def test_without_descriptors_a_server_pauses_says_so_once_and_recovers(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    monkeypatch.setattr(servers, "PAUSE", 0.01)

    async def root() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0) as server:
            asking = await open_connection(*server.addresses[0])
            await until(lambda: server.connections == 1)
            await asking.write(b"ping")
            with flowno.socket() as client:
                soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                lowest = os.dup(0)
                os.close(lowest)
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
                try:
                    client.connect(server.addresses[0])
                    began = clock()
                    await until(lambda: len(caplog.records) >= 1)
                    while clock() < began + 0.1:
                        await sleep(0.01)
                    assert await asking.readexactly(4) == b"ping"  # the others are served all the while
                    assert server.connections == 1
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                await client.sendAll(b"pong")
                assert await client.recv(4) == b"pong"
            asking.close()

    with EventLoop() as loop:
        clock = loop.world.clock
        loop.run_until_complete(root(), join=True)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert os.strerror(errno.EMFILE) in record.getMessage()
    assert "127.0.0.1" in record.getMessage()


class Narrow(CountingSelector):
    """A selector with room for so many fds at once, as select has on Windows."""

    room = sys.maxsize

    def register(self, fileobj: Any, events: int, data: Any = None, /) -> Any:
        if len(self.masks) >= self.room:
            raise ValueError("this selector is full")
        return super().register(fileobj, events, data)


def ask_by_blocking(address: Any, context: ssl.SSLContext | None) -> bytes:
    """What an echo server says to a client that the selector knows nothing of."""
    with ExitStack() as stack:
        client = stack.enter_context(socket.create_connection(address[:2], timeout=20))
        if context is not None:
            client = stack.enter_context(context.wrap_socket(client, server_hostname="127.0.0.1"))
        client.sendall(b"ping")
        return client.recv(4)


@pytest.mark.not_under_faults(reason="it counts calls")
@pytest.mark.parametrize("through_tls", [False, True])
def test_a_full_selector_is_waited_for_and_the_connections_with_it(
    through_tls: bool, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "PAUSE", 0.01)
    tls: Any = request.getfixturevalue("server_context") if through_tls else None
    context: Any = request.getfixturevalue("client_context") if through_tls else None
    options: Any = {"tls": context, "server_hostname": "127.0.0.1"} if through_tls else {}

    async def root() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0, tls=tls) as server:
            async with await open_connection(*server.addresses[0], **options) as served:
                await served.write(b"ping")
                assert await served.readexactly(4) == b"ping"
                selector.room = len(selector.masks)
                asking = [
                    await spawn(flowno.run_in_thread(ask_by_blocking, server.addresses[0], context)) for _ in range(3)
                ]
                await until(lambda: caplog.records)
                await sleep(0.05)
                await served.write(b"pong")
                assert await served.readexactly(4) == b"pong"  # who was there before is served all the while
            assert [await task.join() for task in asking] == [b"ping"] * 3

    with Narrow() as selector, EventLoop(selector) as loop:
        loop.run_until_complete(root(), join=True)
    (record,) = caplog.records
    assert "this selector is full" in record.getMessage()
    assert record.levelno == logging.ERROR
    assert not record.exc_info


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_who_has_a_place_in_the_selector_keeps_it_while_data_comes_that_nobody_waits_for_yet() -> None:
    """Until its task comes to a wait, the fd of a connection is taken out, as it would be reported again and again."""

    async def root() -> None:
        with pair() as (first, peer), pair() as (second, _):
            selector.room = len(selector.masks) + 1
            fds = flowno.current_event_loop().fds
            fds.hold(first)
            await peer.sendAll(b"early")
            while first.fileno() in selector.masks:
                await sleep(0.001)
            with pytest.raises(ValueError, match="this selector is full"):
                fds.hold(second)
            assert await first.recv(5) == b"early"
            receiving = await spawn(first.recv(5))
            await peer.sendAll(b"later")
            assert await receiving.join() == b"later"

    with Narrow() as selector, EventLoop(selector) as loop:
        loop.run_until_complete(root(), join=True)


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.skipif(sys.platform == "win32", reason="the numbers of sockets are no matter on Windows")
@pytest.mark.parametrize("through_tls", [False, True])
def test_descriptors_that_select_cannot_hold_are_waited_for(
    through_tls: bool,
    backend: str,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only select has the limit, FD_SETSIZE; the others serve such a connection at once."""
    monkeypatch.setattr(servers, "PAUSE", 0.01)
    tls: Any = request.getfixturevalue("server_context") if through_tls else None
    context: Any = request.getfixturevalue("client_context") if through_tls else None
    others: list[int] = []

    async def root() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0, tls=tls) as server:
            others.append(os.open(os.devnull, os.O_RDONLY))
            while others[-1] < 1024:
                others.append(os.dup(others[0]))
            asking = [
                await spawn(flowno.run_in_thread(ask_by_blocking, server.addresses[0], context)) for _ in range(3)
            ]
            if system_call_of(backend) == "select":
                await until(lambda: caplog.records)
                await sleep(0.05)
                assert server.connections == 0
                while others:
                    os.close(others.pop())
            assert [await task.join() for task in asking] == [b"ping"] * 3

    with open_files(1100):
        try:
            flowno.run(root())
        finally:
            for fd in others:
                os.close(fd)
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * (system_call_of(backend) == "select")
    assert all("FD_SETSIZE" in record.getMessage() and not record.exc_info for record in caplog.records)


@pytest.mark.not_under_faults(reason="it counts calls")
def test_to_see_that_there_is_room_costs_nothing_where_there_was_as_much_before() -> None:
    async def handler(stream: Stream) -> None:
        await stream.write(b"hello")

    def hear(address: Any) -> bytes:
        with socket.create_connection(address, timeout=20) as client:
            return client.recv(9)

    async def root() -> None:
        async with await serve_tcp(handler, "127.0.0.1", 0) as server:
            for count in range(5):
                assert await flowno.run_in_thread(hear, server.addresses[0]) == b"hello"
                await until(lambda: server.connections == 0)
                if count == 0:
                    before = selector.calls["register"] + selector.calls["modify"]
            assert selector.calls["register"] + selector.calls["modify"] == before

    with CountingSelector() as selector, EventLoop(selector) as loop:
        loop.run_until_complete(root(), join=True)


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_a_stop_closes_the_connection_that_waits_for_room_in_the_selector(caplog: pytest.LogCaptureFixture) -> None:
    async def root() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0) as server:
            async with await open_connection(*server.addresses[0]) as served:
                await served.write(b"ping")
                assert await served.readexactly(4) == b"ping"
                selector.room = len(selector.masks)
                client = socket.create_connection(server.addresses[0], timeout=20)
                await until(lambda: caplog.records)
                selector.room = 0  # nor is there any when the first connection has ended
            with client:
                await until(lambda: server.connections == 0)
                await server.aclose()
                assert client.recv(1) == b""

    with Narrow() as selector, EventLoop(selector) as loop:
        loop.run_until_complete(root(), join=True)
    (record,) = caplog.records
    assert "this selector is full" in record.getMessage()


def test_a_handshake_that_the_selector_refuses_is_logged_with_its_peer_and_the_server_goes_on(
    caplog: pytest.LogCaptureFixture, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def root() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0, tls=server_context) as server:

            async def answer_to_one() -> bytes:
                return await flowno.run_in_thread(ask_by_blocking, server.addresses[0], client_context)

            assert await answer_to_one() == b"ping"
            await until(lambda: server.connections == 0)
            selector.fail["register"] = ValueError("this selector is broken")
            with socket.create_connection(server.addresses[0], timeout=20) as client:
                peers.append(client.getsockname())
                await until(lambda: caplog.records)
                assert client.recv(1) == b""
            del selector.fail["register"]
            assert await answer_to_one() == b"ping"

    peers: list[Any] = []
    with CountingSelector() as selector, EventLoop(selector) as loop:
        loop.run_until_complete(root(), join=True)
    (record,) = caplog.records
    assert f"{peers[0][0]}:{peers[0][1]}" in record.getMessage()
    assert record.exc_info


class Troubled(socket.socket):
    """A listener whose accept fails in the ways that were scripted, before it does what it should."""

    script: list[int] = []  # noqa: RUF012

    def accept(self) -> Any:
        if self.script:
            code = self.script.pop(0)
            raise OSError(code, os.strerror(code))
        return super().accept()


@pytest.mark.not_under_faults(reason="it counts calls")
@pytest.mark.parametrize("name", ["ENFILE", "ENOBUFS", "ENOMEM"])
def test_a_system_without_room_is_waited_for(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "PAUSE", 0.001)
    Troubled.script = [getattr(errno, name)] * 3

    async def root() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0) as server:
            assert await ask(server) == b"ping"

    run_with_sockets(Troubled, root())
    assert Troubled.script == []
    assert len(caplog.records) == 1


@pytest.mark.not_under_faults(reason="it counts calls")
def test_a_server_that_pauses_does_not_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The listener stays readable all the while; it is asked again after the pause, and not before."""
    monkeypatch.setattr(servers, "PAUSE", 0.02)
    Troubled.script = [errno.EMFILE] * 1000

    async def root() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0) as server:
            with flowno.socket() as client:
                client.connect(server.addresses[0])
                await sleep(0.1)
                turns = counting.calls["select"]
                assert 1000 - len(Troubled.script) <= 7
                assert turns < 30
                Troubled.script = []
                await client.sendAll(b"ping")
                assert await client.recv(9) == b"ping"

    scripted = ScriptedWorld()
    scripted.make = Troubled
    with CountingSelector() as counting:
        counting.world = scripted
        with EventLoop(counting) as loop:
            loop.run_until_complete(root(), join=True)


@pytest.mark.not_under_faults(reason="it counts calls")
def test_a_new_shortage_after_a_recovery_is_logged_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "PAUSE", 0.001)

    async def root() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0) as server:
            for _ in range(2):
                Troubled.script = [errno.EMFILE] * 2
                assert await ask(server) == b"ping"

    run_with_sockets(Troubled, root())
    assert len(caplog.records) == 2


def test_connections_that_fail_before_they_are_accepted_are_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    Troubled.script = [errno.ECONNABORTED] * 3

    async def root() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0) as server:
            assert await ask(server) == b"ping"

    run_with_sockets(Troubled, root())
    assert Troubled.script == []
    assert caplog.records == []


@pytest.mark.not_in_debug_mode(reason="what it does to the listener is reported")
def test_an_error_of_the_listener_itself_ends_the_server_and_lets_its_connections_finish(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def root() -> None:
        server = await serve_tcp(echo, ["127.0.0.1", "127.0.0.2"], 0)
        async with await open_connection(*server.addresses[0]) as stream:
            await until(lambda: server.connections == 1)
            Troubled.script = [errno.EINVAL]
            with flowno.socket() as client:
                client.connect(server.addresses[1])
                await until(lambda: all(handle.fileno() < 0 for handle in server.sockets))
            await stream.write(b"ping")
            assert await stream.readexactly(4) == b"ping"
        with pytest.raises(OSError) as caught:  # noqa: PT011
            await server.serve_forever()
        assert caught.value.errno == errno.EINVAL

    run_with_sockets(Troubled, root())
    (record,) = caplog.records
    assert os.strerror(errno.EINVAL) in record.getMessage()


def test_a_server_that_nobody_refers_to_goes_on() -> None:
    async def root() -> None:
        address = (await serve_tcp(echo, "127.0.0.1", 0)).addresses[0]
        for _ in range(3):
            async with await open_connection(*address) as stream:
                await stream.write(b"x")
                assert await stream.read(1) == b"x"

    flowno.run(root())


def test_a_server_outlives_the_time_limit_that_it_was_started_under() -> None:
    async def root() -> None:
        with move_on_after(0.01):
            server = await serve_tcp(echo, "127.0.0.1", 0)
            await sleep(FOREVER)
        async with server:
            assert await ask(server) == b"ping"

    flowno.run(root())


# ------------------------------------------------------------------------------------------------------------- handlers


def test_a_stream_is_closed_when_its_handler_returns() -> None:
    async def handler(stream: Stream) -> None:
        kept.append(stream)
        await stream.write(b"goodbye")

    async def root() -> None:
        async with await serve_tcp(handler, "127.0.0.1", 0) as server:
            async with await open_connection(*server.addresses[0]) as stream:
                assert await stream.read() == b"goodbye"
            await until(lambda: server.connections == 0)
            assert kept[0].handle.fileno() == -1

    kept: list[Stream] = []
    flowno.run(root())


async def _join_cancelled(stream: Stream) -> None:
    task = await spawn(sleep(FOREVER))  # type: ignore[arg-type]
    task.cancel()
    await task.join()


async def _fail(stream: Stream) -> None:
    raise LookupError("no such luck")


@pytest.mark.parametrize("handler", [_fail, _join_cancelled, lambda: None])
def test_a_handler_that_fails_is_logged_with_its_peer_and_the_server_goes_on(
    handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def either(stream: Stream) -> Any:
        return handlers.pop()(stream)

    async def root() -> None:
        async with await serve_tcp(either, "127.0.0.1", 0) as server:
            bystander = await open_connection(*server.addresses[0])
            await until(lambda: server.connections == 1)
            async with await open_connection(*server.addresses[0]) as stream:
                peers.append(stream.get_extra_info("sockname"))
                assert await stream.read() == b""
            await bystander.write(b"ping")
            assert await bystander.readexactly(4) == b"ping"
            bystander.close()
            assert await ask(server) == b"ping"

    handlers: list[Any] = [echo, handler, echo]
    peers: list[Any] = []
    flowno.run(root())
    (record,) = caplog.records
    assert f"{peers[0][0]}:{peers[0][1]}" in record.getMessage()
    assert record.levelno == logging.ERROR
    assert record.exc_info


def test_a_handler_that_is_no_async_function_is_named_for_each_connection(caplog: pytest.LogCaptureFixture) -> None:
    def no_coroutine(stream: Stream) -> Any:
        return "served"

    async def root() -> None:
        async with await serve_tcp(no_coroutine, "127.0.0.1", 0) as server:
            for _ in range(2):
                async with await open_connection(*server.addresses[0]) as stream:
                    peers.append(stream.get_extra_info("sockname"))
                    assert await stream.read() == b""

    peers: list[Any] = []
    flowno.run(root())
    for record, (host, port) in zip(caplog.records, peers, strict=True):
        assert record.levelno == logging.ERROR
        assert not record.exc_info
        for part in ("no_coroutine", "'served'", "async function", f"{host}:{port}"):
            assert part in record.getMessage()


class _Handlers:
    async def method(self, stream: Stream) -> None:
        await echo(stream)

    async def __call__(self, stream: Stream) -> None:
        await echo(stream)


async def _echo_with(prefix: object, stream: Stream) -> None:
    await echo(stream)


@types.coroutine
def _generator_based(stream: Stream) -> Any:
    yield from echo(stream).__await__()


@pytest.mark.parametrize(
    "handler",
    [
        echo,
        _Handlers().method,
        _Handlers(),
        functools.partial(_echo_with, "x"),
        functools.partial(
            _Handlers(),
        ),
        lambda stream: echo(stream),
        _generator_based,
    ],
    ids=lambda handler: type(handler).__name__,
)
def test_whatever_gives_something_to_await_is_a_handler(handler: Any) -> None:
    async def root() -> None:
        async with await serve_tcp(handler, "127.0.0.1", 0) as server:
            assert await ask(server) == b"ping"

    flowno.run(root())


@pytest.mark.not_under_faults(reason="TLS says goodbye, or why it fails, only as far as the socket takes it at once")
@wine.takes_a_reset_for_an_end
@pytest.mark.parametrize("direction", ["reading", "writing"])
def test_a_connection_that_its_peer_breaks_is_one_line_of_information(
    direction: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def handler(stream: Stream) -> None:
        while direction == "writing":
            await stream.write(bytes(65536))
        await stream.read()

    async def root() -> None:
        async with await serve_tcp(handler, "127.0.0.1", 0) as server:
            with flowno.socket() as client:
                resets_at_close(client)
                await flowno.connect(client, server.addresses[0])
                peers.append(client.getsockname())
                await until(lambda: server.connections == 1)
            await until(lambda: server.connections == 0)

    peers: list[Any] = []
    flowno.run(root())
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert not record.exc_info
    assert f"{peers[0][0]}:{peers[0][1]}" in record.getMessage()


@pytest.mark.not_under_faults(reason="TLS says goodbye, or why it fails, only as far as the socket takes it at once")
@pytest.mark.parametrize("tls_below", [False, True])
def test_a_stream_that_is_cut_off_is_one_line_of_information(
    tls_below: bool,
    caplog: pytest.LogCaptureFixture,
    server_context: ssl.SSLContext,
    client_context: ssl.SSLContext,
) -> None:
    caplog.set_level(logging.INFO)

    async def handler(stream: Stream) -> None:
        if tls_below:
            await stream.start_tls(server_context, server_side=True)
        await stream.read()

    async def root() -> None:
        async with await serve_tcp(handler, "127.0.0.1", 0, tls=server_context) as server:
            stream = await open_connection(*server.addresses[0], tls=client_context, server_hostname="127.0.0.1")
            if tls_below:
                await stream.start_tls(client_context, server_hostname="127.0.0.1")
            stream.abort()
            await until(lambda: server.connections == 0)

    flowno.run(root())
    (record,) = caplog.records
    assert (record.levelno, record.exc_info) == (logging.INFO, None)
    assert "close_notify" in record.getMessage()


@pytest.mark.not_under_faults(reason="TLS says goodbye, or why it fails, only as far as the socket takes it at once")
def test_a_handshake_in_a_handler_that_the_peer_fails_is_one_line_of_information(
    caplog: pytest.LogCaptureFixture, server_context: ssl.SSLContext
) -> None:
    caplog.set_level(logging.INFO)

    async def handler(stream: Stream) -> None:
        await stream.start_tls(server_context, server_side=True)

    async def root() -> None:
        async with await serve_tcp(handler, "127.0.0.1", 0) as server:
            async with await open_connection(*server.addresses[0]) as stream:
                await stream.write(b"no handshake\r\n\r\n")
                await until(lambda: caplog.records)

    flowno.run(root())
    (record,) = caplog.records
    assert (record.levelno, record.exc_info) == (logging.INFO, None)


@pytest.mark.parametrize("error", [ConnectionRefusedError, TimeoutError, "another connection"])
def test_an_error_of_another_connection_is_the_handler_s(error: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(stream: Stream) -> None:
        if error == "another connection":
            with socket.create_server(("127.0.0.1", 0)) as refusing:
                address = refusing.getsockname()
            await open_connection(*address)
        raise error

    async def root() -> None:
        async with await serve_tcp(handler, "127.0.0.1", 0) as server:
            async with await open_connection(*server.addresses[0]) as stream:
                assert await stream.read() == b""

    flowno.run(root())
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info


def test_a_peer_that_breaks_off_disturbs_nobody() -> None:
    async def root() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0) as server:
            for _ in range(20):
                with flowno.socket() as client:
                    resets_at_close(client)
                    await flowno.connect(client, server.addresses[0])
            await until(lambda: server.connections == 0)
            assert await ask(server) == b"ping"

    flowno.run(root())


def test_what_is_no_outcome_of_a_task_ends_the_run_and_leaves_nothing() -> None:
    async def handler(stream: Stream) -> None:
        raise KeyboardInterrupt

    async def root() -> None:
        async with await serve_tcp(handler, "127.0.0.1", 0) as server, await open_connection(*server.addresses[0]):
            await sleep(FOREVER)

    with pytest.raises(KeyboardInterrupt):
        flowno.run(root())


# ------------------------------------------------------------------------------------------------------------- stopping


def test_close_stops_listening_and_connections_go_on() -> None:
    async def root() -> None:
        server = await serve_tcp(echo, "127.0.0.1", 0)
        async with await open_connection(*server.addresses[0]) as stream:
            await until(lambda: server.connections == 1)
            server.close()
            server.close()
            with pytest.raises(ConnectionRefusedError):
                await open_connection(*server.addresses[0])
            waiting = await spawn(server.wait_closed())
            await stream.write(b"ping")
            assert await stream.readexactly(4) == b"ping"
            assert not waiting.is_finished
            assert "closing, 1 connections" in repr(server)
        await waiting.join()
        assert server.connections == 0

    flowno.run(root())


def test_a_stop_lets_handlers_finish() -> None:
    async def handler(stream: Stream) -> None:
        await stream.write(b"hello\n")
        assert await stream.readline() == b"go on\n"
        await stream.write(b"goodbye\n")

    async def root() -> None:
        server = await serve_tcp(handler, "127.0.0.1", 0)
        stream = await greeted(server)
        stopping = await spawn(server.aclose(grace=60))
        await until(lambda: server.sockets[0].fileno() < 0)
        assert not stopping.is_finished
        await stream.write(b"go on\n")
        assert await stream.read() == b"goodbye\n"
        await stopping.join()
        stream.close()

    flowno.run(root())


@pytest.mark.parametrize("grace", [0, 0.03, -1])
def test_a_stop_cancels_handlers_that_have_not_finished_in_time(grace: float, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(stream: Stream) -> None:
        try:
            await until_told(stream)
        except TaskCancelled:
            await stream.write(b"sorry\n")
            await sleep(0)
            ended.append(clock())
            raise

    async def root() -> None:
        server = await serve_tcp(handler, "127.0.0.1", 0)
        streams = [await greeted(server) for _ in range(3)]
        began = clock()
        await server.aclose(grace)
        assert len(ended) == 3  # they have run to their end
        assert all(end - began >= grace for end in ended)
        assert server.connections == 0
        for stream in streams:
            assert await stream.read() == b"sorry\n"
            stream.close()
        await server.aclose()

    ended: list[float] = []
    with EventLoop() as loop:
        clock = loop.world.clock
        loop.run_until_complete(root(), join=True)
    assert caplog.records == []


def test_a_handler_that_swallows_its_cancellation_is_cancelled_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "REMINDER", 0.01)

    async def handler(stream: Stream) -> None:
        nonlocal swallowed
        while swallowed < 3:
            try:
                await until_told(stream)
            except TaskCancelled:
                swallowed += 1
        await until_told(stream)

    async def root() -> None:
        server = await serve_tcp(handler, "127.0.0.1", 0)
        stream = await greeted(server)
        await server.aclose(grace=0)
        assert server.connections == 0
        stream.close()

    swallowed = 0
    flowno.run(root())
    assert swallowed == 3
    assert caplog.records == []


def test_a_clean_up_that_waits_is_not_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "REMINDER", 0.01)

    async def handler(stream: Stream) -> None:
        try:
            await until_told(stream)
        finally:
            for _ in range(4):
                await sleep(0.01)
            await stream.write(b"sorry\n")

    async def root() -> None:
        server = await serve_tcp(handler, "127.0.0.1", 0)
        stream = await greeted(server)
        await server.aclose(grace=0)
        assert await stream.read() == b"sorry\n"
        stream.close()

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it counts turns of the loop, or what is done in one of them")
def test_a_time_limit_that_the_handler_is_leaving_does_not_keep_a_stop_from_cancelling_it() -> None:
    async def handler(stream: Stream) -> None:
        with move_on_after(0):
            try:
                await until_told(stream)
            finally:
                cleaning_up.set()
                await sleep(0)  # this wait is the time limit's
        await sleep(FOREVER)

    async def root() -> None:
        server = await serve_tcp(handler, "127.0.0.1", 0)
        stream = await greeted(server)
        await cleaning_up.wait()
        await server.aclose(grace=0)
        stream.close()

    cleaning_up = flowno.Event()
    flowno.run(root())


def test_handlers_that_do_not_end_are_named_in_the_log_once_and_waited_for(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "REMINDER", 0.001)

    async def stubborn(stream: Stream) -> None:
        while not told.is_set():
            try:
                await until_told(stream)
            except TaskCancelled:
                cancelled.append(stream)

    async def thorough(stream: Stream) -> None:
        try:
            await until_told(stream)
        finally:
            await told.wait()

    async def either(stream: Stream) -> None:
        await handlers.pop()(stream)

    async def root() -> None:
        server = await serve_tcp(either, "127.0.0.1", 0)
        streams = [await greeted(server) for _ in range(3)]
        stopping = await spawn(server.aclose(grace=0))
        await until(lambda: caplog.records)
        for _ in range(20):
            await sleep(0.001)
        assert not stopping.is_finished
        assert len(cancelled) == 1 + servers.REMINDERS
        for stream in streams[:2]:
            assert address_of(stream) in caplog.text
        assert address_of(streams[2]) not in caplog.text
        told.set()
        await server.aclose(grace=0)  # as often as it is asked for, it cancels
        await stopping.join()
        for stream in streams:
            stream.close()

    def address_of(stream: Stream) -> str:
        host, port = stream.get_extra_info("sockname")
        return f"{host}:{port}"

    handlers: list[Any] = [until_told, thorough, stubborn]
    cancelled: list[Stream] = []
    told = flowno.Event()
    flowno.run(root())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "waits for 2 handlers" in record.getMessage()


def test_of_very_many_handlers_that_do_not_end_a_few_are_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "REMINDER", 0.001)

    async def thorough(stream: Stream) -> None:
        try:
            await until_told(stream)
        finally:
            await told.wait()

    async def root() -> None:
        server = await serve_tcp(thorough, "127.0.0.1", 0)
        streams = [await greeted(server) for _ in range(30)]
        stopping = await spawn(server.aclose(grace=0))
        await until(lambda: caplog.records)
        told.set()
        await stopping.join()
        for stream in streams:
            stream.close()

    told = flowno.Event()
    flowno.run(root())
    (record,) = caplog.records
    assert "waits for 30 handlers" in record.getMessage()
    assert record.getMessage().endswith(", others")
    assert 10 < len(re.findall(r"127\.0\.0\.1:\d+", record.getMessage())) < 30


def test_a_stop_waits_for_ever_where_it_is_told_to() -> None:
    async def root() -> None:
        server = await serve_tcp(echo, "127.0.0.1", 0)
        stream = await open_connection(*server.addresses[0])
        await until(lambda: server.connections == 1)
        stopping = await spawn(server.aclose(grace=FOREVER))
        await sleep(0.02)
        assert not stopping.is_finished
        await stream.aclose()
        await stopping.join()

    flowno.run(root())


def test_a_stop_that_is_cancelled_cancels_the_handlers_at_once() -> None:
    async def root() -> None:
        server = await serve_tcp(until_told, "127.0.0.1", 0)
        stream = await greeted(server)
        stopping = await spawn(server.aclose(grace=60))
        assert await stopping.cancel() is None
        await server.wait_closed()
        assert await stream.read() == b""
        stream.close()

    flowno.run(root())


def test_two_stops_at_once_keep_the_shorter_time() -> None:
    async def root() -> None:
        server = await serve_tcp(until_told, "127.0.0.1", 0)
        stream = await greeted(server)
        patient = await spawn(server.aclose(grace=60))
        await server.aclose(grace=0)
        await patient.join()
        stream.close()

    flowno.run(root())


def test_a_handler_can_stop_its_server_and_finish() -> None:
    async def handler(stream: Stream) -> None:
        await server.aclose(grace=60)
        await stream.write(b"stopped")

    async def root() -> None:
        nonlocal server
        server = await serve_tcp(handler, "127.0.0.1", 0)
        async with await open_connection(*server.addresses[0]) as stream:
            assert await stream.read() == b"stopped"
        await server.wait_closed()

    server: Any = None
    flowno.run(root())


def test_a_stop_while_the_server_is_full_ends_it() -> None:
    async def root() -> None:
        async with await serve_tcp(until_told, "127.0.0.1", 0, max_connections=1) as server:
            stream = await greeted(server)
            with flowno.socket() as waiting:
                waiting.connect(server.addresses[0])
                await sleep(0.01)
                await server.aclose(grace=0)
            stream.close()

    flowno.run(root())


def test_a_stop_while_the_server_pauses_ends_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "PAUSE", FOREVER)

    async def root() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0) as server:
            Troubled.script = [errno.EMFILE]
            with flowno.socket() as waiting:
                waiting.connect(server.addresses[0])
                await until(lambda: not Troubled.script)
                server.close()
                await server.wait_closed()

    run_with_sockets(Troubled, root())


def test_serving_for_ever_ends_when_the_server_is_stopped() -> None:
    async def root() -> None:
        server = await serve_tcp(echo, "127.0.0.1", 0)
        serving = await spawn(server.serve_forever())
        assert await ask(server) == b"ping"
        await server.aclose()
        await serving.join()

    flowno.run(root())


def test_serving_for_ever_stops_the_server_when_it_is_cancelled() -> None:
    async def root() -> None:
        server = await serve_tcp(echo, "127.0.0.1", 0)
        serving = await spawn(server.serve_forever())
        await sleep(0)
        assert await serving.cancel() is None
        assert server.sockets[0].fileno() == -1

    flowno.run(root())


def test_the_end_of_the_program_ends_the_server_and_its_connections() -> None:
    async def root() -> Stream:
        server = await serve_tcp(until_told, ["127.0.0.1", "127.0.0.2"], 0)
        return await greeted(server)

    flowno.run(root()).close()


@pytest.mark.parametrize("turns", range(8))
def test_a_program_that_is_cancelled_anywhere_and_while_it_stops_leaves_nothing_open(turns: int) -> None:
    async def program() -> None:
        async with await serve_tcp(until_told, "127.0.0.1", 0) as server:
            with ExitStack() as stack:
                stack.callback((await greeted(server)).close)
                await sleep(FOREVER)

    async def root() -> None:
        running = await spawn(program())
        for _ in range(turns):
            await sleep(0)
        while not running.is_cancelled:
            running.cancel()
            for _ in range(turns):
                await sleep(0)
            await sleep(0)

    flowno.run(root())


# ------------------------------------------------------------------------------------------------------------------ TLS


def test_a_tls_server_echoes_and_says_goodbye(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    async def handler(stream: Stream) -> None:
        await stream.write(await stream.readline())

    async def root() -> None:
        async with await serve_tcp(handler, "127.0.0.1", 0, tls=server_context) as server:
            async with await open_connection(*server.addresses[0], tls=client_context) as stream:
                await stream.write(b"hello\n")
                assert await stream.read() == b"hello\n"  # without a close_notify this would be an error

    flowno.run(root())


def test_the_end_of_a_tls_connection_waits_for_the_peer_s(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def handler(stream: Stream) -> None:
        await stream.write(b"goodbye")

    async def root() -> None:
        async with await serve_tcp(handler, "127.0.0.1", 0, tls=server_context) as server:
            async with await open_connection(*server.addresses[0], tls=client_context) as stream:
                assert await stream.read() == b"goodbye"
                await sleep(0.01)
                assert server.connections == 1
            await until(lambda: server.connections == 0)

    flowno.run(root())


def test_the_peer_of_a_handler_that_fails_sees_that_the_stream_was_cut_off(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(stream: Stream) -> None:
        kept.append(stream.handle)
        raise LookupError

    async def root() -> None:
        async with await serve_tcp(handler, "127.0.0.1", 0, tls=server_context) as server:
            async with await open_connection(*server.addresses[0], tls=client_context) as stream:
                with pytest.raises(TruncatedStreamError):
                    await stream.read()
            assert kept[0].fileno() == -1

    kept: list[SocketHandle] = []
    flowno.run(root())
    assert len(caplog.records) == 1


def test_a_peer_that_does_not_end_its_side_of_tls_keeps_its_place_for_a_short_time_only(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowno.net.servers.CLOSING_TIME", 0.01)

    async def handler(stream: Stream) -> None:
        await stream.write(b"all there is")

    async def root() -> None:
        async with await serve_tcp(handler, "127.0.0.1", 0, tls=server_context, max_connections=1) as server:
            lazy = await open_connection(*server.addresses[0], tls=client_context)
            async with await open_connection(*server.addresses[0], tls=client_context) as stream:
                assert await stream.read() == b"all there is"
            assert await lazy.read() == b"all there is"
            lazy.close()

    flowno.run(root())


def test_a_stalled_handshake_holds_up_nobody_and_has_a_time_limit(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def root() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0, tls=server_context, handshake_timeout=0.3) as server:
            async with await open_connection(*server.addresses[0]) as silent:
                await until(lambda: server.connections == 1)
                assert await ask(server, tls=client_context) == b"ping"
                assert await silent.read() == b""
                peers.append(silent.get_extra_info("sockname"))

    peers: list[Any] = []
    flowno.run(root())
    (record,) = [record for record in caplog.records if "handshake" in record.getMessage()]
    assert record.levelno == logging.INFO
    assert f"127.0.0.1:{peers[0][1]}" in record.getMessage()


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"", b"\x16\x03\x01\xff\xff" + bytes(100)])
def test_a_peer_that_does_not_speak_tls_ends_its_own_connection_only(
    said: bytes, server_context: ssl.SSLContext, client_context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    async def root() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0, tls=server_context) as server:
            async with await open_connection(*server.addresses[0]) as plain:
                await plain.write(said)
                await plain.write_eof()
                try:
                    await plain.read()
                except ConnectionError:
                    pass
            assert await ask(server, tls=client_context) == b"ping"

    flowno.run(root())
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_handshakes_that_fail_are_told_to_a_hook_instead_of_the_log(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def root() -> None:
        async with await serve_tcp(
            echo,
            "127.0.0.1",
            0,
            tls=server_context,
            handshake_timeout=0.1,
            on_handshake_error=lambda address, error: failures.append((address, error)),
        ) as server:
            for said in (b"", b"GET / HTTP/1.1\r\n\r\n"):
                peers.append(await say_in_the_clear(server, said))
            assert await ask(server, tls=client_context) == b"ping"

    failures: list[tuple[Any, OSError]] = []
    peers: list[Any] = []
    flowno.run(root())
    assert [address for address, _ in failures] == peers
    assert [type(error) for _, error in failures] == [TimeoutError, ssl.SSLError]
    assert caplog.records == []


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_a_hook_that_fails_is_logged_and_the_server_goes_on(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    def hook(address: Any, error: OSError) -> None:
        raise LookupError

    async def root() -> None:
        async with await serve_tcp(
            echo, "127.0.0.1", 0, tls=server_context, on_handshake_error=hook, max_connections=1
        ) as server:
            peers.append(await say_in_the_clear(server, b"GET / HTTP/1.1\r\n\r\n"))
            assert await ask(server, tls=client_context) == b"ping"

    peers: list[Any] = []
    flowno.run(root())
    (record,) = caplog.records
    assert record.exc_info
    assert record.exc_info[0] is LookupError
    assert f"127.0.0.1:{peers[0][1]}" in record.getMessage()


@pytest.mark.parametrize("demanded", [True, False])
@unix_sockets
def test_every_kind_of_server_can_take_an_end_without_a_close_notify_for_the_end(
    demanded: bool, server_context: ssl.SSLContext, client_context: ssl.SSLContext, tmp_path: Path
) -> None:
    async def handler(stream: Stream) -> None:
        try:
            received.append(await stream.read())
        except TruncatedStreamError:
            received.append(b"cut off")

    async def root() -> None:
        options: Any = {"tls": server_context, "require_close_notify": demanded}
        listener = flowno.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        for server in (
            await serve_tcp(handler, "127.0.0.1", 0, **options),
            await serve_sockets(handler, [listener], **options),
            await serve_unix(handler, tmp_path / "socket", **options),
        ):
            async with server:
                (address,) = server.addresses
                stream = await (
                    open_unix_connection(address, tls=client_context, server_hostname="127.0.0.1")
                    if isinstance(address, str)
                    else open_connection(*address, tls=client_context)
                )
                await stream.write(b"all")
                stream.get_extra_info("socket").shutdown(socket.SHUT_WR)
                assert await stream.read() == b""
                stream.close()

    received: list[bytes] = []
    flowno.run(root())
    assert received == [b"cut off" if demanded else b"all"] * 3


def test_a_server_that_is_stopped_during_a_handshake_closes_it(server_context: ssl.SSLContext) -> None:
    async def root() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0, tls=server_context) as server:
            async with await open_connection(*server.addresses[0]) as silent:
                await until(lambda: server.connections == 1)
                await server.aclose(grace=0)
                assert await silent.read() == b""

    flowno.run(root())


def test_tls_settings_for_clients_are_refused(client_context: ssl.SSLContext) -> None:
    with pytest.raises(ssl.SSLError):
        flowno.run(serve_tcp(echo, "127.0.0.1", 0, tls=client_context))


# ----------------------------------------------------------------------------------------------------------------- Unix


async def ask_at(path: Any) -> bytes:
    async with await open_unix_connection(path) as stream:
        await stream.write(b"ping")
        return await stream.readexactly(4)


@unix_sockets
@pytest.mark.parametrize("form", [str, Path, os.fsencode])
def test_serves_at_a_path_and_removes_it_at_the_end(tmp_path: Path, form: Callable[[Any], Any]) -> None:
    path = tmp_path / "socket"

    async def root() -> None:
        async with await serve_unix(echo, form(path)) as server:
            assert [os.fsdecode(address) for address in server.addresses] == [str(path)]
            assert await ask_at(path) == b"ping"
        assert not path.exists()

    flowno.run(root())


@unix_sockets
@linux
def test_serves_an_abstract_name() -> None:
    name = f"\0flowno-test-{os.getpid()}"

    async def root() -> None:
        async with await serve_unix(echo, name) as server:
            assert await ask_at(name) == b"ping"
            assert "@flowno-test" in repr(server)
            with pytest.raises(OSError, match="flowno-test") as caught:
                await serve_unix(echo, name)
            assert caught.value.errno == errno.EADDRINUSE
        with pytest.raises(ValueError, match="mode"):
            await serve_unix(echo, name, mode=0o600)

    flowno.run(root())


@unix_sockets
@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_the_mode_is_set(tmp_path: Path, mode: int) -> None:
    async def root() -> None:
        async with await serve_unix(echo, tmp_path / "socket", mode=mode):
            assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) == mode

    flowno.run(root())


@unix_sockets
def test_a_socket_that_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))

    async def root() -> None:
        async with await serve_unix(echo, path):
            assert await ask_at(path) == b"ping"

    flowno.run(root())


@unix_sockets
@pytest.mark.parametrize("backlog", [0, 5])
def test_a_socket_that_somebody_listens_on_is_left_alone(tmp_path: Path, backlog: int) -> None:
    path = tmp_path / "socket"

    async def root() -> None:
        with socket.socket(socket.AF_UNIX) as alive, ExitStack() as stack:
            alive.bind(str(path))
            alive.listen(backlog)
            for _ in range(1 + backlog):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(path))
            with pytest.raises(OSError, match=rf"another server listens there.*{path}") as caught:
                await serve_unix(echo, path)
            assert caught.value.errno == errno.EADDRINUSE
            assert path.is_socket()

    flowno.run(root())


@unix_sockets
@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_what_is_no_socket_is_left_alone(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "something"
    make(path)
    with pytest.raises(OSError, match=str(path)) as caught:
        flowno.run(serve_unix(echo, path))
    assert caught.value.errno == errno.EADDRINUSE
    assert path.exists()


@unix_sockets
def test_a_socket_of_another_server_at_the_same_place_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "socket"

    async def root() -> None:
        old = await serve_unix(echo, path)
        path.unlink()
        async with await serve_unix(echo, path):
            await old.aclose()
            assert await ask_at(path) == b"ping"
        assert not path.exists()

    flowno.run(root())


@unix_sockets
def test_the_file_is_removed_also_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def root() -> None:
        monkeypatch.chdir(tmp_path)
        async with await serve_unix(echo, "socket"):
            monkeypatch.chdir("/")
        assert list(tmp_path.iterdir()) == []

    flowno.run(root())


@unix_sockets
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_remove_the_file(tmp_path: Path) -> None:
    path = tmp_path / "socket"

    async def root() -> None:
        async with await serve_unix(echo, path) as server:
            child = os.fork()
            if not child:
                assert server._file is not None
                server._file.remove()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            assert await ask_at(path) == b"ping"

    flowno.run(root())


@unix_sockets
def test_a_path_that_is_too_long_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 200)
    with world() as (loop, scripted):
        with pytest.raises(OSError, match=f"too long.*{path}") as caught:
            loop.run_until_complete(serve_unix(echo, path), join=True)
        assert caught.value.errno == errno.ENAMETOOLONG
        assert scripted.open_sockets == []


@unix_sockets
def test_the_handler_of_a_local_client_that_fails_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def root() -> None:
        async with await serve_unix(_fail, tmp_path / "socket"):
            async with await open_unix_connection(tmp_path / "socket") as stream:
                assert await stream.read() == b""

    flowno.run(root())
    assert "a local client" in caplog.records[0].getMessage()


@unix_sockets
@pytest.mark.parametrize("path", ["", "a\0b"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        flowno.run(serve_unix(echo, path))


def test_a_system_without_unix_sockets_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def root(attempt: Any) -> None:
        with monkeypatch.context() as patch:
            patch.delattr(socket, "AF_UNIX", raising=False)
            with pytest.raises(OSError, match="use TCP") as caught:
                await attempt
        assert caught.value.errno == errno.EAFNOSUPPORT

    flowno.run(root(serve_unix(echo, "socket")))
    flowno.run(root(open_unix_connection("socket")))


# ----------------------------------------------------------------------------------------------- sockets that are given


def test_serves_on_sockets_that_listen_already() -> None:
    async def root() -> None:
        sockets = [SocketHandle(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        async with await serve_sockets(echo, sockets) as server:
            for address in server.addresses:
                async with await open_connection(*address) as stream:
                    await stream.write(b"x")
                    assert await stream.read(1) == b"x"
        assert [handle.fileno() for handle in sockets] == [-1, -1]

    flowno.run(root())


@pytest.mark.parametrize("sockets", [7, [7], [socket.socket]])
def test_what_is_no_handle_is_refused(sockets: Any) -> None:
    with pytest.raises(TypeError, match="sockets must be handles"):
        flowno.run(serve_sockets(echo, sockets))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((socket.AF_INET, socket.SOCK_STREAM), "does not listen"),
        ((socket.AF_INET, socket.SOCK_DGRAM), "no stream socket"),
        ((), "sockets is empty"),
    ],
)
def test_sockets_that_cannot_accept_are_refused_and_left_open(arguments: Any, message: str) -> None:
    async def root() -> None:
        with flowno.socket(*arguments) as handle:
            with pytest.raises(ValueError, match=message):
                await serve_sockets(echo, [handle] if arguments else [])
            assert handle.fileno() >= 0

    flowno.run(root())


# ---------------------------------------------------------------------------------------------------- socket activation

activation = pytest.mark.skipif(sys.platform == "win32", reason="systemd passes descriptors, which Windows has not")

# What systemd does: it puts the descriptors at 3 and what follows, and says so to the process that they are for.
ACTIVATED = """
import fcntl, os, socket, sys
listeners = [{listeners}]
above = [fcntl.fcntl(one, fcntl.F_DUPFD, 50) for one in listeners]
for position, fd in enumerate(above):
    os.dup2(fd, 3 + position, inheritable=True)
os.environ["LISTEN_PID"] = str(os.getpid() + {other_process})
os.environ["LISTEN_FDS"] = {count!r} or str(len(listeners))
if {names!r}:
    os.environ["LISTEN_FDNAMES"] = {names!r}
import flowno
from flowno.net.activation import activated_sockets
from flowno.net.connections import open_connection
from flowno.net.servers import serve_activated
async def shout(stream):
    async for line in stream:
        await stream.write(line.upper())
async def main():
{main}
try:
    flowno.run(main())
except Exception as error:
    print(type(error).__name__, error)
print([name for name in os.environ if name.startswith("LISTEN_")])
sys.stdout.flush()
os._exit(0)  # the descriptors have two owners each, of which only one closes them
"""


def activate(
    run_python: RunPython,
    main: str,
    listeners: str = "socket.create_server(('127.0.0.1', 0))",
    names: str = "",
    count: str = "",
    other_process: int = 0,
) -> list[str]:
    program = ACTIVATED.format(listeners=listeners, names=names, count=count, other_process=other_process, main=main)
    result = run_python(program)
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines.pop() == "[]", "the variables are removed"
    return lines


SERVE = """
    async with await serve_activated(shout) as server:
        for address in server.addresses:
            async with await open_connection(*address[:2]) as stream:
                await stream.write(b"hello\\n")
                print(await stream.readline())
"""
TAKE = """
    for name, handles in activated_sockets().items():
        print(name, [handle.socket.type.name for handle in handles], [os.get_inheritable(h.fileno()) for h in handles])
        for handle in handles:
            handle.close()
    print(activated_sockets())
"""


@activation
def test_serves_on_the_sockets_that_systemd_passed(run_python: RunPython) -> None:
    one = "socket.create_server(('127.0.0.1', 0))"
    assert activate(run_python, SERVE, f"{one}, {one}") == ["b'HELLO\\n'"] * 2


@activation
def test_passed_sockets_have_names_and_are_not_passed_on(run_python: RunPython) -> None:
    listeners = "socket.create_server(('127.0.0.1', 0)), socket.socket(type=socket.SOCK_DGRAM), socket.socket()"
    assert activate(run_python, TAKE, listeners, names="http:dns:http") == [
        "http ['SOCK_STREAM', 'SOCK_STREAM'] [False, False]",
        "dns ['SOCK_DGRAM'] [False]",
        "{}",
    ]
    assert activate(run_python, TAKE)[0] == "unknown ['SOCK_STREAM'] [False]"


@activation
@pytest.mark.parametrize(
    ("listeners", "message"),
    [
        ("os.open(os.devnull, os.O_RDWR)", r"descriptor 3 \(web\).* is no socket but a device"),
        ("os.pipe()[0]", r"is no socket but a FIFO"),
        ("os.open('/', os.O_RDONLY)", r"is no socket but a folder"),
        ("os.open(os.__file__, os.O_RDONLY)", r"is no socket but a file"),
    ],
)
def test_what_is_no_socket_is_refused_by_its_number_and_name(
    run_python: RunPython, listeners: str, message: str
) -> None:
    (line,) = activate(run_python, SERVE, listeners, names="web")
    assert re.search(message, line)
    assert "OSError [Errno 88]" in line or sys.platform != "linux"


@activation
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"listeners": "socket.socket()"}, "does not listen"),
        ({"listeners": "socket.socket(type=socket.SOCK_DGRAM)"}, "no stream socket"),
        ({"count": "40"}, "which LISTEN_FDS counts, is no"),
        ({"count": "many"}, "LISTEN_FDS=many is no number"),
        ({"count": "99999999999"}, "[Errno 22] LISTEN_FDS=99999999999 is more than there can be"),
        pytest.param({"count": "9" * 5000}, "is more than there can be", id="5000 digits"),
        ({"count": "2000000000"}, "which LISTEN_FDS counts, is no"),
        ({"names": "one:two"}, "has 2 names for LISTEN_FDS=1"),
        ({"other_process": 1}, "no socket was passed to this process"),
        ({"count": "0"}, "no socket was passed to this process"),
    ],
    ids=str,
)
def test_what_cannot_be_served_says_why(run_python: RunPython, given: Any, message: str) -> None:
    (line,) = activate(run_python, SERVE, **given)
    assert message in line


def test_a_process_that_nothing_was_passed_to_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        monkeypatch.delenv(name, raising=False)
    assert activated_sockets() == {}
    with pytest.raises(OSError, match="systemd-socket-activate"):
        flowno.run(serve_activated(echo))
