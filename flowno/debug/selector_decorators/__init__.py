"""Decorators of selectors, for debugging: ``FLOWNO_SELECTOR='trace(poll)'`` and what else can be put around a name."""

from .base import SelectorDecorator
from .check import RULES, CheckSelector, ProtocolViolation
from .faulty import FaultySelector
from .shadow import ShadowSelector
from .trace import TraceSelector

__all__ = [
    "RULES",
    "CheckSelector",
    "FaultySelector",
    "ProtocolViolation",
    "SelectorDecorator",
    "ShadowSelector",
    "TraceSelector",
]
