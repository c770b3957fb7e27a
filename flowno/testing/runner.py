"""Runs the steps of one test in one task of an event loop, and sees what they leave behind. Knows no test framework.

A test is a coroutine, and so are the set-up and the clean-up of what it needs. Between two of them a framework does
other things, outside of the loop. All of them are steps of the same task: so a group or a time limit that a set-up has
entered is around the test, and a context variable that it has set is seen there. Between two steps that task is parked:
it is none of the loop's.
"""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from math import inf
from types import coroutine as generator_based
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ..core.event_loop.commands import Command
from ..core.event_loop.errors import DeadlockError, EventLoopError
from ..core.event_loop.event_loop import EventLoop, Table
from ..core.event_loop.operations import begin_native, end_native
from ..core.event_loop.primitives import sleep
from ..core.event_loop.scopes import group_of
from ..core.event_loop.snapshots import is_own, take_snapshot
from ..core.event_loop.synchronization import Event
from ..core.event_loop.tasks import ErrorReport, TaskCancelled, TaskHandle
from .handles import Handles

if TYPE_CHECKING:
    from types import TracebackType

    from ..core.event_loop.backend import SelectorChoice
    from ..core.event_loop.timers import Timer

__all__ = ["Runner"]

T = TypeVar("T")

#: How many turns of the loop a task has to end by itself once the test has ended, and how many seconds after those. The
#: handler of a connection that the test has just closed needs a few turns, and on a busy machine a moment.
LAST_TURNS: Final = 10
GRACE: Final = 1.0

#: How often a step is cancelled that does not end, before the whole run is ended instead.
INTERRUPTIONS: Final = 3

#: Of how many tasks it is said what they wait for.
MOST_TASKS: Final = 20

#: What Python warns of, at the place where it is dropped, and what comes of flowno's debug mode.
_NEVER_AWAITED: Final = r"coroutine '.*' was never awaited"
_NEVER_CLOSED: Final = r"unclosed (<(socket\.socket|ssl\.SSLSocket|\w*Handle)\b|file <)|subprocess \d+ is still running"


class _Step:
    """A coroutine that the task of the test is to carry out, and what comes of it.

    Args:
        coroutine: The coroutine.
        name: What it is called in messages.

    Attributes:
        mark: Tells the tasks that were spawned by this step, or by one of those, from all others: they inherit it.
        is_through: Whether the coroutine has come to its own end.
        verdict: What it fails with, whatever its coroutine says to its cancellation.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], name: str) -> None:
        self.coroutine = coroutine
        self.name = name
        self.mark = object()
        self.ended = Event()
        self.is_through = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.verdict: Exception | None = None
        self.interruptions = 0


#: The ``mark`` of the step that a task was spawned by.
_mark: ContextVar[object] = ContextVar("flowno.testing.mark")


class _ParkCommand(Command):
    """The task of the test has nothing to do. It is no wait: a cancellation that is due does not arrive here."""

    __slots__ = ()
    is_wait = False


@generator_based
def _parked() -> Generator[Command, Any, _Step | None]:
    step: _Step | None = yield _ParkCommand()
    return step


class Runner:
    """Runs the steps of one test, in an event loop of its own.

    Args:
        selector: What the loop waits by.
        name: What the task of the test is called in messages.
        timeout: How many seconds of the loop's clock each step may take; None for no limit.

    Raises:
        SelectorUnavailableError: There is no such selector on this machine.

    Attributes:
        loop: The event loop.
        root: What it was run for last, which is no part of the test.
    """

    def __init__(self, selector: SelectorChoice, *, name: str, timeout: float | None = None) -> None:
        self.loop = _Loop(selector)
        self._name = name
        self._timeout = timeout
        self.root: TaskHandle[Any] | None = None
        self._task: TaskHandle[Any] | None = None
        self._last_step: _Step | None = None
        self._handles = Handles()
        self._warnings: list[str] = []
        begin_native()  # for Python to say which operations were never awaited

    def run(self, coroutine: Coroutine[Any, Any, T], name: str) -> T:
        """Carry out a step, and leave running what it has started.

        Args:
            coroutine: The step.
            name: What it is called in messages.

        Returns:
            What the coroutine returns.

        Raises:
            TimeoutError: It took too long: it was cancelled and has cleaned up, or it blocked the loop and has ended by
                itself.
            DeadlockError: Nothing could ever have woken it: it was cancelled and has cleaned up.
            EventLoopError: ``exit()`` has ended the run, and the step with it.
            BaseException: What it raises itself.
        """
        __tracebackhide__ = True
        step = self._last_step = _Step(coroutine, name)
        try:
            with self._noting_warnings():
                self._run(self._hand_over(step))
        except Exception as failure:
            if failure is step.verdict:
                failure.__context__ = None  # what the coroutine has said to its end
            raise
        finally:
            self._close(step)
            self._park()
        if not step.is_through:
            raise EventLoopError(f"exit() ended the run before {name} was through")
        if step.error is None:
            return step.value  # type: ignore[no-any-return]
        error, step.error = step.error, None
        try:
            raise error
        finally:
            del error, step, coroutine  # the traceback has this frame

    def leftovers(self, *, patient: bool = True) -> list[str]:
        """Cancel the tasks that the last step has started and that have not ended; those of a group are that group's.

        Args:
            patient: Whether they have a moment to end by themselves.

        Returns:
            A line for each of these, for each error that nobody has joined, and for what was dropped unclosed or never
            awaited, since this was last asked.
        """
        step = self._last_step
        problems = [] if step is None else self._end_tasks(lambda: self._started_by(step), patient=patient)
        return problems + self._noted()

    def close(self, *, patient: bool = True) -> list[str]:
        """Cancel every task, close the loop, and abort the handles that are still open.

        Returns:
            As :meth:`leftovers`, of all tasks, and a line for each of those handles.
        """
        try:
            try:
                problems = self._end_tasks(self._tasks, patient=patient)
            finally:
                with self._noting_warnings():
                    self._dismiss()
                    self.loop.close()
        finally:
            end_native()
            left = self._handles.end()
        return problems + self._noted() + left

    def _close(self, step: _Step) -> None:
        """End its coroutine, which the loop may have refused to run, or may have given up."""
        try:
            step.coroutine.close()
        except RuntimeError:  # it goes on, whatever it is told
            if step.verdict is None:
                raise

    # --- the task of the test ----------------------------------------------------------------------------------------

    async def _hand_over(self, step: _Step | None) -> None:
        """What the loop is run for: the step goes to the task of the test; with None, that has done its duty."""
        loop = self.loop
        self.root = loop.running_task
        if self._task is not None and not self._task.done():
            loop.tasks[self._task] = None
            loop.resume(self._task, step)
        elif step is not None:
            work: Any = self._work(step)
            work.__qualname__ = self._name  # the task is called so
            self._task = loop.create_task(work)
        if step is not None:
            await step.ended.wait()

    async def _work(self, step: _Step | None) -> None:
        loop = self.loop
        while step is not None:
            ended = step.ended
            try:
                await self._carry_out(step)
            finally:
                ended.set()
            if loop.is_ending:
                return
            del step  # it has an error, whose frames have what the test had
            step = await _parked()

    async def _carry_out(self, step: _Step) -> None:
        __tracebackhide__ = True
        loop = self.loop
        _mark.set(step.mark)
        loop.interruption = interruption = _Interruption(self, step)
        interruption.start(self._timeout)
        error: BaseException | None = None
        try:
            step.value = await step.coroutine
        except GeneratorExit:
            raise  # the run ends, and not by consent
        except BaseException as failure:
            if isinstance(failure, TaskCancelled) and step.verdict is None:
                if loop.is_ending:
                    raise
                if failure.scope is not None:
                    failure.add_note(f"by {failure.scope!r}, which a fixture has entered")
            error = failure
        finally:
            loop.interruption = None
            interruption.stop()
        if error is None and step.verdict is None and interruption.is_over:
            step.verdict = TimeoutError(
                f"{step.name} took longer than {self._timeout:g} s, and did not let the loop say so: it blocks"
            )
        step.is_through = True
        if step.verdict is not None:
            step.verdict.__context__ = None if isinstance(error, TaskCancelled) else error
            error = step.verdict.with_traceback(None if error is None else _to_the_test(error.__traceback__))
        step.error = error
        del error

    def cancel(self) -> None:
        """Cancel the step."""
        if self._task is not None:
            self.loop.cancel_now(self._task)

    def forget_cancellation(self) -> None:
        """One that has not arrived by the end of its step is none of the next one's."""
        if self._task is not None:
            self.loop.withdraw_cancel(self._task)

    def _park(self) -> None:
        """Until the next step the task of the test is none that somebody who runs the loop would wait for.

        Only now, after the run: a loop without tasks says of every error that nobody has joined that nobody will.
        """
        if self._task is not None:
            self.loop.tasks.pop(self._task, None)

    def _dismiss(self) -> None:
        """The task of the test ends by itself, as nobody is to be told that it was cancelled."""
        if self._task is not None and not self._task.done() and not self.loop.is_closed:
            self._run(self._hand_over(None))

    def _run(self, root: Coroutine[Any, Any, T]) -> T:
        value: T = self.loop.run_until_complete(root, join=True, wait_for_spawned_tasks=False)
        return value

    # --- what is left ------------------------------------------------------------------------------------------------

    def _tasks(self) -> list[TaskHandle[Any]]:
        """The tasks of the loop, but for the one that asks."""
        return [task for task in self.loop.living_tasks() if task is not self.loop.running_task]

    def _started_by(self, step: _Step) -> list[TaskHandle[Any]]:
        return [task for task in self._tasks() if task._context.get(_mark) is step.mark and group_of(task) is None]

    def _end_tasks(self, find: Callable[[], list[TaskHandle[Any]]], *, patient: bool) -> list[str]:
        """Have these tasks end, by themselves or by their cancellation; a line for each of the latter."""
        if not find():
            return []
        with self._noting_warnings():
            return self._run(self._end_in_the_loop(find, patient))

    async def _end_in_the_loop(self, find: Callable[[], list[TaskHandle[Any]]], patient: bool) -> list[str]:
        if patient:
            await self._wait_while(find)
        left = find()
        lines = [f"still running: {line}" for line in self.lines_of(left)]
        for task in left:
            task.cancel()
        await self._wait_while(lambda: [task for task in left if not task.done()])
        return lines

    async def _wait_while(self, find: Callable[[], list[TaskHandle[Any]]]) -> None:
        """Wait until there is no such task, or it has had its time."""
        for _ in range(LAST_TURNS):
            if not find():
                return
            await sleep(0)
        deadline = self.loop.clock() + GRACE
        while find() and self.loop.clock() < deadline:
            await sleep(0.01)

    def lines_of(self, tasks: Iterable[TaskHandle[Any]]) -> list[str]:
        """A line for each task: its name, what it waits for and where, and where its coroutine was made, if known."""
        wanted = {id(task): task for task in tasks}
        lines = []
        for task in take_snapshot(self.loop).tasks:
            if task.id not in wanted:
                continue
            does = f"{task.name} waits for {task.waits_for}" if task.waits_for else f"{task.name} is {task.state}"
            own = [f"{frame.file}:{frame.line} in {frame.function}" for frame in task.stack if not frame.is_own]
            raw_task = None if wanted[task.id] is self._task else wanted[task.id].raw_task
            origin = getattr(raw_task, "cr_origin", None)  # in debug mode
            made = f", made at {origin[0][0]}:{origin[0][1]} in {origin[0][2]}" if origin else ""
            lines.append(f"{does}{f', at {own[-1]}' if own else ''}{made}")
        if len(lines) > MOST_TASKS:
            lines[MOST_TASKS:] = [f"and {len(lines) - MOST_TASKS} more"]
        return lines

    def _noted(self) -> list[str]:
        notes = [*self.loop.errors, *self._warnings]
        self.loop.errors.clear()
        self._warnings.clear()
        return notes

    @contextmanager
    def _noting_warnings(self) -> Iterator[None]:
        """Take note of what Python says of coroutines and sockets that are dropped too early.

        All other warnings go where they went before. What the test itself waits for, by ``pytest.warns`` or
        ``warnings.catch_warnings``, it gets.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("always", _NEVER_AWAITED, RuntimeWarning)
            warnings.filterwarnings("always", _NEVER_CLOSED, ResourceWarning)
            show = warnings.showwarning

            def note(
                message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any, **options: Any
            ) -> None:
                text = str(message)
                if issubclass(category, RuntimeWarning) and re.match(_NEVER_AWAITED, text):
                    self._warnings.append(f"never awaited: {text}, at {filename}:{lineno}")
                elif issubclass(category, ResourceWarning) and re.match(_NEVER_CLOSED, text):
                    self._warnings.append(f"never closed: {text}{self._handles.place_of(text)}")
                else:
                    show(message, category, filename, lineno, *rest, **options)

            warnings.showwarning = note
            yield


class _Interruption:
    """Cancels a step that takes too long, or that nothing will ever wake, and says why.

    Where its clean-up does the same it is cancelled again, INTERRUPTIONS times in all; then the run is ended.
    """

    def __init__(self, runner: Runner, step: _Step) -> None:
        self._runner = runner
        self._step = step
        self._seconds: float | None = None
        self._deadline = inf
        self._timer: Timer | None = None

    def start(self, seconds: float | None) -> None:
        self._seconds = seconds
        loop = self._runner.loop
        if seconds is not None:
            self._deadline = loop.clock() + seconds
            self._timer = loop.timers.add(self._deadline, _Interruption._run_out, self)

    def stop(self) -> None:
        if self._timer is not None:
            self._runner.loop.timers.cancel(self._timer)
        self._runner.forget_cancellation()

    @property
    def is_over(self) -> bool:
        """Whether the time has run out."""
        return self._runner.loop.clock() > self._deadline

    def has_the_only_timer(self) -> bool:
        """Whether no timer will fire but the one of this limit."""
        return len(self._runner.loop.timers) == (0 if self._timer is None else 1)

    def interrupt(self, reason: Exception) -> None:
        step = self._step
        step.verdict = step.verdict or reason
        step.interruptions += 1
        if step.interruptions > INTERRUPTIONS:
            raise step.verdict
        self._runner.cancel()

    def tasks(self) -> list[TaskHandle[Any]]:
        """The tasks that are part of the test."""
        return [task for task in self._runner.loop.tasks if task is not self._runner.root]

    def _run_out(self) -> None:
        self._timer = None
        waits = "".join(f"\n  {line}" for line in self._runner.lines_of(self.tasks()))
        self.start(self._seconds)  # for the clean-up
        self.interrupt(
            TimeoutError(f"{self._step.name} took longer than {self._seconds:g} s; when the time was over:{waits}")
        )


class _Loop(EventLoop):
    """The event loop of a test.

    Attributes:
        interruption: Ends the step that is being carried out; None while there is none.
        errors: Of tasks that nobody has joined, a line for each.
    """

    def __init__(self, selector: SelectorChoice) -> None:
        self.interruption: _Interruption | None = None
        self.errors: list[str] = []
        super().__init__(selector)
        self.make_error_report = partial(_Report, self.errors)

    def _tables(self) -> tuple[Table, Table]:
        handlers, forgetters = super()._tables()
        handlers[_ParkCommand] = _leave_alone
        return handlers, forgetters

    def _nothing_can_happen(self, deadline: float | None) -> bool:
        """The time limit of the test is nothing that could wake a task of it."""
        interruption = self.interruption
        if interruption is None or self.is_ending or not interruption.has_the_only_timer():
            return super()._nothing_can_happen(deadline)
        if not super()._nothing_can_happen(None):
            return False
        try:
            self._deadlock.patience(interruption.tasks())
        except DeadlockError as deadlock:
            interruption.interrupt(deadlock)
            return False
        return deadline is None


def _leave_alone(task: TaskHandle[Any], command: _ParkCommand) -> None:
    """The task goes on when it is resumed, and not before."""


class _Report(ErrorReport):
    """Takes note of an error that nobody has joined, besides logging it."""

    __slots__ = ("_errors",)

    def __init__(self, errors: list[str], name: str, error: BaseException) -> None:
        super().__init__(name, error)
        self._errors = errors

    def report(self) -> None:
        if not self.is_known:
            what = "".join(traceback.format_exception_only(self._error)).strip()
            frames = traceback.extract_tb(self._error.__traceback__)
            place = f", at {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
            self._errors.append(f"nobody joined: {self._name} ended with {what}{place}")
            super().report()

    __del__ = report


def _to_the_test(traceback: TracebackType | None) -> TracebackType | None:
    """A traceback that ends in the test, at what has waited, and not in flowno's own source."""
    each = last = traceback
    while each is not None:
        if not is_own(each.tb_frame):
            last = each
        each = each.tb_next
    if last is not None:
        last.tb_next = None
    return traceback
