"""Who watches, and what they are told of the steps of tasks."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context, ContextVar
from functools import wraps
from threading import local
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakSet

from .. import exchange
from ..exchange import Exchange, Replacement
from ..tasks import TaskCancelled, TaskHandle
from .metadata import TaskSendMetadata, TaskThrowMetadata

if TYPE_CHECKING:
    from ..event_loop import EventLoop
    from .instrument import EventLoopInstrument

__all__ = ["Entries", "Entry", "stack", "steps", "tell", "those_here", "watch_steps_of", "watching"]

logger = logging.getLogger("flowno.instrumentation")


class Entry:
    """One entering of an instrument, which contexts may keep for long after it was left."""

    __slots__ = ("instrument", "is_active")

    def __init__(self, instrument: EventLoopInstrument) -> None:
        self.instrument: EventLoopInstrument | None = instrument  # until it is left
        self.is_active = True

    def leave(self) -> None:
        """It is told of nothing any more; also not by tasks that have it in their context."""
        with exchange.lock:
            was_active, self.is_active = self.is_active, False
        if was_active:
            self.instrument = None
            watching.end()
            if not watching.users:
                _watch_steps_no_more()


Entries: TypeAlias = tuple[Entry, ...]

#: Who was entered in this context, the last one first; some may have been left since.
stack: ContextVar[Entries] = ContextVar("flowno instruments", default=())


def _replacements() -> Iterator[Replacement]:
    """What is exchanged while somebody watches."""
    from .operations import replacements  # which tell those who are entered here

    yield Replacement(TaskHandle, "__init__", _watch_new_task)
    yield from replacements()


watching = Exchange(_replacements)


def those_here() -> Entries:
    """Who sees what is done here, the last one first."""
    entries = stack.get()
    return active(entries) if entries else entries


def active(entries: Entries) -> Entries:
    return tuple(entry for entry in entries if entry.is_active)


def tell(entries: Entries, hook: str, *args: Any) -> None:
    """Call a hook of each of them."""
    if not entries:
        return
    failed: BaseException | None = None
    token = stack.set(())  # what a hook does is not reported, or an instrument with a queue would never come to an end
    try:
        for entry in entries:
            instrument = entry.instrument
            if instrument is None:
                continue  # left just now, by another thread or by the hook before
            try:
                getattr(instrument, hook)(*args)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                failed = error
            if failed is not None:
                _leave_out(sys.exception(), failed)
                _take_out(instrument, hook, failed)
                failed = None
    finally:
        stack.reset(token)


def _leave_out(outer: BaseException | None, error: BaseException) -> None:
    """Have an error of a hook not come "during handling" of what the hook was told of, as the end of a step is."""
    while outer is not None and error.__context__ is not None:
        if error.__context__ is outer:
            error.__context__ = None
        else:
            error = error.__context__


def _take_out(instrument: EventLoopInstrument, hook: str, error: BaseException) -> None:
    """An instrument has raised."""
    name = type(instrument).__qualname__
    logger.error("%s.%s() raised; the instrument is not called any more", name, hook, exc_info=error)
    for entry in instrument._entries:
        entry.leave()


# ------------------------------------------------------------------------------------------------- the steps of tasks


class _Steps(local):
    """How many steps the loop of this thread has made, while it was watched: it tells what has suspended its task."""

    count = 0


steps = _Steps()

#: The loops whose steps are watched.
_watched_loops: WeakSet[EventLoop] = WeakSet()


def watch_steps_of(loop: EventLoop) -> None:
    with exchange.lock:
        _watched_loops.add(loop)
    if _watch_step not in loop.step_wrappers:
        loop.add_step_wrapper(_watch_step)


def _watch_steps_no_more() -> None:
    with exchange.lock:
        loops = list(_watched_loops)
        _watched_loops.clear()
    for loop in loops:
        loop.inbox.act(_stop_watching, loop)


def _stop_watching(loop: EventLoop) -> None:
    if watching.users:  # another one has come meanwhile
        with exchange.lock:
            _watched_loops.add(loop)
    elif _watch_step in loop.step_wrappers:
        loop.remove_step_wrapper(_watch_step)


def _watch_new_task(original: Callable[..., Any]) -> Callable[..., Any]:
    """A task that is made where somebody watches: its loop may be one that nobody has watched yet."""

    @wraps(original)
    def __init__(
        self: TaskHandle[Any], event_loop: EventLoop, raw_task: Coroutine[Any, Any, Any], context: Context
    ) -> None:
        original(self, event_loop, raw_task, context)
        if active(context.get(stack, ())):
            inbox = event_loop.inbox
            # That they are watched says nothing in another thread: they may be about to be watched no more.
            if not inbox.is_mine or _watch_step not in event_loop.step_wrappers:
                inbox.act(_watch_steps_from_now_on, self)

    return __init__


def _watch_steps_from_now_on(task: TaskHandle[Any]) -> None:
    """Watch the steps of a loop, and of a new task, which is not among those of the loop yet."""
    watch_steps_of(task.event_loop)
    task._wrap_steps()


def _watch_step(task: TaskHandle[Any], run: Callable[..., Any], method: Callable[[Any], Any], argument: Any) -> Any:
    """Make a step of a task; see :meth:`EventLoop.add_step_wrapper`."""
    steps.count += 1
    entries = active(task._context.get(stack, ()))
    if not entries:
        return run(method, argument)
    inside = task._context.run
    raw_task = task.raw_task
    metadata: TaskSendMetadata | TaskThrowMetadata
    if method is task._send:
        kind = "send"
        metadata = TaskSendMetadata(raw_task, argument)
    else:
        kind = "throw"
        metadata = TaskThrowMetadata(raw_task, _copy_of(argument))
    try:
        inside(tell, entries, f"on_task_before_{kind}", metadata)
        try:
            command = run(method, argument)
        except StopIteration as stop:
            inside(tell, entries, "on_task_completed", raw_task, stop.value)
            raise
        except BaseException as error:
            # Whose end it is, EventLoop._end_by_error() decides in the same way.
            was_cancelled = isinstance(error, TaskCancelled) and error._was_thrown_in and error._by is task
            inside(tell, entries, "on_task_cancelled" if was_cancelled else "on_task_error", raw_task, error)
            raise
        inside(tell, entries, f"on_task_after_{kind}", metadata, command)
        return command
    finally:
        del task, run, method, argument, inside, raw_task, metadata  # an error may lead here, and its task has that


def _copy_of(error: BaseException) -> BaseException:
    """What a hook may keep of an exception that is thrown in; see :class:`TaskThrowMetadata`."""
    if not isinstance(error, TaskCancelled):
        return error
    copy = TaskCancelled.__new__(TaskCancelled, *error.args)
    copy._by = error._by
    copy.scope = error.scope
    return copy
