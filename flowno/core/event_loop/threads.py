"""Calls that block, made in worker threads so that the loop goes on; and what such threads ask of the loop.

All bookkeeping is done in the loop's thread. A worker thread does three things to it: it posts to the loop's inbox, it
puts itself among the idle ones, and it notes down the call whose answer it waits for. The last two are one operation
on a dict each, looked at again by whoever clears that dict; so none of them is forgotten, and nobody needs a lock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from threading import Lock, Thread, current_thread
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, cast

from .commands import Command, ShieldedThreadCommand, ShieldedThreadWaitCommand, ThreadCommand
from .errors import EventLoopError
from .limiters import CapacityLimiter
from .operations import coroutine
from .running import fork_count, required_event_loop
from .tasks import TaskCancelled, TaskHandle, coroutine_of

if TYPE_CHECKING:
    from contextvars import Context
    from types import TracebackType

    from .event_loop import EventLoop
    from .inbox import Inbox

__all__ = [
    "OwnThread",
    "ThreadCall",
    "ThreadJob",
    "Threads",
    "Worker",
    "current_default_thread_limiter",
    "current_job",
    "look_up",
    "run_in_thread",
]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: How many calls of :func:`run_in_thread` run at a time where it is given no limiter. Threads that wait cost little
#: besides memory; programs whose calls compute will want a limiter of their own.
DEFAULT_TOKENS = 40

#: How many names are looked up at a time. A resolver whose server is silent hangs for many seconds, also for those who
#: no longer wait for it: hence a number of their own.
LOOKUP_TOKENS = 40

#: Seconds for which a thread waits for its next call before it ends.
LONGEST_REST = 10.0

logger = logging.getLogger("flowno.threads")


async def run_in_thread(
    function: Callable[[*Ts], T],
    *args: *Ts,
    abandon_on_cancel: bool = False,
    limiter: CapacityLimiter | None = None,
) -> T:
    """Call a function that blocks in a worker thread, while the other tasks run.

    It runs in a copy of the task's context variables, and can come back into the loop by :mod:`flowno.from_thread`.

    Args:
        function: What to call; an ordinary function.
        args: Its positional arguments.
        abandon_on_cancel: Whether a task that is cancelled stops waiting at once. The thread cannot be stopped: it runs
            on, what it returns is dropped, and an error is logged at debug level.
        limiter: Of which a token is borrowed while the thread runs, also where nobody waits for it any more. None takes
            :func:`current_default_thread_limiter`.

    Returns:
        What the function returns.

    Raises:
        BaseException: What the function raises. StopIteration, which no coroutine can raise, is the cause of a
            RuntimeError.
        TypeError: ``function`` is no ordinary function, or ``limiter`` no CapacityLimiter.
        EventLoopError: This was awaited outside of an event loop; or the process has forked, and this is the child,
            which has no thread but its own.

    Cancellation: a task that is cancelled before a thread has begun stops waiting. After that the function is waited
    for, its outcome counts, and the cancellation arrives at the next wait; unless ``abandon_on_cancel`` is true.

    Example:
        >>> import time
        >>> from flowno import run, run_in_thread
        >>> async def main():
        ...     await run_in_thread(time.sleep, 0.001)
        ...     return await run_in_thread(sum, [1, 2, 3])
        >>> run(main())
        6
    """
    from inspect import iscoroutinefunction  # which takes longer to import than all of the core

    threads = required_event_loop("run_in_thread()").threads
    given: Any = function
    # Of an object that is called like a function, what runs is the method of its class.
    if not callable(given) or iscoroutinefunction(given) or iscoroutinefunction(type(given).__call__):
        raise TypeError(f"function must be an ordinary function, not {function!r}")
    if limiter is None:
        limiter = threads.limiter
    elif not isinstance(limiter, CapacityLimiter):
        raise TypeError(f"limiter must be a CapacityLimiter or None, not {limiter!r}")
    job = ThreadJob(function, args, limiter, serves_calls=True)
    begin = wait = ThreadCommand(function, args, job)
    if not abandon_on_cancel:
        begin = ShieldedThreadCommand(function, args, job)
        wait = ShieldedThreadWaitCommand(function, args, job)
    return cast(T, await _done_by(job, limiter, begin, wait))


async def look_up(function: Callable[[*Ts], T], *args: *Ts) -> T:
    """Ask the system's resolver, in a worker thread.

    Cancellation: the task does not wait for the resolver, which cannot be interrupted; its answer is dropped.
    """
    limiter = required_event_loop("a call to the resolver").threads.lookup_limiter
    job = ThreadJob(function, args, limiter)
    command = ThreadCommand(function, args, job)
    return cast(T, await _done_by(job, limiter, command, command))


def current_default_thread_limiter() -> CapacityLimiter:
    """The limiter of those calls of :func:`run_in_thread` that are given none.

    Each event loop has one, with 40 tokens at first; set its ``total_tokens`` for another number.

    Raises:
        EventLoopError: No event loop runs in this thread.
    """
    return required_event_loop("current_default_thread_limiter()").threads.limiter


@coroutine
def _done_by(
    job: ThreadJob, limiter: CapacityLimiter, begin: ThreadCommand, wait: ThreadCommand
) -> Generator[Command, Any, Any]:
    """Have a job done, and carry out the calls that its thread makes into the loop."""
    yield from limiter.acquire_on_behalf_of(job)  # pyright: ignore[reportGeneralTypeIssues]
    try:
        outcome = yield begin
        while job.call is not None:
            yield from job.call.made_by_waiter().__await__()
            job.go_home()
            outcome = yield wait
        return outcome
    except BaseException:
        if not job.has_begun:
            limiter._give_back(job)
        job.is_abandoned = True
        raise


class ThreadJob:
    """One call in a worker thread.

    Args:
        function: What to call.
        args: Its positional arguments.
        limiter: Of which the job has a token, to be given back when the thread is done.
        serves_calls: Whether the function is the program's, and may call into the loop.

    Attributes:
        task: The task that has asked for it; set when it begins, and gone when that has the outcome.
        call: The last call that its thread has made into the loop; None once it was answered.
        has_begun: Whether it was given to a thread.
        is_abandoned: Whether the task no longer waits for it.
        name: The function, for people.
    """

    __slots__ = (
        "_args",
        "_context",
        "_error",
        "_function",
        "_home",
        "_threads",
        "_value",
        "call",
        "has_begun",
        "is_abandoned",
        "limiter",
        "name",
        "serves_calls",
        "task",
    )

    if TYPE_CHECKING:
        _context: Context
        _home: Context  # of the task, while it makes calls in that of its thread
        _threads: Threads
        task: TaskHandle[Any]

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        limiter: CapacityLimiter | None = None,
        *,
        serves_calls: bool = False,
    ) -> None:
        self._function = function
        self._args = args
        self.limiter = limiter
        self.serves_calls = serves_calls
        self.name = str(getattr(function, "__qualname__", None) or type(function).__name__)
        self.call: ThreadCall | None = None
        self.has_begun = False
        self.is_abandoned = False
        self._value: Any = None
        self._error: BaseException | None = None

    @property
    def waits_for_answer(self) -> bool:
        """Whether the thread waits for an answer of the loop, without which it does not go on."""
        call = self.call
        return call is not None and call.is_pending

    # --- in the loop's thread ----------------------------------------------------------------------------------------

    def begin(self, task: TaskHandle[Any], threads: Threads) -> None:
        """The job is about to be given to a thread."""
        self.task = task
        self._threads = threads
        self._home = task._context
        self._context = task._context.copy()
        self.has_begun = True

    def visit(self, call: ThreadCall, ready: list[TaskHandle[Any]]) -> None:
        """Have the task that waits make a call of its thread, in the context of the thread."""
        self.call = call
        self._change_context(call.context)
        self.task._wake(ready)

    def go_home(self) -> None:
        """The call has been made; from its next step on the task runs in its own context again."""
        self.call = None
        self._change_context(self._home)

    def _change_context(self, context: Context) -> None:
        self.task._context = context
        self.task._run = context.run

    def lose(self) -> None:
        """The thread is not there any more: the process has forked."""
        self._error = EventLoopError("the worker thread did not come along when the process forked")

    def tell(self, ready: list[TaskHandle[Any]]) -> None:
        """Give the outcome to the task, and keep neither: the traceback of an error leads here."""
        value, self._value = self._value, None
        error, self._error = self._error, None
        self.task._wake(ready, value, error)
        del error, self.task

    def log_error(self) -> None:
        """Nobody waits for the outcome."""
        if self._error is not None and not isinstance(self._error, TaskCancelled):
            logger.debug("%s() was abandoned, and has raised this since", self.name, exc_info=self._error)
        self._error = None

    def __repr__(self) -> str:
        return f"<ThreadJob {self.name}>"

    # --- in the worker thread ----------------------------------------------------------------------------------------

    def work(self) -> None:
        """Make the call."""
        try:
            self._value = self._context.run(self._function, *self._args)
        except StopIteration as stop:
            self._error = RuntimeError(f"{self.name}() raised StopIteration")
            self._error.__cause__ = stop.with_traceback(_without_frames(stop, 1))
        except BaseException as error:
            self._error = error.with_traceback(_without_frames(error, 1))

    def report(self) -> None:
        """Say that the call has been made."""
        self._threads.post_done(self)


def _without_frames(error: BaseException, number: int) -> TracebackType | None:
    """The traceback without its outermost frames: those of this file refer to what keeps the error."""
    traceback = error.__traceback__
    for _ in range(number):
        traceback = traceback and traceback.tb_next
    return traceback


class ThreadCall:
    """A call that a thread makes into an event loop, and waits for.

    Args:
        loop: The loop.
        function: What to call.
        args: Its positional arguments.
        context: What it runs in.
        job: What the thread is at, where the task that waits for that is to make the call; None for a task of its own.
        is_async: Whether what the function returns is to be awaited.
    """

    __slots__ = ("_answered", "_args", "_error", "_function", "_is_async", "_value", "context", "job", "loop")

    def __init__(
        self,
        loop: EventLoop,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        context: Context,
        job: ThreadJob | None,
        *,
        is_async: bool,
    ) -> None:
        self.loop = loop
        self.context = context
        self.job = job
        self._function = function
        self._args = args
        self._is_async = is_async
        self._answered = Lock()
        self._answered.acquire()
        self._value: Any = None
        self._error: BaseException | None = None

    @property
    def is_pending(self) -> bool:
        """Whether the thread waits for the answer."""
        return self in self.loop.threads.calls

    def wait(self) -> Any:
        """The value of the call, or its error raised; for the thread that makes it.

        Raises:
            EventLoopError: The loop does not run, or its run has ended before there was an answer.
        """
        threads = self.loop.threads
        threads.calls[self] = None
        # Only now: a run that ends first says so, and then looks who waits for an answer.
        if self.loop.inbox.thread_id is None and threads.forget_call(self):
            raise EventLoopError(f"a thread cannot call into {self.loop!r}, which does not run")
        self.loop.inbox.post(threads.take_call, self)
        self._answered.acquire()
        error, self._error = self._error, None  # from Python 3.12 on its traceback leads to frames that have this call
        try:
            if error is not None:
                raise error
            return self._value
        finally:
            del self, error  # the traceback has this frame

    async def made_by_waiter(self) -> None:
        """Make the call in the task that waits for the thread. All that comes of it is the thread's."""
        try:
            value = await self._outcome()
        except GeneratorExit:  # the task is closed as it stands; the end of the run answers the thread
            raise
        except KeyboardInterrupt:  # which does not wait for what the thread makes of it
            self.refuse()
            raise
        except BaseException as error:
            self._answer(None, error)
        else:
            self._answer(value, None)

    async def made_by_itself(self) -> None:
        """Make the call in a task of its own. That the task is cancelled, or interrupted, is not for the thread."""
        try:
            value = await self._outcome()
        except GeneratorExit:
            raise
        except BaseException as error:
            if isinstance(error, Exception) or (isinstance(error, TaskCancelled) and not error._was_thrown_in):
                self._answer(None, error)
            else:
                self.refuse()
                raise
        else:
            self._answer(value, None)

    def refuse(self) -> None:
        """There will be no answer."""
        self._answer(None, EventLoopError(f"the call of a thread was cut short, as was the run of {self.loop!r}"))

    async def _outcome(self) -> Any:
        value = self._function(*self._args)
        return await coroutine_of(value, "from_thread.run()") if self._is_async else value

    def _answer(self, value: Any, error: BaseException | None) -> None:
        """Let the thread go on. The first answer counts: a run that ends does not wait for that of the call."""
        if self.loop.threads.forget_call(self):
            if self.job is not None:
                self.job.call = None  # or the two would keep each other
            self._value = value
            self._error = None if error is None else error.with_traceback(_without_frames(error, 2))
            self._answered.release()


class Threads:
    """The worker threads of an event loop: what they do, and what they ask of the loop.

    Args:
        ready: The tasks that are ready, of the loop.
        inbox: Where threads leave what the loop is to do.

    Attributes:
        limiter: Of :func:`run_in_thread`.
        lookup_limiter: Of :func:`look_up`.
        calls: The calls of threads into the loop that wait for an answer.
    """

    def __init__(self, ready: list[TaskHandle[Any]], inbox: Inbox) -> None:
        self.limiter = CapacityLimiter(DEFAULT_TOKENS)
        self.lookup_limiter = CapacityLimiter(LOOKUP_TOKENS)
        self.calls: dict[ThreadCall, None] = {}
        self._ready = ready
        self._inbox = inbox
        self._jobs: dict[ThreadJob, TaskHandle[Any] | None] = {}  # those that run, and who waits for it
        self._crew = _Crew()
        self._forks = fork_count()

    # --- jobs --------------------------------------------------------------------------------------------------------

    def wait_for(self, task: TaskHandle[Any], command: ThreadCommand) -> None:
        """Carry out a command: begin a job, or wait on for one whose call into the loop has been answered."""
        job = command.job
        if job is None:
            job = command.job = ThreadJob(command.function, command.args)
        if not job.has_begun:
            self._begin(job, task)
        elif job in self._jobs:
            self._jobs[job] = task
        else:
            job.tell(self._ready)  # it was lost in a fork, while the task was at the call
            return
        task._waiting = command

    def forget(self, task: TaskHandle[Any], command: ThreadCommand) -> bool:
        """Take a task out of its wait, False where it does not wait any more; the thread runs on."""
        job = command.job
        if job is None or self._jobs.get(job) is not task:
            return False
        self._jobs[job] = None
        job.is_abandoned = True
        return True

    @property
    def can_wake_a_task(self) -> bool:
        """Whether the end of a job will make a task ready: who waits for it, or for the token that it has."""
        return any(
            waiter is not None or (job.limiter is not None and job.limiter.waiters)
            for job, waiter in self._jobs.items()
            if not job.waits_for_answer
        )

    def post_done(self, job: ThreadJob) -> None:
        """A job is done; for its thread."""
        self._inbox.post(self._done, job)

    def _begin(self, job: ThreadJob, task: TaskHandle[Any]) -> None:
        self.after_fork()
        job.begin(task, self)
        self._jobs[job] = task
        try:
            self._crew.give(job)
        except Exception:  # the system has no more threads
            del self._jobs[job]
            job.has_begun = False
            raise
        except BaseException:  # an interrupt: the thread may have begun, or not
            self._jobs[job] = None
            job.is_abandoned = True
            raise

    def _done(self, job: ThreadJob) -> None:
        if job not in self._jobs:
            return  # it was done just before the fork that it was lost in
        waiter = self._jobs.pop(job)
        if job.limiter is not None:
            job.limiter._give_back(job)
        if waiter is not None:
            job.tell(self._ready)
        elif job.is_abandoned:
            job.log_error()

    # --- calls into the loop -----------------------------------------------------------------------------------------

    def take_call(self, call: ThreadCall) -> None:
        """Make a call that a thread waits for, or see that it is made."""
        if call not in self.calls:
            return  # refused, at the end of the run in which it was made
        job = call.job
        if job is not None and self._jobs.get(job) is not None:
            self._jobs[job] = None
            job.visit(call, self._ready)
        else:
            if job is not None:
                job.call = call
            call.loop.start(call.loop.task_class(call.loop, call.made_by_itself(), call.context))

    def forget_call(self, call: ThreadCall) -> bool:
        """Take a call out of those that wait for an answer; from any thread.

        Returns:
            Whether it was there: then the answer is the caller's to give.
        """
        return self.calls.pop(call, call) is None

    # --- the run -----------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """The run has ended, and the loop says so: no thread waits for an answer or for work any more."""
        for call in list(self.calls):
            call.refuse()
        crew, self._crew = self._crew, _Crew()
        crew.dismiss()

    def after_fork(self) -> None:
        """The child of a fork has none of the threads: whoever waits for one is told, once."""
        if self._forks == fork_count():
            return
        self._forks = fork_count()
        self.calls.clear()
        self._crew = _Crew()
        for job in list(self._jobs):
            job.lose()
            self._done(job)


class OwnThread(Thread):
    """A thread of flowno's own: what it does is known, and it keeps no process from ending.

    A daemon: a resolver that hangs, or a program that does not end, would keep it.
    """

    def __init__(self, *, name: str | None = None, target: Callable[..., object] | None = None, args: Any = ()) -> None:
        super().__init__(name=name, target=target, args=args, daemon=True)

    @property
    def may_call_in(self) -> bool:
        """Whether it could make a call that makes a task ready, and of which its event loop does not know yet."""
        return False


class Worker(OwnThread):
    """A thread that makes one call after the other, and ends where none has come for a while.

    Attributes:
        job: What it is at; None while it rests.
    """

    def __init__(self, crew: _Crew, job: ThreadJob) -> None:
        super().__init__()
        self._crew = crew
        self._has_been_told = Lock()
        self._has_been_told.acquire()
        self.job: ThreadJob | None = job

    @property
    def may_call_in(self) -> bool:
        """Whether it could make a call that makes a task ready: it is at a function of the program, and not waiting."""
        job = self.job
        return job is not None and job.serves_calls and not job.waits_for_answer

    def take(self, job: ThreadJob | None) -> None:
        """Do a job, or end; for who has taken the thread out of those that rest."""
        self.job = job
        self._has_been_told.release()

    def run(self) -> None:
        """Do what there is to do."""
        while (job := self.job) is not None:
            self.name = f"flowno worker: {job.name}"
            job.work()
            self.name = "flowno worker: idle"
            self.job = None
            # First it rests, then it reports: so a task that makes call after call needs one thread.
            is_to_stay = self._crew.rest(self)
            job.report()
            del job
            if not is_to_stay or not self._is_told():
                return

    def _is_told(self) -> bool:
        """Wait to be told what to do; False where nobody has done so for long, and nobody will."""
        if self._has_been_told.acquire(timeout=LONGEST_REST):
            return True
        if self._crew.withdraw(self):
            return False
        return self._has_been_told.acquire()  # just now somebody has made up his mind


class _Crew:
    """The worker threads of one run of a loop, as far as they rest."""

    def __init__(self) -> None:
        self._resting: dict[Worker, None] = {}
        self._is_dismissed = False

    def give(self, job: ThreadJob) -> None:
        """Have a job done, by the thread that has rested shortest, or a new one.

        Raises:
            RuntimeError: The system has no more threads.
        """
        try:
            worker, _ = self._resting.popitem()
        except KeyError:
            Worker(self, job).start()
        else:
            worker.take(job)

    def rest(self, worker: Worker) -> bool:
        """A thread has nothing to do.

        Returns:
            Whether it is to wait until it is told what to do, or to end.
        """
        self._resting[worker] = None
        return not (self._is_dismissed and self.withdraw(worker))

    def withdraw(self, worker: Worker) -> bool:
        """Take a thread out of those that rest; False where somebody else has, and is about to tell it what to do."""
        return self._resting.pop(worker, worker) is None

    def dismiss(self) -> None:
        """End those that rest, now, and the others as soon as they have nothing to do."""
        self._is_dismissed = True
        for worker in list(self._resting):
            if self.withdraw(worker):
                worker.take(None)
                worker.join()


def current_job() -> ThreadJob | None:
    """What this thread is at for a task that has called :func:`run_in_thread`, or None."""
    thread = current_thread()
    job = thread.job if isinstance(thread, Worker) else None
    return job if job is not None and job.serves_calls else None
