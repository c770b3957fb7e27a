"""A selector that keeps its contract, and no more than that."""

import random
from selectors import SelectorKey
from typing import Any

from flowno.core.event_loop.backend import FileObject
from tests.support.counting_selector import CountingSelector

__all__ = ["FaultySelector"]


class FaultySelector(CountingSelector):
    """The backend that FLOWNO_SELECTOR names, as unhelpful as a level-triggered selector may be.

    What is ready is reported in any order, split up, and some of it only by a later report; what is not ready is
    reported too; waits end early, or with EINTR. ``seed`` makes a run the same as the one before.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._keys: dict[int, SelectorKey] = {}

    def register(self, fileobj: FileObject, events: int, data: Any = None, /) -> SelectorKey:
        key = super().register(fileobj, events, data)
        self._keys[key.fd] = key
        return key

    def modify(self, fileobj: FileObject, events: int, data: Any = None, /) -> SelectorKey:
        key = super().modify(fileobj, events, data)
        self._keys[key.fd] = key
        return key

    def unregister(self, fileobj: FileObject, /) -> SelectorKey:
        key = super().unregister(fileobj)
        del self._keys[key.fd]
        return key

    def select(self, timeout: float | None = None, /) -> list[tuple[SelectorKey, int]]:
        chance = self._random.random
        if chance() < 0.05:
            raise InterruptedError
        if chance() < 0.1:
            timeout = 0
        events = [
            (key, bit)
            for key, mask in super().select(timeout)
            for bit in (1, 2)
            if mask & bit and chance() < 0.7  # the rest is as ready the next time
        ]
        events += [(key, bit) for key in self._keys.values() for bit in (1, 2) if key.events & bit and chance() < 0.1]
        self._random.shuffle(events)
        return list(dict.fromkeys(events))
