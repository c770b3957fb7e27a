"""TLS: how a connection begins, and what is agreed upon."""

import errno
import os
import shutil
import socket as system_socket
import ssl
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import trustme

import flowno
from flowno import (
    BusyResourceError,
    ClosedResourceError,
    EventLoop,
    SocketHandle,
    TaskCancelled,
    TaskHandle,
    sleep,
    spawn,
)
from flowno.core.event_loop.selectors import TLSSocketHandle
from tests.support.loopback import receive
from tests.support.tls import (
    VERSIONS,
    TLSEnds,
    client,
    client_context_of,
    echo,
    establish,
    peer,
    server_context_of,
    tls_pair,
    tls_peer,
)

pytestmark = pytest.mark.usefixtures("backend")


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


@pytest.mark.not_under_faults(reason="TLS says goodbye, or why it fails, only as far as the socket takes it at once")
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


def test_a_blocking_handshake_whose_connection_the_system_gives_up_is_no_matter_of_our_limit(
    client_context: ssl.SSLContext,
) -> None:
    class GivenUp(system_socket.socket):
        def recv(self, *args: int) -> bytes:
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    with (
        system_socket.create_server(("localhost", 0)) as listener,
        TLSSocketHandle(GivenUp(), client_context, "localhost") as handle,
    ):
        with pytest.raises(TimeoutError) as caught:
            handle.connect(listener.getsockname())
        assert caught.value.errno == errno.ETIMEDOUT
        assert "connect_timeout" not in str(caught.value)
        assert handle.fileno() == -1


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


def test_a_send_whose_handshake_is_cancelled_has_sent_nothing(client_context: ssl.SSLContext) -> None:
    async def main() -> None:
        one, other = system_socket.socketpair()
        with other, TLSSocketHandle(one, client_context, "localhost") as handle:
            handle.bytes_sent = 7  # as of a send before
            sender = await spawn(handle.sendAll(b"data"))
            await sender.cancel()
            assert handle.bytes_sent == 0

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


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_what_was_agreed_upon_can_be_asked_at_both_ends(
    authority: trustme.CA, client_context: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    context = server_context_of(authority)
    context.maximum_version = version

    async def main() -> None:
        with tls_pair(context, client_context) as (one, other):
            for handle in one, other:
                assert handle.version() is None
                assert handle.cipher() is None
                assert handle.ssl_object is None
                assert handle.session is None
                assert handle.compression() is handle.selected_alpn_protocol() is None
                assert not handle.session_reused
                with pytest.raises(ValueError, match="handshake is not done"):
                    handle.getpeercert()
            await establish(one, other)
            assert one.version() == other.version() == version.name.replace("_", ".")
            assert one.cipher() == other.cipher()
            assert one.compression() is None
            assert one.ssl_object is not None
            assert not one.session_reused
            certificate = one.getpeercert()
            assert isinstance(certificate, dict)
            assert certificate["subjectAltName"] == (("DNS", "localhost"),)
            assert isinstance(one.getpeercert(binary_form=True), bytes)
            assert other.getpeercert(binary_form=True) is None

    flowno.run(main())


def test_the_protocol_that_both_know_is_chosen(authority: trustme.CA) -> None:
    server_context, client_context = server_context_of(authority), client_context_of(authority)
    server_context.set_alpn_protocols(["h2", "http/1.1"])
    client_context.set_alpn_protocols(["spdy", "http/1.1"])

    async def main() -> None:
        with tls_pair(server_context, client_context) as (one, other):
            await establish(one, other)
            assert one.selected_alpn_protocol() == other.selected_alpn_protocol() == "http/1.1"

    flowno.run(main())


def test_a_server_chooses_its_certificate_by_the_name_that_is_asked_for(authority: trustme.CA) -> None:
    contexts = {name: server_context_of(authority, name) for name in ("one.example", "other.example")}
    asked: list[str] = []

    def choose(connection: ssl.SSLObject | ssl.SSLSocket, name: str, context: ssl.SSLContext) -> None:
        asked.append(name)
        connection.context = contexts[name]

    front = server_context_of(authority, "front.example")
    front.sni_callback = choose

    async def main(name: str) -> None:
        one, other = system_socket.socketpair()
        with (
            TLSSocketHandle(one, client_context_of(authority), name) as handle,
            TLSSocketHandle(other, front, None, server_side=True) as server_end,
        ):
            await establish(handle, server_end)

    for name in contexts:
        flowno.run(main(name))
    assert asked == list(contexts)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_a_session_is_resumed(authority: trustme.CA, version: ssl.TLSVersion) -> None:
    server_context, client_context = server_context_of(authority), client_context_of(authority)
    server_context.maximum_version = version

    async def talk(session: ssl.SSLSession | None) -> tuple[bool, ssl.SSLSession | None]:
        with tls_pair(server_context, client_context, session=session) as (one, other):
            assert one.session is session
            server = await spawn(other.sendAll(b"x"))
            assert await one.recv(1) == b"x"  # and, with TLS 1.3, what is to be resumed
            await server.join()
            assert one.session_reused == other.session_reused
            return one.session_reused, one.session

    async def main() -> None:
        reused, session = await talk(None)
        assert session is not None
        assert not reused
        reused, _ = await talk(session)
        assert reused

    flowno.run(main())


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_a_client_shows_its_certificate(authority: trustme.CA, version: ssl.TLSVersion) -> None:
    server_context, client_context = server_context_of(authority), client_context_of(authority)
    server_context.maximum_version = version
    server_context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(server_context)
    authority.issue_cert("somebody@example.org").configure_cert(client_context)

    async def main() -> None:
        with tls_pair(server_context, client_context) as (one, other):
            server = await spawn(other.recv(10))
            await one.sendAll(b"it is me")
            assert await server.join() == b"it is me"
            certificate = other.getpeercert()
            assert isinstance(certificate, dict)
            assert certificate["subjectAltName"] == (("email", "somebody@example.org"),)

    flowno.run(main())


def test_a_handle_of_which_both_directions_are_used_at_once_makes_one_handshake(tls_ends: TLSEnds) -> None:
    async def main() -> None:
        with tls_ends() as (one, other):
            readers = [await spawn(one.recv(9)), await spawn(other.recv(9))]
            writers = [await spawn(one.sendAll(b"to other")), await spawn(other.sendAll(b"to one"))]
            handshakes = [await spawn(end.do_handshake()) for end in (one, other, one)]
            assert [await reader.join() for reader in readers] == [b"to one", b"to other"]
            for task in writers + handshakes:
                await task.join()
            await one.do_handshake()  # it is done

    flowno.run(main())


def test_during_the_handshake_each_direction_has_one_owner_already(tls_ends: TLSEnds) -> None:
    async def main() -> None:
        with tls_ends() as (one, other):

            async def overtake() -> None:
                """Comes between the end of the handshake and the turn of those that wait for it."""
                await one.do_handshake()
                for operation in (one.recv(9), one.sendAll(b"x")):
                    with pytest.raises(BusyResourceError):
                        await operation

            overtaker = await spawn(overtake())
            reader = await spawn(one.recv(9))
            writer = await spawn(one.sendAll(b"the writer's"))
            for operation in (one.recv(9), one.recv_into(bytearray(9)), one.sendAll(b"x"), one.send(b"x")):
                with pytest.raises(BusyResourceError):
                    await operation
            assert await other.recv(20) == b"the writer's"
            await other.sendAll(b"answer")
            assert await reader.join() == b"answer"
            await writer.join()
            await overtaker.join()

    flowno.run(main())


@pytest.mark.not_under_faults(reason="it counts turns of the loop, or what is done in one of them")
def test_who_is_cancelled_while_another_task_makes_the_handshake_leaves_nothing_behind(tls_ends: TLSEnds) -> None:
    async def main() -> None:
        with tls_ends() as (one, other):
            late: TaskHandle[object]

            async def make_handshake() -> None:
                await one.do_handshake()
                late.cancel()  # the direction is the writer's by now, and it has not had its turn

            handshake = await spawn(make_handshake())
            reader = await spawn(one.recv(9))
            await reader.cancel()
            assert reader.is_cancelled
            reader = await spawn(one.recv(9))
            late = await spawn(one.sendAll(b"never sent"))
            await other.sendAll(b"hello")
            assert await reader.join() == b"hello"
            await handshake.join()
            assert late.is_finished or late.is_cancelled
            await one.sendAll(b"sent")
            expected = b"never sentsent" if late.is_finished else b"sent"
            assert await receive(other, len(expected)) == expected

    flowno.run(main())


@pytest.mark.not_under_faults(reason="TLS says goodbye, or why it fails, only as far as the socket takes it at once")
def test_who_waits_for_a_handshake_that_fails_learns_why(client_context: ssl.SSLContext) -> None:
    async def main() -> None:
        one, other = system_socket.socketpair()
        with SocketHandle(other) as plain, TLSSocketHandle(one, client_context, "localhost") as handle:
            handshake = await spawn(handle.do_handshake())
            reader = await spawn(handle.recv(9))
            await plain.sendAll(b"220 mail.example ESMTP\r\n")
            with pytest.raises(ssl.SSLError, match=r"does not speak TLS, what it sends begins with b'220 mail"):
                await handshake.join()
            with pytest.raises(ClosedResourceError, match=r"handshake, which another task was making, failed: .*220"):
                await reader.join()
            with pytest.raises(ClosedResourceError):
                await handle.recv(9)

    flowno.run(main())


def test_a_handshake_that_stalls_holds_up_neither_accept_nor_others(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def serve(connection: TLSSocketHandle) -> None:
        with connection:
            await connection.sendAll(await connection.recv(9))

    async def main() -> None:
        with (
            TLSSocketHandle(system_socket.socket(), server_context, None) as listener,
            flowno.socket() as silent,
            client(client_context) as handle,
        ):
            listener.handshake_timeout = 1  # within which the other one is served on a busy machine, too
            listener.shutdown_timeout = 7
            listener.bind(("localhost", 0))
            listener.listen()
            address = "localhost", listener.getsockname()[1]
            await flowno.connect(silent, address)
            connection, _ = await listener.accept()
            assert connection.shutdown_timeout == 7
            listener.handshake_timeout = 30
            stalled = await spawn(serve(connection))
            connecting = await spawn(flowno.connect(handle, address))
            connection, _ = await listener.accept()
            served = await spawn(serve(connection))
            await connecting.join()
            await handle.sendAll(b"hello")
            assert await handle.recv(9) == b"hello"
            await served.join()
            assert not stalled.is_error
            with pytest.raises(TimeoutError, match=r"TLS handshake of .* took longer than handshake_timeout, 1 s"):
                await stalled.join()
            assert await silent.recv(1) == b""  # nothing half open is left

    flowno.run(main())


def test_a_peer_that_sends_its_handshake_byte_by_byte_runs_into_the_time_limit(
    server_context: ssl.SSLContext,
) -> None:
    async def dribble(plain: SocketHandle) -> None:
        try:
            await plain.sendAll(b"\x16\x03\x01\x20\x00")  # a handshake record of 8 KiB, RFC 8446 section 5.1
            while True:
                await plain.sendAll(b"x")
                await sleep(0.001)
        except OSError:
            pass

    async def main() -> None:
        one, other = system_socket.socketpair()
        with SocketHandle(other) as plain, TLSSocketHandle(one, server_context, None, server_side=True) as handle:
            handle.handshake_timeout = 0.05
            dribbler = await spawn(dribble(plain))
            with pytest.raises(TimeoutError, match="handshake_timeout"):
                await handle.recv(1)
            await dribbler.join()

    flowno.run(main())


def test_a_time_limit_that_ends_in_the_moment_in_which_something_comes_still_ends(
    server_context: ssl.SSLContext,
) -> None:
    async def main() -> None:
        one, other = system_socket.socketpair()
        with other, TLSSocketHandle(one, server_context, None, server_side=True) as handle:
            handle.handshake_timeout = 0
            task = await spawn(handle.do_handshake())
            other.send(b"\x16\x03\x01\x20\x00")  # a part of a handshake record, RFC 8446 section 5.1
            with pytest.raises(TimeoutError, match="handshake_timeout, 0 s"):
                await task.join()

    flowno.run(main())


@pytest.mark.parametrize("operation", ["do_handshake", "recv", "sendAll"])
def test_a_cancelled_handshake_of_a_server_leaves_nothing_half_open(
    server_context: ssl.SSLContext, operation: str
) -> None:
    async def main() -> None:
        one, other = system_socket.socketpair()
        with SocketHandle(other) as plain, TLSSocketHandle(one, server_context, None, server_side=True) as handle:
            args = {"do_handshake": (), "recv": (1,), "sendAll": (b"x",)}[operation]
            task = await spawn(getattr(handle, operation)(*args))
            await sleep(0)
            await task.cancel()
            assert task.is_cancelled
            assert handle.fileno() == -1
            assert await plain.recv(1) == b""

    flowno.run(main())


def test_a_context_that_wants_a_name_gets_one(client_context: ssl.SSLContext) -> None:
    async def main() -> None:
        one, other = system_socket.socketpair()
        with other, TLSSocketHandle(one, client_context, None) as handle:
            with pytest.raises(ValueError, match="server_hostname"):
                await handle.sendAll(b"x")
            assert handle.fileno() == -1

    flowno.run(main())


def test_the_settings_must_be_an_sslcontext() -> None:
    one, other = system_socket.socketpair()
    with one, other, pytest.raises(TypeError, match="ssl_context must be an ssl.SSLContext, not 'verify'"):
        TLSSocketHandle(one, "verify", None)  # type: ignore[arg-type]
