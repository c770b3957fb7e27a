"""Peers that mean harm, and servers that go on: whoever else is connected is served, and memory has a bound."""

# ruff: noqa: SIM117 - a server and what is connected to it do not belong in one line

import itertools
import logging
import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

import flowno
from flowno import (
    EventLoop,
    IncompleteReadError,
    Server,
    SocketHandle,
    Stream,
    move_on_after,
    open_connection,
    open_unix_connection,
    serve_tcp,
    serve_unix,
    sleep,
    spawn,
    start_tls,
    timeout,
)
from flowno.core.event_loop import tls
from flowno.core.event_loop.selectors import TLSSocketHandle
from tests.support.loopback import pair, reset, tcp_pair
from tests.support.raw_tls import APPLICATION_DATA, RawTLSClient
from tests.support.servers import all_ended
from tests.support.tls import establish, server_context_of, tls_pair
from tests.support.virtual_time import VirtualTimeSelector

pytestmark = pytest.mark.usefixtures("backend")


@pytest.fixture
def own_context(authority: trustme.CA) -> ssl.SSLContext:
    """As ``client_context``, to be changed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


unix_sockets = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this Python has no Unix sockets")


@contextmanager
def in_virtual_time() -> Iterator[EventLoop]:
    """A loop in which hours take no time. For Unix sockets: what is sent there has arrived when the call returns."""
    with VirtualTimeSelector() as selector, EventLoop(selector) as loop:
        yield loop


async def echo(stream: Stream) -> None:
    while line := await stream.readline():
        await stream.write(line)


async def ask(server: Server, client_context: ssl.SSLContext | None = None) -> None:
    """Somebody else is served."""
    async with await connected(server, client_context) as stream:
        await stream.write(b"undisturbed\n")
        assert await stream.readline() == b"undisturbed\n"


async def connected(server: Server, client_context: ssl.SSLContext | None = None) -> Stream:
    """A connection as a client of good will has it."""
    name = None if client_context is None else "localhost"
    address = server.addresses[0]
    if isinstance(address, str):
        return await open_unix_connection(address, tls=client_context or False, server_hostname=name)
    return await open_connection(*address, tls=client_context or False, server_hostname=name)


def client_hello(context: ssl.SSLContext) -> bytes:
    """What a client of these settings sends first."""
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


@asynccontextmanager
async def connection(server: Server) -> AsyncIterator[SocketHandle]:
    """A plain connection, whatever the server speaks."""
    with flowno.socket(server.sockets[0].family) as handle:
        await flowno.connect(handle, server.addresses[0])
        yield handle


# ------------------------------------------------------------------------------------------------------- slow or silent


@unix_sockets
@pytest.mark.parametrize("pause", [10.0, 3600.0], ids=["a byte now and then", "silence"])
def test_a_time_limit_around_a_request_ends_a_peer_that_makes_it_last(pause: float, tmp_path: Path) -> None:
    """Slowloris: a limit for each read would begin anew with each byte."""
    ended: list[float] = []

    async def handler(stream: Stream) -> None:
        try:
            with timeout(30):
                await stream.readuntil(b"\r\n\r\n")
        finally:
            ended.append(flowno.current_time() - began)

    async def main() -> None:
        nonlocal began
        async with await serve_unix(handler, tmp_path / "socket") as server:
            async with connection(server) as peer:
                began = flowno.current_time()
                try:
                    for each in b"GET / HTTP/1.1\r\n" * 100:
                        await peer.sendAll(bytes([each]))
                        await sleep(pause)
                except ConnectionError:
                    pass
                assert not server.connections

    began = 0.0
    with in_virtual_time() as loop:
        loop.run_until_complete(main(), join=True)
    assert ended == [pytest.approx(30, abs=0.01)]


@unix_sockets
@pytest.mark.parametrize(("is_caught", "levels"), [(True, []), (False, ["ERROR"])])
def test_a_time_limit_is_an_error_in_the_log_unless_the_handler_catches_it(
    is_caught: bool, levels: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(stream: Stream) -> None:
        try:
            with timeout(30):
                await stream.readuntil(b"\r\n\r\n")
        except TimeoutError:
            if not is_caught:
                raise
            stream.abort()

    async def main() -> None:
        async with await serve_unix(handler, tmp_path / "socket") as server, connection(server) as silent:
            assert await silent.recv(1) == b""

    with in_virtual_time() as loop, caplog.at_level(logging.INFO, "flowno.net"):
        loop.run_until_complete(main(), join=True)
    assert [record.levelname for record in caplog.records if record.exc_info] == levels


def test_a_peer_that_was_cut_off_from_the_net_is_found_out_where_the_listener_asks_for_it() -> None:
    """Nothing comes of it any more, not even a reset; keep-alive asks, and connections have it from their listener."""
    probes: list[int] = []

    async def handler(stream: Stream) -> None:
        probes.append(stream.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    async def main() -> None:
        async with await serve_tcp(handler, "127.0.0.1", 0) as server:
            for listener in server.sockets:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            async with connection(server) as peer:
                assert await peer.recv(1) == b""

    flowno.run(main())
    assert all(probes)
    assert len(probes) == 1


@unix_sockets
@pytest.mark.parametrize("through_tls", [False, True])
def test_a_peer_that_does_not_read_holds_up_nobody_and_little_memory(
    through_tls: bool, server_context: ssl.SSLContext, client_context: ssl.SSLContext, tmp_path: Path
) -> None:
    """A write waits until the system has it: in memory is one message of the handler, and the system's buffers."""
    written = 0

    async def flood(stream: Stream) -> None:
        nonlocal written
        line = await stream.readline()
        await stream.write(line)
        if line == b"flood\n":
            with timeout(60):
                while True:
                    await stream.write(bytes(100_000))
                    written += 100_000

    async def main() -> None:
        context = client_context if through_tls else None
        async with await serve_unix(flood, tmp_path / "socket", tls=context and server_context) as server:
            peer = await connected(server, context)
            await peer.write(b"flood\n")
            await sleep(59)
            before = written
            assert before < 16 << 20
            await ask(server, context)
            assert written == before
            await sleep(2)
            assert not server.connections  # its time was over
            peer.abort()

    with in_virtual_time() as loop:
        loop.run_until_complete(main(), join=True)


def test_sends_that_are_given_up_do_not_pile_up_for_a_peer_that_does_not_read(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """What TLS has encrypted must go out first; so nothing more is encrypted before it has."""

    async def main() -> None:
        with tls_pair(server_context, client_context) as (peer, handle):
            await establish(peer, handle)
            sent = 0
            for _ in range(1000):
                with move_on_after(0.001):
                    await handle.sendAll(bytes(50_000))
                sent += handle.bytes_sent
            assert handle._outgoing.pending + len(handle._unsent) < 2 * 65_536
            await handle_reads_all(peer, sent)

    async def handle_reads_all(peer: TLSSocketHandle, sent: int) -> None:
        """What was said to be sent is."""
        while sent > 0:
            with move_on_after(1) as limit:
                sent -= len(await peer.recv(65536))
            if limit.cancelled_caught:
                break
        assert 0 <= sent <= 65_536  # the last piece waits for the next send

    with in_virtual_time() as loop:
        loop.run_until_complete(main(), join=True)


# --------------------------------------------------------------------------------------------------- resets and garbage


@pytest.mark.parametrize("through_tls", [False, True])
@pytest.mark.parametrize("how", [reset, SocketHandle.close], ids=["resets", "closes"])
def test_peers_that_break_off_at_each_point_end_their_own_connection_only(
    through_tls: bool,
    how: Callable[[SocketHandle], None],
    server_context: ssl.SSLContext,
    client_context: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The points are the bytes of what a client sends first, a ClientHello or a line."""
    first = client_hello(client_context) if through_tls else b"a line, and the beginning\nof the next one"

    async def main() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0, tls=server_context if through_tls else None) as server:
            for cut in range(0, len(first) + 1, max(1, len(first) // 20)):
                async with connection(server) as peer:
                    await peer.sendAll(first[:cut])
                    if cut % 2:
                        await sleep(0)  # whether it is accepted by then, or not
                    how(peer)
            await all_ended(server)
            await ask(server, client_context if through_tls else None)

    with caplog.at_level(logging.WARNING):
        flowno.run(main())
    assert caplog.records == []


def test_garbage_in_the_place_of_a_handshake_ends_its_own_connection_only(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes at random, a record that is longer than any may be, one of nothing, and a ClientHello with flipped bits."""
    hello = client_hello(client_context)
    rng = random.Random(7)

    def flipped() -> bytes:
        changed = bytearray(hello)
        for _ in range(3):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)

    garbage = [rng.randbytes(rng.randrange(1, 3000)) for _ in range(10)]
    garbage += [
        b"\x16\x03\x01\xff\xff" + bytes(66_000),
        b"\x16\x03\x01\x00\x00" * 100,
        b"\x80\x2e\x01\x00\x02" + bytes(50),
    ]
    garbage += [flipped() for _ in range(20)]

    async def main() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0, tls=server_context) as server:
            for each in garbage:
                async with connection(server) as peer:
                    try:
                        await peer.sendAll(each)
                        peer.shutdown(socket.SHUT_WR)
                        while await peer.recv(65536):
                            pass
                    except OSError:  # the server has reset it; shutdown() says that it is not connected
                        pass
            await all_ended(server)
            await ask(server, client_context)

    with caplog.at_level(logging.WARNING):
        flowno.run(main())
    assert caplog.records == []


@unix_sockets
@pytest.mark.parametrize("limited", [False, True])
def test_stalled_handshakes_hold_up_others_only_where_the_server_is_full(
    limited: bool, server_context: ssl.SSLContext, client_context: ssl.SSLContext, tmp_path: Path
) -> None:
    """They count among max_connections, so that they are bounded; the time limit of a handshake makes room again."""
    most = 5

    async def main() -> None:
        async with await serve_unix(
            echo,
            tmp_path / "socket",
            tls=server_context,
            max_connections=most if limited else None,
            handshake_timeout=3,
        ) as server:
            began = flowno.current_time()
            stalling = [await spawn(stall(server)) for _ in range(most)]
            while server.connections < most:
                await sleep(0)
            await ask(server, client_context)
            waited = flowno.current_time() - began
            assert (3 <= waited < 4) if limited else waited < 1
            for task in stalling:
                await task.cancel()
            await all_ended(server)

    async def stall(server: Server) -> None:
        async with connection(server) as peer:
            await peer.sendAll(b"\x16")
            while await peer.recv(100):
                pass

    with in_virtual_time() as loop:
        loop.run_until_complete(main(), join=True)


# ----------------------------------------------------------------------------------------------------- lies about sizes


def test_a_length_that_is_a_lie_takes_no_more_memory_than_what_comes() -> None:
    async def main() -> None:
        with pair() as (one, other):
            async with Stream(one) as stream:
                await other.sendAll(b"a little")
                other.close()
                with pytest.raises(IncompleteReadError) as caught:
                    await stream.readexactly(1 << 50)
                assert caught.value.partial == b"a little"

    flowno.run(main())


@pytest.mark.parametrize("through_tls", [False, True])
def test_a_line_without_an_end_is_refused_at_the_limit(
    through_tls: bool, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    errors: list[str] = []

    async def handler(stream: Stream) -> None:
        try:
            await stream.readline()
        except ValueError as error:
            errors.append(str(error))
        stream.abort()

    async def flood(peer: Stream) -> None:
        while True:
            await peer.write(bytes(65536))

    async def main() -> None:
        context = client_context if through_tls else None
        async with await serve_tcp(handler, "127.0.0.1", 0, limit=1000, tls=context and server_context) as server:
            peer = await connected(server, context)
            with pytest.raises((ConnectionError, ssl.SSLError)):
                await flood(peer)
            peer.abort()

    flowno.run(main())
    assert len(errors) == 1
    assert errors[0].endswith("and the limit is 1000")


# ------------------------------------------------------------------------------------------------------ TLS: downgrades


def old(context: ssl.SSLContext) -> ssl.SSLContext:
    """A context that knows TLS 1.1 at most, and takes any cipher."""
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1 is deprecated"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


def test_a_client_that_offers_nothing_newer_than_tls_1_1_is_refused(
    server_context: ssl.SSLContext, own_context: ssl.SSLContext
) -> None:
    refused: list[OSError] = []

    async def main() -> None:
        async with await serve_tcp(
            echo, "127.0.0.1", 0, tls=server_context, on_handshake_error=lambda peer, error: refused.append(error)
        ) as server:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await open_connection(*server.addresses[0], tls=own_context, server_hostname="localhost")
            await all_ended(server)

    old(own_context)
    flowno.run(main())
    assert len(refused) == 1
    assert "protocol" in str(refused[0])


def test_a_server_that_offers_nothing_newer_than_tls_1_1_is_refused(authority: trustme.CA) -> None:
    async def main() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0, tls=old(server_context_of(authority))) as server:
            with pytest.raises(ssl.SSLError) as caught:
                await open_connection(*server.addresses[0], tls=True, server_hostname="localhost")
            assert not isinstance(caught.value, ssl.SSLCertVerificationError)
            await all_ended(server)

    flowno.run(main())


# --------------------------------------------------------------------------------------- TLS: messages for TLS itself


@asynccontextmanager
async def raw_client(
    server_context: ssl.SSLContext, own_context: ssl.SSLContext, tmp_path: Path
) -> AsyncIterator[tuple[RawTLSClient, TLSSocketHandle]]:
    """A connection whose client makes its records itself, and its server."""
    with pair(4096) as (one, other):
        starting = await spawn(start_tls(other, server_context, server_side=True))
        client = await RawTLSClient.connected(one, own_context, tmp_path / "keys")
        with await starting.join() as handle:
            yield client, handle


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_a_peer_that_renews_its_key_is_answered_and_goes_on(
    server_context: ssl.SSLContext, own_context: ssl.SSLContext, tmp_path: Path
) -> None:
    async def main() -> None:
        async with raw_client(server_context, own_context, tmp_path) as (client, handle):
            reader = await spawn(handle.recv(100))
            for record in client.key_updates(5):
                await client.handle.sendAll(record)
            await client.handle.sendAll(client.record(APPLICATION_DATA, b"with a new key"))
            assert await reader.join() == b"with a new key"
            assert len(await client.handle.recv(65536)) > 5 * 20  # the tickets, and five answers
            await handle.sendAll(b"goes on")

    flowno.run(main())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_a_peer_that_has_tls_answer_and_does_not_read_the_answers_is_left(
    server_context: ssl.SSLContext, own_context: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader does not wait to write, so the answers would be kept without a bound."""
    monkeypatch.setattr(tls, "_CHUNK", 1024)
    monkeypatch.setattr(tls, "_MOST_ANSWERS", 2000)

    async def main() -> None:
        async with raw_client(server_context, own_context, tmp_path) as (client, handle):

            async def flood() -> None:
                for record in client.key_updates(100_000):
                    await client.handle.sendAll(record)

            sender = await spawn(flood())
            stream = Stream(handle)
            with pytest.raises(ssl.SSLError, match="to answer .* more than 2000 bytes wait to be sent") as caught:
                await stream.readline()
            assert stream._is_loss(caught.value), "a server has a line of information for it"
            await sender.cancel()
            assert handle._outgoing.pending < 4000
            for _ in range(2):
                with pytest.raises(ssl.SSLError, match="does not read what TLS has to answer"):
                    await handle.recv(1)

    flowno.run(main())


class Flood(socket.socket):
    """A socket that is never empty of messages for TLS itself: each receive is full. ``records`` makes them."""

    records: Iterator[bytes]
    receives = 0
    rest = b""

    def recv(self, size: int, *flags: int) -> bytes:
        self.receives += 1
        while len(self.rest) < size:
            self.rest += next(self.records)
        data, self.rest = self.rest[:size], self.rest[size:]
        return data


@pytest.mark.not_under_faults(reason="it counts turns of the loop, or what is done in one of them")
@pytest.mark.parametrize("operation", ["recv", "aclose"])
def test_a_flood_of_messages_for_tls_itself_leaves_the_others_their_turn(
    operation: str,
    server_context: ssl.SSLContext,
    own_context: ssl.SSLContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is a new key, and a full receive has thousands of them: 64 receives in a row would be a second."""
    monkeypatch.setattr(tls, "_CHUNK", 1024)
    monkeypatch.setattr(tls, "_MOST_ANSWERS", 1 << 30)
    turns: list[int] = []

    async def main() -> None:
        async with raw_client(server_context, own_context, tmp_path) as (client, handle):
            flood = Flood(fileno=handle.socket.detach())
            flood.setblocking(False)
            flood.records = client.key_updates(100_000)
            handle.socket, handle._sock_recv, handle._sock_send = flood, flood.recv, lambda data: len(data)
            handle._fileno = flood.fileno
            with flood:
                task = await spawn(getattr(handle, operation)(*([100] if operation == "recv" else [])))
                await client.handle.sendAll(b"there is something to receive")
                for _ in range(10):
                    await sleep(0)
                    turns.append(flood.receives)
                await task.cancel()

    flowno.run(main())
    assert turns[-1] > 5, "it makes progress"
    assert max(after - before for before, after in itertools.pairwise(turns)) <= 4


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_renegotiations_that_a_client_begins_are_refused(
    server_context: ssl.SSLContext, authority: trustme.CA, tmp_path: Path
) -> None:
    """TLS 1.2 lets a client have the server make the costly half of a handshake as often as it likes: CVE-2011-1473."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl command on this machine")
    if not subprocess.run([openssl, "version"], capture_output=True, check=True).stdout.startswith(b"OpenSSL 3"):
        pytest.skip("the openssl command is another one than this talks to")
    if ssl.OPENSSL_VERSION_INFO < (3,):
        pytest.skip(f"{ssl.OPENSSL_VERSION} lets clients renegotiate")
    lines: list[bytes] = []

    async def handler(stream: Stream) -> None:
        async for line in stream:
            lines.append(line)
            await stream.write(line)

    async def main() -> bytes:
        async with await serve_tcp(handler, "127.0.0.1", 0, tls=server_context, require_close_notify=False) as server:
            port = server.addresses[0][1]
            command = [openssl, "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_2", "-legacy_renegotiation"]
            client = await flowno.open_process(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            async with client:
                assert client.stdin is not None
                assert client.stdout is not None
                await client.stdin.write(b"before\n")
                await client.stdout.readuntil(b"before\n")
                await client.stdin.write(b"R\n")  # s_client takes it for: renegotiate
                said = await client.stdout.read()
                await client.wait()
            await all_ended(server)
            return said

    said = flowno.run(main())
    assert lines == [b"before\n"]
    assert b"no renegotiation" in said


# -------------------------------------------------------------------------------------------------- what gets into logs


@unix_sockets
def test_what_a_peer_calls_itself_begins_no_line_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names: list[Any] = [str(tmp_path / "x\nERROR root: \x1b[31mowned"), str(tmp_path / "x\r\udcff")]
    if sys.platform == "linux":
        names.append(b"\0abstract\n\xff" + os.urandom(8).hex().encode())

    async def fail(stream: Stream) -> None:
        raise KeyError("a bug")

    async def main() -> None:
        async with await serve_unix(fail, tmp_path / "socket") as server:
            for name in names:
                with socket.socket(socket.AF_UNIX) as peer:
                    peer.bind(name)
                    peer.connect(str(tmp_path / "socket"))
                    while not server.connections:
                        await sleep(0)
                    await all_ended(server)

    with caplog.at_level(logging.INFO):
        flowno.run(main())
    assert len(caplog.records) == len(names)
    for record in caplog.records:
        assert record.getMessage().isprintable()
        assert record.getMessage().isascii()


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
def test_what_a_peer_sends_instead_of_tls_begins_no_line_of_the_log(
    server_context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0, tls=server_context) as server:
            async with connection(server) as peer:
                await peer.sendAll(b"\r\nERROR \x1b[31mowned")
                while await peer.recv(65536):
                    pass
            await all_ended(server)

    with caplog.at_level(logging.INFO):
        flowno.run(main())
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().isprintable()
    assert r"b'\r\nERROR" in caplog.records[0].getMessage()


def test_many_peers_that_reset_do_not_fill_the_log_with_more_than_a_line_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    number = 20

    async def main() -> None:
        async with await serve_tcp(echo, "127.0.0.1", 0) as server:
            with tcp_pair():
                for _ in range(number):
                    async with connection(server) as peer:
                        await peer.sendAll(b"x")
                        while not server.connections:
                            await sleep(0)
                        reset(peer)
                await all_ended(server)

    with caplog.at_level(logging.INFO):
        flowno.run(main())
    levels = [record.levelno for record in caplog.records if record.name == "flowno.net"]
    assert len(levels) <= number
    assert set(levels) <= {logging.INFO}
