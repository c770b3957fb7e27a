"""``trace(selector)``, formatted and not shown."""

import logging
from typing import ClassVar

from flowno.debug.selector_decorators import TraceSelector

__all__ = ["SilentTrace"]


class _Formatting(logging.Handler):
    """Does what a handler does with a record, but for showing it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.format(record)


class SilentTrace(TraceSelector):
    """As TraceSelector, to a logger of its own that nobody listens to."""

    logger: ClassVar[logging.Logger] = logging.Logger("silent", logging.DEBUG)  # noqa: LOG001  # below no other


SilentTrace.logger.addHandler(_Formatting())
