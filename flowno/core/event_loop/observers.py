"""Where the core calls up to what watches event loops: debug mode, traces, monitors; and to what makes faults in them.

They live in ``flowno.debug``, which is loaded by its dotted name when a loop is made that somebody wants to watch, and
by nothing else. How they watch is the loop's to offer: :meth:`EventLoop.add_step_wrapper`, its ``close_callbacks``.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from .event_loop import EventLoop

__all__ = [
    "DEBUG_VARIABLE",
    "FAULTS_VARIABLE",
    "LOG_LEVEL_VARIABLE",
    "MONITOR_VARIABLE",
    "TRACE_VARIABLE",
    "VARIABLES",
    "entering",
    "leaving",
    "making",
    "observe",
    "switched_on",
]

DEBUG_VARIABLE: Final = "FLOWNO_DEBUG"
FAULTS_VARIABLE: Final = "FLOWNO_FAULTS"
LOG_LEVEL_VARIABLE: Final = "FLOWNO_LOG_LEVEL"
MONITOR_VARIABLE: Final = "FLOWNO_MONITOR"
TRACE_VARIABLE: Final = "FLOWNO_TRACE"

#: That attach something to each loop of a program, without a change to it. They are read when a loop is made.
VARIABLES: Final = (DEBUG_VARIABLE, FAULTS_VARIABLE, LOG_LEVEL_VARIABLE, MONITOR_VARIABLE, TRACE_VARIABLE)

#: For those who watch every event loop of the process: called with each that begins to run, or has run, in the thread
#: that runs it. They must not raise.
entering: list[Callable[[EventLoop], object]] = []
leaving: list[Callable[[EventLoop], object]] = []

#: Called with each event loop of the process that is made, before what its environment asks for; what they raise is
#: raised where it is made.
making: list[Callable[[EventLoop], object]] = []

_OBSERVERS: Final = "flowno.debug"

#: What such a variable is where nothing is asked for, in small letters.
_OFF: Final = ("", "0", "false", "no", "off")


def switched_on(variable: str) -> bool:
    """Whether an environment variable asks for something: empty, ``0``, ``false``, ``no`` and ``off`` do not."""
    return os.environ.get(variable, "").strip().lower() not in _OFF


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
