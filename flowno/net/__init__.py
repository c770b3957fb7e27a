"""Connections, as streams of bytes: built on the handles of :mod:`flowno.core.event_loop.selectors`."""

from .streams import IncompleteReadError, LimitOverrunError, Stream

__all__ = ["IncompleteReadError", "LimitOverrunError", "Stream"]
