"""When a fault is due: random numbers that begin with a seed, so that the same program meets the same faults.

Each selector, each socket in each direction and each registered descriptor has a stream of its own, so that the one is
not shifted by what the other does.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from .faults import Faults

__all__ = ["Dice"]


class Dice:
    """A stream of random numbers that decides where faults are made.

    Args:
        faults: Which ones.
        place: What the stream is for, in words that are the same in each run: they are a part of the seed.
    """

    __slots__ = ("_faults", "_place", "_random", "_storm")

    def __init__(self, faults: Faults, place: str) -> None:
        self._faults = faults
        self._place = place
        self._random = random.Random(f"{faults.seed}: {place}")
        self._storm = 0

    def is_due(self, kind: str) -> bool:
        """Whether a fault of this kind is due. Kinds that are not made take no number out of the stream."""
        rate = self._faults.rates.get(kind, 0.0)
        return rate > 0 and self._random.random() < rate

    def inject(self, kind: str) -> bool:
        """As :meth:`is_due`, and record it: who asks makes the fault then, in any case."""
        if not self.is_due(kind):
            return False
        self.record(kind)
        return True

    def record(self, kind: str) -> None:
        """Count a fault of this kind that was made here."""
        self._faults.record(kind, self._place)

    def inject_eagain(self, is_ready: Callable[[], bool]) -> bool:
        """As :meth:`inject` of EAGAIN, for what is ready.

        Once begun it goes on for some calls, and behind these there is one that gets through, however often it is asked
        for.
        """
        if self._storm == 1:
            self._storm = 0
            return False
        if not self._storm:
            if not self.is_due("eagain"):
                return False
            self._storm = self._random.randint(1, 4) + 1
        if not is_ready():
            return False
        self._storm -= 1
        self.record("eagain")
        return True

    def fewer(self, size: int) -> int:
        """At least one, and less than ``size``."""
        return self._random.randrange(1, size)

    def delay(self) -> int:
        """For how many reports something is withheld."""
        return self._random.randint(1, 3)

    def one_of(self, numbers: list[int]) -> int:
        """One of them."""
        return self._random.choice(numbers)

    def shuffle(self, things: list[Any]) -> None:
        """Bring them into another order."""
        self._random.shuffle(things)
