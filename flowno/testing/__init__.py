"""Helpers for the tests of programs that run in flowno, and of selectors.

They need no test framework; with pytest, there is a plugin.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..core.event_loop.selector_rules import ProtocolViolation
    from ..debug.faults import Faults, faults, faults_of
    from .cancellation import CancellationLeak, cancel_everywhere
    from .conformance import SelectorConformance

__all__ = [
    "CancellationLeak",
    "Faults",
    "ProtocolViolation",
    "SelectorConformance",
    "cancel_everywhere",
    "faults",
    "faults_of",
]

# Imported when it is first asked for: the plugin is loaded by every run of pytest in the same environment.
_LAZY = {
    "CancellationLeak": "flowno.testing.cancellation",
    "Faults": "flowno.debug.faults",
    "ProtocolViolation": "flowno.core.event_loop.selector_rules",
    "SelectorConformance": "flowno.testing.conformance",
    "cancel_everywhere": "flowno.testing.cancellation",
    "faults": "flowno.debug.faults",
    "faults_of": "flowno.debug.faults",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = globals()[name] = getattr(import_module(_LAZY[name]), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
