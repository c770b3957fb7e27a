"""A backend that is no help, for tests of what the loop makes of it."""

from flowno.core.event_loop.backend import Selector
from flowno.debug.selector_decorators import FaultySelector
from flowno.testing import faults

__all__ = ["unhelpful"]


def unhelpful(selector: Selector, seed: int) -> FaultySelector:
    """A selector that keeps its contract and no more than that, far more often than by ``FLOWNO_FAULTS=seed=N``."""
    return FaultySelector(
        selector, faults=faults(seed, late=0.3, split=0.3, reordered=0.9, spurious=0.3, early=0.1, eintr=0.1)
    )
