"""Several tasks as one thing to wait for: all their results, or each as it comes."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Iterable
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from .errors import EventLoopError
from .queues import AsyncQueue
from .running import required_event_loop
from .scopes import TaskGroup
from .tasks import TaskHandle, coroutine_of, function_name

if TYPE_CHECKING:
    from typing import Self

__all__ = ["as_completed", "gather"]

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")

logger = logging.getLogger("flowno.tasks")


@overload
async def gather(first: Awaitable[T1], /, *, return_exceptions: Literal[False] = ...) -> tuple[T1]: ...


@overload
async def gather(
    first: Awaitable[T1], second: Awaitable[T2], /, *, return_exceptions: Literal[False] = ...
) -> tuple[T1, T2]: ...


@overload
async def gather(
    first: Awaitable[T1], second: Awaitable[T2], third: Awaitable[T3], /, *, return_exceptions: Literal[False] = ...
) -> tuple[T1, T2, T3]: ...


@overload
async def gather(*coroutines: Awaitable[T], return_exceptions: Literal[False] = ...) -> tuple[T, ...]: ...


@overload
async def gather(first: Awaitable[T1], /, *, return_exceptions: Literal[True]) -> tuple[T1 | Exception]: ...


@overload
async def gather(
    first: Awaitable[T1], second: Awaitable[T2], /, *, return_exceptions: Literal[True]
) -> tuple[T1 | Exception, T2 | Exception]: ...


@overload
async def gather(
    first: Awaitable[T1], second: Awaitable[T2], third: Awaitable[T3], /, *, return_exceptions: Literal[True]
) -> tuple[T1 | Exception, T2 | Exception, T3 | Exception]: ...


@overload
async def gather(*coroutines: Awaitable[T], return_exceptions: bool) -> tuple[T | Exception, ...]: ...


async def gather(*coroutines: Awaitable[Any], return_exceptions: bool = False) -> tuple[Any, ...]:
    """Run coroutines side by side, each in a task of its own, and wait for all of them.

    Where one fails, the others are cancelled, and its error is raised when they have ended; no task is left behind.
    :class:`~flowno.TaskGroup` does the same for tasks that are started one by one, and raises all errors.

    Args:
        coroutines: What to run.
        return_exceptions: Whether an error is a result like any other, that cancels nothing.

    Returns:
        What they return, in the order of the arguments.

    Raises:
        Exception: The first error; those that the others end with while they are cancelled are logged.
        TaskCancelled: Somebody else cancelled one of the tasks; the others have ended by themselves.
        TypeError: One of them is no coroutine. None was started.

    Cancellation: all of them are cancelled, and have ended before it goes on.

    Example:
        >>> from flowno import gather, run, sleep
        >>> async def double(number):
        ...     await sleep(0)
        ...     return 2 * number
        >>> async def main():
        ...     return await gather(double(1), double(2))
        >>> run(main())
        (2, 4)
    """
    raw_tasks = _all_coroutines(coroutines)
    handles: list[TaskHandle[Any]] = []
    try:
        async with TaskGroup() as group:
            for raw_task in raw_tasks:
                if return_exceptions:
                    handles.append(await group.spawn(_settled(raw_task), name=function_name(raw_task)))
                else:
                    handles.append(await group.spawn(raw_task))
    except ExceptionGroup as group_of_errors:
        errors = group_of_errors.exceptions
    else:
        return tuple([handle.result() for handle in handles])
    first = errors[0]
    for error in errors[1:]:
        logger.error("gather() raises %r, and this is lost behind it", first, exc_info=error)
    context = first.__context__
    try:
        raise first  # not where the group of errors would be its context, which has it
    finally:
        first.__context__ = context
        error = None
        del first, context, errors, handles, raw_tasks, coroutines  # the traceback has this frame


def _all_coroutines(coroutines: Iterable[Awaitable[Any]]) -> list[Any]:
    """The arguments, all of which are coroutines; where one is not, the others are closed."""
    given = list(coroutines)
    try:
        return [coroutine_of(each, "gather()") for each in given]
    except TypeError:
        for each in given:
            close = getattr(each, "close", None)
            if close is not None:
                close()  # else Python adds to the error that it was never awaited
        raise


async def _settled(raw_task: Awaitable[Any]) -> Any:
    try:
        return await raw_task
    except Exception as error:
        return error


def as_completed(tasks: Iterable[TaskHandle[T]]) -> AsyncIterator[TaskHandle[T]]:
    """Step through tasks in the order in which they end: ``async for task in as_completed(tasks)``.

    What each has come to is at its handle, see :meth:`~flowno.TaskHandle.result`. The tasks are nobody's but their
    spawner's: leaving the loop early leaves them running, so a :class:`~flowno.TaskGroup` around it is a good idea.

    Args:
        tasks: Their handles; those that have ended already come first.

    Raises:
        TypeError: One of them is no handle.
        EventLoopError: One of them is another event loop's, or none runs in this thread.

    Cancellation: the tasks go on, and none is passed over: iterating again goes on with the next.

    Example:
        >>> from flowno import TaskGroup, as_completed, run, sleep
        >>> async def after(turns):
        ...     for _ in range(turns):
        ...         await sleep(0)
        ...     return turns
        >>> async def main():
        ...     async with TaskGroup() as group:
        ...         tasks = [await group.spawn(after(turns)) for turns in (20, 5, 10)]
        ...         return [task.result() async for task in as_completed(tasks)]
        >>> run(main())
        [5, 10, 20]
    """
    return _Completions(tasks)


class _Completions(Generic[T]):
    """What :func:`as_completed` gives."""

    __slots__ = ("_ended", "_running")

    def __init__(self, tasks: Iterable[TaskHandle[T]]) -> None:
        loop = required_event_loop("as_completed()")
        handles = list(dict.fromkeys(tasks))
        for handle in handles:
            if not isinstance(handle, TaskHandle):
                raise TypeError(f"as_completed() takes handles of tasks, as spawn() gives them, not {handle!r}")
            if handle.event_loop is not loop:
                raise EventLoopError(f"{handle!r} runs in {handle.event_loop!r}; only tasks of the same loop will do")
        self._ended: AsyncQueue[TaskHandle[T]] = AsyncQueue()
        self._running = len(handles)
        if not handles:
            self._ended.close()
        for handle in handles:
            handle._add_callback(self._take)

    def _take(self, task: TaskHandle[T]) -> None:
        self._ended.put_nowait(task)
        self._running -= 1
        if not self._running:
            self._ended.close()

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[TaskHandle[T]]:
        return self._ended.__anext__()

    def __repr__(self) -> str:
        return f"<as_completed() with {self._running + len(self._ended)} tasks to come>"
