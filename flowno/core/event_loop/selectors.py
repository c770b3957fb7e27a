"""Sockets that tasks can wait for without holding up the event loop.

A :class:`SocketHandle` wraps a socket; its coroutines yield commands, and the loop resumes them when the socket is
ready. :class:`TLSSocketHandle` does the same through TLS. Any selector can stand behind the loop, see :data:`sel`.

Example:
    >>> from flowno import socket, spawn, sleep, EventLoop
    >>> async def echo_server(server_sock):
    ...     client_sock, addr = await server_sock.accept()
    ...     print(f"Server: Client connected from {addr[0]}")
    ...     data = await client_sock.recv(1024)
    ...     await client_sock.sendAll(b"Echo: " + data)
    ...     client_sock.close()
    >>> async def echo_client(address):
    ...     client_sock = socket()
    ...     client_sock.connect(address)
    ...     await client_sock.sendAll(b"Hello, world!")
    ...     response = await client_sock.recv(1024)
    ...     print(f"Client: Received: {response.decode()}")
    ...     client_sock.close()
    >>> async def main():
    ...     with socket() as server_sock:
    ...         server_sock.bind(("localhost", 0))
    ...         server_sock.listen(1)
    ...         server_task = await spawn(echo_server(server_sock))
    ...         client_task = await spawn(echo_client(server_sock.getsockname()))
    ...         await server_task.join()
    ...         await client_task.join()
    >>> with EventLoop() as event_loop:
    ...     event_loop.run_until_complete(main(), join=True)
    Server: Client connected from 127.0.0.1
    Client: Received: Echo: Hello, world!
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .addresses import Address
from .backend import default_selector_name
from .errors import EventLoopError
from .running import current_event_loop
from .sockets import SocketHandle

if TYPE_CHECKING:
    from .tls import TLSSocketHandle

__all__ = ["Address", "SocketHandle", "TLSSocketHandle", "sel"]


class _RunningSelector:
    """The selector of the event loop that runs in this thread; see :data:`sel`."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # tools look for these on any object
        loop = current_event_loop()
        if loop is None:
            raise EventLoopError(
                f"sel.{name}: sel stands for the selector of the running event loop, and none runs in this thread"
            )
        return getattr(loop.selector, name)

    def __repr__(self) -> str:
        loop = current_event_loop()
        if loop is None:
            return f"<sel: no event loop runs in this thread; a new one would get {default_selector_name()}>"
        return f"<sel: {loop.selector!r}>"


#: The selector of the event loop that runs in this thread. It holds nothing itself; with no loop running, any use of it
#: is an EventLoopError, and its repr names the backend that a new loop would get.
sel = _RunningSelector()


def __getattr__(name: str) -> Any:
    """TLSSocketHandle, from the moment it is asked for: importing ``ssl`` takes longer than all of flowno."""
    if name == "TLSSocketHandle":
        from .tls import TLSSocketHandle

        return TLSSocketHandle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
