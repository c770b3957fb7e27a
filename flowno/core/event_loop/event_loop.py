"""The event loop: run the ready tasks, carry out the commands that they yield, wait for what comes next.

One turn of the loop is: ask the selector what is ready, fire the timers that are due, make the calls of other threads,
then run every task that is ready by now, one step each. What becomes ready meanwhile is for the next turn, so that no
task keeps the others waiting.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from math import inf
from selectors import SelectorKey
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast

from .backend import SYSTEM_WORLD, FileObject, Selector, SelectorChoice, World, open_selector, world_of
from .commands import (
    CancelCommand,
    ExitCommand,
    JoinCommand,
    SleepCommand,
    SocketAcceptCommand,
    SocketCheckCommand,
    SocketConnectCommand,
    SocketRecvCommand,
    SocketSendCommand,
    SpawnCommand,
    ThreadCommand,
)
from .deadlock import somebody_could_call_in, who_waits_for_what
from .errors import BusyResourceError, DeadlockError, EventLoopError
from .fd_table import FdTable
from .inbox import Inbox
from .tasks import (
    CANCELLED,
    FAILED,
    OPERATIONS_PER_STEP,
    RETURNED,
    Budget,
    TaskCancelled,
    TaskHandle,
    UnjoinedError,
    coroutine_of,
)
from .threads import ThreadJob
from .timers import Timers

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["EventLoop", "current_event_loop", "current_task", "run"]

T = TypeVar("T")

logger = logging.getLogger("flowno")

#: Seconds. Longer waits are cut into pieces of this length, which every system's call can hold.
LONGEST_WAIT = 86_400.0

#: Seconds of quiet after which the loop looks, once, whether a socket that is waited for was closed behind its back.
QUIET_BEFORE_AUDIT = 1.0

#: A loop that is never quiet looks at the clock once in so many waits, to audit its sockets when a second has passed.
WAITS_PER_AUDIT = 64

#: Seconds in which somebody outside of the loop may end a deadlock of its tasks before it is logged.
PATIENCE_WITH_DEADLOCK = 5.0

#: How often a task may swallow its cancellation at the end of a run before its coroutine is closed.
SWALLOWS_AT_THE_END = 3

#: How often the end of a run cancels what there is; later rounds are for the tasks that clean-ups have started.
ROUNDS_AT_THE_END = 3


class _Running(threading.local):
    """The event loop that runs in this thread."""

    loop: EventLoop | None = None


_running = _Running()


class _Forks:
    """How many forks lie between this process and the one that imported flowno."""

    count = 0


def _count_fork() -> None:
    _Forks.count += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)

#: Which event loop uses a selector instance that was passed in, by the id of the selector, which that loop keeps alive.
_holders: weakref.WeakValueDictionary[int, EventLoop] = weakref.WeakValueDictionary()


def current_event_loop() -> EventLoop | None:
    """The event loop that runs in this thread, or None."""
    return _running.loop


def current_task() -> Coroutine[Any, Any, Any] | None:
    """The coroutine of the task that runs in this thread, or None outside of one."""
    loop = _running.loop
    task = None if loop is None else loop._current
    return None if task is None else task.raw_task


def current_world() -> World:
    """Where to take time and sockets from: the world of the event loop that runs in this thread, else the system's."""
    loop = _running.loop
    return SYSTEM_WORLD if loop is None else loop.world


class _Exit(BaseException):
    """Ends a run; see :func:`~flowno.exit`."""

    def __init__(self, command: ExitCommand) -> None:
        super().__init__(command)
        self.command = command


_Handler: TypeAlias = Callable[[TaskHandle[Any], Any], None]


class _Round:
    """Tasks that are to end before the run goes on; in the place of one task for :meth:`EventLoop._run`."""

    def __init__(self, tasks: list[TaskHandle[Any]]) -> None:
        self._left = tasks

    @property
    def _state(self) -> bool:
        """Whether all of them have ended."""
        left = self._left
        while left and left[-1]._state:
            left.pop()
        return not left


class _FailedSelector:
    """Takes the place of a selector that cannot wait, while the run that it ends is cleaned up: nothing becomes ready.

    Args:
        selector: The one that failed. What it still holds is taken out of it.
        give_up: Called when there is nothing to do but wait.
    """

    def __init__(self, selector: Selector, give_up: Callable[[], object]) -> None:
        self.modify = selector.modify
        self.unregister = selector.unregister
        self.close = selector.close
        self._give_up = give_up

    def register(self, fileobj: FileObject, events: int, data: Any = None, /) -> SelectorKey:
        return SelectorKey(fileobj, -1, events, data)

    def select(self, timeout: float | None = None, /) -> list[tuple[SelectorKey, int]]:
        if timeout != 0:
            self._give_up()
        return []


class _Table(dict[type, _Handler]):
    """What to do for a command, by its class. A derived class is looked up once, and then stands here itself."""

    def __missing__(self, command_class: type) -> _Handler:
        for base in command_class.__mro__:
            if base in self:
                self[command_class] = self[base]
                return self[base]
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
            ``FLOWNO_SELECTOR`` says, and where that is empty, too, the best that this machine has. A selector that was
            passed in is not closed with the loop, and serves one loop at a time.
        deadlock: What happens when every task waits for another one: "raise" ends the run with DeadlockError, unless
            another thread or a signal handler of the program could still call in; then, and with "log", who waits for
            what is logged once, after 5 seconds. "off" just waits.

    Raises:
        UnknownSelectorError: Nothing is known by that name.
        SelectorUnavailableError: It is known, but not to be had on this machine.
        BusyResourceError: Another loop uses the selector that was passed in.
        TypeError: ``selector`` is none of these.
        ValueError: ``deadlock`` is none of these.

    Example:
        >>> async def main():
        ...     return "done"
        >>> with EventLoop() as loop:
        ...     loop.run_until_complete(main(), join=True)
        'done'
    """

    def __init__(
        self, selector: SelectorChoice | None = None, *, deadlock: Literal["raise", "log", "off"] = "raise"
    ) -> None:
        self._closed = True  # until everything below is there
        if deadlock not in ("raise", "log", "off"):
            raise ValueError(f"deadlock must be 'raise', 'log' or 'off', not {deadlock!r}")
        opened = open_selector(selector)
        self._selector = opened.selector
        self._selector_name = opened.name
        self._owns_selector = opened.owned
        if not opened.owned and _holders.setdefault(id(opened.selector), self) is not self:
            raise BusyResourceError(
                f"{opened.selector!r} is in use by {_holders[id(opened.selector)]!r}; a selector serves one event loop "
                "at a time: close that one first"
            )
        try:
            self._world = world_of(opened.selector)
        except BaseException:
            self._release()
            raise
        self._clock = self._world.clock
        self.budget = Budget()
        self._tasks: dict[TaskHandle[Any], None] = {}  # those that have not ended, oldest first
        self._ready: list[TaskHandle[Any]] = []  # each of them once
        self._current: TaskHandle[Any] | None = None
        self._timers = Timers()
        self._inbox = Inbox()
        self._fds = FdTable(opened.selector, self._ready, self.budget, self._inbox)
        self._jobs: dict[TaskHandle[Any], ThreadJob] = {}
        self._unjoined: weakref.WeakSet[UnjoinedError] = weakref.WeakSet()
        self._audited = False
        self._next_audit = 0.0
        self._waits = 0
        self._ending = False
        self._deadlock = deadlock
        self._deadlock_logged = False
        self._forks = _Forks.count
        # Made for each run, and dropped with it: bound methods would tie the loop to itself.
        self._handlers = self._forgetters = _Table()
        self._closed = False
        logger.debug("%r waits by %r", self, opened.selector)

    # --- for users ---------------------------------------------------------------------------------------------------

    @property
    def selector(self) -> Selector:
        """What waits for the sockets."""
        return self._selector

    @property
    def world(self) -> World:
        """Where the loop takes its time and its sockets from."""
        return self._world

    def create_task(self, coroutine: Awaitable[T]) -> TaskHandle[T]:
        """Start a task, from any thread: the loop is woken where it waits. It runs in a copy of the caller's context.

        Args:
            coroutine: What the task runs.

        Returns:
            Its handle. Before the loop runs, or from another thread, the task starts with the loop's next batch.

        Raises:
            TypeError: That is no coroutine.
            EventLoopError: The loop is closed.
        """
        raw_task = coroutine_of(coroutine, "create_task()")
        self._check_open("start a task")
        task = TaskHandle(self, raw_task, copy_context())
        if self._inbox.thread_id is not None and self._inbox.is_at_hand:
            self._start(task)
        else:
            self._inbox.post(self._start, task)
        return task

    def cancel(self, raw_task: Coroutine[Any, Any, Any]) -> bool:
        """Cancel the task that runs a coroutine, as :meth:`TaskHandle.cancel` does.

        Returns:
            Whether there is such a task, and it has not ended.
        """
        for task in self._living_tasks():
            if task.raw_task is raw_task:
                self._request_cancel(task)
                return True
        return False

    def has_living_tasks(self) -> bool:
        """Whether any task has not ended."""
        return bool(self._living_tasks())

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

        Raises:
            Exception: With ``join``, the error of ``root``; always, that of ``exit(exception=...)``.
            TaskCancelled: With ``join``, ``root`` was cancelled.
            BaseException: What left a task and is neither an ``Exception`` nor ``TaskCancelled``, such as
                KeyboardInterrupt. The other tasks are cancelled, and run until they have ended, before it is raised.
            EventLoopError: The loop is closed or runs already, or another one runs in this thread.
            TypeError: ``root`` is no coroutine.
        """
        raw_task = coroutine_of(root, "run_until_complete()")
        self._enter()
        try:
            task = TaskHandle(self, raw_task, copy_context())
            self._start(task)
            command: ExitCommand | None = None
            try:
                self._run(None if wait_for_spawned_tasks else task)
            except _Exit as ended:
                command = ended.command
                late = self._cancel_all()
                if late is not None and command.exception is None:
                    raise late from None
            except BaseException:
                self._cancel_all()
                raise
            if join and task._unjoined is not None:
                task._unjoined.is_known = True  # it is raised below
        finally:
            self._leave()
        if command is None:
            return task._outcome() if join else None
        if command.exception is not None:
            raise command.exception
        return command.return_value if join else None

    def close(self) -> None:
        """Cancel the tasks that are left, run them to their end, and give back what the loop holds. Idempotent.

        Raises:
            EventLoopError: The loop is running.
        """
        if self._closed:
            return
        if self._inbox.thread_id is not None:
            raise EventLoopError(f"{self!r} is running; a loop is closed after its run, or by exit()")
        try:
            if self._tasks or self._inbox.items:
                self._enter()
                try:
                    late = self._cancel_all()
                finally:
                    self._leave()
                if late is not None:
                    raise late
        finally:
            self._closed = True
            self._release()

    def __enter__(self) -> Self:
        self._check_open("enter it")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed:
            self._closed = True
            for task in self._living_tasks():
                _close_coroutine(task)
            self._release()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "idle" if self._inbox.thread_id is None else "running"
        return f"<EventLoop {self._selector_name} {state}>"

    # --- a run -------------------------------------------------------------------------------------------------------

    def _enter(self) -> None:
        """Make this the loop of this thread."""
        self._check_open("run it")
        if self._inbox.thread_id is not None:
            raise EventLoopError(f"{self!r} cannot be entered twice; it runs already")
        if _running.loop is not None:
            raise EventLoopError(
                f"{self!r} cannot run inside of {_running.loop!r}; await or spawn the coroutine instead"
            )
        if self._forks != _Forks.count:
            self._after_fork()
        self._open_waker()
        self._inbox.thread_id = threading.get_ident()
        self._handlers, self._forgetters = self._tables()
        _running.loop = self

    def _open_waker(self) -> None:
        try:
            self._fds.add_waker(self._inbox.open(self._world), self._inbox.drain)
        except BaseException:  # the selector has no room for it
            self._inbox.close()
            raise

    def _leave(self) -> None:
        """Undo :meth:`_enter`; registrations that no task waits for go, too, so that the selector is left empty."""
        _running.loop = None
        self._current = None
        self._handlers = self._forgetters = _Table()
        self._inbox.thread_id = None
        self._fds.retire_idle()
        self._fds.remove_waker()
        self._inbox.close()
        if not self._tasks:  # nobody is left who could still join
            for unjoined in list(self._unjoined):
                unjoined.report()

    def _release(self) -> None:
        """Give back the selector."""
        if self._owns_selector:
            self._selector.close()
        else:
            _holders.pop(id(self._selector), None)

    def _run(self, until: TaskHandle[Any] | _Round | None) -> None:
        """Run until this has ended; None: until every task has. Long and flat: a loop's time is spent here."""
        tasks, ready, budget = self._tasks, self._ready, self.budget
        timers, fds, inbox = self._timers, self._fds, self._inbox
        deadlines, posted, handlers = timers.heap, inbox.items, self._handlers
        while tasks or posted:
            if until is not None and until._state:
                return

            if not ready:
                self._wait()
            elif fds.registered:
                fds.dispatch(self._select(0))
            if deadlines:
                timers.fire_due(self._clock())
            if posted:
                inbox.run()

            batch = ready[:]
            ready.clear()
            for task in batch:
                self._current = task
                budget.left = OPERATIONS_PER_STEP
                try:
                    if task._error is None:
                        value, task._value = task._value, None
                        command = task._run(task._send, value)
                    else:
                        command = _throw(task)
                except StopIteration as stop:
                    self._end(task, RETURNED, stop.value)
                    continue
                except BaseException as error:
                    self._fail(task, error)
                    continue
                try:
                    handlers[command.__class__](task, command)
                except Exception as error:
                    task._error = error.with_traceback(_without_loop(error.__traceback__))
                    ready.append(task)
            self._current = None
            budget.left = 0  # outside of a step nothing completes at once: see SocketCheckCommand

    def _wait(self) -> None:
        """Wait for readiness, the next deadline, or a call from elsewhere; nothing is ready."""
        deadline = self._timers.next_deadline()
        timeout = None
        audit = stuck = False
        if deadline is not None:
            timeout = min(max(deadline - self._clock(), 0), LONGEST_WAIT)
        self._waits += 1
        if self._waits % WAITS_PER_AUDIT == 0:  # there may never be quiet
            now = self._clock()
            if now >= self._next_audit:
                self._next_audit = now + QUIET_BEFORE_AUDIT
                self._fds.audit()
                if self._ready:
                    return
        if timeout is None or timeout > QUIET_BEFORE_AUDIT:
            if self._fds.registered and not self._audited:
                audit = True
                timeout = QUIET_BEFORE_AUDIT
            elif self._is_deadlocked(deadline):
                if self._break_deadlock():
                    return
                stuck = not self._deadlock_logged
                timeout = PATIENCE_WITH_DEADLOCK if stuck else None
        inbox = self._inbox
        inbox.sleeping = True
        try:
            # Looked at only now: a signal handler may have made a task ready just before the loop said that it sleeps.
            events = self._select(0 if inbox.items or self._ready else timeout)
        finally:
            inbox.sleeping = False
        self._fds.dispatch(events)
        self._audited = audit and not events
        if self._audited:
            self._fds.audit()
        if stuck and not events and not inbox.items:
            self._deadlock_logged = True
            logger.warning("only a call from outside can go on with %r:\n%s", self, who_waits_for_what(self._tasks))

    def _is_deadlocked(self, deadline: float | None) -> bool:
        """Whether nothing in this loop can ever make a task ready again."""
        if self._inbox.items or self._jobs or self._fds.has_waiters:
            return False
        if self._ending:
            return deadline in (None, inf)  # to sleep for ever is no clean-up
        return deadline is None and self._deadlock != "off"

    def _break_deadlock(self) -> bool:
        """Do something about a deadlock; False where it is left to somebody outside of the loop, who may call in."""
        if self._ending:
            self._cancel_all_again()
            return True
        if self._deadlock == "raise" and not somebody_could_call_in():
            raise DeadlockError(f"no task can ever go on:\n{who_waits_for_what(self._tasks)}")
        return False

    def _select(self, timeout: float | None) -> list[tuple[SelectorKey, int]]:
        """Ask the selector. One that refuses because of a dead fd is asked again without it."""
        if self._forks != _Forks.count:
            self._after_fork()
            timeout = 0  # it may have made tasks ready
        try:
            return self._selector.select(timeout)
        except InterruptedError:
            return []  # a foreign selector that leaves EINTR to its caller
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.EBADF, errno.ENOTSOCK):
                raise
            if not self._fds.drop_dead():
                raise
        return self._selector.select(0)

    def _after_fork(self) -> None:
        """Make the loop of a forked child independent of its parent's."""
        self._forks = _Forks.count
        after_fork = getattr(self._selector, "after_fork", None)
        if after_fork is None:
            raise EventLoopError(
                f"{self!r} was made before the fork that started this process, and its selector {self._selector!r} has "
                "no after_fork() to make it independent of the parent's; make a new event loop in the child"
            )
        after_fork()
        running = self._inbox.thread_id is not None
        self._fds.remove_waker()
        self._inbox.close()
        if running:
            self._inbox.thread_id = threading.get_ident()
            self._open_waker()
        for job in list(self._jobs.values()):
            job.error = EventLoopError("the worker thread did not come along when the process forked")
            self._job_done(job)

    # --- tasks -------------------------------------------------------------------------------------------------------

    def _living_tasks(self) -> list[TaskHandle[Any]]:
        """The tasks that have not ended, those included that were posted and are to start."""
        return [*self._tasks, *(task for call, task in list(self._inbox.items) if call == self._start)]

    def _start(self, task: TaskHandle[Any]) -> None:
        self._tasks[task] = None
        self._ready.append(task)

    def _end(self, task: TaskHandle[Any], state: int, result: Any) -> None:
        """A task has ended. Who joined it goes on, and finds the outcome at its handle."""
        task._state = state
        task._result = result
        del self._tasks[task]
        del task._run, task._send, task._context  # what the task has held on to goes with it
        joiners = task._joiners
        if joiners is not None:
            task._joiners = None
            for joiner in joiners:
                joiner._waiting = None
                self._ready.append(joiner)

    def _fail(self, task: TaskHandle[Any], error: BaseException) -> None:
        """A task has ended with an exception; one that is no outcome of a task ends the run."""
        if isinstance(error, TaskCancelled) and error._was_thrown_in and error.by is task:
            self._end(task, CANCELLED, None)
            return
        traceback = _without_loop(error.__traceback__)
        self._end(task, FAILED, (error, traceback))
        if not _is_outcome(error):
            raise error
        task._unjoined = UnjoinedError(repr(task), error.with_traceback(traceback))
        self._unjoined.add(task._unjoined)

    def _request_cancel(self, task: TaskHandle[Any]) -> None:
        """Cancel a task, from any thread."""
        if self._inbox.is_at_hand:
            self._cancel_now(task)
        else:
            self._inbox.post(self._cancel_now, task)

    def _cancel_now(self, task: TaskHandle[Any]) -> None:
        """Throw TaskCancelled into a task where it waits, else at its next wait."""
        if task._state:
            return
        if self._take_out_of_wait(task):
            task._deliver_cancellation(self._ready)
        elif task._error is None or task._delivered is None or task._delivered() is not task._error:
            task._cancel_pending = True

    def _interrupt(self, argument: tuple[TaskHandle[Any], BaseException]) -> None:
        """Raise an error in a task that waits; one that does not is left alone. A timer calls this."""
        task, error = argument
        if self._take_out_of_wait(task):
            task._error = error
            self._ready.append(task)

    def _take_out_of_wait(self, task: TaskHandle[Any]) -> bool:
        """Leave nothing of a task's wait behind; the caller says how the task goes on.

        Returns:
            Whether it was waiting.
        """
        command, task._waiting = task._waiting, None
        if command is None:
            return False
        forgetters = self._forgetters or self._tables()[1]  # the loop may be between two runs
        forgetters[command.__class__](task, command)
        return True

    # --- commands ----------------------------------------------------------------------------------------------------

    def _tables(self) -> tuple[_Table, _Table]:
        """What carries out a command, and what takes a task out of the wait that a command has put it into."""
        fds = self._fds
        handlers: dict[type, _Handler] = {
            SpawnCommand: self._spawn,
            ExitCommand: self._exit,
            SleepCommand: self._sleep,
            JoinCommand: self._join,
            CancelCommand: self._cancel,
            ThreadCommand: self._call_in_thread,
            SocketCheckCommand: fds.check,
            SocketRecvCommand: fds.wait_readable,
            SocketAcceptCommand: fds.wait_readable,
            SocketSendCommand: fds.wait_writable,
            SocketConnectCommand: fds.wait_writable,
        }
        forgetters: dict[type, _Handler] = {
            SleepCommand: self._forget_sleep,
            JoinCommand: self._forget_join,
            ThreadCommand: self._forget_thread,
            SocketRecvCommand: fds.forget_reader,
            SocketAcceptCommand: fds.forget_reader,
            SocketSendCommand: fds.forget_writer,
            SocketConnectCommand: fds.forget_writer,
        }
        return _Table(handlers), _Table(forgetters)

    def _spawn(self, task: TaskHandle[Any], command: SpawnCommand) -> None:
        child = TaskHandle(self, coroutine_of(command.raw_task, "spawn()"), task._context.copy())
        self._tasks[child] = None
        self._ready += (child, task)  # the child runs before its parent goes on
        task._value = child

    def _exit(self, task: TaskHandle[Any], command: ExitCommand) -> None:
        raise _Exit(command)

    def _sleep(self, task: TaskHandle[Any], command: SleepCommand) -> None:
        if task._cancel_pending:
            task._deliver_cancellation(self._ready)
            return
        seconds = command.seconds
        if seconds <= 0:
            task._value = 0.0
            self._ready.append(task)
            return
        if seconds != seconds:
            raise ValueError("seconds must be a number, not NaN")
        start = self._clock()
        task._timer = self._timers.add(start + seconds, self._wake_sleeper, (task, start))
        task._waiting = command

    def _wake_sleeper(self, argument: tuple[TaskHandle[Any], float]) -> None:
        task, start = argument
        # Not below what was asked for, as the rounding of start + seconds can make it look.
        task._value = max(self._clock() - start, task._waiting.seconds)  # type: ignore[union-attr]
        task._waiting = None
        self._ready.append(task)

    def _forget_sleep(self, task: TaskHandle[Any], command: SleepCommand) -> None:
        self._timers.cancel(task._timer)

    def _join(self, task: TaskHandle[Any], command: JoinCommand) -> None:
        if task._cancel_pending:
            task._deliver_cancellation(self._ready)
            return
        target = command.task_handle
        if target._state:
            self._ready.append(task)
            return
        if target.event_loop is not self:
            raise EventLoopError(f"{target!r} runs in {target.event_loop!r}; only tasks of the same loop can join it")
        if target is task:
            raise EventLoopError("a task cannot wait for its own end")
        if target._joiners is None:
            target._joiners = {}
        target._joiners[task] = None
        task._waiting = command

    def _forget_join(self, task: TaskHandle[Any], command: JoinCommand) -> None:
        joiners = command.task_handle._joiners
        if joiners is not None:
            joiners.pop(task, None)

    def _cancel(self, task: TaskHandle[Any], command: CancelCommand) -> None:
        if not command.requested:
            self._request_cancel(command.task_handle)
        self._join(task, command)

    def _call_in_thread(self, task: TaskHandle[Any], command: ThreadCommand) -> None:
        if task._cancel_pending:
            task._deliver_cancellation(self._ready)
            return
        job = ThreadJob(command, self._inbox, self._job_done)
        job.owner = task
        self._jobs[task] = job
        task._waiting = command

    def _job_done(self, job: ThreadJob) -> None:
        task = job.owner
        if self._jobs.get(task) is job:
            del self._jobs[task]
            task._value, task._error, task._waiting = job.value, job.error, None
            self._ready.append(task)

    def _forget_thread(self, task: TaskHandle[Any], command: ThreadCommand) -> None:
        del self._jobs[task]

    # --- the end of a run --------------------------------------------------------------------------------------------

    def _cancel_all(self) -> BaseException | None:
        """Cancel every task and run them until they have ended.

        A task that comes to a wait while it handles its cancellation, in an ``except`` or a ``finally``, may wait. One
        that has swallowed it is cancelled again; after the third time its coroutine is closed. Tasks that a clean-up
        starts run until all those before them have ended, and are cancelled then. The run may have ended anywhere, so
        what is ready is worked out anew.

        Returns:
            The KeyboardInterrupt that cut this short, the tasks that were left being closed; or the error of the
            selector, without which clean-ups could not wait.
        """
        self._ending = True
        current = self._current
        self._requeue()
        if current in self._tasks and current._waiting is None:
            self._ready.remove(current)
            current._deliver_cancellation(self._ready)  # it is in the middle of a command, exit() for one
        self._handlers[ExitCommand] = self._go_on_ending
        for command_class, handler in list(self._handlers.items()):
            if not issubclass(command_class, SpawnCommand):
                self._handlers[command_class] = self._last_waits(handler)
        selector = self._selector
        broken: Exception | None = None
        try:
            for _ in range(ROUNDS_AT_THE_END):
                self._inbox.run()
                told = list(self._tasks)
                for task in told:
                    if task._error is None:
                        task._delivered = None
                    self._cancel_now(task)
                round_of_tasks = _Round(told)
                while not round_of_tasks._state:
                    try:
                        self._run(round_of_tasks)
                    except KeyboardInterrupt as interrupt:
                        return interrupt
                    except Exception as error:  # no task's: those are outcomes, so it is the selector's
                        if broken is not None:
                            return error
                        broken = error
                        self._selector = self._fds.selector = _FailedSelector(selector, self._cancel_all_again)
                        self._requeue()
                    except BaseException:  # what a clean-up raises does not replace what ended the run
                        logger.exception("a task of %r ended with this while it was cancelled", self)
                        self._requeue()
            return broken
        finally:
            self._ending = False
            for task in list(self._tasks):
                logger.error("%r was closed where it stood, as the end of the run was cut short", task)
                self._abandon(task)
            self._ready.clear()
            self._selector = self._fds.selector = selector

    def _requeue(self) -> None:
        """Make ready just the tasks that do not wait; a run that was broken off may have left some of them nowhere."""
        self._current = None
        self._ready[:] = [task for task in self._tasks if task._waiting is None]

    def _last_waits(self, handler: _Handler) -> _Handler:
        """A handler of waits for the end of a run."""

        def handle(task: TaskHandle[Any], command: Any) -> None:
            delivered = task._delivered
            if delivered is None or delivered() is not None:
                handler(task, command)  # not told yet; or the exception is alive, so it is still being handled
            else:
                self._cancel_again(task)

        return handle

    def _cancel_all_again(self) -> None:
        for task in list(self._tasks):
            self._cancel_again(task)

    def _cancel_again(self, task: TaskHandle[Any]) -> None:
        """A task that was told to end waits, and not because it cleans up."""
        task._swallowed += 1
        if task._swallowed < SWALLOWS_AT_THE_END:
            self._take_out_of_wait(task)
            task._deliver_cancellation(self._ready)
        else:
            logger.error("%r has swallowed its cancellation %d times; it is closed", task, task._swallowed)
            self._abandon(task)

    def _go_on_ending(self, task: TaskHandle[Any], command: ExitCommand) -> None:
        """exit() while the run ends already."""
        task._deliver_cancellation(self._ready)

    def _abandon(self, task: TaskHandle[Any]) -> None:
        """End a task without its consent."""
        self._take_out_of_wait(task)
        _close_coroutine(task)
        self._end(task, CANCELLED, None)

    def _check_open(self, to_do: str) -> None:
        if self._closed:
            raise EventLoopError(f"cannot {to_do}: {self!r}")


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


def _throw(task: TaskHandle[Any]) -> Any:
    """A step that raises; a function of its own, so that the loop keeps no reference to what was raised."""
    error = task._error
    task._error = task._value = None
    try:
        return task._run(task.raw_task.throw, cast(BaseException, error))
    finally:
        del error


def _without_loop(traceback: TracebackType | None) -> TracebackType | None:
    """The traceback from where it leaves this file, so that it begins in the task and keeps no frame of a run alive."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
        traceback = traceback.tb_next
    return traceback


def _is_outcome(error: BaseException) -> bool:
    """Whether a task may end with this exception while the others go on."""
    if isinstance(error, BaseExceptionGroup):
        return error.split((Exception, TaskCancelled))[1] is None
    return isinstance(error, (Exception, TaskCancelled))


def _close_coroutine(task: TaskHandle[Any]) -> None:
    try:
        task.raw_task.close()
    except BaseException:
        logger.exception("%r raised when its coroutine was closed", task)
