"""TLS: the bytes of a stream, in both directions."""

import errno
import os
import shutil
import socket as system_socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

import flowno
from flowno import BusyResourceError, TaskCancelled, TaskHandle, spawn
from flowno.core.event_loop.selectors import TLSSocketHandle
from tests.conftest import ROOT
from tests.support.fairness import another_task
from tests.support.limits import connections_that_fit, open_files
from tests.support.loopback import LARGE, receive
from tests.support.tls import (
    VERSIONS,
    TLSEnds,
    client,
    client_context_of,
    echo,
    establish,
    server_context_of,
    tls_pair,
    tls_peer,
)
from tests.support.transfers import little_memory, receive_all, send_blocks

pytestmark = pytest.mark.usefixtures("backend")


def test_both_directions_carry_more_than_any_buffer_at_once(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    data = bytes(range(256)) * 8000

    async def main(address: tuple[str, int]) -> None:
        async def read() -> bytes:
            received = bytearray()
            while len(received) < len(data):
                received += await handle.recv(100_000)
            return bytes(received)

        with client(client_context) as handle:
            await flowno.connect(handle, address)
            reader = await spawn(read())
            with pytest.raises(BusyResourceError):
                await handle.recv(1)
            await handle.sendall(data)
            assert handle.bytes_sent == len(data)
            assert await reader.join() == data

    with tls_peer(server_context, echo) as address:
        flowno.run(main(address))


@pytest.mark.not_under_faults(reason="TLS says goodbye, or why it fails, only as far as the socket takes it at once")
def test_a_server_and_its_client_in_one_loop(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    async def serve(listener: TLSSocketHandle) -> None:
        connection, _ = await listener.accept()
        with connection:
            assert isinstance(connection, TLSSocketHandle)
            while data := await connection.recv(1000):
                await connection.sendAll(data)

    async def main() -> None:
        with TLSSocketHandle(system_socket.socket(), server_context, None) as listener:
            listener.bind(("localhost", 0))
            listener.listen()
            server = await spawn(serve(listener))
            with client(client_context) as handle:
                await flowno.connect(handle, ("localhost", listener.getsockname()[1]))
                assert await handle.send(b"abc") == 3
                buffer = bytearray(10)
                assert await handle.recv_into(buffer) == 3
                assert await handle.send(memoryview(b"de")) == 2
                assert await handle.recv_into(buffer, 1) == 1
                assert await handle.recv_into(buffer, 1) == 1
                assert buffer == b"ebc" + bytes(7)
                handle.shutdown(system_socket.SHUT_WR)
                await server.join()
                assert await handle.recv(10) == b""

    flowno.run(main())


def test_what_is_decrypted_already_comes_without_waiting(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def main(address: tuple[str, int]) -> None:
        with client(client_context) as handle:
            await flowno.connect(handle, address)
            assert await handle.recv(1) == b"x"
            async with another_task() as turns:
                before = turns.taken
                for _ in range(50):
                    assert await handle.recv(1) == b"x"
                assert turns.taken == before
                for _ in range(200):
                    assert await handle.recv(1) == b"x"
                assert turns.taken > before  # and yet the others have their turn

    with tls_peer(server_context, lambda tls: tls.sendall(b"x" * 1000)) as address:
        flowno.run(main(address))


@pytest.mark.not_under_faults(reason="TLS says goodbye, or why it fails, only as far as the socket takes it at once")
def test_after_a_cancelled_send_its_records_go_out_first(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    received = bytearray()
    go_on = threading.Event()

    def collect(tls: ssl.SSLSocket) -> None:
        assert go_on.wait(20)
        while data := tls.recv(65536):
            received.extend(data)
        tls.unwrap()

    async def main(address: tuple[str, int]) -> int:
        with client(client_context) as handle:
            await flowno.connect(handle, address)
            sender = await spawn(handle.sendAll(b"a" * 50_000_000))
            await sender.cancel()
            with pytest.raises(TaskCancelled):
                await sender.join()
            sent = handle.bytes_sent
            assert 0 < sent < 50_000_000
            go_on.set()
            await handle.sendAll(b"end")
            handle.shutdown(system_socket.SHUT_WR)
            assert await handle.recv(1) == b""
            return sent

    with tls_peer(server_context, collect) as address:
        sent = flowno.run(main(address))
    assert received == b"a" * sent + b"end"


class Sink(system_socket.socket):
    """Once it is told to, it takes whatever is sent, as a fast network does."""

    swallows = False

    def send(self, data: Any, *flags: int) -> int:
        return memoryview(data).nbytes if self.swallows else super().send(data, *flags)


@pytest.mark.not_under_faults(reason="it counts calls")
def test_a_large_send_that_never_has_to_wait_gives_way_to_the_others(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def main(address: tuple[str, int]) -> None:
        with Sink() as sink, TLSSocketHandle(sink, client_context, "localhost") as handle:
            await flowno.connect(handle, address)
            async with another_task() as turns:
                sink.swallows = True
                before = turns.taken
                await handle.sendAll(bytes(3 * 64 * 65536))
                assert 2 <= turns.taken - before <= 6

    with tls_peer(server_context, echo) as address:
        flowno.run(main(address))


def test_bytes_sent_is_that_of_the_last_send_that_was_not_refused(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    go_on = threading.Event()

    def collect(tls: ssl.SSLSocket) -> None:
        assert go_on.wait(20)
        while tls.recv(65536):
            pass

    async def main(address: tuple[str, int]) -> None:
        with client(client_context) as handle:
            await flowno.connect(handle, address)
            await handle.sendAll(b"first")
            assert handle.bytes_sent == 5
            sender = await spawn(handle.sendAll(bytes(50_000_000)))
            sent = handle.bytes_sent
            assert 5 < sent < 50_000_000
            with pytest.raises(BusyResourceError):
                await handle.sendAll(b"refused")
            assert handle.bytes_sent == sent
            go_on.set()
            await sender.join()
            assert handle.bytes_sent == 50_000_000

    with tls_peer(server_context, collect) as address:
        flowno.run(main(address))


class Counting(system_socket.socket):
    """Counts the system calls that carry bytes."""

    receives = sends = 0

    def recv(self, size: int, *flags: int) -> bytes:
        data = super().recv(size, *flags)
        self.receives += 1
        return data

    def send(self, data: Any, *flags: int) -> int:
        self.sends += 1
        return super().send(data, *flags)


@contextmanager
def counted_pair(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> Iterator[tuple[TLSSocketHandle, TLSSocketHandle, Counting, Counting]]:
    first, second = (Counting(fileno=end.detach()) for end in system_socket.socketpair())
    with (
        TLSSocketHandle(first, client_context, "localhost") as one,
        TLSSocketHandle(second, server_context, None, server_side=True) as other,
    ):
        yield one, other, first, second


@pytest.mark.not_under_faults(reason="it counts calls")
def test_records_leave_in_one_send_and_come_in_one_receive(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    data = bytes(50_000)  # four records

    async def main() -> None:
        with counted_pair(server_context, client_context) as (one, other, sending, receiving):
            await establish(one, other)
            sends, receives = sending.sends, receiving.receives
            await one.sendAll(data)
            assert sending.sends - sends == 1
            received = [await other.recv(65536) for _ in range(4)]
            assert b"".join(received) == data
            assert receiving.receives - receives == 1

    flowno.run(main())


@pytest.mark.not_under_faults(reason="it counts calls")
def test_an_exchange_costs_one_receive_and_one_send(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def echo_back(handle: TLSSocketHandle) -> None:
        while data := await handle.recv(1000):
            await handle.sendAll(data)

    async def main() -> None:
        with counted_pair(server_context, client_context) as (one, other, _, counted):
            server = await spawn(echo_back(other))
            for turn in range(20):
                if turn == 5:
                    sends, receives = counted.sends, counted.receives
                await one.sendAll(b"hello")
                assert await one.recv(1000) == b"hello"
            assert (counted.sends - sends, counted.receives - receives) == (15, 15)
            await one.send_eof()
            await server.join()

    flowno.run(main())


@pytest.mark.not_under_faults(reason="TLS says goodbye, or why it fails, only as far as the socket takes it at once")
def test_a_reader_never_waits_for_writability(authority: trustme.CA, server_context: ssl.SSLContext) -> None:
    class Talkative(ssl.SSLObject):
        """Has something to send whenever it reads, as for a key update: RFC 8446 section 4.6.3."""

        def read(self, *args: Any) -> Any:
            got = super().read(*args)
            self.write(b"!")
            return got

    context = client_context_of(authority)
    context.sslobject_class = Talkative

    async def main() -> None:
        with tls_pair(server_context, context) as (one, other):
            await establish(one, other)
            await other.sendAll(b"first")
            assert await one.recv(9) == b"first"
            assert await other.recv(1) == b"!"  # sent at once
            sender = await spawn(one.sendAll(bytes(LARGE)))  # until the socket takes no more
            await other.sendAll(b"second")
            assert await one.recv(9) == b"second"
            received = await receive(other, LARGE + 1)
            assert sorted(set(received)) == [0, ord("!")]
            assert received.count(b"!") == 1
            await sender.join()

    flowno.run(main())


def test_a_send_returns_when_the_system_has_all_of_it(tls_ends: TLSEnds) -> None:
    async def main() -> None:
        with tls_ends() as (one, other):
            await establish(one, other)
            complete = 0
            while (sender := await spawn(one.sendAll(bytes(50_000)))).is_finished:
                complete += 50_000
            await sender.cancel()
            one.socket.shutdown(system_socket.SHUT_WR)  # nothing that is still in our hands goes out
            assert await receive(other, complete) == bytes(complete)

    flowno.run(main())


@pytest.mark.not_under_faults(reason="TLS says goodbye, or why it fails, only as far as the socket takes it at once")
@pytest.mark.parametrize("somebody_reads", ["always", "never", "until it is cancelled"])
def test_a_peer_may_renegotiate_while_data_is_sent(
    authority: trustme.CA, client_context: ssl.SSLContext, tmp_path: Path, free_port: int, somebody_reads: str
) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl command on this machine")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    command = [openssl, "s_server", "-accept", f"localhost:{free_port}", "-cert", "server.pem", "-tls1_2"]

    async def main(server: subprocess.Popen[bytes]) -> None:
        assert server.stdin is not None
        with client(client_context) as handle:
            await flowno.connect(handle, ("localhost", free_port))
            reader: TaskHandle[bytes] | None = None
            for number in range(5):
                server.stdin.write(b"r\n")  # s_server takes it for: renegotiate
                server.stdin.flush()
                if reader is None:
                    await flowno.wait_readable(handle)
                    reader = await spawn(handle.recv(100))  # reads the request, and answers it
                writer = handle.sendAll(b"line %d\n" % number)
                if somebody_reads == "always":
                    await writer
                elif somebody_reads == "never":
                    await reader.cancel()
                    await writer
                else:
                    task = await spawn(writer)
                    await reader.cancel()
                    await task.join()
                if somebody_reads != "always":
                    reader = None
            await handle.sendAll(b"end\n")
            if reader is not None:
                await reader.cancel()

    with subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as server:
        try:
            assert server.stdout is not None
            for line in server.stdout:
                if line.startswith(b"ACCEPT"):
                    break
            flowno.run(main(server))
            lines = []
            for line in server.stdout:
                if line.startswith((b"line ", b"end")):
                    lines.append(line)
                if line.startswith(b"end"):
                    break
        finally:
            server.kill()
    assert lines == [b"line %d\n" % number for number in range(5)] + [b"end\n"]


def test_several_buffers_are_sent_as_one(tls_ends: TLSEnds) -> None:
    async def main() -> None:
        with tls_ends() as (one, other):
            sender = await spawn(one.sendmsg([b"several ", bytearray(b"buffers "), memoryview(b"here")]))
            assert await other.recv(100) == b"several buffers here"
            assert await sender.join() == 20
            sender = await spawn(one.send(bytes(100_000)))
            assert await receive(other, 65536) == bytes(65536)
            assert await sender.join() == 65536

    flowno.run(main())


def test_a_file_goes_through_tls(tls_ends: TLSEnds, tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(b"not this, " + b"but all of this" * 10_000)

    async def main() -> None:
        with tls_ends() as (one, other), open(tmp_path / "page", "rb") as file:
            sender = await spawn(one.sendfile(file, 10))
            assert await receive(other, 150_000) == b"but all of this" * 10_000
            assert await sender.join() == 150_000

    flowno.run(main())


def test_what_would_go_past_tls_is_refused(tls_ends: TLSEnds) -> None:
    async def main() -> None:
        with tls_ends() as (one, other):
            operations: list[Callable[[], Any]] = [
                lambda: one.recvfrom(9),
                lambda: one.recvfrom_into(bytearray(9)),
                lambda: one.recvmsg(9),
                lambda: one.recvmsg_into([bytearray(9)]),
                lambda: one.sendto(b"x", ("localhost", 1)),
                lambda: one.sendmsg([b"x"], [(1, 1, b"x")]),
                lambda: one.sendmsg([b"x"], (), 1),
                lambda: one.send_fds([b"x"], [0]),
                lambda: one.recv_fds(9, 1),
                lambda: one.dup(),
            ]
            refused = "would go past the TLS of <TLSSocketHandle|this system has no (send|recv)msg"
            for operation in operations:
                with pytest.raises(OSError, match=refused) as caught:
                    await operation()
                assert caught.value.errno == errno.EOPNOTSUPP
            sender = await spawn(one.sendAll(b"undisturbed"))
            assert await other.recv(20) == b"undisturbed"
            await sender.join()

    flowno.run(main())


def test_what_is_asked_for_is_checked(tls_ends: TLSEnds) -> None:
    async def main() -> None:
        with tls_ends() as (one, other):
            sender = await spawn(other.sendAll(b"data"))
            assert await one.recv(0) == b""
            await sender.join()
            with pytest.raises(ValueError, match="size should not be negative"):
                await one.recv(-1)
            with pytest.raises(TypeError, match="writable"):
                await one.recv_into(b"read-only")
            with pytest.raises(TypeError):
                await one.sendAll("text")  # type: ignore[arg-type]
            await one.sendAll(b"")
            assert await one.send(b"") == 0
            assert await one.recv(9) == b"data"

    flowno.run(main())


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_a_long_transfer_takes_no_more_memory_than_a_short_one(
    authority: trustme.CA, client_context: ssl.SSLContext, version: ssl.TLSVersion, transfer_size: int
) -> None:
    context = server_context_of(authority)
    context.maximum_version = version

    async def main() -> int:
        with tls_pair(context, client_context) as (one, other):

            async def send() -> None:
                await send_blocks(one, transfer_size)
                await one.send_eof()

            sender = await spawn(send())
            received = await receive_all(other)
            await sender.join()
            return received

    with little_memory():
        assert flowno.run(main()) == transfer_size


@contextmanager
def clients_elsewhere(port: int, number: int, authority: Path) -> Iterator[None]:
    """Clients in another process, which have all been served well by the end of the block."""
    clients = subprocess.Popen(
        [sys.executable, "-m", "tests.support.tls_clients", str(port), str(number), str(authority)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")]), "FLOWNO_SELECTOR": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with clients:
        try:
            yield
            printed, _ = clients.communicate(timeout=60)
            assert (clients.returncode, printed) == (0, "")
        except BaseException:
            clients.kill()
            print(clients.communicate()[0])
            raise


@pytest.mark.timeout(240)
@pytest.mark.not_under_faults(reason="a thousand connections take long where each call fails now and then")
@pytest.mark.not_in_debug_mode(reason="steps that are slow on a busy machine are reported")
def test_a_thousand_connections_are_served_at_once(
    backend: str, server_context: ssl.SSLContext, authority_file: Path
) -> None:
    """Every one is open before the first is served. With select a few less where many files are open."""
    others = 10  # the listener, the waker, the pipe to the clients, and what else may be opened meanwhile
    number = connections_that_fit(backend, 1000, others)
    assert number > (400 if sys.platform == "win32" else 900)
    arrived = flowno.CountdownLatch(number)

    async def serve(handle: TLSSocketHandle) -> None:
        with handle:
            await handle.do_handshake()
            arrived.count_down()
            await arrived.wait()
            while data := await handle.recv(1000):
                await handle.sendAll(data)

    async def main() -> None:
        with TLSSocketHandle(system_socket.socket(), server_context, None) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(number)
            with clients_elsewhere(listener.getsockname()[1], number, authority_file):
                async with flowno.timeout(120):
                    servers = [await spawn(serve((await listener.accept())[0])) for _ in range(number)]
                    for server in servers:
                        await server.join()

    with open_files(number + 200):
        flowno.run(main())
