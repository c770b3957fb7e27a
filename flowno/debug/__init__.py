"""What is attached to event loops from outside, to watch them or to make faults: at no cost where nobody asked for it.

A loop that is made where one of the environment variables of :data:`ATTACHMENTS` is set, or with ``debug=True``, is
handed to the function of that row. The functions are loaded by their dotted name, so that a trace does not load the
monitor.
"""

from __future__ import annotations

import importlib
import os
import warnings
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flowno.core.event_loop.environment import (
    DEBUG_VARIABLE,
    FAULTS_VARIABLE,
    LOG_LEVEL_VARIABLE,
    MONITOR_VARIABLE,
    TRACE_VARIABLE,
    environment_is_trusted,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flowno.core.event_loop.event_loop import EventLoop

    from .monitor import Monitor
    from .reports import report_on_signal
    from .tracing import trace

__all__ = ["ATTACHMENTS", "Attachment", "Monitor", "attach", "may_open", "path_in_process", "report_on_signal", "trace"]


class Attachment(NamedTuple):
    """What is attached to the loops that are made while an environment variable is set.

    Attributes:
        function: ``module:attach``. It is called with the new loop, which does not run yet, and with the value of the
            variable.
        opens_a_path: Whether the value is one. A program that must not trust its environment ignores it then.
    """

    function: str
    opens_a_path: bool = False


ATTACHMENTS: Final[dict[str, Attachment]] = {
    LOG_LEVEL_VARIABLE: Attachment("flowno.debug.logs:attach"),
    DEBUG_VARIABLE: Attachment("flowno.debug.mode:attach"),
    FAULTS_VARIABLE: Attachment("flowno.debug.faults:attach"),
    TRACE_VARIABLE: Attachment("flowno.debug.tracing:attach", opens_a_path=True),
    MONITOR_VARIABLE: Attachment("flowno.debug.monitor:attach", opens_a_path=True),
}


def attach(loop: EventLoop, values: Mapping[str, str]) -> None:
    """Attach to a new loop what its environment asks for; the core calls this.

    Args:
        loop: The loop.
        values: By the variables of :data:`ATTACHMENTS`, what they were set to.
    """
    for variable, (function, opens_a_path) in ATTACHMENTS.items():
        value = values.get(variable)
        if value is None:
            continue
        if not opens_a_path or may_open(variable, value):
            module, _, name = function.partition(":")
            getattr(importlib.import_module(module), name)(loop, value)


def may_open(variable: str, path: str) -> bool:
    """Whether this program may open a path that an environment variable names; where it may not, it says so, once."""
    if environment_is_trusted():
        return True
    warnings.warn(
        f"{variable}={path} was ignored: under python -E or -I, or with more rights than its user has, a program opens "
        "no path on the word of an environment variable",
        RuntimeWarning,
        stacklevel=1,  # always this line, so that the default filter shows it once and not once for each loop
    )
    return False


def path_in_process(path: str, pid: int | None = None) -> str:
    """A path that a variable or a program asks for, with the number of the process in the place of ``{pid}``.

    Args:
        path: The path.
        pid: The number; None is that of this process.
    """
    return path.replace("{pid}", str(os.getpid() if pid is None else pid))


#: What is loaded when it is first asked for; each part of this package is on its own.
_LAZY: Final = {
    "Monitor": "flowno.debug.monitor",
    "report_on_signal": "flowno.debug.reports",
    "trace": "flowno.debug.tracing",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
