"""Everything that waits, cancelled at each of its suspensions, on every backend: nothing is left, and nothing is lost.

A program is a line of the table: an async function with the decorator, which gets its books and what is there to work
with, makes both sides, and runs to its end in a few milliseconds; ``beside`` starts a side that is not cancelled with
the other. It tells the books what it has given away, such as the bytes that a socket took, and what it has found again,
be it received, still in the buffer, or in the hands of the next in the queue. In the end both must be the same.
"""

import os
import re
import signal
import socket as system_socket
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

import flowno
from flowno import (
    AsyncLifoQueue,
    AsyncMapQueue,
    AsyncPriorityQueue,
    AsyncQueue,
    AsyncSetQueue,
    Barrier,
    CancelScope,
    CapacityLimiter,
    Condition,
    CountdownLatch,
    Event,
    Lock,
    Semaphore,
    Server,
    SocketHandle,
    Stream,
    TaskCancelled,
    TaskGroup,
    TaskHandle,
    WouldBlockError,
    as_completed,
    azip,
    current_time,
    from_thread,
    gather,
    getaddrinfo,
    move_on_after,
    open_connection,
    open_process,
    open_signal_receiver,
    open_unix_connection,
    run_in_thread,
    run_process,
    serve_tcp,
    serve_unix,
    sleep,
    sleep_forever,
    sleep_until,
    socket,
    spawn,
    start_tls,
    timeout,
    wait_readable,
    wait_writable,
)
from flowno.core.event_loop.backend import SystemWorld
from flowno.core.event_loop.tls import TLSSocketHandle
from flowno.testing import cancel_everywhere
from tests.support.counting_selector import CountingSelector
from tests.support.loopback import listening, pair
from tests.support.tasks import FOREVER, fail, value
from tests.support.tls import client_context_of, server_context_of, tls_pair
from tests.support.worlds import answer

# -------------------------------------------------------------------------------------------------- books, and a ground


class Books:
    """What a program has given away, and what was found again; pieces of bytes count as a stream of bytes."""

    def __init__(self) -> None:
        self.given: list[Any] = []
        self.found: list[Any] = []

    def open(self) -> None:
        """A new run begins."""
        self.given.clear()
        self.found.clear()

    def give(self, *things: Any) -> None:
        self.given += things

    def find(self, *things: Any) -> None:
        self.found += things

    def balance(self) -> None:
        """See that both are the same."""
        if all(isinstance(thing, bytes) for thing in (*self.given, *self.found)):
            assert b"".join(self.given) == b"".join(self.found)
        else:
            assert Counter(self.given) == Counter(self.found)


class _World(SystemWorld):
    """The system's, but that nobody knows a name except those in ``names``."""

    def __init__(self) -> None:
        self.names: dict[Any, list[Any]] = {}

    def getaddrinfo(self, host: Any, *args: Any) -> Any:  # type: ignore[override]
        return self.names[host]


class Ground:
    """What programs work with: names, certificates, a folder, an address that does not answer."""

    def __init__(self, folder: Path, silent: tuple[str, int], authority: trustme.CA) -> None:
        self.folder = folder
        self.silent = silent
        self.world = _World()
        self.server_context = server_context_of(authority, "localhost", "127.0.0.1")
        self.client_context = client_context_of(authority)
        self.certificates = folder / "certificates"  # what a system trusts whose store is small, and quickly read
        authority.cert_pem.write_to_path(str(self.certificates))

    def selector(self) -> CountingSelector:
        """The backend under test, in this world."""
        selector = CountingSelector()
        selector.world = self.world
        return selector


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Iterator[Ground]:
    with system_socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):  # the backlog is full: what comes next waits for an answer
            waiting = stack.enter_context(system_socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        ground = Ground(tmp_path_factory.mktemp("ground"), listener.getsockname(), authority)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SSL_CERT_FILE", str(ground.certificates))
            patch.setenv("SSL_CERT_DIR", str(ground.folder))
            yield ground


Program = Callable[[Books, Ground], Coroutine[Any, Any, None]]
PROGRAMS: list[Any] = []


def program(function: Program) -> Program:
    """A line of the table."""
    PROGRAMS.append(pytest.param(function, id=function.__name__))
    return function


def program_where(condition: bool, reason: str) -> Callable[[Program], Program]:
    """A line for systems that have what it needs."""

    def add(function: Program) -> Program:
        PROGRAMS.append(
            pytest.param(function, id=function.__name__, marks=pytest.mark.skipif(not condition, reason=reason))
        )
        return function

    return add


HAS_UNIX = hasattr(system_socket, "AF_UNIX")


@pytest.mark.parametrize("program", PROGRAMS)
def test_cancelled_anywhere_it_leaves_nothing_and_loses_nothing(backend: str, program: Program, ground: Ground) -> None:
    books = Books()

    def run() -> Coroutine[Any, Any, None]:
        books.open()
        return program(books, ground)

    assert cancel_everywhere(run, selector=ground.selector, check=books.balance) > 0


# ---------------------------------------------------------------------------------------------------------- what all do


async def in_peace(operation: Awaitable[Any]) -> Any:
    """Await this although the program is cancelled, to see what is left."""
    with CancelScope(shield=True):
        return await operation


async def see_out(task: TaskHandle[Any]) -> None:
    """Wait for the end of a task, although the program is cancelled, and maybe that task, too."""
    try:
        await in_peace(task.join())
    except TaskCancelled as cancelled:
        if cancelled.by is not task:
            raise


async def peer(operation: Awaitable[object]) -> None:
    """The other side, to which it may happen that this one goes."""
    try:
        await operation
    except OSError:
        pass


@asynccontextmanager
async def beside(operation: Awaitable[object]) -> AsyncIterator[None]:
    """The other side, which is not cancelled with this one, but goes when this one has ended."""
    task = await spawn(peer(operation))
    try:
        yield
    finally:
        await in_peace(task.cancel())


async def talk(handle: SocketHandle, books: Books, *pieces: bytes) -> None:
    """Send pieces, a turn between them."""
    for piece in pieces:
        await sleep(0)
        books.give(piece[: await handle.send(piece)])


async def listen_to(handle: SocketHandle, books: Books, size: int = 65536) -> None:
    """Receive to the end."""
    while data := await handle.recv(size):
        books.find(data)


def drain(handle: SocketHandle, books: Books) -> None:
    """Find what is in the socket's buffer still."""
    try:
        while data := handle.socket.recv(1 << 20):
            books.find(data)
    except OSError:
        pass  # no more


@contextmanager
def closing(*handles: SocketHandle) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.close()


# -------------------------------------------------------------------------------------------------------------- sockets


@program
async def accept(books: Books, ground: Ground) -> None:
    with listening() as listener, socket() as one, socket() as other:
        try:
            for client in (one, other):
                await sleep(0)
                client.connect(listener.getsockname())
                books.give(client.getsockname())
            for _ in range(2):
                handle, address = await listener.accept()
                handle.close()
                books.find(address)
        finally:
            drain_backlog(listener, books)


@program
async def accept_from_a_connector(books: Books, ground: Ground) -> None:
    async def connect_slowly(client: SocketHandle) -> None:
        await sleep(0)
        client.connect(listener.getsockname())
        books.give(client.getsockname())

    with listening() as listener, socket() as client:
        try:
            async with TaskGroup() as group:
                await group.spawn(connect_slowly(client))
                handle, address = await listener.accept()
                handle.close()
                books.find(address)
        finally:
            drain_backlog(listener, books)


def drain_backlog(listener: SocketHandle, books: Books) -> None:
    while (accepted := listener._accept_nowait()) is not None:
        accepted[0].close()
        books.find(accepted[1])


@program
async def recv(books: Books, ground: Ground) -> None:
    with pair() as (one, other):
        try:
            async with TaskGroup() as group:
                await group.spawn(talk(other, books, b"one", b"two"))
                for _ in range(2):
                    books.find(await one.recv(3))
        finally:
            drain(one, books)


@program
async def recv_into(books: Books, ground: Ground) -> None:
    buffer = bytearray(3)
    with pair() as (one, other):
        try:
            async with TaskGroup() as group:
                await group.spawn(talk(other, books, b"one", b"two"))
                for _ in range(2):
                    size = await one.recv_into(buffer)
                    books.find(bytes(buffer[:size]))
        finally:
            drain(one, books)


@program
async def recv_that_gives_way(books: Books, ground: Ground) -> None:
    """What is there already is taken without a wait, until it is the others' turn."""
    with pair() as (one, other):
        try:
            books.give(bytes(70)[: await other.send(bytes(70))])
            for _ in range(70):
                books.find(await one.recv(1))
        finally:
            drain(one, books)


@program
async def send(books: Books, ground: Ground) -> None:
    with pair(buffer=4096) as (one, other):
        try:
            async with TaskGroup() as group:
                task = await group.spawn(listen_to(other, books, 4096))
                for number in range(8):
                    data = bytes([number]) * 4096
                    books.give(data[: await one.send(data)])
                one.shutdown(system_socket.SHUT_WR)
                await task.join()
        finally:
            drain(other, books)


@program
async def send_all(books: Books, ground: Ground) -> None:
    data = os.urandom(40_000)
    with pair(buffer=4096) as (one, other):
        try:
            async with TaskGroup() as group:
                await group.spawn(listen_to(other, books))
                await one.sendAll(data)
                one.shutdown(system_socket.SHUT_WR)
        finally:
            books.give(data[: one.bytes_sent])
            drain(other, books)


@program
async def sendfile(books: Books, ground: Ground) -> None:
    data = os.urandom(40_000)
    path = ground.folder / "file"
    path.write_bytes(data)
    with pair(buffer=4096) as (one, other), path.open("rb") as file:
        try:
            async with TaskGroup() as group:
                await group.spawn(listen_to(other, books))
                await one.sendfile(file)
                one.shutdown(system_socket.SHUT_WR)
        finally:
            assert file.tell() == one.bytes_sent
            books.give(data[: one.bytes_sent])
            drain(other, books)


@program
async def datagrams(books: Books, ground: Ground) -> None:
    async def send_some() -> None:
        for number in range(3):
            await sleep(0)
            await sender.sendto(b"%d" % number, receiver.getsockname())
            books.give((b"%d" % number, sender.getsockname()))

    with socket(type=system_socket.SOCK_DGRAM) as sender, socket(type=system_socket.SOCK_DGRAM) as receiver:
        sender.bind(("127.0.0.1", 0))
        receiver.bind(("127.0.0.1", 0))
        try:
            async with TaskGroup() as group:
                await group.spawn(send_some())
                for _ in range(3):
                    books.find(await receiver.recvfrom(100))
        finally:
            drain_datagrams(receiver, books)


def drain_datagrams(receiver: SocketHandle, books: Books) -> None:
    try:
        while True:
            books.find(receiver.socket.recvfrom(100))
    except BlockingIOError:
        pass  # no more


@program
async def datagram_to_a_name(books: Books, ground: Ground) -> None:
    with socket(type=system_socket.SOCK_DGRAM) as sender, socket(type=system_socket.SOCK_DGRAM) as receiver:
        sender.bind(("127.0.0.1", 0))
        receiver.bind(("127.0.0.1", 0))
        port = receiver.getsockname()[1]
        ground.world.names["host"] = answer(("127.0.0.1", port))
        try:
            await sender.sendto(b"to a name", ("host", port))
            books.give((b"to a name", sender.getsockname()))
        finally:
            drain_datagrams(receiver, books)


@program_where(hasattr(system_socket.socket, "recvmsg"), "this system has no recvmsg")
async def messages(books: Books, ground: Ground) -> None:
    async def send_some() -> None:
        for number in range(2):
            await sleep(0)
            size = await one.sendmsg([b"%d" % number, b";"])
            books.give((b"%d;" % number)[:size])

    buffer = bytearray(1)
    with pair() as (one, other):
        try:
            async with TaskGroup() as group:
                await group.spawn(send_some())
                data, *_ = await other.recvmsg(2)
                books.find(data)
                for _ in range(2):
                    await other.recvmsg_into([buffer])
                    books.find(bytes(buffer))
        finally:
            drain(other, books)


@program_where(HAS_UNIX, "this Python has no Unix sockets")
async def fds(books: Books, ground: Ground) -> None:
    """An fd that was sent is received once, and then the receiver's to close."""

    async def send_two() -> None:
        for _ in range(2):
            await sleep(0)
            await one.send_fds([b"x"], [one.fileno()])
            books.give(1)

    async def receive() -> None:
        _, received, _, _ = await other.recv_fds(1, 4)
        for fd in received:
            os.close(fd)
        books.find(len(received))

    with pair() as (one, other):
        try:
            async with TaskGroup() as group:
                await group.spawn(send_two())
                for _ in range(2):
                    await receive()
        finally:
            while len(books.found) < len(books.given):
                await in_peace(receive())


@contextmanager
def closed_where_cancelled(handle: SocketHandle) -> Iterator[None]:
    """A connection that is half made, or half ended, can be neither used nor repeated."""
    try:
        yield
    except TaskCancelled:
        assert handle.fileno() < 0
        raise


@program
async def connect(books: Books, ground: Ground) -> None:
    with listening() as listener, socket() as client:
        with closed_where_cancelled(client):
            await flowno.connect(client, listener.getsockname())
        handle, _ = await listener.accept()
        handle.close()


@program
async def connect_to_a_name(books: Books, ground: Ground) -> None:
    with listening() as listener, socket() as client:
        port = listener.getsockname()[1]
        ground.world.names["host"] = answer(("127.0.0.1", port))
        with closed_where_cancelled(client):
            await flowno.connect(client, ("host", port))


@program
async def connect_where_nobody_listens(books: Books, ground: Ground) -> None:
    with socket() as bound, socket() as client:
        bound.bind(("127.0.0.1", 0))
        try:
            await flowno.connect(client, bound.getsockname())
        except ConnectionRefusedError:
            pass


@program
async def connect_where_nobody_answers(books: Books, ground: Ground) -> None:
    with socket() as client, move_on_after(0.005), closed_where_cancelled(client):
        await flowno.connect(client, ground.silent)


@program_where(sys.platform == "linux", "elsewhere a full backlog refuses")
async def connect_where_the_backlog_is_full(books: Books, ground: Ground) -> None:
    async def make_room() -> None:
        await sleep(0.001)
        listener._accept_nowait()[0].close()  # type: ignore[index]

    with socket(system_socket.AF_UNIX) as listener, socket(system_socket.AF_UNIX) as client, ExitStack() as stack:
        listener.bind("")  # the system chooses an abstract name
        listener.listen(0)
        stack.enter_context(socket(system_socket.AF_UNIX)).connect(listener.getsockname())
        async with beside(make_room()):
            await flowno.connect(client, listener.getsockname())


@program
async def wait_for_readiness(books: Books, ground: Ground) -> None:
    one, other = system_socket.socketpair()
    with one, other:
        try:
            async with TaskGroup() as group:
                await group.spawn(wait_readable(other))
                await wait_writable(one)
                await sleep(0)
                other.send(b"x")
                one.send(b"x")
                await wait_readable(one)
        finally:
            other.send(b"x")
            await in_peace(wait_writable(one))  # nobody owns it any more
            await in_peace(wait_readable(one))


@program
async def wait_for_a_handle(books: Books, ground: Ground) -> None:
    with pair() as (one, other):
        async with TaskGroup() as group:
            await group.spawn(talk(other, Books(), b"x"))
            await wait_writable(one)
            await wait_readable(one)


# ------------------------------------------------------------------------------------------------------------------ TLS


async def tls_rest(handle: TLSSocketHandle, books: Books) -> None:
    """Find what was sent through TLS, and not received so far."""
    with move_on_after(1):
        while sum(map(len, books.found)) < sum(map(len, books.given)):
            data = await handle.recv(65536)
            if not data:
                break
            books.find(data)


@program
async def tls_handshake_of_a_client(books: Books, ground: Ground) -> None:
    with tls_pair(ground.server_context, ground.client_context) as (client, server):
        async with beside(server.do_handshake()):
            await client.do_handshake()


@program
async def tls_handshake_of_a_server(books: Books, ground: Ground) -> None:
    with tls_pair(ground.server_context, ground.client_context) as (client, server):
        async with beside(client.do_handshake()):
            await server.do_handshake()


@program
async def tls_handshake_that_another_task_makes(books: Books, ground: Ground) -> None:
    """Who only waits for it can be cancelled, and the handshake goes on."""
    with tls_pair(ground.server_context, ground.client_context) as (client, server):
        making = [await spawn(client.do_handshake()), await spawn(server.do_handshake())]
        try:
            await client.do_handshake()
        finally:
            for task in making:
                await see_out(task)


@asynccontextmanager
async def tls_ends(ground: Ground) -> AsyncIterator[tuple[TLSSocketHandle, TLSSocketHandle]]:
    """A client and a server with the handshake behind them.

    The end of the run cancels the server's, too, which closes it. The client's may be done by then, as the last message
    is its own, RFC 8446 section 2, and there is nobody to talk to: so that cancellation is the end of the program.
    """
    with tls_pair(ground.server_context, ground.client_context) as (client, server):
        making = await spawn(server.do_handshake())
        await in_peace(client.do_handshake())
        await in_peace(making.join())
        yield client, server


@program
async def tls_recv(books: Books, ground: Ground) -> None:
    async with tls_ends(ground) as (client, server):
        try:
            async with TaskGroup() as group:
                await group.spawn(talk(server, books, b"one", b"two"))
                for _ in range(2):
                    books.find(await client.recv(100))
        finally:
            await in_peace(tls_rest(client, books))


@program
async def tls_send_all(books: Books, ground: Ground) -> None:
    data = os.urandom(100_000)
    async with tls_ends(ground) as (client, server):
        try:
            async with TaskGroup() as group:
                await group.spawn(listen_to(server, books))
                await client.sendAll(data)
                await client.send_eof()
        finally:
            books.give(data[: client.bytes_sent])
            if sum(map(len, books.found)) < client.bytes_sent:
                rest = await spawn(tls_rest(server, books))
                await in_peace(client.send_eof())
                await see_out(rest)


@program
async def tls_inside_of_tls(books: Books, ground: Ground) -> None:
    async def serve(handle: TLSSocketHandle) -> None:
        with await start_tls(handle, ground.server_context, server_side=True) as inner:
            await inner.sendAll(b"hello")
            await inner.recv(1)

    with tls_pair(ground.server_context, ground.client_context) as (client, server):
        async with beside(serve(server)):
            with await start_tls(client, ground.client_context, server_hostname="localhost") as inner:
                buffer = bytearray(5)
                assert await inner.recv_into(buffer) == 5
                await inner.send(b"x")


@program
async def tls_aclose(books: Books, ground: Ground) -> None:
    async def end(handle: TLSSocketHandle) -> None:
        with closed_where_cancelled(handle):
            await handle.do_handshake()
            await handle.aclose()

    with tls_pair(ground.server_context, ground.client_context) as (client, server):
        async with beside(end(server)):
            await end(client)


@program
async def tls_unwrap(books: Books, ground: Ground) -> None:
    async def leave(handle: TLSSocketHandle) -> None:
        await handle.do_handshake()
        with closed_where_cancelled(handle):
            below, _ = await handle.unwrap()
        below.close()

    with tls_pair(ground.server_context, ground.client_context) as (client, server):
        async with beside(leave(server)):
            await leave(client)


@program
async def tls_from_the_middle(books: Books, ground: Ground) -> None:
    async def serve(handle: SocketHandle) -> None:
        with await start_tls(handle, ground.server_context, server_side=True) as tls:
            await tls.sendAll(b"hello")
            await tls.aclose()

    with pair() as (one, other):
        async with beside(serve(other)):
            with await start_tls(one, ground.client_context, server_hostname="localhost") as tls:
                while await tls.recv(100):
                    pass


@program
async def tls_connect(books: Books, ground: Ground) -> None:
    async def serve(listener: SocketHandle) -> None:
        handle, _ = await listener.accept()
        with handle:
            await start_and_end(handle)

    async def start_and_end(handle: SocketHandle) -> None:
        with await start_tls(handle, ground.server_context, server_side=True):
            pass

    with listening() as listener:
        ground.world.names["localhost"] = answer(listener.getsockname())
        with socket(use_tls=True, ssl_context=ground.client_context) as client:
            async with beside(serve(listener)):
                await flowno.connect(client, ("localhost", listener.getsockname()[1]))


# ---------------------------------------------------------------------------------------------- connections and streams


@program
async def open_connection_by_number(books: Books, ground: Ground) -> None:
    with listening() as listener:
        async with await open_connection(*listener.getsockname()):
            pass


@program
async def open_connection_to_the_second_address(books: Books, ground: Ground) -> None:
    """The first one does not answer, and is closed when the second does."""
    with listening() as listener:
        ground.world.names["host"] = answer(ground.silent, listener.getsockname())
        async with await open_connection("host", 80, happy_eyeballs_delay=0.01):
            pass


@program
async def open_connection_after_a_refusal(books: Books, ground: Ground) -> None:
    with listening() as listener, socket() as bound:
        bound.bind(("127.0.0.1", 0))
        ground.world.names["host"] = answer(bound.getsockname(), listener.getsockname())
        async with await open_connection("host", 80):
            pass


@program
async def open_connection_that_all_refuse(books: Books, ground: Ground) -> None:
    with socket() as one, socket() as other:
        for bound in (one, other):
            bound.bind(("127.0.0.1", 0))
        ground.world.names["host"] = answer(one.getsockname(), other.getsockname())
        try:
            await open_connection("host", 80)
        except ConnectionRefusedError:
            pass


async def serve_a_goodbye(listener: SocketHandle, context: ssl.SSLContext) -> None:
    """A TLS server that ends the one connection that it takes."""
    handle, _ = await listener.accept()
    with await start_tls(handle, context, server_side=True) as tls:
        await tls.aclose()


@program
async def open_connection_with_tls(books: Books, ground: Ground) -> None:
    with listening() as listener:
        listener.setsockopt(system_socket.IPPROTO_TCP, system_socket.TCP_NODELAY, 1)
        async with (
            beside(serve_a_goodbye(listener, ground.server_context)),
            await open_connection(*listener.getsockname(), tls=ground.client_context) as stream,
        ):
            await stream.read()


@program
async def open_connection_with_the_tls_settings_of_the_system(books: Books, ground: Ground) -> None:
    """They are read in a thread, while the connection is there already."""

    with listening() as listener:
        listener.setsockopt(system_socket.IPPROTO_TCP, system_socket.TCP_NODELAY, 1)
        async with (
            beside(serve_a_goodbye(listener, ground.server_context)),
            await open_connection(*listener.getsockname(), tls=True) as stream,
        ):
            await stream.read()


@program_where(HAS_UNIX, "this Python has no Unix sockets")
async def open_connection_by_a_path(books: Books, ground: Ground) -> None:
    async def serve(listener: SocketHandle) -> None:
        handle, _ = await listener.accept()
        with handle:
            await sleep(0)
            await handle.sendAll(b"hello")

    path = ground.folder / "socket"
    with socket(system_socket.AF_UNIX) as listener:
        try:
            listener.bind(str(path))
            listener.listen()
            async with beside(serve(listener)), await open_unix_connection(path) as stream:
                assert await stream.read() == b"hello"
        finally:
            path.unlink()


@contextmanager
def stream_pair(buffer: int | None = None) -> Iterator[tuple[Stream, Stream]]:
    with pair(buffer) as (one, other):
        yield Stream(one), Stream(other)


async def write_slowly(stream: Stream, books: Books, *pieces: bytes) -> None:
    """Write pieces, so many turns between them that each finds the reader waiting."""
    for piece in pieces:
        for _ in range(4):
            await sleep(0)
        await stream.write(piece)
        books.give(piece)


async def drain_stream(stream: Stream, peer: Stream, books: Books) -> None:
    """Find what the peer has written, and is in the stream and in its socket still."""
    peer.handle.shutdown(system_socket.SHUT_WR)
    books.find(await in_peace(stream.read()))


async def read_into(stream: Stream) -> bytes:
    buffer = bytearray(7)
    return bytes(buffer[: await stream.readinto(buffer)])


READS: dict[str, Callable[[Stream], Awaitable[bytes]]] = {
    "read": lambda stream: stream.read(7),
    "readexactly": lambda stream: stream.readexactly(10),
    "readinto": read_into,
    "readuntil": lambda stream: stream.readuntil(b";"),
    "readuntil_a_pattern": lambda stream: stream.readuntil(re.compile(rb"[;\n]")),
    "readline": lambda stream: stream.readline(),
    "iteration": lambda stream: anext(stream),
    "chunks": lambda stream: anext(stream.chunks(7)),
}


def read_by(name: str, read: Callable[[Stream], Awaitable[bytes]]) -> Program:
    async def reading(books: Books, ground: Ground) -> None:
        with stream_pair() as (one, other):
            try:
                async with TaskGroup() as group:
                    await group.spawn(write_slowly(other, books, b"half a;", b"line\nand ", b"more;\n"))
                    for _ in range(2):
                        books.find(await read(one))
            finally:
                await drain_stream(one, other, books)

    reading.__name__ = reading.__qualname__ = f"stream_{name}"
    return reading


for _name, _read in READS.items():
    program(read_by(_name, _read))


@program
async def stream_read_to_the_end(books: Books, ground: Ground) -> None:
    async def write() -> None:
        await write_slowly(other, books, b"all ", b"of it")
        await other.write_eof()

    with stream_pair() as (one, other):
        try:
            async with TaskGroup() as group:
                await group.spawn(write())
                books.find(await one.read())
        finally:
            await drain_stream(one, other, books)


@program
async def stream_write(books: Books, ground: Ground) -> None:
    data = os.urandom(40_000)
    with stream_pair(buffer=4096) as (one, other):
        try:
            async with TaskGroup() as group:
                task = await group.spawn(listen_to(other.handle, books))
                await one.write(data)
                one.handle.shutdown(system_socket.SHUT_WR)
                await task.join()
        finally:
            books.give(data[: one.handle.bytes_sent])
            drain(other.handle, books)


@program
async def stream_writelines(books: Books, ground: Ground) -> None:
    lines = [os.urandom(5_000) for _ in range(8)]
    with stream_pair(buffer=4096) as (one, other):
        try:
            async with TaskGroup() as group:
                task = await group.spawn(listen_to(other.handle, books))
                await one.writelines(lines)
                one.handle.shutdown(system_socket.SHUT_WR)
                await task.join()
        finally:
            books.give(b"".join(lines)[: one.handle.bytes_sent])
            drain(other.handle, books)


@program
async def stream_of_tls(books: Books, ground: Ground) -> None:
    """What TLS has decrypted, and no read has returned, is still there."""
    async with tls_ends(ground) as (client, server):
        one, other = Stream(client), Stream(server)
        try:
            async with TaskGroup() as group:
                await group.spawn(write_slowly(other, books, b"half a ", b"line\nand ", b"more\n"))
                for _ in range(2):
                    books.find(await one.readline())
        finally:
            while len(b"".join(books.found)) < len(b"".join(books.given)):
                books.find(await in_peace(one.read(100)))


@program
async def stream_through_tls(books: Books, ground: Ground) -> None:
    """Upgraded, used, left again, and used."""

    async def serve(stream: Stream) -> None:
        async with stream:
            await stream.start_tls(ground.server_context, server_side=True)
            await stream.write(await stream.readline())
            await stream.unwrap()
            await stream.write(b"plain\n")

    with stream_pair() as (one, other):
        async with beside(serve(other)), one:
            await one.start_tls(ground.client_context, server_hostname="localhost")
            await one.write(b"secret\n")
            assert await one.readline() == b"secret\n"
            await one.unwrap()
            assert await one.readline() == b"plain\n"


# -------------------------------------------------------------------------------------------------------------- servers


async def shout(stream: Stream) -> None:
    async for line in stream:
        await stream.write(line.upper())


async def ask(server: Server, **options: Any) -> None:
    async with await open_connection(*server.addresses[0], **options) as stream:
        await stream.write(b"hello\n")
        assert await stream.readline() == b"HELLO\n"


@program
async def server(books: Books, ground: Ground) -> None:
    async with await serve_tcp(shout, "127.0.0.1", 0) as server:
        await ask(server)


@program
async def server_with_tls(books: Books, ground: Ground) -> None:
    async with await serve_tcp(shout, "127.0.0.1", 0, tls=ground.server_context) as server:
        await ask(server, tls=ground.client_context)


@program
async def server_with_tls_for_a_client_without(books: Books, ground: Ground) -> None:
    failed = []

    def note(address: Any, error: Exception) -> None:
        failed.append(address)

    tls = ground.server_context
    async with (
        await serve_tcp(shout, "127.0.0.1", 0, tls=tls, on_handshake_error=note) as server,
        await open_connection(*server.addresses[0]) as stream,
    ):
        await stream.write(b"no TLS at all\n")
        try:
            await stream.read()  # until the server hangs up
        except ConnectionResetError:
            pass
        assert failed == [stream.get_extra_info("sockname")]


@program
async def server_whose_handlers_do_not_end(books: Books, ground: Ground) -> None:
    async def hold(stream: Stream) -> None:
        begun.set()
        await sleep(FOREVER)

    begun = Event()
    server = await serve_tcp(hold, "127.0.0.1", 0)
    try:
        async with await open_connection(*server.addresses[0]):
            await begun.wait()
            await server.aclose(grace=0.001)
    finally:
        await server.aclose(grace=0)


@program
async def server_that_is_full(books: Books, ground: Ground) -> None:
    async with await serve_tcp(shout, "127.0.0.1", 0, max_connections=1) as server, TaskGroup() as group:
        for _ in range(2):
            await group.spawn(ask(server))


@program
async def serve_forever(books: Books, ground: Ground) -> None:
    async def stop() -> None:
        await ask(server)
        server.close()

    server = await serve_tcp(shout, "127.0.0.1", 0)
    try:
        async with beside(stop()):
            await server.serve_forever()
            await server.wait_closed()
    finally:
        server.close()


@program
async def server_by_a_name(books: Books, ground: Ground) -> None:
    ground.world.names["host"] = answer(("127.0.0.1", 0))
    async with await serve_tcp(shout, "host", 0) as server:
        await ask(server)


@program_where(HAS_UNIX, "this Python has no Unix sockets")
async def server_by_a_path(books: Books, ground: Ground) -> None:
    path = ground.folder / "server"
    async with await serve_unix(shout, path), await open_unix_connection(path) as stream:
        await stream.writelines([b"hel", b"lo\n"])
        assert await stream.readline() == b"HELLO\n"
        await stream.write_eof()
    assert not path.exists()


@program
async def names(books: Books, ground: Ground) -> None:
    ground.world.names["host"] = answer(("192.0.2.1", 80))
    await getaddrinfo("host", 80)


# ---------------------------------------------------------------------------------------------------------------- tasks


@program
async def sleeping(books: Books, ground: Ground) -> None:
    await sleep(0)
    await sleep(0.001)


@program
async def sleeping_until(books: Books, ground: Ground) -> None:
    await sleep_until(current_time())
    await sleep_until(current_time() + 0.001)


@program
async def sleeping_forever(books: Books, ground: Ground) -> None:
    with move_on_after(0.001):
        await sleep_forever()


@program
async def joining(books: Books, ground: Ground) -> None:
    task = await spawn(value("done", turns=2))
    try:
        assert await task.join() == "done"
    finally:
        assert await in_peace(task.join()) == "done"  # it is not cancelled along with who waits for it


@program
async def joining_what_fails(books: Books, ground: Ground) -> None:
    error = ValueError("no")
    task = await spawn(fail(error, turns=2))
    try:
        await task.join()
    except ValueError:
        pass
    finally:
        task.cancel()


@program
async def cancelling(books: Books, ground: Ground) -> None:
    async def clean_up() -> str:
        try:
            await sleep(FOREVER)
        finally:
            await sleep(0)
            books.find("cleaned up")
        return "never"

    task = await spawn(clean_up())
    books.give("cleaned up")
    try:
        await sleep(0)
        await task.cancel()
    finally:
        await in_peace(task.cancel())


@program
async def cleaning_up(books: Books, ground: Ground) -> None:
    """The clean-up waits, and is cancelled, too; what it must do it does without a wait, or behind a shield."""
    books.give("at last")
    try:
        await sleep(0)
        try:
            await sleep(0)
        finally:
            await sleep(0)
            await sleep(0)
    finally:
        with CancelScope(shield=True):
            await sleep(0.001)
            books.find("at last")


@program
async def group(books: Books, ground: Ground) -> None:
    async def child(number: int) -> None:
        books.give(number)
        try:
            await sleep(0)
            await sleep(0)
        finally:
            books.find(number)

    async with TaskGroup() as group:
        for number in range(2):
            await group.spawn(child(number))
        group.create_task(child(2))
        await sleep(0)


@program
async def group_that_waits_for_a_task(books: Books, ground: Ground) -> None:
    """The cancellation of who waits is passed on to the task."""
    task = None
    try:
        async with TaskGroup() as group:
            task = await group.spawn(value("done", turns=3))
    except TaskCancelled:
        assert task is None or task.is_cancelled
        raise


@program
async def group_in_a_group(books: Books, ground: Ground) -> None:
    async def child() -> None:
        async with TaskGroup() as inner:
            await inner.spawn(value(1, turns=2))
            await inner.spawn(value(2, turns=3))

    async with TaskGroup() as outer:
        await outer.spawn(child())
        async with TaskGroup() as group:
            await group.spawn(child())


@program
async def group_that_starts_a_server(books: Books, ground: Ground) -> None:
    async def serve(*, task_status: Any) -> None:
        with listening() as listener:
            await sleep(0)
            task_status.started(listener.getsockname())
            await sleep(FOREVER)

    async with TaskGroup() as group:
        await group.start(serve)
        await sleep(0)
        group.cancel_scope.cancel()


@program
async def group_that_starts_what_is_never_ready(books: Books, ground: Ground) -> None:
    """Who does not wait for it any more does not leave it in the group."""

    async def serve(*, task_status: Any) -> None:
        await sleep(FOREVER)

    async with TaskGroup() as group:
        with move_on_after(0.001):
            await group.start(serve)


@program
async def group_that_fails(books: Books, ground: Ground) -> None:
    async with TaskGroup() as outer:
        await outer.spawn(value(1, turns=5))
        try:
            async with TaskGroup() as group:
                await group.spawn(fail(ValueError("no"), turns=2))
                await sleep(FOREVER)
        except* ValueError:
            pass


async def accounted(books: Books, operation: Awaitable[Any]) -> Any:
    """Await this, with an entry in the books for its beginning, and one for its end."""
    books.give(1)
    try:
        return await operation
    finally:
        books.find(1)


@program
async def gathering(books: Books, ground: Ground) -> None:
    assert await gather(accounted(books, value("a", turns=3)), accounted(books, value("b", turns=1))) == ("a", "b")
    books.balance()


@program
async def gathering_what_fails(books: Books, ground: Ground) -> None:
    """The others have ended when the error arrives."""
    error = ValueError("no")
    try:
        await gather(accounted(books, fail(error, turns=2)), accounted(books, value("never", turns=9)))
    except ValueError:
        books.balance()
    await sleep(0)  # where a cancellation arrives that the error went before


@program
async def gathering_errors(books: Books, ground: Ground) -> None:
    error = ValueError("no")
    results = await gather(
        accounted(books, fail(error, turns=1)), accounted(books, value("b", turns=3)), return_exceptions=True
    )
    assert results == (error, "b")


@program
async def as_they_complete(books: Books, ground: Ground) -> None:
    """Each comes once; who is cancelled in the wait for the next passes over none."""
    tasks = [await spawn(value(turns, turns=turns)) for turns in (9, 3, 6)]
    books.give(*tasks)
    completions = as_completed(tasks)
    try:
        async for task in completions:
            books.find(task)
    finally:
        with CancelScope(shield=True):
            async for task in completions:
                books.find(task)


@program
async def time_limits(books: Books, ground: Ground) -> None:
    with move_on_after(60):
        try:
            async with timeout(0.001):
                await sleep(FOREVER)
        except TimeoutError:
            pass
        with move_on_after(0.001):
            await sleep(FOREVER)
        with CancelScope(shield=True):
            await sleep(0)
        with CancelScope() as scope:
            scope.cancel()
            await sleep(FOREVER)


# ----------------------------------------------------------------------------------------------- waiting for each other


@program
async def lock(books: Books, ground: Ground) -> None:
    inside: list[None] = []

    async def work() -> None:
        async with lock:
            assert not inside
            inside.append(None)
            try:
                await sleep(0)
            finally:
                inside.pop()

    lock = Lock()
    async with TaskGroup() as group:
        for _ in range(2):
            await group.spawn(work())
        await work()
        await work()
    assert not lock.is_locked()


@program
async def lock_that_others_wait_for(books: Books, ground: Ground) -> None:
    """It goes to the next, where the one whose turn it was is cancelled, and back to this one."""

    async def hold() -> None:
        async with lock:
            await sleep(0.001)

    async def work() -> None:
        await sleep(0)
        async with lock:
            pass

    lock = Lock()
    tasks = [await spawn(hold()), await spawn(work())]
    try:
        async with lock:
            await sleep(0)
    finally:
        for task in tasks:
            await see_out(task)
        await in_peace(lock.acquire())
        lock.release()


async def use_when_it_is_free(thing: Lock | Semaphore) -> None:
    while True:
        try:
            thing.acquire_nowait()
        except WouldBlockError:
            await sleep(0)
        else:
            break
    try:
        await sleep(0)
    finally:
        thing.release()


@program
async def lock_without_waiting_for_it(books: Books, ground: Ground) -> None:
    lock = Lock()
    async with TaskGroup() as group:
        await group.spawn(use_when_it_is_free(lock))
        await use_when_it_is_free(lock)
        await group.spawn(use_when_it_is_free(lock))
    assert not lock.is_locked()


@program
async def condition(books: Books, ground: Ground) -> None:
    """An item that was put under the lock is taken once, and the lock is held whenever the wait has ended."""
    items: list[int] = []

    async def produce() -> None:
        for number in range(3):
            await sleep(0)
            async with condition:
                items.append(number)
                books.give(number)
                condition.notify()

    condition = Condition()
    try:
        async with TaskGroup() as group:
            await group.spawn(produce())
            for _ in range(3):
                async with condition:
                    while not items:
                        try:
                            await condition.wait()
                        finally:
                            assert condition.lock.is_locked()
                    books.find(items.pop())
    finally:
        books.find(*items)
    assert not condition.waiters


@program
async def condition_that_others_wait_with(books: Books, ground: Ground) -> None:
    """A notification is not lost to the others, where the one that was to have it is cancelled."""
    items: list[int] = []

    async def consume() -> None:
        async with condition:
            while not items:
                await condition.wait()
            books.find(items.pop())

    async def consume_later() -> None:
        await sleep(0)
        await consume()

    async def produce() -> None:
        for number in range(2):
            await sleep(0.001)
            async with condition:
                items.append(number)
                books.give(number)
                condition.notify()

    condition = Condition()
    tasks = [await spawn(consume_later()), await spawn(produce())]
    try:
        await consume()
    finally:
        for task in tasks:
            await see_out(task)
        books.find(*items)


@program
async def condition_that_is_to_hold(books: Books, ground: Ground) -> None:
    """The lock is held whenever somebody looks, and whenever the wait has ended."""
    items: list[int] = []

    def is_there() -> bool:
        assert condition.lock._is_mine()
        return bool(items)

    async def produce() -> None:
        for number in range(2):
            async with condition:
                condition.notify()  # for nothing
            await sleep(0)
            async with condition:
                items.append(number)
                books.give(number)
                condition.notify()

    condition = Condition()
    try:
        async with TaskGroup() as group:
            await group.spawn(produce())
            for _ in range(2):
                async with condition:
                    try:
                        await condition.wait_for(is_there)
                    finally:
                        assert condition.lock._is_mine()
                    books.find(items.pop())
    finally:
        books.find(*items)
    assert not condition.waiters


@program
async def semaphore(books: Books, ground: Ground) -> None:
    async def work() -> None:
        async with semaphore:
            await sleep(0)

    semaphore = Semaphore(2, max_value=2)
    try:
        async with TaskGroup() as group:
            for _ in range(4):
                await group.spawn(work())
            await work()
    finally:
        books.give(*range(2))
        books.find(*range(semaphore.value))


@program
async def semaphore_that_others_wait_for(books: Books, ground: Ground) -> None:
    """Who is cancelled while it waits leaves its place to the next."""

    async def acquire_later() -> None:
        await sleep(0)
        await semaphore.acquire()
        books.find("a permit")

    async def release() -> None:
        for _ in range(2):
            await sleep(0.001)
            semaphore.release()
            books.give("a permit")

    semaphore = Semaphore(0)
    tasks = [await spawn(acquire_later()), await spawn(release())]
    try:
        await semaphore.acquire()
        books.find("a permit")
    finally:
        for task in tasks:
            await see_out(task)
        books.find(*["a permit"] * semaphore.value)


@program
async def semaphore_without_waiting_for_it(books: Books, ground: Ground) -> None:
    semaphore = Semaphore(1, max_value=1)
    books.give("a permit")
    try:
        async with TaskGroup() as group:
            await group.spawn(use_when_it_is_free(semaphore))
            await use_when_it_is_free(semaphore)
    finally:
        books.find(*["a permit"] * semaphore.value)


@program
async def limiter(books: Books, ground: Ground) -> None:
    async def work() -> None:
        async with limiter:
            assert limiter.borrowed_tokens <= 2
            await sleep(0)

    limiter = CapacityLimiter(2)
    try:
        async with TaskGroup() as group:
            for _ in range(4):
                await group.spawn(work())
            await work()
    finally:
        books.give(*range(2))
        books.find(*range(int(limiter.available_tokens)))
    assert not limiter.waiters


@program
async def limiter_that_others_wait_for(books: Books, ground: Ground) -> None:
    """A token goes to the next, where the one whose turn it was is cancelled."""

    async def hold() -> None:
        async with limiter:
            await sleep(0.001)

    async def work() -> None:
        await sleep(0)
        async with limiter:
            books.find("the next")

    limiter = CapacityLimiter(1)
    tasks = [await spawn(hold()), await spawn(work())]
    try:
        async with limiter:
            await sleep(0)
    finally:
        for task in tasks:
            await see_out(task)
        books.give(*["the next"] * (not tasks[1].is_cancelled), *range(1))
        books.find(*range(int(limiter.available_tokens)))


@program
async def limiter_on_behalf_of_others(books: Books, ground: Ground) -> None:
    """Who is cancelled before it has the token has not borrowed it for anybody; afterwards it is theirs."""

    async def give_back() -> None:
        for borrower in "ab":
            await sleep(0)
            await sleep(0)
            limiter.release_on_behalf_of(borrower)
            books.find(borrower)

    limiter = CapacityLimiter(1)
    await limiter.acquire_on_behalf_of("a")
    books.give("a")
    giving_back = await spawn(give_back())
    try:
        for borrower in "bc":
            await limiter.acquire_on_behalf_of(borrower)
            books.give(borrower)
    finally:
        giving_back.cancel()
        for borrower in "abc":
            if borrower in books.given and borrower not in books.found:
                limiter.release_on_behalf_of(borrower)
                books.find(borrower)
    assert not limiter.borrowed_tokens


@program
async def limiter_that_grows(books: Books, ground: Ground) -> None:
    async def grow() -> None:
        await sleep(0)
        limiter.total_tokens = 2

    limiter = CapacityLimiter(1)
    await limiter.acquire_on_behalf_of("somebody")
    try:
        async with TaskGroup() as group:
            await group.spawn(grow())
            async with limiter:
                await sleep(0)
    finally:
        limiter.release_on_behalf_of("somebody")
        books.find(*range(limiter.borrowed_tokens))


@program
async def barrier(books: Books, ground: Ground) -> None:
    """Who was let through knows of it, each by a number of its own, in one round as in the next."""

    async def come() -> None:
        for round_ in range(2):
            index = await barrier.wait()
            books.find((round_, index))
            if index == 2:  # the last, which lets the others through
                books.give(*((round_, each) for each in range(3)))

    barrier = Barrier(3)
    async with TaskGroup() as group:
        for _ in range(2):
            await group.spawn(come())
        await come()
    assert not barrier.n_waiting


@program
async def barrier_where_others_wait(books: Books, ground: Ground) -> None:
    """Who is cancelled leaves as if it had not come: the others still wait for one more."""

    async def come_later() -> None:
        await sleep(0)
        await barrier.wait()

    barrier = Barrier(3)
    tasks = [await spawn(come_later()) for _ in range(2)]
    is_through = False
    try:
        await barrier.wait()
        is_through = True
    finally:
        if not is_through and not any(task.is_cancelled for task in tasks):
            await in_peace(barrier.wait())
        for task in tasks:
            await see_out(task)
        books.find(*range(barrier.n_waiting))


@program
async def event(books: Books, ground: Ground) -> None:
    async def happen() -> None:
        await sleep(0)
        event.set()

    event = Event()
    async with TaskGroup() as group:
        await group.spawn(event.wait())
        await group.spawn(happen())
        await event.wait()
    assert not event.waiters


@program
async def latch(books: Books, ground: Ground) -> None:
    async def count() -> None:
        for _ in range(2):
            await sleep(0)
            latch.count_down()

    latch = CountdownLatch(2)
    async with TaskGroup() as group:
        await group.spawn(count())
        await latch.wait()


# -------------------------------------------------------------------------------------------------------------- threads


@program
async def thread(books: Books, ground: Ground) -> None:
    """One that has begun is waited for, and what it returns is not lost."""

    def work(number: int) -> int:
        books.give(number)
        return number

    for number in range(2):
        books.find(await run_in_thread(work, number))


@program
async def thread_that_fails(books: Books, ground: Ground) -> None:
    def work() -> None:
        books.give("an error")
        raise LookupError("an error")

    try:
        await run_in_thread(work)
    except LookupError as error:
        books.find(*error.args)


@program
async def thread_behind_others(books: Books, ground: Ground) -> None:
    """The token for it goes to the next where this one is cancelled, and comes back."""

    async def hold() -> None:
        async with limiter:
            await sleep(0.001)

    def work() -> None:
        books.give("done")

    async def work_later() -> None:
        await sleep(0)
        await run_in_thread(work, limiter=limiter)
        books.find("done")

    limiter = CapacityLimiter(1)
    tasks = [await spawn(hold()), await spawn(work_later())]
    try:
        await run_in_thread(work, limiter=limiter)
        books.find("done")
    finally:
        for task in tasks:
            await see_out(task)
        books.find(*range(limiter.borrowed_tokens))


@program
async def thread_that_is_abandoned(books: Books, ground: Ground) -> None:
    """Nobody waits for it, it has its token to its end, and gives it back then."""

    async def let_it_end() -> None:
        await sleep(0)
        may_end.set()

    def work() -> None:
        books.give("begun")
        may_end.wait()
        books.find("begun")

    may_end = threading.Event()
    limiter = CapacityLimiter(1)
    try:
        async with beside(let_it_end()):
            await run_in_thread(work, abandon_on_cancel=True, limiter=limiter)
    finally:
        may_end.set()
        await in_peace(limiter.acquire())
        limiter.release()


@program
async def thread_that_awaits(books: Books, ground: Ground) -> None:
    """What it awaits is cancelled with the task, and what it has got so far is what it returns."""

    async def put_slowly() -> None:
        for number in range(2):
            await sleep(0)
            await put_all(queue, books, number)

    def work() -> list[int]:
        received: list[int] = []
        try:
            for _ in range(2):
                received.append(from_thread.run(queue.get))
        finally:
            books.find(*received)
        return received

    queue: AsyncQueue[int] = AsyncQueue()
    try:
        async with beside(put_slowly()):
            assert await run_in_thread(work) == [0, 1]
    finally:
        books.find(*queue.items)


@program
async def thread_that_calls(books: Books, ground: Ground) -> None:
    """A function that it calls is called once, although the task is cancelled, and also where nobody waits for it."""

    def work() -> None:
        for number in range(2):
            books.give(number)
            from_thread.run_sync(books.find, number)

    limiter = CapacityLimiter(1)
    try:
        await run_in_thread(work, limiter=limiter)
        await run_in_thread(work, abandon_on_cancel=True, limiter=limiter)
    finally:
        await in_peace(limiter.acquire())  # when its thread is done
        limiter.release()


@program
async def thread_that_asks_whether_to_stop(books: Books, ground: Ground) -> None:
    async def stop() -> None:
        await sleep(0.001)
        is_over.set()

    def work() -> None:
        books.give("begun")
        try:
            while not is_over.is_set():
                from_thread.check_cancelled()
        finally:
            books.find("begun")

    is_over = threading.Event()
    async with beside(stop()):
        await run_in_thread(work)


@program
async def abandoned_thread_that_asks_whether_to_stop(books: Books, ground: Ground) -> None:
    async def stop() -> None:
        await sleep(0.001)
        is_over.set()

    def work() -> None:
        while not is_over.is_set():
            from_thread.check_cancelled()

    is_over = threading.Event()
    limiter = CapacityLimiter(1)
    try:
        async with beside(stop()):
            await run_in_thread(work, abandon_on_cancel=True, limiter=limiter)
    finally:
        await in_peace(limiter.acquire())  # when its thread is done
        limiter.release()


# -------------------------------------------------------------------------------------------------------------- signals


@contextmanager
def noted_by_handler(books: Books, *numbers: int) -> Iterator[None]:
    """These signals have a handler that finds them."""

    def note(number: int, frame: object) -> None:
        books.find(number)

    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        for number in numbers:
            assert signal.signal(number, previous[number]) is note


async def raise_slowly(books: Books, *numbers: int) -> None:
    for number in numbers:
        await sleep(0)
        books.give(number)
        signal.raise_signal(number)


@program_where(hasattr(signal, "SIGUSR1"), "this system has no SIGUSR1")
async def signals(books: Books, ground: Ground) -> None:
    """One that has come is received, or raised again on leaving, for the handler of before."""
    numbers = signal.SIGUSR1, signal.SIGUSR2
    with noted_by_handler(books, *numbers), open_signal_receiver(*numbers) as received:
        async with TaskGroup() as group:
            await group.spawn(raise_slowly(books, *numbers))
            for _ in numbers:
                books.find(await anext(received))


@program_where(hasattr(signal, "SIGUSR1"), "this system has no SIGUSR1")
async def signal_that_others_wait_for(books: Books, ground: Ground) -> None:
    """Where the one that waited longer is cancelled, the other gets it."""

    async def receive() -> None:
        books.find(await anext(received))

    numbers = signal.SIGUSR1, signal.SIGUSR2
    with noted_by_handler(books, *numbers), open_signal_receiver(*numbers) as received:
        tasks = [await spawn(raise_slowly(books, *numbers)), await spawn(receive())]
        try:
            await receive()
        finally:
            await see_out(tasks[0])
            tasks[1].cancel()  # in the end there may be but one signal for it, or none


# ------------------------------------------------------------------------------------------------------ other processes

PYTHON = [sys.executable, "-I", "-S", "-c"]


def children() -> set[str]:
    """The children of this process, with its zombies, where a file lists them; else Python's warnings have to do."""
    return {pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


@contextmanager
def reaping_all(books: Books) -> Iterator[None]:
    """See that no child is left. Each of them costs some ten milliseconds, so these programs wait seldom."""
    before = children()
    try:
        yield
    finally:
        books.find(*(children() - before))


@program
async def process(books: Books, ground: Ground) -> None:
    with reaping_all(books):
        async with await open_process([*PYTHON, ""]) as process:
            assert await process.wait() == 0


@program
async def process_that_others_wait_for(books: Books, ground: Ground) -> None:
    """Who is cancelled while it waits on behalf of all leaves that to the next."""
    with reaping_all(books):
        async with await open_process([*PYTHON, "input()"], stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            other = await spawn(process.wait())
            try:
                process.stdin.close()
                await process.wait()
            finally:
                await see_out(other)


@program
async def process_to_talk_with(books: Books, ground: Ground) -> None:
    with reaping_all(books):
        command = [*PYTHON, "print(input().upper())"]
        async with await open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.write(b"hello\n")
            assert (await process.stdout.readline()).split() == [b"HELLO"]


@program
async def process_to_its_end(books: Books, ground: Ground) -> None:
    with reaping_all(books):
        finished = await run_process([*PYTHON, "print(input().upper())"], input=b"hello\n")
        assert finished.stdout.split() == [b"HELLO"]


# --------------------------------------------------------------------------------------------------------------- queues

QUEUES: dict[str, Callable[[], Any]] = {
    "queue": lambda: AsyncQueue(maxsize=1),
    "lifo_queue": lambda: AsyncLifoQueue(maxsize=2),
    "priority_queue": lambda: AsyncPriorityQueue(maxsize=1),
    "set_queue": lambda: AsyncSetQueue(maxsize=1),
}


async def put_all(queue: Any, books: Books, *items: Any) -> None:
    """Put items; one is given away when ``put`` returns, and else not in the queue."""
    for item in items:
        await queue.put(item)
        books.give(item)


async def get_all(queue: Any, books: Books) -> None:
    async for item in queue:
        books.find(item)


def get_from(name: str, make: Callable[[], Any]) -> Program:
    async def getting(books: Books, ground: Ground) -> None:
        queue = make()
        try:
            async with TaskGroup() as group:
                await group.spawn(put_all(queue, books, 1, 2, 3))
                await sleep(0)
                for _ in range(3):
                    books.find(await queue.get())
        finally:
            books.find(*queue.items)
        assert not queue.getters
        assert not queue.putters

    getting.__name__ = getting.__qualname__ = f"{name}_get"
    return getting


def put_into(name: str, make: Callable[[], Any]) -> Program:
    async def putting(books: Books, ground: Ground) -> None:
        queue = make()
        try:
            async with TaskGroup() as group:
                await group.spawn(get_all(queue, books))
                await put_all(queue, books, 1, 2, 3, 4)
                queue.close()
        finally:
            books.find(*queue.items)

    putting.__name__ = putting.__qualname__ = f"{name}_put"
    return putting


for _name, _make in QUEUES.items():
    program(get_from(_name, _make))
    program(put_into(_name, _make))


@program
async def queue_of_two_consumers(books: Books, ground: Ground) -> None:
    """An item that was meant for one which was cancelled is the other's, or still there."""
    queue: AsyncQueue[int] = AsyncQueue()
    other = await spawn(get_all(queue, books))
    try:
        await put_all(queue, books, 1, 2)
        producer = await spawn(put_all(queue, books, 3, 4))
        books.find(await queue.get())
        await see_out(producer)
    finally:
        queue.close()
        await see_out(other)
        books.find(*queue.items)


@program
async def queue_peek(books: Books, ground: Ground) -> None:
    queue: AsyncQueue[int] = AsyncQueue()
    try:
        async with TaskGroup() as group:
            await group.spawn(put_all(queue, books, 1, 2))
            await sleep(0)
            for _ in range(2):
                first = await queue.peek()
                assert first == queue.items[0]
                books.find(await queue.get())
    finally:
        books.find(*queue.items)
    assert not queue.peekers


@program
async def queue_peek_at_an_empty_one(books: Books, ground: Ground) -> None:
    async def put_later() -> None:
        await sleep(0)
        await put_all(queue, books, 1)

    queue: AsyncQueue[int] = AsyncQueue()
    try:
        async with TaskGroup() as group:
            await group.spawn(put_later())
            await queue.peek()
    finally:
        books.find(*queue.items)


@program
async def queue_join(books: Books, ground: Ground) -> None:
    async def deal() -> None:
        async for item in queue:
            books.find(item)
            await sleep(0)
            queue.task_done()

    queue: AsyncQueue[int] = AsyncQueue()
    try:
        async with TaskGroup() as group:
            await put_all(queue, books, 1, 2)
            await group.spawn(deal())
            await queue.join()
            queue.close()
    finally:
        books.find(*queue.items)


@program
async def queue_until_empty(books: Books, ground: Ground) -> None:
    queue: AsyncQueue[int] = AsyncQueue()
    try:
        await put_all(queue, books, *range(70))
        async with aclosing(queue.until_empty()) as items:
            async for item in items:
                books.find(item)
    finally:
        books.find(*queue.items)


@program
async def set_queue_put_all(books: Books, ground: Ground) -> None:
    queue: AsyncSetQueue[int] = AsyncSetQueue(maxsize=1)
    try:
        async with TaskGroup() as group:
            await group.spawn(get_all(queue, books))
            await queue.putAll([1, 2, 3])
            await sleep(0)
            queue.close()
    finally:
        books.find(*queue.items)
        books.give(*[1, 2, 3][: len(books.found)])  # how far it came is not known where it was cancelled


@program
async def queue_that_closes(books: Books, ground: Ground) -> None:
    async def close() -> None:
        await sleep(0)
        queue.close()

    queue: AsyncQueue[int] = AsyncQueue()
    async with TaskGroup() as group:
        await group.spawn(close())
        assert [item async for item in queue] == []
    assert not queue.getters


@program
async def map_queue(books: Books, ground: Ground) -> None:
    queue: AsyncMapQueue[str, int] = AsyncMapQueue(maxsize=1)
    try:
        async with TaskGroup() as group:
            await group.spawn(put_all(queue, books, ("a", 1), ("a", 2), ("b", 3)))
            for _ in range(2):
                key, causes = await queue.get()
                books.find(*((key, cause) for cause in causes))
    finally:
        books.find(*((key, cause) for key, causes in queue.items for cause in causes))


# ----------------------------------------------------------------------------------------------- asynchronous iteration


async def count(books: Books) -> AsyncIterator[int]:
    books.give("open")
    try:
        for number in range(2):
            await sleep(0)
            yield number
    finally:
        books.find("open")
        await sleep(0)


@program
async def generator(books: Books, ground: Ground) -> None:
    async with aclosing(count(books)) as numbers:
        async for _ in numbers:
            await sleep(0)


@program
async def generator_that_is_dropped(books: Books, ground: Ground) -> None:
    async for _ in count(books):
        await sleep(0)
        break
    await sleep(0)


@program
async def zipped(books: Books, ground: Ground) -> None:
    try:
        async with aclosing(azip(count(books), count(books))) as pairs:
            async for _ in pairs:
                await sleep(0)
    finally:
        books.balance()  # by now, and not only when somebody collects the generators
