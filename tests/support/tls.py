"""Both ends of a TLS connection: certificates of an authority of our own, and peers that are OpenSSL in a thread."""

import socket as system_socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import flowno
from flowno import spawn
from flowno.core.event_loop.tls import TLSSocketHandle

if TYPE_CHECKING:
    import trustme

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def server_context_of(authority: "trustme.CA", *names: str, **options: Any) -> ssl.SSLContext:
    """What a server needs that is known by these names; ``options`` as of ``trustme.CA.issue_cert``."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*(names or ("localhost",)), **options).configure_cert(context)
    return context


def client_context_of(*authorities: "trustme.CA") -> ssl.SSLContext:
    """What a client needs that trusts these authorities."""
    context = ssl.create_default_context()
    for authority in authorities:
        authority.configure_trust(context)
    return context


def client(context: ssl.SSLContext, server_hostname: str | None = "localhost") -> TLSSocketHandle:
    return flowno.socket(use_tls=True, ssl_context=context, server_hostname=server_hostname)


@contextmanager
def tls_pair(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, **options: Any
) -> Iterator[tuple[TLSSocketHandle, TLSSocketHandle]]:
    """A client and a server, connected, with the handshake before them; ``options`` are the client's."""
    one, other = system_socket.socketpair()
    with (
        TLSSocketHandle(one, client_context, "localhost", **options) as client_end,
        TLSSocketHandle(other, server_context, None, server_side=True) as server_end,
    ):
        yield client_end, server_end


#: As ``tls_pair`` for settings that are known already: it is given the options.
TLSEnds = Callable[..., AbstractContextManager[tuple[TLSSocketHandle, TLSSocketHandle]]]


async def establish(*ends: TLSSocketHandle) -> None:
    """Make the handshake, to which each end does its part."""
    tasks = [await spawn(end.do_handshake()) for end in ends]
    for task in tasks:
        await task.join()


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
