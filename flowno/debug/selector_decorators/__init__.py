"""Decorators of selectors, for debugging: ``FLOWNO_SELECTOR='trace(poll)'`` and what else can be put around a name."""

from flowno.core.event_loop.selector_rules import CALL_RULES, ProtocolViolation

from .base import SelectorDecorator
from .check import CheckSelector
from .faulty import FaultySelector
from .shadow import ShadowSelector
from .trace import TraceSelector

__all__ = [
    "CALL_RULES",
    "CheckSelector",
    "FaultySelector",
    "ProtocolViolation",
    "SelectorDecorator",
    "ShadowSelector",
    "TraceSelector",
]
