"""What tasks and timers wait for, in words for people: reports, deadlocks and time limits say it the same way.

Nothing here changes anything, and what a task waits for is never an error, so that it can be asked from another thread
and by a signal handler, in the middle of anything.
"""

from __future__ import annotations

import os
import signal
import socket as _socket
from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias

from .commands import (
    BarrierWaitCommand,
    CancelCommand,
    Command,
    ConditionWaitCommand,
    EventWaitCommand,
    FdReadableCommand,
    FdWritableCommand,
    GroupWaitCommand,
    JoinCommand,
    LimiterAcquireCommand,
    LockAcquireCommand,
    QueueGetCommand,
    QueueingCommand,
    QueuePeekCommand,
    QueuePutCommand,
    SemaphoreAcquireCommand,
    SignalWaitCommand,
    SleepCommand,
    SocketAcceptCommand,
    SocketCommand,
    SocketConnectCommand,
    SocketRecvCommand,
    SocketSendCommand,
    ThreadCommand,
)
from .timers import ARGUMENT, DEADLINE, FIRE

if TYPE_CHECKING:
    from collections.abc import Callable

    from .queues import BaseQueue
    from .tasks import TaskHandle
    from .timers import Timer

__all__ = [
    "address_in_words",
    "address_of",
    "holder_of",
    "kind_of_wait",
    "peer_in_words",
    "timer_in_words",
    "wait_in_words",
]

#: Says what a task waits for in a command; to be read after "waits for".
Describe: TypeAlias = "Callable[[TaskHandle[Any], Any], str]"


def wait_in_words(task: TaskHandle[Any]) -> str | None:
    """What a task waits for, to be read after "waits for"; None where it does not wait."""
    command = task._waiting
    if command is None:
        return None
    words = _words_of(type(command))
    if words is not None:
        try:
            return words[1](task, command)
        except Exception:
            pass  # what it waits for is on its way, or is of the program's making
    return f"the answer to a {type(command).__name__}"


def kind_of_wait(command_class: type[Command]) -> str:
    """What a task does that waits in a command of this class, in a few words that are the same for all of them."""
    words = _words_of(command_class)
    return "waits" if words is None else words[0]


def _words_of(command_class: type[Command]) -> tuple[str, Describe] | None:
    return next((_WORDS[base] for base in command_class.__mro__ if base in _WORDS), None)


def holder_of(task: TaskHandle[Any]) -> TaskHandle[Any] | None:
    """The one task that can let another one go on: which it joins, or whose lock it waits for; else None."""
    command = task._waiting
    if isinstance(command, JoinCommand):
        return command.task_handle
    if isinstance(command, LockAcquireCommand):
        return command.lock.owner
    return None


def timer_in_words(timer: Timer) -> tuple[str, TaskHandle[Any] | None]:
    """What happens when a timer is due, and the task that it is for, where that can be told."""
    from .scopes import CancelScope  # which is built on what imports this
    from .tasks import TaskHandle

    fire, argument = timer[FIRE], timer[ARGUMENT]
    if isinstance(argument, TaskHandle):
        return f"wakes {argument.name}", argument
    if isinstance(argument, CancelScope):
        task = argument._task
        return ("ends the time limit of a block" if task is None else f"ends a time limit of {task.name}"), task
    if isinstance(argument, tuple) and argument and isinstance(argument[0], TaskHandle):
        return f"ends a wait of {argument[0].name}", argument[0]
    return f"calls {getattr(fire, '__qualname__', type(fire).__name__)}", None


def address_of(socket: Any, method: str) -> str:
    """An address of a socket in the usual notation, empty where there is none.

    Args:
        socket: The socket, or what is like one.
        method: ``"getsockname"`` or ``"getpeername"``.
    """
    try:
        return address_in_words(getattr(socket, method)())
    except (OSError, AttributeError):
        return ""


def address_in_words(address: Any) -> str:
    """An address in the usual notation; empty where there is none, as of the client of a Unix socket.

    The path of a Unix socket is what its user has bound it to. Here it begins no line of a log, and moves no cursor.
    """
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    if isinstance(address, bytes):
        address = os.fsdecode(address)
    text = str(address or "").replace("\0", "@")  # as ss(8) shows abstract names
    return text if text.isprintable() else "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def peer_in_words(address: Any) -> str:
    """As :func:`address_in_words`, of whoever a connection was accepted from; never empty."""
    return address_in_words(address) or "a local client"


# ------------------------------------------------------------------------------------------------------------ the words


def _sleep(task: TaskHandle[Any], command: SleepCommand) -> str:
    if command.seconds == inf:
        return "its cancellation, as it sleeps for ever"
    left = max(0.0, task._timer[DEADLINE] - task.event_loop.clock())
    return f"a timer, {left:.2f} s left of {command.seconds:g} s"


def _join(task: TaskHandle[Any], command: JoinCommand) -> str:
    return f"the end of {command.task_handle.name}"


def _cancel(task: TaskHandle[Any], command: CancelCommand) -> str:
    return f"the end of {command.task_handle.name}, which it has cancelled"


def _event(task: TaskHandle[Any], command: EventWaitCommand) -> str:
    return f"an event ({_waiting(command)})"


def _lock(task: TaskHandle[Any], command: LockAcquireCommand) -> str:
    owner = command.lock.owner
    return f"a lock{'' if owner is None else f' that {owner.name} has'} ({_waiting(command)})"


def _condition(task: TaskHandle[Any], command: ConditionWaitCommand) -> str:
    return f"a condition to be notified ({_waiting(command)})"


def _semaphore(task: TaskHandle[Any], command: SemaphoreAcquireCommand) -> str:
    return f"a permit of a semaphore ({_waiting(command)})"


def _barrier(task: TaskHandle[Any], command: BarrierWaitCommand) -> str:
    return f"the others at a barrier ({len(command.queue)} of {command.barrier.parties} are there)"


def _limiter(task: TaskHandle[Any], command: LimiterAcquireCommand) -> str:
    limiter = command.limiter
    return f"a token of a limiter ({limiter.borrowed_tokens} of {limiter.total_tokens} borrowed, {_waiting(command)})"


def _item(task: TaskHandle[Any], command: QueueGetCommand | QueuePeekCommand) -> str:
    return f"an item in {_queue(command.source)} ({_waiting(command)})"


def _room(task: TaskHandle[Any], command: QueuePutCommand) -> str:
    return f"room in {_queue(command.target)} ({_waiting(command)})"


def _queue(queue: BaseQueue[Any, Any]) -> str:
    name = type(queue).__name__
    return f"an {name}" if name[:1] in "AEIOU" else f"a {name}"


def _signal(task: TaskHandle[Any], command: SignalWaitCommand) -> str:
    named = {number.value: number.name for number in signal.Signals}
    return f"a signal: {', '.join(named.get(number, str(number)) for number in command.receiver.numbers)}"


def _group(task: TaskHandle[Any], command: GroupWaitCommand) -> str:
    number = len(command.group._tasks)
    return f"the end of {number} task{'' if number == 1 else 's'} of its group"


def _thread(task: TaskHandle[Any], command: ThreadCommand) -> str:
    function = command.function
    return f"a thread that runs {getattr(function, '__qualname__', None) or type(function).__name__}"


def _receive(task: TaskHandle[Any], command: SocketCommand) -> str:
    if _listens(_socket_of(command)):  # by wait_readable, as a server does
        return _accept(task, command)
    return f"data{_from_whom(command)}"


def _send(task: TaskHandle[Any], command: SocketCommand) -> str:
    peer = address_of(_socket_of(command), "getpeername")
    return f"room to send{peer and f' to {peer}'}{_fd_of(command)}"


def _accept(task: TaskHandle[Any], command: SocketCommand) -> str:
    name = address_of(_socket_of(command), "getsockname")
    return f"a connection{name and f' to {name}'}{_fd_of(command)}"


def _connect(task: TaskHandle[Any], command: SocketCommand) -> str:
    return f"its connection to be made{_fd_of(command)}"


def _readable(task: TaskHandle[Any], command: FdReadableCommand) -> str:
    return f"something to read{_from_whom(command)}"


def _writable(task: TaskHandle[Any], command: FdWritableCommand) -> str:
    return f"room to write{_fd_of(command)}"


def _waiting(command: QueueingCommand) -> str:
    return f"{len(command.queue)} waiting"


def _from_whom(command: SocketCommand | FdReadableCommand) -> str:
    socket = _socket_of(command)
    peer = address_of(socket, "getpeername")
    name = "" if peer else address_of(socket, "getsockname")
    return f"{peer and f' from {peer}'}{name and f' at {name}'}{_fd_of(command)}"


def _socket_of(command: SocketCommand | FdReadableCommand) -> Any:
    return None if command.record is None else command.record.socket()


def _listens(sock: Any) -> bool:
    try:
        return bool(sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN))
    except (OSError, AttributeError):  # it is closed; it is something else than a socket, or the system cannot say
        return False


def _fd_of(command: SocketCommand | FdReadableCommand | FdWritableCommand) -> str:
    return "" if command.record is None else f" on fd {command.record.fd}"


#: By the class of the command, or of what that is derived from: the kind of wait, and what says more of it.
_WORDS: dict[type[Command], tuple[str, Describe]] = {
    BarrierWaitCommand: ("waits for the others at a barrier", _barrier),
    CancelCommand: ("waits for the end of a task that it has cancelled", _cancel),
    ConditionWaitCommand: ("waits for a condition", _condition),
    EventWaitCommand: ("waits for an event", _event),
    FdReadableCommand: ("waits for something to read", _readable),
    FdWritableCommand: ("waits for room to write", _writable),
    GroupWaitCommand: ("waits for the tasks of its group", _group),
    JoinCommand: ("waits for the end of a task", _join),
    LimiterAcquireCommand: ("waits for a token of a limiter", _limiter),
    LockAcquireCommand: ("waits for a lock", _lock),
    QueueGetCommand: ("waits for an item", _item),
    QueuePeekCommand: ("waits for an item", _item),
    QueuePutCommand: ("waits for room in a queue", _room),
    SemaphoreAcquireCommand: ("waits for a permit of a semaphore", _semaphore),
    SignalWaitCommand: ("waits for a signal", _signal),
    SleepCommand: ("sleeps", _sleep),
    SocketAcceptCommand: ("waits for a connection", _accept),
    SocketConnectCommand: ("waits to be connected", _connect),
    SocketRecvCommand: ("waits for data", _receive),
    SocketSendCommand: ("waits for room to send", _send),
    ThreadCommand: ("waits for a thread", _thread),
}
