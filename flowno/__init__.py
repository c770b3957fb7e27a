"""flowno: a reactor framework in pure Python, with exchangeable selectors.

To begin with: :func:`run` runs a coroutine, :func:`spawn` starts others beside it, :func:`socket` makes the sockets
that they talk through, and :func:`connect` connects one. :class:`EventLoop` is what :func:`run` uses, for those who
want to keep it or choose its selector; :func:`available_selectors` lists the choices.
"""

from .core.event_loop.backend import Selector, SelectorInfo, available_selectors
from .core.event_loop.errors import (
    BrokenResourceError,
    BusyResourceError,
    ClosedResourceError,
    DeadlockError,
    EventLoopError,
    FlownoError,
    NotOwnerError,
    QueueClosedError,
    QueueEmptyError,
    QueueFullError,
    SelectorUnavailableError,
    UnknownSelectorError,
)
from .core.event_loop.event_loop import EventLoop, current_event_loop, current_task, run
from .core.event_loop.primitives import azip, connect, exit, sleep, socket, spawn
from .core.event_loop.queues import AsyncLifoQueue, AsyncMapQueue, AsyncPriorityQueue, AsyncQueue, AsyncSetQueue
from .core.event_loop.selectors import SocketHandle
from .core.event_loop.synchronization import Condition, CountdownLatch, Event, Lock, Semaphore
from .core.event_loop.tasks import TaskCancelled, TaskHandle

__all__ = [
    "AsyncLifoQueue",
    "AsyncMapQueue",
    "AsyncPriorityQueue",
    "AsyncQueue",
    "AsyncSetQueue",
    "BrokenResourceError",
    "BusyResourceError",
    "ClosedResourceError",
    "Condition",
    "CountdownLatch",
    "DeadlockError",
    "Event",
    "EventLoop",
    "EventLoopError",
    "FlownoError",
    "Lock",
    "NotOwnerError",
    "QueueClosedError",
    "QueueEmptyError",
    "QueueFullError",
    "Selector",
    "SelectorInfo",
    "SelectorUnavailableError",
    "Semaphore",
    "SocketHandle",
    "TaskCancelled",
    "TaskHandle",
    "UnknownSelectorError",
    "available_selectors",
    "azip",
    "connect",
    "current_event_loop",
    "current_task",
    "exit",
    "run",
    "sleep",
    "socket",
    "spawn",
]
