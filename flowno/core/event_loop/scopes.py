"""Blocks of code that are cancelled as one: time limits, and groups of tasks.

A scope is *level-triggered*: once it is cancelled, every wait inside of it raises TaskCancelled, until it has been
left. Scopes nest. Where several are cancelled, the outermost that can be seen delivers, and it alone swallows what it
has delivered; a shield keeps out what comes from outside of it, until it is left.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Generator
from math import inf
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast

from .commands import Command, GroupSpawnCommand, GroupWaitCommand, ShieldedGroupWaitCommand
from .deadlock import who_waits_for_what
from .errors import EventLoopError
from .operations import coroutine
from .running import here, required_event_loop
from .synchronization import Event
from .tasks import CANCELLED, DONE, FAILED, TaskCancelled, TaskHandle, checked_name, coroutine_of
from .timers import checked_seconds

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from .event_loop import EventLoop
    from .timers import Timer

__all__ = [
    "CancelScope",
    "TaskGroup",
    "TaskStatus",
    "group_of",
    "move_on_after",
    "move_on_at",
    "timeout",
    "timeout_at",
]

T = TypeVar("T")

logger = logging.getLogger("flowno.tasks")

#: Of how many tasks a time limit says what they waited for.
_MOST_WAITS = 10


class CancelScope:
    """A block of code that can be cancelled, and may have a deadline. A context manager, by ``with`` or ``async with``.

    Args:
        deadline: When the block is cancelled by itself, in seconds of the loop's clock.
        shield: Whether what cancels from outside of the block, be it a scope or ``TaskHandle.cancel()``, waits until
            the block is left.

    Raises:
        TypeError: ``deadline`` is no number.
        ValueError: It is NaN.
        EventLoopError: The block is left by another task than entered it, or before one that is inside of it; as an
            asynchronous generator does that yields there. The scope is gone all the same.

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
        "_task",  # that is in the block now, or None
        "_timer",
        "_was_entered",
        "cancel_called",
        "cancelled_caught",
        "parent",
    )

    def __init__(self, *, deadline: float = inf, shield: bool = False) -> None:
        self._deadline = deadline if deadline is inf else checked_seconds(deadline, "deadline")
        self._seconds: float | None = None
        self._shield = shield
        self.cancel_called = False
        self.cancelled_caught = False
        self.parent: CancelScope | None = None
        self._loop: EventLoop | None = None  # while a task is in the block
        self._task: TaskHandle[Any] | None = None
        self._was_entered = False
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
        loop = self._loop
        # A timer that is too early sets itself again when it fires; so an extension costs nothing.
        if loop is not None and (sooner or self._timer is None):
            self._stop_timer(loop)
            if deadline <= loop.clock():
                self.cancel()
            else:
                self._start_timer(loop)

    @property
    def shield(self) -> bool:
        """Whether what cancels from outside waits until the block is left; may be changed at any time."""
        return self._shield

    @shield.setter
    def shield(self, shield: bool) -> None:
        self._shield = shield
        if self._loop is not None:
            self._loop.cancel_inside(self)

    def cancel(self) -> None:
        """Cancel the block: every wait inside of it raises TaskCancelled, until it has been left. From any thread."""
        if self.cancel_called:
            return
        self.cancel_called = True
        loop = self._loop  # which leaves the block in the loop's thread
        if loop is not None:
            loop.inbox.act(loop.cancel_inside, self)

    def __enter__(self) -> Self:
        if self._was_entered:
            raise EventLoopError(f"{self!r} was entered already; a scope serves one block, once")
        self._loop = loop = here.loop or required_event_loop("a cancel scope")
        self._was_entered = True
        task: TaskHandle[Any] = loop.running_task  # type: ignore[assignment]  # a loop that runs has one
        self._task = task
        self.parent = parent = task._scope
        task._scope = self
        if parent is not None:
            if parent._children is None:
                parent._children = {}
            parent._children[self] = None
        seconds = self._seconds
        if seconds is not None:
            self._deadline = loop.clock() + seconds
            if seconds <= 0:
                self.cancel_called = True
            else:
                self._start_timer(loop)
        elif self._deadline != inf:
            if self._deadline <= loop.clock():
                self.cancel_called = True
            else:
                self._start_timer(loop)
        if self.cancel_called or self._shield:
            task._refresh()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> bool:
        task = self._leave()
        if error is None:
            return False
        rest, interrupted = self._without_own(error)
        try:
            if rest is error:
                return False
            if rest is not None:
                if interrupted is not None:
                    task._request_cancellation()
                raise rest from None
            if interrupted is not None:
                raise interrupted
            return True
        finally:
            del error, rest, interrupted  # their tracebacks have this frame

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> bool:
        try:
            return self.__exit__(kind, error, tb)
        finally:
            del error, tb  # the traceback of what it raises has this frame

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
            if self._task is None and not self._members:
                self._loop = None

    def _leave(self) -> TaskHandle[Any]:
        """The block is left. Whatever is wrong with that, the scope is none of its task any more.

        Returns:
            The task.
        """
        task, loop = self._task, self._loop
        if task is None or loop is None:
            raise EventLoopError(f"{self!r} was left, and no task is in its block")
        if task._scope is not self or loop.running_task is not task or here.loop is not loop:
            raise self._misused(task, loop)
        parent = self.parent
        task._scope = parent
        if parent is not None and parent._children is not None:
            del parent._children[self]
        if self._timer is not None:
            loop.timers.cancel(self._timer)
            self._timer = None
        self._task = self._loop = None
        if self.cancel_called or self._shield:
            task._refresh()
        return task

    def _misuse(self) -> EventLoopError | None:
        """What is wrong with leaving the block now; where something is, the scope is none of its task any more."""
        task, loop = self._task, self._loop
        if task is None or loop is None:
            return None
        if task._scope is not self or loop.running_task is not task or here.loop is not loop:
            return self._misused(task, loop)
        return None

    def _misused(self, task: TaskHandle[Any], loop: EventLoop) -> EventLoopError:
        if loop.running_task is not task or here.loop is not loop:
            what = (
                f"{self!r} was entered by {task!r} and left by another task; the task that has entered a scope leaves "
                "it: do not yield inside of one in an asynchronous generator, or close that in the task that steps it"
            )
        else:
            what = (
                f"{self!r} was left while {task._scope!r}, which is inside of it, was not; the innermost is left "
                "first: do not yield inside of a scope in an asynchronous generator, or close that in the same block"
            )
        loop.inbox.act(CancelScope._take_out, self)
        return EventLoopError(what)

    def _take_out(self) -> None:
        """Out of the scopes of the task, wherever among them; those inside of it are now inside of its parent."""
        task, loop, parent = self._task, self._loop, self.parent
        if task is None or loop is None:
            return
        if task._scope is self:
            task._scope = parent
        if parent is not None and parent._children is not None:
            del parent._children[self]
        for child in [child for child in self._children or () if child._task is task]:
            del cast("dict[CancelScope, None]", self._children)[child]
            child.parent = parent
            if parent is not None:
                cast("dict[CancelScope, None]", parent._children)[child] = None
        self._stop_timer(loop)
        self._task = None
        if not self._members:
            self._loop = None
        task._refresh()

    def _without_own(self, error: BaseException) -> tuple[BaseException | None, TaskCancelled | None]:
        """What is left of an error without what this scope has delivered.

        Returns:
            Besides it, a cancellation of the task itself that this scope has interrupted the handling of.
        """
        own: list[TaskCancelled] = []

        def is_own(each: BaseException) -> bool:
            if not isinstance(each, TaskCancelled) or each.scope is not self:
                return False
            own.append(each)
            return True

        rest: BaseException | None = error
        if isinstance(error, BaseExceptionGroup):
            rest = error.split(is_own)[1]
        elif is_own(error):
            rest = None
        if not own:
            return error, None
        self.cancelled_caught = True
        found = [each._take_interrupted(self) for each in own]
        return rest, next((each for each in found if each is not None), None)

    def _start_timer(self, loop: EventLoop) -> None:
        if self._deadline != inf:
            self._timer = loop.timers.add(self._deadline, CancelScope._fire, self)

    def _stop_timer(self, loop: EventLoop) -> None:
        if self._timer is not None:
            loop.timers.cancel(self._timer)
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        loop = self._loop
        if loop is not None and loop.clock() < self._deadline:
            self._start_timer(loop)
        else:
            self._run_out()

    def _run_out(self) -> None:
        """The deadline has come."""
        self.cancel()

    def __repr__(self) -> str:
        state = "active" if self._task is not None else "left" if self._was_entered else "not entered"
        cancelled = ", cancelled" if self.cancel_called else ""
        limit = "" if self._deadline == inf else f", deadline {self._deadline:g}"
        return f"<{type(self).__name__} {state}{cancelled}{limit}{', shielded' if self._shield else ''}>"


def group_of(task: TaskHandle[Any]) -> CancelScope | None:
    """The block of the group that a task belongs to, which sees to its end; None where there is none. It only reads."""
    scope = task._scope
    while scope is not None:
        if scope._members is not None and task in scope._members:
            return scope
        scope = scope.parent
    return None


class _TimeLimit(CancelScope):
    """A scope whose deadline is an error."""

    __slots__ = ("_waits",)  # who waited for what when it came, in words; not set before that

    if TYPE_CHECKING:
        _waits: str

    def _run_out(self) -> None:
        tasks = list(self.tasks_inside())
        try:
            self._waits = who_waits_for_what(tasks[:_MOST_WAITS])
        except Exception:
            logger.exception("what a task waited for cannot be said")  # its repr is the program's
        else:
            if len(tasks) > _MOST_WAITS:
                self._waits += f"\n  and {len(tasks) - _MOST_WAITS} more"
        super()._run_out()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> bool:
        if error is None:
            self._leave()
            return False
        swallowed = super().__exit__(kind, error, tb)
        if not swallowed:
            return swallowed
        limit = f"{self._seconds:g} s" if self._seconds is not None else "its time limit"
        late = TimeoutError(f"the block took longer than {limit}")
        if hasattr(self, "_waits"):
            late.add_note(f"when the time was over:\n{self._waits}")
        try:
            raise late.with_traceback(tb)  # where the task has waited
        finally:
            late.__context__ = _handled_before(error)
            del late, error, tb  # the traceback has this frame


def _handled_before(error: BaseException | None) -> BaseException | None:
    """What was being handled when a cancellation came.

    It stands in the place of the cancellation as the context of an error that comes of it: that one leads to its task,
    which has the error, and none of the three would be freed with its last reference.
    """
    context = None if error is None else error.__context__
    while isinstance(context, TaskCancelled):
        context = context.__context__
    return context


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
    if seconds is not None:
        scope._seconds = checked_seconds(seconds, "seconds")
    return scope


def move_on_at(deadline: float, *, shield: bool = False) -> CancelScope:
    """As :func:`move_on_after`, up to a time of the loop's clock."""
    return CancelScope(deadline=deadline, shield=shield)


def timeout(seconds: float | None) -> CancelScope:
    """A block that is cancelled after some time, and then raises TimeoutError.

    A note of the error says what the tasks in the block waited for.

    Args:
        seconds: Counted from when the block is entered; None sets no limit.

    Raises:
        TypeError: ``seconds`` is no number.
        ValueError: It is NaN.

    Example:
        >>> from flowno import run, sleep, timeout
        >>> async def main():
        ...     try:
        ...         async with timeout(0.001):
        ...             await sleep(60)
        ...     except TimeoutError as error:
        ...         print(error)
        >>> run(main())
        the block took longer than 0.001 s
    """
    scope = _TimeLimit()
    if seconds is not None:
        scope._seconds = checked_seconds(seconds, "seconds")
    return scope


def timeout_at(deadline: float) -> CancelScope:
    """As :func:`timeout`, up to a time of the loop's clock."""
    return _TimeLimit(deadline=deadline)


class TaskStatus(Generic[T]):
    """By which a task that was begun with :meth:`TaskGroup.start` says that it is ready."""

    __slots__ = ("_event", "is_given_up", "is_ready", "value")

    def __init__(self) -> None:
        self._event = Event()
        self.is_ready = False
        self.is_given_up = False  # whoever began the task was cancelled, and waits for its end
        self.value: T | None = None

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

    def end(self) -> None:
        """The task has ended before it was ready."""
        self._event.set()

    def settled(self) -> Awaitable[None]:
        """Wait until the task is ready, or has ended."""
        return self._event.wait()


class TaskGroup:
    """Tasks that live no longer than a block of code. An asynchronous context manager.

    The block is left when all of them have ended. Where one fails, or the block does, the others are cancelled, and the
    errors are raised together as an ExceptionGroup. Where the block is cancelled, so are they.

    What ends the run, such as KeyboardInterrupt, does not wait for them, nor does a coroutine that the loop closes
    where it stands, which cannot wait any more: they are cancelled, and the loop ends them with all others.

    Attributes:
        cancel_scope: The scope that the block and its tasks are inside of.

    Raises:
        ExceptionGroup: The errors of the tasks, and of the block.
        EventLoopError: The block is left by another task than entered it.

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

    __slots__ = ("__weakref__", "_errors", "_is_open", "_starting", "_tasks", "cancel_scope", "waiters")

    def __init__(self) -> None:
        self.cancel_scope = CancelScope()
        self._tasks: dict[TaskHandle[Any], None] = {}
        self._starting: dict[Coroutine[Any, Any, Any], TaskStatus[Any]] = {}  # what start() waits for
        self._errors: list[BaseException] = []
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
        self._check(raw_task, name)
        handle: TaskHandle[T] = yield GroupSpawnCommand(raw_task, self, name)
        return handle

    def create_task(self, coroutine: Awaitable[T], *, name: str | None = None) -> TaskHandle[T]:
        """Start a task in the group; it begins with the loop's next batch. Not from another thread.

        Raises:
            As :meth:`spawn`.
        """
        raw_task = coroutine_of(coroutine, "TaskGroup.create_task()")
        self._check(raw_task, name)
        handle = required_event_loop("TaskGroup.create_task()").create_task(raw_task, name=name)
        self.adopt(handle)
        return handle

    def start(
        self, function: Callable[..., Awaitable[Any]], *args: Any, name: str | None = None
    ) -> Coroutine[Any, Any, Any]:
        """Start a task in the group, and wait until it says that it is ready.

        Args:
            function: Called with ``args`` and ``task_status``, a :class:`TaskStatus` whose ``started(value)`` it calls.
            args: Its positional arguments.
            name: What the task is called in messages; by default, as the function.

        Returns:
            The value that ``started`` was given.

        Raises:
            Exception: The task ended with this error before it was ready.
            EventLoopError: It ended without an error, and was never ready. Or the block was left, or not entered yet.
            TypeError: ``function`` is none, or what it returns no coroutine.

        Cancellation: the task is cancelled, and has ended before it goes on, unless it became ready all the same. An
        error that the task ends with is then one of the group.
        """
        if not callable(function):
            close = getattr(function, "close", None)
            if close is not None:
                close()  # else Python adds to the error that it was never awaited
            raise TypeError(
                f"TaskGroup.start() takes a function, not {function!r}; pass the function and its arguments, "
                "it is called with task_status"
            )
        return self._start(function, args, name)

    async def _start(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...], name: str | None) -> Any:
        status: TaskStatus[Any] = TaskStatus()
        raw_task = coroutine_of(function(*args, task_status=status), "TaskGroup.start()")
        self._starting[raw_task] = status
        handle: TaskHandle[Any] | None = None
        try:
            handle = await self.spawn(raw_task, name=name)
            await status.settled()
            if status.is_ready:
                return status.value
            if not handle.is_error:
                how = "was cancelled" if handle.is_cancelled else "ended"
                raise EventLoopError(f"{handle!r} {how} without calling task_status.started()")
            if isinstance(handle._result[0], TaskCancelled):
                raise EventLoopError(f"{handle!r} joined a task that was cancelled: {handle._failure()}")
            return handle.result()
        except TaskCancelled:
            if handle is not None:
                status.is_given_up = True
                handle.cancel()
                with CancelScope(shield=True):
                    await status.settled()
            raise
        except GeneratorExit:
            if handle is not None:
                handle.cancel()
            raise
        finally:
            self._starting.pop(raw_task, None)
            del handle, raw_task, status  # the traceback of an error would tie it to the task that has it

    async def __aenter__(self) -> Self:
        if self.cancel_scope._was_entered:
            raise EventLoopError(f"{self!r} was entered already; a group serves one block, once")
        self.cancel_scope.__enter__()
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> bool:
        scope, left_by = self.cancel_scope, error
        errors: list[BaseException] = []
        misuse = scope._misuse()
        may_wait = (
            not here.closing
            and (error is None or isinstance(error, _WAITED_AFTER))
            and (scope._loop is here.loop or not self._tasks)
        )
        if error is not None or misuse is not None or not may_wait:
            scope.cancel()
        try:
            try:
                if may_wait and self._tasks:
                    await _wait_for(self)
                elif may_wait and error is None:
                    await DONE
            except BaseException as late:  # it is cancelled, or closed where it stands
                scope.cancel()
                left_by = late
            self._is_open = False
            if isinstance(left_by, Exception):
                errors.append(left_by)
            errors += self._errors
            self._errors.clear()
            if misuse is not None:
                errors.append(misuse)
            if errors and (left_by is None or isinstance(left_by, _WAITED_AFTER)):
                self._raise_together(errors, left_by)
            while errors:
                logger.error("an error in a TaskGroup is lost behind %r", left_by, exc_info=errors.pop(0))
            if misuse is None and scope.__exit__(None if left_by is None else type(left_by), left_by, tb):
                return True
            if left_by is not None and left_by is not error:
                raise left_by
            return False
        finally:
            errors.clear()
            del error, left_by, misuse, tb  # their tracebacks have this frame

    def _raise_together(self, errors: list[BaseException], left_by: BaseException | None) -> NoReturn:
        """Raise the errors of the tasks, and of the block. A cancellation of this task is not lost behind them."""
        scope = self.cancel_scope
        rest = interrupted = None
        if left_by is not None:
            rest, interrupted = scope._without_own(left_by)
        if scope._task is not None:  # else it was taken out
            scope._leave()
        if isinstance(rest, BaseExceptionGroup) and not isinstance(rest, Exception):
            errors.insert(0, rest)
        elif isinstance(rest, TaskCancelled):
            if not rest._was_thrown_in:
                errors.insert(0, EventLoopError(f"the block of the group joined a task that was cancelled: {rest}"))
            elif rest.scope is None:
                interrupted = rest
        if interrupted is not None:
            interrupted.by._request_cancellation()
        together = BaseExceptionGroup("errors in a TaskGroup", list(errors))
        try:
            raise together from None
        finally:
            together.__context__ = _handled_before(left_by)
            errors.clear()
            del left_by, rest, interrupted, together  # the traceback has this frame

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
        scope = self.cancel_scope
        scope.release(task)
        if not self._is_open:
            return  # the block could not wait for it; its error is logged like any that nobody asks for
        status = self._starting.pop(task.raw_task, None) if self._starting else None
        if status is not None and not status.is_ready:
            status.end()
        if task._state == CANCELLED:
            last = None if task._delivered is None else task._delivered()
            if last is not None and last.scope is scope:
                scope.cancelled_caught = True
        elif task._state == FAILED and (status is None or status.is_ready or status.is_given_up):
            error = task._failure()
            if isinstance(error, Exception):
                self._errors.append(error)
            elif isinstance(error, TaskCancelled):
                self._errors.append(EventLoopError(f"a task of the group joined a task that was cancelled: {error}"))
            scope.cancel()
        if not self._tasks:
            for waiter in list(self.waiters):
                del self.waiters[waiter]
                waiter.event_loop.resume(waiter)

    def _check(self, raw_task: Coroutine[Any, Any, Any], name: str | None) -> None:
        try:
            checked_name(name)
            if not self._is_open:
                raise EventLoopError("a task can be started in a group only inside of its block")
        except (EventLoopError, TypeError):
            raw_task.close()  # else Python adds to the error that it was never awaited
            raise

    def __repr__(self) -> str:
        return f"<TaskGroup of {len(self._tasks)} tasks, {self.cancel_scope!r}>"


#: What may end the body of a group whose tasks are then waited for; anything else ends the run.
_WAITED_AFTER = (Exception, BaseExceptionGroup, TaskCancelled, GeneratorExit)


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
