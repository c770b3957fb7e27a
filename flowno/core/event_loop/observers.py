"""Where the core calls up to what watches event loops: debug mode, traces, monitors; and to what makes faults in them.

They live in ``flowno.debug``, which is loaded by its dotted name when a loop is made that something is attached to, and
by nothing else. How they watch is the loop's to offer: :meth:`EventLoop.add_step_wrapper`, its ``close_callbacks``.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Final

from .environment import DEBUG_VARIABLE, VARIABLES, switched_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from .event_loop import EventLoop

__all__ = ["entering", "leaving", "making", "observe"]

#: For those who watch every event loop of the process: called with each that begins to run, or has run, in the thread
#: that runs it. They must not raise.
entering: list[Callable[[EventLoop], object]] = []
leaving: list[Callable[[EventLoop], object]] = []

#: Called with each event loop of the process that is made, before what its environment asks for; what they raise is
#: raised where it is made.
making: list[Callable[[EventLoop], object]] = []

_OBSERVERS: Final = "flowno.debug"


def observe(loop: EventLoop, debug: bool | None = None) -> None:
    """Attach to a new loop what was asked for; nothing is loaded where nothing was.

    Args:
        loop: The loop.
        debug: Whether it is in debug mode; None for what ``FLOWNO_DEBUG`` says.
    """
    for watch in list(making):
        watch(loop)
    values = {variable: os.environ[variable] for variable in VARIABLES if switched_on(variable)}
    if debug is not None:
        values.pop(DEBUG_VARIABLE, None)
        if debug:
            values[DEBUG_VARIABLE] = "1"
    if values:
        importlib.import_module(_OBSERVERS).attach(loop, values)
