"""flowno: a reactor framework in pure Python, with exchangeable selectors.

To begin with: :func:`run` runs a coroutine, :func:`spawn` starts others beside it, :func:`socket` makes the sockets
that they talk through, and :func:`connect` connects one. :class:`EventLoop` is what :func:`run` uses, for those who
want to keep it or choose its selector; :func:`available_selectors` lists the choices.

PYTEST_DONT_REWRITE: pytest, which loads the plugin in flowno.testing, would warn of it in a program that imports flowno
and then runs pytest; there is no assert to be rewritten here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import from_thread
from .core.event_loop.backend import (
    Selector,
    SelectorDecoratorInfo,
    SelectorInfo,
    available_selector_decorators,
    available_selectors,
)
from .core.event_loop.barriers import Barrier, BarrierStatistics
from .core.event_loop.errors import (
    BrokenBarrierError,
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
    WouldBlockError,
)
from .core.event_loop.event_loop import EventLoop, current_event_loop, current_task, run
from .core.event_loop.gathering import as_completed, gather
from .core.event_loop.limiters import CapacityLimiter, CapacityLimiterStatistics
from .core.event_loop.primitives import (
    azip,
    connect,
    current_time,
    exit,
    sleep,
    sleep_forever,
    sleep_until,
    socket,
    socketpair,
    spawn,
    wait_readable,
    wait_writable,
)
from .core.event_loop.queues import AsyncLifoQueue, AsyncMapQueue, AsyncPriorityQueue, AsyncQueue, AsyncSetQueue
from .core.event_loop.scopes import CancelScope, TaskGroup, move_on_after, move_on_at, timeout, timeout_at
from .core.event_loop.signals import open_signal_receiver
from .core.event_loop.sockets import SocketHandle
from .core.event_loop.synchronization import (
    Condition,
    ConditionStatistics,
    CountdownLatch,
    Event,
    EventStatistics,
    Lock,
    LockStatistics,
    Semaphore,
    SemaphoreStatistics,
)
from .core.event_loop.tasks import TaskCancelled, TaskHandle
from .core.event_loop.threads import current_default_thread_limiter, run_in_thread

if TYPE_CHECKING:
    from .asyncio_loop import asyncio_loop_factory
    from .core.event_loop.tls import TLSSocketHandle, TruncatedStreamError, start_tls
    from .debug.reports import print_tasks
    from .net.connections import open_connection, open_unix_connection
    from .net.resolver import getaddrinfo, getnameinfo
    from .net.servers import Server, serve_activated, serve_sockets, serve_tcp, serve_unix
    from .net.streams import IncompleteReadError, LimitOverrunError, Stream
    from .processes import Process, open_process, run_process

__all__ = [
    "AsyncLifoQueue",
    "AsyncMapQueue",
    "AsyncPriorityQueue",
    "AsyncQueue",
    "AsyncSetQueue",
    "Barrier",
    "BarrierStatistics",
    "BrokenBarrierError",
    "BrokenResourceError",
    "BusyResourceError",
    "CancelScope",
    "CapacityLimiter",
    "CapacityLimiterStatistics",
    "ClosedResourceError",
    "Condition",
    "ConditionStatistics",
    "CountdownLatch",
    "DeadlockError",
    "Event",
    "EventLoop",
    "EventLoopError",
    "EventStatistics",
    "FlownoError",
    "IncompleteReadError",
    "LimitOverrunError",
    "Lock",
    "LockStatistics",
    "NotOwnerError",
    "Process",
    "QueueClosedError",
    "QueueEmptyError",
    "QueueFullError",
    "Selector",
    "SelectorDecoratorInfo",
    "SelectorInfo",
    "SelectorUnavailableError",
    "Semaphore",
    "SemaphoreStatistics",
    "Server",
    "SocketHandle",
    "Stream",
    "TLSSocketHandle",
    "TaskCancelled",
    "TaskGroup",
    "TaskHandle",
    "TruncatedStreamError",
    "UnknownSelectorError",
    "WouldBlockError",
    "as_completed",
    "asyncio_loop_factory",
    "available_selector_decorators",
    "available_selectors",
    "azip",
    "connect",
    "current_default_thread_limiter",
    "current_event_loop",
    "current_task",
    "current_time",
    "exit",
    "from_thread",
    "gather",
    "getaddrinfo",
    "getnameinfo",
    "move_on_after",
    "move_on_at",
    "open_connection",
    "open_process",
    "open_signal_receiver",
    "open_unix_connection",
    "print_tasks",
    "run",
    "run_in_thread",
    "run_process",
    "serve_activated",
    "serve_sockets",
    "serve_tcp",
    "serve_unix",
    "sleep",
    "sleep_forever",
    "sleep_until",
    "socket",
    "socketpair",
    "spawn",
    "start_tls",
    "timeout",
    "timeout_at",
    "wait_readable",
    "wait_writable",
]

# What is imported when it is first asked for: most of these need ssl, subprocess or asyncio, which take longer to
# import than all the rest.
_LAZY = {
    "TLSSocketHandle": "flowno.core.event_loop.tls",
    "TruncatedStreamError": "flowno.core.event_loop.tls",
    "start_tls": "flowno.core.event_loop.tls",
    "IncompleteReadError": "flowno.net.streams",
    "LimitOverrunError": "flowno.net.streams",
    "Stream": "flowno.net.streams",
    "asyncio_loop_factory": "flowno.asyncio_loop",
    "open_connection": "flowno.net.connections",
    "open_unix_connection": "flowno.net.connections",
    "Server": "flowno.net.servers",
    "serve_activated": "flowno.net.servers",
    "serve_sockets": "flowno.net.servers",
    "serve_tcp": "flowno.net.servers",
    "serve_unix": "flowno.net.servers",
    "getaddrinfo": "flowno.net.resolver",
    "getnameinfo": "flowno.net.resolver",
    "Process": "flowno.processes",
    "print_tasks": "flowno.debug.reports",
    "open_process": "flowno.processes",
    "run_process": "flowno.processes",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = globals()[name] = getattr(import_module(_LAZY[name]), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
