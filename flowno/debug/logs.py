"""A quick look at what flowno logs, by ``FLOWNO_LOG_LEVEL`` and others, where the program has configured no logging."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import TYPE_CHECKING

from flowno.core.event_loop.environment import LOG_LEVEL_VARIABLE

if TYPE_CHECKING:
    from flowno.core.event_loop.event_loop import EventLoop

__all__ = ["Console", "attach"]

_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s"
_TIME = "%H:%M:%S"


class Console(logging.Handler):
    """Writes to standard error what no handler of the program would get: it is quiet as soon as there is one.

    Args:
        logger: The logger that it is for.
    """

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._logger = logger
        self.setFormatter(logging.Formatter(_FORMAT, _TIME))
        self.addFilter(self._is_alone)

    def _is_alone(self, record: logging.LogRecord) -> bool:
        logger = self._logger
        if any(handler is not self for handler in logger.handlers):
            return False
        return not logger.propagate or logger.parent is None or not logger.parent.hasHandlers()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if sys.stderr is not None:  # as it is in a program without a console
                sys.stderr.write(f"{self.format(record)}\n")
        except Exception:
            self.handleError(record)


def attach(loop: EventLoop, value: str) -> None:
    """Show what flowno logs from this level on; the first loop of the process for which this is called decides.

    Args:
        loop: The new loop.
        value: The name of a level, in any case, or its number.
    """
    logger = logging.getLogger("flowno")
    level = _level(value)
    if level is None:
        names = [name for name, number in logging.getLevelNamesMapping().items() if number]
        warnings.warn(
            f"{LOG_LEVEL_VARIABLE}={value} was ignored: it is none of {', '.join(names)}, and no number",
            RuntimeWarning,
            stacklevel=1,  # always this line, so that the default filter shows it once and not once for each loop
        )
    elif not logger.hasHandlers():
        logger.addHandler(Console(logger))
        if logger.level == logging.NOTSET:
            logger.setLevel(level)


def _level(value: str) -> int | None:
    value = value.strip().upper()
    if value.isascii() and value.isdigit():
        return int(value)
    return logging.getLevelNamesMapping().get(value) or None
