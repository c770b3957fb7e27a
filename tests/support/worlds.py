"""Worlds whose resolver and sockets do what a test needs, behind the backend under test."""

import errno
import os
import socket as system_socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flowno import EventLoop
from flowno.core.event_loop.backend import SystemWorld
from tests.support.counting_selector import CountingSelector

__all__ = ["ScriptedWorld", "answer", "in_world"]


def answer(*addresses: tuple[str, int]) -> list[Any]:
    """What a resolver says of a name that has these addresses."""
    return [
        (
            system_socket.AF_INET6 if ":" in host else system_socket.AF_INET,
            system_socket.SOCK_STREAM,
            system_socket.IPPROTO_TCP,
            "",
            (host, port, 0, 0) if ":" in host else (host, port),
        )
        for host, port in addresses
    ]


class ScriptedWorld(SystemWorld):
    """The system's world, with a resolver that knows the names in ``names`` and no others, and waits for ``go_on``.

    ``asked`` holds the queries, ``threads`` where they were made. ``sockets`` are those that were made; ``make`` makes
    them.
    """

    def __init__(self) -> None:
        self.names: dict[Any, list[Any] | BaseException] = {}
        self.asked: list[tuple[Any, ...]] = []
        self.threads: list[int] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.sockets: list[system_socket.socket] = []
        self.make: Callable[..., system_socket.socket] = system_socket.socket

    def getaddrinfo(self, *args: Any) -> Any:  # type: ignore[override]
        self.asked.append(args)
        self.threads.append(threading.get_ident())
        self.go_on.wait(10)
        found = self.names.get(args[0], system_socket.gaierror(system_socket.EAI_NONAME, "Name or service not known"))
        if isinstance(found, BaseException):
            raise found
        return found

    def socket(self, *args: Any, **kwargs: Any) -> system_socket.socket:  # type: ignore[override]
        made = self.make(*args, **kwargs)
        self.sockets.append(made)
        return made

    @property
    def open_sockets(self) -> list[system_socket.socket]:
        """Those that were made and are not closed."""
        return [sock for sock in self.sockets if sock.fileno() >= 0]

    def without_ipv6(self, family: int = -1, *args: Any, **kwargs: Any) -> system_socket.socket:
        """For ``make``: a machine whose kernel has no IPv6."""
        if family == system_socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return system_socket.socket(family, *args, **kwargs)


@contextmanager
def in_world(world: ScriptedWorld) -> Iterator[EventLoop]:
    """An event loop in this world, on the backend under test."""
    with CountingSelector() as counting:
        counting.world = world
        with EventLoop(counting) as loop:
            try:
                yield loop
            finally:
                world.go_on.set()
