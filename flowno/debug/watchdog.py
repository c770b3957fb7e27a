"""Reports steps that hold up an event loop, while they do.

A loop whose task is in ``time.sleep()``, or computes, cannot say so itself. A thread beside it looks, a few times
within the limit, whether the step that was begun last has come to its end, and where it is if not.
"""

from __future__ import annotations

import logging
from math import inf
from queue import Empty, SimpleQueue
from threading import Lock, current_thread
from time import perf_counter  # not the loop's clock, which may be simulated: what blocks, blocks in real time
from typing import TYPE_CHECKING, Any, Final

from flowno.core.event_loop.running import calls_the_program, fork_count
from flowno.core.event_loop.threads import OwnThread

from .places import stack_in_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowno.core.event_loop.tasks import TaskHandle

__all__ = ["Watchdog"]

#: How often the thread looks within the limit; so that is by how much of it a report may be late.
LOOKS_PER_LIMIT: Final = 4

#: Seconds between two looks, at least and at most: where there is hardly any limit, and where there is none.
SHORTEST_PAUSE: Final = 0.001
LONGEST_PAUSE: Final = 1.0

#: Seconds for which the end of the loop waits for the thread, which may be writing a report.
PATIENCE: Final = 1.0

logger = logging.getLogger("flowno.debug")


class Watchdog:
    """Looks after the steps of one event loop, from the first one on until the loop is closed or dropped.

    Each step longer than the loop's ``slow_step_duration`` is reported once: while it lasts by the thread, or at its
    end, where that came before the thread has looked. The thread keeps neither the loop nor the process alive, deadlock
    detection does not count it, and it rests while the loop does.
    """

    def __init__(self) -> None:
        self._asked_for: object = inf  # the limit that the loop had when the last step began
        self._limit = inf  # seconds; what that comes to
        self._step: tuple[TaskHandle[Any], float] | None = None  # the one that runs, and since when
        self._began = 0.0  # the last one
        self._reported = 0.0  # the last one of those that were, by when it began
        self._claims = Lock()  # of a report
        self._rests = False  # the thread, until it is told of a step
        self._told: SimpleQueue[bool] = SimpleQueue()  # whether there is a step, or an end
        self._thread: OwnThread | None = None
        self._forks = -1

    # --- in the loop's thread ----------------------------------------------------------------------------------------

    @calls_the_program
    def run_step(
        self, task: TaskHandle[Any], run: Callable[..., Any], method: Callable[[Any], Any], argument: Any
    ) -> Any:
        """A step wrapper, :meth:`EventLoop.add_step_wrapper`."""
        if self._forks != fork_count():
            self._start()
        asked_for = task.event_loop.slow_step_duration
        if asked_for is not self._asked_for:
            self._asked_for = asked_for
            self._limit = _seconds(asked_for)
        limit = self._limit
        began = self._began = perf_counter()
        self._step = task, began
        if self._rests:  # looked at after the step is there: the thread does it the other way round
            self._rests = False
            self._told.put(True)
        try:
            return run(method, argument)
        finally:
            self._step = None
            took = perf_counter() - began
            if took > limit and self._claim(began):
                _report_end(task, took)
            del task, run, method, argument  # the traceback of an error has this frame

    def end(self) -> None:
        """The loop is closed, or gone."""
        self._told.put(False)
        thread, self._thread = self._thread, None
        # Not without limit: a loop may be dropped anywhere, also while this thread has a lock that the report needs.
        if thread is not None and thread is not current_thread() and self._forks == fork_count():
            thread.join(PATIENCE)

    def _start(self) -> None:
        """Begin to look; once in each process, as a forked child has none of its parent's threads."""
        self._forks = fork_count()
        self._claims = Lock()
        self._rests = False
        self._told = SimpleQueue()
        self._thread = OwnThread(name="flowno watchdog", target=self._look_until_told)
        try:
            self._thread.start()
        except RuntimeError as error:  # the system has no more threads, or Python ends
            self._thread = None
            logger.warning("nobody looks for steps that block: %s", error)

    def _claim(self, began: float) -> bool:
        """Whether the report of a step is the caller's to make."""
        with self._claims:
            is_free = self._reported != began
            self._reported = began
        return is_free

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _look_until_told(self) -> None:
        told, seen = self._told, 0.0
        goes_on = True
        while goes_on:
            pause: float | None = self._look()
            if self._step is None and self._began == seen:  # nothing has happened since the last look
                self._rests = True
                if self._step is None:
                    pause = None
            seen = self._began
            try:
                goes_on = told.get(timeout=pause)
            except Empty:
                pass
            self._rests = False

    def _look(self) -> float:
        """Report the step that runs, if it is time.

        Returns:
            Seconds until the next look.
        """
        step, limit = self._step, self._limit
        if step is not None:
            task, began = step
            took = perf_counter() - began
            if took > limit and began != self._reported and self._claim(began):
                stack = stack_in_words(task.get_stack())
                if self._step is not step:
                    _report_end(task, took)
                else:
                    logger.warning(
                        "%s holds up the event loop: its step has taken %.3f s so far, and is here "
                        "(most recent call last):\n%s",
                        repr(task), took, stack,
                    )  # fmt: skip
        return min(max(limit / LOOKS_PER_LIMIT, SHORTEST_PAUSE), LONGEST_PAUSE)


def _report_end(task: TaskHandle[Any], took: float) -> None:
    """Report a step that is over.

    The log gets the words for the task, and not the task: a record that is kept would keep it, and who formats the
    record later would find it changed.
    """
    logger.warning("%s has held up the event loop: a step took %.3f s", repr(task), took)


def _seconds(limit: object) -> float:
    """A limit as the program has set it; infinite where it is none: whoever watches raises nothing."""
    if isinstance(limit, (int, float)) and limit >= 0:
        return limit
    logger.error("slow_step_duration is to be a number of seconds, 0 or more, and not %r; no step is reported", limit)
    return inf
