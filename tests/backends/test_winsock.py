"""What is peculiar to select(2) on Windows, tried on Windows."""

import errno
import select
import socket
import sys
import time
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

import pytest

from tests.backends.conftest import MakePair, Pair

if sys.platform != "win32":
    pytest.skip("Winsock is the sockets of Windows", allow_module_level=True)

ROOM = 512  # sockets: CPython's FD_SETSIZE there, selectmodule.c
PATIENCE = 30  # seconds; Windows tries a port that refuses it for two


def refused(port: int) -> socket.socket:
    """A socket that is on its way to a port where nobody listens."""
    sock = socket.socket()
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.connect(("127.0.0.1", port))
    return sock


def test_a_refused_connect_is_writable(selector: Any, free_port: int) -> None:
    with refused(free_port) as sock:
        key = selector.register(sock, EVENT_WRITE)
        assert selector.select(PATIENCE) == [(key, EVENT_WRITE)]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.WSAECONNREFUSED


def test_a_refused_connect_is_in_the_exceptional_set_alone(free_port: int) -> None:
    with refused(free_port) as sock:
        assert select.select([], [], [sock], PATIENCE) == ([], [], [sock])
        assert select.select([sock], [sock], [], 0) == ([], [], [])


@pytest.mark.stdlib_differs("one closed socket fails every wait")
def test_a_refused_connect_is_found_beside_a_closed_socket(selector: Any, pair: Pair, free_port: int) -> None:
    with refused(free_port) as sock:
        connecting = selector.register(sock, EVENT_WRITE)
        closed = selector.register(pair[0], EVENT_READ)
        pair[0].close()
        select.select([], [], [sock], PATIENCE)
        ready = selector.select(0)
        assert len(ready) == 2
        assert (connecting, EVENT_WRITE) in ready
        assert (closed, EVENT_READ) in ready


@pytest.mark.stdlib_differs("they leave the three empty sets to the system")
def test_three_empty_sets_are_an_error_of_the_system_and_not_of_the_selector(selector: Any) -> None:
    with pytest.raises(OSError, match=str(errno.WSAEINVAL)):
        select.select([], [], [], 0)
    started = time.monotonic()
    assert selector.select(0.05) == []
    assert time.monotonic() - started >= 0.05
    assert selector.select(0) == []


@pytest.mark.stdlib_differs("they take every socket, and fail at the next wait")
def test_it_holds_512_sockets_of_any_number_and_refuses_the_next(selector: Any, make_pair: MakePair) -> None:
    sockets = [end for _ in range(ROOM // 2) for end in make_pair()]
    one, other = make_pair()
    for sock in sockets:
        selector.register(sock, EVENT_READ)
    assert max(sock.fileno() for sock in sockets) > 2 * ROOM  # more than a set of bits would have room for
    with pytest.raises(ValueError, match="holds 512 sockets on Windows"):
        selector.register(one, EVENT_READ)
    other.send(b"x")
    assert selector.select(0) == []  # the one that was refused left no trace
    sockets[-2].send(b"x")
    assert [key.fileobj for key, _ in selector.select(PATIENCE)] == [sockets[-1]]
    selector.unregister(sockets[0])
    key = selector.register(one, EVENT_READ)
    assert (key, EVENT_READ) in selector.select(PATIENCE)


@pytest.mark.stdlib_differs("they take every file descriptor, and fail at the next wait")
def test_what_is_no_socket_is_refused_when_it_is_registered(selector: Any) -> None:
    with open(__file__, "rb") as file, pytest.raises(OSError):  # noqa: PT011  # Wine has another number than Windows
        selector.register(file, EVENT_READ)
    assert selector.select(0) == []
