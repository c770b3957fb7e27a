"""The end of a run that tasks are left over from: each is cancelled, and runs until it has ended.

A task that comes to a wait while it handles its cancellation, in an ``except`` or a ``finally``, may wait. One that has
swallowed it is cancelled again; after the third time its coroutine is closed. Tasks that a clean-up starts run until
all those before them have ended, and are cancelled then.
"""

from __future__ import annotations

import logging
from selectors import SelectorKey
from typing import TYPE_CHECKING, Any

from .commands import ExitCommand
from .tasks import CANCELLED, TaskHandle, close_coroutine

if TYPE_CHECKING:
    from collections.abc import Callable

    from .backend import FileObject, Selector
    from .event_loop import EventLoop, Handler

__all__ = ["Ending"]

#: How often a task may swallow its cancellation before its coroutine is closed.
SWALLOWS = 3

#: How often everything is cancelled; later rounds are for the tasks that clean-ups have started.
ROUNDS = 3

logger = logging.getLogger("flowno.loop")


class Ending:
    """Ends the tasks of an event loop; :meth:`run` does it, the rest is for the loop to call meanwhile.

    Args:
        loop: The loop, between entering and leaving it.
    """

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._swallowed: dict[TaskHandle[Any], int] = {}

    def run(self, *, at_once: bool = False) -> BaseException | None:
        """Cancel every task and run them until they have ended. The run may have been broken off anywhere.

        Args:
            at_once: Whether to close them where they stand instead.

        Returns:
            The KeyboardInterrupt that cut this short, the tasks that were left being closed; or the error of the
            selector, without which clean-ups could not wait.
        """
        loop = self._loop
        selector = loop.fds.selector
        failure: Exception | None = None
        task: TaskHandle[Any] | None
        told: list[TaskHandle[Any]] = []
        current = loop.running_task
        if current is not None and not current._state and _has_run_out(current):
            loop.end_task(current, CANCELLED, None)  # an interrupt came just before the loop took note of its end
        self._requeue()
        if current is not None and not current._state and current._waiting is None:
            loop.ready.remove(current)
            current._deliver_cancellation(loop.ready)  # it is in the middle of a command, exit() for one
        self._exchange_handlers()
        try:
            for _ in range(0 if at_once else ROUNDS):
                try:
                    loop.inbox.run()
                except KeyboardInterrupt as interrupt:
                    return interrupt
                except BaseException:
                    logger.exception("a call that was posted to %r ended with this while the run ended", loop)
                told = list(loop.tasks)
                for task in told:
                    if task._error is None:
                        task._delivered = None
                    loop.cancel_now(task)
                while not all(task._state for task in told):
                    try:
                        for task in told:
                            loop.run_until(task)
                    except KeyboardInterrupt as interrupt:
                        return interrupt
                    except Exception as error:  # no task's: those are outcomes, so it is the selector's
                        if failure is not None:
                            return error
                        failure = error
                        loop.fds.selector = _FailedSelector(selector, self.on_quiet)
                        self._requeue()
                    except BaseException:  # what a clean-up raises does not replace what ended the run
                        logger.exception("a task of %r ended with this while it was cancelled", loop)
                        self._requeue()
            return failure
        finally:
            current = task = None
            told.clear()  # the traceback of an interrupt has this frame, and a task may have ended with that
            self._abandon_all()
            loop.ready.clear()
            loop.fds.selector = selector

    def on_quiet(self) -> None:
        """Nothing will ever make a task ready: their clean-ups wait for what does not come."""
        for task in list(self._loop.tasks):
            self._cancel_again(task)

    def _requeue(self) -> None:
        """Make ready just the tasks that do not wait; a run that was broken off may have left some of them nowhere."""
        loop = self._loop
        loop.running_task = None
        loop.ready[:] = [task for task in loop.tasks if task._waiting is None]

    def _exchange_handlers(self) -> None:
        handlers = self._loop.handlers
        handlers[ExitCommand] = self._go_on_ending
        for command_class, handler in list(handlers.items()):
            if command_class.is_wait:
                handlers[command_class] = self._last_waits(handler)

    def _go_on_ending(self, task: TaskHandle[Any], command: ExitCommand) -> None:
        """exit() while the run ends already."""
        task._deliver_cancellation(self._loop.ready)

    def _last_waits(self, handler: Handler | None) -> Handler:
        """The handler of a wait, for the end of a run."""

        def handle(task: TaskHandle[Any], command: Any) -> None:
            if task._has_swallowed_cancellation:
                self._cancel_again(task)
            else:
                self._loop.carry_out(handler, task, command)  # it was not told yet, or cleans up

        return handle

    def _cancel_again(self, task: TaskHandle[Any]) -> None:
        """A task that was told to end waits, and not because it cleans up."""
        swallowed = self._swallowed[task] = self._swallowed.get(task, 0) + 1
        if swallowed < SWALLOWS:
            self._loop.take_out_of_wait(task)
            task._deliver_cancellation(self._loop.ready)
        else:
            logger.error("%r has swallowed its cancellation %d times; it is closed", task, swallowed)
            self._abandon(task)

    def _abandon_all(self) -> None:
        for task in list(self._loop.tasks):
            logger.error("%r was closed where it stood, as the end of the run was cut short", task)
            self._abandon(task)

    def _abandon(self, task: TaskHandle[Any]) -> None:
        """End a task without its consent."""
        self._loop.take_out_of_wait(task)
        close_coroutine(task)
        self._loop.end_task(task, CANCELLED, None)


def _has_run_out(task: TaskHandle[Any]) -> bool:
    """Whether the coroutine of a task has come to its end."""
    raw_task = task.raw_task
    return getattr(raw_task, "cr_frame", raw_task) is None or getattr(raw_task, "gi_frame", raw_task) is None


class _FailedSelector:
    """Takes the place of a selector that cannot wait: nothing becomes ready, and what it holds is taken out of it.

    Args:
        selector: The one that failed.
        on_quiet: Called when there is nothing to do but wait.
    """

    def __init__(self, selector: Selector, on_quiet: Callable[[], object]) -> None:
        self.modify = selector.modify
        self.unregister = selector.unregister
        self.close = selector.close
        self._on_quiet = on_quiet

    def register(self, fileobj: FileObject, events: int, data: Any = None, /) -> SelectorKey:
        return SelectorKey(fileobj, -1, events, data)

    def select(self, timeout: float | None = None, /) -> list[tuple[SelectorKey, int]]:
        if timeout != 0:
            self._on_quiet()
        return []
