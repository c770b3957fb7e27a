"""What runs here: the event loop of this thread, its task, its world; and whether this process is still the same."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from .backend import SYSTEM_WORLD, World
from .errors import EventLoopError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import CodeType

    from .event_loop import EventLoop

__all__ = [
    "calling_out",
    "calls_the_program",
    "current_event_loop",
    "current_task",
    "current_world",
    "fork_count",
    "here",
    "required_event_loop",
    "running_loops",
    "set_running",
]


F = TypeVar("F", bound="Callable[..., Any]")

#: The code of what :func:`calls_the_program` marks.
calling_out: set[CodeType] = set()


def calls_the_program(function: F) -> F:
    """Mark a function of a room that keeps records, which calls code of the program's own, or a call that blocks.

    KeyboardInterrupt may be raised in what it has called, and not where the records are kept; see ``signals.py``.
    """
    calling_out.add(function.__code__)
    return function


class _Running(threading.local):
    """The event loop that runs in this thread; and whether it is closing a coroutine, which then cannot wait."""

    loop: EventLoop | None = None
    closing = False


#: Where operations look for their loop: ``here.loop or required_event_loop("what")``.
here = _Running()


#: The event loop that runs in a thread, by the number of the thread: for reports, which are made in any thread.
_loops: dict[int, EventLoop] = {}


def set_running(loop: EventLoop | None) -> None:
    """Say which event loop runs in this thread; for the loops themselves."""
    here.loop = loop
    if loop is None:
        _loops.pop(threading.get_ident(), None)
    else:
        _loops[threading.get_ident()] = loop


def running_loops() -> list[EventLoop]:
    """The event loops that run in this process, that of this thread first; from any thread and signal handler."""
    loops = _loops.copy()
    own = loops.pop(threading.get_ident(), None)
    return [*(() if own is None else (own,)), *loops.values()]


def current_event_loop() -> EventLoop | None:
    """The event loop that runs in this thread, or None."""
    return here.loop


def required_event_loop(operation: str) -> EventLoop:
    """The event loop that runs in this thread.

    Raises:
        EventLoopError: None does; ``operation`` needs one.
    """
    loop = here.loop
    if loop is None:
        raise EventLoopError(f"{operation} was used outside of an event loop; run the coroutine with flowno.run()")
    return loop


def current_task() -> Coroutine[Any, Any, Any] | None:
    """The coroutine of the task that runs in this thread, or None outside of one."""
    loop = here.loop
    task = None if loop is None else loop.running_task
    return None if task is None else task.raw_task


def current_world() -> World:
    """Where to take time and sockets from: the world of the event loop that runs in this thread, else the system's."""
    loop = here.loop
    return SYSTEM_WORLD if loop is None else loop.world


class _Forks:
    count = 0


def _count_fork() -> None:
    _Forks.count += 1
    for thread in _loops.keys() - {threading.get_ident()}:  # the other threads did not come along
        del _loops[thread]


def fork_count() -> int:
    """How many forks lie between this process and the one that imported flowno."""
    return _Forks.count


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)
