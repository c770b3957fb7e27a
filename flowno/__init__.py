"""flowno: a reactor framework in pure Python, with exchangeable selectors.

To begin with: :func:`run` runs a coroutine, :func:`spawn` starts others beside it, :func:`socket` makes the sockets
that they talk through, and :func:`connect` connects one. :class:`EventLoop` is what :func:`run` uses, for those who
want to keep it or choose its selector; :func:`available_selectors` lists the choices.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import from_thread
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
    WouldBlockError,
)
from .core.event_loop.event_loop import EventLoop, current_event_loop, current_task, run
from .core.event_loop.primitives import (
    azip,
    connect,
    exit,
    sleep,
    socket,
    socketpair,
    spawn,
    wait_readable,
    wait_writable,
)
from .core.event_loop.queues import AsyncLifoQueue, AsyncMapQueue, AsyncPriorityQueue, AsyncQueue, AsyncSetQueue
from .core.event_loop.scopes import CancelScope, TaskGroup, move_on_after, move_on_at, timeout, timeout_at
from .core.event_loop.selectors import SocketHandle
from .core.event_loop.synchronization import CapacityLimiter, Condition, CountdownLatch, Event, Lock, Semaphore
from .core.event_loop.tasks import TaskCancelled, TaskHandle
from .core.event_loop.threads import current_default_thread_limiter, run_in_thread

if TYPE_CHECKING:
    from .core.event_loop.tls import TLSSocketHandle, TruncatedStreamError, start_tls
    from .net.connections import open_connection, open_unix_connection
    from .net.resolver import getaddrinfo, getnameinfo
    from .net.servers import Server, serve_activated, serve_sockets, serve_tcp, serve_unix
    from .net.streams import IncompleteReadError, LimitOverrunError, Stream

__all__ = [
    "AsyncLifoQueue",
    "AsyncMapQueue",
    "AsyncPriorityQueue",
    "AsyncQueue",
    "AsyncSetQueue",
    "BrokenResourceError",
    "BusyResourceError",
    "CancelScope",
    "CapacityLimiter",
    "ClosedResourceError",
    "Condition",
    "CountdownLatch",
    "DeadlockError",
    "Event",
    "EventLoop",
    "EventLoopError",
    "FlownoError",
    "IncompleteReadError",
    "LimitOverrunError",
    "Lock",
    "NotOwnerError",
    "QueueClosedError",
    "QueueEmptyError",
    "QueueFullError",
    "Selector",
    "SelectorInfo",
    "SelectorUnavailableError",
    "Semaphore",
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
    "available_selectors",
    "azip",
    "connect",
    "current_default_thread_limiter",
    "current_event_loop",
    "current_task",
    "exit",
    "from_thread",
    "getaddrinfo",
    "getnameinfo",
    "move_on_after",
    "move_on_at",
    "open_connection",
    "open_unix_connection",
    "run",
    "run_in_thread",
    "serve_activated",
    "serve_sockets",
    "serve_tcp",
    "serve_unix",
    "sleep",
    "socket",
    "socketpair",
    "spawn",
    "start_tls",
    "timeout",
    "timeout_at",
    "wait_readable",
    "wait_writable",
]

# What is imported when it is first asked for: these need ssl, which takes longer to import than all the rest.
_LAZY = {
    "TLSSocketHandle": "flowno.core.event_loop.tls",
    "TruncatedStreamError": "flowno.core.event_loop.tls",
    "start_tls": "flowno.core.event_loop.tls",
    "IncompleteReadError": "flowno.net.streams",
    "LimitOverrunError": "flowno.net.streams",
    "Stream": "flowno.net.streams",
    "open_connection": "flowno.net.connections",
    "open_unix_connection": "flowno.net.connections",
    "Server": "flowno.net.servers",
    "serve_activated": "flowno.net.servers",
    "serve_sockets": "flowno.net.servers",
    "serve_tcp": "flowno.net.servers",
    "serve_unix": "flowno.net.servers",
    "getaddrinfo": "flowno.net.resolver",
    "getnameinfo": "flowno.net.resolver",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = globals()[name] = getattr(import_module(_LAZY[name]), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
