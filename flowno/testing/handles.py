"""The handles and child processes that are made while a test runs, and where: what it never closes is found by that.

As in debug mode, it is the class of all handles that is watched, since a handle belongs to no event loop before it is
first used; and so it is with processes.
"""

from __future__ import annotations

import re
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any, Final, NamedTuple

from ..core.event_loop.exchange import Exchange, Replacement
from ..core.event_loop.running import here
from ..core.event_loop.sockets import SocketHandle
from ..debug.places import here_and_outwards
from ..processes import Process

__all__ = ["Handles"]

#: Seconds in which the system is to end a process that is killed.
_LAST: Final = 5.0


class _Made(NamedTuple):
    """A handle or a process, and where it was made."""

    handle: weakref.ref[SocketHandle | Process]
    socket: weakref.ref[Any] | None
    place: str


class Handles:
    """The handles and child processes that are made from now on, in the whole process."""

    def __init__(self) -> None:
        self._made: list[_Made] = []
        _watchers.append(self)
        _watching.begin()

    def note(self, handle: SocketHandle | Process, place: str) -> None:
        socket = None
        with suppress(TypeError):  # something like a socket
            socket = weakref.ref(handle.socket) if isinstance(handle, SocketHandle) else None
        self._made.append(_Made(weakref.ref(handle), socket, place))

    def place_of(self, message: str) -> str:
        """Where the handle was made of whose socket Python says this when it goes; nothing where that is not known."""
        found = re.search(r"\bfd=(\d+)", message)
        if found is None or "made at" in message:
            return ""
        for _, refers, place in self._made:
            socket = None if refers is None else refers()
            if socket is not None and socket.fileno() == int(found[1]):
                return place
        return ""

    def end(self) -> list[str]:
        """Abort those that are still open, and end those that still run: a line for each."""
        _watching.end()
        _watchers.remove(self)
        lines = []
        for refers, _, place in self._made:
            handle = refers()
            if handle is not None and _is_open(handle):
                lines.append(f"never closed: {handle!r}{place}")
                _end(handle)
        return lines


def _is_open(handle: SocketHandle | Process) -> bool:
    return handle.returncode is None if isinstance(handle, Process) else handle.fileno() >= 0


def _end(handle: SocketHandle | Process) -> None:
    if not isinstance(handle, Process):
        handle.abort()
        return
    with suppress(PermissionError):  # it is another user's by now
        handle.kill()
    deadline = time.monotonic() + _LAST
    while handle.returncode is None and time.monotonic() < deadline:
        time.sleep(0.001)  # else it would be said to run wherever it is dropped, and that is another test's


_watchers: Final[list[Handles]] = []


def _init(own: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(own)
    def init(self: SocketHandle | Process, *args: Any, **options: Any) -> None:
        own(self, *args, **options)
        place = _place()
        for each in _watchers:
            each.note(self, place)

    return init


_watching = Exchange(lambda: tuple(Replacement(made, "__init__", _init) for made in (SocketHandle, Process)))


def _place() -> str:
    """The line of the program that is running; where there is none, as in a handler of a server, which task that is."""
    filename, line, function = here_and_outwards()[0]
    if filename != __file__:  # which is the innermost one where there is nothing but flowno
        return f", made at {filename}:{line} in {function}"
    task = None if here.loop is None else here.loop.running_task
    return "" if task is None else f", made in {task.name}"
