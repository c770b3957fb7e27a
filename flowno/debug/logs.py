"""A quick look at what flowno logs, by ``FLOWNO_LOG_LEVEL``, in a program that has configured no logging itself."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

from flowno.core.event_loop.observers import LOG_LEVEL_VARIABLE

if TYPE_CHECKING:
    from flowno.core.event_loop.event_loop import EventLoop

__all__ = ["attach", "formatter"]

_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s"
_TIME = "%H:%M:%S"


def formatter() -> logging.Formatter:
    """How a line looks that is shown in a program which has configured no logging."""
    return logging.Formatter(_FORMAT, _TIME)


class _QuickLook(logging.StreamHandler):  # type: ignore[type-arg]  # the class is generic for type checkers only
    """Writes to standard error, until the program configures logging itself."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(formatter())

    def filter(self, record: logging.LogRecord) -> bool:
        is_alone = not logging.getLogger().handlers and logging.getLogger("flowno").handlers == [self]
        return is_alone and bool(super().filter(record))


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
        logger.addHandler(_QuickLook())
        if logger.level == logging.NOTSET:
            logger.setLevel(level)


def _level(value: str) -> int | None:
    value = value.strip().upper()
    if value.isascii() and value.isdigit():
        return int(value)
    return logging.getLevelNamesMapping().get(value) or None
