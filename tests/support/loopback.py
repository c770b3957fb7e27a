"""Connections that stay on this machine, for tests on both ends of them."""

import os
import selectors
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import flowno
from flowno import SocketHandle

#: More than any pair of socket buffers takes.
LARGE = 8 << 20


@contextmanager
def pair(buffer: int | None = None) -> Iterator[tuple[SocketHandle, SocketHandle]]:
    """Two connected handles, closed at the end. ``buffer``: bytes of room, about, in each direction."""
    sockets = socket.socketpair()
    if buffer is not None:
        if sockets[0].family is socket.AF_INET:
            buffer = max(buffer, 65536)  # in a small window TCP crawls, RFC 813
        for end in sockets:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    with SocketHandle(sockets[0]) as one, SocketHandle(sockets[1]) as other:
        yield one, other


@contextmanager
def listening(backlog: int | None = None) -> Iterator[SocketHandle]:
    """A TCP handle that listens on a free port of 127.0.0.1."""
    with flowno.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(backlog)
        yield listener


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 loopback")


@contextmanager
def full_backlog() -> Iterator[Any]:
    """The address of a listener that answers nobody: its backlog is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = []
        try:
            for _ in range(8):
                one = socket.socket()
                waiting.append(one)
                one.settimeout(0.05)
                try:
                    one.connect(address)
                except TimeoutError:
                    break
            else:
                pytest.skip("this system takes connections beyond the backlog")
            yield address
        finally:
            for one in waiting:
                one.close()


@contextmanager
def tcp_pair() -> Iterator[tuple[SocketHandle, SocketHandle]]:
    """Two handles connected by TCP: the one that connected, and the one that was accepted."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with SocketHandle(client) as one, SocketHandle(server) as other:
        yield one, other


@contextmanager
def pair_with_number(number: int) -> Iterator[tuple[SocketHandle, SocketHandle]]:
    """Two handles connected by TCP, of which the first has this number: the lowest that is free."""
    with flowno.socket() as fresh:
        if os.name == "nt" and fresh.fileno() != number:
            pytest.skip("Windows gives away the numbers of sockets in an order of its own")
        assert fresh.fileno() == number
        with listening() as listener:
            fresh.connect(listener.getsockname())
            with SocketHandle(listener.socket.accept()[0]) as peer:
                yield fresh, peer


def resets_at_close(sock: SocketHandle | socket.socket) -> None:
    """Have the close, when it comes, send the peer a reset and no end of file: SO_LINGER of 0 seconds, socket(7)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if os.name == "nt" else "ii", 1, 0))


def reset(sock: SocketHandle | socket.socket) -> None:
    """Break the connection off."""
    resets_at_close(sock)
    sock.close()


def fill(end: SocketHandle | socket.socket) -> int:
    """Send, behind the handle's back, until a non-blocking socket takes no more; the number of bytes.

    By TCP, which a socketpair is where there are no Unix sockets, bytes still move into the peer's buffer for a while,
    and make room.
    """
    sock = end.socket if isinstance(end, SocketHandle) else end
    sent = 0
    is_at_rest = hasattr(socket, "AF_UNIX")
    while True:
        try:
            sent += sock.send(bytes(65536))
            is_at_rest = hasattr(socket, "AF_UNIX")
        except BlockingIOError:
            if is_at_rest:
                return sent
            with selectors.DefaultSelector() as selector:
                selector.register(sock, selectors.EVENT_WRITE)
                selector.select(0.7)  # TCP tries a window that was full again after 0.2, and then after 0.4
            is_at_rest = True


async def receive(handle: SocketHandle, size: int) -> bytes:
    """Exactly so many bytes, or what came before the end of the stream."""
    data = bytearray()
    while len(data) < size and (some := await handle.recv(min(size - len(data), 1 << 20))):
        data += some
    return bytes(data)


#: One operation on a handle, by what it is called: those that own the read side, and those that own the write side.
Operation = Callable[[SocketHandle], Any]

READS: dict[str, Operation] = {
    "recv": lambda handle: handle.recv(100),
    "recv_into": lambda handle: handle.recv_into(bytearray(100)),
    "accept": lambda handle: handle.accept(),
}
WRITES: dict[str, Operation] = {
    "send": lambda handle: handle.send(b"second"),
    "sendAll": lambda handle: handle.sendAll(b"second"),
    "nothing": lambda handle: handle.sendAll(b""),
}
