"""A world whose time passes only while the loop waits, so that a test of seconds takes none."""

from selectors import SelectorKey

from flowno.core.event_loop.backend import SystemWorld
from tests.support.counting_selector import CountingSelector

__all__ = ["VirtualTimeSelector"]


class _World(SystemWorld):
    def __init__(self) -> None:
        self.now = 1000.0

    def clock(self) -> float:
        return self.now


class VirtualTimeSelector(CountingSelector):
    """The backend that FLOWNO_SELECTOR names, in virtual time.

    What is ready comes at once; where nothing is, the clock is set forward to the end of the wait. ``cost`` is how many
    seconds every question takes.
    """

    def __init__(self, cost: float = 0.0) -> None:
        super().__init__()
        self.world: _World = _World()
        self._cost = cost

    def select(self, timeout: float | None = None, /) -> list[tuple[SelectorKey, int]]:
        self.world.now += self._cost
        events = super().select(0)
        if not events and timeout:
            self.world.now += timeout
        assert events or timeout is not None, "the loop waits for what never comes"
        return events
