"""When every task waits for another: whether anything could still happen, and who waits for what."""

from __future__ import annotations

import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from .threads import WORKERS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .tasks import TaskHandle

__all__ = ["somebody_could_call_in", "who_waits_for_what"]


def somebody_could_call_in() -> bool:
    """Whether there is anything in this process that could make a task ready from outside of the loop.

    That is another thread than this one and our workers, which could call ``create_task`` or ``cancel``; or a signal
    handler that the program has installed, which could do the same.
    """
    ours = {threading.get_ident(), *(worker.ident for worker in WORKERS)}
    if not ours.issuperset(sys._current_frames()):
        return True
    return any(
        callable(handler) and handler is not signal.default_int_handler
        for handler in map(signal.getsignal, signal.valid_signals())
    )


def who_waits_for_what(tasks: Iterable[TaskHandle[Any]]) -> str:
    """A line a task."""
    return "\n".join(f"  {task!r} waits in {task._waiting!r}" for task in tasks)
