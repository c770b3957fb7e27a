"""No framework: a loop around ``select.epoll``, a dict of the sockets, and non-blocking calls. The measure of all."""

import socket
import ssl
from collections.abc import Callable
from select import EPOLLIN, EPOLLOUT, epoll

from tests.benchmarks.servers import CHUNK

Serve = Callable[[socket.socket], None]


def serve(listener: socket.socket, function: Serve, context: ssl.SSLContext | None, loop: str) -> None:
    function(listener)


def echo(listener: socket.socket) -> None:
    poller = epoll()
    poller.register(listener.fileno(), EPOLLIN)
    connections: dict[int, socket.socket] = {}
    unsent: dict[int, memoryview] = {}  # of those that wait to be writable
    while True:
        for fd, _ in poller.poll():
            connection = connections.get(fd)
            if connection is None:
                _accept(listener, poller, connections)
                continue
            try:
                if fd in unsent:
                    data: bytes | memoryview = unsent[fd]
                else:
                    data = connection.recv(CHUNK)
                    if not data:
                        _close(fd, poller, connections, unsent)
                        continue
                try:
                    sent = connection.send(data)
                except BlockingIOError:
                    sent = 0
            except OSError:
                _close(fd, poller, connections, unsent)
                continue
            if sent < len(data):
                if fd not in unsent:
                    poller.modify(fd, EPOLLOUT)
                unsent[fd] = memoryview(data)[sent:]
            elif fd in unsent:
                del unsent[fd]
                poller.modify(fd, EPOLLIN)


def churn(listener: socket.socket) -> None:
    poller = epoll()
    poller.register(listener.fileno(), EPOLLIN)
    connections: dict[int, socket.socket] = {}
    while True:
        for fd, _ in poller.poll():
            connection = connections.get(fd)
            if connection is None:
                _accept(listener, poller, connections)
                continue
            try:
                connection.send(connection.recv(CHUNK))
            except OSError:
                pass
            _close(fd, poller, connections, {})


def sink(listener: socket.socket) -> None:
    poller = epoll()
    poller.register(listener.fileno(), EPOLLIN)
    connections: dict[int, socket.socket] = {}
    while True:
        for fd, _ in poller.poll():
            connection = connections.get(fd)
            if connection is None:
                _accept(listener, poller, connections)
                continue
            try:
                data = connection.recv(CHUNK)
            except OSError:
                data = b""
            if not data:
                _close(fd, poller, connections, {})


def _accept(listener: socket.socket, poller: epoll, connections: dict[int, socket.socket]) -> None:
    try:
        connection, _ = listener.accept()
    except OSError:
        return  # it was gone before this could take it
    connection.setblocking(False)
    fd = connection.fileno()
    connections[fd] = connection
    poller.register(fd, EPOLLIN)


def _close(fd: int, poller: epoll, connections: dict[int, socket.socket], unsent: dict[int, memoryview]) -> None:
    unsent.pop(fd, None)
    poller.unregister(fd)
    connections.pop(fd).close()
