"""The handles that are made while a test runs, and where: those that it never closes are found by that.

As in debug mode, it is the class of all handles that is watched, since a handle belongs to no event loop before it is
first used.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from functools import wraps
from typing import Any, Final, NamedTuple

from ..core.event_loop.exchange import Exchange, Replacement
from ..core.event_loop.running import here
from ..core.event_loop.sockets import SocketHandle
from ..debug.places import here_and_outwards

__all__ = ["Handles"]


class _Made(NamedTuple):
    """A handle, and where it was made."""

    handle: weakref.ref[SocketHandle]
    socket: weakref.ref[Any] | None
    place: str


class Handles:
    """The handles that are made from now on, in the whole process."""

    def __init__(self) -> None:
        self._made: list[_Made] = []
        _watchers.append(self)
        _watching.begin()

    def note(self, handle: SocketHandle, place: str) -> None:
        try:
            socket = weakref.ref(handle.socket)
        except TypeError:
            socket = None  # something like a socket
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
        """Abort those that are still open: a line for each."""
        _watching.end()
        _watchers.remove(self)
        lines = []
        for refers, _, place in self._made:
            handle = refers()
            if handle is not None and handle.fileno() >= 0:
                lines.append(f"never closed: {handle!r}{place}")
                handle.abort()
        return lines


_watchers: Final[list[Handles]] = []


def _init(own: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(own)
    def init(self: SocketHandle, *args: Any, **options: Any) -> None:
        own(self, *args, **options)
        place = _place()
        for each in _watchers:
            each.note(self, place)

    return init


_watching = Exchange(lambda: (Replacement(SocketHandle, "__init__", _init),))


def _place() -> str:
    """The line of the program that is running; where there is none, as in a handler of a server, which task that is."""
    filename, line, function = here_and_outwards()[0]
    if filename != __file__:  # which is the innermost one where there is nothing but flowno
        return f", made at {filename}:{line} in {function}"
    task = None if here.loop is None else here.loop.running_task
    return "" if task is None else f", made in {task.name}"
