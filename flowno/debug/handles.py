"""Handles that are dropped unclosed, and those that are connected by a call that blocks.

A handle belongs to no event loop before it is first used. So as long as any loop of the process is in debug mode, it is
the class of all handles that is watched: the methods here take the place of its own.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from gc import get_referents
from typing import TYPE_CHECKING, Any

from flowno.core.event_loop.exchange import Exchange, Replacement
from flowno.core.event_loop.running import here
from flowno.core.event_loop.selectors import SocketHandle

from .places import Place, here_and_outwards, place_in_words, with_stack

if TYPE_CHECKING:
    from flowno.core.event_loop.selectors import Address

__all__ = ["unwatch_handles", "watch_handles"]

logger = logging.getLogger("flowno.debug")

#: Where each handle was made that is not gone, by its id. Not by a weak reference, which is gone before ``__del__()``
#: where the garbage collector has found the handle.
_places: dict[int, Place] = {}


def _init(own: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(own)
    def init(self: SocketHandle, *args: Any, **options: Any) -> None:
        _places[id(self)] = here_and_outwards()
        own(self, *args, **options)

    return init


def _del(own: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(own)
    def __del__(self: SocketHandle) -> None:  # by this name what Ctrl-C does knows a finalizer
        place = _places.pop(id(self), None)
        if place is not None and _takes_an_open_socket_along(self):
            what = repr(self) if self.fileno() >= 0 else type(self).__name__
            # Without a source: whoever keeps the warning would keep the socket.
            warnings.warn(f"unclosed {what}{with_stack('made at', place)}", ResourceWarning, stacklevel=2)
        own(self)

    return __del__


def _connect(own: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(own)
    def connect(self: SocketHandle, address: Address, /) -> None:
        loop = here.loop
        if loop is not None and loop.running_task is not None:
            logger.warning(
                "%s holds up the event loop by connect(%r); await flowno.connect(handle, address) does not:\n%s",
                repr(loop.running_task), address, place_in_words(here_and_outwards()),
            )  # fmt: skip
        own(self, address)

    return connect


_watching = Exchange(
    lambda: (
        Replacement(SocketHandle, "__init__", _init),
        Replacement(SocketHandle, "__del__", _del),
        Replacement(SocketHandle, "connect", _connect),
    )
)


def watch_handles() -> None:
    """One more event loop is in debug mode."""
    _watching.begin()


def unwatch_handles() -> None:
    """One less is."""
    _watching.end()
    if not _watching.users:
        _places.clear()


def _takes_an_open_socket_along(handle: SocketHandle) -> bool:
    """Whether the socket of a handle that goes was not closed, and nothing else of the program refers to it."""
    if not hasattr(handle, "socket"):
        return False
    if handle.fileno() < 0:
        # Where both are in a cycle, the collector may have finalized the socket first, which closes its fd, but is no
        # close() of the program.
        return getattr(handle.socket, "_closed", True) is False
    # The handle has it as an attribute, and keeps bound methods of it.
    own = sum(one is handle.socket or getattr(one, "__self__", None) is handle.socket for one in get_referents(handle))
    return sys.getrefcount(handle.socket) - 1 <= own
