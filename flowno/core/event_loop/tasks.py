"""The task record, its handle, and the exception that cancels it."""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Sequence
from contextvars import copy_context
from functools import partial
from gc import get_referents
from types import CoroutineType, GeneratorType
from types import coroutine as generator_based
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from .commands import CancelCommand, Command, GiveWayCommand, JoinCommand, ShieldedGiveWayCommand
from .errors import EventLoopError
from .operations import coroutine
from .running import calls_the_program, here, set_running

if TYPE_CHECKING:
    from contextvars import Context
    from traceback import StackSummary
    from types import FrameType
    from typing import AwaitableGenerator

    from .event_loop import EventLoop
    from .scopes import CancelScope
    from .synchronization import Lock
    from .timers import Timer

__all__ = ["TaskCancelled", "TaskHandle"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

logger = logging.getLogger("flowno.tasks")

#: How many operations in a row may succeed or fail without suspending their task, before it gives way to the others.
OPERATIONS_PER_STEP = 64

#: States of a task. The first is the only false one: "has it ended" is one truth test on the hot path.
ALIVE, RETURNED, FAILED, CANCELLED = 0, 1, 2, 3

#: What an operation yields that has done enough without suspending its task.
GIVE_WAY = GiveWayCommand()
GIVE_WAY_SHIELDED = ShieldedGiveWayCommand()

#: Of a generator function that ``types.coroutine`` has made a coroutine function. The name is that of :mod:`inspect`,
#: which takes longer to import than all of the core.
_CO_ITERABLE_COROUTINE = 0x100

_STATE_NAMES = ("alive", "finished", "failed", "cancelled")


class Budget:
    """How many operations the running step may still complete without suspending; shared by all tasks of a loop."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = OPERATIONS_PER_STEP


if TYPE_CHECKING:

    def completed(budget: Budget) -> AwaitableGenerator[Command, Any, None, Generator[Command, Any, None]]: ...
else:

    @generator_based  # it is also for what is no coroutine itself, such as an __await__
    def completed(budget):
        """The end of an operation that did not have to wait; after many of them the other tasks have their turn."""
        if budget.left > 0:
            budget.left -= 1
        else:
            yield GIVE_WAY


class TaskCancelled(BaseException):
    """Thrown into a task that is cancelled, at its current or next wait; and raised by a join of such a task.

    It is no ``Exception``, so that ``except Exception`` does not swallow it. A task that catches it should clean up and
    either re-raise it or return a value, which the canceller then gets.

    Attributes:
        by: The handle of the task that is, or was, cancelled. ReferenceError where nobody has that any more, of a task
            that failed while it handled this: an error and its context keep no handle alive.
        scope: The :class:`~flowno.CancelScope` that cancelled, and swallows this when it is left; None after
            ``cancel()``.
    """

    scope: CancelScope | None = None
    _was_thrown_in = False  # into ``by``, by the loop; not raised by a join of it
    _inside: CancelScope | None = None  # the innermost scope that the task was in when this was thrown in
    _interrupts: Sequence[TaskCancelled] = ()  # those before it that were still alive then

    def __init__(self, by: TaskHandle[Any]) -> None:
        # That this is the only one of the arguments, BaseException.__new__() has noted already.
        self._by: TaskHandle[Any] | weakref.ref[TaskHandle[Any]] = by

    @property
    def by(self) -> TaskHandle[Any]:
        by = self._by if isinstance(self._by, TaskHandle) else self._by()
        if by is None:
            raise ReferenceError("the task that this cancelled has failed, and nobody has its handle any more")
        return by

    def _take_interrupted(self, scope: CancelScope) -> TaskCancelled | None:
        """The last ``cancel()`` to have arrived inside of a scope, where this one came while it was being handled.

        The context of the exception does not say: Python replaces it when the exception passes through a coroutine that
        handles another. That there is one tells a cancellation that was being handled from one that was just kept.
        """
        interrupted = self._interrupts
        error: BaseException | None = self
        while isinstance(error, TaskCancelled):
            error._interrupts = ()  # they get this one as their context when they are raised again
            error = error.__context__
        if not interrupted or self.__context__ is None:
            return None
        self.by._delivered = weakref.ref(interrupted[-1])  # its handling goes on
        return next((each for each in reversed(interrupted) if each._arrived_in(scope)), None)

    def _arrived_in(self, scope: CancelScope) -> bool:
        inside = self._inside if self.scope is None else None
        while inside is not None and inside is not scope:
            inside = inside.parent
        return inside is not None

    def _let_go(self) -> None:
        """Keep the task alive no more."""
        if isinstance(self._by, TaskHandle):
            self.args = (repr(self._by),)
            self._by = weakref.ref(self._by)

    def __str__(self) -> str:
        return f"{self.args[0]} was cancelled"


class TaskHandle(Generic[T_co]):
    """A task: a coroutine that an event loop runs, seen by those who wait for it or cancel it.

    Handles are made by :func:`~flowno.spawn` and :meth:`EventLoop.create_task`, not by calling this class. For type
    checkers, ``TaskHandle[int]`` is a task that returns an int.

    Attributes:
        event_loop: The loop that runs the task.
        raw_task: Its coroutine.
    """

    __slots__ = (
        "__weakref__",
        # The rest is the loop's side of the task, for the modules beside this one.
        "_arrived",  # weak references to the cancel()s that were thrown in inside of scopes
        "_callbacks",  # called with this handle when the task has ended, or None
        "_cancel_pending",  # a cancellation to deliver at the next wait: one was requested, or a scope is cancelled
        "_cancel_requested",  # cancel() was called, and not delivered yet
        "_context",  # the contextvars.Context that its steps run in
        "_delivered",  # weak reference to the last TaskCancelled thrown in, or None
        "_error",  # what to throw in at the next step, or None
        "_joiners",  # the tasks that wait for its end, in order, or None
        "_locks",  # those that it has, or None
        "_name",  # what its maker has called it, or None
        "_result",  # its value, or its error, once it has ended
        "_run",  # context.run, bound
        "_scope",  # the innermost CancelScope that it is in, or None
        "_send",  # coroutine.send, bound
        "_state",
        "_timer",  # the timer of its last sleep; not set before the first
        "_unjoined",  # logs its error unless somebody asks for it
        "_value",  # what to send in at the next step
        "_waiting",  # the command that it waits in, None while it is ready or runs
        "event_loop",
        "raw_task",
    )

    def __init__(self, event_loop: EventLoop, raw_task: Coroutine[Any, Any, T_co], context: Context) -> None:
        self.event_loop = event_loop
        self.raw_task = raw_task
        self._context = context
        self._run: Callable[..., Any] = context.run
        if event_loop.step_wrappers:
            self._wrap_steps()
        self._send: Callable[[Any], Command] = raw_task.send
        self._value: Any = None
        self._error: BaseException | None = None
        self._waiting: Command | None = None
        self._state = ALIVE
        self._joiners: dict[TaskHandle[Any], None] | None = None
        self._locks: dict[Lock, None] | None = None
        self._name: str | None = None
        self._scope: CancelScope | None = None
        self._callbacks: list[Callable[[TaskHandle[Any]], object]] | None = None
        self._cancel_pending = False
        self._cancel_requested = False
        self._delivered: weakref.ref[TaskCancelled] | None = None
        self._arrived: Sequence[weakref.ref[TaskCancelled]] = ()
        self._unjoined: ErrorReport | None = None

    if TYPE_CHECKING:
        _result: Any
        _timer: Timer

    # --- for users ---------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What the task is called in messages and logs: by default, as the function that it runs. May be changed."""
        return self._name if self._name is not None else function_name(self.raw_task)

    @name.setter
    def name(self, name: str) -> None:
        self._name = checked_name(name)

    @property
    def is_finished(self) -> bool:
        """True once the task has returned a value."""
        return self._state == RETURNED

    @property
    def is_error(self) -> bool:
        """True once the task has ended with an error other than its own cancellation."""
        return self._state == FAILED

    @property
    def is_cancelled(self) -> bool:
        """True once the task has ended because it was cancelled; one that caught that and returned is finished."""
        return self._state == CANCELLED

    def done(self) -> bool:
        """Whether the task has ended, however it did."""
        return self._state != ALIVE

    def result(self) -> T_co:
        """What the task returned, without waiting: it must have ended.

        Raises:
            Exception: The error that the task ended with.
            TaskCancelled: The task was cancelled; ``by`` is its handle.
            EventLoopError: The task has not ended.
        """
        self._require_end("result()")
        try:
            return self._outcome()
        finally:
            del self  # the traceback of an error would tie it to the task that has it

    def exception(self) -> BaseException | None:
        """The error that the task ended with, None where it returned, without waiting: it must have ended.

        Whoever asks knows of the error; it is not logged as one that nobody joined any more.

        Raises:
            TaskCancelled: The task was cancelled; ``by`` is its handle.
            EventLoopError: The task has not ended.
        """
        self._require_end("exception()")
        if self._state == CANCELLED:
            raise TaskCancelled(self)
        return self._failure() if self._state == FAILED else None

    def add_done_callback(self, callback: Callable[[TaskHandle[T_co]], object]) -> None:
        """Have a function called when the task has ended; soon, where it has already.

        The loop calls it between two steps of its tasks, in a copy of the caller's context, with this handle. So it
        must not block; what it raises is logged. May be called from any thread.

        Args:
            callback: The function. One that was added twice is called twice.

        Raises:
            TypeError: ``callback`` cannot be called.
        """
        if not callable(callback):
            raise TypeError(f"callback must be a function of the handle, not {callback!r}")
        self.event_loop.inbox.act(self._add_callback, _DoneCallback(callback, copy_context()))

    def remove_done_callback(self, callback: Callable[[TaskHandle[T_co]], object]) -> int:
        """Take back what :meth:`add_done_callback` was given, as often as it was. Not from another thread.

        Returns:
            How often that was.
        """
        ours = [each for each in self._callbacks or () if isinstance(each, _DoneCallback) and each.function == callback]
        for each in ours:
            self._remove_callback(each)
        return len(ours)

    @property
    def waiting_for(self) -> Command | None:
        """The command that the task waits in, such as a :class:`~flowno.core.event_loop.commands.SleepCommand`.

        None while it runs or is ready to, and once it has ended.
        """
        return self._waiting

    def get_stack(self) -> StackSummary:
        """Where the task is: its frames, the outermost first, as :mod:`traceback` prints them.

        That goes down through everything that it awaits, or calls where it runs just now. Of a task that has not begun
        it is the first line of its function; of one that has ended, nothing. From any thread.

        Example:
            >>> from flowno import run, sleep, spawn
            >>> async def inner():
            ...     await sleep(60)
            >>> async def outer():
            ...     await inner()
            >>> async def main():
            ...     task = await spawn(outer())
            ...     return [frame.name for frame in task.get_stack()]
            >>> run(main())
            ['outer', 'inner', 'sleep']
        """
        from traceback import StackSummary

        return StackSummary.extract((frame, frame.f_lineno) for frame in self._frames())

    @coroutine
    def join(self) -> Generator[Command, Any, T_co]:
        """Wait until the task has ended.

        Returns:
            What the task returned.

        Raises:
            Exception: The error that the task ended with.
            TaskCancelled: The task was cancelled; ``by`` is its handle.
            EventLoopError: A task joins itself, or a task of another event loop.

        Cancellation: the task that waits stops waiting; the one that is waited for goes on.
        """
        if self._state:
            budget = self.event_loop.budget
            if budget.left <= 0 or self._state == CANCELLED:
                yield GIVE_WAY  # whoever was cancelled along with that task hears of the own cancellation first
            budget.left -= 1
        else:
            yield JoinCommand(self)
        if self._state == RETURNED:
            value: T_co = self._result
            return value
        try:
            return self._outcome()
        finally:
            del self  # the traceback of an error would tie it to the task that has it

    def cancel(self) -> Cancellation[T_co]:
        """Cancel the task: at once, whether or not the answer is awaited.

        :class:`TaskCancelled` is thrown in where the task waits; a task that is ready or runs keeps what it was given
        and gets it at its next wait, one that was not started yet at its first. It can be repeated. A task that has
        ended is left as it is. From another thread the loop is told, and acts with its next batch.

        Returns:
            An awaitable that waits for the task's end and gives its value (which may come from an ``except`` or
            ``finally``), or None where the cancellation went through. It raises the error of a task that ended with
            one.
        """
        loop = self.event_loop
        if loop is here.loop and not loop.inbox.sleeping:
            loop.cancel_now(self)
        else:
            loop.request_cancel(self)
        return Cancellation(self)

    def __repr__(self) -> str:
        function = function_name(self.raw_task)
        name = function if self._name is None else f"{self._name!r} {function}"
        return f"<TaskHandle {name} {_STATE_NAMES[self._state]}>"

    # --- for the loop ------------------------------------------------------------------------------------------------

    def _wrap_steps(self) -> None:
        """Have the steps run by the wrappers that the loop has now, the last one outermost."""
        self._run = self._context.run
        for wrapper in self.event_loop.step_wrappers:
            self._run = partial(wrapper, self, self._run)

    def _wake(self, ready: list[TaskHandle[Any]], value: Any = None, error: BaseException | None = None) -> None:
        """Go on with the answer of the command, or raise an error from it."""
        self._waiting = None
        self._value = value
        self._error = error
        ready.append(self)

    def _deliver_cancellation(self, ready: list[TaskHandle[Any]]) -> None:
        """Have the next step of a task that is at a wait raise TaskCancelled.

        A scope goes before ``cancel()``, which then arrives at the first wait after the scope is left.
        """
        error = TaskCancelled(self)
        error._was_thrown_in = True
        delivered = weakref.ref(error)
        if self._scope is not None:
            error.scope, _ = self._visible_cancellation()
            error._inside = self._scope
            if self._delivered is not None:
                alive = {each: None for ref in (*self._arrived, self._delivered) if (each := ref()) is not None}
                error._interrupts = list(alive)
            if error.scope is None:
                self._arrived = [*(ref for ref in self._arrived if ref() is not None), delivered]
        if error.scope is None:
            self._cancel_requested = self._cancel_pending = False
        self._delivered = delivered
        self._waiting = self._value = None
        self._error = error
        ready.append(self)

    @property
    def _has_swallowed_cancellation(self) -> bool:
        """Whether the task was cancelled and does not handle that any more: it neither cleans up nor lets it go on.

        The exception itself tells: Python keeps it alive for just as long as it is being handled.
        """
        return self._delivered is not None and self._delivered() is None

    def _readdress_cancellation(self) -> None:
        """A scope further out was cancelled before the step that is to raise what an inner one has delivered."""
        error = self._error
        if isinstance(error, TaskCancelled) and error._by is self and error.scope is not None:
            found, _ = self._visible_cancellation()
            error.scope = found or error.scope

    def _visible_cancellation(self) -> tuple[CancelScope | None, bool]:
        """The outermost cancelled scope that no shield hides, and whether there is a shield."""
        found = None
        scope = self._scope
        while scope is not None:
            if scope.cancel_called:
                found = scope
            if scope._shield:
                return found, True
            scope = scope.parent
        return found, False

    def _refresh(self) -> None:
        """Work out whether a cancellation is due, after the scopes have changed."""
        found, shielded = self._visible_cancellation()
        self._cancel_pending = found is not None or (self._cancel_requested and not shielded)

    def _request_cancellation(self) -> None:
        """Have a cancellation arrive at the next wait that is open to it."""
        self._cancel_requested = True
        self._refresh()

    def _withdraw_cancellation(self) -> None:
        """Have that not arrive any more."""
        self._cancel_requested = False
        self._refresh()

    def _add_callback(self, callback: Callable[[TaskHandle[Any]], object]) -> None:
        """Call this as a part of the task's end, before anybody is resumed; now, where it has ended."""
        if self._state:
            callback(self)
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)

    def _remove_callback(self, callback: Callable[[TaskHandle[Any]], object]) -> None:
        """Take back one of those, where it was not called yet."""
        if self._callbacks is not None and callback in self._callbacks:
            self._callbacks.remove(callback)

    def _require_end(self, asked: str) -> None:
        if not self._state:
            raise EventLoopError(f"{asked} of {self!r}, which has not ended; await its join()")

    def _frames(self) -> list[FrameType]:
        """The frames of the task, the outermost first."""
        frames = list(_frames_of(self.raw_task))
        thread = self.event_loop.inbox.thread_id
        if frames and self.event_loop.running_task is self and thread is not None:
            return _running_frames(frames[0], thread) or frames
        return frames

    def _outcome(self) -> T_co:
        """The value of an ended task, or its error raised; now somebody knows of it."""
        if self._state == RETURNED:
            value: T_co = self._result
            return value
        try:
            raise TaskCancelled(self) if self._state == CANCELLED else self._failure()
        finally:
            del self

    def _failure(self) -> BaseException:
        """The error of a failed task. Every joiner raises the same object, from the traceback that the task left."""
        if self._unjoined is not None:
            self._unjoined.is_known = True
            self._unjoined = None
        error, traceback = self._result
        return cast(BaseException, error.with_traceback(traceback))


def untie(error: BaseException, task: TaskHandle[Any]) -> None:
    """Undo the cycle of a task that has failed while it handled its cancellation: task, error, context, task."""
    seen: set[int] = set()  # a program can tie contexts to a ring
    context = error.__context__
    while context is not None and id(context) not in seen:
        seen.add(id(context))
        if isinstance(context, TaskCancelled) and context._by is task:
            context._let_go()
        context = context.__context__


class Cancellation(CancelCommand, Generic[T_co]):
    """What :meth:`TaskHandle.cancel` returns: await it to see the cancelled task to its end.

    It is the command itself, of which the loop knows that the task was told already.
    """

    __slots__ = ()

    def __await__(self) -> Generator[Command, Any, T_co | None]:
        handle: TaskHandle[T_co] = self.task_handle
        if handle._state:
            yield from completed(handle.event_loop.budget)
        else:
            yield self
        if handle._state == CANCELLED:
            return None
        try:
            return handle._outcome()
        finally:
            del self, handle


class ErrorReport:
    """Logs the error of a task when the task is dropped, unless somebody has asked for the error by then.

    An object of its own, so that tasks which end well pay for no finalizer.
    """

    __slots__ = ("__weakref__", "_error", "_name", "is_known")

    def __init__(self, name: str, error: BaseException) -> None:
        self.is_known = False
        self._name = name
        self._error = error

    def report(self) -> None:
        """Log it now, rather than when the task is dropped."""
        if not self.is_known:
            self.is_known = True
            logger.error("%s ended with an error that nobody joined", self._name, exc_info=self._error)

    __del__ = report


class _DoneCallback:
    """What a user wants to have called when a task has ended; the loop calls it with its next batch."""

    __slots__ = ("_context", "function")

    def __init__(self, function: Callable[[TaskHandle[Any]], object], context: Context) -> None:
        self.function = function
        self._context = context

    def __call__(self, task: TaskHandle[Any]) -> None:
        task.event_loop.inbox.post(self._call, task)

    @calls_the_program
    def _call(self, task: TaskHandle[Any]) -> None:
        try:
            self._context.run(self.function, task)
        except (Exception, TaskCancelled):
            logger.exception("a done callback of %r failed: %r", task, self.function)


class Done:
    """What an operation returns that acts at once: it may be awaited, and need not be.

    It has acted by then, so to await it is not where a cancellation arrives. But it counts, so that a task which does
    nothing else gives way to the others.
    """

    __slots__ = ()

    def __await__(self) -> Generator[Command, Any, None]:
        loop = here.loop
        if loop is not None:
            if loop.budget.left > 0:
                loop.budget.left -= 1
            else:
                yield GIVE_WAY_SHIELDED


class Left(Done):
    """What leaving an ``async with`` returns: to enter it has counted already.

    It never suspends the task, which a coroutine that is closed may not do.
    """

    __slots__ = ()

    def __await__(self) -> Generator[Command, Any, None]:
        return cast("Generator[Command, Any, None]", iter(()))


DONE = Done()
LEFT = Left()


def coroutine_of(awaitable: Awaitable[T], caller: str) -> Coroutine[Any, Any, T]:
    """The argument of ``caller`` as a coroutine; TypeError where it is none, saying what it is instead."""
    if type(awaitable) is CoroutineType:
        return awaitable
    if isinstance(awaitable, GeneratorType) and awaitable.gi_code.co_flags & _CO_ITERABLE_COROUTINE:
        return cast("Coroutine[Any, Any, T]", awaitable)
    if isinstance(awaitable, Coroutine):
        return awaitable
    what = f"{type(awaitable).__name__} {awaitable!r}"
    hint = "; call the function to get its coroutine" if callable(awaitable) else ""
    raise TypeError(f"{caller} takes a coroutine, not {what}{hint}")


def checked_name(name: object) -> str | None:
    """The name that a task is to have, None for that of its function.

    Raises:
        TypeError: It is no text.
    """
    if name is None or isinstance(name, str):
        return name
    raise TypeError(f"name must be a str, not {name!r}")


def function_name(raw_task: Any) -> str:
    """The name of the function whose call made a coroutine."""
    return getattr(raw_task, "__qualname__", None) or type(raw_task).__name__


#: Where Python keeps the frame of what can be awaited, and what that awaits: of coroutines, generators and asynchronous
#: generators.
_FRAMES = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))


def _frames_of(awaited: Any) -> Iterator[FrameType]:
    """The frames of a coroutine and of all that it awaits, the outermost first."""
    while awaited is not None:
        for frame_name, next_name in _FRAMES:
            if hasattr(awaited, frame_name):
                frame: FrameType | None = getattr(awaited, frame_name)
                if frame is not None:
                    yield frame
                awaited = getattr(awaited, next_name)
                break
        else:
            # A step of an asynchronous generator, or what __await__() of a coroutine gives, tells nothing itself.
            referents = get_referents(awaited)
            awaited = next((one for one in referents if any(hasattr(one, name) for name, _ in _FRAMES)), None)


def _running_frames(outermost: FrameType, thread: int) -> list[FrameType]:
    """What a thread is in just now, from this frame on; empty where it is not in it any more."""
    frames: list[FrameType] = []
    frame = sys._current_frames().get(thread)
    try:
        while frame is not None:
            frames.append(frame)
            if frame is outermost:
                return frames[::-1]
            frame = frame.f_back
        return []
    finally:
        del frames, frame  # this one is among them where the thread asks itself, and would be kept by itself


@calls_the_program
def close_coroutine(task: TaskHandle[Any]) -> None:
    """Close the coroutine of a task that will not run any more; what that raises is logged.

    What it does meanwhile it does as this task, in its loop: locks are released by their owner. It may not suspend, so
    what acts at once has to be done at once.
    """
    loop, outer_loop = task.event_loop, here.loop
    outer_task, loop.running_task = loop.running_task, task
    outer_left, loop.budget.left = loop.budget.left, OPERATIONS_PER_STEP
    outer_closing, here.closing = here.closing, True
    set_running(loop)
    try:
        task.raw_task.close()
    except BaseException:
        logger.exception("%r raised when its coroutine was closed", task)
    finally:
        here.closing = outer_closing
        set_running(outer_loop)
        loop.budget.left = outer_left
        loop.running_task = outer_task
