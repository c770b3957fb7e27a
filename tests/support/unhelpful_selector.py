"""A selector that is no help, for tests of what is made of it."""

from typing import Final

from flowno.core.event_loop.backend import Selector
from flowno.debug.selector_decorators import FaultySelector
from flowno.testing import faults

__all__ = ["UNHELPFUL", "unhelpful"]

#: How often it does what its contract lets it do: far more often than by ``FLOWNO_FAULTS=seed=N``.
UNHELPFUL: Final = {"late": 0.3, "split": 0.3, "reordered": 0.9, "spurious": 0.3, "early": 0.1, "eintr": 0.1}


def unhelpful(selector: Selector, seed: int) -> FaultySelector:
    """One that keeps its contract, and no more than that."""
    return FaultySelector(selector, faults=faults(seed, **UNHELPFUL))
