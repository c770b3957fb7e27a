"""Servers in a loop, and clients outside of it that act whenever the loop asks its selector.

There is no thread and no clock, so each run does the same in the same order. A client asks, finds the answer when the
loop asks its selector the next time, asks again, and closes its end after so many rounds.
"""

import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from selectors import SelectorKey
from typing import Any

from flowno import SocketHandle
from flowno.core.event_loop.backend import SystemWorld
from flowno.core.event_loop.tls import TLSSocketHandle
from flowno.net import Stream

__all__ = [
    "Caller", "Client", "StoppedWorld", "TLSClient", "answer_by_handle", "answer_by_tls", "answer_lines",
    "before_each_wait",
]  # fmt: skip


async def answer_by_handle(sock: socket.socket) -> None:
    """Send back what comes, until the client has closed its end."""
    with SocketHandle(sock) as handle:
        while data := await handle.recv(65536):
            await handle.sendAll(data)


async def answer_by_tls(sock: socket.socket, context: ssl.SSLContext) -> None:
    """As :func:`answer_by_handle`, through TLS; the handshake comes first."""
    with TLSSocketHandle(sock, context, None, server_side=True, require_close_notify=False) as handle:
        while data := await handle.recv(65536):
            await handle.sendAll(data)


async def answer_lines(sock: socket.socket) -> None:
    """As :func:`answer_by_handle`, line by line, through a stream."""
    async with Stream(SocketHandle(sock)) as stream:
        while line := await stream.readline():
            await stream.write(line)


class Client:
    """Asks the same question so many times, one after the other.

    Args:
        sock: Its end of a connection, which it closes at the end.
        question: What it sends, and what the server is to answer.
        rounds: How many times.
    """

    def __init__(self, sock: socket.socket, question: bytes, rounds: int) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._question = question
        self._left = rounds
        self._waits = False

    def act(self) -> None:
        """Take the answer, where it has come, and ask again; or do not."""
        if self._sock.fileno() < 0:
            return
        if self._waits:
            try:
                answer = self._sock.recv(len(self._question) + 1)
            except (BlockingIOError, ssl.SSLWantReadError):
                return
            assert answer == self._question, f"{len(answer)} bytes came back, {len(self._question)} were sent"
            self._waits = False
        if not self._left:
            self._sock.close()
            return
        assert self._sock.send(self._question) == len(self._question)
        self._left -= 1
        self._waits = True


class TLSClient(Client):
    """As :class:`Client`, through TLS; the handshake comes first."""

    def __init__(self, sock: socket.socket, question: bytes, rounds: int, context: ssl.SSLContext) -> None:
        sock.setblocking(False)
        self._tls = context.wrap_socket(sock, server_hostname="localhost", do_handshake_on_connect=False)
        self._is_established = False
        super().__init__(self._tls, question, rounds)

    def act(self) -> None:
        if not self._is_established:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                return  # the server answers first
            self._is_established = True
        super().act()


class Caller:
    """Connects so many times, one time after the other, and says one thing on each connection.

    A context manager: the connections stay open until it is left.

    Args:
        address: Where somebody listens on TCP.
        words: What it says.
        rounds: How many times.
    """

    def __init__(self, address: tuple[str, int], words: bytes, rounds: int) -> None:
        self._address = address
        self._words = words
        self._left = rounds
        self._open = ExitStack()

    def act(self) -> None:
        """Connect once more, or do not."""
        if self._left:
            self._left -= 1
            self._open.enter_context(socket.create_connection(self._address)).sendall(self._words)

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


class StoppedWorld(SystemWorld):
    """The system's world, but for the time, which stands still: what is done once in so many seconds is not done."""

    @staticmethod
    def clock() -> float:
        return 0.0


def before_each_wait(selector_class: Callable[[], Any], clients: Sequence[Client | Caller]) -> Any:
    """A selector of this class, in a stopped world, that has the clients act each time before it is asked."""

    class Selector(selector_class):  # type: ignore[misc, valid-type]
        world = StoppedWorld()

        def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
            for client in clients:
                client.act()
            return super().select(timeout)  # type: ignore[no-any-return]

    return Selector()
