"""Cancels a program wherever it can be cancelled, and sees that it leaves nothing behind.

A program can be cancelled at each of its suspensions, and most of them are never met by a test that was written for
them. There are not many, though: so the program is run once for each, and for each way in which a cancellation can
arrive there.

The program runs beneath a generator that counts what it yields. The loop is the one that everybody uses; what it does
not know is that for one step of one task, the entry of its table of commands leads through here.
"""

from __future__ import annotations

import gc
import os
import signal
import stat
import sys
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from enum import Enum
from types import coroutine
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ..core.event_loop.errors import FlownoError
from ..core.event_loop.event_loop import EventLoop, handler_for, run
from ..core.event_loop.primitives import sleep
from ..core.event_loop.scopes import CancelScope, move_on_after
from ..core.event_loop.synchronization import Event
from ..core.event_loop.tasks import TaskCancelled, TaskHandle
from ..core.event_loop.threads import OwnThread

if TYPE_CHECKING:
    from ..core.event_loop.backend import SelectorChoice
    from ..core.event_loop.commands import Command
    from ..core.event_loop.synchronization import Lock

__all__ = ["CancellationLeak", "cancel_everywhere"]

#: How many turns of the loop the other tasks have to end, once the program has. One that was cancelled needs two or
#: three; one that nobody told would not end in any number.
LAST_TURNS = 10

#: Seconds that the thread of a call that nobody waits for any more has to come to its end.
THREAD_GRACE = 5.0

#: Where the open fds are listed; on the BSDs /dev/fd has but three of them, unless fdescfs(5) is mounted there. Under
#: Wine, a Python for Windows can see those of the system below, which are not its own.
_FD_FOLDER = {"darwin": "/dev/fd", "win32": None}.get(sys.platform, "/proc/self/fd")
if _FD_FOLDER is not None and not os.path.isdir(_FD_FOLDER):
    _FD_FOLDER = None

#: How many fds are looked at one by one where no folder lists them. On Windows those are files and pipes, of which no
#: program has many, and the lowest number is taken first.
_FDS_PROBED = 128 if sys.platform == "win32" else 1024


#: The signals whose handlers are looked at: those that have a name. To ask for all 64 of Linux takes longer than most
#: programs that are looked at.
_SIGNALS = tuple(number for number in signal.Signals if number in signal.valid_signals())  # not Windows' CTRL_C_EVENT


class CancellationLeak(FlownoError, AssertionError):
    """A program that was cancelled has left something behind, or has not ended as a cancelled one does.

    Attributes:
        suspension: At which of its suspensions it was cancelled; the first one is 1. 0 is before its first step.
        command: The command that it was suspended in, as text.
        way: How the cancellation came.
        problems: What was found, each in a line.
    """

    def __init__(self, suspension: int, command: str, way: str, problems: list[str]) -> None:
        self.suspension = suspension
        self.command = command
        self.way = way
        self.problems = problems
        where = f"at suspension {suspension}, {command}" if suspension else "before its first step"
        super().__init__(f"the program was cancelled {where}, {way}:\n" + "\n".join(f"  {each}" for each in problems))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.suspension, self.command, self.way, self.problems)


def cancel_everywhere(
    program: Callable[[], Coroutine[Any, Any, object]],
    *,
    selector: SelectorChoice | None = None,
    check: Callable[[], object] | None = None,
    timeout: float = 10.0,
    limit: int = 1000,
) -> int:
    """Run a program again and again, and cancel it at its first suspension, at its second, and so on to its last.

    At each one it is cancelled by ``TaskHandle.cancel()`` and by a :class:`~flowno.CancelScope` around it; just before
    the wait, in the wait, and in the moment in which the wait has got what it waited for. Besides, by a ``cancel()``
    with another one in the wait after that, and by the end of the run, which cancels every task. Each time in a new
    event loop, with these questions afterwards:

    * Has it ended by this cancellation, or with a value where no wait was left for it to arrive at? This is not asked
      at the end of a run.
    * Are the same fds open as before, and was every socket and file closed by the program, not by the garbage
      collector?
    * Has every other task ended? Is there no timer left, no registered fd, no call in a thread, no lock in the hands of
      a task that has ended, and no token of a limiter of the loop, which are those for threads?
    * Have all signals the handlers of before, and is none still received?
    * Does the program run to its end in the same loop, where it is not cancelled, and are the answers the same?

    What a program was given and must not lose, an item of a queue for one, is known to the program only: let it keep
    account, and look at the account in ``check``.

    The program should do the same in every run, and talk to itself only: to sockets that it makes, to tasks that it
    starts. Other threads must open no fds meanwhile.

    Args:
        program: Called for each run; gives the coroutine to run.
        selector: What waits for the sockets; see :class:`~flowno.EventLoop`.
        check: Called after each run, cancelled or not; raises an exception, such as AssertionError, where something is
            lost.
        timeout: How many seconds of the loop's clock a run may take.
        limit: How many suspensions the program may have.

    Returns:
        How many suspensions there were to cancel it at.

    Raises:
        CancellationLeak: Something is left. It names the suspension, the command, the way and what is left; its
            ``__cause__`` is the error of the program or of ``check``, where it is one.
        ValueError: The program has more suspensions than ``limit``.
        BaseException: What the program itself raises when it is not cancelled.

    Example:
        >>> from flowno import Lock, sleep
        >>> from flowno.testing import cancel_everywhere
        >>> async def careful():
        ...     async with Lock():
        ...         await sleep(0)
        ...         await sleep(0)
        >>> cancel_everywhere(careful)
        2
        >>> async def careless():
        ...     lock = Lock()
        ...     await lock.acquire()
        ...     await sleep(0)
        ...     lock.release()
        >>> cancel_everywhere(careless)
        Traceback (most recent call last):
        flowno.testing.cancellation.CancellationLeak: the program was cancelled at suspension 1, GiveWayCommand(), by...
          <TaskHandle careless cancelled> ended with a lock that it did not release: <Lock broken by ...
    """
    run(program(), selector)  # also so that whatever is imported or opened once is, before anything is counted
    gc.collect()  # what others have dropped is not to be found here
    trial = _Trial(program, selector, check, timeout)
    suspension = 0
    while True:
        reached = [trial.cancel_at(suspension + 1, way) for way in _WAYS]
        if not any(reached):
            break
        suspension += 1
        if suspension > limit:
            raise ValueError(f"the program has more than {limit} suspensions; make it smaller, or the limit higher")
    trial.cancel_at(0, _BEFORE_THE_FIRST_STEP)
    return suspension


class _By(Enum):
    """What cancels the program."""

    CANCEL = "cancel()"
    SCOPE = "a cancelled scope around it"
    INTERRUPT = "the end of the run, as after Ctrl-C"


class _When(Enum):
    """The moment in which it does."""

    BEFORE = "before it waited"
    WAITING = "while it waited"
    ANSWERED = "in the moment in which the wait was over"


class _Way(NamedTuple):
    """How a program is cancelled."""

    by: _By
    when: _When
    again: bool = False  # and in the wait that comes next, too

    def __str__(self) -> str:
        return f"by {self.by.value}, {self.when.value}{', and again at its next wait' if self.again else ''}"


_WAYS = (
    *(_Way(by, when) for by in (_By.CANCEL, _By.SCOPE) for when in _When),
    _Way(_By.CANCEL, _When.WAITING, again=True),
    _Way(_By.INTERRUPT, _When.WAITING),
)

_BEFORE_THE_FIRST_STEP = _Way(_By.CANCEL, _When.BEFORE)

#: The suspension at which a run is cancelled that is not.
_NOWHERE = -1


class _Interrupt(KeyboardInterrupt):
    """The end of a run."""


def _interrupt(_: None) -> None:
    raise _Interrupt


class _Trial:
    """The runs of a program; the arguments are those of :func:`cancel_everywhere`."""

    def __init__(
        self,
        program: Callable[[], Coroutine[Any, Any, object]],
        selector: SelectorChoice | None,
        check: Callable[[], object] | None,
        timeout: float,
    ) -> None:
        self._program = program
        self._selector = selector
        self._check = check
        self._timeout = timeout

    def cancel_at(self, suspension: int, way: _Way) -> bool:
        """Cancel a run of the program there.

        Returns:
            Whether the program came to that suspension.
        """
        before = _Snapshot.taken()
        loop = EventLoop(self._selector)
        try:
            cancelled = _Run(loop, suspension, way)
            problems, cause = self._problems_of(cancelled)
            if not problems:
                again, cause = self._problems_of(_Run(loop, _NOWHERE, way))
                problems = [f"it was run again in the same loop: {problem}" for problem in again]
        finally:
            loop.close()
        problems = problems or _left_fds(before)
        if problems:
            raise CancellationLeak(suspension, cancelled.command, str(way), problems) from cause
        return cancelled.count >= suspension

    def _problems_of(self, one: _Run) -> tuple[list[str], BaseException | None]:
        """Make this run, and look at what it leaves.

        Returns:
            What is wrong, and the error that this is the consequence of, if any.
        """
        fds, handlers = _Snapshot.taken(), _signal_handlers()
        problems: list[str] = []
        with _unclosed(problems):
            error = one.make(self._program(), self._timeout, problems)
        problems += _left_in(one.loop)
        problems += _left_fds(fds)
        problems += _changed_handlers(handlers)
        if self._check is not None and not problems:
            try:
                self._check()
            except Exception as failed:
                problems.append(f"the check failed: {str(failed) or type(failed).__name__}")
                error = failed
        return problems, error


class _Probe(TaskHandle[Any]):
    """The task that is cancelled. It notices when its wait is over, which is before it runs again."""

    __slots__ = ("_command", "on_answer")

    def __init__(self, loop: EventLoop, raw_task: Coroutine[Any, Any, Any]) -> None:
        self._command: Command | None = None
        self.on_answer: Callable[[], object] | None = None
        super().__init__(loop, raw_task, copy_context())

    @property
    def _waiting(self) -> Command | None:
        return self._command

    @_waiting.setter
    def _waiting(self, command: Command | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        old, self._command = self._command, command
        if old is not None and self.on_answer is not None:
            on_answer, self.on_answer = self.on_answer, None
            on_answer()


class _Run:
    """One run of a program, and the cancellation of it.

    Args:
        loop: Where it runs.
        suspension: Where it is cancelled; 0 is before its first step.
        way: How.

    Attributes:
        count: How many suspensions there were.
        command: The command of the suspension at which it was cancelled, as text.
    """

    def __init__(self, loop: EventLoop, suspension: int, way: _Way) -> None:
        self.loop = loop
        self.count = 0
        self.command = ""
        self._suspension = suspension
        self._way = way
        self._scope: CancelScope | None = None
        self._task: _Probe | None = None
        self._ended = Event()
        self._error: BaseException | None = None
        self._is_delivered = False
        self._locks: dict[int, tuple[TaskHandle[Any], dict[Lock, None]]] = {}

    def make(self, program: Coroutine[Any, Any, object], seconds: float, problems: list[str]) -> BaseException | None:
        """Run the program to its end, and see how it has ended.

        Args:
            program: Its coroutine.
            seconds: How long it may take.
            problems: Where to put what is wrong.

        Returns:
            The error that it has ended with, where it is none of a cancellation.
        """
        is_interrupted = False
        try:
            in_time: bool = self.loop.run_until_complete(
                self._watch(program, seconds), join=True, wait_for_spawned_tasks=False
            )
        except _Interrupt:
            in_time = is_interrupted = True
        self._note_locks()
        task = cast(_Probe, self._task)
        error, self._error = self._error, None
        if not in_time:
            problems.append(f"it had not ended after {seconds:g} s")
        elif is_interrupted:
            error = None  # it may end as it likes: the other tasks, whose outcomes it may want, are cancelled, too
        elif error is not None:
            problems.append(f"it ended with {error!r}")
        elif self._is_delivered and not (self._scope.cancelled_caught if self._scope else task.is_cancelled):
            problems.append("it swallowed the cancellation, and went on")
        elif task.is_cancelled and (self._scope or not self._is_delivered):
            problems.append("it ended by a cancellation that nobody had asked for")
        problems += [f"{other!r} has not ended; it waits in {other._waiting!r}" for other in self.loop.tasks]
        problems += [
            f"{owner!r} ended with a lock that it did not release: {lock!r}"
            for owner, locks in self._locks.values()
            if owner._state
            for lock in locks
        ]
        self._locks.clear()
        return error

    async def _watch(self, program: Coroutine[Any, Any, object], seconds: float) -> bool:
        """The task beside: starts the program, waits for its end, and gives the other tasks time to end.

        Returns:
            Whether the program has ended.
        """
        loop = self.loop
        raw_task: Any = self._counted(program)
        if self._way.by is _By.SCOPE:
            raw_task = self._inside_scope(raw_task)
        raw_task.__qualname__ = getattr(program, "__qualname__", type(program).__name__)  # the task is called so
        task = self._task = _Probe(loop, raw_task)
        loop.start(task)
        if not self._suspension:
            task.cancel()
        task._add_callback(self._note_end)
        with move_on_after(seconds):
            await self._ended.wait()
        for _ in range(LAST_TURNS):
            if len(loop.tasks) == 1 and not loop.inbox.items:
                break
            await sleep(0)
        return self._ended.is_set()

    def _note_end(self, task: TaskHandle[Any]) -> None:
        if task.is_error:
            self._error = task._failure()  # from now on somebody knows of it
        self._ended.set()

    async def _inside_scope(self, counted: Coroutine[Any, Any, Any]) -> None:
        with CancelScope() as self._scope:
            await counted
        await sleep(0)  # where a cancellation arrives that should have ended with the scope

    @coroutine
    def _counted(self, program: Coroutine[Any, Any, object]) -> Generator[Command, Any, object]:
        """The program, each suspension of which is counted."""
        value: Any = None
        errors: list[BaseException] = []  # none is held while the program deals with it: the loop looks at that
        while True:
            try:
                command = program.throw(errors.pop()) if errors else program.send(value)
            except StopIteration as stop:
                return stop.value
            self.count += 1
            self._note_locks()
            if self.count == self._suspension:
                self.command = repr(command)
                self._cancel_at(command, self._way.when)
            elif self._way.again and 0 < self._suspension < self.count and self._is_delivered:
                self._way = self._way._replace(again=False)
                self._cancel()
            try:
                value = yield command
            except GeneratorExit:
                program.close()
                raise
            except BaseException as error:
                if isinstance(error, TaskCancelled) and error.by is self._task and error.scope is self._scope:
                    self._is_delivered = True
                errors.append(error)

    def _cancel_at(self, command: Command, when: _When) -> None:
        """Cancel the task, which is about to yield this command, then."""
        probe = cast(_Probe, self._task)
        if when is _When.BEFORE or probe._cancel_pending:  # then it is not carried out: a scope of the program cancels
            self._cancel()
            return
        handlers = self.loop.handlers
        handler = handler_for(handlers, command.__class__)

        def carry_out(task: TaskHandle[Any], command: Command) -> None:
            handlers[command.__class__] = handler
            try:
                self.loop.carry_out(handler, task, command)
            finally:
                if when is _When.WAITING or probe._waiting is None:
                    self._cancel()
                else:
                    probe.on_answer = self._cancel_answered

        handlers[command.__class__] = carry_out

    def _cancel_answered(self) -> None:
        """Cancel the task before its next step. A scope only when the step of the task that has woken it is over: other
        tasks are inside, too, and may be those that this one is just waking, as the last to come to a barrier does.
        """
        if self._scope is not None and self.loop.running_task is not None:
            self.loop.inbox.post(self._cancel, None)
        else:
            self._cancel()

    def _cancel(self, _: None = None) -> None:
        if self._way.by is _By.INTERRUPT:
            self.loop.inbox.post(_interrupt, None)
        elif self._scope is not None:
            self._scope.cancel()
        else:
            cast(_Probe, self._task).cancel()

    def _note_locks(self) -> None:
        """Remember which tasks have had locks: one that ends with a lock in its hands still has it in its list."""
        for task in self.loop.tasks:
            if task._locks is not None:
                self._locks[id(task)] = task, task._locks


# ------------------------------------------------------------------------------------------------------ what is left


def _left_in(loop: EventLoop) -> list[str]:
    """What a loop still has that runs no task."""
    problems = []
    if len(loop.timers):
        problems.append(f"timers that were not taken back: {len(loop.timers)}")
    if loop.fds.registered:
        problems.append(f"fds that are still registered: {loop.fds.registered}")
    if loop.threads.can_wake_a_task:
        problems.append("a call in a thread that a task still waits for")
    for limiter in (loop.threads.limiter, loop.threads.lookup_limiter):
        # A thread that nobody waits for any more has its token, rightly, to its end.
        lost = limiter._borrowers - loop.threads._jobs.keys()
        problems += [f"{borrower!r} has not given back its token of {limiter!r}" for borrower in lost]
    still_open = {receiver for receivers in loop.signals._receivers.values() for receiver in receivers}
    problems += [f"signals that are still received: {receiver!r}" for receiver in still_open]
    return problems


@contextmanager
def _unclosed(problems: list[str]) -> Iterator[None]:
    """Say of every socket and file that the garbage collector closes that nobody else did. Python warns of these."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        yield
    for warning in caught:
        if issubclass(warning.category, ResourceWarning):
            problems.append(f"dropped, and not closed: {warning.message}")
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _signal_handlers() -> dict[int, object]:
    return {number: signal.getsignal(number) for number in _SIGNALS}


def _changed_handlers(before: dict[int, object]) -> list[str]:
    """Which signals have another handler than before."""
    return [
        f"the handler of {number!r} is {handler!r}, and was {before[number]!r}"
        for number, handler in _signal_handlers().items()
        if handler != before[number]
    ]


class _Snapshot(NamedTuple):
    """The open fds, as they were.

    Attributes:
        fds: What :func:`_open_fds` said.
        may_close: Whether some may be of a thread of flowno's own, which closes them when it comes to its end.
    """

    fds: dict[int, tuple[int, ...]]
    may_close: bool

    @classmethod
    def taken(cls) -> _Snapshot:
        may_close = _own_threads()  # looked at first: it may end in between
        return cls(_open_fds(), may_close)


def _left_fds(before: _Snapshot) -> list[str]:
    """What has become of the open fds."""
    deadline = time.monotonic() + THREAD_GRACE
    while (now := _open_fds()) != before.fds and time.monotonic() < deadline and _own_threads():
        time.sleep(0.001)  # a resolver that nobody waits for any more has its files open
    if now != before.fds:
        gc.collect()
        now = _open_fds()
    left = [f"fd {fd} is still open: {_kind(now[fd])}" for fd in now if now[fd] != before.fds.get(fd)]
    if not before.may_close:
        closed = before.fds.keys() - now.keys()
        left += [f"fd {fd} was open before, and is not: {_kind(before.fds[fd])}" for fd in sorted(closed)]
    return left


def _own_threads() -> bool:
    """Whether a thread of flowno's own is still at work, for nobody."""
    return any(isinstance(thread, OwnThread) for thread in threading.enumerate())


def _open_fds() -> dict[int, tuple[int, ...]]:
    """The open fds, each with what tells it from another that gets the same number.

    On Windows, sockets are no such fds: of those, only the warnings of Python tell.
    """
    fds: dict[int, tuple[int, ...]] = {}
    for fd in map(int, os.listdir(_FD_FOLDER)) if _FD_FOLDER else range(_FDS_PROBED):
        try:
            status = os.fstat(fd)
        except OSError:
            continue  # not open; or the fd that listed the folder
        fds[fd] = status.st_mode, status.st_dev, status.st_ino
    return fds


_KINDS = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a pipe",
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a device",
}


def _kind(identity: tuple[int, ...]) -> str:
    return _KINDS.get(stat.S_IFMT(identity[0]), "a descriptor of the kernel")
