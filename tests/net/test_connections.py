"""Connections to a host: which of its addresses is taken, what becomes of the others, what is said where all fail."""

import errno
import os
import re
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import flowno
from flowno import EventLoop, SocketHandle, TruncatedStreamError, sleep, spawn
from flowno.core.event_loop.connecting import system_error
from flowno.net import connections
from flowno.net.connections import open_connection, open_unix_connection
from flowno.net.servers import serve_tcp, serve_unix
from flowno.net.streams import Stream
from tests.support.loopback import full_backlog, listening
from tests.support.worlds import ScriptedWorld, answer, in_world

pytestmark = pytest.mark.usefixtures("backend")

unix_sockets = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this Python has no Unix sockets")


@contextmanager
def refusing() -> Iterator[tuple[str, int]]:
    """An address of this machine that nobody listens on, and nobody else gets."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()


@contextmanager
def named(*addresses: tuple[str, int]) -> Iterator[tuple[EventLoop, ScriptedWorld]]:
    """A loop in a world in which the name ``host`` has these addresses."""
    world = ScriptedWorld()
    world.names["host"] = answer(*addresses)
    with in_world(world) as loop:
        yield loop, world


def run_in(loop: EventLoop, coroutine: Any) -> Any:
    return loop.run_until_complete(coroutine, join=True)


async def exchange(stream: Stream, listener: SocketHandle) -> None:
    """See that the stream is connected to the listener."""
    connection, address = await listener.accept()
    with connection:
        assert stream.get_extra_info("sockname") == address
        await stream.write(b"ping")
        assert await connection.recv(9) == b"ping"


# ------------------------------------------------------------------------------------------------------ one address


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_connects_to_a_number_without_a_resolver_or_a_task() -> None:
    async def root() -> None:
        with listening() as listener:
            stream = await open_connection("127.0.0.1", listener.getsockname()[1])
            assert len(flowno.current_event_loop().tasks) == 1  # type: ignore[union-attr]
            await exchange(stream, listener)
            await stream.aclose()

    with named() as (loop, world):
        run_in(loop, root())
    assert world.asked == []


def test_a_connection_sends_small_pieces_at_once_and_has_the_limit_that_was_asked_for() -> None:
    async def root() -> None:
        with listening() as listener:
            async with await open_connection(*listener.getsockname(), limit=17) as stream:
                assert stream.limit == 17
                assert stream.handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    flowno.run(root())


def test_the_error_of_a_single_address_is_the_system_s_with_the_address() -> None:
    async def root() -> None:
        with refusing() as address, pytest.raises(ConnectionRefusedError, match=re.escape(str(address))):
            await open_connection(*address)

    flowno.run(root())


def test_a_name_that_does_not_resolve_is_a_clear_error() -> None:
    async def root() -> None:
        with pytest.raises(socket.gaierror, match=re.escape("('nowhere', 80)")):
            await open_connection("nowhere", 80)

    with named() as (loop, _):
        run_in(loop, root())


def test_a_name_without_any_address_is_a_clear_error() -> None:
    async def root() -> None:
        with pytest.raises(OSError, match=r"no address.*'host', 80"):
            await open_connection("host", 80)

    with named() as (loop, _):
        run_in(loop, root())


@pytest.mark.parametrize("turns", range(4))
def test_a_cancelled_connection_leaves_nothing_open(turns: int) -> None:
    async def root() -> None:
        with full_backlog() as address:
            connecting = await spawn(open_connection(*address))
            for _ in range(turns):
                await sleep(0)
            assert await connecting.cancel() is None

    with named() as (loop, world):
        run_in(loop, root())
        assert world.sockets
        assert world.open_sockets == []


# -------------------------------------------------------------------------------------------------- happy eyeballs


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_a_failure_starts_the_next_attempt_at_once() -> None:
    async def root(address: Any) -> None:
        started = clock()
        async with await open_connection("host", 80, happy_eyeballs_delay=60) as stream:
            assert stream.get_extra_info("peername") == address
            await exchange(stream, listener)
        assert clock() - started < 30

    with refusing() as bad, listening() as listener:
        address = listener.getsockname()
        with named(bad, bad, address) as (loop, _):
            clock = loop.world.clock
            run_in(loop, root(address))


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_an_attempt_that_takes_long_is_overtaken_after_the_delay_and_closed() -> None:
    async def root() -> None:
        async with await open_connection("host", 80, happy_eyeballs_delay=0.05) as stream:
            assert stream.get_extra_info("peername") == listener.getsockname()
            assert len(world.sockets) == 2
            assert world.open_sockets == [stream.get_extra_info("socket")]
            assert len(loop.tasks) == 1
            await exchange(stream, listener)

    with full_backlog() as slow, listening() as listener, named(slow, listener.getsockname()) as (loop, world):
        began = loop.world.clock()
        run_in(loop, root())
        assert loop.world.clock() - began >= 0.05


def test_an_attempt_is_not_overtaken_before_the_delay() -> None:
    async def root() -> None:
        connecting = await spawn(open_connection("host", 80, happy_eyeballs_delay=60))
        while not world.sockets:
            await sleep(0)
        for _ in range(20):
            await sleep(0)
        assert len(world.sockets) == 1
        await connecting.cancel()

    with full_backlog() as slow, listening() as listener, named(slow, listener.getsockname()) as (loop, world):
        run_in(loop, root())


@pytest.mark.parametrize("delay", [None, float("inf")])
def test_without_a_delay_an_address_is_tried_only_after_a_failure(delay: float | None) -> None:
    async def root() -> None:
        async with await open_connection("host", 80, happy_eyeballs_delay=delay) as stream:
            assert stream.get_extra_info("peername") == listener.getsockname()
        connecting = await spawn(open_connection("slow", 80, happy_eyeballs_delay=delay))
        before = len(world.sockets)
        while len(world.sockets) == before:
            await sleep(0)
        for _ in range(20):
            await sleep(0)
        assert len(world.sockets) == before + 1
        await connecting.cancel()

    with ExitStack() as stack:
        bad, slow, listener = map(stack.enter_context, (refusing(), full_backlog(), listening()))
        loop, world = stack.enter_context(named(bad, listener.getsockname()))
        world.names["slow"] = answer(slow, listener.getsockname())
        run_in(loop, root())


def test_the_attempts_of_a_zero_delay_keep_the_distance_of_the_rfc() -> None:
    async def root() -> None:
        async with await open_connection("host", 80, happy_eyeballs_delay=0):
            pass

    with ExitStack() as stack:
        slow, slower, listener = map(stack.enter_context, (full_backlog(), full_backlog(), listening()))
        loop, _ = stack.enter_context(named(slow, slower, listener.getsockname()))
        began = loop.world.clock()
        run_in(loop, root())
        assert loop.world.clock() - began >= 0.02


def test_the_families_take_turns_beginning_with_the_first() -> None:
    six = [(f"::{number}", 80) for number in range(2, 5)]
    four = [(f"127.0.0.{number}", 80) for number in range(2, 4)]

    async def root() -> list[str]:
        with pytest.raises(OSError) as caught:  # noqa: PT011
            await open_connection("host", 80)
        return re.findall(r"(?:\[([:\d]+)\]|([\d.]+)):80: no", str(caught.value))

    def unreachable(*args: Any) -> socket.socket:
        raise OSError(errno.ENETUNREACH, "no way")

    with named(*six, *four) as (loop, world):
        world.make = unreachable
        tried = [a or b for a, b in run_in(loop, root())]
        assert tried == ["::2", "127.0.0.2", "::3", "127.0.0.3", "::4"]
        world.names["host"] = answer(*four, *six, *four)
        tried = [a or b for a, b in run_in(loop, root())]
        assert tried == ["127.0.0.2", "::2", "127.0.0.3", "::3", "::4"]


def test_where_all_fail_each_address_is_named_with_its_error() -> None:
    async def root() -> None:
        with pytest.raises(OSError, match=r"cannot connect to 'host' port 80: ") as caught:
            await open_connection("host", 80)
        text = str(caught.value)
        assert f"{bad[0]}:{bad[1]}: {system_error(errno.ECONNREFUSED).strerror}" in text
        assert f"[::1]:80: {os.strerror(errno.EAFNOSUPPORT)}" in text
        assert type(caught.value) is OSError
        assert isinstance(caught.value.__cause__, ExceptionGroup)
        assert [error.errno for error in caught.value.__cause__.exceptions] == [  # type: ignore[attr-defined]
            errno.ECONNREFUSED,
            errno.EAFNOSUPPORT,
        ]

    with refusing() as bad, named(bad, ("::1", 80)) as (loop, world):
        world.make = world.without_ipv6
        run_in(loop, root())
        assert world.open_sockets == []


def test_where_all_fail_in_the_same_way_it_is_that_error() -> None:
    async def root() -> None:
        with pytest.raises(ConnectionRefusedError, match="cannot connect") as caught:
            await open_connection("host", 80)
        assert caught.value.errno == errno.ECONNREFUSED

    with refusing() as one, refusing() as other, named(one, other) as (loop, _):
        run_in(loop, root())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_a_family_that_the_machine_does_not_have_is_passed_over() -> None:
    async def root() -> None:
        async with await open_connection("host", 80, happy_eyeballs_delay=None) as stream:
            await exchange(stream, listener)

    with listening() as listener, named(("::1", 80), listener.getsockname()) as (loop, world):
        world.make = world.without_ipv6
        run_in(loop, root())


def test_an_address_that_is_named_twice_is_tried_once() -> None:
    async def root() -> None:
        with pytest.raises(ConnectionRefusedError):
            await open_connection("host", 80)

    with refusing() as bad, named(bad, bad) as (loop, world):
        run_in(loop, root())
        assert len(world.sockets) == 1


def test_two_that_connect_in_the_same_turn_leave_one() -> None:
    held: list[tuple[socket.socket, Any]] = []

    class Held(socket.socket):
        """Connects when there are two of them."""

        def connect_ex(self, address: Any) -> int:
            held.append((self, address))
            if len(held) == 2:
                for each, peer in held:
                    socket.socket.connect_ex(each, peer)
            return errno.EINPROGRESS

    async def root() -> None:
        async with await open_connection("host", 80) as stream:
            assert len(held) == 2
            assert world.open_sockets == [stream.get_extra_info("socket")]
            assert len(loop.tasks) == 1

    with listening() as one, listening() as other, named(one.getsockname(), other.getsockname()) as (loop, world):
        world.make = Held
        run_in(loop, root())


def _has_peer(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("turns", range(12))
def test_a_race_that_is_cancelled_anywhere_leaves_nothing_open(turns: int) -> None:
    async def root() -> None:
        before = set(loop.tasks)
        connecting = await spawn(open_connection("host", 80, happy_eyeballs_delay=0.01))
        for turn in range(turns):
            await sleep(0.004 if turn % 3 == 2 else 0)
        stream = await connecting.cancel()
        if stream is not None:
            stream.close()
        await sleep(0)
        assert set(loop.tasks) == before
        assert world.open_sockets == []

    with full_backlog() as slow, listening() as listener, named(slow, listener.getsockname()) as (loop, world):
        run_in(loop, root())


def test_a_race_that_is_cancelled_while_it_gives_up_the_losers_closes_the_winner() -> None:
    async def root() -> None:
        connecting = await spawn(open_connection("host", 80, happy_eyeballs_delay=0.01))
        while not any(map(_has_peer, world.sockets)):
            await sleep(0)
        stopped = 0
        while True:
            stopped += 1
            connecting.cancel()
            await sleep(0)
            if not world.open_sockets:
                break
            assert stopped < 10
        assert await connecting.cancel() is None

    with full_backlog() as slow, listening() as listener, named(slow, listener.getsockname()) as (loop, world):
        run_in(loop, root())


# --------------------------------------------------------------------------------------------------- local addresses


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_a_connection_can_be_made_from_an_address_of_this_machine() -> None:
    async def root() -> None:
        with listening() as listener:
            async with await open_connection(*listener.getsockname(), local_address=("127.0.0.1", 0)) as stream:
                await exchange(stream, listener)
                host, port = stream.get_extra_info("sockname")
                assert host == "127.0.0.1"
                assert port > 0

    flowno.run(root())


def test_a_connection_can_be_made_from_a_port(free_port: int) -> None:
    async def root() -> None:
        with listening() as listener:
            async with await open_connection(*listener.getsockname(), local_address=(None, free_port)) as stream:
                assert stream.get_extra_info("sockname") == ("127.0.0.1", free_port)

    flowno.run(root())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_a_local_address_takes_the_addresses_of_its_family_only() -> None:
    async def root() -> None:
        async with await open_connection("host", 80, local_address=("127.0.0.1", 0)) as stream:
            await exchange(stream, listener)
        with pytest.raises(OSError, match=r"another family.*127\.0\.0\.1") as caught:
            await open_connection(*listener.getsockname(), local_address=("::1", 0))
        assert caught.value.errno == errno.EAFNOSUPPORT

    with listening() as listener, named(("::1", 80), listener.getsockname()) as (loop, world):
        run_in(loop, root())
        assert {sock.family for sock in world.sockets} <= {socket.AF_INET, -1}


def test_a_local_address_that_is_not_this_machine_s_is_named() -> None:
    async def root() -> None:
        with pytest.raises(OSError, match=r"local address 192\.0\.2\.1:0") as caught:
            await open_connection("127.0.0.1", 80, local_address=("192.0.2.1", 0))
        assert caught.value.errno == errno.EADDRNOTAVAIL

    with named() as (loop, world):
        run_in(loop, root())
        assert world.open_sockets == []


# --------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"happy_eyeballs_delay": -1}, ValueError),
        ({"happy_eyeballs_delay": float("nan")}, ValueError),
        ({"happy_eyeballs_delay": "soon"}, TypeError),
        ({"limit": 0}, ValueError),
        ({"limit": "much"}, TypeError),
        ({"limit": float("nan")}, TypeError),
        ({"host": 7}, TypeError),
        ({"port": 65536}, ValueError),
        ({"port": None.__class__}, TypeError),
        ({"server_hostname": 7, "tls": True}, TypeError),
        ({"server_hostname": "example.test"}, ValueError),
        ({"tls": "yes"}, TypeError),
        ({"session": object()}, ValueError),  # without tls, as those below
        ({"session": object(), "tls": True}, ValueError),
        ({"session": object(), "tls": ssl.create_default_context()}, TypeError),
        ({"require_close_notify": False}, ValueError),
        ({"handshake_timeout": 10}, ValueError),
        ({"handshake_timeout": 0, "tls": True}, ValueError),
        ({"handshake_timeout": float("nan"), "tls": True}, ValueError),
        ({"handshake_timeout": "long", "tls": True}, TypeError),
        ({"local_address": "127.0.0.1"}, TypeError),
        ({"local_address": (7, 0)}, TypeError),
        ({"local_address": ("127.0.0.1", 0.5)}, TypeError),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else value.__name__,
)
def test_a_wrong_argument_is_refused_before_anything_is_opened(arguments: Any, error: type[Exception]) -> None:
    with named() as (loop, world):
        with pytest.raises(error, match=next(iter(arguments))):
            run_in(loop, open_connection(**{"host": "some.name.test", "port": 80} | arguments))
        assert world.sockets == []
        assert world.asked == []


# -------------------------------------------------------------------------------------------------------------- TLS


@contextmanager
def tls_peer(context: ssl.SSLContext, family: int = socket.AF_INET, address: Any = ("127.0.0.1", 0)) -> Iterator[Any]:
    """A thread that serves one connection: it sends the name that was asked for, and says goodbye."""
    names: list[str | None] = []

    def serve() -> None:
        connection, _ = listener.accept()
        connection.settimeout(10)
        try:
            with context.wrap_socket(connection, server_side=True) as tls:
                tls.sendall(f"hello {names[-1]}".encode())
                tls.unwrap().close()
        except (OSError, ssl.SSLError):
            connection.close()

    context.sni_callback = lambda _, name, __: names.append(name)
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen()
        listener.settimeout(10)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            context.sni_callback = None
            thread.join()


@pytest.mark.parametrize("host", ["localhost", "localhost.", b"localhost"])
def test_tls_verifies_the_host_that_was_asked_for(
    host: Any, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def root() -> None:
        async with await open_connection(host, port, tls=client_context) as stream:
            assert await stream.read() == b"hello localhost"

    with tls_peer(server_context) as (address, port), named() as (loop, world):
        world.names[host] = answer((address, port))
        run_in(loop, root())


def test_tls_verifies_an_address_and_another_name_where_one_is_given(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def root(address: Any, name: str | None) -> bytes:
        async with await open_connection(*address, tls=client_context, server_hostname=name) as stream:
            return await stream.read()

    with tls_peer(server_context) as address:
        assert flowno.run(root(address, None)) == b"hello None"
    with tls_peer(server_context) as address:
        assert flowno.run(root(address, "localhost")) == b"hello localhost"
    with tls_peer(server_context) as address, pytest.raises(ssl.SSLCertVerificationError):
        flowno.run(root(address, "example.test"))


def test_the_default_tls_settings_do_not_trust_anybody(server_context: ssl.SSLContext) -> None:
    async def root(address: Any) -> None:
        with pytest.raises(ssl.SSLCertVerificationError):
            await open_connection(*address, tls=True)

    with tls_peer(server_context) as address, named() as (loop, world):
        run_in(loop, root(address))
        assert world.open_sockets == []


def test_the_default_tls_settings_are_made_within_the_limit_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> ssl.SSLContext:
        borrowed.append(flowno.from_thread.run_sync(lambda: limiter().borrowed_tokens))
        return ssl.create_default_context()

    async def root() -> None:
        with listening() as listener:
            connecting = await spawn(open_connection(*listener.getsockname(), tls=True))
            (await listener.accept())[0].close()
            with pytest.raises(OSError):  # noqa: PT011
                await connecting.join()
            assert limiter().borrowed_tokens == 0

    limiter = flowno.current_default_thread_limiter
    borrowed: list[int] = []
    monkeypatch.setattr(connections, "_make_default_context", make)
    flowno.run(root())
    assert borrowed == [1]


def test_a_cancelled_handshake_leaves_nothing_open(client_context: ssl.SSLContext) -> None:
    async def root() -> None:
        with listening() as listener:
            connecting = await spawn(open_connection(*listener.getsockname(), tls=client_context))
            connection, _ = await listener.accept()
            with connection:
                assert (await connection.recv(1))[:1] == b"\x16"  # the ClientHello has come, and gets no answer
                assert await connecting.cancel() is None
                assert len(world.open_sockets) == 1  # the listener

    with named() as (loop, world):
        run_in(loop, root())


async def resumed(stream: Stream) -> tuple[bool, ssl.SSLSession | None]:
    """Whether the handshake was a short one, and the session for the next."""
    async with stream:
        assert await stream.readline() == b"hello\n"
        tls = stream.get_extra_info("ssl_object")
        assert tls is not None
        return bool(tls.session_reused), tls.session


async def greet(stream: Stream) -> None:
    await stream.write(b"hello\n")
    await stream.read()


def test_a_session_makes_the_next_handshake_shorter(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, tmp_path: Path
) -> None:
    async def root() -> None:
        async with await serve_tcp(greet, "127.0.0.1", 0, tls=server_context) as server:
            address = server.addresses[0]
            reused, session = await resumed(await open_connection(*address, tls=client_context))
            assert not reused
            reused, _ = await resumed(await open_connection(*address, tls=client_context, session=session))
            assert reused
            with pytest.raises(ValueError, match="(?i)session"):
                await open_connection(*address, tls=ssl.create_default_context(), session=session)
        if hasattr(socket, "AF_UNIX"):
            path = tmp_path / "socket"
            async with await serve_unix(greet, path, tls=server_context):
                options: Any = {"tls": client_context, "server_hostname": "localhost"}
                reused, session = await resumed(await open_unix_connection(path, **options))
                assert not reused
                assert (await resumed(await open_unix_connection(path, **options, session=session)))[0]

    flowno.run(root())


@pytest.mark.parametrize("demanded", [True, False])
def test_a_server_that_never_ends_tls_can_be_read_to_its_end(
    demanded: bool, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def cut_off(stream: Stream) -> None:
        await stream.write(b"all there is")
        stream.abort()

    async def root() -> None:
        options: Any = {"tls": client_context, "require_close_notify": demanded}
        async with (
            await serve_tcp(cut_off, "127.0.0.1", 0, tls=server_context) as server,
            await open_connection(*server.addresses[0], **options) as stream,
        ):
            assert await stream.readexactly(12) == b"all there is"
            if demanded:
                with pytest.raises(TruncatedStreamError):
                    await stream.read()
            else:
                assert await stream.read() == b""

    flowno.run(root())


def test_a_server_that_does_not_answer_the_handshake_has_a_time_limit(client_context: ssl.SSLContext) -> None:
    async def root() -> None:
        with listening() as listener:
            with pytest.raises(TimeoutError, match=r"0\.01 s"):
                await open_connection(*listener.getsockname(), tls=client_context, handshake_timeout=0.01)
            assert len(world.open_sockets) == 1  # the listener

    with named() as (loop, world):
        run_in(loop, root())


def test_tls_that_cannot_be_a_client_s_is_refused(server_context: ssl.SSLContext) -> None:
    with pytest.raises(ssl.SSLError):
        flowno.run(open_connection("127.0.0.1", 80, tls=server_context))


# ------------------------------------------------------------------------------------------------------------- Unix


@contextmanager
def unix_listener(path: Any, backlog: int = 5) -> Iterator[SocketHandle]:
    with flowno.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(backlog)
        yield listener


@unix_sockets
@pytest.mark.parametrize("form", [str, Path, os.fsencode])
def test_connects_to_a_path(tmp_path: Path, form: Callable[[Any], Any]) -> None:
    async def root() -> None:
        path = tmp_path / "socket"
        with unix_listener(str(path)) as listener:
            async with await open_unix_connection(form(path)) as stream:
                connection, _ = await listener.accept()
                with connection:
                    await connection.sendAll(b"hello\n")
                    assert await stream.readline() == b"hello\n"

    flowno.run(root())


@unix_sockets
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract names")
@pytest.mark.parametrize("form", [str, os.fsencode])
def test_connects_to_an_abstract_name(form: Callable[[Any], Any]) -> None:
    async def root() -> None:
        name = f"\0flowno-test-{os.getpid()}"
        with unix_listener(name):
            (await open_unix_connection(form(name))).close()

    flowno.run(root())


@unix_sockets
def test_a_path_that_is_too_long_says_so(tmp_path: Path) -> None:
    path = str(tmp_path / ("x" * 200))

    async def root() -> None:
        with pytest.raises(OSError, match=rf"too long.*{path}") as caught:
            await open_unix_connection(path)
        assert caught.value.errno == errno.ENAMETOOLONG

    with named() as (loop, world):
        run_in(loop, root())
        assert world.open_sockets == []


@unix_sockets
def test_a_path_where_nothing_is_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=re.escape(path)):
        flowno.run(open_unix_connection(path))


@unix_sockets
@pytest.mark.parametrize(("path", "error"), [("", ValueError), ("a\0b", ValueError), (7, TypeError)])
def test_what_is_no_path_is_refused(path: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        flowno.run(open_unix_connection(path))


@unix_sockets
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full queue refuses at once")
def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    async def root() -> None:
        with unix_listener(str(tmp_path / "socket"), backlog=0) as listener:
            first = await open_unix_connection(tmp_path / "socket")
            second = await spawn(open_unix_connection(tmp_path / "socket"))
            third = await spawn(open_unix_connection(tmp_path / "socket"))
            await sleep(0.02)
            assert not second.is_finished
            for _ in range(2):
                (await listener.accept())[0].close()
            (await second.join()).close()
            await third.cancel()
            first.close()

    flowno.run(root())


@unix_sockets
def test_tls_over_a_path_needs_a_name(
    tmp_path: Path, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    path = str(tmp_path / "socket")

    async def root() -> bytes:
        with pytest.raises(ValueError, match="say by server_hostname"):
            await open_unix_connection(path, tls=client_context)
        async with await open_unix_connection(path, tls=client_context, server_hostname="localhost") as stream:
            return await stream.read()

    with tls_peer(server_context, socket.AF_UNIX, path):
        assert flowno.run(root()) == b"hello localhost"
