"""Every case, in the order in which they are run: what a later group relies on is proved by an earlier one."""

from typing import Final

from .bookkeeping import BOOKKEEPING
from .case import Case
from .forking import FORKING
from .hostile_descriptors import HOSTILE_DESCRIPTORS
from .readiness import READINESS
from .signals_and_threads import SIGNALS_AND_THREADS
from .timing import TIMING

__all__ = ["CASES"]

_GROUPS: Final = (BOOKKEEPING, READINESS, TIMING, SIGNALS_AND_THREADS, FORKING, HOSTILE_DESCRIPTORS)

CASES: Final[tuple[Case, ...]] = tuple(case for group in _GROUPS for case in group.cases)
