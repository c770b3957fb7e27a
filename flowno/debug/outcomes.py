"""Tasks whose value, or end, nobody has asked for, and operations that were never awaited: where they were made.

That a task which fails is heard of, the core sees to itself. Here it is the value, unless that is None, which is how a
task ends that is for its effects; and that a task was not through with them when its loop ended.
"""

from __future__ import annotations

import logging
import reprlib
import sys
from typing import TYPE_CHECKING, Any, Final

from flowno.core.event_loop.running import calls_the_program
from flowno.core.event_loop.tasks import RETURNED, ErrorReport, TaskCancelled, TaskHandle

from .places import ORIGIN_DEPTH, Place, in_the_task, with_stack

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ValueReport", "WatchedTask", "run_step"]

logger = logging.getLogger("flowno.debug")


class WatchedTask(TaskHandle[Any]):
    """A task that takes note of whether anybody asks for its value, or to be told of its end."""

    __slots__ = ()

    def join(self) -> Any:
        self._is_asked_for()
        return super().join()

    def exception(self) -> BaseException | None:
        self._is_asked_for()
        return super().exception()

    def _outcome(self) -> Any:
        self._is_asked_for()
        try:
            return super()._outcome()
        finally:
            del self  # the traceback of an error would tie it to the task that has it

    def _add_callback(self, callback: Callable[[TaskHandle[Any]], object]) -> None:
        self._is_asked_for()
        super()._add_callback(callback)

    def _is_asked_for(self) -> None:
        report = self._unjoined
        if report is None:
            self._unjoined = _ASKED
        elif isinstance(report, ValueReport):
            report.is_known = True


class ValueReport(ErrorReport):
    """Logs the value of a task when the task is dropped or the loop ends, unless somebody has asked for it by then.

    Args:
        name: The task.
        value: Its value.
        place: Where its coroutine was made, if that is known.
    """

    __slots__ = ("_place", "_value")

    def __init__(self, name: str, value: Any, place: Place | None) -> None:
        self.is_known = False
        self._name = name
        self._value = value
        self._place = place

    def report(self) -> None:
        if not self.is_known:
            self.is_known = True
            made = with_stack("its coroutine was made at", self._place)
            logger.warning("%s returned %s, which nobody asked it for%s", self._name, reprlib.repr(self._value), made)

    __del__ = report


#: The report of a task that somebody has asked before there was anything to report.
_ASKED: Final = ValueReport("", None, None)
_ASKED.is_known = True


@calls_the_program
def run_step(task: TaskHandle[Any], run: Callable[..., Any], method: Callable[[Any], Any], argument: Any) -> Any:
    """A step wrapper, :meth:`EventLoop.add_step_wrapper`.

    While the step runs, Python keeps of each coroutine where it was made, which it says of one that was never awaited.
    """
    outer_depth = sys.get_coroutine_origin_tracking_depth()
    sys.set_coroutine_origin_tracking_depth(ORIGIN_DEPTH)
    try:
        return run(method, argument)
    except StopIteration as stop:
        if stop.value is not None and not _is_heard_of(task):
            task._state = RETURNED  # so that its name says it
            report = ValueReport(repr(task), stop.value, _origin(task))
            task._unjoined = report
            task.event_loop._unjoined.add(report)
        raise
    except TaskCancelled:
        if task.event_loop._ending is not None and not _is_heard_of(task):
            # No warning: it is how a task ends that is to go on for as long as the program does.
            made = with_stack("its coroutine was made at", _origin(task))
            logger.info("%s was cancelled by the end of its loop, and nobody waited for it%s", repr(task), made)
        raise
    finally:
        sys.set_coroutine_origin_tracking_depth(outer_depth)
        del task, run, method, argument  # the traceback of an error has this frame


def _is_heard_of(task: TaskHandle[Any]) -> bool:
    """Whether somebody waits for the end of a task, or will, or it is the one that the loop was run for."""
    return bool(task._joiners) or task._unjoined is not None or task.event_loop._interrupts.root is task


def _origin(task: TaskHandle[Any]) -> Place | None:
    """Where the coroutine of a task was made, if that is known."""
    origin: Place | None = getattr(task.raw_task, "cr_origin", None)
    return in_the_task(origin) if origin is not None else None
