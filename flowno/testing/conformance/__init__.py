"""The conformance kit: whether a selector keeps every rule of :class:`flowno.Selector`, case by case.

:data:`CASES` is the one list of them. ``flowno check`` runs it in a process of its own and prints a table;
:class:`SelectorConformance` makes each of them a test.
"""

from ...core.event_loop.selector_rules import RULES, ProtocolViolation
from .case import NEEDS, Case
from .cases import CASES
from .running import LIMIT, Outcome, outcome_of, prove
from .suite import SelectorConformance

__all__ = [
    "CASES",
    "LIMIT",
    "NEEDS",
    "RULES",
    "Case",
    "Outcome",
    "ProtocolViolation",
    "SelectorConformance",
    "outcome_of",
    "prove",
]
