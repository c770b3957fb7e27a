"""TLS: peers that are not who they should be, or do not keep to the rules."""

import socket as system_socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trustme

import flowno
from flowno import SocketHandle, TaskHandle, TruncatedStreamError, spawn, start_tls
from flowno.core.event_loop.selectors import TLSSocketHandle
from tests.support import wine
from tests.support.loopback import receive, reset, resets_at_close, tcp_pair
from tests.support.tls import VERSIONS, client, client_context_of, establish, peer, server_context_of, tls_pair

pytestmark = pytest.mark.usefixtures("backend")


NOW = datetime.now(UTC)


@contextmanager
def bystanders(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> Iterator[Callable[[], Any]]:
    """Another connection in the same loop, which must go on as if nothing had happened."""
    with tls_pair(server_context, client_context) as (one, other):

        async def talk() -> None:
            server = await spawn(other.sendAll(b"undisturbed"))
            assert await receive(one, 11) == b"undisturbed"
            await server.join()

        yield talk


async def outcome_of(task: TaskHandle[Any]) -> BaseException | None:
    try:
        await task.join()
    except Exception as error:
        return error
    return None


async def shake_hands(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, name: str = "localhost"
) -> tuple[BaseException | None, BaseException | None, bool]:
    """What the client and the server get, and whether what they used is closed."""
    one, other = system_socket.socketpair()
    with (
        TLSSocketHandle(one, client_context, name) as client_end,
        TLSSocketHandle(other, server_context, None, server_side=True) as server_end,
    ):

        async def ask() -> None:
            await client_end.sendAll(b"question")
            await client_end.recv(9)

        async def answer() -> None:
            await server_end.recv(9)
            await server_end.sendAll(b"answer")

        server, asker = await spawn(answer()), await spawn(ask())
        return await outcome_of(asker), await outcome_of(server), client_end.fileno() == server_end.fileno() == -1


@pytest.mark.not_under_faults(reason="TLS says goodbye, or why it fails, only as far as the socket takes it at once")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other.example", "Hostname mismatch, certificate is not valid for 'other.example'"),
        ("127.0.0.1", "IP address mismatch"),
        ("expired.example", "certificate has expired"),
        ("tomorrow.example", "certificate is not yet valid"),
        ("stranger.example", "unable to get local issuer certificate"),
        ("self-signed.example", "self-signed certificate"),
    ],
)
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_a_certificate_that_proves_nothing_is_refused(
    authority: trustme.CA,
    server_context: ssl.SSLContext,
    client_context: ssl.SSLContext,
    name: str,
    message: str,
    version: ssl.TLSVersion,
) -> None:
    if name == "expired.example":
        bad = server_context_of(authority, name, not_before=NOW - timedelta(2), not_after=NOW - timedelta(1))
    elif name == "tomorrow.example":
        bad = server_context_of(authority, name, not_before=NOW + timedelta(1), not_after=NOW + timedelta(2))
    elif name == "stranger.example":
        bad = server_context_of(trustme.CA(), name)
    elif name == "self-signed.example":
        bad = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        stranger = trustme.CA()
        with stranger.private_key_pem.tempfile() as key, stranger.cert_pem.tempfile() as certificate:
            bad.load_cert_chain(certificate, key)
    else:
        bad = server_context_of(authority)
    bad.maximum_version = version

    async def main() -> None:
        with bystanders(server_context, client_context) as undisturbed:
            await undisturbed()
            at_client, at_server, closed = await shake_hands(bad, client_context, name)
            assert isinstance(at_client, ssl.SSLCertVerificationError)
            assert message in str(at_client)
            assert "in the TLS handshake of <TLSSocketHandle fd=" in str(at_client)
            assert isinstance(at_server, (ssl.SSLError, ConnectionError))
            assert "ALERT" in str(at_server)  # the server learns why
            assert closed or version is ssl.TLSVersion.TLSv1_3
            await undisturbed()

    flowno.run(main())


@pytest.mark.not_under_faults(reason="TLS says goodbye, or why it fails, only as far as the socket takes it at once")
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
@pytest.mark.parametrize("certificate", ["none", "a stranger's"])
def test_a_client_that_does_not_prove_who_it_is_is_refused(
    authority: trustme.CA, client_context: ssl.SSLContext, certificate: str, version: ssl.TLSVersion
) -> None:
    demanding = server_context_of(authority)
    demanding.maximum_version = version
    demanding.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(demanding)
    suspect = client_context_of(authority)
    if certificate == "a stranger's":
        trustme.CA().issue_cert("stranger@example.org").configure_cert(suspect)

    async def main() -> None:
        at_client, at_server, _ = await shake_hands(demanding, suspect)
        expected = "peer did not return a certificate" if certificate == "none" else "unable to get local issuer"
        assert isinstance(at_server, ssl.SSLError)
        assert expected in str(at_server)
        assert isinstance(at_client, ssl.SSLError)
        assert "alert" in str(at_client)

    flowno.run(main())


@pytest.mark.not_under_faults(reason="TLS says goodbye, or why it fails, only as far as the socket takes it at once")
def test_two_that_have_no_version_in_common_both_learn_of_it(authority: trustme.CA) -> None:
    old, new = server_context_of(authority), client_context_of(authority)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    new.minimum_version = ssl.TLSVersion.TLSv1_3

    async def main() -> None:
        at_client, at_server, closed = await shake_hands(old, new)
        assert isinstance(at_client, ssl.SSLError)
        assert "protocol version" in str(at_client)
        assert isinstance(at_server, ssl.SSLError)
        assert closed

    flowno.run(main())


GREETINGS = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2p1\r\n",
    "SMTP": b"220 mail.example ESMTP\r\n",
    "zeroes": bytes(100),
}


@pytest.mark.not_under_faults(reason="TLS says goodbye, or why it fails, only as far as the socket takes it at once")
@pytest.mark.parametrize("protocol", GREETINGS)
@pytest.mark.parametrize("server_side", [True, False], ids=["at a TLS port", "to a TLS client"])
def test_who_speaks_plain_text_to_tls_is_named(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, server_side: bool, protocol: str
) -> None:
    async def main() -> None:
        one, other = system_socket.socketpair()
        context = server_context if server_side else client_context
        with (
            bystanders(server_context, client_context) as undisturbed,
            SocketHandle(other) as plain,
            TLSSocketHandle(one, context, None if server_side else "localhost", server_side=server_side) as handle,
        ):
            await plain.sendAll(GREETINGS[protocol])
            with pytest.raises(ssl.SSLError) as caught:
                await handle.recv(100)
            assert f"does not speak TLS, what it sends begins with {GREETINGS[protocol][:16]!r}" in str(caught.value)
            assert handle.fileno() == -1
            while await plain.recv(65536):  # an alert, and the end
                pass
            await undisturbed()

    flowno.run(main())


def test_tls_to_a_plain_port_is_named_by_the_blocking_connect_too(client_context: ssl.SSLContext) -> None:
    def answer(connection: system_socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
        while connection.recv(65536):
            pass

    async def main(address: tuple[str, int]) -> None:
        with client(client_context) as handle:
            with pytest.raises(ssl.SSLError, match=r"does not speak TLS.*b'HTTP/1.0 400 Bad'") as caught:
                handle.connect(address)
            assert caught.value.reason == "WRONG_VERSION_NUMBER"
            assert handle.fileno() == -1

    with peer(answer) as address:
        flowno.run(main(address))


@pytest.mark.parametrize("when", ["at once", "after the first message"])
@pytest.mark.parametrize("how", ["closes", "resets"])
@pytest.mark.parametrize("server_side", [True, False], ids=["a client", "a server"])
def test_a_peer_that_goes_in_the_middle_of_the_handshake(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, server_side: bool, how: str, when: str
) -> None:
    async def main() -> None:
        with bystanders(server_context, client_context) as undisturbed, tcp_pair() as (plain, under):
            context = server_context if server_side else client_context
            handle = TLSSocketHandle(
                under.socket, context, None if server_side else "localhost", server_side=server_side
            )
            with handle:
                task = await spawn(handle.recv(1))
                await undisturbed()
                if when != "at once":
                    # A ClientHello, or the beginning of what could be a ServerHello: RFC 8446 section 4.
                    await plain.sendAll(b"\x16\x03\x03\x02\x00" + bytes([1 if server_side else 2, 0, 1, 252]))
                if how == "resets":
                    resets_at_close(plain)
                plain.close()
                error = await outcome_of(task)
                if how == "closes" and server_side:
                    assert isinstance(error, TruncatedStreamError)
                    assert "closed the connection during the TLS handshake" in str(error)
                else:
                    # An unread ClientHello is answered by a reset, too: close(2).
                    assert isinstance(error, (TruncatedStreamError, ConnectionError))
                assert handle.fileno() == -1
                await undisturbed()

    flowno.run(main())


@wine.takes_a_reset_for_an_end
def test_a_peer_that_resets_an_established_connection(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def main() -> None:
        with tcp_pair() as (one, other):
            starting = await spawn(start_tls(other, server_context, server_side=True))
            with await start_tls(one, client_context, server_hostname="localhost") as tls_one:
                tls_other = await starting.join()
                reader = await spawn(tls_one.recv(1))
                reset(tls_other.socket)
                tls_other.close()
                with pytest.raises(ConnectionResetError):
                    await reader.join()
                with pytest.raises((BrokenPipeError, ConnectionResetError)):
                    await tls_one.sendAll(b"x")

    flowno.run(main())


@pytest.mark.not_under_faults(reason="TLS says goodbye, or why it fails, only as far as the socket takes it at once")
def test_a_record_that_was_tampered_with_is_refused_and_the_peer_is_told(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    class Tampering(system_socket.socket):
        tampers = False

        def send(self, data: Any, *flags: int) -> int:
            if not self.tampers:
                return super().send(data, *flags)
            self.tampers = False
            return super().send(bytes(data)[:-1] + bytes([bytes(data)[-1] ^ 1]), *flags)

    async def main() -> None:
        one, other = system_socket.socketpair()
        sock = Tampering(fileno=one.detach())
        with (
            TLSSocketHandle(sock, client_context, "localhost") as handle,
            TLSSocketHandle(other, server_context, None, server_side=True) as server_end,
        ):
            await establish(handle, server_end)
            sock.tampers = True
            await handle.sendAll(b"pay 1 euro")
            for _ in range(2):
                with pytest.raises(ssl.SSLError):
                    await server_end.recv(100)
            for _ in range(2):
                with pytest.raises(ssl.SSLError, match="alert bad record mac"):
                    await handle.recv(100)

    flowno.run(main())


@pytest.mark.not_under_faults(reason="TLS says goodbye, or why it fails, only as far as the socket takes it at once")
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
@pytest.mark.parametrize("ended", ["not ended", "send_eof", "shutdown"])
def test_a_peer_that_fails_in_the_middle_of_its_answer_has_not_ended_it(
    ended: str, version: ssl.TLSVersion, authority: trustme.CA, client_context: ssl.SSLContext
) -> None:
    """OpenSSL reports a fatal alert once; then it takes the stream for one that has come to its end."""
    server_context = server_context_of(authority)
    server_context.maximum_version = version

    async def main() -> None:
        with tls_pair(server_context, client_context) as (handle, server_end):
            await establish(handle, server_end)
            tls = server_end.ssl_object
            assert tls is not None
            tls.write(b"half of the ans")
            server_end._incoming.write(b"\x17\x03\x03\x00\x20" + bytes(32))  # it gets what is no record
            with pytest.raises(ssl.SSLError):
                tls.read(1)
            assert server_end._flush()  # its answer and its alert come in one piece
            assert await handle.recv(1) == b"h"
            if ended == "send_eof":
                await handle.send_eof()
            elif ended == "shutdown":
                handle.shutdown(system_socket.SHUT_WR)
            assert await receive(handle, 14) == b"alf of the ans"
            for _ in range(3):
                with pytest.raises(ssl.SSLError, match="alert") as caught:
                    await handle.recv(100)
                assert caught.value.reason is not None
            buffer = bytearray(10)
            with pytest.raises(ssl.SSLError, match="alert"):
                await handle.recv_into(buffer)
            with pytest.raises(ssl.SSLError, match="alert"):
                await flowno.Stream(handle).read()
            with pytest.raises(ssl.SSLError, match="alert"):
                await handle.unwrap()

    flowno.run(main())


@pytest.mark.not_under_faults(reason="it takes one receive for one message")
@pytest.mark.parametrize("seconds", [float("nan"), None, "5"], ids=str)
def test_a_time_limit_that_is_none_is_an_error_before_anything_is_done(
    seconds: Any, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def main() -> None:
        one, other = flowno.socketpair()
        with one, other:
            with pytest.raises((TypeError, ValueError), match="handshake_timeout must be a number"):
                await start_tls(one, client_context, server_hostname="localhost", handshake_timeout=seconds)
            await one.sendAll(b"as if nothing had happened")
            assert await other.recv(5) == b"as if"
        with tls_pair(server_context, client_context) as (handle, _):
            handle.handshake_timeout = seconds
            with pytest.raises((TypeError, ValueError), match="handshake_timeout must be a number"):
                await handle.do_handshake()

    flowno.run(main())
