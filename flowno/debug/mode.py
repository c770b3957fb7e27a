"""Debug mode: what a loop looks for while it runs. Everything goes to the logger ``flowno.debug``, or to warnings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowno.core.event_loop.operations import begin_native, end_native

from . import outcomes
from .descriptors import watch_descriptors
from .handles import unwatch_handles, watch_handles
from .watchdog import Watchdog

if TYPE_CHECKING:
    from flowno.core.event_loop.event_loop import EventLoop

__all__ = ["attach"]


def attach(loop: EventLoop, value: str) -> None:
    """Put a new loop into debug mode, until it is closed or dropped.

    Args:
        loop: The loop.
        value: Of ``FLOWNO_DEBUG``; there is one debug mode.
    """
    watchdog = Watchdog()
    loop.task_class = outcomes.WatchedTask
    loop.add_step_wrapper(outcomes.run_step)
    loop.add_step_wrapper(watchdog.run_step)
    watch_descriptors(loop.fds)
    watch_handles()
    begin_native()
    loop.close_callbacks += (watchdog.end, unwatch_handles, end_native)
