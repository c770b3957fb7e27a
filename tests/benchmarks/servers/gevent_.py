"""gevent: greenlets and sockets that seem to block, and the files of these for lines."""

import socket
import ssl
from collections.abc import Callable

import gevent.server
import gevent.socket
from gevent.ssl import SSLContext

from tests.benchmarks.servers import CHUNK

# SSLContext is for servers/__main__.py: the system's would make sockets that block.
__all__ = ["SSLContext", "churn", "echo", "lines", "serve", "sink", "tls_echo"]

Handler = Callable[[socket.socket, object], None]


def serve(listener: socket.socket, handler: Handler, context: ssl.SSLContext | None, loop: str) -> None:
    listening = gevent.socket.socket(fileno=listener.detach())
    options = {"ssl_context": context} if context is not None else {}
    gevent.server.StreamServer(listening, handler, **options).serve_forever()


def echo(connection: socket.socket, address: object) -> None:
    while data := connection.recv(CHUNK):
        connection.sendall(data)


def lines(connection: socket.socket, address: object) -> None:
    with connection.makefile("rb") as file:
        for line in file:
            connection.sendall(line)


tls_echo = echo


def churn(connection: socket.socket, address: object) -> None:
    connection.sendall(connection.recv(CHUNK))


def sink(connection: socket.socket, address: object) -> None:
    while connection.recv(CHUNK):
        pass
