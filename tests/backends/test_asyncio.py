"""Each backend under asyncio, whose loop takes any ``selectors.BaseSelector``.

CPython's own tests of asyncio are run by ``test_cpython_asyncio.py``; these here are what users do with it.
"""

import asyncio
import errno
import logging
import os
import selectors
import signal
import socket
import ssl
import sys
import tempfile
import threading
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trustme

from flowno.testing.conformance.bench import fill, reset
from tests.backends.conftest import Case, Pair, SelectorFactory, posix
from tests.backends.test_fork import in_child
from tests.support.limits import open_files
from tests.support.tls import client_context_of, server_context_of

pytestmark = pytest.mark.stdlib_differs("asyncio is at home there")

T = TypeVar("T")

LARGE = 1 << 20


def run(make_selector: SelectorFactory, main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
    def make_loop() -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(make_selector())

    with asyncio.Runner(debug=debug, loop_factory=make_loop) as runner:
        return runner.run(main)


def registered() -> list[int]:
    """What the running loop has registered besides its waker."""
    loop: Any = asyncio.get_running_loop()
    return sorted(fd for fd in loop._selector.get_map() if fd != loop._ssock.fileno())


def waiter() -> "asyncio.Future[Any]":
    return asyncio.get_running_loop().create_future()


def resolve(future: "asyncio.Future[T]", value: T) -> None:
    if not future.done():
        future.set_result(value)


# ---------------------------------------------------------------------------------------------------------- streams


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int) -> int:
    """Send so much, and read it all back meanwhile."""

    async def send() -> None:
        writer.write(bytes(size))
        await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    sending = asyncio.ensure_future(send())
    answer = await reader.readexactly(size)
    await sending
    writer.close()
    await writer.wait_closed()
    return len(answer)


def test_streams_echo(make_selector: SelectorFactory) -> None:
    sizes = [1, 1000, LARGE, 10]

    async def main() -> list[int]:
        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            address = server.sockets[0].getsockname()
            return await asyncio.gather(
                *[exchange(*await asyncio.open_connection(*address), size) for size in sizes]
            )  # fmt: skip

    assert run(make_selector, main()) == sizes


@posix
def test_streams_through_a_unix_socket(make_selector: SelectorFactory) -> None:
    async def main() -> int:
        with tempfile.TemporaryDirectory() as folder:  # the path of pytest's may be too long for a socket
            path = os.path.join(folder, "s")
            async with await asyncio.start_unix_server(echo, path):
                return await exchange(*await asyncio.open_unix_connection(path), LARGE)

    assert run(make_selector, main()) == LARGE


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    return server_context_of(authority), client_context_of(authority)


def test_streams_through_tls(make_selector: SelectorFactory, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async def main() -> int:
        async with await asyncio.start_server(echo, "127.0.0.1", 0, ssl=contexts[0]) as server:
            address = server.sockets[0].getsockname()
            stream = await asyncio.open_connection(*address, ssl=contexts[1], server_hostname="localhost")
            return await exchange(*stream, LARGE)

    assert run(make_selector, main()) == LARGE


def test_a_stream_that_is_upgraded_to_tls(
    make_selector: SelectorFactory, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n")
        await writer.start_tls(contexts[0])
        await echo(reader, writer)

    async def main() -> int:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"STARTTLS\n")
            assert await reader.readline() == b"go\n"
            await writer.start_tls(contexts[1], server_hostname="localhost")
            return await exchange(reader, writer, LARGE)

    assert run(make_selector, main()) == LARGE


def test_a_connection_that_is_refused(make_selector: SelectorFactory) -> None:
    async def main() -> None:
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))  # and does not listen
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*deaf.getsockname())
        assert registered() == []

    run(make_selector, main())


# -------------------------------------------------------------------------------------------- transports, protocols


class Recorder(asyncio.Protocol):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.received = 0
        self.transport: Any = None
        self.lost = waiter()
        self.ended = waiter()
        self.resumed = waiter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.told.append("made")
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += len(data)

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")
        resolve(self.resumed, None)

    def eof_received(self) -> bool:
        self.told.append("eof")
        resolve(self.ended, None)
        return True  # the other direction stays open

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append(f"lost: {type(exc).__name__}" if exc else "lost")
        resolve(self.lost, None)


def test_a_protocol_that_is_held_up_and_half_closed(make_selector: SelectorFactory) -> None:
    async def main() -> tuple[list[str], list[str], int]:
        loop = asyncio.get_running_loop()
        serving: asyncio.Future[Recorder] = waiter()

        class Serving(Recorder):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                self.transport.pause_reading()
                serving.set_result(self)

        async with await loop.create_server(Serving, "127.0.0.1", 0) as server:
            transport, client = await loop.create_connection(Recorder, *server.sockets[0].getsockname())
            served = await serving
            while "pause" not in client.told:
                transport.write(bytes(LARGE))
            transport.write_eof()
            served.transport.resume_reading()
            await served.ended
            await client.resumed
            served.transport.write(b"the other direction")
            served.transport.close()
            await client.ended
            transport.close()
            await asyncio.gather(client.lost, served.lost)
        assert registered() == []
        assert client.received == len(b"the other direction")
        return client.told, served.told, served.received % LARGE

    assert run(make_selector, main()) == (
        ["made", "pause", "resume", "eof", "lost"],
        ["made", "eof", "lost"],
        0,
    )


def test_datagrams_there_and_back(make_selector: SelectorFactory) -> None:
    class Answering(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.transport.sendto(data.upper(), addr)

    class Asking(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.answer: asyncio.Future[bytes] = waiter()

        def datagram_received(self, data: bytes, addr: Any) -> None:
            resolve(self.answer, data)

    async def main() -> bytes:
        loop = asyncio.get_running_loop()
        server, _ = await loop.create_datagram_endpoint(Answering, local_addr=("127.0.0.1", 0))
        address = server.get_extra_info("sockname")
        client, protocol = await loop.create_datagram_endpoint(Asking, remote_addr=address)
        client.sendto(b"hello")
        answer = await protocol.answer
        client.close()
        server.close()
        await asyncio.sleep(0)
        return answer

    assert run(make_selector, main()) == b"HELLO"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a datagram that nobody takes may be no error")
def test_a_datagram_that_nobody_takes(make_selector: SelectorFactory) -> None:
    class Asking(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.error: asyncio.Future[Exception] = waiter()

        def error_received(self, exc: Exception) -> None:
            resolve(self.error, exc)

    async def main() -> Exception:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
            nobody.bind(("127.0.0.1", 0))
            nobody.connect(("127.0.0.1", 9))  # takes datagrams from nobody else
            loop = asyncio.get_running_loop()
            client, protocol = await loop.create_datagram_endpoint(Asking, remote_addr=nobody.getsockname())
            client.sendto(b"hello")
            error = await protocol.error
            client.close()
        await asyncio.sleep(0)
        return error

    assert isinstance(run(make_selector, main()), ConnectionRefusedError)


# -------------------------------------------------------------------------------------------------------- sockets


def test_every_operation_of_a_socket(make_selector: SelectorFactory, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(LARGE))

    async def serve(listener: socket.socket) -> list[object]:
        loop = asyncio.get_running_loop()
        connection, _ = await loop.sock_accept(listener)
        with connection:
            buffer = bytearray(100)
            first = await loop.sock_recv_into(connection, buffer)
            await loop.sock_sendall(connection, buffer[:first])
            received = 0
            while data := await loop.sock_recv(connection, 1 << 16):
                received += len(data)
            return [first, received]

    async def main() -> list[object]:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
            listener.setblocking(False)
            client.setblocking(False)
            served = asyncio.ensure_future(serve(listener))
            await loop.sock_connect(client, listener.getsockname())
            await loop.sock_sendall(client, b"hello")
            answer = await loop.sock_recv(client, 100)
            with file.open("rb") as opened:
                sent = await loop.sock_sendfile(client, opened)
            client.shutdown(socket.SHUT_WR)
            outcome = [answer, sent, *await served]
        assert registered() == []
        return outcome

    assert run(make_selector, main()) == [b"hello", LARGE, 5, LARGE]


@pytest.mark.skipif(os.name == "nt", reason="there a socket must be bound before it can receive")
def test_datagrams_of_a_socket(make_selector: SelectorFactory) -> None:
    async def main() -> tuple[bytes, bytes]:
        loop = asyncio.get_running_loop()
        with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as other:
            for sock in (one, other):
                sock.setblocking(False)
                sock.bind(("127.0.0.1", 0))
            waiting = asyncio.ensure_future(loop.sock_recvfrom(other, 100))
            await asyncio.sleep(0)
            await loop.sock_sendto(one, b"hello", other.getsockname())
            data, address = await waiting
            assert address == one.getsockname()
            buffer = bytearray(100)
            await loop.sock_sendto(other, b"answer", address)
            size, _ = await loop.sock_recvfrom_into(one, buffer)
            return data, bytes(buffer[:size])

    assert run(make_selector, main()) == (b"hello", b"answer")


def test_a_cancelled_wait_leaves_no_registration(make_selector: SelectorFactory, pair: Pair) -> None:
    one = pair[0]
    fill(one)

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            waits = asyncio.gather(
                loop.sock_recv(one, 1), loop.sock_sendall(one, b"x"), loop.sock_accept(listener), return_exceptions=True
            )
            await asyncio.sleep(0)
            assert registered() == sorted([one.fileno(), listener.fileno()])
            waits.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waits
            await asyncio.sleep(0)
            return registered()

    assert run(make_selector, main()) == []


# ------------------------------------------------------------------------------------------------------- callbacks


def test_callbacks_that_replace_and_remove_one_another(make_selector: SelectorFactory, pair: Pair) -> None:
    one, other = pair

    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        told: list[str] = []
        done = waiter()

        def first() -> None:
            told.append("first")
            loop.add_reader(one, second)  # replaces the one that runs

        def second() -> None:
            told.append("second")
            if told.count("second") == 1:  # it is called again as long as there is something to read
                loop.add_writer(one, writable)

        def writable() -> None:
            told.append("writable")
            assert loop.remove_reader(one)
            loop.add_writer(one.fileno(), last)

        def last() -> None:
            told.append("last")
            assert not loop.remove_reader(one)
            assert loop.remove_writer(one)
            assert not loop.remove_writer(one)
            resolve(done, None)

        loop.add_reader(one, first)
        other.send(b"x")  # is never read: level-triggered
        await done
        assert registered() == []
        await asyncio.sleep(0)
        return told

    told = run(make_selector, main())
    assert list(dict.fromkeys(told)) == ["first", "second", "writable", "last"]
    assert (told.count("first"), told.count("last")) == (1, 1)


def test_what_is_removed_in_the_same_round_is_not_called(make_selector: SelectorFactory) -> None:
    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        told: list[str] = []
        pairs = [socket.socketpair() for _ in range(2)]
        readers = [one for one, _ in pairs]

        def called(name: str, own: socket.socket, rival: socket.socket) -> None:
            told.append(name)
            loop.remove_reader(own)
            loop.remove_reader(rival)

        for name, own, rival in zip("ab", readers, reversed(readers), strict=True):
            own.setblocking(False)
            loop.add_reader(own, called, name, own, rival)
        for _, writer in pairs:
            writer.send(b"x")
        while not told:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        for end in (end for pair in pairs for end in pair):
            end.close()
        return told

    assert len(run(make_selector, main())) == 1


@posix
def test_a_socket_that_gets_the_number_of_a_closed_one(make_selector: SelectorFactory) -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        called: asyncio.Future[str] = waiter()
        old, other = socket.socketpair()
        number = old.fileno()
        loop.add_reader(old, resolve, called, "the old one's")
        loop.remove_reader(old)
        old.close()
        new, peer = socket.socketpair()
        with other, new, peer:
            assert new.fileno() == number
            loop.add_reader(new, resolve, called, "the new one's")
            peer.send(b"x")
            name = await called
            loop.remove_reader(new)
        return name

    assert run(make_selector, main()) == "the new one's"


# --------------------------------------------------------------------------------- threads, timers, signals, programs


def test_threads(make_selector: SelectorFactory) -> None:
    async def main() -> list[object]:
        loop = asyncio.get_running_loop()
        called: asyncio.Future[str] = waiter()
        thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(resolve, called, "called"))
        thread.start()  # the loop waits without limit by then, or soon
        outcome: list[object] = [await called]
        thread.join()
        outcome += await asyncio.gather(*[loop.run_in_executor(None, sum, [1, number]) for number in range(5)])
        return outcome

    assert run(make_selector, main()) == ["called", 1, 2, 3, 4, 5]


def test_many_timers_ring_in_order_and_not_before_their_time(make_selector: SelectorFactory) -> None:
    async def main() -> tuple[list[int], bool]:
        loop: Any = asyncio.get_running_loop()
        rung: list[int] = []
        early: list[int] = []

        def ring(number: int, when: float) -> None:
            rung.append(number)
            if loop.time() + loop._clock_resolution < when:
                early.append(number)

        start = loop.time()
        timers = []
        for number in range(2000):
            when = start + number * 1e-5
            timers.append(loop.call_at(when, ring, number, when))
        for timer in timers[::2]:
            timer.cancel()
        while len(rung) < 1000:
            await asyncio.sleep(0.001)
        return rung, bool(early)

    assert run(make_selector, main()) == (list(range(1, 2000, 2)), False)


def test_a_time_limit_cancels_what_waits_for_a_socket(make_selector: SelectorFactory, pair: Pair) -> None:
    async def main() -> list[int]:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.get_running_loop().sock_recv(pair[0], 1)
        await asyncio.sleep(0)
        return registered()

    assert run(make_selector, main()) == []


@posix
def test_signals_end_a_wait(make_selector: SelectorFactory) -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        told: asyncio.Future[str] = waiter()
        loop.add_signal_handler(signal.SIGUSR1, resolve, told, "told")
        try:
            timer = threading.Timer(0.01, signal.raise_signal, [signal.SIGUSR1])  # while the loop waits without limit
            timer.start()
            name = await told
            timer.join()
        finally:
            assert loop.remove_signal_handler(signal.SIGUSR1)
        return name

    assert run(make_selector, main()) == "told"


@posix
def test_an_interrupt_cancels_the_main_task(make_selector: SelectorFactory) -> None:
    cleaned_up: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
        try:
            await waiter()
        finally:
            cleaned_up.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        run(make_selector, main())
    assert cleaned_up == ["cleaned up"]


def _watchers() -> list[str | None]:
    """Who asks how a child has ended: None is as asyncio has it. Python 3.14 leaves no choice."""
    names = ("ThreadedChildWatcher", "PidfdChildWatcher" if hasattr(os, "pidfd_open") else "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return [None, *(name for name in names if hasattr(asyncio, name))]


@pytest.fixture(params=_watchers())
def child_watcher(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param is None:
        yield None
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # since Python 3.12, which has a choice of its own
        watcher = getattr(asyncio, request.param)()
        asyncio.set_child_watcher(watcher)
    yield watcher
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.set_child_watcher(None)  # type: ignore[arg-type]  # the next who asks gets a new one


@posix
def test_programs_and_their_pipes(make_selector: SelectorFactory, child_watcher: Any) -> None:
    async def main() -> list[object]:
        if child_watcher is not None:
            child_watcher.attach_loop(asyncio.get_running_loop())  # before Python 3.12 one has to
        echo = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", "cat; echo err >&2; exit 3", stdin=-1, stdout=-1, stderr=-1
        )
        output, errors = await echo.communicate(bytes(LARGE))
        sleeper = await asyncio.create_subprocess_exec("/bin/sh", "-c", "exec sleep 60", stdin=-1)
        sleeper.terminate()
        outcome: list[object] = [len(output), errors, echo.returncode, await sleeper.wait()]
        assert registered() == []
        return outcome

    assert run(make_selector, main()) == [LARGE, b"err\n", 3, -signal.SIGTERM]


@posix
def test_pipes(make_selector: SelectorFactory) -> None:
    async def main() -> tuple[int, list[str]]:
        loop = asyncio.get_running_loop()
        reader, writer = os.pipe()
        reading, received = await loop.connect_read_pipe(Recorder, open(reader, "rb", buffering=0))  # noqa: SIM115
        writing, sent = await loop.connect_write_pipe(Recorder, open(writer, "wb", buffering=0))  # noqa: SIM115
        writing.write(bytes(LARGE))
        writing.write_eof()
        await asyncio.gather(received.lost, sent.lost)
        reading.close()
        return received.received, received.told

    assert run(make_selector, main()) == (LARGE, ["made", "eof", "lost"])


@posix
def test_the_writer_of_a_pipe_learns_that_its_reader_is_gone(make_selector: SelectorFactory) -> None:
    async def main() -> list[str]:
        reader, writer = os.pipe()
        loop = asyncio.get_running_loop()
        _, protocol = await loop.connect_write_pipe(Recorder, open(writer, "wb", buffering=0))  # noqa: SIM115
        os.close(reader)
        await protocol.lost
        return protocol.told

    assert run(make_selector, main())[-1].startswith("lost")


# ------------------------------------------------------------------------------------------ the end, and debug mode


def test_a_loop_is_closed_with_things_registered(make_selector: SelectorFactory, pair: Pair) -> None:
    selector = make_selector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.add_reader(pair[0], int)
    loop.add_writer(pair[1], int)
    loop.call_later(60, int)
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert len(selector.get_map()) == 0
    assert repr(selector).endswith(" closed>")
    loop.close()


def test_debug_mode(make_selector: SelectorFactory, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "asyncio")

    async def main() -> int:
        asyncio.get_running_loop().slow_callback_duration = 0.0
        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            answer = await exchange(*await asyncio.open_connection(*server.sockets[0].getsockname()), LARGE)
        with pytest.raises(ValueError, match="non-blocking"), socket.socket() as blocking:
            await asyncio.get_running_loop().sock_recv(blocking, 1)
        return answer

    assert run(make_selector, main(), debug=True) == LARGE
    assert any(message.startswith("Executing ") for message in caplog.messages)


# ----------------------------------------------------------------------------------- compared with the standard library


async def _closed_socket(loop: Any, pair: Pair) -> None:
    with socket.socket() as closed:
        pass
    loop.add_reader(closed, int)


async def _of_a_transport(loop: Any, pair: Pair) -> None:
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=pair[0].dup())
    try:
        loop.add_reader(transport.get_extra_info("socket").fileno(), int)
    finally:
        transport.close()
        await asyncio.sleep(0)


async def _regular_file(loop: Any, pair: Pair) -> str:
    told: asyncio.Future[str] = waiter()
    with open(__file__, "rb") as file:
        loop.add_reader(file, resolve, told, "ready")
        try:
            return await told
        finally:
            loop.remove_reader(file)


async def _reset(loop: Any, pair: Pair) -> bytes:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        client.setblocking(False)
        peer, _ = listener.accept()
        receiving = asyncio.ensure_future(loop.sock_recv(client, 1))
        await asyncio.sleep(0)
        reset(peer)
        received: bytes = await receiving
        return received


async def _unknown(loop: Any, pair: Pair) -> list[bool]:
    return [loop.remove_reader(pair[0]), loop.remove_writer(pair[0].fileno())]


async def _lost_peer(loop: Any, pair: Pair) -> list[str]:
    told: list[str] = []
    one, other = socket.socketpair()
    with one:
        one.setblocking(False)
        loop.add_reader(one, told.append, "readable")
        loop.add_writer(one, told.append, "writable")
        other.close()
        while len(set(told)) < 2:
            await asyncio.sleep(0)
        loop.remove_reader(one)
        loop.remove_writer(one)
    return sorted(set(told))


SCENARIOS: dict[str, Callable[[Any, Pair], Awaitable[object]]] = {
    "a closed socket": _closed_socket,
    "what a transport has": _of_a_transport,
    "a regular file": _regular_file,
    "a connection that is reset": _reset,
    "what was never registered": _unknown,
    "a peer that is gone": _lost_peer,
}


NO_DESCRIPTORS = {"a negative number": -1, "a string": "1", "none": None, "an object": object()}


def outcome_of(make_selector: SelectorFactory, scenario: Coroutine[Any, Any, object]) -> object:
    try:
        return run(make_selector, scenario)
    except Exception as error:
        return type(error), getattr(error, "errno", None)


def counterpart(case: Case) -> SelectorFactory:
    """The standard library's selector on the same system call, as far as this machine has it."""
    theirs: SelectorFactory = getattr(selectors, f"{case.call.capitalize()}Selector", selectors.SelectSelector)
    return theirs


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_happens_is_what_happens_on_the_standard_library_s(
    case: Case, make_selector: SelectorFactory, pair: Pair, name: str
) -> None:
    async def main() -> object:
        return await SCENARIOS[name](asyncio.get_running_loop(), pair)

    if (case.call, name) == ("kqueue", "a regular file"):
        # kqueue itself says of a file that it is readable until its end, where who waits would wait for ever.
        expected: object = (PermissionError, errno.EPERM)
    else:
        expected = outcome_of(counterpart(case), main())
    assert outcome_of(make_selector, main()) == expected


@pytest.mark.parametrize("name", NO_DESCRIPTORS)
def test_what_is_no_descriptor_is_refused_as_on_the_standard_library_s(
    case: Case, make_selector: SelectorFactory, name: str
) -> None:
    async def main() -> None:
        asyncio.get_running_loop().add_reader(NO_DESCRIPTORS[name], int)  # type: ignore[arg-type]

    outcome = outcome_of(make_selector, main())
    assert outcome == outcome_of(counterpart(case), main())
    assert outcome == (ValueError, None)


# ------------------------------------------------------------------------------ better than with the standard library


@posix
def test_a_number_that_is_closed_is_refused_when_it_is_registered(make_selector: SelectorFactory) -> None:
    async def main() -> None:
        number = os.dup(0)
        os.close(number)
        with pytest.raises(OSError, match=f"Errno {errno.EBADF}"):
            asyncio.get_running_loop().add_reader(number, int)
        assert registered() == []

    run(make_selector, main())


@posix
def test_a_descriptor_that_is_closed_while_it_is_waited_for_does_not_end_the_loop(
    make_selector: SelectorFactory,
) -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        one, other = socket.socketpair()
        with other:
            again = other.dup()  # now, as it would get the number that becomes free
            loop.add_reader(one, lambda: loop.remove_reader(one))
            one.close()  # behind the loop's back
            _, writer = await asyncio.open_connection(sock=again)
            writer.close()
            await asyncio.sleep(0.001)
            loop.remove_reader(one)
        return len(registered())

    assert run(make_selector, main()) == 0


@posix
def test_a_closed_descriptor_that_has_a_duplicate_does_not_keep_the_loop_busy(make_selector: SelectorFactory) -> None:
    selector = make_selector()
    select, calls = selector.select, []

    def counted(timeout: float | None = None) -> Any:
        calls.append(timeout)
        return select(timeout)

    selector.select = counted

    async def main() -> int:
        loop = asyncio.get_running_loop()
        one, other = socket.socketpair()
        with other:
            loop.add_reader(one, int)
            duplicate = os.dup(one.fileno())
            number = one.detach()
            os.close(number)
            loop.remove_reader(number)
            other.send(b"x")
            calls.clear()
            await asyncio.sleep(0.05)
            os.close(duplicate)
        return len(calls)

    assert run(lambda: selector, main()) < 20  # with selectors.EpollSelector it is some thousand


@pytest.mark.only("select")
@posix
def test_a_descriptor_that_select_cannot_hold_is_refused_and_the_loop_goes_on(make_selector: SelectorFactory) -> None:
    import fcntl

    async def main() -> str:
        loop = asyncio.get_running_loop()
        one, other = socket.socketpair()
        with one, other, open_files(2048):
            high = fcntl.fcntl(one.fileno(), fcntl.F_DUPFD_CLOEXEC, 1500)
            try:
                with pytest.raises(ValueError, match="FD_SETSIZE"):
                    loop.add_reader(high, int)
                return await asyncio.sleep(0.001, "goes on")
            finally:
                os.close(high)

    assert run(make_selector, main()) == "goes on"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_takes_nothing_from_its_parent(make_selector: SelectorFactory, pair: Pair) -> None:
    one, other = pair

    async def main() -> str:
        loop = asyncio.get_running_loop()
        called: asyncio.Future[str] = waiter()
        loop.add_reader(one, resolve, called, "called")
        in_child(lambda: assert_(loop.remove_reader(one)))
        other.send(b"x")
        name = await called
        loop.remove_reader(one)
        return name

    assert run(make_selector, main()) == "called"


def assert_(condition: object) -> None:
    assert condition
