"""Every command: what a task may ask of the event loop. Data, no behaviour.

A task yields a command and is resumed with its outcome. The loop looks up what to do by the command's class; a class
derived from one of these is carried out as its nearest base is. *Waits* may suspend the task, and are where a
cancellation arrives; the others (spawn, exit) always run.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from .backend import FileObject
    from .barriers import Barrier
    from .fd_table import FdRecord
    from .limiters import CapacityLimiter
    from .queues import BaseQueue
    from .scopes import TaskGroup
    from .signals import SignalReceiver
    from .sockets import SocketHandle
    from .synchronization import Condition, Event, Lock, Semaphore
    from .tasks import TaskHandle
    from .threads import ThreadJob

__all__ = [
    "BarrierWaitCommand",
    "CancelCommand",
    "Command",
    "ConditionNotifyCommand",
    "ConditionWaitCommand",
    "EventSetCommand",
    "EventWaitCommand",
    "ExitCommand",
    "FdCommand",
    "FdReadableCommand",
    "FdWritableCommand",
    "GiveWayCommand",
    "GroupSpawnCommand",
    "GroupWaitCommand",
    "JoinCommand",
    "LimiterAcquireCommand",
    "LockAcquireCommand",
    "LockReleaseCommand",
    "QueueGetCommand",
    "QueuePeekCommand",
    "QueuePutCommand",
    "QueueingCommand",
    "SemaphoreAcquireCommand",
    "ShieldedGiveWayCommand",
    "ShieldedGroupWaitCommand",
    "ShieldedLockAcquireCommand",
    "ShieldedThreadCommand",
    "ShieldedThreadWaitCommand",
    "SignalWaitCommand",
    "SleepCommand",
    "SocketAcceptCommand",
    "SocketCheckCommand",
    "SocketCommand",
    "SocketConnectCommand",
    "SocketRecvCommand",
    "SocketSendCommand",
    "SpawnCommand",
    "ThreadCommand",
]


class Command:
    """The base of all commands."""

    __slots__ = ()

    #: Whether the command may suspend its task: then it is where a cancellation arrives.
    is_wait: ClassVar[bool] = True

    #: Whether a task that waits in it is not taken out by a cancellation, which then arrives at its next wait.
    is_shielded: ClassVar[bool] = False


class SpawnCommand(Command):
    """Start a task; the answer is its :class:`~flowno.core.event_loop.tasks.TaskHandle`. Not a wait.

    Args:
        raw_task: The coroutine that the task will run.
        name: What the task is called, None for as its function is.
    """

    __slots__ = ("name", "raw_task")

    is_wait = False

    def __init__(self, raw_task: Awaitable[Any], name: str | None = None) -> None:
        self.raw_task = raw_task
        self.name = name

    def __repr__(self) -> str:
        return f"SpawnCommand({self.raw_task!r})"


class JoinCommand(Command):
    """Wait until a task has ended. A wait, without an answer: the outcome is at the handle.

    Args:
        task_handle: The task to wait for.
    """

    __slots__ = ("task_handle",)

    def __init__(self, task_handle: TaskHandle[Any]) -> None:
        self.task_handle = task_handle

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.task_handle!r})"


class CancelCommand(JoinCommand):
    """Cancel a task and wait until it has ended. A wait, without an answer: the outcome is at the handle.

    Args:
        task_handle: The task to cancel.
    """

    __slots__ = ()


class SleepCommand(Command):
    """Wait for some time; the answer is how long it took. A wait, also for 0 seconds.

    Args:
        seconds: How long; 0 and less let the other ready tasks run once.
    """

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.seconds!r})"


class GiveWayCommand(SleepCommand):
    """Let the other ready tasks run once. A wait."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class ShieldedGiveWayCommand(GiveWayCommand):
    """Let the other ready tasks run once, after an operation that has acted already: no wait."""

    __slots__ = ()

    is_wait = False
    is_shielded = True


class QueueingCommand(Command):
    """Wait in the queue of something that tasks wait for in turn, until whoever takes the task out resumes it. A wait.

    The classes below set the queue themselves: a call less for each wait.

    Attributes:
        queue: The tasks that wait, in the order in which they came.
    """

    __slots__ = ("queue",)

    queue: dict[TaskHandle[Any], None]


class EventWaitCommand(QueueingCommand):
    """Wait until an event has happened. A wait.

    Args:
        event: The event.
    """

    __slots__ = ("event",)

    def __init__(self, event: Event) -> None:
        self.queue = event.waiters
        self.event = event

    def __repr__(self) -> str:
        return f"EventWaitCommand({self.event!r})"


class EventSetCommand(Command):
    """Let an event happen, as its ``set()`` does. Not a wait.

    Args:
        event: The event.
    """

    __slots__ = ("event",)

    is_wait = False

    def __init__(self, event: Event) -> None:
        self.event = event

    def __repr__(self) -> str:
        return f"EventSetCommand({self.event!r})"


class LockAcquireCommand(QueueingCommand):
    """Wait until a lock belongs to this task. A wait.

    Args:
        lock: The lock.
    """

    __slots__ = ("lock",)

    def __init__(self, lock: Lock) -> None:
        self.queue = lock.waiters
        self.lock = lock

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.lock!r})"


class ShieldedLockAcquireCommand(LockAcquireCommand):
    """As :class:`LockAcquireCommand`, for a task that must have the lock before it can be cancelled: no wait."""

    __slots__ = ()

    is_wait = False
    is_shielded = True


class LockReleaseCommand(Command):
    """Release a lock, as its ``release()`` does. Not a wait.

    Args:
        lock: The lock.
    """

    __slots__ = ("lock",)

    is_wait = False

    def __init__(self, lock: Lock) -> None:
        self.lock = lock

    def __repr__(self) -> str:
        return f"LockReleaseCommand({self.lock!r})"


class ConditionWaitCommand(QueueingCommand):
    """Wait until a condition is notified, and its lock belongs to this task again. A wait.

    Args:
        condition: The condition.
    """

    __slots__ = ("condition",)

    def __init__(self, condition: Condition) -> None:
        self.queue = condition.waiters
        self.condition = condition

    def __repr__(self) -> str:
        return f"ConditionWaitCommand({self.condition!r})"


class ConditionNotifyCommand(Command):
    """Notify a condition, as its ``notify()`` and ``notify_all()`` do. Not a wait.

    Args:
        condition: The condition.
        all: Whether every task that waits is to go on, or the one that has waited longest.
    """

    __slots__ = ("all", "condition")

    is_wait = False

    def __init__(self, condition: Condition, all: bool = False) -> None:
        self.condition = condition
        self.all = all

    def __repr__(self) -> str:
        return f"ConditionNotifyCommand({self.condition!r}, {self.all!r})"


class SemaphoreAcquireCommand(QueueingCommand):
    """Wait for a permit of a semaphore. A wait.

    Args:
        semaphore: The semaphore.
    """

    __slots__ = ("semaphore",)

    def __init__(self, semaphore: Semaphore) -> None:
        self.queue = semaphore.waiters
        self.semaphore = semaphore

    def __repr__(self) -> str:
        return f"SemaphoreAcquireCommand({self.semaphore!r})"


class BarrierWaitCommand(QueueingCommand):
    """Wait at a barrier until as many tasks have come as it is for; the answer is the number of this one. A wait.

    Args:
        barrier: The barrier.
    """

    __slots__ = ("barrier",)

    def __init__(self, barrier: Barrier) -> None:
        self.queue = barrier.waiters
        self.barrier = barrier

    def __repr__(self) -> str:
        return f"BarrierWaitCommand({self.barrier!r})"


class LimiterAcquireCommand(QueueingCommand):
    """Wait for a token of a capacity limiter. A wait.

    Args:
        limiter: The limiter.
        borrower: Who is to have the token.
    """

    __slots__ = ("borrower", "limiter")

    def __init__(self, limiter: CapacityLimiter, borrower: Hashable) -> None:
        self.queue = limiter.waiters
        self.limiter = limiter
        self.borrower = borrower

    def __repr__(self) -> str:
        return f"LimiterAcquireCommand({self.limiter!r}, {self.borrower!r})"


class QueueGetCommand(QueueingCommand):
    """Wait for the next item of a queue, and take it out; the answer is the item. A wait.

    Args:
        source: The queue.
    """

    __slots__ = ("source",)

    def __init__(self, source: BaseQueue[Any, Any]) -> None:
        self.queue = source.getters
        self.source = source

    def __repr__(self) -> str:
        return f"QueueGetCommand({self.source!r})"


class QueuePeekCommand(QueueingCommand):
    """Wait for the next item of a queue, and leave it there; the answer is the item. A wait.

    Args:
        source: The queue.
    """

    __slots__ = ("source",)

    def __init__(self, source: BaseQueue[Any, Any]) -> None:
        self.queue = source.peekers
        self.source = source

    def __repr__(self) -> str:
        return f"QueuePeekCommand({self.source!r})"


class QueuePutCommand(QueueingCommand):
    """Wait for room in a queue, and put an item there. A wait.

    Args:
        target: The queue.
        item: The item.
    """

    __slots__ = ("item", "target")

    def __init__(self, target: BaseQueue[Any, Any], item: Any) -> None:
        self.queue = target.putters
        self.target = target
        self.item = item

    def __repr__(self) -> str:
        return f"QueuePutCommand({self.target!r}, {self.item!r})"


class SignalWaitCommand(QueueingCommand):
    """Wait for the next signal of a receiver; the answer is its number. A wait.

    Args:
        receiver: The receiver.
    """

    __slots__ = ("receiver",)

    def __init__(self, receiver: SignalReceiver) -> None:
        self.queue = receiver.waiters
        self.receiver = receiver

    def __repr__(self) -> str:
        return f"SignalWaitCommand({self.receiver!r})"


class GroupSpawnCommand(SpawnCommand):
    """As :class:`SpawnCommand`, for a task of a group. Not a wait.

    Args:
        raw_task: The coroutine that the task will run.
        group: The group.
        name: What the task is called, None for as its function is.
    """

    __slots__ = ("group",)

    def __init__(self, raw_task: Awaitable[Any], group: TaskGroup, name: str | None = None) -> None:
        super().__init__(raw_task, name)
        self.group = group


class GroupWaitCommand(QueueingCommand):
    """Wait until every task of a group has ended. A wait.

    Args:
        group: The group.
    """

    __slots__ = ("group",)

    def __init__(self, group: TaskGroup) -> None:
        self.queue = group.waiters
        self.group = group

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.group!r})"


class ShieldedGroupWaitCommand(GroupWaitCommand):
    """As :class:`GroupWaitCommand`, once the tasks are cancelled already: no wait."""

    __slots__ = ()

    is_wait = False
    is_shielded = True


class ExitCommand(Command):
    """End the run of the loop now. Not a wait, and it has no answer.

    Args:
        return_value: What ``run_until_complete(join=True)`` returns.
        exception: What it raises instead, where this is not None.
    """

    __slots__ = ("exception", "return_value")

    is_wait = False

    def __init__(self, return_value: object = None, exception: BaseException | None = None) -> None:
        self.return_value = return_value
        self.exception = exception

    def __repr__(self) -> str:
        return f"ExitCommand({self.return_value!r}, {self.exception!r})"


class ThreadCommand(Command):
    """Call a function in a worker thread; the answer is what it returns or raises. A wait.

    A cancelled task does not wait for the thread, whose outcome is then dropped. Where the thread makes a call into the
    loop, the task is resumed to carry it out; then it yields a command for the same job, and goes on waiting.

    Args:
        function: What to call.
        args: Its positional arguments.
        job: The record of the call, where there is one already; else the loop makes it.
    """

    __slots__ = ("args", "function", "job")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], job: ThreadJob | None = None) -> None:
        self.function = function
        self.args = args
        self.job = job

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.function!r}, {self.args!r})"


class ShieldedThreadCommand(ThreadCommand):
    """As :class:`ThreadCommand`, for a task that waits until the thread is done. A wait only before that has begun."""

    __slots__ = ()

    is_shielded = True


class ShieldedThreadWaitCommand(ShieldedThreadCommand):
    """As :class:`ShieldedThreadCommand`, once the thread has begun: no wait."""

    __slots__ = ()

    is_wait = False


class FdCommand(Command):
    """Wait until an fd is ready that no handle stands for. A wait; what for is said by the classes below.

    Args:
        fileobj: An fd, or an object that has one. The command keeps it.

    Attributes:
        record: The loop's record of the fd, from the moment in which the loop carries the command out.
    """

    __slots__ = ("fileobj", "record")

    def __init__(self, fileobj: FileObject) -> None:
        self.fileobj = fileobj
        self.record: FdRecord | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.fileobj!r})"


class FdReadableCommand(FdCommand):
    """Wait until an fd can be read without blocking."""

    __slots__ = ()


class FdWritableCommand(FdCommand):
    """Wait until an fd can be written without blocking."""

    __slots__ = ()


class SocketCommand(Command):
    """Wait until the socket of a handle is ready. A wait; what for is said by the classes below.

    It refers to its handle weakly: a handle keeps its commands and yields them again and again, and a reference in
    both directions would keep its socket open until the garbage collector came by.

    Args:
        handle: The handle whose socket is to become ready.
        record: The loop's record of that socket, where it is known already; else the loop finds it.
    """

    __slots__ = ("_handle", "record")

    def __init__(self, handle: SocketHandle, record: FdRecord | None = None) -> None:
        self._handle = weakref.ref(handle)
        self.record = record

    @property
    def handle(self) -> SocketHandle:
        """The handle that waits; ReferenceError where it is gone."""
        handle = self._handle()
        if handle is None:
            raise ReferenceError("the handle of this command no longer exists")
        return handle

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._handle()!r})"


class SocketCheckCommand(SocketCommand):
    """Let the other ready tasks run once, before an operation that is about to try. A wait.

    It is also where an operation finds out that its socket is in use by another event loop.

    Args:
        handle: The handle that is to be used.
        record: The loop's record of its socket.
        directions: A mask of ``selectors.EVENT_READ`` and ``EVENT_WRITE``: what the operation owns.
    """

    __slots__ = ("directions",)

    def __init__(self, handle: SocketHandle, record: FdRecord, directions: int) -> None:
        super().__init__(handle, record)
        self.directions = directions


class SocketSendCommand(SocketCommand):
    """Wait until the socket takes more data, or has failed."""

    __slots__ = ()


class SocketRecvCommand(SocketCommand):
    """Wait until the socket has data, is at its end, or has failed."""

    __slots__ = ()


class SocketAcceptCommand(SocketCommand):
    """Wait until a listening socket has a connection to accept."""

    __slots__ = ()


class SocketConnectCommand(SocketCommand):
    """Wait until a connection attempt has come to its end, good or bad."""

    __slots__ = ()
