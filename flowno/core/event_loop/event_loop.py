"""The event loop: run the ready tasks, carry out the commands that they yield, wait for what comes next.

One turn of the loop is: ask the selector what is ready, fire the timers that are due, make the calls of other threads,
then run every task that is ready by now, one step each. What becomes ready meanwhile is for the next turn, so that no
task keeps the others waiting.
"""

from __future__ import annotations

import errno
import logging
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextvars import Context, copy_context
from functools import partial
from math import inf
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, TypeVarTuple, cast, overload

from .backend import Selector, SelectorChoice, World, display_name, open_selector, world_of
from .commands import (
    BarrierWaitCommand,
    CancelCommand,
    Command,
    ConditionNotifyCommand,
    ConditionWaitCommand,
    EventSetCommand,
    EventWaitCommand,
    ExitCommand,
    FdReadableCommand,
    FdWritableCommand,
    GiveWayCommand,
    GroupSpawnCommand,
    GroupWaitCommand,
    JoinCommand,
    LimiterAcquireCommand,
    LockAcquireCommand,
    LockReleaseCommand,
    QueueGetCommand,
    QueueingCommand,
    QueuePeekCommand,
    QueuePutCommand,
    SemaphoreAcquireCommand,
    ShieldedGiveWayCommand,
    ShieldedGroupWaitCommand,
    ShieldedLockAcquireCommand,
    ShieldedThreadCommand,
    ShieldedThreadWaitCommand,
    SleepCommand,
    SocketAcceptCommand,
    SocketCheckCommand,
    SocketConnectCommand,
    SocketRecvCommand,
    SocketSendCommand,
    SpawnCommand,
    ThreadCommand,
)
from .deadlock import DeadlockPolicy, DeadlockWatch
from .ending import Ending
from .errors import BusyResourceError, EventLoopError, FlownoError
from .fd_table import FdTable
from .inbox import Inbox
from .observers import entering, leaving, observe
from .queueing import Queueing
from .running import calls_the_program, current_event_loop, current_task, fork_count, set_running
from .signals import Interrupts, Signals
from .tasks import (
    CANCELLED,
    FAILED,
    OPERATIONS_PER_STEP,
    RETURNED,
    Budget,
    Cancellation,
    ErrorReport,
    TaskCancelled,
    TaskHandle,
    checked_name,
    close_coroutine,
    coroutine_of,
    untie,
)
from .threads import Threads
from .timers import Timer, Timers

if TYPE_CHECKING:
    from selectors import SelectorKey
    from types import TracebackType
    from typing import Self

    from .scopes import CancelScope
    from .snapshots import LoopSnapshot

__all__ = ["EventLoop", "current_event_loop", "current_task", "run"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: Carries out a command for a task; or takes a task out of the wait that the command has put it into, and says whether
#: it was still there: a signal handler may cancel a task that is being woken just then.
Handler: TypeAlias = Callable[[TaskHandle[Any], Any], Any]

#: What to do for a command, by its class; None is to make the task ready again, and no more.
Table: TypeAlias = "dict[type[Command], Handler | None]"

#: Runs a step of a task, for those who watch: it is called with the task, a function, and what to call that with, which
#: runs the step, and returns what the task yields, or raises what leaves it.
StepWrapper: TypeAlias = Callable[[TaskHandle[Any], Callable[..., Any], Callable[[Any], Any], Any], Any]

#: Asks the selector, for those who watch: it is called with a function that does it, and the timeout to call that with,
#: and returns what is ready.
SelectWrapper: TypeAlias = Callable[
    [Callable[["float | None"], "list[tuple[SelectorKey, int]]"], "float | None"], "list[tuple[SelectorKey, int]]"
]

logger = logging.getLogger("flowno.loop")
selector_logger = logging.getLogger("flowno.selector")

#: Seconds. Longer waits are cut into pieces of this length, which every system's call can hold.
LONGEST_WAIT = 86_400.0

#: Seconds of quiet after which the loop looks, once, whether a socket that is waited for was closed behind its back. A
#: loop that is never quiet looks at the clock once in so many waits, and does it when that time has passed.
QUIET_BEFORE_AUDIT = 1.0
WAITS_PER_AUDIT = 64

#: The modules whose frames lead to an event loop, and all those that its handlers are in.
_LOOP = frozenset({__name__, Queueing.__module__})
_PACKAGE = f"{__package__}."

#: Which event loop uses a selector instance that was passed in, by the id of the selector, which that loop keeps alive.
_holders: weakref.WeakValueDictionary[int, EventLoop] = weakref.WeakValueDictionary()


class _Exit(BaseException):
    """Ends a run; see :func:`~flowno.exit`."""

    def __init__(self, command: ExitCommand) -> None:
        super().__init__(command)
        self.command = command


def handler_for(table: Table, command_class: type[Command]) -> Handler | None:
    """What a table says of a class: as of what it is derived from, and then it stands there itself."""
    for base in command_class.__mro__:
        if base in table:
            table[command_class] = table[base]
            return table[base]
    return _refuse


def _refuse(task: TaskHandle[Any], yielded: object) -> None:
    """What was yielded is not for this loop: the task is told where it awaited it."""
    raise TypeError(
        f"a task awaited something that yields {yielded!r}, which is no flowno command; "
        "the awaitables of asyncio and of other frameworks do not work in a flowno event loop"
    )


class EventLoop:
    """Runs tasks, and waits for their sockets by an exchangeable selector.

    A context manager: leaving it closes the loop. One that is dropped unclosed closes silently.

    Args:
        selector: What waits for the sockets: a name (``"epoll"``, ``"kqueue"``, ``"poll"``, ``"select"``, or one that a
            plug-in provides), several names in order of preference as a list or separated by commas,
            ``"package.module:factory"``, a factory, or a selector. None takes what the environment variable
            ``FLOWNO_SELECTOR`` says, and where that is empty, too, the best that this machine has. A name may stand
            within decorators, as in ``"trace(poll)"``. A selector that was passed in is not closed with the loop, and
            serves one loop at a time.
        deadlock: What happens when every task waits for another one: "raise" ends the run with DeadlockError, unless
            another thread or a signal handler of the program could still call in; then, and with "log", who waits for
            what is logged once, after 5 seconds. "off" just waits.
        debug: Whether to look for mistakes while the loop runs, at the cost of speed; see :doc:`/debug`. None takes
            what the environment variable ``FLOWNO_DEBUG`` says.

    Raises:
        UnknownSelectorError: Nothing is known by that name.
        SelectorUnavailableError: It is known, but not to be had on this machine.
        BusyResourceError: Another loop uses the selector that was passed in.
        TypeError: ``selector`` is none of these.
        ValueError: ``deadlock`` is none of these.

    Attributes:
        slow_step_duration: For debug mode, how many seconds a step of a task may take before it is reported. Of the
            class, and so of every loop, or of a loop of its own.

    Example:
        >>> async def main():
        ...     return "done"
        >>> with EventLoop() as loop:
        ...     loop.run_until_complete(main(), join=True)
        'done'
    """

    slow_step_duration = 0.1

    _closed = True  # until everything is there

    def __init__(
        self,
        selector: SelectorChoice | None = None,
        *,
        deadlock: DeadlockPolicy = "raise",
        debug: bool | None = None,
    ) -> None:
        self._deadlock = DeadlockWatch(deadlock)
        opened = open_selector(selector)
        self._selector_name = opened.name
        self._borrowed_selector = None if opened.owned else opened.selector
        if not opened.owned and _holders.setdefault(id(opened.selector), self) is not self:
            raise BusyResourceError(
                f"{opened.selector!r} is in use by {_holders[id(opened.selector)]!r}; a selector serves one event loop "
                "at a time: close that one first"
            )
        # For the rooms beside this one, and for the handles.
        self.budget = Budget()
        self.tasks: dict[TaskHandle[Any], None] = {}  # those that have not ended, oldest first
        self.ready: list[TaskHandle[Any]] = []  # each of them once
        self.running_task: TaskHandle[Any] | None = None
        self.task_class: type[TaskHandle[Any]] = TaskHandle  # of the tasks to come
        self.make_error_report: Callable[[str, BaseException], ErrorReport] = ErrorReport  # of what nobody has joined
        self.step_wrappers: list[StepWrapper] = []  # see add_step_wrapper()
        self.select_wrappers: list[SelectWrapper] = []  # see add_select_wrapper()
        self.close_callbacks: list[Callable[[], object]] = []  # called once, when the loop is closed or dropped
        self.endless: dict[TaskHandle[Any], None] = {}  # those that sleep until they are cancelled
        self.inbox = Inbox()
        self.signals = Signals(self.inbox)
        self.fds = FdTable(opened.selector, self.ready, self.budget, self.inbox)
        # Made for each run, and dropped with it: bound methods would tie the loop to itself.
        self.handlers: Table = {}
        self._forgetters: Table = {}
        try:
            self._world = world_of(opened.selector)
        except BaseException:
            self._release()
            raise
        self.clock = self._world.clock
        self.timers = Timers()
        self.threads = Threads(self.ready, self.inbox)
        self._unjoined: weakref.WeakSet[ErrorReport] = weakref.WeakSet()
        self._generators: weakref.WeakSet[AsyncGenerator[Any, Any]] = weakref.WeakSet()
        self._ending: Ending | None = None
        self._audited = False
        self._next_audit = 0.0
        self._waits = 0
        self._forks = fork_count()
        self._closed = False
        try:
            observe(self, debug)
        except BaseException:
            self.close()
            raise
        selector_logger.debug("%r waits by %r", self, self.fds.selector)

    # --- for users ---------------------------------------------------------------------------------------------------

    @property
    def selector(self) -> Selector:
        """What waits for the sockets."""
        return self.fds.selector

    @property
    def world(self) -> World:
        """Where the loop takes its time and its sockets from."""
        return self._world

    def create_task(self, coroutine: Awaitable[T], *, name: str | None = None) -> TaskHandle[T]:
        """Start a task, from any thread: the loop is woken where it waits. It runs in a copy of the caller's context.

        Args:
            coroutine: What the task runs.
            name: What it is called in messages; by default, as the function that it runs.

        Returns:
            Its handle. Before the loop runs, or from another thread, the task starts with the loop's next batch.

        Raises:
            TypeError: That is no coroutine, or no name.
            EventLoopError: The loop is closed.
        """
        raw_task = coroutine_of(coroutine, "create_task()")
        try:
            checked_name(name)
            self._check_open("start a task")
            task: TaskHandle[T] = self.task_class(self, raw_task, copy_context())
            task._name = name
            if self.inbox.is_mine:
                self.start(task)
            else:
                self._post(self.start, task, "start a task")
        except (EventLoopError, TypeError):
            raw_task.close()  # else Python adds to the error that it was never awaited
            raise
        return task

    def call_soon_threadsafe(self, function: Callable[[*Ts], object], *args: *Ts) -> None:
        """Call a function in the loop's thread, before its next batch of tasks; from any thread and signal handler.

        The loop is woken where it waits. Calls are made in the order in which they came, in a copy of the caller's
        context; where the loop does not run, with its next run. An error of the function is logged.

        Args:
            function: What to call. It must not block; to start a coroutine, :meth:`create_task` does.
            args: Its positional arguments.

        Raises:
            TypeError: ``function`` cannot be called.
            EventLoopError: The loop is closed.
        """
        if not callable(function):
            raise TypeError(f"call_soon_threadsafe() takes a function, not {function!r}")
        self._check_open("call a function")
        self._post(_call, (copy_context(), function, args), "call a function")

    def cancel(self, raw_task: Coroutine[Any, Any, Any]) -> bool:
        """Cancel the task that runs a coroutine, as :meth:`TaskHandle.cancel` does.

        Returns:
            Whether there is such a task, and it has not ended.
        """
        for task in self.living_tasks():
            if task.raw_task is raw_task:
                self.request_cancel(task)
                return True
        return False

    def snapshot(self) -> LoopSnapshot:
        """What the loop does now: its tasks, where they are and what they wait for, registrations, timers, counters.

        From any thread and signal handler, also while the loop is stuck in a step. It never raises and changes nothing.
        Of a loop that runs in another thread meanwhile, each task is as it was at some moment of the call.

        Example:
            >>> from flowno import current_event_loop, run, sleep, spawn
            >>> async def main():
            ...     await spawn(sleep(60), name="sleeper")
            ...     return current_event_loop().snapshot()
            >>> [(task.name, task.state, task.command) for task in run(main()).tasks]
            [('main', 'running', None), ('sleeper', 'waiting', 'SleepCommand')]
        """
        from .snapshots import take_snapshot

        return take_snapshot(self)

    def has_living_tasks(self) -> bool:
        """Whether any task has not ended."""
        return bool(self.living_tasks())

    @property
    def is_closed(self) -> bool:
        """Whether the loop was closed, and can be run no more."""
        return self._closed

    @overload
    def run_until_complete(
        self, root: Awaitable[T], join: Literal[False] = ..., wait_for_spawned_tasks: bool = ...
    ) -> None: ...

    @overload
    def run_until_complete(
        self, root: Awaitable[T], join: bool = ..., wait_for_spawned_tasks: bool = ...
    ) -> T | Any: ...

    def run_until_complete(
        self, root: Awaitable[T], join: bool = False, wait_for_spawned_tasks: bool = True
    ) -> T | Any | None:
        """Run a coroutine as a task, and every task that it spawns.

        Args:
            root: The coroutine.
            join: Whether to return its value and raise its error. Otherwise an error is logged, with its traceback.
            wait_for_spawned_tasks: Whether to go on until every task has ended, or to return when ``root`` has. Tasks
                that are left wait for the next run of this loop.

        Returns:
            With ``join``, the value of ``root``, or of :func:`~flowno.exit` where that ended the run; otherwise None.

        Ctrl-C in the main thread, where the program has set no handler for SIGINT, cancels ``root``, and then the other
        tasks; all of them run until they have ended before KeyboardInterrupt is raised. A root that deals with its
        cancellation and returns a value goes on as if nothing had happened. A second Ctrl-C raises KeyboardInterrupt at
        once, wherever the program is.

        Raises:
            Exception: With ``join``, the error of ``root``; always, that of ``exit(exception=...)``.
            TaskCancelled: With ``join``, ``root`` was cancelled.
            KeyboardInterrupt: By Ctrl-C, as said above. It has the error of ``root`` as its context where the clean-up
                failed.
            BaseException: What left a task and is neither an ``Exception`` nor ``TaskCancelled``, such as
                KeyboardInterrupt. The other tasks are cancelled, and run until they have ended, before it is raised.
            EventLoopError: The loop is closed or runs already, or another one runs in this thread.
            TypeError: ``root`` is no coroutine.
        """
        raw_task = coroutine_of(root, "run_until_complete()")
        task = self.task_class(self, raw_task, copy_context())
        try:
            self._enter(task, goes_on=wait_for_spawned_tasks)
        except BaseException:
            raw_task.close()  # else Python adds to the error that it was never awaited
            raise
        interrupts = self._interrupts
        command: ExitCommand | None = None
        try:
            try:
                task._wrap_steps()  # who watches every run has come since it was made
                self.start(task)
                interrupts.listen()
                self.run_until(None if wait_for_spawned_tasks else task)
                interrupts.check()
            except _Exit as ended:
                command = ended.command
                late = self._cancel_all()
                if late is not None and command.exception is None:
                    raise late from None
            except BaseException:
                self._cancel_all(at_once=interrupts.was_repeated)
                raise
            if join and command is None and task._unjoined is not None:
                task._unjoined.is_known = True  # it is raised below
        except BaseException:
            del task, raw_task, root  # the traceback has this frame, and the task has the error
            raise
        finally:
            interrupts.is_listening = False  # no call: between this and what came before, nothing can come
            self._leave()
        if command is None:
            try:
                return task._outcome() if join else None
            finally:
                del task
        if command.exception is None:
            return command.return_value if join else None
        exception = command.exception
        try:
            raise exception
        finally:
            del command, exception  # the traceback has this frame

    def close(self) -> None:
        """Cancel the tasks that are left, run them to their end, and give back what the loop holds. Idempotent.

        Raises:
            EventLoopError: The loop is running.
        """
        if self._closed:
            return
        if self.inbox.thread_id is not None:
            raise EventLoopError(f"{self!r} is running; a loop is closed after its run, or by exit()")
        try:
            if self.tasks or self.inbox.items or self._generators:
                self._enter()
                interrupts = self._interrupts
                try:
                    interrupts.listen()
                    late = self._cancel_all()
                    for generator in list(self._generators):
                        self.run_until(self._close_generator(generator))
                finally:
                    interrupts.is_listening = False
                    self._leave()
                if late is not None:
                    raise late
        finally:
            self._closed = True
            try:
                while self.inbox.items:  # other threads have posted them since
                    self.inbox.run()
            finally:
                self.ready.clear()
                for task in list(self.tasks):
                    close_coroutine(task)
                    self.end_task(task, CANCELLED, None)
                self._release()

    def __enter__(self) -> Self:
        self._check_open("enter it")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed:
            self._closed = True
            for task in self.living_tasks():
                close_coroutine(task)
            self._release()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "idle" if self.inbox.thread_id is None else "running"
        return f"<EventLoop {self._selector_name} {state}>"

    # --- a run -------------------------------------------------------------------------------------------------------

    @property
    def is_ending(self) -> bool:
        """Whether the tasks that are left are being ended."""
        return self._ending is not None

    def _enter(self, root: TaskHandle[Any] | None = None, *, goes_on: bool = False) -> None:
        """Make this the loop of this thread."""
        self._check_open("run it")
        if self.inbox.thread_id is not None:
            raise EventLoopError(f"{self!r} cannot be entered twice; it runs already")
        running = current_event_loop()
        if running is not None:
            raise EventLoopError(f"{self!r} cannot run inside of {running!r}; await or spawn the coroutine instead")
        interrupts = Interrupts(self, root, goes_on)
        try:
            if self._forks != fork_count():
                self._after_fork()
            self._open_waker()
            self.inbox.begin()
            self.handlers, self._forgetters = self._tables()
            self._outer_hooks = sys.get_asyncgen_hooks()
            sys.set_asyncgen_hooks(firstiter=self._generators.add, finalizer=self._generator_dropped)
            set_running(self)
            self._interrupts = interrupts
            self._wrap_select()
            for watch in list(entering):
                watch(self)
        except BaseException:
            interrupts.remove()
            raise

    def _open_waker(self) -> None:
        try:
            self.fds.add_waker(self.inbox.open(self._world), self.inbox.drain)
        except BaseException:  # the selector has no room for it
            self.inbox.close()
            raise

    def _leave(self) -> None:
        """Undo :meth:`_enter`; registrations that no task waits for go, too, so that the selector is left empty."""
        interrupts = self._interrupts
        try:
            for watch in list(leaving):
                watch(self)
            set_running(None)
            sys.set_asyncgen_hooks(*self._outer_hooks)
            self.running_task = None
            vars(self).pop("_select", None)
            self.handlers, self._forgetters = {}, {}
            self.inbox.thread_id = None
            self.fds.retire_idle()
            self.fds.remove_waker()
            self.inbox.close()
            self.threads.leave()
            if not self.tasks:  # nobody is left who could still join
                for unjoined in list(self._unjoined):
                    unjoined.report()
            del self._interrupts
        finally:
            interrupts.remove()

    def _release(self) -> None:
        """Give back the selector, and tell those who watch."""
        try:
            if self._borrowed_selector is None:
                self.fds.selector.close()
            else:
                _holders.pop(id(self._borrowed_selector), None)
        finally:
            self._tell_of_the_end()

    def _tell_of_the_end(self) -> None:
        try:
            while self.close_callbacks:
                callback = self.close_callbacks.pop()
                try:
                    callback()
                except Exception:
                    logger.exception("%r raised, which was called when %r was closed", callback, self)
        finally:
            if self.close_callbacks:  # an interrupt came
                self._tell_of_the_end()

    @calls_the_program
    def run_until(self, until: TaskHandle[Any] | None) -> None:
        """Run until this task has ended; None: until every task has. Long and flat: a loop's time is spent here.

        Only between entering and leaving the loop.
        """
        tasks, ready, budget = self.tasks, self.ready, self.budget
        timers, fds, inbox = self.timers, self.fds, self.inbox
        deadlines, posted, handlers = timers.heap, inbox.items, self.handlers
        task: TaskHandle[Any] | None
        batch: list[TaskHandle[Any]] | None
        command: Any
        thrown: BaseException | None = None
        while tasks or posted:
            if until is not None and until._state:
                break

            if not ready:
                self.running_task = task = batch = None  # what has ended is not kept
                self._wait()
            elif fds.registered:
                fds.dispatch(self._select(0))
            if deadlines and deadlines[0][0] <= (now := self.clock()):
                timers.fire_due(now)
            if posted:
                self.running_task = None
                inbox.run()

            batch = [*ready]  # quicker than a slice
            ready.clear()
            for task in batch:
                self.running_task = task
                budget.left = OPERATIONS_PER_STEP
                try:
                    if task._error is None:
                        value = task._value
                        if value is not None:
                            task._value = None
                        command = task._run(task._send, value)
                    else:
                        thrown, task._error, task._value = task._error, None, None
                        command = task._run(task.raw_task.throw, thrown)
                        thrown = None
                except StopIteration as stop:
                    thrown = None
                    self.end_task(task, RETURNED, stop.value)
                    continue
                except BaseException as error:
                    thrown = None  # this frame keeps nothing of what was thrown in or came out
                    if self._end_by_error(task, error):
                        continue
                    del task, batch, until  # the traceback has this frame, and the task has the error
                    raise
                try:
                    if task._cancel_pending and getattr(command, "is_wait", False):
                        task._deliver_cancellation(ready)
                        continue
                    try:
                        handler = handlers[command.__class__]
                    except KeyError:
                        handler = handler_for(handlers, command.__class__)
                    if handler is None:
                        ready.append(task)
                    else:
                        handler(task, command)
                except Exception as error:
                    # Of an error of ours the place says nothing, and its frames lead back to this one, and the loop.
                    traceback = None if isinstance(error, FlownoError) else _without_handlers(error.__traceback__)
                    task._wake(ready, error=error.with_traceback(traceback))
                    traceback = None
            value = command = None
            budget.left = 0  # outside of a step nothing completes at once: see SocketCheckCommand
        self.running_task = task = batch = None
        until = None  # since Python 3.13 the traceback of a task's error leads to this frame

    def _wait(self) -> None:
        """Wait for readiness, the next deadline, or a call from elsewhere; nothing is ready."""
        deadline = self.timers.next_deadline()
        timeout = None
        if deadline is not None:
            timeout = deadline - self.clock()
            if timeout <= 0:
                if not self.fds.registered:
                    return
                timeout = 0
            elif timeout > LONGEST_WAIT:
                timeout = LONGEST_WAIT
        audit = stuck = False
        since = 0.0
        if timeout is None or timeout > QUIET_BEFORE_AUDIT:
            if self.fds.registered and not self._audited:
                audit = True
                timeout = QUIET_BEFORE_AUDIT
            elif self._nothing_can_happen(deadline):
                if self._ending is not None:
                    self._ending.on_quiet()
                    return
                timeout = self._deadlock.patience(self.tasks)
                stuck = timeout is not None
                since = self.clock()
        inbox = self.inbox
        inbox.sleeping = True
        try:
            # Looked at only now: a signal handler may have made a task ready just before the loop said that it sleeps.
            events = self._select(0 if inbox.items or self.ready else timeout)
        finally:
            inbox.sleeping = False
        self.fds.dispatch(events)
        self._audited = audit and not events
        if self._audited:
            self.fds.audit()
        if stuck and not events and not inbox.items and timeout is not None and self.clock() - since >= timeout:
            self._deadlock.log(self, self.tasks)

    def _audit_is_due(self) -> bool:
        now = self.clock()
        if now < self._next_audit:
            return False
        self._next_audit = now + QUIET_BEFORE_AUDIT
        return True

    def _nothing_can_happen(self, deadline: float | None) -> bool:
        """Whether nothing in this loop can ever make a task ready again."""
        if self.inbox.items or self.fds.has_waiters or self.threads.can_wake_a_task or self.signals.has_waiters:
            return False
        return deadline is None and (not self.endless or self._ending is not None)  # to sleep for ever is no clean-up

    def _select(self, timeout: float | None) -> list[tuple[SelectorKey, int]]:
        """Ask the selector. One that refuses because of a dead fd is asked again without it."""
        if self._forks != fork_count():
            self._after_fork()
            timeout = 0  # it may have made tasks ready
        self._waits += 1
        if self._waits % WAITS_PER_AUDIT == 0 and self._audit_is_due():
            self.fds.audit()
            timeout = 0
        selector = self.fds.selector
        try:
            return selector.select(timeout)
        except InterruptedError:
            return []  # a foreign selector that leaves EINTR to its caller
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.EBADF, errno.ENOTSOCK):
                raise
            if not self.fds.drop_dead():
                raise
        return selector.select(0)

    def _after_fork(self) -> None:
        """Make the loop of a forked child independent of its parent's."""
        self._forks = fork_count()
        self.inbox.after_fork()
        selector = self.fds.selector
        after_fork = getattr(selector, "after_fork", None)
        if after_fork is None:
            raise EventLoopError(
                f"{self!r} was made before the fork that started this process, and its selector {selector!r} has no "
                "after_fork() to make it independent of the parent's; make a new event loop in the child"
            )
        after_fork()
        running = self.inbox.thread_id is not None
        self.fds.remove_waker()
        self.inbox.close()
        if running:
            self.inbox.thread_id = threading.get_ident()
            self._open_waker()
        self.threads.after_fork()

    def _cancel_all(self, *, at_once: bool = False) -> BaseException | None:
        """End every task; see :class:`Ending`."""
        self._ending = Ending(self)
        try:
            return self._ending.run(at_once=at_once)
        finally:
            self._ending = None

    def _post(self, call: Callable[[Any], object], argument: Any, to_do: str) -> None:
        """Post to the inbox, from any thread.

        Raises:
            EventLoopError: The loop was closed meanwhile, and nobody has looked there any more.
        """
        self.inbox.post(call, argument)
        # close() says first that the loop is closed, and then makes the calls that are there.
        if self._closed and self.inbox.withdraw(call, argument):
            self._check_open(to_do)

    def _check_open(self, to_do: str) -> None:
        if self._closed:
            raise EventLoopError(f"cannot {to_do}: {self!r}")

    # --- tasks -------------------------------------------------------------------------------------------------------

    def living_tasks(self) -> list[TaskHandle[Any]]:
        """The tasks that have not ended, those included that were posted and are to start."""
        return [*self.tasks, *(task for call, task in list(self.inbox.items) if call == self.start)]

    def start(self, task: TaskHandle[Any]) -> None:
        """Have a new task make its first step with the next batch; only in the loop's thread."""
        self.tasks[task] = None
        self.ready.append(task)

    @calls_the_program
    def end_task(self, task: TaskHandle[Any], state: int, result: Any) -> None:
        """A task has ended. Who joined it goes on, and finds the outcome at its handle."""
        task._state = state
        task._result = result
        del self.tasks[task]
        del task._run, task._send, task._context  # what the task has held on to goes with it
        if task._locks:
            for lock in task._locks:
                lock._break()
        if task._callbacks is not None:
            callbacks, task._callbacks = task._callbacks, None
            for callback in callbacks:
                callback(task)
        joiners = task._joiners
        if joiners is not None:
            task._joiners = None
            for joiner in joiners:
                joiner._waiting = None
                self.ready.append(joiner)

    def _end_by_error(self, task: TaskHandle[Any], error: BaseException) -> bool:
        """A task has ended with an exception. False: it is no outcome of a task, and ends the run."""
        if isinstance(error, TaskCancelled) and error._was_thrown_in and error._by is task:
            self.end_task(task, CANCELLED, None)
            return True
        traceback = _without_loop(error.__traceback__)
        if self.step_wrappers:
            traceback = _from_task(traceback, task)
        if error.__context__ is not None:
            untie(error, task)
        is_outcome = _is_outcome(error)
        if is_outcome:
            task._state = FAILED  # so that its name says it
            task._unjoined = self.make_error_report(repr(task), error.with_traceback(traceback))
            self._unjoined.add(task._unjoined)
        self.end_task(task, FAILED, (error, traceback))
        return is_outcome

    def request_cancel(self, task: TaskHandle[Any]) -> None:
        """Cancel a task, from any thread."""
        self.inbox.act(self.cancel_now, task)

    def withdraw_cancel(self, task: TaskHandle[Any]) -> None:
        """Have the request to cancel a task come to nothing, where it has not arrived yet; that of a scope stays."""
        task._withdraw_cancellation()

    def cancel_now(self, task: TaskHandle[Any]) -> None:
        """Throw TaskCancelled into a task where it waits, else at its next wait."""
        if task._state:
            return
        error = task._error
        if error is not None and isinstance(error, TaskCancelled) and error._was_thrown_in and error.scope is None:
            return  # it is about to be thrown in: two in one breath are one
        command = task._waiting
        if task._scope is not None or (command is not None and command.is_shielded):
            task._request_cancellation()
            if not task._cancel_pending or command is None or command.is_shielded:
                return
        if self.take_out_of_wait(task):
            task._deliver_cancellation(self.ready)
            return
        task._request_cancellation()
        self._look_again_at(task)

    def _look_again_at(self, task: TaskHandle[Any]) -> None:
        """A task that runs, cancelled by a signal handler, may be half-way into a wait, past the look at that."""
        if task is self.running_task:
            self.inbox.post(self._cancel_where_it_waits, task)

    def _cancel_where_it_waits(self, task: TaskHandle[Any]) -> None:
        """Deliver a cancellation that is due where the task waits, if it does."""
        command = task._waiting
        if task._cancel_pending and command is not None and not command.is_shielded and self.take_out_of_wait(task):
            task._deliver_cancellation(self.ready)

    def cancel_inside(self, scope: CancelScope) -> None:
        """What cancels the tasks in a scope has changed: they are told where they wait."""
        for task in scope.tasks_inside():
            task._refresh()
            command = task._waiting
            if command is None:
                task._readdress_cancellation()
                self._look_again_at(task)
            else:
                self._cancel_where_it_waits(task)

    def add_step_wrapper(self, wrapper: StepWrapper) -> None:
        """Have every step of every task run by ``wrapper(task, run, method, argument)``, from the next one on.

        It calls ``run(method, argument)``, which makes the step. Where there is none, watching costs nothing: what a
        task is stepped by is its own, and is exchanged. Only in the loop's thread, or while the loop does not run. A
        wrapper deletes its arguments in a ``finally``: what was thrown in has a traceback that leads to its frame.
        """
        self.step_wrappers.append(wrapper)
        self._wrap_all_steps()

    def remove_step_wrapper(self, wrapper: StepWrapper) -> None:
        """Undo that."""
        self.step_wrappers.remove(wrapper)
        self._wrap_all_steps()

    def _wrap_all_steps(self) -> None:
        for task in self.living_tasks():
            task._wrap_steps()

    def decorate_selector(self, decorator: Selector) -> None:
        """Have a selector that was put around that of this loop in the place of it, before anything is registered.

        One that was passed in is not closed by that: the decorator is just dropped with the loop.

        Raises:
            EventLoopError: The loop runs, or has fds registered from an earlier run.
        """
        if self.inbox.thread_id is not None or self.fds.registered:
            raise EventLoopError(f"{self!r} waits by its selector already; decorate that before the first run")
        self.fds.selector = decorator
        self._selector_name = display_name(decorator)

    def add_select_wrapper(self, wrapper: SelectWrapper) -> None:
        """Have the selector asked by ``wrapper(ask, timeout)``, which calls ``ask(timeout)``.

        As with :meth:`add_step_wrapper`, watching costs nothing while nobody does; and only in the loop's thread, or
        while the loop does not run.
        """
        self.select_wrappers.append(wrapper)
        self._wrap_select()

    def remove_select_wrapper(self, wrapper: SelectWrapper) -> None:
        """Undo that."""
        self.select_wrappers.remove(wrapper)
        self._wrap_select()

    def _wrap_select(self) -> None:
        """Exchange the method, for a run: a bound one would tie a loop that rests to itself."""
        vars(self).pop("_select", None)
        if self.inbox.thread_id is not None:
            for wrapper in self.select_wrappers:
                self._select = partial(wrapper, self._select)  # type: ignore[method-assign]

    def interrupt_after(self, seconds: float, error: BaseException) -> Timer:
        """Raise an error in the running task, if it waits, when some time has passed.

        Returns:
            A timer, for :meth:`cancel_timer`. Where it fired while the task did not wait, nothing happened.
        """
        return self.timers.add(self.clock() + seconds, self._interrupt, (self.running_task, error))

    def _interrupt(self, argument: tuple[TaskHandle[Any], BaseException]) -> None:
        task, error = argument
        if task._waiting is not None and not task._waiting.is_shielded and self.take_out_of_wait(task):
            task._wake(self.ready, error=error)

    def cancel_timer(self, timer: Timer) -> None:
        """Cancel a timer; one that has fired is left alone."""
        self.timers.cancel(timer)

    def resume(self, task: TaskHandle[Any], value: Any = None) -> None:
        """Go on with a task that was taken out of the queue that it waited in; also from a signal handler."""
        task._waiting = None
        task._value = value
        self.ready.append(task)
        if self.inbox.sleeping:  # looked at after the task is ready: the loop does it the other way round
            self.inbox.wake()

    def resume_with_error(self, task: TaskHandle[Any], error: BaseException) -> None:
        """As :meth:`resume`, with an error."""
        task._wake(self.ready, error=error)
        if self.inbox.sleeping:
            self.inbox.wake()

    def take_out_of_wait(self, task: TaskHandle[Any]) -> bool:
        """Leave nothing of a task's wait behind; the caller says how the task goes on.

        Returns:
            Whether it was waiting, and nobody is about to wake it.
        """
        command = task._waiting
        if command is None:
            return False
        forgetters = self._forgetters or self._tables()[1]  # the loop may be between two runs
        try:
            forget = forgetters[command.__class__]
        except KeyError:
            forget = handler_for(forgetters, command.__class__)
        if not forget(task, command):  # type: ignore[misc]  # None is for what is no wait
            return False
        task._waiting = None
        return True

    def carry_out(self, handler: Handler | None, task: TaskHandle[Any], command: Command) -> None:
        """As :meth:`run_until` does it, for those who put themselves in the place of a handler."""
        if handler is None:
            self.ready.append(task)
        else:
            handler(task, command)

    def _generator_dropped(self, generator: AsyncGenerator[Any, Any]) -> None:
        """An asynchronous generator was dropped before its end, maybe in another thread: it is closed by a task."""
        self.inbox.post(self._close_generator, generator)

    def _close_generator(self, generator: AsyncGenerator[Any, Any]) -> TaskHandle[None]:
        task = self.task_class(self, _close(generator), copy_context())
        self.start(task)
        return task

    # --- commands ----------------------------------------------------------------------------------------------------

    def _tables(self) -> tuple[Table, Table]:
        """What carries out a command, and what takes a task out of the wait that a command has put it into."""
        fds, queueing = self.fds, Queueing(self)
        handlers: Table = {
            SpawnCommand: self._spawn,
            ExitCommand: self._exit,
            SleepCommand: self._sleep,
            GiveWayCommand: None,
            ShieldedGiveWayCommand: None,
            JoinCommand: self._join,
            CancelCommand: self._cancel,
            Cancellation: self._join,
            GroupSpawnCommand: self._spawn_in_group,
            GroupWaitCommand: queueing.wait_for_group,
            ShieldedGroupWaitCommand: queueing.wait_for_group,
            ThreadCommand: self.threads.wait_for,
            ShieldedThreadCommand: self.threads.wait_for,
            ShieldedThreadWaitCommand: self.threads.wait_for,
            QueueingCommand: queueing.queue,
            QueueGetCommand: queueing.get,
            QueuePeekCommand: queueing.peek,
            QueuePutCommand: queueing.put,
            EventWaitCommand: queueing.wait_for_event,
            EventSetCommand: queueing.set_event,
            LockAcquireCommand: queueing.acquire_lock,
            ShieldedLockAcquireCommand: queueing.acquire_lock,
            LockReleaseCommand: queueing.release_lock,
            ConditionWaitCommand: queueing.wait_for_condition,
            ConditionNotifyCommand: queueing.notify,
            SemaphoreAcquireCommand: queueing.acquire_semaphore,
            BarrierWaitCommand: queueing.wait_at_barrier,
            LimiterAcquireCommand: queueing.acquire_token,
            FdReadableCommand: fds.wait_readable,
            FdWritableCommand: fds.wait_writable,
            SocketCheckCommand: fds.check,
            SocketRecvCommand: fds.wait_readable,
            SocketAcceptCommand: fds.wait_readable,
            SocketSendCommand: fds.wait_writable,
            SocketConnectCommand: fds.wait_writable,
        }
        forgetters: Table = {
            SleepCommand: self._forget_sleep,
            JoinCommand: self._forget_join,
            ThreadCommand: self.threads.forget,
            QueueingCommand: queueing.forget,
            FdReadableCommand: fds.forget_reader,
            FdWritableCommand: fds.forget_writer,
            SocketRecvCommand: fds.forget_reader,
            SocketAcceptCommand: fds.forget_reader,
            SocketSendCommand: fds.forget_writer,
            SocketConnectCommand: fds.forget_writer,
        }
        return handlers, forgetters

    def _spawn(self, task: TaskHandle[Any], command: SpawnCommand) -> None:
        given = command.raw_task
        raw_task = given if type(given) is CoroutineType else coroutine_of(given, "spawn()")
        child = self.task_class(self, raw_task, task._context.copy())
        child._name = command.name
        self.tasks[child] = None
        task._value = child
        self.ready += (child, task)  # the child first

    def _spawn_in_group(self, task: TaskHandle[Any], command: GroupSpawnCommand) -> None:
        self._spawn(task, command)
        command.group.adopt(task._value)

    def _exit(self, task: TaskHandle[Any], command: ExitCommand) -> None:
        raise _Exit(command)

    def _sleep(self, task: TaskHandle[Any], command: SleepCommand) -> None:
        seconds = command.seconds
        if seconds <= 0:
            task._value = 0.0
            self.ready.append(task)
            return
        if seconds != seconds:
            raise ValueError("seconds must be a number, not NaN")
        if seconds == inf:
            task._waiting = command
            self.endless[task] = None
            return
        task._timer = self.timers.add(self.clock() + seconds, self._wake_sleeper, task)
        task._waiting = command

    def _wake_sleeper(self, task: TaskHandle[Any]) -> None:
        # Counted from the deadline: not below what was asked for, as the rounding of a sum can make it look.
        late = self.timers.now - task._timer[0]
        task._value = task._waiting.seconds + late  # type: ignore[union-attr]  # it waits in a SleepCommand
        task._waiting = None
        self.ready.append(task)

    def _forget_sleep(self, task: TaskHandle[Any], command: SleepCommand) -> bool:
        if command.seconds == inf:
            return self.endless.pop(task, self) is None
        return self.timers.cancel(task._timer)

    def _join(self, task: TaskHandle[Any], command: JoinCommand) -> None:
        target = command.task_handle
        if target._state:
            self.ready.append(task)
            return
        if target.event_loop is not self:
            raise EventLoopError(f"{target!r} runs in {target.event_loop!r}; only tasks of the same loop can join it")
        if target is task:
            raise EventLoopError("a task cannot wait for its own end")
        if target._joiners is None:
            target._joiners = {}
        target._joiners[task] = None
        task._waiting = command

    def _forget_join(self, task: TaskHandle[Any], command: JoinCommand) -> bool:
        joiners = command.task_handle._joiners
        return joiners is not None and joiners.pop(task, self) is None

    def _cancel(self, task: TaskHandle[Any], command: CancelCommand) -> None:
        self.request_cancel(command.task_handle)
        self._join(task, command)


def run(main: Awaitable[T], selector: SelectorChoice | None = None) -> T:
    """Run a program: a new event loop runs ``main``, then cancels what tasks are left, and is closed.

    Args:
        main: The coroutine to run.
        selector: What waits for the sockets; see :class:`EventLoop`.

    Returns:
        What ``main`` returns, or what :func:`~flowno.exit` was given.

    Raises:
        BaseException: The error of ``main``, and what :meth:`EventLoop.run_until_complete` raises.

    Example:
        >>> async def main():
        ...     return 6 * 7
        >>> run(main())
        42
    """
    raw_task = coroutine_of(main, "run()")
    try:
        loop = EventLoop(selector)
    except BaseException:
        raw_task.close()  # else Python adds to the error that main was never awaited
        raise
    with loop:
        return cast(T, loop.run_until_complete(raw_task, join=True, wait_for_spawned_tasks=False))


def _without_loop(traceback: TracebackType | None) -> TracebackType | None:
    """The traceback from where it leaves the loop, so that it begins in the task and keeps no frame of a run alive."""
    while traceback is not None and traceback.tb_frame.f_globals.get("__name__") in _LOOP:
        traceback = traceback.tb_next
    return traceback


def _without_handlers(traceback: TracebackType | None) -> TracebackType | None:
    """As :func:`_without_loop`, of an error that a handler has met.

    The frames of handlers have the task, which the error is for: they are cleared, as a frame that stays in a traceback
    keeps all those that it was called by.
    """
    begin = each = traceback and traceback.tb_next  # behind the frame of the run, which goes on
    while each is not None and each.tb_frame.f_globals.get("__name__", "").startswith(_PACKAGE):
        each.tb_frame.clear()
        each = each.tb_next
    return _without_loop(begin)


def _from_task(traceback: TracebackType | None, task: TaskHandle[Any]) -> TracebackType | None:
    """The traceback without the frames of those who watch the steps; as it is where the task's own is not found."""
    raw_task: Any = task.raw_task
    code = getattr(raw_task, "cr_code", None) or getattr(raw_task, "gi_code", None)
    found = traceback
    while found is not None and found.tb_frame.f_code is not code:
        found = found.tb_next
    return found or traceback


def _is_outcome(error: BaseException) -> bool:
    """Whether a task may end with this exception while the others go on."""
    if isinstance(error, BaseExceptionGroup):
        return error.split((Exception, TaskCancelled))[1] is None
    return isinstance(error, (Exception, TaskCancelled))


@calls_the_program
def _call(argument: tuple[Context, Callable[..., object], tuple[Any, ...]]) -> None:
    """What :meth:`EventLoop.call_soon_threadsafe` posts."""
    context, function, args = argument
    try:
        context.run(function, *args)
    except (Exception, TaskCancelled):
        logger.exception("%r raised, which was called by call_soon_threadsafe()", function)


async def _close(generator: AsyncGenerator[Any, Any]) -> None:
    await generator.aclose()
