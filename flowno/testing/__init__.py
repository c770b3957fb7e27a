"""Helpers for the tests of programs that run in flowno, and of selectors. They need no test framework."""

from ..core.event_loop.selector_rules import ProtocolViolation
from .cancellation import CancellationLeak, cancel_everywhere
from .conformance import SelectorConformance

__all__ = ["CancellationLeak", "ProtocolViolation", "SelectorConformance", "cancel_everywhere"]
