"""Back from a worker thread into the event loop: run a coroutine there, call a function, ask whether to stop.

A thread that :func:`flowno.run_in_thread` has started is served by the task that waits for it: what that makes runs
inside of its cancel scopes, and in a copy of the thread's context variables. Other threads, and those whose task does
not wait any more, are served by a new task.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Any, TypeVar, TypeVarTuple, cast

from .core.event_loop.errors import EventLoopError
from .core.event_loop.event_loop import EventLoop, current_event_loop
from .core.event_loop.primitives import sleep
from .core.event_loop.tasks import TaskCancelled
from .core.event_loop.threads import ThreadCall, ThreadJob, current_job

__all__ = ["check_cancelled", "run", "run_sync"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def run(async_function: Callable[[*Ts], Awaitable[T]], *args: *Ts, loop: EventLoop | None = None) -> T:
    """Run a coroutine in an event loop, from another thread, and wait for it.

    Args:
        async_function: What returns the coroutine; called in the loop's thread.
        args: Its positional arguments.
        loop: Where; a new task runs it. None is for worker threads: the loop, and the task, that wait for this one.

    Returns:
        What the coroutine returns.

    Raises:
        BaseException: What the coroutine raises.
        TaskCancelled: The task that waits for this thread was cancelled while it ran the coroutine.
        TypeError: That function returns no coroutine, or ``loop`` is no event loop.
        EventLoopError: The loop does not run, or its run has ended before there was an answer; an event loop runs in
            this thread, which would wait for itself; or there is no ``loop``, and this is no worker thread.

    Example:
        >>> import flowno
        >>> from flowno import from_thread
        >>> def work():
        ...     return from_thread.run(flowno.sleep, 0)
        >>> async def main():
        ...     return await flowno.run_in_thread(work)
        >>> flowno.run(main())
        0.0
    """
    return cast(T, _call_in(loop, "from_thread.run()", async_function, args, is_async=True))


def run_sync(function: Callable[[*Ts], T], *args: *Ts, loop: EventLoop | None = None) -> T:
    """Call a function in the thread of an event loop, from another thread, and wait for it.

    Args:
        function: What to call; it must not block.
        args: Its positional arguments.
        loop: As of :func:`run`.

    Returns:
        What the function returns.

    Raises:
        BaseException: What the function raises. StopIteration is the cause of a RuntimeError.
        TypeError: ``loop`` is no event loop.
        EventLoopError: As of :func:`run`.

    Example:
        >>> import flowno
        >>> from flowno import from_thread
        >>> def work(event):
        ...     from_thread.run_sync(event.set)
        >>> async def main():
        ...     event = flowno.Event()
        ...     await flowno.run_in_thread(work, event)
        ...     return event.is_set()
        >>> flowno.run(main())
        True
    """
    return cast(T, _call_in(loop, "from_thread.run_sync()", function, args, is_async=False))


def check_cancelled() -> None:
    """See whether the task that waits for this worker thread is cancelled; for functions that take long.

    Raises:
        TaskCancelled: It is, or it does not wait any more. Let this pass, and the task ends by it.
        EventLoopError: This is no worker thread of :func:`flowno.run_in_thread`, or as of :func:`run`.

    Example:
        >>> import flowno
        >>> from flowno import from_thread
        >>> def work():
        ...     while True:
        ...         from_thread.check_cancelled()
        >>> async def main():
        ...     with flowno.move_on_after(0.01) as scope:
        ...         await flowno.run_in_thread(work)
        ...     return scope.cancelled_caught
        >>> flowno.run(main())
        True
    """
    job = _required_job("from_thread.check_cancelled()")
    if job.is_abandoned:
        raise TaskCancelled(job.task)
    if job.task._cancel_pending:
        run(sleep, 0)  # there the cancellation arrives, and comes back with whoever is to catch it


def _call_in(
    loop: EventLoop | None, operation: str, function: Callable[..., Any], args: tuple[Any, ...], *, is_async: bool
) -> Any:
    running = current_event_loop()
    if running is not None:
        raise EventLoopError(
            f"{operation} would block {running!r}, which runs in this thread; await the coroutine here"
        )
    job = None
    if loop is None:
        job = _required_job(operation)
        loop = job.task.event_loop
    elif not isinstance(loop, EventLoop):
        raise TypeError(f"loop must be an EventLoop or None, not {loop!r}")
    return ThreadCall(loop, function, args, copy_context(), job, is_async=is_async).wait()


def _required_job(operation: str) -> ThreadJob:
    job = current_job()
    if job is None:
        raise EventLoopError(f"{operation} was called in a thread that is not one of run_in_thread(): say which loop")
    return job
