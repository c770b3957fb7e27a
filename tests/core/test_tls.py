"""TLS: the handshake, the bytes and the end of a stream, against OpenSSL at the other end."""

import shutil
import socket as system_socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme

import flowno
from flowno import BusyResourceError, ClosedResourceError, EventLoop, SocketHandle, TaskCancelled, sleep, spawn
from flowno.core.event_loop.selectors import TLSSocketHandle

pytestmark = pytest.mark.usefixtures("backend")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def echo(connection: ssl.SSLSocket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


@contextmanager
def peer(talk: Callable[[system_socket.socket], None]) -> Iterator[tuple[str, int]]:
    """A thread that accepts one connection and talks to it by blocking calls; gives the address."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(20)
            talk(connection)

    with system_socket.create_server(("localhost", 0)) as listener:
        listener.settimeout(20)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield "localhost", listener.getsockname()[1]
        finally:
            thread.join()


@contextmanager
def tls_peer(context: ssl.SSLContext, talk: Callable[[ssl.SSLSocket], None]) -> Iterator[tuple[str, int]]:
    """As ``peer``, through TLS; a client that breaks off is no failure of the peer's."""

    def serve(connection: system_socket.socket) -> None:
        try:
            with context.wrap_socket(connection, server_side=True) as tls:
                talk(tls)
        except (ssl.SSLError, ConnectionError):
            pass

    with peer(serve) as address:
        yield address


def client(context: ssl.SSLContext, server_hostname: str | None = "localhost") -> TLSSocketHandle:
    return flowno.socket(use_tls=True, ssl_context=context, server_hostname=server_hostname)


def test_connects_and_echoes_through_openssl_s_server(
    authority: trustme.CA, client_context: ssl.SSLContext, tmp_path: Path, free_port: int
) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl command on this machine")
    certificate = authority.issue_cert("localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    command = [openssl, "s_server", "-accept", f"localhost:{free_port}", "-cert", "server.pem", "-rev", "-naccept", "1"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as server:
        assert server.stdout is not None
        for line in server.stdout:
            if line.startswith(b"ACCEPT"):
                break

        async def main() -> bytes:
            with client(client_context) as handle:
                await flowno.connect(handle, ("localhost", free_port))
                await handle.sendAll(b"Hello\n")
                answer = b""
                while not answer.endswith(b"\n"):
                    answer += await handle.recv(100)
                return answer

        try:
            assert flowno.run(main()) == b"olleH\n"
        finally:
            server.kill()


def test_the_blocking_connect_includes_the_handshake(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def main(address: tuple[str, int]) -> bytes:
        with client(client_context) as handle:
            handle.connect(address)
            await handle.sendAll(b"hello")
            return await handle.recv(100)

    with tls_peer(server_context, echo) as address:
        assert flowno.run(main(address)) == b"hello"


def test_the_host_that_is_connected_to_is_the_one_that_is_verified(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def main(name: str, address: tuple[str, int]) -> None:
        with client(client_context, server_hostname=None) as handle:
            await flowno.connect(handle, (name, address[1]))
            assert handle.server_hostname == name

    with tls_peer(server_context, echo) as address:
        flowno.run(main("localhost", address))
    with tls_peer(server_context, echo) as address, pytest.raises(ssl.SSLCertVerificationError, match="127.0.0.1"):
        flowno.run(main("127.0.0.1", address))


@pytest.mark.parametrize("blocking", [True, False])
def test_an_untrusted_certificate_is_refused_and_the_handle_closed(
    server_context: ssl.SSLContext, blocking: bool
) -> None:
    async def main(address: tuple[str, int]) -> None:
        with flowno.socket(use_tls=True, server_hostname="localhost") as handle:

            async def connect() -> None:
                if blocking:
                    handle.connect(address)
                else:
                    await flowno.connect(handle, address)

            with pytest.raises(ssl.SSLCertVerificationError):
                await connect()
            with pytest.raises(ClosedResourceError):
                await handle.sendAll(b"secret")

    with tls_peer(server_context, echo) as address:
        flowno.run(main(address))


def test_a_handshake_that_stalls_holds_up_no_other_task(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    go_on = threading.Event()
    steps = []

    def stall(connection: system_socket.socket) -> None:
        assert go_on.wait(20)
        with server_context.wrap_socket(connection, server_side=True) as tls:
            echo(tls)

    async def busy() -> None:
        for step in range(100):
            await sleep(0)
            steps.append(step)
        go_on.set()

    async def main(address: tuple[str, int]) -> None:
        with client(client_context) as handle:
            other = await spawn(busy())
            await flowno.connect(handle, address)
            assert len(steps) == 100
            await other.join()

    with peer(stall) as address:
        flowno.run(main(address))


def test_a_handshake_has_a_time_limit(client_context: ssl.SSLContext) -> None:
    async def main(address: tuple[str, int]) -> None:
        with client(client_context) as handle:
            handle.handshake_timeout = 0.01
            with pytest.raises(TimeoutError, match="handshake_timeout, 0.01 s"):
                await flowno.connect(handle, address)
            assert handle.fileno() == -1
        with client(client_context) as handle:
            handle.connect_timeout = 0.05
            with pytest.raises(TimeoutError, match="TLS handshake with .* connect_timeout, 0.05 s"):
                handle.connect(address)
            assert handle.fileno() == -1

    with system_socket.create_server(("localhost", 0)) as listener:  # whose backlog connects, and which never answers
        flowno.run(main(("localhost", listener.getsockname()[1])))


def test_a_cancelled_handshake_closes_the_connection(client_context: ssl.SSLContext) -> None:
    async def main() -> None:
        with flowno.socket() as listener:
            listener.bind(("localhost", 0))
            listener.listen()
            handle = client(client_context)
            task = await spawn(flowno.connect(handle, listener.getsockname()))
            connection, _ = await listener.accept()
            with connection:
                assert await connection.recv(1) == b"\x16"  # a handshake record, RFC 8446 section 5.1
                await task.cancel()
                assert task.is_cancelled
                assert handle.fileno() == -1
                while await connection.recv(10_000):
                    pass

    flowno.run(main())


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
    turns = []

    async def count_turns() -> None:
        while True:
            await sleep(0)
            turns.append(None)

    async def main(address: tuple[str, int]) -> None:
        with client(client_context) as handle:
            await flowno.connect(handle, address)
            assert await handle.recv(1) == b"x"
            counter = await spawn(count_turns())
            before = len(turns)
            for _ in range(50):
                assert await handle.recv(1) == b"x"
            assert len(turns) == before
            for _ in range(200):
                assert await handle.recv(1) == b"x"
            assert len(turns) > before  # and yet the others have their turn
            await counter.cancel()

    with tls_peer(server_context, lambda tls: tls.sendall(b"x" * 1000)) as address:
        flowno.run(main(address))


def test_a_stream_that_is_cut_off_is_no_end_of_stream(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    def cut_off(tls: ssl.SSLSocket) -> None:
        tls.sendall(b"half a mess")
        system_socket.socket(fileno=tls.detach()).close()

    def say_goodbye(tls: ssl.SSLSocket) -> None:
        tls.sendall(b"all of it")
        tls.unwrap()

    async def main(address: tuple[str, int]) -> bytes:
        with client(client_context) as handle:
            await flowno.connect(handle, address)
            received = b""
            while data := await handle.recv(100):
                received += data
            assert await handle.recv(100) == b""
            return received

    with tls_peer(server_context, say_goodbye) as address:
        assert flowno.run(main(address)) == b"all of it"
    with tls_peer(server_context, cut_off) as address, pytest.raises(ssl.SSLEOFError):
        flowno.run(main(address))


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


def test_an_operation_on_a_closed_handle_says_so(client_context: ssl.SSLContext) -> None:
    async def main() -> None:
        handle = client(client_context)
        handle.close()
        handle.close()
        for operation in (handle.recv(1), handle.send(b"x"), handle.sendAll(b"x"), handle.recv_into(bytearray(1))):
            with pytest.raises(ClosedResourceError):
                await operation

    flowno.run(main())


def test_tls_settings_without_tls_are_refused(client_context: ssl.SSLContext) -> None:
    with pytest.raises(ValueError, match="use_tls=True"):
        flowno.socket(ssl_context=client_context)
    with pytest.raises(ValueError, match="use_tls=True"):
        flowno.socket(server_hostname="localhost")


def test_socket_makes_either_handle(client_context: ssl.SSLContext) -> None:
    with flowno.socket() as plain, client(client_context) as tls:
        assert type(plain) is SocketHandle
        assert type(tls) is TLSSocketHandle
        assert tls.ssl_context is client_context


# -------------------------------------------------------------------------------------------- threads, loops and turns


def test_closing_from_another_thread_leaves_tls_to_the_thread_of_the_loop(
    server_context: ssl.SSLContext, authority: trustme.CA
) -> None:
    """OpenSSL's objects are not made for two threads at once."""
    goodbyes: list[int] = []

    class Object(ssl.SSLObject):
        def unwrap(self) -> None:
            goodbyes.append(threading.get_ident())
            super().unwrap()

    context = ssl.create_default_context()
    context.sslobject_class = Object
    authority.configure_trust(context)
    waits = threading.Event()

    async def main(address: tuple[str, int]) -> None:
        with client(context) as handle:
            await flowno.connect(handle, address)
            reader = await spawn(handle.recv(1))
            closer = threading.Thread(target=lambda: waits.wait(20) and handle.close())
            closer.start()
            waits.set()
            with pytest.raises(ClosedResourceError):
                await reader.join()
            closer.join()

    with tls_peer(server_context, echo) as address:
        flowno.run(main(address))
    assert goodbyes == [threading.get_ident()]


@pytest.mark.parametrize("connected", [False, True], ids=["by connect", "of a connected socket"])
def test_directions_are_owned_by_the_handshake_and_after_it_in_another_loop_than_before(
    connected: bool, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """The loop that knew the handle before lives on, in a thread of its own."""
    used, go_on = threading.Event(), threading.Event()

    def answer(connection: system_socket.socket) -> None:
        assert go_on.wait(20)
        with (
            suppress(ssl.SSLError, ConnectionError),  # of a client that breaks off
            server_context.wrap_socket(connection, server_side=True) as tls,
        ):
            echo(tls)

    async def use(handle: TLSSocketHandle) -> None:
        with pytest.raises(OSError if connected else TypeError):
            await flowno.connect(handle, "no address")
        used.set()
        try:
            await sleep(float("inf"))
        except TaskCancelled:
            pass

    async def main(handle: TLSSocketHandle, address: tuple[str, int]) -> None:
        begin = handle.sendAll(b"hello") if connected else flowno.connect(handle, address)
        beginner = await spawn(begin)
        for operation in (handle.send(b"x"), handle.sendAll(b"x"), flowno.connect(handle, address)):
            with pytest.raises(BusyResourceError):
                await operation
        go_on.set()
        await beginner.join()
        if not connected:
            await handle.sendAll(b"hello")
        assert await handle.recv(9) == b"hello"
        reader = await spawn(handle.recv(9))
        await sleep(0)
        with pytest.raises(BusyResourceError):
            await handle.recv(9)
        await handle.sendAll(b"again")
        assert await reader.join() == b"again"

    with peer(answer) as address, EventLoop() as loop:
        if connected:
            handle = TLSSocketHandle(system_socket.create_connection(address), client_context, "localhost")
        else:
            handle = client(client_context)
        with handle:
            user = use(handle)
            thread = threading.Thread(target=loop.run_until_complete, args=(user,))
            thread.start()
            try:
                assert used.wait(20)
                flowno.run(main(handle, address))
            finally:
                go_on.set()
                loop.cancel(user)
                thread.join(20)


class Sink(system_socket.socket):
    """Once it is told to, it takes whatever is sent, as a fast network does."""

    swallows = False

    def send(self, data: Any, *flags: int) -> int:
        return memoryview(data).nbytes if self.swallows else super().send(data, *flags)


def test_a_large_send_that_never_has_to_wait_gives_way_to_the_others(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await sleep(0)

    async def main(address: tuple[str, int]) -> None:
        with Sink() as sink, TLSSocketHandle(sink, client_context, "localhost") as handle:
            await flowno.connect(handle, address)
            other = await spawn(take_turns())
            sink.swallows = True
            before = turns
            await handle.sendAll(bytes(3 * 64 * 65536))
            assert 2 <= turns - before <= 6
            await other.cancel()

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


def test_a_send_whose_handshake_is_cancelled_has_sent_nothing(client_context: ssl.SSLContext) -> None:
    async def main() -> None:
        one, other = system_socket.socketpair()
        with other, TLSSocketHandle(one, client_context, "localhost") as handle:
            handle.bytes_sent = 7  # as of a send before
            sender = await spawn(handle.sendAll(b"data"))
            await sender.cancel()
            assert handle.bytes_sent == 0

    flowno.run(main())
