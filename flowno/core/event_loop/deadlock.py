"""When every task waits for another: whether anything could still happen, and who waits for what."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, Literal

from .errors import DeadlockError
from .signals import is_ours
from .threads import OwnThread
from .words import wait_in_words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .tasks import TaskHandle

__all__ = ["DeadlockPolicy", "DeadlockWatch", "who_waits_for_what"]

DeadlockPolicy = Literal["raise", "log", "off"]

#: Seconds in which somebody outside of the loop may end a deadlock of its tasks before it is logged.
PATIENCE = 5.0

logger = logging.getLogger("flowno.loop")


class DeadlockWatch:
    """What an event loop does when nothing in it can ever make a task ready again.

    Args:
        policy: See :class:`~flowno.core.event_loop.event_loop.EventLoop`.

    Raises:
        ValueError: There is no such policy.
    """

    __slots__ = ("_logged", "_policy")

    def __init__(self, policy: DeadlockPolicy) -> None:
        if policy not in ("raise", "log", "off"):
            raise ValueError(f"deadlock must be 'raise', 'log' or 'off', not {policy!r}")
        self._policy = policy
        self._logged = False

    def patience(self, tasks: Iterable[TaskHandle[Any]]) -> float | None:
        """How many seconds to wait for somebody outside of the loop before :meth:`log` is due; None: for ever.

        Raises:
            DeadlockError: There is nobody outside.
        """
        if self._policy == "raise" and not _somebody_could_call_in():
            raise DeadlockError(f"no task can ever go on:\n{who_waits_for_what(tasks)}")
        return None if self._logged or self._policy == "off" else PATIENCE

    def log(self, loop: object, tasks: Iterable[TaskHandle[Any]]) -> None:
        """Say once who waits for what."""
        if not self._logged:
            self._logged = True
            logger.warning("only a call from outside can go on with %r:\n%s", loop, who_waits_for_what(tasks))


def _somebody_could_call_in() -> bool:
    """Whether there is anything in this process that could make a task ready from outside of the loop.

    That is another thread than this one, which could call ``create_task`` or ``cancel``, or a signal handler that the
    program has installed, which could do the same. A worker thread of ours is one only while it is at a function of the
    program, as it is where the task that has asked for it no longer waits.
    """
    own_threads = [thread for thread in threading.enumerate() if isinstance(thread, OwnThread)]
    ours = {threading.get_ident(), *(thread.ident for thread in own_threads if not thread.may_call_in)}
    if not ours.issuperset(sys._current_frames()):
        return True
    return any(callable(handler) and not is_ours(handler) for handler in map(signal.getsignal, signal.valid_signals()))


def who_waits_for_what(tasks: Iterable[TaskHandle[Any]]) -> str:
    """A line a task."""
    words = ((task, wait_in_words(task)) for task in tasks)
    return "\n".join(f"  {task!r} {'does not wait' if wait is None else f'waits for {wait}'}" for task, wait in words)
