"""Blocks of code that are cancelled as one: time limits, and groups of tasks.

A scope is *level-triggered*: once it is cancelled, every wait inside of it raises TaskCancelled, until it has been
left. Scopes nest. Where several are cancelled, the outermost that can be seen delivers, and it alone swallows what it
has delivered; a shield keeps out what comes from outside of it, until it is left.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from math import inf
from types import coroutine
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from .commands import Command, GroupSpawnCommand, GroupWaitCommand, ShieldedGroupWaitCommand
from .errors import EventLoopError
from .running import here, required_event_loop
from .synchronization import Event
from .tasks import FAILED, TaskCancelled, TaskHandle, checked_name, coroutine_of
from .timers import checked_seconds

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from .timers import Timer

__all__ = ["CancelScope", "TaskGroup", "TaskStatus", "move_on_after", "move_on_at", "timeout", "timeout_at"]

T = TypeVar("T")


class CancelScope:
    """A block of code that can be cancelled, and may have a deadline. A context manager, by ``with`` or ``async with``.

    Args:
        deadline: When the block is cancelled by itself, in seconds of the loop's clock.
        shield: Whether what cancels from outside of the block, be it a scope or ``TaskHandle.cancel()``, waits until
            the block is left.

    Raises:
        TypeError: ``deadline`` is no number.
        ValueError: It is NaN.

    Attributes:
        cancel_called: Whether the scope has been cancelled, by :meth:`cancel` or its deadline.
        cancelled_caught: Whether the block was left because of that.

    Example:
        >>> from flowno import CancelScope, run, sleep
        >>> async def main():
        ...     with CancelScope() as scope:
        ...         scope.cancel()
        ...         await sleep(60)
        ...     return scope.cancelled_caught
        >>> run(main())
        True
    """

    __slots__ = (
        "__weakref__",
        "_children",  # the scopes right inside of this one, or None
        "_deadline",
        "_loop",
        "_members",  # the tasks of a group, which are inside of it from their beginning, or None
        "_seconds",  # a deadline that counts from when the block is entered
        "_shield",
        "_task",
        "_timer",
        "cancel_called",
        "cancelled_caught",
        "parent",
    )

    def __init__(self, *, deadline: float = inf, shield: bool = False) -> None:
        self._deadline = checked_seconds(deadline, "deadline")
        self._seconds: float | None = None
        self._shield = shield
        self.cancel_called = False
        self.cancelled_caught = False
        self.parent: CancelScope | None = None
        self._task: TaskHandle[Any] | None = None
        self._timer: Timer | None = None
        self._children: dict[CancelScope, None] | None = None
        self._members: dict[TaskHandle[Any], None] | None = None

    @property
    def deadline(self) -> float:
        """When the block is cancelled by itself, in seconds of the loop's clock; may be changed at any time."""
        return self._deadline

    @deadline.setter
    def deadline(self, deadline: float) -> None:
        deadline = checked_seconds(deadline, "deadline")
        sooner = deadline < self._deadline
        self._deadline = deadline
        self._seconds = None
        # A timer that is too early sets itself again when it fires; so an extension costs nothing.
        if self._task is not None and (sooner or self._timer is None):
            self._stop_timer()
            self._start_timer()

    @property
    def shield(self) -> bool:
        """Whether what cancels from outside waits until the block is left; may be changed at any time."""
        return self._shield

    @shield.setter
    def shield(self, shield: bool) -> None:
        self._shield = shield
        if self._task is not None:
            self._loop.cancel_inside(self)

    def cancel(self) -> None:
        """Cancel the block: every wait inside of it raises TaskCancelled, until it has been left. From any thread."""
        if self.cancel_called:
            return
        self.cancel_called = True
        if self._task is not None:
            self._loop.inbox.act(self._loop.cancel_inside, self)

    def __enter__(self) -> Self:
        if self._task is not None:
            raise EventLoopError(f"{self!r} was entered already; a scope serves one block, once")
        self._loop = loop = here.loop or required_event_loop("a cancel scope")
        self._task = task = cast(TaskHandle[Any], loop.running_task)
        self.parent = parent = task._scope
        task._scope = self
        if parent is not None:
            if parent._children is None:
                parent._children = {}
            parent._children[self] = None
        if self._seconds is not None:
            self._deadline = loop.clock() + self._seconds
        if self._deadline != inf:
            self._start_timer()
        if self.cancel_called or self._shield:
            task._refresh()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> bool:
        task = cast(TaskHandle[Any], self._task)
        if task._scope is not self:
            raise EventLoopError(f"{self!r} was left while {task._scope!r}, which is inside of it, was not")
        parent = self.parent
        task._scope = parent
        if parent is not None and parent._children is not None:
            del parent._children[self]
        if self._timer is not None:
            self._stop_timer()
        if self.cancel_called or self._shield:
            task._refresh()
        if error is None:
            return False
        if isinstance(error, BaseExceptionGroup):
            ours, others = error.split(lambda each: isinstance(each, TaskCancelled) and each.scope is self)
            self.cancelled_caught = ours is not None
            if ours is not None and others is not None:
                raise others from None
        else:
            self.cancelled_caught = isinstance(error, TaskCancelled) and error.scope is self
        return self.cancelled_caught

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> bool:
        return self.__exit__(kind, error, tb)

    def tasks_inside(self) -> dict[TaskHandle[Any], None]:
        """The tasks that are inside of this block now, each of them once."""
        inside: dict[TaskHandle[Any], None] = {}
        scopes: list[CancelScope] = [self]
        while scopes:  # not by recursion: they may nest deeper than Python allows
            scope = scopes.pop()
            if scope._task is not None:
                inside[scope._task] = None
            if scope._members:
                inside.update(scope._members)
            if scope._children:
                scopes.extend(reversed(scope._children))
        return inside

    def adopt(self, task: TaskHandle[Any]) -> None:
        """Have a new task be inside of this block until it ends."""
        if self._members is None:
            self._members = {}
        self._members[task] = None
        task._scope = self
        task._refresh()

    def release(self, task: TaskHandle[Any]) -> None:
        """A task that was adopted has ended."""
        if self._members is not None:
            self._members.pop(task, None)

    def _start_timer(self) -> None:
        if self._deadline != inf:
            self._timer = self._loop.timers.add(self._deadline, self._fire, None)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._loop.timers.cancel(self._timer)
            self._timer = None

    def _fire(self, _: None) -> None:
        self._timer = None
        if self._loop.clock() < self._deadline:
            self._start_timer()
        else:
            self.cancel()

    def __repr__(self) -> str:
        state = "cancelled" if self.cancel_called else "active" if self._task is not None else "not entered"
        limit = "" if self._deadline == inf else f", deadline {self._deadline:g}"
        return f"<{type(self).__name__} {state}{limit}{', shielded' if self._shield else ''}>"


class _TimeLimit(CancelScope):
    """A scope whose deadline is an error."""

    __slots__ = ()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> bool:
        swallowed = super().__exit__(kind, error, tb)
        if swallowed:
            limit = f"{self._seconds:g} s" if self._seconds is not None else "its time limit"
            raise TimeoutError(f"the block took longer than {limit}") from error
        return swallowed


def _within(scope: CancelScope, seconds: float | None) -> None:
    if seconds is not None:
        scope._seconds = checked_seconds(seconds, "seconds")


def move_on_after(seconds: float | None, *, shield: bool = False) -> CancelScope:
    """A block that is cancelled after some time, and then left without an error; ``cancelled_caught`` says so.

    Args:
        seconds: Counted from when the block is entered; None sets no limit.
        shield: As of :class:`CancelScope`.

    Raises:
        TypeError: ``seconds`` is no number.
        ValueError: It is NaN.

    Example:
        >>> from flowno import move_on_after, run, sleep
        >>> async def main():
        ...     with move_on_after(0.001) as scope:
        ...         await sleep(60)
        ...     return scope.cancelled_caught
        >>> run(main())
        True
    """
    scope = CancelScope(shield=shield)
    _within(scope, seconds)
    return scope


def move_on_at(deadline: float, *, shield: bool = False) -> CancelScope:
    """As :func:`move_on_after`, up to a time of the loop's clock."""
    return CancelScope(deadline=deadline, shield=shield)


def timeout(seconds: float | None) -> CancelScope:
    """A block that is cancelled after some time, and then raises TimeoutError.

    Args:
        seconds: Counted from when the block is entered; None sets no limit.

    Raises:
        TypeError: ``seconds`` is no number.
        ValueError: It is NaN.

    Example:
        >>> from flowno import run, sleep, timeout
        >>> async def main():
        ...     async with timeout(0.001):
        ...         await sleep(60)
        >>> run(main())
        Traceback (most recent call last):
        TimeoutError: the block took longer than 0.001 s
    """
    scope = _TimeLimit()
    _within(scope, seconds)
    return scope


def timeout_at(deadline: float) -> CancelScope:
    """As :func:`timeout`, up to a time of the loop's clock."""
    return _TimeLimit(deadline=deadline)


class TaskStatus(Generic[T]):
    """By which a task that was begun with :meth:`TaskGroup.start` says that it is ready."""

    __slots__ = ("_event", "error", "is_ready", "value")

    def __init__(self) -> None:
        self._event = Event()
        self.is_ready = False
        self.value: T | None = None
        self.error: BaseException | None = None

    def started(self, value: T | None = None) -> None:
        """Say that the task is ready; ``start`` returns this value.

        Raises:
            EventLoopError: It was said already.
        """
        if self.is_ready:
            raise EventLoopError("started() was called twice")
        self.is_ready = True
        self.value = value
        self._event.set()

    def fail(self, error: BaseException) -> None:
        """The task has ended before it was ready."""
        self.error = error
        self._event.set()

    def settled(self) -> Awaitable[None]:
        """Wait until the task is ready, or has ended."""
        return self._event.wait()


class TaskGroup:
    """Tasks that live no longer than a block of code. An asynchronous context manager.

    The block is left when all of them have ended. Where one fails, or the block does, the others are cancelled, and the
    errors are raised together as an ExceptionGroup. Where the block is cancelled, so are they.

    Attributes:
        cancel_scope: The scope that the block and its tasks are inside of.

    Raises:
        ExceptionGroup: The errors of the tasks, and of the block.

    Example:
        >>> from flowno import TaskGroup, run, sleep
        >>> async def double(number):
        ...     await sleep(0)
        ...     return 2 * number
        >>> async def main():
        ...     async with TaskGroup() as group:
        ...         tasks = [await group.spawn(double(number)) for number in range(3)]
        ...     return [await task.join() for task in tasks]
        >>> run(main())
        [0, 2, 4]
    """

    __slots__ = ("__weakref__", "_errors", "_is_open", "_tasks", "cancel_scope", "waiters")

    def __init__(self) -> None:
        self.cancel_scope = CancelScope()
        self._tasks: dict[TaskHandle[Any], None] = {}
        self._errors: list[Exception] = []
        self._is_open = False
        self.waiters: dict[TaskHandle[Any], None] = {}

    @coroutine
    def spawn(self, coroutine: Awaitable[T], *, name: str | None = None) -> Generator[Command, Any, TaskHandle[T]]:
        """Start a task in the group. Its first step is made before this one goes on, as by :func:`~flowno.spawn`.

        Args:
            coroutine: What the task runs.
            name: What it is called in messages; by default, as the function that it runs.

        Raises:
            TypeError: That is no coroutine, or no name.
            EventLoopError: The block was left, or not entered yet.
        """
        raw_task = coroutine_of(coroutine, "TaskGroup.spawn()")
        self._check_open(raw_task)
        handle: TaskHandle[T] = yield GroupSpawnCommand(raw_task, self, checked_name(name))
        return handle

    def create_task(self, coroutine: Awaitable[T], *, name: str | None = None) -> TaskHandle[T]:
        """Start a task in the group; it begins with the loop's next batch. Not from another thread.

        Raises:
            As :meth:`spawn`.
        """
        raw_task = coroutine_of(coroutine, "TaskGroup.create_task()")
        self._check_open(raw_task)
        handle = required_event_loop("TaskGroup.create_task()").create_task(raw_task, name=name)
        self.adopt(handle)
        return handle

    async def start(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Start a task in the group, and wait until it says that it is ready.

        Args:
            function: Called with ``args`` and ``task_status``, a :class:`TaskStatus` whose ``started(value)`` it calls.
            args: Its positional arguments.

        Returns:
            The value that ``started`` was given.

        Raises:
            Exception: The task ended with this error before it was ready.
            EventLoopError: It ended without an error, and was never ready.
        """
        status: TaskStatus[Any] = TaskStatus()
        handle = await self.spawn(_begun_by(function, args, status))
        try:
            await status.settled()
        except BaseException:
            handle.cancel()
            raise
        if status.error is not None:
            raise status.error
        return status.value

    async def __aenter__(self) -> Self:
        self.cancel_scope.__enter__()
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> bool:
        scope = self.cancel_scope
        cancelled = error if isinstance(error, TaskCancelled) else None
        if error is not None:
            if isinstance(error, Exception):
                self._errors.insert(0, error)
            scope.cancel()
        if error is None or cancelled is not None or isinstance(error, Exception):
            try:
                await _wait_for(self)
            except TaskCancelled as late:
                cancelled = late
        self._is_open = False
        errors, self._errors = self._errors, []
        left_by = cancelled or error
        try:
            if not errors:
                kind = None if left_by is None else type(left_by)
                return scope.__exit__(kind, left_by, tb) or _raise_late(cancelled, error)
            foreign = cancelled is not None and cancelled.scope is None
            scope.__exit__(None, None, None)
            if foreign:
                cast(TaskHandle[Any], scope._task)._request_cancellation()  # it is not lost behind the errors
            raise ExceptionGroup("errors in a TaskGroup", errors) from None
        finally:
            del cancelled, error, errors, left_by  # their tracebacks have this frame

    @property
    def is_empty(self) -> bool:
        """Whether every task of the group has ended."""
        return not self._tasks

    def adopt(self, task: TaskHandle[Any]) -> None:
        """Take in a new task; for the loop."""
        self._tasks[task] = None
        self.cancel_scope.adopt(task)
        task._add_callback(self._child_ended)

    def _child_ended(self, task: TaskHandle[Any]) -> None:
        del self._tasks[task]
        self.cancel_scope.release(task)
        if task._state == FAILED:
            error = task._failure()
            if isinstance(error, Exception):
                self._errors.append(error)
            elif isinstance(error, TaskCancelled):
                self._errors.append(EventLoopError(f"a task of the group joined a task that was cancelled: {error}"))
            self.cancel_scope.cancel()
        if not self._tasks:
            for waiter in list(self.waiters):
                del self.waiters[waiter]
                waiter.event_loop.resume(waiter)

    def _check_open(self, raw_task: Any) -> None:
        if not self._is_open:
            raw_task.close()  # else Python adds to the error that it was never awaited
            raise EventLoopError("a task can be started in a group only inside of its block")

    def __repr__(self) -> str:
        return f"<TaskGroup of {len(self._tasks)} tasks, {self.cancel_scope!r}>"


def _raise_late(cancelled: TaskCancelled | None, error: BaseException | None) -> bool:
    """What is not the scope's own goes on: a cancellation that came while the block waited for its tasks."""
    if cancelled is None or cancelled is error:
        return False
    try:
        raise cancelled
    finally:
        del cancelled, error  # the traceback has this frame


@coroutine
def _wait_for(group: TaskGroup) -> Generator[Command, Any, None]:
    """Wait until every task of a group has ended. A cancellation is passed on to them first."""
    cancelled: TaskCancelled | None = None
    try:
        while group._tasks:
            if group.cancel_scope.cancel_called:
                yield ShieldedGroupWaitCommand(group)
                continue
            try:
                yield GroupWaitCommand(group)
            except TaskCancelled as error:
                cancelled = error
                group.cancel_scope.cancel()
        if cancelled is not None:
            raise cancelled
    finally:
        del cancelled


async def _begun_by(function: Callable[..., Awaitable[Any]], args: tuple[Any, ...], status: TaskStatus[Any]) -> Any:
    """A task of :meth:`TaskGroup.start`: what goes wrong before it is ready is for whoever started it."""
    try:
        value = await function(*args, task_status=status)
    except Exception as error:
        if status.is_ready:
            raise
        status.fail(error)
        return None
    except BaseException as error:
        if not status.is_ready:
            status.fail(EventLoopError(f"the task was cancelled before it was ready: {error}"))
        raise
    if not status.is_ready:
        status.fail(EventLoopError(f"{function!r} ended without calling task_status.started()"))
    return value
