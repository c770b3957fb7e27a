"""The errors that are flowno's own.

Each derives from :class:`FlownoError` and from the built-in exception that a user would catch for the same reason. An
error of the operating system stays the ``OSError`` that it is; an operation that ran out of time raises the built-in
``TimeoutError``.
"""

from __future__ import annotations

import errno
import os
from typing import Any

__all__ = [
    "BrokenBarrierError",
    "BrokenResourceError",
    "BusyResourceError",
    "ClosedResourceError",
    "DeadlockError",
    "EventLoopError",
    "FlownoError",
    "NotOwnerError",
    "QueueClosedError",
    "QueueEmptyError",
    "QueueFullError",
    "SelectorUnavailableError",
    "UnknownSelectorError",
    "WouldBlockError",
]


class FlownoError(Exception):
    """The base of every error that flowno itself defines."""


class EventLoopError(FlownoError, RuntimeError):
    """An event loop was used against its rules: entered twice, used after close, or from a place without one."""


class BrokenResourceError(FlownoError, RuntimeError):
    """What was waited for will never come: it is broken, as the task that had it has ended."""


class BrokenBarrierError(BrokenResourceError):
    """The other tasks will not come: the barrier was aborted, or reset under those who waited."""


class BusyResourceError(FlownoError, RuntimeError):
    """Another task or another event loop is using the resource; nothing was done, and the other is unaffected."""


class ClosedResourceError(FlownoError, OSError):
    """The handle was closed, before the operation or under it.

    Args:
        message: What was closed, and what was asked of it.

    ``errno`` is ``EBADF``, as the system says of a descriptor that is not open.
    """

    def __init__(self, message: str = os.strerror(errno.EBADF)) -> None:
        super().__init__(errno.EBADF, message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.strerror,), self.__dict__  # what OSError has in args is more than __init__ takes


class DeadlockError(FlownoError, RuntimeError):
    """Every task waits for another one, and nothing outside of the loop could ever end that."""


class UnknownSelectorError(FlownoError, ValueError):
    """A selector was asked for by a name that nothing provides."""


class NotOwnerError(FlownoError, RuntimeError):
    """A task did to a lock what only its owner may do, or gave back to a limiter what was not borrowed."""


class QueueClosedError(FlownoError, RuntimeError):
    """A queue was closed: it takes no more items, and there are none left to get."""


class SelectorUnavailableError(FlownoError, OSError):
    """A selector was asked for by a name that is known, but it cannot be had on this machine."""


class WouldBlockError(FlownoError, RuntimeError):
    """What was to be done without waiting cannot be done at the moment."""


class QueueEmptyError(WouldBlockError, LookupError):
    """There is no item to get without waiting."""


class QueueFullError(WouldBlockError):
    """There is no room to put an item without waiting."""
