"""Tasks that wait for each other: what the loop does for the commands of locks, queues and the like.

Who has to wait stands in the queue of the command, and is taken out of it by whoever lets it go on; see
:class:`~flowno.core.event_loop.commands.QueueingCommand`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import EventLoopError

if TYPE_CHECKING:
    from .commands import (
        BarrierWaitCommand,
        ConditionNotifyCommand,
        ConditionWaitCommand,
        EventSetCommand,
        EventWaitCommand,
        GroupWaitCommand,
        LimiterAcquireCommand,
        LockAcquireCommand,
        LockReleaseCommand,
        QueueGetCommand,
        QueueingCommand,
        QueuePeekCommand,
        QueuePutCommand,
        SemaphoreAcquireCommand,
    )
    from .event_loop import EventLoop
    from .tasks import TaskHandle

__all__ = ["Queueing"]


class Queueing:
    """Carries out the commands by which tasks wait for each other, for one run of an event loop.

    Which method is for which command stands in ``EventLoop._tables()``.

    Args:
        loop: The loop. It must not keep this for longer than a run: the two would be tied to each other.
    """

    __slots__ = ("_loop", "_ready")

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._ready = loop.ready

    def queue(self, task: TaskHandle[Any], command: QueueingCommand) -> None:
        """Put a task into the queue that its command is for."""
        queue = command.queue
        if queue and next(iter(queue)).event_loop is not self._loop:
            raise EventLoopError(
                f"{task!r} cannot wait where tasks of {next(iter(queue)).event_loop!r} wait; what tasks wait for each "
                "other by belongs to one event loop"
            )
        task._waiting = command  # before it can be found there: a signal handler may set the event just then
        queue[task] = None

    def forget(self, task: TaskHandle[Any], command: QueueingCommand) -> bool:
        """Take a task out of the queue of its command; False where somebody else has."""
        return command.queue.pop(task, self) is None

    def wait_for_group(self, task: TaskHandle[Any], command: GroupWaitCommand) -> None:
        if command.group.is_empty:
            task._wake(self._ready)
        else:
            self.queue(task, command)

    def acquire_lock(self, task: TaskHandle[Any], command: LockAcquireCommand) -> None:
        owner = command.lock.owner
        if owner is not None and owner is not task and owner.event_loop is self._loop:
            task._waiting = command  # who waits already is ours, too
            command.queue[task] = None
        elif command.lock._try_give_to(task):
            task._wake(self._ready)
        else:
            self.queue(task, command)

    def release_lock(self, task: TaskHandle[Any], command: LockReleaseCommand) -> None:
        command.lock.release()
        task._wake(self._ready)

    def wait_for_condition(self, task: TaskHandle[Any], command: ConditionWaitCommand) -> None:
        command.condition.lock._require_ownership("Condition.wait()")
        self.queue(task, command)
        command.condition.lock.release()

    def notify(self, task: TaskHandle[Any], command: ConditionNotifyCommand) -> None:
        if command.all:
            command.condition.notify_all()
        else:
            command.condition.notify()
        task._wake(self._ready)

    def acquire_semaphore(self, task: TaskHandle[Any], command: SemaphoreAcquireCommand) -> None:
        if command.semaphore._try_take():
            task._wake(self._ready)
        else:
            self.queue(task, command)

    def wait_at_barrier(self, task: TaskHandle[Any], command: BarrierWaitCommand) -> None:
        command.barrier._check_usable()
        if command.barrier._lacks_one:
            task._wake(self._ready, command.barrier._let_through())
        else:
            self.queue(task, command)

    def acquire_token(self, task: TaskHandle[Any], command: LimiterAcquireCommand) -> None:
        if command.limiter._has_token:
            command.limiter._lend_to(command.borrower)
            task._wake(self._ready)
        else:
            self.queue(task, command)

    def get(self, task: TaskHandle[Any], command: QueueGetCommand) -> None:
        source, queue = command.source, command.queue
        if source._kept:
            task._wake(self._ready, source._give_out())
        elif source._closed:
            source._check_open("get()")
        elif queue:
            self.queue(task, command)
        else:  # the usual case, without a call
            task._waiting = command
            queue[task] = None

    def peek(self, task: TaskHandle[Any], command: QueuePeekCommand) -> None:
        if command.source._kept:
            task._wake(self._ready, command.source._first())
        else:
            command.source._check_open("peek()")
            self.queue(task, command)

    def put(self, task: TaskHandle[Any], command: QueuePutCommand) -> None:
        command.target._check_open("put()")
        if command.target._has_room(command.item):
            command.target._take_in(command.item)
            task._wake(self._ready)
        else:
            self.queue(task, command)

    def wait_for_event(self, task: TaskHandle[Any], command: EventWaitCommand) -> None:
        self.queue(task, command)
        # Looked at once it can be found: a signal handler may have set it since the task looked.
        if command.event.is_set() and self.forget(task, command):
            task._wake(self._ready)

    def set_event(self, task: TaskHandle[Any], command: EventSetCommand) -> None:
        command.event.set()
        task._wake(self._ready)
